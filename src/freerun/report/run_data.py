"""What a report draws, read from the run folders of a comparison."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from freerun.training import run_folder

_BINS = 40
Runs = Mapping[str, Sequence[Sequence[Mapping[str, Any]]]]
"""arm -> its runs' events, seed by seed."""


@dataclass(frozen=True)
class Curve:
    """A line of a figure."""

    arm: str
    number: int
    points: tuple[tuple[float, float], ...]
    planned: bool = False


def load(results: Mapping[str, Any], out: Path) -> Runs:
    """Return the events of every run, by arm."""
    found: dict[str, list[list[dict[str, Any]]]] = {}
    for run in results["runs"]:
        found.setdefault(run["label"], []).append(run_folder.events(out / run["folder"]))
    return found


def header(runs: Runs) -> Mapping[str, Any]:
    """Return the first header event that is found: examples, parameters."""
    every = (event for arm in runs.values() for events in arm for event in events)
    return next((event for event in every if event.get("event") == "header"), {})


def curves(runs: Runs, kind: str, metric: str) -> list[Curve]:
    """Return a dev score over training, a line for each run and one for each arm's mean."""
    found: list[Curve] = []
    for arm, by_seed in runs.items():
        lines = [Curve(arm, number, tuple(_scores(events, kind, metric))) for number, events in enumerate(by_seed)]
        lines = [line for line in lines if line.points]
        found += [*lines, *mean_curve(lines)]
    return found


def _scores(events: Sequence[Mapping[str, Any]], kind: str, metric: str) -> list[tuple[float, float]]:
    chosen = (e for e in events if e.get("event") == "evaluate" and e.get("split") == "dev")
    values = ((float(e["step"]), e.get(kind, {}).get(metric)) for e in chosen)
    return [(step, float(value)) for step, value in values if value is not None]


def settled(found: Sequence[Curve]) -> list[Curve]:
    """Without what lies above all values of the last 85 % of training, which would flatten the rest.

    >>> settled([Curve("a", 0, ((0, 200.0), (50, 30.0), (100, 20.0)))])[0].points
    ((50, 30.0), (100, 20.0))
    """
    points = [point for curve in found for point in curve.points]
    if not points:
        return []
    begin = 0.15 * max(step for step, _ in points)
    highest = max(value for step, value in points if step >= begin)
    return [replace(curve, points=tuple(point for point in curve.points if point[1] <= highest)) for curve in found]


def data_lines(results: Mapping[str, Any], out: Path) -> list[str]:
    """Return what the first run printed of its data; [] if no log is left."""
    try:
        log = out / "logs" / f"{Path(results['runs'][0]['folder']).name}.log"
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    except FileNotFoundError:
        return []
    begins = ("data:", "train:", "dev:", "test:", "symbols:", "subwords:", "BLEU:")
    return list(dict.fromkeys(line.strip() for line in lines if line.strip().startswith(begins)))


def mean_curve(lines: Sequence[Curve]) -> list[Curve]:
    """Return the mean over an arm's runs where all of them have a value; [] without any."""
    if not lines:
        return []
    tables = [dict(line.points) for line in lines]
    steps = [step for step in tables[0] if all(step in table for table in tables)]
    points = tuple((step, sum(table[step] for table in tables) / len(tables)) for step in steps)
    return [Curve(lines[0].arm, -1, points, lines[0].planned)]


