"""Which column has which part."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Sequence

from freerun.data.series.building import Channels
from freerun.data.series.options import SeriesOptions
from freerun.errors import listed

__all__ = ["columns_by_part"]


def columns_by_part(
    columns: Sequence[str], numeric: Collection[str], options: SeriesOptions, origin: str
) -> tuple[Channels, list[str]]:
    """The targets, observed and covariate columns, and what is wrong with their names.

    Args:
        columns: of the file, in order.
        numeric: those that hold numbers: the ones taken as targets where none are named.
        options: who has which part.
        origin: the file's name.

    >>> columns_by_part(["a", "b"], ["a", "b"], SeriesOptions(covariates=["B"]), "x.csv")[1]
    ["x.csv: covariates: there is no column 'B'; did you mean 'b'? There are: a, b"]
    """
    parts = {name: tuple(getattr(options, name)) for name in ("targets", "observed", "covariates")}
    special = {name: column for name in ("time", "series") if (column := getattr(options, name)) is not None}
    problems = [
        f"{origin}: {part}: there is no column {name!r}{_near(name, columns)} There are: {listed(columns)}"
        for part, names in (*parts.items(), *((part, (column,)) for part, column in special.items()))
        for name in names
        if name not in columns
    ]
    taken = {*parts["observed"], *parts["covariates"], *special.values()}
    targets = parts["targets"] or tuple(name for name in columns if name in numeric and name not in taken)
    if not targets and not problems:
        problems.append(f"{origin}: no column of numbers is left to predict; there are: {listed(columns)}")
    return Channels(targets, parts["observed"], parts["covariates"]), problems


def _near(name: str, columns: Sequence[str]) -> str:
    folded = {column.casefold(): column for column in columns}
    close = difflib.get_close_matches(name.casefold(), folded, n=1, cutoff=0.6)
    return f"; did you mean {folded[close[0]]!r}?" if close else ";"
