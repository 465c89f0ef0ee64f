"""Files of series as people have them, by what once went wrong in silence: order, indices, gaps, local times, forms."""

import json
import math
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from zoneinfo import ZoneInfo

import numpy as np
import pytest
import torch

import freerun as fr
from builders import problems_of, refused, write_csv
from freerun.data import SeriesCodec, SeriesOptions, load_series, read_past, series_from_arrays
from freerun.data.files import DataFile
from freerun.data.series.inference import read_futures, read_windows
from freerun.data.series.time_stamps import Step, step_between
from freerun.data.times import localised
from freerun.diagnostics import diagnose
from freerun.recipes import load_recipe
from freerun.recipes.load import evaluate_run, generate_lines, load_run
from freerun.recipes.train import run_recipe
from freerun.tasks.series import SeriesTask, evaluate_windows

SMALL = SeriesOptions(past=6, horizon=3)
DAYS = [datetime(2020, 1, 1) + timedelta(days=n) for n in range(90)]


def wave(n: int) -> str:
    return f"{math.sin(n / 3):.4f}"


@pytest.fixture
def csv(tmp_path):
    return lambda lines, header="date,a", name="x.csv": write_csv(tmp_path / name, lines, header)


def months(count: int, form: str = "%Y-%m") -> list[str]:
    return [datetime(1949 + n // 12, n % 12 + 1, 1).strftime(form) for n in range(count)]


def run_of(folder: Path, file: Path, **data) -> Path:
    """A run that trains two updates on a file."""
    keys = {"kind": "series", "path": str(file), "past": 6, "horizon": 3, **data}
    text = "\n".join(f"{key} = {json.dumps(value)}" for key, value in keys.items())
    recipe = folder / "tiny.toml"
    recipe.write_text(
        f'[data]\n{text}\n[model]\nkind = "recurrent_forecaster"\nsize = 4\n[method]\nname = "scheduled_sampling"\n'
        "teacher_forcing_ratio = 0.5\n[train]\nupdates = 2\nbatch_size = 8\nevaluate_every = 1\nsave_every = 2\n"
    )
    run_recipe(load_recipe(recipe), folder / "run")
    return folder / "run"


# V10: the order of rows


def test_the_column_of_dates_is_found_and_rows_are_sorted_by_it(csv):
    rows = [f"{day:%Y-%m-%d},{wave(n)}" for n, day in enumerate(DAYS)]
    expected = load_series(csv(rows), replace(SMALL, time="date"))
    found = load_series(csv(rows), SMALL)
    assert (found.codec.time, found.codec.step) == ("date", "86400 seconds")
    assert "time: column date, which holds dates" in found.header()
    mixed = [*rows[40:], *rows[:40]]
    for lines, how in ((rows[::-1], "newest first"), (mixed, "in no order of time")):
        data = load_series(csv(lines), SMALL)
        assert torch.equal(data.raw, expected.raw)
        assert any(line.startswith(f"sorted by date, rows stood {how}: ") for line in data.header())
    two = csv([f"{row},{day:%Y-%m-%d}" for row, day in zip(rows, DAYS, strict=True)], "date,a,paid")
    refused("columns date, paid hold dates: name the one that rows follow", load_series, two, SMALL)


def test_an_order_that_nothing_shows_is_asked_about(csv):
    down = csv([f"{90 - n},{wave(n)}" for n in range(90)], "n,a")
    (problem,) = problems_of(load_series, down, SMALL)
    assert "column 'n' counts down, from 90 to 1" in problem
    assert load_series(down, replace(SMALL, time="n")).raw[0, 0] == float(wave(89))
    other = csv([f"{day:%d.%m.%Y},{wave(n)}" for n, day in enumerate(DAYS[::-1])])
    (problem,) = problems_of(load_series, other, SMALL)
    assert "rows are not in even order of column 'date'" in problem
    assert 'time_format = "%d.%m.%Y"' in problem
    data = load_series(other, replace(SMALL, time="date", time_format="%d.%m.%Y"))
    assert data.raw[0, 0] == float(wave(89))
    rising = csv([f"{day:%d.%m.%Y},{wave(n)}" for n, day in enumerate(DAYS)])
    assert load_series(rising, SMALL).codec.names == ("a",)


def test_several_series_in_one_table_are_asked_about(csv):
    blocks = [f"{name},{wave(n)}" for name in "ABC" for n in range(40)]
    turns = [f"{name},{wave(n)}" for n in range(40) for name in "ABC"]
    for lines in (blocks, turns):
        (problem,) = problems_of(load_series, csv(lines, "who,a"), SMALL)
        assert "column 'who' holds 3 names, in blocks or in turn" in problem
        assert len(load_series(csv(lines, "who,a"), replace(SMALL, series="who")).segments["train"]) == 3
    labels = [f"{'on' if n % 3 else 'off'},{wave(n)}" for n in range(80)]
    assert load_series(csv([*labels[:50], *labels[:30]], "state,a"), SMALL).codec.names == ("a",)
    dated = [f"{day:%Y-%m-%d},{name},{wave(n)}" for name in "AB" for n, day in enumerate(DAYS)]
    refused("90 time stamps came before in the file", load_series, csv(dated, "date,who,a"), SMALL)


# V9: columns that only count, stand still, or hold no numbers


def test_columns_that_are_no_targets_are_left_out_by_name_in_one_line_each(csv):
    lines = [
        f"{n},{100 + 7 * n},{n * 0.25},{'true' if n % 5 else 'false'},red,4,{wave(n)},{math.cos(n)},{n % 7}"
        for n in range(80)
    ]
    data = load_series(csv(lines, "Unnamed: 0,id,t,holiday,colour,floor,a,b,weekday"), SMALL)
    assert data.codec.names == ("a", "b", "weekday")
    assert [line for line in data.header() if line.startswith("not used")] == [
        "not used, for they are constant in the training rows: floor",
        "not used, for they do not hold numbers: colour",
        "not used, for they are true or false: holiday",
        "not used, for they count the rows: Unnamed: 0, id, t",
    ]
    named = replace(SMALL, targets=("id", "a"), covariates=("holiday",))
    assert load_series(csv(lines, "x,id,t,holiday,colour,floor,a,b,weekday"), named).codec.names == ("id", "a")
    many = csv([",".join(["0"] * 150 + [wave(n), wave(n + 1)]) for n in range(80)],
               ",".join(f"c{n}" for n in range(152)))  # fmt: skip
    header = load_series(many, SMALL).header()
    assert len([line for line in header if line.startswith("not used")]) == 1
    ids = [f"{name},{n},{wave(n)}" for name in "AB" for n in range(40)]
    assert load_series(csv(ids, "who,number,a"), replace(SMALL, series="who")).codec.names == ("a",)
    refused("no column of numbers is left to predict", load_series, csv([str(n) for n in range(80)], "n"), SMALL)
    assert load_series(csv([str(n) for n in range(80)], "n"), replace(SMALL, targets=("n",))).codec.names == ("n",)


# V8, V12: absent rows and values that are filled in


def test_one_absent_month_is_one_line_and_can_be_put_in(csv):
    stamps = months(96)
    lines = [f"{stamp},{wave(n)}" for n, stamp in enumerate(stamps)]
    del lines[40]
    file = csv(lines)
    (problem,) = problems_of(load_series, file, SMALL)
    assert problem.startswith(f"{file}:42: time 1952-06-01 follows 1952-04-01, and rows come every m")
    assert 'set missing = "mask", which puts absent rows in' in problem
    data = load_series(file, replace(SMALL, missing="mask"))
    assert "absent rows put in: 1, the first 1952-05-01 of " + str(file) in data.header()
    assert len(data.raw) == 96
    assert not data.present[40, 0]
    assert int((~data.present).sum()) == 1
    assert data.raw[40, 0] == data.raw[39, 0]


STEPS = [
    ([datetime(2024, 1, 1) + timedelta(days=n) for n in range(60) if n % 7 < 5], "1 business-days"),
    ([datetime(2024, 1, 1) + timedelta(days=7 * n) for n in range(20)], "604800 seconds"),
    ([datetime(2000 + n // 4, 3 * (n % 4) + 1, 1) for n in range(20)], "3 months"),
    ([datetime(2000 + n, 1, 1) for n in range(20)], "12 months"),
    ([datetime(2000 + n // 12, n % 12 + 1, 1) for n in range(40) if n not in (7, 20)], "1 months"),
    ([datetime(2024, 1, 1) + timedelta(hours=n) for n in range(60) if n not in (5, 6, 30)], "3600 seconds"),
]


@pytest.mark.parametrize(("stamps", "step"), STEPS)
def test_steps_are_found_though_rows_are_absent(stamps, step):
    found = step_between(stamps)
    assert str(found) == step
    assert found.between(stamps[0], stamps[-1]) >= len(stamps) - 1
    after = stamps[0]
    for _ in range(found.between(stamps[0], stamps[-1])):
        after = found.after(after)
    assert after == stamps[-1]


def test_holidays_of_business_days_are_put_in(csv):
    days = [datetime(2024, 1, 1) + timedelta(days=n) for n in range(140) if n % 7 < 5]
    lines = [f"{day:%Y-%m-%d},{wave(n)}" for n, day in enumerate(days) if n not in (20, 55)]
    data = load_series(csv(lines), replace(SMALL, missing="mask"))
    assert (data.codec.step, len(data.raw)) == ("1 business-days", 100)
    assert (~data.present[:, 0]).nonzero()[:, 0].tolist() == [20, 55]


def test_a_time_far_away_puts_in_no_million_rows(csv):
    lines = [f"{day:%Y-%m-%d},{wave(n)}" for n, day in enumerate(DAYS)]
    lines[-1] = lines[-1].replace("2020", "2920")
    refused("rows would be put in between its 90", load_series, csv(lines), replace(SMALL, missing="mask"))


@pytest.mark.parametrize("missing", ["last", "linear", "mask"])
@pytest.mark.parametrize("kind", ["recurrent_forecaster", "transformer_forecaster"])
def test_filled_values_are_never_gold(missing, kind):
    """Scores of model and naive rows by a loop over what is there; other fillings of the horizon change nothing."""
    rng = np.random.default_rng(0)
    raw = np.sin(np.arange(120)[:, None] * [0.3, 0.5]) + 0.1 * rng.normal(size=(120, 2))
    holes = rng.random(raw.shape) < 0.15
    holes[:8] = False
    gaps = np.where(holes, np.nan, raw)
    layout = "past" if kind == "recurrent_forecaster" else "sequence"
    data = series_from_arrays(gaps, replace(SMALL, missing=missing), layout)
    torch.manual_seed(0)
    sizes = {"size": 8, "layers": 1, "heads": 2} if layout == "sequence" else {"size": 8}
    model = fr.models.make_model(kind, values=2, covariates=0, observed=0, **sizes)
    task = SeriesTask(data)
    windows = task.windows("test")
    found = evaluate_windows(model, windows)
    squared, count, naive = 0.0, 0, 0.0
    for number in range(windows.count):
        batch = windows.make([number])
        gold = batch.targets[0, -3:].double()
        start = int(data.starts["test"][number])
        scaled = (torch.from_numpy(gaps) - data.scales[0]) / data.scales[1]
        assert torch.equal(gold.isnan(), torch.from_numpy(holes[start + 6 : start + 9]))
        assert torch.allclose(gold, scaled[start + 6 : start + 9], atol=1e-5, equal_nan=True)
        there = ~gold.isnan()
        free = fr.generate(model, batch.made(history=batch.history.nan_to_num()), length=3, draw="point").entries[0]
        past = batch.context["past"][0] if layout == "past" else batch.history[0, :6]
        squared += float((free[-3:].double() - gold)[there].square().sum())
        naive += float((past[-1].double() - gold)[there].square().sum())
        count += int(there.sum())
    assert found.free_running["mse"] == pytest.approx(squared / count, rel=1e-5)
    assert found.free_running["last_value_mse"] == pytest.approx(naive / count, rel=1e-5)
    assert sum(item["length"] for item in found.items) == count
    assert all(math.isfinite(value) for name, value in found.free_running.items() if name != "first_divergence")
    outcome = fr.teacher_forcing().run(model, data.batch(list(range(data.windows("train")))), step=0)
    assert math.isfinite(float(outcome.loss.detach()))


def test_windows_without_any_value_to_predict_are_left_out_and_counted():
    raw = np.sin(np.arange(120.0))[:, None]
    raw[40:60] = np.nan
    data = series_from_arrays(raw, replace(SMALL, missing="mask"))
    kept = [s for s in range(84 - 8) if not np.isnan(raw[s + 6 : s + 9]).all()]
    assert data.starts["train"].tolist() == kept
    assert data.header()[-1] == f"left out, no value to predict: {84 - 8 - len(kept)} windows"
    raw[:5] = np.nan
    refused("and so is all before it", series_from_arrays, raw, replace(SMALL, missing="last"))
    masked = series_from_arrays(raw, replace(SMALL, missing="mask"))
    assert np.allclose(masked.raw[:5], np.nanmean(raw[:84]))
    assert masked.codec.mean[0] == pytest.approx(np.nanmean(raw[:84]))


# V7: local times


def test_the_calendar_is_of_local_time_and_spacing_of_utc(csv):
    berlin = ZoneInfo("Europe/Berlin")
    start = datetime(2020, 3, 27, 23, tzinfo=UTC)
    stamps = [(start + timedelta(hours=n)).astimezone(berlin) for n in range(24 * 8)]
    lines = [f"{stamp.isoformat()},{wave(n)}" for n, stamp in enumerate(stamps)]
    options = replace(SMALL, time="date", calendar=("hour",))
    data = load_series(csv(lines), options)
    assert data.codec.step == "3600 seconds"
    for n, stamp in enumerate(stamps):
        assert data.raw[n, 1] == pytest.approx(math.sin(2 * math.pi * stamp.hour / 24), abs=1e-9)
    # as local times without an offset the hour of spring is absent, unless the zone is named
    naive = csv([f"{stamp:%Y-%m-%d %H:%M},{wave(n)}" for n, stamp in enumerate(stamps)])
    refused("time 2020-03-29 03:00:00 follows 2020-03-29 01:00:00", load_series, naive, options)
    zoned = load_series(naive, replace(options, time_zone="Europe/Berlin"))
    assert torch.equal(zoned.raw, data.raw)
    # and times in UTC get the calendar of the zone
    utc = csv([f"{stamp.astimezone(UTC):%Y-%m-%dT%H:%MZ},{wave(n)}" for n, stamp in enumerate(stamps)])
    assert torch.equal(load_series(utc, replace(options, time_zone="Europe/Berlin")).raw, data.raw)
    assert not torch.equal(load_series(utc, options).raw, data.raw)


def test_hours_that_come_twice_and_hours_that_do_not_come(csv):
    berlin = ZoneInfo("Europe/Berlin")
    start = datetime(2020, 10, 24, 0, tzinfo=UTC)
    stamps = [(start + timedelta(minutes=30 * n)).astimezone(berlin) for n in range(96)]
    local = [stamp.replace(tzinfo=None, fold=0) for stamp in stamps]
    for order in (1, -1):
        found, wrong = localised(local[::order], berlin)
        assert [each.astimezone(UTC) for each in found] == [each.astimezone(UTC) for each in stamps[::order]]
        assert not wrong
    lines = [f"{stamp:%Y-%m-%d %H:%M},{wave(n)}" for n, stamp in enumerate(local)]
    options = replace(SMALL, time="date", time_zone="Europe/Berlin")
    assert load_series(csv(lines), options).codec.step == "1800 seconds"
    spring = [f"2020-03-29 0{hour}:00,{wave(hour)}" for hour in range(10)]
    refused(r":4: there is no such time in Europe/Berlin, where clocks went forward", load_series, csv(spring), options)
    days = [datetime(2020, 3, 1, tzinfo=berlin) + timedelta(days=n) for n in range(60)]
    daily = csv([f"{day.isoformat()},{wave(n)}" for n, day in enumerate(days)])
    assert load_series(daily, SMALL).codec.step == "1 days"
    refused("time_zone must be a name such as", SeriesOptions, time_zone="Europe/Berln")
    mixed = csv([f"{day:%Y-%m-%d}{'T00:00+01:00' if n < 3 else ''},{wave(n)}" for n, day in enumerate(DAYS)])
    refused("has an offset from UTC, and others have none", load_series, mixed, replace(SMALL, time="date"))


def test_iso_times_of_every_precision_and_other_forms(csv):
    forms = {
        "%Y-%m": "1 months", "%Y-%m-%d": "1 months", "%Y%m%d": "1 months", "%Y-%m-%dT%H:%M": "1 months",
    }  # fmt: skip
    for form, step in forms.items():
        data = load_series(csv([f"{stamp},{wave(n)}" for n, stamp in enumerate(months(90, form))]), SMALL)
        assert data.codec.step == step, form
    weeks = [f"2020-W{n + 1:02},{wave(n)}" for n in range(50)]
    assert load_series(csv(weeks), SMALL).codec.step == "604800 seconds"
    quarters = [f"{2000 + n // 4}-Q{n % 4 + 1},{wave(n)}" for n in range(60)]
    assert load_series(csv(quarters), SMALL).codec.step == "3 months"
    day_first = csv([f"{day:%d/%m/%Y},{wave(n)}" for n, day in enumerate(DAYS)])
    (problem,) = problems_of(load_series, day_first, replace(SMALL, time="date"))
    assert 'set time_format = "%d/%m/%Y"; so it is in 90 of the 90' in problem
    both = csv([f"0{n + 1}/02/2020,{wave(n)}" for n in range(9)], name="both.csv")
    assert 'time_format = "%d/%m/%Y" or time_format = "%m/%d/%Y"' in problems_of(
        load_series, both, replace(SMALL, past=1, horizon=1, time="date"))[0]  # fmt: skip
    formed = replace(SMALL, time="date", time_format="%d/%m/%Y")
    assert load_series(day_first, formed).codec.step == "86400 seconds"
    bad = csv([f"{day:%d/%m/%Y},{wave(n)}" for n, day in enumerate(DAYS[:40])] + ["31/02/2020,1"], name="bad.csv")
    refused("'31/02/2020' does not fit time_format", load_series, bad, formed)
    refused("time_format must be a format of strptime with a year", SeriesOptions, time_format="%H:%M")


# V4, V5: what a trained model remembers of its tables, and how it prints times


FORMS = {
    "semicolons and commas": (
        lambda n, day: f"{day:%d.%m.%Y};{1000 + 1000 * math.sin(n / 3):,.1f}".translate(str.maketrans(",.", ".,", ""))
        .replace(f"{day:%d,%m,%Y}", f"{day:%d.%m.%Y}"),
        "date;a",
        {"separator": ";", "decimal": ",", "thousands": ".", "time": "date", "time_format": "%d.%m.%Y"},
        ["31.03.2020", "01.04.2020"],
    ),
    "months": (lambda n, day: f"{months(100)[n]},{wave(n)}", "date,a", {}, ["1956-07", "1956-08"]),
    "gaps": (lambda n, day: f"{day:%Y-%m-%d},{'' if n % 9 == 5 else wave(n)}", "date,a", {"missing": "mask"},
             ["2020-03-31", "2020-04-01"]),
    "berlin": (
        lambda n, day: f"{(datetime(2020, 3, 25, 10, tzinfo=UTC) + timedelta(hours=n)).isoformat()},{wave(n)}",
        "date,a",
        {"time": "date", "calendar": ["hour"], "time_zone": "Europe/Berlin"},
        ["2020-03-29T06:00:00+02:00", "2020-03-29T07:00:00+02:00"],
    ),
    "numbers": (lambda n, day: f"{1700 + n},{wave(n)}", "year,a", {"time": "year"}, ["1790", "1791"]),
}  # fmt: skip


@pytest.mark.parametrize("name", FORMS)
def test_a_run_reads_tables_as_it_was_trained_and_prints_their_times(tmp_path, csv, name):
    line, header, options, times = FORMS[name]
    file = csv([line(n, day) for n, day in enumerate(DAYS)], header)
    run = load_run(run_of(tmp_path, file, **options))
    assert SeriesCodec.from_description(json.loads(json.dumps(run.codec.describe()))) == run.codec
    printed = [row.split(",") for row in generate_lines(run, [str(file)])]
    column = options.get("time", "date")
    assert printed[0] == ["lead", column, "a"]
    assert [row[1] for row in printed[1:3]] == times
    assert [row[0] for row in printed[1:]] == ["1", "2", "3"]
    scores = evaluate_run(run, file)
    assert math.isfinite(scores["free_running"]["nrmse"])
    assert ("notes" in scores) == (name == "gaps")
    backwards = csv([line(n, day) for n, day in enumerate(DAYS)][::-1], header, "back.csv")
    assert [row.split(",") for row in generate_lines(run, [str(backwards)])] == printed
    again = evaluate_run(run, backwards)
    assert again["free_running"] == scores["free_running"]
    assert again["notes"][0] == f"sorted by {column}, rows stood newest first: {backwards}"
    long = [row.split(",") for row in generate_lines(run, [str(file)], length=50)]
    assert len(long) == 51
    assert long[1:4] == printed[1:]


def test_a_newest_row_without_a_value_does_not_shift_the_leads(tmp_path, csv):
    rows = [f"{day:%Y-%m-%d},{wave(n)}" for n, day in enumerate(DAYS)]
    run = load_run(run_of(tmp_path, csv(rows)))
    printed = [row.split(",") for row in generate_lines(run, [str(csv(rows[:80]))])]
    late = [row.split(",") for row in generate_lines(run, [str(csv([*rows[:80], f"{DAYS[80]:%Y-%m-%d},"]))])]
    assert [row[:2] for row in late[1:]] == [
        ["0", "2020-03-21"], ["1", "2020-03-22"], ["2", "2020-03-23"], ["3", "2020-03-24"]
    ]  # fmt: skip
    assert [row[1:] for row in late[1:4]] == [row[1:] for row in printed[1:4]]
    (future,) = read_futures(run.codec, DataFile(csv([*rows[:80], f"{DAYS[80]:%Y-%m-%d},"])))
    assert (future.first, future.steps) == (0, 4)


def test_gaps_of_a_table_to_go_on_from_and_to_score(tmp_path, csv):
    rows = [f"{day:%Y-%m-%d},{wave(n)}" for n, day in enumerate(DAYS)]
    strict, loose = (load_series(csv(rows), replace(SMALL, missing=missing)).codec for missing in ("error", "mask"))
    holes = [*rows[:70], rows[70].split(",")[0] + ",", *rows[72:80]]
    file = csv(holes)
    past = read_past(file, loose).context["past"][0, :, 0]
    scaled = loose.normalise(torch.tensor([[float(wave(n))] for n in (74, 75, 76, 77, 78, 79)]))[:, 0]
    assert torch.allclose(past, scaled)
    assert read_past(csv(holes[:-5], name="y.csv"), loose).context["past"][0, :3, 0].unique().numel() == 1
    found = read_windows(loose, DataFile(file))
    batch = found.make(list(range(found.count)))
    assert int((~batch.present).sum()) == 6
    refused("is missing; the model needs it", read_windows, strict, DataFile(file))
    refused("follows 2020-03-11", read_windows, strict, DataFile(file))


def test_tables_of_a_model_that_takes_rows_as_they_come_are_sorted_too(csv):
    rows = [f"{day:%Y-%m-%d},{wave(n)}" for n, day in enumerate(DAYS) if n % 7]
    data = load_series(csv(rows), replace(SMALL, time="date", irregular="ignore"))
    assert data.codec.step is None
    there, back = csv(rows, name="there.csv"), csv(rows[::-1], name="back.csv")
    one, two = (read_past(file, data.codec).context["past"] for file in (there, back))
    assert torch.equal(one, two)
    one, two = (read_windows(data.codec, DataFile(file)).make([0, 1]).targets for file in (there, back))
    assert torch.equal(one, two)


def test_levels_are_forecast_with_their_times_to_any_length(tmp_path, csv):
    file = csv([f"{day:%Y-%m-%d},{wave(n)}" for n, day in enumerate(DAYS)])
    recipe = tmp_path / "levels.toml"
    recipe.write_text(
        f'[data]\nkind = "series"\npath = {json.dumps(str(file))}\npast = 6\nhorizon = 3\nlevels = 4\n[model]\n'
        'kind = "recurrent"\nsize = 4\n[method]\nname = "teacher_forcing"\n[train]\nupdates = 1\nbatch_size = 4\n'
        "evaluate_every = 1\nsave_every = 1\n"
    )
    run_recipe(load_recipe(recipe), tmp_path / "levels")
    printed = [row.split(",") for row in generate_lines(load_run(tmp_path / "levels"), [str(file)], length=4)]
    assert printed[0] == ["lead", "date", "level", "a"]
    assert [row[:2] for row in printed[1:]] == [
        [str(n + 1), f"2020-{['03-31', '04-01', '04-02', '04-03'][n]}"] for n in range(4)
    ]


def test_old_models_without_a_way_of_reading_are_read_as_before(csv):
    codec = load_series(csv([f"{day:%Y-%m-%d},{wave(n)}" for n, day in enumerate(DAYS)]), SMALL).codec
    description = codec.describe()
    assert "reading" not in description
    semicolons = csv([f"{day:%Y-%m-%d};{wave(n)}" for n, day in enumerate(DAYS)], "date;a")
    assert read_past(semicolons, SeriesCodec.from_description(description)).context["past"].shape == (1, 6, 1)


# V2, V14: words and frames, numbers as they are written


def test_decimal_commas_thousands_and_flags(csv):
    values = [1234.5 + 1000 * math.sin(n / 3) for n in range(60)]
    plain = load_series(csv([f"{value:.2f}" for value in values], "a"), SMALL)
    english = [f"{value:,.2f}" for value in values]
    german = [cell.translate(str.maketrans(",.", ".,")) for cell in english]
    file = csv([f"{n};{cell}" for n, cell in enumerate(german)], "n;a")
    options = replace(SMALL, separator=";", decimal=",", thousands=".")
    assert torch.equal(load_series(file, options).raw, plain.raw)
    (problem, *_) = problems_of(load_series, file, replace(options, thousands=None))
    assert 'set thousands = "." where a point groups digits' in problem
    file = csv([f'{n},"{cell}"' for n, cell in enumerate(english)], "n,a")
    assert torch.equal(load_series(file, replace(SMALL, thousands=",")).raw, plain.raw)
    (problem,) = problems_of(load_series, file, SMALL)
    assert "so it is in" in problem
    odd = csv([f'{n},"{cell if n != 8 else "1,23,4"}"' for n, cell in enumerate(english)], "n,a")
    refused("column 'a': '1,23,4' is not a number", load_series, odd, replace(SMALL, thousands=","))
    flags = [f"{wave(n)},{'True' if n % 4 else 'FALSE'}" for n in range(60)]
    data = load_series(csv(flags, "a,open"), replace(SMALL, covariates=("open",)))
    assert data.raw[:5, 1].tolist() == [0, 1, 1, 1, 0]
    refused("thousands and decimal are both", SeriesOptions, thousands=".")
    refused("thousands must be one character", SeriesOptions, thousands="..")


def test_frames_keep_their_names_times_and_series():
    import pandas as pd
    import polars as pl

    values = {"a": [math.sin(n / 3) for n in range(90)], "b": [math.cos(n / 4) for n in range(90)]}
    arrays = series_from_arrays(np.array(list(values.values())).T, SMALL, names=("a", "b"))
    index = pd.DatetimeIndex(DAYS)
    frames = [
        pl.DataFrame({"date": DAYS, **values}), pl.DataFrame(values), pl.DataFrame(values).lazy(), pd.DataFrame(values),
        pd.DataFrame(values, index=index), pd.DataFrame(values, index=index[::-1])[::-1].iloc[::-1],
        pd.DataFrame({"date": [str(day) for day in DAYS], "note": "x", **values}),
        pd.DataFrame({**values, "c": pd.array([None] * 90, dtype="Int64")}).drop(columns="c"),
    ]  # fmt: skip
    for number, frame in enumerate(frames):
        data = series_from_arrays(frame, SMALL)
        assert data.codec.names == ("a", "b"), number
        if number != 5:
            assert torch.equal(data.raw, arrays.raw), number
    assert series_from_arrays(frames[4], SMALL).codec.time == "time"
    upside = series_from_arrays(pd.DataFrame(values, index=index)[::-1], SMALL)
    assert torch.equal(upside.raw, arrays.raw)
    assert "sorted by time, rows stood newest first: arrays" in upside.header()
    one = series_from_arrays(pd.Series(values["a"], name="load"), SMALL)
    assert one.codec.names == ("load",)
    assert series_from_arrays(pl.Series("load", values["a"]), SMALL).codec.names == ("load",)
    long = pd.DataFrame({"who": ["A"] * 45 + ["B"] * 45, **values})
    assert len(series_from_arrays(long, replace(SMALL, series="who")).segments["train"]) == 2
    assert len(series_from_arrays([frames[1][:45], frames[1][45:]], SMALL).segments["train"]) == 2
    gaps = pd.DataFrame({"a": pd.array([None if n == 50 else n % 7 for n in range(90)], dtype="Int64")})
    refused("arrays, row 51, column 'a': is missing", series_from_arrays, gaps, SMALL)
    months_ = pd.DataFrame(values, index=pd.period_range("2000-01", periods=90, freq="M"))
    assert series_from_arrays(months_, SMALL).codec.step == "1 months"
    refused("names has no effect on frames", series_from_arrays, frames[1], SMALL, names=("x", "y"))
    refused("arrays and frames are mixed", series_from_arrays, [frames[1], np.zeros((90, 2))], SMALL)
    double = pd.DataFrame(np.zeros((90, 2)), columns=["a", "a"])
    refused("columns are there more than once: a", series_from_arrays, double, SMALL)


# what else reads values: levels, diagnoses, checks, batches of one's own


def gappy(rows: int = 160) -> np.ndarray:
    raw = np.sin(np.arange(rows)[:, None] * [0.3, 0.5])
    raw[20:22, 0] = raw[rows - 15, 1] = np.nan
    return raw


def test_levels_refuse_gaps_whose_fillings_would_be_scored():
    from freerun.data.symbols import quantised

    data = series_from_arrays(gappy()[:, :1], replace(SMALL, missing="last"))
    refused("levels are of values that are there, and 2 of the series are missing", quantised, data, 5)


def test_diagnoses_are_of_complete_windows():
    data = series_from_arrays(gappy(), replace(SMALL, missing="mask"))
    torch.manual_seed(0)
    model = fr.models.make_model("recurrent_forecaster", values=2, covariates=0, observed=0, size=4)
    task = SeriesTask(data)
    name, batches, about = task.diagnosis_input(model, data.codec, task.settings, data, None)
    assert name.endswith(f"{data.windows('test') - 3} of {data.windows('test')} windows, in which no value is missing")
    assert len(about.long_series) == max(160 - 15 - 128, 14)
    assert about.long_series.isfinite().all()
    assert diagnose(model, batches, about).windows == data.windows("test") - 3
    every = data.window_batch("test", list(range(data.windows("test"))))
    refused("gold is missing at 3 positions", diagnose, model, every)


def test_checks_and_batches_of_ones_own_take_missing_values():
    data = series_from_arrays(gappy(), replace(SMALL, missing="mask"))
    torch.manual_seed(0)
    model = fr.models.make_model("recurrent_forecaster", values=2, covariates=0, observed=0, size=4)
    batch = data.window_batch("train", list(range(10, 20)))
    assert batch.present is not None
    assert not fr.check_model(model, batch).refused
    scores = fr.evaluate(model, [batch])
    gold, free = batch.targets.double(), fr.generate(model, batch, length=3, draw="point").entries.double()
    there = ~gold.isnan()
    scale = [gold.flatten(0, 1)[there.flatten(0, 1)[:, v], v].std(correction=0) for v in range(2)]
    far = ((free - gold) / torch.stack(scale)).square()
    expected = float((far.masked_fill(~there, 0).sum(-1) / there.sum(-1))[batch.mask].mean())
    assert scores.free_running["mse"] == pytest.approx(expected, rel=1e-5)


def test_a_step_in_words():
    steps = ["1 months", "86400 seconds", "900 seconds", "90 seconds", "3 months", "0.5 units"]
    assert [Step.parse(text).words for text in steps] == [
        "month", "day", "15 minutes", "90 seconds", "3 months", "0.5 units",
    ]  # fmt: skip
