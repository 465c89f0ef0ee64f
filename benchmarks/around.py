"""The price of the training loop: an update of `freerun train` against a bare loop of PyTorch's.

Both train a copy of one model, by one method, on the same batches: the bare loop makes a batch, calls the method, goes
backward, clips and steps. They take turns, update by update; printed are the median over updates of the ratio of CPU
times, one thread, and the bare loop's milliseconds an update. Evaluating and saving are left out.

Run: python benchmarks/around.py [--kind transformer] [--size 128] [--batch 32] [--updates 40] [--ratio 1] [--progress]
"""

from __future__ import annotations

import argparse
import copy
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor

import freerun as fr
from freerun.data.builtin_pairs import load_toy
from freerun.keys import fold
from freerun.models import RecurrentSeq2Seq, TransformerSeq2Seq
from freerun.tasks.pairs import PairTask
from freerun.training import TrainSettings, fit

KINDS = {"transformer": TransformerSeq2Seq, "lstm": RecurrentSeq2Seq}


class Timed:
    """A task that is asked for a batch once an update: between two questions lies an update of the loop."""

    def __init__(self, task: Any, bare: Any) -> None:
        self.task, self.bare = task, bare
        self.loops: list[float] = []
        self.bares: list[float] = []
        self.since = 0.0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.task, name)

    def batch(self, indices: Sequence[int], rows: Tensor) -> fr.Batch:
        """The batch, after an update of the bare loop on the same one."""
        now = time.process_time()
        if self.since:
            self.loops.append(now - self.since)
        self.bare(indices, rows)
        self.bares.append(time.process_time() - now)
        self.since = time.process_time()
        return self.task.batch(indices, rows)


def measure(options: argparse.Namespace) -> tuple[float, float]:
    """The loop's price in bare loops, and milliseconds of one of these."""
    words = {"train": 4096, "dev": 8, "test": 8}
    task = PairTask(load_toy("reverse", words=words, symbols=26, max_length=options.length))
    torch.manual_seed(0)
    model = KINDS[options.kind](*task.data.codec.sizes, size=options.size, dropout=0.1)
    method: Any = fr.teacher_forcing() if options.ratio == 1 else fr.scheduled_sampling(options.ratio)
    settings = TrainSettings(
        updates=options.updates, batch_size=options.batch, lr=1e-3, evaluate_every=options.updates,
        save_every=options.updates, evaluate_items=8,
    )  # fmt: skip
    own = copy.deepcopy(model).train()
    optimizer = torch.optim.AdamW(own.parameters(), 1e-3)
    losses: list[float] = []

    def bare(indices: Sequence[int], rows: Tensor) -> None:
        optimizer.zero_grad(set_to_none=True)
        loss = method(own, task.batch(indices, rows), step=len(losses), key=fold(0, "train"))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(own.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())

    timed: Any = Timed(task, bare)
    with tempfile.TemporaryDirectory() as folder:
        fit(model, timed, method, settings, Path(folder) / "run", progress=options.progress)
    pairs = list(zip(timed.loops, timed.bares, strict=False))[3:]
    return median(loop / other for loop, other in pairs), 1000 * median(other for _, other in pairs)


def main(argv: Sequence[str] | None = None) -> None:
    """Print the price."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kind", default="transformer", choices=KINDS)
    for name, default in (("size", 128), ("batch", 32), ("length", 12), ("updates", 40)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--ratio", type=float, default=1.0)
    parser.add_argument("--progress", action="store_true", help="with the display on standard error")
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    price, milliseconds = measure(options)
    print(f"training loop: {price:.3f} bare loops of {milliseconds:.1f} ms")


if __name__ == "__main__":
    main()
