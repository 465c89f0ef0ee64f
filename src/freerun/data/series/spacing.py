"""Rows that do not follow each other evenly in time: doubled, unsorted, missing between, or newest first."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime
from itertools import pairwise

from freerun.data.series.calendar import Stamp, Step
from freerun.data.text import FEW

__all__ = ["uneven"]


def uneven(stamps: Sequence[Stamp], step: Step | None, place: Callable[[int], str], advice: str = "") -> list[str]:
    """A line for every row that does not come one step after the row before it.

    Args:
        stamps: time of each row.
        step: between two rows; None: only their order is looked at.
        place: row -> where it stands.
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
            f"{place(1)}: time {stamp} comes after {before}, and so on to the end: newest first; sort the rows by "
            f"time, oldest first{advice}"
        ]
    kinds: dict[str, list[tuple[int, str]]] = {}
    for row, (before, stamp) in enumerate(pairs, start=1):
        at = f"{place(row)}: time {stamp}"
        if stamp == before:
            kinds.setdefault("twice", []).append((row, f"{at} stands twice; keep one of the rows{advice}"))
        elif _before(stamp, before):
            kinds.setdefault("back", []).append((row, f"{at} comes after {before}; sort the rows by time{advice}"))
        elif step is not None and not _follows(stamp, before, step):
            said = f"{at} follows {before}, and rows come every {step}; put in the rows between{advice}"
            kinds.setdefault("gap", []).append((row, said))
    # many of a kind have one cause
    few = [each if len(each) <= FEW else [(each[0][0], f"{each[0][1]}; so it is in {len(each):,} of the "
           f"{len(stamps):,} rows")] for each in kinds.values()]  # fmt: skip
    return [said for _, said in sorted(said for each in few for said in each)]


def _follows(stamp: Stamp, before: Stamp, step: Step) -> bool:
    if isinstance(before, datetime) != (step.of != "units"):
        return False
    wanted = step.after(before)
    if isinstance(stamp, datetime) or isinstance(wanted, datetime):
        return stamp == wanted
    # times written as decimal numbers are apart by almost, not quite, the same
    return abs(stamp - wanted) <= 1e-6 * abs(step.size)


def _before(stamp: Stamp, other: Stamp) -> bool:
    if isinstance(stamp, datetime) and isinstance(other, datetime):
        return stamp < other
    return not isinstance(stamp, datetime) and not isinstance(other, datetime) and stamp < other
