"""The pass on gold history that several methods make: what the model says there, and the loss that is kept."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from freerun import gates
from freerun.errors import UserError
from freerun.methods.base import TransformMethod, without_nan
from freerun.rollin import can, forward, some, unwrapped
from freerun.rollin.modes import asking
from freerun.types import Batch, Outcome, Split

__all__ = ["gold_weight_problems", "kept_gold_loss", "said", "said_at", "tosser", "with_gold_loss"]


@torch.no_grad()
def said(model: Any, batch: Batch) -> Tensor:
    """What the model says on a batch, in evaluation mode and without gradient: (batch, time, ...)."""
    model = unwrapped(model)
    with asking(model, batch):
        return forward(model, batch)


@torch.no_grad()
def said_at(model: Any, batch: Batch, rows: Tensor, times: Tensor) -> Tensor:
    """The same at n places only: (n, vocab or value); where the model can, only they reach the vocabulary."""
    inner: Any = unwrapped(model)
    halves = len(rows) > 0 and bool(can(inner, Split))
    with asking(inner, batch):
        if halves:
            return inner.head(inner.hidden(batch)[rows, times])
        return forward(inner, batch)[rows, times]


def tosser(coin: Any, model: Any, batch: Batch, ratio: float) -> tuple[Callable[[int], Tensor], int]:
    """From a key to a gate's ``keep``, and the number of model calls it took to be ready (1 for a confidence gate).

    Args:
        coin: a gate or its name.
        model: asked for its confidence on gold history, in evaluation mode, where the gate needs that.
        batch: the batch, its history gold.
        ratio: the teacher forcing ratio; at 1 nothing is asked.
    """
    gate = gates.resolve(coin)
    if gates.is_soft(gate):
        raise UserError(
            f"coin={coin!r} mixes gold and own values, which only scheduled_sampling does: use it, or another coin"
        )
    if not gates.needs_confidence(gate):
        return lambda key: gates.kept(gate(batch, ratio, key), batch), 0
    if ratio >= 1:
        return lambda key: torch.ones_like(batch.mask), 0
    confident: Any = gate
    return partial(confident, batch, ratio, confidence=gates.confidences(said(model, batch), batch)), 1


def with_gold_loss(method: TransformMethod, outcome: Outcome, gold: Tensor, batch: Batch) -> Outcome:
    """The outcome with ``gold_weight`` times the loss on gold history added.

    Args:
        method: has ``gold_weight``.
        outcome: of the fed batch.
        gold: the model's outputs on gold history, with graph.
        batch: the batch as given, its history gold.
    """
    total = method.finish(gold, batch, {}).total
    weight: float = getattr(method, "gold_weight")  # noqa: B009 - a field of some methods only
    return replace(outcome, total=outcome.total + weight * total)


def kept_gold_loss(method: TransformMethod, outcome: Outcome, model: Any, batch: Batch) -> Outcome:
    """``with_gold_loss`` for a method that has made no training forward on gold; where nothing was replaced, it has."""
    batch = without_nan(batch)
    replaced = some(model, float(outcome.report["replaced"]) > 0)
    # a gradient that is cut leaves the outputs without a graph
    if not replaced and outcome.outputs.requires_grad == outcome.total.requires_grad:
        return with_gold_loss(method, outcome, outcome.outputs, batch)
    more = {name: float(outcome.report[name]) + 1 for name in ("passes", "work") if name in outcome.report}
    outcome = replace(outcome, report={**outcome.report, **more})
    return with_gold_loss(method, outcome, forward(model, batch), batch)


def gold_weight_problems(weight: Any) -> list[str]:
    """What is wrong with a ``gold_weight``, if anything."""
    number = isinstance(weight, int | float) and not isinstance(weight, bool)
    if number and 0 <= weight < float("inf"):
        return []
    return [f"gold_weight must be a number of 0 or more (0: the loss on gold history is not kept); got {weight!r}"]
