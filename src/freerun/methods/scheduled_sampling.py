"""Scheduled sampling, exactly: the history is mixed out of gold and the model's own output."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from freerun import draws, gates
from freerun.batch import Batch
from freerun.errors import UserError
from freerun.gates import Every, Gate
from freerun.keys import fold
from freerun.methods.base import (
    SHARED,
    Citation,
    RolloutSpec,
    TransformMethod,
    bind_gate,
    blended,
    encode_once,
    gold_weight_problems,
    gradient_of,
    gradient_problems,
    kept_gold_loss,
    replacement_counts,
    rollout_with_grad,
    zero_unused,
)
from freerun.objectives import Objective
from freerun.rollin import (
    Mixing,
    RollIn,
    certified_forward,
    differs_by_mode,
    draft_roll_in,
    forward,
    needs_sync,
    roll_in,
    unwrap,
)
from freerun.rollin.engines import Draft, Engine, check_engine, resolve_engine
from freerun.rollin.model import asking
from freerun.rollin.replacement import Plan
from freerun.schedules import Schedule
from freerun.types import Outcome


@dataclass(frozen=True, repr=False)
class TeacherForcing(TransformMethod):
    """Maximum likelihood with the gold history: ``loss = -sum_t log p(y_t | y_<t, x)``.

    Args:
        objective: ``"auto"`` (cross-entropy for ids, MSE for values), ``"cross_entropy"``, ``"mse"`` or a function
            ``(outputs, batch) -> (total, count)``.

    What it is not: a promise about free running. The model never sees its own mistakes.

    Reference: Williams and Zipser 1989, A learning algorithm for continually running fully recurrent neural
    networks.

    >>> import torch
    >>> model = lambda batch: torch.zeros(batch.size, batch.time, 4)
    >>> ids = torch.tensor([[2, 1, 0]])
    >>> round(float(TeacherForcing()(model, Batch(ids, ids, ids >= 0), step=0)), 4)
    1.3863
    """

    objective: str | Objective = "auto"

    name: ClassVar[str] = "teacher_forcing"
    summary: ClassVar[str] = "the gold history, always"
    citation: ClassVar[Citation] = Citation(
        formula="loss = -sum_t log p(y_t | y_<t, x)",
        reference="Williams, R. J. and Zipser, D. (1989). A learning algorithm for continually running fully "
        "recurrent neural networks. Neural Computation 1(2).",
        bibtex="""@article{williams1989learning,
  author  = {Williams, Ronald J. and Zipser, David},
  title   = {A Learning Algorithm for Continually Running Fully Recurrent Neural Networks},
  journal = {Neural Computation},
  volume  = {1},
  number  = {2},
  pages   = {270--280},
  year    = {1989}
}""",
    )

    def __post_init__(self) -> None:
        if problems := self.problems():
            raise UserError(problems)

    @property
    def asks_model(self) -> bool:
        """The history is gold."""
        return False

    def feed(self, model: Any, batch: Batch, step: int, key: int) -> tuple[Batch, dict[str, float | str]]:
        """The batch as it is."""
        report = replacement_counts(batch, batch.history, 0)
        return batch, {"teacher_forcing_ratio": 1.0, **report, "passes": 0, "engine": "none"}


teacher_forcing = TeacherForcing


@dataclass(frozen=True, repr=False)
class ScheduledSampling(TransformMethod):
    """Feed gold with probability ``teacher_forcing_ratio``, else what the model itself said there.

    ``h_t = y_t`` with probability r(step), else a draw from ``p(. | h_<t, x)``; ``loss = -sum_t log p(y_t | h_<t, x)``.
    For ids a sample carries no gradient, so the history is built without one and the step is an ordinary forward
    and backward. One draw by the coin is one draw from ``(1 - r) P_model + r P_data``, P_data the gold symbol.

    Args:
        teacher_forcing_ratio: P(gold) in [0, 1], a number or a schedule of the optimizer step.
        draw: ``"sample"``, ``"greedy"``, ``"point"`` (a value as predicted) or a draw; ``"auto"`` samples ids
            and feeds values back as predicted.
        gate: ``"token"`` (as published), ``"step"``, ``"sequence"``, ``"batch"``, ``"prefix"``, ``"decoding_steps"``,
            ``"confidence"`` (one more pass), ``"blend"`` (values only: a share of gold in each entry) or a gate.
        engine: ``"auto"``, ``"step"``, ``"jacobi"``, ``"window"``, ``"draft"`` (all exact; ``freerun.Window`` and
            ``freerun.Draft`` have settings) or an integer k: k parallel passes, approximate. The coupling of noise and
            choice is a field of the draw, and ``"auto"`` never changes it.
        gradient: through the model's own entries: ``"none"``, ``"full"``, or k: entry and state are cut before every
            k-th step, and memory grows with k (``outputs`` then carry no graph); ``"auto"`` is none for ids and full
            for values.
        gold_weight: of the loss on gold history beside the other, one more training forward; 0 drops it, as published.
        objective: ``"auto"``, ``"cross_entropy"``, ``"mse"`` or a function.

    Raises:
        UserError: for arguments outside their range, at construction or at the step where they leave it.

    What it is not: consistent in general. As the ratio falls it learns to predict from an unreliable history, and
    forgets what only the gold history says (Huszar 2015), except where the targets are a function of the source.

    Reference: Bengio, Vinyals, Jaitly and Shazeer 2015, arXiv:1506.03099.

    >>> from freerun import schedules
    >>> ScheduledSampling(schedules.linear(start=1.0, end=0.5, steps=100))
    scheduled_sampling(teacher_forcing_ratio=linear(start=1.0, end=0.5, steps=100))
    """

    teacher_forcing_ratio: float | Schedule
    draw: str | draws.Draw = "auto"
    gate: str | gates.Gate = "token"
    engine: Engine = "auto"
    gradient: str | int = "auto"
    gold_weight: float = 0.0
    objective: str | Objective = "auto"

    name: ClassVar[str] = "scheduled_sampling"
    summary: ClassVar[str] = "gold with probability teacher_forcing_ratio, else the model's own output"
    ranges: ClassVar[dict[str, tuple[float, float]]] = {"teacher_forcing_ratio": (0.0, 1.0), **SHARED}
    citation: ClassVar[Citation] = Citation(
        formula="h_t = y_t with probability r(step), else a draw from p(. | h_<t, x);  "
        "loss = -sum_t log p(y_t | h_<t, x)\n(one coin and one draw = one draw from (1 - r) P_model + r P_data)",
        reference="Bengio, S., Vinyals, O., Jaitly, N. and Shazeer, N. (2015). Scheduled sampling for sequence "
        "prediction with recurrent neural networks. NIPS. arXiv:1506.03099",
        bibtex="""@inproceedings{bengio2015scheduled,
  author    = {Bengio, Samy and Vinyals, Oriol and Jaitly, Navdeep and Shazeer, Noam},
  title     = {Scheduled Sampling for Sequence Prediction with Recurrent Neural Networks},
  booktitle = {Advances in Neural Information Processing Systems},
  volume    = {28},
  year      = {2015}
}""",
    )

    def __post_init__(self) -> None:
        problems = check_engine(self.engine) + gold_weight_problems(self.gold_weight)
        problems += gates.check(self.gate)
        problems += gradient_problems(self.gradient) + self.problems()
        if problems:
            raise UserError(problems)

    def feed(self, model: Any, batch: Batch, step: int, key: int) -> tuple[Batch, dict[str, float | str]]:
        """The batch with the mixed history, built without gradient."""
        if gates.is_soft(gates.resolve(self.gate)):
            own = self._own(model, batch, step, key)
            history, report = blended(model, batch, own.mixing, self.engine)
            return batch.made(history=history), {**own.report, **report}
        plan, report = self._plan(model, batch, step, key)
        rolled = roll_in(model, batch, plan, self.engine)
        report |= {**replacement_counts(batch, rolled.history, len(plan)), **rolled.report()}
        return batch.made(history=rolled.history), report

    def fed(self, model: Any, batch: Batch, step: int, key: int) -> Batch:
        """The batch that is fed; with ``gradient="full"`` its history carries the graph."""
        if gradient_of(batch, self.gradient) == "none":
            return super().fed(model, batch, step, key)
        batch = zero_unused(batch)
        return rollout_with_grad(self, model, batch, self._own(model, batch, step, key)).fed

    def made(self, model: Any, batch: Batch, step: int, key: int) -> Outcome:
        """One step; with a gradient through own values the roll-in's outputs are the outputs."""
        if gradient_of(batch, self.gradient) != "none":
            known = zero_unused(batch)
            outcome = rollout_with_grad(self, model, known, self._own(model, known, step, key))
        elif isinstance(resolve_engine(self.engine), Draft) and not differs_by_mode(model) and not _in_wrapper(model):
            outcome = self._certified(model, batch, step, key)
        else:
            outcome = super().made(model, batch, step, key)
        if asked := float(outcome.report.get("gate_passes", 0)):
            more = {name: float(outcome.report[name]) + asked for name in ("passes", "work")}
            outcome = replace(outcome, report={**outcome.report, **more})
        return outcome if self.gold_weight == 0 else kept_gold_loss(self, outcome, model, batch)

    def _certified(self, model: Any, batch: Batch, step: int, key: int) -> Outcome:
        """A draft that the training forward certifies: the roll-in has no certifying pass of its own."""
        shared = encode_once(model, zero_unused(batch))
        plan, report = self._plan(model, shared, step, key)
        if len(plan) == 0:
            outputs, rolled = forward(model, shared), RollIn(shared.history, "none", 0, 0.0, "construction")
        else:
            with torch.no_grad(), asking(model, batch):
                drafter: Any = resolve_engine(self.engine)
                drafted = draft_roll_in(model, batch, plan, drafter, shared)
            outputs, done = certified_forward(model, shared, plan, drafted)
            by = "training forward" if done.settled else "fixed point"
            rolled = RollIn(done.history, "draft", done.passes, done.work, by)
        report |= {**replacement_counts(batch, rolled.history, len(plan)), **rolled.report()}
        return self.finish(outputs, batch.made(history=rolled.history), report)

    def _plan(self, model: Any, batch: Batch, step: int, key: int) -> tuple[Plan, dict[str, float | str]]:
        keep, report = self._keep(model, batch, step, key)
        return Plan.of(batch, keep, draws.fitting(self.draw, batch), fold(key, "draw", int(step))), report

    def _keep(self, model: Any, batch: Batch, step: int, key: int) -> tuple[Tensor, dict[str, float | str]]:
        ratio = self.value("teacher_forcing_ratio", step)
        gate = gates.resolve(self.gate)
        if gates.is_soft(gate):
            if batch.is_discrete:
                raise UserError(
                    f"gate={self.gate!r} mixes values, and these targets are ids: use two_pass(mix='expected'), which "
                    "mixes their embeddings, or another gate"
                )
            return gate(batch, ratio, key), {"teacher_forcing_ratio": ratio}
        toss, asked = bind_gate(self.gate, model, batch, ratio)
        report: dict[str, float | str] = {"gate_passes": asked} if asked else {}
        return toss(fold(key, "gate", int(step))) | ~batch.replaceable, {"teacher_forcing_ratio": ratio, **report}

    def _own(self, model: Any, batch: Batch, step: int, key: int) -> RolloutSpec:
        keep, report = self._keep(model, batch, step, key)
        gradient = gradient_of(batch, self.gradient)
        draw = draws.fitting(self.draw, batch)
        mixing = Mixing.of(batch, keep, draw, fold(key, "draw", int(step)), detached=gradient == "none")
        return RolloutSpec(mixing, gradient, self.engine, report, off=float(report["teacher_forcing_ratio"]) >= 1)


