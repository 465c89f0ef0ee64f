"""``diagnose`` for values: both ways of being told, naive rows, growth, climate, some windows whole."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from freerun.arguments import Arguments, brief, is_number
from freerun.batch import Batch, must_be
from freerun.diagnostics.climate import climate_of, past_of
from freerun.diagnostics.naive import last_period, last_value, mean
from freerun.diagnostics.results import Fan, Growing, Naive, Side, Spread, ValueDiagnosis
from freerun.distributions import HEADS
from freerun.draws import DRAWS, Draw
from freerun.errors import UserError, whole
from freerun.generation import generate
from freerun.keys import fold
from freerun.metrics.outputs import (
    at_horizon,
    first_divergence_of,
    gap_by_horizon,
    nrmse_last_tenth,
    quantiles,
    summarised,
    valid_time_of_errors,
    window_errors,
    window_nrmse,
)
from freerun.rollin.model import eval_mode, forward

_LEVELS = (0.05, 0.25, 0.75, 0.95)


_SAMPLES = 100


_CHANNELS = 4


_SAMPLED = {"gaussian": "gaussian", "student_t": "student_t", "quantiles": "quantile_sample"}


@dataclass(frozen=True, eq=False)
class DiagnosisOptions(Arguments):
    """What is known of the data, and how much is asked.

    Args:
        exponent: largest Lyapunov exponent, per step; None: not known.
        period: steps after which the data repeat themselves, more or less; None: not known.
        threshold: of the valid time, in standard deviations.
        names: of the channels; default: their numbers.
        scale: (mean, std), each (V,): windows are shown in ``mean + std * value``; None: as they are.
        naive: further forecasts that need no model: name -> from (past, horizon) to (windows, horizon, V).
        long: (T, V) gold for the climate of a long free run, from the start of the first window on; None: none.
        draw: what is fed back; None: the value said, or the mean of the distribution said.
        fans: windows that are shown whole.
        end: id of the end symbol, for ids; None: there is none.
        key: of sampled runs.
    """

    __repr__ = brief

    exponent: float | None = None
    period: int | None = None
    threshold: float = 0.4
    names: tuple[str, ...] = ()
    scale: tuple[Tensor, Tensor] | None = None
    naive: Mapping[str, Callable[[Tensor, int], Tensor]] = field(default_factory=dict[str, Any])
    long: Tensor | None = None
    draw: Draw | None = None
    fans: int = 6
    end: int | None = None
    key: int = 0

    def __post_init__(self) -> None:
        problems: list[str] = []
        if self.exponent is not None and not is_number(self.exponent):
            problems.append(f"exponent must be a finite number, per step; got {self.exponent!r}")
        if self.period is not None and (whole(self.period) is None or self.period < 1):
            problems.append(f"period must be at least 1 step, a whole number; got {self.period!r}")
        if not is_number(self.threshold) or self.threshold <= 0:
            problems.append(f"threshold must be above 0; got {self.threshold!r}")
        if whole(self.fans) is None or self.fans < 0:
            problems.append(f"fans must be a number of windows, 0 or more; got {self.fans!r}")
        if self.end is not None and (whole(self.end) is None or self.end < 0):
            problems.append(f"end must be the id of the end symbol, or None; got {self.end!r}")
        if problems:
            raise UserError(problems)


def head_of(model: Any) -> str:
    """Name of the distribution that a model says, or "point": its attribute ``head``, or among its ``settings()``."""
    head = getattr(model, "head", None)
    if isinstance(head, str):
        return head
    settings = getattr(model, "settings", None)
    told: Any = settings() if callable(settings) else {}
    return str(told.get("head", "point"))


def feeding(model: Any) -> Draw:
    """What feeds a model's outputs back: the value said, or the mean of the distribution said."""
    head = head_of(model)
    return DRAWS["point"]() if head == "point" else DRAWS["expected"](head=head)


