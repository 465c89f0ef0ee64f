"""Time series as data: windows of normalised numbers, cut by one gather."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from freerun.arguments import brief
from freerun.batch import Batch
from freerun.data.files import (
    LARGEST,
    SPLITS,
    Array,
    check_description,
    counted,
    first_problems,
    lines_of_column,
    part_of,
)
from freerun.data.series.options import Layout, check_layout
from freerun.errors import UserError, listed, refuse

_LATER = ("series", "reading", "categories", "own", "static")
"""Fields of a codec that are saved where they hold something."""
_NOTHING = np.zeros((0, 1))


@dataclass(frozen=True)
class SeriesCodec:
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
        reading: how tables are read: the fields of ``SeriesOptions`` about their form and about missing values that are
            not the default.
        categories: column -> its names in training; a channel holds their numbers. That of ``series`` is the last one.
        static: covariates that stand still in every series: their last value goes on.
        own: series -> its means and its deviations, where each is scaled by its own; see ``of``.

    Raises:
        UserError: the numbers do not fit each other.

    >>> codec = SeriesCodec(("x",), (1.0,), (2.0,), values=1, covariates=0, past=2, horizon=3, layout="sequence")
    >>> codec.past_batch(torch.tensor([[1.0], [3.0]])).targets[0, :, 0].tolist()
    [0.0, 1.0, 0.0, 0.0, 0.0]
    >>> SeriesCodec.from_description(codec.describe()) == codec
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
    reading: Mapping[str, str] = field(default_factory=dict[str, str])
    categories: Mapping[str, Sequence[str]] = field(default_factory=dict[str, Any])
    own: Mapping[str, Sequence[Sequence[float]]] = field(default_factory=dict[str, Any])
    static: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        problems = check_layout(self.layout, self.channels[self.values : len(self.channels) - self.covariates])
        if not len(self.channels) == len(self.mean) == len(self.std):
            problems.append(f"{len(self.channels)} channels have {len(self.mean)} means, {len(self.std)} deviations")
        if self.values < 1 or self.covariates < 0 or self.observed < 0:
            problems.append(
                f"{len(self.channels)} channels cannot be {self.values} targets and {self.covariates} covariates"
            )
        refuse(problems)

    @property
    def observed(self) -> int:
        """O: channels known in the past only."""
        return len(self.channels) - self.values - self.covariates

    @property
    def names(self) -> tuple[str, ...]:
        """The targets."""
        return self.channels[: self.values]

    @property
    def columns(self) -> tuple[str, ...]:
        """The channels that are columns of a table: all but the calendar's and the name of the series."""
        return self.channels[: len(self.channels) - 2 * len(self.calendar) - (self.series in self.categories)]

    @property
    def coded(self) -> tuple[str, ...]:
        """The columns that hold categories, the last ones."""
        return tuple(name for name in self.categories if name != self.series)

    @property
    def embedded(self) -> tuple[tuple[int, int], ...]:
        """Of each category its number among the covariates, and how many names it has."""
        first = len(self.channels) - self.covariates
        return tuple((self.channels.index(name) - first, len(names)) for name, names in self.categories.items())

    def of(self, series: str, known: Array) -> SeriesCodec:
        """The codec of one series: its scales, or those of what is known of it where it was not in training."""
        if not self.own:
            return self
        mean, std = (list(each) for each in (self.mean, self.std))
        plain = len(self.columns) - len(self.coded)
        found = self.own.get(series)
        for number in range(plain):
            there = known[:, number][~np.isnan(known[:, number])] if found is None else known[:0, 0]
            if found is not None:
                mean[number], std[number] = found[0][number], found[1][number]
            elif len(there):
                mean[number], std[number] = float(there.mean()), float(there.std()) or 1.0
        return replace(self, mean=tuple(mean), std=tuple(std), own={})

    def code(self, series: str, origin: str) -> float:
        """The number of a series among those of training."""
        names = self.categories[str(self.series)]
        if series not in names:
            raise UserError(
                f"{origin}: series {series!r} was not in training, and the model has a vector for each that was: "
                f"{listed(names)}; train without {self.series!r} in categories to forecast others"
            )
        return float(list(names).index(series))

    @cached_property
    def scales(self) -> tuple[Tensor, Tensor]:
        """(channels,) float64 means and standard deviations."""
        return torch.tensor(self.mean, dtype=torch.float64), torch.tensor(self.std, dtype=torch.float64)

    def normalise(self, rows: Tensor) -> Tensor:
        """(..., channels) raw numbers, any real type -> float32 normalised ones; computed in float64."""
        mean, std = self.scales
        return ((rows.double() - mean) / std).float()

    def denormalise(self, values: Tensor) -> Tensor:
        """(..., values) normalised -> raw, of the same type (float64 inside)."""
        mean, std = (scale[: self.values].to(values.device) for scale in self.scales)
        return (values.double() * std + mean).to(values.dtype)

    def batch(
        self,
        block: Tensor,
        warmup_loss: bool = False,
        rows: Tensor | None = None,
        present: Tensor | None = None,
    ) -> Batch:
        """Return windows in the requested layout.

        "past": targets are the horizon's values, and the context holds "past" (batch, past, channels) and, where there
        are covariates, "future" (batch, horizon, covariates). "sequence": targets are the whole window's values, the
        past is a prompt, "known" (batch,) its length, and "future" (batch, past + horizon, covariates): at position t
        those *of* the step that is predicted at t.

        Args:
            block: (batch, past + horizon, channels) normalised.
            warmup_loss: "sequence": loss on all positions but the first.
            rows: (batch,) numbers in the optimizer step's global batch.
            present: (batch, past + horizon, values) bool: targets that are in the data, not filled in; None: all.
        """
        if present is not None:
            present = None if bool(present[:, self.past :].all()) and not warmup_loss else present
        (size, time, _), past = block.shape, self.past
        first = 0 if self.layout == "sequence" else past
        targets = block[:, first:, : self.values].contiguous()
        future = block[:, first:, block.shape[2] - self.covariates :].contiguous()
        context = {"future": future} if self.covariates else {}
        if self.layout == "past":
            mask = torch.ones(size, time - past, dtype=torch.bool, device=block.device)
            context = {"past": block[:, :past].contiguous(), **context}
            return Batch(targets, targets, mask, context, rows=rows, present=_from(present, past))
        eligible = (torch.arange(time, device=block.device) >= past).expand(size, time).contiguous()
        mask = eligible.clone()
        if warmup_loss:
            mask[:, 1:] = True
        context["known"] = torch.full((size,), past, device=block.device)
        return Batch(targets, targets, mask, context, eligible=eligible, rows=rows, present=_from(present, 0))

    def past_batch(
        self, past: Tensor, future: Tensor | None = None, horizon: int | None = None, origin: str = "past"
    ) -> Batch:
        """Return a batch to generate from, of raw numbers: ``past_window`` in the layout of the model."""
        return self.batch(self.past_window(past, future, horizon, origin))

    def past_window(
        self, past: Tensor, future: Tensor | None = None, horizon: int | None = None, origin: str = "past"
    ) -> Tensor:
        """Return (batch, past + horizon, channels) to generate from; what is to be predicted is 0 in it.

        Args:
            past: (rows, channels), or (batch, rows, channels): at least ``past`` rows, of which the last are used.
            future: (horizon, covariates), batched as past is: the covariates of the steps to come; None where there
                are none.
            horizon: steps to predict; None: as in training.
            origin: what the rows are called in a problem.

        Raises:
            UserError: wrong shapes, NaN or infinity (row and column named), covariates missing; all at once.
        """
        horizon = self.horizon if horizon is None else horizon
        if not isinstance(past, Tensor) or not isinstance(future, Tensor | None):
            raise UserError("past and future must be tensors: torch.as_tensor makes them of arrays and lists")
        refuse(self.problems(past, future, horizon, origin))
        past = (past if past.dim() == 3 else past[None])[:, -self.past :].double()
        block = self.scales[0].repeat(len(past), self.past + horizon, 1)
        block[:, : self.past] = past
        if future is not None and self.covariates:
            block[:, self.past :, -self.covariates :] = future if future.dim() == 3 else future[None]
        return self.normalise(block)

    def problems(self, past: Tensor, future: Tensor | None, horizon: int, origin: str = "past") -> list[str]:
        """Return what is wrong with rows to generate from."""
        problems: list[str] = [] if horizon >= 1 else [f"horizon must be at least 1; got {horizon}"]
        width, names = len(self.channels), ", ".join(self.channels)
        if past.dim() not in (2, 3) or past.shape[-1] != width:
            problems.append(f"{origin}: rows must be (rows, {width}): {names}; got {tuple(past.shape)}")
        elif past.shape[-2] < self.past:
            problems.append(f"{origin}: the model needs {self.past} rows of the past; got {past.shape[-2]}")
        else:
            problems += not_finite(past, self.channels, origin)
        known = self.channels[width - self.covariates :]
        if self.covariates and future is None:
            needed = ", ".join(known)
            problems.append(f"covariates are missing: the model needs {needed} of the {horizon} steps to come as well")
        elif future is not None and not self.covariates:
            problems.append("the model has no covariates; leave future out")
        elif future is not None:
            expected = (*past.shape[:-2], horizon, self.covariates)
            if tuple(future.shape) != expected:
                problems.append(
                    f"covariates of the future must be {expected}: {', '.join(known)}; got {tuple(future.shape)}"
                )
            else:
                problems += not_finite(future, known, f"{origin}: future")
        return problems

    def describe(self) -> dict[str, Any]:
        """Return what is saved with a model, as JSON types."""
        # models saved before a file could hold several series, or tables have forms, have no such fields
        saved = [each.name for each in fields(self) if each.name not in _LATER or getattr(self, each.name)]
        values: list[Any] = [getattr(self, name) for name in saved]
        lists = [
            list(value) if isinstance(value, tuple) else dict(value) if isinstance(value, Mapping) else value
            for value in values
        ]
        return {"kind": "series", **dict(zip(saved, lists, strict=True))}

    @classmethod
    def from_description(cls, description: Mapping[str, Any]) -> SeriesCodec:
        """Return the codec of a description; raise UserError if it is of something else or incomplete."""
        names = [each.name for each in fields(cls) if each.name not in _LATER or each.name in description]
        check_description(description, "series", dict.fromkeys(names, object))
        saved: dict[str, Any] = {name: description[name] for name in names}
        values: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value for name, value in saved.items()
        }
        return cls(**values)


