"""A layer of a Transformer: pre-norm, attention, feed-forward."""

from __future__ import annotations

import math

from torch import Tensor, nn
from torch.nn import functional as F

from freerun.models.transformer.attention import CrossAttention, Memory, SelfAttention, Turn
from freerun.models.transformer.cache import Layer, Reading
from freerun.models.transformer.shape import Shape

__all__ = ["Block", "FeedForward", "initialise", "make_norm"]


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
