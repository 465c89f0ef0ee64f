"""Series by the command: recipes, what is refused before training starts, runs, answers, comparisons."""

import csv
import io
import json
import math
import re
import shutil
from dataclasses import fields
from pathlib import Path
from typing import Literal, get_args, get_origin, get_type_hints

import pytest
import tomli_w
import torch

from builders import raises, refused
from freerun.comparison.plan import plan
from freerun.comparison.results import collect
from freerun.comparison.results import write as write_results
from freerun.comparison.run import compare
from freerun.comparison.verdict import references
from freerun.errors import ResourceError
from freerun.recipes import load_recipe, recipe_table
from freerun.recipes.fields import choices, fit, measured
from freerun.recipes.keys import sections
from freerun.recipes.load import evaluate_run, load_run
from freerun.recipes.train import build, run_recipe
from simulated_runs import arm, write_finished, write_lines
from tiny_recipes import TINY as TINY_IDS
from tiny_recipes import ends, toml, write

SHAPE = {"windows": [40, 10, 12], "trajectories": 4}
FALL = {"schedule": "linear", "start": 1.0, "end": 0.0}
TINY = toml(
    name="tiny",
    seed=3,
    data={"kind": "system", "system": "lorenz63", "past": 6, "horizon": 5, **SHAPE},
    model={"kind": "recurrent_forecaster", "size": 8},
    method={"name": "scheduled_sampling", "teacher_forcing_ratio": FALL},
    train={"updates": 4, "batch_size": 8, "evaluate_every": 2, "save_every": 4},
)

MODELS = ("recurrent_forecaster", "plain_forecaster", "transformer_forecaster", "shallow_plrnn", "article")


def tiny(folder: Path, *overrides: str, text: str = TINY):
    return load_recipe(write(folder, text), overrides)


def table(folder: Path, rows: int = 60, change: tuple[int, int, str] | None = None, name: str = "load.csv") -> Path:
    """A CSV table of a load, a temperature and a plan, by the hour; one cell of it may be changed."""
    lines = [
        [f"2024-01-{1 + t // 24:02} {t % 24:02}:00:00", f"{3 + math.sin(t / 4):.4f}", f"{math.cos(t / 5):.4f}",
         f"{float(t % 7 == 0):.1f}"]
        for t in range(rows)
    ]  # fmt: skip
    if change is not None:
        lines[change[0]][change[1]] = change[2]
    path = folder / name
    path.write_text("\n".join([",".join(line) for line in [["date", "load", "heat", "plan"], *lines]]) + "\n")
    return path


def series(path: Path, *more: str) -> list[str]:
    data = {"kind": "series", "path": str(path), "targets": ["load"], "observed": ["heat"], "covariates": ["plan"]}
    data |= {"time": "date", "calendar": ["hour"], "past": 6, "horizon": 5}
    return [f"data={{{', '.join(f'{key} = {json.dumps(value)}' for key, value in data.items())}}}", *more]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    path = table(folder, 120)
    summary = run_recipe(tiny(folder, *series(path)), folder / "run", progress=False)
    return folder / "run", path, summary


@pytest.mark.parametrize("kind", MODELS)
def test_every_model_trains_runs_and_is_checked(tmp_path, kind, capsys):
    recipe = tiny(tmp_path, f'model={{kind = "{kind}", size = 8}}')
    summary = run_recipe(recipe, tmp_path / "run", progress=False)
    own = {"nrmse", "nrmse_last_tenth", "mse", "mae", "valid_time", "diverged", "first_divergence"}
    assert own <= set(summary["test"]["free_running"])
    assert "step_equals_parallel" in ends(capsys, 0, "check", tmp_path / "run").out
    assert evaluate_run(load_run(tmp_path / "run"))["free_running"] == pytest.approx(summary["test"]["free_running"])


@pytest.mark.parametrize(
    ("head", "loss", "draw"),
    [
        ("gaussian", "gaussian_nll", "gaussian"),
        ("student_t", "student_t_nll", "student_t"),
        ("quantiles", "pinball", "quantile_sample"),
    ],
)
def test_a_head_brings_its_loss_and_feeds_its_mean(tmp_path, head, loss, draw):
    recipe = tiny(tmp_path, f"model.head={head}")
    method = build(recipe)[2]
    assert method.objective == loss
    assert (type(method.draw).__name__, method.draw.head) == ("Expected", head)
    assert "draw=expected(" in repr(method)
    summary = run_recipe(recipe, tmp_path / "run", progress=False)
    assert math.isfinite(summary["test"]["free_running"]["nrmse"])
    assert build(tiny(tmp_path, f"model.head={head}", f"method.draw={draw}"))[2].draw == draw
    assert build(tiny(tmp_path, f"model.head={head}", "method=teacher_forcing"))[2].objective == loss


