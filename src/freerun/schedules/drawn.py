"""Schedules whose value is drawn at every update, by a law that may itself move."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from freerun.arguments import is_number
from freerun.errors import UserError
from freerun.schedules.base import Schedule
from freerun.schedules.shapes import numbers_problems


@dataclass(frozen=True, repr=False)
class _Drawn(Schedule):
    """A number drawn at every update, the same for all rows, micro-batches and processes."""

    @property
    def draws(self) -> bool:
        return True

    def _parts(self) -> Sequence[tuple[str, Any]]:
        """Numbers and schedules that the law is made of, by name."""
        raise NotImplementedError

    def problems(self) -> Iterable[str]:
        for name, part in self._parts():
            if isinstance(part, Schedule) and part.draws:
                yield f"{name} draws itself: use one that does not"
            elif isinstance(part, Schedule) and part.observes:
                yield f"{name} follows a dev score: {part.name} stands alone, as a parameter of a method"
            elif isinstance(part, Schedule) and part.unit != self.unit:
                yield f"{name} counts {part.unit}s, and {self.name} {self.unit}s: give both the same unit"
            elif not isinstance(part, Schedule) and not is_number(part):
                yield f"{name} must be a number or a schedule; got {part!r}"

    def knots(self) -> Sequence[float]:
        return [knot for _, part in self._parts() if isinstance(part, Schedule) for knot in part.knots()]


def _part_at(part: float | Schedule, position: float) -> float:
    return part.above_floor(position) if isinstance(part, Schedule) else part


@dataclass(frozen=True, repr=False)
class Uniform(_Drawn):
    """A whole number drawn at every update: low, ..., high, each as probable (both rounded down).

    Args:
        low: the least.
        high: the largest; as a schedule that rises the law of message-passing PDE solvers.

    >>> from freerun.schedules import Linear
    >>> law = Uniform(1, Linear(start=1, end=12, steps=110))
    >>> law(0), law(110), law(110, key=7)
    (1.0, 6.5, 9.0)
    """

    name: ClassVar[str] = "uniform"
    formula: ClassVar[str] = "a whole number drawn evenly from low(s) to high(s)"
    reference: ClassVar[str] = "Brandstetter et al. 2022, Message Passing Neural PDE Solvers (arXiv:2202.03376)"
    summary: ClassVar[str] = "a whole number from low to high, drawn at every update"

    low: float | Schedule
    high: float | Schedule

    def _parts(self) -> Sequence[tuple[str, Any]]:
        return ("low", self.low), ("high", self.high)

    def problems(self) -> Iterable[str]:
        yield from super().problems()
        low, high = self.low, self.high
        if not isinstance(low, Schedule) and not isinstance(high, Schedule) and is_number(high) and high < low:
            yield f"high must be at least low = {low:g}; got {high:g}"

    def span(self, position: float) -> Sequence[float]:
        # a nominal 0.3 * 10 is 2.999...
        low, high = (math.floor(_part_at(part, position) + 1e-9) for part in (self.low, self.high))
        if high < low:
            raise UserError(f"{self!r} has nothing to draw at {self.unit} {position:g}: high {high} is below low {low}")
        return low, high

    def at(self, position: float) -> float:
        return sum(self.span(position)) / 2

    def draw(self, position: float, u: float) -> float:
        low, high = self.span(position)
        return float(low + int(u * (high - low + 1)))


@dataclass(frozen=True, repr=False)
class Choice(_Drawn):
    """One of some values drawn at every update, ``values[i]`` with probability ``weights[i] / sum(weights)``.

    Args:
        values: what is drawn.
        weights: 0 or more, a number or a schedule for each value; None: all the same.

    >>> from freerun.schedules import Linear
    >>> law = Choice(values=(1, 4, 12), weights=(Linear(steps=100), 0.5, Linear(start=0, end=1, steps=100)))
    >>> law(0), law(0, key=7), law(100, key=8)
    (2.0, 4.0, 4.0)
    """

    name: ClassVar[str] = "choice"
    formula: ClassVar[str] = "v_i of the values with probability w_i(s) / sum_j w_j(s)"
    reference: ClassVar[str] = "Watt-Meyer et al. 2023, ACE (arXiv:2310.02074), whose code draws its number of steps so"
    summary: ClassVar[str] = "one of some values, drawn at every update"

    values: tuple[float, ...]
    weights: tuple[float | Schedule, ...] | None = None

    def _parts(self) -> Sequence[tuple[str, Any]]:
        return [(f"weights[{i}]", each) for i, each in enumerate(self.weights or ())]

    def problems(self) -> Iterable[str]:
        yield from numbers_problems("values", self.values)
        if self.weights is not None and not isinstance(self.weights, tuple):
            yield f"weights must be a number or a schedule for each value; got {self.weights!r}"
            return
        yield from super().problems()
        if self.weights is not None and len(self.weights) != len(self.values):
            yield f"values and weights must be equally many; got {len(self.values)} and {len(self.weights)}"
        plain = [part for part in self.weights or () if not isinstance(part, Schedule) and is_number(part)]
        if any(part < 0 for part in plain) or (plain and len(plain) == len(self.weights or ()) and not any(plain)):
            yield f"weights must be 0 or more, and not all 0; got {self.weights}"

    def _masses(self, position: float) -> list[float]:
        if self.weights is None:
            return [1.0] * len(self.values)
        masses = [_part_at(part, position) for part in self.weights]
        if min(masses) < 0 or not sum(masses) > 0:
            raise UserError(f"{self!r} has weights {masses} at {self.unit} {position:g}: 0 or more, and not all 0")
        return masses

    def span(self, position: float) -> Sequence[float]:
        self._masses(position)
        return min(self.values), max(self.values)

    def at(self, position: float) -> float:
        masses = self._masses(position)
        return sum(m * v for m, v in zip(masses, self.values, strict=True)) / sum(masses)

    def draw(self, position: float, u: float) -> float:
        masses = self._masses(position)
        left = u * sum(masses)
        likely = [(mass, value) for mass, value in zip(masses, self.values, strict=True) if mass > 0]
        for mass, value in likely:
            left -= mass
            if left < 0:
                return value
        return likely[-1][1]  # rounding
