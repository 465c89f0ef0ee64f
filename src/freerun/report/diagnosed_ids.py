"""The page of a diagnosis of ids: wrong choices by position in both ways, and errors after errors."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from freerun.report.charts import DASHES, SOFT, Axes, Line, arm, chart
from freerun.report.page import Raw, figure, grid, line_legend, paragraph, swatch, table

Found = Mapping[str, Any]
_ROWS = 12
_SIDES = (("teacher_forced", "teacher-forced"), ("free_running", "free-running"))
_DASH = "\N{EN DASH}"


def summary(found: Found) -> str:
    """What came out, in two sentences."""
    told, own = (found[side]["wrong"] for side, _ in _SIDES)
    text = (
        f"Teacher-forced, {_percent(told)} of the model's choices are wrong; free-running, {_percent(own)}, both "
        f"counted position by position ({found['rows']:,} rows), where one lost symbol shifts all after it. freerun "
        "evaluate and compare score free runs otherwise: there the gap can be smaller or have the other sign."
    )
    ratios = [_ratio(found[side]["after"]) for side, _ in _SIDES]
    if None not in ratios:
        text += (
            f" After a wrong choice the next is wrong {ratios[0]:.2g} times as often as after a right one "
            f"teacher-forced, and {ratios[1]:.2g} times as often free-running."
        )
    return text


def _ratio(after: Found) -> float | None:
    if after["after_error"] is None or not after["after_correct"]:
        return None
    return after["after_error"] / after["after_correct"]


def _percent(value: float | None) -> str:
    return _DASH if value is None else f"{100 * value:.3g} %"


def sections(content: Found) -> list[tuple[str, str]]:
    """Titles and contents, in order."""
    found = content["diagnosis"]
    shown = _enough(found)
    return [
        ("Wrong choices", _wrong(found) + _reading(content)),
        (
            "By position",
            line_legend([("arm", 0, "teacher-forced"), ("arm", 1, "free-running")]) + grid(_figures(found, shown)),
        ),
    ]


def _enough(found: Found) -> int:
    """Positions that at least 1 % of the rows, and ten of them, reach; one at least."""
    least = max(10, 0.01 * found["rows"])
    return max(1, sum(left >= least for left in found["left"]))


def _wrong(found: Found) -> Raw:
    rows: list[list[object]] = []
    for number, (side, name) in enumerate(_SIDES):
        after = found[side]["after"]
        ratio = _ratio(after)
        rows.append(
            [
                swatch(number, name),
                Raw(f"<b>{_percent(found[side]['wrong'])}</b>"),
                Raw(f"<span>{_percent(after['after_correct'])} <small>of {after['right']:,}</small></span>"),
                Raw(f"<span>{_percent(after['after_error'])} <small>of {after['wrong']:,}</small></span>"),
                _DASH if ratio is None else f"{ratio:.2f}",
            ]
        )
    heads = ["history", "wrong", "after a right choice", "after a wrong choice", "times"]
    return table(heads, rows, "numbers cards", f"Choices against gold, position by position, {found['rows']:,} rows")


def _reading(content: Found) -> Raw:
    counted = content["data"]["item_noun"]
    lines = [
        "Teacher-forced: gold is the history of each choice. Free-running: the model's own choices are. Up to its "
        "first error a greedy model makes the same choices both ways, so all that differs comes after an error, and "
        f"the share of {counted} that are entirely right is the same.",
        "A free run with one symbol too many or too few is shifted, and position by position nearly all after that is "
        f"wrong: read this as how far a free run strays from gold, not as the error rate of its {counted}. Edit "
        "distance (PER, CER) counts the lost symbol once; where freerun evaluate and compare show a smaller gap than "
        "this page, or one of the other sign, such shifts are the difference.",
    ]
    return Raw("".join(paragraph(line, "note") for line in lines))


def _figures(found: Found, shown: int) -> list[Raw]:
    columns = {name: found[side]["wrong_by_position"][:shown] for side, name in _SIDES}
    lines = [Line(_points(values), arm(number), DASHES[number], 2.25) for number, values in enumerate(columns.values())]
    text = "Share of the rows that have an entry there."
    less = found["positions"] - shown
    if less:
        text += f" The last {less:,} positions, of few rows, are left out."
    seen = "; ".join(
        f"{name}: {_percent(v[0])} at position 1, {_percent(v[-1])} at {shown}" for name, v in columns.items()
    )
    top = max([value or 0.0 for values in columns.values() for value in values] + [0.01])
    axes = Axes("position", "wrong, %", y_domain=(0.0, 105 * top))
    drawn = [figure("Wrong choices", chart(lines, axes), (text, seen), _table(columns, found, shown))]
    gap = found["gap_by_position"][:shown]
    room = 5 * max([abs(value) for value in gap if value] + [0.01])
    low, high = (100 * end([0.0, *(value for value in gap if value)]) for end in (min, max))
    axes = Axes("position", "difference, points", zero=0.0, y_domain=(low - room, high + room))
    line = Line(_points(gap), arm(1), width=2.25)
    said = f"{_percent(gap[0])} at position 1, {_percent(gap[-1])} at {shown}."
    texts = (
        "Free-running less teacher-forced. Above zero free running is worse; at position 1 nothing has been said yet.",
        said,
    )
    drawn.append(figure("Signed gap", chart([line], axes), texts, _table({"gap": gap}, found, shown)))
    firsts = found["first_error"][:shown]
    right = found["rows"] - sum(found["first_error"])
    shares = [count / found["rows"] for count in firsts]
    axes = Axes("position", "rows, %", y_domain=(0.0, 105 * max(*shares, 0.001)))
    said = f"{right:,} of {found['rows']:,} rows have no error."
    text = "Where the first error is, the same in both ways."
    table_ = _table({"first error here": shares}, found, shown)
    drawn.append(figure("First errors", chart([Line(_points(shares), SOFT, width=2.25)], axes), (text, said), table_))
    return drawn


def _points(values: Sequence[float | None]) -> list[tuple[float, float]]:
    return [(n + 1.0, math.nan if value is None else 100 * value) for n, value in enumerate(values)]


def _table(columns: Mapping[str, Sequence[float | None]], found: Found, shown: int) -> Raw:
    kept = list(range(0, shown, max(1, -(-shown // _ROWS))))
    if kept[-1] != shown - 1:
        kept.append(shown - 1)
    rows = [[str(n + 1), *(_percent(values[n]) for values in columns.values()), f"{found['left'][n]:,}"] for n in kept]
    return table(["position", *columns, "rows"], rows, "numbers")
