"""The check of the demo's result fails where the result is missing, unfinished or the other way round."""

import importlib.util
import json
import math
import shutil
from pathlib import Path

import pytest

PLACE = Path(__file__).parent.parent / ".ci" / "check_demo.py"
SPEC = importlib.util.spec_from_file_location("check_demo", PLACE)
check_demo = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(check_demo)
CHAOS, WORDS = check_demo.CHAOS, check_demo.WORDS


def arms(name):
    recipe = check_demo.recipe_of(name)
    return [(label, seed) for label in check_demo.labels_of(recipe) for seed in recipe["seeds"]]


@pytest.fixture
def out(tmp_path):
    """What a demo leaves of which the check reads anything, with numbers as they should be."""
    for name, score in ((CHAOS, "nrmse"), (WORDS, "per")):
        runs = [
            {"label": label, "seed": seed, "free_running": {score: 0.2 if label == "scheduled_sampling" else 0.9}}
            for label, seed in arms(name)
        ]
        line = {"arm": "scheduled_sampling", "baseline": "teacher_forcing", "metric": f"free_running.{score}"}
        folder = tmp_path / name
        folder.mkdir()
        save(folder, {"runs": runs, "comparisons": [line | {"difference": math.log(0.2 / 0.9)}]})
        (folder / "report.html").write_text(f"<html><svg></svg>{[label for label, _ in arms(name)]}</html>\n")
    return tmp_path


def save(folder, results):
    (folder / "results.json").write_text(json.dumps(results))


def read(folder):
    return json.loads((folder / "results.json").read_text())


def test_a_demo_that_worked_passes(out):
    assert check_demo.problems(out) == []


@pytest.mark.parametrize("name", [CHAOS, WORDS])
@pytest.mark.parametrize("file", ["results.json", "report.html", "."])
def test_a_missing_or_broken_file_is_seen(out, name, file):
    if file == ".":
        shutil.rmtree(out / name)
        assert name in check_demo.problems(out)[0]
        return
    (out / name / file).write_text("{}")
    assert name in check_demo.problems(out)[0]
    (out / name / file).unlink()
    assert "FileNotFoundError" in check_demo.problems(out)[0]


@pytest.mark.parametrize("name", [CHAOS, WORDS])
def test_a_run_that_is_missing_or_without_a_score_is_seen(out, name):
    results = read(out / name)
    *others, last = results["runs"]
    save(out / name, results | {"runs": others})
    assert check_demo.problems(out) == [f"{out / name}: no finished run of {last['label']}, seed {last['seed']}"]
    for score in (float("nan"), 0.0, None):
        save(out / name, results | {"runs": [*others, last | {"free_running": dict.fromkeys(("nrmse", "per"), score)}]})
        assert check_demo.problems(out)


def test_a_sign_the_other_way_round_is_seen_and_equal_errors_are_no_success(out):
    results = read(out / CHAOS)
    (line,) = results["comparisons"]
    for difference in (math.log(0.9 / 0.2), -0.2):
        save(out / CHAOS, results | {"comparisons": [line | {"difference": difference}]})
        assert "free-running NRMSE" in check_demo.problems(out)[0]
    save(out / CHAOS, results | {"comparisons": []})
    assert check_demo.problems(out)
    for own, gold, difference in ((0.9, 0.2, math.log(0.9 / 0.2)), (0.5, 0.5, 0.0)):
        for run in results["runs"]:
            run["free_running"]["nrmse"] = own if run["label"] == "scheduled_sampling" else gold
        save(out / CHAOS, results | {"comparisons": [line | {"difference": difference}]})
        assert f"scheduled sampling {own:.4f}, teacher forcing {gold:.4f}" in check_demo.problems(out)[0]
