"""The kinds of task: what config, command line and comparisons must know of pairs, texts, parallel text, series
and records.

To add one: a file like ``pairs_kind``, a line in ``TASKS``, its ``[data]`` section (whose ``family`` names it) in
``data_sections``, and its models' sections in ``model_sections``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from freerun.config.data_sections import DATA_KINDS, DataFile
from freerun.config.pairs_kind import PairsKind
from freerun.config.parallel_kind import ParallelKind
from freerun.config.records_kind import RecordsKind
from freerun.config.series_kind import SeriesKind
from freerun.config.text_kind import TextKind
from freerun.config.trained import Trained
from freerun.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Module

    from freerun.training import Evaluation
    from freerun.training.reported import Reported
    from freerun.types import Batch

__all__ = ["TASKS", "RecipeTask", "TaskKind", "misfit", "task_of", "trained_on"]


class RecipeTask(Protocol):
    """A ``Task`` of the training loop that also says what its data are, line by line."""

    @property
    def lengths(self) -> Sequence[int]: ...
    @property
    def fingerprint(self) -> str: ...
    def batch(self, indices: list[int], rows: Tensor) -> Batch: ...
    def evaluate(self, model: Module, split: str) -> Evaluation: ...
    def describe(self) -> dict[str, Any]: ...
    def header(self) -> list[str]: ...


class TaskKind(Protocol):
    """What a kind of task brings with it; nothing heavy is imported before a method is called."""

    @property
    def models(self) -> tuple[str, ...]:
        """Kinds of model that fit; the first is the usual one."""
        ...

    @property
    def evaluate(self) -> type[Any]:
        """Its ``[evaluate]`` section."""
        ...

    @property
    def select(self) -> str:
        """The dev score that the best weights are chosen by, where a recipe does not say."""
        ...

    @property
    def selectable(self) -> tuple[str, ...]:
        """What ``train.select`` may name: the scores of an evaluation of which more, or less, is always better."""
        ...

    @property
    def aligned(self) -> bool:
        """Whether line n of the answers must belong to line n of an input, so that none may be left out."""
        ...

    @property
    def needs_training_data(self) -> bool:
        """Whether a score on any file asks for the data that the run was trained on, too."""
        ...

    def reported(self) -> Reported:
        """Which scores are compared, and how they are called."""
        ...

    @property
    def values(self) -> bool:
        """Whether its targets are real values, not ids."""
        ...

    @property
    def tables(self) -> bool:
        """Whether what it answers is a table, a file of its own, and not a line."""
        ...

    def load(self, settings: Any, model: Any) -> Any:
        """The data of a ``[data]`` section, in the shape that the model of a ``[model]`` section reads."""
        ...

    def make(self, data: Any, settings: Any, items: int | None) -> RecipeTask:
        """The task of the training loop: ``settings`` is the ``[evaluate]`` section, ``items`` are scored of dev."""
        ...

    def sizes(self, data: Any) -> tuple[int, ...]:
        """Vocabulary sizes, or numbers of channels: the first arguments of a model's class."""
        ...

    def positions(self, data: Any, settings: Any) -> tuple[int, str]:
        """How many positions a model that has so many and no more needs for the data, and what needs them, in words.

        ``settings`` is the ``[evaluate]`` section.
        """
        ...

    def frequencies(self, data: Any) -> tuple[float, ...]:
        """How often each target symbol stands in the training targets; () where there are no symbols."""
        ...

    def coder(self, description: Mapping[str, Any]) -> Any:
        """What ``Task.describe`` told of, from a saved model."""
        ...

    def score(
        self, model: Module, coder: Any, settings: Any, data: Any, file: DataFile | None
    ) -> tuple[dict[str, Any], Evaluation]:
        """Scores on a file or on the own test split, and what they were taken on, for people to read."""
        ...

    def answer(
        self, model: Module, coder: Any, settings: Any, lines: Sequence[str], places: Sequence[str]
    ) -> list[str]:
        """What the model says to each line of an input, running freely: a line each.

        Where ``tables`` is true the one line is the path of a table, and the answer is a table too.
        """
        ...

    def trial_batch(self, coder: Any, rows: int) -> Batch:
        """A small made-up batch of its symbols, of different lengths, to try a model on."""
        ...


TASKS: dict[str, TaskKind] = {
    "pairs": PairsKind(), "text": TextKind(), "parallel": ParallelKind(), "series": SeriesKind(),
    "records": RecordsKind(),
}  # fmt: skip


def task_of(data: Any) -> TaskKind:
    """The kind of task of a ``[data]`` section, or of its ``kind``.

    Raises:
        UserError: there is no such kind.

    >>> task_of("toy").models[0], task_of("text").models
    ('recurrent', ('transformer_lm',))
    """
    cls = DATA_KINDS.get(data) if isinstance(data, str) else type(data)
    if cls is None:
        raise UserError(f"data kind must be one of {', '.join(DATA_KINDS)}; got {data!r}")
    return TASKS[cls.family]


def misfit(data_kind: str, model_kind: str) -> tuple[str, str] | None:
    """Problem and help where a kind of model cannot be trained on a kind of data.

    >>> misfit("toy", "recurrent") is None, misfit("toy", "transformer_lm")[1]
    (True, 'use kind = recurrent or transformer')
    """
    fitting = task_of(data_kind).models
    if model_kind in fitting:
        return None
    trained_on = [name for name in DATA_KINDS if model_kind in task_of(name).models]
    problem = (
        f"a model of kind {model_kind} is trained on {' or '.join(trained_on)} data; got [data] kind {data_kind!r}"
    )
    return problem, f"use kind = {' or '.join(fitting)}"


def trained_on(data_kind: str, model: Any) -> Trained:
    """What a method must know of a kind of data and of a ``[model]`` section.

    >>> trained_on("toy", None)
    Trained(values=False, head='point')
    """
    return Trained(task_of(data_kind).values, getattr(model, "head", "point"))
