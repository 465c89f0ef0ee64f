"""Started by torchrun in two processes: runs of ``distributed_world``, by name, under a folder."""

import faulthandler
import json
import os
import signal
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from distributed_world import CASES
from freerun.training.processes import join_processes
from training_world import Wrapped


def raised(work: Callable[[], Any]) -> str:
    try:
        work()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "nothing"


def stopped(folder: Path, parallel: str, rank: int, number: int = signal.SIGTERM) -> str:
    """Of two processes the second alone is signalled; how the run ended, which then goes on."""

    def stop(call: int, _batch: Any) -> None:
        if call == 5 and rank == 1:
            os.kill(os.getpid(), number)

    case = CASES["recurrent"]
    found = raised(partial(case.train, folder, parallel=parallel, task=Wrapped(case.task(), stop)))
    case.train(folder, parallel=parallel, resume=True)
    return found


def failing(folder: Path, parallel: str, rank: int, how: str) -> str:
    """The second process alone cannot make a batch, or makes one that is not finite."""

    def before(call: int, batch: Any) -> Any:
        if call != 3 or rank != 1:
            return None
        if how == "broken":
            raise OSError("example 7 cannot be read")
        return batch.replace(targets=batch.targets * 1e200)

    case = CASES["values"]
    return raised(partial(case.train, folder, parallel=parallel, task=Wrapped(case.task(), before)))


def main(root: Path, names: list[str]) -> None:
    faulthandler.dump_traceback_later(550, exit=True)  # a hang says where, and outlives nobody
    torch.set_num_threads(1)
    with join_processes() as processes:
        found: dict[str, Any] = {}
        for name in names:
            what, parallel = name.split("-")
            folder = root / name
            if what == "stopped":
                found[name] = stopped(folder, parallel, processes.rank)
            elif what == "killed":
                found[name] = stopped(folder, parallel, processes.rank, signal.SIGKILL)
            elif what in ("broken", "diverged"):
                found[name] = failing(folder, parallel, processes.rank, what)
            else:
                CASES[what].train(folder, parallel=parallel)
        found["occupied"] = raised(partial(CASES["values"].train, root / names[0]))
        found["idle"] = raised(partial(CASES["values"].train, root / "idle", size=7))
        (root / f"found-{processes.rank}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
