"""What a report draws, read from the run folders of a comparison."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from freerun.training import run_folder

Entry = TypeVar("Entry")
Events = Sequence[Mapping[str, Any]]
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
    by_arm: dict[str, list[list[dict[str, Any]]]] = {}
    for run in results["runs"]:
        by_arm.setdefault(run["label"], []).append(run_folder.events(out / run["folder"]))
    return by_arm


def header(runs: Runs) -> Mapping[str, Any]:
    """Return the first header event of all runs: examples, parameters."""
    every = (event for arm in runs.values() for events in arm for event in events)
    return next((event for event in every if event.get("event") == "header"), {})


def curves(runs: Runs, kind: str, metric: str) -> list[Curve]:
    """Return a dev score over training, a line for each run and one for each arm's mean."""
    lines: list[Curve] = []
    for arm, by_seed in runs.items():
        own = [Curve(arm, number, tuple(_scores(events, kind, metric))) for number, events in enumerate(by_seed)]
        lines += _with_mean([line for line in own if line.points])
    return lines


def _scores(events: Sequence[Mapping[str, Any]], kind: str, metric: str) -> list[tuple[float, float]]:
    chosen = (e for e in events if e.get("event") == "evaluate" and e.get("split") == "dev")
    values = ((float(e["step"]), e.get(kind, {}).get(metric)) for e in chosen)
    return [(step, float(value)) for step, value in values if value is not None]


def settled(lines: Sequence[Curve]) -> list[Curve]:
    """Without what lies above all values of the last 85 % of training, which would flatten the rest.

    >>> settled([Curve("a", 0, ((0, 200.0), (50, 30.0), (100, 20.0)))])[0].points
    ((50, 30.0), (100, 20.0))
    """
    points = [point for curve in lines for point in curve.points]
    begin = 0.15 * max((step for step, _ in points), default=0)
    highest = max((value for step, value in points if step >= begin), default=0)
    return [replace(curve, points=tuple(point for point in curve.points if point[1] <= highest)) for curve in lines]


def data_lines(results: Mapping[str, Any], out: Path) -> list[str]:
    """Return what the first run printed of its data; [] if no log is left."""
    try:
        log = out / "logs" / f"{Path(results['runs'][0]['folder']).name}.log"
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    except FileNotFoundError:
        return []
    begins = ("data:", "train:", "dev:", "test:", "symbols:", "subwords:", "BLEU:")
    return list(dict.fromkeys(line.strip() for line in lines if line.strip().startswith(begins)))


def _with_mean(lines: Sequence[Curve]) -> list[Curve]:
    """Return an arm's lines, and their mean where all of them have a value; [] without any."""
    if not lines:
        return []
    tables = [dict(line.points) for line in lines]
    steps = [step for step in tables[0] if all(step in table for table in tables)]
    points = tuple((step, sum(table[step] for table in tables) / len(tables)) for step in steps)
    return [*lines, Curve(lines[0].arm, -1, points, lines[0].planned)]


def shares(runs: Runs, key: str) -> list[Curve]:
    """Share of eligible entries over training, in percent, in about 40 stretches; the mean over an arm's runs."""

    def realised(events: Events) -> float | None:
        eligible = sum(event["eligible"] for event in events)
        return sum(event[key] for event in events) / eligible if eligible else None

    lines: list[Curve] = []
    for arm, by_seed in runs.items():
        updates = [[event for event in events if event.get("event") == "update"] for events in by_seed]
        if not any(event.get("replaced") for events in updates for event in events):
            continue
        width = max(1, max(map(len, updates)) // _BINS)
        measured = [(realised, False)]
        if key == "replaced" and all(_scheduled_share(events) is not None for events in updates):
            measured.append((_scheduled_share, True))
        for share, planned in measured:
            own = [Curve(arm, n, _binned(events, width, share), planned) for n, events in enumerate(updates)]
            lines += _with_mean(own)[-1:]
    return lines


def _binned(events: Events, width: int, value: Callable[[Events], float | None]) -> tuple[tuple[float, float], ...]:
    stretches = ((start, events[start : start + width]) for start in range(0, len(events), width))
    values = ((start + len(stretch) / 2, value(stretch)) for start, stretch in stretches)
    return tuple((step, 100 * share) for step, share in values if share is not None)


def _scheduled_share(events: Events) -> float | None:
    ratios = [event["teacher_forcing_ratio"] for event in events]
    return None if not ratios or None in ratios else 1 - sum(ratios) / len(ratios)


Rights = tuple[int, int, int, int]


@dataclass(frozen=True)
class Examples:
    """Words on which two arms differ: outputs of every arm for the first seed, with True where they are wrong.

    Args:
        seed: the first one.
        counts: seed -> words right in the first arm only, in the second only, in both, in neither.
        words: word, references, and arm -> (output, wrong).
    """

    seed: int
    counts: dict[int, Rights]
    words: tuple[tuple[str, tuple[str, ...], dict[str, tuple[str, bool]]], ...]


Tested = Mapping[tuple[str, int], Sequence[Mapping[str, Any]]]
"""(arm, seed) -> the run's test items."""


def test_items(results: Mapping[str, Any], out: Path) -> Tested:
    """Return every run's test items."""
    return {(run["label"], run["seed"]): run_folder.items(out / run["folder"]) for run in results["runs"]}


def examples(tested: Tested, pair: tuple[str, str], each: int = 5) -> Examples | None:
    """Return words that one arm of a pair gets right and the other wrong, as many from either side."""
    by_run = {run: {str(item["source"]): item for item in items} for run, items in tested.items()}
    seeds = [seed for arm, seed in tested if arm == pair[0]]
    if not all(by_run.values()) or not seeds or not all("wrong" in item for item in by_run[pair[0], seeds[0]].values()):
        return None

    def rights(seed: int) -> Rights:
        first, second = (by_run[arm, seed] for arm in pair)
        pairs = Counter((not first[word]["wrong"], not second[word]["wrong"]) for word in first)
        return pairs[True, False], pairs[False, True], pairs[True, True], pairs[False, False]

    first, second = (by_run[arm, seeds[0]] for arm in pair)
    sides = [
        sorted(word for word in first if bool(first[word]["wrong"]) is wrong and second[word]["wrong"] != wrong)
        for wrong in (False, True)
    ]
    outputs = {arm: words for (arm, seed), words in by_run.items() if seed == seeds[0]}
    words = tuple(
        (
            word,
            tuple(first[word]["references"]),
            {arm: (items[word]["output"], bool(items[word]["wrong"])) for arm, items in outputs.items()},
        )
        for side in sides
        for word in _spread(side, each)
    )
    return Examples(seeds[0], {seed: rights(seed) for seed in seeds}, words)


def _spread(entries: Sequence[Entry], count: int) -> list[Entry]:
    """Return some entries, at even distances."""
    if len(entries) <= count:
        return list(entries)
    return [entries[(2 * i + 1) * len(entries) // (2 * count)] for i in range(count)]
