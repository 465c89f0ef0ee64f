"""report.html of a comparison: its parts in order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import tomli_w

from freerun.comparison.results import read
from freerun.comparison.verdict import (
    cell,
    cells,
    columns,
    difference_text,
    interval_name,
    interval_text,
    pair_text,
    references,
    task_report,
    verdict_text,
)
from freerun.report import comparison_figures
from freerun.report.browser import browser, compared_items, golds_of
from freerun.report.fed import fed_section
from freerun.report.page import (
    DASH,
    Raw,
    escape,
    facts,
    notes,
    paragraph,
    preformatted,
    snippet,
    swatch,
    table,
    write_page,
)
from freerun.report.run_data import Tested, data_lines, examples, header, load, test_items
from freerun.training.files import replace_file

_LONGEST_SIGNATURE = 160


def _scores_section(results: Mapping[str, Any]) -> Raw:
    """Return the table of every arm's test scores with intervals."""

    def score(entry: Mapping[str, Any] | None, decimals: int, metric: str) -> Raw:
        mean = cell(entry, decimals, interval=False)
        if entry is None or entry["low"] is None or metric == "seconds":
            return Raw(f"<b>{mean}</b>")
        low, high = (f"{entry[end]:,.{decimals}f}" for end in ("low", "high"))
        return Raw(f"<span><b>{mean}</b> <small>{low} to {high}</small></span>")

    names = columns(results)
    rows = [
        [swatch(number, arm), *(score(scores.get(metric), decimals, metric) for metric, _, decimals in names)]
        for number, (arm, scores) in enumerate(cells(results).items())
    ]
    rows += [[Raw(f"<em>{name}</em>"), *map(Raw, texts)] for name, texts in references(results)]
    caption = f"{_scores_caption(results)}; below each its {interval_name(results)}"
    return table(["arm", *(heading for _, heading, _ in names)], rows, "numbers cards", caption)


def notebook(results: Mapping[str, Any]) -> Raw:
    """Return the verdict, the scores and their differences as a notebook shows them."""
    names = columns(results)
    rows = [
        [arm, *(cell(scores.get(metric), decimals, interval=metric != "seconds") for metric, _, decimals in names)]
        for arm, scores in cells(results).items()
    ]
    rows += [[name, *texts] for name, texts in references(results)]
    scores = table(["arm", *(heading for _, heading, _ in names)], rows, "numbers", _scores_caption(results))
    differences = comparison_figures.differences(results) if results["comparisons"] else ""
    return snippet(paragraph(results["verdict"]["sentence"]) + scores + differences)


def _scores_caption(results: Mapping[str, Any]) -> str:
    seeds = len({run["seed"] for run in results["runs"]})
    words = f", {results['test_items']:,} {task_report(results['recipe']).test_noun}" if results["test_items"] else ""
    return f"Test scores, mean of {seeds} seed{'s' * (seeds != 1)}{words}"


def _comparisons(results: Mapping[str, Any]) -> Raw:
    """Return every paired difference with its verdict."""
    report = task_report(results["recipe"])
    rows: list[list[str]] = []
    for line in results["comparisons"]:
        metric = report.metric(line["metric"])
        aside = "<small>exposure bias cannot move it</small>" if metric.fixed else ""
        interval = DASH
        if line["low"] is not None:
            interval = Raw(f'<span class="whole">{interval_text(line, metric)}</span>')
        rows.append(
            [
                Raw(f"<span>{escape(metric.title)} {aside}</span>"),
                pair_text(line) + (" (its control)" if line["control"] else ""),
                difference_text(line, metric),
                interval,
                _probability(line["probability_better"]),
                Raw(f'<span class="verdict-{line["verdict"].split()[0]}">{verdict_text(results, line)}</span>'),
            ]
        )
    logs = {line["scale"] == "log" for line in results["comparisons"]}
    equal = " and ".join(("zero", "\N{MULTIPLICATION SIGN}1")[log] for log in sorted(logs))
    of = " or ".join(("difference", "ratio")[log] for log in sorted(logs))
    heads = ["score", f"{of} of", "mean", interval_name(results), "probability better", "verdict"]
    caption = f"Paired by seed and over {report.test_noun}; below {equal} is better"
    higher = " and ".join(each.title for each in report.compared if each.higher)
    return table(heads, rows, "cards", caption + (f", but above it for {higher}" if higher else ""))


def _probability(value: float | None) -> str:
    if value is None:
        return DASH
    return "> 0.99" if value > 0.99 else "< 0.01" if value < 0.01 else f"{value:.2f}"


