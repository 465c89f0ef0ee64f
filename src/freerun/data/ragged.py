"""Sequences of different lengths in one flat tensor, cut into padded batches without a loop."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["Ragged", "padded", "told"]


class Ragged:
    """Sequences of ids, held flat; a batch of them is one gather.

    Args:
        sequences: lists of ids, none of them empty.

    >>> ids, mask = Ragged([[5, 6, 7], [8]]).padded(torch.tensor([1, 0]))
    >>> ids.tolist(), mask.sum(1).tolist()
    ([[8, 0, 0], [5, 6, 7]], [1, 3])
    """

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
