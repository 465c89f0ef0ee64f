"""Forecasters are scored on what they say when nobody tells them: against loops, poisoned targets, runaways."""

import json
import math

import numpy as np
import pytest
import torch
from torch import nn

import freerun as fr
from builders import refused
from freerun.compare.statistics import Median, estimate, resample_counts
from freerun.data import SeriesOptions, series_from_arrays
from freerun.data.series.windows import Windows
from freerun.diagnostics.naive import fit_linear, naive_forecasts
from freerun.metrics.outputs import first_divergence, nrmse, rmse_by_horizon, valid_time
from freerun.models import PlainForecaster, RecurrentForecaster
from freerun.tasks.series import ForecastSettings, SeriesTask, evaluate_windows, forecast, hide_horizon, median
from freerun.training import TrainSettings, fit
from freerun.training.log import jsonable

PAST, HORIZON = 12, 10


def waves(rows: int = 400, channels: int = 2) -> torch.Tensor:
    t = torch.arange(rows, dtype=torch.float64)[:, None]
    return 5 + torch.sin(2 * math.pi * t / torch.tensor([8.0, 11.0][:channels])) * 3


def data_of(layout: str = "past", **options):
    return series_from_arrays(waves(), SeriesOptions(past=PAST, horizon=HORIZON, period=8, **options), layout)


def model_of(layout: str, head: str = "point") -> nn.Module:
    torch.manual_seed(0)
    return (RecurrentForecaster if layout == "past" else PlainForecaster)(2, size=8, head=head)


class Runaway(nn.Module):
    """Says what it was told, times a factor: told gold it is harmless, running freely it leaves all bounds."""

    layout = "past"

    def __init__(self, factor: float, values: int = 1):
        super().__init__()
        self.factor, self.values = nn.Parameter(torch.tensor(factor)), values

    def forward(self, batch):
        first = batch.context["past"][:, -1:, : self.values]
        # 10 / 7: no value of the waves is the one that stays where it is
        return self.factor * torch.cat([first, batch.history[:, :-1]], 1) + (self.factor - 1) * 10 / 7


@pytest.mark.parametrize("layout", ["past", "sequence"])
@pytest.mark.parametrize("head", ["point", "gaussian", "quantiles"])
def test_scores_equal_a_naive_loop(layout, head):
    data, model = data_of(layout), model_of(layout, head).double()
    task = SeriesTask(data, ForecastSettings(batch_size=7))
    made = task.windows("test")
    double = Windows(made.count, lambda numbers: doubled(made.make(numbers)), HORIZON, made.naive)
    found = evaluate_windows(model, double, task.settings)
    free, told, ones = [], [], []
    for number in range(made.count):
        batch = doubled(data.window_batch("test", [number]))
        history = batch.history.clone()
        start = history.shape[1] - HORIZON
        for t in range(start, history.shape[1]):
            with torch.no_grad():
                said = model(batch.replace(history=history))[:, t]
            history[:, t] = said[:, : 2 * 2][:, 2:] if head == "quantiles" else said[:, :2]
        free.append(math.sqrt(float((history - batch.targets)[:, start:].square().mean())))
        with torch.no_grad():
            one = model(batch)
        one = one[..., 2:4] if head == "quantiles" else one[..., :2]
        squares = (one - batch.targets)[:, start:].square()
        ones.append(float(squares.mean()))
        told.append(math.sqrt(ones[-1]))
    assert [item["nrmse"] for item in found.items] == pytest.approx(free, rel=1e-10)
    assert found.free_running["nrmse"] == pytest.approx(np.median(free), rel=1e-10)
    assert found.free_running["mse"] == pytest.approx(np.mean(np.square(free)), rel=1e-10)
    assert found.teacher_forced["nrmse"] == pytest.approx(np.median(told), rel=1e-10)
    assert found.teacher_forced["loss"] == pytest.approx(np.mean(ones), rel=1e-10)
    assert len(found.curves["free_running"]) == len(found.curves["last_value"]) == HORIZON


def doubled(batch):
    context = None if batch.context is None else {name: part.double() for name, part in batch.context.items()}
    return batch.replace(targets=batch.targets.double(), history=batch.history.double(), context=context)


@pytest.mark.parametrize("layout", ["past", "sequence"])
def test_free_running_cannot_see_the_horizon(layout):
    data, model = data_of(layout), model_of(layout)
    batch = data.window_batch("test", [0, 5, 9])
    said = forecast(model, batch, HORIZON)
    poisoned = hide_horizon(batch, HORIZON)
    assert poisoned.targets.isnan().all()
    assert poisoned.history[:, -HORIZON:].isnan().all()
    assert torch.equal(forecast(model, poisoned, HORIZON), said)
    other = batch.history.clone()
    other[:, -HORIZON:] = 1e9
    assert torch.equal(forecast(model, batch.replace(targets=other, history=other), HORIZON), said)


