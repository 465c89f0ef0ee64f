"""Plan, processes, results.json and verdict; and the command on a real toy task, from empty folder to resume."""

import hashlib
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from builders import raises, refused
from freerun import report
from freerun.comparison import run as run_module
from freerun.comparison.executors import Job, Processes
from freerun.comparison.finished import compare_runs
from freerun.comparison.plan import PlannedRun, plan, ready
from freerun.comparison.results import collect, read, write
from freerun.comparison.run import compare, planned
from freerun.comparison.verdict import sentence, table
from freerun.errors import (
    CheckpointError,
    DivergedError,
    FaultError,
    OccupiedError,
    OtherProcessError,
    ResourceError,
    TerminatedError,
    UserError,
)
from freerun.recipes import load_recipe
from freerun.recipes.train import run_recipe
from freerun.training.log import RunState, progress_for, update_facts
from freerun.training.run_folder import events
from simulated_runs import ARMS, arm, write_comparison, write_finished, write_run
from tiny_recipes import SAMPLING, ends, toml

NOISE = {"name": "token_noise", "exclude_gold": True, "rate": {"matched_to": "sampling"}}


def tiny(updates, **train):
    """A recipe of two arms, the second of which runs first."""
    return toml(
        name="tiny",
        data={"kind": "toy", "symbols": 6, "max_length": 4, "train": 40, "dev": 6, "test": 8},
        model={"size": 8},
        train={"updates": updates, "batch_size": 8, "evaluate_every": updates, **train},
        compare={"seeds": [3], "workers": 2, "arms": [{"method": NOISE}, {"label": "sampling", "method": SAMPLING}]},
    )


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A recipe and the folder of a real, finished comparison of it."""
    folder = tmp_path_factory.mktemp("compare")
    recipe, out = folder / "tiny.toml", folder / "out"
    recipe.write_text(tiny(6))
    compare(recipe, [], out, progress=False)
    return recipe, out


def displayed(results: dict[str, Any]) -> str:
    """The table as text."""
    console = Console(width=150, file=io.StringIO())
    console.print(table(results))
    return console.file.getvalue()


def started(folder: Path, text: str, *flags: str) -> tuple[subprocess.Popen[str], Path, list[str]]:
    """A comparison in a process of its own; its folder and its command."""
    recipe, out = folder / "tiny.toml", folder / "out"
    recipe.write_text(text)
    command = [sys.executable, "-m", "freerun", "compare", str(recipe), "--out", str(out), *flags]
    return subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True), out, command


def until_it_trains(out: Path, seconds: float) -> None:
    metrics, deadline = out / "runs" / "sampling-3" / "metrics.jsonl", time.monotonic() + seconds
    while not (metrics.exists() and '"update"' in metrics.read_text()):
        assert time.monotonic() < deadline, f"no update within {seconds:.0f} seconds: the machine is too busy"
        time.sleep(0.1)


def test_references_run_before_what_is_matched_to_them(tmp_path):
    runs = plan(ARMS, [0, 1])
    assert [run.name for run in runs] == [
        "scheduled_sampling-0", "teacher_forcing-0", "token_noise-0",
        "scheduled_sampling-1", "teacher_forcing-1", "token_noise-1",
    ]  # fmt: skip
    waiting = runs[2:3]
    assert ready(waiting, {"teacher_forcing-0", "scheduled_sampling-1"}) is None
    assert ready(waiting, {"scheduled_sampling-0"}) is runs[2]
    measured = tmp_path / "scheduled_sampling-1" / "metrics.jsonl"
    assert runs[-1].method(tmp_path).parameters["rate"] == {"measured": str(measured)}
    labels = [arm("a b", "teacher_forcing"), arm("a-b", "teacher_forcing")]
    refused("'a b' and 'a-b' share the folder name 'a-b'", plan, labels, [0])


def test_results_have_the_public_fields(tmp_path):
    results = write_comparison(tmp_path, words=120)
    assert results == read(tmp_path)
    assert results["schema"] == 3
    fields = {"method", "seed", "signature", "free_running", "teacher_forced", "seconds", "decoder_passes", "updates"}
    assert all(fields <= set(run) for run in results["runs"])
    assert {tuple(entry) for entry in results["summary"]} == {("arm", "metric", "mean", "low", "high", "seeds")}
    wer = next(e for e in results["summary"] if (e["arm"], e["metric"]) == ("token_noise", "free_running.wer"))
    by_run = [run["free_running"]["wer"] for run in results["runs"] if run["label"] == "token_noise"]
    assert wer["mean"] == pytest.approx(sum(by_run) / 2)
    assert 0 <= wer["low"] < wer["mean"] < wer["high"] <= 100
    pairs = [(c["arm"], c["baseline"]) for c in results["comparisons"] if c["metric"] == "free_running.wer"]
    sampling, noise, gold = "scheduled_sampling", "token_noise", "teacher_forcing"
    assert pairs == [(sampling, gold), (noise, gold), (sampling, noise)]
    path = tmp_path / "results.json"
    path.write_text(path.read_text().replace('"schema": 3', '"schema": 2'))
    raises(
        CheckpointError,
        r"schema 2, of an earlier freerun.*every run has a role and the verdict is an object",
        read,
        tmp_path,
    )


def test_differences_are_of_paired_words(tmp_path):
    results = write_comparison(tmp_path, words=80, seeds=(0, 1, 2))
    for line in results["comparisons"]:
        if not line["metric"].startswith("free_running"):
            continue
        mean = {e["arm"]: e["mean"] for e in results["summary"] if e["metric"] == line["metric"]}
        assert line["difference"] == pytest.approx(mean[line["arm"]] - mean[line["baseline"]])
        assert line["low"] < line["difference"] < line["high"]
        assert (line["probability_better"] > 0.5) == (line["difference"] < 0)


def test_a_null_result_is_reported_as_one(tmp_path):
    results = write_comparison(tmp_path, words=150)
    verdict = results["verdict"]["sentence"]
    assert verdict.startswith("scheduled_sampling was not shown to differ from teacher_forcing in free-running PER")
    assert "its matched noise control token_noise was therefore not tested" in verdict
    seen = r"this design could have seen \d\.\d\d points, and a difference like this one needs more than 100 seeds"
    assert re.search(seen, verdict)
    assert "2 seeds, 150 test words; fewer than 5 seeds: a hint, not a result" in verdict
    assert verdict.count(". ") == 0
    found = results["verdict"]
    assert (found["word"], found["answer"], found["why"]) == ("undecided", "not decided", None)
    assert [(step["arm"], step["baseline"]) for step in found["steps"]] == [("scheduled_sampling", "teacher_forcing")]
    # an interval leaves out zero exactly where something is decided
    for line in results["comparisons"]:
        assert (line["low"] * line["high"] > 0) == (line["verdict"] != "undecided")


@pytest.mark.parametrize(("move", "word"), [(-1.2, "better"), (1.2, "worse")])
def test_a_clear_difference_is_reported_with_its_interval(tmp_path, move, word):
    results = write_comparison(tmp_path, words=400, seeds=range(5), advantages={"scheduled_sampling": move}, updates=20)
    assert f"scheduled_sampling is {word} than teacher_forcing in free-running PER" in results["verdict"]["sentence"]
    control = "is better than its" if word == "better" else "its"
    assert f"{control} matched noise control token_noise" in results["verdict"]["sentence"]
    assert results["verdict"]["sentence"].endswith("(5 seeds, 400 test words).")
    found = results["verdict"]
    why = "own errors" if word == "better" else None
    assert (found["word"], found["why"], found["answer"]) == (word, why, {"better": "yes", "worse": "no"}[word])
    steps = [step["baseline"] for step in found["steps"]]
    assert steps == ["teacher_forcing", "token_noise"][: 2 if word == "better" else 1]


def test_better_without_a_control_is_uncontrolled_and_within_the_margin_is_as_good(tmp_path):
    gain = {"scheduled_sampling": -1.2}
    settings = {"words": 400, "seeds": range(5), "updates": 20}
    alone = write_comparison(tmp_path / "alone", arms=ARMS[:2], advantages=gain, **settings)["verdict"]
    assert (alone["word"], alone["answer"], alone["why"]) == ("uncontrolled", "yes", "no control")
    assert "no control was run, so nothing here decides why" in alone["sentence"]
    # noise that gains as much: better than teacher forcing, and nothing shows why
    both = write_comparison(tmp_path / "both", advantages={**gain, "token_noise": -1.2}, **settings)["verdict"]
    assert (both["word"], both["why"]) == ("uncontrolled", "undecided")
    within = write_comparison(tmp_path / "within", arms=ARMS[:2], margin=5.0, **settings)["verdict"]
    assert (within["word"], within["answer"], within["reason"]) == (
        "as good", "no", "as good as teacher_forcing within 5.00 points",
    )  # fmt: skip
    assert (
        "scheduled_sampling is as good as teacher_forcing within 5.00 points in free-running PER" in within["sentence"]
    )
    narrow = write_comparison(tmp_path / "narrow", arms=ARMS[:2], margin=0.01, **settings)["verdict"]
    assert narrow["word"] == "undecided"
    assert "0.01 points needs more than 100 seeds, or more test items" in narrow["sentence"]


@pytest.mark.parametrize("arms", [ARMS[1:], ARMS[:0:-1]], ids=["the arm first", "its control first"])
def test_an_arm_and_its_control_alone_get_a_verdict(tmp_path, arms):
    results = write_comparison(tmp_path, words=60, arms=arms, updates=20)
    pairs = [(line["arm"], line["baseline"], line["control"]) for line in results["comparisons"]]
    assert set(pairs) == {("scheduled_sampling", "token_noise", True)}
    assert len(pairs) == len({line["metric"] for line in results["comparisons"]})  # once in each family
    assert results["verdict"]["sentence"].startswith(
        "scheduled_sampling was not shown to differ from its matched noise control"
    )
    assert "in free-running PER: " in results["verdict"]["sentence"]


@pytest.mark.parametrize(("linear", "beaten"), [(0.3, False), (0.45, True)])
def test_a_simple_forecast_that_no_arm_beats_is_named(linear, beaten):
    summary, runs = [], []
    for label, mean in (("teacher_forcing", 0.5), ("scheduled_sampling", 0.4)):
        means = {"nrmse": mean, "linear_nrmse": linear, "mean_nrmse": 1.0}
        summary += [{"arm": label, "metric": f"free_running.{name}", "mean": mean} for name, mean in means.items()]
        runs += [{"label": label, "seed": seed, "free_running": {"nrmse": 0.5}} for seed in (0, 1)]
    line = {
        "arm": "scheduled_sampling", "baseline": "teacher_forcing", "metric": "free_running.nrmse", "step": 1,
        "low": -1.6, "high": -0.4, "difference": -1.0, "scale": "log", "control": False, "role": "baseline",
        "verdict": "better",
    }  # fmt: skip
    results = {"recipe": {"data": {"kind": "system"}}, "runs": runs, "summary": summary, "test_items": 9}
    verdict = sentence({**results, "comparisons": [line]})
    lost = "No arm beats linear regression, which needs no training: 0.3000 against 0.4000 of the best arm"
    assert verdict.startswith(lost) != beaten
    assert "scheduled_sampling is better than teacher_forcing" in verdict
    assert "0.4000 against 0.5000, 2.7 times smaller (95 % interval 1.49 to 5.0)" in verdict
    alone = {**results, "runs": [run for run in runs if run["seed"] == 0]}
    for difference, way in (
        (-1.0, "2.7 times smaller than"),
        (-3e-4, "1.0003 times smaller than"),
        (1e-6, "level with"),
    ):
        one = sentence({**alone, "comparisons": [{**line, "difference": difference, "verdict": "no verdict"}]})
        assert f"scheduled_sampling is {way} teacher_forcing in free-running NRMSE" in one


@pytest.mark.parametrize(
    ("select", "first", "best", "unlearnt"),
    [
        ("per", 80.0, [78.0, 76.0], True), ("per", 80.0, [78.0, 75.9], False), ("per", None, [78.0, 77.0], False),
        ("sequence_accuracy", 40.0, [41.0, 42.0], True), ("sequence_accuracy", 40.0, [41.0, 42.1], False),
    ],
)  # fmt: skip
def test_models_that_have_learnt_nothing_are_the_first_sentence(tmp_path, select, first, best, unlearnt):
    """Learnt: one run's best dev score is better by more than 5 % than that of the weights that it began with."""
    write_comparison(tmp_path, words=60, updates=20)
    runs = plan(ARMS, [0, 1])
    for run in runs:
        folder = tmp_path / "runs" / run.name
        summary = json.loads((folder / "summary.json").read_text())
        summary["best"] = {"select": select, "step": 1, "value": best[run.name == "token_noise-1"]}
        (folder / "summary.json").write_text(json.dumps(summary))
        event = {"event": "evaluate", "step": 0, "split": "dev", "teacher_forced": {}, "free_running": {select: first}}
        lines = (folder / "metrics.jsonl").read_text().splitlines(keepends=True)
        (folder / "metrics.jsonl").write_text("".join([lines[0], json.dumps(event) + "\n", *lines[1:]]))
    results = collect(read(tmp_path)["recipe"], runs, tmp_path)
    write(results, tmp_path)
    assert results["verdict"]["unlearnt"] is unlearnt
    of = f"(token_noise, seed 1: {best[1]:.4g} after {first or 0:.4g})"
    words = f"Training has hardly moved any arm: the best dev score of every run, {select}, lies within 5 % of that of "
    words += "the weights that"
    assert results["verdict"]["sentence"].startswith(f"{words} it began with {of}. ") is unlearnt
    page = report.write(tmp_path).read_text(encoding="utf-8")
    assert (f'<p class="beaten">{words} it began with {of}.</p>' in page) is unlearnt


