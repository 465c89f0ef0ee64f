"""A ratio that follows a dev score: by the naive rule, in recipes and loops, resumed to the bit, or refused by name."""

import copy
import json
import math
import pickle
import random
from dataclasses import replace
from typing import Any

import pytest
import torch

import freerun as fr
from builders import refused
from freerun import schedules as s
from freerun.lightning import FreerunModule
from freerun.methods.controls import refuse_scores
from hf_trainer_world import WORLDS, make
from lightning_world import loader, network, pairs, sgd, trainer
from test_run_folder import killed_at
from tiny_recipes import TINY, ends
from training_world import SMALL, fingerprints, train

RULES: list[dict[str, Any]] = [
    {"change": 0.25},
    {"change": 0.3, "patience": 2},
    {"change": 0.1, "start": 0.0, "end": 0.35},
    {"change": 0.2, "start": 0.9, "end": 0.2, "patience": 3, "min_delta": 0.1},
    {"change": 5.0, "floor": 0.4},
]


def naive(scores: list[float], change: float, start=1.0, end=0.0, patience=1, min_delta=0.0, floor=None) -> float:
    """After these scores, the lower the better: how far the value has come, score by score."""
    finite: list[float] = []
    value, waited = start, 0
    for score in scores:
        if math.isfinite(score) and (not finite or score < finite[-1] - min_delta * abs(finite[-1])):
            finite.append(score)
            waited = 0
            continue
        waited += 1
        if waited == patience:
            waited = 0
            value = max(end, value - change) if end < start else min(end, value + change)
    return value if floor is None else max(floor, value)


@pytest.mark.parametrize("rule", RULES, ids=str)
def test_the_value_is_that_of_the_naive_rule(rule):
    for seed in range(20):
        draw = random.Random(seed)
        schedule = s.plateau(**rule)
        scores = [draw.choice([draw.uniform(-2, 2), 1.0, math.nan, math.inf, -0.5]) for _ in range(12)]
        higher = bool(seed % 2)
        for number, score in enumerate(scores):
            schedule.observe(-score if higher else score, 10 * number, higher=higher)
        for step in range(130):  # every earlier value stays what it was
            assert schedule(step) == pytest.approx(naive(scores[: step // 10 + 1], **rule), abs=1e-12)
        again = s.plateau(**rule)
        again.load_scores(schedule.scores)
        for other in (again, pickle.loads(pickle.dumps(schedule)), copy.deepcopy(schedule)):
            assert [other(step) for step in range(130)] == [schedule(step) for step in range(130)]
        assert again == schedule  # the signature is the rule
        again.load_scores(None)
        assert again(1000) == max(rule.get("start", 1.0), rule.get("floor", 0.0))


@pytest.mark.parametrize("higher", [False, True])
@pytest.mark.parametrize("min_delta", [0.0, 0.1])
@pytest.mark.parametrize("patience", [1, 2, 3])
def test_it_changes_when_pytorchs_schedule_does_whose_patience_is_one_less(patience, min_delta, higher):
    total = 0
    for seed in range(20):
        draw, ours = random.Random(seed), s.plateau(change=1.0, start=100.0, patience=patience, min_delta=min_delta)
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
        theirs = torch.optim.lr_scheduler.ReduceLROnPlateau(
            optimizer, "max" if higher else "min", factor=0.5, patience=patience - 1, threshold=min_delta, eps=0.0
        )
        for step in range(30):
            score = draw.choice([draw.uniform(1, 2), 1.5, math.nan])
            ours.observe(score, step, higher=higher)
            theirs.step(score)
            assert 100 - ours(step) == -math.log2(optimizer.param_groups[0]["lr"])
        total += 100 - ours(30)
    assert total > 50


def test_what_is_printed_and_where_it_may_go():
    assert repr(s.plateau(change=0.25, patience=2)) == (
        "plateau(change=0.25, start=1.0, end=0.0, patience=2, min_delta=0.0, signal='score')"
    )
    assert s.extremes(s.plateau(change=0.3, end=0.25), 9)[::2] == (0.25, 1.0)
    assert s.moves(s.plateau(change=0.3), 9)


def test_off_is_free_until_the_first_plateau():
    model, batch = fr.models.TransformerLM(5, size=8, layers=1, heads=1).double(), fr.Batch(torch.tensor([[2, 1, 0]]))
    ratio = s.plateau(change=1.0)
    method = fr.scheduled_sampling(ratio)
    plain = fr.teacher_forcing()(model, batch, step=0)
    for step in range(2):
        ratio.observe(3.0 - step, step)
        outcome = method.run(model, batch, step, 7)
        assert torch.equal(outcome.loss, plain)
        assert outcome.report["passes"] == 0
    ratio.observe(2.5, 2)
    assert method.run(model, batch, 2, 7).report["teacher_forcing_ratio"] == 0.0
    assert torch.equal(method(model, batch, 1, 7), plain)  # of an earlier step still


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: s.plateau(change=0.0), "change must be above 0"),
        (lambda: s.plateau(change=0.1, patience=0), "patience must be"),
        (lambda: s.plateau(change=0.1, unit="epoch"), "plateau follows scores of updates; got unit='epoch'"),
        (lambda: s.plateau(change=0.1, signal="loss"), "signal must be"),
        (lambda: s.join(schedules=(s.constant(1.0), s.plateau(change=0.1)), boundaries=(9,)), "stands alone"),
        (lambda: s.uniform(1, s.plateau(change=0.1)), "high follows a dev score: plateau stands alone"),
        (lambda: s.plateau(change=0.1).observe("good", 3), "a score must be a number; got 'good'"),
        (lambda: s.plateau(change=0.1).observe(0.3, -1), "whole number from 0 on"),
        (lambda: fr.scheduled_sampling(s.plateau(change=0.1, start=1.5)), r"must lie in \[0, 1\]"),
        (lambda: refuse_scores(fr.scheduled_sampling(s.plateau(change=0.1))), "this trainer passes none on"),
    ],
)
def test_what_cannot_be_is_refused(build, message):
    refused(message, build)


@pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no `val_dataloader`")
def test_trainers_that_pass_no_score_on_refuse_it(tmp_path):
    method = fr.scheduled_sampling(s.plateau(change=0.1))
    make_model, data, cls, _ = WORLDS["gpt2"]
    refused("teacher_forcing_ratio=plateau", lambda: make(cls, make_model(), data, method, tmp_path).train())
    module = FreerunModule(network(), method, sgd)
    refused("teacher_forcing_ratio=plateau", trainer().fit, module, loader(pairs(), 4))


def test_scores_come_in_order():
    ratio = s.plateau(change=0.5)
    ratio.observe(1.0, 10)
    ratio.observe(2.0, 10)  # the same evaluation again
    refused("one of 5 after one of 10", ratio.observe, 1.0, 5)
    assert ratio.scores.tolist() == [[10.0, 2.0]]


def observed(folder) -> list[float]:
    events = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [event["teacher_forcing_ratio"] for event in events if event["event"] == "update"]


@pytest.mark.parametrize("make", [
    fr.scheduled_sampling, lambda ratio: fr.professor_forcing(size=4, horizon=ratio),
], ids=["ratio", "horizon of a method with a state"])  # fmt: skip
def test_a_resumed_run_is_unbroken_and_a_new_one_begins_anew(make, tmp_path):
    def method() -> Any:
        start = 1.0 if make(1.0).name == "scheduled_sampling" else 3.0
        return make(s.plateau(change=0.25, start=start, end=start - 1, min_delta=0.5))

    one, settings = method(), replace(SMALL, evaluate_every=4)
    for folder in ("one", "two"):  # one object, two runs
        train(tmp_path / folder, settings, method=one)
    killed_at(12, lambda: train(tmp_path / "three", settings, method=method()))
    train(tmp_path / "three", settings, method=method(), resume=True)
    found = [fingerprints(tmp_path / folder) for folder in ("one", "two", "three")]
    assert found[0] == found[1] == found[2]
    (schedule,) = s.followed(one).values()
    assert len(schedule.scores) == 7
    assert schedule(0) > schedule(9) > schedule(23)  # before the kill, and after it


def test_by_recipe_the_ratio_is_that_of_the_scores_that_were_written_down(tmp_path, capsys):
    begin, end = TINY.index("teacher_forcing_ratio"), TINY.index("\n[train]")
    for signal in ("score", "gap"):
        rule = {"change": 0.25, "patience": 1, "min_delta": 0.5}
        written = ", ".join(f"{name} = {value}" for name, value in rule.items())
        ratio = f'teacher_forcing_ratio = {{ schedule = "plateau", {written}, signal = "{signal}" }}\n'
        text = (TINY[:begin] + ratio + TINY[end:]).replace("evaluate_every = 6", "evaluate_every = 2")
        (tmp_path / "tiny.toml").write_text(text)
        printed = ends(capsys, 0, "train", tmp_path / "tiny.toml", "--out", tmp_path / signal).err
        assert "P(gold) follows the dev score: plateau(" in " ".join(printed.split())
        events = [json.loads(line) for line in (tmp_path / signal / "metrics.jsonl").read_text().splitlines()]
        dev = [event for event in events if event["event"] == "evaluate"]
        free, forced = ([event[side]["per"] for event in dev] for side in ("free_running", "teacher_forced"))
        scores = free if signal == "score" else [a - b for a, b in zip(free, forced, strict=True)]
        expected = [naive(scores[: step // 2 + 1], **rule) for step in range(12)]
        assert observed(tmp_path / signal) == pytest.approx(expected)
        assert len(set(expected)) > 1
    (tmp_path / "tiny.toml").write_text(text.replace("evaluate_every = 2", "evaluate_every = 12"))
    problem = ends(capsys, 2, "train", tmp_path / "tiny.toml", "--out", tmp_path / "no").err
    assert "the run has 1 before its last update (evaluate_every = 12 of 12 updates)" in " ".join(problem.split())
    assert not (tmp_path / "no").exists()


def test_scores_of_another_kind_are_refused_on_the_way(tmp_path):
    def method() -> Any:
        return fr.scheduled_sampling(s.plateau(change=0.25))

    killed_at(12, lambda: train(tmp_path / "run", method=method()))
    refused(
        "those before the change of train.select are of another kind", train, tmp_path / "run",
        replace(SMALL, select="teacher_forced_loss"), method=method(), resume=True, allow=["train.select"],
    )  # fmt: skip
