"""What one life of a run holds open, and how it counts."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any, Self

import torch
from torch.nn import Module

from freerun.errors import DivergedError
from freerun.signals import StopFlag
from freerun.tasks.base import Method, Task
from freerun.training.batch_plan import BatchPlan
from freerun.training.changes import Change, Keys, allowed
from freerun.training.checkpoint import TrainObjects, TrainState, last_good
from freerun.training.log import Board, Metrics, Progress, RunState, Unwritten, update_facts
from freerun.training.optim import learning_rate
from freerun.training.run_folder import FolderLock
from freerun.training.settings import TrainSettings


@dataclass(frozen=True)
class Job:
    """The arguments of ``fit``."""

    model: Module
    task: Task
    method: Method
    settings: TrainSettings
    folder: Path
    recipe: dict[str, Any] | None = None
    init: Path | None = None
    allow: tuple[str, ...] = ()
    keys: Keys = field(default_factory=Keys)


@dataclass(frozen=True, eq=False)
class Held:
    """What a caller of ``fit`` that took the folder itself has to say.

    Args:
        lock: of the folder; of several processes the first holds it.
        keys: of the recipe's sections.
        ready: called once nothing stands against the run, before its first file is written.
    """

    lock: FolderLock
    keys: Keys
    ready: Callable[[], None]


@dataclass
class Run:
    """A job, what it has open, and the tally; leaving it closes what is open."""

    job: Job
    parts: TrainObjects
    plan: BatchPlan
    identity: dict[str, Any]
    metrics: Metrics | Unwritten
    progress: Progress
    board: Board | None
    tally: TrainState
    fresh: bool
    flag: StopFlag
    change: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])
    _mark: tuple[float, float] = field(default_factory=lambda: (time.perf_counter(), time.process_time()))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.progress.close()
        self.metrics.close()
        if self.board is not None:
            self.board.close()

    @property
    def over(self) -> bool:
        """True if there is no further update to make."""
        return self.tally.stopped_early or self.tally.step >= self.job.settings.updates

    def diverged(self, error: DivergedError) -> None:
        """Write down that training diverged, and add to the error what there is to go on with."""
        step, settings, folder = self.tally.step, self.job.settings, self.job.folder
        rate = learning_rate(max(step - 1, 0), settings)
        good = last_good(folder)
        error.add(
            f"updates made: {step}; learning rate of the last {rate:g}; the last good checkpoint: "
            f"{good or 'none, as the first evaluation was not passed'}"
        )
        begin = (
            f"begin anew with a lower train.lr, a longer train.warmup or a tighter train.clip than {settings.clip:g}"
        )
        error.add(
            f"help: {begin}" + ("" if good is None else f"; --init {folder} begins with the best weights of this run")
        )
        self.metrics.write({"event": "diverged", "step": step, "lr": rate, "seed": settings.seed, "error": str(error)})

    def lap(self, *, evaluation: bool = False) -> float:
        """Book the time since the last lap, as training or as evaluation; its wall seconds."""
        now = (time.perf_counter(), time.process_time())
        wall, cpu = now[0] - self._mark[0], now[1] - self._mark[1]
        self._mark = now
        if evaluation:
            self.tally.evaluation_seconds += wall
            self.tally.evaluation_cpu_seconds += cpu
        else:
            self.tally.seconds += wall
            self.tally.cpu_seconds += cpu
        return wall

    def changed(self, found: Sequence[Change]) -> None:
        """Book what is changed on purpose; scores on other data, or of another kind, are no best to compare with."""
        self.change = [
            {"step": self.tally.step, "key": c.key, "before": c.before, "after": c.after} for c in found
        ]  # fmt: skip
        self.tally.changes = [*self.tally.changes, *self.change]
        scored = ("data", "evaluate", "seed", "train.select", "train.evaluate_items")
        if any(allowed(change, scored) for change in found):
            self.tally.best_step = self.tally.best_value = None
            self.tally.best_dev, self.tally.stale = {}, 0
            self.tally.due, self.tally.stopped_early = True, False

    def count(self, record: dict[str, Any]) -> None:
        """Book an update that was made, and write it down; ``seconds`` is training time since the run began."""
        self.lap()
        tally = self.tally
        tally.step += 1
        tally.decoder_passes += 1 + record["work"]
        tally.eligible += record["eligible"]
        tally.replaced += record["replaced"]
        record = {**record, "seconds": round(tally.seconds, 3)}
        self.metrics.write(record)
        if self.board is not None:
            self.board.write(record, tally.step)
        facts = update_facts(record, lr=not self.progress.narrow)
        self.progress.show([RunState("training", "running", tally.step, facts)])


def versions() -> dict[str, str]:
    """Return what a result hangs on."""
    return {"freerun": version("freerun"), "torch": torch.__version__, "python": platform.python_version()}


def header(run: Run) -> dict[str, Any]:
    """Return the first line of metrics.jsonl."""
    return {
        "event": "header",
        "method": run.job.method.name,
        "signature": repr(run.job.method),
        "seed": run.job.settings.seed,
        "updates": run.job.settings.updates,
        "batch_size": run.job.settings.batch_size,
        "processes": run.parts.processes.size,
        "select": run.job.settings.select,
        "examples": run.plan.examples,
        "parameters": sum(parameter.numel() for parameter in run.parts.model.parameters()),
        "data": run.job.task.fingerprint,
        "versions": versions(),
        "time": time.strftime("%Y-%m-%d %H:%M:%S"),
    }


def other_number(before: int, now: int) -> str:
    """Say what it means that another number of processes goes on with a run."""
    return (
        f"the run was made by {before} process{'es' if before > 1 else ''} and goes on with {now}: examples, coins and "
        "noise are the same; sums are rounded otherwise, and dropout differs unless accumulate x processes is as it was"
    )
