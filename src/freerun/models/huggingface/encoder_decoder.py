"""An encoder and a decoder as a Model."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from freerun.batch import Batch
from freerun.errors import UserError
from freerun.models.huggingface.context import (
    Layout,
    SourceContext,
    batch_first,
    context_of,
    id_problems,
    row_problems,
    shape_problems,
    two_dimensional,
)
from freerun.models.huggingface.model import HuggingFaceModel, ones, positions, table_of

_DECODER = ("labels", "decoder_input_ids", "decoder_attention_mask")


def pair_batch(
    given: Mapping[str, Any],
    shifted: Callable[[Tensor | None, int], Tensor],
    *,
    rows: Tensor | None,
    replaceable: Tensor | None,
    vocab: int,
) -> Batch:
    """Sources and labels as a Batch: targets are the labels, the history what the decoder is told but its first id."""
    labels, fed = given.get("labels"), given.get("decoder_input_ids")
    source = {name: value for name, value in given.items() if name not in _DECODER}
    size = next((value.shape[0] for value in source.values() if isinstance(value, Tensor)), 0)
    shape = next((part.shape for part in (labels, fed) if isinstance(part, Tensor)), torch.Size())
    for name in ("labels", "decoder_input_ids"):
        if given.get(name) is not None and (wrong := two_dimensional(name, given[name])):
            raise UserError(wrong)
    problems = shape_problems(given, shape, _DECODER)
    problems += row_problems(rows, replaceable, torch.Size((size, *shape[1:])))
    if size and shape and shape[0] != size:
        problems.append(f"labels have {shape[0]} rows, and the source {size}")
    if not problems:
        problems = id_problems("labels", labels, vocab) + id_problems("decoder_input_ids", fed, vocab)
        problems += _padding_problems(given.get("decoder_attention_mask"))
    if problems:
        raise UserError(problems)
    fed = shifted(labels, size) if fed is None else fed
    context = _context(given, batch_first(source, size), fed)
    if labels is None:
        blank = fed.new_zeros(len(fed), 1)
        history = torch.cat([fed[:, 1:], blank], 1)
        said = torch.zeros_like(history, dtype=torch.bool)
        eligible = said.clone()
        eligible[:, -1] = True
        return Batch(history, history, said, context, eligible=eligible, rows=rows)
    mask = labels != -100
    if not bool(mask.any()):
        raise UserError("no position of the batch is to be learnt: all labels are -100")
    targets = labels.masked_fill(~mask, 0)
    history = torch.cat([fed[:, 1:], targets[:, -1:]], 1)
    eligible = mask & (history == targets)
    if replaceable is not None:
        eligible = eligible & replaceable
    return Batch(targets, history, mask, context, eligible=eligible, rows=rows)


def _context(given: Mapping[str, Any], source: dict[str, Tensor], fed: Tensor) -> SourceContext:
    # history entry t is the decoder's id t + 1; the last one is told to nobody
    places = torch.arange(fed.numel(), device=fed.device).view_as(fed)[:, 1:]
    places = torch.nn.functional.pad(places, (0, 1), value=-1)
    return SourceContext(fed[:, :1], source, layout=Layout({**given, "decoder_input_ids": fed}, places))


def _padding_problems(mask: Tensor | None) -> list[str]:
    if mask is None or not bool((mask[:, :-1] < mask[:, 1:]).any()):
        return []
    return ["decoder_attention_mask has padding on the left: pad labels and decoder_input_ids on the right"]


class EncoderDecoder(HuggingFaceModel):
    """An encoder and a decoder."""

    is_encoder_decoder = True

    def _embeddings(self) -> Any:
        return table_of(self.inner.get_decoder())

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
        made = pair_batch(given, self.shifted, rows=rows, replaceable=replaceable, vocab=self.target_vocab)
        self.refuse_longer(made.time)
        return made

    def inputs(self, batch: Batch) -> dict[str, Any]:
        """Keyword arguments for the model's own forward: what ``batch`` was given, with the decoder's ids as they are.

        Raises:
            UserError: rows have been selected from the batch.
        """
        layout = context_of(batch).layout
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
            encoder = self.inner.get_encoder()
            problems = id_problems("input_ids", ids, table_of(encoder).weight.shape[0])
            limit = positions(encoder, encoder=True)
            if limit is not None and ids.shape[1] > limit:
                problems.append(
                    f"a source has {ids.shape[1]} tokens, and the encoder has {limit} positions "
                    "(config.max_position_embeddings): cut it (max_length of the tokenizer)"
                )
            if problems:
                raise UserError(problems)

    def shifted(self, labels: Tensor | None, size: int) -> Tensor:
        """(batch, time) the decoder's ids for some labels, by the model's own rule; without labels (batch, 1)."""
        own = getattr(self.inner, "prepare_decoder_input_ids_from_labels", None)
        if labels is not None and own is not None:
            try:
                return own(labels=labels)
            except (TypeError, ValueError) as error:  # what a symbol that is None ends in
                missing = [n for n in ("decoder_start_token_id", "pad_token_id") if not self._has(n)]
                raise UserError(_lacking(missing) if missing else str(error)) from error
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
        raise UserError(_lacking([names[0]]))

    def _has(self, name: str) -> bool:
        return getattr(self.inner.config, name, None) is not None

    # -- the source

    def encode(self, batch: Batch) -> Batch:
        """The batch with its source encoded; one that is encoded already is given back.

        What is to be differentiated through a wrapper (DDP, a compiled model) is not, as its encoder runs inside it;
        nor is what the model itself masks at random before it encodes (SpecAugment).
        """
        context = context_of(batch)
        inside = torch.is_grad_enabled() and (self.model is not self.inner or self._augments())
        if context.encoded is not None or inside:
            return batch
        encoder = self.inner.get_encoder()
        known = inspect.signature(type(encoder).forward).parameters
        open_ = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in known.values())
        given = {k: v for k, v in context.source.items() if open_ or k in known}
        return batch.made(context=context.after(encoder(**given, return_dict=True)[0]))

    def _augments(self) -> bool:
        config = self.inner.config
        shares = [getattr(config, name, 0) or 0 for name in ("mask_time_prob", "mask_feature_prob")]
        return self.inner.training and getattr(config, "apply_spec_augment", False) and max(shares) > 0

    def source(self, context: SourceContext) -> dict[str, Any]:
        """The arguments of the forward that say what the decoder attends to."""
        if context.encoded is None:
            return dict(context.source)
        from transformers.modeling_outputs import BaseModelOutput

        mask = {"attention_mask": context.source["attention_mask"]} if "attention_mask" in context.source else {}
        return {**mask, "encoder_outputs": BaseModelOutput(last_hidden_state=context.encoded)}  # pyright: ignore

    def arguments(self, context: SourceContext, history: Tensor, vectors: Tensor | None = None) -> dict[str, Any]:
        """The decoder's mask is always said: some models take a pad for absent, and a model may say its own pad."""
        if vectors is not None:
            first = self._embeddings()(context.first)
            told = {"decoder_inputs_embeds": torch.cat([first, vectors[:, :-1].to(first.dtype)], 1)}
        else:
            told = {"decoder_input_ids": torch.cat([context.first, history], 1)}
        size, time = next(iter(told.values())).shape[:2]
        mask = {"decoder_attention_mask": ones(context.first, size, time)}
        return {**self.source(context), **told, **(mask if self.accepts("decoder_attention_mask") else {})}


def _lacking(names: list[str]) -> list[str]:
    return [
        f"the model's configuration has no {name}, which the decoder's ids are made with: set model.config.{name} (as "
        "the model was trained with; T5 starts with its pad)"
        for name in names
    ]
