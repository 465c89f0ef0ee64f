"""The part of a diagnosis's page on tokens: measures with intervals, what errors cost, calibration, an oracle."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from freerun.report.charts import DASHES, Axes, Band, Line, arm, chart
from freerun.report.page import DASH, Raw, figure, grid, legend, notes, paragraph, table, thin_table

Result = Mapping[str, Any]
_KINDS = {
    "random": "any other symbol",
    "own": "sampled from the model's prediction",
    "confusion": "what the model makes of the same symbol elsewhere",
}
_RUNS = (("greedy", "greedy free run"), ("sampled", "sampled free run"))
TOO_FEW = "too few errors to say"


def interval(found: Result | None, factor: float = 1.0, sign: str = "") -> str:
    """An estimate with its 95 % interval in words; a dash where there is none.

    >>> interval({"value": 0.25, "low": 0.2, "high": 0.3, "count": 40}, 100, " %")
    '25 % [20, 30]'
    """
    if found is None or found["value"] is None:
        return DASH
    value, low, high = (None if each is None else _short(factor * each) for each in _ends(found))
    text = f"{value}{sign}"
    return (text if low is None else f"{text} [{low}, {high}]").replace("-", "\N{MINUS SIGN}")


def _short(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def _ends(found: Result) -> tuple[float | None, float | None, float | None]:
    return found["value"], found["low"], found["high"]


def ratio(found: Result | None) -> str:
    """How much likelier an error is after an error: the number with its interval, or why there is none.

    >>> few = {"value": 9.5, "low": 1.1, "high": 80.0, "count": 14}
    >>> ratio({"ratio": few, "enough": False})
    'too few errors to say (14)'
    >>> ratio({"ratio": {**few, "low": 0.8, "count": 30}, "enough": False})
    'not found to differ from 1: 9.5 [0.8, 80] (30 errors)'
    """
    if found is None:
        return DASH
    count = found["ratio"]["count"]
    if count < 20 or found["ratio"]["low"] is None:
        return f"{TOO_FEW} ({count:,})"
    text = f"{interval(found['ratio'])} ({count:,} errors)"
    return text if found["enough"] else f"not found to differ from 1: {text}"


def measure_rows(result: Result) -> list[Sequence[str]]:
    """The measures: name, teacher-forced, greedy and sampled free run, each with its interval."""
    tokens = result["tokens"]
    runs = [tokens[name] for name, _ in _RUNS]
    aligned = [run["aligned"] for run in runs]
    rows: list[Sequence[str]] = [("loss, nats", interval(tokens["loss"]), DASH, DASH)]
    if result["free_running"] is not None:
        rows += [
            (
                "edit errors",
                interval(tokens["edit_error"], 100, " %"),
                *(interval(each["edit_error"], 100, " %") for each in aligned),
            ),
            ("rows that equal gold", DASH, *(interval(each["exact"], 100, " %") for each in aligned)),
            (
                "rows that rejoin gold",
                DASH,
                *(f"{interval(e['rejoined'], 100, ' %')} of {e['rejoined']['count']:,}" for e in aligned),
            ),
            (
                "error after error, by position",
                ratio(tokens["after"]), ratio(tokens["after_free"]), DASH,
            ),
            (
                "error after error, by edits",
                DASH, *(ratio(each["after"]) for each in aligned),
            ),
        ]  # fmt: skip
    sides = [tokens["calibration"], *(run["calibration"] for run in runs)]
    rows.append(("calibration error", *(interval(each and each["ece"], 100, " points") for each in sides)))
    rows.append(("entropy, nats", *(interval(each["entropy"]) for each in (tokens, *runs))))
    repeated = [each["repetition"] for each in (tokens, *runs)]
    rows.append(("repeated 4-grams (gold first)", *(interval(each, 100, " %") for each in repeated)))
    if runs[0]["lengths"] is not None:
        for name, factor, sign in (("difference", 1, ""), ("longer", 100, " %"), ("shorter", 100, " %")):
            word = "length beyond gold" if name == "difference" else f"{name} than gold"
            rows.append((word, DASH, *(interval(run["lengths"][name], factor, sign) for run in runs)))
        rows.append(("without an end", DASH, *(interval(run["lengths"]["endless"], 100, " %") for run in runs)))
    return rows


def tokens_section(result: Result) -> Raw:
    """The measures as a table, and how to read them."""
    heads = ["measure", "teacher-forced", "greedy free run", "sampled free run"]
    caption = f"With 95 % intervals over {result['rows']:,} rows"
    lines = [
        "Loss and entropy: means over positions. Error after error: how many times as likely an error is after one "
        "as after a right symbol. Repeated: share of 4-grams that have come before in their row. "
        f'"{TOO_FEW}": fewer than 20 errors with an entry after them. A ratio whose interval includes 1 was not found '
        "to differ from 1.",
    ]
    if result["free_running"] is not None:
        needed = result["tokens"]["greedy"]["aligned"]["needed"]
        lines += [
            f"A row rejoins gold where, after its first error, {needed} symbols in a row are right (or all that gold "
            "has left), aligned by edit distance; rows whose first error is at the end are left out. Running freely, "
            "calibration counts a symbol as right where edit distance matches it with gold.",
            "Edit errors, in % of gold's symbols, are what freerun evaluate and compare count; teacher-forced: wrong "
            "choices, the end symbol's among them. The gap of this row has the sign that they report. Position by "
            "position a shifted free run counts as wrong throughout: there the gap is larger, and may have the other "
            "sign.",
        ]
    else:
        lines.append(
            "A free run of a text has no gold: errors, recovery and calibration of free runs are not defined. See "
            "below what errors in the prefix cost."
        )
    return Raw(table(heads, measure_rows(result), "numbers cards", caption) + notes(lines) + _further(result["tokens"]))


def _further(tokens: Result) -> str:
    texts: list[str] = []
    if (hidden := tokens["hidden"]) is not None:
        outcome = "differ" if hidden["p_value"] < 0.05 else "were not found to differ"
        texts.append(
            f"Hidden states on gold and on the model's own history {outcome}: MMD\N{SUPERSCRIPT TWO} "
            f"{interval(hidden['squared'])}, p = {hidden['p_value']:.2g} by {hidden['squared']['count']:,} exchanged "
            "pairs, one state a row."
        )
    if (eb_m := tokens["eb_m"]) is not None:
        texts.append(
            f"EB-M {interval(eb_m)}: how much more of the 4-grams of sampled continuations occur in other rows after "
            "half a row of gold than after half a row of the model's own; 1 is no exposure bias."
        )
    return "".join(paragraph(text, "note") for text in texts)


def corruption_section(result: Result) -> str:
    """Figures: loss after a prefix with errors, and by distance from a single error."""
    found: Sequence[Result] = result["tokens"]["corruption"]
    if not found:
        return paragraph("Not measured: rows are too short or too few (8 rows of 8 positions are needed).", "note")
    entries = [("arm", n, f"{each['kind']}: {_KINDS[each['kind']]}") for n, each in enumerate(found)]
    text = (
        "Errors are put into the first half of gold's history; the loss is that of the second half. Intervals are over "
        f"{found[0]['loss'][0]['count']:,} rows."
    )
    errors, distances = found[0]["errors"], range(1, 1 + len(found[0]["by_distance"]))
    drawn = [
        _curves("Loss after errors", found, "added", ("errors in the prefix", errors), "added loss, nats"),
        _curves("Loss after one error", found, "by_distance", ("positions after it", distances), "added loss, nats"),
    ]
    return legend(entries) + grid(drawn) + paragraph(text, "note")


def _curves(title: str, found: Sequence[Result], part: str, x: tuple[str, Sequence[int]], unit: str) -> Raw:
    lines: list[Line] = []
    bands: list[Band] = []
    rows: list[list[str]] = [[str(at)] for at in x[1]]
    for number, each in enumerate(found):
        values = [(float(at), *_ends(one)) for at, one in zip(x[1], each[part], strict=True)]
        lines.append(
            Line([(at, math.nan if v is None else v) for at, v, _, _ in values], arm(number), DASHES[number], 2.25)
        )
        bands.append(Band([(at, a, b) for at, _, a, b in values if a is not None and b is not None], arm(number)))
        for row, one in zip(rows, each[part], strict=True):
            row.append(interval(one))
    ends = "; ".join(f"{each['kind']}: {interval(each[part][-1])} at {x[1][-1]}" for each in found)
    data = thin_table([x[0], *(each["kind"] for each in found)], rows)
    texts = "Above that of the clean prefix; bands: 95 % intervals.", ends
    return figure(title, chart(lines, Axes(x[0], unit, zero=0.0), bands), texts, data)


def oracle_section(result: Result) -> str:
    """Figures of an oracle: ExAccErr by length, EB-C by position."""
    oracle = result["tokens"]["oracle"]
    if oracle is None:
        return ""
    length = len(oracle["ex_acc_err"])
    drawn = [
        _by_length("Excess accumulated error", oracle["ex_acc_err"], ("length", "ExAccErr, %"), 0.0),
        _by_length("Divergence, own over gold prefixes", oracle["eb_c"], ("position", "EB-C"), 1.0),
    ]
    text = (
        f"ExAccErr at length {length}: {interval(oracle['ex_acc_err'][-1], 1, ' %')}. 0: the model's divergence from "
        "the oracle does not grow on contexts that it samples itself. EB-C: the same position by position, where 1 is "
        "no difference."
    )
    return paragraph(text, "note") + grid(drawn)


def _by_length(title: str, found: Sequence[Result], names: tuple[str, str], rule: float) -> Raw:
    values = [(n + 1.0, *_ends(each)) for n, each in enumerate(found)]
    line = Line([(at, math.nan if v is None else v) for at, v, _, _ in values], arm(1), width=2.25)
    band = Band([(at, a, b) for at, _, a, b in values if a is not None and b is not None], arm(1))
    rows = [[f"{n + 1}", interval(each)] for n, each in enumerate(found)]
    texts = "Band: 95 % interval.", f"{interval(found[-1])} at {len(found)}."
    svg = chart([line], Axes(*names, zero=rule), [band])
    return figure(title, svg, texts, thin_table([names[0], names[1]], rows))


def calibration_section(result: Result) -> Raw:
    """The reliability diagram: accuracy by confidence, teacher-forced and of free runs."""
    tokens = result["tokens"]
    sides = [("teacher-forced", tokens["calibration"])]
    sides += [(name, tokens[run]["calibration"]) for run, name in _RUNS if tokens[run]["calibration"] is not None]
    lines = [Line([(0.0, 0.0), (100.0, 100.0)], dash=(1, 3), width=1.5)]
    rows: list[list[str]] = []
    for number, (name, each) in enumerate(sides):
        points = [(100 * sure, 100 * hits) for _, sure, hits in each["bins"]]
        lines.append(Line(points, arm(number), DASHES[number], 2.25))
        rows += [[name, f"{count:,}", f"{100 * a:.3g} %", f"{100 * b:.3g} %"] for count, a, b in each["bins"]]
    axes = Axes("confidence, %", "right, %", x_domain=(0.0, 100.0), y_domain=(0.0, 100.0))
    ends = "; ".join(f"{name}: ECE {interval(each['ece'], 100, ' points')}" for name, each in sides)
    data = table(["history", "choices", "confidence", "right"], rows, "numbers")
    texts = "Choices by the probability that the model gives them; on the dotted line it is right as often.", ends
    entries = [("arm", number, name) for number, (name, _) in enumerate(sides)]
    return Raw(legend(entries) + grid([figure("Calibration", chart(lines, axes), texts, data)]))


def headline(result: Result) -> str:
    """What errors lead to, in sentences: only what rests on errors enough."""
    tokens, lines = result["tokens"], list[str]()
    if result["free_running"] is None:
        sampled = tokens["sampled"]
        lines.append(
            f"Teacher-forced loss {interval(tokens['loss'])} nats a position, {result['rows']:,} rows; entropy of the "
            f"predictions {interval(tokens['entropy'])} on gold, {interval(sampled['entropy'])} on its own samples. "
            "Free runs of a text have no gold to be compared with."
        )
        if tokens["eb_m"] is not None and tokens["eb_m"]["low"] is not None:
            eb_m = tokens["eb_m"]
            outcome = "costs quality" if eb_m["low"] > 1 else "was not found to cost quality"
            lines.append(f"Its own prefix {outcome}: EB-M {interval(eb_m)}.")
    else:
        aligned = tokens["greedy"]["aligned"]
        after, rejoined = aligned["after"], aligned["rejoined"]
        word = "After an error the next symbol is wrong"
        if after["enough"]:
            times = interval(after["ratio"], 1, " times")
            errors = f"by edit distance ({after['ratio']['count']:,} errors)"
            lines.append(f"{word} {times} as often as after a right one, {errors}.")
        elif after["ratio"]["count"] < 20 or after["ratio"]["low"] is None:
            lines.append(f"Whether errors lead to errors: {ratio(after)}.")
        else:
            lines.append(f"{word} about as often as after a right one: {ratio(after)}.")
        if rejoined["count"] >= 20:
            lines.append(f"Of {rejoined['count']:,} rows with an error {interval(rejoined, 100, ' %')} rejoin gold.")
    if (oracle := tokens["oracle"]) is not None:
        found, length = oracle["ex_acc_err"][-1], len(oracle["ex_acc_err"])
        lines.append(f"ExAccErr at length {length}: {interval(found, 1, ' %')}.")
    return " ".join(lines)


def _value_rows(result: Result) -> list[Sequence[str]]:
    def spread(found: Result) -> str:
        low, middle, high = (
            "infinite" if found[each] is None else f"{found[each]:.3g}" for each in ("low", "median", "high")
        )
        return f"{middle} ({low} to {high})"

    sides = result["teacher_forced"], result["free_running"]
    rows = [
        (name, spread(sides[0][part]), spread(sides[1][part]), DASH)
        for name, part in (("NRMSE", "nrmse"), ("NRMSE, last tenth", "nrmse_last_tenth"))
    ]
    return [*rows, ("valid time, steps", DASH, spread(result["valid_time"]), DASH)]


def side_by_side(contents: Sequence[Result]) -> tuple[list[str], list[list[str]]]:
    """Several diagnoses of one kind: heads, and a row a measure and side, a column a run."""
    names = [str(each["run"]["name"]) for each in contents]
    values = contents[0]["diagnosis"]["kind"] != "ids"
    sides = ("teacher-forced", "free-running" if values else "greedy", "sampled")
    by_name: dict[str, list[str]] = {}
    for number, each in enumerate(contents):
        for measure, *cells in (_value_rows if values else measure_rows)(each["diagnosis"]):
            for side, cell in zip(sides, cells, strict=True):
                by_name.setdefault(f"{measure}: {side}", [DASH] * len(contents))[number] = cell
    rows = [[name, *cells] for name, cells in by_name.items() if any(cell != DASH for cell in cells)]
    return ["measure", *names], rows


def several(contents: Sequence[Result]) -> Raw:
    """``side_by_side`` as a table of the page."""
    heads, rows = side_by_side(contents)
    kind = "medians with quartiles over windows" if contents[0]["diagnosis"]["kind"] != "ids" else "95 % intervals"
    return table(heads, rows, "numbers cards", f"A column a run; {kind}")
