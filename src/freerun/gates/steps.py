"""Gold the less often the later the entry."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from freerun.arguments import Arguments, is_number
from freerun.errors import UserError
from freerun.gates.coins import positions
from freerun.keys import uniform
from freerun.types import Batch

__all__ = ["DecodingSteps"]


@dataclass(frozen=True)
class DecodingSteps(Arguments):
    """Gold the less often the later the entry: P(gold) falls with the decoding step (Liu et al., EMNLP 2021).

    ``keep = u(row, position) < g(n (1 - teacher_forcing_ratio))``, where n = 1, 2, ... counts a row's eligible entries.
    The paper counts the decoder's *inputs* from 0, and its input 0 is the start symbol: that one is in no history, so
    the first entry is input 1. With ``teacher_forcing_ratio = 0`` it is the schedule of decoding steps alone; with a
    falling schedule it is the paper's composite ``g(n (1 - f(step)))`` of both. The ratio is then f, not P(gold), but
    at 1 everything is kept.

    Reference: Liu, Meng, Chen, Xu and Zhou 2021, Scheduled sampling based on decoding steps for neural machine
    translation, EMNLP, arXiv:2108.12963.

    Args:
        shape: ``"exponential"``: g(n) = k^n; ``"linear"``: g(n) = max(floor, 1 - n / length);
            ``"inverse_sigmoid"``: g(n) = k / (k + exp(n / k)).
        k: of exponential (0 < k < 1, default 0.99) and inverse_sigmoid (k >= 1, default 20).
        length: of linear, in decoding steps; default 128.
        floor: of linear, in [0, 1); default 0.

    Raises:
        UserError: for an argument out of range, or one that the shape does not have.

    >>> DecodingSteps("linear", length=4).gold_at(torch.arange(1, 6)).tolist()
    [0.75, 0.5, 0.25, 0.0, 0.0]
    """

    shape: str = "exponential"
    k: float | None = None
    length: int | None = None
    floor: float | None = None

    def __post_init__(self) -> None:
        if self.shape not in ("linear", "exponential", "inverse_sigmoid"):
            raise UserError(f"shape must be one of linear, exponential, inverse_sigmoid; got {self.shape!r}")
        linear = self.shape == "linear"
        foreign = ("k",) if linear else ("length", "floor")
        problems = [
            f"{name} has no effect with shape={self.shape!r}; leave it out"
            for name in foreign
            if getattr(self, name) is not None
        ]
        if not linear and self.k is not None:
            low, high, said = (
                (0, 1, "strictly between 0 and 1") if self.shape == "exponential" else (1, None, "1 or more")
            )
            fine = is_number(self.k) and (self.k >= 1 if high is None else low < self.k < high)
            problems += [] if fine else [f"k must be {said} with shape={self.shape!r}; got {self.k!r}"]
        if linear and self.length is not None and (not is_number(self.length) or self.length < 1):
            problems.append(f"length must be at least 1 decoding step; got {self.length!r}")
        if linear and self.floor is not None and not (is_number(self.floor) and 0 <= self.floor < 1):
            problems.append(f"floor must lie in [0, 1); got {self.floor!r}")
        if problems:
            raise UserError(problems)

    def gold_at(self, steps: Tensor) -> Tensor:
        """g of (possibly scaled) decoding steps, float64 in [0, 1]."""
        steps = steps.double()
        if self.shape == "linear":
            return (1 - steps / (self.length or 128)).clamp_min(self.floor or 0.0)
        if self.shape == "exponential":
            return (0.99 if self.k is None else self.k) ** steps
        k = 20.0 if self.k is None else self.k
        return torch.sigmoid(math.log(k) - steps / k)  # k / (k + exp(n / k)), without its overflow

    def __call__(self, batch: Batch, teacher_forcing_ratio: float, key: int) -> Tensor:
        """(batch, time) bool, True = gold."""
        if teacher_forcing_ratio >= 1:  # an inverse sigmoid begins below 1
            return torch.ones_like(batch.mask)
        steps = batch.replaceable.cumsum(1)
        return uniform(key, batch.row_numbers[:, None], positions(batch)) < self.gold_at(
            steps * (1 - teacher_forcing_ratio)
        )
