"""What is wrong with the parts of a Batch: types and shapes, the context's rows, and values that cannot be fed."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from freerun.errors import UserError

__all__ = ["PARTS", "context_problems", "must_be", "part_problems", "shape_of", "value_problems"]

PARTS = ("targets", "history", "mask", "context", "weights", "eligible", "rows")
_PER_POSITION = ("mask", "weights", "eligible")
_DEEPEST = 64
_SMALLEST = 1.2e-38  # below, float32 keeps few digits
_ENOUGH = 4  # positions that tell a shifted history from an aligned one, before it is taken for no accident


def shape_of(value: Any) -> str:
    """What a part is, in a few words: shape and type of a tensor, the parts of a container.

    >>> shape_of({"source": torch.zeros(2, 3)})
    '{source: (2, 3) float32}'
    """
    if isinstance(value, Tensor):
        return f"{tuple(value.shape)} {str(value.dtype).removeprefix('torch.')}"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{name}: {shape_of(part)}" for name, part in list(value.items())[:8]) + "}"
    return type(value).__name__


def must_be(shape: str, kind: str, **given: Any) -> None:
    """Refuse arguments that are not tensors of a shape and kind, by name.

    Args:
        shape: names of the dimensions, such as "batch, time"; "": any.
        kind: "bool", "int64" or "real" (floating point).
        given: the arguments.

    >>> must_be("batch, time", "bool", mask=torch.zeros(2, 3))
    Traceback (most recent call last):
    freerun.errors.UserError: mask must be a bool tensor (batch, time); got (2, 3) float32
    """
    fits = {"bool": lambda x: x.dtype == torch.bool, "int64": lambda x: x.dtype == torch.int64}
    right: Any = fits.get(kind, torch.is_floating_point)
    dims = len(shape.split(",")) if shape else None
    shown = f" ({shape})" if shape else ""
    problems = [
        f"{name} must be a {kind} tensor{shown}; got {shape_of(part)}"
        for name, part in given.items()
        if not isinstance(part, Tensor) or part.dim() != (part.dim() if dims is None else dims) or not right(part)
    ]
    if problems:
        raise UserError(problems)


def part_problems(batch: Any) -> list[str]:
    """Wrong types, shapes and devices of the parts, a line each."""
    targets = batch.targets
    if not isinstance(targets, Tensor):
        return [_no_tensor("targets", targets)]
    if odd := [f"{name} must be an ordinary dense tensor; got {how}" for name in PARTS if (how := _odd(batch, name))]:
        return odd
    problems = _target_problems(targets)
    for name in ("history", "rows", *_PER_POSITION):
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
    wanted = shape[:1] if name == "rows" else shape[:2]
    if got != wanted:
        problems.append(f"{name} must be ({'batch,' if name == 'rows' else 'batch, time'}) = {wanted}; got {got}")
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


def value_problems(batch: Any, left_out: bool) -> tuple[list[str], int, int]:
    """Values that cannot be fed or learned, a line each; and the largest and the least id of the targets (values: -1).

    All is looked at together, which on an accelerator is one transfer; more is asked only where something is odd.

    Args:
        batch: complete, its shapes and types in order.
        left_out: whether the history was, and is the targets.
    """
    found = _looked_at(batch)
    problems: list[str] = []
    if found.get("lowest", 0) < 0 or found.get("fed", 0) < 0:
        problems += _negative(batch, left_out)
    if not math.isfinite(found.get("finite", 0.0)):  # a sum may overflow all the same
        problems += _not_finite(batch)
    if not found.get("weights", 1):
        wrong = batch.weights[batch.mask & ~_fair(batch.weights)]
        problems.append(
            f"weights must be finite numbers of 0 or more, none between 0 and {_SMALLEST:g}, where mask is True; "
            f"{wrong.numel()} are not, the first {float(wrong[0]):g}"
        )
    if not found.get("rows", 1):
        problems.append(f"rows are numbers of examples, 0 or more; the least is {int(batch.rows.min())}")
    return problems + _shifted(batch, found), int(found.get("largest", -1)), int(found.get("lowest", -1))


def _looked_at(batch: Any) -> dict[str, Any]:
    targets, history, mask = batch.targets, batch.history, batch.mask
    here = targets.device.type == "cpu"
    if here and history is not targets and torch.equal(history, targets):
        history = targets
    asked: dict[str, Tensor] = {}
    if targets.is_floating_point():
        total = targets.detach().sum()
        asked["finite"] = total if history is targets else total + history.detach().sum()
    else:
        asked["lowest"], asked["largest"] = torch.aminmax(targets)
        if history is not targets:
            asked["fed"] = history.min()
    if batch.weights is not None:
        asked["weights"] = (_fair(batch.weights) | ~mask).all()
    if batch.rows is not None:
        asked["rows"] = (batch.rows >= 0).all()
    if history is not targets and targets.shape[1] > 1:
        alone = ~(mask[:, 1:] & mask[:, :-1])
        asked["behind"] = (_equal(history[:, 1:], targets[:, :-1]) | alone).all()
        asked["ahead"] = (_equal(history[:, :-1], targets[:, 1:]) | alone).all()
    if here:
        return {name: each.item() for name, each in asked.items()}
    return dict(zip(asked, torch.stack([each.double() for each in asked.values()]).tolist(), strict=True))


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
    for name, where, how in (
        ("targets", batch.mask, "leave them out with mask, or fill them"),
        ("history", batch.mask | batch.replaceable, "fill them, or set mask and eligible to False there"),
    ):
        number = int((~getattr(batch, name).isfinite().all(-1) & where).sum())
        if number and not (problems and batch.history is batch.targets):
            problems.append(f"{name} hold NaN or infinity at {number} positions that count: {how}")
    return problems


def _shifted(batch: Any, found: Mapping[str, Any]) -> list[str]:
    """Whether the history is the targets one position later, or earlier, wherever it could be seen."""
    moved = next((name for name in ("behind", "ahead") if found.get(name)), None)
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
