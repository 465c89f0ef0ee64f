"""Batch: targets, history and context of a model, checked once."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from freerun.arguments import Arguments, nearest
from freerun.errors import UserError, refuse

PARTS = ("targets", "history", "mask", "context", "weights", "eligible", "rows", "present")
PER_POSITION = ("mask", "weights", "eligible", "present")
"""Parts that are cut with the positions, beside targets and history."""
_DEEPEST = 64  # levels of a context
_SMALLEST = 1.2e-38  # below, float32 keeps few digits
_ENOUGH = 4  # so many positions equal to their neighbours are no accident: the history is shifted


def shape_of(value: Any) -> str:
    """Describe a part: shape and type of a tensor, the parts of a container.

    >>> shape_of({"source": torch.zeros(2, 3)})
    '{source: (2, 3) float32}'
    """
    if isinstance(value, Tensor):
        return f"{tuple(value.shape)} {str(value.dtype).removeprefix('torch.')}"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{name}: {shape_of(part)}" for name, part in list(value.items())[:8]) + "}"
    return type(value).__name__


def must_be(shape: str, kind: str, **arguments: Any) -> None:
    """Refuse arguments that are not tensors of a shape and kind, by name.

    Args:
        shape: names of the dimensions, such as "batch, time"; "": any.
        kind: "bool", "int64" or "real" (floating point).
        arguments: by name.

    >>> must_be("batch, time", "bool", mask=torch.zeros(2, 3))
    Traceback (most recent call last):
    freerun.errors.UserError: mask must be a bool tensor (batch, time); got (2, 3) float32
    """
    fits = {"bool": lambda x: x.dtype == torch.bool, "int64": lambda x: x.dtype == torch.int64}
    right: Any = fits.get(kind, torch.is_floating_point)
    dims = len(shape.split(",")) if shape else None
    dimensions = f" ({shape})" if shape else ""
    problems = [
        f"{name} must be a {kind} tensor{dimensions}; got {shape_of(part)}"
        for name, part in arguments.items()
        if not isinstance(part, Tensor) or part.dim() != (part.dim() if dims is None else dims) or not right(part)
    ]
    refuse(problems)


def part_problems(batch: Any) -> list[str]:
    """Wrong types, shapes and devices of the parts, a line each."""
    targets = batch.targets
    if not isinstance(targets, Tensor):
        return [_no_tensor("targets", targets)]
    if odd := [f"{name} must be an ordinary dense tensor; got {how}" for name in PARTS if (how := _odd(batch, name))]:
        return odd
    problems = _target_problems(targets)
    for name in ("history", "rows", *PER_POSITION):
        part = getattr(batch, name)
        if part is None:
            continue
        if not isinstance(part, Tensor):
            problems.append(_no_tensor(name, part))
            continue
        problems += _fitting(name, part, targets)
        if part.device != targets.device:
            problems.append(f"{name} lies on {part.device}, and targets on {targets.device}: use {name}.to(...)")
    return problems


def _odd(batch: Any, name: str) -> str:
    part = getattr(batch, name)
    if not isinstance(part, Tensor):
        return ""
    if part.is_nested or part.layout != torch.strided:
        return "a nested one: pad it" if part.is_nested else f"{part.layout}: use .to_dense()"
    return "one on the meta device, which holds no numbers" if name == "targets" and part.is_meta else ""


def _no_tensor(name: str, part: Any) -> str:
    if type(part).__name__ == "Batch":
        return f"{name} is a Batch already: pass it on as it is, or its {name}"
    if part is None:
        return f"{name} must be a tensor (batch, time) or (batch, time, value); got None"
    how = f"use torch.as_tensor({name})" if type(part).__name__ in ("ndarray", "list", "tuple") else "give a tensor"
    return f"{name} must be a tensor; got {type(part).__name__}: {how}"


def _target_problems(targets: Tensor) -> list[str]:
    shape, dtype = tuple(targets.shape), targets.dtype
    real = dtype.is_floating_point
    problems: list[str] = []
    if dtype.is_complex or dtype == torch.bool:
        problems.append(f"targets must be int64 ids or real numbers; got {dtype}")
    elif not real and dtype != torch.int64:
        problems.append(f"ids must be int64; targets are {dtype}: use targets.long()")
    if targets.dim() not in (2, 3):
        problems.append(f"targets must be (batch, time) or (batch, time, value); got shape {shape}")
    elif targets.dim() == 3 and not real:
        problems.append(
            f"targets are ids of shape {shape}: several streams of ids are not supported; give (batch, time)"
        )
    elif targets.dim() == 2 and real:
        problems.append(
            f"targets are real numbers of shape {shape}; values need (batch, time, value): use .unsqueeze(-1), or "
            "targets.long() where they are ids"
        )
    empty = [name for name, size in zip(("batch", "time", "value"), shape, strict=False) if size == 0]
    if empty:
        problems.append(f"targets of shape {shape} hold nothing: {' and '.join(empty)} must be at least 1")
    return problems


def _fitting(name: str, part: Tensor, targets: Tensor) -> list[str]:
    shape, got, problems = tuple(targets.shape), tuple(part.shape), list[str]()
    if name == "history":
        if part.dtype != targets.dtype:
            meant = ": for the mask use mask=" if part.dtype == torch.bool else ""
            problems.append(f"history must be of the targets' type {targets.dtype}; got {part.dtype}{meant}")
        if got != shape:
            problems.append(f"history must be aligned with targets {shape}; got {got}")
        return problems
    if name == "present" and not targets.is_floating_point():
        return ["present is of values, and targets are ids: leave out positions with mask"]
    expected = {"rows": shape[:1], "present": shape}.get(name, shape[:2])
    if got != expected:
        words = {"rows": "batch,", "present": "batch, time, value"}.get(name, "batch, time")
        channels = ": a mask by channel is present=" if name == "mask" and got == shape else ""
        problems.append(f"{name} must be ({words}) = {expected}; got {got}{channels}")
    if name == "weights":
        fine, rule = part.dtype.is_floating_point, f"real numbers; got {part.dtype}: use weights.float()"
    elif name == "rows":
        fine, rule = part.dtype == torch.int64, f"int64; got {part.dtype}: use rows.long()"
    else:
        fine, rule = part.dtype == torch.bool, f"bool; got {part.dtype}: use {name}.bool()"
    return problems if fine else [*problems, f"{name} must be {rule}"]


def context_problems(tree: Any, size: int, path: str = "context", depth: int = 0) -> list[str]:
    """Parts of a context whose first dimension is not the batch, or that have no rows at all."""
    if depth > _DEEPEST:
        return [f"{path[:40]}... is nested more than {_DEEPEST} deep, or holds itself: give tensors by name"]
    if tree is None or (hasattr(tree, "select") and not isinstance(tree, Tensor)):
        return []
    if isinstance(tree, Tensor):
        if tree.dim() and tree.shape[0] == size:
            return []
        turned = tree.dim() > 1 and tree.shape[1] == size
        how = ": its second one is, so use .transpose(0, 1)" if turned else ""
        return [f"{path} must be batch first, ({size}, ...); got {tuple(tree.shape)}{how}"]
    if isinstance(tree, Mapping):
        parts = [(f"{path}[{name!r}]", part) for name, part in tree.items()]
        return [line for inner, part in parts for line in context_problems(part, size, inner, depth + 1)]
    if isinstance(tree, tuple | list):
        return context_problems(dict(enumerate(tree)), size, path, depth)
    return [
        f"{path} must be a tensor, batch first, or have .select(rows); got {type(tree).__name__}: what is the same for "
        "all rows is the model's own, not the batch's"
    ]


def context_not_finite(tree: Any, path: str = "context", depth: int = 0) -> str | None:
    """The first part of a context that holds NaN or infinity, in words; None if none does."""
    if isinstance(tree, Tensor):
        wrong = int((~tree.isfinite()).sum()) if tree.is_floating_point() else 0
        return f"{path} holds NaN or infinity at {wrong} of {tree.numel()} numbers" if wrong else None
    if isinstance(tree, tuple | list):
        tree = dict(enumerate(tree))
    if not isinstance(tree, Mapping) or depth > _DEEPEST:
        return None
    found = (context_not_finite(part, f"{path}[{name!r}]", depth + 1) for name, part in tree.items())
    return next(filter(None, found), None)


def value_problems(batch: Any, left_out: bool) -> tuple[list[str], int, int]:
    """Values that cannot be fed or learned, a line each; and the largest and the least id of the targets (values: -1).

    All is read together, which on an accelerator is one transfer; more is computed only where something is odd.
    ``batch`` is complete, its shapes and types in order; ``left_out``: the history was, and is the targets.
    """
    read = _read_values(batch)
    problems: list[str] = []
    if read.get("lowest", 0) < 0 or read.get("fed", 0) < 0:
        problems += _negative(batch, left_out)
    if not math.isfinite(read.get("finite", 0.0)):  # a sum may overflow all the same
        problems += _not_finite(batch)
    if not read.get("weights", 1):
        wrong = batch.weights[batch.mask & ~_fair(batch.weights)]
        problems.append(
            f"weights must be finite numbers of 0 or more, none between 0 and {_SMALLEST:g}, where mask is True; "
            f"{wrong.numel()} are not, the first {float(wrong[0]):g}"
        )
    if not read.get("rows", 1):
        problems.append(f"rows are numbers of examples, 0 or more; the least is {int(batch.rows.min())}")
    return problems + _shifted(batch, read), int(read.get("largest", -1)), int(read.get("lowest", -1))


def _read_values(batch: Any) -> dict[str, Any]:
    targets, history, mask = batch.targets, batch.history, batch.mask
    here = targets.device.type == "cpu"
    if here and history is not targets and torch.equal(history, targets):
        history = targets
    sums: dict[str, Tensor] = {}
    if targets.is_floating_point():
        total = targets.detach().sum()
        sums["finite"] = total if history is targets else total + history.detach().sum()
    else:
        sums["lowest"], sums["largest"] = torch.aminmax(targets)
        if history is not targets:
            sums["fed"] = history.min()
    if batch.weights is not None:
        sums["weights"] = (_fair(batch.weights) | ~mask).all()
    if batch.rows is not None:
        sums["rows"] = (batch.rows >= 0).all()
    if history is not targets and targets.shape[1] > 1:
        alone = ~(mask[:, 1:] & mask[:, :-1])
        sums["behind"] = (_equal(history[:, 1:], targets[:, :-1]) | alone).all()
        sums["ahead"] = (_equal(history[:, :-1], targets[:, 1:]) | alone).all()
    if here:
        return {name: each.item() for name, each in sums.items()}
    return dict(zip(sums, torch.stack([each.double() for each in sums.values()]).tolist(), strict=True))


def _equal(a: Tensor, b: Tensor) -> Tensor:
    return a == b if a.dim() == 2 else (a == b).all(-1)


def _fair(weights: Tensor) -> Tensor:
    return ((weights == 0) | (weights >= _SMALLEST)) & (weights < math.inf)


def _negative(batch: Any, left_out: bool) -> list[str]:
    targets, history, mask = batch.targets, batch.history, batch.mask
    counted, problems = (targets < 0) & mask, list[str]()
    if number := int(counted.sum()):
        value = int(targets[counted][0])
        problems.append(
            f"targets hold {value} at {number} positions that count, and ids begin at 0: leave them out with "
            f"mask=targets != {value}"
        )
    if left_out:
        # after a row's last position that counts nothing is predicted from an entry
        fed = (targets < 0) & ~mask & mask.flip(1).cummax(1).values.flip(1)
        if number := int(fed.sum()):
            problems.append(
                f"targets hold {int(targets[fed][0])} at {number} masked positions before some that count, and history "
                "was left out: give the history that is fed there (the prompt's ids)"
            )
    elif number := int((history < 0).sum()):
        problems.append(
            f"history holds {int(history.min())} at {number} entries, and a model looks up masked ones too: put any "
            "valid id there, or leave history out and pass mask"
        )
    return problems


def _not_finite(batch: Any) -> list[str]:
    problems: list[str] = []
    present = True if batch.present is None else batch.present
    missing = "" if batch.present is not None else "; where single values are missing, pass present=targets.isfinite()"
    for name, where, how in (
        ("targets", batch.mask[..., None] & present, f"leave them out with mask, or fill them{missing}"),
        (
            "history",
            (batch.mask | batch.replaceable)[..., None] & (~batch.replaceable[..., None] | present),
            f"fill them, or set mask and eligible to False there{missing}",
        ),
    ):
        number = int((~getattr(batch, name).isfinite() & where).any(-1).sum())
        if number and not (problems and batch.history is batch.targets):
            problems.append(f"{name} hold NaN or infinity at {number} positions that count: {how}")
    return problems


def _shifted(batch: Any, read: Mapping[str, Any]) -> list[str]:
    """True if the history is the targets one position later, or earlier, wherever that can be seen."""
    moved = next((name for name in ("behind", "ahead") if read.get(name)), None)
    if moved is None:
        return []
    pairs = batch.mask[:, 1:] & batch.mask[:, :-1] & ~_equal(batch.targets[:, 1:], batch.targets[:, :-1])
    if int(pairs.sum()) < _ENOUGH:
        return []
    how = "t-1" if moved == "behind" else "t+1"
    return [
        f"history is the targets shifted by one (history[:, t] is targets[:, {how}]): do not shift, the model does: "
        "leave history out, or pass history=targets. Of a pair trg[:, :-1], trg[:, 1:] the targets are trg[:, 1:]"
    ]


_LEFT_OUT: Any = None


@dataclass(frozen=True, eq=False, repr=False)
class Batch(Arguments):
    """Reference outputs, the history fed to the decoder, and what else a model reads.

    ``outputs[:, t]`` of a model may depend on ``history[:, :t]`` and ``context`` only: history is *aligned*
    with targets, and the model does its own shift.

    Args:
        targets: (batch, time) ids or (batch, time, value) numbers: the reference outputs.
        history: same shape: previous outputs fed to the decoder; left out it is ``targets``: gold. Ids below 0 that pad
            the end of a row (-100) are then 0. A history that is the targets shifted by one is refused.
        mask: (batch, time) bool: positions that count in the loss; left out all do. What it leaves out may hold
            anything in targets, NaN too.
        context: source, prompt, covariates: the model's business. A pytree (tensors, tuples, lists, dicts)
            of batch-first tensors, or anything with ``.select(rows)``.
        weights: (batch, time) loss weights of 0 or more; default 1.
        eligible: (batch, time) bool: history entries that may be replaced; default: ``mask``.
        rows: (batch,) int64: the example's number in the optimizer step's global batch; default 0..batch-1.
            Randomness is a function of it, so that ranks and micro-batches do not matter; equal numbers draw the same.
        present: (batch, time, value) bool, of values: those of the targets that are there; default: all. A missing one
            counts in no loss or score, and where it would be fed as gold, in an entry that may be replaced, the model's
            own output is. What targets and history hold there does not matter: it becomes NaN.

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
    present: Tensor | None = None

    # no id of the targets is above it; an upper bound in batches made from others
    largest: ClassVar[int] = -1
    # (batch, time) bool: entries that a method replaced, by gold's equal too; None: it is not known, or none
    replaced: ClassVar[Tensor | None] = None

    def __post_init__(self) -> None:
        refuse(part_problems(self))
        parts: Any = self
        if parts.mask is None:
            shape = self.targets.shape[:2]
            object.__setattr__(self, "mask", torch.ones(shape, dtype=torch.bool, device=self.targets.device))
        left_out = parts.history is None
        if left_out:
            object.__setattr__(self, "history", self.targets)
        if parts.present is not None:
            self._leave_out(parts.present)
        problems, largest, lowest = value_problems(self, left_out)
        problems += context_problems(self.context, self.size)
        refuse(problems)
        if left_out and lowest < 0 and self.is_discrete:  # padding that an embedding could not look up
            object.__setattr__(self, "history", self.targets.clamp_min(0))
        object.__setattr__(self, "largest", largest)

    def _leave_out(self, present: Tensor) -> None:
        """Values that are missing are NaN in the targets, and where they may be replaced in the history; a position
        without any does not count."""
        eligible = self.replaceable
        missing = ~present & eligible[..., None]
        object.__setattr__(self, "history", self.history.masked_fill(missing, math.nan))
        object.__setattr__(self, "targets", self.targets.masked_fill(~present, math.nan))
        object.__setattr__(self, "eligible", eligible)
        object.__setattr__(self, "mask", self.mask & present.any(-1))

    def __repr__(self) -> str:
        kind = "ids" if self.is_discrete else str(self.targets.dtype).removeprefix("torch.")
        parts = [f"targets={tuple(self.targets.shape)} {kind} on {self.targets.device}"]
        if self.history is not self.targets:
            other = (self.history != self.targets).view(self.size, self.time, -1).any(-1) & self.mask
            parts.append(f"history differs at {int(other.sum())}")
        parts.append(f"{int(self.mask.sum())} of {self.mask.numel()} counted")
        if self.eligible is not None:
            parts.append(f"{int(self.eligible.sum())} eligible")
        if self.present is not None:
            parts.append(f"{int((~self.present).sum())} values missing")
        if self.context is not None:
            parts.append(f"context={shape_of(self.context)}")
        parts += [name for name in ("weights", "rows") if getattr(self, name) is not None]
        return f"Batch({', '.join(parts)})"

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
    def missing(self) -> Tensor | None:
        """(batch, time, value) bool: values that the history still lacks, and the model's own output stands in for;
        None where it lacks none."""
        if self.present is None:
            return None
        lacking = ~self.present & self.replaceable[..., None] & self.history.isnan()
        return lacking if bool(lacking.any()) else None

    @property
    def row_numbers(self) -> Tensor:
        """(batch,) int64: the rows' numbers in the global batch."""
        return torch.arange(len(self.history), device=self.history.device) if self.rows is None else self.rows

    def replace(self, **changes: Any) -> Batch:
        """Return the batch with some fields changed, and checked like a new one."""
        for name in changes:
            if name not in PARTS:
                near = nearest(name, PARTS)
                raise UserError(f"a Batch has no {name!r}: " + (f"did you mean {near}?" if near else ", ".join(PARTS)))
        if changes.keys() <= {"context", "rows"}:
            changed = self.made(**changes)
            refuse(part_problems(changed) + context_problems(changed.context, self.size))
            return changed
        return Batch(**{name: changes.get(name, getattr(self, name)) for name in PARTS})

    def made(self, **changes: Any) -> Batch:
        """Return the batch with some fields as a model or a method made them: their values are not checked."""
        batch = object.__new__(Batch)
        for name in PARTS:
            object.__setattr__(batch, name, changes[name] if name in changes else getattr(self, name))
        object.__setattr__(batch, "largest", self.largest)
        object.__setattr__(batch, "replaced", changes.get("replaced", self.replaced))
        return batch

    def select(self, rows: Tensor) -> Batch:
        """Return some rows ((n,) int64), context included."""
        if not isinstance(rows, Tensor) or rows.dtype != torch.int64 or rows.dim() != 1:
            raise UserError(f"rows to select must be a tensor (n,) of int64; got {shape_of(rows)}")
        names = ("targets", "history", *PER_POSITION)
        try:
            parts = {name: None if (part := getattr(self, name)) is None else part[rows] for name in names}
        except IndexError:
            raise UserError(f"rows to select must lie in 0 to {self.size - 1}; got {rows.tolist()[:8]}") from None
        replaced = None if self.replaced is None else self.replaced[rows]
        context = select_rows(self.context, rows)
        return self.made(**parts, context=context, rows=self.row_numbers[rows], replaced=replaced)

    def to(self, device: torch.device | str) -> Batch:
        """Return the batch on another device."""
        try:
            torch.device(device)
        except (RuntimeError, TypeError):
            raise UserError(f"a Batch moves to a device, such as 'cpu' or 'cuda:0'; got {device!r}") from None
        return self.made(**{name: to_device(getattr(self, name), device) for name in (*PARTS, "replaced")})


