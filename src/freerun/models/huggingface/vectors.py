"""Histories given as vectors, for a model whose forward takes embeddings."""

from __future__ import annotations

from torch import Tensor

from freerun.models.huggingface.model import HuggingFaceModel
from freerun.types import Batch

__all__ = ["Vectors"]


class Vectors(HuggingFaceModel):
    """A model that can be told vectors: ``freerun.types.Embedder``."""

    def lookup(self, entries: Tensor) -> Tensor:
        """(...) ids -> (..., size), as the model itself looks them up, its scaling included."""
        return self._embeddings()(entries)

    def outputs_from(self, batch: Batch, vectors: Tensor) -> Tensor:
        """``forward`` with (rows, time, size) vectors in place of the embedded history."""
        return self._forward(batch, vectors).logits
