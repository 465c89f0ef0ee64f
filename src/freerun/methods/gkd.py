"""Generalised knowledge distillation: a teacher's distribution is the target, on gold history, own, or both."""

from __future__ import annotations

import hashlib
import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, ClassVar, cast
from weakref import WeakKeyDictionary, WeakSet

import torch
from torch import Tensor, nn
from torch.nn import functional

from freerun import draws, gates
from freerun.arguments import above, at_least, between
from freerun.batch import Batch
from freerun.errors import UserError, listed, refuse
from freerun.methods.base import Citation
from freerun.methods.own_runs import model_ends
from freerun.methods.scheduled_sampling import ScheduledSampling
from freerun.objectives import Objective
from freerun.rollin import Engine, forward, supports, unwrap
from freerun.rollin.model import asking, has
from freerun.types import Counted, Outcome, Ruled, Split

_CHUNK = 2**20
"""Logits that are compared at once."""
_COMPARED = 64
"""Positions at which a teacher that holds weights of the student is compared with it."""
_NO_PART = ("training", "gradient_checkpointing", "use_cache")
"""What changes no prediction."""
_FIT: WeakKeyDictionary[nn.Module, WeakSet[nn.Module]] = WeakKeyDictionary()
"""Of each teacher the students that it fits by the first batch."""


