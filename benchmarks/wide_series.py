"""Memory of a forecast of many channels: electricity's size, made by a rule; each command's peak, by the system.

Loads a CSV file of ``channels`` columns and ``rows`` hours, trains 50 updates, evaluates and compares, and prints for
each command how long it took and the most memory its process held.

Run: python benchmarks/wide_series.py [--channels 321] [--rows 26304] [--horizon 96] [--stride 24] [--updates 50]
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

RECIPE = """name = "wide"
[data]
kind = "series"
path = "{path}"
past = 96
horizon = {horizon}
period = 24
evaluation_stride = {stride}
split = [0.7, 0.1, 0.2]
[model]
kind = "recurrent_forecaster"
[method]
name = "scheduled_sampling"
teacher_forcing_ratio = 0.5
[train]
updates = {updates}
evaluate_every = {updates}
evaluate_items = 64
[compare]
seeds = [0]
workers = 1
[[compare.arms]]
label = "teacher_forcing"
method = {{ name = "teacher_forcing" }}
[[compare.arms]]
label = "scheduled_sampling"
method = {{ name = "scheduled_sampling", teacher_forcing_ratio = 0.5 }}
"""


def write_table(path: Path, channels: int, rows: int) -> None:
    """Loads with a day, a week and a level that moves, from 1 to 10,000 units."""
    draw = np.random.default_rng(0)
    t = np.arange(rows)
    sizes = 10.0 ** draw.uniform(0, 4, channels)
    with path.open("w") as file:
        file.write(",".join(f"c{n}" for n in range(channels)) + "\n")
        phases, levels = draw.uniform(0, 24, channels), np.zeros(channels)
        for hour in t.tolist():
            levels += 0.01 * draw.normal(size=channels)
            day = np.sin(2 * np.pi * (hour + phases) / 24) + 0.3 * np.sin(2 * np.pi * hour / 168)
            values = sizes * (3 + levels + day + 0.2 * draw.normal(size=channels))
            file.write(",".join(f"{value:.5g}" for value in values) + "\n")


def measured(*arguments: str) -> None:
    """Run a command, and print its wall time and peak."""
    begun = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-m", "freerun", *arguments], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    assert process.stderr is not None
    lines = process.stderr.read().count("\n")  # progress, and what went wrong
    _, status, usage = os.wait4(process.pid, 0)
    peak = usage.ru_maxrss / 2**20
    seconds = time.perf_counter() - begun
    print(
        f"{arguments[0]}: exit {status >> 8}, {seconds:.0f} s, {lines} lines of progress, peak {peak:.2f} GiB",
        flush=True,
    )


def main() -> None:
    """Write the table, and run train, evaluate and compare."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, default in (("channels", 321), ("rows", 26304), ("horizon", 96), ("stride", 24), ("updates", 50)):
        parser.add_argument(f"--{name}", type=int, default=default)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder)
        write_table(base / "wide.csv", options.channels, options.rows)
        sizes = {"horizon": options.horizon, "stride": options.stride, "updates": options.updates}
        (base / "wide.toml").write_text(RECIPE.format(path=base / "wide.csv", **sizes))
        print(f"{options.channels} x {options.rows}, horizon {options.horizon}", flush=True)
        measured("train", str(base / "wide.toml"), "--out", str(base / "run"))
        measured("evaluate", str(base / "run"))
        measured("compare", str(base / "wide.toml"), "--out", str(base / "compared"))


if __name__ == "__main__":
    main()
