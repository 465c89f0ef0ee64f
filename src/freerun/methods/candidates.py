"""Methods whose loss is of whole sequences: own runs, each once, their log-probabilities and what they cost."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, cast

import torch
from torch import Tensor
from torch.nn import functional as F

from freerun import draws, gates
from freerun.arguments import at_least
from freerun.batch import Batch
from freerun.decoding import blank_batch, prompt_lengths
from freerun.errors import UserError
from freerun.keys import fold
from freerun.methods import costs
from freerun.methods.base import SHARED, TransformMethod
from freerun.methods.own_runs import (
    OF_GOLD,
    beginnings,
    end_of,
    own_runs,
    refuse_endless,
    run_report,
    with_entries,
)
from freerun.methods.report import replacement_counts
from freerun.rollin.training import counted_forward
from freerun.schedules import Schedule
from freerun.targets import OptimalCompletion, counted_rows
from freerun.types import Counted, Outcome

_PART = 2**22  # logits that are in float32, or exponentiated, at one time
_PREFIXES = (gates.Prefix, gates.Sequence, gates.Batchwise)


@dataclass(frozen=True, eq=False)
class Sequences:
    """Sequences of entries after the prompts of a batch's rows, the rows in rising order.

    Args:
        rows: (n,) the row of each.
        entries: (n, time) ids, the end symbol included.
        lengths: (n,) how many of them count.
    """

    rows: Tensor
    entries: Tensor
    lengths: Tensor

    def distinct(self) -> tuple[Sequences, Tensor]:
        """Each of a row's sequences once, in the order of the rows, and (n,) where among them each of these is."""
        index = torch.arange(self.entries.shape[1], device=self.rows.device)
        used = self.entries.masked_fill(index >= self.lengths[:, None], -1)
        _, same = torch.unique(torch.cat([self.rows[:, None], used], 1), dim=0, return_inverse=True)
        number = torch.arange(len(same), device=same.device)
        first = number.new_full((int(same.max()) + 1,), len(same)).scatter_reduce(0, same, number, "amin")
        kept = first.sort().values
        return Sequences(self.rows[kept], self.entries[kept], self.lengths[kept]), torch.searchsorted(kept, first[same])

    def fed(self, batch: Batch) -> Batch:
        """The batch whose rows are these: targets and history prompt and entries, the mask on the entries."""
        prompts = prompt_lengths(batch)
        blank = blank_batch(batch, prompts, self.entries.shape[1]).select(self.rows)
        return with_entries(blank, self.entries, self.lengths, prompts[self.rows])

    def with_gold(self, gold: Tensor, lengths: Tensor) -> Sequences:
        """These and gold, (batch, n) and (batch,), once for each row that has any of these, before its others."""
        rows = self.rows.unique()
        width = max(self.entries.shape[1], gold.shape[1])
        entries = [F.pad(each, (0, width - each.shape[1])) for each in (gold[rows], self.entries)]
        order = torch.cat([rows, self.rows]).sort(stable=True)
        both = torch.cat(entries)[order.indices], torch.cat([lengths[rows], self.lengths])[order.indices]
        return Sequences(order.values, *both)


class _ChosenLogProbs(torch.autograd.Function):
    """``logits[at].log_softmax(-1)[chosen]``, beside the logits no more than a part of their size in memory."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, at: Tensor, chosen: Tensor) -> Tensor:
        """(n, vocab), (k,) positions, (k,) symbols -> (k,)."""
        kind = torch.float64 if logits.dtype == torch.float64 else torch.float32
        totals = torch.empty(len(at), dtype=kind, device=at.device)
        for part in _parts(logits, at):
            totals[part] = logits[at[part]].to(kind).logsumexp(-1)
        ctx.save_for_backward(logits, at, chosen, totals)
        return logits[at, chosen].to(kind) - totals

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        logits, at, chosen, totals = ctx.saved_tensors
        grad, found = grads[0], torch.zeros_like(logits)
        for part in _parts(logits, at):
            p = (logits[at[part]].to(totals.dtype) - totals[part, None]).exp_().mul_(-grad[part, None])
            p.scatter_add_(1, chosen[part, None], grad[part, None])
            found[at[part]] = p.to(found.dtype)
        return found, None, None


def _parts(logits: Tensor, at: Tensor) -> list[slice]:
    width = max(_PART // logits.shape[-1], 1)
    return [slice(begin, begin + width) for begin in range(0, len(at), width)]


def counted_log_probs(outputs: Tensor | Counted, fed: Batch) -> Tensor:
    """(n,) log-probability of the target at each position that counts, at least float32, row by row."""
    at = fed.mask.flatten().nonzero().squeeze(1)
    chosen = fed.targets.flatten()[at]
    if isinstance(outputs, Counted):  # it holds these positions and no others
        return cast(Tensor, _ChosenLogProbs.apply(outputs.outputs, torch.arange(len(at), device=at.device), chosen))
    return cast(Tensor, _ChosenLogProbs.apply(outputs.flatten(0, 1), at, chosen))


def sequence_log_probs(outputs: Tensor | Counted, fed: Batch) -> Tensor:
    """(rows,) log-probability of each row's counted entries."""
    each = counted_log_probs(outputs, fed)
    return each.new_zeros(fed.size).index_add(0, fed.mask.nonzero()[:, 0], each)


