"""Recurrent nets for values: over a past and a horizon, over one sequence, and from one state to the next."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from freerun.batch import Batch
from freerun.distributions import Head
from freerun.errors import UserError
from freerun.models.forecasting.inputs import (
    Categories,
    category_problems,
    check_history,
    covariates_of,
    joined,
    level_of,
    numbers_a_value,
    past_of,
    size_problems,
    the_future,
    the_level,
    with_last,
)
from freerun.models.rnn import CELLS, Cell, CellWeights, cell_weights, step_layers


class RecurrentState(NamedTuple):
    """State of a recurrent forecaster."""

    hidden: tuple[Tensor, ...]  # one (batch, size) per layer
    cell: tuple[Tensor, ...]  # the same for lstm, else empty
    last: Tensor  # (batch, read) the last input
    position: int  # the position it stands before
    future: Tensor | None  # (time, batch, covariates), or None
    level: Tensor | None  # (time, batch, 1) noise levels of what is read, or None
    weights: tuple[CellWeights, ...]  # of the layers, laid out for stepping


_Known = tuple[Tensor | None, Tensor | None]
"""(time, batch, covariates) and (time, batch, 1): covariates and noise levels that the positions read."""


class RecurrentNetwork(nn.Module):
    """Layers of rnn, gru or lstm and a head; subclasses define which layout they read and where they start.

    Args:
        values: channels that are predicted and fed back.
        covariates: channels known ahead (calendar, plans): never replaced, read in free run too.
        observed: channels known in the past only.
        categories: covariates that are numbers of categories: of each its channel among them and how many names it has.
        embedding: width of the vector that is learned for each name.
        size: width of the states.
        layers: number of layers.
        cell: ``"rnn"``, ``"gru"`` or ``"lstm"``.
        residual: predict the change since the last input.
        head: ``"point"``, ``"gaussian"``, ``"student_t"`` or ``"quantiles"`` (see ``freerun.distributions``).
        dropout: between layers and before the head, in [0, 1).
        fed_back: the channels that are read back, counted from 0; the others are only predicted. None: all.
        level: read the noise level of every entry (``context["level"]``, see ``diffusion_noise``) as one channel more.
    """

    layout: ClassVar[str]

    def __init__(
        self,
        values: int,
        covariates: int = 0,
        observed: int = 0,
        categories: tuple[tuple[int, int], ...] = (),
        *,
        size: int = 64,
        layers: int = 1,
        cell: Cell = "gru",
        embedding: int = 8,
        residual: bool = False,
        head: Head = "point",
        dropout: float = 0.0,
        fed_back: tuple[int, ...] | None = None,
        level: bool = False,
    ) -> None:
        settings = {name: value for name, value in locals().items() if name not in ("self", "__class__")}
        if problems := recurrent_problems(settings, self.layout):
            raise UserError(problems)
        super().__init__()
        self._settings = settings
        self.values, self.covariates, self.observed = values, covariates, observed
        self.residual, self.head_name, self.reads_level = residual, head, level
        self.fed_back = None if fed_back is None else list(fed_back)
        between = dropout if layers > 1 else 0.0
        read = values if fed_back is None else len(fed_back)
        self.categories = Categories(categories, covariates, embedding) if categories else None
        known = covariates if self.categories is None else self.categories.width
        self.decoder = CELLS[cell](read + known + level, size, layers, dropout=between)
        self.drop = nn.Dropout(dropout)
        self.out = nn.Linear(size, values * numbers_a_value(head))
        if self.layout == "past":
            self.encoder = CELLS[cell](values + observed + known, size, layers, dropout=between)

    def settings(self) -> dict[str, Any]:
        """Return the constructor's arguments; those about categories where there are any."""
        absent = () if self.categories is not None else ("categories", "embedding")
        return {name: value for name, value in self._settings.items() if name not in absent}

    def _known(self, context: Any, batch: Batch) -> _Known:
        name = type(self).__name__
        future = covariates_of(context, batch, self.covariates, name)
        level = level_of(context, batch, self.reads_level, name)
        return None if future is None else future.transpose(0, 1), None if level is None else level.transpose(0, 1)

    # -- the complete sequence at once

    def _all(self, first: Tensor, history: Tensor, known: _Known, states: Any) -> Tensor:
        """(batch, time, numbers) from ``first`` (batch, values), the input at position 0, and the history."""
        inputs = torch.cat([first[None], history[:, :-1].transpose(0, 1)])  # time first: the fused layers are faster so
        future, level = (None if part is None else part[: len(inputs)] for part in known)
        hidden, _ = self.decoder(joined(self.embed(inputs), future, level, self.categories), states)
        return self._outputs(hidden, inputs).transpose(0, 1)

    def _outputs(self, hidden: Tensor, inputs: Tensor) -> Tensor:
        outputs = self.out(self.drop(hidden))
        if not self.residual:
            return outputs
        return with_last(outputs, inputs, self.head_name)

    # -- position by position

    def _begin(self, first: Tensor, known: _Known, hidden: tuple[Tensor, ...], cell: Any) -> RecurrentState:
        first = self.embed(first)
        return self.step(RecurrentState(hidden, cell, first, -1, *known, self._weights()), first)

    def _weights(self) -> tuple[CellWeights, ...]:
        return tuple(cell_weights(self.decoder, layer) for layer in range(self.decoder.num_layers))

    def embed(self, entries: Tensor) -> Tensor:
        """(..., values) -> (..., read): values as they are, those that are fed back."""
        return entries if self.fed_back is None else entries[..., self.fed_back]

    def step(self, state: RecurrentState, inputs: Tensor) -> RecurrentState:
        """The state after one more value (batch, read)."""
        position = state.position + 1
        # vectors step by step: where a gradient is cut, each piece has its own
        beside = the_future(state.future, position), the_level(state.level, position)
        x = joined(inputs, *beside, self.categories)
        hidden, cell = step_layers(state.weights, state.weights[0].gates(x), state.hidden, state.cell, self.drop)
        return state._replace(hidden=hidden, cell=cell, last=inputs, position=position)

    def output(self, state: RecurrentState, rows: Tensor | None = None) -> Tensor:
        """(rows, numbers) outputs at the position the state stands before."""
        hidden, last = state.hidden[-1], state.last
        if rows is not None:
            hidden = hidden.index_select(0, rows)
            last = last.index_select(0, rows) if self.residual else last
        return self._outputs(hidden, last)

    def select(self, state: RecurrentState, rows: Tensor) -> RecurrentState:
        """Return the state of the requested rows, in that order."""
        hidden, cell = (tuple(part.index_select(0, rows) for part in group) for group in (state.hidden, state.cell))
        future, level = (None if part is None else part[:, rows] for part in (state.future, state.level))
        last = state.last.index_select(0, rows)
        return state._replace(hidden=hidden, cell=cell, last=last, future=future, level=level)

    def detach(self, state: RecurrentState) -> RecurrentState:
        """The same state without the gradient into what came before; the weights' own gradient stays."""
        hidden, cell = (tuple(part.detach() for part in group) for group in (state.hidden, state.cell))
        return state._replace(hidden=hidden, cell=cell, last=state.last.detach(), weights=self._weights())


