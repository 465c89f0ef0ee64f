"""A run's folder: its lock, which files in it are a run's, whether it may be used, and how it is read and cleared."""

from __future__ import annotations

import errno
import fcntl
import itertools
import json
import os
import re
import socket
import time
import tomllib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal, NotRequired, Self, TypedDict

import tomli_w

from freerun.errors import CheckpointError, OccupiedError, UserError
from freerun.training import files
from freerun.training.files import MANIFEST, Count, expect, is_folder, leftover, opened, read_json, replace_file
from freerun.training.log import Event

RUN_FILES = (
    "recipe.toml", "metrics.jsonl", "summary.json", "test-items.jsonl", "test-curves.json", "test-forecasts.json",
    "train-fed.json", "diagnosis.json", "diagnosis.html", "diagnosis.html.part", "lock",
)  # fmt: skip
RUN_FOLDERS = ("checkpoints", "model", "tensorboard")
STEP_FILES = (
    "model.safetensors", "optimizer.safetensors", "ema.safetensors", "method.safetensors", "state.json", MANIFEST,
)  # fmt: skip
_MODEL_FILES = ("model.safetensors", "model.json", MANIFEST)
_CHECKPOINT = re.compile(r"(step|best)-\d{8}")
_EVENT_FILE = re.compile(r"events\.out\.tfevents\.\d+\..+")


class _Holder(TypedDict):
    pid: Count
    host: str
    time: str


class _Scores(TypedDict):
    teacher_forced: dict[str, float | None]
    free_running: dict[str, float | None]


class _Best(TypedDict):
    step: NotRequired[Count | None]
    select: NotRequired[str]
    value: NotRequired[float | None]


class _GoldUpdate(TypedDict):
    clock: Literal["cpu_seconds", "seconds"]
    seconds: float
    updates: Count


class _Summary(TypedDict):
    finished: Literal[True]
    method: str
    seed: Count
    updates: Count
    test: _Scores
    best: _Best
    signature: NotRequired[str]
    data: NotRequired[str]
    init: NotRequired[str]
    versions: NotRequired[dict[str, str]]
    parameters: NotRequired[Count]
    seconds: NotRequired[float]
    cpu_seconds: NotRequired[float]
    decoder_passes: NotRequired[float]
    gold_update: NotRequired[_GoldUpdate]


class _Item(TypedDict):
    source: str | list[Any]  # a conversation
    output: NotRequired[str]
    reference: NotRequired[str]
    references: NotRequired[list[str]]
    prompt: NotRequired[str]
    wrong: NotRequired[bool]
    right: NotRequired[bool]
    bleu: NotRequired[list[float]]
    errors: NotRequired[float | None]
    length: NotRequired[float | None]
    words: NotRequired[float | None]
    novel: NotRequired[float | None]
    nrmse: NotRequired[float | None]
    squared: NotRequired[float | None]
    absolute: NotRequired[float | None]
    one_step_nrmse: NotRequired[float | None]


class _Update(TypedDict):
    step: Count
    eligible: float
    replaced: float
    disagreeing: float
    teacher_forcing_ratio: NotRequired[float | None]


class _Evaluation(_Scores):
    step: Count
    split: str


_EVENTS: dict[str, Any] = {"update": _Update, "evaluate": _Evaluation}


def in_run(name: str) -> bool:
    """Return True if a run writes a file or folder of that name."""
    return name in RUN_FILES or name in RUN_FOLDERS


def in_checkpoints(name: str) -> bool:
    """Return True if a run writes a folder of that name into checkpoints/.

    >>> in_checkpoints("step-00000100"), in_checkpoints("step-00000100-keep"), in_checkpoints("best-of-mine")
    (True, False, False)
    """
    return _CHECKPOINT.fullmatch(name) is not None


def checkpoints(folder: Path, kind: str = "step") -> list[Path]:
    """Return a run's own checkpoints of a kind, ``step`` or ``best``, the earliest first; "": of both."""
    root = folder / "checkpoints"
    if not is_folder(root):
        return []
    ours = [path for path in root.iterdir() if in_checkpoints(path.name) and path.name.startswith(kind)]
    return sorted(filter(is_folder, ours))


def saved_something(folder: Path) -> bool:
    """Return True if a checkpoint holds a file of ours."""
    return any((path / name).exists() for path in checkpoints(folder, "") for name in STEP_FILES)


def clean_run(folder: Path) -> None:
    """Remove what a killed process left half written in a run's folder."""
    files.clean(folder, in_run)
    files.clean(folder / "checkpoints", in_checkpoints)