def test_where_higher_is_better_the_words_turn_round(tmp_path):
    runs = plan(ARMS[:2], range(5))
    for run in runs:
        good = run.arm.label == "scheduled_sampling"
        # 20 sentences of ten words, of whose n-grams the better arm has two more right
        bleu = [[10, 10, 7 + 2 * good, 5 + 2 * good, 3 + 2 * good, 2 + 2 * good, 10, 9, 8, 7]] * 19
        bleu.append([10, 10, 5 + run.seed % 2, 3, 2, 1, 10, 9, 8, 7])
        # the same sentence twice must not be an obstacle
        items = [{"source": f"s{min(n, 18)}", "output": "o", "reference": "r", "bleu": b} for n, b in enumerate(bleu)]
        scores = {"free_running": {"bleu": 1.0}, "teacher_forced": {"loss": 2.0}}
        write_finished(tmp_path / "runs" / run.name, run, scores, items)
    results = collect({"name": "t", "data": {"kind": "parallel"}}, runs, tmp_path)
    first = results["comparisons"][0]
    assert (first["metric"], first["verdict"]) == ("free_running.bleu", "better")
    assert first["difference"] > 10
    assert first["probability_better"] > 0.99
    assert "scheduled_sampling is better than teacher_forcing in free-running BLEU" in results["verdict"]["sentence"]
    assert results["verdict"]["sentence"].endswith("(5 seeds, 20 test sentences).")


