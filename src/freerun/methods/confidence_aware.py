"""Confidence-aware scheduled sampling: gold where the model is unsure, its own where sure, noise where very sure."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

from torch import Tensor

from freerun import gates
from freerun.arguments import is_number
from freerun.keys import fold, uniform
from freerun.methods.base import Citation
from freerun.methods.token_noise import same_sentence
from freerun.methods.two_pass import First, TwoPass
from freerun.schedules import Schedule
from freerun.types import Batch

__all__ = ["ConfidenceAware", "confidence_aware"]


@dataclass(frozen=True, repr=False)
class ConfidenceAware(TwoPass):
    """Two passes; how sure the first is of the gold decides whether the second is told gold, own or random entries.

    With ``c_t = p(y_t | y_<t, x)``: ``h_t = y_t`` where ``c_{t+1} <= t_golden``; the model's own prediction where
    ``t_golden < c_{t+1} <= t_rand``; another symbol of the same target, drawn evenly, where ``c_{t+1} > t_rand``.
    ``loss = -sum_t log p(y_t | h_<t, x) + gold_weight * -sum_t log p(y_t | y_<t, x)``. As published, entry t is decided
    by the prediction that is made from it; the last entry of a row predicts nothing and stays gold.

    Args:
        teacher_forcing_ratio: probability of keeping gold all the same, a number or a schedule; as published 0.
        mix: what the model's own prediction is: ``"expected"`` (as published, its weights without gradient; the model
            needs ``lookup`` and ``outputs_from``), ``"argmax"``, ``"sample"`` or another mix of ``two_pass``.
        temperature: of the mix.
        top_k: of ``mix="top_k"``.
        gold_weight: of the loss on gold history; 1 as published.
        objective: ``"auto"``, ``"cross_entropy"`` or a function.
        t_golden: confidence up to which gold is kept, in [0, 1).
        t_rand: confidence above which the entry is random, at least t_golden; 1: never.

    The published models start from a teacher-forced one: begin with a ``teacher_forcing_ratio`` of 1.

    Raises:
        UserError: as ``two_pass``, and for thresholds out of order.

    What it is not: exact, for its own entries are predicted from gold; ``scheduled_sampling(0.0, coin="confidence")``
    is, without the random class. Nor a measure of confidence by dropout, the paper's other variants.

    Reference: Liu, Meng, Chen, Xu and Zhou 2021, arXiv:2107.10427.

    >>> ConfidenceAware(mix="argmax", t_rand=1.0)
    confidence_aware(mix='argmax', t_rand=1.0)
    """

    teacher_forcing_ratio: float | Schedule = 0.0
    mix: str = "expected"
    coin: str | gates.Gate = field(default="confidence", init=False)
    gradient: str = field(default="none", init=False)
    gold_weight: float = 1.0
    t_golden: float = 0.9
    t_rand: float = 0.95

    name: ClassVar[str] = "confidence_aware"
    summary: ClassVar[str] = "gold where unsure, own where sure, random where very sure"
    citation: ClassVar[Citation] = Citation(
        formula="c_t = p(y_t | y_<t, x);  h_t = y_t where c_{t+1} <= t_golden, own where t_golden < c_{t+1} <= t_rand, "
        "else another symbol of y;  loss = -sum_t log p(y_t | h_<t, x) + gold_weight * -sum_t log p(y_t | y_<t, x)",
        reference="Liu, Y., Meng, F., Chen, Y., Xu, J. and Zhou, J. (2021). Confidence-aware scheduled sampling for "
        "neural machine translation. Findings of ACL-IJCNLP. arXiv:2107.10427",
        bibtex="""@inproceedings{liu2021confidence,
  author    = {Liu, Yijin and Meng, Fandong and Chen, Yufeng and Xu, Jinan and Zhou, Jie},
  title     = {Confidence-Aware Scheduled Sampling for Neural Machine Translation},
  booktitle = {Findings of the Association for Computational Linguistics: ACL-IJCNLP 2021},
  year      = {2021}
}""",
    )

    def problems(self) -> list[str]:
        """What is wrong with the thresholds, and what all methods share."""
        found: list[str] = []
        if not is_number(self.t_golden) or not 0 <= self.t_golden < 1:
            found.append(f"t_golden must lie in [0, 1), as 1 would keep everything; got {self.t_golden!r}")
        elif not is_number(self.t_rand) or not self.t_golden <= self.t_rand <= 1:
            found.append(f"t_rand must lie in [t_golden, 1] = [{self.t_golden}, 1]; got {self.t_rand!r}")
        return found + super().problems()

    def _gate(self) -> Any:
        return gates.Confidence(self.t_golden)

    def _entries(self, batch: Batch, first: First, own: Tensor, step: int, key: int) -> tuple[Tensor, Tensor]:
        plan = first.plan
        assert first.confidence is not None
        sure = gates.Confidence.following(batch, first.confidence)[plan.rows, plan.times]
        noisy = sure > self.t_rand
        history, _ = super()._entries(batch, first, own, step, key)
        rows, times = plan.rows[noisy], plan.times[noisy]
        if len(rows):
            u = uniform(fold(key, "noise", int(step)), batch.row_numbers[rows], times)
            other = same_sentence(batch, rows, times, u, exclude_gold=False)
            history = history.index_put((rows, times), other.to(history.dtype))
        return history, ~noisy


confidence_aware = ConfidenceAware
