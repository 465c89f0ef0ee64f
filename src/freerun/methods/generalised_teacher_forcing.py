"""Generalised teacher forcing: every entry fed is a blend of gold and own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, ClassVar

import torch
import torch.distributed as dist
from torch import Tensor

from freerun import draws
from freerun.arguments import COUNT, Range
from freerun.batch import Batch
from freerun.errors import UserError
from freerun.methods.base import SHARED, Citation, TransformMethod, gold_outputs, zero_unused
from freerun.methods.multi_step import refuse_ids
from freerun.methods.scheduled_sampling import ScheduledSampling
from freerun.objectives import Objective
from freerun.rollin import Engine, stepping, supports, unwrap
from freerun.rollin.model import asking
from freerun.schedules import Schedule
from freerun.types import Outcome, Stepper


@dataclass(frozen=True, repr=False)
class GeneralisedTeacherForcing(TransformMethod):
    """Feed ``alpha * gold + (1 - alpha) * own``: 1 is teacher forcing, 0 free running, both bit for bit.

    ``z_t = alpha y_t + (1 - alpha) f(z_<t)``; loss on f's own, un-blended output. The gradient flows through the own
    branch alone, so that a product of Jacobians J_t becomes one of (1 - alpha) J_t, and ``alpha = "adaptive"`` takes
    the least share with which it does not grow: ``alpha* = max(0, 1 - 1 / s)``, s the largest, over the rows of the
    batch, of the geometric mean over time of the spectral norms of J_t, of the entries that are fed (the last of a row
    is read by no later step). ``"adaptive"`` takes that of its micro-batch. ``"running"`` is the authors' estimate:
    it begins at 1, and after every k-th update (the first, ...) becomes alpha* of all the update's rows where that is
    larger, else ``gamma alpha + (1 - gamma) alpha*``.

    Args:
        alpha: share of gold in each entry, in [0, 1]; a number, a schedule, ``"adaptive"`` or ``"running"``.
        every: k of the running estimate; published: 5.
        decay: gamma of the running estimate; published: .999.
        gradient: ``"full"``, ``"checkpointed"``, ``"none"`` or k, as in ``scheduled_sampling``.
        draw: ``"auto"`` feeds values as predicted.
        engine: as in ``scheduled_sampling``.
        objective: ``"auto"`` (MSE), or another.

    Raises:
        UserError: arguments outside their range; targets that are ids; ``"adaptive"`` with a model whose state is more
            than its last entry, as J_t is then not the Jacobian of its map.

    What it is not: scheduled sampling, which feeds one or the other. The running estimate is a state of this object:
    ``state_dict()`` and ``load_state_dict(state)``, which a run's checkpoints hold; a step before the last one begins
    anew. The authors apply it to the update that it was measured in, here it holds from the next one on, for all
    micro-batches and processes.

    References: Doya 1992; Hess, Monfared, Brenner and Durstewitz 2023, Generalized teacher forcing for learning chaotic
    dynamics, ICML, arXiv:2306.04406.

    >>> GeneralisedTeacherForcing(0.3)
    generalised_teacher_forcing(alpha=0.3)
    """

    alpha: float | str | Schedule = "adaptive"
    every: int = field(default=5, kw_only=True)
    decay: float = field(default=0.999, kw_only=True)
    gradient: str | int = "full"
    draw: str | draws.Draw = "auto"
    engine: Engine = "auto"
    objective: str | Objective = "auto"

    name: ClassVar[str] = "generalised_teacher_forcing"
    summary: ClassVar[str] = "a blend of gold and own in every entry"
    only_for: ClassVar[tuple[str, str] | None] = ("values", "scheduled_sampling")
    ranges: ClassVar[dict[str, tuple[float, float]]] = {"alpha": (0.0, 1.0), **SHARED}
    citation: ClassVar[Citation] = Citation(
        formula="z_t = alpha y_t + (1 - alpha) f(z_<t);  loss = |f(z_<t) - y_t|^2;  "
        "alpha* = max(0, 1 - 1 / max over rows of the geometric mean over fed t of |J_t|);  "
        "running: alpha = alpha* where alpha* > alpha, else .999 alpha + .001 alpha*, every fifth update",
        reference="Hess, F., Monfared, Z., Brenner, M. and Durstewitz, D. (2023). Generalized teacher forcing for "
        "learning chaotic dynamics. ICML. arXiv:2306.04406; the blend: Doya, K. (1992). Bifurcations in the learning "
        "of recurrent neural networks. ISCAS",
        bibtex="""@inproceedings{hess2023generalized,
  author    = {Hess, Florian and Monfared, Zahra and Brenner, Manuel and Durstewitz, Daniel},
  title     = {Generalized Teacher Forcing for Learning Chaotic Dynamics},
  booktitle = {International Conference on Machine Learning},
  year      = {2023}
}""",
    )

    def problems(self) -> list[str]:
        """Return which arguments cannot be."""
        problems = [*COUNT.problems(every=self.every), *Range(0, 1).problems(decay=self.decay)]
        if isinstance(self.alpha, str) and self.alpha not in ("adaptive", "running"):
            problems.append(
                f"alpha must be a number in [0, 1], a schedule, 'adaptive' or 'running'; got {self.alpha!r}"
            )
        if self.alpha != "running" and (self.every, self.decay) != (5, 0.999):
            problems.append(f"every and decay are of alpha='running'; got alpha={self.alpha!r}")
        return [*problems, *super().problems()]

    def scheduled(self) -> Any:
        """The parameters that may be schedules; an adaptive alpha is none."""
        return ((name, setting) for name, setting in super().scheduled() if not isinstance(setting, str))

    def compute(self, model: Any, batch: Batch, step: int, key: int) -> Outcome:
        """One step: alpha, the blended roll-in, and the loss on the outputs."""
        alpha, passes = self._alpha(model, batch, step, key)
        outcome = self._blending(batch, alpha).compute(model, batch, step, key)
        report = {name: value for name, value in outcome.report.items() if name != "teacher_forcing_ratio"}
        more = {name: float(report[name]) + passes for name in ("passes", "work")}
        return outcome.made(report={"alpha": alpha, **report, **more})

    def mixed_batch(self, model: Any, batch: Batch, step: int, key: int) -> Batch:
        """The batch that is fed: its history holds the blends."""
        return self._blending(batch, self._alpha(model, batch, step, key)[0]).mixed_batch(model, batch, step, key)

    def _blending(self, batch: Batch, alpha: float) -> ScheduledSampling:
        refuse_ids(self.name, batch)
        return ScheduledSampling(
            alpha,
            self.draw,
            "blend",
            engine=self.engine,
            gradient=self.gradient,
            objective=self.objective,
            target=self.target,
        )

    def _alpha(self, model: Any, batch: Batch, step: int, key: int) -> tuple[float, float]:
        """Alpha, and the passes that finding it took."""
        refuse_ids(self.name, batch)
        if not isinstance(self.alpha, str):
            return self.value("alpha", step, key), 0.0
        if self.alpha == "adaptive":
            return self._estimate(model, batch)
        self._settle(int(step), batch.history.device)
        memory, passes = self._memory, 0.0
        if int(step) % self.every == 0:
            estimate, passes = self._estimate(model, batch)
            memory["estimate"] = max(memory["estimate"], estimate)
        return memory["alpha"], passes

    @cached_property
    def _memory(self) -> dict[str, float]:
        """The running estimate; the largest alpha* of the update ``step`` so far, -1 where there is none."""
        return dict(_FIRST)

    def _settle(self, step: int, device: torch.device) -> None:
        """Take the estimate of an update that is over into the running one."""
        memory = self._memory
        if step < memory["step"]:
            memory.update(_FIRST)
        if step > memory["step"] and (estimate := _over_ranks(memory["estimate"], device)) >= 0:
            before = memory["alpha"]
            after = estimate if estimate > before else self.decay * before + (1 - self.decay) * estimate
            memory.update(alpha=after, estimate=-1.0)
        memory["step"] = float(step)

    def state_dict(self) -> dict[str, float | Tensor]:
        """The running estimate, of all processes, which all have to call, and scores that schedules follow."""
        if self.alpha != "running":
            return super().state_dict()
        self._memory["estimate"] = _over_ranks(self._memory["estimate"], torch.device("cpu"))
        return {**super().state_dict(), **self._memory}

    def load_state_dict(self, state: Mapping[str, float | Tensor]) -> None:
        """Go on from a state; {} begins anew."""
        super().load_state_dict(state)
        self._memory.update({name: float(state.get(name, first)) for name, first in _FIRST.items()})

    def _estimate(self, model: Any, batch: Batch) -> tuple[float, float]:
        """alpha* of a batch, and the passes that finding it took."""
        known = zero_unused(batch)
        if known.missing is not None:
            with torch.no_grad(), asking(unwrap(model), known):
                known = known.made(history=gold_outputs(unwrap(model), known, self.draw)[1])
        alpha = least_forcing(jacobians(model, known), fed_entries(batch))
        # a forward over all positions, and as many backward as there are channels
        return alpha, 1.0 + batch.history.shape[-1]


_FIRST = {"alpha": 1.0, "estimate": -1.0, "step": -1.0}


def _over_ranks(here: float, device: torch.device) -> float:
    """The largest of all processes."""
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return here
    if dist.get_backend() == "nccl" and device.type == "cpu":
        device = torch.device("cuda")
    found = torch.tensor(here, dtype=torch.float64, device=device)
    dist.all_reduce(found, dist.ReduceOp.MAX)
    return float(found)


def fed_entries(batch: Batch) -> Tensor:
    """(batch, time) bool: entries that may be replaced and that a later output, which may count, is made from."""
    used = (batch.mask | batch.replaceable).int()
    return batch.replaceable & (used.flip(1).cumsum(1).flip(1) > used)


def least_forcing(jacobian: Tensor, counted: Tensor | None = None) -> float:
    """``max(0, 1 - 1 / s)``: the least alpha with which products of (1 - alpha) J_t do not grow.

    Args:
        jacobian: (batch, time, value, value).
        counted: (batch, time) bool: positions that count; default: all.

    Returns:
        alpha; s is the largest over rows of the geometric mean over time of the spectral norms.

    Raises:
        UserError: where one that counts is not finite.

    >>> least_forcing(torch.eye(3).expand(1, 5, 3, 3) * 4)
    0.75
    """
    jacobian = jacobian.detach().double()
    if counted is None:
        counted = torch.ones(jacobian.shape[:2], dtype=torch.bool, device=jacobian.device)
    jacobian = torch.where(counted[..., None, None], jacobian, 0.0)
    if broken := int((~jacobian.isfinite()).flatten(2).any(2).sum()):
        raise UserError(
            f"adaptive alpha: the Jacobian is not finite at {broken} of {int(counted.sum())} positions: the model's "
            "weights or its outputs have left all bounds; lower the learning rate, or clip gradients"
        )
    norms = torch.linalg.matrix_norm(jacobian, 2).log()
    number = counted.sum(1)
    means = torch.where(counted, norms, 0.0).sum(1)[number > 0] / number[number > 0]
    largest = float(means.max().exp()) if len(means) else 0.0
    return max(0.0, 1.0 - 1.0 / largest) if largest > 0 else 0.0


def jacobians(model: Any, batch: Batch) -> Tensor:
    """(batch, time, value, value): the Jacobian of the next prediction by each gold entry, ``d f(y_t) / d y_t``.

    Args:
        model: a Stepper whose state is its last entry (``markov = True``).
        batch: its gold history is where they are taken.

    Raises:
        UserError: another model.
    """
    model = unwrap(model)
    steps = stepping(model)
    if not (supports(steps, Stepper) and getattr(model, "markov", False)):
        raise UserError(
            f"an adaptive alpha needs a model whose state is its last entry only, declared by markov = True "
            f"(shallow_plrnn is one); got {type(model).__name__}: set alpha to a number or a schedule"
        )
    width = batch.history.shape[-1]
    entries = batch.history.detach().flatten(0, 1).requires_grad_()
    rows = torch.arange(batch.size, device=entries.device).repeat_interleave(batch.time)
    with asking(model, batch), torch.enable_grad():
        state = steps.select(steps.start(batch), rows)
        outputs = steps.output(steps.step(state, steps.embed(entries)))
        parts = [torch.autograd.grad(outputs[:, v].sum(), entries, retain_graph=v + 1 < width)[0] for v in range(width)]
    return torch.stack(parts, 1).unflatten(0, (batch.size, batch.time))


generalised_teacher_forcing = GeneralisedTeacherForcing
