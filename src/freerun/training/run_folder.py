"""A run's folder: whose it is, what of it is ours, and whether it may be used."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import re
import socket
import time
from pathlib import Path
from typing import Any, Literal, NotRequired, Self, TypedDict

from freerun.errors import CheckpointError, OccupiedError, UserError
from freerun.training.files import FULL, MANIFEST, clean, explained
from freerun.training.json_shapes import Count, NewerError, expect, parse, read_json, read_lines, versioned
from freerun.training.log import Event

RUN_FILES = (
    "recipe.toml", "metrics.jsonl", "summary.json", "test-items.jsonl", "test-curves.json", "test-forecasts.json",
    "diagnosis.json", "diagnosis.html", "diagnosis.html.part", "lock",
)  # fmt: skip

RUN_FOLDERS = ("checkpoints", "model", "tensorboard")
_CHECKPOINT = re.compile(r"(step|best)-\d{8}")


class _Holder(TypedDict):
    pid: Count
    host: str
    time: str


class _Test(TypedDict):
    teacher_forced: dict[str, float | None]
    free_running: dict[str, float | None]


class _Best(TypedDict):
    step: NotRequired[Count | None]
    select: NotRequired[str]
    value: NotRequired[float | None]


class _Summary(TypedDict):
    finished: Literal[True]
    method: str
    seed: Count
    updates: Count
    test: _Test
    best: _Best
    signature: NotRequired[str]
    data: NotRequired[str]
    versions: NotRequired[dict[str, str]]
    parameters: NotRequired[Count]
    seconds: NotRequired[float]
    cpu_seconds: NotRequired[float]
    decoder_passes: NotRequired[float]


STEP_FILES = ("model.safetensors", "optimizer.safetensors", "ema.safetensors", "state.json", MANIFEST)
"""What a checkpoint holds."""


def in_run(name: str) -> bool:
    """Whether a run writes something of that name into its folder."""
    return name in RUN_FILES or name in RUN_FOLDERS


def in_checkpoints(name: str) -> bool:
    """Whether a run writes something of that name into checkpoints/.

    >>> in_checkpoints("step-00000100"), in_checkpoints("step-00000100-keep"), in_checkpoints("best-of-mine")
    (True, False, False)
    """
    return _CHECKPOINT.fullmatch(name) is not None


def checkpoints(folder: Path, kind: str = "step") -> list[Path]:
    """A run's own checkpoints, the earliest first; links and what others put there are none."""
    root = folder / "checkpoints"
    if root.is_symlink() or not root.is_dir():
        return []
    found = [path for path in root.iterdir() if in_checkpoints(path.name) and path.name.startswith(kind)]
    return sorted(path for path in found if path.is_dir() and not path.is_symlink())


def saved_something(folder: Path) -> bool:
    """Whether a checkpoint holds a file of ours: one with nothing but what others put there is none."""
    return any(
        (path / name).exists() for kind in ("step", "best") for path in checkpoints(folder, kind) for name in STEP_FILES
    )


def clean_run(folder: Path) -> None:
    """Remove what a killed process left half written in a run's folder."""
    clean(folder, in_run)
    clean(folder / "checkpoints", in_checkpoints)


