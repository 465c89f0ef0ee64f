"""Models out of PyTorch's own layers: a recurrent or Transformer decoder, and a map from one value to the next."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from freerun.batch import Batch, map_leaves
from freerun.errors import UserError


def _before(batch: Batch, start: int | None) -> Tensor:
    """The entry before the first one: the start symbol, or a vector of zeros."""
    first = batch.history[:, :1]
    return torch.zeros_like(first) if start is None else torch.full_like(first, start)


def _check_start(start: Any, name: str, batch: Batch) -> None:
    if batch.is_discrete and start is None:
        raise UserError(f"{name} needs start=..., the id of the symbol that is fed before the first one")
    if not batch.is_discrete and start is not None:
        raise UserError(f"{name} with values begins with zeros: leave start out; got {start!r}")


def _owner(encode: Any) -> nn.Module | None:
    """What a method's module holds, so that its weights are the model's; not the module, which may hold the model."""
    owner = getattr(encode, "__self__", None)
    if not isinstance(owner, nn.Module) or isinstance(encode, nn.Module):
        return None
    held = nn.Module()
    for name, part in (*owner.named_children(), *owner.named_parameters(recurse=False)):
        setattr(held, name, part)
    return held


def _refuse_unowned(model: nn.Module, encoded: Any) -> None:
    """Refuse, at the first call, an ``encode`` with weights that no optimizer of the model would see."""
    if "owned" in vars(model) or not torch.is_grad_enabled():
        return
    vars(model)["owned"] = True
    leaves: set[int] = set()
    seen: set[Any] = set()
    nodes: list[Any] = []

    def begin(leaf: Any) -> Any:
        if isinstance(leaf, Tensor) and leaf.grad_fn is not None:
            nodes.append(leaf.grad_fn)
        return leaf

    map_leaves(encoded, begin)
    while nodes:
        node = nodes.pop()
        if node in seen:
            continue
        seen.add(node)
        leaves |= {id(node.variable)} if isinstance(getattr(node, "variable", None), nn.Parameter) else set()
        nodes += [after for after, _ in node.next_functions if after is not None]
    if leaves - {id(part) for part in model.parameters()}:
        raise UserError(
            f"encode of {type(model).__name__} has weights to learn that are not the model's, so no optimizer of "
            "model.parameters() would train them: pass an nn.Module whose forward takes the batch, or a method of one"
        )


class _RNNState(NamedTuple):
    """The top layer's output at the last position read, (rows, size), and the layers' state."""

    hidden: Tensor
    layers: Any


class RecurrentDecoder(nn.Module):
    """``nn.RNN``, ``nn.GRU`` or ``nn.LSTM`` between input layer and head: ``head(rnn(embedding(shifted history)))``.

    Teacher forcing is one call of the layer, a roll-in goes step by step.

    Args:
        rnn: of any number of layers, also with ``proj_size`` or ``batch_first``; not bidirectional.
        embedding: from entries to the layer's inputs: ``nn.Embedding`` for ids, ``nn.Linear`` or ``nn.Identity`` for
            values.
        head: from the layer's outputs to logits or values.
        start: id that is fed before the first one; None for values, which begin with zeros.
        encode: from a batch to the layer's first state, in the form that the layer takes: a module, a method of one, or
            a function without weights; None: zeros.

    Raises:
        UserError: a bidirectional layer, another module, a start symbol that is missing or out of place, weights of
            ``encode`` that the model does not hold.

    >>> model = RecurrentDecoder(nn.GRU(8, 8), nn.Embedding(6, 8), nn.Linear(8, 5), start=5)
    >>> model(Batch(torch.tensor([[1, 2, 0]]))).shape
    torch.Size([1, 3, 5])

    What it is not: for decoders with attention or with a context at every step; write those as ``fr.StepModel``.
    """

    def __init__(
        self,
        rnn: nn.RNNBase,
        embedding: nn.Module,
        head: nn.Module,
        *,
        start: int | None = None,
        encode: Callable[[Batch], Any] | None = None,
    ) -> None:
        super().__init__()
        if not isinstance(rnn, nn.RNNBase):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise UserError(f"rnn must be an nn.RNN, nn.GRU or nn.LSTM; got {type(rnn).__name__}")
        if rnn.bidirectional:
            raise UserError("rnn must not be bidirectional: it would read what it is to predict")
        self.rnn, self.embedding, self.head, self.start_id = rnn, embedding, head, start
        self.first_state, self.encoder = encode, _owner(encode)

    def forward(self, batch: Batch) -> Tensor:
        """(batch, time, vocab or value) on the batch's history."""
        return self.head(self.hidden(batch))

    def hidden(self, batch: Batch) -> Tensor:
        """(batch, time, size): what the head reads."""
        _check_start(self.start_id, type(self).__name__, batch)
        shifted = torch.cat([_before(batch, self.start_id), batch.history[:, :-1]], 1)
        return self._run(self.embedding(shifted), self._begin(batch))[0]

    def _begin(self, batch: Batch) -> Any:
        state = None if self.first_state is None else self.first_state(batch)
        _refuse_unowned(self, state)
        return state

    def _run(self, inputs: Tensor, layers: Any) -> tuple[Tensor, Any]:
        """(rows, n, width) inputs -> (rows, n, size), and the state after the last."""
        if self.rnn.batch_first:
            return self.rnn(inputs, layers)
        outputs, layers = self.rnn(inputs.transpose(0, 1), layers)
        return outputs.transpose(0, 1), layers

    def start(self, batch: Batch) -> _RNNState:
        """The state that predicts position 0."""
        _check_start(self.start_id, type(self).__name__, batch)
        return self.read(_RNNState(cast(Any, None), self._begin(batch)), self.embedding(_before(batch, self.start_id)))

    def embed(self, entries: Tensor) -> Tensor:
        """Entries of any leading shape -> the layer's inputs."""
        return self.embedding(entries)

    def step(self, state: _RNNState, inputs: Tensor) -> _RNNState:
        """The state one position on."""
        return self.read(state, inputs[:, None])

    def read(self, state: _RNNState, inputs: Tensor) -> _RNNState:
        """The state n positions on: inputs (rows, n, width)."""
        outputs, layers = self._run(inputs, state.layers)
        return _RNNState(outputs[:, -1], layers)

    def output(self, state: _RNNState, rows: Tensor | None = None) -> Tensor:
        """The outputs of the next position, of these rows."""
        return self.head(state.hidden if rows is None else state.hidden.index_select(0, rows))

    def select(self, state: _RNNState, rows: Tensor) -> _RNNState:
        """These rows of the state."""
        return _RNNState(state.hidden.index_select(0, rows), map_leaves(state.layers, lambda leaf: leaf[:, rows]))


