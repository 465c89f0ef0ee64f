"""``fit``: the training loop, from an empty folder or a checkpoint to a summary."""

from __future__ import annotations

import shutil
from collections.abc import Collection
from contextlib import ExitStack
from dataclasses import asdict, fields, is_dataclass
from pathlib import Path
from typing import Any

import torch
from torch.nn import Module

from freerun.arguments import code_digest
from freerun.errors import CheckpointError, DivergedError, ResourceError, UserError, refuse
from freerun.keys import fold
from freerun.schedules import followed
from freerun.signals import Interrupt, StopFlag, stopped
from freerun.tasks.base import Method, Task
from freerun.training import checkpoint, weights
from freerun.training.changes import check_allow, section_keys
from freerun.training.checkpoint import Saved, TrainObjects, TrainState, newest, restore
from freerun.training.fed import record_fed, time_gold
from freerun.training.log import Board, Metrics, Progress, Unwritten, board_class, progress_for
from freerun.training.memory import check_memory
from freerun.training.optim import Ema, Needed, make_optimizer
from freerun.training.parallelize import ParallelRun, refuse_wrapped
from freerun.training.plan import BatchPlan, TrainSettings
from freerun.training.processes import Processes, join_processes, lost
from freerun.training.run import (
    Held,
    Job,
    Run,
    evaluate_dev,
    final_test,
    finished_run,
    header,
    method_parameters,
    refuse_other_scores,
)  # fmt: skip
from freerun.training.run_folder import FolderLock, checkpoints, clean_run, refuse_foreign, refuse_lost, refuse_used
from freerun.training.update import check_amp, device_of, update


def preflight(model: Module, task: Task, settings: TrainSettings, init: Path | None = None) -> None:
    """Raise here what ``fit`` would raise before its first update; nothing is written."""
    check_amp(model, settings)
    if settings.tensorboard:
        board_class()
    if init is not None:
        weights.start_from(init, model, task.describe())


def require_space(folder: Path, model: Module, settings: TrainSettings) -> None:
    """Refuse a run whose checkpoints cannot fit on the disk; nothing is written."""
    needed = Needed.of(model, settings)
    # the next one is written before the last one goes; so are the best weights, in checkpoints/ and in model/
    total = (settings.keep + 1) * needed.bytes + 4 * weights.spec_bytes(needed.weights)
    ours = [*checkpoints(folder, ""), folder / "model"]
    held = sum(path.stat().st_size for each in ours for path in each.glob("*") if path.is_file())
    around = next(each for each in (folder.absolute(), *folder.absolute().parents) if each.exists())
    free = shutil.disk_usage(around).free + held
    if total > free:
        each = f"{settings.keep + 1} checkpoints of {needed.bytes:,}, and the best weights"
        raise ResourceError(
            f"{folder}: the run needs about {total:,} bytes ({each}), and {free:,} are free: make room, lower "
            "train.keep, or give a folder on another disk"
        )


def check_scores(method: Any, settings: TrainSettings) -> None:
    """Refuse a schedule that follows a dev score where there are too few evaluations for it ever to move."""
    scores = 1 + (settings.updates - 1) // settings.evaluate_every  # the first before any update
    refuse(
        [
            f"{name}={schedule!r} moves after {schedule.patience} dev scores that are no better than the first, and "
            f"the run has {scores} before its last update (evaluate_every = {settings.evaluate_every:,} of "
            f"{settings.updates:,} updates): evaluate more often, train longer, or use another schedule"
            for name, schedule in followed(method).items()
            if scores <= schedule.patience
        ]
    )


