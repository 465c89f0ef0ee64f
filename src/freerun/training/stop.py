"""Stopping politely: a signal sets a flag that the loop reads at the step boundary."""

from __future__ import annotations

import os
import signal
import threading
from types import FrameType
from typing import Any, ClassVar, Self

from freerun.errors import UserError
from freerun.training.processes import ALONE, Processes

__all__ = ["StopFlag", "StoppedError", "TerminatedError", "stopped", "vote"]


class StoppedError(UserError):
    """A run was interrupted (SIGINT) after it saved a checkpoint; it can be resumed."""

    exit_code: ClassVar[int] = 130


class TerminatedError(StoppedError):
    """A run was asked to end (SIGTERM), after it saved a checkpoint; it can be resumed."""

    exit_code: ClassVar[int] = 143


class StopFlag:
    """Catches SIGINT and SIGTERM while it is entered: the first sets ``signal``, a second one ends the process.

    Handlers can be set in the main thread only; elsewhere it never fires.
    """

    def __init__(self) -> None:
        self.signal = 0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _handle(self, number: int, _frame: FrameType | None) -> None:
        if self.signal:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        self.signal = number


def vote(flag: int, processes: Processes = ALONE) -> int:
    """The largest flag of all processes, so that all stop after the same update."""
    return processes.largest(flag)


def stopped(number: int, step: int) -> StoppedError:
    """The error that ends a run after a signal.

    >>> stopped(signal.SIGTERM, 12).exit_code
    143
    """
    kind = StoppedError if number == signal.SIGINT else TerminatedError
    name = signal.Signals(number).name
    return kind(f"stopped by {name} after {step} updates; a checkpoint is saved: go on with --resume")