class _Attended(NamedTuple):
    """A Transformer decoder in the middle of a row: keys and values of every layer, (rows, heads, n, width) each."""

    hidden: Tensor
    own: tuple[tuple[Tensor, Tensor], ...]
    source: tuple[tuple[Tensor, Tensor], ...]
    mask: Tensor | None
    read: int


class TransformerDecoderModel(nn.Module):
    """``nn.TransformerDecoder`` between an embedding and a head, stepped over the keys and values of what it has read.

    Args:
        decoder: of ``nn.TransformerDecoderLayer``, either norm order; batch_first or not.
        embedding: from ids to (..., d_model), scaling included.
        head: from (..., d_model) to logits.
        start: id that is fed before the first one.
        encode: from a batch to (memory, padding): (batch, source, d_model), and PyTorch's ``memory_key_padding_mask``,
            (batch, source) bool with True = padding, or None: a module, a method of one, or a function without weights.
        positions: (longest, d_model) added to the embeddings, such as a sinusoidal table or a parameter; None: none.

    Raises:
        UserError: rows longer than ``positions``, other layers than PyTorch's.

    >>> layer = nn.TransformerDecoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
    >>> model = TransformerDecoderModel(
    ...     nn.TransformerDecoder(layer, 2), nn.Embedding(6, 8), nn.Linear(8, 5), start=5,
    ...     encode=lambda batch: (batch.context, None), positions=nn.Parameter(torch.zeros(20, 8)),
    ... )
    >>> model(Batch(torch.tensor([[1, 2, 0]]), context=torch.zeros(1, 4, 8))).shape
    torch.Size([1, 3, 5])

    What it is not: faster than PyTorch's layer under teacher forcing; the forward is that layer's own.
    """

    def __init__(
        self,
        decoder: nn.TransformerDecoder,
        embedding: nn.Module,
        head: nn.Module,
        *,
        start: int,
        encode: Callable[[Batch], tuple[Tensor, Tensor | None]],
        positions: Tensor | None = None,
    ) -> None:
        super().__init__()
        layers = getattr(decoder, "layers", ())
        if not len(layers) or not all(isinstance(layer, nn.TransformerDecoderLayer) for layer in layers):
            raise UserError(
                "decoder must be an nn.TransformerDecoder of nn.TransformerDecoderLayer; got " + type(decoder).__name__
            )
        self.decoder, self.embedding, self.head, self.start_id = decoder, embedding, head, start
        self.memory, self.encoder = encode, _owner(encode)
        if isinstance(positions, nn.Parameter) or positions is None:
            self.positions = positions
        else:
            self.register_buffer("positions", positions, persistent=False)

    def forward(self, batch: Batch) -> Tensor:
        """(batch, time, vocab) on the batch's history."""
        return self.head(self.hidden(batch))

    def hidden(self, batch: Batch) -> Tensor:
        """(batch, time, d_model): what the head reads."""
        shifted = torch.cat([_before(batch, self.start_id), batch.history[:, :-1]], 1)
        x = self._placed(self.embedding(shifted), 0)
        memory, padding = self._encoded(batch)
        causal = torch.ones(batch.time, batch.time, dtype=torch.bool, device=x.device).triu(1)
        if not self._batch_first:
            x, memory = x.transpose(0, 1), memory.transpose(0, 1)
        x = self.decoder(x, memory, tgt_mask=causal, memory_key_padding_mask=padding)
        return x if self._batch_first else x.transpose(0, 1)

    def _encoded(self, batch: Batch) -> tuple[Tensor, Tensor | None]:
        memory, padding = self.memory(batch)
        _refuse_unowned(self, memory)
        return memory, padding

    @property
    def _batch_first(self) -> bool:
        return cast(Any, self.decoder.layers[0]).self_attn.batch_first

    def _placed(self, x: Tensor, begin: int) -> Tensor:
        if self.positions is None:
            return x
        end = begin + x.shape[1]
        if end > len(self.positions):
            raise UserError(f"positions has {len(self.positions)} rows, and position {end} is needed: make it longer")
        return x + self.positions[begin:end]

    def start(self, batch: Batch) -> _Attended:
        """The state that predicts position 0."""
        memory, padding = self._encoded(batch)
        source = tuple(_keys_values(layer.multihead_attn, memory) for layer in self._layers)
        mask = None if padding is None else ~padding[:, None, None]
        begun = _Attended(cast(Any, None), (), source, mask, 0)
        return self.step(begun, self.embedding(_before(batch, self.start_id)[:, 0]))

    @property
    def _layers(self) -> Any:
        return self.decoder.layers

    def embed(self, entries: Tensor) -> Tensor:
        """Ids of any leading shape -> vectors; positions belong to ``step``."""
        return self.embedding(entries)

    def step(self, state: _Attended, inputs: Tensor) -> _Attended:
        """The state one position on."""
        x = self._placed(inputs[:, None], state.read)
        own: list[tuple[Tensor, Tensor]] = []
        for number, layer in enumerate(self._layers):
            past = state.own[number] if state.own else None

            def attend_own(y: Tensor, layer: Any = layer, past: Any = past) -> Tensor:
                new = _keys_values(layer.self_attn, y)
                joined = new if past is None else tuple(torch.cat(pair, 2) for pair in zip(past, new, strict=True))
                own.append(cast(Any, joined))
                return layer.dropout1(_attend(layer.self_attn, y, *own[-1], None))

            def attend_source(y: Tensor, layer: Any = layer, number: int = number) -> Tensor:
                return layer.dropout2(_attend(layer.multihead_attn, y, *state.source[number], state.mask))

            def feed_forward(y: Tensor, layer: Any = layer) -> Tensor:
                return layer.dropout3(layer.linear2(layer.dropout(layer.activation(layer.linear1(y)))))

            for norm, block in ((layer.norm1, attend_own), (layer.norm2, attend_source), (layer.norm3, feed_forward)):
                x = x + block(norm(x)) if layer.norm_first else norm(x + block(x))
        if self.decoder.norm is not None:
            x = self.decoder.norm(x)
        return _Attended(x[:, 0], tuple(own), state.source, state.mask, state.read + 1)

    def output(self, state: _Attended, rows: Tensor | None = None) -> Tensor:
        """The logits of the next position, of these rows."""
        return self.head(state.hidden if rows is None else state.hidden.index_select(0, rows))

    def select(self, state: _Attended, rows: Tensor) -> _Attended:
        """These rows of the state."""
        parts = map_leaves(tuple(state[:4]), lambda leaf: None if leaf is None else leaf.index_select(0, rows))
        return _Attended(parts[0], parts[1], parts[2], parts[3], state.read)