def recurrent_problems(settings: Mapping[str, Any], layout: str) -> list[str]:
    """The problems of a recurrent forecaster's arguments."""
    problems = size_problems(settings, layout) + category_problems(settings["categories"], settings["covariates"])
    if settings["cell"] not in CELLS:
        problems.append(f"cell must be one of {', '.join(CELLS)}; got {settings['cell']!r}")
    fed = settings["fed_back"]
    if fed is None:
        return problems
    fed = tuple(fed) if isinstance(fed, tuple | list) else (fed,)
    known = isinstance(settings["fed_back"], tuple | list) and all(
        isinstance(n, int) and 0 <= n < settings["values"] for n in fed
    )
    if not known or not fed or len(set(fed)) != len(fed):
        problems.append(
            f"fed_back must be different channels of the {settings['values']} values, counted from 0, or None for all; "
            f"got {settings['fed_back']!r}"
        )
    elif settings["residual"] and fed != tuple(range(settings["values"])):
        problems.append(
            f"residual adds the last input to the output, and with fed_back={fed} some of the "
            f"{settings['values']} values are not read: use residual=False, or fed_back=None"
        )
    return problems


@dataclass(frozen=True, eq=False)
class EncodedPast:
    """A past that has been read."""

    hidden: tuple[Tensor, ...]  # one (batch, size) per layer: the decoder's first state
    cell: tuple[Tensor, ...]  # the same for lstm, else empty
    last: Tensor  # (batch, values) the last past value, the input at position 0
    future: Tensor | None  # (batch, time, covariates), or None
    level: Tensor | None  # (batch, time) noise levels of the history, or None

    def select(self, rows: Tensor) -> EncodedPast:
        """Return the requested rows."""
        hidden, cell = (tuple(part.index_select(0, rows) for part in group) for group in (self.hidden, self.cell))
        beside = (None if part is None else part.index_select(0, rows) for part in (self.future, self.level))
        return EncodedPast(hidden, cell, self.last.index_select(0, rows), *beside)


