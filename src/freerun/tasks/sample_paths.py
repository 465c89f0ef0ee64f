"""Sample paths of a forecaster: their scores beside those of one forecast, and their quantiles by lead time."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module

from freerun.batch import Batch
from freerun.generation import draw_for, generate, head_of
from freerun.keys import fold
from freerun.metrics.outputs import first_divergence
from freerun.metrics.probabilistic import coverage, crps, pinball, sample_quantiles

DECILES = tuple(n / 10 for n in range(1, 10))
FAN = (0.05, 0.25, 0.75, 0.95)
"""Levels of the bands of a figure."""
FAN_PATHS = 100
_SHARES = (50, 80)
_NUMBERS = 2**25
"""Values of sample paths held at once."""


def sample_paths(
    model: Module, batch: Batch, horizon: int, number: int, *, key: int = 0, rows: Tensor | None = None
) -> Tensor:
    """Free runs of every window, each drawn step by step from the law that the model predicts.

    Args:
        model: a forecaster that predicts a law: with a head.
        batch: windows; of the horizon nothing is read.
        horizon: steps.
        number: of paths a window.
        key: what the noise is derived from, with a window's number, the path's and the step.
        rows: (windows,) their numbers; None: those of the batch.

    Returns:
        (windows, number, horizon, values) normalised.

    Raises:
        UserError: the model predicts values, no law.
    """
    history = batch.history.clone()
    history[:, history.shape[1] - horizon :] = math.nan
    hidden = batch.made(targets=torch.full_like(history, math.nan), history=history, rows=rows, present=None)
    draw, key = draw_for(model, "sample"), fold(key, "sample paths")
    return generate(model, hidden, length=horizon, draw=draw, key=key, num_samples=number).entries


def probabilistic_scores(
    model: Module, batch: Batch, horizon: int, settings: Any, windows: Sequence[int]
) -> dict[str, Tensor]:
    """Sums over the values of each window of what sample paths are scored by; infinite where a path diverged.

    Values that are missing are in no sum.

    Args:
        model: a forecaster that predicts a law.
        batch: windows.
        horizon: steps.
        settings: ``num_samples`` paths a window, and ``quantiles``, the levels of the pinball loss (None: the deciles).
        windows: their numbers in the split, which the noise is a function of.
    """
    number, levels = settings.num_samples, settings.quantiles or DECILES
    gold = batch.targets[:, -horizon:].double()
    there = ~gold.isnan()
    at_once = max(1, _NUMBERS // (number * gold[0].numel()))
    found: list[dict[str, Tensor]] = []
    for part in torch.arange(batch.size, device=gold.device).split(at_once):
        numbers = torch.tensor([windows[n] for n in part.tolist()], device=gold.device)
        paths = sample_paths(model, batch.select(part), horizon, number, rows=numbers).double()
        gone = (first_divergence(paths.flatten(0, 1)) > 0).view(paths.shape[:2]).any(1)
        # what escaped scores as infinite, and is not averaged away
        paths = paths.masked_fill(gone[:, None, None, None], math.nan)
        of_levels = pinball(sample_quantiles(paths, levels), gold[part], levels).mean(1)
        scores = {"crps": crps(paths, gold[part]), "pinball": of_levels}
        sums = {
            name: each.masked_fill(~there[part], 0).sum((1, 2)).masked_fill(gone, math.inf)
            for name, each in scores.items()
        }
        for share in _SHARES:
            inside = coverage(paths, gold[part], share / 100) & ~gone[:, None, None]
            sums[f"covered_{share}"] = inside.sum((1, 2)).double()
        found.append({name: each.cpu() for name, each in sums.items()})
    return {name: torch.cat([each[name] for each in found]) for name in found[0]}


def fans(model: Module, batch: Batch, horizon: int, windows: Sequence[int]) -> dict[float, Tensor]:
    """Level -> (windows, horizon, values) of sample paths; {} where the model predicts values, no law."""
    if head_of(model) == "point":
        return {}
    numbers = torch.tensor(list(windows), device=batch.targets.device)
    paths = sample_paths(model, batch, horizon, FAN_PATHS, rows=numbers)
    return dict(zip(FAN, sample_quantiles(paths, FAN).unbind(1), strict=True))
