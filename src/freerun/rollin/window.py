"""The exact ``window`` engine: every row reads on from its own position, over a cache, up to its next own entries."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from freerun.arguments import Arguments
from freerun.batch import Batch
from freerun.errors import UserError
from freerun.rollin.model import has, lacks
from freerun.rollin.planned import planned_roll_in
from freerun.rollin.replacement import Replacement, RollIn, equal_entries
from freerun.types import Cached, Planned


@dataclass(frozen=True)
class Window(Arguments):
    """Exact: every row reads on over a cache up to its next ``width`` own entries; ``engine="window"`` by default.

    Args:
        width: own entries a row reads through in one call at a guess; 1 guesses none and reads every entry once.

    Raises:
        UserError: a width below 1.

    >>> Window(width=4)
    Window(width=4)
    """

    width: int = 1

    name: ClassVar[str] = "window"
    in_parts: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if isinstance(self.width, bool) or not isinstance(self.width, int) or self.width < 1:
            raise UserError(f"width must be a whole number of own entries, at least 1; got {self.width!r}")

    def check(self, model: Any) -> None:
        """Refuse a model without a cache."""
        if not has(model, Cached):
            raise UserError(lacks("window", model, "start, embed, step, output, select, head, advance and crop"))

    def roll_in(self, model: Any, batch: Batch, encoded: Batch, replacement: Replacement) -> RollIn:
        """The mixed history."""
        planned = self.width == 1 and hasattr(type(model), "reader") and has(model, Planned)
        done = planned_roll_in(model, encoded, replacement, "window") if planned else None
        return done or window_roll_in(model, encoded, replacement, self.width)


def window_roll_in(model: Cached, batch: Batch, replacement: Replacement, width: int = 1) -> RollIn:
    """The mixed history by windows of ``width`` own entries over the model's cache.

    In one call every row reads its gold entries up to its next own one, and no entry is read twice: as many calls
    as a row has own entries, each over a part of the positions. With ``width > 1`` a row reads through its next
    ``width`` own entries at what they are guessed to be (gold, or what an earlier call made of them), its prediction is
    compared with the guesses, and it goes on from the first that was wrong: fewer calls, some positions read again.

    Args:
        model: a model with a cache, in the mode the roll-in is to run in.
        batch: the batch; its context may be encoded.
        replacement: the entries to replace.
        width: own entries a row reads through in one call.
    """
    walk = _Walk(model, batch, replacement, width)
    calls = 0
    while walk.rows.numel():
        walk.read()
        calls += 1
    return RollIn(walk.history, "window", calls, walk.read_entries / (batch.size * batch.time))


class _Walk:
    """Rows on their way: ``at[r]`` entries of ``rows[r]`` are final and have been read."""

    def __init__(self, model: Cached, batch: Batch, replacement: Replacement, width: int) -> None:
        self.model, self.replacement, self.width = model, replacement, width
        self.history = replacement.gold.clone()
        device = self.history.device
        # which replaced entry stands where, -1: none; one column more, for the prediction after the last entry
        self.entry = torch.full((batch.size, batch.time + 1), -1, device=device)
        self.entry[replacement.positions] = torch.arange(replacement.number, device=device)
        self.done = (self.entry >= 0).cumsum(1)  # own entries up to and with a position
        self.times = self._times(batch)
        self.rows = torch.arange(batch.size, device=device)
        self.at = torch.zeros_like(self.rows)
        self.state = model.start(batch)
        self.read_entries = batch.size
        self._first()
        self._leave()

    def _times(self, batch: Batch) -> Tensor:
        """(batch, most) positions of each row's own entries, filled up with its last one."""
        count = self.done[:, -1]
        times = torch.full((batch.size, max(1, self.replacement.longest)), -1, device=count.device)
        rows, positions = self.replacement.positions
        times[rows, self.done[rows, positions] - 1] = positions
        return times.cummax(1).values.clamp_min(0)

    def _first(self) -> None:
        """Decide own entries at position 0, which only the start predicts."""
        rows = (self.entry[:, 0] >= 0).nonzero().squeeze(1)
        if rows.numel():
            outputs = self.model.output(self.state, rows)
            own = self.replacement.choose(outputs, lambda each: each, self.entry[rows, 0], self.history)
            self.history[rows, 0] = own.to(self.history.dtype)

    def read(self) -> None:
        """One call: read on, decide, go on from the first wrong guess."""
        decided = self.done[self.rows, self.at]
        reach = self.times[self.rows, (decided + self.width - 1).clamp_max(self.times.shape[1] - 1)]
        counts = self._paced(reach, self.done[self.rows, -1] - decided) - self.at
        of = torch.arange(len(self.rows), device=counts.device).repeat_interleave(counts)
        index = torch.arange(of.numel(), device=of.device) - (counts.cumsum(0) - counts)[of] + self.at[of]
        rows = self.rows[of]
        inputs = self.model.embed(self.history[rows, index])
        self.state, hidden = self.model.advance(self.state, inputs, counts)
        self.read_entries += of.numel()
        self.at = self._decide(of, rows, index + 1, hidden, self.at + counts)
        self._leave()

    def _paced(self, reach: Tensor, left: Tensor) -> Tensor:
        """How far each row reads: the rows with most own entries left as far as they can, the others at their pace.

        Attention pads all rows to the longest count and to the furthest position: a row with few own entries gains
        nothing by hurrying on to its next one.
        """
        calls, of = int(left.max()), self.times.shape[1]
        front = int(1.3 * int(self.times[:, -1].max()) * (of - calls + self.width) / of) + 1
        return torch.where(left >= calls, reach, torch.minimum(reach, self.at.clamp_min(front)))

    def _decide(self, of: Tensor, rows: Tensor, times: Tensor, hidden: Tensor, reach: Tensor) -> Tensor:
        """Choose the own entries among those now predicted; how many entries of each row are final and read."""
        entry = self.entry[rows, times]
        chosen = (entry >= 0).nonzero().squeeze(1)
        of, rows, times, entry = of[chosen], rows[chosen], times[chosen], entry[chosen]
        own = self.replacement.choose(hidden[chosen], self.model.head, entry, self.history).to(self.history.dtype)
        if self.width == 1:
            self.history[rows, times] = own
            return reach
        wrong = ~equal_entries(own, self.history[rows, times])
        self.history[rows, times] = own
        at = reach.scatter_reduce(0, of[wrong], times[wrong], "amin")
        if bool((at < reach).any()):
            self.state = self.model.crop(self.state, at)
        return at

    def _leave(self) -> None:
        """Let rows go whose own entries are all decided, when they are enough to pay for moving the others."""
        decided = self.done[self.rows, self.at]
        going = decided < self.done[self.rows, -1]
        left = int(going.sum())
        if left == 0:
            self.rows = self.rows[:0]
        elif left <= 0.75 * len(self.rows):
            kept = going.nonzero().squeeze(1)
            self.rows, self.at, self.state = self.rows[kept], self.at[kept], self.model.select(self.state, kept)
