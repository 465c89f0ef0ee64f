"""Cases of ``fuzz.py``: hostile files of every kind of data, to train on, to score on and to answer."""

import io
import json
import random
from collections.abc import Callable
from datetime import date, datetime, timedelta
from pathlib import Path
from typing import Any

from fuzz_recipes import garbled
from parallel_text import PAIRS, write_parallel

NUMBERS = [
    "1e300", "-1e300", "1e308", "1.8e308", "1e-320", "5e-324", "1e30", "1e31", "1e20", "1e12", "nan", "inf", "-inf", "", "NA",
    "null", "9223372036854775808", "18446744073709551616", "9" * 400, "9" * 5000, "1,5", "1_000", "0x10", "١٢", "1e", "--1", "-0",
    "true", "x", "1 2", '"', '""', "=1+1", "1e400", "+1", ".", "1/2", "\x00", "3\x1b[31m", "1e39", "-1e-39", "0", "1",
]  # fmt: skip
TIMES = [
    "0001-01-01", "0001-01-01T00:00:00+23:59", "9999-12-31T23:59:59-23:59", "2020-02-30", "2020-13-01", "31/12/2020", "12:00",
    "2020-01-01T25:00", "1e300", "-1", "9223372036854775807", "2020", "", "now", "2020-W01-1", "10000-01-01", "2020-01-01 00:00:00",
]  # fmt: skip
WORDS = [
    "", " ", "\t", "a", "A" * 20_000, "\x00", "\x1b[2J", "\u202eabc", "\u2028", "é", "e\u0301", "😀", "\ufeff", "=cmd|calc", "a\tb\tc",
    "; DROP", "<script>", "\\n", "\\", '"', "'", "(2)", "a(2)", ";;; x", "#", "\x85", "\x0b", "a" * 200_000, "\ufffd", "ﷺ",
]  # fmt: skip
JSON = [
    "null", "1", "[]", "{}", "true", '"x"', "NaN", "-Infinity", "1e999", "9" * 5000, '"\\ud800"', '"\\u0000"', '"\\u001b[31m"', "[" * 5000,
    '{"a":' * 3000, "[[[]]]", '{"role": "user"}', '[{"role": "assistant", "content": "x"}]', '[{"role": 1, "content": []}]', '""', '" "',
    '[{"role": "user", "content": "\\udfff"}, {"role": "assistant", "content": "x"}]', '[1, "x"]', '"' + "x" * 200_000 + '"', "\\", "'x'",
    '[{"role": "assistant", "content": ""}]', '[{"role": "x", "content": "y"}, {"role": "assistant", "content": "x", "tool_calls": {"a": 1}}]',
]  # fmt: skip


class World:
    """A tiny run of each kind of data."""

    def __init__(self, folder: Path) -> None:
        from huggingface_world import CHAT, model_folder, rows, write_lines

        folder.mkdir()
        self.models = {
            "pairs": model_folder(folder / "t5", "t5"), "completions": model_folder(folder / "gpt2", "gpt2"),
            "messages": model_folder(folder / "llama", "llama", chat=CHAT),
        }  # fmt: skip
        self.rows = {shape: rows(shape)[:12] for shape in self.models}
        who = {"user": "human", "assistant": "gpt"}
        talks = [row["messages"] for row in self.rows["messages"]]
        self.rows["sharegpt"] = [
            {"conversations": [{"from": who[m["role"]], "value": m["content"]} for m in talk]} for talk in talks
        ]
        self.rows["prompted"] = [{"prompt": talk[:-1], "completion": talk[-1:], "tools": None} for talk in talks]
        self.rows["alpaca"] = [
            {"instruction": row["prompt"], "input": "", "output": row["completion"]} for row in self.rows["completions"]
        ]
        chats = dict.fromkeys(("sharegpt", "prompted"), self.models["messages"])
        self.models |= {**chats, "alpaca": self.models["completions"], "tatoeba": self.models["pairs"]}
        for shape, found in self.rows.items():
            write_lines(folder / f"{shape}.jsonl", found)
        good = folder / "good"
        self.runs: dict[str, Path] = {}
        for kind in KINDS:
            (good / kind).mkdir(parents=True)
            path = KINDS[kind][0](random.Random(0), good / kind, self, False)
            self.runs[kind] = folder / "runs" / kind
            train(recipe(self, kind, path), self.runs[kind])


