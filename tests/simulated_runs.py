"""Run folders in the format of ``freerun train``, from made-up numbers: for tests of what reads such folders."""

import json
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from freerun.comparison.plan import PlannedRun, plan
from freerun.comparison.results import collect, write
from freerun.recipes.recipe import Arm, MethodSettings


def arm(label: str, method: str, **parameters: Any) -> Arm:
    return Arm(label, MethodSettings(method, parameters))


FALLING = {"schedule": "linear", "start": 1.0, "end": 0.5}
ARMS = (
    arm("teacher_forcing", "teacher_forcing"),
    arm("scheduled_sampling", "scheduled_sampling", teacher_forcing_ratio=FALLING),
    arm("token_noise", "token_noise", noise="uniform", rate={"matched_to": "scheduled_sampling"}),
)
RECIPE: dict[str, Any] = {
    "name": "simulated", "seed": 0, "data": {"kind": "toy"},
    "train": {"updates": 200, "batch_size": 64}, "compare": {"seeds": [0, 1], "workers": 2},
}  # fmt: skip
PHONES = ["AA", "AE", "AH", "B", "D", "EH", "F", "G", "IH", "IY", "K", "L", "M", "N", "OW", "P", "R", "S", "T", "Z"]


def word_list(count: int) -> list[tuple[str, str]]:
    random = np.random.default_rng(7)
    letters = list("abcdefghiklmnoprstu")
    seen: dict[str, str] = {}
    while len(seen) < count:
        size = int(random.integers(4, 10))
        word = "".join(random.choice(letters, size))
        seen.setdefault(word, " ".join(random.choice(PHONES, max(2, size - 1))))
    return list(seen.items())


def write_run(
    folder: Path, run: PlannedRun, words: Sequence[tuple[str, str]], *, advantage: float = 0.0, updates: int = 200
) -> None:
    """One finished run whose wrong words are drawn with log-odds ``-1 + difficulty + advantage + noise``."""
    folder.mkdir(parents=True, exist_ok=True)
    shared = np.random.default_rng(1)
    difficulty = shared.normal(0, 1.5, len(words))
    random = np.random.default_rng(sum(map(ord, run.arm.label)) * 1000 + run.seed)
    level = -1.0 + advantage + random.normal(0, 0.05)
    wrong = difficulty + random.normal(0, 0.8, len(words)) + level > 0
    items = []
    for (source, reference), is_wrong in zip(words, wrong, strict=True):
        symbols = reference.split()
        output = list(symbols)
        if is_wrong:
            output[int(random.integers(len(output)))] = "ZH"
        item = {"source": source, "output": " ".join(output), "references": [reference]}
        items.append(item | {"errors": int(is_wrong), "length": len(symbols), "wrong": bool(is_wrong)})
    wer = 100 * float(wrong.mean())
    per = 100 * sum(item["errors"] for item in items) / sum(item["length"] for item in items)
    method = run.arm.method.name
    write_metrics(folder, method, updates, random, (wer, per))
    scores = {
        "teacher_forced": {"loss": 0.2 + random.normal(0, 0.004), "wer": wer, "per": per * 0.6},
        "free_running": {"wer": wer, "per": per, "sequence_accuracy": 100 - wer},
    }
    write_finished(
        folder, run, scores, items, schema=1, signature=f"{method}(...)", updates=updates, cpu_seconds=60.0,
        seconds=60 + 15 * (method == "scheduled_sampling") + random.normal(0, 1), examples=5000, parameters=123456,
        decoder_passes=updates * (1.0 + 0.9 * (method == "scheduled_sampling")), best={"step": updates, "per": per},
        data="0123abcd", versions={"freerun": "0.1.0", "torch": "2.13.0", "python": "3.11"},
    )  # fmt: skip


def write_lines(path: Path, lines: Iterable[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")


def write_finished(folder: Path, run: PlannedRun, test: Any, items: list[dict[str, Any]], **more: Any) -> None:
    """The summary and the items of a finished run of any task."""
    folder.mkdir(parents=True, exist_ok=True)
    write_lines(folder / "test-items.jsonl", items)
    summary = {
        "finished": True, "method": run.arm.method.name, "seed": run.seed, "updates": 9, "seconds": 1.0, "data": "00",
        "test": test, "versions": {}, "best": {},
    }  # fmt: skip
    (folder / "summary.json").write_text(json.dumps(summary | more), encoding="utf-8")


def write_metrics(
    folder: Path, method: str, updates: int, random: np.random.Generator, last: tuple[float, float]
) -> None:
    lines: list[dict[str, Any]] = [{"event": "header", "method": method, "updates": updates}]
    for step in range(updates):
        ratio = 1 - 0.5 * step / updates if method == "scheduled_sampling" else None
        error = 0.05 + 0.8 * math.exp(-4 * step / updates)
        share = (1 - ratio) if ratio is not None else 0.5 * step / updates * error
        replaced = int(random.binomial(600, 0 if method == "teacher_forcing" else share))
        disagreeing = int(random.binomial(replaced, error)) if ratio is not None else replaced
        line = {"event": "update", "step": step, "loss": 3 * error, "lr": 1e-3, "grad_norm": 1.0, "seconds": 0.3 * step}
        line |= {"teacher_forcing_ratio": ratio, "eligible": 600.0, "replaced": float(replaced)}
        lines.append(line | {"disagreeing": float(disagreeing), "passes": 0.9 if ratio else 0.0})
        if (step + 1) % (updates // 10) == 0:
            left = 60 * math.exp(-5 * (step + 1) / updates) + random.normal(0, 0.3)
            wer, per = last[0] + left, last[1] + left / 3
            scores = {"teacher_forced": {"loss": 3 * error, "wer": wer, "per": per * 0.6}}
            scores["free_running"] = {"wer": wer, "per": per, "sequence_accuracy": 100 - wer}
            lines.append({"event": "evaluate", "step": step + 1, "split": "dev", "seconds": 1.0, **scores})
    write_lines(folder / "metrics.jsonl", lines)


def write_comparison(
    out: Path, *, seeds: Sequence[int] = (0, 1), words: int = 300, advantages: dict[str, float] | None = None,
    arms: Sequence[Arm] = ARMS, updates: int = 200, margin: float | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Write a finished comparison with its results.json; return its results."""
    listed = word_list(words)
    runs = plan(arms, seeds)
    for run in runs:
        advantage = (advantages or {}).get(run.arm.label, 0.0)
        write_run(out / "runs" / run.name, run, listed, advantage=advantage, updates=updates)
    runs.sort(key=lambda run: (list(arms).index(run.arm), run.seed))
    compared = {"seeds": list(seeds), "workers": 2, **({} if margin is None else {"margin": margin})}
    results = collect({**RECIPE, "compare": compared}, runs, out)
    write(results, out)
    return results
