"""Ridge regression from the past of a window to its horizon: the forecast that any trained model must beat."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice, pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from freerun.arguments import brief
from freerun.types import evenly

FEATURES = 1024
"""Numbers of the past that a regression reads at most."""
_RIDGES = (1e3, 10.0, 1.0, 1e-1, 1e-2, 1e-4, 1e-6, 1e-8)
"""From copying to least squares: the simplest is tried first."""
_ORIGINS = (0.0, 0.5, 0.75, 1.0)
"""Shares of the training windows: each part after the first is forecast from those before it, and dev from all."""
_REWEIGHTED = 2
_WEIGHING = 1e-1
"""How often windows are weighed anew, and the ridge of the fit whose errors they are weighed by."""
_CLEAR = 3
"""Standard errors of a gain that is clear: of the level over what moves, of training over the regression."""
_HELD = 2**22
"""Values of the windows that are forecast from one origin."""

Pair = tuple[Tensor, Tensor]
Windows = Callable[[Sequence[int]], Iterable[Pair]]


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
    """Weighted sums over windows: of x x' (groups, inputs, inputs), of x y' (groups, inputs, outputs), of weights."""

    inputs: Tensor
    products: Tensor
    weights: Tensor


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
        spectrum, basis = torch.linalg.eigh(sums.inputs[group] / sums.weights)
        projected = basis.T @ (sums.products[group] / sums.weights)
        for ridge in _RIDGES:
            yield basis @ (projected / (spectrum.clamp_min(0.0) + ridge)[:, None])

    def errors(self, sums: _Sums, dev: Pair) -> Tensor:
        """(ridges, windows) root of the squared errors of a window of dev, summed over horizon and values."""
        x, y = self.pair(*dev)
        own = ([(x[n] @ w - y[n]).square().sum(1) for w in self.solutions(sums, n)] for n in range(self.groups))
        return torch.stack([torch.stack(each) for each in own]).sum(0).sqrt()

    def forecast(self, sums: _Sums, ridge: float, steps: int) -> LinearForecast:
        """The regression with a ridge, from raw past to raw horizon."""
        number = _RIDGES.index(ridge)
        weights = torch.empty_like(sums.products)
        for n in range(self.groups):
            weights[n] = next(islice(self.solutions(sums, n), number, None))
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
    train: Windows, count: int, dev: Pair, independent: int = 8, period: int | None = None
) -> LinearForecast:
    """Ridge regression from past to all of the horizon, ``W = (X'X / n + r I)^-1 X'Y / n``, from several origins.

    The choices are r; whether the last known value is taken off the window, so that a large r repeats it, or the last
    period off the horizon too, so that it repeats that, or nothing, so that it is the mean; and whether a value is
    predicted from its own past or from that of all, where these are 1,024 numbers at most. They are compared where
    they were not fitted: on the third quarter of the training windows fitted to the half before, on the fourth fitted
    to the three before, and on dev fitted to all. By the mean over these windows of the root of their squared error,
    the simplest choice within one standard error of the best is kept: the own past before that of all, then the
    largest r. The level of the training part is used only if that is better by three standard errors: levels move.

    The fit makes the mean of these roots small, and not that of their squares, which a few windows with a jump would
    decide: each window is weighed by one over the root of its squared error, twice anew (iteratively reweighted least
    squares, Schlossmacher 1973).

    Args:
        train: numbers from 0 to ``count`` -> (windows, past, V) and (windows, horizon, V) at a time, float64, of those
            windows in that order; read several times, and only sums are kept.
        count: the training windows, in the order of time.
        dev: the same, all at once, later.
        independent: how many of the windows that are compared on do not overlap.
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
    weights, found = [torch.ones(count, dtype=torch.float64) for _ in variants], list[Tensor]()
    for at, variant in enumerate(variants):  # one after the other: the sums of wide data are large
        for _ in range(_REWEIGHTED):
            weights[at] = _weighed(variant, train, weights[at], steps)
        found.append(_ahead(variant, train, weights[at], steps, dev))
    errors = torch.cat(found)
    moving = len(errors) - len(groups) * len(_RIDGES)
    number, level = _simplest(errors[:moving], independent), moving + _simplest(errors[moving:], independent)
    if clearly(errors[number] - errors[level], independent):
        number = level
    chosen, ridge = divmod(number, len(_RIDGES))
    sums = _summed(variants[chosen], train(range(count)), weights[chosen], steps)
    return variants[chosen].forecast(sums, _RIDGES[ridge], steps)


def _weighed(variant: _Variant, train: Windows, weights: Tensor, steps: int) -> Tensor:
    """(windows,) one over the root of the squared error of a window, of a tenth of the mean root at least."""
    numbers = range(len(weights))
    fit = variant.forecast(_summed(variant, train(numbers), weights, steps), _WEIGHING, steps)
    roots = [(fit(past, horizon.shape[1]) - horizon).square().sum((1, 2)).sqrt() for past, horizon in train(numbers)]
    errors = torch.cat(roots)
    return 1 / errors.clamp_min(max(0.1 * float(errors.mean()), 1e-12))


def _ahead(variant: _Variant, train: Windows, weights: Tensor, steps: int, dev: Pair) -> Tensor:
    """(ridges, windows) errors on what comes after each origin, fitted to what comes before it."""
    marks = [round(len(weights) * share) for share in _ORIGINS]
    held = max(1, _HELD // (dev[0][0].numel() + dev[1][0].numel()))
    found, sums = list[Tensor](), None
    for (begin, origin), end in zip(pairwise(marks), [*marks[2:], None], strict=True):
        if begin < origin:
            sums = _summed(variant, train(range(begin, origin)), weights[begin:origin], steps, sums)
        if sums is None:  # of one window the first half has none
            continue
        ahead = [dev] if end is None else train([origin + number for number in evenly(end - origin, held)])
        pairs = ((past[:, -steps:], horizon) for past, horizon in ahead)
        found += [variant.errors(sums, pair) for pair in pairs]
    return torch.cat(found, 1)


def _difference(errors: Tensor, independent: int) -> tuple[Tensor, Tensor]:
    """The mean of (..., windows), and its standard error by consecutive blocks: windows near each other are no two."""
    blocks = errors.tensor_split(min(max(2, independent), 16, errors.shape[-1]), -1)
    means = torch.stack([block.mean(-1) for block in blocks])
    spread = means.std(0) / len(means) ** 0.5 if len(means) > 1 else torch.zeros_like(means[0])
    return means.mean(0), spread


def clearly(gains: Tensor, independent: int) -> bool:
    """True if the mean of (windows,) gains is more than three standard errors above 0; NaN is no gain.

    >>> clearly(torch.tensor([1.0, 2.0, 1.0, 2.0]), 4), clearly(torch.tensor([5.0, -1.0, 5.0, -1.0]), 4)
    (True, False)
    """
    gain, error = _difference(gains, independent)
    return float(gain) > _CLEAR * float(error)


def _simplest(errors: Tensor, independent: int) -> int:
    """The first row of (choices, windows) that is worse than the best by one standard error of the difference or less.

    >>> _simplest(torch.tensor([[9.0, 9.0], [2.0, 3.0], [2.5, 2.0]]), 2)
    1
    """
    worse, error = _difference(errors - errors[errors.mean(1).argmin()], independent)
    return int((worse <= error).nonzero()[0])


def _summed(
    variant: _Variant, windows: Iterable[Pair], weights: Tensor, steps: int, sums: _Sums | None = None
) -> _Sums:
    """Sums of windows that have these weights, added to those of earlier ones."""
    at = 0
    for past, horizon in windows:
        x, y = variant.pair(past[:, -steps:], horizon)
        weight = weights[at : at + len(past)]
        weighted = (x * weight[:, None]).mT
        if sums is None:
            empty = x.new_zeros(len(x), x.shape[2], x.shape[2]), x.new_zeros(len(x), x.shape[2], y.shape[2])
            sums = _Sums(*empty, x.new_zeros(()))
        sums.inputs.baddbmm_(weighted, x)
        sums.products.baddbmm_(weighted, y)
        sums.weights.add_(weight.sum())
        at += len(past)
    assert sums is not None
    return sums
