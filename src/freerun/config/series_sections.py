"""The section ``[data]`` for series of values: files, simulated systems, frames."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any, ClassVar, Literal

from freerun.config.ranged import number
from freerun.errors import UserError

__all__ = ["FramesSection", "SeriesSection", "SystemSection"]


@dataclass(frozen=True)
class SeriesSection:
    """Time series from CSV or Parquet files, in windows; split in time.

    Args:
        path: a file, or several of the same columns.
        past: steps known before what is predicted.
        horizon: steps predicted.
        stride: steps between the beginnings of two training windows.
        evaluation_stride: the same for dev and test.
        split: shares of every series that are train, dev and test, in time; or numbers of rows.
        targets: columns predicted and fed back (left out: all columns of numbers that have no other part).
        observed: columns known in the past only.
        covariates: columns known in the future too; they are never replaced by a prediction.
        calendar: covariates computed from the time column: "minute", "hour", "weekday", "monthday", "yearday", "month".
        time: column of time stamps.
        series: column that names the series a row belongs to.
        missing: "error", or how gaps are filled: "last" or "linear".
        irregular: "error" or "ignore": time stamps that are doubled, unsorted or not evenly spaced.
        normalisation: "standard" (by the training rows) or "none".
        period: steps of the season, for the naive forecast that repeats the last one.
        separator: between the columns of a CSV file.
        warmup_loss: whether the past of training windows carries loss too, for models that read one sequence.
    """

    family: ClassVar[str] = "series"
    kind: Literal["series"] = "series"
    path: str | tuple[str, ...] | None = None
    past: int = number(48, low=1, high=10**7)
    horizon: int = number(24, low=1, high=10**7)
    stride: int = number(1, low=1)
    evaluation_stride: int = number(1, low=1)
    split: tuple[int, ...] | tuple[float, ...] = (0.7, 0.1, 0.2)
    targets: tuple[str, ...] = ()
    observed: tuple[str, ...] = ()
    covariates: tuple[str, ...] = ()
    calendar: tuple[str, ...] = ()
    time: str | None = None
    series: str | None = None
    missing: Literal["error", "last", "linear"] = "error"
    irregular: Literal["error", "ignore"] = "error"
    normalisation: Literal["standard", "none"] = "standard"
    period: int | None = number(None, low=1)
    separator: str = ","
    warmup_loss: bool = False

    def __post_init__(self) -> None:
        from freerun.data import SeriesOptions

        problems: list[str] = []
        if not self.path:
            problems.append(
                "`path` is missing: the CSV or Parquet file of the series"
                '\n  help: give it with --set data.path=FILE, or write path = "FILE" under [data]'
            )
        try:
            SeriesOptions(**self.options())
        except UserError as error:
            problems += error.problems
        if problems:
            raise UserError(problems)

    def options(self) -> dict[str, Any]:
        """The arguments of ``SeriesOptions``."""
        return {each.name: getattr(self, each.name) for each in fields(self) if each.name not in ("kind", "path")}


@dataclass(frozen=True)
class SystemSection:
    """Trajectories of a chaotic system, simulated from its equations.

    Args:
        system: a name in ``freerun.data.SYSTEMS``.
        parameters: of the equations, in place of the published ones.
        past: steps known before what is predicted.
        horizon: steps predicted.
        windows: numbers of training, dev and test windows.
        trajectories: from different beginnings; each belongs to one split.
        stride: steps between the beginnings of two windows of a trajectory (None: past + horizon, so that windows
            share no step).
        seed: of trajectories and noise; the recipe's own seed does not change the data.
        noise: standard deviation of noise on what is observed, in standard deviations of each channel.
        normalisation: "standard" (by the training trajectories) or "none".
        warmup_loss: whether the past of training windows carries loss too, for models that read one sequence.
    """

    family: ClassVar[str] = "series"
    kind: Literal["system"] = "system"
    system: str = "mackey_glass"
    parameters: dict[str, float] = field(default_factory=dict[str, float])
    past: int = number(50, low=1, high=10**7)
    horizon: int = number(100, low=1, high=10**7)
    windows: tuple[int, ...] = number((1024, 256, 512), low=1, high=10**8)
    trajectories: int = number(64, low=3, high=10**6)
    stride: int | None = number(None, low=1)
    seed: int = number(0, low=0, high=2**63 - 1)
    noise: float = number(0.0, low=0.0)
    normalisation: Literal["standard", "none"] = "standard"
    warmup_loss: bool = False

    def __post_init__(self) -> None:
        from freerun.data import SystemOptions
        from freerun.data.systems.loading import system_named

        problems: list[str] = []
        for make in (lambda: SystemOptions(**self.options()), lambda: system_named(self.system, self.parameters)):
            try:
                make()
            except UserError as error:
                problems += error.problems
        if problems:
            raise UserError(problems)

    def options(self) -> dict[str, Any]:
        """The arguments of ``SystemOptions``."""
        return {each.name: getattr(self, each.name) for each in fields(self) if each.name not in ("kind", "system")}


@dataclass(frozen=True)
class FramesSection:
    """Films of digits or shapes that move by a rule and bounce off the border.

    Args:
        past: frames known before what is predicted.
        horizon: frames predicted.
        windows: numbers of training, dev and test windows; each is a film of its own.
        height: of the canvas, in points.
        width: of the canvas, in points.
        glyphs: "digits" or "shapes".
        objects: glyphs that move at once, through each other.
        speed: points a frame, at most, along each axis.
        seed: of the films; the recipe's own seed does not change the data.
        warmup_loss: whether the past of training windows carries loss too, for models that read one sequence.
    """

    family: ClassVar[str] = "series"
    kind: Literal["frames"] = "frames"
    past: int = number(5, low=1, high=10**7)
    horizon: int = number(10, low=1, high=10**7)
    windows: tuple[int, ...] = number((1024, 128, 256), low=1, high=10**8)
    height: int = number(16, low=1, high=10**4)
    width: int = number(16, low=1, high=10**4)
    glyphs: Literal["digits", "shapes"] = "digits"
    objects: int = number(2, low=1, high=10**4)
    speed: float = number(1.5, low=0.0)
    seed: int = number(0, low=0, high=2**63 - 1)
    warmup_loss: bool = False

    def __post_init__(self) -> None:
        from freerun.data.frames import FrameOptions

        FrameOptions(**self.options())

    def options(self) -> dict[str, Any]:
        """The arguments of ``FrameOptions``."""
        return {each.name: getattr(self, each.name) for each in fields(self) if each.name != "kind"}