@pytest.mark.parametrize(
    "method",
    [
        '{name="free_running", gradient=2}',
        '{name="scheduled_sampling", teacher_forcing_ratio=0.5, gradient="none"}',
        '{name="scheduled_sampling", teacher_forcing_ratio=0.5, gate="prefix", loss_on="last"}',
        '{name="scheduled_sampling", teacher_forcing_ratio=0.5, horizon={schedule="linear", start=1.0, end=5.0}}',
        '{name="multi_step", horizon={schedule="piecewise", values=[1.0, 3.0], steps=[0, 2]}}',
        '{name="pushforward", horizon=2}',
        '{name="multi_step", horizon={schedule="uniform", low=1, high={schedule="linear", start=1.0, end=5.0}}}',
        '{name="multi_step", horizon={schedule="choice", values=[1, 5], weights=[{schedule="linear"}, 0.5]}}',
        '{name="gaussian_noise", std="matched"}',
        '{name="gaussian_noise", std=0.1, walk="velocities"}',
        '{name="generalised_teacher_forcing", alpha=0.5}',
    ],
)
def test_methods_on_values(tmp_path, method):
    summary = run_recipe(tiny(tmp_path, f"method={method}"), tmp_path / "run", progress=False)
    assert math.isfinite(summary["test"]["free_running"]["nrmse"])


DRAWN = 'method={name="multi_step", gradient="checkpointed", horizon={schedule="choice", values=[1, 5]}}'


RUNNING = 'method={name="generalised_teacher_forcing", alpha="running", every=2, decay=0.5}'


REPLAYED = 'method={name="replay_buffer", share=0.5, capacity=9, age=3, gradient="none"}'


PUSHED = 'method={name="pushforward", horizon=4}'


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("horizon", [DRAWN]),
        ("alpha", [RUNNING, "model.kind=shallow_plrnn"]),
        ("steps", [PUSHED]),
        ("mean_age", [REPLAYED]),
    ],
)
def test_what_is_drawn_or_kept_goes_on_as_if_never_stopped(tmp_path, name, changes):
    recipe = tiny(tmp_path, *changes, "train.updates=8", "train.save_every=4", "train.keep=3", "train.accumulate=2")
    for run in ("whole", "stopped"):
        run_recipe(recipe, tmp_path / run, progress=False)
    for file in ("summary.json", "test-items.jsonl"):
        (tmp_path / "stopped" / file).unlink()
    shutil.rmtree(tmp_path / "stopped" / "checkpoints" / "step-00000008")
    run_recipe(recipe, tmp_path / "stopped", resume=True, progress=False)
    whole, stopped = (load_run(tmp_path / run).model.state_dict() for run in ("whole", "stopped"))
    assert all(torch.equal(whole[each], stopped[each]) for each in whole)
    lines = [json.loads(line) for line in (tmp_path / "whole" / "metrics.jsonl").read_text().splitlines()]
    found = [line[name] for line in lines if line["event"] == "update" and line["step"] >= (name == "mean_age")]
    if name == "mean_age":  # a buffer that is empty has none
        assert found[0] == 1 < max(found) <= 3
        return
    if name == "steps":  # evenly from 1 to the horizon; all 8 equal: 4^-7
        assert set(found) <= {1, 2, 3, 4}
        assert len(set(found)) > 1
        return
    if name == "alpha":
        assert len(set(found)) == 5  # 1, and one more after updates 0, 2, 4 and 6
        return
    assert set(found) == {1, 5}
    plain = tiny(tmp_path, DRAWN.replace("checkpointed", "full"), "train.updates=8", "train.accumulate=2")
    summary = run_recipe(plain, tmp_path / "plain", progress=False)
    found = json.loads((tmp_path / "whole" / "summary.json").read_text())["test"]["free_running"]["nrmse"]
    assert summary["test"]["free_running"]["nrmse"] == pytest.approx(found, rel=1e-4)


