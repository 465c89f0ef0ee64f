"""Sample paths: free runs with noise of their own, and the scores of the law that they are drawn from."""

import csv
import io
import json
import math
from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import freerun as fr
from builders import refused
from freerun.comparison.run import compare
from freerun.comparison.verdict import columns
from freerun.keys import fold
from freerun.metrics import coverage, crps, pinball, sample_quantiles
from freerun.recipes.train import build, run_recipe
from freerun.report.comparison import write as write_page
from freerun.report.comparison_figures import forecasts
from freerun.tasks.naive_rows import quantiles_there
from freerun.tasks.sample_paths import DECILES, probabilistic_scores, sample_paths
from freerun.tasks.series import ForecastSettings, SeriesTask, _columns, evaluate_windows
from test_config_series import TINY, series, table, tiny
from tiny_recipes import ends, toml, write

# -- free runs


class Coins:
    """P(1) = 0.3 everywhere, whatever the history; a Model with a forward alone."""

    def __call__(self, batch):
        return torch.tensor([0.7, 0.3]).log().expand(*batch.history.shape, 2)


def blank(size: int, length: int = 4) -> fr.Batch:
    ids = torch.zeros(size, length, dtype=torch.long)
    return fr.Batch(ids, ids, torch.ones(size, length, dtype=torch.bool))


def forecaster(head: str = "gaussian", kind: str = "recurrent") -> tuple[torch.nn.Module, fr.Batch]:
    torch.manual_seed(0)
    g = torch.Generator().manual_seed(1)
    values = torch.randn(3, 12, 2, generator=g)
    if kind == "recurrent":
        model = fr.models.RecurrentForecaster(values=2, size=8, head=head)
        return model.eval(), fr.Batch(values[:, 7:], context={"past": values[:, :7]})
    model = fr.models.TransformerForecaster(values=2, size=8, heads=2, layers=1, head=head)
    eligible = (torch.arange(12) >= 7).expand(3, 12)
    batch = fr.Batch(values, values, eligible, eligible=eligible, context={"known": torch.full((3,), 7)})
    return model.eval(), batch


LAWS = {"gaussian": "gaussian", "student_t": "student_t", "quantiles": "quantile_sample"}


@pytest.mark.parametrize(("head", "number"), [("quantiles", 0), ("quantiles", 2), ("gaussian", 2), ("student_t", 3)])
@pytest.mark.parametrize("residual", [False, True])
def test_the_forecast_of_a_head_that_learnt_nothing_lies_in_its_band(residual, head, number):
    """Levels of a head of quantiles cross, and few paths lie beside the run of means: half were outside."""
    for seed in range(5):
        torch.manual_seed(seed)
        model = fr.models.RecurrentForecaster(2, size=8, head=head, residual=residual)
        past = torch.randn(8, 9, 2).cumsum(1) + 5
        codec = SimpleNamespace(values=2, batch=lambda block: fr.Batch(torch.zeros(8, 12, 2), context={"past": block}))
        future = SimpleNamespace(steps=12, series=None, codec=SimpleNamespace(denormalise=lambda each: each))
        futures = [SimpleNamespace(**vars(future), window=row[None]) for row in past]
        settings = ForecastSettings(quantiles=(0.1, 0.5, 0.9), num_samples=number)
        for found in _columns(model, codec, settings, futures):
            point, low, middle, high = found.unflatten(1, (4, 2)).unbind(1)
            assert (low <= point).all()
            assert (point <= high).all()
            assert torch.equal(point, middle)
        if head != "quantiles":
            continue
        with torch.no_grad():  # of one step it is so by itself
            outputs = model(codec.batch(past))
        law = fr.distributions.Quantiles()
        band = law.quantile(outputs, (0.1, 0.9))
        assert ((band[..., 0, :] <= law.mean(outputs)) & (law.mean(outputs) <= band[..., 1, :])).all()


def test_residual_adds_the_last_value_to_every_quantile():
    for kind in (fr.models.RecurrentForecaster, fr.models.PlainForecaster, fr.models.TransformerForecaster):
        sizes = {"heads": 2} if kind is fr.models.TransformerForecaster else {}
        model = kind(2, size=8, head="quantiles", residual=True, **sizes)
        with torch.no_grad():
            model.out.weight.zero_()
            model.out.bias.zero_()
        values, past = torch.randn(3, 5, 2), torch.randn(3, 4, 2)
        batch = fr.Batch(values, context={"past": past} if model.layout == "past" else None)
        before = torch.cat([past[:, -1:] if model.layout == "past" else torch.zeros(3, 1, 2), values[:, :-1]], 1)
        assert torch.equal(model(batch), before.repeat(1, 1, 3))


