"""Times of rows: their order, how far apart they are, which are absent; calendars by local time."""

from __future__ import annotations

from calendar import isleap, monthrange
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, time, timedelta
from itertools import pairwise
from typing import Any

import numpy as np

from freerun.arguments import brief
from freerun.data.files import Array, few_lines
from freerun.data.times import Stamp

_DAY = 86400.0


CALENDAR: dict[str, Callable[[datetime], float]] = {
    "minute": lambda t: (t.minute * 60 + t.second) / 3600,
    "hour": lambda t: (t.hour * 3600 + t.minute * 60 + t.second) / _DAY,
    "weekday": lambda t: t.weekday() / 7,
    "monthday": lambda t: (t.day - 1) / monthrange(t.year, t.month)[1],
    "yearday": lambda t: (t.timetuple().tm_yday - 1) / (366 if isleap(t.year) else 365),
    "month": lambda t: (t.month - 1) / 12,
}
"""Name -> share of its cycle that is over at a local time."""


def calendar_names(names: Sequence[str]) -> tuple[str, ...]:
    """Return the columns of calendar covariates: of each cycle a sine and a cosine."""
    return tuple(f"{name}_{wave}" for name in names for wave in ("sin", "cos"))


def calendar_columns(names: Sequence[str], stamps: Sequence[datetime]) -> Array:
    """Return (stamps, 2 * names): sine and cosine of each cycle."""
    angles = 2 * np.pi * np.array([[CALENDAR[name](stamp) for name in names] for stamp in stamps])
    angles = angles.reshape(len(stamps), len(names))
    return np.stack([np.sin(angles), np.cos(angles)], axis=-1).reshape(len(stamps), 2 * len(names))


def instant(stamp: Any) -> Any:
    """A time as what can be subtracted and compared: in UTC, without an offset; numbers as they are."""
    if isinstance(stamp, datetime) and stamp.tzinfo is not None:
        return stamp.astimezone(UTC).replace(tzinfo=None)
    return stamp


_UNITS = ((86400, "day"), (3600, "hour"), (60, "minute"))


@dataclass(frozen=True)
class Step:
    """How far apart two rows are.

    "seconds" are counted in UTC and "units" are those of a number; "days", "business-days" (Monday to Friday), "months"
    (same day) and "month-ends" (last days) by the local date, at the same time of day.

    >>> str(Step(3600.0, of="seconds")), Step.parse("1 month-ends").after(datetime(2020, 1, 31))
    ('3600 seconds', datetime.datetime(2020, 2, 29, 0, 0))
    >>> Step(1, "business-days").after(datetime(2020, 1, 3)), Step(2, "days").between(datetime(2020, 1, 1),
    ...     datetime(2020, 1, 5))
    (datetime.datetime(2020, 1, 6, 0, 0), 2)
    """

    __repr__ = brief

    size: float
    of: str = "units"

    def __str__(self) -> str:
        return f"{self.size:.12g} {self.of}"

    @property
    def words(self) -> str:
        """What stands after "every": "month", "15 minutes"."""
        size, unit = self.size, self.of[:-1]
        if unit == "second":
            seconds, unit = next((each for each in _UNITS if size % each[0] == 0), (1, unit))
            size /= seconds
        return unit if size == 1 else f"{size:.12g} {unit}s"

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
            if self.of == "seconds":
                zone = stamp.tzinfo
                moved = instant(stamp) + timedelta(seconds=self.size)
                return moved if zone is None else moved.replace(tzinfo=UTC).astimezone(zone)
            if self.of in ("days", "business-days"):
                moved = stamp.replace(fold=0) + timedelta(days=round(self.size))
                while self.of == "business-days" and moved.weekday() > 4:
                    moved += timedelta(days=1)
                return moved
            year, month = divmod(stamp.year * 12 + stamp.month - 1 + round(self.size), 12)
            days = monthrange(year, month + 1)[1]
            day = days if self.of == "month-ends" else min(stamp.day, days)
            return stamp.replace(year=year, month=month + 1, day=day)
        except (OverflowError, ValueError):
            return datetime.max

    def between(self, before: Stamp, stamp: Stamp) -> int | None:
        """How many steps lie between two times; None where that is no whole number of them, above 0."""
        if isinstance(before, datetime) != isinstance(stamp, datetime) or not _before(before, stamp):
            return None
        if (self.of == "units") == isinstance(stamp, datetime):
            return None
        if not isinstance(before, datetime) or not isinstance(stamp, datetime):
            # times written as decimal numbers are apart by almost, not quite, the same
            number: float = (instant(stamp) - instant(before)) / self.size
            return round(number) if round(number) and abs(number - round(number)) <= 1e-6 * number else None
        if self.of == "seconds":
            number = (instant(stamp) - instant(before)).total_seconds() / self.size
            return int(number) if number == int(number) else None
        here, there = before.replace(tzinfo=None, fold=0), stamp.replace(tzinfo=None, fold=0)
        if here.time() != there.time():
            return None
        if self.of == "days":
            number = (there - here).days / self.size
            return int(number) if number == int(number) else None
        if self.of == "business-days":
            weekdays = here.weekday() < 5 and there.weekday() < 5
            return int(np.busday_count(here.date(), there.date())) if weekdays else None
        number = ((there.year - here.year) * 12 + there.month - here.month) / self.size
        if number != int(number):
            return None
        return int(number) if Step(number * self.size, self.of).after(here) == there else None


