"""diagnosis.html: how much the error of one run grows when its model is fed its own output."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from freerun.report.browser import browser, diagnosed_items
from freerun.report.charts import (
    DASHES,
    INK,
    SOFT,
    Axes,
    Band,
    Line,
    Panel,
    arm,
    baseline_name,
    chart,
    leads,
    panels,
    ranges,
    window_chart,
)
from freerun.report.diagnosis_tokens import (
    calibration_section,
    corruption_section,
    headline,
    oracle_section,
    several,
    tokens_section,
)
from freerun.report.page import (
    DASH,
    Raw,
    Values,
    facts,
    figure,
    grid,
    legend,
    notes,
    numbers,
    numbers_at,
    paragraph,
    preformatted,
    swatch,
    table,
    thin_table,
    write_page,
)

Result = Mapping[str, Any]
_SIDES = (("teacher_forced", "teacher-forced"), ("free_running", "free-running"))
_LEAD, _MINUS, _LAMBDA = "lead time, steps", "\N{MINUS SIGN}", "\N{GREEK SMALL LETTER LAMDA}"


def write_diagnosis(content: Result, path: Path) -> Path:
    """Write the page of a diagnosis, the content of diagnosis.json, of one run or several; return its path."""
    if "runs" in content:
        runs: Sequence[Result] = content["runs"]
        sections = [
            ("Side by side", several(runs)),
            *(each for n, run in enumerate(runs) for each in _sections(run, run["run"]["name"], n)),
        ]
        verdict = " ".join(
            f"{run['run']['name']}: {summary(run['diagnosis']).partition('. ')[0].rstrip('.')}." for run in runs
        )
        return write_page(path, "diagnose", ", ".join(str(run["run"]["name"]) for run in runs), verdict, sections)
    name = str(content["run"]["name"])
    return write_page(path, "diagnose", name, summary(content["diagnosis"]), _sections(content))


def _sections(content: Result, name: object = "", number: int = 0) -> list[tuple[str, str]]:
    run, result, data = content["run"], content["diagnosis"], content["data"]
    about = facts({"data": data["name"], **run["facts"], **run["versions"]}) + preformatted(run["signature"])
    if result["kind"] == "ids":
        gold, noun = result["free_running"] is not None, data["item_noun"]
        sections = [
            ("Wrong choices", _wrong(result) + _ids_reading(data["item_noun"]) if gold else ""),
            ("Measures", tokens_section(result)),
            ("By position", _by_position(result) if gold else ""),
            ("Examples", browser(rows, f"items-{number}") if (rows := diagnosed_items(result, noun)) else ""),
            ("Errors in the prefix", corruption_section(result)),
            ("Calibration", calibration_section(result)),
            ("Against an oracle", oracle_section(result)),
        ]
    else:
        sections = [
            ("Errors", _errors(result) + _reading(result)),
            ("Errors by lead time", _by_lead(result) + _growth(result)),
            ("Windows", _sample_windows(result)),
            ("Diverged free runs", _escaped(result)),
            ("A long free run", _climate(result)),
        ]
    named = [*sections, ("Run", about)]
    return [(f"{name}: {title[0].lower()}{title[1:]}" if name else title, part) for title, part in named]


def summary(result: Result) -> str:
    """Return the outcome in two or three sentences."""
    return (_ids_summary if result["kind"] == "ids" else _values_summary)(result)


def _values_summary(result: Result) -> str:
    forced, own = (result[side]["nrmse"]["median"] for side, _ in _SIDES)
    lines = [
        f"NRMSE in standard deviations: teacher-forced {_number(forced)} a step; free-running {_number(own)} over "
        f"{result['horizon']} steps{_times(forced, own)} (medians over {result['windows']:,} windows)."
    ]
    medians = {name: naive["nrmse"]["median"] for name, naive in result["naive"].items()}
    if medians:
        best = min(medians, key=lambda name: math.inf if medians[name] is None else medians[name])
        value = medians[best]
        worse = own is None or (value is not None and value <= own)
        than = "the free run is no better" if worse else "the free run is better"
        lines.append(f"The best naive baseline, {baseline_name(best)}, comes to {_number(value)}: {than}.")
    if result["diverged"]:
        first = min(lead for _, lead in result["diverged"])
        count = f"{len(result['diverged']):,} of {result['windows']:,}"
        lines.append(f"{count} free runs escape to infinity, the first at lead time {first}.")
    return " ".join(lines)


def _times(forced: float | None, own: float | None) -> str:
    if not forced or own is None:
        return ""
    ratio = own / forced
    if abs(ratio - 1) < 0.05:
        return ", about as much"
    return f", {ratio:.3g} times as much" if ratio > 1 else f", {ratio:.2g} times as much"


def _errors(result: Result) -> Raw:
    rows: list[list[object]] = []
    sides = [(swatch(number, name), result[side]) for number, (side, name) in enumerate(_SIDES)]
    for number, (name, naive) in enumerate(result["naive"].items(), start=2):
        sides.append((Raw(f"<em>{swatch(number, baseline_name(name))}</em>"), naive))
    for label, side in sides:
        times = _spread(result["valid_time"], "g", "\N{INFINITY}") if side is result["free_running"] else DASH
        rows.append([label, _spread(side["nrmse"]), _spread(side["nrmse_last_tenth"]), times])
    heads = ["history", "NRMSE", "NRMSE, last tenth", "valid time, steps"]
    caption = (
        f"Median over {result['windows']:,} windows of {result['horizon']} steps; below each the quartiles. "
        "In italics: naive baselines"
    )
    return table(heads, rows, "numbers cards", caption)


def _spread(result: Result, digits: str = ".3g", infinite: str = "infinite") -> Raw:
    low, middle, high = (_number(result[name], digits, infinite) for name in ("low", "median", "high"))
    return Raw(f"<span><b>{middle}</b> <small>{low} to {high}</small></span>")


def _number(value: float | None, digits: str = ".3g", infinite: str = "infinite") -> str:
    return infinite if value is None else f"{value:{digits}}"


def _reading(result: Result) -> Raw:
    through, exponent = result["valid_throughout"], result["growth"]["exponent"]
    valid = f"Valid time: steps before a free run's error first passes {result['threshold']:g}. "
    valid += f"In {through:,} of {result['windows']:,} windows it never does. " if through else ""
    if exponent:
        times = result["valid_time"]["median"] * exponent
        valid += f"The median is {times:.2f} Lyapunov times (one is 1/{_LAMBDA} = {1 / exponent:.4g} steps)."
    nrmse = (
        "NRMSE: root mean squared error over a window and its channels, in standard deviations of the training part "
        "(where there is none, of these targets); "
        "1 is the error of always predicting the mean. Teacher-forced: the history is gold, and the model predicts "
        "one step ahead; free-running: the history is its own output, as in use. The difference is what one-step "
        "training does not see."
    )
    return notes([nrmse, valid])


def _growth(result: Result) -> Raw:
    grown, ceiling = result["growth"], f"{result['threshold']:g}"
    text = f"The free-running error does not stay below {ceiling} for three steps: its growth cannot be fitted."
    if grown["rate"] is not None:
        text = f"While the free-running error is below {ceiling} (lead times 1 to {grown['fitted']}) it grows as "
        text += f"exp({grown['rate']:.3g} t)."
    if grown["rate"] is not None and grown["exponent"]:
        text += (
            f" The system's largest Lyapunov exponent is {grown['exponent']:.3g} a step: any small error grows at that "
            "rate, even a perfect model's. What lies above the dotted line is due to the model."
        )
    return paragraph(text, "note")


def _escaped(result: Result) -> str:
    gone: Sequence[Sequence[int]] = result["diverged"]
    if not gone:
        return ""
    left = result["free_running"]["left"]
    text = (
        "Not finite, or beyond a million standard deviations, from these lead times on. No average holds them: medians "
        f"count them as infinite, root mean squares are over the {left[-1]:,} of {result['windows']:,} windows left at "
        "the end."
    )
    rows = [[f"{window:,}", f"{lead:,}"] for window, lead in gone[:12]]
    caption = "The first windows that escape" if len(gone) > 12 else "Windows that escape"
    return paragraph(text, "note") + table(["window", "lead time"], rows, "numbers", caption)


def _climate(result: Result) -> str:
    climate = result["climate"]
    if climate is None:
        return paragraph(f"Not measured: {result['climate_note']}.", "note") if result["climate_note"] else ""
    begin = (
        "The model continues from the first window, horizon after horizon; its history is the end of its own output. "
    )
    if climate["diverged_at"] is not None:
        text = f"It escapes at step {climate['diverged_at']:,} of {climate['steps']:,}: it has no climate."
        return paragraph(begin + text, "note")
    rows = [
        ["spread (gold's is 1)", _number(climate["spread"]), DASH],
        ["states (D_stsp, nats)", _number(climate["state"]), _number(climate["state_gold"])],
        ["frequencies (D_H, 0 to 1)", _number(climate["spectrum"]), _number(climate["spectrum_gold"])],
    ]
    caption = f"{climate['steps']:,} steps beside gold of the same length; 0 is equal, but for the spread"
    text = (
        "Spread: standard deviation of the run, divided by gold's. States: Kullback-Leibler divergence of the "
        f"histograms of {climate['space']}, {climate['bins']} bins each. Frequencies: Hellinger distance of smoothed "
        "power spectra, mean over channels; amplitudes do not enter. The run need not follow gold: it must visit the "
        "same states and oscillate at the same rates. The distance between gold's own halves shows the effect of "
        "chance alone, over half as many steps."
    )
    distances = table(["", "free run", "gold's halves"], rows, "numbers", caption)
    return distances + paragraph(begin + text, "note") + _climate_figures(climate)


def _by_lead(result: Result) -> Raw:
    """Draw errors by lead time in both ways, the signed gap, and growth beside the system's."""
    entries = [("arm", 0, "teacher-forced"), ("arm", 1, "free-running")]
    entries += [("arm", number, baseline_name(name)) for number, name in enumerate(result["naive"], start=2)]
    drawn = [_error_figure(result)]
    text = "Difference of the medians. Above zero free running is worse."
    gap, ratio = result["gap_by_horizon"], result["growth"]["ratio"]
    axes = Axes(_LEAD, f"free-running {_MINUS} teacher-forced", zero=0.0, y_domain=_domain(gap))
    drawn.append(_lead_figure("Signed gap", "gap", gap, axes, text))
    if result["growth"]["exponent"]:
        entries.append(("growth", 0, f"exp({_LAMBDA} t), as any small error grows"))
    if ratio:
        domain = _log_domain([*(value for value in ratio if value), 1.0])
        axes = Axes(_LEAD, "ratio", log=True, zero=1.0, y_domain=domain)
        text = f"error(t) / (error(1) exp({_LAMBDA}(t {_MINUS} 1))); 1 is a perfect model's growth."
        drawn.append(_lead_figure(f"Growth beside exp({_LAMBDA} t)", "ratio", ratio, axes, text))
    return Raw(legend(entries) + grid(drawn))