def test_scores_do_not_depend_on_the_batch_size():
    data, model = data_of(), model_of("past", "gaussian")
    drawn = [
        SeriesTask(data, ForecastSettings(draw=draw, batch_size=size)).evaluate(model, "test").free_running
        for draw in ("expected", "gaussian")
        for size in (5, 500)
    ]
    for name, value in drawn[0].items():
        assert value == pytest.approx(drawn[1][name], rel=1e-5, nan_ok=True)
    assert drawn[0]["nrmse"] != drawn[2]["nrmse"]


def test_a_run_that_leaves_all_bounds_is_said_with_its_lead_time_and_never_averaged():
    # doubles every step: 1e6 standard deviations are passed from about step 20 on, and told gold nothing happens
    data = series_from_arrays(waves(1000, 1), SeriesOptions(past=4, horizon=200, split=(0.4, 0.3, 0.3)), "past")
    task = SeriesTask(data)
    model = Runaway(2.0)
    found = task.evaluate(model, "test")
    assert found.free_running["diverged"] == 100.0
    assert found.free_running["nrmse"] == found.free_running["mse"] == found.free_running["mae"] == math.inf
    assert 15 < found.free_running["first_divergence"] < 60
    assert math.isfinite(found.teacher_forced["nrmse"])
    assert all(item["diverged_at"] >= found.free_running["first_divergence"] for item in found.items)
    assert math.isfinite(found.free_running["linear_mse"])
    text = json.dumps(jsonable({"items": found.items, **found.free_running, **found.curves}), allow_nan=False)
    assert "Infinity" not in text
    calm = task.evaluate(Runaway(1.0), "test")
    assert calm.free_running["diverged"] == 0
    assert math.isnan(calm.free_running["first_divergence"])
    assert calm.free_running["nrmse"] == pytest.approx(calm.free_running["last_value_nrmse"])


def test_nan_from_the_model_is_divergence_too():
    data = data_of()
    model = model_of("past")
    with torch.no_grad():
        next(model.parameters()).fill_(math.nan)
    found = SeriesTask(data).evaluate(model, "test")
    assert (found.free_running["diverged"], found.free_running["first_divergence"]) == (100.0, 1.0)
    assert found.free_running["valid_time"] == 0
    assert found.teacher_forced["loss"] == math.inf


def test_training_goes_on_where_a_free_run_diverges(tmp_path):
    data = series_from_arrays(waves(channels=1), SeriesOptions(past=4, horizon=60, split=(0.4, 0.3, 0.3)), "past")
    settings = TrainSettings(updates=2, batch_size=8, evaluate_every=1, select="nrmse", lr=1e-9)
    summary = fit(Runaway(2.0), SeriesTask(data), fr.teacher_forcing(), settings, tmp_path / "run", progress=False)
    test = summary["test"]
    assert (test["free_running"]["nrmse"], test["free_running"]["diverged"]) == (None, 100.0)
    curves = json.loads((tmp_path / "run" / "test-curves.json").read_text())
    assert curves["free_running"][0] is not None
    assert curves["free_running"][-1] is None
    updates = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert all(event["deviation"] is None for event in updates if event["event"] == "update")


def test_a_model_that_says_another_width_than_is_fed_back_is_refused_before_an_update(tmp_path):
    class Wide(Runaway):
        def forward(self, batch):
            return super().forward(batch).repeat(1, 1, 2)

    data = series_from_arrays(waves(channels=1), SeriesOptions(past=4, horizon=6), "past")
    settings = TrainSettings(updates=2, batch_size=8, evaluate_every=1, select="nrmse")
    with pytest.raises(fr.errors.UserError, match=r"gives 2 numbers a position and 1 are fed back"):
        fit(Wide(1.0), SeriesTask(data), fr.free_running(), settings, tmp_path / "run", progress=False)
    assert '"event": "update"' not in (tmp_path / "run" / "metrics.jsonl").read_text()


def test_deviation_is_how_far_own_entries_lie_from_gold(tmp_path):
    data = data_of()
    settings = TrainSettings(updates=1, batch_size=8, evaluate_every=1, select="nrmse")
    method = fr.scheduled_sampling(0.0)
    model = model_of("past")
    start = {name: value.clone() for name, value in model.state_dict().items()}
    fit(model, SeriesTask(data), method, settings, tmp_path / "run", progress=False)
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    event = next(line for line in lines if line["event"] == "update")
    model.load_state_dict(start)
    # whichever windows the update had
    said = forecast(model, data.batch(list(range(data.windows("train")))), HORIZON)
    gold = data.batch(list(range(data.windows("train")))).targets
    far = (said - gold).square().mean(-1)[:, :-1]
    assert far.mean(1).sqrt().min() <= event["deviation"] <= far.mean(1).sqrt().max()


