"""What a decoder remembers of the entries it has read, each row at its own position."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from freerun.errors import UserError


@dataclass(frozen=True, eq=False)
class Absent:
    """Inputs of a decoder that are not there: left padding. They take no position and are attended to by none."""

    inputs: Tensor  # (rows, n) bool, the first n inputs, the start vector among them; later ones are there
    before: Tensor  # (rows, n) how many inputs up to and with this one are absent

    @classmethod
    def of(cls, present: Tensor, rows: int) -> Absent | None:
        """From (rows, n) bool, True = this history entry is there; None where all are."""
        if present.dtype != torch.bool or present.dim() != 2 or present.shape[0] != rows:
            raise UserError(
                f"'present' must be ({rows}, n) bool, True = this history entry is there; got {tuple(present.shape)} "
                f"{present.dtype}: use attention_mask.bool()"
            )
        if bool(present.all()):
            return None
        if bool((present[:, :-1] & ~present[:, 1:]).any()):
            row = int((present[:, :-1] & ~present[:, 1:]).any(1).nonzero()[0])
            raise UserError(
                f"'present' is for padding on the left: False, then True; row {row} has {present[row].int().tolist()}. "
                "Padding on the right needs nothing: it is masked out of the loss"
            )
        inputs = torch.nn.functional.pad(~present, (1, 0))
        return cls(inputs, inputs.cumsum(1))

    def positions(self, index: Tensor, rows: Tensor) -> Tensor:
        """Positions of the inputs ``index`` of ``rows``; an absent one has that of the one before it."""
        return index - self.before[rows, index.clamp_max(self.before.shape[1] - 1)]

    def filled(self, inputs: Tensor, index: Tensor, rows: Tensor, start: Tensor) -> Tensor:
        """Inputs with the start vector for absent ones: what is predicted after padding alone is what it predicts."""
        width = self.inputs.shape[1]
        absent = self.inputs[rows, index.clamp_max(width - 1)] & (index < width)
        return torch.where(absent[..., None], start, inputs)

    def seen(self, keys: int) -> Tensor:
        """(rows, keys) bool: which of the first inputs may be attended to."""
        more = keys - self.inputs.shape[1]
        return ~(torch.nn.functional.pad(self.inputs, (0, more)) if more > 0 else self.inputs[:, :keys])

    def select(self, rows: Tensor) -> Absent:
        """The requested rows."""
        return Absent(self.inputs.index_select(0, rows), self.before.index_select(0, rows))


class Layer:
    """Keys and values of one layer, (rows, capacity, heads, width) each."""

    def __init__(self, keys: Tensor, values: Tensor) -> None:
        self.keys = keys
        self.values = values

    def write(self, slots: Tensor, keys: Tensor, values: Tensor) -> None:
        """Put (n, heads, width) entries into their slots (row * capacity + index)."""
        self.keys = _written(self.keys, slots, keys)
        self.values = _written(self.values, slots, values)


def _written(store: Tensor, slots: Tensor, entries: Tensor) -> Tensor:
    flat = store.flatten(0, 1)
    entries = entries.to(store.dtype)
    if torch.is_grad_enabled():
        return flat.index_copy(0, slots, entries).view_as(store)
    flat.index_copy_(0, slots, entries)
    return store


class Cache:
    """Keys, values and final hidden vectors of all entries read, with room for ``capacity`` a row."""

    def __init__(self, layers: list[Layer], hidden: Tensor) -> None:
        self.layers = layers
        self.hidden = hidden  # rows, capacity, size
        self.version = 0

    @classmethod
    def empty(cls, like: Tensor, layers: int, heads: int, capacity: int) -> Cache:
        """Room for ``capacity`` entries of as many rows as ``like`` (rows, size) has."""
        rows, size = like.shape
        kind, dtype = like.device.type, like.dtype
        if torch.is_autocast_enabled(kind):
            dtype = torch.get_autocast_dtype(kind)
        stores = [
            [like.new_zeros(rows, capacity, heads, size // heads, dtype=dtype) for _ in range(2)] for _ in range(layers)
        ]
        return cls([Layer(*pair) for pair in stores], like.new_zeros(rows, capacity, size))

    @property
    def capacity(self) -> int:
        """Entries a row has room for."""
        return self.hidden.shape[1]

    def owned(self, version: int, room: int) -> Cache:
        """This cache, or a copy where another state has gone on or ``room`` entries do not fit."""
        if version == self.version and room <= self.capacity:
            # a graph may hold the tensors of this one; writing makes new ones there, so the shell must be new too
            return self._with(lambda part: part) if torch.is_grad_enabled() else self
        more = 0 if room <= self.capacity else max(room, 2 * self.capacity) - self.capacity
        return self._with(lambda part: _longer(part, more))

    def select(self, rows: Tensor) -> Cache:
        """A copy of the requested rows."""
        return self._with(lambda part: part.index_select(0, rows))

    def detached(self) -> Cache:
        """A copy that holds the same numbers without their graph."""
        return self._with(lambda part: part.detach().clone())

    def _with(self, change: Callable[[Tensor], Tensor]) -> Cache:
        layers = [Layer(change(layer.keys), change(layer.values)) for layer in self.layers]
        return Cache(layers, change(self.hidden))


def _longer(part: Tensor, more: int) -> Tensor:
    return torch.cat([part, part.new_zeros(part.shape[0], more, *part.shape[2:])], 1) if more else part.clone()


@dataclass(frozen=True, eq=False)
class Reading:
    """Where the entries stand that are being read, n in all, row after row."""

    slots: Tensor  # (n,) indices in the flattened cache
    index: Tensor  # (n,) indices in the sequence
    rows: Tensor  # (n,) rows
    # (n,) indices in the (rows, longest count) grid that attention works on; None: they fill it in order
    grid: Tensor | None
    shape: tuple[int, int]  # of that grid
    keys: int  # how many entries of the cache are attended to
    mask: Tensor | None  # (rows, 1, longest count, keys) bool, True = may be attended to; None: all

    def spread(self, x: Tensor) -> Tensor:
        """(n, heads, width) -> (rows, heads, longest count, width)."""
        if self.grid is not None:
            # what stands in between is looked up by nobody, but its NaN would reach the keys' gradient
            new = x.new_zeros if torch.is_grad_enabled() else x.new_empty
            x = new(self.shape[0] * self.shape[1], *x.shape[1:]).index_copy_(0, self.grid, x)
        return x.unflatten(0, self.shape).transpose(1, 2)

    def gather(self, x: Tensor) -> Tensor:
        """(rows, heads, longest count, width) -> (n, heads * width)."""
        flat = x.transpose(1, 2).flatten(2).flatten(0, 1)
        return flat if self.grid is None else flat[self.grid]


def reading(lengths: Tensor, counts: Tensor | None, common: int | None, capacity: int) -> Reading:
    """Where the next ``counts`` entries of every row stand (None: one each)."""
    rows = torch.arange(lengths.shape[0], device=lengths.device)
    if counts is None:
        keys = (int(lengths.max()) if common is None else common) + 1
        mask = None if common is not None else torch.arange(keys, device=rows.device) <= lengths[:, None, None, None]
        return Reading(rows * capacity + lengths, lengths, rows, None, (len(rows), 1), keys, mask)
    width = int(counts.max())
    of = rows.repeat_interleave(counts)
    number = torch.arange(of.shape[0], device=rows.device) - (counts.cumsum(0) - counts)[of]
    index = lengths[of] + number
    grid = None if of.shape[0] == rows.shape[0] * width else of * width + number
    keys = int((lengths + counts).max())
    last = lengths[:, None] + torch.arange(width, device=rows.device)
    mask = torch.arange(keys, device=rows.device) <= last[:, None, :, None]
    return Reading(of * capacity + index, index, of, grid, (len(rows), width), keys, mask)
