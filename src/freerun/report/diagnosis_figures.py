"""The figures of a diagnosis of values, each with its description and its numbers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from freerun.report.charts import DASHES, INK, SOFT, Axes, Band, Line, Panel, arm, chart, panels, ranges
from freerun.report.page import DASH, Raw, figure, grid, legend, table, thin_table

Found = Mapping[str, Any]
Values = Sequence[float | None]
SIDES = (("teacher_forced", "teacher-forced"), ("free_running", "free-running"))
_LEAD = "lead time, steps"
_NAMES = {"last_value": "last value", "last_period": "last period", "mean": "mean of training", "linear": "linear"}


def words(name: str) -> str:
    """Return the name of a naive baseline in words."""
    return _NAMES.get(name, name)


def by_lead(found: Found) -> Raw:
    """Errors by lead time in both ways, the signed gap, and growth beside the system's."""
    entries = [("arm", 0, "teacher-forced"), ("arm", 1, "free-running")]
    entries += [("arm", number + 2, words(name)) for number, name in enumerate(found["naive"])]
    if found["growth"]["exponent"]:
        entries.append(("growth", 0, "exp(\N{GREEK SMALL LETTER LAMDA} t), as any small error grows"))
    drawn = [_errors(found), _gap(found)]
    if found["growth"]["ratio"]:
        drawn.append(_ratio(found))
    return Raw(legend(entries) + grid(drawn))


def _errors(found: Found) -> Raw:
    forced, own = found["teacher_forced"], found["free_running"]
    lines = [
        Line(_leads(naive["median"]), arm(number + 2), DASHES[(number + 2) % 6], 1.5, 0.9)
        for number, naive in enumerate(found["naive"].values())
    ]
    columns = {"teacher-forced": forced["median"], "free-running": own["median"]}
    columns |= {words(name): naive["median"] for name, naive in found["naive"].items()}
    grown = _growth_line(found)
    if grown:
        lines.append(Line(grown, INK, (1, 3), 1.5))
    lines += [Line(_leads(forced["median"]), arm(0), width=2.25), Line(_leads(own["median"]), arm(1), DASHES[1], 2.25)]
    bands = [_band(forced, arm(0)), _band(own, arm(1))]
    values = [value for column in columns.values() for value in column if value]
    values += [value for value in (*forced["low"], *own["low"]) if value]
    axes = Axes(_LEAD, "error, standard deviations", log=True, y_domain=_log_domain(values))
    content = f"At lead time 1: {_at(columns, 0)}. At {found['horizon']}: {_at(columns, -1)}."
    text = "Median over windows; bands: quartiles. The scale is logarithmic."
    return figure("Error", chart(lines, axes, bands), (text, content), numbers(columns))


def _growth_line(found: Found) -> list[tuple[float, float]]:
    exponent, begin = found["growth"]["exponent"], found["free_running"]["median"][0]
    if not exponent or not begin:
        return []
    return [(t + 1.0, begin * math.exp(exponent * t)) for t in range(found["horizon"])]


def _log_domain(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values, default=0.1), max(values, default=1.0)
    # beyond a hundred standard deviations there is nothing more to read
    high = min(max(high, low * 1.5), 100.0) if low < 100 else high
    return max(low, high * 1e-6) / 1.15, high * 1.15


def _gap(found: Found) -> Raw:
    gap = found["gap_by_horizon"]
    axes = Axes(_LEAD, "free-running \N{MINUS SIGN} teacher-forced", zero=0.0, y_domain=_domain(gap))
    columns = {"gap": gap}
    text = "Difference of the medians. Above zero free running is worse."
    content = f"{_at(columns, 0)} at lead time 1, {_at(columns, -1)} at {found['horizon']}."
    return figure("Signed gap", chart([Line(_leads(gap), arm(1), width=2.25)], axes), (text, content), numbers(columns))


def _ratio(found: Found) -> Raw:
    ratio = found["growth"]["ratio"]
    columns = {"ratio": ratio}
    values = [value for value in ratio if value]
    axes = Axes(_LEAD, "ratio", log=True, zero=1.0, y_domain=_log_domain([*values, 1.0]))
    title = "Growth beside exp(\N{GREEK SMALL LETTER LAMDA} t)"
    text = "error(t) / (error(1) exp(\N{GREEK SMALL LETTER LAMDA}(t \N{MINUS SIGN} 1))); 1 is a perfect model's growth."
    content = f"{_at(columns, 0)} at lead time 1, {_at(columns, -1)} at {found['horizon']}."
    return figure(title, chart([Line(_leads(ratio), arm(1), width=2.25)], axes), (text, content), numbers(columns))


