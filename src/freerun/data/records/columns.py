"""Which columns records are made of: by name, by a template of several columns, nested, or found."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from string import Formatter
from typing import Any, cast

from freerun.data.files import content_ending
from freerun.data.records.messages import BESIDE
from freerun.data.tables import DataTable
from freerun.errors import UserError, display, listed

SHAPES: dict[str, tuple[str, ...]] = {
    "pairs": ("source", "target"),
    "completions": ("prompt", "completion"),
    "messages": ("messages",),
    "text": ("text",),
}
"""What records can be -> the parts that a column is named for."""
_INSTRUCTION = "### Instruction:\n{instruction}\n\n"
USUAL: tuple[tuple[str, dict[str, str]], ...] = (
    ("pairs", {"source": "source", "target": "target"}),
    ("completions", {"prompt": "prompt", "completion": "completion"}),
    ("pairs", {"source": "1", "target": "2"}),
    *(("messages", {"messages": name}) for name in ("messages", "conversations", "conversation")),
    ("completions", {"prompt": f"{_INSTRUCTION}### Input:\n{{input}}\n\n### Response:\n", "completion": "output"}),
    ("completions", {"prompt": f"{_INSTRUCTION}### Input:\n{{context}}\n\n### Response:\n", "completion": "response"}),
)
"""Shapes and their columns as published data sets call them, "1" and "2" where no line names them; or templates."""
TRANSLATION = "translation"
"""The column in which the library datasets keeps both languages of a pair."""


def fields_of(name: str) -> list[str]:
    """The columns in a template; of a column's own name that name.

    Raises:
        UserError: braces that do not match.

    >>> fields_of("Q: {question}\\n\\n{context}"), fields_of("prompt")
    (['question', 'context'], ['prompt'])
    """
    if "{" not in name:
        return [name]
    try:
        parts = [part[1:] for part in Formatter().parse(name) if part[1] is not None]
    except ValueError as error:
        raise UserError(f"{display(name, 60)}: {error}; a template names columns in braces, {{column}}") from None
    found = [str(field) for field, form, change in parts if field and not form and not change]
    if not found or len(found) < len(parts):
        raise UserError(
            f"{display(name, 60)}: a template names columns in braces, {{column}}, and nothing else in them"
        )
    return list(dict.fromkeys(found))


def cell_of(row: Mapping[str, Any], name: str) -> Any:
    """A cell by its column's name; "a.b" is b in the object of column a."""
    if name in row or "." not in name:
        return row.get(name)
    head, _, rest = name.partition(".")
    inner = row.get(head)
    return cell_of(inner, rest) if isinstance(inner, Mapping) else None


def is_blank(cell: Any) -> bool:
    """Whether a cell holds nothing."""
    return cell is None or (isinstance(cell, str) and not cell.strip()) or (isinstance(cell, list) and not cell)


def filled(row: Mapping[str, Any], name: str) -> Any:
    r"""The cell of a part; of a template its text, without the paragraphs whose columns are empty in the row.

    The first column of a template is needed: without it the part is empty. A cell that is no text is returned itself.

    >>> filled({"q": "Which?", "c": ""}, "Question: {q}\n\nContext: {c}\n\nAnswer:")
    'Question: Which?\n\nAnswer:'
    """
    if "{" not in name or name in row:
        return cell_of(row, name)
    names = fields_of(name)
    cells = {field: cell_of(row, field) for field in names}
    wrong = [cell for cell in cells.values() if cell is not None and not isinstance(cell, str)]
    if wrong or is_blank(cells[names[0]]):
        return wrong[0] if wrong else None
    paragraphs = [
        "".join(text + ("" if field is None else cells[field] or "") for text, field, _, _ in Formatter().parse(part))
        for part in name.split("\n\n")
        if "{" not in part or not (own := _fields(part)) or any(not is_blank(cells[field]) for field in own)
    ]
    return "\n\n".join(paragraphs)


def _fields(part: str) -> list[str]:
    return [field for _, field, _, _ in Formatter().parse(part) if field is not None]


def shape_of(named: Mapping[str, str], table: DataTable, *, bare: bool = False) -> tuple[str, dict[str, str]]:
    """Return what the records are and the column or template of each part.

    Args:
        named: part -> column, as the user has named them; empty: as data sets usually call them.
        table: the rows.
        bare: whether a found template is the columns alone, without headings: for a chat template.

    Raises:
        UserError: nothing fits, more than one shape fits, or only some parts are named.
    """
    if not named:
        return _found(table, bare)
    for shape, parts in SHAPES.items():
        if set(parts) == set(named):
            return shape, {part: _resolved(named[part], table) for part in parts}
    sets = "; ".join(" and ".join(parts) for parts in SHAPES.values())
    raise UserError(f"columns are named for {', '.join(named)}; one of these is needed, whole: {sets}")


