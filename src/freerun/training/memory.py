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
            return kept_bytes(method, batch, round(at_half + (batch.size - half) * each_row))
    finally:
        for weight, gradient in gradients:
            weight.grad = gradient
        with torch.no_grad():
            for buffer, before in buffers:
                buffer.copy_(before)


def kept_bytes(method: Any, batch: Batch, update: int) -> int:
    """Bytes of an update and of the rows that a method keeps: held during it, copied twice where they are put in."""
    row, number = getattr(method, "kept_rows", lambda _: (0, 0))(batch)
    return max(update + row * (number + 2 * batch.size), 3 * row * (number + batch.size)) if number else update


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

    Also note numbers of steps of the method that are larger than the batch is long: they mean all of it.

    Args:
        method: how it is trained; without a number of steps nothing is tried.
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
        if _steps_between(method):
            for text in beyond_rows(method, 0.0, batch()):
                note(text)
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
    for text in beyond_rows(method, longest, tried):
        note(text)
    free, most = free_memory(model_device(model)), min(int(longest), int(tried.replaceable.sum(1).max()))
    text = f"the longest horizon, {most} steps of {tried.size} rows, needs about {needed / 2**20:,.0f} MiB in an update"
    note(f"{text}; {'?' if free is None else f'{free / 2**20:,.0f}'} MiB are free")
    if free is not None and needed > free:
        raise ResourceError(f"{text} (it comes at update {int(step)}), and {free / 2**20:,.0f} MiB are free: {smaller}")


def _steps_between(method: Any) -> dict[str, float]:
    """Numbers of steps of a method beside its horizon: from one gold entry, or cut of the gradient, to the next."""
    gate = getattr(getattr(method, "gate", None), "tau", None)
    found = {"tau" if hasattr(method, "tau") else "gate.tau": gate, "gradient": getattr(method, "gradient", None)}
    return {name: each for name, each in found.items() if isinstance(each, int) and not isinstance(each, bool)}


def beyond_rows(method: Any, horizon: float, batch: Batch) -> list[str]:
    """A line for each number of steps of a method that is larger than a batch is long, with what it means there.

    >>> import freerun as fr
    >>> beyond_rows(fr.pushforward(horizon=99), 99.0, Batch(torch.zeros(2, 24, 1)))
    ['method.horizon is up to 99 steps, and the longest row tried has 24: what is above 24 is the whole row']
    >>> beyond_rows(fr.sparse_teacher_forcing(tau=30), 0.0, Batch(torch.zeros(2, 24, 1)))
    ['method.tau is 30, and the longest row tried has 24 entries: none that is fed is gold']
    """
    steps, problems = int(batch.replaceable.sum(1).max()), list[str]()
    if horizon >= steps + 1:
        text = f"method.horizon is up to {horizon:g} steps, and the longest row tried has {steps}"
        problems.append(f"{text}: what is above {steps} is the whole row")
    for name, number in _steps_between(method).items():
        if name == "gradient" and number > batch.time:
            text = f"method.gradient cuts every {number} steps, and the longest row tried has {batch.time}"
            problems.append(f"{text}: it is never cut, as with 'full'")
        elif name != "gradient" and number >= batch.time:
            text = f"method.{name} is {number}, and the longest row tried has {batch.time} entries"
            problems.append(f"{text}: none that is fed is gold")
    return problems


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
