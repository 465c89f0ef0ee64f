"""A causal recurrent labeller: what is observed now, and the label before."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from freerun.arguments import COUNT, Range
from freerun.batch import Batch
from freerun.errors import UserError
from freerun.models.rnn import CELLS, Cell, CellWeights, cell_weights, source_of, source_problems, step_layers


@dataclass(frozen=True, eq=False)
class Observed:
    """A source whose symbols have been looked up."""

    vectors: Tensor  # (time, batch, embedding)

    def select(self, rows: Tensor) -> Observed:
        """The requested rows."""
        return Observed(self.vectors[:, rows])


@dataclass(frozen=True, eq=False)
class LabellerState:
    """Where a labeller is: hidden (and cell) per layer, and the source with its share of the gates."""

    hidden: tuple[Tensor, ...]
    cell: tuple[Tensor, ...]
    gates: Tensor  # (time, batch, gates): what the first layer's gates have of the source, without a bias
    position: int
    weights: tuple[CellWeights, ...]


class RecurrentLabeller(nn.Module):
    """One label at each position of a sequence, read from left to right; outputs are logits (batch, time, labels).

    ``h_t = cell([e(x_t); e(y_{t-1})], h_{t-1})``, logits = U h_t: the label at t sees the symbols up to t and the
    labels before t, never a symbol after it (*online* labelling). The shift is inside: position t is fed
    ``history[:, t-1]``, position 0 a learned start vector. A Stepper, an Encoder and an Embedder; the stepped and the
    fused path are equal.

    Args:
        source_vocab: number of observed symbols.
        target_vocab: number of labels.
        size: width of the states.
        embedding: width of the embeddings, of symbols and of labels each; default ``size``.
        layers: number of layers.
        cell: ``"rnn"``, ``"gru"`` or ``"lstm"``.
        dropout: on embeddings, between layers and before the labels, in [0, 1).

    Context of a batch: ``{"source": (batch, time) ids, "source_mask": (batch, time) bool}``, as long as the targets,
    padding on the right.

    Raises:
        UserError: for arguments outside their range, all at once; for a source that is shorter than the targets.

    What it is not: a tagger that reads the whole sequence first; that is an encoder-decoder, or a bidirectional net.

    >>> model = RecurrentLabeller(5, 4, size=8)
    >>> ids = torch.tensor([[1, 2, 0]])
    >>> source = {"source": torch.tensor([[3, 4, 4]]), "source_mask": torch.ones(1, 3, dtype=torch.bool)}
    >>> model(Batch(ids, ids, ids >= 0, source)).shape
    torch.Size([1, 3, 4])
    """

    def __init__(
        self,
        source_vocab: int,
        target_vocab: int,
        *,
        size: int = 64,
        embedding: int | None = None,
        layers: int = 1,
        cell: Cell = "gru",
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self._settings = {name: value for name, value in locals().items() if name not in ("self", "__class__")}
        counts = {name: self._settings[name] for name in ("source_vocab", "target_vocab", "size", "layers")}
        width = size if embedding is None else embedding
        problems = COUNT.problems(**counts, embedding=width) + Range(0, 1, "[)").problems(dropout=dropout)
        if cell not in CELLS:
            problems.append(f"cell must be one of {', '.join(CELLS)}; got {cell!r}")
        if problems:
            raise UserError(problems)
        self.target_vocab, self.size = target_vocab, size
        self.drop = nn.Dropout(dropout)
        self.observed = nn.Embedding(source_vocab, width)
        self.embedding = nn.Embedding(target_vocab, width)
        self.start_vector = nn.Parameter(torch.randn(width))
        self.layers = CELLS[cell](2 * width, size, layers, dropout=dropout if layers > 1 else 0.0)
        self.out = nn.Linear(size, target_vocab)

    def settings(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return dict(self._settings)

    # -- the complete sequence at once

    def encode(self, batch: Batch) -> Batch:
        """The batch with its source looked up; one that is encoded already is returned."""
        if isinstance(batch.context, Observed):
            return batch
        source, mask = source_of(batch, "RecurrentLabeller")
        problems = source_problems(source, mask)
        if not problems and source.shape[1] < batch.time:
            problems.append(f"the source has {source.shape[1]} positions and the targets {batch.time}: one label each")
        if problems:
            raise UserError(problems)
        return batch.made(context=Observed(self.drop(self.observed(source.t()))))

    def hidden(self, batch: Batch) -> Tensor:
        """(batch, time, size): what the labels are read from."""
        return self._read(batch, self.embedding(batch.history[:, :-1].t()))

    def head(self, hidden: Tensor) -> Tensor:
        """(..., size) -> (..., labels) logits."""
        return self.out(self.drop(hidden))

    def forward(self, batch: Batch) -> Tensor:
        """(batch, time, labels) logits."""
        return self.head(self.hidden(batch))

    def lookup(self, entries: Tensor) -> Tensor:
        """(...) ids -> (..., embedding): what a label is looked up as, before dropout."""
        return self.embedding(entries)

    def outputs_from(self, batch: Batch, vectors: Tensor) -> Tensor:
        """The forward, with (batch, time, embedding) vectors instead of ``lookup(history)``."""
        return self.head(self._read(batch, vectors[:, :-1].transpose(0, 1)))

    def _read(self, batch: Batch, entries: Tensor) -> Tensor:
        # entries: time - 1, batch, embedding; the last label predicts nothing
        observed: Observed = self.encode(batch).context
        labels = self.drop(torch.cat([self.start_vector.expand(1, batch.size, -1), entries]))
        states, _ = self.layers(torch.cat([observed.vectors[: len(labels)], labels], -1))
        return states.transpose(0, 1)

    # -- position by position

    def start(self, batch: Batch) -> LabellerState:
        """The state that predicts position 0: the first symbol and the start vector have been read."""
        observed: Observed = self.encode(batch).context
        weights = tuple(cell_weights(self.layers, layer) for layer in range(self.layers.num_layers))
        half = self.embedding.embedding_dim
        gates = F.linear(observed.vectors, weights[0].inputs[:, :half])
        hidden = tuple(gates.new_zeros(batch.size, self.size) for _ in weights)
        cell = hidden if weights[0].kind == "lstm" else ()
        # one row for all, unless dropout makes them differ
        count = 1 if not (self.training and self.drop.p > 0) else batch.size
        first = self._label_gates(weights[0], self.start_vector.expand(count, -1))
        return self.step(LabellerState(hidden, cell, gates, -1, weights), first.expand(batch.size, -1))

    def _label_gates(self, weights: CellWeights, vectors: Tensor) -> Tensor:
        return F.linear(self.drop(vectors), weights.inputs[:, self.embedding.embedding_dim :], weights.input_bias)

    def embed(self, entries: Tensor) -> Tensor:
        """(...) ids -> (..., gates): the label's share of the gates."""
        return self.inputs_from(self.embedding(entries))

    def inputs_from(self, vectors: Tensor) -> Tensor:
        """(..., embedding) vectors in place of ``lookup(entries)`` -> (..., gates)."""
        return self._label_gates(cell_weights(self.layers, 0), vectors)

    def step(self, state: LabellerState, inputs: Tensor) -> LabellerState:
        """The state after one more label, as ``embed`` returned it, and the symbol that is observed next."""
        now = state.position + 1
        # after the last symbol there is nothing to predict: ``output`` refuses it
        gates = inputs + state.gates[now] if now < len(state.gates) else inputs
        hidden, cell = step_layers(state.weights, gates, state.hidden, state.cell, self.drop)
        return LabellerState(hidden, cell, state.gates, now, state.weights)

    def output(self, state: LabellerState, rows: Tensor | None = None) -> Tensor:
        """(rows, labels) logits of the position the state stands before."""
        if state.position >= len(state.gates):
            raise UserError(
                f"the source has {len(state.gates)} positions, and a label at position {state.position + 1} was "
                "requested: there is one label for each observed symbol"
            )
        return self.head(state.hidden[-1] if rows is None else state.hidden[-1].index_select(0, rows))

    def select(self, state: LabellerState, rows: Tensor) -> LabellerState:
        """The state of the requested rows, in that order."""
        hidden, cell = (tuple(part.index_select(0, rows) for part in group) for group in (state.hidden, state.cell))
        return LabellerState(hidden, cell, state.gates[:, rows], state.position, state.weights)
