"""Runs as child processes, so many at a time; they stop with us and are never left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import IO

from freerun.compare.plan import PlannedRun
from freerun.errors import EXIT_CODES, FaultError, ResourceError, UserError
from freerun.signals import LIFELINE, stopped

__all__ = ["Child", "child_error", "start", "stop_all"]

PATIENCE = 8.5
_TAIL_LINES = 15


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


@cache
def _lifeline() -> tuple[int, int]:
    """A pipe that nothing is written to: children that read it see its end when this process ends, however it does."""
    return os.pipe()


def start(run: PlannedRun, command: Sequence[str], log: Path) -> Child:
    """Start a run with one thread, which stops when this process ends; what it prints goes to ``log``.

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
            stdin=_lifeline()[0],
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, **one_thread, "PYTHONUNBUFFERED": "1", LIFELINE: "1"},
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
    kind, how = _fate(code)
    said = "\n".join(f"    {line}" for line in lines) or "    (it printed nothing)"
    return kind(
        f"run {child.run.name} {how}; the end of {child.log}:\n{said}\n  help: the other runs were stopped "
        f"and can be resumed; mend this and go on with: {again}"
    )


def _fate(code: int) -> tuple[type[UserError], str]:
    """What a process came to, as an error and in words."""
    if code >= 0:
        kind = EXIT_CODES.get(code, (None, ""))[0] or FaultError
        return kind, f"ended with exit code {code}"
    name = signal.Signals(-code).name
    if -code == signal.SIGKILL:
        return (
            ResourceError,
            f"was killed ({name}), usually for want of memory: fewer runs at a time (--workers) need less",
        )
    if -code in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        return type(stopped(-code, "")), f"was stopped by {name}"
    return FaultError, f"crashed ({name})"
