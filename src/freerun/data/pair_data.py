"""Pairs of sequences as batches: ids, padding, splits, fingerprint."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from freerun.brief import brief
from freerun.data.pairs import Pairs
from freerun.data.ragged import Ragged, padded, source_and_target, told
from freerun.data.text import check_description, counted
from freerun.data.vocabulary import END, PADDING, Vocabulary
from freerun.errors import UserError
from freerun.types import Batch

__all__ = ["PairCoder", "PairData"]


@dataclass(frozen=True)
class PairCoder:
    """What a trained model needs of its data: the vocabularies and the longest target seen.

    Args:
        source_vocab: id 0 is padding.
        target_vocab: id 0 is the end symbol; padding is filled with 0 and masked out.
        longest: symbols of the longest training target, without the end symbol.

    >>> coder = PairCoder(Vocabulary(("a", "b"), "<pad>"), Vocabulary(("A", "B"), "</s>"), longest=4)
    >>> coder.pair_batch(["ab", "b"], [("A", "B"), ("B",)]).targets
    tensor([[1, 2, 0],
            [2, 0, 0]])
    >>> PairCoder.from_description(coder.describe()) == coder
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
        return Batch(targets_ids, targets_ids, targets_mask, context, eligible=told(targets_mask))

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
    def from_description(cls, description: Mapping[str, Any]) -> PairCoder:
        """The coder that ``describe`` told of.

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
    def coder(self) -> PairCoder:
        """The vocabularies and the longest target: what a model keeps of its data."""
        return PairCoder(self.source_vocab, self.target_vocab, max(self.lengths) - 1)

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
        return self.coder.source_batch(sources, length)

    def reference_batch(self, pairs: Pairs) -> Batch:
        """A batch of words, each with its first reference."""
        return self.coder.pair_batch(pairs.sources, [references[0] for references in pairs.references])

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
