"""The climate part of a diagnosis: one long free run beside gold of the same length."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from freerun.diagnostics.chained import long_run
from freerun.diagnostics.climate import (
    decorrelation,
    delay_embedding,
    power_spectrum,
    principal_components,
    spectrum_distance,
    state_histogram_divergence,
)
from freerun.diagnostics.diagnosis import Climate
from freerun.diagnostics.leads import diverged_at
from freerun.draws import Draw
from freerun.errors import UserError
from freerun.types import Batch

__all__ = ["climate_of"]

_LEAST = 400
_POINTS = 1500
_FREQUENCIES = 240


def climate_of(
    model: Any, batch: Batch, gold: Tensor | None, draw: Draw, names: tuple[str, ...]
) -> tuple[Climate | None, str]:
    """Climate of a long run from the first window on, and why there is none.

    Args:
        model: see ``long_run``.
        batch: its first row is where the run starts.
        gold: (T, V) the system's own long series; the run is made as long.
        draw: what is fed back.
        names: of the channels.
    """
    if gold is None:
        return None, "no long series was given"
    if gold.shape[0] < _LEAST:
        return None, f"the series has {gold.shape[0]} steps; a climate needs at least {_LEAST}"
    first = torch.zeros(1, dtype=torch.int64, device=batch.history.device)
    try:
        run = long_run(model, batch.select(first), gold.shape[0], draw=draw)[0].cpu().double()
    except UserError as error:
        return None, error.problems[0]
    gold = gold.cpu().double()
    escaped = int(diverged_at(run[None]))
    if escaped:
        return Climate(gold.shape[0], escaped, ""), ""
    return _measured(gold, run, names), ""


def _measured(gold: Tensor, run: Tensor, names: tuple[str, ...]) -> Climate:
    states, own, space, axes = _states(gold, run, names)
    half, states_half = gold.shape[0] // 2, states.shape[0] // 2
    # as many cells as states at most: of emptier ones only the smoothing would be measured
    dimensions = min(3, states.shape[1])
    bins = max(4, min(30, round(states.shape[0] ** (1 / dimensions))))
    # 20 frequencies are usual for 100,000 steps; of a few thousand they would leave no peak
    width = max(4.0, min(20.0, gold.shape[0] / 250))
    powers = [power_spectrum(each, smoothing=width).mean(1) for each in (gold, run)]
    plane = _plane(states, own, gold.shape[1])
    return Climate(
        gold.shape[0],
        None,
        space,
        bins,
        float((run.std(0) / gold.std(0)).mean()),
        state_histogram_divergence(states, own, bins=bins),
        state_histogram_divergence(states[:states_half], states[states_half:], bins=bins),
        width,
        spectrum_distance(gold, run, smoothing=width),
        spectrum_distance(gold[:half], gold[half : 2 * half], smoothing=width),
        *_thinned(powers, gold.shape[0]),
        tuple(tuple(tuple(row) for row in each[-_POINTS:].tolist()) for each in plane),
        axes,
    )


def _states(gold: Tensor, run: Tensor, names: tuple[str, ...]) -> tuple[Tensor, Tensor, str, tuple[str, str]]:
    """States of both, what they are in words, and the two dimensions they are drawn in."""
    if gold.shape[1] == 1:
        lag = min(decorrelation(gold), gold.shape[0] // 10)
        space = f"delay coordinates x(t), x(t \N{MINUS SIGN} {lag}), x(t \N{MINUS SIGN} {2 * lag})"
        states = [delay_embedding(each, lag) for each in (gold, run)]
        return states[0], states[1], space, ("x(t)", f"x(t \N{MINUS SIGN} {lag})")
    if gold.shape[1] == 2:
        return gold, run, f"the channels {names[0]} and {names[1]}", (names[0], names[1])
    words = "the three channels" if gold.shape[1] == 3 else "the first three principal components of gold"
    return gold, run, words, ("first principal component", "second principal component")


def _plane(states: Tensor, own: Tensor, channels: int) -> tuple[Tensor, Tensor]:
    """Both in two dimensions: as they are of one or two channels, else on gold's principal components."""
    if channels < 3:
        return states[:, :2], own[:, :2]
    middle, axes = states.mean(0), principal_components(states, 2)
    return (states - middle) @ axes, (own - middle) @ axes


def _thinned(powers: list[Tensor], steps: int) -> tuple[tuple[float, ...], tuple[tuple[float, ...], ...]]:
    """Means over stretches of the spectra up to where 99.9 % of gold's power lies."""
    enough = int((powers[0].cumsum(0) < 0.999).sum()) + 1
    width = max(1, -(-enough // _FREQUENCIES))
    count = -(-enough // width)
    means = [torch.stack([part.mean() for part in power[: count * width].split(width)]) for power in powers]
    places = [sum(range(i * width + 1, i * width + 1 + width)) / width / steps for i in range(means[0].numel())]
    return tuple(places), tuple(tuple(each.tolist()) for each in means)
