"""Reading on with every row at its own position, over a cache in which each token knows its row and its position."""

from __future__ import annotations

import copy
import sys
from collections.abc import Generator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer, EncoderDecoderCache

from freerun.batch import Batch
from freerun.errors import UserError
from freerun.models.huggingface.media import Media
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
        if context_of(batch).media.prefilled:
            raise UserError("images are read in one call, up to positions of each row's own, which this cache cannot")
        if isinstance(self, Encoder):
            batch = self.encode(batch)
        self.forget_images()
        return self._read(None, context_of(batch).first, context_of(batch))

    def embed(self, entries: Tensor) -> Tensor:
        """Ids are looked up where they are read."""
        return entries

    def step(self, state: _State, inputs: Tensor) -> _State:
        """Read the next entry (rows,) of every row."""
        return self._read(state, inputs[:, None], state.context)

    def output(self, state: _State, rows: Tensor | None = None) -> Tensor:
        """(rows, vocab) logits at the next position, of the requested rows."""
        return self.head(state.hidden if rows is None else state.hidden.index_select(0, rows))

    def select(self, state: _State, rows: Tensor) -> _State:
        """Rows picked, repeated or dropped."""
        cache = _copied(state.cache)
        cache.reorder_cache(rows)
        return replace(
            state, cache=cache, hidden=state.hidden.index_select(0, rows), context=state.context.select(rows)
        )

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
            positions = torch.arange(length - ids.shape[1], length, device=ids.device).expand(len(ids), -1)
            return {"input_ids": ids, **context.media.later(positions)}
        encoder_decoder: Any = self
        mask = torch.ones(len(ids), length, dtype=torch.int64, device=ids.device)
        more = {"decoder_attention_mask": mask} if self.accepts("decoder_attention_mask") else {}
        return {**encoder_decoder.source(context), "decoder_input_ids": ids, **more}


class ChunkedDecoding(CachedDecoding):
    """One whose cache takes several entries at once: ``freerun.types.Reader``."""

    def read(self, state: _State, inputs: Tensor) -> _State:
        """Read the next n entries (rows, n) of every row."""
        return self._read(state, inputs, state.context)


def is_local(config: Any) -> bool:
    """Whether a layer looks back only so far, which a probe of a few positions cannot see."""
    config = config.get_text_config(decoder=True)
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    return kinds != {"full_attention"} or any(getattr(config, name, None) is not None for name in _WINDOWS)


def masks_by_distance(inner: Any) -> bool:
    """Whether layers that look back only so far do so by transformers' own mask, which counts from the last token."""
    config = inner.config.get_text_config(decoder=True)
    kinds = set(getattr(config, "layer_types", None) or ["sliding_attention"])
    chunks = (
        getattr(config, "attention_chunk_size", None) is not None or getattr(config, "window_size", None) is not None
    )
    module = sys.modules[type(inner.get_decoder()).__module__]
    return kinds <= {"full_attention", "sliding_attention"} and not chunks and hasattr(module, _SLIDING)


