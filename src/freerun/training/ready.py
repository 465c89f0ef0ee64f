"""What can be asked before a run touches its folder."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from torch.nn import Module

from freerun.errors import ResourceError, UserError
from freerun.training.folder import checkpoints
from freerun.training.log import board_class
from freerun.training.optim import Needed
from freerun.training.plan import BatchPlan
from freerun.training.processes import Processes
from freerun.training.run import Job
from freerun.training.settings import TrainSettings
from freerun.training.task import Task
from freerun.training.tensors import spec_bytes
from freerun.training.update import check_amp, device_of
from freerun.training.weights import start_from
from freerun.training.wrapped import refuse_wrapped

__all__ = ["checked", "ready_to_start", "require_space"]


def ready_to_start(model: Module, task: Task, settings: TrainSettings, init: Path | None = None) -> None:
    """Raise here what ``fit`` would raise before its first update; nothing is written.

    Args:
        model: as for ``fit``; it holds the weights of ``init`` afterwards, as in ``fit``.
        task: as for ``fit``.
        settings: as for ``fit``.
        init: the folder of the run to begin with, or None.

    Raises:
        CheckpointError: ``init`` is damaged, or of other vocabularies or shapes.
        UserError: no bf16 on this processor, TensorBoard is not installed.
    """
    check_amp(model, settings)
    if settings.tensorboard:
        board_class()
    if init is not None:
        start_from(init, model, task.describe())


def require_space(folder: Path, model: Module, settings: TrainSettings) -> None:
    """Refuse a run whose checkpoints cannot fit on the disk; nothing is written.

    Args:
        folder: of the run; it need not exist. What an earlier life or run saved in it counts as free.
        model: as for ``fit``.
        settings: as for ``fit``.

    Raises:
        ResourceError: what is needed, and what is free.
    """
    needed = Needed.of(model, settings)
    # the next one is written before the last one goes; so are the best weights, in checkpoints/ and in model/
    whole = (settings.keep + 1) * needed.bytes + 4 * spec_bytes(needed.weights)
    ours = [*checkpoints(folder), *checkpoints(folder, "best"), folder / "model"]
    held = sum(path.stat().st_size for each in ours for path in each.glob("*") if path.is_file())
    around = next(each for each in (folder.absolute(), *folder.absolute().parents) if each.exists())
    free = shutil.disk_usage(around).free + held
    if whole > free:
        each = f"{settings.keep + 1} checkpoints of {needed.bytes:,}, and the best weights"
        raise ResourceError(
            f"{folder}: the run needs about {whole:,} bytes ({each}), and {free:,} are free: make room, lower "
            "train.keep, or give a folder on another disk"
        )


def checked(job: Job, processes: Processes) -> BatchPlan:
    """The order of the examples, and the model where it is to be; raises what is wrong with the job."""
    settings = job.settings
    check: Any = getattr(job.method, "check", None)
    if callable(check):
        check(settings.updates)
    plan = BatchPlan(job.task.lengths, settings.batch_size, seed=settings.seed, bucket=settings.bucket)
    check_amp(job.model, settings)
    refuse_wrapped(job.model)
    job.model.to(device_of(job.model, settings))
    if settings.accumulate * processes.size > settings.batch_size:
        raise UserError(
            f"batch_size = {settings.batch_size} examples of an update cannot be cut into accumulate x processes = "
            f"{settings.accumulate} x {processes.size} micro-batches: start fewer processes, or raise batch_size"
        )
    return plan