def sample_windows(found: Found) -> Raw:
    """Draw whole windows: gold, teacher-forced and free-running, a panel a channel."""
    if not found["sample_windows"]:
        return Raw("")
    entries = [("gold", 0, "gold"), ("arm", 0, "teacher-forced, one step ahead"), ("arm", 1, "free-running")]
    if found["sample_windows"][0]["bands"]:
        entries.append(("band", 1, "sampled free runs, 50 % and 90 %"))
    shown = len(found["sample_windows"][0]["gold"][0])
    more = len(found["channels"]) - shown
    note = f" The first {shown} of {shown + more} channels." if more > 0 else ""
    text = f"Windows at even distances; nobody chose them. In the units of the data.{note}"
    drawn = [
        _sample_window(each, found["channels"], ranges(found["sample_windows"])) for each in found["sample_windows"]
    ]
    return Raw(f'<p class="note">{text}</p>' + legend(entries) + grid(drawn))


def _sample_window(each: Found, channels: Sequence[str], domains: Sequence[tuple[float, float]]) -> Raw:
    shown = len(domains)
    drawn = [_panel(each, channel, channels[channel], domains[channel]) for channel in range(shown)]
    gone = each["diverged_at"]
    text = f"The free run escapes at lead time {gone}." if gone else ""
    columns = {
        f"{name}{f', {channels[channel]}' if shown > 1 else ''}": [row[channel] for row in each[part]]
        for channel in range(shown)
        for name, part in (("gold", "gold"), ("teacher-forced", "teacher_forced"), ("free-running", "free_running"))
    }
    content = f"At the last step: {_at(columns, -1)}. {text}"
    return figure(f"Window {each['window']:,}", panels(drawn), (text, content), numbers(columns))


def _panel(each: Found, channel: int, name: str, domain: tuple[float, float]) -> Panel:
    def points(part: str, begin: int) -> list[tuple[float, float]]:
        return [(begin + n, _float(row[channel])) for n, row in enumerate(each[part])]

    past, gold = points("past", 1 - len(each["past"])), points("gold", 1)
    bands = dict(each["bands"])
    drawn: list[Band] = []
    for low, high in ((0.05, 0.95), (0.25, 0.75)):
        if low in bands and high in bands:
            pairs = zip(bands[low], bands[high], strict=True)
            rows = [(n + 1.0, _float(a[channel]), _float(b[channel])) for n, (a, b) in enumerate(pairs)]
            drawn.append(Band(rows, arm(1), 0.18))
    lines = [
        Line([*past, gold[0]], INK, width=1.25, opacity=0.55),
        Line(gold, INK, width=2),
        Line(points("teacher_forced", 1), arm(0), DASHES[0], 1.5),
        Line(points("free_running", 1), arm(1), DASHES[1], 2.25),
    ]
    begin, end = 1.0 - len(past), float(len(gold))
    axes = Axes("steps from the last known value", name, x_domain=(begin, end), y_domain=domain, begin=0.0)
    return Panel(lines, drawn, axes)


def climate(found: Found) -> Raw:
    """Spectra, and states in a plane."""
    measured = found["climate"]
    frequencies, (gold, own) = measured["frequencies"], measured["powers"]
    lines = [
        Line(list(zip(frequencies, map(_float, gold), strict=True)), INK, width=2),
        Line(list(zip(frequencies, map(_float, own), strict=True)), arm(1), DASHES[1], 2),
    ]
    values = [value for value in (*gold, *own) if value]
    axes = Axes("frequency, cycles a step", "share of the power", log=True, y_domain=_floor(values))
    peak = [frequencies[max(range(len(power)), key=lambda n: power[n] or 0.0)] for power in (gold, own)]
    content = f"The largest share of gold lies at {peak[0]:.3g} cycles a step, that of the free run at {peak[1]:.3g}."
    listed = numbers({"gold": gold, "free run": own}, ("frequency", [f"{f:.4g}" for f in frequencies]))
    text = f"Smoothed over {measured['smoothing']:.3g} frequencies; where 99.9 % of gold's power lies."
    drawn = [figure("Power spectrum", chart(lines, axes), (text, content), listed), _states(measured)]
    return Raw(legend([("gold", 0, "gold"), ("arm", 1, "free run")]) + grid(drawn))


def _floor(values: Sequence[float]) -> tuple[float, float]:
    high = max(values)
    return max(min(values), high * 1e-5), high * 1.3


def _states(measured: Found) -> Raw:
    gold, own = measured["points"]
    every = [*gold, *own]
    x, y = (_domain([point[axis] for point in every]) for axis in (0, 1))
    first, second = measured["axes"]
    shown = [
        Panel(
            [Line([(a, b) for a, b in points], colour, width=0.8, opacity=0.8)],
            (),
            Axes(first, title, x_domain=x, y_domain=y),
        )
        for points, colour, title in ((gold, INK, second), (own, arm(1), ""))
    ]
    spans = [
        [f"{min(p[axis] for p in points):.3g} to {max(p[axis] for p in points):.3g}" for axis in (0, 1)]
        for points in (gold, own)
    ]
    ranges = table(["", first, second], [["gold, range", *spans[0]], ["free run, range", *spans[1]]], "numbers")
    text = f"The last {len(own):,} states. Left: gold. Right: the free run."
    content = (
        f"{first}: gold {spans[0][0]}, free run {spans[1][0]}. {second}: gold {spans[0][1]}, free run {spans[1][1]}."
    )
    return figure("States", panels(shown, across=True), (text, content), ranges)


