"""One life of a run: what it has open, how it counts, its scores on dev, and the test with its best weights."""

from __future__ import annotations

import json
import math
import platform
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor
from torch.nn import Module

from freerun.errors import CheckpointError, DivergedError, UserError
from freerun.metrics.table import higher_is_better, improves
from freerun.schedules import followed
from freerun.signals import Interrupt, StopFlag
from freerun.tasks.base import Evaluation, Method, Task, full_score_name, selected_score
from freerun.training import weights
from freerun.training.changes import Change, Keys, allowed
from freerun.training.checkpoint import TrainObjects, TrainState, folder_name
from freerun.training.files import NewerError, Stored, replace_file, write_folder
from freerun.training.log import Board, Metrics, Progress, RunState, Unwritten, jsonable, update_facts
from freerun.training.optim import learning_rate
from freerun.training.plan import BatchPlan, TrainSettings
from freerun.training.run_folder import FolderLock, checkpoints, finished_summary
from freerun.training.update import raise_explained

_SCORED = ("data", "evaluate", "seed", "train.select", "train.evaluate_items")
"""Keys that scores on dev depend on."""


def refuse_other_scores(method: Method, changes: Sequence[Change]) -> None:
    """Refuse changes after which scores are of another kind, where a schedule follows them."""
    names, keys = list(followed(method)), [change.key for change in changes if allowed(change, _SCORED)]
    if names and keys:
        raise UserError(
            f"{', '.join(names)} follows dev scores, and those before the change of {', '.join(keys)} are of another "
            "kind: begin in another folder, with --init"
        )


@dataclass(frozen=True)
class Job:
    """The arguments of ``fit``."""

    model: Module
    task: Task
    method: Method
    settings: TrainSettings
    folder: Path
    recipe: dict[str, Any] | None = None
    init: Path | None = None
    allow: tuple[str, ...] = ()
    keys: Keys = field(default_factory=Keys)


@dataclass(frozen=True, eq=False)
class Held:
    """What a caller of ``fit`` brings that took the folder itself."""

    lock: FolderLock  # of several processes the first holds it
    keys: Keys  # of the recipe's sections
    ready: Callable[[], None]  # called once nothing stands against the run, before its first file is written


