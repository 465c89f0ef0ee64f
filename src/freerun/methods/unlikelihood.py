"""Token unlikelihood: lower the probability of symbols that the history already holds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from freerun.batch import Batch
from freerun.errors import UserError
from freerun.methods.base import SHARED, Citation, TransformMethod
from freerun.methods.report import replacement_counts
from freerun.objectives import Objective
from freerun.schedules import Schedule
from freerun.types import Counted, Outcome


@dataclass(frozen=True, repr=False)
class Unlikelihood(TransformMethod):
    """Teacher forcing, and a penalty on symbols that have occurred before in the row.

    ``loss = -sum_t log p(y_t | y_<t, x) - alpha sum_t sum_{c in C_t} log(1 - p(c | y_<t, x))``, C_t the set of y_1 to
    y_{t-1} without y_t. Only positions that count are penalised or penalise, so prompts and padding do not. Weights of
    positions apply to both terms.

    Args:
        alpha: weight of the penalty, a number of 0 or more or a schedule; as published 1.
        objective: of the first term: ``"auto"``, ``"cross_entropy"`` or a function.

    Raises:
        UserError: alpha outside its range; targets that are values.

    What it is not: sequence-level unlikelihood, whose candidates are repeated n-grams of the model's own outputs; nor
    a remedy for exposure bias: the history is gold.

    Reference: Welleck, Kulikov, Roller, Dinan, Cho and Weston 2020, arXiv:1908.04319.

    >>> Unlikelihood(0.5)
    unlikelihood(alpha=0.5)
    """

    alpha: float | Schedule = 1.0
    objective: str | Objective = "auto"

    name: ClassVar[str] = "unlikelihood"
    summary: ClassVar[str] = "gold history; symbols that have occurred are made less likely"
    feeds_own: ClassVar[bool] = False
    only_for: ClassVar[tuple[str, str] | None] = ("symbols", "teacher_forcing")
    ranges: ClassVar[dict[str, tuple[float, float]]] = {"alpha": (0.0, float("inf")), **SHARED}
    citation: ClassVar[Citation] = Citation(
        formula="loss = -sum_t log p(y_t | y_<t, x) - alpha sum_t sum_{c in y_<t, c != y_t} log(1 - p(c | y_<t, x))",
        reference="Welleck, S., Kulikov, I., Roller, S., Dinan, E., Cho, K. and Weston, J. (2020). Neural text "
        "generation with unlikelihood training. ICLR. arXiv:1908.04319",
        bibtex="""@inproceedings{welleck2020unlikelihood,
  author    = {Welleck, Sean and Kulikov, Ilia and Roller, Stephen and Dinan, Emily and Cho, Kyunghyun
               and Weston, Jason},
  title     = {Neural Text Generation with Unlikelihood Training},
  booktitle = {International Conference on Learning Representations},
  year      = {2020}
}""",
    )

    @property
    def own_loss(self) -> tuple[str, ...]:
        """The penalty is no part of a trainer's own loss."""
        return (*super().own_loss, "alpha adds a penalty to the loss")

    def mix_history(self, model: Any, batch: Batch, step: int, key: int) -> tuple[Batch, dict[str, float | str]]:
        """The batch, unchanged."""
        if not batch.is_discrete:
            raise UserError("unlikelihood penalises symbols, and these targets are values: use teacher_forcing")
        counts = replacement_counts(batch, batch.history, 0)
        return batch, {"alpha": self.value("alpha", step, key), **counts, "passes": 0, "engine": "none"}

    def finish(self, outputs: Tensor | Counted, fed: Batch, report: dict[str, float | str]) -> Outcome:
        """Cross-entropy, and the penalty."""
        outcome = super().finish(outputs, fed, report)
        alpha = float(report["alpha"])
        if alpha == 0:
            return outcome
        penalty = alpha * _penalty(outcome.outputs, fed)
        return outcome.made(total=outcome.total + penalty.to(outcome.total.dtype))


def _penalty(outputs: Tensor, batch: Batch) -> Tensor:
    """-sum over positions that count and their candidates of log(1 - p), without (batch, time, vocab) candidates."""
    mask, symbols = batch.mask, batch.targets.masked_fill(~batch.mask, 0)
    same = symbols[:, :, None] == symbols[:, None, :]  # (batch, t, j)
    before = torch.ones(batch.time, batch.time, dtype=torch.bool, device=mask.device).tril(-1)
    counted = mask[:, :, None] & mask[:, None, :] & before
    first = ~(same & counted).any(2)  # no entry before j has its symbol
    candidates = counted & ~same & first[:, None, :]
    logits = outputs if outputs.dtype == torch.float64 else outputs.float()
    # the most likely symbol's 1 - p from the others' sum: 1 - p of a rounded p may be 0
    top = logits.argmax(-1, keepdim=True)
    total = logits.logsumexp(-1, keepdim=True)
    others = logits.scatter(-1, top, -torch.inf).logsumexp(-1, keepdim=True) - total
    every = symbols[:, None, :].expand(-1, batch.time, -1)
    is_top = every == top
    log_p = (logits.gather(-1, every) - total).masked_fill(is_top, -1.0)
    unlikely = torch.where(is_top, others, torch.log1p(-log_p.exp()))
    per_position = -torch.where(candidates, unlikely, 0.0).sum(-1)
    return (per_position if batch.weights is None else per_position * batch.weights.masked_fill(~mask, 0)).sum()


unlikelihood = Unlikelihood
