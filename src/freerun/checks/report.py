"""What checks find, and how they ask."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from freerun.types import Batch

__all__ = ["Finding", "Probe", "Report", "Verdict", "distance"]

# a refusal; (another status, explanation); None: nothing stands against the model
Verdict = str | tuple[str, str] | None


@dataclass(frozen=True)
class Finding:
    """What one check found.

    Args:
        name: of the check.
        status: "ok", "refused", "warning" or "not applicable".
        explanation: one line: what was found, and for a refusal what to do.
    """

    name: str
    status: str
    explanation: str

    def __str__(self) -> str:
        return f"{self.status:<14}  {self.name}: {self.explanation}"


@dataclass(frozen=True)
class Report:
    """What all checks found; printed, a line each."""

    findings: tuple[Finding, ...]

    @property
    def refused(self) -> tuple[Finding, ...]:
        """The findings that stand against the model."""
        return tuple(finding for finding in self.findings if finding.status == "refused")

    def __getitem__(self, name: str) -> Finding:
        return next(finding for finding in self.findings if finding.name == name)

    def __str__(self) -> str:
        return "\n".join(str(finding) for finding in self.findings)


@dataclass(frozen=True, eq=False)
class Probe:
    """A model in evaluation mode, a batch of few rows, and what the model says about it."""

    model: Any
    batch: Batch
    outputs: Tensor

    @property
    def tolerance(self) -> float:
        """100 roundings of the largest output: what another order of the same sums may differ by."""
        finite = self.outputs[self.outputs.isfinite()]
        largest = float(finite.abs().max()) if finite.numel() else 0.0
        return 100 * torch.finfo(self.outputs.dtype).eps * max(1.0, largest)

    def changed(self, entries: Tensor, where: Tensor) -> Tensor:
        """Entries that are all other ones where asked ((batch, time) bool)."""
        if self.batch.is_discrete:
            return torch.where(where, (entries + 1) % self.outputs.shape[-1], entries)
        return torch.where(where[..., None], entries.nan_to_num() * 0.5 + 1.0, entries)

    def told(self, where: Tensor) -> Tensor:
        """Outputs when the history is another one there."""
        return self.model(self.batch.replace(history=self.changed(self.batch.history, where)))

    def moved(self, outputs: Tensor, where: Tensor | None = None) -> float:
        """How far outputs lie from the model's, at most, where asked and where the mask counts; 0: not at all."""
        counted = self.batch.mask if where is None else self.batch.mask & where
        return distance(outputs[counted], self.outputs[counted], self.tolerance)

    @property
    def everywhere(self) -> Tensor:
        """(batch, time) bool, all True."""
        return torch.ones_like(self.batch.mask)


def distance(a: Tensor, b: Tensor, tolerance: float) -> float:
    """The largest difference, 0 where all lie within the tolerance; equal infinities and NaN are equal."""
    same = (a == b) | ((a - b).abs() <= tolerance) | (a.isnan() & b.isnan())
    if bool(same.all()):
        return 0.0
    return float((a - b)[~same].abs().nan_to_num(torch.inf, torch.inf).max())
