"""One optimizer update: an accumulation window, its exact mean, and a refusal to go to NaN."""

from __future__ import annotations

import math
import sys
from contextlib import nullcontext
from resource import RUSAGE_SELF, getrusage
from typing import Any

import torch
from torch import Tensor
from torch.nn import LSTM, Module

from freerun.batch import Batch
from freerun.errors import DivergedError, ResourceError, UserError, out_of_memory
from freerun.keys import fold
from freerun.methods.report import StepStats
from freerun.tasks.base import Method, Task
from freerun.training.batch_plan import BatchPlan, MicroBatch, UpdateBatch, pieces
from freerun.training.checkpoint import TrainObjects
from freerun.training.optim import learning_rate, set_learning_rate
from freerun.training.parallelize import ParallelRun, full_tensor
from freerun.training.processes import ALONE, local_rank, say_like
from freerun.training.settings import TrainSettings
from freerun.training.weights import not_finite
from freerun.types import Step


def device_of(model: Module, settings: TrainSettings) -> torch.device:
    """Where a model is to be trained."""
    if settings.device != "cuda":
        return torch.device("cpu") if settings.device == "cpu" else next(model.parameters()).device
    found, number = torch.cuda.device_count(), local_rank()
    if number < found:
        return torch.device("cuda", number)
    raise UserError(
        f"device = 'cuda': PyTorch sees {found or 'no'} GPU{'s' if found > 1 else ''} here, and this is process "
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


def update(
    parts: TrainObjects, task: Task, method: Method, *, plan: BatchPlan, step: int, settings: TrainSettings
) -> dict[str, Any]:
    """Make update ``step`` (counted from 0) and say what it was."""
    planned = plan.at(step)
    parts.processes.at(f"update {step}", strict=True)
    try:
        return _updated(parts, task, method, plan=plan, planned=planned, step=step, settings=settings)
    except Exception as error:
        longest = max(task.lengths[int(index)] for index in planned.indices)
        share = f"{settings.accumulate} x {parts.processes.size} micro-batches"
        doing = f"update {step}: {len(planned.indices)} examples of up to {longest} positions in {share}"
        more = 2 * settings.accumulate
        smaller = (
            f"--set train.accumulate={more} makes the same update of smaller pieces"
            if more * parts.processes.size <= settings.batch_size
            else "a smaller model (model.size), or shorter examples"
        )
        found = explained(error, parts.model, doing, smaller)
        if found is error:
            raise
        raise found from error


def _updated(
    parts: TrainObjects,
    task: Task,
    method: Method,
    *,
    plan: BatchPlan,
    planned: UpdateBatch,
    step: int,
    settings: TrainSettings,
) -> dict[str, Any]:
    parts.optimizer.zero_grad(set_to_none=True)
    now = Step(step, sample=planned.sample, epoch=planned.sample / plan.examples)
    window = _window(parts, task, method, planned=planned, step=now, settings=settings)
    rate = learning_rate(step, settings)
    # wrappers average over processes
    with parts.processes.together():
        norm = _scale_gradients(parts, window.count / parts.processes.size, settings.clip)
    loss = window.total / window.count if window.count else math.nan
    if not (math.isfinite(loss) and math.isfinite(norm)):
        parts.optimizer.zero_grad(set_to_none=True)
        numbers = f"loss {loss:g}, gradient norm {norm:g}, lr {rate:g}"
        with parts.processes.raise_on_all_ranks():
            raise _diverged(step, f"{numbers}, seed {settings.seed}", window, planned)
    set_learning_rate(parts.optimizer, rate)
    parts.optimizer.step()
    if parts.ema is not None:
        parts.ema.update(parts.model, step)
    return {
        "event": "update",
        "step": step,
        "loss": loss,
        "lr": rate,
        "grad_norm": norm,
        "teacher_forcing_ratio": None,
        **window.scheduled,
        "eligible": int(window.eligible),
        "replaced": int(window.replaced),
        "disagreeing": int(window.disagreeing),
        "deviation": window.deviation,
        "passes": window.passes,
        "work": window.work,
        "engine": ", ".join(sorted(window.engines)),
        "certified": ", ".join(sorted(window.certified)),
    }


def _window(
    parts: TrainObjects, task: Task, method: Method, *, planned: UpdateBatch, step: Step, settings: TrainSettings
) -> StepStats:
    run = parts.wrapped or ParallelRun(parts.model, method, ALONE, "ddp")
    window = StepStats(("teacher_forcing_ratio", *getattr(method, "ranges", ())))
    processes = parts.processes
    own = pieces(planned, settings.accumulate, processes.rank, processes.size)
    with processes.raise_on_all_ranks():  # before the first call that others wait in
        batches = [_batch(task, piece) for piece in own]
    for piece, batch in zip(own, batches, strict=True):
        with run.last(piece is own[-1]):
            # sharded weights are gathered from all for a forward
            with processes.raise_on_all_ranks(), processes.together() if run.sharded else nullcontext():
                total, count, report = _forward(parts, run, batch, step, settings=settings, piece=piece)
            with processes.together():
                total.backward()
        if piece.counts:
            window.add(report, total, count, weight=len(piece.indices) / len(planned.indices))
    run.drop_unused()
    return StepStats.summed(processes.all_gather(window.record()))


def _batch(task: Task, piece: MicroBatch) -> Batch:
    batch = task.batch(piece.indices, piece.rows)
    # nothing of it counts: the gradient is 0, and no number of the update has it
    return batch if piece.counts else batch.made(mask=torch.zeros_like(batch.mask), eligible=batch.replaceable)


def _forward(
    parts: TrainObjects, run: ParallelRun, batch: Batch, step: Step, *, settings: TrainSettings, piece: MicroBatch
) -> tuple[Tensor, Tensor, dict[str, Any]]:
    device = next(parts.model.parameters()).device
    torch.manual_seed(fold(settings.seed, "model", step, piece.number))
    with torch.autocast(device.type, dtype=torch.bfloat16, enabled=settings.amp == "bf16"):
        return run(batch.to(device), step, fold(settings.seed, "train"))


def _scale_gradients(parts: TrainObjects, count: float, clip: float) -> float:
    """Divide by the count and clip, in place; the norm before clipping."""
    gradients = [p.grad for p in parts.model.parameters() if p.grad is not None]
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


def explained(error: Exception, model: Module, doing: str, smaller: str) -> Exception:
    """Explain an error of training: no memory, or numbers that went to NaN; else return it as it is."""
    if str(error).startswith("training diverged"):
        return error
    line = " ".join((str(error).splitlines() or [""])[0].split())[:200]
    if out_of_memory(error):
        most = getrusage(RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
        peak = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else most
        found: UserError = ResourceError(
            f"out of memory in {doing}: {line or type(error).__name__}\n  at most {peak / 2**20:,.0f} MiB were in use; "
            f"the last checkpoint is untouched\n  help: {smaller}"
        )
    else:
        broken = [] if isinstance(error, DivergedError) else not_finite(model)
        if not broken and not isinstance(error, DivergedError):
            return error
        why = f" (weights are not finite: {', '.join(broken[:5])})" if broken else ""
        found = DivergedError(f"training diverged, seen in {doing}: {line}{why}")
    return say_like(found, error)
