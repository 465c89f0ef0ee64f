"""A causal Transformer: the complete sequence at once, and entry by entry over a cache."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Self

import torch
from torch import Tensor, nn

from freerun.batch import Batch
from freerun.errors import UserError
from freerun.models.linear import logits
from freerun.models.rnn import source_of
from freerun.models.transformer.cache import Absent, Cache, Reading, reading
from freerun.models.transformer.layers import (
    Activation,
    Block,
    Memory,
    Norm,
    PositionKind,
    Shape,
    Turn,
    initialise,
    make_norm,
    turns,
)
from freerun.models.transformer.reader import PlannedReader, is_plain
from freerun.types import Calls


@dataclass(frozen=True, eq=False)
class DecoderContext:
    """What a decoder reads besides its own entries."""

    memory: Tensor | None = None  # (batch, source_time, size) encoded source; None: there is none
    mask: Tensor | None = None  # (batch, source_time) bool, True = may be attended to; None: all
    absent: Absent | None = None  # left padding of the history; None: there is none

    def select(self, rows: Tensor) -> DecoderContext:
        """The requested rows."""
        memory, mask = (None if part is None else part.index_select(0, rows) for part in (self.memory, self.mask))
        return DecoderContext(memory, mask, None if self.absent is None else self.absent.select(rows))

    @property
    def attended(self) -> Tensor | None:
        """The mask as attention takes it: (batch, 1, 1, source_time)."""
        return None if self.mask is None else self.mask[:, None, None]


@dataclass(frozen=True, eq=False)
class DecoderState:
    """Where a decoder is."""

    cache: Cache  # what it has read; shared with earlier states, of which ``version`` tells them apart
    version: int
    lengths: Tensor  # (rows,) inputs read, the start vector included
    common_length: int | None  # that length where all rows have the same, else None
    sources: tuple[Memory, ...]  # keys and values of the source, by layer; empty: there is none
    context: DecoderContext


class Positions(nn.Module):
    """Where an entry stands: a rotation of queries and keys, or a learned vector added to the entry."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.max_positions = shape.max_positions
        self.learned = nn.Embedding(shape.max_positions, shape.size) if shape.positions == "learned" else None
        if self.learned is None:
            turn = turns(torch.arange(shape.max_positions), shape.width, torch.get_default_dtype())
            self.register_buffer("turn", turn, persistent=False)

    def forward(self, x: Tensor, positions: Tensor) -> tuple[Tensor, Turn | None]:
        """(..., size) entries at (...) positions: what goes on, and the rotation."""
        if self.learned is not None:
            return x + self.learned(positions), None
        return x, self.turn[positions]  # pyright: ignore[reportIndexIssue, reportReturnType]

    def check(self, time: int) -> None:
        """Refuse a sequence longer than there are positions."""
        if time > self.max_positions:
            raise UserError(
                f"the sequence has {time} positions, and the model was made with max_positions={self.max_positions}: "
                "make it with a larger one, or cut the sequence"
            )


