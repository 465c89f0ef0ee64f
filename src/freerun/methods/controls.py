"""Controls of a comparison: errors drawn as scheduled sampling made them, and a decoder without history."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from freerun.batch import Batch
from freerun.errors import UserError
from freerun.gates import Token
from freerun.keys import fold, uniform
from freerun.methods.base import SHARED, Citation, TransformMethod
from freerun.methods.report import replacement_counts
from freerun.methods.scheduled_sampling import ScheduledSampling
from freerun.objectives import Objective
from freerun.schedules import Schedule, followed

BLOCK = 25
"""Updates whose errors are pooled."""
_ROWS = 2
"""Rows of a batch of values whose errors are recorded; the order of a batch is random."""


def own_errors(batch: Batch, history: Tensor) -> dict[str, Any]:
    """What a history has in place of gold, as JSON types: see ``ErrorLaw``.

    Of ids every ``(gold, fed, count)``; of values ``(position, fed - gold, channel by channel)`` of the first rows.

    Args:
        batch: with the gold history.
        history: that was fed instead.

    Raises:
        UserError: a history of another shape.

    >>> gold = Batch(torch.tensor([[2, 1, 1]]))
    >>> own_errors(gold, torch.tensor([[2, 3, 3]]))
    {'kind': 'symbols', 'width': 3, 'flat': [1, 3, 2]}
    """
    if history.shape != batch.history.shape:
        raise UserError(
            f"own errors cannot be recorded: the method feeds a history {tuple(history.shape)}, and gold has "
            f"{tuple(batch.history.shape)}"
        )
    wrong, gold = history.detach() != batch.history, batch.history.detach()
    if batch.present is not None:  # of an entry with a missing value nothing is recorded
        wrong &= ~gold.isnan().any(-1, keepdim=True)
    wrong &= batch.replaceable if batch.is_discrete else batch.replaceable[..., None]
    if batch.is_discrete:
        pairs, counts = torch.stack([gold[wrong], history[wrong]]).unique(dim=1, return_counts=True)
        flat = torch.cat([pairs, counts[None]]).T.flatten().tolist()
        return {"kind": "symbols", "width": 3, "flat": flat}
    rows, times = wrong[:_ROWS].any(-1).nonzero(as_tuple=True)
    far = (history.detach() - gold)[rows, times].double().cpu()
    flat = torch.cat([times[:, None].double().cpu(), far], 1).float().flatten().tolist()
    return {"kind": "values", "width": 1 + gold.shape[-1], "flat": flat}


@dataclass(frozen=True, eq=False)
class ErrorLaw:
    """Own errors of a run, by blocks of updates: what stood in place of each symbol, or how far values were off.

    ``q_b(v | g) = count_b(g, v) / count_b(g)`` over the errors of the updates of block b: of symbols g is the gold
    one; of values g is the lead time (the position), and v one of the recorded differences. Where a block has none for
    g, all blocks are taken; where they have none either, gold is kept.

    Args:
        kind: "symbols" or "values"; "unknown" stands for a law that is measured later, and keeps gold.
        blocks: for each block (n, width) what ``own_errors`` returned, one below the other.
        size: updates of a block.

    >>> law = ErrorLaw.of([[{"kind": "symbols", "width": 3, "flat": [1, 3, 2]}]] * 30)
    >>> law, law.draw(0, torch.tensor([1, 0]), torch.tensor([0.5, 0.5])).tolist()
    (errors(symbols, blocks=2, n=60, sha=75265ca9), [3, 0])
    """

    kind: str = "unknown"
    blocks: tuple[Tensor, ...] = ()
    size: int = BLOCK

    @classmethod
    def of(cls, updates: Sequence[Sequence[Mapping[str, Any]]], size: int = BLOCK) -> ErrorLaw:
        """Return the law of what ``own_errors`` returned in the micro-batches of all updates, in their order."""
        kinds = {(each["kind"], each["width"]) for update in updates for each in update}
        if len(kinds) != 1:
            raise UserError(f"records of own errors must all be of one kind; got {sorted(kinds) or 'none'}")
        ((kind, width),) = kinds
        empty = torch.zeros(0, width, dtype=torch.float64)
        blocks: list[Tensor] = []
        for start in range(0, len(updates), size):
            flat = [each["flat"] for update in updates[start : start + size] for each in update]
            blocks.append(torch.cat([empty, *(torch.tensor(one).double().view(-1, width) for one in flat)]))
        return cls(kind, tuple(blocks), size)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ErrorLaw) and repr(self) == repr(other)

    def __hash__(self) -> int:
        return hash(repr(self))

    def __repr__(self) -> str:
        digest = hashlib.sha256(f"{self.kind} {self.size}".encode())
        for block in self.blocks:
            digest.update(block.contiguous().numpy().tobytes() + b"|")
        count = sum(float(block[:, 2].sum()) if self.kind == "symbols" else len(block) for block in self.blocks)
        return f"errors({self.kind}, blocks={len(self.blocks)}, n={count:.0f}, sha={digest.hexdigest()[:8]})"

    @cached_property
    def _tables(self) -> list[_Law]:
        """The law of each block, and of all."""
        return [_Law.of(block, self.kind == "symbols") for block in (*self.blocks, torch.cat(self.blocks))]

    def draw(self, step: int, condition: Tensor, u: Tensor, gold: Tensor | None = None) -> Tensor:
        """Draw what is fed at n entries.

        Args:
            step: the update; after the last block its law holds on.
            condition: (n,) gold symbols, or positions of values.
            u: (n,) uniform numbers.
            gold: (n, value) gold values; symbols have none.
        """
        kept = condition if gold is None else gold
        if self.kind == "unknown" or not len(condition):
            return kept
        block, whole_run = self._tables[min(int(step) // self.size, len(self.blocks) - 1)], self._tables[-1]
        at, found = block.find(condition.cpu(), u.cpu())
        later, known = whole_run.find(condition.cpu(), u.cpu())
        drawn = torch.where(found[:, None], block.values[at], whole_run.values[later]).to(condition.device)
        known = known.to(condition.device)
        if gold is None:
            return torch.where(known, drawn[:, 0].long(), condition)
        return torch.where(known[:, None], gold + drawn.to(gold.dtype), gold)


@dataclass(frozen=True, eq=False)
class _Law:
    """A table of a law: keys in rising order, where the rows of each begin and end, counts summed up, values."""

    keys: Tensor
    bounds: Tensor
    summed: Tensor
    values: Tensor

    @classmethod
    def of(cls, rows: Tensor, counted: bool) -> _Law:
        ordered = rows[rows[:, 0].argsort(stable=True)]
        keys, sizes = ordered[:, 0].unique_consecutive(return_counts=True)
        counts = ordered[:, 2] if counted else torch.ones(len(ordered), dtype=torch.float64)
        bounds = torch.cat([sizes.new_zeros(1), sizes.cumsum(0)])
        values = ordered[:, 1:2] if counted else ordered[:, 1:]
        # a last row for keys that are not there
        padding = values.new_zeros(1, values.shape[1])
        return cls(keys, bounds, torch.cat([counts.new_zeros(1), counts.cumsum(0)]), torch.cat([values, padding]))

    def find(self, condition: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
        """(n,) the row drawn for each key by inverse CDF, and whether the key is there."""
        last = torch.full_like(condition, len(self.values) - 1, dtype=torch.int64)
        if not len(self.keys):
            return last, torch.zeros_like(condition, dtype=torch.bool)
        at = torch.searchsorted(self.keys, condition.double()).clamp_max(len(self.keys) - 1)
        known = self.keys[at] == condition.double()
        first, end = self.bounds[at], self.bounds[at + 1]
        level = self.summed[first] + u.double() * (self.summed[end] - self.summed[first])
        row = torch.searchsorted(self.summed, level, right=True) - 1
        row = torch.maximum(torch.minimum(row, end - 1), first)
        return torch.where(known, row, last), known


@dataclass(frozen=True, repr=False)
class ConfusionNoise(TransformMethod):
    """Replace gold with probability ``rate`` by an error that another run made in its place; targets stay clean.

    ``h_t = y_t`` with probability 1 - r(step), else a draw from ``q_b(. | y_t)``, counted over the own errors of that
    run in the same block of updates (of values: ``y_t`` plus one of its own residuals at that lead time). As many
    errors as scheduled sampling made, and of the same kind, but not this model's: the control that separates *own*
    errors from *plausible* ones. Its gate is that of scheduled sampling with ``teacher_forcing_ratio = 1 - rate``.

    Args:
        rate: probability of replacing, in [0, 1]; a number or a schedule, such as the other run's share of errors.
        law: an ``ErrorLaw``: the errors of that run, which it recorded with ``train.record_errors``.
        objective: ``"auto"``, or another.

    Raises:
        UserError: arguments outside their range; a law of symbols for values, or the other way round.

    What it is not: ``token_noise``, whose errors are drawn evenly or by frequency; nor errors that follow from each
    other: each entry is drawn alone, where own errors come in runs.

    >>> ids = torch.tensor([[1, 1, 1, 1]])
    >>> law = ErrorLaw.of([[{"kind": "symbols", "width": 3, "flat": [1, 3, 5]}]])
    >>> ConfusionNoise(1.0, law).transform(lambda batch: batch, Batch(ids), step=0).history
    tensor([[3, 3, 3, 3]])
    """

    rate: float | Schedule
    law: Any
    objective: str | Objective = "auto"

    name: ClassVar[str] = "confusion_noise"
    summary: ClassVar[str] = "errors drawn as another run made them: the confusion control"
    feeds_own: ClassVar[bool] = False
    ranges: ClassVar[dict[str, tuple[float, float]]] = {"rate": (0.0, 1.0), **SHARED}
    citation: ClassVar[Citation] = Citation(
        formula="h_t = y_t with probability 1 - r(step), else a draw from q_b(. | y_t), counted over own errors;  "
        "loss = -sum_t log p(y_t | h_<t, x)",
        reference="A control of freerun's: the matched noise of Bengio et al. (2015), arXiv:1506.03099, drawn from "
        "counted confusions instead of evenly; no paper is known to us.",
        bibtex=ScheduledSampling.citation.bibtex,
    )

    def problems(self) -> list[str]:
        """Return which arguments cannot be."""
        if isinstance(self.law, ErrorLaw):
            return super().problems()
        return [f"law must be an ErrorLaw, of a run's recorded errors; got {self.law!r}", *super().problems()]

    def mix_history(self, model: Any, batch: Batch, step: int, key: int) -> tuple[Batch, dict[str, float | str]]:
        """The batch with errors in its history; no model call."""
        kind = "symbols" if batch.is_discrete else "values"
        if self.law.kind not in (kind, "unknown"):
            raise UserError(f"confusion_noise has a law of {self.law.kind}, and these targets are {kind}")
        rate = self.value("rate", step, key)
        chosen = batch.replaceable & ~Token()(batch, 1.0 - rate, fold(key, "gate", int(step)))
        rows, times = chosen.nonzero(as_tuple=True)
        history = batch.history
        if len(rows):
            u = uniform(fold(key, "confusion", int(step)), batch.row_numbers[rows], times)
            gold = history[rows, times]
            drawn = self.law.draw(step, gold, u) if batch.is_discrete else self.law.draw(step, times, u, gold)
            history = history.index_put((rows, times), drawn.to(history.dtype))
        report = replacement_counts(batch, history, len(rows))
        return batch.made(history=history, replaced=chosen), {"rate": rate, **report, "passes": 0, "engine": "none"}


confusion_noise = ConfusionNoise


@dataclass(frozen=True, repr=False)
class NoHistory(TransformMethod):
    """Feed the same entry at every position, in training and afterwards: a decoder that sees the context alone.

    ``h_t = 0`` for all t (id 0, or zeros); ``loss = -sum_t log p(y_t | t, x)``. What it reaches needs no history at
    all, so a method for the history is of use only where it does better. Its free run and its run on gold history are
    the same by construction, as ``deployed`` takes the history away wherever the model is scored or used.

    Args:
        objective: ``"auto"``, or another.

    What it is not: word dropout, which hides some entries in training only; nor a model without recurrence: the state
    still counts positions.

    >>> gold = Batch(torch.tensor([[2, 1, 3]]))
    >>> NoHistory().transform(lambda batch: batch, gold, step=0).history
    tensor([[0, 0, 0]])
    """

    objective: str | Objective = "auto"

    name: ClassVar[str] = "no_history"
    summary: ClassVar[str] = "the same entry everywhere: a decoder that sees the context alone"
    feeds_own: ClassVar[bool] = False
    citation: ClassVar[Citation] = Citation(
        formula="h_t = 0;  loss = -sum_t log p(y_t | t, x)",
        reference="A control of freerun's. In training alone, and for some entries, it is the word dropout of Bowman, "
        "S. R., Vilnis, L., Vinyals, O., Dai, A., Jozefowicz, R. and Bengio, S. (2016). Generating sentences from a "
        "continuous space. CoNLL. arXiv:1511.06349, at keep rate 0",
        bibtex="""@inproceedings{bowman2016generating,
  author    = {Bowman, Samuel R. and Vilnis, Luke and Vinyals, Oriol and Dai, Andrew and Jozefowicz, Rafal
               and Bengio, Samy},
  title     = {Generating Sentences from a Continuous Space},
  booktitle = {Conference on Computational Natural Language Learning},
  year      = {2016}
}""",
    )

    def deployed(self, model: Any) -> Any:
        """The model as it is scored and used: without history."""
        return model if isinstance(model, WithoutHistory) else WithoutHistory(model)

    def mix_history(self, model: Any, batch: Batch, step: int, key: int) -> tuple[Batch, dict[str, float | str]]:
        """The batch with zeros for a history; no model call."""
        fed = without_history(batch)
        report = replacement_counts(batch, fed.history, int(batch.replaceable.sum()))
        return fed, {"teacher_forcing_ratio": 0.0, **report, "passes": 0, "engine": "none"}


no_history = NoHistory


def refuse_no_history(method: Any) -> None:
    """Refuse a method that takes the history away where somebody else's trainer scores and uses the model."""
    if isinstance(method, NoHistory):
        raise UserError(
            "no_history takes the history away wherever the model is scored and used, and this trainer does both "
            "itself: train freerun.methods.WithoutHistory(model) with teacher_forcing, which is the same"
        )


