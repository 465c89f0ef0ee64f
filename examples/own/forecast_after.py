"""The forecaster of ``forecast_before.py``, compared by freerun: did leaving teacher forcing pay?

Run: python examples/own/forecast_after.py --epochs 1 [--csv FILE --epochs 10]
"""

import argparse
import csv
import math
import random

import torch
from torch import nn
from torch.utils.data import DataLoader

import freerun as fr

PAST, HORIZON = 48, 24


def write_csv(path, rows=2000):
    """A made-up load: a day's and a week's period, a slow state, and noise."""
    random.seed(0)
    level = 0.0
    with open(path, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["hour", "load"])
        for hour in range(rows):
            level = 0.97 * level + random.gauss(0, 0.1)
            day, week = math.sin(2 * math.pi * hour / 24), math.sin(2 * math.pi * hour / 168)
            writer.writerow([hour, round(50 + 10 * day + 5 * week * day + 8 * level + random.gauss(0, 0.5), 3)])


def read_csv(path):
    with open(path, newline="") as file:
        values = torch.tensor([float(row["load"]) for row in csv.DictReader(file)])
    cut = int(0.7 * len(values))
    return (values - values[:cut].mean()) / values[:cut].std()


def make_model(size=32):
    return fr.models.RecurrentDecoder(nn.LSTM(1, size, batch_first=True), nn.Identity(), nn.Linear(size, 1))


def windows(values, begin, end):
    starts = range(begin, end - PAST - HORIZON, 4)
    return [values[start : start + PAST + HORIZON, None] for start in starts]


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--csv", default=None, help="columns hour, load; left out: a made-up series")
    parser.add_argument("--epochs", type=int, default=10)
    args = parser.parse_args()
    if args.csv is None:
        args.csv = "load.csv"
        write_csv(args.csv)
    values = read_csv(args.csv)
    n = len(values)
    parts = {"train": (0, int(0.7 * n)), "dev": (int(0.7 * n), int(0.85 * n)), "test": (int(0.85 * n), n)}
    data = {name: DataLoader(windows(values, *part), batch_size=32) for name, part in parts.items()}
    known = torch.arange(PAST + HORIZON) < PAST
    data = {name: [fr.Batch(v, mask=~known.expand(len(v), -1)) for v in loader] for name, loader in data.items()}
    arms = {"gold": fr.teacher_forcing(), "own": fr.free_running(), "noise": fr.matched_noise("own")}
    result = fr.compare(make_model, data, arms, updates=42 * args.epochs, learning_rate=0.003)
    print(result, result.save("forecast.html"))


if __name__ == "__main__":
    main()