def test_the_longest_horizon_is_tried_before_the_first_update(tmp_path, monkeypatch, capsys):
    rising = 'method={name="multi_step", horizon={schedule="linear", start=1, end=9, steps=4}}'
    run_recipe(tiny(tmp_path, rising), tmp_path / "run")
    note = r"the longest horizon, 5 steps of 8 rows, needs about 0 MiB in an update; [\d,]+ MiB are free"
    assert re.search(note, " ".join(capsys.readouterr().err.split()))
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(10**9))  # a share of memory that holds nothing
    message = (
        r"the longest horizon, 5 steps of 8 rows, .* \(it comes at update 3\), and 0 MiB are free: lower method.hor"
    )
    raises(ResourceError, message, run_recipe, tiny(tmp_path, rising), tmp_path / "other", progress=False)
    run_recipe(tiny(tmp_path), tmp_path / "third", progress=False)  # without a horizon nothing is tried


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (['method={name="token_noise", rate=0.1}'], "token_noise is for symbols; the data of this recipe are values"),
        (["method=two_pass"], "use scheduled_sampling"),
        (["method.objective=cross_entropy"], "`objective` cross_entropy is for symbols"),
        (["method.objective=gaussian_nll"], "`objective` gaussian_nll does not fit a model with head point"),
        (["model.head=gaussian", "method.objective=mse"], "`objective` mse does not fit a model with head gaussian"),
        (["method.draw=sample"], "`draw` sample is for symbols; the data of a recipe are values"),
        (["method.draw=gaussian"], "`draw` gaussian does not fit a model with head point"),
        (["model.head=quantiles", "method.draw=gaussian"], "use auto, expected or quantile_sample"),
        (["model={kind='recurrent'}"], "kind recurrent is trained on cmudict or pairs or toy or parallel data"),
        (["data.system=lorentz63"], "system must be one of mackey_glass"),
        (["data.parameters={b=0.1}"], "lorenz63 has no parameter 'b'; it has: sigma, rho, beta, dt"),
        (["data.parameters={rho='x'}"], "`parameters` must be a table of numbers"),
        (["data.windows=[40, 10]"], "windows must be three numbers"),
        (["data.horizon=0"], "`horizon` must be at least 1; got 0"),
        (["train.select=wer"], "`select` must be one of nrmse"),
        (["evaluate.threshold=0.0"], "`threshold` must be above 0"),
        (["evaluate.draw=greedy"], "`draw` must be one of auto, point, expected"),
        (['method.horizon={schedule="linear", start=0.0, end=3.0}'], "horizon must lie in [1, inf]"),
    ],
)
def test_what_is_refused_before_anything_is_read(tmp_path, overrides, message):
    refused((message,), tiny, tmp_path, *overrides)


@pytest.mark.parametrize(
    ("method", "instead"),
    [
        ('{name="gaussian_noise", std=0.1}', "use token_noise"),
        ('{name="pushforward", horizon=2}', "scheduled_sampling"),
    ],
)
def test_methods_for_values_are_refused_on_symbols(tmp_path, method, instead):
    message = ("is for values; the data of this recipe are symbols", instead)
    refused(message, tiny, tmp_path, f"method={method}", text=TINY_IDS)


def test_a_model_must_fit_the_windows(tmp_path):
    no_effect = "warmup_loss has no effect with a model of kind recurrent_forecaster"
    refused(no_effect, build, tiny(tmp_path, "data.warmup_loss=true"))
    plain = tiny(tmp_path, "data.warmup_loss=true", "model.kind=plain_forecaster")
    assert build(plain)[1].data.warmup_loss
    short = tiny(tmp_path, 'model={kind = "transformer_forecaster", size = 8, max_positions = 10}')
    refused(r"model\.max_positions = 10 is too small: a window has .* so 11 positions", build, short)


@pytest.mark.parametrize(
    ("change", "more", "message"),
    [
        ((7, 1, "nan"), (), r"load\.csv:9"),
        ((7, 1, "inf"), (), "load"),
        ((7, 1, "many"), (), "'?many'? is not a number"),
        (None, ("data.horizon=200",), "horizon"),
        (None, ('data.targets=["lood"]',), "lood"),
        (None, ('model={kind = "plain_forecaster", size = 8}',), "observed"),
        (None, ('model={kind = "article", size = 8}', "data.observed=[]"), "covariates"),
    ],
)
def test_bad_data_are_refused_before_training_starts(tmp_path, change, more, message):
    path = table(tmp_path, change=change)
    refused(message, run_recipe, tiny(tmp_path, *series(path), *more), tmp_path / "run", progress=False)
    assert not (tmp_path / "run").exists()


