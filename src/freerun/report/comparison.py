"""report.html of a comparison: its parts in order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import tomli_w

from freerun.compare.results import read
from freerun.compare.verdict import cell, cells, columns, interval_name, references, shown_verdict, signed, task_report
from freerun.metrics.table import Metric
from freerun.report import comparison_figures
from freerun.report.page import DASH, Raw, escape, facts, notes, paragraph, preformatted, swatch, table, write_page
from freerun.report.run_data import Runs, data_lines, examples, header, load, sample_outputs

_LONGEST_SIGNATURE = 160


def scores_section(results: Mapping[str, Any]) -> Raw:
    """Return the table of every arm's test scores with intervals."""
    arms = cells(results)
    rows = [
        [swatch(number, arm), *(_score(metrics.get(metric), places, metric) for metric, _, places in columns(results))]
        for number, (arm, metrics) in enumerate(arms.items())
    ]
    rows += [[Raw(f"<em>{name}</em>"), *map(Raw, texts)] for name, texts in references(results)]
    seeds = len({run["seed"] for run in results["runs"]})
    words = f", {results['test_items']:,} {task_report(results['recipe']).test_noun}" if results["test_items"] else ""
    caption = f"Test scores, mean of {seeds} seed{'s' * (seeds != 1)}{words}; below each its {interval_name(results)}"
    return table(["arm", *(heading for _, heading, _ in columns(results))], rows, "numbers cards", caption)


def _score(entry: Mapping[str, Any] | None, places: int, metric: str) -> Raw:
    mean = cell(entry, places, interval=False)
    if entry is None or entry["low"] is None or metric == "seconds":
        return Raw(f"<b>{mean}</b>")
    low, high = f"{entry['low']:,.{places}f}", f"{entry['high']:,.{places}f}"
    return Raw(f"<span><b>{mean}</b> <small>{low} to {high}</small></span>")


def comparisons(results: Mapping[str, Any]) -> Raw:
    """Return every paired difference with its verdict."""
    reported = task_report(results["recipe"])
    higher = [each.title for each in reported.compared if each.higher]
    rows = [
        [
            _compared(reported.metric(line["metric"])),
            f"{line['arm']} \N{MINUS SIGN} {line['baseline']}" + (" (its matched noise)" if line["control"] else ""),
            signed(line["difference"], reported.metric(line["metric"]).decimals),
            _interval(line, reported.metric(line["metric"])),
            _probability(line["probability_better"]),
            Raw(f'<span class="verdict-{line["verdict"].split()[0]}">{shown_verdict(results, line)}</span>'),
        ]
        for line in results["comparisons"]
    ]
    heads = ["score", "difference of", "mean", interval_name(results), "probability better", "verdict"]
    caption = f"Differences paired by seed and over {reported.test_noun}; below zero is better"
    return table(heads, rows, "cards", caption + (f", but above it for {' and '.join(higher)}" if higher else ""))


def _compared(measure: Metric) -> Raw:
    aside = "<small>exposure bias cannot move it</small>" if measure.fixed else ""
    return Raw(f"<span>{escape(measure.title)} {aside}</span>")


def _interval(line: Mapping[str, Any], measure: Metric) -> str:
    if line["low"] is None:
        return DASH
    low, high = (signed(line[end], measure.decimals) for end in ("low", "high"))
    return Raw(f'<span class="whole">{low} to {high}</span>')


def _probability(value: float | None) -> str:
    if value is None:
        return DASH
    return "> 0.99" if value > 0.99 else "< 0.01" if value < 0.01 else f"{value:.2f}"


def reading_help(results: Mapping[str, Any]) -> Raw:
    """Return what the numbers mean, in a few sentences."""
    reported = task_report(results["recipe"])
    lines = [
        *reported.notes,
        f"Intervals hold for other seeds and other {reported.test_noun}: variance over seeds, plus that of a bootstrap "
        f"over the {reported.item_noun}, less what both hold; Student's t with Satterthwaite's degrees of freedom. "
        "Verdicts are at 5 %, two-sided, adjusted by Holm for the comparisons of one score: an interval that just "
        "leaves out zero can stay not decided.",
    ]
    if len({run["seed"] for run in results["runs"]}) == 1:
        lines.append(f"With one seed the intervals hold for other {reported.item_noun} only, and nothing is decided.")
    return notes(lines)


def costs_section(results: Mapping[str, Any]) -> Raw:
    """Return a table of what each arm cost, in training time and decoder passes."""
    arms = cells(results)
    base = next((run["label"] for run in results["runs"] if run["method"] == "teacher_forcing"), next(iter(arms)))
    rows = [
        [
            swatch(number, arm),
            *(part for name in ("seconds", "cpu_seconds", "decoder_passes") for part in _cost(arms, arm, base, name)),
            cell(metrics.get("updates"), 0, interval=False),
        ]
        for number, (arm, metrics) in enumerate(arms.items())
    ]
    times = f"\N{MULTIPLICATION SIGN} {base}"
    heads = ["arm", "seconds", times, "CPU seconds", times, "decoder passes", times, "updates"]
    caption = "Cost of training a run (evaluation not counted), mean over seeds"
    return table(heads, rows, "numbers cards", caption)


def _cost(arms: Mapping[str, Mapping[str, Any]], arm: str, base: str, metric: str) -> tuple[str, str]:
    own, other = arms[arm].get(metric), arms[base].get(metric)
    ratio = f"{own['mean'] / other['mean']:.2f}" if own and other and other["mean"] else DASH
    return cell(own, 0, interval=False), ratio


