"""One step of a method before the first, forward only: what would be refused in the middle of a run is refused now."""

from __future__ import annotations

import copy
from contextlib import nullcontext
from dataclasses import fields, is_dataclass, replace
from typing import Any

import torch

from freerun.batch import Batch
from freerun.rollin import differs_by_mode
from freerun.rollin.model import eval_mode
from freerun.schedules import Schedule, extremes
from freerun.types import Outcome, Step


def rehearsal(method: Any, model: Any, batch: Batch, steps: int, key: int) -> tuple[Any, Batch, Step, Outcome]:
    """One row, forward only, with the lowest ratio that a run of ``steps`` comes to.

    In the mode the model is in, as some methods need a model without dropout; in evaluation mode where statistics of a
    batch would move. Neither weights, modes, the method's state nor PyTorch's generators are changed.

    Returns:
        the method, row and step that were tried, and the outcome.

    Raises:
        UserError: the model cannot do what the method needs.
    """
    one = batch.select(batch.replaceable.sum(1).argmax()[None])
    method, step = _at_its_lowest(method, steps), Step(0, sample=0, epoch=0.0)
    devices = [one.targets.device] if one.targets.is_cuda else []
    still = differs_by_mode(model, random=False)
    state = copy.deepcopy(getattr(method, "state_dict", dict)())
    with torch.no_grad(), torch.random.fork_rng(devices), eval_mode(model) if still else nullcontext():
        outcome = method.run(model, one, step, key)
    if state:
        method.load_state_dict(state)
    return method, one, step, outcome


def _at_its_lowest(method: Any, steps: int) -> Any:
    ratio = getattr(method, "teacher_forcing_ratio", None)
    if isinstance(ratio, Schedule) and ratio.unit != "step":
        lowest = 0.0
    elif ratio is None:
        lowest = 1.0
    else:
        lowest = extremes(ratio, steps)[0]
    has_ratio = is_dataclass(method) and any(f.name == "teacher_forcing_ratio" and f.init for f in fields(method))
    if lowest < 1 and has_ratio:  # one row and one gate decision might reveal nothing
        return replace(method, teacher_forcing_ratio=0.0)  # pyright: ignore[reportArgumentType, reportCallIssue]
    return method
