"""Sums over an accumulation window and over processes, and the exact mean that they make."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor

from freerun.types import Batch, Outcome

__all__ = ["Window", "mean_over_processes", "numbered", "scale_gradients"]

_SUMMED = ("replaced", "eligible", "disagreeing", "passes")


@dataclass
class Window:
    """What one optimizer step is made of, so far and in this process.

    Args:
        unit: what every total of the window has been divided by: the same in all micro-batches and processes.
        total: summed loss.
        count: what it is to be divided by.
        examples: rows.
        micro: micro-batches.
        reported: sums of the reports' counts.
        scheduled: values of the method's scheduled parameters at this step.
    """

    unit: float = 1.0
    total: float = 0.0
    count: float = 0.0
    examples: int = 0
    micro: int = 0
    reported: dict[str, float] = field(default_factory=lambda: dict.fromkeys(_SUMMED, 0.0))
    scheduled: dict[str, float] = field(default_factory=dict[str, float])

    def add(self, outcome: Outcome, names: Iterable[str]) -> None:
        """Add a micro-batch; ``names`` are the method's scheduled parameters."""
        self.total += float(outcome.total.detach())
        self.count += float(outcome.count)
        self.examples += outcome.fed.size
        self.micro += 1
        for name in _SUMMED:
            self.reported[name] += float(outcome.report.get(name, 0))
        self.scheduled = {name: float(outcome.report[name]) for name in names if name in outcome.report}

    def over_processes(self, trainer: Trainer, module: LightningModule) -> Window:
        """The same with means over all processes in place of this one's sums; every process has to ask."""
        own = [self.total, self.count, float(self.examples), float(self.micro), *self.reported.values()]
        total, count, examples, micro, *reported = mean_over_processes(own, trainer, module)
        found = dict(zip(self.reported, reported, strict=True))
        # the numbers of rows and micro-batches are only ever multiplied by that of the processes
        return Window(self.unit, total, count, round(examples), round(micro), found, self.scheduled)

    def numbers(self) -> dict[str, float]:
        """What is logged."""
        eligible = self.reported["eligible"]
        shares = {
            "own_share": self.reported["replaced"] / eligible if eligible else 0.0,
            "disagreeing_share": self.reported["disagreeing"] / eligible if eligible else 0.0,
        }
        loss = self.total / self.count if self.count else math.nan
        return {"train_loss": loss, **self.scheduled, **shares, "passes": self.reported["passes"] / max(self.micro, 1)}


def mean_over_processes(values: list[float], trainer: Trainer, module: LightningModule) -> list[float]:
    """Each number's mean over all processes; with one process they are as given, and nothing is sent."""
    if trainer.world_size == 1:
        return values
    device: Any = module.device
    # float32 counts to 16,777,216, which is all that some accelerators have
    dtype = torch.float32 if device.type == "mps" else torch.float64
    summed: Any = trainer.strategy.reduce(torch.tensor(values, dtype=dtype, device=device), reduce_op="sum")
    return [value / trainer.world_size for value in summed.tolist()]


def scale_gradients(optimizer: Any, factor: float) -> None:
    """Multiply the gradients of an optimizer's parameters, in place."""
    gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
    for gradient in gradients:
        gradient.mul_(factor)


def numbered(batch: Batch, before: int, trainer: Trainer) -> Batch:
    """The batch with its rows' numbers in the global batch, as Lightning's sampler deals the data out.

    Of W processes, process r is given the examples r, r + W, r + 2W and so on: after ``before`` rows of its own in the
    window, its next one has the number ``before * W + r``. A batch that brings its numbers keeps them.
    """
    if batch.rows is not None:
        return batch
    dealt: Mapping[str, Any] = trainer.distributed_sampler_kwargs or {"num_replicas": 1, "rank": 0}
    own: Tensor = torch.arange(before, before + batch.size, device=batch.history.device)
    return batch.made(rows=own * dealt["num_replicas"] + dealt["rank"])
