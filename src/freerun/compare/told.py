"""What is told of a comparison, by the kind of its task."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from freerun.config.data_sections import DATA_KINDS
from freerun.config.kinds import task_of
from freerun.training.reported import PAIRS, Reported

__all__ = ["told"]


def told(recipe: Mapping[str, Any]) -> Reported:
    """Which scores a recipe's runs are compared in; those of pairs where it does not say what its data are.

    Args:
        recipe: the resolved recipe's tables, as results.json holds them.

    >>> told({"data": {"kind": "toy"}}).primary.name, told({"data": {"kind": "text"}}).primary.name
    ('free_running.per', 'free_running.trigram_divergence')
    """
    data = recipe.get("data")
    kind = data.get("kind") if isinstance(data, Mapping) else None
    return task_of(kind).reported() if kind in DATA_KINDS else PAIRS
