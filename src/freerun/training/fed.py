"""What a run measures once it is trained: the histories that it feeds, and what an update on gold costs."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from freerun.batch import Batch
from freerun.diagnostics.ids import END
from freerun.errors import DivergedError
from freerun.keys import fold
from freerun.methods.scheduled_sampling import TeacherForcing
from freerun.rollin.model import eval_mode
from freerun.tasks.base import Examples, model_device
from freerun.training import weights
from freerun.training.files import replace_file
from freerun.training.log import jsonable
from freerun.training.parallelize import ParallelRun
from freerun.training.run import Run
from freerun.training.update import update
from freerun.types import evenly

FILE = "train-fed.json"
ROWS = 12
"""Training examples that are recorded."""
_ENTRIES = 400  # of a row
_CHANNELS = 4
_TIMED = 24  # updates, spread over the run


def record_fed(run: Run) -> None:
    """Write ``train-fed.json``: histories by the gates and draws of the last update, and the weights after it.

    Every process computes them, as a method may call a sharded model; the first one writes.
    """
    processes, task = run.parts.processes, run.job.task
    processes.at("the histories fed at the end")
    examples: Any = getattr(task, "examples", None)  # a task of one's own may have none
    if not run.state.step or examples is None:
        return
    run.lap()
    with run.parts.wrapped.gathered(), processes.raise_on_all_ranks():
        found = _fed(run, examples(ROWS))
        if found is not None and processes.first:
            replace_file(run.job.folder / FILE, json.dumps(jsonable(found), ensure_ascii=False).encode())
    run.lap(evaluation=True)


def time_gold(run: Run) -> None:
    """Time updates by teacher forcing on the run's batches, where ``train.time_gold`` asks for it; weights come back.

    Of several processes nothing is timed.
    """
    settings, parts = run.job.settings, run.parts
    if not settings.time_gold or parts.processes.size > 1:
        return
    run.lap()
    before = {name: tensor.clone() for name, tensor in weights.weights_of(parts.model).items()}
    method: Any = TeacherForcing()
    gold = replace(parts, ema=None, wrapped=ParallelRun(parts.model, method))
    on_cpu = model_device(parts.model).type == "cpu"
    clock = time.process_time if on_cpu else time.perf_counter
    steps = evenly(settings.updates, _TIMED)
    parts.model.train()
    with suppress(DivergedError):  # then nothing is known, and the control says so
        update(gold, run.job.task, settings, run.plan.at(steps[0]))  # what is allocated once is no update's cost
        start = clock()
        for step in steps:
            update(gold, run.job.task, settings, run.plan.at(step))
        seconds = (clock() - start) / len(steps)
        run.gold_update = {"clock": "cpu_seconds" if on_cpu else "seconds", "seconds": seconds, "updates": len(steps)}
    weights.load_weights(parts.model, before, "the run")
    run.lap(evaluation=True)


def _fed(run: Run, examples: Examples) -> dict[str, Any] | None:
    """Content of the file; None where the entries fed are aligned with no gold history."""
    model, settings = run.parts.model, run.job.settings
    device, step = model_device(model), run.plan.at(run.state.step - 1).step
    batch = examples.batch.to(device)
    devices = [device] if device.type == "cuda" else []
    with torch.no_grad(), torch.random.fork_rng(devices), eval_mode(model):
        torch.manual_seed(fold(settings.seed, "fed"))
        outcome = run.job.method.run(model, batch, step, fold(settings.seed, "train"))
    fed = outcome.fed
    if fed.time < batch.time:  # cut to its horizon
        cut = ("targets", "history", "mask", "eligible")
        parts = {name: None if (part := getattr(batch, name)) is None else part[:, : fed.time] for name in cut}
        batch = batch.made(**parts)
    if fed.history.shape != batch.history.shape:
        return None
    return {
        "kind": "ids" if batch.is_discrete else "values",
        "step": int(step),
        "teacher_forcing_ratio": outcome.report.get("teacher_forcing_ratio"),
        "sample": examples.sample,
        "channels": list(examples.channels[:_CHANNELS]),
        "rows": list(_rows(examples, batch.to("cpu"), fed.to("cpu"))),
    }


def _rows(examples: Examples, batch: Batch, fed: Batch) -> Iterator[dict[str, Any]]:
    """A row each: its source, gold, and the entries in place of it as (position, entry), from 0.

    Ids from the first that may be replaced on, values from the first on; not the last, which is read by nothing.
    """
    replaced, decode = fed.replaced, examples.decode
    if replaced is None:
        replaced = fed.history != batch.history
        replaced = replaced if batch.is_discrete else replaced.any(-1)

    def entries(history: Tensor, row: int) -> list[Any]:
        if batch.is_discrete:
            return [str(each) or END for each in (history.tolist() if decode is None else decode(history.tolist()))]
        found = history if examples.in_units is None else examples.in_units[row](history)
        return [[float(f"{each:.6g}") for each in values[:_CHANNELS]] for values in found.detach().tolist()]

    for row, source in enumerate(examples.sources):
        able, counts = batch.replaceable[row], batch.mask[row] | batch.replaceable[row]
        first = int(able.int().argmax()) if batch.is_discrete else 0
        last = int(counts.nonzero().max()) if bool(counts.any()) else 0
        part = slice(first, min(last, first + _ENTRIES))
        at = replaced[row, part].nonzero()[:, 0]
        own = zip(at.tolist(), entries(fed.history[row, part][at], row), strict=True)
        yield {"source": source, "gold": entries(batch.history[row, part], row), "fed": [list(pair) for pair in own]}
