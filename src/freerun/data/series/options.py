"""How time series become windows and splits."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Literal

from freerun.arguments import OneOf, at_least, between, brief, field_problems, one_of
from freerun.data.series.time_stamps import CALENDAR
from freerun.data.tables import TableForm
from freerun.data.times import time_format_works, zone_of
from freerun.errors import display, listed, refuse

Layout = Literal["past", "sequence"]


def check_layout(layout: str, observed: Sequence[str] = ()) -> list[str]:
    """Return the problems of a layout, if any."""
    if problem := OneOf(("past", "sequence")).problem("layout", layout):
        return [problem]
    if layout == "sequence" and observed:
        return [
            f'layout "sequence" cannot hold observed channels ({", ".join(observed)}): their future is not known; '
            'make them targets, leave them out, or use a model of layout "past"'
        ]
    return []


@dataclass(frozen=True)
class SeriesOptions:
    """How time series become windows and splits.

    Args:
        past: steps known before what is predicted.
        horizon: steps predicted.
        stride: steps between the beginnings of two training windows.
        evaluation_stride: the same for dev and test.
        split: shares (0.7, 0.1, 0.2) of every series that are train, dev and test, in time; or numbers of rows
            (8640, 2880, 2880). What is left over at the end is in no split.
        targets: columns predicted and fed back; empty: all columns of numbers that have no other part, but for those
            that are constant, hold true and false, or count the rows; what is left out is named in the header.
        observed: columns known in the past only.
        covariates: columns known in the future too (plans, holidays), or constant in a series.
        categories: columns of names, not numbers, known in the future too (a promotion, the kind of a shop): a model
            learns a vector for each. The column of ``series`` may be one: each series then has a vector of its own.
        calendar: covariates computed from the time column, each as sine and cosine: of "minute", "hour", "weekday",
            "monthday", "yearday", "month".
        time: column of time stamps (dates and times of ISO 8601, or numbers), which rows are sorted by; None: the
            column of dates, if there is one.
        time_format: how times are written, where not as ISO 8601 has it: "%d.%m.%Y %H:%M", as Python's ``strptime``.
        time_zone: "Europe/Berlin", whose local time the calendar is of, and times without an offset are in; None: the
            calendar is of the times as written.
        series: column that names the series a row belongs to.
        missing: "error", or what a model reads where a value is missing or a row absent (absent rows are put in):
            "last" carries the last value on; "linear" draws a line between a gap's neighbours, but never over the
            border of a split (it knows the value after the gap); "mask" is "last", and the mean of the training rows
            where none was before. Nothing that is filled in counts in a loss or a score, or is fed as gold.
        irregular: "error" or "ignore" (rows are taken as they come): what to do with time stamps that are
            duplicated, or not evenly spaced.
        normalisation: "standard" (minus mean, over standard deviation of the training rows, each channel); "series"
            (of the training rows of each series, whose errors are in its own deviations; a series that was not in
            training is scaled by what is known of it); "none"; "auto" is "series" where ``series`` names a column, else
            "standard".
        period: steps of the season, for the naive forecast that repeats the last one.
        separator: between the columns of a CSV file.
        decimal: the mark of decimals, "." or ",".
        thousands: what groups the digits of large numbers, such as "," or "."; None: nothing does.
        warmup_loss: layout "sequence": training windows carry loss on the past too, but for its first step.

    Raises:
        UserError: values that are not allowed; all of them at once.
    """

    __repr__ = brief

    past: int = between(1, 10**7, 48)
    horizon: int = between(1, 10**7, 24)
    stride: int = at_least(1, 1)
    evaluation_stride: int = at_least(1, 1)
    split: tuple[int, ...] | tuple[float, ...] = (0.7, 0.1, 0.2)
    targets: Sequence[str] = ()
    observed: Sequence[str] = ()
    covariates: Sequence[str] = ()
    categories: Sequence[str] = ()
    calendar: Sequence[str] = one_of(CALENDAR, ())
    time: str | None = None
    time_format: str | None = None
    time_zone: str | None = None
    series: str | None = None
    missing: Literal["error", "last", "linear", "mask"] = one_of(("error", "last", "linear", "mask"), "error")
    irregular: Literal["error", "ignore"] = one_of(("error", "ignore"), "error")
    normalisation: Literal["auto", "standard", "series", "none"] = one_of(
        ("auto", "standard", "series", "none"), "auto"
    )
    period: int | None = at_least(1, None)
    separator: str = ","
    decimal: str = one_of((".", ","), ".")
    thousands: str | None = None
    warmup_loss: bool = False

    def __post_init__(self) -> None:
        for name in ("targets", "observed", "covariates", "categories", "calendar", "split"):
            value: Any = getattr(self, name)
            object.__setattr__(self, name, (value,) if isinstance(value, str) else tuple(value))
        problems = field_problems(self) + _split_problems(self.split)
        if self.calendar and self.time is None:
            problems.append("calendar covariates are computed from time stamps: name their column with time = ...")
        problems += _form_problems(self)
        parts = [(column, part) for part, columns in self.parts.items() for column in columns]
        for column in dict.fromkeys(column for column, _ in parts):
            own = [part for name, part in parts if name == column]
            if len(own) > 1 and sorted(own) != ["categories", "series"]:
                problems.append(
                    f"column {column!r} is named {len(own)} times, as {', '.join(own)}; a column has one part: a "
                    "target's future is not known, a covariate's is"
                )
        refuse(problems)
        if self.normalisation == "auto":
            object.__setattr__(self, "normalisation", "standard" if self.series is None else "series")

    @property
    def parts(self) -> dict[str, tuple[str, ...]]:
        """Part -> the columns that are named for it."""
        parts = {name: tuple(getattr(self, name)) for name in ("targets", "observed", "covariates", "categories")}
        return parts | {name: (column,) for name in ("time", "series") if (column := getattr(self, name)) is not None}

    @property
    def form(self) -> TableForm:
        """How numbers and times stand in the tables."""
        return TableForm(self.separator, self.decimal, self.thousands, self.time_format, self.time_zone)

    @property
    def reading(self) -> dict[str, str]:
        """What of the form, and of missing values, is not the default: it is kept with a model."""
        found = {each.name: getattr(self.form, each.name) for each in fields(TableForm)}
        found["missing"] = self.missing
        plain = {each.name: each.default for each in fields(SeriesOptions)}
        return {name: value for name, value in found.items() if value != plain[name]}

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns that hold channels, in order: targets, observed, covariates, categories."""
        return (*self.targets, *self.observed, *self.covariates, *self.coded)

    @property
    def coded(self) -> tuple[str, ...]:
        """The categories that rows have; a series has its own name."""
        return tuple(name for name in self.categories if name != self.series)


