"""What a finished run came to, for people: scores with gold and with own history, naive forecasts, what to do next."""

from __future__ import annotations

import shlex
import textwrap
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from freerun.metrics.table import Metric, TaskReport
from freerun.recipes.recipe import Recipe
from freerun.tasks import task_of

_SIDES = ("free_running", "teacher_forced")
_HEAD = ("free-running", "teacher-forced", "gap")
_GLUE = "\N{NO-BREAK SPACE}"  # no line begins with %


class Row(NamedTuple):
    """A line of the table: a score or a naive forecast, and its numbers on both sides, or None."""

    label: str
    free: float | None
    forced: float | None = None
    decimals: int = 4


def outcome(summary: Mapping[str, Any], recipe: Recipe, folder: Path, width: int) -> list[str]:
    """Return the lines that ``freerun train`` ends with."""
    task = task_of(recipe.data)
    test = summary.get("test", {})
    return [
        *_beaten(task.report, test),
        *table_lines(list(_rows(task.report, test)), width),
        *_chosen(summary),
        f"next: freerun diagnose {shlex.quote(str(folder))} (or generate, evaluate)",
    ]


def _beaten(report: TaskReport, test: Mapping[str, Any]) -> list[str]:
    """Report that a naive forecast is better than the model; [] if none is."""
    best, measure = _best_naive(report, test), report.primary
    own = test.get(measure.side, {}).get(measure.score)
    if best is None or (own is not None and (own > best[1] if measure.higher else own < best[1])):
        return []
    found = "no finite score" if own is None else measure.to_text(own)
    return [
        f"The model does not beat the simple forecast {best[0]}: {measure.title} {found} against "
        f"{measure.to_text(best[1])}."
    ]


def _best_naive(report: TaskReport, test: Mapping[str, Any]) -> tuple[str, float] | None:
    """Return the naive forecast with the best primary score, and this score."""
    scores = test.get(report.primary.side, {})
    found = [(name, scores.get(f"{prefix}{report.primary.score}")) for name, prefix in report.baselines]
    known = [(name, float(value)) for name, value in found if value is not None]
    if not known:
        return None
    return (max if report.primary.higher else min)(known, key=lambda pair: pair[1])


def _rows(report: TaskReport, test: Mapping[str, Any]) -> Iterable[Row]:
    """The primary score with its naive forecasts below it, then every other score once."""
    prefixes = tuple(prefix for _, prefix in report.beside)
    listed = (name for side in _SIDES for name in test.get(side, {}) if not name.startswith(prefixes))
    for name in dict.fromkeys((report.primary.score, *listed)):
        free, forced = (test.get(side, {}).get(name) for side in _SIDES)
        if free is None and forced is None:
            continue
        measure = _measure(report, name)
        decimals = 4 if measure is None else measure.decimals
        yield Row(_label(name, measure), free, forced, decimals)
        for naive, prefix in report.beside if name == report.primary.score else ():
            value = test.get(report.primary.side, {}).get(f"{prefix}{name}")
            if value is not None:
                yield Row(f"  {naive}", value, None, decimals)


def _measure(report: TaskReport, name: str) -> Metric | None:
    return next((each for side in _SIDES for each in report.metrics if each.name == f"{side}.{name}"), None)


def _label(name: str, measure: Metric | None) -> str:
    """``PER, %``: a score's name without its side, with its unit."""
    if measure is None:
        return name.replace("_", " ")
    label = measure.title
    for side in _SIDES:
        label = label.removeprefix(side.replace("_", "-") + " ")
    unit = "%" if measure.sign == " %" else measure.units.replace("points", "")
    return f"{label},{_GLUE if unit == '%' else ' '}{unit}" if unit else label


def table_lines(rows: list[Row], width: int) -> list[str]:
    """Return a table in columns; a label that its column has no room for goes on below.

    >>> print("\\n".join(table_lines([Row("PER, %", 11.76, 9.97, 2), Row("loss, nats", None, 0.5)], 60)))
    test        free-running  teacher-forced      gap
    PER, %             11.76            9.97    +1.79
    loss, nats                        0.5000
    """
    cells = [_HEAD, *map(_numbers, rows)]
    widths = [max(len(line[column]) for line in cells) for column in range(3)]
    widths[2] = max(widths[2], 7)
    first = max(12, min(max(len(row.label) for row in rows), width - sum(widths) - 6)) if rows else 4
    lines: list[str] = []
    for label, numbers in zip(["test", *(row.label for row in rows)], cells, strict=True):
        own, *further = textwrap.wrap(label, first, break_long_words=False) if len(label) > first else [label]
        texts = "  ".join(f"{text:>{size}}" for text, size in zip(numbers, widths, strict=True))
        lines += [f"{own:<{first}}  {texts}".rstrip(), *(f"  {part}" for part in further)]
    return [line.replace(_GLUE, " ") for line in lines]


def _numbers(row: Row) -> tuple[str, str, str]:
    free, forced = ("" if value is None else f"{value:,.{row.decimals}f}" for value in (row.free, row.forced))
    gap = "" if row.free is None or row.forced is None else f"{row.free - row.forced:+,.{row.decimals}f}"
    return free, forced, gap


def _chosen(summary: Mapping[str, Any]) -> list[str]:
    """Return which weights were tested; [] where no score was finite."""
    best = summary.get("best", {})
    if None in (best.get("step"), best.get("select"), best.get("value")):
        return []
    return [
        f"tested: the weights after {best['step']:,} of {summary['updates']:,} updates, kept by dev "
        f"{best['select']} ({best['value']:.4g}); {summary.get('seconds', 0):,.0f} s of training"
    ]
