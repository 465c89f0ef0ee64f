"""Reading over a cache whose calls are all known beforehand: one plan of indices, and layers without module calls."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from freerun.models.linear import as_written
from freerun.models.transformer.layers import Block, CrossAttention, FeedForward, Memory, SelfAttention
from freerun.types import Calls

_PLAIN = (
    Block, SelfAttention, CrossAttention, FeedForward, nn.Linear, nn.RMSNorm, nn.LayerNorm, nn.Dropout, nn.Embedding
)  # fmt: skip
_CALL, _KEY, _BLOCK = 115_000, 4, 128
"""One call of attention costs as much as so many (query, key) pairs of width 1; reading a key as much as so many
queries; and longer runs of queries are cut at so many."""

_TURNED = 2**20
"""Weights of so many numbers are read fastest by a product of few rows where they lie transposed; of more, as they
are."""


def is_plain(parts: list[nn.Module]) -> bool:
    """Whether layers compute what their classes define: no hook, no exchanged part or method, in evaluation mode."""
    return all(
        type(each) in _PLAIN and not each.training and as_written(each) and "read" not in vars(each)
        and each._parameters.get("weight", each) is not None
        for part in parts for each in part.modules()
    )  # fmt: skip


class _Norm:
    """A norm with its weight at hand; on processors the RMS norm of few kernels."""

    def __init__(self, norm: nn.Module, lean: bool) -> None:
        self.norm: Any = norm
        self.scale: Tensor | None = None
        if lean and isinstance(norm, nn.RMSNorm):
            size, weight = norm.normalized_shape[-1], norm.weight
            eps = torch.finfo(weight.dtype).eps if norm.eps is None else norm.eps
            self.scale, self.floor = weight * size**0.5, weight.new_tensor((size * eps) ** 0.5)

    def __call__(self, x: Tensor) -> Tensor:
        if self.scale is None:
            return self.norm.forward(x)
        return x.div(torch.linalg.vector_norm(x, dim=-1, keepdim=True).hypot_(self.floor)).mul_(self.scale)


class _Linear:
    """A linear layer with its weights at hand, cast once where autocast would cast them in every call."""

    def __init__(self, layer: nn.Linear, dtype: torch.dtype | None) -> None:
        parts: list[Any] = [layer.weight, layer.bias]
        if dtype is not None and layer.weight.dtype == torch.float32:
            parts = [each if each is None else each.to(dtype) for each in parts]
        self.weight, self.bias = parts
        # what is added to the stream is added by the product itself; autocast would add in its own precision
        self.turned: Tensor | None = None if dtype is not None or self.bias is not None else self.weight.t()
        if self.turned is not None and self.turned.is_cpu and self.turned.numel() <= _TURNED:
            self.turned = self.turned.contiguous()

    def __call__(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight, self.bias) if self.turned is None else torch.mm(x, self.turned)

    def added(self, stream: Tensor, x: Tensor) -> Tensor:
        """``stream + self(x)``, where it can in the stream's place."""
        return stream + self(x) if self.turned is None else stream.addmm_(x, self.turned)


