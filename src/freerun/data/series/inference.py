"""Tables for a trained model of series: the past to go on from, windows to score, the forecast to write."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from datetime import datetime
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from freerun.arguments import brief
from freerun.batch import Batch
from freerun.data.files import Array, DataFile, counted, first_problems
from freerun.data.series.building import Piece, cell_problems, fill_gaps, too_far, too_large
from freerun.data.series.loading import complete, table_pieces
from freerun.data.series.options import SeriesOptions
from freerun.data.series.time_stamps import Step, calendar_columns, uneven
from freerun.data.series.windows import SeriesCodec, Windows
from freerun.data.tables import DataTable, TableForm, read_table
from freerun.data.times import Stamp, writer_like
from freerun.errors import UserError, collected, listed, refuse


@dataclass(frozen=True, eq=False)
class Future:
    """What a model goes on from, and the steps to come of one series.

    Args:
        window: (1, past + steps, channels) normalised.
        steps: how many are generated.
        codec: that of the series.
        first: the lead time of the first; below 1 where the newest rows of the series have no value yet.
        times: of the steps, as the table writes times; () where it has none.
        series: its name, where the table has a column of names.
    """

    __repr__ = brief

    window: Tensor
    steps: int
    codec: SeriesCodec
    first: int = 1
    times: Sequence[str] = ()
    series: str | None = None


def read_past(path: str | Path, codec: SeriesCodec, horizon: int | None = None) -> Batch:
    """A batch to generate from, of the last rows of a CSV or Parquet file, read as the model's own tables were.

    Of a long table it has a row for each series, in the order in which the table first names them, each in units of its
    own; ``freerun generate`` writes forecasts in those of the data.
    Rows at the end whose targets and observed columns are all empty are the future: they give its covariates. A model
    that has calendar covariates only needs no such rows: their times go on from the last row's.

    Args:
        path: a file with the columns that the model was trained on.
        codec: of the model.
        horizon: steps to forecast from the last value on; None: as many as there are rows of the future, or as in
            training where there are none.

    Raises:
        UserError: columns, rows or covariates are missing; cells that are no numbers; all with file, line and column.
            Series that have different numbers of rows of the future, where no horizon makes them one.
    """
    futures = _futures(codec, DataFile(Path(path)), horizon, late=False)
    steps = {future.series: future.steps for future in futures}
    if len(set(steps.values())) > 1:
        few, many = (choose(steps, key=lambda name: steps[name]) for choose in (min, max))
        raise UserError(
            f"{path}: a batch has one horizon, and series {few!r} has {counted(steps[few], 'step')} to forecast, where "
            f"{many!r} has {steps[many]}; pass horizon={steps[few]}, or the rows of one series"
        )
    return codec.batch(torch.cat([future.window for future in futures]))


def read_futures(codec: SeriesCodec, file: DataFile, length: int | None = None) -> list[Future]:
    """What ``read_past`` reads, of each series, for ``length`` steps after its newest row (None: as in training).

    Where the model has no covariates but its calendar's, newest rows without values are forecast as well, with lead
    times of 0 and below; else they are the future, whose first step has lead time 1.
    """
    return _futures(codec, file, codec.horizon if length is None else length, late=True)


def _futures(codec: SeriesCodec, file: DataFile, horizon: int | None, *, late: bool) -> list[Future]:
    table = read_table(file.path, _form(file.path, codec))
    own = model_columns(table, codec)
    pieces, problems, notes = _pieces(table, codec, own, codec.series if codec.series in table.columns else None)
    for piece in pieces:
        with collected(problems):
            _past_rows(piece, codec)
    refuse(problems)
    futures: list[Future] = []
    for piece in pieces:
        with collected(problems):
            futures.append(_future(table, codec, piece, own, horizon, late=late))
    refuse(first_problems(table.origin, problems))
    file.notes.extend(notes)
    return futures


def _future(
    table: DataTable, full: SeriesCodec, piece: Piece, own: Sequence[str], horizon: int | None, *, late: bool
) -> Future:
    known = full.values + full.observed
    # rows before the past may be as they are
    piece, wrong = _even(piece, full, max(0, _past_rows(piece, full) - full.past))
    refuse(wrong)
    values = piece.values
    past = int(np.flatnonzero(~np.isnan(values[:, :known]).all(axis=1))[-1]) + 1
    codec = full.of(piece.key, values[:past])
    ahead, first = len(values) - past, 1
    if late and len(own) == known:
        horizon, first = (horizon or codec.horizon) + ahead, 1 - ahead
    horizon = (ahead or codec.horizon) if horizon is None else horizon
    if ahead < horizon and len(own) > known and set(own[known:]) <= set(codec.static):
        values, ahead = np.concatenate([values, np.tile(values[-1], (horizon - ahead, 1))]), horizon
    problems = _short(piece, codec, own[known:], past=past, ahead=ahead, horizon=horizon)
    values[:past], wrong = _filled(piece, codec, values[:past])
    begin, end = max(0, past - codec.past), past + (horizon if len(own) > known else 0)
    cells = values[begin:end].copy()
    cells[past - begin :, :known] = codec.mean[:known]  # of the future they need not be there
    refuse(problems + wrong + _wrong_cells(piece, codec, cells, begin))
    stamps = [*(piece.stamps or ())][begin : past + horizon]
    if codec.calendar or (codec.step is not None and stamps):
        stamps = _continued(piece, codec, stamps, horizon)
    block = np.zeros((codec.past + horizon, len(codec.channels)))
    block[: codec.past, : len(own)] = values[begin:past]
    block[codec.past :, known : len(own)] = values[past : past + horizon, known:] if len(own) > known else 0
    if codec.calendar:
        dates = [stamp for stamp in stamps if isinstance(stamp, datetime)]
        block[:, len(own) : len(own) + 2 * len(codec.calendar)] = calendar_columns(codec.calendar, dates)
    if codec.series in codec.categories:
        block[:, -1] = codec.code(piece.key, table.origin)
    rows = torch.from_numpy(block)
    future = rows[codec.past :, known:] if codec.covariates else None
    window = codec.past_window(rows[: codec.past], future, horizon, origin=piece.name)
    times = _written(table, codec, stamps[codec.past :]) if len(stamps) == len(block) else ()
    return Future(window, horizon, codec, first, times, piece.key if codec.series in table.columns else None)


def _past_rows(piece: Piece, codec: SeriesCodec) -> int:
    """How many rows there are up to the newest one with a value; raise UserError where they are too few."""
    has = ~np.isnan(piece.values[:, : codec.values + codec.observed]).all(axis=1)
    past = int(np.flatnonzero(has)[-1]) + 1 if has.any() else 0
    if past < min(codec.past, 1 if codec.reading.get("missing") else codec.past):
        raise UserError(f"{piece.name}: the model needs {counted(codec.past, 'row')} of the past; got {past}")
    return past


def _form(path: str | Path, codec: SeriesCodec) -> TableForm:
    """How a table is read: as those of the training part; but for a separator that it does not hold."""
    known = {each.name for each in fields(TableForm)}
    own: dict[str, Any] = {name: value for name, value in codec.reading.items() if name in known}
    form = TableForm(**own)
    return replace(form, separator=guess_separator(Path(path), form.separator))


def _pieces(
    table: DataTable, codec: SeriesCodec, own: Sequence[str], series: str | None
) -> tuple[list[Piece], list[str], list[str]]:
    """The series of a table in order of time, with the columns of a model; what is wrong, and what was sorted."""
    timed = codec.time in table.columns
    options = SeriesOptions(
        targets=[name for name in own if name not in codec.coded],
        categories=codec.coded,
        time=codec.time if timed else None,
        series=series,
        calendar=codec.calendar if timed else (),
        time_zone=table.form.time_zone,
    )
    pieces, problems, notes = table_pieces(table, options, codec.categories, codec.mean)
    return pieces, first_problems(table.origin, problems), notes


def _even(piece: Piece, codec: SeriesCodec, begin: int = 0) -> tuple[Piece, list[str]]:
    """The series, from a row on with its absent rows where the model was trained with such; what is not even."""
    if piece.stamps is None or codec.step is None:
        return piece, []
    step, stamps = Step.parse(codec.step), piece.stamps[begin:]
    gaps = codec.reading.get("missing", "error") != "error"
    wrong = uneven(stamps, step, lambda row: piece.locate(begin + row), gaps=gaps)
    if wrong or not gaps:
        return piece, wrong
    end = complete([piece.rows(begin)], step)[0][0]
    return piece.rows(0, begin).followed_by(end), []


def _filled(piece: Piece, codec: SeriesCodec, values: Array) -> tuple[Array, list[str]]:
    """Values with their gaps filled as in training; as they are where it had none."""
    policy = codec.reading.get("missing", "error")
    if policy == "error":
        return values, []
    filled, _, faults = fill_gaps(values, [len(values)], policy, len(codec.coded))
    wrong = cell_problems(faults, codec.channels, piece.locate)
    return np.where(np.isnan(filled), codec.mean[: values.shape[1]], filled), wrong


def _short(
    piece: Piece, codec: SeriesCodec, covariates: Sequence[str], *, past: int, ahead: int, horizon: int
) -> list[str]:
    problems: list[str] = []
    if past < codec.past:
        problems.append(f"{piece.name}: the model needs {counted(codec.past, 'row')} of the past; got {past}")
    if covariates and ahead < horizon:
        problems.append(
            f"{piece.name}: covariates are missing: {', '.join(covariates)} of {counted(horizon, 'step')} to come "
            f"are needed, in rows whose other columns are empty; got {counted(ahead, 'such row')}"
        )
    return problems


def model_columns(table: DataTable, codec: SeriesCodec, *others: str) -> tuple[str, ...]:
    """Return the columns of a file that a model reads, without its calendar's; raise UserError if one is missing."""
    own, named = codec.columns, codec.series in codec.categories
    if named:
        others = (*others, str(codec.series))
    needed = (*own, *([codec.time] if codec.calendar and codec.time else []), *others)
    if absent := [name for name in needed if name not in table.columns]:
        raise UserError(
            f"{table.origin}: the model was trained with columns that are not there: {listed(absent)}; there are: "
            f"{listed(table.columns)}"
        )
    return own


