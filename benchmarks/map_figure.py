"""The map as a figure: gains of scheduled sampling against what might predict them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from map_measure import CONTROLS, Row, pairs, rank_correlation
from passes_figure import AXIS, FONT, GREY, named

_FAMILIES = {"automaton": "#3b6fd6", "ring": "#d9694a", "showcase": "#2f8f8f"}
_NAMES = {
    "teacher_forcing": "teacher forcing", "matched": "matched noise", "confusion": "confusion noise",
    "no_history": "no history",
}  # fmt: skip
_TITLE = "The map: gain of scheduled sampling against two predictors"
_TICKS = (-30, -10, -5, -2, 0, 2, 5, 10, 20, 40)
_WIDTH, _HEIGHT = 300, 190


@dataclass(frozen=True)
class Predictor:
    """A column of the figure."""

    name: str
    title: str
    ticks: tuple[int, ...] = ()


PREDICTORS = (
    Predictor("ex_acc_err", "ExAccErr of teacher forcing, %", (0, 50, 100, 200, 500, 1000)),
    Predictor("cost", "(1 − ratio) · I, nats"),
)


def figure(rows: Sequence[Row]) -> str:
    """A row for each control, a column for each predictor, as SVG."""
    import altair as alt
    import vl_convert

    lines = [
        alt.hconcat(*(_panel(alt, rows, each, arm) for each in PREDICTORS), spacing=46, bounds="flush")
        for arm in CONTROLS
    ]
    chart = alt.vconcat(_legend(alt), *lines, spacing=16).configure(background="transparent", padding=8, font=FONT)
    chart = chart.configure_axis(**AXIS).configure_view(stroke=None)
    chart = chart.configure_title(color=GREY, fontSize=13, fontWeight=600, anchor="start", frame="group", offset=8)
    found = "; ".join(f"over {_NAMES[arm]}: {_correlation(rows, each, arm)}" for arm in CONTROLS for each in PREDICTORS)
    return named(vl_convert.vegalite_to_svg(chart.to_json(validate=False)), _TITLE, f"Rank correlations, {found}")


def _correlation(rows: Sequence[Row], predictor: Predictor, arm: str) -> str:
    found = rank_correlation(pairs(rows, predictor.name, arm))
    if found.value is None or found.low is None or found.high is None:
        return "too few worlds for a rank correlation"
    ends = (f"{end:+.2f}".replace("-", "\N{MINUS SIGN}") for end in (found.value, found.low, found.high))
    return "rank correlation {} [{}, {}]".format(*ends)


def _family(world: str) -> str:
    return (
        world.split(maxsplit=1)[0]
        if world.split(maxsplit=1)[0] in _FAMILIES and "showcase" not in world
        else "showcase"
    )


def _marks(rows: Sequence[Row], predictor: Predictor, arm: str) -> list[dict[str, Any]]:
    means = [row for row in rows if row["seed"] == "all"]
    points = {(row["world"], row["capacity"], row["ratio"]): row for row in means if row["arm"] == "teacher_forcing"}
    found: list[dict[str, Any]] = []
    for row in means:
        x = points[row["world"], row["capacity"], row["ratio"]][predictor.name]
        if row["arm"] == arm and x is not None and row["gain"] is not None:
            family = _family(row["world"])
            label = row["world"] if family == "showcase" else ""
            wide = "showcase" if family == "showcase" else f"{row['capacity']:g}"
            found.append(
                {"x": x, "y": row["gain"], "low": row["gain_low"], "high": row["gain_high"], "family": family,
                 "capacity": wide, "ratio": row["ratio"], "label": label}
            )  # fmt: skip
    return found


def _panel(alt: Any, rows: Sequence[Row], predictor: Predictor, arm: str) -> Any:
    first, last = predictor is PREDICTORS[0], arm == CONTROLS[-1]
    values = _marks(rows, predictor, arm)
    ends = [each[end] for one in PREDICTORS for each in _marks(rows, one, arm) for end in ("y", "low", "high")]
    known = [0.0, *(end for end in ends if end is not None)]
    low, high = min(known), max(known)
    # labels that are not seen keep the panels below one another
    y_axis = alt.Axis(
        values=_TICKS,
        labelOverlap=False,
        labelOpacity=float(first),
        ticks=first,
        domain=False,
        minExtent=38,
        maxExtent=38,
    )
    title = f"points over {_NAMES[arm]}" if first else None
    y_scale = alt.Scale(type="symlog", constant=5, domain=[1.15 * low - 1, 1.15 * high + 1], nice=False)
    y = alt.Y("y:Q", title=title, axis=y_axis, scale=y_scale)
    ticks = {"values": predictor.ticks} if predictor.ticks else {"tickCount": 5}
    x_axis = alt.Axis(grid=False, labels=last, labelOverlap=True, **ticks)
    kind = {"type": "symlog", "constant": 50} if predictor.ticks else {}
    x_scale = alt.Scale(nice=False, padding=14, **kind)
    x = alt.X("x:Q", title=predictor.title if last else None, axis=x_axis, scale=x_scale)
    colours = alt.Scale(domain=list(_FAMILIES), range=list(_FAMILIES.values()))
    shapes = alt.Scale(domain=["4", "32", "showcase"], range=["circle", "square", "diamond"])
    base = alt.Chart(alt.Data(values=values)).encode(x=x, y=y, color=alt.Color("family:N", legend=None, scale=colours))
    dots = base.encode(shape=alt.Shape("capacity:N", legend=None, scale=shapes))
    bars = base.transform_filter("datum.low != null").mark_rule(strokeWidth=1.2, opacity=0.45)
    layers = [
        alt.Chart(alt.Data(values=[{"y": 0}])).mark_rule(color=GREY, strokeDash=[3, 3]).encode(y=y),
        bars.encode(y=alt.Y("low:Q"), y2="high:Q"),
        dots.transform_filter("datum.ratio > 0").mark_point(filled=False, size=46, strokeWidth=1.6, opacity=1),
        dots.transform_filter("datum.ratio == 0").mark_point(filled=True, size=52, opacity=0.95),
    ]
    most = max((each["x"] for each in values), default=0.0)
    for align, away, test in (("left", (6, -8), "<="), ("right", (-6, 14), ">")):
        text = base.transform_filter(f"datum.x {test} {0.7 * most}").mark_text(
            align=align, dx=away[0], dy=away[1], fontSize=11
        )
        layers.append(text.encode(text="label:N"))
    return alt.layer(*layers).properties(width=_WIDTH, height=_HEIGHT, title=_correlation(rows, predictor, arm))


def _legend(alt: Any) -> Any:
    """A line of marks with their meaning."""
    entries = (
        (0, "automaton", "automaton", "circle", True), (86, "ring", "ring", "circle", True),
        (138, "published recipe", "showcase", "diamond", True), (262, "4 units", "", "circle", True),
        (330, "32 units", "", "square", True), (404, "P(gold) falls to 0", "", "circle", True),
        (530, "to more than 0", "", "circle", False),
    )  # fmt: skip
    values = [
        {"x": x, "label": text, "colour": _FAMILIES.get(family, GREY), "shape": shape, "filled": filled}
        for x, text, family, shape, filled in entries
    ]
    width = 2 * _WIDTH + 60
    base = alt.Chart(alt.Data(values=values)).encode(
        x=alt.X("x:Q", axis=None, scale=alt.Scale(domain=[0, width])), color=alt.Color("colour:N", scale=None)
    )
    marks = [
        base.transform_filter(f"datum.filled == {str(filled).lower()}")
        .mark_point(filled=filled, size=56, strokeWidth=1.6, opacity=1)
        .encode(shape=alt.Shape("shape:N", scale=None))
        for filled in (True, False)
    ]
    text = base.mark_text(align="left", dx=9, fontSize=12).encode(text="label:N", color=alt.value(GREY))
    return alt.layer(*marks, text).properties(width=width, height=18)