def train(text: str, out: Path) -> int:
    """``freerun train`` of a recipe as text."""
    import tomllib

    from freerun.recipes.read import read_recipe
    from freerun.recipes.source import RecipeSource, key_places
    from freerun.recipes.train import run_recipe

    run_recipe(read_recipe(RecipeSource("fuzz.toml", tomllib.loads(text), key_places(text))), out)
    return 0


def recipe(world: World, kind: str, path: Path) -> str:
    """A recipe that trains one update."""
    _, data, model = KINDS[kind]
    if kind in world.models:
        model = f'kind = "huggingface"\npath = "{world.models[kind]}"'
    return (
        f'name = "fuzz"\n[data]\npath = {json.dumps(str(path))}\n{data}\n[model]\n{model}\n'
        '[method]\nname = "scheduled_sampling"\nteacher_forcing_ratio = 0.5\n'
        "[train]\nupdates = 1\nbatch_size = 4\nevaluate_every = 1\nsave_every = 1\nevaluate_items = 2\n"
        f"[evaluate]\n{'block = 16' if kind == 'text' else ''}\n"
    )


def case(rng: random.Random, world: World, inside: Path, out: Path) -> tuple[str, Callable[[], int]]:
    """What is tried on which kind, and the command."""
    from freerun.cli import commands

    kind = rng.choice(sorted(KINDS))
    path = KINDS[kind][0](rng, inside, world, True)
    how = rng.choice(("train", "train", "evaluate", "generate"))
    title = f"{how} {kind} {path.name}"
    if how == "train":
        return title, lambda: train(recipe(world, kind, path), out / "run")
    one = _one_file(rng, kind, path, inside)
    if how == "evaluate":
        return f"{title} {one.name}", lambda: commands.evaluate(world.runs[kind], one, None) or 0
    return (
        f"{title} {one.name}",
        lambda: commands.generate(world.runs[kind], one, None, None, skip=rng.random() < 0.3) or 0,
    )


def _one_file(rng: random.Random, kind: str, path: Path, inside: Path) -> Path:
    if kind == "sentences":
        sides = [(path / f"test.{end}").read_bytes().split(b"\n") for end in ("en", "de")]
        path = inside / "pairs.tsv"
        path.write_bytes(b"\n".join(b"\t".join(pair) for pair in zip(*sides, strict=False)))
    elif path.is_dir():
        path = path / "test.tsv"
    return path


def _hostile_lines(rng: random.Random, lines: list[str], strange: list[str], separator: str | None) -> bytes:
    lines = list(lines)
    for _ in range(rng.choice((1, 1, 2, 5, len(lines)))):
        at = rng.randrange(len(lines))
        how = rng.randrange(6)
        if how == 0:
            lines[at] = rng.choice(strange)
        elif how == 1 and separator:
            cells = lines[at].split(separator)
            cells[rng.randrange(len(cells))] = rng.choice(strange)
            lines[at] = separator.join(cells)
        elif how == 2:
            lines[at] += rng.choice(strange)
        elif how == 3:
            lines.insert(at, lines[rng.randrange(len(lines))])
        elif how == 4 and len(lines) > 1:
            del lines[at]
        elif separator:
            lines[at] = separator.join(lines[at].split(separator)[::-1] + [""] * rng.randrange(3))
    raw = "\n".join(lines).encode(errors="surrogatepass") + rng.choice((b"\n", b"", b"\n\n"))
    return garbled(rng, raw) if raw and rng.random() < 0.3 else raw


