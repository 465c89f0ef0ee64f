"""From pieces of checked numbers to ``SeriesData``: splits in time, scales of the training rows, windows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
import torch

from freerun.arguments import brief
from freerun.data.files import LARGEST, SPLITS, Array, counted, first_problems, lines_of_column
from freerun.data.series.options import Channels, Layout, SeriesOptions, check_layout, columns_by_part
from freerun.data.series.time_stamps import Step, calendar_columns, calendar_names, step_between
from freerun.data.series.windows import Segment, SeriesCodec, SeriesData, window_starts
from freerun.data.tables import Stamp
from freerun.errors import UserError, refuse

FARTHEST, FARTHEST_RAW = 1e9, 1e15
"""The largest distance from the mean of the training rows, in deviations; without normalisation the largest size."""
Fault = tuple[np.ndarray, str]
"""(rows, columns) of bool, and what is wrong in these cells."""


def cell_problems(faults: Sequence[Fault], names: Sequence[str], place: Callable[[int], str]) -> list[str]:
    """Return a line for each wrong cell, row by row; one for a column in which many are wrong."""
    found: list[tuple[int, str]] = []
    for mask, text in faults:
        for column in np.flatnonzero(mask.any(axis=0)).tolist():
            rows = np.flatnonzero(mask[:, column]).tolist()
            line = partial(_line, place, f"column {names[column]!r}: {text}")
            found += zip(rows, lines_of_column(rows, len(mask), line), strict=False)
    return [line for _, line in sorted(found, key=lambda each: each[0])]


def _line(place: Callable[[int], str], text: str, row: int) -> str:
    return f"{place(row)}, {text}"


def too_large(values: Array) -> list[Fault]:
    """Return infinities, and numbers too large to be computed with."""
    with np.errstate(invalid="ignore"):
        large = np.isfinite(values) & (np.abs(values) > LARGEST)
    found = [
        (np.isinf(values), "is infinite; give a number"),
        (large, f"is beyond {LARGEST:g}, which is too large to be computed with; correct it, or take another unit"),
    ]
    return [fault for fault in found if fault[0].any()]


def too_far(values: Array, mean: Array, std: Array) -> list[Fault]:
    """Return the numbers so far from the training rows that float32 holds nothing of them, scaled as those are."""
    plain = (mean == 0) & (std == 1)
    limit = np.where(plain, FARTHEST_RAW, FARTHEST)
    with np.errstate(invalid="ignore", over="ignore"):
        beyond = np.isfinite(values) & (np.abs(values) <= LARGEST) & (np.abs((values - mean) / std) > limit)
    return [
        (beyond & ~plain, f"lies more than {FARTHEST:g} deviations from the mean of the training rows; correct it"),
        (beyond & plain, f"is beyond {FARTHEST_RAW:g} and not normalised; take another unit, or normalise the data"),
    ]


def fill_gaps(values: Array, ends: Sequence[int], policy: str) -> tuple[Array, list[int], list[Fault]]:
    """Values without NaN, how many of each column were filled, and what could not be.

    Args:
        values: (rows, columns); NaN is missing, infinity is always wrong.
        ends: where the splits begin, and where the last one ends.
        policy: "error"; "last": the value before; "linear": a line between the values before and after, where both
            are in the same split, else the value before.

    >>> x = np.array([[1.0], [np.nan], [3.0], [np.nan], [np.nan], [6.0]])
    >>> fill_gaps(x, [0, 4, 5, 6], "linear")[0][:, 0].tolist()
    [1.0, 2.0, 3.0, 3.0, 3.0, 6.0]
    """
    missing = np.isnan(values)
    wrong = too_large(values)
    if not missing.any():
        return values, [0] * values.shape[1], wrong
    if policy == "error":
        text = 'is missing; give a number, or set missing = "last" or "linear"'
        return values, [0] * values.shape[1], [*wrong, (missing, text)]
    # the number of the newest row that has a value, or -1
    rows = np.arange(len(values))[:, None]
    before = np.maximum.accumulate(np.where(missing, -1, rows), axis=0)
    text = "is missing, and so is all before it: there is nothing to fill it from; cut these rows"
    wrong += [(before < 0, text)] if (before < 0).any() else []
    result = np.take_along_axis(values, np.maximum(before, 0), axis=0)
    if policy == "linear":
        for begin, end in pairwise(sorted({0, *ends, len(values)})):
            _lines(result[begin:end], missing[begin:end])
    return result, missing.sum(axis=0).tolist(), wrong


def _lines(values: Array, missing: np.ndarray) -> None:
    """Draw lines over the gaps of some rows, in place; gaps at either end stay as they are."""
    for column in np.flatnonzero(missing.any(axis=0)).tolist():
        known = np.flatnonzero(~missing[:, column])
        if len(known):
            inside = np.arange(known[0], known[-1] + 1)
            values[inside, column] = np.interp(inside, known, values[known, column])


_SMALLEST, _LOOKED_AT = 1e-30, 10_000
"""The least that a channel varies by, and the rows that are looked at for what scaling loses."""


@dataclass(frozen=True, eq=False)
class Piece:
    """One series: (rows, channels) with NaN where a value is missing, the time of each row, and where a row stands."""

    __repr__ = brief

    name: str
    values: Array
    stamps: Sequence[Stamp] | None = None
    where: Callable[[int], str] | None = None

    def place(self, row: int) -> str:
        """Where a row stands."""
        return f"{self.name}: row {row + 1}" if self.where is None else self.where(row)


def split_rows(rows: int, split: Sequence[float], name: str) -> tuple[list[int], list[str]]:
    """Where train, dev and test begin and where the last one ends, and what is wrong.

    >>> split_rows(100, (0.7, 0.1, 0.2), "x"), split_rows(100, (60, 10, 10), "x")[0]
    (([0, 70, 80, 100], []), [0, 60, 70, 80])
    """
    if not all(isinstance(part, int) for part in split):
        return [round(rows * min(1.0, share)) for share in np.cumsum([0.0, *split]).tolist()], []
    ends: list[int] = np.cumsum([0, *split]).tolist()
    if ends[-1] > rows:
        return ends, [f"{name}: has {counted(rows, 'row')}, and split takes {ends[-1]:,}; take fewer"]
    return ends, []


def scales_of(train: Array, normalisation: str) -> tuple[Array, Array]:
    """Return (channels,) mean and standard deviation (over n) of the training rows, or 0 and 1."""
    if normalisation == "none" or not len(train):
        return np.zeros(train.shape[1]), np.ones(train.shape[1])
    return train.mean(axis=0), train.std(axis=0)


def constant_channels(train: Array, names: Sequence[str], origin: str) -> list[str]:
    """Return a line for every channel that does not vary in the training rows, or by less than float32 holds."""
    found: list[str] = []
    for name, column in zip(names, train.T, strict=True):
        low, high = float(column.min(initial=np.inf)), float(column.max(initial=-np.inf))
        if not np.isfinite(high - low):
            continue  # a problem of its cells
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
    return lost or first_problems(pieces[0].name, cell_problems(too_far(raw, *scales), names, place))


def build_series(
    name: str, pieces: Sequence[Piece], channels: Channels, options: SeriesOptions, layout: Layout
) -> SeriesData:
    """Return windows of checked pieces; raise UserError for gaps, infinities, constant channels, splits too short."""
    problems: list[str] = []
    parts: list[Array] = []
    segments: dict[str, list[Segment]] = {split: [] for split in SPLITS}
    fills: Counter[str] = Counter()
    offset = 0
    for piece in pieces:
        rows = len(piece.values)
        ends, wrong = split_rows(rows, options.split, piece.name)
        values, counts, gaps = fill_gaps(piece.values, ends, options.missing)
        problems += wrong + first_problems(piece.name, cell_problems(gaps, channels.names, piece.place))
        fills += Counter(dict(zip(channels.names, counts, strict=True)))
        for split, (begin, end) in zip(SPLITS, pairwise(ends), strict=True):
            # dev and test windows may know what came before their split; training windows begin with it anyway
            floor = offset + begin if split == "train" else offset
            segments[split].append(Segment(offset + begin, offset + min(end, rows), floor))
        parts.append(values)
        offset += rows
    raw = np.concatenate(parts)
    numbers = np.concatenate([np.arange(part.begin, part.end) for part in segments["train"]])
    train = raw[numbers]
    problems += constant_channels(train, channels.names, name) if len(train) else []
    if not problems and len(train):
        problems = _unscalable((train, numbers), raw, pieces, channels.names, options.normalisation)
    refuse(problems)
    # rows that are taken as they come are no step apart
    even = options.irregular == "error"
    step = next((step for piece in pieces if even and (step := step_between(piece.stamps or ()))), None)
    codec = _codec(train, channels, options, layout, step)
    if options.calendar:
        dates = [stamp for piece in pieces for stamp in piece.stamps or () if isinstance(stamp, datetime)]
        raw = np.concatenate([raw, calendar_columns(options.calendar, dates)], axis=1)
    strides = {"train": options.stride, "dev": options.evaluation_stride, "test": options.evaluation_stride}
    return SeriesData(
        name,
        torch.from_numpy(raw),
        segments,
        {split: window_starts(segments[split], options.past, options.horizon, strides[split]) for split in SPLITS},
        codec,
        notes=(*_notes(pieces, step, options, fills), *_short(pieces, segments["train"], options)),
        warmup_loss=options.warmup_loss,
    )


def _codec(train: Array, channels: Channels, options: SeriesOptions, layout: Layout, step: Step | None) -> SeriesCodec:
    mean, std = scales_of(train, options.normalisation)
    # calendar columns are sines and cosines: they are not normalised
    waves = 2 * len(options.calendar)
    mean, std = np.append(mean, np.zeros(waves)), np.append(std, np.ones(waves))
    names = (*channels.names, *calendar_names(options.calendar))
    return SeriesCodec(
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
    """A note on series among several that are too short for a training window."""
    short = [
        piece.name
        for piece, part in zip(pieces, train, strict=True)
        if not part.windows(options.past, options.horizon, options.stride)
    ]
    shown = ", ".join(short[:3]) + (", ..." if len(short) > 3 else "")
    return [f"too short for a training window: {len(short):,} of {len(pieces):,} series: {shown}"] if short else []


def series_from_arrays(
    arrays: Any,
    options: SeriesOptions | None = None,
    layout: Layout = "past",
    names: Sequence[str] = (),
    name: str = "arrays",
) -> SeriesData:
    """Windows of a series in an array, or of several.

    Args:
        arrays: (time, channels) numbers, NumPy or torch, or a list of such: several series of the same channels.
            (time,) is one channel.
        options: windows, splits, parts of the channels by name; ``time``, ``series`` and ``calendar`` have no place.
        layout: "past" or "sequence", see ``SeriesCodec.batch``.
        names: of the channels; left out: "x1", "x2" and so on.
        name: what the data are called.

    Raises:
        UserError: wrong shapes, NaN or infinity (row and column named), constant channels, splits too short, unknown
            names; all at once.

    >>> data = series_from_arrays(torch.arange(200.0).sin()[:, None], SeriesOptions(past=8, horizon=4))
    >>> data.windows("train"), data.windows("test"), data.names
    (129, 37, ('x1',))
    """
    options = options or SeriesOptions()
    given = list(arrays) if isinstance(arrays, list | tuple) else [arrays]
    series = [_array(each) for each in given]
    several = len(series) > 1
    titles = [f"{name}: series {number}" if several else name for number in range(1, len(series) + 1)]
    width = series[0].shape[-1] if series and series[0].ndim == 2 else 0
    problems = [] if series else [f"{name}: no series were given; give at least one"]
    problems += [
        f"{title}: must be (time, channels){f' with {width} channels' if several else ''}; got shape {each.shape}"
        for title, each in zip(titles, series, strict=True)
        if each.ndim != 2 or each.shape[1] != width or not width
    ]
    columns = tuple(names) or tuple(f"x{number}" for number in range(1, width + 1))
    if width and len(columns) != width:
        problems.append(f"{name}: {width} channels have {len(columns)} names")
    problems += [
        f"{part} has no place with arrays; use load_series, or leave it out"
        for part in ("time", "series", "calendar")
        if getattr(options, part)
    ]
    refuse(problems)
    channels, problems = columns_by_part(columns, columns, options, name)
    problems += check_layout(layout, channels.observed)
    refuse(problems)
    order = [columns.index(column) for column in channels.names]
    pieces = [Piece(title, each[:, order]) for title, each in zip(titles, series, strict=True)]
    return build_series(name, pieces, channels, options, layout)


def _array(given: Any) -> Array:
    if isinstance(given, torch.Tensor):
        given = given.detach().cpu().numpy()
    try:
        kind = np.asarray(given).dtype.kind
        if kind not in "biufO":  # complex numbers would lose a part, times and texts their meaning
            raise TypeError(f"{np.asarray(given).dtype} are no real numbers")
        array = np.asarray(given, dtype=np.float64)
    except (TypeError, ValueError, OverflowError) as error:
        raise UserError(f"a series must be numbers, (time, channels); got {type(given).__name__}: {error}") from None
    return array[:, None] if array.ndim == 1 else array