def _from(present: Tensor | None, first: int) -> Tensor | None:
    return None if present is None else present[:, first:].contiguous()


def not_finite(rows: Tensor, names: tuple[str, ...], origin: str) -> list[str]:
    """A line for every NaN, infinity and number too large to compute with in (..., rows, channels)."""
    limit, problems = f" of at most {LARGEST:g}", list[str]()
    wrong = ~torch.isfinite(rows) | (rows.abs() > LARGEST)
    for column, name in enumerate(names):
        cells = wrong[..., column].nonzero().tolist()

        def line(number: int, cells: list[list[int]] = cells, column: int = column, name: str = name) -> str:
            value = float(rows[(*cells[number], column)])
            expected = f"expected a number{limit if math.isfinite(value) else ''}"
            return f"{origin}: row {cells[number][-1] + 1}, {name}: got {value}, {expected}"

        problems += lines_of_column(range(len(cells)), wrong[..., column].numel(), line)
    return first_problems(origin, problems)


@dataclass(frozen=True)
class Segment:
    """Rows ``begin`` to ``end`` of one series that are in one split; a window's past reaches back to ``floor``."""

    __repr__ = brief

    begin: int
    end: int
    floor: int

    def windows(self, past: int, horizon: int, stride: int) -> range:
        """Where windows begin: their horizon lies within the segment, their past not before the floor."""
        first = max(self.begin, self.floor + past) - past
        return range(first, self.end - past - horizon + 1, stride)


