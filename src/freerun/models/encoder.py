"""A recurrent encoder for right-padded sources whose padding is inert."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from freerun.errors import UserError
from freerun.models.cells import CELLS

__all__ = ["RecurrentEncoder"]


class RecurrentEncoder(nn.Module):
    """Layers of rnn, gru or lstm, one way or both ways.

    Backward layers read each row reversed *within its own length*, so that padding is read last and never seen by
    what counts: packing does the same, but takes the slower unfused kernels.

    Args:
        vocab: number of source symbols.
        width: width of the embedding.
        size: width of the memory; half of it each way where bidirectional.
        layers: number of layers.
        cell: rnn, gru or lstm.
        bidirectional: both ways.
        dropout: on embeddings and between layers.
    """

    def __init__(
        self, vocab: int, width: int, size: int, *, layers: int, cell: str, bidirectional: bool, dropout: float
    ) -> None:
        super().__init__()
        ways = 2 if bidirectional else 1
        self.embedding = nn.Embedding(vocab, width)
        self.drop = nn.Dropout(dropout)
        sizes = [width] + [size] * (layers - 1)
        make = CELLS[cell]
        self.forwards = nn.ModuleList(make(n, size // ways) for n in sizes)
        self.backwards = nn.ModuleList(make(n, size // ways) for n in sizes) if bidirectional else None
        self.memory_size = self.summary_size = size

    def forward(self, source: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """(batch, source_time) ids and mask -> memory (batch, source_time, size), summary (batch, size)."""
        if problems := source_problems(source, mask):
            raise UserError(problems)
        # time, batch, width: the fused layers are faster so
        states = self.drop(self.embedding(source.t()))
        lengths = mask.sum(1).clamp_min(1)
        mirror = _mirror(lengths, source.shape[1])
        for n, layer in enumerate(self.forwards):
            states = self.drop(states) if n else states
            ahead, _ = layer(states)
            if self.backwards is None:
                states, last = ahead, _at(ahead, lengths - 1)
                continue
            back, _ = self.backwards[n](_reordered(states, mirror))
            last = torch.cat([_at(ahead, lengths - 1), _at(back, lengths - 1)], 1)
            states = torch.cat([ahead, _reordered(back, mirror)], 2)
        return states.transpose(0, 1).contiguous(), last  # pyright: ignore[reportPossiblyUnboundVariable]


def source_problems(source: Tensor, mask: Tensor) -> list[str]:
    """What is wrong with a source and its mask, from shapes and types alone."""
    problems: list[str] = []
    if source.dim() != 2 or source.dtype != torch.int64 or source.shape[1] == 0:
        kind = f"{tuple(source.shape)} {str(source.dtype).removeprefix('torch.')}"
        problems.append(f"context['source'] must be int64 ids (batch, source time), one or more a row; got {kind}")
    if mask.dtype != torch.bool or mask.shape != source.shape:
        kind = f"{tuple(mask.shape)} {str(mask.dtype).removeprefix('torch.')}"
        problems.append(f"context['source_mask'] must be bool, {tuple(source.shape)}, True = there; got {kind}")
    return problems


def _mirror(lengths: Tensor, time: int) -> Tensor:
    """(time, batch) positions that reverse each row within its length and leave its padding in place."""
    positions = torch.arange(time, device=lengths.device)[:, None]
    return torch.where(positions < lengths, lengths - 1 - positions, positions)


def _reordered(states: Tensor, order: Tensor) -> Tensor:
    return states.gather(0, order[..., None].expand_as(states))


def _at(states: Tensor, position: Tensor) -> Tensor:
    return states[position, torch.arange(states.shape[1], device=states.device)]
