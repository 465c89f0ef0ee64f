"""Which entries of the history are to be the model's own, and the noise that decides them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from freerun.draws import Draw
from freerun.types import Batch

__all__ = ["Plan"]


@dataclass(frozen=True, eq=False)
class Plan:
    """Entries to replace, ordered by position.

    Args:
        rows: (n,) the entries' places in the batch.
        times: (n,) their positions, rising.
        numbers: (n,) their rows' numbers in the global batch (randomness is a function of these).
        draw: from a prediction to an entry.
        key: what the noise is derived from.
    """

    rows: Tensor
    times: Tensor
    numbers: Tensor
    draw: Draw
    key: int

    @classmethod
    def of(cls, batch: Batch, keep: Tensor, draw: Draw, key: int) -> Plan:
        """The plan that a gate's ``keep`` asks for; entries that may not be replaced are left out."""
        times, rows = (batch.replaceable & ~keep).t().nonzero(as_tuple=True)
        return cls(rows, times, batch.row_numbers[rows], draw, key)

    def __len__(self) -> int:
        return self.rows.numel()

    @property
    def longest(self) -> int:
        """The largest number of replaced entries in one row."""
        return int(torch.bincount(self.rows).max()) if len(self) else 0

    def noise(self, vocab: int, part: slice = slice(None)) -> Tensor | None:
        """Noise for the entries of a part of the plan."""
        return self.draw.noise(self.key, self.numbers[part], self.times[part], vocab)

    @property
    def noise_is_small(self) -> bool:
        """Whether all noise may be made at once: it does not grow with the vocabulary."""
        return self.draw.noise_size(2) <= 1
