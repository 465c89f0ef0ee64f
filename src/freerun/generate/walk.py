"""A model on its way: what generation needs of it, with or without the Stepper methods."""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor

from freerun.errors import UserError
from freerun.types import Batch, Encoder, Stepper

__all__ = ["Walk", "begin", "log_probs"]


def begin(model: Any, batch: Batch, length: int) -> Walk:
    """A walk from nothing but the batch's context: history, targets and mask are blanked first."""
    empty = batch.history.new_zeros(batch.size, length, *batch.history.shape[2:])
    mask = torch.ones(batch.size, length, dtype=torch.bool, device=empty.device)
    blank = Batch(empty, empty, mask, context=batch.context, rows=batch.row_numbers)
    if isinstance(model, Encoder):
        blank = model.encode(blank)
    return _Steps(model, blank) if isinstance(model, Stepper) else _Forwards(model, blank)


class Walk(Protocol):
    """A model on its way: predict the next position; go on with rows picked, repeated or dropped."""

    def predict(self) -> Tensor:
        """(n, vocab) or (n, value): the output at the next position."""
        ...

    def advance(self, entries: Tensor, rows: Tensor | None) -> None:
        """Go on with the rows asked for (None: all), each with its entry ((m,) or (m, value))."""
        ...


class _Steps:
    def __init__(self, model: Stepper, batch: Batch) -> None:
        self.model, self.state = model, model.start(batch)

    def predict(self) -> Tensor:
        return self.model.output(self.state)

    def advance(self, entries: Tensor, rows: Tensor | None) -> None:
        if rows is not None:
            self.state = self.model.select(self.state, rows)
        self.state = self.model.step(self.state, self.model.embed(entries))


class _Forwards:
    def __init__(self, model: Any, batch: Batch) -> None:
        self.model, self.batch, self.done = model, batch, 0

    def predict(self) -> Tensor:
        now = self.done + 1
        history = self.batch.history[:, :now]
        shown = self.batch.replace(targets=torch.zeros_like(history), history=history, mask=self.batch.mask[:, :now])
        return self.model(shown)[:, self.done]

    def advance(self, entries: Tensor, rows: Tensor | None) -> None:
        batch = self.batch if rows is None else self.batch.select(rows)
        # out of place: a model may have kept the tensor it was given
        history = batch.history.clone()
        history[:, self.done] = entries.to(history.dtype)
        self.batch = batch.replace(history=history)
        self.done += 1


def log_probs(outputs: Tensor, end: int | None) -> Tensor:
    """(n, vocab) log-probabilities, at least float32; NaN is refused."""
    if end is not None and end >= outputs.shape[-1]:
        raise UserError(f"end must be one of the model's {outputs.shape[-1]} ids; got {end}")
    if outputs.dtype in (torch.bfloat16, torch.float16):
        outputs = outputs.float()
    scores = outputs.log_softmax(-1)
    if bool(scores.isnan().any()):
        raise UserError("the model's outputs hold NaN (or a row of -inf): nothing can be generated from them")
    return scores
