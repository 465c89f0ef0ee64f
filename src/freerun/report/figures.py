"""Figures as inline SVG: drawn by Altair, turned into SVG by vl-convert, coloured by the page's style sheet."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from freerun.errors import needing
from freerun.report.readings import Curve

__all__ = ["ARMS", "DASHES", "GRID", "INK", "SOFT", "Difference", "altair", "differences", "lines", "svg"]

DASHES = ((1, 0), (7, 3), (2, 2), (9, 3, 2, 3), (4, 4), (12, 4))
"""Stroke pattern of each arm: lines stay apart without colour."""

_WIDTH, _HEIGHT = 340, 190
# colours that stand for the style sheet's: arm 0, 1, ... and ink, soft ink, grid
ARMS = tuple(f"#a0000{i}" for i in range(6))
INK, SOFT, GRID = "#b00001", "#b00002", "#b00003"
_VARIABLES = {
    **{colour: f"var(--arm-{i})" for i, colour in enumerate(ARMS)},
    INK: "var(--ink)",
    SOFT: "var(--soft)",
    GRID: "var(--grid)",
}


@dataclass(frozen=True)
class Difference:
    """A row of the figure of differences.

    Args:
        title: what minus what.
        arm: number of the arm whose colour it has.
        value: mean difference.
        low: lower end of its interval, or None.
        high: upper end, or None.
        seeds: the difference of each seed.
    """

    title: str
    arm: int
    value: float
    low: float | None
    high: float | None
    seeds: tuple[float, ...]


def altair() -> tuple[Any, Any]:
    """Altair and vl-convert.

    Raises:
        UserError: one of them is not installed.
    """
    with needing("report", "the report"):
        import altair as drawing
        import vl_convert
    return drawing, vl_convert


def lines(curves: Sequence[Curve], arms: Sequence[str], title: str, domain: Sequence[float] | None = None) -> str:
    """Curves over updates as SVG: an arm's mean thick, its runs thin, what was asked for dotted.

    Args:
        curves: at least one.
        arms: all arms, in the order of their colours.
        title: of the vertical axis.
        domain: its range; None: from the data.
    """
    alt, _ = altair()
    x = alt.X("x:Q", title="updates", scale=alt.Scale(zero=True, nice=False), axis=alt.Axis(tickCount=5, format=",d"))
    scale = alt.Scale(domain=list(domain), nice=False) if domain else alt.Scale(zero=True)
    y = alt.Y("y:Q", title=title, scale=scale, axis=alt.Axis(tickCount=5))
    groups: dict[tuple[bool, bool, str], list[Curve]] = {}
    for curve in curves:
        groups.setdefault((not curve.planned, curve.number == -1, curve.arm), []).append(curve)
    layers: list[Any] = []
    for key in sorted(groups, key=lambda key: (key[:2], -arms.index(key[2]))):
        values = [{"x": step, "y": value, "run": curve.number} for curve in groups[key] for step, value in curve.points]
        style = _style(groups[key][0], arms.index(key[2]))
        layers.append(alt.Chart(alt.Data(values=values)).mark_line(**style).encode(x=x, y=y, detail="run:N"))
    return svg(alt.layer(*layers).properties(width=_WIDTH, height=_HEIGHT))


def _style(curve: Curve, number: int) -> dict[str, Any]:
    colour = {"color": ARMS[number % len(ARMS)]}
    if curve.planned:
        return {**colour, "strokeWidth": 5, "opacity": 0.3, "strokeCap": "round"}
    if curve.number >= 0:
        return {**colour, "strokeWidth": 1, "opacity": 0.45}
    return {**colour, "strokeWidth": 2.25, "strokeDash": list(DASHES[number % len(DASHES)])}


def differences(rows: Sequence[Difference], title: str) -> str:
    """Mean differences with intervals as SVG, a row each: dot and bar, small rings for the seeds, a line at zero.

    Args:
        rows: at least one.
        title: of the horizontal axis.
    """
    alt, _ = altair()
    ends = [0.0, *(end for row in rows for end in (row.value, row.low, row.high, *row.seeds) if end is not None)]
    room = 0.05 * ((max(ends) - min(ends)) or 1.0)
    scale = alt.Scale(domain=[min(ends) - room, max(ends) + room], nice=False)
    # in two lines where it is longer than the figure
    lines_ = title if len(title) < 52 else title.rsplit(", ", 1)
    x = alt.X("x:Q", title=lines_, scale=scale, axis=alt.Axis(tickCount=6))
    y = alt.Y("row:O", axis=None, sort=None)
    layers = [_rule_at_zero(alt, scale)]
    for number, row in enumerate(rows):
        colour = ARMS[row.arm % len(ARMS)]
        bar = {"row": number, "x": row.value, "low": row.low, "high": row.high, "title": row.title}
        base = alt.Chart(alt.Data(values=[bar])).encode(y=y)
        if row.low is not None:
            layers.append(base.mark_rule(color=colour, strokeWidth=3).encode(x=alt.X("low:Q"), x2="high:Q"))
        seeds = alt.Chart(alt.Data(values=[{"row": number, "x": value} for value in row.seeds]))
        layers.append(seeds.mark_point(color=SOFT, size=28, strokeWidth=1.2).encode(x=x, y=y))
        layers.append(base.mark_point(color=colour, fill=colour, size=70, opacity=1).encode(x=x))
        label = base.mark_text(align="left", dy=-17, fontSize=11, color=INK)
        layers.append(label.encode(x=alt.value(2), text="title:N"))
    return svg(alt.layer(*layers).properties(width=_WIDTH, height=52 * len(rows)))


def _rule_at_zero(alt: Any, scale: Any) -> Any:
    zero = alt.Chart(alt.Data(values=[{"x": 0}]))
    return zero.mark_rule(color=SOFT, strokeDash=[3, 3]).encode(x=alt.X("x:Q", scale=scale))


def svg(chart: Any) -> str:
    """A chart as SVG in the colours of the style sheet."""
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
