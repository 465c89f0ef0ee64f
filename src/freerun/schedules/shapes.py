"""Schedules of one number at each step."""

from __future__ import annotations

import hashlib
import math
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

from freerun.arguments import at_least, between, finite, is_number, one_of
from freerun.schedules.base import Ramp, Schedule, Shaped

BENGIO = "Bengio et al. 2015, Scheduled Sampling (arXiv:1506.03099)"


@dataclass(frozen=True, repr=False)
class Constant(Schedule):
    """The same value always: ``value``.

    Args:
        value: of every step.

    >>> Constant(0.75)(10)
    0.75
    """

    name: ClassVar[str] = "constant"
    formula: ClassVar[str] = "value"
    summary: ClassVar[str] = "the same value at every step"

    value: float = finite()

    def at(self, position: float) -> float:
        return self.value


@dataclass(frozen=True, repr=False)
class Linear(Ramp):
    """Straight from start to end in ``steps``, then end: ``shape(s) = max(0, 1 - s / steps)``.

    Bengio's ``max(eps_min, k - c s)`` is ``linear(start=k, end=0, steps=k / c, floor=eps_min)``.

    Args:
        steps: from start to end; in a recipe the whole run if left out.

    >>> [Linear(start=1.0, end=0.5, steps=100)(s) for s in (0, 50, 100, 1000)]
    [1.0, 0.75, 0.5, 0.5]
    """

    name: ClassVar[str] = "linear"
    formula: ClassVar[str] = "end + (start - end) * max(0, 1 - s / steps)"
    reference: ClassVar[str] = BENGIO
    summary: ClassVar[str] = "straight from start to end within steps"

    def shape(self, position: float) -> float:
        return max(0.0, 1.0 - position / self.steps)


@dataclass(frozen=True, repr=False)
class Cosine(Ramp):
    """Half a cosine from start to end in ``steps``: ``shape(s) = (1 + cos(pi min(1, s / steps))) / 2``.

    Args:
        steps: from start to end; in a recipe the whole run if left out.

    >>> [round(Cosine(steps=100)(s), 3) for s in (0, 50, 100, 1000)]
    [1.0, 0.5, 0.0, 0.0]
    """

    name: ClassVar[str] = "cosine"
    formula: ClassVar[str] = "end + (start - end) * (1 + cos(pi * min(1, s / steps))) / 2"
    summary: ClassVar[str] = "slow at both ends, within steps"

    def shape(self, position: float) -> float:
        return 0.5 * (1.0 + math.cos(math.pi * min(1.0, position / self.steps)))


@dataclass(frozen=True, repr=False)
class Exponential(Shaped):
    """``shape(s) = k ** s`` with 0 < k < 1; half of it is gone after ln 2 / -ln k.

    Args:
        k: what is left of the way to the end after a step, as a share.

    >>> Exponential(k=0.5)(3)
    0.125
    """

    name: ClassVar[str] = "exponential"
    formula: ClassVar[str] = "end + (start - end) * k ** s"
    reference: ClassVar[str] = BENGIO
    summary: ClassVar[str] = "fast at first, never quite at end"

    k: float = between(0, 1, ends="()", hint="the value is k ** s")

    def shape(self, position: float) -> float:
        return self.k**position


@dataclass(frozen=True, repr=False)
class InverseSigmoid(Shaped):
    """``shape(s) = k / (k + exp(s / k))`` with k >= 1: begins at k / (k + 1), not 1; 1/2 at s = k ln k.

    Computed as sigmoid(ln k - s / k), which does not overflow.

    Args:
        k: how slow: half way at step k ln k.

    >>> round(InverseSigmoid(k=10)(0), 4), round(InverseSigmoid(k=10)(23), 2), InverseSigmoid(k=10)(10**9)
    (0.9091, 0.5, 0.0)
    """

    name: ClassVar[str] = "inverse_sigmoid"
    formula: ClassVar[str] = "end + (start - end) * k / (k + exp(s / k))"
    reference: ClassVar[str] = BENGIO
    summary: ClassVar[str] = "stays near start, then falls; half way at k ln k"

    k: float = at_least(1, hint="about half way at s = k ln k")

    def shape(self, position: float) -> float:
        x = math.log(self.k) - position / self.k
        return 1.0 / (1.0 + math.exp(-x)) if x >= 0 else math.exp(x) / (1.0 + math.exp(x))


def _rising(name: str, values: object) -> Iterable[str]:
    if not isinstance(values, tuple) or not all(is_number(value) for value in values):
        yield f"{name} must be numbers; got {values!r}"
    elif any(b <= a for a, b in pairwise(values)) or any(value < 0 for value in values):
        yield f"{name} must rise from 0 on, none twice; got {values}"


def numbers_problems(name: str, values: object) -> Iterable[str]:
    """What is wrong with a tuple of numbers, if anything."""
    if not isinstance(values, tuple) or not values:
        yield f"{name} must be one or more numbers; got {values!r}"
    else:
        wrong = [(i, value) for i, value in enumerate(values) if not is_number(value)]
        if wrong:
            first = ", ".join(f"[{i}] = {value!r}" for i, value in wrong[:3])
            yield f"{name} must be finite numbers; {len(wrong)} of {len(values)} are not: {first}"


