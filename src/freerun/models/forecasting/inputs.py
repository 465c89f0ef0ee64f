"""What a forecaster reads besides its history, and the refusal of what does not fit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from freerun.batch import Batch
from freerun.distributions import HEADS
from freerun.errors import UserError

HEAD_NAMES = ("point", *HEADS)


class Categories(nn.Module):
    """Covariates of which some are numbers of categories: these are replaced by learned vectors, at the end.

    Args:
        channels: of each category its number among the covariates, and how many names it has.
        width: of a vector.
    """

    def __init__(self, channels: Sequence[tuple[int, int]], covariates: int, width: int) -> None:
        super().__init__()
        self.channels = [number for number, _ in channels]
        self.others = [number for number in range(covariates) if number not in self.channels]
        self.width = len(self.others) + width * len(channels)
        self.vectors = nn.ModuleList(nn.Embedding(names, width) for _, names in channels)

    def forward(self, covariates: Tensor) -> Tensor:
        """(..., covariates) -> (..., width)."""
        codes = [covariates[..., number].long() for number in self.channels]
        vectors = [table(code) for table, code in zip(self.vectors, codes, strict=True)]
        return torch.cat([covariates[..., self.others], *vectors], -1)


def category_problems(categories: Any, covariates: Any) -> list[str]:
    """The problems of a forecaster's categories."""
    pairs = isinstance(categories, tuple | list) and all(
        isinstance(each, tuple | list) and len(each) == 2 and all(isinstance(n, int) for n in each)
        and isinstance(covariates, int) and 0 <= each[0] < covariates and each[1] > 0
        for each in categories
    )  # fmt: skip
    if pairs and len({each[0] for each in categories}) == len(categories):
        return []
    return [
        f"categories must be pairs of different channels of the {covariates} covariates, counted from 0, and how many "
        f"names each has; got {categories!r}"
    ]


def numbers_a_value(head: str) -> int:
    """How many numbers a head has for one value.

    >>> numbers_a_value("point"), numbers_a_value("gaussian")
    (1, 2)
    """
    return 1 if head == "point" else HEADS[head]().parameters


def with_last(outputs: Tensor, last: Tensor, head: str) -> Tensor:
    """(..., numbers of the head * V) with (..., V) added to what has a place: every quantile, else the location."""
    values = last.shape[-1]
    if head == "quantiles":
        return (outputs.unflatten(-1, (-1, values)) + last[..., None, :]).flatten(-2)
    if outputs.shape[-1] == values:
        return outputs + last
    return torch.cat([outputs[..., :values] + last, outputs[..., values:]], -1)


def size_problems(settings: Mapping[str, Any], layout: str) -> list[str]:
    """The problems of a forecaster's arguments that all forecasters share."""
    problems = [
        f"{name} must be a whole number of at least {least}; got {settings[name]!r}"
        for name, least in (
            ("values", 1),
            ("covariates", 0),
            ("observed", 0),
            ("size", 1),
            ("layers", 1),
            ("embedding", 1),
        )
        if name in settings and (not isinstance(settings[name], int) or settings[name] < least)
    ]
    if layout == "sequence" and settings.get("observed", 0):
        problems.append(
            f"observed channels are known in the past only, and this model reads one sequence in which the past has no "
            f"positions of its own; got observed={settings['observed']}: use 0, or a model of layout 'past' "
            "(RecurrentForecaster)"
        )
    if "head" in settings and settings["head"] not in HEAD_NAMES:
        problems.append(f"head must be one of {', '.join(HEAD_NAMES)}; got {settings['head']!r}")
    if not isinstance(settings.get("level", False), bool):
        problems.append(f"level must be True or False; got {settings['level']!r}")
    dropout = settings.get("dropout", 0)
    if not isinstance(dropout, int | float) or not 0 <= dropout < 1:
        problems.append(f"dropout must lie in [0, 1); got {dropout!r}")
    return problems


def check_history(batch: Batch, values: int, owner: str) -> None:
    """Refuse a batch of ids, or of another number of values."""
    if batch.is_discrete:
        raise UserError(f"{owner} is for real values (batch, time, {values}); this batch holds ids")
    if batch.history.shape[2] != values:
        raise UserError(
            f"{owner} was made for {values} values a position, and the batch's history has {batch.history.shape[2]}: "
            f"make it with values={batch.history.shape[2]}"
        )