def compared_texts(folder: Path, own: float | None) -> dict[str, Any]:
    """Two arms on a text of which ``own`` percent of the words are novel; None: it has no words."""
    runs = plan(ARMS[:2], [0, 1])
    for run in runs:
        items = [
            {"source": f"b{n}", "prompt": "p", "output": "o", "references": ["r"],
             "errors": 40 + 0.1 * ((run.seed + 3 * n) % 5), "length": 20, "novel": int(own is not None),
             "words": 0 if own is None else 4}
            for n in range(12)
        ]  # fmt: skip
        free = {"trigram_divergence": 0.2, "novel_words": own and 25.0, "repetition": 1.0}
        free |= {"text_repetition": 0.5} if own is None else {"text_novel_words": own}
        scores = {"free_running": free, "teacher_forced": {"loss": 2.0, "bits_per_character": 2.9}}
        write_finished(folder / "runs" / run.name, run, scores, items)
    results = collect({"name": "t", "data": {"kind": "text"}}, runs, folder)
    # a model that parrots its training text has no novel words, and the text itself has some: neither is better
    assert {c["metric"] for c in results["comparisons"]} == {
        "teacher_forced.bits_per_character", "free_running.trigram_divergence"
    }  # fmt: skip
    write(results, folder)
    return results


def test_a_text_is_compared_by_its_free_run_and_shows_its_own_values(tmp_path):
    results = compared_texts(tmp_path, 6.125)
    # exposure bias cannot move what is measured on gold history
    assert "free-running trigram divergence: 0.2000 against 0.2000" in results["verdict"]["sentence"]
    assert "blocks of test text; fewer than 5 seeds" in results["verdict"]["sentence"]
    metrics = {entry["metric"]: entry["mean"] for entry in results["summary"] if entry["arm"] == ARMS[0].label}
    assert metrics["teacher_forced.bits_per_character"] == pytest.approx(40.2 / 20 / 0.693147, abs=0.01)
    assert metrics["free_running.novel_words"] == 25
    text = displayed(results)
    assert "the text itself" in text
    assert "6.12" in text
    page = report.write(tmp_path).read_text()
    assert "<h2>Examples</h2>" in page
    assert "<em>the text itself</em>" in page
    assert "free-running PER" not in page


