"""Choosing how a roll-in is computed; every exact engine gives the same entries."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

from freerun.errors import UserError
from freerun.rollin.modes import evaluating, uncached_autocast
from freerun.rollin.passes import passes_roll_in
from freerun.rollin.plan import Plan
from freerun.rollin.step import step_roll_in
from freerun.types import Batch, Encoder, Model, Stepper

__all__ = ["ENGINES", "RollIn", "check_engine", "chosen_engine", "roll_in"]

ENGINES = ("auto", "step", "passes")


@dataclass(frozen=True, eq=False)
class RollIn:
    """A history rolled in, and how.

    Args:
        history: as the batch's: what the model is told.
        engine: the engine used.
        passes: model calls, or for ``step`` 1 (a loop over the positions is one pass over them).
        exact: whether the history has the sequential law (False for k parallel passes).
    """

    history: Tensor
    engine: str
    passes: int
    exact: bool


def check_engine(engine: str | int) -> list[str]:
    """The problems of an ``engine`` argument, if any."""
    if isinstance(engine, bool) or (isinstance(engine, int) and engine < 1):
        return [f"engine as a number is k >= 1 parallel passes (an approximation); got {engine}"]
    if not isinstance(engine, int) and engine not in ENGINES:
        return [f"engine must be one of {', '.join(ENGINES)} or a number of passes; got {engine!r}"]
    return []


def chosen_engine(model: Any, engine: str | int) -> str | int:
    """``"step"``, ``"passes"`` or k: ``auto`` decided, and ``step`` refused where the model cannot."""
    stepped = isinstance(model, Stepper)
    if engine == "auto":
        return "step" if stepped else "passes"
    if engine == "step" and not stepped:
        raise UserError(
            f"engine='step' needs a model with start, embed, step, output and select; {type(model).__name__} has only "
            "a forward: use engine='auto' (exact parallel passes) or add the Stepper methods"
        )
    return engine


@torch.no_grad()
def roll_in(model: Any, batch: Batch, plan: Plan, engine: str | int = "auto") -> RollIn:
    """Build the mixed history without gradient, in evaluation mode.

    ``auto`` steps through a Stepper, and repeats parallel passes until nothing changes for anything else. With
    ``"step"``, ``"passes"`` or ``"auto"`` the entries are those of the sequential loop; an integer k is the
    approximation by k passes (k = 1: Mihaylova and Martins 2019).

    Args:
        model: any model; each submodule's mode is restored afterwards.
        batch: the batch, its history gold.
        plan: which entries to replace, and the noise.
        engine: ``"auto"``, ``"step"``, ``"passes"`` or k.
    """
    if len(plan) == 0:
        return RollIn(batch.history, "none", 0, True)
    engine = chosen_engine(model, engine)
    with evaluating(model), uncached_autocast(batch.history.device):
        if isinstance(model, Encoder):
            batch = model.encode(batch)
        if engine == "step":
            history, _ = step_roll_in(model, batch, plan)
            return RollIn(history, "step", 1, True)
        limit = engine if isinstance(engine, int) else None
        history, passes = passes_roll_in(cast(Model, model), batch, plan, limit)
    return RollIn(history, "passes" if limit is None else f"{limit} passes", passes, limit is None)