def _keys_values(attention: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    """(rows, n, d_model) -> keys and values, (rows, heads, n, width) each."""
    if attention.in_proj_weight is None or attention.bias_k is not None or attention.add_zero_attn:
        raise UserError("attention with kdim, vdim, add_bias_kv or add_zero_attn is not stepped: write a fr.StepModel")
    size, bias = attention.embed_dim, attention.in_proj_bias
    both = F.linear(x, attention.in_proj_weight[size:], None if bias is None else bias[size:])
    keys, values = both.unflatten(-1, (2, attention.num_heads, -1)).unbind(2)
    return keys.transpose(1, 2), values.transpose(1, 2)


def _attend(attention: Any, x: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None) -> Tensor:
    """One position (rows, 1, d_model) over keys and values -> (rows, 1, d_model)."""
    size, bias = attention.embed_dim, attention.in_proj_bias
    query = F.linear(x, attention.in_proj_weight[:size], None if bias is None else bias[:size])
    query = query.unflatten(-1, (attention.num_heads, -1)).transpose(1, 2)
    dropout = attention.dropout if attention.training else 0.0
    attended = F.scaled_dot_product_attention(query, keys, values, attn_mask=mask, dropout_p=dropout)
    return attention.out_proj(attended.transpose(1, 2).flatten(2))


class OneStepMap(nn.Module):
    """A map from one value to the next, ``u_{t+1} = f(u_t)``: an emulator, field in and field out.

    Its state is its last entry, so ``fr.pushforward``, ``gradient=k`` and ``alpha="adaptive"`` apply.

    Args:
        map: the module f, from (n, *shape) to (n, *shape).
        first: from a batch to the value before position 0, (batch, value) or (batch, *shape); None: ``batch.context``,
            or the last value of its ``past``.
        shape: of a value; None: f takes (n, value) as it is.

    Raises:
        UserError: ids; a first value of another shape.

    >>> model = OneStepMap(nn.Linear(2, 2))
    >>> model(Batch(torch.zeros(3, 5, 2), context=torch.ones(3, 2))).shape
    torch.Size([3, 5, 2])

    What it is not: for maps with a memory; write those as ``fr.StepModel``.
    """

    markov = True

    def __init__(
        self,
        map: nn.Module,
        first: Callable[[Batch], Tensor] | None = None,
        *,
        shape: tuple[int, ...] | None = None,
    ) -> None:
        super().__init__()
        self.map, self.first, self.shape = map, first, shape

    def forward(self, batch: Batch) -> Tensor:
        """(batch, time, value) on the batch's history."""
        values = torch.cat([self.start(batch)[:, None], batch.history[:, :-1]], 1)
        return self.output(values.flatten(0, 1)).unflatten(0, (batch.size, batch.time))

    def start(self, batch: Batch) -> Tensor:
        """The state that predicts position 0: the value before it."""
        first: Any = batch.context if self.first is None else self.first(batch)
        if self.first is None and isinstance(first, Mapping) and "past" in first:
            first = cast(Mapping[str, Any], first)["past"][:, -1, : batch.history.shape[-1]]
        expected = (batch.size, batch.history.shape[-1])
        if batch.is_discrete:
            raise UserError("OneStepMap is for values, and these targets are ids")
        flat = first.flatten(1) if isinstance(first, Tensor) and first.dim() > 1 else first
        if not isinstance(flat, Tensor) or tuple(flat.shape) != expected:
            got = tuple(flat.shape) if isinstance(flat, Tensor) else type(first).__name__
            raise UserError(f"the value before position 0 must be {expected}; got {got}: pass first=..., or as context")
        return flat

    def embed(self, entries: Tensor) -> Tensor:
        """The values as they are."""
        return entries

    def step(self, state: Tensor, inputs: Tensor) -> Tensor:
        """The state is the last entry."""
        return inputs

    def output(self, state: Tensor, rows: Tensor | None = None) -> Tensor:
        """``f`` of the last entry, of these rows."""
        values = state if rows is None else state.index_select(0, rows)
        outputs = self.map(values if self.shape is None else values.unflatten(-1, self.shape))
        return outputs if self.shape is None else outputs.flatten(1)

    def select(self, state: Tensor, rows: Tensor) -> Tensor:
        """These rows of the state."""
        return state.index_select(0, rows)

    def detach(self, state: Tensor) -> Tensor:
        """The state without gradient into its past."""
        return state.detach()