def _wrong_cells(piece: Piece, codec: SeriesCodec, values: Array, first: int = 0) -> list[str]:
    """Cells that hold no number to compute with, in rows from ``first`` on."""
    mean, std = (np.array(scale[: values.shape[1]]) for scale in (codec.mean, codec.std))
    faults = [(np.isnan(values), "is missing; the model needs it"), *too_large(values), *too_far(values, mean, std)]
    return cell_problems(faults, codec.channels[: values.shape[1]], lambda row: piece.locate(first + row))


def _continued(piece: Piece, codec: SeriesCodec, stamps: list[Stamp], horizon: int) -> list[Stamp]:
    """The times of past and horizon: where rows end before, they go on from the last one."""
    size = codec.past + horizon
    if codec.step is None and len(stamps) < size:
        raise UserError(f"{piece.name}: add rows with the times of the {counted(horizon, 'step')} to come")
    while len(stamps) < size and codec.step is not None:
        following = Step.parse(codec.step).after(stamps[-1])
        if following == datetime.max:
            raise UserError(f"{piece.name}: the steps to come lie beyond the year 9999")
        stamps.append(following)
    return stamps


def _written(table: DataTable, codec: SeriesCodec, stamps: Sequence[Stamp]) -> list[str]:
    """Times in the form of the table's own."""
    cells = table.values(str(codec.time))[-100:]
    write = writer_like([str(cell) for cell in cells if cell is not None], table.form.time_format)
    return [write(stamp) for stamp in stamps]


