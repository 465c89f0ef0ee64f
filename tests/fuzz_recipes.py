"""Cases of ``fuzz.py``: every shipped recipe on tiny data, with keys, values, types, overrides and bytes changed."""

import copy
import json
import random
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import tomli_w

from parallel_text import write_parallel

VALUES: list[Any] = [
    0, -1, 1, 2, 3, 7, 2**31, 2**53, 2**53 + 1, 2**63 - 1, -(2**63), True, False, 0.0, -0.0, 0.5, 1.5, -1.0, 1e-320, 5e-324,
    1e-30, 1e30, 1e300, 1.7e308, float("inf"), float("-inf"), float("nan"), "", "none", "auto", "x", "../x", "/dev/zero",
    "~", "~nobody/x", "a" * 5000, "\u202e", "\x1b[31m", "=cmd|calc", "\n", "\t", "é" * 300, "utf-16", "utf-7", "rot13",
    [], [1], [1, 2], ["a"], [[1, [2, [3]]]], [0.5, 0.5, 0.5], [2**63 - 1] * 3, [True, False], {}, {"a": 1}, {"a": {"b": []}},
    {"schedule": "linear"}, {"schedule": "linear", "start": 1e308, "end": -1e308, "steps": 1},
    {"schedule": "exponential", "rate": 1e300}, {"schedule": "piecewise", "steps": [1, "x"], "values": [[], 1]},
    {"schedule": "table", "values": [float("nan")]}, {"draw": "sample", "temperature": 5e-324}, {"draw": "top_k", "k": 2**53},
    {"draw": "top_p", "p": [1]}, {"gate": "every", "interval": 0}, {"gate": "every", "k": "x"}, {"matched_to": "x"},
    {"measured": "/dev/null"}, {"measured": 3}, {"schedule": 3}, {"schedule": "linear", "draw": "sample"},
]  # fmt: skip
TEXTS = [
    "nan", "inf", "1e400", "9" * 5000, "0x" + "f" * 40, "1_000", "1979-05-27", "07:32:00", "9999-12-31T23:59:59+23:59", "[",
    "{", "[[", "{a=1}", '"""', "'", "\\", "\x00", "\x1b", "é", "a b", "=", "[" * 3000, "{a=" * 500, '"\\ud800"', '"\\u0000"',
    "true", "none", "-0", "+1", "1.", ".5", "1e5", "2**63", "''", "[1,", "[1,2", "x" * 3000,
]  # fmt: skip
KEYS = [
    "", "x", "lr", "path", "kind", "name", "seed", "size", "method", "arms", "é", "a.b", "\x1b", "__class__", "label",
]  # fmt: skip


