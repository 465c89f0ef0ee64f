"""From series in order of time to ``SeriesData``: gaps filled, splits in time, scales of the training rows, windows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from functools import partial
from itertools import pairwise

import numpy as np
import torch

from freerun.arguments import brief
from freerun.data.files import FEW, LARGEST, SPLITS, Array, counted, few_lines, first_problems
from freerun.data.series.options import Layout, SeriesOptions
from freerun.data.series.time_stamps import Step, calendar_columns, calendar_names, time_writer
from freerun.data.series.windows import Segment, SeriesCodec, SeriesData
from freerun.data.times import Stamp
from freerun.errors import listed, refuse

FARTHEST, FARTHEST_RAW = 1e9, 1e15
"""The largest distance from the mean of the training rows, in deviations; without normalisation the largest size."""
SMALLEST = 1e-30
"""The least that a channel varies by."""
Fault = tuple[np.ndarray, str]
"""(rows, columns) of bool, and what is wrong in these cells."""


def cell_problems(faults: Sequence[Fault], names: Sequence[str], locate: Callable[[int], str]) -> list[str]:
    """Return a line for the wrong cells of each row; one for columns of which many are wrong, in the same rows."""
    problems: list[tuple[int, str]] = []
    for mask, fault in faults:
        columns: dict[tuple[int, ...], list[str]] = {}
        for column in np.flatnonzero(mask.any(axis=0)).tolist():
            rows = np.flatnonzero(mask[:, column]).tolist()
            for part in [rows] if len(rows) > FEW else [[row] for row in rows]:
                columns.setdefault(tuple(part), []).append(names[column])
        for rows, some in columns.items():
            which = f"column {some[0]!r}" if len(some) == 1 else f"each of columns {listed(map(repr, some))}"
            line = partial(_cell_line, locate, f"{which}: {fault}")
            problems += few_lines(rows, len(mask), line, "cells of the column")
    return [line for _, line in sorted(problems, key=lambda each: each[0])]


def _cell_line(locate: Callable[[int], str], text: str, row: int) -> str:
    return f"{locate(row)}, {text}"


def too_large(values: Array) -> list[Fault]:
    """Return infinities, and numbers too large to be computed with."""
    with np.errstate(invalid="ignore"):
        large = np.isfinite(values) & (np.abs(values) > LARGEST)
    return [
        (np.isinf(values), "is infinite; give a number"),
        (large, f"is beyond {LARGEST:g}, which is too large to be computed with; correct it, or take another unit"),
    ]


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


def fill_gaps(values: Array, ends: Sequence[int], policy: str, coded: int = 0) -> tuple[Array, list[int], list[Fault]]:
    """Values (rows, columns) without NaN, how many of each column were filled, and what could not be.

    ``policy`` "linear" draws a line between the values before and after where both are in the same split (``ends``),
    and takes the value before elsewhere; "mask" takes that and leaves NaN where none is before. The last ``coded``
    columns are categories, which have nothing between them.

    >>> x = np.array([[1.0], [np.nan], [3.0], [np.nan], [np.nan], [6.0]])
    >>> fill_gaps(x, [0, 4, 5, 6], "linear")[0][:, 0].tolist()
    [1.0, 2.0, 3.0, 3.0, 3.0, 6.0]
    """
    missing, faults = np.isnan(values), too_large(values)
    if policy == "error":
        text = 'is missing; give a number, or set missing = "mask", "last" or "linear"'
        return values, [0] * values.shape[1], [*faults, (missing, text)]
    # the number of the newest row that has a value, or -1
    rows = np.arange(len(values))[:, None]
    before = np.maximum.accumulate(np.where(missing, -1, rows), axis=0)
    if policy != "mask":
        text = (
            "is missing, and so is all before it: there is nothing to fill it from; cut these rows, or set missing = "
        )
        text += '"mask"'
        faults.append((before < 0, text))
    result = np.take_along_axis(values, np.maximum(before, 0), axis=0)
    if policy == "linear":
        for begin, end in pairwise(sorted({0, *ends, len(values)})):
            for column in np.flatnonzero(missing[begin:end, : values.shape[1] - coded].any(axis=0)).tolist():
                known = begin + np.flatnonzero(~missing[begin:end, column])
                if len(known):
                    inside = np.arange(known[0], known[-1] + 1)
                    result[inside, column] = np.interp(inside, known, result[known, column])
    return result, missing.sum(axis=0).tolist(), faults


@dataclass(frozen=True, eq=False)
class Piece:
    """One series: (rows, channels) with NaN where a value is missing, the time of each row, where a row stands, key."""

    __repr__ = brief

    name: str
    values: Array
    stamps: Sequence[Stamp] | None = None
    where: Callable[[int], str] | None = None
    key: str = ""  # its name in the column of series, or the same as name

    def with_absent(self, stamps: Sequence[Stamp], rows: Sequence[int]) -> Piece:
        """The series with all of these times; a row -1 is absent, and its values are missing."""
        index = np.array(rows)
        values = np.where((index < 0)[:, None], np.nan, self.values[index])

        write = time_writer(stamps)

        def where(row: int) -> str:
            return f"{self.name}: absent row {write(stamps[row])}" if rows[row] < 0 else self.locate(rows[row])

        return replace(self, values=values, stamps=stamps, where=where)

    def rows(self, begin: int, end: int | None = None) -> Piece:
        """Some of the rows."""
        stamps = None if self.stamps is None else self.stamps[begin:end]
        return replace(self, values=self.values[begin:end], stamps=stamps, where=lambda row: self.locate(begin + row))

    def followed_by(self, other: Piece) -> Piece:
        """The rows of both."""
        size = len(self.values)
        stamps = None if self.stamps is None or other.stamps is None else [*self.stamps, *other.stamps]
        values = np.concatenate([self.values, other.values])
        return replace(
            self,
            values=values,
            stamps=stamps,
            where=lambda row: self.locate(row) if row < size else other.locate(row - size),
        )

    def locate(self, row: int) -> str:
        """Where a row stands."""
        return f"{self.name}: row {row + 1}" if self.where is None else self.where(row)


def _borders(rows: int, split: Sequence[float], name: str) -> tuple[list[int], list[str]]:
    """Where train, dev and test begin and where the last one ends, and what is wrong."""
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
    return np.nanmean(train, axis=0), np.nanstd(train, axis=0)


def constant_channels(train: Array, names: Sequence[str], origin: str) -> dict[str, str]:
    """Return a line for every channel that does not vary in the training rows, or by less than float32 holds."""
    problems: dict[str, str] = {}
    for name, cells in zip(names, train.T, strict=True):
        column = cells[~np.isnan(cells)]
        if not len(column) and len(cells):
            problems[name] = f"{origin}: column {name!r} has no value in the training rows; leave it out"
            continue
        low, high = float(column.min(initial=np.inf)), float(column.max(initial=-np.inf))
        varies = f"varies by {high - low:g}"
        if not np.isfinite(high - low):
            continue  # a problem of its cells
        if high == low:
            fault = f"is constant in the training rows: {low:g} in all {len(column):,}; leave it out"
        elif high - low <= 1e-12 * max(abs(low), abs(high)):
            fault = (
                f"{varies} around {low:g} in the training rows: differences so small against its size are lost in "
                "float32; subtract an offset from it, or leave it out"
            )
        elif high - low < SMALLEST:
            fault = f"{varies} in the training rows, less than {SMALLEST:g}; take another unit"
        else:
            continue
        problems[name] = f"{origin}: column {name!r} {fault}"
    return problems


def _lost(train: Array, scales: tuple[Array, Array], names: Sequence[str], locate: Callable[[int], str]) -> list[str]:
    """Columns of which scaling leaves nothing: one value is so far from the others that these become equal."""
    problems: list[str] = []
    some = train[:: -(-len(train) // 10_000) or 1]
    for name, column, few, mean, std in zip(names, train.T, some.T, *scales, strict=True):
        # values differ where it is by more than rounding: by a millionth of what 9 in 10 are off the median
        away = few - np.median(few)
        with np.errstate(over="ignore"):
            unit = np.quantile(np.abs(away[away != 0]), 0.9, method="lower") if away.any() else 1.0
            values = len(np.unique(np.round(away / unit * 1e6)))
        left = len(np.unique(((few - mean) / std).astype(np.float32)))
        if values > 2 * left:
            at = int(np.abs(column - np.median(column)).argmax())
            far, help = "is so far from the others", "correct it, or take another unit"
            if (mean, std) == (0, 1):  # of numbers that are not scaled only their own size hides differences
                far, help = "is so large against the differences", "subtract an offset from the column, or normalise it"
            problems.append(
                f"{locate(at)}, column {name!r}: {column[at]:g} {far} that of {values:,} different values {left:,} are "
                f"left in float32 for training; {help}"
            )
    return problems


def build_series(
    name: str,
    pieces: Sequence[Piece],
    options: SeriesOptions,
    layout: Layout,
    step: Step | None = None,
    *,
    droppable: bool = False,
    categories: Mapping[str, Sequence[str]] | None = None,
) -> SeriesData:
    """Return windows of checked pieces; raise UserError for gaps, infinities, constant channels, splits too short.

    ``droppable``: targets that are constant in the training rows are left out, and noted; nobody named them.
    ``categories``: column -> its names, of which the last columns of a piece hold the numbers.
    """
    channels = options.columns
    firsts = np.cumsum([0, *(len(piece.values) for piece in pieces)])
    raw, segments, fills, problems = _split(pieces, firsts, options)
    there = np.concatenate([piece.values for piece in pieces])
    numbers = np.concatenate([np.arange(part.begin, part.end) for part in segments["train"]])
    plain = len(channels) - len(options.coded)
    constant = constant_channels(there[numbers, :plain], channels[:plain], name) if len(numbers) else {}
    dropped = [channel for channel in constant if droppable and channel in options.targets]
    if dropped and len(dropped) < len(options.targets):
        kept = replace(options, targets=tuple(channel for channel in options.targets if channel not in dropped))
        chosen = [channels.index(channel) for channel in kept.columns]
        pieces = [replace(piece, values=piece.values[:, chosen]) for piece in pieces]
        data = build_series(name, pieces, kept, layout, step, categories=categories)
        note = f"not used, for they are constant in the training rows: {listed(dropped)}"
        return replace(data, notes=(*data.notes, note))
    refuse(problems + list(constant.values()))
    scales = scales_of(there[numbers], options.normalisation)
    for scale, nothing in zip(scales, (0.0, 1.0), strict=True):
        scale[plain:] = nothing
    own = _own_scales(pieces, segments["train"], firsts, scales, plain) if options.normalisation == "series" else {}
    by_row = _by_row(pieces, own, scales)
    usual = np.nanmean(there[numbers], axis=0) if len(numbers) else 0.0
    raw = np.where(np.isnan(raw), by_row[0] if own else usual, raw)

    def locate(row: int) -> str:
        piece = int(np.searchsorted(firsts, row, side="right")) - 1
        return pieces[piece].locate(row - int(firsts[piece]))

    if len(numbers):
        if not own:
            refuse(_lost(raw[numbers], scales, channels, lambda row: locate(int(numbers[row]))))
        refuse(first_problems(pieces[0].name, cell_problems(too_far(raw, *by_row), channels, locate)))
    raw = np.concatenate([raw, *_further(pieces, options, categories or {})], axis=1)
    present = ~np.isnan(there[:, : len(options.targets)])
    starts, empty = _starts(segments, options, present)
    notes = _notes(pieces, step, options, fills, segments["train"])
    return SeriesData(
        name,
        torch.from_numpy(raw),
        segments,
        starts,
        replace(_codec(scales, options, layout, step, categories or {}), own=own, static=_static(pieces, options)),
        None if present.all() else torch.from_numpy(present),
        notes=(*notes, f"left out, no value to predict: {counted(empty, 'window')}") if empty else notes,
        warmup_loss=options.warmup_loss,
        series=tuple(piece.key for piece in pieces) if options.series is not None or own else (),
    )


def _split(
    pieces: Sequence[Piece], firsts: Array, options: SeriesOptions
) -> tuple[Array, dict[str, list[Segment]], Counter[str], list[str]]:
    """All rows with their gaps filled, where each split lies, how many cells of a column were filled, what is wrong."""
    parts, problems, fills = list[Array](), list[str](), Counter[str]()
    segments: dict[str, list[Segment]] = {split: [] for split in SPLITS}
    for piece, offset in zip(pieces, firsts.tolist(), strict=False):
        rows = len(piece.values)
        ends, wrong = _borders(rows, options.split, piece.name)
        values, counts, gaps = fill_gaps(piece.values, ends, options.missing, len(options.coded))
        problems += wrong + first_problems(piece.name, cell_problems(gaps, options.columns, piece.locate))
        fills += Counter(dict(zip(options.columns, counts, strict=True)))
        for split, (begin, end) in zip(SPLITS, pairwise(ends), strict=True):
            # dev and test windows may know what came before their split; training windows begin with it anyway
            floor = offset + begin if split == "train" else offset
            segments[split].append(Segment(offset + begin, offset + min(end, rows), floor))
        parts.append(values)
    return np.concatenate(parts), segments, fills, problems


def _further(
    pieces: Sequence[Piece], options: SeriesOptions, categories: Mapping[str, Sequence[str]]
) -> Iterator[Array]:
    """(rows, further channels) of the calendar, and the number of each row's series."""
    if options.calendar:
        dates = [stamp for piece in pieces for stamp in piece.stamps or () if isinstance(stamp, datetime)]
        yield calendar_columns(options.calendar, dates)
    if options.series in categories:
        codes = [list(categories[str(options.series)]).index(piece.key) for piece in pieces]
        yield np.repeat(np.array(codes, float), [len(piece.values) for piece in pieces])[:, None]


