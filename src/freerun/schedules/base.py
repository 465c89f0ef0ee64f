"""What every schedule is, and where the values of one go within a run."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import KW_ONLY, dataclass, fields
from typing import Any, ClassVar

import torch

from freerun import keys
from freerun.arguments import Arguments, above, finite, is_number, one_of
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

    To write another: a frozen dataclass with ``at(position) -> float``; one that draws (``uniform``, ``choice``) also
    has ``draws``, ``draw`` and ``span``.
    """

    name: ClassVar[str] = "schedule"
    formula: ClassVar[str] = ""
    reference: ClassVar[str] = ""
    summary: ClassVar[str] = ""
    observes: ClassVar[bool] = False
    """True if the value follows scores, which a trainer passes to ``observe``."""

    _: KW_ONLY
    floor: float | None = finite(None)
    unit: str = one_of(UNITS, "step")

    def __post_init__(self) -> None:
        for each in fields(self):
            value = getattr(self, each.name)
            # the repr is a signature: equal schedules print the same, so lengths are int where they can be
            number = _length if each.name in ("steps", "boundaries", "patience") else float
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

    @property
    def draws(self) -> bool:
        """True if the value at a position is drawn; ``at`` is then its mean."""
        return False

    def draw(self, position: float, u: float) -> float:
        """The value at a position for a number u in [0, 1), before the floor."""
        return self.at(position)

    def span(self, position: float) -> Sequence[float]:
        """The values at a position between which all lie, before the floor."""
        return (self.at(position),)

    def knots(self) -> Sequence[float]:
        """Positions between which the schedule only rises or only falls."""
        return ()

    def floored(self, value: float) -> float:
        """The value, but never below the floor."""
        return value if self.floor is None else max(self.floor, value)

    def above_floor(self, position: float) -> float:
        """The value at a position counted in the schedule's unit."""
        return self.floored(self.at(position))

    def __call__(self, step: int, *, key: int | None = None) -> float:
        """The value at a step, of one that draws the mean, or with a key what is drawn.

        A step that is no whole number from 0 on, or lacks the unit, is a UserError.
        """
        position = _position(step, self.unit)
        if key is None or not self.draws:
            return self.above_floor(position)
        return self.floored(self.draw(position, float(keys.uniform(key, torch.zeros((), dtype=torch.long)))))

    def __repr__(self) -> str:
        defaults = {"floor": None, "unit": "step", "interpolate": "linear", "weights": None}
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
class Ramp(Shaped):
    """A shape that is done after ``steps``."""

    _: KW_ONLY
    steps: float = above(0)

    def knots(self) -> Sequence[float]:
        return (self.steps,)


def value_at(x: float | Callable[[int], float], step: int) -> float:
    """A plain number as it is; a schedule's value at the step, its mean where it draws.

    >>> value_at(0.5, 3), value_at(lambda step: step / 10, 3)
    (0.5, 0.3)
    """
    return float(x(step)) if callable(x) else float(x)


def _sampled(schedule: Callable[[int], float], steps: int) -> tuple[Callable[[Any], Iterable[float]], Iterable[float]]:
    """The function to call, and the positions of a run at which its extremes can lie."""
    grid = range(steps) if steps <= _EVERY_STEP else _spread(steps)
    if not isinstance(schedule, Schedule):
        return lambda step: (schedule(step),), grid
    last = steps - 1 if schedule.unit == "step" else getattr(steps, schedule.unit, None)
    near = {0.0, math.inf if last is None else float(last)}
    for knot in schedule.knots():
        low, high = float(math.floor(knot)), float(math.ceil(knot))
        near |= {low - 1, low, high, high + 1}
    inside = {position for position in near if 0 <= position <= max(near if last is None else (last,))}
    if schedule.unit == "step":
        inside |= set(map(float, grid))
    return lambda position: map(schedule.floored, schedule.span(position)), sorted(inside)


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
        values = [(float(value), position) for position in positions for value in function(position)]
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
