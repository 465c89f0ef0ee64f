"""The section "Forecasts" of a comparison of series: errors by lead time, and some windows as every arm says them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypedDict

from freerun.compare.verdict import cells, interval_name, shown_verdict, signed, task_report
from freerun.metrics.table import Metric, TaskReport
from freerun.report import charts
from freerun.report.charts import DASHES, INK, SOFT, Axes, Line, Panel, arm, chart, panels, ranges
from freerun.report.diagnosis_figures import numbers, words
from freerun.report.page import DASH, Raw, arms_legend, figure, grid, legend, table, thin_table
from freerun.report.run_data import Curve as RunCurve
from freerun.report.run_data import Runs, curves, settled, shares
from freerun.training.json_shapes import Count, read_json


def training(runs: Runs, reported: TaskReport) -> Raw:
    """Draw the scores of the task on dev over training; those of one unit on one scale."""
    arms = list(runs)
    measures = reported.curves
    found = {each.name: curves(runs, each.side, each.score) for each in measures}
    drawn: list[Raw | None] = []
    for each in measures:
        same_unit = [other.name for other in measures if other.axis == each.axis]
        domain = None
        if len(same_unit) > 1 or not each.zero:
            domain = _domain([curve for name in same_unit for curve in found[name]], each.zero)
        title = each.title[0].upper() + each.title[1:]
        drawn.append(_lines(title, found[each.name], arms, each.axis, domain))
    shown = [one for one in drawn if one is not None]
    return Raw(arms_legend(arms) + grid(shown)) if shown else Raw("")


def _domain(found: Sequence[RunCurve], zero: bool) -> tuple[float, float] | None:
    values = [value for curve in settled(found) for _, value in curve.points]
    if not values or (not zero and max(values) == min(values)):
        return None
    room = 0.05 * (max(values) - (0.0 if zero else min(values)))
    return 0.0 if zero else min(values) - room, max(values) + room


def entries(runs: Runs) -> Raw:
    """Own entries against the schedule, and wrong entries of each arm: whether the noise is matched."""
    arms = list(runs)
    replaced, wrong = shares(runs, "replaced"), shares(runs, "disagreeing")
    drawn: list[Raw] = []
    if any(curve.planned for curve in replaced):
        shown = [curve for curve in replaced if any(c.planned and c.arm == curve.arm for c in replaced)]
        drawn.append(
            figure(
                "Own entries",
                _curves_chart(shown, arms, "share of entries, %"),
                (
                    "Line: the share fed. Wide band: the share scheduled, 1 \N{MINUS SIGN} teacher_forcing_ratio.",
                    _last(shown),
                ),
                _numbers(shown),
            )
        )
    if wrong:
        title = "Wrong entries in the history"
        text = "Entries fed that differ from gold; matched noise lies on its reference."
        svg = _curves_chart(wrong, arms, "share of entries, %")
        drawn.append(figure(title, svg, (text, _last(wrong)), _numbers(wrong)))
    return Raw(arms_legend(arms) + grid(drawn)) if drawn else Raw("")


def differences(results: Mapping[str, Any]) -> Raw:
    """Paired differences in the score that the verdict is about, and in others that the task names."""
    arms = list(cells(results))
    reported = task_report(results["recipe"])
    drawn: list[Raw] = []
    for each in reported.differences:
        lines = [line for line in results["comparisons"] if line["metric"] == each.name]
        if not lines:
            continue
        rows = [_row(results, line, arms, each.name) for line in lines]
        content = "; ".join(f"{row.title}: {signed(row.value, each.decimals)}" for row in rows)
        side = "Right" if each.higher else "Left"
        text = f"Dot: mean; bar: {interval_name(results)}; rings: seeds. {side} of zero is better."
        text += f" Exposure bias cannot move it: {each.fixed}." if each.fixed else ""
        svg = charts.differences(rows, f"difference in {each.title}, {each.unit}")
        drawn.append(figure(f"Differences in {each.title}", svg, (text, content), _difference_table(rows, each)))
    return grid(drawn) if drawn else Raw("")


def _row(results: Mapping[str, Any], line: Mapping[str, Any], arms: Sequence[str], metric: str) -> charts.Difference:
    kind, _, name = metric.partition(".")
    by_run = {(run["label"], run["seed"]): run.get(kind, {}).get(name) for run in results["runs"]}
    seeds = dict.fromkeys(run["seed"] for run in results["runs"])
    pairs = [(by_run.get((line["arm"], seed)), by_run.get((line["baseline"], seed))) for seed in seeds]
    return charts.Difference(
        f"{line['arm']} \N{MINUS SIGN} {line['baseline']}: {shown_verdict(results, line)}",
        arms.index(line["arm"]),
        line["difference"],
        line["low"],
        line["high"],
        tuple(a - b for a, b in pairs if a is not None and b is not None),
    )


def _difference_table(rows: Sequence[charts.Difference], measure: Metric) -> Raw:
    heads = ["difference", "mean", "low", "high", "seeds"]
    cells_ = [
        [
            row.title,
            *(DASH if value is None else signed(value, measure.decimals) for value in (row.value, row.low, row.high)),
            ", ".join(signed(value, measure.decimals) for value in row.seeds),
        ]
        for row in rows
    ]
    return table(heads, cells_, "numbers")


def _lines(
    title: str, found: Sequence[RunCurve], arms: Sequence[str], axis: str, domain: tuple[float, float] | None
) -> Raw | None:
    if not found:
        return None
    shown = found if domain else settled(found)
    top = domain[1] if domain else max(value for curve in shown for _, value in curve.points)
    cut = any(value > top for curve in found for _, value in curve.points)
    text = "Thick: mean over seeds; thin: each run." + (" The beginning lies above the figure." if cut else "")
    return figure(title, _curves_chart(shown, arms, axis, domain), (text, _last(found)), _numbers(found))


def _means(found: Sequence[RunCurve]) -> list[RunCurve]:
    return [curve for curve in found if curve.number == -1 and curve.points]


def _name(curve: RunCurve) -> str:
    return f"{curve.arm}, scheduled" if curve.planned else curve.arm


def _last(found: Sequence[RunCurve]) -> str:
    ends = [f"{_name(curve)} {curve.points[-1][1]:.4g}" for curve in _means(found)]
    return f"At the end: {', '.join(ends)}." if ends else ""


def _numbers(found: Sequence[RunCurve]) -> Raw:
    means = _means(found)
    steps = sorted({step for curve in means for step, _ in curve.points})
    tables = [dict(curve.points) for curve in means]
    rows = [[f"{step:g}", *(f"{t[step]:.4g}" if step in t else DASH for t in tables)] for step in steps]
    return thin_table(["updates", *(_name(curve) for curve in means)], rows)


def _curves_chart(
    found: Sequence[RunCurve], arms: Sequence[str], title: str, domain: tuple[float, float] | None = None
) -> str:
    """Draw curves over updates: an arm's mean thick, its runs thin, what was scheduled as a wide band."""
    ordered = sorted(found, key=lambda curve: (not curve.planned, curve.number == -1, -arms.index(curve.arm)))
    values = [value for curve in found for _, value in curve.points]
    domain = domain or (min(0.0, *values), 1.05 * max(*values, 1e-9))
    end = max(step for curve in found for step, _ in curve.points)
    axes = Axes("updates", title, x_domain=(0.0, end), y_domain=domain)
    return chart([_curve_line(curve, arms.index(curve.arm)) for curve in ordered], axes)