def _static(pieces: Sequence[Piece], options: SeriesOptions) -> tuple[str, ...]:
    """Covariates that stand still in every series."""
    first = len(options.targets) + len(options.observed)

    def still(rows: Array) -> bool:
        there = rows[~np.isnan(rows)]
        return not len(there) or bool((there == there[0]).all())

    return tuple(
        name
        for column, name in enumerate(options.columns[first:], start=first)
        if all(still(piece.values[:, column]) for piece in pieces)
    )


def _own_scales(
    pieces: Sequence[Piece], train: Sequence[Segment], firsts: Array, pooled: tuple[Array, Array], plain: int
) -> dict[str, list[list[float]]]:
    """Mean and deviation of the training rows of each series; those of all where one has none, or stands still."""
    rows: dict[str, list[Array]] = {}
    for piece, part, first in zip(pieces, train, firsts.tolist(), strict=False):
        rows.setdefault(piece.key, []).append(piece.values[part.begin - first : part.end - first, :plain])
    found: dict[str, list[list[float]]] = {}
    for key, each in rows.items():
        values = np.concatenate(each)
        mean, std = (scale[:plain].copy() for scale in pooled)
        for column in np.flatnonzero((~np.isnan(values)).any(axis=0)).tolist():
            there = values[~np.isnan(values[:, column]), column]
            mean[column], std[column] = there.mean(), there.std() if np.ptp(there) > 0 else std[column]
        found[key] = [mean.tolist(), std.tolist()]
    return found


