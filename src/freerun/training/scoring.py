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
from freerun.training import weights
from freerun.training.checkpoint import TrainState, best_name
from freerun.training.files import NewerError, Stored, replace_file, write_folder
from freerun.training.log import jsonable
from freerun.training.run_folder import finished_summary
from freerun.training.state import Run, versions
from freerun.training.update import raise_explained


def evaluate_dev(run: Run) -> None:
    """Score the weights (the averaged ones where there are) on dev, keep them if they are the best so far."""
    run.lap()
    with _evaluated_weights(run):
        with run.parts.wrapped.gathered():
            run.state, scores, value = run.parts.processes.on_main_rank(lambda: _score_dev(run))
        if run.state.best_step == run.state.step:
            _keep_best(run)
    seconds, step, select = run.lap(evaluation=True), run.state.step, run.job.settings.select
    run.metrics.write({"event": "evaluate", "step": step, "split": "dev", **scores, "seconds": seconds})
    for kind, numbers in scores.items():
        run.board.write(numbers, step, f"dev/{kind}")
    best_step, best = run.state.best_step, run.state.best_value
    standing = "best so far" if best_step == step else "no score was finite so far"
    if best is not None and best_step != step:
        standing = f"best {best:.3f} at {best_step}"
    run.progress.note(f"dev after {step} updates: {select} {value:.3f} ({standing}), {seconds:.1f} s")


def _score_dev(run: Run) -> tuple[TrainState, dict[str, Any], float]:
    """Return the state with this evaluation in it, its scores, and the one that selects."""
    state, settings = run.state, run.job.settings
    evaluation = _evaluate(run, "dev")
    state.due = False
    value = selected_score(evaluation, settings.select)
    better = improves(settings.select, value, state.best_value)
    # weights kept for an equal score are no reason to go on
    state.stale = 0 if better and value != state.best_value else state.stale + 1
    state.stopped_early = settings.patience is not None and state.stale >= settings.patience
    if better:
        state.best_step, state.best_value = state.step, value
        state.best_dev = jsonable(_numbers(evaluation))
    return state, _numbers(evaluation), value


def _numbers(evaluation: Evaluation) -> dict[str, Any]:
    return {"teacher_forced": dict(evaluation.teacher_forced), "free_running": dict(evaluation.free_running)}


def _evaluated_weights(run: Run) -> Any:
    return nullcontext() if run.parts.ema is None else run.parts.ema.applied(run.parts.model)


def _evaluate(run: Run, split: str) -> Evaluation:
    model, task = run.parts.model, run.job.task
    doing = f"the evaluation on {split} after {run.state.step} updates"
    model.eval()
    try:
        if broken := weights.not_finite(model):
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
        raise_explained(error, model, f"{doing} ({size} at a time)" if size else doing, smaller)
    finally:
        model.train()
    return evaluation


def _keep_best(run: Run) -> None:
    tensors = weights.weights_of(run.parts.model)
    # a folder for each: earlier checkpoints name an earlier best
    best = run.job.folder / "checkpoints" / best_name(run.state.step)

    def write() -> None:
        run.metrics.check()
        content = weights.pack(tensors)
        write_folder(best, {weights.WEIGHTS: content})
        weights.write_model(run.job.folder, content, run.parts.model, run.job.task)

    run.parts.processes.on_main_rank(write)


def finished_run(folder: Path) -> dict[str, Any] | None:
    """Return the summary of a finished run whose model is complete."""
    summary = finished_summary(folder)
    try:
        if summary is not None:
            weights.check_model_files(folder)
    except NewerError:
        raise
    except CheckpointError:
        return None
    return summary


def final_test(run: Run) -> dict[str, Any]:
    """Test the best weights, write ``model/``, test-items.jsonl and last of all summary.json; return the summary."""
    run.lap()
    model, processes = run.parts.model, run.parts.processes
    processes.at("the final test")
    weights.load_weights(model, processes.broadcast(_best_weights(run)), str(run.job.folder))
    content = weights.weights_of(model)
    run.parts.wrapped.gather()
    summary = processes.on_main_rank(lambda: _test(run, weights.pack(content)))
    model.eval()
    return summary


def _best_weights(run: Run) -> dict[str, Tensor] | None:
    """Return the best weights on the first rank, None on the others."""
    if run.state.best_step is None:  # every score was NaN: the last weights are all there is
        with _evaluated_weights(run):
            return weights.weights_of(run.parts.model)
    with run.parts.processes.raise_on_all_ranks():
        own = weights.specs_of(weights.weights_of(run.parts.model))
        if run.parts.processes.first:
            best = Stored(run.job.folder / "checkpoints" / best_name(run.state.best_step))
            return weights.read_tensors(best, weights.WEIGHTS, lambda specs: weights.misfits(specs, own))
    return None


def _test(run: Run, content: bytes) -> dict[str, Any]:
    model, state, job = run.parts.model, run.state, run.job
    evaluation = _evaluate(run, "test")
    model.eval()
    run.lap(evaluation=True)
    run.metrics.check()
    lines = [json.dumps(jsonable(item), ensure_ascii=False) + "\n" for item in evaluation.items]
    replace_file(job.folder / "test-items.jsonl", "".join(lines).encode())
    for name, numbers in (("forecasts", evaluation.forecasts), ("curves", dict(evaluation.curves))):
        if numbers:
            replace_file(job.folder / f"test-{name}.json", json.dumps(jsonable(numbers)).encode())
    weights.write_model(job.folder, content, model, job.task)
    summary = jsonable(
        {
            "schema": 1,
            "finished": True,
            "method": job.method.name,
            "signature": repr(job.method),
            "seed": job.settings.seed,
            "updates": state.step,
            "stopped_early": state.stopped_early,
            "examples": run.plan.examples,
            "parameters": sum(parameter.numel() for parameter in model.parameters()),
            # training's alone; all lives of the run are in them
            "seconds": round(state.seconds, 3),
            "cpu_seconds": round(state.cpu_seconds, 3),
            "evaluation_seconds": round(state.evaluation_seconds, 3),
            "cpu_seconds_total": round(state.cpu_seconds + state.evaluation_cpu_seconds, 3),
            "decoder_passes": state.decoder_passes,
            "replaced_share": state.replaced / state.eligible if state.eligible else math.nan,
            "best": {
                "step": state.best_step,
                "select": job.settings.select,
                "value": state.best_value,
                **state.best_dev,
            },
            "test": _numbers(evaluation),
            "data": job.task.fingerprint,
            **({"changes": state.changes} if state.changes else {}),
            "versions": versions(),
        }
    )
    if run.flag.signal:
        raise Interrupt(run.flag.signal)
    replace_file(job.folder / "summary.json", json.dumps(summary, ensure_ascii=False, indent=1).encode())
    return summary
