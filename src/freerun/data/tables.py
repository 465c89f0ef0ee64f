"""Tables of named columns from JSON, CSV, TSV, Parquet, Arrow and text; every wrong cell is named by its line."""

from __future__ import annotations

import json
import os
import re
import tempfile
from collections import Counter
from collections.abc import Callable, Collection, Generator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import date, datetime
from functools import partial
from itertools import pairwise
from pathlib import Path
from threading import RLock
from typing import Any

import numpy as np

from freerun.arguments import brief
from freerun.data.delimited import other_separator, read_cells
from freerun.data.files import (
    LARGEST,
    Array,
    content_ending,
    few_lines,
    first_problems,
    lines_of_column,
    read_lines,
    refuse_no_file,
    user_path,
)
from freerun.data.numerals import remedy, with_commas, with_points
from freerun.data.times import Stamp, fitting_formats, formatted_time, iso_time
from freerun.errors import UserError, display, needing, out_of_memory, refuse

ENDINGS = {
    ".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "json", ".csv": "csv", ".tsv": "tsv", ".parquet": "parquet",
    ".pq": "parquet", ".arrow": "arrow", ".feather": "arrow", ".txt": "txt",
}  # fmt: skip
"""How a file's name ends -> what it holds."""
FORMATS = ("jsonl", "json", "csv", "tsv", "parquet", "arrow", "txt", "datasets")
FRAMES = {"parquet": "Parquet", "arrow": "Arrow"}
"""Formats of files that hold columns of types -> what messages call them."""
LONGEST = 500
"""Characters of a column's name: what is longer is a line that was taken for one."""
MISSING = ("", "nan", "na", "n/a", "null", "none")
_MARKS = ("#n/a", "<na>", "#na", "n.a.", "k.a.", "nil", "missing", "unknown", "\\n")
"""Other marks of a missing value, beside those without a letter or digit."""
ABSENT = object()
"""The cell of a row that has no such key."""
Row = Mapping[str, Any]
_ERRORS = RLock()
"""Held while standard error is somewhere else: of two threads one would put back the other's file."""
_DAYS = tuple(day.toordinal() - date(1970, 1, 1).toordinal() for day in (date.min, date.max))
"""The first and the last day that Python has, counted from 1970."""
_UNITS = {None: 1, "ms": 86_400_000, "us": 86_400_000_000, "ns": 86_400_000_000_000}
"""Unit of time -> how many a day has."""


@dataclass(frozen=True)
class TableForm:
    """How numbers and times stand in a table; its fields are those of ``SeriesOptions``."""

    separator: str = ","
    decimal: str = "."
    thousands: str | None = None
    time_format: str | None = None
    time_zone: str | None = None
    __repr__ = brief


