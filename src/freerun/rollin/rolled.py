"""What an engine gives back, and when two entries are the same."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from freerun.brief import brief

__all__ = ["Rolled", "same"]


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


def same(a: Tensor, b: Tensor) -> Tensor:
    """(n,) bool: which entries, (n,) ids or (n, value), are equal; NaN equals NaN, as the loss has to report it."""
    equal = (a == b) | (a.isnan() & b.isnan())
    return equal if equal.dim() == 1 else equal.all(-1)
