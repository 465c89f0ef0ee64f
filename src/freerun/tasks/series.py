"""Series of values - files, simulated systems - as a kind of task."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor
from torch.nn import Module

from freerun.batch import Batch
from freerun.data.files import DataFile
from freerun.data.series.building import load_series
from freerun.data.series.inference import forecast_table, guess_separator, read_past, read_windows
from freerun.data.series.options import SeriesOptions
from freerun.data.series.windows import SeriesCodec, SeriesData, Windows
from freerun.data.systems import SystemOptions, load_system, system_named
from freerun.diagnostics import DiagnosisOptions
from freerun.diagnostics.naive import LinearForecast, fit_linear, naive_forecasts, past_and_horizon
from freerun.errors import UserError
from freerun.generation import draw_for
from freerun.keys import uniform
from freerun.metrics.outputs import nrmse, rmse_by_horizon
from freerun.metrics.table import SERIES, TaskReport
from freerun.models import MODELS
from freerun.tasks.base import DataTask, DiagnosisInput, Evaluation, collected, missing_path, parts
from freerun.tasks.forecasts import ForecastSettings, evaluate_windows, forecast, median, whole_windows
from freerun.types import evenly

_NAIVE_BATCH = 1024
_LONGEST = 4000
"""Steps of the test part that a diagnosis runs freely over."""


@dataclass(frozen=True)
class SeriesSection(SeriesOptions):
    """Time series from CSV or Parquet files, in windows; split in time.

    Args:
        path: a file, or several of the same columns.
    """

    kind: Literal["series"] = "series"
    path: str | tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        problems = [] if self.path else [missing_path("the CSV or Parquet file of the series", "FILE")]
        with collected(problems):
            super().__post_init__()
        if problems:
            raise UserError(problems)


@dataclass(frozen=True)
class SystemSection(SystemOptions):
    """Trajectories of a chaotic system, simulated from its equations.

    Args:
        system: a name in ``freerun.data.SYSTEMS``.
    """

    kind: Literal["system"] = "system"
    system: str = "mackey_glass"

    def __post_init__(self) -> None:
        problems: list[str] = []
        with collected(problems):
            super().__post_init__()
        with collected(problems):
            system_named(self.system, self.parameters)
        if problems:
            raise UserError(problems)


class SeriesTask(DataTask[SeriesData, ForecastSettings]):
    """Windows of series, forecast over a horizon, scored by their errors."""

    models = ("recurrent_forecaster", "plain_forecaster", "transformer_forecaster", "shallow_plrnn", "article")
    data_sections: ClassVar[Mapping[str, type[Any]]] = {"series": SeriesSection, "system": SystemSection}
    evaluate_section = ForecastSettings
    report: ClassVar[TaskReport] = SERIES
    select = "nrmse"
    real_valued = True
    outputs_table = True

    def __init__(self, data: SeriesData, settings: ForecastSettings | None = None, items: int | None = None) -> None:
        super().__init__(data, settings, items)
        self._windows: dict[str, Windows] = {}

    def evaluate(self, model: Module, split: str) -> Evaluation:
        """Scores on "dev" (``items`` of its windows) or "test"; see ``evaluate_windows``."""
        if split not in ("dev", "test"):
            raise UserError(f"split must be dev or test; got {split!r}")
        found = evaluate_windows(model, self.windows(split), self.settings)
        if split == "dev":
            return found
        return replace(found, forecasts=whole_windows(model, self.windows(split), self.settings, self.data.codec))

    def windows(self, split: str) -> Windows:
        """The windows of a split that are scored, with the naive rows for them."""
        if split not in self._windows:
            chosen = evenly(self.data.windows(split), self.items if split == "dev" else None)
            found = Windows(
                len(chosen),
                lambda numbers: self.data.window_batch(split, [chosen[n] for n in numbers]),
                self.data.codec.horizon,
            )
            self._windows[split] = with_naive(found, self.data.codec, self.linear)
        return self._windows[split]

    @cached_property
    def linear(self) -> LinearForecast:
        """Least squares from past to horizon, fitted to the training windows."""
        data, size = self.data, _NAIVE_BATCH

        def halves(batches: Iterable[Batch]) -> tuple[Tensor, Tensor]:
            pairs = [past_and_horizon(batch, data.codec.horizon, data.codec.values) for batch in batches]
            return torch.cat([past for past, _ in pairs]), torch.cat([horizon for _, horizon in pairs])

        def train(numbers: list[int]) -> tuple[Tensor, Tensor]:
            return halves(data.batch(part) for part in parts(numbers, size))

        chosen = evenly(data.windows("dev"), 1024)
        dev = halves(data.window_batch("dev", part) for part in parts(chosen, size))
        return fit_linear(train, len(data.lengths), dev)

    @staticmethod
    def load(settings: SeriesSection | SystemSection, model: Any) -> SeriesData:
        """The windows, laid out as the model of a ``[model]`` section reads them.

        Raises:
            UserError: all problems of the files; a setting that has no effect with that kind of model.
        """
        layout = MODELS[model.kind].layout
        if settings.warmup_loss and layout == "past":
            raise UserError(
                f"data.warmup_loss has no effect with a model of kind {model.kind}, which says the horizon only\n"
                "  help: leave it out, or use kind = plain_forecaster"
            )
        if isinstance(settings, SeriesSection):
            return load_series(settings.path or (), settings, layout)
        return load_system(settings.system, settings, layout)

    @staticmethod
    def sizes(data: SeriesData) -> tuple[int, ...]:
        """Channels: predicted, known ahead, known in the past only."""
        return data.codec.values, data.codec.covariates, data.codec.observed

    @staticmethod
    def positions(data: SeriesData, settings: ForecastSettings) -> tuple[int, str]:
        """The whole window's, for models that read one sequence."""
        past, horizon = data.codec.past, data.codec.horizon
        return past + horizon, f"a window has data.past + data.horizon = {past} + {horizon} steps"

    @staticmethod
    def frequencies(data: SeriesData) -> tuple[float, ...]:
        """Values have none."""
        return ()

    @staticmethod
    def codec(description: Mapping[str, Any]) -> SeriesCodec:
        """The channels, their scales and the form of a window."""
        return SeriesCodec.from_description(description)

    @staticmethod
    def score(
        model: Module, codec: SeriesCodec, settings: ForecastSettings, data: SeriesData, file: DataFile | None
    ) -> tuple[dict[str, Any], Evaluation]:
        """On every window of a CSV file, or of the test split.

        Raises:
            UserError: what is wrong with the file.
        """
        if file is None:
            name, windows = f"{data.name}, test part", SeriesTask(data, settings).windows("test")
        else:
            name, windows = str(file.path), with_naive(read_windows(codec, file), codec, None)
        facts = {"data": name, "windows": windows.count, "past": codec.past, "horizon": codec.horizon}
        return {**facts, "draw": settings.draw}, evaluate_windows(model, windows, settings)

    @staticmethod
    def generate_lines(
        model: Module, codec: SeriesCodec, settings: ForecastSettings, lines: Sequence[str], places: Sequence[str]
    ) -> list[str]:
        """A CSV table of the steps to come, in the units of the data, from the path of a table of the past.

        Where the model has covariates the table goes on, with empty targets, over the steps to come.

        Raises:
            UserError: columns that are missing, cells that are no numbers, too few rows, covariates of the steps to
                come that are missing; all at once.
        """
        path = Path(lines[0])
        batch = read_past(path, codec, codec.horizon, guess_separator(path))
        output = forecast(model, batch, codec.horizon, settings.draw)
        return forecast_table(codec, codec.denormalise(output[0].cpu().double()))

    @staticmethod
    def trial_batch(codec: SeriesCodec, rows: int) -> Batch:
        """Windows of random numbers."""
        places = torch.arange(rows)[:, None, None], torch.arange(codec.past + codec.horizon)[:, None]
        drawn = uniform(0, *places, torch.arange(len(codec.channels)))
        return codec.batch((4 * drawn - 2).float())

    @staticmethod
    def diagnosis_input(
        model: Module, codec: SeriesCodec, settings: ForecastSettings, data: SeriesData, items: int | None
    ) -> DiagnosisInput:
        """Test windows, the naive baselines and the whole test part for a long free run."""
        linear = SeriesTask(data).linear
        options = DiagnosisOptions(
            exponent=data.exponent,
            period=data.codec.period,
            threshold=settings.threshold,
            names=data.codec.names,
            scale=data.scales,
            naive={"linear": lambda past, horizon: linear(past.double(), horizon)},
            long_series=data.free("test")[:_LONGEST],
            draw=draw_for(model, settings.draw),
        )
        chosen = parts(evenly(data.windows("test"), items))
        return DiagnosisInput(f"{data.name}, test part", [data.window_batch("test", part) for part in chosen], options)


def with_naive(windows: Windows, codec: Any, linear: LinearForecast | None) -> Windows:
    """The windows with the scores of the forecasts that need no model; of the linear one where it was fitted."""
    found: dict[str, list[Tensor]] = {}
    gold: list[Tensor] = []
    further = {} if linear is None else {"linear": linear}
    for numbers in parts(range(windows.count), _NAIVE_BATCH):
        past, horizon = past_and_horizon(windows.make(numbers), windows.horizon, codec.values)
        gold.append(horizon)
        for name, said in naive_forecasts(past, windows.horizon, codec.period, further).items():
            found.setdefault(name, []).append(said)
    return replace(windows, naive={name: _scored(torch.cat(said), torch.cat(gold)) for name, said in found.items()})


def _scored(said: Tensor, gold: Tensor) -> tuple[dict[str, float], list[float]]:
    error = said - gold
    scores = {"nrmse": median(nrmse(said, gold)), "mse": float(error.square().mean()), "mae": float(error.abs().mean())}
    return scores, rmse_by_horizon(said, gold).mean(0).tolist()
