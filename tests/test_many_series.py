"""Many series in one table: scales and vectors of their own, categories, unequal lengths; wide data, little memory."""

import json
import statistics
from datetime import date, timedelta
from pathlib import Path

import numpy as np
import pytest
import torch

import freerun as fr
from builders import problems_of, refused
from freerun.cli.entry import main
from freerun.data import SeriesOptions, load_series
from freerun.data.files import DataFile
from freerun.data.series.inference import read_futures, read_past, read_windows
from freerun.recipes import load_recipe
from freerun.recipes.load import diagnose_run, evaluate_run, generate_lines, load_run
from freerun.recipes.train import build, run_recipe
from freerun.tasks.series import SeriesTask
from tiny_recipes import toml, write

SIZES = {"small": (1.0, 300, 12), "large": (1000.0, 420, 12), "middle": (50.0, 360, 8)}
"""Name -> size, rows, period."""


def values_of(name: str) -> np.ndarray:
    size, rows, period = SIZES[name]
    t, draw = np.arange(rows), np.random.default_rng(len(name))
    return size * (3 + np.sin(2 * np.pi * t / period) + 0.01 * t + 0.1 * draw.normal(size=rows))


def table(path: Path, names, kind=lambda name: "shop" if name == "large" else "kiosk") -> Path:
    """A long table; the series begin and end at different times."""
    rows = [
        f"{first + t},{name},{kind(name)},{value:.6g}"
        for first, name in zip((0, 40, 7), names, strict=False)
        for t, value in enumerate(values_of(name))
    ]
    path.write_text("\n".join(["t,item,kind,sales", *rows]) + "\n")
    return path


RECIPE = {
    "name": "many",
    "data": {"kind": "series", "time": "t", "targets": ["sales"], "past": 24, "horizon": 8},
    "model": {"kind": "recurrent_forecaster", "size": 12},
    "method": {"name": "scheduled_sampling", "teacher_forcing_ratio": 0.5},
    "train": {"updates": 60, "batch_size": 32, "lr": 0.003, "evaluate_every": 20, "evaluate_items": 64},
}


def trained(folder: Path, path: Path, **data):
    folder.mkdir()
    recipe = load_recipe(write(folder, toml(**RECIPE | {"data": RECIPE["data"] | {"path": str(path)} | data})))
    summary = run_recipe(recipe, folder / "run", progress=False)
    run = load_run(folder / "run")
    return summary, run, build(recipe)[1]


def errors(run, task: SeriesTask) -> dict[str, float]:
    """The median NRMSE of the test windows of each series."""
    found: dict[str, list[float]] = {}
    items = task.evaluate(run.model, "test").items
    for item, number in zip(items, task.data.series_of("test", range(len(items))).tolist(), strict=True):
        found.setdefault(task.data.series[number], []).append(item["nrmse"])
    return {name: statistics.median(each) for name, each in found.items()}


def test_series_of_different_sizes_are_each_forecast_as_well_as_alone(tmp_path):
    """Sizes 1 : 1000 : 50; with one scale the small one is not seen at all."""
    summary, run, task = trained(
        tmp_path / "all", table(tmp_path / "all.csv", SIZES), series="item", categories=["item", "kind"]
    )
    together = errors(run, task)
    for name in SIZES:
        _, alone, own = trained(tmp_path / name, table(tmp_path / f"{name}.csv", [name]), series="item")
        assert together[name] < 1.5 * errors(alone, own)[name], name
    free = summary["test"]["free_running"]
    assert free["nrmse"] < 1.05 * min(value for name, value in free.items() if name.endswith("_nrmse"))
    # answers are in the units of the series, of windows too
    for name, (size, _, _) in SIZES.items():
        batch = read_past(table(tmp_path / "one.csv", [name]), run.codec)
        assert batch.context["past"][0, :, 0].abs().max() < 6
        lines = task.generate_table(run.model, run.codec, task.settings, DataFile(tmp_path / "one.csv"))
        numbers = [float(line.split(",")[-1]) for line in lines[1:]]
        assert all(0.3 < number / values_of(name)[-24:].mean() < 3 for number in numbers), (name, size)
    forecasts = task.evaluate(run.model, "test").forecasts
    assert max(max(map(max, each["gold"])) for each in forecasts) > 1000
    assert min(max(map(max, each["gold"])) for each in forecasts) < 10


