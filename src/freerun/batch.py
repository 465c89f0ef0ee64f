"""Batch: what a model should say, what it is told, and its context."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from freerun.arguments import Arguments, nearest
from freerun.batch_problems import PARTS, context_problems, part_problems, shape_of, value_problems
from freerun.errors import UserError

__all__ = ["Batch", "select_rows", "to_device"]

_LEFT_OUT: Any = None


@dataclass(frozen=True, eq=False, repr=False)
class Batch(Arguments):
    """What a model should say, and what it is told it said before.

    ``outputs[:, t]`` of a model may depend on ``history[:, :t]`` and ``context`` only: history is *aligned*
    with targets, and the model does its own shift.

    Args:
        targets: (batch, time) ids or (batch, time, value) numbers: what the model should say.
        history: same shape: what the model is told it said; left out it is ``targets``: gold. Ids below 0 that pad the
            end of a row (-100) are then 0. A history that is the targets shifted by one is refused.
        mask: (batch, time) bool: positions that count in the loss; left out all do. What it leaves out may hold
            anything in targets, NaN too.
        context: source, prompt, covariates: the model's business. A pytree (tensors, tuples, lists, dicts)
            of batch-first tensors, or anything with ``.select(rows)``.
        weights: (batch, time) loss weights of 0 or more; default 1.
        eligible: (batch, time) bool: history entries that may be replaced; default: ``mask``.
        rows: (batch,) int64: the example's number in the optimizer step's global batch; default 0..batch-1.
            Randomness is a function of it, so that ranks and micro-batches do not matter; equal numbers draw alike.

    Raises:
        UserError: where shapes or types disagree, or values cannot be fed or learned; all problems at once.

    >>> Batch(torch.tensor([[3, 1, 0]]), mask=torch.tensor([[True, True, False]]))
    Batch(targets=(1, 3) ids on cpu, 2 of 3 counted)
    """

    targets: Tensor
    history: Tensor = _LEFT_OUT
    mask: Tensor = _LEFT_OUT
    context: Any = None
    weights: Tensor | None = None
    eligible: Tensor | None = None
    rows: Tensor | None = None

    # no id of the targets is above it; an upper bound in batches made from others
    largest: ClassVar[int] = -1

    def __post_init__(self) -> None:
        if problems := part_problems(self):
            raise UserError(problems)
        given: Any = self
        if given.mask is None:
            shape = self.targets.shape[:2]
            object.__setattr__(self, "mask", torch.ones(shape, dtype=torch.bool, device=self.targets.device))
        left_out = given.history is None
        if left_out:
            object.__setattr__(self, "history", self.targets)
        problems, largest, lowest = value_problems(self, left_out)
        problems += context_problems(self.context, self.size)
        if problems:
            raise UserError(problems)
        if left_out and lowest < 0 and self.is_discrete:  # padding that an embedding could not look up
            object.__setattr__(self, "history", self.targets.clamp_min(0))
        object.__setattr__(self, "largest", largest)

    def __repr__(self) -> str:
        kind = "ids" if self.is_discrete else str(self.targets.dtype).removeprefix("torch.")
        shown = [f"targets={tuple(self.targets.shape)} {kind} on {self.targets.device}"]
        if self.history is not self.targets:
            other = (self.history != self.targets).view(self.size, self.time, -1).any(-1) & self.mask
            shown.append(f"history differs at {int(other.sum())}")
        shown.append(f"{int(self.mask.sum())} of {self.mask.numel()} counted")
        if self.eligible is not None:
            shown.append(f"{int(self.eligible.sum())} eligible")
        if self.context is not None:
            shown.append(f"context={shape_of(self.context)}")
        shown += [name for name in ("weights", "rows") if getattr(self, name) is not None]
        return f"Batch({', '.join(shown)})"

    @property
    def size(self) -> int:
        """Number of rows."""
        return self.history.shape[0]

    @property
    def time(self) -> int:
        """Number of positions."""
        return self.history.shape[1]

    @property
    def is_discrete(self) -> bool:
        """True for ids, False for real-valued vectors."""
        return not self.targets.is_floating_point()

    @property
    def replaceable(self) -> Tensor:
        """(batch, time) bool: entries of the history that a roll-in may replace."""
        return self.mask if self.eligible is None else self.eligible

    @property
    def row_numbers(self) -> Tensor:
        """(batch,) int64: the rows' numbers in the global batch."""
        return torch.arange(self.size, device=self.history.device) if self.rows is None else self.rows

    def replace(self, **changes: Any) -> Batch:
        """The same batch with some fields changed, and looked at like a new one."""
        for name in changes:
            if name not in PARTS:
                near = nearest(name, PARTS)
                raise UserError(f"a Batch has no {name!r}: " + (f"did you mean {near}?" if near else ", ".join(PARTS)))
        if changes.keys() <= {"context", "rows"}:
            changed = self.made(**changes)
            if problems := part_problems(changed) + context_problems(changed.context, self.size):
                raise UserError(problems)
            return changed
        return Batch(**{name: changes.get(name, getattr(self, name)) for name in PARTS})

    def made(self, **changes: Any) -> Batch:
        """The same batch with some fields as a model or a method made them: their values are not looked at."""
        batch = object.__new__(Batch)
        for name in PARTS:
            object.__setattr__(batch, name, changes[name] if name in changes else getattr(self, name))
        object.__setattr__(batch, "largest", self.largest)
        return batch

    def select(self, rows: Tensor) -> Batch:
        """The rows asked for ((n,) int64), context included."""
        if not isinstance(rows, Tensor) or rows.dtype != torch.int64 or rows.dim() != 1:
            raise UserError(f"rows to select must be a tensor (n,) of int64; got {shape_of(rows)}")
        try:
            parts = {name: None if (part := getattr(self, name)) is None else part[rows] for name in PARTS[:3]}
        except IndexError:
            raise UserError(f"rows to select must lie in 0 to {self.size - 1}; got {rows.tolist()[:8]}") from None
        for name in ("weights", "eligible"):
            part = getattr(self, name)
            parts[name] = None if part is None else part[rows]
        return self.made(**parts, context=select_rows(self.context, rows), rows=self.row_numbers[rows])

    def to(self, device: torch.device | str) -> Batch:
        """The same batch on another device."""
        try:
            torch.device(device)
        except (RuntimeError, TypeError):
            raise UserError(f"a Batch moves to a device, such as 'cpu' or 'cuda:0'; got {device!r}") from None
        return self.made(**{name: to_device(getattr(self, name), device) for name in PARTS})


