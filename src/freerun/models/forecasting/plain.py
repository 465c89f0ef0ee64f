"""A recurrent net over one sequence of values: past and horizon are one."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from freerun.errors import UserError
from freerun.models.forecasting.network import RecurrentNetwork, RecurrentState, recurrent_problems
from freerun.models.forecasting.told import check_history, covariates_of
from freerun.types import Batch

__all__ = ["PlainForecaster"]


class PlainForecaster(RecurrentNetwork):
    """One recurrent net over the whole sequence; outputs (batch, time, numbers of the head * values).

    ``h_t = cell([y_{t-1}; c_t], h_{t-1})``, said = ``W h_t (+ y_{t-1})``, with ``h_{-1} = 0`` and the covariates
    ``c_t`` of the step that is said. The shift is inside: position t is told ``history[:, t-1]``, position 0 zeros.
    The past is what the history begins with (``mask`` and ``eligible`` False). A Stepper; the stepped and the fused
    path are equal.

    Args:
        values: channels that are said and fed back.
        covariates: channels known ahead (calendar, plans): never replaced, read in free run too.
        observed: must be 0: a sequence has no place for channels known in the past only.
        size: width of the states.
        layers: number of layers.
        cell: ``"rnn"``, ``"gru"`` or ``"lstm"``.
        residual: say the change since the value told.
        head: ``"point"``, ``"gaussian"``, ``"student_t"`` or ``"quantiles"`` (see ``freerun.distributions``).
        dropout: between layers and before the head, in [0, 1).
        fed_back: the channels that are read back, counted from 0; the others are only said. None: all.

    Context of a batch: None, or ``{"future": (batch, time, covariates)}``, position t holding those of step t.

    Raises:
        UserError: for arguments outside their range, all at once; for a context that does not fit.

    Reference: Graves 2013, arXiv:1308.0850.

    >>> import torch
    >>> values = torch.randn(3, 5, 2)
    >>> PlainForecaster(2, size=8)(Batch(values, values, torch.ones(3, 5, dtype=torch.bool))).shape
    torch.Size([3, 5, 2])
    """

    layout: ClassVar[str] = "sequence"

    def __init__(
        self,
        values: int,
        covariates: int = 0,
        observed: int = 0,
        *,
        size: int = 64,
        layers: int = 1,
        cell: str = "gru",
        residual: bool = False,
        head: str = "point",
        dropout: float = 0.0,
        fed_back: tuple[int, ...] | None = None,
    ) -> None:
        settings = {name: value for name, value in locals().items() if name not in ("self", "__class__")}
        if problems := recurrent_problems(settings, self.layout):
            raise UserError(problems)
        super().__init__(settings)

    def forward(self, batch: Batch) -> Tensor:
        """(batch, time, numbers of the head * values)."""
        first, future = self._before(batch)
        return self._all(first, batch.history, future, None)

    def start(self, batch: Batch) -> RecurrentState:
        """The state that predicts position 0: zeros have been told."""
        first, future = self._before(batch)
        nothing = first.new_zeros(batch.size, self.decoder.hidden_size)
        states = (nothing,) * self.decoder.num_layers
        return self._begin(first, future, states, states if self.decoder.mode == "LSTM" else ())

    def _before(self, batch: Batch) -> tuple[Tensor, Tensor | None]:
        check_history(batch, self.values, type(self).__name__)
        future = covariates_of(batch.context, batch, self.covariates, type(self).__name__)
        zeros = batch.history.new_zeros(batch.size, self.values)
        return zeros, None if future is None else future.transpose(0, 1)
