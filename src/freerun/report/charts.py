"""The chart layer: lines with bands, small multiples, and differences with intervals, as SVG in the page's colours."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

Points = Sequence[tuple[float, float]]
Rows = Sequence[Sequence[float | None]]
_WIDTH, _HEIGHT, _SMALL = 340, 200, 110
DASHES = ((1, 0), (7, 3), (2, 2), (9, 3, 2, 3), (4, 4), (12, 4))
"""Stroke pattern of each arm: lines stay apart without colour."""

# colours that stand for the style sheet's: ink, soft ink, grid, and arm 0, 1, ...
INK, SOFT, GRID = "#b00001", "#b00002", "#b00003"
ARMS = tuple(f"#a0000{i}" for i in range(6))
_BASELINES = {
    "last_value": "last value", "last_period": "last period", "mean": "mean of training", "linear": "linear regression",
    "most_frequent": "most frequent", "ngram": "n-gram",
}  # fmt: skip
_RULE = {"color": SOFT, "strokeDash": [2, 3]}
_VARIABLES = {
    **{colour: f"var(--arm-{i})" for i, colour in enumerate(ARMS)},
    INK: "var(--ink)",
    SOFT: "var(--soft)",
    GRID: "var(--grid)",
}


@dataclass(frozen=True)
class Line:
    """A line of a chart."""

    points: Points
    colour: str = INK
    dash: Sequence[int] = (1, 0)
    width: float = 2.0
    opacity: float = 1.0
    dots: bool = False


@dataclass(frozen=True)
class Band:
    """What lies between two lines."""

    points: Sequence[tuple[float, float, float]]
    colour: str
    opacity: float = 0.18


@dataclass(frozen=True)
class Axes:
    """Titles and scales of a chart."""

    x: str
    y: str
    log: bool = False
    x_domain: tuple[float, float] | None = None
    y_domain: tuple[float, float] | None = None
    zero: float | None = None
    begin: float | None = None


@dataclass(frozen=True)
class Panel:
    """One chart among several."""

    lines: Sequence[Line]
    bands: Sequence[Band]
    axes: Axes


def arm(number: int) -> str:
    """Colour of an arm."""
    return ARMS[number % len(ARMS)]


def baseline_name(name: str) -> str:
    """Return the name of a naive baseline in words."""
    return _BASELINES.get(name, name)


def leads(values: Sequence[float | None]) -> list[tuple[float, float]]:
    """Return values over lead times 1, 2, ...; NaN, which breaks a line, for None."""
    return [(n + 1.0, math.nan if value is None else value) for n, value in enumerate(values)]


def ranges(windows: Sequence[Mapping[str, Any]]) -> list[tuple[float, float]]:
    """Return a range of y for each channel, the same for all windows: past and gold as far as there, and a third more.

    >>> ranges([{"past": [[0.0]], "gold": [[1.0], [2.0]]}])
    [(-0.7, 2.7)]
    """
    channels = zip(*(row for each in windows for part in ("past", "gold") for row in each[part]), strict=True)
    there = [[float(value) for value in values if value is not None] for values in channels]
    return [_widened(min(values, default=0.0), max(values, default=1.0), 0.35) for values in there]


def _widened(low: float, high: float, share: float) -> tuple[float, float]:
    room = share * ((high - low) or 1.0)
    return low - room, high + room


def chart(lines: Sequence[Line], axes: Axes, bands: Sequence[Band] = ()) -> str:
    """Lines over bands as SVG."""
    return _to_svg(_layered(Panel(lines, bands, axes), _WIDTH, _HEIGHT))


def panels(drawn: Sequence[Panel], *, across: bool = False) -> str:
    """Return several charts as one SVG, below one another (with one x axis) or side by side."""
    alt = _altair()
    if across:
        width = (_WIDTH - 40) // len(drawn)
        return _to_svg(alt.hconcat(*(_layered(panel, width, width) for panel in drawn), spacing=14))
    if len(drawn) == 1:
        return _to_svg(_layered(drawn[0], _WIDTH, 150))
    height = _SMALL if len(drawn) < 4 else 80
    parts = [_layered(panel, _WIDTH, height, titled=panel is drawn[-1]) for panel in drawn]
    return _to_svg(alt.vconcat(*parts, spacing=6))


def window_chart(
    window: Mapping[str, Any],
    channels: Sequence[str],
    domains: Sequence[tuple[float, float]],
    runs: Mapping[str, Rows],
    styles: Mapping[str, Line],
    *,
    bands: Sequence[tuple[Rows, Rows, str]] = (),
    title: str = "steps from the last known value",
) -> tuple[str, dict[str, list[float | None]]]:
    """Draw past and gold of a window with runs, a panel a channel: SVG, and the columns of its table.

    ``styles`` are the runs' lines, in the order in which they are drawn; ``bands``: a lower edge, an upper edge
    and a colour.
    """
    begin, horizon = 1.0 - len(window["past"]), len(window["gold"])
    reference = "gold" if "gold" not in runs else "gold (reference)"  # an arm may be called gold
    drawn: list[Panel] = []
    columns: dict[str, list[float | None]] = {}
    for channel, domain in enumerate(domains):
        by_name = {
            name: [row[channel] for row in rows] for name, rows in ({reference: window["gold"]} | dict(runs)).items()
        }
        suffix = f", {channels[channel]}" if len(domains) > 1 else ""
        columns |= {f"{name}{suffix}": values for name, values in by_name.items()}
        gold = leads(by_name[reference])
        past = [(begin + n, row[channel]) for n, row in enumerate(window["past"])]
        lines = [Line([*past, gold[0]], INK, width=1.25, opacity=0.55), Line(gold, INK, width=2)]
        lines += [replace(style, points=leads(by_name[name])) for name, style in styles.items()]
        edges = [(*(leads([row[channel] for row in edge]) for edge in pair), colour) for *pair, colour in bands]
        fills = [
            Band([(x, a, b) for (x, a), (_, b) in zip(low, high, strict=True)], colour) for low, high, colour in edges
        ]
        axes = Axes(title, channels[channel], False, (begin, float(horizon)), domain, begin=0.0 if begin < 1 else None)
        drawn.append(Panel(lines, fills, axes))
    return panels(drawn), columns


def _layered(panel: Panel, width: int, height: int, *, titled: bool = True) -> Any:
    alt, axes = _altair(), panel.axes

    def scale(domain: tuple[float, float] | None, **options: Any) -> Any:
        return alt.Scale(nice=False, **options, **({"domain": list(domain)} if domain else {}))

    def layer(kind: str, rows: Sequence[Mapping[str, Any]], style: Mapping[str, Any], **channels: Any) -> Any:
        return getattr(alt.Chart(alt.Data(values=rows)), f"mark_{kind}")(**style).encode(**channels)

    x_axis = alt.Axis(tickCount=max(3, width // 70), labelOverlap=True, labels=titled)
    x_scale = scale(axes.x_domain, **({} if axes.x_domain else {"zero": False}))
    x = alt.X("x:Q", title=axes.x if titled else None, scale=x_scale, axis=x_axis)
    numbers = {"format": "~g", "values": _ticks(axes.y_domain)} if axes.log and axes.y_domain else {}
    if axes.y_domain and not axes.log and max(map(abs, axes.y_domain)) < 1e-3:
        numbers = {"format": "~e"}  # what has many zeros runs into the title
    y_axis = alt.Axis(tickCount=5 if height > _SMALL else 3, **numbers)
    y_scale = scale(axes.y_domain, **({"type": "log"} if axes.log else {} if axes.y_domain else {"zero": False}))
    y = alt.Y("y:Q", title=axes.y, scale=y_scale, axis=y_axis)
    layers: list[Any] = []
    for name, value, channel in (("y", axes.zero, y), ("x", axes.begin, x)):
        if value is not None:
            layers.append(layer("rule", [{"x": value, "y": value}], _RULE, **{name: channel}))
    for band in panel.bands:
        if rows := [{"x": a, "y": low, "high": high} for a, low, high in _within(band.points, axes)]:
            style = {"color": band.colour, "opacity": band.opacity, "strokeWidth": 0}
            layers.append(layer("area", rows, style, x=x, y=y, y2="high:Q"))
    for line in panel.lines:
        if rows := [{"x": a, "y": b, "n": n} for n, (a, b) in enumerate(_cut(line.points, axes))]:
            style = {"color": line.colour, "strokeWidth": line.width, "opacity": line.opacity, "strokeJoin": "round"}
            dash = {} if tuple(line.dash) == (1, 0) else {"strokeDash": list(line.dash)}
            layers.append(layer("line", rows, style | dash, x=x, y=y, order="n:Q"))
            if line.dots:
                inside = [row for row in rows if (row["x"], row["y"]) in line.points]
                dot = {"color": line.colour, "size": 12 * line.width, "opacity": line.opacity}
                layers.append(layer("circle", inside, dot, x=x, y=y))
    return alt.layer(*layers).properties(width=width, height=height)


def _ticks(domain: tuple[float, float]) -> list[float]:
    """Powers of ten; with 2 and 5 between them where there are few.

    >>> _ticks((0.05, 3.0)), _ticks((1e-5, 1.0))
    ([0.05, 0.1, 0.2, 0.5, 1.0, 2.0], [1e-05, 0.0001, 0.001, 0.01, 0.1, 1.0])
    """
    low, high = domain
    decades = math.log10(high / low)
    steps = (1,) if decades > 3 else (1, 2, 5) if decades < 2 else (1, 3)
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    # by division, as 0.1 has no shorter name than 1 / 10
    ticks = [step * 10.0**power if power >= 0 else step / 10.0**-power for power in powers for step in steps]
    return [tick for tick in ticks if low <= tick <= high]


def _within(points: Sequence[tuple[float, float, float]], axes: Axes) -> list[tuple[float, float, float]]:
    """Return a band's points, moved to the edge of the figure where they lie beyond it."""
    bottom, top = axes.y_domain or (-math.inf, math.inf)
    kept = [(x, low, high) for x, low, high in points if not math.isnan(low + high) and (high > 0 or not axes.log)]
    moved = [(x, min(max(low, bottom), top), min(max(high, bottom), top)) for x, low, high in kept]
    return [point for point in moved if all(map(math.isfinite, point)) and (point[1] > 0 or not axes.log)]


