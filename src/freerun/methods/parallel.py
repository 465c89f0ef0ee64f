"""Parallel scheduled sampling: a fixed number of parallel passes, each freezing one more entry."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from freerun import draws, gates
from freerun.batch import Batch
from freerun.keys import fold
from freerun.methods.base import (
    SHARED,
    Citation,
    TransformMethod,
    bind_gate,
    eval_logits_at,
    kept_gold_loss,
)
from freerun.methods.report import replacement_counts
from freerun.objectives import Objective
from freerun.rollin import any_rank, max_over_ranks
from freerun.rollin.replacement import Replacement
from freerun.schedules import Schedule
from freerun.types import Outcome


@dataclass(frozen=True, repr=False)
class Parallel(TransformMethod):
    """Scheduled sampling by ``passes`` parallel passes: pass n draws anew all entries but the first n of a row.

    ``h^0 = y``; for n = 0, ..., passes-1: ``h^{n+1}_t = h^n_t`` for t < n, else y_t with probability r(step), else a
    draw from ``p(. | h^n_<t, x)``; ``loss = -sum_t log p(y_t | h_<t, x)`` on the last h. t counts a row's eligible
    entries.

    Args:
        teacher_forcing_ratio: P(gold) in [0, 1], a number or a schedule.
        passes: k >= 1, as published 1. The first k entries have the law of sequential scheduled sampling.
        redraw: whether each pass has gates and draws of its own, as in the authors' code; False: one gate and one
            noise for each entry, so that the first k entries *are* those of sequential scheduled sampling under the
            same key.
        draw: as for scheduled sampling; values are fed back without gradient.
        gate: as for scheduled sampling.
        gold_weight: of the loss on gold history beside the other, one more forward; 0 drops it, as published.
        objective: ``"auto"``, ``"cross_entropy"``, ``"mse"`` or a function.

    The passes run in evaluation mode.

    Raises:
        UserError: for arguments outside their range.

    What it is not: exact, unless ``passes`` reaches the longest row; ``scheduled_sampling`` is exact and usually takes
    fewer passes than that. ``scheduled_sampling(engine=k)`` is ``redraw=False``.

    Reference: Duckworth, Neelakantan, Goodrich, Kaiser and Bengio 2019, arXiv:1906.04331.

    >>> Parallel(0.5, passes=2)
    parallel(teacher_forcing_ratio=0.5, passes=2)
    """

    teacher_forcing_ratio: float | Schedule
    passes: int = 1
    redraw: bool = True
    draw: str | draws.Draw = "auto"
    gate: str | gates.Gate = "token"
    gold_weight: float = 0.0
    objective: str | Objective = "auto"

    name: ClassVar[str] = "parallel"
    summary: ClassVar[str] = "k parallel passes, each freezing one more entry (approximate)"
    ranges: ClassVar[dict[str, tuple[float, float]]] = {"teacher_forcing_ratio": (0.0, 1.0), **SHARED}
    citation: ClassVar[Citation] = Citation(
        formula="h^0 = y;  h^{n+1}_t = h^n_t for t < n, else y_t with probability r(step), else a draw from "
        "p(. | h^n_<t, x);  loss = -sum_t log p(y_t | h^k_<t, x)",
        reference="Duckworth, D., Neelakantan, A., Goodrich, B., Kaiser, L. and Bengio, S. (2019). Parallel scheduled "
        "sampling. arXiv:1906.04331",
        bibtex="""@article{duckworth2019parallel,
  author  = {Duckworth, Daniel and Neelakantan, Arvind and Goodrich, Ben and Kaiser, Lukasz and Bengio, Samy},
  title   = {Parallel Scheduled Sampling},
  journal = {arXiv preprint arXiv:1906.04331},
  year    = {2019}
}""",
    )

    def problems(self) -> list[str]:
        """Return which arguments cannot be."""
        problems: list[str] = []
        if isinstance(self.passes, bool) or not isinstance(self.passes, int) or self.passes < 1:
            problems.append(f"passes must be a whole number of 1 or more; got {self.passes!r}")
        return problems + super().problems()

    def mix_history(self, model: Any, batch: Batch, step: int, key: int) -> tuple[Batch, dict[str, float | str]]:
        """The batch with the history after the last pass."""
        ratio = self.value("teacher_forcing_ratio", step, key)
        toss, calls = bind_gate(self.gate, model, batch, ratio)
        draw = draws.fitting(self.draw, batch)
        index = batch.replaceable.cumsum(1) - 1
        needed = int(index.max()) + 1 if index.numel() else 0
        history, own = batch.history, torch.zeros_like(batch.mask)
        for n in range(min(self.passes, max_over_ranks(model, needed))):
            keys = [fold(key, label, int(step)) for label in ("gate", "draw")]
            if self.redraw and n:  # the first pass shares its randomness with the other methods
                keys = [fold(each, n) for each in keys]
            drawn = batch.replaceable & (index >= n)
            keep = toss(keys[0])
            replacement = Replacement.of(batch, keep | ~drawn, draw, keys[1]).ruled(model, batch)
            own = torch.where(drawn, ~keep, own)
            before = history
            history = torch.where(drawn.view(*drawn.shape, *[1] * (history.dim() - 2)), batch.history, before)
            if any_rank(model, replacement.number > 0):
                calls += 1
                history = _drawn(model, batch.made(history=before), replacement, history)
        exact = self.passes >= needed or not bool(own.any())
        report: dict[str, float | str] = {
            "teacher_forcing_ratio": ratio,
            **replacement_counts(batch, history, int(own.sum())),
            "passes": calls,
            "work": float(calls),
            "engine": f"{self.passes} frozen passes" if calls else "none",
            "exact": float(exact),
            "certified": "construction" if exact else "no",
        }
        return batch.made(history=history, replaced=own), report

    def compute(self, model: Any, batch: Batch, step: int, key: int) -> Outcome:
        """One step: the passes, then an ordinary forward."""
        outcome = super().compute(model, batch, step, key)
        return outcome if self.gold_weight == 0 else kept_gold_loss(self, outcome, model, batch)


def _drawn(model: Any, batch: Batch, replacement: Replacement, history: Tensor) -> Tensor:
    """The history with the replaced entries drawn from the model's outputs on the batch."""
    outputs = eval_logits_at(model, batch, *replacement.positions)
    if replacement.number == 0:
        return history
    replacement.check(outputs, replacement.number)
    outputs = replacement.allowed(outputs, batch.history)
    own = replacement.draw.choose(outputs, replacement.noise(outputs.shape[-1])).to(history.dtype)
    return history.index_put(replacement.positions, own)


parallel = Parallel
