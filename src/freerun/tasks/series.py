"""Series of values - files, simulated systems - as a kind of task, scored by forecasts of windows."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property, lru_cache
from itertools import pairwise
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor
from torch.nn import Module

from freerun.arguments import Arguments, OneOf, above, at_least, between, one_of
from freerun.batch import Batch
from freerun.data.files import DataFile
from freerun.data.series.inference import Future, forecast_table, read_futures, read_windows
from freerun.data.series.loading import load_series
from freerun.data.series.options import Layout, SeriesOptions
from freerun.data.series.windows import SeriesCodec, SeriesData, Windows
from freerun.data.symbols import Binning, LevelData, quantised
from freerun.data.systems import SystemOptions, load_system, system_named
from freerun.diagnostics import DiagnosisOptions
from freerun.diagnostics.naive import past_and_horizon
from freerun.diagnostics.values import CHANNELS, sample_window
from freerun.draws import DRAWS
from freerun.errors import UserError, collected, listed, refuse
from freerun.generation import draw_for, generate, point_prediction
from freerun.keys import fold, uniform
from freerun.methods.base import gold_outputs
from freerun.metrics.outputs import first_divergence, nrmse, rmse_by_horizon, valid_time
from freerun.metrics.probabilistic import sample_quantiles
from freerun.metrics.table import SERIES, TaskReport
from freerun.models import MODELS, WindowScaled
from freerun.regression import LinearForecast, clearly, fit_linear
from freerun.rollin.model import eval_mode
from freerun.tasks.base import DataTask, DiagnosisInput, Evaluation, Examples, missing_path, model_device, parts
from freerun.tasks.naive_rows import RESIDUALS, Naive, fitting, median, with_naive
from freerun.tasks.sample_paths import DECILES, FAN_PATHS, LEADS, fans, law_problems, probabilistic_scores, sample_paths
from freerun.types import evenly

_PATHS = 2**22
"""Values of sample paths of a forecast at a time; changes no number."""
_EMBEDDING = ("recurrent_forecaster", "plain_forecaster", "transformer_forecaster", "python")
"""Kinds of models that take categories."""
_LONGEST = 4000
"""Steps of the test part that a diagnosis runs freely over."""


@dataclass(frozen=True)
class LevelFields:
    """Values as symbols.

    Args:
        levels: the values of the one channel become so many symbols, and the task is to predict each of them (None:
            values stay values).
        binning: "quantiles": levels that are equally frequent in the training windows; "width": equally wide ones
            (None: "quantiles", with ``levels``).
    """

    levels: int | None = between(2, 4096, None)
    binning: Binning | None = None

    def level_problems(self) -> list[str]:
        """Return which fields do not go together."""
        if problem := OneOf(("quantiles", "width"), optional=True).problem("binning", self.binning):
            return [problem]
        if self.levels is not None:
            return ["warmup_loss has no effect with levels: leave it out"] if getattr(self, "warmup_loss") else []  # noqa: B009
        return ["binning has no effect without levels: add levels = 26, or leave it out"] if self.binning else []

    def load_symbols(self) -> LevelData:
        """The windows as levels."""
        assert self.levels is not None
        return quantised(self.load("past"), self.levels, self.binning or "quantiles")

    def load(self, layout: Layout) -> SeriesData:
        """The windows as values."""
        raise NotImplementedError


@dataclass(frozen=True)
class SeriesSection(SeriesOptions, LevelFields):
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
        refuse(problems + self.level_problems())

    def load(self, layout: Layout) -> SeriesData:
        """The windows as values."""
        return load_series(self.path or (), self, layout)


@dataclass(frozen=True)
class SystemSection(SystemOptions, LevelFields):
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
        refuse(problems + self.level_problems())

    def load(self, layout: Layout) -> SeriesData:
        """The windows as values."""
        return load_system(self.system, self, layout)


@dataclass(frozen=True)
class ForecastSettings(Arguments):
    """How a forecaster is scored, on dev while training and on test at the end.

    Args:
        draw: what is fed back in free running: "auto", what the model outputs, or the mean of the distribution it
            outputs (of quantiles the median); "gaussian", "student_t" or "quantile_sample" is one draw from that.
        threshold: error, in standard deviations of the training part, that ends the valid time.
        num_samples: sample paths of every window, by which the law that a model with a head predicts is scored (CRPS,
            pinball loss, coverage); 0: the one forecast alone. Of ``freerun generate`` its option holds.
        quantiles: levels of the pinball loss, and of the columns that ``freerun generate`` writes beside the forecast;
            None: the deciles, and no columns.
        batch_size: windows at a time; changes no number.
        length: steps that ``freerun generate`` forecasts after a table's newest row; None: ``data.horizon``.

    Raises:
        UserError: values out of range; all problems at once.
    """

    draw: Literal["auto", "point", "expected", "gaussian", "student_t", "quantile_sample"] = one_of(
        ("auto", *(name for name, cls in DRAWS.items() if cls.values)), "auto"
    )
    threshold: float = above(0, 0.4)
    num_samples: int = between(0, 10_000, 0)
    quantiles: tuple[float, ...] | None = between(0, 1, None, ends="()")
    batch_size: int = at_least(1, 256, semantic=False)
    length: int | None = at_least(1, None, semantic=False)

    def problems(self) -> Iterable[str]:
        """Return what is wrong with the levels together, a line each."""
        levels = self.quantiles
        if levels is not None and (not levels or any(a >= b for a, b in pairwise(levels))):
            yield f"quantiles must rise, and hold one at least; got {levels}"


class SeriesTask(DataTask):
    """Windows of series, forecast over a horizon, scored by their errors."""

    data: SeriesData
    settings: ForecastSettings
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
        if split not in ("dev", "test"):
            raise UserError(f"split must be dev or test; got {split!r}")
        scores = evaluate_windows(model, self.windows(split), self.settings)
        if split == "dev":
            return scores
        data, chosen = self.data, evenly(self.windows(split).count, 6)
        units = [data.in_units(split, number) for number in chosen]
        complete = complete_windows(model, self.windows(split), self.settings, data.codec, units)
        return replace(scores, forecasts=complete)

    def named(self, batch: Batch, numbers: Sequence[int]) -> Examples:
        units = [self.data.in_units("train", number) for number in numbers]
        return replace(super().named(batch, numbers), in_units=units, channels=self.data.codec.names)

    def windows(self, split: str) -> Windows:
        """The windows of a split that are scored, with the naive rows for them."""
        if split not in self._windows:
            chosen = evenly(self.data.windows(split), self.items if split == "dev" else None)
            make = lambda numbers: self.data.window_batch(split, [chosen[n] for n in numbers])  # noqa: E731
            rows, horizon = sum(part.end - part.begin for part in self.data.segments[split]), self.data.codec.horizon
            windows = Windows(len(chosen), make, horizon, independent=min(len(chosen), rows // horizon))
            self._windows[split] = with_naive(windows, self.naive)
        return self._windows[split]

    @cached_property
    def linear(self) -> LinearForecast:
        """Least squares from past to horizon, fitted to the training windows."""
        return linear_of(self.data)

    @cached_property
    def naive(self) -> Naive:
        """The forecasts that need no model; where laws are scored, with what each was off in the training windows."""
        data, settings = self.data, self.settings
        naive = Naive(data.codec, self.linear, settings.quantiles or DECILES)
        if not settings.num_samples:
            return naive
        chosen = evenly(len(data.lengths), min(4096, max(64, RESIDUALS // (data.codec.horizon * data.codec.values))))
        return naive.fitted(data.batch(part) for part in parts(chosen, fitting(data.batch([0]))))

    @staticmethod
    def load(settings: SeriesSection | SystemSection, model: Any) -> SeriesData:
        # a model of one's own reads the known part of a window in the context
        layout = MODELS[model.kind].layout if model.kind in MODELS else "past"
        if settings.warmup_loss and layout == "past":
            raise UserError(
                f"data.warmup_loss has no effect with a model of kind {model.kind}, which predicts the horizon only\n"
                "  help: leave it out, or use kind = plain_forecaster"
            )
        if getattr(settings, "categories", ()) and model.kind not in _EMBEDDING:
            raise UserError(
                f"data.categories needs a model that learns vectors: {listed(_EMBEDDING)}; got kind = {model.kind}"
            )
        return settings.load(layout)

    @staticmethod
    def sizes(data: SeriesData) -> tuple[Any, ...]:
        codec = data.codec
        sizes: tuple[Any, ...] = (codec.values, codec.covariates, codec.observed)
        return (*sizes, codec.embedded) if codec.categories else sizes

    @staticmethod
    def begin(model: Module, data: SeriesData) -> None:
        if isinstance(model, WindowScaled) and model.linear:
            linear = linear_of(data)
            model.fit_linear(linear.weights, linear.steps, data.codec.horizon)

    @staticmethod
    def positions(data: SeriesData, settings: ForecastSettings) -> tuple[int, str]:
        past, horizon = data.codec.past, data.codec.horizon
        return past + horizon, f"a window has data.past + data.horizon = {past} + {horizon} steps"

    @staticmethod
    def evaluate_problems(settings: ForecastSettings, head: str | None, select: str) -> list[tuple[str, str, str]]:
        return law_problems(settings, head, select)

    @staticmethod
    def frequencies(data: SeriesData) -> tuple[float, ...]:
        return ()

    @staticmethod
    def codec(description: Mapping[str, Any]) -> SeriesCodec:
        return SeriesCodec.from_description(description)

    @staticmethod
    def score(
        model: Module, codec: SeriesCodec, settings: ForecastSettings, data: SeriesData, file: DataFile | None
    ) -> tuple[dict[str, Any], Evaluation]:
        if file is None:
            name, windows = f"{data.name}, test part", SeriesTask(data, settings).windows("test")
        else:
            name, windows = str(file.path), with_naive(read_windows(codec, file), Naive(codec))
            if settings.num_samples:
                file.notes.append(
                    "rows without a model have no CRPS, pinball loss and coverage: their law is what they were off in "
                    "the training part, and only this file is read; `freerun evaluate` without --data has it"
                )
        facts = {"data": name, "windows": windows.count, "past": codec.past, "horizon": codec.horizon}
        facts |= {"draw": settings.draw}
        return facts, evaluate_windows(model, windows, settings)

    @staticmethod
    def generate_table(model: Module, codec: SeriesCodec, settings: ForecastSettings, file: DataFile) -> list[str]:
        """A CSV table of the steps to come of each series, in the units of the data."""
        futures, names = read_futures(codec, file, settings.length), list(codec.names)
        levels, number = settings.quantiles, settings.num_samples
        if levels or number:
            labels = range(1, 1 + number) if levels is None else [f"q{level:g}" for level in levels]
            names += [f"{name}.{at}" for at in labels for name in codec.names]
        tables: dict[int, Tensor] = {}
        for steps in dict.fromkeys(future.steps for future in futures):
            own = [n for n, future in enumerate(futures) if future.steps == steps]
            for part in parts(own, max(1, _PATHS // (steps * codec.values * (number or FAN_PATHS)))):
                found = _columns(model, codec, settings, [futures[n] for n in part])
                tables |= dict(zip(part, found, strict=True))
        return forecast_table(futures, [tables[n] for n in range(len(futures))], names)

    @staticmethod
    def trial_batch(codec: SeriesCodec, rows: int) -> Batch:
        cells = torch.arange(rows)[:, None, None], torch.arange(codec.past + codec.horizon)[:, None]
        drawn = uniform(0, *cells, torch.arange(len(codec.channels)))
        block = (4 * drawn - 2).float()
        for number, _ in codec.embedded:
            block[..., number - codec.covariates] = 0
        return codec.batch(block)

    @staticmethod
    def diagnosis_input(
        model: Module, codec: SeriesCodec, settings: ForecastSettings, data: SeriesData, items: int | None
    ) -> DiagnosisInput:
        """Test windows, the naive baselines and the complete test part for a long free run."""
        linear = SeriesTask(data).linear
        complete, name = data.complete_windows("test"), f"{data.name}, test part"
        if not complete:
            raise UserError(f"{name}: a value is missing in every window, and a diagnosis is of complete ones")
        if len(complete) < data.windows("test"):
            name += f", {len(complete):,} of {data.windows('test'):,} windows, in which no value is missing"
        chosen = [complete[n] for n in evenly(len(complete), items)]
        options = DiagnosisOptions(
            exponent=data.exponent,
            period=data.codec.period,
            threshold=settings.threshold,
            names=data.codec.names,
            scale=data.scales_of("test", chosen),
            naive={"linear": lambda past, horizon: linear(past.double(), horizon)},
            long_series=data.free("test")[:_LONGEST],
            draw=draw_for(model, settings.draw),
        )
        return name, [data.window_batch("test", part) for part in parts(chosen)], options


def _columns(
    model: Module, codec: SeriesCodec, settings: ForecastSettings, futures: Sequence[Future]
) -> Iterator[Tensor]:
    """Of each series (steps, columns): the forecast, and its quantiles or paths; all of so many steps."""
    steps, levels, number = futures[0].steps, settings.quantiles, settings.num_samples
    # the noise of a series is its own, whatever others stand in the table
    rows = torch.tensor([0 if each.series is None else fold(0, each.series) >> 32 for each in futures])
    batch = codec.batch(torch.cat([each.window for each in futures])).to(model_device(model))
    columns = [] if levels else [forecast(model, batch, steps, settings.draw)]
    if levels or number:
        paths = sample_paths(model, batch, steps, number or FAN_PATHS, rows=rows.to(batch.targets.device))
        # beside quantiles the median: a run of means or medians may lie outside those of few paths, or of a skewed law
        columns += (sample_quantiles(paths, (0.5, *levels)) if levels else paths).unbind(1)
    own = [each.cpu().double() for each in columns]
    for row, future in enumerate(futures):
        yield torch.cat([future.codec.denormalise(each[row]) for each in own], 1)


@lru_cache(1)
def linear_of(data: SeriesData) -> LinearForecast:
    """Ridge regression from past to horizon: of at most 4,096 training windows and 1,024 of dev, fewer wide ones."""
    codec, count = data.codec, data.windows("dev")

    def halves(chosen: Sequence[int], batch: Callable[[list[int]], Batch]) -> Iterator[tuple[Tensor, Tensor]]:
        for part in parts(chosen, fitting(batch([0]))):
            past, gold = past_and_horizon(batch(part), codec.horizon, codec.values)
            yield past, torch.where(gold.isnan(), past[:, -1:], gold)  # to fit to; nothing of it is scored

    def window(numbers: list[int]) -> Batch:
        return data.window_batch("dev", numbers)

    dev = [*halves(evenly(count, min(1024, 4 * fitting(window([0]), 2**20))), window)]
    chosen = evenly(len(data.lengths), min(4096, 64 * fitting(data.batch([0]))))
    rows = {split: sum(part.end - part.begin for part in data.segments[split]) for split in ("train", "dev")}
    held = torch.cat([past for past, _ in dev]), torch.cat([horizon for _, horizon in dev])
    return fit_linear(
        lambda numbers: halves([chosen[n] for n in numbers], data.batch),
        len(chosen), held, (rows["train"] // 2 + rows["dev"]) // codec.horizon, codec.period,
    )  # fmt: skip


def evaluate_windows(model: Module, windows: Windows, settings: ForecastSettings | None = None) -> Evaluation:
    """Scores of a forecaster on windows, in standard deviations of the training part; see ``freerun.metrics.table``.

    A window whose free run left the finite numbers or 1e6 standard deviations has NRMSE inf. It is never averaged away:
    medians count it as the worst, and ``mse`` and ``mae`` are inf. Of a distribution the mean is scored.
    """
    settings = settings or ForecastSettings()
    if windows.count < 1:
        raise UserError("there are no windows to score on: give a longer series, or a shorter past or horizon")
    batches = [
        _scores(model, windows.make(numbers), windows.horizon, settings, numbers)
        for numbers in parts(range(windows.count), fitting(windows.make([0]), settings.batch_size))
    ]
    scores = {name: torch.cat([batch[name] for batch in batches]) for name in batches[0]}
    lost, one_step = scores["diverged_at"] > 0, scores["one_step_nrmse"]
    cells = float(scores["length"].sum())
    free_running = {
        "nrmse": median(scores["nrmse"]),
        "nrmse_last_tenth": median(scores["last_tenth"]),
        "mse": float(scores["squared"].sum()) / cells,
        "mae": float(scores["absolute"].sum()) / cells,
        "valid_time": median(scores["valid_time"].double()),
        "diverged": 100 * float(lost.double().mean()),
        "first_divergence": float(scores["diverged_at"][lost].min()) if bool(lost.any()) else math.nan,
    }
    if settings.num_samples:
        free_running |= {name: float(scores[name].sum()) / cells for name in ("crps", "pinball")}
        shares = (name for name in scores if name.startswith("covered"))
        free_running |= {
            name.replace("covered", "coverage"): 100 * float(scores[name].sum()) / cells for name in shares
        }
    for name, (naive, _) in windows.naive.items():
        free_running |= {f"{name}_{score}": value for score, value in naive.items()}
    forced_mean = (one_step.square() * scores["length"]).sum() / cells
    teacher_forced = {"loss": float(forced_mean), "nrmse": median(one_step)}
    curves = {side: scores[f"{side}_by_lead"].nanmean(0).tolist() for side in ("teacher_forced", "free_running")}
    curves |= {name: scores[f"{name}_by_lead"].nanmean(0).tolist() for name in LEADS if f"{name}_by_lead" in scores}
    for _, drawn in windows.naive.values():
        curves |= drawn
    names = ("nrmse", "squared", "absolute", "length", "valid_time", "one_step_nrmse", "diverged_at")
    names += tuple(name for name in ("crps", "covered_50", "covered_80") if name in scores)
    columns = {name: scores[name].tolist() for name in names}
    columns["diverged_at"] = [lead or None for lead in columns["diverged_at"]]
    items = [
        {"source": f"window {number}", **dict(zip(names, row, strict=True))}
        for number, row in enumerate(zip(*columns.values(), strict=True))
    ]
    off_start = {
        score: clearly((scores[f"start_{name}"] - scores[name])[~scores["nrmse"].isnan()], windows.independent)
        for score, name in (("nrmse", "nrmse"), ("mse", "squared"), ("mae", "absolute"))
        if "start_nrmse" in scores
    }
    return Evaluation(teacher_forced, free_running, items, curves, off_start=off_start)


def forecast(model: Module, batch: Batch, horizon: int, draw: str = "auto", key: int = 0) -> Tensor:
    """What a model predicts of the horizon from its own output: (batch, horizon, values), normalised."""
    return generate(model, hide_horizon(batch, horizon), length=horizon, draw=draw_for(model, draw), key=key).entries


def hide_horizon(batch: Batch, horizon: int) -> Batch:
    """The batch with NaN wherever a value of the horizon stood in targets or history."""
    history = batch.history.clone()
    history[:, history.shape[1] - horizon :] = math.nan
    return batch.made(targets=torch.full_like(history, math.nan), history=history, present=None)


def _both_sides(model: Module, batch: Batch, horizon: int, draw: str) -> tuple[Tensor, Tensor]:
    """What a model predicts of the horizon from the true values, step by step, and from its own output."""
    with eval_mode(model), torch.no_grad():
        outputs, _ = gold_outputs(model, batch, draw_for(model))
        teacher_forced = point_prediction(model, outputs)[:, -horizon:]
    return teacher_forced, forecast(model, batch, horizon, draw, fold(0, "forecast"))


def _scores(
    model: Module, batch: Batch, horizon: int, settings: ForecastSettings, numbers: Sequence[int]
) -> dict[str, Tensor]:
    """Numbers for each window of a batch."""
    batch = batch.to(model_device(model))
    gold = batch.targets[:, -horizon:].double()
    missing = gold.isnan()
    teacher_forced, free = (each.double() for each in _both_sides(model, batch, horizon, settings.draw))
    gone, tenth = first_divergence(free), max(1, round(horizon / 10))
    lost = (gone > 0)[:, None, None]
    # what escaped may come back into range, but not to the series
    leads = torch.arange(1, horizon + 1, device=free.device)[None, :, None]
    free = free.masked_fill(lost & (leads >= gone[:, None, None]), math.nan)
    scores = {
        **_errors(free.masked_fill(lost, math.inf), gold),
        "nrmse": nrmse(free, gold),
        "last_tenth": nrmse(free[:, -tenth:], gold[:, -tenth:]),
        "length": (~missing).sum((1, 2)),
        "valid_time": valid_time(free, gold, settings.threshold),
        "diverged_at": gone,
        "one_step_nrmse": nrmse(teacher_forced, gold),
        "teacher_forced_by_lead": rmse_by_horizon(teacher_forced, gold),
        "free_running_by_lead": rmse_by_horizon(free, gold),
    }
    if isinstance(model, WindowScaled) and model.linear:
        start = model.regress(batch.context["past"][..., : model.values], horizon)[:, :horizon].double()
        scores |= {f"start_{name}": errors for name, errors in _errors(start, gold).items()}
    if settings.num_samples:
        scores |= probabilistic_scores(model, batch, horizon, settings, numbers)
    return {name: each.cpu() for name, each in scores.items()}


def _errors(forecast: Tensor, gold: Tensor) -> dict[str, Tensor]:
    """Of each window the NRMSE, and the sums of the squared and absolute errors of what is there."""
    off = (forecast - gold).masked_fill(gold.isnan(), 0)
    return {"nrmse": nrmse(forecast, gold), "squared": off.square().sum((1, 2)), "absolute": off.abs().sum((1, 2))}


def complete_windows(
    model: Module, windows: Windows, settings: ForecastSettings, codec: Any, units: Sequence[Callable[[Tensor], Tensor]]
) -> list[dict[str, Any]]:
    """Windows at even distances, as ``freerun.diagnostics.SampleWindow`` has them, with the names of their channels.

    ``units``: of each window, from normalised values to those of the data.
    """
    chosen = evenly(windows.count, len(units))
    batch = windows.make(chosen).to(model_device(model))
    past, gold = past_and_horizon(batch, windows.horizon, codec.values)
    rows = zip(past, gold, *_both_sides(model, batch, windows.horizon, settings.draw), strict=True)
    bands = fans(model, batch, windows.horizon, chosen)
    samples = [
        asdict(sample_window(n, row, units[at], {level: band[at] for level, band in bands.items()}))
        for at, (n, row) in enumerate(zip(chosen, rows, strict=True))
    ]
    names = ("past", "gold", "teacher_forced", "free_running", "diverged_at")
    return [
        {
            "window": each["window"],
            "channels": list(codec.names[:CHANNELS]),
            **{name: each[name] for name in names},
            **({"bands": {str(level): rows for level, rows in each["bands"]}} if bands else {}),
        }
        for each in samples
    ]
