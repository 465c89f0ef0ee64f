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
SYMBOLS, CHAOS, WORDS = check_demo.SYMBOLS, check_demo.CHAOS, check_demo.WORDS
ALL = (SYMBOLS, CHAOS, WORDS)


def arms(name):
    recipe = check_demo.recipe_of(name)
    return [(label, seed) for label in check_demo.labels_of(recipe) for seed in recipe["seeds"]]


def error(name, label):
    return 0.2 if label == "scheduled_sampling" and name != WORDS else 0.9


def step(name, label):
    scale, alike = "log" if name == CHAOS else "linear", name == WORDS
    difference = 0.0 if alike else math.log(0.2 / 0.9) if scale == "log" else 0.2 - 0.9
    verdict = "undecided" if alike else "better"
    return {
        "arm": "scheduled_sampling",
        "baseline": label,
        "difference": difference,
        "scale": scale,
        "verdict": verdict,
    }


@pytest.fixture
def out(tmp_path):
    """What a demo leaves of which the check reads anything, with numbers as they should be."""
    for name, score in check_demo.SCORES.items():
        runs = [
            {"label": label, "seed": seed, "free_running": {score: error(name, label)}} for label, seed in arms(name)
        ]
        steps = [step(name, label) for label in (check_demo.BEATEN[name] or ("teacher_forcing",))]
        word = check_demo.VERDICTS[name][0]
        (tmp_path / name).mkdir()
        save(
            tmp_path / name,
            {"runs": runs, "verdict": {"word": word, "metric": f"free_running.{score}", "steps": steps}},
        )
        (tmp_path / name / "report.html").write_text(f"<html><svg></svg>{[label for label, _ in arms(name)]}</html>\n")
    return tmp_path


def save(folder, results):
    (folder / "results.json").write_text(json.dumps(results))


def read(folder):
    return json.loads((folder / "results.json").read_text())


def test_a_demo_that_worked_passes_and_compares_with_its_controls(out):
    assert check_demo.problems(out) == []
    labels = {name: check_demo.labels_of(check_demo.recipe_of(name)) for name in ALL}
    assert labels[SYMBOLS] == ["teacher_forcing", "scheduled_sampling", "matched_noise", "no_history"]
    assert labels[CHAOS] == labels[WORDS] == ["teacher_forcing", "scheduled_sampling", "matched_noise"]


@pytest.mark.parametrize("name", ALL)
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


@pytest.mark.parametrize("name", ALL)
def test_a_run_that_is_missing_or_without_a_score_is_seen(out, name):
    results = read(out / name)
    *others, last = results["runs"]
    save(out / name, results | {"runs": others})
    assert check_demo.problems(out) == [f"{out / name}: no finished run of {last['label']}, seed {last['seed']}"]
    for score in (float("nan"), 0.0, None):
        broken = last | {"free_running": {check_demo.SCORES[name]: score}}
        save(out / name, results | {"runs": [*others, broken]})
        assert check_demo.problems(out)


@pytest.mark.parametrize(
    ("name", "word"),
    [(SYMBOLS, "uncontrolled"), (SYMBOLS, "undecided"), (CHAOS, "worse"), (CHAOS, "no verdict"), (WORDS, "better")],
)
def test_another_verdict_is_seen(out, name, word):
    results = read(out / name)
    save(out / name, results | {"verdict": results["verdict"] | {"word": word}})
    assert check_demo.problems(out) == [f"{out / name}: the verdict on {results['verdict']['metric']} is {word}"]


@pytest.mark.parametrize("name", [SYMBOLS, CHAOS])
def test_a_step_that_is_missing_or_undecided_is_seen(out, name):
    results = read(out / name)
    *others, last = results["verdict"]["steps"]
    for steps in (others, [*others, last | {"verdict": "undecided"}]):
        save(out / name, results | {"verdict": results["verdict"] | {"steps": steps}})
        assert f"is not better than {last['baseline']}" in check_demo.problems(out)[0]


@pytest.mark.parametrize("name", ALL)
def test_a_difference_that_is_not_the_runs_is_seen(out, name):
    results = read(out / name)
    first, *others = results["verdict"]["steps"]
    for difference in (-first["difference"] or 0.1, first["difference"] - 0.01):
        save(
            out / name,
            results | {"verdict": results["verdict"] | {"steps": [first | {"difference": difference}, *others]}},
        )
        assert "by the verdict" in check_demo.problems(out)[0]
    for run in results["runs"]:
        run["free_running"] = {check_demo.SCORES[name]: 0.5 if run["label"] == "scheduled_sampling" else 0.6}
    save(out / name, results)
    assert "by the verdict" in check_demo.problems(out)[0]
