"""Comparisons of finished runs and of files of scores, plans, exit codes, and what stands beside results.json."""

import csv
import json
import re
from pathlib import Path
from typing import Any

import pytest

from builders import refused
from freerun.comparison.design import could_see, finished_part
from freerun.comparison.finished import compare_lines, compare_runs
from freerun.comparison.outputs import markdown
from freerun.comparison.plan import plan
from freerun.comparison.results import read
from freerun.comparison.run import compare as run_all
from freerun.errors import UserError
from simulated_runs import ARMS, RECIPE, arm, word_list, write_comparison, write_lines, write_run
from tiny_recipes import SAMPLING, ends, toml, write

STRICT = {"better": 0, "uncontrolled": 20, "as good": 21, "undecided": 22, "worse": 23, "no verdict": 24}


def with_recipes(out: Path, seeds: tuple[int, ...]) -> list[Path]:
    """Give the runs of a made-up comparison the recipes that real ones have; their folders."""
    folders: list[Path] = []
    for run in plan(ARMS, seeds):
        folder = out / "runs" / run.name
        method: dict[str, Any] = {"name": run.arm.method.name}
        if run.after:
            method["rate"] = {"measured": str((out / "runs" / run.after / "metrics.jsonl").resolve())}
        text = toml(name="r", seed=run.seed, data={"kind": "toy"}, method=method, train={"lr": 0.001})
        (folder / "recipe.toml").write_text(text)
        folders.append(folder)
    return folders


@pytest.fixture(scope="module")
def three(tmp_path_factory):
    """A comparison of three arms with three seeds, its results, and its runs' folders."""
    out = tmp_path_factory.mktemp("three") / "out"
    results = write_comparison(
        out, words=80, seeds=(0, 1, 2), updates=20, advantages={"scheduled_sampling": -1.5, "token_noise": -0.1}
    )
    return out, results, with_recipes(out, (0, 1, 2))


def test_finished_runs_are_compared_as_the_comparison_that_made_them(three, tmp_path, capsys):
    _, expected, folders = three
    found = compare_runs(folders)
    for name in ("word", "answer", "why", "sentence"):
        assert found["verdict"][name] == expected["verdict"][name]
    numbers = [(line["metric"], line["difference"], line["low"], line["high"]) for line in expected["comparisons"]]
    assert sorted(numbers) == sorted(
        (line["metric"], line["difference"], line["low"], line["high"]) for line in found["comparisons"]
    )
    assert {run["label"]: run["role"] for run in found["runs"]} == {
        "scheduled_sampling": "method", "teacher_forcing": "baseline", "token_noise": "control:matched",
    }  # fmt: skip
    printed = ends(capsys, 0, "compare", *folders, "--out", tmp_path / "again", "--strict").out
    assert "scheduled_sampling is better than teacher_forcing" in " ".join(printed.split())
    assert read(tmp_path / "again")["verdict"]["word"] == expected["verdict"]["word"] == "better"
    page = (tmp_path / "again" / "report.html").read_text()
    assert "Words on which arms differ" in page
    again = ends(capsys, 3, "compare", *folders, "--out", tmp_path / "again").err
    assert "holds a finished comparison" in again
    ends(capsys, 0, "compare", *folders, "--out", tmp_path / "again", "--overwrite", "--margin", "50")
    assert read(tmp_path / "again")["verdict"]["word"] == "as good"


def test_arms_of_runs_are_named_by_what_sets_them_apart(tmp_path):
    """Two learning rates of one method are two arms; runs that do not cross are refused, all at once."""
    words, folders = word_list(20), []
    for rate in (0.001, 0.01):
        for seed in (0, 1):
            run = plan([arm("teacher_forcing", "teacher_forcing")], [seed])[0]
            folder = tmp_path / f"lr-{rate}-{seed}"
            write_run(folder, run, words, updates=20)
            settings = {"data": {"kind": "toy"}, "method": {"name": "teacher_forcing"}, "train": {"lr": rate}}
            (folder / "recipe.toml").write_text(toml(name=f"run {seed}", seed=seed, **settings))
            folders.append(folder)
    found = compare_runs(folders)
    assert {run["label"] for run in found["runs"]} == {
        "teacher_forcing, train.lr=0.001", "teacher_forcing, train.lr=0.01",
    }  # fmt: skip
    refused(r"lr=0.01 has no run with seed 1: arms are paired by seed", compare_runs, folders[:3])
    refused(r"are both arm teacher_forcing with seed 0", compare_runs, [folders[0], copied(folders[0], tmp_path)])
    refused("holds no finished run: give folders of freerun train", compare_runs, [tmp_path])


