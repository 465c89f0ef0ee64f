"""Files as people have them: newest rows first, several series in one table, no names of columns, decimal commas."""

import math
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
import torch

from builders import problems_of, refused, write_csv
from freerun.data import SeriesCodec, SeriesOptions, load_series, read_past, series_from_arrays
from freerun.data.files import DataFile
from freerun.data.records import read_rows
from freerun.data.series.inference import read_windows
from freerun.data.series.time_stamps import step_between
from freerun.errors import UserError

HOURLY = SeriesOptions(past=6, horizon=4, time="date")
STAMPS = [datetime(2020, 1, 1) + timedelta(hours=hour) for hour in range(80)]


def rows(count: int = 80) -> list[str]:
    return [f"{stamp},{math.sin(n / 3):.4f},{math.cos(n / 5):.4f}" for n, stamp in enumerate(STAMPS[:count])]


@pytest.fixture
def csv(tmp_path):
    return lambda lines, header="date,a,b", name="x.csv", encoding="utf-8": write_csv(
        tmp_path / name, lines, header, encoding
    )


def windows_of(codec, path):
    return read_windows(codec, DataFile(Path(path)))


def test_rows_with_the_newest_first_are_sorted_everywhere(csv):
    """Evenly spaced as they are, a model of them would forecast the past from the future."""
    file, good = csv(rows()[::-1]), csv(rows(), name="good.csv")
    expected, data = (load_series(each, HOURLY) for each in (good, file))
    assert torch.equal(data.raw, expected.raw)
    assert data.header()[-1] == f"sorted by date, rows stood newest first: {file}"
    ones, others = (windows_of(data.codec, each).make([0, 5]) for each in (good, file))
    assert torch.equal(ones.targets, others.targets)
    assert torch.equal(ones.context["past"], others.context["past"])
    past = [read_past(each, data.codec).context["past"] for each in (good, file)]
    assert torch.equal(*past)
    numbers = csv([f"{-n},{math.sin(n)},{math.cos(n)}" for n in range(80)], name="numbers.csv")
    assert load_series(numbers, HOURLY).raw[-1, 0] == 0


def test_time_that_stands_still_is_no_step(csv):
    file = csv([f"{STAMPS[0]}{row[len(str(STAMPS[0])) :]}" for row in rows()])
    (before,) = problems_of(load_series, file, HOURLY)
    assert "79 time stamps came before in the file" in before
    (twice,) = problems_of(load_series, csv([*rows()[:40], rows()[39], *rows()[40:]]), HOURLY)
    assert f"{file}:42: time {STAMPS[39]} stands twice" in twice
    assert step_between([1.0, 1.0]) is step_between([STAMPS[1], STAMPS[0]]) is None
    assert str(step_between([STAMPS[0], STAMPS[0], STAMPS[1], STAMPS[1]])) == "3600 seconds"


@pytest.mark.parametrize("between", [True, False])
def test_several_series_that_nobody_named_are_refused(csv, between):
    pairs = [f"{row},{name}" for row in rows(40) for name in "AB"]
    file = csv(pairs if between else [*pairs[::2], *pairs[1::2]], "date,a,b,who")
    message = "40 time stamps came before in the file; where it holds several series, set series = 'who', which holds 2"
    refused(message, load_series, file, HOURLY)
    assert len(load_series(file, replace(HOURLY, series="who")).segments["train"]) == 2


def test_numbers_may_name_series_and_no_column_alone(csv):
    pairs = [f"{row},{shop},{item}" for row in rows(40) for shop in (3, 5) for item in "AB"]
    refused("no column alone does: join several to one", load_series, csv(pairs, "date,a,b,shop,item"), HOURLY)
    refused("set series = 'shop', which holds 2 names", load_series, csv(pairs[::2], "date,a,b,shop,item"), HOURLY)


