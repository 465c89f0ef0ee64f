"""Records as text: from the rows of files, folders and data sets, in three splits; every wrong cell is named."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch

from freerun.arguments import Arguments, at_least, between, brief, is_number, one_of
from freerun.data.files import (
    COMPRESSED,
    SPLITS,
    content_ending,
    counted,
    encoding_problems,
    first_problems,
    missing_message,
    user_path,
)
from freerun.data.records.columns import (
    SHAPES,
    TRANSLATION,
    USUAL,
    absent_columns,
    beside,
    cell_of,
    fields_of,
    filled,
    holds_messages,
    is_blank,
    shape_of,
    unused_columns,
    usual_instead,
)
from freerun.data.records.messages import BESIDE, Message, answered, completed, template_cell, text_problem
from freerun.data.tables import ENDINGS, FORMATS, DataTable, bare, read_rows
from freerun.errors import UserError, collected, display, listed, needing, out_of_memory
from freerun.keys import bits, fold

_SAVED = ("dataset_dict.json", "state.json")
"""The files by which a folder is one that the library datasets saved."""
TABLES = tuple(ending for ending, kind in ENDINGS.items() if kind != "txt")
"""Endings of files that are looked for in a folder; a text beside them is often their source."""


@dataclass(frozen=True)
class RecordOptions(Arguments):
    """Where records lie and which columns are used.

    Args:
        source: column of what an encoder reads; with ``target``. Where no column is named, they are looked for by these
            names.
        target: column of what the decoder is to output.
        prompt: column of what a causal model reads; with ``completion``. This and the other texts may be a template of
            several columns, such as "{question} {context}"; a paragraph whose columns are empty in a row is left out.
        completion: column of what it is to output.
        messages: column of conversations, lists of {role, content} or {from, value}; the assistant's are learned.
        text: column of plain text, all of which is learned.
        tools: column of the tools that a conversation's assistant may call, lists of JSON schemas; None: "tools", where
            there is such a column; "": none.
        chat: put prompts and completions into the tokenizer's chat template.
        format: one of ``FORMATS``; None: by the ending.
        separator: of CSV files.
        quoting: of CSV and TSV files: "minimal": a cell in quotation marks may hold separators and line ends; "none":
            they are letters; None: as the file's lines fit.
        header: whether the first line names the columns; without, they are "1", "2" and so on; None: found.
        encoding: of text files.
        dev: a file, or the share of the training rows that are set aside where there is none.
        test: the same.
        split_seed: of the shares.
        empty: "error", or "drop" rows with an empty part.
        limit: training rows that are kept; None: all.
        language_column: column of the language of each row's target, as the tokenizer calls it ("fr_XX", "fra_Latn",
            "fr"); with ``source`` and ``target``. Its id begins the target, and free runs are made to begin with it.
        source_language_column: the same of the source.

    Raises:
        UserError: a value is not allowed; all of them at once.
    """

    __repr__ = brief

    source: str | None = None
    target: str | None = None
    prompt: str | None = None
    completion: str | None = None
    messages: str | None = None
    text: str | None = None
    tools: str | None = None
    chat: bool = False
    format: Literal["jsonl", "json", "csv", "tsv", "parquet", "arrow", "txt", "datasets"] | None = one_of(FORMATS, None)
    separator: str = ","
    quoting: Literal["minimal", "none"] | None = one_of(("minimal", "none"), None)
    header: bool | None = None
    encoding: str = "utf-8"
    dev: str | float = 0.05
    test: str | float = 0.05
    split_seed: int = between(0, 2**63 - 1, 0)
    empty: Literal["error", "drop"] = one_of(("error", "drop"), "error")
    limit: int | None = at_least(1, None)
    language_column: str | None = None
    source_language_column: str | None = None

    @property
    def languages(self) -> dict[str, str]:
        """The columns of languages that are named, by part."""
        named = {"language": self.language_column, "source_language": self.source_language_column}
        return {part: name for part, name in named.items() if name is not None}

    @property
    def columns(self) -> dict[str, str]:
        """The columns that are named, by part."""
        parts = {part: getattr(self, part) for parts in SHAPES.values() for part in parts}
        return {part: name for part, name in parts.items() if name is not None}

    def problems(self) -> Iterator[str]:
        """Return which fields do not go together, a line each."""
        shares = {"dev": self.dev, "test": self.test}
        for name, share in shares.items():
            if not isinstance(share, str) and not (is_number(share) and 0 < share <= 0.5):
                yield f"{name} must be a file, or a share above 0 and up to 0.5; got {share}"
        if all(isinstance(share, float) and share >= 0.5 for share in shares.values()):
            yield f"dev and test must leave something to train on; got {self.dev} and {self.test}"
        if not isinstance(self.separator, str) or len(self.separator) != 1 or self.separator in '\r\n"\0':
            yield f"separator must be one character; got {self.separator!r}"
        for name in self.columns.values():
            with collected(wrong := list[str]()):
                fields_of(name)
            yield from wrong
        yield from encoding_problems(self.encoding)


@dataclass(frozen=True, eq=False)
class Records:
    """Records in three splits, the column of each part, what was left out of each split and how files were read."""

    __repr__ = brief

    shape: str
    columns: Mapping[str, str]
    splits: Mapping[str, list[Record]]
    name: str
    dropped: Mapping[str, list[str]]
    notes: tuple[str, ...] = ()


def load_records(
    path: str, options: RecordOptions | None = None, further: Callable[[Records], list[str]] | None = None
) -> Records:
    """Records from a file, from a folder, or from a data set of the library datasets.

    Args:
        path: the training file; a folder that holds ``train.*``, ``dev.*`` (or ``valid*``, ``val*``) and ``test.*``, or
            what ``Dataset.save_to_disk`` wrote; with ``format="datasets"`` also a published data set's name.
        options: columns and splits; the defaults of ``RecordOptions`` if left out.
        further: records -> more problems of the sound rows, reported together with those of wrong rows.

    Raises:
        UserError: every file's first 20 problems, by line.
    """
    options = options or RecordOptions()
    tables, problems = _tables(path, options)
    if "train" not in tables:
        raise UserError(problems)
    found = _from_tables(path, tables, problems, options, further)
    splits, dropped = dict(found.splits), {split: list(found.dropped.get(split, ())) for split in SPLITS}
    _set_aside(splits, options)
    train = splits["train"]
    if options.limit is not None and len(train) > options.limit:
        dropped["train"].append(f"{counted(len(train) - options.limit, 'row')} beyond the limit")
        splits["train"] = _chosen(train, _order(len(train), options.split_seed)[: options.limit])
    return replace(found, splits={split: splits[split] for split in SPLITS}, dropped=dropped)


def load_rows(path: str, options: RecordOptions) -> Records:
    """All records of one file as the split "test"; of a folder or data set that has splits, its own test split.

    Without a name a table's only column ``text`` is plain text.

    Args:
        path: see ``load_records``.
        options: columns and format; nothing is set aside.

    Raises:
        UserError: see ``load_records``; splits of which none is called test.
    """
    tables, problems = _tables(path, options)
    # what is no folder and no data set is one file, whatever it is called
    split = "test" if options.format == "datasets" or user_path(path).is_dir() else "train"
    if split not in tables:
        raise UserError(problems or f"{path}: has no test split, only {', '.join(tables)}: give one file")
    table = tables[split]
    if not options.columns and table.columns == ("text",):
        options = replace(options, text="text")
    return _from_tables(path, {"test": table}, problems, options)


def _from_tables(
    path: str, tables: Mapping[str, DataTable], problems: list[str], options: RecordOptions,
    further: Callable[[Records], list[str]] | None = None,
) -> Records:  # fmt: skip
    """The records of each table; ``problems`` are those of the files, reported together with those of the rows."""
    try:
        shape, columns = shape_of(options.columns, next(iter(tables.values())), bare=options.chat)
        if options.languages and shape != "pairs":
            raise UserError(f"languages by row are for source and target; the records are {shape}")
        first = next(iter(tables.values()))
        if shape == "completions" and holds_messages(columns, first):
            shape = "messages"
        columns |= options.languages | beside(first, shape, options.tools)
    except UserError as error:
        raise UserError([*problems, *error.problems]) from None
    splits: dict[str, list[Record]] = {}
    dropped: dict[str, list[str]] = {}
    used = "; ".join(f"{part} from {', '.join(fields_of(name))}" for part, name in columns.items())
    unused = list(dict.fromkeys(name for table in tables.values() for name in unused_columns(columns, table)))
    notes = [f"columns: {used}" + (f"; not used: {listed(unused)}" if unused else "")]
    notes += [note for table in tables.values() for note in table.notes]
    for split, table in tables.items():
        splits[split], counts, wrong = _table_records(table, shape, columns, options.empty)
        problems += wrong
        left_out = counts.pop("with an empty column", 0)
        dropped[split] = [f"{counted(left_out, 'row')} with an empty column"] if left_out else []
        notes += [f"{table.origin}: {counted(number, 'row')} {what}" for what, number in counts.items()]
    found = Records(shape, columns, splits, path, dropped, tuple(dict.fromkeys(notes)))
    if problems:
        raise UserError(list(dict.fromkeys([*problems, *_further(further, found)])))
    return found


def _further(further: Callable[[Any], list[str]] | None, sound: Any) -> list[str]:
    try:
        return further(sound) if further else []
    except UserError as error:
        return error.problems


def read_records(
    path: Path,
    shape: str,
    columns: Mapping[str, str],
    options: RecordOptions,
    further: Callable[[list[Record]], list[str]] | None = None,
    *,
    notes: list[str] | None = None,
) -> list[Record]:
    """Return all records of one file; ``further`` finds what else is wrong with the sound ones where rows are wrong.

    What is found out about the file is added to ``notes``.
    """
    table, problems = _read(path, options, columns)
    records, _, wrong = _table_records(table, shape, columns, options.empty) if table.columns else ([], 0, [])
    if problems or wrong:
        raise UserError([*problems, *wrong, *(_further(further, records) if records else [])])
    if notes is not None:
        notes += table.notes
    return records


def _read(path: Path, options: RecordOptions, columns: Mapping[str, str]) -> tuple[DataTable, list[str]]:
    """The rows of a file whose columns are named, or looked for."""
    names = columns.values() if columns else [name for _, usual in USUAL for name in usual.values()]
    known = {field for name in names for field in (name, *fields_of(name))}
    known -= set() if columns else {"1", "2"}
    return read_rows(
        path, format=options.format, separator=options.separator, encoding=options.encoding, quoting=options.quoting,
        header=options.header, known=() if "text" in columns else known,
    )  # fmt: skip


def _is_saved(path: Path) -> bool:
    return any((path / name).exists() for name in _SAVED)


def _tables(path: str, options: RecordOptions) -> tuple[dict[str, DataTable], list[str]]:
    """The table of each split that has one, and what is wrong with the files."""
    folder = user_path(path)
    own = {"dev": options.dev, "test": options.test}
    files = {split: user_path(file) for split, file in own.items() if isinstance(file, str)}
    tables: dict[str, DataTable] = {}
    problems: list[str] = []
    if options.format == "datasets" or _is_saved(folder):
        tables = _datasets(path, options)
    elif folder.is_dir():
        files = {**_in_folder(folder), **files}
        if "train" not in files:
            names = sorted(entry.name for entry in folder.iterdir())
            raise UserError(
                f"{folder}: holds no file train.* that ends with {', '.join(TABLES)}; it holds "
                f"{', '.join(names[:10]) or 'nothing'}; give the file itself"
            )
    else:
        files["train"] = folder
    format = None if options.format == "datasets" else options.format
    for split in [split for split in SPLITS if split in files]:
        with collected(problems):
            table, wrong = _read(files[split], replace(options, format=format), options.columns)
            problems += wrong
            if len(table) or not wrong:
                tables[split] = table
    return tables, problems


def _in_folder(folder: Path) -> dict[str, Path]:
    """The file of each split that a folder has."""
    files: dict[str, Path] = {}
    for split, names in SPLITS.items():
        fitting = sorted(
            f for f in folder.iterdir() if _stem(f) in names and content_ending(f) in TABLES and f.is_file()
        )
        if len(fitting) > 1:
            several = ", ".join(file.name for file in fitting)
            raise UserError(f"{folder}: several files could be {split}: {several}; give the files themselves")
        if fitting:
            files[split] = fitting[0]
    return files


def _stem(file: Path) -> str:
    """The name of a file without its ending, and without that of a compression."""
    return (file.with_suffix("") if file.suffix.lower() in COMPRESSED else file).stem


def _datasets(path: str, options: RecordOptions) -> dict[str, DataTable]:
    """The splits of a data set that was saved to a folder, or published."""
    parts = [*options.columns.values()] or [name for _, usual in USUAL for name in usual.values()]
    parts += [*options.languages.values(), *BESIDE, *([options.tools] if options.tools else [])]
    fields = {field for part in parts for field in (part, *fields_of(part))}
    read = fields | {field.partition(".")[0] for field in fields} | {TRANSLATION}
    loaded = _loaded(path)
    splits: Mapping[str, Any] = loaded if hasattr(loaded, "values") else {"train": loaded}
    tables: dict[str, DataTable] = {}
    for split, names in SPLITS.items():
        if name := next((name for name in names if name in splits), None):
            dataset, origin = splits[name], f"{path}, {name}"
            # other columns may be sounds or pictures, which are costly to look at
            cells = dataset.select_columns([column for column in dataset.column_names if column in read]).to_dict()
            cells = {column: bare(each) for column, each in cells.items()}
            columns = tuple(dataset.column_names)
            tables[split] = DataTable(origin, columns, cells, lambda row, at=origin: f"{at}, row {row + 1}")
    if "train" not in tables:
        raise UserError(f"{path}: has no split called train; its splits are {', '.join(map(str, splits))}")
    return tables


def _loaded(path: str) -> Any:
    """The library's own object for a data set."""
    folder = user_path(path)
    with needing("hf", f"{path}: a saved or published data set"):
        import datasets
    if folder.exists() and not _is_saved(folder):
        raise UserError(
            f"{path}: was not written by Dataset.save_to_disk; leave format out to read files by their endings"
        )
    if not folder.exists() and path.startswith((".", "/", "~")):
        raise UserError(missing_message(folder))
    try:
        return datasets.load_from_disk(str(folder)) if folder.is_dir() else datasets.load_dataset(path)
    except Exception as error:  # the library's own, of many kinds: offline, no such name, a damaged file
        if out_of_memory(error):
            raise
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(
            f"{path}: the data set cannot be loaded: {reason}\n  help: without a connection give files, or a folder "
            "that Dataset.save_to_disk wrote"
        ) from None


