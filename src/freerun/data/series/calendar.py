"""Time stamps: how far apart they are, and what the calendar says of them."""

from __future__ import annotations

import calendar as months_of
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import pairwise

import numpy as np

from freerun.data.integrate import Array

__all__ = ["CALENDAR", "Stamp", "Step", "calendar_columns", "calendar_names", "step_between"]

Stamp = datetime | float

_DAY = 86400.0

CALENDAR: dict[str, Callable[[datetime], float]] = {
    "minute": lambda t: (t.minute * 60 + t.second) / 3600,
    "hour": lambda t: (t.hour * 3600 + t.minute * 60 + t.second) / _DAY,
    "weekday": lambda t: t.weekday() / 7,
    "monthday": lambda t: (t.day - 1) / months_of.monthrange(t.year, t.month)[1],
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
    """How far apart two rows are: so many months, or so much (seconds for time stamps, else plain numbers).

    >>> str(Step(3600.0, of="seconds")), Step.parse("1 months").after(datetime(2020, 1, 31))
    ('3600 seconds', datetime.datetime(2020, 2, 29, 0, 0))
    """

    size: float
    of: str = "units"

    def __str__(self) -> str:
        return f"{self.size:g} {self.of}"

    @classmethod
    def parse(cls, text: str) -> Step:
        """The step that ``str`` told of."""
        size, of = text.split()
        return cls(float(size), of)

    def after(self, stamp: Stamp, times: int = 1, last_day: bool = True) -> Stamp:
        """The stamp so many steps on; ``last_day``: the end of a month leads to the end of a month."""
        if not isinstance(stamp, datetime):
            return stamp + times * self.size
        if self.of != "months":
            return stamp + times * timedelta(seconds=self.size)
        index = stamp.year * 12 + stamp.month - 1 + times * round(self.size)
        days = months_of.monthrange(index // 12, index % 12 + 1)[1]
        ends = last_day and stamp.day == months_of.monthrange(stamp.year, stamp.month)[1]
        return stamp.replace(year=index // 12, month=index % 12 + 1, day=days if ends else min(stamp.day, days))


def step_between(stamps: Sequence[Stamp]) -> Step | None:
    """The usual distance of neighbouring rows: the commonest one, in months where all stamps are months apart.

    >>> str(step_between([datetime(2020, 1, 31), datetime(2020, 2, 29), datetime(2020, 3, 31)])), step_between([0.0])
    ('1 months', None)
    """
    if len(stamps) < 2:
        return None
    first = stamps[0]
    if not isinstance(first, datetime):
        numbers = np.array(stamps, dtype=np.float64)
        # times written as decimal numbers are apart by almost, not quite, the same
        apart = Counter(float(f"{gap:.9g}") for gap in np.diff(numbers).tolist())
        return Step(apart.most_common(1)[0][0])
    seconds = Counter((b - a).total_seconds() for a, b in pairwise(stamps))  # pyright: ignore
    second = stamps[1]
    assert isinstance(second, datetime)
    months = (second.year - first.year) * 12 + second.month - first.month
    if months > 0 and len(seconds) > 1:
        step = Step(float(months), "months")
        if all(step.after(a) == b for a, b in pairwise(stamps)):
            return step
    return Step(seconds.most_common(1)[0][0], "seconds")
