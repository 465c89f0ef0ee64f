"""A training step and a validation step, as functions that any LightningModule can call."""

from __future__ import annotations

import math
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor

from freerun.errors import UserError
from freerun.integrations.lightning.callback import FreerunCallback
from freerun.keys import fold
from freerun.methods import FreeRunning, Method, TeacherForcing
from freerun.metrics import correct, sequence_correct
from freerun.types import Batch, Outcome

__all__ = ["training_step", "validation_step"]

_SHARDED = ("FSDPStrategy", "ModelParallelStrategy", "DeepSpeedStrategy")


def training_step(module: LightningModule, model: Any, batch: Any, method: Method, *, seed: int = 0) -> Tensor:
    """One micro-batch of a method, for ``LightningModule.training_step`` to return.

    Schedules are asked with the optimizer step, ``trainer.global_step``. Randomness is a function of (seed, optimizer
    step, row, position), and rows are numbered over window and processes, so that nothing of it is saved and the way a
    global batch is cut makes no difference.

    Args:
        module: whose trainer has a ``FreerunCallback``.
        model: from Batch to outputs; a part of the module.
        batch: a ``freerun.Batch``.
        method: how it is trained.
        seed: of coins and draws.

    Returns:
        The mean loss; where a window has several micro-batches or processes, this one's share of the total in a unit
        near it, as the mean is known only at the window's end (then it is logged, as ``train_loss``).

    Raises:
        UserError: the batch is no ``Batch``; the callback is missing; the module optimises by hand; the method leaves
            its range within the run; a method that asks the model under a strategy that shards it.
    """
    callback, trainer = FreerunCallback.of(module), module.trainer
    if callback.fresh:
        _refuse(module, method)
        callback.fresh = False
    numbered, step = callback.begin(_checked(batch, "training_step"), trainer)
    outcome = method.run(model, numbered, step, fold(seed, "train"))
    return callback.add(outcome, module, {"teacher_forcing_ratio", *getattr(method, "ranges", ())})


def validation_step(
    module: LightningModule, model: Any, batch: Any, method: Method, *, draw: Any = "auto", loader: int = 0
) -> None:
    """Score a batch told gold and told the model's own output; the callback logs the means at the end.

    Logged: ``teacher_forced_loss`` (gold history) and ``free_running_loss`` (own history: no gold is fed where the
    batch lets entries be replaced), both the method's objective against gold; for ids also ``..._token_accuracy``, and
    ``free_running_sequence_accuracy`` (greedily the same number told gold: no measure of exposure bias). Entry is
    compared with entry, as far as gold goes.

    Args:
        module: whose trainer has a ``FreerunCallback``.
        model: from Batch to outputs.
        batch: a ``freerun.Batch``.
        method: whose objective is scored.
        draw: from a prediction to the entry fed back; ``"auto"`` is greedy for ids, and values as predicted.
        loader: ``dataloader_idx``, where there are several.

    Raises:
        UserError: the batch is no ``Batch``; the callback is missing.

    What it is not: a score of what the model says up to its own end symbol: for that use ``freerun.generate``.
    """
    callback = FreerunCallback.of(module)
    given = callback.number_scored(_checked(batch, "validation_step"), module.trainer)
    objective: Any = getattr(method, "objective", "auto")
    chosen = draw if draw != "auto" else "greedy" if given.is_discrete else "point"
    with torch.no_grad():
        told = TeacherForcing(objective=objective).run(model, given, step=0)
        free = FreeRunning(draw=chosen, gradient="none", objective=objective).run(model, given, step=0)
    callback.score({**_sums("teacher_forced", told), **_sums("free_running", free)}, given.size, loader)


def _sums(label: str, outcome: Outcome) -> dict[str, tuple[float, float]]:
    batch = outcome.fed
    sums = {f"{label}_loss": (float(outcome.total), float(outcome.count))}
    if batch.is_discrete:
        right = correct(outcome.outputs, batch.targets, batch.mask)
        sums[f"{label}_token_accuracy"] = float(right.sum()), float(batch.mask.sum())
    if batch.is_discrete and label == "free_running":
        counted = batch.mask.any(1)
        whole = sequence_correct(outcome.outputs, batch.targets, batch.mask) & counted
        sums[f"{label}_sequence_accuracy"] = float(whole.sum()), float(counted.sum())
    return sums


def _checked(batch: Any, where: str) -> Batch:
    if isinstance(batch, Batch):
        return batch
    keys = f" with the keys {', '.join(map(str, batch))}" if isinstance(batch, dict) else ""
    raise UserError(
        f"{where} got a {type(batch).__name__}{keys}, and a method needs a freerun.Batch: let the loader's collate_fn "
        "make one, or give FreerunModule(to_batch=...), which is called on the device; for a Hugging Face model m = "
        "hf.adapt(model): to_batch=lambda d: m.batch(**d)"
    )


def _refuse(module: LightningModule, method: Method) -> None:
    problems: list[str] = []
    strategy = type(module.trainer.strategy).__name__
    if not module.automatic_optimization:
        problems.append(
            "the module optimises by hand (automatic_optimization = False), where Lightning does not say when a window "
            "ends: call method.run(model, batch, step, key) yourself and use its total and count"
        )
    if strategy in _SHARDED and getattr(method, "asks_model", True):
        problems.append(
            f"{method.name} calls the model as often as the data ask for, which hangs under {strategy}, where every "
            "process must make the same calls: use strategy='ddp', or teacher_forcing"
        )
    if problems:
        raise UserError(problems)
    steps = module.trainer.estimated_stepping_batches  # -1 or infinite where nobody knows
    if math.isfinite(steps) and steps >= 1:
        method.check(int(steps))
