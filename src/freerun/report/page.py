"""The page: its parts in order, one style sheet inside, nothing loaded from anywhere."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

from freerun.compare.results import read
from freerun.compare.told import told
from freerun.report import drawn, sections
from freerun.report.forecasts import forecasts
from freerun.report.markup import Raw, escape, paragraph
from freerun.report.readings import Runs, data_lines, examples, header, load, said

__all__ = ["write"]


def write(out: Path) -> Path:
    """Make ``out/report.html`` from a finished comparison; its path.

    One file with style sheet and drawings inside; readable without JavaScript, offline and on paper.

    Args:
        out: folder of the comparison, with results.json and the runs.

    Raises:
        UserError: no finished comparison, or a library of the extra ``report`` is missing.
    """
    results = read(out)
    runs = load(results, out)
    path = out / "report.html"
    partial = out / "report.html.part"
    partial.write_text(_page(results, runs, out), encoding="utf-8")
    partial.replace(path)
    return path


def _page(results: Mapping[str, Any], runs: Runs, out: Path) -> str:
    name = str(results["recipe"].get("name", "comparison"))
    style = (files("freerun.report") / "report.css").read_text(encoding="utf-8")
    parts = [
        f'<header><p class="kind">freerun compare</p><h1>{escape(name)}</h1>',
        paragraph(results["verdict"], "verdict"),
        "</header>",
        _section("Scores", sections.scores(results) + sections.reading_help(results)),
        _section("Differences", _differences(results)),
        _section("Forecasts", forecasts(results, out)),
        _section("Training", drawn.training(runs, told(results["recipe"]))),
        _section("What the histories held", drawn.entries(runs)),
        _section("Costs", sections.costs(results)),
        _section("Words on which arms differ", _words(results, out)),
        _section("What the models say", _said(results, out)),
        _section("Methods", sections.methods(results)),
        _section("Runs and data", sections.runs(results) + _data(results, runs, out)),
        _section("Recipe", sections.recipe(results)),
    ]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark">'
        f"<title>{escape(name)}: comparison</title><style>{style}</style></head>"
        f"<body><main>{''.join(parts)}</main></body></html>\n"
    )


def _section(title: str, content: str) -> str:
    return f"<section><h2>{escape(title)}</h2>{content}</section>" if content else ""


def _differences(results: Mapping[str, Any]) -> str:
    return drawn.differences(results) + sections.comparisons(results) if results["comparisons"] else ""


def _words(results: Mapping[str, Any], out: Path) -> str:
    line = min(results["comparisons"], key=lambda line: line["control"], default=None)
    found = examples(results, out, (line["method"], line["baseline"])) if line else None
    arms = list(dict.fromkeys(run["label"] for run in results["runs"]))
    return sections.differing_words(found, arms) if found else ""


def _said(results: Mapping[str, Any], out: Path) -> str:
    found = said(results, out)
    return sections.said(found, list(dict.fromkeys(run["label"] for run in results["runs"]))) if found else ""


def _data(results: Mapping[str, Any], runs: Runs, out: Path) -> Raw:
    first = header(runs)
    reported = told(results["recipe"])
    facts = {
        reported.examples: first.get("examples"),
        reported.items: results["test_words"] or None,
        "data fingerprint": results["runs"][0]["data"],
        "parameters": first.get("parameters"),
        **results["runs"][0]["versions"],
    }
    entries = "".join(
        f"<div><dt>{escape(name)}</dt><dd>{escape(_plain(value))}</dd></div>"
        for name, value in facts.items()
        if value is not None
    )
    said = "\n".join(data_lines(results, out))
    return Raw(f"<dl>{entries}</dl>" + (f"<pre>{escape(said)}</pre>" if said else ""))


def _plain(value: object) -> str:
    return f"{value:,}" if isinstance(value, int) else str(value)
