"""Results of ``diagnose``, as plain numbers that JSON can hold."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor

from freerun.arguments import brief
from freerun.diagnostics.intervals import Interval
from freerun.diagnostics.tokens import (
    AccumulatedError,
    Aligned,
    Calibration,
    Corruption,
    ErrorRatio,
    HiddenDistance,
    Lengths,
)
from freerun.metrics.outputs import HorizonErrors, nrmse_last_tenth, quantiles, window_nrmse

SCHEMA = 3
Row = tuple[float, ...]


@dataclass(frozen=True)
class Spread:
    """Median over windows, and the quartiles below and above it."""

    __repr__ = brief
    low: float
    median: float
    high: float

    @classmethod
    def of(cls, values: Tensor) -> Spread:
        """Of (windows,) numbers; infinite ones stay in it."""
        return cls(*quantiles(values.double(), (0.25, 0.5, 0.75)).tolist())


def _nrmse(by_window: Tensor) -> tuple[Spread, Spread]:
    return Spread.of(window_nrmse(by_window)), Spread.of(nrmse_last_tenth(by_window))


@dataclass(frozen=True)
class Side:
    """Errors with one kind of history: gold (teacher-forced), or the model's own output (free-running)."""

    __repr__ = brief
    rmse: Row  # by lead time, over the windows that are left there
    low: Row  # quartiles over all windows by lead time, infinite for windows that diverged
    median: Row
    high: Row
    left: tuple[int, ...]  # windows that have not diverged, by lead time
    nrmse: Spread  # over windows, of the complete horizon
    nrmse_last_tenth: Spread  # over windows, of its last tenth

    @classmethod
    def of(cls, by_window: Tensor) -> Side:
        """From errors (windows, H)."""
        errors = HorizonErrors.of(by_window)
        low, median, high = (tuple(each) for each in errors.quantiles.tolist())
        return cls(tuple(errors.rmse.tolist()), low, median, high, tuple(errors.left.tolist()), *_nrmse(by_window))


@dataclass(frozen=True)
class Naive:
    """Errors of a naive baseline: median over windows by lead time, and NRMSE over windows."""

    __repr__ = brief
    median: Row
    rmse: Row
    nrmse: Spread
    nrmse_last_tenth: Spread

    @classmethod
    def of(cls, by_window: Tensor) -> Naive:
        """From errors (windows, H)."""
        errors = HorizonErrors.of(by_window, (0.5,))
        return cls(tuple(errors.quantiles[0].tolist()), tuple(errors.rmse.tolist()), *_nrmse(by_window))


@dataclass(frozen=True, eq=False)
class Growth:
    """Growth of an error, beside the system's own growth of small errors.

    Args:
        rate: fitted slope of log error, per step; None where fewer than three lead times could be fitted.
        exponent: the largest Lyapunov exponent, per step; None where it is not known.
        fitted: lead times 1..fitted were used.
        ratio: (H,) error(t) / (error(1) exp(exponent (t - 1))); None without an exponent.
    """

    __repr__ = brief
    rate: float | None
    exponent: float | None
    fitted: int
    ratio: Tensor | None


@dataclass(frozen=True)
class Growing:
    """``Growth`` of the free-running error, as plain numbers."""

    __repr__ = brief
    rate: float | None
    exponent: float | None
    fitted: int
    ratio: Row | None

    @classmethod
    def of(cls, grown: Growth) -> Growing:
        """From tensors."""
        ratio = None if grown.ratio is None else tuple(grown.ratio.tolist())
        return cls(grown.rate, grown.exponent, grown.fitted, ratio)


@dataclass(frozen=True)
class Climate:
    """A long free run compared with gold; where it diverged, all but ``steps`` and ``diverged_at`` is unset."""

    __repr__ = brief
    steps: int  # of both
    diverged_at: int | None  # lead time at which the run diverged, or None
    space: str  # what the states are, in words
    bins: int = 0  # of the histogram in each dimension
    spread: float | None = None  # standard deviation of the run, divided by gold's; mean over channels
    state: float | None = None  # D_stsp of the run
    state_gold: float | None = None  # D_stsp of gold's second half from its first: the effect of chance alone
    smoothing: float = 0.0  # of the spectra, in frequencies
    spectrum: float | None = None  # D_H of the run
    spectrum_gold: float | None = None  # D_H of gold's halves
    frequencies: Row = ()  # of the spectra, in cycles a step
    powers: tuple[Row, ...] = ()  # of gold and of the run, at these frequencies, mean over channels
    points: tuple[
        tuple[Row, ...], ...
    ] = ()  # the last states of gold and of the run in two dimensions, at most 1500 each
    axes: tuple[str, ...] = ()  # names of the two dimensions