def select_rows(tree: Any, rows: Tensor) -> Any:
    """Return rows of a context: tensors are indexed, containers walked, ``.select(rows)`` called where there is one.

    >>> select_rows({"x": torch.arange(6).view(3, 2)}, torch.tensor([2]))
    {'x': tensor([[4, 5]])}
    """

    def selected(leaf: Any) -> Any:
        if isinstance(leaf, Tensor):
            return leaf[rows]
        if leaf is None or hasattr(leaf, "select"):
            return None if leaf is None else leaf.select(rows)
        raise UserError(f"a context must hold batch-first tensors or have .select(rows); got {type(leaf).__name__}")

    return map_leaves(tree, selected)


def to_device(tree: Any, device: torch.device | str) -> Any:
    """Return a context on another device; objects with ``.to(device)`` move themselves."""
    return map_leaves(tree, lambda leaf: leaf.to(device) if hasattr(leaf, "to") else leaf)


def map_leaves(tree: Any, change: Callable[[Any], Any]) -> Any:
    """Return a tree of mappings, tuples and lists with its leaves changed; what has ``.select`` is a leaf.

    >>> map_leaves({"x": (1, [2])}, lambda leaf: 10 * leaf)
    {'x': (10, [20])}
    """
    if isinstance(tree, Mapping) and not hasattr(tree, "select"):
        return {name: map_leaves(part, change) for name, part in tree.items()}
    if isinstance(tree, tuple | list):
        parts = [map_leaves(part, change) for part in tree]
        return type(tree)(*parts) if hasattr(tree, "_fields") else type(tree)(parts)
    return change(tree)
