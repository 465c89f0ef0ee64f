"""``diagnose`` for values: both kinds of history, naive baselines, growth, climate, sample windows."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor

from freerun.arguments import Arguments, Range, above, at_least, brief, finite, one_of
from freerun.batch import Batch, must_be
from freerun.diagnostics.climate import climate_of, past_of
from freerun.diagnostics.naive import naive_forecasts
from freerun.diagnostics.results import Growing, Growth, Naive, SampleWindow, Side, Spread, ValueDiagnosis
from freerun.draws import Draw
from freerun.errors import UserError
from freerun.generation import draw_for, generate, head_of, point_prediction
from freerun.keys import fold
from freerun.metrics.accumulation import DIVERGENCES
from freerun.metrics.outputs import at_horizon, first_divergence, gap_by_horizon, quantiles, valid_steps, window_errors
from freerun.rollin.model import eval_mode, forward
from freerun.types import evenly

_LEVELS = (0.05, 0.25, 0.75, 0.95)
_SAMPLES = 100
CHANNELS = 4
"""Channels of a sample window at most."""


@dataclass(frozen=True, eq=False)
class DiagnosisOptions(Arguments):
    """Known properties of the data, and what is measured.

    Args:
        exponent: largest Lyapunov exponent, per step; None: unknown.
        period: steps after which the data about repeat themselves; None: unknown.
        threshold: of the valid time, in standard deviations.
        names: of the channels; default: their numbers.
        scale: (mean, std), each (V,) or, of each window its own, (windows, V): sample windows are in
            ``mean + std * value``; None: as they are.
        moments: (mean, std), each (V,), of values that are not normalised: what errors are in standard deviations of;
            None: the values are normalised.
        naive: further naive baselines: name -> from (past, horizon) to (windows, horizon, V).
        long_series: (T, V) gold for the climate of a long free run, from the start of the first window on; None: none.
        draw: what is fed back; None: the model's output, or the mean of the distribution that it describes. Of ids: of
            the sampled free runs, beside the greedy ones; None: plain sampling.
        sample_windows: number of windows that the result contains completely.
        end_symbol: id of the end symbol, for ids; None: there is none.
        length_margin: ids that free runs may have beyond the longest gold of a batch, where there is an end symbol.
        reference: False for ids whose free runs have no gold to be compared with, as continuations of texts have none.
        oracle: of ids: a model of the data, as a world of ``freerun.data``, which divergences are measured from.
        divergence: from the oracle; see ``freerun.metrics.divergence``. Arora et al. compute "forward", He et al.
            "total_variation" and "jensen_shannon".
        sources: of ids: each row's source in words, for examples.
        decode: of ids: from ids to their symbols; None: the numbers.
        examples: number of rows of ids that the result contains completely.
        key: of sampled runs.

    Raises:
        UserError: values out of range, all at once.
    """

    __repr__ = brief
    exponent: float | None = finite(None)
    period: int | None = at_least(1, None)
    threshold: float = above(0, 0.4)
    names: tuple[str, ...] = ()
    scale: tuple[Tensor, Tensor] | None = None
    moments: tuple[Tensor, Tensor] | None = None
    naive: Mapping[str, Callable[[Tensor, int], Tensor]] = field(default_factory=dict[str, Any])
    long_series: Tensor | None = None
    draw: Draw | None = None
    sample_windows: int = at_least(0, 6)
    end_symbol: int | None = at_least(0, None)
    length_margin: int = at_least(0, 5)
    reference: bool = True
    oracle: Any = None
    divergence: str = one_of(DIVERGENCES, "forward")
    sources: Sequence[str] = ()
    decode: Callable[[Sequence[int]], Sequence[str]] | None = None
    examples: int = at_least(0, 200)
    key: int = 0


@dataclass(frozen=True, eq=False)
class _Outputs:
    """Outputs of all windows, (windows, H, V) each, and the known past: (windows, P, V) or None."""

    teacher_forced: Tensor
    free_running: Tensor
    gold: Tensor
    past: Tensor | None

    def normalised(self, moments: tuple[Tensor, Tensor] | None) -> _Outputs:
        """The same in standard deviations from the mean."""
        if moments is None:
            return self
        mean, std = (each.double().cpu() for each in moments)
        parts = (self.teacher_forced, self.free_running, self.gold, self.past)
        return _Outputs(*(cast(Tensor, None if part is None else (part.double() - mean) / std) for part in parts))


def diagnose_values(
    model: Any, batches: Sequence[Batch], about: DiagnosisOptions, on_progress: Callable[[str], None]
) -> ValueDiagnosis:
    """See ``diagnose``."""
    raw = _both_ways(model, batches, about, on_progress)
    outputs = raw.normalised(about.moments)
    gold, names = outputs.gold, about.names or tuple(f"channel {n}" for n in range(1, outputs.gold.shape[-1] + 1))
    free_errors = window_errors(outputs.free_running, gold)
    forced, free = Side.of(window_errors(outputs.teacher_forced, gold)), Side.of(free_errors)
    times = valid_steps(free_errors, about.threshold)
    medians = torch.tensor([forced.median, free.median], dtype=torch.float64)
    grown = growth(medians[1], about.exponent, ceiling=about.threshold)
    past, horizon = outputs.past, gold.shape[1]
    naive = {} if past is None else naive_forecasts(past, horizon, about.period, about.naive)
    on_progress("long run")
    climate, note = climate_of(model, batches[0], about.long_series, about.draw or draw_for(model), names)
    on_progress("sample windows")
    return ValueDiagnosis(
        windows=gold.shape[0],
        horizon=horizon,
        channels=names,
        teacher_forced=forced,
        free_running=free,
        gap_by_horizon=tuple(gap_by_horizon(medians[1], medians[0]).tolist()),
        naive={name: Naive.of(window_errors(forecast, gold)) for name, forecast in naive.items()},
        threshold=about.threshold,
        valid_time=Spread.of(times),
        valid_throughout=int((times == horizon).sum()),
        growth=Growing.of(grown),
        diverged=tuple((n, lead) for n, lead in enumerate(first_divergence(outputs.free_running).tolist()) if lead),
        climate=climate,
        climate_note=note,
        sample_windows=tuple(_sample_windows(model, batches, raw, about)),
        period=about.period,
    )


def _both_ways(
    model: Any, batches: Sequence[Batch], about: DiagnosisOptions, on_progress: Callable[[str], None]
) -> _Outputs:
    parts: list[tuple[Tensor, Tensor, Tensor]] = []
    pasts: list[Tensor] = []
    draw = about.draw or draw_for(model)
    for number, batch in enumerate(batches):
        on_progress(f"windows, part {number + 1} of {len(batches)}")
        gold = at_horizon(batch.targets, batch.mask)
        with eval_mode(model), torch.no_grad():
            forced = at_horizon(point_prediction(model, forward(model, batch)), batch.mask)
        own = generate(model, batch, length=gold.shape[1], draw=draw, key=fold(about.key, number)).entries
        if forced.shape != gold.shape:
            raise UserError(
                f"the model's outputs are {tuple(forced.shape)} and gold is {tuple(gold.shape)}: its head does not fit"
            )
        parts.append((forced.cpu(), own.cpu(), gold.cpu()))
        if gold.shape[1:] != parts[0][2].shape[1:]:
            raise UserError(
                f"batch {number} has horizon and values {tuple(gold.shape[1:])}, and batch 0 has "
                f"{tuple(parts[0][2].shape[1:])}: errors by lead time need one horizon; diagnose them apart"
            )
        past = past_of(batch)
        pasts += [] if past is None else [past.cpu()]
    forced, own, gold = (torch.cat([part[i] for part in parts]) for i in range(3))
    return _Outputs(forced, own, gold, torch.cat(pasts) if len(pasts) == len(batches) else None)


def _sample_windows(
    model: Any, batches: Sequence[Batch], outputs: _Outputs, about: DiagnosisOptions
) -> Iterator[SampleWindow]:
    numbers = evenly(outputs.gold.shape[0], about.sample_windows)
    bands = _bands(model, batches, numbers, about)

    def in_units(values: Tensor, number: int) -> Tensor:
        if about.scale is None:
            return values
        mean, std = (each.double() if each.dim() == 1 else each[number].double() for each in about.scale)
        return values * std + mean

    for index, number in enumerate(numbers):
        past = outputs.gold[number, :0] if outputs.past is None else outputs.past[number]
        parts = (past, outputs.gold[number], outputs.teacher_forced[number], outputs.free_running[number])
        yield sample_window(
            number, parts, partial(in_units, number=number), {level: band[index] for level, band in bands.items()}
        )


def sample_window(
    number: int,
    parts: tuple[Tensor, Tensor, Tensor, Tensor],
    in_units: Callable[[Tensor], Tensor],
    bands: Mapping[float, Tensor] | None = None,
) -> SampleWindow:
    """Return a complete window from past, gold, teacher-forced and free-running outputs, (steps, V) each."""
    past, gold, teacher_forced, free_running = parts

    def rows(values: Tensor) -> tuple[tuple[float, ...], ...]:
        return tuple(tuple(row) for row in in_units(values.double().cpu())[:, :CHANNELS].tolist())

    return SampleWindow(
        window=number,
        past=rows(past[-max(10, gold.shape[0] // 2) :]),  # half as much as of the horizon
        gold=rows(gold),
        teacher_forced=rows(teacher_forced),
        free_running=rows(free_running),
        bands=tuple((level, rows(band)) for level, band in (bands or {}).items()),
        diverged_at=int(first_divergence(free_running[None])) or None,
    )


def _bands(
    model: Any, batches: Sequence[Batch], numbers: Sequence[int], about: DiagnosisOptions
) -> dict[float, Tensor]:
    """Level -> (sample windows, H, V) of sampled free runs; {} where the model outputs values only."""
    if head_of(model) == "point" or not numbers:
        return {}
    draw = draw_for(model, "sample")
    bands: list[Tensor] = []
    windows = [(batch, row) for batch in batches for row in range(batch.size)]
    for index, number in enumerate(numbers):
        batch, row = windows[number]
        one, key = batch.select(torch.tensor([row])), fold(about.key, "fan", index)
        length = int(batch.mask[row].sum())
        own = generate(model, one, length=length, draw=draw, key=key, num_samples=_SAMPLES).entries[0]
        bands.append(quantiles(own.cpu().double(), _LEVELS))
    return dict(zip(_LEVELS, torch.stack(bands, 1), strict=True))


def growth(errors: Tensor, exponent: float | None = None, *, ceiling: float = 0.4) -> Growth:
    """Fit the growth rate of an error, and compare it with exp(lambda t), the growth of a perfect model's error.

    ``rate``: least-squares slope of ``log error(t)`` over lead times 1..n, before the error first passes the ceiling;
    ``ratio[t] = error(t) / (error(1) exp(lambda (t - 1)))``: 1 where the error grows as any small error does in the
    system, above 1 where the model's own errors add to it.

    Args:
        errors: (H,) by lead time; the median over windows, since it is the typical log error that grows with lambda.
        exponent: lambda, the largest Lyapunov exponent, per step; None: unknown.
        ceiling: errors above it are not small any more, in the units of the errors.

    Raises:
        UserError: no errors, or an exponent that is not finite.

    >>> import math
    >>> grown = growth(0.01 * torch.tensor([1.0, 2.0, 4.0, 8.0]), exponent=math.log(2.0))
    >>> round(grown.rate, 6), grown.ratio.round(decimals=4)
    (0.693147, tensor([1., 1., 1., 1.], dtype=torch.float64))

    What it is not: an estimate of the system's exponent; that takes two true trajectories.
    """
    must_be("", "real", errors=errors)
    if errors.dim() != 1 or errors.numel() == 0:
        raise UserError(f"errors must be (H,), by lead time; got {tuple(errors.shape)}")
    Range(optional=True).check(exponent=exponent)
    Range(0, ends="(]").check(ceiling=ceiling)
    errors = errors.double()
    small = torch.isfinite(errors) & (errors > 0) & (errors <= ceiling)
    fitted = int(small.long().cumprod(0).sum())
    times = torch.arange(errors.numel(), dtype=torch.float64, device=errors.device)
    rate = None
    if fitted >= 3:
        t, logs = times[:fitted] - times[:fitted].mean(), errors[:fitted].log()
        rate = float((t * (logs - logs.mean())).sum() / t.square().sum())
    ratio = None if exponent is None else errors / (errors[0] * (exponent * times).exp())
    return Growth(rate, exponent, fitted, ratio)
