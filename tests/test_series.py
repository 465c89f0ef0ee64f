"""Time series: protocol, layouts, what must not leak, and each kind of bad data with the line it is in."""

import itertools
import json
import math
import sys
from dataclasses import replace
from datetime import datetime, timedelta

import numpy as np
import pytest
import torch

from builders import problems_of, refused, write_csv
from freerun.data import SeriesCodec, SeriesOptions, load_series, read_past, series_from_arrays
from freerun.data.series.building import fill_gaps
from freerun.data.series.time_stamps import Step, calendar_columns, step_between

WIDE = SeriesOptions(
    past=5, horizon=3, split=(60, 20, 20), targets=("a", "b"), observed=("o",), covariates=("c",), period=4
)
NAMES = ("c", "a", "o", "b")


def wave(rows=100, width=4, seed=0):
    t = np.arange(rows)[:, None]
    return np.sin(t * (0.1 + 0.05 * np.arange(width)) + seed) * (1 + np.arange(width)) + 10 * np.arange(width)


def test_windows_equal_a_naive_loop():
    """All windows of all splits, entry by entry, from the arrays and the definition."""
    raw = wave()
    data = series_from_arrays(raw, WIDE, names=NAMES)
    ordered = raw[:, [1, 3, 2, 0]]
    scaled = (ordered - ordered[:60].mean(0)) / ordered[:60].std(0)
    for split, begin, end, count in (("train", 0, 60, 53), ("dev", 60, 80, 18), ("test", 80, 100, 18)):
        first = begin if split == "train" else begin - 5
        expected = torch.tensor(np.array([scaled[start : start + 8] for start in range(first, end - 7)])).float()
        assert data.windows(split) == len(expected) == count
        batch = data.window_batch(split, list(range(count)))
        assert torch.equal(batch.context["past"], expected[:, :5])
        assert torch.equal(batch.context["future"], expected[:, 5:, 3:])
        assert torch.equal(batch.targets, expected[:, 5:, :2])
        assert torch.equal(batch.history, batch.targets)
        assert batch.mask.all()
        assert batch.eligible is None
    assert data.lengths == [3] * 53
    assert (data.codec.values, data.codec.covariates, data.codec.observed, data.codec.period) == (2, 1, 1, 4)
    assert data.codec.names == ("a", "b")


def test_covariates_at_a_position_are_those_of_the_step_predicted_there():
    """The covariate is the target, so that they must be equal, position by position, in both layouts."""
    values = np.random.default_rng(0).normal(size=(100, 1)).repeat(2, axis=1)
    options = SeriesOptions(past=5, horizon=3, targets=("a",), covariates=("c",))
    for layout, time in (("past", 3), ("sequence", 8)):
        data = series_from_arrays(values, options, layout, names=("a", "c"))
        batch = data.batch([0, 3, 9])
        assert batch.context["future"].shape == (3, time, 1)
        assert torch.equal(batch.context["future"], batch.targets)


def test_sequence_layout():
    options = SeriesOptions(past=5, horizon=3)
    data = series_from_arrays(wave(width=2), options, "sequence")
    batch = data.batch([0, 2], rows=torch.tensor([7, 9]))
    assert batch.targets.shape == (2, 8, 2)
    assert torch.equal(batch.targets, batch.history)
    assert batch.mask.tolist() == batch.eligible.tolist() == [[False] * 5 + [True] * 3] * 2
    assert {name: part.tolist() for name, part in batch.context.items()} == {"known": [5, 5]}
    assert (batch.rows.tolist(), set(data.lengths)) == ([7, 9], {8})
    warm = series_from_arrays(wave(width=2), replace(options, warmup_loss=True), "sequence")
    assert warm.batch([0]).mask.tolist() == [[False] + [True] * 7]
    assert warm.batch([0]).eligible.tolist() == [[False] * 5 + [True] * 3]
    assert warm.window_batch("train", [0]).mask.tolist() == [[False] * 5 + [True] * 3]
    assert warm.fingerprint != data.fingerprint