@pytest.mark.parametrize("kind", ["recurrent", "transformer"])
@pytest.mark.parametrize("head", LAWS)
def test_paths_differ_the_first_is_the_run_alone_and_more_change_none(head, kind):
    model, batch = forecaster(head, kind)
    alone = fr.generate(model, batch, length=5, draw=LAWS[head], key=3)
    few, many = (fr.generate(model, batch, length=5, draw=LAWS[head], key=3, num_samples=n) for n in (3, 7))
    assert few.entries.shape == (3, 3, 5, 2)
    assert few.lengths.shape == few.scores.shape == (3, 3)
    assert torch.allclose(many.entries[:, 0], alone.entries, atol=1e-5)
    assert torch.allclose(many.entries[:, :3], few.entries, atol=1e-5)
    assert all(not torch.allclose(a, b, atol=1e-2) for a, b in pairwise(many.entries.unbind(1)))
    # rows keep their noise wherever they stand
    turned = fr.generate(model, batch.select(torch.tensor([2, 0])), length=5, draw=LAWS[head], key=3, num_samples=3)
    assert torch.allclose(turned.entries, few.entries[[2, 0]], atol=1e-5)


def test_ids_of_samples_and_their_law():
    """Of 20,000 draws the share of ones; an unlucky key once in 10^5."""
    found = fr.generate(Coins(), blank(2), length=4, draw="sample", key=1, num_samples=2500)
    assert found.entries.shape == (2, 2500, 4)
    assert found.scores.shape == (2, 2500)
    share = float(found.entries.double().mean())
    assert abs(share - 0.3) < 4.4 * math.sqrt(0.3 * 0.7 / 20_000)
    assert not torch.equal(found.entries[0], found.entries[1])
    assert torch.equal(found.entries[:, 0], fr.generate(Coins(), blank(2), length=4, draw="sample", key=1).entries)


def test_samples_that_end_leave_and_the_others_go_on():
    found = fr.generate(Coins(), blank(3, 8), length=8, end=1, draw="sample", key=2, num_samples=50)
    for row in range(3):
        for sample in range(50):
            entries, length = found.entries[row, sample].tolist(), int(found.lengths[row, sample])
            assert length == (entries.index(1) if 1 in entries else 8)
            assert set(entries[length:]) <= {1}
            expected = length * math.log(0.7) + (math.log(0.3) if length < 8 else 0)
            assert float(found.scores[row, sample]) == pytest.approx(expected, rel=1e-5)


def test_prompts_of_several_lengths_are_read_once_for_all_samples():
    torch.manual_seed(0)
    model = fr.models.PlainForecaster(values=1, size=8, head="gaussian").eval()  # steps in lockstep
    values = torch.randn(4, 10, 1)
    prompts = torch.tensor([3, 5, 3, 4])
    mask = torch.arange(10) >= prompts[:, None]
    batch = fr.Batch(values, values, mask, context={"known": prompts})
    many = fr.generate(model, batch, length=4, draw="gaussian", num_samples=3).entries
    for row in range(4):
        one = fr.generate(model, batch.select(torch.tensor([row])), length=4, draw="gaussian", num_samples=3).entries
        assert torch.allclose(many[row], one[0], atol=1e-5)


@pytest.mark.parametrize(
    ("batch", "settings", "problem"),
    [(blank(1), {}, "num_samples = 5 runs of draw greedy would be equal: use draw='sample'"),
     (blank(1), {"beams": 3}, "num_samples = 5"),
     (fr.Batch(torch.zeros(1, 3, 1)), {"draw": "expected"}, "draw expected would be equal: use draw='gaussian'"),
     (fr.Batch(torch.zeros(1, 3, 1)), {}, "would be equal"),
     (blank(1), {"draw": "sample", "num_samples": 0}, "num_samples must be at least 1; got 0"),
     (blank(1), {"num_samples": 0}, "num_samples must be at least 1; got 0$")],
)  # fmt: skip
def test_samples_that_would_be_equal_are_refused(batch, settings, problem):
    with pytest.raises(fr.UserError, match=problem):
        fr.generate(Coins(), batch, length=3, **{"num_samples": 5, **settings})


