"""What is fed where values keep their graph: gold, own, or a blend of both."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from freerun.brief import brief
from freerun.draws import Draw, check_width
from freerun.types import Batch

__all__ = ["Mixing"]


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
