"""A Hugging Face model as a Model: from a Batch to logits, aligned, in one forward."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from functools import cached_property
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from freerun.batch import Batch
from freerun.errors import UserError
from freerun.models.huggingface.heads import SplitHead, WholeHead, is_watched
from freerun.models.huggingface.media import Media, apart_from
from freerun.models.huggingface.rules import GenerationRules, prepared, settings_of
from freerun.models.pretrained import end_ids
from freerun.types import GenerationDefaults


@dataclass(frozen=True, eq=False)
class Layout:
    """Where the entries of a batch come from."""

    arguments: Mapping[str, Any]  # the keyword arguments of ``batch``
    # (rows, time) int64: the index of every history entry in the flattened input ids, -1: none
    indices: Tensor

    def filled(self, ids: Tensor, history: Tensor) -> Tensor:
        """A copy of the input ids with the history in its positions."""
        there = self.indices >= 0
        flat = ids.flatten().index_put((self.indices[there],), history[there].to(ids.dtype))
        return flat.view_as(ids)


@dataclass(frozen=True, eq=False)
class Encoded:
    """What an encoder returned, batch first."""

    kind: type
    parts: Mapping[str, Tensor]  # (rows, source_time, ...): hidden vectors, and a mask where it makes one

    @classmethod
    def of(cls, output: Any) -> Encoded:
        """The tensors of an output."""
        return cls(type(output), {name: part for name, part in output.items() if isinstance(part, Tensor)})

    @property
    def output(self) -> Any:
        """As the model's forward takes it."""
        return self.kind(**self.parts)

    def select(self, rows: Tensor) -> Encoded:
        """The requested rows."""
        return Encoded(self.kind, {name: part[rows] for name, part in self.parts.items()})


@dataclass(frozen=True, eq=False)
class SourceContext:
    """The context of a batch for a Hugging Face model."""

    first: Tensor  # (rows, 1) ids read before the history: the start symbol, a language's id, a prompt's first token
    # what the encoder reads, by argument, batch first; empty for a decoder alone
    source: Mapping[str, Tensor] = field(default_factory=dict)
    media: Media = field(default_factory=Media)  # other arguments of the forward
    encoded: Encoded | None = None  # what the encoder made of the source; None: not encoded
    layout: Layout | None = None  # of the complete batch; None once rows have been selected
    forced: Tensor | None = None  # (rows, n) ids that generation forces at the history's beginning, -1: none

    @property
    def has_labels(self) -> bool:
        """False for a complete batch of prompts alone."""
        return self.layout is None or self.layout.arguments.get("labels") is not None

    @property
    def placeholders(self) -> tuple[int, ...]:
        """Ids that stand for images and the like, and those around them: a history without them fits no more."""
        return self.media.placeholders + self.media.marks

    def select(self, rows: Tensor) -> SourceContext:
        """The requested rows."""
        source = {name: part[rows] for name, part in self.source.items()}
        encoded = None if self.encoded is None else self.encoded.select(rows)
        forced = None if self.forced is None else self.forced[rows]
        return SourceContext(self.first[rows], source, self.media.select(rows), encoded, forced=forced)

    def to(self, device: torch.device | str) -> SourceContext:
        """The same on another device."""
        source = {name: part.to(device) for name, part in self.source.items()}
        layout = None
        if self.layout is not None:
            tensors = {k: v.to(device) for k, v in self.layout.arguments.items() if isinstance(v, Tensor)}
            layout = Layout({**self.layout.arguments, **tensors}, self.layout.indices.to(device))
        forced = None if self.forced is None else self.forced.to(device)
        return SourceContext(self.first.to(device), source, self.media.to(device), None, layout, forced)


def context_of(batch: Batch) -> SourceContext:
    """A batch's context, which must be one of these."""
    if isinstance(batch.context, SourceContext):
        return batch.context
    raise UserError(
        f"a Hugging Face model needs a batch made by its own batch(input_ids=..., ...); this one's context is "
        f"{type(batch.context).__name__}"
    )


_DECODER = ("max_position_embeddings", "max_target_positions", "max_decoder_position_embeddings")


_ENCODER = ("max_position_embeddings", "max_encoder_position_embeddings")


_SWITCHING = ("longrope", "dynamic")
"""Rotations that change for a whole call once it is longer than the model was first trained for: what a cache holds is
then rotated otherwise, and rows depend on each other."""


