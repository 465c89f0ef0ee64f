"""What a trainer's log says of a method: how much of the history was the model's own, and what that cost."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

__all__ = ["Told"]

_SUMMED = ("eligible", "replaced", "disagreeing", "passes", "micro_batches")


@dataclass
class Told:
    """Sums over the micro-batches since the last line of the log.

    Args:
        scheduled: names of parameters that a schedule may drive: their last values are said.
    """

    scheduled: tuple[str, ...]
    sums: list[float] = field(default_factory=lambda: [0.0] * len(_SUMMED))
    last: dict[str, float] = field(default_factory=dict)

    def add(self, report: Mapping[str, float | str]) -> None:
        """Add a micro-batch's report."""
        for i, name in enumerate(_SUMMED):
            self.sums[i] += 1.0 if name == "micro_batches" else float(report.get(name, 0))
        self.last |= {name: float(report[name]) for name in self.scheduled if name in report}

    def drained(self, gather: Callable[[Tensor], Tensor], device: torch.device) -> dict[str, float]:
        """The line's numbers, over all ranks; sums begin again.

        ``replaced_share`` of the entries that may be replaced were the model's own, ``disagreeing_share`` other than
        gold; ``passes`` are extra model calls a micro-batch; ``teacher_forcing_ratio`` is the nominal P(gold).
        """
        eligible, replaced, disagreeing, passes, number = (
            gather(torch.tensor([self.sums], device=device)).sum(0).tolist()
        )
        last, self.last, self.sums = self.last, {}, [0.0] * len(_SUMMED)
        if not number:
            return {}
        return {
            **last,
            "replaced_share": replaced / max(eligible, 1),
            "disagreeing_share": disagreeing / max(eligible, 1),
            "passes": passes / number,
        }
