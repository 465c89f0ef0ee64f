"""Phone and word error rates against several references; edit distances by rapidfuzz."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from freerun.errors import UserError

__all__ = ["nearest", "score"]

Symbols = tuple[str, ...]


def nearest(output: Sequence[str], references: Sequence[Sequence[str]]) -> tuple[int, int]:
    """Edit distance to the nearest reference and that reference's length; of equally near ones the first.

    >>> nearest(("K", "AE", "T"), [("K", "AA", "T", "S"), ("K", "AH", "T")])
    (1, 3)
    """
    from rapidfuzz.distance import Levenshtein

    found = [(Levenshtein.distance(output, reference), len(reference)) for reference in references]
    return min(found, key=lambda pair: pair[0])


def score(
    outputs: Sequence[Symbols], references: Sequence[Sequence[Symbols]]
) -> tuple[dict[str, float], list[dict[str, Any]]]:
    """PER and WER in percent, and every item's errors.

    WER is the share of words whose output equals none of the word's references. PER is the sum of the edit
    distances to the nearest reference over the sum of these references' lengths (so long words weigh more).

    Args:
        outputs: what was said, a tuple of symbols a word.
        references: all references of each word.

    Returns:
        ``{"per", "wer"}`` and a list of ``{"errors", "length", "wrong"}``: edit distance to the nearest
        reference, that reference's length, whether no reference is equal.

    Raises:
        UserError: nothing to score, lists of different lengths, words without reference or an empty one.

    >>> score([("AH",), ("K", "AE")], [[("EY",), ("AH",)], [("K", "AE", "T")]])[0]
    {'per': 25.0, 'wer': 50.0}
    """
    if len(outputs) != len(references) or not outputs:
        raise UserError(f"outputs and references must be as many, at least 1; got {len(outputs)}, {len(references)}")
    empty = [number for number, given in enumerate(references) if not given or not all(given)]
    if empty:
        raise UserError(f"every word needs references that are not empty; word {empty[0]} has {references[empty[0]]}")
    items: list[dict[str, Any]] = []
    for output, given in zip(outputs, references, strict=True):
        errors, length = nearest(output, given)
        items.append({"errors": errors, "length": length, "wrong": errors > 0})
    per = 100 * sum(item["errors"] for item in items) / sum(item["length"] for item in items)
    wer = 100 * sum(item["wrong"] for item in items) / len(items)
    return {"per": per, "wer": wer}, items
