"""Parts of ``recorded.py`` that go through files: runs and comparisons by the command, and data."""

import contextlib
import json
import math
import os
import re
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Callable, Iterator, Mapping
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import tomli_w
import torch

from freerun import data
from huggingface_world import CHAT, model_folder, rows, write_lines
from parallel_text import PAIRS, write_parallel

Record = Callable[[str, Any], None]

RECIPES = Path(__file__).parent.parent / "recipes"
UNSTABLE = re.compile(r"seconds|memory|versions|^time$|updates_per|updates/s")
CLOCK = re.compile(r"\b\d+(\.\d+)? (s|updates/s|minutes?|hours?)\b|\d+:\d\d(:\d\d)?\b|freerun [\d.]+.*|torch [\d.]+\S*")

MOVING = re.compile(r"it/s|runs done|^update \d+/|^[─-╿]")
"""Lines that come and go with the clock, and tables with seconds in them."""

WINDOWS = {"data.windows": [48, 12, 12], "data.trajectories": 6, "data.past": 8, "data.horizon": 6}
PLACES = {"lorenz96": 40, "article": 10, "thomas": 3, "mackey-glass": 1, "mackey-glass-demo": 1}
"""Recipe -> channels of its system."""
WORDS = ("g2p-cmudict", "g2p-sigmorphon", "g2p-demo")
SHORT: dict[str, dict[str, Any]] = {
    "copy": {"data.train": 200, "data.dev": 20, "data.test": 20},
    **dict.fromkeys(PLACES, WINDOWS),
    "char-lm": {
        "data.path": "text.txt", "data.length": 16, "data.stride": 16, "model.layers": 2, "model.heads": 2,
        "evaluate.block": 24, "train.batch_size": 8,
    },
    "etth1": {"data.path": "load.csv", "data.past": 12, "data.horizon": 6, "data.split": [200, 60, 60]},
    "translate": {"data.path": "parallel", "data.subwords": 300, "model.layers": 2, "model.heads": 2},
    **{name: {"data.path": "pairs", "data.kind": "pairs"} for name in WORDS},
    "finetune": {"data.path": "pairs.jsonl", "model.path": "t5", "data.dev": 0.15, "data.test": 0.15, "train.lr": 0.01},
    "completions": {"data.path": "completions.jsonl", "model.path": "gpt2"},
    "conversations": {"data.path": "messages.jsonl", "model.path": "llama"},
}  # fmt: skip
DIAGNOSED = ("copy", "char-lm", "etth1", "mackey-glass", "lorenz96", "translate", "g2p-demo", "finetune", "completions")
COMPARED = ("char-lm", "mackey-glass", "translate", "finetune", "etth1", "g2p-demo")


