"""Coins: for every entry, position, row or batch; a prefix of gold; gold every so often."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from freerun.arguments import Arguments
from freerun.errors import UserError
from freerun.keys import uniform
from freerun.types import Batch

__all__ = ["Batchwise", "Every", "Prefix", "Sequence", "Timestep", "Token", "positions"]


def positions(batch: Batch) -> Tensor:
    """(time,) positions of a batch, from 0."""
    return torch.arange(batch.time, device=batch.history.device)


def _whole(batch: Batch, coins: Tensor) -> Tensor:
    return coins.expand(batch.size, batch.time)


@dataclass(frozen=True)
class Token(Arguments):
    """A coin for every entry: ``keep = u(row, position) < teacher_forcing_ratio`` (Bengio et al. 2015).

    >>> ids = torch.zeros(2, 3, dtype=torch.long)
    >>> Token()(Batch(ids, ids, ids == 0), 1.0, key=0).all()
    tensor(True)
    """

    def __call__(self, batch: Batch, teacher_forcing_ratio: float, key: int) -> Tensor:
        """(batch, time) bool, True = gold."""
        return uniform(key, batch.row_numbers[:, None], positions(batch)) < teacher_forcing_ratio


@dataclass(frozen=True)
class Timestep(Arguments):
    """A coin for every position, shared by all rows (as in several tutorials)."""

    def __call__(self, batch: Batch, teacher_forcing_ratio: float, key: int) -> Tensor:
        """(batch, time) bool, True = gold."""
        return _whole(batch, (uniform(key, positions(batch)) < teacher_forcing_ratio)[None])


@dataclass(frozen=True)
class Sequence(Arguments):
    """A coin for every row: whole sequences of gold or of own entries."""

    def __call__(self, batch: Batch, teacher_forcing_ratio: float, key: int) -> Tensor:
        """(batch, time) bool, True = gold."""
        return _whole(batch, (uniform(key, batch.row_numbers) < teacher_forcing_ratio)[:, None])


@dataclass(frozen=True)
class Batchwise(Arguments):
    """One coin for the whole batch."""

    def __call__(self, batch: Batch, teacher_forcing_ratio: float, key: int) -> Tensor:
        """(batch, time) bool, True = gold."""
        coin = uniform(key, torch.zeros(1, 1, dtype=torch.long, device=batch.history.device))
        return _whole(batch, coin < teacher_forcing_ratio)


@dataclass(frozen=True)
class Prefix(Arguments):
    """Gold first, own after: of a row's n eligible entries the first ``floor(ratio * n)`` are kept.

    Deterministic (the iteration-scale "D" curricula of Teutsch and Maeder 2022; MIXER's roll-in).
    """

    def __call__(self, batch: Batch, teacher_forcing_ratio: float, key: int) -> Tensor:
        """(batch, time) bool, True = gold."""
        place = batch.replaceable.cumsum(1)
        # a nominal 0.3 * 10 is 2.999...: rounding noise must not cost an entry
        kept = (batch.replaceable.sum(1, keepdim=True).double() * teacher_forcing_ratio + 1e-9).floor()
        return place <= kept


@dataclass(frozen=True)
class Every(Arguments):
    """Gold every ``tau`` positions (positions tau-1, 2 tau-1, ...), between them a coin for every entry.

    With ``teacher_forcing_ratio = 0`` it is sparse teacher forcing (Mikhaeil, Monfared and Durstewitz 2022).

    Args:
        tau: period in positions, at least 2 (1 would keep everything).
    """

    tau: int = 2

    def __post_init__(self) -> None:
        if isinstance(self.tau, bool) or not isinstance(self.tau, int) or self.tau < 2:
            raise UserError(
                f"tau must be at least 2 positions, a whole number, as 1 would keep everything; got {self.tau!r}"
            )

    def __call__(self, batch: Batch, teacher_forcing_ratio: float, key: int) -> Tensor:
        """(batch, time) bool, True = gold."""
        return Token()(batch, teacher_forcing_ratio, key) | ((positions(batch) + 1) % self.tau == 0)
