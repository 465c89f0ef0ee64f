"""A model in the middle of decoding, by its own steps or by forwards over a growing history."""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor

from freerun.batch import Batch
from freerun.rollin.model import checked_rows, forward, has
from freerun.types import Cached, Encoder, Reader, Stepper


def prompt_lengths(batch: Batch) -> Tensor:
    """(batch,) how many entries at a row's beginning are known: neither eligible nor in the mask."""
    return (~(batch.replaceable | batch.mask)).long().cumprod(1).sum(1)


def lockstep_groups(model: Any, prompts: Tensor) -> list[Tensor]:
    """Rows that go on side by side: all, or those with prompts of one length where a model steps in lockstep."""
    if has(model, Cached) or not has(model, Stepper):
        return [torch.arange(len(prompts), device=prompts.device)]
    return [(prompts == length).nonzero().squeeze(1) for length in prompts.unique()]


def blank_batch(batch: Batch, prompts: Tensor, length: int | Tensor) -> Batch:
    """The context and the first ``prompts`` (rows,) entries, and ``length`` more, or (rows,); all others are 0."""
    longest, time = int(prompts.max()), max(int((prompts + length).max()), 1)
    known = torch.arange(time, device=prompts.device) < prompts[:, None]
    history = batch.history.new_zeros(batch.size, time, *batch.history.shape[2:])
    history[known] = batch.history[:, :longest][known[:, :longest]]
    blank = batch.made(weights=None, eligible=None, rows=batch.row_numbers)
    return blank.made(targets=torch.zeros_like(history), history=history, mask=~known)


def start_decoding(model: Any, batch: Batch, prompts: Tensor, length: int | Tensor) -> DecodingState:
    """Start from the context and the first ``prompts`` (rows,) entries; everything else that the model reads is 0."""
    begun = blank_batch(batch, prompts, length)
    if has(model, Encoder):
        begun = model.encode(begun)
    return _Steps(model, begun, prompts) if has(model, Stepper) else _Forwards(model, begun, prompts)


class DecodingState(Protocol):
    """A model in the middle of decoding: predict the next position; go on with rows picked, repeated or dropped."""

    def predict(self) -> Tensor:
        """(n, vocab) or (n, value): the output at each row's next position."""
        ...

    def advance(self, entries: Tensor, rows: Tensor | None) -> None:
        """Go on with these rows (None: all), each with its entry ((m,) or (m, value))."""
        ...

    def repeat(self, rows: Tensor) -> None:
        """Go on from here with these rows, repeated or dropped."""
        ...


class _Steps:
    """Decoding by the model's own steps."""

    def __init__(self, model: Stepper, batch: Batch, prompts: Tensor) -> None:
        self.model, self.size = model, batch.size
        self.state = model.start(batch)
        longest = int(prompts.max())
        prompt = batch.history[:, :longest]
        if longest and has(model, Cached):
            known = torch.arange(longest, device=prompts.device) < prompts[:, None]
            self.state, _ = model.advance(self.state, model.embed(prompt[known]), prompts)
        elif longest and has(model, Reader):
            self.state = model.read(self.state, model.embed(prompt))
        elif longest:
            for inputs in model.embed(prompt).unbind(1):
                self.state = model.step(self.state, inputs)

    def predict(self) -> Tensor:
        return checked_rows(self.model.output(self.state), self.size)

    def repeat(self, rows: Tensor) -> None:
        self.state, self.size = self.model.select(self.state, rows), rows.numel()

    def advance(self, entries: Tensor, rows: Tensor | None) -> None:
        unchanged = rows is None or (len(rows) == self.size and torch.equal(rows, torch.arange(self.size).to(rows)))
        if rows is not None and not unchanged:
            self.repeat(rows)
        self.state = self.model.step(self.state, self.model.embed(entries))


class _Forwards:
    """Decoding by forwards over a growing history."""

    def __init__(self, model: Any, batch: Batch, prompts: Tensor) -> None:
        self.model, self.batch, self.done = model, batch, prompts

    def predict(self) -> Tensor:
        now = int(self.done.max()) + 1
        history = self.batch.history[:, :now]
        begun = self.batch.made(targets=torch.zeros_like(history), history=history, mask=self.batch.mask[:, :now])
        return forward(self.model, begun)[torch.arange(len(self.done), device=history.device), self.done]

    def repeat(self, rows: Tensor) -> None:
        self.batch, self.done = self.batch.select(rows), self.done[rows]

    def advance(self, entries: Tensor, rows: Tensor | None) -> None:
        if rows is not None:
            self.repeat(rows)
        self._make_room(int(self.done.max()) + 2)
        # out of place: a model may have kept the tensor that it read
        history = self.batch.history.clone()
        history[torch.arange(len(self.done), device=history.device), self.done] = entries.to(history.dtype)
        self.batch, self.done = self.batch.made(history=history), self.done + 1

    def _make_room(self, time: int) -> None:
        """Lengthen the history by zeros where a run goes on beyond what it was begun for."""
        batch, known = self.batch, self.batch.time
        if time > known:
            history = batch.history.new_zeros(batch.size, max(time, 2 * known), *batch.history.shape[2:])
            history[:, :known] = batch.history
            mask = torch.ones(history.shape[:2], dtype=torch.bool, device=history.device)
            mask[:, :known] = batch.mask
            self.batch = batch.made(targets=torch.zeros_like(history), history=history, mask=mask)


@dataclass(eq=False)
class Run:
    """A free run of rows side by side, and where it stands."""

    decoding: DecodingState
    batch: Batch  # of the rows that are drawn, samples included
    prompts: Tensor  # (rows,)
    made: int = 0  # entries so far
    rows: Tensor | None = None  # (n,) those still carried; None: all
    still_open: Tensor | None = None  # (n,) of these, not ended
    last: Tensor | None = None  # (n,) or (n, value) their last entries, not yet read
    dtype: torch.dtype | None = None  # of scores

    def resumed(self) -> Run:
        """The run where it stands, to be gone on from again: models never change a state in place."""
        return replace(self, decoding=copy(self.decoding))


@dataclass(frozen=True, eq=False)
class Stream:
    """Where ``generate(..., state=True)`` has stopped: pass it as ``state`` to go on, as often as you like.

    Two calls make what one longer call would, with the same draw, key and end. It holds the model's own state (hidden
    vectors, or a cache of keys and values), on the model's device; none of it is saved with a model.
    """

    model: Any
    groups: Sequence[Tensor]
    runs: Sequence[Run]
    size: int
    num_samples: int

    def __repr__(self) -> str:
        return f"Stream({self.size} rows, {self.runs[0].made} entries each)"

    def problems(self, model: Any, batch: Batch, num_samples: int) -> list[str]:
        """What does not go with a call that is to go on from here."""
        problems: list[str] = []
        if model is not self.model:
            problems.append(f"state is that of another model ({type(self.model).__name__}): go on with the same object")
        if batch.size != self.size:
            problems.append(
                f"state is of {self.size} rows; the batch has {batch.size}: pass the batch of the first call"
            )
        if num_samples != self.num_samples:
            problems.append(f"state has num_samples = {self.num_samples}; got {num_samples}")
        return problems
