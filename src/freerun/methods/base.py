"""What every method is: a frozen object from (model, batch, step, key) to an outcome."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import MISSING, dataclass, field, fields, replace
from functools import partial
from operator import attrgetter
from typing import Any, ClassVar, Never, Protocol, cast, runtime_checkable

import torch
from torch import Tensor

from freerun import draws, gates, objectives, targets
from freerun.arguments import Arguments, lasting, unknown_argument
from freerun.batch import Batch
from freerun.errors import UserError, refuse
from freerun.keys import fold, key_number
from freerun.methods.own_runs import refuse_endless
from freerun.methods.report import replacement_counts
from freerun.rollin import (
    Engine,
    Replacement,
    RollIn,
    any_rank,
    call_problems,
    check_engine,
    check_unroll,
    differs_by_mode,
    explained_errors,
    forward,
    resolve_engine,
    supports,
    unroll,
    unwrap,
)
from freerun.rollin.model import asking, repeatable
from freerun.rollin.training import counted_forward, encodings
from freerun.schedules import Following, Schedule, extremes, value_at
from freerun.transforms import loss_on, loss_on_problems, within_horizon
from freerun.types import Counted, Encoder, Outcome, Split, step_number

SHARED: dict[str, tuple[float, float]] = {"horizon": (1.0, math.inf)}
"""Parameters that every method has and a schedule may drive, with their ranges."""


@dataclass(frozen=True)
class Citation:
    """Where a method comes from.

    Args:
        formula: the method in one formula, plain text.
        reference: the paper, as a sentence.
        bibtex: its BibTeX entry.
    """

    formula: str
    reference: str
    bibtex: str


def last_width(outputs: Tensor | Counted) -> int:
    """Numbers of a position's output."""
    return (outputs.outputs if isinstance(outputs, Counted) else outputs).shape[-1]


@runtime_checkable
class Method(Protocol):
    """The contract with trainers: ``run`` gives a total and a count, calling it returns their quotient."""

    name: ClassVar[str]
    citation: ClassVar[Citation]

    def run(self, model: Any, batch: Batch, step: int, key: int = 0) -> Outcome: ...
    def __call__(self, model: Any, batch: Batch, step: int, key: int = 0) -> Tensor: ...
    def transform(self, model: Any, batch: Batch, step: int, key: int = 0) -> Batch: ...
    def check(self, steps: int) -> None: ...


