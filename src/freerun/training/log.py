"""What a run writes down while it goes: metrics.jsonl, and TensorBoard where asked for."""

from __future__ import annotations

import json
import math
import os
import sys
import time
import warnings
from contextlib import suppress
from pathlib import Path
from typing import Any, NotRequired, Protocol, TypedDict

from freerun.errors import CheckpointError, needing
from freerun.training.files import explained
from freerun.training.json_shapes import Count

_EVERY = 10.0


class Progress(Protocol):
    """Shows updates and says things in between."""

    def update(self, done: int, record: dict[str, Any]) -> None: ...
    def note(self, text: str) -> None: ...
    def close(self) -> None: ...


def _facts(record: dict[str, Any], lr: bool = True) -> str:
    text = f"loss {record['loss']:.4f}" + (f"  lr {record['lr']:.2e}" if lr else "")
    ratio = record.get("teacher_forcing_ratio")
    return text if ratio is None else f"{text}  teacher_forcing_ratio {ratio:.3f}"


class _Silent:
    def update(self, done: int, record: dict[str, Any]) -> None:
        pass

    def note(self, text: str) -> None:
        pass

    def close(self) -> None:
        pass


class _Lines:
    def __init__(self, total: int, done: int) -> None:
        self.total = total
        self._began = self._last = time.monotonic()
        self._start = done

    def update(self, done: int, record: dict[str, Any]) -> None:
        now = time.monotonic()
        if now - self._last < _EVERY and done < self.total:
            return
        self._last = now
        speed = (done - self._start) / max(now - self._began, 1e-9)
        left = (self.total - done) / max(speed, 1e-9)
        self.note(f"update {done}/{self.total}  {_facts(record)}  {speed:.1f} updates/s  {left:.0f} s left")

    def note(self, text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    def close(self) -> None:
        pass


class _Bar:
    def __init__(self, total: int, done: int) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
        from rich.progress import Progress as RichProgress
        from rich.table import Column

        console = Console(stderr=True)
        # what a narrow terminal has no room for goes from the right: count and times stay, of the facts the rate goes
        self._wide = console.width >= 100
        self._bar = RichProgress(
            *([TextColumn("training"), BarColumn()] if self._wide else [BarColumn(8)]),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[facts]}", table_column=Column(no_wrap=True, ratio=1)),
            console=console,
            expand=True,
        )
        self._task = self._bar.add_task("training", total=total, completed=done, facts="")
        self._bar.start()

    def update(self, done: int, record: dict[str, Any]) -> None:
        self._bar.update(self._task, completed=done, facts=_facts(record, lr=self._wide))

    def note(self, text: str) -> None:
        self._bar.console.print(text, markup=False, highlight=False)

    def close(self) -> None:
        self._bar.stop()


def progress_for(total: int, done: int, wanted: bool) -> Progress:
    """The display that fits where standard error goes."""
    if not wanted:
        return _Silent()
    return _Bar(total, done) if sys.stderr.isatty() else _Lines(total, done)


def jsonable(value: Any) -> Any:
    """The value with NaN and infinities as None, which JSON has no word for.

    >>> jsonable({"loss": float("nan"), "per": [1.0]})
    {'loss': None, 'per': [1.0]}
    """
    if isinstance(value, dict):
        return {str(name): jsonable(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [jsonable(part) for part in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


class Event(TypedDict):
    """A line of metrics.jsonl, whatever it tells of."""

    event: str
    step: NotRequired[Count]
    split: NotRequired[str]
    teacher_forced: NotRequired[dict[str, float | None]]
    free_running: NotRequired[dict[str, float | None]]


class Metrics:
    """A file of one JSON object a line, each written at once and whole."""

    def __init__(self, path: Path, size: int = 0) -> None:
        present = path.stat().st_size if path.exists() else 0
        if present < size:
            raise CheckpointError(f"{path} has {present:,} bytes; {size:,} were written before the checkpoint")
        self.path = path
        try:
            self._file = path.open("ab", buffering=0)
            self._file.truncate(size)
        except OSError as error:
            raise explained(error, path, 0) from error

    def write(self, record: dict[str, Any]) -> None:
        """Append a line.

        Raises:
            ResourceError: the disk is full; nothing of the line is in the file.
            CheckpointError: the file was removed or moved.
        """
        self.check()
        line = (json.dumps(jsonable(record), ensure_ascii=False) + "\n").encode()
        size = os.fstat(self._file.fileno()).st_size
        done = 0
        try:
            while done < len(line):
                done += self._file.write(line[done:])
        except OSError as error:
            with suppress(OSError):
                self._file.truncate(size)
            raise explained(error, self.path, len(line)) from error

    def check(self) -> None:
        """Refuse to go on where the file is not in its folder any more."""
        try:
            there = os.path.samestat(os.fstat(self._file.fileno()), self.path.lstat())
        except OSError:
            there = False
        if not there:
            raise CheckpointError(
                f"{self.path} is gone: it was removed or moved while the run was going on; nothing further is written"
            )

    def sync(self) -> int:
        """Make what was written durable; its size in bytes."""
        self.check()
        try:
            os.fsync(self._file.fileno())
        except OSError as error:
            raise explained(error, self.path, 0) from error
        return os.fstat(self._file.fileno()).st_size

    def close(self) -> None:
        """Close the file."""
        self._file.close()


class Unwritten:
    """The metrics of a process that is not the first: nobody reads them, and one file is enough."""

    def write(self, record: dict[str, Any]) -> None:
        """Nothing."""

    def check(self) -> None:
        """Nothing."""

    def sync(self) -> int:
        """0."""
        return 0

    def close(self) -> None:
        """Nothing."""


def board_class() -> Any:
    """What writes TensorBoard files."""
    with needing("tensorboard", "train.tensorboard = true"):
        from torch.utils.tensorboard.writer import SummaryWriter
    return SummaryWriter


class Board:
    """TensorBoard curves beside the metrics; training never stops for them."""

    def __init__(self, folder: Path, start: int) -> None:
        self._writer: Any = board_class()(str(folder / "tensorboard"), purge_step=start)

    def write(self, record: dict[str, Any], step: int, prefix: str = "train") -> None:
        """Add every number of a record to its curve."""
        if self._writer is None:
            return
        try:
            for name, value in record.items():
                if isinstance(value, int | float) and name != "step":
                    self._writer.add_scalar(f"{prefix}/{name}", value, step)
        except OSError as error:
            self._writer = None
            warnings.warn(f"TensorBoard files are no longer written: {error}", stacklevel=2)

    def close(self) -> None:
        """Write what is left."""
        if self._writer is not None:
            with suppress(OSError):
                self._writer.close()
