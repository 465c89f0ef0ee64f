"""Parquet files as data frames whose cells can all be read."""

from __future__ import annotations

from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

from freerun.errors import UserError, needing

__all__ = ["read_parquet", "readable"]

_DAYS = tuple(day.toordinal() - date(1970, 1, 1).toordinal() for day in (date.min, date.max))
"""The first and the last day that Python has, counted from 1970."""

_UNITS = {None: 1, "ms": 86_400_000, "us": 86_400_000_000, "ns": 86_400_000_000_000}
"""Unit of time -> how many a day has."""


def read_parquet(path: Path) -> Any:
    """The polars data frame of one file; dates beyond the years 1 to 9999, which Python has not, are null.

    Raises:
        UserError: polars is not installed, or the file is damaged.
    """
    with needing("series", f"{path}: reading Parquet"):
        import polars as pl
    # glob: a name with [ ] * ? is a name, not a pattern that other files fit
    frame = readable(path, lambda: pl.read_parquet(path, glob=False))
    for name, kind in zip(frame.columns, frame.dtypes, strict=True):
        column = frame[name]
        if kind == pl.Duration:
            frame = frame.with_columns(column.to_physical())
        elif kind in (pl.Date, pl.Datetime):
            day = _UNITS[getattr(kind, "time_unit", None)]
            number = column.to_physical().cast(pl.Float64)
            # half a day away from either end: time zones are turned into UTC
            there = number.is_between((_DAYS[0] + 0.5) * day, (_DAYS[1] - 0.5) * day).fill_null(False)
            frame = frame.with_columns(column.zip_with(there, pl.Series(name, [None], dtype=kind)))
    return frame


def readable(path: Path, read: Callable[[], Any]) -> Any:
    """What a function of the library reads.

    Raises:
        UserError: the file is damaged, or holds what Python has no objects for.
    """
    try:
        return read()
    except BaseException as error:  # a panic of the library is no Exception
        if isinstance(error, KeyboardInterrupt | SystemExit | MemoryError):
            raise
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"{path}: cannot be read as Parquet: {reason}") from None