@dataclass(frozen=True, repr=False)
class TransformMethod(Following, Arguments):
    """transform + objective: change the history, then one ordinary forward. Subclasses define ``mix_history``.

    ``repr`` is the method's signature: its name and every argument that is not the default. Three choices are the same
    for all methods, and independent of who feeds and of where the gradient is cut:

    Args:
        horizon: how many entries of each row that may be replaced are used, from the first on; a number or a schedule
            (rounded down), also one that draws, the same for all rows; None: all. See
            ``freerun.transforms.within_horizon``.
        loss_on: which steps carry loss: ``"all"`` of the mask, ``"last"``, ``"after_warmup"``, or a weight
            for each lead time. See ``freerun.transforms.loss_on``.
        target: what each position should predict on the history that is fed: ``"gold"``, ``"optimal_completion"`` or
            a function ``(batch, history) -> ids, shares of symbols, or values``. See ``freerun.targets.Target``.
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    citation: ClassVar[Citation]
    # the one kind of targets it is for, "symbols" or "values", and the method to use for the other
    only_for: ClassVar[tuple[str, str] | None] = None
    # whether a history holds outputs of the model itself: what a noise control can be matched to
    feeds_own: ClassVar[bool] = True
    # parameter -> its closed range, for parameters that a schedule may drive
    ranges: ClassVar[dict[str, tuple[float, float]]] = SHARED

    # whether its histories are of other lengths than gold's
    own_lengths: ClassVar[bool] = False
    # shared argument -> why it has no effect with this method
    without: ClassVar[Mapping[str, str]] = {}
    # numbers of its report that trainers log beside those parameters, and means: of two sums in it the quotient
    logged: ClassVar[tuple[str, ...]] = ()
    means: ClassVar[dict[str, tuple[str, str]]] = {}

    horizon: float | Schedule | None = field(default=None, kw_only=True)
    loss_on: str | tuple[float, ...] = field(default="all", kw_only=True)
    target: str | targets.Target = field(default="gold", kw_only=True)

    def __repr__(self) -> str:
        listed = [f for f in fields(self) if f.repr and (getattr(self, f.name) != f.default or f.default is MISSING)]
        listed.sort(key=lambda f: f.kw_only is True)  # what all methods share comes last
        return lasting(f"{self.name}({', '.join(f'{f.name}={getattr(self, f.name)!r}' for f in listed)})")

    @property
    def own_loss(self) -> tuple[str, ...]:
        """What a trainer that computes the loss itself, on the history that is fed, would drop: a phrase each.

        A method whose total is not its objective's on the fed batch lists that here.
        """
        usual = {"horizon": None, "loss_on": "all", "gold_weight": 0.0, "target": "gold"}
        names = [name for name, value in usual.items() if getattr(self, name, value) != value]
        if getattr(self, "objective", "auto") not in ("auto", "cross_entropy", objectives.CrossEntropy()):
            names.append("objective")
        return tuple(f"{name} changes the loss" for name in names)

    @property
    def calls_model(self) -> bool:
        """True if the model is called to build the history; sharded processes must then make equally many calls."""
        return self.feeds_own

    @property
    def refuse_rows(self) -> Callable[[Any, Batch], Any] | None:
        """(model, batch) -> refuse rows of gold that a step would, to try all before; None: it takes any."""
        if self.own_lengths:
            return partial(refuse_endless, self)
        aim = targets.OptimalCompletion() if self.target == "optimal_completion" else self.target
        return (lambda model, batch: aim.gold(batch)) if isinstance(aim, targets.OptimalCompletion) else None

    def mix_history(self, model: Any, batch: Batch, step: int, key: int) -> tuple[Batch, dict[str, float | str]]:
        """The batch with the history to be fed, and what to report."""
        raise TypeError(f"{type(self).__name__} must define mix_history")  # a subclass forgot to

    # step has a default so that a call without it gets our error; it is required
    def transform(self, model: Any, batch: Batch, step: int | None = None, key: int = 0, **unknown: Never) -> Batch:
        """Return the batch that is fed; its ``history`` is the mixed history."""
        step, key = checked_call(model, batch, step, key, unknown)
        with explained_errors(model):
            return self.mixed_batch(model, self.apply_horizon(batch, step, key), step, key)

    def mixed_batch(self, model: Any, batch: Batch, step: int, key: int) -> Batch:
        """Return the batch that is fed, from one already cut to the horizon and its loss steps."""
        fed, report = self.mix_history(model, zero_unused(batch), step, key)
        return fed if fed.missing is None else self.fill(model, fed, report, step, key).fed

    def apply_horizon(self, batch: Batch, step: int, key: int) -> Batch:
        """The batch cut to the horizon, with the loss on the steps of ``loss_on``."""
        if self.horizon is not None:
            # a nominal 0.3 * 10 is 2.999...
            batch = within_horizon(batch, math.floor(self.value("horizon", step, key) + 1e-9))
        return batch if self.loss_on == "all" else loss_on(batch, self.loss_on)

    def run(self, model: Any, batch: Batch, step: int | None = None, key: int = 0, **unknown: Never) -> Outcome:
        """One step: transform, forward, objective."""
        step, key = checked_call(model, batch, step, key, unknown)
        if torch.is_grad_enabled() and not getattr(batch.context, "has_labels", True):
            raise UserError(
                "the batch has no labels, so its loss would be 0 and nothing learnt: pass labels= to batch(...); to "
                "continue prompts, fr.generate"
            )
        with explained_errors(model):
            outcome = self.compute(model, self.apply_horizon(batch, step, key), step, key)
        if self.horizon is None:
            return outcome
        return outcome.made(report={"horizon": self.value("horizon", step, key), **outcome.report})

    def compute(self, model: Any, batch: Batch, step: int, key: int) -> Outcome:
        """One step on a batch that has its horizon and its loss steps: feed, forward, objective.

        The context is encoded once for roll-in and training where the model can and the encoder is the same function in
        both modes.
        """
        batch = zero_unused(batch)
        rolled, trained = encodings(model, batch) if self.calls_model else (batch, batch)
        fed, report = self.mix_history(model, rolled, step, key)
        changed = fed.context is not rolled.context  # a method may change the context, too
        scored = fed if changed else fed.made(context=batch.context)
        if fed.present is not None and fed.missing is not None:
            return self.fill(model, scored, report, step, key)
        read = fed if changed or rolled is trained else fed.made(context=trained.context)
        outputs = counted_forward(model, read, getattr(self, "objective", "auto"))
        return self.finish(outputs, scored, report)

    def fill(self, model: Any, fed: Batch, report: dict[str, float | str], step: int, key: int) -> Outcome:
        """The outcome of a batch whose history lacks values: the model's own output stands in, with its gradient."""
        replacement = standing_in(fed, self, fold(key, "draw", int(step)))
        outcome = rollout_with_grad(self, model, fed, replacement, gradient="full", engine="auto", off=False)
        more = {name: float(report.get(name, 0)) + float(outcome.report[name]) for name in ("passes", "work")}
        return outcome.made(report={**outcome.report, **report, **more, "filled": replacement.number})

    def finish(self, outputs: Tensor | Counted, fed: Batch, report: dict[str, float | str]) -> Outcome:
        """The outcome of outputs for a fed batch."""
        aimed, shares = targets.aimed(self.target, fed, last_width(outputs))
        total, count = objectives.scored(getattr(self, "objective", "auto"), outputs, aimed, shares)
        return Outcome(total, count, cast(Tensor, outputs), fed, report)

    def __call__(self, model: Any, batch: Batch, step: int | None = None, key: int = 0, **unknown: Never) -> Tensor:
        """The mean loss, ``total / count``."""
        return self.run(model, batch, step, key, **unknown).loss

    def deployed(self, model: Any) -> Any:
        """The model as it is scored and used after this training: itself."""
        return model

    def at_longest(self, horizon: int) -> Any:
        """The method at a horizon, with the memory that an update at it takes at most."""
        return replace(self, horizon=float(horizon))

    def scheduled(self) -> Iterator[tuple[str, Any]]:
        """The parameters that may be schedules, with their values."""
        for name in self.ranges:
            setting = getattr(self, name)
            if setting is not None or name not in SHARED:
                yield name, setting
        draw = getattr(self, "draw", None)
        for name in getattr(draw, "ranges", ()):
            if isinstance(setting := getattr(draw, name), Schedule):
                yield f"draw.{name}", setting

    def range_of(self, name: str) -> tuple[float, float]:
        """Least and greatest value of a parameter that may be a schedule."""
        return getattr(self, "draw").ranges[name[5:]] if name.startswith("draw.") else self.ranges[name]  # noqa: B009

    def value(self, name: str, step: int, key: int) -> float:
        """A scheduled parameter's value at a step, checked to lie in its range."""
        setting = attrgetter(name)(self)
        drawn = isinstance(setting, Schedule) and setting.draws
        try:
            value = setting(step, key=fold(key, name, int(step))) if drawn else value_at(setting, step)
        except TypeError as error:
            raise UserError(f"{name}: {setting!r} gives no number at step {step} ({error})") from error
        low, high = self.range_of(name)
        if not (low <= value <= high and value < math.inf):
            raise UserError(str(in_range(name, setting, value, step, (low, high))))
        return value

    def problems(self) -> list[str]:
        """What is wrong with what methods share: objective, draw, loss steps, and ranges at the first step."""
        if isinstance(self.loss_on, list):  # frozen: a tuple can be hashed
            object.__setattr__(self, "loss_on", tuple(self.loss_on))
        names = [name for name in _CHECKS if hasattr(self, name)]
        if "engine" not in names and "gradient" in names:
            names.remove("gradient")  # a method without an engine has a meaning of its own for it
        found = [problem for name in names for problem in _CHECKS[name](getattr(self, name))]
        usual = {each.name: each.default for each in fields(self)}
        found += [
            f"{name} has no effect with {self.name}, {why}; got {getattr(self, name)!r}"
            for name, why in self.without.items()
            if getattr(self, name) != usual[name]
        ]
        cut = [name for name in ("horizon", "loss_on") if getattr(self, name) != usual[name]]
        if cut and (self.target == "optimal_completion" or isinstance(self.target, targets.OptimalCompletion)):
            found.append(f"optimal completions are of whole rows, which {' and '.join(cut)} would cut: leave it out")
        if self.target != "gold" and type(getattr(self, "gradient", None)) is int:
            found.append(
                f"target={self.target!r} is of whole histories, and gradient={getattr(self, 'gradient', None)} scores "
                "them part by part: use gradient='full', 'checkpointed' or 'none'"
            )
        strange = [name for name, setting in self.scheduled() if not _is_number_or_schedule(setting)]
        found += [_no_number(name, getattr(self, name)) for name in strange]
        if not strange:
            try:
                self.check(1)
            except UserError as error:
                found += error.problems
        return found

    def check(self, steps: int) -> None:
        """Raise UserError where a parameter leaves its range at any step of a run of so many updates."""
        problems: list[str] = []
        for name, setting in self.scheduled():
            if isinstance(setting, Schedule):
                if setting.unit != "step":
                    continue  # how many samples or epochs a step is worth is known to the loop only
                low, at_low, high, at_high = extremes(setting, steps)
            else:
                low, at_low, high, at_high = float(setting), 0, float(setting), 0
            found = {in_range(name, setting, v, s, self.range_of(name)) for v, s in ((low, at_low), (high, at_high))}
            problems += sorted(problem for problem in found if problem)
        refuse(problems)


