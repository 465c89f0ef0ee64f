"""A decoder alone as a Model: prompts, completions, padding on either side, packed rows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from freerun.batch import Batch
from freerun.errors import UserError
from freerun.models.huggingface.heads import answer
from freerun.models.huggingface.media import Carried, Cutting, Media, features_of, mark_ids, modality_of
from freerun.models.huggingface.model import (
    HuggingFaceModel,
    Layout,
    SourceContext,
    context_of,
    id_problems,
    misnamed,
    row_problems,
    shape_problems,
    two_dimensional,
    widened,
)

_DOCUMENTS = 2**20
"""Numbers of a packed row's documents: document d of row r has number r * this + d."""


_PACKED = ("seq_idx", "cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k")
"""What collators that pack rows give besides position_ids."""


def _checked(arguments: Mapping[str, Any], rows: Any, replaceable: Any, table: int, vocab: int) -> Mapping[str, Any]:
    """The arguments if they fit together; positions that are the same for all rows are written out."""
    ids, positions = arguments.get("input_ids"), arguments.get("position_ids")
    if ids is None:
        raise UserError(
            f"input_ids is missing; got {', '.join(arguments) or 'nothing'}: entries of a decoder's history are ids, "
            "which inputs_embeds are not"
        )
    if problems := two_dimensional("input_ids", ids):
        raise UserError(problems)
    if isinstance(positions, Tensor) and positions.shape == (1, ids.shape[1]):
        arguments = {**arguments, "position_ids": positions.expand_as(ids)}
    problems = shape_problems(arguments, ids.shape, ("attention_mask", "labels", "position_ids"))
    problems += row_problems(rows, replaceable, ids.shape)
    if not problems:
        problems = id_problems("input_ids", ids, table) + id_problems("labels", arguments.get("labels"), vocab)
    if problems:
        raise UserError(problems)
    return arguments


def _present(arguments: Mapping[str, Any]) -> Tensor:
    mask = arguments.get("attention_mask")
    if mask is None:
        return torch.ones_like(arguments["input_ids"], dtype=torch.bool)
    present = mask.bool()
    if not bool(present.any(1).all()):
        row = int((~present.any(1)).nonzero()[0])
        raise UserError(f"attention_mask leaves no token in row {row}: leave the row out, or give it a start symbol")
    return present


def _starts(arguments: Mapping[str, Any], present: Tensor) -> Tensor:
    """(batch, time) bool: the first token of every document."""
    first = present & (present.cumsum(1) == 1)
    positions = arguments.get("position_ids")
    if positions is None:
        if packed := [name for name in _PACKED if arguments.get(name) is not None]:
            raise UserError(
                f"the batch has {', '.join(packed)} but no position_ids: packed documents are separated by positions "
                "that begin again at 0; let the collator return them (return_position_ids=True)"
            )
        return first
    starts = present & ((positions == 0) | first)
    # within a document positions must count 0, 1, 2, ...
    index = present.cumsum(1) - 1
    begun = torch.where(starts, index, 0).cummax(1).values
    wrong = present & (positions != index - begun)
    if bool(wrong.any()):
        row = int(wrong.any(1).nonzero()[0])
        raise UserError(
            "position_ids must count 0, 1, 2, ... over the tokens of every row or packed document; row "
            f"{row} has {positions[row][present[row]].tolist()[:12]}"
        )
    return starts


def _placed(present: Tensor, start: Tensor) -> tuple[Tensor, Tensor]:
    """(documents,) the row that each comes from, and (documents, longest) indices of its flattened ids, -1: none."""
    width = present.shape[1]
    where = present.flatten().nonzero().squeeze(1)
    document = start.flatten()[where].cumsum(0) - 1
    first = start.flatten()[where].nonzero().squeeze(1)
    number = torch.arange(len(where), device=where.device) - first[document]
    index = torch.full((len(first), int(number.max()) + 1), -1, device=where.device)
    index[document, number] = where
    return where[first] // width, index


def _numbers(row: Tensor, rows: Tensor | None, size: int, *, packed: bool) -> Tensor:
    numbers = torch.arange(size, device=row.device) if rows is None else rows.to(row.device)
    if not packed:
        return numbers[row]
    first = torch.searchsorted(row, row)  # of the documents of the same row; they lie side by side
    return numbers[row] * _DOCUMENTS + torch.arange(len(row), device=row.device) - first


