"""Records as text: from the rows of files, folders and data sets, in three splits; every wrong cell is named."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from freerun.arguments import Arguments, at_least, between, brief, is_number, one_of
from freerun.data.files import SPLITS, counted, encoding_problems, first_problems, missing_message, user_path
from freerun.data.tables import ENDINGS, FORMATS, DataTable, parsed, read_rows
from freerun.errors import UserError, display, listed, needing, out_of_memory
from freerun.keys import bits, fold

_SAVED = ("dataset_dict.json", "state.json")
"""What tells a folder that the library datasets saved."""


@dataclass(frozen=True)
class RecordOptions(Arguments):
    """Where records lie and which columns are used.

    Args:
        source: column of what an encoder reads; with ``target``. Where no column is named, they are looked for by these
            names.
        target: column of what the decoder is to output.
        prompt: column of what a causal model reads; with ``completion``.
        completion: column of what it is to output.
        messages: column of conversations, lists of {role, content}; the assistant's are learned.
        text: column of plain text, all of which is learned.
        format: one of ``FORMATS``; None: by the ending.
        separator: of CSV files.
        encoding: of text files.
        dev: a file, or the share of the training rows that are set aside where there is none.
        test: the same.
        split_seed: of the shares.
        empty: "error", or "drop" rows with an empty part.
        limit: training rows that are kept; None: all.

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
    format: Literal["jsonl", "json", "csv", "tsv", "parquet", "datasets"] | None = one_of(FORMATS, None)
    separator: str = ","
    encoding: str = "utf-8"
    dev: str | float = 0.05
    test: str | float = 0.05
    split_seed: int = between(0, 2**63 - 1, 0)
    empty: Literal["error", "drop"] = one_of(("error", "drop"), "error")
    limit: int | None = at_least(1, None)

    @property
    def columns(self) -> dict[str, str]:
        """The columns that are named, by part."""
        parts = {part: getattr(self, part) for parts in SHAPES.values() for part in parts}
        return {part: name for part, name in parts.items() if name is not None}

    def problems(self) -> Iterator[str]:
        """Say which fields do not go together."""
        shares = {"dev": self.dev, "test": self.test}
        for name, share in shares.items():
            if not isinstance(share, str) and not (is_number(share) and 0 < share <= 0.5):
                yield f"{name} must be a file, or a share above 0 and up to 0.5; got {share}"
        if all(isinstance(share, float) and share >= 0.5 for share in shares.values()):
            yield f"dev and test must leave something to train on; got {self.dev} and {self.test}"
        if not isinstance(self.separator, str) or len(self.separator) != 1 or self.separator in '\r\n"\0':
            yield f"separator must be one character; got {self.separator!r}"
        yield from encoding_problems(self.encoding)


@dataclass(frozen=True, eq=False)
class Records:
    """Records in three splits, the column of each part, and what was left out of each split, in words."""

    __repr__ = brief

    shape: str
    columns: Mapping[str, str]
    splits: Mapping[str, list[Record]]
    name: str
    dropped: Mapping[str, list[str]]


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
    try:
        shape, columns = shape_of(options.columns, tables["train"])
    except UserError as error:
        raise UserError([*problems, *error.problems]) from None
    splits: dict[str, list[Record]] = {}
    dropped: dict[str, list[str]] = {split: [] for split in SPLITS}
    for split, table in tables.items():
        splits[split], left_out, wrong = table_records(table, shape, columns, options.empty)
        problems += wrong
        dropped[split] += [f"{counted(left_out, 'row')} with an empty column"] if left_out else []
    if problems:
        sound = Records(shape, columns, splits, path, dropped)
        raise UserError(list(dict.fromkeys([*problems, *_further(further, sound)])))
    _set_aside(splits, options)
    if options.limit is not None and len(splits["train"]) > options.limit:
        dropped["train"].append(f"{counted(len(splits['train']) - options.limit, 'row')} beyond the limit")
        splits["train"] = _chosen(splits["train"], _order(len(splits["train"]), options.split_seed)[: options.limit])
    return Records(shape, columns, {split: splits[split] for split in SPLITS}, path, dropped)


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
) -> list[Record]:
    """Return all records of one file; ``further`` gives what else is wrong with the sound ones where rows are wrong."""
    table, problems = read_rows(path, separator=options.separator, encoding=options.encoding)
    records, _, wrong = table_records(table, shape, columns, options.empty) if table.columns else ([], 0, [])
    if problems or wrong:
        raise UserError([*problems, *wrong, *(_further(further, records) if records else [])])
    return records


