"""Running a roll-in by one of the engines; every exact engine gives the same entries."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

from freerun.arguments import brief
from freerun.batch import Batch
from freerun.rollin.draft import draft_roll_in
from freerun.rollin.engines import Draft, Engine, Window, chosen_engine, refuse_engine
from freerun.rollin.jacobi import jacobi_roll_in
from freerun.rollin.model import any_rank, asking, supports, unwrap
from freerun.rollin.replacement import Plan, Rolled
from freerun.rollin.step import step_roll_in
from freerun.rollin.window import window_roll_in
from freerun.types import Encoder


@dataclass(frozen=True, eq=False)
class RollIn:
    """A history rolled in, and how.

    Args:
        history: as the batch's: what the model is told.
        engine: the engine used.
        passes: model calls, or for ``step`` 1 (a loop over the positions is one pass over them).
        work: positions computed, in forwards: 1 is batch x time of them.
        certified: what makes it the sequential history: ``"construction"`` (every entry was chosen after all before
            it), ``"fixed point"`` (a last pass over the rows changed nothing), ``"training forward"`` (that pass was
            the forward that is differentiated), or ``"no"`` for k parallel passes.
    """

    __repr__ = brief

    history: Tensor
    engine: str
    passes: int
    work: float
    certified: str

    @property
    def exact(self) -> bool:
        """Whether the history has the sequential law."""
        return self.certified != "no"

    def report(self) -> dict[str, float | str]:
        """For ``Outcome.report``."""
        return {
            "engine": self.engine,
            "passes": self.passes,
            "work": self.work,
            "certified": self.certified,
            "exact": float(self.exact),
        }


@torch.no_grad()
def roll_in(model: Any, batch: Batch, plan: Plan, engine: Engine = "auto") -> RollIn:
    """Build the mixed history without gradient, in evaluation mode.

    With every engine but a number the entries are those of the sequential loop; an integer k is the approximation by
    k parallel passes (k = 1: Mihaylova and Martins 2019).

    Args:
        model: any model; each submodule's mode is restored afterwards. What is in ``DistributedDataParallel`` or
            ``torch.compile`` is taken out of it. One with sharded parameters is called equally often by all processes.
        batch: the batch, its history gold.
        plan: which entries to replace, and the noise.
        engine: see ``freerun.rollin.engines``.

    Raises:
        UserError: the model lacks what the engine needs, couples the rows of a batch, or does not settle.
    """
    model = unwrap(model)
    refuse_engine(model, engine)
    if not any_rank(model, len(plan) > 0):
        return RollIn(batch.history, "none", 0, 0.0, "construction")
    engine = chosen_engine(model, batch, plan, engine)
    with asking(model, batch):
        encoded = model.encode(batch) if supports(model, Encoder) else batch
        if isinstance(engine, Draft):
            return _drafted(model, encoded, plan, draft_roll_in(model, batch, plan, engine, encoded))
        return _rolled(model, encoded, plan, engine)


def _rolled(model: Any, batch: Batch, plan: Plan, engine: Engine) -> RollIn:
    if isinstance(engine, Window):
        done = window_roll_in(model, batch, plan, engine.width)
        return _named(done, "window", "construction")
    if engine == "step":
        return _named(step_roll_in(model, batch, plan), "step", "construction")
    if engine == "jacobi":
        return _named(jacobi_roll_in(model, batch, plan), "jacobi", "fixed point")
    k = cast(int, engine)
    return _named(jacobi_roll_in(model, batch, plan, passes=k), f"{k} passes", "no")


def _drafted(model: Any, batch: Batch, plan: Plan, drafted: Rolled) -> RollIn:
    done = jacobi_roll_in(model, batch, plan, start=drafted.history)
    done = Rolled(done.history, drafted.passes + done.passes, drafted.work + done.work, True)
    return _named(done, "draft", "fixed point")


def _named(done: Rolled, engine: str, certified: str) -> RollIn:
    return RollIn(done.history, engine, done.passes, done.work, certified)
