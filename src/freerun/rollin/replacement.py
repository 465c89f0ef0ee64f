"""What is fed where values keep their graph: gold, own, or a blend of both."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from freerun.arguments import brief
from freerun.batch import Batch
from freerun.draws import Draw, check_width
from freerun.rollin.model import checked_rows


@dataclass(frozen=True, eq=False)
class Rolled:
    """A history as an engine made it.

    Args:
        history: (batch, time) ids or (batch, time, value): what the model is told.
        passes: model calls.
        work: positions computed, in forwards: 1 is batch x time of them.
        settled: whether the history is known to be the sequential one.
    """

    __repr__ = brief

    history: Tensor
    passes: int
    work: float
    settled: bool


def equal_entries(a: Tensor, b: Tensor) -> Tensor:
    """(n,) bool: which entries, (n,) ids or (n, value), are equal; NaN equals NaN, as the loss has to report it."""
    equal = (a == b) | (a.isnan() & b.isnan())
    return equal if equal.dim() == 1 else equal.all(-1)


_NUMBERS = 2**22
"""How many logits, or numbers of noise, are held at once where more would be made of them: 16 to 32 MiB."""


@dataclass(frozen=True, eq=False)
class Plan:
    """Entries to replace, ordered by position.

    Args:
        rows: (n,) the entries' places in the batch.
        times: (n,) their positions, rising.
        numbers: (n,) their rows' numbers in the global batch (randomness is a function of these).
        draw: from a prediction to an entry.
        key: what the noise is derived from.
        width: values an entry has, to hold against what the draw makes of the outputs; None: entries are ids.
    """

    __repr__ = brief

    rows: Tensor
    times: Tensor
    numbers: Tensor
    draw: Draw
    key: int
    width: int | None = None

    @classmethod
    def of(cls, batch: Batch, keep: Tensor, draw: Draw, key: int) -> Plan:
        """The plan that a gate's ``keep`` asks for; entries that may not be replaced are left out."""
        times, rows = (batch.replaceable & ~keep).t().nonzero(as_tuple=True)
        width = None if batch.is_discrete else batch.history.shape[2]
        return cls(rows, times, batch.row_numbers[rows], draw, key, width)

    def __len__(self) -> int:
        return self.rows.numel()

    @property
    def longest(self) -> int:
        """The largest number of replaced entries in one row."""
        return int(torch.bincount(self.rows).max()) if len(self) else 0

    def within(self, rows: Tensor) -> Plan:
        """The plan of some rows ((m,) places in the batch, rising), which become rows 0 to m-1."""
        place = torch.full((int(max(self.rows.max(), rows.max())) + 1,), -1, device=rows.device)
        place[rows] = torch.arange(len(rows), device=rows.device)
        place = place[self.rows]
        chosen = (place >= 0).nonzero().squeeze(1)
        return Plan(place[chosen], self.times[chosen], self.numbers[chosen], self.draw, self.key, self.width)

    def noise(self, vocab: int, part: slice | Tensor = slice(None)) -> Tensor | None:
        """Noise for the entries of a part of the plan."""
        return self.draw.noise(self.key, self.numbers[part], self.times[part], vocab)

    @property
    def noise_is_small(self) -> bool:
        """Whether all noise may be made at once: it does not grow with the vocabulary."""
        return self.draw.noise_size(2) <= 1

    @cached_property
    def _ready(self) -> Tensor | None:
        return self.noise(0)

    def choose(self, hidden: Tensor, head: Callable[[Tensor], Tensor], chosen: Tensor) -> Tensor:
        """The entries ``chosen`` ((m,) numbers of the plan's entries), from what the model holds before each.

        Logits and noise are made for so many entries at a time that neither grows with batch, time and vocabulary
        together; noise that grows with the vocabulary is made again from its key rather than kept.

        Args:
            hidden: (m, size), or the outputs themselves where ``head`` gives back what it is given.
            head: from hidden vectors to outputs.
            chosen: numbers of the entries.

        Raises:
            UserError: outputs of which the draw cannot make a value.
        """
        if len(chosen) == 0:
            return chosen
        first = self.check(head(hidden[:1]), 1)
        at_once = max(1, _NUMBERS // first[0].numel())
        found = [
            self.draw.choose(head(part), self._noise_of(numbers, first.shape[-1]))
            for part, numbers in zip(hidden.split(at_once), chosen.split(at_once), strict=True)
        ]
        return found[0] if len(found) == 1 else torch.cat(found)

    def check(self, outputs: Tensor, rows: int) -> Tensor:
        """Outputs (rows, numbers), refused where they are none or the draw cannot make of them what is fed back."""
        if self.width is not None:
            check_width(self.draw, checked_rows(outputs, rows), self.width)
        return checked_rows(outputs, rows)

    def _noise_of(self, chosen: Tensor, vocab: int) -> Tensor | None:
        if not self.noise_is_small:
            return self.noise(vocab, chosen)
        return None if self._ready is None else self._ready[chosen]


@dataclass(frozen=True, eq=False)
class Mixing:
    """What is fed: gold, or the model's own value with its gradient, or a share of each.

    Args:
        gold: (batch, time, value).
        keep: (batch, time) bool, True = gold, or shares of gold in [0, 1]; True (or 1) where an entry may not be
            replaced.
        draw: from a prediction to a value, differentiable.
        numbers: (batch,) the rows' numbers in the global batch, which noise is a function of.
        key: what noise is derived from.
        detached: whether own values are fed without their gradient.
    """

    __repr__ = brief

    gold: Tensor
    keep: Tensor
    draw: Draw
    numbers: Tensor
    key: int
    detached: bool = False

    @classmethod
    def of(cls, batch: Batch, keep: Tensor, draw: Draw, key: int, detached: bool = False) -> Mixing:
        """What a gate's ``keep`` asks for; entries that may not be replaced are kept."""
        kept = batch.replaceable.logical_not()
        keep = keep | kept if keep.dtype == torch.bool else torch.where(kept, 1.0, keep).to(keep.dtype)
        return cls(batch.history, keep, draw, batch.row_numbers, key, detached)

    @property
    def replaced(self) -> Tensor:
        """(batch, time) bool: entries that are not all gold."""
        return ~self.keep if self.keep.dtype == torch.bool else self.keep < 1

    def entries(self, outputs: Tensor, at: int) -> Tensor:
        """(batch, value) fed at a position, given the (batch, width) outputs there."""
        noise = None
        if self.draw.noise_size(outputs.shape[-1]):
            places = torch.full_like(self.numbers, at)
            noise = self.draw.noise(self.key, self.numbers, places, outputs.shape[-1])
        return self._mixed(self.draw.choose(outputs, noise), self.gold[:, at], self.keep[:, at])

    def all_entries(self, outputs: Tensor) -> Tensor:
        """(batch, time, value) fed, given the (batch, time, width) outputs of a whole pass."""
        size, time, width = outputs.shape
        noise = None
        if self.draw.noise_size(width):
            places = torch.arange(time, device=outputs.device).repeat(size)
            noise = self.draw.noise(self.key, self.numbers.repeat_interleave(time), places, width)
        check_width(self.draw, outputs, self.gold.shape[-1])
        own = self.draw.choose(outputs.flatten(0, 1), noise)
        return self._mixed(own.unflatten(0, (size, time)), self.gold, self.keep)

    def _mixed(self, own: Tensor, gold: Tensor, keep: Tensor) -> Tensor:
        own = own.detach() if self.detached else own
        own, keep = own.to(gold.dtype), keep[..., None]
        if keep.dtype == torch.bool:
            return torch.where(keep, gold, own)
        # at the ends exactly one of both: 0 times an infinite value would be NaN
        return torch.where(keep >= 1, gold, torch.where(keep <= 0, own, keep * gold + (1 - keep) * own))
