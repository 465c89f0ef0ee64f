"""Reading run folders: summaries, the growing metrics.jsonl, per-word results."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from freerun.errors import UserError
from freerun.training.reported import PAIRS, Reported

__all__ = ["Follower", "events", "finished", "items", "summary"]


def summary(folder: Path) -> dict[str, Any] | None:
    """A run's summary.json, or None while it has none."""
    try:
        return json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise UserError(f"{folder / 'summary.json'} is not JSON ({error}); run it again") from error


def finished(folder: Path) -> bool:
    """True where the run came to its end."""
    found = summary(folder)
    return found is not None and bool(found.get("finished"))


def items(folder: Path) -> list[dict[str, Any]]:
    """A run's test words, in order: source, output, references, errors, length, wrong; [] without."""
    return _lines(folder / "test-items.jsonl")


def events(folder: Path) -> list[dict[str, Any]]:
    """All events of a run, in order; [] before it wrote any. A half-written last line is left out."""
    return _lines(folder / "metrics.jsonl")


def _lines(path: Path) -> list[dict[str, Any]]:
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return []
    whole = text[: text.rfind("\n") + 1].splitlines()
    return [json.loads(line) for line in whole if line.strip()]


class Follower:
    """How far a running run is, read from what it appended to metrics.jsonl since the last look.

    Args:
        folder: of the run.
        reported: which scores its task has.
    """

    def __init__(self, folder: Path, reported: Reported = PAIRS) -> None:
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
        event = json.loads(line)
        if event.get("event") == "update":
            self.updates = int(event["step"]) + 1
        elif event.get("event") == "evaluate" and event.get("split") == "dev":
            for measure in map(self.reported.measure, self.reported.compared):
                value = event.get(measure.side, {}).get(measure.score)
                if value is not None:
                    name = measure.heading.removesuffix(" %")
                    self.score = f"dev {name} {measure.shown(value, max(1, measure.decimals - 1))}"
                    return
