"""Whose loss a trainer's step takes: the method's, token-exact, or the trainer's own on swapped ids."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from freerun.errors import UserError
from freerun.methods.base import change_report
from freerun.objectives import CrossEntropy
from freerun.types import Batch

__all__ = ["LOSSES", "chosen_loss", "smoothed", "swap", "swap_problems"]

LOSSES = ("auto", "method", "trainer")
"""What ``loss_from`` may be."""


def chosen_loss(asked: str, *, own: bool, function: bool, router: bool) -> str:
    """``"method"`` or ``"trainer"``.

    Args:
        asked: one of ``LOSSES``.
        own: the trainer has a ``compute_loss`` of its own (TRL's have).
        function: it was given a ``compute_loss_func``.
        router: the model adds a loss on its routing to that on its labels.

    Raises:
        UserError: not one of them, or ``"method"`` where a function was given that would never be called.

    >>> chosen_loss("auto", own=True, function=False, router=False)
    'trainer'
    """
    if asked not in LOSSES:
        raise UserError(f"loss_from must be one of {', '.join(LOSSES)}; got {asked!r}")
    if asked == "method" and function:
        raise UserError(
            "loss_from='method' never calls compute_loss_func: leave one of them out. With loss_from='auto' the "
            "function is given the outputs on the method's history"
        )
    if asked != "auto":
        return asked
    return "trainer" if own or function or router else "method"


def smoothed(method: Any, label_smoothing: float) -> Any:
    """The method with the trainer's ``label_smoothing_factor`` in its cross-entropy.

    Raises:
        UserError: the method has another objective, or a smoothing of its own.

    >>> from freerun.methods import teacher_forcing
    >>> smoothed(teacher_forcing(), 0.1)
    teacher_forcing(objective=CrossEntropy(label_smoothing=0.1))
    """
    if not label_smoothing:
        return method
    objective = getattr(method, "objective", None)
    if (isinstance(objective, str) and objective in ("auto", "cross_entropy")) or objective == CrossEntropy():
        return replace(method, objective=CrossEntropy(label_smoothing))
    raise UserError(
        f"label_smoothing_factor={label_smoothing} in the arguments and objective={objective!r} in the method are two "
        "losses: set label_smoothing_factor=0, or leave the method's objective out"
    )


def swap_problems(method: Any) -> list[str]:
    """What of a method is lost where only ids are swapped and the loss is the trainer's."""
    unknown = "its class does not declare own_loss, the phrases that say what of its loss is its own (): nothing"
    problems = [f"{method!r}: {lost}" for lost in getattr(method, "own_loss", (unknown,))]
    if not problems:
        return []
    return [
        *problems,
        "the loss of this trainer is its own (its compute_loss, compute_loss_func, or the model's loss on routing): "
        "only the ids that the model is told are the method's. Leave these arguments out, or, where the trainer's is "
        "plain cross-entropy, set loss_from = 'method' in your class",
    ]


def swap(method: Any, model: Any, batch: Batch, step: int, key: int) -> tuple[Batch, dict[str, float | str]]:
    """The batch that a method feeds, and its report."""
    if hasattr(method, "feed"):
        return method.feed(model, batch, step, key)
    fed: Batch = method.transform(model, batch, step, key)
    changed = int((fed.history != batch.history).sum())
    return fed, change_report(batch, fed.history, changed)
