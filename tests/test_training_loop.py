"""``fit`` from the outside: what it leaves, what it refuses, how it goes on."""

import copy
import hashlib
import json
import math
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import freerun as fr
from builders import raises, refused
from freerun.errors import CheckpointError, DivergedError, OccupiedError
from freerun.training import Evaluation, StoppedError, TerminatedError, loop, optim, read_model
from freerun.training.weights import load_weights
from training_world import (
    SMALL,
    OtherIds,
    Wrapped,
    changed,
    fingerprints,
    lines,
    make_model,
    make_task,
    signalled,
    train,
)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("finished") / "run"
    train(folder, recipe={"name": "a", "train": {"lr": 0.01}, "data": {"path": "here"}})
    return folder


def stopped_at(folder: Path, calls: int, **options: Any) -> None:
    with pytest.raises(StoppedError):
        train(folder, task=signalled(calls), **options)


def test_what_a_run_leaves(finished):
    assert {path.name for path in finished.iterdir()} == {
        "checkpoints", "metrics.jsonl", "model", "summary.json", "test-items.jsonl", "train-fed.json",
    }  # fmt: skip
    header, *rest = lines(finished)
    assert header["event"] == "header"
    assert header["signature"].startswith("scheduled_sampling(")
    assert [record["step"] for record in rest if record["event"] == "update"] == list(range(24))
    assert [record["step"] for record in rest if record["event"] == "evaluate"] == [0, 8, 16, 24]
    assert {"loss", "lr", "grad_norm", "teacher_forcing_ratio", "eligible", "replaced", "disagreeing", "passes"} <= set(
        rest[1]
    )
    summary = json.loads((finished / "summary.json").read_text())
    updates = lines(finished, "update")
    assert summary["decoder_passes"] == pytest.approx(sum(1 + record["work"] for record in updates))
    assert summary["updates"] == 24
    assert summary["cpu_seconds_total"] >= summary["cpu_seconds"] > 0
    assert set(summary["test"]) == {"teacher_forced", "free_running"}
    dev = {record["step"]: record["free_running"]["per"] for record in lines(finished, "evaluate")}
    assert summary["best"]["value"] == min(dev.values()) == dev[summary["best"]["step"]]
    assert len((finished / "test-items.jsonl").read_text().splitlines()) == 6
    assert sum(path.name.startswith("step-") for path in (finished / "checkpoints").iterdir()) == SMALL.keep


def test_the_saved_model_is_the_one_that_was_tested(finished):
    task = make_task()
    info, tensors = read_model(finished)
    model = fr.MODELS[info["kind"]](**info["settings"])
    load_weights(model, tensors, "here")
    summary = json.loads((finished / "summary.json").read_text())
    assert dict(task.evaluate(model, "test").free_running) == summary["test"]["free_running"]
    assert info["describe"] == json.loads(json.dumps(task.describe()))


def test_training_leaves_the_best_weights_in_the_model(tmp_path):
    task = make_task()
    model = make_model(task)
    summary = train(tmp_path / "run", task=task, model=model)
    assert not model.training
    assert dict(task.evaluate(model, "dev").free_running) == summary["best"]["free_running"]


def test_a_finished_run_is_refused_and_gives_its_summary_on_resume(finished):
    before = fingerprints(finished)
    raises(OccupiedError, "holds a finished run", train, finished)
    assert train(finished, resume=True) == json.loads((finished / "summary.json").read_text())
    assert fingerprints(finished) == before


@pytest.mark.parametrize(
    ("number", "kind", "code"), [(signal.SIGINT, StoppedError, 130), (signal.SIGTERM, TerminatedError, 143)]
)
def test_a_signal_saves_and_the_run_goes_on_to_the_same_bits(tmp_path, finished, number, kind, code):
    with pytest.raises(kind, match="after 13 updates") as error:  # two micro-batches an update
        train(tmp_path / "run", task=signalled(26, number))
    assert error.value.exit_code == code
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    started = r"a run that was started and not finished\n  help: --resume goes on with it"
    raises(OccupiedError, started, train, tmp_path / "run")
    train(tmp_path / "run", resume=True)
    assert fingerprints(tmp_path / "run") == fingerprints(finished)


