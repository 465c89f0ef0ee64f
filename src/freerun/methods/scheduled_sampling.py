"""Scheduled sampling, exactly: the history is mixed out of gold and the model's own output."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, ClassVar, cast

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
    TransformMethod,
    bind_gate,
    encode_once,
    gradient_of,
    kept_gold_loss,
    rollout_with_grad,
    soft_mix,
    zero_unused,
)
from freerun.methods.report import replacement_counts
from freerun.objectives import Objective
from freerun.rollin import (
    Draft,
    Engine,
    Replacement,
    RollIn,
    any_rank,
    certified_forward,
    differs_by_mode,
    draft_roll_in,
    forward,
    is_sharded,
    needs_sync,
    resolve_engine,
    roll_in,
    unwrap,
)
from freerun.rollin.mixtures import mixture_roll_in
from freerun.rollin.model import asking, repeatable
from freerun.rollin.roll_in import Auto
from freerun.rollin.step import Stepwise
from freerun.rollin.training import counted_forward, encodings
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
    feeds_own: ClassVar[bool] = False
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

    def mix_history(self, model: Any, batch: Batch, step: int, key: int) -> tuple[Batch, dict[str, float | str]]:
        """The batch as it is."""
        report = replacement_counts(batch, batch.history, 0)
        return batch, {"teacher_forcing_ratio": 1.0, **report, "passes": 0, "engine": "none"}


teacher_forcing = TeacherForcing


@dataclass(frozen=True, repr=False)
class ScheduledSampling(TransformMethod):
    """Feed gold with probability ``teacher_forcing_ratio``, else the model's own prediction of it.

    ``h_t = y_t`` with probability r(step), else a draw from ``p(. | h_<t, x)``; ``loss = -sum_t log p(y_t | h_<t, x)``.
    For ids a sample carries no gradient, so the history is built without one and the step is an ordinary forward
    and backward. Gate and draw together are one draw from ``(1 - r) P_model + r P_data``, P_data the gold symbol.

    Args:
        teacher_forcing_ratio: P(gold) in [0, 1], a number or a schedule of the optimizer step.
        draw: ``"sample"``, ``"greedy"``, ``"point"`` (a value as predicted) or a draw; ``"auto"`` samples ids
            and feeds values back as predicted. ``"soft_argmax"`` feeds mixtures of symbols with a gradient, to models
            with ``lookup`` and ``outputs_from`` (Goyal et al. 2017); ``fed.history`` holds their heaviest symbols.
        gate: ``"token"`` (as published), ``"step"``, ``"sequence"``, ``"batch"``, ``"prefix"``, ``"decoding_steps"``,
            ``"confidence"`` (one more pass), ``"blend"`` (values only: a share of gold in each entry) or a gate.
        engine: ``"auto"``, ``"step"``, ``"jacobi"``, ``"window"``, ``"draft"`` (all exact; ``freerun.Window`` and
            ``freerun.Draft`` have settings) or an integer k: k parallel passes, approximate. The coupling of noise and
            choice is a field of the draw, and ``"auto"`` never changes it.
        gradient: through the model's own entries: ``"none"``, ``"full"``, or k: entry and state are cut before every
            k-th step, and memory grows with k (``outputs`` then carry no graph); ``"checkpointed"``: full, the steps
            computed again in the backward pass, sqrt(time) at a time (Chen et al. 2016, arXiv:1604.06174); ``"auto"``
            is none for ids and full for values.
        gold_weight: of the loss on gold history beside the other, one more training forward; 0 drops it, as published.
        objective: ``"auto"``, ``"cross_entropy"``, ``"mse"`` or a function.

    Raises:
        UserError: for arguments outside their range, at construction or at the step where they leave it.

    What it is not: consistent in general. As the ratio falls it learns to predict from an unreliable history, and
    forgets what only the gold history holds (Huszar 2015), except where the targets are a function of the source.

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
        "loss = -sum_t log p(y_t | h_<t, x)\n(gate and draw together: one draw from (1 - r) P_model + r P_data)",
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

    def problems(self) -> list[str]:
        """Return which arguments cannot be."""
        found = super().problems()
        if found or not self._mixes:
            return found
        if self.engine != "auto":
            found.append(f"engine={self.engine!r} has no effect with draw={self.draw!r}; leave it out")
        if self.gradient not in ("auto", "full", "none"):
            found.append(f"draw={self.draw!r} has gradient 'auto' (full), 'full' or 'none'; got {self.gradient!r}")
        return found

    @property
    def own_loss(self) -> tuple[str, ...]:
        """A mixture is no history of ids."""
        vectors = [f"draw={self.draw!r} feeds vectors, not ids; use 'greedy' or 'sample'"] if self._mixes else []
        return (*super().own_loss, *vectors)

    @property
    def _mixes(self) -> bool:
        return isinstance(self.draw, draws.SoftArgmax) or self.draw == "soft_argmax"

    def mix_history(self, model: Any, batch: Batch, step: int, key: int) -> tuple[Batch, dict[str, float | str]]:
        """The batch with the mixed history, built without gradient."""
        if self._mixes:
            raise UserError(f"draw={self.draw!r} feeds vectors, which a batch of ids cannot hold: use run(...)")
        replacement, report = self._replacement(model, batch, step, key)
        done = (soft_mix if self._soft else roll_in)(model, batch, replacement, self.engine)
        counts = replacement_counts(batch, done.history, replacement.number)
        return batch.made(history=done.history, replaced=replacement.replaced), {**report, **counts, **done.report()}

    def mixed_batch(self, model: Any, batch: Batch, step: int, key: int) -> Batch:
        """The batch that is fed; with ``gradient="full"`` its history carries the graph."""
        batch = zero_unused(batch)
        looped = hasattr(type(model), "stepper")
        if self._mixes:
            return self.mix_history(model, batch, step, key)[0]
        if gradient_of(batch, self.gradient) != "none" or (looped and self._steps_itself(model)):
            return self._unrolled(model, batch, step, key).fed
        return self.mix_history(model, batch, step, key)[0]

    def _steps_itself(self, model: Any) -> bool:
        """True if a loop over a step (``freerun.StepModel``) rolls in as its own training forward."""
        return not is_sharded(model) and isinstance(self._engine, Auto | Stepwise)

    def compute(self, model: Any, batch: Batch, step: int, key: int) -> Outcome:
        """One step; with a gradient through own values the roll-in's outputs are the outputs."""
        known = zero_unused(batch)
        looped = hasattr(type(model), "stepper")
        if self._mixes:
            outcome = self._mixed(model, known, step, key)
        elif gradient_of(batch, self.gradient) != "none" or (looped and self._steps_itself(model)):
            outcome = self._unrolled(model, known, step, key)
        elif isinstance(self._engine, Draft) and not differs_by_mode(model) and not _in_wrapper(model):
            outcome = self._certified(model, batch, known, step, key)
        else:
            rolled, trained = encodings(model, known)
            fed, report = self.mix_history(model, rolled, step, key)
            read = fed if rolled is trained else fed.made(context=trained.context)
            outcome = self.finish(counted_forward(model, read, self.objective), fed.made(context=batch.context), report)
        if gate_passes := float(outcome.report.get("gate_passes", 0)):
            more = {name: float(outcome.report[name]) + gate_passes for name in ("passes", "work")}
            outcome = outcome.made(report={**outcome.report, **more})
        return outcome if self.gold_weight == 0 else kept_gold_loss(self, outcome, model, batch)

    def _certified(self, model: Any, batch: Batch, known: Batch, step: int, key: int) -> Outcome:
        """A draft that the training forward certifies: the roll-in has no certifying pass of its own."""
        shared = encode_once(model, known)
        replacement, report = self._replacement(model, shared, step, key)
        replacement = replacement.ruled(model, shared)
        if replacement.number == 0:
            done = RollIn(shared.history, outputs=forward(model, shared))
        else:
            with torch.no_grad(), asking(model, batch):
                drafted = draft_roll_in(model, batch, replacement, self._engine, shared)
            done = certified_forward(model, shared, replacement, drafted)
        fed = batch.made(history=done.history, replaced=replacement.replaced)
        report |= {**replacement_counts(batch, done.history, replacement.number), **done.report()}
        return self.finish(cast(Tensor, done.outputs), fed, report)

    def _mixed(self, model: Any, batch: Batch, step: int, key: int) -> Outcome:
        """A roll-in of mixtures, which is the training forward."""
        replacement, report = self._replacement(model, batch, step, key)
        read, done = encode_once(model, batch), RollIn(batch.history)
        if any_rank(model, replacement.number > 0):
            replacement = replacement.ruled(model, batch)
            with repeatable(unwrap(model), batch):
                done = mixture_roll_in(model, read, replacement, replacement.draw)
        outputs = counted_forward(model, read, self.objective) if done.outputs is None else done.outputs
        report |= {**replacement_counts(batch, done.history, replacement.number), **done.report()}
        return self.finish(outputs, batch.made(history=done.history, replaced=replacement.replaced), report)

    def _unrolled(self, model: Any, batch: Batch, step: int, key: int) -> Outcome:
        replacement, report = self._replacement(model, batch, step, key)
        off = float(report["teacher_forcing_ratio"]) >= 1
        gradient = gradient_of(batch, self.gradient)
        outcome = rollout_with_grad(self, model, batch, replacement, gradient=gradient, engine=self.engine, off=off)
        return outcome.made(report={**report, **outcome.report})

    @cached_property
    def _gate(self) -> Gate:
        return gates.resolve(self.gate)

    @cached_property
    def _soft(self) -> bool:
        return gates.is_soft(self._gate)

    @cached_property
    def _engine(self) -> Any:
        return resolve_engine(self.engine)

    def _replacement(self, model: Any, batch: Batch, step: int, key: int) -> tuple[Replacement, dict[str, float | str]]:
        """The entries that the gate leaves to the model, and what to report of the gate."""
        ratio = self.value("teacher_forcing_ratio", step, key)
        report: dict[str, float | str] = {"teacher_forcing_ratio": ratio}
        if self._soft:
            if batch.is_discrete:
                raise UserError(
                    f"gate={self.gate!r} mixes values, and these targets are ids: use two_pass(mix='expected'), which "
                    "mixes their embeddings, or another gate"
                )
            keep = self._gate(batch, ratio, key)
        else:
            toss, calls = bind_gate(self._gate, model, batch, ratio)
            keep = toss(fold(key, "gate", int(step)))
            report |= {"gate_passes": calls} if calls else {}
        detached = self.gradient == "none"
        draw = draws.fitting(self.draw, batch, mixtures=True)
        if isinstance(draw, draws.SoftArgmax) and isinstance(draw.alpha, Schedule):
            report["draw.alpha"] = alpha = self.value("draw.alpha", step, key)
            draw = replace(draw, alpha=alpha)
        return Replacement.of(batch, keep, draw, fold(key, "draw", int(step)), detached), report


def _in_wrapper(model: Any) -> bool:
    """Whether training forwards are exchanged with other processes: a draft is then certified without one."""
    return unwrap(model) is not model or needs_sync(model)


@dataclass(frozen=True, repr=False)
class FreeRunning(ScheduledSampling):
    """The model is fed its own output only: scheduled sampling at ``teacher_forcing_ratio = 0``.

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

    def problems(self) -> list[str]:
        """Return which arguments cannot be."""
        try:
            object.__setattr__(self, "gate", Every(self.tau))
        except UserError as error:
            return error.problems + super().problems()
        return super().problems()


sparse_teacher_forcing = SparseTeacherForcing