DAY = date(2024, 1, 1)


def dated(path: Path, ends: dict[str, int], *, turn: bool = False) -> Path:
    """Series of daily rows that end at different times; of series by turns, the newest row first."""
    rows = [
        f"{DAY + timedelta(days=t):%d.%m.%Y},{name},{'shop' if name == 'large' else 'kiosk'},{values_of(name)[t]:.6g}"
        for name, end in ends.items()
        for t in range(end)
    ]
    rows = sorted(rows, key=lambda row: row[3:5] + row[:2], reverse=True) if turn else rows
    path.write_text("\n".join(["day,item,kind,sales", *rows]) + "\n")
    return path


FORECAST = {"series": "item", "time": "day", "time_format": "%d.%m.%Y", "categories": ["item", "kind"]}
LAW = RECIPE | {
    "model": {"kind": "recurrent_forecaster", "size": 6, "head": "gaussian"},
    "train": {"updates": 3, "batch_size": 8, "evaluate_items": 4},
}


@pytest.fixture(scope="module")
def lawful(tmp_path_factory):
    """A run on dated series with a law, a table of their ends, and that of each alone."""
    folder = tmp_path_factory.mktemp("lawful")
    train = dict.fromkeys(SIZES, 150)
    data = RECIPE["data"] | FORECAST | {"path": str(dated(folder / "all.csv", train)), "evaluation_stride": 8}
    run_recipe(load_recipe(write(folder, toml(**LAW | {"data": data}))), folder / "run", progress=False)
    return load_run(folder / "run"), folder


ENDS = {"large": 150, "small": 140, "middle": 145}


def test_each_series_of_a_table_is_forecast_from_its_own_end(lawful):
    """As from a table of its own: its scale, vectors, categories that stand still, times; for any length."""
    run, folder = lawful
    file, notes = dated(folder / "ends.csv", ENDS), []
    lines = [row.split(",") for row in generate_lines(run, [str(file)], length=11, quantiles=(0.1, 0.9), notes=notes)]
    assert lines[0] == ["item", "lead", "day", "sales", "sales.q0.1", "sales.q0.9"]
    assert not notes
    assert [row[0] for row in lines[1::11]] == list(ENDS)
    assert len(lines) == 1 + 11 * len(ENDS)
    for name, end in ENDS.items():
        own = [row for row in lines if row[0] == name]
        assert [row[1] for row in own] == [str(n) for n in range(1, 12)]
        assert [row[2] for row in own] == [f"{DAY + timedelta(days=end + n):%d.%m.%Y}" for n in range(11)]
        alone = generate_lines(run, [str(dated(folder / "one.csv", {name: end}))], length=11, quantiles=(0.1, 0.9))
        for row, one in zip(own, alone[1:], strict=True):
            assert row[:3] == one.split(",")[:3]
            assert [float(cell) for cell in row[3:]] == pytest.approx(
                [float(cell) for cell in one.split(",")[3:]], 1e-4
            )
            assert float(row[4]) < float(row[3]) < float(row[5])
            assert 0.2 < float(row[3]) / values_of(name)[end - 12 : end].mean() < 5
    paths = [row.split(",") for row in generate_lines(run, [str(file)], num_samples=3)]
    assert paths[0][4:] == ["sales.1", "sales.2", "sales.3"]
    assert len(paths) == 1 + 8 * 3
    # the noise of two series is not one
    noise = {
        row[0]: [(float(cell) - float(row[3])) / run.codec.own[row[0]][1][0] for cell in row[4:]] for row in paths[1::8]
    }
    assert abs(noise["large"][0] - noise["small"][0]) > 1e-3


def test_a_table_in_no_order_is_sorted_and_the_answer_notes_it(lawful, capsys):
    run, folder = lawful
    plain, mixed = dated(folder / "plain.csv", ENDS), dated(folder / "mixed.csv", ENDS, turn=True)
    expected = generate_lines(run, [str(plain)])
    assert main(["generate", str(run.folder), "--input", str(mixed)]) == 0
    printed = capsys.readouterr()
    assert sorted(printed.out.splitlines()) == sorted(expected)
    assert f"note: sorted by day, rows stood newest first: {mixed}, item " in printed.err
    assert evaluate_run(run, mixed)["notes"][0].startswith("sorted by day, rows stood newest first")
    assert main(["evaluate", str(run.folder), "--data", str(mixed)]) == 0
    assert "note: sorted by day" in capsys.readouterr().err