def test_a_run_with_masks_of_its_sequences_goes_on_to_the_same_bits(tmp_path):
    model = make_model(make_task(), input_feeding=True, recurrent_dropout=0.3)
    train(tmp_path / "whole", model=copy.deepcopy(model))
    with pytest.raises(StoppedError, match="after 13 updates"):
        train(tmp_path / "run", task=signalled(26, signal.SIGINT), model=copy.deepcopy(model))
    train(tmp_path / "run", model=model, resume=True)
    assert fingerprints(tmp_path / "run") == fingerprints(tmp_path / "whole")


@pytest.mark.parametrize("evaluation", [1, 2, 4, 5])
def test_a_signal_in_an_evaluation_is_answered_at_once_and_the_run_goes_on_to_the_same_bits(
    tmp_path, finished, evaluation
):
    """In the first one, in one between two checkpoints, in the last one, and in the final test."""
    began = time.monotonic()
    with pytest.raises(TerminatedError, match=r"after (0|8|24) updates; a checkpoint is saved"):
        train(tmp_path / "run", task=signalled(evaluation, evaluation=True, wait=True))
    assert time.monotonic() - began < 20
    with pytest.raises(StoppedError):
        train(tmp_path / "run", task=signalled(1, signal.SIGINT, evaluation=True, wait=True), resume=True)
    train(tmp_path / "run", resume=True)
    assert fingerprints(tmp_path / "run") == fingerprints(finished)


def test_an_update_that_takes_too_long_is_not_waited_for(tmp_path, monkeypatch):
    monkeypatch.setattr("freerun.signals._GRACE", 0.2)
    slow = "after 12 updates, in what took too long to finish"
    raises(TerminatedError, slow, train, tmp_path / "run", task=signalled(26, wait=True))
    assert sorted(path.name for path in (tmp_path / "run" / "checkpoints").glob("step-*"))[-1] == "step-00000010"


def test_a_second_signal_ends_the_process_at_once():
    code = (
        "import os, signal, time\n"
        "from freerun.signals import StopFlag\n"
        "with StopFlag() as flag, flag.raising(False):\n"
        "    os.kill(os.getpid(), signal.SIGINT); os.kill(os.getpid(), signal.SIGTERM)\n"
        "    time.sleep(60)\n"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=20, check=False).returncode == 143


def test_damaged_checkpoints_are_skipped_by_name(tmp_path, finished):
    folder = tmp_path / "run"
    stopped_at(folder, 26, recipe={"name": "a", "data": {"path": "here"}})
    newest = folder / "checkpoints" / "step-00000013"
    content = bytearray((newest / "optimizer.safetensors").read_bytes())
    content[-1] ^= 1
    (newest / "optimizer.safetensors").write_bytes(content)
    with pytest.warns(UserWarning, match=r"resuming from step-00000010; skipped step-00000013: .*optimizer.*damaged"):
        train(folder, resume=True, recipe={"name": "b", "data": {"path": "there"}, "compare": {"workers": 2}})
    assert fingerprints(folder) == fingerprints(finished)


def test_going_back_keeps_what_was_gone_back_to(tmp_path):
    folder, settings = tmp_path / "run", changed(keep=1, save_every=3)
    stopped_at(folder, 26, settings=settings)
    checkpoints = folder / "checkpoints"
    shutil.copytree(checkpoints / "step-00000013", checkpoints / "step-00000016")
    (checkpoints / "step-00000016" / "state.json").unlink()
    with pytest.warns(UserWarning, match="skipped step-00000016"):
        stopped_at(folder, 1, settings=settings, resume=True)
    assert sorted(path.name for path in checkpoints.glob("step-*")) == ["step-00000014", "step-00000016"]
    with pytest.warns(UserWarning, match="resuming from step-00000014"):
        assert train(folder, settings, resume=True)["updates"] == 24


