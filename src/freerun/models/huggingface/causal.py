"""A decoder alone as a Model: prompts, completions, padding on either side, packed rows."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from freerun.errors import UserError
from freerun.models.huggingface.model import HuggingFaceModel, ones
from freerun.models.huggingface.rows import causal_batch
from freerun.models.huggingface.told import Told, told
from freerun.types import Batch

__all__ = ["CausalModel"]


class CausalModel(HuggingFaceModel):
    """A decoder alone."""

    is_encoder_decoder = False

    def batch(
        self,
        *,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        position_ids: Tensor | None = None,
        replaceable: Tensor | None = None,
        rows: Tensor | None = None,
        **others: Any,
    ) -> Batch:
        """What a collator made, as a Batch; ``inputs`` gives it back.

        Targets and history are the tokens after each row's first. Prompts, padding and a row's first token are never
        replaced, and only what ``labels`` say counts.

        Args:
            input_ids: (batch, time) ids, padded on either side or packed.
            attention_mask: (batch, time), 0 = padding; None: there is none.
            labels: (batch, time) the ids, -100 where nothing is to be learnt (prompt, padding); not shifted, as for
                the model's own loss. None: prompts to go on from (``freerun.generate``), nothing counts.
            position_ids: (batch, time) counting 0, 1, ... in every row, and from 0 again in every packed document.
            replaceable: (batch, time) bool: tokens that may be replaced besides what ``labels`` say; None: all.
            rows: (batch,) the examples' numbers in the optimizer step's global batch; default 0..batch-1.
            others: further arguments of the model's forward, batch first.

        Raises:
            UserError: shapes, ids or positions that do not fit, nothing to learn, or more tokens than positions.
        """
        given: dict[str, Any] = {"input_ids": input_ids, "attention_mask": attention_mask, "labels": labels}
        given = {k: v for k, v in {**given, "position_ids": position_ids, **others}.items() if v is not None}
        made = causal_batch(given, self._accepted, rows=rows, replaceable=replaceable, vocab=self.target_vocab)
        self.refuse_longer(made.time)
        return made

    def inputs(self, batch: Batch) -> dict[str, Any]:
        """Keyword arguments for the model's own forward: what ``batch`` was given, with the history in its place.

        Where tokens are padded on the left and none were given, ``position_ids`` that skip the padding are added.

        Raises:
            UserError: rows have been selected from the batch.
        """
        layout = told(batch).layout
        if layout is None:
            raise UserError("rows have been selected from this batch: give inputs() the whole one")
        given = dict(layout.given)
        given["input_ids"] = layout.filled(given["input_ids"], batch.history)
        mask = given.get("attention_mask")
        told_of = "position_ids" in given or not self.accepts("position_ids")
        if mask is not None and not told_of and bool((mask[:, :-1] < mask[:, 1:]).any()):
            given["position_ids"] = (mask.long().cumsum(1) - 1).clamp_min(0)
        return given

    def arguments(self, context: Told, history: Tensor, vectors: Tensor | None = None) -> dict[str, Any]:
        """Without padding there are no masks and no positions to be told."""
        if vectors is not None:
            first = self._embeddings()(context.first)
            told = {"inputs_embeds": torch.cat([first, vectors[:, :-1].to(first.dtype)], 1)}
        else:
            told = {"input_ids": torch.cat([context.first, history], 1)}
        size, time = next(iter(told.values())).shape[:2]
        return {**told, "attention_mask": ones(context.first, size, time), **context.others}
