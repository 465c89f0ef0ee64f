"""Forecasts that need no model: what any model must be better than."""

from __future__ import annotations

import torch
from torch import Tensor

from freerun.batch_problems import must_be
from freerun.errors import UserError, whole

__all__ = ["last_period", "last_value", "mean"]


def last_value(past: Tensor, horizon: int) -> Tensor:
    """The last known value, again and again.

    ``said[t] = past[P]``

    Args:
        past: (windows, past, V) the values known before; observed and covariate channels left out.
        horizon: positions to say, at least 1.

    Returns:
        (windows, horizon, V).

    Raises:
        UserError: no past, or no horizon.

    >>> last_value(torch.tensor([[[1.0], [2.0]]]), 3).flatten()
    tensor([2., 2., 2.])
    """
    _check(past, horizon, 1)
    return past[:, -1:].repeat(1, horizon, 1)


def last_period(past: Tensor, horizon: int, period: int) -> Tensor:
    """The last known period, again and again: the seasonal naive forecast.

    ``said[t] = past[P - period + 1 + (t - 1) mod period]``, t from 1

    Args:
        past: (windows, past, V) the values known before.
        horizon: positions to say, at least 1.
        period: steps of a period; the past must hold one.

    Returns:
        (windows, horizon, V).

    Raises:
        UserError: the past is shorter than a period.

    >>> last_period(torch.tensor([[[9.0], [1.0], [2.0]]]), 5, period=2).flatten()
    tensor([1., 2., 1., 2., 1.])
    """
    if whole(period) is None or period < 1:
        raise UserError(f"period must be at least 1 step, a whole number; got {period!r}")
    _check(past, horizon, period)
    start = past.shape[1] - period
    return past[:, start + torch.arange(horizon, device=past.device) % period]


def mean(past: Tensor, horizon: int, value: Tensor | None = None) -> Tensor:
    """The mean of the training part, always: the forecast whose NRMSE is about 1.

    ``said[t] = value``

    Args:
        past: (windows, past, V); only its shape and type are used.
        horizon: positions to say, at least 1.
        value: (V,) the mean; None: 0, which it is in normalised units.

    Returns:
        (windows, horizon, V).

    Raises:
        UserError: the mean has another number of channels.

    >>> mean(torch.ones(1, 4, 2), 1)
    tensor([[[0., 0.]]])

    What it is not: the mean of the past, which differs from window to window.
    """
    _check(past, horizon, 0)
    width = past.shape[-1]
    if value is None:
        return past.new_zeros(past.shape[0], horizon, width)
    if tuple(value.shape) != (width,):
        raise UserError(f"the mean must be ({width},), one number a channel; got {tuple(value.shape)}")
    return value.to(past).expand(past.shape[0], horizon, width).clone()


def _check(past: Tensor, horizon: int, needed: int) -> None:
    must_be("", "real", past=past)
    problems: list[str] = []
    if past.dim() != 3:
        problems.append(f"past must be (windows, past, V); got {tuple(past.shape)}")
    elif past.shape[1] < needed:
        problems.append(f"past must hold {needed} steps; it holds {past.shape[1]}: take a longer past")
    if whole(horizon) is None or horizon < 1:
        problems.append(f"horizon must be at least 1, a whole number; got {horizon!r}")
    if problems:
        raise UserError(problems)
