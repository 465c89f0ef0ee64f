"""What a recipe can say: one frozen dataclass a section; names, types, ranges and defaults are read from here.

``[data]`` and ``[model]`` are in ``data_sections`` and ``model_sections``, ``[train]`` is
``freerun.training.TrainSettings`` and the parameters of a method are the fields of its class in
``freerun.methods.METHODS``: nothing is said twice.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from freerun.arguments import number_field
from freerun.recipes.model_sections import ModelSettings
from freerun.tasks import DataSettings
from freerun.tasks.pairs import PairsEvaluate
from freerun.tasks.records import RecordsEvaluate
from freerun.tasks.series import SeriesEvaluate
from freerun.tasks.text import TextEvaluate

if TYPE_CHECKING:
    from freerun.training import TrainSettings


@dataclass(frozen=True)
class MethodSettings:
    """A method by name, with its parameters as the recipe writes them (numbers, words, inline tables).

    Args:
        name: a name in ``freerun.methods.METHODS``.
        parameters: plain TOML values; ``{schedule = "linear", ...}``, ``{draw = "sample", ...}`` and
            ``{gate = "every", ...}`` become objects when the method is built.
    """

    name: str
    parameters: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))

    def table(self) -> dict[str, Any]:
        """As a TOML table: the name and the parameters side by side."""
        return {"name": self.name, **self.parameters}


@dataclass(frozen=True)
class Arm:
    """One method of a comparison, and the name it goes by in tables and folders."""

    method: MethodSettings
    label: str


@dataclass(frozen=True)
class CompareSettings:
    """What ``freerun compare`` runs: every arm with every seed.

    Args:
        seeds: one run of each arm for each; the same seed gives the same initial weights and data order.
        workers: runs at a time.
        arms: at least one; those matched to another arm run after it.
    """

    seeds: tuple[int, ...] = (0,)
    workers: int = number_field(1, low=1, high=1024)
    arms: tuple[Arm, ...] = ()


@dataclass(frozen=True)
class Recipe:
    """All settings of a run; made by ``freerun.recipes.load_recipe``."""

    name: str
    seed: int
    data: DataSettings
    model: ModelSettings
    method: MethodSettings
    train: TrainSettings
    evaluate: PairsEvaluate | TextEvaluate | SeriesEvaluate | RecordsEvaluate
    compare: CompareSettings | None = None