def _cut(points: Points, axes: Axes) -> list[tuple[float, float | None]]:
    """Return a line's points up to the edges of the figure; None where it is broken."""
    bottom, top = axes.y_domain or (-math.inf, math.inf)
    points_inside: list[tuple[float, float | None]] = []
    before: tuple[float, float] | None = None
    for x, y in points:
        usable = math.isfinite(y) and (y > 0 or not axes.log)
        inside = usable and bottom <= y <= top
        if before is not None and usable and inside != (bottom <= before[1] <= top):
            edge = top if max(y, before[1]) > top else bottom
            share = (edge - before[1]) / (y - before[1])
            points_inside.append((before[0] + share * (x - before[0]), edge))
        if inside:
            points_inside.append((x, y))
        elif points_inside and points_inside[-1][1] is not None:
            points_inside.append((x, None))
        before = (x, y) if usable else None
    return points_inside if any(y is not None for _, y in points_inside) else []


@dataclass(frozen=True)
class Difference:
    """A row of the figure of differences."""

    title: str
    arm: int | None  # None: without training
    value: float
    low: float | None
    high: float | None
    seeds: tuple[float, ...]


def _altair() -> Any:
    import altair  # takes a second

    return altair


def differences(rows: Sequence[Difference], title: str, *, log: bool = False) -> str:
    """Draw mean differences with intervals, a row each: dot and bar, small rings for the seeds, a line at zero.

    Args:
        rows: their differences.
        title: of the axis.
        log: True if they are logarithms of ratios, which the axis shows.
    """
    alt = _altair()
    ends = [0.0, *(end for row in rows for end in (row.value, row.low, row.high, *row.seeds) if end is not None)]
    low, high = _widened(min(ends), max(ends), 0.05)
    scale = alt.Scale(domain=[low, high], nice=False)
    digits = max(2, 1 + math.ceil(-math.log10((high - low) / 10)))  # of ratios, that no two ticks are equal
    # in two lines where it is longer than the figure
    ratio = f"'\N{MULTIPLICATION SIGN}' + format(exp(datum.value), '.{digits}~r')"
    axis = alt.Axis(tickCount=5, labelOverlap=True, **({"labelExpr": ratio} if log else {}))
    x = alt.X("x:Q", title=title if len(title) < 52 else title.rsplit(", ", 1), scale=scale, axis=axis)
    y = alt.Y("row:O", axis=None, sort=None)
    zero = alt.Chart(alt.Data(values=[{"x": 0}])).mark_rule(color=SOFT, strokeDash=[3, 3])
    layers = [zero.encode(x=alt.X("x:Q", scale=scale))]
    for number, row in enumerate(rows):
        bar = {"row": number, "x": row.value, "low": row.low, "high": row.high, "title": row.title}
        base, colour = alt.Chart(alt.Data(values=[bar])).encode(y=y), SOFT if row.arm is None else arm(row.arm)
        if row.low is not None:
            layers.append(base.mark_rule(color=colour, strokeWidth=3).encode(x=alt.X("low:Q"), x2="high:Q"))
        seeds = alt.Chart(alt.Data(values=[{"row": number, "x": value} for value in row.seeds]))
        layers.append(seeds.mark_point(color=SOFT, size=28, strokeWidth=1.2).encode(x=x, y=y))
        layers.append(base.mark_point(color=colour, fill=colour, size=70, opacity=1).encode(x=x))
        label = base.mark_text(align="left", dy=-17, fontSize=11, color=INK)
        layers.append(label.encode(x=alt.value(2), text="title:N"))
    return _to_svg(alt.layer(*layers).properties(width=_WIDTH, height=52 * len(rows)))


