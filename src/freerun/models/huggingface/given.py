"""What is wrong with the tensors that a collator gave."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

__all__ = ["id_problems", "row_problems", "shape_problems", "two_dimensional"]


def shape_problems(given: Mapping[str, Any], shape: torch.Size, names: tuple[str, ...]) -> list[str]:
    """The arguments among ``names`` that are not of a shape, or whose type is not whole numbers."""
    problems: list[str] = []
    for name in names:
        value = given.get(name)
        if value is None:
            continue
        if not isinstance(value, Tensor):
            problems.append(f"{name} must be a tensor; got {type(value).__name__}")
        elif value.shape != shape:
            more = ": a mask of four dimensions cannot be read back" if value.dim() == 4 else ""
            problems.append(f"{name} must have the ids' shape {tuple(shape)}; got {tuple(value.shape)}{more}")
    return problems


def row_problems(rows: Any, replaceable: Any, shape: torch.Size) -> list[str]:
    """What is wrong with the rows' numbers and with what may be replaced."""
    problems: list[str] = []
    if rows is not None and (not isinstance(rows, Tensor) or rows.shape != shape[:1]):
        problems.append(f"rows must be a tensor of {shape[0]} numbers, one for each row; got {_said(rows)}")
    if replaceable is not None and (not isinstance(replaceable, Tensor) or replaceable.shape != shape):
        problems.append(f"replaceable must be (batch, time) = {tuple(shape)}; got {_said(replaceable)}")
    elif replaceable is not None and replaceable.dtype != torch.bool:
        problems.append(f"replaceable must be bool; got {replaceable.dtype}: use replaceable.bool()")
    return problems


def two_dimensional(name: str, ids: Any) -> list[str]:
    """What is wrong with something that must be (batch, time) and hold anything at all."""
    if isinstance(ids, Tensor) and ids.dim() == 2 and ids.numel():
        return []
    return [
        f"{name} must be a tensor (batch, time) with at least one token; got {_said(ids)}: does the collator "
        "return tensors (return_tensors='pt')?"
    ]


def _said(value: Any) -> str:
    return f"a tensor {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__


def id_problems(name: str, ids: Tensor | None, vocab: int) -> list[str]:
    """Ids outside the vocabulary; -100 is no id."""
    if ids is None or ids.numel() == 0:
        return []
    if ids.is_floating_point():
        return [f"{name} must be whole numbers; got {ids.dtype}"]
    wrong = (ids >= vocab) | ((ids < 0) & (ids != -100 if name == "labels" else ids < 0))
    if not bool(wrong.any()):
        return []
    return [
        f"{name} holds {int(ids[wrong][0])}, and the model has {vocab} symbols (ids 0 to {vocab - 1}): is this the "
        "model's own tokenizer? If it is larger, model.resize_token_embeddings(len(tokenizer))"
    ]
