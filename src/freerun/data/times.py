"""Times as tables write them: ISO 8601 in every precision, or a format; and writing others in the same form."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from datetime import UTC, date, datetime, tzinfo
from itertools import product
from typing import Any
from zoneinfo import ZoneInfo

Stamp = datetime | float

_DATES = ("%Y-%m-%d", "%Y%m%d", "%Y-%m", "%G-W%V-%u", "%G-W%V", "%Y-Q{quarter}", "%YQ{quarter}", "%Y")
_CLOCKS = ("%H:%M:%S", "%H:%M", "%H", "%H:%M:%S.%f", "%H:%M:%S.{ms}", "%H%M%S")
_TIMES = ("", *(f"{gap}{clock}" for gap in " T" for clock in _CLOCKS))
_OFFSETS = ("", "Z", "{offset}", "%z", "{hours}")
_OTHERS = tuple(
    day + time
    for day in (
        "%d.%m.%Y", "%d/%m/%Y", "%m/%d/%Y", "%Y/%m/%d", "%Y.%m.%d", "%d-%m-%Y", "%m-%d-%Y", "%d.%m.%y", "%d/%m/%y",
        "%m/%d/%y", "%d %b %Y", "%d-%b-%Y", "%b %d, %Y", "%d %B %Y", "%B %d, %Y", "%b %Y", "%b-%y", "%B %Y", "%m/%Y",
        "%m.%Y", "%Y/%m", "%YM%m",
    )
    for time in ("", " %H:%M", " %H:%M:%S", " %I:%M %p", " %I:%M:%S %p", "T%H:%M:%S", " %H")
)  # fmt: skip
"""Other forms than ISO's, of which messages name those that fit."""


def iso_time(cell: Any) -> datetime | None:
    """The time of an ISO date or time, of any precision (a year's quarter too), or of a date; None where it is none.

    >>> iso_time("1949-01"), iso_time("2020-Q2"), iso_time("2020-01-01T05:00Z").utcoffset()
    (datetime.datetime(1949, 1, 1, 0, 0), datetime.datetime(2020, 4, 1, 0, 0), datetime.timedelta(0))
    """
    if isinstance(cell, str):
        text = cell.strip()
        if re.fullmatch(r"\d{4}-\d\d", text):
            text += "-01"
        elif quarter := re.fullmatch(r"(\d{4})-?Q([1-4])", text):
            text = f"{quarter[1]}-{3 * int(quarter[2]) - 2:02}-01"
        try:
            cell = datetime.fromisoformat(text)
        except ValueError:
            return None
    if isinstance(cell, datetime):
        return within_years(cell)
    return datetime(cell.year, cell.month, cell.day) if isinstance(cell, date) else None


def within_years(stamp: datetime) -> datetime | None:
    """The time; None in the first or the last hours that there are, which have no time in UTC."""
    try:
        return stamp if stamp.tzinfo is None else stamp.astimezone(UTC) and stamp
    except (OverflowError, ValueError):
        return None


def formatted_time(cell: Any, time_format: str) -> datetime | None:
    """The time of a text in a format of ``strptime``; a date or time as it is; None where it is none."""
    if not isinstance(cell, str):
        return iso_time(cell)
    try:
        return within_years(datetime.strptime(cell.strip(), time_format))
    except (ValueError, OverflowError):
        return None


def time_format_works(time_format: str) -> bool:
    """True if a time that is written in a format is read in it again, its year with it.

    >>> time_format_works("%d.%m.%Y"), time_format_works("%H:%M"), time_format_works("%Q")
    (True, False, False)
    """
    try:
        years = [
            formatted_time(datetime(year, 3, 4, tzinfo=UTC).strftime(time_format), time_format) for year in (1999, 2001)
        ]
    except ValueError:
        return False
    return [year.year if year is not None else 0 for year in years] == [1999, 2001]


