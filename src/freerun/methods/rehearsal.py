"""One step before the first: what a model cannot do for a method is refused before anything is written."""

from __future__ import annotations

from dataclasses import fields, is_dataclass, replace
from typing import Any

import torch

from freerun.rollin import evaluating
from freerun.schedules import Schedule, extremes
from freerun.types import Batch, Outcome, Step

__all__ = ["rehearsal"]


def rehearsal(method: Any, model: Any, batch: Batch, steps: int, key: int) -> tuple[Any, Batch, Step, Outcome]:
    """One row, forward only, with the lowest ratio that a run of ``steps`` comes to.

    Neither weights, modes nor PyTorch's generators are changed.

    Returns:
        the method, row and step that were tried, and the outcome.

    Raises:
        UserError: the model cannot do what the method asks.
    """
    one = batch.select(batch.replaceable.sum(1).argmax()[None])
    method, step = _at_its_lowest(method, steps), Step(0, sample=0, epoch=0.0)
    devices = [one.targets.device] if one.targets.is_cuda else []
    with torch.no_grad(), torch.random.fork_rng(devices), evaluating(model):
        return method, one, step, method.run(model, one, step, key)


def _at_its_lowest(method: Any, steps: int) -> Any:
    ratio = getattr(method, "teacher_forcing_ratio", None)
    if isinstance(ratio, Schedule) and ratio.unit != "step":
        lowest = 0.0
    elif ratio is None:
        lowest = 1.0
    else:
        lowest = extremes(ratio, steps)[0]
    given = is_dataclass(method) and any(f.name == "teacher_forcing_ratio" and f.init for f in fields(method))
    if lowest < 1 and given:  # one row and one coin might show nothing
        return replace(method, teacher_forcing_ratio=0.0)  # pyright: ignore[reportArgumentType, reportCallIssue]
    return method