class World:
    """Tiny data of every kind, and each shipped recipe on them."""

    def __init__(self, folder: Path) -> None:
        from freerun.recipes.source import shipped_recipes
        from huggingface_world import model_folder, rows, write_lines

        folder.mkdir()
        words = ["abc", "bca", "cab", "abba", "bab", "cac", "acab", "bacca", "cabba", "accab"]
        pairs = "".join(f"{word}\t{' '.join(word.upper())}\n" for word in words)
        for name in ("train", "dev", "test", "dut_train", "dut_dev", "dut_test"):
            (folder / ("dut" if "_" in name else "pairs")).mkdir(exist_ok=True)
            (folder / ("dut" if "_" in name else "pairs") / f"{name}.tsv").write_text(pairs)
        (folder / "text.txt").write_text("the cat sat on the mat, and the dog ate the cat's hat. " * 60)
        (folder / "load.csv").write_text(
            "date,OT,b\n" + "".join(f"2020-01-{n // 24 + 1:02} {n % 24:02}:00,{n % 7}.5,{n % 5}\n" for n in range(300))
        )
        write_parallel(folder / "parallel")
        write_lines(folder / "rows.jsonl", rows("pairs"))
        model_folder(folder / "t5", "t5")
        windows = {"windows": [4, 2, 2], "past": 4, "horizon": 3}
        data: dict[str, dict[str, Any]] = {
            "article": windows, "lorenz96": windows, "thomas": windows, "mackey-glass": windows,
            "mackey-glass-symbols": windows, "ring": {"walks": [4, 2, 2], "length": 4},
            "mackey-glass-demo": windows, "char-lm": {"path": str(folder / "text.txt"), "length": 16, "stride": 16},
            "copy": {"train": 40, "dev": 4, "test": 4},
            "etth1": {"path": str(folder / "load.csv"), "past": 6, "horizon": 3, "split": [200, 40, 40]},
            "finetune-pairs": {"path": str(folder / "rows.jsonl")},
            "translate": {"path": str(folder / "parallel"), "subwords": 300},
            "g2p-cmudict": {"path": str(folder / "pairs"), "drop_overlap": False},
            "g2p-cmudict-deep": {"path": str(folder / "pairs"), "drop_overlap": False},
            "g2p-sigmorphon": {"path": str(folder / "dut"), "drop_overlap": False},
            "g2p-demo": {"kind": "pairs", "path": str(folder / "pairs"), "drop_overlap": False},
        }  # fmt: skip
        self.tables: dict[str, dict[str, Any]] = {}
        for name, path in shipped_recipes().items():
            table = tomllib.loads(path.read_text("utf-8"))
            if name not in data or "method" not in table:
                continue
            if name == "g2p-demo":
                del table["data"]["limit"]
            table["data"] |= data[name]
            model = table.setdefault("model", {})
            if name == "finetune-pairs":
                model["path"] = str(folder / "t5")
            else:
                model |= {"size": 8}
                model |= {key: 1 for key in ("layers", "heads") if key in model}
                model |= {"embedding": 4} if "embedding" in model else {}
            table["train"] |= {"batch_size": 4, "updates": 2, "warmup": 0, "accumulate": 1, "threads": 1}
            self.tables[name] = table


def case(rng: random.Random, world: World, inside: Path, out: Path) -> tuple[str, Callable[[], int]]:
    """What is changed, and the command."""
    name = rng.choice(sorted(world.tables))
    table = copy.deepcopy(world.tables[name])
    mild = rng.random() < 0.4  # so that about half of all recipes come to be trained
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        change(rng, table, mild=mild)
    overrides = [override(rng, table) for _ in range(0 if mild else rng.choice((0, 0, 1, 1, 3)))]
    raw = tomli_w.dumps(table).encode()
    if not mild and rng.random() < 0.2:
        raw = garbled(rng, raw)
    path = inside / f"{name}.toml"
    path.write_bytes(raw)
    return f"{name}, {overrides!r}"[:300], lambda: train(path, overrides, out / "run")


def train(path: Path, overrides: list[str], out: Path) -> int:
    """``freerun train``, of at most two updates: what a run of many would do is tried elsewhere."""
    from freerun.recipes import load_recipe
    from freerun.recipes.train import run_recipe

    recipe = load_recipe(path, overrides)
    train = recipe.train
    short = replace(
        train, updates=min(train.updates, 2), warmup=0, evaluate_every=2, save_every=2, threads=min(train.threads, 1),
        evaluate_items=2, batch_size=min(train.batch_size, 64), accumulate=min(train.accumulate, 2, train.batch_size),
    )  # fmt: skip
    run_recipe(replace(recipe, train=short), out)
    return 0


def change(rng: random.Random, table: dict[str, Any], *, mild: bool) -> None:
    """One thing in a table, somewhere; a mild one is to another value of the same type."""
    places = list(_places(table))
    inside, key = rng.choice(places)
    how = rng.randrange(6)
    if mild:
        inside[key] = like(rng, inside[key])
    elif how == 0:
        del inside[key]
    elif how == 1 and isinstance(inside, dict):
        inside[rng.choice(KEYS)] = copy.deepcopy(rng.choice(VALUES))
    elif how == 2 and isinstance(inside, dict):
        letters = list(key)
        rng.shuffle(letters)
        inside["".join(letters) if rng.random() < 0.3 else key[:-1] or "k"] = inside.pop(key)
    elif how == 3:
        other, from_key = rng.choice(places)
        inside[key] = copy.deepcopy(other[from_key] if _there(other, from_key) else None) or 3
    else:
        inside[key] = copy.deepcopy(rng.choice(VALUES))


