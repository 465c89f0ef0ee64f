"""Batch, Outcome and the protocols that the rest of the library speaks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from freerun.errors import UserError, whole

__all__ = [
    "Batch", "Cached", "Detachable", "Embedder", "Encoder", "Model", "Outcome", "Reader", "Split", "Step", "Stepper",
    "select_rows", "step_number", "to_device",
]  # fmt: skip


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


class Step(int):
    """An optimizer step that also knows how many samples and epochs are behind it.

    It is an ``int`` and can be passed wherever a step is asked for; schedules whose unit is ``"sample"`` or
    ``"epoch"`` need it.

    >>> step = Step(100, sample=3200, epoch=1.6)
    >>> step + 1, step.epoch
    (101, 1.6)
    """

    sample: int | None
    epoch: float | None

    def __new__(cls, step: int, *, sample: int | None = None, epoch: float | None = None) -> Step:
        """A step with its sample and epoch."""
        self = super().__new__(cls, step)
        self.sample = sample
        self.epoch = epoch
        return self


def step_number(step: Any) -> int:
    """The optimizer step from an argument: a whole number from 0 to 2**63 - 1, of whatever integer type.

    Raises:
        UserError: none, or another value.

    >>> step_number(torch.tensor(3)), step_number(Step(4, epoch=0.5)).epoch
    (3, 0.5)
    """
    if step is None:
        raise UserError(
            "step is missing: pass the number of the optimizer step, method(model, batch, step=step). Without it a "
            "schedule would stand still, and the same random choices would come at every call"
        )
    number = step if isinstance(step, Step) else whole(step)
    if number is None or not 0 <= number < 2**63:
        raise UserError(f"step must be the number of the optimizer step, a whole number from 0 on; got {step!r}")
    return number


@dataclass(frozen=True, eq=False)
class Outcome:
    """What one step of a method gives.

    Args:
        total: scalar, differentiable: the summed loss over the positions that count.
        count: scalar: what total is divided by; sums over micro-batches and ranks make a mean exact.
        outputs: (batch, time, vocab) or (batch, time, value): what the model said, with graph.
        fed: the batch that was fed: its ``history`` is what the model was told.
        report: numbers about the step: entries ``eligible``, ``replaced`` and ``disagreeing`` (replaced and
            different from gold), ``passes`` (extra model calls or stepped positions) and so on.
    """

    total: Tensor
    count: Tensor
    outputs: Tensor
    fed: Batch
    report: Mapping[str, float | str] = field(default_factory=dict)

    @property
    def loss(self) -> Tensor:
        """total / count; 0 where nothing counts."""
        return self.total / torch.where(self.count == 0, 1, self.count)


Model = Callable[[Batch], Tensor]


@runtime_checkable
class Encoder(Protocol):
    """A model that can encode a batch's context once.

    ``encode(batch)`` gives the batch with an encoded context, and the model (and ``start``) take such a batch
    without encoding again. Roll-in and training share one encoding only where no submodule behaves otherwise
    in training than in evaluation.
    """

    def encode(self, batch: Batch) -> Batch: ...


@runtime_checkable
class Stepper(Protocol):
    """A model that can go on position by position; it makes roll-ins cheaper, never different.

    ``output(start(batch))`` predicts position 0 (the start symbol is the model's business), and
    ``output(step(state, embed(history[:, t])))`` position t+1: equal to the parallel pass. ``embed`` takes
    entries of any leading shape. ``output(state, rows)`` computes only the rows asked for (None: all).
    States are never changed in place; ``select(state, rows)`` picks, repeats or drops rows.
    """

    def start(self, batch: Batch) -> Any: ...
    def embed(self, entries: Tensor) -> Tensor: ...
    def step(self, state: Any, inputs: Tensor) -> Any: ...
    def output(self, state: Any, rows: Tensor | None = None) -> Tensor: ...
    def select(self, state: Any, rows: Tensor) -> Any: ...


@runtime_checkable
class Reader(Stepper, Protocol):
    """A Stepper of which ``read(state, inputs)`` is n steps: inputs (rows, n, ...) as ``embed`` gave them."""

    def read(self, state: Any, inputs: Tensor) -> Any: ...


@runtime_checkable
class Detachable(Stepper, Protocol):
    """A Stepper whose past can be let go: ``detach(state)`` is the same state, through which no gradient reaches it.

    The gradient to weights that are used from there on stays.
    """

    def detach(self, state: Any) -> Any: ...


@runtime_checkable
class Split(Protocol):
    """A model whose ``model(batch)`` is ``head(hidden(batch))``, so that few positions can reach the vocabulary."""

    def hidden(self, batch: Batch) -> Tensor: ...
    def head(self, hidden: Tensor) -> Tensor: ...


@runtime_checkable
class Cached(Stepper, Protocol):
    """A Stepper that remembers what it has read, so that several entries can be read at once, at each row's own place.

    ``advance(state, inputs, counts)`` reads the next ``counts[r]`` entries of every row r: ``inputs`` is
    (sum of counts, width) as ``embed`` gave them, row after row; it gives the state and the hidden vectors
    (sum of counts, size), of which the one after history entry t predicts position t+1 through ``head``.
    ``crop(state, lengths)`` takes back what was read beyond ``lengths[r]`` entries; the state given, and those it came
    from, are used up by it: to go on from them as well, ``select`` all rows first, which copies.
    """

    def head(self, hidden: Tensor) -> Tensor: ...
    def advance(self, state: Any, inputs: Tensor, counts: Tensor) -> tuple[Any, Tensor]: ...
    def crop(self, state: Any, lengths: Tensor) -> Any: ...


@runtime_checkable
class Embedder(Protocol):
    """A model whose history can be given as vectors, so that mixtures of symbols can be fed.

    ``lookup(entries)``: ids (...) -> (..., width), what a symbol is looked up as, scaling included, positions and
    dropout excluded. ``outputs_from(batch, vectors)`` is ``model(batch)`` with ``lookup(history)`` replaced by
    (batch, time, width) vectors: ``outputs_from(b, lookup(b.history))`` equals ``model(b)``.
    """

    def lookup(self, entries: Tensor) -> Tensor: ...
    def outputs_from(self, batch: Batch, vectors: Tensor) -> Tensor: ...
