"""Ridge regression from the past of a window to its horizon: the forecast that any trained model must beat."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from freerun.arguments import brief

FEATURES = 1024
"""Numbers of the past that a regression reads at most."""
_RIDGES = (1e-8, 1e-6, 1e-4, 1e-2, 1e-1, 1.0, 10.0, 1e3)
_TIE = 1.02
"""Errors on dev within this factor are equal, and the variant that assumes least is kept."""


@dataclass(frozen=True, eq=False)
class LinearForecast:
    """Weights (groups, steps * V / groups + 1, horizon * V / groups) from the last steps of the past.

    One group reads and predicts all V values together, V groups each their own value; each has its ridge.
    """

    weights: Tensor
    steps: int
    ridges: tuple[float, ...]
    __repr__ = brief

    def __call__(self, past: Tensor, horizon: int) -> Tensor:
        """(windows, past, values) -> (windows, horizon, values)."""
        return linear_forecast(past, self.weights, self.steps, horizon)


def linear_forecast(past: Tensor, weights: Tensor, steps: int, horizon: int) -> Tensor:
    """(windows, past, V) -> (windows, horizon, V), see ``LinearForecast``."""
    outputs = _grouped(past[:, -steps:], len(weights), ones=True) @ weights
    return outputs.unflatten(2, (horizon, -1)).permute(1, 2, 0, 3).flatten(2)


def _grouped(values: Tensor, groups: int, *, ones: bool) -> Tensor:
    """(windows, time, V) -> (groups, windows, time * V / groups), and a column of ones."""
    rows = values.unflatten(2, (groups, -1)).permute(2, 0, 1, 3).flatten(2)
    return torch.cat([rows, rows.new_ones(*rows.shape[:2], 1)], 2) if ones else rows


class _Sums(NamedTuple):
    """Means over windows: of x x' (groups, inputs, inputs), x y' (groups, inputs, outputs) and y^2."""

    inputs: Tensor
    products: Tensor
    square: float


@dataclass(frozen=True)
class _Variant:
    groups: int
    centred: bool  # the last value is taken off x and y

    def sums(self, past: Tensor, horizon: Tensor) -> _Sums:
        last = past[:, -1:] if self.centred else torch.zeros_like(past[:, -1:])
        x, y = _grouped(past - last, self.groups, ones=True), _grouped(horizon - last, self.groups, ones=False)
        return _Sums(x.mT @ x, x.mT @ y, float(y.square().sum()))

    def fitted(self, train: _Sums, dev: _Sums, steps: int) -> tuple[float, LinearForecast]:
        """The squared error on dev, and the forecast, of the ridges that are best there."""
        found = [_ridge(*each) for each in zip(train.inputs, train.products, dev.inputs, dev.products, strict=True)]
        weights = torch.stack([each for _, _, each in found])
        if self.centred:
            _read_raw(weights, steps)
        error = max(dev.square + sum(gain for gain, _, _ in found), 0.0)
        return error, LinearForecast(weights, steps, tuple(ridge for _, ridge, _ in found))


def _ridge(inputs: Tensor, products: Tensor, dev_inputs: Tensor, dev_products: Tensor) -> tuple[float, float, Tensor]:
    """What the best ridge adds to the dev part's mean square, that ridge, and its weights."""
    spectrum, basis = torch.linalg.eigh(inputs)
    projected = basis.T @ products

    def tried(ridge: float) -> tuple[float, float, Tensor]:
        weights = basis @ (projected / (spectrum.clamp_min(0.0) + ridge)[:, None])
        return float((weights * (dev_inputs @ weights - 2 * dev_products)).sum()), ridge, weights

    return min(map(tried, _RIDGES), key=lambda each: each[0])


def _read_raw(weights: Tensor, steps: int) -> None:
    """Turn weights from centred past to centred horizon into those from the past to the horizon."""
    width = (weights.shape[1] - 1) // steps
    by_step = weights[:, :-1].unflatten(1, (steps, width))
    # what was taken off each step goes off the last one's weights, and comes back into each output of that value
    moved = by_step.sum(1)
    horizon = weights.shape[2] // width
    by_step[:, -1] += torch.eye(width, dtype=weights.dtype).repeat(1, horizon) - moved


def fit_linear(
    train: Iterable[tuple[Tensor, Tensor]], dev: Iterable[tuple[Tensor, Tensor]], past: int, values: int
) -> LinearForecast:
    """Ridge regression from past to all of the horizon, ``W = (X'X / n + r I)^-1 X'Y / n``, chosen on dev.

    The choices are r, whether the last known value is taken off the window (a ridge then draws towards repeating it,
    else towards the mean), and whether a value is predicted from its own past or from that of all, where these are
    1,024 numbers at most. Of choices whose errors on dev differ by less than 2 % it is the last value off and the own
    past: a level of the test part may lie where no window of dev did.

    Args:
        train: (windows, past, V) and (windows, horizon, V) at a time, float64; only sums of them are kept.
        dev: the same.
        past: steps of the past.
        values: V.
    """
    steps = min(past, FEATURES)
    groups = [values] if values > 1 and past * values > FEATURES else sorted({1, values}, reverse=True)
    variants = [_Variant(number, centred) for centred in (True, False) for number in groups]
    both = zip(_summed(variants, train, steps), _summed(variants, dev, steps), strict=True)
    fitted = [variant.fitted(*sums, steps) for variant, sums in zip(variants, both, strict=True)]
    least = min(error for error, _ in fitted)
    return next(forecast for error, forecast in fitted if error <= _TIE * least or error == least)


def _summed(variants: list[_Variant], windows: Iterable[tuple[Tensor, Tensor]], steps: int) -> list[_Sums]:
    sums: list[_Sums | None] = [None] * len(variants)
    count = 0
    for past, horizon in windows:
        count += len(past)
        for number, variant in enumerate(variants):
            more, held = variant.sums(past[:, -steps:], horizon), sums[number]
            if held is None:
                sums[number] = more
            else:
                held.inputs.add_(more.inputs)
                held.products.add_(more.products)
                sums[number] = held._replace(square=held.square + more.square)
    return [_Sums(each.inputs / count, each.products / count, each.square / count) for each in sums if each is not None]
