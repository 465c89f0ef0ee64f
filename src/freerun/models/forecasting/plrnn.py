"""The shallow piecewise-linear recurrent net: a map from one state to the next."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from freerun.batch import Batch
from freerun.errors import UserError
from freerun.models.forecasting.inputs import check_history, size_problems


class ShallowPLRNN(nn.Module):
    """``z_t = A z_{t-1} + W1 relu(W2 z_{t-1} + h2) + h1`` with A diagonal; outputs (batch, time, values), z_t itself.

    A Markov map: what is said at position t hangs on ``history[:, t-1]`` alone, and position 0, which is told zeros,
    always says ``W1 relu(h2) + h1``. A Stepper whose state is the last entry.

    Args:
        values: dimensions of the state, all of them observed.
        covariates: must be 0.
        observed: must be 0.
        size: width of the hidden layer.

    Context of a batch: None; it is not read.

    Raises:
        UserError: for arguments outside their range; all at once.

    Reference: Hess, Monfared, Brenner and Durstewitz 2023, arXiv:2306.04406.

    What it is not: a model with latent dimensions; every one of its states is observed.

    >>> values = torch.randn(3, 5, 2)
    >>> ShallowPLRNN(2)(Batch(values, values, torch.ones(3, 5, dtype=torch.bool))).shape
    torch.Size([3, 5, 2])
    """

    layout: ClassVar[str] = "sequence"
    markov: ClassVar[bool] = True  # the state is the last entry: what adaptive generalised teacher forcing asks for

    def __init__(self, values: int, covariates: int = 0, observed: int = 0, *, size: int = 50) -> None:
        super().__init__()
        self._settings = {name: value for name, value in locals().items() if name not in ("self", "__class__")}
        problems = size_problems(self._settings, self.layout)
        if covariates:
            problems.append(f"an autonomous map has no covariates; got covariates={covariates}: use 0")
        if problems:
            raise UserError(problems)
        self.values = values
        self.diagonal = nn.Parameter(torch.empty(values).uniform_(0.5, 1.0))
        self.inner = nn.Linear(values, size)  # W2, h2
        self.outer = nn.Linear(size, values)  # W1, h1

    def settings(self) -> dict[str, Any]:
        """The constructor's arguments, as given."""
        return dict(self._settings)

    def forward(self, batch: Batch) -> Tensor:
        """(batch, time, values)."""
        return self._next(torch.cat([self.start(batch)[:, None], batch.history[:, :-1]], 1))

    def jacobian(self, states: Tensor) -> Tensor:
        """(..., values) -> (..., values, values): ``A + W1 diag(W2 z + h2 > 0) W2``, of the next state by this one."""
        active = (self.inner(states) > 0).to(states.dtype)
        return torch.diag(self.diagonal) + (self.outer.weight * active[..., None, :]) @ self.inner.weight

    def start(self, batch: Batch) -> Tensor:
        """(batch, values) zeros: what stands before position 0."""
        check_history(batch, self.values, type(self).__name__)
        return batch.history.new_zeros(batch.size, self.values)

    def embed(self, entries: Tensor) -> Tensor:
        """Values are read as they are."""
        return entries

    def step(self, state: Tensor, inputs: Tensor) -> Tensor:
        """The last entry is the state."""
        return inputs

    def output(self, state: Tensor, rows: Tensor | None = None) -> Tensor:
        """(rows, values): the next state."""
        return self._next(state if rows is None else state[rows])

    def select(self, state: Tensor, rows: Tensor) -> Tensor:
        """The rows asked for."""
        return state[rows]

    def detach(self, state: Tensor) -> Tensor:
        """The same entry without its gradient."""
        return state.detach()

    def _next(self, z: Tensor) -> Tensor:
        return self.diagonal * z + self.outer(F.relu(self.inner(z)))
