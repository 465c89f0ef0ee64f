"""Figures of a comparison: scores over training, differences, forecasts by lead time, and windows."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NotRequired, TypedDict

from freerun.comparison.verdict import cells, difference_text, interval_name, pair_text, task_report, verdict_text
from freerun.metrics.table import Metric, TaskReport
from freerun.report import charts
from freerun.report.charts import DASHES, SOFT, Axes, Line, arm, chart, leads, ranges, window_chart
from freerun.report.page import DASH, Raw, Values, figure, grid, legend, numbers, numbers_at, table, thin_table
from freerun.report.run_data import Curve, Runs, curves, settled, shares
from freerun.training.files import Count, read_json


def training(results: Mapping[str, Any], runs: Runs) -> Raw:
    """Draw the scores of the task on dev over training, with what needs no training; those of one unit on one scale."""
    report = task_report(results["recipe"])
    by_score = {each.name: curves(runs, each.side, each.score) for each in report.curves}
    beside: dict[str, None] = {}
    several = "Thick: mean over seeds; thin: each run." if any(len(each) > 1 for each in runs.values()) else ""
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
            text = several + (" The beginning lies above the figure." if cut else "")
            naive, part = untrained(results, runs, each)
            beside |= dict.fromkeys(naive)
            far = [f"{name} {value:.4g}" for name, value in naive.items() if value > 1.5 * top]
            if naive:
                text += f" Grey: without training, on {part}"
                text += f"; above the figure: {', '.join(far)}." if far else "."
                highest = max([top, *(1.05 * value for value in naive.values() if value <= 1.5 * top)])
                domain = (min(domain[0] if domain else 0.0, *naive.values()), highest)
            svg = _curves_chart(inside, list(runs), each.axis, domain, naive)
            ends = _last(lines) + "".join(f" {name} {value:.4g}." for name, value in naive.items())
            drawn.append(figure(each.title[0].upper() + each.title[1:], svg, (text, ends), _numbers(lines, naive)))
    return Raw(legend([*_strokes(runs), *_strokes(beside, "naive")]) + grid(drawn)) if drawn else Raw("")


def untrained(results: Mapping[str, Any], runs: Runs, metric: Metric) -> tuple[dict[str, float], str]:
    """Values of a score without training, by name, and the split that they are of: dev if it was scored, else test."""
    means = next(iter(cells(results).values()))
    names = [(name, f"{prefix}{metric.score}") for name, prefix in task_report(results["recipe"]).beside]
    on_dev = {name: curves(runs, metric.side, score) for name, score in names}
    if dev := {name: lines[-1].points[-1][1] for name, lines in on_dev.items() if lines}:
        return dev, "dev"
    on_test = ((name, means.get(f"{metric.side}.{score}")) for name, score in names)
    return {name: entry["mean"] for name, entry in on_test if entry and entry["mean"] is not None}, "the test part"


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
        naive, far = _naive_rows(results, lines[0], each, rows)
        rows, lines = [*rows, *naive], [*lines, *(lines[0] for _ in naive)]
        texts = [_texts(line, row, each) for line, row in zip(lines, rows, strict=True)]
        content = "; ".join(f"{row.title}: {text[0]}" for row, text in zip(rows, texts, strict=True))
        log = lines[0]["scale"] == "log"
        side, equal = "Right" if each.higher else "Left", "\N{MULTIPLICATION SIGN}1" if log else "zero"
        text = f"Dot: mean; bar: {interval_name(results)}{rings}. {side} of {equal} is better."
        text += f" Exposure bias cannot move it: {each.fixed}." if each.fixed else ""
        text += " Grey: without training." if naive else ""
        svg_rows = [row for row in rows if row.title not in far]
        text += f" Beyond the figure: {', '.join(far)}." if far else ""
        title = (
            f"ratio in {each.title}" if log else ", ".join(filter(None, (f"difference in {each.title}", each.units)))
        )
        svg = charts.differences(svg_rows, title, log=log)
        numbers = table(
            ["ratio" if log else "difference", "mean", "low", "high", "seeds"],
            [[row.title, *text[:3], ", ".join(text[3:])] for row, text in zip(rows, texts, strict=True)],
            "numbers",
        )
        drawn.append(figure(f"{'Ratios' if log else 'Differences'} in {each.title}", svg, (text, content), numbers))
    return grid(drawn) if drawn else Raw("")


def _row(results: Mapping[str, Any], line: Mapping[str, Any], arms: Sequence[str]) -> charts.Difference:
    kind, _, name = line["metric"].partition(".")
    by_run = {(run["label"], run["seed"]): run.get(kind, {}).get(name) for run in results["runs"]}
    seeds = dict.fromkeys(run["seed"] for run in results["runs"])
    pairs = [(by_run.get((line["arm"], seed)), by_run.get((line["baseline"], seed))) for seed in seeds]
    scaled = math.log if line["scale"] == "log" else float
    # a label has half a page's width: what is exploratory has its verdict in the table below
    decided = f": {verdict_text(results, line)}" if line["step"] else ""
    return charts.Difference(
        f"{pair_text(line)}{decided}",
        arms.index(line["arm"]),
        line["difference"],
        line["low"],
        line["high"],
        tuple(scaled(a) - scaled(b) for a, b in pairs if a is not None and b is not None),
    )


def _naive_rows(
    results: Mapping[str, Any], line: Mapping[str, Any], metric: Metric, rows: Sequence[charts.Difference]
) -> tuple[list[charts.Difference], list[str]]:
    """What needs no training against the baseline of a comparison; and titles of those that would flatten the rest."""
    base = next(e["mean"] for e in results["summary"] if (e["arm"], e["metric"]) == (line["baseline"], metric.name))
    scaled = math.log if line["scale"] == "log" else float
    found = [
        charts.Difference(pair_text({**line, "arm": name}), None, scaled(value) - scaled(base), None, None, ())
        for name, value in untrained(results, {}, metric)[0].items()
    ]
    ends = [abs(end) for row in rows for end in (row.value, row.low, row.high, *row.seeds) if end is not None]
    return found, [row.title for row in found if abs(row.value) > 6 * max(ends)]


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


def _numbers(lines: Sequence[Curve], naive: Mapping[str, float] | None = None) -> Raw:
    tables = {name: dict(curve.points) for name, curve in _means(lines).items()}
    steps = sorted({step for values in tables.values() for step in values})
    tables |= {name: dict.fromkeys(steps, value) for name, value in (naive or {}).items()}
    rows = [[f"{step:g}", *(f"{t[step]:.4g}" if step in t else DASH for t in tables.values())] for step in steps]
    return thin_table(["updates", *tables], rows)


def _curves_chart(
    lines: Sequence[Curve],
    arms: Sequence[str],
    title: str,
    domain: tuple[float, float] | None = None,
    naive: Mapping[str, float] | None = None,
) -> str:
    """Draw curves over updates: an arm's mean thick, its runs thin, the schedule as a wide band, naive values level."""

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
    level = [
        Line([(0.0, value), (max(steps), value)], SOFT, DASHES[(n + 1) % 6], 1.25)
        for n, value in enumerate((naive or {}).values())
    ]
    axes = Axes("updates", title, x_domain=(0.0, max(steps)), y_domain=domain)
    return chart([*level, *(line(curve) for curve in ordered)], axes)


