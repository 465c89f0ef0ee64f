"""The figures of a report, each with its description and its numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from freerun.compare.table import cells
from freerun.compare.told import told
from freerun.compare.verdict import interval_name, shown_verdict, signed
from freerun.report import figures
from freerun.report.markup import Raw, figure, grid, legend, table
from freerun.report.readings import Curve, Runs, curves, settled, shares
from freerun.training.reported import Measure, Reported

__all__ = ["differences", "entries", "training"]

_ROWS = 12


def training(runs: Runs, reported: Reported) -> Raw:
    """The scores of the task on dev over training; those of one unit on one scale."""
    arms = list(runs)
    measures = [reported.measure(name) for name in reported.curves]
    found = {each.name: curves(runs, each.side, each.score) for each in measures}
    drawn: list[Raw | None] = []
    for each in measures:
        alike = [other.name for other in measures if other.axis == each.axis]
        domain = None
        if len(alike) > 1 or not each.zero:
            domain = _domain([curve for name in alike for curve in found[name]], each.zero)
        title = each.title[0].upper() + each.title[1:]
        drawn.append(_lines(title, found[each.name], arms, each.axis, domain))
    shown = [one for one in drawn if one is not None]
    return Raw(legend(arms) + grid(shown)) if shown else Raw("")


def _domain(found: Sequence[Curve], zero: bool) -> tuple[float, float] | None:
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
                "Entries of the model's own",
                figures.lines(shown, arms, "share of entries, %"),
                (
                    "Line: the share that was fed. Band: what the schedule asked for, 1 \N{MINUS SIGN} "
                    "teacher_forcing_ratio.",
                    _last(shown),
                ),
                _numbers(shown),
            )
        )
    if wrong:
        title = "Wrong entries in the history"
        text = "Entries fed that differ from gold; matched noise lies on its reference."
        svg = figures.lines(wrong, arms, "share of entries, %")
        drawn.append(figure(title, svg, (text, _last(wrong)), _numbers(wrong)))
    return Raw(legend(arms) + grid(drawn)) if drawn else Raw("")


def differences(results: Mapping[str, Any]) -> Raw:
    """Paired differences in the score that the verdict is about, and in others that the task names."""
    arms = list(cells(results))
    reported = told(results["recipe"])
    drawn: list[Raw] = []
    for each in map(reported.measure, reported.differences):
        lines = [line for line in results["comparisons"] if line["metric"] == each.name]
        if not lines:
            continue
        rows = [_row(results, line, arms, each.name) for line in lines]
        said = "; ".join(f"{row.title}: {signed(row.value, each.decimals)}" for row in rows)
        side = "Right" if each.higher else "Left"
        text = f"Dot: mean; bar: {interval_name(results)}; rings: seeds. {side} of zero is better."
        text += f" Exposure bias cannot move it: {each.fixed}." if each.fixed else ""
        svg = figures.differences(rows, f"difference in {each.title}, {each.unit}")
        drawn.append(figure(f"Differences in {each.title}", svg, (text, said), _difference_table(rows, each)))
    return grid(drawn) if drawn else Raw("")


def _row(results: Mapping[str, Any], line: Mapping[str, Any], arms: Sequence[str], metric: str) -> figures.Difference:
    kind, _, name = metric.partition(".")
    by_run = {(run["label"], run["seed"]): run.get(kind, {}).get(name) for run in results["runs"]}
    seeds = dict.fromkeys(run["seed"] for run in results["runs"])
    pairs = [(by_run.get((line["method"], seed)), by_run.get((line["baseline"], seed))) for seed in seeds]
    return figures.Difference(
        f"{line['method']} \N{MINUS SIGN} {line['baseline']}: {shown_verdict(results, line)}",
        arms.index(line["method"]),
        line["difference"],
        line["low"],
        line["high"],
        tuple(a - b for a, b in pairs if a is not None and b is not None),
    )


def _difference_table(rows: Sequence[figures.Difference], measure: Measure) -> Raw:
    heads = ["difference", "mean", "low", "high", "seeds"]
    cells_ = [
        [
            row.title,
            *(
                "\N{EN DASH}" if value is None else signed(value, measure.decimals)
                for value in (row.value, row.low, row.high)
            ),
            ", ".join(signed(value, measure.decimals) for value in row.seeds),
        ]
        for row in rows
    ]
    return table(heads, cells_, "numbers")


def _lines(
    title: str, found: Sequence[Curve], arms: Sequence[str], axis: str, domain: Sequence[float] | None
) -> Raw | None:
    if not found:
        return None
    shown = settled(found)
    if domain:
        shown = [
            replace(curve, points=tuple(point for point in curve.points if point[1] <= domain[1])) for curve in found
        ]
    cut = sum(len(curve.points) for curve in shown) < sum(len(curve.points) for curve in found)
    text = "Thick: mean over seeds; thin: each run." + (" The beginning lies above the figure." if cut else "")
    return figure(title, figures.lines(shown, arms, axis, domain), (text, _last(found)), _numbers(found))


def _means(found: Sequence[Curve]) -> list[Curve]:
    return [curve for curve in found if curve.number == -1 and curve.points]


def _name(curve: Curve) -> str:
    return f"{curve.arm}, asked for" if curve.planned else curve.arm


def _last(found: Sequence[Curve]) -> str:
    ends = [f"{_name(curve)} {curve.points[-1][1]:.4g}" for curve in _means(found)]
    return f"At the end: {', '.join(ends)}." if ends else ""


def _numbers(found: Sequence[Curve]) -> Raw:
    """At most a dozen rows: means at even distances."""
    means = _means(found)
    steps = sorted({step for curve in means for step, _ in curve.points})
    kept = steps[:: max(1, -(-len(steps) // _ROWS))]
    if steps and kept[-1] != steps[-1]:
        kept.append(steps[-1])
    tables = [dict(curve.points) for curve in means]
    rows = [[f"{step:g}", *(f"{t[step]:.4g}" if step in t else "\N{EN DASH}" for t in tables)] for step in kept]
    return table(["updates", *(_name(curve) for curve in means)], rows, "numbers")