def test_windows_of_a_diagnosis_are_in_the_units_of_the_table(lawful):
    """Gold is a stretch of one of the series, as the table has it, and bands lie around it."""
    windows = diagnose_run(lawful[0])["diagnosis"]["sample_windows"]
    found = set[str]()
    for window in windows:
        gold = [row[0] for row in window["gold"]]
        found |= {
            name for name in SIZES for n in range(142) if np.allclose(values_of(name)[n : n + 8], gold, rtol=1e-4)
        }
        low, high = (np.array(rows)[:, 0] for level, rows in window["bands"] if level in (0.05, 0.95))
        assert (low < high).all()
        assert low.min() > 0.2 * min(gold)
        assert high.max() < 5 * max(gold)
    assert found == set(SIZES)
    assert len(windows) == 6


def test_what_is_wrong_with_series_is_named_of_all_at_once(lawful):
    run, folder = lawful
    found = problems_of(
        generate_lines, run, [str(dated(folder / "short.csv", {"large": 20, "small": 24, "middle": 5}))]
    )
    assert [line.rpartition(", item ")[2] for line in found] == [
        f"{name}: the model needs 24 rows of the past; got {rows}" for name, rows in (("large", 20), ("middle", 5))
    ]


def test_a_batch_to_generate_from_has_a_row_for_each_series(lawful):
    run, folder = lawful
    table = dated(folder / "rows.csv", ENDS)
    batch, futures = read_past(table, run.codec), read_futures(run.codec, DataFile(table))
    assert batch.size == len(futures) == len(ENDS)
    assert torch.equal(
        batch.context["past"], run.codec.batch(torch.cat([each.window for each in futures])).context["past"]
    )
    assert read_past(table, run.codec, horizon=3).time == 3


def test_scales_are_those_of_the_training_rows_of_each_series(tmp_path):
    path = table(tmp_path / "all.csv", SIZES)
    options = SeriesOptions(past=24, horizon=8, targets=["sales"], series="item", time="t")
    data = load_series(path, options)
    assert options.normalisation == "series"
    assert data.series == tuple(SIZES)
    for name in SIZES:
        train = values_of(name)[: round(0.7 * len(values_of(name)))]
        assert data.codec.own[name] == [[pytest.approx(train.mean(), rel=1e-4)], [pytest.approx(train.std(), rel=1e-4)]]
    for split in ("train", "dev", "test"):
        for number in range(0, data.windows(split), 37):
            name = data.series[int(data.series_of(split, [number]))]
            back = data.in_units(split, number)(data.window_batch(split, [number]).targets[0])[:, 0]
            (row,) = [
                n for n in range(len(values_of(name)) - 7)
                if np.allclose(values_of(name)[n : n + 8], back, rtol=1e-4)
            ]  # fmt: skip
            assert row >= 24
    assert type(data.codec).from_description(json.loads(json.dumps(data.codec.describe()))) == data.codec
    assert "each series" in "\n".join(data.header())
    shared = load_series(path, SeriesOptions(**{**vars(options), "normalisation": "standard"}))
    assert 'normalisation = "series" gives each its own' in "\n".join(shared.header())


def test_a_series_that_was_not_in_training_is_scaled_by_what_is_known_of_it(tmp_path):
    data = load_series(
        table(tmp_path / "two.csv", ["small", "large"]),
        SeriesOptions(past=24, horizon=8, targets=["sales"], series="item", time="t"),
    )
    other = table(tmp_path / "new.csv", ["middle"])
    past = read_past(other, data.codec).context["past"][0, :, 0]
    known = values_of("middle")
    expected = (known[-24:] - known.mean()) / known.std()
    assert torch.allclose(past, torch.from_numpy(expected).float(), atol=1e-3)
    window = read_windows(data.codec, DataFile(other)).make([0])
    first = known[:24]
    assert torch.allclose(window.context["past"][0, :, 0].mean(), torch.tensor(0.0), atol=1e-4)
    assert window.targets[0, 0, 0] == pytest.approx((known[24] - first.mean()) / first.std(), abs=1e-3)


