"""How a score of test items is computed from sums over them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

Array = Any


@dataclass(frozen=True)
class ItemReduction:
    """How a score is computed from sums over test items, which allows resampling of items.

    ``scale * sum(numerator) / sum(denominator)``; or ``pooled(sum(numerator))`` where the numerator of an item is a
    list of numbers; or the median of the numerators.

    Args:
        numerator: key of the items.
        denominator: key of the items; None: each item counts one.
        scale: 100 for percent.
        pooled: (..., numbers) sums -> (...) scores.
        median: True for the median, in which null counts as infinite.
    """

    numerator: str
    denominator: str | None = None
    scale: float = 100.0
    pooled: Callable[[Array], Array] | None = None
    median: bool = False

    def value(self, items: Sequence[Mapping[str, Any]]) -> float:
        """Return the score of test items; NaN where nothing is counted.

        >>> ItemReduction("errors", "length").value([{"errors": 1, "length": 3}, {"errors": 0, "length": 1}])
        25.0
        """
        parts = [item[self.numerator] for item in items]
        if self.median:
            return float(np.median([math.inf if part is None else part for part in parts]))
        if self.pooled is not None:
            return float(self.pooled(np.sum(parts, 0)))
        count = len(items) if self.denominator is None else sum(item[self.denominator] for item in items)
        return self.scale * sum(parts) / count if count else math.nan