class RecurrentForecaster(RecurrentNetwork):
    """Encoder and decoder, recurrent, for values; outputs (batch, horizon, numbers of the head * values).

    ``h_0`` = the encoder's last state, ``h_t = cell([y_{t-1}; c_t], h_{t-1})``, outputs = ``W h_t (+ y_{t-1})``, with
    the covariates ``c_t`` of the step that is predicted. The shift is inside: position t reads ``history[:, t-1]``,
    position 0 the last value of the past. A Stepper and an Encoder; the stepped and the fused path are equal.

    Args:
        values, ..., fed_back: as of ``RecurrentNetwork``.
        size: width of both networks.
        layers: of encoder and decoder each.

    Context of a batch: ``{"past": (batch, past_time, values + observed + covariates), "future": (batch, time,
    covariates)}``, "future" only where there are covariates; with ``level`` also ``"level": (batch, time)``, absent
    = 0.

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

    def encode(self, batch: Batch) -> Batch:
        """The batch with its past read; one that is encoded already is returned."""
        name = type(self).__name__
        check_history(batch, self.values, name)
        if isinstance(batch.context, EncodedPast):
            return batch
        past = past_of(batch.context, batch, (self.values, self.observed, self.covariates), name)
        future = covariates_of(batch.context, batch, self.covariates, name)
        last = past[:, -1, : self.values]
        if self.categories is not None:
            others, covariates = past.split([past.shape[-1] - self.covariates, self.covariates], -1)
            past = torch.cat([others, self.categories(covariates)], -1)
        _, states = self.encoder(past.transpose(0, 1))
        hidden, cell = states if isinstance(states, tuple) else (states, ())
        level_of(batch.context, batch, self.reads_level, name)  # refused before any step
        level = batch.context.get("level")
        return batch.made(context=EncodedPast(tuple(hidden), tuple(cell), last, future, level))

    def forward(self, batch: Batch) -> Tensor:
        """(batch, horizon, numbers of the head * values)."""
        read, known = self._read(batch)
        states: Any = torch.stack(read.hidden)
        if read.cell:
            states = (states, torch.stack(read.cell))
        return self._all(read.last, batch.history, known, states)

    def start(self, batch: Batch) -> RecurrentState:
        """The state that predicts position 0: the past and its last value have been read."""
        read, known = self._read(batch)
        return self._begin(read.last, known, read.hidden, read.cell)

    def _read(self, batch: Batch) -> tuple[EncodedPast, _Known]:
        read: EncodedPast = self.encode(batch).context
        # one encoded for a shorter horizon may have to serve a longer one
        return read, self._known({"future": read.future, "level": read.level}, batch)


class PlainForecaster(RecurrentNetwork):
    """One recurrent net over a complete sequence; outputs (batch, time, numbers of the head * values).

    ``h_t = cell([y_{t-1}; c_t], h_{t-1})``, outputs = ``W h_t (+ y_{t-1})``, with ``h_{-1} = 0`` and the covariates
    ``c_t`` of the step that is predicted. The shift is inside: position t reads ``history[:, t-1]``, position 0 zeros.
    The past is what the history begins with (``mask`` and ``eligible`` False). A Stepper; the stepped and the fused
    path are equal.

    Args:
        values, ..., fed_back: as of ``RecurrentNetwork``.
        observed: must be 0: a sequence has no room for channels known in the past only.

    Context of a batch: None, or ``{"future": (batch, time, covariates)}``, position t holding those of step t; with
    ``level`` also ``"level": (batch, time)``, that of the history's entries, absent = 0.

    Raises:
        UserError: for arguments outside their range, all at once; for a context that does not fit.

    Reference: Graves 2013, arXiv:1308.0850.

    >>> import torch
    >>> values = torch.randn(3, 5, 2)
    >>> PlainForecaster(2, size=8)(Batch(values, values, torch.ones(3, 5, dtype=torch.bool))).shape
    torch.Size([3, 5, 2])
    """

    layout: ClassVar[str] = "sequence"

    def forward(self, batch: Batch) -> Tensor:
        """(batch, time, numbers of the head * values)."""
        first, known = self._before(batch)
        return self._all(first, batch.history, known, None)

    def start(self, batch: Batch) -> RecurrentState:
        """The state that predicts position 0: zeros have been read."""
        first, known = self._before(batch)
        nothing = first.new_zeros(batch.size, self.decoder.hidden_size)
        states = (nothing,) * self.decoder.num_layers
        return self._begin(first, known, states, states if self.decoder.mode == "LSTM" else ())

    def _before(self, batch: Batch) -> tuple[Tensor, _Known]:
        check_history(batch, self.values, type(self).__name__)
        return batch.history.new_zeros(batch.size, self.values), self._known(batch.context, batch)


class ShallowPLRNN(nn.Module):
    """``z_t = A z_{t-1} + W1 relu(W2 z_{t-1} + h2) + h1`` with A diagonal; outputs (batch, time, values), z_t itself.

    A Markov map: the output at position t depends on ``history[:, t-1]`` alone, and position 0, which reads zeros,
    always has ``W1 relu(h2) + h1``. A Stepper whose state is the last entry.

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
    markov: ClassVar[bool] = True  # the state is the last entry: what adaptive generalised teacher forcing needs

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
        """The constructor's arguments."""
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
        return self._next(state if rows is None else state.index_select(0, rows))

    def select(self, state: Tensor, rows: Tensor) -> Tensor:
        """The requested rows."""
        return state.index_select(0, rows)

    def detach(self, state: Tensor) -> Tensor:
        """The same entry without its gradient."""
        return state.detach()

    def _next(self, z: Tensor) -> Tensor:
        return self.diagonal * z + self.outer(F.relu(self.inner(z)))
