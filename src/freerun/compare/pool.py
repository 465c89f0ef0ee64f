"""Runs as child processes, so many at a time; they stop with us and are never left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import IO, Any, Self

from freerun.compare.plan import PlannedRun
from freerun.errors import CheckpointError, DivergedError, OccupiedError, ResourceError, UserError

__all__ = ["Child", "Signals", "child_error", "start", "stop_all"]

PATIENCE = 60.0
_TAIL_LINES = 15
_ERRORS: dict[int, type[UserError]] = {
    error.exit_code: error for error in (OccupiedError, CheckpointError, ResourceError, DivergedError)
}


@dataclass(eq=False)
class Child:
    """A running process.

    Args:
        run: what it runs.
        process: the process.
        log: where its output goes.
        started: seconds, monotonic.
    """

    run: PlannedRun
    process: subprocess.Popen[bytes]
    log: Path
    started: float = field(default_factory=time.monotonic)


def start(run: PlannedRun, command: Sequence[str], log: Path) -> Child:
    """Start a run with one thread; what it prints goes to ``log``.

    Args:
        run: what it runs.
        command: the command line.
        log: file for its output; added to.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    one_thread = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
    output: IO[bytes]
    with log.open("ab") as output:
        # a session of its own: Ctrl-C in the terminal reaches us alone, and we stop the children in order
        process = subprocess.Popen(
            list(command),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, **one_thread, "PYTHONUNBUFFERED": "1"},
            start_new_session=True,
        )
    return Child(run, process, log)


def stop_all(children: Sequence[Child], patience: float = PATIENCE) -> None:
    """Ask the children to stop (they save a checkpoint first), wait, end those that do not."""
    for child in children:
        if child.process.poll() is None:
            child.process.send_signal(signal.SIGINT)
    deadline = time.monotonic() + patience
    for child in children:
        try:
            child.process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            child.process.kill()
            child.process.wait()


def child_error(child: Child, again: str) -> UserError:
    """The error of a run that failed: the end of what it printed, and how to go on.

    Args:
        child: a process that has ended.
        again: the command that goes on.
    """
    code = child.process.returncode
    lines = child.log.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-_TAIL_LINES:]
    how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
    said = "\n".join(f"    {line}" for line in lines) or "    (it printed nothing)"
    kind = _ERRORS.get(code, UserError)
    return kind(
        f"run {child.run.name} {how}; the end of {child.log}:\n{said}\n  help: the other runs were stopped "
        f"and can be resumed; mend this and go on with: {again}"
    )


class Signals:
    """Turns SIGTERM and a closed terminal into KeyboardInterrupt while entered: the children are always stopped."""

    def __enter__(self) -> Self:
        # handlers can be set in the main thread only
        main = threading.current_thread() is threading.main_thread()
        numbers = (signal.SIGTERM, signal.SIGHUP) if main else ()
        self._before: dict[int, Any] = {number: signal.signal(number, self._interrupt) for number in numbers}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    @staticmethod
    def _interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt
