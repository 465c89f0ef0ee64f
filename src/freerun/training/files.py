"""Files that are there complete or not at all: folders with checksums, and JSON that is read against a shape.

A shape is a type: ``int``, ``float | None``, ``list[str]``, ``dict[str, float]``, a ``TypedDict`` (further keys are
left alone), or a dataclass, whose missing fields have their defaults.
"""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import re
import shutil
from collections import Counter
from collections.abc import Callable, Collection, Generator, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import MISSING, fields, is_dataclass
from functools import cache
from io import BufferedReader
from pathlib import Path
from types import NoneType, UnionType
from typing import (
    Annotated,
    Any,
    Literal,
    NotRequired,
    TypedDict,
    TypeVar,
    Union,
    get_args,
    get_origin,
    get_type_hints,
    is_typeddict,
)

from freerun.errors import CheckpointError, OccupiedError, ResourceError, UserError

LARGEST = 16 * 2**20
"""Bytes of a JSON file, or of a line of one."""

FORMAT_VERSION = 1
FULL = (errno.ENOSPC, errno.EDQUOT)
"""Error numbers of a full disk."""

MANIFEST = "manifest.json"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_TEMPORARY, _ASIDE = ".writing-", ".old"
_PROBE = re.compile(r"\.probed?-\d+")

_DEEPEST = 64
_VALUES = 2_000_000
_CONTAINERS = 250_000  # an empty list takes 60 bytes where it took two in the file
_WHOLE = 2**63
S = TypeVar("S")


class NewerError(CheckpointError):
    """What a later version of freerun wrote."""


Count = Annotated[int, "0 or more"]

_WORDS: dict[Any, str] = {
    bool: "true or false", int: "a whole number", float: "a number", str: "a text", NoneType: "null",
    list: "a list", dict: "an object",
}  # fmt: skip


def require_plain(path: Path) -> None:
    """Refuse what is not a file, or is a link to one."""
    if path.is_symlink():
        raise CheckpointError(f"{path} is a link: not a plain file of its folder; put the file there")
    if not path.exists():
        raise CheckpointError(f"{path} is missing")
    if not path.is_file():
        raise CheckpointError(f"{path} is not a plain file")


@contextmanager
def opened(path: Path) -> Generator[BufferedReader]:
    """Open a file to read."""
    require_plain(path)
    try:
        with path.open("rb") as file:
            yield file
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror or error}") from None


def read_json(path: Path, shape: type[S]) -> S:
    """Return the content of a JSON file."""
    with opened(path) as file:
        return parse(file.read(LARGEST + 1), shape, str(path))


def read_lines(path: Path, shape: type[S]) -> Iterator[S]:
    """Yield the objects of a file of one JSON object a line, without a last line that is being written."""
    with opened(path) as file:
        for number, line in enumerate(iter(lambda: file.readline(LARGEST + 1), b""), start=1):
            if not line.endswith(b"\n") and len(line) <= LARGEST:
                return
            if line.strip():
                yield parse(line, shape, f"{path}:{number}")


def parse(content: bytes, shape: type[S], where: str) -> S:
    """Return the value of a JSON text.

    >>> parse(b'{"step": -3}', dict[str, Count], "state.json")
    Traceback (most recent call last):
    freerun.errors.CheckpointError: state.json is damaged: step must be a whole number, 0 or more; it is -3
    """
    try:
        if len(content) > LARGEST:
            raise ValueError(f"more than {LARGEST:,} bytes")
        if content.count(b",") > _VALUES or content.count(b"[") + content.count(b"{") > _CONTAINERS:
            raise ValueError(f"more than {_VALUES:,} values, or {_CONTAINERS:,} lists and objects")
        value = json.loads(content.decode(), parse_constant=_number, parse_float=_number, object_pairs_hook=_once)
        if _depth(value) > _DEEPEST:
            raise RecursionError
        if b"\\u" in content:
            json.dumps(value, ensure_ascii=False).encode()  # half a character cannot be written again
    except RecursionError:
        raise CheckpointError(f"{where} is damaged: nested more than {_DEEPEST} deep") from None
    except ValueError as error:
        raise CheckpointError(f"{where} is damaged: {_cut(str(error))}") from None
    return expect(value, shape, where)