def guess_separator(path: Path, trained: str = ",") -> str:
    """Return what separates the names in a CSV file's header: as in training, else a comma, a semicolon or a tab."""
    try:
        with path.open(encoding="utf-8", errors="replace") as file:
            header = file.readline()
    except OSError:  # reading the table reports it
        return trained
    return next((each for each in (trained, *",;\t") if each in header), trained)


def forecast_table(futures: Sequence[Future], forecasts: Sequence[Tensor], names: Sequence[str]) -> list[str]:
    """Return lines of CSV: a header, and for each series and lead time the time and the forecast.

    Args:
        futures: the steps of each series.
        forecasts: of each (steps, columns) numbers, in units of the data.
        names: of the columns.
    """
    codec = futures[0].codec
    series, timed = futures[0].series is not None, any(each.times for each in futures)
    lines = io.StringIO()
    writer = csv.writer(lines, lineterminator="\n")
    writer.writerow([*[codec.series] * series, "lead", *[codec.time] * timed, *names])
    for future, forecast in zip(futures, forecasts, strict=True):
        times = list(future.times) or [""] * future.steps
        for row, numbers in enumerate(forecast.tolist()):
            cells = [future.series] * series, [future.first + row], times[row : row + 1] * timed
            writer.writerow([*chain(*cells), *(f"{value:.7g}" for value in numbers)])
    return lines.getvalue().rstrip("\n").split("\n")