@dataclass(frozen=True, eq=False)
class Begun:
    """Rows from where their own parts begin, and what a sequence that goes on from there costs.

    Args:
        batch: the rows that have a part of their own, what comes before it their prompts.
        gold: of each row all that counts, without the end symbol.
        known: of each row how many of these are its prompt's.
        end: id of the end symbol.
        cost: of a row's known entries and its sequence against its gold.
        made: how many entries each call of ``runs`` has made.
    """

    batch: Batch
    gold: list[list[int]]
    known: list[int]
    end: int
    cost: str | costs.Cost
    made: list[int] = field(default_factory=list)

    @classmethod
    def of(cls, batch: Batch, kept: Tensor, end: int, cost: str | costs.Cost) -> Begun:
        """A batch whose rows begin with the entries kept; at least one row, as processes call a model equally often.

        Raises:
            UserError: a row of gold does not end with the end symbol.
        """
        gold, lengths = OptimalCompletion(end).gold(batch)
        left = batch.made(mask=batch.mask & ~kept, eligible=None)
        rows = left.mask.any(1).nonzero().squeeze(1)
        rows = rows if len(rows) else torch.zeros(1, dtype=torch.int64, device=rows.device)
        ids = [
            row[: max(length - 1, 0)] for row, length in zip(gold[rows].tolist(), lengths[rows].tolist(), strict=True)
        ]
        return cls(left.select(rows), ids, kept[rows].sum(1).tolist(), end, cost)

    def runs(self, model: Any, draw: str | draws.Draw, num_samples: int, margin: int, at: tuple[int, int]) -> Sequences:
        """Own runs of each row, side by side, at (step, key)."""
        # the loss is of the model's own probabilities, and so are the draws
        more: Any = {"draw": draw, "num_samples": num_samples, "margin": margin, "ruled": False}
        made = own_runs(model, self.batch, step=at[0], key=at[1], end=self.end, **more)
        rows = torch.arange(self.batch.size, device=made.mask.device).repeat_interleave(num_samples)
        self.made.append(int(made.mask.sum()))
        return Sequences(rows, *counted_rows(made))

    def costs(self, of: Sequences) -> Tensor:
        """(n,) float64; 0 of a sequence without entries, which only a row without targets has."""
        rows, entries, lengths = of.rows.tolist(), of.entries.tolist(), of.lengths.tolist()
        there = [n for n, length in enumerate(lengths) if length]
        own = [entries[n][: lengths[n] - (entries[n][lengths[n] - 1] == self.end)] for n in there]
        gold = [self.gold[rows[n]] for n in there]
        full = [row[: self.known[rows[n]]] + ids for n, row, ids in zip(there, gold, own, strict=True)]
        found = torch.zeros(len(rows), dtype=torch.float64)
        found[there] = costs.costs_of(self.cost, full, gold)
        return found.to(of.rows.device)


Loss = Callable[[Tensor], Tensor]