def expect(value: Any, shape: type[S], where: str) -> S:
    """Return the value of a JSON text, which must be of a shape."""
    if problem := _problem(value, shape, ""):
        raise CheckpointError(f"{where} is damaged: {problem}")
    return value


def versioned(content: dict[str, Any], key: str, ours: int, where: str) -> None:
    """Refuse what another version of freerun wrote in a format of its own."""
    version = content.get(key)
    if not isinstance(version, int) or isinstance(version, bool) or version < 1:
        raise CheckpointError(f"{where} is damaged: {key} must be {ours}; it is {_text(version)}")
    if version > ours:
        raise NewerError(
            f"{where} has format version {version}; this freerun reads {ours}: use the freerun that wrote it, or a "
            "later one"
        )


def _number(text: str) -> float:
    if text in ("NaN", "Infinity", "-Infinity"):
        raise ValueError(f"{text} is no number of JSON")
    if math.isinf(number := float(text)):
        raise ValueError(f"{_cut(text)} is too large a number")
    return number


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    for name, count in Counter(name for name, _ in pairs).items():
        if count > 1:
            raise ValueError(f"{_text(name)} is there twice")
    return dict(pairs)


def _depth(value: Any) -> int:
    """Count the lists and objects that lie within each other."""
    return 1 + max((_depth(part) for _, part in _parts(value)), default=0) if isinstance(value, dict | list) else 0


def _problem(value: Any, shape: Any, name: str) -> str:
    """Return what is wrong with a value, "" where it fits."""
    origin: Any = get_origin(shape)
    parts: Any = get_args(shape)
    if shape is Any:
        return ""
    if origin is Annotated:
        wrong = bool(_problem(value, parts[0], name)) or value < 0
        return _wrong(name, f"{_WORDS[parts[0]]}, {parts[1]}", value) if wrong else ""
    if origin is NotRequired:
        return _problem(value, parts[0], name)
    if origin in (Union, UnionType):
        problems = [_problem(value, part, name) for part in parts if not (part is NoneType and value is not None)]
        return "" if not all(problems) else problems[0]
    if origin is Literal:
        return "" if value in parts and type(value) is type(parts[0]) else _wrong(name, repr(parts[0]), value)
    if is_typeddict(shape) or is_dataclass(shape):
        return _object_problem(value, shape, name)
    kind: Any = origin or shape
    right = isinstance(value, int | float if kind is float else kind) and (kind is bool or not isinstance(value, bool))
    if not right or (isinstance(value, int) and abs(value) >= _WHOLE):
        return _wrong(name, _WORDS[kind], value)
    inside = _parts(value) if kind in (list, dict) else ()
    return next(filter(None, (_problem(part, parts[-1], _inside(name, key)) for key, part in inside)), "")


def _parts(value: Any) -> Iterable[tuple[Any, Any]]:
    return value.items() if isinstance(value, dict) else enumerate(value)


def _object_problem(value: Any, shape: Any, name: str) -> str:
    if not isinstance(value, dict):
        return _wrong(name, _WORDS[dict], value)
    hints, optional = _fields(shape)
    if is_dataclass(shape) and (unknown := [key for key in value if key not in hints]):
        return f"this freerun does not know {_inside(name, unknown[0])}; a later one may"
    if missing := [key for key in hints if key not in value and key not in optional]:
        return f"{_inside(name, missing[0])} is missing"
    problems = (_problem(value[key], hint, f"{name}.{key}") for key, hint in hints.items() if key in value)
    return next(filter(None, problems), "")


