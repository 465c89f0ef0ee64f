"""results.json: every run's numbers and signature, means with intervals, paired differences, the verdict."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NotRequired, TypedDict

import numpy as np

from freerun.comparison import outputs, verdict
from freerun.comparison.arms import ArmScores, Score, comparisons, summary
from freerun.comparison.plan import PlannedRun, Role, roles
from freerun.comparison.statistics import ItemScore, Median, Pooled, Ratio, resample_counts
from freerun.comparison.verdict import task_report
from freerun.errors import CheckpointError, UserError
from freerun.metrics.table import GAPS, Metric, TaskReport
from freerun.tasks.base import full_score_name
from freerun.training.files import Count, expect, read_json, replace_file, versioned
from freerun.training.run_folder import finished_summary, first_events, items

SCHEMA = 3
_COSTS = ("seconds", "cpu_seconds", "decoder_passes", "updates")


class _Run(TypedDict):
    label: str
    role: str
    control_of: str | None
    method: str
    seed: Count
    folder: str
    data: str | None
    best: dict[str, Any]
    free_running: dict[str, float | None]
    teacher_forced: dict[str, float | None]
    versions: dict[str, str]


class _Mean(TypedDict):
    arm: str
    metric: str
    mean: float | None
    low: float | None
    high: float | None


class _Comparison(TypedDict):
    arm: str
    baseline: str
    metric: str
    difference: float | None
    low: float | None
    high: float | None
    probability_better: float | None
    scale: str
    level: float
    step: Count | None
    control: bool
    verdict: str


class _Verdict(TypedDict):
    word: str
    answer: str
    why: str | None
    sentence: str
    steps: list[dict[str, Any]]
    naive: list[dict[str, Any]]


class _Results(TypedDict):
    recipe: dict[str, Any]
    test_items: Count
    runs: list[_Run]
    summary: list[_Mean]
    comparisons: list[_Comparison]
    scores: dict[str, str]
    verdict: _Verdict
    init: NotRequired[str]


def collect(
    recipe: Mapping[str, Any], runs: Sequence[PlannedRun], out: Path, folders: Mapping[str, Path] | None = None
) -> dict[str, Any]:
    """Return the content of results.json, from finished runs in ``out/runs``, or in the folders named."""
    where = {run.name: f"runs/{run.name}" if folders is None else str(folders[run.name]) for run in runs}
    summaries = {name: finished_summary(out / folder) for name, folder in where.items()}
    missing = [name for name, summary in summaries.items() if not (summary and summary.get("finished"))]
    if missing:
        raise UserError(f"runs without a finished summary: {', '.join(missing)}; go on with --resume")
    known = roles(list({run.arm.label: run.arm for run in runs}.values()))
    records = [_record(run, known[run.arm.label], summaries[run.name] or {}, out / where[run.name]) for run in runs]
    records = [{**record, "folder": folder} for record, folder in zip(records, where.values(), strict=True)]
    _check_same_data(records)
    return decided(recipe, records, _tested_items({name: out / folder for name, folder in where.items()}))


def decided(
    recipe: Mapping[str, Any], records: Sequence[Mapping[str, Any]], tested: Sequence[Sequence[Mapping[str, Any]]]
) -> dict[str, Any]:
    """Return the content of results.json, from a record of every run and its test items, in one order."""
    report, count = task_report(recipe), len(tested[0])
    begun = {record.get("init") for record in records}
    arms, counts = _arms(records, tested, report), resample_counts(count) if count else []
    results: dict[str, Any] = {
        "schema": SCHEMA,
        "recipe": dict(recipe),
        **({"init": begun.pop()} if len(begun) == 1 and None not in begun else {}),
        "test_items": count,
        "runs": list(records),
        "summary": [line for arm in arms for line in summary(arm, counts, report)],
        "comparisons": comparisons(arms, counts, report, verdict.margin_of(recipe)),
    }
    results["scores"] = {metric.name: outputs.signature(metric, results) for metric in report.compared}
    results["verdict"] = verdict.verdict(results)
    return results


def write(results: Mapping[str, Any], out: Path) -> Path:
    """Write results.json whole or not at all, and what stands beside it; return its path."""
    path = out / "results.json"
    outputs.write(results, out)
    replace_file(path, (json.dumps(results, indent=1, ensure_ascii=False, allow_nan=False) + "\n").encode())
    return path


def read(out: Path) -> dict[str, Any]:
    """Return the results of a finished comparison; refuse those of another schema."""
    path = out / "results.json"
    if not path.exists():
        raise UserError(f"{out} holds no results.json; make one with: freerun compare RECIPE --out {out}")
    results = read_json(path, dict[str, Any])
    versioned(results, "schema", SCHEMA, str(path))
    if results["schema"] != SCHEMA:
        raise CheckpointError(
            f"{path} has schema {results['schema']}, of an earlier freerun; this one reads schema {SCHEMA}, in which "
            f"every run has a role and the verdict is an object\n  help: freerun compare RECIPE --out {out} --resume "
            "makes it again from the finished runs"
        )
    expect(results, _Results, str(path))
    for run in results["runs"]:
        folder = Path(run["folder"])
        if folder.parts != ("runs", folder.name) and not folder.is_absolute():
            raise CheckpointError(f"{path} is damaged: runs.folder must be runs/NAME; it is {run['folder']!r}")
    return results


def _first_dev(folder: Path, select: str | None) -> float | None:
    """The dev score that selects of the weights that a run began with; None where it was not scored."""
    if select is None:
        return None
    full = full_score_name(select)
    side = next(side for side in ("free_running", "teacher_forced") if full.startswith(side))
    event = next((event for event in first_events(folder) if event.get("event") == "evaluate"), None)
    if event is None or event.get("step") != 0:
        return None
    return event.get(side, {}).get(full.removeprefix(f"{side}_"))


def _record(run: PlannedRun, role: Role, summary: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    test = summary.get("test", {})
    return {
        "label": run.arm.label,
        "method": summary.get("method", run.arm.method.name),
        "seed": run.seed,
        "signature": summary.get("signature", ""),
        "free_running": test.get("free_running", {}),
        "teacher_forced": test.get("teacher_forced", {}),
        **{name: summary.get(name) for name in _COSTS},
        "untrained": _first_dev(folder, summary.get("best", {}).get("select")),
        **({"gold_update": summary["gold_update"]} if "gold_update" in summary else {}),
        "best": summary.get("best", {}),
        "data": summary.get("data"),
        "versions": summary.get("versions", {}),
        "role": role.name,
        "control_of": role.of,
        "has_items": (folder / "test-items.jsonl").exists(),
        **{name: summary[name] for name in ("init", "changes") if name in summary},
    }


def _check_same_data(records: Sequence[Mapping[str, Any]]) -> None:
    names: dict[str, str] = {}
    for record in records:
        names.setdefault(str(record["data"]), f"{record['label']}-{record['seed']}")
    if len(names) > 1:
        lines = ", ".join(f"{name} has {data}" for data, name in names.items())
        raise UserError(f"runs saw different data and cannot be compared: {lines}; start with --overwrite")


def _tested_items(folders: Mapping[str, Path]) -> list[list[dict[str, Any]]]:
    """Return the test items of every run, in the order of the first."""
    tested = {name: items(folder) for name, folder in folders.items()}
    first = next(iter(tested))
    order = _identities(tested[first])
    for name, listed in tested.items():
        by_identity = dict(zip(_identities(listed), listed, strict=True))
        if sorted(by_identity) != sorted(order):
            raise UserError(
                f"runs {first} and {name} were tested on different items and cannot be compared; start with --overwrite"
            )
        tested[name] = [by_identity[identity] for identity in order]
    return list(tested.values())


def _identities(listed: Sequence[Mapping[str, Any]]) -> list[tuple[str, int]]:
    """Identify each item by its source and how often that came before."""
    seen: Counter[str] = Counter()
    identities: list[tuple[str, int]] = []
    for source in (str(item["source"]) for item in listed):
        identities.append((source, seen[source]))
        seen[source] += 1
    return identities


def _arms(
    records: Sequence[Mapping[str, Any]], tested: Sequence[Sequence[Mapping[str, Any]]], report: TaskReport
) -> list[ArmScores]:
    arms: list[ArmScores] = []
    for label in dict.fromkeys(record["label"] for record in records):
        chosen = [pair for pair in zip(records, tested, strict=True) if pair[0]["label"] == label]
        chosen.sort(key=lambda pair: pair[0]["seed"])
        scores: dict[str, Score] = dict(_scalars([record for record, _ in chosen]))
        for measure in report.metrics:
            score = _over_items(measure, [listed for _, listed in chosen])
            scores |= {} if score is None else {measure.name: score}
        first = chosen[0][0]
        arms.append(ArmScores(label, str(first["method"]), first["role"], first["control_of"], scores))
    return arms


def _over_items(measure: Metric, tested: Sequence[Sequence[Mapping[str, Any]]]) -> ItemScore | None:
    """Return a score of all seeds of an arm, from their items; None if they do not hold it, or nothing it counts."""
    rule = measure.items
    parts = () if rule is None else (rule.numerator, *([] if rule.denominator is None else [rule.denominator]))
    if rule is None or not tested[0] or any(part not in item for part in parts for listed in tested for item in listed):
        return None
    if rule.median:  # JSON has no word for infinity: a score that is not finite is written as null
        values = [
            [np.inf if item[rule.numerator] is None else float(item[rule.numerator]) for item in each]
            for each in tested
        ]
        median = Median(np.array(values))
        return median if np.isfinite(median.values).all() else None
    if any(item[rule.numerator] is None for listed in tested for item in listed):
        return None  # infinite: there is no mean
    part = np.array([[item[rule.numerator] for item in listed] for listed in tested], dtype=np.float64)
    if rule.pooled is not None:
        return Pooled(part, rule.pooled)
    if rule.denominator is None:
        return Ratio(part, np.ones_like(part), rule.scale)
    whole = np.array([[float(item[rule.denominator]) for item in listed] for listed in tested])
    return Ratio(part, whole, rule.scale) if whole.any(1).all() else None


def _scalars(records: Sequence[Mapping[str, Any]]) -> dict[str, list[float]]:
    """Return the scores that every seed has, by labelled name, seed by seed."""
    by_seed: list[dict[str, float]] = []
    for record in records:
        numbers: dict[str, float] = {}
        for side in ("free_running", "teacher_forced"):
            for name, value in record[side].items():
                if isinstance(value, int | float) and np.isfinite(value):
                    numbers[f"{side}.{name}"] = float(value)
        for name in GAPS:
            if {f"free_running.{name}", f"teacher_forced.{name}"} <= set(numbers):
                numbers[f"gap.{name}"] = numbers[f"free_running.{name}"] - numbers[f"teacher_forced.{name}"]
        by_seed.append(numbers | {n: float(record[n]) for n in _COSTS if isinstance(record.get(n), int | float)})
    shared = [name for name in by_seed[0] if all(name in numbers for numbers in by_seed)]
    return {name: [numbers[name] for numbers in by_seed] for name in shared}
