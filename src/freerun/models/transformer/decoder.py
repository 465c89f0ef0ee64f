"""A causal Transformer: the whole sequence at once, and entry by entry over a cache."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from freerun.errors import UserError
from freerun.models.transformer.attention import Memory, Turn, turns
from freerun.models.transformer.blocks import Block, make_norm
from freerun.models.transformer.cache import Absent, Cache, Reading, reading
from freerun.models.transformer.shape import Shape
from freerun.types import Batch

__all__ = ["CausalTransformer", "DecoderState", "Positions", "Seen"]


@dataclass(frozen=True, eq=False)
class Seen:
    """What a decoder sees besides its own entries.

    Args:
        memory: (batch, source_time, size) encoded source; None: there is none.
        mask: (batch, source_time) bool, True = may be attended to; None: all.
        absent: left padding of the history; None: there is none.
    """

    memory: Tensor | None = None
    mask: Tensor | None = None
    absent: Absent | None = None

    def select(self, rows: Tensor) -> Seen:
        """The rows asked for."""
        memory, mask = (None if part is None else part[rows] for part in (self.memory, self.mask))
        return Seen(memory, mask, None if self.absent is None else self.absent.select(rows))

    @property
    def attended(self) -> Tensor | None:
        """The mask as attention takes it: (batch, 1, 1, source_time)."""
        return None if self.mask is None else self.mask[:, None, None]


@dataclass(frozen=True, eq=False)
class DecoderState:
    """Where a decoder is.

    Args:
        cache: what it has read; shared with earlier states, of which ``version`` tells them apart.
        lengths: (rows,) inputs read, the start vector included.
        alike: that length where all rows have the same, else None.
        sources: keys and values of the source, by layer; empty: there is none.
        seen: what else it sees.
    """

    cache: Cache
    version: int
    lengths: Tensor
    alike: int | None
    sources: tuple[Memory, ...]
    seen: Seen


class Positions(nn.Module):
    """Where an entry stands: a rotation of queries and keys, or a learned vector added to the entry."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.longest = shape.longest
        self.learned = nn.Embedding(shape.longest, shape.size) if shape.positions == "learned" else None
        if self.learned is None:
            turn = turns(torch.arange(shape.longest), shape.width, torch.get_default_dtype())
            self.register_buffer("turn", turn, persistent=False)

    def forward(self, x: Tensor, positions: Tensor) -> tuple[Tensor, Turn | None]:
        """(..., size) entries at (...) positions: what goes on, and the rotation."""
        if self.learned is not None:
            return x + self.learned(positions), None
        return x, self.turn[positions]  # pyright: ignore[reportIndexIssue, reportReturnType]

    def check(self, time: int) -> None:
        """Refuse a sequence longer than there are positions."""
        if time > self.longest:
            raise UserError(
                f"the sequence has {time} positions, and the model was made with longest={self.longest}: "
                "make it with a larger one, or cut the sequence"
            )