@cache  # a file has a line for each test item, and to evaluate a shape's annotations takes longer than to check one
def _fields(shape: Any) -> tuple[dict[str, Any], set[str]]:
    hints = get_type_hints(shape, include_extras=True)
    if is_dataclass(shape):
        return hints, {f.name for f in fields(shape) if f.default is not MISSING or f.default_factory is not MISSING}
    return hints, {key for key, hint in hints.items() if get_origin(hint) is NotRequired}


def _inside(name: str, key: Any) -> str:
    return f"{name}.{key}".removeprefix(".")


def _wrong(name: str, right: str, value: Any) -> str:
    return f"{_cut(name.removeprefix('.') or 'it')} must be {right}; it is {_text(value)}"


def _text(value: Any) -> str:
    return _cut(_WORDS[type(value)] if isinstance(value, dict | list) else repr(value))


def _cut(text: str) -> str:
    return text if len(text) <= 80 else f"{text[:80]}..."


class _File(TypedDict):
    bytes: Count
    sha256: str


class _Manifest(TypedDict):
    files: dict[str, _File]
    name: NotRequired[str]


def is_file(path: Path) -> bool:
    """Return True for a file that is no link."""
    return path.is_file() and not path.is_symlink()


def is_folder(path: Path) -> bool:
    """Return True for a folder that is no link."""
    return path.is_dir() and not path.is_symlink()