def differing_words(results: Mapping[str, Any], out: Path, arms: Sequence[str]) -> str:
    """Words that one arm gets right and another wrong: how many, and some of them."""
    line = min(results["comparisons"], key=lambda line: line["control"], default=None)
    found = examples(results, out, (line["arm"], line["baseline"])) if line else None
    if found is None:
        return ""
    counts = table(
        ["seed", f"only {found.first} right", f"only {found.second} right", "both right", "both wrong"],
        [[t.seed, *(f"{n:,}" for n in (t.only_first, t.only_second, t.both, t.neither))] for t in found.tallies],
        "numbers",
        f"Test words, {found.first} against {found.second}",
    )
    rows = [
        [word, " / ".join(references), *(_output(*outputs[arm]) for arm in arms)]
        for word, references, outputs in found.words
    ]
    caption = f"As many words from either side, at even distances from the alphabetical list, seed {found.seed}"
    note = (
        "Decoded greedily, a word is right exactly where every teacher-forced choice is: which arm is right on which "
        "words shows what else sets them apart, and nothing of exposure bias."
    )
    return counts + paragraph(note, "note") + table(["word", "reference", *arms], rows, "cards words", caption)


def _output(output: str, wrong: bool) -> Raw:
    mark = "wrong" if wrong else "right"
    text = escape(output or "(nothing)")
    return Raw(f'<span class="{mark}"><span class="mark">{mark}</span> {text}</span>')


def sample_section(results: Mapping[str, Any], out: Path, arms: Sequence[str]) -> str:
    """Outputs of every arm for some of the test items."""
    found = sample_outputs(results, out)
    if found is None:
        return ""
    rows = [
        [_text(source), _text(reference), *(_text(outputs[arm]) for arm in arms)]
        for source, reference, outputs in found.rows
    ]
    caption = f"At even distances from the list, seed {found.seed}; nobody chose them"
    return table([found.heading, "reference", *arms], rows, "cards words", caption)


def _text(text: str) -> Raw:
    return Raw(f'<span class="text">{escape(text) or "(nothing)"}</span>')


def methods_section(results: Mapping[str, Any]) -> Raw:
    """Each method that took part: formula and where it comes from."""
    from freerun.methods import METHODS

    parts: list[str] = []
    for name in dict.fromkeys(run["method"] for run in results["runs"]):
        cls = METHODS.get(name)
        if cls is None:
            continue
        labels = ", ".join(dict.fromkeys(run["label"] for run in results["runs"] if run["method"] == name))
        heading = name if labels == name else f"{name} (arm {labels})"
        summary = paragraph(f"{heading}: {cls.summary}.", "method")
        parts += [summary, preformatted(cls.citation.formula), paragraph(cls.citation.reference, "note")]
    return Raw("".join(parts))


def runs_section(results: Mapping[str, Any]) -> Raw:
    """Return every run with its numbers and signature."""
    reported = task_report(results["recipe"])
    shown = [each for each in reported.compared if each.side != "gap"]
    rows = [
        [
            f"{run['label']}-{run['seed']}",
            *(_number(run[each.side].get(each.score), each.decimals) for each in shown),
            _number(run["seconds"], 0),
            _number(run["best"].get("step"), 0),
            Raw(f"<code>{escape(_short(run['signature']))}</code>"),
        ]
        for run in results["runs"]
    ]
    heads = ["run", *(each.heading for each in shown), "seconds", "best after", "signature"]
    return table(heads, rows, "cards", "Every run (test scores of the weights with the best dev score)")


def _number(value: float | None, places: int) -> str:
    return DASH if value is None else f"{value:,.{places}f}"


def _short(signature: str) -> str:
    if len(signature) <= _LONGEST_SIGNATURE:
        return signature
    return f"{signature[:_LONGEST_SIGNATURE]}... ({len(signature):,} characters; whole in results.json)"


def write(out: Path) -> Path:
    """Make ``out/report.html`` from a finished comparison and return its path."""
    results = read(out)
    runs = load(results, out)
    arms = list(runs)
    differences = comparison_figures.differences(results) + comparisons(results) if results["comparisons"] else ""
    sections = (
        ("Scores", scores_section(results) + reading_help(results)),
        ("Differences", differences),
        ("Forecasts", comparison_figures.forecasts(results, out)),
        ("Training", comparison_figures.training(runs, task_report(results["recipe"]))),
        ("Replaced entries", comparison_figures.entries(runs)),
        ("Costs", costs_section(results)),
        ("Words on which arms differ", differing_words(results, out, arms)),
        ("Sample outputs", sample_section(results, out, arms)),
        ("Methods", methods_section(results)),
        ("Runs and data", runs_section(results) + _data(results, runs, out)),
        ("Recipe", preformatted(tomli_w.dumps(dict(results["recipe"])))),
    )
    name = str(results["recipe"].get("name", "comparison"))
    return write_page(out / "report.html", "compare", name, results["verdict"], sections)


def _data(results: Mapping[str, Any], runs: Runs, out: Path) -> str:
    first, report = header(runs), task_report(results["recipe"])
    entries = {
        report.training_noun: first.get("examples"),
        report.test_noun: results["test_items"] or None,
        "data fingerprint": results["runs"][0]["data"],
        "parameters": first.get("parameters"),
        **results["runs"][0]["versions"],
    }
    lines = data_lines(results, out)
    return facts(entries) + (preformatted("\n".join(lines)) if lines else "")
