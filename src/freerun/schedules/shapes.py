"""Schedules with a formula: constant, linear, cosine, exponential, inverse sigmoid."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import KW_ONLY, dataclass
from typing import ClassVar

from freerun.arguments import is_number
from freerun.schedules.base import Schedule, Shaped, positive

__all__ = ["Constant", "Cosine", "Exponential", "InverseSigmoid", "Linear"]

BENGIO = "Bengio et al. 2015, Scheduled Sampling (arXiv:1506.03099)"


def _sigmoid(x: float) -> float:
    if x >= 0:
        return 1.0 / (1.0 + math.exp(-x))
    return math.exp(x) / (1.0 + math.exp(x))


@dataclass(frozen=True, repr=False)
class Constant(Schedule):
    """The same value always: ``value``.

    >>> Constant(0.75)(10)
    0.75
    """

    name: ClassVar[str] = "constant"
    formula: ClassVar[str] = "value"
    summary: ClassVar[str] = "the same value at every step"

    value: float

    def at(self, position: float) -> float:
        """value."""
        return self.value


@dataclass(frozen=True, repr=False)
class Linear(Shaped):
    """Straight from start to end in ``steps``, then end: ``shape(s) = max(0, 1 - s / steps)``.

    Bengio's ``max(eps_min, k - c s)`` is ``linear(start=k, end=0, steps=k / c, floor=eps_min)``.

    >>> [Linear(start=1.0, end=0.5, steps=100)(s) for s in (0, 50, 100, 1000)]
    [1.0, 0.75, 0.5, 0.5]
    """

    name: ClassVar[str] = "linear"
    formula: ClassVar[str] = "end + (start - end) * max(0, 1 - s / steps)"
    reference: ClassVar[str] = BENGIO
    summary: ClassVar[str] = "straight from start to end within steps"

    _: KW_ONLY
    steps: float

    def problems(self) -> Iterable[str]:
        """Steps must be above 0."""
        return positive("steps", self.steps)

    def shape(self, position: float) -> float:
        """max(0, 1 - s / steps)."""
        return max(0.0, 1.0 - position / self.steps)

    def knots(self) -> Sequence[float]:
        """Where it ends."""
        return (self.steps,)


@dataclass(frozen=True, repr=False)
class Cosine(Shaped):
    """Half a cosine from start to end in ``steps``: ``shape(s) = (1 + cos(pi min(1, s / steps))) / 2``.

    >>> [round(Cosine(steps=100)(s), 3) for s in (0, 50, 100, 1000)]
    [1.0, 0.5, 0.0, 0.0]
    """

    name: ClassVar[str] = "cosine"
    formula: ClassVar[str] = "end + (start - end) * (1 + cos(pi * min(1, s / steps))) / 2"
    summary: ClassVar[str] = "slow at both ends, within steps"

    _: KW_ONLY
    steps: float

    def problems(self) -> Iterable[str]:
        """Steps must be above 0."""
        return positive("steps", self.steps)

    def shape(self, position: float) -> float:
        """(1 + cos(pi min(1, s / steps))) / 2."""
        return 0.5 * (1.0 + math.cos(math.pi * min(1.0, position / self.steps)))

    def knots(self) -> Sequence[float]:
        """Where it ends."""
        return (self.steps,)


@dataclass(frozen=True, repr=False)
class Exponential(Shaped):
    """``shape(s) = k ** s`` with 0 < k < 1; half of it is gone after ln 2 / -ln k.

    >>> Exponential(k=0.5)(3)
    0.125
    """

    name: ClassVar[str] = "exponential"
    formula: ClassVar[str] = "end + (start - end) * k ** s"
    reference: ClassVar[str] = BENGIO
    summary: ClassVar[str] = "fast at first, never quite at end"

    k: float

    def problems(self) -> Iterable[str]:
        """0 < k < 1."""
        if is_number(self.k) and not 0 < self.k < 1:
            yield f"k must lie strictly between 0 and 1 (the value is k ** s); got {self.k}"

    def shape(self, position: float) -> float:
        """k ** s."""
        return self.k**position


@dataclass(frozen=True, repr=False)
class InverseSigmoid(Shaped):
    """``shape(s) = k / (k + exp(s / k))`` with k >= 1: begins at k / (k + 1), not 1; 1/2 at s = k ln k.

    Computed as sigmoid(ln k - s / k), which does not overflow.

    >>> round(InverseSigmoid(k=10)(0), 4), round(InverseSigmoid(k=10)(23), 2), InverseSigmoid(k=10)(10**9)
    (0.9091, 0.5, 0.0)
    """

    name: ClassVar[str] = "inverse_sigmoid"
    formula: ClassVar[str] = "end + (start - end) * k / (k + exp(s / k))"
    reference: ClassVar[str] = BENGIO
    summary: ClassVar[str] = "stays near start, then falls; half way at k ln k"

    k: float

    def problems(self) -> Iterable[str]:
        """K >= 1."""
        if is_number(self.k) and not self.k >= 1:
            yield f"k must be at least 1 (about half way at s = k ln k); got {self.k}"

    def shape(self, position: float) -> float:
        """sigmoid(ln k - s / k)."""
        return _sigmoid(math.log(self.k) - position / self.k)