def _checked_plan(job: Job, processes: Processes) -> BatchPlan:
    """Move the model to its device and return the order of the examples; raise what is wrong with the job."""
    settings = job.settings
    if not any(weight.requires_grad for weight in job.model.parameters()):
        raise UserError(f"{type(job.model).__name__} has no weights that learn: no parameter requires a gradient")
    check: Any = getattr(job.method, "check", None)
    if callable(check):
        check(settings.updates)
    check_scores(job.method, settings)
    plan = BatchPlan(job.task.lengths, settings.batch_size, seed=settings.seed, bucket=settings.bucket)
    check_amp(job.model, settings)
    refuse_wrapped(job.model)
    job.model.to(device_of(job.model, settings))
    if settings.accumulate * processes.size > settings.batch_size:
        raise UserError(
            f"batch_size = {settings.batch_size} examples of an update cannot be cut into accumulate x processes = "
            f"{settings.accumulate} x {processes.size} micro-batches: start fewer processes, or raise batch_size"
        )
    return plan


def fit(
    model: Module,
    task: Task,
    method: Method,
    settings: TrainSettings,
    folder: Path,
    *,
    resume: bool = False,
    progress: bool | Progress = True,
    recipe: dict[str, Any] | None = None,
    init: Path | None = None,
    allow: Collection[str] = (),
    held: Held | None = None,
) -> dict[str, Any]:
    """Train a model, keep its best weights by dev score, test them, and leave everything in a folder.

    An update is a pure function of (weights, optimizer state, seed, step): a run that was killed at any moment and
    resumed ends with the same bits (on one machine and build of PyTorch, on the CPU). PyTorch's global generator
    is seeded anew at every update and not put back. The model is trained on the device that it is on, or
    that the settings name, and ends with the best weights.

    Started by ``torchrun`` in several processes, these make each update together: each a part of the same batch, with
    the same examples, coins and noise as one process. The first one evaluates and writes. See ``docs/distributed.md``.

    Args:
        model: the model, with its initial weights.
        task: data and scores.
        method: how it is trained.
        settings: how long and how fast.
        folder: the run's folder; created where it is missing.
        resume: go on from the newest valid checkpoint; of a finished run return the summary at once.
        progress: display what happens, on standard error; or a display of one's own.
        recipe: the resolved recipe, kept in the checkpoints and compared on resume.
        init: a run's folder whose best weights are the initial ones.
        allow: keys that may be others than those the run was begun with, such as ``train.lr``, ``data`` or ``method``;
            each change is written to metrics.jsonl and to the summary.
        held: of a caller that holds the folder already.

    Returns:
        The summary, as in ``summary.json``.

    A method with a horizon is tried at its longest first: what an update then needs of memory is printed, and refused
    where it is more than there is.

    Raises:
        OccupiedError: the folder holds a run (without resume), or another process trains in it.
        CheckpointError: no checkpoint can be used, it belongs to another run, or there is none of a run that made
            updates; the folder is gone; ``init`` does not fit.
        DivergedError: loss or gradient is not finite.
        OtherProcessError: another process failed, for a reason that it reports.
        ResourceError: the disk is full, or too small for the run's checkpoints; the longest horizon does not fit into
            memory.
        StoppedError: SIGINT or SIGTERM came; a checkpoint was saved.
        UserError: the method leaves its range within the run, ``select`` names no score, or the model is wrapped for
            several processes already.
    """
    job = Job(
        model, task, method, settings, Path(folder), recipe=recipe, init=None if init is None else Path(init),
        allow=tuple(allow), keys=section_keys(recipe, train=TrainSettings) if held is None else held.keys,
    )  # fmt: skip
    check_allow(allow, job.keys, resume=resume)

    def enter() -> tuple[dict[str, Any] | None, str | None]:
        lock = stack.enter_context(FolderLock(job.folder)) if held is None else held.lock
        refuse_foreign(job.folder)
        if not resume:
            refuse_used(job.folder)
        # what is lost of a finished run is written again, from its checkpoints
        return finished_run(job.folder) if resume else None, lock.note

    with join_processes(settings.rank_timeout) as processes, StopFlag() as flag, ExitStack() as stack:
        stack.callback(torch.set_num_threads, torch.get_num_threads())
        torch.set_num_threads(settings.threads)
        summary, note = processes.on_main_rank(enter)
        if summary is not None:
            return summary
        with _open(job, processes, flag, held, resume=resume, progress=progress) as run:
            if note:
                run.progress.note(note)
            return _train_and_test(run)


