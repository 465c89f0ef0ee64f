"""A model on its way: what generation needs of it, with or without the Stepper methods."""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor

from freerun.errors import DivergedError, UserError
from freerun.rollin.outputs import checked_rows, forward
from freerun.rollin.together import has
from freerun.types import Batch, Cached, Encoder, Reader, Stepper

__all__ = ["Walk", "begin", "log_probs", "prompt_lengths", "together"]


def prompt_lengths(batch: Batch) -> Tensor:
    """(batch,) how many entries at a row's beginning are known: neither eligible nor in the mask.

    >>> ids = torch.tensor([[5, 6, 7], [5, 6, 7]])
    >>> said = torch.tensor([[False, False, True], [True, True, False]])
    >>> prompt_lengths(Batch(ids, ids, said))
    tensor([2, 0])
    """
    return (~(batch.replaceable | batch.mask)).long().cumprod(1).sum(1)


def together(model: Any, told: Tensor) -> list[Tensor]:
    """Which rows go on side by side: all, or those with prompts of one length where a model steps in lockstep."""
    if has(model, Cached) or not has(model, Stepper):
        return [torch.arange(len(told), device=told.device)]
    return [(told == length).nonzero().squeeze(1) for length in told.unique()]


def begin(model: Any, batch: Batch, told: Tensor, length: int) -> Walk:
    """A walk from the batch's context and the first ``told`` (rows,) entries of its history, for ``length`` more.

    What the model is shown holds zeros for everything else. Rows that are not ``together`` may not differ in ``told``.
    """
    longest = int(told.max())
    known = torch.arange(longest + length, device=told.device) < told[:, None]
    history = batch.history.new_zeros(batch.size, longest + length, *batch.history.shape[2:])
    history[known] = batch.history[:, :longest][known[:, :longest]]
    blank = batch.made(weights=None, eligible=None, rows=batch.row_numbers)
    shown = blank.made(targets=torch.zeros_like(history), history=history, mask=~known)
    if has(model, Encoder):
        shown = model.encode(shown)
    return _Steps(model, shown, told) if has(model, Stepper) else _Forwards(model, shown, told)


class Walk(Protocol):
    """A model on its way: predict the next position; go on with rows picked, repeated or dropped."""

    def predict(self) -> Tensor:
        """(n, vocab) or (n, value): the output at each row's next position."""
        ...

    def advance(self, entries: Tensor, rows: Tensor | None) -> None:
        """Go on with the rows asked for (None: all), each with its entry ((m,) or (m, value))."""
        ...


class _Steps:
    def __init__(self, model: Stepper, batch: Batch, told: Tensor) -> None:
        self.model, self.size = model, batch.size
        self.state = model.start(batch)
        longest = int(told.max())
        prompt = batch.history[:, :longest]
        if longest and has(model, Cached):
            there = torch.arange(longest, device=told.device) < told[:, None]
            self.state, _ = model.advance(self.state, model.embed(prompt[there]), told)
        elif longest and has(model, Reader):
            self.state = model.read(self.state, model.embed(prompt))
        elif longest:
            for inputs in model.embed(prompt).unbind(1):
                self.state = model.step(self.state, inputs)

    def predict(self) -> Tensor:
        return checked_rows(self.model.output(self.state), self.size)

    def advance(self, entries: Tensor, rows: Tensor | None) -> None:
        if rows is not None and not _as_they_are(rows, self.size):
            self.state, self.size = self.model.select(self.state, rows), rows.numel()
        self.state = self.model.step(self.state, self.model.embed(entries))


def _as_they_are(rows: Tensor, size: int) -> bool:
    return rows.numel() == size and torch.equal(rows, torch.arange(size, device=rows.device))


class _Forwards:
    def __init__(self, model: Any, batch: Batch, told: Tensor) -> None:
        self.model, self.batch, self.done = model, batch, told

    def predict(self) -> Tensor:
        now = int(self.done.max()) + 1
        history = self.batch.history[:, :now]
        shown = self.batch.made(targets=torch.zeros_like(history), history=history, mask=self.batch.mask[:, :now])
        return forward(self.model, shown)[torch.arange(len(self.done), device=history.device), self.done]

    def advance(self, entries: Tensor, rows: Tensor | None) -> None:
        batch = self.batch if rows is None else self.batch.select(rows)
        done = self.done if rows is None else self.done[rows]
        # out of place: a model may have kept the tensor it was given
        history = batch.history.clone()
        history[torch.arange(len(done), device=history.device), done] = entries.to(history.dtype)
        self.batch, self.done = batch.made(history=history), done + 1


def log_probs(outputs: Tensor, end: int | None) -> Tensor:
    """(n, vocab) log-probabilities, at least float32; NaN is refused."""
    if end is not None and end >= outputs.shape[-1]:
        raise UserError(f"end must be one of the model's {outputs.shape[-1]} ids; got {end}")
    if outputs.dtype in (torch.bfloat16, torch.float16):
        outputs = outputs.float()
    scores = outputs.log_softmax(-1)
    if bool(scores.isnan().any()):
        raise DivergedError("the model's outputs hold NaN (or a row of -inf): nothing can be generated from them")
    return scores
