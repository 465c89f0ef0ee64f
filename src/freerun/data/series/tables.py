"""CSV and Parquet files as columns of numbers and of time stamps, every wrong cell named by its line."""

from __future__ import annotations

import csv
import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, date, datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from freerun.brief import brief
from freerun.data.integrate import Array
from freerun.data.parquet import read_parquet, readable, unpanicked
from freerun.data.series.calendar import Stamp
from freerun.data.series.gaps import LARGEST
from freerun.data.text import (
    cells_of_any_size,
    first_problems,
    lines_of_column,
    read_lines,
    refuse_no_file,
    user_path,
)
from freerun.errors import UserError, needing, shown

__all__ = ["Table", "read_table"]

LONGEST = 500
"""Characters of a column's name: what is longer is a line that was taken for one."""

MISSING = ("", "nan", "na", "n/a", "null", "none")


@dataclass(frozen=True, eq=False)
class Table:
    """A file's columns.

    Args:
        path: the file.
        frame: a polars data frame; all columns of a CSV file are text.
        lines: line of each row; None where the file has rows only.
    """

    __repr__ = brief

    path: Path
    frame: Any
    lines: np.ndarray | None

    @property
    def columns(self) -> tuple[str, ...]:
        """Names, in order."""
        return tuple(self.frame.columns)

    def place(self, row: int) -> str:
        """Where a row stands."""
        return f"{self.path}: row {row + 1}" if self.lines is None else f"{self.path}:{self.lines[row]}"

    def numeric(self) -> tuple[str, ...]:
        """Columns of numbers: those where most of what is there can be read as one.

        Not only those where all can: one wrong cell should be an error, and not lose the column.
        """
        return tuple(name for name in self.columns if self._is_numeric(name))

    def _is_numeric(self, name: str) -> bool:
        numbers, wrong = self.numbers(name)
        meant = sum(bool(_with_commas(self.frame[name][row])) for row in wrong)
        there = int((~np.isnan(numbers)).sum()) + meant
        return there > 0 and there >= len(wrong) - meant

    def numbers(self, name: str) -> tuple[Array, list[int]]:
        """(rows,) numbers with NaN where there is none, and the rows whose text is none."""
        with needing("series", "reading series"):
            import polars as pl
        column = self.frame[name]
        if column.dtype == pl.String:
            text = column.str.strip_chars()
            numbers = text.cast(pl.Float64, strict=False)
            empty = text.is_null() | text.str.to_lowercase().is_in(MISSING)
            wrong = (numbers.is_null() & ~empty).arg_true().to_list()
        elif column.dtype.is_numeric() or column.dtype == pl.Boolean:
            numbers, wrong = column.cast(pl.Float64), []
        else:
            numbers = pl.Series([None] * len(column), dtype=pl.Float64)
            wrong = column.is_not_null().arg_true().to_list()
        return numbers.fill_null(float("nan")).to_numpy().astype(np.float64), wrong

    def no_number(self, name: str, row: int) -> str:
        """What to say of a cell that is no number."""
        cell = self.frame[name][row]
        advice = {
            0: "",
            1: "; write it with a point, {}",
            2: "; write {} if the comma marks the decimals, {} if it marks thousands",
        }
        meant = _with_commas(cell)
        return f"{self.place(row)}, column {name!r}: {shown(str(cell), 40)} is not a number" + (
            advice[len(meant)].format(*meant)
        )

    def groups(self, column: str | None) -> list[tuple[str, np.ndarray]]:
        """Name and rows of each series, in the order in which they begin; None: the file is one."""
        if column is None:
            return [(str(self.path), np.arange(len(self.frame)))]
        groups: dict[str, list[int]] = {}
        for row, name in enumerate(self.cells(column)):
            groups.setdefault(str(name), []).append(row)
        return [(f"{self.path}, {column} {shown(name)[1:-1]}", np.array(rows)) for name, rows in groups.items()]

    def cells(self, name: str) -> list[Any]:
        """The cells of a column.

        Raises:
            UserError: the column holds what Python has no objects for.
        """
        return readable(self.path, self.frame[name].to_list)

    def stamps(self, name: str) -> tuple[list[Stamp], list[str]]:
        """Time of each row (time zones are turned into UTC), and what is wrong.

        Numbers are taken as such; text must be ISO dates and times.
        """
        if self._is_numeric(name):
            numbers, _ = self.numbers(name)
            wrong = np.flatnonzero(~(np.abs(numbers) <= LARGEST)).tolist()
            advice = f"is no time stamp; the others are numbers, and none may be beyond {LARGEST:g}"
            return list(numbers.tolist()), lines_of_column(
                wrong,
                len(numbers),
                lambda row: f"{self.place(row)}, column {name!r}: {shown(self.frame[name][row], 40)} {advice}",
            )
        cells = self.cells(name)
        stamps = [_stamp(cell) for cell in cells]

        def line(row: int) -> str:
            cell = cells[row]
            there = "there is no time stamp of the years 1 to 9999"
            got = there if cell in (None, "") else f"{shown(str(cell), 40)} is no ISO time"
            return f"{self.place(row)}, column {name!r}: {got}; write it as 2020-12-31 23:00:00"

        wrong = [row for row, stamp in enumerate(stamps) if stamp is None]
        return [stamp or datetime.min for stamp in stamps], lines_of_column(wrong, len(cells), line)


def _with_commas(cell: Any) -> list[str]:
    """What a number that is written with commas may mean, with a point: they mark its decimals, or thousands."""
    text = cell.strip() if isinstance(cell, str) else ""
    decimal = re.fullmatch(r"[+-]?(\d+|\d{1,3}(\.\d{3})+),\d+([eE][+-]?\d+)?", text)
    thousands = re.fullmatch(r"[+-]?[1-9]\d{0,2}(,\d{3})+(\.\d+)?", text)
    return [text.replace(".", "").replace(",", ".")] * bool(decimal) + [text.replace(",", "")] * bool(thousands)


