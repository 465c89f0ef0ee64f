"""Schedules: a step of the training in, a number out; pure, frozen, printable, comparable.

>>> from freerun import schedules
>>> schedules.linear(start=1.0, end=0.5, steps=100)
linear(start=1.0, end=0.5, steps=100)
"""

from __future__ import annotations

import hashlib
import math
import struct
from collections.abc import Callable, Iterable, Sequence
from dataclasses import KW_ONLY, dataclass, fields
from itertools import pairwise
from typing import Any, ClassVar

from freerun.arguments import Arguments, above, at_least, between, finite, is_number, one_of
from freerun.errors import UserError, whole
from freerun.types import step_number

UNITS = ("step", "sample", "epoch")
_EVERY_STEP = 20_000  # up to here a run is evaluated step by step


@dataclass(frozen=True, repr=False)
class Schedule(Arguments):
    """A number for every step: ``max(floor, at(position))``, the position counted in ``unit``.

    Args:
        floor: the value is never below it; None: no floor.
        unit: what is counted: "step" (optimizer steps), "sample" or "epoch"; the last two need a ``Step``
            that carries them, as the training loop passes.

    Raises:
        UserError: at construction for arguments out of range, all at once; at a call for a negative step, or
            one that does not carry the unit.

    To write another: a frozen dataclass with ``at(position) -> float``.
    """

    name: ClassVar[str] = "schedule"
    formula: ClassVar[str] = ""
    reference: ClassVar[str] = ""
    summary: ClassVar[str] = ""

    _: KW_ONLY
    floor: float | None = finite(None)
    unit: str = one_of(UNITS, "step")

    def __post_init__(self) -> None:
        for each in fields(self):
            value = getattr(self, each.name)
            # the repr is a signature: equal schedules print the same, so lengths are int where they can be
            number = _length if each.name in ("steps", "boundaries") else float
            if isinstance(value, list | tuple):
                object.__setattr__(self, each.name, tuple(number(v) if is_number(v) else v for v in value))
            elif is_number(value):
                object.__setattr__(self, each.name, number(value))
        try:
            super().__post_init__()
        except UserError as error:
            raise UserError([f"{self.name}: {problem}" for problem in error.problems]) from None

    def at(self, position: float) -> float:
        """The value at a position >= 0 counted in the schedule's unit, before the floor."""
        raise NotImplementedError(f"{type(self).__name__} must define at(position)")

    def knots(self) -> Sequence[float]:
        """Positions between which the schedule only rises or only falls."""
        return ()

    def above_floor(self, position: float) -> float:
        """The value at a position counted in the schedule's unit."""
        value = self.at(position)
        return value if self.floor is None else max(self.floor, value)

    def __call__(self, step: int) -> float:
        """The value at a step; one that is no whole number from 0 on, or lacks the unit, is a UserError."""
        return self.above_floor(_position(step, self.unit))

    def __repr__(self) -> str:
        defaults = {"floor": None, "unit": "step", "interpolate": "linear"}
        parts = [each.name for each in fields(self) if each.name not in defaults]
        parts += [name for name, default in defaults.items() if getattr(self, name, default) != default]
        return f"{self.name}({', '.join(f'{part}={getattr(self, part)!r}' for part in parts)})"


def _length(value: float) -> float:
    return int(value) if value == int(value) else float(value)


def _position(step: int, unit: str) -> float:
    if whole(step) is None:
        step_number(step)  # its error explains what a step is
    position = whole(step) if unit == "step" else getattr(step, unit, None)
    if position is None:
        raise UserError(
            f"the schedule counts {unit}s, but the step {int(step)} does not say which {unit} it is: pass"
            f" types.Step({int(step)}, {unit}=...), or use unit='step'"
        )
    if not position >= 0:
        raise UserError(f"a schedule begins at {unit} 0; got {position}")
    return float(position)


@dataclass(frozen=True, repr=False)
class Shaped(Schedule):
    """``end + (start - end) * shape(position)``: falling where start > end, rising where start < end.

    Args:
        start: the value that it comes from.
        end: the value that it goes to.
    """

    _: KW_ONLY
    start: float = finite(1.0)
    end: float = finite(0.0)

    def shape(self, position: float) -> float:
        """From 1 (or a little less) to 0."""
        raise NotImplementedError(f"{type(self).__name__} must define shape(position)")

    def at(self, position: float) -> float:
        share = self.shape(position)
        value = self.start if share == 1.0 else self.end + (self.start - self.end) * share
        # rounding may not leave [start, end]
        return min(max(value, min(self.start, self.end)), max(self.start, self.end))


@dataclass(frozen=True, repr=False)
class _Ramp(Shaped):
    _: KW_ONLY
    steps: float = above(0)

    def knots(self) -> Sequence[float]:
        return (self.steps,)


def value_at(x: float | Callable[[int], float], step: int) -> float:
    """A plain number as it is; a schedule's value at the step.

    >>> value_at(0.5, 3), value_at(lambda step: step / 10, 3)
    (0.5, 0.3)
    """
    return float(x(step)) if callable(x) else float(x)