def _train_and_test(run: Run) -> dict[str, Any]:
    """Train and test; a signal is raised where it interrupts nothing but an evaluation."""
    with run.flag.raising(False):
        try:
            _train(run)
            record_fed(run)
            time_gold(run)
            return final_test(run)
        except DivergedError as error:
            run.diverged(error)
            raise
        except RuntimeError as error:
            if run.flag.signal and lost(error):
                raise stopped(run.flag.signal, "as another process was: go on with --resume") from error
            raise
        except Interrupt as interrupt:
            done = f"after {run.state.step} updates"
            if interrupt.late:  # the others may be anywhere
                raise stopped(
                    interrupt.number, f"{done}, in what took too long to finish: go on with --resume"
                ) from None
            with run.parts.processes.raise_on_all_ranks():
                raise stopped(interrupt.number, f"{done}; a checkpoint is saved: go on with --resume") from None


def _open(
    job: Job, processes: Processes, flag: StopFlag, held: Held | None, *, resume: bool, progress: bool | Progress
) -> Run:
    model, settings, folder = job.model, job.settings, job.folder
    identity = processes.on_main_rank(lambda: identity_of(job))
    saved: Saved | None = None
    with processes.raise_on_all_ranks():
        plan = _checked_plan(job, processes)
        if processes.first:
            saved = _weights(job, identity, resume=resume)
    if processes.size > 1:
        weights.load_weights(
            model, processes.broadcast(weights.weights_of(model) if processes.first else None), "the first process"
        )
    with processes.raise_on_all_ranks():
        owned = method_modules(job)
        wrapped = ParallelRun(
            model, job.method, processes, settings.parallel, record=settings.record_errors, owned=owned
        )
    ema = Ema(model, settings.ema) if settings.ema else None
    parts = TrainObjects(model, make_optimizer(wrapped.trained, settings), ema, wrapped)
    state, before, size, changed = processes.on_main_rank(
        lambda: (
            (saved.state, saved.processes, saved.metrics_bytes, saved.changes) if saved else (TrainState(), 0, 0, [])
        )
    )
    if before:
        restore(parts, saved, state)
    with processes.raise_on_all_ranks():
        if held is not None and processes.first:
            held.ready()
        board = Board(folder, state.step, on=settings.tensorboard and processes.first)
        metrics = Metrics(folder / "metrics.jsonl", size) if processes.first else Unwritten()
        display = progress
        if not isinstance(display, Progress):
            display = progress_for(settings.updates, done=state.step, visible=display and processes.first)
        run = Run(job, parts, plan, identity, metrics, display, board, state, fresh=not before, flag=flag)
    if before not in (0, processes.size):
        run.progress.note(
            f"the run was made by {before} process{'es' if before > 1 else ''} and goes on with {processes.size}: "
            "examples, coins and noise are the same; sums are rounded otherwise, and dropout differs unless "
            "accumulate x processes is as it was"
        )
    if extra := method_parameters(run):
        run.progress.note(f"{job.method.name}: {extra:,} parameters of its own, which are no part of the model")
    run.changed(changed)
    return run


def method_modules(job: Job) -> Module | None:
    """Return the modules of a method that has any, made anew; the method has no state afterwards."""
    getattr(job.method, "load_state_dict", dict)({})  # its object may have trained another model
    make: Any = getattr(job.method, "modules", None)
    if make is None:
        return None
    example = job.task.batch([0], torch.arange(1)).to(next(job.model.parameters()).device)
    return make(job.model, example, fold(job.settings.seed, "train"))