@dataclass(frozen=True)
class SampleWindow:
    """A complete window in the units of the data; each of its parts by step, then by channel.

    Args:
        window: its number.
        past: the last steps known before.
        gold: the true values.
        teacher_forced: the outputs on gold history: one step ahead each.
        free_running: the outputs on the model's own history.
        bands: levels and sampled free runs at these levels, or ().
        diverged_at: lead time at which the free run diverged, or None.
    """

    __repr__ = brief
    window: int
    past: tuple[Row, ...]
    gold: tuple[Row, ...]
    teacher_forced: tuple[Row, ...]
    free_running: tuple[Row, ...]
    bands: tuple[tuple[float, tuple[Row, ...]], ...]
    diverged_at: int | None


@dataclass(frozen=True)
class ValueDiagnosis:
    """Exposure bias of a model of values. Errors are in standard deviations of the training part.

    Args:
        windows: their number.
        horizon: number of lead times.
        channels: names of the values.
        teacher_forced: errors on gold history.
        free_running: errors on the model's own.
        gap_by_horizon: signed: free-running minus teacher-forced median error; infinite where half the windows
            diverged.
        naive: the baselines by name.
        threshold: of the valid time.
        valid_time: steps over windows; the horizon where the error never passed.
        valid_throughout: windows of which the error never passed.
        growth: of the free-running error.
        diverged: window numbers and lead times at which their free runs diverged.
        climate: of a long run, or None.
        climate_note: the reason for None.
        sample_windows: some complete windows.
        period: steps after which the data repeat themselves, or None.
    """

    __repr__ = brief
    windows: int
    horizon: int
    channels: tuple[str, ...]
    teacher_forced: Side
    free_running: Side
    gap_by_horizon: Row
    naive: dict[str, Naive]
    threshold: float
    valid_time: Spread
    valid_throughout: int
    growth: Growing
    diverged: tuple[tuple[int, int], ...]
    climate: Climate | None
    climate_note: str
    sample_windows: tuple[SampleWindow, ...]
    period: int | None = None
    kind: str = "values"


@dataclass(frozen=True)
class ErrorPropagation:
    """How often an entry is wrong, by whether the one before it was.

    Args:
        after_error: share wrong where the entry before is wrong; None where there is no such entry.
        after_correct: share wrong where the entry before is right.
        wrong: entries of which the one before is wrong.
        right: entries of which the one before is right.
    """

    __repr__ = brief
    after_error: float | None
    after_correct: float | None
    wrong: int
    right: int

    @property
    def ratio(self) -> float | None:
        """after_error / after_correct: 1 where errors are independent of the entry before."""
        if self.after_error is None or not self.after_correct:
            return None
        return self.after_error / self.after_correct


@dataclass(frozen=True)
class IdSide:
    """Wrong entries with one kind of history."""

    __repr__ = brief
    wrong_by_position: Row  # share of the rows that have an entry there
    wrong: float  # share of all entries
    errors: int  # number of wrong entries
    after: ErrorPropagation  # how often an entry is wrong after a wrong and after a right one


@dataclass(frozen=True)
class ErrorGap:
    """Share of entries that are wrong free-running, minus the share that are teacher-forced, over rows.

    ``gap = sum_r d_r / sum_r n_r`` with d_r the difference of a row's errors and n_r its entries; the interval is ``gap
    +- 1.96 sqrt(R / (R - 1) sum_r (d_r - gap n_r)^2) / sum_r n_r``, as rows are independent and entries are not.

    Args:
        gap: signed.
        low: end of the 95 % interval; None with one row.
        high: the other.
        rows: that have an error. Up to its first error a greedy model is the same both ways: other rows tell nothing.
    """

    __repr__ = brief
    gap: float
    low: float | None
    high: float | None
    rows: int

    @classmethod
    def of(cls, teacher_forced: Tensor, free_running: Tensor, entries: Tensor) -> ErrorGap:
        """From each row's errors both ways, and its entries: (rows,) each.

        >>> import torch
        >>> found = ErrorGap.of(torch.tensor([1, 0]), torch.tensor([3, 0]), torch.tensor([4, 4]))
        >>> found.gap, round(found.high - found.gap, 4), found.rows
        (0.25, 0.49, 1)
        """
        difference, entries = (free_running - teacher_forced).double(), entries.double()
        gap = float(difference.sum() / entries.sum())
        count = int((free_running > 0).sum())
        if len(entries) < 2:
            return cls(gap, None, None, count)
        rest = (difference - gap * entries).square().sum() * len(entries) / (len(entries) - 1)
        half = 1.96 * float(rest.sqrt() / entries.sum())
        return cls(gap, gap - half, gap + half, count)


