"""Schedules made of values or of other schedules: piecewise, join, table."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

from freerun.arguments import is_number
from freerun.schedules.base import Schedule

__all__ = ["Join", "Piecewise", "Table"]


def _rising(name: str, values: object, *, lowest: float = 0) -> Iterable[str]:
    if not isinstance(values, tuple) or not all(is_number(value) for value in values):
        yield f"{name} must be numbers; got {values!r}"
    elif any(b <= a for a, b in pairwise(values)) or any(value < lowest for value in values):
        yield f"{name} must rise from {lowest} on, none twice; got {values}"


def _numbers(name: str, values: object) -> Iterable[str]:
    if not isinstance(values, tuple) or not values:
        yield f"{name} must be one or more numbers; got {values!r}"
    else:
        wrong = [(i, value) for i, value in enumerate(values) if not is_number(value)]
        if wrong:
            shown = ", ".join(f"[{i}] = {value!r}" for i, value in wrong[:3])
            yield f"{name} must be finite numbers; {len(wrong)} of {len(values)} are not: {shown}"


@dataclass(frozen=True, repr=False)
class Piecewise(Schedule):
    """Through given values at given steps; before the first and after the last it stays.

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
    summary: ClassVar[str] = "through given values at given steps"

    steps: tuple[float, ...]
    values: tuple[float, ...]
    interpolate: str = "linear"

    def problems(self) -> Iterable[str]:
        """Steps must rise, and have a value each."""
        yield from _rising("steps", self.steps)
        yield from _numbers("values", self.values)
        both = isinstance(self.steps, tuple) and isinstance(self.values, tuple)
        if both and len(self.steps) != len(self.values):
            yield f"steps and values must be equally many; got {len(self.steps)} and {len(self.values)}"
        if self.interpolate not in ("linear", "constant"):
            yield f"interpolate must be 'linear' or 'constant'; got {self.interpolate!r}"

    def at(self, position: float) -> float:
        """The value between the two positions around it."""
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
        """The positions given."""
        return self.steps


@dataclass(frozen=True, repr=False)
class Join(Schedule):
    """One schedule after another, each asked from its own beginning: ``schedules[i](s - boundaries[i - 1])``.

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
        """Schedules of one unit, and a boundary between each two."""
        parts = self.schedules if isinstance(self.schedules, tuple) else ()
        if len(parts) < 2 or not all(isinstance(part, Schedule) for part in parts):
            yield f"schedules must be two or more schedules; got {self.schedules!r}"
        for i, part in enumerate(parts):
            if isinstance(part, Schedule) and part.unit != self.unit:
                yield f"schedules[{i}] counts {part.unit}s, the join {self.unit}s: give both the same unit"
        yield from _rising("boundaries", self.boundaries)
        if isinstance(self.boundaries, tuple):
            need, got = max(len(parts) - 1, 1), len(self.boundaries)
            if need != got:
                yield f"{len(parts)} schedules need {need} boundaries; got {got}"
            if self.boundaries[:1] == (0,):
                yield "boundaries must be above 0: at 0 the first schedule would never be asked"

    def at(self, position: float) -> float:
        """The value of the schedule whose turn it is, counted from its boundary."""
        turn = sum(boundary <= position for boundary in self.boundaries)
        begun = self.boundaries[turn - 1] if turn else 0
        return self.schedules[turn].above_floor(position - begun)

    def knots(self) -> Sequence[float]:
        """The boundaries, and the knots of each schedule moved to its boundary."""
        found: list[float] = list(self.boundaries)
        for begun, part in zip((0, *self.boundaries), self.schedules, strict=True):
            found += [begun + knot for knot in part.knots()]
        return found


@dataclass(frozen=True, repr=False)
class Table(Schedule):
    """``values[s]``, and the last one ever after: a rate measured in another run, for instance.

    >>> rates = Table(values=(0.5, 0.25))
    >>> rates(0), rates(1), rates(7), rates
    (0.5, 0.25, 0.25, table(n=2, sha=9543aca8))
    """

    name: ClassVar[str] = "table"
    formula: ClassVar[str] = "values[min(s, n - 1)]"
    summary: ClassVar[str] = "a value for each step, e.g. measured in another run"

    values: tuple[float, ...]

    def problems(self) -> Iterable[str]:
        """At least one value, all finite."""
        return _numbers("values", self.values)

    def at(self, position: float) -> float:
        """The value at the whole position, the last one beyond the end."""
        return self.values[int(min(position, len(self.values) - 1))]

    def knots(self) -> Sequence[float]:
        """Every position."""
        return range(len(self.values))

    def __repr__(self) -> str:
        digest = hashlib.sha256(struct.pack(f"<{len(self.values)}d", *self.values)).hexdigest()[:8]
        extra = [f"floor={self.floor!r}"] if self.floor is not None else []
        extra += [f"unit={self.unit!r}"] if self.unit != "step" else []
        return f"table({', '.join([f'n={len(self.values)}', f'sha={digest}', *extra])})"
