"""Channels, their normalisation and the form of a batch: what a model keeps of the series it was trained on."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from freerun.brief import brief
from freerun.data.series.gaps import LARGEST
from freerun.data.series.options import Layout, check_layout
from freerun.data.text import check_description, first_problems
from freerun.errors import UserError
from freerun.types import Batch

__all__ = ["SeriesCoder"]


@dataclass(frozen=True)
class SeriesCoder:
    """What a trained model needs of its series: channels in order (targets, observed, covariates), and their scales.

    Args:
        channels: all names, in that order.
        mean: of each channel in the training rows, raw; 0 where it is not normalised.
        std: the same; 1 where it is not normalised.
        values: V, how many are targets.
        covariates: C, how many are known in the future; what is left are the observed ones.
        past: steps known.
        horizon: steps predicted.
        layout: "past" or "sequence".
        period: steps of a season.
        step: time between two rows, in words.
        time: column of time stamps.
        calendar: which of the covariates, the last ones, are computed from it.
        series: column that names the series a row belongs to.

    Raises:
        UserError: the numbers do not fit each other.

    >>> coder = SeriesCoder(("x",), (1.0,), (2.0,), values=1, covariates=0, past=2, horizon=3, layout="sequence")
    >>> coder.past_batch(torch.tensor([[1.0], [3.0]])).targets[0, :, 0].tolist()
    [0.0, 1.0, 0.0, 0.0, 0.0]
    >>> SeriesCoder.from_description(coder.describe()) == coder
    True
    """

    __repr__ = brief

    channels: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    values: int
    covariates: int
    past: int
    horizon: int
    layout: Layout
    period: int | None = None
    step: str | None = None
    time: str | None = None
    calendar: tuple[str, ...] = ()
    series: str | None = None

    def __post_init__(self) -> None:
        problems = check_layout(self.layout, self.channels[self.values : len(self.channels) - self.covariates])
        if not len(self.channels) == len(self.mean) == len(self.std):
            problems.append(f"{len(self.channels)} channels have {len(self.mean)} means, {len(self.std)} deviations")
        if self.values < 1 or self.covariates < 0 or self.observed < 0:
            problems.append(
                f"{len(self.channels)} channels cannot be {self.values} targets and {self.covariates} covariates"
            )
        if problems:
            raise UserError(problems)

    @property
    def observed(self) -> int:
        """O: channels known in the past only."""
        return len(self.channels) - self.values - self.covariates

    @property
    def names(self) -> tuple[str, ...]:
        """The targets."""
        return self.channels[: self.values]

    @cached_property
    def scales(self) -> tuple[Tensor, Tensor]:
        """(channels,) float64 means and standard deviations."""
        return torch.tensor(self.mean, dtype=torch.float64), torch.tensor(self.std, dtype=torch.float64)

    def normalise(self, rows: Tensor) -> Tensor:
        """(..., channels) raw numbers, any real type -> float32 normalised ones; computed in float64."""
        mean, std = self.scales
        return ((rows.double() - mean) / std).float()

    def denormalise(self, values: Tensor) -> Tensor:
        """(..., values) normalised -> raw, of the type given (float64 inside)."""
        mean, std = (scale[: self.values].to(values.device) for scale in self.scales)
        return (values.double() * std + mean).to(values.dtype)

    def batch(self, block: Tensor, warmup_loss: bool = False, rows: Tensor | None = None) -> Batch:
        """Windows in the layout asked.

        "past": targets are the horizon's values, and the context holds "past" (batch, past, channels) and, where there
        are covariates, "future" (batch, horizon, covariates). "sequence": targets are the whole window's values, the
        past is a prompt, and "future" is (batch, past + horizon, covariates): at position t those *of* the step that
        is predicted at t.

        Args:
            block: (batch, past + horizon, channels) normalised.
            warmup_loss: "sequence": loss on all positions but the first.
            rows: (batch,) numbers in the optimizer step's global batch.
        """
        past = block.shape[1] - self.horizon
        return self._batch(block, past, warmup_loss, rows)

    def _batch(self, block: Tensor, past: int, warmup_loss: bool, rows: Tensor | None) -> Batch:
        size, time, _ = block.shape
        first = 0 if self.layout == "sequence" else past
        targets = block[:, first:, : self.values].contiguous()
        future = block[:, first:, block.shape[2] - self.covariates :].contiguous()
        context = {"future": future} if self.covariates else {}
        if self.layout == "past":
            mask = torch.ones(size, time - past, dtype=torch.bool, device=block.device)
            return Batch(targets, targets, mask, context={"past": block[:, :past].contiguous(), **context}, rows=rows)
        eligible = (torch.arange(time, device=block.device) >= past).expand(size, time).contiguous()
        mask = eligible.clone()
        if warmup_loss:
            mask[:, 1:] = True
        return Batch(targets, targets, mask, context=context or None, eligible=eligible, rows=rows)

    def past_batch(
        self, past: Tensor, future: Tensor | None = None, horizon: int | None = None, origin: str = "past"
    ) -> Batch:
        """A batch to generate from, of raw numbers; what is to be said is 0 in it.

        Args:
            past: (rows, channels), or (batch, rows, channels): at least ``past`` rows, of which the last are used.
            future: (horizon, covariates), batched as past is: the covariates of the steps to come; None where there
                are none.
            horizon: steps to be said; None: as in training.
            origin: what the rows are called in a problem.

        Raises:
            UserError: wrong shapes, NaN or infinity (row and column named), covariates missing; all at once.
        """
        horizon = self.horizon if horizon is None else horizon
        if not isinstance(past, Tensor) or not isinstance(future, Tensor | None):
            raise UserError("past and future must be tensors: torch.as_tensor makes them of arrays and lists")
        if problems := self.problems(past, future, horizon, origin):
            raise UserError(problems)
        past = (past if past.dim() == 3 else past[None])[:, -self.past :].double()
        block = torch.zeros(len(past), self.past + horizon, len(self.channels), dtype=torch.float64)
        block[:, : self.past] = past
        mean, _ = self.scales
        block[:, self.past :] = mean
        if future is not None and self.covariates:
            block[:, self.past :, -self.covariates :] = future if future.dim() == 3 else future[None]
        return self._batch(self.normalise(block), self.past, False, None)

    def problems(self, past: Tensor, future: Tensor | None, horizon: int, origin: str = "past") -> list[str]:
        """What is wrong with rows to generate from."""
        found: list[str] = [] if horizon >= 1 else [f"horizon must be at least 1; got {horizon}"]
        width, names = len(self.channels), ", ".join(self.channels)
        if past.dim() not in (2, 3) or past.shape[-1] != width:
            found.append(f"{origin}: rows must be (rows, {width}): {names}; got {tuple(past.shape)}")
        elif past.shape[-2] < self.past:
            found.append(f"{origin}: the model needs {self.past} rows of the past; got {past.shape[-2]}")
        else:
            found += not_finite(past, self.channels, origin)
        known = self.channels[width - self.covariates :]
        if self.covariates and future is None:
            found.append(
                f"covariates are missing: the model needs {', '.join(known)} of the {horizon} steps to come as well"
            )
        elif future is not None and not self.covariates:
            found.append("the model has no covariates; leave future out")
        elif future is not None:
            wanted = (*past.shape[:-2], horizon, self.covariates)
            if tuple(future.shape) != wanted:
                found.append(
                    f"covariates of the future must be {wanted}: {', '.join(known)}; got {tuple(future.shape)}"
                )
            else:
                found += not_finite(future, known, f"{origin}: future")
        return found

    def describe(self) -> dict[str, Any]:
        """What is saved with a model, as JSON types."""
        described = {field.name: getattr(self, field.name) for field in fields(self)}
        if self.series is None:
            del described["series"]  # as models that were saved before it have it
        return {"kind": "series"} | {
            name: list(value) if isinstance(value, tuple) else value for name, value in described.items()
        }

    @classmethod
    def from_description(cls, description: Mapping[str, Any]) -> SeriesCoder:
        """The coder that ``describe`` told of.

        Raises:
            UserError: the description is of something else, or incomplete.
        """
        names = [field.name for field in fields(cls) if field.name != "series" or "series" in description]
        check_description(description, "series", dict.fromkeys(names, object))
        given: list[Any] = [description[name] for name in names]
        values: list[Any] = [tuple(value) if isinstance(value, list) else value for value in given]
        return cls(*values)


def not_finite(rows: Tensor, names: tuple[str, ...], origin: str) -> list[str]:
    """A line for every NaN, infinity and number too large to compute with in (..., rows, channels)."""
    places = (~torch.isfinite(rows) | (rows.abs() > LARGEST)).nonzero().tolist()
    values = [float(rows[tuple(place)]) for place in places]
    return first_problems(
        origin,
        [
            f"{origin}: row {place[-2] + 1}, {names[place[-1]]}: got {value}, expected a number"
            + (f" of at most {LARGEST:g}" if math.isfinite(value) else "")
            for place, value in zip(places, values, strict=True)
        ],
    )
