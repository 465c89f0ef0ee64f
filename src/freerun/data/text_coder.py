"""Characters and their ids: what a model keeps of the text it was trained on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from freerun.brief import brief
from freerun.data.text import check_description
from freerun.errors import UserError

__all__ = ["TextCoder"]


@dataclass(frozen=True)
class TextCoder:
    """What a trained model needs of its text: the characters and how many it is told at most.

    Args:
        symbols: the characters; a character's place is its id.
        length: of the training windows.

    Raises:
        UserError: there are no characters, they are not single ones, or one stands twice.

    >>> coder = TextCoder(("a", "b"), 8)
    >>> coder.ids("abba").tolist(), coder.text([1, 0]), len(coder)
    ([0, 1, 1, 0], 'ba', 2)
    >>> TextCoder.from_description(coder.describe()) == coder
    True
    """

    __repr__ = brief

    symbols: tuple[str, ...]
    length: int

    def __post_init__(self) -> None:
        if not self.symbols or len(set(self.symbols)) < len(self.symbols) or any(len(s) != 1 for s in self.symbols):
            raise UserError(f"symbols must be different single characters, at least one; got {self.symbols[:20]}")

    def __len__(self) -> int:
        return len(self.symbols)

    @cached_property
    def _places(self) -> tuple[Tensor, Tensor]:
        codes = torch.tensor([ord(symbol) for symbol in self.symbols])
        order = codes.argsort()
        return codes[order], order

    def ids(self, text: str, where: str = "text") -> Tensor:
        """(characters,) int64 ids.

        Raises:
            UserError: characters that training has not; each once.
        """
        if not text:
            return torch.zeros(0, dtype=torch.int64)
        codes = torch.frombuffer(bytearray(text.encode("utf-32-le")), dtype=torch.int32).long()
        known, order = self._places
        found = torch.searchsorted(known, codes).clamp(max=len(known) - 1)
        if not torch.equal(known[found], codes):
            raise UserError(self.problems(text, where))
        return order[found]

    def text(self, ids: Sequence[int]) -> str:
        """The characters of some ids."""
        return "".join(self.symbols[number] for number in ids)

    def problems(self, text: str, where: str) -> list[str]:
        """A message for every character that training has not."""
        unknown = sorted(set(text) - set(self.symbols))
        known = "".join(self.symbols[:100]) + ("..." if len(self.symbols) > 100 else "")
        return [f"{where}: character {symbol!r} was never seen in training; known are {known!r}" for symbol in unknown]

    def describe(self) -> dict[str, Any]:
        """What is saved with a model, as JSON types."""
        return {"kind": "text", "symbols": list(self.symbols), "length": self.length}

    @classmethod
    def from_description(cls, description: Mapping[str, Any]) -> TextCoder:
        """The coder that ``describe`` told of.

        Raises:
            UserError: the description is of something else, or incomplete.
        """
        check_description(description, "text", {"symbols": list, "length": int})
        return cls(tuple(description["symbols"]), description["length"])
