"""Folders that are there wholly or not at all, with the checksum of every file."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NotRequired, TypedDict

from freerun.errors import CheckpointError, OccupiedError, ResourceError, UserError
from freerun.training.json_shapes import Count, opened, read_json, require_plain, versioned

FORMAT_VERSION = 1
FULL = (errno.ENOSPC, errno.EDQUOT)
"""What the system says of a full disk."""

MANIFEST = "manifest.json"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_TEMPORARY, _ASIDE = ".writing-", ".old"
_PROBE = re.compile(r"\.probed?-\d+")


class _File(TypedDict):
    bytes: Count
    sha256: str


class _Manifest(TypedDict):
    files: dict[str, _File]
    name: NotRequired[str]


def is_file(path: Path) -> bool:
    """Return True for a file that is no link to one."""
    return path.is_file() and not path.is_symlink()


def is_folder(path: Path) -> bool:
    """Return True for a folder that is no link to one."""
    return path.is_dir() and not path.is_symlink()


def write_folder(target: Path, files: Mapping[str, bytes]) -> None:
    """Write a folder of files so that a crash at any moment leaves the old state or the new one."""
    temporary = _temporary(target)
    try:
        target.parent.mkdir(exist_ok=True)
        for path in (target, temporary, _aside(target)):
            if not is_folder(path) and (path.is_symlink() or path.exists()):
                raise OccupiedError(f"{path} is not a folder that a run wrote: move it away")
        _settle(target)
        temporary.mkdir()
        for name, content in files.items():
            _write(temporary / name, content)
        _write(temporary / MANIFEST, _manifest(target.name, files))
        sync_folder(temporary)
        if target.exists():
            target.rename(_aside(target))
        temporary.rename(target)
        sync_folder(target.parent)
        _settle(target)
    except OSError as error:
        with suppress(OSError):
            _settle(target)
        raise explained(error, target, sum(map(len, files.values()))) from error


def _temporary(target: Path) -> Path:
    return target.with_name(f"{_TEMPORARY}{target.name}")


def _aside(target: Path) -> Path:
    return target.with_name(f"{_TEMPORARY}{target.name}{_ASIDE}")


def _settle(target: Path) -> None:
    """Remove what is half written of a folder, and give back what was moved aside for it."""
    shutil.rmtree(_temporary(target), ignore_errors=True)
    aside = _aside(target)
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
    """Return the files of a folder that are as its manifest says."""
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
    for path in filter(is_file, [folder / name for name in {*known, *_written(folder)}]):
        path.unlink()
    with suppress(OSError):  # not empty
        folder.rmdir()


def _manifest(name: str, files: Mapping[str, bytes]) -> bytes:
    entries = {
        name: {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()} for name, content in files.items()
    }
    return json.dumps({"format_version": FORMAT_VERSION, "name": name, "files": entries}, indent=1).encode()


def _write(path: Path, content: bytes) -> None:
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


def replace_file(path: Path, content: bytes) -> None:
    """Write one file durably: the old content or the new one, never half."""
    temporary = _temporary(path)
    for each in (path, temporary):
        if not is_file(each) and (each.is_symlink() or each.exists()):
            raise OccupiedError(f"{each} is not a file that a run wrote: move it away")
    try:
        temporary.unlink(missing_ok=True)
        _write(temporary, content)
        temporary.replace(path)
        sync_folder(path.parent)
    except OSError as error:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise explained(error, path, len(content)) from error


def explained(error: OSError, path: Path, needed: int) -> UserError:
    """Why something could not be written, as an error of ours."""
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
    if not is_folder(folder):
        return
    for left in list(folder.iterdir()):
        name = left.name.removeprefix(_TEMPORARY).removesuffix(_ASIDE)
        if left.is_symlink() or not leftover(left.name, ours):
            continue
        if left.is_dir():
            _settle(folder / name)
        else:
            left.unlink(missing_ok=True)


def leftover(name: str, ours: Callable[[str], bool]) -> bool:
    """Return True if it is the name of what a killed writer leaves.

    >>> leftover(".writing-step-00000001", lambda name: name == "step-00000001"), leftover(".writing-mine", str.isdigit)
    (True, False)
    """
    if _PROBE.fullmatch(name):
        return True
    return name.startswith(_TEMPORARY) and ours(name.removeprefix(_TEMPORARY).removesuffix(_ASIDE))


class Stored:
    """A folder that ``write_folder`` wrote, as its manifest tells; the files are read one by one, each checked."""

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
            self._compare(name, hashlib.file_digest(file, "sha256").hexdigest())

    def read(self, name: str) -> bytes:
        """Return the content of a file."""
        self.size(name)
        with opened(self.path / name) as file:
            content = file.read()
        self._compare(name, hashlib.sha256(content).hexdigest())
        return content

    def _compare(self, name: str, found: str) -> None:
        if found != self.files[name]["sha256"]:
            raise CheckpointError(f"{self.path / name} is damaged: its checksum is not the one that was written")