def table_of(part: Any) -> Any:
    """The table that a model, or its decoder, looks ids up in."""
    try:
        table = part.get_input_embeddings()
    except (AttributeError, NotImplementedError):
        table = getattr(part, "embed_tokens", None)
    if getattr(table, "weight", None) is None:
        raise UserError(
            f"{type(part).__name__} has no single table of embeddings: several streams of ids (codebooks) are not "
            "supported"
        )
    return table


def positions(part: Any, *, encoder: bool = False) -> int | None:
    """Tokens that a model has positions for; None: as many as one likes."""
    config = getattr(part, "config", None)
    configured = None if config is None else configured_positions(config, encoder=encoder)
    # a table that begins behind the row of the padding
    limits = [] if configured is None else [configured]
    limits += [
        table.num_embeddings - table.padding_idx - 1
        for name, table in part.named_modules()
        if isinstance(table, nn.Embedding) and "position" in name and table.padding_idx is not None
    ]
    return min(limits) if limits else None


def configured_positions(config: Any, *, encoder: bool = False) -> int | None:
    """Positions according to a configuration."""
    config = config if encoder else config.get_text_config(decoder=True)
    if getattr(config, "alibi", False):
        return None
    limits = [getattr(config, name, None) for name in (_ENCODER if encoder else _DECODER)]
    limits += [
        rope.get("original_max_position_embeddings") for rope in _ropes(config) if rope.get("rope_type") in _SWITCHING
    ]
    return min((number for number in limits if isinstance(number, int) and number > 0), default=None)


def ends_with_its_length(inner: Any) -> str | None:
    """Why a model cannot read more tokens than its configuration names, or None: its positions are rotations."""
    ropes = _ropes(inner.config.get_text_config(decoder=True))
    if switching := [rope["rope_type"] for rope in ropes if rope.get("rope_type") in _SWITCHING]:
        return (
            f"rotates a whole call otherwise once it is longer than trained ({switching[0]}): what a cache holds, and "
            "other rows, would change"
        )
    tables = [
        name for name, module in inner.get_decoder().named_modules()
        if isinstance(module, nn.Embedding) and any(part in name.rsplit(".", 1)[-1] for part in ("pos", "wpe"))
    ]  # fmt: skip
    rotates = any("rotary" in type(module).__name__.lower() for module in inner.get_decoder().modules())
    if tables or not rotates:
        return f"has no rotary positions{f' but a table of them ({tables[0]})' if tables else ''}: cut the rows"
    return None


def _ropes(config: Any) -> list[dict[str, Any]]:
    """The settings of rotations, for all layers or for each kind of them."""
    settings = [getattr(config, name, None) for name in ("rope_parameters", "rope_scaling")]
    ropes = [part for part in settings if isinstance(part, dict)]
    return ropes + [inner for part in ropes for inner in part.values() if isinstance(inner, dict)]


_ORDINARY = (
    "input_ids", "labels", "position_ids", "decoder_input_ids", "decoder_attention_mask",
    "seq_idx", "cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k",
)  # fmt: skip
"""What every model takes: nothing has to be tried anew for it."""


