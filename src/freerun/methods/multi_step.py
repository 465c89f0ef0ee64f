"""Losses of several steps of free running: with the whole gradient, or with the last step's only."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import torch

from freerun import draws
from freerun.batch import Batch
from freerun.errors import UserError
from freerun.keys import fold
from freerun.methods.base import SHARED, Citation, TransformMethod
from freerun.methods.scheduled_sampling import FreeRunning
from freerun.objectives import Objective
from freerun.rollin import Engine, stepping, supports, wrapper_hint
from freerun.rollin.model import own_casts
from freerun.schedules import Schedule, uniform
from freerun.transforms import within_horizon
from freerun.types import Outcome, Stepper


@dataclass(frozen=True, repr=False)
class MultiStep(TransformMethod):
    """The loss of h steps of free running, the gradient going back through all of them, h rising in training.

    ``h_t = f(h_<t)`` for t <= h(step); ``loss = mean_t |f(h_<t) - y_t|^2``. The unrolled training of weather models and
    simulators; with ``horizon=1`` it is teacher forcing on the first step.

    Args:
        horizon: steps, a number or a schedule that rises (rounded down), at least 1; or drawn at every update, by
            ``schedules.uniform`` or ``schedules.choice``, whose parameters may be schedules.
        gradient: ``"full"``, ``"checkpointed"`` (full, in the memory of sqrt(h) steps), ``"none"`` (no gradient in time
            through own entries) or k (cut every k steps).
        draw: ``"auto"`` feeds values as predicted.
        engine: as in ``scheduled_sampling``.
        objective: ``"auto"`` (MSE), or another.

    Raises:
        UserError: arguments outside their range; targets that are ids.

    What it is not: the direct multi-step forecast of a model that predicts all steps at once.

    References: Lam et al. 2023, GraphCast, Science 382 (horizon 1 to 12); List, Chen, Bali and Thuerey 2024, How
    temporal unrolling supports neural physics simulators, arXiv:2402.12971 (with and without gradient).

    >>> from freerun import schedules
    >>> MultiStep(horizon=schedules.linear(start=1, end=12, steps=1000))
    multi_step(horizon=linear(start=1.0, end=12.0, steps=1000))
    >>> MultiStep(horizon=schedules.choice(values=(1, 4, 12), weights=(0.5, 0.3, 0.2)))
    multi_step(horizon=choice(values=(1.0, 4.0, 12.0), weights=(0.5, 0.3, 0.2)))
    """

    horizon: float | Schedule = field(kw_only=True)  # pyright: ignore[reportIncompatibleVariableOverride]
    gradient: str | int = "full"
    draw: str | draws.Draw = "auto"
    engine: Engine = "auto"
    objective: str | Objective = "auto"

    name: ClassVar[str] = "multi_step"
    summary: ClassVar[str] = "the loss of some steps of free running, more of them as training goes on"
    only_for: ClassVar[tuple[str, str] | None] = ("values", "scheduled_sampling")
    citation: ClassVar[Citation] = Citation(
        formula="h_t = f(h_<t, x) for t <= h(step);  loss = mean over t <= h(step) of |f(h_<t, x) - y_t|^2",
        reference="List, B., Chen, L.-W., Bali, K. and Thuerey, N. (2024). How temporal unrolling supports neural "
        "physics simulators. arXiv:2402.12971; the rising horizon: Lam, R. et al. (2023). Learning skillful "
        "medium-range global weather forecasting. Science 382",
        bibtex="""@article{list2024temporal,
  author  = {List, Bjoern and Chen, Li-Wei and Bali, Kartik and Thuerey, Nils},
  title   = {How Temporal Unrolling Supports Neural Physics Simulators},
  journal = {arXiv preprint arXiv:2402.12971},
  year    = {2024}
}""",
    )

    def compute(self, model: Any, batch: Batch, step: int, key: int) -> Outcome:
        """One step of free running over the horizon."""
        return self._running(batch).compute(model, batch, step, key)

    def mixed_batch(self, model: Any, batch: Batch, step: int, key: int) -> Batch:
        """The batch that is fed, as far as the horizon goes."""
        return self._running(batch).mixed_batch(model, batch, step, key)

    def _running(self, batch: Batch) -> FreeRunning:
        refuse_ids(self.name, batch)
        return FreeRunning(
            self.draw, engine=self.engine, gradient=self.gradient, objective=self.objective, target=self.target
        )


@dataclass(frozen=True, repr=False)
class Pushforward(TransformMethod):
    """Run freely for h - 1 steps without gradient, then one step with: the loss and its gradient are the last step's.

    ``u = sg[f^(h-1)(y_0)]; loss = |f(u) - y_h|^2``, h drawn evenly from 1 to the horizon at each update, as published
    (``drawn=False``: always the horizon). State and entry are cut, so what is kept for backward does not grow with the
    horizon (but for a cache that attention reads).

    Args:
        horizon: the most steps, a number or a schedule (published: it rises by one an epoch), at least 1; of a schedule
            that draws, h itself.
        drawn: whether h is drawn evenly, where the horizon is not drawn itself; the same for all rows.
        draw: ``"auto"`` feeds values as predicted.
        objective: ``"auto"`` (MSE), or another.

    Raises:
        UserError: arguments outside their range; targets that are ids; a model that cannot go step by step.

    What it is not: a way to train what writes a memory: state and entry are cut, so an encoder learns only where h = 1
    (published for models whose state is their output); nor multi-step training without gradient in time
    (``multi_step(gradient=1)``), whose loss is on all steps.

    Reference: Brandstetter, Worrall and Welling 2022, Message passing neural PDE solvers, ICLR, arXiv:2202.03376.

    >>> Pushforward(horizon=4)
    pushforward(horizon=4)
    """

    horizon: float | Schedule = field(kw_only=True)  # pyright: ignore[reportIncompatibleVariableOverride]
    drawn: bool = True
    draw: str | draws.Draw = "auto"
    objective: str | Objective = "auto"

    name: ClassVar[str] = "pushforward"
    summary: ClassVar[str] = "run freely without gradient, then one step with"
    only_for: ClassVar[tuple[str, str] | None] = ("values", "scheduled_sampling")
    ranges: ClassVar[dict[str, tuple[float, float]]] = SHARED
    without: ClassVar[Mapping[str, str]] = dict.fromkeys(("loss_on", "target"), "whose loss is the last step's")
    logged: ClassVar[tuple[str, ...]] = ("steps",)
    citation: ClassVar[Citation] = Citation(
        formula="u = sg[f^(h-1)(y_0)], h drawn evenly from 1 to horizon;  loss = |f(u) - y_h|^2",
        reference="Brandstetter, J., Worrall, D. and Welling, M. (2022). Message passing neural PDE solvers. ICLR. "
        "arXiv:2202.03376",
        bibtex="""@inproceedings{brandstetter2022message,
  author    = {Brandstetter, Johannes and Worrall, Daniel and Welling, Max},
  title     = {Message Passing Neural {PDE} Solvers},
  booktitle = {International Conference on Learning Representations},
  year      = {2022}
}""",
    )

    def at_longest(self, horizon: int) -> Any:
        """Always the horizon."""
        return replace(self, horizon=float(horizon), drawn=False)

    def compute(self, model: Any, batch: Batch, step: int, key: int) -> Outcome:
        """One step: so many steps of free running, the last with gradient."""
        running = self._running(model, batch)
        chosen, h = self._cut(batch, step, key)
        outcome = running.run(model, chosen, step, key)
        return outcome.made(report={**outcome.report, "steps": h})

    def mixed_batch(self, model: Any, batch: Batch, step: int, key: int) -> Batch:
        """The batch that is fed, as far as the steps drawn go."""
        with torch.no_grad(), own_casts():
            return self.compute(model, batch, step, key).fed

    def _cut(self, batch: Batch, step: int, key: int) -> tuple[Batch, int]:
        most = self.value("horizon", step, key)
        if self.drawn and not (isinstance(self.horizon, Schedule) and self.horizon.draws):
            most = uniform(1, most)(step, key=fold(key, "horizon", int(step)))
        h = math.floor(most + 1e-9)
        return within_horizon(batch, h), h

    def _running(self, model: Any, batch: Batch) -> FreeRunning:
        refuse_ids(self.name, batch)
        if not supports(stepping(model), Stepper):
            raise UserError(
                "pushforward goes step by step, which needs a model with start, embed, step, output and select; "
                f"{type(model).__name__} has only a forward: add them, or use multi_step(gradient='none')"
                f"{wrapper_hint(model, Stepper)}"
            )
        return FreeRunning(self.draw, gradient=1, objective=self.objective, loss_on="last")


def refuse_ids(name: str, batch: Batch) -> None:
    """Refuse targets that are ids, by the method's name."""
    if batch.is_discrete:
        raise UserError(f"{name} is for values, and these targets are ids: use scheduled_sampling or free_running")


multi_step, pushforward = MultiStep, Pushforward
