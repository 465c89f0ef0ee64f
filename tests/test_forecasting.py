"""Forecasters are scored on what they predict without gold: against loops, poisoned targets, runaways."""

import json
import math

import numpy as np
import pytest
import torch
from torch import nn

import freerun as fr
from builders import refused
from freerun import regression
from freerun.comparison.statistics import Median, estimate, resample_counts
from freerun.data import SeriesOptions, series_from_arrays
from freerun.data.series.windows import Windows
from freerun.diagnostics.naive import naive_forecasts
from freerun.metrics.outputs import first_divergence, nrmse, rmse_by_horizon, valid_time
from freerun.models import PlainForecaster, RecurrentForecaster
from freerun.regression import fit_linear
from freerun.tasks.base import Evaluation
from freerun.tasks.series import ForecastSettings, SeriesTask, evaluate_windows, forecast, hide_horizon, median
from freerun.training import TrainSettings, fit
from freerun.training.log import jsonable
from freerun.training.run_folder import events

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
    """Predicts its last input times a factor: harmless after gold, and running freely it leaves all bounds."""

    layout = "past"

    def __init__(self, factor: float, values: int = 1):
        super().__init__()
        self.factor, self.values = nn.Parameter(torch.tensor(factor)), values

    def forward(self, batch):
        first = batch.context["past"][:, -1:, : self.values]
        # 10 / 7: no value of the waves is the one that stays where it is
        return self.factor * torch.cat([first, batch.history[:, :-1]], 1) + (self.factor - 1) * 10 / 7


def updates(folder):
    return [event for event in events(folder) if event["event"] == "update"]


@pytest.mark.parametrize("layout", ["past", "sequence"])
@pytest.mark.parametrize("head", ["point", "gaussian", "quantiles"])
def test_scores_equal_a_naive_loop(layout, head):
    data, model = data_of(layout), model_of(layout, head).double()
    task = SeriesTask(data, ForecastSettings(batch_size=7))

    def point(outputs):
        levels = outputs.unflatten(-1, (-1, 2))
        return levels.sort(-2).values[..., 1, :] if head == "quantiles" else outputs[..., :2]

    whole = task.windows("test")
    double = Windows(whole.count, lambda numbers: doubled(whole.make(numbers)), HORIZON, whole.naive)
    result = evaluate_windows(model, double, task.settings)
    free, forced, ones = [], [], []
    for number in range(whole.count):
        batch = doubled(data.window_batch("test", [number]))
        history, start = batch.history.clone(), batch.time - HORIZON
        with torch.no_grad():
            for t in range(start, batch.time):
                history[:, t] = point(model(batch.replace(history=history)))[:, t]
            one = point(model(batch))
        free.append(math.sqrt(float((history - batch.targets)[:, start:].square().mean())))
        ones.append(float((one - batch.targets)[:, start:].square().mean()))
        forced.append(math.sqrt(ones[-1]))
    assert [item["nrmse"] for item in result.items] == pytest.approx(free, rel=1e-10)
    assert result.free_running["nrmse"] == pytest.approx(np.median(free), rel=1e-10)
    assert result.free_running["mse"] == pytest.approx(np.mean(np.square(free)), rel=1e-10)
    assert result.teacher_forced["nrmse"] == pytest.approx(np.median(forced), rel=1e-10)
    assert result.teacher_forced["loss"] == pytest.approx(np.mean(ones), rel=1e-10)
    assert len(result.curves["free_running"]) == len(result.curves["last_value"]) == HORIZON


def doubled(batch):
    context = None if batch.context is None else {name: part.double() for name, part in batch.context.items()}
    return batch.replace(targets=batch.targets.double(), history=batch.history.double(), context=context)


@pytest.mark.parametrize("layout", ["past", "sequence"])
def test_free_running_cannot_see_the_horizon(layout):
    data, model = data_of(layout), model_of(layout)
    batch = data.window_batch("test", [0, 5, 9])
    expected, poisoned = forecast(model, batch, HORIZON), hide_horizon(batch, HORIZON)
    assert poisoned.targets.isnan().all()
    assert poisoned.history[:, -HORIZON:].isnan().all()
    other = batch.history.clone()
    other[:, -HORIZON:] = 1e9
    for changed in (poisoned, batch.replace(targets=other, history=other)):
        assert torch.equal(forecast(model, changed, HORIZON), expected)


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