_WINDOWS = ("sliding_window", "attention_chunk_size", "window_size")
_SLIDING = "create_sliding_window_causal_mask"


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
    # (n * keys,) where each row's keys are held, its own token last, so that all look back equally far; None: as held
    behind: Tensor | None = None


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
        if at.behind is not None:
            kept = held.flatten(0, 1).index_select(0, at.behind)
            return kept.view(len(slots), at.keys, *held.shape[2:]).transpose(1, 2)
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
        # (rows, heads, source, width) keys and values of an encoder's output, by layer
        self.cross: list[tuple[Tensor, Tensor]] = []
        # reads one after another whose outputs were used in all rows: the next one makes them in the same forward
        self.used, self.unused = 0, True
        self.logits: Tensor | None = None  # (rows, vocab) of the last read

    def get_seq_length(self, *_: Any, **__: Any) -> int:  # called before there is a layer
        return self.reading.keys - self.reading.positions.shape[1]

    def get_mask_sizes(self, *_: Any, **__: Any) -> tuple[int, int]:
        return self.reading.keys, 0

    def reads_whole(self, entries: int) -> bool:
        """Whether the next read of so many entries a row is to make outputs at once."""
        self.used, self.unused, self.logits = 0 if self.unused else self.used, True, None
        return entries == 1 and self.used > 1

    def copied(self, rows: Tensor | None = None, capacity: int | None = None) -> _Store:
        """A copy, of the requested rows, with room for so many positions."""
        store = _Store(self.rows if rows is None else len(rows), self.capacity if capacity is None else capacity)
        for layer in self.layers:
            assert isinstance(layer, _Layer)
            assert layer.held is not None
            new = _Layer(store)
            new.is_initialized = True
            new.held = tuple(_copied_rows(part, rows, store.capacity) for part in layer.held)  # pyright: ignore
            store.layers.append(new)
        store.cross = (
            self.cross
            if rows is None
            else [(keys.index_select(0, rows), values.index_select(0, rows)) for keys, values in self.cross]
        )
        store.used, store.unused = self.used, self.unused
        store.hidden = None if self.hidden is None else _copied_rows(self.hidden, rows, store.capacity)
        return store

    def remember(self, rows: Tensor | slice, positions: Tensor | slice, hidden: Tensor) -> None:
        """Keep hidden vectors, (n, size) or (rows, q, size), at their rows and positions."""
        if self.hidden is None:
            self.hidden = hidden.new_zeros(self.rows, self.capacity, hidden.shape[-1])
        self.hidden[rows, positions] = hidden

    def hidden_at(self, rows: Tensor, positions: Tensor) -> Tensor:
        """(n, size) hidden vectors."""
        assert self.hidden is not None
        return self.hidden[rows, positions]


def _copied_rows(part: Tensor, rows: Tensor | None, capacity: int) -> Tensor:
    """(rows, positions, ...) -> a copy with room for ``capacity`` positions."""
    more, part = capacity - part.shape[1], part[:, :capacity]
    copied = part.clone() if rows is None else part.index_select(0, rows)
    return torch.cat([copied, copied.new_zeros(len(copied), more, *copied.shape[2:])], 1) if more > 0 else copied


@dataclass(frozen=True, eq=False)
class _RaggedState:
    store: _Store
    version: int
    lengths: Tensor  # (rows,) tokens read, the first one included
    common_length: int | None  # that length where it is the same for all rows
    context: SourceContext
    held: Tensor | None = (
        None  # (rows,) tokens that were read with images, prompts whole, before the others; None: none
    )
    shift: Tensor | None = None  # (rows, 1) what the model's positions are beyond ours; None: nothing


