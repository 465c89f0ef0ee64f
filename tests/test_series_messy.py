"""Files as people have them: newest rows first, several series in one table, no names of columns, decimal commas."""

import math
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
import torch

from builders import problems_of
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
    def make(lines, header="date,a,b", name="x.csv", encoding="utf-8"):
        path = tmp_path / name
        path.write_bytes(("\n".join([header, *lines] if header else lines) + "\n").encode(encoding))
        return path

    return make


def windows_of(codec, path):
    return read_windows(codec, DataFile(Path(path)))


def test_rows_with_the_newest_first_are_refused_everywhere(csv):
    """Evenly spaced as they are, a model of them would forecast the past from the future."""
    file = csv(rows()[::-1])
    said = f"{file}:3: time {STAMPS[-2]} comes after {STAMPS[-1]}, and so on to the end: newest first; sort the rows by"
    (found,) = problems_of(load_series, file, HOURLY)
    assert found.startswith(said)
    codec = load_series(csv(rows(), name="good.csv"), HOURLY).codec
    assert problems_of(windows_of, codec, file)[0].startswith(said)
    assert "newest first" in problems_of(read_past, file, codec)[0]
    numbers = csv([f"{-n},{math.sin(n)},{math.cos(n)}" for n in range(80)], name="numbers.csv")
    assert "newest first" in problems_of(load_series, numbers, HOURLY)[0]


def test_time_that_stands_still_is_no_step(csv):
    file = csv([f"{STAMPS[0]}{row[len(str(STAMPS[0])) :]}" for row in rows()])
    found = problems_of(load_series, file, HOURLY)
    assert "79 time stamps came before in the file" in found[0]
    assert f"{file}:3: time {STAMPS[0]} stands twice" in found[1]
    assert step_between([1.0, 1.0]) is None
    assert step_between([STAMPS[1], STAMPS[0]]) is None
    assert str(step_between([STAMPS[0], STAMPS[0], STAMPS[1], STAMPS[1]])) == "3600 seconds"


@pytest.mark.parametrize("between", [True, False])
def test_several_series_that_nobody_named_are_asked_for(csv, between):
    pairs = [f"{row},{name}" for row in rows(40) for name in "AB"]
    file = csv(pairs if between else [*pairs[::2], *pairs[1::2]], "date,a,b,who")
    assert (
        "40 time stamps came before in the file; where it holds several series"
        in problems_of(load_series, file, HOURLY)[0]
    )
    assert len(load_series(file, replace(HOURLY, series="who")).segments["train"]) == 2


def test_no_window_of_a_scored_file_lies_in_two_series(csv):
    lines = [f"{row},{name}" for row, name in zip([*rows(50), *rows(30)], "A" * 50 + "B" * 30, strict=True)]
    codec = load_series(csv(lines, "date,a,b,who"), replace(HOURLY, series="who")).codec
    assert SeriesCodec.from_description(codec.describe()) == codec
    mixed = [line for pair in zip(lines[:30], lines[50:], strict=True) for line in pair] + lines[30:50]
    found = windows_of(codec, csv(mixed, "date,a,b,who", "mixed.csv"))
    assert found.count == (50 - 9) + (30 - 9)
    one = windows_of(replace(codec, series=None), csv(rows(50), name="one.csv"))
    batch, other = found.make(list(range(41))), one.make(list(range(41)))
    assert torch.equal(batch.targets, other.targets)
    assert torch.equal(batch.context["past"], other.context["past"])
    assert "holds 2 series, by column 'who'" in problems_of(read_past, csv(lines, "date,a,b,who"), codec)[0]
    assert "not there: who" in problems_of(windows_of, codec, csv(rows(50), name="one.csv"))[0]


def test_a_coder_without_series_is_described_as_before(csv):
    described = load_series(csv(rows()), HOURLY).codec.describe()
    assert "series" not in described
    assert SeriesCodec.from_description(described).series is None


def test_a_scored_file_must_be_evenly_spaced_unless_training_did_not_ask(csv):
    file = csv(rows())
    lines = rows()
    del lines[30]
    gap = csv(lines, name="gap.csv")
    assert (
        f"{gap}:32: time {STAMPS[31]} follows {STAMPS[29]}"
        in problems_of(windows_of, load_series(file, HOURLY).codec, gap)[0]
    )
    as_it_comes = load_series(file, replace(HOURLY, irregular="ignore")).codec
    assert windows_of(as_it_comes, gap).count == 79 - 9
    assert read_past(gap, as_it_comes).targets.shape == (1, 4, 2)


def test_a_file_without_names_of_columns_is_refused(csv):
    """Its first row would be lost, and the channels called 0.1 and 0.2."""
    options = SeriesOptions(past=6, horizon=4)
    assert ":1: names no columns, it holds values" in problems_of(load_series, csv(rows(), ""), options)[0]
    lines = [f"{math.sin(n)},{math.cos(n)}" for n in range(60)]
    assert "names no columns" in problems_of(load_series, csv(lines, ""), options)[0]
    assert load_series(csv(lines, "2019,2020"), options).names == ("2019", "2020")


