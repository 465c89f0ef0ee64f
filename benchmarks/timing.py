"""Timing: variants of a training step, interleaved round by round, as multiples of the first; on which machine."""

from __future__ import annotations

import os
import platform
import re
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import torch

import freerun as fr

__all__ = ["Clock", "Taken", "clock_of", "load", "machine", "native_bfloat16", "prices", "take"]

Clock = Callable[[], float]
Step = Callable[[int], fr.Outcome | None]
"""One training step of repetition n, which is also its key; the outcome where it has one."""


@dataclass
class Taken:
    """Seconds and reports of a variant's repetitions.

    Args:
        seconds: of each repetition.
        outcomes: reports and histories of the repetitions, without outputs and graphs.
        failed: the error after which it was left out.
    """

    seconds: list[float] = field(default_factory=list)
    outcomes: list[tuple[Mapping[str, float | str], torch.Tensor]] = field(default_factory=list)
    failed: str = ""

    def mean(self, name: str) -> float | None:
        """The mean of a number of the reports."""
        found = [float(report[name]) for report, _ in self.outcomes if name in report]
        return statistics.mean(found) if found else None

    def times(self, base: Taken) -> float:
        """The median over rounds of seconds divided by those of ``base``."""
        return statistics.median(own / other for own, other in zip(self.seconds, base.seconds, strict=False))


@cache
def native_bfloat16(device: str) -> bool:
    """Whether products in bfloat16 are faster than in float32 here; where they are emulated they are far slower."""
    if device != "cpu":
        return torch.cuda.is_bf16_supported()
    seconds: list[float] = []
    for dtype in (torch.float32, torch.bfloat16):
        a, b = (torch.ones(512, 512, dtype=dtype) for _ in range(2))
        torch.mm(a, b)
        started = time.process_time()
        for _ in range(3):
            torch.mm(a, b)
        seconds.append(time.process_time() - started)
    return seconds[1] < seconds[0]


def machine(device: str) -> str:
    """What it is measured on, in words."""
    name, info = platform.processor() or platform.machine(), Path("/proc/cpuinfo")
    if device != "cpu":
        name = torch.cuda.get_device_name()
    elif info.exists() and (found := re.search(r"^model name\s*: (.*)$", info.read_text("utf-8"), re.MULTILINE)):
        name = found[1].strip()
    bfloat16 = "with" if native_bfloat16(device) else "without"
    return f"{name}, {bfloat16} native bfloat16, {torch.get_num_threads()} thread(s), torch {torch.__version__}"


def load() -> float | None:
    """Busy processes of this machine in the last minute, where the system says."""
    return round(os.getloadavg()[0], 1) if hasattr(os, "getloadavg") else None


def clock_of(device: str) -> Clock:
    """CPU seconds of this process, independent of other processes; on an accelerator synchronized wall time."""
    if device == "cpu":
        return time.process_time

    def synchronized() -> float:
        torch.cuda.synchronize()
        return time.perf_counter()

    return synchronized


_FAR, _FEW = 6.0, 3


def take(steps: Mapping[str, Step], repetitions: int, clock: Clock, *, warm: bool = True) -> dict[str, Taken]:
    """Run the variants interleaved: every repetition runs each of them once, so all see the same machine load.

    One that takes more than six times as long as the first is of no use to anyone: it runs three rounds.

    Args:
        steps: by name; the first is what the others are compared with.
        repetitions: rounds that count.
        clock: seconds.
        warm: whether a round that does not count comes first.
    """
    taken = {name: Taken() for name in steps}
    for n in range(-1 if warm else 0, repetitions):
        for name, step in steps.items():
            mine = taken[name]
            if mine.failed or (n >= _FEW and mine.times(taken[next(iter(steps))]) > _FAR):
                continue
            started = clock()
            try:
                outcome = step(max(n, 0))
            except fr.UserError as error:
                mine.failed = str(error).splitlines()[0]
                print(f"{name}: {mine.failed}", file=sys.stderr)
                continue
            seconds = clock() - started
            if n >= 0:
                mine.seconds.append(seconds)
                if outcome is not None:
                    mine.outcomes.append((dict(outcome.report), outcome.fed.history))
    return taken


def prices(taken: Mapping[str, Taken], base: str) -> dict[str, float]:
    """The median over repetitions of each variant's seconds divided by those of ``base``."""
    return {name: mine.times(taken[base]) for name, mine in taken.items() if not mine.failed}