def _set_aside(splits: dict[str, list[Record]], options: RecordOptions) -> None:
    """Take dev and test out of the training rows where they have no file."""
    rows = splits["train"]
    order = _order(len(rows), options.split_seed)
    for split in ("dev", "test"):
        share = getattr(options, split)
        if split in splits or isinstance(share, str):
            continue
        number = max(1, round(share * len(rows)))
        splits[split], order = _chosen(rows, order[:number]), order[number:]
    if not order:
        raise UserError(f"{counted(len(rows), 'row')} are too few to set dev and test aside: give files for them")
    splits["train"] = _chosen(rows, order)


def _chosen(rows: Sequence[Record], numbers: Sequence[int]) -> list[Record]:
    return [rows[number] for number in sorted(numbers)]


def _order(rows: int, seed: int) -> list[int]:
    # hashed counters: the same on every machine and version
    return torch.argsort(bits(fold(seed, "records"), torch.arange(rows)), stable=True).tolist()


LANGUAGES = ("language", "source_language")
"""Parts that name a row's languages, beside those of a shape."""


@dataclass(frozen=True)
class Record:
    """One example, as text.

    Args:
        origin: the file and the line.
        prompt: source or prompt; of messages all but the last; "" of plain text.
        target: target, completion, the last message's content, or the text.
        answer: what else the last message holds: calls of tools, reasoning.
        more: what the row has for the chat template beside messages: tools, arguments of its own.
        language: of the target; "": that of the tokenizer.
        source_language: the same of the source.
    """

    __repr__ = brief

    origin: str
    prompt: str | tuple[Message, ...]
    target: str
    answer: Message = field(default_factory=dict[str, Any])
    more: Mapping[str, Any] = field(default_factory=dict[str, Any])
    language: str = ""
    source_language: str = ""


