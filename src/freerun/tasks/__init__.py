"""The kinds of task: pairs, parallel text, text, series, records, each with data, scores and outputs in one file.

To add one: a file with a ``DataTask``, and a line in ``TASKS``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from freerun.errors import UserError
from freerun.tasks.base import DataTask, TargetFacts
from freerun.tasks.batches import BatchTask, ValueBatchTask
from freerun.tasks.pairs import PairTask, TranslateTask
from freerun.tasks.records import RecordTask
from freerun.tasks.series import SeriesTask
from freerun.tasks.text import TextTask

__all__ = ["DATA_KINDS", "TASKS", "misfit", "task_of", "trained_on"]

TASKS: dict[str, type[DataTask]] = {
    "pairs": PairTask, "text": TextTask, "parallel": TranslateTask, "series": SeriesTask, "records": RecordTask,
    "batches of ids": BatchTask, "batches of values": ValueBatchTask,
}  # fmt: skip


DATA_KINDS: dict[str, type[Any]] = {kind: cls for task in TASKS.values() for kind, cls in task.data_sections.items()}


def task_of(data: Any) -> type[DataTask]:
    """The kind of task of a ``[data]`` section, or of its ``kind``; an unknown kind is a UserError.

    >>> task_of("toy").models[0], task_of("text").models
    ('recurrent', ('transformer_lm',))
    """
    kind = data if isinstance(data, str) else data["kind"] if isinstance(data, Mapping) else data.kind
    if kind == "python" and _targets(data) == "values":
        return ValueBatchTask
    task = next((task for task in TASKS.values() if kind in task.data_sections), None)
    if task is None:
        raise UserError(f"data kind must be one of {', '.join(DATA_KINDS)}; got {kind!r}")
    return task


def _targets(data: Any) -> Any:
    return data.get("targets") if isinstance(data, Mapping) else getattr(data, "targets", None)


def misfit(data_kind: str, model_kind: str) -> tuple[str, str] | None:
    """Problem and help where a kind of model cannot be trained on a kind of data.

    >>> misfit("toy", "recurrent") is None, misfit("toy", "transformer_lm")[1]
    (True, 'use kind = recurrent or transformer')
    """
    fitting = task_of(data_kind).models
    if model_kind in (*fitting, "python"):
        return None
    kinds = " or ".join(name for name in DATA_KINDS if model_kind in task_of(name).models)
    problem = f"a model of kind {model_kind} is trained on {kinds} data; got [data] kind {data_kind!r}"
    return problem, f"use kind = {' or '.join(fitting)}"


def trained_on(data: Any, model: Any) -> TargetFacts:
    """The facts about a kind of data and a ``[model]`` section that a method depends on.

    >>> trained_on("toy", None).head
    'point'
    """
    return TargetFacts(task_of(data).real_valued, getattr(model, "head", "point"))
