"""Time series as data: windows of normalised numbers, cut by one gather."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TypeVar

import torch
from torch import Tensor

from freerun.brief import brief
from freerun.data.series.coder import SeriesCoder
from freerun.data.series.options import SPLITS
from freerun.data.text import counted
from freerun.errors import UserError
from freerun.types import Batch

T = TypeVar("T")

__all__ = ["Segment", "SeriesData", "window_starts"]


@dataclass(frozen=True)
class Segment:
    """Rows of one series that are in one split.

    Args:
        begin: first row, counted over all series.
        end: the row behind the last.
        floor: the first row that the past of a window may reach back to.
    """

    __repr__ = brief

    begin: int
    end: int
    floor: int

    def windows(self, past: int, horizon: int, stride: int) -> range:
        """Where windows begin: their horizon lies within the segment, their past not before the floor."""
        first = max(self.begin, self.floor + past) - past
        return range(first, self.end - past - horizon + 1, stride)


def window_starts(segments: Sequence[Segment], past: int, horizon: int, stride: int) -> Tensor:
    """(windows,) int64: the first row of each window's past.

    >>> window_starts([Segment(10, 16, floor=0)], past=4, horizon=3, stride=1).tolist()
    [6, 7, 8, 9]
    """
    starts = [start for segment in segments for start in segment.windows(past, horizon, stride)]
    return torch.tensor(starts, dtype=torch.int64)


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
        coder: channels, scales and layout.
        notes: further lines of the header.
        exponent: largest Lyapunov exponent per step, where it is known.
        warmup_loss: layout "sequence": loss on the past of training windows too.

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
    coder: SeriesCoder
    notes: tuple[str, ...] = ()
    exponent: float | None = None
    warmup_loss: bool = False

    def __post_init__(self) -> None:
        past, horizon = self.coder.past, self.coder.horizon
        problems: list[str] = []
        for split in SPLITS:
            if len(self.starts[split]):
                continue
            longest = max((part.end - part.begin for part in self.segments[split]), default=0)
            needs = f"past + horizon = {past + horizon}" if split == "train" else f"horizon = {horizon}"
            problems.append(
                f"{self.name}: the {split} split has no window: its longest piece is {counted(longest, 'row')}, and a "
                f"window needs {needs} (past {past}); use a shorter past or horizon, more rows, or another split"
            )
        if problems:
            raise UserError(problems)

    @property
    def values(self) -> int:
        """V: channels predicted and fed back."""
        return self.coder.values

    @property
    def covariates(self) -> int:
        """C: channels known in the future."""
        return self.coder.covariates

    @property
    def observed(self) -> int:
        """O: channels known in the past only."""
        return self.coder.observed

    @property
    def names(self) -> tuple[str, ...]:
        """The targets."""
        return self.coder.names

    @property
    def period(self) -> int | None:
        """Steps of a season."""
        return self.coder.period

    @property
    def mean(self) -> Tensor:
        """(values,) float64: subtracted by the normalisation."""
        return self.coder.scales[0][: self.values]

    @property
    def std(self) -> Tensor:
        """(values,) float64: divided by in the normalisation."""
        return self.coder.scales[1][: self.values]

    @cached_property
    def _table(self) -> Tensor:
        return self.coder.normalise(self.raw)

    @cached_property
    def lengths(self) -> list[int]:
        """Positions of every training window: the horizon, or past + horizon in layout "sequence"."""
        positions = self.coder.horizon + (self.coder.past if self.coder.layout == "sequence" else 0)
        return [positions] * self.windows("train")

    def windows(self, split: str) -> int:
        """Number of windows of a split."""
        return len(_of(self.starts, split))

    def _block(self, split: str, indices: Sequence[int] | Tensor) -> Tensor:
        starts = _of(self.starts, split)[torch.as_tensor(indices, dtype=torch.int64)]
        return self._table[starts[:, None] + torch.arange(self.coder.past + self.coder.horizon)]

    def batch(self, indices: Sequence[int] | Tensor, rows: Tensor | None = None) -> Batch:
        """A training batch in the layout asked; see ``SeriesCoder.batch``.

        Args:
            indices: numbers of training windows.
            rows: (batch,) int64: their numbers in the optimizer step's global batch.
        """
        return self.coder.batch(self._block("train", indices), self.warmup_loss, rows)

    def window_batch(self, split: str, indices: Sequence[int] | Tensor) -> Batch:
        """Windows of a split to evaluate on: loss on the horizon only.

        Raises:
            UserError: there is no such split.
        """
        return self.coder.batch(self._block(split, indices))

    def free(self, split: str) -> Tensor:
        """(time, values): the longest series of a split, normalised, for long free runs.

        Raises:
            UserError: there is no such split.
        """
        longest = max(_of(self.segments, split), key=lambda part: part.end - part.begin)
        return self._table[longest.begin : longest.end, : self.values]

    def denormalise(self, values: Tensor) -> Tensor:
        """(..., values) normalised -> in the units of the data."""
        return self.coder.denormalise(values)

    @cached_property
    def fingerprint(self) -> str:
        """First 8 hexadecimal digits of the SHA-256 of the numbers and of how windows are cut."""
        digest = hashlib.sha256(f"{self.coder.describe()} {self.warmup_loss}\n".encode())
        for split in SPLITS:
            digest.update(f"{split}\n".encode() + self.starts[split].numpy().tobytes())
        digest.update(self.raw.contiguous().numpy().tobytes())
        return digest.hexdigest()[:8]

    def header(self) -> list[str]:
        """Lines that say what the data are: rows and windows of each split, channels, scales, what was filled."""
        coder = self.coder
        lines = [f"data: {self.name}, fingerprint {self.fingerprint}"]
        for split in SPLITS:
            rows, parts = sum(part.end - part.begin for part in self.segments[split]), len(self.segments[split])
            pieces = f" in {parts:,} series" if parts > 1 else ""
            windows = f"{counted(self.windows(split), 'window')} of {coder.past} + {coder.horizon}"
            lines.append(f"{split}: {counted(rows, 'row')}{pieces}, {windows}")
        end = len(coder.channels) - coder.covariates
        for kind, names in (
            ("targets", coder.names),
            ("observed", coder.channels[coder.values : end]),
            ("covariates", coder.channels[end:]),
        ):
            if names:
                shown = ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
                lines.append(f"{kind}: {shown}")
        scaled = any(mean != 0 for mean in coder.mean) or any(std != 1 for std in coder.std)
        lines.append("normalisation: mean and deviation of the training rows" if scaled else "normalisation: none")
        return [*lines, *self.notes]


def _of(parts: Mapping[str, T], split: str) -> T:
    if split not in parts:
        raise UserError(f"split must be one of {', '.join(SPLITS)}; got {split!r}")
    return parts[split]
