"""Climate of a long free run compared with gold's: its states and its frequencies, not its phase."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from freerun.arguments import COUNT, Range
from freerun.batch import Batch, must_be
from freerun.diagnostics.results import Climate
from freerun.draws import Draw
from freerun.errors import UserError, refuse
from freerun.generation import generate, prompt_lengths
from freerun.keys import fold
from freerun.metrics.outputs import BOUND, first_divergence
from freerun.rollin.model import call_problems

_MOST = 3  # dimensions of a histogram: 30^3 cells are still filled by a few thousand states


def state_histogram_divergence(
    gold: Tensor, free: Tensor, *, bins: int = 30, smoothing: float = 1e-5, symmetric: bool = False
) -> float:
    """D_stsp: Kullback-Leibler divergence of the states a free run visits from those that gold visits, in nats.

    ``sum over cells of p log(p / q)``, p gold's share of a cell, q the free run's, each count raised by ``smoothing``.
    A cell is a box: each dimension's range in gold is cut into ``bins`` equal parts. States outside gold's range share
    one extra cell, so a run that diverges is far away. More than three dimensions are first projected on gold's first
    three principal components.

    The value depends on bins, smoothing and the numbers of states; two samples of one law do not have the value 0.
    Compare values of equal sizes only, and with the value of gold's first half against its second.

    Args:
        gold: (T, V) states of the system.
        free: (S, V) states of the free run.
        bins: boxes in each dimension.
        smoothing: added to each cell's count, so that a cell that the free run never visits stays finite.
        symmetric: True for the mean of both directions.

    Raises:
        UserError: shapes that do not fit, entries that are not finite (``first_divergence`` finds them),
            a channel of gold that is constant.

    >>> series = torch.linspace(0, 1, 300)[:, None]
    >>> state_histogram_divergence(series, series), state_histogram_divergence(series, series + 5) > 10
    (0.0, True)

    Koppe et al. 2019 (PLoS Comput Biol 15:e1007263), binned as in Hess et al. 2023 (arXiv:2306.04406), who leave out
    states outside gold's range. What it is not: sensitive to the order of the states; ``spectrum_distance`` is.
    """
    _check(gold, free)
    refuse(COUNT.problems(bins=bins) + Range(0, ends="(]").problems(smoothing=smoothing))
    gold, free = gold.double(), free.double()
    if gold.shape[1] > _MOST:
        axes = principal_components(gold, _MOST)
        gold, free = gold @ axes, free @ axes
    low, high = gold.min(0).values, gold.max(0).values
    if bool((high == low).any()):
        raise UserError("a channel of gold is constant: it has no range to cut; leave it out")
    p, q = (_shares(series, low, high, bins, smoothing) for series in (gold, free))
    divergence = (p * (p / q).log()).sum()
    return float((divergence + (q * (q / p).log()).sum()) / 2 if symmetric else divergence)


def _shares(series: Tensor, low: Tensor, high: Tensor, bins: int, smoothing: float) -> Tensor:
    """Share of each cell; the last cell is everything outside."""
    box = ((series - low) / (high - low) * bins).floor()
    box = torch.where(series == high, bins - 1, box)
    outside = ((box < 0) | (box >= bins)).any(1)
    strides = bins ** torch.arange(series.shape[1], dtype=torch.float64, device=series.device)
    cell = torch.where(outside, float(bins ** series.shape[1]), (box * strides).sum(1)).long()
    counts = torch.bincount(cell, minlength=bins ** series.shape[1] + 1).double() + smoothing
    return counts / counts.sum()


def principal_components(series: Tensor, number: int) -> Tensor:
    """Directions in which a series varies most: (V, number), orthonormal, by falling variance.

    Args:
        series: (T, V).
        number: at most V.

    >>> principal_components(torch.tensor([[0.0, 0.0], [0.0, 2.0], [0.1, 4.0]]), 1).abs().argmax()
    tensor(1)
    """
    must_be("T, V", "real", series=series)
    Range(1, series.shape[1], whole=True).check(number=number)
    centred = series - series.mean(0)
    vectors = torch.linalg.eigh(centred.T @ centred).eigenvectors
    return vectors.flip(1)[:, :number]


def spectrum_distance(gold: Tensor, free: Tensor, *, smoothing: float = 20.0) -> float:
    """D_H: Hellinger distance of two series' power spectra, mean over channels; 0 equal, 1 without common frequency.

    ``sqrt(1 - sum over frequencies of sqrt(p q))`` with p, q from ``power_spectrum``. Phase, offset and scale of a
    channel do not enter. Without smoothing two series of one noisy law lie about 0.46 apart.

    Args:
        gold: (T, V).
        free: (T, V), as long as gold: the spectra must have the same frequencies.
        smoothing: standard deviation of the Gaussian that both are smoothed with, in frequencies of 1/T.

    Raises:
        UserError: different lengths, fewer than four steps, entries that are not finite.

    >>> t = torch.arange(64.0)[:, None] * 2 * torch.pi / 64
    >>> round(spectrum_distance((3 * t).sin(), (9 * t).sin(), smoothing=0), 6)
    1.0

    Mikhaeil et al. 2022 (arXiv:2110.07238); Hess et al. 2023.
    """
    _check(gold, free)
    Range(0).check(smoothing=smoothing)
    if gold.shape[0] != free.shape[0]:
        raise UserError(f"both series must be of one length; got {gold.shape[0]} and {free.shape[0]} steps: cut one")
    p, q = power_spectrum(gold, smoothing=smoothing), power_spectrum(free, smoothing=smoothing)
    common = (p * q).sqrt().sum(0).clamp(max=1.0)
    # a channel without any power has no spectrum: equal only if neither has one
    still = (p.sum(0) == 0) & (q.sum(0) == 0)
    return float(torch.where(still, 0.0, (1 - common).sqrt()).mean())


def power_spectrum(series: Tensor, *, smoothing: float = 20.0) -> Tensor:
    """Share of each frequency in the power of each channel: (T // 2, V) float64, the mean taken off before.

    ``p[k] ~ |sum over t of x[t] exp(-2 pi i k t / T)|^2``, k = 1 .. T // 2, smoothed by a Gaussian, of sum 1 (0 for a
    constant channel).

    Args:
        series: (T, V).
        smoothing: standard deviation of the Gaussian, in frequencies of 1/T; 0: none.

    Raises:
        UserError: fewer than four steps, or a negative smoothing.

    >>> power_spectrum(torch.tensor([[1.0], [-1.0], [1.0], [-1.0]]), smoothing=0).flatten()
    tensor([0., 1.], dtype=torch.float64)
    """
    if series.shape[0] < 4 or smoothing < 0:
        raise UserError(f"a spectrum needs at least 4 steps and smoothing >= 0; got {series.shape[0]} and {smoothing}")
    power = torch.fft.rfft(series.double() - series.double().mean(0), dim=0).abs().square()[1:]
    # what rounding leaves of a constant channel is not power
    rounding = 1e-24 * series.double().square().sum(0) * series.shape[0]
    power = torch.where(power.sum(0) <= rounding, 0.0, power)
    if smoothing:
        power = _smoothed(power, smoothing)
    total = power.sum(0)
    return power / torch.where(total == 0, 1.0, total)


def _smoothed(power: Tensor, width: float) -> Tensor:
    """Gaussian over the first dimension, mirrored at its ends."""
    reach = min(math.ceil(4 * width), power.shape[0] - 1)
    offsets = torch.arange(-reach, reach + 1, dtype=power.dtype, device=power.device)
    kernel = (-0.5 * (offsets / width).square()).exp()
    padded = F.pad(power.T[:, None], (reach, reach), mode="reflect")
    return F.conv1d(padded, (kernel / kernel.sum())[None, None])[:, 0].T


def delay_embedding(series: Tensor, delay: int, dimensions: int = 3) -> Tensor:
    """States of a system of which one channel is observed: (T - (dimensions - 1) delay, dimensions).

    ``state[t] = (x[t], x[t - delay], x[t - 2 delay], ...)``

    Args:
        series: (T, 1).
        delay: in steps, at least 1; ``decorrelation`` gives a usual one.
        dimensions: of the states.

    Raises:
        UserError: several channels, or a series shorter than a state.

    >>> delay_embedding(torch.arange(4.0)[:, None], delay=1, dimensions=2)
    tensor([[1., 0.],
            [2., 1.],
            [3., 2.]])

    Takens 1981: for almost every channel this is the attractor up to a smooth change of coordinates, with enough
    dimensions.
    """
    must_be("T, 1", "real", series=series)
    COUNT.check(delay=delay, dimensions=dimensions)
    reach = (dimensions - 1) * delay
    if series.shape[1] != 1 or series.shape[0] <= reach:
        raise UserError(
            f"a series of one channel, (T, 1), of more than {reach} steps is needed; got {tuple(series.shape)}"
        )
    end = series.shape[0]
    return torch.cat([series[reach - k * delay : end - k * delay] for k in range(dimensions)], 1)


def decorrelation(series: Tensor) -> int:
    """The first lag at which the autocorrelation of a series is below 1/e: (T, 1) -> steps, at least 1.

    >>> decorrelation(torch.arange(200.0).mul(2 * torch.pi / 40).sin()[:, None])
    8
    """
    must_be("T, 1", "real", series=series)
    centred = series[:, 0].double() - series[:, 0].double().mean()
    n = centred.numel()
    power = torch.fft.rfft(centred, 2 * n).abs().square()
    products = torch.fft.irfft(power, 2 * n)[: n // 2]
    below = (products < products[0] / math.e).nonzero()
    return max(1, int(below[0])) if below.numel() else max(1, n // 10)


def _check(gold: Tensor, free: Tensor) -> None:
    must_be("", "real", gold=gold, free=free)
    problems: list[str] = []
    if gold.dim() != 2 or free.dim() != 2 or gold.shape[1:] != free.shape[1:] or not gold.numel() or not free.numel():
        problems.append(f"both must be (steps, V) of one V; got {tuple(gold.shape)} and {tuple(free.shape)}")
    for name, series in (("gold", gold), ("the free run", free)):
        if bad := int((~torch.isfinite(series)).any(-1).sum()):
            problems.append(f"{name} has {bad} steps that are not finite: a run that diverged has no climate")
    refuse(problems)


def past_of(batch: Batch) -> Tensor | None:
    """Return the values known before the horizon: (windows, past, V); None where there are none of one length.

    They are the first channels of ``context["past"]``, or the prompts at the beginning of the histories.

    >>> values = torch.tensor([[[1.0], [2.0], [3.0]]])
    >>> past_of(Batch(values, values, torch.tensor([[False, False, True]]))).flatten()
    tensor([1., 2.])
    """
    width = batch.targets.shape[-1]
    if _in_context(batch):
        past = batch.context["past"]
        return past[..., :width] if isinstance(past, Tensor) else None
    prompts = prompt_lengths(batch)
    longest = int(prompts.max())
    return batch.history[:, :longest] if longest and longest == int(prompts.min()) else None


def long_run(
    model: Any, batch: Batch, steps: int, *, draw: str | Draw = "point", key: int = 0, bound: float = BOUND
) -> Tensor:
    """Free-run a model beyond its horizon: (rows, steps, V), or fewer steps where a row has diverged.

    The model forecasts its horizon, ``x[1..H] = free run(past)``; then the last of past and forecast becomes the past,
    ``past' = (past, x[1..H])[-P:]``, and so on: no forecast is longer than the model's horizon.

    Args:
        model: from a Batch to (batch, time, value) outputs.
        batch: windows to start from, with the past in the context or as prompts of one length; each forecast is as
            long as their horizon.
        steps: of the run.
        draw: what is fed back, see ``generate``.
        key: of the draws, where they are random.
        bound: the run stops after a forecast that exceeds it, see ``first_divergence``.

    Raises:
        UserError: windows with observed channels or covariates, which are unknown beyond the horizon; no past.

    >>> class Halve:
    ...     def __call__(self, batch):
    ...         before = torch.nn.functional.pad(batch.history, (0, 0, 1, 0))[:, :-1]
    ...         return before / 2
    >>> values = torch.tensor([[[8.0], [0.0]]])
    >>> start = Batch(values, values, torch.tensor([[False, True]]))
    >>> long_run(Halve(), start, 3).flatten()
    tensor([4., 2., 1.])
    """
    problems = call_problems(model, batch, "long_run(model, batch, steps)")
    refuse(problems + COUNT.problems(steps=steps))
    past = _startable(batch)
    in_context = _in_context(batch)
    horizon = batch.time if in_context else batch.time - past.shape[1]
    parts: list[Tensor] = []
    for number in range(-(-steps // horizon)):
        own = generate(model, batch, length=horizon, draw=draw, key=fold(key, "long run", number)).entries
        parts.append(own)
        if bool(first_divergence(own, bound).any()):
            break
        past = torch.cat([past, own.to(past)], 1)[:, -past.shape[1] :]
        if in_context:
            batch = batch.made(context={"past": past})
        else:
            history = torch.cat([past, torch.zeros_like(batch.history[:, past.shape[1] :])], 1)
            batch = batch.made(history=history, targets=torch.zeros_like(history))
    return torch.cat(parts, 1)[:, :steps]


def _in_context(batch: Batch) -> bool:
    return isinstance(batch.context, Mapping) and "past" in batch.context


def _startable(batch: Batch) -> Tensor:
    """Return the past of windows that need nothing else."""
    past = past_of(batch)
    context: Any = {} if batch.context is None else batch.context
    others = set(context) - {"past"} if isinstance(context, Mapping) else {"the context"}
    if past is None:
        raise UserError("a long run needs windows with a past of one length to start from")
    if others:
        raise UserError(
            f"a long run has no values for {', '.join(sorted(map(str, others)))} beyond the window: it needs a series "
            "without covariates"
        )
    if extra := context["past"].shape[-1] - past.shape[-1] if _in_context(batch) else 0:
        raise UserError(f"a long run would need the {extra} observed channels that the model does not predict")
    return past


_LEAST, _POINTS, _FREQUENCIES = 400, 1500, 240


def climate_of(
    model: Any, batch: Batch, gold: Tensor | None, draw: Draw, names: tuple[str, ...]
) -> tuple[Climate | None, str]:
    """Return the climate of a run from the first window on, as long as gold (T, V); or None and the reason."""
    if gold is None:
        return None, "there is no long series"
    if gold.shape[0] < _LEAST:
        return None, f"the series has {gold.shape[0]} steps; a climate needs at least {_LEAST}"
    first = torch.zeros(1, dtype=torch.int64, device=batch.history.device)
    try:
        run = long_run(model, batch.select(first), gold.shape[0], draw=draw)[0].cpu().double()
    except UserError as error:
        return None, error.problems[0]
    gold = gold.cpu().double()
    if diverged := int(first_divergence(run[None])):
        return Climate(gold.shape[0], diverged, ""), ""
    return _measured(gold, run, names), ""


def _measured(gold: Tensor, run: Tensor, names: tuple[str, ...]) -> Climate:
    states, own, plane, space, axes = _states(gold, run, names)
    half, states_half = gold.shape[0] // 2, states.shape[0] // 2
    # as many cells as states at most: of emptier ones only the smoothing would be measured
    bins = max(4, min(30, round(states.shape[0] ** (1 / min(3, states.shape[1])))))
    # 20 frequencies are usual for 100,000 steps; of a few thousand they would leave no peak
    width = max(4.0, min(20.0, gold.shape[0] / 250))
    powers = [power_spectrum(each, smoothing=width).mean(1) for each in (gold, run)]
    frequencies, means = _thinned(powers, gold.shape[0])
    return Climate(
        steps=gold.shape[0],
        diverged_at=None,
        space=space,
        bins=bins,
        spread=float((run.std(0) / gold.std(0)).mean()),
        state=state_histogram_divergence(states, own, bins=bins),
        state_gold=state_histogram_divergence(states[:states_half], states[states_half:], bins=bins),
        smoothing=width,
        spectrum=spectrum_distance(gold, run, smoothing=width),
        spectrum_gold=spectrum_distance(gold[:half], gold[half : 2 * half], smoothing=width),
        frequencies=frequencies,
        powers=means,
        points=tuple(tuple(tuple(row) for row in each[-_POINTS:].tolist()) for each in plane),
        axes=axes,
    )


def _states(
    gold: Tensor, run: Tensor, names: tuple[str, ...]
) -> tuple[Tensor, Tensor, list[Tensor], str, tuple[str, str]]:
    """States of both, the same in two dimensions, what they are in words, and the names of the two dimensions."""
    states = [gold, run]
    if gold.shape[1] > 2:
        middle, axes = gold.mean(0), principal_components(gold, 2)
        words = "the three channels" if gold.shape[1] == 3 else "the first three principal components of gold"
        plane = [(each - middle) @ axes for each in states]
        return gold, run, plane, words, ("first principal component", "second principal component")
    words, labels = f"the channels {names[0]} and {names[-1]}", (names[0], names[-1])
    if gold.shape[1] == 1:
        lag = min(decorrelation(gold), gold.shape[0] // 10)
        words = f"delay coordinates x(t), x(t \N{MINUS SIGN} {lag}), x(t \N{MINUS SIGN} {2 * lag})"
        labels = "x(t)", f"x(t \N{MINUS SIGN} {lag})"
        states = [delay_embedding(each, lag) for each in states]
    return states[0], states[1], [each[:, :2] for each in states], words, labels


def _thinned(powers: list[Tensor], steps: int) -> tuple[tuple[float, ...], tuple[tuple[float, ...], ...]]:
    """Means over stretches of the spectra, up to the frequency below which 99.9 % of gold's power lies."""
    enough = int((powers[0].cumsum(0) < 0.999).sum()) + 1
    width = max(1, -(-enough // _FREQUENCIES))
    count = -(-enough // width)
    means = [torch.stack([part.mean() for part in power[: count * width].split(width)]) for power in powers]
    centres = [sum(range(i * width + 1, i * width + 1 + width)) / width / steps for i in range(means[0].numel())]
    return tuple(centres), tuple(tuple(each.tolist()) for each in means)