def like(rng: random.Random, value: Any) -> Any:
    """Another value of the same type, which may well be allowed."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return rng.choice((1, 2, 3, 4, 5, 8, 16, 31, 100))
    if isinstance(value, float):
        return rng.choice((0.0, 1e-3, 0.1, 0.25, 0.5, 0.75, 0.99, 1.0, 2.0, 10.0, 1e-12, 1e6))
    if isinstance(value, str):
        return rng.choice(CHOICES)
    return copy.deepcopy(rng.choice(VALUES)) if not value or rng.random() < 0.5 else value


CHOICES = [
    "recurrent", "transformer", "transformer_lm", "recurrent_forecaster", "plain_forecaster", "transformer_forecaster",
    "article", "shallow_plrnn", "huggingface", "rnn", "gru", "lstm", "luong", "rope", "learned", "swiglu", "gelu",
    "relu", "rms", "layer", "point", "gaussian", "student_t", "quantiles", "error", "drop", "cut", "standard", "none",
    "last", "linear", "ignore", "copy", "reverse", "digits", "shapes", "sample", "greedy", "auto", "expected", "token",
    "step", "sequence", "batch", "teacher_forcing", "free_running", "scheduled_sampling", "two_pass", "parallel",
    "confidence_aware", "token_noise", "multi_step", "pushforward", "replay_buffer", "sparse_teacher_forcing",
    "generalised_teacher_forcing", "reverse_scheduled_sampling", "gaussian_noise", "data_as_demonstrator_online", "per",
    "wer", "nrmse", "mse", "chrf", "bleu", "teacher_forced_loss", "adam", "adamw", "sgd", "cosine", "inverse_sqrt",
    "bf16", "no", "mackey_glass", "thomas", "lorenz63", "lorenz96", "jacobi", "window", "draft",
]  # fmt: skip


def _there(inside: Any, key: Any) -> bool:
    return key in inside if isinstance(inside, dict) else key < len(inside)


def _places(table: Any) -> Iterator[tuple[Any, Any]]:
    """Every key of every table and every entry of every list."""
    for key in list(table) if isinstance(table, dict) else range(len(table)):
        yield table, key
        if isinstance(table[key], dict | list):
            yield from _places(table[key])


def override(rng: random.Random, table: dict[str, Any]) -> str:
    """One ``--set``, of a key that there is or of none."""
    section = rng.choice(["data", "model", "method", "train", "evaluate", "compare", "", "x"])
    inside = table.get(section)
    keys = list(inside) if isinstance(inside, dict) and inside else ["updates", "seed", "arms.0.label", "x"]
    key = rng.choice([*keys, rng.choice(keys), rng.choice(KEYS), "arms.0.method.name", "arms.99.label", "arms.-1.x"])
    value = rng.choice(TEXTS) if rng.random() < 0.5 else _toml(rng.choice(VALUES))
    text = f"{section}.{key}={value}" if section else f"{key}={value}"
    return text if rng.random() < 0.9 else text.replace("=", rng.choice(("", "==", " = ", ".=")), 1)


def _toml(value: Any) -> str:
    try:
        return tomli_w.dumps({"v": value}).partition("= ")[2].strip()
    except (TypeError, ValueError):
        return json.dumps(value, default=str)


def garbled(rng: random.Random, raw: bytes) -> bytes:
    """Bytes flipped, taken out, put in twice, in another encoding."""
    how = rng.randrange(7)
    at, to = sorted(rng.randrange(len(raw) + 1) for _ in range(2))
    if how == 0:
        return raw[:at] + bytes(rng.randrange(256) for _ in range(rng.randrange(1, 9))) + raw[at:]
    if how == 1:
        return raw[:at] + raw[min(to, at + 40):]  # fmt: skip
    if how == 2:
        return raw[:at] + raw[at:to] * 2 + raw[to:]
    if how == 3:
        return raw.decode(errors="replace").encode(rng.choice(("utf-16", "utf-32", "latin-1")), errors="replace")
    if how == 4:
        return raw.replace(b"\n", rng.choice((b"\r", b"\r\n", b"\0", b"\x85")))
    if how == 5:
        return raw[:at] + rng.choice(TEXTS).encode(errors="replace") + raw[at:]
    return raw[:at]
