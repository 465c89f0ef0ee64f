"""The figure of passes against ratio and length, as an SVG file for light and dark pages."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any

__all__ = ["AXIS", "FONT", "GREY", "figure", "named"]

# greys and hues of docs/history.svg; short to long goes from gold to blue
_HUES = ("#e3a82b", "#d9694a", "#9a5fb8", "#3b6fd6", "#2f8f8f", "#7a7a7a")
GREY = "#7a7a7a"
FONT = '-apple-system, "Segoe UI", "Helvetica Neue", Arial, sans-serif'
AXIS: dict[str, Any] = {
    "labelColor": GREY, "titleColor": GREY, "domainColor": GREY, "tickColor": GREY, "gridColor": GREY,
    "gridOpacity": 0.25, "labelFontSize": 13, "titleFontSize": 13, "titleFontWeight": "normal", "titlePadding": 8,
}  # fmt: skip
_DESCRIPTION = (
    "Parallel passes of an exact roll-in, the certifying one included. A panel for each draw. From left to right the "
    "teacher forcing ratio falls from 0.9 to 0; a line for each length. {}"
)


def figure(found: Sequence[dict[str, Any]]) -> str:
    """A panel for each draw, the ratio falling from left to right, a line for each length.

    Args:
        found: from ``passes.counted``.
    """
    import altair as alt
    import vl_convert

    panels = [_panel(alt, found, draw, n == 0) for n, draw in enumerate(dict.fromkeys(one["draw"] for one in found))]
    chart = alt.hconcat(*panels, spacing=32).configure(background="transparent", padding=6, font=FONT)
    chart = chart.configure_axis(**AXIS).configure_view(stroke=None)
    chart = chart.configure_title(color=GREY, fontSize=15, fontWeight=600, anchor="start", frame="group", offset=14)
    svg = vl_convert.vegalite_to_svg(chart.to_json(validate=False))
    return named(svg, "Passes against ratio and length", _described(found))


def _panel(alt: Any, found: Sequence[dict[str, Any]], draw: str, first: bool) -> Any:
    mine = [one for one in found if one["draw"] == draw]
    times = list(dict.fromkeys(one["time"] for one in found))
    ratios = [f"{ratio:g}" for ratio in dict.fromkeys(one["teacher_forcing_ratio"] for one in found)]
    most = max(one["jacobi_calls"] for one in found)
    values = [
        {
            "ratio": f"{one['teacher_forcing_ratio']:g}",
            "calls": one["jacobi_calls"],
            "time": str(one["time"]),
            "label": f"T {one['time']}",
        }
        for one in mine
    ]
    axis = alt.Axis(labelAngle=0, grid=False)
    x = alt.X("ratio:O", sort=ratios, title="teacher forcing ratio", axis=axis, scale=alt.Scale(padding=0.12))
    scale = alt.Scale(type="log", base=2, domain=[2, 2 ** (math.ceil(most) - 1).bit_length()], nice=False)
    ticks = [2**n for n in range(1, 12) if 2**n <= scale.domain[1]]
    # labels that are not seen keep the panels' titles on one line
    y_axis = alt.Axis(values=ticks, labelOpacity=float(first), ticks=first, domain=first)
    y = alt.Y("calls:Q", title="parallel passes" if first else None, scale=scale, axis=y_axis)
    hue = alt.Color("time:N", scale=alt.Scale(domain=[str(t) for t in times], range=_HUES[: len(times)]), legend=None)
    base = alt.Chart(alt.Data(values=values)).encode(x=x, y=y, color=hue)
    ends = [value for value in values if value["ratio"] == ratios[-1]]
    labels = alt.Chart(alt.Data(values=_apart(ends, scale.domain[1]))).encode(x=x, color=hue)
    layers = [
        base.mark_line(strokeWidth=2.5, strokeCap="round", strokeJoin="round"),
        base.mark_point(filled=True, size=40, opacity=1),
        labels.mark_text(align="left", dx=9, fontSize=13, fontWeight=600).encode(
            y=alt.Y("y:Q", scale=scale), text="label:N"
        ),
    ]
    return alt.layer(*layers).properties(width=210, height=240, title=draw)


def _apart(ends: list[dict[str, Any]], most: float) -> list[dict[str, Any]]:
    """Labels with positions at least a readable distance (a share of the logarithmic axis) apart."""
    least = (most / 2) ** 0.065
    placed: list[dict[str, Any]] = []
    for end in sorted(ends, key=lambda end: end["calls"]):
        low = placed[-1]["y"] * least if placed else 0.0
        placed.append({**end, "y": max(end["calls"], low)})
    return placed


def _described(found: Sequence[dict[str, Any]]) -> str:
    last = {
        draw: max((one for one in found if one["draw"] == draw), key=lambda one: one["jacobi_calls"])
        for draw in dict.fromkeys(one["draw"] for one in found)
    }
    most = "; ".join(
        f"{draw}: at most {one['jacobi_calls']:g}, at length {one['time']} and ratio {one['teacher_forcing_ratio']:g}"
        for draw, one in last.items()
    )
    return _DESCRIPTION.format(most)


def named(svg: str, title: str, description: str) -> str:
    """With a title and a description for screen readers, and without the empty background."""
    described = f'<title id="title">{title}</title><desc id="desc">{description}</desc>'
    svg = re.sub(r' (aria-\w+|role|pointer-events)="[^"]*"', "", svg)
    svg = re.sub(r'<path class="(background|foreground)"[^>]*/>', "", svg)
    return re.sub(r"(<svg[^>]*)>", rf'\1 role="img" aria-labelledby="title desc">{described}', svg, count=1)