def _in_wrapper(model: Any) -> bool:
    """Whether training forwards are exchanged with other processes: a draft is then certified without one."""
    return unwrap(model) is not model or needs_sync(model)


@dataclass(frozen=True, repr=False)
class FreeRunning(ScheduledSampling):
    """The model is told its own output only: scheduled sampling at ``teacher_forcing_ratio = 0``.

    ``h_t ~ p(. | h_<t, x)``; ``loss = -sum_t log p(y_t | h_<t, x)``. "Always sampling" in Bengio et al. 2015, where
    it does badly on language; the usual thing for forecasters and simulators, with ``gradient="full"``.

    >>> FreeRunning(draw="greedy")
    free_running(draw='greedy')
    """

    teacher_forcing_ratio: float | Schedule = field(default=0.0, init=False)
    gate: str | gates.Gate = field(default="token", init=False)  # others keep gold now and then

    name: ClassVar[str] = "free_running"
    summary: ClassVar[str] = "the model's own output, always"
    citation: ClassVar[Citation] = Citation(
        formula="h_t = a draw from p(. | h_<t, x);  loss = -sum_t log p(y_t | h_<t, x)",
        reference="'Always sampling' in " + ScheduledSampling.citation.reference,
        bibtex=ScheduledSampling.citation.bibtex,
    )


