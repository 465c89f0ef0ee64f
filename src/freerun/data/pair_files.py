"""From files of pairs to PairData: words and symbols, or line-aligned sentences; filters; all problems at once."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from freerun.arguments import Arguments, at_least, between, brief, one_of
from freerun.data.delimited import read_cells
from freerun.data.files import (
    LONGEST,
    SPLITS,
    Line,
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
from freerun.errors import UserError, collected, display, listed, refuse

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
        """Keep some rows; count those that are dropped, with the reason."""
        rows = [row for row in self.rows if kept(row)]
        if len(rows) < len(self.rows):
            self.dropped.append(f"{counted(len(self.rows) - len(rows), 'line')} {reason}")
        self.rows = rows


def read_pairs(
    path: str | Path, *, encoding: str = "utf-8", tokeniser: Literal["symbols", "subwords"] = "symbols",
    columns: tuple[str, str] = ("en", "de"), notes: list[str] | None = None,
) -> Pairs:  # fmt: skip
    """The words of one file with all their references, or its sentences with their translations.

    A line of words is ``word<TAB>symbols separated by spaces`` (SIGMORPHON) or ``WORD  SYMBOL SYMBOL ...`` (CMUdict;
    a variant's number as in ``WORD(2)`` is dropped). Words are split into characters, targets at spaces. A line of
    sentences is ``source<TAB>translation``; further columns are not used.

    Args:
        path: the file.
        encoding: of the file, as Python names it.
        tokeniser: "symbols" for words, "subwords" for sentences.
        columns: of sentences: source and target, as the first line or ``ParallelOptions`` names them.
        notes: what is found out about the file is added to these.

    Raises:
        UserError: the file is missing or empty, or lines of it cannot be read; the first 20 of them.
    """
    if tokeniser not in ("symbols", "subwords"):
        raise UserError(f'tokeniser must be "symbols" or "subwords"; got {display(tokeniser)}')
    if tokeniser == "symbols":
        pairs, problems = _read_words(Path(path), encoding)
    else:
        options = ParallelOptions(source=columns[0], target=columns[1], encoding=encoding)
        pairs, found, problems = _read_tabbed(Path(path), options)
        if notes is not None:
            notes += found
    refuse(problems)
    return Pairs.of(pairs.rows, pairs.origin)


def _read_words(path: Path, encoding: str) -> tuple[PairRows, list[str]]:
    """The rows of one file of words, and its problems (at most 20 and a count of the rest)."""
    lines, broken = read_lines(path, encoding)
    lines = [(number, text) for number, text in lines if text.strip(" ") and not text.startswith(";;;")]
    tabs = sum("\t" in text for _, text in lines)
    words, problems = _parsed(path, lines, broken, _parse_tab if 2 * tabs > len(lines) else _parse_spaces)
    if not words.rows and not problems:
        problems = [f"{path}: holds only comments and empty lines; expected {SPACE_FORMAT}"]
    return words, problems


def _parsed(
    path: Path, lines: list[Line], broken: list[Line], parse: Callable[[int, str], Row | str]
) -> tuple[PairRows, list[str]]:
    rows: list[Row] = []
    for number, text in lines:
        row = parse(number, text)
        if isinstance(row, str):
            broken.append((number, f"{path}:{number}: {row}"))
        else:
            rows.append(row)
    return PairRows(str(path), rows), first_problems(str(path), [text for _, text in sorted(broken)])


def _parse_tab(number: int, text: str) -> Row | str:
    columns = text.split("\t")
    if len(columns) != 2:
        found = "no tab" if len(columns) == 1 else f"{len(columns)} columns"
        wrong = f"found {found} in {display(text, 40)}, expected 2 columns: {TAB_FORMAT}; correct or delete the line"
        return wrong + ', or for sentences set kind = "parallel"' * (len(columns) > 2)
    return _row(number, columns[0].strip(" "), columns[1], text)


def _parse_spaces(number: int, text: str) -> Row | str:
    if "\t" in text:
        return (
            f"found a tab in {display(text, 40)}, expected {SPACE_FORMAT} as in most of the file; "
            "use one format in all of the file"
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
class PairOptions(Arguments):
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

    def problems(self) -> Iterator[str]:
        """Return which fields do not go together, a line each."""
        yield from encoding_problems(self.encoding)


@dataclass(frozen=True)
class ParallelOptions(Arguments):
    """How parallel text is read, cut into subwords and filtered.

    Args:
        source: how names of source files end, and so what the source language is called; of one file of lines
            ``source<TAB>translation`` a column's name, or its number from 1 ("en" and "de" then stand for "1" and "2").
        target: the same of the target.
        quoting: of one such file: "minimal": a cell in quotation marks may hold tabs and line ends; "none": they are
            letters; None: as the file's lines fit.
        header: of the same: whether the first line names the columns; None: where it names source and target.
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
    quoting: Literal["minimal", "none"] | None = one_of(("minimal", "none"), None)
    header: bool | None = None
    encoding: str = "utf-8"
    subwords: int = between(258, 10**6, 6000)
    max_length: int | None = at_least(1, None)
    too_long: Literal["error", "drop"] = one_of(("error", "drop"), "error")
    empty: Literal["error", "drop"] = one_of(("error", "drop"), "error")
    limit: int | None = at_least(1, None)

    def problems(self) -> Iterator[str]:
        """Return which fields do not go together, a line each."""
        yield from encoding_problems(self.encoding)
        for name, value in (("source", self.source), ("target", self.target)):
            if not value or value.startswith("."):
                yield f'{name} must be how its files end, such as "en"; got {value!r}'
        if self.source == self.target:
            yield f"source and target must be how different files end; both are {self.source!r}"


def load_pairs(
    path: str | Path | Mapping[str, str | Path] | None = None,
    options: PairOptions | ParallelOptions | None = None,
    *,
    language: str | None = None,
    files: Mapping[str, Sequence[str | Path]] | None = None,
) -> PairData:
    """Pairs from files: words and their symbols, or with ``ParallelOptions`` sentences and their translations.

    Files of words hold a pair a line; in a folder they are called ``train.txt`` or ``train.tsv``, or
    ``<language>_train.tsv``, and so on. Sentences stand in one file of lines ``source<TAB>translation``, of which 5 %
    are set aside for dev and 5 % for test by a hash of the source, so that no source is in two of them; or in two
    files, line n of one the translation of line n of the other; in a folder ``train*.en``, ``train*.de``, ``dev*`` (or
    ``valid*``, ``val*``) and ``test*``. Their text is taken as its words, separated by blanks, and is neither
    lower-cased nor tokenised here; sources of dev or test that also stand in training are counted in the header and
    kept.

    Args:
        path: a folder; of words also {"train": file, "dev": file, "test": file}; of sentences also one file.
        options: filters, and the tokeniser: ``PairOptions`` (the default) for words, ``ParallelOptions`` for sentences.
        language: of words: the prefix of the files' names, where a folder holds several.
        files: of sentences: "train", "dev" or "test" -> (source file, target file), or one file in brackets, instead of
            what the folder holds or is set aside.

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
    rows: dict[str, PairRows] = {}
    problems: list[str] = []
    paths = split_files(path, language)
    for split, file in paths.items():
        with collected(problems):
            rows[split], wrong = _read_words(file, options.encoding)
            problems += wrong
    if problems:
        raise UserError([*problems, *(long for each in rows.values() for long in _drop_long_words(each, options))])
    name = str(paths["train"]) if isinstance(path, Mapping) else str(path)
    return prepare(rows, options, f"{name} ({language})" if language else name)


def prepare(splits: Mapping[str, PairRows], options: PairOptions, name: str) -> PairData:
    """Filter the rows of words, in place, and return them as PairData; raise UserError with every problem."""
    problems: list[str] = []
    for rows in splits.values():
        if not rows.rows:
            problems.append(f"{rows.origin}: holds no usable line; expected a word and its symbols")
        problems += _drop_long_words(rows, options)
        first: dict[Any, int] = {}
        rows.keep(lambda row, first=first: first.setdefault(row[1:], row.line) == row.line, "repeating an earlier one")
    train, words = splits["train"], {split: {row.source for row in rows.rows} for split, rows in splits.items()}
    held_out = words["dev"] | words["test"]
    if options.drop_overlap and (shared := len(words["train"] & held_out)):
        train.rows = [row for row in train.rows if row.source not in held_out]
        train.dropped.append(f"{counted(shared, 'word')} also in dev or test")
    if options.limit is not None:
        _limit(train, options.limit, "word", lambda row: row.source)
    if train.rows:
        problems += [text for split in ("dev", "test") for text in _drop_unknown(splits[split], train, options)]
    problems += [_nothing_left(rows) for rows in splits.values() if not rows.rows and rows.dropped]
    refuse(problems)
    return _data(splits, name)


def _data(
    splits: Mapping[str, PairRows], name: str, subwords: Subwords | None = None, facts: Sequence[str] = ()
) -> PairData:
    pairs = {split: Pairs.of(rows.rows, rows.origin) for split, rows in splits.items()}
    return PairData(pairs, name, {split: rows.dropped for split, rows in splits.items()}, subwords, facts)


def word_hash(word: Symbols | str) -> int:
    """A 64-bit hash of a word or sentence, the same everywhere."""
    return int.from_bytes(hashlib.blake2b("".join(word).encode(), digest_size=8).digest(), "big")


def _limit(train: PairRows, limit: int, noun: str, group: Callable[[Row], Any]) -> None:
    """Keep the first groups of rows in the order of a hash: a smaller limit gives a part of what a larger one gives."""
    groups = {group(row): row.source for row in train.rows}
    if len(groups) > limit:
        chosen = {key for _, key in sorted((word_hash(source), key) for key, source in groups.items())[:limit]}
        train.rows = [row for row in train.rows if group(row) in chosen]
        train.dropped.append(f"{counted(len(groups) - limit, noun)} beyond the limit of {limit:,}")


def _long_lines(
    rows: PairRows, file: str, lengths: Sequence[int], allowed: int, *, unit: str, name: Callable[[Row], str]
) -> list[str]:
    """A message for every row with more than ``allowed`` units, and a count of them before."""
    problems = [
        f"{file}:{row.line}: {name(row)} has {length} {unit}, max_length allows {allowed}; raise max_length or set "
        'too_long = "drop"'
        for row, length in zip(rows.rows, lengths, strict=True)
        if length > allowed
    ]
    if len(problems) > 1:
        many = "targets" if unit == "symbols" else "lines"
        count = f"{len(problems):,} of {len(lengths):,} {many} are too long; longest {max(lengths)}"
        problems.insert(0, f"{file}: {count}")
    return first_problems(file, problems)


def _drop_long_words(rows: PairRows, options: PairOptions) -> list[str]:
    """Drop words whose target is too long, or return a message for each."""
    allowed = options.max_length
    if allowed is None:
        return []
    if options.too_long == "drop":
        rows.keep(lambda row: len(row.target) <= allowed, f"with a target longer than {allowed}")
        return []
    lengths = [len(row.target) for row in rows.rows]
    name: Callable[[Row], str] = lambda row: f"the target of {''.join(row.source)!r}"  # noqa: E731
    return _long_lines(rows, rows.origin, lengths, allowed, unit="symbols", name=name)


def _drop_unknown(rows: PairRows, train: PairRows, options: PairOptions) -> list[str]:
    """Drop rows with symbols never seen in training, or return a message for each symbol."""
    sides = ("source", "target")
    known = {side: {symbol for row in train.rows for symbol in getattr(row, side)} for side in sides}
    if options.unknown == "drop":
        fits: Callable[[Row], bool] = lambda row: all(known[side].issuperset(getattr(row, side)) for side in sides)  # noqa: E731
        rows.keep(fits, "with a symbol never seen in training")
        return []
    problems: list[str] = []
    for side, name in zip(sides, ("word", "target"), strict=True):
        unknown: list[tuple[str, int]] = [
            (symbol, row.line) for row in rows.rows for symbol in getattr(row, side) if symbol not in known[side]
        ]
        first = dict(reversed(unknown))
        problems += [
            f"{rows.origin}:{first[symbol]}: {name} symbol {symbol!r} was never seen in training "
            f"({counted(count, 'time')} in this file, first here); add training words with it or set "
            'unknown = "drop"'
            for symbol, count in Counter(symbol for symbol, _ in unknown).most_common()
        ]
    return first_problems(rows.origin, problems)


def _nothing_left(rows: PairRows) -> str:
    dropped = "; ".join(rows.dropped)
    return f"{rows.origin}: nothing is left after filtering; dropped: {dropped}; loosen the filters"


def _load_sentences(
    path: str | Path | None, options: ParallelOptions, files: Mapping[str, Sequence[str | Path]]
) -> PairData:
    paths = _parallel_files(path, files, options.source, options.target)
    rows: dict[str, PairRows] = {}
    facts: list[str] = []
    problems: list[str] = []
    for split, own in paths.items():
        with collected(problems):
            if len(own) == 1:
                rows[split], notes, wrong = _read_tabbed(own[0], options)
                facts += notes
            else:
                rows[split], wrong = _read_aligned(split, own, options)
            problems += wrong
    refuse(problems)
    if len(rows) < len(SPLITS):
        _set_aside(rows)
    train, allowed = rows["train"], options.max_length
    if options.limit is not None:
        _limit(train, options.limit, "line", lambda row: row.line)
    subwords = Subwords.trained((text for row in train.rows for text in row[1:]), options.subwords)
    if allowed is not None:
        lengths = [subwords.lengths([getattr(row, side) for row in train.rows]) for side in ("source", "target")]
        if options.too_long == "drop":
            fits = {row.line: max(pair) <= allowed for row, *pair in zip(train.rows, *lengths, strict=True)}
            train.keep(lambda row: fits[row.line], f"longer than {allowed} subwords")
            problems = [] if train.rows else [_nothing_left(train)]
        else:
            for file, each in zip(paths["train"] * (3 - len(paths["train"])), lengths, strict=True):
                problems += _long_lines(train, str(file), each, allowed, unit="subwords", name=lambda _: "the line")
    refuse(problems)
    alone = len(paths["train"]) == 1
    name = paths["train"][0] if alone else paths["train"][0].parent if path is None else path
    name = f"{name}" if alone else f"{name}, {options.source} to {options.target}"
    return _data(rows, name, subwords, list(dict.fromkeys(facts)))


HELD_OUT = 0.05
"""The share of dev, and that of test, where a hash decides."""


def split_of(word: Symbols | str) -> str:
    """The split of a word or sentence by its hash: the same everywhere and for ever."""
    at = word_hash(word) / 2**64
    return "test" if at >= 1 - HELD_OUT else "dev" if at >= 1 - 2 * HELD_OUT else "train"


def _set_aside(rows: dict[str, PairRows]) -> None:
    """Take the splits without a file out of the training rows, by a hash of the source; raise UserError if too few."""
    train = rows["train"]
    lacking = [split for split in SPLITS if split not in rows]
    for split in lacking:
        rows[split] = PairRows(f"{train.origin}, {split}", [row for row in train.rows if split_of(row.source) == split])
    train.rows = [row for row in train.rows if split_of(row.source) not in lacking]
    if empty := [split for split in (*lacking, "train") if not rows[split].rows]:
        raise UserError(
            f"{train.origin}: too few different sources to set 5 % aside for {' and '.join(lacking)}: nothing is left "
            f"for {' and '.join(empty)}; name files, dev = [FILE] and test = [FILE]"
        )


def _read_tabbed(file: Path, options: ParallelOptions) -> tuple[PairRows, list[str], list[str]]:
    """The rows of a file of sentences in columns, what is to be known about it, and what is wrong with it."""
    lines, broken = read_lines(file, options.encoding, "source<TAB>translation lines")
    rows, problems = PairRows(str(file), []), [text for _, text in broken]
    if problems:
        return rows, [], first_problems(str(file), problems)
    cells = read_cells(file, [text for _, text in lines], "\t", quoting=options.quoting, header=False)
    sides, names, found = (options.source, options.target), list(cells.names), cells.rows
    first = [cell.strip() for cell in found[0][1].values()] if found else []
    heading = set(sides) <= set(first) if options.header is None else options.header
    notes = list(cells.notes)
    if heading:
        names, found = first, found[1:]
    else:
        notes += [f"{file}: its first line, {display(' '.join(first), 40)}, is a row, not names of columns"]
        sides = ("1", "2") if sides == ("en", "de") else sides
    if absent := [side for side in sides if side not in names]:
        has = f"has no column {' and '.join(map(repr, absent))}; its columns are {listed(names)}"
        return rows, [], cells.problems or [f"{file}: {has}: name source and target, or put a line of names above"]
    at = [names.index(side) for side in sides]
    unused = [name for number, name in enumerate(names) if number not in at]
    used = f"{file}: source from column {sides[0]}, target from {sides[1]}"
    notes.insert(0, used + (f"; not used: {listed(unused)}" if unused else ""))
    for origin, row in found:
        texts = [" ".join(text.split()) for text in row.values()]
        rows.rows.append(Row(int(origin.rpartition(":")[2]), texts[at[0]], texts[at[1]]))
    return rows, notes, first_problems(str(file), [*cells.problems, *_blank_or_long(rows, (file, file), options)])


def _read_aligned(split: str, files: Sequence[Path], options: ParallelOptions) -> tuple[PairRows, list[str]]:
    """The lines of two files side by side, and what is wrong with them (at most 20 problems a file)."""
    sides: list[list[tuple[int, str]]] = []
    problems: list[str] = []
    for file in files:
        with collected(problems):
            lines, broken = read_lines(file, options.encoding, "one sentence a line")
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
    return rows, _blank_or_long(rows, files, options)


def _blank_or_long(rows: PairRows, files: Sequence[Path], options: ParallelOptions) -> list[str]:
    """Drop sentences of which a side is empty, or name them; name lines that are no sentence."""
    if options.empty == "drop":
        rows.keep(lambda row: bool(row.source and row.target), "with an empty side")
        return [] if rows.rows else [_nothing_left(rows)]
    problems: list[str] = []
    both = "in both files" if files[0] != files[1] else ""
    advice = f'write the sentence, delete the line{both and " " + both}, or set empty = "drop"'
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
    return problems


def file_problems(path: object, files: Mapping[str, Sequence[Any]]) -> Iterator[str]:
    """Return what is wrong with the choice of files for parallel text, beside a folder or without one."""
    for split, pair in files.items():
        if len(pair) not in (1, 2):
            yield f"{split} must be two files, [source, target], or one of both; got {list(map(str, pair))}"
        if split not in SPLITS:
            yield f"files must be those of train, dev and test; got {split!r}"
    if path is None and (missing := [split for split in SPLITS if split not in files]):
        yield f"`{missing[0]}` is missing: without `path`, train, dev and test are all needed"


def _parallel_files(
    path: str | Path | None, files: Mapping[str, Sequence[str | Path]], source: str, target: str
) -> Mapping[str, tuple[Path, ...]]:
    """The source and the target file of train, dev and test, or the one of both; of one file that of train alone."""
    problems = list(file_problems(path, files))
    missing = [split for split in SPLITS if split not in files]
    folder = None if path is None else user_path(path)
    if folder is not None and missing and not folder.exists():
        problems.append(missing_message(folder))
    alone = folder is not None and folder.is_file()
    if alone and "train" in files:
        problems.append(f"{folder}: is the file of train; leave train = ... or the path out")
    refuse(problems)
    pairs: dict[str, tuple[Path, ...]] = {split: tuple(map(user_path, each)) for split, each in files.items()}
    if folder is not None and alone:
        pairs, missing = {"train": (folder,), **pairs}, []
    for split in missing:
        assert folder is not None
        pair = _in_folder(folder, split, source, target)
        if isinstance(pair, str):
            problems.append(pair)
        else:
            pairs[split] = pair
    refuse(problems)
    return {split: pairs[split] for split in SPLITS if split in pairs}


def _in_folder(folder: Path, split: str, source: str, target: str) -> tuple[Path, Path] | str:
    """A split's two files, or what is wrong."""
    begins = re.compile(rf"({'|'.join(SPLITS[split])})(?![a-zA-Z]).*")
    names = sorted(file.name for file in folder.iterdir())
    stems = {
        end: {name.removesuffix(f".{end}") for name in names if name.endswith(f".{end}")} for end in (source, target)
    }
    both = [
        stem
        for stem in sorted(stems[source] & stems[target])
        if begins.fullmatch(stem) and all((folder / f"{stem}.{end}").is_file() for end in (source, target))
    ]
    if len(both) == 1:
        return folder / f"{both[0]}.{source}", folder / f"{both[0]}.{target}"
    if both:
        first = f'["{folder / both[0]}.{source}", "{folder / both[0]}.{target}"]'
        return f"{folder}: {len(both)} pairs of files could be {split}: {', '.join(both)}; give one: {split} = {first}"
    listing = ", ".join(names[:10]) + (", ..." if len(names) > 10 else "")
    return (
        f"{folder}: no two files {split}*.{source} and {split}*.{target} of one name; it holds {listing or 'nothing'}; "
        f"set source and target to how the names end, or give {split} = [source file, target file]"
    )
