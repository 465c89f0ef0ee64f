"""Tables of series that were changed at random: each is refused by name, or read as what it holds; never otherwise.

python tests/fuzz_tables.py --cases 2000 --seed 0
"""

from __future__ import annotations

import argparse
import math
import random
import tempfile
import traceback
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import torch

from freerun.data import SeriesCodec, SeriesOptions, load_series, read_past, series_from_arrays
from freerun.data.files import DataFile
from freerun.data.series.inference import read_futures, read_windows
from freerun.errors import UserError

STEPS = {
    "hours": lambda n: datetime(2020, 3, 27) + timedelta(hours=n),
    "days": lambda n: datetime(2020, 1, 30) + timedelta(days=n),
    "months": lambda n: datetime(1949 + n // 12, n % 12 + 1, 1),
    "month-ends": lambda n: datetime(1949 + (n + 1) // 12, (n + 1) % 12 + 1, 1) - timedelta(days=1),
    "business-days": lambda n: datetime(2024, 1, 1) + timedelta(days=n // 5 * 7 + n % 5),
}
FORMS = {
    "hours": ("%Y-%m-%d %H:%M:%S", "%Y-%m-%dT%H:%M", "%Y-%m-%dT%H:%M:%SZ", "%Y-%m-%d %H:%M:%S+01:00", "%d.%m.%Y %H:%M", "%m/%d/%Y %I:%M %p"),
    "days": ("%Y-%m-%d", "%Y%m%d", "%Y-%m-%d 00:00:00", "%d.%m.%Y", "%d/%m/%Y", "%G-W%V-%u"),
    "months": ("%Y-%m", "%Y-%m-%d", "%b %Y", "%m/%Y"),
    "month-ends": ("%Y-%m-%d", "%d.%m.%Y"),
    "business-days": ("%Y-%m-%d", "%Y%m%d", "%d.%m.%Y"),
}  # fmt: skip
ISO = ("%Y-%m-%d %H:%M:%S", "%Y-%m-%dT%H:%M", "%Y-%m-%dT%H:%M:%SZ", "%Y-%m-%d %H:%M:%S+01:00", "%Y-%m-%d", "%Y%m%d",
       "%Y-%m-%d 00:00:00", "%G-W%V-%u", "%Y-%m")  # fmt: skip
SERIES = ("north", "south", "7", "new york")
JUNK = ("x", "-", "?", "1,5", "1.2.3", "inf", "1e400", "--", "12 mph", "0x1F", "#DIV/0!", "1e31", "\x00", "½")


@dataclass
class Table:
    """Rows of a table: series, number of the step, values (None: missing), and what is changed about it."""

    kind: str
    rows: list[tuple[str, int, list[float | None]]]
    names: list[str]
    form: str
    options: dict[str, Any]
    several: bool
    kinds: bool = False
    separator: str = ","
    decimal: str = "."
    thousands: bool = False
    extra: dict[str, list[str]] = field(default_factory=dict)
    junk: dict[tuple[int, int], str] = field(default_factory=dict)
    bad_times: dict[int, str] = field(default_factory=dict)
    header: list[str] | None = None
    ending: str = "\n"
    bom: bool = False
    tail: str = ""
    hide_series: bool = False
    hide_time: bool = False
    rename: str = ""
    must_refuse: bool = False
    changes: list[str] = field(default_factory=list)


def make(rng: random.Random) -> Table:
    kind = rng.choice(sorted(STEPS))
    several = rng.random() < 0.4
    width, count = rng.choice((1, 1, 2, 3)), rng.choice((60, 75))
    rows: list[tuple[str, int, list[float | None]]] = []
    uneven = rng.random() < 0.6
    for series in rng.sample(SERIES, rng.choice((2, 2, 3, 4))) if several else ("",):
        phase, size = rng.random() * 6, rng.choice((0.1, 1, 1)) if several else 1
        first, last = (rng.choice((0, 0, 9)), count - rng.choice((0, 3, 12))) if several and uneven else (0, count)
        for n in range(first, last):
            values = [
                round(size * (1500 * (v + 1) + 900 * math.sin(n / (3 + v) + phase) + 37 * rng.random()), 2)
                for v in range(width)
            ]
            rows.append((series, n, list(values)))
    if several and rng.random() < 0.5:
        rows.sort(key=lambda row: row[1])
    names = ["load", "heat", "wind"][:width]
    options: dict[str, Any] = {
        "past": 5,
        "horizon": 3,
        "missing": rng.choice(("error", "last", "linear", "mask", "mask")),
    }
    if rng.random() < 0.5:
        options["time"] = "date"
    kinds = several and rng.random() < 0.4
    if several:
        options["series"] = "who"
        if kinds or rng.random() < 0.2:
            options["categories"] = rng.choice((("who", "kind"), ("kind",))) if kinds else ("who",)
    if rng.random() < 0.4:
        options["targets"] = tuple(names)
    form = rng.choice(FORMS[kind])
    table = Table(kind, rows, names, form, options, several, kinds=kinds)
    if form not in ISO:
        table.options |= {"time": "date", "time_format": form} if rng.random() < 0.8 else {}
    return table


def _rows(rng: random.Random, table: Table) -> None:
    how = rng.choice(("reverse", "shuffle", "rotate", "drop", "blank", "double"))
    table.changes.append(how)
    if how == "reverse":
        table.rows.reverse()
    elif how == "shuffle":
        rng.shuffle(table.rows)
    elif how == "rotate":
        at = rng.randrange(len(table.rows))
        table.rows[:] = table.rows[at:] + table.rows[:at]
    elif how == "drop":
        for _ in range(rng.choice((1, 1, 3, 6))):
            del table.rows[rng.randrange(1, len(table.rows) - 1)]
    elif how == "blank":
        for _ in range(rng.choice((1, 2, 8))):
            row = table.rows[rng.randrange(len(table.rows))]
            row[2][rng.randrange(len(row[2]))] = None
    else:
        at = rng.randrange(len(table.rows))
        table.rows.insert(at, (table.rows[at][0], table.rows[at][1], list(table.rows[at][2])))
        table.must_refuse = True


def _columns(rng: random.Random, table: Table) -> None:
    count = len(table.rows)
    name, cells = rng.choice(
        [
            ("Unnamed: 0", [str(n) for n in range(count)]), ("id", [str(100 + 3 * n) for n in range(count)]),
            ("holiday", [rng.choice(("True", "False")) for _ in range(count)]), ("note", [rng.choice("abc") for _ in range(count)]),
            ("floor", ["7"] * count), ("empty", [""] * count), ("t", [f"{0.25 * n:g}" for n in range(count)]),
        ]
    )  # fmt: skip
    table.changes.append(f"column {name}")
    table.extra[name] = cells


def _writing(rng: random.Random, table: Table) -> None:
    how = rng.choice(("semicolon", "tab", "comma decimals", "thousands", "crlf", "bom", "blank lines", "spaces"))
    table.changes.append(how)
    if how in ("semicolon", "tab"):
        table.separator = ";" if how == "semicolon" else "\t"
        if rng.random() < 0.7:
            table.options["separator"] = table.separator
    elif how in ("comma decimals", "thousands"):
        table.separator, table.decimal = ";", ","
        table.thousands = how == "thousands"
        if rng.random() < 0.7:
            table.options |= {"separator": ";", "decimal": ","}
            table.options |= {"thousands": "."} if table.thousands else {}
    elif how == "crlf":
        table.ending = "\r\n"
    elif how == "bom":
        table.bom = True
    elif how == "blank lines":
        table.tail = "\n\n"
    else:
        table.rename = "spaces"


def _damage(rng: random.Random, table: Table) -> None:
    how = rng.choice(("cell", "cell", "time", "no header", "double name", "no series", "offsets", "cut"))
    table.changes.append(how)
    at = rng.randrange(len(table.rows))
    if how == "cell":
        table.junk[at, rng.randrange(len(table.names))] = rng.choice(JUNK)
        table.must_refuse = True
    elif how == "time":
        table.bad_times[at] = rng.choice(("", "soon", "2020-13-01", "31.02.2020", "1e400", "0000-00-00"))
        table.must_refuse = True
    elif how == "no header":
        table.header = []
        table.must_refuse = True
    elif how == "double name":
        table.header = [table.names[0]] * (len(table.names) + 1 + table.several + table.kinds)
        table.must_refuse = True
    elif how == "no series" and table.several:
        table.options.pop("series")
        table.hide_series = rng.random() < 0.5
        table.must_refuse = True
    elif how == "offsets" and table.form in ISO and "%H" in table.form:
        table.bad_times[at] = "+05:00"
        table.must_refuse = True
    elif how == "cut":
        table.tail = "2020"


def written(table: Table) -> bytes:
    """The CSV file."""
    names = (
        ([] if table.hide_time else ["date"])
        + (["who"] if table.several and not table.hide_series else [])
        + (["kind"] if table.kinds else [])
        + list(table.extra)
        + table.names
    )
    head = names if table.header is None else table.header
    lines = [table.separator.join(head)] if head else []

    def number(value: float | None) -> str:
        if value is None:
            return ""
        text = f"{value:,.2f}" if table.thousands else f"{value:.2f}"
        return text.translate(str.maketrans(",.", ".,")) if table.decimal == "," else text

    for at, (series, step, values) in enumerate(table.rows):
        time = STEPS[table.kind](step).strftime(table.form)
        if at in table.bad_times:
            bad = table.bad_times[at]
            time = STEPS[table.kind](step).strftime("%Y-%m-%dT%H:%M:%S") + bad if bad.startswith("+") else bad
        cells = [] if table.hide_time else [time]
        cells += [series] if table.several and not table.hide_series else []
        cells += ["shop" if series in SERIES[::2] else "kiosk"] if table.kinds else []
        cells += [each[at] if at < len(each) else "" for each in table.extra.values()]
        cells += [table.junk.get((at, v), number(value)) for v, value in enumerate(values)]
        if table.rename == "spaces":
            cells = [
                f" {cell} " if cell and n >= len(names) - len(table.names) else cell for n, cell in enumerate(cells)
            ]
        if table.separator == ",":
            cells = [f'"{cell}"' if "," in cell else cell for cell in cells]
        lines.append(table.separator.join(cells))
    raw = (table.ending.join(lines) + table.ending + table.tail).encode()
    return b"\xef\xbb\xbf" + raw if table.bom else raw


def expected(table: Table) -> dict[str, np.ndarray]:
    """Series -> (steps, channels) of the values that the table holds, NaN where none is."""
    found: dict[str, np.ndarray] = {}
    for series in dict.fromkeys(row[0] for row in table.rows):
        steps = {step: values for name, step, values in table.rows if name == series}
        first, last = min(steps), max(steps)
        grid = np.full((last - first + 1, len(table.names)), np.nan)
        for step, values in steps.items():
            grid[step - first] = [math.nan if value is None else value for value in values]
        found[series] = grid
    return found


def check(rng: random.Random, table: Table, folder: Path) -> str:
    """What became of a table: "refused" or "read"; AssertionError where it was read as something else."""
    if table.decimal == ",":  # a number, where commas mark decimals
        table.junk = {at: "1,5,2" if cell == "1,5" else cell for at, cell in table.junk.items()}
    path = folder / rng.choice(("load.csv", "load[1].csv", "lo*ad.csv"))
    for other in folder.iterdir():
        other.unlink()
    path.write_bytes(written(table))
    if path.name != "load.csv":
        (folder / "load1.csv").write_text("date,load\n2020-01-01,1\n")
    options = SeriesOptions(**table.options)
    layout, problems = rng.choice(("past", "sequence")), list[str]()
    try:
        if rng.random() < 0.2 and not table.junk and table.header is None and table.decimal == ".":
            data = series_from_arrays(frame_of(rng, path, table), options, layout)
        else:
            data = load_series(path, options, layout)
    except UserError as error:
        problems, data = error.problems, None
    if data is None:
        assert problems
        assert all(len(line) < 2000 for line in problems)
        assert len(problems) < 60, problems
        return "refused"
    assert not table.must_refuse, "it should have been refused"
    assert set(data.codec.names) <= set(table.names), f"targets are {data.codec.names}"
    columns = [table.names.index(name) for name in data.codec.names]
    truth = expected(table)
    whole = np.concatenate([grid[:, columns] for grid in truth.values()])
    raw = data.raw[:, : len(columns)].numpy()
    present = np.ones_like(raw, dtype=bool) if data.present is None else data.present.numpy()
    assert raw.shape == whole.shape, f"{raw.shape} rows and channels are read, {whole.shape} are there"
    assert np.array_equal(present, ~np.isnan(whole)), "what is missing is not what is masked"
    assert np.allclose(raw[present], whole[present]), "values stand elsewhere, or are others"
    if not present.all():
        assert options.missing != "error"
    batch = data.batch(list(range(min(4, data.windows("train")))))
    assert bool(batch.targets.isfinite().all(-1)[batch.mask].any())
    for part in batch.context.values():
        assert bool(part.isfinite().all())
    assert SeriesCodec.from_description(data.codec.describe()) == data.codec
    afterwards(table, data, path)
    return "read"


def frame_of(rng: random.Random, path: Path, table: Table) -> Any:
    """The same table as a frame of polars or pandas."""
    import pandas as pd
    import polars as pl

    frame = pl.read_csv(path, separator=table.separator, infer_schema_length=None, glob=False)
    if rng.random() < 0.5:
        return frame
    made = pd.DataFrame({name: frame[name].to_list() for name in frame.columns})
    return made.set_index("date") if rng.random() < 0.5 and "date" in made else made


def afterwards(table: Table, data: Any, path: Path) -> None:
    """The table for the trained model: the newest values are the past, and times go on from them."""
    for call in (lambda: read_windows(data.codec, DataFile(path)), lambda: read_past(path, data.codec)):
        with suppress(UserError):
            call()
    try:
        futures = read_futures(data.codec, DataFile(path), 4)
    except UserError:
        return
    assert [future.series or "" for future in futures] == list(expected(table)), "other series are answered"
    for future in futures:
        newest(table, data, future)


def newest(table: Table, data: Any, future: Any) -> None:
    """The past that a series is forecast from ends with its newest values, and its times go on from them."""
    name = future.series or ""
    truth = expected(table)[name][:, [table.names.index(name) for name in data.codec.names]]
    known = int(np.flatnonzero(~np.isnan(truth).all(axis=1))[-1]) + 1
    assert future.first == 1 - (len(truth) - known)
    assert future.steps == 4 + len(truth) - known
    past = future.window[0, : data.codec.past, : data.codec.values]
    last = future.codec.denormalise(past.double())[-1].numpy()
    there = ~np.isnan(truth[known - 1])
    assert np.allclose(last[there], truth[known - 1][there], rtol=1e-4), "the past is not the newest"
    if future.times and data.codec.step is not None:
        first = min(step for series, step, _ in table.rows if series == name)
        times = [STEPS[table.kind](first + known + n).strftime(table.form) for n in range(future.steps)]
        assert list(future.times) == times, f"{future.times[:2]} for {times[:2]}"


def one(seed: int, folder: Path) -> tuple[str, Table]:
    rng = random.Random(seed)
    table = make(rng)
    for change in rng.choices((_rows, _rows, _columns, _writing, _damage, None), k=rng.choice((1, 1, 2, 3, 4))):
        if change is not None:
            change(rng, table)
    if any(change == "double" for change in table.changes) and table.must_refuse and "drop" in table.changes:
        # the doubled row may have been dropped again
        rows = [(series, step) for series, step, _ in table.rows]
        others = {"cell", "time", "no header", "double name", "no series", "offsets"} & set(table.changes)
        table.must_refuse = len(set(rows)) < len(rows) or bool(others)
    try:
        return check(rng, table, folder), table
    except Exception as error:
        error.add_note(f"{table.kind}, {table.changes}, {table.options}, form {table.form!r}")
        raise


def run(cases: int, seed: int) -> tuple[dict[str, int], list[str]]:
    """How many tables were read and refused, and what failed."""
    counts, failed = {"read": 0, "refused": 0}, list[str]()
    with tempfile.TemporaryDirectory() as folder:
        for number in range(seed * 1_000_000, seed * 1_000_000 + cases):
            try:
                counts[one(number, Path(folder))[0]] += 1
            except Exception as error:
                failed.append(f"seed {number}:\n{''.join(traceback.format_exception(error, limit=-2))}")
    return counts, failed


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--cases", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--one", type=int)
    given = parser.parse_args()
    torch.set_num_threads(1)
    if given.one is not None:
        with tempfile.TemporaryDirectory() as place:
            print(one(given.one, Path(place)))
    else:
        numbers, wrong = run(given.cases, given.seed)
        print("\n".join(wrong[:20]))
        print(f"{given.cases} tables: {numbers['read']} read, {numbers['refused']} refused, {len(wrong)} failed")
        raise SystemExit(bool(wrong))
