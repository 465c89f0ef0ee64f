"""The memory of an update's forward and backward, estimated on a part of its rows before there is a first update."""

from __future__ import annotations

import math
import os
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from freerun.batch import Batch
from freerun.errors import ResourceError
from freerun.methods.base import checked_call
from freerun.rollin.model import is_sharded
from freerun.schedules import Schedule, extremes
from freerun.tasks.base import model_device
from freerun.training.parallelize import MethodRun
from freerun.training.plan import pieces
from freerun.training.run import Run
from freerun.training.update import raise_explained
from freerun.types import Step


class _Counted(TorchDispatchMode):
    """Bytes of the storages that operations inside have made and that are alive: now, and at most."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.most = 0
        self._alive: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        known = {each.untyped_storage()._cdata for each in tree_leaves((args, kwargs)) if isinstance(each, Tensor)}
        for each in tree_leaves(result):
            if isinstance(each, Tensor) and (storage := each.untyped_storage())._cdata not in known | self._alive:
                self._alive.add(storage._cdata)
                self.now += storage.nbytes()
                self.most = max(self.most, self.now)
                weakref.finalize(storage, self._freed, storage._cdata, storage.nbytes())
        return result

    def _freed(self, storage: int, size: int) -> None:
        self._alive.discard(storage)
        self.now -= size


def peak_bytes(call: Callable[[], object], device: torch.device) -> int:
    """Bytes that a call holds at most beyond those held before: CUDA's allocator's, else those of all tensors it makes.

    >>> peak_bytes(lambda: torch.zeros(1000) + torch.zeros(1000), torch.device("cpu"))
    12000
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        call()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    with _Counted() as counted:
        call()
    return counted.most


def estimate_memory(method: Any, model: Module, batch: Batch, step: int = 0, key: int = 0) -> int:
    """Bytes that forward and backward of a batch need at most, gradients included, from a quarter and half of its rows.

    ``m(n) = m(n/2) + (n - n/2) (m(n/2) - m(n/4)) / (n/2 - n/4)``, every row as long as the longest. Neither weights,
    buffers, gradients nor PyTorch's generators are changed. On processors the bytes of all tensors are counted as
    operations make and free them (what a kernel needs inside itself is not seen), on a GPU PyTorch's allocator counts.

    Args:
        method: how it is trained.
        model: the model as it is, on its device, in no wrapper.
        batch: what an update reads at once (a micro-batch).
        step: of the method's schedules.
        key: of its draws.

    >>> import freerun as fr
    >>> model = fr.models.PlainForecaster(1, size=8)
    >>> short, long = (fr.Batch(torch.zeros(16, time, 1)) for time in (10, 40))
    >>> estimate_memory(fr.free_running(), model, long) > 3 * estimate_memory(fr.free_running(), model, short)
    True
    """
    step, key = checked_call(model, batch, step, key)
    device, run = model_device(model), MethodRun(model, method)
    longest = int(batch.replaceable.sum(1).argmax())

    def peak(rows: int) -> int:
        part = batch.select(torch.full((rows,), longest, device=batch.mask.device))

        def once() -> None:
            total, _, _ = run(part, step, key)
            if total.requires_grad:
                total.backward()

        return peak_bytes(once, device)

    buffers = [(each, each.clone()) for each in model.buffers()]
    gradients = [(weight, weight.grad) for weight in model.parameters()]
    devices = [device] if device.type == "cuda" else []
    few, half = max(1, batch.size // 4), max(1, batch.size // 2)
    try:
        with torch.random.fork_rng(devices):
            for weight, _ in gradients:
                weight.grad = None
            peak(1)  # what is made at a first call and kept
            at_half = peak(half)
            each_row = (at_half - peak(few)) / (half - few) if half > few else at_half / half
            return round(at_half + (batch.size - half) * each_row)
    finally:
        for weight, gradient in gradients:
            weight.grad = gradient
        with torch.no_grad():
            for buffer, before in buffers:
                buffer.copy_(before)


def free_memory(device: torch.device) -> int | None:
    """Bytes that are free for this process; None where the system does not say."""
    if device.type == "cuda":
        held = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + held
    found: list[int] = []
    try:
        lines = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text("ascii").splitlines())
        found.append(int(lines["MemAvailable"].split()[0]) * 1024)
        group = Path("/sys/fs/cgroup")
        limit = (group / "memory.max").read_text("ascii").strip()
        if limit != "max":
            stat = dict(line.split() for line in (group / "memory.stat").read_text("ascii").splitlines())
            found.append(int(limit) - int((group / "memory.current").read_text("ascii")) + int(stat["inactive_file"]))
    except (OSError, KeyError, ValueError):  # another system, or no group
        pass
    # of several processes each has its share
    return min(found) // max(1, int(os.environ.get("LOCAL_WORLD_SIZE") or 1)) if found else None


