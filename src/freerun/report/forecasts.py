"""The section "Forecasts" of a comparison of series: errors by lead time, and some windows as every arm says them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypedDict

from freerun.report.charts import Axes, Line, Panel, arm, chart, panels, ranges
from freerun.report.diagnosed_figures import numbers, words
from freerun.report.figures import DASHES, INK, SOFT
from freerun.report.markup import Raw, figure, grid, key
from freerun.training.shapes import Count, read_json

__all__ = ["forecasts"]

Curve = Sequence[float | None]

_SIDES = {"free_running": "Error, running freely", "teacher_forced": "Error, told gold"}
_WINDOWS = 4


def forecasts(results: Mapping[str, Any], out: Path) -> Raw:
    """Errors by lead time of all arms, and windows; "" where the runs are no forecasts.

    Args:
        results: of the comparison.
        out: its folder.
    """
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
    return Raw(key(entries) + grid(drawn) + _windows(results, out, arms))


class _Shown(TypedDict):
    window: Count
    channels: list[str]
    past: list[list[float | None]]
    gold: list[list[float | None]]
    free: list[list[float | None]]
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
    said = {
        run["label"]: _read(out / run["folder"] / "test-forecasts.json", list[_Shown])
        for run in results["runs"]
        if run["seed"] == seed
    }
    if not said or not all(said.values()):
        return Raw("")
    count = len(next(iter(said.values())))
    domains = ranges(next(iter(said.values()))[:_WINDOWS])
    each = [{label: windows[n] for label, windows in said.items()} for n in range(min(count, _WINDOWS))]
    drawn = [_window(one, arms, domains) for one in each]
    entries = [("gold", 0, "gold"), *(("arm", number, label) for number, label in enumerate(arms))]
    text = f"Free runs of seed {seed} on windows at even distances; nobody chose them. In the units of the data."
    return Raw(f'<p class="note">{text}</p>' + key(entries) + grid(drawn))


def _window(said: Mapping[str, Mapping[str, Any]], arms: Sequence[str], domains: Sequence[tuple[float, float]]) -> Raw:
    first = next(iter(said.values()))
    channels: Sequence[str] = first["channels"]
    shown = [_panel(said, arms, channel, domains[channel]) for channel in range(len(channels))]
    columns: dict[str, Curve] = {}
    for channel, name in enumerate(channels):
        of = f", {name}" if len(channels) > 1 else ""
        columns[f"gold{of}"] = [row[channel] for row in first["gold"]]
        columns |= {f"{label}{of}": [row[channel] for row in said[label]["free"]] for label in arms}
    gone = [
        f"{label} escapes at lead time {said[label]['diverged_at']}" for label in arms if said[label]["diverged_at"]
    ]
    text = f"{'; '.join(gone)}." if gone else ""
    last = ", ".join(f"{name} {_shown(curve[-1])}" for name, curve in columns.items())
    return figure(f"Window {first['window']:,}", panels(shown), (text, f"At the last step: {last}."), numbers(columns))


def _panel(
    said: Mapping[str, Mapping[str, Any]], arms: Sequence[str], channel: int, domain: tuple[float, float]
) -> Panel:
    first = next(iter(said.values()))
    past = [(1.0 - len(first["past"]) + n, float(row[channel])) for n, row in enumerate(first["past"])]
    gold = [(n + 1.0, float(row[channel])) for n, row in enumerate(first["gold"])]
    lines = [Line([*past, gold[0]], INK, width=1.25, opacity=0.55), Line(gold, INK, width=2)]
    for number, label in reversed(list(enumerate(arms))):
        free = _leads([row[channel] for row in said[label]["free"]])
        lines.append(Line(free, arm(number), DASHES[number % 6], 1.75))
    ends = (1.0 - len(past), float(len(gold)))
    axes = Axes(
        "steps from the last known value", first["channels"][channel], x_domain=ends, y_domain=domain, begin=0.0
    )
    return Panel(lines, (), axes)