def test_decimal_commas_are_numbers_written_wrongly_not_text(csv):
    lines = [row.replace(",", ";").replace(".", ",") for row in rows()]
    file = csv(lines, "date;a;b")
    found = problems_of(load_series, file, replace(HOURLY, separator=";"))
    assert found[0].startswith(f"{file}:2, column 'a': '0,0000' is not a number; write it with a point, 0.0000")
    assert found[0].endswith("so it is in 80 of the 80 cells of the column")
    assert not any("constant" in text for text in found)
    (found,) = problems_of(load_series, file, HOURLY)
    assert "has one column, 'date;a;b'; is the separator ',' right? Where it is ';'" in found


def test_columns_that_are_left_out_are_named(csv):
    lines = [f"{row},{'off' if n % 3 else n}" for n, row in enumerate(rows())]
    data = load_series(csv(lines, "date,a,b,state"), HOURLY)
    assert data.names == ("a", "b")
    assert data.header()[-1] == "not used, for they do not hold numbers: state"
    named = load_series(csv(lines, "date,a,b,state"), replace(HOURLY, targets=("a",)))
    assert not any("not used" in line for line in named.header())


def test_names_that_are_not_utf8_are_refused(csv):
    found = problems_of(load_series, csv(rows(), "date,a,b\xe9", encoding="latin-1"), HOURLY)
    assert "names of the columns are not UTF-8" in found[0]


def test_series_too_short_for_a_training_window_are_named(csv):
    lines = [f"{row},{name}" for row, name in zip([*rows(60), *rows(9)], "A" * 60 + "B" * 9, strict=True)]
    data = load_series(csv(lines, "date,a,b,who"), replace(HOURLY, series="who"))
    assert data.header()[-1].startswith("too short for a training window: 1 of 2 series: ")
    assert data.header()[-1].endswith("who B")


def series_of(folder, cells, name="load.csv"):
    file = folder / name
    file.write_text("date,a,b\n" + "".join(f"{n},{n % 7 + 0.5},{cell}\n" for n, cell in enumerate(cells)))
    return file


@pytest.mark.parametrize(
    ("cell", "place", "said"),
    [
        ("1e300", 30, ":32, column 'b': is beyond 1e+30"),
        ("-1e39", 30, ":32, column 'b': is beyond 1e+30"),
        ("1e400", 30, ":32, column 'b': is infinite"),
        ("1e29", 30, ":32, column 'b': 1e+29 is so far from the others that of 10 different values"),
        ("1e13", 75, ":77, column 'b': lies more than 1e+09 deviations from the mean"),
        ("18446744073709551616", 75, ":77, column 'b': lies more than"),
    ],
)
def test_one_number_near_the_limits_is_refused_by_name(tmp_path, cell, place, said):
    cells = [str(n % 9) for n in range(80)]
    cells[place] = cell
    options = SeriesOptions(past=4, horizon=2, targets=("a", "b"))
    (found,) = problems_of(load_series, series_of(tmp_path, cells), options)
    assert said in found
    values = np.array([[n % 7, float(c)] for n, c in enumerate(cells)])
    (found,) = problems_of(series_from_arrays, values, SeriesOptions(past=4, horizon=2), "past", ("a", "b"))
    assert said.split(", ")[1] in found


@pytest.mark.parametrize("scale", [1e-320, 1e-200, 5e-324])
def test_a_column_too_small_for_float32_is_refused(tmp_path, scale):
    cells = [repr(scale * (n % 9)) for n in range(80)]
    (found,) = problems_of(load_series, series_of(tmp_path, cells), SeriesOptions(past=4, horizon=2))
    assert "column 'b' varies by" in found


@pytest.mark.parametrize("scale", [1e-25, 1e25, 1.0])
def test_large_and_small_units_are_fine(tmp_path, scale):
    cells = [repr(scale * (n % 9)) for n in range(80)]
    data = load_series(series_of(tmp_path, cells), SeriesOptions(past=4, horizon=2, targets=("b",)))
    table = data.batch([0]).targets
    assert table.isfinite().all()
    assert table.std() > 0.1


def test_a_whole_bad_column_is_one_line_and_hides_nothing(tmp_path):
    file = tmp_path / "load.csv"
    rows = [f"{n}/01/2020,{n},x,{'' if n % 2 else n},{'inf' if n == 9 else n}" for n in range(80)]
    file.write_text("date,a,b,c,d\n" + "\n".join(rows))
    options = SeriesOptions(past=4, horizon=2, targets=("a", "b", "c", "d"), time="date")
    found = problems_of(load_series, file, options)
    assert [problem.split(": ")[0].removeprefix(str(file)) for problem in found] == [
        ":2, column 'b'", ":2, column 'date'", ":3, column 'c'", ":11, column 'd'"
    ]  # fmt: skip
    for problem, count in zip(found, (80, 80, 40), strict=False):
        assert f"so it is in {count} of the 80 cells" in problem


