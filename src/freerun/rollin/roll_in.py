"""Roll-ins by one of the engines: every exact engine returns the same entries, and ``auto`` takes the cheapest."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar

import torch

from freerun.arguments import Arguments, nearest
from freerun.batch import Batch
from freerun.rollin.draft import Draft
from freerun.rollin.jacobi import Jacobi, Passes
from freerun.rollin.model import any_rank, asking, refuse_sharded, stepping, supports, unwrap, warn_price, warn_wrapped
from freerun.rollin.replacement import Replacement, RollIn
from freerun.rollin.step import Stepwise
from freerun.rollin.window import Window
from freerun.types import Cached, Encoder, Planned, Stepper


@dataclass(frozen=True)
class Auto(Arguments):
    """The cheapest exact engine for a model and a ratio; ``engine="auto"``."""

    name: ClassVar[str] = "auto"
    in_parts: ClassVar[bool] = False

    def choose(self, model: Any, batch: Batch, replacement: Replacement) -> Any:
        """The engine.

        A model without the Stepper methods, or sharded, repeats parallel passes; a Stepper is stepped; over a cache the
        processor reads in windows, which compute every position once, and steps where more than three fifths of the
        entries are own and nearly every position is a call anyway; with four rows or fewer a call of windows that are
        laid out beforehand costs no more than one of steps, and with one or two rows and noise for each symbol parallel
        passes are fewer calls (measured: ``docs/engines.md``). On an accelerator the calls cost, not the positions:
        parallel passes, and where more than three fifths are own windows of 8, or steps (argued, not measured).
        """
        dense = 5 * replacement.number > 3 * int(batch.replaceable.sum())
        processor = batch.history.device.type == "cpu"
        if not supports(model, Cached):
            return _STEP if (processor or dense) and supports(model, Stepper) else _JACOBI
        if processor:
            if batch.size <= 2 and not dense and replacement.draw.noise_size(2) > 1:
                return _JACOBI
            few = batch.size <= 4 and supports(model, Planned)
            return _STEP if dense and not few else _WINDOW
        return Window(8) if dense else _JACOBI


ENGINES: dict[str, type[Any]] = {"auto": Auto, "step": Stepwise, "jacobi": Jacobi, "window": Window, "draft": Draft}
_STEP, _JACOBI, _WINDOW = Stepwise(), Jacobi(), Window()
_MEANT = {"sequential": "step", "loop": "step", "recurrent": "step", "parallel": "jacobi", "cache": "window"}

Engine = str | int | Window | Draft


def check_engine(engine: Any) -> list[str]:
    """The problems of an ``engine`` argument, if any."""
    if isinstance(engine, tuple(ENGINES.values())):
        return []
    if isinstance(engine, bool) or (isinstance(engine, int) and engine < 1):
        return [f"engine as a number is k >= 1 parallel passes (an approximation); got {engine}"]
    if not isinstance(engine, int) and not (isinstance(engine, str) and engine in ENGINES):
        meant = _MEANT.get(engine) or nearest(engine, ENGINES) if isinstance(engine, str) else None
        rule = f"engine must be one of {', '.join(ENGINES)}, a Window or Draft, or a number of passes"
        return [f"{rule}; got {engine!r}{f': did you mean {meant!r}?' if meant else ''}"]
    return []


def resolve_engine(engine: Engine) -> Any:
    """The engine of a name or of a number of passes; an engine as it is.

    >>> resolve_engine("window"), resolve_engine(2)
    (Window(width=1), Passes(k=2))
    """
    return _named(engine) if isinstance(engine, str | int) else engine


@lru_cache
def _named(engine: str | int) -> Any:
    return Passes(engine) if isinstance(engine, int) else ENGINES[engine]()


@torch.no_grad()
def roll_in(model: Any, batch: Batch, replacement: Replacement, engine: Engine = "auto") -> RollIn:
    """Build the mixed history without gradient, in evaluation mode.

    With every engine but a number the entries are those of the sequential loop; an integer k is the approximation by
    k parallel passes (k = 1: Mihaylova and Martins 2019).

    Args:
        model: any model; each submodule's mode is restored afterwards. What is in ``DistributedDataParallel`` or
            ``torch.compile`` is taken out of it. One with sharded parameters is called equally often by all processes.
        batch: the batch, its history gold.
        replacement: the entries to replace, and their noise.
        engine: a name in ``ENGINES``, an engine, or a number of passes.

    Raises:
        UserError: the model lacks what the engine needs, couples the rows of a batch, or does not settle.
    """
    wrapper, model, using = model, unwrap(model), resolve_engine(engine)
    if using.in_parts:
        instead = "use engine='auto' or 'jacobi' (exact), or a number of passes; or shard the run of the method"
        refuse_sharded(model, f"engine={using.name!r} calls parts of the model", instead)
    choosing = isinstance(using, Auto)
    steps = stepping(model) if hasattr(type(model), "stepper") else model
    if not choosing:
        using.check(steps)
    if hasattr(type(model), "generation_rules"):
        replacement = replacement.ruled(model, batch)
    if not any_rank(model, replacement.number > 0):
        return RollIn(batch.history)
    if wrapper is not model:
        warn_wrapped(wrapper)
    if choosing:
        using = using.choose(steps, batch, replacement)
    with asking(model, batch):
        encoded = model.encode(batch) if supports(model, Encoder) else batch
        done = using.roll_in(steps, batch, encoded, replacement)
    if choosing and done.work > 6 and not supports(steps, Stepper):
        # a forward without gradient costs about a third of one with it and its backward
        remedy = "Own entries take parallel passes: write its step as fr.StepModel, or wrap it (docs/your-model.md)"
        warn_price(model, round(1 + done.work / 3), remedy)
    return done