class CausalTransformer(nn.Module):
    """Decoder layers with start vector, positions and vocabulary; subclasses define what they attend to (``_context``).

    Args:
        size: width of the stream, a multiple of ``heads``.
        layers: number of layers.
        heads: number of attention heads.
        feed_forward: inner width; None: 4 * size, or 8/3 * size for ``"swiglu"``.
        positions: ``"rope"`` (rotary) or ``"learned"``.
        activation: ``"swiglu"``, ``"gelu"`` or ``"relu"``.
        norm: ``"rms"`` or ``"layer"``.
        bias: whether the linear layers have one.
        dropout: on embeddings and on what every sublayer adds, in [0, 1).
        tied: whether the output weights are the target embedding.
        max_positions: number of positions there are.
    """

    def __new__(cls, *_: Any, **settings: Any) -> Self:
        """Refuse the former name of an argument; ``__init__`` has the arguments."""
        if "longest" in settings:
            raise UserError(f"longest is now max_positions; write max_positions={settings['longest']}")
        return super().__new__(cls)

    def __init__(self, vocab: int, shape: Shape, *, crossed: bool, tied: bool) -> None:
        super().__init__()
        self.shape = shape
        self.target_vocab = vocab
        self._settings: dict[str, Any] = {}  # a subclass has them
        self.embedding = nn.Embedding(vocab, shape.size)
        self.start_vector = nn.Parameter(torch.randn(shape.size) * 0.02)
        self.positions = Positions(shape)
        self.blocks = nn.ModuleList(Block(shape, crossed) for _ in range(shape.layers))
        self.norm = make_norm(shape)
        self.drop = nn.Dropout(shape.dropout)
        self.out = nn.Linear(shape.size, vocab, bias=False)
        if tied:
            self.out.weight = self.embedding.weight

    @property
    def max_positions(self) -> int:
        """Entries that a row may have."""
        return self.positions.max_positions

    def settings(self) -> dict[str, Any]:
        """Return the constructor's arguments."""
        return dict(self._settings)

    def _context(self, batch: Batch) -> DecoderContext:
        raise TypeError(f"{type(self).__name__} must define _context")

    # -- the complete sequence at once

    def lookup(self, entries: Tensor) -> Tensor:
        """(...) ids -> (..., size): the embedding."""
        return self.embedding(entries)

    def hidden(self, batch: Batch) -> Tensor:
        """(batch, time, size): what the vocabulary is read from."""
        return self._hidden(batch, self.lookup(batch.history[:, :-1]))

    def head(self, hidden: Tensor) -> Tensor:
        """(..., size) -> (..., vocab) logits."""
        return logits(self.out, hidden)

    def forward(self, batch: Batch) -> Tensor:
        """(batch, time, vocab) logits."""
        return self.head(self.hidden(batch))

    def outputs_from(self, batch: Batch, vectors: Tensor) -> Tensor:
        """``forward`` with (batch, time, size) vectors instead of the embedded history."""
        return self.head(self._hidden(batch, vectors[:, :-1]))

    def _hidden(self, batch: Batch, entries: Tensor) -> Tensor:
        self.positions.check(batch.time)
        context = self._context(batch)
        index = torch.arange(batch.time, device=entries.device)
        mask = None
        inputs = torch.cat([self.start_vector.expand(batch.size, 1, -1), entries], 1)
        if context.absent is not None:
            rows = torch.arange(batch.size, device=entries.device)[:, None]
            mask = (index <= index[:, None]) & context.absent.seen(batch.time)[:, None, None]
            index = index.expand(batch.size, -1)
            inputs = context.absent.filled(inputs, index, rows, self.start_vector)
            index = context.absent.positions(index, rows)
        x, turn = self.positions(inputs, index)
        x = self.drop(x)
        source = None if context.memory is None else (context.memory, context.attended)
        for block in self.blocks:
            x = block(x, turn, mask, source)
        return self.norm(x)

    # -- entry by entry

    def start(self, batch: Batch) -> DecoderState:
        """The state that predicts position 0: the start vector has been read."""
        context = self._context(batch)
        sources = () if context.memory is None else tuple(block.cross.remember(context.memory) for block in self.blocks)  # pyright: ignore
        inputs = self.start_vector.expand(batch.size, -1)
        cache = Cache.empty(inputs, self.shape.layers, self.shape.heads, batch.time + 1)
        lengths = torch.zeros(batch.size, dtype=torch.int64, device=inputs.device)
        return self.step(DecoderState(cache, 0, lengths, 0, sources, context), inputs)

    def embed(self, entries: Tensor) -> Tensor:
        """(...) ids -> (..., size)."""
        return self.embedding(entries)

    def step(self, state: DecoderState, inputs: Tensor) -> DecoderState:
        """The state after one more entry of every row, as ``embed`` returned it."""
        return self._read(state, inputs, None)[0]

    def advance(self, state: DecoderState, inputs: Tensor, counts: Tensor) -> tuple[DecoderState, Tensor]:
        """Read ``counts`` (rows,) more entries, (their sum, size) row after row; the hidden vector after each."""
        return self._read(state, inputs, counts)

    def output(self, state: DecoderState, rows: Tensor | None = None) -> Tensor:
        """(rows, vocab) logits of the position each row stands before."""
        if state.common_length is not None:
            last = state.cache.hidden[:, state.common_length - 1]
            return self.head(last if rows is None else last.index_select(0, rows))
        if rows is None:
            rows = torch.arange(len(state.lengths), device=state.lengths.device)
        return self.head(state.cache.hidden[rows, state.lengths.index_select(0, rows) - 1])

    def select(self, state: DecoderState, rows: Tensor) -> DecoderState:
        """The state of the requested rows, in that order."""
        sources = tuple((keys.index_select(0, rows), values.index_select(0, rows)) for keys, values in state.sources)
        cache, lengths = state.cache.select(rows), state.lengths.index_select(0, rows)
        return DecoderState(cache, cache.version, lengths, state.common_length, sources, state.context.select(rows))

    def crop(self, state: DecoderState, lengths: Tensor) -> DecoderState:
        """The state with what was read beyond ``lengths`` (rows,) entries taken back; the state before is used up."""
        return replace(state, lengths=lengths + 1, common_length=None)  # the start vector stands before all entries

    def reader(self, batch: Batch, calls: Calls) -> Callable[[int, Tensor], Tensor] | None:
        """``freerun.types.Planned``; None where a part was exchanged, hooked or overridden, and with left padding."""
        names = ("step", "advance", "_read", "_through", "_hidden", "hidden", "forward")
        own = all(getattr(type(self), name) is getattr(CausalTransformer, name) for name in names)
        if torch.is_grad_enabled() or not own or any(name in vars(self) for name in names):
            return None
        context = self._context(batch)
        if context.absent is not None or not is_plain([*self.blocks, self.norm]):
            return None
        self.positions.check(int(calls.counts.sum(0).max()))
        return PlannedReader(self, context, calls)

    def _read(self, state: DecoderState, inputs: Tensor, counts: Tensor | None) -> tuple[DecoderState, Tensor]:
        if counts is not None:
            longest = int((state.lengths + counts).max())
        else:
            longest = (int(state.lengths.max()) if state.common_length is None else state.common_length) + 1
        self.positions.check(longest)
        cache = state.cache.owned(state.version, longest)
        at = reading(state.lengths, counts, state.common_length, cache.capacity)
        positions = at.index
        if (absent := state.context.absent) is not None:
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
        together = state.common_length is not None and (counts is None or int(counts.min()) == each)
        common = longest if together else None
        return DecoderState(cache, cache.version, lengths, common, state.sources, state.context), x

    def _through(self, inputs: Tensor, positions: Tensor, at: Reading, state: DecoderState) -> Tensor:
        x, turn = self.positions(inputs, positions)
        x = self.drop(x)
        attended = state.context.attended
        for n, block in enumerate(self.blocks):
            source: Any = (state.sources[n], attended) if state.sources else None
            x = block.read(x, turn, at, state.cache.layers[n], source)  # pyright: ignore[reportCallIssue]
        return self.norm(x)