def step_between(stamps: Sequence[Stamp]) -> Step | None:
    """The step that most neighbouring rows are apart: the commonest distance, or one of the calendar.

    Rows that stand still or go back in time are left out; None where no row follows another.

    >>> str(step_between([datetime(2020, 1, 31), datetime(2020, 2, 29), datetime(2020, 3, 31)])), step_between([0.0])
    ('1 month-ends', None)
    """
    pairs = [(before, after) for before, after in pairwise(stamps) if _before(before, after)]
    if not pairs:
        return None
    common = Counter(map(_gap, pairs)).most_common(1)[0]
    if not isinstance(stamps[0], datetime):
        return Step(common[0])
    candidates = [Step(common[0], "seconds")]
    if common[1] < len(pairs):
        candidates += _of_calendar(pairs)
    # of equal ones the first
    return max(candidates, key=lambda step: sum(step.between(*pair) == 1 for pair in pairs))


def _of_calendar(pairs: Sequence[tuple[Any, Any]]) -> list[Step]:
    days = Counter((after.date() - before.date()).days for before, after in pairs).most_common(1)[0][0]
    months = Counter((after.year - before.year) * 12 + after.month - before.month for before, after in pairs)
    found = [Step(float(days), "days")] if days else []
    if all(before.weekday() < 5 for before, _ in pairs):
        found.append(Step(1.0, "business-days"))
    if month := months.most_common(1)[0][0]:
        found += [Step(float(month), "months"), Step(float(month), "month-ends")]
    return found


def _gap(pair: tuple[Any, Any]) -> float:
    # times written as decimal numbers are apart by almost, not quite, the same
    gap = instant(pair[1]) - instant(pair[0])
    return gap.total_seconds() if isinstance(gap, timedelta) else float(f"{gap:.9g}")


def in_order(stamps: Sequence[Stamp]) -> tuple[list[int], str]:
    """The rows from the oldest on, those of one time as they stand, and how they stood; "" where they were in order.

    >>> in_order([3.0, 2.0, 1.0]), in_order([1.0, 3.0, 2.0])
    (([2, 1, 0], 'newest first'), ([0, 2, 1], 'in no order of time'))
    """
    instants: list[Any] = [instant(stamp) for stamp in stamps]
    falling = len(instants) > 1 and all(after < before for before, after in pairwise(instants))
    rows = sorted(range(len(instants)), key=instants.__getitem__)
    if rows == list(range(len(instants))):
        return rows, ""
    return rows, "newest first" if falling else "in no order of time"


def time_writer(stamps: Sequence[Stamp]) -> Callable[[Stamp], str]:
    """How messages write these times: as dates where none has a time of day.

    >>> [time_writer([datetime(2020, 1, 1, hour)])(datetime(2020, 1, 2)) for hour in (0, 5)]
    ['2020-01-02', '2020-01-02 00:00:00']
    """
    days = all(isinstance(stamp, datetime) and stamp.time() == time() for stamp in stamps)
    return lambda stamp: str(stamp.date() if days and isinstance(stamp, datetime) else stamp)


def uneven(
    stamps: Sequence[Stamp], step: Step | None, locate: Callable[[int], str], advice: str = "", *, gaps: bool = False
) -> list[str]:
    """A line for every row that does not come one step after the row before it.

    Args:
        stamps: time of each row.
        step: between two rows; None: only their order is looked at.
        locate: row -> where it stands.
        advice: what else may be done, at the end of a line.
        gaps: whether rows may be absent between two.

    >>> uneven([1.0, 2.0, 2.0, 3.0], Step(1.0), lambda row: f"row {row + 1}")
    ['row 3: time 2.0 stands twice; keep one of the rows']
    """
    kinds: dict[str, list[int]] = {}
    for row, (before, stamp) in enumerate(pairwise(stamps), start=1):
        if instant(stamp) == instant(before):
            kinds.setdefault("stands twice; keep one of the rows", []).append(row)
        elif _before(stamp, before):
            kinds.setdefault("comes after {}; sort the rows by time", []).append(row)
        elif step is not None and (number := step.between(before, stamp)) != 1 and not (gaps and number):
            what = "that is no whole number of them" if number is None else "put in the rows between"
            kinds.setdefault(f"follows {{}}, and rows come every {step.words}; {what}", []).append(row)
    lines, write = list[tuple[int, str]](), time_writer(stamps)
    for kind, rows in kinds.items():

        def line(row: int, kind: str = kind) -> str:
            return f"{locate(row)}: time {write(stamps[row])} {kind.format(write(stamps[row - 1]))}{advice}"

        lines += few_lines(rows, len(stamps), line, "rows")
    return [text for _, text in sorted(lines)]


def completed(stamps: Sequence[Stamp], step: Step) -> tuple[list[Stamp], list[int]]:
    """The times with those of absent rows, and for each the number of its row; -1: it is absent.

    >>> completed([1.0, 2.0, 4.0], Step(1.0))
    ([1.0, 2.0, 3.0, 4.0], [0, 1, -1, 2])
    """
    times, rows = list(stamps[:1]), [0] * len(stamps[:1])
    for row, stamp in enumerate(stamps[1:], start=1):
        for _ in range((step.between(stamps[row - 1], stamp) or 1) - 1):
            times.append(step.after(times[-1]))
            rows.append(-1)
        times.append(stamp)
        rows.append(row)
    return times, rows


def _before(stamp: Any, other: Any) -> bool:
    return isinstance(stamp, datetime) == isinstance(other, datetime) and instant(stamp) < instant(other)
