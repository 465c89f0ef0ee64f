"""What a model said by itself, measured without a reference: words, trigrams, repetition."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence

__all__ = ["divergence", "novelty", "repetition", "trigrams", "words"]

_WORD = re.compile(r"[^\W\d_]+(?:['\N{RIGHT SINGLE QUOTATION MARK}][^\W\d_]+)*")
_REPEATED = 10


def words(text: str) -> frozenset[str]:
    """The different words of a text: runs of letters, apostrophes inside them included.

    >>> sorted(words("Don't stop: don't!"))
    ["Don't", "don't", 'stop']
    """
    return frozenset(_WORD.findall(text))


def novelty(text: str, known: frozenset[str]) -> dict[str, int]:
    """How many whole words a piece of text has (``words``), and how many of them are not known (``novel``).

    A word at the very beginning or end may have been cut and does not count.

    Args:
        text: what was said.
        known: from ``words``, of the training text.

    >>> novelty("cut the dgo is blak cut", words("the dog is black"))
    {'novel': 2, 'words': 4}
    """
    whole = [found[0] for found in _WORD.finditer(text) if found.start() > 0 and found.end() < len(text)]
    return {"novel": sum(word not in known for word in whole), "words": len(whole)}


def trigrams(texts: Sequence[str]) -> Counter[str]:
    """How often each string of three characters stands in some texts.

    >>> trigrams(["abab"])
    Counter({'aba': 1, 'bab': 1})
    """
    return Counter(text[i : i + 3] for text in texts for i in range(len(text) - 2))


def divergence(first: Mapping[str, int], second: Mapping[str, int]) -> float:
    """Jensen-Shannon divergence of two counts, in bits, in [0, 1]; NaN where one of them is empty.

    ``JS(p, q) = (KL(p || m) + KL(q || m)) / 2, m = (p + q) / 2`` (Lin 1991). A small sample lies further from a large
    one of the same law than a large sample would: compare values of samples of one size only.

    Args:
        first: counts.
        second: counts.

    >>> divergence({"abc": 1}, {"abc": 5}), divergence({"abc": 1}, {"xyz": 1})
    (0.0, 1.0)
    """
    one, two = sum(first.values()), sum(second.values())
    if not one or not two:
        return math.nan
    total = 0.0
    for string in sorted(first.keys() | second.keys()):
        p, q = first.get(string, 0) / one, second.get(string, 0) / two
        total += sum(share * math.log2(2 * share / (p + q)) for share in (p, q) if share)
    return total / 2


def repetition(texts: Sequence[str]) -> float:
    """Of all strings of ten characters, the share in percent that stood earlier in the same text; NaN without any.

    >>> repetition(["0123456789" * 2]), repetition(["0123456789abcde"])
    (9.090909090909092, 0.0)
    """
    seen = again = 0
    for text in texts:
        strings = [text[i : i + _REPEATED] for i in range(len(text) - _REPEATED + 1)]
        seen += len(strings)
        again += len(strings) - len(set(strings))
    return 100 * again / seen if seen else math.nan