def diagnose_values(
    model: Any, batches: Sequence[Batch], about: DiagnosisOptions, watch: Callable[[str], None] | None = None
) -> ValueDiagnosis:
    """See ``diagnose``."""
    told, own, gold, past = _both(model, batches, about, watch)
    forced_errors, free_errors = window_errors(told, gold), window_errors(own, gold)
    forced, free = summarised(forced_errors), summarised(free_errors)
    times = valid_time_of_errors(free_errors, about.threshold)
    grown = growth(free.quantiles[1], about.exponent, ceiling=about.threshold)
    ratio = None if grown.ratio is None else tuple(grown.ratio.tolist())
    gone = first_divergence_of(own)
    if watch:
        watch("long run")
    climate, note = climate_of(
        model, batches[0], about.long, about.draw or feeding(model), about.names or _numbered(gold)
    )
    if watch:
        watch("windows shown")
    return ValueDiagnosis(
        windows=gold.shape[0],
        horizon=gold.shape[1],
        channels=about.names or _numbered(gold),
        teacher_forced=Side.of(forced, window_nrmse(forced_errors), nrmse_last_tenth(forced_errors)),
        free_running=Side.of(free, window_nrmse(free_errors), nrmse_last_tenth(free_errors)),
        gap_by_lead=tuple(gap_by_horizon(free.quantiles[1], forced.quantiles[1]).tolist()),
        naive={name: _naive(said, gold) for name, said in _without_model(past, gold.shape[1], about).items()},
        threshold=about.threshold,
        valid_time=Spread.of(times),
        valid_throughout=int((times == gold.shape[1]).sum()),
        growth=Growing(grown.rate, grown.exponent, grown.fitted, ratio),
        diverged=tuple((number, lead) for number, lead in enumerate(gone.tolist()) if lead),
        climate=climate,
        climate_note=note,
        fans=tuple(_fans(model, batches, (told, own, gold, past), about)),
        period=about.period,
    )


