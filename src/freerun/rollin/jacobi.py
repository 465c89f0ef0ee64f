"""Roll-ins by parallel passes, for anything with a forward: exact when repeated until nothing changes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from freerun.arguments import Arguments
from freerun.batch import Batch
from freerun.errors import UserError
from freerun.rollin.model import any_rank, forward, max_over_ranks, supports
from freerun.rollin.replacement import Replacement, RollIn, equal_entries
from freerun.types import Split

_SETTLING = 10
"""Extra passes allowed where floating-point ties delay convergence."""


@dataclass(frozen=True)
class Jacobi(Arguments):
    """Exact: parallel passes until one changes nothing; ``engine="jacobi"``."""

    name: ClassVar[str] = "jacobi"
    in_parts: ClassVar[bool] = False

    def check(self, model: Any) -> None:
        """Any forward will do."""

    def roll_in(self, model: Any, batch: Batch, encoded: Batch, replacement: Replacement) -> RollIn:
        """The mixed history."""
        return jacobi_roll_in(model, encoded, replacement)


@dataclass(frozen=True)
class Passes(Jacobi):
    """Approximate: k parallel passes (k = 1: Mihaylova and Martins 2019); ``engine=k``."""

    k: int = 1

    def roll_in(self, model: Any, batch: Batch, encoded: Batch, replacement: Replacement) -> RollIn:
        """The history after k passes."""
        return jacobi_roll_in(model, encoded, replacement, passes=self.k)


def jacobi_roll_in(
    model: Callable[[Batch], Tensor],
    batch: Batch,
    replacement: Replacement,
    *,
    passes: int | None = None,
    start: Tensor | None = None,
    tolerance: float = 0.0,
) -> RollIn:
    """The history at the fixed point (exact), or after k passes (an approximation).

    The mixed history is the unique fixed point of a strictly lower-triangular map: after n passes every row's
    first n own entries are final, and a row of which a pass changes nothing is certified. Such a row is dropped from
    the passes that follow, and so are a row's entries before its first change.

    Args:
        model: any causal model, in the mode the roll-in is to run in.
        batch: the batch; its context may be encoded.
        replacement: the entries to replace.
        passes: k, or None for exact.
        start: (batch, time) the history to begin with; default: gold.
        tolerance: stop when a pass changes no more than this share of the entries; above 0 nothing is certified.

    Raises:
        UserError: where an exact roll-in does not settle: the model is not causal, or random in eval mode.
    """
    walk = _Passes(model, batch, replacement, replacement.gold if start is None else start, tolerance)
    limit = max_over_ranks(model, replacement.longest + 1) if passes is None else passes
    # a choice that depends on the last bit may change once rows are dropped: allow it time to settle
    for n in range(1, limit + (_SETTLING if passes is None else 0) + 1):
        walk.go_on()
        if not any_rank(model, not walk.settled):
            return walk.result(n, passes)
    if passes is None and not walk.settled:
        raise UserError(
            f"the roll-in did not settle in {limit} passes: the model's outputs depend on later entries, or change "
            "from call to call in eval mode; freerun.check_model(model, batch) names it"
        )
    return walk.result(limit, passes)


class _Passes:
    """Parallel passes over what may still change.

    ``settled``: a pass changed few enough entries; ``rows``: computed so far.
    """

    def __init__(self, model: Any, batch: Batch, replacement: Replacement, start: Tensor, tolerance: float) -> None:
        self.model, self.batch, self.replacement, self.tolerance = model, batch, replacement, tolerance
        self.history = start.clone()
        self.rows = 0
        self.settled = replacement.number == 0
        self._pending = torch.arange(replacement.number, device=start.device)
        self._live: Tensor | None = None  # rows; None: all
        self._split = supports(model, Split)

    def go_on(self) -> None:
        """One call of the model."""
        if self.settled:  # other processes go on, and this model waits for their calls
            self.model(self.batch.select(self._pending.new_zeros(1)))
            return
        pending = self._pending
        rows, times = (each[pending] for each in self.replacement.positions)
        own = self.replacement.choose(*self._before(rows, times), pending, self.history).to(self.history.dtype)
        self.rows += self.batch.size if self._live is None else len(self._live)
        changed = ~equal_entries(own, self.history[rows, times])
        moved = int(changed.sum())
        if moved:
            # out of place: a model may have kept its input tensor
            self.history = self.history.index_put((rows, times), own)
        self.settled = moved <= self.tolerance * self.replacement.number
        if self.settled or not self.batch.is_discrete:
            return  # values differ in their last bits from one shape of a batch to another: none is dropped
        first = torch.full((self.batch.size,), self.batch.time, device=rows.device)
        first = first.scatter_reduce(0, rows[changed], times[changed], "amin")
        # what stands before a row's first change is final; the change itself is looked at once more
        self._pending = pending[times >= first[rows]]
        self._live = (first < self.batch.time).nonzero().squeeze(1)

    def result(self, passes: int, limit: int | None) -> RollIn:
        """The history; after a number of passes that was fixed nothing certifies it."""
        by, name = ("fixed point", "jacobi") if limit is None else ("no", f"{limit} passes")
        return RollIn(self.history, name, passes, self.rows / self.batch.size, by)

    def _before(self, rows: Tensor, times: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        """What the model holds before the entries at (rows, times), and how outputs are read from it."""
        batch = self.batch.made(history=self.history)
        if self._live is not None:
            index = torch.empty(batch.size, dtype=torch.int64, device=rows.device)
            index[self._live] = torch.arange(len(self._live), device=rows.device)
            batch, rows = batch.select(self._live), index[rows]
        if self._split:
            return self.model.hidden(batch)[rows, times], self.model.head
        return forward(self.model, batch)[rows, times], _as_it_is


def _as_it_is(outputs: Tensor) -> Tensor:
    return outputs
