"""A recurrent encoder for right-padded sources whose padding is inert."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from freerun.batch import Batch
from freerun.errors import UserError

Cell = Literal["rnn", "gru", "lstm"]


CELLS: dict[str, Any] = {"rnn": nn.RNN, "gru": nn.GRU, "lstm": nn.LSTM}


@dataclass(frozen=True, eq=False)
class CellWeights:
    """A layer's weights, laid out for stepping."""

    kind: str  # rnn, gru or lstm
    inputs: Tensor  # (gates * hidden, in) input weights
    input_bias: Tensor  # (gates * hidden,): both biases where they simply add (rnn, lstm), the input bias for gru
    recurrent: Tensor  # (hidden, gates * hidden), transposed
    recurrent_bias: Tensor | None  # (gates * hidden,), gru only

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


def step_layers(
    layers: Sequence[CellWeights],
    gates: Tensor,
    hidden: Sequence[Tensor],
    cell: Sequence[Tensor],
    drop: nn.Module,
    *,
    masks: Sequence[Tensor] = (),
) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """The next hidden (and cell) states (batch, hidden) by layer, from the first layer's gates of the input.

    ``masks``: one (batch, hidden) per layer, by which the recurrent products read its state; none reads all of it.
    """
    states: list[Tensor] = []
    cells: list[Tensor] = []
    for n, weights in enumerate(layers):
        if n:
            gates = weights.gates(drop(states[-1]))
        read = hidden[n] * masks[n] if masks else hidden[n]
        if weights.kind == "gru":
            states.append(_gru(weights, gates, hidden[n], read))
            continue
        total = torch.addmm(gates, read, weights.recurrent)
        if weights.kind == "rnn":
            states.append(total.tanh_())
            continue
        state, new = _lstm(total, cell[n])
        states.append(state)
        cells.append(new)
    return tuple(states), tuple(cells)


def _lstm(gates: Tensor, cell: Tensor) -> tuple[Tensor, Tensor]:
    size = cell.shape[1]
    if torch.is_grad_enabled():
        i, f, g, o = gates.chunk(4, 1)
        cell = f.sigmoid() * cell + i.sigmoid() * g.tanh()
        return o.sigmoid() * cell.tanh(), cell
    # gates is our own fresh tensor: activations in place save a third of the step
    if gates.device.type == "cpu" and gates.dtype.itemsize >= cell.dtype.itemsize >= 4:
        # tanh x = 2 sigmoid 2x - 1: a processor's tanh costs up to seven of its sigmoids. In half precision too much of
        # a small x would be lost
        gates[:, 2 * size : 3 * size].mul_(2)
        i, f, g, o = gates.sigmoid_().chunk(4, 1)
        cell = (f * cell).sub_(i).addcmul_(i, g, value=2)
        return o.neg().addcmul_(o, (cell * 2).sigmoid_(), value=2), cell
    both = gates[:, : 2 * size].sigmoid_()
    candidate = gates[:, 2 * size : 3 * size].tanh_()
    out = gates[:, 3 * size :].sigmoid_()
    cell = (both[:, size:] * cell).addcmul_(both[:, :size], candidate)
    return cell.tanh().mul_(out), cell


def _gru(weights: CellWeights, gates: Tensor, hidden: Tensor, read: Tensor) -> Tensor:
    assert weights.recurrent_bias is not None
    recurrent = torch.addmm(weights.recurrent_bias, read, weights.recurrent)
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


class RecurrentEncoder(nn.Module):
    """Layers of rnn, gru or lstm, one way or both ways.

    Backward layers read each row reversed *within its own length*, so that padding is read last and never seen by
    what counts: packing does the same, but takes the slower unfused kernels. ``width`` is that of the embedding,
    ``size`` that of the memory.
    """

    def __init__(
        self, vocab: int, width: int, size: int, *, layers: int, cell: str, bidirectional: bool, dropout: float
    ) -> None:
        super().__init__()
        ways = 2 if bidirectional else 1
        self.embedding = nn.Embedding(vocab, width)
        self.drop = nn.Dropout(dropout)
        sizes = [width] + [size] * (layers - 1)
        make = CELLS[cell]
        self.forwards = nn.ModuleList(make(n, size // ways) for n in sizes)
        self.backwards = nn.ModuleList(make(n, size // ways) for n in sizes) if bidirectional else None
        self.memory_size = self.summary_size = size

    def forward(self, source: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """(batch, source_time) ids and mask -> memory (batch, source_time, size), summary (batch, size)."""
        if problems := source_problems(source, mask):
            raise UserError(problems)
        # time, batch, width: the fused layers are faster so
        states = self.drop(self.embedding(source.t()))
        lengths = mask.sum(1).clamp_min(1)
        positions = torch.arange(source.shape[1], device=lengths.device)[:, None]
        # (time, batch) positions that reverse each row within its length and leave its padding where it is
        mirror = torch.where(positions < lengths, lengths - 1 - positions, positions)
        for n, layer in enumerate(self.forwards):
            states = self.drop(states) if n else states
            ahead, _ = layer(states)
            if self.backwards is None:
                states, last = ahead, _at(ahead, lengths - 1)
                continue
            back, _ = self.backwards[n](_reordered(states, mirror))
            last = torch.cat([_at(ahead, lengths - 1), _at(back, lengths - 1)], 1)
            states = torch.cat([ahead, _reordered(back, mirror)], 2)
        return states.transpose(0, 1).contiguous(), last  # pyright: ignore[reportPossiblyUnboundVariable]


def source_of(batch: Batch, owner: str) -> tuple[Tensor, Tensor]:
    """The source of a batch and its mask."""
    if not isinstance(batch.context, Mapping) or not {"source", "source_mask"} <= batch.context.keys():
        raise UserError(
            f"{owner} needs Batch.context = {{'source': (batch, source_time) ids, 'source_mask': the same "
            f"shape, bool}}; got {type(batch.context).__name__}"
        )
    return batch.context["source"], batch.context["source_mask"]


def source_problems(source: Tensor, mask: Tensor) -> list[str]:
    """What is wrong with a source and its mask, from shapes and types alone."""
    problems: list[str] = []
    if source.dim() != 2 or source.dtype != torch.int64 or source.shape[1] == 0:
        kind = f"{tuple(source.shape)} {str(source.dtype).removeprefix('torch.')}"
        problems.append(f"context['source'] must be int64 ids (batch, source time), one or more a row; got {kind}")
    if mask.dtype != torch.bool or mask.shape != source.shape:
        kind = f"{tuple(mask.shape)} {str(mask.dtype).removeprefix('torch.')}"
        problems.append(f"context['source_mask'] must be bool, {tuple(source.shape)}, True = there; got {kind}")
    return problems


def _reordered(states: Tensor, order: Tensor) -> Tensor:
    return states.gather(0, order[..., None].expand_as(states))


def _at(states: Tensor, position: Tensor) -> Tensor:
    return states[position, torch.arange(states.shape[1], device=states.device)]
