"""Missing values: found, or filled without looking over the border of a split."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from freerun.data.integrate import Array

__all__ = ["Gap", "filled"]

Gap = tuple[int, int, str]
"""Row, column, and what is wrong there."""


def filled(values: Array, ends: Sequence[int], policy: str) -> tuple[Array, list[int], list[Gap]]:
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
    wrong: list[Gap] = [(row, column, "is infinite; give a number") for row, column in _places(np.isinf(values))]
    if not missing.any():
        return values, [0] * values.shape[1], wrong
    if policy == "error":
        text = 'is missing; give a number, or set missing = "last" or "linear"'
        return values, [0] * values.shape[1], sorted(wrong + [(row, column, text) for row, column in _places(missing)])
    # the number of the newest row that has a value, or -1
    rows = np.arange(len(values))[:, None]
    before = np.maximum.accumulate(np.where(missing, -1, rows), axis=0)
    text = "is missing, and so is all before it: there is nothing to fill it from; cut these rows"
    wrong += [(row, column, text) for row, column in _places(before < 0)]
    result = np.take_along_axis(values, np.maximum(before, 0), axis=0)
    if policy == "linear":
        for begin, end in pairwise(sorted({0, *ends, len(values)})):
            _lines(result[begin:end], missing[begin:end])
    return result, missing.sum(axis=0).tolist(), sorted(wrong)


def _lines(values: Array, missing: np.ndarray) -> None:
    """Draw lines over the gaps of some rows, in place; gaps at either end stay as they are."""
    for column in np.flatnonzero(missing.any(axis=0)).tolist():
        known = np.flatnonzero(~missing[:, column])
        if len(known):
            inside = np.arange(known[0], known[-1] + 1)
            values[inside, column] = np.interp(inside, known, values[known, column])


def _places(where: np.ndarray) -> list[tuple[int, int]]:
    return [(int(row), int(column)) for row, column in np.argwhere(where)]
