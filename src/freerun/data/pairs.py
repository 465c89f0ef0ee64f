"""Sentences and translations as batches of subword ids: padding, splits, fingerprint."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor

from freerun.arguments import brief
from freerun.batch import Batch
from freerun.data.files import (
    SPLITS,
    check_description,
    counted,
)
from freerun.data.tokenisers import END, PADDING, Subwords, Symbols, Vocabulary
from freerun.errors import UserError


class Ragged:
    """Sequences of ids, held flat; a batch of them is one gather.

    Args:
        sequences: lists of ids, none of them empty.

    >>> ids, mask = Ragged([[5, 6, 7], [8]]).padded(torch.tensor([1, 0]))
    >>> ids.tolist(), mask.sum(1).tolist()
    ([[8, 0, 0], [5, 6, 7]], [1, 3])
    """

    __repr__ = brief

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


def fed_entries(mask: Tensor) -> Tensor:
    """(batch, time) bool: history entries that a position which counts is told; a row's last is told to none.

    >>> fed_entries(torch.tensor([[True, True, False]])).tolist()
    [[True, False, False]]
    """
    return torch.cat([mask[:, 1:], torch.zeros_like(mask[:, :1])], 1)


def source_and_target(sources: Ragged, targets: Ragged, indices: Sequence[int] | Tensor, rows: Tensor | None) -> Batch:
    """The training batch of some pairs; targets hold their end symbol, whose entry no position is told.

    Args:
        sources: of all pairs.
        targets: of all pairs.
        indices: numbers of the pairs asked for.
        rows: (batch,) int64: their numbers in the optimizer step's global batch.
    """
    chosen = torch.as_tensor(indices, dtype=torch.int64)
    source, source_mask = sources.padded(chosen)
    ids, mask = targets.padded(chosen)
    return Batch(ids, ids, mask, {"source": source, "source_mask": source_mask}, eligible=fed_entries(mask), rows=rows)


@dataclass(frozen=True)
class PairCodec:
    """What a trained model needs of its data: the vocabularies and the longest target seen.

    Args:
        source_vocab: id 0 is padding.
        target_vocab: id 0 is the end symbol; padding is filled with 0 and masked out.
        longest: symbols of the longest training target, without the end symbol.

    >>> codec = PairCodec(Vocabulary(("a", "b"), "<pad>"), Vocabulary(("A", "B"), "</s>"), longest=4)
    >>> codec.pair_batch(["ab", "b"], [("A", "B"), ("B",)]).targets
    tensor([[1, 2, 0],
            [2, 0, 0]])
    >>> PairCodec.from_description(codec.describe()) == codec
    True
    """

    __repr__ = brief

    source_vocab: Vocabulary
    target_vocab: Vocabulary
    longest: int

    def source_batch(self, sources: Sequence[Sequence[str]], length: int = 1) -> Batch:
        """A batch for generation: sources, and blank targets of ``length`` positions.

        Raises:
            UserError: symbols of a source were never seen in training; every such source.
        """
        ids, mask = padded(self._source_ids(sources))
        blank = torch.zeros(len(sources), length, dtype=torch.int64)
        context = {"source": ids, "source_mask": mask}
        return Batch(blank, blank, torch.ones_like(blank, dtype=torch.bool), context)

    def pair_batch(self, sources: Sequence[Sequence[str]], targets: Sequence[Sequence[str]]) -> Batch:
        """A batch of sources with one target each, end symbol included.

        Raises:
            UserError: symbols were never seen in training; every such source or target.
        """
        problems: list[str] = []
        encoded: list[list[int]] = []
        for source, target in zip(sources, targets, strict=True):
            try:
                encoded.append([*self.target_vocab.ids(target, where=f"target of {''.join(source)!r}"), 0])
            except UserError as error:
                problems += error.problems
        if problems:
            raise UserError(problems)
        ids, mask = padded(self._source_ids(sources))
        targets_ids, targets_mask = padded(encoded)
        context = {"source": ids, "source_mask": mask}
        return Batch(targets_ids, targets_ids, targets_mask, context, eligible=fed_entries(targets_mask))

    def _source_ids(self, sources: Sequence[Sequence[str]]) -> list[list[int]]:
        problems: list[str] = []
        encoded: list[list[int]] = []
        for source in sources:
            if not source:
                problems.append("a source is empty; expected at least one symbol")
                continue
            try:
                encoded.append(self.source_vocab.ids(source, where=repr("".join(source))))
            except UserError as error:
                problems += error.problems
        if problems:
            raise UserError(problems)
        return encoded

    def describe(self) -> dict[str, Any]:
        """What is saved with a model, as JSON types."""
        return {
            "kind": "pairs",
            "source_symbols": list(self.source_vocab.symbols),
            "target_symbols": list(self.target_vocab.symbols),
            "longest": self.longest,
        }

    @classmethod
    def from_description(cls, description: Mapping[str, Any]) -> PairCodec:
        """The codec that ``describe`` told of.

        Raises:
            UserError: the description is of something else, or incomplete.
        """
        check_description(description, "pairs", {"source_symbols": list, "target_symbols": list, "longest": int})
        source = Vocabulary(tuple(description["source_symbols"]), PADDING)
        target = Vocabulary(tuple(description["target_symbols"]), END)
        return cls(source, target, description["longest"])


@dataclass(frozen=True, eq=False)
class PairData:
    """Training, dev and test pairs, their vocabularies, and training batches by index.

    Args:
        splits: "train", "dev" and "test"; the vocabularies are those of "train".
        name: what the data are called in the header.
        dropped: for each split what was dropped from it, in words.

    Raises:
        UserError: a split is missing or empty, or dev or test hold symbols never seen in training.

    >>> pairs = Pairs([("a", "b")], [[("A", "B"), ("B",)]], "here")
    >>> data = PairData({"train": pairs, "dev": pairs, "test": pairs})
    >>> data.lengths, data.batch([1], torch.tensor([0])).targets.tolist()
    ([3, 2], [[2, 0]])
    """

    __repr__ = brief

    splits: Mapping[str, Pairs]
    name: str = "pairs"
    dropped: Mapping[str, Sequence[str]] = field(default_factory=dict[str, Sequence[str]])

    def __post_init__(self) -> None:
        wrong = [split for split in ("train", "dev", "test") if not self.splits.get(split)]
        if wrong:
            raise UserError(f"splits train, dev and test must each hold a word; empty: {', '.join(wrong)}")
        problems: list[str] = []
        for split in ("dev", "test"):
            for source, target in self.splits[split].flat():
                problems += [f"{split}: source symbol {s!r} unseen" for s in self.source_vocab.unknown(source)]
                problems += [f"{split}: target symbol {s!r} unseen" for s in self.target_vocab.unknown(target)]
        if problems:
            raise UserError([f"{text} in training" for text in dict.fromkeys(problems)])

    @cached_property
    def source_vocab(self) -> Vocabulary:
        """The symbols of the training sources; id 0 is padding."""
        return Vocabulary.of(self.splits["train"].sources, PADDING)

    @cached_property
    def target_vocab(self) -> Vocabulary:
        """The symbols of the training targets; id 0 is the end symbol."""
        return Vocabulary.of((target for _, target in self.splits["train"].flat()), END)

    @cached_property
    def codec(self) -> PairCodec:
        """The vocabularies and the longest target: what a model keeps of its data."""
        return PairCodec(self.source_vocab, self.target_vocab, max(self.lengths) - 1)

    @cached_property
    def examples(self) -> list[tuple[list[int], list[int]]]:
        """(source ids, target ids) of every training pair, without end symbols."""
        source, target = self.source_vocab, self.target_vocab
        return [(source.ids(s), target.ids(t)) for s, t in self.splits["train"].flat()]

    @cached_property
    def _ragged(self) -> tuple[Ragged, Ragged]:
        sources = Ragged([source for source, _ in self.examples])
        return sources, Ragged([[*target, 0] for _, target in self.examples])

    @cached_property
    def lengths(self) -> list[int]:
        """Target length of every training pair, end symbol included."""
        return [len(target) + 1 for _, target in self.examples]

    def batch(self, indices: Sequence[int] | Tensor, rows: Tensor | None = None) -> Batch:
        """A training batch.

        Args:
            indices: numbers of training pairs.
            rows: (batch,) int64: their numbers in the optimizer step's global batch.
        """
        return source_and_target(*self._ragged, indices, rows)

    def evaluation(self, split: str, words: int | None = None) -> Pairs:
        """The words of a split with all references; with ``words`` a fixed, evenly spread subset.

        Raises:
            UserError: there is no such split, or words is below 1.
        """
        if split not in self.splits:
            raise UserError(f"split must be one of {', '.join(self.splits)}; got {split!r}")
        if words is not None and words < 1:
            raise UserError(f"words must be at least 1, or None for all; got {words}")
        return self.splits[split].spread(words)

    def source_batch(self, sources: Sequence[Sequence[str]], length: int = 1) -> Batch:
        """A batch for generation; see ``PairCoder.source_batch``."""
        return self.codec.source_batch(sources, length)

    def reference_batch(self, pairs: Pairs) -> Batch:
        """A batch of words, each with its first reference."""
        return self.codec.pair_batch(pairs.sources, [references[0] for references in pairs.references])

    @cached_property
    def fingerprint(self) -> str:
        """First 8 hexadecimal digits of the SHA-256 of every split's pairs in order."""
        digest = hashlib.sha256()
        for split in ("train", "dev", "test"):
            lines = ("".join(s) + "\t" + " ".join(t) for s, t in self.splits[split].flat())
            digest.update(f"{split}\n{chr(10).join(lines)}\n".encode())
        return digest.hexdigest()[:8]

    def header(self) -> list[str]:
        """Lines that say what the data are: counts, what was dropped, vocabularies, fingerprint."""
        lines = [f"data: {self.name}, fingerprint {self.fingerprint}"]
        for split in ("train", "dev", "test"):
            pairs = self.splits[split]
            dropped = "; ".join(self.dropped.get(split, ()))
            unit = "pair" if split == "train" else "reference"
            counts = f"{split}: {counted(len(pairs), 'word')}, {counted(pairs.count, unit)}"
            lines.append(counts + (f" (dropped: {dropped})" if dropped else ""))
        lines.append(
            f"symbols: {len(self.source_vocab) - 1} source + padding, "
            f"{len(self.target_vocab) - 1} target + end; longest training target {max(self.lengths) - 1}"
        )
        return lines


