"""Scores of forecasts on windows, and a few windows whole for the figures of a report."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import Module

from freerun.arguments import Arguments, above, at_least, one_of
from freerun.batch import Batch
from freerun.data.series.windows import Windows
from freerun.diagnostics.naive import past_and_horizon
from freerun.diagnostics.values import CHANNELS, sample_window
from freerun.draws import DRAWS
from freerun.errors import UserError
from freerun.generation import draw_for, generate, point_prediction
from freerun.keys import fold
from freerun.metrics.outputs import first_divergence, nrmse, rmse_by_horizon, valid_time
from freerun.rollin.model import eval_mode
from freerun.tasks.base import Evaluation, parts
from freerun.types import evenly


@dataclass(frozen=True)
class ForecastSettings(Arguments):
    """How a forecaster is scored, on dev while training and on test at the end.

    Args:
        draw: what is fed back in free running: "auto", what the model outputs, or the mean of the distribution it
            outputs (of quantiles the median); "gaussian", "student_t" or "quantile_sample" is one draw from that.
        threshold: error, in standard deviations of the training part, that ends the valid time.
        batch_size: windows at a time; changes no number.

    Raises:
        UserError: values out of range; all problems at once.
    """

    draw: Literal["auto", "point", "expected", "gaussian", "student_t", "quantile_sample"] = one_of(
        ("auto", *(name for name, cls in DRAWS.items() if cls.values)), "auto"
    )
    threshold: float = above(0, 0.4)
    batch_size: int = at_least(1, 256, semantic=False)


def evaluate_windows(model: Module, windows: Windows, settings: ForecastSettings | None = None) -> Evaluation:
    """Scores of a forecaster on windows, told gold and running freely; all in standard deviations of the training part.

    Told gold, each step is forecast from the true values before it: ``loss`` is the mean squared error, ``nrmse`` the
    median over windows of the one-step NRMSE. Free-running, the model is told its own forecasts, and shown nothing of
    the horizon but its covariates: ``nrmse`` is the **median over windows of the NRMSE over the whole horizon**,
    ``nrmse_last_tenth`` that over the last tenth of it, ``mse`` and ``mae`` are means over windows, ``valid_time`` the
    median over windows (see ``freerun.diagnostics``), ``diverged`` the share of windows, in percent, whose free
    run left the finite numbers or 1e6 standard deviations, ``first_divergence`` the earliest lead time of it.

    A window that diverged has NRMSE inf. It is never averaged away: medians count it as the worst, and ``mse`` and
    ``mae`` are inf. Of a distribution the mean is scored (of quantiles the median).

    Args:
        model: from a Batch to (batch, time, ...); its mode is restored afterwards.
        windows: with at least one.
        settings: of the evaluation.

    Raises:
        UserError: no windows; a draw that the model has no distribution for.
    """
    settings = settings or ForecastSettings()
    if windows.count < 1:
        raise UserError("there are no windows to score on: give a longer series, or a shorter past or horizon")
    scored = [
        _score(model, windows.make(numbers), windows.horizon, settings)
        for numbers in parts(range(windows.count), settings.batch_size)
    ]
    found = {name: torch.cat([part[name] for part in scored]) for name in scored[0]}
    lost = found["diverged_at"] > 0
    whole, one_step = found["nrmse"], found["one_step_nrmse"]
    cells = float(found["length"].sum())
    free_running = {
        "nrmse": median(whole),
        "nrmse_last_tenth": median(found["last_tenth"]),
        "mse": float(found["squared"].sum()) / cells,
        "mae": float(found["absolute"].sum()) / cells,
        "valid_time": median(found["valid_time"].double()),
        "diverged": 100 * float(lost.double().mean()),
        "first_divergence": float(found["diverged_at"][lost].min()) if bool(lost.any()) else math.nan,
    }
    for name, (scores, _) in windows.naive.items():
        free_running |= {f"{name}_{score}": value for score, value in scores.items()}
    # windows are of one length: the mean of their means is the mean
    teacher_forced = {"loss": float(one_step.square().mean()), "nrmse": median(one_step)}
    curves = {side: found[f"{side}_by_lead"].mean(0).tolist() for side in ("teacher_forced", "free_running")}
    curves |= {name: curve for name, (_, curve) in windows.naive.items()}
    return Evaluation(teacher_forced, free_running, _items(found), curves)


def forecast(model: Module, batch: Batch, horizon: int, draw: str = "auto", key: int = 0) -> Tensor:
    """What a model says of the horizon, told only its own output: (batch, horizon, values), normalised.

    Args:
        model: its mode is restored afterwards.
        batch: windows; nothing of the horizon but its covariates is shown to the model.
        horizon: positions to say.
        draw: see ``ForecastSettings``.
        key: of the draws, where they are random.
    """
    return generate(model, hide_horizon(batch, horizon), length=horizon, draw=draw_for(model, draw), key=key).entries


def hide_horizon(batch: Batch, horizon: int) -> Batch:
    """The batch with NaN wherever something of the horizon stood in targets or history."""
    history = batch.history.clone()
    history[:, history.shape[1] - horizon :] = math.nan
    return batch.made(targets=torch.full_like(history, math.nan), history=history)


def _score(model: Module, batch: Batch, horizon: int, settings: ForecastSettings) -> dict[str, Tensor]:
    """Numbers for each window of a batch."""
    device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    batch = batch.to(device)
    gold = batch.targets[:, -horizon:].double()
    with eval_mode(model), torch.no_grad():
        told = point_prediction(model, model(batch))[:, -horizon:].double()
    said = forecast(model, batch, horizon, settings.draw, fold(0, "forecast")).double()
    gone, tenth = first_divergence(said), max(1, round(horizon / 10))
    lost = (gone > 0)[:, None, None]
    # what escaped may come back into range, but not to the series
    leads = torch.arange(1, horizon + 1, device=device)[None, :, None]
    said = said.masked_fill(lost & (leads >= gone[:, None, None]), math.nan)
    found = {
        "nrmse": nrmse(said, gold),
        "last_tenth": nrmse(said[:, -tenth:], gold[:, -tenth:]),
        "squared": (said - gold).square().masked_fill(lost, math.inf).sum((1, 2)),
        "absolute": (said - gold).abs().masked_fill(lost, math.inf).sum((1, 2)),
        "length": torch.full_like(gone, gold[0].numel()),
        "valid_time": valid_time(said, gold, settings.threshold),
        "diverged_at": gone,
        "one_step_nrmse": nrmse(told, gold),
        "teacher_forced_by_lead": rmse_by_horizon(told, gold),
        "free_running_by_lead": rmse_by_horizon(said, gold),
    }
    return {name: each.cpu() for name, each in found.items()}


def _items(found: Mapping[str, Tensor]) -> list[dict[str, Any]]:
    names = ("nrmse", "squared", "absolute", "length", "valid_time", "one_step_nrmse", "diverged_at")
    columns = {name: found[name].tolist() for name in names}
    columns["diverged_at"] = [lead or None for lead in columns["diverged_at"]]
    return [
        {"source": f"window {number}", **{name: column[number] for name, column in columns.items()}}
        for number in range(len(found["nrmse"]))
    ]


def median(values: Tensor) -> float:
    """Of an even number the mean of the two in the middle; inf where either is."""
    ordered = values.sort().values
    return float((ordered[(len(ordered) - 1) // 2] + ordered[len(ordered) // 2]) / 2)


def whole_windows(
    model: Module, windows: Windows, settings: ForecastSettings, codec: Any, count: int = 6
) -> list[dict[str, Any]]:
    """Windows at even distances, as ``freerun.diagnostics.SampleWindow`` has them, with the names of their channels.

    Args:
        model: its mode is restored afterwards.
        windows: with at least one.
        settings: of the evaluation.
        codec: has ``values``, ``names`` and ``denormalise``.
        count: windows at most.
    """
    chosen = evenly(windows.count, count)
    device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    batch = windows.make(chosen).to(device)
    past, gold = past_and_horizon(batch, windows.horizon, codec.values)
    with eval_mode(model), torch.no_grad():
        teacher_forced = point_prediction(model, model(batch))[:, -windows.horizon :]
    free_running = forecast(model, batch, windows.horizon, settings.draw, fold(0, "forecast"))
    rows = zip(past, gold, teacher_forced, free_running, strict=True)
    found = [asdict(sample_window(n, row, codec.denormalise)) for n, row in zip(chosen, rows, strict=True)]
    names = ("past", "gold", "teacher_forced", "free_running", "diverged_at")
    return [
        {"window": each["window"], "channels": list(codec.names[:CHANNELS]), **{name: each[name] for name in names}}
        for each in found
    ]