def _by_row(
    pieces: Sequence[Piece], own: Mapping[str, list[list[float]]], pooled: tuple[Array, Array]
) -> tuple[Array, Array]:
    """Mean and deviation of each row's channels, (rows or nothing, channels)."""
    if not own:
        return pooled
    counts = [len(piece.values) for piece in pieces]
    by_row: list[Array] = []
    for number, scale in enumerate(pooled):
        rows = np.tile(scale, (len(pieces), 1))
        for row, piece in zip(rows, pieces, strict=True):
            row[: len(own[piece.key][number])] = own[piece.key][number]
        by_row.append(np.repeat(rows, counts, axis=0))
    return by_row[0], by_row[1]


def _sizes(pieces: Sequence[Piece], train: Sequence[Segment], options: SeriesOptions) -> list[str]:
    """A note where series that share one scale differ in size."""
    if len(pieces) < 2 or options.normalisation != "standard":
        return []
    firsts, targets = np.cumsum([0, *(len(piece.values) for piece in pieces)]), len(options.targets)
    spread = [
        float(np.nanmax(np.nanstd(rows, axis=0)))
        for piece, part, first in zip(pieces, train, firsts.tolist(), strict=False)
        if not np.isnan(rows := piece.values[part.begin - first : part.end - first, :targets]).all()
    ]
    low, high = min((each for each in spread if each > 0), default=1.0), max(spread, default=1.0)
    if high < 10 * low:
        return []
    return [
        f"series differ in size, deviations of {low:.3g} to {high:.3g}, and share one scale: errors of the small ones "
        'hardly count; normalisation = "series" gives each its own'
    ]