def _lead_figure(title: str, name: str, values: Values, axes: Axes, text: str) -> Raw:
    columns = {name: values}
    content = f"{numbers_at(columns, 0)} at lead time 1, {numbers_at(columns)} at {len(values)}."
    return figure(title, chart([Line(leads(values), arm(1), width=2.25)], axes), (text, content), numbers(columns))


def _error_figure(result: Result) -> Raw:
    forced, own = result["teacher_forced"], result["free_running"]
    columns = {"teacher-forced": forced["median"], "free-running": own["median"]}
    columns |= {baseline_name(name): naive["median"] for name, naive in result["naive"].items()}
    curves = [Line(leads(v), arm(n), DASHES[n % 6], 1.5, 0.9) for n, v in enumerate(columns.values())]
    lines = curves[2:]
    exponent, begin = result["growth"]["exponent"], own["median"][0]
    if exponent and begin:
        grown = [(t + 1.0, begin * math.exp(exponent * t)) for t in range(result["horizon"])]
        lines.append(Line(grown, INK, (1, 3), 1.5))
    lines += [replace(curve, width=2.25, opacity=1.0) for curve in curves[:2]]
    values = [value for curve in (*columns.values(), forced["low"], own["low"]) for value in curve if value]
    axes = Axes(_LEAD, "error, standard deviations", log=True, y_domain=_log_domain(values))
    content = f"At lead time 1: {numbers_at(columns, 0)}. At {result['horizon']}: {numbers_at(columns)}."
    text = "Median over windows; bands: quartiles. The scale is logarithmic."
    svg = chart(lines, axes, [_band(forced, arm(0)), _band(own, arm(1))])
    return figure("Error", svg, (text, content), numbers(columns))


