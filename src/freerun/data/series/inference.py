"""Tables for a trained model of series: the past to go on from, windows to score, the forecast to write."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from freerun.batch import Batch
from freerun.data.files import Array, DataFile, counted, first_problems
from freerun.data.series.building import cell_problems, too_far, too_large
from freerun.data.series.time_stamps import Step, calendar_columns, uneven
from freerun.data.series.windows import SeriesCodec, Windows
from freerun.data.tables import DataTable, Stamp, read_table
from freerun.errors import UserError, listed, refuse


def read_past(path: str | Path, codec: SeriesCodec, horizon: int | None = None, separator: str = ",") -> Batch:
    """A batch to generate from, of the last rows of a CSV or Parquet file.

    Rows at the end whose targets and observed columns are all empty are the future: they give its covariates. A model
    that has calendar covariates only needs no such rows: their times go on from the last row's.

    Args:
        path: a file with the columns that the model was trained on.
        codec: of the model.
        horizon: steps to forecast; None: as many as there are rows of the future, or as in training where there are
            none.
        separator: between the columns of a CSV file.

    Raises:
        UserError: columns, rows or covariates are missing; cells that are no numbers; all with file, line and column.
    """
    table = read_table(path, separator)
    own = model_columns(table, codec)
    values, problems = table.block(own, codec.mean)
    problems = first_problems(table.origin, problems)
    if codec.series in table.columns and len(series := table.groups(codec.series)) > 1:
        problems.append(f"{table.origin}: holds {len(series)} series, by column {codec.series!r}; pass the rows of one")
    known, stamps = codec.values + codec.observed, list[Stamp]()
    has = ~np.isnan(values[:, :known]).all(axis=1)
    past = int(np.flatnonzero(has)[-1]) + 1 if has.any() else 0
    ahead = len(values) - past
    horizon = (ahead or codec.horizon) if horizon is None else horizon
    if past < codec.past:
        problems.append(f"{table.origin}: the model needs {counted(codec.past, 'row')} of the past; got {past}")
    else:
        stamps, wrong = uneven_rows(table, codec, [np.arange(past - codec.past, len(values))])
        problems += wrong
    if len(own) > known and ahead < horizon:
        problems.append(
            f"{table.origin}: covariates are missing: {', '.join(own[known:])} of {counted(horizon, 'step')} to come "
            f"are needed, in rows whose other columns are empty; got {counted(ahead, 'such row')}"
        )
    if not problems:
        first, end = past - codec.past, past + (horizon if len(own) > known else 0)
        cells = values[first:end].copy()
        cells[codec.past :, :known] = codec.mean[:known]  # of the future they need not be there
        problems = first_problems(table.origin, _wrong_cells(table, codec, cells, first))
    refuse(problems)
    block = np.zeros((codec.past + horizon, len(codec.channels)))
    block[: codec.past, : len(own)] = values[past - codec.past : past]
    block[codec.past :, known : len(own)] = values[past : past + horizon, known:] if len(own) > known else 0
    if codec.calendar:
        dates = [stamp for stamp in stamps[past - codec.past : past + horizon] if isinstance(stamp, datetime)]
        block[:, len(own) :] = calendar_columns(codec.calendar, _continued(table, codec, dates, horizon))
    rows = torch.from_numpy(block)
    future = rows[codec.past :, known:] if codec.covariates else None
    return codec.past_batch(rows[: codec.past], future, horizon, origin=table.origin)


def model_columns(table: DataTable, codec: SeriesCodec, *others: str) -> tuple[str, ...]:
    """Return the columns of a file that a model reads, without its calendar's; raise UserError if one is missing."""
    own = codec.channels[: len(codec.channels) - 2 * len(codec.calendar)]
    needed = (*own, *([codec.time] if codec.calendar and codec.time else []), *others)
    if absent := [name for name in needed if name not in table.columns]:
        raise UserError(
            f"{table.origin}: the model was trained with columns that are not there: {listed(absent)}; there are: "
            f"{listed(table.columns)}"
        )
    return own