@dataclass(frozen=True)
class ParallelCodec:
    """What a trained model needs of its data: the subwords of both languages, and the longest target seen.

    In a source id 0 is padding; in a target it is the end symbol, and padding is filled with 0 and masked out.

    Args:
        subwords: one encoding for both sides.
        longest: subwords of the longest training target, without the end symbol.

    >>> codec = ParallelCodec(Subwords.trained(["a man", "ein mann"] * 2, 265), longest=3)
    >>> batch = codec.pair_batch(["a man", "man"], ["ein mann", "mann"])
    >>> batch.targets[1, -1], codec.text(batch.targets[0].tolist())
    (tensor(0), 'ein mann')
    >>> ParallelCodec.from_description(codec.describe()) == codec
    True
    """

    __repr__ = brief

    subwords: Subwords
    longest: int

    @property
    def sizes(self) -> tuple[int, int]:
        """Number of source and of target ids."""
        return len(self.subwords), len(self.subwords)

    def text(self, ids: Sequence[int]) -> str:
        """The words of target ids, up to the end symbol."""
        return self.subwords.decode(ids)

    def source_batch(self, sources: Sequence[str], length: int = 1) -> Batch:
        """A batch for generation: sources, and blank targets of ``length`` positions.

        Raises:
            UserError: a source is empty.
        """
        blank = torch.zeros(len(sources), length, dtype=torch.int64)
        return Batch(blank, blank, torch.ones_like(blank, dtype=torch.bool), self._context(sources))

    def pair_batch(self, sources: Sequence[str], targets: Sequence[str]) -> Batch:
        """A batch of sources with one target each, end symbol included.

        Raises:
            UserError: a source is empty.
        """
        ids, mask = padded([[*target, 0] for target in self.subwords.encode(targets)])
        return Batch(ids, ids, mask, self._context(sources), eligible=fed_entries(mask))

    def _context(self, sources: Sequence[str]) -> dict[str, Tensor]:
        encoded = self.subwords.encode(sources)
        if not all(encoded):
            raise UserError(f"source {encoded.index([]) + 1} is empty; expected at least one word")
        ids, mask = padded(encoded)
        return {"source": ids, "source_mask": mask}

    def describe(self) -> dict[str, Any]:
        """What is saved with a model, as JSON types."""
        return {"kind": "parallel", "merges": self.subwords.describe(), "longest": self.longest}

    @classmethod
    def from_description(cls, description: Mapping[str, Any]) -> ParallelCodec:
        """The codec that ``describe`` told of.

        Raises:
            UserError: the description is of something else, or incomplete.
        """
        check_description(description, "parallel", {"merges": list, "longest": int})
        return cls(Subwords.from_description(description["merges"]), description["longest"])


