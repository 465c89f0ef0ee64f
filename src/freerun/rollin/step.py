"""The exact ``step`` engine: a lean loop without gradient over a model that can go on position by position."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor

from freerun.arguments import Arguments
from freerun.batch import Batch
from freerun.errors import UserError
from freerun.rollin.model import checked_rows, has, lacks
from freerun.rollin.planned import planned_roll_in
from freerun.rollin.replacement import Replacement, RollIn
from freerun.types import Planned, Reader, Stepper


@dataclass(frozen=True)
class Stepwise(Arguments):
    """Exact: a loop over the positions; ``engine="step"``."""

    name: ClassVar[str] = "step"
    in_parts: ClassVar[bool] = True

    def check(self, model: Any) -> None:
        """Refuse a model without the methods of a Stepper."""
        if not has(model, Stepper):
            raise UserError(lacks("step", model, "start, embed, step, output and select"))

    def roll_in(self, model: Any, batch: Batch, encoded: Batch, replacement: Replacement) -> RollIn:
        """The mixed history."""
        planned = hasattr(type(model), "reader") and has(model, Planned)
        done = planned_roll_in(model, encoded, replacement, "step") if planned else None
        return done or step_roll_in(model, encoded, replacement)


def step_roll_in(model: Any, batch: Batch, replacement: Replacement) -> RollIn:
    """The mixed history by the loop that steps through the positions.

    All gold entries that are fed are embedded at once, through a table where the vocabulary is small; attention,
    projection and choice run only for the rows whose entry is to be their own, and the loop stops after the last of
    them. A model that can reads what comes before the first of them in one call. Equal to the naive loop that computes
    everything.

    Args:
        model: a Stepper, in the mode the roll-in is to run in.
        batch: the batch; its context may be encoded.
        replacement: the entries to replace.
    """
    times = replacement.positions[1]
    size, time = replacement.gold.shape[:2]
    counts, chosen = replacement.by_position
    last = int(times[-1])
    history = replacement.gold.transpose(0, 1).clone(memory_format=torch.contiguous_format)  # time, batch
    state = model.start(batch)
    table = _table(model, history[:last], state)
    if table is None:
        embed, inputs = model.embed, _gold_inputs(model.embed, history[:last], replacement.replaced[:, :last].t())
    else:  # a row of it costs less than leaving some out
        embed = partial(_looked_up, table)
        inputs = embed(history[:last])
    start = 0
    first = int(times[0])
    if has(model, Reader) and first > 1:  # a prompt that all rows have
        state = model.read(state, inputs[:first].transpose(0, 1))
    else:
        first = 0
    entries, vectors = history.unbind(0), inputs.unbind(0)
    for t in range(first, last + 1):
        count = counts[t]
        if count:
            rows = chosen[t]
            outputs = model.output(state, None if count == size else rows)
            if start == 0:
                replacement.check(outputs, count)
            part = slice(start, start + count)
            noise = replacement.noise(outputs.shape[-1], part)
            if replacement.rules is not None:
                outputs = replacement.allowed(outputs, history.t(), part)
            own = replacement.draw.choose(outputs, noise).to(history.dtype)
            if replacement.keep.dim() == 3:
                own = replacement.completed(own, part)
            entries[t].index_copy_(0, rows, own)
            if t < last:
                vectors[t].index_copy_(0, rows, embed(own))
            start += count
        if t < last:
            state = model.step(state, vectors[t])
    return RollIn(history.transpose(0, 1), "step", 1, (last + 1) / time)


def _gold_inputs(embed: Callable[[Tensor], Tensor], history: Tensor, own: Tensor) -> Tensor:
    """(time, batch, ...) gold entries as they are fed; at the places of own ones anything."""
    kept = (~own).flatten().nonzero().squeeze(1)
    if len(kept) == own.numel():
        return embed(history)
    kept = kept if len(kept) else kept.new_zeros(1)  # for the shape of what is fed
    vectors = embed(history.flatten(0, 1).index_select(0, kept))
    inputs = vectors.new_empty(own.numel(), *vectors.shape[1:])
    return inputs.index_copy_(0, kept, vectors).unflatten(0, own.shape)


def _table(model: Any, history: Tensor, state: Any) -> Tensor | None:
    """``model.embed`` of all symbols, where that is the smaller work; else None."""
    if history.dim() != 2 or history.numel() == 0:
        return None
    largest = int(history.max())
    # more symbols than entries, or ids that are no outputs (of a prompt), which only the model knows
    if largest >= history.numel():
        return None
    vocab = checked_rows(model.output(state, history.new_zeros(1)), 1).shape[-1]
    if vocab > history.numel() or largest >= vocab:
        return None
    return model.embed(torch.arange(vocab, device=history.device))


def _looked_up(table: Tensor, entries: Tensor) -> Tensor:
    return table.index_select(0, entries.flatten()).unflatten(0, entries.shape)
