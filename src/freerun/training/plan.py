"""The plan of a run: its settings, which are a recipe's ``[train]``, and the examples of every update."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from freerun.arguments import Arguments, above, at_least, between, one_of
from freerun.errors import UserError
from freerun.keys import bits, fold
from freerun.types import Step

_POOL = 50

_SMALLEST = 1.2e-38
"""The least positive number that float32 holds."""


@dataclass(frozen=True)
class TrainSettings(Arguments):
    """How long, how fast and on what a model is trained.

    Args:
        updates: optimizer steps of the run.
        batch_size: examples of one update, all micro-batches (and ranks) together.
        accumulate: micro-batches an update is cut into: less memory, the same update.
        optimizer: ``adamw``, ``adam`` or ``sgd`` (momentum 0.9).
        lr: learning rate after the warm-up.
        weight_decay: on tensors of two and more dimensions only.
        warmup: updates over which the rate rises linearly from lr / warmup.
        decay: ``constant``, ``linear`` or ``cosine`` to 0 at ``updates``, or ``inverse_sqrt``.
        clip: largest gradient norm; 0 is no clipping.
        ema: decay of the exponential moving average of the weights, which is then what is evaluated and
            saved; 0 is none.
        amp: ``no``, or ``bf16`` autocast.
        bucket: put examples of like length into one batch.
        threads: threads of PyTorch on the CPU.
        evaluate_every: updates between two evaluations on dev (one more follows the last update).
        evaluate_items: dev items used while training (None: all); the task reads it.
        min_delta: a later evaluation counts as better only if it is better by this share of the best score so far
            (0.02: by 2 %): a gain on dev that is smaller than dev differs from test is none.
        patience: evaluations without a better score before training stops early (None: never).
        select: dev score by which the best weights are chosen: a free-running metric (``per``, or in full
            ``free_running_per``), or a ``teacher_forced_`` one.
        save_every: updates between two checkpoints.
        keep: checkpoints kept.
        seed: of batches, dropout and the method's coins and noise.
        record_errors: also write what was fed in place of gold, for ``confusion_noise``; a comparison with that control
            sets it.
        time_gold: at the end also time updates by teacher forcing, for the control ``equal_seconds``, which sets it.
        tensorboard: also write TensorBoard files (needs the extra ``tensorboard``).
        parallel: what several processes keep: ``ddp`` all of weights, gradients and optimizer state in each, ``fsdp`` a
            share of them between the steps. One process ignores it.
        device: ``cpu``, ``cuda`` (each process of a machine takes a GPU of its own), or ``given``: where the model is,
            which a recipe builds on the processor.
        rank_timeout: seconds that one of several processes may stand still before all end (exit code 7). Waiting for a
            long evaluation is not standing still.

    Raises:
        UserError: values out of range; all problems at once.

    >>> TrainSettings(updates=10, warmup=2).batch_size
    64
    """

    updates: int = between(1, 99_999_999, 1000)  # the name of a checkpoint has eight digits
    batch_size: int = at_least(1, 64)
    accumulate: int = at_least(1, 1)
    optimizer: Literal["adamw", "adam", "sgd"] = one_of(("adamw", "adam", "sgd"), "adamw")
    lr: float = above(0, 1e-3)
    weight_decay: float = at_least(0, 0.0)
    warmup: int = at_least(0, 0)
    decay: Literal["constant", "linear", "cosine", "inverse_sqrt"] = one_of(
        ("constant", "linear", "cosine", "inverse_sqrt"), "constant"
    )
    clip: float = at_least(0, 1.0)
    ema: float = between(0, 1, 0.0, ends="[)")
    amp: Literal["no", "bf16"] = one_of(("no", "bf16"), "no")
    bucket: bool = True
    threads: int = between(1, 1024, 1)
    evaluate_every: int = at_least(1, 500)
    evaluate_items: int | None = at_least(1, None)
    min_delta: float = between(0, 1, 0.0, ends="[)")
    patience: int | None = at_least(1, None)
    select: str = "per"
    save_every: int = at_least(1, 500, semantic=False)
    keep: int = at_least(1, 2, semantic=False)
    seed: int = between(0, 2**63 - 1, 0)
    record_errors: bool = field(default=False, metadata={"semantic": False})
    time_gold: bool = field(default=False, metadata={"semantic": False})
    tensorboard: bool = field(default=False, metadata={"semantic": False})
    parallel: Literal["ddp", "fsdp"] = one_of(("ddp", "fsdp"), "ddp", semantic=False)
    device: Literal["given", "cpu", "cuda"] = one_of(("given", "cpu", "cuda"), "given", semantic=False)
    rank_timeout: int = at_least(1, 120, semantic=False)

    def problems(self) -> Iterable[str]:
        """Yield what does not fit together, a line each."""
        if not isinstance(self.select, str):  # pyright: ignore[reportUnnecessaryIsInstance]
            yield f"select must be a word; got {self.select!r}"
        for name in ("lr", "weight_decay", "clip", "ema"):
            if 0 < getattr(self, name) < _SMALLEST:
                yield f"{name} must be at least {_SMALLEST:g}, as float32 holds no less"
        if self.warmup > self.updates:
            yield f"warmup must be in 0..updates = 0..{self.updates}; got {self.warmup}"
        if self.accumulate > self.batch_size:
            yield (
                f"accumulate cuts batch_size = {self.batch_size} examples into micro-batches and can be at most that; "
                f"got {self.accumulate}"
            )


@dataclass(frozen=True, eq=False)
class UpdateBatch:
    """The examples of one update."""

    indices: Tensor
    epoch: int
    step: Step


class BatchPlan:
    """The order of a run, computed and never stored: ``at(step)`` is any update's batch.

    Every epoch is a permutation of the examples. With ``bucket``, the permutation is cut into pools of 50
    batches, each pool sorted by length and cut into batches, and the batches are shuffled; an epoch's one
    short batch lies anywhere in it. Neither micro-batches nor ranks nor what was drawn before enter.

    Args:
        lengths: length of each example in positions.
        batch_size: examples of one update.
        seed: of the order.
        bucket: batches of like length.

    Raises:
        UserError: there is no example.

    >>> plan = BatchPlan([3, 1, 2, 5, 4], 2, seed=0)
    >>> len(plan), sorted(int(i) for step in range(3) for i in plan.at(step).indices)
    (3, [0, 1, 2, 3, 4])
    >>> plan.at(7).epoch
    2
    """

    def __init__(self, lengths: Sequence[int], batch_size: int, *, seed: int, bucket: bool = True) -> None:
        if not len(lengths):
            raise UserError("there is no training example: nothing is left of the data, or it was empty")
        self.lengths = torch.as_tensor(list(lengths), dtype=torch.int64)
        self.batch_size = batch_size
        self.seed = seed
        self.bucket = bucket
        self._cache: tuple[int, list[Tensor], list[int]] = (-1, [], [])

    def __len__(self) -> int:
        return math.ceil(len(self.lengths) / self.batch_size)

    @property
    def examples(self) -> int:
        """Examples of an epoch."""
        return len(self.lengths)

    def at(self, step: int) -> UpdateBatch:
        """Return the batch of an update (counted from 0)."""
        epoch, index = divmod(step, len(self))
        if self._cache[0] != epoch:
            batches = self._epoch(epoch)
            self._cache = (epoch, batches, [0, *itertools.accumulate(map(len, batches))])
        _, batches, before = self._cache
        sample = epoch * self.examples + before[index]
        return UpdateBatch(batches[index], epoch, Step(step, sample=sample, epoch=sample / self.examples))

    def _epoch(self, epoch: int) -> list[Tensor]:
        order = _shuffled(self.examples, fold(self.seed, "plan", epoch))
        if not self.bucket:
            return list(order.split(self.batch_size))
        batches: list[Tensor] = []
        for pool in order.split(self.batch_size * _POOL):
            by_length = pool[torch.argsort(self.lengths[pool], stable=True)]
            batches += by_length.split(self.batch_size)
        return [batches[i] for i in _shuffled(len(batches), fold(self.seed, "batches", epoch)).tolist()]


def _shuffled(number: int, key: int) -> Tensor:
    # sorting hashed counters, not randperm: the order then does not depend on the version of PyTorch
    return torch.argsort(bits(key, torch.arange(number)), stable=True)


@dataclass(frozen=True, eq=False)
class MicroBatch:
    """A micro-batch of one process."""

    number: int
    indices: list[int]
    rows: Tensor
    counts: bool = True


def pieces(planned: UpdateBatch, accumulate: int, rank: int = 0, size: int = 1) -> list[MicroBatch]:
    """Return the micro-batches of one process: at most ``accumulate x size`` of nearly equal size make an update.

    Process r of W has the pieces r, r + W, r + 2 W, ...: W processes that accumulate a micro-batches make the same
    pieces as one that accumulates a W.

    >>> planned = UpdateBatch(torch.tensor([7, 3, 9]), 0, Step(0))
    >>> [(piece.indices, piece.rows) for piece in pieces(planned, 2)]
    [([7, 3], tensor([0, 1])), ([9], tensor([2]))]
    >>> [(piece.number, piece.indices, piece.counts) for piece in pieces(planned, 2, rank=1, size=2)]
    [(1, [3], True), (3, [7], False)]
    """
    every = torch.arange(len(planned.indices))
    cut = [part for part in every.tensor_split(accumulate * size) if len(part)]
    # every process makes equally many calls: what is missing of the last round is an example that counts nothing
    filled = [*cut, *[cut[0][:1]] * (-len(cut) % size)]
    return [
        MicroBatch(number, planned.indices[filled[number]].tolist(), filled[number], number < len(cut))
        for number in range(rank, len(filled), size)
    ]
