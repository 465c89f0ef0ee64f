"""What a recipe can say: one frozen dataclass a section; names, types, ranges and defaults are read from here.

``[data]`` and ``[model]`` are in ``data_sections`` and ``model_sections``, ``[train]`` is
``freerun.training.TrainSettings`` and the parameters of a method are the fields of its class in
``freerun.methods.METHODS``: nothing is said twice.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal

from freerun.config.data_sections import DataSettings
from freerun.config.model_sections import ModelSettings
from freerun.config.ranged import number
from freerun.config.records_sections import RecordsEvaluate
from freerun.errors import UserError

if TYPE_CHECKING:
    from freerun.training import TrainSettings

__all__ = [
    "Arm", "CompareSettings", "EvaluateSettings", "MethodSettings", "Recipe", "SeriesEvaluate", "TextEvaluate",
]  # fmt: skip


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
class EvaluateSettings:
    """How models are run freely, on dev while training and on test at the end.

    Args:
        beams: 1: greedy; more: beam search of that width.
        length_penalty: as in ``generate``: 0 compares beams by log-probability, which favours short ones; up to 1
            evens that out. No effect with one beam.
        length_margin: free running stops so many symbols beyond the longest training target.
        batch_size: words scored at a time; changes no number.
    """

    beams: int = number(1, low=1, high=100)
    length_penalty: float = number(0.0, low=0.0, high=100.0)
    length_margin: int = number(5, low=0, high=10_000)
    batch_size: int = number(512, low=1, semantic=False)


@dataclass(frozen=True)
class TextEvaluate:
    """How a model of a text is scored, on dev while training and on test at the end.

    Args:
        block: characters of a block: each is scored teacher-forced, and said once by the model running freely.
        draw: how the model says them: "sample" from what it predicts, or "greedy".
        batch_size: windows and blocks at a time; changes no number.
    """

    block: int = number(256, low=16, high=100_000)
    draw: Literal["sample", "greedy"] = "sample"
    batch_size: int = number(256, low=1, semantic=False)


@dataclass(frozen=True)
class SeriesEvaluate:
    """How a forecaster is scored, on dev while training and on test at the end.

    Args:
        draw: what is fed back in free running: "auto", what the model says, or the mean of the distribution it says;
            "gaussian", "student_t" or "quantile_sample" is one draw from that.
        threshold: error, in standard deviations, that ends the valid time.
        batch_size: windows at a time; changes no number.
    """

    draw: Literal["auto", "point", "expected", "gaussian", "student_t", "quantile_sample"] = "auto"
    threshold: float = number(0.4, low=0.0)
    batch_size: int = number(256, low=1, semantic=False)

    def __post_init__(self) -> None:
        if not self.threshold > 0:
            raise UserError(f"`threshold` must be above 0; got {self.threshold}")


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
    workers: int = number(1, low=1, high=1024)
    arms: tuple[Arm, ...] = ()


@dataclass(frozen=True)
class Recipe:
    """All settings of a run; made by ``freerun.config.load_recipe``."""

    name: str
    seed: int
    data: DataSettings
    model: ModelSettings
    method: MethodSettings
    train: TrainSettings
    evaluate: EvaluateSettings | TextEvaluate | SeriesEvaluate | RecordsEvaluate
    compare: CompareSettings | None = None