def test_no_window_of_a_scored_file_lies_in_two_series(csv):
    lines = [f"{row},{name}" for row, name in zip([*rows(50), *rows(30)], "A" * 50 + "B" * 30, strict=True)]
    file, one = csv(lines, "date,a,b,who"), csv(rows(50), name="one.csv")
    codec = load_series(file, replace(HOURLY, series="who")).codec
    assert SeriesCodec.from_description(codec.describe()) == codec
    mixed = [line for pair in zip(lines[:30], lines[50:], strict=True) for line in pair] + lines[30:50]
    found = windows_of(codec, csv(mixed, "date,a,b,who", "mixed.csv"))
    assert found.count == (50 - 9) + (30 - 9)
    batch, other = (each.make(list(range(41))) for each in (found, windows_of(replace(codec, series=None), one)))
    assert torch.equal(batch.targets, other.targets)
    assert torch.equal(batch.context["past"], other.context["past"])
    both = read_past(file, codec)
    assert both.targets.shape[0] == 2
    for row, (name, count) in enumerate((("A", 50), ("B", 30))):
        one_series = read_past(
            csv([line for line in lines if line.endswith(name)], "date,a,b,who", f"{count}.csv"), codec
        )
        assert torch.equal(both.context["past"][[row]], one_series.context["past"])
    refused("not there: who", windows_of, codec, one)
    # without series there is nothing of them in the description
    described = load_series(one, HOURLY).codec.describe()
    assert "series" not in described
    assert SeriesCodec.from_description(described).series is None


def test_a_scored_file_must_be_evenly_spaced_unless_training_ignored_it(csv):
    file, lines = csv(rows()), rows()
    del lines[30]
    gap = csv(lines, name="gap.csv")
    uneven = f"{gap}:32: time {STAMPS[31]} follows {STAMPS[29]}"
    refused(uneven, windows_of, load_series(file, HOURLY).codec, gap)
    as_it_comes = load_series(file, replace(HOURLY, irregular="ignore")).codec
    assert windows_of(as_it_comes, gap).count == 79 - 9
    assert read_past(gap, as_it_comes).targets.shape == (1, 4, 2)


def test_a_file_without_names_of_columns_is_refused(csv):
    """Its first row would be lost, and the channels called 0.1 and 0.2."""
    options, lines = SeriesOptions(past=6, horizon=4), [f"{math.sin(n)},{math.cos(n)}" for n in range(60)]
    refused(":1: names no columns, it holds values", load_series, csv(rows(), ""), options)
    refused("names no columns", load_series, csv(lines, ""), options)
    assert load_series(csv(lines, "2019,2020"), options).codec.names == ("2019", "2020")
    latin = csv(rows(), "date,a,b\xe9", encoding="latin-1")
    refused("names of the columns are not UTF-8", load_series, latin, HOURLY)


def test_decimal_commas_are_numbers_written_wrongly_not_text(csv):
    lines = [row.replace(",", ";").replace(".", ",") for row in rows()]
    file = csv(lines, "date;a;b")
    found = problems_of(load_series, file, replace(HOURLY, separator=";"))
    assert found[0].startswith(f"{file}:2, column 'a': '0,0000' is not a number; write it with a point, 0.0000")
    assert found[0].endswith("so it is in 80 of the 80 cells of the column")
    assert not any("constant" in text for text in found)
    (found,) = problems_of(load_series, file, HOURLY)
    assert "has one column, 'date;a;b'; is the separator ',' right? Where it is ';'" in found


@pytest.mark.parametrize(
    ("write", "options", "remedy"),
    [
        (
            lambda n: f"{10 + n} {n * 37 % 800 + 100:03d},5",
            {"decimal": ",", "thousands": " "},
            'thousands = " " and decimal',
        ),
        (lambda n: f"12\u202f{n * 37 % 800 + 100:03d}.5", {"thousands": "\u202f"}, 'set thousands = "\\u202f"'),
        (lambda n: f"1'{n * 37 % 800 + 100:03d}'000", {"thousands": "'"}, """set thousands = "'\""""),
        (lambda n: f"{n}.5 %", None, "take '%' out of the cells"),
        (lambda n: f"$1,{n * 37 % 800 + 100:03d}.50", None, "take '$' out of the cells"),
        (lambda n: f"\u2212{n}.5", None, "write the minus sign as '-'"),
    ],
    ids=["spaces", "narrow", "apostrophes", "shares", "currency", "minus"],
)
def test_numbers_written_in_another_way_are_no_text(csv, write, options, remedy):
    """Left out as text they would lose the column that is meant, and train on what is left."""
    lines = [f"{row};{write(n)}" for n, row in enumerate(rows())]
    lines = [";".join([row.split(",")[0], row.split(";")[1], str(n % 7)]) for n, row in enumerate(lines)]
    file, plain = csv(lines, "date;sales;day"), replace(HOURLY, separator=";")
    found = problems_of(load_series, file, plain)
    assert "column 'sales': " in found[0]
    assert remedy in found[0]
    if options:
        assert "sales" in load_series(file, replace(plain, **options)).codec.names


