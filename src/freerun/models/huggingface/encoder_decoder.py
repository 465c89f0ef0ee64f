"""An encoder and a decoder as a Model."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from freerun.batch import Batch
from freerun.errors import UserError
from freerun.models.huggingface.model import (
    HuggingFaceModel,
    Layout,
    SourceContext,
    batch_first,
    context_of,
    id_problems,
    positions,
    row_problems,
    shape_problems,
    table_of,
    two_dimensional,
)

_DECODER = ("labels", "decoder_input_ids", "decoder_attention_mask")


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
        """A collator's tensors as a Batch; ``inputs`` reverses it.

        Args:
            labels: (batch, time) ids to predict, -100 where nothing counts. None: they are not known
                (``freerun.generate``).
            decoder_input_ids: (batch, time) ids that the decoder reads; None: the model's own shift of the labels.
            decoder_attention_mask: (batch, time), 0 = padding on the right; no output depends on it.
            replaceable: (batch, time) bool: labels that may be replaced; None: all that count.
            rows: (batch,) the examples' numbers in the optimizer step's global batch; default 0..batch-1.
            source: what the encoder reads: ``input_ids`` or ``input_features``, ``attention_mask`` and so on.

        An entry that the decoder reads is replaced only where it is the label before it: start symbols, language ids
        and prefixes stay.

        Raises:
            UserError: shapes or ids that do not fit, nothing to learn, no pad or start symbol.
        """
        read = {"decoder_input_ids": decoder_input_ids, "decoder_attention_mask": decoder_attention_mask}
        arguments = {k: v for k, v in {"labels": labels, **read, **source}.items() if v is not None}
        self._refuse_source(source)
        size = next((value.shape[0] for k, value in arguments.items() if k in source and isinstance(value, Tensor)), 0)
        self._check(arguments, size, rows, replaceable)
        fed = self.shifted(labels, size) if decoder_input_ids is None else decoder_input_ids
        # history entry t is the decoder's id t + 1; the last one is never read
        indices = torch.arange(fed.numel(), device=fed.device).view_as(fed)[:, 1:]
        layout = Layout({**arguments, "decoder_input_ids": fed}, torch.nn.functional.pad(indices, (0, 1), value=-1))
        tensors = batch_first({name: value for name, value in arguments.items() if name in source}, size)
        context = SourceContext(fed[:, :1], tensors, layout=layout)
        self.refuse_longer(fed.shape[1])
        if labels is None:
            history = torch.cat([fed[:, 1:], fed.new_zeros(len(fed), 1)], 1)
            nothing = torch.zeros_like(history, dtype=torch.bool)
            last = torch.arange(fed.shape[1], device=fed.device) == fed.shape[1] - 1
            return Batch(history, history, nothing, context, eligible=nothing | last, rows=rows)
        mask = labels != -100
        if not bool(mask.any()):
            raise UserError("no position of the batch is to be learned: all labels are -100")
        targets = labels.masked_fill(~mask, 0)
        history = torch.cat([fed[:, 1:], targets[:, -1:]], 1)
        eligible = mask & (history == targets)
        if replaceable is not None:
            eligible = eligible & replaceable
        return Batch(targets, history, mask, context, eligible=eligible, rows=rows)

    def _check(self, arguments: Mapping[str, Any], size: int, rows: Any, replaceable: Any) -> None:
        """Refuse what the decoder reads and predicts where it does not fit together, or does not fit ``size`` rows."""
        labels, fed = (arguments.get(name) for name in _DECODER[:2])
        for name, ids in zip(_DECODER, (labels, fed), strict=False):
            if ids is not None and (problems := two_dimensional(name, ids)):
                raise UserError(problems)
        shape = next((part.shape for part in (labels, fed) if part is not None), torch.Size())
        problems = shape_problems(arguments, shape, _DECODER)
        problems += row_problems(rows, replaceable, torch.Size((size, *shape[1:])))
        if size and shape and shape[0] != size:
            problems.append(f"labels have {shape[0]} rows, and the source {size}")
        if not problems:
            vocab, mask = self.target_vocab, arguments.get("decoder_attention_mask")
            problems = id_problems("labels", labels, vocab) + id_problems("decoder_input_ids", fed, vocab)
            if mask is not None and bool((mask[:, :-1] < mask[:, 1:]).any()):
                problems.append(
                    "decoder_attention_mask has padding on the left: pad labels and decoder_input_ids on the right"
                )
        if problems:
            raise UserError(problems)

    def inputs(self, batch: Batch) -> dict[str, Any]:
        """Keyword arguments for the model's own forward: those of ``batch``, with its history in them.

        Raises:
            UserError: rows have been selected from the batch.
        """
        layout = self.layout_of(batch)
        fed = layout.filled(layout.arguments["decoder_input_ids"], batch.history)
        # some models take a pad for padding, and a model may predict its own pad
        return {"decoder_attention_mask": torch.ones_like(fed), **layout.arguments, "decoder_input_ids": fed}

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
                missing = [
                    n for n in ("decoder_start_token_id", "pad_token_id") if getattr(self.inner.config, n, None) is None
                ]
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
                if (value := getattr(config, name, None)) is not None:
                    return int(value)
        raise UserError(_lacking([names[0]]))

    # -- the source

    def encode(self, batch: Batch) -> Batch:
        """The batch with its source encoded; one that is encoded already is returned.

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
        accepted = {k: v for k, v in context.source.items() if open_ or k in known}
        return batch.made(context=replace(context, encoded=encoder(**accepted, return_dict=True)[0]))

    def _augments(self) -> bool:
        config = self.inner.config
        shares = [getattr(config, name, 0) or 0 for name in ("mask_time_prob", "mask_feature_prob")]
        return self.inner.training and getattr(config, "apply_spec_augment", False) and max(shares) > 0

    def source(self, context: SourceContext) -> dict[str, Any]:
        """The arguments of the forward that hold what the decoder attends to."""
        if context.encoded is None:
            return dict(context.source)
        from transformers.modeling_outputs import BaseModelOutput

        mask = {"attention_mask": context.source["attention_mask"]} if "attention_mask" in context.source else {}
        return {**mask, "encoder_outputs": BaseModelOutput(last_hidden_state=context.encoded)}  # pyright: ignore

    def arguments(self, context: SourceContext, history: Tensor, vectors: Tensor | None = None) -> dict[str, Any]:
        """The source and the decoder's ids."""
        return {**self.source(context), **self.read_ids(context, history, vectors, "decoder_")}


def _lacking(names: list[str]) -> list[str]:
    return [
        f"the model's configuration has no {name}, which the decoder's ids are made with: set model.config.{name} (as "
        "the model was trained with; T5 starts with its pad)"
        for name in names
    ]
