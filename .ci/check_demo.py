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
SYMBOLS, CHAOS, WORDS = "symbols-demo", "mackey-glass-demo", "g2p-demo"

SCORES = {SYMBOLS: "token_error", CHAOS: "nrmse", WORDS: "per"}
"""Part of the demo -> the free-running score that its verdict is about."""

VERDICTS = {SYMBOLS: ("better",), CHAOS: ("better",), WORDS: ("undecided",)}
"""Part -> the words that README and RESULTS have an explanation for."""

BEATEN = {
    SYMBOLS: ("teacher_forcing", "matched_noise", "no_history"),
    CHAOS: ("teacher_forcing", "matched_noise"),
    WORDS: (),
}
"""Part -> the first arms of its sequence, which scheduled sampling is better than."""


def problems(out: Path) -> list[str]:
    """What is missing or wrong in the demo's folder; [] where it shows what it should."""
    return [problem for name in SCORES for problem in whole(out / name) or decided(out / name)]


def whole(folder: Path) -> list[str]:
    """A comparison's problems: every run of its recipe finished with a score, and a page that shows every arm."""
    recipe = recipe_of(folder.name)
    labels = labels_of(recipe)
    wanted = {(label, seed) for label in labels for seed in recipe["seeds"]}
    try:
        score = SCORES[folder.name]
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
    return [arm["label"] for arm in recipe["arms"]]


def decided(folder: Path) -> list[str]:
    """[] where the verdict is one of those that are explained, and each of its steps agrees with the runs."""
    results = json.loads((folder / "results.json").read_text("utf-8"))
    verdict, score = results["verdict"], SCORES[folder.name]
    steps = {step["baseline"]: step for step in verdict["steps"] if step["arm"] == "scheduled_sampling"}
    bad = [
        f"{folder}: scheduled sampling is not better than {label}: {steps.get(label)}"
        for label in BEATEN[folder.name]
        if steps.get(label, {}).get("verdict") != "better"
    ]
    if verdict["word"] not in VERDICTS[folder.name] or verdict["metric"] != f"free_running.{score}":
        bad += [f"{folder}: the verdict on {verdict['metric']} is {verdict['word']}"]
    errors: dict[str, list[float]] = {}
    for run in results["runs"]:
        errors.setdefault(run["label"], []).append(run["free_running"][score])
    for label, step in steps.items():
        # errors without a bound are compared as ratios of geometric means, their logarithms' differences
        scale = math.log if step["scale"] == "log" else float
        ours, theirs = (
            math.fsum(map(scale, errors[each])) / len(errors[each]) for each in ("scheduled_sampling", label)
        )
        if not math.isclose(step["difference"], ours - theirs, rel_tol=1e-3, abs_tol=1e-6):
            bad += [
                f"{folder}: {score}: {ours - theirs:.5f} from {label} by runs, {step['difference']:.5f} by the verdict"
            ]
    return bad


if __name__ == "__main__":
    wrong = problems(Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "out")
    print("\n".join(wrong) or "the demo's result is as it should be")
    sys.exit(1 if wrong else 0)
