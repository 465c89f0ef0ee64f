"""Own sequences by what they cost: minimum risk training, and REINFORCE with the model's greedy run as baseline."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor

from freerun.arguments import at_least, one_of
from freerun.methods.base import SHARED, Citation
from freerun.methods.candidates import Begun, Loss, SequenceMethod, Sequences
from freerun.schedules import Schedule
from freerun.targets import counted_rows


@dataclass(frozen=True, repr=False)
class MinimumRisk(SequenceMethod):
    """Make what a row's own sequences cost small, each weighed by its share of their probability.

    ``loss = sum_i Q_i cost_i, Q_i = p_i^alpha / sum_j p_j^alpha`` over a row's distinct own sequences and gold, the
    mean over rows; p_i is the probability of the full sequence, not the mean of its entries' log-probabilities.

    Args:
        cost: ``"edit_distance"``, ``"bleu"`` (1 less sentence BLEU as sacreBLEU's, ids as tokens) or a function
            (ids, gold ids) -> number; see ``freerun.methods.costs.Cost``.
        num_samples: runs of each row, of which each sequence counts once; published 100.
        draw: of the runs: "sample" as published, or a draw.
        end: id of the end symbol, each row's last target; None: that of the model's own generation, and in a recipe
            that of the data.
        margin: a run is cut so many entries beyond its row's targets.
        gate: where gold is kept, which must be at the beginning of a row: "prefix", "sequence" or "batch".
        teacher_forcing_ratio: share of gold that the gate keeps, in [0, 1], or a schedule. What is kept is learnt by
            cross-entropy, and the runs go on from there; 0: they begin at each row's first entry.
        gold_weight: of gold's cross-entropy, summed over a row's entries, which is added to the loss.
        alpha: sharpness of Q above 0, a number or a schedule: at 0 it would be uniform, at 1 it is by probability.
        include_gold: whether gold is one of the sequences, as published.

    Runs are of the model's own probabilities, whatever its ``generation_config`` reweighs, forces or forbids. The count
    is the number of rows: at ratio 1 the loss is cross-entropy summed over a row's entries, the mean over rows.

    Raises:
        UserError: targets that are values, or of which not the last counted entry of a row, and it alone, is the end
            symbol; weights of positions; counted entries that ``eligible`` excludes; no end symbol; one sequence a row,
            of which Q is 1 whatever the model; a cost that is no finite number; sharded parameters.

    What it is not: the expected cost under the model, which it becomes with alpha = 1 and all sequences; nor Edunov et
    al.'s code, whose Q is a softmax of exponentiated mean log-probabilities. With a ratio above 0 it is MIXER's roll-in
    and not MIXER, whose loss is REINFORCE: ``self_critical``.

    Reference: Shen, Cheng, He, He, Wu, Sun and Liu 2016, arXiv:1512.02433.

    >>> MinimumRisk("bleu", num_samples=16, end=0)
    minimum_risk(cost='bleu', num_samples=16, end=0)
    """

    num_samples: int = at_least(1, 10)
    alpha: float | Schedule = 0.005
    include_gold: bool = True

    name: ClassVar[str] = "minimum_risk"
    summary: ClassVar[str] = "the expected cost of several own runs and gold, by their renormalised probabilities"
    ranges: ClassVar[dict[str, tuple[float, float]]] = {
        "teacher_forcing_ratio": (0.0, 1.0), "alpha": (1e-6, float("inf")), **SHARED
    }  # fmt: skip
    citation: ClassVar[Citation] = Citation(
        formula="loss = sum_i Q_i cost(y_i, y),  Q_i = p(y_i | x)^alpha / sum_j p(y_j | x)^alpha,  "
        "y_i distinct samples and gold",
        reference="Shen, S., Cheng, Y., He, Z., He, W., Wu, H., Sun, M. and Liu, Y. (2016). Minimum risk training for "
        "neural machine translation. ACL. arXiv:1512.02433",
        bibtex="""@inproceedings{shen2016minimum,
  author    = {Shen, Shiqi and Cheng, Yong and He, Zhongjun and He, Wei and Wu, Hua and Sun, Maosong and Liu, Yang},
  title     = {Minimum Risk Training for Neural Machine Translation},
  booktitle = {Annual Meeting of the Association for Computational Linguistics},
  year      = {2016}
}""",
    )

    def problems(self) -> list[str]:
        """What is wrong, one sequence a row too."""
        found = super().problems()
        if not isinstance(self.include_gold, bool):
            found.append(f"include_gold must be True or False; got {self.include_gold!r}")
        elif not self.include_gold and self.num_samples == 1:
            found.append(
                "num_samples=1 with include_gold=False is one sequence a row, whose share Q is 1 whatever the model, "
                "so nothing is learnt: use num_samples=2 or more, or include_gold=True"
            )
        return found

    def weighed(self, begun: Begun, runs: Sequences, model: Any, at: tuple[int, int]) -> tuple[Sequences, Tensor, Loss]:
        """The distinct sequences, the costs of the runs, and the risk."""
        every = runs.with_gold(*counted_rows(begun.batch)) if self.include_gold else runs
        scored, where = every.distinct()
        prices = begun.costs(scored)
        first = torch.ones_like(every.rows, dtype=torch.bool)
        first[1:] = every.rows[1:] != every.rows[:-1]
        own = ~first if self.include_gold else slice(None)
        return scored, prices[where][own], partial(risk, scored.rows, prices, self.value("alpha", *at))


def risk(rows: Tensor, prices: Tensor, alpha: float, log_p: Tensor) -> Tensor:
    """``sum over rows of sum_i Q_i cost_i`` of sequences' rows, costs and log-probabilities, each (n,); a scalar."""
    _, row = rows.unique(return_inverse=True)
    # (rows, sequences of a row)
    slot = torch.arange(len(rows), device=rows.device) - torch.searchsorted(row, row)
    shape = int(row.max()) + 1, int(slot.max()) + 1
    scores = log_p.new_full(shape, -torch.inf).index_put((row, slot), alpha * log_p)
    paid = log_p.new_zeros(shape).index_put((row, slot), prices.to(log_p.dtype))
    return (scores.softmax(1) * paid).sum()


@dataclass(frozen=True, repr=False)
class SelfCritical(SequenceMethod):
    """REINFORCE on the cost of own runs, with the model's own greedy run as the baseline.

    ``loss = sum_i (cost_i - baseline) log p_i / num_samples``, the mean over rows; its gradient is an unbiased estimate
    of that of the expected cost where draws are "sample" and the model is the same function in both modes. The loss is
    no measure of anything: the logged cost is.

    Args:
        cost: ``"edit_distance"``, ``"bleu"`` (1 less sentence BLEU as sacreBLEU's, ids as tokens) or a function
            (ids, gold ids) -> number; see ``freerun.methods.costs.Cost``. The papers' reward is its negative.
        num_samples: runs of each row; published 1.
        draw: of the runs: "sample" as published, or a draw.
        end: id of the end symbol, each row's last target; None: that of the model's own generation, and in a recipe
            that of the data.
        margin: a run is cut so many entries beyond its row's targets.
        gate: where gold is kept, which must be at the beginning of a row: "prefix", "sequence" or "batch".
        teacher_forcing_ratio: share of gold that the gate keeps, in [0, 1], or a schedule. What is kept is learnt by
            cross-entropy, and the runs go on from there; 0: they begin at each row's first entry.
        gold_weight: of gold's cross-entropy, summed over a row's entries, which is added to the loss.
        baseline: "greedy", the cost of the greedy run, as published; or "mean", that of the row's other runs.

    Runs, the greedy one too, are of the model's own probabilities, whatever its ``generation_config`` reweighs, forces
    or forbids. The count is the number of rows: at ratio 1 the loss is cross-entropy summed over a row's entries, the
    mean over rows.

    Raises:
        UserError: targets that are values, or of which not the last counted entry of a row, and it alone, is the end
            symbol; weights of positions; counted entries that ``eligible`` excludes; no end symbol;
            ``baseline="mean"`` of one run; a draw that is the baseline; a cost that is no finite number; sharded
            parameters.

    What it is not: MIXER (Ranzato et al. 2016), of which ``gate="prefix"`` with a falling ratio is all but the
    baseline: cross-entropy on a gold beginning, REINFORCE on what the model makes after it. MIXER learns its baseline,
    one for each position, by regression on hidden states, counts the beginning in entries, and weighs both losses by
    one half.

    Reference: Rennie, Marcheret, Mroueh, Ross and Goel 2017, arXiv:1612.00563; Ranzato, Chopra, Auli and Zaremba 2016,
    arXiv:1511.06732.

    >>> SelfCritical("bleu", end=0)
    self_critical(cost='bleu', end=0)
    """

    baseline: str = one_of(("greedy", "mean"), "greedy")

    name: ClassVar[str] = "self_critical"
    summary: ClassVar[str] = "own runs that cost less than the greedy one are made likelier, the others less likely"
    citation: ClassVar[Citation] = Citation(
        formula="loss = (cost(y_s, y) - cost(y_greedy, y)) log p(y_s | x),  y_s ~ p(. | x)",
        reference="Rennie, S. J., Marcheret, E., Mroueh, Y., Ross, J. and Goel, V. (2017). Self-critical sequence "
        "training for image captioning. CVPR. arXiv:1612.00563",
        bibtex="""@inproceedings{rennie2017self,
  author    = {Rennie, Steven J. and Marcheret, Etienne and Mroueh, Youssef and Ross, Jerret and Goel, Vaibhava},
  title     = {Self-Critical Sequence Training for Image Captioning},
  booktitle = {IEEE Conference on Computer Vision and Pattern Recognition},
  year      = {2017}
}""",
    )

    def problems(self) -> list[str]:
        """What is wrong, a mean of nothing too."""
        alone = self.baseline == "mean" and self.num_samples == 1
        more = ["baseline='mean' is of a row's other runs, and num_samples=1 leaves none: use 2 or more, or 'greedy'"]
        found = [*super().problems(), *(more if alone else [])]
        if self.certain and self.baseline == "greedy":
            found.append(
                f"draw={self.draw!r} is the run that it is compared with, so nothing is learnt: use draw='sample'"
            )
        return found

    def weighed(self, begun: Begun, runs: Sequences, model: Any, at: tuple[int, int]) -> tuple[Sequences, Tensor, Loss]:
        """The distinct runs, the costs of all, and the log-probabilities by what each costs above the baseline."""
        distinct, where = runs.distinct()
        prices = begun.costs(distinct)[where]
        if self.baseline == "greedy":
            usual = begun.costs(begun.runs(model, "greedy", 1, self.margin, at))[runs.rows]
        else:
            of_row = prices.new_zeros(begun.batch.size).index_add(0, runs.rows, prices)
            usual = (of_row[runs.rows] - prices) / (self.num_samples - 1)
        weights = prices.new_zeros(len(distinct.rows)).index_add(0, where, (prices - usual) / self.num_samples)
        return distinct, prices, partial(_weighed_sum, weights)


def _weighed_sum(weights: Tensor, log_p: Tensor) -> Tensor:
    return (weights.to(log_p.dtype) * log_p).sum()


minimum_risk = MinimumRisk
self_critical = SelfCritical
