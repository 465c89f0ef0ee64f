"""From arrays and files to ``SeriesData``: checked pieces, splits in time, scales of the training rows, windows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch

from freerun.arguments import brief
from freerun.data.files import LARGEST, SPLITS, Array, counted, few_lines, first_problems, lines_of_column
from freerun.data.series.options import Layout, SeriesOptions, check_layout, with_targets
from freerun.data.series.time_stamps import Step, calendar_columns, calendar_names, step_between, uneven
from freerun.data.series.windows import Segment, SeriesCodec, SeriesData
from freerun.data.tables import DataTable, Stamp, read_table
from freerun.errors import UserError, listed, refuse

FARTHEST, FARTHEST_RAW = 1e9, 1e15
"""The largest distance from the mean of the training rows, in deviations; without normalisation the largest size."""
SMALLEST = 1e-30
"""The least that a channel varies by."""
Fault = tuple[np.ndarray, str]
"""(rows, columns) of bool, and what is wrong in these cells."""


def cell_problems(faults: Sequence[Fault], names: Sequence[str], locate: Callable[[int], str]) -> list[str]:
    """Return a line for each wrong cell, row by row; one for a column in which many are wrong."""
    problems: list[tuple[int, str]] = []
    for mask, fault in faults:
        for column in np.flatnonzero(mask.any(axis=0)).tolist():
            rows, text = np.flatnonzero(mask[:, column]).tolist(), f"column {names[column]!r}: {fault}"
            problems += few_lines(
                rows, len(mask), lambda row, text=text: f"{locate(row)}, {text}", "cells of the column"
            )
    return [line for _, line in sorted(problems, key=lambda each: each[0])]


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


def fill_gaps(values: Array, ends: Sequence[int], policy: str) -> tuple[Array, list[int], list[Fault]]:
    """Values (rows, columns) without NaN, how many of each column were filled, and what could not be.

    ``policy`` "linear" draws a line between the values before and after where both are in the same split (``ends``),
    and takes the value before elsewhere.

    >>> x = np.array([[1.0], [np.nan], [3.0], [np.nan], [np.nan], [6.0]])
    >>> fill_gaps(x, [0, 4, 5, 6], "linear")[0][:, 0].tolist()
    [1.0, 2.0, 3.0, 3.0, 3.0, 6.0]
    """
    missing, faults = np.isnan(values), too_large(values)
    if policy == "error":
        text = 'is missing; give a number, or set missing = "last" or "linear"'
        return values, [0] * values.shape[1], [*faults, (missing, text)]
    # the number of the newest row that has a value, or -1
    rows = np.arange(len(values))[:, None]
    before = np.maximum.accumulate(np.where(missing, -1, rows), axis=0)
    faults.append((before < 0, "is missing, and so is all before it: there is nothing to fill it from; cut these rows"))
    result = np.take_along_axis(values, np.maximum(before, 0), axis=0)
    if policy == "linear":
        for begin, end in pairwise(sorted({0, *ends, len(values)})):
            for column in np.flatnonzero(missing[begin:end].any(axis=0)).tolist():
                known = begin + np.flatnonzero(~missing[begin:end, column])
                if len(known):
                    inside = np.arange(known[0], known[-1] + 1)
                    result[inside, column] = np.interp(inside, known, result[known, column])
    return result, missing.sum(axis=0).tolist(), faults


@dataclass(frozen=True, eq=False)
class Piece:
    """One series: (rows, channels) with NaN where a value is missing, the time of each row, and where a row stands."""

    __repr__ = brief

    name: str
    values: Array
    stamps: Sequence[Stamp] | None = None
    where: Callable[[int], str] | None = None

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
    return train.mean(axis=0), train.std(axis=0)


def constant_channels(train: Array, names: Sequence[str], origin: str) -> list[str]:
    """Return a line for every channel that does not vary in the training rows, or by less than float32 holds."""
    problems: list[str] = []
    for name, column in zip(names, train.T, strict=True):
        low, high = float(column.min(initial=np.inf)), float(column.max(initial=-np.inf))
        varies = f"varies by {high - low:g}"
        if not np.isfinite(high - low):
            continue  # a problem of its cells
        if high == low:
            fault = f"is constant in the training rows: {low:g} in all {len(train):,}; leave it out"
        elif high - low <= 1e-12 * max(abs(low), abs(high)):
            fault = (
                f"{varies} around {low:g} in the training rows: differences so small against its size are lost in "
                "float32; subtract an offset from it, or leave it out"
            )
        elif high - low < SMALLEST:
            fault = f"{varies} in the training rows, less than {SMALLEST:g}; take another unit"
        else:
            continue
        problems.append(f"{origin}: column {name!r} {fault}")
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


def build_series(name: str, pieces: Sequence[Piece], options: SeriesOptions, layout: Layout) -> SeriesData:
    """Return windows of checked pieces; raise UserError for gaps, infinities, constant channels, splits too short."""
    problems, channels = list[str](), options.columns
    parts: list[Array] = []
    segments: dict[str, list[Segment]] = {split: [] for split in SPLITS}
    fills: Counter[str] = Counter()
    firsts = np.cumsum([0, *(len(piece.values) for piece in pieces)])
    for piece, offset in zip(pieces, firsts.tolist(), strict=False):
        rows = len(piece.values)
        ends, wrong = _borders(rows, options.split, piece.name)
        values, counts, gaps = fill_gaps(piece.values, ends, options.missing)
        problems += wrong + first_problems(piece.name, cell_problems(gaps, channels, piece.locate))
        fills += Counter(dict(zip(channels, counts, strict=True)))
        for split, (begin, end) in zip(SPLITS, pairwise(ends), strict=True):
            # dev and test windows may know what came before their split; training windows begin with it anyway
            floor = offset + begin if split == "train" else offset
            segments[split].append(Segment(offset + begin, offset + min(end, rows), floor))
        parts.append(values)
    raw = np.concatenate(parts)
    numbers = np.concatenate([np.arange(part.begin, part.end) for part in segments["train"]])
    train = raw[numbers]
    refuse(problems + (constant_channels(train, channels, name) if len(train) else []))
    scales = scales_of(train, options.normalisation)

    def locate(row: int) -> str:
        piece = int(np.searchsorted(firsts, row, side="right")) - 1
        return pieces[piece].locate(row - int(firsts[piece]))

    if len(train):
        refuse(_lost(train, scales, channels, lambda row: locate(int(numbers[row]))))
        refuse(first_problems(pieces[0].name, cell_problems(too_far(raw, *scales), channels, locate)))
    # rows that are taken as they come are no step apart
    even = options.irregular == "error"
    step = next((step for piece in pieces if even and (step := step_between(piece.stamps or ()))), None)
    if options.calendar:
        dates = [stamp for piece in pieces for stamp in piece.stamps or () if isinstance(stamp, datetime)]
        raw = np.concatenate([raw, calendar_columns(options.calendar, dates)], axis=1)
    strides = {"train": options.stride, "dev": options.evaluation_stride, "test": options.evaluation_stride}
    starts = {
        split: [start for part in each for start in part.windows(options.past, options.horizon, strides[split])]
        for split, each in segments.items()
    }
    return SeriesData(
        name,
        torch.from_numpy(raw),
        segments,
        {split: torch.tensor(each, dtype=torch.int64) for split, each in starts.items()},
        _codec(scales, options, layout, step),
        notes=_notes(pieces, step, options, fills, segments["train"]),
        warmup_loss=options.warmup_loss,
    )


def _codec(scales: tuple[Array, Array], options: SeriesOptions, layout: Layout, step: Step | None) -> SeriesCodec:
    # calendar columns are sines and cosines: they are not normalised
    waves = 2 * len(options.calendar)
    mean, std = np.append(scales[0], np.zeros(waves)), np.append(scales[1], np.ones(waves))
    names = (*options.columns, *calendar_names(options.calendar))
    return SeriesCodec(
        names,
        tuple(mean.tolist()),
        tuple(std.tolist()),
        values=len(options.targets),
        covariates=len(options.covariates) + waves,
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
    pieces: Sequence[Piece], step: Step | None, options: SeriesOptions, fills: Counter[str], train: Sequence[Segment]
) -> tuple[str, ...]:
    notes = [f"series: {len(pieces):,}"] if len(pieces) > 1 else []
    if step is not None:
        notes.append(f"one row every {step}")
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
    return tuple(notes)


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
        options: windows, splits, parts of the channels by name; ``time``, ``series`` and ``calendar`` are of tables.
        layout: "past" or "sequence", see ``SeriesCodec.batch``.
        names: of the channels; left out: "x1", "x2" and so on.
        name: what the data are called.

    Raises:
        UserError: wrong shapes, NaN or infinity (row and column named), constant channels, splits too short, unknown
            names; all at once.

    >>> data = series_from_arrays(torch.arange(200.0).sin()[:, None], SeriesOptions(past=8, horizon=4))
    >>> data.windows("train"), data.windows("test"), data.codec.names
    (129, 37, ('x1',))
    """
    options = options or SeriesOptions()
    series = [_array(each) for each in (arrays if isinstance(arrays, list | tuple) else [arrays])]
    several = len(series) > 1
    titles = [f"{name}: series {number}" if several else name for number in range(1, len(series) + 1)]
    width = series[0].shape[-1] if series and series[0].ndim == 2 else 0
    problems = [] if series else [f"{name}: there are no series; give at least one"]
    problems += [
        f"{title}: must be (time, channels){f' with {width} channels' if several else ''}; got shape {each.shape}"
        for title, each in zip(titles, series, strict=True)
        if each.ndim != 2 or each.shape[1] != width or not width
    ]
    columns = tuple(names) or tuple(f"x{number}" for number in range(1, width + 1))
    if width and len(columns) != width:
        problems.append(f"{name}: {width} channels have {len(columns)} names")
    problems += [
        f"{part} has no effect on arrays; use load_series, or leave it out"
        for part in ("time", "series", "calendar")
        if getattr(options, part)
    ]
    refuse(problems)
    options, problems = with_targets(options, columns, columns, name)
    refuse(problems + check_layout(layout, options.observed))
    order = [columns.index(column) for column in options.columns]
    pieces = [Piece(title, each[:, order]) for title, each in zip(titles, series, strict=True)]
    return build_series(name, pieces, options, layout)


