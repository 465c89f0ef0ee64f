"""Which examples an update sees: a pure function of seed, epoch and index."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from freerun.errors import UserError
from freerun.keys import bits, fold

_POOL = 50


@dataclass(frozen=True, eq=False)
class UpdateBatch:
    """The examples of one update."""

    indices: Tensor
    epoch: int
    sample: int


class BatchPlan:
    """The order of a whole run, computed and never stored: ``at(step)`` is any update's batch.

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
            before = [0]
            for batch in batches:
                before.append(before[-1] + len(batch))
            self._cache = (epoch, batches, before)
        _, batches, before = self._cache
        return UpdateBatch(batches[index], epoch, epoch * self.examples + before[index])

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
    # sorting hashed counters, not randperm: the order then does not hang on a version of PyTorch
    return torch.argsort(bits(key, torch.arange(number)), stable=True)


@dataclass(frozen=True, eq=False)
class MicroBatch:
    """A micro-batch of one process."""

    number: int
    indices: list[int]
    rows: Tensor
    counts: bool = True


def pieces(planned: UpdateBatch, accumulate: int, rank: int = 0, size: int = 1) -> list[MicroBatch]:
    """Return the micro-batches of one process, of an update at most ``accumulate x size`` of nearly equal size in all.

    Process r of W has the pieces r, r + W, r + 2 W, ...: W processes that accumulate a micro-batches make the same
    pieces as one that accumulates a W.

    >>> planned = UpdateBatch(torch.tensor([7, 3, 9]), 0, 0)
    >>> [(piece.indices, piece.rows) for piece in pieces(planned, 2)]
    [([7, 3], tensor([0, 1])), ([9], tensor([2]))]
    >>> [(piece.number, piece.indices, piece.counts) for piece in pieces(planned, 2, rank=1, size=2)]
    [(1, [3], True), (3, [7], False)]
    """
    every = torch.arange(len(planned.indices))
    cut = [part for part in every.tensor_split(accumulate * size) if len(part)]
    found: list[MicroBatch] = []
    for number in range(rank, rank + size * math.ceil(len(cut) / size), size):
        rows = cut[number] if number < len(cut) else cut[0][:1]
        found.append(MicroBatch(number, planned.indices[rows].tolist(), rows, number < len(cut)))
    return found
