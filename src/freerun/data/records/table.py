"""Files of records as rows with named columns: JSON lines, JSON, CSV, TSV and Parquet, every fault by its line."""

from __future__ import annotations

import csv
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from freerun.brief import brief
from freerun.data.parquet import read_parquet, readable
from freerun.data.text import cells_of_any_size, first_problems, read_lines, refuse_no_file
from freerun.errors import UserError, shown

__all__ = ["ENDINGS", "FORMATS", "Table", "format_of", "parsed", "read_rows"]

ENDINGS = {
    ".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "json", ".csv": "csv", ".tsv": "tsv", ".parquet": "parquet",
    ".pq": "parquet",
}  # fmt: skip
"""How a file's name ends -> what it holds."""

FORMATS = ("jsonl", "json", "csv", "tsv", "parquet", "datasets")

Row = Mapping[str, Any]


@dataclass(frozen=True, eq=False)
class Table:
    """Rows of named cells.

    Args:
        origin: where they come from, for people.
        columns: all names that any row has, in the order in which they appear.
        rows: one mapping a row; a name that is not there is missing.
        places: where each row stands.
    """

    __repr__ = brief

    origin: str
    columns: tuple[str, ...]
    rows: Sequence[Row]
    places: Sequence[str]

    def __len__(self) -> int:
        return len(self.rows)


def format_of(path: Path, given: str | None) -> str:
    """The format of a file: what is given, or by its ending.

    Raises:
        UserError: the ending says nothing.

    >>> format_of(Path("train.jsonl"), None), format_of(Path("train.txt"), "csv")
    ('jsonl', 'csv')
    """
    found = given or ENDINGS.get(path.suffix.lower())
    if found is None:
        raise UserError(
            f"{path}: cannot tell what it holds from its ending {path.suffix!r}; it may be {', '.join(ENDINGS)}, or "
            "say so with format = ..."
        )
    return found


def read_rows(
    path: Path, *, format: str | None = None, separator: str = ",", encoding: str = "utf-8"
) -> tuple[Table, list[str]]:
    """The rows of one file, and what is wrong with it (at most 20 problems and a count of the rest).

    Args:
        path: the file.
        format: one of ``FORMATS`` but "datasets"; None: by its ending.
        separator: of a CSV file.
        encoding: of a text file; a byte order mark is dropped.

    Raises:
        UserError: the file as a whole cannot be read.
    """
    found = format_of(path, format)
    refuse_no_file(path, "a file")
    if found == "parquet":
        return _parquet(path), []
    expected = {"jsonl": "one JSON object a line", "json": "a list of JSON objects"}.get(
        found, "names of columns, then a row a line"
    )
    lines, broken = read_lines(path, encoding, expected)
    problems = first_problems(str(path), [text for _, text in broken])
    if found == "jsonl":
        table, more = _json_lines(path, lines)
    elif problems:
        return Table(str(path), (), (), ()), problems  # what stands around a broken line cannot be trusted
    elif found == "json":
        table, more = _json(path, "\n".join(text for _, text in lines))
    else:
        table, more = _cells(path, [text for _, text in lines], "\t" if found == "tsv" else separator)
    return table, first_problems(str(path), [*problems, *more])


class _TwiceError(ValueError):
    """A key that stands twice in one object."""


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        twice = next(name for name, count in Counter(name for name, _ in pairs).items() if count > 1)
        raise _TwiceError(f"the key {twice!r} is there more than once")
    return found


def parsed(text: str) -> Any:
    """What JSON says.

    Raises:
        ValueError: it is none, as JSONDecodeError; a key stands twice, it is nested too deeply, a number is too long.
    """
    try:
        return json.loads(text, object_pairs_hook=_object)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    except (json.JSONDecodeError, _TwiceError):
        raise
    except ValueError:
        raise ValueError("it holds a number of thousands of digits") from None


