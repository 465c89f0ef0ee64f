"""Gold where the model is unsure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from freerun.arguments import Arguments, is_number
from freerun.errors import UserError
from freerun.gates.coins import Token
from freerun.types import Batch

__all__ = ["Confidence", "confidences", "needs_confidence"]


@dataclass(frozen=True)
class Confidence(Arguments):
    """Gold where the model is unsure of what comes next (Liu et al., Findings of ACL 2021).

    ``keep_t = c_{t+1} <= t_golden``, where ``c_t = p(y_t | y_<t, x)`` is the confidence on gold history: as published,
    entry t is decided by the prediction that is made *from* it. What is not kept for that is kept by a coin with
    probability ``teacher_forcing_ratio`` (the paper: 0). Needs one pass on gold history, which the method makes. The
    last entry of a row predicts nothing and is kept.

    Reference: Liu, Meng, Chen, Xu and Zhou 2021, Confidence-aware scheduled sampling for neural machine translation,
    Findings of ACL-IJCNLP, arXiv:2107.10427.

    Args:
        t_golden: confidence up to which gold is kept, in [0, 1).

    Raises:
        UserError: for a threshold out of range, or where a method gives it no confidence.

    >>> ids = torch.zeros(1, 3, dtype=torch.long)
    >>> Confidence(0.9)(Batch(ids, ids, ids == 0), 0.0, 0, torch.tensor([[0.2, 0.95, 0.9]]))
    tensor([[False,  True,  True]])
    """

    t_golden: float = 0.9

    needs_confidence: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not is_number(self.t_golden) or not 0 <= self.t_golden < 1:
            raise UserError(f"t_golden must lie in [0, 1), as 1 would keep everything; got {self.t_golden!r}")

    def __call__(
        self, batch: Batch, teacher_forcing_ratio: float, key: int, confidence: Tensor | None = None
    ) -> Tensor:
        """(batch, time) bool, True = gold."""
        if confidence is None:
            raise UserError(
                "coin=confidence(...) needs the model's confidence on gold history: use it with a method that measures "
                "it (scheduled_sampling, parallel, two_pass), or call it with confidence=(batch, time)"
            )
        return Token()(batch, teacher_forcing_ratio, key) | (self.following(batch, confidence) <= self.t_golden)

    @staticmethod
    def following(batch: Batch, confidence: Tensor) -> Tensor:
        """(batch, time): the confidence in what comes after each entry; 0 where nothing that counts does."""
        return F.pad(torch.where(batch.mask, confidence, 0.0)[:, 1:], (0, 1))


def confidences(outputs: Tensor, batch: Batch) -> Tensor:
    """``p(y_t | what the outputs were computed on)``: (batch, time), without gradient; 0 outside the mask.

    Args:
        outputs: (batch, time, vocab) logits.
        batch: its targets are the y.

    Raises:
        UserError: where targets are values, which have no probability.
    """
    if not batch.is_discrete:
        raise UserError("confidence is the probability of a symbol, and these targets are values: use another coin")
    logits = outputs.detach()
    logits = logits if logits.dtype == torch.float64 else logits.float()
    chosen = logits.softmax(-1).gather(-1, batch.targets.masked_fill(~batch.mask, 0)[..., None])[..., 0]
    return torch.where(batch.mask, chosen, 0.0)


def needs_confidence(gate: Any) -> bool:
    """Whether a gate has to be given the model's confidence on gold history."""
    return bool(getattr(gate, "needs_confidence", False))
