"""95 % intervals over rows: of means, shares and ratios of sums. Rows are independent; entries of a row are not."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from freerun.arguments import brief
from freerun.batch import must_be
from freerun.errors import UserError
from freerun.keys import fold, uniform

_Z = 1.959963984540054
FEW = 20
"""Events below which a share or ratio of them is not reported as a finding."""


@dataclass(frozen=True)
class Interval:
    """An estimate and its 95 % interval; None where it cannot be estimated.

    Args:
        value: the estimate.
        low: lower end; None: not known, as from one row.
        high: upper end.
        count: what it rests on: rows, or the events that are named with it.
    """

    value: float | None
    low: float | None
    high: float | None
    count: int
    __repr__ = brief

    def covers(self, value: float) -> bool:
        """True if the interval includes a value; False without an interval."""
        return self.low is not None and self.high is not None and self.low <= value <= self.high

    def within(self, least: float, most: float = math.inf) -> Interval:
        """The same with ends that leave no range: of a share 0 to 1."""
        ends = [None if end is None else min(max(end, least), most) for end in (self.low, self.high)]
        return Interval(self.value, ends[0], ends[1], self.count)

    def scaled(self, factor: float, shift: float = 0.0) -> Interval:
        """``factor * value + shift``, for a factor above 0."""
        value, low, high = (
            None if each is None else factor * each + shift for each in (self.value, self.low, self.high)
        )
        return Interval(value, low, high, self.count)


_STUDENT = {1: 12.706205, 2: 4.302653, 3: 3.182446, 4: 2.776445, 5: 2.570582}


def student(freedom: int) -> float:
    """Upper 97.5 % point of Student's t, from 6 degrees of freedom on by its expansion, within 0.06 %.

    >>> round(student(2), 3), round(student(10), 3), round(student(1000), 3)
    (4.303, 2.228, 1.962)
    """
    n, z = max(freedom, 1), _Z
    first = (z**3 + z) / (4 * n)
    second = (5 * z**5 + 16 * z**3 + 3 * z) / (96 * n**2)
    third = (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * n**3)
    return _STUDENT.get(n, z + first + second + third)


def mean_interval(values: Tensor, count: int | None = None) -> Interval:
    """Mean of one number a row, with Student's interval.

    Args:
        values: (rows,) real.
        count: what it rests on, if that is not the rows.

    >>> mean_interval(torch.tensor([1.0, 2.0, 3.0, 4.0]))
    Interval(value=2.5, low=0.44574, high=4.55426, count=4)
    """
    must_be("rows", "real", values=values)
    values, n = values.double(), values.numel()
    if n == 0:
        return Interval(None, None, None, count or 0)
    mean = float(values.mean())
    if n == 1:
        return Interval(mean, None, None, count or n)
    half = student(n - 1) * float(values.std()) / math.sqrt(n)
    return Interval(mean, mean - half, mean + half, n if count is None else count)


def share_interval(events: int, of: int) -> Interval:
    """Share of independent rows, with Wilson's interval; ``count`` is ``of``.

    >>> share_interval(0, 10)
    Interval(value=0.0, low=0.0, high=0.277533, count=10)
    """
    if of == 0:
        return Interval(None, None, None, 0)
    share, z2 = events / of, _Z * _Z
    middle = (share + z2 / (2 * of)) / (1 + z2 / of)
    half = _Z * math.sqrt(share * (1 - share) / of + z2 / (4 * of * of)) / (1 + z2 / of)
    # rounding must not leave an end just beside 0 or 1
    return Interval(share, middle - half if events else 0.0, middle + half if events < of else 1.0, of)


def ratio_of_sums(top: Tensor, bottom: Tensor, count: int | None = None) -> Interval:
    """``sum top / sum bottom`` over rows, such as a share of entries: linearised (delta method), rows independent.

    Args:
        top: (rows,) real: of each row.
        bottom: (rows,) real, 0 or more.
        count: what it rests on; the rows if left out.

    >>> ratio_of_sums(torch.tensor([1.0, 0.0, 2.0]), torch.tensor([4.0, 4.0, 4.0])).value
    0.25
    """
    must_be("rows", "real", top=top, bottom=bottom)
    top, bottom, n = top.double(), bottom.double(), top.numel()
    total = float(bottom.sum())
    if total == 0:
        return Interval(None, None, None, count or 0)
    value = float(top.sum()) / total
    if n == 1:
        return Interval(value, None, None, n if count is None else count)
    error = float((top - value * bottom).std()) * math.sqrt(n) / total
    half = student(n - 1) * error
    return Interval(value, value - half, value + half, n if count is None else count)


def log_ratio(tops: Sequence[Tensor], bottoms: Sequence[Tensor], count: int | None = None) -> Interval:
    """``prod sum(top) / prod sum(bottom)`` of sums over the same rows; the interval is symmetric in the logarithm.

    Args:
        tops: (rows,) real each, 0 or more.
        bottoms: (rows,) each; as many as tops.
        count: what it rests on; the rows if left out.

    Returns:
        0 without an interval where a top sums to 0; None where a bottom does.

    >>> log_ratio([torch.tensor([2.0, 4.0])], [torch.tensor([1.0, 2.0])])
    Interval(value=2.0, low=2.0, high=2.0, count=2)
    """
    if len(tops) != len(bottoms):
        raise UserError(f"tops and bottoms must be as many; got {len(tops)} and {len(bottoms)}")
    parts = [each.double() for each in (*tops, *bottoms)]
    sums = [float(each.sum()) for each in parts]
    n = parts[0].numel()
    rests = n if count is None else count
    if not all(sums[len(tops) :]):
        return Interval(None, None, None, rests)
    value = math.prod(sums[: len(tops)]) / math.prod(sums[len(tops) :])
    if value == 0 or n == 1:
        return Interval(value, None, None, rests)
    signs = [1.0] * len(tops) + [-1.0] * len(bottoms)
    influence = sum(sign * each * (n / total) for sign, each, total in zip(signs, parts, sums, strict=True))
    half = student(n - 1) * float(torch.as_tensor(influence).std()) / math.sqrt(n)
    return Interval(value, value * math.exp(-half), value * math.exp(half), rests)


def bootstrap(statistic: Callable[[Tensor], Tensor], rows: int, key: int = 0, resamples: int = 400) -> Interval:
    """Percentile interval of a statistic of weighted rows.

    Args:
        statistic: from weights (resamples, rows), counts of each row, to (resamples,) values.
        rows: their number.
        key: of the resamples.
        resamples: their number.

    >>> values = torch.arange(10.0).double()
    >>> bootstrap(lambda w: (w @ values) / w.sum(1), 10).value
    4.5
    """
    value = float(statistic(torch.ones(1, rows, dtype=torch.float64))[0])
    if rows < 2 or not math.isfinite(value):
        return Interval(value if math.isfinite(value) else None, None, None, rows)
    chosen = (uniform(fold(key, "bootstrap"), torch.arange(resamples)[:, None], torch.arange(rows)) * rows).long()
    weights = torch.zeros(resamples, rows, dtype=torch.float64).scatter_add_(
        1, chosen, torch.ones(resamples, rows, dtype=torch.float64)
    )
    found = statistic(weights)
    found = found[found.isfinite()]
    if found.numel() < resamples // 2:
        return Interval(value, None, None, rows)
    low, high = torch.quantile(found, torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return Interval(value, low, high, rows)
