"""``diagnose`` for ids: choices told gold and told its own, compared with gold place by place."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from freerun.diagnostics.after import after_error, first_error, position_errors
from freerun.diagnostics.diagnosis import IdDiagnosis, IdSide
from freerun.errors import UserError
from freerun.generate import generate
from freerun.generate.walk import prompt_lengths
from freerun.rollin.modes import evaluating
from freerun.rollin.outputs import forward
from freerun.types import Batch

__all__ = ["diagnose_ids"]


def diagnose_ids(
    model: Any, batches: Sequence[Batch], end: int | None, watch: Callable[[str], None] | None = None
) -> IdDiagnosis:
    """See ``diagnose``."""
    if not any(bool(batch.mask.any()) for batch in batches):
        raise UserError("the batches have no position that counts: nothing can be compared")
    places = [_places(batch) for batch in batches]
    longest = max(place.shape[1] for place in places)
    told: list[Tensor] = []
    own: list[Tensor] = []
    masks: list[Tensor] = []
    for number, batch in enumerate(batches):
        if watch:
            watch(f"rows, part {number + 1} of {len(batches)}")
        with evaluating(model), torch.no_grad():
            choices = forward(model, batch).argmax(-1)
        place = places[number]
        there = place < batch.time
        targets, mask, choices = (
            part.gather(1, place.clamp_max(batch.time - 1)) for part in (batch.targets, batch.mask, choices)
        )
        mask = mask & there
        said = generate(model, batch, length=place.shape[1], end=end).entries
        for found, entries in ((told, choices), (own, said)):
            found.append(_widened((entries != targets) & mask, longest))
        masks.append(_widened(mask, longest))
    mask = torch.cat(masks)
    forced, free = (torch.cat(found) for found in (told, own))
    sides = [_side(wrong, mask) for wrong in (forced, free)]
    gaps = [b - a for a, b in zip(sides[0].wrong_by_position, sides[1].wrong_by_position, strict=True)]
    firsts = torch.bincount(first_error(free, mask), minlength=longest + 1)[1:]
    left = position_errors(forced, mask)[1]
    return IdDiagnosis(
        rows=mask.shape[0],
        positions=longest,
        left=tuple(left.tolist()),
        teacher_forced=sides[0],
        free_running=sides[1],
        gap_by_position=tuple(gaps),
        first_error=tuple(firsts.tolist()),
    )


def _places(batch: Batch) -> Tensor:
    """(rows, longest) each row's places from the end of its prompt on, as many as the longest answer has."""
    told = prompt_lengths(batch)
    index = torch.arange(batch.time, device=told.device)
    length = int((torch.where(batch.mask, index + 1, 0).amax(1) - told).max())
    return told[:, None] + torch.arange(max(1, length), device=told.device)


def _widened(part: Tensor, longest: int) -> Tensor:
    return F.pad(part.cpu(), (0, longest - part.shape[1]))


def _side(wrong: Tensor, mask: Tensor) -> IdSide:
    shares, _ = position_errors(wrong, mask)
    return IdSide(tuple(shares.tolist()), float(wrong[mask].double().mean()), after_error(wrong, mask))
