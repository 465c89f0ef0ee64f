"""Ridge regression from the past of a window to its horizon: the forecast that any trained model must beat."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import NamedTuple

import torch
from torch import Tensor

from freerun.arguments import brief

FEATURES = 1024
"""Numbers of the past that a regression reads at most."""
_RIDGES = (1e3, 10.0, 1.0, 1e-1, 1e-2, 1e-4, 1e-6, 1e-8)
"""From copying to least squares: the simplest is tried first."""


@dataclass(frozen=True, eq=False)
class LinearForecast:
    """Weights (groups, steps * V / groups + 1, horizon * V / groups) from the last steps of the past.

    One group reads and predicts all V values together, V groups each their own value.
    """

    weights: Tensor
    steps: int
    ridge: float
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
    """Means over windows: of x x' (groups, inputs, inputs) and of x y' (groups, inputs, outputs)."""

    inputs: Tensor
    products: Tensor


@dataclass(frozen=True)
class _Variant:
    """How a regression is set up: what it adds to is the value of a step of the past for each step of the horizon."""

    groups: int
    base: tuple[int, ...] | None  # those steps; x is then less the last one. None: nothing is taken off

    def pair(self, past: Tensor, horizon: Tensor) -> tuple[Tensor, Tensor]:
        """(groups, windows, inputs) and (groups, windows, outputs)."""
        if self.base is not None:
            past, horizon = past - past[:, -1:], horizon - past[:, self.base]
        return _grouped(past, self.groups, ones=True), _grouped(horizon, self.groups, ones=False)

    def solutions(self, sums: _Sums, group: int) -> Iterator[Tensor]:
        """(inputs, outputs) weights of a group, for each ridge."""
        spectrum, basis = torch.linalg.eigh(sums.inputs[group])
        projected = basis.T @ sums.products[group]
        for ridge in _RIDGES:
            yield basis @ (projected / (spectrum.clamp_min(0.0) + ridge)[:, None])

    def errors(self, sums: _Sums, dev: tuple[Tensor, Tensor]) -> Tensor:
        """(ridges, windows) root of the squared errors of a window of dev, summed over horizon and values."""
        x, y = self.pair(*dev)
        own = ([(x[n] @ w - y[n]).square().sum(1) for w in self.solutions(sums, n)] for n in range(self.groups))
        return torch.stack([torch.stack(each) for each in own]).sum(0).sqrt()

    def forecast(self, sums: _Sums, ridge: float, steps: int) -> LinearForecast:
        """The regression with a ridge, from raw past to raw horizon."""
        number = _RIDGES.index(ridge)
        weights = torch.stack([next(islice(self.solutions(sums, n), number, None)) for n in range(self.groups)])
        if self.base is not None:
            _read_raw(weights, steps, self.base)
        return LinearForecast(weights, steps, ridge)


def _read_raw(weights: Tensor, steps: int, base: tuple[int, ...]) -> None:
    """Turn weights from what is left of past and horizon into those from the past to the horizon."""
    width = (weights.shape[1] - 1) // steps
    by_step = weights[:, :-1].unflatten(1, (steps, width))
    # what was taken off each step goes off the last one's weights, and what was taken off the horizon comes back
    by_step[:, -1] -= by_step.sum(1)
    outputs = by_step.unflatten(3, (len(base), width))
    for lead, step in enumerate(base):
        outputs[:, step, :, lead] += torch.eye(width, dtype=weights.dtype)


def fit_linear(
    train: Iterable[tuple[Tensor, Tensor]], dev: tuple[Tensor, Tensor], independent: int = 8, period: int | None = None
) -> LinearForecast:
    """Ridge regression from past to all of the horizon, ``W = (X'X / n + r I)^-1 X'Y / n``, chosen on dev.

    The choices are r; whether the last known value is taken off the window, so that a large r repeats it, or the last
    period off the horizon too, so that it repeats that, or nothing, so that it is the mean; and whether a value is
    predicted from its own past or from that of all, where these are 1,024 numbers at most. By the mean over windows of
    dev of the root of their squared error, the simplest choice within one standard error of the best is kept: the own
    past before that of all, then the largest r. The level of the training part is used only if that is better by three
    standard errors, as levels move: a few windows of dev that overlap are weak evidence.

    Args:
        train: (windows, past, V) and (windows, horizon, V) at a time, float64; only sums of them are kept.
        dev: the same, all at once, in the order of time.
        independent: how many windows of dev do not overlap.
        period: steps of a period; None: nothing is known of one.
    """
    past, values = dev[0].shape[1:]
    steps = min(past, FEATURES)
    groups = [values] if values > 1 and past * values > FEATURES else sorted({1, values}, reverse=True)
    horizon = range(dev[1].shape[1])
    bases: list[tuple[int, ...] | None] = [(-1,) * len(horizon), None]
    if period is not None and period <= steps:
        bases.insert(1, tuple(lead % period - period for lead in horizon))
    variants = [_Variant(number, base) for base in bases for number in groups]
    dev = dev[0][:, -steps:], dev[1]
    sums = _summed(variants, train, steps)
    errors = torch.cat([each.errors(own, dev) for each, own in zip(variants, sums, strict=True)])
    moving = len(errors) - len(groups) * len(_RIDGES)
    number, level = _simplest(errors[:moving], independent), moving + _simplest(errors[moving:], independent)
    gain, error = _difference(errors[number] - errors[level], independent)
    if float(gain) > 3 * float(error):
        number = level
    chosen, ridge = divmod(number, len(_RIDGES))
    return variants[chosen].forecast(sums[chosen], _RIDGES[ridge], steps)


def _difference(errors: Tensor, independent: int) -> tuple[Tensor, Tensor]:
    """The mean of (..., windows), and its standard error by consecutive blocks: windows near each other are no two."""
    blocks = errors.tensor_split(min(max(2, independent), 8, errors.shape[-1]), -1)
    means = torch.stack([block.mean(-1) for block in blocks])
    spread = means.std(0) / len(means) ** 0.5 if len(means) > 1 else torch.zeros_like(means[0])
    return means.mean(0), spread


def _simplest(errors: Tensor, independent: int) -> int:
    """The first row of (choices, windows) that is worse than the best by one standard error of the difference or less.

    >>> _simplest(torch.tensor([[9.0, 9.0], [2.0, 3.0], [2.5, 2.0]]), 2)
    1
    """
    worse, error = _difference(errors - errors[errors.mean(1).argmin()], independent)
    return int((worse <= error).nonzero()[0])


def _summed(variants: list[_Variant], windows: Iterable[tuple[Tensor, Tensor]], steps: int) -> list[_Sums]:
    sums: list[_Sums] = []
    count = 0
    for past, horizon in windows:
        count += len(past)
        for number, variant in enumerate(variants):
            x, y = variant.pair(past[:, -steps:], horizon)
            if len(sums) <= number:
                sums.append(_Sums(x.mT @ x, x.mT @ y))
            else:
                sums[number].inputs.baddbmm_(x.mT, x)
                sums[number].products.baddbmm_(x.mT, y)
    return [_Sums(each.inputs.div_(count), each.products.div_(count)) for each in sums]