def _form_problems(options: SeriesOptions) -> list[str]:
    problems = [
        f"{name} must be one character{what}; got {display(mark)}"
        for name, mark, what in (
            ("separator", options.separator, " of ASCII"), ("thousands", options.thousands, ""),
        )
        if mark is not None and (not isinstance(mark, str) or len(mark) != 1 or (what and not mark.isascii()))
    ]  # fmt: skip
    if options.thousands == options.decimal:
        problems.append(f"thousands and decimal are both {options.thousands!r}: one mark has one meaning")
    try:
        zone_of(options.time_zone)
    except (ValueError, TypeError):
        problems.append(f'time_zone must be a name such as "Europe/Berlin"; got {display(options.time_zone)}')
    if isinstance(options.time_format, str) and not time_format_works(options.time_format):
        problems.append(
            'time_format must be a format of strptime with a year, such as "%d.%m.%Y"; got '
            f"{display(options.time_format)}"
        )
    return problems


def _split_problems(split: Sequence[float]) -> list[str]:
    got = f"got ({listed(map(str, split))})"
    if len(split) != 3:
        return [f"split must be three shares or three numbers of rows: train, dev and test; {got}"]
    if not all(isinstance(part, int | float) and not isinstance(part, bool) for part in split):
        return [f"split must be numbers; got {display(list(split))}"]
    if all(isinstance(part, int) for part in split):
        fine = all(1 <= part <= 2**53 for part in split)
        return [] if fine else [f"split: numbers of rows must be at least 1, and at most 2**53; {got}"]
    fine = min(split) > 0 and sum(split) <= 1 + 1e-9
    return [] if fine else [f"split: shares must be above 0 and at most 1 together; {got}"]


def with_targets(
    options: SeriesOptions, columns: Sequence[str], numeric: Collection[str], origin: str
) -> tuple[SeriesOptions, list[str]]:
    """Return the options with targets, by default the columns of numbers without a part, and what is wrong."""
    parts = options.parts
    folded = {column.casefold(): column for column in columns}
    problems: list[str] = []
    for part, name in ((part, name) for part, names in parts.items() for name in names if name not in columns):
        near = difflib.get_close_matches(name.casefold(), folded, n=1, cutoff=0.6)
        meant = f"; did you mean {folded[near[0]]!r}?" if near else ";"
        problems.append(f"{origin}: {part}: there is no column {name!r}{meant} There are: {listed(columns)}")
    taken = {name for names in parts.values() for name in names}
    targets = parts["targets"] or tuple(name for name in columns if name in numeric and name not in taken)
    if not targets and not problems:
        problems.append(f"{origin}: no column of numbers is left to predict; there are: {listed(columns)}")
    return replace(options, targets=targets), problems
