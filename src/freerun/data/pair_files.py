"""From line-aligned files to ParallelData: reading, filters, subwords, and the problems of all files at once."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from freerun.arguments import brief
from freerun.data.files import (
    LONGEST,
    SPLITS,
    Files,
    counted,
    encoding_problems,
    first_problems,
    missing_message,
    read_lines,
    split_files,
    user_path,
)
from freerun.data.pairs import PairData, Pairs, ParallelData, Row, Sentences
from freerun.data.tokenisers import Subwords, Symbols
from freerun.errors import UserError, shown, whole

TAB_FORMAT = "word<TAB>symbols separated by spaces"


SPACE_FORMAT = "WORD  SYMBOL SYMBOL ... (spaces)"


VARIANT = re.compile(r"\(\d+\)$")


@dataclass
class Table:
    """The rows of one file, and what has been dropped from it, in words."""

    __repr__ = brief

    origin: str
    rows: list[Row]
    dropped: list[str] = field(default_factory=list[str])

    @property
    def words(self) -> set[Symbols]:
        """The distinct words."""
        return {row.source for row in self.rows}

    def keep(self, rows: list[Row], reason: str) -> None:
        """Keep these rows; say how many were dropped and why, if any."""
        if len(rows) < len(self.rows):
            self.dropped.append(f"{counted(len(self.rows) - len(rows), 'line')} {reason}")
        self.rows = rows


def read_pairs(path: str | Path, *, encoding: str = "utf-8") -> Pairs:
    """The words of one file with all their references.

    A line is ``word<TAB>symbols separated by spaces`` (SIGMORPHON) or ``WORD  SYMBOL SYMBOL ...`` (CMUdict;
    a variant's number as in ``WORD(2)`` is dropped). Words are split into characters, targets at spaces.

    Raises:
        UserError: the file is missing or empty, or lines of it cannot be read; the first 20 of them.
    """
    table, problems = read_table(Path(path), encoding)
    if problems:
        raise UserError(problems)
    return Pairs.of(table.rows, table.origin)


def read_table(path: Path, encoding: str = "utf-8") -> tuple[Table, list[str]]:
    """The rows of one file, and its problems (at most 20 and a count of the rest).

    Raises:
        UserError: the file as a whole cannot be read (see ``read_lines``).
    """
    lines, broken = read_lines(path, encoding)
    lines = [(number, text) for number, text in lines if text.strip(" ") and not text.startswith(";;;")]
    tabs = sum("\t" in text for _, text in lines)
    parse = _parse_tab if 2 * tabs > len(lines) else _parse_spaces
    rows: list[Row] = []
    for number, text in lines:
        found = parse(number, text)
        if isinstance(found, str):
            broken.append((number, f"{path}:{number}: {found}"))
        else:
            rows.append(found)
    if not rows and not broken:
        return Table(str(path), rows), [f"{path}: holds only comments and empty lines; expected {SPACE_FORMAT}"]
    return Table(str(path), rows), first_problems(str(path), [text for _, text in sorted(broken)])


def _parse_tab(number: int, text: str) -> Row | str:
    columns = text.split("\t")
    if len(columns) != 2:
        found = "no tab" if len(columns) == 1 else f"{len(columns)} columns"
        return f"found {found} in {shown(text, 40)}, expected 2 columns: {TAB_FORMAT}; correct or delete the line"
    return _row(number, columns[0].strip(" "), columns[1], text)


def _parse_spaces(number: int, text: str) -> Row | str:
    if "\t" in text:
        return (
            f"found a tab in {shown(text, 40)}, expected {SPACE_FORMAT} as in most of the file; "
            "use one format in the whole file"
        )
    word, _, symbols = text.partition(" ")
    return _row(number, VARIANT.sub("", word), symbols, text)


def _row(number: int, word: str, symbols: str, text: str) -> Row | str:
    # split at the space itself: other blanks may be symbols, and one symbol may be several code points
    target = tuple(symbol for symbol in symbols.split(" ") if symbol)
    if not word:
        return f"the word is empty in {shown(text, 40)}; expected a word before the symbols; delete the line"
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


@dataclass
class SentenceTable:
    """The lines of one split that are used, and what has been dropped, in words."""

    __repr__ = brief

    origin: str
    lines: list[tuple[int, str, str]]
    dropped: list[str] = field(default_factory=list[str])

    def keep(self, lines: list[tuple[int, str, str]], reason: str) -> None:
        """Keep these lines; say how many were dropped and why, if any."""
        if len(lines) < len(self.lines):
            self.dropped.append(f"{counted(len(self.lines) - len(lines), 'line')} {reason}")
        self.lines = lines

    @property
    def sentences(self) -> Sentences:
        """The lines without their numbers."""
        return Sentences([line[1] for line in self.lines], [line[2] for line in self.lines], self.origin)


def parallel_files(
    path: str | Path | None, given: Mapping[str, Sequence[str | Path]], source: str, target: str
) -> Files:
    """The source and the target file of train, dev and test.

    Args:
        path: a folder. A split's files are called ``train.en`` and ``train.de``, or ``train.ANYTHING.en`` and
            ``train.ANYTHING.de``; dev may be ``valid``, ``val`` or ``validation``. None: all are given.
        given: split -> its two files, source first; before what the folder holds.
        source: how names of source files end: ``"en"``.
        target: how names of target files end: ``"de"``.

    Raises:
        UserError: a split is missing, several files fit, or not two files are given; all problems at once.
    """
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
    if problems:
        raise UserError(problems)
    files = {split: (user_path(pair[0]), user_path(pair[1])) for split, pair in given.items()}
    if folder is not None:
        for split in missing:
            found = _in_folder(folder, split, source, target)
            if isinstance(found, str):
                problems.append(found)
            else:
                files[split] = found
    if problems:
        raise UserError(problems)
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


def read_aligned(split: str, files: tuple[Path, Path], encoding: str, empty: str) -> tuple[SentenceTable, list[str]]:
    """The lines of two files side by side, and what is wrong with them (at most 20 problems a file).

    Args:
        split: for the table's name.
        files: source and target.
        encoding: of both.
        empty: "error", or "drop" pairs of which a side is blank.
    """
    sides: list[list[tuple[int, str]]] = []
    problems: list[str] = []
    for file in files:
        try:
            lines, broken = read_lines(file, encoding, "one sentence a line")
        except UserError as error:
            problems += error.problems
            continue
        sides.append([(number, " ".join(text.split())) for number, text in lines])
        problems += first_problems(str(file), [text for _, text in broken])
    table = SentenceTable(f"{split}: {files[0]} and {files[1].name}", [])
    if problems:
        return table, problems
    if len(sides[0]) != len(sides[1]):
        shorter, longer = sorted(range(2), key=lambda side: len(sides[side]))
        return table, [
            f"{files[shorter]}:{len(sides[shorter])}: ends here, but {files[longer]} goes on to line "
            f"{len(sides[longer])}; line n of one must be the translation of line n of the other"
        ]
    table.lines = [(number, first, second) for (number, first), (_, second) in zip(*sides, strict=True)]
    if empty == "drop":
        table.keep([line for line in table.lines if line[1] and line[2]], "with an empty side")
        return table, [] if table.lines else [f"{table.origin}: nothing is left: every line has an empty side"]
    for side, file in enumerate(files, start=1):
        texts = zip(table.lines, (table.sentences.sources, table.sentences.targets)[side - 1], strict=True)
        long = [(line[0], len(text)) for line, text in texts if len(text) > 10 * LONGEST]
        said = f"characters, at most {10 * LONGEST:,} are a sentence"
        problems += first_problems(
            str(file), [f"{file}:{number}: the line has {size:,} {said}" for number, size in long]
        )
        blank = [line[0] for line in table.lines if not line[side]]
        advice = 'write the sentence, delete the line in both files, or set empty = "drop"'
        problems += first_problems(str(file), [f"{file}:{number}: the line is empty; {advice}" for number in blank])
    return table, problems


def read_sentences(path: str | Path, *, encoding: str = "utf-8") -> Sentences:
    """Sentences and translations of one file of ``source<TAB>translation`` lines.

    Raises:
        UserError: the file is missing or empty, or lines of it have not two columns; the first 20 of them.
    """
    file = Path(path)
    lines, broken = read_lines(file, encoding, "source<TAB>translation lines")
    pairs: list[tuple[str, str]] = []
    for number, text in lines:
        columns = [" ".join(column.split()) for column in text.split("\t")]
        if len(columns) == 2 and all(columns):
            pairs.append((columns[0], columns[1]))
        else:
            advice = "expected source<TAB>translation; correct or delete the line"
            broken.append((number, f"{file}:{number}: found {shown(text, 40)}, {advice}"))
    if broken:
        raise UserError(first_problems(str(file), [text for _, text in sorted(broken)]))
    return Sentences([source for source, _ in pairs], [target for _, target in pairs], str(file))


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
    subwords: int = 6000
    max_length: int | None = None
    too_long: Literal["error", "drop"] = "error"
    empty: Literal["error", "drop"] = "error"
    limit: int | None = None

    def __post_init__(self) -> None:
        problems = [
            f"{name} must be at least {least}{' or left out' if least == 1 else ''}; got {value}"
            for name, value, least in (
                ("max_length", self.max_length, 1),
                ("limit", self.limit, 1),
                ("subwords", self.subwords, 258),
            )
            if value is not None and not (whole(value) or 0) >= least
        ]
        problems += [
            f'{name} must be "error" or "drop"; got {value!r}'
            for name, value in (("too_long", self.too_long), ("empty", self.empty))
            if value not in ("error", "drop")
        ]
        problems += [
            f'{name} must be how its files end, such as "en"; got {value!r}'
            for name, value in (("source", self.source), ("target", self.target))
            if not value or value.startswith(".")
        ]
        problems += encoding_problems(self.encoding)
        if problems:
            raise UserError(problems)


def load_parallel(
    path: str | Path | None = None,
    options: ParallelOptions | None = None,
    *,
    files: Mapping[str, Sequence[str | Path]] | None = None,
) -> ParallelData:
    """Sentences and their translations from text files, line n of one the translation of line n of the other.

    Text is taken as its words, separated by blanks, and is neither lower-cased nor tokenised here. Sources of dev or
    test that also stand in training are counted in the header and kept.

    Args:
        path: a folder that holds ``train*.en``, ``train*.de``, ``dev*`` (or ``valid*``, ``val*``) and ``test*``.
        options: languages, subwords, filters; the defaults of ``ParallelOptions`` if left out.
        files: "train", "dev" or "test" -> (source file, target file), instead of what the folder holds.

    Raises:
        UserError: files are missing, not of equal length or not text, lines are empty or too long: every file's first
            20 problems, by line. The package tokenizers is not installed.
    """
    options = options or ParallelOptions()
    found = parallel_files(path, files or {}, options.source, options.target)
    tables: dict[str, SentenceTable] = {}
    problems: list[str] = []
    for split, pair in found.items():
        tables[split], wrong = read_aligned(split, pair, options.encoding, options.empty)
        problems += wrong
    if problems:
        raise UserError(problems)
    train = tables["train"]
    if options.limit is not None:
        _parallel_limit(train, options.limit)
    subwords = Subwords.trained((text for line in train.lines for text in line[1:]), options.subwords)
    if options.max_length is not None:
        problems += _parallel_drop_long(train, subwords, options.max_length, options.too_long == "drop", found["train"])
    if problems:
        raise UserError(problems)
    name = f"{found['train'][0].parent if path is None else path}, {options.source} to {options.target}"
    splits = {split: table.sentences for split, table in tables.items()}
    return ParallelData(splits, subwords, name, {split: table.dropped for split, table in tables.items()})


def _parallel_limit(train: SentenceTable, limit: int) -> None:
    if len(train.lines) > limit:
        # by a hash, so that a smaller limit gives a part of a larger one's, spread over the file
        order = sorted(train.lines, key=lambda line: (word_hash((line[1],)), line[0]))
        train.keep(sorted(order[:limit]), f"beyond the limit of {limit:,}")


def _parallel_drop_long(
    train: SentenceTable, subwords: Subwords, allowed: int, drop: bool, files: tuple[Path, Path]
) -> list[str]:
    texts = train.sentences
    lengths = [[len(ids) for ids in subwords.encode(side)] for side in (texts.sources, texts.targets)]
    fits = [max(pair) <= allowed for pair in zip(*lengths, strict=True)]
    if drop or all(fits):
        train.keep(
            [line for line, fit in zip(train.lines, fits, strict=True) if fit], f"longer than {allowed} subwords"
        )
        return [] if train.lines else [f"{train.origin}: nothing is left: every line is longer than {allowed} subwords"]
    problems: list[str] = []
    for file, found in zip(files, lengths, strict=True):
        long = [(line[0], length) for line, length in zip(train.lines, found, strict=True) if length > allowed]
        advice = f'max_length allows {allowed}; raise max_length or set too_long = "drop"'
        wrong = [f"{file}:{number}: the line has {length} subwords, {advice}" for number, length in long]
        if len(wrong) > 1:
            wrong.insert(0, f"{file}: {counted(len(wrong), 'line')} too long; longest {max(found)} subwords")
        problems += first_problems(str(file), wrong)
    return problems
