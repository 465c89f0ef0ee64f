"""What a Hugging Face model generates for the prompts of a collated batch, under its own generation settings."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig

from freerun.batch import Batch
from freerun.errors import UserError, out_of_memory
from freerun.integrations.hf_mistakes import tokenizer_of
from freerun.integrations.hf_runner import adapted, collated_batch, has_targets
from freerun.models.huggingface.model import context_of
from freerun.models.huggingface.rules import settings_of
from freerun.rollin import eval_mode

_SLACK = 8
"""Ids beyond twice its reference after which an output is cut where no generation setting has a length."""


@dataclass(frozen=True, eq=False)
class Turn:
    """A run of labels, and what the model reads before it."""

    row: int  # of the Batch
    prompt: list[int]  # decoder ids, the first one included
    reference: list[int]  # up to its end symbol

    @property
    def cap(self) -> int:
        """Ids after which an output without an end is cut."""
        return 2 * len(self.reference) + _SLACK


@dataclass(frozen=True, eq=False)
class Generated:
    """An output beside its reference; both without the end symbol."""

    ids: list[int]
    ended: bool  # the model predicted its end
    reference: list[int]
    end: tuple[int, ...] = ()  # the end symbol, where one was predicted and returned


def turns(adapter: Any, batch: Batch, ends: frozenset[int]) -> list[Turn]:
    """Return the runs of labels of a batch; a decoder's row whose first token is learnt has no prompt, and none."""
    first, history, targets, mask = (
        part.tolist() for part in (context_of(batch).first, batch.history, batch.targets, batch.mask)
    )
    unprompted = [False] * batch.size if adapter.is_encoder_decoder else first_is_learnt(batch).tolist()
    found: list[Turn] = []
    for row in range(batch.size):
        begin: int | None = None
        for t, counts in enumerate([*mask[row], False]):
            if counts and begin is None:
                begin = t
            elif not counts and begin is not None:
                if not unprompted[row]:
                    prompt, reference = [*first[row], *history[row][:begin]], targets[row][begin:t]
                    found.append(Turn(row, prompt, until_end(reference, ends)[0]))
                begin = None
    return found


def first_is_learnt(batch: Batch) -> Tensor:
    """(rows,) bool: the first token of a row or document has a label, so that all of it is one text."""
    layout = context_of(batch).layout
    assert layout is not None  # the batch is complete
    labels = layout.arguments["labels"].flatten()
    return labels[(layout.indices[:, 0] - 1).clamp_min(0)] != -100


def until_end(ids: Sequence[int], ends: frozenset[int]) -> tuple[list[int], bool]:
    """Return the ids before the first end symbol, and whether there is one.

    >>> until_end([5, 6, 1, 0], frozenset({1}))
    ([5, 6], True)
    """
    for t, each in enumerate(ids):
        if each in ends:
            return list(ids[:t]), True
    return list(ids), False


def end_ids(model: Any, settings: Mapping[str, Any]) -> frozenset[int]:
    """Return the ids that end what a model generates."""
    ends = settings.get("eos_token_id", model.generation_config.eos_token_id)
    ends = [] if ends is None else ends.tolist() if isinstance(ends, Tensor) else ends
    return frozenset([ends] if isinstance(ends, int) else ends)


def trainer_settings(trainer: Any) -> dict[str, Any]:
    """Arguments of ``generate`` that a trainer has beside its model's settings: those of a Seq2SeqTrainer's."""
    own = {"max_length": "generation_max_length", "num_beams": "generation_num_beams"}
    found = {name: getattr(trainer.args, field, None) for name, field in own.items()}
    found |= getattr(trainer, "_gen_kwargs", {})
    if found.get("max_new_tokens") is not None:
        del found["max_length"]
    own_config = getattr(trainer.model, "generation_config", None)
    if getattr(own_config, "stop_strings", None) is not None:
        found["tokenizer"] = tokenizer_of(trainer)  # it finds them
    return {name: value for name, value in found.items() if value is not None}