class HuggingFaceModel(nn.Module):
    """What causal and encoder-decoder models have in common; ``freerun.hf.adapt`` finds out what a model can do.

    With gradient ``model`` is called (it may be a wrapper), without gradient the ``PreTrainedModel`` in it, ``inner``.
    """

    kind: ClassVar[str] = "huggingface"  # in model.json; its settings are in files of its own
    is_encoder_decoder: bool
    findings: tuple[Any, ...] = ()
    beyond: bool = False  # reads more tokens than its configuration names
    shifts: bool = True
    from_zero: bool = True  # positions; else from behind the padding, by the ids that are no pads
    """Whether the model's own loss compares a position with the next label; else the collator has shifted them."""
    follows: Any = None
    """Whose generation settings free runs and roll-ins follow: "own", a ``GenerationConfig``, or None, nobody's."""
    # tries the model anew on a batch that holds more than what it was tried on
    examine: Callable[[Any, Mapping[str, Any]], None] | None = None
    tried: frozenset[str] | None = frozenset()  # None: on nothing
    # refuses what the first batch with labels shows to be a mistake; None once it has, and where nobody looks
    look: Callable[[Any, Mapping[str, Any]], None] | None = None

    def __init__(self, model: nn.Module, inner: Any) -> None:
        super().__init__()
        self.model = model
        # the model holds it already: registered once, its weights have one name
        object.__setattr__(self, "_inner", inner)
        self._halves: SplitHead | WholeHead = WholeHead()
        self.limit = positions(inner)  # None: as many as one likes
        parameters = inspect.signature(type(inner).forward).parameters
        self.accepted = frozenset(parameters)
        self.takes_any = any(each.kind is inspect.Parameter.VAR_KEYWORD for each in parameters.values())

    @property
    def max_positions(self) -> int | None:
        """Entries that a row may have; None: as many as one likes."""
        return self.limit

    @property
    def inner(self) -> Any:
        """The ``PreTrainedModel`` itself."""
        return self._inner

    @property
    def target_vocab(self) -> int:
        """Ids that may be predicted, and fed; a table may have more rows, for images and their like."""
        rows, head = self._embeddings().weight.shape[0], getattr(self.inner.get_output_embeddings(), "weight", None)
        return rows if head is None else min(rows, head.shape[0])

    def _embeddings(self) -> Any:
        return table_of(self.inner)

    def try_anew(self, arguments: Mapping[str, Any]) -> None:
        """Find out again what the model can do, where a batch holds more than what it was tried on."""
        if self.look is not None and (labels := arguments.get("labels")) is not None and len(labels) > 1:
            self.look(self, arguments)
            self.look = None
        if self.examine is None:
            return
        if self.tried is None or not self.tried.union(_ORDINARY).issuperset(arguments):
            self.examine(self, arguments)

    @cached_property
    def size(self) -> int:
        """Numbers of a hidden vector of the decoder."""
        return self.inner.config.get_text_config(decoder=True).hidden_size

    def accepts(self, name: str) -> bool:
        """Whether the model's forward has an argument of that name."""
        return name in self.accepted

    # -- the complete sequence at once

    def forward(self, batch: Batch) -> Tensor:
        """(rows, time, vocab) logits: position t predicts ``targets[:, t]``."""
        return self._forward(batch).logits

    def hidden(self, batch: Batch) -> Tensor:
        """(rows, time, size): what the vocabulary is read from."""
        return self._halves.hidden(lambda: self._forward(batch))[0]

    def head(self, hidden: Tensor) -> Tensor:
        """(..., size) -> (..., vocab) logits, by the model's own last lines."""
        return self._halves.logits(hidden)

    def forward_at(self, batch: Batch, index: Tensor) -> tuple[Tensor, Tensor] | None:
        """(n, vocab) logits at n positions of the flattened batch, and all hidden vectors (rows * time, size).

        One forward, in DDP and PEFT where they are around the model; None: where others are, or its head cannot.
        """
        outer = self.model.module if isinstance(self.model, DistributedDataParallel) else self.model
        plain = outer is self.inner or getattr(outer, "peft_config", None)
        if not plain or "_orig_mod" in outer._modules or any(map(is_watched, (self.model, outer))):
            return None
        return self._halves.at(lambda: self._forward(batch), index)

    def _forward(self, batch: Batch, vectors: Tensor | None = None) -> Any:
        context = context_of(batch)
        self.refuse_longer(batch.time)
        # a wrapper has to see what is differentiated; what is not must not wait for other processes
        model = self.model if torch.is_grad_enabled() else self.inner
        history = batch.history[:, :-1]
        arguments = self.arguments(context, history, vectors)
        self.forget_images()
        with apart_from(self.inner, *(self._own_marks(batch) if vectors is None else (None, False))):
            return model(**arguments, use_cache=False, return_dict=True)

    def forget_images(self) -> None:
        """Drop what a model keeps of an earlier call's images, which positions of a call without them would follow."""
        if getattr(self.inner.base_model, "rope_deltas", None) is not None:
            self.inner.base_model.rope_deltas = None

    def _own_marks(self, batch: Batch) -> tuple[Tensor | None, bool]:
        """(rows, time) bool: ids of images, or around them, that are the model's own output; and whether any stands
        for one. None: there are none.
        """
        media, history = context_of(batch).media, batch.history[:, :-1]
        if media.known is None:
            return None, False
        after = torch.arange(history.shape[1], device=history.device) >= media.known[:, None]
        stands = torch.isin(history, history.new_tensor(media.placeholders)) & after
        own = stands | torch.isin(history, history.new_tensor(media.marks)) & after & batch.replaceable[:, :-1]
        padded = torch.nn.functional.pad(own, (1, 0)) if bool(own.any()) else None
        return padded, bool(stands.any())

    def arguments(self, context: SourceContext, history: Tensor, vectors: Tensor | None = None) -> dict[str, Any]:
        """Of the forward that reads the first entry and then the history (or its vectors)."""
        raise TypeError(f"{type(self).__name__} must define arguments")

    def read_ids(
        self, context: SourceContext, history: Tensor, vectors: Tensor | None, prefix: str = ""
    ) -> dict[str, Any]:
        """The decoder's ids (or vectors) with a mask of ones, as a model may predict its own pad."""
        if vectors is None:
            read = {f"{prefix}input_ids": torch.cat([context.first, history], 1)}
        else:
            first = self._embeddings()(context.first)
            read = {f"{prefix}inputs_embeds": torch.cat([first, vectors[:, :-1].to(first.dtype)], 1)}
        (ids,) = read.values()
        if not prefix or self.accepts(f"{prefix}attention_mask"):
            read[f"{prefix}attention_mask"] = torch.ones(ids.shape[:2], dtype=torch.int64, device=context.first.device)
        return read

    def layout_of(self, batch: Batch) -> Layout:
        """The layout of a batch of which no rows have been selected."""
        layout = context_of(batch).layout
        if layout is None:
            raise UserError("rows have been selected from this batch: give inputs() the complete one")
        return layout

    # -- generation, as the model's own

    @property
    def generation_config(self) -> Any:
        """The ``GenerationConfig`` that free runs and roll-ins follow; None: none."""
        return self.inner.generation_config if isinstance(self.follows, str) else self.follows

    def generation_defaults(self, batch: Batch) -> GenerationDefaults:
        """How a free run goes on where nothing else is named; without settings to one entry after another."""
        if self.generation_config is None:
            return GenerationDefaults()
        config = prepared(self.inner, self.generation_config)
        known = 1 + int((~(batch.replaceable | batch.mask)).long().cumprod(1).sum(1).max())
        length = config.max_new_tokens
        if length is None and config.max_length is not None:
            length = max(1, config.max_length - known)
        beams = config.num_beams or 1
        penalty, stopping = config.length_penalty or 0.0, config.early_stopping or False
        named = [getattr(self.generation_config, name, None) for name in ("length_penalty", "early_stopping")]
        search = any(each is not None for each in named)
        return GenerationDefaults(length or 20, end_ids(config), beams, penalty, stopping, search)

    def generation_rules(
        self, batch: Batch, *, length: int | None = None, ends: tuple[int, ...] | None = None
    ) -> GenerationRules | None:
        """What generation forces, forbids and reweighs in the rows of a batch; None: nothing."""
        raw, context = self.generation_config, context_of(batch)
        if raw is None:  # what rows name is forced all the same
            from transformers import GenerationConfig

            config = GenerationConfig()
        else:
            # another configuration is completed by the model's own, as generate completes it
            config = raw if isinstance(self.follows, str) else prepared(self.inner, raw)
        if context.forced is None and not settings_of(config) and not config.do_sample:
            return None
        if config is raw:
            config = prepared(self.inner, raw)
        stops = end_ids(config) if ends is None else ends
        config._eos_token_tensor = torch.tensor(stops, device=context.first.device) if stops else None
        if not stops:
            config.exponential_decay_length_penalty = None
        source = context.source.get("input_ids")
        if context.source and (source is None or source.dim() != 2):
            config.encoder_repetition_penalty = config.encoder_no_repeat_ngram_size = source = None
        generated = batch.mask
        if self.forces_prompt and context.forced is not None:
            generated = generated & ~self._forced(batch)
        index = torch.arange(1, batch.time + 1, device=generated.device)
        starts = 1 + torch.where(generated, 0, index).cummax(1).values
        return GenerationRules(self.inner, config, context.first, starts, source, context.forced, length)

    forces_prompt: ClassVar[bool] = False
    """Whether forced ids are a prompt to ``generate``, and no output."""

    def _forced(self, batch: Batch) -> Tensor:
        """(rows, time) bool: positions at which generation forces an id."""
        forced = context_of(batch).forced
        where = torch.zeros_like(batch.mask)
        if forced is not None:
            width = min(batch.time, forced.shape[1])
            where[:, :width] = forced[:, :width] >= 0
        return where

    def scored(self, batch: Batch) -> Batch:
        """The batch without the positions at which generation forces the target: nothing is predicted there."""
        where = self._forced(batch)
        if not bool(where.any()):
            return batch
        forced = context_of(batch).forced
        assert forced is not None
        width = min(batch.time, forced.shape[1])
        where[:, :width] &= batch.targets[:, :width] == forced[:, :width]
        return batch.made(mask=batch.mask & ~where, eligible=batch.replaceable & ~where)

    def refuse_longer(self, time: int) -> None:
        """Refuse a row of more tokens than the model has positions."""
        if self.limit is not None and time > self.limit:
            raise UserError(
                f"a row has {time} tokens to read, and the model has {self.limit} positions "
                "(config.max_position_embeddings): cut prompts and completions (max_length of the tokenizer)"
            )


