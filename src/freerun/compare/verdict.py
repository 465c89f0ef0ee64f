"""The outcome of a comparison, as one sentence that claims no more than was measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from freerun.compare.told import told
from freerun.training.reported import Measure

__all__ = ["FEW_SEEDS", "interval_name", "primary", "sentence", "shown_verdict", "signed"]

FEW_SEEDS = 5

_MEANING = {
    "better": "so its own errors taught it more than as many random ones",
    "worse": "so as many random errors taught it more than its own",
    "not decided": "so nothing here shows that its own errors teach more than as many random ones",
}
_PHRASES = {
    "better": "{method} is better than {baseline}",
    "worse": "{method} is worse than {baseline}",
    "not decided": "{method} was not shown to differ from {baseline}",
}


def interval_name(results: Mapping[str, Any]) -> str:
    """What an interval is called: with one seed it says nothing of others."""
    if len({run["seed"] for run in results["runs"]}) > 1:
        return "95 % interval"
    return f"95 % interval over {told(results['recipe']).others} alone"


def shown_verdict(results: Mapping[str, Any], line: Mapping[str, Any]) -> str:
    """The verdict on a comparison, as pages show it."""
    return line["verdict"] if len({run["seed"] for run in results["runs"]}) > 1 else "1 seed: no verdict"


def primary(results: Mapping[str, Any]) -> str | None:
    """The score that the verdict is about: the first one compared that exposure bias can move."""
    reported = told(results["recipe"])
    found = (line["metric"] for line in results["comparisons"])
    return next((metric for metric in found if not reported.measure(metric).fixed), None)


def sentence(results: Mapping[str, Any]) -> str:
    """What was compared with what, by how much, whether own errors beat matched noise, on how many seeds.

    Args:
        results: ``recipe``, ``runs``, ``summary``, ``comparisons`` and ``test_words`` of results.json.
    """
    if len({run["label"] for run in results["runs"]}) == 1:
        return f"One arm was run ({results['runs'][0]['label']}), so nothing was compared with anything."
    metric, one = primary(results), len({run["seed"] for run in results["runs"]}) == 1
    if metric is None:
        none = "no score that exposure bias can move is there for two arms, so there is no verdict"
        return "; ".join([*_diverged(results), none]) + f" ({_basis(results)})."
    measure = told(results["recipe"]).measure(metric)
    lines = [line for line in results["comparisons"] if line["metric"] == metric]
    noises = {line["baseline"] for line in lines if line["control"]}
    parts: list[str] = []
    for line in lines:
        same = [other for other in lines if other["method"] == line["method"]]
        if line is not same[0] or line["method"] in noises:
            continue
        # an arm against the baseline, then against its control, or, where it is the baseline, against that alone
        if one:
            parts.extend(_one_seed(each, measure, results["summary"]) for each in same)
        else:
            parts.append(_first(line, measure, results["summary"]))
            parts.extend(_against_noise(other, measure) for other in same[1:])
    if one:
        parts[:1] = [f"1 seed: no verdict. On these {told(results['recipe']).items} {part}" for part in parts[:1]]
        parts.append("another seed may reverse it")
    return "; ".join([*_diverged(results), *parts, *_beaten(results, measure)]) + f" ({_basis(results)})."


def _diverged(results: Mapping[str, Any]) -> list[str]:
    """Arms that have no value of the score that decides, as their free runs left the finite numbers."""
    measure = told(results["recipe"]).primary
    lost = [
        run["label"]
        for run in results["runs"]
        if run[measure.side].get(measure.score, 0.0) is None and run[measure.side].get("diverged")
    ]
    return [
        f"{label} has no {measure.title}, and was compared with nothing in it: in at least one run half of its windows "
        "or more diverged"
        for label in dict.fromkeys(lost)
    ]


def _beaten(results: Mapping[str, Any], measure: Measure) -> list[str]:
    """That a forecast without a trained network has the best score of all; [] where it has not."""
    means = {entry["metric"]: entry["mean"] for entry in results["summary"]}
    found = {
        name: means[metric]
        for name, prefix in told(results["recipe"]).baselines
        if (metric := f"{measure.side}.{prefix}{measure.score}") in means
    }
    best = max if measure.higher else min
    arms = [entry["mean"] for entry in results["summary"] if entry["metric"] == measure.name]
    if not found or best(*found.values(), *arms) in arms:
        return []
    name = best(found, key=found.__getitem__)
    return [f"no arm beats the simple forecast {name}: {measure.shown(found[name])}"]


def _one_seed(line: Mapping[str, Any], measure: Measure, summary: Sequence[Mapping[str, Any]]) -> str:
    """A difference without a verdict: one seed says nothing of others."""
    against = f"its matched noise control {line['baseline']}" if line["control"] else line["baseline"]
    size = f"{abs(line['difference']):.{measure.decimals}f} {measure.unit}".rstrip()
    way = f"{'lower' if line['difference'] < 0 else 'higher'} by {size} than" if line["difference"] else "level with"
    return f"{line['method']} is {way} {against} in {measure.title}: {_numbers(line, measure, summary)}"


def _numbers(line: Mapping[str, Any], measure: Measure, summary: Sequence[Mapping[str, Any]]) -> str:
    means = {entry["method"]: entry["mean"] for entry in summary if entry["metric"] == measure.name}
    return f"{measure.shown(means[line['method']])} against {measure.shown(means[line['baseline']])}"


def _first(line: Mapping[str, Any], measure: Measure, summary: Sequence[Mapping[str, Any]]) -> str:
    """An arm's first difference: it names the score and both means."""
    text = f"{_phrase(line)} in {measure.title}: {_numbers(line, measure, summary)}, {_difference(line, measure)}"
    return f"{text}, {_MEANING[line['verdict']]}" if line["control"] else text


def _against_noise(line: Mapping[str, Any], measure: Measure) -> str:
    return f"{_phrase(line)}, {_difference(line, measure)}, {_MEANING[line['verdict']]}"


def _phrase(line: Mapping[str, Any]) -> str:
    against = f"its matched noise control {line['baseline']}" if line["control"] else line["baseline"]
    return _PHRASES[line["verdict"]].format(method=line["method"], baseline=against)


def _difference(line: Mapping[str, Any], measure: Measure) -> str:
    difference, low, high = (
        None if line[name] is None else signed(line[name], measure.decimals) for name in ("difference", "low", "high")
    )
    number = f"a difference of {difference} {measure.unit}".rstrip()
    if low is None:
        return f"{number} (no interval)"
    interval = f"95 % interval {low} to {high}"
    if line["verdict"] == "not decided" and line["low"] * line["high"] > 0:
        interval += f", not adjusted; adjusted for the number of comparisons p = {line['p_adjusted']:.2f}"
    return f"{number} ({interval})"


def _basis(results: Mapping[str, Any]) -> str:
    seeds = len({run["seed"] for run in results["runs"]})
    words, reported = results["test_words"], told(results["recipe"])
    counted = f"{seeds} seed{'s' if seeds != 1 else ''}" + (f", {words:,} {reported.items}" if words else "")
    if 1 < seeds < FEW_SEEDS:
        return f"{counted}; fewer than {FEW_SEEDS} seeds: a hint, not a result"
    return counted


def signed(value: float, decimals: int = 2) -> str:
    """A number with its sign and a true minus.

    >>> signed(-0.234), signed(1.5), signed(0.0)
    ('−0.23', '+1.50', '0.00')
    """
    text = f"{abs(value):.{decimals}f}"
    if float(text) == 0:
        return text
    return ("\N{MINUS SIGN}" if value < 0 else "+") + text
