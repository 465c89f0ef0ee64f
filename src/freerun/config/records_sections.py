"""Records: the section ``[data]`` of kind "records", and how answers to them are scored."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from freerun.config.ranged import number
from freerun.errors import UserError

__all__ = ["PARTS", "RecordsData", "RecordsEvaluate"]

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
    split_seed: int = number(0, low=0, high=2**63 - 1)
    source: str | None = None
    target: str | None = None
    prompt: str | None = None
    completion: str | None = None
    messages: str | None = None
    text: str | None = None
    prefix: str = ""
    chat: bool = False
    max_source: int | None = number(None, low=1)
    max_target: int | None = number(None, low=1)
    too_long: Literal["error", "drop", "cut"] = "error"
    empty: Literal["error", "drop"] = "error"
    separator: str = ","
    encoding: str = "utf-8"
    limit: int | None = number(None, low=1)

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
class RecordsEvaluate:
    """How answers are scored, on dev while training and on test at the end.

    Args:
        beams: 1: greedy; more: beam search of that width.
        length_penalty: as in ``generate``: 0 compares beams by log-probability; no effect with one beam.
        length: tokens that an answer may have, the end symbol included (None: those of the longest training answer, and
            ``length_margin`` more).
        length_margin: see ``length``.
        batch_size: records at a time; changes no number.
    """

    beams: int = number(1, low=1, high=100)
    length_penalty: float = number(0.0, low=0.0, high=100.0)
    length: int | None = number(None, low=1, high=100_000)
    length_margin: int = number(5, low=0, high=10_000)
    batch_size: int = number(16, low=1, semantic=False)