def predictions(trainer: Any, inputs: Mapping[str, Any]) -> Tensor:
    """Return what a trainer's model generates for every row of a collated batch, as a Seq2SeqTrainer returns it.

    Args:
        trainer: whose model and settings these are.
        inputs: with labels: a row's output is that of its runs of labels, one after the other. Without: its ids are
            the prompt.

    Returns:
        (rows, n) int64: ids after the prompt, the end symbol included, and padding.

    Raises:
        UserError: a row has labels and no prompt: its first token has one.
    """
    adapter, settings, labels = adapted(trainer.model, inputs), trainer_settings(trainer), inputs.get("labels")
    if labels is not None and not has_targets(adapter, inputs):
        return labels.new_full((len(labels), 1), _pad(trainer))
    batch = collated_batch(adapter, inputs)
    ids: Tensor = inputs.get("input_ids", context_of(batch).first) if labels is None else labels
    some = _prompts_alone(batch) if labels is None else turns(adapter, batch, end_ids(adapter.inner, settings))
    if missing := set(batch.mask.any(1).nonzero().flatten().tolist()) - {turn.row for turn in some}:
        raise UserError(
            f"predict_with_generate: {len(missing)} of {batch.size} rows have a label on their first token, so that "
            "there is no prompt to generate after: labels of -100 there (completion_only_loss=True of SFTConfig), or "
            "predict_with_generate=False"
        )
    free = labels is not None and not has_length(adapter.inner, settings)
    outputs = generate(adapter, batch, some, settings, free_length=free)
    rows, layout = list(range(batch.size)), context_of(batch).layout
    if layout is not None and batch.size != len(ids):  # documents of packed rows
        rows = (layout.indices.amax(1) // ids.shape[1]).tolist()
    found: list[list[int]] = [[] for _ in ids]
    for turn, output in zip(some, outputs, strict=True):
        found[rows[turn.row]] += [*output.ids, *output.end]
    width = max(1, *map(len, found))
    return ids.new_tensor([row + [_pad(trainer)] * (width - len(row)) for row in found])


def _pad(trainer: Any) -> int:
    """What fills up outputs, as a Seq2SeqTrainer's do."""
    for known in (tokenizer_of(trainer), trainer.model.generation_config, trainer.model.config):
        for name in ("pad_token_id", "eos_token_id"):
            if isinstance(value := getattr(known, name, None), int):
                return value
    return 0


def _prompts_alone(batch: Batch) -> list[Turn]:
    """The rows of a batch without labels; all of a row is its prompt."""
    first, history, lengths = context_of(batch).first.tolist(), batch.history.tolist(), (~batch.replaceable).sum(1)
    return [Turn(row, [*first[row], *history[row][:n]], []) for row, n in enumerate(lengths.tolist())]


def has_length(model: Any, settings: Mapping[str, Any]) -> bool:
    """Return whether a model's generation settings, or these, say how long an output may be."""
    own, default = model.generation_config, GenerationConfig()
    for name in ("max_new_tokens", "max_length", "max_time", "stop_strings"):
        if settings.get(name) is not None or getattr(own, name, None) not in (None, getattr(default, name, None)):
            return True
    return False


@torch.no_grad()
def generate(
    adapter: Any, batch: Batch, some: Sequence[Turn], settings: Mapping[str, Any], *, free_length: bool
) -> list[Generated]:
    """Return what ``model.generate`` gives for every turn, in order.

    Args:
        adapter: of the model; the ``PreTrainedModel`` within generates, in evaluation mode.
        batch: complete, by ``adapter.batch``.
        some: turns of the batch.
        settings: arguments of ``model.generate`` beside the model's own settings.
        free_length: no setting has a length: every output is cut after ``Turn.cap`` ids.
    """
    model, context = adapter.inner, context_of(batch)
    ends, found, groups = end_ids(model, settings), dict[int, Generated](), dict[tuple[int, int], list[int]]()
    joined = not adapter.is_encoder_decoder and _fit_together(adapter, some, free_length)
    joined = joined and not _counts_padding(model.generation_config, settings) and _padding_is_inert(adapter)
    for number, turn in enumerate(some):
        groups.setdefault((0 if joined else len(turn.prompt), _forced(adapter, batch, turn)), []).append(number)
    returned = settings.get("num_return_sequences", model.generation_config.num_return_sequences)
    one = {} if returned in (None, 1) else {"num_return_sequences": 1}  # the best is scored
    for (_, forced), members in groups.items():
        group = [some[number] for number in members]
        picked = context.select(torch.tensor([turn.row for turn in group], device=context.first.device))
        lengths = [len(turn.prompt) for turn in group]
        others = picked.media.on_the_left(lengths)
        arguments: dict[str, Any] = {**picked.source, **others, **_prompts(adapter, group, picked.first)}
        if forced >= 0:
            arguments["forced_bos_token_id"] = forced
        begin = max(lengths)
        if free_length:
            room = max(turn.cap for turn in group)
            arguments["max_new_tokens"] = max(1, room if adapter.limit is None else min(room, adapter.limit - begin))
        with eval_mode(model):
            ids = _called(model, {**arguments, **settings, **one})
        if whispers := any(base.__name__ == "WhisperGenerationMixin" for base in type(model).__mro__):
            begin = 0  # its generate returns neither start nor end, and pads
        for number, turn, row in zip(members, group, ids[:, begin:].tolist(), strict=True):
            own, ended = until_end(row[: turn.cap] if free_length else row, ends)
            if whispers and not ended:
                own, ended = _without_pads(model, row, {**arguments, **settings})
            found[number] = Generated(own, ended, turn.reference, tuple(row[len(own) : len(own) + 1]) if ended else ())
    return [found[number] for number in range(len(some))]


def _forced(adapter: Any, batch: Batch, turn: Turn) -> int:
    """The first id that is forced in a row and not by the model's own settings; -1: none."""
    forced = context_of(batch).forced
    if forced is None or adapter.forces_prompt:
        return -1
    first = int(forced[turn.row, 0])
    return -1 if first == adapter.inner.generation_config.forced_bos_token_id else first


def _counts_padding(own: Any, settings: Mapping[str, Any]) -> bool:
    """Whether generation under these settings reads a prompt's ids or length, and so the padding before it."""
    changed = copy.deepcopy(own)
    for name, value in settings.items():
        setattr(changed, name, value)
    counted = changed.max_length not in (None, GenerationConfig().max_length) and changed.max_new_tokens is None
    return bool(counted or settings_of(changed).keys() - {"suppress_tokens", "min_new_tokens", "renormalize_logits"})


def _fit_together(adapter: Any, some: Sequence[Turn], free_length: bool) -> bool:
    """Whether every row has the positions that it may need when all are padded to the longest prompt."""
    longest = max(len(turn.prompt) for turn in some)
    return adapter.limit is None or not free_length or longest + max(turn.cap for turn in some) <= adapter.limit


def _without_pads(model: Any, row: list[int], settings: Mapping[str, Any]) -> tuple[list[int], bool]:
    """An output without the padding behind it, and whether it is shorter than it might have been."""
    own, width = model.generation_config, len(row)
    while row and row[-1] == own.pad_token_id:
        row = row[:-1]
    most = settings.get("max_new_tokens") or own.max_new_tokens
    most = most or (settings.get("max_length") or own.max_length or 21) - 1
    return row, len(row) < min(width, most) or width < most


def _called(model: Any, arguments: Mapping[str, Any]) -> Tensor:
    try:
        found = model.generate(**arguments)
    except UserError:
        raise
    except Exception as error:  # whatever a model's own generation raises
        if out_of_memory(error):
            raise
        raise UserError(
            f"{type(model).__name__}.generate raised {type(error).__name__}: {(str(error).splitlines() or [''])[0]}. "
            "The model's own generation_config decides (generation={...} changes it for the scores: "
            "generation={'max_new_tokens': 64})"
        ) from error
    return found if isinstance(found, Tensor) else found.sequences


def _start(model: Any) -> int | None:
    for config in (model.generation_config, model.config):
        for name in ("decoder_start_token_id", "bos_token_id"):
            if (value := getattr(config, name, None)) is not None:
                return int(value)
    return None


def _prompts(adapter: Any, some: Sequence[Turn], first: Tensor) -> dict[str, Tensor]:
    """The ids that generation goes on from; nothing where a decoder begins with its own start symbol."""
    prompts = [turn.prompt for turn in some]
    if adapter.is_encoder_decoder:
        if len(prompts[0]) == 1 and all(prompt == [_start(adapter.inner)] for prompt in prompts):
            return {}
        return {"decoder_input_ids": torch.tensor(prompts, device=first.device)}
    longest = max(map(len, prompts))
    missing = torch.tensor([longest - len(prompt) for prompt in prompts], device=first.device)
    pad = getattr(adapter.inner.generation_config, "pad_token_id", None) or 0
    ids = torch.tensor([[pad] * (longest - len(prompt)) + prompt for prompt in prompts], device=first.device)
    return {"input_ids": ids, "attention_mask": (torch.arange(longest, device=first.device) >= missing[:, None]).long()}


@torch.no_grad()
def _padding_is_inert(adapter: Any) -> bool:
    """Whether prompts of different lengths may be padded on the left: recurrent states and some positions see it."""
    if (known := getattr(adapter, "_left_padding", None)) is not None:
        return known
    model = adapter.inner
    ids = torch.arange(2, 8, device=model.device)[None] % adapter.target_vocab
    padded, mask = torch.nn.functional.pad(ids, (3, 0)), torch.ones(1, 9, dtype=torch.int64, device=ids.device)
    mask[:, :3] = 0
    more: dict[str, Tensor] = {}
    if adapter.accepts("position_ids"):
        more = {"position_ids": (mask.cumsum(1) - 1).clamp_min(0)}
    with eval_mode(model):
        alone = model(input_ids=ids, attention_mask=mask[:, 3:], use_cache=False).logits[:, -1].float()
        beside = model(input_ids=padded, attention_mask=mask, use_cache=False, **more).logits[:, -1].float()
    spread = float((alone - alone.mean(-1, keepdim=True)).abs().max())
    inert = float((alone - beside).abs().max()) <= 1e-3 * spread + 20 * torch.finfo(model.dtype).eps
    adapter._left_padding = inert
    return inert