class EmbeddingInputs(HuggingFaceModel):
    """A model that reads vectors: ``freerun.types.Embedder``."""

    def lookup(self, entries: Tensor) -> Tensor:
        """(...) ids -> (..., size), as the model itself looks them up, its scaling included."""
        return self._embeddings()(entries)

    def outputs_from(self, batch: Batch, vectors: Tensor) -> Tensor:
        """``forward`` with (rows, time, size) vectors instead of the embedded history."""
        return self._forward(batch, vectors).logits


def shape_problems(arguments: Mapping[str, Any], shape: torch.Size, names: tuple[str, ...]) -> list[str]:
    """The arguments among ``names`` that are not of a shape, or whose type is not whole numbers."""
    problems: list[str] = []
    for name in names:
        value = arguments.get(name)
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
        problems.append(f"rows must be a tensor of {shape[0]} numbers, one for each row; got {_kind(rows)}")
    if replaceable is not None and (not isinstance(replaceable, Tensor) or replaceable.shape != shape):
        problems.append(f"replaceable must be (batch, time) = {tuple(shape)}; got {_kind(replaceable)}")
    elif replaceable is not None and replaceable.dtype != torch.bool:
        problems.append(f"replaceable must be bool; got {replaceable.dtype}: use replaceable.bool()")
    return problems


