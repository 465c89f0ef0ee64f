"""Runs one training in many lives: each is a process that is killed with SIGKILL, the last one ends.

Arguments: the run's folder and a JSON list of deaths: ["update", n] just before the n-th update of a life, ["fsync",
n] just before its n-th fsync, ["rename", n] just after its n-th rename, ["after", seconds] from outside.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import torch

from freerun.training import loop
from training_world import SMALL, train


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def counted(function: Any, number: int, *, after: bool = False) -> Any:
    calls = 0

    def call(*arguments: Any, **named: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == number and not after:
            die()
        result = function(*arguments, **named)
        if calls == number:
            die()
        return result

    return call


def live(folder: Path, kind: str, number: float) -> None:
    if kind == "update":
        loop.update = counted(loop.update, int(number))
    if kind == "fsync":
        os.fsync = counted(os.fsync, int(number))
    if kind == "rename":
        Path.rename = counted(Path.rename, int(number), after=True)
    train(folder, SMALL, resume=folder.exists())


def main(folder: Path, deaths: list[tuple[str, float]]) -> int:
    torch.set_num_threads(1)
    # what the first optimizer and the first save import, once for all lives
    torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))]).zero_grad()
    importlib.import_module("safetensors.torch")
    killed = 0
    for kind, number in [*deaths, ("never", 0)]:
        child = os.fork()
        if not child:
            try:
                live(folder, kind, number)
            except BaseException as error:
                print(f"{type(error).__name__} after {kind} {number}: {error}", file=sys.stderr, flush=True)
                os._exit(1)
            os._exit(0)
        if kind == "after":
            time.sleep(number)
            os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL:
            killed += 1
        elif os.waitstatus_to_exitcode(status):
            return 1
    print(killed)
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), json.loads(sys.argv[2])))
