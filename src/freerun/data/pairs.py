"""Pairs of source and target as batches of ids, for either tokeniser: padding, splits, fingerprint."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor

from freerun.arguments import brief
from freerun.batch import Batch
from freerun.data.files import SPLITS, check_description, counted, part_of
from freerun.data.tokenisers import Subwords, Vocabularies
from freerun.errors import UserError, refuse
from freerun.types import evenly

Tokeniser = Vocabularies | Subwords


class Ragged:
    """Sequences of ids, none empty, held flat; a batch of them is one gather."""

    __repr__ = brief

    def __init__(self, sequences: Sequence[Sequence[int]]) -> None:
        self.lengths = torch.tensor([len(sequence) for sequence in sequences], dtype=torch.int64)
        self.starts = self.lengths.cumsum(0) - self.lengths
        self.values = torch.tensor([number for sequence in sequences for number in sequence], dtype=torch.int64)

    def __len__(self) -> int:
        return self.lengths.numel()

    def padded(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """The sequences of ``indices`` ((n,) int64) as (n, time) ids padded with 0, and their mask."""
        lengths = self.lengths[indices]
        positions = torch.arange(int(lengths.max()))
        mask = positions < lengths[:, None]
        entries = (self.starts[indices, None] + positions).masked_fill_(~mask, 0)
        return self.values[entries].masked_fill_(~mask, 0), mask


def fed_entries(mask: Tensor) -> Tensor:
    """(batch, time) bool: history entries that are fed to a counted position; the last of a row is fed to none.

    >>> fed_entries(torch.tensor([[True, True, False]])).tolist()
    [[True, False, False]]
    """
    return torch.cat([mask[:, 1:], torch.zeros_like(mask[:, :1])], 1)


def _source_context(sources: Ragged, chosen: Tensor) -> dict[str, Tensor]:
    ids, mask = sources.padded(chosen)
    return {"source": ids, "source_mask": mask}


def _training_batch(sources: Ragged, targets: Ragged, chosen: Tensor, rows: Tensor | None = None) -> Batch:
    """The batch of some pairs; targets hold their end symbol, which is fed to no position."""
    ids, mask = targets.padded(chosen)
    return Batch(ids, ids, mask, _source_context(sources, chosen), eligible=fed_entries(mask), rows=rows)


@dataclass(frozen=True)
class PairCodec:
    """What a trained model needs of its data: the tokeniser, and the longest training target.

    In a source id 0 is padding; in a target it is the end symbol, and padding is filled with 0 and masked out.

    Args:
        tokeniser: ``Vocabularies`` of words and symbols, or ``Subwords`` of sentences.
        longest: ids of the longest training target, without the end symbol.

    >>> codec = PairCodec(Vocabularies.of([("ab", ("A", "B"))]), longest=4)
    >>> codec.pair_batch(["ab", "b"], [("A", "B"), ("B",)]).targets
    tensor([[1, 2, 0],
            [2, 0, 0]])
    >>> PairCodec.from_description(codec.describe()) == codec
    True
    """

    __repr__ = brief

    tokeniser: Tokeniser
    longest: int

    @property
    def sizes(self) -> tuple[int, int]:
        """Number of source and of target ids."""
        return self.tokeniser.sizes

    def decode(self, ids: Sequence[int]) -> Any:
        """The symbols, or the text of a sentence, of target ids up to the end symbol."""
        return self.tokeniser.decode(ids)

    def source_batch(self, sources: Sequence[Any], length: int = 1) -> Batch:
        """Return a batch for generation, with blank targets; raise UserError for sources empty or of other symbols."""
        blank = torch.zeros(len(sources), length, dtype=torch.int64)
        encoded = Ragged(self.tokeniser.encode_sources(sources))
        context = _source_context(encoded, torch.arange(len(sources)))
        return Batch(blank, blank, torch.ones_like(blank, dtype=torch.bool), context)

    def pair_batch(self, sources: Sequence[Any], targets: Sequence[Any]) -> Batch:
        """Return a batch of sources with a target each, end included; raise UserError for symbols never seen."""
        encoded = [[*target, 0] for target in self.tokeniser.encode_targets(targets, sources)]
        source = Ragged(self.tokeniser.encode_sources(sources))
        return _training_batch(source, Ragged(encoded), torch.arange(len(sources)))

    def describe(self) -> dict[str, Any]:
        """Return what is saved with a model, as JSON types."""
        return {"kind": self.tokeniser.kind, **self.tokeniser.describe(), "longest": self.longest}

    @classmethod
    def from_description(cls, description: Mapping[str, Any]) -> PairCodec:
        """Return the codec of a description; raise UserError if it is of something else or incomplete."""
        tokeniser = Subwords if description.get("kind") == Subwords.kind else Vocabularies
        check_description(description, tokeniser.kind, {**dict.fromkeys(tokeniser.saved, list), "longest": int})
        return cls(tokeniser.from_description(description), description["longest"])


class Row(NamedTuple):
    """A line of a file as a pair: a word's characters and its symbols, or a sentence and its translation."""

    line: int
    source: Any
    target: Any