def test_without_a_valid_checkpoint_nothing_is_trained(tmp_path):
    folder = tmp_path / "run"
    stopped_at(folder, 26)
    for path in (folder / "checkpoints").glob("step-*"):
        (path / "ema.safetensors").unlink()
    with pytest.raises(CheckpointError, match="no checkpoint can be used") as error:
        train(folder, resume=True)
    assert str(error.value).count("ema.safetensors is missing") == 2


def test_another_run_is_not_gone_on_with(tmp_path):
    folder = tmp_path / "run"
    stopped_at(folder, 26, recipe={"model": {"size": 8}})
    other = {"recipe": {"model": {"size": 9}}, "method": fr.teacher_forcing(), "task": make_task(seed=1)}
    with pytest.raises(CheckpointError) as error:
        train(folder, changed(lr=0.5, keep=3), resume=True, **other)
    text = str(error.value)
    assert "train.lr: the checkpoint has 0.01, this run 0.5" in text
    assert "\n  model.size: the checkpoint has 8, this run 9" in text
    assert re.search(r"method: the checkpoint has scheduled_sampling\(.*, this run teacher_forcing\(\)", text)
    assert re.search(r"data: the checkpoint has \w{8}, this run \w{8}", text)
    assert "keep" not in text
    train(folder, changed(keep=3), resume=True, recipe={"model": {"size": 8}})


def test_divergence_leaves_the_last_checkpoint(tmp_path):
    class Exploding(torch.nn.Module):
        def __init__(self, model: torch.nn.Module) -> None:
            super().__init__()
            self.model = model

        def forward(self, batch: Any) -> torch.Tensor:
            outputs = self.model(batch)
            return outputs * float("inf") if explode else outputs

    explode = False

    def before(call: int, _batch: Any) -> None:
        nonlocal explode
        explode = call == 24

    task = Wrapped(before=before)
    model = Exploding(make_model(task))
    with pytest.raises(DivergedError, match=r"diverged at update 11, which was not made: loss nan"):
        train(tmp_path / "run", task=task, model=model, method=fr.teacher_forcing())
    steps = sorted(path.name for path in (tmp_path / "run" / "checkpoints").glob("step-*"))
    assert steps == ["step-00000005", "step-00000010"]
    explode = False
    model = Exploding(make_model(task))
    assert train(tmp_path / "run", task=make_task(), model=model, method=fr.teacher_forcing(), resume=True)["finished"]


def spoil(model: torch.nn.Module, value: float) -> None:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(value)


def spoiled(evaluation: int, how: str) -> Wrapped:
    """A task whose n-th evaluation finds other weights, or comes to another loss."""

    def act(call: int, model: Any, split: str) -> Evaluation | None:
        if call != evaluation:
            return None
        if how == "loss":
            return Evaluation({"loss": math.nan}, make_task().evaluate(model, split).free_running)
        spoil(model, math.nan if how == "raises" else float(how))
        if how == "raises":
            raise ValueError("cannot convert float NaN to integer")
        return None

    return Wrapped(evaluate=act)


@pytest.mark.parametrize("ema", [0.0, 0.9])
@pytest.mark.parametrize(
    ("how", "evaluation", "updates", "good"),
    [
        ("nan", 2, 8, 5),
        ("inf", 2, 8, 5),
        ("3e38", 2, 8, 5),
        ("loss", 3, 16, 15),
        ("raises", 4, 24, 20),
        ("nan", 5, 24, 24),
    ],
)
def test_divergence_that_an_evaluation_sees_first_is_told_from_a_mistake(tmp_path, how, evaluation, updates, good, ema):
    """NaN and infinite weights, outputs beyond float32, a loss that is NaN; on dev and in the final test."""
    folder = tmp_path / "run"
    with pytest.raises(DivergedError) as caught:
        train(folder, changed(ema=ema), task=spoiled(evaluation, how))
    assert caught.value.exit_code == 6
    where = "test" if evaluation == 5 else "dev"
    rate = next(record["lr"] for record in lines(folder, "update") if record["step"] == updates - 1)
    for part in (
        f"the evaluation on {where} after {updates} updates",
        f"updates made: {updates}; learning rate of the last {rate:g}",
        f"{folder}/checkpoints/step-{good:08d}", "help: begin anew with a lower train.lr", f"--init {folder}",
    ):  # fmt: skip
        assert part in str(caught.value)
    assert lines(folder)[-1]["event"] == "diverged"
    for path in folder.rglob("*.safetensors"):
        assert all(bool(tensor.isfinite().all()) for tensor in load_file(path).values()), path
    assert train(folder, changed(ema=ema), resume=True)["finished"]