def test_a_constant_channel_is_refused(tmp_path):
    path = tmp_path / "flat.csv"
    path.write_text("load\n" + "1.0\n" * 60)
    recipe = f'data={{kind = "series", path = "{path}", past = 6, horizon = 5}}'
    refused(r"constant|the same", build, tiny(tmp_path, recipe))


def test_split_may_be_rows_or_shares(tmp_path):
    data = series(table(tmp_path, 100))
    rows, shares = (
        build(tiny(tmp_path, *data, f"data.split={split}"))[1].data.fingerprint
        for split in ([60, 20, 20], [0.6, 0.2, 0.2])
    )
    assert rows == shares
    refused("split", tiny, tmp_path, *data, "data.split=[0.9, 0.2, 0.2]")


def test_a_run_answers_with_a_table_in_the_units_of_the_data(run, tmp_path, capsys):
    folder, _, summary = run
    assert {"last_value_mse", "mean_mse", "linear_mse"} <= set(summary["test"]["free_running"])
    lines = table(tmp_path, 40).read_text().splitlines()
    future = [",".join(cell if n in (0, 3) else "" for n, cell in enumerate(line.split(","))) for line in lines[36:]]
    (tmp_path / "now.csv").write_text("\n".join([*lines[:36], *future]) + "\n")
    printed = ends(capsys, 0, "generate", folder, "--input", tmp_path / "now.csv").out
    rows = list(csv.DictReader(io.StringIO(printed)))
    assert [row["lead"] for row in rows] == ["1", "2", "3", "4", "5"]
    assert all(0 < float(row["load"]) < 6 for row in rows)
    assert "covariates are missing" in ends(capsys, 2, "generate", folder, "--input", table(tmp_path, 40)).err
    assert "--input FILE" in ends(capsys, 2, "generate", folder).err


def test_a_run_is_scored_on_any_table(run, tmp_path, capsys):
    folder, path, _ = run
    scores = json.loads(ends(capsys, 0, "evaluate", folder, "--data", path).out)
    assert scores["windows"] == 120 - 11 + 1
    assert "last_value_nrmse" in scores["free_running"]
    for rows, change, message in ((40, (4, 1, "x"), "column 'load'"), (8, None, "needs past + horizon = 6 + 5")):
        assert message in ends(capsys, 2, "evaluate", folder, "--data", table(tmp_path, rows, change)).err


MATCHED = {"matched_to": "sampling"}


ARMS = "\n" + toml(
    compare={
        "seeds": [0, 1],
        "arms": [
            {"label": "teacher_forcing", "method": {"name": "teacher_forcing"}},
            {"label": "sampling", "method": {"name": "scheduled_sampling", "teacher_forcing_ratio": 0.2}},
            {"label": "noise", "method": {"name": "gaussian_noise", **dict.fromkeys(("std", "rate"), MATCHED)}},
        ],
    }
)


@pytest.mark.slow(reason="six runs of the command, each a process")
def test_a_comparison_of_forecasters(tmp_path):
    recipe = write(tmp_path, TINY + ARMS)
    results = compare(recipe, [], tmp_path / "out")
    lines = [line for line in results["comparisons"] if line["metric"] == "free_running.nrmse"]
    assert {line["arm"] for line in lines} == {"sampling", "noise"}
    assert all(line["low"] < line["difference"] < line["high"] for line in lines)
    assert "in free-running NRMSE" in results["verdict"]["sentence"]
    assert "its matched noise control noise" in results["verdict"]["sentence"]
    assert [name for name, _ in references(results)] == ["last value", "mean", "linear regression"]
    for seed in (0, 1):
        runs = [tmp_path / "out" / "runs" / f"{label}-{seed}" / "metrics.jsonl" for label in ("sampling", "noise")]
        own, noise = (measured(path, "std").values for path in runs)
        # about 45 entries of 3 channels an update: the standard deviation of a measured one is about 6 %
        assert noise == pytest.approx(own, rel=0.3)


def test_matched_keys_name_one_arm(tmp_path):
    text = TINY + ARMS.replace('matched_to = "sampling"', 'matched_to = "teacher_forcing"', 1)
    refused("must name one arm; got sampling, teacher_forcing", tiny, tmp_path, text=text)


def test_deviation_of_a_run_on_symbols_is_no_schedule(tmp_path):
    line = {"event": "update", "step": 0, "eligible": 3, "replaced": 2, "disagreeing": 1, "deviation": None}
    write_lines(tmp_path / "metrics.jsonl", [line])
    raises(ValueError, r"is not the metrics\.jsonl of a run", measured, tmp_path / "metrics.jsonl", "std")


