"""What a person sees of a run: a bar on a terminal, a line every ten seconds elsewhere."""

from __future__ import annotations

import sys
import time
from typing import Any, Protocol

__all__ = ["Progress", "progress_for"]

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
    """The display that fits where standard error goes.

    Args:
        total: updates of the run.
        done: updates behind it.
        wanted: False shows nothing.
    """
    if not wanted:
        return _Silent()
    return _Bar(total, done) if sys.stderr.isatty() else _Lines(total, done)
