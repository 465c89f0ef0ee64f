"""Scoring on dev while training, and the test at the end with the best weights."""

from __future__ import annotations

import json
import math
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from freerun.errors import CheckpointError, DivergedError
from freerun.metrics.table import improves
from freerun.signals import Interrupt
from freerun.tasks.base import Evaluation, selected_score
from freerun.training.checkpoint import TrainState, best_name
from freerun.training.files import Stored, replace_file, write_folder
from freerun.training.json_shapes import NewerError
from freerun.training.log import jsonable
from freerun.training.run_folder import finished_summary
from freerun.training.state import Run, versions
from freerun.training.update import explained
from freerun.training.weights import (
    check_model_files,
    load_weights,
    misfits,
    model_info,
    not_finite,
    pack,
    read_tensors,
    specs_of,
    weights_of,
    write_model,
)


def evaluate_dev(run: Run) -> None:
    """Score the weights (the averaged ones where there are) on dev, keep them if they are the best so far."""
    run.lap()
    processes = run.parts.processes
    with _evaluated_weights(run):
        with _whole(run):
            run.tally, evaluation, kept = processes.on_main_rank(lambda: _scored(run))
        if kept:
            _keep_best(run)
    seconds = run.lap(evaluation=True)
    tally, value = run.tally, selected_score(evaluation, run.job.settings.select)
    record = {"event": "evaluate", "step": tally.step, "split": "dev", **_numbers(evaluation), "seconds": seconds}
    run.metrics.write(record)
    if run.board is not None:
        for kind, scores in _numbers(evaluation).items():
            run.board.write(scores, tally.step, f"dev/{kind}")
    better = _so_far(tally.step, tally.best_step, tally.best_value)
    run.progress.note(
        f"dev after {tally.step} updates: {run.job.settings.select} {value:.3f} ({better}), {seconds:.1f} s"
    )


def _scored(run: Run) -> tuple[TrainState, Evaluation, bool]:
    """Return the counts with this evaluation in them, its scores, and True if the weights are to be kept."""
    tally, settings = run.tally, run.job.settings
    evaluation = _scores(run, "dev")
    tally.due = False
    value = selected_score(evaluation, settings.select)
    kept = improves(settings.select, value, tally.best_value)
    # weights kept for an equal score are no reason to go on
    tally.stale = 0 if kept and value != tally.best_value else tally.stale + 1
    tally.stopped_early = settings.patience is not None and tally.stale >= settings.patience
    if kept:
        tally.best_step, tally.best_value = tally.step, value
        tally.best_dev = jsonable(_numbers(evaluation))
    # items, curves and figures are of the test alone
    return tally, Evaluation(dict(evaluation.teacher_forced), dict(evaluation.free_running)), kept


def _so_far(step: int, best_step: int | None, best: float | None) -> str:
    """Return how a score stands to those before it.

    >>> _so_far(5, 5, 0.25), _so_far(9, 5, 0.25), _so_far(5, None, None)
    ('best so far', 'best 0.250 at 5', 'no score was finite so far')
    """
    if best is None:
        return "no score was finite so far"
    return "best so far" if best_step == step else f"best {best:.3f} at {best_step}"


def _numbers(evaluation: Evaluation) -> dict[str, Any]:
    return {"teacher_forced": dict(evaluation.teacher_forced), "free_running": dict(evaluation.free_running)}


def _evaluated_weights(run: Run) -> Any:
    return nullcontext() if run.parts.ema is None else run.parts.ema.applied(run.parts.model)


def _whole(run: Run) -> Any:
    """Inside the first process can use the model without the others."""
    return nullcontext() if run.parts.wrapped is None else run.parts.wrapped.gathered()


def _scores(run: Run, split: str) -> Evaluation:
    model, task = run.parts.model, run.job.task
    doing = f"the evaluation on {split} after {run.tally.step} updates"
    model.eval()
    try:
        if broken := not_finite(model):
            raise DivergedError(f"weights are not finite: {', '.join(broken[:5])}")
        # nothing is lost by a signal here: it is not waited for the end
        with torch.no_grad(), run.flag.raising(True):
            evaluation = task.evaluate(model, split)
        loss = evaluation.teacher_forced.get("loss", 0.0)
        if not math.isfinite(loss):
            raise DivergedError(f"the teacher-forced loss is {loss:g}")
    except Exception as error:
        size = getattr(getattr(task, "settings", None), "batch_size", None)
        smaller = "a smaller model (model.size)" if size is None else f"--set evaluate.batch_size={max(1, size // 2)}"
        found = explained(error, model, f"{doing} ({size} at a time)" if size else doing, smaller)
        if found is error:
            raise
        raise found from error
    finally:
        model.train()
    return evaluation