def try_longest(
    method: Any,
    model: Any,
    batch: Callable[[], Batch],
    steps: int | None,
    *,
    at: Callable[[int], Step],
    note: Callable[[str], object],
    lower: str,
) -> None:
    """Note what an update at a method's longest horizon needs of memory, before there is a first update.

    Args:
        method: how it is trained; without a horizon nothing is tried.
        model: as of ``estimate_memory``.
        batch: makes what an update reads at once.
        steps: updates of the run; None: nobody knows.
        at: from an update to its step, with samples and epochs where they are known.
        note: prints a line.
        lower: what of the trainer makes an update smaller.

    Raises:
        ResourceError: where it is more than there is, with the horizon, what it needs and what is free.
    """
    horizon = getattr(method, "horizon", None)
    if horizon is None:
        return
    step, longest = Step(0), float(horizon) if not isinstance(horizon, Schedule) else 0.0
    why = "the model's weights are sharded" if is_sharded(model) else None  # its parts are not called alone
    if not isinstance(model, Module):
        why = f"the model is a {type(model).__name__}, not an nn.Module"
    if isinstance(horizon, Schedule):
        last = at(max(0, (steps or 1) - 1))
        if steps is None or (horizon.unit != "step" and getattr(last, horizon.unit) is None):
            why = why or "how long the run is, and so the longest horizon, is not known"
        else:
            # a step behind the last: positions are counted up to it
            _, _, longest, found = extremes(horizon, Step(last + 1, sample=last.sample, epoch=last.epoch))
            step = at(int(found)) if horizon.unit == "step" else last
    if why is not None:
        note(f"the memory of the longest horizon was not tried: {why}")
        return
    smaller = f"lower method.horizon, {lower}, or set method.gradient = 'checkpointed' or a number of steps"
    try:
        tried = batch()
        needed = estimate_memory(method.at_longest(math.floor(longest + 1e-9)), model, tried, step)
    except Exception as error:
        raise_explained(error, model, f"a trial of the longest horizon, {longest:g} steps", smaller)
    free, most = free_memory(model_device(model)), min(int(longest), int(tried.replaceable.sum(1).max()))
    text = f"the longest horizon, {most} steps of {tried.size} rows, needs about {needed / 2**20:,.0f} MiB in an update"
    note(f"{text}; {'?' if free is None else f'{free / 2**20:,.0f}'} MiB are free")
    if free is not None and needed > free:
        raise ResourceError(f"{text} (it comes at update {int(step)}), and {free / 2**20:,.0f} MiB are free: {smaller}")


def check_memory(run: Run) -> None:
    """``try_longest`` of a run of our own loop."""
    settings, job, device = run.job.settings, run.job, model_device(run.job.model)
    if run.over:
        return
    if run.parts.wrapped.sharded and getattr(job.method, "horizon", None) is not None:
        run.progress.note("the memory of the longest horizon was not tried: the model's weights are sharded")
        return
    example = max(range(len(job.task.lengths)), key=lambda index: job.task.lengths[index])
    rank, size = run.parts.processes.rank, run.parts.processes.size
    rows = max(len(each.indices) for each in pieces(run.plan.at(0), settings.accumulate, rank, size))

    def batch() -> Batch:
        return job.task.batch([example] * rows, torch.arange(rows)).to(device)

    with torch.autocast(device.type, dtype=torch.bfloat16, enabled=settings.amp == "bf16"):
        try_longest(
            job.method, job.model, batch, settings.updates,
            at=lambda step: run.plan.at(step).step, note=run.progress.note, lower="raise train.accumulate",
        )  # fmt: skip
