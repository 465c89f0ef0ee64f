"""A small world to train in: reversing words, a small recurrent model, scheduled sampling."""

import json
import os
import signal
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module

import freerun as fr
from freerun.batch import Batch
from freerun.data.builtin_pairs import load_toy
from freerun.tasks.pairs import PairTask
from freerun.training import Evaluation, TrainSettings, fit

WALL_CLOCK = {
    "seconds", "time", "cpu_seconds", "cpu_seconds_total", "evaluation_seconds", "evaluation_cpu_seconds",
    "metrics_bytes",  # the size of a file of seconds
}  # fmt: skip
SMALL = TrainSettings(
    updates=24, batch_size=12, accumulate=2, lr=1e-2, warmup=4, decay="cosine", ema=0.9, evaluate_every=8, save_every=5
)


def make_task(seed: int = 0) -> PairTask:
    return PairTask(load_toy("reverse", words={"train": 80, "dev": 6, "test": 6}, max_length=4, symbols=5, seed=seed))


def make_model(task: Any, seed: int = 0, **settings: Any) -> Module:
    torch.manual_seed(seed)
    sizes = {"size": 8, "dropout": 0.2, **settings}
    return fr.models.RecurrentSeq2Seq(*task.data.codec.sizes, **sizes)


def make_method() -> Any:
    return fr.scheduled_sampling(fr.schedules.linear(start=1.0, end=0.3, steps=24))


def train(folder: Path, settings: TrainSettings = SMALL, **options: Any) -> dict[str, Any]:
    task = options.pop("task", None) or make_task()
    model = options.pop("model", None) or make_model(task)
    method = options.pop("method", None) or make_method()
    return fit(model, task, method, settings, folder, **{"progress": False, **options})


def without_clock(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: without_clock(part) for name, part in value.items() if name not in WALL_CLOCK}
    if isinstance(value, list):
        kept = [each for each in value if not (isinstance(each, dict) and each.get("metric") in WALL_CLOCK)]
        return [without_clock(each) for each in kept]
    return value


def lines(folder: Path, event: str | None = None) -> list[dict[str, Any]]:
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [without_clock(record) for record in records if event in (None, record["event"])]


def fingerprints(folder: Path) -> dict[str, Any]:
    """All that a run leaves and that must not depend on how often it was stopped."""
    found: dict[str, Any] = {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name not in ("manifest.json", "state.json", "metrics.jsonl", "summary.json")
    }
    found["metrics.jsonl"] = lines(folder)
    found["summary.json"] = without_clock(json.loads((folder / "summary.json").read_text()))
    return found


class Wrapped:
    """A task that does something before it makes a batch or evaluates; what that returns is taken in its place."""

    def __init__(self, task: Any = None, before: Any = None, evaluate: Any = None) -> None:
        self.task, self.before, self.instead = task or make_task(), before, evaluate
        self.calls = self.evaluations = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.task, name)

    def batch(self, indices: Sequence[int], rows: Tensor) -> Batch:
        self.calls += 1
        batch = self.task.batch(indices, rows)
        changed = self.before(self.calls, batch) if self.before else None
        return batch if changed is None else changed

    def evaluate(self, model: Any, split: str) -> Evaluation:
        self.evaluations += 1
        found = self.instead(self.evaluations, model, split) if self.instead else None
        return self.task.evaluate(model, split) if found is None else found


class OtherIds(Wrapped):
    """A task whose symbols have other ids."""

    fingerprint = "0000"

    def describe(self) -> dict[str, Any]:
        described = self.task.describe()
        return {name: value[::-1] if isinstance(value, list) else value for name, value in described.items()}


def signalled(at: int, number: int = signal.SIGTERM, *, evaluation: bool = False, wait: bool = False) -> Wrapped:
    """A task that gets a signal at its n-th batch, or evaluation, and then goes on for a minute."""

    def act(call: int, *_: Any) -> None:
        if call == at:
            os.kill(os.getpid(), number)
            time.sleep(60 if wait else 0)

    return Wrapped(evaluate=act) if evaluation else Wrapped(before=act)


def changed(**changes: Any) -> TrainSettings:
    assert asdict(SMALL).keys() >= changes.keys()
    return replace(SMALL, **changes)