@dataclass
class Run:
    """A job, what it has open, and its state; leaving it closes what is open."""

    job: Job
    parts: TrainObjects
    plan: BatchPlan
    identity: dict[str, Any]
    metrics: Metrics | Unwritten
    progress: Progress
    board: Board
    state: TrainState
    fresh: bool
    flag: StopFlag
    gold_update: dict[str, Any] = field(default_factory=dict[str, Any])
    change: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])
    dev: str = ""  # the newest score, as progress displays it
    _mark: tuple[float, float] = field(default_factory=lambda: (time.perf_counter(), time.process_time()))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.progress.close()
        self.metrics.close()
        self.board.close()

    @property
    def over(self) -> bool:
        """True if there is no further update to make."""
        return self.state.stopped_early or self.state.step >= self.job.settings.updates

    def diverged(self, error: DivergedError) -> None:
        """Write down that training diverged, and add to the error what there is to go on with."""
        step, settings = self.state.step, self.job.settings
        rate = learning_rate(max(step - 1, 0), settings)
        good = max(checkpoints(self.job.folder), default=None)  # only finite numbers are ever saved
        error.add(
            f"updates made: {step}; learning rate of the last {rate:g}; the last good checkpoint: "
            f"{good or 'none, as the first evaluation was not passed'}"
        )
        if not step:
            error.add(
                "help: no update was made, so the learning rate is not the cause: look for NaN in these rows, for a "
                "row that a padding mask hides wholly, and for weights that begin as NaN; "
                "freerun.check_model(model, batch) names what it finds"
            )
        else:
            self._add_rate_help(error, good)
        self.metrics.write({"event": "diverged", "step": step, "lr": rate, "seed": settings.seed, "error": str(error)})

    def _add_rate_help(self, error: DivergedError, good: Path | None) -> None:
        settings, folder = self.job.settings, self.job.folder
        error.add(
            "help: begin anew with a lower train.lr, a longer train.warmup or a tighter train.clip than "
            f"{settings.clip:g}"
            + ("" if good is None else f"; --init {folder} begins with the best weights of this run")
        )

    def lap(self, *, evaluation: bool = False) -> float:
        """Book the time since the last lap, as training or as evaluation; its wall seconds."""
        now = (time.perf_counter(), time.process_time())
        wall, cpu = now[0] - self._mark[0], now[1] - self._mark[1]
        self._mark = now
        if evaluation:
            self.state.evaluation_seconds += wall
            self.state.evaluation_cpu_seconds += cpu
        else:
            self.state.seconds += wall
            self.state.cpu_seconds += cpu
        return wall

    def changed(self, changed: Sequence[Change]) -> None:
        """Book what changes on purpose; scores on other data, or of another kind, are no best to compare with."""
        step = self.state.step
        self.change = [{"step": step, "key": c.key, "before": c.before, "after": c.after} for c in changed]
        self.state.changes = [*self.state.changes, *self.change]
        if any(allowed(change, _SCORED) for change in changed):
            self.state.best_step = self.state.best_value = None
            self.state.best_dev, self.state.stale = {}, 0
            self.state.due, self.state.stopped_early = True, False

    def count(self, record: dict[str, Any]) -> None:
        """Book an update, and write it down; ``seconds`` is training time since the run began."""
        self.lap()
        state = self.state
        state.step += 1
        state.decoder_passes += 1 + record["work"]
        state.eligible += record["eligible"]
        state.replaced += record["replaced"]
        record = {**record, "seconds": round(state.seconds, 3)}
        self.metrics.write(record)
        self.board.write(record, state.step)
        self.progress.show([RunState("training", "running", state.step, update_facts(record, self.dev))])


def versions() -> dict[str, str]:
    """Return the versions that a result depends on."""
    return {"freerun": version("freerun"), "torch": torch.__version__, "python": platform.python_version()}


def header(run: Run) -> dict[str, Any]:
    """Return the first line of metrics.jsonl."""
    settings = run.job.settings
    return {
        "event": "header",
        "method": run.job.method.name,
        "signature": repr(run.job.method),
        **{name: getattr(settings, name) for name in ("seed", "updates", "batch_size")},
        "processes": run.parts.processes.size,
        "select": settings.select,
        "examples": run.plan.examples,
        "parameters": sum(parameter.numel() for parameter in run.parts.model.parameters()),
        **({"method_parameters": extra} if (extra := method_parameters(run)) else {}),
        "data": run.job.task.fingerprint,
        "versions": versions(),
        "time": time.strftime("%Y-%m-%d %H:%M:%S"),
    }


def method_parameters(run: Run) -> int:
    """Return how many parameters the modules of the method have; they are no part of the model."""
    both = sum(parameter.numel() for parameter in run.parts.trained.parameters())
    return both - sum(parameter.numel() for parameter in run.parts.model.parameters())


def evaluate_dev(run: Run) -> None:
    """Score the weights (the averaged ones where there are) on dev, keep them if they are the best so far."""
    run.lap()
    with _evaluated_weights(run):
        with run.parts.wrapped.gathered():
            run.state, scores, value = run.parts.processes.on_main_rank(lambda: _score_dev(run))
        _pass_on(run, scores, value)
        if run.state.best_step == run.state.step:
            _keep_best(run)
    seconds, step, select = run.lap(evaluation=True), run.state.step, run.job.settings.select
    run.metrics.write({"event": "evaluate", "step": step, "split": "dev", **scores, "seconds": seconds})
    for kind, numbers in scores.items():
        run.board.write(numbers, step, f"dev/{kind}")
    run.dev = f"dev {select} {value:.3f}"
    near = improves(select, value, run.state.best_value)  # and where it is not kept: by too little
    standing = _standing(step, run.state.best_step, run.state.best_value, near=near)
    run.progress.note(f"dev after {step} updates: {select} {value:.3f} ({standing}), {seconds:.1f} s")