@dataclass(frozen=True)
class Pairs:
    """Sources and their references: distinct words with all their targets, or sentences with one translation each.

    Args:
        sources: words, each a tuple of symbols (characters), or sentences with single blanks between words.
        references: all distinct targets of each source, in the order of the file.
        origin: where they come from.

    >>> pairs = Pairs.of([Row(1, ("a",), ("AH",)), Row(2, ("a",), ("EY",))], "here")
    >>> len(pairs), pairs.references, pairs.targets
    (1, [[('AH',), ('EY',)]], [('AH',)])
    """

    __repr__ = brief

    sources: list[Any]
    references: list[list[Any]]
    origin: str

    @classmethod
    def of(cls, rows: Sequence[Row], origin: str) -> Pairs:
        """Group words by source, a repeated reference once; keep every line of sentences."""
        if rows and isinstance(rows[0].source, str):
            return cls([row.source for row in rows], [[row.target] for row in rows], origin)
        grouped: dict[Any, dict[Any, None]] = {}
        for row in rows:
            grouped.setdefault(row.source, {})[row.target] = None
        return cls(list(grouped), [list(targets) for targets in grouped.values()], origin)

    def __len__(self) -> int:
        return len(self.sources)

    @property
    def targets(self) -> list[Any]:
        """The first reference of each source."""
        return [references[0] for references in self.references]

    @property
    def count(self) -> int:
        """Number of (source, reference) pairs."""
        return sum(len(references) for references in self.references)

    def flat(self) -> Iterator[tuple[Any, Any]]:
        """Every (source, reference) pair."""
        for source, references in zip(self.sources, self.references, strict=True):
            for reference in references:
                yield source, reference

    def spread(self, items: int | None) -> Pairs:
        """A fixed subset of ``items`` sources, spread evenly over the list; all of them for None."""
        if items is None or items >= len(self):
            return self
        chosen = evenly(len(self), items)
        origin = f"{self.origin}, {items} {'sentences' if isinstance(self.sources[0], str) else 'words'}"
        return Pairs([self.sources[i] for i in chosen], [self.references[i] for i in chosen], origin)


