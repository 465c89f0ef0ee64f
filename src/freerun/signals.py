"""Signals that end a process: raised where nothing is lost by it, noted while something is being finished."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Generator
from contextlib import contextmanager
from types import FrameType
from typing import Any, ClassVar, Self

from freerun.errors import StoppedError, TerminatedError

LIFELINE = "FREERUN_LIFELINE"
"""In the environment of a process whose standard input ends when its parent does."""

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_GRACE = 8.0
"""Seconds that an update, or whatever else is being finished, has after a signal; a process is gone within ten."""


class Interrupt(KeyboardInterrupt):
    """SIGINT, SIGTERM or SIGHUP came: nothing that catches ``Exception`` holds it up.

    Args:
        number: the signal.
        late: whether something was to be finished first, and took too long.
    """

    def __init__(self, number: int, *, late: bool = False) -> None:
        self.number, self.late = number, late
        super().__init__(f"stopped by {signal.Signals(number).name}")


class StopFlag:
    """Catches SIGINT, SIGTERM and SIGHUP while it is entered; a second one ends the process at once.

    The first sets ``signal`` and is raised as ``Interrupt``, or only noted inside ``raising(False)``: what is being
    finished there has eight seconds, then it is raised all the same. One that was noted and never answered is raised
    on the way out. Handlers can be set in the main thread only; elsewhere it never fires.
    """

    _entered: ClassVar[list[StopFlag]] = []

    def __init__(self) -> None:
        self.signal = 0
        self._raising = True
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        # one that came in an outer flag, and whose Interrupt was swallowed, is not lost
        self.signal = max((flag.signal for flag in self._entered), default=0)
        self._entered.append(self)
        if threading.current_thread() is threading.main_thread():
            for number in _SIGNALS:
                if number == signal.SIGHUP and signal.getsignal(number) == signal.SIG_IGN:
                    continue  # nohup
                self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._entered.remove(self)
        if signal.SIGALRM in self._before:
            signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in self._before.items():
            signal.signal(number, handler or signal.SIG_DFL)
        if self.signal and kind is None:
            raise Interrupt(self.signal)

    @contextmanager
    def raising(self, at_once: bool) -> Generator[None]:
        """Inside a signal is raised at once, or only noted."""
        before, self._raising = self._raising, at_once
        try:
            if at_once and self.signal:
                raise Interrupt(self.signal)
            yield
        finally:
            self._raising = before

    def _handle(self, number: int, _frame: FrameType | None) -> None:
        if self.signal:
            os._exit(128 + number)
        self.signal = number
        if self._raising:
            raise Interrupt(number)
        self._before[signal.SIGALRM] = signal.signal(signal.SIGALRM, self._late)
        signal.setitimer(signal.ITIMER_REAL, _GRACE)

    def _late(self, _number: int, _frame: FrameType | None) -> None:
        raise Interrupt(self.signal, late=True)


def end_with_parent() -> None:
    """Stop as after SIGTERM when standard input ends, which the parent holds open as long as it lives."""

    def watch() -> None:
        while os.read(0, 1024):
            pass
        # one that is being stopped already is not to take this for the second signal
        if not any(flag.signal for flag in StopFlag._entered):
            os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(_GRACE + 1)
        os._exit(128 + signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()


def ignore() -> None:
    """Take no notice of signals from now on."""
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def stopped(number: int, text: str) -> StoppedError:
    """The error that ends a run after a signal."""
    kind = StoppedError if number == signal.SIGINT else TerminatedError
    return kind(f"stopped by {signal.Signals(number).name} {text}")
