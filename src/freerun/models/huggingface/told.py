"""What a Hugging Face model is told besides its history, and how a batch lies in what it was made from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from freerun.errors import UserError
from freerun.types import Batch

__all__ = ["Layout", "Told", "batch_first", "told"]


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
class Told:
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

    def select(self, rows: Tensor) -> Told:
        """The rows asked for."""
        source, others = ({k: v[rows] for k, v in part.items()} for part in (self.source, self.others))
        return Told(self.first[rows], source, others, None if self.encoded is None else self.encoded[rows])

    def to(self, device: torch.device | str) -> Told:
        """The same on another device."""
        source, others = ({k: v.to(device) for k, v in part.items()} for part in (self.source, self.others))
        layout = None
        if self.layout is not None:
            given = {k: v.to(device) if isinstance(v, Tensor) else v for k, v in self.layout.given.items()}
            layout = Layout(given, self.layout.places.to(device))
        encoded = None if self.encoded is None else self.encoded.to(device)
        return Told(self.first.to(device), source, others, encoded, layout)

    def after(self, encoded: Tensor) -> Told:
        """The same with its source encoded."""
        return replace(self, encoded=encoded)


def batch_first(given: Mapping[str, Any], size: int) -> dict[str, Tensor]:
    """The tensors among keyword arguments whose first dimension is the batch's."""
    return {k: v for k, v in given.items() if isinstance(v, Tensor) and v.dim() and v.shape[0] == size}


def told(batch: Batch) -> Told:
    """A batch's context, which must be one of these."""
    if isinstance(batch.context, Told):
        return batch.context
    raise UserError(
        f"a Hugging Face model needs a batch made by its own batch(input_ids=..., ...); this one's context is "
        f"{type(batch.context).__name__}"
    )