def _log_domain(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values, default=0.1), max(values, default=1.0)
    # beyond a hundred standard deviations there is nothing more to read
    high = min(max(high, low * 1.5), 100.0) if low < 100 else high
    return max(low, high * 1e-6) / 1.15, high * 1.15


def _sample_windows(result: Result) -> Raw:
    """Draw complete windows: gold, teacher-forced and free-running, a panel a channel."""
    windows = result["sample_windows"]
    if not windows:
        return Raw("")
    entries = [("gold", 0, "gold"), ("arm", 0, "teacher-forced, one step ahead"), ("arm", 1, "free-running")]
    if windows[0]["bands"]:
        entries.append(("band", 1, "sampled free runs, 50 % and 90 %"))
    domains, channels = ranges(windows), result["channels"]
    note = f" The first {len(domains)} of {len(channels)} channels." if len(channels) > len(domains) else ""
    text = f"Evenly spaced windows, not chosen by hand. In the units of the data.{note}"
    styles = {
        "teacher-forced": Line((), arm(0), DASHES[0], 1.5),
        "free-running": Line((), arm(1), DASHES[1], 2.25),
    }
    drawn: list[Raw] = []
    for window in windows:
        levels = dict(window["bands"])
        bands = [(levels[a], levels[b], arm(1)) for a, b in ((0.05, 0.95), (0.25, 0.75)) if a in levels and b in levels]
        rows = {name: window[side] for side, name in _SIDES}
        svg, columns = window_chart(window, channels, domains, rows, styles, bands=bands)
        gone = f"The free run escapes at lead time {window['diverged_at']}." if window["diverged_at"] else ""
        texts = gone, f"At the last step: {numbers_at(columns)}. {gone}"
        drawn.append(figure(f"Window {window['window']:,}", svg, texts, numbers(columns)))
    return Raw(paragraph(text, "note") + legend(entries) + grid(drawn))


