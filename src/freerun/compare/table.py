"""The one table of a comparison, for the terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.table import Table

__all__ = ["COLUMNS", "cell", "cells", "table"]

COLUMNS = (
    ("free_running.per", "PER %", 2),
    ("free_running.wer", "WER %", 2),
    ("teacher_forced.loss", "teacher-forced loss", 4),
    ("gap.per", "free-running gap", 2),
    ("seconds", "seconds", 0),
)
"""Metric, heading and decimals of each column."""


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


def table(results: Mapping[str, Any]) -> Table:
    """Arms by PER, WER, teacher-forced loss, free-running gap and seconds, with 95 % intervals, for rich.

    Args:
        results: content of results.json.
    """
    from rich.table import Table
    from rich.text import Text

    seeds = len({run["seed"] for run in results["runs"]})
    words = f", {results['test_words']:,} test words" if results["test_words"] else ""
    shown = Table(
        title=f"free-running test scores, mean of {seeds} seed{'s' if seeds != 1 else ''}{words}",
        caption="\\[low, high]: 95 % interval; free-running gap: free-running minus teacher-forced PER",
        title_justify="left",
        caption_justify="left",
    )
    shown.add_column("arm", overflow="fold")
    for _, heading, _ in COLUMNS:
        shown.add_column(heading, justify="right")
    for arm, metrics in cells(results).items():
        texts = [cell(metrics.get(metric), decimals, interval=metric != "seconds") for metric, _, decimals in COLUMNS]
        # as Text: rich would read [24.0, 26.0] as markup
        shown.add_row(Text(arm), *(Text(text) for text in texts))
    return shown
