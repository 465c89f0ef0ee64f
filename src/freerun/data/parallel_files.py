"""Line-aligned text files: which files of a folder are which split and side, and their lines as sentences."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from freerun.brief import brief
from freerun.data.text import LONGEST, counted, first_problems, missing_message, read_lines, user_path
from freerun.errors import UserError, shown

__all__ = ["SPLITS", "Sentences", "Table", "parallel_files", "read_aligned", "read_sentences"]

SPLITS = {"train": ("train", "training"), "dev": ("dev", "valid", "val", "validation"), "test": ("test",)}

Files = Mapping[str, tuple[Path, Path]]


@dataclass(frozen=True)
class Sentences:
    """Sentences and their translations; words are separated by single blanks.

    Args:
        sources: what is translated.
        targets: one translation of each.
        origin: where they come from.

    >>> len(Sentences(["a man ."], ["ein mann ."], "here"))
    1
    """

    __repr__ = brief

    sources: list[str]
    targets: list[str]
    origin: str

    def __len__(self) -> int:
        return len(self.sources)

    def spread(self, number: int | None) -> Sentences:
        """A fixed subset of ``number`` sentences spread evenly over the list; all of them for None."""
        if number is None or number >= len(self):
            return self
        chosen = [i * len(self) // number for i in range(number)]
        origin = f"{self.origin}, {number} sentences"
        return Sentences([self.sources[i] for i in chosen], [self.targets[i] for i in chosen], origin)


@dataclass
class Table:
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


def read_aligned(split: str, files: tuple[Path, Path], encoding: str, empty: str) -> tuple[Table, list[str]]:
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
    table = Table(f"{split}: {files[0]} and {files[1].name}", [])
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
