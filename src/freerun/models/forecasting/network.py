"""The recurrent part that forecasters share: told a value and the covariates of the step, it says the next value."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from freerun.models.cells import CELLS, CellWeights, cell_step, cell_weights
from freerun.models.forecasting.told import numbers_a_value, size_problems, the_future

__all__ = ["RecurrentNetwork", "RecurrentState", "recurrent_problems"]


class RecurrentState(NamedTuple):
    """Where a recurrent forecaster is.

    Args:
        hidden: one (batch, size) per layer.
        cell: the same for lstm, else empty.
        told: (batch, read) what was read last.
        position: the position it stands before.
        future: (time, batch, covariates), or None.
        weights: of the layers, laid out for stepping.
    """

    hidden: tuple[Tensor, ...]
    cell: tuple[Tensor, ...]
    told: Tensor
    position: int
    future: Tensor | None
    weights: tuple[CellWeights, ...]


class RecurrentNetwork(nn.Module):
    """Layers of rnn, gru or lstm and a head; subclasses say what stands before the first position.

    Args:
        settings: values, covariates, size, layers, cell, residual, head, dropout and fed_back (see
            ``RecurrentForecaster``).
    """

    def __init__(self, settings: Mapping[str, Any]) -> None:
        super().__init__()
        self._settings = dict(settings)
        self.values: int = settings["values"]
        self.covariates: int = settings["covariates"]
        self.residual: bool = settings["residual"]
        self.head_name: str = settings["head"]
        self.fed_back: list[int] | None = None if settings["fed_back"] is None else list(settings["fed_back"])
        read = self.values if self.fed_back is None else len(self.fed_back)
        layers, dropout = settings["layers"], settings["dropout"]
        self.decoder = CELLS[settings["cell"]](
            read + self.covariates, settings["size"], layers, dropout=dropout if layers > 1 else 0.0
        )
        self.drop = nn.Dropout(dropout)
        self.out = nn.Linear(settings["size"], self.values * numbers_a_value(self.head_name))

    def settings(self) -> dict[str, Any]:
        """The constructor's arguments, as given."""
        return dict(self._settings)

    # -- the whole sequence at once

    def _all(self, first: Tensor, history: Tensor, future: Tensor | None, states: Any) -> Tensor:
        """(batch, time, numbers) from ``first`` (batch, values), told at position 0, and the history."""
        told = torch.cat([first[None], history[:, :-1].transpose(0, 1)])  # time first: the fused layers are faster so
        read = self.embed(told)
        if future is not None:
            read = torch.cat([read, future[: len(told)]], -1)
        hidden, _ = self.decoder(read, states)
        return self._said(hidden, told).transpose(0, 1)

    def _said(self, hidden: Tensor, told: Tensor) -> Tensor:
        outputs = self.out(self.drop(hidden))
        if not self.residual:
            return outputs
        if outputs.shape[-1] == self.values:
            return outputs + told
        return torch.cat([outputs[..., : self.values] + told, outputs[..., self.values :]], -1)

    # -- position by position

    def _begin(self, first: Tensor, future: Tensor | None, hidden: tuple[Tensor, ...], cell: Any) -> RecurrentState:
        first = self.embed(first)
        return self.step(RecurrentState(hidden, cell, first, -1, future, self._weights()), first)

    def _weights(self) -> tuple[CellWeights, ...]:
        return tuple(cell_weights(self.decoder, layer) for layer in range(self.decoder.num_layers))

    def embed(self, entries: Tensor) -> Tensor:
        """(..., values) -> (..., read): values as they are, those that are fed back."""
        return entries if self.fed_back is None else entries[..., self.fed_back]

    def step(self, state: RecurrentState, inputs: Tensor) -> RecurrentState:
        """The state after one more value (batch, read)."""
        position = state.position + 1
        now = the_future(state.future, position)
        x = inputs if now is None else torch.cat([inputs, now], 1)
        hidden: list[Tensor] = []
        cell: list[Tensor] = []
        for layer, weights in enumerate(state.weights):
            if layer:
                x = self.drop(hidden[-1])
            h, c = cell_step(weights, weights.gates(x), state.hidden[layer], state.cell[layer] if state.cell else None)
            hidden.append(h)
            if c is not None:
                cell.append(c)
        return RecurrentState(tuple(hidden), tuple(cell), inputs, position, state.future, state.weights)

    def output(self, state: RecurrentState, rows: Tensor | None = None) -> Tensor:
        """(rows, numbers) what is said of the position the state stands before."""
        hidden, told = state.hidden[-1], state.told
        if rows is not None:
            hidden = hidden[rows]
            told = told[rows] if self.residual else told
        return self._said(hidden, told)

    def select(self, state: RecurrentState, rows: Tensor) -> RecurrentState:
        """The state of the rows asked for, in that order."""
        hidden, cell = (tuple(part[rows] for part in group) for group in (state.hidden, state.cell))
        future = None if state.future is None else state.future[:, rows]
        return RecurrentState(hidden, cell, state.told[rows], state.position, future, state.weights)

    def detach(self, state: RecurrentState) -> RecurrentState:
        """The same state without the gradient into what came before; the weights' own gradient stays."""
        hidden, cell = (tuple(part.detach() for part in group) for group in (state.hidden, state.cell))
        return RecurrentState(hidden, cell, state.told.detach(), state.position, state.future, self._weights())


def recurrent_problems(settings: Mapping[str, Any], layout: str) -> list[str]:
    """The problems of a recurrent forecaster's arguments."""
    problems = size_problems(settings, layout)
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
            f"residual adds what was told to what is said, and with fed_back={fed} some of the "
            f"{settings['values']} values are not told: use residual=False, or fed_back=None"
        )
    return problems
