"""What stands beside results.json: a short report in Markdown, scores item by item as CSV, BibTeX of the methods."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from freerun.comparison.verdict import (
    cell,
    cells,
    columns,
    difference_text,
    interval_text,
    primary,
    references,
    task_report,
)
from freerun.metrics.table import Metric
from freerun.training.files import replace_file
from freerun.training.run_folder import items

OUTPUTS = ("report.md", "scores.csv", "references.bib")
_MOST_LINES = 59


def write(results: Mapping[str, Any], out: Path) -> None:
    """Write ``report.md``, ``scores.csv`` and ``references.bib``; those that would be empty are left out."""
    for name, text in zip(OUTPUTS, (markdown(results), scores_csv(results, out), bibtex(results)), strict=True):
        if text:
            replace_file(out / name, text.encode())


def signature(metric: Metric, results: Mapping[str, Any]) -> str:
    """Return what a score is and is of, in one line that stands beside the number in a paper."""
    data = next((run["data"] for run in results["runs"] if run["data"]), None) or "none"
    seeds = len({run["seed"] for run in results["runs"]})
    better = "higher" if metric.higher else "lower"
    facts = [f"better:{better}", f"scale:{metric.scale}", f"seeds:{seeds}", f"items:{results['test_items']}"]
    return "|".join([metric.name, metric.definition, *facts, f"data:{data}", f"freerun:{version('freerun')}"])


def markdown(results: Mapping[str, Any]) -> str:
    """Return the report in Markdown, in fewer than 60 lines: verdict, scores, differences, signatures."""
    report, found = task_report(results["recipe"]), results["verdict"]
    name, metric = results["recipe"].get("name", "comparison"), primary(results)
    lines = [f"# {_text(str(name))}: {found['answer']}", "", f"**{found['word']}**: {_text(found['reason'])}.", ""]
    lines += [_text(found["sentence"]), ""]
    named = columns(results)
    rows = [
        [arm, *(cell(scores.get(name), decimals, interval=name != "seconds") for name, _, decimals in named)]
        for arm, scores in cells(results).items()
    ]
    rows += [[name, *texts] for name, texts in references(results)]
    lines += [*_table(["arm", *(heading for _, heading, _ in named)], rows), ""]
    differences = [
        [
            f"{line['arm']} against {line['baseline']}",
            difference_text(line, report.metric(line["metric"])),
            "" if line["low"] is None else interval_text(line, report.metric(line["metric"])),
            f"{line['p_adjusted']:.3f}" if line["p_adjusted"] >= 0.001 else "< 0.001",
            line["verdict"] if line["step"] else f"{line['verdict']}, exploratory",
        ]
        for line in results["comparisons"]
        if line["metric"] == metric and found["word"] != "no verdict"
    ]
    if metric is not None and differences:
        heads = [f"difference in {report.metric(metric).title}", "mean", "interval", "p", "verdict"]
        lines += [*_table(heads, differences), ""]
    signed = results["scores"].get(metric)
    tail = [f"Score: `{signed}`", "", "Runs: results.json. Method of the verdict: docs/verdict.md of freerun."]
    tail = tail if signed else tail[2:]
    if len(lines) + len(tail) > _MOST_LINES:
        room = _MOST_LINES - len(tail) - 2
        lines = [*lines[:room], "", f"({len(lines) - room} more lines: results.json has everything)"]
    return "\n".join([*lines, *tail]) + "\n"


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    marks = ["---", *(["---:"] * (len(heads) - 1))]
    return ["| " + " | ".join(map(_text, row)) + " |" for row in (heads, marks, *rows)]


def _text(text: str) -> str:
    return text.replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;").replace("*", "\\*").replace("`", "\\`")


def scores_csv(results: Mapping[str, Any], out: Path) -> str:
    """Return arm, seed, item, score and weight of the score that the verdict is about, for other tools; "" without one.

    A ratio's score is the weighted mean of these. A score that only runs have is one line a run, without an item.
    """
    name = primary(results)
    if name is None:
        return ""
    metric = task_report(results["recipe"]).metric(name)
    rule, text = metric.items, io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["arm", "seed", "item", "score", "weight"])
    for run in results["runs"]:
        key = [run["label"], run["seed"]]
        if rule is None:
            writer.writerow([*key, "", run[metric.side].get(metric.score), 1])
            continue
        if not run["has_items"]:
            return ""
        for item in items(out / run["folder"]):
            part = item[rule.numerator]
            whole = item[rule.denominator] if rule.denominator else 1
            plain = part if rule.median or part is None else rule.value([item]) if whole else 0.0
            writer.writerow([*key, item["source"], plain, whole])
    return text.getvalue()


def bibtex(results: Mapping[str, Any]) -> str:
    """Return the BibTeX entries of the methods that took part, each once."""
    from freerun.methods import METHODS

    names = dict.fromkeys(run["method"] for run in results["runs"])
    entries = dict.fromkeys(METHODS[name].citation.bibtex.strip() for name in names if name in METHODS)
    return "\n\n".join(filter(None, entries)) + "\n" if any(entries) else ""
