"""Timing: variants of a training step, interleaved round by round, as multiples of the first."""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch

import freerun as fr

__all__ = ["Clock", "Taken", "clock_of", "prices", "take"]

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


def clock_of(device: str) -> Clock:
    """CPU seconds of this process, independent of other processes; on an accelerator synchronized wall time."""
    if device == "cpu":
        return time.process_time

    def synchronized() -> float:
        torch.cuda.synchronize()
        return time.perf_counter()

    return synchronized


def take(steps: Mapping[str, Step], repetitions: int, clock: Clock, *, warm: bool = True) -> dict[str, Taken]:
    """Run the variants interleaved: every repetition runs each of them once, so all see the same machine load.

    Args:
        steps: by name.
        repetitions: rounds that count.
        clock: seconds.
        warm: whether a round that does not count comes first.
    """
    taken = {name: Taken() for name in steps}
    for n in range(-1 if warm else 0, repetitions):
        for name, step in steps.items():
            mine = taken[name]
            if mine.failed:
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
    below = taken[base].seconds
    return {
        name: statistics.median(own / other for own, other in zip(mine.seconds, below, strict=True))
        for name, mine in taken.items()
        if not mine.failed
    }