def test_strides():
    data = series_from_arrays(wave(), SeriesOptions(past=5, horizon=3, stride=4, evaluation_stride=3))
    assert data.starts["train"].diff().unique().tolist() == [4]
    assert data.starts["test"].diff().unique().tolist() == [3]
    assert int(data.starts["test"][0]) == 75


def test_several_series_are_split_each_and_no_window_crosses_from_one_to_the_next():
    data = series_from_arrays([wave(100), wave(60, seed=1)], SeriesOptions(past=5, horizon=3, split=(0.5, 0.25, 0.25)))
    assert [(part.begin, part.end) for part in data.segments["train"]] == [(0, 50), (100, 130)]
    assert [(part.begin, part.end) for part in data.segments["test"]] == [(75, 100), (145, 160)]
    for starts in data.starts.values():
        assert all((start < 100) == (start + 7 < 100) for start in starts.tolist())
    assert data.free("test").shape == (25, 4)
    raw = torch.cat([data.raw[:50], data.raw[100:130]])
    torch.testing.assert_close(data.scales[0], raw.mean(0))
    assert any("series: 2" in line for line in data.header())


def test_the_protocol_of_etth1(tmp_path):
    """Informer: 8,640, 2,880 and 2,880 rows; 2,857 test windows at a horizon of 24, 2,161 at 720; the rest unused."""
    numbers = np.random.default_rng(0).normal(size=(17420, 2))
    lines = [f"{stamp},{one:.3f},{two:.3f}" for stamp, (one, two) in zip(hours(17420), numbers, strict=True)]
    file = tmp_path / "hours.csv"
    file.write_text("\n".join(["date,HUFL,OT", *lines, ""]))
    options = SeriesOptions(past=96, horizon=24, split=(8640, 2880, 2880), time="date", targets=("OT",))
    data = load_series(file, options)
    assert (data.windows("train"), data.windows("dev"), data.windows("test")) == (8640 - 119, 2857, 2857)
    assert load_series(file, replace(options, horizon=720)).windows("test") == 2161
    train = data.raw[:8640, 0]
    torch.testing.assert_close(data.scales[0][0], train.mean())
    torch.testing.assert_close(data.scales[1][0], train.std(correction=0))
    targets, scaled = data.window_batch("test", [0, 2856]).targets, data.codec.normalise(data.raw)
    assert torch.equal(targets[0, 0], scaled[8640 + 2880])
    assert torch.equal(targets[1, -1], scaled[8640 + 2 * 2880 - 1])


@pytest.mark.parametrize("missing", ["error", "last", "linear"])
def test_test_rows_change_nothing_of_training_and_of_normalisation(missing):
    """Bit for bit; with gaps on both sides of the border too."""
    raw, other = wave(), wave()
    other[80:] = 1e6 + np.random.default_rng(1).normal(size=(20, 4))
    if missing != "error":
        for values in (raw, other):
            values[57:62, 1] = values[78:82, 3] = values[10:12, 0] = np.nan
    options = replace(WIDE, missing=missing)
    one, two = (series_from_arrays(values, options, names=NAMES) for values in (raw, other))
    assert torch.equal(torch.stack(one.scales), torch.stack(two.scales))
    for split in ("train", "dev"):
        first, second = (each.window_batch(split, list(range(one.windows(split)))) for each in (one, two))
        assert torch.equal(first.targets.nan_to_num(99), second.targets.nan_to_num(99))
        assert all(torch.equal(first.context[part], second.context[part]) for part in ("past", "future"))
    assert one.fingerprint != two.fingerprint


