"""What a Transformer is made of, in numbers and words."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from freerun.arguments import count_problems, is_number
from freerun.errors import UserError

__all__ = ["Shape"]

_ALLOWED = {"positions": ("rope", "learned"), "activation": ("swiglu", "gelu", "relu"), "norm": ("rms", "layer")}


@dataclass(frozen=True)
class Shape:
    """The arguments that encoder and decoder share; see ``TransformerSeq2Seq``.

    Raises:
        UserError: for arguments outside their range; all at once.
    """

    size: int
    layers: int
    heads: int
    feed_forward: int | None
    positions: str
    activation: str
    norm: str
    bias: bool
    dropout: float
    longest: int

    @classmethod
    def of(cls, settings: Mapping[str, Any], **vocabularies: int) -> Shape:
        """The shape among a model's settings, checked together with its vocabulary sizes."""
        problems = count_problems(vocabularies)
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
        problems = count_problems({name: getattr(self, name) for name in ("size", "layers", "heads", "longest")})
        if self.feed_forward is not None and count_problems({"": self.feed_forward}):
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