def _pairs(rng: random.Random, folder: Path, world: World, hostile: bool) -> Path:
    words = ["abc", "bca", "cab", "abba", "bab", "cac", "acab", "bacca", "cabba", "accab", "ab", "ba"]
    mark = "\t" if not hostile or rng.random() < 0.5 else "  "
    for split in ("train", "dev", "test"):
        lines = [f"{word}{mark}{' '.join(word.upper())}" for word in words]
        wrong = hostile and rng.random() < 0.6
        raw = _hostile_lines(rng, lines, WORDS, mark) if wrong else ("\n".join(lines) + "\n").encode()
        (folder / f"{split}.tsv").write_bytes(raw)
    return folder


def _text(rng: random.Random, folder: Path, world: World, hostile: bool) -> Path:
    lines = ["the cat sat on the mat, and the dog ate the cat's hat."] * 60
    raw = _hostile_lines(rng, lines, WORDS, " ") if hostile else "\n".join(lines).encode()
    (folder / "text.txt").write_bytes(raw)
    return folder / "text.txt"


def _parallel(rng: random.Random, folder: Path, world: World, hostile: bool) -> Path:
    write_parallel(folder)
    for split in ("train", "dev", "test"):
        for side, end in enumerate(("en", "de")):
            if hostile and rng.random() < 0.4:
                lines = [pair[side] for pair in PAIRS[:10]]
                (folder / f"{split}.{end}").write_bytes(_hostile_lines(rng, lines, WORDS, " "))
    return folder