@dataclass(frozen=True, repr=False)
class SequenceMethod(TransformMethod):
    """Own runs to their own end, each scored as a whole by what it costs; subclasses define ``weighed``.

    Where a ``generation_config`` samples otherwise, searches, forces or forbids, a model's runs here do not.
    """

    cost: str | costs.Cost = "edit_distance"
    num_samples: int = at_least(1, 1)
    draw: str | draws.Draw = "sample"
    end: int | None = at_least(0, None)
    margin: int = at_least(0, 5)
    gate: str | gates.Gate = "prefix"
    teacher_forcing_ratio: float | Schedule = 0.0
    gold_weight: float = 0.0

    only_for: ClassVar[tuple[str, str] | None] = ("symbols", "scheduled_sampling")
    ranges: ClassVar[dict[str, tuple[float, float]]] = {"teacher_forcing_ratio": (0.0, 1.0), **SHARED}
    own_lengths: ClassVar[bool] = True
    without: ClassVar[Mapping[str, str]] = OF_GOLD
    means: ClassVar[dict[str, tuple[str, str]]] = {"cost": ("costs", "runs")}

    @property
    def own_loss(self) -> tuple[str, ...]:
        """The loss is on runs of another length than gold."""
        return (*super().own_loss, "the loss is on the model's own runs")

    def problems(self) -> list[str]:
        """What is wrong with the cost and the gate, beside what all methods share."""
        found = [*super().problems(), *costs.check(self.cost)]
        if not gates.check(self.gate) and not isinstance(gates.resolve(self.gate), _PREFIXES):
            found.append(
                f"gate={self.gate!r} lets gold and own entries alternate, and {self.name} scores what a row makes "
                "after its gold beginning: use 'prefix', 'sequence' or 'batch'"
            )
        if self.num_samples != 1 and self.certain:
            found.append(
                f"num_samples={self.num_samples} runs of draw={self.draw!r} are equal: use draw='sample', or one run"
            )
        return found

    @property
    def certain(self) -> bool:
        """Whether all runs of a row are equal."""
        try:
            return draws.resolve(self.draw).noise_size(2) == 0
        except UserError:  # no draw, which is a problem of its own
            return False

    def weighed(self, begun: Begun, runs: Sequences, model: Any, at: tuple[int, int]) -> tuple[Sequences, Tensor, Loss]:
        """The sequences that are scored, the costs of the runs, and from log-probabilities the summed loss."""
        raise TypeError(f"{type(self).__name__} must define weighed")  # a subclass forgot to

    def counted(self, batch: Batch) -> Tensor:
        """The number of rows that have gold: what the total is divided by, known before the run."""
        return batch.mask.any(1).sum()

    def mix_history(self, model: Any, batch: Batch, step: int, key: int) -> tuple[Batch, dict[str, float | str]]:
        """The batch of the sequences that are scored; gold where the ratio is 1."""
        fed, report, _ = self._drawn(model, batch, self._kept(batch, step, key), (step, key))
        return fed, report

    def compute(self, model: Any, batch: Batch, step: int, key: int) -> Outcome:
        """One step: run freely, price each run, forward; and gold's cross-entropy where it has a part."""
        kept = self._kept(batch, step, key)
        fed, report, loss = self._drawn(model, batch, kept, (step, key))
        totals, outputs = self._gold(model, batch, kept, report)
        if loss is not None:
            outputs = counted_forward(model, fed, "auto")
            totals.append(loss(sequence_log_probs(outputs, fed)))
        total = torch.stack(totals).sum()
        return Outcome(total, self.counted(batch).to(total.dtype), cast(Tensor, outputs), fed, report)

    def _kept(self, batch: Batch, step: int, key: int) -> Tensor:
        """(batch, time) bool: the counted entries with which rows begin as gold."""
        ratio, forced = self.value("teacher_forcing_ratio", step, key), beginnings(batch)
        if ratio <= 0:
            return forced
        keep = gates.resolve(self.gate)(batch.made(eligible=None), ratio, fold(key, "gate", int(step)))
        return forced | batch.mask & gates.kept(keep, batch.made(eligible=None))

    def _learns_gold(self, ratio: float) -> bool:
        """Whether gold, or what is kept of it, has a forward."""
        return ratio > 0 or self.gold_weight > 0

    def _gold(self, model: Any, batch: Batch, kept: Tensor, report: Mapping[str, Any]) -> tuple[list[Tensor], Any]:
        """The cross-entropies of the entries kept and, by its weight, of all gold, as far as they have a part."""
        if not self._learns_gold(report["teacher_forcing_ratio"]):
            return [], None
        prefixes = batch.made(mask=kept)
        outputs = counted_forward(model, batch if self.gold_weight else prefixes, "cross_entropy")
        totals = [self.finish(outputs, prefixes, {}).total] if report["teacher_forcing_ratio"] else []
        if self.gold_weight:
            totals.append(self.gold_weight * self.finish(outputs, batch, {}).total)
        return totals, outputs

    def _drawn(
        self, model: Any, batch: Batch, kept: Tensor, at: tuple[int, int]
    ) -> tuple[Batch, dict[str, float | str], Loss | None]:
        """What is fed, the report, and the loss; None where all is gold."""
        end = end_of(self.end, model, batch, self.name)
        ratio = {"teacher_forcing_ratio": self.value("teacher_forcing_ratio", *at)}
        if ratio["teacher_forcing_ratio"] >= 1:
            refuse_endless(self, model, batch)  # now, not where the ratio has fallen
            return batch, {**ratio, **replacement_counts(batch, batch.history, 0), "passes": 0, "engine": "none"}, None
        begun = Begun.of(batch, kept, end, self.cost)
        runs = begun.runs(model, self.draw, self.num_samples, self.margin, at)
        scored, prices, loss = self.weighed(begun, runs, model, at)
        fed = scored.fed(begun.batch)
        report = run_report(begun.batch.select(scored.rows), fed)
        # in forwards of gold: what was made, what is scored, and gold itself; one forward is every method's
        entries, of_gold = sum(begun.made) + int(fed.mask.sum()), self._learns_gold(ratio["teacher_forcing_ratio"])
        work = entries / max(int(batch.mask.sum()), 1) + of_gold - 1
        summed = {"costs": float(prices.sum()), "runs": int((runs.lengths > 0).sum())}
        return fed, {**ratio, **report, "work": work, **summed}, loss