def test_last_is_a_naive_loop_and_linear_stays_within_its_split():
    rng = np.random.default_rng(3)
    values = rng.normal(size=(60, 3))
    values[rng.random((60, 3)) < 0.4] = np.nan
    values[0] = 1.0
    filled = values.copy()
    for row, column in itertools.product(range(1, 60), range(3)):
        if math.isnan(filled[row, column]):
            filled[row, column] = filled[row - 1, column]
    got, counts, wrong = fill_gaps(values, [0, 30, 45, 60], "last")
    assert np.array_equal(got, filled)
    assert counts == np.isnan(values).sum(0).tolist()
    assert not any(mask.any() for mask, _ in wrong)
    linear, _, _ = fill_gaps(values, [0, 30, 45, 60], "linear")
    for begin, end in ((0, 30), (30, 45), (45, 60)):
        outside = np.where(np.arange(60) < begin, 99.0, -99.0)[:, None].repeat(3, 1)
        inside = ((np.arange(60) >= begin) & (np.arange(60) < end))[:, None]
        changed = np.where(inside | np.isnan(values), values, outside)
        known = np.maximum.accumulate(~np.isnan(values[begin:end]), axis=0)
        # but for what a split begins with, which the value before it fills, nothing outside counts
        part = fill_gaps(changed, [0, 30, 45, 60], "linear")[0][begin:end]
        assert np.array_equal(part[known], linear[begin:end][known])
    assert fill_gaps(np.array([[0.0], [np.nan], [np.nan], [3.0]]), [0, 4], "linear")[0][:, 0].tolist() == [0, 1, 2, 3]


def test_fills_are_counted_in_the_header():
    raw = wave()
    raw[10:13, 1] = raw[40, 3] = np.nan
    lines = series_from_arrays(raw, replace(WIDE, missing="last"), names=NAMES).header()
    assert 'filled, missing = "last": 3 of a, 1 of b' in lines


def test_gaps_are_an_error_naming_row_and_column_and_infinity_always_is():
    raw = wave()
    raw[11, 1], raw[70, 0], raw[99, 3] = np.nan, np.inf, np.nan
    missing = 'is missing; give a number, or set missing = "mask", "last" or "linear"'
    assert problems_of(series_from_arrays, raw, WIDE, names=NAMES) == [
        f"arrays: row 12, column 'a': {missing}",
        "arrays: row 71, column 'c': is infinite; give a number",
        f"arrays: row 100, column 'b': {missing}",
    ]
    raw[0, 2] = np.nan
    assert problems_of(series_from_arrays, raw, replace(WIDE, missing="last"), names=NAMES) == [
        "arrays: row 1, column 'o': is missing, and so is all before it: there is nothing to fill it from; cut these "
        'rows, or set missing = "mask"',
        "arrays: row 71, column 'c': is infinite; give a number",
    ]


def test_bad_options_are_reported_at_once():
    problems = refused(
        ("past must", "horizon must", "shares must", "column 'x' is named 2 times, as targets, covariates",
         "missing must be one of", "calendar must be one of", "name their column", "period must"),
        SeriesOptions, past=0, horizon=1.5, split=(0.9, 0.2, 0.1), targets=("x", "y"), covariates=("x",),
        missing="mean", calendar=("hour", "moon"), period=0,
    )  # fmt: skip
    assert len(problems) == 8


def test_other_bad_input():
    assert problems_of(series_from_arrays, np.ones((50, 2))) == [
        f"arrays: column 'x{number}' is constant in the training rows: 1 in all 35; leave it out" for number in (1, 2)
    ]
    long, unknown = SeriesOptions(past=40, horizon=24), replace(WIDE, covariates=("C",))
    for message, values, options, *more in (
        ("the train split has no window: its longest piece is 42 rows, and a window needs past + horizon = 64",
         wave(60), long),
        ("the dev split has no window: its longest piece is 10 rows", wave(), replace(long, past=4)),
        ("arrays: has 100 rows, and split takes 120; take fewer", wave(), SeriesOptions(split=(80, 20, 20))),
        ("arrays: covariates: there is no column 'C'; did you mean 'c'? There are: c, a, o, b", wave(), unknown),
        ('layout "sequence" cannot hold observed channels (o)', wave(), WIDE, "sequence"),
        ("layout must be one of past, sequence; got 'flat'", wave(), None, "flat"),
        ("got shape (3, 2, 2)", np.zeros((3, 2, 2)), None),
    ):  # fmt: skip
        names = {"names": NAMES} if options in (WIDE, unknown) else {}
        problems = refused((message,), series_from_arrays, values, options, *more, **names)
        assert len(problems) == 1 or "no window" in message
    data = series_from_arrays(wave(), WIDE, names=NAMES)
    assert problems_of(data.window_batch, "valid", [0]) == ["split must be one of train, dev, test; got 'valid'"]