class TransformerLM(CausalTransformer):
    """A decoder-only Transformer; outputs are logits (batch, time, vocab).

    ``x_0 = s, x_t = E y_{t-1}``, then layers of ``x + attend(norm(x))`` and ``x + feed_forward(norm(x))`` with causal
    attention, logits = U norm(x). The shift is inside: position t is fed ``history[:, t-1]``, position 0 a learned
    start vector. Stepped over its cache and in parallel it is the same function.

    Args:
        vocab: number of symbols.
        size, ..., max_positions: as of ``CausalTransformer``.

    Context of a batch: None, or ``{"present": (batch, n) bool}`` where the first n history entries may be absent
    (False): left padding before a prompt. Absent entries take no position and are attended to by none. Prompts lie
    in ``history`` with ``eligible`` and ``mask`` False; padding on the right needs nothing.

    Raises:
        UserError: for arguments outside their range; all at once.

    Reference: Vaswani et al. 2017, arXiv:1706.03762; Su et al. 2021, arXiv:2104.09864.

    What it is not: a model to be trained at scale; there is no attention dropout, no grouped-query attention.

    >>> import torch
    >>> model = TransformerLM(5, size=8, layers=1, heads=2)
    >>> ids = torch.tensor([[1, 2, 0]])
    >>> model(Batch(ids, ids, ids >= 0)).shape
    torch.Size([1, 3, 5])
    """

    def __init__(
        self,
        vocab: int,
        *,
        size: int = 128,
        layers: int = 4,
        heads: int = 4,
        feed_forward: int | None = None,
        positions: PositionKind = "rope",
        activation: Activation = "swiglu",
        norm: Norm = "rms",
        bias: bool = False,
        dropout: float = 0.0,
        tied: bool = True,
        max_positions: int = 1024,
    ) -> None:
        settings = {name: value for name, value in locals().items() if name not in ("self", "__class__")}
        super().__init__(vocab, Shape.of(settings, vocab=vocab), crossed=False, tied=tied)
        self._settings = settings
        initialise(self, layers)

    def _context(self, batch: Batch) -> DecoderContext:
        context = batch.context
        if context is None:
            return DecoderContext()
        if not isinstance(context, Mapping) or set(context) != {"present"}:
            got = ", ".join(map(repr, context)) if isinstance(context, Mapping) else type(context).__name__
            raise UserError(
                "TransformerLM needs Batch.context = None, or {'present': (batch, n) bool} with False for left "
                f"padding; got {got}"
            )
        return DecoderContext(absent=Absent.of(context["present"], batch.size))