def test_scores_that_count_nothing_are_left_out(tmp_path):
    """Numbers, music, another script without blanks: no share of novel words, and the rest is reported as ever."""
    results = compared_texts(tmp_path, None)
    assert "free_running.novel_words" not in {entry["metric"] for entry in results["summary"]}
    assert "the text itself" in report.write(tmp_path).read_text()


def test_one_seed_and_one_arm_have_no_verdict(tmp_path):
    one_seed = write_comparison(tmp_path / "seed", words=60, seeds=(0,), updates=20)
    verdict, page = one_seed["verdict"]["sentence"], report.write(tmp_path / "seed").read_text()
    assert verdict.startswith("1 seed: no verdict. On these test words scheduled_sampling is ")
    assert "points than teacher_forcing in free-running PER: " in verdict
    assert "another seed may reverse it (1 seed, 60 test words)" in verdict
    assert "not shown to differ" not in verdict
    assert "interval" not in verdict
    assert {line["verdict"] for line in one_seed["comparisons"]} == {"undecided"}
    assert "1 seed: no verdict" in page
    assert "interval over words alone" in page
    assert "95 % interval" not in page
    assert "undecided</span>" not in page
    assert "<small>exposure bias cannot move it</small>" in page
    one_arm = write_comparison(tmp_path / "arm", words=60, arms=ARMS[:1], updates=20)
    assert one_arm["comparisons"] == []
    assert "One arm was run (teacher_forcing)" in one_arm["verdict"]["sentence"]