def checked_call(model: Any, batch: Any, step: Any, key: Any, unknown: Iterable[str] = ()) -> tuple[int, int]:
    """Step and key of a call whose arguments are all in order; a UserError for each that is not."""
    calls = isinstance(batch, Batch) and callable(model) and not isinstance(model, type)
    if calls and not unknown and type(step) is int and type(key) is int and 0 <= step < 2**63:
        return step, key
    problems = [
        *call_problems(model, batch),
        *(unknown_argument("the call", name, ("step", "key")) for name in unknown),
    ]
    for check, value in ((step_number, step), (key_number, key)):
        try:
            check(value)
        except UserError as error:
            problems += error.problems
    refuse(problems)
    return step_number(step), key_number(key)


def _draw_problems(draw: Any) -> list[str]:
    try:
        if not (isinstance(draw, str) and draw == "auto"):
            draws.resolve(draw)
    except UserError as error:
        return error.problems
    return []


def _is_number_or_schedule(setting: Any) -> bool:
    return isinstance(setting, int | float | Schedule) and not isinstance(setting, bool)


def _no_number(name: str, setting: Any) -> str:
    rule = f"{name} must be a number or a schedule"
    if isinstance(setting, TransformMethod):
        return (
            f"{rule}; {setting.name}(...) is a method already, as are those that fr.falling and fr.rising return, with "
            "a schedule inside: use it as it is, or only its schedule, e.g. fr.schedules.inverse_sigmoid(k=...)"
        )
    if isinstance(setting, type):
        return f"{rule}; got the class {setting.__name__}: use an object of it, {setting.__name__.lower()}(...)"
    if callable(setting):
        return (
            f"{rule}; got a function: use fr.schedules.linear, piecewise or another of them, or "
            "fr.schedules.table(values=[f(step) for step in range(steps)]), which can be compared and saved"
        )
    how = f": use float({name})" if hasattr(setting, "__float__") and not isinstance(setting, bool) else ""
    return f"{rule}; got {setting!r}{how}"


