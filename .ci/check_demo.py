"""Check what `make demo` left, not only its exit code. Standard library only.

Run: python .ci/check_demo.py [OUT]
"""

from __future__ import annotations

import json
import math
import sys
import tomllib
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
CHAOS, WORDS = "mackey-glass-demo", "g2p-demo"


def problems(out: Path) -> list[str]:
    """What is missing or wrong in the demo's folder; [] where it shows what it should."""
    found = [*whole(out / CHAOS, "nrmse"), *whole(out / WORDS, "per")]
    return found or lower(out / CHAOS)


def whole(folder: Path, score: str) -> list[str]:
    """A comparison's problems: every run of its recipe finished with a score, and a page that shows every arm."""
    recipe = recipe_of(folder.name)
    labels = labels_of(recipe)
    wanted = {(label, seed) for label in labels for seed in recipe["seeds"]}
    try:
        runs: list[dict[str, Any]] = json.loads((folder / "results.json").read_text("utf-8"))["runs"]
        finished = {(run["label"], run["seed"]) for run in runs if 0 < run["free_running"][score] < math.inf}
        page = (folder / "report.html").read_text("utf-8")
    except (OSError, ValueError, KeyError, TypeError) as error:
        return [f"{folder}: {type(error).__name__}: {error}"]
    bad = [f"{folder}: no finished run of {label}, seed {seed}" for label, seed in sorted(wanted - finished)]
    bad += [f"{folder}: the page does not name {label}" for label in labels if label not in page]
    return bad + (
        [] if "<svg" in page and page.rstrip().endswith("</html>") else [f"{folder}: no whole page with figures"]
    )


def recipe_of(name: str) -> dict[str, Any]:
    """What a recipe compares."""
    return tomllib.loads((ROOT / "recipes" / f"{name}.toml").read_text("utf-8"))["compare"]


def labels_of(recipe: dict[str, Any]) -> list[str]:
    """The labels of its arms."""
    return [arm.get("label", arm["method"]["name"]) for arm in recipe["arms"]]


def lower(folder: Path) -> list[str]:
    """[] where scheduled sampling runs freely with a lower error than teacher forcing, by runs and by comparison."""
    results = json.loads((folder / "results.json").read_text("utf-8"))
    errors: dict[str, list[float]] = {}
    for run in results["runs"]:
        errors.setdefault(run["label"], []).append(run["free_running"]["nrmse"])
    # errors are compared as ratios of geometric means, their logarithms' differences
    mean = {label: math.exp(sum(map(math.log, each)) / len(each)) for label, each in errors.items()}
    ours, gold = mean["scheduled_sampling"], mean["teacher_forcing"]
    ratios = [
        math.exp(line["difference"])
        for line in results["comparisons"]
        if (line["arm"], line["baseline"], line["metric"])
        == ("scheduled_sampling", "teacher_forcing", "free_running.nrmse")
    ]
    if ours < gold and len(ratios) == 1 and math.isclose(ratios[0], ours / gold, rel_tol=1e-3):
        return []
    return [f"{folder}: free-running NRMSE: scheduled sampling {ours:.4f}, teacher forcing {gold:.4f}; ratios {ratios}"]


if __name__ == "__main__":
    wrong = problems(Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "out")
    print("\n".join(wrong) or "the demo's result is as it should be")
    sys.exit(1 if wrong else 0)
