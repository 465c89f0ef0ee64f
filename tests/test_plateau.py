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
from lightning.pytorch import Callback, seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint

import freerun as fr
from builders import refused
from freerun import schedules as s
from freerun.integrations.lightning import validations_before_the_end
from freerun.lightning import FreerunModule, training_step
from hf_trainer_world import WORLDS, apart, completions, logged, make
from hf_trainer_world import weights as hf_weights
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
    ],
)
def test_what_cannot_be_is_refused(build, message):
    refused(message, build)


RULE: dict[str, Any] = {"change": 0.2, "start": 0.9, "min_delta": 0.05}


def sampling(signal: str = "score") -> Any:
    return fr.scheduled_sampling(s.plateau(**RULE, signal=signal))


def hf_run(folder, signal: str, select: str, resume: Any = None, **changes: Any) -> Any:
    """GPT-2 for eight updates, scored before the first and after every second."""
    make_model, data, cls, _ = WORLDS["gpt2"]
    extra: dict[str, Any] = {"callbacks": [fr.hf.Callback()], "eval_dataset": completions(8, 2), **changes}
    built = make(
        cls, make_model(), data, sampling(signal), folder, eval_strategy="steps", eval_steps=2, eval_on_start=True,
        metric_for_best_model=select, save_strategy="steps", save_steps=4, trainer=extra,
    )  # fmt: skip
    built.train(resume_from_checkpoint=resume)
    return built