def _reading_help(results: Mapping[str, Any]) -> Raw:
    """Return what the numbers mean, in a few sentences."""
    report = task_report(results["recipe"])
    lines = [
        *report.notes_of([name for name, *_ in columns(results)]),
        f"Intervals hold for other seeds and other {report.test_noun}: variance over seeds, pooled over up to three "
        f"arms, plus that of a bootstrap over the {report.item_noun}, less their overlap; Student's t with "
        "Satterthwaite's degrees of freedom. The verdict is a fixed sequence of tests at 5 %, two-sided, on one score: "
        "the first method against the baseline and, only if it is better, against its controls. All else is "
        "exploratory: a family a score, tested by Holm's rule, with intervals at the level of their test.",
    ]
    if len({run["seed"] for run in results["runs"]}) == 1:
        lines.append(f"With one seed the intervals hold for other {report.item_noun} only, and nothing is decided.")
    return notes(lines)


def _costs_section(results: Mapping[str, Any]) -> Raw:
    """Return a table of what each arm cost, in training time and decoder passes."""
    arms = cells(results)
    base = next((run["label"] for run in results["runs"] if run["method"] == "teacher_forcing"), next(iter(arms)))
    rows: list[list[str]] = []
    for number, (arm, scores) in enumerate(arms.items()):
        row: list[str] = [swatch(number, arm)]
        for name in ("seconds", "cpu_seconds", "decoder_passes"):
            own, other = scores.get(name), arms[base].get(name)
            ratio = f"{own['mean'] / other['mean']:.2f}" if own and other and other["mean"] else DASH
            row += [cell(own, 0, interval=False), ratio]
        rows.append([*row, cell(scores.get("updates"), 0, interval=False)])
    times = f"\N{MULTIPLICATION SIGN} {base}"
    heads = ["arm", "seconds", times, "CPU seconds", times, "decoder passes", times, "updates"]
    caption = "Cost of training a run (evaluation not counted), mean over seeds"
    return table(heads, rows, "numbers cards", caption)


def _differing_words(results: Mapping[str, Any], tested: Tested, arms: Sequence[str]) -> str:
    """Words that one arm gets right and another wrong: how many, and some of them."""
    line = min(results["comparisons"], key=lambda line: line["control"], default=None)
    differing = examples(tested, (line["arm"], line["baseline"])) if line else None
    if line is None or differing is None:
        return ""
    first, second = line["arm"], line["baseline"]
    counts = table(
        ["seed", f"only {first} right", f"only {second} right", "both right", "both wrong"],
        [[seed, *(f"{n:,}" for n in counts)] for seed, counts in differing.counts.items()],
        "numbers",
        f"Test words, {first} against {second}",
    )
    rows = [
        [word, " / ".join(references), *(_marked(*outputs[arm]) for arm in arms)]
        for word, references, outputs in differing.words
    ]
    caption = f"As many words from either side, evenly spaced in alphabetical order, seed {differing.seed}"
    note = (
        "Decoded greedily, a word is right exactly where every teacher-forced choice is: which arm is right on which "
        "words shows what else sets them apart, and nothing of exposure bias."
    )
    return counts + paragraph(note, "note") + table(["word", "reference", *arms], rows, "cards words", caption)


def _marked(output: str, wrong: bool) -> Raw:
    mark = "wrong" if wrong else "right"
    text = escape(output or "(nothing)")
    return Raw(f'<span class="{mark}"><span class="mark">{mark}</span> {text}</span>')


def _methods_section(results: Mapping[str, Any]) -> Raw:
    """Each method that took part: formula and where it comes from."""
    from freerun.methods import METHODS

    parts: list[str] = []
    for name in dict.fromkeys(run["method"] for run in results["runs"]):
        if name not in METHODS:
            continue
        cls = METHODS[name]
        labels = ", ".join(dict.fromkeys(run["label"] for run in results["runs"] if run["method"] == name))
        heading = name if labels == name else f"{name} (arm {labels})"
        summary = paragraph(f"{heading}: {cls.summary}.", "method")
        parts += [summary, preformatted(cls.citation.formula), paragraph(cls.citation.reference, "note")]
    return Raw("".join(parts))


def _runs_section(results: Mapping[str, Any]) -> Raw:
    """Return every run with its numbers and signature."""

    def number(value: float | None, decimals: int) -> str:
        return DASH if value is None else f"{value:,.{decimals}f}"

    def short(signature: str) -> str:
        if len(signature) <= _LONGEST_SIGNATURE:
            return signature
        return f"{signature[:_LONGEST_SIGNATURE]}... ({len(signature):,} characters; whole in results.json)"

    there = {name for name, *_ in columns(results)}
    scores = [each for each in task_report(results["recipe"]).compared if each.side != "gap" and each.name in there]
    rows = [
        [
            f"{run['label']}-{run['seed']}",
            *(number(run[each.side].get(each.score), each.decimals) for each in scores),
            number(run["seconds"], 0),
            number(run["best"].get("step"), 0),
            Raw(f"<code>{escape(short(run['signature']))}</code>"),
        ]
        for run in results["runs"]
    ]
    heads = ["run", *(each.heading for each in scores), "seconds", "best after", "signature"]
    return table(heads, rows, "cards", "Every run (test scores of the weights with the best dev score)")


