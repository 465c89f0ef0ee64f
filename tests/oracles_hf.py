"""Hugging Face models asked directly, row by row, without padding and without a cache: full prefixes, plain loops."""

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from families import START
from freerun.keys import fold, uniform
from oracles import choose, gumbel


@dataclass(frozen=True)
class Row:
    """One example as it is told to a model by itself.

    Args:
        source: keyword arguments of its forward besides what it said before: one row.
        first: the id that nothing predicts: a text's first, a decoder's start.
        gold: the ids after it.
        counts: of each of them, whether it is to be learnt.
        number: in the global batch.
    """

    source: Mapping[str, Tensor]
    first: int
    gold: tuple[int, ...]
    counts: tuple[bool, ...]
    number: int

    @property
    def prompt(self) -> int:
        """How many of ``gold`` are known."""
        return self.counts.index(True)


def causal_rows(inputs: Mapping[str, Tensor], numbers: list[int]) -> list[Row]:
    """The rows of a collator's batch, their padding taken away."""
    made: list[Row] = []
    for ids, mask, labels, number in zip(
        inputs["input_ids"], inputs["attention_mask"], inputs["labels"], numbers, strict=True
    ):
        text, wanted = ids[mask.bool()].tolist(), labels[mask.bool()].tolist()
        made.append(Row({}, text[0], tuple(text[1:]), tuple(label != -100 for label in wanted[1:]), number))
    return made


def seq2seq_rows(inputs: Mapping[str, Tensor], first: int, numbers: list[int]) -> list[Row]:
    """The rows of a collator's batch; the source as it is, its own padding included."""
    made: list[Row] = []
    for r, number in enumerate(numbers):
        source = {name: value[r : r + 1] for name, value in inputs.items() if name != "labels"}
        gold = tuple(label for label in inputs["labels"][r].tolist() if label != -100)
        made.append(Row(source, first, gold, (True,) * len(gold), number))
    return made


def rows_of(model: Any, inputs: Mapping[str, Tensor], numbers: list[int]) -> list[Row]:
    if not model.config.is_encoder_decoder:
        return causal_rows(inputs, numbers)
    first = model.config.decoder_start_token_id
    return seq2seq_rows(inputs, START if first is None else first, numbers)


def said(model: Any, row: Row, history: list[int] | tuple[int, ...]) -> Tensor:
    """(len(history) + 1, vocab) logits: line t predicts the entry after ``history[:t]``."""
    ids = torch.tensor([[row.first, *history]])
    if not model.config.is_encoder_decoder:
        return model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False).logits[0]
    mask = {"decoder_attention_mask": torch.ones_like(ids)}
    return model(**row.source, decoder_input_ids=ids, **mask, use_cache=False).logits[0]


def coin(row: Row, t: int, ratio: float, key: int, step: int) -> bool:
    """Whether gold is kept."""
    return bool(uniform(fold(key, "gate", step), torch.tensor(row.number), torch.tensor(t)) < ratio)


@torch.no_grad()
def full_prefix(model: Any, row: Row, ratio: float, draw: str, key: int, step: int) -> list[int]:
    """The mixed history, a forward over the whole prefix for every entry that is the model's own."""
    noise_key = fold(key, "draw", step)
    history = list(row.gold)
    for t in range(len(history)):
        if not row.counts[t] or coin(row, t, ratio, key, step):
            continue
        logits = said(model, row, history[:t])[-1]
        number = torch.tensor(row.number)
        if draw == "gumbel":
            history[t] = gumbel(logits, noise_key, number, t)
        else:
            history[t] = choose(logits, draw, float(uniform(noise_key, number, torch.tensor(t))))
    return history


def loss(model: Any, rows: list[Row], histories: list[list[int]], smoothing: float = 0.0) -> Tensor:
    """The mean over what counts of ``-log p(gold | history before)``, each row by itself."""
    losses: list[Tensor] = []
    for row, history in zip(rows, histories, strict=True):
        logp = said(model, row, history[:-1]).log_softmax(-1)
        for t, symbol in enumerate(row.gold):
            if row.counts[t]:
                losses.append(-(1 - smoothing) * logp[t, symbol] - smoothing * logp[t].mean())
    return torch.stack(losses).mean()


def takes_positions(model: Any) -> bool:
    return "position_ids" in inspect.signature(type(model).forward).parameters


def own_arguments(model: Any, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What the model's own forward is called with: positions that skip padding where it takes them, no pad hidden."""
    given = dict(inputs)
    if type(model).__name__ == "EncoderDecoderModel":  # it takes every pad among its own ids for padding
        fed = model.prepare_decoder_input_ids_from_labels(inputs["labels"])
        given |= {"decoder_input_ids": fed, "decoder_attention_mask": torch.ones_like(fed)}
    if not model.config.is_encoder_decoder and takes_positions(model):
        given["position_ids"] = (inputs["attention_mask"].cumsum(1) - 1).clamp_min(0)
    return given


def generated(model: Any, rows: list[Row], length: int, end: int | None = None, **more: Any) -> Tensor:
    """(rows, length) ids that ``generate`` says, prompts padded on the left, filled with the end or 0."""
    from transformers import GenerationMixin

    if model.config.is_encoder_decoder:
        given = {name: torch.cat([row.source[name] for row in rows]) for name in rows[0].source}
        told = 1
    else:
        told = 1 + max(row.prompt for row in rows)
        ids, mask = torch.zeros(len(rows), told, dtype=torch.int64), torch.zeros(len(rows), told, dtype=torch.int64)
        for r, row in enumerate(rows):
            begin = told - 1 - row.prompt
            ids[r, begin:], mask[r, begin:] = torch.tensor([row.first, *row.gold[: row.prompt]]), 1
        given = {"input_ids": ids, "attention_mask": mask}
    # Whisper's own adds timestamps and prompts of its own to this
    more = {"do_sample": False, "eos_token_id": end, "pad_token_id": end or 0, **more}
    found = GenerationMixin.generate(model, **given, max_new_tokens=length, **more)
    return torch.nn.functional.pad(found[:, told:], (0, length), value=end or 0)[:, :length]


def until(entries: list[int], end: int) -> list[int]:
    """Up to the end symbol, with it."""
    return entries[: entries.index(end) + 1] if end in entries else entries


def some_end(spoken: Tensor) -> int:
    """An id that ends at least one of these rows before its last entry and leaves at least one unended."""
    for symbol in spoken.unique().tolist():
        ended = (spoken[:, :-1] == symbol).any(1)
        if bool(ended.any()) and not bool((spoken == symbol).any(1).all()):
            return symbol
    raise AssertionError("these rows all say the same symbols: take other weights")
