"""results.json: every run's numbers and signature, means with intervals, paired differences, the verdict."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from freerun.compare import runs as runs_module
from freerun.compare import verdict
from freerun.compare.plan import PlannedRun
from freerun.compare.statistics import Estimate, ItemScore, Median, Pooled, Ratio, estimate, holm, resample_counts, word
from freerun.compare.verdict import task_report
from freerun.errors import CheckpointError, UserError
from freerun.metrics.table import GAPS, Metric, TaskReport
from freerun.training.files import replace_file
from freerun.training.json_shapes import expect, read_json, versioned

Counts = Sequence[NDArray[np.float32]]


@dataclass(frozen=True, eq=False)
class _ArmScores:
    label: str
    method: str
    reference: str | None
    scores: Mapping[str, ItemScore | list[float]]


def collect(recipe: Mapping[str, Any], runs: Sequence[PlannedRun], out: Path) -> dict[str, Any]:
    """The content of results.json from finished runs."""
    summaries = {run.name: runs_module.summary(out / "runs" / run.name) for run in runs}
    missing = [name for name, found in summaries.items() if not (found and found.get("finished"))]
    if missing:
        raise UserError(f"runs without a finished summary: {', '.join(missing)}; go on with --resume")
    records = [_record(run, summaries[run.name] or {}, out) for run in runs]
    _check_same_data(records)
    words = _words(runs, out)
    reported = task_report(recipe)
    arms = _arms(runs, records, words, reported)
    items = len(next(iter(words.values())))
    counts = resample_counts(items)
    results: dict[str, Any] = {
        "schema": 1,
        "recipe": dict(recipe),
        "test_words": items,
        "runs": records,
        "summary": [line for arm in arms for line in _summary(arm, counts, reported)],
        "comparisons": _comparisons(arms, counts, reported),
    }
    results["verdict"] = verdict.sentence(results)
    return results


def write(results: Mapping[str, Any], out: Path) -> Path:
    """Write results.json whole or not at all; its path."""
    path = out / "results.json"
    replace_file(path, (json.dumps(results, indent=1, ensure_ascii=False, allow_nan=False) + "\n").encode())
    return path


def read(out: Path) -> dict[str, Any]:
    """The results of a finished comparison."""
    path = out / "results.json"
    if not path.exists():
        raise UserError(f"{out} holds no results.json; make one with: freerun compare RECIPE --out {out}")
    found = read_json(path, dict[str, Any])
    versioned(found, "schema", 1, str(path))
    expect(found, runs_module.Results, str(path))
    for run in found["runs"]:
        if Path(run["folder"]).parts != ("runs", Path(run["folder"]).name):
            raise CheckpointError(f"{path} is damaged: runs.folder must be runs/NAME; it is {run['folder']!r}")
    return found


def _record(run: PlannedRun, found: Mapping[str, Any], out: Path) -> dict[str, Any]:
    test = found.get("test", {})
    return {
        "label": run.arm.label,
        "method": found.get("method", str(run.arm.method.get("name"))),
        "seed": run.seed,
        "signature": found.get("signature", ""),
        "free_running": test.get("free_running", {}),
        "teacher_forced": test.get("teacher_forced", {}),
        "seconds": found.get("seconds"),
        "cpu_seconds": found.get("cpu_seconds"),
        "decoder_passes": found.get("decoder_passes"),
        "updates": found.get("updates"),
        "best": found.get("best", {}),
        "data": found.get("data"),
        "versions": found.get("versions", {}),
        "matched_to": run.arm.reference,
        "folder": f"runs/{run.name}",
        "words": (out / "runs" / run.name / "test-items.jsonl").exists(),
        **({"changes": found["changes"]} if "changes" in found else {}),
    }


def _check_same_data(records: Sequence[Mapping[str, Any]]) -> None:
    seen: dict[str, str] = {}
    for record in records:
        seen.setdefault(str(record["data"]), f"{record['label']}-{record['seed']}")
    if len(seen) > 1:
        lines = ", ".join(f"{name} has {data}" for data, name in seen.items())
        raise UserError(f"runs saw different data and cannot be compared: {lines}; start with --overwrite")


def _words(runs: Sequence[PlannedRun], out: Path) -> dict[str, list[dict[str, Any]]]:
    """Test words of every run, in the order of the first."""
    words = {run.name: runs_module.items(out / "runs" / run.name) for run in runs}
    first = next(iter(words))
    order = _names(words[first])
    for name, found in words.items():
        by_source = dict(zip(_names(found), found, strict=True))
        if sorted(by_source) != sorted(order):
            raise UserError(
                f"runs {first} and {name} were tested on different words and cannot be compared; start with --overwrite"
            )
        words[name] = [by_source[source] for source in order]
    return words


def _names(items: Sequence[Mapping[str, Any]]) -> list[tuple[str, int]]:
    """What each item goes by: its source, and how often that came before."""
    seen: dict[str, int] = {}
    names: list[tuple[str, int]] = []
    for item in items:
        source = str(item["source"])
        names.append((source, seen.get(source, 0)))
        seen[source] = seen.get(source, 0) + 1
    return names


def _arms(
    runs: Sequence[PlannedRun],
    records: Sequence[Mapping[str, Any]],
    words: Mapping[str, list[dict[str, Any]]],
    reported: TaskReport,
) -> list[_ArmScores]:
    arms: list[_ArmScores] = []
    for label in dict.fromkeys(run.arm.label for run in runs):
        chosen = [(run, record) for run, record in zip(runs, records, strict=True) if run.arm.label == label]
        chosen.sort(key=lambda pair: pair[0].seed)
        scores: dict[str, ItemScore | list[float]] = dict(_scalars([record for _, record in chosen]))
        for measure in reported.metrics:
            found = _over_words(measure, [words[run.name] for run, _ in chosen])
            scores |= {} if found is None else {measure.name: found}
        arms.append(_ArmScores(label, str(chosen[0][1]["method"]), chosen[0][0].arm.reference, scores))
    return arms


def _over_words(measure: Metric, words: Sequence[Sequence[Mapping[str, Any]]]) -> ItemScore | None:
    """A score of all seeds of an arm, from their items; None where they do not hold it, or nothing it counts."""
    rule = measure.items
    parts = () if rule is None else (rule.part, *([] if rule.whole is None else [rule.whole]))
    if rule is None or any(part not in item for part in parts for items in words for item in items):
        return None
    if rule.median:
        found = Median(np.array([[_or_inf(item[rule.part]) for item in items] for items in words]))
        return found if np.isfinite(found.values).all() else None
    if any(item[rule.part] is None for items in words for item in items):
        return None  # infinite: there is no mean
    part = np.array([[item[rule.part] for item in items] for items in words], dtype=np.float64)
    if rule.pooled is not None:
        return Pooled(part, rule.pooled)
    if rule.whole is None:
        return Ratio(part, np.ones_like(part), rule.scale)
    whole = np.array([[float(item[rule.whole]) for item in items] for items in words])
    return Ratio(part, whole, rule.scale) if whole.any(1).all() else None


def _or_inf(value: float | None) -> float:
    # JSON has no word for it; a score that is not finite is written as null
    return np.inf if value is None else float(value)


def _scalars(records: Sequence[Mapping[str, Any]]) -> dict[str, list[float]]:
    """Scores that every seed has, by labelled name, seed by seed."""
    found = [_flat(record) for record in records]
    shared = [name for name in found[0] if all(name in numbers for numbers in found)]
    return {name: [numbers[name] for numbers in found] for name in shared}


def _flat(record: Mapping[str, Any]) -> dict[str, float]:
    numbers: dict[str, float] = {}
    for kind in ("free_running", "teacher_forced"):
        for name, value in record[kind].items():
            if isinstance(value, int | float) and np.isfinite(value):
                numbers[f"{kind}.{name}"] = float(value)
    # of WER there is no gap: told(...) says why
    for name in GAPS:
        if {f"free_running.{name}", f"teacher_forced.{name}"} <= set(numbers):
            numbers[f"gap.{name}"] = numbers[f"free_running.{name}"] - numbers[f"teacher_forced.{name}"]
    for name in ("seconds", "cpu_seconds", "decoder_passes", "updates"):
        if isinstance(record[name], int | float):
            numbers[name] = float(record[name])
    return numbers


def _summary(arm: _ArmScores, counts: Counts, reported: TaskReport) -> list[dict[str, Any]]:
    lines: list[dict[str, Any]] = []
    for metric, score in arm.scores.items():
        found = estimate(score, None, counts)
        seeds = len(score.values) if isinstance(score, ItemScore) else len(score)
        measure = reported.metric(metric)
        lines.append(
            {
                "method": arm.label,
                "metric": metric,
                "mean": found.value,
                "low": _within(found.low, measure),
                "high": _within(found.high, measure),
                "seeds": seeds,
            }
        )
    return lines


def _within(end: float | None, measure: Metric) -> float | None:
    """The end of an interval, no further than a score can go."""
    if end is None or measure.side == "gap":
        return end
    return min(max(end, 0.0), math.inf if measure.most is None else measure.most)


def _comparisons(arms: Sequence[_ArmScores], counts: Counts, reported: TaskReport) -> list[dict[str, Any]]:
    """Every arm against teacher forcing (or the first arm), and every reference against its noise control."""
    by_label = {arm.label: arm for arm in arms}
    base = next((arm for arm in arms if arm.method == "teacher_forcing"), arms[0])
    controls = [(by_label[arm.reference], arm) for arm in arms if arm.reference is not None]
    # no pair twice: where no arm is teacher forcing, the first may be a control or have one
    pairs = [(arm, base) for arm in arms if arm is not base and not {(arm, base), (base, arm)} & set(controls)]
    pairs += controls
    lines: list[dict[str, Any]] = []
    for metric in (each.name for each in reported.compared):
        present = [(a, b) for a, b in pairs if metric in a.scores and metric in b.scores]
        found = [estimate(a.scores[metric], b.scores[metric], counts) for a, b in present]
        adjusted = holm([one.p_value for one in found])
        for (arm, against), one, p_value in zip(present, found, adjusted, strict=True):
            lines.append(_comparison(arm, against, reported.metric(metric), one, p_value))
    return lines


def _comparison(
    arm: _ArmScores, against: _ArmScores, measure: Metric, found: Estimate, adjusted: float
) -> dict[str, Any]:
    below = found.probability_below
    return {
        "method": arm.label,
        "baseline": against.label,
        "metric": measure.name,
        "difference": found.value,
        "low": found.low,
        "high": found.high,
        "probability_better": 1 - below if measure.higher and below is not None else below,
        "p_adjusted": adjusted,
        "control": against.reference == arm.label,
        "verdict": word(-found.value if measure.higher else found.value, adjusted),
    }
