"""From rows to records: which columns say what is told and what is to be said, and what is wrong with their cells."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from freerun.brief import brief
from freerun.data.records.table import Table, parsed
from freerun.data.text import counted, first_problems
from freerun.errors import UserError, listed, shown

__all__ = ["SHAPES", "Message", "Record", "messages_problem", "shape_of", "table_records"]

SHAPES: dict[str, tuple[str, ...]] = {
    "pairs": ("source", "target"),
    "completions": ("prompt", "completion"),
    "messages": ("messages",),
    "text": ("text",),
}
"""What records can be -> the parts that a column is named for."""

Message = Mapping[str, Any]


@dataclass(frozen=True)
class Record:
    """One example, as text.

    Args:
        place: where it stands.
        told: source or prompt; of messages all but the last; "" of plain text.
        said: target, completion, the last message's content, or the text.
    """

    __repr__ = brief

    place: str
    told: str | tuple[Message, ...]
    said: str


def shape_of(columns: Mapping[str, str | None], table: Table) -> tuple[str, dict[str, str]]:
    """What the records are, and the column of each part.

    Args:
        columns: part -> column as the user named them. Where none is named, a table that has ``source`` and ``target``,
            ``prompt`` and ``completion``, or ``messages``, has them.
        table: the training rows.

    Raises:
        UserError: parts of two shapes, half a shape, or none that the table has.
    """
    given = {part: name for part, name in columns.items() if name is not None}
    if not given:
        for shape, parts in SHAPES.items():
            if shape != "text" and all(part in table.columns for part in parts):
                return shape, {part: part for part in parts}
        raise UserError(
            f"{table.origin}: cannot tell which columns to use; it has {listed(table.columns) or 'none'}; name "
            "them: source and target (encoder-decoder), prompt and completion, messages, or text"
        )
    fitting = [shape for shape, parts in SHAPES.items() if set(parts) == set(given)]
    if not fitting:
        sets = "; ".join(" and ".join(parts) for parts in SHAPES.values())
        raise UserError(f"columns are named for {', '.join(given)}; one of these is needed, whole: {sets}")
    return fitting[0], given


def table_records(
    table: Table, shape: str, columns: Mapping[str, str], empty: str
) -> tuple[list[Record], int, list[str]]:
    """The records of a table, how many rows were left out as empty, and what is wrong with the others.

    Args:
        table: the rows.
        shape: a name in ``SHAPES``.
        columns: part -> column.
        empty: "error", or "drop" rows of which a part is null, blank or not there.
    """
    absent = [name for name in columns.values() if name not in table.columns]
    if absent:
        has = listed(table.columns) or "none"
        return [], 0, [f"{table.origin}: has no column {name!r}; its columns are {has}" for name in absent]
    records: list[Record] = []
    problems: list[str] = []
    left_out = 0
    for row, place in zip(table.rows, table.places, strict=True):
        cells = [(name, row.get(name)) for name in columns.values()]
        blank = [name for name, cell in cells if _is_blank(cell)]
        if blank and empty == "drop":
            left_out += 1
        elif blank:
            problems.append(
                f"{place}: column {blank[0]!r} is {_called(row, blank[0])}; fill it in, delete the row, or set empty = "
                '"drop"'
            )
        elif shape == "messages":
            found = _messages(cells[0][1])
            if isinstance(found, str):
                problems.append(f"{place}: column {cells[0][0]!r} {found}")
            else:
                records.append(Record(place, found[:-1], str(found[-1]["content"])))
        elif wrong := [(name, cell) for name, cell in cells if not isinstance(cell, str)]:
            name, cell = wrong[0]
            problems.append(f"{place}: column {name!r} holds a {type(cell).__name__}, {shown(cell, 40)}; expected text")
        elif wrong := [name for name, cell in cells if no_text(cell)]:
            problems.append(f"{place}: column {wrong[0]!r} {no_text(row.get(wrong[0]))}")
        else:
            texts = [str(cell) for _, cell in cells]
            records.append(Record(place, texts[0] if len(texts) == 2 else "", texts[-1]))
    if not records and not problems:
        problems.append(
            f"{table.origin}: holds no row" if not len(table) else
            f"{table.origin}: nothing is left: {counted(left_out, 'row')} with an empty column"
        )  # fmt: skip
    return records, left_out, first_problems(table.origin, problems)


def _is_blank(cell: Any) -> bool:
    return cell is None or (isinstance(cell, str) and not cell.strip()) or (isinstance(cell, list) and not cell)


def _called(row: Mapping[str, Any], name: str) -> str:
    return "missing" if name not in row else "null" if row[name] is None else "empty"


def no_text(cell: Any) -> str:
    """What is wrong with a text that no file can hold; "" where nothing is.

    >>> no_text("caf\\u00e9"), no_text("\\ud800")
    ('', "holds half of a surrogate pair, '\\\\ud800', which is no character")
    """
    found = re.search("[\ud800-\udfff]", cell) if isinstance(cell, str) else None
    return f"holds half of a surrogate pair, {shown(found[0])}, which is no character" if found else ""


def messages_problem(cell: Any) -> str:
    """What is wrong with a conversation, whoever speaks last; "" where nothing is.

    >>> messages_problem([{"role": "user"}])
    'has no role and content, both text, in message 1'
    """
    if not isinstance(cell, Sequence) or not all(isinstance(message, Mapping) for message in cell):
        return 'holds no conversation; expected a list of {"role": ..., "content": ...}'
    for number, message in enumerate(cell, start=1):
        if not isinstance(message.get("role"), str) or not isinstance(message.get("content"), str):
            return f"has no role and content, both text, in message {number}"
        if wrong := no_text(message["role"]) or no_text(message["content"]):
            return f"{wrong}, in message {number}"
    return ""


def _messages(cell: Any) -> tuple[Message, ...] | str:
    """A conversation that ends with the assistant, or what is wrong with it."""
    if isinstance(cell, str):
        try:
            cell = parsed(cell)
        except ValueError:
            return "holds text that is no JSON; expected a list of {role, content}"
    if problem := messages_problem(cell):
        return problem
    role = cell[-1]["role"]
    if role != "assistant":
        return f"ends with a message of {shown(role, 40)}; the last must be the assistant's: it is what is learnt"
    if not cell[-1]["content"].strip():
        return "ends with an empty message; there is nothing to learn in it"
    # columns of Parquet have every key in every message
    return tuple({key: part for key, part in message.items() if part is not None} for message in cell)
