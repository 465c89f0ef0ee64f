"""``fit``: the training loop, from an empty folder or a checkpoint to a summary."""

from __future__ import annotations

import hashlib
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch.nn import Module

from freerun.errors import CheckpointError
from freerun.training import checkpoint
from freerun.training.checkpoint import Parts, Tally
from freerun.training.files import clean
from freerun.training.finish import evaluate_dev, finish
from freerun.training.folder import FolderLock, finished_summary, refuse_used
from freerun.training.log import Board, Metrics
from freerun.training.optim import Ema, make_optimizer
from freerun.training.plan import BatchPlan
from freerun.training.progress import progress_for
from freerun.training.run import Job, Run, header
from freerun.training.settings import TrainSettings
from freerun.training.stop import StopFlag, stopped, vote
from freerun.training.task import Method, Task
from freerun.training.update import check_amp, update
from freerun.training.weights import start_from

__all__ = ["fit"]


def fit(
    model: Module,
    task: Task,
    method: Method,
    settings: TrainSettings,
    folder: Path,
    *,
    resume: bool = False,
    progress: bool = True,
    recipe: dict[str, Any] | None = None,
    init: Path | None = None,
) -> dict[str, Any]:
    """Train a model, keep its best weights by dev score, test them, and leave everything in a folder.

    An update is a pure function of (weights, optimizer state, seed, step): a run that was killed at any moment and
    resumed ends with the same bits (on one machine and build of PyTorch, on the CPU). PyTorch's global generator
    is seeded anew at every update and not put back. The model is trained on the device that it is on, and
    ends with the best weights.

    Args:
        model: the model, with its initial weights.
        task: data and scores.
        method: how it is trained.
        settings: how long and how fast.
        folder: the run's folder; made where it is missing.
        resume: go on from the newest valid checkpoint; a finished run gives its summary at once.
        progress: show what happens, on standard error.
        recipe: the resolved recipe, kept in the checkpoints and compared on resume.
        init: a run's folder whose best weights are the initial ones.

    Returns:
        The summary, as in ``summary.json``.

    Raises:
        OccupiedError: the folder holds a run (without resume), or another process trains in it.
        CheckpointError: no checkpoint can be used, or it belongs to another run; ``init`` does not fit.
        DivergedError: loss or gradient is not finite.
        ResourceError: the disk is full.
        StoppedError: SIGINT or SIGTERM came; a checkpoint was saved.
        UserError: the method leaves its range within the run, or ``select`` names no score.
    """
    folder = Path(folder)
    with FolderLock(folder) as lock, _threads(settings.threads), StopFlag() as flag:
        if not resume:
            refuse_used(folder)
        elif (summary := finished_summary(folder)) is not None:
            return summary
        check: Any = getattr(method, "check", None)
        if callable(check):
            check(settings.updates)
        job = Job(model, task, method, settings, folder, recipe=recipe, init=None if init is None else Path(init))
        with _open(job, resume=resume, progress=progress) as run:
            if lock.note:
                run.progress.note(lock.note)
            _train(run, flag)
            return finish(run)


def _open(job: Job, *, resume: bool, progress: bool) -> Run:
    model, settings, folder = job.model, job.settings, job.folder
    plan = BatchPlan(job.task.lengths, settings.batch_size, seed=settings.seed, bucket=settings.bucket)
    check_amp(model, settings)
    identity = _identity(job)
    parts = Parts(model, make_optimizer(model, settings), Ema(model, settings.ema) if settings.ema else None)
    clean(folder)
    clean(folder / "checkpoints")
    found = checkpoint.load_newest(folder, parts, identity) if resume else None
    if found is None and job.init is not None:
        start_from(job.init, model, job.task.describe())
        parts = replace(parts, ema=Ema(model, settings.ema) if settings.ema else None)
    tally, size = found or (Tally(), 0)
    return Run(
        job=job,
        parts=parts,
        plan=plan,
        identity=identity,
        board=Board(folder, tally.step) if settings.tensorboard else None,
        metrics=Metrics(folder / "metrics.jsonl", size),
        progress=progress_for(settings.updates, tally.step, progress),
        tally=tally,
        fresh=found is None,
    )


@contextmanager
def _threads(number: int) -> Generator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _identity(job: Job) -> dict[str, Any]:
    """What must be the same on resume."""
    identity: dict[str, Any] = {
        "train": asdict(job.settings),
        "method": repr(job.method),
        "data": job.task.fingerprint,
        "recipe": job.recipe or {},
    }
    if job.init is not None:
        path = job.init / "model" / "model.safetensors"
        if not path.is_file():
            raise CheckpointError(f"init: {path} is missing: not the folder of a run that has been evaluated")
        identity["init"] = hashlib.sha256(path.read_bytes()).hexdigest()[:16]
    return identity


def _train(run: Run, flag: StopFlag) -> None:
    run.parts.model.train()
    run.lap()
    if run.fresh:
        # the initial weights are a candidate too: a warm start may be the best there is
        run.metrics.write(header(run))
        evaluate_dev(run)
        _save(run)
    else:
        # the life before may have ended between saving and this
        checkpoint.prune(run.job.folder, run.job.settings.keep, run.tally)
    while not run.over:
        record = update(
            run.parts, run.job.task, run.job.method, plan=run.plan, step=run.tally.step, settings=run.job.settings
        )
        run.count(record)
        _boundary(run, flag)


def _boundary(run: Run, flag: StopFlag) -> None:
    """Between two updates: score, save and stop, in this order, so that a checkpoint holds its own score."""
    done, settings = run.tally.step, run.job.settings
    if done == settings.updates or done % settings.evaluate_every == 0:
        evaluate_dev(run)
    number = vote(flag.signal)
    if number or run.over or done % settings.save_every == 0:
        _save(run)
    if number:
        raise stopped(number, done)


def _save(run: Run) -> None:
    run.lap()
    checkpoint.save(run.job.folder, run.parts, run.tally, run.identity, run.metrics.sync())
    checkpoint.prune(run.job.folder, run.job.settings.keep, run.tally)
