"""What a sequence costs against gold: by name, or by a function of two sequences of ids."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from freerun.arguments import nearest, refused
from freerun.errors import UserError
from freerun.metrics import text

Ids = Sequence[int]


class Cost(Protocol):
    """(ids of a sequence, ids of gold) -> what it costs, a finite number; the lower the better.

    Neither holds the end symbol or a prompt. A function with an attribute ``batched`` that is True is called once, with
    a list of sequences and a list of as many golds, and returns as many numbers.
    """

    def __call__(self, ids: Any, gold: Any, /) -> Any: ...


def edit_distance(ids: Ids, gold: Ids) -> float:
    """Insertions, deletions and substitutions between two sequences.

    >>> edit_distance([1, 2, 3], [1, 3])
    1.0
    """
    return float(text.edit_distance(ids, gold))


def bleu(ids: Ids, gold: Ids) -> float:
    """1 less BLEU of one sequence, in [0, 1]: orders 1 to 4 of which there are n-grams, exponential smoothing.

    It is 1 less a hundredth of sacreBLEU's ``sentence_bleu`` where each id is a token; between two empty ones it is 0.

    >>> round(bleu([1, 2, 3, 4], [1, 2, 3, 5]), 4), bleu([1, 2], [1, 2])
    (0.4054, 0.0)
    """
    if not ids and not gold:
        return 0.0
    sums = [len(ids), len(gold)]
    matches, totals = list[int](), list[int]()
    for n in range(1, 5):
        own, other = (Counter(tuple(each[i : i + n]) for i in range(len(each) - n + 1)) for each in (ids, gold))
        matches.append((own & other).total())
        totals.append(own.total())
    return float(1.0 - text.bleu([*sums, *matches, *totals], effective_order=True) / 100.0)


COSTS: dict[str, Callable[[Ids, Ids], float]] = {"edit_distance": edit_distance, "bleu": bleu}


def check(cost: Any) -> list[str]:
    """Return what is wrong with a ``cost`` argument, a line each.

    >>> check("blue")
    ["cost must be one of edit_distance, bleu or a function; got 'blue': did you mean 'bleu'?"]
    """
    if isinstance(cost, str) and cost in COSTS:
        return []
    hint = refused(cost, 2)
    if callable(cost) and not hint:
        return []
    near = nearest(cost, COSTS) if isinstance(cost, str) else None
    rule = f"cost must be one of {', '.join(COSTS)} or a function"
    return [f"{rule}; got {cost!r}{hint}{f': did you mean {near!r}?' if near else ''}"]


def costs_of(cost: str | Cost, sequences: Sequence[Ids], golds: Sequence[Ids]) -> Tensor:
    """(n,) float64: the cost of each sequence against its gold.

    Raises:
        UserError: the function returns something else than a finite number each.
    """
    function: Any = COSTS[cost] if isinstance(cost, str) else cost
    if getattr(function, "batched", False):
        found: Any = function(list(sequences), list(golds)) if sequences else ()
    else:
        found = [_number(function(list(ids), list(gold)), cost) for ids, gold in zip(sequences, golds, strict=True)]
    try:
        made = torch.as_tensor(found, dtype=torch.float64).detach().cpu()
    except (TypeError, ValueError, RuntimeError) as error:
        raise UserError(f"cost={cost!r} returned {type(found).__name__}, where numbers belong ({error})") from error
    if made.shape != (len(sequences),):
        raise UserError(f"cost={cost!r} returned shape {tuple(made.shape)}, where {(len(sequences),)} belongs")
    wrong = (~made.isfinite()).nonzero().flatten().tolist()
    if wrong:
        ids, gold, value = list(sequences[wrong[0]]), list(golds[wrong[0]]), float(made[wrong[0]])
        raise UserError(f"cost={cost!r} must return a finite number; of {ids} against {gold} it returned {value}")
    return made


def _number(value: Any, cost: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise UserError(
            f"cost={cost!r} must return a number for two sequences; it returned {type(value).__name__} ({error}). A "
            "function of lists of sequences has an attribute batched = True"
        ) from error
