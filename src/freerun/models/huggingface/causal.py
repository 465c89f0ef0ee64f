"""A decoder alone as a Model: prompts, completions, padding on either side, packed rows."""

from __future__ import annotations

from collections.abc import Mapping
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
    id_problems,
    row_problems,
    shape_problems,
    two_dimensional,
)

_DOCUMENTS = 2**20
"""Numbers of a packed row's documents: document d of row r has number r * this + d."""


_PACKED = ("seq_idx", "cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k")
"""What collators that pack rows give besides position_ids."""


def _checked(arguments: Mapping[str, Any], rows: Any, replaceable: Any, vocab: int) -> Mapping[str, Any]:
    """The arguments if they fit together; positions that are the same for all rows are written out."""
    ids, positions = arguments["input_ids"], arguments.get("position_ids")
    if problems := two_dimensional("input_ids", ids):
        raise UserError(problems)
    if isinstance(positions, Tensor) and positions.shape == (1, ids.shape[1]):
        arguments = {**arguments, "position_ids": positions.expand_as(ids)}
    problems = shape_problems(arguments, ids.shape, ("attention_mask", "labels", "position_ids"))
    problems += row_problems(rows, replaceable, ids.shape)
    if not problems:
        problems = id_problems("input_ids", ids, vocab) + id_problems("labels", arguments.get("labels"), vocab)
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


def _others(arguments: Mapping[str, Any], shape: torch.Size, row: Tensor) -> dict[str, Tensor]:
    known = {"input_ids", "attention_mask", "position_ids", "labels", *_PACKED}
    others = batch_first({name: value for name, value in arguments.items() if name not in known}, shape[0])
    by_token = [name for name, value in others.items() if value.shape[:2] == shape]
    if by_token:
        raise UserError(
            f"{', '.join(by_token)}: the model would need this for its own tokens too, which is not "
            "supported: leave it out of the collator"
        )
    if others and len(row) > shape[0]:
        raise UserError(
            f"packed rows are taken apart into documents, and {', '.join(others)} cannot be: leave packing off"
        )
    return {name: value[row] for name, value in others.items()}


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
        """A collator's tensors as a Batch; ``inputs`` reverses it.

        Targets and history are the tokens after each row's first. Prompts, padding and a row's first token are never
        replaced, and only tokens that ``labels`` hold count.

        Args:
            input_ids: (batch, time) ids, padded on either side or packed.
            attention_mask: (batch, time), 0 = padding; None: there is none.
            labels: (batch, time) the ids, -100 where nothing is to be learned (prompt, padding); not shifted, as for
                the model's own loss. None: prompts to continue (``freerun.generate``), nothing counts.
            position_ids: (batch, time) counting 0, 1, ... in every row, and from 0 again in every packed document.
            replaceable: (batch, time) bool: tokens that may be replaced, of those that count; None: all.
            rows: (batch,) the examples' numbers in the optimizer step's global batch; default 0..batch-1.
            others: further arguments of the model's forward, batch first.

        Raises:
            UserError: shapes, ids or positions that do not fit, nothing to learn, or more tokens than positions.
        """
        arguments = {"input_ids": input_ids, "attention_mask": attention_mask, "labels": labels, **others}
        arguments = {k: v for k, v in {**arguments, "position_ids": position_ids}.items() if v is not None}
        arguments = _checked(arguments, rows, replaceable, self.target_vocab)
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
        others = _others({k: v for k, v in arguments.items() if k in self._accepted}, ids.shape, row)
        context = SourceContext(flat[:, :1], others=others, layout=Layout(arguments, index[:, 1:]))
        self.refuse_longer(history.shape[1])
        if labels is None:  # a prompt: what comes after it is generated
            return Batch(
                history, history, torch.zeros_like(there[:, 1:]), context, eligible=~there[:, 1:], rows=numbers
            )
        expected = labels.flatten()[index.clamp_min(0)].masked_fill(~there, -100)[:, 1:]
        mask = expected != -100
        if not bool(mask.any()):
            raise UserError(
                "no token of the batch is to be learned: all labels are -100 (a row's first token never counts: "
                "nothing predicts it); was the completion cut off at max_length?"
            )
        eligible = mask & (expected == history)
        if replaceable is not None:
            eligible = eligible & replaceable.flatten()[index.clamp_min(0)][:, 1:]
        return Batch(torch.where(mask, expected, history), history, mask, context, eligible=eligible, rows=numbers)

    def inputs(self, batch: Batch) -> dict[str, Any]:
        """Keyword arguments for the model's own forward: those of ``batch``, with its history in them.

        Where tokens are padded on the left and the batch has no ``position_ids``, some that skip the padding are added.

        Raises:
            UserError: rows have been selected from the batch.
        """
        layout = self.layout_of(batch)
        arguments = {**layout.arguments, "input_ids": layout.filled(layout.arguments["input_ids"], batch.history)}
        mask = arguments.get("attention_mask")
        unset = "position_ids" not in arguments and self.accepts("position_ids")
        if mask is not None and unset and bool((mask[:, :-1] < mask[:, 1:]).any()):
            arguments["position_ids"] = (mask.long().cumsum(1) - 1).clamp_min(0)
        return arguments

    def arguments(self, context: SourceContext, history: Tensor, vectors: Tensor | None = None) -> dict[str, Any]:
        """The decoder's ids, whose padding has been taken out."""
        return {**self.read_ids(context, history, vectors), **context.others}
