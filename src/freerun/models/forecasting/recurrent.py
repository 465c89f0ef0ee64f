"""A recurrent encoder-decoder for values: it reads the past and says the horizon."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from freerun.errors import UserError
from freerun.models.cells import CELLS
from freerun.models.forecasting.network import RecurrentNetwork, RecurrentState, recurrent_problems
from freerun.models.forecasting.told import check_history, covariates_of, past_of
from freerun.types import Batch

__all__ = ["EncodedPast", "RecurrentForecaster"]


@dataclass(frozen=True, eq=False)
class EncodedPast:
    """A past that has been read.

    Args:
        hidden: one (batch, size) per layer: the decoder's first state.
        cell: the same for lstm, else empty.
        last: (batch, values) the last past value, told at position 0.
        future: (batch, time, covariates), or None.
    """

    hidden: tuple[Tensor, ...]
    cell: tuple[Tensor, ...]
    last: Tensor
    future: Tensor | None

    def select(self, rows: Tensor) -> EncodedPast:
        """The rows asked for."""
        hidden, cell = (tuple(part[rows] for part in group) for group in (self.hidden, self.cell))
        return EncodedPast(hidden, cell, self.last[rows], None if self.future is None else self.future[rows])


class RecurrentForecaster(RecurrentNetwork):
    """Encoder and decoder, recurrent, for values; outputs (batch, horizon, numbers of the head * values).

    ``h_0`` = the encoder's last state, ``h_t = cell([y_{t-1}; c_t], h_{t-1})``, said = ``W h_t (+ y_{t-1})``, with the
    covariates ``c_t`` of the step that is said. The shift is inside: position t is told ``history[:, t-1]``, position 0
    the last value of the past. A Stepper and an Encoder; the stepped and the fused path are equal.

    Args:
        values: channels that are said and fed back.
        covariates: channels known ahead (calendar, plans): never replaced, read in free run too.
        observed: channels known in the past only.
        size: width of both networks.
        layers: of encoder and decoder each.
        cell: ``"rnn"``, ``"gru"`` or ``"lstm"``.
        residual: say the change since the value told.
        head: ``"point"``, ``"gaussian"``, ``"student_t"`` or ``"quantiles"`` (see ``freerun.distributions``).
        dropout: between layers and before the head, in [0, 1).
        fed_back: the channels that are read back, counted from 0; the others are only said. None: all.

    Context of a batch: ``{"past": (batch, past_time, values + observed + covariates), "future": (batch, time,
    covariates)}``, "future" only where there are covariates.

    Raises:
        UserError: for arguments outside their range, all at once; for a context that does not fit.

    Reference: Sutskever, Vinyals and Le 2014, arXiv:1409.3215.

    >>> model = RecurrentForecaster(2, size=8)
    >>> values = torch.randn(3, 5, 2)
    >>> batch = Batch(values, values, torch.ones(3, 5, dtype=torch.bool), {"past": torch.randn(3, 9, 2)})
    >>> model(batch).shape
    torch.Size([3, 5, 2])
    """

    layout: ClassVar[str] = "past"

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
        self.observed = observed
        width = values + observed + covariates
        self.encoder = CELLS[cell](width, size, layers, dropout=dropout if layers > 1 else 0.0)

    def encode(self, batch: Batch) -> Batch:
        """The batch with its past read; one that is encoded already is given back."""
        name = type(self).__name__
        check_history(batch, self.values, name)
        if isinstance(batch.context, EncodedPast):
            return batch
        past = past_of(batch.context, batch, (self.values, self.observed, self.covariates), name)
        future = covariates_of(batch.context, batch, self.covariates, name)
        _, states = self.encoder(past.transpose(0, 1))
        hidden, cell = states if isinstance(states, tuple) else (states, ())
        last = past[:, -1, : self.values]
        return batch.made(context=EncodedPast(tuple(hidden), tuple(cell), last, future))

    def forward(self, batch: Batch) -> Tensor:
        """(batch, horizon, numbers of the head * values)."""
        read, future = self._read(batch)
        states: Any = torch.stack(read.hidden)
        if read.cell:
            states = (states, torch.stack(read.cell))
        return self._all(read.last, batch.history, future, states)

    def start(self, batch: Batch) -> RecurrentState:
        """The state that predicts position 0: the past has been read, and its last value told."""
        read, future = self._read(batch)
        return self._begin(read.last, future, read.hidden, read.cell)

    def _read(self, batch: Batch) -> tuple[EncodedPast, Tensor | None]:
        read: EncodedPast = self.encode(batch).context
        # one encoded for a shorter horizon may be asked for a longer one
        future = covariates_of({"future": read.future}, batch, self.covariates, type(self).__name__)
        return read, None if future is None else future.transpose(0, 1)
