"""Naive baselines: forecasts without a model, which any model must beat."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from freerun.arguments import COUNT, brief
from freerun.batch import Batch, must_be
from freerun.errors import UserError, refuse


def last_value(past: Tensor, horizon: int) -> Tensor:
    """Repeat the last known value.

    ``forecast[t] = past[P]``

    Args:
        past: (windows, past, V) the values known before; observed and covariate channels left out.
        horizon: positions to forecast, at least 1.

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
    """Repeat the last known period: the seasonal naive forecast.

    ``forecast[t] = past[P - period + 1 + (t - 1) mod period]``, t from 1

    Args:
        past: (windows, past, V) the values known before.
        horizon: positions to forecast, at least 1.
        period: steps of a period; the past must hold one.

    Returns:
        (windows, horizon, V).

    Raises:
        UserError: the past is shorter than a period.

    >>> last_period(torch.tensor([[[9.0], [1.0], [2.0]]]), 5, period=2).flatten()
    tensor([1., 2., 1., 2., 1.])
    """
    COUNT.check(period=period)
    _check(past, horizon, period)
    start = past.shape[1] - period
    return past[:, start + torch.arange(horizon, device=past.device) % period]


def mean(past: Tensor, horizon: int, value: Tensor | None = None) -> Tensor:
    """Forecast the mean of the training part, whose NRMSE is about 1.

    ``forecast[t] = value``

    Args:
        past: (windows, past, V); only its shape and type are used.
        horizon: positions to forecast, at least 1.
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
    must_be("windows, past, V", "real", past=past)
    short = past.shape[1] < needed
    problems = [f"past must hold {needed} steps; it holds {past.shape[1]}: take a longer past"] if short else []
    refuse(problems + COUNT.problems(horizon=horizon))


_FEATURES, _WINDOWS = 1024, 4096
_RIDGES = (1e-8, 1e-6, 1e-4, 1e-2, 1e-1, 1.0)


def past_and_horizon(batch: Batch, horizon: int, values: int) -> tuple[Tensor, Tensor]:
    """(windows, past, values) and (windows, horizon, values) of a batch of either layout, float64."""
    if isinstance(batch.context, dict) and "past" in batch.context:
        past = batch.context["past"][..., :values]
    else:
        past = batch.targets[:, : batch.targets.shape[1] - horizon]
    return past.double(), batch.targets[:, -horizon:].double()


@dataclass(frozen=True, eq=False)
class LinearForecast:
    """Ridge regression with weights (steps * values + 1, horizon * values), from the last steps of the past."""

    weights: Tensor
    steps: int
    ridge: float
    __repr__ = brief

    def __call__(self, past: Tensor, horizon: int) -> Tensor:
        """(windows, past, values) float64 -> (windows, horizon, values)."""
        return (_features(past, self.steps) @ self.weights).unflatten(1, (horizon, past.shape[2]))


def fit_linear(
    train: Callable[[list[int]], tuple[Tensor, Tensor]], windows: int, dev: tuple[Tensor, Tensor]
) -> LinearForecast:
    """Ridge regression from past to all of the horizon, ``W = (X'X + r n I)^-1 X'Y``, with the r that is best on dev.

    It reads the last 1024 numbers of the past at most, of 4096 evenly spread training windows at most.
    """
    count = min(windows, _WINDOWS)
    past, horizon = train([number * windows // count for number in range(count)])
    steps = max(1, min(past.shape[1], _FEATURES // past.shape[2]))
    x, y = _features(past, steps), horizon.flatten(1)
    spectrum, basis = torch.linalg.eigh(x.T @ x / len(x))
    projected = basis.T @ (x.T @ y) / len(x)
    candidates: list[tuple[float, LinearForecast]] = []
    for ridge in _RIDGES:
        weights = basis @ (projected / (spectrum.clamp_min(0.0) + ridge)[:, None])
        each = LinearForecast(weights, steps, ridge)
        candidates.append((float((each(dev[0], horizon.shape[1]) - dev[1]).square().mean()), each))
    return min(candidates, key=lambda pair: pair[0])[1]


def naive_forecasts(
    past: Tensor, horizon: int, period: int | None, further: Mapping[str, Callable[[Tensor, int], Tensor]]
) -> dict[str, Tensor]:
    """Return name -> (windows, horizon, values): last value, last period where the past has one, mean, further."""
    forecasts = {"last_value": last_value(past, horizon)}
    if period is not None and period <= past.shape[1]:
        forecasts["last_period"] = last_period(past, horizon, period)
    forecasts["mean"] = mean(past, horizon)
    return forecasts | {name: forecast(past, horizon).to(past) for name, forecast in further.items()}


def _features(past: Tensor, steps: int) -> Tensor:
    flat = past[:, -steps:].flatten(1)
    return torch.cat([flat, flat.new_ones(len(flat), 1)], 1)
