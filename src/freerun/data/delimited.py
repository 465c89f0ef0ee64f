"""Lines of cells between separators: CSV and TSV, with quotation marks that enclose cells or are letters."""

from __future__ import annotations

import csv
import json
import re
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from freerun.arguments import brief
from freerun.data.files import counted
from freerun.errors import display

_SENTENCE = re.compile(r"""[.!?…。！？؟।]["'”’»)\]]*$""")
"""How a sentence ends, and no name of a column."""
_LONG = 60
"""Characters of a cell that is no name of a column."""


@dataclass(frozen=True)
class Cells:
    """What a file of cells holds.

    Args:
        names: of the columns; "1", "2" and so on where no line names them.
        rows: the line that each begins on, and its cells by column.
        problems: what is wrong, by line.
        notes: what was found out about the file, for its reader to know.
    """

    __repr__ = brief

    names: Sequence[str]
    rows: list[tuple[str, dict[str, str]]]
    problems: list[str]
    notes: list[str] = field(default_factory=list[str])


@dataclass(frozen=True)
class _Reading:
    """One reading of the lines: (first line, last line, cells) of every record, and the errors by line."""

    __repr__ = brief

    records: list[tuple[int, int, list[str]]]
    errors: list[tuple[int, str]]

    @property
    def wrong(self) -> int:
        """Number of records that do not fit the first one, and of errors."""
        width = len(self.records[0][2]) if self.records else 0
        return len(self.errors) + sum(len(cells) != width for _, _, cells in self.records)

    @property
    def long(self) -> list[tuple[int, int, list[str]]]:
        """Records of several lines."""
        return [record for record in self.records if record[1] > record[0]]


def read_cells(
    path: Path, lines: Sequence[str], separator: str, *,
    quoting: str | None = None, header: bool | None = None, known: Collection[str] = (),
) -> Cells:  # fmt: skip
    """Return the cells of a file's lines.

    Args:
        path: names the file in messages.
        lines: without their ends.
        separator: a tab for TSV.
        quoting: "minimal": quotation marks enclose cells that hold separators, line ends or quotation marks (doubled);
            "none": they are letters; None: found. Lines are never joined in silence: where both readings fit and
            differ in records, the one by lines is taken of TSV, and CSV is refused.
        header: whether the first line names the columns; None: found, by ``known``.
        known: names of columns that are expected; none: the first line names the columns.
    """
    quoted = any('"' in line for line in lines)
    notes: list[str] = []
    if not quoted or quoting == "none":
        reading, minimal = _plain(lines, separator), quoting == "minimal"
    elif quoting == "minimal":
        reading, minimal = _quoted(lines, separator), True
    else:
        found = _fitting(path, _quoted(lines, separator), _plain(lines, separator), separator, notes)
        if isinstance(found, str):
            return Cells((), [], [found])
        reading, minimal = found
    first = reading.records[0] if reading.records else (0, 0, [])
    if not first[2]:
        return Cells((), [], _errors(path, reading, separator))
    if wrong := other_separator(f"{path}:{first[0] + 1}", first[2], separator):
        return Cells((), [], [wrong])
    heading = _is_heading(first[2], known) if header is None else header
    if not heading and header is None:
        notes.append(f"{path}: its first line, {display(separator.join(first[2]), 40)}, is a row, not names of columns")
    names = first[2] if heading else [str(number) for number in range(1, len(first[2]) + 1)]
    rows, problems = _rows(path, reading, names, heading=heading, minimal=minimal)
    return Cells(names, rows, problems + _errors(path, reading, separator), notes)


def _rows(
    path: Path, reading: _Reading, names: Sequence[str], *, heading: bool, minimal: bool
) -> tuple[list[tuple[str, dict[str, str]]], list[str]]:
    at = f"{path}:{reading.records[0][0] + 1}"
    problems = [
        f"{at}: the column {name!r} is there {count} times; give every column its own name"
        for name, count in Counter(names).items()
        if count > 1 and name
    ]
    rows: list[tuple[str, dict[str, str]]] = []
    more = "put a cell that holds a separator in quotes" if minimal else "separators within cells are not possible"
    for begin, _, cells in reading.records[heading:]:
        at = f"{path}:{begin + 1}"
        if len(cells) == len(names):
            rows.append((at, dict(zip(names, cells, strict=True))))
            continue
        size = f"has {counted(len(cells), 'cell')}, and the first line "
        size += f"names {counted(len(names), 'column')}" if heading else f"has {len(names)}"
        problems.append(f"{at}: {size}{f'; take out what is too much, or {more}' * (len(cells) > len(names))}")
    return rows, problems


