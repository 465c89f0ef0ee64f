"""One optimizer update: an accumulation window, its exact mean, and a refusal to go to NaN."""

from __future__ import annotations

import math
import sys
from contextlib import nullcontext
from resource import RUSAGE_SELF, getrusage
from typing import Any, NoReturn

import torch
from torch.nn import LSTM, Module

from freerun.errors import DivergedError, ResourceError, UserError, out_of_memory
from freerun.keys import fold
from freerun.methods.report import StepStats
from freerun.tasks.base import Task
from freerun.training.checkpoint import TrainObjects
from freerun.training.optim import learning_rate
from freerun.training.parallelize import Trained, full_tensor
from freerun.training.plan import TrainSettings, UpdateBatch, pieces
from freerun.training.processes import local_rank, reported_like
from freerun.training.weights import not_finite


def device_of(model: Module, settings: TrainSettings) -> torch.device:
    """Where a model is to be trained."""
    if settings.device != "cuda":
        return torch.device("cpu") if settings.device == "cpu" else next(model.parameters()).device
    visible, number = torch.cuda.device_count(), local_rank()
    if number < visible:
        return torch.device("cuda", number)
    raise UserError(
        f"device = 'cuda': PyTorch sees {visible or 'no'} GPU{'s' if visible > 1 else ''} here, and this is process "
        f"{number} of this machine, counted from 0: start one process for each GPU, or set device = 'cpu'"
    )


def check_amp(model: Module, settings: TrainSettings) -> None:
    """Refuse mixed precision that the processor's kernels cannot run."""
    device = device_of(model, settings)
    if settings.amp == "no" or not any(isinstance(module, LSTM) for module in model.modules()):
        return
    try:
        with torch.autocast(device.type, dtype=torch.bfloat16), torch.no_grad():
            LSTM(1, 1, device=device)(torch.zeros(1, 1, 1, device=device))
    except RuntimeError as error:
        if out_of_memory(error):
            raise
        raise UserError(
            f"amp = 'bf16': PyTorch has no bf16 LSTM for this {device.type} ({str(error).splitlines()[0]}); set amp = "
            "'no', or take another cell"
        ) from error


def update(parts: TrainObjects, task: Task, settings: TrainSettings, planned: UpdateBatch) -> dict[str, Any]:
    """Make an update and return its line of metrics.jsonl."""
    step, size = int(planned.step), parts.processes.size
    parts.processes.at(f"update {step}", strict=True)
    try:
        return _update(parts, task, settings, planned)
    except Exception as error:
        longest = max(task.lengths[int(index)] for index in planned.indices)
        share = f"{settings.accumulate} x {size} micro-batches"
        more = 2 * settings.accumulate
        raise_explained(
            error,
            parts.model,
            f"update {step}: {len(planned.indices)} examples of up to {longest} positions in {share}",
            f"--set train.accumulate={more} makes the same update of smaller pieces"
            if more * size <= settings.batch_size
            else "a smaller model (model.size), or shorter examples",
        )


def _update(parts: TrainObjects, task: Task, settings: TrainSettings, planned: UpdateBatch) -> dict[str, Any]:
    parts.optimizer.zero_grad(set_to_none=True)
    step, processes = int(planned.step), parts.processes
    window = _window(parts, task, settings, planned)
    rate = learning_rate(step, settings)
    # wrappers average over processes
    with processes.together():
        norm, *own = (
            _scale_gradients(each, window.count / processes.size, settings.clip) for each in _clipped(parts.trained)
        )
    loss = window.total / window.count if window.count else math.nan
    if not all(map(math.isfinite, (loss, norm, *own))):
        parts.optimizer.zero_grad(set_to_none=True)
        norms = " and ".join(f"{each:g}" for each in (norm, *own))
        numbers = f"loss {loss:g}, gradient norm {norms}, lr {rate:g}, seed {settings.seed}"
        with processes.raise_on_all_ranks():
            raise _diverged(step, numbers, window, planned)
    for group in parts.optimizer.param_groups:
        group["lr"] = rate
    parts.optimizer.step()
    if parts.ema is not None:
        parts.ema.update(parts.model, step)
    getattr(parts.wrapped.method, "updated", dict)(window.values())
    return {
        "event": "update",
        "step": step,
        "loss": loss,
        "lr": rate,
        "grad_norm": norm,
        "teacher_forcing_ratio": None,
        **window.values(),
        **{name: int(getattr(window, name)) for name in ("eligible", "replaced", "disagreeing")},
        **{name: getattr(window, name) for name in ("deviation", "passes", "work")},
        "engine": ", ".join(sorted(window.engines)),
        "certified": ", ".join(sorted(window.certified)),
        **({"errors": window.errors} if settings.record_errors else {}),
    }


