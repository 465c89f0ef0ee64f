"""Two passes: the second is told what the first predicted. Approximate, and differentiable if asked."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, cast

import torch
from torch import Tensor

from freerun import gates
from freerun.errors import UserError
from freerun.keys import fold
from freerun.methods.base import SHARED, Citation, TransformMethod, change_report, encode_once
from freerun.methods.first_pass import gold_weight_problems, said, said_at, with_gold_loss
from freerun.methods.mixes import HARD, Mix
from freerun.objectives import Objective
from freerun.rollin import can, checked, forward, some, unwrapped
from freerun.rollin.modes import repeatable
from freerun.rollin.plan import Plan
from freerun.schedules import Schedule
from freerun.types import Batch, Embedder, Encoder, Outcome

__all__ = ["First", "TwoPass", "two_pass"]


@dataclass(frozen=True, eq=False)
class First:
    """The first pass.

    Args:
        plan: the entries to replace.
        whole: (batch, time, vocab) what the model said; None where it was not asked, or only at the plan's entries.
        confidence: (batch, time) of the gold targets, for gates that need it.
        any: whether entries are replaced, here or in another process that the model waits for.
    """

    plan: Plan
    whole: Tensor | None
    confidence: Tensor | None
    any: bool


@dataclass(frozen=True, eq=False)
class Told:
    """What the second pass is told: a history, or vectors in its place, and how that came about."""

    batch: Batch
    vectors: Tensor | None
    first: First
    report: dict[str, float | str]


@dataclass(frozen=True, repr=False)
class TwoPass(TransformMethod):
    """Teacher-force once, then train on a history in which some entries are what that pass predicted for them.

    Pass 1 gives logits ``z_t`` from ``y_<t``. ``h_t = y_t`` with probability r(step), else ``mix(z_t)``: a symbol, or
    the vector ``sum_v w_v(z_t) e(v)`` in the place of ``e(h_t)``. ``loss = -sum_t log p(y_t | h_<t, x)``, plus
    ``gold_weight`` times the loss of pass 1. An entry keeps its own place and position whatever is mixed into it.

    Args:
        teacher_forcing_ratio: P(gold) in [0, 1], a number or a schedule.
        mix: ``"argmax"`` or ``"sample"`` (symbols); ``"expected"`` (softmax), ``"top_k"``, ``"sparsemax"``,
            ``"gumbel_softmax"`` or ``"straight_through"`` (vectors: the model needs ``lookup`` and ``outputs_from``).
        temperature: of the mix, above 0; the paper's alpha is its inverse.
        top_k: symbols mixed by ``mix="top_k"``.
        coin: as for scheduled sampling.
        gradient: ``"none"``, or ``"full"``: also through the weights into pass 1.
        gold_weight: of the loss of pass 1 beside that of pass 2; 0 drops it, as published.
        objective: ``"auto"``, ``"cross_entropy"`` or a function.

    Pass 1 runs in evaluation mode without a graph; with ``gradient="full"`` or a ``gold_weight`` it is a training
    forward, in the mode the model is in. ``fed.history`` of a vector mix shows its heaviest symbols.

    Raises:
        UserError: for arguments out of range or without effect, targets that are values, a model that takes no vectors.

    What it is not: scheduled sampling. Own entries were predicted from gold alone, so the history does not have the
    sequential law; ``scheduled_sampling`` has it.

    Reference: Mihaylova and Martins 2019, arXiv:1906.07651.

    >>> TwoPass(0.5, mix="top_k", top_k=3)
    two_pass(teacher_forcing_ratio=0.5, mix='top_k', top_k=3)
    """

    teacher_forcing_ratio: float | Schedule
    mix: str = "argmax"
    temperature: float = 1.0
    top_k: int = 5
    coin: str | gates.Gate = "token"
    gradient: str = "none"
    gold_weight: float = 0.0
    objective: str | Objective = "auto"

    name: ClassVar[str] = "two_pass"
    summary: ClassVar[str] = "a second pass on what the first predicted from gold (approximate)"
    only_for: ClassVar[tuple[str, str] | None] = ("symbols", "scheduled_sampling")
    ranges: ClassVar[dict[str, tuple[float, float]]] = {"teacher_forcing_ratio": (0.0, 1.0), **SHARED}
    citation: ClassVar[Citation] = Citation(
        formula="z_t = logits given y_<t;  e_t = e(y_t) with probability r(step), else sum_v w_v(z_t) e(v);  "
        "loss = -sum_t log p(y_t | e_<t, x) + gold_weight * -sum_t log p(y_t | y_<t, x)",
        reference="Mihaylova, T. and Martins, A. F. T. (2019). Scheduled sampling for transformers. ACL Student "
        "Research Workshop. arXiv:1906.07651",
        bibtex="""@inproceedings{mihaylova2019scheduled,
  author    = {Mihaylova, Tsvetomila and Martins, Andr{\\'e} F. T.},
  title     = {Scheduled Sampling for Transformers},
  booktitle = {Proceedings of the 57th Annual Meeting of the Association for Computational Linguistics:
               Student Research Workshop},
  pages     = {351--356},
  year      = {2019}
}""",
    )

    def __post_init__(self) -> None:
        problems = self._mix().problems() + gold_weight_problems(self.gold_weight)
        problems += gates.check(self.coin)
        if self.gradient not in ("none", "full"):
            problems.append(f"gradient must be 'none' or 'full'; got {self.gradient!r}")
        elif self.gradient == "full" and self.mix in HARD:
            problems.append(
                f"gradient='full' has no effect with mix={self.mix!r}: a symbol carries none; use 'straight_through' "
                "or another mix of vectors"
            )
        elif self.gradient == "none" and self.mix == "straight_through":
            problems.append(
                "mix='straight_through' without a gradient is 'sample': use gradient='full' or mix='sample'"
            )
        problems += self.problems()
        if problems:
            raise UserError(problems)

    @property
    def own_loss(self) -> tuple[str, ...]:
        """A mix of vectors is no history of ids."""
        vectors = f"mix={self.mix!r} feeds vectors, not ids; use mix='argmax' or 'sample'"
        return super().own_loss if self.mix in HARD else (*super().own_loss, vectors)

    def feed(self, model: Any, batch: Batch, step: int, key: int) -> tuple[Batch, dict[str, float | str]]:
        """The batch with the mixed history, for mixes that are symbols."""
        if self.mix not in HARD:
            raise UserError(
                f"mix={self.mix!r} feeds vectors, which a batch of ids cannot hold: use run(...), or mix='argmax'"
            )
        told = self._tell(model, batch, step, key)
        return told.batch, told.report

    def made(self, model: Any, batch: Batch, step: int, key: int) -> Outcome:
        """One step: pass 1, mixing, pass 2 and its loss."""
        # with a graph both passes run in the same mode: they may share an encoding that dropout has touched
        shared = _encoded(model, batch) if self._with_graph else encode_once(model, batch)
        told = self._tell(model, shared, step, key)
        whole = told.first.whole if self._with_graph else None
        if told.vectors is not None:
            outputs = checked(model.outputs_from(told.batch, told.vectors), told.batch)
        elif whole is not None and not told.first.any:
            outputs = whole
        else:
            outputs = forward(model, told.batch)
        outcome = self.finish(outputs, told.batch.made(context=batch.context), told.report)
        if self.gold_weight == 0:
            return outcome
        return with_gold_loss(self, outcome, outputs if whole is None else whole, batch)

    @property
    def _with_graph(self) -> bool:
        return self.gradient == "full" or self.gold_weight > 0

    def _mix(self) -> Mix:
        return Mix(self.mix, self.temperature, self.top_k)

    def _gate(self) -> Any:
        return gates.resolve(self.coin)

    def _first(self, model: Any, batch: Batch, ratio: float, step: int, key: int) -> First:
        gate, gate_key = self._gate(), fold(key, "gate", int(step))
        confident = gates.needs_confidence(gate) and ratio < 1

        def plan(keep: Tensor) -> Plan:
            return Plan.of(batch, keep, self._mix().draw, fold(key, "draw", int(step)))

        if not confident:
            keep = torch.ones_like(batch.mask) if ratio >= 1 else gates.kept(gate(batch, ratio, gate_key), batch)
            planned = plan(keep)
            replaces = some(model, len(planned) > 0)
            whole = _with_graph(model, batch) if replaces and self._with_graph else None
            return First(planned, whole, None, replaces)
        whole = _with_graph(model, batch) if self._with_graph else said(model, batch)
        confidence = gates.confidences(whole, batch)
        planned = plan(gate(batch, ratio, gate_key, confidence=confidence))
        return First(planned, whole, confidence, some(model, len(planned) > 0))

    def _tell(self, model: Any, batch: Batch, step: int, key: int) -> Told:
        if not batch.is_discrete:
            raise UserError(
                f"{self.name} mixes symbols, and these targets are values: use scheduled_sampling(engine=1), which "
                "feeds values as one pass predicts them"
            )
        mix = self._mix()
        mix.refuse(model)
        ratio = self.value("teacher_forcing_ratio", step)
        first = self._first(model, batch, ratio, step, key)
        plan = first.plan
        asked, whole = first.any or first.whole is not None, first.whole
        history, vectors = batch.history, None
        # asked for nothing too, where another process asks
        alone = said_at(model, batch, plan.rows, plan.times) if first.any and whole is None else None
        if len(plan):
            logits = whole[plan.rows, plan.times] if whole is not None else cast(Tensor, alone)
            logits = logits if self.gradient == "full" else logits.detach()
            noise = plan.noise(logits.shape[-1])
            history, own = self._entries(batch, first, plan.draw.choose(logits.detach(), noise), step, key)
            if self.mix not in HARD:
                mixed = mix.vectors(model, logits[own], None if noise is None else noise[own])
                looked_up = cast(Embedder, model).lookup(history)
                vectors = looked_up.index_put((plan.rows[own], plan.times[own]), mixed.to(looked_up.dtype))
        report: dict[str, float | str] = {
            "teacher_forcing_ratio": ratio,
            **change_report(batch, history, len(plan)),
            "passes": int(asked),
            "work": float(asked),
            "engine": "two passes" if len(plan) else "none",
            "exact": float(len(plan) == 0),
            "certified": "no" if len(plan) else "construction",
        }
        return Told(batch.made(history=history), vectors, first, report)

    def _entries(self, batch: Batch, first: First, own: Tensor, step: int, key: int) -> tuple[Tensor, Tensor]:
        """The history in symbols, and which entries of the plan are the model's own: (n,) bool."""
        plan = first.plan
        history = batch.history.index_put((plan.rows, plan.times), own.to(batch.history.dtype))
        return history, torch.ones_like(plan.rows, dtype=torch.bool)


def _with_graph(model: Any, batch: Batch) -> Tensor:
    with repeatable(unwrapped(model), batch):
        return forward(model, batch)


def _encoded(model: Any, batch: Batch) -> Batch:
    return model.encode(batch) if can(model, Encoder) else batch


two_pass = TwoPass
