"""What a forecaster's defaults are chosen by: five small series (tests/five_series.py), four settings, three seeds.

Each cell is the free-running NRMSE on test over that of the best row that needs no training (last value, last period,
mean, linear regression): 1 is level with it, below is better. 150 updates by scheduled sampling from gold to own.

Run: python benchmarks/forecast_defaults.py [--seeds 3] [--updates 150]
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from freerun.recipes import load_recipe
from freerun.recipes.train import run_recipe

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


def main() -> None:
    """Print a row a series, a cell for each setting with all seeds."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--updates", type=int, default=150)
    options = parser.parse_args()
    print("| series | " + " | ".join(SETTINGS) + " |")
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder)
        (base / "five.toml").write_text(RECIPE)
        for name in FIVE:
            cells = []
            for label, changes in SETTINGS.items():
                ratios = []
                for seed in range(options.seeds):
                    path = write_series(base / f"{seed}.csv", name, seed)
                    more = (f"data.path={path}", f"seed={seed}", f"train.updates={options.updates}")
                    out = base / f"{name}-{label}-{seed}"
                    summary = run_recipe(load_recipe(base / "five.toml", [*more, *changes]), out, progress=False)
                    free = summary["test"]["free_running"]
                    ratios.append(free["nrmse"] / min(each for row, each in free.items() if row.endswith("_nrmse")))
                cells.append(", ".join(f"{ratio:.2f}" for ratio in ratios))
            print(f"| {name} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
