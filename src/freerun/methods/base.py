"""What every method is: a frozen object from (model, batch, step, key) to an outcome."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import MISSING, dataclass, field, fields, replace
from typing import Any, ClassVar, Never, Protocol, runtime_checkable

import torch
from torch import Tensor

from freerun import draws, objectives
from freerun.arguments import Arguments, unknown_argument
from freerun.errors import UserError
from freerun.keys import key_number
from freerun.rollin import call_problems, can, differs_by_mode, explained_errors, forward
from freerun.schedules import Schedule, extremes, value_at
from freerun.transforms import loss_on, loss_on_problems, within_horizon
from freerun.types import Batch, Encoder, Outcome, step_number

__all__ = [
    "SHARED", "Citation", "Method", "TransformMethod", "asked", "change_report", "encode_once", "in_range",
    "without_nan",
]  # fmt: skip

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


@runtime_checkable
class Method(Protocol):
    """The contract with trainers: ``run`` gives a total and a count, calling it their quotient."""

    name: ClassVar[str]
    citation: ClassVar[Citation]

    def run(self, model: Any, batch: Batch, step: int, key: int = 0) -> Outcome: ...
    def __call__(self, model: Any, batch: Batch, step: int, key: int = 0) -> Tensor: ...
    def transform(self, model: Any, batch: Batch, step: int, key: int = 0) -> Batch: ...
    def check(self, steps: int) -> None: ...


@dataclass(frozen=True, repr=False)
class TransformMethod(Arguments):
    """transform + objective: change the history, then one ordinary forward. Subclasses say how to ``feed``.

    ``repr`` is the method's signature: its name and every argument that is not the default. Two choices are the same
    for all methods, and independent of who feeds and of where the gradient is cut:

    Args:
        horizon: how many entries of each row that may be replaced are used, from the first on; a number or a schedule
            (rounded down); None: all. See ``freerun.transforms.within_horizon``.
        loss_on: which steps carry loss: ``"all"`` of the mask, ``"last"``, ``"own"`` (a warm-up left out), or a weight
            for each lead time. See ``freerun.transforms.loss_on``.
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    citation: ClassVar[Citation]
    # the one kind of targets it is for, "symbols" or "values", and the method to use for the other
    only_for: ClassVar[tuple[str, str] | None] = None
    # parameter -> its closed range, for parameters that a schedule may drive
    ranges: ClassVar[dict[str, tuple[float, float]]] = SHARED

    horizon: float | Schedule | None = field(default=None, kw_only=True)
    loss_on: str | tuple[float, ...] = field(default="all", kw_only=True)

    def __repr__(self) -> str:
        shown = [f for f in fields(self) if f.repr and (getattr(self, f.name) != f.default or f.default is MISSING)]
        shown.sort(key=lambda f: f.kw_only is True)  # what all methods share comes last
        return f"{self.name}({', '.join(f'{f.name}={getattr(self, f.name)!r}' for f in shown)})"

    @property
    def own_loss(self) -> tuple[str, ...]:
        """What a trainer that computes the loss itself, on the history that is fed, would drop: a phrase each.

        A method whose total is another than its objective's on the fed batch says so here.
        """
        usual = {"horizon": None, "loss_on": "all", "gold_weight": 0.0}
        names = [name for name, value in usual.items() if getattr(self, name, value) != value]
        if getattr(self, "objective", "auto") not in ("auto", "cross_entropy", objectives.CrossEntropy()):
            names.append("objective")
        return tuple(f"{name} changes the loss" for name in names)

    @property
    def asks_model(self) -> bool:
        """Whether the model is called to make the history; sharded processes must then make equally many calls."""
        return True

    def feed(self, model: Any, batch: Batch, step: int, key: int) -> tuple[Batch, dict[str, float | str]]:
        """The batch with the history to be fed, and what to report."""
        raise TypeError(f"{type(self).__name__} must say how it feeds")  # a subclass forgot to

    # step has a default so that leaving it out is answered; it must be given
    def transform(self, model: Any, batch: Batch, step: int | None = None, key: int = 0, **unknown: Never) -> Batch:
        """The batch that is fed: its ``history`` is what the model is told."""
        step, key = asked(model, batch, step, key, unknown)
        with explained_errors(model):
            return self.fed(model, self.shaped(batch, step), step, key)

    def fed(self, model: Any, batch: Batch, step: int, key: int) -> Batch:
        """The batch that is fed, of one that has its horizon and its loss steps."""
        return self.feed(model, without_nan(batch), step, key)[0]

    def shaped(self, batch: Batch, step: int) -> Batch:
        """The batch cut to the horizon, with the loss on the steps asked for."""
        if self.horizon is not None:
            # a nominal 0.3 * 10 is 2.999...
            batch = within_horizon(batch, math.floor(self.value("horizon", step) + 1e-9))
        return loss_on(batch, self.loss_on)

    def run(self, model: Any, batch: Batch, step: int | None = None, key: int = 0, **unknown: Never) -> Outcome:
        """One step: transform, forward, objective."""
        step, key = asked(model, batch, step, key, unknown)
        with explained_errors(model):
            outcome = self.made(model, self.shaped(batch, step), step, key)
        if self.horizon is None:
            return outcome
        return replace(outcome, report={"horizon": self.value("horizon", step), **outcome.report})

    def made(self, model: Any, batch: Batch, step: int, key: int) -> Outcome:
        """One step on a batch that has its horizon and its loss steps: feed, forward, objective.

        The context is encoded once for roll-in and training where the model can and is the same function in
        both modes.
        """
        shared = encode_once(model, without_nan(batch))
        fed, report = self.feed(model, shared, step, key)
        return self.finish(forward(model, fed), fed.made(context=batch.context), report)

    def finish(self, outputs: Tensor, fed: Batch, report: dict[str, float | str]) -> Outcome:
        """The outcome of outputs for a fed batch."""
        total, count = objectives.scored(getattr(self, "objective", "auto"), outputs, fed)
        return Outcome(total, count, outputs, fed, report)

    def __call__(self, model: Any, batch: Batch, step: int | None = None, key: int = 0, **unknown: Never) -> Tensor:
        """The mean loss, ``total / count``."""
        return self.run(model, batch, step, key, **unknown).loss

    def scheduled(self) -> Iterator[tuple[str, Any]]:
        """The parameters that may be schedules, with their values."""
        for name in self.ranges:
            given = getattr(self, name)
            if given is not None or name not in SHARED:
                yield name, given

    def value(self, name: str, step: int) -> float:
        """A scheduled parameter's value at a step, checked to lie in its range."""
        given = getattr(self, name)
        try:
            value = value_at(given, step)
        except TypeError as error:
            raise UserError(f"{name}: {given!r} gives no number at step {step} ({error})") from error
        problem = in_range(name, given, value, step, self.ranges[name])
        if problem:
            raise UserError(problem)
        return value

    def problems(self) -> list[str]:
        """What is wrong with what methods share: objective, draw, loss steps, and ranges at the first step."""
        if isinstance(self.loss_on, list):  # frozen: a tuple can be hashed
            object.__setattr__(self, "loss_on", tuple(self.loss_on))
        found = objectives.check(getattr(self, "objective", "auto")) + _draw_problems(getattr(self, "draw", "auto"))
        found += loss_on_problems(self.loss_on)
        strange = [name for name, given in self.scheduled() if not _is_number_or_schedule(given)]
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
        for name, given in self.scheduled():
            if isinstance(given, Schedule):
                if given.unit != "step":
                    continue  # how many samples or epochs a step is worth is known to the loop alone
                low, at_low, high, at_high = extremes(given, steps)
            else:
                low, at_low, high, at_high = float(given), 0, float(given), 0
            found = {in_range(name, given, v, s, self.ranges[name]) for v, s in ((low, at_low), (high, at_high))}
            problems += sorted(problem for problem in found if problem)
        if problems:
            raise UserError(problems)