def _climate_figures(measured: Result) -> Raw:
    """Draw spectra, and states in a plane."""
    frequencies, (gold, own) = measured["frequencies"], measured["powers"]
    lines = [
        Line([(x, math.nan if y is None else y) for x, y in zip(frequencies, power, strict=True)], colour, dash, 2)
        for power, colour, dash in ((gold, INK, (1, 0)), (own, arm(1), DASHES[1]))
    ]
    values = [value for value in (*gold, *own) if value]
    domain = max(min(values), max(values) * 1e-5), max(values) * 1.3
    axes = Axes("frequency, cycles a step", "share of the power", log=True, y_domain=domain)
    peak = [frequencies[max(range(len(power)), key=lambda n: power[n] or 0.0)] for power in (gold, own)]
    content = f"The largest share of gold lies at {peak[0]:.3g} cycles a step, that of the free run at {peak[1]:.3g}."
    listed = numbers({"gold": gold, "free run": own}, ("frequency", [f"{f:.4g}" for f in frequencies]))
    text = f"Smoothed over {measured['smoothing']:.3g} frequencies; where 99.9 % of gold's power lies."
    drawn = [figure("Power spectrum", chart(lines, axes), (text, content), listed), _states(measured)]
    return Raw(legend([("gold", 0, "gold"), ("arm", 1, "free run")]) + grid(drawn))


def _states(measured: Result) -> Raw:
    gold, own = measured["points"]
    x, y = (_domain([point[axis] for point in (*gold, *own)]) for axis in (0, 1))
    first, second = measured["axes"]
    drawn = [
        Panel([Line(points, colour, width=0.8, opacity=0.8)], (), Axes(first, title, x_domain=x, y_domain=y))
        for points, colour, title in ((gold, INK, second), (own, arm(1), ""))
    ]
    spans = [
        [f"{min(p[axis] for p in points):.3g} to {max(p[axis] for p in points):.3g}" for axis in (0, 1)]
        for points in (gold, own)
    ]
    ranges = table(["", first, second], [["gold, range", *spans[0]], ["free run, range", *spans[1]]], "numbers")
    text = f"The last {len(own):,} states. Left: gold. Right: the free run."
    content = (
        f"{first}: gold {spans[0][0]}, free run {spans[1][0]}. {second}: gold {spans[0][1]}, free run {spans[1][1]}."
    )
    return figure("States", panels(drawn, across=True), (text, content), ranges)


