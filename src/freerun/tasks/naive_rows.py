"""Rows of a table that need no trained model: naive forecasts, and the law of what each was off in training."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from freerun.arguments import brief
from freerun.batch import Batch
from freerun.data.series.windows import Windows
from freerun.diagnostics.naive import naive_forecasts, past_and_horizon
from freerun.metrics.outputs import nrmse, rmse_by_horizon
from freerun.metrics.probabilistic import pinball
from freerun.regression import LinearForecast
from freerun.tasks.base import parts
from freerun.tasks.sample_paths import DECILES, LEADS, SHARES, by_lead

_CELLS = 2**22
"""Values of the windows that are forecast and scored at a time; changes no number."""
_POINTS = tuple((n + 0.5) / 100 for n in range(100))
"""Levels of the points that stand for a law: its CRPS is twice the mean of their quantile losses."""
RESIDUALS = 2**23
"""Values of training windows whose residuals are held."""


def fitting(window: Batch, most: int = 1024) -> int:
    """How many windows are held at a time: ``most``, and fewer of such that are long or wide."""
    context: Any = window.context
    past = context["past"].numel() if isinstance(context, dict) and "past" in context else 0
    return max(1, min(most, _CELLS // (window.targets.numel() + past)))


@dataclass(frozen=True, eq=False)
class Naive:
    """Naive forecasts of windows.

    Args:
        codec: of the windows.
        linear: the regression; None: it was not fitted.
        levels: of the pinball loss.
        residuals: name -> (levels of ``_POINTS``, ``levels`` and the bands; horizon, values) quantiles of what a
            forecast was off; {}: nothing is known of it.
    """

    codec: Any
    linear: LinearForecast | None = None
    levels: Sequence[float] = DECILES
    residuals: Mapping[str, Tensor] = field(default_factory=dict[str, Tensor])
    __repr__ = brief

    @property
    def _all(self) -> tuple[float, ...]:
        return (*_POINTS, *self.levels, *(0.5 + side * share / 200 for share in SHARES for side in (-1, 1)))

    def forecasts(self, batch: Batch) -> Iterator[tuple[str, Tensor, Tensor]]:
        """Name, (windows, horizon, values) forecast, and gold."""
        past, gold = past_and_horizon(batch, self.codec.horizon, self.codec.values)
        further = {} if self.linear is None else {"linear": self.linear}
        for name, forecast in naive_forecasts(past, self.codec.horizon, self.codec.period, further).items():
            yield name, forecast, gold

    def fitted(self, batches: Iterable[Batch]) -> Naive:
        """With the residuals of training windows."""
        off: dict[str, list[Tensor]] = {}
        for batch in batches:
            for name, forecast, gold in self.forecasts(batch):
                off.setdefault(name, []).append((gold - forecast).float())
        return replace(
            self, residuals={name: quantiles_there(torch.cat(each), self._all) for name, each in off.items()}
        )

    def scores(self, batch: Batch) -> dict[str, dict[str, Tensor]]:
        """Name -> (windows,) NRMSE, sums over the values that are there, (windows, horizon) numbers by lead time."""
        found: dict[str, dict[str, Tensor]] = {}
        for name, forecast, gold in self.forecasts(batch):
            error, there = forecast - gold, ~gold.isnan()
            squared, absolute = (each.masked_fill(~there, 0).sum((1, 2)) for each in (error.square(), error.abs()))
            found[name] = {
                "nrmse": nrmse(forecast, gold), "mse": squared, "mae": absolute, "cells": there.sum((1, 2)),
                "by_lead": rmse_by_horizon(forecast, gold),
            }  # fmt: skip
            if name in self.residuals:
                found[name] |= self._of_law(forecast, gold, self.residuals[name].to(forecast))
        return found

    def _of_law(self, forecast: Tensor, gold: Tensor, residuals: Tensor) -> dict[str, Tensor]:
        there, missed = ~gold.isnan(), gold - forecast
        losses = [
            pinball(part.expand(len(gold), -1, -1)[:, None], missed, (level,))[:, 0]
            for part, level in zip(residuals, self._all, strict=True)
        ]
        points, chosen = losses[: len(_POINTS)], losses[len(_POINTS) : len(_POINTS) + len(self.levels)]
        each = {
            "crps": 2 * sum(points[1:], points[0]) / len(points),
            "pinball": sum(chosen[1:], chosen[0]) / len(chosen),
        }
        bands = residuals[len(_POINTS) + len(self.levels) :].unflatten(0, (-1, 2))
        for share, (low, high) in zip(SHARES, bands, strict=True):
            each[f"coverage_{share}"] = 100 * ((low <= missed) & (missed <= high)).double()
        sums = {name: value.masked_fill(~there, 0).sum((1, 2)) for name, value in each.items()}
        return sums | {f"{name}_by_lead": by_lead(each[name], there) for name in LEADS}


def quantiles_there(values: Tensor, levels: Sequence[float]) -> Tensor:
    """(windows, ...) with NaN where nothing is -> (levels, ...) quantiles of what is there; 0 where nothing is."""
    ordered, count = values.sort(0).values, (~values.isnan()).sum(0)
    found: list[Tensor] = []
    for level in levels:
        rank = level * (count - 1).clamp_min(0)
        low, high = (ordered.gather(0, each.long()[None])[0] for each in (rank.floor(), rank.ceil()))
        found.append((low + (rank - rank.floor()) * (high - low)).masked_fill(count == 0, 0))
    return torch.stack(found)


def with_naive(windows: Windows, naive: Naive) -> Windows:
    """The windows with the scores of the forecasts that need no model."""
    found: dict[str, list[dict[str, Tensor]]] = {}
    for numbers in parts(range(windows.count), fitting(windows.make([0]))):
        for name, scores in naive.scores(windows.make(numbers)).items():
            found.setdefault(name, []).append(scores)
    rows: dict[str, tuple[dict[str, float], dict[str, list[float]]]] = {}
    for name, each in found.items():
        scores = {score: torch.cat([part[score] for part in each]) for score in each[0]}
        cells, curves = scores.pop("cells").sum(), [score for score in scores if score.endswith("by_lead")]
        drawn = {f"{name}_{score}".removesuffix("_by_lead"): scores.pop(score).nanmean(0).tolist() for score in curves}
        row = {"nrmse": median(scores.pop("nrmse"))}
        rows[name] = {**row, **{score: float(sums.sum() / cells) for score, sums in scores.items()}}, drawn
    return replace(windows, naive=rows)


def median(values: Tensor) -> float:
    """Of an even number the mean of the two in the middle; inf where either is; NaN, of nothing scored, left out."""
    ordered = values[~values.isnan()].sort().values
    if not len(ordered):
        return math.nan
    return float((ordered[(len(ordered) - 1) // 2] + ordered[len(ordered) // 2]) / 2)
