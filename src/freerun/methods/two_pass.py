"""Two passes: the second is fed what the first predicted. Approximate, and differentiable on request."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar, cast

import torch
from torch import Tensor

from freerun import draws, gates
from freerun.arguments import is_number
from freerun.batch import Batch
from freerun.errors import UserError
from freerun.keys import fold, uniform
from freerun.methods.base import (
    SHARED,
    Citation,
    TransformMethod,
    add_gold_loss,
    encode_once,
    eval_logits,
    eval_logits_at,
)
from freerun.methods.noise import same_sentence
from freerun.methods.report import replacement_counts
from freerun.objectives import Objective
from freerun.rollin import any_rank, checked, forward, supports, unwrap, wrapper_hint
from freerun.rollin.model import repeatable
from freerun.rollin.replacement import Replacement
from freerun.rollin.training import counted_forward
from freerun.schedules import Schedule
from freerun.types import Embedder, Encoder, Outcome


@dataclass(frozen=True, eq=False)
class First:
    """The first pass.

    Args:
        replacement: the entries to replace.
        whole: (batch, time, vocab) outputs; None where there was no pass, or one at the replaced entries only.
        confidence: (batch, time) of the gold targets, for gates that need it.
        any: whether entries are replaced, here or in another process that the model waits for.
    """

    replacement: Replacement
    whole: Tensor | None
    confidence: Tensor | None
    any: bool


@dataclass(frozen=True, eq=False)
class SecondInput:
    """Input of the second pass: a history, or vectors in its place, and how it was built."""

    batch: Batch
    vectors: Tensor | None
    first: First
    report: dict[str, float | str]


@dataclass(frozen=True, repr=False)
class TwoPass(TransformMethod):
    """Teacher-force once, then train on a history in which some entries are what that pass predicted for them.

    Pass 1 gives logits ``z_t`` from ``y_<t``. ``h_t = y_t`` with probability r(step), else ``mix(z_t)``: a symbol, or
    the vector ``sum_v w_v(z_t) e(v)`` instead of ``e(h_t)``. ``loss = -sum_t log p(y_t | h_<t, x)``, plus
    ``gold_weight`` times the loss of pass 1. An entry keeps its own position whatever is mixed into it.

    Args:
        teacher_forcing_ratio: P(gold) in [0, 1], a number or a schedule.
        mix: ``"argmax"`` or ``"sample"`` (symbols); ``"expected"`` (softmax), ``"top_k"``, ``"sparsemax"``,
            ``"gumbel_softmax"`` or ``"straight_through"`` (vectors: the model needs ``lookup`` and ``outputs_from``).
        temperature: of the mix, above 0; the paper's alpha is its inverse.
        top_k: symbols mixed by ``mix="top_k"``.
        gate: as for scheduled sampling.
        gradient: ``"none"``, or ``"full"``: also through the weights into pass 1.
        gold_weight: of the loss of pass 1 beside that of pass 2; 0 drops it, as published.
        objective: ``"auto"``, ``"cross_entropy"`` or a function.

    Pass 1 runs in evaluation mode without a graph; with ``gradient="full"`` or a ``gold_weight`` it is a training
    forward, in the mode the model is in. ``fed.history`` of a vector mix shows its heaviest symbols.

    Raises:
        UserError: for arguments out of range or without effect, targets that are values, a model that takes no vectors.

    What it is not: scheduled sampling. Own entries were predicted from gold only, so the history does not have the
    sequential law; ``scheduled_sampling`` has it.

    Reference: Mihaylova and Martins 2019, arXiv:1906.07651.

    >>> TwoPass(0.5, mix="top_k", top_k=3)
    two_pass(teacher_forcing_ratio=0.5, mix='top_k', top_k=3)
    """

    teacher_forcing_ratio: float | Schedule
    mix: str = "argmax"
    temperature: float = 1.0
    top_k: int = 5
    gate: str | gates.Gate = "token"
    gradient: str = "none"
    gold_weight: float = 0.0
    objective: str | Objective = "auto"

    name: ClassVar[str] = "two_pass"
    summary: ClassVar[str] = "a second pass on what the first predicted from gold (approximate)"
    only_for: ClassVar[tuple[str, str] | None] = ("symbols", "scheduled_sampling")
    ranges: ClassVar[dict[str, tuple[float, float]]] = {"teacher_forcing_ratio": (0.0, 1.0), **SHARED}
    citation: ClassVar[Citation] = Citation(
        formula="z_t = logits on y_<t;  e_t = e(y_t) with probability r(step), else sum_v w_v(z_t) e(v);  "
        "loss = -sum_t log p(y_t | e_<t, x) + gold_weight * -sum_t log p(y_t | y_<t, x)",
        reference="Mihaylova, T. and Martins, A. F. T. (2019). Scheduled sampling for transformers. ACL Student "
        "Research Workshop. arXiv:1906.07651",
        bibtex="""@inproceedings{mihaylova2019scheduled,
  author    = {Mihaylova, Tsvetomila and Martins, Andr{\\'e} F. T.},
  title     = {Scheduled Sampling for Transformers},
  booktitle = {Proceedings of the 57th Annual Meeting of the Association for Computational Linguistics:
               Student Research Workshop},
  pages     = {351--356},
  year      = {2019}
}""",
    )

    def problems(self) -> list[str]:
        """Return which arguments cannot be."""
        problems = self._mix().problems()
        if self.gradient not in ("none", "full"):
            problems.append(f"gradient must be 'none' or 'full'; got {self.gradient!r}")
        elif self.gradient == "full" and self.mix in HARD:
            problems.append(
                f"gradient='full' has no effect with mix={self.mix!r}: a symbol carries none; use 'straight_through' "
                "or another mix of vectors"
            )
        elif self.gradient == "none" and self.mix == "straight_through":
            problems.append(
                "mix='straight_through' without a gradient is 'sample': use gradient='full' or mix='sample'"
            )
        return problems + super().problems()

    @property
    def own_loss(self) -> tuple[str, ...]:
        """A mix of vectors is no history of ids."""
        vectors = f"mix={self.mix!r} feeds vectors, not ids; use mix='argmax' or 'sample'"
        return super().own_loss if self.mix in HARD else (*super().own_loss, vectors)

    def mix_history(self, model: Any, batch: Batch, step: int, key: int) -> tuple[Batch, dict[str, float | str]]:
        """The batch with the mixed history, for mixes that are symbols."""
        if self.mix not in HARD:
            raise UserError(
                f"mix={self.mix!r} feeds vectors, which a batch of ids cannot hold: use run(...), or mix='argmax'"
            )
        second = self._second_input(model, batch, step, key)
        return second.batch, second.report

    def compute(self, model: Any, batch: Batch, step: int, key: int) -> Outcome:
        """One step: pass 1, mixing, pass 2 and its loss."""
        # with a graph both passes run in the same mode: they may share an encoding that dropout has touched
        shared = _encoded(model, batch) if self._with_graph else encode_once(model, batch)
        second = self._second_input(model, shared, step, key)
        whole = second.first.whole if self._with_graph else None
        if second.vectors is not None:
            outputs = checked(model.outputs_from(second.batch, second.vectors), second.batch)
        elif whole is not None and not second.first.any:
            outputs = whole
        else:
            outputs = counted_forward(model, second.batch, self.objective)
        outcome = self.finish(outputs, second.batch.made(context=batch.context), second.report)
        if self.gold_weight == 0:
            return outcome
        return add_gold_loss(self, outcome, outputs if whole is None else whole, batch)

    @property
    def _with_graph(self) -> bool:
        return self.gradient == "full" or self.gold_weight > 0

    def _mix(self) -> Mix:
        return Mix(self.mix, self.temperature, self.top_k)

    def _gate(self) -> Any:
        return gates.resolve(self.gate)

    def _first(self, model: Any, batch: Batch, ratio: float, step: int, key: int) -> First:
        gate, gate_key = self._gate(), fold(key, "gate", int(step))
        confident = gates.needs_confidence(gate) and ratio < 1

        def planned(keep: Tensor) -> Replacement:
            replacement = Replacement.of(batch, keep, self._mix().draw, fold(key, "draw", int(step)))
            return replacement.ruled(model, batch)

        if not confident:
            keep = torch.ones_like(batch.mask) if ratio >= 1 else gates.kept(gate(batch, ratio, gate_key), batch)
            replacement = planned(keep)
            replaces = any_rank(model, replacement.number > 0)
            whole = _with_graph(model, batch) if replaces and self._with_graph else None
            return First(replacement, whole, None, replaces)
        whole = _with_graph(model, batch) if self._with_graph else eval_logits(model, batch)
        confidence = gates.confidences(whole, batch)
        replacement = planned(gate(batch, ratio, gate_key, confidence=confidence))
        return First(replacement, whole, confidence, any_rank(model, replacement.number > 0))

    def _second_input(self, model: Any, batch: Batch, step: int, key: int) -> SecondInput:
        if not batch.is_discrete:
            raise UserError(
                f"{self.name} mixes symbols, and these targets are values: use scheduled_sampling(engine=1), which "
                "feeds values as one pass predicts them"
            )
        mix = self._mix()
        mix.refuse(model)
        ratio = self.value("teacher_forcing_ratio", step, key)
        first = self._first(model, batch, ratio, step, key)
        replacement, (rows, times) = first.replacement, first.replacement.positions
        called, whole = first.any or first.whole is not None, first.whole
        history, vectors = batch.history, None
        # also for no position, where another process has some
        picked = eval_logits_at(model, batch, rows, times) if first.any and whole is None else None
        if replacement.number:
            logits = whole[rows, times] if whole is not None else cast(Tensor, picked)
            logits = replacement.allowed(logits if self.gradient == "full" else logits.detach(), history)
            noise = replacement.noise(logits.shape[-1])
            history, own = self._entries(batch, first, replacement.draw.choose(logits.detach(), noise), step, key)
            if self.mix not in HARD:
                mixed = mix.vectors(model, logits[own], None if noise is None else noise[own])
                looked_up = cast(Embedder, model).lookup(history)
                vectors = looked_up.index_put((rows[own], times[own]), mixed.to(looked_up.dtype))
        report: dict[str, float | str] = {
            "teacher_forcing_ratio": ratio,
            **replacement_counts(batch, history, replacement.number),
            "passes": int(called),
            "work": float(called),
            "engine": "two passes" if replacement.number else "none",
            "exact": float(replacement.number == 0),
            "certified": "no" if replacement.number else "construction",
        }
        return SecondInput(batch.made(history=history, replaced=replacement.replaced), vectors, first, report)

    def _entries(self, batch: Batch, first: First, own: Tensor, step: int, key: int) -> tuple[Tensor, Tensor]:
        """The history in symbols, and which replaced entries are the model's own: (n,) bool."""
        history = batch.history.index_put(first.replacement.positions, own.to(batch.history.dtype))
        return history, torch.ones_like(own, dtype=torch.bool)


def _with_graph(model: Any, batch: Batch) -> Tensor:
    with repeatable(unwrap(model), batch):
        return forward(model, batch)


def _encoded(model: Any, batch: Batch) -> Batch:
    return model.encode(batch) if supports(model, Encoder) else batch


two_pass = TwoPass


HARD = ("argmax", "sample")


MIXES = (*HARD, "top_k", "expected", "gumbel_softmax", "straight_through", "sparsemax")


_RANDOM = ("gumbel_softmax", "straight_through")


@dataclass(frozen=True)
class Mix:
    """From a prediction to what is fed: ``sum_v w_v e(v)`` with weights w >= 0 that sum to 1.

    With z the logits, T the temperature and g Gumbel noise the weights are: ``argmax`` and ``sample``: one symbol;
    ``expected``: softmax(z / T); ``top_k``: the same over the k largest; ``sparsemax``: sparsemax(z / T);
    ``gumbel_softmax``: softmax((z + g) / T); ``straight_through``: the argmax of z + g, with gumbel_softmax's gradient.

    Args:
        kind: one of ``MIXES``.
        temperature: T > 0 (the paper's alpha is 1 / T).
        top_k: k of ``top_k``.

    >>> Mix("top_k", top_k=2).weights(torch.tensor([[1.0, 1.0, 0.0]]), None)
    tensor([[0.5000, 0.5000, 0.0000]])
    """

    kind: str
    temperature: float = 1.0
    top_k: int = 5

    def problems(self) -> list[str]:
        """What is wrong with it, a line each."""
        found: list[str] = []
        if self.kind not in MIXES:
            found.append(f"mix must be one of {', '.join(MIXES)}; got {self.kind!r}")
        if not is_number(self.temperature) or self.temperature <= 0:
            found.append(f"temperature must be above 0; got {self.temperature!r}")
        elif self.kind == "argmax" and self.temperature != 1:
            found.append("temperature has no effect with mix='argmax'; leave it out")
        if isinstance(self.top_k, bool) or not isinstance(self.top_k, int) or self.top_k < 1:
            found.append(f"top_k must be at least 1, a whole number; got {self.top_k}")
        elif self.kind != "top_k" and self.top_k != 5:
            found.append(f"top_k has no effect with mix={self.kind!r}; leave it out")
        return found

    def refuse(self, model: Any) -> None:
        """Raise UserError where a mixture of symbols is to be fed to a model that takes ids only."""
        if self.kind not in HARD and not supports(model, Embedder):
            raise UserError(
                f"mix={self.kind!r} feeds mixtures of symbols, which needs a model with lookup and outputs_from; "
                f"{type(model).__name__} takes ids only: use mix='argmax' or 'sample', or add the two methods"
                f"{wrapper_hint(model, Embedder)}"
            )

    @property
    def draw(self) -> draws.Draw:
        """The draw that gives the symbol fed (hard mixes), or the one of largest weight."""
        if self.kind == "sample":
            return draws.Sample(self.temperature)
        return draws.Sample(coupling="gumbel") if self.kind in _RANDOM else draws.Greedy()

    def weights(self, logits: Tensor, noise: Tensor | None) -> Tensor:
        """(n, vocab) logits, and Gumbel noise for the random ones -> (n, vocab) weights; not for hard mixes."""
        logits = _wide(logits)
        if self.kind == "top_k":
            values, symbols = self._largest(logits)
            return torch.zeros_like(logits).scatter(-1, symbols, values)
        if self.kind == "sparsemax":
            return sparsemax(logits / self.temperature)
        if noise is not None:
            logits = logits + noise.to(logits.dtype)
        return (logits / self.temperature).softmax(-1)

    def vectors(self, model: Embedder, logits: Tensor, noise: Tensor | None) -> Tensor:
        """(n, vocab) logits -> (n, width): what is fed instead of a symbol's lookup."""
        if self.kind == "top_k":
            values, symbols = self._largest(_wide(logits))
            return torch.einsum("nk,nkw->nw", *_same_dtype(values, model.lookup(symbols)))
        weights = self.weights(logits, noise)
        weights, table = _same_dtype(weights, model.lookup(torch.arange(logits.shape[-1], device=logits.device)))
        if self.kind != "straight_through":
            return weights @ table
        assert noise is not None
        # exactly the symbol in value: the second term is zero, and carries the gradient
        return model.lookup(self.draw.choose(logits, noise)) + (weights - weights.detach()) @ table

    def _largest(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        values, symbols = logits.topk(min(self.top_k, logits.shape[-1]), -1)
        return (values / self.temperature).softmax(-1), symbols


def sparsemax(logits: Tensor) -> Tensor:
    """The point of the probability simplex nearest to the logits: ``max(z - tau, 0)``, summing to 1.

    Args:
        logits: (..., vocab).

    Reference: Martins and Astudillo 2016, arXiv:1602.02068.

    >>> sparsemax(torch.tensor([1.0, 0.5, -1.0]))
    tensor([0.7500, 0.2500, 0.0000])
    """
    logits = logits - logits.detach().amax(-1, keepdim=True)
    ordered = logits.sort(-1, descending=True).values
    cumulated = ordered.cumsum(-1)
    count = torch.arange(1, logits.shape[-1] + 1, device=logits.device, dtype=logits.dtype)
    # NaN supports nothing: it goes through, and the loss reports it
    support = (1 + count * ordered > cumulated).sum(-1, keepdim=True).clamp_min(1)
    return (logits - (cumulated.gather(-1, support - 1) - 1) / support).clamp_min(0)


def _wide(logits: Tensor) -> Tensor:
    return logits.float() if logits.dtype in (torch.bfloat16, torch.float16) else logits


def _same_dtype(weights: Tensor, vectors: Tensor) -> tuple[Tensor, Tensor]:
    return weights.to(vectors.dtype), vectors


@dataclass(frozen=True, repr=False)
class ConfidenceAware(TwoPass):
    """Two passes; how sure the first is of the gold decides whether the second is fed gold, own or random entries.

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

    What it is not: exact, for its own entries are predicted from gold; ``scheduled_sampling(0.0, gate="confidence")``
    is, without the random class. Nor a measure of confidence by dropout, the paper's other variants.

    Reference: Liu, Meng, Chen, Xu and Zhou 2021, arXiv:2107.10427.

    >>> ConfidenceAware(mix="argmax", t_rand=1.0)
    confidence_aware(mix='argmax', t_rand=1.0)
    """

    teacher_forcing_ratio: float | Schedule = 0.0
    mix: str = "expected"
    gate: str | gates.Gate = field(default="confidence", init=False)
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
        rows, times = first.replacement.positions
        assert first.confidence is not None
        sure = gates.Confidence.following(batch, first.confidence)[rows, times]
        noisy = sure > self.t_rand
        history, _ = super()._entries(batch, first, own, step, key)
        rows, times = rows[noisy], times[noisy]
        if len(rows):
            u = uniform(fold(key, "noise", int(step)), batch.row_numbers[rows], times)
            other = same_sentence(batch, rows, times, u, exclude_gold=False)
            history = history.index_put((rows, times), other.to(history.dtype))
        return history, ~noisy


confidence_aware = ConfidenceAware