@dataclass(frozen=True)
class FreeRun:
    """Free runs of one kind, greedy or sampled.

    Args:
        draw: what is fed back.
        aligned: against gold, by edit distance; None where a free run has no gold.
        lengths: and how they end; None without an end symbol.
        repetition: share of 4-grams that have come before in their row.
        entropy: of the predictions on the run's own history, nats.
        entropy_by_position: the same at each position.
        calibration: of the symbols that were output; right are those that edit distance matches with gold.
    """

    __repr__ = brief
    draw: str
    aligned: Aligned | None
    lengths: Lengths | None
    repetition: Interval
    entropy: Interval
    entropy_by_position: Row
    calibration: Calibration | None


@dataclass(frozen=True)
class TokenMeasures:
    """Measures of a model of ids with 95 % intervals over rows; see docs/diagnostics.md.

    Args:
        loss: on gold history, nats a position.
        entropy: of the predictions on gold history, nats.
        entropy_by_position: the same at each position.
        edit_error: wrong choices on gold history over gold symbols, the end symbol left out of the latter: beside
            ``edit_error`` of a free run the gap that freerun evaluate and compare report.
        after: errors after errors on gold history, position by position.
        after_free: of the greedy free run, position by position; None where it has no gold.
        calibration: on gold history.
        repetition: of gold.
        greedy: free runs.
        sampled: free runs.
        corruption: loss and errors after a gold prefix with errors in it; () where rows are too short or too few.
        hidden: distance of hidden states; None where the model has none (``freerun.types.Split``).
        oracle: error accumulated on sampled contexts; None without an oracle.
        eb_m: EB-M of sampled continuations, None where there is gold: quality is the share of their 4-grams that occur
            in gold of other rows.
    """

    __repr__ = brief
    loss: Interval
    entropy: Interval
    entropy_by_position: Row
    edit_error: Interval
    after: ErrorRatio
    after_free: ErrorRatio | None
    calibration: Calibration
    repetition: Interval
    greedy: FreeRun
    sampled: FreeRun
    corruption: tuple[Corruption, ...]
    hidden: HiddenDistance | None
    oracle: AccumulatedError | None
    eb_m: Interval | None


@dataclass(frozen=True)
class Example:
    """A row: its source, gold, choices on gold history and free runs as symbols, the end symbol left out.

    Args:
        row: its number.
        source: in words, or "".
        gold: the reference.
        teacher_forced: the choice at each position of gold, the end symbol's, "(end)", among them.
        greedy: free run.
        sampled: free run.
        edits: edit distance of the greedy run to gold; None where it has no gold.
        first_error: position in gold, from 0, of the greedy run's first edit; None: there is none.
        rejoins: position in gold where it rejoins; None: it does not.
    """

    __repr__ = brief
    row: int
    source: str
    gold: tuple[str, ...]
    teacher_forced: tuple[str, ...]
    greedy: tuple[str, ...]
    sampled: tuple[str, ...]
    edits: int | None
    first_error: int | None
    rejoins: int | None


@dataclass(frozen=True)
class IdDiagnosis:
    """Exposure bias of a model of ids: its choices on gold and on its own history.

    Args:
        rows: their number.
        positions: of the longest row.
        left: rows that have an entry at each position.
        teacher_forced: on gold history, position by position.
        free_running: on the model's own, greedily; None where a free run has no gold, as of texts.
        gap: of the shares wrong, with an interval over rows; None where a free run has no gold.
        gap_by_position: signed: free-running minus teacher-forced.
        first_error: rows whose first error, the same for both, is at each position.
        tokens: the other measures.
        examples: some rows, evenly spaced.
    """

    __repr__ = brief
    rows: int
    positions: int
    left: tuple[int, ...]
    teacher_forced: IdSide
    free_running: IdSide | None
    gap: ErrorGap | None
    gap_by_position: Row
    first_error: tuple[int, ...]
    tokens: TokenMeasures
    examples: tuple[Example, ...] = ()
    kind: str = "ids"


Diagnosis = ValueDiagnosis | IdDiagnosis


def as_json(diagnosis: Diagnosis) -> dict[str, Any]:
    """Return a diagnosis as dicts and lists, with None for NaN and infinity, which JSON does not have.

    ``left`` and ``diverged`` identify those that are infinite.
    """
    return {"schema": SCHEMA, **_plain(asdict(diagnosis))}


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(name): _plain(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
