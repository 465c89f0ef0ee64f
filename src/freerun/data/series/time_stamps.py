"""Rows that do not follow each other evenly in time: doubled, unsorted, missing between, or newest first."""

from __future__ import annotations

from calendar import isleap, monthrange
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import pairwise
from typing import Any

import numpy as np

from freerun.arguments import brief
from freerun.data.files import Array, few_lines
from freerun.data.tables import Stamp

_DAY = 86400.0


CALENDAR: dict[str, Callable[[datetime], float]] = {
    "minute": lambda t: (t.minute * 60 + t.second) / 3600,
    "hour": lambda t: (t.hour * 3600 + t.minute * 60 + t.second) / _DAY,
    "weekday": lambda t: t.weekday() / 7,
    "monthday": lambda t: (t.day - 1) / monthrange(t.year, t.month)[1],
    "yearday": lambda t: (t.timetuple().tm_yday - 1) / (366 if isleap(t.year) else 365),
    "month": lambda t: (t.month - 1) / 12,
}
"""Name -> share of its cycle that is over at a time."""


def calendar_names(names: Sequence[str]) -> tuple[str, ...]:
    """Return the columns of calendar covariates: of each cycle a sine and a cosine."""
    return tuple(f"{name}_{wave}" for name in names for wave in ("sin", "cos"))


def calendar_columns(names: Sequence[str], stamps: Sequence[datetime]) -> Array:
    """Return (stamps, 2 * names): sine and cosine of each cycle."""
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
        """The inverse of ``str``."""
        size, of = text.split()
        return cls(float(size), of)

    def after(self, stamp: Stamp) -> Stamp:
        """The stamp one step on; ``datetime.max`` where that lies beyond the last year that Python has."""
        if not isinstance(stamp, datetime):
            return stamp + self.size
        try:
            if self.of not in ("months", "month-ends"):
                return stamp + timedelta(seconds=self.size)
            year, month = divmod(stamp.year * 12 + stamp.month - 1 + round(self.size), 12)
            days = monthrange(year, month + 1)[1]
            day = days if self.of == "month-ends" else min(stamp.day, days)
            return stamp.replace(year=year, month=month + 1, day=day)
        except (OverflowError, ValueError):
            return datetime.max


def step_between(stamps: Sequence[Stamp]) -> Step | None:
    """The usual distance of neighbouring rows: the commonest one, in months where all stamps are months apart.

    Rows that stand still or go back in time are left out; None where no row follows another.

    >>> str(step_between([datetime(2020, 1, 31), datetime(2020, 2, 29), datetime(2020, 3, 31)])), step_between([0.0])
    ('1 month-ends', None)
    """
    pairs = [(before, after) for before, after in pairwise(stamps) if _before(before, after)]
    if not pairs:
        return None
    gaps = Counter(map(_gap, pairs))
    size = gaps.most_common(1)[0][0]
    if not isinstance(stamps[0], datetime):
        return Step(size)
    first, second = stamps[0], stamps[1]
    assert isinstance(second, datetime)
    months = (second.year - first.year) * 12 + second.month - first.month
    if months > 0 and len(gaps) > 1:
        for of in ("months", "month-ends"):
            step = Step(float(months), of)
            if all(step.after(before) == after for before, after in pairwise(stamps)):
                return step
    return Step(size, "seconds")


def _gap(pair: tuple[Any, Any]) -> float:
    # times written as decimal numbers are apart by almost, not quite, the same
    gap = pair[1] - pair[0]
    return gap.total_seconds() if isinstance(gap, timedelta) else float(f"{gap:.9g}")


def uneven(stamps: Sequence[Stamp], step: Step | None, locate: Callable[[int], str], advice: str = "") -> list[str]:
    """A line for every row that does not come one step after the row before it.

    Args:
        stamps: time of each row.
        step: between two rows; None: only their order is looked at.
        locate: row -> where it stands.
        advice: what else may be done, at the end of a line.

    >>> uneven([1.0, 2.0, 2.0, 3.0], Step(1.0), lambda row: f"row {row + 1}")
    ['row 3: time 2.0 stands twice; keep one of the rows']
    >>> uneven([3.0, 2.0, 1.0], None, lambda row: f"row {row + 1}")
    ['row 2: time 2.0 comes after 3.0, and so on to the end: newest first; sort the rows by time, oldest first']
    """
    pairs = list(pairwise(stamps))
    if len(pairs) > 1 and all(_before(stamp, before) for before, stamp in pairs):
        before, stamp = pairs[0]
        return [
            f"{locate(1)}: time {stamp} comes after {before}, and so on to the end: newest first; sort the rows by "
            f"time, oldest first{advice}"
        ]
    kinds: dict[str, list[int]] = {}
    for row, (before, stamp) in enumerate(pairs, start=1):
        if stamp == before:
            kinds.setdefault("stands twice; keep one of the rows", []).append(row)
        elif _before(stamp, before):
            kinds.setdefault("comes after {}; sort the rows by time", []).append(row)
        elif step is not None and not _follows(stamp, before, step):
            kinds.setdefault(f"follows {{}}, and rows come every {step}; put in the rows between", []).append(row)
    lines: list[tuple[int, str]] = []
    for kind, rows in kinds.items():

        def line(row: int, kind: str = kind) -> str:
            return f"{locate(row)}: time {stamps[row]} {kind.format(stamps[row - 1])}{advice}"

        lines += few_lines(rows, len(stamps), line, "rows")
    return [text for _, text in sorted(lines)]


def _follows(stamp: Stamp, before: Stamp, step: Step) -> bool:
    if isinstance(before, datetime) != (step.of != "units"):
        return False
    expected = step.after(before)
    if isinstance(stamp, datetime) or isinstance(expected, datetime):
        return stamp == expected
    # times written as decimal numbers are apart by almost, not quite, the same
    return abs(stamp - expected) <= 1e-6 * abs(step.size)


def _before(stamp: Any, other: Any) -> bool:
    return isinstance(stamp, datetime) == isinstance(other, datetime) and stamp < other
