"""One step of rnn, gru and lstm on the weights of torch's fused layers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["CELLS", "CellWeights", "cell_step", "cell_weights"]

CELLS: dict[str, Any] = {"rnn": nn.RNN, "gru": nn.GRU, "lstm": nn.LSTM}


@dataclass(frozen=True, eq=False)
class CellWeights:
    """A layer's weights, laid out for stepping.

    Args:
        kind: rnn, gru or lstm.
        inputs: (gates * hidden, in) input weights.
        input_bias: (gates * hidden,): both biases where they simply add (rnn, lstm), the input bias for gru.
        recurrent: (hidden, gates * hidden), transposed.
        recurrent_bias: (gates * hidden,), gru only.
    """

    kind: str
    inputs: Tensor
    input_bias: Tensor
    recurrent: Tensor
    recurrent_bias: Tensor | None

    def gates(self, inputs: Tensor) -> Tensor:
        """(..., in) -> (..., gates * hidden): the part of the gates that does not need the state."""
        return F.linear(inputs, self.inputs, self.input_bias)


def cell_weights(layers: nn.RNNBase, layer: int) -> CellWeights:
    """The weights of one layer of a unidirectional ``nn.RNN``, ``nn.GRU`` or ``nn.LSTM``."""
    parts = [getattr(layers, f"{name}_l{layer}") for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")]
    w_in, w_rec, b_in, b_rec = parts
    kind = next(name for name, cls in CELLS.items() if isinstance(layers, cls))
    if kind == "gru":  # its candidate gate multiplies the recurrent bias, so that one stays apart
        return CellWeights(kind, w_in, b_in, w_rec.t(), b_rec)
    return CellWeights(kind, w_in, b_in + b_rec, w_rec.t(), None)


def cell_step(weights: CellWeights, gates: Tensor, hidden: Tensor, cell: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """The next hidden (and cell) state, (batch, hidden), from the input's part of the gates."""
    if weights.kind == "rnn":
        return torch.addmm(gates, hidden, weights.recurrent).tanh_(), None
    if weights.kind == "gru":
        return _gru(weights, gates, hidden), None
    assert cell is not None
    return _lstm(torch.addmm(gates, hidden, weights.recurrent), cell)


def _lstm(gates: Tensor, cell: Tensor) -> tuple[Tensor, Tensor]:
    size = cell.shape[1]
    if torch.is_grad_enabled():
        i, f, g, o = gates.chunk(4, 1)
        cell = f.sigmoid() * cell + i.sigmoid() * g.tanh()
        return o.sigmoid() * cell.tanh(), cell
    # gates is our own fresh tensor: activations in place save a third of the step
    both = gates[:, : 2 * size].sigmoid_()
    candidate = gates[:, 2 * size : 3 * size].tanh_()
    out = gates[:, 3 * size :].sigmoid_()
    cell = (both[:, size:] * cell).addcmul_(both[:, :size], candidate)
    return cell.tanh().mul_(out), cell


def _gru(weights: CellWeights, gates: Tensor, hidden: Tensor) -> Tensor:
    assert weights.recurrent_bias is not None
    recurrent = torch.addmm(weights.recurrent_bias, hidden, weights.recurrent)
    size = hidden.shape[1]
    if torch.is_grad_enabled():
        reset, update, candidate = gates.chunk(3, 1)
        r, u, c = recurrent.chunk(3, 1)
        update = (update + u).sigmoid()
        return _between(torch.addcmul(candidate, (reset + r).sigmoid(), c).tanh(), hidden, update)
    # recurrent is our own fresh tensor: all but the last operation in place
    both = recurrent[:, : 2 * size].add_(gates[:, : 2 * size]).sigmoid_()
    candidate = recurrent[:, 2 * size :].mul_(both[:, :size]).add_(gates[:, 2 * size :]).tanh_()
    return _between(candidate, hidden, both[:, size:])


def _between(candidate: Tensor, hidden: Tensor, update: Tensor) -> Tensor:
    if candidate.dtype == hidden.dtype:
        return torch.lerp(candidate, hidden, update)
    return candidate + update * (hidden - candidate)  # autocast: the state may still be wider