def _errors(path: Path, reading: _Reading, separator: str) -> list[str]:
    return [
        f"{path}:{line + 1}: {error}: a cell that holds a separator, a quote or a line end stands in quotes, and "
        'quotes in it are doubled, "like ""this"""; where quotation marks are letters set quoting = "none"'
        for line, error in reading.errors
    ]


def _fitting(
    path: Path, quoted: _Reading, plain: _Reading, separator: str, notes: list[str]
) -> tuple[_Reading, bool] | str:
    """The reading that fits the lines, and whether it is the quoted one; or why neither can be chosen."""
    tabs = separator == "\t"
    if tabs and any(separator in cell and "\n" in cell for _, _, cells in quoted.long for cell in cells):
        enclosed = False  # lines of their own that a quotation mark at a beginning and one at an end would join
    elif not quoted.wrong and not plain.wrong and quoted.long:
        begin, end, _ = quoted.long[0]
        return (
            f"{path}:{begin + 1}: the quotation mark here and the one in line {end + 1} may enclose one cell of "
            f'{end - begin + 1} lines, or be letters of lines of their own: set quoting = "minimal" or "none"'
        )
    else:
        enclosed = not quoted.wrong if not tabs or plain.wrong else not quoted.wrong and _are_needed(plain)
        enclosed = enclosed or (not tabs) or (bool(quoted.wrong) and quoted.wrong < plain.wrong)
    if not enclosed:
        notes.append(f'{path}: quotation marks are letters (quoting = "none")')
        return plain, False
    if quoted.long:
        notes.append(f"{path}: {counted(len(quoted.long), 'row')} over several lines, in quotation marks")
    return quoted, True


def _are_needed(plain: _Reading) -> bool:
    """Whether a file is as programs write it: in quotation marks stands what needs them, or every text."""
    cells = [cell for _, _, cells in plain.records for cell in cells if cell]
    enclosed = [cell for cell in cells if cell.startswith('"')]
    others = [cell for cell in cells if not cell.startswith('"') and not re.fullmatch(r"[+-]?[\d.eE+-]+|NA|nan", cell)]
    return not others or all('""' in cell[1:-1] for cell in enclosed)


def _plain(lines: Sequence[str], separator: str) -> _Reading:
    """Every line is a record and every quotation mark a letter."""
    rows = [(number, number, line.split(separator)) for number, line in enumerate(lines)]
    return _Reading(_without_blank(rows), [])


def _quoted(lines: Sequence[str], separator: str) -> _Reading:
    """Cells in quotation marks may hold separators, line ends and doubled quotation marks."""
    records: list[tuple[int, int, list[str]]] = []
    errors: list[tuple[int, str]] = []
    begin = 0
    limit = csv.field_size_limit(2**31 - 1)  # it is the process's, and put back
    try:
        while begin < len(lines) and len(errors) < 20:
            start = begin
            reader = csv.reader((f"{line}\n" for line in lines[start:]), delimiter=separator, strict=True)
            try:
                for cells in reader:
                    records.append((begin, start + reader.line_num - 1, cells))
                    begin = start + reader.line_num
            except csv.Error as error:  # the lines after it may be wrong too
                errors.append((begin, str(error)))
                begin += 1
    finally:
        csv.field_size_limit(limit)
    return _Reading(_without_blank(records), errors)


def _without_blank(records: list[tuple[int, int, list[str]]]) -> list[tuple[int, int, list[str]]]:
    """Records without blank lines, and before the heading without lines of empty cells."""
    first = next((n for n, (_, _, cells) in enumerate(records) if any(cell.strip() for cell in cells)), len(records))
    return [record for record in records[first:] if len(record[2]) > 1 or "".join(record[2]).strip()]


def _is_heading(cells: Sequence[str], known: Collection[str]) -> bool:
    """Whether a first line names columns: one is expected, or none looks like a sentence."""
    if not known or any(cell.strip() in known for cell in cells):
        return True
    numbered = any(name in known for name in map(str, range(1, len(cells) + 1)))
    return not numbered and not any(_SENTENCE.search(cell.strip()) or len(cell) > _LONG for cell in cells)


def other_separator(at: str, names: Sequence[str], separator: str) -> str | None:
    """The problem of a heading that is one column and holds another separator."""
    marks = [mark for mark in ";\t,|" if mark != separator and mark in names[0]]
    if len(names) > 1 or not marks:
        return None
    return (
        f"{at}: has one column, {names[0]!r}; is the separator {separator!r} right? Where it is {marks[0]!r}, set "
        f"separator = {json.dumps(marks[0])}"
    )
