"""Recent rows from a user's file, as a batch to generate from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path

import numpy as np
import torch

from freerun.data.integrate import Array
from freerun.data.series.calendar import Stamp, Step, calendar_columns
from freerun.data.series.coder import SeriesCoder
from freerun.data.series.gaps import cell_problems, endless, far
from freerun.data.series.spacing import uneven
from freerun.data.series.tables import Table, read_table
from freerun.data.text import counted, first_problems, lines_of_column
from freerun.errors import UserError, listed
from freerun.types import Batch

__all__ = ["own_columns", "read_past", "spaced"]


def read_past(path: str | Path, coder: SeriesCoder, horizon: int | None = None, separator: str = ",") -> Batch:
    """A batch to generate from, of the last rows of a CSV or Parquet file.

    Rows at the end whose targets and observed columns are all empty are the future: they give its covariates. A model
    that has calendar covariates only needs no such rows: their times go on from the last row's.

    Args:
        path: a file with the columns that the model was trained on.
        coder: of the model.
        horizon: steps to be said; None: as many as there are rows of the future, or as in training where there are
            none.
        separator: between the columns of a CSV file.

    Raises:
        UserError: columns, rows or covariates are missing; cells that are no numbers; all with file, line and column.
    """
    table = read_table(path, separator)
    own = own_columns(table, coder)
    values, problems = _numbers(table, own)
    problems += _several(table, coder)
    known = coder.values + coder.observed
    has = ~np.isnan(values[:, :known]).all(axis=1)
    past = int(np.flatnonzero(has)[-1]) + 1 if has.any() else 0
    ahead = len(values) - past
    horizon = (ahead or coder.horizon) if horizon is None else horizon
    if past < coder.past:
        problems.append(f"{table.path}: the model needs {counted(coder.past, 'row')} of the past; got {past}")
    else:
        problems += spaced(table, coder, [np.arange(past - coder.past, len(values))])[1]
    if len(own) > known and ahead < horizon:
        problems.append(
            f"{table.path}: covariates are missing: {', '.join(own[known:])} of {counted(horizon, 'step')} to come "
            f"are needed, in rows whose other columns are empty; got {counted(ahead, 'such row')}"
        )
    if not problems:
        first, end = past - coder.past, past + (horizon if len(own) > known else 0)
        # targets and observed channels of the future need not be there
        asked = np.ones((end - first, len(own)), dtype=bool)
        asked[coder.past :, :known] = False
        problems = _wrong_cells(table, coder, values[first:end], asked, first)
    if problems:
        raise UserError(problems)
    block = np.zeros((coder.past + horizon, len(coder.channels)))
    block[: coder.past, : len(own)] = values[past - coder.past : past]
    block[coder.past :, known : len(own)] = values[past : past + horizon, known:] if len(own) > known else 0
    if coder.calendar:
        block[:, len(own) :] = _calendar(table, coder, past, horizon)
    rows = torch.from_numpy(block)
    future = rows[coder.past :, known:] if coder.covariates else None
    return coder.past_batch(rows[: coder.past], future, horizon, origin=str(table.path))


def own_columns(table: Table, coder: SeriesCoder, *others: str) -> tuple[str, ...]:
    """The columns of a file that a model reads, its calendar's times apart.

    Args:
        table: the file.
        coder: of the model.
        others: columns that have to be there, too.

    Raises:
        UserError: columns that are not there.
    """
    own = coder.channels[: len(coder.channels) - 2 * len(coder.calendar)]
    needed = (*own, *([coder.time] if coder.calendar and coder.time else []), *others)
    if absent := [name for name in needed if name not in table.columns]:
        raise UserError(
            f"{table.path}: the model was trained with columns that are not there: {listed(absent)}; there are: "
            f"{listed(table.columns)}"
        )
    return own


def spaced(table: Table, coder: SeriesCoder, groups: Sequence[np.ndarray]) -> tuple[list[Stamp], list[str]]:
    """Time of each row of a file, where the model knows times, and the rows that are not one step apart, as trained.

    Args:
        table: the file.
        coder: of the model; without a time column, or a step (irregular = "ignore"), nothing is asked of the rows.
        groups: rows of each series.
    """
    if coder.time is None or coder.time not in table.columns or not (coder.step or coder.calendar):
        return [], []
    stamps, wrong = table.stamps(coder.time)
    if not wrong and coder.calendar and not isinstance(stamps[0], datetime):
        wrong = [f"{table.path}, column {coder.time!r}: the calendar needs dates, not numbers"]
    if not wrong and coder.step is not None:
        step = Step.parse(coder.step)
        wrong = [
            text
            for rows in groups
            for text in uneven([stamps[row] for row in rows.tolist()], step, _place_of(table, rows))
        ]
    return stamps, first_problems(str(table.path), wrong)


def _place_of(table: Table, rows: np.ndarray) -> Callable[[int], str]:
    return lambda row: table.place(int(rows[row]))


def _numbers(table: Table, names: tuple[str, ...]) -> tuple[Array, list[str]]:
    columns: list[Array] = []
    problems: list[str] = []
    for name in names:
        numbers, wrong = table.numbers(name)
        numbers[wrong] = 0.0  # said once, as no number, and not again as missing
        columns.append(numbers)
        problems += lines_of_column(wrong, len(numbers), lambda row, name=name: table.no_number(name, row))
    return np.stack(columns, axis=1), first_problems(str(table.path), problems)


def _several(table: Table, coder: SeriesCoder) -> list[str]:
    """A model goes on from one series."""
    if coder.series is None or coder.series not in table.columns or len(names := table.groups(coder.series)) < 2:
        return []
    return [f"{table.path}: holds {len(names)} series, by column {coder.series!r}; give the rows of one"]


def _wrong_cells(table: Table, coder: SeriesCoder, values: Array, needed: np.ndarray, first: int) -> list[str]:
    """Cells that are needed and hold no number to compute with, in rows from ``first`` on."""
    mean, std = (np.array(scale[: values.shape[1]]) for scale in (coder.mean, coder.std))
    faults = [(np.isnan(values), "is missing; the model needs it"), *endless(values), *far(values, mean, std)]
    names = coder.channels[: values.shape[1]]
    found = cell_problems([(mask & needed, text) for mask, text in faults], names, lambda row: table.place(first + row))
    return first_problems(str(table.path), found)


def _calendar(table: Table, coder: SeriesCoder, past: int, horizon: int) -> Array:
    """(past + horizon, calendar columns): of the rows' times, and of times that go on from the last row's."""
    assert coder.time is not None
    stamps, problems = table.stamps(coder.time)
    dated = [stamp for stamp in stamps[past - coder.past : past + horizon] if isinstance(stamp, datetime)]
    if not problems and len(dated) < coder.past:
        problems = [f"{table.path}, column {coder.time!r}: the calendar needs dates, not numbers"]
    if problems:
        raise UserError(first_problems(str(table.path), problems))
    if coder.step is None and len(dated) < coder.past + horizon:
        raise UserError(f"{table.path}: give rows with the times of the {counted(horizon, 'step')} to come")
    while len(dated) < coder.past + horizon and coder.step is not None:
        following = Step.parse(coder.step).after(dated[-1])
        assert isinstance(following, datetime)
        if following == datetime.max:
            raise UserError(f"{table.path}: the steps to come lie beyond the year 9999")
        dated.append(following)
    return calendar_columns(coder.calendar, dated)