_FED = (
    "inputs_embeds", "past_key_values", "cache_params", "use_cache", "return_dict", "logits_to_keep",
    "num_items_in_batch", "shift_labels",
)  # fmt: skip
"""Arguments of a forward that are freerun's to give, or its own loss's."""


def _media(m: HuggingFaceModel, arguments: Mapping[str, Any], row: Tensor, index: Tensor) -> Media:
    """What a forward takes besides ids, with the ways to cut it; ``index`` (rows, time) as of ``_placed``."""
    ids = arguments["input_ids"]
    others = {n: v for n, v in arguments.items() if n not in {*_OWN, *_PACKED}}
    problems = [f"{name} is freerun's to give: leave it out of the batch" for name in others if name in _FED]
    problems += misnamed(m, others, arguments.get("labels"))
    problems += [
        f"{name} is no argument of {type(m.inner).__name__}.forward: leave it out of the collator"
        for name in others
        if not (m.accepts(name) or m.takes_any or name in _FED)
    ]
    there = index >= 0
    laid = ids.flatten()[index.clamp_min(0)].masked_fill(~there, -1)
    cutting = Cutting(m.inner, arguments, laid)
    parts: dict[str, Carried] = {}
    for name, value in others.items():
        if (
            isinstance(value, Tensor)
            and value.shape[:2] == ids.shape
            and (value.dim() == 2 or modality_of(name) is None)
        ):
            parts[name] = _by_token(m.inner, name, value, there, index)
            continue
        part = (
            cutting.carried(name) if len(row) == len(ids) or not isinstance(value, Tensor) else _UNPACKED.format(name)
        )
        if isinstance(part, str):
            problems.append(part)
        else:
            parts[name] = part
    if problems:
        raise UserError(problems)
    placeholders = tuple(i for ids in cutting.placeholders.values() for i in ids)
    tokens = {n: t for n, t in cutting.tokens.items() if any(part.modality == n for part in parts.values())}
    known = None
    if any(bool(counts.any()) for counts in tokens.values()):
        stands = torch.isin(laid, laid.new_tensor(placeholders))
        known = (stands.flip(1).cumsum(1) > 0).sum(1).sub(1).clamp_min(0)
    return Media(parts, placeholders, tokens, known=known, marks=() if known is None else mark_ids(m.inner.config))


_OWN = {"input_ids", "attention_mask", "position_ids", "labels"}
_UNPACKED = "packed rows are taken apart into documents, and {} cannot be: leave packing off"


def _by_token(inner: Any, name: str, value: Tensor, there: Tensor, index: Tensor) -> Carried:
    """An argument that goes by tokens, laid out like them, and continued as the model's ``generate`` does."""
    laid = value.flatten(0, 1)[index.clamp_min(0)]
    rows = torch.arange(len(laid), device=laid.device)
    last = laid[rows, there.sum(1) - 1][:, None]
    fill = inner._update_model_kwargs_for_generation(answer(last), {name: last}, is_encoder_decoder=False)[name][:, -1:]
    beyond = there.view(*there.shape, *[1] * (laid.dim() - 2))
    return Carried(torch.where(beyond, laid, fill), fill=fill)


def _shift_problems(name: str, ids: Tensor, labels: Tensor, *, shifts: bool) -> list[str]:
    """Labels that stand where the model's own loss does not look for them."""
    counted = labels != -100
    number = int(counted.sum())
    same = int(((labels == ids) & counted).sum())
    later = int(((labels[:, :-1] == ids[:, 1:]) & counted[:, :-1]).sum())
    right, wrong = (same, later) if shifts else (later, same)
    if number < 4 or 2 * wrong <= number or right >= wrong:
        return []
    row = int(counted.sum(1).argmax())
    pattern = f"row {row} has ids {ids[row].tolist()[:10]} and labels {labels[row].tolist()[:10]}"
    if shifts:
        return [
            f"labels are the ids one position later ({pattern}), and {name} shifts them itself: it would learn to "
            "predict the token after the next. Do not shift in the collator: labels = input_ids, -100 where nothing is "
            "to be learned"
        ]
    return [
        f"labels are the ids at their own positions ({pattern}), and {name} does not shift them: its loss would teach "
        "it to repeat the token that it reads. Shift in the collator: labels[:, :-1] = input_ids[:, 1:], "
        "labels[:, -1] = -100"
    ]