@pytest.fixture
def csv(tmp_path):
    return lambda rows, header="date,load,plan", name="load.csv": write_csv(tmp_path / name, rows, header)


def hours(count, begin=datetime(2020, 1, 1), every=1):
    return [str(begin + timedelta(hours=every * number)) for number in range(count)]


def good(count=60):
    return [f"{stamp},{math.sin(n):.4f},{n % 7}" for n, stamp in enumerate(hours(count))]


HOURLY = SeriesOptions(past=6, horizon=4, split=(36, 12, 12), targets=("load",), covariates=("plan",), time="date")


def test_csv_and_parquet_and_arrays_are_the_same(csv, tmp_path):
    import polars as pl

    file, parquet = csv(good()), tmp_path / "load.parquet"
    pl.read_csv(file, try_parse_dates=True).write_parquet(parquet)
    data, again = load_series(file, HOURLY), load_series(parquet, HOURLY)
    assert torch.equal(data.raw, again.raw)
    assert (data.fingerprint, data.codec) == (again.fingerprint, again.codec)
    assert data.codec.step == "3600 seconds"
    values = np.array([[float(cell) for cell in row.split(",")[1:]] for row in good()])
    arrays = series_from_arrays(values, replace(HOURLY, time=None), names=("load", "plan"))
    assert torch.equal(arrays.batch([3]).targets, data.batch([3]).targets)
    assert data.header()[1:] == [
        "train: 36 rows, 27 windows of 6 + 4",
        "dev: 12 rows, 9 windows of 6 + 4",
        "test: 12 rows, 9 windows of 6 + 4",
        "targets: load",
        "covariates: plan",
        "normalisation: mean and deviation of the training rows",
        "one row every hour",
    ]


def test_targets_are_all_columns_of_numbers_by_default(csv):
    rows = [f"{stamp},{math.sin(n)},{math.cos(n)},word" for n, stamp in enumerate(hours(60))]
    data = load_series(csv(rows, "date,a,b,note"), SeriesOptions(past=4, horizon=2))
    assert data.codec.names == ("a", "b")


def test_every_bad_cell_is_named_by_line_and_column(csv):
    rows = good()
    for at, cells in ((4, ",1.5x,3"), (9, ",,3"), (20, ",0.5,inf")):
        rows[at] = rows[at].split(",")[0] + cells
    rows[30] = "soon,0.5,2"
    file = csv(rows)
    assert problems_of(load_series, file, HOURLY) == [
        f"{file}:6, column 'load': '1.5x' is not a number",
        f"{file}:32, column 'date': 'soon' is no ISO time; write it as 2020-12-31 23:00:00, or set time_format",
        f'{file}:11, column \'load\': is missing; give a number, or set missing = "mask", "last" or "linear"',
        f"{file}:22, column 'plan': is infinite; give a number",
    ]


@pytest.mark.parametrize("mark", ["-", "?", ".", "--", "*", "#N/A", "nil", "NULL", "n/a", "NA"])
def test_a_mark_of_a_missing_value_names_the_remedy(csv, mark):
    rows = good()
    rows[4] = rows[4].split(",")[0] + f",{mark},3"
    (text,) = problems_of(load_series, csv(rows), HOURLY)
    assert "load.csv:6, column 'load': " in text
    assert 'missing = "mask", "last" or "linear"' in text
    assert ("leave the cell empty" in text) == (mark not in ("NULL", "n/a", "NA"))  # these are read as empty
    # it stays an error where missing cells are read
    found = problems_of(load_series, csv(rows), replace(HOURLY, missing="last")) if "leave" in text else []
    assert len(found) == ("leave" in text)