def test_columns_that_are_left_out_are_named(csv):
    lines = [f"{row},{'off' if n % 3 else n}" for n, row in enumerate(rows())]
    data = load_series(csv(lines, "date,a,b,state"), HOURLY)
    assert data.codec.names == ("a", "b")
    assert data.header()[-1] == "not used, for they do not hold numbers: state"
    named = load_series(csv(lines, "date,a,b,state"), replace(HOURLY, targets=("a",)))
    assert not any("not used" in line for line in named.header())


def test_series_too_short_for_a_training_window_are_named(csv):
    lines = [f"{row},{name}" for row, name in zip([*rows(60), *rows(9)], "A" * 60 + "B" * 9, strict=True)]
    last = load_series(csv(lines, "date,a,b,who"), replace(HOURLY, series="who")).header()[-1]
    assert last.startswith("too short for a training window: 1 of 2 series: ")
    assert last.endswith("who B")


def series_of(folder, cells, name="load.csv"):
    return write_csv(folder / name, (f"{n},{n % 7 + 0.5},{cell}" for n, cell in enumerate(cells)), "date,a,b")


NEAR_LIMITS = [
    ("1e300", 30, ":32, column 'b': is beyond 1e+30"),
    ("-1e39", 30, ":32, column 'b': is beyond 1e+30"),
    ("1e400", 30, ":32, column 'b': is infinite"),
    ("1e29", 30, ":32, column 'b': 1e+29 is so far from the others that of 10 different values"),
    ("1e13", 75, ":77, column 'b': lies more than 1e+09 deviations from the mean"),
    ("18446744073709551616", 75, ":77, column 'b': lies more than"),
]


@pytest.mark.parametrize(("cell", "row", "message"), NEAR_LIMITS)
def test_one_number_near_the_limits_is_refused_by_name(tmp_path, cell, row, message):
    cells = [str(n % 9) for n in range(80)]
    cells[row] = cell
    options = SeriesOptions(past=4, horizon=2)
    (found,) = problems_of(load_series, series_of(tmp_path, cells), replace(options, targets=("a", "b")))
    assert message in found
    values = np.array([[n % 7, float(c)] for n, c in enumerate(cells)])
    (found,) = problems_of(series_from_arrays, values, options, "past", ("a", "b"))
    assert message.split(", ")[1] in found


@pytest.mark.parametrize(("scale", "fits"), [(1e-320, False), (1e-200, False), (5e-324, False), (1e-25, True),
                                             (1e25, True), (1.0, True)])  # fmt: skip
def test_large_and_small_units_are_fine_within_float32(tmp_path, scale, fits):
    file = series_of(tmp_path, [repr(scale * (n % 9)) for n in range(80)])
    options = SeriesOptions(past=4, horizon=2, targets=("b",))
    if fits:
        table = load_series(file, options).batch([0]).targets
        assert table.isfinite().all()
        assert table.std() > 0.1
    else:
        assert len(refused("column 'b' varies by", load_series, file, options)) == 1


def test_a_bad_column_is_one_line_and_hides_nothing(tmp_path):
    rows = [f"{n}/01/2020,{n},x,{'' if n % 2 else n},{'inf' if n == 9 else n}" for n in range(80)]
    file = write_csv(tmp_path / "load.csv", rows, "date,a,b,c,d")
    options = SeriesOptions(past=4, horizon=2, targets=("a", "b", "c", "d"), time="date")
    found = problems_of(load_series, file, options)
    columns = [":2, column 'b'", ":2, column 'date'", ":3, column 'c'", ":11, column 'd'"]
    assert [problem.split(": ")[0].removeprefix(str(file)) for problem in found] == columns
    for problem, count in zip(found, (80, 80, 40), strict=False):
        assert f"so it is in {count} of the 80 cells" in problem


def test_a_name_with_brackets_is_no_pattern(tmp_path):
    import polars as pl

    series_of(tmp_path, [str(n % 9) for n in range(80)], "load1.csv")
    file = series_of(tmp_path, [str(n % 9 + 100) for n in range(80)], "load[1].csv")
    assert load_series(file, SeriesOptions(past=4, horizon=2, targets=("b",))).scales[0][0] > 100
    pl.DataFrame({"prompt": ["other"], "completion": ["x"]}).write_parquet(tmp_path / "rows1.parquet")
    pl.DataFrame({"prompt": ["own"], "completion": ["x"]}).write_parquet(tmp_path / "rows[1].parquet")
    assert read_rows(tmp_path / "rows[1].parquet")[0].rows[0]["prompt"] == "own"