def _table_records(
    table: DataTable, shape: str, columns: Mapping[str, str], empty: str
) -> tuple[list[Record], dict[str, int], list[str]]:
    """Return a table's records; how many rows were left out or lack an optional column; what is wrong with others."""
    if absent := list(absent_columns(columns, table)):
        has = listed(table.columns) or "none"
        has += usual_instead(columns, table)
        return [], {}, [f"{table.origin}: has no column {name!r}; its columns are {has}" for name in absent]
    records: list[Record] = []
    problems: list[str] = []
    counts: Counter[str] = Counter()
    further = [field for part, name in columns.items() if part not in BESIDE for field in fields_of(name)[1:]]
    for number, row in enumerate(table.rows):
        cells = {name: filled(row, name) for part, name in columns.items() if part not in BESIDE}
        blank = next((fields_of(name)[0] for name, cell in cells.items() if is_blank(cell)), None)
        if blank is not None and empty == "drop":
            counts["with an empty column"] += 1
            continue
        if blank is not None:
            cell = cell_of(row, blank)
            state = "null" if blank in row and cell is None else "missing" if cell is None else "empty"
            record = f'column {blank!r} is {state}; fill it in, delete the row, or set empty = "drop"'
        else:
            record = _record(table.locate(number), cells, shape, more_of(row, columns))
            counts.update(f"without {field!r}" for field in further if is_blank(cell_of(row, field)))
        if isinstance(record, str):
            problems.append(f"{table.locate(number)}: {record}")
        else:
            named = {part: str(cells[columns[part]]).strip() for part in LANGUAGES if part in columns}
            records.append(replace(record, **named) if named else record)
    if not records and not problems:
        left_out = counted(counts["with an empty column"], "row")
        reason = f"nothing is left: {left_out} with an empty column" if len(table) else "holds no row"
        problems.append(f"{table.origin}: {reason}")
    return records, counts, first_problems(table.origin, problems)