@dataclass(frozen=True, eq=False)
class ParallelData:
    """Training, dev and test sentences, their subwords, and training batches by index.

    Args:
        splits: "train", "dev" and "test".
        subwords: of both languages.
        name: what the data are called in the header.
        dropped: for each split what was dropped from it, in words.

    Raises:
        UserError: a split is missing or empty.

    >>> same = Sentences(["a b", "c"], ["d", "e f"], "here")
    >>> data = ParallelData({"train": same, "dev": same, "test": same}, Subwords(()))
    >>> data.lengths, data.batch([1], torch.tensor([0])).targets.shape
    ([3, 5], torch.Size([1, 5]))
    """

    __repr__ = brief

    splits: Mapping[str, Sentences]
    subwords: Subwords
    name: str = "parallel text"
    dropped: Mapping[str, Sequence[str]] = field(default_factory=dict[str, Sequence[str]])

    def __post_init__(self) -> None:
        wrong = [split for split in SPLITS if not self.splits.get(split)]
        if wrong:
            raise UserError(f"splits train, dev and test must each hold a sentence; empty: {', '.join(wrong)}")

    @cached_property
    def codec(self) -> ParallelCodec:
        """The subwords and the longest target: what a model keeps of its data."""
        return ParallelCodec(self.subwords, max(self.lengths) - 1)

    @cached_property
    def _ragged(self) -> tuple[Ragged, Ragged]:
        train = self.splits["train"]
        targets = [[*target, 0] for target in self.subwords.encode(train.targets)]
        return Ragged(self.subwords.encode(train.sources)), Ragged(targets)

    @cached_property
    def lengths(self) -> list[int]:
        """Target length of every training pair in subwords, end symbol included."""
        return self._ragged[1].lengths.tolist()

    @cached_property
    def longest_sides(self) -> tuple[int, int]:
        """Subwords of the longest source and of the longest target of any split, without the end symbol."""
        others = [self.splits[split] for split in SPLITS if split != "train"]
        sources = [len(ids) for each in others for ids in self.subwords.encode(each.sources)]
        targets = [len(ids) for each in others for ids in self.subwords.encode(each.targets)]
        source, target = (int(ragged.lengths.max()) for ragged in self._ragged)
        return max(source, *sources), max(target - 1, *targets)

    @property
    def frequencies(self) -> tuple[float, ...]:
        """How often each target id stands in the training targets; the end symbol once in each."""
        return tuple(torch.bincount(self._ragged[1].values, minlength=len(self.subwords)).double().tolist())

    def batch(self, indices: Sequence[int] | Tensor, rows: Tensor | None = None) -> Batch:
        """A training batch.

        Args:
            indices: numbers of training pairs.
            rows: (batch,) int64: their numbers in the optimizer step's global batch.
        """
        return source_and_target(*self._ragged, indices, rows)

    def evaluation(self, split: str, sentences: int | None = None) -> Sentences:
        """The sentences of a split; with ``sentences`` a fixed, evenly spread subset.

        Raises:
            UserError: there is no such split, or sentences is below 1.
        """
        if split not in self.splits:
            raise UserError(f"split must be one of {', '.join(self.splits)}; got {split!r}")
        if sentences is not None and sentences < 1:
            raise UserError(f"sentences must be at least 1, or None for all; got {sentences}")
        return self.splits[split].spread(sentences)

    @cached_property
    def fingerprint(self) -> str:
        """First 8 hexadecimal digits of the SHA-256 of every split's sentences in order, and of the merges."""
        digest = hashlib.sha256("\n".join(self.subwords.describe()).encode())
        for split in SPLITS:
            pairs = zip(self.splits[split].sources, self.splits[split].targets, strict=True)
            digest.update(
                f"{split}\n{chr(10).join(f'{source}{chr(9)}{target}' for source, target in pairs)}\n".encode()
            )
        return digest.hexdigest()[:8]

    def header(self) -> list[str]:
        """Lines that say what the data are: counts, what was dropped, overlap, subwords, fingerprint."""
        lines = [f"data: {self.name}, fingerprint {self.fingerprint}"]
        seen = set(self.splits["train"].sources)
        for split in SPLITS:
            sentences = self.splits[split]
            notes = [f"dropped: {text}" for text in self.dropped.get(split, ())]
            known = 0 if split == "train" else sum(source in seen for source in sentences.sources)
            notes += [f"{counted(known, 'source')} also in train, kept"] if known else []
            repeated = sum(count - 1 for count in Counter(sentences.sources).values()) if split == "train" else 0
            notes += [f"{counted(repeated, 'source')} repeating an earlier one, kept"] if repeated else []
            lines.append(
                f"{split}: {counted(len(sentences), 'sentence')}" + (f" ({'; '.join(notes)})" if notes else "")
            )
        return [*lines, self._subword_line()]

    def _subword_line(self) -> str:
        train = self.splits["train"]
        a_word = [
            ragged.lengths.sum().item() / sum(len(text.split()) for text in texts)
            for ragged, texts in zip(self._ragged, (train.sources, train.targets), strict=True)
        ]
        return (
            f"subwords: {len(self.subwords):,} ids for both sides, {a_word[0]:.2f} a source word, "
            f"{a_word[1]:.2f} a target word with its share of ends; longest training target {max(self.lengths) - 1}"
        )


