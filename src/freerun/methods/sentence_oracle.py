"""Sentence-level oracles: of a noisy beam's hypotheses as long as gold, the one most like gold is the history."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from freerun import gates
from freerun.arguments import above, at_least
from freerun.batch import Batch
from freerun.decoding import lockstep_groups, start_decoding
from freerun.errors import UserError
from freerun.generation import Allowed, GenerateOptions, allowed_by_rules, beam_search
from freerun.keys import fold, uniform
from freerun.methods import costs
from freerun.methods.base import SHARED, Citation, TransformMethod, bind_gate
from freerun.methods.own_runs import model_ends
from freerun.methods.report import replacement_counts
from freerun.objectives import Objective
from freerun.rollin import stepping, unwrap
from freerun.rollin.model import asking, refuse_sharded
from freerun.schedules import Schedule


@dataclass(frozen=True, repr=False)
class SentenceOracle(TransformMethod):
    """Feed entries of an oracle sentence: of a beam's hypotheses, all as long as gold, the one most like gold.

    ``B = beam(sum_t log softmax((z_t + g_t) / tau)), |b| = |y|``, g_t Gumbel noise of each hypothesis and symbol;
    ``o = argmin_{b in B} cost(b, y)``; ``h_t = y_t`` with probability r(step), else o_t;
    ``loss = -sum_t log p(y_t | h_<t, x)``. The end symbol is forbidden before the last entry, and is the last where it
    is gold's last.

    Args:
        teacher_forcing_ratio: P(gold) in [0, 1], a number or a schedule; published: ``mu / (mu + exp(epoch / mu))``,
            which is ``schedules.inverse_sigmoid(k=mu, unit="epoch")``.
        beams: hypotheses of each row.
        cost: what ranks them: ``"bleu"`` (1 less sentence BLEU), ``"edit_distance"`` or a function (ids, gold ids) ->
            number; see ``freerun.methods.costs.Cost``. Among equals the more probable one is taken.
        temperature: tau, above 0.
        noise: whether Gumbel noise is added to the scores.
        gate: ``"token"``, a choice for each entry, as in the paper and the authors' RNNsearch; ``"batch"``, one for all
            rows, as in their Transformer; or another, such as ``"sequence"``, one for each sentence.
        end: id that ends a row; None: those of the model's own generation, and in a recipe that of the data. Where
            there is none, nothing is forbidden.
        objective: ``"auto"``, ``"cross_entropy"`` or a function.

    The search runs in evaluation mode, without gradient, for rows in which an entry is replaced. A row for which it
    finds nothing, as where the model's own generation settings forbid the end, keeps gold.

    Raises:
        UserError: arguments outside their range; targets that are values; rows with known entries between others;
            an end that is no id of the model; a cost that is no finite number; sharded parameters.

    What it is not: the paper's word-level oracle, the argmax of ``(z + g) / tau``: that is a sample, whatever tau, and
    so ``scheduled_sampling`` with ``draw="sample"``. Nor a method whose history is a run of the model: it is chosen
    with gold in view.

    Reference: Zhang, Feng, Meng, You and Liu 2019, arXiv:1906.02448.

    >>> SentenceOracle(0.8, end=0)
    sentence_oracle(teacher_forcing_ratio=0.8, end=0)
    """

    teacher_forcing_ratio: float | Schedule
    beams: int = at_least(1, 3)
    cost: str | costs.Cost = "bleu"
    temperature: float = above(0, 0.5)
    noise: bool = True
    gate: str | gates.Gate = "token"
    end: int | None = at_least(0, None)
    objective: str | Objective = "auto"

    name: ClassVar[str] = "sentence_oracle"
    summary: ClassVar[str] = "entries of the beam's hypothesis most like gold, all as long as gold"
    only_for: ClassVar[tuple[str, str] | None] = ("symbols", "scheduled_sampling")
    ranges: ClassVar[dict[str, tuple[float, float]]] = {"teacher_forcing_ratio": (0.0, 1.0), **SHARED}
    citation: ClassVar[Citation] = Citation(
        formula="B = beam(sum_t log softmax((z_t + Gumbel) / tau)) of length |y|;  o = argmin_{b in B} cost(b, y);  "
        "h_t = y_t with probability r(step), else o_t;  loss = -sum_t log p(y_t | h_<t, x)",
        reference="Zhang, W., Feng, Y., Meng, F., You, D. and Liu, Q. (2019). Bridging the gap between training and "
        "inference for neural machine translation. ACL. arXiv:1906.02448",
        bibtex="""@inproceedings{zhang2019bridging,
  author    = {Zhang, Wen and Feng, Yang and Meng, Fandong and You, Di and Liu, Qun},
  title     = {Bridging the Gap between Training and Inference for Neural Machine Translation},
  booktitle = {Proceedings of the 57th Annual Meeting of the Association for Computational Linguistics},
  year      = {2019}
}""",
    )

    @property
    def refuse_rows(self) -> Callable[[Any, Batch], Any]:
        """Those with several stretches of entries that may be replaced."""
        return lambda model, batch: _spans(batch)

    def problems(self) -> list[str]:
        """Return which arguments cannot be."""
        return costs.check(self.cost) + super().problems()

    def mix_history(self, model: Any, batch: Batch, step: int, key: int) -> tuple[Batch, dict[str, float | str]]:
        """The batch with entries of the oracle sentences in its history."""
        if not batch.is_discrete:
            raise UserError("sentence_oracle searches symbols, and these targets are values: use scheduled_sampling")
        vocab = getattr(unwrap(model), "target_vocab", None)
        if self.end is not None and isinstance(vocab, int):
            _refuse_end((self.end,), vocab)  # before a step that searches
        ratio = self.value("teacher_forcing_ratio", step, key)
        toss, calls = bind_gate(self.gate, model, batch, ratio)
        own = batch.replaceable & ~toss(fold(key, "gate", int(step)))
        rows = own.any(1).nonzero().squeeze(1)
        history = batch.history
        if len(rows):
            found = self._oracles(unwrap(model), batch.select(rows), fold(key, "draw", int(step)))
            history = torch.where(own, history.index_copy(0, rows, found), history)
        passes = calls + int(len(rows) > 0)
        report: dict[str, float | str] = {
            "teacher_forcing_ratio": ratio,
            **replacement_counts(batch, history, int(own.sum())),
            "passes": passes,
            "work": calls + self.beams * len(rows) / batch.size,
            "engine": "beams" if len(rows) else "none",
        }
        return batch.made(history=history, replaced=own), report

    def _oracles(self, model: Any, batch: Batch, key: int) -> Tensor:
        """(batch, time) histories with the oracle sentence in place of gold."""
        refuse_sharded(model, "sentence_oracle calls a model as long as a row goes on", "use two_pass or parallel")
        history, (starts, lengths) = batch.history.clone(), _spans(batch)
        with torch.no_grad(), asking(model, batch):
            steps = stepping(model)
            for rows in lockstep_groups(steps, starts):
                found = self._beams(steps, batch.select(rows), starts[rows], lengths[rows], key)
                for row, best in zip(rows.tolist(), found, strict=True):
                    history[row, starts[row] : starts[row] + lengths[row]] = best
        return history

    def _beams(self, model: Any, batch: Batch, starts: Tensor, lengths: Tensor, key: int) -> list[Tensor]:
        """The oracle sentence of each row, as long as its gold."""
        # hypotheses of all rows go on to the longest: what a row makes beyond its own length is forced, at no cost
        options = GenerateOptions(int(lengths.max()), (), self.beams, 0.0, self.beams, 1, None)
        gold = [row[a : a + n] for row, a, n in zip(batch.history, starts.tolist(), lengths.tolist(), strict=True)]
        ends = model_ends(model, batch) if self.end is None else (self.end,)
        rules = allowed_by_rules(model, batch, starts, options, sampled=False)
        score = self._scores(batch, starts, gold, ends, key=key, rules=rules)
        made = beam_search(start_decoding(model, batch, starts, options.length), batch.size, options, score)
        entries, alive = (each.view(batch.size, self.beams, -1) for each in (made.entries, made.scores.isfinite()))
        best: list[Tensor] = []
        for row, known in enumerate(gold):
            found = entries[row][alive[row, :, 0], : len(known)]
            if not len(found):
                best.append(known)
                continue
            inner = len(known) - int(int(known[-1]) in ends)  # an end is no part of what is compared
            prices = costs.costs_of(self.cost, found[:, :inner].tolist(), [known[:inner].tolist()] * len(found))
            best.append(found[int(prices.argmin())])
        return best

    def _scores(
        self,
        batch: Batch,
        starts: Tensor,
        gold: Sequence[Tensor],
        ends: Sequence[int],
        *,
        key: int,
        rules: Allowed | None,
    ) -> Allowed:
        """What the search makes of log-probabilities: noise, temperature and the forced length."""
        length = torch.tensor([len(each) for each in gold], device=starts.device)
        last = torch.stack([each[-1] for each in gold])
        never = torch.tensor(ends, dtype=torch.int64, device=starts.device)
        ended = torch.isin(last, never)

        def score(predicted: Tensor, rows: Tensor, entries: Tensor) -> Tensor:
            t, (n, vocab) = entries.shape[1], predicted.shape
            _refuse_end(ends, vocab)
            scores = predicted if rules is None else rules(predicted, rows, entries)
            if self.noise:
                # rows in which nothing is alive have left, and each of the others has as many hypotheses
                slots = torch.arange(n, device=rows.device) % (rows == rows[0]).sum()
                at = (batch.row_numbers[rows], starts[rows] + t, slots)
                u = uniform(key, *(each[:, None] for each in at), torch.arange(vocab, device=rows.device))
                scores = scores - (-u.clamp_min(2.0**-54).log()).log().to(scores.dtype)
            scores = (scores / self.temperature).log_softmax(-1)
            scores = scores.masked_fill(scores.isnan(), -torch.inf)  # rules may allow nothing
            forced = torch.where(t < length, last, 0)[rows]
            whole = ((t >= length) | (ended & (t == length - 1)))[rows]
            scores[:, never] = torch.where(whole[:, None], scores[:, never], -torch.inf)
            kept = torch.where((t < length)[rows], scores.gather(1, forced[:, None])[:, 0], 0.0)
            alone = torch.full_like(scores, -torch.inf).scatter(1, forced[:, None], kept[:, None])
            return torch.where(whole[:, None], alone, scores)

        return score


sentence_oracle = SentenceOracle


def _refuse_end(ends: Sequence[int], vocab: int) -> None:
    """Refuse an end symbol that is no id of the model's."""
    if wrong := [end for end in ends if end >= vocab]:
        raise UserError(f"sentence_oracle: end must be one of the model's {vocab} ids; got {wrong[0]}")


def _spans(batch: Batch) -> tuple[Tensor, Tensor]:
    """(batch,) where the entries that may be replaced begin in each row, and their numbers; they are side by side."""
    may = batch.replaceable
    starts, lengths = may.long().argmax(1), may.sum(1)
    ends = may.shape[1] - may.flip(1).long().argmax(1)
    wrong = ((lengths > 0) & (ends - starts != lengths)).nonzero().flatten().tolist()
    if wrong:
        raise UserError(
            f"row {wrong[0]} has known entries between others, and an oracle sentence is searched as a whole: let each "
            "row have one reply"
        )
    return starts, lengths