_SIDES = {"free_running": "Free-running error", "teacher_forced": "Teacher-forced error"}
_LAWS = {"crps": "CRPS of sample paths", "coverage_80": "In the 80 % band of sample paths"}
_WINDOWS = 4


def forecasts(results: Mapping[str, Any], out: Path) -> Raw:
    """Scores by lead time of all arms, and windows; "" where the runs are no forecasts."""
    arms = list(dict.fromkeys(run["label"] for run in results["runs"]))
    by_run = {
        (run["label"], run["seed"]): _read(out / run["folder"] / "test-curves.json", dict[str, list[float | None]])
        for run in results["runs"]
    }
    if not by_run or not all(isinstance(each, Mapping) and _SIDES.keys() <= each.keys() for each in by_run.values()):
        return Raw("")
    report = task_report(results["recipe"])
    drawn = [
        _by_lead(score, arms, by_run, report) for score in (*_SIDES, *_LAWS) if all(score in v for v in by_run.values())
    ]
    first = next(iter(by_run.values()))
    names = [name for name, prefix in report.beside if prefix.rstrip("_") in first]
    return Raw(legend([*_strokes(arms), *_strokes(names, "naive")]) + grid(drawn) + _windows(results, out, arms))


class _Window(TypedDict):
    window: Count
    channels: list[str]
    past: list[list[float | None]]
    gold: list[list[float | None]]
    free_running: list[list[float | None]]
    diverged_at: Count | None
    bands: NotRequired[dict[str, list[list[float | None]]]]


