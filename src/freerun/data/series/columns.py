"""Which columns of a table are predicted where nobody named them, which holds the times; whether rows are in order."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np

from freerun.data.files import LARGEST, Array
from freerun.data.series.options import SeriesOptions, with_targets
from freerun.data.series.time_stamps import step_between
from freerun.data.tables import DataTable
from freerun.data.times import fitting_formats, formatted_time
from freerun.errors import listed

_COUNTERS = ("", "index", "id", "idx", "row", "rowid", "row_id", "no", "nr", "number", "level_0", "_id", "obs")
_AS_THEY_COME = 'where they follow each other as they stand, set irregular = "ignore"'
_FEW = 3
"""Rows that a column must have before it counts them, and series that a table must have more windows than."""


def chosen_columns(table: DataTable, options: SeriesOptions) -> tuple[SeriesOptions, list[str], list[str]]:
    """The options with time and targets, notes on what was found and left out, and what is wrong."""
    options, notes, problems = _with_time(table, options)
    numeric = table.numeric()
    taken = {name for names in options.parts.values() for name in names}
    free = [name for name in numeric if name not in taken]
    texts = [name for name in table.columns if name not in {*numeric, *taken}]
    if options.targets:
        full, wrong = with_targets(options, table.columns, numeric, table.origin)
        if options.time is None and options.irregular == "error" and not problems + wrong:
            wrong = _order(table, options, texts, [name for name in free if _counts(table, name, options)])
        return full, notes, problems + wrong
    flags = [name for name in free if table.flags(name)]
    counters = [name for name in free if name not in flags and _counts(table, name, options)]
    left_out = {
        "they do not hold numbers": texts,
        "they are true or false": flags,
        "they count the rows": counters,
    }
    full, wrong = with_targets(options, table.columns, set(numeric) - {*flags, *counters}, table.origin)
    if wrong and flags + counters:
        wrong = [f"{line}; name what is to be predicted with targets = [...]" for line in wrong]
    problems += wrong
    if options.time is None and options.irregular == "error" and not problems:
        problems += _order(table, options, texts, counters)
    notes += [f"not used, for {reason}: {listed(names)}" for reason, names in left_out.items() if names]
    return full, notes, problems


def _with_time(table: DataTable, options: SeriesOptions) -> tuple[SeriesOptions, list[str], list[str]]:
    """The options with the column of times, where there is one."""
    if options.time is not None:
        return options, [], []
    named = {name for names in options.parts.values() for name in names}
    dates = [name for name in table.columns if name not in named and table.dated(name)]
    if len(dates) > 1:
        line = f"{table.origin}: columns {listed(dates)} hold dates: name the one that rows follow, time = {dates[0]!r}"
        return options, [], [line]
    if dates:
        return replace(options, time=dates[0]), [f"time: column {dates[0]}, which holds dates"], []
    return options, [], []


def _counts(table: DataTable, name: str, options: SeriesOptions) -> bool:
    """True if the numbers of a column only count its rows, in every series: even, or named as an index and whole."""
    numbers = table.numbers(name)[0]
    if len(numbers) < _FEW or not (np.abs(numbers) <= LARGEST).all():
        return False
    whole = bool((numbers % 1 == 0).all())
    word = name.strip().casefold()
    if whole and (word in _COUNTERS or word.startswith("unnamed:")):
        return True
    groups = [np.arange(len(numbers))]
    if options.series in table.columns:
        groups += [rows for _, rows in table.groups(options.series)]
    return _even(numbers) or (len(groups) > 2 and all(_even(numbers[rows]) for rows in groups[1:]))


def _even(numbers: Array) -> bool:
    """True if each number lies one same distance from the one before, or all but some rows that are absent do."""
    steps = np.diff(numbers)
    if not len(steps) or not (bool((steps > 0).all()) or bool((steps < 0).all())):
        return False
    common, count = Counter(np.round(steps, 9).tolist()).most_common(1)[0]
    if np.allclose(steps, steps[0], rtol=1e-6, atol=0):
        return True
    multiples = np.abs(steps / common - np.round(steps / common)).max() < 1e-6 if common else False
    return bool(multiples) and count >= 0.9 * len(steps)


def _order(table: DataTable, options: SeriesOptions, texts: Sequence[str], counters: Sequence[str]) -> list[str]:
    """What makes it doubtful that the rows of a table without times follow each other in time."""
    problems: list[str] = []
    for name in counters:
        numbers = table.numbers(name)[0]
        if len(numbers) > 1 and bool((np.diff(numbers) < 0).all()):
            problems.append(
                f"{table.origin}: column {name!r} counts down, from {numbers[0]:.12g} to {numbers[-1]:.12g}: where the "
                f"newest row stands first, set time = {name!r}, and rows are sorted by it; {_AS_THEY_COME}"
            )
    for name in texts:
        cells = table.values(name)
        problems += _other_times(table, name, cells)
        if options.series is None and (groups := _grouped(cells)):
            problems.append(
                f"{table.origin}: column {name!r} holds {groups} names, in blocks or in turn: where each is a series, "
                f"set series = {name!r}; {_AS_THEY_COME}"
            )
    return problems


def _other_times(table: DataTable, name: str, cells: Sequence[Any]) -> list[str]:
    """Whether a column holds times in another form than ISO's, and rows do not follow each other evenly by them."""
    formats = fitting_formats(cells)
    for each in formats:
        stamps = [stamp for cell in cells if (stamp := formatted_time(cell, each)) is not None]
        step = step_between(stamps)
        if len(stamps) == len(cells) and step and all(step.between(*pair) == 1 for pair in pairwise(stamps)):
            return []
    if not formats:
        return []
    meant = " or ".join(f'time_format = "{each}"' for each in formats[:2])
    return [
        f"{table.origin}: rows are not in even order of column {name!r}: where it holds their times, set time = "
        f"{name!r} and {meant}, and rows are sorted by it; {_AS_THEY_COME}"
    ]


def telling_apart(table: DataTable, options: SeriesOptions) -> str:
    """What to set where times come again: the columns whose names, with the time, hardly two rows share."""
    times = table.values(str(options.time))
    found = {
        name: len(names)
        for name in table.columns
        if name not in (*options.observed, *options.covariates, options.time)
        and 2 <= len(names := set(cells := table.values(name))) <= len(cells) // _FEW
        and len(set(zip(cells, times, strict=True))) >= 0.99 * len(cells)
    }
    if not found:
        return "name the column that tells them apart with series = ...; no column alone does: join several to one"
    first, *others = found
    return f"set series = {first!r}, which holds {found[first]} names" + (f" (or {listed(others)})" if others else "")


def _grouped(cells: Sequence[Any]) -> int:
    """How many series a column of names seems to tell apart: they stand in blocks, or come in turn; 0: it does not."""
    names = list(dict.fromkeys(cells))
    if not 2 <= len(names) <= len(cells) // _FEW:
        return 0
    blocks = 1 + sum(after != before for before, after in pairwise(cells))
    turns = all(cell == names[row % len(names)] for row, cell in enumerate(cells))
    return len(names) if blocks == len(names) or turns else 0