def test_categories_are_numbered_embedded_and_refused_by_name(tmp_path):
    path = table(tmp_path / "all.csv", SIZES)
    options = SeriesOptions(past=24, horizon=8, targets=["sales"], series="item", time="t", categories=["kind", "item"])
    data = load_series(path, options)
    codec = data.codec
    assert codec.channels == ("sales", "kind", "item")
    assert codec.embedded == ((0, 2), (1, 3))
    assert {name: list(each) for name, each in codec.categories.items()} == {
        "kind": ["kiosk", "shop"], "item": ["large", "middle", "small"],
    }  # fmt: skip
    batch = data.window_batch("test", range(data.windows("test")))
    for row, number in enumerate(data.series_of("test", range(batch.size)).tolist()):
        name = data.series[number]
        codes = [float(name == "large"), float(sorted(SIZES).index(name))]
        assert bool((batch.context["future"][row] == torch.tensor(codes)).all())
        assert bool((batch.context["past"][row, :, 1:] == torch.tensor(codes)).all())
    new = table(tmp_path / "new.csv", ["small"])
    new.write_text(new.read_text().replace("small", "tiny"))
    refused("series 'tiny' was not in training.*large, middle, small", read_past, new, codec, 1)
    new.write_text(new.read_text().replace("tiny", "small").replace("kiosk", "stall"))
    refused("column 'kind': 'stall' was not in training; its categories are: kiosk, shop", read_past, new, codec, 1)
    broken = path.read_text().replace("3,small,kiosk", "3,small,", 1)
    (tmp_path / "broken.csv").write_text(broken)
    refused(r"broken.csv:5, column 'kind': is empty", load_series, tmp_path / "broken.csv", options)
    recipe = toml(**RECIPE | {
        "data": RECIPE["data"] | {"path": str(path), "series": "item", "categories": ["item"]},
        "model": {"kind": "shallow_plrnn"},
    })  # fmt: skip
    refused("data.categories needs a model that learns vectors", build, load_recipe(write(tmp_path, recipe)))


KINDS = (fr.models.RecurrentForecaster, fr.models.PlainForecaster, fr.models.TransformerForecaster)


@pytest.mark.parametrize("kind", KINDS)
def test_a_category_is_read_as_its_vector(kind):
    """Stepped and at once; the same as a model that is given the vectors as covariates."""
    torch.manual_seed(0)
    more = {"heads": 1} if kind is fr.models.TransformerForecaster else {}
    model = kind(1, 3, categories=((1, 4),), size=6, embedding=2, **more).double()
    plain = kind(1, 4, size=6, **more).double()
    own = {name: part for name, part in model.state_dict().items() if "categories" not in name}
    plain.load_state_dict(own)
    codes = torch.tensor([[0], [3], [1]])
    known = torch.randn(3, 9, 3, dtype=torch.float64)
    known[..., 1] = codes.double()
    vectors = model.categories.vectors[0](codes.expand(3, 9))
    given = torch.cat([known[..., [0, 2]], vectors], -1)
    values = torch.randn(3, 5, 1, dtype=torch.float64)
    past = torch.randn(3, 4, 1, dtype=torch.float64)

    def batch(covariates):
        if model.layout == "sequence":
            return fr.Batch(values, context={"future": covariates[:, :5]})
        return fr.Batch(values, context={"past": torch.cat([past, covariates[:, :4]], -1), "future": covariates[:, 4:]})

    torch.testing.assert_close(model(batch(known)), plain(batch(given)))
    method = fr.scheduled_sampling(0.5)
    ours, theirs = (method.run(each, batch(part), step=1, key=3) for each, part in ((model, known), (plain, given)))
    torch.testing.assert_close(ours.outputs, theirs.outputs)
    ours.loss.backward()
    assert model.categories.vectors[0].weight.grad[[0, 1, 3]].abs().sum(1).min() > 0
    assert model.categories.vectors[0].weight.grad[2].abs().sum() == 0
    # cut before every second step, each piece has its own gradient
    model.zero_grad()
    fr.free_running(gradient=2).run(model, batch(known), step=1, key=3).loss.backward()
    assert model.categories.vectors[0].weight.grad[[0, 1, 3]].abs().sum(1).min() > 0
    assert kind(**model.settings()).state_dict().keys() == model.state_dict().keys()
    assert not {"categories", "embedding"} & plain.settings().keys()
    refused("categories must be pairs of different channels", kind, 1, 1, categories=((1, 4),))
