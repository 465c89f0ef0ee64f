"""Reading run folders: summaries, the growing metrics.jsonl, per-word results; and the shape of results.json."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NotRequired, TypedDict

from freerun.errors import CheckpointError
from freerun.metrics.table import PAIRS, TaskReport
from freerun.training.json_shapes import Count, expect, parse, read_lines
from freerun.training.log import Event
from freerun.training.run_folder import finished_summary


class _Item(TypedDict):
    source: str
    output: NotRequired[str]
    reference: NotRequired[str]
    references: NotRequired[list[str]]
    prompt: NotRequired[str]
    wrong: NotRequired[bool]
    right: NotRequired[bool]
    bleu: NotRequired[list[float]]
    errors: NotRequired[float | None]
    length: NotRequired[float | None]
    words: NotRequired[float | None]
    novel: NotRequired[float | None]
    nrmse: NotRequired[float | None]
    squared: NotRequired[float | None]
    absolute: NotRequired[float | None]
    one_step_nrmse: NotRequired[float | None]


class _Update(TypedDict):
    step: Count
    eligible: float
    replaced: float
    disagreeing: float
    teacher_forcing_ratio: NotRequired[float | None]


class _Evaluation(TypedDict):
    step: Count
    split: str
    teacher_forced: dict[str, float | None]
    free_running: dict[str, float | None]


class _Run(TypedDict):
    label: str
    method: str
    seed: Count
    folder: str
    data: str | None
    best: dict[str, Any]
    free_running: dict[str, float | None]
    teacher_forced: dict[str, float | None]
    versions: dict[str, str]


class _Line(TypedDict):
    method: str
    metric: str
    mean: float | None
    low: float | None
    high: float | None


class _Comparison(TypedDict):
    method: str
    baseline: str
    metric: str
    difference: float | None
    low: float | None
    high: float | None
    probability_better: float | None
    control: bool
    verdict: str


class Results(TypedDict):
    """results.json, schema 1."""

    recipe: dict[str, Any]
    test_words: Count
    runs: list[_Run]
    summary: list[_Line]
    comparisons: list[_Comparison]
    verdict: str


_EVENTS: dict[str, Any] = {"update": _Update, "evaluate": _Evaluation}


def summary(folder: Path) -> dict[str, Any] | None:
    """A run's summary.json, or None while it has none."""
    return finished_summary(folder)


def finished(folder: Path) -> bool:
    """True where the run came to its end."""
    return summary(folder) is not None


def items(folder: Path) -> list[dict[str, Any]]:
    """A finished run's test words, in order: source, output, references, errors, length, wrong."""
    path = folder / "test-items.jsonl"
    found = list(read_lines(path, dict[str, Any])) if path.exists() else []
    if not found:
        raise CheckpointError(
            f"{path} is {'empty' if path.exists() else 'missing'}: without it there are no intervals over test items\n"
            f"  help: remove {folder / 'summary.json'}; --resume tests the run's best weights again"
        )
    for number, item in enumerate(found, start=1):
        expect(item, _Item, f"{path}:{number}")
    return found


def events(folder: Path) -> list[dict[str, Any]]:
    """All events of a run, in order; [] before it wrote any. A half-written last line is left out."""
    path = folder / "metrics.jsonl"
    found = list(read_lines(path, dict[str, Any])) if path.exists() else []
    for number, event in enumerate(found, start=1):
        expect(event, Event, f"{path}:{number}")
        expect(event, _EVENTS.get(event["event"], Event), f"{path}:{number}")
    return found


class Follower:
    """How far a running run is, read from what it appended to metrics.jsonl since the last look."""

    def __init__(self, folder: Path, reported: TaskReport = PAIRS) -> None:
        self.reported = reported
        self.path = folder / "metrics.jsonl"
        self.updates = 0
        self.score: str = ""
        self._offset = 0

    def look(self) -> int:
        """Updates done so far."""
        try:
            with self.path.open("rb") as file:
                if self.path.stat().st_size < self._offset:
                    self._offset = 0
                file.seek(self._offset)
                new = file.read()
        except FileNotFoundError:
            return self.updates
        whole = new[: new.rfind(b"\n") + 1]
        self._offset += len(whole)
        for line in whole.splitlines():
            self._take(line)
        return self.updates

    def _take(self, line: bytes) -> None:
        event: dict[str, Any] = {**parse(line, Event, str(self.path))}
        if event["event"] == "update":
            self.updates = event.get("step", -1) + 1
        elif event["event"] == "evaluate" and event.get("split") == "dev":
            for measure in self.reported.compared:
                value = event.get(measure.side, {}).get(measure.score)
                if value is not None:
                    name = measure.heading.removesuffix(" %")
                    self.score = f"dev {name} {measure.shown(value, max(1, measure.decimals - 1))}"
                    return