def _at_their_ids(
    arguments: Mapping[str, Any], replaceable: Tensor | None
) -> tuple[dict[str, Any], Tensor | None, Tensor]:
    """A batch whose labels are the next ids, as one with labels at their ids; each id's index in the first, -1: none.

    Ids are a column longer, as a row's last label may be none of them.
    """
    ids, labels = arguments["input_ids"], arguments["labels"]
    if packed := [name for name in ("position_ids", *_PACKED) if arguments.get(name) is not None]:
        raise UserError(
            f"{', '.join(packed)}: rows whose labels are shifted by the collator cannot be packed: leave packing off"
        )
    present = _present(arguments)
    rows = torch.arange(len(ids), device=ids.device)
    last = present.shape[1] - 1 - present.flip(1).long().argmax(1)
    index = torch.nn.functional.pad(torch.arange(ids.numel(), device=ids.device).view_as(ids), (0, 1), value=-1)
    wider = {n: torch.nn.functional.pad(v, (0, 1)) for n, v in arguments.items()
             if isinstance(v, Tensor) and v.shape == ids.shape}  # fmt: skip
    wider["attention_mask"] = torch.nn.functional.pad(present.long(), (0, 1))
    rows = rows[labels[rows, last] != -100]
    at = last[rows]
    wider["input_ids"][rows, at + 1], wider["attention_mask"][rows, at + 1] = labels[rows, at], 1
    index[rows, at + 1] = -1
    wider["labels"] = torch.nn.functional.pad(labels, (1, 0), value=-100).masked_fill(
        wider["attention_mask"] == 0, -100
    )
    replaceable = None if replaceable is None else torch.nn.functional.pad(replaceable, (0, 1), value=True)
    return {**arguments, **wider}, replaceable, index.flatten()


def _learned(expected: Tensor, history: Tensor, media: Any) -> tuple[Tensor, Tensor]:
    """(batch, time) positions that count, and history entries that may be replaced."""
    mask = expected != -100
    if not bool(mask.any()):
        raise UserError(
            "no token of the batch is to be learned: all labels are -100 (a row's first token never counts: "
            "nothing predicts it); was the completion cut off at max_length?"
        )
    eligible = mask & (expected == history) & ~torch.isin(history, history.new_tensor(media.placeholders))
    if media.known is not None:  # what comes before an image is read together with it
        eligible = eligible & (torch.arange(history.shape[1], device=history.device) >= media.known[:, None])
    return mask, eligible


