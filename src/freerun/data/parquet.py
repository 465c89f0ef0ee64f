"""Parquet files as data frames whose cells can all be read."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from datetime import date
from pathlib import Path
from threading import RLock
from typing import Any

from freerun.errors import UserError, needing, out_of_memory

_ERRORS = RLock()
"""Held while standard error is somewhere else: of two threads one would put back the other's file."""

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
        return unpanicked(path, read, "Parquet")
    except UserError:
        raise
    except Exception as error:
        if out_of_memory(error):
            raise
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"{path}: cannot be read as Parquet: {reason}") from None


def unpanicked(path: Path, read: Callable[[], Any], format: str) -> Any:
    """What a function of polars reads; a panic of its threads is no ``Exception``, and reaches no terminal.

    Raises:
        UserError: it panicked.
    """
    try:
        with _errors_held_back():
            return read()
    except BaseException as error:
        if type(error).__name__ != "PanicException":
            raise
    raise UserError(f"{path}: is damaged: polars fails on its content as {format}; write or copy the file anew")


@contextmanager
def _errors_held_back() -> Generator[None]:
    """Inside, what is written to the process's standard error waits; after a panic it is left out."""
    with _ERRORS, tempfile.TemporaryFile() as held:
        try:
            kept = os.dup(2)
        except OSError:  # there is none
            yield
            return
        os.dup2(held.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(kept, 2)
            os.close(kept)
            held.seek(0)
            if b"panicked at" not in (text := held.read()):
                with suppress(OSError):
                    os.write(2, text)
