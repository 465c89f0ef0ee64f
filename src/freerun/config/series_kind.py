"""Series of values - files, simulated systems, frames - as a kind of task."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from freerun.config.data_sections import DataFile
from freerun.config.recipe import SeriesEvaluate
from freerun.config.series_sections import FramesSection, SeriesSection, SystemSection
from freerun.errors import UserError

if TYPE_CHECKING:
    from torch.nn import Module

    from freerun.data import SeriesCoder, SeriesData
    from freerun.training import Evaluation
    from freerun.training.forecasting import ForecastTask
    from freerun.training.reported import Reported
    from freerun.types import Batch

__all__ = ["SeriesKind"]


class SeriesKind:
    """Windows of series, forecast freely over a horizon; see ``TaskKind``."""

    models = (
        "recurrent_forecaster", "plain_forecaster", "transformer_forecaster", "conv_gru", "shallow_plrnn", "article",
    )  # fmt: skip
    evaluate: type[Any] = SeriesEvaluate
    select = "nrmse"
    selectable = (
        "nrmse", "nrmse_last_tenth", "mse", "mae", "valid_time", "teacher_forced_nrmse", "teacher_forced_loss",
    )  # fmt: skip
    values = True
    tables = True
    aligned = False
    needs_training_data = False

    def reported(self) -> Reported:
        """The free-running NRMSE first."""
        from freerun.training.reported_series import SERIES

        return SERIES

    def load(self, settings: SeriesSection | SystemSection | FramesSection, model: Any) -> SeriesData:
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
        from freerun.training.forecasting import ForecastTask

        return ForecastTask(data, _scoring(settings, items))

    def sizes(self, data: SeriesData) -> tuple[int, ...]:
        """Channels: predicted, known ahead, known in the past only."""
        return data.values, data.covariates, data.observed

    def positions(self, data: SeriesData, settings: SeriesEvaluate) -> tuple[int, str]:
        """The whole window's, for models that read one sequence."""
        past, horizon = data.coder.past, data.coder.horizon
        return past + horizon, f"a window has data.past + data.horizon = {past} + {horizon} steps"

    def frequencies(self, data: SeriesData) -> tuple[float, ...]:
        """Values have none."""
        return ()

    def coder(self, description: Mapping[str, Any]) -> SeriesCoder:
        """The channels, their scales and the form of a window."""
        from freerun.data import SeriesCoder

        return SeriesCoder.from_description(description)

    def score(
        self, model: Module, coder: SeriesCoder, settings: SeriesEvaluate, data: SeriesData, file: DataFile | None
    ) -> tuple[dict[str, Any], Evaluation]:
        """On every window of a CSV file, or of the test split.

        Raises:
            UserError: what is wrong with the file.
        """
        from freerun.config.series_table import read_windows
        from freerun.training.forecast_scores import evaluate_windows
        from freerun.training.forecasting import ForecastTask, with_naive

        if file is None:
            name, windows = f"{data.name}, test part", ForecastTask(data, _scoring(settings)).windows("test")
        else:
            name, windows = str(file.path), with_naive(read_windows(coder, file), coder, None)
        facts = {"data": name, "windows": windows.count, "past": coder.past, "horizon": coder.horizon}
        return {**facts, "draw": settings.draw}, evaluate_windows(model, windows, _scoring(settings))

    def answer(
        self, model: Module, coder: SeriesCoder, settings: SeriesEvaluate, lines: Sequence[str], places: Sequence[str]
    ) -> list[str]:
        """A CSV table of the steps to come, in the units of the data, from the table of the past whose path is given.

        Where the model has covariates the table goes on, with empty targets, over the steps to come.

        Raises:
            UserError: columns that are missing, cells that are no numbers, too few rows, covariates of the steps to
                come that are missing; all at once.
        """
        from pathlib import Path

        from freerun.config.series_table import said_table, separator_of
        from freerun.data import read_past
        from freerun.training.forecast_scores import forecast

        path = Path(lines[0])
        batch = read_past(path, coder, coder.horizon, separator_of(path))
        said = forecast(model, batch, coder.horizon, settings.draw)
        return said_table(coder, coder.denormalise(said[0].cpu().double()))

    def trial_batch(self, coder: SeriesCoder, rows: int) -> Batch:
        """Windows of random numbers."""
        import torch

        from freerun.keys import uniform

        places = torch.arange(rows)[:, None, None], torch.arange(coder.past + coder.horizon)[:, None]
        drawn = uniform(0, *places, torch.arange(len(coder.channels)))
        return coder.batch((4 * drawn - 2).float())


def _scoring(settings: SeriesEvaluate, windows: int | None = None) -> Any:
    from freerun.training.forecast_scores import ForecastSettings

    return ForecastSettings(settings.draw, settings.threshold, settings.batch_size, windows)


def _load(settings: SeriesSection | SystemSection | FramesSection, layout: Any) -> SeriesData:
    from freerun import data

    if isinstance(settings, SeriesSection):
        return data.load_series(settings.path or (), data.SeriesOptions(**settings.options()), layout)
    if isinstance(settings, SystemSection):
        return data.load_system(settings.system, data.SystemOptions(**settings.options()), layout)
    return data.load_frames(data.FrameOptions(**settings.options()), layout)
