"""What every draw is."""

from __future__ import annotations

from dataclasses import fields
from typing import Any, ClassVar, Protocol

from torch import Tensor

from freerun.arguments import Arguments

__all__ = ["Draw", "Noiseless", "show"]


class Draw(Protocol):
    """How a prediction becomes an entry.

    ``noise_size(vocab)`` numbers are needed for each entry (0: none); ``noise`` makes them from a key, and is a
    function of (key, row, position) alone; ``choose`` turns predictions and noise into entries.
    """

    values: ClassVar[bool]

    def noise_size(self, vocab: int) -> int: ...
    def noise(self, key: int, rows: Tensor, positions: Tensor, vocab: int) -> Tensor | None: ...
    def choose(self, outputs: Tensor, noise: Tensor | None) -> Tensor: ...


def show(self: Any) -> str:
    """A draw's signature: its name and every argument that is not the default."""
    changed = [f for f in fields(self) if getattr(self, f.name) != f.default]
    inside = ", ".join(f"{f.name}={getattr(self, f.name)!r}" for f in changed)
    name = getattr(self, "name", type(self).__name__.lower())
    return f"{name}({inside})"


class Noiseless(Arguments):
    """A draw that needs no noise."""

    def noise_size(self, vocab: int) -> int:
        """0: nothing random."""
        return 0

    def noise(self, key: int, rows: Tensor, positions: Tensor, vocab: int) -> Tensor | None:
        """None."""
        return None
