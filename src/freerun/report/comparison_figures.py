"""Figures of a comparison: scores over training, differences, forecasts by lead time, and windows."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypedDict

from freerun.comparison.verdict import cells, difference_text, interval_name, task_report, verdict_text
from freerun.metrics.table import Metric, TaskReport
from freerun.report import charts
from freerun.report.charts import DASHES, SOFT, Axes, Line, arm, baseline_name, chart, leads, ranges, window_chart
from freerun.report.page import DASH, Raw, Values, figure, grid, legend, numbers, numbers_at, table, thin_table
from freerun.report.run_data import Curve, Runs, curves, settled, shares
from freerun.training.files import Count, read_json


def training(runs: Runs, report: TaskReport) -> Raw:
    """Draw the scores of the task on dev over training; those of one unit on one scale."""
    by_score = {each.name: curves(runs, each.side, each.score) for each in report.curves}
    drawn: list[Raw] = []
    for each in report.curves:
        lines, domain = by_score[each.name], None
        same_unit = [other.name for other in report.curves if other.axis == each.axis]
        if len(same_unit) > 1 or not each.zero:
            domain = _domain([curve for name in same_unit for curve in by_score[name]], each.zero)
        if any(value for curve in lines for _, value in curve.points):  # where nothing diverges there is nothing to see
            inside = lines if domain else settled(lines)
            top = domain[1] if domain else max(value for curve in inside for _, value in curve.points)
            cut = any(value > top for curve in lines for _, value in curve.points)
            text = "Thick: mean over seeds; thin: each run." + (" The beginning lies above the figure." if cut else "")
            svg = _curves_chart(inside, list(runs), each.axis, domain)
            drawn.append(figure(each.title[0].upper() + each.title[1:], svg, (text, _last(lines)), _numbers(lines)))
    return Raw(legend(_strokes(runs)) + grid(drawn)) if drawn else Raw("")


def _strokes(labels: Iterable[str], kind: str = "arm") -> list[tuple[str, int, str]]:
    return [(kind, number, label) for number, label in enumerate(labels)]


def _domain(lines: Sequence[Curve], zero: bool) -> tuple[float, float] | None:
    values = [value for curve in settled(lines) for _, value in curve.points]
    if not values or (not zero and max(values) == min(values)):
        return None
    room = 0.05 * (max(values) - (0.0 if zero else min(values)))
    return 0.0 if zero else min(values) - room, max(values) + room


def entries(runs: Runs) -> Raw:
    """Own entries against the schedule, and wrong entries of each arm: whether the noise is matched."""
    replaced, wrong = shares(runs, "replaced"), shares(runs, "disagreeing")
    planned = {curve.arm for curve in replaced if curve.planned}
    own = [curve for curve in replaced if curve.arm in planned]
    text = "Line: the share fed. Wide band: the share scheduled, 1 \N{MINUS SIGN} teacher_forcing_ratio."
    noise = "Entries fed that differ from gold; matched noise lies on its reference."
    drawn = [
        figure(title, _curves_chart(lines, list(runs), "share of entries, %"), (reading, _last(lines)), _numbers(lines))
        for title, lines, reading in (("Own entries", own, text), ("Wrong entries in the history", wrong, noise))
        if lines
    ]
    return Raw(legend(_strokes(runs)) + grid(drawn)) if drawn else Raw("")


def differences(results: Mapping[str, Any]) -> Raw:
    """Paired differences in the score that the verdict is about, and in others that the task names."""
    arms = list(cells(results))
    drawn: list[Raw] = []
    rings = "; rings: seeds" if len({run["seed"] for run in results["runs"]}) > 1 else ""
    for each in (metric for metric in task_report(results["recipe"]).metrics if metric.role == "drawn"):
        lines = [line for line in results["comparisons"] if line["metric"] == each.name]
        if not lines:
            continue
        rows = [_row(results, line, arms) for line in lines]
        texts = [_texts(line, row, each) for line, row in zip(lines, rows, strict=True)]
        content = "; ".join(f"{row.title}: {text[0]}" for row, text in zip(rows, texts, strict=True))
        log = lines[0]["scale"] == "log"
        side, equal = "Right" if each.higher else "Left", "\N{MULTIPLICATION SIGN}1" if log else "zero"
        text = f"Dot: mean; bar: {interval_name(results)}{rings}. {side} of {equal} is better."
        text += f" Exposure bias cannot move it: {each.fixed}." if each.fixed else ""
        title = (
            f"ratio in {each.title}" if log else ", ".join(filter(None, (f"difference in {each.title}", each.units)))
        )
        svg = charts.differences(rows, title, log=log)
        numbers = table(
            ["difference", "mean", "low", "high", "seeds"],
            [[row.title, *text[:3], ", ".join(text[3:])] for row, text in zip(rows, texts, strict=True)],
            "numbers",
        )
        drawn.append(figure(f"Differences in {each.title}", svg, (text, content), numbers))
    return grid(drawn) if drawn else Raw("")


def _row(results: Mapping[str, Any], line: Mapping[str, Any], arms: Sequence[str]) -> charts.Difference:
    kind, _, name = line["metric"].partition(".")
    by_run = {(run["label"], run["seed"]): run.get(kind, {}).get(name) for run in results["runs"]}
    seeds = dict.fromkeys(run["seed"] for run in results["runs"])
    pairs = [(by_run.get((line["arm"], seed)), by_run.get((line["baseline"], seed))) for seed in seeds]
    scaled = math.log if line["scale"] == "log" else float
    return charts.Difference(
        f"{line['arm']} \N{MINUS SIGN} {line['baseline']}: {verdict_text(results, line)}",
        arms.index(line["arm"]),
        line["difference"],
        line["low"],
        line["high"],
        tuple(scaled(a) - scaled(b) for a, b in pairs if a is not None and b is not None),
    )


def _texts(line: Mapping[str, Any], row: charts.Difference, metric: Metric) -> list[str]:
    """Return the difference, the ends of its interval and the seeds' differences."""
    values = (row.value, row.low, row.high, *row.seeds)
    return [DASH if value is None else difference_text({**line, "difference": value}, metric) for value in values]


