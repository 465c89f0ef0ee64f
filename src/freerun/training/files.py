"""Folders that are there wholly or not at all, with the checksum of every file."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from freerun.errors import CheckpointError, ResourceError

__all__ = ["FORMAT_VERSION", "clean", "read_folder", "replace_file", "sync_folder", "write_folder"]

FORMAT_VERSION = 1
_MANIFEST = "manifest.json"
_LARGEST_JSON = 16 * 2**20
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_TEMPORARY = ".writing-"


def write_folder(target: Path, files: Mapping[str, bytes]) -> None:
    """Write a folder of files so that a crash at any moment leaves the old state or the new one.

    Order: files into a temporary folder beside the target, each fsynced; ``manifest.json`` with sizes and SHA-256;
    fsync of the folder; rename; fsync of the parent.

    Raises:
        ResourceError: the disk is full (names the path, the bytes needed and those free).
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.parent / f"{_TEMPORARY}{target.name}"
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        temporary.mkdir()
        for name, content in files.items():
            _write(temporary / name, content)
        _write(temporary / _MANIFEST, _manifest(files))
        sync_folder(temporary)
        if target.exists():
            aside = target.parent / f"{_TEMPORARY}{target.name}.old"
            shutil.rmtree(aside, ignore_errors=True)
            target.rename(aside)
        temporary.rename(target)
        sync_folder(target.parent)
    except OSError as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise _explained(error, target, sum(map(len, files.values()))) from error
    clean(target.parent)


def _manifest(files: Mapping[str, bytes]) -> bytes:
    entries = {
        name: {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()} for name, content in files.items()
    }
    return json.dumps({"format_version": FORMAT_VERSION, "files": entries}, indent=1).encode()


def _write(path: Path, content: bytes) -> None:
    with path.open("wb") as file:
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
    """Write one file durably: the old content or the new one, never half.

    Raises:
        ResourceError: the disk is full.
    """
    temporary = path.with_name(f"{_TEMPORARY}{path.name}")
    try:
        _write(temporary, content)
        temporary.replace(path)
        sync_folder(path.parent)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise _explained(error, path, len(content)) from error


def _explained(error: OSError, path: Path, needed: int) -> Exception:
    if error.errno not in (errno.ENOSPC, errno.EDQUOT):
        return error
    free = shutil.disk_usage(path.parent).free
    return ResourceError(
        f"{path}: no space left on the disk: {needed:,} bytes are needed, {free:,} are free. What was saved "
        "before is untouched: make room and go on with --resume"
    )


def clean(folder: Path) -> None:
    """Remove what a killed writer left half written in a folder."""
    for left in folder.glob(f"{_TEMPORARY}*"):
        if left.is_dir():
            shutil.rmtree(left, ignore_errors=True)
        else:
            left.unlink(missing_ok=True)


def read_folder(folder: Path) -> dict[str, bytes]:
    """The files of a folder written by ``write_folder``, each checked against the manifest.

    Raises:
        CheckpointError: something is missing, cut short, changed, or of a later format.
    """
    files: dict[str, bytes] = {}
    for name, entry in _read_manifest(folder).items():
        path = folder / name
        if not _NAME.fullmatch(name) or path.is_symlink():
            raise CheckpointError(f"{path}: not a plain file of this folder")
        if not path.is_file():
            raise CheckpointError(f"{path} is missing")
        size = path.stat().st_size
        if size != entry["bytes"]:
            raise CheckpointError(f"{path} has {size:,} bytes; {entry['bytes']:,} were written")
        content = path.read_bytes()
        if hashlib.sha256(content).hexdigest() != entry["sha256"]:
            raise CheckpointError(f"{path} is damaged: its checksum is not the one that was written")
        files[name] = content
    return files


def _read_manifest(folder: Path) -> dict[str, Any]:
    path = folder / _MANIFEST
    if not path.is_file():
        raise CheckpointError(f"{path} is missing")
    if path.stat().st_size > _LARGEST_JSON:
        raise CheckpointError(f"{path} has {path.stat().st_size:,} bytes: not a manifest")
    try:
        manifest: Any = json.loads(path.read_bytes())
        version, files = manifest["format_version"], manifest["files"]
        sound = all(isinstance(e["bytes"], int) and isinstance(e["sha256"], str) for e in files.values())
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{path} is damaged: {error}") from error
    if version != FORMAT_VERSION:
        raise CheckpointError(f"{path} has format version {version}; this freerun reads {FORMAT_VERSION}")
    if not sound:
        raise CheckpointError(f"{path} is damaged: a file's size or checksum is missing")
    return files