class _Layer:
    """A block: its weights, its keys and values (2, rows, heads, capacity, width), those of the source."""

    def __init__(self, block: Block, rows: int, capacity: int, source: tuple[Memory, Tensor | None] | None) -> None:
        like = block.attention.project.weight
        kind = like.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None
        linear, norm = lambda each: _Linear(each, dtype), lambda each: _Norm(each, kind == "cpu" and dtype is None)
        attention, feed = block.attention, block.feed
        self.heads, self.width = attention.heads, attention.width
        self.norm, self.project, self.out = norm(block.norm), linear(attention.project), linear(attention.out)
        self.feed_norm, self.enter, self.leave = norm(block.feed_norm), linear(feed.enter), linear(feed.out)
        self.activation = feed.activation
        # zeros: what is masked may still not be NaN
        self.store = like.new_zeros(2, rows, self.heads, capacity, self.width, dtype=dtype or like.dtype)
        self.flat, self.source = self.store.view(-1, self.width), source
        if source is not None:
            cross: Any = block.cross
            self.cross_norm, self.query, self.cross_out = norm(block.cross_norm), linear(cross.query), linear(cross.out)

    def read(self, x: Tensor, at: _Call, last: bool, parts: Tensor | None = None) -> Tensor:
        """(n, size) inputs of a call -> the same, as ``Block.read``; or (rows, size), of each row's last input.

        ``parts``: ``self.parts(x)``, where they are there.
        """
        return self.feed(self.attention(x, self.parts(x) if parts is None else parts, at, last))

    def parts(self, x: Tensor) -> Tensor:
        """(n, 3 * size) queries, keys and values."""
        return self.project(self.norm(x))

    def attention(self, x: Tensor, parts: Tensor, at: _Call, last: bool) -> Tensor:
        """``x`` and attention to what was read, and to the source."""
        parts = parts.view(-1, 3 * self.heads, self.width)
        if at.turn is not None:
            _rotate(parts[:, : 2 * self.heads], at.turn)
        self.flat.index_copy_(0, at.slots, parts[:, self.heads :].reshape(-1, self.width))
        query = parts[:, : self.heads]
        if last and at.last is not None:  # keys and values of the others are all that is needed of them
            ends, at = at.last
            x, query = x.index_select(0, ends), query.index_select(0, ends)
        x = self.out.added(x, at.attend(query, self.store[0], self.store[1]))
        if self.source is None:
            return x
        memory, mask = self.source
        query = self.query(self.cross_norm(x)).view(-1, self.heads, self.width)
        return self.cross_out.added(x, at.look(query, *memory, mask))

    def feed(self, x: Tensor) -> Tensor:
        """``x`` and feed-forward."""
        inner = self.enter(self.feed_norm(x))
        if self.activation == "swiglu":
            gate, value = inner.chunk(2, -1)
            inner = F.silu(gate).mul_(value)
        else:
            inner = F.gelu(inner) if self.activation == "gelu" else F.relu(inner)
        return self.leave.added(x, inner)


