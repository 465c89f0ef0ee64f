"""What can be asked before a run touches its folder."""

from __future__ import annotations

from pathlib import Path

from torch.nn import Module

from freerun.training.log import board_class
from freerun.training.settings import TrainSettings
from freerun.training.task import Task
from freerun.training.update import check_amp
from freerun.training.weights import start_from

__all__ = ["ready_to_start"]


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