def test_a_run_that_leaves_all_bounds_is_reported_with_its_lead_time_and_never_averaged():
    # doubles every step: 1e6 standard deviations are passed from about step 20 on, and after gold nothing happens
    data = series_from_arrays(waves(1000, 1), SeriesOptions(past=4, horizon=200, split=(0.4, 0.3, 0.3)), "past")
    task = SeriesTask(data)
    result = task.evaluate(Runaway(2.0), "test")
    free = result.free_running
    assert free["diverged"] == 100.0
    assert free["nrmse"] == free["mse"] == free["mae"] == math.inf
    assert 15 < free["first_divergence"] < 60
    assert math.isfinite(result.teacher_forced["nrmse"])
    assert all(item["diverged_at"] >= free["first_divergence"] for item in result.items)
    assert math.isfinite(free["linear_mse"])
    text = json.dumps(jsonable({"items": result.items, **free, **result.curves}), allow_nan=False)
    assert "Infinity" not in text
    calm = task.evaluate(Runaway(1.0), "test").free_running
    assert calm["diverged"] == 0
    assert math.isnan(calm["first_divergence"])
    assert calm["nrmse"] == pytest.approx(calm["last_value_nrmse"])
    # NaN is divergence too
    broken = model_of("past")
    next(broken.parameters()).data.fill_(math.nan)
    result = SeriesTask(data_of()).evaluate(broken, "test")
    assert (result.free_running["diverged"], result.free_running["first_divergence"]) == (100.0, 1.0)
    assert result.free_running["valid_time"] == 0
    assert result.teacher_forced["loss"] == math.inf


def test_training_goes_on_where_a_free_run_diverges(tmp_path):
    data = series_from_arrays(waves(channels=1), SeriesOptions(past=4, horizon=60, split=(0.4, 0.3, 0.3)), "past")
    settings = TrainSettings(updates=2, batch_size=8, evaluate_every=1, select="nrmse", lr=1e-9)
    summary = fit(Runaway(2.0), SeriesTask(data), fr.teacher_forcing(), settings, tmp_path / "run", progress=False)
    test = summary["test"]["free_running"]
    assert (test["nrmse"], test["diverged"]) == (None, 100.0)
    curve = json.loads((tmp_path / "run" / "test-curves.json").read_text())["free_running"]
    assert curve[0] is not None
    assert curve[-1] is None
    assert all(event["deviation"] is None for event in updates(tmp_path / "run"))


def test_a_model_of_another_width_than_is_fed_back_is_refused_before_an_update(tmp_path):
    class Wide(Runaway):
        def forward(self, batch):
            return super().forward(batch).repeat(1, 1, 2)

    task = SeriesTask(series_from_arrays(waves(channels=1), SeriesOptions(past=4, horizon=6), "past"))
    settings = TrainSettings(updates=2, batch_size=8, evaluate_every=1, select="nrmse")
    arguments = (Wide(1.0), task, fr.free_running(), settings, tmp_path / "run")
    refused(r"gives 2 numbers a position and 1 are fed back", fit, *arguments, progress=False)
    assert not updates(tmp_path / "run")


def test_deviation_is_how_far_own_entries_lie_from_gold(tmp_path):
    data, model = data_of(), model_of("past")
    settings = TrainSettings(updates=1, batch_size=8, evaluate_every=1, select="nrmse")
    start = {name: value.clone() for name, value in model.state_dict().items()}
    fit(model, SeriesTask(data), fr.scheduled_sampling(0.0), settings, tmp_path / "run", progress=False)
    (event,) = updates(tmp_path / "run")
    model.load_state_dict(start)
    # whichever windows the update had
    batch = data.batch(list(range(data.windows("train"))))
    far = (forecast(model, batch, HORIZON) - batch.targets).square().mean(-1)[:, :-1].mean(1).sqrt()
    assert far.min() <= event["deviation"] <= far.max()


def test_naive_rows_by_hand():
    data = data_of()
    rows = SeriesTask(data).evaluate(model_of("past"), "test").free_running
    batch = data.window_batch("test", list(range(data.windows("test"))))
    gold, past = batch.targets.double(), batch.context["past"].double()
    season = torch.stack([past[:, PAST - 8 + t % 8] for t in range(HORIZON)], 1)
    naive = {"last_value": past[:, -1:].expand_as(gold), "last_period": season, "mean": torch.zeros_like(gold)}
    for name, output in naive.items():
        assert rows[f"{name}_mse"] == pytest.approx(float((output - gold).square().mean()))
        assert rows[f"{name}_mae"] == pytest.approx(float((output - gold).abs().mean()))
        assert rows[f"{name}_nrmse"] == pytest.approx(median((output - gold).square().mean((1, 2)).sqrt()))
    # two sines: the future is linear in the past
    assert rows["linear_nrmse"] < 0.01
    without = series_from_arrays(waves(), SeriesOptions(past=PAST, horizon=HORIZON), "past")
    assert "last_period_mse" not in SeriesTask(without).evaluate(model_of("past"), "dev").free_running