def test_weights_that_begin_with_nan_are_diverged_before_the_first_update(tmp_path):
    task = make_task()
    model = make_model(task)
    spoil(model, math.nan)
    with pytest.raises(DivergedError, match=r"after 0 updates(.|\n)*the last good checkpoint: none"):
        train(tmp_path / "run", task=task, model=model)
    assert not lines(tmp_path / "run", "update")


def test_optimizer_state_that_is_not_finite_is_never_saved(tmp_path, monkeypatch):
    made: list[torch.optim.Optimizer] = []
    make = optim.make_optimizer
    monkeypatch.setattr(loop, "make_optimizer", lambda *arguments: made.append(make(*arguments)) or made[-1])

    def before(call: int, _batch: Any) -> None:
        for state in made[0].state.values() if call == 26 else ():
            state["exp_avg_sq"].fill_(math.inf)

    with pytest.raises(DivergedError, match="weights are not finite: optimizer state of"):
        train(tmp_path / "run", task=Wrapped(before=before))


def test_a_mask_of_minus_infinity_among_the_buffers_is_no_divergence(tmp_path):
    task = make_task()
    model = make_model(task)
    model.register_buffer("mask", torch.full((3, 3), -math.inf).triu(1))
    assert train(tmp_path / "run", changed(updates=2, warmup=0), task=task, model=model)["finished"]


def scored(scores: list[float], name: str = "per") -> Wrapped:
    """A task whose scores are known beforehand."""
    left = iter(scores)

    def act(_call: int, _model: Any, split: str) -> Evaluation:
        value = 0.0 if split == "test" else next(left)
        return Evaluation({"loss": -value if math.isfinite(value) else 0.0}, {name: value}, [])

    return Wrapped(evaluate=act)


def test_patience_ends_a_run_and_the_best_weights_win(tmp_path):
    settings = changed(evaluate_every=2, patience=2)
    nan = float("nan")
    summary = train(tmp_path / "run", settings, task=scored([9.0, 5.0, nan, 7.0]))
    assert (summary["updates"], summary["stopped_early"]) == (6, True)
    assert (summary["best"]["step"], summary["best"]["value"]) == (2, 5.0)
    accuracy = replace(settings, select="sequence_accuracy")
    again = train(tmp_path / "again", accuracy, task=scored([9.0, 5.0, 3.0], "sequence_accuracy"))
    assert (again["updates"], again["best"]["step"]) == (4, 0)
    loss = replace(settings, select="teacher_forced_loss")
    other = train(tmp_path / "other", loss, task=scored([1.0, 3.0, 2.0, 2.0]))
    assert (other["updates"], other["best"]["value"]) == (6, -3.0)


@pytest.mark.parametrize(("name", "worst", "better"), [("bleu", 0.0, 3.0), ("wer", 100.0, 90.0)])
def test_untrained_weights_are_not_kept_because_nothing_is_right_yet(tmp_path, name, worst, better):
    settings = changed(evaluate_every=2, select=name, updates=6)
    none = train(tmp_path / "none", settings, task=scored([worst] * 4, name))
    assert (none["best"]["step"], none["best"]["value"]) == (6, worst)
    some = train(tmp_path / "some", settings, task=scored([worst, better, better, worst], name))
    assert (some["best"]["step"], some["best"]["value"]) == (2, better)
    # patience counts looks without a better score, kept or not
    stopped = train(tmp_path / "stopped", replace(settings, patience=2), task=scored([worst] * 4, name))
    assert (stopped["updates"], stopped["stopped_early"], stopped["best"]["step"]) == (4, True, 4)