@dataclass(frozen=True, eq=False)
class SeriesData:
    """Windows of time series, for training and evaluation.

    A window is ``past`` rows and the ``horizon`` rows after them. Training windows lie within the training rows;
    windows of dev and test may know rows before their split, but none of them predicts one of another split.

    Args:
        name: what the data are called in the header.
        raw: (rows, channels) float64 before normalisation, all series one after the other.
        segments: split -> its rows in every series.
        starts: split -> (windows,) first rows of its windows.
        codec: channels, scales and layout.
        present: (rows, values) bool: targets that are in the data, not filled in; None: all.
        notes: further lines of the header.
        exponent: largest Lyapunov exponent per step, where it is known.
        warmup_loss: layout "sequence": loss on the past of training windows too.
        series: the name of each series; () where their names do not matter.

    Raises:
        UserError: a split has no windows.

    >>> from freerun.data import SeriesOptions, series_from_arrays
    >>> options = SeriesOptions(past=2, horizon=3, split=(10, 4, 6), normalisation="none")
    >>> data = series_from_arrays(torch.arange(20.0)[:, None], options)
    >>> batch = data.batch([0, 4])
    >>> batch.context["past"][:, :, 0].tolist(), batch.targets[:, :, 0].tolist()
    ([[0.0, 1.0], [4.0, 5.0]], [[2.0, 3.0, 4.0], [6.0, 7.0, 8.0]])
    """

    __repr__ = brief

    name: str
    raw: Tensor
    segments: Mapping[str, Sequence[Segment]]
    starts: Mapping[str, Tensor]
    codec: SeriesCodec
    present: Tensor | None = None
    notes: tuple[str, ...] = ()
    exponent: float | None = None
    warmup_loss: bool = False
    series: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        past, horizon = self.codec.past, self.codec.horizon
        problems: list[str] = []
        for split in SPLITS:
            if len(self.starts[split]):
                continue
            longest = max((part.end - part.begin for part in self.segments[split]), default=0)
            needs = f"past + horizon = {past + horizon}" if split == "train" else f"horizon = {horizon}"
            fits = f" (data.horizon = {longest} fits)" if split != "train" and 0 < longest < horizon else ""
            problems.append(
                f"{self.name}: the {split} split has no window: its longest piece is {counted(longest, 'row')}, and a "
                f"window needs {needs} (past {past}); use a shorter past or horizon{fits}, more rows, or another split"
            )
        refuse(problems)

    @property
    def scales(self) -> tuple[Tensor, Tensor]:
        """(values,) float64 mean and deviation of the targets, subtracted and divided by."""
        mean, std = self.codec.scales
        return mean[: self.codec.values], std[: self.codec.values]

    @cached_property
    def _table(self) -> Tensor:
        if not self.codec.own:
            return self.codec.normalise(self.raw)
        ends = [*self._firsts[1:], len(self.raw)]
        codecs = [self.codec.of(name, _NOTHING) for name in self.series]
        pieces = zip(codecs, self._firsts, ends, strict=True)
        return torch.cat([codec.normalise(self.raw[first:end]) for codec, first, end in pieces])

    @cached_property
    def _firsts(self) -> list[int]:
        """The first row of each series."""
        return [part.begin for part in self.segments["train"]]

    def series_of(self, split: str, indices: Sequence[int] | Tensor) -> Tensor:
        """(windows,) the number of the series that a window is of."""
        starts = part_of(self.starts, split)[torch.as_tensor(indices, dtype=torch.int64)]
        return torch.searchsorted(torch.tensor(self._firsts), starts, right=True) - 1

    def scales_of(self, split: str, indices: Sequence[int] | Tensor) -> tuple[Tensor, Tensor]:
        """(windows, values) float64 mean and deviation that the targets of each window are scaled by."""
        if not self.codec.own:
            mean, std = self.scales
            return mean.expand(len(indices), -1), std.expand(len(indices), -1)
        codecs = [self.codec.of(name, _NOTHING) for name in self.series]
        number = self.series_of(split, indices)
        mean, std = (torch.stack([codec.scales[n][: codec.values] for codec in codecs])[number] for n in (0, 1))
        return mean, std

    def in_units(self, split: str, index: int) -> Callable[[Tensor], Tensor]:
        """From normalised values of a window to those of the data."""
        mean, std = self.scales_of(split, [index])
        return lambda values: (values.double() * std[0].to(values.device) + mean[0].to(values.device)).to(values.dtype)

    @cached_property
    def lengths(self) -> list[int]:
        """Positions of every training window: the horizon, or past + horizon in layout "sequence"."""
        positions = self.codec.horizon + (self.codec.past if self.codec.layout == "sequence" else 0)
        return [positions] * self.windows("train")

    def windows(self, split: str) -> int:
        """Number of windows of a split."""
        return len(part_of(self.starts, split))

    def _block(self, split: str, indices: Sequence[int] | Tensor) -> tuple[Tensor, Tensor | None]:
        starts = part_of(self.starts, split)[torch.as_tensor(indices, dtype=torch.int64)]
        rows = starts[:, None] + torch.arange(self.codec.past + self.codec.horizon)
        return self._table[rows], None if self.present is None else self.present[rows]

    def batch(self, indices: Sequence[int] | Tensor, rows: Tensor | None = None) -> Batch:
        """Return the training batch of some windows; rows: their numbers in the global batch."""
        block, present = self._block("train", indices)
        return self.codec.batch(block, self.warmup_loss, rows, present)

    def window_batch(self, split: str, indices: Sequence[int] | Tensor) -> Batch:
        """Return windows of a split to evaluate on: loss on the horizon only."""
        block, present = self._block(split, indices)
        return self.codec.batch(block, present=present)

    def free(self, split: str) -> Tensor:
        """Return (time, values): the longest series of a split without gaps, normalised, for long free runs."""
        longest = max((self.complete(part) for part in part_of(self.segments, split)), key=len)
        return self._table[longest.start : longest.stop, : self.codec.values]

    def complete(self, part: Segment) -> range:
        """The longest stretch of a segment in which no target is missing."""
        if self.present is None:
            return range(part.begin, part.end)
        there = self.present[part.begin : part.end].all(1)
        ends = [-1, *(~there).nonzero()[:, 0].tolist(), len(there)]
        first, end = max(pairwise(ends), key=lambda pair: pair[1] - pair[0])
        return range(part.begin + first + 1, part.begin + end)

    def complete_windows(self, split: str) -> list[int]:
        """Windows of a split in whose horizon no target is missing."""
        if self.present is None:
            return list(range(self.windows(split)))
        rows = self.starts[split][:, None] + torch.arange(self.codec.past, self.codec.past + self.codec.horizon)
        return self.present[rows].flatten(1).all(1).nonzero()[:, 0].tolist()

    @cached_property
    def fingerprint(self) -> str:
        """Return the first 8 hexadecimal digits of the SHA-256 of the numbers and of how windows are cut."""
        digest = hashlib.sha256(f"{self.codec.describe()} {self.warmup_loss}\n".encode())
        for split in SPLITS:
            digest.update(f"{split}\n".encode() + self.starts[split].numpy().tobytes())
        digest.update(self.raw.contiguous().numpy().tobytes())
        if self.present is not None:
            digest.update(self.present.contiguous().numpy().tobytes())
        return digest.hexdigest()[:8]

    def header(self) -> list[str]:
        """Return lines about the data: rows and windows of each split, channels, scales, what was filled."""
        codec = self.codec
        lines = [f"data: {self.name}, fingerprint {self.fingerprint}"]
        for split in SPLITS:
            rows, parts = sum(part.end - part.begin for part in self.segments[split]), len(self.segments[split])
            pieces = f" in {parts:,} series" if parts > 1 else ""
            windows = f"{counted(self.windows(split), 'window')} of {codec.past} + {codec.horizon}"
            lines.append(f"{split}: {counted(rows, 'row')}{pieces}, {windows}")
        end = len(codec.channels) - codec.covariates
        kinds = {
            "targets": codec.names,
            "observed": codec.channels[codec.values : end],
            "covariates": codec.channels[end:],
        }
        for kind, names in kinds.items():
            if names:
                more = f" and {len(names) - 8} more" if len(names) > 8 else ""
                lines.append(f"{kind}: {', '.join(names[:8])}{more}")
        scaled = any(mean != 0 for mean in codec.mean) or any(std != 1 for std in codec.std)
        rows = "the training rows of each series" if codec.own else "the training rows"
        lines.append(f"normalisation: mean and deviation of {rows}" if scaled else "normalisation: none")
        return [*lines, *self.notes]


@dataclass(frozen=True, eq=False)
class Windows:
    """Windows to score on: how many, their batch by number, positions to predict, scores of naive forecasts.

    ``independent``: how many of them do not overlap.
    """

    count: int
    make: Callable[[list[int]], Batch]
    horizon: int
    naive: Mapping[str, tuple[dict[str, float], dict[str, list[float]]]] = field(default_factory=dict[str, Any])
    independent: int = 8
    __repr__ = brief