def _band(side: Result, colour: str) -> Band:
    # an infinite quartile reaches to the edge
    rows = [
        (n + 1.0, low, math.inf if high is None else high)
        for n, (low, high) in enumerate(zip(side["low"], side["high"], strict=True))
        if low is not None
    ]
    return Band(rows, colour)


def _domain(values: Values) -> tuple[float, float] | None:
    finite = [value for value in values if value is not None]
    if not finite:
        return None
    low, high = min(0.0, *finite), max(finite)
    room = 0.06 * ((high - low) or 1.0)
    return low - room, high + room


_FEW_ROWS = 20
"""Rows with an error below which no outcome rests on them."""


def _ids_summary(result: Result) -> str:
    if result["free_running"] is None:
        return headline(result)
    gap, rows = result["gap"], result["rows"]
    forced, own = (f"{_percent(result[side]['wrong'])} ({result[side]['errors']:,})" for side, _ in _SIDES)
    entries = sum(result["left"])
    counted = f"Free-running, {own} of {entries:,} choices are wrong; teacher-forced, {forced}"
    if gap["rows"] < _FEW_ROWS or gap["low"] is None:
        few = f"{gap['rows']:,} of {rows:,} rows have an error"
        return (
            f"{counted}. Whether the model suffers from exposure bias: too few errors to say, {few}. {headline(result)}"
        )
    points = f"{100 * abs(gap['gap']):.3g} points {'more' if gap['gap'] >= 0 else 'fewer'}"
    ends = " to ".join(f"{100 * gap[end]:+.3g}".replace("-", _MINUS) for end in ("low", "high"))
    tokens = result["tokens"]
    shares = [each["edit_error"]["value"] for each in (tokens["greedy"]["aligned"], tokens)]
    edits = map(_percent, shares)
    if gap["low"] > 0 and shares[0] > shares[1]:
        outcome = f"The model suffers from exposure bias: {_worst(result)}"
    elif gap["low"] > 0:
        outcome = (
            f"Position by position the free run is worse, {_worst(result)}; by edit distance it is not: its errors "
            "shift what follows, and cost no further symbols"
        )
    else:
        outcome = "No exposure bias was found" if gap["high"] >= 0 else "The model is better on its own history"
    return (
        f"{counted}: {points} (95 % interval {ends} over {rows:,} rows). {outcome}. These count position by position, "
        "where one lost symbol shifts all after it; by edit distance, as freerun evaluate and compare count, errors "
        f"are {' of gold free-running and '.join(edits)} teacher-forced. {headline(result)}"
    )


def position_ranges(result: Result, most: int = 4) -> list[tuple[str, int, list[float]]]:
    """Ranges of positions of about as many entries each: their name, entries, and shares wrong on both sides.

    >>> sides = {side: {"wrong_by_position": [0.0, 0.5, 1.0]} for side in ("teacher_forced", "free_running")}
    >>> position_ranges({"left": (4, 2, 2), **sides}, most=2)
    [('1', 4, [0.0, 0.0]), ('2 to 3', 4, [0.75, 0.75])]
    """
    left, total = result["left"], sum(result["left"])
    parts: list[list[int]] = [[]]
    for position in range(len(left)):
        if parts[-1] and sum(left[:position]) * most >= total * len(parts):
            parts.append([])
        parts[-1].append(position)
    found: list[tuple[str, int, list[float]]] = []
    for part in parts:
        entries = sum(left[n] for n in part)
        if entries:
            wrong = [sum((result[side]["wrong_by_position"][n] or 0) * left[n] for n in part) for side, _ in _SIDES]
            name = f"{part[0] + 1}" if len(part) == 1 else f"{part[0] + 1} to {part[-1] + 1}"
            found.append((name, entries, [each / entries for each in wrong]))
    return found


def _worst(result: Result) -> str:
    name, _, (forced, own) = max(position_ranges(result), key=lambda each: each[2][1] - each[2][0])
    where = f"positions {name}" if " " in name else f"position {name}"
    return f"most at {where}, {_percent(own)} free-running against {_percent(forced)}"


def _ratio(after: Result) -> float | None:
    if after["after_error"] is None or not after["after_correct"]:
        return None
    return after["after_error"] / after["after_correct"]


