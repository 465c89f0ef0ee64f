"""Symbols and their ids."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

from freerun.brief import brief
from freerun.data.ragged import before_end
from freerun.errors import UserError

__all__ = ["END", "PADDING", "Symbols", "Vocabulary"]

Symbols = tuple[str, ...]

END = "</s>"
PADDING = "<pad>"


@dataclass(frozen=True)
class Vocabulary:
    """Symbols and their ids: id 0 is ``first`` (end symbol or padding), then the symbols in order.

    Args:
        symbols: distinct, without ``first``.
        first: what id 0 stands for.

    Raises:
        UserError: there are no symbols, one stands twice, or one of them is ``first``.

    >>> v = Vocabulary.of([("b", "a"), ("a",)], first="</s>")
    >>> len(v), v.ids(("a", "b")), v.symbols_of([1, 2, 0, 0])
    (3, [1, 2], ('a', 'b'))
    """

    __repr__ = brief

    symbols: Symbols
    first: str

    def __post_init__(self) -> None:
        problems: list[str] = []
        if not self.symbols:
            problems.append("a vocabulary needs at least one symbol; got none")
        if len(set(self.symbols)) != len(self.symbols):
            twice = sorted({symbol for symbol in self.symbols if self.symbols.count(symbol) > 1})
            problems.append(f"a vocabulary's symbols must differ; these stand twice: {', '.join(twice)}")
        if self.first in self.symbols:
            problems.append(f"{self.first!r} is what id 0 stands for and cannot be a symbol of the data too")
        if problems:
            raise UserError(problems)

    @classmethod
    def of(cls, sequences: Iterable[Sequence[str]], first: str) -> Vocabulary:
        """The vocabulary of some sequences, sorted, so that it does not depend on their order."""
        return cls(tuple(sorted({symbol for sequence in sequences for symbol in sequence})), first)

    def __len__(self) -> int:
        return len(self.symbols) + 1

    def __contains__(self, symbol: object) -> bool:
        return symbol in self._index

    @cached_property
    def _index(self) -> dict[str, int]:
        return {symbol: number for number, symbol in enumerate(self.symbols, start=1)}

    def unknown(self, sequence: Sequence[str]) -> list[str]:
        """The symbols of a sequence that have no id, in order, each once."""
        return list(dict.fromkeys(symbol for symbol in sequence if symbol not in self._index))

    def ids(self, sequence: Sequence[str], where: str = "") -> list[int]:
        """The ids of a sequence, without end or padding.

        Args:
            sequence: symbols.
            where: "file:line" or another place to name in the error.

        Raises:
            UserError: a symbol has no id.

        >>> Vocabulary(("a", "b"), "</s>").ids("ax", where="words.txt:3")
        Traceback (most recent call last):
        freerun.errors.UserError: words.txt:3: symbol 'x' was never seen in training; known are a b
        """
        index = self._index
        try:
            return [index[symbol] for symbol in sequence]
        except KeyError:
            raise UserError(self._unknown_message(sequence, where)) from None

    def _unknown_message(self, sequence: Sequence[str], where: str) -> str:
        unknown = self.unknown(sequence)
        known = " ".join(self.symbols[:60]) + (" ..." if len(self.symbols) > 60 else "")
        named = ", ".join(repr(symbol) for symbol in unknown[:10])
        text = f"symbol{'s' if len(unknown) > 1 else ''} {named} {'were' if len(unknown) > 1 else 'was'}"
        return f"{where + ': ' if where else ''}{text} never seen in training; known are {known}"

    def symbols_of(self, ids: Sequence[int]) -> Symbols:
        """The symbols of ids, up to the first 0.

        Raises:
            UserError: an id is negative or beyond the last symbol.
        """
        numbers = before_end(ids, len(self.symbols))
        return tuple(self.symbols[number - 1] for number in numbers)
