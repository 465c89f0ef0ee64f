"""Records that are too long for the model, or for what the user allows: refused, left out or cut."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from freerun.brief import brief
from freerun.data.records.coder import Encoded, RecordCoder
from freerun.data.records.columns import Record
from freerun.data.text import counted, first_problems

__all__ = ["Fitted", "Limits", "fitted"]


_MOST = 20_000
"""Tokens of a record for a model of any number of positions, where no limit is set: more would train for hours."""


@dataclass(frozen=True)
class Limits:
    """Tokens that a record may have.

    Args:
        told: of source or prompt; None: any number.
        said: of the answer, with its end symbol; of plain text all of it.
        positions: that the model has: for each side of an encoder-decoder, for prompt and answer together of a causal
            one.
        too_long: "error", "drop", or "cut": of prompts the end is kept, of sources and answers the beginning; an
            answer that was cut has no end symbol.
    """

    __repr__ = brief

    told: int | None = None
    said: int | None = None
    positions: int | None = None
    too_long: str = "error"


@dataclass(frozen=True)
class Fitted:
    """Records that are used, and what became of the others.

    Args:
        records: as text.
        encoded: as ids.
        notes: what was left out or cut, in words.
        problems: what is wrong, if anything.
    """

    __repr__ = brief

    records: list[Record]
    encoded: list[Encoded]
    notes: list[str]
    problems: list[str]


def fitted(coder: RecordCoder, records: Sequence[Record], limits: Limits, origin: str) -> Fitted:
    """Records as ids within the limits.

    Args:
        coder: makes them ids.
        records: as text.
        limits: what is allowed.
        origin: of the records, for the count of further problems.
    """
    made, problems = coder.encoded(records)
    kept: list[Record] = []
    encoded: list[Encoded] = []
    dropped = cut = 0
    for record, one in zip(records, made, strict=True):
        if one is None:
            continue
        wrong = _excess(one, limits, coder)
        if wrong and limits.too_long == "error":
            problems.append(f"{record.place}: {wrong}")
        elif wrong and limits.too_long == "drop":
            dropped += 1
        else:
            cut += bool(wrong)
            kept.append(record)
            encoded.append(_cut(one, limits, coder) if wrong else one)
    notes = [f"dropped: {counted(dropped, 'row')} too long"] if dropped else []
    notes += [f"{counted(cut, 'row')} cut"] if cut else []
    merged = sum(one.merged for one in encoded)
    notes += [f"{counted(merged, 'prompt')} ending within a token"] if merged else []
    if not kept and not problems:
        problems.append(f"{origin}: nothing is left: every row is too long; raise max_source or max_target")
    return Fitted(kept, encoded, notes, first_problems(origin, problems))


def _excess(one: Encoded, limits: Limits, coder: RecordCoder) -> str:
    """What of a record is too long, and what to do about it; "" where nothing is."""
    sides = {"source": (len(one.told), limits.told), "target": (len(one.said), limits.said)}
    if coder.shape == "text":
        sides = {"target": (len(one), limits.said)}
    causal = coder.causal
    if limits.positions is None and limits.told is None and len(one) > _MOST:
        return f"has {len(one):,} tokens, more than {_MOST:,}; shorten it, or set max_source to what it may have"
    advice = 'or set too_long = "drop" or "cut"'
    for side, (length, allowed) in sides.items():
        if allowed is not None and length > allowed:
            return f"has {length} tokens of {side}, max_{side} allows {allowed}; raise it, {advice}"
        if limits.positions is not None and not causal and length > limits.positions:
            return (
                f"has {length} tokens of {side}, and the model has {limits.positions} positions; shorten it, {advice}"
            )
    if limits.positions is not None and causal and len(one) > limits.positions:
        return f"has {len(one)} tokens, and the model has {limits.positions} positions; shorten it, {advice}"
    return ""


def _cut(one: Encoded, limits: Limits, coder: RecordCoder) -> Encoded:
    most = limits.positions
    said = one.said[: min(n for n in (limits.said, most, len(one.said)) if n is not None)]
    if not coder.causal:
        allowed = min(n for n in (limits.told, most, len(one.told)) if n is not None)
        told = one.told
        if len(told) > allowed:
            # the encoder's own end symbol stays
            told = (*told[: allowed - 1], told[-1])
        return Encoded(told, said)
    if coder.shape == "text":
        whole = (*one.told, *one.said)[: min(n for n in (limits.said, most, len(one)) if n is not None)]
        half = max(1, len(whole) // 2)
        return Encoded(whole[:half], whole[half:], frozenset(range(half)))
    if most is not None:
        said = said[: most - 1]  # at least one token of the prompt stays
    room = min(n for n in (limits.told, None if most is None else most - len(said), len(one.told)) if n is not None)
    start = len(one.told) - room
    return replace(one, told=one.told[start:], said=said, learnt=frozenset(p - start for p in one.learnt if p >= start))
