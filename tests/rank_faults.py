"""Started twice by test_rank_faults.py, as rank 0 and 1: a run in which something befalls one of them."""

import os
import signal
import sys
import time
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

import distributed_world
from distributed_world import CASES, SETTINGS, Waves
from freerun.cli.entry import guarded
from freerun.errors import UserError
from freerun.training import Evaluation
from training_world import Wrapped

LIMIT = 8


# the price of a forward-only model is no fault of a rank
warnings.filterwarnings("ignore", message=".* has only a forward")


class Gone(BaseException):
    """No handler that informs the other ranks catches it."""


def sleep() -> None:
    time.sleep(1e6)


def spin() -> None:
    while True:
        pass


def stop() -> None:
    os.kill(os.getpid(), signal.SIGSTOP)


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def leave() -> None:
    raise Gone("this process has had enough")


def mistake() -> None:
    raise UserError("example 7 has no targets")


def fault() -> None:
    raise ZeroDivisionError("a fault")


def memory() -> None:
    raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes")


class Evaluating(Waves):
    """Waves whose evaluation by the first process works for three times as long as a process may stand still."""

    def evaluate(self, model: torch.nn.Module, split: str) -> Evaluation:
        end = time.monotonic() + 3 * LIMIT
        while split == "test" and time.monotonic() < end:
            super().evaluate(model, split)
        return super().evaluate(model, split)


class Hanging(Waves):
    def evaluate(self, model: torch.nn.Module, split: str) -> Evaluation:
        time.sleep(1e6)
        raise AssertionError


class Backward(torch.autograd.Function):
    """Something befalls the gradient."""

    what: Any = None

    @staticmethod
    def forward(ctx: Any, values: torch.Tensor) -> torch.Tensor:
        return values.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        if Backward.what is not None:
            Path(sys.argv[1]).with_name("when").touch()
            Backward.what()
        return gradients[0]


def run(folder: Path, where: str, how: str) -> int:
    rank, case = int(os.environ["RANK"]), CASES["values"]
    befalls = globals().get(how)

    def before(call: int, batch: Any) -> Any:
        if call == 3 and rank == 1 and where == "batch":
            folder.with_name("when").touch()
            befalls()
        if call == 3 and rank == 1 and where == "backward":
            Backward.what = befalls
        return None

    task: Any = {"long": Evaluating, "hangs": Hanging}.get(how, Waves)()
    if where == "backward":
        make = case.model

        class Model(torch.nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.inner = make(task)

            def forward(self, batch: Any) -> torch.Tensor:
                return Backward.apply(self.inner(batch))

        case = replace(case, model=lambda _task: Model())
    distributed_world.SETTINGS = replace(SETTINGS, rank_timeout=LIMIT)
    try:
        case.train(folder, task=Wrapped(task, before))
    except Gone:
        time.sleep(1e6)  # it lingers, and computes something else for all we know
    return 0


if __name__ == "__main__":
    torch.set_num_threads(1)
    sys.exit(guarded(lambda: run(Path(sys.argv[1]), *sys.argv[2:])))
