"""Symbols in rows: a series quantised to levels, and labels aligned with what is observed."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from typing import Any, Literal

import torch
from torch import Tensor

from freerun.arguments import brief
from freerun.batch import Batch
from freerun.data.files import SPLITS, check_description, counted, part_of
from freerun.data.pairs import Ragged, fed_entries
from freerun.data.series.windows import SeriesCodec, SeriesData
from freerun.errors import UserError, refuse

Binning = Literal["quantiles", "width"]


@dataclass(frozen=True)
class LevelCodec:
    """What a trained model needs of its series: how a window is cut, and where one level ends and the next begins.

    Args:
        series: of the values, one channel.
        edges: levels - 1 rising bounds, in normalised units; a value on a bound belongs to the lower level.
        centres: of each level the median of its training values, in normalised units.

    >>> series = SeriesCodec(("x",), (0.0,), (1.0,), values=1, covariates=0, past=2, horizon=1, layout="past")
    >>> codec = LevelCodec(series, edges=(0.0, 1.0), centres=(-0.5, 0.5, 1.5))
    >>> codec.levels(torch.tensor([-2.0, 0.0, 0.5, 3.0])).tolist()
    [0, 0, 1, 2]
    >>> LevelCodec.from_description(codec.describe()) == codec
    True
    """

    __repr__ = brief

    series: SeriesCodec
    edges: tuple[float, ...]
    centres: tuple[float, ...]

    @property
    def sizes(self) -> tuple[int, int]:
        """Number of source and of target symbols."""
        return len(self.centres), len(self.centres)

    def levels(self, values: Tensor) -> Tensor:
        """(...) normalised values -> (...) int64 levels from 0."""
        return torch.bucketize(values.contiguous(), torch.tensor(self.edges, dtype=values.dtype, device=values.device))

    def values(self, levels: Tensor) -> Tensor:
        """(...) levels -> (...) float64 values in units of the data: the middle of each level."""
        centres = torch.tensor(self.centres, dtype=torch.float64, device=levels.device)
        return self.series.denormalise(centres[levels][..., None])[..., 0]

    def batch(self, windows: Batch) -> Batch:
        """Return the batch of windows of values as levels: the past is the source, the horizon the targets."""
        if windows.present is not None:
            raise _missing(windows.present, "targets of these windows")
        source, targets = self.levels(windows.context["past"][..., 0]), self.levels(windows.targets[..., 0])
        context = {"source": source, "source_mask": torch.ones_like(source, dtype=torch.bool)}
        return Batch(targets, targets, windows.mask, context, rows=windows.rows)

    def describe(self) -> dict[str, Any]:
        """Return what is saved with a model, as JSON types."""
        edges, centres = list(self.edges), list(self.centres)
        return {"kind": "levels", "series": self.series.describe(), "edges": edges, "centres": centres}

    @classmethod
    def from_description(cls, description: Mapping[str, Any]) -> LevelCodec:
        """Return the codec of a description; raise UserError if it is of something else or incomplete."""
        check_description(description, "levels", dict.fromkeys(("series", "edges", "centres"), object))
        edges, centres = (tuple(map(float, description[name])) for name in ("edges", "centres"))
        return cls(SeriesCodec.from_description(description["series"]), edges, centres)


@dataclass(frozen=True, eq=False)
class LevelData:
    """Windows of a series whose values are levels.

    Args:
        series: windows of values, layout "past".
        codec: see ``quantised``.
        binning: how the levels were chosen.
    """

    __repr__ = brief

    series: SeriesData
    codec: LevelCodec
    binning: Binning

    @property
    def name(self) -> str:
        """The series'."""
        return self.series.name

    @property
    def lengths(self) -> list[int]:
        """Positions of every training window."""
        return self.series.lengths

    @cached_property
    def fingerprint(self) -> str:
        """Return the first 8 hexadecimal digits of the SHA-256 of the series and of the levels."""
        return hashlib.sha256(f"{self.series.fingerprint} {self.codec.describe()}".encode()).hexdigest()[:8]

    def count(self, split: str) -> int:
        """Number of windows of a split."""
        return self.series.windows(split)

    def batch(self, indices: Sequence[int] | Tensor, rows: Tensor | None = None) -> Batch:
        """Return the training batch of some windows; rows: their numbers in the global batch."""
        return self.codec.batch(self.series.batch(indices, rows))

    def rows(self, split: str, indices: Sequence[int]) -> Batch:
        """Return windows of a split to evaluate on."""
        return self.codec.batch(self.series.window_batch(split, indices))

    @cached_property
    def frequencies(self) -> tuple[float, ...]:
        """How often each level stands in the training targets."""
        targets = self.batch(range(self.count("train"))).targets
        return tuple(torch.bincount(targets.flatten(), minlength=self.codec.sizes[1]).double().tolist())

    def header(self) -> list[str]:
        """Return lines about the data: those of the series, and the levels."""
        shares = torch.tensor(self.frequencies) / sum(self.frequencies)
        kind = "equally frequent" if self.binning == "quantiles" else "equally wide"
        levels = f"levels: {len(self.codec.centres)}, {kind} in the training part; the most frequent has"
        return [*self.series.header(), f"{levels} {100 * float(shares.max()):.1f} %; fingerprint {self.fingerprint}"]