class FolderLock:
    """Keeps a second process out of a run's folder while it is entered.

    The operating system holds the lock and lets go when its process dies, however it dies; the file ``lock`` says
    who holds it (process, host, time). ``note`` is set where the last holder died without letting go.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / "lock"
        self.note: str | None = None
        self._handle = -1

    def __enter__(self) -> Self:
        while True:
            handle = self._opened()
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if self._is_current(handle):
                    left = _holder(handle, self.path)
                    break
            except BlockingIOError:
                holder = _holder(handle, self.path)
                os.close(handle)
                raise OccupiedError(
                    f"{self.path.parent}: {holder or 'another process'} is training in this folder; wait for it, "
                    "or give another folder"
                ) from None
            except OSError as error:
                os.close(handle)
                raise UserError(f"{self.path} cannot be locked: {error.strerror}; give a folder on this disk") from None
            except OccupiedError:
                os.close(handle)
                raise
            os.close(handle)
        self._handle = handle
        if left:
            self.note = f"{self.path.parent}: {left} ended without letting go of this folder; taking it over"
        self._sign()
        return self

    def _sign(self) -> None:
        holder = {"pid": os.getpid(), "host": socket.gethostname(), "time": time.strftime("%Y-%m-%d %H:%M:%S")}
        content = json.dumps(holder).encode()
        try:
            os.ftruncate(self._handle, 0)
            os.pwrite(self._handle, content, 0)
        except OSError as error:
            self.__exit__()
            raise explained(error, self.path, len(content)) from error

    def _opened(self) -> int:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            return os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
        except OSError as error:
            if error.errno in (errno.ELOOP, errno.EISDIR):
                raise OccupiedError(f"{self.path} is no file that a run wrote: move it away") from None
            if error.errno in FULL:
                raise explained(error, self.path, 0) from error
            reason = error.strerror or error
            raise UserError(f"{self.path.parent} cannot be written: {reason}\n  help: give another --out") from None

    def _is_current(self, handle: int) -> bool:
        # the holder before us may have removed the file between our open and our lock
        try:
            return os.fstat(handle).st_ino == self.path.stat().st_ino
        except FileNotFoundError:
            return False

    def __exit__(self, *_: object) -> None:
        # where the folder was removed meanwhile, the file may be another run's
        if self._is_current(self._handle):
            self.path.unlink(missing_ok=True)
        os.close(self._handle)


def _holder(handle: int, path: Path) -> str | None:
    """Who wrote a lock, None where it is empty, as a process that was killed or a power loss leaves it."""
    content = os.pread(handle, 4096, 0).strip(b"\0")
    if not content:
        return None
    try:
        found = parse(content, _Holder, str(path))
    except CheckpointError:
        if content.startswith(b'{"pid"'):  # half of one: the disk was full
            return None
        raise OccupiedError(f"{path} is no file that a run wrote: move it away") from None
    return f"process {found['pid']} on {found['host']} (since {found['time']})"


def finished_summary(folder: Path) -> dict[str, Any] | None:
    """The summary of a finished run, None where the folder holds none."""
    path = folder / "summary.json"
    if not path.exists() and not path.is_symlink():
        return None
    try:
        found = read_json(path, dict[str, Any])
        if "schema" in found:
            versioned(found, "schema", 1, str(path))
        expect(found, _Summary, str(path))
    except NewerError:
        raise
    except CheckpointError as error:
        raise CheckpointError(f"{error}\n  help: remove it; --resume makes it anew from the checkpoints") from None
    return found


def stage(folder: Path) -> Literal["new", "prepared", "begun", "finished"]:
    """How far a folder's run is: nothing of one, a recipe but nothing trained, something trained, or its summary."""
    if (folder / "summary.json").exists():
        return "finished"
    metrics = folder / "metrics.jsonl"
    if (metrics.exists() and metrics.stat().st_size) or saved_something(folder):
        return "begun"
    return "prepared" if (folder / "recipe.toml").exists() or metrics.exists() else "new"


def refuse_used(folder: Path) -> None:
    """Refuse a folder that a run has been using."""
    found = stage(folder)
    if found == "finished":
        raise OccupiedError(f"{folder} holds a finished run: give another folder, or --resume to read its summary")
    if found == "begun":
        raise OccupiedError(f"{folder} holds a run that was started: go on with --resume, or give another folder")


def refuse_foreign(folder: Path) -> None:
    """Refuse links in place of what a run writes: what they lead to is not this run's."""
    links = [folder / name for name in (*RUN_FILES, *RUN_FOLDERS) if (folder / name).is_symlink()]
    if links:
        raise CheckpointError(
            [f"{path} is a link, which is not followed: put what it leads to there" for path in links]
        )


def refuse_lost(folder: Path) -> None:
    """Refuse to begin anew where a run has made updates and its checkpoints are gone."""
    metrics = folder / "metrics.jsonl"
    made = 0
    if metrics.exists():
        made = sum(event["event"] == "update" for event in read_lines(metrics, Event))
    if made or ((folder / "model").exists() and not metrics.exists()):
        count = f"{made:,} updates were made ({metrics})" if made else f"there is a model ({folder / 'model'})"
        raise CheckpointError(
            f"{folder / 'checkpoints'} holds no checkpoint, and {count}: there is nothing to go on from\n  help: put "
            "the folder back, or begin anew with --overwrite or in another folder"
        )
