"""One step on values whose gradient goes through the model's own entries, or that are blended with gold."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from freerun import objectives
from freerun.errors import UserError
from freerun.methods.base import TransformMethod, change_report, encode_once
from freerun.rollin import (
    Mixing,
    can,
    forward,
    refuse_cutting,
    refuse_unrolling,
    some,
    unroll,
    unroll_truncated,
    unwrapped,
)
from freerun.rollin.engines import Engine, resolve
from freerun.rollin.modes import asking, repeatable
from freerun.types import Batch, Encoder, Outcome

__all__ = ["GRADIENTS", "Own", "blended", "gradient_of", "gradient_problems", "through_own"]

GRADIENTS = ("auto", "none", "full")


@dataclass(frozen=True, eq=False)
class Own:
    """What a method decides before a roll-in of values.

    Args:
        mixing: what is fed.
        gradient: ``"full"``, or k: cut every k positions.
        engine: of the roll-in.
        report: what is known of the step so far.
        off: whether nothing own is fed in any batch at this step, so that the step is plain teacher forcing. That a
            batch happens to have no own entry is not enough: a cut must not depend on how rows fall into micro-batches.
    """

    mixing: Mixing
    gradient: str | int
    engine: Engine
    report: dict[str, float | str]
    off: bool = False


def gradient_problems(gradient: Any) -> list[str]:
    """What is wrong with a ``gradient`` argument, if anything."""
    count = isinstance(gradient, int) and not isinstance(gradient, bool) and gradient >= 1
    if gradient in GRADIENTS or count:
        return []
    return [f"gradient must be 'auto', 'none', 'full' or a number of positions k >= 1; got {gradient!r}"]


def gradient_of(batch: Batch, gradient: str | int) -> str | int:
    """The policy for a batch: ``"auto"`` is none for ids and full for values.

    Raises:
        UserError: any other than none for ids.
    """
    if gradient == "auto":
        return "none" if batch.is_discrete else "full"
    if batch.is_discrete and gradient != "none":
        raise UserError(
            f"gradient={gradient!r} has no meaning for ids: a sampled symbol carries no gradient; use 'auto'"
        )
    return gradient


def through_own(method: TransformMethod, model: Any, batch: Batch, own: Own) -> Outcome:
    """The outcome of a step: the roll-in's outputs are the outputs, there is no second forward.

    With nothing to replace it is the ordinary forward, bit for bit; a gradient that is cut is cut there too, except
    where the method is off.

    Raises:
        UserError: what the model or the engine cannot do, also at a step that would not need it.
    """
    engine = refuse_unrolling(model, own.engine)
    cut = isinstance(own.gradient, int)
    if isinstance(own.gradient, int):
        refuse_cutting(model, own.gradient, engine)
    replaced = int(torch.count_nonzero(own.mixing.replaced))
    report = dict(own.report)
    if not some(model, replaced > 0) and (own.off or not cut):
        report |= {**change_report(batch, batch.history, 0), **_how(0, True), "engine": "none"}
        return method.finish(forward(model, encode_once(model, batch)), batch, report)
    with repeatable(unwrapped(model), batch):
        if cut:
            return _truncated(method, model, batch, own, replaced)
        done = unroll(model, encode_once(model, batch), own.mixing, engine)
    report |= {**change_report(batch, done.history, replaced), **_how(done.passes, done.exact), "engine": "unrolled"}
    return method.finish(done.outputs, batch.made(history=done.history), report)


def _truncated(method: TransformMethod, model: Any, batch: Batch, own: Own, replaced: int) -> Outcome:
    assert isinstance(own.gradient, int)
    objective: Any = getattr(method, "objective", "auto")
    done = unroll_truncated(model, batch, own.mixing, own.gradient, objectives.resolve(objective, batch))
    report = {**own.report, **change_report(batch, done.history, replaced), **_how(0, True), "engine": "unrolled"}
    return Outcome(done.total, done.count, done.outputs, batch.made(history=done.history), report)


def blended(model: Any, batch: Batch, mixing: Mixing, engine: Engine) -> tuple[Tensor, dict[str, float | str]]:
    """The history of a soft mix, built in evaluation mode and without gradient, and what to report of it."""
    if resolve(engine) not in ("auto", "step", "jacobi") and not isinstance(engine, int):
        raise UserError(f"engine={engine!r} cannot blend gold and own: use 'auto', 'step' or 'jacobi'")
    model, replaced = unwrapped(model), int(torch.count_nonzero(mixing.replaced))
    if not some(model, replaced > 0):
        return batch.history, {**change_report(batch, batch.history, 0), **_how(0, True), "engine": "none"}
    with torch.no_grad(), asking(model, batch):
        encoded = model.encode(batch) if can(model, Encoder) else batch
        done = unroll(model, encoded, mixing, engine)
    passes = max(1, done.passes)
    report = {**change_report(batch, done.history, replaced), **_how(passes, done.exact), "engine": "unrolled"}
    return done.history, report


def _how(passes: int, exact: bool) -> dict[str, float | str]:
    certified = "no" if not exact else "construction" if passes == 0 else "fixed point"
    return {"passes": passes, "work": float(passes), "certified": certified, "exact": float(exact)}