def _json_lines(path: Path, lines: Sequence[tuple[int, str]]) -> tuple[Table, list[str]]:
    rows: list[Row] = []
    places: list[str] = []
    problems: list[str] = []
    for number, text in lines:
        if not text.strip():
            continue
        place = f"{path}:{number}"
        try:
            row = parsed(text)
        except json.JSONDecodeError as error:
            problems.append(
                f"{place}: no JSON: {error.msg} at character {error.colno} of {shown(text, 40)}; expected one object a "
                "line"
            )
            continue
        except ValueError as error:
            problems.append(f"{place}: {error}; correct or delete the line")
            continue
        if isinstance(row, dict):
            rows.append(row)
            places.append(place)
        else:
            problems.append(f'{place}: {shown(text.strip(), 40)} is no object; expected {{"column": "text", ...}}')
    return _table(path, rows, places), problems


def _json(path: Path, text: str) -> tuple[Table, list[str]]:
    nothing = Table(str(path), (), (), ())
    try:
        found = parsed(text)
    except json.JSONDecodeError as error:
        lines = '; for one object a line set format = "jsonl"' if error.msg == "Extra data" else ""
        return nothing, [f"{path}:{error.lineno}: no JSON: {error.msg} at character {error.colno}{lines}"]
    except ValueError as error:
        return nothing, [f"{path}: {error}"]
    if not isinstance(found, list):
        return nothing, [f"{path}: holds {type(found).__name__}; expected a list of objects, [{{...}}, {{...}}]"]
    places = [f"{path}, entry {number}" for number in range(1, len(found) + 1)]
    problems = [f"{place}: is no object" for place, row in zip(places, found, strict=True) if not isinstance(row, dict)]
    return (nothing, problems) if problems else (_table(path, found, places), [])


def _table(path: Path, rows: Sequence[Row], places: Sequence[str]) -> Table:
    columns = dict.fromkeys(name for row in rows for name in row)
    return Table(str(path), tuple(columns), rows, places)


def _cells(path: Path, lines: Sequence[str], separator: str) -> tuple[Table, list[str]]:
    rows: list[Row] = []
    places: list[str] = []
    problems: list[str] = []
    reader = csv.reader((f"{line}\n" for line in lines), delimiter=separator, strict=True)
    names: list[str] | None = None
    while True:
        line = reader.line_num + 1
        try:
            with cells_of_any_size():
                cells = next(reader, None)
        except csv.Error as error:
            problems.append(
                f"{path}:{line}: {error}: a cell that holds a separator, a quote or a line end stands in quotes, and "
                'quotes in it are doubled, "like ""this"""'
            )
            break
        if cells is None:
            break
        if names is None:
            if not any(cell.strip() for cell in cells):
                continue
            names = cells
            problems += _heading_problems(f"{path}:{line}", names, separator)
            if problems and len(names) == 1:
                return Table(str(path), (), (), ()), problems
        elif cells and len(cells) != len(names):
            problems.append(f"{path}:{line}: has {len(cells)} cells, and the first line names {len(names)} columns")
        elif cells:
            rows.append(dict(zip(names, cells, strict=True)))
            places.append(f"{path}:{line}")
    return Table(str(path), tuple(names or ()), rows, places), problems


def _heading_problems(place: str, names: Sequence[str], separator: str) -> list[str]:
    marks = [mark for mark in ";\t,|" if mark != separator and mark in names[0]]
    if len(names) == 1 and marks:
        return [
            f"{place}: has one column, {names[0]!r}; is the separator {separator!r} right? "
            f"Where it is {marks[0]!r}, say so with separator = {json.dumps(marks[0])}"
        ]
    return [
        f"{place}: the column {name!r} is there {count} times; give every column its own name"
        for name, count in Counter(names).items()
        if count > 1 and name
    ]


def _parquet(path: Path) -> Table:
    frame = read_parquet(path)
    rows: list[Row] = readable(path, frame.to_dicts)
    return Table(str(path), tuple(frame.columns), rows, [f"{path}, row {n}" for n in range(1, len(rows) + 1)])
