"""Cells that no number can be computed from: found by line, or filled without looking over the border of a split."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise

import numpy as np

from freerun.data.integrate import Array
from freerun.data.text import lines_of_column

__all__ = ["LARGEST", "Fault", "cell_problems", "endless", "far", "filled"]

LARGEST = 1e30
"""The size of the largest number, raw: squares and sums of such are finite, also in float32 once scaled."""

FARTHEST, FARTHEST_RAW = 1e9, 1e15
"""The largest distance from the mean of the training rows, in deviations; without normalisation the largest size."""

Fault = tuple[np.ndarray, str]
"""(rows, columns) of bool, and what is wrong in these cells."""


def cell_problems(faults: Sequence[Fault], names: Sequence[str], place: Callable[[int], str]) -> list[str]:
    """A line for each cell that is wrong, row by row; one for a column in which many are.

    Args:
        faults: where they are.
        names: of the columns.
        place: row -> where it stands.
    """
    found: list[tuple[int, str]] = []
    for mask, text in faults:
        for column in np.flatnonzero(mask.any(axis=0)).tolist():
            rows = np.flatnonzero(mask[:, column]).tolist()
            line = partial(_line, place, f"column {names[column]!r}: {text}")
            found += zip(rows, lines_of_column(rows, len(mask), line), strict=False)
    return [line for _, line in sorted(found, key=lambda each: each[0])]


def _line(place: Callable[[int], str], text: str, row: int) -> str:
    return f"{place(row)}, {text}"


def endless(values: Array) -> list[Fault]:
    """Infinities, and numbers too large to be computed with."""
    with np.errstate(invalid="ignore"):
        large = np.isfinite(values) & (np.abs(values) > LARGEST)
    found = [
        (np.isinf(values), "is infinite; give a number"),
        (large, f"is beyond {LARGEST:g}, which is too large to be computed with; correct it, or take another unit"),
    ]
    return [fault for fault in found if fault[0].any()]


def far(values: Array, mean: Array, std: Array) -> list[Fault]:
    """Numbers so far from the training rows that nothing is computed from them in float32, scaled as those are.

    Args:
        values: (rows, channels) raw.
        mean: (channels,) of the training rows; 0 where it is not normalised.
        std: the same; 1 where it is not normalised.
    """
    plain = (mean == 0) & (std == 1)
    limit = np.where(plain, FARTHEST_RAW, FARTHEST)
    with np.errstate(invalid="ignore", over="ignore"):
        beyond = np.isfinite(values) & (np.abs(values) <= LARGEST) & (np.abs((values - mean) / std) > limit)
    return [
        (beyond & ~plain, f"lies more than {FARTHEST:g} deviations from the mean of the training rows; correct it"),
        (beyond & plain, f"is beyond {FARTHEST_RAW:g} and not normalised; take another unit, or normalise the data"),
    ]


def filled(values: Array, ends: Sequence[int], policy: str) -> tuple[Array, list[int], list[Fault]]:
    """Values without NaN, how many of each column were filled, and what could not be.

    Args:
        values: (rows, columns); NaN is missing, infinity is always wrong.
        ends: where the splits begin, and where the last one ends.
        policy: "error"; "last": the value before; "linear": a line between the values before and after, where both
            are in the same split, else the value before.

    >>> x = np.array([[1.0], [np.nan], [3.0], [np.nan], [np.nan], [6.0]])
    >>> filled(x, [0, 4, 5, 6], "linear")[0][:, 0].tolist()
    [1.0, 2.0, 3.0, 3.0, 3.0, 6.0]
    """
    missing = np.isnan(values)
    wrong = endless(values)
    if not missing.any():
        return values, [0] * values.shape[1], wrong
    if policy == "error":
        text = 'is missing; give a number, or set missing = "last" or "linear"'
        return values, [0] * values.shape[1], [*wrong, (missing, text)]
    # the number of the newest row that has a value, or -1
    rows = np.arange(len(values))[:, None]
    before = np.maximum.accumulate(np.where(missing, -1, rows), axis=0)
    text = "is missing, and so is all before it: there is nothing to fill it from; cut these rows"
    wrong += [(before < 0, text)] if (before < 0).any() else []
    result = np.take_along_axis(values, np.maximum(before, 0), axis=0)
    if policy == "linear":
        for begin, end in pairwise(sorted({0, *ends, len(values)})):
            _lines(result[begin:end], missing[begin:end])
    return result, missing.sum(axis=0).tolist(), wrong


def _lines(values: Array, missing: np.ndarray) -> None:
    """Draw lines over the gaps of some rows, in place; gaps at either end stay as they are."""
    for column in np.flatnonzero(missing.any(axis=0)).tolist():
        known = np.flatnonzero(~missing[:, column])
        if len(known):
            inside = np.arange(known[0], known[-1] + 1)
            values[inside, column] = np.interp(inside, known, values[known, column])
