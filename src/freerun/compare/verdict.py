"""The outcome of a comparison, as one sentence that claims no more than was measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

__all__ = ["FEW_SEEDS", "METRIC_NAMES", "primary", "sentence", "signed"]

FEW_SEEDS = 5

METRIC_NAMES = {
    "free_running.wer": "free-running WER",
    "free_running.per": "free-running PER",
    "teacher_forced.loss": "teacher-forced loss",
    "gap.per": "free-running gap in PER",
}
"""How scores are called in sentences and tables."""

_PHRASES = {
    "better": "{method} is better than {baseline}",
    "worse": "{method} is worse than {baseline}",
    "not decided": "{method} was not shown to differ from {baseline}",
}


def primary(results: Mapping[str, Any]) -> str | None:
    """The score that the verdict is about: the first one compared, free-running WER where there is one."""
    return next((line["metric"] for line in results["comparisons"]), None)


def sentence(results: Mapping[str, Any]) -> str:
    """What was compared with what, by how much, whether own errors beat matched noise, on how many seeds.

    Args:
        results: ``runs``, ``summary``, ``comparisons`` and ``test_words`` of results.json.
    """
    metric = primary(results)
    if metric is None:
        return f"One arm was run ({results['runs'][0]['label']}), so nothing was compared with anything."
    lines = [line for line in results["comparisons"] if line["metric"] == metric]
    noises = {line["baseline"] for line in lines if line["control"]}
    parts: list[str] = []
    for line in lines:
        if line["control"] or line["method"] in noises:
            continue
        parts.append(_against_baseline(line, metric, results["summary"]))
        own = [other for other in lines if other["control"] and other["method"] == line["method"]]
        parts.extend(_against_noise(other, metric) for other in own)
    return "; ".join(parts) + f" ({_basis(results)})."


def _against_baseline(line: Mapping[str, Any], metric: str, summary: Sequence[Mapping[str, Any]]) -> str:
    means = {entry["method"]: entry["mean"] for entry in summary if entry["metric"] == metric}
    unit = _unit(metric)
    numbers = f"{means[line['method']]:.2f}{unit} against {means[line['baseline']]:.2f}{unit}"
    return f"{_phrase(line)} in {METRIC_NAMES.get(metric, metric)}: {numbers}, {_difference(line, metric)}"


def _against_noise(line: Mapping[str, Any], metric: str) -> str:
    meaning = {
        "better": "so its own errors taught it more than as many random ones",
        "worse": "so as many random errors taught it more than its own",
        "not decided": "so nothing here shows that its own errors teach more than as many random ones",
    }[line["verdict"]]
    named = {**line, "baseline": f"its matched noise control {line['baseline']}"}
    return f"{_phrase(named)}, {_difference(line, metric)}, {meaning}"


def _phrase(line: Mapping[str, Any]) -> str:
    return _PHRASES[line["verdict"]].format(method=line["method"], baseline=line["baseline"])


def _difference(line: Mapping[str, Any], metric: str) -> str:
    what = "points" if _unit(metric) else "nats"
    number = f"a difference of {signed(line['difference'])} {what}"
    if line["low"] is None:
        return f"{number} (no interval)"
    return f"{number} (95 % interval {signed(line['low'])} to {signed(line['high'])})"


def _basis(results: Mapping[str, Any]) -> str:
    seeds = len({run["seed"] for run in results["runs"]})
    words = results["test_words"]
    counted = f"{seeds} seed{'s' if seeds != 1 else ''}" + (f", {words:,} test words" if words else "")
    if seeds == 1:
        return f"{counted}; the interval covers other words but not other seeds, so one seed decides nothing"
    if seeds < FEW_SEEDS:
        return f"{counted}; fewer than {FEW_SEEDS} seeds: a hint, not a result"
    return counted


def _unit(metric: str) -> str:
    return "" if metric.endswith("loss") else " %"


def signed(value: float) -> str:
    """A number with its sign and a true minus.

    >>> signed(-0.234), signed(1.5), signed(0.0)
    ('−0.23', '+1.50', '0.00')
    """
    text = f"{abs(value):.2f}"
    if float(text) == 0:
        return text
    return ("\N{MINUS SIGN}" if value < 0 else "+") + text