def _curve_line(curve: RunCurve, number: int) -> Line:
    if curve.planned:
        return Line(curve.points, arm(number), width=5, opacity=0.3)
    if curve.number >= 0:
        return Line(curve.points, arm(number), width=1, opacity=0.45)
    return Line(curve.points, arm(number), DASHES[number % len(DASHES)], 2.25)


Curve = Sequence[float | None]
_SIDES = {"free_running": "Free-running error", "teacher_forced": "Teacher-forced error"}
_WINDOWS = 4


def forecasts(results: Mapping[str, Any], out: Path) -> Raw:
    """Errors by lead time of all arms, and windows; "" where the runs are no forecasts."""
    arms = list(dict.fromkeys(run["label"] for run in results["runs"]))
    curves = {
        (run["label"], run["seed"]): _read(out / run["folder"] / "test-curves.json", dict[str, list[float | None]])
        for run in results["runs"]
    }
    if not curves or not all(isinstance(found, Mapping) and _SIDES.keys() <= found.keys() for found in curves.values()):
        return Raw("")
    first = next(iter(curves.values()))
    naive = {name: curve for name, curve in first.items() if name not in _SIDES}
    entries = [("arm", number, label) for number, label in enumerate(arms)]
    entries += [("naive", number, words(name)) for number, name in enumerate(naive)]
    drawn = [_errors(title, side, arms, curves, naive) for side, title in _SIDES.items()]
    return Raw(legend(entries) + grid(drawn) + _windows(results, out, arms))


class _Shown(TypedDict):
    window: Count
    channels: list[str]
    past: list[list[float | None]]
    gold: list[list[float | None]]
    free_running: list[list[float | None]]
    diverged_at: Count | None


def _read(path: Path, shape: type[Any]) -> Any:
    return read_json(path, shape) if path.exists() else None


