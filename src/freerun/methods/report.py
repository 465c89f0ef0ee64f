"""What a method reports of its steps: counts of a micro-batch, and their sums."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

from freerun.batch import Batch

SUMS = ("total", "count", "examples", "micro_batches", "eligible", "replaced", "disagreeing", "passes")


@dataclass
class StepStats:
    """Sums over micro-batches, of one process or of all.

    ``names`` are those of scheduled parameters and of what is drawn, of which the last values are kept; ``means`` are
    quotients of two sums that the method reports.
    """

    names: tuple[str, ...] = ()
    means: Mapping[str, tuple[str, str]] = field(default_factory=dict[str, tuple[str, str]])
    parts: dict[str, float] = field(default_factory=dict[str, float])
    total: float = 0.0
    count: float = 0.0
    examples: int = 0
    micro_batches: int = 0
    eligible: float = 0.0
    replaced: float = 0.0
    disagreeing: float = 0.0
    squared_deviation: float | None = None
    passes: float = 0.0
    work: float = 0.0
    engines: set[str] = field(default_factory=set[str])
    certified: set[str] = field(default_factory=set[str])
    scheduled: dict[str, float] = field(default_factory=dict[str, float])
    errors: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])

    @classmethod
    def of(cls, method: Any) -> StepStats:
        """Return no sums yet, of what a method reports."""
        means: Mapping[str, tuple[str, str]] = getattr(method, "means", {})
        inside = (f"draw.{name}" for name in getattr(getattr(method, "draw", None), "ranges", ()))
        names = ("teacher_forcing_ratio", *getattr(method, "ranges", ()), *inside, *getattr(method, "logged", ()))
        return cls(names, means, {name: 0.0 for pair in means.values() for name in pair})

    def add(
        self,
        report: Mapping[str, Any],
        total: Tensor | float = 0.0,
        count: Tensor | float = 0.0,
        *,
        examples: int = 0,
        weight: float = 1.0,
    ) -> None:
        """Add a micro-batch's report; ``weight`` is what its passes and work count for."""
        self.total += float(total.detach() if isinstance(total, Tensor) else total)
        self.count += float(count)
        self.examples += examples
        self.micro_batches += 1
        for name in ("eligible", "replaced", "disagreeing"):
            setattr(self, name, getattr(self, name) + float(report.get(name, 0)))
        if "squared_deviation" in report:  # of values only
            self.squared_deviation = (self.squared_deviation or 0.0) + float(report["squared_deviation"])
        self.passes += weight * float(report.get("passes", 0))
        self.work += weight * float(report.get("work", report.get("passes", 0)))
        self.engines |= {str(report["engine"])} if "engine" in report else set()
        self.certified |= {str(report["certified"])} if "certified" in report else set()
        self.errors += [report["errors"]] if "errors" in report else []
        self.parts = {name: total + float(report.get(name, 0)) for name, total in self.parts.items()}
        self.scheduled |= {name: float(report[name]) for name in self.names if name in report}

    def sums(self) -> list[float]:
        """Return the numbers named in ``SUMS``, and the method's own."""
        return [*(float(getattr(self, name)) for name in SUMS), *self.parts.values()]

    def with_sums(self, sums: Sequence[float]) -> StepStats:
        """Return the same scheduled values with others of the numbers that ``sums`` returns."""
        numbers: dict[str, Any] = dict(zip(SUMS, sums[: len(SUMS)], strict=True))
        parts = dict(zip(self.parts, sums[len(SUMS) :], strict=True))
        return StepStats(self.names, self.means, parts, **numbers, scheduled=self.scheduled)

    def record(self) -> dict[str, Any]:
        """JSON-able."""
        return {**asdict(self), "engines": sorted(self.engines), "certified": sorted(self.certified)}

    @classmethod
    def summed(cls, records: Sequence[dict[str, Any]]) -> StepStats:
        """Return the sums of all processes from the ``record`` of each."""
        far = [each["squared_deviation"] for each in records if each["squared_deviation"] is not None]
        sums: dict[str, Any] = {name: sum(each[name] for each in records) for name in (*SUMS, "work")}
        parts: dict[str, float] = {name: sum(each["parts"][name] for each in records) for name in records[0]["parts"]}
        return cls(
            **sums,
            means=records[0]["means"],
            parts=parts,
            squared_deviation=sum(far) if far else None,
            engines=set[str]().union(*(each["engines"] for each in records)),
            certified=set[str]().union(*(each["certified"] for each in records)),
            errors=[error for each in records for error in each["errors"]],
            scheduled={name: value for each in reversed(records) for name, value in each["scheduled"].items()},
        )

    @property
    def deviation(self) -> float | None:
        """Root mean square of what was fed less gold, over the entries replaced; None for ids, or where none was."""
        if self.squared_deviation is None or not self.replaced:
            return None
        return math.sqrt(self.squared_deviation / self.replaced)

    def values(self) -> dict[str, float]:
        """Return scheduled and drawn values, and the method's own means; one of nothing is left out."""
        pairs = {name: (self.parts[total], self.parts[count]) for name, (total, count) in self.means.items()}
        return {**self.scheduled, **{name: total / count for name, (total, count) in pairs.items() if count}}

    def numbers(self) -> dict[str, float]:
        """Return what a trainer logs: ``values``, realised shares, and passes as a mean over micro-batches."""
        return {
            **self.values(),
            "replaced_share": self.replaced / self.eligible if self.eligible else 0.0,
            "disagreeing_share": self.disagreeing / self.eligible if self.eligible else 0.0,
            "passes": self.passes / max(self.micro_batches, 1),
        }


def replacement_counts(batch: Batch, history: Tensor, replaced: int) -> dict[str, float | str]:
    """Counts of a step: entries eligible, replaced, and replaced by something else than gold.

    For values also ``squared_deviation``: summed over entries, the mean over channels of (fed - gold) squared.
    """
    if history is batch.history and batch.is_discrete:
        return {"eligible": int(batch.replaceable.sum()), "replaced": replaced, "disagreeing": 0}
    gold, changed = batch.history, history != batch.history
    if batch.present is not None:  # what stands in for a missing value differs from nothing
        gold, changed = torch.where(gold.isnan(), history.detach(), gold), changed & ~gold.isnan()
    report: dict[str, float | str] = {"eligible": int(batch.replaceable.sum()), "replaced": replaced}
    if changed.dim() == 3:
        changed = changed.any(-1)
        far = (history.detach() - gold.detach())[changed].double()
        report["squared_deviation"] = float(far.square().mean(-1).sum())
    return {**report, "disagreeing": int(torch.count_nonzero(changed))}