@contextlib.contextmanager
def folder_of_data() -> Iterator[Path]:
    """A temporary folder with tiny data of every kind in it, and in it until the end."""
    before = Path.cwd()
    with tempfile.TemporaryDirectory() as made:
        os.chdir(made)
        words = ["".join("abcd"[(n // 4**place + place) % 4] for place in range(2 + n % 4)) for n in range(120)]
        words = list(dict.fromkeys(words))
        Path("pairs").mkdir()
        for split, part in (("train", words[20:]), ("dev", words[:10]), ("test", words[10:20])):
            lines = "".join(f"{word}\t{' '.join(word.upper().replace('AB', 'X'))}\n" for word in part)
            for name in (split, f"dut_{split}"):
                Path("pairs", f"{name}.tsv").write_text(lines, encoding="utf-8")
        Path("text.txt").write_text(
            "".join(f"the cat {n * n % 97} sat on the mat, and ate. " for n in range(120)), "utf-8"
        )
        write_table(Path("load.csv"), ["OT", "b"], 340)
        for name, channels in PLACES.items():
            labels = (
                ["x"] if channels == 1 else list("xyz") if channels == 3 else [f"x{n + 1}" for n in range(channels)]
            )
            write_table(Path(f"{name}.csv"), labels, 12)
        write_parallel(Path("parallel"))
        for shape in ("pairs", "completions", "messages"):
            write_lines(Path(f"{shape}.jsonl"), rows(shape))
        for family, chat in (("t5", None), ("gpt2", None), ("llama", CHAT)):
            model_folder(Path(family), family, chat=chat)
        try:
            yield Path(made)
        finally:
            os.chdir(before)


def write_table(path: Path, names: list[str], count: int) -> None:
    """Hours and numbers by a formula."""
    lines = [
        f"2020-{n // 672 + 1:02}-{n // 24 % 28 + 1:02} {n % 24:02}:00,"
        + ",".join(f"{(n * n * (place + 3) + 7 * place) % 101 / 10 + n % 24}" for place in range(len(names)))
        for n in range(count)
    ]
    path.write_text("\n".join([f"date,{','.join(names)}", *lines, ""]), encoding="utf-8")


def recipe(name: str) -> Path:
    """A shipped recipe made short, as a file."""
    shipped = name if (RECIPES / f"{name}.toml").exists() else "finetune"
    table = tomllib.loads((RECIPES / f"{shipped}.toml").read_text(encoding="utf-8"))
    for key in ("source", "target", "prefix") if shipped != name else ():
        del table["data"][key]
    if name == "g2p-demo":
        table["data"] = {}
    train = {
        "train.updates": 30,
        "train.evaluate_every": 15,
        "train.save_every": 30,
        "train.warmup": 5,
        "train.threads": 1,
    }
    size = {} if shipped == "finetune" else {"model.size": 16}
    smaller = {"train.accumulate": 2, "train.batch_size": 8} if shipped == "finetune" else {}
    for key, value in (train | size | smaller | SHORT[name]).items():
        section, inner = key.split(".")
        table.setdefault(section, {})[inner] = value
    if name in COMPARED and "compare" in table:
        arms = table["compare"]["arms"]
        table["compare"] |= {"arms": [*arms[:2], *arms[-1:]] if len(arms) > 2 else arms, "seeds": [0, 1], "workers": 1}
    path = Path(f"{name}.toml")
    path.write_text(tomli_w.dumps(table), encoding="utf-8")
    return path


def stable(value: Any) -> Any:
    """A value without seconds, memory, versions and folders."""
    if isinstance(value, Mapping):
        return {key: stable(part) for key, part in value.items() if not UNSTABLE.search(key)}
    if isinstance(value, list):
        return [
            stable(part) for part in value if not (isinstance(part, dict) and UNSTABLE.search(str(part.get("metric"))))
        ]
    return value.replace(str(Path.cwd()), "FOLDER") if isinstance(value, str) else value


def command(record: Record, name: str, *arguments: str) -> str:
    """Run ``freerun``; record its exit status and what it prints, without times."""
    done = subprocess.run(
        [sys.executable, "-m", "freerun", *arguments], capture_output=True, text=True, check=False,
        env={**os.environ, "COLUMNS": "100", "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""},
    )  # fmt: skip
    printed = re.sub(r"\S*site-packages\S*", "PACKAGE", done.stderr.replace(str(Path.cwd()), "FOLDER"))
    record(f"{name}/status", done.returncode)
    record(f"{name}/printed", [CLOCK.sub("TIME", line) for line in printed.splitlines() if not MOVING.search(line)])
    return done.stdout


def recipes(record: Record, only: Callable[[str], bool]) -> None:
    """Every shipped recipe for 30 updates: log, summary, weights, answers, scores, diagnosis; some compared."""
    inputs = {
        "char-lm": "the cat\nand ate\n", "copy": "abc\nha\n", "translate": "a man sleeps .\na big dog sees a woman .\n",
        "finetune": "a man runs.\nthe dog sleeps.\n", "completions": "a man runs. ->\nthe dog sleeps. ->\n",
        "conversations": "hello\na man runs.\n", **dict.fromkeys(WORDS, "abcd\ncab\n"),
    }  # fmt: skip
    with folder_of_data():
        for name in filter(only, SHORT):
            printed = command(record, f"{name}/train", "train", str(recipe(name)), "--out", f"runs/{name}")
            record(f"{name}/train/shown", CLOCK.sub("TIME", printed).splitlines())
            run_folder(record, name, Path("runs", name))
            path = Path(f"{name}.csv" if name in PLACES else "load.csv" if name == "etth1" else f"{name}.in")
            if name in inputs:
                path.write_text(inputs[name], encoding="utf-8")
            run = f"runs/{name}"
            said = command(record, f"{name}/generate", "generate", run, "--input", str(path))
            record(f"{name}/generate/shown", dict(enumerate(said.splitlines())))
            record(f"{name}/evaluate", as_table(command(record, f"{name}/evaluate", "evaluate", run)))
            if name in ("copy", "translate", "finetune"):
                beams = command(record, f"{name}/beams", "evaluate", run, "--beams", "3")
                record(f"{name}/beams", as_table(beams))
            if name in DIAGNOSED:
                shown = command(record, f"{name}/diagnose", "diagnose", run)
                record(f"{name}/diagnose/shown", shown.splitlines())
            if (found := Path(run, "diagnosis.json")).exists():
                record(f"{name}/diagnose", stable(json.loads(found.read_text(encoding="utf-8"))))
        for name in COMPARED:
            if only(f"compare {name}"):
                shown = command(record, f"compare {name}", "compare", str(recipe(name)), "--out", f"compared/{name}")
                record(f"compare {name}/shown", [line for line in shown.splitlines() if not MOVING.search(line)])
                results = Path("compared", name, "results.json")
                record(f"compare {name}", stable(as_table(results.read_text("utf-8"))) if results.exists() else None)


def as_table(text: str) -> Any:
    try:
        return stable(json.loads(text))
    except ValueError:
        return text


def run_folder(record: Record, name: str, run: Path) -> None:
    """What a run writes: log, summary, items of the test, recipe, settings and weights of the model."""
    from safetensors.torch import load_file

    if not run.exists():
        return
    for number, line in enumerate((run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()):
        record(f"{name}/metrics/{number}", stable(json.loads(line)))
    for file in ("summary.json", "model/model.json", "model/config.json"):
        if (run / file).exists():
            record(f"{name}/{file}", stable(json.loads((run / file).read_text(encoding="utf-8"))))
    for number, line in enumerate((run / "test-items.jsonl").read_text(encoding="utf-8").splitlines()):
        record(f"{name}/items/{number}", stable(json.loads(line)))
    record(f"{name}/recipe", stable(tomllib.loads((run / "recipe.toml").read_text(encoding="utf-8"))))
    for path in sorted(run.glob("model/**/*.safetensors")):
        for key, weights in sorted(load_file(path).items()):
            record(f"{name}/weights/{path.relative_to(run)}/{key}", weights)


def fields(batch: Any) -> dict[str, Any]:
    """A batch's tensors by name."""
    context = batch.context if isinstance(batch.context, Mapping) else {}
    named = {name: getattr(batch, name) for name in ("targets", "history", "mask", "weights", "eligible", "rows")}
    return {name: value for name, value in (named | dict(context)).items() if value is not None}


def every_kind(record: Record, only: Callable[[str], bool]) -> None:
    """Each kind of data: header, fingerprint, two batches, codec there and back; the systems' first values."""
    numbers = np.array([[math.sin(n / 7 + place) * (place + 1) for place in range(3)] for n in range(300)])
    windows = data.SystemOptions(past=6, horizon=5, windows=(8, 2, 4), trajectories=4)
    gaps = numbers.copy()
    gaps[[50, 51, 120], 1] = np.nan
    noisy = data.SystemOptions(past=6, horizon=5, windows=(8, 2, 4), trajectories=4, noise=0.1, seed=3)
    hours = data.SeriesOptions(
        past=12, horizon=6, split=(200, 60, 60), time="date", targets=("OT",), calendar=("hour", "weekday")
    )
    few, short = {"train": 90, "dev": 9, "test": 9}, {"unknown": "drop", "max_length": 12, "too_long": "drop"}
    kinds: dict[str, Callable[[], Any]] = {
        "copy": lambda: data.load_toy("copy"),
        "reverse": lambda: data.load_toy("reverse", symbols=5, max_length=6, seed=2, words=few),
        "cmudict": lambda: data.load_cmudict(data.PairOptions(limit=500, **short)),
        "pairs": lambda: data.load_pairs("pairs", data.PairOptions(drop_overlap=True, unknown="drop")),
        "pairs by language": lambda: data.load_pairs("pairs", language="dut"),
        "parallel": lambda: data.load_pairs("parallel", data.ParallelOptions(subwords=300)),
        "text": lambda: data.load_text("text.txt", data.TextOptions(length=16, stride=5)),
        "series": lambda: data.load_series("load.csv", hours),
        "series, one sequence": lambda: data.load_series("load.csv", hours, "sequence"),
        "arrays": lambda: data.series_from_arrays(numbers, data.SeriesOptions(past=8, horizon=4)),
        "gaps": lambda: data.series_from_arrays(gaps, data.SeriesOptions(past=8, horizon=4, missing="linear")),
    }  # fmt: skip
    for system, layout in product(("mackey_glass", "thomas", "lorenz63", "lorenz96"), ("past", "sequence")):
        kinds[f"{system}, {layout}"] = lambda system=system, layout=layout: data.load_system(system, windows, layout)
    for system in ("mackey_glass", "thomas"):
        kinds[f"{system}, noise"] = lambda system=system: data.load_system(system, noisy)
    with folder_of_data():
        for name in filter(only, kinds):
            try:
                kind_of_data(record, name, kinds[name]())
            except Exception as error:
                record(f"{name}/error", f"{type(error).__name__}: {error}".replace(str(Path.cwd()), "FOLDER"))


def kind_of_data(record: Record, name: str, loaded: Any) -> None:
    record(f"{name}/header", [line.replace(str(Path.cwd()), "FOLDER") for line in loaded.header()])
    record(f"{name}/fingerprint", loaded.fingerprint)
    record(f"{name}/lengths", list(loaded.lengths))
    for indices in ([0, 1, 2], [5, 3]):
        record(f"{name}/batch {indices}", fields(loaded.batch(indices, torch.arange(len(indices)))))
    for attribute in ("frequencies", "mean", "std", "exponent"):
        if (value := getattr(loaded, attribute, None)) is not None:
            record(f"{name}/{attribute}", value)
    codec = loaded.coder if hasattr(loaded, "coder") else loaded.codec
    if hasattr(codec, "describe"):
        described = codec.describe()
        record(f"{name}/codec", described)
        record(f"{name}/codec read again", type(codec).from_description(described).describe() == described)
    if hasattr(loaded, "window_batch"):
        record(f"{name}/test windows", fields(loaded.window_batch("test", [0, 1])))
        record(f"{name}/free", loaded.free("test"))
        known = loaded.window_batch("test", [0]).targets[0]
        record(f"{name}/there and back", loaded.denormalise(known))
    elif name == "text":
        record(f"{name}/there and back", codec.text(codec.ids("the cat sat").tolist()))
    elif name == "parallel":
        record(f"{name}/there and back", fields(codec.pair_batch(*map(list, zip(*PAIRS[:3], strict=True)))))
    else:
        record(f"{name}/source batch", fields(codec.source_batch(["ab", "ba"], 3)))