def copied(folder: Path, tmp_path: Path) -> Path:
    import shutil

    return Path(shutil.copytree(folder, tmp_path / "copy"))


def exported(results: dict[str, Any], out: Path, folder: Path) -> list[Path]:
    """scores.csv as files of JSON lines, one an arm, as another tool would write them."""
    with (out / "scores.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    paths: list[Path] = []
    for label in dict.fromkeys(row["arm"] for row in rows):
        own = [row for row in rows if row["arm"] == label]
        seen: dict[tuple[str, str], int] = {}
        lines = []
        for row in own:
            key = (row["seed"], row["item"])
            seen[key] = seen.get(key, 0) + 1
            line = {"arm": label, "seed": int(row["seed"]), "item": f"{row['item']} {seen[key]}"}
            line["score"] = float(row["score"])
            lines.append(line | ({"control_of": "scheduled_sampling"} if label == "token_noise" else {}))
        paths.append(folder / f"{label}.jsonl")
        write_lines(paths[-1], lines)
    return paths


def test_scores_of_other_tools_get_the_same_statistics(three, tmp_path, capsys):
    out, results, _ = three
    paths = exported(results, out, tmp_path)
    found = compare_lines(paths)
    assert (found["verdict"]["word"], found["verdict"]["why"], found["test_items"]) == ("better", "own errors", 80)
    assert [step["baseline"] for step in found["verdict"]["steps"]] == ["teacher_forcing", "token_noise"]
    # scaled by itself the mean over words is a ratio of sums: the same estimate as of a task's own score
    ends(capsys, 0, "compare", *paths, "--strict", "--out", tmp_path / "o")
    assert ends(capsys, STRICT["worse"], "compare", *paths, "--strict", "--higher").out
    uncontrolled = ends(capsys, STRICT["uncontrolled"], "compare", *paths[:2], "--strict").out
    assert "no control was run" in " ".join(uncontrolled.split())
    assert ends(capsys, STRICT["as good"], "compare", *paths, "--strict", "--margin", "90").out
    assert "is no arm of these files" in ends(capsys, 2, "compare", paths[0], paths[2]).err  # a control without its arm
    lines = [json.loads(line) for line in paths[0].read_text().splitlines()]
    write_lines(
        tmp_path / "b.jsonl", [{**e, "arm": "b", "score": e["score"] + n % 2 - 0.5} for n, e in enumerate(lines)]
    )
    shaken = [paths[0], tmp_path / "b.jsonl", "--margin", "0.001"]
    assert ends(capsys, STRICT["undecided"], "compare", *shaken, "--strict").out
    refused(r"baseline 'x' is no arm of these files", compare_lines, paths, baseline="x")
    refused(r"compared by its ratio; got 0.5", compare_lines, paths, log=True, margin=0.5)


def test_one_seed_of_files_has_no_verdict_and_scores_of_whole_runs_do(tmp_path, capsys):
    one = [tmp_path / "a.jsonl", tmp_path / "b.jsonl"]
    for path, score in zip(one, (1.0, 2.0), strict=True):
        write_lines(path, [{"seed": 0, "item": str(n), "score": score + n % 3} for n in range(9)])
    printed = " ".join(ends(capsys, STRICT["no verdict"], "compare", *one, "--strict").out.split())
    assert "1 seed: no verdict. On these test items b is higher by 1.0000 than a in score" in printed
    assert "interval over items alone" in printed
    assert "95 %" not in printed
    for path, scores in zip(one, ((5.0, 5.2, 5.1), (1.0, 1.3, 1.1)), strict=True):
        write_lines(path, [{"seed": seed, "score": score} for seed, score in enumerate(scores)])
    whole = compare_lines(one)
    assert (whole["verdict"]["word"], whole["test_items"]) == ("uncontrolled", 0)
    assert compare_lines(one, log=True)["comparisons"][0]["scale"] == "log"
    ratio = compare_lines(one, log=True)["verdict"]["sentence"]
    assert re.search(r"4\.5 times smaller \(95 % interval 3\.\d to [56]\.\d\)", ratio)


def test_lines_that_cannot_be_read_are_named_with_their_file_and_line(tmp_path):
    path = tmp_path / "a.jsonl"
    lines = [
        '{"seed": 0, "item": "x", "score": 1}', "{", '{"seed": 0}', '{"seed": "0", "score": 1}',
        '{"seed": 0, "score": NaN}', '{"seed": 0, "item": "x", "score": 2}', '{"seed": 0, "score": 1, "sore": 2}',
    ]  # fmt: skip
    path.write_text("\n".join(lines))
    with pytest.raises(UserError) as caught:
        compare_lines([path])
    text = str(caught.value)
    for number, message in (
        (2, "no JSON"), (3, "a line is an object with seed and score"), (4, "seed a whole number; got 'a' and '0'"),
        (5, "score must be a finite number"), (6, "has a score of item 'x' already"), (7, "unknown key 'sore'"),
    ):  # fmt: skip
        assert re.search(rf"a\.jsonl:{number}: .*{message}", text), message
    path.write_text("")
    refused("is empty", compare_lines, [path])
    other = tmp_path / "b.jsonl"
    write_lines(path, [{"seed": 0, "item": "x", "score": 1.0}])
    write_lines(other, [{"seed": 0, "item": "y", "score": 1.0}])
    refused("other items than a has", compare_lines, [path, other])
    write_lines(other, [{"seed": 1, "item": "x", "score": 1.0}])
    refused("arm a has no run with seed 1", compare_lines, [path, other])


def test_options_without_a_meaning_are_refused_by_name(tmp_path, capsys):
    path = tmp_path / "a.jsonl"
    write_lines(path, [{"seed": 0, "score": 1.0}])
    error = ends(capsys, 2, "compare", path, "--resume", "--plan").err
    assert "--resume has no meaning for a comparison of files of scores" in error
    assert "nothing is trained" in error
    assert (
        "--margin has no meaning for a comparison of a recipe"
        in ends(capsys, 2, "compare", "demo", "--margin", "1").err
    )
    assert "--out DIR is missing" in ends(capsys, 2, "compare", "demo").err
    assert "no folder of a run and no .jsonl file" in ends(capsys, 2, "compare", path, "nothing").err
    assert "needs a recipe with [compare], folders" in ends(capsys, 2, "compare").err


def test_the_report_is_short_and_names_score_and_methods(three):
    out, results, _ = three
    text = (out / "report.md").read_text(encoding="utf-8")
    assert len(text.splitlines()) < 60
    assert text.startswith(
        "# simulated: yes\n\n**better**: better than teacher_forcing and than its control token_noise."
    )
    assert results["verdict"]["sentence"].replace("*", "\\*") in text
    signature = results["scores"]["free_running.per"]
    assert f"Score: `{signature}`" in text
    assert signature.startswith(
        "free_running.per|100*sum(errors)/sum(length)|better:lower|scale:linear|seeds:3|items:80|data:0123abcd|freerun:"
    )
    many = {**results, "comparisons": results["comparisons"] * 40}
    assert len(markdown(many).splitlines()) < 60
    assert "more lines: results.json has everything" in markdown(many)
    bib = (out / "references.bib").read_text()
    assert bib.count("@") == len({run["method"] for run in results["runs"]})
    assert "bengio2015scheduled" in bib


def test_the_csv_has_the_score_item_by_item(three):
    out, results, _ = three
    with (out / "scores.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 9 * 80
    for run in results["runs"]:
        own = [row for row in rows if (row["arm"], int(row["seed"])) == (run["label"], run["seed"])]
        total = sum(float(row["score"]) * float(row["weight"]) for row in own)
        assert total / sum(float(row["weight"]) for row in own) == pytest.approx(run["free_running"]["per"])


def test_a_plan_trains_nothing_and_says_what_the_design_could_see(three, tmp_path, capsys):
    recipe = tmp_path / "r.toml"
    arms = [{"label": each.label, "method": each.method.table()} for each in ARMS[:2]]
    recipe.write_text(toml(name="tiny", data={"kind": "toy"}, compare={"seeds": [0, 1, 2], "arms": arms}))
    printed = " ".join(ends(capsys, 0, "compare", recipe, "--plan", "--out", tmp_path / "none").out.split())
    assert "tiny: 2 arms x 3 seeds = 6 runs, 1 at a time" in printed
    assert "6 runs are left; their cost is known when one has finished" in printed
    assert "above about 4.4 times what single runs deviate by over seeds" in printed
    assert not (tmp_path / "none").exists()
    # runs that are there are the spread and the cost: five seeds, of which three have finished
    out = three[0]
    runs = plan(ARMS, range(5))
    found = finished_part(RECIPE, runs, out)
    assert found is not None
    text = could_see({**RECIPE, "compare": {"margin": 0.1}}, runs, found)
    assert re.match(r"5 seeds, 80 test words: differences in free-running PER above about \d\.\d\d points, from", text)
    assert "from the spread of 3 seeds; the margin of 0.10 points needs" in text
    shown = float(re.search(r"about (\d\.\d\d)", text)[1])
    fewer = float(re.search(r"about (\d\.\d\d)", could_see(RECIPE, plan(ARMS, range(3)), found))[1])
    assert shown < fewer
    assert could_see(RECIPE, plan(ARMS, [0]), None).startswith("1 seed: no verdict is possible")
    assert finished_part(RECIPE, plan(ARMS, [0, 7]), out) is None


def test_the_cost_of_what_is_left_comes_from_finished_runs_of_the_arm(three, tmp_path, capsys):
    recipe = tmp_path / "r.toml"
    arms = [{"label": each.label, "method": each.method.table()} for each in ARMS[:2]]
    recipe.write_text(toml(name="tiny", data={"kind": "toy"}, compare={"seeds": list(range(5)), "arms": arms}))
    printed = " ".join(ends(capsys, 0, "compare", recipe, "--plan", "--out", three[0], "--workers", "2").out.split())
    labels, out = ("teacher_forcing", "scheduled_sampling"), three[1]["runs"]
    seconds = {label: [run["seconds"] for run in out if run["label"] == label] for label in labels}
    expected = sum(2 * sum(each) / 3 for each in seconds.values())
    assert "scheduled_sampling-2 finished" in printed
    assert f"4 runs are left: about {expected / 60:.0f} min of training" in printed


@pytest.mark.slow(reason="trains fourteen runs, a process each")
def test_every_control_is_known_from_the_recipes_of_finished_runs(tmp_path):
    """Two seeds of every control, compared again from their folders: roles, labels and the verdict are the same."""
    arms = [
        {"method": {"name": "teacher_forcing"}}, {"label": "own", "method": SAMPLING},
        *({"control": word} for word in ("matched", "confusion", "equal_cost", "equal_seconds", "no_history")),
    ]  # fmt: skip
    table = {
        "name": "tiny",
        "data": {"kind": "ring", "length": 8, "walks": [24, 4, 6], "states": 4},
        "model": {"size": 4},
        "train": {"updates": 3, "batch_size": 4, "evaluate_every": 3, "save_every": 3},
        "compare": {"seeds": [0, 1], "arms": arms},
    }
    made = run_all(write(tmp_path, toml(**table)), [], tmp_path / "out", progress=False)
    folders = [tmp_path / "out" / run["folder"] for run in made["runs"]]
    found = compare_runs(folders)
    named = {"own": "scheduled_sampling", "matched": "token_noise", "confusion": "confusion_noise"}
    roles = {(named.get(run["label"], run["label"]), run["role"]) for run in made["runs"]}
    assert {(run["label"], run["role"]) for run in found["runs"]} == roles
    assert {role for _, role in roles} >= {f"control:{each}" for each in ("equal_cost", "equal_seconds", "no_history")}
    assert {run["control_of"] for run in found["runs"]} == {None, "scheduled_sampling"}
    assert found["verdict"]["word"] == made["verdict"]["word"]
