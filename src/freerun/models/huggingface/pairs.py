"""An encoder-decoder's batch: a source, and what its decoder says."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from freerun.errors import UserError
from freerun.models.huggingface.given import id_problems, row_problems, shape_problems, two_dimensional
from freerun.models.huggingface.told import Layout, Told, batch_first
from freerun.types import Batch

__all__ = ["pair_batch"]

_DECODER = ("labels", "decoder_input_ids", "decoder_attention_mask")


def pair_batch(
    given: Mapping[str, Any],
    shifted: Callable[[Tensor | None, int], Tensor],
    *,
    rows: Tensor | None,
    replaceable: Tensor | None,
    vocab: int,
) -> Batch:
    """Sources and labels as a Batch: targets are the labels, the history what the decoder is told but its first id.

    Args:
        given: what the encoder reads, ``labels`` (batch, time) with -100 where nothing counts, and where there are any
            ``decoder_input_ids`` (else the model's own shift of the labels) and ``decoder_attention_mask``.
        shifted: from labels (None: there are none) and the number of rows to the decoder's ids.
        rows: (batch,) the examples' numbers in the global batch.
        replaceable: (batch, time) bool: labels that may be replaced besides where they count.
        vocab: number of the decoder's ids.

    Raises:
        UserError: what does not fit together, all at once.
    """
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


def _context(given: Mapping[str, Any], source: dict[str, Tensor], fed: Tensor) -> Told:
    # history entry t is the decoder's id t + 1; the last one is told to nobody
    places = torch.arange(fed.numel(), device=fed.device).view_as(fed)[:, 1:]
    places = torch.nn.functional.pad(places, (0, 1), value=-1)
    return Told(fed[:, :1], source, layout=Layout({**given, "decoder_input_ids": fed}, places))


def _padding_problems(mask: Tensor | None) -> list[str]:
    if mask is None or not bool((mask[:, :-1] < mask[:, 1:]).any()):
        return []
    return ["decoder_attention_mask has padding on the left: pad labels and decoder_input_ids on the right"]