def _read(path: Path, shape: type[Any]) -> Any:
    return read_json(path, shape) if path.exists() else None


def _by_lead(
    score: str, arms: Sequence[str], by_run: Mapping[tuple[str, int], Mapping[str, Values]], report: TaskReport
) -> Raw:
    """One score by lead time: every run thin, an arm's mean thick, what needs no model in grey."""
    by_arm = {label: [each[score] for (other, _), each in by_run.items() if other == label] for label in arms}
    means, first = {label: _mean(curves) for label, curves in by_arm.items()}, next(iter(by_run.values()))
    suffix = "" if score in _SIDES else f"_{score}"
    naive = {name: first[key] for name, prefix in report.beside if (key := prefix.rstrip("_") + suffix) in first}
    lines = [Line(leads(curve), SOFT, DASHES[(n + 1) % 6], 1.25) for n, curve in enumerate(naive.values())]
    for number, label in reversed(list(enumerate(arms))):
        if len(by_arm[label]) > 1:
            lines += [Line(leads(curve), arm(number), width=1, opacity=0.45) for curve in by_arm[label]]
        lines.append(Line(leads(means[label]), arm(number), DASHES[number % 6], 2.25))
    sides = _SIDES if score in _SIDES else (score,)  # one range of both sides
    every = [value for each in by_run.values() for name in sides for value in each[name] if value]
    high = min(max([*every, *(value for curve in naive.values() for value in curve if value)], default=1.0), 100.0)
    low = max(min(every, default=0.01), high * 1e-6)
    log = report.outputs != "positions" and score != "coverage_80"  # wrong positions in percent
    unit = "CRPS, standard deviations" if score == "crps" else "error, standard deviations"
    axes = Axes("lead time, steps", unit, log=True, y_domain=(low / 1.15, high * 1.15))
    if score == "coverage_80":
        axes = Axes("lead time, steps", "values in the band, %", y_domain=(0.0, 100.0))
        lines.insert(0, Line([(1.0, 80.0), (float(len(first[score])), 80.0)], SOFT, width=0.75))
    elif not log:
        axes = Axes("position", "wrong positions, %", y_domain=(0.0, 1.05 * high))
    columns = {**means, **naive}
    several = "Thick: mean over seeds; thin: each run." if len(by_run) > len(arms) else ""
    text = f"Mean over windows. {several}{' The scale is logarithmic.' * log}".replace("  ", " ").strip()
    text += " The straight line: 80 %, where the law is right." * (score == "coverage_80")
    if lost := [label for label, curve in means.items() if curve[-1] is None]:
        text += f" No mean where a window has escaped to infinity: {', '.join(lost)}."
    last = f"At the last lead time: {numbers_at(columns, infinite='infinite')}."
    return figure({**_SIDES, **_LAWS}[score], chart(lines, axes), (text, last), numbers(columns))


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
        edges = [run.get("bands", {}) for run in runs.values()]
        bands = [(each["0.05"], each["0.95"], arm(n)) for n, each in enumerate(edges) if each]
        svg, columns = window_chart(
            window, window["channels"], ranges(first), rows, dict(reversed(styles.items())), bands=bands
        )
        texts = f"{'; '.join(gone)}." if gone else "", f"At the last step: {numbers_at(columns, infinite='infinite')}."
        drawn.append(figure(f"Window {window['window']:,}", svg, texts, numbers(columns)))
    text = f"Free runs of seed {seed} on evenly spaced windows, not chosen by hand. In the units of the data."
    if any("bands" in each for windows in by_arm.values() for each in windows):
        text += " Bands: the central 90 % of 100 sample paths of each arm, step by step."
    return Raw(f'<p class="note">{text}</p>' + legend([("gold", 0, "gold"), *_strokes(arms)]) + grid(drawn))
