"""From pieces of checked numbers to ``SeriesData``: splits in time, scales of the training rows, windows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import pairwise

import numpy as np
import torch

from freerun.brief import brief
from freerun.data.integrate import Array
from freerun.data.series.calendar import Stamp, Step, calendar_columns, calendar_names, step_between
from freerun.data.series.coder import SeriesCoder
from freerun.data.series.gaps import cell_problems, far, filled
from freerun.data.series.options import SPLITS, Layout, SeriesOptions
from freerun.data.series.windows import Segment, SeriesData, window_starts
from freerun.data.text import counted, first_problems
from freerun.errors import UserError

__all__ = ["Channels", "Piece", "borders", "built", "constants", "scales_of"]

_SMALLEST, _LOOKED_AT = 1e-30, 10_000
"""The least that a channel varies by, and the rows that are looked at for what scaling loses."""


@dataclass(frozen=True, eq=False)
class Piece:
    """One series: its rows in order.

    Args:
        name: how it is called in a problem.
        values: (rows, channels) float64; NaN where a value is missing.
        stamps: time of each row, where there are any.
        where: row -> where it stands ("file.csv:17"); None: the name and the row's number.
    """

    __repr__ = brief

    name: str
    values: Array
    stamps: Sequence[Stamp] | None = None
    where: Callable[[int], str] | None = None

    def place(self, row: int) -> str:
        """Where a row stands."""
        return f"{self.name}: row {row + 1}" if self.where is None else self.where(row)


@dataclass(frozen=True)
class Channels:
    """Names of the columns of every piece, in order: targets, observed, covariates."""

    __repr__ = brief

    targets: tuple[str, ...]
    observed: tuple[str, ...] = ()
    covariates: tuple[str, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """All of them."""
        return (*self.targets, *self.observed, *self.covariates)


def borders(rows: int, split: Sequence[float], name: str) -> tuple[list[int], list[str]]:
    """Where train, dev and test begin and where the last one ends, and what is wrong.

    >>> borders(100, (0.7, 0.1, 0.2), "x"), borders(100, (60, 10, 10), "x")[0]
    (([0, 70, 80, 100], []), [0, 60, 70, 80])
    """
    if not all(isinstance(part, int) for part in split):
        return [round(rows * min(1.0, share)) for share in np.cumsum([0.0, *split]).tolist()], []
    ends: list[int] = np.cumsum([0, *split]).tolist()
    if ends[-1] > rows:
        return ends, [f"{name}: has {counted(rows, 'row')}, and split asks for {ends[-1]:,}; ask for fewer"]
    return ends, []


def scales_of(train: Array, normalisation: str) -> tuple[Array, Array]:
    """(channels,) mean and standard deviation (over n) of the training rows, or 0 and 1.

    >>> [scale.tolist() for scale in scales_of(np.array([[1.0], [3.0]]), "standard")]
    [[2.0], [1.0]]
    """
    if normalisation == "none" or not len(train):
        return np.zeros(train.shape[1]), np.ones(train.shape[1])
    return train.mean(axis=0), train.std(axis=0)


def constants(train: Array, names: Sequence[str], origin: str) -> list[str]:
    """A line for every channel that does not vary in the training rows, or by less than float32 holds.

    Args:
        train: (rows, channels).
        names: of the channels.
        origin: what the data are called.
    """
    found: list[str] = []
    for name, column in zip(names, train.T, strict=True):
        low, high = float(column.min(initial=np.inf)), float(column.max(initial=-np.inf))
        if not np.isfinite(high - low):
            continue  # said of its cells
        at = f"{origin}: column {name!r}"
        if high == low:
            found.append(f"{at} is constant in the training rows: {low:g} in all {len(train):,}; leave it out")
        elif high - low <= 1e-12 * max(abs(low), abs(high)):
            found.append(
                f"{at} varies by {high - low:g} around {low:g} in the training rows: differences so small against its "
                "size are lost in float32; subtract an offset from it, or leave it out"
            )
        elif high - low < _SMALLEST:
            found.append(
                f"{at} varies by {high - low:g} in the training rows, less than {_SMALLEST:g}; take another unit"
            )
    return found


def _lost(train: Array, scales: tuple[Array, Array], names: Sequence[str], place: Callable[[int], str]) -> list[str]:
    """Columns of which scaling leaves nothing: one value is so far from the others that these become equal."""
    found: list[str] = []
    some = train[:: -(-len(train) // _LOOKED_AT) or 1]
    for name, column, few, mean, std in zip(names, train.T, some.T, *scales, strict=True):
        there, left = _different(few), len(np.unique(((few - mean) / std).astype(np.float32)))
        if there > 2 * left:
            at = int(np.abs(column - np.median(column)).argmax())
            far, help = "is so far from the others", "correct it, or take another unit"
            if (mean, std) == (0, 1):  # of numbers that are not scaled only their own size hides differences
                far, help = "is so large against the differences", "subtract an offset from the column, or normalise it"
            found.append(
                f"{place(at)}, column {name!r}: {column[at]:g} {far} that of {there:,} different values {left:,} are "
                f"left in float32 for training; {help}"
            )
    return found


def _different(values: Array) -> int:
    """How many values differ by more than rounding: by a millionth of what 9 in 10 are off the median."""
    away = values - np.median(values)
    far = np.abs(away[away != 0])
    if not len(far):
        return 1
    with np.errstate(over="ignore"):
        return len(np.unique(np.round(away / np.quantile(far, 0.9, method="lower") * 1e6)))


def _unscalable(
    train: tuple[Array, np.ndarray], raw: Array, pieces: Sequence[Piece], names: Sequence[str], normalisation: str
) -> list[str]:
    """What float32 cannot hold of finite values; ``train`` are its rows and their numbers among all."""

    def place(row: int) -> str:
        for piece in pieces:
            if row < len(piece.values):
                return piece.place(row)
            row -= len(piece.values)
        raise IndexError(row)

    scales = scales_of(train[0], normalisation)
    lost = _lost(train[0], scales, names, lambda row: place(int(train[1][row])))
    return lost or first_problems(pieces[0].name, cell_problems(far(raw, *scales), names, place))


def built(name: str, pieces: Sequence[Piece], channels: Channels, options: SeriesOptions, layout: Layout) -> SeriesData:
    """Windows of checked pieces.

    Raises:
        UserError: gaps, infinities, constant channels, splits that are too short; all at once.
    """
    problems: list[str] = []
    parts: list[Array] = []
    segments: dict[str, list[Segment]] = {split: [] for split in SPLITS}
    fills: Counter[str] = Counter()
    offset = 0
    for piece in pieces:
        rows = len(piece.values)
        ends, wrong = borders(rows, options.split, piece.name)
        values, counts, gaps = filled(piece.values, ends, options.missing)
        problems += wrong + first_problems(piece.name, cell_problems(gaps, channels.names, piece.place))
        fills += Counter(dict(zip(channels.names, counts, strict=True)))
        for split, (begin, end) in zip(SPLITS, pairwise(ends), strict=True):
            segments[split].append(Segment(offset + begin, offset + min(end, rows), _floor(split, offset, begin)))
        parts.append(values)
        offset += rows
    raw = np.concatenate(parts)
    numbers = np.concatenate([np.arange(part.begin, part.end) for part in segments["train"]])
    train = raw[numbers]
    problems += constants(train, channels.names, name) if len(train) else []
    if not problems and len(train):
        problems = _unscalable((train, numbers), raw, pieces, channels.names, options.normalisation)
    if problems:
        raise UserError(problems)
    # rows that are taken as they come are no step apart
    even = options.irregular == "error"
    step = next((step for piece in pieces if even and (step := step_between(piece.stamps or ()))), None)
    coder = _coder(train, channels, options, layout, step)
    if options.calendar:
        raw = np.concatenate([raw, _calendar(pieces, options)], axis=1)
    return SeriesData(
        name,
        torch.from_numpy(raw),
        segments,
        _starts(segments, options),
        coder,
        notes=(*_notes(pieces, step, options, fills), *_short(pieces, segments["train"], options)),
        warmup_loss=options.warmup_loss,
    )


def _floor(split: str, offset: int, begin: int) -> int:
    # dev and test windows may know what came before their split; training windows begin with it anyway
    return offset + begin if split == "train" else offset


def _calendar(pieces: Sequence[Piece], options: SeriesOptions) -> Array:
    stamps = [stamp for piece in pieces for stamp in piece.stamps or () if isinstance(stamp, datetime)]
    return calendar_columns(options.calendar, stamps)


def _coder(train: Array, channels: Channels, options: SeriesOptions, layout: Layout, step: Step | None) -> SeriesCoder:
    mean, std = scales_of(train, options.normalisation)
    # calendar columns are sines and cosines: they are not normalised
    waves = 2 * len(options.calendar)
    mean, std = np.append(mean, np.zeros(waves)), np.append(std, np.ones(waves))
    names = (*channels.names, *calendar_names(options.calendar))
    return SeriesCoder(
        names,
        tuple(mean.tolist()),
        tuple(std.tolist()),
        values=len(channels.targets),
        covariates=len(names) - len(channels.targets) - len(channels.observed),
        past=options.past,
        horizon=options.horizon,
        layout=layout,
        period=options.period,
        step=None if step is None else str(step),
        time=options.time,
        calendar=tuple(options.calendar),
        series=options.series,
    )


def _starts(segments: Mapping[str, Sequence[Segment]], options: SeriesOptions) -> dict[str, torch.Tensor]:
    strides = {"train": options.stride, "dev": options.evaluation_stride, "test": options.evaluation_stride}
    return {split: window_starts(segments[split], options.past, options.horizon, strides[split]) for split in SPLITS}


def _notes(
    pieces: Sequence[Piece], step: Step | None, options: SeriesOptions, fills: Mapping[str, int]
) -> tuple[str, ...]:
    notes = [f"series: {len(pieces):,}"] if len(pieces) > 1 else []
    if step is not None:
        notes.append(f"one row every {step}")
    if fills:
        shown = ", ".join(f"{number:,} of {name}" for name, number in fills.items())
        notes.append(f'filled, missing = "{options.missing}": {shown}')
    return tuple(notes)


def _short(pieces: Sequence[Piece], train: Sequence[Segment], options: SeriesOptions) -> list[str]:
    """What is said of series among several whose training rows are fewer than a window's."""
    short = [
        piece.name
        for piece, part in zip(pieces, train, strict=True)
        if not part.windows(options.past, options.horizon, options.stride)
    ]
    shown = ", ".join(short[:3]) + (", ..." if len(short) > 3 else "")
    return [f"too short for a training window: {len(short):,} of {len(pieces):,} series: {shown}"] if short else []
