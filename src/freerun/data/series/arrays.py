"""Series from arrays."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from freerun.data.integrate import Array
from freerun.data.series.building import Piece, built
from freerun.data.series.options import Layout, SeriesOptions, check_layout
from freerun.data.series.roles import columns_by_part
from freerun.data.series.windows import SeriesData
from freerun.errors import UserError

__all__ = ["series_from_arrays"]


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
        layout: "past" or "sequence", see ``SeriesCoder.batch``.
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
    if problems:
        raise UserError(problems)
    channels, problems = columns_by_part(columns, columns, options, name)
    problems += check_layout(layout, channels.observed)
    if problems:
        raise UserError(problems)
    order = [columns.index(column) for column in channels.names]
    pieces = [Piece(title, each[:, order]) for title, each in zip(titles, series, strict=True)]
    return built(name, pieces, channels, options, layout)


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