def read_windows(full: SeriesCodec, file: DataFile) -> Windows:
    """Return every window of a file, by the scales of the training data; none lies in two series."""
    codec = full
    table = read_table(file.path, _form(file.path, codec))
    own = model_columns(table, codec, *filter(None, [codec.series]))
    pieces, problems, notes = _pieces(table, codec, own, codec.series)
    blocks, present, length, starts = list[Tensor](), list[Array](), codec.past + codec.horizon, list[int]()
    offset, longest, faults = 0, 0, list[str]()
    for each in pieces:
        piece, wrong = _even(each, full)
        codec = full.of(piece.key, piece.values[: full.past])
        filled, unfilled = _filled(piece, codec, piece.values)
        faults += [*unfilled, *_wrong_cells(piece, codec, filled)]
        problems += wrong
        if codec.calendar:
            dates = [stamp for stamp in piece.stamps or () if isinstance(stamp, datetime)]
            filled = np.concatenate([filled, calendar_columns(codec.calendar, dates)], 1) if dates else filled
        if codec.series in codec.categories:
            code = codec.code(piece.key, table.origin)
            filled = np.concatenate([filled, np.full((len(filled), 1), code)], 1)
        # of what is wrong nothing is computed: it is refused below
        wide = filled.shape[1] == len(codec.channels)
        blocks.append(codec.normalise(torch.from_numpy(filled)) if wide else torch.zeros(len(filled), 1))
        present.append(~np.isnan(piece.values[:, : codec.values]))
        starts += range(offset, offset + len(filled) - length + 1)
        offset, longest = offset + len(filled), max(longest, len(filled))
    if not starts:
        problems.append(
            f"{file.path}: has {longest} rows{' in its longest series' if codec.series else ''}, and a "
            f"window needs past + horizon = {codec.past} + {codec.horizon}: use a longer series"
        )
    refuse(first_problems(str(file.path), [*faults, *problems]))
    values, there = torch.cat(blocks), torch.from_numpy(np.concatenate(present))
    rows = torch.tensor(starts)[:, None] + torch.arange(length)
    rows = rows[there[rows[:, codec.past :]].flatten(1).any(1)]
    if not len(rows):
        raise UserError(f"{file.path}: no window has a value to score: all that follow {codec.past} rows are missing")

    def make(chosen: list[int]) -> Batch:
        numbers = rows[torch.tensor(chosen)]
        return codec.batch(values[numbers], present=there[numbers])

    absent = int((~there).sum())
    file.notes.extend([*notes, *([f"missing values, which are not scored: {absent:,}"] if absent else [])])
    return Windows(len(rows), make, codec.horizon)
