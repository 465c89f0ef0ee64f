"""Tokenisers of pairs: a vocabulary for each side, or subwords of both sides by byte-pair encoding."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

from freerun.arguments import brief
from freerun.errors import UserError, needing, refuse

Symbols = tuple[str, ...]
END, PADDING = "</s>", "<pad>"
_BYTES = 256


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
        refuse(problems)

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
            where: "file:line" or what else the error names.

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
            unknown = self.unknown(sequence)
        several = len(unknown) > 1
        known = " ".join(self.symbols[:60]) + (" ..." if len(self.symbols) > 60 else "")
        text = f"symbol{'s' if several else ''} {', '.join(map(repr, unknown[:10]))} {'were' if several else 'was'}"
        raise UserError(f"{where + ': ' if where else ''}{text} never seen in training; known are {known}")

    def symbols_of(self, ids: Sequence[int]) -> Symbols:
        """Return the symbols of ids, up to the first 0; raise UserError for ids that there are not."""
        numbers = before_end(ids, len(self.symbols))
        return tuple(self.symbols[number - 1] for number in numbers)


@dataclass(frozen=True)
class Vocabularies:
    """A vocabulary for each side of pairs: a source is read by its characters, a target is a sequence of symbols.

    Args:
        source: id 0 is padding.
        target: id 0 is the end symbol.

    >>> both = Vocabularies.of([("ab", ("A", "B"))])
    >>> both.encode_sources(["ba"]), both.decode([2, 1, 0]), both.sizes
    ([[2, 1]], ('B', 'A'), (3, 3))
    """

    kind: ClassVar[str] = "pairs"
    item: ClassVar[str] = "word"
    saved: ClassVar[tuple[str, ...]] = ("source_symbols", "target_symbols")
    __repr__ = brief

    source: Vocabulary
    target: Vocabulary

    @classmethod
    def of(cls, pairs: Iterable[tuple[Sequence[str], Sequence[str]]]) -> Vocabularies:
        """The symbols of some (source, target) pairs."""
        sides = list(zip(*pairs, strict=True)) or [(), ()]
        return cls(Vocabulary.of(sides[0], PADDING), Vocabulary.of(sides[1], END))

    @property
    def sizes(self) -> tuple[int, int]:
        """Number of source and of target ids."""
        return len(self.source), len(self.target)

    def lengths(self, texts: Sequence[Sequence[str]]) -> list[int]:
        """Ids of each source or target, without an end."""
        return [len(text) for text in texts]

    def encode_sources(self, sources: Sequence[Sequence[str]]) -> list[list[int]]:
        """Return the ids of each source; raise UserError for every source that is empty or has other symbols."""
        return _ids(self.source, sources, [repr("".join(source)) for source in sources], empty=False)

    def encode_targets(self, targets: Sequence[Sequence[str]], sources: Sequence[Sequence[str]]) -> list[list[int]]:
        """Return the ids of each target, without an end; raise UserError, by source, for other symbols."""
        return _ids(self.target, targets, [f"target of {''.join(source)!r}" for source in sources], empty=True)

    def decode(self, ids: Sequence[int]) -> Symbols:
        """The symbols of target ids, up to the first 0."""
        return self.target.symbols_of(ids)

    def unseen(self, pairs: Iterable[tuple[Sequence[str], Sequence[str]]]) -> list[str]:
        """Return a message for every symbol of some pairs that has no id."""
        messages = [
            f"{side} symbol {symbol!r} unseen in training"
            for source, target in pairs
            for side, vocabulary, text in (("source", self.source, source), ("target", self.target, target))
            for symbol in vocabulary.unknown(text)
        ]
        return list(dict.fromkeys(messages))

    def describe(self) -> dict[str, Any]:
        """Return what is saved with a model, as JSON types."""
        return {"source_symbols": list(self.source.symbols), "target_symbols": list(self.target.symbols)}

    @classmethod
    def from_description(cls, description: Mapping[str, Any]) -> Vocabularies:
        """The inverse of ``describe``."""
        source, target = (tuple(description[f"{side}_symbols"]) for side in ("source", "target"))
        return cls(Vocabulary(source, PADDING), Vocabulary(target, END))


def _ids(
    vocabulary: Vocabulary, texts: Sequence[Sequence[str]], names: Sequence[str], *, empty: bool
) -> list[list[int]]:
    problems: list[str] = []
    encoded: list[list[int]] = []
    for number, (text, name) in enumerate(zip(texts, names, strict=True), start=1):
        if not text and not empty:
            problems.append(f"source {number} is empty; expected at least one symbol")
            continue
        try:
            encoded.append(vocabulary.ids(text, where=name))
        except UserError as error:
            problems += error.problems
    refuse(problems)
    return encoded


@dataclass(frozen=True)
class Subwords:
    """A byte-level byte-pair encoding of text whose words are separated by blanks.

    Every word is the bytes of a blank and of itself, in UTF-8, merged pair by pair in the order of ``merges`` (Sennrich
    et al. 2016, arXiv:1508.07909; on bytes: Radford et al. 2019). So nothing is ever unknown, and ``decode`` of
    ``encode`` gives the words back exactly. Id 0 is left free (end symbol or padding); ids 1 to 256 are the bytes,
    the others merges. Which blanks stood between words is not kept.

    Args:
        merges: pairs of symbols, the first merged first; a byte is written as one printable character.

    Raises:
        UserError: a merge joins symbols that there are not; the package tokenizers is not installed.

    >>> subwords = Subwords.trained(["low lower lowest", "new newer newest"], size=300)
    >>> [len(ids) for ids in subwords.encode(["low lower", "größer"])]
    [4, 9]
    >>> subwords.decode(subwords.encode(["größer als  low"])[0])
    'größer als low'
    """

    kind: ClassVar[str] = "parallel"
    item: ClassVar[str] = "sentence"
    saved: ClassVar[tuple[str, ...]] = ("merges",)
    __repr__ = brief

    merges: tuple[tuple[str, str], ...]

    def __post_init__(self) -> None:
        known = set(_alphabet())
        for left, right in self.merges:
            if left not in known or right not in known:
                raise UserError(f"merges must join bytes or what was merged before; got {left!r} and {right!r}")
            known.add(left + right)

    @classmethod
    def trained(cls, lines: Iterable[str], size: int) -> Subwords:
        """The merges of the most frequent pairs of some text; the same text gives the same merges.

        Args:
            lines: the text.
            size: ids in all, id 0 included; fewer where the text has no further pair that stands twice.

        Raises:
            UserError: the size leaves no merge; the package tokenizers is not installed.
        """
        if size <= _BYTES + 1:
            raise UserError(
                f"subwords must be above {_BYTES + 1}: 256 bytes, the end symbol and some merges; got {size}"
            )
        library = _library()
        tokenizer = library.Tokenizer(library.models.BPE())
        tokenizer.pre_tokenizer = _words(library)
        trainer = library.trainers.BpeTrainer(
            vocab_size=size - 1, min_frequency=2, initial_alphabet=_alphabet(), show_progress=False
        )
        tokenizer.train_from_iterator((_spaced(line) for line in lines), trainer)
        return cls(tuple((left, right) for left, right in json.loads(tokenizer.to_str())["model"]["merges"]))

    @cached_property
    def symbols(self) -> tuple[str, ...]:
        """The symbol of each id from 1 on."""
        return tuple(dict.fromkeys([*_alphabet(), *(left + right for left, right in self.merges)]))

    def __len__(self) -> int:
        return len(self.symbols) + 1

    @cached_property
    def _tokenizer(self) -> Any:
        library = _library()
        numbers = {symbol: number for number, symbol in enumerate(self.symbols, start=1)}
        tokenizer = library.Tokenizer(library.models.BPE(vocab=numbers, merges=list(self.merges)))
        tokenizer.pre_tokenizer = _words(library)
        return tokenizer

    def encode(self, lines: Sequence[str]) -> list[list[int]]:
        """The ids of each line, without an end; [] for a blank one."""
        texts = [_spaced(line) for line in lines]
        return [each.ids for each in self._tokenizer.encode_batch_fast(texts, add_special_tokens=False)]

    @property
    def sizes(self) -> tuple[int, int]:
        """Number of source and of target ids."""
        return len(self), len(self)

    def lengths(self, texts: Sequence[str]) -> list[int]:
        """Ids of each text, without an end."""
        return [len(ids) for ids in self.encode(texts)]

    def encode_sources(self, sources: Sequence[str]) -> list[list[int]]:
        """Return the ids of each source; raise UserError if one is blank."""
        encoded = self.encode(sources)
        if not all(encoded):
            raise UserError(f"source {encoded.index([]) + 1} is empty; expected at least one word")
        return encoded

    def encode_targets(self, targets: Sequence[str], sources: Sequence[str]) -> list[list[int]]:
        """Ids of each target, without an end."""
        return self.encode(targets)

    def unseen(self, pairs: Iterable[tuple[str, str]]) -> list[str]:
        """Nothing: bytes spell every text."""
        return []

    def decode(self, ids: Sequence[int]) -> str:
        """The words of ids up to the first 0, one blank between them.

        Bytes that are no UTF-8, which only a model outputs, become U+FFFD.

        Raises:
            UserError: an id is negative or beyond the last symbol.
        """
        numbers = before_end(ids, len(self.symbols))
        text: str = _library().decoders.ByteLevel().decode([self.symbols[number - 1] for number in numbers])
        return " ".join(text.split())

    def describe(self) -> dict[str, Any]:
        """Return what is saved with a model, as JSON types: the merges, one "left right" each."""
        return {"merges": [f"{left} {right}" for left, right in self.merges]}

    @classmethod
    def from_description(cls, description: Mapping[str, Any]) -> Subwords:
        """Return the subwords of a description; raise UserError if a merge is no pair."""
        merges: list[tuple[str, str]] = []
        for merge in description["merges"]:
            left, blank, right = merge.partition(" ")
            if not blank or " " in right:
                raise UserError(f'a merge must be two symbols with a space between them; got "{merge}"')
            merges.append((left, right))
        return cls(tuple(merges))


def _spaced(line: str) -> str:
    # the blank before a word is part of it: so a subword tells whether it begins a word
    return "".join(f" {word}" for word in line.split())


def _words(library: Any) -> Any:
    split = library.pre_tokenizers.Split(" ", "merged_with_next")
    return library.pre_tokenizers.Sequence(
        [split, library.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )


def _alphabet() -> list[str]:
    return sorted(_library().pre_tokenizers.ByteLevel.alphabet())


def _library() -> Any:
    with needing("translate", "a subword vocabulary"):
        import tokenizers
    return tokenizers


def before_end(ids: Sequence[int], symbols: int) -> list[int]:
    """Return ids up to the first 0, the end symbol; raise UserError for ids beyond so many ``symbols``."""
    numbers = list(ids)
    numbers = numbers[: numbers.index(0)] if 0 in numbers else numbers
    wrong = [number for number in numbers if not 0 < number <= symbols]
    if wrong:
        raise UserError(f"ids must lie in [0, {symbols}]; got {wrong[0]}")
    return numbers