def test_runs_on_other_data_or_words_are_refused(tmp_path):
    runs = plan(ARMS[:2], [0])
    for run in runs:
        write_run(tmp_path / "runs" / run.name, run, [(f"w{i}", "A B") for i in range(20)], updates=20)
    items = tmp_path / "runs" / runs[0].name / "test-items.jsonl"
    whole = items.read_text()
    items.write_text("".join(whole.splitlines(keepends=True)[:-1]))
    refused("different items", collect, {}, runs, tmp_path)
    items.write_text(whole)
    path = tmp_path / "runs" / runs[0].name / "summary.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "data": "ffff0000"}))
    refused("different data", collect, {}, runs, tmp_path)
    path.unlink()
    refused("without a finished summary: teacher_forcing-0", collect, {}, runs, tmp_path)


def test_table_shows_arms_and_intervals(tmp_path):
    text = displayed(write_comparison(tmp_path, words=60, updates=20))
    assert "token_noise" in text
    assert "[low, high]: 95 % interval" in text
    assert text.count("[") >= 10


def test_follower_reads_only_what_is_new_and_complete(tmp_path):
    follower, path = run_module.Follower(tmp_path), tmp_path / "metrics.jsonl"
    assert follower.look() == 0
    path.write_text('{"event":"header"}\n{"event":"update","step":0}\n{"event":"upd')
    assert follower.look() == 1
    scores = '"split":"dev","free_running":{"wer":50.0,"per":30.04}'
    with path.open("a") as file:
        file.write('ate","step":1}\n{"event":"evaluate","step":2,' + scores + "}\n")
    assert (follower.look(), follower.score) == (2, "dev PER 30.0 %")
    path.write_text('{"event":"update","step":0}\n')
    assert follower.look() == 1


def test_plain_lines_tell_how_far_the_runs_are(capsys):
    display = progress_for(100, runs=2)
    display.show([RunState("a-0", "running", 50, "dev WER 9.0 %"), RunState("b-0", "done", 100)])
    display.close()
    assert capsys.readouterr().err == ("update 150/200  0:00 elapsed  1 of 2 runs done\n  50/100  a-0  dev WER 9.0 %\n")


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def narrow(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    """Standard error as a terminal of 80 columns."""
    terminal = Terminal()
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys, "stderr", terminal)
    return terminal