def _array(values: Any) -> Array:
    if isinstance(values, torch.Tensor):
        values = values.detach().cpu().numpy()
    try:
        kind = np.asarray(values).dtype
        if kind.kind not in "biufO":  # complex numbers would lose a part, times and texts their meaning
            raise TypeError(f"{kind} are no real numbers")
        array = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError, OverflowError) as error:
        raise UserError(f"a series must be numbers, (time, channels); got {type(values).__name__}: {error}") from None
    return array[:, None] if array.ndim == 1 else array


def load_series(
    paths: str | Path | Sequence[str | Path], options: SeriesOptions | None = None, layout: Layout = "past"
) -> SeriesData:
    """Windows of the series in a CSV or Parquet file, or in several.

    The first line of a CSV file names its columns. Every file is a series of its own, or several where a column
    names them (``series``); all have the same columns. An empty cell, NaN, NA or null is a missing value.

    Args:
        paths: a file, or several.
        options: columns, windows, splits, what is done about gaps; the defaults of ``SeriesOptions`` if left out.
        layout: "past" or "sequence", see ``SeriesCodec.batch``.

    Raises:
        UserError: files that cannot be read, unknown columns, cells that are no numbers, gaps, constant channels, time
            stamps that are not evenly spaced (all with file, line and column), splits too short for a window.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     file = Path(folder, "load.csv")
    ...     _ = file.write_text("date,load\\n" + "".join(f"2020-01-{d:02},{d * d}\\n" for d in range(1, 31)))
    ...     data = load_series(file, SeriesOptions(past=3, horizon=2, time="date", split=(20, 5, 5)))
    >>> data.codec.names, data.windows("train"), data.windows("test"), data.codec.step
    (('load',), 16, 4, '86400 seconds')
    """
    options = options or SeriesOptions()
    files = [Path(paths)] if isinstance(paths, str | Path) else [Path(path) for path in paths]
    problems = check_layout(layout, options.observed)
    if not files:
        problems.append("there is no file; give at least one CSV or Parquet file")
    tables: list[DataTable] = []
    for file in files:
        try:
            tables.append(read_table(file, options.separator))
        except UserError as error:
            problems += error.problems
    refuse(problems)
    first = tables[0]
    full, problems = with_targets(options, first.columns, first.numeric(), first.origin)
    used = [name for names in full.parts.values() for name in names]
    problems += [
        f"{table.origin}: has no column {name!r}, which {first.origin} has; there are: {listed(table.columns)}"
        for table in tables[1:]
        for name in used
        if name in first.columns and name not in table.columns
    ]
    refuse(problems)
    pieces: list[Piece] = []
    for table in tables:
        own, wrong = _pieces(table, full)
        pieces += own
        problems += first_problems(table.origin, wrong)
    problems += _apart(pieces, options) if options.irregular == "error" else []
    # where time stamps are wrong nothing is computed from them: the other problems are still reported
    computed = replace(full, calendar=()) if problems else full
    try:
        data = build_series(", ".join(map(str, files)), pieces, computed, layout)
    except UserError as error:
        raise UserError(problems + error.problems) from None
    refuse(problems)
    unused = [name for name in first.columns if name not in used]
    if unused and not options.targets:
        data = replace(data, notes=(*data.notes, f"not used, for they do not hold numbers: {listed(unused)}"))
    return data


