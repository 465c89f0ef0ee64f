"""Files of (word, symbols) lines: two formats, one reader, every problem by file and line."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from freerun.brief import brief
from freerun.data.text import LONGEST, counted, first_problems, read_lines
from freerun.data.vocabulary import Symbols
from freerun.errors import UserError, shown

__all__ = ["Pairs", "Row", "Table", "read_pairs", "read_table"]

TAB_FORMAT = "word<TAB>symbols separated by spaces"
SPACE_FORMAT = "WORD  SYMBOL SYMBOL ... (spaces)"
VARIANT = re.compile(r"\(\d+\)$")


class Row(NamedTuple):
    """One line of a file: its number, the word's characters, the symbols."""

    line: int
    source: Symbols
    target: Symbols


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


@dataclass(frozen=True)
class Pairs:
    """Words and their references, one entry a distinct word.

    Args:
        sources: the words, each a tuple of symbols (characters).
        references: for each word all its distinct target sequences, in the order of the file.
        origin: where they come from.

    >>> pairs = Pairs.of([Row(1, ("a",), ("AH",)), Row(2, ("a",), ("EY",))], "here")
    >>> len(pairs), pairs.references
    (1, [[('AH',), ('EY',)]])
    """

    __repr__ = brief

    sources: list[Symbols]
    references: list[list[Symbols]]
    origin: str

    @classmethod
    def of(cls, rows: Sequence[Row], origin: str) -> Pairs:
        """Rows grouped by word; a repeated reference counts once."""
        grouped: dict[Symbols, dict[Symbols, None]] = {}
        for row in rows:
            grouped.setdefault(row.source, {})[row.target] = None
        return cls(list(grouped), [list(targets) for targets in grouped.values()], origin)

    def __len__(self) -> int:
        return len(self.sources)

    @property
    def count(self) -> int:
        """Number of (word, reference) pairs."""
        return sum(len(references) for references in self.references)

    def flat(self) -> Iterator[tuple[Symbols, Symbols]]:
        """Every (word, reference) pair."""
        for source, references in zip(self.sources, self.references, strict=True):
            for reference in references:
                yield source, reference

    def spread(self, words: int | None) -> Pairs:
        """A fixed subset of ``words`` words spread evenly over the list; all of them for None."""
        if words is None or words >= len(self):
            return self
        chosen = [number * len(self) // words for number in range(words)]
        return Pairs(
            [self.sources[i] for i in chosen],
            [self.references[i] for i in chosen],
            f"{self.origin}, {words} words",
        )


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