def _found(table: DataTable, bare: bool) -> tuple[str, dict[str, str]]:
    fitting: list[tuple[str, dict[str, str]]] = []
    for shape, parts in USUAL:
        needed = [fields_of(name)[0] for name in parts.values()]
        if all(name in table.columns for name in needed) and ("1" not in needed or len(table.columns) <= 3):
            fitting.append((shape, {part: _fitted(name, table, bare) for part, name in parts.items()}))
    languages = _languages(table)
    if len(fitting) == 1 and not languages:
        return fitting[0]
    kinds = [
        f"{shape} ({', '.join(n for name in parts.values() for n in fields_of(name))})" for shape, parts in fitting
    ]
    if len(fitting) > 1 or (fitting and languages):
        kinds += [f"pairs ({TRANSLATION})"] if languages else []
        raise UserError(f"{table.origin}: could be {' or '.join(kinds)}: name the columns that are to be used")
    if languages:
        first, second = languages[:2]
        raise UserError(
            f"{table.origin}: {TRANSLATION} holds {', '.join(languages)}: name both sides, source = "
            f'"{first}" and target = "{second}" or the other way round'
        )
    cells = content_ending(Path(table.origin)) in (".csv", ".tsv", ".txt")
    rows = "; where the first line is a row already, set header = false" if cells else ""
    raise UserError(
        f"{table.origin}: cannot tell which columns to use; it has {listed(table.columns) or 'none'}; name "
        f"them: source and target (encoder-decoder), prompt and completion, messages, or text{rows}"
    )


def usual_instead(columns: Mapping[str, str], table: DataTable) -> str:
    """What a table would be read as, if no column was named: the end of a message; \"\" if that is unclear."""
    try:
        shape, parts = _found(table, False)
    except UserError:
        return ""
    named = [f"data.{part}" for part in columns if part not in BESIDE]
    found = listed(name for each in parts.values() for name in fields_of(each))
    return f"; leave {' and '.join(named)} out (--set {named[0]}=), and {shape} are read from {found}"


def _fitted(name: str, table: DataTable, bare: bool) -> str:
    """A usual template without the columns that a table has not, and with ``bare`` without headings."""
    if "{" not in name:
        return name
    parts = [part for part in name.split("\n\n") if all(field in table.columns for field in _fields(part))]
    return "\n\n".join(f"{{{field}}}" for part in parts for field in _fields(part)) if bare else "\n\n".join(parts)


def _languages(table: DataTable) -> list[str]:
    rows: Sequence[Any] = table.cells.get(TRANSLATION, ())
    first = next((cell for cell in rows if isinstance(cell, Mapping)), {})
    return list(first) if len(first) > 1 else []


def _resolved(name: str, table: DataTable) -> str:
    """A column's name, with its outer column where it is a language of ``translation``."""
    inner = name not in table.columns and "{" not in name and name in _languages(table)
    return f"{TRANSLATION}.{name}" if inner else name


def beside(table: DataTable, shape: str, tools: str | None) -> dict[str, str]:
    """The column of each part of ``BESIDE`` that conversations have; ``tools`` names one, "" none.

    Raises:
        UserError: one is named that is not there, or for other records.
    """
    if tools and shape != "messages":
        raise UserError(f"data.tools is for conversations, and the records are {shape}: leave it out")
    if tools and tools not in table.columns:
        raise UserError(f"{table.origin}: has no column {tools!r}; its columns are {listed(table.columns)}")
    if shape != "messages":
        return {}
    found = {part: part for part in BESIDE if part in table.columns}
    return {part: name for part, name in ({**found, "tools": tools} if tools is not None else found).items() if name}


def holds_messages(columns: Mapping[str, str], table: DataTable) -> bool:
    """Whether the cells of completions are messages."""
    cells: Sequence[Any] = table.cells.get(columns["completion"], ())
    first = next((cell for cell in cells if not is_blank(cell)), None)
    return isinstance(first, list) and all(isinstance(message, Mapping) for message in cast("list[Any]", first))


def absent_columns(columns: Mapping[str, str], table: DataTable) -> Iterator[str]:
    """Return the names among ``columns`` that a table needs and has not."""
    for name in (name for part, name in columns.items() if part not in BESIDE):
        for field in [name] if name in table.columns else fields_of(name):
            if field not in table.columns and field.partition(".")[0] not in table.columns:
                yield field


def unused_columns(columns: Mapping[str, str], table: DataTable) -> list[str]:
    """The columns of a table of which nothing is used."""
    used = {field for name in columns.values() for field in ([name] if name in table.columns else fields_of(name))}
    used |= {field.partition(".")[0] for field in used}
    return [name for name in table.columns if name not in used]
