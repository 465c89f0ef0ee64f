"""Roll-ins by parallel passes, for anything with a forward: exact when repeated until nothing changes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from freerun.errors import UserError
from freerun.rollin.plan import Plan
from freerun.rollin.rolled import Rolled, same
from freerun.types import Batch, Split

__all__ = ["jacobi_roll_in"]

_SETTLING = 10
"""More passes than the proof needs, for choices that hang on rounding: each settles once no more rows are dropped."""


def jacobi_roll_in(
    model: Callable[[Batch], Tensor],
    batch: Batch,
    plan: Plan,
    *,
    passes: int | None = None,
    start: Tensor | None = None,
    enough: float = 0.0,
) -> Rolled:
    """The history at the fixed point (exact), or after k passes (``passes`` given: an approximation).

    The mixed history is the unique fixed point of a strictly lower-triangular map: after n passes every row's
    first n own entries are final, and a row of which a pass changes nothing is certified. Such a row is dropped from
    the passes that follow, and so are a row's entries before its first change.

    Args:
        model: any causal model, in the mode the roll-in is to run in.
        batch: the batch; its context may be encoded.
        plan: the entries to replace.
        passes: k, or None for exact.
        start: (batch, time) the history to begin with; default: gold.
        enough: stop when a pass changes no more than this share of the entries; above 0 nothing is certified.

    Raises:
        UserError: where an exact roll-in does not settle: the model is not causal, or random in eval mode.
    """
    history = (batch.history if start is None else start).clone()
    limit = plan.longest + 1 if passes is None else passes
    pending = torch.arange(len(plan), device=history.device)
    live: Tensor | None = None  # rows; None: all
    rows_computed = 0
    # a choice that hangs on the last bit may fall otherwise once rows are dropped: it is given time to settle
    for n in range(1, limit + (_SETTLING if passes is None else 0) + 1):
        rows, times = plan.rows[pending], plan.times[pending]
        own = plan.choose(*_before(model, batch.replace(history=history), live, rows, times), pending)
        own = own.to(history.dtype)
        rows_computed += batch.size if live is None else len(live)
        changed = ~same(own, history[rows, times])
        moved = int(changed.sum())
        if moved:
            # out of place: a model may have kept the tensor it was given
            history = history.index_put((rows, times), own)
        if moved <= enough * len(plan):
            return Rolled(history, n, rows_computed / batch.size, moved == 0)
        first = torch.full((batch.size,), batch.time, device=history.device)
        first = first.scatter_reduce(0, rows[changed], times[changed], "amin")
        if batch.is_discrete:  # values differ in their last bits from one shape of a batch to another
            # what stands before a row's first change is final; the change itself is looked at once more
            pending = pending[times >= first[rows]]
            live = (first < batch.time).nonzero().squeeze(1)
    if passes is None:
        raise UserError(
            f"the roll-in did not settle in {limit} passes: the model's outputs depend on later entries, or change "
            "from call to call in eval mode; freerun.check_model(model, batch) says which"
        )
    return Rolled(history, limit, rows_computed / batch.size, False)


def _before(
    model: Any, batch: Batch, live: Tensor | None, rows: Tensor, times: Tensor
) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    """What the model holds before the entries at (rows, times), and how outputs are read from it."""
    if live is not None:
        place = torch.empty(batch.size, dtype=torch.int64, device=rows.device)
        place[live] = torch.arange(len(live), device=rows.device)
        batch, rows = batch.select(live), place[rows]
    if isinstance(model, Split):
        return model.hidden(batch)[rows, times], model.head
    return model(batch)[rows, times], _as_it_is


def _as_it_is(outputs: Tensor) -> Tensor:
    return outputs
