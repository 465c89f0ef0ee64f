"""Sentences and translations as batches of subword ids: padding, splits, fingerprint."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from freerun.brief import brief
from freerun.data.parallel_files import SPLITS, Sentences
from freerun.data.ragged import Ragged, padded, source_and_target, told
from freerun.data.subwords import Subwords
from freerun.data.text import check_description, counted
from freerun.errors import UserError
from freerun.types import Batch

__all__ = ["ParallelCoder", "ParallelData"]


@dataclass(frozen=True)
class ParallelCoder:
    """What a trained model needs of its data: the subwords of both languages, and the longest target seen.

    In a source id 0 is padding; in a target it is the end symbol, and padding is filled with 0 and masked out.

    Args:
        subwords: one encoding for both sides.
        longest: subwords of the longest training target, without the end symbol.

    >>> coder = ParallelCoder(Subwords.trained(["a man", "ein mann"] * 2, 265), longest=3)
    >>> batch = coder.pair_batch(["a man", "man"], ["ein mann", "mann"])
    >>> batch.targets[1, -1], coder.text(batch.targets[0].tolist())
    (tensor(0), 'ein mann')
    >>> ParallelCoder.from_description(coder.describe()) == coder
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
        return Batch(ids, ids, mask, self._context(sources), eligible=told(mask))

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
    def from_description(cls, description: Mapping[str, Any]) -> ParallelCoder:
        """The coder that ``describe`` told of.

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
    def coder(self) -> ParallelCoder:
        """The subwords and the longest target: what a model keeps of its data."""
        return ParallelCoder(self.subwords, max(self.lengths) - 1)

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
