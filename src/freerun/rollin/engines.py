"""The engines by name, and which of them ``auto`` takes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from freerun.arguments import Arguments, is_number, nearest
from freerun.batch import Batch
from freerun.errors import UserError
from freerun.rollin.model import has, refuse_sharded, supports
from freerun.rollin.replacement import Plan
from freerun.types import Cached, Stepper

ENGINES = ("auto", "step", "jacobi", "window", "draft")


_MEANT = {"sequential": "step", "loop": "step", "recurrent": "step", "parallel": "jacobi", "cache": "window"}


@dataclass(frozen=True)
class Window(Arguments):
    """Exact: every row reads on over a cache up to its next ``width`` own entries; ``engine="window"`` by default.

    Args:
        width: own entries a row reads through in one call at a guess; 1 guesses none and reads every entry once.

    Raises:
        UserError: a width below 1.

    >>> Window(width=4)
    Window(width=4)
    """

    width: int = 1

    def __post_init__(self) -> None:
        if isinstance(self.width, bool) or not isinstance(self.width, int) or self.width < 1:
            raise UserError(f"width must be a whole number of own entries, at least 1; got {self.width!r}")


@dataclass(frozen=True)
class Draft(Arguments):
    """Exact: another model drafts the history, the forward that is differentiated checks it, wrong rows are redone.

    Args:
        model: what drafts: a dtype (a copy of the model in it, refreshed at every step), or any model of the same
            contract, on the same context.
        tolerance: the draft stops when a parallel pass changes no more than this share of the own entries.

    A copy is kept as long as the model lives, with its forward hooks; a hook that holds the model keeps both alive.

    Raises:
        UserError: ``tolerance`` outside [0, 1), or a model that is neither; at the step, targets that are values.

    >>> Draft()
    Draft(model=torch.bfloat16, tolerance=0.02)
    """

    model: Any = torch.bfloat16
    tolerance: float = 0.02

    def __post_init__(self) -> None:
        fine = is_number(self.tolerance) and 0 <= self.tolerance < 1
        problems = [] if fine else [f"tolerance must lie in [0, 1); got {self.tolerance!r}"]
        model = callable(self.model) and not isinstance(self.model, type)
        if not model and not (isinstance(self.model, torch.dtype) and self.model.is_floating_point):
            problems.append(
                f"model must be a floating-point dtype, e.g. torch.bfloat16, or a model; got {self.model!r}"
            )
        if problems:
            raise UserError(problems)

    def __repr__(self) -> str:
        shown = self.model if isinstance(self.model, torch.dtype) else type(self.model).__name__
        return f"Draft(model={shown}, tolerance={self.tolerance})"


Engine = str | int | Window | Draft
_DEFAULT: dict[str, Engine] = {"window": Window(), "draft": Draft()}


def check_engine(engine: Engine) -> list[str]:
    """The problems of an ``engine`` argument, if any."""
    if isinstance(engine, Window | Draft):
        return []
    if isinstance(engine, bool) or (isinstance(engine, int) and engine < 1):
        return [f"engine as a number is k >= 1 parallel passes (an approximation); got {engine}"]
    if not isinstance(engine, int) and not (isinstance(engine, str) and engine in ENGINES):
        meant = _MEANT.get(engine) or nearest(engine, ENGINES) if isinstance(engine, str) else None
        rule = f"engine must be one of {', '.join(ENGINES)}, a Window or Draft, or a number of passes"
        return [f"{rule}; got {engine!r}{f': did you mean {meant!r}?' if meant else ''}"]
    return []


def resolve_engine(engine: Engine) -> Engine:
    """``"window"`` and ``"draft"`` with their settings.

    >>> resolve_engine("window"), resolve_engine(2)
    (Window(width=1), 2)
    """
    return _DEFAULT.get(engine, engine) if isinstance(engine, str) else engine


def refuse_engine(model: Any, engine: Engine) -> None:
    """Refuse an engine that the model has not the methods for, by name.

    Raises:
        UserError: ``step`` without a Stepper, a window without a cache, anything but passes for sharded parameters.
    """
    engine = resolve_engine(engine)
    if engine == "step" or isinstance(engine, Window | Draft):
        name = engine if isinstance(engine, str) else type(engine).__name__.lower()
        instead = "use engine='auto' or 'jacobi' (exact), or a number of passes; or shard the run of the method"
        refuse_sharded(model, f"engine={name!r} calls parts of the model", instead)
    if engine == "step" and not has(model, Stepper):
        raise UserError(_lacking("step", model, "start, embed, step, output and select"))
    if isinstance(engine, Window) and not has(model, Cached):
        raise UserError(_lacking("window", model, "start, embed, step, output, select, head, advance and crop"))


def chosen_engine(model: Any, batch: Batch, plan: Plan, engine: Engine) -> Engine:
    """The engine to be used: ``auto`` decided.

    ``auto``: a model without the Stepper methods, or sharded, repeats parallel passes; a Stepper is stepped; over a
    cache the processor reads in windows, which compute every position once, and steps where more than three fifths of
    the entries are own and nearly every position is a call anyway (measured: ``docs/engines.md``). On an accelerator
    the calls cost, not the positions: parallel passes, and where more than three fifths are own windows of 8, or steps
    (argued, not measured).
    """
    engine = resolve_engine(engine)
    if engine != "auto":
        return engine
    dense = 5 * len(plan) > 3 * int(batch.replaceable.sum())
    processor = batch.history.device.type == "cpu"
    if not supports(model, Cached):
        return "step" if supports(model, Stepper) and (processor or dense) else "jacobi"
    if processor:
        return "step" if dense else Window()
    return Window(8) if dense else "jacobi"


def _lacking(engine: str, model: Any, methods: str) -> str:
    return (
        f"engine={engine!r} needs a model with {methods}; {type(model).__name__} lacks some: use engine='auto', or "
        "'jacobi' (exact parallel passes, for any forward)"
    )