@dataclass(frozen=True, repr=False)
class Piecewise(Schedule):
    """Through chosen values at chosen steps; before the first and after the last it stays.

    Args:
        steps: positions, rising.
        values: one at each.
        interpolate: "linear" (straight lines) or "constant" (a value holds until the next position).

    >>> [Piecewise(steps=(0, 100), values=(1.0, 0.5))(s) for s in (0, 50, 200)]
    [1.0, 0.75, 0.5]
    >>> Piecewise(steps=(0, 100), values=(1.0, 0.5), interpolate="constant")(99)
    1.0
    """

    name: ClassVar[str] = "piecewise"
    formula: ClassVar[str] = "through values[i] at steps[i], straight or constant in between"
    summary: ClassVar[str] = "through chosen values at chosen steps"

    steps: tuple[float, ...]
    values: tuple[float, ...]
    interpolate: str = one_of(("linear", "constant"), "linear")

    def problems(self) -> Iterable[str]:
        yield from _rising("steps", self.steps)
        yield from numbers_problems("values", self.values)
        both = isinstance(self.steps, tuple) and isinstance(self.values, tuple)
        if both and len(self.steps) != len(self.values):
            yield f"steps and values must be equally many; got {len(self.steps)} and {len(self.values)}"

    def at(self, position: float) -> float:
        reached = sum(step <= position for step in self.steps)
        if reached == 0:
            return self.values[0]
        if reached == len(self.steps) or self.interpolate == "constant":
            return self.values[reached - 1]
        left, right = self.steps[reached - 1 : reached + 1]
        a, b = self.values[reached - 1 : reached + 1]
        share = (position - left) / (right - left)
        return min(max(a + (b - a) * share, min(a, b)), max(a, b))

    def knots(self) -> Sequence[float]:
        return self.steps


@dataclass(frozen=True, repr=False)
class Join(Schedule):
    """One schedule after another, each counted from its own beginning: ``schedules[i](s - boundaries[i - 1])``.

    Args:
        schedules: two or more, all counting in the same unit as the join.
        boundaries: where the second, third, ... begins; one fewer than the schedules, rising, above 0.

    >>> from freerun.schedules import constant, linear
    >>> warm = Join(schedules=(constant(1.0), linear(steps=10)), boundaries=(100,))
    >>> [warm(s) for s in (0, 99, 100, 105)]
    [1.0, 1.0, 1.0, 0.5]
    """

    name: ClassVar[str] = "join"
    formula: ClassVar[str] = "schedules[i](s - boundaries[i - 1])"
    summary: ClassVar[str] = "one schedule after another"

    schedules: tuple[Schedule, ...]
    boundaries: tuple[float, ...]

    def problems(self) -> Iterable[str]:
        parts = self.schedules if isinstance(self.schedules, tuple) else ()
        if len(parts) < 2 or not all(isinstance(part, Schedule) for part in parts):
            yield f"schedules must be two or more schedules; got {self.schedules!r}"
        for i, part in enumerate(parts):
            if isinstance(part, Schedule) and part.unit != self.unit:
                yield f"schedules[{i}] counts {part.unit}s, the join {self.unit}s: give both the same unit"
            if isinstance(part, Schedule) and part.observes:
                yield f"schedules[{i}] follows a dev score: {part.name} stands alone, as a parameter of a method"
        yield from _rising("boundaries", self.boundaries)
        if isinstance(self.boundaries, tuple):
            need, got = max(len(parts) - 1, 1), len(self.boundaries)
            if need != got:
                yield f"{len(parts)} schedules need {need} boundaries; got {got}"
            if self.boundaries[:1] == (0,):
                yield "boundaries must be above 0: at 0 the first schedule would never be used"

    def _turn(self, position: float) -> tuple[Schedule, float]:
        """The schedule of a position, and the position counted from its beginning."""
        turn = sum(boundary <= position for boundary in self.boundaries)
        return self.schedules[turn], position - (self.boundaries[turn - 1] if turn else 0)

    @property
    def draws(self) -> bool:
        return any(part.draws for part in self.schedules)

    def at(self, position: float) -> float:
        part, inside = self._turn(position)
        return part.above_floor(inside)

    def draw(self, position: float, u: float) -> float:
        part, inside = self._turn(position)
        return part.floored(part.draw(inside, u))

    def span(self, position: float) -> Sequence[float]:
        part, inside = self._turn(position)
        return [part.floored(value) for value in part.span(inside)]

    def knots(self) -> Sequence[float]:
        parts = zip((0, *self.boundaries), self.schedules, strict=True)
        return [*self.boundaries, *(begun + knot for begun, part in parts for knot in part.knots())]


@dataclass(frozen=True, repr=False)
class Table(Schedule):
    """``values[s]``, and the last one ever after: a rate measured in another run, for instance.

    Args:
        values: one for each step, from the first.

    >>> rates = Table(values=(0.5, 0.25))
    >>> rates(0), rates(1), rates(7), rates
    (0.5, 0.25, 0.25, table(n=2, sha=9543aca8))
    """

    name: ClassVar[str] = "table"
    formula: ClassVar[str] = "values[min(s, n - 1)]"
    summary: ClassVar[str] = "a value for each step, e.g. measured in another run"

    values: tuple[float, ...]

    def problems(self) -> Iterable[str]:
        return numbers_problems("values", self.values)

    def at(self, position: float) -> float:
        return self.values[int(min(position, len(self.values) - 1))]

    def knots(self) -> Sequence[float]:
        return range(len(self.values))

    def __repr__(self) -> str:
        digest = hashlib.sha256(struct.pack(f"<{len(self.values)}d", *self.values)).hexdigest()[:8]
        extra = [f"floor={self.floor!r}"] if self.floor is not None else []
        extra += [f"unit={self.unit!r}"] if self.unit != "step" else []
        return f"table({', '.join([f'n={len(self.values)}', f'sha={digest}', *extra])})"