def asked(model: Any, batch: Any, step: Any, key: Any, unknown: Iterable[str] = ()) -> tuple[int, int]:
    """Step and key of a call whose arguments are all in order; a UserError for each that is not."""
    problems = [
        *call_problems(model, batch),
        *(unknown_argument("the call", name, ("step", "key")) for name in unknown),
    ]
    for check, value in ((step_number, step), (key_number, key)):
        try:
            check(value)
        except UserError as error:
            problems += error.problems
    if problems:
        raise UserError(problems)
    return step_number(step), key_number(key)


def _draw_problems(draw: Any) -> list[str]:
    try:
        if not (isinstance(draw, str) and draw == "auto"):
            draws.resolve(draw)
    except UserError as error:
        return error.problems
    return []


def _is_number_or_schedule(given: Any) -> bool:
    return isinstance(given, int | float | Schedule) and not isinstance(given, bool)


def _no_number(name: str, given: Any) -> str:
    rule = f"{name} must be a number or a schedule"
    if isinstance(given, TransformMethod):
        return (
            f"{rule}; {given.name}(...) is a method already, with a schedule inside: use it as it is, or its schedule "
            "alone, e.g. fr.schedules.inverse_sigmoid(k=...)"
        )
    if isinstance(given, type):
        return f"{rule}; got the class {given.__name__}: give an object of it, {given.__name__.lower()}(...)"
    if callable(given):
        return (
            f"{rule}; got a function: use fr.schedules.linear, piecewise or another of them, or "
            "fr.schedules.table(values=[f(step) for step in range(steps)]), which can be compared and saved"
        )
    how = f": use float({name})" if hasattr(given, "__float__") and not isinstance(given, bool) else ""
    return f"{rule}; got {given!r}{how}"