@pytest.mark.parametrize("samples", ["5", None, 2.5, 0])
def test_numbers_of_samples_that_are_none_are_one_problem(samples):
    with pytest.raises(fr.UserError, match="num_samples") as caught:
        fr.generate(Coins(), fr.Batch(torch.ones(2, 3, dtype=torch.long)), length=3, num_samples=samples)
    assert len(caught.value.problems) == 1


# -- scores


def naive_crps(samples: list[float], gold: float) -> float:
    n = len(samples)
    near = sum(abs(x - gold) for x in samples) / n
    apart = sum(abs(x - y) for x in samples for y in samples)
    return near - (apart / (2 * n * (n - 1)) if n > 1 else 0.0)


@pytest.mark.parametrize("number", [1, 2, 7])
def test_crps_is_the_double_loop(number):
    g = torch.Generator().manual_seed(number)
    samples, gold = torch.randn(3, number, 4, 2, generator=g), torch.randn(3, 4, 2, generator=g)
    found = crps(samples, gold)
    for window in range(3):
        for t in range(4):
            for v in range(2):
                expected = naive_crps(samples[window, :, t, v].tolist(), float(gold[window, t, v]))
                assert float(found[window, t, v]) == pytest.approx(expected, abs=1e-12)


def test_crps_of_a_normal_law_is_its_closed_form():
    """``s (z (2 F(z) - 1) + 2 f(z) - 1 / sqrt(pi))``, by 4,000 ensembles of 20; an unlucky seed once in 10^5."""
    g = torch.Generator().manual_seed(0)
    for gold in (0.0, 0.7, -2.0):
        scores = crps(torch.randn(4000, 20, generator=g), torch.full((4000,), gold))
        z = torch.tensor(gold, dtype=torch.float64)
        normal = torch.distributions.Normal(0.0, 1.0)
        law = z * (2 * normal.cdf(z) - 1) + 2 * normal.log_prob(z).exp() - 1 / math.sqrt(math.pi)
        assert abs(float(scores.mean() - law)) < 4.4 * float(scores.std()) / math.sqrt(4000)


def test_pinball_is_its_loop_and_over_many_levels_half_the_crps():
    g = torch.Generator().manual_seed(0)
    forecast, gold, levels = torch.randn(3, 2, 4, generator=g), torch.randn(3, 4, generator=g), (0.2, 0.7)
    found = pinball(forecast, gold, levels)
    for window in range(3):
        for n, level in enumerate(levels):
            for t in range(4):
                missed = float(gold[window, t]) - float(forecast[window, n, t])
                assert float(found[window, n, t]) == pytest.approx(max(level * missed, (level - 1) * missed), abs=1e-12)
    fine = tuple((n + 0.5) / 2000 for n in range(2000))
    exact = torch.distributions.Normal(0.0, 1.0).icdf(torch.tensor(fine, dtype=torch.float64))[None]
    loss = 2 * float(pinball(exact, torch.tensor([0.4]), fine).mean())
    z = torch.tensor(0.4, dtype=torch.float64)
    normal = torch.distributions.Normal(0.0, 1.0)
    law = z * (2 * normal.cdf(z) - 1) + 2 * normal.log_prob(z).exp() - 1 / math.sqrt(math.pi)
    assert loss == pytest.approx(float(law), abs=1e-4)


@pytest.mark.parametrize("share", [0.5, 0.8])
def test_coverage_is_the_share_where_the_law_is_right_and_less_where_it_is_narrow(share):
    """4,000 windows; an unlucky seed once in 10^5 (and 0.01 for what 400 samples leave out)."""
    g = torch.Generator().manual_seed(0)
    samples, gold = torch.randn(4000, 400, generator=g), torch.randn(4000, generator=g)
    spread = 4.4 * math.sqrt(share * (1 - share) / 4000) + 0.01
    assert abs(float(coverage(samples, gold, share).double().mean()) - share) < spread
    assert float(coverage(samples / 2, gold, share).double().mean()) < share - 0.1


def test_quantiles_of_samples():
    samples = torch.arange(11.0)[None, :, None].expand(2, 11, 3)
    assert sample_quantiles(samples, (0.1, 0.55))[1].tolist() == [[1.0] * 3, [5.5] * 3]