def _sampled(schedule: Callable[[int], float], steps: int) -> tuple[Callable[[Any], float], Iterable[float]]:
    """The function to call, and the positions of a run at which its extremes can lie."""
    grid = range(steps) if steps <= _EVERY_STEP else _spread(steps)
    if not isinstance(schedule, Schedule):
        return schedule, grid
    last = steps - 1 if schedule.unit == "step" else getattr(steps, schedule.unit, None)
    near = {0.0, math.inf if last is None else float(last)}
    for knot in schedule.knots():
        low, high = float(math.floor(knot)), float(math.ceil(knot))
        near |= {low - 1, low, high, high + 1}
    inside = {position for position in near if 0 <= position <= max(near if last is None else (last,))}
    if schedule.unit == "step":
        inside |= set(map(float, grid))
    return schedule.above_floor, sorted(inside)


def _spread(steps: int) -> Iterable[int]:
    return (i * (steps - 1) // (_EVERY_STEP - 1) for i in range(_EVERY_STEP))


def extremes(x: float | Callable[[int], float], steps: int) -> tuple[float, float, float, float]:
    """Where a parameter goes within a run: (lowest value, its step, highest value, its step).

    Every step of 0..steps-1 is evaluated up to 20,000 steps; beyond that an even grid and all knots, which is
    exact for the schedules here, as they only rise or only fall in between.

    Args:
        x: a number, a schedule, or any callable from step to number.
        steps: length of the run. For a schedule counting samples or epochs, a ``Step`` carrying the run's
            length in that unit; without it the schedule's whole life counts, and positions may be ``inf``.

    Raises:
        UserError: for fewer than one step.

    >>> from freerun.schedules import linear
    >>> extremes(linear(start=1.0, end=0.5, steps=100), 51)
    (0.75, 50, 1.0, 0)
    """
    if whole(steps) is None or steps < 1:
        raise UserError(f"a run has at least one step; got {steps!r}")
    if not callable(x):
        return float(x), 0, float(x), 0
    function, positions = _sampled(x, steps)
    try:
        values = [(float(function(position)), position) for position in positions]
    except TypeError as error:
        raise UserError(f"{x!r} gives no number at every step ({error})") from error
    low, high = (choose(values, key=lambda pair: pair[0]) for choose in (min, max))
    return low[0], _plain(low[1]), high[0], _plain(high[1])


def _plain(position: float) -> float:
    return int(position) if math.isfinite(position) and position == int(position) else position


def moves(x: float | Callable[[int], float], steps: int) -> bool:
    """Return True if a parameter changes within a run of so many steps.

    >>> from freerun.schedules import linear
    >>> moves(linear(start=1.0, end=1.0, steps=100), 50), moves(0.5, 50)
    (False, False)
    """
    low, _, high, _ = extremes(x, steps)
    return low != high


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
class Linear(_Ramp):
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
class Cosine(_Ramp):
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


def _numbers(name: str, values: object) -> Iterable[str]:
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
        yield from _numbers("values", self.values)
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
        yield from _rising("boundaries", self.boundaries)
        if isinstance(self.boundaries, tuple):
            need, got = max(len(parts) - 1, 1), len(self.boundaries)
            if need != got:
                yield f"{len(parts)} schedules need {need} boundaries; got {got}"
            if self.boundaries[:1] == (0,):
                yield "boundaries must be above 0: at 0 the first schedule would never be used"

    def at(self, position: float) -> float:
        turn = sum(boundary <= position for boundary in self.boundaries)
        begun = self.boundaries[turn - 1] if turn else 0
        return self.schedules[turn].above_floor(position - begun)

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
        return _numbers("values", self.values)

    def at(self, position: float) -> float:
        return self.values[int(min(position, len(self.values) - 1))]

    def knots(self) -> Sequence[float]:
        return range(len(self.values))

    def __repr__(self) -> str:
        digest = hashlib.sha256(struct.pack(f"<{len(self.values)}d", *self.values)).hexdigest()[:8]
        extra = [f"floor={self.floor!r}"] if self.floor is not None else []
        extra += [f"unit={self.unit!r}"] if self.unit != "step" else []
        return f"table({', '.join([f'n={len(self.values)}', f'sha={digest}', *extra])})"


constant, linear, cosine, piecewise, join, table = Constant, Linear, Cosine, Piecewise, Join, Table
exponential, inverse_sigmoid = Exponential, InverseSigmoid

SCHEDULES: dict[str, type[Schedule]] = {
    each.name: each for each in (Constant, Linear, Exponential, InverseSigmoid, Cosine, Piecewise, Join, Table)
}


def __getattr__(name: str) -> Any:
    if name in ("falling", "rising"):
        ends = ", start=0.0, end=1.0" if name == "rising" else ""
        raise UserError(
            f"fr.{name}(steps) is a method, with a schedule inside: use it as it is; as a schedule write "
            f"inverse_sigmoid(k=...{ends}), or linear(start=..., end=..., steps=...)"
        )
    raise AttributeError(f"module 'freerun.schedules' has no attribute {name!r}")