class FolderLock:
    """Keeps a second process out of a run's folder while it is entered."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "lock"
        self.note: str | None = None
        self._handle = -1

    def __enter__(self) -> Self:
        previous: str | None = None
        while self._handle < 0:
            handle = self._open()
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if self._is_current(handle):
                    previous = _holder(handle, self.path)
                    self._handle = handle
            except BlockingIOError:
                raise OccupiedError(
                    f"{self.path.parent}: {_holder(handle, self.path) or 'another process'} is training in this "
                    "folder; wait for it, or give another folder"
                ) from None
            except OSError as error:
                raise UserError(f"{self.path} cannot be locked: {error.strerror}; give a folder on this disk") from None
            finally:
                if self._handle < 0:
                    os.close(handle)
        if previous:
            self.note = f"{self.path.parent}: {previous} ended without letting go of this folder; taking it over"
        holder = {"pid": os.getpid(), "host": socket.gethostname(), "time": time.strftime("%Y-%m-%d %H:%M:%S")}
        content = json.dumps(holder).encode()
        try:
            os.ftruncate(self._handle, 0)
            os.pwrite(self._handle, content, 0)
        except OSError as error:
            self.__exit__()
            raise files.explained(error, self.path, len(content)) from error
        return self

    def __exit__(self, *_: object) -> None:
        # where the folder was removed meanwhile, the file may be another run's
        if self._is_current(self._handle):
            self.path.unlink(missing_ok=True)
        os.close(self._handle)

    def _open(self) -> int:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            return os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
        except OSError as error:
            if error.errno in (errno.ELOOP, errno.EISDIR):
                raise _not_a_lock(self.path) from None
            raise _unwritable(error, self.path, 0) from error

    def _is_current(self, handle: int) -> bool:
        # the holder before us may have removed the file between our open and our lock
        try:
            return os.fstat(handle).st_ino == self.path.stat().st_ino
        except FileNotFoundError:
            return False


def _holder(handle: int, path: Path) -> str | None:
    """Name who wrote a lock; None if it is empty, as a killed process or a power loss leaves it."""
    content = os.pread(handle, 4096, 0).strip(b"\0")
    try:
        holder = files.parse(content, _Holder, str(path)) if content else None
    except CheckpointError:
        if not content.startswith(b'{"pid"'):
            raise _not_a_lock(path) from None
        holder = None  # half of one: the disk was full
    return holder and f"process {holder['pid']} on {holder['host']} (since {holder['time']})"


def _not_a_lock(path: Path) -> OccupiedError:
    return OccupiedError(f"{path} is no file that a run wrote: move it away")


def _unwritable(error: OSError, path: Path, needed: int) -> UserError:
    if error.errno in files.FULL:
        return files.explained(error, path, needed)
    return UserError(f"{path.parent} cannot be written: {error.strerror or error}\n  help: give another --out")


def probe(folder: Path) -> None:
    """Make the folder and try to write in it, before any time is spent."""
    trial, renamed, content = folder / f".probe-{os.getpid()}", folder / f".probed-{os.getpid()}", b"freerun"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        files.write_durably(trial, content)
        trial.replace(renamed)
        renamed.unlink()
    except OSError as error:
        with suppress(OSError):
            trial.unlink()
        raise _unwritable(error, folder / "recipe.toml", len(content)) from None


def finished_summary(folder: Path) -> dict[str, Any] | None:
    """Return the summary of a finished run, None if the folder holds none; raise if it cannot be read."""
    path = folder / "summary.json"
    if not path.exists() and not path.is_symlink():
        return None
    try:
        summary = read_json(path, dict[str, Any])
        if "schema" in summary:
            files.versioned(summary, "schema", 1, str(path))
        expect(summary, _Summary, str(path))
    except files.NewerError:
        raise
    except CheckpointError as error:
        raise CheckpointError(f"{error}\n  help: remove it; --resume makes it anew from the checkpoints") from None
    return summary


def first_events(folder: Path, most: int = 64) -> Iterator[Mapping[str, Any]]:
    """The first lines of a run's metrics.jsonl, as far as they can be read."""
    path = folder / "metrics.jsonl"
    if not path.exists():
        return
    with path.open(encoding="utf-8", errors="replace") as file:
        for line in itertools.islice(file, most):
            try:
                yield json.loads(line)
            except ValueError:
                return


