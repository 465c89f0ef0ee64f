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
SHARES = (50, 80)
LEADS = ("crps", "coverage_80")
"""Scores of a law that have a curve by lead time."""
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

    CRPS and coverage by lead time, (windows, horizon), are means over values.

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
        scores = law_scores(paths, gold[part], levels)
        sums = {name: each.masked_fill(~there[part], 0).sum((1, 2)) for name, each in scores.items()}
        sums["crps_by_lead"] = by_lead(scores["crps"], there[part])
        sums["coverage_80_by_lead"] = by_lead(100 * scores["covered_80"], there[part])
        found.append({name: each.cpu() for name, each in sums.items()})
    return {name: torch.cat([each[name] for each in found]) for name in found[0]}


def law_scores(paths: Tensor, gold: Tensor, levels: Sequence[float] = DECILES) -> dict[str, Tensor]:
    """CRPS, pinball loss and covered shares of each value, (windows, horizon, values), by paths (windows, n, ...).

    What escaped scores as infinite, and covers nothing: it is not averaged away.
    """
    gone = (first_divergence(paths.flatten(0, 1)) > 0).view(paths.shape[:2]).any(1)[:, None, None]
    paths = paths.masked_fill(gone[:, None], math.nan)
    losses = {"crps": crps(paths, gold), "pinball": pinball(sample_quantiles(paths, levels), gold, levels).mean(1)}
    scores = {name: each.masked_fill(gone, math.inf) for name, each in losses.items()}
    covered = {f"covered_{share}": coverage(paths, gold, share / 100) & ~gone for share in SHARES}
    return scores | {name: each.double() for name, each in covered.items()}


def law_problems(settings: Any, head: str | None, select: str) -> list[tuple[str, str, str]]:
    """What of ``[evaluate]``, and of ``train.select``, does not go with a model of a head: key, problem, help."""
    problems: list[tuple[str, str, str]] = []
    use = 'add head = "gaussian" (or student_t, quantiles) to [model], or leave it out'
    if head == "point" and settings.num_samples:
        found = "`num_samples` are draws from the law that a model predicts, and this one predicts values"
        problems.append(("evaluate.num_samples", found, use))
    draw = getattr(settings, "draw", "auto")
    if head == "point" and draw not in ("auto", "point"):
        problems.append(("evaluate.draw", f"`draw` {draw} does not fit a model with head point", use))
    if select in ("crps", "pinball") and not settings.num_samples:
        found = f"`select` {select} is a score of sample paths, and none are drawn"
        problems.append(("train.select", found, "add num_samples = 50 to [evaluate]"))
    return problems


def by_lead(values: Tensor, there: Tensor) -> Tensor:
    """(windows, horizon, values) -> (windows, horizon): the mean of those that are there; NaN where none is."""
    return values.masked_fill(~there, 0).sum(2) / there.sum(2)


def fans(model: Module, batch: Batch, horizon: int, windows: Sequence[int]) -> dict[float, Tensor]:
    """Level -> (windows, horizon, values) of sample paths; {} where the model predicts values, no law."""
    if head_of(model) == "point":
        return {}
    numbers = torch.tensor(list(windows), device=batch.targets.device)
    paths = sample_paths(model, batch, horizon, FAN_PATHS, rows=numbers)
    return dict(zip(FAN, sample_quantiles(paths, FAN).unbind(1), strict=True))