def _stamp(cell: Any) -> datetime | None:
    if isinstance(cell, str):
        try:
            cell = datetime.fromisoformat(cell.strip())
        except ValueError:
            return None
    if isinstance(cell, datetime):
        try:
            return cell if cell.tzinfo is None else cell.astimezone(UTC).replace(tzinfo=None)
        except OverflowError:  # in the first or the last hours that there are
            return None
    return datetime(cell.year, cell.month, cell.day) if isinstance(cell, date) else None


def read_table(path: str | Path, separator: str = ",") -> Table:
    """A CSV file (first line: names of columns) or a Parquet file (by its ending).

    Raises:
        UserError: polars is not installed; no such file, an empty one, or one that cannot be read.
    """
    file = user_path(path)
    with needing("series", "reading series"):
        import polars as pl
    refuse_no_file(file, "a CSV or Parquet file")
    parquet = file.suffix.lower() in (".parquet", ".pq")
    try:
        # glob: a name with [ ] * ? is a name, not a pattern that other files fit
        frame = read_parquet(file) if parquet else (
            unpanicked(file, lambda: pl.read_csv(file, separator=separator, infer_schema_length=0, glob=False), "CSV")
        )  # fmt: skip
    except (pl.exceptions.PolarsError, OSError) as error:
        raise UserError(_unreadable(file, separator, error)) from None
    problems = [
        f"{file}: column {found[1]!r} is there more than once; give every column its own name"
        for name in frame.columns
        if (found := re.fullmatch(r"(.*)_duplicated_\d+", name))
    ]
    if not len(frame):
        problems.append(f"{file}: has no rows; expected names of columns, then a row for every step")
    problems += [] if parquet else _heading_problems(file, frame.columns, separator) or _broken_cells(file, frame)
    if problems:
        raise UserError(problems)
    return Table(file, frame, None) if parquet else _numbered(file, frame)


def _heading_problems(file: Path, names: list[str], separator: str) -> list[str]:
    """What is wrong with the first line of a CSV file."""
    marks = [mark for mark in ";\t,|" if mark != separator and mark in names[0]]
    if len(names) == 1 and marks:
        return [
            f"{file}: has one column, {names[0]!r}; is the separator {separator!r} right? "
            f"Where it is {marks[0]!r}, say so with separator = ..."
        ]
    if long := [number for number, name in enumerate(names, start=1) if len(name) > LONGEST]:
        size = len(names[long[0] - 1])
        return [f"{file}:1: the name of column {long[0]} has {size:,} characters; is a quote or a line's end missing?"]
    if any("\N{REPLACEMENT CHARACTER}" in name for name in names):
        return [f"{file}:1: the names of the columns are not UTF-8 but maybe utf-16 or latin-1; save the file as UTF-8"]
    given = [name for name in names if name]
    counted_off = all(name.isdecimal() and len(name) < 10 for name in given) and {
        int(b) - int(a) for a, b in pairwise(given)
    } <= {1}
    if given and not counted_off and all(_is_value(name) for name in given):
        return [
            f"{file}:1: names no columns, it holds values: {shown(separator.join(names), 40)}; put a line with the "
            "names of the columns above it"
        ]
    return []


def _broken_cells(file: Path, frame: Any) -> list[str]:
    """Cells with a line break: a quote is missing somewhere, and rows were read as one cell."""
    problems: list[str] = []
    for name in frame.columns:
        if (broken := frame[name].str.contains("[\r\n]").arg_true()).len():
            problems.append(
                f"{file}: column {shown(name, 40)} holds a line break, {shown(frame[name][broken[0]], 40)} in row "
                f"{broken[0] + 1}; is a quote missing? No cell of a series needs one"
            )
    return problems


def _is_value(name: str) -> bool:
    try:
        float(name)
    except ValueError:
        return _stamp(name) is not None
    return True


def _numbered(file: Path, frame: Any) -> Table:
    """A CSV file's rows with their lines, without blank lines (in one column a blank line is a missing value)."""
    there = np.array([bool(line.strip()) for line in file.read_bytes().splitlines()][1:])
    lines = np.flatnonzero(there) + 2
    if len(there) == len(frame):
        return (
            Table(file, frame.filter(there), lines)
            if frame.width > 1
            else Table(file, frame, np.arange(len(there)) + 2)
        )
    return Table(file, frame, lines if len(lines) == len(frame) else np.arange(len(frame)) + 2)


def _widths(lines: Sequence[tuple[int, str]], separator: str) -> list[tuple[int, int]]:
    """Number and cells of each line, as far as they can be read."""
    found: list[tuple[int, int]] = []
    rows = csv.reader((line for _, line in lines), delimiter=separator)
    with cells_of_any_size(), suppress(csv.Error):
        for (number, _), row in zip(lines, rows, strict=False):
            found.append((number, len(row)))
    return found


def _unreadable(file: Path, separator: str, error: Exception) -> list[str]:
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    lines, problems = read_lines(file, expected="names of columns, then a row for every step")
    found = [text for _, text in problems]
    if not found:
        cells = _widths(lines, separator)
        wide = cells[0][1] if cells else 0
        if wide == 1 and (wrong := _heading_problems(file, [lines[0][1]], separator)):
            return wrong
        found = [
            f"{file}:{n}: has {size} cells, and the first line names {wide} columns; take out what is too much, or put "
            "a cell that holds a separator in quotes"
            for n, size in cells
            if size > wide
        ]
    return first_problems(str(file), found) or [f"{file}: cannot be read as CSV: {reason}"]
