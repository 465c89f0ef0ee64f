"""The page of a diagnosis of values: tables and words; its figures are in ``diagnosed_figures``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from freerun.report import diagnosis_figures as drawn
from freerun.report.page import Raw, paragraph, swatch, table

Found = Mapping[str, Any]
_DASH = "\N{EN DASH}"


def summary(found: Found) -> str:
    """What came out, in two or three sentences."""
    told, own = (found[side]["nrmse"]["median"] for side in ("teacher_forced", "free_running"))
    lines = [
        f"Told gold, the model is off by {_number(told)} standard deviations a step; running freely over "
        f"{found['horizon']} steps, by {_number(own)}{_times(told, own)} (medians over {found['windows']:,} windows)."
    ]
    best = min(found["naive"].items(), key=lambda each: _ordered(each[1]["nrmse"]["median"]), default=None)
    if best is not None:
        value = best[1]["nrmse"]["median"]
        worse = own is None or (value is not None and value <= own)
        than = "the free run is no better" if worse else "the free run is better"
        lines.append(f"The best forecast without a model, {drawn.words(best[0])}, comes to {_number(value)}: {than}.")
    if found["diverged"]:
        first = min(lead for _, lead in found["diverged"])
        lines.append(
            f"{len(found['diverged']):,} of {found['windows']:,} free runs escape to infinity, the first at lead time "
            f"{first}."
        )
    return " ".join(lines)


def _times(told: float | None, own: float | None) -> str:
    if not told or own is None:
        return ""
    return f", {own / told:.3g} times as much" if own >= told else f", {own / told:.2g} of it"


def _ordered(value: float | None) -> float:
    return float("inf") if value is None else value


def sections(content: Found) -> list[tuple[str, str]]:
    """Titles and contents, in order."""
    found = content["diagnosis"]
    return [
        ("Errors", _errors(found) + _reading(found)),
        ("Errors by lead time", drawn.by_lead(found) + _growth(found)),
        ("Windows", drawn.sample_windows(found)),
        ("Free runs that escape", _escaped(found)),
        ("A long free run", _climate(found)),
    ]


def _errors(found: Found) -> Raw:
    rows: list[list[object]] = []
    for number, (side, name) in enumerate((("teacher_forced", "teacher-forced"), ("free_running", "free-running"))):
        times = _spread(found["valid_time"], "steps") if side == "free_running" else Raw(_DASH)
        rows.append(
            [swatch(number, name), _spread(found[side]["nrmse"]), _spread(found[side]["nrmse_last_tenth"]), times]
        )
    for number, (name, naive) in enumerate(found["naive"].items()):
        label = Raw(f"<em>{swatch(number + 2, drawn.words(name))}</em>")
        rows.append([label, _spread(naive["nrmse"]), _spread(naive["nrmse_last_tenth"]), Raw(_DASH)])
    heads = ["told", "NRMSE", "NRMSE, last tenth", "valid time, steps"]
    caption = (
        f"Median over {found['windows']:,} windows of {found['horizon']} steps; below each the quartiles. In italics: "
        "forecasts without a model"
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
        "1 is what always saying the mean comes to. Teacher-forced: the model is told the gold values and says one "
        "step ahead; free-running: it is told its own output, as in use. The difference is what one-step training "
        "does not see.",
        f"Valid time: steps before a free run's error first passes {found['threshold']:g}. {_valid(found)}",
    ]
    return Raw("".join(paragraph(line, "note") for line in lines))


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
    begin = "The model goes on from the first window, horizon after horizon, told the last of what it has said itself. "
    if climate["diverged_at"] is not None:
        text = f"It escapes at step {climate['diverged_at']:,} of {climate['steps']:,}: it has no climate."
        return paragraph(begin + text, "note")
    rows = [
        ["spread (gold's is 1)", _number(climate["spread"]), _DASH],
        ["states (D_stsp, nats)", _number(climate["state"]), _number(climate["state_gold"])],
        ["frequencies (D_H, 0 to 1)", _number(climate["spectrum"]), _number(climate["spectrum_gold"])],
    ]
    caption = f"{climate['steps']:,} steps beside gold of the same length; 0 is alike, but for the spread"
    text = (
        "Spread: standard deviation of the run, in those of gold. States: Kullback-Leibler divergence of the "
        f"histograms of {climate['space']}, {climate['bins']} bins each. Frequencies: Hellinger distance of smoothed "
        "power spectra, mean over channels; how strong the swings are does not enter. They do not ask that the run "
        "follow gold, only that it live in the same places and swing at the same rates. Gold's own first half against "
        "its second shows what chance alone comes to in half as many steps."
    )
    numbers = table(["", "free run", "gold's halves"], rows, "numbers", caption)
    return numbers + paragraph(begin + text, "note") + drawn.climate(found)