def _float(value: float | None) -> float:
    return math.nan if value is None else value


def _leads(values: Values) -> list[tuple[float, float]]:
    return [(n + 1.0, _float(value)) for n, value in enumerate(values)]


def _band(side: Found, colour: str) -> Band:
    # an infinite quartile reaches to the edge
    rows = [
        (n + 1.0, low, math.inf if high is None else high)
        for n, (low, high) in enumerate(zip(side["low"], side["high"], strict=True))
        if low is not None
    ]
    return Band(rows, colour)


def _domain(values: Values) -> tuple[float, float] | None:
    there = [value for value in values if value is not None]
    if not there:
        return None
    low, high = min(0.0, *there) if len(there) > 1 else min(0.0, there[0]), max(there)
    room = 0.06 * ((high - low) or 1.0)
    return min(there) - room if min(there) < 0 else -room, high + room


def _at(columns: Mapping[str, Values], place: int) -> str:
    return ", ".join(f"{name} {_shown(values[place])}" for name, values in columns.items())


def _shown(value: float | None) -> str:
    return "\N{INFINITY}" if value is None else f"{value:.4g}"


def numbers(columns: Mapping[str, Values], first: tuple[str, Sequence[str]] | None = None) -> Raw:
    """Return a table of columns by lead time, thinned to about a dozen rows."""
    length = len(next(iter(columns.values())))
    name, names = first or ("lead time", [str(n + 1) for n in range(length)])
    rows = [[names[n], *(_shown(values[n]) for values in columns.values())] for n in range(length)]
    return thin_table([name, *columns], rows)


def percent(value: float | None) -> str:
    """Return a share in percent."""
    return DASH if value is None else f"{100 * value:.3g} %"


def by_position(found: Found) -> str:
    """Draw wrong choices, their gap and first errors by position, as far as enough rows reach."""
    # at least 1 % of the rows, and ten of them; one position at least
    enough = max(10, 0.01 * found["rows"])
    shown = max(1, sum(left >= enough for left in found["left"]))
    columns = {name: found[side]["wrong_by_position"][:shown] for side, name in SIDES}
    lines = [
        Line(_percents(values), arm(number), DASHES[number], 2.25) for number, values in enumerate(columns.values())
    ]
    text = "Share of the rows that have an entry there."
    less = found["positions"] - shown
    if less:
        text += f" The last {less:,} positions, of few rows, are left out."
    seen = "; ".join(
        f"{name}: {percent(v[0])} at position 1, {percent(v[-1])} at {shown}" for name, v in columns.items()
    )
    top = max([value or 0.0 for values in columns.values() for value in values] + [0.01])
    axes = Axes("position", "wrong, %", y_domain=(0.0, 105 * top))
    drawn = [figure("Wrong choices", chart(lines, axes), (text, seen), _position_table(columns, found, shown))]
    gap = found["gap_by_position"][:shown]
    room = 5 * max([abs(value) for value in gap if value] + [0.01])
    low, high = (100 * end([0.0, *(value for value in gap if value)]) for end in (min, max))
    axes = Axes("position", "difference, points", zero=0.0, y_domain=(low - room, high + room))
    line = Line(_percents(gap), arm(1), width=2.25)
    content = f"{percent(gap[0])} at position 1, {percent(gap[-1])} at {shown}."
    texts = (
        "Free-running less teacher-forced. Above zero free running is worse; at position 1 the histories are equal.",
        content,
    )
    drawn.append(figure("Signed gap", chart([line], axes), texts, _position_table({"gap": gap}, found, shown)))
    firsts = found["first_error"][:shown]
    right = found["rows"] - sum(found["first_error"])
    shares = [count / found["rows"] for count in firsts]
    axes = Axes("position", "rows, %", y_domain=(0.0, 105 * max(*shares, 0.001)))
    content = f"{right:,} of {found['rows']:,} rows have no error."
    text = "Where the first error is, the same in both ways."
    table_ = _position_table({"first error here": shares}, found, shown)
    drawn.append(
        figure("First errors", chart([Line(_percents(shares), SOFT, width=2.25)], axes), (text, content), table_)
    )
    return legend(("arm", number, name) for number, (_, name) in enumerate(SIDES)) + grid(drawn)


def _percents(values: Sequence[float | None]) -> list[tuple[float, float]]:
    return [(n + 1.0, math.nan if value is None else 100 * value) for n, value in enumerate(values)]


def _position_table(columns: Mapping[str, Sequence[float | None]], found: Found, shown: int) -> Raw:
    rows = [
        [str(n + 1), *(percent(values[n]) for values in columns.values()), f"{found['left'][n]:,}"]
        for n in range(shown)
    ]
    return thin_table(["position", *columns, "rows"], rows)
