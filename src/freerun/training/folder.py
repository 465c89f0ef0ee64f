"""A run's folder: whose it is, and whether it may be used."""

from __future__ import annotations

import fcntl
import json
import os
import socket
import time
from pathlib import Path
from typing import Any, Self

from freerun.errors import CheckpointError, OccupiedError

__all__ = ["FolderLock", "finished_summary", "refuse_used"]


class FolderLock:
    """Keeps a second process out of a run's folder while it is entered.

    The operating system holds the lock and lets go when its process dies, however it dies; the file ``lock`` says
    who holds it (process, host, time). ``note`` is set where the last holder died without letting go.

    Raises:
        OccupiedError: another process trains in this folder; it is named.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / "lock"
        self.note: str | None = None
        self._handle = -1

    def __enter__(self) -> Self:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        while True:
            handle = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o666)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                holder = _holder(handle)
                os.close(handle)
                raise OccupiedError(
                    f"{self.path.parent}: {holder or 'another process'} is training in this folder; wait for it, "
                    "or give another folder"
                ) from None
            if self._is_current(handle):
                break
            os.close(handle)
        self._handle = handle
        left = _holder(handle)
        if left:
            self.note = f"{self.path.parent}: {left} ended without letting go of this folder; taking it over"
        content = {"pid": os.getpid(), "host": socket.gethostname(), "time": time.strftime("%Y-%m-%d %H:%M:%S")}
        os.ftruncate(handle, 0)
        os.pwrite(handle, json.dumps(content).encode(), 0)
        return self

    def _is_current(self, handle: int) -> bool:
        # the holder before us may have removed the file between our open and our lock
        try:
            return os.fstat(handle).st_ino == self.path.stat().st_ino
        except FileNotFoundError:
            return False

    def __exit__(self, *_: object) -> None:
        self.path.unlink(missing_ok=True)
        os.close(self._handle)


def _holder(handle: int) -> str | None:
    try:
        content: Any = json.loads(os.pread(handle, 4096, 0))
        return f"process {content['pid']} on {content['host']} (since {content['time']})"
    except (ValueError, KeyError, TypeError):
        return None


def finished_summary(folder: Path) -> dict[str, Any] | None:
    """The summary of a finished run, None where the folder holds none.

    Raises:
        CheckpointError: there is one that cannot be read.
    """
    path = folder / "summary.json"
    if not path.exists():
        return None
    try:
        return json.loads(path.read_bytes())
    except ValueError as error:
        raise CheckpointError(f"{path} is damaged: {error}") from error


def refuse_used(folder: Path) -> None:
    """Refuse a folder that a run has been using.

    Raises:
        OccupiedError: it holds a finished or a started run.
    """
    if (folder / "summary.json").exists():
        raise OccupiedError(f"{folder} holds a finished run: give another folder, or --resume to read its summary")
    if (folder / "metrics.jsonl").exists() or (folder / "checkpoints").exists():
        raise OccupiedError(f"{folder} holds a run that was started: go on with --resume, or give another folder")