@pytest.mark.parametrize("base", [None, (-1, -1, -1), (-2, -1, -2)])
@pytest.mark.parametrize("groups", [1, 2])
def test_ridge_is_the_closed_form(base, groups, monkeypatch):
    random = np.random.default_rng(0)
    past, horizon = (torch.from_numpy(random.normal(size=(60, steps, 2))) for steps in (5, 3))
    monkeypatch.setattr(regression, "_RIDGES", (0.1,))
    choice = regression._Variant(groups, base)
    weight = torch.from_numpy(random.uniform(0.1, 2, 60))
    pieces = zip(past.split(37), horizon.split(37), strict=True)
    sums, dev = regression._summed(choice, pieces, weight, 5), (past[:9], horizon[:9])
    errors, linear = choice.errors(sums, dev), choice.forecast(sums, 0.1, 5)
    for own in range(groups):
        chosen = slice(None) if groups == 1 else slice(own, own + 1)
        last = past[:, -1:, chosen] * (base is not None)
        off = torch.stack([past[:, step, chosen] for step in base], 1) if base else last
        x = torch.cat([(past[..., chosen] - last).flatten(1), torch.ones(60, 1, dtype=torch.float64)], 1)
        expected = torch.linalg.solve(
            x.T @ (weight[:, None] * x) + 0.1 * weight.sum() * torch.eye(x.shape[1], dtype=torch.float64),
            x.T @ (weight[:, None, None] * (horizon[..., chosen] - off)).flatten(1),
        )
        found = linear(past, 3)[..., chosen]
        assert torch.allclose(found, (x @ expected).view(60, 3, -1) + off, atol=1e-10)
    assert torch.allclose(errors[0], (linear(past[:9], 3) - horizon[:9]).square().sum((1, 2)).sqrt(), rtol=1e-9)
    assert naive_forecasts(past, 3, None, {"linear": linear})["linear"].shape == (60, 3, 2)


def chosen_of(pair, size=10_000):
    """Windows by their numbers, some at a time."""
    return lambda numbers: zip(*(half[list(numbers)].split(size) for half in pair), strict=True)


def test_a_few_windows_with_a_jump_do_not_decide_the_regression_and_neither_does_a_short_dev():
    """A season with jumps: typical windows are forecast better than by least squares, whatever a short dev holds."""
    random = np.random.default_rng(3)
    season = torch.from_numpy(np.sin(2 * np.pi * np.arange(900) / 12) + 0.1 * random.normal(size=900))[:, None]
    windows = season.unfold(0, 36, 1).transpose(1, 2).clone()
    jumped = torch.from_numpy(random.random(len(windows)) < 0.15)
    windows[jumped, 24:] += 8 * torch.from_numpy(random.normal(size=(int(jumped.sum()), 1, 1)))
    train, later = (windows[:600, :24], windows[:600, 24:]), windows[700:][~jumped[700:]]
    dev = windows[640:655, :24], windows[640:655, 24:] + 9  # all of them after a jump

    def error(forecast):
        return (forecast(later[:, :24], 12) - later[:, 24:]).square().mean().sqrt()

    robust = fit_linear(chosen_of(train), 600, dev, 25, period=12)
    choice = regression._Variant(1, (-1,) * 12)
    sums = regression._summed(choice, [train], torch.ones(600, dtype=torch.float64), 24)
    assert error(robust) < 0.13 < error(choice.forecast(sums, robust.ridge, 24))
    # the weights are one over the error of the fit with the weights before
    before = torch.from_numpy(random.uniform(0.5, 1, 600))
    sums = regression._summed(choice, [train], before, 24)
    errors = (choice.forecast(sums, 0.1, 24)(train[0], 12) - train[1]).square().sum((1, 2)).sqrt()
    weights = regression._weighed(choice, chosen_of(train, 90), before, 24)
    assert torch.allclose(weights, 1 / errors.clamp_min(0.1 * errors.mean()), rtol=1e-10)


def test_a_regression_is_chosen_on_dev_and_is_the_same_in_pieces():
    """A walk far from where it was trained is repeated, values that read each other are fitted together."""
    walks = torch.from_numpy(np.random.default_rng(1).normal(size=(900, 1)).cumsum(0))
    windows = walks.unfold(0, 12, 1).transpose(1, 2)
    train, far = (windows[:600, :8], windows[:600, 8:]), (windows[700:, :8] + 500, windows[700:, 8:] + 500)
    linear = fit_linear(chosen_of(train), 600, far)
    copy = (far[0][:, -1:] - far[1]).square().mean()
    assert (linear(far[0], 4) - far[1]).square().mean() < 1.02 * copy
    pieces = fit_linear(chosen_of(train, 70), 600, far)
    assert torch.allclose(pieces.weights, linear.weights, atol=1e-9)
    for few in (1, 2, 3):
        assert fit_linear(chosen_of(train), few, far)(far[0], 4).isfinite().all()
    driver = torch.from_numpy(np.random.default_rng(2).normal(size=(900, 1)))
    led = torch.cat([driver, driver.roll(3, 0)], 1).unfold(0, 8, 1).transpose(1, 2)[5:]
    together = fit_linear(chosen_of((led[:600, :6], led[:600, 6:])), 600, (led[600:, :6], led[600:, 6:]))
    assert len(together.weights) == 1
    assert (together(led[:, :6], 2) - led[:, 6:])[..., 1].abs().max() < 0.2