def _series(rng: random.Random, folder: Path, world: World, hostile: bool) -> Path:
    rows = [
        [str(datetime(2020, 1, 1) + timedelta(hours=n)), "ab"[n // 60], f"{n % 7}.5", f"{n % 5}", f"{n % 3}"]
        for n in range(120)
    ]
    if hostile:
        for _ in range(rng.choice((0, 1, 1, 3))):
            column, strange = rng.choice([(0, TIMES), (1, WORDS), (2, NUMBERS), (3, NUMBERS), (4, NUMBERS)])
            if rng.random() < 0.25:
                value = rng.choice(strange)
                for row in rows:
                    row[column] = value if rng.random() < 0.97 else row[column]
            else:
                rows[rng.randrange(len(rows))][column] = rng.choice(strange)
        if rng.random() < 0.1:
            rng.shuffle(rows)
        if rng.random() < 0.1:
            scale = rng.choice((1e-320, 1e-300, 1e-100, 1e25, 1e100, 1e307))
            for row in rows:
                row[2] = repr(scale * (len(row[0]) + rng.random()))
    if hostile and rng.random() < 0.3:
        return _series_parquet(rng, folder, rows)
    names = ["date", "who", "a", "b", "c"]
    if hostile and rng.random() < 0.15:
        names[rng.randrange(5)] = rng.choice([*WORDS, "a", "date"])
    lines = [",".join(names), *(",".join(row) for row in rows)]
    raw = ("\n".join(lines) + "\n").encode()
    if hostile and rng.random() < 0.4:
        raw = _hostile_lines(rng, lines, NUMBERS + WORDS, ",")
    path = folder / ("load[1].csv" if hostile and rng.random() < 0.1 else "load.csv")
    path.write_bytes(raw)
    return path


def _series_parquet(rng: random.Random, folder: Path, rows: list[list[str]]) -> Path:
    import polars as pl

    columns: dict[str, Any] = {
        "date": [datetime(2020, 1, 1) + timedelta(hours=n) for n in range(len(rows))], "who": [row[1] for row in rows],
        "a": [float(n % 7) for n in range(len(rows))], "b": [n % 5 for n in range(len(rows))], "c": [n % 3 for n in range(len(rows))],
    }  # fmt: skip
    frame = pl.DataFrame(columns, strict=False)
    name = rng.choice(frame.columns)
    whole = pl.Series(name, [rng.choice((0, 1, -1, 2**31 - 1, -(2**31))) for _ in rows])
    long = pl.Series(name, [rng.choice((0, 2**63 - 1, -(2**63), 2**62, n)) for n in range(len(rows))])
    kinds: list[Callable[[], Any]] = [
        lambda: long.cast(pl.Datetime(rng.choice(("ms", "us", "ns")))), lambda: long.cast(pl.Duration("us")),
        lambda: whole.cast(pl.Int32).cast(pl.Date), lambda: long.cast(pl.UInt64, strict=False), lambda: long, lambda: whole.cast(pl.Boolean),
        lambda: pl.Series(name, [rng.choice((1e300, 1e-320, float("nan"), float("inf"), 1.0, None)) for _ in rows], strict=False),
        lambda: pl.Series(name, [rng.choice(NUMBERS + WORDS) for _ in rows]), lambda: pl.Series(name, [b"\xff\x00"] * len(rows)),
        lambda: pl.Series(name, [[1, 2]] * len(rows)), lambda: pl.Series(name, [{"a": 1}] * len(rows)), lambda: pl.Series(name, [None] * len(rows)),
        lambda: pl.Series(name, [rng.choice(["a", "b"]) for _ in rows], dtype=pl.Categorical), lambda: pl.Series(name, [date(1, 1, 1)] * len(rows)),
        lambda: pl.Series(name, [n % 7 for n in range(len(rows))], dtype=pl.Decimal(38, 10)), lambda: pl.Series(name, [timedelta(days=1)] * len(rows)),
    ]  # fmt: skip
    if rng.random() < 0.8:
        frame = frame.with_columns(rng.choice(kinds)().alias(name))
    if rng.random() < 0.1:
        frame = frame.drop(name)
    held = io.BytesIO()
    frame.write_parquet(held)
    raw = held.getvalue()
    if rng.random() < 0.3:
        raw = garbled(rng, raw)
    path = folder / "load.parquet"
    path.write_bytes(raw)
    return path


QUOTED = [
    '"Stop',
    'end"',
    '"Whole."',
    '"a\tb"',
    '""',
    '"',
    'say "no"',
    '"x""y"',
    "'",
    '"a\nb"',
    "«",
    "x;y",
    "\t\t",
    "# no",
    '"""',
]
"""Cells of a table without a heading, in which quotation marks may be letters."""


def _tatoeba(rng: random.Random, folder: Path, world: World, hostile: bool) -> Path:
    lines = [f"The dog {n} runs.\tLe chien {n}.\tCC-BY 2.0" for n in range(150)]
    raw = ("\n".join(lines) + "\n").encode()
    if hostile:
        raw = _hostile_lines(rng, lines, QUOTED if rng.random() < 0.7 else WORDS, "\t")
    path = folder / (rng.choice(("fra.txt", "fra.tsv", "fra[1].tsv", "fra.csv")) if hostile else "fra.txt")
    path.write_bytes(raw)
    return path


def _records(shape: str) -> Callable[..., Path]:
    def make(rng: random.Random, folder: Path, world: World, hostile: bool) -> Path:
        rows = world.rows[shape]
        endings = ["jsonl", "jsonl", "jsonl", "json", "parquet"] + (
            ["csv", "tsv"] if all(isinstance(cell, str) for cell in rows[0].values()) else []
        )
        ending = rng.choice(endings) if hostile else "jsonl"
        path = folder / f"rows.{ending}"
        if ending == "parquet":
            path.write_bytes(_records_parquet(rng, rows))
        elif ending in ("csv", "tsv"):
            mark = "," if ending == "csv" else "\t"
            lines = [mark.join(rows[0]), *(mark.join(row.values()) for row in rows)]
            path.write_bytes(_hostile_lines(rng, lines, WORDS, mark))
        else:
            path.write_bytes(_records_json(rng, rows, ending, hostile))
        return path

    return make


def _records_json(rng: random.Random, rows: list[dict[str, Any]], ending: str, hostile: bool) -> bytes:
    lines = [json.dumps(row) for row in rows]
    if hostile:
        for _ in range(rng.choice((1, 1, 3, len(lines)))):
            at, how = rng.randrange(len(lines)), rng.randrange(5)
            key = rng.choice(list(rows[0]))
            if how == 0:
                lines[at] = rng.choice(JSON)
            elif how == 1:
                lines[at] = "{" + ", ".join(f'"{name}": {rng.choice(JSON)}' for name in rows[0]) + "}"
            elif how == 2:
                lines[at] = lines[at][:-1] + f', "{rng.choice((key, "other", "output"))}": {rng.choice(JSON)}}}'
            elif how == 3:
                lines[at] = json.dumps({**rows[at % len(rows)], key: rng.choice(WORDS)})
            else:
                lines[at] = lines[at].replace(f'"{key}"', '"else"')
    raw = (("[" + ",\n".join(lines) + "]") if ending == "json" else "\n".join(lines) + "\n").encode(
        errors="surrogatepass"
    )
    return garbled(rng, raw) if hostile and rng.random() < 0.3 else raw


def _records_parquet(rng: random.Random, rows: list[dict[str, Any]]) -> bytes:
    import polars as pl

    frame = pl.DataFrame(rows)
    name = rng.choice(frame.columns)
    length = len(rows)
    strange: list[Callable[[], Any]] = [
        lambda: pl.Series(name, [rng.choice(WORDS) for _ in rows]), lambda: pl.Series(name, [None] * length), lambda: pl.Series(name, [1] * length),
        lambda: pl.Series("other", [2**63 - 1] * length).cast(pl.Datetime("us")), lambda: pl.Series("other", [b"\xff"] * length),
        lambda: pl.Series("other", [[{"a": None}]] * length), lambda: pl.Series("\x1b[31m", [1] * length), lambda: pl.Series(name, [["x"]] * length),
        lambda: pl.Series("other", [2**63 - 1] * length).cast(pl.Duration("ms")), lambda: pl.Series("other", [2**31 - 1] * length, dtype=pl.Int32).cast(pl.Date),
    ]  # fmt: skip
    frame = frame.with_columns(rng.choice(strange)())
    held = io.BytesIO()
    frame.write_parquet(held)
    raw = held.getvalue()
    return garbled(rng, raw) if rng.random() < 0.3 else raw


_SMALL = 'kind = "recurrent"\nsize = 8'
KINDS: dict[str, tuple[Callable[..., Path], str, str]] = {
    "words": (_pairs, 'kind = "pairs"\ndrop_overlap = false', _SMALL),
    "text": (_text, 'kind = "text"\nlength = 16\nstride = 16', 'kind = "transformer_lm"\nsize = 8\nlayers = 1\nheads = 1'),
    "sentences": (_parallel, 'kind = "parallel"\nsubwords = 300', 'kind = "transformer"\nsize = 8\nlayers = 1\nheads = 1'),
    "series": (
        _series,
        'kind = "series"\ntime = "date"\nseries = "who"\ntargets = ["a", "b"]\ncovariates = ["c"]\ncalendar = ["hour"]\n'
        "past = 4\nhorizon = 2",
        'kind = "recurrent_forecaster"\nsize = 8',
    ),
    "plain": (_series, 'kind = "series"\npast = 4\nhorizon = 2', 'kind = "recurrent_forecaster"\nsize = 8'),
    **{shape: (_records(shape), 'kind = "records"\ndev = 0.2\ntest = 0.2', "") for shape in ("pairs", "completions", "messages", "sharegpt", "prompted", "alpaca")},
    "tatoeba": (_tatoeba, 'kind = "records"\ndev = 0.2\ntest = 0.2', ""),
    "one file": (_tatoeba, 'kind = "parallel"\nsubwords = 300', 'kind = "transformer"\nsize = 8\nlayers = 1\nheads = 1'),
}  # fmt: skip
"""Kind -> what makes its file, its [data], its [model]."""
