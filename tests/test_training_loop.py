"""``fit`` from the outside: what it leaves, what it refuses, how it goes on."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import freerun as fr
from freerun.errors import CheckpointError, DivergedError, OccupiedError, UserError
from freerun.training import Evaluation, StoppedError, TerminatedError, read_model
from freerun.training.weights import load_weights
from training_world import SMALL, Wrapped, changed, fingerprints, lines, make_model, make_task, train


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("finished") / "run"
    train(folder, recipe={"name": "a", "train": {"lr": 0.01}, "data": {"path": "here"}})
    return folder


def stopped_at(folder: Path, calls: int, number: int = signal.SIGTERM, **options: Any) -> None:
    """Train until a signal comes while a batch is made."""

    def before(call: int, _batch: Any) -> None:
        if call == calls:
            os.kill(os.getpid(), number)

    with pytest.raises(StoppedError):
        train(folder, task=Wrapped(make_task(), before), **options)


def test_what_a_run_leaves(finished: Path) -> None:
    assert {path.name for path in finished.iterdir()} == {
        "checkpoints", "metrics.jsonl", "model", "summary.json", "test-items.jsonl",
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


def test_the_saved_model_is_the_one_that_was_tested(finished: Path) -> None:
    task = make_task()
    info, tensors = read_model(finished)
    model = fr.MODELS[info["kind"]](**info["settings"])
    load_weights(model, tensors, "here")
    summary = json.loads((finished / "summary.json").read_text())
    assert dict(task.evaluate(model, "test").free_running) == summary["test"]["free_running"]
    assert info["describe"] == json.loads(json.dumps(task.describe()))


def test_training_leaves_the_best_weights_in_the_model(tmp_path: Path) -> None:
    task = make_task()
    model = make_model(task)
    summary = train(tmp_path / "run", task=task, model=model)
    assert not model.training
    assert dict(task.evaluate(model, "dev").free_running) == summary["best"]["free_running"]


def test_a_finished_run_is_refused_and_gives_its_summary_on_resume(finished: Path) -> None:
    before = fingerprints(finished)
    with pytest.raises(OccupiedError, match="holds a finished run"):
        train(finished)
    assert train(finished, resume=True) == json.loads((finished / "summary.json").read_text())
    assert fingerprints(finished) == before


@pytest.mark.parametrize(
    ("number", "kind", "code"), [(signal.SIGINT, StoppedError, 130), (signal.SIGTERM, TerminatedError, 143)]
)
def test_a_signal_saves_and_the_run_goes_on_to_the_same_bits(
    tmp_path: Path, finished: Path, number: int, kind: type[StoppedError], code: int
) -> None:
    def before(call: int, _batch: Any) -> None:
        if call == 26:  # two micro-batches an update: the thirteenth
            os.kill(os.getpid(), number)

    with pytest.raises(kind, match="after 13 updates") as error:
        train(tmp_path / "run", task=Wrapped(make_task(), before))
    assert error.value.exit_code == code
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    with pytest.raises(OccupiedError, match="a run that was started: go on with --resume"):
        train(tmp_path / "run")
    train(tmp_path / "run", resume=True)
    assert fingerprints(tmp_path / "run") == fingerprints(finished)


def test_damaged_checkpoints_are_skipped_by_name(tmp_path: Path, finished: Path) -> None:
    folder = tmp_path / "run"
    stopped_at(folder, 26, recipe={"name": "a", "data": {"path": "here"}})
    newest = folder / "checkpoints" / "step-00000013"
    content = bytearray((newest / "optimizer.safetensors").read_bytes())
    content[-1] ^= 1
    (newest / "optimizer.safetensors").write_bytes(content)
    with pytest.warns(UserWarning, match=r"resuming from step-00000010; skipped step-00000013: .*optimizer.*damaged"):
        train(folder, resume=True, recipe={"name": "b", "data": {"path": "there"}, "compare": {"workers": 2}})
    assert fingerprints(folder) == fingerprints(finished)


def test_going_back_keeps_what_was_gone_back_to(tmp_path: Path) -> None:
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


def test_without_a_valid_checkpoint_nothing_is_trained(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    stopped_at(folder, 26)
    for path in (folder / "checkpoints").glob("step-*"):
        (path / "ema.safetensors").unlink()
    with pytest.raises(CheckpointError) as error:
        train(folder, resume=True)
    assert "no checkpoint can be used" in str(error.value)
    assert str(error.value).count("ema.safetensors is missing") == 2


def test_another_run_is_not_gone_on_with(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    stopped_at(folder, 26, recipe={"model": {"size": 8}})
    with pytest.raises(CheckpointError) as error:
        train(
            folder,
            changed(lr=0.5, keep=3),
            resume=True,
            recipe={"model": {"size": 9}},
            method=fr.teacher_forcing(),
            task=make_task(seed=1),
        )
    text = str(error.value)
    assert "train.lr: the checkpoint has 0.01, this run 0.5" in text
    assert "recipe.model.size: the checkpoint has 8, this run 9" in text
    assert re.search(r"method: the checkpoint has scheduled_sampling\(.*, this run teacher_forcing\(\)", text)
    assert re.search(r"data: the checkpoint has \w{8}, this run \w{8}", text)
    assert "keep" not in text
    train(folder, changed(keep=3), resume=True, recipe={"model": {"size": 8}})


def test_divergence_leaves_the_last_checkpoint(tmp_path: Path) -> None:
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

    task = Wrapped(make_task(), before)
    model = Exploding(make_model(task))
    with pytest.raises(DivergedError, match=r"diverged at update 11, which was not made: loss nan"):
        train(tmp_path / "run", task=task, model=model, method=fr.teacher_forcing())
    steps = sorted(path.name for path in (tmp_path / "run" / "checkpoints").glob("step-*"))
    assert steps == ["step-00000005", "step-00000010"]
    explode = False
    model = Exploding(make_model(task))
    assert train(tmp_path / "run", task=make_task(), model=model, method=fr.teacher_forcing(), resume=True)["finished"]


class Scored:
    """A task whose scores are told beforehand."""

    def __init__(self, scores: list[float], name: str = "per") -> None:
        self.task, self.scores, self.name = make_task(), iter(scores), name

    def __getattr__(self, name: str) -> Any:
        return getattr(self.task, name)

    def evaluate(self, model: Any, split: str) -> Evaluation:
        value = 0.0 if split == "test" else next(self.scores)
        return Evaluation({"loss": -value}, {self.name: value}, [])


def test_patience_ends_a_run_and_the_best_weights_win(tmp_path: Path) -> None:
    settings = changed(evaluate_every=2, patience=2)
    nan = float("nan")
    summary = train(tmp_path / "run", settings, task=Scored([9.0, 5.0, nan, 7.0]))
    assert (summary["updates"], summary["stopped_early"]) == (6, True)
    assert (summary["best"]["step"], summary["best"]["value"]) == (2, 5.0)
    again = train(
        tmp_path / "again",
        replace(settings, select="sequence_accuracy"),
        task=Scored([9.0, 5.0, 3.0], "sequence_accuracy"),
    )
    assert (again["updates"], again["best"]["step"]) == (4, 0)
    other = train(
        tmp_path / "other", replace(settings, select="teacher_forced_loss"), task=Scored([1.0, 3.0, 2.0, 2.0])
    )
    assert (other["updates"], other["best"]["value"]) == (6, -3.0)


@pytest.mark.parametrize(("name", "worst", "better"), [("bleu", 0.0, 3.0), ("wer", 100.0, 90.0)])
def test_untrained_weights_are_not_kept_because_nothing_is_right_yet(
    tmp_path: Path, name: str, worst: float, better: float
) -> None:
    settings = changed(evaluate_every=2, select=name, updates=6)
    none = train(tmp_path / "none", settings, task=Scored([worst] * 4, name))
    assert (none["best"]["step"], none["best"]["value"]) == (6, worst)
    some = train(tmp_path / "some", settings, task=Scored([worst, better, better, worst], name))
    assert (some["best"]["step"], some["best"]["value"]) == (2, better)
    # patience counts looks without a better score, kept or not
    stopped = train(tmp_path / "stopped", replace(settings, patience=2), task=Scored([worst] * 4, name))
    assert (stopped["updates"], stopped["stopped_early"], stopped["best"]["step"]) == (4, True, 4)


def test_a_score_that_is_not_there_is_refused_before_the_first_update(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="select = 'bleu' names no score of this task; there are: free_running_per"):
        train(tmp_path / "run", changed(select="bleu"))
    assert not lines(tmp_path / "run", "update")


def test_warm_start_takes_the_best_weights(tmp_path: Path, finished: Path) -> None:
    task = make_task()
    model = make_model(task, seed=5)
    summary = train(tmp_path / "run", changed(updates=1, warmup=0, lr=1e-9), task=task, model=model, init=finished)
    first = json.loads((finished / "summary.json").read_text())
    assert lines(tmp_path / "run", "evaluate")[0]["free_running"] == first["best"]["free_running"]
    assert summary["test"]["free_running"] == first["test"]["free_running"]


def test_warm_starts_that_do_not_fit_are_explained(tmp_path: Path, finished: Path) -> None:
    with pytest.raises(CheckpointError, match="not the folder of a run that has been evaluated"):
        train(tmp_path / "a", init=tmp_path / "nothing")
    task = make_task()
    with pytest.raises(CheckpointError, match=r"has shape .*; this model's is"):
        train(tmp_path / "b", task=task, model=make_model(task, size=12), init=finished)
    copy = tmp_path / "copy"
    shutil.copytree(finished, copy)
    path = copy / "model" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match=r"model.safetensors has [\d,]+ bytes"):
        train(tmp_path / "c", init=copy)

    class Other(Wrapped):
        def describe(self) -> dict[str, Any]:
            return {
                name: value[::-1] if isinstance(value, list) else value for name, value in self.task.describe().items()
            }

    with pytest.raises(CheckpointError, match="ids would change their meaning"):
        train(tmp_path / "d", task=Other(task, lambda *_: None), init=finished)


def test_tensorboard_has_the_same_numbers(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    train(tmp_path / "run", changed(tensorboard=True, updates=5))
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard")).Reload()
    losses = [event.value for event in events.Scalars("train/loss")]
    assert losses == pytest.approx([record["loss"] for record in lines(tmp_path / "run", "update")])
    assert events.Scalars("dev/free_running/per")


def test_progress_off_a_terminal_is_plain_lines(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train(tmp_path / "run", changed(updates=5), progress=True)
    said = capsys.readouterr().err
    assert "dev after 0 updates: per " in said
    assert re.search(r"^update 5/5  loss [\d.]+  lr .*teacher_forcing_ratio 0.\d+ ", said, re.MULTILINE)
    assert "\x1b" not in said


def test_a_schedule_that_leaves_its_range_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="teacher_forcing_ratio must lie in"):
        train(tmp_path / "run", method=fr.scheduled_sampling(fr.schedules.linear(start=1.0, end=-1.0, steps=24)))
    assert not list((tmp_path / "run").iterdir())