def _weights(job: Job, identity: dict[str, Any], *, resume: bool) -> Saved | None:
    """Load the weights that the model begins with; return the checkpoint they are of."""
    clean_run(job.folder)
    require_space(job.folder, job.model, job.settings)
    needed = Needed.of(job.model, job.settings)
    saved = newest(job.folder, identity, needed, job.keys, job.allow) if resume else None
    if saved is not None:
        if saved.state.step > job.settings.updates:
            raise CheckpointError(
                f"updates = {job.settings.updates:,}, and {saved.state.step:,} were made already ({saved.path}): give "
                "at least as many, or begin in another folder"
            )
        refuse_other_scores(job.method, saved.changes)
        if any(change.key == "data" for change in saved.changes):
            weights.refuse_other_vocabularies(
                job.folder, weights.read_info(job.folder)["describe"], job.task.describe()
            )
        weights.load_weights(job.model, saved.weights, str(saved.path))
        return saved
    if resume:
        refuse_lost(job.folder)
    if job.init is not None:
        weights.start_from(job.init, job.model, job.task.describe())
    return None


def identity_of(job: Job) -> dict[str, Any]:
    """Return what must be the same on resume."""
    identity: dict[str, Any] = {
        "train": asdict(job.settings),
        "method": repr(job.method),
        "data": job.task.fingerprint,
        "recipe": job.recipe or {},
    }
    if job.init is not None:
        identity["init"] = weights.digest(job.init)
    if code := _code_of(job.method):
        identity["code"] = code
    return identity


def _code_of(method: Any) -> dict[str, str]:
    """Argument -> hash of its text, of functions and callable objects that are not freerun's."""
    values = {f.name: getattr(method, f.name) for f in fields(method) if f.repr} if is_dataclass(method) else {}
    found = {name: code_digest(each) for name, each in values.items() if callable(each)}
    return {name: digest for name, digest in found.items() if digest is not None}


def _train(run: Run) -> None:
    settings = run.job.settings
    run.parts.model.train()
    with run.parts.processes.raise_on_all_ranks():
        check_memory(run)
    run.lap()
    if run.fresh:
        run.metrics.write(header(run))
        # the initial weights are a candidate too: a warm start may be the best there is
        run.state.due = True
    else:
        for record in run.change:  # written and saved: going on again needs no leave
            run.metrics.write({"event": "change", **record})
            before, after = record["before"], record["after"]
            run.progress.note(f"changed after {record['step']} updates: {record['key']} from {before} to {after}")
        # the life before may have ended between saving and this
        run.parts.processes.on_main_rank(lambda: checkpoint.prune(run.job.folder, settings.keep, run.state))
    if run.state.due or run.change:
        if run.state.due:
            _evaluate(run)
        _save(run)
    while not run.over:
        record = update(run.parts, run.job.task, settings, run.plan.at(run.state.step))
        with run.parts.processes.raise_on_all_ranks():
            run.count(record)
        # score, save and stop, in this order, so that a checkpoint holds its own score
        done = run.state.step
        if done == settings.updates or done % settings.evaluate_every == 0:
            _evaluate(run)
        # all stop after the same update
        number = run.parts.processes.max_over_ranks(run.flag.signal)
        if number or run.over or done % settings.save_every == 0:
            _save(run)
        if number:
            raise Interrupt(number)


def _evaluate(run: Run) -> None:
    """Score on dev; where a signal comes the weights are saved, and are scored in the next life."""
    run.parts.processes.at(f"the evaluation after {run.state.step} updates")
    try:
        evaluate_dev(run)
    except Interrupt:
        run.lap(evaluation=True)
        run.state.due = True
        _save(run)
        raise


def _save(run: Run) -> None:
    run.parts.processes.at(f"saving after {run.state.step} updates")
    run.lap()
    with run.parts.processes.raise_on_all_ranks():
        checkpoint.save(run.job.folder, run.parts, run.state, run.identity, run.metrics.sync())
        if run.parts.processes.first:
            checkpoint.prune(run.job.folder, run.job.settings.keep, run.state)
