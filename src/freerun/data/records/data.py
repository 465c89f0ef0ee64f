"""Records as training batches by index: splits, limits, fingerprint."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from freerun.arguments import brief
from freerun.batch import Batch
from freerun.data.files import SPLITS, counted, first_problems, part_of
from freerun.data.records.chat import special_ids
from freerun.data.records.codec import Encoded, RecordCodec, encoded_text
from freerun.data.records.files import Record, Records
from freerun.errors import refuse
from freerun.keys import bits
from freerun.types import evenly

_MOST = 20_000
"""Tokens of a record for a model of any number of positions, where no limit is set: more would train for hours."""


@dataclass(frozen=True)
class Limits:
    """Tokens that a record may have.

    Args:
        max_source: of source or prompt; None: any number.
        max_target: of the answer, with its end symbol; of plain text all of it.
        positions: that the model has: for each side of an encoder-decoder, for prompt and answer together of a causal
            one.
        too_long: "error", "drop", or "cut": of prompts the end is kept, of sources and answers the beginning; an
            answer that was cut has no end symbol.
    """

    __repr__ = brief

    max_source: int | None = None
    max_target: int | None = None
    positions: int | None = None
    too_long: str = "error"


@dataclass(frozen=True)
class FittedRecords:
    """Records that are used, as text and as ids; what was left out or cut, in words; and what is wrong."""

    __repr__ = brief

    records: list[Record]
    encoded: list[Encoded]
    notes: list[str]
    problems: list[str]


def fit_lengths(codec: RecordCodec, records: Sequence[Record], limits: Limits, origin: str) -> FittedRecords:
    """Return records as ids within the limits; ``origin`` names them in the count of further problems."""
    ids, problems = codec.encoded(records)
    kept: list[tuple[Record, Encoded]] = []
    dropped = cut = 0
    for record, one in zip(records, ids, strict=True):
        if one is None:
            continue
        wrong = _excess(one, limits, codec)
        if wrong and limits.too_long == "error":
            problems.append(f"{record.origin}: {wrong}")
        elif wrong and limits.too_long == "drop":
            dropped += 1
        else:
            cut += bool(wrong)
            kept.append((record, _cut(one, limits, codec) if wrong else one))
    encoded = [one for _, one in kept]
    merged = sum(one.merged for one in encoded)
    notes = [f"dropped: {counted(dropped, 'row')} too long"] if dropped else []
    notes += [f"{counted(cut, 'row')} cut"] if cut else []
    notes += [f"{counted(merged, 'prompt')} ending within a token"] if merged else []
    turns, unlearned, muted = (sum(getattr(one, name) for one in encoded) for name in ("turns", "unlearned", "muted"))
    notes += [f"{counted(turns, 'assistant turn')} learnt"] if turns else []
    notes += [f"{unlearned:,} not learnt: the chat template rewrites them"] if unlearned else []
    notes += [f"{muted:,} not learnt: in a prompt, or of weight 0"] if muted else []
    if not kept and not problems:
        problems.append(f"{origin}: nothing is left: every row is too long; raise max_source or max_target")
    return FittedRecords([record for record, _ in kept], encoded, notes, first_problems(origin, problems))


def _excess(one: Encoded, limits: Limits, codec: RecordCodec) -> str:
    """What of a record is too long, and what to do about it; "" where nothing is."""
    sides = {"source": (len(one.prompt), limits.max_source), "target": (len(one.target), limits.max_target)}
    if codec.shape == "text":
        sides = {"target": (len(one), limits.max_target)}
    most, advice = limits.positions, f"""or set too_long = "drop"{' or "cut"' * (not codec.uses_chat_template)}"""
    if most is None and limits.max_source is None and len(one) > _MOST:
        return f"has {len(one):,} tokens, more than {_MOST:,}; shorten it, or set max_source to what it may have"
    for side, (length, allowed) in sides.items():
        if allowed is not None and length > allowed:
            return f"has {length} tokens of {side}, max_{side} allows {allowed}; raise it, {advice}"
        if most is not None and not codec.causal and length > most:
            return f"has {length} tokens of {side}, and the model has {most} positions; shorten it, {advice}"
    if most is not None and codec.causal and len(one) > most:
        return f"has {len(one)} tokens, and the model has {most} positions; shorten it, {advice}"
    return ""


def _cut(one: Encoded, limits: Limits, codec: RecordCodec) -> Encoded:
    """The part of a record within the limits."""
    most = limits.positions
    target = one.target[: _least(limits.max_target, most, len(one.target))]
    if not codec.causal:
        allowed = _least(limits.max_source, most, len(one.prompt))
        if len(one.prompt) <= allowed:
            return replace(one, target=target)
        # the encoder's own end symbol stays
        return replace(one, prompt=(*one.prompt[: allowed - 1], one.prompt[-1]), target=target)
    if codec.shape == "text":
        return encoded_text((*one.prompt, *one.target)[: _least(limits.max_target, most, len(one))])
    if most is not None:
        target = target[: most - 1]  # at least one token of the prompt stays
    room = _least(limits.max_source, None if most is None else most - len(target), len(one.prompt))
    start = len(one.prompt) - room
    learned = frozenset(position - start for position in one.learned if position >= start)
    return replace(one, prompt=one.prompt[start:], target=target, learned=learned)


def _least(*limits: int | None) -> int:
    return min(limit for limit in limits if limit is not None)


@dataclass(eq=False)
class RecordData:
    """Training, dev and test records, their ids, and training batches by index."""

    __repr__ = brief

    splits: Mapping[str, FittedRecords]
    codec: RecordCodec
    name: str
    notes: Mapping[str, Sequence[str]]
    facts: Sequence[str] = ()

    def bind(self, model: Any) -> None:
        """Let a model make the batches."""
        self.codec = replace(self.codec, model=model)

    @cached_property
    def lengths(self) -> list[int]:
        """Tokens of every training record, prompt and target."""
        return [len(one) for one in self.splits["train"].encoded]

    def batch(self, indices: Sequence[int] | Tensor, rows: Tensor | None = None) -> Batch:
        """Return a training batch of some records; rows: their numbers in the optimizer step's global batch."""
        train = self.splits["train"].encoded
        return self.codec.training_batch([train[int(index)] for index in indices], rows)

    def evaluation(self, split: str, items: int | None = None) -> tuple[list[Record], list[Encoded]]:
        """Return the records of a split as text and as ids; with ``items`` a fixed, evenly spread subset."""
        part: FittedRecords = part_of(self.splits, split, items)
        chosen = evenly(len(part.encoded), items)
        return [part.records[i] for i in chosen], [part.encoded[i] for i in chosen]

    @cached_property
    def frequencies(self) -> tuple[float, ...]:
        """How often each id of the tokenizer carries loss in the training records."""
        counts: Counter[int] = Counter()
        for one in self.splits["train"].encoded:
            counts.update(one.target)
            counts.update(one.prompt[position] for position in one.learned)
        return tuple(float(counts[number]) for number in range(max(len(self.codec.tokenizer), max(counts) + 1)))

    @cached_property
    def longest(self) -> tuple[int, int]:
        """Tokens of the longest prompt and of the longest target of any split."""
        every = [one for split in self.splits.values() for one in split.encoded]
        return max(len(one.prompt) for one in every), max(len(one.target) for one in every)

    @cached_property
    def fingerprint(self) -> str:
        """Return the first 8 hexadecimal digits of the SHA-256 of every split's ids in order, and of the tokenizer."""
        digest = hashlib.sha256(self.codec.vocabulary.encode())
        for split in [split for split in SPLITS if split in self.splits]:
            ids = [[one.prompt, one.target, sorted(one.learned)] for one in self.splits[split].encoded]
            digest.update(f"{split}\n{json.dumps(ids)}\n".encode())
        return digest.hexdigest()[:8]

    def header(self) -> list[str]:
        """Return lines about the data: counts, what was left out, tokens, fingerprint."""
        lines = [f"data: {self.name}, fingerprint {self.fingerprint}"]
        seen = {one.prompt for one in self.splits["train"].encoded}
        for split in SPLITS:
            encoded = self.splits[split].encoded
            known = 0 if split == "train" else sum(one.prompt in seen for one in encoded)
            notes = [*self.notes.get(split, ())]
            notes += [f"{counted(known, 'prompt')} also in train, kept"] if known else []
            lines.append(f"{split}: {counted(len(encoded), 'record')}" + (f" ({'; '.join(notes)})" if notes else ""))
        train = self.splits["train"].encoded
        prompt, target = (sum(len(getattr(one, side)) for one in train) / len(train) for side in ("prompt", "target"))
        lines += self.facts
        return [
            *lines,
            f"tokens of a training record: {prompt:.1f} prompt + {target:.1f} target; at most {self.longest[0]} + "
            f"{self.longest[1]} in any split; {self._ends()}",
        ]

    def _ends(self) -> str:
        """What ends the answers, and how many of training do not teach the model to stop."""
        end, train = self.codec.end, self.splits["train"].encoded
        if end is None:
            return "an answer ends with no end symbol"
        symbol = repr(self.codec.tokenizer.convert_ids_to_tokens(end))
        ended = sum(_last(self.codec, one) == end for one in train)
        if ended:
            some = "" if ended == len(train) else f", but for {len(train) - ended:,} of {len(train):,}"
            return f"an answer ends with {symbol}{some}"
        return (
            f"no answer ends with {symbol} or another special symbol, so that the model does not learn to stop: let "
            "the chat template write one after an answer"
        )


