"""Roll-ins over a cache whose calls are laid out before the first of them: where own entries stand decides them all."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from freerun.batch import Batch
from freerun.errors import UserError
from freerun.rollin.replacement import Replacement, RollIn
from freerun.types import Calls


def planned_roll_in(model: Any, batch: Batch, replacement: Replacement, engine: str) -> RollIn | None:
    """The mixed history by one call for each own entry of the row that has most (``"window"``) or each position.

    A row reads up to its next own entry, and one with fewer own entries than calls reads its long gaps in several, as
    evenly as the number of calls allows: attention, which pads rows to the longest, is spared the padding.

    Args:
        model: of the protocol ``Planned``, in the mode the roll-in is to run in.
        batch: the batch; its context may be encoded.
        replacement: the entries to replace.
        engine: ``"window"`` or ``"step"``.

    Returns:
        None where the model cannot be read by a plan.
    """
    plan = _Plan(replacement, batch.size, 1 if engine == "step" else None)
    chosen = batch if plan.order is None else batch.select(plan.order)
    read = model.reader(chosen, plan.calls)
    if read is None:
        return None
    history, entries = replacement.gold.clone(), plan.entries(replacement.gold)
    parts, ruled = entries[:-1].split(plan.calls.sizes), replacement.rules is not None
    rows, times = replacement.positions
    found: list[Tensor] = []
    for n, (numbers, at, after) in enumerate(plan.own):
        hidden = read(n, parts[n])
        if len(hidden) != plan.reading[n]:
            raise UserError(
                f"the reader of {type(model).__name__} returned {len(hidden)} vectors for call {n}, in which "
                f"{plan.reading[n]} rows read: it must return one for each, after its last entry "
                "(freerun.types.Planned)"
            )
        if numbers.numel() == 0:
            continue
        all_of_them = len(at) == len(hidden)  # every row predicts an own entry
        hidden = hidden if all_of_them else hidden.index_select(0, at)
        own = replacement.choose(hidden, model.head, numbers, history).to(history.dtype)
        entries.index_copy_(0, after, own)
        found.append(own)
        if ruled:
            history[rows[numbers], times[numbers]] = own
    history[rows[plan.numbers], times[plan.numbers]] = torch.cat(found)
    passes = 1 if engine == "step" else len(plan.own)
    return RollIn(history, engine, passes, (len(entries) - 1) / (batch.size * batch.time))


class _Plan:
    """The calls, and which own entries each of them decides."""

    def __init__(self, replacement: Replacement, size: int, most: int | None) -> None:
        rows, times = replacement.positions
        self.numbers = by = rows.argsort(stable=True)
        row, time = rows[by], times[by]
        first = torch.ones_like(row, dtype=torch.bool)
        first[1:] = row[1:] != row[:-1]
        gap = time - time.roll(1).masked_fill_(first, -1)  # inputs to be read for each own entry
        pieces = (gap + (most - 1)) // most if most else -(-gap // self._widths(row, gap, size)[row])
        calls = row.new_zeros(size).index_add_(0, row, pieces)  # of each row
        order = calls.argsort(descending=True, stable=True)[: int((calls > 0).sum())]
        rank = torch.empty_like(calls).index_copy_(0, order, torch.arange(len(order), device=row.device))
        of = torch.arange(len(row), device=row.device).repeat_interleave(pieces)
        ends = pieces.cumsum(0)
        nth = torch.arange(len(of), device=row.device) - (ends - pieces)[of]
        # a gap's inputs shared out among its pieces
        share, pieces_of = gap[of], pieces[of]
        count = share * (nth + 1) // pieces_of - share * nth // pieces_of
        start = (calls.cumsum(0) - calls)[row]  # pieces of earlier rows
        call = torch.arange(len(of), device=row.device) - start[of]
        counts = count.new_zeros(int(calls.max()), len(order))
        counts[call, rank[row[of]]] = count
        self.calls = Calls.of(counts)
        self.reading: list[int] = (counts > 0).sum(1).tolist()  # rows, in each call
        self.order = None if len(order) == size and bool((order[1:] > order[:-1]).all()) else order
        self._rows = order
        self.own = self._own(ends - 1, call, rank[row], counts)

    @staticmethod
    def _widths(row: Tensor, gap: Tensor, size: int) -> Tensor:
        """The least number of inputs at once with which each row needs no more calls than the row that needs most."""
        calls = int(torch.bincount(row).max())
        low, high = torch.ones(size, dtype=gap.dtype, device=gap.device), gap.new_full((size,), int(gap.max()))
        for _ in range(int(gap.max()).bit_length()):
            middle = (low + high) // 2
            fits = low.new_zeros(size).index_add_(0, row, -(-gap // middle[row])) <= calls
            low, high = torch.where(fits, low, middle + 1), torch.where(fits, middle, high)
        return high

    def _own(self, last: Tensor, call: Tensor, rank: Tensor, counts: Tensor) -> list[tuple[Tensor, Tensor, Tensor]]:
        """For each call its own entries' numbers, which of its rows predict them, and which inputs they are."""
        flat = counts.flatten()
        ends = flat.cumsum(0)
        cell = call[last] * counts.shape[1] + rank
        order = cell.argsort()
        cell, self.numbers = cell[order], self.numbers[order]
        decided = (cell // counts.shape[1]).bincount(minlength=len(counts)).tolist()
        at = cell % counts.shape[1]
        # the first input of the row's next piece; after its last the entry is fed to nobody and goes to a spare input
        following = cell + counts.shape[1]
        fed = (following < len(flat)) & (flat[following.clamp_max(len(flat) - 1)] > 0)
        after = torch.where(fed, (ends - flat)[following.clamp_max(len(flat) - 1)], int(ends[-1]))
        return list(zip(self.numbers.split(decided), at.split(decided), after.split(decided), strict=True))

    def entries(self, gold: Tensor) -> Tensor:
        """(n + 1, ...) gold entries in the order in which they are read, at the start any; and a spare one."""
        entries = gold[self._rows[self.calls.rows], (self.calls.index - 1).clamp_min(0)]
        return torch.cat([entries, entries[:1]])