def items(folder: Path) -> list[dict[str, Any]]:
    """Return a finished run's test items, in order; raise if there are none or a line is damaged."""
    path = folder / "test-items.jsonl"
    listed = list(files.read_lines(path, dict[str, Any])) if path.exists() else []
    if not listed:
        raise CheckpointError(
            f"{path} is {'empty' if path.exists() else 'missing'}: without it there are no intervals over test items\n"
            f"  help: remove {folder / 'summary.json'}; --resume tests the run's best weights again"
        )
    for number, item in enumerate(listed, start=1):
        expect(item, _Item, f"{path}:{number}")
    return listed


def events(folder: Path) -> list[dict[str, Any]]:
    """Return all events of a run, in order, without a last line that is being written; [] before it wrote any."""
    path = folder / "metrics.jsonl"
    listed = list(files.read_lines(path, dict[str, Any])) if path.exists() else []
    for number, event in enumerate(listed, start=1):
        expect(event, Event, f"{path}:{number}")
        expect(event, _EVENTS.get(event["event"], Event), f"{path}:{number}")
    return listed


def stage(folder: Path) -> Literal["new", "prepared", "begun", "finished"]:
    """Say how far a folder's run is: nothing of one, only a recipe, something trained, or its summary."""
    if (folder / "summary.json").exists():
        return "finished"
    metrics = folder / "metrics.jsonl"
    if (metrics.exists() and metrics.stat().st_size) or saved_something(folder):
        return "begun"
    return "prepared" if (folder / "recipe.toml").exists() or metrics.exists() else "new"


def refuse_used(folder: Path, *, replaceable: bool = False) -> None:
    """Refuse a folder that holds a finished or a started run."""
    match stage(folder):
        case "finished":
            what, help = "a finished run", "--overwrite replaces it" if replaceable else "--resume reads its summary"
        case "begun":
            replaces = ", --overwrite replaces it" if replaceable else ""
            what, help = "a run that was started and not finished", f"--resume goes on with it{replaces}"
        case _:
            return
    raise OccupiedError(f"{folder} holds {what}\n  help: {help}; or give another --out")


def refuse_links(paths: Iterable[Path]) -> None:
    """Refuse links in place of what we write: what they lead to is not ours."""
    if links := [path for path in paths if path.is_symlink()]:
        raise CheckpointError(
            [f"{path} is a link, which is not followed: put what it leads to there" for path in links]
        )


def refuse_foreign(folder: Path) -> None:
    """Refuse links in place of what a run writes."""
    refuse_links(folder / name for name in (*RUN_FILES, *RUN_FOLDERS))


def refuse_lost(folder: Path) -> None:
    """Refuse to begin anew where a run has made updates and its checkpoints are gone."""
    metrics = folder / "metrics.jsonl"
    updates = 0
    if metrics.exists():
        updates = sum(event["event"] == "update" for event in files.read_lines(metrics, Event))
    if updates or ((folder / "model").exists() and not metrics.exists()):
        count = f"{updates:,} updates were made ({metrics})" if updates else f"there is a model ({folder / 'model'})"
        raise CheckpointError(
            f"{folder / 'checkpoints'} holds no checkpoint, and {count}: there is nothing to go on from\n  help: put "
            "the folder back, or begin anew with --overwrite or in another folder"
        )


def names_in(folder: Path, ours: Callable[[str], bool], *, resume: bool, overwrite: bool) -> list[str]:
    """Return the names in an output folder, the lock and leftovers of ours apart; refuse what is no folder."""
    if resume and overwrite:
        raise UserError("--resume goes on with what is there, --overwrite removes it: give one of them")
    if folder.is_symlink() and not folder.exists():
        raise OccupiedError(f"{folder} is a link that leads nowhere")
    if folder.exists() and not folder.is_dir():
        raise OccupiedError(f"{folder} is a file; --out is a folder")
    names = sorted(entry.name for entry in folder.iterdir()) if folder.exists() else []
    return [name for name in names if name != "lock" and not leftover(name, ours)]


def refuse_unknown(folder: Path, names: Sequence[str], maker: str) -> None:
    """Refuse a folder that holds something, none of it made by ``maker``."""
    if names:
        raise OccupiedError(
            f"{folder} is not empty and no {maker} what it holds ({_first(names)})\n  help: give another --out"
        )


