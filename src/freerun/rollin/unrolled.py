"""Roll-ins that keep the graph: values fed back with their gradient. The roll-in's outputs are the outputs."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from freerun.draws import Draw
from freerun.errors import UserError
from freerun.rollin.modes import differs_by_mode
from freerun.types import Batch, Stepper

__all__ = ["unroll"]


def unroll(model: Any, batch: Batch, keep: Tensor, draw: Draw, cut: int | None) -> tuple[Tensor, Tensor, int]:
    """Outputs and history with gradient through the model's own entries, and the extra passes it took.

    Args:
        model: a Stepper, or anything with a forward (then in as many passes as a row has own entries).
        batch: values (batch, time, value).
        keep: (batch, time) bool, True = gold; must be True where an entry may not be replaced.
        draw: from a prediction to a value, differentiable.
        cut: None: the gradient flows through every own entry; k: entries at positions k-1, 2k-1, ... are fed
            without theirs (1: none flows, as with ``gradient="none"``).
    """
    through = torch.ones(batch.time, dtype=torch.bool, device=keep.device)
    if cut is not None:
        through[cut - 1 :: cut] = False
    if isinstance(model, Stepper):
        outputs, history = _by_steps(model, batch, keep, draw, through)
        return outputs, history, 0
    return _by_passes(model, batch, keep, draw, through)


def _mixed(gold: Tensor, own: Tensor, keep: Tensor, through: Tensor) -> Tensor:
    # keep (..., ) and through broadcast over the value's width
    own = torch.where(through[..., None], own, own.detach())
    return torch.where(keep[..., None], gold, own.to(gold.dtype))


def _by_steps(model: Stepper, batch: Batch, keep: Tensor, draw: Draw, through: Tensor) -> tuple[Tensor, Tensor]:
    state = model.start(batch)
    outputs: list[Tensor] = []
    history: list[Tensor] = []
    for t in range(batch.time):
        outputs.append(model.output(state))
        entry = _mixed(batch.history[:, t], draw.choose(outputs[t], None), keep[:, t], through[t])
        history.append(entry)
        if t + 1 < batch.time:
            state = model.step(state, model.embed(entry))
    return torch.stack(outputs, 1), torch.stack(history, 1)


def _by_passes(model: Any, batch: Batch, keep: Tensor, draw: Draw, through: Tensor) -> tuple[Tensor, Tensor, int]:
    if differs_by_mode(model):
        raise UserError(
            "gradient through own outputs in parallel passes needs the same function in every pass, and this model "
            "has dropout or batch normalisation in training mode: set dropout to 0, give the model a Stepper "
            "(start, embed, step, output, select), or use gradient='none'"
        )
    history = batch.history
    passes = int((~keep).sum(1).max())
    for _ in range(passes):
        own = draw.choose(model(batch.replace(history=history)), None)
        history = _mixed(batch.history, own, keep, through[None])
    return model(batch.replace(history=history)), history, passes