def test_what_does_not_fit_is_refused_and_what_escaped_is_infinite():
    samples, gold = torch.zeros(2, 3, 4), torch.zeros(2, 4)
    for call in (lambda: crps(samples, gold[:, :3]), lambda: crps(gold, gold), lambda: coverage(samples[:, :0], gold)):
        with pytest.raises(fr.UserError, match=r"samples must be \(windows, n, ...\)"):
            call()
    with pytest.raises(fr.UserError, match="a quantile a level"):
        pinball(samples, gold, (0.5,))
    with pytest.raises(fr.UserError, match="levels must be numbers"):
        sample_quantiles(samples, (0.0, 0.5))
    with pytest.raises(fr.UserError, match="share"):
        coverage(samples, gold, 1.0)
    samples[0, 1, 2] = math.nan
    assert crps(samples, gold).isinf().nonzero().tolist() == [[0, 2]]


# -- the task


def test_scores_of_windows_are_those_of_their_paths_whatever_the_batches(tmp_path):
    recipe = tiny(tmp_path, "model.head=gaussian", "evaluate.num_samples=9")
    model, task, *_ = build(recipe)
    model.eval()
    windows = task.windows("test")
    found = [evaluate_windows(model, windows, ForecastSettings(num_samples=9, batch_size=n)) for n in (5, 256)]
    for name in ("crps", "pinball", "coverage_50", "coverage_80"):
        assert found[0].free_running[name] == pytest.approx(found[1].free_running[name], rel=1e-4), name
    everything = windows.make(range(windows.count))
    paths = sample_paths(model, everything, windows.horizon, 9).double()
    gold = everything.targets[:, -windows.horizon :].double()
    scores = found[1].free_running
    assert scores["crps"] == pytest.approx(float(crps(paths, gold).mean()), rel=1e-4)
    levels = pinball(sample_quantiles(paths, DECILES), gold, DECILES)
    assert scores["pinball"] == pytest.approx(float(levels.mean()), rel=1e-4)
    assert scores["coverage_80"] == pytest.approx(100 * float(coverage(paths, gold).double().mean()), abs=0.2)
    assert sum(item["crps"] for item in found[1].items) == pytest.approx(float(crps(paths, gold).sum()), rel=1e-4)


def test_what_is_missing_is_in_no_score():
    model, batch = forecaster()
    complete = probabilistic_scores(model, batch, 5, ForecastSettings(num_samples=6), [0, 1, 2])
    targets = batch.targets.clone()
    targets[1, 2, 0] = math.nan
    present = ~targets.isnan()
    holed = fr.Batch(targets, batch.history, context=batch.context, present=present)
    paths = sample_paths(model, batch, 5, 6).double()
    found = probabilistic_scores(model, holed, 5, ForecastSettings(num_samples=6), [0, 1, 2])
    left_out = crps(paths, batch.targets.double())[1, 2, 0]
    assert float(complete["crps"][1] - found["crps"][1]) == pytest.approx(float(left_out), abs=1e-6)
    assert torch.allclose(complete["pinball"][[0, 2]], found["pinball"][[0, 2]])


def test_a_path_that_diverges_is_not_averaged_away():
    class Explodes(torch.nn.Module):
        head = "gaussian"

        def forward(self, batch):
            before = torch.nn.functional.pad(batch.history, (0, 0, 1, 0))[:, :-1]
            return torch.cat([1 + before.abs() * 1e3, torch.zeros_like(before)], -1)

    batch = fr.Batch(torch.zeros(2, 6, 1))
    scores = probabilistic_scores(Explodes(), batch, 6, ForecastSettings(num_samples=4), [0, 1])
    assert scores["crps"].isinf().all()
    assert scores["pinball"].isinf().all()
    assert scores["covered_80"].sum() == 0