def test_cells_that_are_missing_in_one_row_or_in_the_same_rows_are_one_line(csv):
    names, rows = "abcdefghij", [f"{stamp}," + ",".join(str(n * k % 7) for k in range(2, 12)) for n, stamp in
                                 enumerate(hours(60))]  # fmt: skip
    for at in (10, 15):
        rows[at] = rows[at].split(",")[0] + 10 * ","
    rows[20] = rows[20].split(",")[0] + ",," + ",".join("123456789"[:9])
    file = csv(rows, "date," + ",".join(names))
    each = "each of columns " + ", ".join(map(repr, names))
    remedy = 'is missing; give a number, or set missing = "mask", "last" or "linear"'
    options = SeriesOptions(past=6, horizon=4, time="date")
    assert problems_of(load_series, file, options) == [
        f"{file}:12, {each}: {remedy}",
        f"{file}:17, {each}: {remedy}",
        f"{file}:22, column 'a': {remedy}",
    ]
    for at in range(10, 17):
        rows[at] = rows[at].split(",")[0] + 10 * ","
    found = problems_of(load_series, csv(rows, "date," + ",".join(names)), options)
    assert found == [
        f"{file}:12, column 'a': {remedy}; so it is in 8 of the 60 cells of the column",
        f"{file}:12, {each.replace(repr('a') + ', ', '')}: {remedy}; so it is in 7 of the 60 cells of the column",
    ]


def test_blank_lines_are_no_rows_and_do_not_shift_the_lines(csv):
    rows = good()
    data = load_series(csv([*rows[:10], "", "", *rows[10:], "", ""]), HOURLY)
    assert torch.equal(data.raw, load_series(csv(rows), HOURLY).raw)
    rows[20] = rows[20].split(",")[0] + ",x,1"
    (text,) = problems_of(load_series, csv([*rows[:10], "", *rows[10:]]), HOURLY)
    assert "load.csv:23, column 'load': 'x' is not a number" in text
    column = csv([f"{math.sin(n)}" if n != 8 else "" for n in range(60)], "load", name="one.csv")
    (text,) = problems_of(load_series, column, SeriesOptions(past=4, horizon=2))
    assert "one.csv:10, column 'load': is missing" in text


def test_time_stamps_that_are_doubled_unsorted_or_uneven(csv):
    stamps, rows = hours(60), good()
    rows[5] = rows[5].replace(stamps[5], stamps[4])
    file = csv(rows)
    twice, follows, *_ = problems_of(load_series, file, HOURLY)
    advice = ', or set missing = "mask", which puts absent rows in, or irregular = "ignore"'
    assert twice == f"{file}:7: time {stamps[4]} stands twice; keep one of the rows{advice}"
    assert f"{file}:8: time {stamps[6]} follows {stamps[4]}, and rows come every hour" in follows
    load_series(file, replace(HOURLY, irregular="ignore"))
    rows = good()
    expected = load_series(csv(rows), HOURLY)
    rows[10], rows[11] = rows[11], rows[10]
    data = load_series(csv(rows), HOURLY)
    assert torch.equal(data.raw, expected.raw)
    assert data.header()[-1].startswith("sorted by date, rows stood in no order of time: ")
    rows = good(61)
    del rows[10]
    gap = "load.csv:12: time 2020-01-01 11:00:00 follows 2020-01-01 09:00:00"
    assert len(refused(gap, load_series, csv(rows), HOURLY)) == 1