def last_line(terminal: Terminal, name: str) -> str:
    lines = re.split(r"[\r\n]+", re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", terminal.getvalue()))
    return next(line for line in lines[::-1] if name in line)


@pytest.mark.parametrize(
    ("runs", "name", "facts"),
    [
        (1, "training", "loss 0.5000  teacher_forcing_ratio 0.996"),
        (2, "scheduled_sampling-0", "dev NRMSE 1.082"),
    ],
)
def test_eighty_columns_hold_count_and_times_of_a_run(monkeypatch, runs, name, facts):
    terminal = narrow(monkeypatch)
    bar = progress_for(40_000, runs=runs) if runs > 1 else progress_for(40_000)
    if runs == 1:
        assert update_facts({"loss": 0.5, "lr": 1e-3, "teacher_forcing_ratio": 0.996}) == f"{facts}  lr 1.00e-03"
    bar.show([RunState(name, "running", 12_345, facts), RunState("b-0", "done", 40_000)][:runs])
    bar.close()
    line = last_line(terminal, facts)
    assert re.search(rf"12345/40000 \d:\d\d:\d\d \S+ {facts if runs == 1 else f'{name}  {facts}'}", line)
    assert len(line) <= 80


@pytest.mark.parametrize("columns", [None, "40", "80", "200"])
def test_the_table_keeps_to_the_columns_there_are(tmp_path, capsys, monkeypatch, columns):
    results = write_comparison(tmp_path, words=60, updates=20)
    monkeypatch.setattr("freerun.comparison.run.compare", lambda *_, **__: results)
    monkeypatch.delenv("COLUMNS", raising=False)
    if columns is not None:
        monkeypatch.setenv("COLUMNS", columns)
    *lines, page = ends(capsys, 0, "compare", "copy", "--out", tmp_path).out.splitlines()
    assert page == str(tmp_path / "report.html")
    text = "\n".join(lines)
    assert results["verdict"]["sentence"] in " ".join(text.split())
    assert "…" not in text
    assert len(re.findall(r"\[-?\d+\.", text)) == 4 * 3
    assert all(heading in text for heading in ("PER %", "WER %", "teacher-forced loss", "free-running gap", "seconds"))
    assert max(map(len, text.splitlines())) <= int(columns or 80)
    if columns == "40":  # one column: a score, and below it an arm a line, with both ends of its interval
        rows = " ".join(line.strip(" │") for line in lines)
        labels = "".join(rf" {each.label} +\d+\.\d+ \[\d+\.\d+, \d+\.\d+\]" for each in ARMS)
        assert re.search(rf" PER %{labels} ", rows)
        assert len(re.findall(r"\[[^]\n]+\] *│", text)) == 4 * 3, "no interval goes on in another line"


HERE = Processes(2)


def job(tmp_path: Path, code: str) -> Job:
    run = PlannedRun(arm("arm", "teacher_forcing"), 0)
    return HERE.start(run, ["-c", code], tmp_path / "logs" / "arm-0.log")


FAILED = "import sys; print('loss is nan', file=sys.stderr); sys.exit(6)"


def test_children_are_stopped_gently_and_then_not(tmp_path):
    code = "import signal, time; signal.signal(signal.SIGINT, signal.SIG_IGN); print('up'); time.sleep(60)"
    # as a run does: whoever starts the tests in the background may have SIGINT ignored, and children inherit that
    heeding = code.replace("SIG_IGN", "default_int_handler")
    stubborn, gentle = job(tmp_path / "a", code), job(tmp_path / "b", heeding)
    deadline = time.monotonic() + 20
    while not (stubborn.log.read_text() and gentle.log.read_text()) and time.monotonic() < deadline:
        time.sleep(0.05)
    HERE.stop([stubborn, gentle], patience=5.0)
    assert HERE.poll(stubborn) == -signal.SIGKILL
    assert HERE.poll(gentle) not in (None, 0)
    assert "KeyboardInterrupt" in gentle.log.read_text()


@pytest.mark.parametrize(
    ("code", "kind", "words"),
    [
        ("import os; os.kill(os.getpid(), 9)", ResourceError, "was killed (SIGKILL), usually for want of memory"),
        ("import os; os.kill(os.getpid(), 15)", TerminatedError, "was stopped by SIGTERM"),
        ("import os; os.kill(os.getpid(), 11)", FaultError, "crashed (SIGSEGV)"),
        ("import sys; sys.exit(1)", FaultError, "ended with exit code 1"),
        ("import sys; sys.exit(4)", CheckpointError, "ended with exit code 4"),
        ("import sys; sys.exit(5)", ResourceError, "ended with exit code 5"),
        (FAILED, DivergedError, "ended with exit code 6"),
        ("import sys; sys.exit(7)", OtherProcessError, "ended with exit code 7"),
        ("import sys; sys.exit(143)", TerminatedError, "ended with exit code 143"),
    ],
)
def test_what_a_run_came_to_is_what_the_comparison_comes_to(tmp_path, code, kind, words):
    failed = job(tmp_path, code)
    failed.handle.wait()
    HERE.poll(failed)
    error = run_module.run_error(failed, "freerun compare R --out O --resume")
    assert type(error) is kind
    assert f"run arm-0 {words}" in str(error)
    assert str(failed.log) in str(error)
    if code == FAILED:
        assert "loss is nan" in str(error)
        assert "go on with: freerun compare R --out O --resume" in str(error)


TERMINATED = pytest.param(signal.SIGTERM, 143, marks=pytest.mark.slow(reason="as by SIGKILL: 15 seconds"))


@pytest.mark.parametrize(("number", "code"), [(signal.SIGKILL, -9), TERMINATED])
def test_a_comparison_that_is_ended_leaves_no_run_behind_and_goes_on(tmp_path, number, code):
    process, out, _ = started(tmp_path, tiny(100_000, save_every=1_000_000), "--workers", "2")
    until_it_trains(out, 100)
    assert list(out.glob("runs/*/lock")), "a run takes the lock away when it ends"
    process.send_signal(number)
    began = time.monotonic()
    printed = process.communicate(timeout=30)[1]
    assert process.returncode == code, printed
    while list(out.glob("runs/*/lock")):
        time.sleep(0.05)
        assert time.monotonic() - began < 10
    saved = sorted((out / "runs" / "sampling-3" / "checkpoints").glob("step-*"))[-1]
    assert saved.name != "step-00000000", "it saved what it had"


def test_a_real_comparison(finished):
    _, out = finished
    results = read(out)
    assert [(run["label"], run["seed"]) for run in results["runs"]] == [("token_noise", 3), ("sampling", 3)]
    assert results["test_items"] == 8
    assert "in free-running PER" in results["verdict"]["sentence"]
    assert all(run["free_running"]["wer"] == run["teacher_forced"]["wer"] for run in results["runs"])
    assert all(run["updates"] == 6 and run["decoder_passes"] > 0 for run in results["runs"])
    noise, sampling = ([e for e in events(out / run["folder"]) if e["event"] == "update"] for run in results["runs"])
    assert sum(event["disagreeing"] for event in sampling) > 0
    assert all(event["disagreeing"] == event["replaced"] for event in noise)
    header = "recipes/token_noise-3.toml"
    assert "runs/sampling-3/metrics.jsonl" in (out / header).read_text().replace(os.sep, "/")


def test_an_occupied_folder_is_refused_and_resume_reuses_runs(finished):
    recipe, out = finished
    raises(OccupiedError, "holds a finished comparison", compare, recipe, [], out)
    changed = (r"train.lr: 0.001 there, 0.5 now", "--overwrite", "--allow-change train.lr")
    refused(changed, compare, recipe, ["train.lr=0.5"], out, resume=True, progress=False)
    before = {path: path.stat().st_mtime_ns for path in out.glob("runs/*/summary.json")}
    (out / "results.json").unlink()
    raises(OccupiedError, "comparison that was started", compare, recipe, [], out)
    compare(recipe, [], out, resume=True, progress=False)
    assert {path: path.stat().st_mtime_ns for path in out.glob("runs/*/summary.json")} == before
    assert len(before) == 2


def test_a_change_that_is_allowed_is_made_in_the_runs_that_are_not_finished(finished, tmp_path):
    recipe, out = finished[0], shutil.copytree(finished[1], tmp_path / "out")
    (out / "runs" / "sampling-3" / "summary.json").unlink()
    before = (out / "recipes" / "token_noise-3.toml").read_bytes()
    changes = ["train.lr=0.5", "train.updates=8"]
    found = compare(recipe, changes, out, resume=True, allow=["train.lr", "train.updates"], progress=False)
    changed = {run["label"]: [change["key"] for change in run.get("changes", [])] for run in found["runs"]}
    assert changed["sampling"] == ["train.updates", "train.lr"]
    assert changed["token_noise"] == []
    assert (out / "recipes" / "token_noise-3.toml").read_bytes() == before
    assert "lr = 0.5" in (out / "recipes" / "sampling-3.toml").read_text()


@pytest.mark.slow(reason="starts a comparison of real runs, interrupts it, and resumes it: one to two minutes")
def test_ctrl_c_stops_the_runs_and_resume_finishes(tmp_path):
    process, out, command = started(tmp_path, tiny(200))
    until_it_trains(out, 300)
    process.send_signal(signal.SIGINT)
    printed = process.communicate(timeout=300)[1]
    assert process.returncode == 130, printed
    assert f"go on with: freerun compare {tmp_path / 'tiny.toml'} --out {out} --resume" in printed
    assert not (out / "results.json").exists()
    again = subprocess.run([*command, "--resume"], capture_output=True, text=True, check=False)
    assert again.returncode == 0, again.stderr
    assert [run["updates"] for run in read(out)["runs"]] == [200, 200]
    assert (out / "report.html").exists()


@pytest.mark.slow(reason="trains a real run until it diverges: some ten seconds of imports")
def test_a_run_that_fails_stops_the_comparison(tmp_path):
    recipe = tmp_path / "tiny.toml"
    recipe.write_text(tiny(50))
    changes = ['compare.arms=[{label = "gold", method = {name = "teacher_forcing"}}]', "train.lr=1e30", "train.clip=0"]
    message = r"run gold-3 ended with exit code 6(.|\n)*diverged"
    raises(DivergedError, message, compare, recipe, changes, tmp_path / "out", progress=False)


def test_arms_go_on_from_one_model(tmp_path, finished):
    recipe, out, start, other = (tmp_path / name for name in ("tiny.toml", "out", "start", "other"))
    recipe.write_text(tiny(2))
    for seed, folder in enumerate((start, other), 8):
        run_recipe(
            load_recipe(recipe, [f"seed={seed}", "train.updates=20", "method={name='teacher_forcing'}"]),
            folder,
            progress=False,
        )
    results = compare(recipe, [], out, init=start, progress=False)
    known = hashlib.sha256((start / "model" / "model.safetensors").read_bytes()).hexdigest()[:16]
    assert results["init"] == read(out)["init"] == known
    assert "begin with the same trained weights" in results["verdict"]["sentence"]
    folders = [out / "runs" / name for name in ("sampling-3", "token_noise-3")]
    assert compare_runs(folders)["init"] == known  # what runs began with is theirs, and not the comparison's
    cold = compare_runs([finished[1] / "runs" / "sampling-3", folders[0]])
    assert any(f"init={known}" in run["label"] for run in cold["runs"])
    assert "init" not in cold
    assert known in planned(recipe, [], None, None, start)[-1]
    with pytest.raises(CheckpointError, match=r"no model/model\.json there"):
        planned(recipe, [], None, None, tmp_path)
    with pytest.raises(UserError, match="which the comparison writes"):
        planned(recipe, [], out, None, folders[0])
    begun = json.loads((start / "summary.json").read_text())["best"]["value"]
    for name in ("sampling-3", "token_noise-3"):
        first = next(each for each in events(out / "runs" / name) if each["event"] == "evaluate")
        assert (first["step"], first["free_running"]["per"]) == (0, begun)
    for another in (None, other):
        with pytest.raises(UserError, match=f"begun with other weights: those of the digest {known} there"):
            compare(recipe, [], out, init=another, resume=True, progress=False)
    with pytest.raises(UserError, match="begun with other weights: new ones there, those of the digest"):
        compare(finished[0], [], finished[1], init=start, resume=True, progress=False)
    (finished[1] / "comparison.json").rename(tmp_path / "marker")  # as it was before there were markers
    with pytest.raises(UserError, match="begun with other weights: new ones there"):
        compare(finished[0], [], finished[1], init=start, resume=True, progress=False)
    (tmp_path / "marker").rename(finished[1] / "comparison.json")
    again = compare(recipe, [], out, init=start, resume=True, progress=False)
    assert again["verdict"] == results["verdict"]


def test_a_start_that_cannot_be_is_refused_before_anything_is_written(tmp_path, finished):
    recipe, out = tmp_path / "tiny.toml", tmp_path / "out"
    recipe.write_text(tiny(2))
    with pytest.raises(CheckpointError, match=r"no model/model\.json there"):
        compare(recipe, [], out, init=tmp_path, progress=False)
    start = finished[1] / "runs" / "sampling-3"
    with pytest.raises(CheckpointError, match="weight"):
        compare(recipe, ["model.size=16"], out, init=start, progress=False)
    assert not out.exists()
    with pytest.raises(UserError, match="lies in --out"):
        compare(recipe, [], finished[1], init=start, overwrite=True, progress=False)
