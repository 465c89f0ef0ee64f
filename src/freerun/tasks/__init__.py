"""The kinds of task, each with data, scores and outputs in one file: pairs, text, series, levels, labels, records ...

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
from freerun.tasks.symbols import LabelTask, LevelTask
from freerun.tasks.text import TextTask

__all__ = ["DATA_KINDS", "TASKS", "misfit", "task_of", "trained_on"]

TASKS: dict[str, type[DataTask]] = {
    "pairs": PairTask, "text": TextTask, "parallel": TranslateTask, "series": SeriesTask, "records": RecordTask,
    "levels": LevelTask, "labels": LabelTask,
    "batches of ids": BatchTask, "batches of values": ValueBatchTask,
}  # fmt: skip


DATA_KINDS: dict[str, type[Any]] = {kind: cls for task in TASKS.values() for kind, cls in task.data_sections.items()}


def task_of(data: Any) -> type[DataTask]:
    """The kind of task of a ``[data]`` section, or of its ``kind``; an unknown kind is a UserError.

    >>> task_of("toy").models[0], task_of("text").models
    ('recurrent', ('transformer_lm',))
    """
    kind = data if isinstance(data, str) else data["kind"] if isinstance(data, Mapping) else data.kind
    if kind == "python" and _value_of(data, "targets") == "values":
        return ValueBatchTask
    if kind in SeriesTask.data_sections and _value_of(data, "levels") not in (None, "none"):
        return LevelTask
    task = next((task for task in TASKS.values() if kind in task.data_sections), None)
    if task is None:
        raise UserError(f"data kind must be one of {', '.join(DATA_KINDS)}; got {kind!r}")
    return task


def _value_of(data: Any, key: str) -> Any:
    return data.get(key) if isinstance(data, Mapping) else getattr(data, key, None)


def misfit(data: Any, model_kind: str) -> tuple[str, str] | None:
    """Problem and help where a kind of model cannot be trained on a ``[data]`` section, or on a kind of data.

    >>> misfit("toy", "recurrent") is None, misfit("toy", "transformer_lm")[1]
    (True, 'use kind = recurrent or transformer')
    """
    fitting = task_of(data).models
    if model_kind in (*fitting, "python"):
        return None
    kinds = " or ".join(name for name in DATA_KINDS if model_kind in task_of(name).models) + " data"
    kinds += ", or series with levels" if model_kind in LevelTask.models else ""
    levels = _value_of(data, "levels") if isinstance(data, Mapping) else None
    got = f"{data if isinstance(data, str) else data['kind']!r}" + (f" with levels = {levels}" if levels else "")
    problem = f"a model of kind {model_kind} is trained on {kinds}; got [data] kind {got}"
    return problem, f"use kind = {' or '.join(fitting)}"


def trained_on(data: Any, model: Any) -> TargetFacts:
    """The facts about a kind of data and a ``[model]`` section that a method depends on.

    >>> trained_on("toy", None).head
    'point'
    """
    return TargetFacts(task_of(data).real_valued, getattr(model, "head", "point"))
