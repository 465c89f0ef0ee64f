"""An encoder and a decoder as a Model."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from freerun.batch import Batch
from freerun.errors import UserError
from freerun.models.huggingface.media import Carried, Media
from freerun.models.huggingface.model import (
    Encoded,
    HuggingFaceModel,
    Layout,
    SourceContext,
    context_of,
    id_problems,
    misnamed,
    positions,
    row_problems,
    shape_problems,
    table_of,
    two_dimensional,
    widened,
)
from freerun.models.huggingface.rules import prepared

_FED = (
    "encoder_outputs", "past_key_values", "decoder_inputs_embeds", "use_cache", "return_dict", "logits_to_keep",
    "num_items_in_batch", "shift_labels",
)  # fmt: skip
"""Arguments of a forward that are freerun's to give, or its own loss's."""

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
        forced_bos_token_id: Any = "own",
        decoder_start_token_id: Any = None,
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
            forced_bos_token_id: what generation forces first: an id, (batch,) ids (a language for each row) or
                (batch, n), -1 where nothing is forced; None: nothing. "own": what the model's own generation settings
                force (``forced_bos_token_id``; of Whisper the language and task).
            decoder_start_token_id: the decoder's first id, or (batch,) of them; None: the model's own.
            source: what the encoder reads: ``input_ids`` or ``input_features``, ``attention_mask`` and so on.

        An entry that the decoder reads is replaced only where it is the label before it: start symbols and prefixes
        stay, and so do ids that generation forces, whatever the label. A forced id counts in the loss, as in the
        model's own; scores (``fr.evaluate``, ``fr.diagnose``) leave it out.

        Raises:
            UserError: shapes or ids that do not fit, nothing to learn, no pad or start symbol.
        """
        labels, decoder_input_ids = widened(labels), widened(decoder_input_ids)
        read = {"decoder_input_ids": decoder_input_ids, "decoder_attention_mask": decoder_attention_mask}
        arguments = {k: v for k, v in {"labels": labels, **read, **source}.items() if v is not None}
        if problems := misnamed(self, source, labels):
            raise UserError(problems)
        self._refuse_source(source)
        size = next((value.shape[0] for k, value in arguments.items() if k in source and isinstance(value, Tensor)), 0)
        self._check(arguments, size, rows, replaceable)
        fed = self.shifted(labels, size) if decoder_input_ids is None else decoder_input_ids
        if decoder_start_token_id is not None:
            start = by_row("decoder_start_token_id", decoder_start_token_id, size, self.target_vocab, fed.device)
            fed = torch.cat([start[:, :1], fed[:, 1:]], 1)
        forced = self._forced_ids(forced_bos_token_id, labels, size, arguments, fed)
        if labels is None and self.forces_prompt and forced is not None and fed.shape[1] == 1:
            fed = torch.cat([fed, forced], 1)
        # history entry t is the decoder's id t + 1; the last one is never read
        indices = torch.arange(fed.numel(), device=fed.device).view_as(fed)[:, 1:]
        layout = Layout({**arguments, "decoder_input_ids": fed}, torch.nn.functional.pad(indices, (0, 1), value=-1))
        tensors = {name: value for name, value in source.items() if isinstance(value, Tensor)}
        others = {name: Carried(value) for name, value in source.items() if value is not None and name not in tensors}
        context = SourceContext(fed[:, :1], tensors, Media(others), layout=layout, forced=forced)
        self.try_anew(arguments)
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
        if forced is not None:
            width = min(forced.shape[1], eligible.shape[1])
            eligible[:, :width] &= forced[:, :width] < 0
        if replaceable is not None:
            eligible = eligible & replaceable
        return Batch(targets, history, mask, context, eligible=eligible, rows=rows)

    @property
    def forces_prompt(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Whether forced ids are a prompt to ``generate``, and no output: Whisper's."""
        return hasattr(self.inner, "_retrieve_init_tokens")

    def _forced_ids(
        self, named: Any, labels: Tensor | None, size: int, arguments: Mapping[str, Any], fed: Tensor
    ) -> Tensor | None:
        """(batch, n) the ids that generation forces first, -1: none; None: nothing is forced."""
        config = self.generation_config
        if named is None or (isinstance(named, str) and config is None):
            return None
        if not isinstance(named, str):
            return by_row("forced_bos_token_id", named, size, self.target_vocab, fed.device)
        if self.forces_prompt:
            return self._whisper_prompt(config, labels, size, arguments, fed)
        if fed.shape[1] > 1 and labels is None:  # transformers forces the id after the start alone
            return None
        known = getattr(config, "forced_bos_token_id", None)
        if known is None:
            return None
        if labels is not None:
            first = labels[:, 0]
            _warn_other_language(type(self.inner).__name__, known, first[(first != known) & (first != -100)])
        return torch.full((size, 1), int(known), device=fed.device)

    def _whisper_prompt(
        self, config: Any, labels: Tensor | None, size: int, arguments: Mapping[str, Any], fed: Tensor
    ) -> Tensor | None:
        """Language, task and timestamps: the ids of these kinds that labels begin with, or what ``generate`` makes."""
        if labels is not None:
            kinds = [*whisper_ids(config, self.inner.config)]
            known = torch.tensor(kinds, dtype=labels.dtype, device=labels.device)
            leading = torch.isin(labels[:, :3], known).long().cumprod(1).bool()
            return labels[:, :3].masked_fill(~leading, -1) if bool(leading.any()) else None
        if fed.shape[1] > 1:
            return None
        config = prepared(self.inner, config)
        config.return_timestamps = getattr(config, "return_timestamps", None) or False
        features = arguments.get(self.inner.main_input_name)
        if not (whisper_ids(config, self.inner.config) or getattr(config, "lang_to_id", None)):
            return None
        training = [module for module in self.inner.modules() if module.training]
        for module in training:  # a language that nobody names is detected, by a forward
            module.training = False
        try:
            with torch.no_grad():
                prompt = self.inner._retrieve_init_tokens(
                    features, batch_size=size, generation_config=config, config=self.inner.config,
                    num_segment_frames=getattr(features, "shape", (0,))[-1], kwargs={},
                )  # fmt: skip
        finally:
            for module in training:
                module.training = True
        return prompt[:, 1:].to(fed.device) if prompt.shape[1] > 1 else None

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
            elif mask is not None and labels is not None and (hidden := ((mask == 0) & (labels != -100)).sum()):
                problems.append(
                    f"decoder_attention_mask is 0 at {int(hidden)} positions that have labels, which the model would "
                    "predict without reading what is before them: leave it out of the batch, or labels of -100 there"
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
        name, problems = self.inner.main_input_name, list[str]()
        size = next((len(value) for value in source.values() if isinstance(value, Tensor) and value.dim()), 0)
        for each, value in source.items():
            if each in _FED:
                problems.append(f"{each} is freerun's to give: leave it out of the batch")
            elif not (self.accepts(each) or self.takes_any):
                problems.append(
                    f"{each} is no argument of {type(self.inner).__name__}.forward: leave it out of the collator"
                )
            elif isinstance(value, Tensor) and (value.dim() == 0 or len(value) != size):
                problems.append(
                    f"{each} {tuple(value.shape)} does not have an entry for each of the {size} rows, and nothing "
                    "shows which belong to which row: give one for each row, or leave it out of the collator"
                )
        if problems:
            raise UserError(problems)
        names = ("input_values", "input_features") if name == "inputs" else (name,)
        if not any(isinstance(source.get(each), Tensor) for each in (*names, "inputs_embeds")):
            raise UserError(
                f"the encoder reads {' or '.join(names)}, which is missing; got {', '.join(source) or 'nothing'}"
            )
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

    def source(self, context: SourceContext) -> dict[str, Any]:
        """The arguments of the forward that hold what the decoder attends to."""
        others = {**context.source, **context.media.arguments(0)}
        if context.encoded is None:
            return others
        read = {name for name in self.read_by_encoder(others) if name != "attention_mask" or not self.accepts(name)}
        kept = {name: value for name, value in others.items() if name not in read}
        return {**kept, "encoder_outputs": context.encoded.output}

    def read_by_encoder(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """Those of the arguments that the encoder reads."""
        known, open_ = self._encoder_takes
        others = ("decoder_", "cross_attn")
        return {k: v for k, v in arguments.items() if k in known or (open_ and not k.startswith(others))}

    @cached_property
    def _encoder_takes(self) -> tuple[frozenset[str], bool]:
        """Names of the encoder's arguments, and whether it takes any other."""
        known = inspect.signature(type(self.inner.get_encoder()).forward).parameters
        return frozenset(known), any(each.kind is inspect.Parameter.VAR_KEYWORD for each in known.values())

    def arguments(self, context: SourceContext, history: Tensor, vectors: Tensor | None = None) -> dict[str, Any]:
        """The source and the decoder's ids."""
        return {**self.source(context), **self.read_ids(context, history, vectors, "decoder_")}


class SourceEncoding(EncoderDecoder):
    """One whose encoder can be run by itself: ``freerun.types.Encoder``."""

    def encode(self, batch: Batch) -> Batch:
        """The batch with its source encoded; one that is encoded already is returned.

        What is to be differentiated through a wrapper (DDP, a compiled model) is not, as its encoder runs inside it;
        nor is what the model itself masks at random before it encodes (SpecAugment).
        """
        context = context_of(batch)
        inside = torch.is_grad_enabled() and (self.model is not self.inner or self._augments())
        if context.encoded is not None or inside:
            return batch
        read = self.read_by_encoder({**context.source, **context.media.arguments(0)})
        output = self.inner.get_encoder()(**read, return_dict=True)
        return batch.made(context=replace(context, encoded=Encoded.of(output)))

    def _augments(self) -> bool:
        config = self.inner.config
        shares = [getattr(config, name, 0) or 0 for name in ("mask_time_prob", "mask_feature_prob")]
        return self.inner.training and getattr(config, "apply_spec_augment", False) and max(shares) > 0


def whisper_ids(config: Any, of_model: Any) -> set[int]:
    """The ids of languages and tasks that Whisper's settings name."""
    found = {
        *(getattr(config, "lang_to_id", None) or {}).values(),
        *(getattr(config, "task_to_id", None) or {}).values(),
    }
    stamps = getattr(config, "no_timestamps_token_id", None)
    forced = getattr(config, "forced_decoder_ids", None) or getattr(of_model, "forced_decoder_ids", None) or []
    return found | {each for each in (stamps, *(pair[1] for pair in forced)) if each is not None}


def by_row(name: str, ids: Any, size: int, vocab: int, device: torch.device) -> Tensor:
    """(batch, n) ids of an argument that is one id, one for each row, or several."""
    found = torch.as_tensor(ids, device=device)
    shape = tuple(found.shape)
    if found.dim() == 0:
        found = found.expand(size)
    found = found[:, None] if found.dim() == 1 else found
    if found.dim() != 2 or found.shape[0] != size or found.is_floating_point() or found.dtype == torch.bool:
        raise UserError(f"{name} must be an id, or ids by row (batch,) with batch = {size}; got {shape} {found.dtype}")
    if bool(((found < -1) | (found >= vocab)).any()):
        raise UserError(f"{name} holds {int(found.max())}, and the model has {vocab} ids; -1 is none")
    return found.long()


_WARNED: set[tuple[str, int]] = set()


def _warn_other_language(name: str, known: int, others: Tensor) -> None:
    if not others.numel() or (name, known) in _WARNED:
        return
    _WARNED.add((name, known))
    warnings.warn(
        f"labels begin with {int(others[0])}, and {name}.generate forces {known} there (generation_config."
        "forced_bos_token_id): the model would be trained on one first id and run freely after another. Languages by "
        "row: m.batch(..., forced_bos_token_id=labels[:, 0]); another language: set generation_config."
        "forced_bos_token_id to it, or to None",
        stacklevel=4,
    )


def _lacking(names: list[str]) -> list[str]:
    return [
        f"the model's configuration has no {name}, which the decoder's ids are made with: set model.config.{name} (as "
        "the model was trained with; T5 starts with its pad)"
        for name in names
    ]