def select_rows(tree: Any, rows: Tensor) -> Any:
    """Rows of a context: tensors are indexed, containers walked, ``.select(rows)`` called where there is one.

    >>> select_rows({"x": torch.arange(6).view(3, 2)}, torch.tensor([2]))
    {'x': tensor([[4, 5]])}
    """
    if tree is None:
        return None
    if isinstance(tree, Tensor):
        return tree[rows]
    if hasattr(tree, "select"):
        return tree.select(rows)
    if isinstance(tree, Mapping):
        return {name: select_rows(part, rows) for name, part in tree.items()}
    if isinstance(tree, tuple | list):
        return _rebuilt(tree, [select_rows(part, rows) for part in tree])
    raise UserError(f"a context must hold batch-first tensors or have .select(rows); got {type(tree).__name__}")


def _rebuilt(like: Any, parts: list[Any]) -> Any:
    return type(like)(*parts) if hasattr(like, "_fields") else type(like)(parts)


def to_device(tree: Any, device: torch.device | str) -> Any:
    """A context on another device; objects with ``.to(device)`` move themselves."""
    if isinstance(tree, Mapping):
        return {name: to_device(part, device) for name, part in tree.items()}
    if isinstance(tree, tuple | list):
        return _rebuilt(tree, [to_device(part, device) for part in tree])
    return tree.to(device) if hasattr(tree, "to") else tree
