"""A free run far beyond the horizon: windows chained, each on the last steps that the run itself has said."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from freerun.diagnostics.leads import BOUND, diverged_at
from freerun.draws import Draw
from freerun.errors import UserError, whole
from freerun.generate import generate
from freerun.generate.walk import prompt_lengths
from freerun.keys import fold
from freerun.rollin.outputs import call_problems
from freerun.types import Batch

__all__ = ["long_run", "past_of"]


def past_of(batch: Batch) -> Tensor | None:
    """The values known before the horizon: (windows, past, V); None where there are none of one length.

    They are the first channels of ``context["past"]``, or the prompts that the histories begin with.

    >>> told = torch.tensor([[[1.0], [2.0], [3.0]]])
    >>> past_of(Batch(told, told, torch.tensor([[False, False, True]]))).flatten()
    tensor([1., 2.])
    """
    width = batch.targets.shape[-1]
    if isinstance(batch.context, Mapping) and "past" in batch.context:
        past = batch.context["past"]
        return past[..., :width] if isinstance(past, Tensor) else None
    told = prompt_lengths(batch)
    longest = int(told.max())
    return batch.history[:, :longest] if longest and longest == int(told.min()) else None


def long_run(
    model: Any, batch: Batch, steps: int, *, draw: str | Draw = "point", key: int = 0, bound: float = BOUND
) -> Tensor:
    """What a model says when it goes on and on: (rows, steps, V), or fewer steps where a row has escaped.

    The model says its horizon, ``x[1..H] = free run(past)``; then the last of what it was told and said becomes the
    past, ``past' = (past, x[1..H])[-P:]``, and so on. So it is never asked for more steps than it was made for.

    Args:
        model: from a Batch to (batch, time, value) outputs.
        batch: windows to start from, of either layout (past in the context, or as prompts of one length); their horizon
            is what the model says at a time.
        steps: to say.
        draw: what is fed back, see ``generate``.
        key: of the draws, where they are random.
        bound: the run stops after a stretch in which it passes this, see ``diverged_at``.

    Raises:
        UserError: windows that need more than values to go on: observed channels or covariates; no past.

    >>> class Halve:
    ...     def __call__(self, batch):
    ...         before = torch.nn.functional.pad(batch.history, (0, 0, 1, 0))[:, :-1]
    ...         return before / 2
    >>> told = torch.tensor([[[8.0], [0.0]]])
    >>> start = Batch(told, told, torch.tensor([[False, True]]))
    >>> long_run(Halve(), start, 3).flatten()
    tensor([4., 2., 1.])
    """
    problems = call_problems(model, batch, "long_run(model, batch, steps)")
    if whole(steps) is None or steps < 1:
        problems.append(f"steps must be a whole number of at least 1; got {steps!r}")
    if problems:
        raise UserError(problems)
    past = _startable(batch)
    horizon = batch.time if _in_context(batch) else batch.time - past.shape[1]
    parts: list[Tensor] = []
    for number in range(-(-steps // horizon)):
        said = generate(model, batch, length=horizon, draw=draw, key=fold(key, "long run", number)).entries
        parts.append(said)
        if bool(diverged_at(said, bound).any()):
            break
        past = torch.cat([past, said.to(past)], 1)[:, -past.shape[1] :]
        batch = _moved(batch, past)
    return torch.cat(parts, 1)[:, :steps]


def _in_context(batch: Batch) -> bool:
    return isinstance(batch.context, Mapping) and "past" in batch.context


def _startable(batch: Batch) -> Tensor:
    past = past_of(batch)
    context: Any = {} if batch.context is None else batch.context
    others = set(context) - {"past"} if isinstance(context, Mapping) else {"the context"}
    if past is None:
        raise UserError("a long run needs windows with a past of one length to start from")
    if others:
        raise UserError(
            f"a long run has no values for {', '.join(sorted(map(str, others)))} beyond the window: it is made for "
            "series without covariates"
        )
    if extra := context["past"].shape[-1] - past.shape[-1] if _in_context(batch) else 0:
        raise UserError(f"a long run would need the {extra} observed channels that the model does not say")
    return past


def _moved(batch: Batch, past: Tensor) -> Batch:
    if _in_context(batch):
        return batch.made(context={"past": past})
    told = past.shape[1]
    history = torch.cat([past, torch.zeros_like(batch.history[:, told:])], 1)
    return batch.made(history=history, targets=torch.zeros_like(history))