def two_dimensional(name: str, ids: Any) -> list[str]:
    """The problem of ids that are not (batch, time), or hold nothing."""
    if isinstance(ids, Tensor) and ids.dim() == 2 and ids.numel():
        return []
    return [
        f"{name} must be a tensor (batch, time) with at least one token; got {_kind(ids)}: does the collator "
        "return tensors (return_tensors='pt')?"
    ]


_LABELS = re.compile(r"(^|_)(labels?|targets?)(_ids)?$")
_MASKS = re.compile(r"^((attn|assistant|assistant_tokens|completion|prompt|response|loss|label|labels)_)?masks?$")


def misnamed(m: HuggingFaceModel, names: Iterable[str], labels: Any) -> list[str]:
    """What a forward of any arguments would overlook: labels and masks of other names, and names misspelt."""
    name, problems = f"{type(m.inner).__name__}.forward", list[str]()
    for each in names:
        if m.accepts(each):
            continue
        near = get_close_matches(each, m.accepted, 1, 0.93)
        if labels is None and _LABELS.search(each):
            problems.append(f"{each} is no argument of {name}, and labels is missing: labels=..., -100 where nothing "
                            "is to be learned")  # fmt: skip
        elif near:
            problems.append(f"{each} is no argument of {name}, which would overlook it; is {near[0]} meant?")
        elif m.takes_any and _MASKS.search(each):
            problems.append(
                f"{each} is no argument of {name}, which would overlook it: attention_mask is 0 on padding, labels are "
                "-100 where nothing is to be learned; leave it out of the batch"
            )
    return problems


def widened(ids: Any) -> Any:
    """Whole numbers of any type as ids are."""
    whole = isinstance(ids, Tensor) and ids.dtype in (torch.int32, torch.int16)
    return ids.long() if whole else ids


def _kind(value: Any) -> str:
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
