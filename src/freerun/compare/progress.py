"""What a person sees while a comparison runs: bars on a terminal, a line every 15 seconds elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

__all__ = ["Display", "State", "clock", "display_for"]

_EVERY = 15.0


@dataclass(frozen=True)
class State:
    """How far one run is.

    Args:
        name: of the run.
        stage: ``waiting``, ``running`` or ``done``.
        updates: done so far.
        score: its newest dev score in words, or nothing.
    """

    name: str
    stage: str
    updates: int
    score: str = ""


class Display(Protocol):
    """Shows the states of all runs, and says things in between."""

    def show(self, states: Sequence[State]) -> None:
        """Show the state of every run."""
        ...

    def note(self, text: str) -> None:
        """Say a line."""
        ...

    def close(self) -> None:
        """Take bars off the screen."""
        ...


def clock(seconds: float) -> str:
    """A duration for people.

    >>> clock(75), clock(3723)
    ('1:15', '1:02:03')
    """
    whole = int(max(seconds, 0))
    hours, minutes = divmod(whole // 60, 60)
    return f"{hours}:{minutes:02d}:{whole % 60:02d}" if hours else f"{minutes}:{whole % 60:02d}"


class _Silent:
    def show(self, states: Sequence[State]) -> None:
        pass

    def note(self, text: str) -> None:
        pass

    def close(self) -> None:
        pass


class _Lines:
    def __init__(self, total: int, runs: int) -> None:
        self.whole = total * runs
        self.total = total
        self._began = time.monotonic()
        self._last = 0.0
        self._first: int | None = None

    def show(self, states: Sequence[State]) -> None:
        now = time.monotonic()
        done = sum(state.updates for state in states)
        if self._first is None:
            self._first = done
        if now - self._last < _EVERY:
            return
        self._last = now
        over = sum(state.stage == "done" for state in states)
        running = [_line(state, self.total) for state in states if state.stage == "running"]
        text = f"{clock(now - self._began)}  {over} of {len(states)} runs done"
        self.note("  |  ".join([text + self._left(done, now), *running]))

    def _left(self, done: int, now: float) -> str:
        speed = (done - (self._first or 0)) / max(now - self._began, 1e-9)
        return f", about {clock((self.whole - done) / speed)} left" if speed > 0 and now - self._began > 5 else ""

    def note(self, text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    def close(self) -> None:
        pass


def _line(state: State, total: int) -> str:
    return f"{state.name} {state.updates}/{total}" + (f" {state.score}" if state.score else "")


class _Bars:
    def __init__(self, total: int, runs: int) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
        from rich.progress import Progress as RichProgress

        self._bars = RichProgress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=None),
            TextColumn("{task.completed:>6.0f}/{task.total:.0f}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[score]}"),
            console=Console(stderr=True),
            expand=True,
        )
        self._total = total
        self._tasks: dict[str, Any] = {}
        self._all = self._bars.add_task("[bold]all runs", total=total * runs, score="")
        self._bars.start()

    def show(self, states: Sequence[State]) -> None:
        over = sum(state.stage == "done" for state in states)
        done = sum(state.updates for state in states)
        self._bars.update(self._all, completed=done, score=f"{over} of {len(states)} runs done")
        for state in states:
            if state.stage == "running" and state.name not in self._tasks:
                self._tasks[state.name] = self._bars.add_task(state.name, total=self._total, score="")
            if state.name in self._tasks:
                self._bars.update(self._tasks[state.name], completed=state.updates, score=state.score)
            if state.stage == "done" and state.name in self._tasks:
                self._bars.remove_task(self._tasks.pop(state.name))

    def note(self, text: str) -> None:
        self._bars.console.print(text, markup=False, highlight=False)

    def close(self) -> None:
        self._bars.stop()


def display_for(total: int, runs: int, wanted: bool) -> Display:
    """The display that fits where standard error goes.

    Args:
        total: updates of one run.
        runs: number of runs.
        wanted: False shows nothing.
    """
    if not wanted:
        return _Silent()
    return _Bars(total, runs) if sys.stderr.isatty() else _Lines(total, runs)
