"""A few windows whole, in the units of the data, for the figures of a report."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import Module

from freerun.diagnostics import diverged_at
from freerun.keys import fold
from freerun.rollin.modes import evaluating
from freerun.training.forecast_naive import past_and_horizon
from freerun.training.forecast_scores import ForecastSettings, Windows, forecast, point_of, spread

__all__ = ["whole_windows"]

_CHANNELS = 4


def whole_windows(
    model: Module, windows: Windows, settings: ForecastSettings, coder: Any, count: int = 6
) -> list[dict[str, Any]]:
    """Windows at even distances: past, gold, and what the model says told gold (``forced``) and freely (``free``).

    Each of these is by step, then by channel (the first four), in the units of the data; of the past there is half as
    much as of the horizon. ``diverged_at`` is the lead time at which the free run escapes, or None.

    Args:
        model: its mode is restored afterwards.
        windows: with at least one.
        settings: of the evaluation.
        coder: has ``values``, ``names`` and ``denormalise``.
        count: windows at most.
    """
    chosen = spread(windows.count, count)
    device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    batch = windows.make(chosen).to(device)
    past, gold = past_and_horizon(batch, windows.horizon, coder.values)
    with evaluating(model), torch.no_grad():
        told = point_of(model, model(batch))[:, -windows.horizon :]
    said = forecast(model, batch, windows.horizon, settings.draw, fold(0, "forecast"))
    gone = diverged_at(said).tolist()
    tail = past[:, -max(10, windows.horizon // 2) :]

    def rows(values: Tensor, number: int) -> list[list[float]]:
        return coder.denormalise(values[number].double().cpu())[:, :_CHANNELS].tolist()

    return [
        {
            "window": window,
            "channels": list(coder.names[:_CHANNELS]),
            "past": rows(tail, number),
            "gold": rows(gold, number),
            "forced": rows(told, number),
            "free": rows(said, number),
            "diverged_at": gone[number] or None,
        }
        for number, window in enumerate(chosen)
    ]