_SIGNS = {"yes": "\N{CHECK MARK}", "no": "\N{MULTIPLICATION X}", "not decided": "?"}


def verdict_box(found: Mapping[str, Any]) -> Raw:
    """Return the verdict at a glance: the question, yes, no or not decided with the reason, and all of it in words."""
    answer = str(found["answer"])
    question = "Nothing was compared."
    if found["arm"] is not None:
        question = f"Did {found['arm']} pay, against {found['baseline']}?"
    word = Raw(f"<strong>{answer.capitalize()}</strong>")
    sign = f'<span class="sign" aria-hidden="true">{_SIGNS[answer]}</span>'
    reason = escape(f": {found['reason']}" if found["reason"] else "")
    # what needs no training is the first sentence
    first, rest = (
        str(found["sentence"]).partition(". ")[::2]
        if found["naive"] or found.get("unlearnt")
        else ("", found["sentence"])
    )
    naive = paragraph(f"{first}.", "beaten") if first else ""
    return Raw(
        f'<div class="verdict answer-{answer.split(maxsplit=1)[0]}">{paragraph(question, "question")}'
        f"{paragraph(Raw(f'{sign} {word}{reason}'), 'answer')}{naive}{paragraph(rest)}</div>"
    )


def _hypotheses(results: Mapping[str, Any], tested: Tested, out: Path) -> Raw:
    """Write each run's outputs and the references as text, an item a line; return where they are."""
    if not task_report(results["recipe"]).outputs:
        return Raw("")
    golds = [golds_of(item) for item in next(iter(tested.values()))]
    files = {Path(run["folder"]).name: tested[run["label"], run["seed"]] for run in results["runs"]}
    texts = {f"{name}.txt": [str(item["output"]) for item in items] for name, items in files.items()}
    names = ["references.txt", *(f"references-{n}.txt" for n in range(2, 1 + max(map(len, golds))))]
    # an item with fewer references repeats its first, which changes no score
    texts |= {name: [gold[n] if n < len(gold) else gold[0] for gold in golds] for n, name in enumerate(names)}
    (out / "hypotheses").mkdir(exist_ok=True)
    for name, lines in texts.items():
        content = "".join(f"{' '.join(line.split())}\n" for line in lines)
        replace_file(out / "hypotheses" / name, content.encode())
    where = f"Outputs, an item a line: hypotheses/{next(iter(texts))} and so on; references: hypotheses/{names[0]}"
    where += f" to {names[-1]}" if names[1:] else ""
    return paragraph(f"{where}.", "note")


def write(out: Path) -> Path:
    """Make ``out/report.html`` from a finished comparison, and its outputs as text; return the page's path."""
    results = read(out)
    runs, tested = load(results, out), test_items(results, out)
    report = task_report(results["recipe"])
    differences = comparison_figures.differences(results) + _comparisons(results) if results["comparisons"] else ""
    items = compared_items(report, tested)
    browsed = browser(items, "items") + _hypotheses(results, tested, out) if items else ""
    sections = (
        ("Scores", _scores_section(results) + _reading_help(results)),
        ("Differences", differences),
        ("Forecasts", comparison_figures.forecasts(results, out)),
        ("Examples", browsed),
        ("Fed in training", fed_section(results, out)),
        ("Training", comparison_figures.training(results, runs)),
        ("Replaced entries", comparison_figures.entries(runs)),
        ("Costs", _costs_section(results)),
        ("Words on which arms differ", _differing_words(results, tested, list(runs))),
        ("Methods", _methods_section(results)),
        ("Runs and data", _runs_section(results) + _data(results, out, header(runs))),
        ("Recipe", preformatted(tomli_w.dumps(dict(results["recipe"])))),
    )
    name = str(results["recipe"].get("name", "comparison"))
    return write_page(out / "report.html", "compare", name, verdict_box(results["verdict"]), sections)


def _data(results: Mapping[str, Any], out: Path, first: Mapping[str, Any]) -> str:
    report = task_report(results["recipe"])
    entries = {
        report.training_noun: first.get("examples"),
        report.test_noun: results["test_items"] or None,
        "data fingerprint": results["runs"][0]["data"],
        "parameters": first.get("parameters"),
        **results["runs"][0]["versions"],
    }
    printed = "\n".join(data_lines(results, out))
    table_of_items = "Scores of every arm, seed and item: scores.csv." if (out / "scores.csv").exists() else ""
    return (
        facts(entries)
        + paragraph(table_of_items, "note") * bool(table_of_items)
        + preformatted(printed) * bool(printed)
    )
