"""What a Hugging Face model is told besides its history, and how a batch lies in what it was made from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from freerun.batch import Batch
from freerun.errors import UserError


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


@dataclass(frozen=True, eq=False)
class Layout:
    """Where the entries of a batch come from.

    Args:
        given: the keyword arguments that the batch was made from.
        places: (rows, time) int64: the place of every history entry among the flattened ids that were given, -1: none.
    """

    given: Mapping[str, Any]
    places: Tensor

    def filled(self, ids: Tensor, history: Tensor) -> Tensor:
        """A copy of the ids that were given, with the history in its places."""
        there = self.places >= 0
        flat = ids.flatten().index_put((self.places[there],), history[there].to(ids.dtype))
        return flat.view_as(ids)


@dataclass(frozen=True, eq=False)
class SourceContext:
    """The context of a batch for a Hugging Face model.

    Args:
        first: (rows, 1) ids told before the history: the start symbol, a language's id, a prompt's first token.
        source: what the encoder reads, by argument, batch first; empty for a decoder alone.
        others: other arguments of the forward, batch first.
        encoded: (rows, source_time, size) what the encoder made of the source; None: not encoded.
        layout: of the whole batch; None once rows have been selected.
    """

    first: Tensor
    source: Mapping[str, Tensor] = field(default_factory=dict)
    others: Mapping[str, Tensor] = field(default_factory=dict)
    encoded: Tensor | None = None
    layout: Layout | None = None

    def select(self, rows: Tensor) -> SourceContext:
        """The rows asked for."""
        source, others = ({k: v[rows] for k, v in part.items()} for part in (self.source, self.others))
        return SourceContext(self.first[rows], source, others, None if self.encoded is None else self.encoded[rows])

    def to(self, device: torch.device | str) -> SourceContext:
        """The same on another device."""
        source, others = ({k: v.to(device) for k, v in part.items()} for part in (self.source, self.others))
        layout = None
        if self.layout is not None:
            given = {k: v.to(device) if isinstance(v, Tensor) else v for k, v in self.layout.given.items()}
            layout = Layout(given, self.layout.places.to(device))
        encoded = None if self.encoded is None else self.encoded.to(device)
        return SourceContext(self.first.to(device), source, others, encoded, layout)

    def after(self, encoded: Tensor) -> SourceContext:
        """The same with its source encoded."""
        return replace(self, encoded=encoded)


def batch_first(given: Mapping[str, Any], size: int) -> dict[str, Tensor]:
    """The tensors among keyword arguments whose first dimension is the batch's."""
    return {k: v for k, v in given.items() if isinstance(v, Tensor) and v.dim() and v.shape[0] == size}


def context_of(batch: Batch) -> SourceContext:
    """A batch's context, which must be one of these."""
    if isinstance(batch.context, SourceContext):
        return batch.context
    raise UserError(
        f"a Hugging Face model needs a batch made by its own batch(input_ids=..., ...); this one's context is "
        f"{type(batch.context).__name__}"
    )