@pytest.mark.parametrize(("signal", "select", "sets"), [
    ("score", "loss", False), ("score", "free_running_token_accuracy", False), ("gap", "teacher_forced_loss", False),
    ("score", "eval_one_free_running_loss", True),
])  # fmt: skip
def test_a_hugging_face_trainer_passes_on_what_selects_its_model(signal, select, sets, tmp_path):
    changes = {"eval_dataset": {"other": completions(4, 5), "one": completions(8, 2)}} if sets else {}
    whole = hf_run(tmp_path, signal, select, **changes)
    if signal == "gap":
        free, forced = (logged(whole, f"eval_{side}_loss") for side in ("free_running", "teacher_forced"))
        scores = [a - b for a, b in zip(free, forced, strict=True)]
    else:
        sign = -1 if "accuracy" in select else 1
        scores = [sign * score for score in logged(whole, f"eval_{select.removeprefix('eval_')}")]
    assert len(scores) == 5
    expected = [naive(scores[: step // 2 + 1], **RULE) for step in range(8)]
    assert logged(whole, "teacher_forcing_ratio") == pytest.approx(expected)
    assert len(set(expected)) > 1
    whole.evaluate()  # of the model as it is: no score of the run
    (schedule,) = s.followed(whole.method).values()
    assert schedule.scores[:, 0].tolist() == [0, 2, 4, 6, 8]
    rest = hf_run(tmp_path, signal, select, resume=str(tmp_path / "checkpoint-4"), **changes)
    assert apart(hf_weights(whole), hf_weights(rest)) == 0.0
    assert s.followed(rest.method)["teacher_forcing_ratio"].scores.tolist() == schedule.scores.tolist()


def lightning_run(
    folder, signal: str, monitor: str, mode: str, start: str | None = None
) -> tuple[Any, Any, list[float]]:
    """A module trained for four epochs of three updates, its scores after each."""
    scores, ratios = [], []

    class Notes(Callback):
        def on_validation_end(self, trainer, pl_module):
            found = {name: float(value) for name, value in trainer.callback_metrics.items()}
            gap = found["free_running_loss"] - found["teacher_forced_loss"]
            if not trainer.sanity_checking:
                scores.append(gap if signal == "gap" else found[monitor])

        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            ratios.append(float(trainer.callback_metrics["teacher_forcing_ratio"]))

    keeping = ModelCheckpoint(dirpath=folder, filename="{step}", save_top_k=-1, monitor=monitor, mode=mode)
    seed_everything(3, verbose=False)
    module = FreerunModule(network(), sampling(signal), sgd)
    run = trainer(max_epochs=4, enable_checkpointing=True, callbacks=[keeping, Notes()], num_sanity_val_steps=1)
    run.fit(module, loader(pairs(12), 4), loader(pairs(8, seed=2), 4), ckpt_path=start)
    return module, scores, ratios


@pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty")
@pytest.mark.parametrize(("signal", "monitor", "mode"), [
    ("score", "free_running_loss", "min"), ("score", "free_running_token_accuracy", "max"),
    ("gap", "teacher_forced_loss", "max"),
])  # fmt: skip
def test_lightning_passes_on_what_selects_its_checkpoints(signal, monitor, mode, tmp_path):
    whole, scores, ratios = lightning_run(tmp_path, signal, monitor, mode)
    signed = [-score if mode == "max" else score for score in scores]
    expected = [naive(signed[: step // 3], **RULE) for step in range(12)]
    assert ratios == pytest.approx(expected)
    assert len(set(expected)) > 1
    (schedule,) = s.followed(whole.method).values()
    assert schedule.scores[:, 0].tolist() == [3, 6, 9, 12]
    assert schedule.scores[:, 1].tolist() == pytest.approx(signed)
    rest, later, _ = lightning_run(tmp_path, signal, monitor, mode, str(tmp_path / "step=6.ckpt"))
    assert scores[2:] == later
    assert s.followed(rest.method)["teacher_forcing_ratio"].scores.tolist() == schedule.scores.tolist()


@pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no `val_dataloader`")
def test_trainers_without_a_score_refuse_it(tmp_path):
    make_model, data, cls, _ = WORLDS["gpt2"]

    def hf_trainer(signal: str = "score", held: Any = None, **changes: Any) -> Any:
        return make(cls, make_model(), data, sampling(signal), tmp_path, trainer={"eval_dataset": held}, **changes)

    held = completions(8, 2)
    refused("this trainer makes none in training: give it eval_dataset", hf_trainer(held=held).train)
    scored = {"eval_strategy": "steps", "eval_steps": 2}
    refused("signal=\"gap\" needs a score that is measured .* got 'loss'", hf_trainer("gap", held, **scored).train)
    two = hf_trainer(held={"a": held, "b": held}, metric_for_best_model="loss", **scored)
    refused("names none of the trainer's evaluation sets a, b: set it to eval_SET_SCORE", two.train)
    other = hf_trainer(held=held, metric_for_best_model="wer", greater_is_better=False, **scored)
    refused("follows wer, and the evaluation has no wer; it has loss", other.train)

    few = hf_trainer(held=held, eval_strategy="steps", eval_steps=4)
    refused(r"the run has 1 before its last update .eval_steps=4 of 8 steps", few.train)
    few = hf_trainer(held=held, eval_strategy="epoch", max_steps=-1, num_train_epochs=2)
    refused(r"the run has 1 before its last update .eval_strategy=epoch of 2 epochs", few.train)

    class Anew(FreerunModule):
        def training_step(self, batch, batch_idx):
            return training_step(self, self.model, batch, sampling())

    keeping: dict[str, Any] = {
        "enable_checkpointing": True, "callbacks": [ModelCheckpoint(tmp_path, monitor="free_running_loss")],
        "max_epochs": 4,
    }  # fmt: skip
    anew, data = Anew(network(), sampling(), sgd), loader(pairs(), 4)
    refused("another object than that of the last step", trainer(**keeping).fit, anew, data, loader(pairs(8), 4))
    keeping["max_epochs"] = 2
    few = FreerunModule(network(), sampling(), sgd)
    refused(r"the run has 1 before .* .of val_check_interval", trainer(**keeping).fit, few, data, loader(pairs(8), 4))
    module = FreerunModule(network(), sampling("gap"), sgd)
    refused("a ModelCheckpoint.monitor=", trainer().fit, module, data, loader(pairs(8), 4))
    keeping |= {"callbacks": [ModelCheckpoint(tmp_path, monitor="train_loss")], "max_epochs": 4}
    refused("give it validation data", trainer(**keeping).fit, module, data)
    refused("got 'train_loss'", trainer(**keeping).fit, module, data, loader(pairs(8), 4))


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


@pytest.mark.parametrize("changes", [
    {"max_epochs": 3}, {"max_epochs": 3, "val_check_interval": 0.5}, {"max_epochs": 4, "check_val_every_n_epoch": 2},
    {"max_epochs": 5, "check_val_every_n_epoch": 2}, {"max_steps": 7, "max_epochs": -1, "val_check_interval": 2},
    {"max_epochs": 3, "accumulate_grad_batches": 3, "val_check_interval": 3},
    {"max_epochs": 3, "check_val_every_n_epoch": None, "val_check_interval": 4},
], ids=str)  # fmt: skip
def test_scores_of_lightning_are_counted_before_its_last_step(changes):
    steps, expected = [], []

    class Notes(Callback):
        def on_validation_end(self, trainer, pl_module):
            steps.append(trainer.global_step)

        def on_train_start(self, trainer, pl_module):
            expected.append(validations_before_the_end(trainer))

    module = FreerunModule(network(), fr.teacher_forcing(), sgd)
    run = trainer(callbacks=[Notes()], **changes)
    run.fit(module, loader(pairs(12), 2), loader(pairs(4), 4))
    assert [sum(step < run.global_step for step in steps)] == expected
