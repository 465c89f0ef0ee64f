"""What a forecaster's defaults are chosen by: five small series (tests/five_series.py), four settings, three seeds.

Each cell is the free-running NRMSE on test over that of the best row that needs no training (last value, last period,
mean, linear regression): 1 is level with it, below is better. 150 updates by scheduled sampling from gold to own.

With ``--regression`` nothing is trained: the regression, on which a forecaster starts, over the best of the other rows.

Run: python benchmarks/forecast_defaults.py [--first 0] [--seeds 3] [--updates 150] [--only-defaults] [--regression]
"""

from __future__ import annotations

import argparse
import math
import sys
import tempfile
from pathlib import Path

from freerun.recipes import load_recipe
from freerun.recipes.train import run_recipe
from freerun.tasks.series import SeriesTask

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
from five_series import FIVE, write_series

SETTINGS = {
    "raw": ("model.centre=none", "model.linear=false"),
    "centre": ("model.linear=false",),
    "centre, residual": ("model.residual=true",),
    "default: centre, linear": (),
}
RECIPE = """name = "five"
[data]
kind = "series"
time = "t"
missing = "mask"
period = 12
[model]
kind = "recurrent_forecaster"
[method]
name = "scheduled_sampling"
teacher_forcing_ratio = { schedule = "linear", start = 1.0, end = 0.0 }
[train]
evaluate_every = 50
"""


def print_regression(base: Path, seeds: range) -> None:
    """Print for each series how the regression stands to the best other row on test, by NRMSE and by squared error."""
    print("| series | NRMSE over the best other row | above 1.05 | worst | MSE over it | above 1.05 | worst |")
    for name in FIVE:
        cells, rows = [], []
        for seed in seeds:
            path = write_series(base / f"{seed}.csv", name, seed)
            recipe = load_recipe(base / "five.toml", [f"data.path={path}"])
            naive = SeriesTask(SeriesTask.load(recipe.data, recipe.model)).windows("test").naive
            rows.append({row: scores for row, (scores, _) in naive.items()})
        for score in ("nrmse", "mse"):
            ratios = [
                row["linear"][score] / min(row[other][score] for other in row if other != "linear") for row in rows
            ]
            mean = math.exp(sum(math.log(ratio) for ratio in ratios) / len(ratios))
            cells += [f"{mean:.2f}", f"{sum(ratio > 1.05 for ratio in ratios)} of {len(ratios)}", f"{max(ratios):.2f}"]
        print(f"| {name} | " + " | ".join(cells) + " |", flush=True)


def print_trained(base: Path, seeds: range, updates: int, settings: dict[str, tuple[str, ...]]) -> None:
    """Print a row a series, a cell for each setting with all seeds."""
    print("| series | " + " | ".join(settings) + " |")
    for name in FIVE:
        cells = []
        for label, changes in settings.items():
            ratios = []
            for seed in seeds:
                path = write_series(base / f"{seed}.csv", name, seed)
                more = (f"data.path={path}", f"seed={seed}", f"train.updates={updates}")
                out = base / f"{name}-{label}-{seed}"
                summary = run_recipe(load_recipe(base / "five.toml", [*more, *changes]), out, progress=False)
                free = summary["test"]["free_running"]
                ratios.append(free["nrmse"] / min(each for row, each in free.items() if row.endswith("_nrmse")))
            cells.append(", ".join(f"{ratio:.2f}" for ratio in ratios))
        print(f"| {name} | " + " | ".join(cells) + " |", flush=True)


def main() -> None:
    """Print the table of the settings, of the defaults alone, or of the regression."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for option, default in (("first", 0), ("seeds", 3), ("updates", 150)):
        parser.add_argument(f"--{option}", type=int, default=default)
    for option in ("--regression", "--only-defaults"):
        parser.add_argument(option, action="store_true")
    options = parser.parse_args()
    seeds = range(options.first, options.first + options.seeds)
    settings = {name: changes for name, changes in SETTINGS.items() if changes == () or not options.only_defaults}
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "five.toml").write_text(RECIPE)
        if options.regression:
            print_regression(Path(folder), seeds)
        else:
            print_trained(Path(folder), seeds, options.updates, settings)


if __name__ == "__main__":
    main()
