"""Batch: what a model should say, what it is told, and the context; mistakes in it are refused by name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from freerun.errors import UserError

__all__ = ["Batch", "select_rows", "to_device"]


@dataclass(frozen=True, eq=False)
class Batch:
    """What a model should say, and what it is told it said before.

    ``outputs[:, t]`` of a model may depend on ``history[:, :t]`` and ``context`` only: history is *aligned*
    with targets, and the model does its own shift.

    Args:
        targets: (batch, time) ids or (batch, time, value) numbers: what the model should say.
        history: same shape: what the model is told it said; as given it is gold.
        mask: (batch, time) bool: positions that count in the loss.
        context: source, prompt, covariates: the model's business. A pytree (tensors, tuples, lists, dicts)
            of batch-first tensors, or anything with ``.select(rows)``.
        weights: (batch, time) loss weights; default 1.
        eligible: (batch, time) bool: history entries that may be replaced; default: ``mask``.
        rows: (batch,) int64: the example's number in the optimizer step's global batch; default 0..batch-1.
            Randomness is a function of it, so that ranks and micro-batches do not matter.

    Raises:
        UserError: where shapes or types disagree; all problems at once.

    >>> ids = torch.tensor([[3, 1, 0]])
    >>> batch = Batch(ids, ids, ids > 0)
    >>> batch.size, batch.time, batch.is_discrete
    (1, 3, True)
    """

    targets: Tensor
    history: Tensor
    mask: Tensor
    context: Any = None
    weights: Tensor | None = None
    eligible: Tensor | None = None
    rows: Tensor | None = None

    def __post_init__(self) -> None:
        problems = _shape_problems(self)
        if problems:
            raise UserError(problems)

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
        """The same batch with some fields changed."""
        return replace(self, **changes)

    def select(self, rows: Tensor) -> Batch:
        """The rows asked for ((n,) int64), context included."""
        return Batch(
            self.targets[rows],
            self.history[rows],
            self.mask[rows],
            context=select_rows(self.context, rows),
            weights=None if self.weights is None else self.weights[rows],
            eligible=None if self.eligible is None else self.eligible[rows],
            rows=self.row_numbers[rows],
        )

    def to(self, device: torch.device | str) -> Batch:
        """The same batch on another device."""
        return Batch(**{name: to_device(getattr(self, name), device) for name in Batch.__dataclass_fields__})


def _shape_problems(batch: Batch) -> list[str]:
    problems: list[str] = []
    shape = tuple(batch.targets.shape)
    if batch.targets.dim() not in (2, 3):
        problems.append(f"targets must be (batch, time) or (batch, time, value); got shape {shape}")
    if batch.targets.dim() == 3 and not batch.targets.is_floating_point():
        problems.append(
            f"targets are ids of shape {shape}: several streams of ids are not supported; give (batch, time)"
        )
    if batch.targets.dim() == 2 and batch.targets.is_floating_point():
        problems.append(
            f"targets are real numbers of shape {shape}; values need (batch, time, value): use .unsqueeze(-1)"
        )
    if not batch.targets.is_floating_point() and batch.targets.dtype != torch.int64:
        problems.append(f"ids must be int64; targets are {batch.targets.dtype}: use targets.long()")
    if batch.targets.dtype != batch.history.dtype:
        problems.append(f"history must be of the targets' type {batch.targets.dtype}; got {batch.history.dtype}")
    if tuple(batch.history.shape) != shape:
        problems.append(f"history must be aligned with targets {shape}; got {tuple(batch.history.shape)}")
    for name in ("mask", "weights", "eligible"):
        part = getattr(batch, name)
        if part is None:
            continue
        if tuple(part.shape) != shape[:2]:
            problems.append(f"{name} must be (batch, time) = {shape[:2]}; got {tuple(part.shape)}")
        if name != "weights" and part.dtype != torch.bool:
            problems.append(f"{name} must be bool; got {part.dtype}: use {name}.bool()")
    if batch.rows is not None and tuple(batch.rows.shape) != shape[:1]:
        problems.append(f"rows must be (batch,) = {shape[:1]}; got {tuple(batch.rows.shape)}")
    return problems


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