class _Encoder(nn.Module):
    def __init__(self, vocab: int, shape: Shape) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocab, shape.size)
        self.positions = Positions(shape)
        self.blocks = nn.ModuleList(Block(shape, crossed=False) for _ in range(shape.layers))
        self.norm = make_norm(shape)
        self.drop = nn.Dropout(shape.dropout)

    def forward(self, source: Tensor, mask: Tensor) -> Tensor:
        """(batch, source_time) ids and what is there of them -> (batch, source_time, size)."""
        self.positions.check(source.shape[1])
        # what is absent takes no position, on either side
        index = (mask.cumsum(1) - 1).clamp_min(0)
        x, turn = self.positions(self.embedding(source), index)
        x = self.drop(x)
        seen = None if bool(mask.all()) else mask[:, None, None]
        for block in self.blocks:
            x = block(x, turn, seen, causal=False)
        return self.norm(x)


class TransformerSeq2Seq(CausalTransformer):
    """A Transformer encoder-decoder; outputs are logits (batch, time, target_vocab).

    Layers of ``x + attend(norm(x))``, in the decoder causal and followed by attention to the encoded source, and
    ``x + feed_forward(norm(x))``; logits = U norm(x). The shift is inside: position t is fed ``history[:, t-1]``,
    position 0 a learned start vector. Stepped over its cache and in parallel it is the same function.

    Args:
        source_vocab: number of source symbols, the padding id 0 included.
        target_vocab: number of target symbols, the end symbol included.
        size, ..., max_positions: as of ``CausalTransformer``.
        layers: of encoder and decoder each.

    Context of a batch: ``{"source": (batch, source_time) ids, "source_mask": (batch, source_time) bool}``, padding on
    either side: what is absent takes no position and is attended to by none.

    Raises:
        UserError: for arguments outside their range; all at once.

    Reference: Vaswani et al. 2017, arXiv:1706.03762; Xiong et al. 2020 (pre-norm), arXiv:2002.04745.

    >>> import torch
    >>> model = TransformerSeq2Seq(5, 4, size=8, layers=1, heads=2)
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
        size: int = 128,
        layers: int = 4,
        heads: int = 4,
        feed_forward: int | None = None,
        positions: PositionKind = "rope",
        activation: Activation = "swiglu",
        norm: Norm = "rms",
        bias: bool = False,
        dropout: float = 0.0,
        tied: bool = True,
        max_positions: int = 1024,
    ) -> None:
        settings = {name: value for name, value in locals().items() if name not in ("self", "__class__")}
        shape = Shape.of(settings, source_vocab=source_vocab, target_vocab=target_vocab)
        super().__init__(target_vocab, shape, crossed=True, tied=tied)
        self._settings = settings
        self.encoder = _Encoder(source_vocab, shape)
        initialise(self, layers)

    def encode(self, batch: Batch) -> Batch:
        """The batch with its source encoded; one that is encoded already is returned."""
        if isinstance(batch.context, DecoderContext):
            return batch
        source, mask = source_of(batch, "TransformerSeq2Seq")
        if mask.dtype != torch.bool or mask.shape != source.shape:
            raise UserError(
                f"source_mask must be bool and of the source's shape {tuple(source.shape)}; got "
                f"{tuple(mask.shape)} {mask.dtype}: use source_mask.bool()"
            )
        # a source that is not there at all: its padding stands in, as attention to nothing has no value
        mask = mask | ~mask.any(1, keepdim=True)
        memory = self.encoder(source, mask)
        return batch.made(context=DecoderContext(memory, None if bool(mask.all()) else mask))

    def _context(self, batch: Batch) -> DecoderContext:
        return self.encode(batch).context
