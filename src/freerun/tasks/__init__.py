"""The kinds of task: what config, command line and comparisons must know of pairs, texts, parallel text, series
and records.

To add one: a file like ``pairs_kind``, a line in ``TASKS``, its ``[data]`` section (whose ``family`` names it) in
``data_sections``, and its models' sections in ``model_sections``.
"""

from __future__ import annotations

from typing import Any

from freerun.errors import UserError
from freerun.tasks.base import RecipeTask, TargetFacts, TaskKind
from freerun.tasks.pairs import PairsKind, ParallelKind
from freerun.tasks.records import RecordsKind
from freerun.tasks.sections import (
    CmudictData,
    PairsData,
    ParallelData,
    RecordsData,
    SeriesSection,
    SystemSection,
    TextData,
    ToyData,
)
from freerun.tasks.series import SeriesKind
from freerun.tasks.text import TextKind

__all__ = ["TASKS", "RecipeTask", "TaskKind", "misfit", "task_of", "trained_on"]

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


def trained_on(data_kind: str, model: Any) -> TargetFacts:
    """What a method must know of a kind of data and of a ``[model]`` section.

    >>> trained_on("toy", None).head
    'point'
    """
    return TargetFacts(task_of(data_kind).values, getattr(model, "head", "point"))


DataSettings = CmudictData | PairsData | ToyData | TextData | ParallelData | SeriesSection | SystemSection | RecordsData


DATA_KINDS: dict[str, type[Any]] = {
    "cmudict": CmudictData,
    "pairs": PairsData,
    "toy": ToyData,
    "text": TextData,
    "parallel": ParallelData,
    "series": SeriesSection,
    "system": SystemSection,
    "records": RecordsData,
}