class Row(NamedTuple):
    """One line of a file: its number, the word's characters, the symbols."""

    line: int
    source: Symbols
    target: Symbols


@dataclass(frozen=True)
class Pairs:
    """Words and their references, one entry a distinct word.

    Args:
        sources: the words, each a tuple of symbols (characters).
        references: for each word all its distinct target sequences, in the order of the file.
        origin: where they come from.

    >>> pairs = Pairs.of([Row(1, ("a",), ("AH",)), Row(2, ("a",), ("EY",))], "here")
    >>> len(pairs), pairs.references
    (1, [[('AH',), ('EY',)]])
    """

    __repr__ = brief

    sources: list[Symbols]
    references: list[list[Symbols]]
    origin: str

    @classmethod
    def of(cls, rows: Sequence[Row], origin: str) -> Pairs:
        """Rows grouped by word; a repeated reference counts once."""
        grouped: dict[Symbols, dict[Symbols, None]] = {}
        for row in rows:
            grouped.setdefault(row.source, {})[row.target] = None
        return cls(list(grouped), [list(targets) for targets in grouped.values()], origin)

    def __len__(self) -> int:
        return len(self.sources)

    @property
    def count(self) -> int:
        """Number of (word, reference) pairs."""
        return sum(len(references) for references in self.references)

    def flat(self) -> Iterator[tuple[Symbols, Symbols]]:
        """Every (word, reference) pair."""
        for source, references in zip(self.sources, self.references, strict=True):
            for reference in references:
                yield source, reference

    def spread(self, words: int | None) -> Pairs:
        """A fixed subset of ``words`` words spread evenly over the list; all of them for None."""
        if words is None or words >= len(self):
            return self
        chosen = [number * len(self) // words for number in range(words)]
        return Pairs(
            [self.sources[i] for i in chosen],
            [self.references[i] for i in chosen],
            f"{self.origin}, {words} words",
        )


@dataclass(frozen=True)
class Sentences:
    """Sentences and their translations; words are separated by single blanks.

    Args:
        sources: what is translated.
        targets: one translation of each.
        origin: where they come from.

    >>> len(Sentences(["a man ."], ["ein mann ."], "here"))
    1
    """

    __repr__ = brief

    sources: list[str]
    targets: list[str]
    origin: str

    def __len__(self) -> int:
        return len(self.sources)

    def spread(self, number: int | None) -> Sentences:
        """A fixed subset of ``number`` sentences spread evenly over the list; all of them for None."""
        if number is None or number >= len(self):
            return self
        chosen = [i * len(self) // number for i in range(number)]
        origin = f"{self.origin}, {number} sentences"
        return Sentences([self.sources[i] for i in chosen], [self.targets[i] for i in chosen], origin)
