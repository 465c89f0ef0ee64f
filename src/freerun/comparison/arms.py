"""Arms with their scores: their means, and the differences of every pair that a comparison is about."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from freerun.comparison.statistics import (
    CONFIDENCE,
    Estimate,
    ItemScore,
    estimate,
    holm,
    holm_levels,
    verdict_word,
)
from freerun.metrics.table import Metric, TaskReport

Counts = Sequence[NDArray[np.float32]]
Score = ItemScore | list[float]
Line = dict[str, Any]


@dataclass(frozen=True, eq=False)
class ArmScores:
    """An arm of a comparison with the scores of all its seeds.

    Args:
        label: its name.
        method: name of its method.
        role: "baseline", "method" or "control:KIND".
        of: label of the arm that a control is of.
        scores: metric -> over seeds and items, or a number a seed.
    """

    label: str
    method: str
    role: str
    of: str | None
    scores: Mapping[str, Score]


Pair = tuple[ArmScores, ArmScores]


def summary(arm: ArmScores, counts: Counts, report: TaskReport) -> list[Line]:
    """Return the means over seeds of an arm with their intervals; of scores on a log scale the geometric means."""
    lines: list[Line] = []
    for name, score in arm.scores.items():
        metric = report.metric(name)
        log = _positive(metric, [score])
        mean = estimate(score, None, counts, log=log)
        ends = [mean.value, mean.low, mean.high]
        if log:
            ends = [None if end is None else math.exp(end) for end in ends]
        elif mean.low is not None and metric.side != "gap":  # no further than a score can go
            most = math.inf if metric.most is None else metric.most
            ends[1:] = [min(max(end, 0.0), most) for end in ends[1:] if end is not None]
        seeds = len(score.values) if isinstance(score, ItemScore) else len(score)
        lines.append(
            {"arm": arm.label, "metric": name, **dict(zip(("mean", "low", "high"), ends, strict=True)), "seeds": seeds}
        )
    return lines


def _positive(metric: Metric, scores: Iterable[Score]) -> bool:
    """Return True if these are compared on logarithms: the metric says so, and nothing is zero."""
    values = (each.values if isinstance(each, ItemScore) else np.asarray(each) for each in scores)
    return metric.scale == "log" and all((each > 0).all() for each in values)


def comparisons(arms: Sequence[ArmScores], counts: Counts, report: TaskReport, margin: float | None) -> list[Line]:
    """Return every arm against the baseline, and every control's arm against it: the verdict's two, then the others.

    The score that the verdict is about has a fixed sequence of tests at 5 % (``_sequence``). All other comparisons of
    a score are exploratory, a family under Holm's rule, with intervals at the level of their test.
    """
    lines: list[Line] = []
    primary = next((each for each in report.compared if not each.fixed and _shared(arms, each.name)), None)
    for metric in report.compared:
        pairs = [pair for pair in _pairs(arms) if all(metric.name in each.scores for each in pair)]
        log = _positive(metric, (arm.scores[metric.name] for pair in pairs for arm in pair))
        values = [_estimate(arms, pair, metric, counts, log) for pair in pairs]
        if log and any(value.low is None and value.p_value == 1 for value in values):
            log, values = False, [_estimate(arms, pair, metric, counts, False) for pair in pairs]
        found = [(_line(pair, metric, value, log), value) for pair, value in zip(pairs, values, strict=True)]
        steps = _sequence(arms, pairs) if metric is primary else []
        left = _decide(found, steps, metric, margin)
        levels, adjusted = (rule([value.p_value for _, value in left]) for rule in (holm_levels, holm))
        for (line, value), level, p_value in zip(left, levels, adjusted, strict=True):
            line |= {"level": level, "p_adjusted": p_value}
            line["low"], line["high"] = value.interval(level)
            _word(line, value, metric, None)
        lines += [line for line, _ in found]
    return lines


def _decide(
    found: Sequence[tuple[Line, Estimate]], steps: Sequence[int], metric: Metric, margin: float | None
) -> list[tuple[Line, Estimate]]:
    """Decide a fixed sequence of comparisons, each only if the one before it is better; return those left over."""
    done: list[int] = []
    for number, index in enumerate(steps, start=1):
        line, value = found[index]
        line |= {"step": number, "level": 1 - CONFIDENCE, "p_adjusted": value.p_value}
        _word(line, value, metric, margin)
        done.append(index)
        if line["verdict"] != "better":
            break
    return [pair for index, pair in enumerate(found) if index not in done]


def _word(line: Line, value: Estimate, metric: Metric, margin: float | None) -> None:
    """Write the verdict word of a line, and what its design could have seen, on the scale of its difference."""
    limit = margin if margin is None or line["scale"] == "linear" else math.log(margin)
    decided = value.p_value < 1 or line["seeds"] > 1
    ends = (line["low"], line["high"]) if decided else (None, None)
    line["verdict"] = verdict_word(*ends, higher=metric.higher, margin=limit)
    if value.design is not None:
        sought = abs(value.value) if limit is None else limit
        line["detectable"] = value.design.detectable(line["seeds"])
        line["seeds_needed"] = value.design.seeds_needed(sought) if sought else None


def _estimate(arms: Sequence[ArmScores], pair: Pair, metric: Metric, counts: Counts, log: bool) -> Estimate:
    """Estimate the difference of a pair; a third arm near it helps to estimate the spread over seeds."""
    score, baseline = (arm.scores[metric.name] for arm in pair)
    near = (each for each in _nearest(arms, pair[0]) if each not in pair and metric.name in each.scores)
    third = next((each.scores[metric.name] for each in near), None)
    if third is not None and log and not _positive(metric, [third]):
        third = None
    return estimate(score, baseline, counts, third=third, log=log)


def _line(pair: Pair, metric: Metric, value: Estimate, log: bool) -> Line:
    arm, against = pair
    below, score = value.probability_below, arm.scores[metric.name]
    return {
        "arm": arm.label,
        "baseline": against.label,
        "role": against.role,
        "metric": metric.name,
        "scale": "log" if log else "linear",
        "difference": value.value,
        "low": value.low,
        "high": value.high,
        "level": 1 - CONFIDENCE,
        "probability_better": 1 - below if metric.higher and below is not None else below,
        "p_value": value.p_value,
        "p_adjusted": value.p_value,
        "step": None,
        "control": against.of == arm.label,
        "seeds": len(score.values) if isinstance(score, ItemScore) else len(score),
        "design": None if value.design is None else asdict(value.design),
        "detectable": None,
        "seeds_needed": None,
        "verdict": "undecided",
    }


def _pairs(arms: Sequence[ArmScores]) -> list[Pair]:
    by_label = {arm.label: arm for arm in arms}
    base = next((arm for arm in arms if arm.role == "baseline"), arms[0])
    controls = [(by_label[arm.of], arm) for arm in arms if arm.of in by_label]
    # no pair twice: where no arm is teacher forcing, the baseline may have a control
    pairs = [(arm, base) for arm in arms if arm is not base and not {(arm, base), (base, arm)} & set(controls)]
    return pairs + controls


def _shared(arms: Sequence[ArmScores], metric: str) -> bool:
    return any(metric in one.scores and metric in two.scores for one, two in _pairs(arms))


def _nearest(arms: Sequence[ArmScores], arm: ArmScores) -> list[ArmScores]:
    """Arms whose spread helps to judge an arm: the baseline, its controls, other methods, and the rest."""
    return sorted(arms, key=lambda each: (each.role != "baseline", each.of != arm.label, each.role != "method"))


def _sequence(arms: Sequence[ArmScores], pairs: Sequence[Pair]) -> list[int]:
    """Which comparisons are the verdict's: the first method of own histories against the baseline, then its controls.

    Without a baseline beside it, the controls alone.
    """
    methods = [arm for arm in arms if arm.role == "method"]
    own = [arm for arm in methods if not arm.method.endswith("_noise")]
    first = next(iter([*own, *methods]), None) or next((arm for arm in arms if arm.role == "baseline"), arms[0])
    against = [index for index, (arm, other) in enumerate(pairs) if arm is first and other.role == "baseline"]
    return against + [index for index, (arm, other) in enumerate(pairs) if arm is first and other.of == first.label]
