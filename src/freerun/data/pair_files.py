"""From files of pairs to PairData: words and symbols, or line-aligned sentences; filters; all problems at once."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from freerun.arguments import at_least, between, brief, field_problems, one_of
from freerun.data.files import (
    LONGEST,
    SPLITS,
    counted,
    encoding_problems,
    first_problems,
    missing_message,
    read_lines,
    split_files,
    user_path,
)
from freerun.data.pairs import PairData, Pairs, Row
from freerun.data.tokenisers import Subwords, Symbols
from freerun.errors import UserError, display, refuse

TAB_FORMAT = "word<TAB>symbols separated by spaces"
SPACE_FORMAT = "WORD  SYMBOL SYMBOL ... (spaces)"
VARIANT = re.compile(r"\(\d+\)$")


@dataclass
class PairRows:
    """The rows of one split, and what has been dropped from them, in words."""

    __repr__ = brief

    origin: str
    rows: list[Row]
    dropped: list[str] = field(default_factory=list[str])

    def keep(self, kept: Callable[[Row], bool], reason: str) -> None:
        """Keep some rows; count those that are dropped, and say why."""
        rows = [row for row in self.rows if kept(row)]
        if len(rows) < len(self.rows):
            self.dropped.append(f"{counted(len(self.rows) - len(rows), 'line')} {reason}")
        self.rows = rows


def read_pairs(
    path: str | Path, *, encoding: str = "utf-8", tokeniser: Literal["symbols", "subwords"] = "symbols"
) -> Pairs:
    """The words of one file with all their references, or its sentences with their translations.

    A line of words is ``word<TAB>symbols separated by spaces`` (SIGMORPHON) or ``WORD  SYMBOL SYMBOL ...`` (CMUdict;
    a variant's number as in ``WORD(2)`` is dropped). Words are split into characters, targets at spaces. A line of
    sentences is ``source<TAB>translation``.

    Args:
        path: the file.
        encoding: of the file, as Python names it.
        tokeniser: "symbols" for words, "subwords" for sentences.

    Raises:
        UserError: the file is missing or empty, or lines of it cannot be read; the first 20 of them.
    """
    if tokeniser not in ("symbols", "subwords"):
        raise UserError(f'tokeniser must be "symbols" or "subwords"; got {display(tokeniser)}')
    found, problems = (read_words if tokeniser == "symbols" else _read_sentences)(Path(path), encoding)
    refuse(problems)
    return Pairs.of(found.rows, found.origin)


def read_words(path: Path, encoding: str = "utf-8") -> tuple[PairRows, list[str]]:
    """The rows of one file of words, and its problems (at most 20 and a count of the rest)."""
    lines, broken = read_lines(path, encoding)
    lines = [(number, text) for number, text in lines if text.strip(" ") and not text.startswith(";;;")]
    tabs = sum("\t" in text for _, text in lines)
    found, problems = _parsed(path, lines, broken, _parse_tab if 2 * tabs > len(lines) else _parse_spaces)
    if not found.rows and not problems:
        problems = [f"{path}: holds only comments and empty lines; expected {SPACE_FORMAT}"]
    return found, problems


def _read_sentences(path: Path, encoding: str) -> tuple[PairRows, list[str]]:
    return _parsed(path, *read_lines(path, encoding, "source<TAB>translation lines"), _parse_sentences)


def _parsed(
    path: Path, lines: list[tuple[int, str]], broken: list[tuple[int, str]], parse: Callable[[int, str], Row | str]
) -> tuple[PairRows, list[str]]:
    rows: list[Row] = []
    for number, text in lines:
        found = parse(number, text)
        if isinstance(found, str):
            broken.append((number, f"{path}:{number}: {found}"))
        else:
            rows.append(found)
    return PairRows(str(path), rows), first_problems(str(path), [text for _, text in sorted(broken)])


def _parse_sentences(number: int, text: str) -> Row | str:
    columns = [" ".join(column.split()) for column in text.split("\t")]
    if len(columns) == 2 and all(columns):
        return Row(number, *columns)
    return f"found {display(text, 40)}, expected source<TAB>translation; correct or delete the line"


def _parse_tab(number: int, text: str) -> Row | str:
    columns = text.split("\t")
    if len(columns) != 2:
        found = "no tab" if len(columns) == 1 else f"{len(columns)} columns"
        return f"found {found} in {display(text, 40)}, expected 2 columns: {TAB_FORMAT}; correct or delete the line"
    return _row(number, columns[0].strip(" "), columns[1], text)


def _parse_spaces(number: int, text: str) -> Row | str:
    if "\t" in text:
        return (
            f"found a tab in {display(text, 40)}, expected {SPACE_FORMAT} as in most of the file; "
            "use one format in the whole file"
        )
    word, _, symbols = text.partition(" ")
    return _row(number, VARIANT.sub("", word), symbols, text)


def _row(number: int, word: str, symbols: str, text: str) -> Row | str:
    # split at the space itself: other blanks may be symbols, and one symbol may be several code points
    target = tuple(symbol for symbol in symbols.split(" ") if symbol)
    if not word:
        return f"the word is empty in {display(text, 40)}; expected a word before the symbols; delete the line"
    if max(len(word), len(target)) > LONGEST:
        return (
            f"the line has {len(word):,} characters in the word and {len(target):,} symbols, at most {LONGEST:,} are "
            "taken for a pair; is the end of a line missing?"
        )
    if not target:
        return f"the word {word!r} has no symbols; expected at least one after it; add them or delete the line"
    return Row(number, tuple(word), target)


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
    max_length: int | None = at_least(1, None)
    too_long: Literal["error", "drop"] = one_of(("error", "drop"), "error")
    unknown: Literal["error", "drop"] = one_of(("error", "drop"), "error")
    limit: int | None = at_least(1, None)

    def __post_init__(self) -> None:
        problems = field_problems(self) + encoding_problems(self.encoding)
        refuse(problems)


@dataclass(frozen=True)
class ParallelOptions:
    """How parallel text is read, cut into subwords and filtered.

    Args:
        source: how names of source files end, and so what the source language is called.
        target: the same of the target.
        encoding: of the files, as Python names it.
        subwords: ids of the joint byte-pair encoding, the end symbol included; trained on the training text alone.
        max_length: subwords allowed on either side of a training pair (ends do not count); None: any number.
        too_long: "error" or "drop": what to do with longer training pairs. Dev and test are never shortened.
        empty: "error" or "drop": what to do with lines of which a side is blank, in every split.
        limit: number of training pairs, the first in the order of a hash of the source; None: all.

    Raises:
        UserError: a value is not allowed; all of them at once.
    """

    __repr__ = brief

    source: str = "en"
    target: str = "de"
    encoding: str = "utf-8"
    subwords: int = between(258, 10**6, 6000)
    max_length: int | None = at_least(1, None)
    too_long: Literal["error", "drop"] = one_of(("error", "drop"), "error")
    empty: Literal["error", "drop"] = one_of(("error", "drop"), "error")
    limit: int | None = at_least(1, None)

    def __post_init__(self) -> None:
        problems = field_problems(self) + encoding_problems(self.encoding)
        problems += [
            f'{name} must be how its files end, such as "en"; got {value!r}'
            for name, value in (("source", self.source), ("target", self.target))
            if not value or value.startswith(".")
        ]
        refuse(problems)


def load_pairs(
    path: str | Path | Mapping[str, str | Path] | None = None,
    options: PairOptions | ParallelOptions | None = None,
    *,
    language: str | None = None,
    files: Mapping[str, Sequence[str | Path]] | None = None,
) -> PairData:
    """Pairs from files: words and their symbols, or with ``ParallelOptions`` sentences and their translations.

    Files of words hold a pair a line; in a folder they are called ``train.txt`` or ``train.tsv``, or
    ``<language>_train.tsv``, and so on. Sentences stand in two files, line n of one the translation of line n of the
    other; in a folder ``train*.en``, ``train*.de``, ``dev*`` (or ``valid*``, ``val*``) and ``test*``. Their text is
    taken as its words, separated by blanks, and is neither lower-cased nor tokenised here; sources of dev or test that
    also stand in training are counted in the header and kept.

    Args:
        path: a folder; of words also {"train": file, "dev": file, "test": file}.
        options: filters, and the tokeniser: ``PairOptions`` (the default) for words, ``ParallelOptions`` for sentences.
        language: of words: the prefix of the files' names, where a folder holds several.
        files: of sentences: "train", "dev" or "test" -> (source file, target file), instead of what the folder holds.

    Raises:
        UserError: files are missing or not text, or lines cannot be used: every file's first 20 problems, by line. The
            package tokenizers, for sentences, is not installed.
    """
    if isinstance(options, ParallelOptions):
        if language is not None or isinstance(path, Mapping):
            raise UserError("language and files of words have no effect on sentences; give a folder, or files = ...")
        return _load_sentences(path, options, files or {})
    if files is not None or path is None:
        raise UserError("files = ... is of sentences, with ParallelOptions; for words give a folder or three files")
    options = options or PairOptions()
    found: dict[str, PairRows] = {}
    problems: list[str] = []
    paths = split_files(path, language)
    for split, file in paths.items():
        try:
            found[split], wrong = read_words(file, options.encoding)
            problems += wrong
        except UserError as error:
            problems += error.problems
    if problems:
        raise UserError([*problems, *(long for rows in found.values() for long in _drop_long_words(rows, options))])
    name = str(paths["train"]) if isinstance(path, Mapping) else str(path)
    return prepare(found, options, f"{name} ({language})" if language else name)


def prepare(splits: Mapping[str, PairRows], options: PairOptions, name: str) -> PairData:
    """Filter the rows of words, in place, and return them as PairData; raise UserError with every problem."""
    problems: list[str] = []
    for rows in splits.values():
        if not rows.rows:
            problems.append(f"{rows.origin}: holds no usable line; expected a word and its symbols")
        problems += _drop_long_words(rows, options)
        first = {(row.source, row.target): row.line for row in reversed(rows.rows)}
        rows.keep(lambda row, first=first: first[row.source, row.target] == row.line, "repeating an earlier one")
    if options.drop_overlap:
        _drop_overlap(splits)
    train = splits["train"]
    if options.limit is not None:
        _limit(train, options.limit, "word", lambda row: row.source)
    if train.rows:
        problems += [text for split in ("dev", "test") for text in _drop_unknown(splits[split], train, options)]
    problems += [_nothing_left(rows) for rows in splits.values() if not rows.rows and rows.dropped]
    refuse(problems)
    return _data(splits, name)


def _data(splits: Mapping[str, PairRows], name: str, subwords: Subwords | None = None) -> PairData:
    pairs = {split: Pairs.of(rows.rows, rows.origin) for split, rows in splits.items()}
    return PairData(pairs, name, {split: rows.dropped for split, rows in splits.items()}, subwords)


def word_hash(word: Symbols | str) -> int:
    """A 64-bit hash of a word or sentence, the same everywhere."""
    return int.from_bytes(hashlib.blake2b("".join(word).encode(), digest_size=8).digest(), "big")


def _limit(train: PairRows, limit: int, noun: str, group: Callable[[Row], Any]) -> None:
    """Keep the first groups of rows in the order of a hash: a smaller limit gives a part of what a larger one gives."""
    order = sorted({(word_hash(row.source), group(row)) for row in train.rows})
    if len(order) > limit:
        chosen = {key for _, key in order[:limit]}
        train.rows = [row for row in train.rows if group(row) in chosen]
        train.dropped.append(f"{counted(len(order) - limit, noun)} beyond the limit of {limit:,}")


Side = tuple[str, Sequence[int], Callable[[Row], str]]
"""Of one side of some rows: its file, the length of each, and what a row is called."""


def _long_lines(rows: PairRows, sides: Sequence[Side], allowed: int, unit: str, many: str) -> list[str]:
    """Return a message for every row that is too long, file by file, and a count of them before."""
    problems: list[str] = []
    for file, lengths, name in sides:
        found = [
            f"{file}:{row.line}: {name(row)} has {length} {unit}, max_length allows {allowed}; raise max_length or set "
            'too_long = "drop"'
            for row, length in zip(rows.rows, lengths, strict=True)
            if length > allowed
        ]
        if len(found) > 1:
            count = f"{len(found):,} of {len(lengths):,} {many} are too long; longest {max(lengths)}"
            found.insert(0, f"{file}: {count}")
        problems += first_problems(file, found)
    return problems


def _drop_long_words(rows: PairRows, options: PairOptions) -> list[str]:
    allowed = options.max_length
    if allowed is None:
        return []
    if options.too_long == "drop":
        rows.keep(lambda row: len(row.target) <= allowed, f"with a target longer than {allowed}")
        return []
    lengths = [len(row.target) for row in rows.rows]
    side: Side = (rows.origin, lengths, lambda row: f"the target of {''.join(row.source)!r}")
    return _long_lines(rows, [side], allowed, "symbols", "targets")


def _drop_overlap(splits: Mapping[str, PairRows]) -> None:
    train, words = splits["train"], {split: {row.source for row in rows.rows} for split, rows in splits.items()}
    held_out = words["dev"] | words["test"]
    if shared := len(words["train"] & held_out):
        train.rows = [row for row in train.rows if row.source not in held_out]
        train.dropped.append(f"{counted(shared, 'word')} also in dev or test")


def _drop_unknown(rows: PairRows, train: PairRows, options: PairOptions) -> list[str]:
    """Drop rows with symbols that training has not, or say which symbols they are."""
    sources = {symbol for row in train.rows for symbol in row.source}
    targets = {symbol for row in train.rows for symbol in row.target}
    if options.unknown == "drop":
        known = lambda row: sources.issuperset(row.source) and targets.issuperset(row.target)  # noqa: E731
        rows.keep(known, "with a symbol never seen in training")
        return []
    problems = _unknown_symbols(rows, "word", lambda row: row.source, sources)
    problems += _unknown_symbols(rows, "target", lambda row: row.target, targets)
    return first_problems(rows.origin, problems)


def _unknown_symbols(rows: PairRows, side: str, part: Callable[[Row], Symbols], known: set[str]) -> list[str]:
    counts: Counter[str] = Counter()
    first: dict[str, int] = {}
    for row in rows.rows:
        for symbol in part(row):
            if symbol not in known:
                counts[symbol] += 1
                first.setdefault(symbol, row.line)
    advice = 'add training words with it or set unknown = "drop"'
    return [
        f"{rows.origin}:{first[symbol]}: {side} symbol {symbol!r} was never seen in training "
        f"({counted(count, 'time')} in this file, first here); {advice}"
        for symbol, count in counts.most_common()
    ]


def _nothing_left(rows: PairRows) -> str:
    dropped = "; ".join(rows.dropped)
    return f"{rows.origin}: nothing is left after filtering; dropped: {dropped}; loosen the filters"


def _load_sentences(
    path: str | Path | None, options: ParallelOptions, files: Mapping[str, Sequence[str | Path]]
) -> PairData:
    paths = parallel_files(path, files, options.source, options.target)
    found: dict[str, PairRows] = {}
    problems: list[str] = []
    for split, pair in paths.items():
        found[split], wrong = _read_aligned(split, pair, options)
        problems += wrong
    refuse(problems)
    train = found["train"]
    if options.limit is not None:
        _limit(train, options.limit, "line", lambda row: row.line)
    subwords = Subwords.trained((text for row in train.rows for text in row[1:]), options.subwords)
    if options.max_length is not None:
        sides = [
            (str(file), subwords.lengths(texts), lambda _: "the line")
            for file, texts in zip(paths["train"], zip(*(row[1:] for row in train.rows), strict=True), strict=True)
        ]
        problems = _drop_long_sentences(train, sides, options.max_length, options.too_long)
    refuse(problems)
    name = f"{paths['train'][0].parent if path is None else path}, {options.source} to {options.target}"
    return _data(found, name, subwords)


def _drop_long_sentences(train: PairRows, sides: Sequence[Side], allowed: int, too_long: str) -> list[str]:
    if too_long == "error":
        return _long_lines(train, sides, allowed, "subwords", "lines")
    lengths = zip(*(lengths for _, lengths, _ in sides), strict=True)
    fits = {row.line: max(pair) <= allowed for row, pair in zip(train.rows, lengths, strict=True)}
    train.keep(lambda row: fits[row.line], f"longer than {allowed} subwords")
    return [] if train.rows else [_nothing_left(train)]


def _read_aligned(split: str, files: tuple[Path, Path], options: ParallelOptions) -> tuple[PairRows, list[str]]:
    """The lines of two files side by side, and what is wrong with them (at most 20 problems a file)."""
    sides: list[list[tuple[int, str]]] = []
    problems: list[str] = []
    for file in files:
        try:
            lines, broken = read_lines(file, options.encoding, "one sentence a line")
        except UserError as error:
            problems += error.problems
            continue
        sides.append([(number, " ".join(text.split())) for number, text in lines])
        problems += first_problems(str(file), [text for _, text in broken])
    rows = PairRows(f"{split}: {files[0]} and {files[1].name}", [])
    if problems:
        return rows, problems
    if len(sides[0]) != len(sides[1]):
        shorter, longer = sorted(range(2), key=lambda side: len(sides[side]))
        return rows, [
            f"{files[shorter]}:{len(sides[shorter])}: ends here, but {files[longer]} goes on to line "
            f"{len(sides[longer])}; line n of one must be the translation of line n of the other"
        ]
    rows.rows = [Row(number, first, second) for (number, first), (_, second) in zip(*sides, strict=True)]
    if options.empty == "drop":
        rows.keep(lambda row: bool(row.source and row.target), "with an empty side")
        return rows, [] if rows.rows else [_nothing_left(rows)]
    advice = 'write the sentence, delete the line in both files, or set empty = "drop"'
    for side, file in enumerate(files):
        texts = [(row, row[1:][side]) for row in rows.rows]
        problems += first_problems(
            str(file),
            [
                f"{file}:{row.line}: the line has {len(text):,} characters, at most {10 * LONGEST:,} are a sentence"
                for row, text in texts
                if len(text) > 10 * LONGEST
            ],
        )
        blank = [f"{file}:{row.line}: the line is empty; {advice}" for row, text in texts if not text]
        problems += first_problems(str(file), blank)
    return rows, problems


def parallel_files(
    path: str | Path | None, given: Mapping[str, Sequence[str | Path]], source: str, target: str
) -> Mapping[str, tuple[Path, Path]]:
    """The source and the target file of train, dev and test."""
    problems = [
        f"{split} must be two files, [source, target]; got {list(map(str, files))}"
        for split, files in given.items()
        if len(files) != 2
    ]
    other = [split for split in given if split not in SPLITS]
    problems += [f"files are given for train, dev and test; got {split!r}" for split in other]
    if source == target:
        problems.append(f"source and target must end differently; both are {source!r}")
    missing = [split for split in SPLITS if split not in given]
    folder = None if path is None else user_path(path)
    if missing and folder is None:
        problems.append(f"files of {', '.join(missing)} are missing: give a folder, or the two files of each")
    if folder is not None and missing and not folder.is_dir():
        problems.append(f"{folder}: is a file; expected a folder" if folder.exists() else missing_message(folder))
    refuse(problems)
    files = {split: (user_path(pair[0]), user_path(pair[1])) for split, pair in given.items()}
    if folder is not None:
        for split in missing:
            found = _in_folder(folder, split, source, target)
            if isinstance(found, str):
                problems.append(found)
            else:
                files[split] = found
    refuse(problems)
    return {split: files[split] for split in SPLITS}


def _in_folder(folder: Path, split: str, source: str, target: str) -> tuple[Path, Path] | str:
    """A split's two files, or what is wrong."""
    begins = re.compile(rf"({'|'.join(SPLITS[split])})(?![a-zA-Z]).*")
    stems: dict[str, set[str]] = {source: set(), target: set()}
    for file in folder.iterdir():
        for end, found in stems.items():
            stem = file.name.removesuffix(f".{end}")
            if stem != file.name and begins.fullmatch(stem) and file.is_file():
                found.add(stem)
    both = sorted(stems[source] & stems[target])
    if len(both) == 1:
        return folder / f"{both[0]}.{source}", folder / f"{both[0]}.{target}"
    if both:
        first = f'["{folder / both[0]}.{source}", "{folder / both[0]}.{target}"]'
        return f"{folder}: {len(both)} pairs of files could be {split}: {', '.join(both)}; give one: {split} = {first}"
    names = sorted(file.name for file in folder.iterdir())
    shown = ", ".join(names[:10]) + (", ..." if len(names) > 10 else "")
    return (
        f"{folder}: no two files {split}*.{source} and {split}*.{target} of one name; it holds {shown or 'nothing'}; "
        f"set source and target to how the names end, or give {split} = [source file, target file]"
    )
