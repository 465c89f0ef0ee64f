"""A layer of a Transformer: pre-norm, attention, feed-forward."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from freerun.arguments import COUNT, is_number
from freerun.errors import UserError
from freerun.models.transformer.cache import Layer, Reading

PositionKind = Literal["rope", "learned"]
Activation = Literal["swiglu", "gelu", "relu"]
Norm = Literal["rms", "layer"]


_ALLOWED = {"positions": get_args(PositionKind), "activation": get_args(Activation), "norm": get_args(Norm)}


@dataclass(frozen=True)
class Shape:
    """The arguments that encoder and decoder share; see ``TransformerSeq2Seq``."""

    size: int
    layers: int
    heads: int
    feed_forward: int | None
    positions: str
    activation: str
    norm: str
    bias: bool
    dropout: float
    max_positions: int

    @classmethod
    def of(cls, settings: Mapping[str, Any], **vocabularies: int) -> Shape:
        """The shape among a model's settings, checked together with its vocabulary sizes."""
        problems = COUNT.problems(**vocabularies)
        shape = object.__new__(cls)
        for each in fields(cls):
            object.__setattr__(shape, each.name, settings[each.name])
        problems += shape._problems()
        if problems:
            raise UserError(problems)
        return shape

    @property
    def width(self) -> int:
        """Of one head."""
        return self.size // self.heads

    @property
    def inner(self) -> int:
        """Width of the feed-forward layers; by default 4 times the size, or 8/3 where there are three matrices."""
        if self.feed_forward is not None:
            return self.feed_forward
        return 4 * self.size if self.activation != "swiglu" else 8 * round(self.size / 3)

    def _problems(self) -> list[str]:
        problems = COUNT.problems(
            **{name: getattr(self, name) for name in ("size", "layers", "heads", "max_positions")}
        )
        if self.feed_forward is not None and COUNT.problem("", self.feed_forward):
            problems.append(f"feed_forward must be at least 1, or None for the usual; got {self.feed_forward!r}")
        for name, allowed in _ALLOWED.items():
            if getattr(self, name) not in allowed:
                problems.append(f"{name} must be one of {', '.join(allowed)}; got {getattr(self, name)!r}")
        if not is_number(self.dropout) or not 0 <= self.dropout < 1:
            problems.append(f"dropout must lie in [0, 1); got {self.dropout!r}")
        if not problems and self.size % self.heads:
            problems.append(f"size must be a multiple of heads; got size={self.size} and heads={self.heads}")
        elif not problems and self.positions == "rope" and self.width % 2:
            problems.append(
                f"positions='rope' needs an even width of heads; got {self.size} / {self.heads} = {self.width}"
            )
        return problems


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
        attended = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal and mask is None)
        return self.out(attended.transpose(1, 2).flatten(2))

    def read(self, x: Tensor, turn: Turn | None, at: Reading, layer: Layer) -> Tensor:
        """(n, size) entries being read -> the same; their keys and values go into the layer's cache."""
        q, k, v = self._parts(x, turn)
        layer.write(at.slots, k, v)
        keys, values = layer.keys[:, : at.keys].transpose(1, 2), layer.values[:, : at.keys].transpose(1, 2)
        attended = F.scaled_dot_product_attention(at.spread(q), keys, values, attn_mask=at.mask)
        return self.out(at.gather(attended))

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
        attended = F.scaled_dot_product_attention(q, *memory, attn_mask=mask)
        return self.out(attended.transpose(1, 2).flatten(2))

    def read(self, x: Tensor, at: Reading, memory: Memory, mask: Tensor | None) -> Tensor:
        """(n, size) entries being read -> the same."""
        q = self.query(x).unflatten(-1, (self.heads, self.width))
        attended = F.scaled_dot_product_attention(at.spread(q), *memory, attn_mask=mask)
        return self.out(at.gather(attended))


def make_norm(shape: Shape) -> nn.Module:
    """RMS norm without, or layer norm with a bias."""
    return nn.RMSNorm(shape.size, eps=1e-6) if shape.norm == "rms" else nn.LayerNorm(shape.size)


class FeedForward(nn.Module):
    """``W2 act(W1 x)``, or SwiGLU ``W2 (silu(Wg x) * W1 x)`` (Shazeer 2020, arXiv:2002.05202)."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.activation = shape.activation
        gates = 2 if shape.activation == "swiglu" else 1
        self.enter = nn.Linear(shape.size, gates * shape.inner, bias=shape.bias)
        self.out = nn.Linear(shape.inner, shape.size, bias=shape.bias)

    def forward(self, x: Tensor) -> Tensor:
        """(..., size) -> (..., size)."""
        x = self.enter(x)
        if self.activation == "swiglu":
            gate, value = x.chunk(2, -1)
            return self.out(F.silu(gate) * value)
        return self.out(F.gelu(x) if self.activation == "gelu" else F.relu(x))


class Block(nn.Module):
    """``x + attend(norm(x))``, the same to a source where there is one, ``x + feed_forward(norm(x))``."""

    def __init__(self, shape: Shape, crossed: bool) -> None:
        super().__init__()
        self.norm = make_norm(shape)
        self.attention = SelfAttention(shape)
        self.cross_norm = make_norm(shape) if crossed else None
        self.cross = CrossAttention(shape) if crossed else None
        self.feed_norm = make_norm(shape)
        self.feed = FeedForward(shape)
        self.drop = nn.Dropout(shape.dropout)

    def forward(
        self,
        x: Tensor,
        turn: Turn | None,
        mask: Tensor | None,
        source: tuple[Tensor, Tensor | None] | None = None,
        causal: bool = True,
    ) -> Tensor:
        """(batch, time, size) -> the same; ``source`` is (memory, mask of what may be attended to)."""
        x = x + self.drop(self.attention(self.norm(x), turn, mask, causal))
        if source is not None and self.cross is not None and self.cross_norm is not None:
            memory, seen = source
            x = x + self.drop(self.cross(self.cross_norm(x), self.cross.remember(memory), seen))
        return x + self.drop(self.feed(self.feed_norm(x)))

    def read(
        self,
        x: Tensor,
        turn: Turn | None,
        at: Reading,
        layer: Layer,
        source: tuple[Memory, Tensor | None] | None = None,
    ) -> Tensor:
        """(n, size) entries being read -> the same; ``source`` is (keys and values, mask)."""
        x = x + self.drop(self.attention.read(self.norm(x), turn, at, layer))
        if source is not None and self.cross is not None and self.cross_norm is not None:
            x = x + self.drop(self.cross.read(self.cross_norm(x), at, *source))
        return x + self.drop(self.feed(self.feed_norm(x)))


def initialise(module: nn.Module, layers: int) -> None:
    """Weights as in GPT-2: normal of deviation 0.02, what is added to the stream scaled down by depth."""
    for name, part in module.named_modules():
        if isinstance(part, nn.Linear | nn.Embedding):
            added = name.endswith(("attention.out", "cross.out", "feed.out"))
            nn.init.normal_(part.weight, std=0.02 / math.sqrt(2 * layers) if added else 0.02)
            if getattr(part, "bias", None) is not None:
                nn.init.zeros_(part.bias)  # pyright: ignore[reportArgumentType]
