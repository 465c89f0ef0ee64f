"""Frames of pandas and polars as tables; neither is imported here unless one was passed."""

from __future__ import annotations

from collections import Counter
from typing import Any

from freerun.data.tables import DataTable
from freerun.errors import UserError, listed, needing


def frame_table(frame: Any, origin: str) -> DataTable | None:
    """The table of a frame or of a column of pandas or polars; None for anything else.

    An index of pandas that is not a plain range of numbers is a column, "time" where it holds dates without a name.
    """
    library = type(frame).__module__.partition(".")[0]
    if library == "pandas":
        cells = _of_pandas(frame, origin)
    elif library == "polars":
        frame = frame.collect() if hasattr(frame, "collect") else frame
        series = frame.get_columns() if hasattr(frame, "get_columns") else [frame]
        cells = {column.name or "x1": column for column in series}
    else:
        return None
    return DataTable(origin, tuple(cells), cells, lambda row: f"{origin}, row {row + 1}")


def _of_pandas(frame: Any, origin: str) -> dict[str, Any]:
    with needing("series", "reading series"):
        import polars as pl
    if hasattr(frame, "to_frame") and not hasattr(frame, "columns"):
        frame = frame.to_frame("x1" if getattr(frame, "name", None) is None else frame.name)
    if getattr(frame.columns, "nlevels", 1) > 1:
        raise UserError(f"{origin}: columns have {frame.columns.nlevels} levels; join them into one name each")
    index = frame.index
    if type(index).__name__ != "RangeIndex" or index.name is not None:
        if getattr(index, "nlevels", 1) == 1 and index.name is None:
            dates = type(index).__name__ in ("DatetimeIndex", "PeriodIndex")
            frame = frame.rename_axis(index="time" if dates else "index")
        frame = frame.reset_index()
    names = [str(name) for name in frame.columns]
    if double := [name for name, count in Counter(names).items() if count > 1]:
        raise UserError(f"{origin}: columns are there more than once: {listed(double)}; give each its own name")
    cells: dict[str, Any] = {}
    for number, name in enumerate(names):
        column = frame.iloc[:, number]
        kind = getattr(column.dtype, "kind", "O")
        if kind in "iuf":
            cells[name] = pl.Series(name, column.to_numpy(dtype=float, na_value=float("nan")))
            continue
        there = column.notna()
        values = [_plain(cell) if known else None for cell, known in zip(column.tolist(), there.tolist(), strict=True)]
        try:
            cells[name] = pl.Series(name, values, strict=True)
        except (TypeError, ValueError, OverflowError):
            cells[name] = pl.Series(name, [None if cell is None else str(cell) for cell in values])
    return cells


def _plain(cell: Any) -> Any:
    """A time of pandas as Python's; a period as its beginning."""
    if hasattr(cell, "to_timestamp"):
        cell = cell.to_timestamp()
    return cell.to_pydatetime(warn=False) if hasattr(cell, "to_pydatetime") else cell
