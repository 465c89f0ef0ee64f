"""diagnosis.html: how much the error of one run grows when its model is fed its own output."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from freerun.report import diagnosis_figures as figures
from freerun.report.diagnosis_figures import SIDES, percent
from freerun.report.page import DASH, Raw, facts, notes, paragraph, preformatted, swatch, table, write_page

Found = Mapping[str, Any]


def write_diagnosis(found: Found, path: Path) -> Path:
    """Write the page of a diagnosis, the content of diagnosis.json; return its path."""
    run, ids = found["run"], found["diagnosis"]["kind"] == "ids"
    about = facts({"data": found["data"]["name"], **run["facts"], **run["versions"]}) + preformatted(run["signature"])
    sections = [*(_ids_sections if ids else _values_sections)(found), ("Run", about)]
    return write_page(path, "diagnose", str(run["name"]), summary(found["diagnosis"]), sections)


def summary(found: Found) -> str:
    """Return the outcome in two or three sentences."""
    return (_ids_summary if found["kind"] == "ids" else _values_summary)(found)


def _values_summary(found: Found) -> str:
    """Return the outcome in two or three sentences."""
    forced, own = (found[side]["nrmse"]["median"] for side, _ in SIDES)
    lines = [
        f"NRMSE in standard deviations: teacher-forced {_number(forced)} a step; free-running {_number(own)} over "
        f"{found['horizon']} steps{_times(forced, own)} (medians over {found['windows']:,} windows)."
    ]
    best = min(found["naive"].items(), key=lambda each: _ordered(each[1]["nrmse"]["median"]), default=None)
    if best is not None:
        value = best[1]["nrmse"]["median"]
        worse = own is None or (value is not None and value <= own)
        than = "the free run is no better" if worse else "the free run is better"
        lines.append(f"The best naive baseline, {figures.words(best[0])}, comes to {_number(value)}: {than}.")
    if found["diverged"]:
        first = min(lead for _, lead in found["diverged"])
        lines.append(
            f"{len(found['diverged']):,} of {found['windows']:,} free runs escape to infinity, the first at lead time "
            f"{first}."
        )
    return " ".join(lines)


def _times(forced: float | None, own: float | None) -> str:
    if not forced or own is None:
        return ""
    return f", {own / forced:.3g} times as much" if own >= forced else f", {own / forced:.2g} of it"


def _ordered(value: float | None) -> float:
    return float("inf") if value is None else value


def _values_sections(content: Found) -> list[tuple[str, str]]:
    """Titles and contents, in order."""
    found = content["diagnosis"]
    return [
        ("Errors", _errors(found) + _reading(found)),
        ("Errors by lead time", figures.by_lead(found) + _growth(found)),
        ("Windows", figures.sample_windows(found)),
        ("Diverged free runs", _escaped(found)),
        ("A long free run", _climate(found)),
    ]


def _errors(found: Found) -> Raw:
    rows: list[list[object]] = []
    for number, (side, name) in enumerate(SIDES):
        times = _spread(found["valid_time"], "steps") if side == "free_running" else DASH
        rows.append(
            [swatch(number, name), _spread(found[side]["nrmse"]), _spread(found[side]["nrmse_last_tenth"]), times]
        )
    for number, (name, naive) in enumerate(found["naive"].items()):
        label = Raw(f"<em>{swatch(number + 2, figures.words(name))}</em>")
        rows.append([label, _spread(naive["nrmse"]), _spread(naive["nrmse_last_tenth"]), DASH])
    heads = ["history", "NRMSE", "NRMSE, last tenth", "valid time, steps"]
    caption = (
        f"Median over {found['windows']:,} windows of {found['horizon']} steps; below each the quartiles. In italics: "
        "naive baselines"
    )
    return table(heads, rows, "numbers cards", caption)


def _spread(found: Found, unit: str = "") -> Raw:
    show = _whole if unit else _number
    low, middle, high = (show(found[name]) for name in ("low", "median", "high"))
    return Raw(f"<span><b>{middle}</b> <small>{low} to {high}</small></span>")


def _whole(value: float | None) -> str:
    return "\N{INFINITY}" if value is None else f"{value:g}"


def _number(value: float | None) -> str:
    return "infinite" if value is None else f"{value:.3g}"


def _reading(found: Found) -> Raw:
    lines = [
        "NRMSE: root mean squared error over a window and its channels, in standard deviations of the training part; "
        "1 is the error of always predicting the mean. Teacher-forced: the history is gold, and the model predicts "
        "one step ahead; free-running: the history is its own output, as in use. The difference is what one-step "
        "training does not see.",
        f"Valid time: steps before a free run's error first passes {found['threshold']:g}. {_valid(found)}",
    ]
    return notes(lines)


def _valid(found: Found) -> str:
    through = found["valid_throughout"]
    text = f"In {through:,} of {found['windows']:,} windows it never does. " if through else ""
    exponent, middle = found["growth"]["exponent"], found["valid_time"]["median"]
    if exponent:
        text += (
            f"The median is {middle * exponent:.2f} Lyapunov times (one is 1/\N{GREEK SMALL LETTER LAMDA} = "
            f"{1 / exponent:.4g} steps)."
        )
    return text


def _growth(found: Found) -> Raw:
    grown = found["growth"]
    if grown["rate"] is None:
        text = (
            f"The free-running error does not stay below {found['threshold']:g} for three steps: its growth cannot be "
            "fitted."
        )
        return paragraph(text, "note")
    text = (
        f"While the free-running error is below {found['threshold']:g} (lead times 1 to {grown['fitted']}) it grows as "
        f"exp({grown['rate']:.3g} t)."
    )
    if grown["exponent"]:
        text += (
            f" The system's largest Lyapunov exponent is {grown['exponent']:.3g} a step: any small error grows so, a "
            "perfect model's too. What lies above the dotted line is the model's own."
        )
    return paragraph(text, "note")


def _escaped(found: Found) -> str:
    gone: Sequence[Sequence[int]] = found["diverged"]
    if not gone:
        return ""
    left = found["free_running"]["left"]
    text = (
        "Not finite, or beyond a million standard deviations, from these lead times on. No average holds them: medians "
        f"count them as infinite, root mean squares are over the {left[-1]:,} of {found['windows']:,} windows left at "
        "the end."
    )
    rows = [[f"{window:,}", f"{lead:,}"] for window, lead in gone[:12]]
    caption = "The first windows that escape" if len(gone) > 12 else "Windows that escape"
    return paragraph(text, "note") + table(["window", "lead time"], rows, "numbers", caption)


def _climate(found: Found) -> str:
    climate = found["climate"]
    if climate is None:
        return paragraph(f"Not measured: {found['climate_note']}.", "note") if found["climate_note"] else ""
    begin = "The model goes on from the first window, horizon after horizon; its history is the end of its own output. "
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
        "Spread: standard deviation of the run, in those of gold. States: Kullback-Leibler divergence of the "
        f"histograms of {climate['space']}, {climate['bins']} bins each. Frequencies: Hellinger distance of smoothed "
        "power spectra, mean over channels; how strong the swings are does not enter. They do not ask that the run "
        "follow gold, only that it live in the same places and swing at the same rates. Gold's own first half against "
        "its second shows what chance alone comes to in half as many steps."
    )
    numbers = table(["", "free run", "gold's halves"], rows, "numbers", caption)
    return numbers + paragraph(begin + text, "note") + figures.climate(found)


def _ids_summary(found: Found) -> str:
    """Return the outcome in two sentences."""
    forced, own = (found[side]["wrong"] for side, _ in SIDES)
    text = (
        f"Teacher-forced, {percent(forced)} of the model's choices are wrong; free-running, {percent(own)}, both "
        f"counted position by position ({found['rows']:,} rows), where one lost symbol shifts all after it. freerun "
        "evaluate and compare score free runs otherwise: there the gap can be smaller or have the other sign."
    )
    ratios = [_ratio(found[side]["after"]) for side, _ in SIDES]
    if None not in ratios:
        text += (
            f" After a wrong choice the next is wrong {ratios[0]:.2g} times as often as after a right one "
            f"teacher-forced, and {ratios[1]:.2g} times as often free-running."
        )
    return text


def _ratio(after: Found) -> float | None:
    if after["after_error"] is None or not after["after_correct"]:
        return None
    return after["after_error"] / after["after_correct"]


def _ids_sections(content: Found) -> list[tuple[str, str]]:
    """Titles and contents, in order."""
    found = content["diagnosis"]
    return [("Wrong choices", _wrong(found) + _ids_reading(content)), ("By position", figures.by_position(found))]


def _wrong(found: Found) -> Raw:
    rows: list[list[object]] = []
    for number, (side, name) in enumerate(SIDES):
        after = found[side]["after"]
        ratio = _ratio(after)
        rows.append(
            [
                swatch(number, name),
                Raw(f"<b>{percent(found[side]['wrong'])}</b>"),
                Raw(f"<span>{percent(after['after_correct'])} <small>of {after['right']:,}</small></span>"),
                Raw(f"<span>{percent(after['after_error'])} <small>of {after['wrong']:,}</small></span>"),
                DASH if ratio is None else f"{ratio:.2f}",
            ]
        )
    heads = ["history", "wrong", "after a right choice", "after a wrong choice", "times"]
    return table(heads, rows, "numbers cards", f"Choices against gold, position by position, {found['rows']:,} rows")


def _ids_reading(content: Found) -> Raw:
    counted = content["data"]["item_noun"]
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