def _missing(present: Tensor, of: str) -> UserError:
    return UserError(
        f"levels are of values that are there, and {int((~present).sum())} {of} are missing\n  help: cut the series "
        "where values are missing, or leave levels out"
    )


def quantised(series: SeriesData, levels: int, binning: Binning = "quantiles") -> LevelData:
    """Return the windows of a series with one channel as levels, which are chosen on the training windows alone.

    Args:
        series: layout "past".
        levels: how many, at least 2.
        binning: "quantiles": equally frequent in the training windows, or one for each value that there is, where there
            are as many; "width": equally wide between the lowest and
            the highest training value.

    Raises:
        UserError: further channels; too few different values for so many levels.

    >>> from freerun.data import SeriesOptions, series_from_arrays
    >>> options = SeriesOptions(past=2, horizon=3, split=(10, 4, 6), normalisation="none")
    >>> data = quantised(series_from_arrays(torch.arange(20.0)[:, None], options), levels=5, binning="width")
    >>> [round(edge, 4) for edge in data.codec.edges], data.batch([0]).targets.tolist()
    ([1.8, 3.6, 5.4, 7.2], [[1, 1, 2]])
    """
    codec = series.codec
    if len(codec.channels) > 1:
        raise UserError(
            f"levels are of one channel, and the series has {len(codec.channels)}: {', '.join(codec.channels)}\n"
            "  help: name one column with data.targets, and no covariates, calendar or observed columns"
        )
    if series.present is not None:
        raise _missing(series.present, "of the series")
    windows = series.batch(range(series.windows("train")))
    seen = torch.cat([windows.context["past"].flatten(1), windows.targets.flatten(1)], 1).flatten().double()
    if binning == "width":
        edges = torch.linspace(float(seen.min()), float(seen.max()), levels + 1, dtype=torch.float64)[1:-1]
    elif len(distinct := seen.unique()) == levels:  # values that are levels already
        edges = (distinct[1:] + distinct[:-1]) / 2
    else:
        ordered = seen.sort().values
        edges = ordered[torch.arange(1, levels) * (len(ordered) - 1) // levels]
    bounds = tuple(edges.float().tolist())  # values are compared in float32
    number = torch.bucketize(seen.float(), torch.tensor(bounds))
    held = torch.bincount(number, minlength=levels)
    if len(set(bounds)) < levels - 1 or (binning == "quantiles" and bool((held == 0).any())):
        raise UserError(
            f"levels = {levels}: the training values are too often equal for so many equally frequent levels\n  help: "
            'fewer levels, or binning = "width"'
        )
    ends = [float(seen.min()), *bounds, float(seen.max())]
    middles = [(low + high) / 2 for low, high in pairwise(ends)]
    centres = [float(seen[number == n].median()) if held[n] else middles[n] for n in range(levels)]
    return LevelData(series, LevelCodec(codec, bounds, tuple(centres)), binning)


@dataclass(frozen=True)
class LabelCodec:
    """What a trained model needs of labelled sequences: the symbols that are observed, and the labels.

    Args:
        source: observed symbols; their ids are their positions.
        target: labels.

    >>> LabelCodec(("a", "b"), ("X", "Y")).label_batch([["a", "b"]], [["Y", "X"]]).targets
    tensor([[1, 0]])
    """

    __repr__ = brief

    source: tuple[str, ...]
    target: tuple[str, ...]

    @property
    def sizes(self) -> tuple[int, int]:
        """Number of source and of target symbols."""
        return len(self.source), len(self.target)

    def ids(self, side: Literal["source", "target"], symbols: Sequence[str], where: str) -> list[int]:
        """Return the ids of symbols; raise UserError if one was never seen in training."""
        numbers = {symbol: number for number, symbol in enumerate(getattr(self, side))}
        unknown = [symbol for symbol in dict.fromkeys(symbols) if symbol not in numbers]
        if unknown:
            known = " ".join(getattr(self, side)[:20])
            raise UserError(f"{where}: {side} symbols never seen in training: {' '.join(unknown)}; seen are {known}")
        return [numbers[symbol] for symbol in symbols]

    def label_batch(self, sources: Sequence[Sequence[str]], targets: Sequence[Sequence[str]] | None = None) -> Batch:
        """Return a batch of sequences with their labels, or with blank ones to generate."""
        observed = Ragged([self.ids("source", symbols, f"row {n + 1}") for n, symbols in enumerate(sources)])
        labels = [[0] * len(symbols) for symbols in sources]
        if targets is not None:
            labels = [self.ids("target", symbols, f"row {n + 1}") for n, symbols in enumerate(targets)]
        return label_batch(observed, Ragged(labels), torch.arange(len(sources)))

    def describe(self) -> dict[str, Any]:
        """Return what is saved with a model, as JSON types."""
        return {"kind": "labels", "source": list(self.source), "target": list(self.target)}

    @classmethod
    def from_description(cls, description: Mapping[str, Any]) -> LabelCodec:
        """Return the codec of a description; raise UserError if it is of something else or incomplete."""
        check_description(description, "labels", {"source": list, "target": list})
        return cls(tuple(description["source"]), tuple(description["target"]))


def label_batch(sources: Ragged, targets: Ragged, chosen: Tensor, rows: Tensor | None = None) -> Batch:
    """The batch of some labelled sequences; the last label of a row is fed to no position."""
    observed, there = sources.padded(chosen)
    labels, mask = targets.padded(chosen)
    context = {"source": observed, "source_mask": there}
    return Batch(labels, labels, mask, context, eligible=fed_entries(mask), rows=rows)


Pair = tuple[Sequence[int], Sequence[int]]
"""What is observed and its labels, as ids, equally long."""


@dataclass(frozen=True, eq=False)
class LabelData:
    """Sequences with one label at each position, for training and evaluation.

    Args:
        splits: "train", "dev" and "test": what is observed and its labels, as ids, equally long and not empty.
        codec: the symbols.
        name: what the data are called in the header.
        notes: further lines of the header.
        exact: from observed ids (rows, time) to the best labels that can be predicted from what is observed up to each
            position, where the law of the data is known.

    Raises:
        UserError: a split without sequences, or a sequence without as many labels.

    >>> codec = LabelCodec(("a", "b"), ("X", "Y"))
    >>> data = LabelData({name: [([0, 1], [1, 0])] for name in ("train", "dev", "test")}, codec, "made up")
    >>> data.batch([0]).targets, data.frequencies
    (tensor([[1, 0]]), (1.0, 1.0))
    """

    __repr__ = brief

    splits: Mapping[str, Sequence[Pair]]
    codec: LabelCodec
    name: str = "labels"
    notes: tuple[str, ...] = ()
    exact: Callable[[Tensor], Tensor] | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        problems = [f"split {split} holds no sequence" for split in SPLITS if not self.splits.get(split)]
        for split, pairs in self.splits.items():
            wrong = [n for n, (observed, labels) in enumerate(pairs) if len(observed) != len(labels) or not labels]
            problems += [f"split {split}: sequence {n + 1} must have one label a position" for n in wrong[:5]]
        refuse(problems)

    @cached_property
    def _ragged(self) -> dict[str, tuple[Ragged, Ragged]]:
        return {
            split: (Ragged([observed for observed, _ in pairs]), Ragged([labels for _, labels in pairs]))
            for split, pairs in self.splits.items()
        }

    @property
    def lengths(self) -> list[int]:
        """Positions of every training sequence."""
        return self._ragged["train"][1].lengths.tolist()

    @cached_property
    def fingerprint(self) -> str:
        """Return the first 8 hexadecimal digits of the SHA-256 of the symbols and of every split's sequences."""
        digest = hashlib.sha256(str(self.codec.describe()).encode())
        for split in SPLITS:
            for side in self._ragged[split]:
                digest.update(f"{split} {side.lengths.tolist()}\n".encode() + side.values.numpy().tobytes())
        return digest.hexdigest()[:8]

    def count(self, split: str) -> int:
        """Number of sequences of a split."""
        return len(part_of(self.splits, split))

    def batch(self, indices: Sequence[int] | Tensor, rows: Tensor | None = None) -> Batch:
        """Return the training batch of some sequences; rows: their numbers in the global batch."""
        sources, targets = self._ragged["train"]
        return label_batch(sources, targets, torch.as_tensor(indices, dtype=torch.int64), rows)

    def rows(self, split: str, indices: Sequence[int]) -> Batch:
        """Return sequences of a split to evaluate on."""
        sources, targets = part_of(self._ragged, split)
        return label_batch(sources, targets, torch.as_tensor(indices, dtype=torch.int64))

    @property
    def frequencies(self) -> tuple[float, ...]:
        """How often each label stands in the training sequences."""
        labels = self._ragged["train"][1].values
        return tuple(torch.bincount(labels, minlength=self.codec.sizes[1]).double().tolist())

    def header(self) -> list[str]:
        """Return lines about the data: sequences and positions of each split, symbols, fingerprint."""
        lines = [f"data: {self.name}, fingerprint {self.fingerprint}"]
        for split in SPLITS:
            positions = int(self._ragged[split][1].lengths.sum())
            lines.append(f"{split}: {counted(self.count(split), 'sequence')}, {counted(positions, 'position')}")
        source, target = self.codec.sizes
        return [*lines, f"symbols: {source} observed, {target} labels", *self.notes]