def test_a_name_with_brackets_is_no_pattern(tmp_path):
    import polars as pl

    series_of(tmp_path, [str(n % 9) for n in range(80)], "load1.csv")
    file = series_of(tmp_path, [str(n % 9 + 100) for n in range(80)], "load[1].csv")
    assert load_series(file, SeriesOptions(past=4, horizon=2, targets=("b",))).mean[0] > 100
    pl.DataFrame({"prompt": ["other"], "completion": ["x"]}).write_parquet(tmp_path / "rows1.parquet")
    pl.DataFrame({"prompt": ["own"], "completion": ["x"]}).write_parquet(tmp_path / "rows[1].parquet")
    assert read_rows(tmp_path / "rows[1].parquet")[0].rows[0]["prompt"] == "own"


def test_times_beyond_the_calendar(tmp_path):
    import polars as pl

    options = SeriesOptions(past=4, horizon=2, time="date", targets=("a",))
    file = tmp_path / "load.csv"
    for first in ("0001-01-01T00:00:00+05:00", "9999-12-31T23:00:00-05:00"):
        file.write_text("date,a\n" + "".join(f"{first},{n}\n" for n in range(40)))
        assert "is no ISO time" in problems_of(load_series, file, options)[0]
    file.write_text("date,a\n" + "".join(f"999{n // 12}-{n % 12 + 1:02}-01,{n % 5}\n" for n in range(119)))
    load_series(file, options)  # the last step but one ends where the calendar does
    for unit, number in (("us", 2**63 - 1), ("ms", -(2**62)), (None, 2**31 - 1)):
        kind = pl.Date if unit is None else pl.Datetime(unit)
        physical = pl.Series([number] * 40, dtype=pl.Int32 if unit is None else pl.Int64)
        pl.DataFrame({"date": physical.cast(kind), "a": range(40)}).write_parquet(tmp_path / "load.parquet")
        (found,) = problems_of(load_series, tmp_path / "load.parquet", options)
        assert "so it is in 40 of the 40 cells" in found


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        (b'a,b\n1,2\n1,"' + b"x" * 200_000 + b'",3\n', "has 3 cells"),
        (b"a,b\r1,2\r3,4\r", "has no rows"),
        ("a,b\n1,2\n".encode("utf-16"), "utf-16"),
        (b'a,b\n1,"2\n3,4"\n5,6\n', "holds a line break"),
        (b'a,b\n1,"2\n3,4\n5,6\n', "cannot be read as CSV"),
        (b"a,b\n1,2\x00\n3,4\n", "is not a number"),
        (b"a," + b"b" * 200_000 + b"\n1,2\n3,4\n", "the name of column 2 has 200,000 characters"),
        (b"a,b\n" + b"1," * 5_000_000 + b"\n", "has 5000001 cells"),
    ],
)
def test_hostile_csv_files(tmp_path, raw, said):
    file = tmp_path / "load.csv"
    file.write_bytes(raw)
    found = problems_of(load_series, file, SeriesOptions(past=1, horizon=1, targets=("a", "b")))
    assert any(said in problem for problem in found), found
    assert all(len(problem) <= 600 for problem in found)


def test_a_comma_before_three_digits_has_two_readings(csv):
    file = csv([f'2024-01-01 {hour:02d}:00,"1,{hour:03d}"' for hour in range(24)], "date,a")
    (found,) = problems_of(load_series, file, HOURLY)[:1]
    assert "write 1.000 if the comma marks the decimals, 1000 if it marks thousands" in found


def test_values_whose_differences_float32_loses_are_not_called_constant(csv):
    file = csv([f"2024-01-{1 + n // 24:02d} {n % 24:02d}:00,{10**15 + n % 7}" for n in range(240)], "date,a")
    found = "\n".join(problems_of(load_series, file, HOURLY))
    assert "is constant" not in found
    assert "subtract an offset" in found


def test_a_damaged_parquet_file_is_refused_without_a_word_of_the_library(tmp_path, capfd):
    pl = pytest.importorskip("polars")
    file = tmp_path / "x.parquet"
    frame = pl.DataFrame(
        {"date": [f"2024-01-01 {hour:02d}:00" for hour in range(24)], "a": [float(n) for n in range(24)]}
    )
    frame.write_parquet(file)
    whole, refused = file.read_bytes(), list[str]()
    for at in range(4, len(whole), 3):
        file.write_bytes(whole[:at] + bytes([whole[at] ^ 0xFF]) + whole[at + 1 :])
        try:
            load_series(file, HOURLY)
        except UserError as error:
            refused.append(str(error))
    out, err = capfd.readouterr()
    assert len(refused) > 100
    assert "panic" not in ("".join(refused) + out + err).lower()
