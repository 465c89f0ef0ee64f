"""Reward augmented maximum likelihood: gold is edited in history and target, the more rarely the more edits."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from freerun.arguments import at_least
from freerun.batch import Batch
from freerun.errors import UserError, refuse
from freerun.keys import fold, uniform
from freerun.methods.base import SHARED, Citation, TransformMethod
from freerun.methods.own_runs import model_ends
from freerun.methods.report import replacement_counts
from freerun.objectives import Objective
from freerun.rollin import unwrap
from freerun.schedules import Schedule


@dataclass(frozen=True, repr=False)
class RewardAugmented(TransformMethod):
    """Learn a sample around gold, which is history *and* target: q(y~ | y) ~ exp(-Hamming(y~, y) / tau).

    ``loss = -sum_t log p(y~_t | y~_<t, x)``. With V symbols that may stand in an entry, the number of edits e of n
    entries has ``q(e) ~ C(n, e) (V - 1)^e exp(-e / tau)``: each entry is edited by itself with probability
    ``(V - 1) exp(-1 / tau) / (1 + (V - 1) exp(-1 / tau))``, and is then one of the V - 1 others, evenly. That is the
    law itself, and no search for it.

    Args:
        tau: temperature of 0 or more, a number or a schedule; 0 is teacher forcing.
        weighted: False counts each choice of places to edit once, not every sequence that has it: ``q(e) ~ C(n, e)
            exp(-e / tau)``. With thousands of symbols the law proper edits nearly every entry at a
            tau above 0.2.
        vocabulary: number of symbols; default: the model's ``target_vocab``.
        end: id that is neither edited nor put in place of another; None: those that end the model's own generation,
            and in a recipe that of the data. Where there is none, all symbols are equal.
        objective: ``"auto"``, ``"cross_entropy"`` or a function.

    Entries that may not be replaced (prompt, padding) are not edited, nor those whose target is another than
    history has. Edits keep the length.

    Raises:
        UserError: arguments outside their range; targets that are values; no vocabulary.

    What it is not: ``token_noise``, whose targets stay clean; nor edits by insertion and deletion (the paper's edit
    distance); nor a remedy that sees the model's own errors.

    Reference: Norouzi, Bengio, Chen, Jaitly, Schuster, Wu and Schuurmans 2016, arXiv:1609.00150.

    >>> import torch
    >>> ids = torch.tensor([[2, 1, 3, 4, 0]])
    >>> fed = RewardAugmented(0.5, vocabulary=5, end=0).transform(lambda batch: batch, Batch(ids), step=0)
    >>> fed.targets, torch.equal(fed.history, fed.targets)
    (tensor([[4, 1, 3, 2, 0]]), True)
    """

    tau: float | Schedule
    weighted: bool = True
    vocabulary: int | None = at_least(2, None)
    end: int | None = at_least(0, None)
    objective: str | Objective = "auto"

    name: ClassVar[str] = "raml"
    summary: ClassVar[str] = "gold edited in history and target, exp(-edits / tau)"
    feeds_own: ClassVar[bool] = False
    only_for: ClassVar[tuple[str, str] | None] = ("symbols", "gaussian_noise")
    ranges: ClassVar[dict[str, tuple[float, float]]] = {"tau": (0.0, math.inf), **SHARED}
    without: ClassVar[Mapping[str, str]] = {"target": "whose targets are its sample"}
    citation: ClassVar[Citation] = Citation(
        formula="y~ ~ q(. | y) ~ exp(-Hamming(y~, y) / tau(step));  loss = -sum_t log p(y~_t | y~_<t, x)",
        reference="Norouzi, M., Bengio, S., Chen, Z., Jaitly, N., Schuster, M., Wu, Y. and Schuurmans, D. (2016). "
        "Reward augmented maximum likelihood for neural structured prediction. NIPS. arXiv:1609.00150",
        bibtex="""@inproceedings{norouzi2016reward,
  author    = {Norouzi, Mohammad and Bengio, Samy and Chen, Zhifeng and Jaitly, Navdeep and Schuster, Mike
               and Wu, Yonghui and Schuurmans, Dale},
  title     = {Reward Augmented Maximum Likelihood for Neural Structured Prediction},
  booktitle = {Advances in Neural Information Processing Systems},
  volume    = {29},
  year      = {2016}
}""",
    )

    @property
    def own_loss(self) -> tuple[str, ...]:
        """The targets are edited too, and a trainer's own loss has gold's."""
        return (*super().own_loss, "tau changes the targets")

    def mix_history(self, model: Any, batch: Batch, step: int, key: int) -> tuple[Batch, dict[str, float | str]]:
        """The batch with edits in history and target; no model call."""
        if not batch.is_discrete:
            raise UserError("raml edits symbols, and these targets are values: use gaussian_noise")
        tau = self.value("tau", step, key)
        symbols, fixed = self._symbols(model, batch)
        rate = edit_rate(tau, len(symbols) if self.weighted else 2)
        may = batch.replaceable & (batch.history == batch.targets) & ~torch.isin(batch.history, fixed)
        rows, times = torch.arange(batch.size, device=may.device)[:, None], torch.arange(batch.time, device=may.device)
        edited = may & (uniform(fold(key, "gate", int(step)), batch.row_numbers[rows], times) < rate)
        fed, number = batch, int(edited.sum())
        if number:
            rows, times = edited.nonzero(as_tuple=True)
            u = uniform(fold(key, "noise", int(step)), batch.row_numbers[rows], times)
            other = _others(symbols, batch.history[rows, times], u)
            history = batch.history.index_put((rows, times), other)
            targets = batch.targets.index_put((rows, times), other.to(batch.targets.dtype))
            fed = batch.made(history=history, targets=targets, replaced=edited)
            object.__setattr__(fed, "largest", max(batch.largest, int(symbols[-1])))
        report = replacement_counts(batch, fed.history, number)
        return fed.made(replaced=edited), {"tau": tau, **report, "passes": 0, "engine": "none"}

    def _symbols(self, model: Any, batch: Batch) -> tuple[Tensor, Tensor]:
        """(V,) symbols that edits may write, rising, and (n,) those that stay as they are."""
        size = self.vocabulary or getattr(unwrap(model), "target_vocab", None)
        if not isinstance(size, int):
            raise UserError(
                "raml needs the number of symbols: pass raml(vocabulary=...), or give "
                f"{type(model).__name__} the attribute target_vocab"
            )
        problems: list[str] = []
        # the largest of all targets costs nothing; those that do not count may be anything
        if batch.largest >= size and (largest := int(batch.targets.masked_fill(~batch.mask, 0).max())) >= size:
            problems.append(f"raml has {size} symbols, and the targets hold id {largest}: pass another vocabulary")
        if self.end is not None and self.end >= size:
            problems.append(f"raml has {size} symbols, and end is {self.end}: pass the id that ends rows")
        refuse(problems)
        ends = model_ends(model, batch) if self.end is None else (self.end,)
        fixed = torch.tensor(ends, dtype=torch.int64, device=batch.mask.device)
        every = torch.arange(size, device=fixed.device)
        symbols = every[~torch.isin(every, fixed)]
        if len(symbols) < 2:
            raise UserError(f"raml has {len(symbols)} symbols to write beside the end: pass a larger vocabulary")
        return symbols, fixed


raml = RewardAugmented


def edit_rate(tau: float, symbols: int) -> float:
    """P(an entry is edited), ``a / (1 + a)`` with ``a = (symbols - 1) exp(-1 / tau)``; 0 at tau = 0.

    >>> edit_rate(0.5, 40), edit_rate(0.0, 40)
    (0.840..., 0.0)
    """
    odds = (symbols - 1) * math.exp(-1 / tau) if tau > 0 else 0.0
    return odds / (1 + odds)


def _others(symbols: Tensor, gold: Tensor, u: Tensor) -> Tensor:
    """(n,) for each gold symbol one of the others of (V,), evenly."""
    other = (u * (len(symbols) - 1)).long()
    return symbols[other + (other >= torch.searchsorted(symbols, gold))].to(gold.dtype)