def _window(parts: TrainObjects, task: Task, settings: TrainSettings, planned: UpdateBatch) -> StepStats:
    """Run an update's micro-batches forward and backward; return the sums over all ranks."""
    run, processes, step = parts.wrapped, parts.processes, planned.step
    device = next(parts.model.parameters()).device
    window = StepStats.of(run.method)
    own = pieces(planned, settings.accumulate, processes.rank, processes.size)
    with processes.raise_on_all_ranks():  # before the first call that others wait in
        batches = [task.batch(piece.indices, piece.rows) for piece in own]
    for piece, batch in zip(own, batches, strict=True):
        # where nothing counts the gradient is 0, and no number of the update has it
        nothing = {} if piece.counts else {"mask": torch.zeros_like(batch.mask), "eligible": batch.replaceable}
        with run.last(piece is own[-1]):
            # sharded weights are gathered from all for a forward
            with processes.raise_on_all_ranks(), processes.together() if run.sharded else nullcontext():
                torch.manual_seed(fold(settings.seed, "model", step, piece.number))
                with torch.autocast(device.type, dtype=torch.bfloat16, enabled=settings.amp == "bf16"):
                    total, count, report = run(batch.made(**nothing).to(device), step, fold(settings.seed, "train"))
            with processes.together():
                total.backward()
        if piece.counts:
            window.add(report, total, count, weight=len(piece.indices) / len(planned.indices))
    run.drop_unused()
    return StepStats.summed(processes.all_gather(window.record()))


def _clipped(trained: Module) -> list[Module]:
    """What is clipped by a norm each: the model, and what its method trains beside it where that has a gradient."""
    if not isinstance(trained, Trained):
        return [trained]
    # the model's update must not hang on how large a gradient its method's modules have
    return [trained.model, *([trained.owned] if any(p.grad is not None for p in trained.owned.parameters()) else [])]


def _scale_gradients(model: Module, count: float, clip: float) -> float:
    """Divide gradients by the count and clip them, in place; return the norm before clipping."""
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    if not gradients or not count:
        return math.nan
    norm = float(full_tensor(torch.nn.utils.get_total_norm(gradients))) / count
    if math.isfinite(norm):
        # a norm of exactly 0 divides nothing
        factor = min(1.0, clip / norm) if clip and norm else 1.0
        for gradient in gradients:
            gradient.mul_(factor / count)
    return norm


def _diverged(step: int, numbers: str, window: StepStats, planned: UpdateBatch) -> UserError:
    if not window.count:
        return UserError(f"update {step}: no position of the batch counts in the loss (its mask is all False)")
    values = "".join(f", {name} {value:g}" for name, value in window.scheduled.items())
    examples = " ".join(str(int(index)) for index in planned.indices)
    return DivergedError(
        f"training diverged at update {step}, which was not made: {numbers}{values}\n"
        f"  its training examples, in which to look for NaN or huge values: {examples}"
    )


def raise_explained(error: Exception, model: Module, doing: str, smaller: str) -> NoReturn:
    """Raise an error of training, explained if memory ran out or numbers went to NaN, else as it is."""
    if str(error).startswith("training diverged"):
        raise error
    line = " ".join((str(error).splitlines() or [""])[0].split())[:200]
    if out_of_memory(error):
        most = getrusage(RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
        peak = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else most
        explained: UserError = ResourceError(
            f"out of memory in {doing}: {line or type(error).__name__}\n  at most {peak / 2**20:,.0f} MiB were in use; "
            f"the last checkpoint is untouched\n  help: {smaller}"
        )
    else:
        broken = [] if isinstance(error, DivergedError) else not_finite(model)
        if not broken and not isinstance(error, DivergedError):
            raise error
        why = f" (weights are not finite: {', '.join(broken[:5])})" if broken else ""
        explained = DivergedError(f"training diverged, seen in {doing}: {line}{why}")
    raise reported_like(explained, error) from error
