"""From files, frames and arrays to ``SeriesData``: tables read, columns chosen, rows in order, absent ones put in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch

from freerun.data.files import Array, counted, first_problems, lines_of_column, read_each
from freerun.data.series.building import Piece, build_series
from freerun.data.series.columns import chosen_columns, telling_apart
from freerun.data.series.frames import frame_table
from freerun.data.series.options import Layout, SeriesOptions, check_layout, with_targets
from freerun.data.series.time_stamps import Step, completed, in_order, instant, step_between, time_writer, uneven
from freerun.data.series.windows import SeriesData
from freerun.data.tables import DataTable, read_table
from freerun.data.times import localised, zone_of
from freerun.errors import UserError, display, listed, refuse

_ABSENT = 10
"""Rows put in for each row that is there, and a thousand, are the most: beyond, a time is wrong."""


def series_from_arrays(
    arrays: Any,
    options: SeriesOptions | None = None,
    layout: Layout = "past",
    names: Sequence[str] = (),
    name: str = "arrays",
) -> SeriesData:
    """Windows of a series in an array, or of several.

    Args:
        arrays: (time, channels) numbers, NumPy or torch, or a list of such: several series of the same channels.
            (time,) is one channel. Or frames of pandas or polars, whose columns are those of a table.
        options: windows, splits, parts of the channels by name; ``time``, ``series`` and ``calendar`` are of tables and
            frames.
        layout: "past" or "sequence", see ``SeriesCodec.batch``.
        names: of the channels; left out: "x1", "x2" and so on. Frames have names.
        name: what the data are called.

    Raises:
        UserError: wrong shapes, NaN or infinity (row and column named), constant channels, splits too short, unknown
            names; all at once.

    >>> data = series_from_arrays(torch.arange(200.0).sin()[:, None], SeriesOptions(past=8, horizon=4))
    >>> data.windows("train"), data.windows("test"), data.codec.names
    (129, 37, ('x1',))
    """
    options = options or SeriesOptions()
    every = list(arrays) if isinstance(arrays, list | tuple) else [arrays]
    tables = [frame_table(each, name if len(every) == 1 else f"{name}: frame {n}") for n, each in enumerate(every, 1)]
    if frames := [table for table in tables if table is not None]:
        if len(frames) < len(tables) or names:
            wrong = "names has no effect on frames, which have their own" if names else "arrays and frames are mixed"
            raise UserError(f"{name}: {wrong}; give one kind, and names with arrays only")
        return _from_tables([replace(table, form=options.form) for table in frames], name, options, layout)
    series = [_array(each) for each in every]
    several = len(series) > 1
    titles = [f"{name}: series {number}" if several else name for number in range(1, len(series) + 1)]
    width = series[0].shape[-1] if series and series[0].ndim == 2 else 0
    problems = [] if series else [f"{name}: there are no series; give at least one"]
    problems += [
        f"{title}: must be (time, channels){f' with {width} channels' if several else ''}; got shape {each.shape}"
        for title, each in zip(titles, series, strict=True)
        if each.ndim != 2 or each.shape[1] != width or not width
    ]
    columns = tuple(names) or tuple(f"x{number}" for number in range(1, width + 1))
    if width and len(columns) != width:
        problems.append(f"{name}: {width} channels have {len(columns)} names")
    problems += [
        f"{part} has no effect on arrays; use load_series, or leave it out"
        for part in ("time", "series", "calendar", "categories", "time_format", "time_zone", "thousands")
        if getattr(options, part)
    ]
    refuse(problems)
    options, problems = with_targets(options, columns, columns, name)
    refuse(problems + check_layout(layout, options.observed))
    order = [columns.index(column) for column in options.columns]
    pieces = [Piece(title, each[:, order], key=title) for title, each in zip(titles, series, strict=True)]
    return build_series(name, pieces, options, layout)


def _array(values: Any) -> Array:
    if isinstance(values, torch.Tensor):
        values = values.detach().cpu().numpy()
    try:
        kind = np.asarray(values).dtype
        if kind.kind not in "biufO":  # complex numbers would lose a part, times and texts their meaning
            raise TypeError(f"{kind} are no real numbers")
        array = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError, OverflowError) as error:
        raise UserError(f"a series must be numbers, (time, channels); got {type(values).__name__}: {error}") from None
    return array[:, None] if array.ndim == 1 else array


def load_series(
    paths: str | Path | Sequence[str | Path], options: SeriesOptions | None = None, layout: Layout = "past"
) -> SeriesData:
    """Windows of the series in a CSV or Parquet file, or in several.

    The first line of a CSV file names its columns. Every file is a series of its own, or several where a column
    names them (``series``); all have the same columns. An empty cell, NaN, NA or null is a missing value.

    Args:
        paths: a file, or several.
        options: columns, windows, splits, what is done about gaps; the defaults of ``SeriesOptions`` if left out.
        layout: "past" or "sequence", see ``SeriesCodec.batch``.

    Raises:
        UserError: files that cannot be read, unknown columns, cells that are no numbers, gaps, constant channels, time
            stamps that are not evenly spaced (all with file, line and column), splits too short for a window.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     file = Path(folder, "load.csv")
    ...     _ = file.write_text("date,load\\n" + "".join(f"2020-01-{d:02},{d * d}\\n" for d in range(1, 31)))
    ...     data = load_series(file, SeriesOptions(past=3, horizon=2, time="date", split=(20, 5, 5)))
    >>> data.codec.names, data.windows("train"), data.windows("test"), data.codec.step
    (('load',), 16, 4, '86400 seconds')
    """
    options = options or SeriesOptions()
    missing = "there is no file; give at least one CSV or Parquet file"
    files, tables, problems = read_each(paths, lambda file: read_table(file, options.form), missing)
    refuse(check_layout(layout, options.observed) + problems)
    return _from_tables(tables, ", ".join(map(str, files)), options, layout)


def _from_tables(tables: Sequence[DataTable], name: str, options: SeriesOptions, layout: Layout) -> SeriesData:
    """Windows of the series of tables that have the same columns."""
    first = tables[0]
    full, notes, problems = chosen_columns(first, options)
    used = [column for columns in full.parts.values() for column in columns]
    problems += [
        f"{table.origin}: has no column {column!r}, which {first.origin} has; there are: {listed(table.columns)}"
        for table in tables[1:]
        for column in used
        if column in first.columns and column not in table.columns
    ]
    refuse(problems)
    pieces: list[Piece] = []
    categories = {
        name: sorted({str(cell) for table in tables for cell in table.values(name) if cell is not None})
        for name in full.categories
    }
    for table in tables:
        own, wrong, sorted_ = table_pieces(table, full, categories)
        pieces += own
        problems += first_problems(table.origin, wrong)
        notes += sorted_
    step, wrong = _spacing(pieces, full, tables)
    problems += wrong
    if step is not None and full.missing != "error" and not problems:
        pieces, more = complete(pieces, step)
        notes += more
    # where time stamps are wrong nothing is computed from them: the other problems are still reported
    computed = replace(full, calendar=()) if problems else full
    try:
        droppable = not options.targets
        data = build_series(name, pieces, computed, layout, step, droppable=droppable, categories=categories)
    except UserError as error:
        raise UserError(problems + error.problems) from None
    refuse(problems)
    return replace(data, notes=(*data.notes, *notes))


def _codes(
    table: DataTable, columns: Sequence[str], categories: Mapping[str, Sequence[str]]
) -> tuple[Array, list[str]]:
    """(rows, columns) the numbers of categories, and the cells that name none."""
    codes, problems = np.zeros((len(table), len(columns))), list[str]()
    for number, name in enumerate(columns):
        known = {each: code for code, each in enumerate(categories[name])}
        cells = [None if cell is None else str(cell) for cell in table.values(name)]
        wrong = [row for row, cell in enumerate(cells) if cell not in known]
        codes[:, number] = [known.get(str(cell), 0) for cell in cells]

        def line(row: int, name: str = name, cells: Sequence[str | None] = cells) -> str:
            got = "is empty" if cells[row] is None else f"{display(cells[row], 40)} was not in training"
            return f"{table.locate(row)}, column {name!r}: {got}; its categories are: {listed(categories[name])}"

        problems += lines_of_column(wrong, len(cells), line)
    return codes, problems


def table_pieces(
    table: DataTable,
    options: SeriesOptions,
    categories: Mapping[str, Sequence[str]],
    fill: Sequence[float] | None = None,
) -> tuple[list[Piece], list[str], list[str]]:
    """The series of a table in order of time, its cells that are no numbers or times, and which were sorted."""
    values, problems = table.block([name for name in options.columns if name not in options.coded], fill)
    codes, wrong = _codes(table, options.coded, categories)
    values, problems = np.concatenate([values, codes], axis=1), problems + wrong
    stamps, unclear = ([], []) if options.time is None else table.stamps(options.time, dates=bool(options.calendar))
    problems += unclear
    if options.series is not None:
        unnamed = [row for row, cell in enumerate(table.values(options.series)) if cell is None]
        text = f"column {options.series!r}: does not name the series of the row"
        problems += lines_of_column(unnamed, len(values), lambda row: f"{table.locate(row)}, {text}")
    timed = options.time is not None and not unclear
    pieces: list[Piece] = []
    moved: dict[str, list[str]] = {}
    keys = None if options.series is None else table.values(options.series)
    for name, rows in table.groups(options.series):
        key = name if keys is None else str(keys[int(rows[0])])
        if not timed:
            pieces.append(Piece(name, values[rows], None, table.locator(rows), key))
            continue
        own, absent = localised([stamps[row] for row in rows.tolist()], zone_of(options.time_zone))
        text = f"there is no such time in {options.time_zone}, where clocks went forward"
        at = table.locator(rows)
        problems += lines_of_column(absent, len(own), lambda row, at=at, text=text: f"{at(row)}: {text}")
        order, how = in_order(own)
        if how:
            moved.setdefault(how, []).append(name)
        ordered = rows[order]
        pieces.append(Piece(name, values[ordered], [own[row] for row in order], table.locator(ordered), key))
    notes = [
        f"sorted by {options.time}, rows stood {how}: {listed(names[:3])}"
        + (f" and {len(names) - 3:,} more series" if len(names) > 3 else "")
        for how, names in moved.items()
    ]
    return pieces, problems, notes


def _spacing(
    pieces: Sequence[Piece], options: SeriesOptions, tables: Sequence[DataTable]
) -> tuple[Step | None, list[str]]:
    """The step of all series, and times that are duplicated, not evenly spaced, or of another step."""
    if options.irregular != "error":  # rows that are taken as they come are no step apart
        return None, []
    problems: list[str] = []
    steps: dict[str, tuple[int, Step, str]] = {}
    for piece in pieces:
        if (step := step_between(piece.stamps or ())) is not None:
            before = steps.get(str(step), (0, step, piece.name))
            steps[str(step)] = (before[0] + len(piece.values), step, before[2])
    usual = max(steps.values(), key=lambda each: each[0])[1] if steps else None
    gaps = options.missing != "error"
    advice = ', or set irregular = "ignore"'
    if not gaps:
        advice = ', or set missing = "mask", which puts absent rows in, or irregular = "ignore"'
    for number, piece in enumerate(pieces):
        stamps = piece.stamps or ()
        again = len(stamps) - len({instant(stamp) for stamp in stamps})
        if options.series is None and again > len(stamps) // 10:
            problems.append(
                f"{piece.name}: {counted(again, 'time stamp')} came before in the file; where it holds several series, "
                f"{telling_apart(tables[number], options)}"
            )
            continue
        own = usual if gaps or len(steps) < 2 else step_between(stamps)
        problems += first_problems(piece.name, uneven(stamps, own, piece.locate, advice, gaps=gaps))
    if len(steps) > 1 and not gaps and not problems:
        listing = "; ".join(f"{name}: every {step.words}" for _, step, name in steps.values())
        problems.append(f"series have rows of different steps: {listing}; give them apart, or bring them to one step")
    return usual, problems


def complete(pieces: Sequence[Piece], step: Step) -> tuple[list[Piece], list[str]]:
    """The series with rows of missing values where one is absent, and how many were put in."""
    whole, put_in, first = list[Piece](), 0, ""
    for piece in pieces:
        stamps = list(piece.stamps or ())
        write = time_writer(stamps)
        number = sum((step.between(*pair) or 1) - 1 for pair in pairwise(stamps))
        if number > _ABSENT * len(stamps) + 1000:
            raise UserError(
                f"{piece.name}: {number:,} rows would be put in between its {len(stamps):,}, one every {step}: a time "
                f"lies far from the others, {write(stamps[0])} to {write(stamps[-1])}; correct it, or set irregular = "
                '"ignore"'
            )
        if not number:
            whole.append(piece)
            continue
        times, rows = completed(stamps, step)
        whole.append(piece.with_absent(times, rows))
        first = first or f"{write(times[rows.index(-1)])} of {piece.name}"
        put_in += number
    return whole, [f"absent rows put in: {put_in:,}, the first {first}"] if put_in else []
