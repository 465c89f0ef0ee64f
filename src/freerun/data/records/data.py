"""Records as training batches by index: splits, limits, fingerprint."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from freerun.brief import brief
from freerun.data.parallel_files import SPLITS
from freerun.data.records.chat import special_ids
from freerun.data.records.coder import Encoded, RecordCoder
from freerun.data.records.columns import Record
from freerun.data.records.fitting import Fitted, Limits, fitted
from freerun.data.records.splits import Records
from freerun.data.text import counted
from freerun.errors import UserError
from freerun.types import Batch

__all__ = ["RecordData", "encoded_data", "encoded_problems"]


class RecordData:
    """Training, dev and test records, their ids, and training batches by index.

    Args:
        splits: "train", "dev" and "test", as text and as ids.
        coder: makes batches of them, once it is bound to a model.
        name: what the data are called in the header.
        notes: for each split what was left out of it or cut, in words.
    """

    __repr__ = brief

    def __init__(
        self, splits: Mapping[str, Fitted], coder: RecordCoder, name: str, notes: Mapping[str, Sequence[str]]
    ) -> None:
        self.splits = splits
        self.coder = coder
        self.name = name
        self.notes = notes

    def bind(self, model: Any) -> None:
        """Let a model make the batches."""
        self.coder = self.coder.bound(model)

    @cached_property
    def lengths(self) -> list[int]:
        """Tokens of every training record, told and said."""
        return [len(one) for one in self.splits["train"].encoded]

    def batch(self, indices: Sequence[int] | Tensor, rows: Tensor | None = None) -> Batch:
        """A training batch.

        Args:
            indices: numbers of training records.
            rows: (batch,) int64: their numbers in the optimizer step's global batch.
        """
        train = self.splits["train"].encoded
        return self.coder.training_batch([train[int(index)] for index in indices], rows)

    def evaluation(self, split: str, items: int | None = None) -> tuple[list[Record], list[Encoded]]:
        """The records of a split as text and as ids; with ``items`` a fixed, evenly spread subset.

        Raises:
            UserError: there is no such split, or items is below 1.
        """
        if split not in self.splits:
            raise UserError(f"split must be one of {', '.join(self.splits)}; got {split!r}")
        if items is not None and items < 1:
            raise UserError(f"items must be at least 1, or None for all; got {items}")
        found = self.splits[split]
        count = len(found.encoded)
        kept = count if items is None else min(items, count)
        chosen = [number * count // kept for number in range(kept)]
        return [found.records[i] for i in chosen], [found.encoded[i] for i in chosen]

    @cached_property
    def frequencies(self) -> tuple[float, ...]:
        """How often each id is to be said in the training records; one entry for each id of the tokenizer."""
        counts: Counter[int] = Counter()
        for one in self.splits["train"].encoded:
            counts.update(one.said)
            counts.update(one.told[place] for place in one.learnt)
        return tuple(float(counts[number]) for number in range(max(len(self.coder.tokenizer), max(counts) + 1)))

    @cached_property
    def longest(self) -> tuple[int, int]:
        """Tokens of the longest told and of the longest said part of any split."""
        every = [one for split in self.splits.values() for one in split.encoded]
        return max(len(one.told) for one in every), max(len(one.said) for one in every)

    @cached_property
    def fingerprint(self) -> str:
        """First 8 hexadecimal digits of the SHA-256 of every split's ids in order, and of the tokenizer."""
        digest = hashlib.sha256(self.coder.vocabulary.encode())
        for split in SPLITS:
            ids = [[one.told, one.said, sorted(one.learnt)] for one in self.splits[split].encoded]
            digest.update(f"{split}\n{json.dumps(ids)}\n".encode())
        return digest.hexdigest()[:8]

    def header(self) -> list[str]:
        """Lines that say what the data are: counts, what was left out, tokens, fingerprint."""
        lines = [f"data: {self.name}, fingerprint {self.fingerprint}"]
        seen = {one.told for one in self.splits["train"].encoded}
        for split in SPLITS:
            encoded = self.splits[split].encoded
            known = 0 if split == "train" else sum(one.told in seen for one in encoded)
            notes = [*self.notes.get(split, ())]
            notes += [f"{counted(known, 'prompt')} also in train, kept"] if known else []
            lines.append(f"{split}: {counted(len(encoded), 'record')}" + (f" ({'; '.join(notes)})" if notes else ""))
        train = self.splits["train"].encoded
        told, said = (sum(map(len, part)) / len(train) for part in zip(*((e.told, e.said) for e in train), strict=True))
        end = "none" if self.coder.end is None else repr(self.coder.tokenizer.convert_ids_to_tokens(self.coder.end))
        return [
            *lines,
            f"tokens: {told:.1f} told and {said:.1f} said a training record; at most {self.longest[0]} and "
            f"{self.longest[1]}; an answer's end: {end}",
        ]


def encoded_data(records: Records, coder: RecordCoder, limits: Limits) -> RecordData:
    """Records with the ids of a tokenizer.

    Args:
        records: as text.
        coder: without end symbol and longest answer, which are found here.
        limits: tokens that a record may have.

    Raises:
        UserError: records that are too long or cannot be told; the first 20 of each split.
    """
    splits = _fitted(records, coder, limits)
    if problems := [problem for split in splits.values() for problem in split.problems]:
        raise UserError(problems)
    train = splits["train"].encoded
    end = _end(coder, train)
    longest = max(len(one.said) - (one.said[-1] == end) for one in train)
    made = replace(coder, end=end, longest=longest)
    notes = {
        split: [*(f"dropped: {text}" for text in records.dropped.get(split, ())), *found.notes]
        for split, found in splits.items()
    }
    return RecordData(splits, made, records.name, notes)


def encoded_problems(records: Records, coder: RecordCoder, limits: Limits) -> list[str]:
    """What ``encoded_data`` would refuse of some records."""
    some = {split: found for split, found in records.splits.items() if found}
    found = _fitted(replace(records, splits=some), coder, limits)
    return [problem for split in found.values() for problem in split.problems]


def _fitted(records: Records, coder: RecordCoder, limits: Limits) -> dict[str, Fitted]:
    return {split: fitted(coder, found, limits, f"{records.name}, {split}") for split, found in records.splits.items()}


def _end(coder: RecordCoder, train: Sequence[Encoded]) -> int | None:
    """What ends an answer: the special symbol that most training answers end with, else the tokenizer's own."""
    special = special_ids(coder.tokenizer)
    last, _ = Counter(one.said[-1] for one in train).most_common(1)[0]
    if last in special:
        return last
    eos: int | None = coder.tokenizer.eos_token_id
    return eos


def trial_encoded(vocab: int, rows: int) -> list[Encoded]:
    """Made-up records of different lengths, to try a model on."""
    from freerun.keys import bits

    drawn = (bits(0, torch.arange(rows)[:, None], torch.arange(2 * rows + 6)).abs() % vocab).tolist()
    return [Encoded(tuple(row[: 3 + n]), tuple(row[rows + 3 : rows + 6 + n])) for n, row in enumerate(drawn)]
