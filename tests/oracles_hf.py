"""Hugging Face models called directly, row by row, without padding and without a cache: full prefixes, plain loops."""

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from families import FAMILIES, START, collated
from freerun import hf
from freerun.batch import Batch
from freerun.keys import fold, uniform
from freerun.types import Cached, Stepper
from oracles import choose, gumbel

KEY, STEP = 5, 3
NUMBERS = [10, 13, 11, 12]


@dataclass(frozen=True)
class Row:
    """One example as a model gets it by itself."""

    source: Mapping[str, Any]  # arguments of its forward besides the history, one row; functions of the ids are called
    first: int  # the id that nothing predicts: a text's first, a decoder's start
    gold: tuple[int, ...]  # the ids after it
    counts: tuple[bool, ...]  # of each of them, whether it is to be learnt
    number: int  # in the global batch

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
        text, targets = ids[mask.bool()].tolist(), labels[mask.bool()].tolist()
        made.append(Row({}, text[0], tuple(text[1:]), tuple(label != -100 for label in targets[1:]), number))
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


def predicted(model: Any, row: Row, history: list[int] | tuple[int, ...]) -> Tensor:
    """(len(history) + 1, vocab) logits: line t predicts the entry after ``history[:t]``."""
    ids = torch.tensor([[row.first, *history]])
    if not model.config.is_encoder_decoder:
        more = {name: value(ids) if callable(value) else value for name, value in row.source.items()}
        return model(input_ids=ids, attention_mask=torch.ones_like(ids), **more, use_cache=False).logits[0]
    takes = "decoder_attention_mask" in inspect.signature(type(model).forward).parameters
    mask = {"decoder_attention_mask": torch.ones_like(ids)} if takes else {}
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
        logits = predicted(model, row, history[:t])[-1]
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
        logp = predicted(model, row, history[:-1]).log_softmax(-1)
        for t, symbol in enumerate(row.gold):
            if row.counts[t]:
                losses.append(-(1 - smoothing) * logp[t, symbol] - smoothing * logp[t].mean())
    return torch.stack(losses).mean()


def own_arguments(model: Any, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What the model's own forward is called with: positions that skip padding where it takes them, no pad hidden."""
    arguments = dict(inputs)
    if type(model).__name__ == "EncoderDecoderModel":  # it takes every pad among its own ids for padding
        fed = model.prepare_decoder_input_ids_from_labels(inputs["labels"])
        arguments |= {"decoder_input_ids": fed, "decoder_attention_mask": torch.ones_like(fed)}
    if not model.config.is_encoder_decoder and "position_ids" in inspect.signature(type(model).forward).parameters:
        arguments["position_ids"] = (inputs["attention_mask"].cumsum(1) - 1).clamp_min(0)
    return arguments


def generated(model: Any, rows: list[Row], length: int, end: int | None = None, **more: Any) -> Tensor:
    """(rows, length) ids that ``generate`` returns, prompts padded on the left, filled with the end or 0."""
    from transformers import GenerationMixin

    if model.config.is_encoder_decoder:
        arguments = {name: torch.cat([row.source[name] for row in rows]) for name in rows[0].source}
        read = 1
    else:
        read = 1 + max(row.prompt for row in rows)
        ids, mask = torch.zeros(len(rows), read, dtype=torch.int64), torch.zeros(len(rows), read, dtype=torch.int64)
        for r, row in enumerate(rows):
            begin = read - 1 - row.prompt
            ids[r, begin:], mask[r, begin:] = torch.tensor([row.first, *row.gold[: row.prompt]]), 1
        arguments = {"input_ids": ids, "attention_mask": mask}
        for name, value in rows[0].source.items() if len(rows) == 1 else ():
            arguments[name] = value(ids) if callable(value) else value
    # Whisper's own adds timestamps and prompts of its own to this
    more = {"do_sample": False, "eos_token_id": end, "pad_token_id": end or 0, **more}
    found = GenerationMixin.generate(model, **arguments, max_new_tokens=length, **more)
    return torch.nn.functional.pad(found[:, read:], (0, length), value=end or 0)[:, :length]


def until(entries: list[int], end: int) -> list[int]:
    """Up to the end symbol, with it."""
    return entries[: entries.index(end) + 1] if end in entries else entries


def some_end(spoken: Tensor) -> int:
    """An id that ends at least one of these rows before its last entry and leaves at least one unended."""
    for symbol in spoken.unique().tolist():
        ended = (spoken[:, :-1] == symbol).any(1)
        if bool(ended.any()) and not bool((spoken == symbol).any(1).all()):
            return symbol
    raise AssertionError("these rows all have the same symbols: take other weights")


@dataclass(frozen=True)
class Prepared:
    """A model with the four rows of its family: for its forward, for its adapter and for the oracle."""

    model: Any
    inputs: dict[str, Tensor]
    rows: list[Row]
    outer: Any

    @cached_property
    def m(self) -> Any:
        """Adapted where it is first used: an adapter examines a model once."""
        return hf.adapt(self.outer)

    @property
    def batch(self) -> Batch:
        return self.m.batch(**self.inputs, rows=torch.tensor(NUMBERS))

    def histories(self, ratio: float, draw: str = "sample") -> list[list[int]]:
        return [full_prefix(self.model, row, ratio, draw, KEY, STEP) for row in self.rows]

    def loss(self, histories: list[list[int]]) -> Tensor:
        return loss(self.model, self.rows, histories)


def prepared(name: str, model: Any = None, outer: Any = None, padding: str = "left", **changes: Any) -> Prepared:
    """``outer``: what stands around the model and is adapted in its place."""
    model = FAMILIES[name].build(**changes) if model is None else model
    inputs = collated(name, model.dtype, padding)
    return Prepared(model, inputs, rows_of(model, inputs, NUMBERS), model if outer is None else outer)


def engines(m: Any) -> list[str]:
    """The exact engines that an adapter can be rolled in by."""
    return ["jacobi", *(["step"] if isinstance(m, Stepper) else []), *(["window"] if isinstance(m, Cached) else [])]


def assert_histories(batch: Batch, histories: list[list[int]]) -> None:
    for r, history in enumerate(histories):
        assert batch.history[r, : len(history)].tolist() == history, f"row {r}"