def _pieces(table: DataTable, options: SeriesOptions) -> tuple[list[Piece], list[str]]:
    """The series of a file, and its cells that are no numbers, and its time stamps that are none."""
    values, problems = table.block(options.columns)
    stamps, unclear = ([], []) if options.time is None else table.stamps(options.time, dates=bool(options.calendar))
    problems += unclear
    if options.series is not None:
        unnamed = [row for row, cell in enumerate(table.values(options.series)) if cell is None]
        text = f"column {options.series!r}: does not name the series of the row"
        problems += lines_of_column(unnamed, len(values), lambda row: f"{table.locate(row)}, {text}")
    timed = options.time is not None and not unclear
    pieces = [
        Piece(name, values[rows], [stamps[row] for row in rows.tolist()] if timed else None, table.locator(rows))
        for name, rows in table.groups(options.series)
    ]
    return pieces, problems


def _apart(pieces: Sequence[Piece], options: SeriesOptions) -> list[str]:
    """Time stamps that are duplicated, unsorted or not evenly spaced, and series of other steps than the first."""
    problems: list[str] = []
    steps: dict[str, str] = {}
    for piece in pieces:
        stamps = piece.stamps or ()
        step = step_between(stamps)
        if step is not None:
            steps.setdefault(str(step), piece.name)
        wrong = uneven(stamps, step, piece.locate, ', or set irregular = "ignore"')
        again = len(stamps) - len(set(stamps))
        if options.series is None and again > len(stamps) // 10:
            several = (
                f"{piece.name}: {counted(again, 'time stamp')} came before in the file; where it holds several series, "
                "name the column that tells them apart with series = ..."
            )
            wrong = [several, *wrong]
        problems += first_problems(piece.name, wrong)
    if len(steps) > 1 and not problems:
        listing = "; ".join(f"{name}: every {step}" for step, name in steps.items())
        problems.append(f"series have rows of different steps: {listing}; give them apart, or bring them to one step")
    return problems