def test_the_simplest_choice_within_one_standard_error_is_kept():
    best = torch.rand(64, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    noise = torch.linspace(-1, 1, 64, dtype=torch.float64).repeat(1)
    level, worse = best + noise, best + 0.5 + 0.1 * noise
    assert regression._simplest(torch.stack([worse, level, best]), 8) == 1
    assert regression._simplest(torch.stack([worse, best + 0.01, best]), 8) == 2


def started_at(offset: float, moved: float) -> nn.Module:
    """Starts at the last value and an offset, by which it is moved since."""
    weights = torch.zeros(1, PAST * 2 + 1, HORIZON * 2)
    for lead in range(HORIZON):
        for value in range(2):
            weights[0, (PAST - 1) * 2 + value, lead * 2 + value] = 1.0
    weights[0, -1] = offset
    torch.manual_seed(0)
    model = fr.models.WindowScaled(RecurrentForecaster(2, size=4), 2, linear=True).fit_linear(weights, PAST, HORIZON)
    model.inner.out.bias.data += moved
    return model


def test_what_is_clearly_better_than_before_training_is_found_by_paired_windows():
    """Against a hand-written start, by blocks of windows that do not overlap."""
    task = SeriesTask(data_of())
    worse, better = (task.evaluate(started_at(3.0, moved), "dev") for moved in (1.0, -3.0))
    assert worse.off_start == {"nrmse": False, "mse": False, "mae": False}
    assert better.off_start == {"nrmse": True, "mse": True, "mae": True}
    start = [item["nrmse"] for item in task.evaluate(started_at(3.0, 0.0), "dev").items]
    moved = task.evaluate(started_at(3.0, 0.2), "dev")
    rows = sum(part.end - part.begin for part in task.data.segments["dev"])
    blocks = np.array_split(np.subtract(start, [item["nrmse"] for item in moved.items]), rows // HORIZON)
    means = np.array([block.mean() for block in blocks])
    clear = means.mean() > 3 * means.std(ddof=1) / math.sqrt(len(means))
    assert moved.off_start["nrmse"] == clear
    assert task.evaluate(model_of("past"), "dev").off_start == {}


@pytest.mark.parametrize(("clear", "kept"), [(True, 2), (False, 0)])
def test_the_start_is_kept_unless_training_is_clearly_better(clear, kept, tmp_path, monkeypatch):
    task, scores = SeriesTask(data_of()), iter((3.0, 2.0, 1.0))

    def evaluated(self, model, split):
        nrmse = next(scores) if split == "dev" else 9.0
        return Evaluation({"loss": 1.0}, {"nrmse": nrmse}, off_start={"nrmse": clear})

    monkeypatch.setattr(SeriesTask, "evaluate", evaluated)
    settings = TrainSettings(updates=2, evaluate_every=1, batch_size=8, select="nrmse")
    summary = fit(model_of("past"), task, fr.methods.TeacherForcing(), settings, tmp_path / "run")
    assert summary["best"]["step"] == kept


def test_dev_windows_are_spread_and_test_is_complete():
    task, model = SeriesTask(data_of(), items=5), model_of("past")
    assert len(task.evaluate(model, "dev").items) == 5
    assert len(task.evaluate(model, "test").items) == task.data.windows("test")
    refused("split must be dev or test", task.evaluate, model, "train")
    assert len(refused("", ForecastSettings, draw="sample", threshold=0.0, batch_size=0)) == 3
    drawn = SeriesTask(data_of(), ForecastSettings(draw="gaussian"))
    refused("a model with head 'point' is fed point; got draw 'gaussian'", drawn.evaluate, model, "test")


def test_values_that_are_not_finite_in_metrics():
    output, gold = torch.tensor([[[1.0], [math.inf], [0.0]], [[0.5], [0.3], [0.0]]]), torch.zeros(2, 3, 1)
    assert nrmse(output, gold)[0] == math.inf
    assert rmse_by_horizon(output, gold)[0].tolist() == [1.0, math.inf, 0.0]
    assert valid_time(output, gold, 0.4).tolist() == [0, 0]
    assert valid_time(output, gold, 0.6).tolist() == [0, 3]
    assert first_divergence(output).tolist() == [2, 0]


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
    result = estimate(Median(parts), None, resample_counts(20))
    assert (result.value, result.low, result.p_value) == (1.0, None, 1.0)