def _means(lines: Sequence[Curve]) -> dict[str, Curve]:
    means = (curve for curve in lines if curve.number == -1 and curve.points)
    return {f"{curve.arm}, scheduled" if curve.planned else curve.arm: curve for curve in means}


def _last(lines: Sequence[Curve]) -> str:
    ends = [f"{name} {curve.points[-1][1]:.4g}" for name, curve in _means(lines).items()]
    return f"At the end: {', '.join(ends)}." if ends else ""


def _numbers(lines: Sequence[Curve]) -> Raw:
    tables = {name: dict(curve.points) for name, curve in _means(lines).items()}
    steps = sorted({step for values in tables.values() for step in values})
    rows = [[f"{step:g}", *(f"{t[step]:.4g}" if step in t else DASH for t in tables.values())] for step in steps]
    return thin_table(["updates", *tables], rows)


def _curves_chart(
    lines: Sequence[Curve], arms: Sequence[str], title: str, domain: tuple[float, float] | None = None
) -> str:
    """Draw curves over updates: an arm's mean thick, its runs thin, the schedule as a wide band."""

    def line(curve: Curve) -> Line:
        number = arms.index(curve.arm)
        if curve.planned:
            return Line(curve.points, arm(number), width=5, opacity=0.3)
        if curve.number >= 0:
            return Line(curve.points, arm(number), width=1, opacity=0.45)
        return Line(curve.points, arm(number), DASHES[number % len(DASHES)], 2.25)

    ordered = sorted(lines, key=lambda curve: (not curve.planned, curve.number == -1, -arms.index(curve.arm)))
    steps, values = zip(*(point for curve in lines for point in curve.points), strict=True)
    domain = domain or (min(0.0, *values), 1.05 * max(*values, 1e-9))
    return chart(
        [line(curve) for curve in ordered], Axes("updates", title, x_domain=(0.0, max(steps)), y_domain=domain)
    )


_SIDES = {"free_running": "Free-running error", "teacher_forced": "Teacher-forced error"}
_WINDOWS = 4


