"""Roll-ins that keep the graph: values fed back with their gradient. The roll-in's outputs are the outputs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from freerun.brief import brief
from freerun.draws import check_width
from freerun.errors import UserError
from freerun.rollin.engines import Engine, resolve
from freerun.rollin.mixing import Mixing
from freerun.rollin.modes import differs_by_mode
from freerun.rollin.outputs import checked_rows, forward
from freerun.rollin.together import can, hint, most
from freerun.types import Batch, Stepper

__all__ = ["Unrolled", "refuse_unrolling", "unroll"]


@dataclass(frozen=True, eq=False)
class Unrolled:
    """What was said and fed.

    Args:
        outputs: (batch, time, width), with graph.
        history: (batch, time, value), what was fed.
        passes: extra model calls.
        exact: whether the history is the sequential one.
    """

    __repr__ = brief

    outputs: Tensor
    history: Tensor
    passes: int
    exact: bool


def refuse_unrolling(model: Any, engine: Engine) -> Engine:
    """The engine, resolved; refused where it keeps no gradient or the model has not the methods for it.

    Raises:
        UserError: ``"window"`` or ``"draft"``, or ``"step"`` without a Stepper.
    """
    engine = resolve(engine)
    if engine not in ("auto", "step", "jacobi") and not isinstance(engine, int):
        raise UserError(
            f"engine={engine!r} keeps no gradient through own outputs: use 'auto', 'step' or 'jacobi', or "
            "gradient='none'"
        )
    if engine == "step" and not can(model, Stepper):
        raise UserError(
            f"engine='step' needs a model with start, embed, step, output and select; {type(model).__name__} has only "
            f"a forward: use engine='auto' (parallel passes) or add the Stepper methods{hint(model, Stepper)}"
        )
    return engine


def unroll(model: Any, batch: Batch, mixing: Mixing, engine: Engine = "auto") -> Unrolled:
    """Outputs and history with gradient through everything that is fed.

    Args:
        model: a Stepper, or anything with a forward (then in as many passes as a row has own entries).
        batch: values (batch, time, value).
        mixing: what is fed.
        engine: ``"auto"``, ``"step"``, ``"jacobi"``, or k passes, an approximation.

    Raises:
        UserError: an engine that keeps no gradient, ``"step"`` without a Stepper, passes through dropout, or passes
            that do not settle.
    """
    engine = refuse_unrolling(model, engine)
    if engine == "step" or (engine == "auto" and can(model, Stepper)):
        return _by_steps(model, batch, mixing)
    return _by_passes(model, batch, mixing, engine if isinstance(engine, int) else None)


def _by_steps(model: Stepper, batch: Batch, mixing: Mixing) -> Unrolled:
    state = model.start(batch)
    outputs: list[Tensor] = []
    history: list[Tensor] = []
    for t in range(batch.time):
        outputs.append(model.output(state))
        if t == 0:
            check_width(mixing.draw, checked_rows(outputs[0], batch.size), mixing.gold.shape[-1])
        history.append(mixing.entries(outputs[t], t))
        if t + 1 < batch.time:
            state = model.step(state, model.embed(history[t]))
    return Unrolled(torch.stack(outputs, 1), torch.stack(history, 1), 0, True)


def _by_passes(model: Any, batch: Batch, mixing: Mixing, limit: int | None) -> Unrolled:
    if differs_by_mode(model):
        raise UserError(
            "gradient through own outputs in parallel passes needs the same function in every pass, and this model "
            "has dropout or batch normalisation in training mode: set dropout to 0, give the model a Stepper "
            "(start, embed, step, output, select), or use gradient='none'"
        )
    history = batch.history
    needed = most(model, int(mixing.replaced.sum(1).max()))
    passes = needed if limit is None else min(limit, needed)
    for _ in range(passes):
        history = mixing.all_entries(forward(model, batch.made(history=history)))
    outputs = forward(model, batch.made(history=history))
    if passes < needed:
        return Unrolled(outputs, history, passes, False)
    with torch.no_grad():  # the certificate: said again, the entries are those that were fed
        again = mixing.all_entries(outputs)
    if not torch.allclose(again, history, rtol=1e-4, atol=1e-6, equal_nan=True):
        raise UserError(
            f"the roll-in did not settle in {needed} passes: the model's outputs depend on later entries, or change "
            "from call to call; freerun.check_model(model, batch) says which"
        )
    return Unrolled(outputs, history, passes, True)
