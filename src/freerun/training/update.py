"""One optimizer update: an accumulation window, its exact mean, and a refusal to go to NaN."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.nn import LSTM, Module

from freerun.errors import DivergedError, UserError
from freerun.keys import fold
from freerun.training.checkpoint import Parts
from freerun.training.optim import learning_rate, set_learning_rate
from freerun.training.plan import BatchPlan, Planned, pieces
from freerun.training.settings import TrainSettings
from freerun.training.task import Method, Task
from freerun.types import Outcome, Step

__all__ = ["Window", "check_amp", "update"]


@dataclass
class Window:
    """Sums over the micro-batches of an update; with several processes they are summed once more."""

    total: float = 0.0
    count: float = 0.0
    eligible: float = 0.0
    replaced: float = 0.0
    disagreeing: float = 0.0
    squared_deviation: float | None = None
    passes: float = 0.0
    work: float = 0.0
    engines: set[str] = field(default_factory=set[str])
    certified: set[str] = field(default_factory=set[str])
    scheduled: dict[str, float] = field(default_factory=dict)

    def add(self, outcome: Outcome, names: Collection[str], share: float) -> None:
        """Add a micro-batch that holds ``share`` of the window's examples; ``names`` are scheduled parameters."""
        report = outcome.report
        self.total += float(outcome.total.detach())
        self.count += float(outcome.count)
        for name in ("eligible", "replaced", "disagreeing"):
            setattr(self, name, getattr(self, name) + float(report.get(name, 0)))
        if "squared_deviation" in report:  # of values alone
            self.squared_deviation = (self.squared_deviation or 0.0) + float(report["squared_deviation"])
        self.passes += share * float(report.get("passes", 0))
        self.work += share * float(report.get("work", report.get("passes", 0)))
        self.engines |= {str(report["engine"])} if "engine" in report else set()
        self.certified |= {str(report["certified"])} if "certified" in report else set()
        self.scheduled |= {name: float(report[name]) for name in names if name in report}

    @property
    def deviation(self) -> float | None:
        """Root mean square of what was fed less gold, over the entries replaced; None for ids, or where none was."""
        if self.squared_deviation is None or not self.replaced:
            return None
        return math.sqrt(self.squared_deviation / self.replaced)


def check_amp(model: Module, settings: TrainSettings) -> None:
    """Refuse mixed precision that the processor's kernels cannot run.

    Raises:
        UserError: bf16 is asked for, and LSTMs cannot run in it here.
    """
    device = next(model.parameters()).device
    if settings.amp == "no" or not any(isinstance(module, LSTM) for module in model.modules()):
        return
    try:
        with torch.autocast(device.type, dtype=torch.bfloat16), torch.no_grad():
            LSTM(1, 1, device=device)(torch.zeros(1, 1, 1, device=device))
    except RuntimeError as error:
        raise UserError(
            f"amp = 'bf16': PyTorch has no bf16 LSTM for this {device.type} ({str(error).splitlines()[0]}); set amp = "
            "'no', or take another cell"
        ) from error


def update(
    parts: Parts, task: Task, method: Method, *, plan: BatchPlan, step: int, settings: TrainSettings
) -> dict[str, Any]:
    """Make update ``step`` (counted from 0) and say what it was.

    The loss is the exact mean over the whole window, however it is cut: gradients of the totals are summed and
    divided by the summed count before they are clipped. The global generator of PyTorch is seeded from
    (seed, step, micro-batch) before each forward, which makes dropout repeatable; its state is not kept.

    Raises:
        DivergedError: loss or gradient is not finite; the weights are those before the update.
    """
    planned = plan.at(step)
    parts.optimizer.zero_grad(set_to_none=True)
    now = Step(step, sample=planned.sample, epoch=planned.sample / plan.examples)
    window = _window(parts, task, method, planned=planned, step=now, settings=settings)
    rate = learning_rate(step, settings)
    norm = _scale_gradients(parts, window.count, settings.clip)
    loss = window.total / window.count if window.count else math.nan
    if not (math.isfinite(loss) and math.isfinite(norm)):
        parts.optimizer.zero_grad(set_to_none=True)
        numbers = f"loss {loss:g}, gradient norm {norm:g}, lr {rate:g}"
        raise _diverged(step, numbers, window, planned)
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
    parts: Parts, task: Task, method: Method, *, planned: Planned, step: Step, settings: TrainSettings
) -> Window:
    device = next(parts.model.parameters()).device
    key = fold(settings.seed, "train")
    names = {"teacher_forcing_ratio", *getattr(method, "ranges", ())}
    window = Window()
    for micro, (indices, rows) in enumerate(pieces(planned, settings.accumulate)):
        batch = task.batch(indices, rows).to(device)
        torch.manual_seed(fold(settings.seed, "model", step, micro))
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=settings.amp == "bf16"):
            outcome = method.run(parts.model, batch, step, key)
        outcome.total.backward()
        window.add(outcome, names, len(indices) / len(planned.indices))
    return window


def _scale_gradients(parts: Parts, count: float, clip: float) -> float:
    """Divide by the count and clip, in place; the norm before clipping."""
    gradients = [p.grad for p in parts.model.parameters() if p.grad is not None]
    if not gradients or not count:
        return math.nan
    norm = float(torch.nn.utils.get_total_norm(gradients)) / count
    if math.isfinite(norm):
        # a norm of exactly 0 divides nothing
        factor = min(1.0, clip / norm) if clip and norm else 1.0
        for gradient in gradients:
            gradient.mul_(factor / count)
    return norm


def _diverged(step: int, numbers: str, window: Window, planned: Planned) -> DivergedError:
    if not window.count:
        return DivergedError(f"update {step}: no position of the batch counts in the loss (its mask is all False)")
    values = "".join(f", {name} {value:g}" for name, value in window.scheduled.items())
    examples = " ".join(str(int(index)) for index in planned.indices)
    return DivergedError(
        [
            f"training diverged at update {step}, which was not made: {numbers}{values}",
            f"its training examples: {examples}",
            "the last checkpoint is untouched: look for NaN or huge values in these examples, lower lr, lengthen "
            "warmup or clip the gradient",
        ]
    )
