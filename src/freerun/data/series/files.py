"""Series from CSV and Parquet files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path

import numpy as np

from freerun.data.files import counted, first_problems, lines_of_column
from freerun.data.series.building import Piece, build_series
from freerun.data.series.options import Channels, Layout, SeriesOptions, check_layout, columns_by_part
from freerun.data.series.time_stamps import step_between, uneven
from freerun.data.series.windows import SeriesData
from freerun.data.tables import DataTable, Stamp, read_table
from freerun.errors import UserError, listed, refuse


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
    >>> data.names, data.windows("train"), data.windows("test"), data.codec.step
    (('load',), 16, 4, '86400 seconds')
    """
    options = options or SeriesOptions()
    files = [Path(paths)] if isinstance(paths, str | Path) else [Path(path) for path in paths]
    problems = check_layout(layout, options.observed)
    if not files:
        problems.append("no file was given; give at least one CSV or Parquet file")
    tables: list[DataTable] = []
    for file in files:
        try:
            tables.append(read_table(file, options.separator))
        except UserError as error:
            problems += error.problems
    refuse(problems)
    channels, problems = _channels(tables, options)
    refuse(problems)
    pieces: list[Piece] = []
    for table in tables:
        found, wrong = _pieces(table, channels, options)
        pieces += found
        problems += first_problems(table.origin, wrong)
    problems += _apart(pieces, options)
    # where time stamps are wrong nothing is computed from them: the other problems are still reported
    given = replace(options, calendar=()) if problems else options
    try:
        data = build_series(", ".join(map(str, files)), pieces, channels, given, layout)
    except UserError as error:
        raise UserError(problems + error.problems) from None
    refuse(problems)
    named = {*channels.names, options.time, options.series}
    unused = [name for name in tables[0].columns if name not in named]
    if unused and not options.targets:
        data = replace(data, notes=(*data.notes, f"not used, for they do not hold numbers: {listed(unused)}"))
    return data


def _channels(tables: Sequence[DataTable], options: SeriesOptions) -> tuple[Channels, list[str]]:
    """Columns by part: as the first file has them; the others must have them too."""
    first = tables[0]
    channels, problems = columns_by_part(first.columns, first.numeric(), options, first.origin)
    needed = [*channels.names, *(name for name in (options.time, options.series) if name)]
    problems += [
        f"{table.origin}: has no column {name!r}, which {first.origin} has; there are: {listed(table.columns)}"
        for table in tables[1:]
        for name in needed
        if name in first.columns and name not in table.columns
    ]
    return channels, problems


def _pieces(table: DataTable, channels: Channels, options: SeriesOptions) -> tuple[list[Piece], list[str]]:
    """The series of a file, and its cells that are no numbers, and its time stamps that are none."""
    values, problems = table.block(channels.names)
    stamps: list[Stamp] | None = None
    if options.time is not None:
        stamps, unclear = table.stamps(options.time)
        if options.calendar and not unclear and not isinstance(stamps[0], datetime):
            unclear = [f"{table.origin}, column {options.time!r}: holds numbers, and calendar = ... needs dates"]
        problems += unclear
        stamps = None if unclear else stamps
    if options.series is not None:
        unnamed = [row for row, cell in enumerate(table.values(options.series)) if cell is None]
        text = f"column {options.series!r}: does not say which series the row belongs to"
        problems += lines_of_column(unnamed, len(values), lambda row: f"{table.place(row)}, {text}")
    return [_piece(table, name, rows, values, stamps) for name, rows in table.groups(options.series)], problems


def _piece(table: DataTable, name: str, rows: np.ndarray, values: np.ndarray, stamps: list[Stamp] | None) -> Piece:
    own = None if stamps is None else [stamps[row] for row in rows.tolist()]
    return Piece(name, values[rows], own, lambda row: table.place(int(rows[row])))


def _apart(pieces: Sequence[Piece], options: SeriesOptions) -> list[str]:
    """Time stamps that are duplicated, unsorted or not evenly spaced, and series of other steps than the first."""
    if options.irregular == "ignore":
        return []
    problems: list[str] = []
    steps: dict[str, str] = {}
    for piece in pieces:
        stamps = piece.stamps or ()
        step = step_between(stamps)
        if step is not None:
            steps.setdefault(str(step), piece.name)
        found = uneven(stamps, step, piece.place, ', or set irregular = "ignore"')
        again = len(stamps) - len(set(stamps))
        if options.series is None and again > len(stamps) // 10:
            found.insert(
                0,
                f"{piece.name}: {counted(again, 'time stamp')} came before in the file; where it holds several series, "
                "name the column that tells them apart with series = ...",
            )
        problems += first_problems(piece.name, found)
    if len(steps) > 1 and not problems:
        listing = "; ".join(f"{name}: every {step}" for step, name in steps.items())
        problems.append(f"series have rows of different steps: {listing}; give them apart, or bring them to one step")
    return problems