def forecasts(results: Mapping[str, Any], out: Path) -> Raw:
    """Errors by lead time of all arms, and windows; "" where the runs are no forecasts."""
    arms = list(dict.fromkeys(run["label"] for run in results["runs"]))
    by_run = {
        (run["label"], run["seed"]): _read(out / run["folder"] / "test-curves.json", dict[str, list[float | None]])
        for run in results["runs"]
    }
    if not by_run or not all(isinstance(each, Mapping) and _SIDES.keys() <= each.keys() for each in by_run.values()):
        return Raw("")
    first = next(iter(by_run.values()))
    naive = {baseline_name(name): curve for name, curve in first.items() if name not in _SIDES}
    drawn = [_errors(title, side, arms, by_run, naive) for side, title in _SIDES.items()]
    return Raw(legend([*_strokes(arms), *_strokes(naive, "naive")]) + grid(drawn) + _windows(results, out, arms))


class _Window(TypedDict):
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
    by_run: Mapping[tuple[str, int], Mapping[str, Values]],
    naive: Mapping[str, Values],
) -> Raw:
    by_arm = {label: [each[side] for (other, _), each in by_run.items() if other == label] for label in arms}
    means = {label: _mean(curves) for label, curves in by_arm.items()}
    lines = [Line(leads(curve), SOFT, DASHES[(n + 1) % 6], 1.25) for n, curve in enumerate(naive.values())]
    for number, label in reversed(list(enumerate(arms))):
        if len(by_arm[label]) > 1:
            lines += [Line(leads(curve), arm(number), width=1, opacity=0.45) for curve in by_arm[label]]
        lines.append(Line(leads(means[label]), arm(number), DASHES[number % 6], 2.25))
    every = [value for each in by_run.values() for name in _SIDES for value in each[name] if value]
    high = min(max([*every, *(value for curve in naive.values() for value in curve if value)], default=1.0), 100.0)
    low = max(min(every, default=0.01), high * 1e-6)
    axes = Axes("lead time, steps", "error, standard deviations", log=True, y_domain=(low / 1.15, high * 1.15))
    columns = {**means, **(naive if side == "free_running" else {})}
    text = "Mean over windows. Thick: mean over seeds; thin: each run. The scale is logarithmic."
    if lost := [label for label, curve in means.items() if curve[-1] is None]:
        text += f" No mean where a window has escaped to infinity: {', '.join(lost)}."
    last = f"At the last lead time: {numbers_at(columns, infinite='infinite')}."
    return figure(title, chart(lines, axes), (text, last), numbers(columns))


def _mean(curves: Sequence[Values]) -> list[float | None]:
    """Infinite (None) where one of them is."""
    columns = ([value for value in values if value is not None] for values in zip(*curves, strict=True))
    return [math.fsum(values) / len(values) if len(values) == len(curves) else None for values in columns]


def _windows(results: Mapping[str, Any], out: Path, arms: Sequence[str]) -> Raw:
    """Windows with every arm's free run, of the first seed."""
    seed = results["runs"][0]["seed"]
    by_arm: dict[str, Any] = {
        run["label"]: _read(out / run["folder"] / "test-forecasts.json", list[_Window])
        for run in results["runs"]
        if run["seed"] == seed
    }
    if not by_arm or not all(by_arm.values()):
        return Raw("")
    first: Sequence[_Window] = next(iter(by_arm.values()))[:_WINDOWS]
    drawn: list[Raw] = []
    for n, window in enumerate(first):
        runs = {label: by_arm[label][n] for label in arms}
        gone = [
            f"{label} escapes at lead time {run['diverged_at']}" for label, run in runs.items() if run["diverged_at"]
        ]
        styles = {label: Line((), arm(number), DASHES[number % 6], 1.75) for number, label in enumerate(arms)}
        rows = {label: run["free_running"] for label, run in runs.items()}
        svg, columns = window_chart(window, window["channels"], ranges(first), rows, dict(reversed(styles.items())))
        texts = f"{'; '.join(gone)}." if gone else "", f"At the last step: {numbers_at(columns, infinite='infinite')}."
        drawn.append(figure(f"Window {window['window']:,}", svg, texts, numbers(columns)))
    text = f"Free runs of seed {seed} on evenly spaced windows, not chosen by hand. In the units of the data."
    return Raw(f'<p class="note">{text}</p>' + legend([("gold", 0, "gold"), *_strokes(arms)]) + grid(drawn))