def _starts(
    segments: Mapping[str, Sequence[Segment]], options: SeriesOptions, present: np.ndarray
) -> tuple[dict[str, torch.Tensor], int]:
    """Where the windows of each split begin, and how many are left out, as no value of their horizon is there."""
    past, horizon, empty = options.past, options.horizon, 0
    strides = {"train": options.stride, "dev": options.evaluation_stride, "test": options.evaluation_stride}
    seen = np.concatenate([[0], np.cumsum(present.any(axis=1))])
    starts: dict[str, torch.Tensor] = {}
    for split, each in segments.items():
        every = np.array([start for part in each for start in part.windows(past, horizon, strides[split])], np.int64)
        kept = every[seen[every + past + horizon] > seen[every + past]]
        starts[split], empty = torch.from_numpy(kept), empty + len(every) - len(kept)
    return starts, empty


def _codec(
    scales: tuple[Array, Array],
    options: SeriesOptions,
    layout: Layout,
    step: Step | None,
    categories: Mapping[str, Sequence[str]],
) -> SeriesCodec:
    # calendar columns are sines and cosines, and a series has a number: they are not normalised
    names = (*options.columns, *calendar_names(options.calendar))
    if options.series in categories:
        names = (*names, str(options.series))
    further = len(names) - len(options.columns)
    mean, std = np.append(scales[0], np.zeros(further)), np.append(scales[1], np.ones(further))
    return SeriesCodec(
        names,
        tuple(mean.tolist()),
        tuple(std.tolist()),
        values=len(options.targets),
        covariates=len(names) - len(options.targets) - len(options.observed),
        past=options.past,
        horizon=options.horizon,
        layout=layout,
        period=options.period,
        step=None if step is None else str(step),
        time=options.time,
        calendar=tuple(options.calendar),
        series=options.series,
        reading=options.reading,
        categories={name: tuple(each) for name, each in categories.items()},
    )


def _notes(
    pieces: Sequence[Piece], step: Step | None, options: SeriesOptions, fills: Counter[str], train: Sequence[Segment]
) -> tuple[str, ...]:
    notes = [f"series: {len(pieces):,}"] if len(pieces) > 1 else []
    if step is not None:
        notes.append(f"one row every {step.words}")
    if fills:
        counts = ", ".join(f"{number:,} of {name}" for name, number in fills.items())
        notes.append(f'filled, missing = "{options.missing}": {counts}')
    short = [
        piece.name
        for piece, part in zip(pieces, train, strict=True)
        if not part.windows(options.past, options.horizon, options.stride)
    ]
    if short:
        names = ", ".join(short[:3]) + (", ..." if len(short) > 3 else "")
        notes.append(f"too short for a training window: {len(short):,} of {len(pieces):,} series: {names}")
    return (*notes, *_sizes(pieces, train, options))