class CausalTransformer(nn.Module):
    """Decoder layers with start vector, positions and vocabulary; subclasses say what they see (``_seen``)."""

    def __init__(self, vocab: int, shape: Shape, *, crossed: bool, tied: bool) -> None:
        super().__init__()
        self.shape = shape
        self.target_vocab = vocab
        self.embedding = nn.Embedding(vocab, shape.size)
        self.start_vector = nn.Parameter(torch.randn(shape.size) * 0.02)
        self.positions = Positions(shape)
        self.blocks = nn.ModuleList(Block(shape, crossed) for _ in range(shape.layers))
        self.norm = make_norm(shape)
        self.drop = nn.Dropout(shape.dropout)
        self.out = nn.Linear(shape.size, vocab, bias=False)
        if tied:
            self.out.weight = self.embedding.weight

    def _seen(self, batch: Batch) -> Seen:
        raise TypeError(f"{type(self).__name__} must say what it sees")  # a subclass forgot to

    # -- the whole sequence at once

    def lookup(self, entries: Tensor) -> Tensor:
        """(...) ids -> (..., size): the embedding."""
        return self.embedding(entries)

    def hidden(self, batch: Batch) -> Tensor:
        """(batch, time, size): what the vocabulary is read from."""
        return self._hidden(batch, self.lookup(batch.history[:, :-1]))

    def head(self, hidden: Tensor) -> Tensor:
        """(..., size) -> (..., vocab) logits."""
        return self.out(hidden)

    def forward(self, batch: Batch) -> Tensor:
        """(batch, time, vocab) logits."""
        return self.head(self.hidden(batch))

    def outputs_from(self, batch: Batch, vectors: Tensor) -> Tensor:
        """``forward`` with (batch, time, size) vectors in place of the embedded history."""
        return self.head(self._hidden(batch, vectors[:, :-1]))

    def _hidden(self, batch: Batch, told: Tensor) -> Tensor:
        self.positions.check(batch.time)
        seen = self._seen(batch)
        places = torch.arange(batch.time, device=told.device)
        mask = None
        inputs = torch.cat([self.start_vector.expand(batch.size, 1, -1), told], 1)
        if seen.absent is not None:
            rows = torch.arange(batch.size, device=told.device)[:, None]
            mask = (places <= places[:, None]) & seen.absent.seen(batch.time)[:, None, None]
            places = places.expand(batch.size, -1)
            inputs = seen.absent.filled(inputs, places, rows, self.start_vector)
            places = seen.absent.positions(places, rows)
        x, turn = self.positions(inputs, places)
        x = self.drop(x)
        source = None if seen.memory is None else (seen.memory, seen.attended)
        for block in self.blocks:
            x = block(x, turn, mask, source)
        return self.norm(x)

    # -- entry by entry

    def start(self, batch: Batch) -> DecoderState:
        """The state that predicts position 0: the start vector has been read."""
        seen = self._seen(batch)
        sources = () if seen.memory is None else tuple(block.cross.remember(seen.memory) for block in self.blocks)  # pyright: ignore
        inputs = self.start_vector.expand(batch.size, -1)
        cache = Cache.empty(inputs, self.shape.layers, self.shape.heads, batch.time + 1)
        lengths = torch.zeros(batch.size, dtype=torch.int64, device=inputs.device)
        return self.step(DecoderState(cache, 0, lengths, 0, sources, seen), inputs)

    def embed(self, entries: Tensor) -> Tensor:
        """(...) ids -> (..., size)."""
        return self.embedding(entries)

    def step(self, state: DecoderState, inputs: Tensor) -> DecoderState:
        """The state after one more entry of every row, given as ``embed`` gave it."""
        return self._read(state, inputs, None)[0]

    def advance(self, state: DecoderState, inputs: Tensor, counts: Tensor) -> tuple[DecoderState, Tensor]:
        """Read ``counts`` (rows,) more entries, (their sum, size) row after row; the hidden vector after each."""
        return self._read(state, inputs, counts)

    def output(self, state: DecoderState, rows: Tensor | None = None) -> Tensor:
        """(rows, vocab) logits of the position each row stands before."""
        if state.alike is not None:
            last = state.cache.hidden[:, state.alike - 1]
            return self.head(last if rows is None else last[rows])
        if rows is None:
            rows = torch.arange(len(state.lengths), device=state.lengths.device)
        return self.head(state.cache.hidden[rows, state.lengths[rows] - 1])

    def select(self, state: DecoderState, rows: Tensor) -> DecoderState:
        """The state of the rows asked for, in that order."""
        sources = tuple((keys[rows], values[rows]) for keys, values in state.sources)
        cache, lengths = state.cache.select(rows), state.lengths[rows]
        return DecoderState(cache, cache.version, lengths, state.alike, sources, state.seen.select(rows))

    def crop(self, state: DecoderState, lengths: Tensor) -> DecoderState:
        """The state with what was read beyond ``lengths`` (rows,) entries taken back; the one given is used up."""
        return replace(state, lengths=lengths + 1, alike=None)  # the start vector stands before all entries

    def _read(self, state: DecoderState, inputs: Tensor, counts: Tensor | None) -> tuple[DecoderState, Tensor]:
        if counts is not None:
            longest = int((state.lengths + counts).max())
        else:
            longest = (int(state.lengths.max()) if state.alike is None else state.alike) + 1
        self.positions.check(longest)
        cache = state.cache.owned(state.version, longest)
        at = reading(state.lengths, counts, state.alike, cache.capacity)
        positions = at.index
        if (absent := state.seen.absent) is not None:
            positions = absent.positions(at.index, at.rows)
            inputs = absent.filled(inputs, at.index, at.rows, self.start_vector)
            there = absent.seen(at.keys)[:, None, None]
            at = replace(at, mask=there if at.mask is None else at.mask & there)
        if at.mask is not None and not torch.is_autocast_enabled(inputs.device.type):
            # as attention wants it, once for all layers
            at = replace(at, mask=torch.zeros_like(at.mask, dtype=inputs.dtype).masked_fill_(~at.mask, -torch.inf))
        x = self._through(inputs, positions, at, replace(state, cache=cache))
        slots = cache.hidden.flatten(0, 1)
        if torch.is_grad_enabled():
            cache.hidden = slots.index_copy(0, at.slots, x).view_as(cache.hidden)
        else:
            slots.index_copy_(0, at.slots, x.to(slots.dtype))
        cache.version += 1
        lengths = state.lengths + (1 if counts is None else counts)
        each = 1 if counts is None else int(counts.max())
        together = state.alike is not None and (counts is None or int(counts.min()) == each)
        alike = longest if together else None
        return DecoderState(cache, cache.version, lengths, alike, state.sources, state.seen), x

    def _through(self, inputs: Tensor, positions: Tensor, at: Reading, state: DecoderState) -> Tensor:
        x, turn = self.positions(inputs, positions)
        x = self.drop(x)
        for n, block in enumerate(self.blocks):
            source: Any = (state.sources[n], state.seen.attended) if state.sources else None
            x = block.read(x, turn, at, state.cache.layers[n], source)  # pyright: ignore[reportCallIssue]
        return self.norm(x)
