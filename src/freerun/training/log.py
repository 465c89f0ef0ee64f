"""What a run writes while it trains: metrics.jsonl, TensorBoard, and the progress of one run or many."""

from __future__ import annotations

import json
import math
import os
import sys
import time
import warnings
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NotRequired, TypedDict

from freerun.errors import CheckpointError, needing
from freerun.terminal import filled, width_of, wrapped
from freerun.training.files import Count, explained

_ALONE, _MANY = 10.0, 15.0
"""Seconds between two lines of progress, of one run and of many."""

_ROOM = 100
"""Columns of a terminal that has room for bars."""


@dataclass(frozen=True)
class RunState:
    """How far a run is: its name, whether it is ``waiting``, ``running`` or ``done``, and its newest numbers."""

    name: str
    stage: str
    updates: int
    facts: str = ""


def clock(seconds: float) -> str:
    """Return a duration for people.

    >>> clock(75), clock(3723)
    ('1:15', '1:02:03')
    """
    total = int(max(seconds, 0))
    hours, minutes = divmod(total // 60, 60)
    return f"{hours}:{minutes:02d}:{total % 60:02d}" if hours else f"{minutes}:{total % 60:02d}"


def update_facts(record: Mapping[str, Any], dev: str = "") -> str:
    """Return the numbers of an update that its progress displays, and the newest score on dev."""
    ratio = record.get("teacher_forcing_ratio")
    parts = [f"loss {record['loss']:.4f}", "" if ratio is None else f"teacher_forcing_ratio {ratio:.3f}", dev]
    return "  ".join(filter(None, [*parts, f"lr {record['lr']:.2e}"]))


class Progress:
    """Displays on standard error how far runs are, and prints lines in between; this one displays nothing."""

    def show(self, states: Sequence[RunState]) -> None: ...
    def note(self, text: str) -> None: ...
    def close(self) -> None: ...


class _Lines(Progress):
    def __init__(self, total: int, runs: int | None, done: int) -> None:
        self._each, self._total, self._alone = total, total * (runs or 1), runs is None
        self._began = time.monotonic()
        self._last = self._began if self._alone else 0.0
        self._start: tuple[float, int] | None = (self._began, done) if self._alone else None

    def show(self, states: Sequence[RunState]) -> None:
        now, done = time.monotonic(), sum(state.updates for state in states)
        if self._start is None or done == self._start[1]:  # loading is no training
            self._start = (now, done)
        at_end = self._alone and done >= self._total
        if now - self._last < (_ALONE if self._alone else _MANY) and not at_end:
            return
        self._last = now
        began, first = self._start
        speed = (done - first) / max(now - began, 1e-9)
        # what first updates take foretells nothing
        enough = done - first >= min(20, self._total / 10)
        left = f"  {clock((self._total - done) / speed)} left" if enough and speed > 0 else ""
        text = f"update {done}/{self._total}  {clock(now - self._began)} elapsed{left}  "
        if self._alone:
            self.note(f"{text}{states[0].facts}  {speed:.1f} updates/s")
            return
        self.note(f"{text}{sum(state.stage == 'done' for state in states)} of {len(states)} runs done")
        for state in (state for state in states if state.stage == "running"):
            self.note(f"  {state.updates}/{self._each}  {state.name}  {state.facts}".rstrip())

    def note(self, text: str) -> None:
        print(wrapped(text, width_of(sys.stderr)), file=sys.stderr, flush=True)


class _Bars(Progress):
    def __init__(self, total: int, runs: int | None, done: int) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
        from rich.progress import Progress as RichProgress
        from rich.table import Column

        width = width_of(sys.stderr)
        console = Console(stderr=True, width=width)
        # count and times stand first; name and facts go on in further lines where a narrow terminal has no room
        facts = "{task.fields[facts]}" if runs is None else "{task.description}  {task.fields[facts]}"
        self._bars = RichProgress(
            TextColumn("{task.completed:>6.0f}/{task.total:.0f}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            *([BarColumn(20)] if width >= _ROOM else []),
            TextColumn(facts, table_column=Column(overflow="fold", ratio=1)),
            console=console,
            expand=True,
        )
        self._each, self._alone, self._tasks = total, runs is None, dict[str, Any]()
        # of one run: what count, times and bar leave
        self._room = width - (2 * max(6, len(str(total))) + 20 if width < _ROOM else 60)
        self._all = self._bars.add_task("[bold]all runs", total=total * (runs or 1), completed=done, facts="")
        self._bars.start()

    def show(self, states: Sequence[RunState]) -> None:
        finished, updates = sum(state.stage == "done" for state in states), sum(state.updates for state in states)
        facts = filled(states[0].facts, self._room) if self._alone else f"{finished} of {len(states)} runs done"
        self._bars.update(self._all, completed=updates, facts=facts)
        for state in () if self._alone else states:
            if state.stage == "running" and state.name not in self._tasks:
                self._tasks[state.name] = self._bars.add_task(state.name, total=self._each, facts="")
            if state.name in self._tasks:
                self._bars.update(self._tasks[state.name], completed=state.updates, facts=state.facts)
            if state.stage == "done" and state.name in self._tasks:
                self._bars.remove_task(self._tasks.pop(state.name))

    def note(self, text: str) -> None:
        self._bars.console.print(wrapped(text, self._bars.console.width), markup=False, highlight=False)

    def close(self) -> None:
        self._bars.stop()


def progress_for(total: int, *, runs: int | None = None, done: int = 0, visible: bool = True) -> Progress:
    """Return the display that fits standard error."""
    if not visible:
        return Progress()
    dumb = os.environ.get("TERM", "") in ("dumb", "unknown")  # such a terminal redraws nothing
    return (_Bars if sys.stderr.isatty() and not dumb else _Lines)(total, runs, done)


def jsonable(value: Any) -> Any:
    """Return the value with NaN and infinities as None, which JSON has no word for.

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
    """A line of metrics.jsonl, of whatever kind."""

    event: str
    step: NotRequired[Count]
    split: NotRequired[str]
    teacher_forced: NotRequired[dict[str, float | None]]
    free_running: NotRequired[dict[str, float | None]]


class Metrics:
    """A file of one JSON object a line, each written at once and completely."""

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
        present = False
        with suppress(OSError):
            present = os.path.samestat(os.fstat(self._file.fileno()), self.path.lstat())
        if not present:
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
        self._file.close()


class Unwritten:
    """The metrics of a process that is not the first, which writes none."""

    def write(self, record: dict[str, Any]) -> None: ...
    def check(self) -> None: ...
    def close(self) -> None: ...

    def sync(self) -> int:
        return 0


def board_class() -> Any:
    """Return what writes TensorBoard files."""
    with needing("tensorboard", "train.tensorboard = true"):
        from torch.utils.tensorboard.writer import SummaryWriter
    return SummaryWriter


class Board:
    """TensorBoard curves beside the metrics, if they are on; training never stops for them."""

    def __init__(self, folder: Path, start: int, *, on: bool) -> None:
        self._writer: Any = board_class()(str(folder / "tensorboard"), purge_step=start) if on else None

    def write(self, record: Mapping[str, Any], step: int, prefix: str = "train") -> None:
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
        if self._writer is not None:
            with suppress(OSError):
                self._writer.close()