def zero_unused(batch: Batch) -> Batch:
    """The batch with zeros for NaN and infinity in the history where nothing counts and nothing is replaced.

    One of them in the padding of real values would reach every weight through the forward and its backward.
    """
    if batch.is_discrete:
        return batch
    unused = (~batch.mask & ~batch.replaceable)[..., None] & ~batch.history.isfinite()
    return batch.made(history=batch.history.masked_fill(unused, 0.0)) if bool(unused.any()) else batch


_HEADS = {"GaussianNLL": "gaussian", "StudentTNLL": "student_t", "Pinball": "quantiles"}
"""The head of each loss of a distribution, whose mean stands in for gold that is missing."""


def standing_in(batch: Batch, method: Any = None, key: int = 0) -> Replacement:
    """What stands in for the values that a history lacks, by a method's draw, or the mean of its objective's law."""
    draw: Any = getattr(method, "draw", "auto")
    if isinstance(draw, str) and draw == "auto":
        objective = type(objectives.resolve(getattr(method, "objective", "auto"), batch)).__name__
        draw = draws.Expected(_HEADS[objective]) if objective in _HEADS else draw
    return Replacement.of(batch, torch.ones_like(batch.mask), draws.fitting(draw, batch), key)


def gold_outputs(model: Any, batch: Batch, draw: str | draws.Draw = "auto", key: int = 0) -> tuple[Tensor, Tensor]:
    """Outputs for the gold history, and that history: where it lacks values, the model's own stand in.

    Args:
        model: called in the mode it is in, with a gradient where one is on.
        batch: its history gold.
        draw: of the values that stand in; "auto": as predicted.
        key: for draws with noise.
    """
    if batch.present is None or batch.missing is None:
        return forward(model, batch), batch.history
    replacement = Replacement.of(batch, torch.ones_like(batch.mask), draws.fitting(draw, batch), key)
    with repeatable(unwrap(model), batch):
        done = unroll(model, encode_once(model, batch), replacement, "auto")
    return cast(Tensor, done.outputs), done.history


