"""Generated tasks that a working model must learn: copy and reverse."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping

from freerun.data.pair_data import PairData
from freerun.data.pairs import Pairs
from freerun.data.vocabulary import Symbols
from freerun.errors import UserError, shown, whole
from freerun.keys import fold

__all__ = ["TOYS", "load_toy"]

_MOST = 10**7
LETTERS = "abcdefghijklmnopqrstuvwxyz"

TOYS: dict[str, Callable[[Symbols], Symbols]] = {
    "copy": lambda source: source,
    "reverse": lambda source: source[::-1],
}


def load_toy(
    task: str,
    *,
    symbols: int = 8,
    longest: int = 8,
    words: Mapping[str, int] | None = None,
    seed: int = 0,
) -> PairData:
    """Random words over a small alphabet, to be copied or reversed; no word is in two splits.

    Args:
        task: "copy" or "reverse".
        symbols: size of the alphabet, 2 to 26.
        longest: words have 2 to ``longest`` symbols.
        words: distinct words of each split; default 2,000 to train on, 200 for dev, 200 for test.
        seed: of the words.

    Raises:
        UserError: an argument is out of range, or there are not that many words; all problems at once.

    >>> data = load_toy("reverse", words={"train": 50, "dev": 5, "test": 5})
    >>> pairs = data.evaluation("dev")
    >>> len(pairs), pairs.references[0][0] == pairs.sources[0][::-1]
    (5, True)
    """
    counts = dict(words) if words is not None else {"train": 2000, "dev": 200, "test": 200}
    _check(task, symbols, longest, counts)
    generator = random.Random(fold(seed, "toy"))
    seen: dict[Symbols, None] = {tuple(LETTERS[:symbols]): None} if longest >= symbols else {}
    # every symbol must be seen in training: the alphabet is the first word, or cut into words
    for start in range(0, 0 if seen else symbols, longest - 1):
        seen[tuple((LETTERS[:symbols] * 2)[start : start + longest])] = None
    while len(seen) < sum(counts.values()):
        length = generator.randint(2, longest)
        seen[tuple(generator.choices(LETTERS[:symbols], k=length))] = None
    sources = iter(seen)
    splits: dict[str, Pairs] = {}
    for split in ("train", "dev", "test"):
        chosen = [next(sources) for _ in range(counts[split])]
        splits[split] = Pairs(chosen, [[TOYS[task](source)] for source in chosen], f"{task}, {split}")
    return PairData(splits, f"{task}: {symbols} symbols, words of 2 to {longest}, seed {seed}")


def _check(task: str, symbols: int, longest: int, counts: Mapping[str, int]) -> None:
    numbers = {"symbols": symbols, "longest": longest, **counts}
    problems = [
        f"{name} must be a whole number of at most {_MOST:,}; got {shown(number)}"
        for name, number in numbers.items()
        if whole(number) is None or number > _MOST
    ]
    if problems:
        raise UserError(problems)
    if task not in TOYS:
        problems.append(f"task must be one of {', '.join(TOYS)}; got {task!r}")
    if not 2 <= symbols <= len(LETTERS):
        problems.append(f"symbols must lie in [2, {len(LETTERS)}]; got {symbols}")
    if longest < 2:
        problems.append(f"longest must be at least 2; got {longest}")
    if set(counts) != {"train", "dev", "test"} or min(counts.values(), default=0) < 1:
        problems.append(f"words must give train, dev and test at least 1 each; got {dict(counts)}")
    if not problems:
        needed = sum(counts.values())
        possible = sum(symbols**length for length in range(2, longest + 1))
        # at more than half of all words, drawing until enough are distinct takes long
        if 2 * needed > possible:
            problems.append(
                f"{needed} words asked for; of the {possible} words of 2 to {longest} symbols over {symbols} "
                "at most half are given; raise symbols or longest, or ask for fewer words"
            )
        if counts["train"] < symbols:
            problems.append(f"train must hold at least {symbols} words, so that every symbol is seen")
    if problems:
        raise UserError(problems)
