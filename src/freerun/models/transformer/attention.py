"""Attention, over a whole sequence at once and over a cache."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from freerun.models.transformer.cache import Layer, Reading
from freerun.models.transformer.shape import Shape

__all__ = ["CrossAttention", "Memory", "SelfAttention", "Turn", "turns"]

Turn = Tensor
"""Cosine and sine (..., 1, width / 2, 2) of the rotary position encoding."""

Memory = tuple[Tensor, Tensor]
"""Keys and values (batch, heads, source_time, width) of an encoded source, of one layer."""


def turns(positions: Tensor, width: int, dtype: torch.dtype) -> Turn:
    """Rotary angles of some positions (Su et al. 2021, arXiv:2104.09864): (..., 1, width / 2, 2) cosine and sine."""
    rates = 10000.0 ** (-torch.arange(0, width, 2, device=positions.device, dtype=torch.float64) / width)
    angles = (positions[..., None].double() * rates)[..., None, :]
    return torch.stack([angles.cos(), angles.sin()], -1).to(dtype)


def _rotate(x: Tensor, turn: Turn) -> Tensor:
    """Turn every pair of neighbours (x_2i, x_2i+1) of (..., heads, width) by its angle."""
    pairs = x.unflatten(-1, (-1, 2))
    if x.dtype == turn.dtype and x.dtype in (torch.float32, torch.float64):
        return torch.view_as_real(torch.view_as_complex(pairs) * torch.view_as_complex(turn)).flatten(-2)
    (a, b), (cos, sin) = pairs.unbind(-1), turn.to(x.dtype).unbind(-1)
    return torch.stack([a * cos - b * sin, a * sin + b * cos], -1).flatten(-2)


class SelfAttention(nn.Module):
    """Attention of a sequence to itself."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.heads, self.width = shape.heads, shape.width
        self.project = nn.Linear(shape.size, 3 * shape.size, bias=shape.bias)
        self.out = nn.Linear(shape.size, shape.size, bias=shape.bias)

    def forward(self, x: Tensor, turn: Turn | None, mask: Tensor | None, causal: bool) -> Tensor:
        """(batch, time, size) -> the same; ``mask`` True = may be attended to, instead of ``causal``."""
        q, k, v = (part.transpose(1, 2) for part in self._parts(x, turn))
        found = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal and mask is None)
        return self.out(found.transpose(1, 2).flatten(2))

    def read(self, x: Tensor, turn: Turn | None, at: Reading, layer: Layer) -> Tensor:
        """(n, size) entries being read -> the same; their keys and values go into the layer's cache."""
        q, k, v = self._parts(x, turn)
        layer.write(at.slots, k, v)
        keys, values = layer.keys[:, : at.keys].transpose(1, 2), layer.values[:, : at.keys].transpose(1, 2)
        found = F.scaled_dot_product_attention(at.spread(q), keys, values, attn_mask=at.mask)
        return self.out(at.gather(found))

    def _parts(self, x: Tensor, turn: Turn | None) -> tuple[Tensor, Tensor, Tensor]:
        # each (..., heads, width)
        parts = self.project(x).unflatten(-1, (3 * self.heads, self.width))
        v = parts[..., 2 * self.heads :, :]
        both = parts[..., : 2 * self.heads, :]
        q, k = (both if turn is None else _rotate(both, turn)).split(self.heads, -2)
        return q, k, v


class CrossAttention(nn.Module):
    """Attention to an encoded source."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.heads, self.width = shape.heads, shape.width
        self.query = nn.Linear(shape.size, shape.size, bias=shape.bias)
        self.project = nn.Linear(shape.size, 2 * shape.size, bias=shape.bias)
        self.out = nn.Linear(shape.size, shape.size, bias=shape.bias)

    def remember(self, memory: Tensor) -> Memory:
        """(batch, source_time, size) -> its keys and values."""
        parts = self.project(memory).unflatten(-1, (2 * self.heads, self.width)).transpose(1, 2)
        keys, values = parts.split(self.heads, 1)
        return keys, values

    def forward(self, x: Tensor, memory: Memory, mask: Tensor | None) -> Tensor:
        """(batch, time, size) -> the same."""
        q = self.query(x).unflatten(-1, (self.heads, self.width)).transpose(1, 2)
        found = F.scaled_dot_product_attention(q, *memory, attn_mask=mask)
        return self.out(found.transpose(1, 2).flatten(2))

    def read(self, x: Tensor, at: Reading, memory: Memory, mask: Tensor | None) -> Tensor:
        """(n, size) entries being read -> the same."""
        q = self.query(x).unflatten(-1, (self.heads, self.width))
        found = F.scaled_dot_product_attention(at.spread(q), *memory, attn_mask=mask)
        return self.out(at.gather(found))
