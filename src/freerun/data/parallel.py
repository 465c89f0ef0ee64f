"""From line-aligned files to ParallelData: reading, filters, subwords, and the problems of all files at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from freerun.brief import brief
from freerun.data.loading import word_hash
from freerun.data.parallel_data import ParallelData
from freerun.data.parallel_files import Table, parallel_files, read_aligned
from freerun.data.subwords import Subwords
from freerun.data.text import counted, encoding_problems, first_problems
from freerun.errors import UserError, whole

__all__ = ["ParallelOptions", "load_parallel"]


@dataclass(frozen=True)
class ParallelOptions:
    """How parallel text is read, cut into subwords and filtered.

    Args:
        source: how names of source files end, and so what the source language is called.
        target: the same of the target.
        encoding: of the files, as Python names it.
        subwords: ids of the joint byte-pair encoding, the end symbol included; trained on the training text alone.
        max_length: subwords allowed on either side of a training pair (ends do not count); None: any number.
        too_long: "error" or "drop": what to do with longer training pairs. Dev and test are never shortened.
        empty: "error" or "drop": what to do with lines of which a side is blank, in every split.
        limit: number of training pairs, the first in the order of a hash of the source; None: all.

    Raises:
        UserError: a value is not allowed; all of them at once.
    """

    __repr__ = brief

    source: str = "en"
    target: str = "de"
    encoding: str = "utf-8"
    subwords: int = 6000
    max_length: int | None = None
    too_long: Literal["error", "drop"] = "error"
    empty: Literal["error", "drop"] = "error"
    limit: int | None = None

    def __post_init__(self) -> None:
        problems = [
            f"{name} must be at least {least}{' or left out' if least == 1 else ''}; got {value}"
            for name, value, least in (
                ("max_length", self.max_length, 1),
                ("limit", self.limit, 1),
                ("subwords", self.subwords, 258),
            )
            if value is not None and not (whole(value) or 0) >= least
        ]
        problems += [
            f'{name} must be "error" or "drop"; got {value!r}'
            for name, value in (("too_long", self.too_long), ("empty", self.empty))
            if value not in ("error", "drop")
        ]
        problems += [
            f'{name} must be how its files end, such as "en"; got {value!r}'
            for name, value in (("source", self.source), ("target", self.target))
            if not value or value.startswith(".")
        ]
        problems += encoding_problems(self.encoding)
        if problems:
            raise UserError(problems)


def load_parallel(
    path: str | Path | None = None,
    options: ParallelOptions | None = None,
    *,
    files: Mapping[str, Sequence[str | Path]] | None = None,
) -> ParallelData:
    """Sentences and their translations from text files, line n of one the translation of line n of the other.

    Text is taken as its words, separated by blanks, and is neither lower-cased nor tokenised here. Sources of dev or
    test that also stand in training are counted in the header and kept.

    Args:
        path: a folder that holds ``train*.en``, ``train*.de``, ``dev*`` (or ``valid*``, ``val*``) and ``test*``.
        options: languages, subwords, filters; the defaults of ``ParallelOptions`` if left out.
        files: "train", "dev" or "test" -> (source file, target file), instead of what the folder holds.

    Raises:
        UserError: files are missing, not of equal length or not text, lines are empty or too long: every file's first
            20 problems, by line. The package tokenizers is not installed.
    """
    options = options or ParallelOptions()
    found = parallel_files(path, files or {}, options.source, options.target)
    tables: dict[str, Table] = {}
    problems: list[str] = []
    for split, pair in found.items():
        tables[split], wrong = read_aligned(split, pair, options.encoding, options.empty)
        problems += wrong
    if problems:
        raise UserError(problems)
    train = tables["train"]
    if options.limit is not None:
        _limit(train, options.limit)
    subwords = Subwords.trained((text for line in train.lines for text in line[1:]), options.subwords)
    if options.max_length is not None:
        problems += _drop_long(train, subwords, options.max_length, options.too_long == "drop", found["train"])
    if problems:
        raise UserError(problems)
    name = f"{found['train'][0].parent if path is None else path}, {options.source} to {options.target}"
    splits = {split: table.sentences for split, table in tables.items()}
    return ParallelData(splits, subwords, name, {split: table.dropped for split, table in tables.items()})


def _limit(train: Table, limit: int) -> None:
    if len(train.lines) > limit:
        # by a hash, so that a smaller limit gives a part of a larger one's, spread over the file
        order = sorted(train.lines, key=lambda line: (word_hash((line[1],)), line[0]))
        train.keep(sorted(order[:limit]), f"beyond the limit of {limit:,}")


def _drop_long(train: Table, subwords: Subwords, allowed: int, drop: bool, files: tuple[Path, Path]) -> list[str]:
    texts = train.sentences
    lengths = [[len(ids) for ids in subwords.encode(side)] for side in (texts.sources, texts.targets)]
    fits = [max(pair) <= allowed for pair in zip(*lengths, strict=True)]
    if drop or all(fits):
        train.keep(
            [line for line, fit in zip(train.lines, fits, strict=True) if fit], f"longer than {allowed} subwords"
        )
        return [] if train.lines else [f"{train.origin}: nothing is left: every line is longer than {allowed} subwords"]
    problems: list[str] = []
    for file, found in zip(files, lengths, strict=True):
        long = [(line[0], length) for line, length in zip(train.lines, found, strict=True) if length > allowed]
        advice = f'max_length allows {allowed}; raise max_length or set too_long = "drop"'
        wrong = [f"{file}:{number}: the line has {length} subwords, {advice}" for number, length in long]
        if len(wrong) > 1:
            wrong.insert(0, f"{file}: {counted(len(wrong), 'line')} too long; longest {max(found)} subwords")
        problems += first_problems(str(file), wrong)
    return problems
