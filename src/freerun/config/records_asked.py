"""Lines that a model of records is to answer: plain text or JSON objects, and what is wrong with them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from freerun.config.text_kind import unescaped
from freerun.errors import listed, shown

if TYPE_CHECKING:
    from freerun.data.records import RecordCoder

__all__ = ["asked_of"]


def asked_of(
    coder: RecordCoder, lines: Sequence[str], places: Sequence[str]
) -> tuple[list[dict[str, Any] | None], list[Any], list[str]]:
    """Each line's object (None: it is plain text), what is told of it ("" where it is no good), and what is wrong.

    Args:
        coder: says what records are, and the column that is told.
        lines: what was given; where the first is a JSON object, all must be.
        places: where each stands.
    """
    rows: list[dict[str, Any] | None] = []
    told: list[Any] = []
    problems: list[str] = []
    objects = bool(lines) and lines[0].lstrip().startswith("{")
    for line, place in zip(lines, places, strict=True):
        row, text, problem = _of_object(coder, line) if objects else (None, unescaped(line), "")
        if not problem and (not text or (isinstance(text, str) and not text.strip())):
            problem = "is empty; expected a source or prompt"
        if problem:
            problems.append(f"{place}: {problem}")
        rows.append(row)
        told.append("" if problem else text)
    return rows, told, problems


def _of_object(coder: RecordCoder, line: str) -> tuple[dict[str, Any] | None, Any, str]:
    """The object of a line, what is told of it, and what is wrong."""
    from freerun.data.records.table import parsed

    column = next(iter(coder.columns.values()))
    if not line.strip():
        return None, "", ""
    try:
        row = parsed(line)
    except ValueError as error:
        return None, "", f"no JSON: {error}; the first line is an object, so all must be"
    if not isinstance(row, dict):
        return None, "", f"is no object; the first line is one, so all must be: {{{json.dumps(column)}: ...}}"
    if column not in row:
        return row, "", f"has no {column!r}; it has {listed(row) or 'nothing'}"
    if "output" in row:
        return row, "", "has an 'output' already, where the answer is written: rename it, or leave it out"
    return row, *_told(coder, column, row[column])


def _told(coder: RecordCoder, column: str, cell: Any) -> tuple[Any, str]:
    """What is told by a cell, and what is wrong with it."""
    from freerun.data.records.columns import messages_problem, no_text

    if cell is None or isinstance(cell, str):
        wrong = no_text(cell)
        return ("", f"column {column!r} {wrong}") if wrong else (cell, "")
    if coder.shape != "messages":
        return "", f"column {column!r} holds a {type(cell).__name__}, {shown(cell, 40)}; expected text"
    if problem := messages_problem(cell):
        return "", f"column {column!r} {problem}"
    return tuple(cell[:-1] if cell and cell[-1]["role"] == "assistant" else cell), ""
