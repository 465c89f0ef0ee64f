"""What one life of a run has open, and how it counts."""

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
from freerun.training.changes import Change, Keys, allowed
from freerun.training.checkpoint import TrainObjects, TrainState
from freerun.training.log import Board, Metrics, Progress, RunState, Unwritten, update_facts
from freerun.training.optim import learning_rate
from freerun.training.plan import BatchPlan, TrainSettings
from freerun.training.run_folder import FolderLock, checkpoints


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
    """What a caller of ``fit`` brings that took the folder itself."""

    lock: FolderLock  # of several processes the first holds it
    keys: Keys  # of the recipe's sections
    ready: Callable[[], None]  # called once nothing stands against the run, before its first file is written


@dataclass
class Run:
    """A job, what it has open, and its state; leaving it closes what is open."""

    job: Job
    parts: TrainObjects
    plan: BatchPlan
    identity: dict[str, Any]
    metrics: Metrics | Unwritten
    progress: Progress
    board: Board
    state: TrainState
    fresh: bool
    flag: StopFlag
    change: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])
    _mark: tuple[float, float] = field(default_factory=lambda: (time.perf_counter(), time.process_time()))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.progress.close()
        self.metrics.close()
        self.board.close()

    @property
    def over(self) -> bool:
        """True if there is no further update to make."""
        return self.state.stopped_early or self.state.step >= self.job.settings.updates

    def diverged(self, error: DivergedError) -> None:
        """Write down that training diverged, and add to the error what there is to go on with."""
        step, settings, folder = self.state.step, self.job.settings, self.job.folder
        rate = learning_rate(max(step - 1, 0), settings)
        good = max(checkpoints(folder), default=None)  # only finite numbers are ever saved
        error.add(
            f"updates made: {step}; learning rate of the last {rate:g}; the last good checkpoint: "
            f"{good or 'none, as the first evaluation was not passed'}"
        )
        error.add(
            "help: begin anew with a lower train.lr, a longer train.warmup or a tighter train.clip than "
            f"{settings.clip:g}"
            + ("" if good is None else f"; --init {folder} begins with the best weights of this run")
        )
        self.metrics.write({"event": "diverged", "step": step, "lr": rate, "seed": settings.seed, "error": str(error)})

    def lap(self, *, evaluation: bool = False) -> float:
        """Book the time since the last lap, as training or as evaluation; its wall seconds."""
        now = (time.perf_counter(), time.process_time())
        wall, cpu = now[0] - self._mark[0], now[1] - self._mark[1]
        self._mark = now
        if evaluation:
            self.state.evaluation_seconds += wall
            self.state.evaluation_cpu_seconds += cpu
        else:
            self.state.seconds += wall
            self.state.cpu_seconds += cpu
        return wall

    def changed(self, changed: Sequence[Change]) -> None:
        """Book what changes on purpose; scores on other data, or of another kind, are no best to compare with."""
        step = self.state.step
        self.change = [{"step": step, "key": c.key, "before": c.before, "after": c.after} for c in changed]
        self.state.changes = [*self.state.changes, *self.change]
        scored = ("data", "evaluate", "seed", "train.select", "train.evaluate_items")
        if any(allowed(change, scored) for change in changed):
            self.state.best_step = self.state.best_value = None
            self.state.best_dev, self.state.stale = {}, 0
            self.state.due, self.state.stopped_early = True, False

    def count(self, record: dict[str, Any]) -> None:
        """Book an update, and write it down; ``seconds`` is training time since the run began."""
        self.lap()
        state = self.state
        state.step += 1
        state.decoder_passes += 1 + record["work"]
        state.eligible += record["eligible"]
        state.replaced += record["replaced"]
        record = {**record, "seconds": round(state.seconds, 3)}
        self.metrics.write(record)
        self.board.write(record, state.step)
        facts = update_facts(record, lr=not self.progress.narrow)
        self.progress.show([RunState("training", "running", state.step, facts)])


def versions() -> dict[str, str]:
    """Return the versions that a result depends on."""
    return {"freerun": version("freerun"), "torch": torch.__version__, "python": platform.python_version()}


def header(run: Run) -> dict[str, Any]:
    """Return the first line of metrics.jsonl."""
    settings = run.job.settings
    return {
        "event": "header",
        "method": run.job.method.name,
        "signature": repr(run.job.method),
        **{name: getattr(settings, name) for name in ("seed", "updates", "batch_size")},
        "processes": run.parts.processes.size,
        "select": settings.select,
        "examples": run.plan.examples,
        "parameters": sum(parameter.numel() for parameter in run.parts.model.parameters()),
        "data": run.job.task.fingerprint,
        "versions": versions(),
        "time": time.strftime("%Y-%m-%d %H:%M:%S"),
    }