def test_months_and_numbers_are_evenly_spaced_too(csv):
    months = [datetime(2000 + n // 12, n % 12 + 1, 28).date() for n in range(60)]
    ends = [(datetime(2000 + (n + 1) // 12, (n + 1) % 12 + 1, 1) - timedelta(days=1)).date() for n in range(60)]
    units = [0.1 * n for n in range(60)]
    for stamps, step in ((months, "1 months"), (ends, "1 month-ends"), (units, "0.1 units")):
        rows = [f"{stamp},{math.sin(n)},{n % 7}" for n, stamp in enumerate(stamps)]
        assert load_series(csv(rows), HOURLY).codec.step == step
    assert Step.parse("2 months").after(datetime(2019, 12, 28)) == datetime(2020, 2, 28)
    assert step_between([datetime(2020, 1, 1, h) for h in (0, 1, 2, 4)]) == Step(3600.0, "seconds")


def test_several_series_in_a_file_and_in_several_files(csv):
    north, south = ([f"{s},{math.sin(n + shift):.4f},{n % 7}" for n, s in enumerate(hours(60))] for shift in (0, 1))
    rows = [f"{row},{name}" for pair in zip(north, south, strict=True) for row, name in zip(pair, "NS", strict=True)]
    file = csv(rows, "date,load,plan,place")
    data = load_series(file, replace(HOURLY, series="place"))
    assert len(data.segments["train"]) == 2
    assert data.windows("train") == 2 * 27
    apart = load_series([csv(north, name="north.csv"), csv(south, name="south.csv")], HOURLY)
    assert torch.equal(apart.raw, data.raw)
    bad = csv([f"{s},1,2" for s in hours(30, every=2)], "date,load,other", name="bad.csv")
    assert len(refused(f"^{bad}: has no column 'plan', which {file} has", load_series, [file, bad], HOURLY)) == 1
    slow = csv([f"{s},{n % 5},{n % 3}" for n, s in enumerate(hours(60, every=2))], name="slow.csv")
    steps = "series have rows of different steps"
    assert len(refused(steps, load_series, [csv(north, name="n.csv"), slow], HOURLY)) == 1


def test_files_that_cannot_be_read(csv, tmp_path):
    rows = good()
    rows[7] += ",9"
    assert problems_of(load_series, csv(rows), HOURLY) == [
        f"{tmp_path}/load.csv:9: has 4 cells, and the first line names 3 columns; take out what is too much, or put a "
        "cell that holds a separator in quotes"
    ]
    (tmp_path / "empty.csv").write_text("")
    (tmp_path / "latin.csv").write_bytes(b"date,load,plan\n2020-01-01,1,caf\xe9\n")
    (tmp_path / "p.parquet").write_bytes(b"no")
    for name, message in (
        ("none.csv", "no such file"), ("empty.csv", "empty"), ("latin.csv", "latin.csv:2: not UTF-8"),
        ("p.parquet", "cannot be read as Parquet"),
    ):  # fmt: skip
        refused(message, load_series, tmp_path / name, HOURLY)
    refused(r"is the separator ',' right\?", load_series, csv(["1;2"], "a;b"), SeriesOptions())
    tabs = r"2: has 1 cell, and the first line names 2 columns; where '\\t' is between the columns, set separator ="
    refused(tabs, load_series, csv(["2001\t7"], "year\tprice, EUR"), SeriesOptions())
    refused("more than once", load_series, csv(["1,2"], "a,a"), SeriesOptions())
    refused("has no rows", load_series, csv([]), SeriesOptions())


def test_polars_that_is_missing_is_named_with_its_extra(csv, monkeypatch):
    monkeypatch.setitem(sys.modules, "polars", None)
    needs = ["reading series needs polars: pip install 'freerun[series]'"]
    assert problems_of(load_series, csv(good()), HOURLY) == needs


def test_calendar_covariates(csv):
    options = replace(HOURLY, calendar=("hour", "weekday"))
    data = load_series(csv(good()), options)
    assert data.codec.covariates == 5
    assert data.codec.channels == ("load", "plan", "hour_sin", "hour_cos", "weekday_sin", "weekday_cos")
    for position, future in enumerate(data.batch([5]).context["future"][0]):
        stamp = datetime(2020, 1, 1) + timedelta(hours=5 + 6 + position)
        day, week = 2 * math.pi * stamp.hour / 24, 2 * math.pi * stamp.weekday() / 7
        expected = [math.sin(day), math.cos(day), math.sin(week), math.cos(week)]
        assert future[1:].tolist() == pytest.approx(expected, abs=1e-6)
    rows = [f"{n},{math.sin(n)},{n % 7}" for n in range(60)]
    refused("calendar covariates need dates", load_series, csv(rows), options)
    begin = calendar_columns(["minute", "hour", "weekday", "monthday", "yearday", "month"], [datetime(2024, 1, 1)])
    assert begin.tolist() == [[0.0, 1.0] * 6]  # cycles begin at their beginning


@pytest.mark.parametrize("layout", ["past", "sequence"])
def test_a_batch_of_raw_rows_is_the_window_but_for_what_is_to_be_predicted(layout):
    options = replace(WIDE, targets=("a", "b", "o"), observed=())
    data = series_from_arrays(wave(), options, layout, names=NAMES)
    expected, start = data.window_batch("test", [4]), int(data.starts["test"][4])
    rows = data.raw[start : start + 8]
    # a longer past than needed: the last rows are used
    past = data.raw[start - 7 : start + 5]
    got = data.codec.past_batch(past, rows[5:, 3:])
    for name, part in expected.context.items():
        assert torch.equal(got.context[name], part), name
    assert torch.equal(got.mask, expected.mask)
    assert torch.equal(got.replaceable, expected.replaceable)
    assert torch.equal(got.history, expected.history.masked_fill(expected.replaceable[..., None], 0))
    assert data.codec.past_batch(past, torch.zeros(9, 1), horizon=9).time == expected.time + 6
    several = data.codec.past_batch(past.repeat(2, 1, 1), rows[5:, 3:].repeat(2, 1, 1))
    assert torch.equal(several.history[1], got.history[0])


def test_bad_rows_to_generate_from():
    codec = series_from_arrays(wave(), WIDE, names=NAMES).codec
    past = torch.tensor(wave()[:5])
    missing = ["covariates are missing: the model needs c of the 3 steps to come as well"]
    assert problems_of(codec.past_batch, past) == missing
    refused(r"got \(2, 1\)", codec.past_batch, past, torch.zeros(2, 1))
    past[1, 2] = math.nan
    assert problems_of(codec.past_batch, past[:, :3], torch.full((3, 1), math.inf)) == [
        "past: rows must be (rows, 4): a, b, o, c; got (5, 3)",
        *(f"past: future: row {row}, c: got inf, expected a number" for row in (1, 2, 3)),
    ]
    refused("past: row 2, o: got nan, expected a number", codec.past_batch, past, torch.zeros(3, 1))
    refused("needs 5 rows of the past; got 2", codec.past_batch, past[2:4], torch.zeros(3, 1))


def test_codecs_come_back_from_json(csv):
    codec = load_series(csv(good()), replace(HOURLY, calendar=("hour",))).codec
    assert SeriesCodec.from_description(json.loads(json.dumps(codec.describe()))) == codec
    refused("expected the description of series data", SeriesCodec.from_description, {"kind": "text"})


def test_recent_rows_of_a_file(csv):
    """Past and future rows of the test split, written out, give that window."""
    data = load_series(csv(good()), replace(HOURLY, calendar=("hour",)))
    expected, start = data.window_batch("test", [2]), int(data.starts["test"][2])
    rows = good()[start - 3 : start + 10]
    rows[-4:] = [",".join([row.split(",")[0], "", row.split(",")[2]]) for row in rows[-4:]]
    batch = read_past(csv(rows, name="recent.csv"), data.codec)
    assert torch.equal(batch.context["past"], expected.context["past"])
    assert torch.equal(batch.context["future"], expected.context["future"])
    file = csv(rows[:-2], name="few.csv")
    assert problems_of(read_past, file, data.codec, horizon=4) == [
        f"{file}: covariates are missing: plan of 4 steps to come are needed, in rows whose other columns are empty; "
        "got 2 such rows"
    ]
    assert read_past(file, data.codec).targets.shape[1] == 2
    rows[4] = rows[4].split(",")[0] + ",,1"
    for plan, problem in (
        ("no", ":12, column 'plan': 'no' is not a number"), ("3", ":6, column 'load': is missing; the model needs it"),
    ):  # fmt: skip
        rows[-3] = rows[-3].rsplit(",", 1)[0] + f",{plan}"
        file = csv(rows, name="bad.csv")
        assert problems_of(read_past, file, data.codec) == [f"{file}{problem}"]


def test_the_calendar_goes_on_by_itself(csv):
    data = load_series(csv(good()), replace(HOURLY, covariates=(), calendar=("hour",)))
    expected, start = data.window_batch("test", [2]), int(data.starts["test"][2])
    batch = read_past(csv(good()[start : start + 6], name="recent.csv"), data.codec)
    assert torch.equal(batch.context["future"], expected.context["future"])
