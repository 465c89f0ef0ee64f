"""Going on position by position over the model's own cache, all rows side by side."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from freerun.errors import UserError
from freerun.models.huggingface.model import HuggingFaceModel
from freerun.models.huggingface.told import Told, told
from freerun.types import Batch, Encoder

__all__ = ["Reading", "Stepping", "keeps_all"]

_CACHES = ("past_key_values", "cache_params")
"""Under which of these names a model returns, and takes, what it remembers."""


@dataclass(frozen=True, eq=False)
class _State:
    cache: Any
    name: str
    length: int
    hidden: Tensor  # (rows, size) after the last entry read
    context: Told


class Stepping(HuggingFaceModel):
    """A model with a cache of its own: ``freerun.types.Stepper``.

    The cache is what the model itself makes (sliding windows, recurrent states and attention to a source included),
    and is copied before it is written to.
    """

    def start(self, batch: Batch) -> _State:
        """The state that predicts position 0."""
        if isinstance(self, Encoder):
            batch = self.encode(batch)
        return self._read(None, told(batch).first, told(batch))

    def embed(self, entries: Tensor) -> Tensor:
        """Ids are looked up where they are read."""
        return entries

    def step(self, state: _State, inputs: Tensor) -> _State:
        """Read the next entry (rows,) of every row."""
        return self._read(state, inputs[:, None], state.context)

    def output(self, state: _State, rows: Tensor | None = None) -> Tensor:
        """(rows, vocab) logits at the next position, of the rows asked for."""
        return self.head(state.hidden if rows is None else state.hidden[rows])

    def select(self, state: _State, rows: Tensor) -> _State:
        """Rows picked, repeated or dropped."""
        cache = _copied(state.cache)
        cache.reorder_cache(rows)
        return replace(state, cache=cache, hidden=state.hidden[rows], context=state.context.select(rows))

    def _read(self, state: _State | None, ids: Tensor, context: Told) -> _State:
        past = {} if state is None else {state.name: _copied(state.cache)}
        length = (0 if state is None else state.length) + ids.shape[1]
        self.refuse_longer(length)
        given = self.told_on(context, ids, length)
        hidden, output = self._halves.hidden(lambda: self.inner(**given, **past, use_cache=True, return_dict=True))
        name = next((name for name in _CACHES if getattr(output, name, None) is not None), None)
        if name is None:
            raise UserError(f"the model gives back no cache under {' or '.join(_CACHES)}")
        return _State(getattr(output, name), name, length, hidden[:, -1], context)

    def told_on(self, context: Told, ids: Tensor, length: int) -> dict[str, Any]:
        """Arguments of the forward that reads more ids, up to ``length`` in all."""
        if not self.is_encoder_decoder:
            return {"input_ids": ids, **context.others}
        encoder_decoder: Any = self
        mask = torch.ones(len(ids), length, dtype=torch.int64, device=ids.device)
        more = {"decoder_attention_mask": mask} if self.accepts("decoder_attention_mask") else {}
        return {**encoder_decoder.source(context), "decoder_input_ids": ids, **more}


class Reading(Stepping):
    """One whose cache takes several entries at once: ``freerun.types.Reader``."""

    def read(self, state: _State, inputs: Tensor) -> _State:
        """Read the next n entries (rows, n) of every row."""
        return self._read(state, inputs, state.context)


def keeps_all(cache: Any) -> bool:
    """Whether a cache holds keys and values alone; recurrent states take entries one at a time once they have begun."""
    layers = getattr(getattr(cache, "self_attention_cache", cache), "layers", None)
    return layers is not None and all(_grows(layer) for layer in layers)


def _copied(cache: Any) -> Any:
    """A cache that can be written to without the other being changed."""
    made = copy.copy(cache)
    for name in ("self_attention_cache", "cross_attention_cache"):
        if hasattr(cache, name):
            setattr(made, name, _copied(getattr(cache, name)))
    if hasattr(cache, "is_updated"):
        made.is_updated = dict(cache.is_updated)
    if hasattr(cache, "layers"):
        made.layers = [_layer(layer) for layer in cache.layers]
        return made
    return made if hasattr(cache, "self_attention_cache") else copy.deepcopy(cache)


def _layer(layer: Any) -> Any:
    return copy.copy(layer) if _grows(layer) else copy.deepcopy(layer)


def _grows(layer: Any) -> bool:
    """Whether an update puts a new tensor in the place of the old one; other layers write into theirs."""
    from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

    return type(layer) in (DynamicLayer, DynamicSlidingWindowLayer)