def refuse_modules(method: Any) -> None:
    """Refuse a method with modules of its own where somebody else's trainer makes the optimizer."""
    if hasattr(method, "modules"):
        raise UserError(
            f"{method.name} has modules of its own to train, method.modules(model, batch), and the optimizer of this "
            "trainer has the model's weights alone: use freerun.fit or freerun train, or a plain PyTorch loop whose "
            "optimizer has both"
        )


def refuse_scores(method: Any) -> None:
    """Refuse a schedule that follows a dev score where somebody else's trainer scores."""
    if names := [f"{name}={schedule!r}" for name, schedule in followed(method).items()]:
        raise UserError(
            f"{', '.join(names)} follows a dev score, and this trainer passes none on, so that it would never move: "
            "use freerun.fit or freerun train, a plain PyTorch loop that calls its observe(score, step), or another "
            "schedule"
        )


def without_history(batch: Batch) -> Batch:
    """The batch with zeros for what may be replaced of its history; prompts stay."""
    where = batch.replaceable if batch.is_discrete else batch.replaceable[..., None]
    return batch.made(history=batch.history.masked_fill(where, 0), replaced=batch.replaceable)


class WithoutHistory(nn.Module):
    """A model that sees zeros for its history, whatever it is fed: what ``no_history`` trained, as it is used.

    It has a forward alone, so that generation costs a forward a position.

    Args:
        inner: the model.

    >>> model = WithoutHistory(lambda batch: batch.history)
    >>> model(Batch(torch.tensor([[2, 1, 3]])))
    tensor([[0, 0, 0]])
    """

    def __init__(self, inner: Any) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, batch: Batch) -> Tensor:
        """The outputs for a history of zeros."""
        return self.inner(without_history(batch))

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name not in ("settings", "target_vocab", "limit"):
                raise
            return getattr(self.inner, name)