def fitting_formats(cells: Sequence[Any]) -> list[str]:
    """The formats beside ISO's in which most of the texts are times.

    >>> fitting_formats(["31.12.2020", "01.01.2021"]), fitting_formats(["01/02/2020"])
    (['%d.%m.%Y'], ['%d/%m/%Y', '%m/%d/%Y'])
    """
    texts = [cell for cell in cells if isinstance(cell, str) and any(map(str.isdigit, cell))]
    some = texts[:: max(1, len(texts) // 20)]
    likely = [each for each in _OTHERS if _share(some, each) > 0.5] if 2 * len(texts) > len(cells) else []
    shares = {each: _share(texts, each) for each in likely}
    return [each for each in likely if shares[each] > 0.5 and shares[each] == max(shares.values())]


def _share(texts: Sequence[str], time_format: str) -> float:
    return sum(formatted_time(text, time_format) is not None for text in texts) / max(1, len(texts))


def writer_like(cells: Sequence[Any], time_format: str | None) -> Callable[[Stamp], str]:
    """From a time to a text in the form of a column's cells.

    >>> writer_like(["2020-01-01T05:00Z"], None)(datetime(2021, 2, 3, 4, tzinfo=UTC))
    '2021-02-03T04:00Z'
    >>> writer_like(["1.2.2020"], "%d.%m.%Y")(datetime(2020, 3, 4))
    '4.3.2020'
    """
    examples = [cell.strip() for cell in cells if isinstance(cell, str) and cell.strip()]
    parse: Callable[[str], datetime | None] = iso_time
    if time_format is not None:
        forms = [time_format, re.sub("%([dmHI])", r"%-\1", time_format), re.sub("%([dm])", r"%-\1", time_format)]
        parse = lambda text: formatted_time(text, time_format)  # noqa: E731
    else:
        forms = ["".join(parts) for parts in product(_DATES, _TIMES, _OFFSETS)]
    read = [(text, stamp) for text in examples if (stamp := parse(text)) is not None]
    fits = [form for form in forms if read and all(_write(stamp, form) == text for text, stamp in read)]
    form = (fits or [time_format or "%Y-%m-%d %H:%M:%S{offset}"])[0]

    def write(stamp: Stamp) -> str:
        if isinstance(stamp, datetime):
            return _write(stamp, form)
        return str(int(stamp)) if stamp == int(stamp) else f"{stamp:.12g}"

    return write


def _write(stamp: datetime, form: str) -> str:
    if form.endswith("Z") and stamp.tzinfo is not None:
        stamp = stamp.astimezone(UTC)
    offset = stamp.strftime("%z")
    parts = {
        "quarter": (stamp.month + 2) // 3,
        "ms": f"{stamp.microsecond // 1000:03}",
        "offset": offset and f"{offset[:3]}:{offset[3:]}",
        "hours": offset[:3],
    }
    for name, value in parts.items():
        form = form.replace("{" + name + "}", str(value))
    return stamp.strftime(form)


def localised(stamps: Sequence[Stamp], zone: tzinfo | None) -> tuple[list[Stamp], list[int]]:
    """The times of one series in a zone, and the rows whose time does not exist there.

    A time with an offset moves to the zone; one without is local, and where clocks go back and it comes twice, the
    second is the later one (the first, where the newest stand first).

    >>> stamps, wrong = localised([datetime(2020, 10, 25, 2), datetime(2020, 10, 25, 2)], ZoneInfo("Europe/Berlin"))
    >>> [stamp.utcoffset().total_seconds() / 3600 for stamp in stamps], wrong
    ([2.0, 1.0], [])
    """
    if zone is None:
        return list(stamps), []
    falling = len(stamps) > 1 and _plain(stamps[-1]) < _plain(stamps[0])
    found, wrong, seen = list(stamps), list[int](), set[Any]()
    for row in sorted(range(len(stamps)), reverse=falling):
        stamp = stamps[row]
        if not isinstance(stamp, datetime):
            continue
        if stamp.tzinfo is None:
            local = stamp.replace(tzinfo=zone, fold=int(stamp in seen))
            seen.add(stamp)
            if within_years(local) is None or local.astimezone(UTC).astimezone(zone).replace(tzinfo=None) != stamp:
                wrong.append(row)
            elif local.replace(fold=0).utcoffset() == local.replace(fold=1).utcoffset():
                local = local.replace(fold=0)  # it comes once: a row that is there twice
        else:
            local = stamp.astimezone(zone)
        found[row] = local
    return found, sorted(wrong)


def _plain(stamp: Any) -> Any:
    return stamp.replace(tzinfo=None) if isinstance(stamp, datetime) else stamp


def zone_of(name: str | None) -> ZoneInfo | None:
    """The time zone of a name, as "Europe/Berlin"; ValueError where there is none."""
    try:
        return None if name is None else ZoneInfo(name)
    except (OSError, LookupError, ValueError) as error:
        raise ValueError(str(error)) from None
