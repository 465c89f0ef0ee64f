"""A Hugging Face model as a Model: from a Batch to logits, aligned, in one forward."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from freerun.errors import UserError
from freerun.models.huggingface.pairs import pair_batch
from freerun.models.huggingface.rows import causal_batch
from freerun.models.huggingface.tail import Halves, Whole
from freerun.models.huggingface.told import Told, told
from freerun.types import Batch

__all__ = ["CausalModel", "EncoderDecoder", "HuggingFaceModel"]


class HuggingFaceModel(nn.Module):
    """What causal and encoder-decoder models have in common.

    Args:
        model: as given, wrapped or not: what is differentiated goes through it.
        inner: the ``PreTrainedModel`` within: everything without gradient goes through it.

    Not made by hand: ``freerun.hf.adapt`` finds out what a model can do.
    """

    is_encoder_decoder: bool
    findings: tuple[Any, ...] = ()

    def __init__(self, model: nn.Module, inner: Any) -> None:
        super().__init__()
        self.model = model
        # the model holds it already: registered once, its weights have one name
        object.__setattr__(self, "_inner", inner)
        self._halves: Halves | Whole = Whole()
        self._accepted = frozenset(inspect.signature(type(inner).forward).parameters)

    @property
    def inner(self) -> Any:
        """The ``PreTrainedModel`` itself."""
        return self._inner

    @property
    def limit(self) -> int | None:
        """Positions that the model has; None: as many as one likes."""
        config = self.inner.config.get_text_config(decoder=True)
        names = ("max_position_embeddings", "max_target_positions")
        return next((n for name in names if (n := getattr(config, name, None)) is not None), None)

    @property
    def vocab(self) -> int:
        """Ids that may be told."""
        return self._embeddings().num_embeddings

    def _embeddings(self) -> Any:
        return self.inner.get_input_embeddings()

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
        self._refuse_longer(batch.time)
        # a wrapper has to see what is differentiated; what is not must not wait for other processes
        model = self.model if torch.is_grad_enabled() else self.inner
        given = self.arguments(context, batch.history[:, :-1], vectors)
        return model(**given, use_cache=False, return_dict=True)

    def arguments(self, context: Told, history: Tensor, vectors: Tensor | None = None) -> dict[str, Any]:
        """Of the forward that reads the first entry and then the history (or its vectors)."""
        raise TypeError(f"{type(self).__name__} must say how it is called")  # a subclass forgot to

    def _refuse_longer(self, time: int) -> None:
        if self.limit is not None and time > self.limit:
            raise UserError(
                f"a row has {time} tokens to read, and the model has {self.limit} positions "
                "(config.max_position_embeddings): cut prompts and completions (max_length of the tokenizer)"
            )


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
        made = causal_batch(given, rows=rows, replaceable=replaceable, vocab=self.vocab)
        self._refuse_longer(made.time)
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
        return {**told, "attention_mask": _ones(context.first, size, time), **context.others}


class EncoderDecoder(HuggingFaceModel):
    """An encoder and a decoder."""

    is_encoder_decoder = True

    def _embeddings(self) -> Any:
        return self.inner.get_decoder().get_input_embeddings()

    def batch(
        self,
        *,
        labels: Tensor | None = None,
        decoder_input_ids: Tensor | None = None,
        decoder_attention_mask: Tensor | None = None,
        replaceable: Tensor | None = None,
        rows: Tensor | None = None,
        **source: Any,
    ) -> Batch:
        """What a collator made, as a Batch; ``inputs`` gives it back.

        Args:
            labels: (batch, time) ids to be said, -100 where nothing counts. None: they are not known
                (``freerun.generate``).
            decoder_input_ids: (batch, time) what the decoder is told; None: the model's own shift of the labels.
            decoder_attention_mask: (batch, time), 0 = padding on the right; nothing hangs on it.
            replaceable: (batch, time) bool: labels that may be replaced; None: all that count.
            rows: (batch,) the examples' numbers in the optimizer step's global batch; default 0..batch-1.
            source: what the encoder reads: ``input_ids`` or ``input_features``, ``attention_mask`` and so on.

        An entry that the decoder is told is replaced only where it is the label before it: start symbols, language ids
        and prefixes stay.

        Raises:
            UserError: shapes or ids that do not fit, nothing to learn, no pad or start symbol.
        """
        given = {"labels": labels, "decoder_input_ids": decoder_input_ids, **source}
        given = {k: v for k, v in {**given, "decoder_attention_mask": decoder_attention_mask}.items() if v is not None}
        self._refuse_source(source)
        made = pair_batch(given, self.shifted, rows=rows, replaceable=replaceable, vocab=self.vocab)
        self._refuse_longer(made.time)
        return made

    def inputs(self, batch: Batch) -> dict[str, Any]:
        """Keyword arguments for the model's own forward: what ``batch`` was given, with the decoder's ids as they are.

        Raises:
            UserError: rows have been selected from the batch.
        """
        layout = told(batch).layout
        if layout is None:
            raise UserError("rows have been selected from this batch: give inputs() the whole one")
        given = dict(layout.given)
        fed = layout.filled(given["decoder_input_ids"], batch.history)
        mask = given.get("decoder_attention_mask")
        # some models take a pad for absent, and a model may say its own pad
        mask = torch.ones_like(fed) if mask is None else mask
        return {**given, "decoder_input_ids": fed, "decoder_attention_mask": mask}

    def _refuse_source(self, source: Mapping[str, Any]) -> None:
        name = self.inner.main_input_name
        if not any(isinstance(source.get(n), Tensor) for n in (name, "inputs_embeds")):
            raise UserError(f"the encoder reads {name}, which is missing; got {', '.join(source) or 'nothing'}")
        ids = source.get("input_ids")
        if isinstance(ids, Tensor) and ids.dim() == 2:
            from freerun.models.huggingface.given import id_problems

            table = self.inner.get_encoder().get_input_embeddings()
            if problems := id_problems("input_ids", ids, table.num_embeddings):
                raise UserError(problems)

    def shifted(self, labels: Tensor | None, size: int) -> Tensor:
        """(batch, time) the decoder's ids for some labels, by the model's own rule; without labels (batch, 1)."""
        if labels is not None and hasattr(self.inner, "prepare_decoder_input_ids_from_labels"):
            return self.inner.prepare_decoder_input_ids_from_labels(labels=labels)
        start = self._id("decoder_start_token_id", "bos_token_id")
        first = torch.full((size, 1), start, device=self.inner.device)
        if labels is None:
            return first
        rest = labels[:, :-1]
        if bool((rest == -100).any()):
            rest = rest.masked_fill(rest == -100, self._id("pad_token_id"))
        return torch.cat([first.to(labels.device), rest], 1)

    def _id(self, *names: str) -> int:
        for config in (self.inner.config, self.inner.generation_config):
            for name in names:
                if (found := getattr(config, name, None)) is not None:
                    return int(found)
        raise UserError(
            f"the model's configuration has no {' or '.join(names)}: set model.config.{names[0]} (the tokenizer knows "
            "it)"
        )

    # -- the source

    def encode(self, batch: Batch) -> Batch:
        """The batch with its source encoded; one that is encoded already is given back.

        What is to be differentiated through a wrapper (DDP, a compiled model) is not: its encoder runs inside it.
        """
        context = told(batch)
        if context.encoded is not None or (torch.is_grad_enabled() and self.model is not self.inner):
            return batch
        encoder = self.inner.get_encoder()
        known = inspect.signature(type(encoder).forward).parameters
        open_ = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in known.values())
        given = {k: v for k, v in context.source.items() if open_ or k in known}
        return batch.replace(context=context.after(encoder(**given, return_dict=True)[0]))

    def source(self, context: Told) -> dict[str, Any]:
        """The arguments of the forward that say what the decoder attends to."""
        if context.encoded is None:
            return dict(context.source)
        from transformers.modeling_outputs import BaseModelOutput

        mask = {"attention_mask": context.source["attention_mask"]} if "attention_mask" in context.source else {}
        return {**mask, "encoder_outputs": BaseModelOutput(last_hidden_state=context.encoded)}  # pyright: ignore

    def arguments(self, context: Told, history: Tensor, vectors: Tensor | None = None) -> dict[str, Any]:
        """The decoder's mask is always said: some models take a pad for absent, and a model may say its own pad."""
        if vectors is not None:
            first = self._embeddings()(context.first)
            told = {"decoder_inputs_embeds": torch.cat([first, vectors[:, :-1].to(first.dtype)], 1)}
        else:
            told = {"decoder_input_ids": torch.cat([context.first, history], 1)}
        size, time = next(iter(told.values())).shape[:2]
        mask = {"decoder_attention_mask": _ones(context.first, size, time)}
        return {**self.source(context), **told, **(mask if self.accepts("decoder_attention_mask") else {})}


def _ones(like: Tensor, *shape: int) -> Tensor:
    return torch.ones(shape, dtype=torch.int64, device=like.device)