def _first(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")


def check_folder(folder: Path, *, resume: bool, overwrite: bool, table: Mapping[str, Any] | None = None) -> None:
    """Refuse a folder that a new run must not touch; nothing is changed."""
    names = names_in(folder, in_run, resume=resume, overwrite=overwrite)
    refuse_foreign(folder)
    match stage(folder):
        case "begun" | "finished":
            if not resume and not overwrite:
                refuse_used(folder, replaceable=True)
            if overwrite:
                _refuse_unsigned(folder)
        case "prepared":
            _refuse_foreign_recipe(folder / "recipe.toml", None if resume or overwrite else table)
        case "new":
            root = folder / "checkpoints"
            empty = root.is_dir() and not any(root.iterdir())
            refuse_unknown(folder, [name for name in names if not (empty and name == root.name)], "run wrote")


def _refuse_unsigned(folder: Path) -> None:
    """Refuse to remove what only has the names of a run's files, or lies between its checkpoints."""
    move = "\n  help: move it away, or give another --out"
    signs = (folder / "recipe.toml", folder / "model" / MANIFEST)
    if not any(path.exists() for path in signs) and not saved_something(folder) and not _has_events(folder):
        names = ", ".join(sorted(entry.name for entry in folder.iterdir() if entry.name in RUN_FILES))
        raise OccupiedError(f"{folder} holds {names}, and no run wrote it{move}")
    root = folder / "checkpoints"
    ours = checkpoints(folder, "")
    entries = [entry for entry in (root.iterdir() if root.is_dir() else ()) if entry not in ours]
    if foreign := sorted(entry.name for entry in entries if not leftover(entry.name, in_checkpoints)):
        raise OccupiedError(f"{root} holds what no run wrote ({_first(foreign)}){move}")


def _has_events(folder: Path) -> bool:
    metrics = folder / "metrics.jsonl"
    if not metrics.is_file():
        return False
    with metrics.open("rb") as file:
        return b'"event"' in file.readline(1 << 16)


def _refuse_foreign_recipe(path: Path, table: Mapping[str, Any] | None) -> None:
    """Refuse a recipe.toml beside which nothing was trained, if a person wrote it or it is of another run."""
    try:
        written = read_recipe_file(path)
    except CheckpointError:
        written = {}
    if written is None:
        return
    content = path.read_bytes()
    if content != _recipe_bytes(written):
        raise OccupiedError(f"{path} is there, and no run wrote it\n  help: move it away, or give another --out")
    if table is not None and content != _recipe_bytes(table):
        advice = "--overwrite replaces it; or give another --out"
        raise OccupiedError(f"{path} is another recipe, of a run that has not begun\n  help: {advice}")


def read_recipe_file(path: Path) -> dict[str, Any] | None:
    """Return a resolved recipe that was written, None if there is none; raise if it cannot be read."""
    if not path.exists() and not path.is_symlink():
        return None
    with opened(path) as file:
        content = file.read(files.LARGEST + 1)
    try:
        if len(content) > files.LARGEST:
            raise ValueError(f"more than {files.LARGEST:,} bytes")
        return tomllib.loads(content.decode())
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is damaged: {error}") from None


def write_recipe(path: Path, table: Mapping[str, Any]) -> None:
    """Write a resolved recipe, unless it is there."""
    content = _recipe_bytes(table)
    if not path.is_file() or path.read_bytes() != content:
        replace_file(path, content)


def _recipe_bytes(table: Mapping[str, Any]) -> bytes:
    return tomli_w.dumps(table).encode()


def clear_run(folder: Path) -> None:
    """Remove what a run writes, and nothing else; the recipe last, so that what is left is still known as a run's."""
    clean_run(folder)
    files.remove_files(folder / name for name in RUN_FILES if name not in ("lock", "recipe.toml"))
    for path in reversed(checkpoints(folder, "")):
        files.remove_folder(path, STEP_FILES)
    if is_folder(folder / "model"):
        files.remove_folder(folder / "model", _MODEL_FILES)
    if is_folder(folder / "tensorboard"):
        files.remove_files(
            path for path in list((folder / "tensorboard").iterdir()) if _EVENT_FILE.fullmatch(path.name)
        )
    remove_empty(folder / name for name in ("checkpoints", "tensorboard"))
    files.remove_files([folder / "recipe.toml"])


def remove_empty(folders: Iterable[Path]) -> None:
    """Remove folders that hold nothing; links stay."""
    for folder in filter(is_folder, folders):
        if not any(folder.iterdir()):
            folder.rmdir()


def near_runs(folder: Path) -> list[Path]:
    """Return run folders inside, beside or around a folder that is none."""
    around = [folder, folder / "runs", folder.parent, folder.parent / "runs"]
    models = [path for each in around if each.is_dir() for path in sorted(each.glob("*/model/model.json"))]
    if (folder.parent / "model" / "model.json").exists():
        models.append(folder.parent / "model" / "model.json")
    return list(dict.fromkeys(path.parent.parent for path in models))[:5]
