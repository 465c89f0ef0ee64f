"""Errors of ids by position, and after an error: what only gold is needed for."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from freerun.batch_problems import must_be
from freerun.brief import brief
from freerun.errors import UserError

__all__ = ["AfterError", "after_error", "first_error", "position_errors"]


@dataclass(frozen=True)
class AfterError:
    """How often an entry is wrong, by whether the one before it was.

    Args:
        after_wrong: share wrong where the entry before is wrong; None where there is no such entry.
        after_right: share wrong where the entry before is right.
        wrong: entries of which the one before is wrong.
        right: entries of which the one before is right.
    """

    __repr__ = brief

    after_wrong: float | None
    after_right: float | None
    wrong: int
    right: int

    @property
    def ratio(self) -> float | None:
        """after_wrong / after_right: 1 where errors do not draw errors after them."""
        if self.after_wrong is None or not self.after_right:
            return None
        return self.after_wrong / self.after_right


def after_error(wrong: Tensor, mask: Tensor) -> AfterError:
    """``P(wrong[t] | wrong[t-1])`` and ``P(wrong[t] | right[t-1])`` over rows and positions.

    Teacher-forced it says whether errors come in clusters, as hard places do; free-running also whether an error makes
    the next one likelier. What free running adds is the difference of the two.

    Args:
        wrong: (rows, time) bool: entries that differ from gold.
        mask: (rows, time) bool: entries that count; a pair counts where both do.

    Raises:
        UserError: shapes that do not fit.

    >>> after_error(torch.tensor([[True, True, False, False]]), torch.ones(1, 4, dtype=torch.bool))
    AfterError(after_wrong=0.5, after_right=0.0, wrong=2, right=1)
    """
    _check(wrong, mask)
    both = mask[:, 1:] & mask[:, :-1]
    before, now = wrong[:, :-1], wrong[:, 1:]
    after = (both & before, both & ~before)
    counts = [int(each.sum()) for each in after]
    shares = [int((each & now).sum()) / count if count else None for each, count in zip(after, counts, strict=True)]
    return AfterError(shares[0], shares[1], *counts)


def position_errors(wrong: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Share of wrong entries at each position, (time,), NaN where no row has one; and how many rows have one, (time,).

    Args:
        wrong: (rows, time) bool.
        mask: (rows, time) bool: entries that count.

    >>> position_errors(torch.tensor([[True, False], [False, True]]), torch.tensor([[True, True], [True, False]]))
    (tensor([0.5000, 0.0000], dtype=torch.float64), tensor([2, 1]))
    """
    _check(wrong, mask)
    left = mask.sum(0)
    return (wrong & mask).sum(0).double() / left, left


def first_error(wrong: Tensor, mask: Tensor) -> Tensor:
    """Position, from 1, of each row's first wrong entry; 0 where all are right: (rows,) int64.

    Told gold and running freely a greedy model makes its first error at the same place.

    >>> first_error(torch.tensor([[False, True], [False, False]]), torch.ones(2, 2, dtype=torch.bool))
    tensor([2, 0])
    """
    _check(wrong, mask)
    found = wrong & mask
    return torch.where(found.any(1), found.long().argmax(1) + 1, 0)


def _check(wrong: Tensor, mask: Tensor) -> None:
    must_be("", "bool", wrong=wrong, mask=mask)
    if wrong.shape != mask.shape or wrong.dim() != 2:
        raise UserError(f"wrong and mask must both be (rows, time); got {tuple(wrong.shape)} and {tuple(mask.shape)}")
