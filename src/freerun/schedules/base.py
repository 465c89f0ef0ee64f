"""What every schedule is, and questions that can be asked of one.

Schedules drive teacher-forcing ratios, noise rates, horizons and temperatures alike, so they know no [0, 1]:
whoever uses one checks its range with ``extremes``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import KW_ONLY, dataclass, fields
from typing import Any, ClassVar

from freerun.arguments import Arguments, is_number
from freerun.errors import UserError, whole
from freerun.types import step_number

__all__ = ["Schedule", "Shaped", "extremes", "moves", "positive", "value_at"]

UNITS = ("step", "sample", "epoch")
_EVERY_STEP = 20_000  # up to here a run is looked at step by step


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
    floor: float | None = None
    unit: str = "step"

    def __post_init__(self) -> None:
        for each in fields(self):
            value = getattr(self, each.name)
            # the repr is a signature: equal schedules print alike, so lengths are int where they can be
            number = _length if each.name in ("steps", "boundaries") else float
            if isinstance(value, list | tuple):
                object.__setattr__(self, each.name, tuple(number(v) if is_number(v) else v for v in value))
            elif is_number(value):
                object.__setattr__(self, each.name, number(value))
        problems = [*self._common_problems(), *self.problems()]
        if problems:
            raise UserError([f"{self.name}: {problem}" for problem in problems])

    def _common_problems(self) -> Iterable[str]:
        for each in fields(self):
            value = getattr(self, each.name)
            optional = each.type == "float | None" and value is None
            if each.type in ("float", "float | None") and not optional and not is_number(value):
                yield f"{each.name} must be a finite number; got {value!r}"
        if self.unit not in UNITS:
            yield f"unit must be one of {', '.join(UNITS)}; got {self.unit!r}"

    def problems(self) -> Iterable[str]:
        """What is wrong with the arguments of this schedule, a line each."""
        return ()

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
        """The value at a step.

        Raises:
            UserError: a step that is no whole number from 0 on, or does not carry the schedule's unit.
        """
        return self.above_floor(_position(step, self.unit))

    def __repr__(self) -> str:
        shown = {"floor": None, "unit": "step", "interpolate": "linear"}
        parts = [each.name for each in fields(self) if each.name not in shown]
        parts += [name for name, usual in shown.items() if getattr(self, name, usual) != usual]
        return f"{self.name}({', '.join(f'{part}={getattr(self, part)!r}' for part in parts)})"


def positive(name: str, value: float) -> Iterable[str]:
    """A problem where a length is not above 0."""
    if is_number(value) and not value > 0:
        yield f"{name} must be above 0; got {value}"


def _length(value: float) -> float:
    return int(value) if value == int(value) else float(value)


def _position(step: int, unit: str) -> float:
    if whole(step) is None:
        step_number(step)  # which says what a step is
    found = whole(step) if unit == "step" else getattr(step, unit, None)
    if found is None:
        raise UserError(
            f"the schedule counts {unit}s, but the step {int(step)} does not say which {unit} it is: pass"
            f" types.Step({int(step)}, {unit}=...), or use unit='step'"
        )
    if not found >= 0:
        raise UserError(f"a schedule is asked from {unit} 0 on; got {found}")
    return float(found)


@dataclass(frozen=True, repr=False)
class Shaped(Schedule):
    """``end + (start - end) * shape(position)``: falling where start > end, rising where start < end."""

    _: KW_ONLY
    start: float = 1.0
    end: float = 0.0

    def shape(self, position: float) -> float:
        """From 1 (or a little less) to 0."""
        raise NotImplementedError(f"{type(self).__name__} must define shape(position)")

    def at(self, position: float) -> float:
        """end + (start - end) * shape(position), never outside [start, end] by rounding."""
        share = self.shape(position)
        value = self.start if share == 1.0 else self.end + (self.start - self.end) * share
        return min(max(value, min(self.start, self.end)), max(self.start, self.end))


def value_at(x: float | Callable[[int], float], step: int) -> float:
    """A plain number as it is; a schedule's value at the step.

    >>> value_at(0.5, 3), value_at(lambda step: step / 10, 3)
    (0.5, 0.3)
    """
    return float(x(step)) if callable(x) else float(x)


def _asked(schedule: Callable[[int], float], steps: int) -> tuple[Callable[[Any], float], Iterable[float]]:
    """How to ask, and the positions of a run that have to be asked."""
    if not isinstance(schedule, Schedule):
        return schedule, range(steps) if steps <= _EVERY_STEP else _spread(steps)
    last = steps - 1 if schedule.unit == "step" else getattr(steps, schedule.unit, None)
    near = {0.0, math.inf if last is None else float(last)}
    for knot in schedule.knots():
        near |= {
            math.floor(knot) - 1.0,
            float(math.floor(knot)),
            float(math.ceil(knot)),
            math.ceil(knot) + 1.0,
        }
    inside = {position for position in near if 0 <= position <= max(near if last is None else (last,))}
    if last is not None and schedule.unit == "step":
        inside |= {float(x) for x in (range(steps) if steps <= _EVERY_STEP else _spread(steps))}
    return schedule.above_floor, sorted(inside)


def _spread(steps: int) -> Iterable[int]:
    return (i * (steps - 1) // (_EVERY_STEP - 1) for i in range(_EVERY_STEP))


def extremes(x: float | Callable[[int], float], steps: int) -> tuple[float, float, float, float]:
    """Where a parameter goes within a run: (lowest value, its step, highest value, its step).

    Every step of 0..steps-1 is asked up to 20,000 steps; beyond that an even grid and all knots, which is
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
    ask, positions = _asked(x, steps)
    try:
        values = [(float(ask(position)), position) for position in positions]
    except TypeError as error:
        raise UserError(f"{x!r} gives no number at every step ({error})") from error
    low = min(values, key=lambda pair: pair[0])
    high = max(values, key=lambda pair: pair[0])
    return low[0], _plain(low[1]), high[0], _plain(high[1])


def _plain(position: float) -> float:
    return int(position) if math.isfinite(position) and position == int(position) else position


def moves(x: float | Callable[[int], float], steps: int) -> bool:
    """Whether a parameter changes within a run of so many steps.

    >>> from freerun.schedules import linear
    >>> moves(linear(start=1.0, end=1.0, steps=100), 50), moves(0.5, 50)
    (False, False)
    """
    low, _, high, _ = extremes(x, steps)
    return low != high