def uneven_rows(table: DataTable, codec: SeriesCodec, groups: Sequence[np.ndarray]) -> tuple[list[Stamp], list[str]]:
    """Return the time of each row, if the model knows times, and the rows that are not one step apart, as trained."""
    if codec.time is None or codec.time not in table.columns or not (codec.step or codec.calendar):
        return [], []
    stamps, wrong = table.stamps(codec.time, dates=bool(codec.calendar))
    if not wrong and codec.step is not None:
        step = Step.parse(codec.step)
        for rows in groups:
            wrong += uneven([stamps[row] for row in rows.tolist()], step, table.locator(rows))
    return stamps, first_problems(table.origin, wrong)


def _wrong_cells(table: DataTable, codec: SeriesCodec, values: Array, first: int = 0) -> list[str]:
    """Cells that hold no number to compute with, in rows from ``first`` on."""
    mean, std = (np.array(scale[: values.shape[1]]) for scale in (codec.mean, codec.std))
    faults = [(np.isnan(values), "is missing; the model needs it"), *too_large(values), *too_far(values, mean, std)]
    return cell_problems(faults, codec.channels[: values.shape[1]], lambda row: table.locate(first + row))


def _continued(table: DataTable, codec: SeriesCodec, dates: list[datetime], horizon: int) -> list[datetime]:
    """The dates of past and horizon: where rows end before, they go on from the last one."""
    size = codec.past + horizon
    if codec.step is None and len(dates) < size:
        raise UserError(f"{table.origin}: add rows with the times of the {counted(horizon, 'step')} to come")
    while len(dates) < size and codec.step is not None:
        following = Step.parse(codec.step).after(dates[-1])
        assert isinstance(following, datetime)
        if following == datetime.max:
            raise UserError(f"{table.origin}: the steps to come lie beyond the year 9999")
        dates.append(following)
    return dates


def guess_separator(path: Path) -> str:
    """Return what separates the names in a CSV file's header: a comma, else a semicolon or a tab."""
    try:
        with path.open(encoding="utf-8", errors="replace") as file:
            header = file.readline()
    except OSError:  # reading the table reports it
        return ","
    return next((each for each in ",;\t" if each in header), ",")


def forecast_table(codec: SeriesCodec, forecast: Tensor) -> list[str]:
    """Return lines of CSV: a header, and for each lead time the forecast (horizon, values), in units of the data."""
    lines = io.StringIO()
    writer = csv.writer(lines, lineterminator="\n")
    writer.writerow(["lead", *codec.names])
    writer.writerows([lead, *(f"{value:.7g}" for value in row)] for lead, row in enumerate(forecast.tolist(), start=1))
    return lines.getvalue().rstrip("\n").split("\n")


def read_windows(codec: SeriesCodec, file: DataFile) -> Windows:
    """Return every window of a file, by the scales of the training data; none lies in two series."""
    table = read_table(file.path, guess_separator(file.path))
    own = model_columns(table, codec, *filter(None, [codec.series]))
    block, problems = table.block(own, codec.mean)
    problems += _wrong_cells(table, codec, block)
    groups = [rows for _, rows in table.groups(codec.series)]
    stamps, wrong = uneven_rows(table, codec, groups)
    length = codec.past + codec.horizon
    ends = np.cumsum([len(rows) for rows in groups]).tolist()
    starts = [
        first for rows, end in zip(groups, ends, strict=True) for first in range(end - len(rows), end - length + 1)
    ]
    if not starts:
        wrong.append(
            f"{file.path}: has {max(map(len, groups))} rows{' in its longest series' if codec.series else ''}, and a "
            f"window needs past + horizon = {codec.past} + {codec.horizon}: use a longer series"
        )
    refuse(first_problems(str(file.path), problems) + wrong)
    if codec.calendar:
        dates = [stamp for stamp in stamps if isinstance(stamp, datetime)]
        block = np.concatenate([block, calendar_columns(codec.calendar, dates)], 1)
    values = codec.normalise(torch.from_numpy(block[np.concatenate(groups)]))
    rows = torch.tensor(starts)[:, None] + torch.arange(length)
    return Windows(len(starts), lambda chosen: codec.batch(values[rows[torch.tensor(chosen)]]), codec.horizon)
