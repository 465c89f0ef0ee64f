"""Sequences of different lengths in one flat tensor, cut into padded batches without a loop."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from freerun.brief import brief
from freerun.errors import UserError
from freerun.types import Batch

__all__ = ["Ragged", "before_end", "padded", "source_and_target", "told"]


class Ragged:
    """Sequences of ids, held flat; a batch of them is one gather.

    Args:
        sequences: lists of ids, none of them empty.

    >>> ids, mask = Ragged([[5, 6, 7], [8]]).padded(torch.tensor([1, 0]))
    >>> ids.tolist(), mask.sum(1).tolist()
    ([[8, 0, 0], [5, 6, 7]], [1, 3])
    """

    __repr__ = brief

    def __init__(self, sequences: Sequence[Sequence[int]]) -> None:
        self.lengths = torch.tensor([len(sequence) for sequence in sequences], dtype=torch.int64)
        self.starts = self.lengths.cumsum(0) - self.lengths
        self.values = torch.tensor([number for sequence in sequences for number in sequence], dtype=torch.int64)

    def __len__(self) -> int:
        return self.lengths.numel()

    def padded(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """The sequences asked for ((n,) int64) as (n, time) ids padded with 0, and their mask."""
        lengths = self.lengths[indices]
        positions = torch.arange(int(lengths.max()))
        mask = positions < lengths[:, None]
        places = (self.starts[indices, None] + positions).masked_fill_(~mask, 0)
        return self.values[places].masked_fill_(~mask, 0), mask


def padded(sequences: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """All of some sequences as (n, time) ids padded with 0, and their mask."""
    return Ragged(sequences).padded(torch.arange(len(sequences)))


def told(mask: Tensor) -> Tensor:
    """(batch, time) bool: history entries that a position which counts is told; a row's last is told to none.

    >>> told(torch.tensor([[True, True, False]])).tolist()
    [[True, False, False]]
    """
    return torch.cat([mask[:, 1:], torch.zeros_like(mask[:, :1])], 1)


def source_and_target(sources: Ragged, targets: Ragged, indices: Sequence[int] | Tensor, rows: Tensor | None) -> Batch:
    """The training batch of some pairs; targets hold their end symbol, whose entry no position is told.

    Args:
        sources: of all pairs.
        targets: of all pairs.
        indices: numbers of the pairs asked for.
        rows: (batch,) int64: their numbers in the optimizer step's global batch.
    """
    chosen = torch.as_tensor(indices, dtype=torch.int64)
    source, source_mask = sources.padded(chosen)
    ids, mask = targets.padded(chosen)
    return Batch(ids, ids, mask, {"source": source, "source_mask": source_mask}, eligible=told(mask), rows=rows)


def before_end(ids: Sequence[int], symbols: int) -> list[int]:
    """Ids up to the first 0, the end symbol; beside it there are so many ``symbols``.

    Raises:
        UserError: an id is negative or beyond the last symbol.

    >>> before_end([3, 1, 0, 2], 3)
    [3, 1]
    """
    numbers = list(ids)
    numbers = numbers[: numbers.index(0)] if 0 in numbers else numbers
    wrong = [number for number in numbers if not 0 < number <= symbols]
    if wrong:
        raise UserError(f"ids must lie in [0, {symbols}]; got {wrong[0]}")
    return numbers