scheduled_sampling = ScheduledSampling


free_running = FreeRunning


@dataclass(frozen=True, repr=False)
class SparseTeacherForcing(ScheduledSampling):
    """Gold at positions tau-1, 2 tau-1, ..., else the model's own output, with the whole gradient.

    ``h_t = y_t`` where tau divides t + 1, else ``f(h_<t)``. On chaotic systems gradients of free running explode;
    forcing once in a predictability time keeps them bounded and still shows the model its own errors.

    Args:
        tau: period in positions, at least 2; published: about the system's predictability time, ``ln 2 / exponent``
            in steps.
        teacher_forcing_ratio: P(gold) between the forced positions; published: 0.

    The other arguments are those of ``scheduled_sampling``.

    Raises:
        UserError: arguments outside their range.

    What it is not: truncated back-propagation (``gradient=tau``), which cuts the gradient and feeds no gold.

    Reference: Mikhaeil, Monfared and Durstewitz 2022, On the difficulty of learning chaotic dynamics with RNNs,
    NeurIPS, arXiv:2110.07238.

    >>> SparseTeacherForcing(tau=16)
    sparse_teacher_forcing(tau=16)
    """

    teacher_forcing_ratio: float | Schedule = 0.0
    gate: str | Gate = field(default="every", init=False, repr=False)
    tau: int = field(kw_only=True)

    name: ClassVar[str] = "sparse_teacher_forcing"
    summary: ClassVar[str] = "gold every tau positions, own between"
    citation: ClassVar[Citation] = Citation(
        formula="h_t = y_t where tau divides t + 1, else f(h_<t, x);  loss = |f(h_<t, x) - y_t|^2",
        reference="Mikhaeil, J. M., Monfared, Z. and Durstewitz, D. (2022). On the difficulty of learning chaotic "
        "dynamics with RNNs. NeurIPS. arXiv:2110.07238",
        bibtex="""@inproceedings{mikhaeil2022difficulty,
  author    = {Mikhaeil, Jonas M. and Monfared, Zahra and Durstewitz, Daniel},
  title     = {On the Difficulty of Learning Chaotic Dynamics with {RNN}s},
  booktitle = {Advances in Neural Information Processing Systems},
  volume    = {35},
  year      = {2022}
}""",
    )

    def __post_init__(self) -> None:
        try:
            object.__setattr__(self, "gate", Every(self.tau))
        except UserError as error:
            raise UserError(error.problems + self.problems()) from None
        super().__post_init__()


sparse_teacher_forcing = SparseTeacherForcing