@dataclass(frozen=True, eq=False, repr=False)
class Teacher:
    """A model to learn from, never trained itself; compared, printed and signed by its weights and settings.

    Settings are the classes of its parts and the numbers that these and a configuration of transformers hold; others,
    such as a function that is an attribute, are not seen.

    Args:
        model: any Model over the student's symbols: called in evaluation mode and without gradient.
        follows: it moves to the device of the batches: for one that nobody else holds.
        notes: in which respects student and teacher differ, though the loss can be computed.

    >>> Teacher(nn.Linear(2, 3, bias=False).requires_grad_(False).apply(lambda m: nn.init.ones_(m.weight)))
    teacher(Linear, sha=c4292107)
    """

    model: Any
    follows: bool = False
    notes: tuple[str, ...] = ()

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Teacher) or self.model is other.model:
            return isinstance(other, Teacher)
        return isinstance(self.model, nn.Module) and repr(self) == repr(other)

    def __hash__(self) -> int:
        return hash(repr(self))

    def __repr__(self) -> str:
        kind = self.model if hasattr(self.model, "__qualname__") else type(self.model)
        sha = f", sha={self._digest}" if isinstance(self.model, nn.Module) else ""
        return f"teacher({kind.__qualname__}{sha})"

    @cached_property
    def _digest(self) -> str:
        digest = hashlib.sha256()
        for name, values in self.model.state_dict().items():
            digest.update(f"{name} {tuple(values.shape)} {values.dtype} ".encode())
            digest.update(values.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
        for name, part in self.model.named_modules():
            config: Any = getattr(part, "config", None)  # of transformers
            known = {**vars(part), **(config.to_dict() if hasattr(config, "to_dict") else {})}
            kept = sorted(
                f"{key} {value}"
                for key, value in known.items()
                # what begins with _ is a library's note to itself; what is cached comes with the first use
                if "rope_" in key
                or (
                    isinstance(value, int | float)
                    and key not in _NO_PART
                    and key[0] != "_"
                    and not isinstance(inspect.getattr_static(type(part), key, None), cached_property)
                )
            )
            digest.update(f"{name} {type(part).__qualname__} {kept}".encode())
        return digest.hexdigest()[:8]

    def outputs(self, batch: Batch, index: Tensor) -> Callable[[int, int], Tensor]:
        """A function of begin and end: the logits at these of the (n,) flattened positions, in evaluation mode.

        Where the model can, no more of them than are requested reach the vocabulary.
        """
        inner = unwrap(self.model)
        if self.follows:
            inner.to(batch.history.device)
        split = supports(inner, Split)
        try:
            with torch.no_grad(), asking(inner, batch):
                found = inner.hidden(batch) if split else forward(inner, batch)
        except IndexError as error:
            raise UserError(
                f"the teacher ({type(inner).__name__}) was fed an id that its embedding does not have ({error}): it "
                "and the student need the same symbols"
            ) from error
        if not split:
            return lambda begin, end: found[_places(found, index[begin:end])]

        def some(begin: int, end: int) -> Tensor:
            with torch.no_grad(), asking(inner, batch):
                return inner.head(found[_places(found, index[begin:end])])

        return some


@dataclass(frozen=True, repr=False)
class GKD(ScheduledSampling):
    """Learn a teacher's distribution of each next symbol, after gold history, the student's own, or a mixture.

    ``M = beta P_T + (1 - beta) P_S``; ``loss = sum_t beta KL(P_T || M) + (1 - beta) KL(P_S || M)``, both after the
    mixed history ``h_<t``; at beta = 0 ``KL(P_T || P_S)`` and at beta = 1 ``KL(P_S || P_T)``. No gradient goes through
    the history. Gold is the history and says where positions count; it is no target. After an end symbol of the
    student's own in the history the rest of gold's stretch has no part in the sum; the count, which is known before
    the roll-in, is gold's.

    Args:
        teacher_forcing_ratio: P(gold), 1 - lambda of the paper; a number or a schedule. 1 is distillation on the data,
            without a roll-in.
        draw: of own symbols: ``"sample"`` as published, or another; mixtures, which the teacher cannot read, are none.
        gate: ``"token"``, or ``"sequence"`` as published, or another of ``scheduled_sampling``.
        engine: as for ``scheduled_sampling``.
        beta: in [0, 1]. At 0 and 1 the loss is the plain KL, which is the limit of the formula divided by beta or
            1 - beta: so the loss jumps there.
        temperature: both models' logits are divided by it in the loss; that of the draw is the draw's.
        teacher: any Model over the student's symbols, or an adapted Hugging Face model, on the device of the batches.
            In a recipe the folder of a run with the same data, or for a Hugging Face model a folder or name of
            transformers.
        end: id of the end symbol; None: those of the model's own generation, and in a recipe that of the data. Where
            there is none, no position is left out.

    Raises:
        UserError: arguments outside their range; targets that are values; a teacher with another number of symbols, on
            another device, whose rows end otherwise (of Hugging Face models), or the student itself.

    What it is not: a divergence of whole sequences, whose gradient would go through the draws (MiniLLM); nor sampling
    as far as the model's own end lies, as published: own histories are at most as long as gold. The report has
    ``support_overlap``, the share of the ten most likely symbols (half of them, of fewer than twenty) that student and
    teacher have in common, and ``after_end_share``, of the positions left out.

    Reference: Agarwal, Vieillard, Zhou, Stanczyk, Ramos, Geist and Bachem 2024, arXiv:2306.13649.

    >>> ids = torch.tensor([[2, 1, 0]])
    >>> teacher, student = (lambda batch, n=n: n * torch.eye(4)[batch.history] for n in (1, 0))
    >>> round(float(GKD(1.0, teacher=teacher, beta=0.0)(student, Batch(ids), step=0)), 4)
    0.118
    """

    draw: str | draws.Draw = "sample"
    gate: str | gates.Gate = "token"
    engine: Engine = "auto"
    gradient: str | int = field(default="none", init=False)
    gold_weight: float = field(default=0.0, init=False)
    objective: str | Objective = field(default="auto", init=False)
    beta: float = between(0, 1, 0.5)
    temperature: float = above(0, 1.0)
    teacher: Any = field(kw_only=True)
    end: int | None = at_least(0, None)

    name: ClassVar[str] = "gkd"
    summary: ClassVar[str] = "a teacher's distribution as target, on gold or own history"
    only_for: ClassVar[tuple[str, str] | None] = ("symbols", "scheduled_sampling")
    without: ClassVar[Mapping[str, str]] = {"target": "whose target is the teacher's distribution"}
    means: ClassVar[dict[str, tuple[str, str]]] = {
        "support_overlap": ("support_common", "support_of"),
        "after_end_share": ("after_end", "positions"),
    }
    citation: ClassVar[Citation] = Citation(
        formula="M = beta P_T + (1 - beta) P_S;  loss = sum_t beta KL(P_T || M) + (1 - beta) KL(P_S || M)  after h_<t\n"
        "(beta = 0: KL(P_T || P_S), beta = 1: KL(P_S || P_T))",
        reference="Agarwal, R., Vieillard, N., Zhou, Y., Stanczyk, P., Ramos, S., Geist, M. and Bachem, O. (2024). "
        "On-policy distillation of language models: learning from self-generated mistakes. ICLR. arXiv:2306.13649",
        bibtex="""@inproceedings{agarwal2024onpolicy,
  author    = {Agarwal, Rishabh and Vieillard, Nino and Zhou, Yongchao and Stanczyk, Piotr and Ramos, Sabela
               and Geist, Matthieu and Bachem, Olivier},
  title     = {On-Policy Distillation of Language Models: Learning from Self-Generated Mistakes},
  booktitle = {International Conference on Learning Representations},
  year      = {2024}
}""",
    )

    @property
    def own_loss(self) -> tuple[str, ...]:
        """The loss is a divergence from the teacher."""
        return (*super().own_loss, "the target is the teacher's distribution")

    def problems(self) -> list[str]:
        """What is wrong with the arguments; a teacher becomes a ``Teacher``."""
        found = super().problems()
        if self._mixes:
            found.append(f"draw={self.draw!r} feeds mixtures, which a teacher cannot read: use 'sample' or 'greedy'")
        if isinstance(self.teacher, Teacher | str):
            return found
        kind, hint = type(self.teacher).__name__, ""
        if isinstance(self.teacher, type):
            hint = ": that is a class; give an object of it"
        elif any(base.__name__ in ("PreTrainedModel", "PeftModel") for base in type(unwrap(self.teacher)).__mro__):
            hint = ", which does not read a Batch: give freerun.hf.adapt(teacher)"
        elif callable(self.teacher):
            object.__setattr__(self, "teacher", Teacher(self.teacher))
            return found
        return [f"teacher must be a model, from Batch to (batch, time, vocabulary); got {kind}{hint}", *found]

    def compute(self, model: Any, batch: Batch, step: int, key: int) -> Outcome:
        """Scheduled sampling's step, once student and teacher fit each other."""
        problems: list[str] = []
        if not batch.is_discrete:
            problems.append("gkd compares distributions of symbols, and these targets are values: use another method")
        if isinstance(self.teacher, str):
            problems.append(f"teacher = {self.teacher!r} is a folder, which recipes load: pass the model itself")
        elif unwrap(self.teacher.model) is unwrap(model):
            problems.append("the teacher is the student itself, so the loss is 0: pass copy.deepcopy(model)")
        elif isinstance(self.teacher.model, nn.Module) and not self.teacher.follows:
            devices = {str(each.device) for each in self.teacher.model.parameters()} - {str(batch.history.device)}
            if devices:
                found = f"the teacher lies on {', '.join(sorted(devices))} and the batch on {batch.history.device}"
                problems.append(f"{found}: move the teacher there before, teacher.to({str(batch.history.device)!r})")
        refuse(problems)
        student, teacher = unwrap(model), cast(Teacher, self.teacher)
        modules = isinstance(student, nn.Module) and isinstance(teacher.model, nn.Module)
        if modules and student not in (fit := _FIT.setdefault(teacher.model, WeakSet())):
            refuse([*_same_weights(student, teacher, batch), *_other_ends(student, teacher, batch)])
            fit.add(student)
        self._seen["ends"] = model_ends(model, batch) if self.end is None else (self.end,)
        return super().compute(model, batch, step, key)

    def finish(self, outputs: Tensor | Counted, fed: Batch, report: dict[str, float | str]) -> Outcome:
        """The divergence from the teacher after the same history, at the positions that count."""
        kept = until_own_end(fed, self._seen["ends"])
        total, part = summed_divergence(outputs, fed, self.teacher, self.beta, self.temperature, kept=kept)
        number, positions = len(part.index), int(fed.mask.sum())
        count = total.new_tensor(positions) if fed.weights is None else fed.weights[fed.mask].sum().to(total.dtype)
        counts = {"support_common": part.common, "support_of": number * _likely(outputs.shape[-1])}
        counts |= {"after_end": positions - number, "positions": positions}
        return Outcome(total, count, cast(Tensor, outputs), fed, {**report, **counts})

    @cached_property
    def _seen(self) -> dict[str, Sequence[int]]:
        """The end symbols of the step that is made."""
        return {"ends": ()}


def until_own_end(fed: Batch, ends: Sequence[int]) -> Tensor | None:
    """(batch, time) bool: positions without an end symbol of the model's own before them in their stretch; None: all.

    A stretch is what lies between positions that neither count nor may be replaced, such as one reply of a chat.

    >>> ids = torch.tensor([[5, 0, 6, 7]])
    >>> until_own_end(Batch(ids).made(replaced=ids == 0), [0]).tolist()
    [[True, True, False, False]]
    """
    if fed.replaced is None or not ends:
        return None
    at = torch.arange(fed.time, device=fed.history.device)
    own = fed.replaced & torch.isin(fed.history, torch.tensor(list(ends), device=at.device))
    ended, outside = (torch.where(each, at, -1).cummax(1).values for each in (own, ~(fed.mask | fed.replaceable)))
    return functional.pad(ended[:, :-1], (1, 0), value=-1) <= outside


def _same_weights(student: nn.Module, teacher: Teacher, batch: Batch) -> list[str]:
    """What is wrong with a teacher that holds trained weights of the student: that it predicts the same, if so.

    It may read another context, or leave adapters out: then it predicts otherwise, at the latest with other adapters.
    """
    mine = {id(weight) for weight in student.parameters()}
    trained = [weight for weight in teacher.model.parameters() if weight.requires_grad and id(weight) in mine]
    if not trained or not predict_the_same(student, teacher, batch):
        return []
    saved = [weight.data for weight in trained]
    try:  # other storage, as a graph of the caller's may hold this one
        for weight in trained:
            weight.data = 0.9 * weight.data + 0.01
        always = predict_the_same(student, teacher, batch)
    finally:
        for weight, before in zip(trained, saved, strict=True):
            weight.data = before
    if not always:
        return []
    return [
        "the teacher has weights of the student and predicts the same, so the loss is 0: make it of a copy, "
        "copy.deepcopy(model)"
    ]


def predict_the_same(student: nn.Module, teacher: Teacher, batch: Batch) -> bool:
    """Whether both predict the same at the first positions of a batch that count."""
    index = batch.mask.flatten().nonzero().squeeze(1)[:_COMPARED]
    own, known = (side.outputs(batch, index)(0, len(index)) for side in (Teacher(student), teacher))
    near = min(1e-3, 16 * torch.finfo(own.dtype).eps)
    return own.shape == known.shape and len(index) > 0 and torch.allclose(own, known.to(own), rtol=near, atol=near)


def _other_ends(student: nn.Module, teacher: Teacher, batch: Batch) -> list[str]:
    """What is wrong where rows end with an end symbol of the student's that is none of the teacher's."""
    inner = unwrap(teacher.model)
    if teacher.follows or not (has(student, Ruled) and has(inner, Ruled)):  # a recipe has compared more
        return []
    ends, known = (set(side.generation_defaults(batch).ends) for side in (student, inner))
    last = batch.targets.gather(1, batch.mask.cumsum(1).argmax(1)[:, None])[batch.mask.any(1)]
    strange = set(last.flatten().tolist()) & ends - known
    if not known or not strange:
        return []
    return [
        f"rows end with {listed(sorted(strange))} and the teacher's with {listed(sorted(known))}, so it would teach "
        "the student not to stop: give the student the teacher's end symbol, or, if the teacher does end so, add it to "
        "its generation_config.eos_token_id"
    ]


def _likely(vocab: int) -> int:
    """Most likely symbols of student and teacher whose overlap is reported: of few symbols all would be the same."""
    return min(10, max(1, vocab // 2))


def width_problem(student: int, teacher: int, symbols: int | None = None) -> str:
    """What stands against models that predict so many ids each, of a vocabulary with so many symbols if known.

    >>> print(width_problem(320, 384, 301))
    the teacher has 384 symbols and the student 320: gkd compares distributions over the same symbols
      help: the vocabulary has 301 and the rows beyond are padding: teacher.resize_token_embeddings(320), then save it
    """
    problem = (
        f"the teacher has {teacher} symbols and the student {student}: gkd compares distributions over the same symbols"
    )
    larger = "teacher" if teacher > student else "student"
    cut = f"{larger}.resize_token_embeddings({min(student, teacher)})"
    if symbols is None:
        return f"{problem}\n  help: where the rows beyond the tokenizer are padding, cut them: {cut}"
    if symbols > min(student, teacher):
        return f"{problem}, and the vocabulary has {symbols}: one of them is no model of it"
    return f"{problem}\n  help: the vocabulary has {symbols} and the rows beyond are padding: {cut}, then save it"


def summed_divergence(
    outputs: Tensor | Counted, fed: Batch, teacher: Teacher, beta: float = 0.0, temperature: float = 1.0,
    *, kept: Tensor | None = None,
) -> tuple[Tensor, Divergences]:  # fmt: skip
    """The weighted sum of the divergences from a teacher at the positions that count, and what was seen of them.

    ``kept`` (batch, time) bool: only at these of them; None: at all.
    """
    if isinstance(outputs, Counted):
        logits, index = outputs.outputs[None], outputs.index
        own = torch.arange(len(index), device=index.device)
    else:
        logits, index = outputs, fed.mask.flatten().nonzero().squeeze(1)
        own = index
    if kept is not None:
        there = kept.flatten()[index]
        own, index = own[there], index[there]
    weights = None if fed.weights is None else fed.weights.flatten().index_select(0, index)
    part = Divergences(beta, temperature, own, weights)
    return cast(Tensor, _Summed.apply(logits, part, teacher.outputs(fed, index))), part


def _places(whole: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
    """Rows and times of positions of the flattened batch: of outputs that lie time by time a flat one is a copy."""
    return index // whole.shape[1], index % whole.shape[1]


def divergence(student: Tensor, teacher: Tensor, beta: float) -> Tensor:
    """(n,) ``beta KL(P_T || M) + (1 - beta) KL(P_S || M)`` of logits (n, vocab); the KLs at beta 0 and 1.

    >>> divergence(torch.tensor([[0.0, 0.0]]), torch.tensor([[0.0, -torch.inf]]), beta=0.0)
    tensor([0.6931])
    """
    log_s, log_t = student.log_softmax(-1), teacher.log_softmax(-1)
    if beta == 0:
        return _kl(log_t, log_s)
    if beta == 1:
        return _kl(log_s, log_t)
    least = torch.finfo(log_s.dtype).min / 2  # of two symbols without probability the gradient would be NaN
    parts = log_t.clamp_min(least) + math.log(beta), log_s.clamp_min(least) + math.log1p(-beta)
    mixed = torch.logaddexp(*parts)
    return beta * _kl(log_t, mixed) + (1 - beta) * _kl(log_s, mixed)


def _kl(log_p: Tensor, log_q: Tensor) -> Tensor:
    p = log_p.exp()
    # by selection: what has no probability may have none under q
    return (p * torch.where(p > 0, log_p - log_q, 0.0)).sum(-1)


@dataclass(eq=False)
class Divergences:
    """Of some positions from the teacher, and how far the likely symbols are the same.

    Args:
        beta: as of ``divergence``.
        temperature: by which the logits are divided.
        index: (n,) the positions in the flattened outputs.
        weights: (n,) of the positions.
        common: likely symbols that student and teacher have in common, so far.
    """

    beta: float
    temperature: float
    index: Tensor
    weights: Tensor | None
    common: int = 0

    def __call__(self, student: Tensor, teacher: Tensor, begin: int) -> Tensor:
        """The sum over the positions from ``begin`` on, of logits (k, vocab)."""
        if teacher.shape != student.shape:
            raise UserError(width_problem(student.shape[-1], teacher.shape[-1]))
        wide = torch.promote_types(torch.promote_types(student.dtype, teacher.dtype), torch.float32)
        each = divergence(student.to(wide) / self.temperature, teacher.to(wide) / self.temperature, self.beta)
        near = _likely(student.shape[1])
        likely, of_teacher = (logits.detach().topk(near).indices for logits in (student, teacher))
        self.common += int((likely[:, :, None] == of_teacher[:, None, :]).sum())
        return (each if self.weights is None else each * self.weights[begin : begin + len(student)].to(wide)).sum()


class _Summed(torch.autograd.Function):
    """A sum over positions and its gradient, some positions at a time.

    In memory are beside the outputs their gradient, once, and temporaries of ``_CHUNK`` logits. In float16, whose least
    numbers are reached, each position's gradient is kept divided by a scale, which the backward multiplies.
    """

    @staticmethod
    def forward(ctx: Any, outputs: Tensor, part: Divergences, teacher: Callable[[int, int], Tensor]) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        """(batch, time, vocab) -> scalar, at least float32."""
        needed = ctx.needs_input_grad[0]
        gradient = torch.zeros_like(outputs) if needed else None
        ctx.scales = []
        total = outputs.new_zeros((), dtype=torch.promote_types(outputs.dtype, torch.float32))
        size = max(1, _CHUNK // outputs.shape[-1])
        for begin in range(0, len(part.index), size):
            places = _places(outputs, part.index[begin : begin + size])
            some = outputs[places].detach().to(total.dtype).requires_grad_(needed)
            with torch.set_grad_enabled(needed):
                summed = part(some, teacher(begin, begin + len(some)), begin)
            if gradient is not None:
                slope = torch.autograd.grad(summed, some)[0]
                if gradient.dtype == torch.float16:
                    scale = slope.abs().amax(-1, keepdim=True).clamp_min(2.0**-100) / 2**15
                    ctx.scales.append((places, scale))
                    slope = slope / scale
                gradient[places] = slope.to(gradient.dtype)
            total += summed.detach()
        ctx.gradient = gradient
        return total

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        gradient, ctx.gradient = ctx.gradient, None
        if gradient is None:  # it lies where the first backward has put it, multiplied
            raise UserError(
                "a second backward through the same divergence from a teacher: its gradient is in memory once, and "
                "was passed on by the first; add up what is to be differentiated, or run the method again"
            )
        if gradient.dtype != torch.float16:
            return gradient.mul_(grads[0]), None, None
        for places, scale in ctx.scales:
            gradient[places] = (gradient[places] * (scale * grads[0])).half()
        return gradient, None, None


gkd = GKD
