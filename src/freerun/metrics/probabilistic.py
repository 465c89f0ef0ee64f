"""Scores of a law that is forecast: by samples of it, or by quantiles."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from freerun.arguments import Range, is_number
from freerun.batch import must_be
from freerun.errors import UserError
from freerun.metrics.outputs import quantiles

_SHARE = Range(0, 1, ends="()")


def crps(samples: Tensor, targets: Tensor) -> Tensor:
    """The continuous ranked probability score of each value, in its units: less is better.

    ``mean_i |x_i - y| - sum_{i<j} |x_i - x_j| / (n (n - 1))``

    Args:
        samples: (windows, n, ...) of the law that is forecast.
        targets: (windows, ...).

    Returns:
        (windows, ...) float64: without bias for the score of the law itself, so that more samples change its spread
        alone (Ferro 2014); of one sample its absolute error, of a law that is a point as well. Infinite where a sample
        is not finite.

    Raises:
        UserError: shapes that do not fit.

    >>> crps(torch.tensor([[0.0, 2.0]]), torch.tensor([1.0])), crps(torch.tensor([[3.0]]), torch.tensor([1.0]))
    (tensor([0.], dtype=torch.float64), tensor([2.], dtype=torch.float64))

    Reference: Gneiting, T. and Raftery, A. E. (2007). Strictly proper scoring rules, prediction, and estimation. JASA
    102; Ferro, C. A. T. (2014). Fair scores for ensemble forecasts. QJRMS 140.
    """
    _check(samples, targets)
    ordered, gold, number = samples.double().sort(1).values, targets.double(), samples.shape[1]
    score = (ordered - gold[:, None]).abs().mean(1)
    if number > 1:
        # sum_{i<j} (x_j - x_i) of ordered numbers
        rank = 2 * torch.arange(1, number + 1, dtype=torch.float64, device=ordered.device) - number - 1
        between = (ordered * rank.view(-1, *[1] * (ordered.dim() - 2))).sum(1)
        score = score - between / (number * (number - 1))
    return score.masked_fill(~torch.isfinite(ordered).all(1), math.inf)


def pinball(forecast: Tensor, targets: Tensor, levels: Sequence[float]) -> Tensor:
    """The quantile loss ``max(q e, (q - 1) e)``, ``e = target - quantile``, at each level: less is better.

    Args:
        forecast: (windows, levels, ...) quantiles.
        targets: (windows, ...).
        levels: in (0, 1).

    Returns:
        (windows, levels, ...) float64; twice its mean over evenly spaced levels tends to ``crps``.

    Raises:
        UserError: shapes or levels that do not fit.

    >>> pinball(torch.tensor([[0.0, 2.0]]), torch.tensor([1.0]), (0.1, 0.9))
    tensor([[0.1000, 0.1000]], dtype=torch.float64)
    """
    _check(forecast, targets)
    refuse_levels(levels)
    if forecast.shape[1] != len(levels):
        raise UserError(f"forecast must be (windows, {len(levels)}, ...), a quantile a level; got {_shape(forecast)}")
    missed = targets.double()[:, None] - forecast.double()
    level = torch.tensor(tuple(levels), dtype=torch.float64, device=missed.device)
    level = level.view(-1, *[1] * (missed.dim() - 2))
    return torch.maximum(level * missed, (level - 1) * missed)


def sample_quantiles(samples: Tensor, levels: Sequence[float]) -> Tensor:
    """Quantiles of samples, linear between neighbours: (windows, n, ...) -> (windows, levels, ...) float64.

    Raises:
        UserError: no levels in (0, 1).

    >>> sample_quantiles(torch.tensor([[0.0, 1.0, 2.0]]), (0.25, 0.5))
    tensor([[0.5000, 1.0000]], dtype=torch.float64)
    """
    must_be("", "real", samples=samples)
    refuse_levels(levels)
    return quantiles(samples.double().transpose(0, 1), levels).transpose(0, 1)


def coverage(samples: Tensor, targets: Tensor, share: float = 0.8) -> Tensor:
    """Whether each value lies in the central interval of a share of the law: (windows, ...) bool.

    Their mean is the share itself where the forecast law is the true one; below it forecasts are too narrow.

    Args:
        samples: (windows, n, ...) of the law that is forecast.
        targets: (windows, ...).
        share: of the law, between its quantiles at ``(1 - share) / 2`` and ``(1 + share) / 2``.

    Raises:
        UserError: shapes or a share that do not fit.

    >>> coverage(torch.tensor([[0.0, 1.0, 2.0]]), torch.tensor([1.4]), 0.5)
    tensor([True])

    What it is not: a score. The widest forecast covers all, so ``crps`` belongs beside it.
    """
    _check(samples, targets)
    _SHARE.check(share=share)
    low, high = sample_quantiles(samples, ((1 - share) / 2, (1 + share) / 2)).unbind(1)
    return (low <= targets) & (targets <= high)


def refuse_levels(levels: Sequence[float]) -> None:
    """Refuse what are no levels of quantiles."""
    if not len(levels) or not all(is_number(level) and 0 < level < 1 for level in levels):
        raise UserError(f"levels must be numbers in (0, 1), such as (0.1, 0.5, 0.9); got {levels!r}")


def _check(samples: Tensor, targets: Tensor) -> None:
    must_be("", "real", samples=samples, targets=targets)
    if samples.dim() < 2 or samples.shape[1] == 0 or (samples.shape[0], *samples.shape[2:]) != targets.shape:
        raise UserError(
            f"samples must be (windows, n, ...) of targets (windows, ...); got {_shape(samples)} and {_shape(targets)}"
        )


def _shape(tensor: Tensor) -> str:
    return str(tuple(tensor.shape))