def _tables(path: str, options: RecordOptions) -> tuple[dict[str, DataTable], list[str]]:
    """The table of each split that has one, and what is wrong with the files."""
    place = user_path(path)
    given = {"dev": options.dev, "test": options.test}
    files = {split: user_path(file) for split, file in given.items() if isinstance(file, str)}
    tables: dict[str, DataTable] = {}
    problems: list[str] = []
    if options.format == "datasets" or any((place / name).exists() for name in _SAVED):
        tables = _datasets(path, options)
    elif place.is_dir():
        files = {**_in_folder(place), **files}
        if "train" not in files:
            names = sorted(entry.name for entry in place.iterdir())
            raise UserError(
                f"{place}: holds no file train.* that ends with {', '.join(ENDINGS)}; it holds "
                f"{', '.join(names[:10]) or 'nothing'}; give the file itself"
            )
    else:
        files["train"] = place
    format = None if options.format == "datasets" else options.format
    for split in [split for split in SPLITS if split in files]:
        try:
            table, wrong = read_rows(
                files[split], format=format, separator=options.separator, encoding=options.encoding
            )
        except UserError as error:
            problems += error.problems
            continue
        problems += wrong
        if len(table) or not wrong:
            tables[split] = table
    return tables, problems


def _in_folder(folder: Path) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for split, names in SPLITS.items():
        fitting = sorted(f for f in folder.iterdir() if f.stem in names and f.suffix.lower() in ENDINGS and f.is_file())
        if len(fitting) > 1:
            listed = ", ".join(file.name for file in fitting)
            raise UserError(f"{folder}: several files could be {split}: {listed}; give the files themselves")
        if fitting:
            found[split] = fitting[0]
    return found


def _datasets(path: str, options: RecordOptions) -> dict[str, DataTable]:
    """The splits of a data set that was saved to a folder, or published."""
    read = list(options.columns.values()) or [part for parts in SHAPES.values() for part in parts]
    loaded = _loaded(path)
    splits: Mapping[str, Any] = loaded if hasattr(loaded, "values") else {"train": loaded}
    found: dict[str, DataTable] = {}
    for split, names in SPLITS.items():
        if named := [name for name in names if name in splits]:
            dataset, origin = splits[named[0]], f"{path}, {named[0]}"
            # other columns may be sounds or pictures, which are costly to look at
            cells = dataset.select_columns([name for name in dataset.column_names if name in read]).to_dict()
            columns = tuple(dataset.column_names)
            found[split] = DataTable(origin, columns, cells, lambda row, at=origin: f"{at}, row {row + 1}")
    if "train" not in found:
        raise UserError(f"{path}: has no split called train; its splits are {', '.join(map(str, splits))}")
    return found


def _loaded(path: str) -> Any:
    place = user_path(path)
    with needing("hf", f"{path}: a saved or published data set"):
        import datasets
    try:
        if place.is_dir() and any((place / name).exists() for name in _SAVED):
            return datasets.load_from_disk(str(place))
        if place.exists() or path.startswith((".", "/", "~")):
            raise UserError(
                missing_message(place) if not place.exists() else
                f"{path}: was not written by Dataset.save_to_disk; leave format out to read files by their endings"
            )  # fmt: skip
        return datasets.load_dataset(path)
    except UserError:
        raise
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
        prompt: source or prompt; of messages all but the last; "" of plain text.
        target: target, completion, the last message's content, or the text.
    """

    __repr__ = brief

    place: str
    prompt: str | tuple[Message, ...]
    target: str


def shape_of(given: Mapping[str, str], table: DataTable) -> tuple[str, dict[str, str]]:
    """Return what the records are and the column of each part: as named, or the first shape that the table has."""
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
    return fitting[0], dict(given)


def table_records(
    table: DataTable, shape: str, columns: Mapping[str, str], empty: str
) -> tuple[list[Record], int, list[str]]:
    """Return a table's records, the number of empty rows left out, and what is wrong with the other rows."""
    absent = [name for name in columns.values() if name not in table.columns]
    if absent:
        has = listed(table.columns) or "none"
        return [], 0, [f"{table.origin}: has no column {name!r}; its columns are {has}" for name in absent]
    records: list[Record] = []
    problems: list[str] = []
    left_out = 0
    for number, row in enumerate(table.rows):
        place = table.locate(number)
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
            problems.append(
                f"{place}: column {name!r} holds a {type(cell).__name__}, {display(cell, 40)}; expected text"
            )
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
    """Return what is wrong with a text that no file can hold, or \"\"."""
    found = re.search("[\ud800-\udfff]", cell) if isinstance(cell, str) else None
    return f"holds half of a surrogate pair, {display(found[0])}, which is no character" if found else ""


def messages_problem(cell: Any) -> str:
    """Return what is wrong with a conversation, whoever speaks last, or \"\"."""
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
        return f"ends with a message of {display(role, 40)}; the last must be the assistant's: it is what is learnt"
    if not cell[-1]["content"].strip():
        return "ends with an empty message; there is nothing to learn in it"
    # columns of Parquet have every key in every message
    return tuple({key: part for key, part in message.items() if part is not None} for message in cell)