def _keep_best(run: Run) -> None:
    weights = weights_of(run.parts.model)
    # a folder for each: checkpoints that are gone back to speak of an earlier best
    best = run.job.folder / "checkpoints" / best_name(run.tally.step)

    def write() -> None:
        run.metrics.check()
        content = pack(weights)
        write_folder(best, {"model.safetensors": content})
        write_model(run.job.folder, content, model_info(run.parts.model, run.job.task.describe()), run.job.task)

    run.parts.processes.on_main_rank(write)


def finished_run(folder: Path) -> dict[str, Any] | None:
    """Return the summary of a finished run whose model is whole."""
    summary = finished_summary(folder)
    if summary is not None:
        try:
            check_model_files(folder)
        except NewerError:
            raise
        except CheckpointError:
            return None
    return summary


def final_test(run: Run) -> dict[str, Any]:
    """Test the best weights, write ``model/``, test-items.jsonl and last of all summary.json; the summary."""
    run.lap()
    model, processes = run.parts.model, run.parts.processes
    processes.at("the final test")
    load_weights(model, processes.broadcast(_best_weights(run)), str(run.job.folder))
    content = weights_of(model)
    if run.parts.wrapped is not None:
        run.parts.wrapped.gather()
    summary = processes.on_main_rank(lambda: _tested(run, pack(content)))
    model.eval()
    return summary


def _best_weights(run: Run) -> dict[str, Tensor] | None:
    """Return the best weights on the first rank, None on the others."""
    if run.tally.best_step is not None:
        best = run.job.folder / "checkpoints" / best_name(run.tally.best_step)
        with run.parts.processes.raise_on_all_ranks():
            own = specs_of(weights_of(run.parts.model))
            if run.parts.processes.first:
                return read_tensors(Stored(best), "model.safetensors", lambda found: misfits(found, own))
        return None
    # every score was NaN: the last weights are all there is
    with _evaluated_weights(run):
        return weights_of(run.parts.model)


def _tested(run: Run, content: bytes) -> dict[str, Any]:
    model, tally = run.parts.model, run.tally
    evaluation = _scores(run, "test")
    model.eval()
    run.lap(evaluation=True)
    run.metrics.check()
    lines = [json.dumps(jsonable(item), ensure_ascii=False) + "\n" for item in evaluation.items]
    replace_file(run.job.folder / "test-items.jsonl", "".join(lines).encode())
    if evaluation.forecasts:
        replace_file(run.job.folder / "test-forecasts.json", json.dumps(jsonable(evaluation.forecasts)).encode())
    if evaluation.curves:
        replace_file(run.job.folder / "test-curves.json", json.dumps(jsonable(dict(evaluation.curves))).encode())
    write_model(run.job.folder, content, model_info(model, run.job.task.describe()), run.job.task)
    summary = jsonable(
        {
            "schema": 1,
            "finished": True,
            "method": run.job.method.name,
            "signature": repr(run.job.method),
            "seed": run.job.settings.seed,
            "updates": tally.step,
            "stopped_early": tally.stopped_early,
            "examples": run.plan.examples,
            "parameters": sum(parameter.numel() for parameter in model.parameters()),
            **_costs(run),
            "best": {
                "step": tally.best_step,
                "select": run.job.settings.select,
                "value": tally.best_value,
                **tally.best_dev,
            },
            "test": _numbers(evaluation),
            "data": run.job.task.fingerprint,
            **({"changes": tally.changes} if tally.changes else {}),
            "versions": versions(),
        }
    )
    if run.flag.signal:
        raise Interrupt(run.flag.signal)
    replace_file(run.job.folder / "summary.json", json.dumps(summary, ensure_ascii=False, indent=1).encode())
    return summary


def _costs(run: Run) -> dict[str, float]:
    """``seconds`` and ``cpu_seconds`` are training's alone; all lives of the run are in them."""
    tally = run.tally
    return {
        "seconds": round(tally.seconds, 3),
        "cpu_seconds": round(tally.cpu_seconds, 3),
        "evaluation_seconds": round(tally.evaluation_seconds, 3),
        "cpu_seconds_total": round(tally.cpu_seconds + tally.evaluation_cpu_seconds, 3),
        "decoder_passes": tally.decoder_passes,
        "replaced_share": tally.replaced / tally.eligible if tally.eligible else math.nan,
    }
