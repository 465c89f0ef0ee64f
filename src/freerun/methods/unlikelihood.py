"""Unlikelihood: lower the probability of symbols that the history holds, or of what own runs repeat."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, ClassVar

import torch
from torch import Tensor

from freerun import draws, gates
from freerun.arguments import at_least, one_of
from freerun.batch import Batch
from freerun.errors import UserError
from freerun.methods.base import SHARED, Citation, TransformMethod
from freerun.methods.own_runs import beginnings, end_of, model_ends, own_runs
from freerun.methods.report import replacement_counts
from freerun.objectives import Objective
from freerun.rollin import forward
from freerun.schedules import Schedule
from freerun.targets import counted_rows
from freerun.types import Counted, Outcome


@dataclass(frozen=True, repr=False)
class Unlikelihood(TransformMethod):
    """Teacher forcing, and a penalty on symbols that have occurred before, or on n-grams that own runs repeat.

    ``level="token"``: ``loss = -sum_t log p(y_t | y_<t, x) - alpha sum_t sum_{c in C_t} log(1 - p(c | y_<t, x))``, C_t
    the set of y_1 to y_{t-1} without y_t. Only positions that count are penalised or penalise, so prompts and padding
    do not. Weights of positions apply to both terms.

    ``level="sequence"``: ``loss = -sum_t log p(y_t | y_<t, x) - alpha sum_{t in R} log(1 - p(h_t | h_<t, x))``, h a run
    of the model after a gold beginning and R its entries in an n-gram of the run that begins earlier in it, too. The
    count is the number of gold entries.

    Args:
        alpha: weight of the penalty, a number of 0 or more or a schedule; as published 1.
        objective: of the first term: ``"auto"``, ``"cross_entropy"`` or a function.
        level: "token" or "sequence".
        ngram: length of the n-grams of "sequence"; published 4.
        prefix: share of each row's targets, in [0, 1), with which its run begins, rounded down; the run is as long as
            the rest. Published 50 entries and 100; 0: runs begin after the prompt.
        draw: of the runs: "greedy" as published, or a draw.
        end: id of the end symbol, after which a run is over; None: that of the model's own generation, and in a recipe
            that of the data; without any, runs are as long as gold.

    Raises:
        UserError: alpha outside its range; targets that are values; ``loss_on`` or ``target``; arguments of "sequence"
            with "token", and weights of positions, or counted entries that ``eligible`` excludes, with "sequence".

    What it is not: "token" no remedy for exposure bias, as its history is gold; "sequence" not the paper's fine-tuning,
    where a coin decides for each update between the two terms, and not its code, which leaves a run's last n-gram out.

    Reference: Welleck, Kulikov, Roller, Dinan, Cho and Weston 2020, arXiv:1908.04319.

    >>> Unlikelihood(0.5)
    unlikelihood(alpha=0.5)
    >>> Unlikelihood(level="sequence", ngram=3)
    unlikelihood(level='sequence', ngram=3)
    """

    alpha: float | Schedule = 1.0
    objective: str | Objective = "auto"
    level: str = one_of(("token", "sequence"), "token")
    ngram: int = at_least(1, 4)
    prefix: float = 0.5
    draw: str | draws.Draw = "greedy"
    end: int | None = at_least(0, None)

    name: ClassVar[str] = "unlikelihood"
    summary: ClassVar[str] = (
        "gold history; symbols that have occurred, or n-grams that own runs repeat, are made less likely"
    )
    feeds_own: ClassVar[bool] = False
    only_for: ClassVar[tuple[str, str] | None] = ("symbols", "teacher_forcing")
    without: ClassVar[Mapping[str, str]] = {
        "loss_on": "whose penalty is of all that counts before a position",
        "target": "whose penalty is on all but gold",
    }
    ranges: ClassVar[dict[str, tuple[float, float]]] = {"alpha": (0.0, float("inf")), **SHARED}
    citation: ClassVar[Citation] = Citation(
        formula="loss = -sum_t log p(y_t | y_<t, x) - alpha sum_t sum_{c in y_<t, c != y_t} log(1 - p(c | y_<t, x))\n"
        "(sequence level: - alpha sum_{t in R} log(1 - p(h_t | h_<t, x)), h an own run, R what its n-grams repeat)",
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

    @property
    def calls_model(self) -> bool:
        """True where there are own runs."""
        return self.level == "sequence"

    @property
    def unused(self) -> tuple[str, ...]:
        """Arguments that have no effect at this level."""
        return () if self.level == "sequence" else ("ngram", "prefix", "draw", "end")

    def problems(self) -> list[str]:
        """What is wrong, arguments of the other level too."""
        found = super().problems()
        usual = {each.name: each.default for each in fields(self)}
        where = "it is of own runs: use level='sequence'"
        for name in self.unused:
            if getattr(self, name) != usual[name]:
                found.append(f"{name} has no effect with level='token'; got {getattr(self, name)!r}: {where}")
        number = isinstance(self.prefix, int | float) and not isinstance(self.prefix, bool)
        if not number or not 0 <= self.prefix < 1:
            found.append(f"prefix must be a share of the targets in [0, 1); got {self.prefix!r}")
        return found

    def mix_history(self, model: Any, batch: Batch, step: int, key: int) -> tuple[Batch, dict[str, float | str]]:
        """The batch, unchanged."""
        if not batch.is_discrete:
            raise UserError("unlikelihood penalises symbols, and these targets are values: use teacher_forcing")
        counts = replacement_counts(batch, batch.history, 0)
        return batch, {"alpha": self.value("alpha", step, key), **counts, "passes": 0, "engine": "none"}

    def compute(self, model: Any, batch: Batch, step: int, key: int) -> Outcome:
        """One step on gold, and at level "sequence" one on own runs."""
        if self.level == "sequence":
            beginnings(batch)  # refused where alpha is 0, too
        outcome = super().compute(model, batch, step, key)
        alpha = float(outcome.report["alpha"])
        if self.level == "token" or alpha == 0:
            return outcome
        runs = self._runs(model, batch, step, key)
        repeated = _repeated(runs, self.ngram)
        symbols = runs.targets[repeated]
        unlikely = _log_complement(
            forward(model, runs)[repeated], torch.arange(len(symbols), device=symbols.device), symbols
        )
        total = outcome.total - alpha * unlikely.sum().to(outcome.total.dtype)
        made, usual = int(runs.mask.sum()), outcome.report
        # the runs, and the forward on them
        work = float(usual.get("work", usual["passes"])) + 2 * made / max(int(batch.mask.sum()), 1)
        more = {"passes": float(usual["passes"]) + 1, "work": work, "engine": "generate", "repeated": len(unlikely)}
        return outcome.made(total=total, report={**usual, **more})

    def _runs(self, model: Any, batch: Batch, step: int, key: int) -> Batch:
        """Own runs after the gold beginnings."""
        gold = batch.made(mask=batch.mask & ~beginnings(batch), eligible=None)
        kept = gates.kept(gates.Prefix()(gold, self.prefix, key), gold)
        ends = self.end is not None or model_ends(model, batch)  # a language model may have none
        more: Any = {"end": end_of(self.end, model, batch, self.name) if ends else None, "margin": 0}
        return own_runs(model, gold.made(mask=gold.mask & ~kept), draw=self.draw, key=key, step=step, **more)

    def finish(self, outputs: Tensor | Counted, fed: Batch, report: dict[str, float | str]) -> Outcome:
        """Cross-entropy, and at level "token" the penalty."""
        outcome = super().finish(outputs, fed, report)
        alpha = float(report["alpha"])
        if alpha == 0 or self.level == "sequence":
            return outcome
        penalty = alpha * _penalty(outcome.outputs, fed)
        return outcome.made(total=outcome.total + penalty.to(outcome.total.dtype))


def _repeated(runs: Batch, n: int) -> Tensor:
    """(rows, time) bool: counted entries in an n-gram that begins earlier in the run, too."""
    entries, lengths = counted_rows(runs)
    starts = max(entries.shape[1] - n + 1, 0)
    used = torch.arange(entries.shape[1], device=lengths.device) < lengths[:, None]
    # (rows, start, earlier start)
    same = torch.ones(runs.size, starts, starts, dtype=torch.bool, device=lengths.device).tril(-1)
    for k in range(n):
        part = entries[:, k : k + starts]
        same &= part[:, :, None] == part[:, None]
    again = same.any(2) & used[:, n - 1 :]
    inside = torch.zeros_like(used)
    for k in range(n):
        inside[:, k : k + starts] |= again
    repeated = torch.zeros_like(runs.mask)
    repeated[runs.mask] = inside[used]
    return repeated


def _penalty(outputs: Tensor, batch: Batch) -> Tensor:
    """-sum over positions that count and their candidates of log(1 - p), without (batch, time, vocab) candidates."""
    mask, symbols = batch.mask, batch.targets.masked_fill(~batch.mask, 0)
    same = symbols[:, :, None] == symbols[:, None, :]  # (batch, t, j)
    before = torch.ones(batch.time, batch.time, dtype=torch.bool, device=mask.device).tril(-1)
    counted = mask[:, :, None] & mask[:, None, :] & before
    first = ~(same & counted).any(2)  # no entry before j has its symbol
    candidates = (counted & ~same & first[:, None, :])[mask]
    at, j = candidates.nonzero(as_tuple=True)
    unlikely = -_log_complement(outputs[mask], at, symbols[mask.nonzero()[:, 0][at], j])
    return (unlikely if batch.weights is None else unlikely * batch.weights[mask][at]).sum()


def _log_complement(outputs: Tensor, at: Tensor, symbols: Tensor) -> Tensor:
    """log(1 - p) of symbols (k,) under the rows ``at`` (k,) of outputs (n, vocab), at least float32."""
    logits = outputs if outputs.dtype == torch.float64 else outputs.float()
    total, top = logits.logsumexp(-1), logits.argmax(-1)
    # the most likely symbol's 1 - p from the others' sum: 1 - p of a rounded p may be 0. By selection: where that is
    # not needed it may have no gradient
    likeliest = symbols == top[at]
    rows, rest = at[likeliest], at[~likeliest]
    others = logits[rows].scatter(-1, top[rows, None], -torch.inf).logsumexp(-1) - total[rows]
    found = torch.cat([others, torch.log1p(-(logits[rest, symbols[~likeliest]] - total[rest]).exp())])
    return found[torch.cat([likeliest.nonzero(), (~likeliest).nonzero()]).flatten().argsort()]


unlikelihood = Unlikelihood