def without_nan(batch: Batch) -> Batch:
    """The batch with zeros for NaN and infinity in the history where nothing counts and nothing is replaced.

    One of them in the padding of real values would reach every weight through the forward and its backward.
    """
    if batch.is_discrete:
        return batch
    unused = (~batch.mask & ~batch.replaceable)[..., None] & ~batch.history.isfinite()
    return batch.made(history=batch.history.masked_fill(unused, 0.0)) if bool(unused.any()) else batch


def in_range(name: str, given: Any, value: float, step: float, allowed: tuple[float, float]) -> str | None:
    """The problem with a parameter's value, or None.

    >>> in_range("teacher_forcing_ratio", 1.2, 1.2, 0, (0.0, 1.0))
    'teacher_forcing_ratio must lie in [0, 1]; got 1.2'
    """
    low, high = allowed
    if low <= value <= high and value < math.inf:
        return None
    if value == math.inf == high:
        return f"{name} must be finite; got {value:g}"
    said = f"got {value:g}" if isinstance(given, float | int) else f"{given!r} gives {value:g} at step {int(step)}"
    return f"{name} must lie in [{low:g}, {high:g}]; {said}"


def encode_once(model: Any, batch: Batch) -> Batch:
    """The batch with its context encoded, where roll-in and training may share the encoding."""
    if can(model, Encoder) and not differs_by_mode(model):
        return model.encode(batch)
    return batch


def change_report(batch: Batch, history: Tensor, replaced: int) -> dict[str, float | str]:
    """Counts of a step: entries eligible, replaced, and replaced by something else than gold.

    For values also ``squared_deviation``: summed over entries, the mean over channels of (fed - gold) squared.
    """
    changed = history != batch.history
    report: dict[str, float | str] = {"eligible": int(batch.replaceable.sum()), "replaced": replaced}
    if changed.dim() == 3:
        changed = changed.any(-1)
        far = (history.detach() - batch.history.detach())[changed].double()
        report["squared_deviation"] = float(far.square().mean(-1).sum())
    return {**report, "disagreeing": int(torch.count_nonzero(changed))}