@dataclass(frozen=True, eq=False)
class PairData:
    """Training, dev and test pairs, their tokeniser, and training batches by index.

    Args:
        splits: "train", "dev" and "test".
        name: what the data are called in the header.
        dropped: for each split what was dropped from it, in words.
        subwords: tokeniser of both sides of sentences; None: words, with the vocabularies of "train".
        facts: how the files were read, for the header.

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
    subwords: Subwords | None = None
    facts: Sequence[str] = ()

    def __post_init__(self) -> None:
        item = "sentence" if self.subwords else "word"
        if wrong := [split for split in SPLITS if not self.splits.get(split)]:
            raise UserError(f"splits train, dev and test must each hold a {item}; empty: {', '.join(wrong)}")
        unseen = {split: self.tokeniser.unseen(self.splits[split].flat()) for split in ("dev", "test")}
        refuse([f"{split}: {text}" for split, texts in unseen.items() for text in texts])

    @cached_property
    def tokeniser(self) -> Tokeniser:
        """The subwords, or the vocabularies of the training pairs."""
        return self.subwords or Vocabularies.of(self.splits["train"].flat())

    @cached_property
    def codec(self) -> PairCodec:
        """Tokeniser and longest target: what a model keeps of its data."""
        return PairCodec(self.tokeniser, max(self.lengths) - 1)

    @cached_property
    def examples(self) -> list[tuple[list[int], list[int]]]:
        """(source ids, target ids) of every training pair, without end symbols."""
        sources, targets = zip(*self.splits["train"].flat(), strict=True)
        tokeniser = self.tokeniser
        return list(zip(tokeniser.encode_sources(sources), tokeniser.encode_targets(targets, sources), strict=True))

    @cached_property
    def _ragged(self) -> tuple[Ragged, Ragged]:
        sources = Ragged([source for source, _ in self.examples])
        return sources, Ragged([[*target, 0] for _, target in self.examples])

    @cached_property
    def lengths(self) -> list[int]:
        """Target length of every training pair, end symbol included."""
        return [len(target) + 1 for _, target in self.examples]

    @cached_property
    def longest_sides(self) -> tuple[int, int]:
        """Ids of the longest source and of the longest target of any split, without the end symbol."""
        others = [pair for split in ("dev", "test") for pair in self.splits[split].flat()]
        lengths = [max(self.tokeniser.lengths(side)) for side in zip(*others, strict=True)]
        source, target = (int(ragged.lengths.max()) for ragged in self._ragged)
        return max(source, lengths[0]), max(target - 1, lengths[1])

    @property
    def frequencies(self) -> tuple[float, ...]:
        """How often each target id stands in the training targets; the end symbol once in each."""
        size = self.tokeniser.sizes[1]
        return tuple(torch.bincount(self._ragged[1].values, minlength=size).double().tolist())

    def batch(self, indices: Sequence[int] | Tensor, rows: Tensor | None = None) -> Batch:
        """Return the training batch of some pairs; rows: their numbers in the global batch."""
        return _training_batch(*self._ragged, torch.as_tensor(indices, dtype=torch.int64), rows)

    def evaluation(self, split: str, items: int | None = None) -> Pairs:
        """The pairs of a split with all references; with ``items`` a fixed, evenly spread subset of the sources."""
        return part_of(self.splits, split, items, f"{self.tokeniser.item}s").spread(items)

    @cached_property
    def fingerprint(self) -> str:
        """Return the first 8 hexadecimal digits of the SHA-256 of the subwords and every split's pairs."""
        merges = self.subwords.describe()["merges"] if self.subwords else ()
        digest = hashlib.sha256("\n".join(merges).encode())
        for split in SPLITS:
            pairs = self.splits[split].flat()
            lines = ("".join(s) + "\t" + (t if isinstance(t, str) else " ".join(t)) for s, t in pairs)
            digest.update(f"{split}\n{chr(10).join(lines)}\n".encode())
        return digest.hexdigest()[:8]

    def header(self) -> list[str]:
        """Return lines about the data: counts, what was dropped, overlap, tokens, fingerprint."""
        lines = [f"data: {self.name}, fingerprint {self.fingerprint}"]
        seen = set(self.splits["train"].sources)
        for split, pairs in ((split, self.splits[split]) for split in SPLITS):
            text = f"{split}: {counted(len(pairs), self.tokeniser.item)}"
            notes = [f"dropped: {'; '.join(dropped)}"] if (dropped := self.dropped.get(split)) else []
            if not self.subwords:
                text += f", {counted(pairs.count, 'pair' if split == 'train' else 'reference')}"
            elif split == "train" and len(seen) < len(pairs):
                notes.append(f"{counted(len(pairs) - len(seen), 'source')} repeating an earlier one, kept")
            elif split != "train" and (known := sum(source in seen for source in pairs.sources)):
                notes.append(f"{counted(known, 'source')} also in train, kept")
            lines.append(text + (f" ({'; '.join(notes)})" if notes else ""))
        return [*lines, *self.facts, f"{self._tokens()}; longest training target {max(self.lengths) - 1}"]

    def _tokens(self) -> str:
        source, target = self.tokeniser.sizes
        if not self.subwords:
            return f"symbols: {source - 1} source + padding, {target - 1} target + end"
        train = self.splits["train"]
        words = [sum(len(text.split()) for text in texts) for texts in (train.sources, train.targets)]
        a_source, a_target = (int(r.lengths.sum()) / count for r, count in zip(self._ragged, words, strict=True))
        return (
            f"subwords: {source:,} ids for both sides, {a_source:.2f} a source word, {a_target:.2f} a target word with "
            "its share of ends"
        )
