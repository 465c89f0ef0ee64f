"""Time stamps: how far apart they are, and what the calendar says of them."""

from __future__ import annotations

import calendar as months_of
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import pairwise

import numpy as np

from freerun.brief import brief
from freerun.data.integrate import Array

__all__ = ["CALENDAR", "Stamp", "Step", "calendar_columns", "calendar_names", "step_between"]

Stamp = datetime | float

_DAY = 86400.0

CALENDAR: dict[str, Callable[[datetime], float]] = {
    "minute": lambda t: (t.minute * 60 + t.second) / 3600,
    "hour": lambda t: (t.hour * 3600 + t.minute * 60 + t.second) / _DAY,
    "weekday": lambda t: t.weekday() / 7,
    "monthday": lambda t: (t.day - 1) / _days(t.year, t.month),
    "yearday": lambda t: (t.timetuple().tm_yday - 1) / (366 if months_of.isleap(t.year) else 365),
    "month": lambda t: (t.month - 1) / 12,
}
"""Name -> share of its cycle that is over at a time."""


def calendar_names(names: Sequence[str]) -> tuple[str, ...]:
    """The columns of calendar covariates.

    >>> calendar_names(["hour"])
    ('hour_sin', 'hour_cos')
    """
    return tuple(f"{name}_{wave}" for name in names for wave in ("sin", "cos"))


def calendar_columns(names: Sequence[str], stamps: Sequence[datetime]) -> Array:
    """(stamps, 2 * names): sine and cosine of each cycle.

    >>> calendar_columns(["hour"], [datetime(2020, 1, 1, 6)]).round(3).tolist()
    [[1.0, 0.0]]
    """
    angles = 2 * np.pi * np.array([[CALENDAR[name](stamp) for name in names] for stamp in stamps])
    angles = angles.reshape(len(stamps), len(names))
    return np.stack([np.sin(angles), np.cos(angles)], axis=-1).reshape(len(stamps), 2 * len(names))


@dataclass(frozen=True)
class Step:
    """How far apart two rows are: seconds, plain "units", "months" (same day) or "month-ends" (last days).

    >>> str(Step(3600.0, of="seconds")), Step.parse("1 month-ends").after(datetime(2020, 1, 31))
    ('3600 seconds', datetime.datetime(2020, 2, 29, 0, 0))
    """

    __repr__ = brief

    size: float
    of: str = "units"

    def __str__(self) -> str:
        return f"{self.size:.12g} {self.of}"

    @classmethod
    def parse(cls, text: str) -> Step:
        """The step that ``str`` told of."""
        size, of = text.split()
        return cls(float(size), of)

    def after(self, stamp: Stamp) -> Stamp:
        """The stamp one step on; ``datetime.max`` where that lies beyond the last year that Python has."""
        if not isinstance(stamp, datetime):
            return stamp + self.size
        try:
            return self._after(stamp)
        except (OverflowError, ValueError):
            return datetime.max

    def _after(self, stamp: datetime) -> datetime:
        if self.of not in ("months", "month-ends"):
            return stamp + timedelta(seconds=self.size)
        index = stamp.year * 12 + stamp.month - 1 + round(self.size)
        year, month = index // 12, index % 12 + 1
        days = _days(year, month)
        return stamp.replace(year=year, month=month, day=days if self.of == "month-ends" else min(stamp.day, days))


def step_between(stamps: Sequence[Stamp]) -> Step | None:
    """The usual distance of neighbouring rows: the commonest one, in months where all stamps are months apart.

    Rows that stand still or go back in time are left out; None where no row follows another.

    >>> str(step_between([datetime(2020, 1, 31), datetime(2020, 2, 29), datetime(2020, 3, 31)])), step_between([0.0])
    ('1 month-ends', None)
    """
    dates = [stamp for stamp in stamps if isinstance(stamp, datetime)]
    numbers = [stamp for stamp in stamps if not isinstance(stamp, datetime)]
    if len(numbers) > 1:
        # times written as decimal numbers are apart by almost, not quite, the same
        gaps = Counter(float(f"{after - before:.9g}") for before, after in pairwise(numbers) if after > before)
        return Step(gaps.most_common(1)[0][0]) if gaps else None
    if len(dates) < 2:
        return None
    gaps = Counter((after - before).total_seconds() for before, after in pairwise(dates) if after > before)
    if not gaps:
        return None
    months = (dates[1].year - dates[0].year) * 12 + dates[1].month - dates[0].month
    if months > 0 and len(gaps) > 1:
        for of in ("months", "month-ends"):
            step = Step(float(months), of)
            if all(step.after(before) == after for before, after in pairwise(dates)):
                return step
    return Step(gaps.most_common(1)[0][0], "seconds")


def _days(year: int, month: int) -> int:
    return months_of.monthrange(year, month)[1]
