"""The points of the map, and their runs: each a comparison that ``freerun compare`` repeats word for word."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from freerun.cli.entry import main as command
from freerun.comparison.executors import EXECUTORS, PATIENCE, Job, Options, Processes
from freerun.comparison.run import compare

RECIPES = Path(__file__).resolve().parent.parent / "recipes"
CAPACITIES = (4, 32)
"""Widths of the labeller's state."""


@dataclass(frozen=True)
class Point:
    """A world and a model: one comparison.

    Args:
        name: of its folder.
        world: what points of one world share.
        recipe: file under ``recipes``.
        overrides: ``key=value`` each.
    """

    name: str
    world: str
    recipe: str
    overrides: tuple[str, ...] = ()

    def command(self, out: Path) -> str:
        """The command that makes the same runs."""
        sets = "".join(f" --set {each}" for each in self.overrides)
        return f"freerun compare {RECIPES.name}/{self.recipe}{sets} --out {out / self.name}"


def points() -> list[Point]:
    """All points: automata of several entropies and sources, rings, and the showcases as they are published."""
    laws = ((0.3, 0.4, 1), (0.3, 0.7, 1), (0.7, 0.4, 2), (0.7, 0.7, 2), (1.1, 0.4, 3), (1.1, 0.7, 3), (0.7, 0.25, 2))
    worlds = [
        (
            f"automaton {entropy:g}/{right:g}",
            "map/automaton.toml",
            (f"data.entropy={entropy}", f"data.right={right}", f"data.seed={seed}"),
        )
        for entropy, right, seed in laws
    ]
    worlds += [(f"ring {stay:g}", "map/ring.toml", (f"data.stay={stay}",)) for stay in (0.9, 0.6)]
    found = [
        Point(f"{world} {size}".replace(" ", "-").replace("/", "-"), world, recipe, (*sets, f"model.size={size}"))
        for size in CAPACITIES
        for world, recipe, sets in worlds
    ]
    shown = {"ring": "ring showcase", "chorales": "chorales", "mackey-glass-symbols": "Mackey-Glass in levels"}
    shown["map/pronunciation"] = "pronunciation"
    return found + [Point(name.split("/")[-1], world, f"{name}.toml") for name, world in shown.items()]


class Forks(Processes):
    """Runs in forks of this process: a run of two seconds does not begin with four of imports."""

    def start(self, run: Any, arguments: Sequence[str], log: Path) -> Job:
        log.parent.mkdir(parents=True, exist_ok=True)
        process = multiprocessing.get_context("fork").Process(target=_train, args=(list(arguments[2:]), log))
        process.start()
        return Job(run, log, process)

    def poll(self, job: Job) -> int | None:
        job.code = job.handle.exitcode
        return job.code

    def stop(self, jobs: Sequence[Job], patience: float = PATIENCE) -> None:
        for job in jobs:
            if job.handle.is_alive():
                os.kill(job.handle.pid, signal.SIGINT)
        for job in jobs:
            job.handle.join(patience)
            job.handle.kill()


def _train(arguments: list[str], log: Path) -> None:
    os.setsid()  # Ctrl-C in the terminal reaches the parent alone, which stops its runs in order
    with log.open("a", encoding="utf-8") as output:
        for stream in (1, 2):
            os.dup2(output.fileno(), stream)
        sys.stdout = sys.stderr = output
        code = command(arguments)
    sys.exit(code)


@contextmanager
def _forks(options: Options) -> Generator[Forks]:
    yield Forks(options.workers or options.processes)


def run(chosen: Sequence[Point], out: Path, seeds: int, workers: int = 1) -> None:
    """Run what is not finished of each point; what is finished stays."""
    torch.set_num_threads(1)  # a fork cannot use threads that were started before
    if "fork" in multiprocessing.get_all_start_methods():
        EXECUTORS["local"] = _forks
    for number, point in enumerate(chosen, start=1):
        folder = out / point.name
        print(f"point {number} of {len(chosen)}: {point.command(out)}", file=sys.stderr, flush=True)
        compare(
            RECIPES / point.recipe, [*point.overrides, f"compare.seeds={list(range(seeds))}"], folder,
            resume=folder.exists(), workers=workers, progress=False,
        )  # fmt: skip
