"""Gold and own at once: the soft mix of generalised teacher forcing, for values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from freerun.arguments import Arguments
from freerun.types import Batch

__all__ = ["Blend", "is_soft"]


@dataclass(frozen=True)
class Blend(Arguments):
    """No coin: every entry is ``teacher_forcing_ratio * gold + (1 - teacher_forcing_ratio) * own``. For values only.

    The ratio is then the share of gold *in* each entry (the alpha of generalised teacher forcing), not P(gold); at 1
    and 0 both are teacher forcing and free running, bit for bit.

    Reference: Doya 1992; Hess, Monfared, Brenner and Durstewitz 2023, Generalized teacher forcing for learning chaotic
    dynamics, ICML, arXiv:2306.04406.

    >>> values = torch.zeros(1, 2, 3)
    >>> Blend()(Batch(values, values, torch.ones(1, 2, dtype=torch.bool)), 0.25, key=0)
    tensor([[0.2500, 0.2500]])
    """

    soft: ClassVar[bool] = True

    def __call__(self, batch: Batch, teacher_forcing_ratio: float, key: int) -> Tensor:
        """(batch, time) shares of gold, of the history's type."""
        return torch.full(batch.mask.shape, teacher_forcing_ratio, dtype=batch.history.dtype, device=batch.mask.device)


def is_soft(gate: Any) -> bool:
    """Whether a gate gives shares of gold instead of a choice."""
    return bool(getattr(gate, "soft", False))
