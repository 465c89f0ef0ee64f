"""Consistency: after a mixed history the model shall predict what it predicts after gold."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

from freerun import targets
from freerun.batch import Batch
from freerun.errors import UserError
from freerun.methods.base import SHARED, Citation, last_width
from freerun.methods.gkd import Teacher, summed_divergence
from freerun.methods.scheduled_sampling import ScheduledSampling
from freerun.rollin import is_sharded
from freerun.schedules import Schedule
from freerun.types import Outcome


@dataclass(frozen=True, repr=False)
class Consistency(ScheduledSampling):
    """Scheduled sampling, and a penalty where the model predicts otherwise than after gold.

    ``loss = -sum_t log p(y_t | h_<t, x) + alpha sum_t KL(sg[p(. | y_<t, x)] || p(. | h_<t, x))``, h the mixed history
    of ``scheduled_sampling``. The distribution after gold is the model's own without dropout, and carries no gradient.
    It is one more forward without gradient, counted in ``passes`` and ``work``; with alpha 0 or ratio 1 there is none.
    Weights of positions apply to both terms, and a ``target`` that leaves positions out leaves them out of both.

    Args:
        teacher_forcing_ratio: P(gold) in [0, 1], a number or a schedule.
        alpha: weight of the penalty, a number of 0 or more or a schedule.

    The other arguments are those of ``scheduled_sampling``.

    Raises:
        UserError: arguments outside their range; targets that are values; sharded parameters.

    What it is not: the paper's method whole, whose share of own entries follows the training accuracy of each sentence;
    here it is ``teacher_forcing_ratio``. Nor a distillation: no other model takes part.

    Reference: Lin, Jwalapuram and Joty 2023, arXiv:2301.13753.

    >>> Consistency(0.5, alpha=0.3)
    consistency(teacher_forcing_ratio=0.5, alpha=0.3)
    """

    alpha: float | Schedule = field(default=1.0, kw_only=True)

    name: ClassVar[str] = "consistency"
    summary: ClassVar[str] = "scheduled sampling, and a penalty on predicting otherwise than after gold"
    only_for: ClassVar[tuple[str, str] | None] = ("symbols", "scheduled_sampling")
    ranges: ClassVar[dict[str, tuple[float, float]]] = {
        "teacher_forcing_ratio": (0.0, 1.0), "alpha": (0.0, float("inf")), **SHARED,
    }  # fmt: skip
    citation: ClassVar[Citation] = Citation(
        formula="h_t = y_t with probability r(step), else a draw from p(. | h_<t, x);  "
        "loss = -sum_t log p(y_t | h_<t, x) + alpha sum_t KL(sg[p(. | y_<t, x)] || p(. | h_<t, x))",
        reference="Lin, X., Jwalapuram, P. and Joty, S. (2023). Dynamic scheduled sampling with imitation loss for "
        "neural text generation. arXiv:2301.13753 (there the share of own entries follows the training accuracy)",
        bibtex="""@article{lin2023dynamic,
  author  = {Lin, Xiang and Jwalapuram, Prathyusha and Joty, Shafiq},
  title   = {Dynamic Scheduled Sampling with Imitation Loss for Neural Text Generation},
  journal = {arXiv preprint arXiv:2301.13753},
  year    = {2023}
}""",
    )

    @property
    def own_loss(self) -> tuple[str, ...]:
        """The penalty is no part of a trainer's own loss."""
        return (*super().own_loss, "alpha adds a penalty to the loss")

    def compute(self, model: Any, batch: Batch, step: int, key: int) -> Outcome:
        """Scheduled sampling's step, and the penalty."""
        if not batch.is_discrete:
            raise UserError("consistency compares distributions of symbols, and these targets are values")
        if is_sharded(model):
            raise UserError("consistency calls the model on gold apart, which sharded parameters do not allow")
        aim, found, method = self.target, list[Any](), self
        if not isinstance(aim, str):  # called once a step, as it may draw
            method = replace(self, target=lambda batch, history: found.append(aim(batch, history)) or found[-1])
        outcome, alpha = super(Consistency, method).compute(model, batch, step, key), self.value("alpha", step, key)
        if alpha == 0 or self.value("teacher_forcing_ratio", step, key) >= 1:
            return outcome.made(report={"alpha": alpha, **outcome.report})
        more = {name: float(outcome.report[name]) + 1 for name in ("passes", "work")}
        again: Any = (lambda batch, history: found[-1]) if found else aim
        scored, _ = targets.aimed(again, outcome.fed, last_width(outcome.computed))  # a target may leave some out
        penalty = alpha * summed_divergence(outcome.computed, batch, Teacher(model), kept=scored.mask)[0]
        total = outcome.total + penalty.to(outcome.total.dtype)
        return outcome.made(total=total, report={"alpha": alpha, **outcome.report, **more})


consistency = Consistency