def in_range(name: str, setting: Any, value: float, step: float, allowed: tuple[float, float]) -> str | None:
    """The problem with a parameter's value, or None.

    >>> in_range("teacher_forcing_ratio", 1.2, 1.2, 0, (0.0, 1.0))
    'teacher_forcing_ratio must lie in [0, 1]; got 1.2'
    """
    low, high = allowed
    if low <= value <= high and value < math.inf:
        return None
    if value == math.inf == high:
        return f"{name} must be finite; got {value:g}"
    got = f"got {value:g}" if isinstance(setting, float | int) else f"{setting!r} gives {value:g} at step {int(step)}"
    return f"{name} must lie in [{low:g}, {high:g}]; {got}"


def encode_once(model: Any, batch: Batch) -> Batch:
    """The batch with its context encoded, where roll-in and training may share the encoding."""
    if supports(model, Encoder) and not differs_by_mode(model):
        return model.encode(batch)
    return batch


@torch.no_grad()
def eval_logits(model: Any, batch: Batch) -> Tensor:
    """Return a model's outputs in evaluation mode, without gradient: (batch, time, ...)."""
    model = unwrap(model)
    with asking(model, batch):
        return gold_outputs(model, batch)[0]


@torch.no_grad()
def eval_logits_at(model: Any, batch: Batch, rows: Tensor, times: Tensor) -> Tensor:
    """The same at n positions only: (n, vocab or value); where the model can, only they reach the vocabulary."""
    inner: Any = unwrap(model)
    halves = len(rows) > 0 and bool(supports(inner, Split))
    with asking(inner, batch):
        if halves:
            return inner.head(inner.hidden(batch)[rows, times])
        return forward(inner, batch)[rows, times]


def bind_gate(gate: Any, model: Any, batch: Batch, ratio: float) -> tuple[Callable[[int], Tensor], int]:
    """From a key to a gate's ``keep``, and the number of model calls it took to be ready (1 for a confidence gate).

    Args:
        gate: a gate or its name.
        model: called for its confidence on gold history, in evaluation mode, where the gate needs that.
        batch: the batch, its history gold.
        ratio: the teacher forcing ratio; at 1 the model is not called.
    """
    named, gate = gate, gates.resolve(gate) if isinstance(gate, str) else gate
    if gates.is_soft(gate):
        raise UserError(
            f"gate={named!r} mixes gold and own values, which only scheduled_sampling does: use it, or another gate"
        )
    if not getattr(gate, "needs_confidence", False):
        return lambda key: gates.kept(gate(batch, ratio, key), batch), 0
    if ratio >= 1:
        return lambda key: torch.ones_like(batch.mask), 0
    confident: Any = gate
    return partial(confident, batch, ratio, confidence=gates.confidences(eval_logits(model, batch), batch)), 1


def add_gold_loss(method: TransformMethod, outcome: Outcome, gold: Tensor | Counted, batch: Batch) -> Outcome:
    """The outcome with ``gold_weight`` times the loss on gold history added.

    Args:
        method: has ``gold_weight``.
        outcome: of the fed batch.
        gold: the model's outputs on gold history, with graph.
        batch: the batch before mixing, its history gold.
    """
    total = method.finish(gold, batch, {}).total
    weight: float = getattr(method, "gold_weight")  # noqa: B009 - a field of some methods only
    return outcome.made(total=outcome.total + weight * total)


def kept_gold_loss(method: TransformMethod, outcome: Outcome, model: Any, batch: Batch) -> Outcome:
    """``add_gold_loss`` for a method that has made no training forward on gold; where nothing was replaced, it has."""
    batch = zero_unused(batch)
    if batch.present is not None and batch.missing is not None:
        filled = method.fill(model, batch, {}, 0, 0)
        more = {name: float(outcome.report[name]) + 1 for name in ("passes", "work") if name in outcome.report}
        outcome = outcome.made(report={**outcome.report, **more})
        return add_gold_loss(method, outcome, filled.outputs, batch)
    replaced = any_rank(model, float(outcome.report["replaced"]) > 0)
    # a gradient that is cut leaves the outputs without a graph
    done = outcome.computed
    if (
        not replaced
        and (done if isinstance(done, Tensor) else done.outputs).requires_grad == outcome.total.requires_grad
    ):
        return add_gold_loss(method, outcome, done, batch)
    more = {name: float(outcome.report[name]) + 1 for name in ("passes", "work") if name in outcome.report}
    outcome = outcome.made(report={**outcome.report, **more})
    return add_gold_loss(method, outcome, counted_forward(model, batch, getattr(method, "objective", "auto")), batch)