def _wrong(result: Result) -> Raw:
    rows: list[list[object]] = []
    for number, (side, name) in enumerate(_SIDES):
        after = result[side]["after"]
        ratio = _ratio(after)
        rows.append(
            [
                swatch(number, name),
                Raw(f"<span><b>{_percent(result[side]['wrong'])}</b> <small>{result[side]['errors']:,}</small></span>"),
                Raw(f"<span>{_percent(after['after_correct'])} <small>of {after['right']:,}</small></span>"),
                Raw(f"<span>{_percent(after['after_error'])} <small>of {after['wrong']:,}</small></span>"),
                DASH if ratio is None else f"{ratio:.2f}",
            ]
        )
    heads = ["history", "wrong", "after a right choice", "after a wrong choice", "ratio"]
    return table(heads, rows, "numbers cards", f"Choices against gold, position by position, {result['rows']:,} rows")


def _ids_reading(counted: str) -> Raw:
    lines = [
        "Teacher-forced: gold is the history of each choice. Free-running: the model's own choices are. Up to its "
        "first error a greedy model makes the same choices both ways, so all that differs comes after an error, and "
        f"the share of {counted} that are entirely right is the same.",
        "A free run with one symbol too many or too few is shifted, and position by position nearly all after that is "
        f"wrong: read this as how far a free run strays from gold, not as the error rate of its {counted}. Edit "
        "distance (PER, CER) counts the lost symbol once; where freerun evaluate and compare show a smaller gap than "
        "this page, or one of the other sign, such shifts are the difference.",
    ]
    return notes(lines)


def _percent(value: float | None) -> str:
    return DASH if value is None else f"{100 * value:.3g} %"


def _by_position(result: Result) -> str:
    """Draw wrong choices, their gap and first errors by position, as far as enough rows reach."""
    # at least 1 % of the rows, and ten of them; one position at least
    enough = max(10, 0.01 * result["rows"])
    count = max(1, sum(left >= enough for left in result["left"]))

    def drawing(
        title: str, texts: tuple[str, str], columns: Mapping[str, Values], lines: Sequence[Line], axes: Axes
    ) -> Raw:
        rows = [
            [str(n + 1), *(_percent(values[n]) for values in columns.values()), f"{result['left'][n]:,}"]
            for n in range(count)
        ]
        return figure(title, chart(lines, axes), texts, thin_table(["position", *columns, "rows"], rows))

    sides = {name: result[side]["wrong_by_position"][:count] for side, name in _SIDES}
    lines = [Line(_percents(values), arm(n), DASHES[n], 2.25) for n, values in enumerate(sides.values())]
    text = "Share of the rows that have an entry there."
    if less := result["positions"] - count:
        text += f" The last {less:,} positions, of few rows, are left out."
    ends = "; ".join(
        f"{name}: {_percent(v[0])} at position 1, {_percent(v[-1])} at {count}" for name, v in sides.items()
    )
    top = max([value or 0.0 for values in sides.values() for value in values] + [0.01])
    axes = Axes("position", "wrong, %", y_domain=(0.0, 105 * top))
    drawn = [drawing("Wrong choices", (text, ends), sides, lines, axes)]

    gap = result["gap_by_position"][:count]
    room = 5 * max([abs(value) for value in gap if value] + [0.01])
    low, high = (100 * end([0.0, *(value for value in gap if value)]) for end in (min, max))
    axes = Axes("position", "difference, points", zero=0.0, y_domain=(low - room, high + room))
    text = "Free-running less teacher-forced. Above zero free running is worse; at position 1 the histories are equal."
    ends = f"{_percent(gap[0])} at position 1, {_percent(gap[-1])} at {count}."
    drawn.append(drawing("Signed gap", (text, ends), {"gap": gap}, [Line(_percents(gap), arm(1), width=2.25)], axes))

    shares = [errors / result["rows"] for errors in result["first_error"][:count]]
    axes = Axes("position", "rows, %", y_domain=(0.0, 105 * max(*shares, 0.001)))
    right = result["rows"] - sum(result["first_error"])
    texts = "Where the first error is, the same in both ways.", f"{right:,} of {result['rows']:,} rows have no error."
    lines = [Line(_percents(shares), SOFT, width=2.25)]
    drawn.append(drawing("First errors", texts, {"first error here": shares}, lines, axes))
    return legend(("arm", number, name) for number, (_, name) in enumerate(_SIDES)) + grid(drawn)


def _percents(values: Values) -> list[tuple[float, float]]:
    return [(position, 100 * share) for position, share in leads(values)]