@pytest.mark.parametrize(
    ("overrides", "problem"),
    [(["evaluate.num_samples=5"], "`num_samples` are draws from the law that a model predicts"),
     (["evaluate.draw=gaussian"], "`draw` gaussian does not fit a model with head point"),
     (["model.head=gaussian", "train.select=crps"], "`select` crps is a score of sample paths"),
     (["evaluate.num_samples=-1"], "num_samples")],
)  # fmt: skip
def test_a_recipe_whose_samples_nothing_draws_is_refused(tmp_path, overrides, problem):
    with pytest.raises(fr.UserError, match=problem):
        tiny(tmp_path, *overrides)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run on a table whose model predicts a law; the table."""
    folder = tmp_path_factory.mktemp("fan")
    path = table(folder)
    recipe = tiny(folder, *series(path), "model.head=gaussian", "evaluate.num_samples=4", "data.calendar=[]",
                  'data.covariates=[]', "data.observed=[]")  # fmt: skip
    run_recipe(recipe, folder / "run")
    return folder / "run", path


def printed(capsys, run, path, *options: str) -> list[dict[str, str]]:
    found = ends(capsys, 0, "generate", str(run), "--input", str(path), *options).out
    return list(csv.DictReader(io.StringIO(found)))


def test_a_table_of_quantiles_and_of_paths(run, capsys):
    run, path = run
    plain = printed(capsys, run, path)
    assert [name for name in plain[0] if name.startswith("load")] == ["load"]  # scored by paths, and answered by one
    paths = printed(capsys, run, path, "--num-samples", "3")
    assert [name for name in paths[0] if name.startswith("load")] == ["load", "load.1", "load.2", "load.3"]
    assert [row["load"] for row in paths] == [row["load"] for row in plain]
    assert len({paths[0][f"load.{n}"] for n in (1, 2, 3)}) == 3
    few = printed(capsys, run, path, "--num-samples", "2")
    assert [row["load.2"] for row in few] == [row["load.2"] for row in paths]
    levels = printed(capsys, run, path, "--quantiles", "0.1,0.5,0.9", "--num-samples", "40", "--length", "7")
    assert len(levels) == 7
    many = printed(capsys, run, path, "--num-samples", "40", "--length", "7")
    for row, drawn in zip(levels, many, strict=True):
        own = torch.tensor([float(drawn[f"load.{n}"]) for n in range(1, 41)], dtype=torch.float64)
        for level in (0.1, 0.5, 0.9):
            assert float(row[f"load.q{level:g}"]) == pytest.approx(float(own.quantile(level)), rel=1e-4)


@pytest.mark.parametrize(
    ("options", "problem"),
    [(("--quantiles", "0.9,0.1"), "rising numbers between 0 and 1"), (("--quantiles", "ten"), "got 'ten'"),
     (("--quantiles", "0,1"), "between 0 and 1"), (("--num-samples", "0"), "--num-samples must be at least 1")],
)  # fmt: skip
def test_levels_and_numbers_that_are_none_are_refused(run, capsys, options, problem):
    run, path = run
    assert problem in ends(capsys, 2, "generate", str(run), "--input", str(path), *options).err


def test_a_model_of_values_has_no_paths(tmp_path, capsys):
    path = table(tmp_path)
    recipe = tiny(tmp_path, *series(path), "data.calendar=[]", "data.covariates=[]", "data.observed=[]")
    run_recipe(recipe, tmp_path / "run")
    problem = ends(capsys, 2, "generate", str(tmp_path / "run"), "--input", str(path), "--quantiles", "0.5").err
    assert "no law to draw from" in problem


TWO = toml(
    method={"name": "teacher_forcing"},
    train={"updates": 2, "batch_size": 8, "evaluate_every": 2},
    compare={"seeds": [1, 2], "arms": [{"method": {"name": each}} for each in ("teacher_forcing", "free_running")]},
)


@pytest.mark.slow(reason="four runs of the command, each a process")
def test_a_comparison_scores_the_law_and_draws_its_fans(tmp_path):
    recipe = write(tmp_path, TINY.partition("[method]")[0] + TWO)
    results = compare(recipe, ["model.head=gaussian", "evaluate.num_samples=4"], tmp_path / "out")
    found = {(entry["arm"], entry["metric"]) for entry in results["summary"]}
    assert {("teacher_forcing", "free_running.crps"), ("free_running", "free_running.coverage_80")} <= found
    assert ("CRPS", 4) in [(heading, decimals) for _, heading, decimals in columns(results)]
    window = json.loads(next(tmp_path.glob("out/runs/*/test-forecasts.json")).read_text())[0]
    assert {*window["bands"]} == {"0.05", "0.25", "0.75", "0.95"}
    low, high = (torch.tensor(window["bands"][level]) for level in ("0.05", "0.95"))
    assert low.shape == torch.tensor(window["gold"]).shape
    assert (low < high).all()
    page = forecasts(results, tmp_path / "out")
    assert "central 90 % of 100 sample paths" in page
    assert "CRPS of sample paths" in page
    assert "In the 80 % band" in page
    naive = {entry["metric"] for entry in results["summary"]}
    assert {"free_running.last_value_crps", "free_running.linear_coverage_80"} <= naive
    whole = write_page(tmp_path / "out").read_text()
    assert "In the 80 % band: 80 % where" in whole


@pytest.mark.slow(reason="four runs of the command, each a process")
def test_a_comparison_of_values_has_no_columns_of_laws(tmp_path):
    results = compare(write(tmp_path, TINY.partition("[method]")[0] + TWO), [], tmp_path / "out")
    assert not [name for name, *_ in columns(results) if "crps" in name or "coverage" in name]
    assert "CRPS" not in write_page(tmp_path / "out").read_text()
    assert "bands" not in json.loads(next(tmp_path.glob("out/runs/*/test-forecasts.json")).read_text())[0]


# -- rows without a model, batches of one's own


def test_the_law_of_a_row_without_a_model_is_what_it_was_off_in_training(tmp_path):
    """CRPS of its forecast plus residual quantiles by lead and value, by the double loop; bands and deciles too."""
    recipe = tiny(tmp_path, "model.head=gaussian", "evaluate.num_samples=3")
    data = build(recipe)[1].data
    task = SeriesTask(data, ForecastSettings(num_samples=3))
    batch, gold = data.batch(list(range(data.windows("train")))), task.windows("test")
    windows = gold.make(range(gold.count))
    rows = {name: row for name, (row, _) in gold.naive.items()}
    curves = {name: curve for _, each in gold.naive.values() for name, curve in each.items()}
    levels = (np.arange(100) + 0.5) / 100
    for name, forecast, truth in task.naive.forecasts(windows):
        off = {other: (right - made).numpy() for other, made, right in task.naive.forecasts(batch)}[name]
        points = np.quantile(off, levels, axis=0)  # (points, horizon, values)
        missed = (truth - forecast).numpy()
        between = np.abs(points[:, None] - points[None]).mean((0, 1)) / 2
        expected = np.abs(points[None] - missed[:, None]).mean(1) - between
        assert rows[name]["crps"] == pytest.approx(float(expected.mean()), rel=1e-5), name
        assert curves[f"{name}_crps"] == pytest.approx(expected.mean((0, 2)).tolist(), rel=1e-5)
        low, high = np.quantile(off, (0.1, 0.9), axis=0)
        inside = (low <= missed) & (missed <= high)
        assert curves[f"{name}_coverage_80"] == pytest.approx((100 * inside.mean((0, 2))).tolist(), abs=0.6)
        deciles = torch.from_numpy(np.quantile(off, DECILES, axis=0))[None] + forecast[:, None]
        losses = pinball(deciles, truth, DECILES).mean()
        assert rows[name]["pinball"] == pytest.approx(float(losses), rel=1e-5)
    # the law is better than the point that it is around, and covers what it should
    assert rows["last_value"]["crps"] < rows["last_value"]["mae"]


def test_quantiles_of_what_is_there():
    values = torch.tensor([[1.0, math.nan, math.nan], [3.0, 2.0, math.nan], [2.0, 4.0, math.nan]])
    assert quantiles_there(values, (0.0, 0.5, 1.0)).tolist() == [[1, 2, 0], [2, 3, 0], [3, 4, 0]]


def test_scores_by_lead_time_are_those_of_each_step(tmp_path):
    recipe = tiny(tmp_path, "model.head=gaussian", "evaluate.num_samples=9")
    model, task, *_ = build(recipe)
    windows = task.windows("test")
    found = evaluate_windows(model.eval(), windows, ForecastSettings(num_samples=9))
    everything = windows.make(range(windows.count))
    paths = sample_paths(model, everything, windows.horizon, 9).double()
    gold = everything.targets[:, -windows.horizon :].double()
    assert found.curves["crps"] == pytest.approx(crps(paths, gold).mean((0, 2)).tolist(), rel=1e-4)
    inside = 100 * coverage(paths, gold).double().mean((0, 2))
    assert found.curves["coverage_80"] == pytest.approx(inside.tolist(), abs=0.6)


def test_the_law_of_batches_of_ones_own_is_scored():
    model, batch = forecaster()
    found = fr.evaluate(model, [batch, batch], num_samples=8, check=False)
    mean, std = batch.targets.flatten(0, 1).double().mean(0), batch.targets.flatten(0, 1).double().std(0, correction=0)
    one, two = (
        fr.generate(
            model, batch.replace(rows=torch.arange(3) + n * 2**20), length=5, draw="gaussian", num_samples=8,
            key=fold(0, "sample paths"),
        ).entries.double()
        for n in (0, 1)
    )  # fmt: skip
    assert not torch.equal(one, two)
    gold = (batch.targets.double() - mean) / std
    each = torch.cat([crps((paths - mean) / std, gold) for paths in (one, two)])
    assert found.free_running["crps"] == pytest.approx(float(each.mean()), rel=1e-5)
    assert found.curves["crps"] == pytest.approx(each.mean((0, 2)).tolist(), rel=1e-5)
    inside = torch.cat([coverage(paths, batch.targets) for paths in (one, two)]).double()
    assert found.free_running["coverage_80"] == pytest.approx(100 * float(inside.mean()), rel=1e-5)
    assert "crps" not in fr.evaluate(model, batch, check=False).free_running
    values = fr.models.RecurrentForecaster(values=2, size=8)
    refused("this one predicts values", fr.evaluate, values, batch, num_samples=8)
    refused("the batches hold ids", fr.evaluate, Coins(), blank(2), num_samples=8)
    ids = fr.evaluate(Coins(), blank(2), scores={"crps": lambda generated, batch: 1.0}, check=False)
    assert ids.free_running["crps"] == 1.0


def test_weights_are_chosen_by_the_law_that_is_scored(tmp_path):
    assert tiny(tmp_path, "model.head=gaussian", "evaluate.num_samples=9").train.select == "crps"
    assert tiny(tmp_path, "model.head=gaussian", "evaluate.num_samples=9", "train.select=nrmse").train.select == "nrmse"
    assert tiny(tmp_path, "model.head=gaussian").train.select == "nrmse"


def test_paths_of_a_model_of_ones_own_that_predicts_values_are_refused_before_the_first_update(tmp_path, capsys):
    """Its head is not in the recipe; of batches of one's own and of series; with a head both are scored."""
    (tmp_path / "mine.py").write_text(
        "import torch, freerun as fr\n"
        "def make_model(values=1, *more, head='point'):\n"
        "    return fr.models.RecurrentForecaster(values, *more[:2], size=4, head=head)\n"
        "def make_data():\n"
        "    g = torch.Generator().manual_seed(0)\n"
        "    def batches(n): return [fr.Batch(torch.randn(4, 3, 1, generator=g), context={'past': "
        "torch.randn(4, 5, 1, generator=g)}) for _ in range(n)]\n"
        "    return {'train': batches(3), 'dev': batches(1), 'test': batches(2)}\n"
    )
    path = table(tmp_path)
    kinds = {
        "batches": {"kind": "python", "make": "mine.py:make_data"},
        "series": {"kind": "series", "path": str(path), "past": 12, "horizon": 4, "targets": ["load"]},
    }
    for name, data in kinds.items():
        recipe = write(tmp_path, toml(
            data=data, model={"kind": "python", "make": "mine.py:make_model"}, method={"name": "teacher_forcing"},
            train={"updates": 2}, evaluate={"num_samples": 4},
        ))  # fmt: skip
        err = ends(capsys, 2, "train", str(recipe), "--out", str(tmp_path / f"{name} point")).err
        assert "`num_samples` are draws from the law that a model predicts" in err, name
        assert not (tmp_path / f"{name} point").exists()
        head = ("--set", 'model.arguments={head="gaussian"}', "--set", "model.head=gaussian")
        for wrong, own in ((head[:2], "gaussian"), (head[2:], "point")):
            few = (*wrong, *(("--set", "evaluate.num_samples=0") if own == "gaussian" else ()))
            err = ends(capsys, 2, "train", str(recipe), *few, "--out", str(tmp_path / f"{name} point")).err
            assert f'help: set head = "{own}" under [model]' in err
        ends(capsys, 0, "train", str(recipe), *head, "--out", str(tmp_path / name))
        scores = json.loads((tmp_path / name / "summary.json").read_text())["test"]["free_running"]
        assert {"crps", "pinball", "coverage_80"} <= scores.keys(), name
