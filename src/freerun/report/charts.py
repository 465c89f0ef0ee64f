"""The chart layer: lines with bands, small multiples, and differences with intervals, as SVG in the page's colours."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from freerun.errors import needing

Points = Sequence[tuple[float, float]]
_WIDTH, _HEIGHT, _SMALL = 340, 200, 110
DASHES = ((1, 0), (7, 3), (2, 2), (9, 3, 2, 3), (4, 4), (12, 4))
"""Stroke pattern of each arm: lines stay apart without colour."""

# colours that stand for the style sheet's: ink, soft ink, grid, and arm 0, 1, ...
INK, SOFT, GRID = "#b00001", "#b00002", "#b00003"
ARMS = tuple(f"#a0000{i}" for i in range(6))
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


def ranges(windows: Sequence[Mapping[str, Any]]) -> list[tuple[float, float]]:
    """Return a range of y for each channel, the same for all windows: what was and what came, and a third more.

    >>> ranges([{"past": [[0.0]], "gold": [[1.0], [2.0]]}])
    [(-0.7, 2.7)]
    """
    found: list[tuple[float, float]] = []
    for channel in range(len(windows[0]["gold"][0])):
        values = [float(row[channel]) for each in windows for part in ("past", "gold") for row in each[part]]
        room = 0.35 * ((max(values) - min(values)) or 1.0)
        found.append((min(values) - room, max(values) + room))
    return found


def chart(lines: Sequence[Line], axes: Axes, bands: Sequence[Band] = ()) -> str:
    """Lines over bands as SVG."""
    return to_svg(_layered(Panel(lines, bands, axes), _WIDTH, _HEIGHT))


def panels(shown: Sequence[Panel], *, across: bool = False) -> str:
    """Several charts as one SVG, below one another (with one x axis) or side by side."""
    alt, _ = altair()
    if across:
        width = (_WIDTH - 40) // len(shown)
        return to_svg(alt.hconcat(*(_layered(panel, width, width) for panel in shown), spacing=14))
    if len(shown) == 1:
        return to_svg(_layered(shown[0], _WIDTH, 150))
    parts = [
        _layered(panel, _WIDTH, _SMALL if len(shown) < 4 else 80, titled=number + 1 == len(shown))
        for number, panel in enumerate(shown)
    ]
    return to_svg(alt.vconcat(*parts, spacing=6))


def _layered(panel: Panel, width: int, height: int, *, titled: bool = True) -> Any:
    alt, _ = altair()
    axes = panel.axes
    ticks = alt.Axis(tickCount=max(3, width // 70), labels=titled)
    x = alt.X("x:Q", title=axes.x if titled else None, scale=_scale(alt, axes.x_domain), axis=ticks)
    numbers = {"format": "~g", "values": _ticks(axes.y_domain)} if axes.log and axes.y_domain else {}
    y_axis = alt.Axis(tickCount=5 if height > _SMALL else 3, **numbers)
    y = alt.Y("y:Q", title=axes.y, scale=_scale(alt, axes.y_domain, log=axes.log), axis=y_axis)
    layers = [_rule(alt, axes.zero, x, y, upwards=False), _rule(alt, axes.begin, x, y, upwards=True)]
    for band in panel.bands:
        rows = [{"x": a, "y": low, "high": high} for a, low, high in _within(band.points, axes)]
        mark = alt.Chart(alt.Data(values=rows)).mark_area(color=band.colour, opacity=band.opacity, strokeWidth=0)
        layers.append(mark.encode(x=x, y=y, y2="high:Q") if rows else None)
    for line in panel.lines:
        rows = [{"x": a, "y": b, "n": n} for n, (a, b) in enumerate(_cut(line.points, axes))]
        style = {"color": line.colour, "strokeWidth": line.width, "opacity": line.opacity, "strokeJoin": "round"}
        dash = {} if tuple(line.dash) == (1, 0) else {"strokeDash": list(line.dash)}
        mark = alt.Chart(alt.Data(values=rows)).mark_line(**style, **dash)
        layers.append(mark.encode(x=x, y=y, order="n:Q") if rows else None)
    drawn = [layer for layer in layers if layer is not None]
    return alt.layer(*drawn).properties(width=width, height=height)


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
    found = [(x, min(max(low, bottom), top), min(max(high, bottom), top)) for x, low, high in kept]
    return [point for point in found if all(map(math.isfinite, point)) and (point[1] > 0 or not axes.log)]


def _cut(points: Points, axes: Axes) -> list[tuple[float, float | None]]:
    """Return a line's points up to the edges of the figure; None where it is broken."""
    bottom, top = axes.y_domain or (-math.inf, math.inf)
    found: list[tuple[float, float | None]] = []
    before: tuple[float, float] | None = None
    for x, y in points:
        usable = math.isfinite(y) and (y > 0 or not axes.log)
        inside = usable and bottom <= y <= top
        if before is not None and usable and inside != (bottom <= before[1] <= top):
            edge = top if max(y, before[1]) > top else bottom
            share = (edge - before[1]) / (y - before[1])
            found.append((before[0] + share * (x - before[0]), edge))
        if inside:
            found.append((x, y))
        elif found and found[-1][1] is not None:
            found.append((x, None))
        before = (x, y) if usable else None
    return found if any(y is not None for _, y in found) else []


