"""The one table of a comparison, for the terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from freerun.compare.told import told
from freerun.compare.verdict import interval_name

if TYPE_CHECKING:
    from rich.table import Table

__all__ = ["cell", "cells", "columns", "references", "table"]


def columns(results: Mapping[str, Any]) -> list[tuple[str, str, int]]:
    """Metric, heading and decimals of each column."""
    reported = told(results["recipe"])
    named = [reported.measure(name) for name in reported.columns]
    return [*((each.name, each.heading, each.decimals) for each in named), ("seconds", "seconds", 0)]


def cell(entry: Mapping[str, Any] | None, decimals: int, *, interval: bool = True) -> str:
    """A mean with its interval, as text.

    >>> cell({"mean": 25.123, "low": 24.0, "high": 26.0}, 1), cell(None, 1)
    ('25.1 [24.0, 26.0]', '–')
    """
    if entry is None:
        return "\N{EN DASH}"
    mean = f"{entry['mean']:,.{decimals}f}"
    if not interval or entry["low"] is None:
        return mean
    return f"{mean} [{entry['low']:,.{decimals}f}, {entry['high']:,.{decimals}f}]"


def cells(results: Mapping[str, Any]) -> dict[str, dict[str, Mapping[str, Any]]]:
    """arm -> metric -> its line of the summary, arms in order."""
    found: dict[str, dict[str, Mapping[str, Any]]] = {}
    for entry in results["summary"]:
        found.setdefault(entry["method"], {})[entry["metric"]] = entry
    return found


def references(results: Mapping[str, Any]) -> list[tuple[str, list[str]]]:
    """Rows without an arm, where they say something: held-out data's own scores, naive forecasts; name and texts."""
    reported = told(results["recipe"])
    first = next(iter(cells(results).values()))
    found: list[tuple[str, list[str]]] = []
    for name, prefix in reported.beside:
        texts: list[str] = []
        for metric, _, decimals in columns(results):
            side, _, score = metric.partition(".")
            texts.append(cell(first.get(f"{side}.{prefix}{score}"), decimals, interval=False))
        if set(texts) != {cell(None, 0)}:
            found.append((name, texts))
    return found


def table(results: Mapping[str, Any], width: int | None = None) -> Table:
    """Arms by the scores of their task and seconds, with 95 % intervals, for rich.

    Args:
        results: content of results.json.
        width: characters there are; where they do not hold a column a score, scores stand below each other.
    """
    from rich.console import Console

    shown = _framed(results)
    _fill_wide(shown, results)
    if width is not None and Console(width=10_000).measure(shown).maximum > width:
        shown = _framed(results)
        _fill_tall(shown, results)
    return shown


def _framed(results: Mapping[str, Any]) -> Table:
    """Without columns: title and caption."""
    from rich.table import Table

    seeds = len({run["seed"] for run in results["runs"]})
    reported = told(results["recipe"])
    words = f", {results['test_words']:,} {reported.items}" if results["test_words"] else ""
    side = "free-running " if reported.primary.side == "free_running" else ""
    gap = "; free-running gap: free-running minus teacher-forced PER" if "gap.per" in reported.columns else ""
    return Table(
        title=f"{side}test scores, mean of {seeds} seed{'s' if seeds != 1 else ''}{words}",
        caption=f"\\[low, high]: {interval_name(results)}{gap}",
        title_justify="left",
        caption_justify="left",
    )


def _fill_wide(shown: Table, results: Mapping[str, Any]) -> None:
    """A row an arm, a column a score."""
    from rich.text import Text

    shown.add_column("arm", overflow="fold", min_width=14)
    for _, heading, _ in columns(results):
        shown.add_column(heading, justify="right")
    for arm, metrics in cells(results).items():
        texts = [
            cell(metrics.get(metric), decimals, interval=metric != "seconds")
            for metric, _, decimals in columns(results)
        ]
        # as Text: rich would read [24.0, 26.0] as markup
        shown.add_row(Text(arm), *(Text(text) for text in texts))
    for name, texts in references(results):
        shown.add_row(name, *texts)


def _fill_tall(shown: Table, results: Mapping[str, Any]) -> None:
    """A row an arm below the name of each score."""
    from rich.text import Text

    shown.add_column("score")
    shown.add_column("arm", overflow="fold")
    shown.add_column("mean [low, high]", justify="right", overflow="fold")
    others = references(results)
    for number, (metric, heading, decimals) in enumerate(columns(results)):
        texts = [
            (arm, cell(metrics.get(metric), decimals, interval=metric != "seconds"))
            for arm, metrics in cells(results).items()
        ]
        texts += [(name, each[number]) for name, each in others if each[number] != cell(None, 0)]
        for row, (arm, text) in enumerate(texts):
            shown.add_row(heading if row == 0 else "", Text(arm), Text(text), end_section=row == len(texts) - 1)