def write_folder(target: Path, files: Mapping[str, bytes]) -> None:
    """Write a folder of files so that a crash at any moment leaves the old state or the new one."""
    temporary, aside = _beside(target), _beside(target, _ASIDE)
    try:
        target.parent.mkdir(exist_ok=True)
        _refuse_others((target, temporary, aside), is_folder, "folder")
        _settle(target)
        temporary.mkdir()
        entries = {
            name: {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
            for name, content in files.items()
        }
        manifest = {"format_version": FORMAT_VERSION, "name": target.name, "files": entries}
        for name, content in {**files, MANIFEST: json.dumps(manifest, indent=1).encode()}.items():
            write_durably(temporary / name, content)
        sync_folder(temporary)
        if target.exists():
            target.rename(aside)
        temporary.rename(target)
        sync_folder(target.parent)
        _settle(target)
    except OSError as error:
        with suppress(OSError):
            _settle(target)
        raise explained(error, target, sum(map(len, files.values()))) from error


def replace_file(path: Path, content: bytes) -> None:
    """Write one file durably: the old content or the new one, never half."""
    temporary = _beside(path)
    _refuse_others((path, temporary), is_file, "file")
    try:
        temporary.unlink(missing_ok=True)
        write_durably(temporary, content)
        temporary.replace(path)
        sync_folder(path.parent)
    except OSError as error:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise explained(error, path, len(content)) from error


def _beside(target: Path, suffix: str = "") -> Path:
    return target.with_name(f"{_TEMPORARY}{target.name}{suffix}")


def _refuse_others(paths: Iterable[Path], fits: Callable[[Path], bool], kind: str) -> None:
    for path in paths:
        if not fits(path) and (path.is_symlink() or path.exists()):
            raise OccupiedError(f"{path} is not a {kind} that a run wrote: move it away")


def _settle(target: Path) -> None:
    """Remove what is half written of a folder, and move back what was moved aside for it."""
    shutil.rmtree(_beside(target), ignore_errors=True)
    aside = _beside(target, _ASIDE)
    if not is_folder(aside):
        return
    if not target.exists():
        aside.rename(target)
        return
    ours = _written(aside)
    for entry in aside.iterdir():
        if not (target / entry.name).exists() and entry.name not in ours:
            entry.rename(target / entry.name)
    shutil.rmtree(aside, ignore_errors=True)


def _written(folder: Path) -> set[str]:
    """Return the files of a folder that fit its manifest."""
    try:
        stored = Stored(folder)
    except CheckpointError:
        return {MANIFEST}
    names = {MANIFEST}
    for name in stored.files:
        with suppress(CheckpointError):
            stored.check(name)
            names.add(name)
    return names


def remove_folder(folder: Path, known: Collection[str]) -> None:
    """Remove what we wrote of a folder, and the folder if nothing else is in it."""
    remove_files(folder / name for name in {*known, *_written(folder)})
    with suppress(OSError):  # not empty
        folder.rmdir()


def remove_files(paths: Iterable[Path]) -> None:
    """Remove plain files; links and folders stay."""
    for path in filter(is_file, paths):
        path.unlink()


def write_durably(path: Path, content: bytes) -> None:
    """Write a new file; it is on the disk when this returns."""
    with path.open("xb") as file:  # a link that is there is not followed
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Make a folder's entries durable."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def explained(error: OSError, path: Path, needed: int) -> UserError:
    """Return an error of ours that explains why something could not be written."""
    folder = next(each for each in (path.parent, *path.parent.parents) if each.exists())
    if error.errno in FULL:
        return ResourceError(
            f"{path}: no space left on the disk: {needed:,} bytes are needed, {shutil.disk_usage(folder).free:,} are "
            "free. What was saved before is untouched: make room and go on with --resume"
        )
    if isinstance(error, FileNotFoundError | NotADirectoryError):
        return CheckpointError(f"{path}: its folder is gone; it was removed or moved while the run was going on")
    return UserError(f"{path} cannot be written: {error.strerror or error}")


def clean(folder: Path, ours: Callable[[str], bool]) -> None:
    """Remove what a killed writer left half written in a folder."""
    for left in list(folder.iterdir()) if is_folder(folder) else []:
        if left.is_symlink() or not leftover(left.name, ours):
            continue
        if left.is_dir():
            _settle(folder / left.name.removeprefix(_TEMPORARY).removesuffix(_ASIDE))
        else:
            left.unlink(missing_ok=True)


def leftover(name: str, ours: Callable[[str], bool]) -> bool:
    """Return True for a name that a killed writer leaves.

    >>> leftover(".writing-step-00000001", lambda name: name == "step-00000001"), leftover(".writing-mine", str.isdigit)
    (True, False)
    """
    written = name.removeprefix(_TEMPORARY).removesuffix(_ASIDE)
    return bool(_PROBE.fullmatch(name)) or (name.startswith(_TEMPORARY) and ours(written))


class Stored:
    """A folder that ``write_folder`` wrote; its files are read one by one, each checked against the manifest."""

    def __init__(self, folder: Path) -> None:
        self.path = folder
        if folder.is_symlink():
            raise CheckpointError(f"{folder} is a link, which is not followed: put the folder itself there")
        where = folder / MANIFEST
        versioned(read_json(where, dict[str, Any]), "format_version", FORMAT_VERSION, str(where))
        manifest = read_json(where, _Manifest)
        self.files = manifest["files"]
        for name in self.files:
            if not _NAME.fullmatch(name) or (folder / name).is_symlink():
                raise CheckpointError(f"{folder / name}: not a plain file of this folder")
        if manifest.get("name", folder.name) != folder.name:
            raise CheckpointError(f"{folder} holds what was written as {manifest.get('name')}")

    def size(self, name: str) -> int:
        """Return the bytes of a file, which are those that were written."""
        path = self.path / name
        if name not in self.files:
            raise CheckpointError(f"{path} is missing")
        require_plain(path)
        size, written = path.stat().st_size, self.files[name]["bytes"]
        if size != written:
            raise CheckpointError(f"{path} has {size:,} bytes; {written:,} were written")
        return size

    def check(self, name: str) -> None:
        """Compare a file's checksum, holding little of it at a time."""
        self.size(name)
        with opened(self.path / name) as file:
            self._compare(name, hashlib.file_digest(file, "sha256"))

    def read(self, name: str) -> bytes:
        """Return the content of a file."""
        self.size(name)
        with opened(self.path / name) as file:
            content = file.read()
        self._compare(name, hashlib.sha256(content))
        return content

    def _compare(self, name: str, checksum: Any) -> None:
        if checksum.hexdigest() != self.files[name]["sha256"]:
            raise CheckpointError(f"{self.path / name} is damaged: its checksum is not the one that was written")
