"""What is wrong with the tensors that a collator gave."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

__all__ = ["id_problems", "shape_problems"]


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