class CausalModel(HuggingFaceModel):
    """A decoder alone."""

    is_encoder_decoder = False

    def batch(
        self,
        *,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        position_ids: Tensor | None = None,
        replaceable: Tensor | None = None,
        rows: Tensor | None = None,
        **others: Any,
    ) -> Batch:
        """A collator's tensors as a Batch; ``inputs`` reverses it.

        Targets and history are the tokens after each row's first. Prompts, padding, a row's first token, and what comes
        before its last image are never replaced, and only tokens that ``labels`` hold count.

        Args:
            input_ids: (batch, time) ids, padded on either side or packed.
            attention_mask: (batch, time), 0 = padding; None: there is none.
            labels: (batch, time) the ids, -100 where nothing is to be learned (prompt, padding), as for the model's
                own loss: not shifted, but for classes that do not shift them (``m.shifts`` is False:
                ``BartForCausalLM``). None: prompts to continue (``freerun.generate``), nothing counts.
            position_ids: (batch, time) counting 0, 1, ... in every row, and from 0 again in every packed document.
            replaceable: (batch, time) bool: tokens that may be replaced, of those that count; None: all.
            rows: (batch,) the examples' numbers in the optimizer step's global batch; default 0..batch-1.
            others: further arguments of the model's forward: one for each row or for each token; images, videos and
                audio that ids stand for, in the order of the rows, however many a row has.

        Raises:
            UserError: shapes, ids or positions that do not fit, nothing to learn, or more tokens than positions.
        """
        arguments = {"input_ids": input_ids, "attention_mask": attention_mask, "labels": labels, **others}
        arguments = {k: v for k, v in {**arguments, "position_ids": position_ids}.items() if v is not None}
        arguments = {k: widened(v) if k in ("input_ids", "labels") else v for k, v in arguments.items()}
        labels = arguments.get("labels")
        table = self._embeddings().weight.shape[0]
        collated = arguments = _checked(arguments, rows, replaceable, table, self.target_vocab)
        at: Tensor | None = None
        if labels is not None:
            name = type(self.inner).__name__
            if problems := _shift_problems(name, arguments["input_ids"], labels, shifts=self.shifts):
                raise UserError(problems)
            if not self.shifts:
                arguments, replaceable, at = _at_their_ids(arguments, replaceable)
                labels = arguments["labels"]
        ids = arguments["input_ids"]
        present = _present(arguments)
        start = _starts(arguments, present)
        row, index = _placed(present, start)
        time = index.shape[1] - 1 + (labels is None)
        if time == 0:
            raise UserError("every row has a single token: there is nothing to predict from it")
        if labels is None:
            index = torch.nn.functional.pad(index, (0, 1), value=-1)
        there = index >= 0
        flat = ids.flatten()[index.clamp_min(0)].masked_fill(~there, 0)
        history = flat[:, 1:].contiguous()
        numbers = _numbers(row, rows, ids.shape[0], packed=bool((start.sum(1) > 1).any()))
        media = _media(self, arguments, row, index)
        own = index if at is None else torch.where(there, at[index.clamp_min(0)], -1)
        context = SourceContext(flat[:, :1], media=media, layout=Layout(collated, own[:, 1:]))
        self.try_anew(arguments)
        self.refuse_longer(history.shape[1])
        if labels is None:  # a prompt: what comes after it is generated
            return Batch(
                history, history, torch.zeros_like(there[:, 1:]), context, eligible=~there[:, 1:], rows=numbers
            )
        expected = labels.flatten()[index.clamp_min(0)].masked_fill(~there, -100)[:, 1:]
        mask, eligible = _learned(expected, history, media)
        if replaceable is not None:
            eligible = eligible & replaceable.flatten()[index.clamp_min(0)][:, 1:]
        return Batch(torch.where(mask, expected, history), history, mask, context, eligible=eligible, rows=numbers)

    def inputs(self, batch: Batch) -> dict[str, Any]:
        """Keyword arguments for the model's own forward: those of ``batch``, with its history in them.

        Where tokens are padded on the left and the batch has no ``position_ids``, some that skip the padding are added,
        unless the model counts by its ids.

        Raises:
            UserError: rows have been selected from the batch.
        """
        layout = self.layout_of(batch)
        arguments = {**layout.arguments, "input_ids": layout.filled(layout.arguments["input_ids"], batch.history)}
        mask = arguments.get("attention_mask")
        unset = "position_ids" not in arguments and self.accepts("position_ids")
        if mask is not None and unset and bool((mask[:, :-1] < mask[:, 1:]).any()) and self.from_zero:
            arguments["position_ids"] = (mask.long().cumsum(1) - 1).clamp_min(0)
        return arguments

    def arguments(self, context: SourceContext, history: Tensor, vectors: Tensor | None = None) -> dict[str, Any]:
        """The decoder's ids, whose padding has been taken out."""
        read = self.read_ids(context, history, vectors)
        return {**read, **context.media.arguments(1 + history.shape[1])}


class MediaEncoding(CausalModel):
    """One that takes images encoded before: ``freerun.types.Encoder``."""

    def encode(self, batch: Batch) -> Batch:
        """The batch with its images encoded; one without, or encoded already, is returned.

        What is to be differentiated through a wrapper is not, as its encoder runs inside it.
        """
        context = context_of(batch)
        media = context.media
        inside = torch.is_grad_enabled() and self.model is not self.inner
        if media.known is None or media.features is not None or inside:
            return batch
        arguments = {name: part.value for name, part in media.parts.items()}
        used = {name: tokens for name, tokens in media.tokens.items() if bool(tokens.any())}
        features = {name: features_of(self.inner, name, arguments, tokens) for name, tokens in used.items()}
        found = {name: part for name, part in features.items() if part is not None}
        if len(found) < len(used) or not self.accepts("mm_encoder_outputs"):
            return batch
        return batch.made(context=replace(context, media=replace(media, features=found)))
