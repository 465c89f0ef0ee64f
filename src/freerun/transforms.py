"""Other changes of a batch: how long the horizon is, and which of its steps carry loss."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from freerun.arguments import COUNT, is_number
from freerun.batch import Batch
from freerun.errors import UserError, refuse

LOSS_ON = ("all", "last", "after_warmup")


def within_horizon(batch: Batch, horizon: int) -> Batch:
    """The batch up to the first ``horizon`` entries of each row that may be replaced; what comes later is cut off.

    ``mask_t`` and ``eligible_t`` stay where fewer than ``horizon`` such entries came before; known entries before them
    (a prompt, a warm-up) stay as they are. Time is as long as the longest row needs.

    Args:
        batch: any batch; its context is unchanged.
        horizon: 1 or more.

    Raises:
        UserError: a horizon below 1.

    >>> values = torch.zeros(1, 6, 1)
    >>> known = torch.tensor([[False, False, True, True, True, True]])
    >>> within_horizon(Batch(values, values, known, eligible=known), 3).mask
    tensor([[False, False,  True,  True,  True]])
    """
    COUNT.check(horizon=horizon)
    lead = batch.replaceable.cumsum(1)
    # beyond the last replaceable entry the count stands still: what only follows it carries no loss of the horizon
    inside = (lead < horizon) | ((lead == horizon) & batch.replaceable)
    if bool(inside.all()):
        return batch
    used = (inside & (batch.mask | batch.replaceable)).any(0).nonzero()
    time = int(used[-1]) + 1 if len(used) else 1
    return batch.made(
        targets=batch.targets[:, :time],
        history=batch.history[:, :time],
        mask=(batch.mask & inside)[:, :time],
        weights=None if batch.weights is None else batch.weights[:, :time],
        eligible=(batch.replaceable & inside)[:, :time],
        present=None if batch.present is None else batch.present[:, :time],
    )


def loss_on(batch: Batch, steps: str | Sequence[float]) -> Batch:
    """The batch with the loss on some steps only; which entries may be replaced does not change.

    Args:
        batch: any batch.
        steps: ``"all"``: those of its mask; ``"last"``: of these the last of each row; ``"after_warmup"``: of
            these the ones whose entry may be replaced (a warm-up left out); or a weight for each lead time 1, 2, ...
            of the replaceable entries, in which case nothing else carries loss.

    Raises:
        UserError: fewer weights than the horizon is long.

    >>> values = torch.zeros(1, 4, 1)
    >>> batch = Batch(values, values, torch.tensor([[True, True, True, False]]))
    >>> loss_on(batch, "last").mask
    tensor([[False, False,  True, False]])
    """
    if steps == "all":
        return batch
    steps = tuple(steps) if isinstance(steps, list) else steps
    refuse(loss_on_problems(steps))
    kept, weights = batch.mask, batch.weights
    if steps == "last":
        kept = kept & (kept.flip(1).cumsum(1).flip(1) == 1)
    elif steps == "after_warmup":
        kept = kept & batch.replaceable
    else:
        like = batch.targets if batch.targets.is_floating_point() else batch.weights
        dtype = None if like is None else like.dtype
        by_lead = torch.tensor([float(each) for each in steps], device=kept.device, dtype=dtype)
        lead = batch.replaceable.cumsum(1)
        longest = int(lead.max()) if lead.numel() else 0
        if longest > len(by_lead):
            raise UserError(
                f"loss_on has {len(by_lead)} weights and the horizon {longest} steps: give each a weight, 0 for none"
            )
        by_position = by_lead[(lead - 1).clamp_min(0)]
        kept = kept & batch.replaceable & (by_position != 0)
        weights = by_position if weights is None else by_position * weights
    return batch.made(mask=kept, weights=weights, eligible=batch.replaceable)


def loss_on_problems(steps: Any) -> list[str]:
    """What is wrong with a ``loss_on``, if anything.

    >>> loss_on_problems("first")
    ["loss_on must be 'all', 'last', 'after_warmup' or a weight for each lead time; got 'first'"]
    """
    if isinstance(steps, str):
        fine = steps in LOSS_ON
    else:
        fine = (
            isinstance(steps, tuple) and len(steps) > 0 and all(is_number(x) and x >= 0 for x in steps) and any(steps)
        )
    renamed = ": it is called 'after_warmup'" if steps == "own" else ""
    rule = "loss_on must be 'all', 'last', 'after_warmup' or a weight for each lead time"
    return [] if fine else [f"{rule}; got {steps!r}{renamed}"]