def shares(runs: Runs, key: str) -> list[Curve]:
    """Share of eligible entries over training, in percent, in about 40 stretches; the mean over an arm's runs."""
    found: list[Curve] = []
    for arm, by_seed in runs.items():
        updates = [[event for event in events if event.get("event") == "update"] for events in by_seed]
        if not any(event.get("replaced") for events in updates for event in events):
            continue
        width = max(1, max(len(events) for events in updates) // _BINS)
        happened = [_binned(events, width, _share(key)) for events in updates]
        found += mean_curve([Curve(arm, i, points) for i, points in enumerate(happened)])
        if key == "replaced" and all(_scheduled_share(events) is not None for events in updates):
            scheduled = [_binned(events, width, _scheduled_share) for events in updates]
            found += mean_curve([Curve(arm, i, points, planned=True) for i, points in enumerate(scheduled)])
    return found


Events = Sequence[Mapping[str, Any]]


def _binned(events: Events, width: int, value: Callable[[Events], float | None]) -> tuple[tuple[float, float], ...]:
    points: list[tuple[float, float]] = []
    for start in range(0, len(events), width):
        stretch = events[start : start + width]
        found = value(stretch)
        if found is not None:
            points.append((start + len(stretch) / 2, 100 * found))
    return tuple(points)


def _share(key: str) -> Callable[[Events], float | None]:
    def share(events: Events) -> float | None:
        eligible = sum(event["eligible"] for event in events)
        return sum(event[key] for event in events) / eligible if eligible else None

    return share


def _scheduled_share(events: Events) -> float | None:
    ratios = [event["teacher_forcing_ratio"] for event in events]
    if not ratios or any(ratio is None for ratio in ratios):
        return None
    return 1 - sum(ratios) / len(ratios)


@dataclass(frozen=True)
class Agreement:
    """Test words that only one of two arms got right, for one seed."""

    seed: int
    only_first: int
    only_second: int
    both: int
    neither: int


@dataclass(frozen=True)
class Examples:
    """Words on which two arms differ."""

    first: str
    second: str
    seed: int
    tallies: tuple[Agreement, ...]
    words: tuple[tuple[str, tuple[str, ...], dict[str, tuple[str, bool]]], ...]


def examples(results: Mapping[str, Any], out: Path, pair: tuple[str, str], each: int = 5) -> Examples | None:
    """Words that one arm of a pair says right and the other wrong, as many from either side."""
    found: dict[tuple[str, int], dict[str, dict[str, Any]]] = {}
    for run in results["runs"]:
        items = run_folder.items(out / run["folder"])
        found[run["label"], run["seed"]] = {str(item["source"]): item for item in items}
    seeds = [run["seed"] for run in results["runs"] if run["label"] == pair[0]]
    if not all(found.values()) or not seeds or not all("wrong" in item for item in found[pair[0], seeds[0]].values()):
        return None
    tallies = tuple(_tally(found[pair[0], seed], found[pair[1], seed], seed) for seed in seeds)
    first, second = found[pair[0], seeds[0]], found[pair[1], seeds[0]]
    sides = [
        sorted(word for word in first if bool(first[word]["wrong"]) is wrong and second[word]["wrong"] != wrong)
        for wrong in (False, True)
    ]
    chosen = [word for side in sides for word in _spread(side, each)]
    outputs = {arm: words for (arm, seed), words in found.items() if seed == seeds[0]}
    rows = tuple(
        (
            word,
            tuple(first[word]["references"]),
            {arm: (words[word]["output"], bool(words[word]["wrong"])) for arm, words in outputs.items()},
        )
        for word in chosen
    )
    return Examples(pair[0], pair[1], seeds[0], tallies, rows)


def _tally(first: Mapping[str, Any], second: Mapping[str, Any], seed: int) -> Agreement:
    pairs = [(not first[word]["wrong"], not second[word]["wrong"]) for word in first]
    counts = [pairs.count(pair) for pair in ((True, False), (False, True), (True, True), (False, False))]
    return Agreement(seed, *counts)


def _spread(words: Sequence[str], count: int) -> list[str]:
    if len(words) <= count:
        return list(words)
    return [words[(2 * i + 1) * len(words) // (2 * count)] for i in range(count)]


@dataclass(frozen=True)
class SampleOutputs:
    """Outputs of every arm for the same items."""

    heading: str
    seed: int
    rows: tuple[tuple[str, str, dict[str, str]], ...]


def sample_outputs(results: Mapping[str, Any], out: Path, each: int = 4) -> SampleOutputs | None:
    """Return outputs of the arms, for tasks without right and wrong: translations, continuations."""
    seed = results["runs"][0]["seed"]
    listed = {run["label"]: run_folder.items(out / run["folder"]) for run in results["runs"] if run["seed"] == seed}
    items = next(iter(listed.values()))
    if not items or "wrong" in items[0] or "output" not in items[0]:  # words, and windows of values
        return None
    if any(len(found) != len(items) for found in listed.values()):
        return None
    rows: list[tuple[str, str, dict[str, str]]] = []
    for number in map(int, _spread([str(n) for n in range(len(items))], each)):
        item = items[number]
        reference = item["reference"] if "reference" in item else item["references"][0]
        outputs = {arm: str(found[number]["output"]) for arm, found in listed.items()}
        rows.append((str(item.get("prompt", item["source"])), str(reference), outputs))
    return SampleOutputs("goes on from" if "prompt" in items[0] else "source", seed, tuple(rows))
