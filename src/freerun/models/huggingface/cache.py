"""Reading on with every row at its own position, over a cache in which each token knows its row and its position."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicLayer

from freerun.batch import Batch
from freerun.errors import UserError
from freerun.models.huggingface.model import HuggingFaceModel, SourceContext, context_of
from freerun.types import Encoder

_CACHES = ("past_key_values", "cache_params")
"""Under which of these names a model returns, and takes, what it remembers."""


@dataclass(frozen=True, eq=False)
class _State:
    cache: Any
    name: str
    length: int
    hidden: Tensor  # (rows, size) after the last entry read
    context: SourceContext


class CachedDecoding(HuggingFaceModel):
    """A model with a cache of its own: ``freerun.types.Stepper``.

    The cache is what the model itself makes (sliding windows, recurrent states and attention to a source included),
    and is copied before it is written to.
    """

    def start(self, batch: Batch) -> _State:
        """The state that predicts position 0."""
        if isinstance(self, Encoder):
            batch = self.encode(batch)
        return self._read(None, context_of(batch).first, context_of(batch))

    def embed(self, entries: Tensor) -> Tensor:
        """Ids are looked up where they are read."""
        return entries

    def step(self, state: _State, inputs: Tensor) -> _State:
        """Read the next entry (rows,) of every row."""
        return self._read(state, inputs[:, None], state.context)

    def output(self, state: _State, rows: Tensor | None = None) -> Tensor:
        """(rows, vocab) logits at the next position, of the requested rows."""
        return self.head(state.hidden if rows is None else state.hidden[rows])

    def select(self, state: _State, rows: Tensor) -> _State:
        """Rows picked, repeated or dropped."""
        cache = _copied(state.cache)
        cache.reorder_cache(rows)
        return replace(state, cache=cache, hidden=state.hidden[rows], context=state.context.select(rows))

    def _read(self, state: _State | None, ids: Tensor, context: SourceContext) -> _State:
        past = {} if state is None else {state.name: _copied(state.cache)}
        length = (0 if state is None else state.length) + ids.shape[1]
        self.refuse_longer(length)
        arguments = self.step_arguments(context, ids, length)
        hidden, output = self._halves.hidden(lambda: self.inner(**arguments, **past, use_cache=True, return_dict=True))
        name = next((name for name in _CACHES if getattr(output, name, None) is not None), None)
        if name is None:
            raise UserError(f"the model returns no cache under {' or '.join(_CACHES)}")
        return _State(getattr(output, name), name, length, hidden[:, -1], context)

    def step_arguments(self, context: SourceContext, ids: Tensor, length: int) -> dict[str, Any]:
        """Arguments of the forward that reads more ids, up to ``length`` in all."""
        if not self.is_encoder_decoder:
            return {"input_ids": ids, **context.others}
        encoder_decoder: Any = self
        mask = torch.ones(len(ids), length, dtype=torch.int64, device=ids.device)
        more = {"decoder_attention_mask": mask} if self.accepts("decoder_attention_mask") else {}
        return {**encoder_decoder.source(context), "decoder_input_ids": ids, **more}


class ChunkedDecoding(CachedDecoding):
    """One whose cache takes several entries at once: ``freerun.types.Reader``."""

    def read(self, state: _State, inputs: Tensor) -> _State:
        """Read the next n entries (rows, n) of every row."""
        return self._read(state, inputs, state.context)


def keeps_all(cache: Any) -> bool:
    """Whether a cache holds keys and values alone; recurrent states take entries one at a time once they have begun."""
    layers = getattr(getattr(cache, "self_attention_cache", cache), "layers", None)
    return layers is not None and all(_grows(layer) for layer in layers)


def _copied(cache: Any) -> Any:
    """A cache that can be written to without the other being changed."""
    copied = copy.copy(cache)
    for name in ("self_attention_cache", "cross_attention_cache"):
        if hasattr(cache, name):
            setattr(copied, name, _copied(getattr(cache, name)))
    if hasattr(cache, "is_updated"):
        copied.is_updated = dict(cache.is_updated)
    if hasattr(cache, "layers"):
        copied.layers = [copy.copy(layer) if _grows(layer) else copy.deepcopy(layer) for layer in cache.layers]
        return copied
    return copied if hasattr(cache, "self_attention_cache") else copy.deepcopy(cache)


def _grows(layer: Any) -> bool:
    """Whether an update replaces the old tensor by a new one; other layers write into theirs."""
    from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

    return type(layer) in (DynamicLayer, DynamicSlidingWindowLayer)


_GATHERED = 2**25
"""Keys that are looked up at once for tokens read one by one, in numbers of a layer: 128 MiB in float32."""


@dataclass
class _Reading:
    """Where the tokens of the call under way stand: (n, q) positions; with ``rows``, one token each of those rows."""

    rows: Tensor | None  # None: all, in order, and at the same positions
    positions: Tensor
    keys: int


class _Layer(DynamicLayer):
    """Keys and values of one layer, (rows, capacity, heads, width), written at each token's position."""

    def __init__(self, store: _Store) -> None:
        super().__init__()
        self.store = store
        self.held: tuple[Tensor, Tensor] | None = None

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Keep (n, heads, q, width) keys and values; return those that the n rows may attend to."""
        if self.held is None:
            stores = [
                n.new_zeros(self.store.rows, self.store.capacity, n.shape[1], n.shape[3])
                for n in (key_states, value_states)
            ]
            self.held = stores[0], stores[1]
        keys, values = (self._kept(*pair) for pair in zip(self.held, (key_states, value_states), strict=True))
        return keys, values

    def _kept(self, held: Tensor, new: Tensor) -> Tensor:
        at, new = self.store.reading, new.transpose(1, 2)
        if at.rows is None:
            held[:, at.keys - new.shape[1] : at.keys] = new
            return held[:, : at.keys].transpose(1, 2)
        slots = at.rows * held.shape[1] + at.positions.squeeze(1)
        held.flatten(0, 1).index_copy_(0, slots, new.squeeze(1))
        return held[:, : at.keys].index_select(0, at.rows).transpose(1, 2)

    def get_seq_length(self, *_: Any, **__: Any) -> int:
        return self.store.reading.keys - self.store.reading.positions.shape[1]

    def get_mask_sizes(self, *_: Any, **__: Any) -> tuple[int, int]:
        return self.store.reading.keys, 0


class _Store(Cache):
    """Keys, values and hidden vectors of all that was read; the state that wrote last may go on in place."""

    def __init__(self, rows: int, capacity: int) -> None:
        super().__init__(layer_class_to_replicate=lambda: _Layer(self))  # pyright: ignore[reportArgumentType]
        self.rows, self.capacity, self.version = rows, capacity, 0
        self.hidden: Tensor | None = None  # (rows, capacity, size)
        self.reading: _Reading = _Reading(None, torch.zeros(0, 0), 0)

    def get_seq_length(self, *_: Any, **__: Any) -> int:  # called before there is a layer
        return self.reading.keys - self.reading.positions.shape[1]

    def get_mask_sizes(self, *_: Any, **__: Any) -> tuple[int, int]:
        return self.reading.keys, 0

    def copied(self, rows: Tensor | None = None, capacity: int = 0) -> _Store:
        """A copy, of the requested rows, with room for at least so many positions."""
        store = _Store(self.rows if rows is None else len(rows), max(capacity, self.capacity))
        for layer in self.layers:
            assert isinstance(layer, _Layer)
            assert layer.held is not None
            new = _Layer(store)
            new.is_initialized = True
            new.held = tuple(_copied_rows(part, rows, store.capacity) for part in layer.held)  # pyright: ignore
            store.layers.append(new)
        store.hidden = None if self.hidden is None else _copied_rows(self.hidden, rows, store.capacity)
        return store

    def remember(self, rows: Tensor, positions: Tensor, hidden: Tensor) -> None:
        """Keep (n, size) hidden vectors at their rows and positions."""
        if self.hidden is None:
            self.hidden = hidden.new_zeros(self.rows, self.capacity, hidden.shape[-1])
        self.hidden[rows, positions] = hidden


def _copied_rows(part: Tensor, rows: Tensor | None, capacity: int) -> Tensor:
    """(rows, positions, ...) -> a copy with room for ``capacity`` positions."""
    copied = part.clone() if rows is None else part.index_select(0, rows)
    more = capacity - part.shape[1]
    return torch.cat([copied, copied.new_zeros(len(copied), more, *copied.shape[2:])], 1) if more else copied


@dataclass(frozen=True, eq=False)
class _RaggedState:
    store: _Store
    version: int
    lengths: Tensor  # (rows,) tokens read, the first one included
    common_length: int | None  # that length where it is the same for all rows
    context: SourceContext


class RaggedDecoding(ChunkedDecoding):
    """A decoder that takes positions: ``freerun.types.Cached``.

    Tokens of one call stand at positions of their own. Where all rows stand at the same one they are read side by side;
    else every token is a row of one token, whose keys are looked up for it, so that nothing is computed for padding.
    """

    def start(self, batch: Batch) -> Any:
        """The state that predicts position 0."""
        context = context_of(batch)
        size = len(context.first)
        lengths = torch.zeros(size, dtype=torch.int64, device=context.first.device)
        state = _RaggedState(_Store(size, batch.time + 1), 0, lengths, 0, context)
        return self.advance(state, context.first.squeeze(1), torch.ones_like(lengths))[0]

    def step(self, state: Any, inputs: Tensor) -> Any:
        """Read the next entry (rows,) of every row."""
        return self.advance(state, inputs, torch.ones_like(state.lengths))[0]

    def read(self, state: Any, inputs: Tensor) -> Any:
        """Read the next n entries (rows, n) of every row."""
        return self.advance(state, inputs.flatten(), torch.full_like(state.lengths, inputs.shape[1]))[0]

    def output(self, state: Any, rows: Tensor | None = None) -> Tensor:
        """(rows, vocab) logits at the next position, of the requested rows."""
        rows = torch.arange(state.store.rows, device=state.lengths.device) if rows is None else rows
        return self.head(state.store.hidden[rows, state.lengths[rows] - 1])

    def select(self, state: Any, rows: Tensor) -> Any:
        """Rows picked, repeated or dropped."""
        store = state.store.copied(rows)
        return _RaggedState(store, 0, state.lengths[rows], state.common_length, state.context.select(rows))

    def crop(self, state: Any, lengths: Tensor) -> Any:
        """Forget what was read beyond ``lengths`` entries of the history of each row."""
        state.store.version += 1
        return replace(state, version=state.store.version, lengths=lengths + 1, common_length=None)

    def advance(self, state: Any, inputs: Tensor, counts: Tensor) -> tuple[Any, Tensor]:
        """Read the next ``counts[r]`` entries of row r; ``inputs`` (sum of counts,) row after row."""
        width, total = int(counts.max()), inputs.shape[0]
        reach = int((state.lengths + counts).max()) if state.common_length is None else state.common_length + width
        self.refuse_longer(reach)
        store: _Store = state.store
        if state.version != store.version or reach > store.capacity:
            room = store.capacity if reach <= store.capacity else max(reach, 2 * store.capacity)
            store = store.copied(capacity=room)
        store.version += 1
        of = torch.arange(len(counts), device=counts.device).repeat_interleave(counts)
        nth = torch.arange(total, device=counts.device) - (counts.cumsum(0) - counts)[of]
        positions = state.lengths[of] + nth
        if state.common_length is not None and len(counts) * width <= self._worth(reach) * total:
            ids = inputs.new_zeros(len(counts), width).index_put((of, nth), inputs)
            hidden = self._side_by_side(store, ids, state.common_length, state.context)[of, nth]
        else:
            hidden = self._one_by_one(store, state.context, inputs, of, positions)
        store.remember(of, positions, hidden)
        common = reach if state.common_length is not None and total == len(counts) * width else None
        return _RaggedState(store, store.version, state.lengths + counts, common, state.context), hidden

    def _worth(self, keys: int) -> float:
        """How many times as many tokens, read row by row, cost less than looking up so many keys for each."""
        return 1 + 2 * keys / self.inner.config.get_text_config(decoder=True).hidden_size

    def _side_by_side(self, store: _Store, ids: Tensor, start: int, context: SourceContext) -> Tensor:
        """(rows, n, size) hidden vectors of ids (rows, n) that stand at ``start`` and after it in every row."""
        reach = start + ids.shape[1]
        positions = torch.arange(start, reach, device=ids.device).expand(len(ids), -1)
        store.reading = _Reading(None, positions, reach)
        return self._call(store, ids, positions, None, context)

    def _one_by_one(
        self, store: _Store, context: SourceContext, inputs: Tensor, of: Tensor, positions: Tensor
    ) -> Tensor:
        """(n, size) hidden vectors of n tokens at positions and rows of their own."""
        parts: list[Tensor] = []
        size = self.inner.config.get_text_config(decoder=True).hidden_size
        most = max(1, _GATHERED // (size * (int(positions.max()) + 1)))
        for part in torch.arange(len(inputs), device=inputs.device).split(most):
            at = positions[part, None]
            keys = int(at.max()) + 1
            store.reading = _Reading(of[part], at, keys)
            mask = (torch.arange(keys, device=at.device) <= at).long()
            others = context if not context.others else context.select(of[part])
            parts.append(self._call(store, inputs[part, None], at, mask, others)[:, 0])
        return torch.cat(parts)

    def _call(
        self, store: _Store, ids: Tensor, positions: Tensor, mask: Tensor | None, context: SourceContext
    ) -> Tensor:
        where = {"position_ids": positions} if self.accepts("position_ids") else {}
        arguments = {"input_ids": ids, "attention_mask": mask, **where, **context.others}
        call = lambda: self.inner(**arguments, past_key_values=store, use_cache=True, return_dict=True)  # noqa: E731
        return self._halves.hidden(call)[0]
