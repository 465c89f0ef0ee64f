"""Whether records, their settings, a tokenizer and a model go together."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from freerun.errors import UserError, display, listed
from freerun.tasks.text import unescaped

if TYPE_CHECKING:
    from freerun.data.records import RecordCodec
    from freerun.tasks.records import RecordsSection


def parse_prompts(
    codec: RecordCodec, lines: Sequence[str], places: Sequence[str]
) -> tuple[list[dict[str, Any] | None], list[Any], list[str]]:
    """Each line's object (None: it is plain text), what is told of it ("" where it is no good), and what is wrong.

    Args:
        codec: says what records are, and the column that is told.
        lines: what was given; where the first is a JSON object, all must be.
        places: where each stands.
    """
    rows: list[dict[str, Any] | None] = []
    told: list[Any] = []
    problems: list[str] = []
    objects = bool(lines) and lines[0].lstrip().startswith("{")
    for line, place in zip(lines, places, strict=True):
        row, text, problem = _of_object(codec, line) if objects else (None, unescaped(line), "")
        if not problem and (not text or (isinstance(text, str) and not text.strip())):
            problem = "is empty; expected a source or prompt"
        if problem:
            problems.append(f"{place}: {problem}")
        rows.append(row)
        told.append("" if problem else text)
    return rows, told, problems


def _of_object(codec: RecordCodec, line: str) -> tuple[dict[str, Any] | None, Any, str]:
    """The object of a line, what is told of it, and what is wrong."""
    from freerun.data.tables import parsed

    column = next(iter(codec.columns.values()))
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
    return row, *_told(codec, column, row[column])


def _told(codec: RecordCodec, column: str, cell: Any) -> tuple[Any, str]:
    """What is told by a cell, and what is wrong with it."""
    from freerun.data.records.files import messages_problem, no_text

    if cell is None or isinstance(cell, str):
        wrong = no_text(cell)
        return ("", f"column {column!r} {wrong}") if wrong else (cell, "")
    if codec.shape != "messages":
        return "", f"column {column!r} holds a {type(cell).__name__}, {display(cell, 40)}; expected text"
    if problem := messages_problem(cell):
        return "", f"column {column!r} {problem}"
    return tuple(cell[:-1] if cell and cell[-1]["role"] == "assistant" else cell), ""


def check_vocabulary(tokenizer: Any, config: Any, given: Any) -> None:
    """Refuse a tokenizer with more symbols than the model has.

    Raises:
        UserError: says what to do.
    """
    known = getattr(config.get_text_config(decoder=True), "vocab_size", None)
    if known is not None and len(tokenizer) > known:
        whose = f"{given.tokenizer}, of the tokenizer" if given.tokenizer else f"{given.path}"
        raise UserError(
            f"{whose}: the tokenizer has {len(tokenizer):,} symbols and the model {known:,}: ids from {known:,} on "
            "mean nothing to it\n  help: give the model's own tokenizer (leave model.tokenizer out), or save the model "
            "after model.resize_token_embeddings(len(tokenizer))"
        )


def refuse_shape(shape: str, encoder_decoder: bool, path: str) -> None:
    """Refuse records that are for the other kind of model.

    Raises:
        UserError: says which columns are needed.
    """
    if encoder_decoder == (shape == "pairs"):
        return
    kind, needed = ("an encoder-decoder", "source and target") if encoder_decoder else (
        "a causal model", "prompt and completion, messages, or text"
    )  # fmt: skip
    raise UserError(f"{path} is {kind}, and the records are {shape}: name the columns for {needed} under [data]")


def inert_settings(settings: RecordsSection, codec: RecordCodec) -> list[str]:
    """What only shows once it is known what the records are."""
    problems: list[str] = []
    if settings.prefix and (codec.uses_chat_template or codec.shape == "text"):
        problems.append(
            f"data.prefix has no effect on {'a chat' if codec.uses_chat_template else 'plain text'}: leave it out"
        )
    if settings.chat and codec.shape != "completions":
        problems.append(f"data.chat is for prompts and completions; the records are {codec.shape}: leave it out")
    if settings.too_long == "cut" and codec.uses_chat_template:
        problems.append('data.too_long = "cut" would cut a conversation within its template: use "drop"')
    if codec.shape == "text" and settings.max_source is not None:
        problems.append("data.max_source has no effect on plain text: data.max_target limits it")
    return problems


def refuse_without_template(codec: RecordCodec, given: Any) -> None:
    """Refuse conversations where the tokenizer has no chat template.

    Raises:
        UserError: says how to give one.
    """
    if codec.uses_chat_template and not codec.tokenizer.chat_template:
        name = given.tokenizer or given.path
        raise UserError(
            f"{name}: the tokenizer has no chat template, which conversations need\n  help: give one with model."
            "chat_template = FILE (Jinja), or train on prompt and completion without chat"
        )