def _errors(
    title: str,
    side: str,
    arms: Sequence[str],
    curves: Mapping[tuple[str, int], Mapping[str, Curve]],
    naive: Mapping[str, Curve],
) -> Raw:
    by_arm = {label: [found[side] for (other, _), found in curves.items() if other == label] for label in arms}
    means = {label: _mean(found) for label, found in by_arm.items()}
    lines = [Line(_leads(c), SOFT, DASHES[(n + 1) % 6], 1.25) for n, c in enumerate(naive.values())]
    for number, label in reversed(list(enumerate(arms))):
        if len(by_arm[label]) > 1:
            lines += [Line(_leads(curve), arm(number), width=1, opacity=0.45) for curve in by_arm[label]]
        lines.append(Line(_leads(means[label]), arm(number), DASHES[number % 6], 2.25))
    every = [v for found in curves.values() for name in _SIDES for v in found[name] if v]
    high = min(max([*every, *(v for c in naive.values() for v in c if v)], default=1.0), 100.0)
    low = max(min(every, default=0.01), high * 1e-6)
    axes = Axes("lead time, steps", "error, standard deviations", log=True, y_domain=(low / 1.15, high * 1.15))
    columns = {**means, **({words(name): curve for name, curve in naive.items()} if side == "free_running" else {})}
    text = "Mean over windows. Thick: mean over seeds; thin: each run. The scale is logarithmic."
    if lost := [label for label, curve in means.items() if curve[-1] is None]:
        text += f" No mean where a window has escaped to infinity: {', '.join(lost)}."
    last = ", ".join(f"{name} {_shown(curve[-1])}" for name, curve in columns.items())
    return figure(title, chart(lines, axes), (text, f"At the last lead time: {last}."), numbers(columns))


def _mean(found: Sequence[Curve]) -> list[float | None]:
    """Infinite (None) where one of them is."""
    columns = [list(values) for values in zip(*found, strict=True)]
    return [
        None if None in values else math.fsum(v for v in values if v is not None) / len(values) for values in columns
    ]


def _leads(curve: Curve) -> list[tuple[float, float]]:
    return [(n + 1.0, math.nan if value is None else value) for n, value in enumerate(curve)]


def _shown(value: float | None) -> str:
    return "infinite" if value is None else f"{value:.4g}"


def _windows(results: Mapping[str, Any], out: Path, arms: Sequence[str]) -> Raw:
    """Windows with what every arm says running freely, of the first seed."""
    seed = results["runs"][0]["seed"]
    by_arm = {
        run["label"]: _read(out / run["folder"] / "test-forecasts.json", list[_Shown])
        for run in results["runs"]
        if run["seed"] == seed
    }
    if not by_arm or not all(by_arm.values()):
        return Raw("")
    count = len(next(iter(by_arm.values())))
    domains = ranges(next(iter(by_arm.values()))[:_WINDOWS])
    each = [{label: windows[n] for label, windows in by_arm.items()} for n in range(min(count, _WINDOWS))]
    drawn = [_window(one, arms, domains) for one in each]
    entries = [("gold", 0, "gold"), *(("arm", number, label) for number, label in enumerate(arms))]
    text = f"Free runs of seed {seed} on windows at even distances; nobody chose them. In the units of the data."
    return Raw(f'<p class="note">{text}</p>' + legend(entries) + grid(drawn))


def _window(
    by_arm: Mapping[str, Mapping[str, Any]], arms: Sequence[str], domains: Sequence[tuple[float, float]]
) -> Raw:
    first = next(iter(by_arm.values()))
    channels: Sequence[str] = first["channels"]
    shown = [_panel(by_arm, arms, channel, domains[channel]) for channel in range(len(channels))]
    columns: dict[str, Curve] = {}
    for channel, name in enumerate(channels):
        of = f", {name}" if len(channels) > 1 else ""
        columns[f"gold{of}"] = [row[channel] for row in first["gold"]]
        columns |= {f"{label}{of}": [row[channel] for row in by_arm[label]["free_running"]] for label in arms}
    gone = [
        f"{label} escapes at lead time {by_arm[label]['diverged_at']}" for label in arms if by_arm[label]["diverged_at"]
    ]
    text = f"{'; '.join(gone)}." if gone else ""
    last = ", ".join(f"{name} {_shown(curve[-1])}" for name, curve in columns.items())
    return figure(f"Window {first['window']:,}", panels(shown), (text, f"At the last step: {last}."), numbers(columns))


def _panel(
    by_arm: Mapping[str, Mapping[str, Any]], arms: Sequence[str], channel: int, domain: tuple[float, float]
) -> Panel:
    first = next(iter(by_arm.values()))
    past = [(1.0 - len(first["past"]) + n, float(row[channel])) for n, row in enumerate(first["past"])]
    gold = [(n + 1.0, float(row[channel])) for n, row in enumerate(first["gold"])]
    lines = [Line([*past, gold[0]], INK, width=1.25, opacity=0.55), Line(gold, INK, width=2)]
    for number, label in reversed(list(enumerate(arms))):
        free = _leads([row[channel] for row in by_arm[label]["free_running"]])
        lines.append(Line(free, arm(number), DASHES[number % 6], 1.75))
    ends = (1.0 - len(past), float(len(gold)))
    axes = Axes(
        "steps from the last known value", first["channels"][channel], x_domain=ends, y_domain=domain, begin=0.0
    )
    return Panel(lines, (), axes)