class RaggedDecoding(ChunkedDecoding):
    """A decoder that takes positions: ``freerun.types.Cached``.

    Tokens of one call stand at positions of their own. Where all rows stand at the same one they are read side by side;
    else every token is a row of one token, whose keys are looked up for it, so that nothing is computed for padding.
    Images are read once, at the start, with all tokens of their rows up to the last of them.
    """

    @cached_property
    def counts_back(self) -> bool:
        """Whether a layer looks back only so far, or knows positions by how far back they are."""
        return self.is_encoder_decoder or is_local(self.inner.config)

    def start(self, batch: Batch) -> Any:
        """The state that predicts position 0."""
        context = context_of(batch)
        size = len(context.first)
        lengths = torch.zeros(size, dtype=torch.int64, device=context.first.device)
        state = _RaggedState(_Store(size, batch.time + 1), 0, lengths, 0, context)
        if isinstance(self, Encoder):
            context = context_of(self.encode(batch))
            state = replace(state, context=context)
        if context.media.prefilled:
            return self._with_images(batch, state, context.media)
        return self.advance(state, context.first.squeeze(1), torch.ones_like(lengths))[0]

    def _with_images(self, batch: Batch, state: _RaggedState, media: Media) -> _RaggedState:
        held, store = (~(batch.replaceable | batch.mask)).long().cumprod(1).sum(1) + 1, state.store
        if media.known is not None:
            held = torch.maximum(held, media.known + 1)
        reach = int(held.max())
        self.refuse_longer(reach)
        ids = torch.cat([state.context.first, batch.history[:, : reach - 1]], 1)
        positions = torch.arange(reach, device=ids.device).expand(len(ids), -1)
        store.reading = _Reading(None, positions, reach)
        origin: list[Tensor | None] = []
        self.forget_images()
        hook = self.inner.get_decoder().register_forward_pre_hook(
            lambda _, __, named: origin.append(named.get("position_ids")), with_kwargs=True
        )
        try:
            hidden = self._call(store, ids, None, torch.ones_like(ids), media.arguments(reach))
        finally:
            hook.remove()
        rows, times = (positions < held[:, None]).nonzero(as_tuple=True)
        store.remember(rows, times, hidden[rows, times])
        # what it keeps of an earlier call means nothing where there are no images
        shift = None if media.known is None else getattr(self.inner.base_model, "rope_deltas", None)
        shift = torch.zeros_like(held)[:, None] if shift is None else shift.reshape(-1, 1).expand(len(held), 1)
        if origin and origin[0] is not None:  # (rows, time), or of several dimensions before
            shift = shift + origin[0].reshape(-1, origin[0].shape[-1])[:1, :1]
        return _RaggedState(store, store.version, torch.ones_like(held), None, state.context, held, shift)

    def step(self, state: Any, inputs: Tensor) -> Any:
        """Read the next entry (rows,) of every row."""
        return self.advance(state, inputs, torch.ones_like(state.lengths))[0]

    def read(self, state: Any, inputs: Tensor) -> Any:
        """Read the next n entries (rows, n) of every row."""
        return self.advance(state, inputs.flatten(), torch.full_like(state.lengths, inputs.shape[1]))[0]

    def output(self, state: Any, rows: Tensor | None = None) -> Tensor:
        """(rows, vocab) logits at the next position, of the requested rows."""
        store = state.store
        if rows is None and state.common_length is not None:
            store.used, store.unused = store.used + 1, False
            if store.logits is not None and state.version == store.version:
                return store.logits
            return self.head(store.hidden[:, state.common_length - 1])
        rows = torch.arange(store.rows, device=state.lengths.device) if rows is None else rows
        return self.head(store.hidden[rows, state.lengths.index_select(0, rows) - 1])

    def select(self, state: Any, rows: Tensor) -> Any:
        """Rows picked, repeated or dropped."""
        # rows that go on side by side: no more room is copied than the next few entries take
        room = None if state.common_length is None else 16 * (state.common_length // 16 + 1)
        store = state.store.copied(rows, room)
        held, shift = (None if part is None else part.index_select(0, rows) for part in (state.held, state.shift))
        return _RaggedState(
            store, 0, state.lengths.index_select(0, rows), state.common_length, state.context.select(rows), held, shift
        )

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
        if state.common_length is not None and total == len(counts) * width:
            hidden = self._side_by_side(store, inputs.view(-1, width), state.common_length, state.context)
            store.remember(slice(None), slice(state.common_length, reach), hidden)
            return _RaggedState(store, store.version, state.lengths + counts, reach, state.context), hidden.flatten(
                0, 1
            )
        of = torch.arange(len(counts), device=counts.device).repeat_interleave(counts)
        nth = torch.arange(total, device=counts.device) - (counts.cumsum(0) - counts)[of]
        positions = state.lengths[of] + nth
        if state.held is not None:
            self._read_unheld(state, store, inputs, of, positions)
            return replace(state, store=store, version=store.version, lengths=state.lengths + counts), store.hidden_at(
                of, positions
            )
        if state.common_length is not None and len(counts) * width <= self._worth(reach) * total:
            ids = inputs.new_zeros(len(counts), width).index_put((of, nth), inputs)
            hidden = self._side_by_side(store, ids, state.common_length, state.context)[of, nth]
        else:
            hidden = self._one_by_one(store, state, inputs, of, positions)
        store.remember(of, positions, hidden)
        return _RaggedState(store, store.version, state.lengths + counts, None, state.context), hidden

    def _read_unheld(self, state: _RaggedState, store: _Store, inputs: Tensor, of: Tensor, positions: Tensor) -> None:
        """Read the tokens that were not read with images."""
        assert state.held is not None
        new = positions >= state.held[of]
        if bool(new.any()):
            of, positions = of[new], positions[new]
            store.remember(of, positions, self._one_by_one(store, state, inputs[new], of, positions))

    def _worth(self, keys: int) -> float:
        """How many times as many tokens, read row by row, cost less than looking up so many keys for each."""
        return 1 + 2 * keys / self.size

    def _side_by_side(self, store: _Store, ids: Tensor, start: int, context: SourceContext) -> Tensor:
        """(rows, n, size) hidden vectors of ids (rows, n) that stand at ``start`` and after it in every row."""
        reach = start + ids.shape[1]
        positions = torch.arange(start, reach, device=ids.device).expand(len(ids), -1)
        store.reading = _Reading(None, positions, reach)
        others = self._source_of(context) if self.is_encoder_decoder else context.media.later(positions)
        return self._call(store, ids, positions, None, others)

    def _one_by_one(self, store: _Store, state: _RaggedState, inputs: Tensor, of: Tensor, positions: Tensor) -> Tensor:
        """(n, size) hidden vectors of n tokens at positions and rows of their own."""
        parts: list[Tensor] = []
        most = max(1, _GATHERED // (self.size * (int(positions.max()) + 1)))
        for part in torch.arange(len(inputs), device=inputs.device).split(most):
            at = positions[part, None]
            keys = int(at.max()) + 1
            columns = torch.arange(keys, device=at.device)
            if self.counts_back:
                behind = (of[part, None] * store.capacity + (at - (keys - 1) + columns).clamp_min(0)).flatten()
                store.reading, mask = _Reading(of[part], at, keys, behind), columns >= keys - 1 - at
            else:
                store.reading, mask = _Reading(of[part], at, keys), columns <= at
            if self.is_encoder_decoder:
                others = self._source_of(state.context.select(of[part]))
            else:
                others = state.context.media.later(at, of[part])
            where = at if state.shift is None else at + state.shift[of[part]]
            parts.append(self._call(store, inputs[part, None], where, mask.long(), others)[:, 0])
        return torch.cat(parts)

    def _call(
        self, store: _Store, ids: Tensor, positions: Tensor | None, mask: Tensor | None, others: dict[str, Any]
    ) -> Tensor:
        side = "decoder_" if self.is_encoder_decoder else ""
        name = f"{side}position_ids"
        where = {name: positions} if positions is not None and self.accepts(name) else {}
        arguments = {f"{side}input_ids": ids, f"{side}attention_mask": mask, **where, **others}
        cache: Any = self._with_cross(store) if self.is_encoder_decoder else store
        call = lambda: self.inner(**arguments, past_key_values=cache, use_cache=True, return_dict=True)  # noqa: E731
        whole = store.reads_whole(ids.shape[1]) and store.reading.rows is None
        with self._at(positions) if self.is_encoder_decoder and not where else nullcontext():
            hidden, output = self._halves.hidden(call, whole=whole)
        store.logits = output.logits[:, -1] if whole else None
        if self.is_encoder_decoder and not store.cross:
            store.cross = [(layer.keys, layer.values) for layer in cache.cross_attention_cache.layers]
        return hidden

    def _source_of(self, context: SourceContext) -> dict[str, Any]:
        encoder_decoder: Any = self
        return encoder_decoder.source(context)

    def _with_cross(self, store: _Store) -> Any:
        """The cache with what the rows being read attend to in their source, which is computed once."""
        cross, rows = DynamicCache(), store.reading.rows
        for keys, values in store.cross:
            layer = DynamicLayer()  # not by its update, which would copy
            layer.dtype, layer.device, layer.is_initialized = keys.dtype, keys.device, True
            layer.keys, layer.values = (keys, values) if rows is None else (
                keys.index_select(0, rows), values.index_select(0, rows)
            )  # fmt: skip
            cross.layers.append(layer)
        return EncoderDecoderCache(store, cross)

    @contextmanager
    def _at(self, positions: Tensor | None) -> Generator[None]:
        """Learnt or sinusoidal positions are those of each token, where the decoder counts them by the call."""
        table = getattr(self.inner.get_decoder(), "embed_positions", None)
        if not isinstance(table, nn.Embedding) or positions is None:
            yield
            return
        at, weights = positions + getattr(table, "offset", 0), cast(Any, table)
        hook = table.register_forward_hook(lambda *_: nn.functional.embedding(at, weights.weight))
        try:
            yield
        finally:
            hook.remove()
