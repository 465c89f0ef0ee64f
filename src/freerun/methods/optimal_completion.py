"""Optimal completion distillation: the model's own runs, each entry against what would complete it best."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, cast

import torch
from torch import Tensor

from freerun import draws, objectives
from freerun.arguments import at_least
from freerun.batch import Batch
from freerun.methods.base import Citation, TransformMethod
from freerun.methods.own_runs import OF_GOLD, beginnings, end_of, own_runs, run_report
from freerun.objectives import Objective
from freerun.rollin.training import counted_forward
from freerun.targets import OptimalCompletion, completion_shares, counted_rows
from freerun.types import Outcome


@dataclass(frozen=True, repr=False)
class OptimalCompletionDistillation(TransformMethod):
    """Run freely to the model's own end, and learn at each entry what completes the run with the fewest edits.

    ``h ~ p(. | x)`` to its own end; ``loss = sum_t KL(q_t || p(. | h_<t, x))``, q_t uniform over
    ``{y_{j+1}: d(h_<t, y_<=j) = min_k d(h_<t, y_<=k)}``, d the edit distance and y's last entry the end symbol. The
    count is the number of gold entries, which is known before the run.

    Args:
        draw: "sample" as published, "greedy" or a draw.
        end: id of the end symbol, each row's last target; None: that of the model's own generation, and in a recipe
            that of the data.
        margin: a run is cut so many entries beyond its row's targets.
        objective: ``"auto"`` or ``objectives.cross_entropy(label_smoothing=...)``.

    Raises:
        UserError: targets that are values, or of which not the last counted entry of a row, and it alone, is the end
            symbol; weights of positions, which belong to gold's; counted entries that ``eligible`` excludes; no end
            symbol; sharded parameters.

    What it is not: maximum likelihood, whose target is gold's entry at the same position, right or not after what was
    fed; nor scheduled sampling with ``target="optimal_completion"``, whose histories are as long as gold and partly
    gold.

    Reference: Sabour, Chan and Norouzi 2019, Optimal completion distillation for sequence learning, ICLR,
    arXiv:1810.01398.

    >>> OptimalCompletionDistillation(end=0)
    optimal_completion(end=0)
    """

    draw: str | draws.Draw = "sample"
    end: int | None = at_least(0, None)
    margin: int = at_least(0, 5)
    objective: str | Objective = "auto"

    name: ClassVar[str] = "optimal_completion"
    summary: ClassVar[str] = "own runs to their own end; at each entry what completes them with the fewest edits"
    only_for: ClassVar[tuple[str, str] | None] = ("symbols", "scheduled_sampling")
    own_lengths: ClassVar[bool] = True
    without: ClassVar[Mapping[str, str]] = OF_GOLD
    citation: ClassVar[Citation] = Citation(
        formula="h ~ p(. | x) to its own end;  loss = sum_t KL(q_t || p(. | h_<t, x)),  "
        "q_t uniform over {y_j+1: edit(h_<t, y_<=j) = min_k edit(h_<t, y_<=k)}",
        reference="Sabour, S., Chan, W. and Norouzi, M. (2019). Optimal completion distillation for sequence learning. "
        "ICLR. arXiv:1810.01398",
        bibtex="""@inproceedings{sabour2019optimal,
  author    = {Sabour, Sara and Chan, William and Norouzi, Mohammad},
  title     = {Optimal Completion Distillation for Sequence Learning},
  booktitle = {International Conference on Learning Representations},
  year      = {2019}
}""",
    )

    @property
    def own_loss(self) -> tuple[str, ...]:
        """The loss is on runs of another length than gold."""
        return (*super().own_loss, "the loss is on the model's own runs")

    def _begun(self, batch: Batch) -> Batch:
        """The batch with what rows must begin with among their prompts."""
        return batch.made(mask=batch.mask & ~beginnings(batch), eligible=None)

    def mix_history(self, model: Any, batch: Batch, step: int, key: int) -> tuple[Batch, dict[str, float | str]]:
        """The batch of the model's own runs."""
        end = end_of(self.end, model, batch, self.name)
        batch = self._begun(batch)
        runs = own_runs(model, batch, draw=self.draw, key=key, step=step, end=end, margin=self.margin)
        return runs, run_report(batch, runs)

    def compute(self, model: Any, batch: Batch, step: int, key: int) -> Outcome:
        """One step: run freely, forward, the divergence from what completes best."""
        count = batch.mask.sum()
        batch = self._begun(batch)
        end = end_of(self.end, model, batch, self.name)
        gold, lengths = OptimalCompletion(end).gold(batch)
        runs, report = self.mix_history(model, batch, step, key)
        entries, made = counted_rows(runs)
        found = completion_shares(entries, gold, lengths, end)
        shares = found.new_zeros(runs.size, runs.time, found.shape[2])
        shares[runs.mask] = found[made[:, None] > torch.arange(entries.shape[1], device=made.device)]
        outputs = counted_forward(model, runs, self.objective)
        total, _ = objectives.scored(self.objective, outputs, runs, shares)
        return Outcome(total, count.to(total.dtype), cast(Tensor, outputs), runs, report)


optimal_completion = OptimalCompletionDistillation