def _scale(alt: Any, domain: tuple[float, float] | None, *, log: bool = False) -> Any:
    given: Mapping[str, Any] = {"domain": list(domain), "nice": False} if domain else {"zero": False, "nice": False}
    if log:
        return alt.Scale(type="log", **{name: value for name, value in given.items() if name != "zero"})
    return alt.Scale(**given)


def _rule(alt: Any, place: float | None, x: Any, y: Any, *, upwards: bool) -> Any:
    if place is None:
        return None
    mark = alt.Chart(alt.Data(values=[{"x": place, "y": place}])).mark_rule(color=SOFT, strokeDash=[2, 3])
    return mark.encode(x=x) if upwards else mark.encode(y=y)


@dataclass(frozen=True)
class Difference:
    """A row of the figure of differences."""

    title: str
    arm: int
    value: float
    low: float | None
    high: float | None
    seeds: tuple[float, ...]


def altair() -> tuple[Any, Any]:
    """Altair and vl-convert."""
    with needing("report", "the report"):
        import altair as drawing
        import vl_convert
    return drawing, vl_convert


def differences(rows: Sequence[Difference], title: str) -> str:
    """Draw mean differences with intervals, a row each: dot and bar, small rings for the seeds, a line at zero."""
    alt, _ = altair()
    ends = [0.0, *(end for row in rows for end in (row.value, row.low, row.high, *row.seeds) if end is not None)]
    room = 0.05 * ((max(ends) - min(ends)) or 1.0)
    scale = alt.Scale(domain=[min(ends) - room, max(ends) + room], nice=False)
    # in two lines where it is longer than the figure
    x = alt.X("x:Q", title=title if len(title) < 52 else title.rsplit(", ", 1), scale=scale, axis=alt.Axis(tickCount=6))
    y = alt.Y("row:O", axis=None, sort=None)
    zero = alt.Chart(alt.Data(values=[{"x": 0}])).mark_rule(color=SOFT, strokeDash=[3, 3])
    layers = [zero.encode(x=alt.X("x:Q", scale=scale))]
    for number, row in enumerate(rows):
        bar = {"row": number, "x": row.value, "low": row.low, "high": row.high, "title": row.title}
        base, colour = alt.Chart(alt.Data(values=[bar])).encode(y=y), arm(row.arm)
        if row.low is not None:
            layers.append(base.mark_rule(color=colour, strokeWidth=3).encode(x=alt.X("low:Q"), x2="high:Q"))
        seeds = alt.Chart(alt.Data(values=[{"row": number, "x": value} for value in row.seeds]))
        layers.append(seeds.mark_point(color=SOFT, size=28, strokeWidth=1.2).encode(x=x, y=y))
        layers.append(base.mark_point(color=colour, fill=colour, size=70, opacity=1).encode(x=x))
        label = base.mark_text(align="left", dy=-17, fontSize=11, color=INK)
        layers.append(label.encode(x=alt.value(2), text="title:N"))
    return to_svg(alt.layer(*layers).properties(width=_WIDTH, height=52 * len(rows)))


def to_svg(chart: Any) -> str:
    """Return a chart as SVG in the colours of the style sheet."""
    _, vl_convert = altair()
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
        known: Mapping[str, str] = _VARIABLES
        name, colour = match[1], match[2]
        return f' style="{name}:{known[colour]}"' if colour in known else match[0]

    return _one_style(re.sub(r' (fill|stroke)="(#\w+)"', variable, svg))


def _one_style(svg: str) -> str:
    # an element with both colours has two style attributes now, of which browsers read the first
    return re.sub(r' style="([^"]*)"([^<>]*?) style="([^"]*)"', r' style="\1;\3"\2', svg)