def _pass_on(run: Run, scores: dict[str, Any], value: float) -> None:
    """Give the schedules that follow a dev score theirs, on all ranks the same."""
    select, step = run.job.settings.select, run.state.step
    for schedule in followed(run.parts.wrapped.method).values():
        seen = _gap(select, scores["free_running"], scores["teacher_forced"]) if schedule.signal == "gap" else value
        schedule.observe(seen, step, higher=higher_is_better(select))


def _gap(select: str, free: dict[str, float], forced: dict[str, float]) -> float:
    """The score that selects, free-running minus teacher-forced.

    >>> _gap("per", {"per": 7.0}, {"per": 5.0, "loss": 0.5})
    2.0
    """
    name = full_score_name(select).removeprefix("free_running_").removeprefix("teacher_forced_")
    if name not in free or name not in forced:
        both = ", ".join(sorted(free.keys() & forced.keys())) or "none"
        raise UserError(
            f'signal="gap" needs the score that selects, train.select = {select!r}, free-running and teacher-forced; '
            f"on both sides there are: {both}"
        )
    return float(free[name] - forced[name])


def _standing(step: int, best_step: int | None, best: float | None, near: bool = False) -> str:
    """Return how a score compares with those before it.

    >>> _standing(5, 5, 0.25), _standing(9, 5, 0.25), _standing(5, None, None)
    ('best so far', 'best 0.250 at 5', 'no score was finite so far')
    >>> _standing(9, 5, 0.25, near=True)
    'too little better to replace 0.250 at 5'
    """
    if best is None:
        return "no score was finite so far"
    if best_step == step:
        return "best so far"
    return f"{'too little better to replace' if near else 'best'} {best:.3f} at {best_step}"


def _score_dev(run: Run) -> tuple[TrainState, dict[str, Any], float]:
    """Return the state with this evaluation in it, its scores, and the one that selects."""
    state, settings = run.state, run.job.settings
    evaluation = _evaluate(run, "dev")
    state.due = False
    value = selected_score(evaluation, settings.select)
    better = improves(settings.select, value, state.best_value, settings.min_delta)
    if state.best_step == 0:
        better = better and evaluation.off_start.get(settings.select.removeprefix("free_running_"), True)
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
    deployed = getattr(run.job.method, "deployed", lambda model: model)(model)
    doing = f"the evaluation on {split} after {run.state.step} updates"
    model.eval()
    try:
        if broken := weights.not_finite(model):
            raise DivergedError(f"weights are not finite: {', '.join(broken[:5])}")
        # nothing is lost by a signal here: it is not waited for the end
        with torch.no_grad(), run.flag.raising(True):
            evaluation = task.evaluate(deployed, split)
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

    def write() -> None:
        run.metrics.check()
        content = weights.pack(tensors)
        # a folder for each: earlier checkpoints name an earlier best
        write_folder(run.job.folder / "checkpoints" / folder_name(run.state.step, "best"), {weights.WEIGHTS: content})
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
            best = Stored(run.job.folder / "checkpoints" / folder_name(run.state.best_step, "best"))
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
            **({"gold_update": run.gold_update} if run.gold_update else {}),
            "replaced_share": state.replaced / state.eligible if state.eligible else math.nan,
            "best": {
                "step": state.best_step,
                "select": job.settings.select,
                "value": state.best_value,
                **state.best_dev,
            },
            "test": _numbers(evaluation),
            "data": job.task.fingerprint,
            **({"init": run.identity["init"]} if "init" in run.identity else {}),
            **({"changes": state.changes} if state.changes else {}),
            "versions": versions(),
        }
    )
    if run.flag.signal:
        raise Interrupt(run.flag.signal)
    replace_file(job.folder / "summary.json", json.dumps(summary, ensure_ascii=False, indent=1).encode())
    return summary