def covariates_of(context: Any, batch: Batch, covariates: int, owner: str) -> Tensor | None:
    """The known-future channels (batch, at least time, covariates) of a context; None where there are none."""
    future = context.get("future") if isinstance(context, Mapping) else None
    if covariates == 0:
        if future is not None and future.shape[-1]:
            raise UserError(
                f"{owner} was made without covariates, and context['future'] has {future.shape[-1]} channels: make it "
                f"with covariates={future.shape[-1]}, or leave them out"
            )
        return None
    if future is None:
        raise UserError(
            f"covariates are missing at generation: {owner} reads {covariates} and the batch's context has no "
            f"'future': give context['future'] = (batch, time, {covariates})"
        )
    if (
        not isinstance(future, Tensor)
        or future.dim() != 3
        or future.shape[0] != batch.size
        or future.shape[2] != covariates
    ):
        raise UserError(
            f"context['future'] must be (batch, time, covariates) = ({batch.size}, {batch.time}, {covariates}); got "
            f"{tuple(future.shape) if isinstance(future, Tensor) else type(future).__name__}"
        )
    if future.shape[1] < batch.time:
        raise UserError(
            f"covariates are missing at generation: the batch has {batch.time} positions and context['future'] covers "
            f"{future.shape[1]}"
        )
    return future


def past_of(context: Any, batch: Batch, sizes: tuple[int, int, int], owner: str) -> Tensor:
    """The past (batch, past_time, sum of ``sizes``) of a context; ``sizes``: values, observed, covariates."""
    values, observed, covariates = sizes
    width = values + observed + covariates
    expected = f"(batch, past_time, {width}): {values} values, {observed} observed, {covariates} covariates"
    past = context.get("past") if isinstance(context, Mapping) else None
    if not isinstance(past, Tensor):
        got = f"keys {sorted(map(str, context))}" if isinstance(context, Mapping) else type(context).__name__
        raise UserError(f"{owner} needs Batch.context = {{'past': {expected}}}; got {got}")
    if past.dim() != 3 or past.shape[0] != batch.size or past.shape[2] != width or past.shape[1] == 0:
        raise UserError(f"context['past'] must be {expected}; got {tuple(past.shape)}")
    return past


def level_of(context: Any, batch: Batch, reads: bool, owner: str) -> Tensor | None:
    """(batch, at least time, 1) noise levels of the entries that the positions read; None for a model without level.

    Position t reads ``history[:, t-1]``, and with it ``context["level"][:, t-1]``; what has no level is clean: 0.
    """
    level = context.get("level") if isinstance(context, Mapping) else None
    if not reads:
        if level is not None:
            raise UserError(f"{owner} was made without level, and the context has one: make it with level=True")
        return None
    if level is None:
        return batch.history.new_zeros(batch.size, batch.time, 1)
    fits = isinstance(level, Tensor) and level.dim() == 2 and len(level) == batch.size and level.is_floating_point()
    if not fits:
        got = f"{tuple(level.shape)} {level.dtype}" if isinstance(level, Tensor) else type(level).__name__
        raise UserError(
            f"context['level'] must be real numbers in [0, 1], (batch, time) = ({batch.size}, {batch.time}), of the "
            f"entries of the history; got {got}"
        )
    return F.pad(level, (1, max(0, batch.time - 1 - level.shape[1])))[..., None].to(batch.history.dtype)


def joined(inputs: Tensor, covariates: Tensor | None, level: Tensor | None, categories: Categories | None) -> Tensor:
    """(..., inputs) with the covariates, vectors in the stead of categories, and the noise level behind."""
    parts = [inputs]
    if covariates is not None:
        parts.append(covariates if categories is None else categories(covariates))
    if level is not None:
        parts.append(level)
    return inputs if len(parts) == 1 else torch.cat(parts, -1)


def the_level(level: Tensor | None, position: int) -> Tensor | None:
    """(batch, 1) of what is read at a position, from (time, batch, 1); beyond its end entries are clean."""
    if level is None or position < len(level):
        return None if level is None else level[position]
    return torch.zeros_like(level[0])


def the_future(future: Tensor | None, position: int) -> Tensor | None:
    """(batch, covariates) of the step predicted at a position, from (time, batch, covariates)."""
    if future is None:
        return None
    if position >= future.shape[0]:
        raise UserError(
            f"covariates are missing at generation: position {position} is to be predicted and context['future'] "
            f"covers {future.shape[0]}"
        )
    return future[position]