def encoded_data(records: Records, codec: RecordCodec, limits: Limits) -> RecordData:
    """Return records with their ids, and a codec with their end symbol and longest answer."""
    splits = _fitted(records, codec, limits)
    refuse([problem for split in splits.values() for problem in split.problems])
    notes = {
        split: [*(f"dropped: {text}" for text in records.dropped.get(split, ())), *fitted.notes]
        for split, fitted in splits.items()
    }
    return RecordData(splits, with_end(codec, splits["train"].encoded), records.name, notes, records.notes)


def with_end(codec: RecordCodec, encoded: Sequence[Encoded]) -> RecordCodec:
    """A codec with the end symbol and the longest answer of some records."""
    # what ends an answer: the special symbol that most answers end with, else the tokenizer's own
    last, _ = Counter(_last(codec, one) for one in encoded).most_common(1)[0]
    end: int | None = last if last in special_ids(codec.tokenizer) else codec.tokenizer.eos_token_id
    longest = max(len(one.target) - (one.target[-1] == end) for one in encoded)
    return replace(codec, end=end, longest=longest)


def _last(codec: RecordCodec, one: Encoded) -> int:
    """The id that an answer ends with: before the id of a language, and before blanks that a template writes."""
    own, special = codec.tokenizer.eos_token_id, special_ids(codec.tokenizer)
    if one.language and own in one.target:
        return own
    for each in reversed(one.target):
        if each in special:
            return each
        if str(codec.tokenizer.decode([each])).strip():
            break
    return one.target[-1]


def encoded_problems(records: Records, codec: RecordCodec, limits: Limits) -> list[str]:
    """What ``encoded_data`` would refuse of some records."""
    some = {split: rows for split, rows in records.splits.items() if rows}
    fitted = _fitted(replace(records, splits=some), codec, limits)
    return [problem for split in fitted.values() for problem in split.problems]


def _fitted(records: Records, codec: RecordCodec, limits: Limits) -> dict[str, FittedRecords]:
    name = records.name
    return {split: fit_lengths(codec, rows, limits, f"{name}, {split}") for split, rows in records.splits.items()}


def trial_encoded(vocab: int, rows: int) -> list[Encoded]:
    """Records of random ids, of different lengths, to try a model on."""
    drawn = (bits(0, torch.arange(rows)[:, None], torch.arange(2 * rows + 6)).abs() % vocab).tolist()
    return [Encoded(tuple(row[: 3 + n]), tuple(row[rows + 3 : rows + 6 + n])) for n, row in enumerate(drawn)]
