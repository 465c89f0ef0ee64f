"""A recurrent encoder-decoder: rnn, gru or lstm, with Luong's attention or none."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from freerun.arguments import COUNT, is_number
from freerun.batch import Batch
from freerun.errors import UserError
from freerun.models.linear import logits
from freerun.models.rnn import CELLS, Cell, CellWeights, RecurrentEncoder, cell_weights, source_of, step_layers


@dataclass(frozen=True, eq=False)
class Encoded:
    """An encoded source."""

    memory: Tensor  # (batch, source_time, size): what is read
    keys: Tensor  # (batch, source_time, size): what the decoder is compared with; memory itself without input feeding
    padding: Tensor  # (batch, source_time) bool, True = may not be attended to
    hidden: tuple[Tensor, ...]  # one (batch, size) per decoder layer: the state before the start symbol
    cell: tuple[Tensor, ...]  # the same for lstm, else empty

    def select(self, rows: Tensor) -> Encoded:
        """The requested rows."""
        memory = self.memory.index_select(0, rows)
        keys = memory if self.keys is self.memory else self.keys.index_select(0, rows)
        return Encoded(
            memory, keys, self.padding.index_select(0, rows), _picked(self.hidden, rows), _picked(self.cell, rows)
        )


@dataclass(frozen=True, eq=False)
class DecoderState:
    """Where a decoder is: hidden (and cell) per layer, the source it attends to, and what is fed back."""

    hidden: tuple[Tensor, ...]
    cell: tuple[Tensor, ...]
    source: Encoded
    weights: tuple[CellWeights, ...]
    fed: tuple[Tensor, ...] = ()  # with input feeding one (batch, size): the attention vector
    masks: tuple[Tensor, ...] = ()  # with recurrent dropout one (batch, size) per layer, and one for ``fed``


class RecurrentSeq2Seq(nn.Module):
    """Encoder and decoder, recurrent; outputs are logits (batch, time, target_vocab).

    ``h_t = cell(e(y_{t-1}), h_{t-1})``, ``a_t = softmax(h_t W M^T)``, ``o_t = tanh(W_c [h_t; a_t M])``, logits = U o_t.
    The shift is inside: position t is fed ``history[:, t-1]``, position 0 a learned start vector. A Stepper, an
    Encoder and an Embedder; the stepped and the fused path are equal.

    With input feeding ``h_t = cell([e(y_{t-1}); o_{t-1}], h_{t-1})``, o before position 0 is 0: what was attended to
    reaches the state, and teacher forcing is a loop over the step in place of one fused call
    (``benchmarks/input_feeding.py`` measures its price).

    Args:
        source_vocab: number of source symbols, the padding id 0 included.
        target_vocab: number of target symbols, the end symbol included.
        size: width of the decoder; a bidirectional encoder has half of it each way.
        embedding: width of the embeddings; default ``size``.
        layers: of encoder and decoder each.
        encoder_layers: of the encoder; default ``layers``.
        decoder_layers: of the decoder; default ``layers``.
        cell: ``"rnn"``, ``"gru"`` or ``"lstm"``.
        attention: ``"luong"`` or None.
        input_feeding: feed the attention vector o back into the decoder.
        bidirectional: read the source both ways.
        dropout: on embeddings, between layers and before the vocabulary, in [0, 1).
        recurrent_dropout: on the decoder's state and on the vector fed back, one mask for all steps of a sequence, in
            [0, 1); needs ``input_feeding``, as fused layers have no place for it.
        tied: the output weights are the target embedding (needs ``embedding == size``).

    Context of a batch: ``{"source": (batch, source_time) ids, "source_mask": (batch, source_time) bool}``, padding on
    the right.

    Raises:
        UserError: for arguments outside their range; all at once.

    Reference: Luong, Pham and Manning 2015, arXiv:1508.04025; Gal and Ghahramani 2016, arXiv:1512.05287 (one mask for
    a sequence).

    >>> model = RecurrentSeq2Seq(5, 4, size=8)
    >>> ids = torch.tensor([[1, 2, 0]])
    >>> source = {"source": torch.tensor([[3, 4]]), "source_mask": torch.ones(1, 2, dtype=torch.bool)}
    >>> model(Batch(ids, ids, ids >= 0, source)).shape
    torch.Size([1, 3, 4])
    """

    def __init__(
        self,
        source_vocab: int,
        target_vocab: int,
        *,
        size: int = 256,
        embedding: int | None = None,
        layers: int = 1,
        encoder_layers: int | None = None,
        decoder_layers: int | None = None,
        cell: Cell = "lstm",
        attention: Literal["luong"] | None = "luong",
        input_feeding: bool = False,
        bidirectional: bool = True,
        dropout: float = 0.0,
        recurrent_dropout: float = 0.0,
        tied: bool = False,
    ) -> None:
        super().__init__()
        self._settings = {name: value for name, value in locals().items() if name not in ("self", "__class__")}
        _check(self._settings)
        width = size if embedding is None else embedding
        read, made = (layers if own is None else own for own in (encoder_layers, decoder_layers))
        self.target_vocab = target_vocab
        self.size = size
        self.drop = nn.Dropout(dropout)
        self.encoder = RecurrentEncoder(
            source_vocab, width, size, layers=read, cell=cell, bidirectional=bidirectional, dropout=dropout
        )
        states = 2 if cell == "lstm" else 1
        self.bridge = nn.Linear(self.encoder.summary_size, states * made * size)
        self.embedding = nn.Embedding(target_vocab, width)
        self.start_vector = nn.Parameter(torch.randn(width))
        self.decoder = CELLS[cell](width, size, made, dropout=dropout if made > 1 else 0.0)
        self.state_drop = nn.Dropout(recurrent_dropout)
        if input_feeding:
            # W_c [h; a M] = W_h h + a (M V): what depends on the source alone is one product before the first step
            self.source_sides = nn.Linear(self.encoder.memory_size, 2 * size, bias=False)
            self.combine = nn.Linear(size, size)
            self.feed = nn.Linear(size, len(self.decoder.weight_ih_l0), bias=False)
        elif attention is not None:
            self.query = nn.Linear(size, self.encoder.memory_size, bias=False)
            self.combine = nn.Linear(size + self.encoder.memory_size, size)
        self.attention, self.input_feeding = attention, input_feeding
        self.out = nn.Linear(size, target_vocab)
        if tied:
            nn.init.normal_(self.embedding.weight, std=width**-0.5)
            self.out.weight = self.embedding.weight

    def settings(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return dict(self._settings)

    # -- the complete sequence at once

    def encode(self, batch: Batch) -> Batch:
        """The batch with its source encoded; one that is encoded already is returned."""
        if isinstance(batch.context, Encoded):
            return batch
        source, mask = source_of(batch, "RecurrentSeq2Seq")
        memory, summary = self.encoder(source, mask)
        # for lstm the first half of the parts are hidden states, the second half cells
        parts = self.bridge(summary).tanh().split(self.size, 1)
        layers = self.decoder.num_layers
        keys = memory
        if self.input_feeding:
            keys, memory = self.source_sides(memory).chunk(2, -1)
        return batch.made(context=Encoded(memory, keys, ~mask, parts[:layers], parts[layers:]))

    def hidden(self, batch: Batch) -> Tensor:
        """(batch, time, size): what the vocabulary is read from."""
        # time first: the fused layers are faster so
        return self._read(batch, self.embedding(batch.history[:, :-1].t()))

    def head(self, hidden: Tensor) -> Tensor:
        """(..., size) -> (..., target_vocab) logits."""
        return logits(self.out, self.drop(hidden) if self.drop.training else hidden)

    def forward(self, batch: Batch) -> Tensor:
        """(batch, time, target_vocab) logits."""
        return self.head(self.hidden(batch))

    def lookup(self, entries: Tensor) -> Tensor:
        """(...) ids -> (..., embedding): what a symbol is looked up as, before dropout."""
        return self.embedding(entries)

    def outputs_from(self, batch: Batch, vectors: Tensor) -> Tensor:
        """The forward, with (batch, time, embedding) vectors instead of ``lookup(history)``."""
        return self.head(self._read(batch, vectors[:, :-1].transpose(0, 1)))

    def _read(self, batch: Batch, entries: Tensor) -> Tensor:
        # entries: time - 1, batch, embedding; the last entry predicts nothing
        source: Encoded = self.encode(batch).context
        inputs = self.drop(torch.cat([self.start_vector.expand(1, batch.size, -1), entries]))
        if self.input_feeding:
            return self._fed_back(inputs, source)
        states: Any = torch.stack(source.hidden)
        if source.cell:
            states = (states, torch.stack(source.cell))
        hidden, _ = self.decoder(inputs, states)
        return self._attend(hidden.transpose(0, 1), source)

    def _fed_back(self, inputs: Tensor, source: Encoded) -> Tensor:
        # time, batch, embedding -> batch, time, size
        state, vectors = self._begun(source), list[Tensor]()
        for gates in state.weights[0].gates(inputs).unbind(0):
            state = self.step(state, gates)
            vectors += state.fed
        return torch.stack(vectors, 1)

    def _attend(self, hidden: Tensor, source: Encoded) -> Tensor:
        # hidden: batch, time, size
        if self.attention is None:
            return hidden.contiguous()
        scores = torch.bmm(self.query(hidden), source.memory.transpose(1, 2))
        attended = torch.bmm(_shares(scores, source.padding), source.memory)
        return self.combine(torch.cat([hidden, attended], -1)).tanh()

    # -- position by position

    def start(self, batch: Batch) -> DecoderState:
        """The state that predicts position 0: the start vector has been read."""
        state = self._begun(self.encode(batch).context)
        # one row for all, unless dropout makes them differ
        count = 1 if not (self.training and self.drop.p > 0) else batch.size
        first = state.weights[0].gates(self.drop(self.start_vector.expand(count, -1)))
        return self.step(state, first.expand(batch.size, -1))

    def _begun(self, source: Encoded) -> DecoderState:
        # nothing has been read
        weights = tuple(cell_weights(self.decoder, layer) for layer in range(self.decoder.num_layers))
        if not self.input_feeding:
            return DecoderState(source.hidden, source.cell, source, weights)
        ones = torch.ones_like(source.hidden[0])
        drops = self.state_drop.training and self.state_drop.p > 0
        masks = tuple(self.state_drop(ones) for _ in (*weights, "fed")) if drops else ()
        return DecoderState(source.hidden, source.cell, source, weights, (torch.zeros_like(ones),), masks)

    def embed(self, entries: Tensor) -> Tensor:
        """(...) ids -> (..., gates): embedding and input gates in one product."""
        return self.inputs_from(self.embedding(entries))

    def inputs_from(self, vectors: Tensor) -> Tensor:
        """(..., embedding) vectors in place of ``lookup(entries)`` -> (..., gates)."""
        return cell_weights(self.decoder, 0).gates(self.drop(vectors))

    def step(self, state: DecoderState, inputs: Tensor) -> DecoderState:
        """The state after one more entry, as ``embed`` returned it."""
        source, weights, masks = state.source, state.weights, state.masks
        for fed in state.fed:
            inputs = torch.addmm(inputs, fed * masks[-1] if masks else fed, self.feed.weight.t())
        hidden, cell = step_layers(weights, inputs, state.hidden, state.cell, self.drop, masks=masks)
        if not self.input_feeding:
            return DecoderState(hidden, cell, source, weights)
        scores = torch.bmm(hidden[-1][:, None], source.keys.transpose(1, 2))
        attended = torch.bmm(_shares(scores, source.padding), source.memory)[:, 0]
        return DecoderState(hidden, cell, source, weights, ((self.combine(hidden[-1]) + attended).tanh(),), masks)

    def output(self, state: DecoderState, rows: Tensor | None = None) -> Tensor:
        """(rows, target_vocab) logits of the position the state stands before; attention and head for rows only."""
        hidden, source = (*state.hidden, *state.fed)[-1], state.source
        if rows is not None:  # index_select copies whole rows, several times faster than an index
            hidden = hidden.index_select(0, rows)
        if self.attention is None or self.input_feeding:
            return self.head(hidden)
        memory, padding = source.memory, source.padding
        if rows is not None:
            memory, padding = memory.index_select(0, rows), padding.index_select(0, rows)
        scores = torch.bmm(self.query(hidden)[:, None], memory.transpose(1, 2))
        attended = torch.bmm(_shares(scores, padding), memory)[:, 0]
        return self.head(self.combine(torch.cat([hidden, attended], -1)).tanh())

    def select(self, state: DecoderState, rows: Tensor) -> DecoderState:
        """The state of the requested rows, in that order."""
        hidden, cell, fed, masks = (
            _picked(group, rows) for group in (state.hidden, state.cell, state.fed, state.masks)
        )
        return DecoderState(hidden, cell, state.source.select(rows), state.weights, fed, masks)


def _picked(parts: tuple[Tensor, ...], rows: Tensor) -> tuple[Tensor, ...]:
    return tuple(part.index_select(0, rows) for part in parts)


def _shares(scores: Tensor, padding: Tensor) -> Tensor:
    # scores: batch, time, source_time, and nobody else's
    return scores.masked_fill_(padding[:, None], -torch.inf).softmax(-1)


def _check(settings: Mapping[str, Any]) -> None:
    problems = COUNT.problems(**{name: settings[name] for name in ("source_vocab", "target_vocab", "size", "layers")})
    for name, other in (("embedding", "size"), ("encoder_layers", "layers"), ("decoder_layers", "layers")):
        if settings[name] is not None and COUNT.problem("", settings[name]):
            problems.append(f"{name} must be at least 1, or None for `{other}`; got {settings[name]!r}")
    if settings["cell"] not in tuple(CELLS):
        problems.append(f"cell must be one of {', '.join(CELLS)}; got {settings['cell']!r}")
    if settings["attention"] not in ("luong", None):
        problems.append(f"attention must be 'luong' or None; got {settings['attention']!r}")
    for name in ("dropout", "recurrent_dropout"):
        if not is_number(settings[name]) or not 0 <= settings[name] < 1:
            problems.append(f"{name} must lie in [0, 1); got {settings[name]!r}")
    if settings["input_feeding"] and settings["attention"] is None:
        problems.append("input_feeding feeds the attention vector back: it needs attention='luong'; got None")
    if settings["recurrent_dropout"] and not settings["input_feeding"]:
        problems.append("recurrent_dropout needs input_feeding=True: fused layers have no place for it")
    if settings["bidirectional"] and isinstance(settings["size"], int) and settings["size"] % 2:
        problems.append(f"size must be even for a bidirectional encoder; got {settings['size']}")
    if settings["tied"] and settings["embedding"] not in (None, settings["size"]):
        problems.append(
            f"tied needs embedding == size; got embedding={settings['embedding']} and size={settings['size']}"
        )
    if problems:
        raise UserError(problems)