def gold_weight_problems(weight: Any) -> list[str]:
    """What is wrong with a ``gold_weight``, if anything."""
    number = isinstance(weight, int | float) and not isinstance(weight, bool)
    if number and 0 <= weight < float("inf"):
        return []
    return [f"gold_weight must be a number of 0 or more (0: the loss on gold history is not kept); got {weight!r}"]


GRADIENTS = ("auto", "none", "full", "checkpointed")


def gradient_problems(gradient: Any) -> list[str]:
    """What is wrong with a ``gradient`` argument, if anything."""
    count = isinstance(gradient, int) and not isinstance(gradient, bool) and gradient >= 1
    if gradient in GRADIENTS or count:
        return []
    rule = "gradient must be 'auto', 'none', 'full', 'checkpointed' or a number of positions k >= 1"
    return [f"{rule}; got {gradient!r}"]


def gradient_of(batch: Batch, gradient: str | int) -> str | int:
    """The policy for a batch: ``"auto"`` is none for ids and full for values.

    Raises:
        UserError: any other than none for ids.
    """
    if gradient == "auto":
        return "none" if batch.is_discrete else "full"
    if batch.is_discrete and gradient != "none":
        raise UserError(
            f"gradient={gradient!r} has no meaning for ids: a sampled symbol carries no gradient; use 'auto'"
        )
    return gradient


def rollout_with_grad(
    method: TransformMethod,
    model: Any,
    batch: Batch,
    replacement: Replacement,
    *,
    gradient: str | int,
    engine: Engine,
    off: bool,
) -> Outcome:
    """The outcome of a step whose roll-in is the forward: there is no second one.

    With nothing to replace it is the ordinary forward, bit for bit; a gradient that is cut is cut there too, except
    where the method is off at this step: that a batch happens to have no own entry is not enough, as a cut must not
    depend on how rows fall into micro-batches.

    Raises:
        UserError: what the model or the engine cannot do, also at a step that would not need it.
    """
    cut = gradient if isinstance(gradient, int) else None
    check_unroll(model, engine, cut)
    if not any_rank(model, replacement.number > 0) and (off or cut is None):
        done = RollIn(batch.history, outputs=forward(model, encode_once(model, batch)))
    else:
        with repeatable(unwrap(model), batch):
            if cut is None:
                more = gradient == "checkpointed"
                done = unroll(model, encode_once(model, batch), replacement, engine, recompute=more)
            else:
                objective: Any = getattr(method, "objective", "auto")
                used = objectives.resolve(objective, batch)
                done = unroll(model, batch, replacement, engine, cut_every=cut, objective=used)
    report = {**replacement_counts(batch, done.history, replacement.number), **done.report()}
    fed = batch.made(history=done.history, replaced=replacement.replaced)
    if done.total is not None and done.count is not None:
        return Outcome(done.total, done.count, cast(Tensor, done.outputs), fed, report)
    return method.finish(cast(Tensor, done.outputs), fed, report)


@torch.no_grad()
def soft_mix(model: Any, batch: Batch, replacement: Replacement, engine: Engine) -> RollIn:
    """The history of a soft mix, built in evaluation mode and without gradient."""
    using = resolve_engine(engine)
    if using.in_parts and using.name != "step":
        raise UserError(f"engine={engine!r} cannot blend gold and own: use 'auto', 'step' or 'jacobi'")
    model = unwrap(model)
    if not any_rank(model, replacement.number > 0):
        return RollIn(batch.history)
    with asking(model, batch):
        encoded = model.encode(batch) if supports(model, Encoder) else batch
        done = unroll(model, encoded, replacement, engine)
    passes, certified = max(1, done.passes), "fixed point" if done.exact else "no"
    return replace(done, passes=passes, work=float(passes), certified=certified)


_CHECKS: dict[str, Callable[[Any], list[str]]] = {
    "engine": check_engine,
    "gold_weight": gold_weight_problems,
    "gate": gates.check,
    "gradient": gradient_problems,
    "objective": objectives.check,
    "draw": _draw_problems,
    "loss_on": loss_on_problems,
    "target": targets.check,
}
"""What is wrong with an argument that several methods have."""