def test_naive_rows_by_hand():
    data = data_of()
    rows = SeriesTask(data).evaluate(model_of("past"), "test").free_running
    gold = torch.stack([data.window_batch("test", [n]).targets[0] for n in range(data.windows("test"))]).double()
    past = torch.cat([data.window_batch("test", [n]).context["past"] for n in range(data.windows("test"))]).double()
    last = past[:, -1:].expand_as(gold)
    season = torch.stack([past[:, PAST - 8 + t % 8] for t in range(HORIZON)], 1)
    for name, said in (("last_value", last), ("last_period", season), ("mean", torch.zeros_like(gold))):
        assert rows[f"{name}_mse"] == pytest.approx(float((said - gold).square().mean()))
        assert rows[f"{name}_mae"] == pytest.approx(float((said - gold).abs().mean()))
        assert rows[f"{name}_nrmse"] == pytest.approx(median((said - gold).square().mean((1, 2)).sqrt()))
    # two sines: the future is linear in the past
    assert rows["linear_nrmse"] < 0.01
    assert "last_period_mse" not in SeriesTask(data_of_no_period()).evaluate(model_of("past"), "dev").free_running


def data_of_no_period():
    return series_from_arrays(waves(), SeriesOptions(past=PAST, horizon=HORIZON), "past")


def test_ridge_is_the_closed_form():
    random = np.random.default_rng(0)
    past = torch.from_numpy(random.normal(size=(60, 5, 2)))
    horizon = torch.from_numpy(random.normal(size=(60, 3, 2)))
    found = fit_linear(lambda numbers: (past[numbers], horizon[numbers]), 60, (past[:9], horizon[:9]))
    x = torch.cat([past.flatten(1), torch.ones(60, 1, dtype=torch.float64)], 1)
    wanted = torch.linalg.solve(x.T @ x + found.ridge * 60 * torch.eye(11), x.T @ horizon.flatten(1))
    assert torch.allclose(found.weights, wanted, atol=1e-10)
    assert naive_forecasts(past, 3, None, {"linear": found})["linear"].shape == (60, 3, 2)


def test_dev_windows_are_spread_and_test_is_whole():
    task = SeriesTask(data_of(), items=5)
    assert len(task.evaluate(model_of("past"), "dev").items) == 5
    assert len(task.evaluate(model_of("past"), "test").items) == task.data.windows("test")
    refused("split must be dev or test", task.evaluate, model_of("past"), "train")


def test_settings_out_of_range_all_at_once():
    assert len(refused("", ForecastSettings, draw="sample", threshold=0.0, batch_size=0)) == 3
    with pytest.raises(fr.errors.UserError, match="a model with head 'point' is fed point; got draw 'gaussian'"):
        SeriesTask(data_of(), ForecastSettings(draw="gaussian")).evaluate(model_of("past"), "test")


def test_values_that_are_not_finite_in_metrics():
    said = torch.tensor([[[1.0], [math.inf], [0.0]], [[0.5], [0.3], [0.0]]])
    gold = torch.zeros(2, 3, 1)
    assert nrmse(said, gold)[0] == math.inf
    assert rmse_by_horizon(said, gold)[0].tolist() == [1.0, math.inf, 0.0]
    assert valid_time(said, gold, 0.4).tolist() == [0, 0]
    assert valid_time(said, gold, 0.6).tolist() == [0, 3]
    assert first_divergence(said).tolist() == [2, 0]


def test_medians_over_resampled_windows_are_numpys():
    random = np.random.default_rng(1)
    for words in (8, 9):
        parts = random.exponential(size=(3, words))
        counts = resample_counts(words, 50)[0]
        found = Median(parts).resampled(counts)
        repeated = [[np.median(np.repeat(part, row.astype(int))) for part in parts] for row in counts]
        assert found == pytest.approx(np.array(repeated))


def test_interval_of_a_median_over_seeds_and_windows_covers_the_truth():
    # two-way lognormal: seed and window effects and their interaction; the truth is the median over all of them.
    # 200 intervals of 95 %: fewer than 178 covering has probability 0.1 % where the level is 95 %
    random = np.random.default_rng(2)
    seeds, words, covered = 4, 60, 0
    counts = resample_counts(words, 300)
    for _ in range(200):
        effect = random.normal(0, 0.2, (seeds, 1)) + random.normal(0, 0.5, (1, words))
        found = estimate(Median(np.exp(effect + random.normal(0, 0.3, (seeds, words)))), None, counts)
        # the mean over seeds of medians: exp of a seed's effect, whose mean is exp(0.2^2 / 2)
        covered += found.low <= math.exp(0.2**2 / 2) <= found.high
    assert covered >= 178


def test_a_difference_of_medians_is_paired():
    random = np.random.default_rng(3)
    shared = random.exponential(size=(1, 200)) * 5
    first, second = (shared + step + random.normal(0, 0.01, (3, 200)) for step in (0.0, 0.1))
    counts = resample_counts(200)
    paired = estimate(Median(first), Median(second), counts)
    alone = estimate(Median(first), None, counts)
    assert paired.value == pytest.approx(-0.1, abs=0.02)
    assert paired.high < 0
    assert paired.high - paired.low < (alone.high - alone.low) / 5


def test_medians_that_reach_infinity_have_no_interval():
    parts = np.full((3, 20), 1.0)
    parts[0, :9] = np.inf
    found = estimate(Median(parts), None, resample_counts(20))
    assert (found.value, found.low, found.p_value) == (1.0, None, 1.0)
