"""Reading text so that a wrong byte is named by its line."""

from __future__ import annotations

import codecs
import difflib
import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from freerun.errors import UserError, shown

__all__ = [
    "check_description",
    "counted",
    "encoding_problems",
    "first_problems",
    "missing_message",
    "read_lines",
]

SHOWN = 20

Line = tuple[int, str]
"""A line's number and its text, or what is wrong with it."""

_BOMS = (
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


def check_description(description: Mapping[str, Any], kind: str, needed: Collection[str]) -> None:
    """Refuse the description of a saved model's data that is of another kind, or incomplete.

    Raises:
        UserError: names what is missing.
    """
    missing = [name for name in needed if name not in description]
    if missing or description.get("kind") != kind:
        raise UserError(
            f"expected the description of {kind} data with {', '.join(needed)}; got kind {description.get('kind')!r} "
            f"without {', '.join(missing) or 'nothing'}"
        )


def encoding_problems(encoding: str) -> list[str]:
    """What is wrong with the name of an encoding, if anything."""
    try:
        codecs.lookup(encoding)
    except LookupError:
        return [f"encoding {encoding!r} is unknown; use a name such as utf-8, latin-1, cp1252, utf-16"]
    return []


def read_lines(
    path: Path, encoding: str = "utf-8", expected: str = "one pair of word and symbols a line"
) -> tuple[list[Line], list[Line]]:
    """The lines of a text file with their numbers (from 1), and a message for every line that is not text.

    Args:
        path: a file; lines may end in LF, CRLF or CR, and a byte order mark is dropped.
        encoding: as Python names it.
        expected: what the file should hold, for the message about an empty one.

    Raises:
        UserError: no such file, a folder, an empty file, an unknown encoding, or text in UTF-16 or UTF-32
            where another encoding is expected (no line of it could be read).
    """
    if not path.exists():
        raise UserError(missing_message(path))
    if path.is_dir():
        raise UserError(f"{path}: is a folder; expected a text file")
    unknown = encoding_problems(encoding)
    if unknown:
        raise UserError(unknown)
    name = codecs.lookup(encoding).name
    raw = path.read_bytes()
    if not raw.strip():
        raise UserError(f"{path}: the file is empty; expected {expected}")
    if name.startswith(("utf-16", "utf-32")):
        return _decode_whole(path, raw, encoding)
    wide = next((wide for mark, wide in _BOMS if raw.startswith(mark)), None)
    if wide:
        shown = raw[:2].hex(" ").upper()
        raise UserError(
            f"{path}:1: starts with the bytes {shown}, the mark of {wide}, expected {encoding}; "
            f'convert the file to UTF-8 or set encoding = "{wide}"'
        )
    lines: list[Line] = []
    problems: list[Line] = []
    for number, line in enumerate(raw.removeprefix(codecs.BOM_UTF8).splitlines(), start=1):
        try:
            lines.append((number, line.decode(encoding)))
        except UnicodeDecodeError as error:
            problems.append((number, _byte_problem(path, number, encoding, error)))
    return lines, problems


def _decode_whole(path: Path, raw: bytes, encoding: str) -> tuple[list[Line], list[Line]]:
    try:
        text = raw.decode(encoding)
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path}: is not {encoding}: wrong at byte {error.start} of the file; set the right encoding"
        ) from None
    lines = re.split(r"\r\n|\r|\n", text.removeprefix("\ufeff"))
    # the end of the last line begins no other, as in bytes.splitlines
    return list(enumerate(lines if lines[-1] else lines[:-1], start=1)), []


def _byte_problem(path: Path, number: int, encoding: str, error: UnicodeDecodeError) -> str:
    line = bytes(error.object)
    found = " ".join(f"0x{byte:02X}" for byte in line[error.start : max(error.end, error.start + 1)])
    guess = "utf-16" if b"\0" in line else "latin-1"
    looks = shown(line.decode(guess, errors="replace"), 40)
    return (
        f"{path}:{number}: not {encoding.upper()}: found {found} at byte {error.start + 1} of the line; "
        f'as {guess} it reads {looks}: convert the file to UTF-8 or set encoding = "{guess}"'
    )


def counted(number: int, noun: str) -> str:
    """A number and its noun: "1 word", "2,000 words"."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def first_problems(origin: str, problems: Sequence[str], shown: int = SHOWN) -> list[str]:
    """At most ``shown`` problems of one file, and a line that counts the others."""
    if len(problems) <= shown:
        return list(problems)
    return [*problems[:shown], f"{origin}: {counted(len(problems) - shown, 'more problem')} like these"]


def missing_message(path: Path) -> str:
    """What to say about a path that is not there: the names nearest to it in its folder."""
    folder = path.parent
    while not folder.is_dir() and folder != folder.parent:
        folder = folder.parent
    names = sorted(entry.name for entry in folder.iterdir()) if folder.is_dir() else []
    lost = path.name if folder == path.parent else path.relative_to(folder).parts[0]
    near = difflib.get_close_matches(lost, names, n=3, cutoff=0.5) or names[:5]
    return f"{path}: no such file or folder; {folder} holds {', '.join(near) if near else 'nothing'}"