def _all_attended(query: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """One query a row, of all its keys: on processors two products cost less than the kernel for long sequences."""
    scores = torch.bmm((query * query.shape[-1] ** -0.5).view(-1, 1, query.shape[-1]), keys.flatten(0, 1).mT)
    return torch.bmm(scores.softmax(-1), values.flatten(0, 1)).view(len(query), -1)


_COMPLEX = {torch.float32: torch.complex64, torch.float64: torch.complex128}


def _rotate(x: Tensor, turn: Tensor) -> None:
    """Turn every pair of neighbours of (n, heads, width) by its angle, in place."""
    if turn.dtype == _COMPLEX.get(x.dtype):
        torch.view_as_complex(x.unflatten(-1, (-1, 2))).mul_(turn)
        return
    turn = torch.view_as_real(turn) if turn.is_complex() else turn
    (a, b), (cos, sin) = x.unflatten(-1, (-1, 2)).unbind(-1), turn.to(x.dtype).unbind(-1)
    x.copy_(torch.stack([a * cos - b * sin, a * sin + b * cos], -1).flatten(-2))


@dataclass(eq=False)
class _Call:
    """Where the inputs of one call stand, and how they attend."""

    slots: Tensor  # (n * 2 * heads,) in the flattened keys and values
    turn: Tensor | None  # (n, 1, width / 2) complex, or (n, 1, width / 2, 2) in narrow types
    rows: int  # the first ones, which read something
    longest: int  # inputs of one row
    keys: int
    grid: Tensor | None  # (n,) indices in (rows, longest); None: they fill it in order
    mask: Tensor | None  # (rows, 1, longest, keys) of the grid
    causal: bool  # the grid is a square of inputs from the first one on
    pieces: list[tuple[int, int, int, int, Tensor | None]] | None  # row, first and last query, keys, mask
    last: tuple[Tensor, _Call] | None = None  # (rows,) each row's last input, and how they attend; None: they are all

    def attend(self, query: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """(n, heads, width) queries, (rows, heads, capacity, width) keys and values -> (n, heads * width)."""
        if self.pieces is None:
            held = keys[: self.rows, :, : self.keys], values[: self.rows, :, : self.keys]
            if self.longest == 1 and self.mask is None and query.is_cpu and query.dtype in _COMPLEX:
                return _all_attended(query, *held)
            return self._on_grid(query, *held, self.mask, self.causal)
        turned, found = query.transpose(0, 1)[None], []
        for row, start, end, many, mask in self.pieces:
            held = keys[row : row + 1, :, :many], values[row : row + 1, :, :many]
            found.append(F.scaled_dot_product_attention(turned[:, :, start:end], *held, attn_mask=mask))
        return torch.cat(found, 2)[0].transpose(0, 1).flatten(1)

    def look(self, query: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None) -> Tensor:
        """Attention to a source (rows, heads, source_time, width)."""
        mask = None if mask is None else mask[: self.rows]
        return self._on_grid(query, keys[: self.rows], values[: self.rows], mask, False)

    def _on_grid(self, query: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None, causal: bool) -> Tensor:
        if self.longest == 1:
            query = query.unsqueeze(2)
            attended = F.scaled_dot_product_attention(query, keys, values, attn_mask=mask)
            return attended.reshape(self.rows, -1)
        if self.grid is not None:  # what stands in between is looked up by nobody
            query = query.new_zeros(self.rows * self.longest, *query.shape[1:]).index_copy_(0, self.grid, query)
        query = query.unflatten(0, (self.rows, self.longest)).transpose(1, 2)
        attended = F.scaled_dot_product_attention(query, keys, values, attn_mask=mask, is_causal=causal)
        attended = attended.transpose(1, 2).flatten(2).flatten(0, 1)
        return attended if self.grid is None else attended.index_select(0, self.grid)


class _Plan:
    """The calls of a roll-in, each laid out when it is reached from tensors that were made once for all of them."""

    def __init__(self, calls: Calls, heads: int, width: int, like: Tensor, turn: Tensor | None) -> None:
        self.counts, self.begins = calls.counts.tolist(), calls.begins.tolist()
        rows, self.capacity = calls.counts.shape[1], int(calls.index.max()) + 1
        self.price = _CALL // (heads * width)
        device, sizes, index = calls.index.device, calls.sizes, calls.index
        side = torch.arange(2, device=device)[:, None] * rows + calls.rows[:, None, None]
        slots = (side * heads + torch.arange(heads, device=device)) * self.capacity + index[:, None, None]
        self.slots = slots.flatten().split([2 * heads * size for size in sizes])
        angles = None if turn is None else turn[index]
        if angles is not None and angles.dtype in _COMPLEX:
            angles = torch.view_as_complex(angles)
        self.turns = None if angles is None else angles.split(sizes)
        # where each input stands in the (rows, longest count) grid of its call
        of = torch.arange(len(sizes), device=device).repeat_interleave(torch.tensor(sizes, device=device))
        begins, longest = calls.begins.flatten()[of * rows + calls.rows], calls.counts.amax(1)[of]
        self.grids = (calls.rows * longest + index - begins).split(sizes)
        # row s of ``seen`` is what the input at index capacity - s may attend to
        self.index, self.at = index.split(sizes), (self.capacity - index).split(sizes)
        self.ends = (calls.counts.cumsum(1) - 1).unbind()
        allowed = torch.arange(2 * self.capacity + 1, device=device) <= self.capacity
        self.seen = like.new_zeros(len(allowed)).masked_fill_(~allowed, -torch.inf).unfold(0, self.capacity, 1)

    def call(self, n: int) -> _Call:
        """The n-th call."""
        counts = [count for count in self.counts[n] if count]
        starts = self.begins[n][: len(counts)]
        laid = self._laid(n, counts, starts, self.at[n])
        if laid.longest > 1:
            ends = self.ends[n][: laid.rows]
            starts = [start + count - 1 for start, count in zip(starts, counts, strict=True)]
            laid.last = ends, self._laid(n, [1] * laid.rows, starts, self.at[n].index_select(0, ends))
        return laid

    def _laid(self, n: int, counts: list[int], starts: list[int], at: Tensor) -> _Call:
        """So many inputs of each row, from where they start."""
        rows, longest = len(counts), max(counts)
        reach = [start + count for start, count in zip(starts, counts, strict=True)]
        keys, causal = max(reach), longest > 1 and not any(starts)
        grid = None if rows * longest == len(at) else self.grids[n]
        whole = rows * keys * (_KEY + longest) // (2 if causal else 1)
        apart = rows * self.price
        if rows > 1 and apart < whole:
            apart += sum(most * (_KEY + count) for most, count in zip(reach, counts, strict=True))
        pieces, mask = None, None
        if (rows > 1 and apart < whole) or (longest > _BLOCK and not causal):
            pieces = self._pieces(counts, starts, at)
        elif not causal and not (longest == 1 and len(set(starts)) == 1):
            at = at if grid is None else at.new_zeros(rows * longest).index_copy_(0, grid, at)
            mask = self.seen[:, :keys].index_select(0, at).view(rows, 1, longest, keys)
        turn = None if self.turns is None else self.turns[n]
        return _Call(self.slots[n], turn, rows, longest, keys, grid, mask, causal, pieces)

    def _pieces(
        self, counts: list[int], begins: list[int], at: Tensor
    ) -> list[tuple[int, int, int, int, Tensor | None]]:
        """Every row by itself, in blocks: its attention ends at its own keys."""
        found: list[tuple[int, int, int, int, Tensor | None]] = []
        for row, (start, count) in enumerate(zip(accumulate(counts, initial=0), counts, strict=False)):
            for first in range(start, start + count, _BLOCK):
                end = min(first + _BLOCK, start + count)
                keys = begins[row] + end - start
                mask = None
                if end - first > 1:
                    mask = self.seen[:, :keys].index_select(0, at[first:end])
                found.append((row, first, end, keys, mask))
        return found


class PlannedReader:
    """A decoder's layers over a cache of their own, call by call as planned; ``freerun.types.Planned``.

    Args:
        decoder: a ``CausalTransformer`` of plain parts.
        context: what it reads besides its entries.
        calls: what each call reads.
    """

    def __init__(self, decoder: Any, context: Any, calls: Calls) -> None:
        self.decoder, memory = decoder, context.memory
        learned, shape = decoder.positions.learned, decoder.shape
        rows, capacity = calls.counts.shape[1], int(calls.index.max()) + 1
        self.layers: list[_Layer] = []
        for block in decoder.blocks:
            source = None if memory is None else (block.cross.remember(memory), context.attended)
            self.layers.append(_Layer(block, rows, capacity, source))
        like, turn = self.layers[0].store, None if learned is not None else decoder.positions.turn
        self.plan = _Plan(calls, shape.heads, shape.width, like, turn)
        self.norm = _Norm(decoder.norm, like.device.type == "cpu" and not torch.is_autocast_enabled(like.device.type))
        self.learned = None if learned is None else learned.weight
        few = learned is None and decoder.target_vocab < len(calls.rows) and is_plain([decoder.embedding])
        self.table = self._table() if few else None

    def _table(self) -> tuple[Tensor, Tensor]:
        """All symbols, behind them the start, and what the first layer makes of each before it attends."""
        start = self.decoder.start_vector[None]
        every = self.decoder.embed(torch.arange(self.decoder.target_vocab, device=start.device))
        every = torch.cat([every, start.to(every.dtype)])
        return every, self.layers[0].parts(every)

    def _entered(self, n: int, entries: Tensor) -> tuple[Tensor, Tensor | None]:
        """What the first layer reads, and its parts where they are there."""
        starts = self.plan.index[0] == 0 if n == 0 else None
        if self.table is not None:
            entries = entries if starts is None else entries.masked_fill(starts, self.decoder.target_vocab)
            return self.table[0].index_select(0, entries), self.table[1].index_select(0, entries)
        x = self.decoder.embed(entries)
        if starts is not None:
            x[starts] = self.decoder.start_vector.to(x.dtype)
        return x if self.learned is None else x + F.embedding(self.plan.index[n], self.learned), None

    def __call__(self, n: int, entries: Tensor) -> Tensor:
        """The hidden vectors (rows, size) after the last entry of each row; entries (inputs,), at the start any."""
        at, (x, parts) = self.plan.call(n), self._entered(n, entries)
        with torch.inference_mode():
            for layer in self.layers:
                x, parts = layer.read(x, at, layer is self.layers[-1], parts), None
            return self.norm(x)
