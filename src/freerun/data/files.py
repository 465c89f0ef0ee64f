"""Which files of a folder are train, dev and test."""

from __future__ import annotations

import codecs
import difflib
import importlib
import lzma
import re
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from freerun.arguments import brief
from freerun.errors import UserError, collected, display, listed, refuse

LONGEST = 10_000
"""Symbols of a word, or subwords of a sentence: more are a line whose end is missing, and would train for hours."""
Read = TypeVar("Read")
Line = tuple[int, str]
"""A line's number and its text, or what is wrong with it."""
_NO_FILES = ("idna", "punycode", "undefined", "unicode-escape", "unicode_escape", "raw-unicode-escape", "utf-7")
"""Encodings of Python that give no plain text: half characters, names of hosts."""
_BOMS = (
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


COMPRESSED = {".gz": "gzip", ".bz2": "bz2", ".xz": "lzma", ".zst": "compression.zstd"}
"""How a compressed file's name ends -> the module that unpacks it."""


def check_description(description: Mapping[str, Any], kind: str, needed: Mapping[str, type]) -> None:
    """Raise UserError if the description of a saved model is of another kind, incomplete or damaged."""
    missing = ", ".join(name for name in needed if name not in description)
    if missing or description.get("kind") != kind:
        raise UserError(
            f"expected the description of {kind} data with {', '.join(needed)}; got kind {description.get('kind')!r} "
            f"without {missing or 'nothing'}"
        )
    problems: list[str] = []
    for name, type_ in needed.items():
        value: Any = description[name]
        if type_ is list and not (isinstance(value, list) and all(isinstance(each, str) for each in value)):
            problems.append(f"describe.{name} must be a list of texts")
        if type_ is int and not (type(value) is int and 1 <= value < 2**31):
            problems.append(f"describe.{name} must be a length, 1 or more; got {display(value)}")
    refuse(problems)


def part_of(splits: Mapping[str, Any], split: str, items: int | None = None, name: str = "items") -> Any:
    """Return a split by its name; raise UserError if there is none, or fewer than one of its items is requested."""
    if split not in splits:
        raise UserError(f"split must be one of {', '.join(splits)}; got {split!r}")
    if items is not None and items < 1:
        raise UserError(f"{name} must be at least 1, or None for all; got {items}")
    return splits[split]


def encoding_problems(encoding: str) -> list[str]:
    """Return what is wrong with the name of an encoding, if anything."""
    try:
        name = codecs.lookup(encoding).name
        fine = name not in _NO_FILES and bool("a".encode(encoding).decode(encoding))
    except (LookupError, ValueError, TypeError):
        fine = False
    named = "use a name such as utf-8, latin-1, cp1252, utf-16"
    return [] if fine else [f"encoding {display(encoding)} is unknown, or none of text files; {named}"]


def user_path(path: str | Path) -> Path:
    """Return a path with ``~`` as the home folder; raise UserError if no file can be called so."""
    try:
        expanded = Path(path).expanduser()
        expanded.exists()
        return expanded
    except (RuntimeError, ValueError, OSError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise UserError(f"{display(str(path))}: cannot be looked for: {reason or type(error).__name__}") from None


def refuse_no_file(path: Path, expected: str) -> None:
    """Raise UserError if a path does not exist, is a folder, or is a device that never ends."""
    if not user_path(path).exists():
        raise UserError(missing_message(path))
    if path.is_dir():
        raise UserError(f"{path}: is a folder; expected {expected}")
    if path.is_char_device() or path.is_block_device() or path.is_socket():
        raise UserError(f"{path}: is a device; expected {expected}")


def content_ending(path: Path) -> str:
    """The ending of a file's name in lower case, without that of a compression."""
    return path.with_suffix("").suffix.lower() if path.suffix.lower() in COMPRESSED else path.suffix.lower()


def uncompressed(path: Path) -> bytes:
    """The bytes of a file, unpacked where its name ends so; raise UserError if it cannot be."""
    raw, ending = path.read_bytes(), path.suffix.lower()
    if ending not in COMPRESSED:
        return raw
    try:
        return importlib.import_module(COMPRESSED[ending]).decompress(raw)
    except ModuleNotFoundError:
        raise UserError(f"{path}: this Python cannot unpack {ending}: unpack it first, zstd -d {path.name}") from None
    except (OSError, EOFError, ValueError, zlib.error, lzma.LZMAError) as error:
        raise UserError(f"{path}: is no whole {ending} file: {str(error) or type(error).__name__}") from None


def read_lines(
    path: Path, encoding: str = "utf-8", expected: str = "one pair of word and symbols a line"
) -> tuple[list[Line], list[Line]]:
    """The lines of a text file with their numbers (from 1), and a message for every line that is not text."""
    refuse_no_file(path, "a text file")
    refuse(encoding_problems(encoding))
    raw = uncompressed(path)
    if not raw.strip():
        raise UserError(f"{path}: the file is empty; expected {expected}")
    if codecs.lookup(encoding).name.startswith(("utf-16", "utf-32")):
        try:
            text = raw.decode(encoding)
        except UnicodeDecodeError as error:
            at = f"wrong at byte {error.start} of the file"
            raise UserError(f"{path}: is not {encoding}: {at}; set the right encoding") from None
        parts = re.split(r"\r\n|\r|\n", text.removeprefix("\ufeff"))
        # the end of the last line begins no other, as in bytes.splitlines
        return list(enumerate(parts if parts[-1] else parts[:-1], start=1)), []
    if wide := next((wide for mark, wide in _BOMS if raw.startswith(mark)), None):
        raise UserError(
            f"{path}:1: starts with the bytes {raw[:2].hex(' ').upper()}, the mark of {wide}, expected {encoding}; "
            f'convert the file to UTF-8 or set encoding = "{wide}"'
        )
    lines: list[Line] = []
    problems: list[Line] = []
    for number, line in enumerate(raw.removeprefix(codecs.BOM_UTF8).splitlines(), start=1):
        try:
            if b"\0" in line:
                wide = "; the file may be UTF-16: set encoding" if line.count(b"\0") * 3 > len(line) else ""
                problems.append((number, f"{path}:{number}: holds a NUL byte, which is no text{wide}; delete it"))
                continue
            lines.append((number, line.decode(encoding)))
        except UnicodeDecodeError as error:
            wrong = " ".join(f"0x{byte:02X}" for byte in line[error.start : max(error.end, error.start + 1)])
            guess = "utf-16" if b"\0" in line else "latin-1"
            looks = display(line.decode(guess, errors="replace"), 40)
            text = (
                f"{path}:{number}: not {encoding.upper()}: found {wrong} at byte {error.start + 1} of the line; as "
                f'{guess} it reads {looks}: convert the file to UTF-8 or set encoding = "{guess}"'
            )
            problems.append((number, text))
    return lines, problems


def counted(number: int, noun: str) -> str:
    """A number and its noun: "1 word", "2,000 words"."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def first_problems(origin: str, problems: Sequence[str], limit: int = 20) -> list[str]:
    """At most ``limit`` problems of one file, and a line that counts the others."""
    if len(problems) <= limit:
        return list(problems)
    return [*problems[:limit], f"{origin}: {counted(len(problems) - limit, 'more problem')} like these"]


FEW = 5
"""Lines of one cause that are all printed."""


def few_lines(rows: Sequence[int], total: int, line: Callable[[int], str], of: str) -> list[tuple[int, str]]:
    """Each row with its line; for many rows, which have one cause, the first and how many of the ``total`` there are.

    >>> few_lines(range(9), 10, lambda row: f"row {row}: is no number", "cells of the column")
    [(0, 'row 0: is no number; so it is in 9 of the 10 cells of the column')]
    """
    if len(rows) <= FEW:
        return [(row, line(row)) for row in rows]
    return [(rows[0], f"{line(rows[0])}; so it is in {len(rows):,} of the {total:,} {of}")]


def lines_of_column(rows: Sequence[int], total: int, line: Callable[[int], str]) -> list[str]:
    """The lines of ``few_lines`` for the cells of a column."""
    return [text for _, text in few_lines(rows, total, line, "cells of the column")]


def missing_message(path: Path) -> str:
    """The message for a path that is not there: the names nearest to it in its folder."""
    folder = path.parent
    while not folder.is_dir() and folder != folder.parent:
        folder = folder.parent
    names = sorted(entry.name for entry in folder.iterdir()) if folder.is_dir() else []
    lost = path.name if folder == path.parent else path.relative_to(folder).parts[0]
    near = difflib.get_close_matches(lost, names, n=3, cutoff=0.5) or names[:5]
    return f"{path}: no such file or folder; {folder} holds {listed(near) if near else 'nothing'}"


SPLITS = {"train": ("train", "training"), "dev": ("dev", "valid", "val", "validation"), "test": ("test",)}
_ENDINGS = (".txt", ".tsv", ".dict", "")


def split_files(path: str | Path | Mapping[str, str | Path], language: str | None = None) -> dict[str, Path]:
    """Return the train, dev and test file of a folder, or the three files of a mapping."""
    if isinstance(path, Mapping):
        problems: list[str] = []
        if set(path) != set(SPLITS):
            problems.append(f"paths must be those of train, dev and test; got {', '.join(path) or 'none'}")
        if language:
            problems.append(f"language = {language!r} has no effect on three paths; leave it out")
        refuse(problems)
        return {split: user_path(path[split]) for split in SPLITS}
    folder = user_path(path)
    if not folder.exists():
        raise UserError(missing_message(folder))
    if not folder.is_dir():
        raise UserError(
            f"{folder}: is a file; expected a folder that holds train, dev and test, or three paths: train, dev, test"
        )
    prefix = f"{language}_" if language else _only_prefix(folder)
    files: dict[str, Path] = {}
    problems = []
    for split, names in SPLITS.items():
        fits = [file for name in names for end in _ENDINGS if (file := folder / f"{prefix}{name}{end}").is_file()]
        if len(fits) == 1:
            files[split] = fits[0]
        elif fits:
            several = ", ".join(file.name for file in fits)
            problems.append(
                f"{folder}: {len(fits)} files could be {split}: {several}; keep one, or pass the three paths"
            )
        else:
            problems.append(f"no {split} file: " + missing_message(folder / f"{prefix}{split}.txt"))
    refuse(problems)
    return files


def _only_prefix(folder: Path) -> str:
    files = [file.name for file in folder.iterdir() if file.is_file()]
    matches = [re.fullmatch(r"(.+_)?train(\.txt|\.tsv|\.dict)?", name) for name in files]
    prefixes = sorted({match[1] or "" for match in matches if match})
    if len(prefixes) > 1 and prefixes[0]:
        languages = [prefix[:-1] for prefix in prefixes]
        several = f'{", ".join(languages)}; name one with language = "{languages[0]}"'
        raise UserError(f"{folder}: holds several languages: {several}")
    return prefixes[0] if prefixes else ""


Array = NDArray[np.float64]
LARGEST = 1e30
"""The size of the largest number, raw: squares and sums of such are finite, also in float32 once scaled."""


def read_each(
    paths: str | Path | Iterable[str | Path], read: Callable[[Path], Read], missing: str
) -> tuple[list[Path], list[Read], list[str]]:
    """A file or several, what each holds, and what is wrong with all of them; ``missing``: that there is none."""
    files = [Path(paths)] if isinstance(paths, str | Path) else [Path(path) for path in paths]
    problems, found = [] if files else [missing], list[Read]()
    for file in files:
        with collected(problems):
            found.append(read(file))
    return files, found, problems


@dataclass(frozen=True)
class DataFile:
    """A file that a trained model reads: to score on instead of a run's own test split, or to go on from.

    Args:
        path: the file.
        encoding: of it, as Python names it.
        columns: source and target of the run, as its recipe names them.
        notes: what its reader finds out about it (rows that were sorted, columns that are not used) is added to these.
    """

    path: Path
    encoding: str = "utf-8"
    columns: tuple[str, str] = ("en", "de")
    notes: list[str] = field(default_factory=list[str], compare=False)
    __repr__ = brief