def test_arms_whose_free_run_diverged_are_named_and_compared_with_nothing(tmp_path):
    runs = plan([arm("calm", "teacher_forcing"), arm("wild", "free_running")], [0, 1])
    for run in runs:
        gone = run.arm.label == "wild" and run.seed == 1
        items = [
            {"source": f"window {n}", "nrmse": None if gone else 0.1 * n, "squared": None if gone else 1.0 + n,
             "absolute": None if gone else 1.0, "length": 4, "one_step_nrmse": 0.01 * (n + run.seed)}
            for n in range(12)
        ]  # fmt: skip
        free = {"nrmse": None, "mse": None, "diverged": 75.0} if gone else {"nrmse": 0.55, "mse": 1.0, "diverged": 0.0}
        test = {"free_running": free, "teacher_forced": {"nrmse": 0.05}}
        write_finished(tmp_path / "runs" / run.name, run, test, items)
    results = collect({"name": "t", "data": {"kind": "system"}}, runs, tmp_path)
    write_results(results, tmp_path)  # JSON has no infinity
    found = {(entry["arm"], entry["metric"]) for entry in results["summary"]}
    assert {("calm", "free_running.nrmse"), ("wild", "free_running.diverged")} <= found
    assert not {("wild", "free_running.nrmse"), ("wild", "free_running.mse")} & found
    assert {line["metric"] for line in results["comparisons"]} == {"teacher_forced.nrmse"}
    assert results["verdict"]["sentence"].startswith(
        "wild has no free-running NRMSE, and was compared with nothing in it"
    )
    # the one score left is measured on gold history
    assert "so there is no verdict" in results["verdict"]["sentence"]
    assert "one-step" not in results["verdict"]["sentence"]


@pytest.mark.parametrize("kind", ["recurrent_forecaster", "plain_forecaster"])
def test_a_scaled_model_is_trained_kept_and_used_again(tmp_path, kind):
    """Over a regression the scores before training are the regression's; a run is loaded with what was fitted."""
    scaling = ["model.centre=mean", "model.deviation=true", f"model.kind={kind}"]
    linear = kind == "recurrent_forecaster"
    if linear:
        scaling.append("model.linear=true")
    recipe = tiny(tmp_path, *scaling, "train.updates=2")
    if linear:
        model, task, _, _ = build(recipe)
        free = task.evaluate(model, "dev").free_running
        assert free["mse"] == pytest.approx(free["linear_mse"], rel=1e-2)  # of float32
    assert "centred by the window's mean" in str(recipe.model)
    summary = run_recipe(recipe, tmp_path / "run", progress=False)
    run = load_run(tmp_path / "run")
    assert (run.model.centre, run.model.deviation, bool(run.model.linear)) == ("mean", True, linear)
    scores = evaluate_run(run)["free_running"]
    assert scores["mse"] == pytest.approx(summary["test"]["free_running"]["mse"], rel=1e-6)


def test_scalings_that_do_not_go_together_are_refused_by_key(tmp_path):
    for changes, words in (
        (("model.linear=true", "model.residual=true"), "residual adds the last value"),
        (("model.kind=plain_forecaster", "model.linear=true"), "layout 'past'"),
        (("model.centre=median",), "median"),
    ):
        refused(words, tiny, tmp_path, *changes)


def literal_words(hint) -> list:
    parts = get_args(hint)
    return list(parts) if get_origin(hint) is Literal else [word for part in parts for word in literal_words(part)]


def test_the_word_none_stays_a_word_wherever_a_choice_has_it(tmp_path):
    """Once it became None, which is another value, or none at all: in every section, and through a run's recipe."""
    found = {
        f"{name}.{each.name}": (hint, each.default)
        for name, (cls, hidden) in sections().items()
        for each in fields(cls)
        if each.name not in hidden and "none" in literal_words(hint := get_type_hints(cls)[each.name])
    }
    assert {"data.series.normalisation", "data.system.normalisation", "data.records.quoting"} <= set(found)
    for name, (hint, default) in found.items():
        assert fit("none", hint) == ("none", ""), name
        assert choices(hint).count("none") == 1, name
        # where a key may also be None, that must be the default: nothing is written for it
        assert type(None) not in get_args(hint) or default is None, name
    recipe = tiny(tmp_path, "data.normalisation=none")
    assert recipe.data.normalisation == "none"
    again = write(tmp_path, tomli_w.dumps(recipe_table(recipe)), "again.toml")
    assert load_recipe(again).data.normalisation == "none"
