"""What the loop asks of a task and of a method, and how two evaluations are compared."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, Protocol, TypeVar

from torch import Tensor
from torch.nn import Module

from freerun.brief import brief
from freerun.errors import UserError
from freerun.types import Batch, Outcome

__all__ = ["DataTask", "Evaluation", "Method", "Task", "full_name", "higher_is_better", "improves", "selected_score"]


@dataclass(frozen=True)
class Evaluation:
    """A model's scores on a split, fed gold and running freely.

    Args:
        teacher_forced: metric -> value, the model told the gold history.
        free_running: metric -> value, the model told its own outputs.
        items: one JSON-able record per item, for paired comparisons.
        curves: name -> numbers by lead time, for tasks that have them.
        shown: a few items whole, for figures.
    """

    __repr__ = brief

    teacher_forced: Mapping[str, float]
    free_running: Mapping[str, float]
    items: list[dict[str, Any]] = field(default_factory=list)
    curves: Mapping[str, list[float]] = field(default_factory=dict[str, list[float]])
    shown: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])


class Task(Protocol):
    """Data to train on and a way to score a model.

    ``lengths[i]`` is the length of training example i in positions; ``batch(indices, rows)`` the batch of these
    examples with their numbers in the update's global batch; ``evaluate`` scores a model on ``"dev"`` or
    ``"test"``; ``describe()`` is JSON-able, saved beside the weights (vocabularies and what else a user of
    them needs); ``fingerprint`` names the data.
    """

    @property
    def lengths(self) -> Sequence[int]: ...
    @property
    def fingerprint(self) -> str: ...
    def batch(self, indices: list[int], rows: Tensor) -> Batch: ...
    def evaluate(self, model: Module, split: str) -> Evaluation: ...
    def describe(self) -> dict[str, Any]: ...


D = TypeVar("D")
S = TypeVar("S")


class DataTask(Generic[D, S]):
    """Data to train on, and settings of how a model is scored on them: a ``Task`` but for ``evaluate``.

    Args:
        data: has ``lengths``, ``fingerprint``, ``coder``, ``batch(indices, rows)`` and ``header()``.
        settings: of the evaluation.
    """

    __repr__ = brief

    def __init__(self, data: D, settings: S) -> None:
        self.data = data
        self.settings = settings
        self._given: Any = data

    @property
    def lengths(self) -> list[int]:
        """Length of every training example, in positions."""
        return self._given.lengths

    @property
    def fingerprint(self) -> str:
        """The data's."""
        return self._given.fingerprint

    def batch(self, indices: Sequence[int], rows: Tensor) -> Batch:
        """The training batch of some examples; see the data's ``batch``."""
        return self._given.batch(indices, rows)

    def describe(self) -> dict[str, Any]:
        """What a user of the trained model needs: see the coder's ``describe``."""
        return self._given.coder.describe()

    def header(self) -> list[str]:
        """What the data are, in lines."""
        return self._given.header()


class Method(Protocol):
    """The part of a training method that the loop uses."""

    @property
    def name(self) -> str: ...
    def run(self, model: Any, batch: Batch, step: int, key: int = 0) -> Outcome: ...


def full_name(select: str) -> str:
    """The score a ``select`` means, with its side.

    >>> full_name("per"), full_name("teacher_forced_loss")
    ('free_running_per', 'teacher_forced_loss')
    """
    return select if select.startswith(("free_running_", "teacher_forced_")) else f"free_running_{select}"


def selected_score(evaluation: Evaluation, select: str) -> float:
    """The score that ``select`` names; a bare metric is a free-running one.

    Raises:
        UserError: there is no such score.

    >>> selected_score(Evaluation({"loss": 0.5}, {"per": 7.0}), "per")
    7.0
    >>> selected_score(Evaluation({"loss": 0.5}, {"per": 7.0}), "teacher_forced_loss")
    0.5
    """
    scores = {f"free_running_{name}": value for name, value in evaluation.free_running.items()}
    scores |= {f"teacher_forced_{name}": value for name, value in evaluation.teacher_forced.items()}
    name = full_name(select)
    if name not in scores:
        raise UserError(f"select = {select!r} names no score of this task; there are: {', '.join(sorted(scores))}")
    return float(scores[name])


def higher_is_better(score: str) -> bool:
    """Whether more of a score is better: accuracies, BLEU, chrF and the valid time; all others are errors.

    >>> higher_is_better("token_accuracy"), higher_is_better("free_running_bleu"), higher_is_better("per")
    (True, True, False)
    """
    return score.endswith(("accuracy", "bleu", "chrf", "valid_time"))


def improves(select: str, value: float, best: float | None) -> bool:
    """Whether the weights of a score are kept, given the best so far, see ``higher_is_better``; never those of NaN.

    Of equal scores the first is kept, but the last where nothing is right: at 0 of an accuracy, BLEU or chrF, or at
    100 % errors. A model that says nothing right yet is rather one that was trained than one that was not.

    >>> improves("per", 7.0, 8.0), improves("sequence_accuracy", 7.0, 8.0), improves("per", float("nan"), None)
    (True, False, False)
    >>> improves("bleu", 0.0, 0.0), improves("wer", 100.0, 100.0), improves("bleu", 7.0, 7.0)
    (True, True, False)
    """
    if not math.isfinite(value):
        return False
    if best is None:
        return True
    higher = higher_is_better(select)
    if value == best:
        return value == (0 if higher else 100)
    return value > best if higher else value < best
