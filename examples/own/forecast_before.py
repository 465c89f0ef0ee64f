"""An ``nn.LSTM`` forecaster on a CSV file: reads 48 hours, forecasts 24, trained by teacher forcing.

Run: python examples/own/forecast_before.py [--csv FILE --epochs 10]
"""

import argparse
import csv
import math
import random

import torch
from torch import nn
from torch.utils.data import DataLoader

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


class Forecaster(nn.Module):
    def __init__(self, size=32):
        super().__init__()
        self.lstm = nn.LSTM(1, size, batch_first=True)
        self.head = nn.Linear(size, 1)

    def forward(self, values):
        hidden, _ = self.lstm(values)
        return self.head(hidden)

    @torch.no_grad()
    def forecast(self, past):
        hidden, state = self.lstm(past)
        outputs = [self.head(hidden[:, -1:])]
        for _ in range(HORIZON - 1):
            hidden, state = self.lstm(outputs[-1], state)
            outputs.append(self.head(hidden))
        return torch.cat(outputs, 1)


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
    model = Forecaster()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.003)
    for epoch in range(args.epochs):
        for batch in data["train"]:
            loss = nn.functional.mse_loss(model(batch[:, :-1])[:, PAST - 1 :], batch[:, PAST:])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        print(epoch, loss.item())
    errors = [(model.forecast(batch[:, :PAST]) - batch[:, PAST:]) ** 2 for batch in data["test"]]
    print("mean squared error of 24 hours:", torch.cat(errors).mean().item())


if __name__ == "__main__":
    main()
