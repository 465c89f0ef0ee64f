"""Series of values - files, simulated systems - as a kind of task."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor
from torch.nn import Module

from freerun.arguments import number_field
from freerun.batch import Batch
from freerun.data.files import DataFile
from freerun.data.series.windows import Windows
from freerun.diagnostics.naive import LinearForecast, fit_linear, naive_forecasts, past_and_horizon, together
from freerun.errors import UserError
from freerun.metrics.outputs import nrmse, rmse_by_horizon
from freerun.tasks.base import DataTask, Evaluation
from freerun.tasks.forecasts import ForecastSettings, batches, evaluate_windows, median, whole_windows
from freerun.tasks.sections import SeriesSection, SystemSection
from freerun.types import evenly

if TYPE_CHECKING:
    from freerun.data import SeriesCodec, SeriesData
    from freerun.metrics.table import TaskReport

_NAIVE_BATCH = 1024


class ForecastTask(DataTask[Any, ForecastSettings]):
    """A series to train on, scored told gold and running freely: a ``Task`` of the training loop.

    Args:
        data: a ``SeriesData``.
        settings: of the evaluation; the defaults of ``ForecastSettings`` if left out.
    """

    def __init__(self, data: Any, settings: ForecastSettings | None = None) -> None:
        super().__init__(data, settings or ForecastSettings())
        self._windows: dict[str, Windows] = {}

    def evaluate(self, model: Module, split: str) -> Evaluation:
        """Scores on "dev" (``settings.windows`` of its windows) or "test"; see ``evaluate_windows``."""
        if split not in ("dev", "test"):
            raise UserError(f"split must be dev or test; got {split!r}")
        found = evaluate_windows(model, self.windows(split), self.settings)
        if split == "dev":
            return found
        return replace(found, shown=whole_windows(model, self.windows(split), self.settings, self.data.codec))

    def windows(self, split: str) -> Windows:
        """The windows of a split that are scored, with the naive rows for them."""
        if split not in self._windows:
            count = self.data.windows(split)
            chosen = evenly(count, self.settings.windows if split == "dev" else None)
            found = Windows(
                len(chosen), lambda numbers: self._batch(split, [chosen[n] for n in numbers]), self._horizon
            )
            self._windows[split] = with_naive(found, self.data.codec, self.linear)
        return self._windows[split]

    @property
    def _horizon(self) -> int:
        return self.data.codec.horizon

    def _batch(self, split: str, numbers: list[int]) -> Batch:
        return self.data.window_batch(split, numbers)

    @cached_property
    def linear(self) -> LinearForecast:
        """Least squares from past to horizon, fitted to the training windows."""
        values, horizon, size = self.data.values, self._horizon, _NAIVE_BATCH

        def train(numbers: list[int]) -> tuple[Tensor, Tensor]:
            parts = [numbers[start : start + size] for start in range(0, len(numbers), size)]
            return together([past_and_horizon(self.data.batch(part), horizon, values) for part in parts])

        chosen = evenly(self.data.windows("dev"), 1024)
        parts = [[chosen[n] for n in numbers] for numbers in batches(len(chosen), size)]
        dev = together([past_and_horizon(self._batch("dev", part), horizon, values) for part in parts])
        return fit_linear(train, len(self.data.lengths), dev)


def with_naive(windows: Windows, codec: Any, linear: LinearForecast | None) -> Windows:
    """The windows with the scores of the forecasts that need no model; of the linear one where it was fitted."""
    found: dict[str, list[Tensor]] = {}
    gold: list[Tensor] = []
    further = {} if linear is None else {"linear": linear}
    for numbers in batches(windows.count, _NAIVE_BATCH):
        past, horizon = past_and_horizon(windows.make(numbers), windows.horizon, codec.values)
        gold.append(horizon)
        for name, said in naive_forecasts(past, windows.horizon, codec.period, further).items():
            found.setdefault(name, []).append(said)
    return replace(windows, naive={name: _scored(torch.cat(said), torch.cat(gold)) for name, said in found.items()})


def _scored(said: Tensor, gold: Tensor) -> tuple[dict[str, float], list[float]]:
    error = said - gold
    scores = {"nrmse": median(nrmse(said, gold)), "mse": float(error.square().mean()), "mae": float(error.abs().mean())}
    return scores, rmse_by_horizon(said, gold).mean(0).tolist()


@dataclass(frozen=True)
class SeriesEvaluate:
    """How a forecaster is scored, on dev while training and on test at the end.

    Args:
        draw: what is fed back in free running: "auto", what the model says, or the mean of the distribution it says;
            "gaussian", "student_t" or "quantile_sample" is one draw from that.
        threshold: error, in standard deviations, that ends the valid time.
        batch_size: windows at a time; changes no number.
    """

    draw: Literal["auto", "point", "expected", "gaussian", "student_t", "quantile_sample"] = "auto"
    threshold: float = number_field(0.4, low=0.0)
    batch_size: int = number_field(256, low=1, semantic=False)

    def __post_init__(self) -> None:
        if not self.threshold > 0:
            raise UserError(f"`threshold` must be above 0; got {self.threshold}")


class SeriesKind:
    """Windows of series, forecast freely over a horizon; see ``TaskKind``."""

    models = ("recurrent_forecaster", "plain_forecaster", "transformer_forecaster", "shallow_plrnn", "article")
    evaluate: type[Any] = SeriesEvaluate
    select = "nrmse"
    values = True
    tables = True
    aligned = False
    needs_training_data = False

    def reported(self) -> TaskReport:
        """The free-running NRMSE first."""
        from freerun.metrics.table import SERIES

        return SERIES

    def load(self, settings: SeriesSection | SystemSection, model: Any) -> SeriesData:
        """The windows, laid out as the model of a ``[model]`` section reads them.

        Raises:
            UserError: all problems of the files; a setting that has no effect with that kind of model.
        """
        from freerun.models import MODELS

        layout = MODELS[model.kind].layout
        if getattr(settings, "warmup_loss", False) and layout == "past":
            raise UserError(
                f"data.warmup_loss has no effect with a model of kind {model.kind}, which says the horizon only\n"
                "  help: leave it out, or use kind = plain_forecaster"
            )
        return _load(settings, layout)

    def make(self, data: SeriesData, settings: SeriesEvaluate, items: int | None) -> ForecastTask:
        """Free-running and one-step errors on so many windows of dev."""
        pass

        return ForecastTask(data, _scoring(settings, items))

    def sizes(self, data: SeriesData) -> tuple[int, ...]:
        """Channels: predicted, known ahead, known in the past only."""
        return data.values, data.covariates, data.observed

    def positions(self, data: SeriesData, settings: SeriesEvaluate) -> tuple[int, str]:
        """The whole window's, for models that read one sequence."""
        past, horizon = data.codec.past, data.codec.horizon
        return past + horizon, f"a window has data.past + data.horizon = {past} + {horizon} steps"

    def frequencies(self, data: SeriesData) -> tuple[float, ...]:
        """Values have none."""
        return ()

    def codec(self, description: Mapping[str, Any]) -> SeriesCodec:
        """The channels, their scales and the form of a window."""
        from freerun.data import SeriesCodec

        return SeriesCodec.from_description(description)

    def score(
        self, model: Module, codec: SeriesCodec, settings: SeriesEvaluate, data: SeriesData, file: DataFile | None
    ) -> tuple[dict[str, Any], Evaluation]:
        """On every window of a CSV file, or of the test split.

        Raises:
            UserError: what is wrong with the file.
        """
        from freerun.data.series.inference import read_windows
        from freerun.tasks.forecasts import evaluate_windows

        pass

        if file is None:
            name, windows = f"{data.name}, test part", ForecastTask(data, _scoring(settings)).windows("test")
        else:
            name, windows = str(file.path), with_naive(read_windows(codec, file), codec, None)
        facts = {"data": name, "windows": windows.count, "past": codec.past, "horizon": codec.horizon}
        return {**facts, "draw": settings.draw}, evaluate_windows(model, windows, _scoring(settings))

    def answer(
        self, model: Module, codec: SeriesCodec, settings: SeriesEvaluate, lines: Sequence[str], places: Sequence[str]
    ) -> list[str]:
        """A CSV table of the steps to come, in the units of the data, from the table of the past whose path is given.

        Where the model has covariates the table goes on, with empty targets, over the steps to come.

        Raises:
            UserError: columns that are missing, cells that are no numbers, too few rows, covariates of the steps to
                come that are missing; all at once.
        """
        from pathlib import Path

        from freerun.data import read_past
        from freerun.data.series.inference import forecast_table, guess_separator
        from freerun.tasks.forecasts import forecast

        path = Path(lines[0])
        batch = read_past(path, codec, codec.horizon, guess_separator(path))
        said = forecast(model, batch, codec.horizon, settings.draw)
        return forecast_table(codec, codec.denormalise(said[0].cpu().double()))

    def trial_batch(self, codec: SeriesCodec, rows: int) -> Batch:
        """Windows of random numbers."""
        import torch

        from freerun.keys import uniform

        places = torch.arange(rows)[:, None, None], torch.arange(codec.past + codec.horizon)[:, None]
        drawn = uniform(0, *places, torch.arange(len(codec.channels)))
        return codec.batch((4 * drawn - 2).float())


def _scoring(settings: SeriesEvaluate, windows: int | None = None) -> Any:
    from freerun.tasks.forecasts import ForecastSettings

    return ForecastSettings(settings.draw, settings.threshold, settings.batch_size, windows)


def _load(settings: SeriesSection | SystemSection, layout: Any) -> SeriesData:
    from freerun import data

    if isinstance(settings, SeriesSection):
        return data.load_series(settings.path or (), data.SeriesOptions(**settings.options()), layout)
    return data.load_system(settings.system, data.SystemOptions(**settings.options()), layout)