def more_of(row: Mapping[str, Any], columns: Mapping[str, str]) -> dict[str, Any] | str:
    """What a row has for the chat template beside messages, or what is wrong with it."""
    found: dict[str, Any] = {}
    for part in BESIDE:
        cell = template_cell(part, cell_of(row, columns[part]) if part in columns else None)
        if isinstance(cell, str):
            return f"column {columns[part]!r} {cell}"
        found |= cell
    return found


def _record(origin: str, cells: Mapping[str, Any], shape: str, more: dict[str, Any] | str) -> Record | str:
    """The record in the cells of a row, or what is wrong with them."""
    if isinstance(more, str):
        return more
    if shape == "messages":
        messages = completed(*cells.values()) if len(cells) > 1 else answered(*cells.values())
        if isinstance(messages, str):
            return f"column {' or '.join(map(repr, cells))} {messages}"
        *prompt, last = messages
        answer = {key: part for key, part in last.items() if key not in ("role", "content")}
        return Record(origin, tuple(prompt), str(last.get("content") or ""), answer, more)
    for name, cell in cells.items():
        if not isinstance(cell, str):
            return f"column {_label(name)} holds a {type(cell).__name__}, {display(cell, 40)}; expected text"
        if wrong := text_problem(cell):
            return f"column {_label(name)} {wrong}"
    *prompt, target = list(cells.values())[: len(SHAPES[shape])]
    return Record(origin, prompt[0] if prompt else "", target)


def _label(name: str) -> str:
    return " or ".join(map(repr, fields_of(name)))