def _to_svg(chart: Any) -> str:
    """Return a chart as SVG in the colours of the style sheet."""
    import vl_convert

    axis = {
        "labelColor": SOFT, "titleColor": INK, "domainColor": SOFT, "tickColor": SOFT, "gridColor": GRID,
        "labelFontSize": 11, "titleFontSize": 11, "titleFontWeight": "normal", "titlePadding": 6,
    }  # fmt: skip
    styled = chart.configure(background="transparent", padding=4).configure_axis(**axis).configure_view(stroke=None)
    # the charts are ours and tested: checking each against the schema would take most of the time
    return _tidy(vl_convert.vegalite_to_svg(styled.to_json(validate=False)))


def _tidy(svg: str) -> str:
    """Without links, labels of single marks and empty backgrounds; with the style sheet's colours."""
    svg = re.sub(r' xmlns(:\w+)?="[^"]*"', "", svg)
    svg = re.sub(r' (aria-\w+|role|pointer-events|font-family)="[^"]*"', "", svg)
    svg = re.sub(r'<path class="(background|foreground)"[^>]*/>', "", svg)
    svg = re.sub(r'(<svg[^>]*?) width="\d+" height="\d+"', r'\1 aria-hidden="true"', svg)

    def variable(match: re.Match[str]) -> str:
        name, colour = match[1], match[2]
        return f' style="{name}:{_VARIABLES[colour]}"' if colour in _VARIABLES else match[0]

    svg = re.sub(r' (fill|stroke)="(#\w+)"', variable, svg)
    # an element with both colours has two style attributes now, of which browsers read the first
    return re.sub(r' style="([^"]*)"([^<>]*?) style="([^"]*)"', r' style="\1;\3"\2', svg)
