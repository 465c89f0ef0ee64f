"""From files to PairData: finding the splits, filters, and the problems of all files at once."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from freerun.brief import brief
from freerun.data.folders import split_files
from freerun.data.pair_data import PairData
from freerun.data.pairs import Pairs, Row, Table, read_table
from freerun.data.text import counted, encoding_problems, first_problems
from freerun.data.vocabulary import Symbols
from freerun.errors import UserError, whole

__all__ = ["PairOptions", "load_pairs", "prepare", "word_hash"]


@dataclass(frozen=True)
class PairOptions:
    """What is done with lines that cannot be used, and how many words to train on.

    Args:
        encoding: of the files, as Python names it.
        drop_overlap: drop training words that also stand in dev or test.
        max_length: target symbols allowed (the end symbol does not count); None: any number.
        too_long: "error" or "drop": what to do with longer targets.
        unknown: "error" or "drop": what to do with dev and test lines with a symbol never seen in training.
        limit: number of training words, the first in the order of a hash of the word; None: all.

    Raises:
        UserError: a value is not allowed; all of them at once.
    """

    __repr__ = brief

    encoding: str = "utf-8"
    drop_overlap: bool = True
    max_length: int | None = None
    too_long: Literal["error", "drop"] = "error"
    unknown: Literal["error", "drop"] = "error"
    limit: int | None = None

    def __post_init__(self) -> None:
        problems = [
            f"{name} must be at least 1, or left out; got {value}"
            for name, value in (("max_length", self.max_length), ("limit", self.limit))
            if value is not None and not (whole(value) or 0) >= 1
        ]
        problems += [
            f'{name} must be "error" or "drop"; got {value!r}'
            for name, value in (("too_long", self.too_long), ("unknown", self.unknown))
            if value not in ("error", "drop")
        ]
        problems += encoding_problems(self.encoding)
        if problems:
            raise UserError(problems)


def load_pairs(
    path: str | Path | Mapping[str, str | Path],
    options: PairOptions | None = None,
    *,
    language: str | None = None,
) -> PairData:
    """Pairs from a folder that holds train, dev and test files, or from three files.

    Args:
        path: a folder, or {"train": file, "dev": file, "test": file}. In a folder the files are called
            ``train.txt`` or ``train.tsv``, or ``<language>_train.tsv``, and so on.
        options: filters; the defaults of ``PairOptions`` if left out.
        language: the prefix of the files' names, where a folder holds several.

    Raises:
        UserError: files are missing or lines cannot be used: every file's first 20 problems, by line.
    """
    options = options or PairOptions()
    files = split_files(path, language)
    tables: dict[str, Table] = {}
    problems: list[str] = []
    for split, file in files.items():
        try:
            tables[split], found = read_table(file, options.encoding)
            problems += found
        except UserError as error:
            problems += error.problems
    if problems:
        raise UserError([*problems, *(long for table in tables.values() for long in _drop_long(table, options))])
    name = str(files["train"]) if isinstance(path, Mapping) else str(path)
    return prepare(tables, options, f"{name} ({language})" if language else name)


def prepare(tables: Mapping[str, Table], options: PairOptions, name: str) -> PairData:
    """Filtered tables as PairData; the tables are changed.

    Raises:
        UserError: targets are too long, symbols unknown, or nothing is left.
    """
    problems: list[str] = []
    for table in tables.values():
        if not table.rows:
            problems.append(f"{table.origin}: holds no usable line; expected a word and its symbols")
        problems += _drop_long(table, options)
        _merge_repeated(table)
    if options.drop_overlap:
        _drop_overlap(tables)
    if options.limit is not None:
        _limit(tables["train"], options.limit)
    if tables["train"].rows:
        sources = {symbol for row in tables["train"].rows for symbol in row.source}
        targets = {symbol for row in tables["train"].rows for symbol in row.target}
        for split in ("dev", "test"):
            problems += _drop_unknown(tables[split], sources, targets, options)
    problems += [_nothing_left(table) for table in tables.values() if not table.rows and table.dropped]
    if problems:
        raise UserError(problems)
    splits = {split: Pairs.of(table.rows, table.origin) for split, table in tables.items()}
    return PairData(splits, name, {split: table.dropped for split, table in tables.items()})


def word_hash(word: Symbols) -> int:
    """A 64-bit hash of a word, the same everywhere."""
    return int.from_bytes(hashlib.blake2b("".join(word).encode(), digest_size=8).digest(), "big")


def _drop_long(table: Table, options: PairOptions) -> list[str]:
    if options.max_length is None:
        return []
    allowed = options.max_length
    if options.too_long == "drop":
        rows = [row for row in table.rows if len(row.target) <= allowed]
        table.keep(rows, f"with a target longer than {allowed}")
        return []
    long = [row for row in table.rows if len(row.target) > allowed]
    advice = f'symbols, max_length allows {allowed}; raise max_length or set too_long = "drop"'
    problems = [
        f"{table.origin}:{row.line}: the target of {''.join(row.source)!r} has {len(row.target)} {advice}"
        for row in long
    ]
    if len(problems) > 1:
        longest = max(len(row.target) for row in long)
        problems.insert(
            0, f"{table.origin}: {len(long):,} of {len(table.rows):,} targets are too long; longest {longest}"
        )
    return first_problems(table.origin, problems)


def _merge_repeated(table: Table) -> None:
    distinct: dict[tuple[Symbols, Symbols], Row] = {}
    for row in table.rows:
        distinct.setdefault((row.source, row.target), row)
    table.keep(list(distinct.values()), "repeating an earlier one")


def _drop_overlap(tables: Mapping[str, Table]) -> None:
    train = tables["train"]
    held_out = tables["dev"].words | tables["test"].words
    shared = len(train.words & held_out)
    if shared:
        train.rows = [row for row in train.rows if row.source not in held_out]
        train.dropped.append(f"{counted(shared, 'word')} also in dev or test")


def _limit(train: Table, limit: int) -> None:
    words = sorted(train.words, key=lambda word: (word_hash(word), word))
    if len(words) > limit:
        chosen = set(words[:limit])
        train.rows = [row for row in train.rows if row.source in chosen]
        train.dropped.append(f"{counted(len(words) - limit, 'word')} beyond the limit of {limit:,}")


def _drop_unknown(table: Table, sources: set[str], targets: set[str], options: PairOptions) -> list[str]:
    def known(row: Row) -> bool:
        return sources.issuperset(row.source) and targets.issuperset(row.target)

    if options.unknown == "drop":
        table.keep([row for row in table.rows if known(row)], "with a symbol never seen in training")
        return []
    problems = _unknown_symbols(table, "word", lambda row: row.source, sources)
    problems += _unknown_symbols(table, "target", lambda row: row.target, targets)
    return first_problems(table.origin, problems)


def _unknown_symbols(table: Table, side: str, part: Callable[[Row], Symbols], known: set[str]) -> list[str]:
    counts: Counter[str] = Counter()
    first: dict[str, int] = {}
    for row in table.rows:
        for symbol in part(row):
            if symbol not in known:
                counts[symbol] += 1
                first.setdefault(symbol, row.line)
    advice = 'add training words with it or set unknown = "drop"'
    return [
        f"{table.origin}:{first[symbol]}: {side} symbol {symbol!r} was never seen in training "
        f"({counted(count, 'time')} in this file, first here); {advice}"
        for symbol, count in counts.most_common()
    ]


def _nothing_left(table: Table) -> str:
    dropped = "; ".join(table.dropped)
    return f"{table.origin}: nothing is left after filtering; dropped: {dropped}; loosen the filters"