def test_times_beyond_the_calendar(tmp_path):
    import polars as pl

    options, file = SeriesOptions(past=4, horizon=2, time="date", targets=("a",)), tmp_path / "load.csv"
    for first in ("0001-01-01T00:00:00+05:00", "9999-12-31T23:00:00-05:00"):
        refused("is no ISO time", load_series, write_csv(file, (f"{first},{n}" for n in range(40)), "date,a"), options)
    last = (f"999{n // 12}-{n % 12 + 1:02}-01,{n % 5}" for n in range(119))
    load_series(write_csv(file, last, "date,a"), options)  # the last step but one ends where the calendar does
    for unit, number in (("us", 2**63 - 1), ("ms", -(2**62)), (None, 2**31 - 1)):
        kind = pl.Date if unit is None else pl.Datetime(unit)
        physical = pl.Series([number] * 40, dtype=pl.Int32 if unit is None else pl.Int64)
        pl.DataFrame({"date": physical.cast(kind), "a": range(40)}).write_parquet(tmp_path / "load.parquet")
        every = "so it is in 40 of the 40 cells"
        assert len(refused(every, load_series, tmp_path / "load.parquet", options)) == 1


HOSTILE = [
    (b'a,b\n1,2\n1,"' + b"x" * 200_000 + b'",3\n', "has 3 cells"),
    (b"a,b\r1,2\r3,4\r", "has no rows"),
    ("a,b\n1,2\n".encode("utf-16"), "utf-16"),
    (b'a,b\n1,"2\n3,4"\n5,6\n', "holds a line break"),
    (b'a,b\n1,"2\n3,4\n5,6\n', "unexpected end of data"),
    (b"a,b\n1,2\x00\n3,4\n", "is not a number"),
    (b"a," + b"b" * 200_000 + b"\n1,2\n3,4\n", "the name of column 2 has 200,000 characters"),
    (b"a,b\n" + b"1," * 5_000_000 + b"\n", "has 5,000,001 cells"),
]


@pytest.mark.parametrize(("raw", "message"), HOSTILE)
def test_hostile_csv_files(tmp_path, raw, message):
    file = tmp_path / "load.csv"
    file.write_bytes(raw)
    problems = refused(message, load_series, file, SeriesOptions(past=1, horizon=1, targets=("a", "b")))
    assert all(len(problem) <= 600 for problem in problems)


def test_numbers_with_two_readings_and_differences_that_float32_loses(csv):
    file = csv([f'2024-01-01 {hour:02d}:00,"1,{hour:03d}"' for hour in range(24)], "date,a")
    both = "write 1.000 if the comma marks the decimals, 1000 if it marks thousands"
    assert both in problems_of(load_series, file, HOURLY)[0]
    file = csv([f"2024-01-{1 + n // 24:02d} {n % 24:02d}:00,{10**15 + n % 7}" for n in range(240)], "date,a")
    found = "\n".join(refused("subtract an offset", load_series, file, HOURLY))
    assert "is constant" not in found


def test_a_damaged_parquet_file_is_refused_without_a_word_of_the_library(tmp_path, capfd):
    pl = pytest.importorskip("polars")
    file, hours = tmp_path / "x.parquet", [f"2024-01-01 {hour:02d}:00" for hour in range(24)]
    pl.DataFrame({"date": hours, "a": [float(n) for n in range(24)]}).write_parquet(file)
    content, messages = file.read_bytes(), list[str]()
    for at in range(4, len(content), 3):
        file.write_bytes(content[:at] + bytes([content[at] ^ 0xFF]) + content[at + 1 :])
        try:
            load_series(file, HOURLY)
        except UserError as error:
            messages.append(str(error))
    assert len(messages) > 100
    assert "panic" not in "".join([*messages, *capfd.readouterr()]).lower()


@pytest.mark.parametrize("far", [[1e308], [1e31], [-1e308, 1e308]])
def test_a_number_too_large_to_be_computed_with_is_refused_and_nothing_warns(tmp_path, far):
    """At the end of a plain column, where its steps are looked at; NumPy's warning is an error here."""
    values = [*(math.sin(n / 3) + n for n in range(100)), *far]
    path = tmp_path / "plain.csv"
    path.write_text("load\n" + "\n".join(map(repr, values)) + "\n")
    refused("is beyond 1e\\+30", load_series, path, SeriesOptions(past=5, horizon=3))