def test_a_score_that_is_not_there_is_refused_before_the_first_update(tmp_path):
    none = "select = 'bleu' names no score of this task; there are: free_running_per"
    refused(none, train, tmp_path / "run", changed(select="bleu"))
    assert not lines(tmp_path / "run", "update")


def test_warm_start_takes_the_best_weights(tmp_path, finished):
    task = make_task()
    model = make_model(task, seed=5)
    summary = train(tmp_path / "run", changed(updates=1, warmup=0, lr=1e-9), task=task, model=model, init=finished)
    first = json.loads((finished / "summary.json").read_text())
    assert lines(tmp_path / "run", "evaluate")[0]["free_running"] == first["best"]["free_running"]
    assert summary["test"]["free_running"] == first["test"]["free_running"]
    begun = hashlib.sha256((finished / "model" / "model.safetensors").read_bytes()).hexdigest()[:16]
    assert (summary["init"], first.get("init")) == (begun, None)
    longer = changed(updates=2, warmup=0, lr=1e-9)
    again = train(tmp_path / "run", longer, task=task, model=make_model(task), resume=True, allow=["train.updates"])
    assert again["init"] == begun  # --resume does not need --init again


def test_warm_starts_that_do_not_fit_are_explained(tmp_path, finished):
    no_run, task = "not the folder of a run that has been evaluated", make_task()
    raises(CheckpointError, no_run, train, tmp_path / "a", init=tmp_path / "nothing")
    larger = {"task": task, "model": make_model(task, size=12)}
    raises(CheckpointError, "has shape .*; this model's is", train, tmp_path / "b", init=finished, **larger)
    copy = shutil.copytree(finished, tmp_path / "copy")
    path = copy / "model" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    raises(CheckpointError, r"model.safetensors has [\d,]+ bytes", train, tmp_path / "c", init=copy)
    other_ids = "ids would change their meaning"
    raises(CheckpointError, other_ids, train, tmp_path / "d", task=OtherIds(task), init=finished)


def test_tensorboard_has_the_same_numbers(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    train(tmp_path / "run", changed(tensorboard=True, updates=5))
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard")).Reload()
    losses = [event.value for event in events.Scalars("train/loss")]
    assert losses == pytest.approx([record["loss"] for record in lines(tmp_path / "run", "update")])
    assert events.Scalars("dev/free_running/per")


def test_tensorboard_that_cannot_be_written_stops_nothing(tmp_path, monkeypatch):
    from torch.utils.tensorboard.writer import SummaryWriter

    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(SummaryWriter, "add_scalar", full)
    monkeypatch.setattr(SummaryWriter, "close", full)
    with pytest.warns(UserWarning, match="TensorBoard files are no longer written: .*No space left"):
        train(tmp_path / "run", changed(tensorboard=True, updates=5))
    assert len(lines(tmp_path / "run", "update")) == 5


def test_progress_off_a_terminal_is_plain_lines(tmp_path, capsys):
    train(tmp_path / "run", changed(updates=5), progress=True)
    printed = capsys.readouterr().err
    assert "dev after 0 updates: per " in printed
    assert re.search(
        r"^update 5/5  0:\d\d elapsed  0:\d\d left  loss [\d.]+  teacher_forcing_ratio 0.\d+\n  dev ",
        printed,
        re.MULTILINE,
    )
    assert "\x1b" not in printed


def test_a_schedule_that_leaves_its_range_is_refused_before_anything_is_written(tmp_path):
    beyond = fr.scheduled_sampling(fr.schedules.linear(start=1.0, end=-1.0, steps=24))
    refused("teacher_forcing_ratio must lie in", train, tmp_path / "run", method=beyond)
    assert not list((tmp_path / "run").iterdir())
