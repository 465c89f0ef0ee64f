"""Batches of one's own as data: read once, held by split, named for people."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, cast

import torch
from torch import Tensor

from freerun.arguments import brief
from freerun.batch import Batch, map_leaves
from freerun.errors import UserError, out_of_memory

SPLITS = ("train", "dev", "test")
ROWS = 2**20
"""Rows of a batch at most: batches of one update have row numbers of their own."""


def read_batches(batches: Any, name: str = "batches") -> list[Batch]:
    """Read an iterable of batches once: a list, a generator, or a DataLoader whose collate function makes them.

    Raises:
        UserError: nothing in it, something else than batches in it, or ids and values mixed.
    """
    listed = [batches] if isinstance(batches, Batch) else None
    if listed is None:
        if not isinstance(batches, Iterable) or isinstance(batches, str | bytes | Mapping | Tensor):
            raise UserError(f"{name} must be freerun.Batch objects, in a list or a DataLoader; got {_kind(batches)}")
        listed = list(cast(Iterable[Any], batches))
    if not listed:
        raise UserError(f"{name} hold nothing: a list, or a DataLoader, not a generator that was read before")
    strange = [(n, each) for n, each in enumerate(listed) if not isinstance(each, Batch)]
    if strange:
        number, first = strange[0]
        raise UserError(
            f"{name}[{number}] must be a freerun.Batch; got {_kind(first)}: let the collate function return "
            "freerun.Batch(targets=..., context=...)"
        )
    kinds = {each.is_discrete for each in listed}
    if len(kinds) > 1:
        raise UserError(f"{name} mix ids and values: all targets must be int64 ids, or all real values")
    widths = sorted({each.targets.shape[2] for each in listed if not each.is_discrete})
    if len(widths) > 1:
        raise UserError(f"{name} have values of different widths, {widths}: every entry must have as many numbers")
    if not any(bool(each.mask.any()) for each in listed):
        raise UserError(f"{name} have no position that counts (mask True)")
    return listed


Decode = Callable[[Sequence[int]], list[str]]
"""From ids to a symbol each."""


def symbols_of(decode: Any, batch: Batch) -> Decode | None:
    """From ids to a symbol each, by a list or mapping of names, or by a function of a list of ids; None: for None.

    A function may return a symbol for each id, or one text, as a tokenizer does: it is called with one id at a time.

    Raises:
        UserError: something else, or a function that fails for ids of the batch.

    >>> symbols_of({1: "a"}, Batch(torch.tensor([[1, 0]])))([1, 0])
    ['a', '0']
    """
    if decode is None:
        return None

    def one(number: int) -> str:
        if callable(decode):
            found: Any = decode([number])
            return found if isinstance(found, str) else str(next(iter(found), ""))
        listed = cast(Mapping[int, Any], decode if isinstance(decode, Mapping) else dict(enumerate(decode)))
        return str(listed.get(number, number))

    rule = "decode must be a list of the ids' names, a mapping, or a function from a list of ids to their names"
    if not (callable(decode) or isinstance(decode, Mapping | Sequence)) or isinstance(decode, str):
        raise UserError(f"{rule}; got {_kind(decode)}")
    try:
        one(int(batch.targets[batch.mask][0]))
    except Exception as error:
        if out_of_memory(error):
            raise
        raise UserError(f"{rule}; called as decode([id]), it raised {type(error).__name__}: {error}") from error
    # symbols stand with blanks between them
    return lambda ids: ["\N{OPEN BOX}".join(one(number).split(" ")) or "(empty)" for number in ids]


def _kind(value: Any) -> str:
    return type(value).__name__


class BatchData:
    """Batches of one's own, by split; read once, and kept.

    Args:
        splits: "train", "dev" and "test": lists of ``freerun.Batch``, or DataLoaders whose collate function makes them.
        end: id of the end symbol; None: there is none; "auto": the id that ends every row of all batches and stands
            nowhere else in them, if there is one.
        decode: of ids, for people: a list of their names, a mapping, or a function of a list of ids; None: numbers.

    Raises:
        UserError: a missing split, or what ``read_batches`` refuses; all problems at once.
    """

    __repr__ = brief

    def __init__(self, splits: Mapping[str, Any], end: int | str | None = "auto", decode: Any = None) -> None:
        if not isinstance(splits, Mapping):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise UserError(f"data must map train, dev and test to batches; got {_kind(splits)}")
        problems = [f"data[{name!r}] is missing: batches of {name}" for name in SPLITS if name not in splits]
        problems += [f"data has no split {name!r}: use train, dev and test" for name in splits if name not in SPLITS]
        self.splits: dict[str, list[Batch]] = {}
        for name in SPLITS:
            if name in splits:
                try:
                    self.splits[name] = read_batches(splits[name], f"data[{name!r}]")
                except UserError as error:
                    problems += error.problems
        if len({batches[0].is_discrete for batches in self.splits.values()}) > 1:
            problems.append("data mix ids and values: all splits must be of one kind")
        elif len({batches[0].targets.shape[2:] for batches in self.splits.values()}) > 1:
            found = ", ".join(f"{name} {batches[0].targets.shape[2]}" for name, batches in self.splits.items())
            problems.append(f"data have values of different widths: {found} numbers an entry")
        if problems:
            raise UserError(problems)
        everything = [batch for batches in self.splits.values() for batch in batches]
        self.values = not everything[0].is_discrete
        self.end = end_symbol(everything) if end == "auto" else cast(int | None, end)
        self.decode = None if self.values else symbols_of(decode, everything[0])
        self.lengths = [batch.time for batch in self.splits["train"]]

    @cached_property
    def scale(self) -> tuple[Tensor, Tensor] | None:
        """Means and standard deviations of the training targets, (values,) each; None for ids."""
        return moments(self.splits["train"]) if self.values else None

    @cached_property
    def frequencies(self) -> tuple[float, ...]:
        """How often each id stands in the training targets."""
        if self.values:
            return ()
        ids = torch.cat([batch.targets[batch.mask] for batch in self.splits["train"]])
        return tuple(torch.bincount(ids).double().tolist())

    @cached_property
    def fingerprint(self) -> str:
        """A hash of all tensors."""
        digest = hashlib.sha256()

        def add(leaf: Any) -> Any:
            if isinstance(leaf, Tensor):
                flat = leaf.detach().cpu().contiguous()
                digest.update(f"{flat.dtype}{tuple(flat.shape)}".encode())
                digest.update(flat.flatten().view(torch.uint8).numpy().tobytes())
            return leaf

        for name in SPLITS:
            for batch in self.splits[name]:
                digest.update(name.encode())
                parts = (batch.targets, batch.history, batch.mask, batch.weights, batch.eligible, batch.context)
                map_leaves(parts if batch.present is None else (*parts, batch.present), add)
        return digest.hexdigest()[:16]

    @property
    def codec(self) -> BatchCodec:
        """What a user of the model needs to know."""
        return BatchCodec(self.values, self.end)

    def batch(self, indices: Sequence[int], rows: Tensor) -> Batch:
        """The training batch of that number; its rows are numbered by its number in the update."""
        if len(indices) != 1:
            raise UserError(
                f"an update of {len(indices)} of your batches cannot be one batch: batch_size counts batches here, so "
                f"use batch_size = {len(indices)} and accumulate = {len(indices)}, or larger batches and neither"
            )
        batch = self.splits["train"][indices[0]]
        first = int(rows[0]) * ROWS
        return batch if first == 0 else batch.replace(rows=batch.row_numbers + first)

    def header(self) -> list[str]:
        """What the data are, in lines."""
        kind = "values" if self.values else "ids"
        sizes = [f"{len(batches):,} {name}" for name, batches in self.splits.items()]
        end = "" if self.values or self.end is None else f", end symbol {self.end}"
        return [f"batches of {kind}: {', '.join(sizes)}{end}"]


@dataclass(frozen=True)
class BatchCodec:
    """Kind of the targets, and the end symbol."""

    values: bool
    end: int | None

    def describe(self) -> dict[str, Any]:
        """JSON-able."""
        return {"kind": f"batches of {'values' if self.values else 'ids'}", "end": self.end}


def end_symbol(batches: Sequence[Batch]) -> int | None:
    """The id that ends every row and stands nowhere before, or None; one row is no evidence.

    >>> end_symbol([Batch(torch.tensor([[3, 1, 0]])), Batch(torch.tensor([[2, 0]]))])
    0
    >>> end_symbol([Batch(torch.tensor([[3, 1]])), Batch(torch.tensor([[2, 0]]))]) is None
    True
    """
    lasts: set[int] = set()
    for batch in batches:
        if not batch.is_discrete:
            return None
        counted = batch.mask.any(1)
        last = torch.where(batch.mask, torch.arange(batch.time, device=batch.mask.device), -1).amax(1)
        ends = batch.targets[counted].gather(1, last[counted, None])[:, 0]
        lasts |= set(ends.unique().tolist())
        if len(lasts) != 1:
            return None
        if int((batch.targets[batch.mask] == next(iter(lasts))).sum()) != int(counted.sum()):
            return None
    rows = sum(int(batch.mask.any(1).sum()) for batch in batches)
    longer = any(bool((batch.mask.sum(1) > 1).any()) for batch in batches)
    return next(iter(lasts), None) if rows > 1 and longer else None


def moments(batches: Sequence[Batch]) -> tuple[Tensor, Tensor]:
    """Means and standard deviations of the targets that count, (values,) each; 1 where they are all the same."""
    counted = torch.cat([batch.targets[batch.mask].double().cpu() for batch in batches])
    mean = counted.nanmean(0)
    spread = (counted - mean).square().nanmean(0).sqrt()
    return mean, torch.where(spread > 0, spread, 1.0)
