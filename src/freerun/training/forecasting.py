"""Forecasting as a task: a model scored told gold and running freely, beside forecasts that need no training."""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module

from freerun.errors import UserError
from freerun.metrics import error_by_lead, nrmse
from freerun.training.forecast_naive import LinearForecast, fit_linear, naive_forecasts, past_and_horizon, together
from freerun.training.forecast_scores import ForecastSettings, Windows, batches, evaluate_windows, median, spread
from freerun.training.forecast_shown import whole_windows
from freerun.training.task import DataTask, Evaluation
from freerun.types import Batch

__all__ = ["NAIVE", "ForecastTask", "with_naive"]

_NAIVE_BATCH = 1024

NAIVE = ("last_value", "last_period", "mean", "linear")
"""Forecasts that need no model, scored as ``<name>_nrmse``, ``_mse``, ``_mae``; the period where the data have one."""


class ForecastTask(DataTask[Any, ForecastSettings]):
    """A series to train on, scored told gold and running freely: a ``Task`` of the training loop.

    Args:
        data: a ``SeriesData``.
        settings: of the evaluation; the defaults of ``ForecastSettings`` if left out.
    """

    def __init__(self, data: Any, settings: ForecastSettings | None = None) -> None:
        super().__init__(data, settings or ForecastSettings())
        self._windows: dict[str, Windows] = {}

    def evaluate(self, model: Module, split: str) -> Evaluation:
        """Scores on "dev" (``settings.windows`` of its windows) or "test"; see ``evaluate_windows``."""
        if split not in ("dev", "test"):
            raise UserError(f"split must be dev or test; got {split!r}")
        found = evaluate_windows(model, self.windows(split), self.settings)
        if split == "dev":
            return found
        return replace(found, shown=whole_windows(model, self.windows(split), self.settings, self.data.coder))

    def windows(self, split: str) -> Windows:
        """The windows of a split that are scored, with the naive rows for them."""
        if split not in self._windows:
            count = self.data.windows(split)
            chosen = spread(count, self.settings.windows if split == "dev" else None)
            found = Windows(
                len(chosen), lambda numbers: self._batch(split, [chosen[n] for n in numbers]), self._horizon
            )
            self._windows[split] = with_naive(found, self.data.coder, self.linear)
        return self._windows[split]

    @property
    def _horizon(self) -> int:
        return self.data.coder.horizon

    def _batch(self, split: str, numbers: list[int]) -> Batch:
        return self.data.window_batch(split, numbers)

    @cached_property
    def linear(self) -> LinearForecast:
        """Least squares from past to horizon, fitted to the training windows."""
        values, horizon, size = self.data.values, self._horizon, _NAIVE_BATCH

        def train(numbers: list[int]) -> tuple[Tensor, Tensor]:
            parts = [numbers[start : start + size] for start in range(0, len(numbers), size)]
            return together([past_and_horizon(self.data.batch(part), horizon, values) for part in parts])

        chosen = spread(self.data.windows("dev"), 1024)
        parts = [[chosen[n] for n in numbers] for numbers in batches(len(chosen), size)]
        dev = together([past_and_horizon(self._batch("dev", part), horizon, values) for part in parts])
        return fit_linear(train, len(self.data.lengths), dev)


def with_naive(windows: Windows, coder: Any, linear: LinearForecast | None) -> Windows:
    """The windows with the scores of the forecasts that need no model; of the linear one where it was fitted."""
    found: dict[str, list[Tensor]] = {}
    gold: list[Tensor] = []
    for numbers in batches(windows.count, _NAIVE_BATCH):
        past, horizon = past_and_horizon(windows.make(numbers), windows.horizon, coder.values)
        gold.append(horizon)
        for name, said in naive_forecasts(past, windows.horizon, coder.period, linear).items():
            found.setdefault(name, []).append(said)
    return replace(windows, naive={name: _scored(torch.cat(said), torch.cat(gold)) for name, said in found.items()})


def _scored(said: Tensor, gold: Tensor) -> tuple[dict[str, float], list[float]]:
    error = said - gold
    scores = {"nrmse": median(nrmse(said, gold)), "mse": float(error.square().mean()), "mae": float(error.abs().mean())}
    return scores, error_by_lead(said, gold).mean(0).tolist()