@dataclass(frozen=True, eq=False)
class DataTable:
    """Columns of cells.

    Args:
        origin: the file, or where else they come from.
        columns: all names, in order.
        cells: column -> its cells, a list or a polars series; a column that nobody reads may be left out.
        locate: row -> where it stands.
        notes: what was found out about the file, for its reader to know.
        form: how numbers and times stand in it.
    """

    __repr__ = brief

    origin: str
    columns: tuple[str, ...]
    cells: Mapping[str, Any]
    locate: Callable[[int], str]
    notes: tuple[str, ...] = ()
    form: TableForm = TableForm()

    def __len__(self) -> int:
        return len(next(iter(self.cells.values()), ()))

    @property
    def rows(self) -> list[Row]:
        """Each row as a mapping; a key that it has not is left out."""
        rows = zip(*self.cells.values(), strict=True)
        return [{name: cell for name, cell in zip(self.cells, row, strict=True) if cell is not ABSENT} for row in rows]

    def values(self, name: str) -> list[Any]:
        """The cells of a column as objects; raise UserError if Python has none for them."""
        column = self.cells[name]
        return column if isinstance(column, list) else readable(self.origin, column.to_list)

    def locator(self, rows: np.ndarray) -> Callable[[int], str]:
        """Return where the rows of a series stand."""
        return lambda row: self.locate(int(rows[row]))

    def numeric(self) -> tuple[str, ...]:
        """Columns of which most cells can be read as numbers; one wrong cell is an error and loses no column."""
        return tuple(name for name in self.columns if self._is_numeric(name))

    def _is_numeric(self, name: str) -> bool:
        numbers, wrong = self.numbers(name)
        meant = sum(bool(self._meant(cell) or self._remedy(cell)) for cell in map(self.cells[name].__getitem__, wrong))
        count = int((~np.isnan(numbers)).sum()) + meant
        return count > 0 and count >= len(wrong) - meant

    def flags(self, name: str) -> bool:
        """True if a column holds true and false only."""
        with needing("series", "reading series"):
            import polars as pl
        column = self.cells[name]
        if column.dtype != pl.String:
            return column.dtype == pl.Boolean
        some = {cell.strip().lower() for cell in column.head(50).to_list() if cell is not None}
        if not some <= {"true", "false", *MISSING}:
            return False
        words = column.str.strip_chars().str.to_lowercase()
        return bool(words.is_in(("true", "false", *MISSING)).fill_null(True).all()) and bool(
            words.is_in(("true", "false")).any()
        )

    def numbers(self, name: str) -> tuple[Array, list[int]]:
        """(rows,) numbers with NaN where there is none, and the rows whose text is none; true is 1, false 0."""
        with needing("series", "reading series"):
            import polars as pl
        column = self.cells[name]
        if column.dtype == pl.String:
            text = column.str.strip_chars()
            empty = text.is_null() | text.str.to_lowercase().is_in(MISSING)
            if self.flags(name):
                numbers = (text.str.to_lowercase() == "true").cast(pl.Float64)
                numbers = numbers.zip_with(~empty, pl.Series([None] * len(text), dtype=pl.Float64))
            else:
                numbers = self._plain(text).cast(pl.Float64, strict=False)
            wrong = (numbers.is_null() & ~empty).arg_true().to_list()
        elif column.dtype.is_numeric() or column.dtype == pl.Boolean:
            numbers, wrong = column.cast(pl.Float64), []
        else:
            numbers = pl.Series([None] * len(column), dtype=pl.Float64)
            wrong = column.is_not_null().arg_true().to_list()
        return numbers.fill_null(float("nan")).to_numpy().astype(np.float64), wrong

    def _plain(self, text: Any) -> Any:
        """Texts with a point for the decimal mark and none for thousands; as they are where they stand otherwise."""
        decimal, thousands = self.form.decimal, self.form.thousands
        if thousands:
            mark = re.escape(thousands)
            grouped = text.str.contains(rf"^[+-]?\d{{1,3}}({mark}\d{{3}})+({re.escape(decimal)}\d*)?$")
            text = text.str.replace_all(thousands, "", literal=True).zip_with(grouped.fill_null(False), text)
        if decimal != ".":  # a point marks nothing then
            text = text.str.replace_all(".", "?", literal=True).str.replace_all(decimal, ".", literal=True)
        return text

    def block(self, names: Sequence[str], fill: Sequence[float] | None = None) -> tuple[Array, list[str]]:
        """(rows, names) numbers, and a line for each cell that is none; ``fill``, or counted numbers, replace them."""
        values = np.empty((len(self), len(names)))
        problems: list[str] = []
        for number, name in enumerate(names):
            values[:, number], wrong = self.numbers(name)
            # named here, and not again as missing or as constant
            values[wrong, number] = np.arange(len(wrong)) if fill is None else fill[number]
            problems += lines_of_column(wrong, len(self), lambda row, name=name: self._no_number(name, row))
        return values, problems

    def _no_number(self, name: str, row: int) -> str:
        cell = self.cells[name][row]
        meant = self._meant(cell)
        advice = (
            "",
            '; write it with a point, {}, or set decimal = ","',
            '; write {} if the comma marks the decimals, {} if it marks thousands, or set decimal or thousands = ","',
        )[len(meant)].format(*meant)
        if self.form.decimal != "." and isinstance(cell, str) and "." in cell:
            advice = f'; decimals are marked by {self.form.decimal!r}: set thousands = "." where a point groups digits'
        if not advice and (step := self._remedy(cell)):
            advice = f"; {step}"
        if isinstance(cell, str) and (not any(map(str.isalnum, cell)) or cell.strip().lower() in _MARKS):
            advice = (
                '; if it marks a missing value, leave the cell empty: missing = "mask", "last" or "linear" reads it'
            )
        return f"{self.locate(row)}, column {name!r}: {display(str(cell), 40)} is not a number{advice}"

    def _meant(self, cell: Any) -> list[str]:
        """The number that a cell may be, with other marks."""
        text = cell.strip() if isinstance(cell, str) else ""
        return with_commas(text) if self.form.decimal == "." else with_points(text)

    def _remedy(self, cell: Any) -> str:
        return remedy(cell.strip(), self.form.decimal) if isinstance(cell, str) else ""

    def groups(self, column: str | None) -> list[tuple[str, np.ndarray]]:
        """Name and rows of each series, in the order in which they begin; None: the table is one."""
        if column is None:
            return [(self.origin, np.arange(len(self)))]
        groups: dict[str, list[int]] = {}
        for row, name in enumerate(self.values(column)):
            groups.setdefault(str(name), []).append(row)
        return [(f"{self.origin}, {column} {display(name)[1:-1]}", np.array(rows)) for name, rows in groups.items()]

    def stamps(self, name: str, *, dates: bool = False) -> tuple[list[Stamp], list[str]]:
        """Time of each row: numbers as such, or dates and times, with their offset from UTC; and what is wrong."""
        numeric = self.form.time_format is None and self._is_numeric(name) and not self._compact(name)
        stamps: list[Stamp | None]
        if numeric:
            cells = self.cells[name]
            stamps = [number if abs(number) <= LARGEST else None for number in self.numbers(name)[0].tolist()]
        else:
            cells = self.values(name)
            stamps = [self._time(cell) for cell in cells]
        wrong = [row for row, stamp in enumerate(stamps) if stamp is None]
        problems = lines_of_column(wrong, len(cells), lambda row: self._no_time(name, row, cells, numeric))
        offsets = [row for row, stamp in enumerate(stamps) if isinstance(stamp, datetime) and stamp.tzinfo is not None]
        if offsets and len(offsets) + len(wrong) < len(stamps):
            some = set(offsets) if 2 * len(offsets) <= len(stamps) else set(range(len(stamps))) - {*offsets, *wrong}
            have = "has an offset from UTC, and others have none" if some <= {*offsets} else "has no offset from UTC"
            text = f"column {name!r}: {have}; write all times in one form"
            problems += lines_of_column(sorted(some), len(stamps), lambda row: f"{self.locate(row)}, {text}")
        if dates and numeric and not problems:
            problems = [
                f"{self.origin}, column {name!r}: holds numbers; calendar covariates need dates: set time_format where "
                'they are dates, such as "%Y%m"'
            ]
        return [datetime.min if stamp is None else stamp for stamp in stamps], problems

    def _time(self, cell: Any) -> datetime | None:
        if not isinstance(cell, str | date):
            cell = str(int(cell) if isinstance(cell, float) and cell.is_integer() else cell)
        form = self.form.time_format
        return iso_time(cell) if form is None else formatted_time(cell, form)

    def dated(self, name: str) -> bool:
        """True if most cells of a column are dates or times, not numbers; a wrong one is an error, and loses none."""
        if self.form.time_format is None and self._is_numeric(name):
            return self._compact(name)
        some = self.cells[name].gather_every(max(1, len(self) // 20)).to_list()
        if 2 * sum(self._time(cell) is not None for cell in some) <= len(some):
            return False
        return 2 * sum(self._time(cell) is not None for cell in self.values(name)) > len(self)

    def _compact(self, name: str) -> bool:
        """True if most cells of a column of numbers are dates as 20201231."""
        numbers = self.numbers(name)[0]
        numbers = numbers[(numbers >= 1e7) & (numbers < 1e8)]
        numbers = numbers[numbers % 1 == 0]
        if 2 * len(numbers) <= len(self):
            return False
        values, counts = np.unique(numbers, return_counts=True)
        dates = [iso_time(str(int(value))) is not None for value in values.tolist()]
        return 2 * int(counts[dates].sum()) > len(self)

    def _no_time(self, name: str, row: int, cells: Sequence[Any], numeric: bool) -> str:
        cell, at = cells[row], f"{self.locate(row)}, column {name!r}:"
        if numeric:
            limit = f"the others are numbers, and none may be beyond {LARGEST:g}"
            return f"{at} {display(cell, 40)} is no time stamp; {limit}"
        if cell in (None, ""):
            return f"{at} there is no time stamp of the years 1 to 9999; write it as 2020-12-31 23:00:00"
        form = self.form.time_format
        if form is not None:
            return f"{at} {display(str(cell), 40)} does not fit time_format = {json.dumps(form)}"
        meant = " or ".join(
            f"time_format = {json.dumps(each)}" for each in fitting_formats(list(dict.fromkeys(cells))[:500])[:2]
        )
        there = f"{at} {display(str(cell), 40)} is no ISO time; "
        return there + (f"set {meant}" if meant else "write it as 2020-12-31 23:00:00, or set time_format")


def read_rows(
    path: Path, *, format: str | None = None, separator: str = ",", encoding: str = "utf-8",
    quoting: str | None = None, header: bool | None = None, known: Collection[str] = (),
) -> tuple[DataTable, list[str]]:  # fmt: skip
    """Return the rows of one file, and what is wrong with it (at most 20 problems and a count of the rest).

    Args:
        path: the file.
        format: one of ``FORMATS`` but "datasets"; None: by its ending.
        separator: of a CSV file.
        encoding: of a text file; a byte order mark is dropped.
        quoting: of a CSV or TSV file, see ``read_cells``.
        header: of the same.
        known: the same; where there are any, a text file of which every line holds a tab is a TSV file.

    Raises:
        UserError: nothing of the file can be read.
    """
    refuse_no_file(path, "a file")
    kind = format or ENDINGS.get(content_ending(path))
    if kind is None:
        raise UserError(
            f"{path}: cannot tell what it holds from its ending {path.suffix!r}; it may be {', '.join(ENDINGS)}, or "
            "set format = ..."
        )
    if kind in FRAMES:
        frame = read_frame(path, kind)
        cells = {name: bare(readable(path, frame[name].to_list)) for name in frame.columns}
        return _of_frame(path, frame, cells), []
    expected = {
        "jsonl": "one JSON object a line", "json": "a list of JSON objects", "txt": "a text a line",
    }.get(kind, "names of columns, then a row a line")  # fmt: skip
    lines, broken = read_lines(path, encoding, expected)
    problems = first_problems(str(path), [text for _, text in broken])
    if kind == "txt" and not format and known and all("\t" in text for _, text in lines if text.strip()):
        kind = "tsv"
    if kind == "jsonl":
        rows, more = _json_lines(path, lines)
    elif kind == "txt":  # a text a line, in a column of that name
        rows, more = [(f"{path}:{number}", {"text": text}) for number, text in lines if text.strip()], []
    elif problems:
        return _of_rows(path, []), problems  # what stands around a broken line cannot be trusted
    elif kind == "json":
        rows, more = _json(path, "\n".join(text for _, text in lines))
    else:
        mark = "\t" if kind == "tsv" else separator
        cells = read_cells(path, [text for _, text in lines], mark, quoting=quoting, header=header, known=known)
        table = replace(_of_rows(path, cells.rows, cells.names), notes=tuple(cells.notes))
        return table, first_problems(str(path), cells.problems)
    return _of_rows(path, rows), first_problems(str(path), [*problems, *more])


def _of_rows(path: Path, rows: Sequence[tuple[str, Row]], names: Sequence[str] | None = None) -> DataTable:
    """The table of rows and where they stand; without ``names`` its columns are the keys, as they appear."""
    columns = tuple(dict.fromkeys(name for _, row in rows for name in row)) if names is None else tuple(names)
    cells = {name: [row.get(name, ABSENT) for _, row in rows] for name in columns}
    return DataTable(str(path), columns, cells, lambda number: rows[number][0])


def bare(cell: Any) -> Any:
    """A cell without the null entries of its objects: columns of Parquet and Arrow have every key in every row."""
    if isinstance(cell, Mapping):
        entries: Mapping[str, Any] = cell
        return {key: bare(part) for key, part in entries.items() if part is not None}
    return [bare(part) for part in cell] if isinstance(cell, list | tuple) else cell


def _of_frame(path: Path, frame: Any, cells: Mapping[str, Any] | None = None) -> DataTable:
    columns = tuple(frame.columns)
    return DataTable(
        str(path), columns, cells or {name: frame[name] for name in columns}, lambda row: f"{path}, row {row + 1}"
    )


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) < len(pairs):
        twice = next(name for name, count in Counter(name for name, _ in pairs).items() if count > 1)
        raise ValueError(f"the key {twice!r} is there more than once")
    return result


def parsed(text: str) -> Any:
    """Return the value of JSON; raise ValueError if a key stands twice, it nests too deeply, a number is too long."""
    try:
        return json.loads(text, object_pairs_hook=_object)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    except ValueError as error:
        if "set_int_max_str_digits" in str(error):
            raise ValueError("it holds a number of thousands of digits") from None
        raise


def _json_lines(path: Path, lines: Sequence[tuple[int, str]]) -> tuple[list[tuple[str, Row]], list[str]]:
    rows: list[tuple[str, Row]] = []
    problems: list[str] = []
    for number, text in lines:
        at = f"{path}:{number}"
        try:
            row = parsed(text) if text.strip() else None
        except json.JSONDecodeError as error:
            where = f"{error.msg} at character {error.colno} of {display(text, 40)}"
            problems.append(f"{at}: no JSON: {where}; expected one object a line")
            continue
        except ValueError as error:
            problems.append(f"{at}: {error}; correct or delete the line")
            continue
        if isinstance(row, dict):
            rows.append((at, row))
        elif text.strip():
            problems.append(f'{at}: {display(text.strip(), 40)} is no object; expected {{"column": "text", ...}}')
    return rows, problems


def _json(path: Path, text: str) -> tuple[list[tuple[str, Row]], list[str]]:
    try:
        value = parsed(text)
    except json.JSONDecodeError as error:
        lines = '; for one object a line set format = "jsonl"' if error.msg == "Extra data" else ""
        return [], [f"{path}:{error.lineno}: no JSON: {error.msg} at character {error.colno}{lines}"]
    except ValueError as error:
        return [], [f"{path}: {error}"]
    if not isinstance(value, list):
        return [], [f"{path}: holds {type(value).__name__}; expected a list of objects, [{{...}}, {{...}}]"]
    rows = [(f"{path}, entry {number}", row) for number, row in enumerate(value, start=1)]
    problems = [f"{at}: is no object" for at, row in rows if not isinstance(row, dict)]
    return ([] if problems else rows), problems


def read_table(path: str | Path, form: TableForm | None = None) -> DataTable:
    """A CSV file (first line: names of columns), or a Parquet or Arrow file (by its ending)."""
    file, form = user_path(path), form or TableForm()
    separator = form.separator
    with needing("series", "reading series"):
        import polars as pl
    refuse_no_file(file, "a CSV or Parquet file")
    kind = ENDINGS.get(file.suffix.lower())
    if kind in FRAMES:
        frame = read_frame(file, kind)
    else:
        try:
            # glob: a name with [ ] * ? is a name, not a pattern that other files fit
            read = partial(pl.read_csv, file, separator=separator, infer_schema_length=0, glob=False)
            frame = readable(file, read, "CSV")
        except UserError as error:
            lines, broken = read_lines(file, expected="names of columns, then a row for every step")
            problems = [text for _, text in broken] or read_cells(
                file, [text for _, text in lines], separator, quoting="minimal"
            ).problems
            raise UserError(first_problems(str(file), problems or error.problems)) from None
    problems = [
        f"{file}: column {double[1]!r} is there more than once; give every column its own name"
        for name in frame.columns
        if (double := re.fullmatch(r"(.*)_duplicated_\d+", name))
    ]
    if not len(frame):
        problems.append(f"{file}: has no rows; expected names of columns, then a row for every step")
    refuse(problems + ([] if kind in FRAMES else _csv_problems(file, frame, separator)))
    if kind in FRAMES:
        return replace(_of_frame(file, frame), form=form)
    raw = file.read_bytes().splitlines()
    refuse(_short_lines(file, raw, frame.width, separator.encode()))
    # rows with their lines, without blank lines (in one column a blank line is a missing value)
    there = np.array([bool(line.strip()) for line in raw][1:])
    lines = np.flatnonzero(there) + 2
    if len(there) == len(frame) and frame.width > 1:
        frame = frame.filter(there)
    elif len(lines) != len(frame):
        lines = np.arange(len(frame)) + 2
    return replace(_of_frame(file, frame), locate=lambda row: f"{file}:{lines[row]}", form=form)


def _csv_problems(file: Path, frame: Any, separator: str) -> list[str]:
    """What is wrong with the first line of a CSV file, or cells with a line break: a quote is missing somewhere."""
    names: list[str] = frame.columns
    if wrong := other_separator(str(file), names, separator):
        return [wrong]
    if long := [number for number, name in enumerate(names, start=1) if len(name) > LONGEST]:
        size = len(names[long[0] - 1])
        return [f"{file}:1: the name of column {long[0]} has {size:,} characters; is a quote or a line's end missing?"]
    if any("\N{REPLACEMENT CHARACTER}" in name for name in names):
        return [f"{file}:1: the names of the columns are not UTF-8 but maybe utf-16 or latin-1; save the file as UTF-8"]
    named = [name for name in names if name]
    years = all(name.isdecimal() and len(name) < 10 for name in named)
    years = years and all(int(after) - int(before) == 1 for before, after in pairwise(named))
    if named and not years and all(_is_value(name) for name in named):
        return [
            f"{file}:1: names no columns, it holds values: {display(separator.join(names), 40)}; put a line with the "
            "names of the columns above it"
        ]
    return [
        f"{file}: column {display(name, 40)} holds a line break, {display(frame[name][rows[0]], 40)} in row "
        f"{rows[0] + 1}; is a quote missing? No cell of a series needs one"
        for name in names
        if (rows := frame[name].str.contains("[\r\n]").arg_true()).len()
    ]


def _short_lines(file: Path, lines: Sequence[bytes], width: int, separator: bytes) -> list[str]:
    """Lines with fewer cells than columns: the file was cut off there, or something is left out."""
    short = [
        number
        for number, line in enumerate(lines)
        if b'"' not in line and line.count(separator) + 1 < width and line.strip() and number
    ]

    def line(number: int) -> str:
        cells = lines[number].count(separator) + 1
        has = f"{cells} cell{'s' * (cells > 1)}"
        return f"{file}:{number + 1}: has {has}, and the first line names {width} columns{advice}"

    # a heading such as "year<tab>price, EUR" holds both marks, and one of them only as often as the rows do
    marks = [mark for mark in ";\t,|" if short and mark.encode() != separator and mark.encode() in lines[0]]
    fits = [mark for mark in marks if lines[short[0]].count(mark.encode()) == lines[0].count(mark.encode())]
    advice = f"; where {fits[0]!r} is between the columns, set separator = {json.dumps(fits[0])}" if fits else ""
    return [text for _, text in few_lines(short, len(lines), line, "lines")]


def _is_value(name: str) -> bool:
    try:
        float(name)
    except ValueError:
        return iso_time(name) is not None or bool(with_commas(name) or fitting_formats([name]))
    return True


def read_frame(path: Path, kind: str) -> Any:
    """Return the polars data frame of a file; dates beyond the years 1 to 9999, which Python has not, are null."""
    with needing("series", f"{path}: reading {FRAMES[kind]}"):
        import polars as pl
    if kind == "parquet":  # glob: a name with [ ] * ? is a name, not a pattern that other files fit
        read: Callable[[], Any] = lambda: pl.read_parquet(path, glob=False)  # noqa: E731
    else:  # as a file, or as the stream that the library datasets writes
        raw = path.read_bytes()
        of_bytes = pl.read_ipc if raw.startswith(b"ARROW1") else pl.read_ipc_stream
        read = lambda: of_bytes(raw)  # noqa: E731
    frame = readable(path, read, FRAMES[kind])
    for name, dtype in zip(frame.columns, frame.dtypes, strict=True):
        column = frame[name]
        if dtype == pl.Duration:
            frame = frame.with_columns(column.to_physical())
        elif dtype in (pl.Date, pl.Datetime):
            day = _UNITS[getattr(dtype, "time_unit", None)]
            number = column.to_physical().cast(pl.Float64)
            # half a day away from either end: time zones are turned into UTC
            there = number.is_between((_DAYS[0] + 0.5) * day, (_DAYS[1] - 0.5) * day).fill_null(False)
            frame = frame.with_columns(column.zip_with(there, pl.Series(name, [None], dtype=dtype)))
    return frame


def readable(path: Path | str, read: Callable[[], Any], format: str = "Parquet") -> Any:
    """Return what a function of polars reads; raise UserError if the file is damaged or has no Python objects."""
    try:
        with _errors_held_back():
            return read()
    except BaseException as error:
        if type(error).__name__ == "PanicException":  # which is no ``Exception``
            reason = f"is damaged: polars fails on its content as {format}; write or copy the file anew"
        elif not isinstance(error, Exception) or out_of_memory(error):
            raise
        else:
            reason = f"cannot be read as {format}: {(str(error).splitlines() or [type(error).__name__])[0]}"
    raise UserError(f"{path}: {reason}")


@contextmanager
def _errors_held_back() -> Generator[None]:
    """Inside, what is written to the process's standard error waits; after a panic it is left out."""
    with _ERRORS, tempfile.TemporaryFile() as held:
        try:
            kept = os.dup(2)
        except OSError:  # there is none
            yield
            return
        os.dup2(held.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(kept, 2)
            os.close(kept)
            held.seek(0)
            if b"panicked at" not in (text := held.read()):
                with suppress(OSError):
                    os.write(2, text)
