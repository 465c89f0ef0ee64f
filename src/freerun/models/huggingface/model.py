"""A Hugging Face model as a Model: from a Batch to logits, aligned, in one forward."""

from __future__ import annotations

import inspect
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from freerun.errors import UserError
from freerun.models.huggingface.sizes import positions, table_of
from freerun.models.huggingface.tail import Halves, Whole
from freerun.models.huggingface.told import Told, told
from freerun.types import Batch

__all__ = ["HuggingFaceModel", "ones"]


class HuggingFaceModel(nn.Module):
    """What causal and encoder-decoder models have in common.

    Args:
        model: as given, wrapped or not: what is differentiated goes through it.
        inner: the ``PreTrainedModel`` within: everything without gradient goes through it.

    Not made by hand: ``freerun.hf.adapt`` finds out what a model can do.
    """

    kind: ClassVar[str] = "huggingface"  # in model.json; its settings are in files of its own
    is_encoder_decoder: bool
    findings: tuple[Any, ...] = ()

    def __init__(self, model: nn.Module, inner: Any) -> None:
        super().__init__()
        self.model = model
        # the model holds it already: registered once, its weights have one name
        object.__setattr__(self, "_inner", inner)
        self._halves: Halves | Whole = Whole()
        self._limit = positions(inner)
        self._accepted = frozenset(inspect.signature(type(inner).forward).parameters)

    @property
    def inner(self) -> Any:
        """The ``PreTrainedModel`` itself."""
        return self._inner

    @property
    def limit(self) -> int | None:
        """Positions that the model has; None: as many as one likes."""
        return self._limit

    @property
    def target_vocab(self) -> int:
        """Ids that may be fed."""
        return self._embeddings().weight.shape[0]

    def _embeddings(self) -> Any:
        return table_of(self.inner)

    def accepts(self, name: str) -> bool:
        """Whether the model's forward has an argument of that name."""
        return name in self._accepted

    # -- the whole sequence at once

    def forward(self, batch: Batch) -> Tensor:
        """(rows, time, vocab) logits: position t predicts ``targets[:, t]``."""
        return self._forward(batch).logits

    def hidden(self, batch: Batch) -> Tensor:
        """(rows, time, size): what the vocabulary is read from."""
        return self._halves.hidden(lambda: self._forward(batch))[0]

    def head(self, hidden: Tensor) -> Tensor:
        """(..., size) -> (..., vocab) logits, by the model's own last lines."""
        return self._halves.logits(hidden)

    def _forward(self, batch: Batch, vectors: Tensor | None = None) -> Any:
        context = told(batch)
        self.refuse_longer(batch.time)
        # a wrapper has to see what is differentiated; what is not must not wait for other processes
        model = self.model if torch.is_grad_enabled() else self.inner
        given = self.arguments(context, batch.history[:, :-1], vectors)
        return model(**given, use_cache=False, return_dict=True)

    def arguments(self, context: Told, history: Tensor, vectors: Tensor | None = None) -> dict[str, Any]:
        """Of the forward that reads the first entry and then the history (or its vectors)."""
        raise TypeError(f"{type(self).__name__} must say how it is called")  # a subclass forgot to

    def refuse_longer(self, time: int) -> None:
        """Refuse a row of more tokens than the model has positions."""
        if self.limit is not None and time > self.limit:
            raise UserError(
                f"a row has {time} tokens to read, and the model has {self.limit} positions "
                "(config.max_position_embeddings): cut prompts and completions (max_length of the tokenizer)"
            )


def ones(like: Tensor, *shape: int) -> Tensor:
    """A mask of ones on a tensor's device."""
    return torch.ones(shape, dtype=torch.int64, device=like.device)