def _both(
    model: Any, batches: Sequence[Batch], about: DiagnosisOptions, watch: Callable[[str], None] | None
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Told gold, told its own, gold, and the past: (windows, H or P, V) each."""
    parts: list[tuple[Tensor, Tensor, Tensor]] = []
    pasts: list[Tensor | None] = []
    draw = about.draw or feeding(model)
    for number, batch in enumerate(batches):
        if watch:
            watch(f"windows, part {number + 1} of {len(batches)}")
        gold = at_horizon(batch.targets, batch.mask)
        with eval_mode(model), torch.no_grad():
            told = at_horizon(_said(model, forward(model, batch)), batch.mask)
        own = generate(model, batch, length=gold.shape[1], draw=draw, key=fold(about.key, number)).entries
        if told.shape != gold.shape:
            raise UserError(
                f"the model says {tuple(told.shape)} where gold is {tuple(gold.shape)}: its head does not fit"
            )
        parts.append((told.cpu(), own.cpu(), gold.cpu()))
        past = past_of(batch)
        pasts.append(None if past is None else past.cpu())
    told, own, gold = (torch.cat([part[i] for part in parts]) for i in range(3))
    known = [past for past in pasts if past is not None]
    return told, own, gold, torch.cat(known) if len(known) == len(pasts) else None


def _said(model: Any, outputs: Tensor) -> Tensor:
    head = head_of(model)
    return outputs if head == "point" else HEADS[head]().mean(outputs)


def _without_model(past: Tensor | None, horizon: int, about: DiagnosisOptions) -> dict[str, Tensor]:
    if past is None:
        return {}
    found = {"last_value": last_value(past, horizon)}
    if about.period is not None and about.period <= past.shape[1]:
        found["last_period"] = last_period(past, horizon, about.period)
    found["mean"] = mean(past, horizon)
    return found | {name: say(past, horizon).to(past) for name, say in about.naive.items()}


def _naive(said: Tensor, gold: Tensor) -> Naive:
    errors = window_errors(said, gold)
    found = summarised(errors, (0.5,))
    return Naive(
        tuple(found.quantiles[0].tolist()),
        tuple(found.rmse.tolist()),
        Spread.of(window_nrmse(errors)),
        Spread.of(nrmse_last_tenth(errors)),
    )


def _fans(
    model: Any, batches: Sequence[Batch], found: tuple[Tensor, Tensor, Tensor, Tensor | None], about: DiagnosisOptions
) -> list[Fan]:
    told, own, gold, past = found
    kept = min(about.fans, gold.shape[0])
    numbers = [number * gold.shape[0] // kept for number in range(kept)]
    bands = _bands(model, batches, numbers, about)
    shown: list[Fan] = []
    for place, number in enumerate(numbers):
        tail = gold[number, :0] if past is None else past[number, -max(10, gold.shape[1] // 2) :]
        lead = int(first_divergence_of(own[number : number + 1]))
        levels = tuple((level, _units(band[place], about)) for level, band in bands.items())
        shown.append(
            Fan(
                window=number,
                past=_units(tail, about),
                gold=_units(gold[number], about),
                forced=_units(told[number], about),
                free=_units(own[number], about),
                bands=levels,
                diverged_at=lead or None,
            )
        )
    return shown


def _units(values: Tensor, about: DiagnosisOptions) -> tuple[tuple[float, ...], ...]:
    """(steps, V) in the data's own units, of the first channels."""
    values = values.double()
    if about.scale is not None:
        values = values * about.scale[1].double() + about.scale[0].double()
    return tuple(tuple(row) for row in values[:, :_CHANNELS].tolist())


def _bands(
    model: Any, batches: Sequence[Batch], numbers: Sequence[int], about: DiagnosisOptions
) -> dict[float, Tensor]:
    """Level -> (windows shown, H, V) of sampled free runs; {} where the model says values alone."""
    head = head_of(model)
    if head == "point" or not numbers:
        return {}
    draw = DRAWS[_SAMPLED[head]]()
    found: list[Tensor] = []
    for place, number in enumerate(numbers):
        batch = _row(batches, number)
        many = replace(batch.select(batch.row_numbers.new_zeros(_SAMPLES)), rows=torch.arange(_SAMPLES))
        horizon = int(batch.mask.sum())
        said = generate(model, many, length=horizon, draw=draw, key=fold(about.key, "fan", place)).entries
        found.append(quantiles(said.cpu().double(), _LEVELS))
    return dict(zip(_LEVELS, torch.stack(found, 1), strict=True))


def _row(batches: Sequence[Batch], number: int) -> Batch:
    for batch in batches:
        if number < batch.size:
            return batch.select(torch.tensor([number]))
        number -= batch.size
    raise AssertionError("no such window")


def _numbered(gold: Tensor) -> tuple[str, ...]:
    return tuple(f"channel {number}" for number in range(1, gold.shape[-1] + 1))


@dataclass(frozen=True, eq=False)
class Growth:
    """How an error grows, beside the system's own growth of small errors.

    Args:
        rate: fitted slope of log error, per step; None where fewer than three leads could be fitted.
        exponent: the largest Lyapunov exponent, per step; None where it is not known.
        fitted: leads 1..fitted were used.
        ratio: (H,) error(t) / (error(1) exp(exponent (t - 1))); None without an exponent.
    """

    __repr__ = brief

    rate: float | None
    exponent: float | None
    fitted: int
    ratio: Tensor | None


def growth(errors: Tensor, exponent: float | None = None, *, ceiling: float = 0.4) -> Growth:
    """How fast an error grows, and how that stands to exp(lambda t), at which a perfect model's would.

    ``rate``: least-squares slope of ``log error(t)`` over the leads 1..n before the error first passes the ceiling;
    ``ratio[t] = error(t) / (error(1) exp(lambda (t - 1)))``: 1 where the error grows as any small error does in the
    system, above 1 where the model's own errors add to it.

    Args:
        errors: (H,) by lead time; the median over windows, since it is the typical log error that grows with lambda.
        exponent: lambda, the largest Lyapunov exponent, per step; None: not known.
        ceiling: errors above it have stopped being small, in the units of the errors.

    Raises:
        UserError: no errors, or an exponent that is not finite.

    >>> import math
    >>> found = growth(0.01 * torch.tensor([1.0, 2.0, 4.0, 8.0]), exponent=math.log(2.0))
    >>> round(found.rate, 6), found.ratio.round(decimals=4)
    (0.693147, tensor([1., 1., 1., 1.], dtype=torch.float64))

    What it is not: an estimate of the system's exponent; that is asked of two true trajectories.
    """
    must_be("", "real", errors=errors)
    if errors.dim() != 1 or errors.numel() == 0:
        raise UserError(f"errors must be (H,), by lead time; got {tuple(errors.shape)}")
    if exponent is not None and not is_number(exponent):
        raise UserError(f"exponent must be a finite number, per step; got {exponent!r}")
    if not is_number(ceiling) or ceiling <= 0:
        raise UserError(f"ceiling must be a number above 0, in the units of the errors; got {ceiling!r}")
    errors = errors.double()
    small = torch.isfinite(errors) & (errors > 0) & (errors <= ceiling)
    fitted = int(small.long().cumprod(0).sum())
    rate = None
    if fitted >= 3:
        t = torch.arange(fitted, dtype=torch.float64, device=errors.device)
        logs = errors[:fitted].log()
        t = t - t.mean()
        rate = float((t * (logs - logs.mean())).sum() / t.square().sum())
    ratio = None
    if exponent is not None:
        t = torch.arange(errors.numel(), dtype=torch.float64, device=errors.device)
        ratio = errors / (errors[0] * (exponent * t).exp())
    return Growth(rate, exponent, fitted, ratio)
