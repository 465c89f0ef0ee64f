"""What the program computes, value by value: recorded before a change, compared after it, equal to the last bit.

    python tests/recorded.py record before.json.gz                     all parts: about 6 minutes on one core
    python tests/recorded.py record before.json.gz --part conformance  kernel, 10 s; "data": 5 s; "recipes": 5 minutes
    python tests/recorded.py record before.json.gz --part recipes --only copy,compare   names that hold one of these
    python tests/recorded.py compare before.json.gz after.json.gz      exit status 1 if a value differs
    python tests/recorded.py compare before.json.gz after.json.gz --renamed map.json --ignore printed --ignore shown

``--only`` of compare, too, leaves the rest out; parts that one side has not are not compared. Record both on one
machine, with OMP_NUM_THREADS=1: floats are kept by all their digits, tensors as a hash of their bytes. A change that
renames a parameter, a log key or a field adds a line to ``NAMES`` or ``TEXTS`` below, or to the file of ``--renamed``:
{"names": {old: new}, "texts": {old: new}, "removed": [name]}, patterns of ``re.sub``, applied to what was before.
"""

import argparse
import contextlib
import dataclasses
import gzip
import hashlib
import json
import math
import os
import re
import subprocess
import sys
import tempfile
import time
import tomllib
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import tomli_w
import torch
from torch import Tensor

import freerun as fr
from freerun import data
from freerun.diagnostics import DiagnosisOptions, as_json, diagnose
from huggingface_world import CHAT, model_folder, rows, write_lines
from parallel_text import PAIRS, write_parallel

NAMES: dict[str, str] = {
    r"/metrics/error_by_lead$": "/metrics/rmse_by_horizon",
    r"/diagnose(.*)\.after_wrong$": r"/diagnose\1.after_error",
    r"/diagnose(.*)\.after_right$": r"/diagnose\1.after_correct",
    r"/diagnose(.*)\.last_tenth\b": r"/diagnose\1.nrmse_last_tenth",
    r"/diagnose(.*)\.gap_by_lead\b": r"/diagnose\1.gap_by_horizon",
    r"/diagnose(.*)\.fans\b": r"/diagnose\1.sample_windows",
    r"(\.sample_windows\.\d+)\.forced$": r"\1.teacher_forced",
    r"(\.sample_windows\.\d+)\.free$": r"\1.free_running",
    r"/diagnose\.data\.counted$": "/diagnose.data.item_noun",
    r"\.(comparisons|summary)\.(\d+)\.method$": r".\1.\2.arm",
    r"\.test_words$": ".test_items",
    r"(\.runs\.\d+)\.words$": r"\1.has_items",
    r"\.train\.evaluate_words$": ".train.evaluate_items",
    r"/copy(.*)\.data\.longest$": r"/copy\1.data.max_length",
    r"\.model\.longest$": ".model.max_positions",
}
"""Pattern of an old value's name -> its new name: r"/report\\.left$" -> "/report.kept"."""
TEXTS: dict[str, str] = {
    r"the model is told the very entry": "the model reads the very entry",
    r"a step leaves the state it is given as it is": "a step leaves the state that it takes as it is",
    r"\banother coin\b": "another gate",
    r"\bcoin=": "gate=",
    r"loss_on='own'": "loss_on='after_warmup'",
    r"enough=": "tolerance=",
    r"another coin": "another gate",
    r"no long series was given": "there is no long series",
}
"""Pattern in a recorded text -> what stands there now: r"\\bcoin=" -> "gate="."""
REMOVED: tuple[str, ...] = (
    # the schemas of a diagnosis and of a comparison count their renamed fields
    r"/diagnose.*\.schema$",
    r"recipes/compare [^.]*\.schema$",
)
"""Patterns of values that are gone on purpose."""

Record = Callable[[str, Any], None]
Only = Callable[[str], bool]


def flat(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    """A value as (name, text or number) pairs: mappings by key, floats by all digits, tensors by hash."""
    sequence = isinstance(value, list | tuple)
    if isinstance(value, Mapping):
        for key, part in value.items():
            yield from flat(f"{name}.{key}", part)
    elif isinstance(value, Tensor):
        full = value.detach().cpu().contiguous()
        digest = hashlib.sha256(full.flatten().view(torch.uint8).numpy().tobytes()).hexdigest()[:16]
        yield name, f"{digest} {tuple(full.shape)} {full.dtype} {full.flatten()[:3].tolist()}"
    elif sequence and re.search(r"['\"]", repr(value)):  # texts and tables stay legible
        for position, part in enumerate(value):
            yield from flat(f"{name}.{position}", part)
    elif sequence and len(repr(value)) > 400:
        digest = hashlib.sha256(repr(value).encode()).hexdigest()[:16]
        yield name, f"{digest} {len(value)} entries {repr(value)[:80]}"
    else:
        yield name, value if isinstance(value, str | int | None) else repr(value)


def tried(record: Record, name: str, function: Callable[..., Any], *arguments: Any, **named: Any) -> None:
    """Record the result of a call, or the error it ends in."""
    try:
        record(name, function(*arguments, **named))
    except Exception as error:
        record(f"{name}/error", f"{type(error).__name__}: {error}")


KEY, STEP = 5, 3
ENGINES = {
    "step": "step", "jacobi": "jacobi", "window": "window", "draft": "draft", "1": 1, "2": 2,
    "window 4": lambda: fr.Window(4), "draft in float32": lambda: fr.Draft(torch.float32),
}  # fmt: skip
IDS = {
    "sample": "sample", "greedy": "greedy", "gumbel": lambda: fr.draws.sample(coupling="gumbel"),
    "warm": lambda: fr.draws.sample(temperature=1.5), "top": lambda: fr.draws.sample(top_k=3, top_p=0.8),
    "top, gumbel": lambda: fr.draws.sample(top_k=3, top_p=0.8, coupling="gumbel"),
}  # fmt: skip
VALUES = {"point": 1, "expected": 2, "gaussian": 2, "student_t": 3, "quantile_sample": 3}  # numbers a value
HEADS = [("gaussian", "expected"), ("gaussian", "gaussian"), ("student_t", "student_t")]
HEADS += [("quantiles", "quantile_sample")]
LOSSES = {"gaussian": "gaussian_nll", "student_t": "student_t_nll", "quantiles": "pinball"}
MIXES = ("argmax", "sample", "top_k", "expected", "gumbel_softmax", "straight_through", "sparsemax")
NOISES = {"uniform": {"vocabulary": 5}, "unigram": {"frequencies": (4.0, 1.0, 3.0, 2.0, 1.0)}, "same_sentence": {}}
PIECES = {"steps": (0, 4, 8), "values": (1.0, 0.5, 0.25)}
WAYS = {
    "greedy": {}, "no end": {"end": None}, "sample": {"draw": "sample", "key": 3},
    "gumbel": {"draw": IDS["gumbel"], "key": 3}, "beams": {"beams": 3},
    "n best": {"beams": 4, "n_best": 2, "length_penalty": 0.6},
}  # fmt: skip


def schedules() -> dict[str, Any]:
    s = fr.schedules
    fall = s.linear(start=1.0, end=0.0, steps=5)
    return {
        "constant": s.constant(0.4), "linear": s.linear(start=1.0, end=0.2, steps=10), "cosine": s.cosine(steps=10),
        "floor": s.linear(start=1.0, end=0.0, steps=10, floor=0.25), "exponential": s.exponential(k=0.9),
        "epochs": s.linear(start=1.0, end=0.0, steps=3, unit="epoch"), "inverse_sigmoid": s.inverse_sigmoid(k=5.0),
        "piecewise": s.piecewise(**PIECES), "constant pieces": s.piecewise(**PIECES, interpolate="constant"),
        "join": s.join(schedules=(s.constant(1.0), fall), boundaries=(4,)), "table": s.table(values=(0.9, 0.5, 0.1)),
    }  # fmt: skip


def random(seed: int, *shape: int, uniform: bool = False) -> Tensor:
    make = torch.rand if uniform else torch.randn
    return make(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def called(value: Any) -> Any:
    return value() if getattr(value, "__name__", "") == "<lambda>" else value


def cases(suite: Any) -> Iterator[tuple[str, Callable[..., Any], dict[str, Any], str]]:
    """Steps of methods: (name, method, its arguments, backend)."""
    for name, backend in suite.CASES:
        yield f"{name}/{backend}", fr.METHODS[name], suite.ARGUMENTS[name], backend
    for name, backend in product(fr.METHODS, ("lstm", "transformer", "vectors", "vectors, warm-up")):
        for field in dataclasses.fields(fr.METHODS[name]) if suite.fits(name, backend) else ():
            if field.init:
                other = suite.OTHER[field.name]
                other = other["vectors" not in backend] if isinstance(other, dict) else other
                arguments = suite.ARGUMENTS[name] | {field.name: other}
                yield f"{name}/{backend}/{field.name}", fr.METHODS[name], arguments, backend
    for backend, engine, draw, ratio in product(suite.BACKENDS, ENGINES, IDS, (0.5, 0.0)):
        if "vectors" not in backend:
            arguments = {"teacher_forcing_ratio": ratio, "engine": ENGINES[engine], "draw": IDS[draw]}
            yield f"engines/{backend}/{engine}/{draw}/{ratio}", fr.scheduled_sampling, arguments, backend
    backends = ("lstm", "transformer", "language model, left prompts", "vectors")
    for name, gate, backend in product(("scheduled_sampling", "two_pass", "parallel"), fr.GATES, backends):
        if suite.fits(name, backend):
            arguments = suite.ARGUMENTS[name] | {"gate": gate}
            yield f"gates/{name}/{backend}/{gate}", fr.METHODS[name], arguments, backend
    for mix, gradient in product(MIXES, ("none", "full")):
        arguments = {"teacher_forcing_ratio": 0.5, "mix": mix, "gradient": gradient, "gold_weight": 0.5}
        yield f"mixes/{mix}/{gradient}", fr.two_pass, arguments, "lstm"
    for noise, exclude in product(NOISES, (False, True)):
        arguments = {"rate": 0.6, "noise": noise, "exclude_gold": exclude} | NOISES[noise]
        yield f"noise/{noise}/{exclude}", fr.token_noise, arguments, "gru"
    for name, schedule in schedules().items():
        yield f"scheduled/{name}", fr.scheduled_sampling, {"teacher_forcing_ratio": schedule}, "gru"
    amounts = {"scheduled_sampling": "teacher_forcing_ratio", "generalised_teacher_forcing": "alpha"}
    ways = (("vectors", "vectors, warm-up"), ("full", "none", 2), ("auto", "step", "jacobi", 2), amounts)
    for backend, gradient, engine, method in product(*ways):
        arguments = {amounts[method]: 0.4, "gradient": gradient, "engine": engine}
        yield f"rolled/{method}/{backend}/{gradient}/{engine}", fr.METHODS[method], arguments, backend


def run(record: Record, name: str, method: Any, arguments: dict[str, Any], model: Any, batch: Any) -> None:
    """Record one step of a method: identity, loss, history, report, outputs, gradients."""
    from builders import gradients

    try:
        built = method(**{key: called(value) for key, value in arguments.items()})
        record(f"{name}/repr", repr(built))
        outcome = built.run(model, batch, fr.Step(STEP, sample=96, epoch=0.5), KEY)
        parts = {part: getattr(outcome, part) for part in ("loss", "total", "count", "outputs")}
        parts |= {"history": outcome.fed.history, "mask": outcome.fed.mask, "report": dict(outcome.report)}
        slopes = gradients(model, outcome.loss)
        parts["gradients"] = torch.cat([slopes[each].flatten() for each in sorted(slopes)])
        for part, value in parts.items():
            record(f"{name}/{part}", value)
    except Exception as error:
        record(f"{name}/error", f"{type(error).__name__}: {error}")


def conformance(record: Record, only: Only) -> None:
    """Every method on every model of the conformance suite, and around them."""
    import test_conformance as suite

    for name, method, arguments, backend in cases(suite):
        if only(name):
            run(record, name, method, arguments, *suite.BACKENDS[backend]())
    kinds = ("PlainForecaster", "RecurrentForecaster", "TransformerForecaster")
    for (head, draw), kind, gradient in product(HEADS, kinds, ("auto", "none")):
        torch.manual_seed(3)
        model = getattr(fr.models, kind)(4, size=8, head=head).double()
        plain = kind == "PlainForecaster"
        batch = suite.warmed() if plain else suite.vector_batch()
        batch = batch.replace(context=None if plain else {"past": random(7, 4, 5, 4)})
        arguments = {"teacher_forcing_ratio": 0.4, "draw": draw, "objective": LOSSES[head], "gradient": gradient}
        if only(name := f"heads/{kind}/{head}/{draw}/{gradient}"):
            run(record, name, fr.scheduled_sampling, arguments, model, batch)
    _alone(record, suite.ragged(64), suite.vector_batch(16))
    for backend in suite.BACKENDS:
        if only(f"generate/{backend}"):
            _free(record, backend, suite)
    horizon = suite.vector_batch(6)
    horizon = horizon.replace(mask=torch.ones_like(horizon.mask), context={"past": random(7, 6, 5, 4)})
    about = DiagnosisOptions(exponent=0.1, period=2, long_series=random(5, 200, 4))
    for head in ("point", "gaussian"):
        torch.manual_seed(3)
        model = fr.models.RecurrentForecaster(4, size=8, head=head).double()
        tried(record, f"diagnose/forecaster/{head}", lambda *args: as_json(diagnose(*args)), model, horizon, about)


def _alone(record: Record, batch: Any, vectors: Any) -> None:
    """Schedules, gates, draws, objectives, distributions, metrics and keys by themselves."""
    for (name, schedule), step, epoch in product(schedules().items(), (0, 3, 7, 50), (None, 1.5)):
        at = step if epoch is None else fr.Step(step, sample=32 * step, epoch=epoch)
        tried(record, f"schedules/{name}/{step}/{epoch}", schedule, at)
    for name, (preset, _) in fr.PRESETS.items():
        make = partial(preset, steps=100, **({"length": 8} if name == "bptt_sa" else {}))
        tried(record, f"presets/{name}", lambda make=make: repr(make()))
    for gate, ratio in product(fr.GATES, (0.0, 0.3, 1.0)):
        tried(record, f"gate/{gate}/{ratio}", fr.GATES[gate](), batch, ratio, KEY)
    logits, wide = random(1, 64, 7, 5), random(2, 16, 6, 12)
    for name in (*IDS, *VALUES):
        draw = fr.draws.resolve(called(IDS.get(name, name)))
        outputs = (logits if name in IDS else wide[..., : 4 * VALUES[name]]).flatten(0, 1)
        rows, positions = torch.arange(len(outputs)), torch.arange(len(outputs)) % 7
        record(f"draw/{name}/repr", repr(draw))
        noise = draw.noise(KEY, rows, positions, outputs.shape[-1])
        tried(record, f"draw/{name}", draw.choose, outputs, noise)
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        weights = torch.rand(64, 7, generator=torch.Generator().manual_seed(3)).to(dtype)
        for smoothing, weighed in product((0.0, 0.1), (batch, batch.replace(weights=weights))):
            name = f"objective/cross_entropy/{smoothing}/{dtype}/{weighed.weights is not None}"
            loss = partial(fr.objectives.cross_entropy(smoothing), logits.to(dtype), weighed)
            tried(record, name, lambda loss=loss: dict(enumerate(loss())))
        for name, numbers in (("mse", 1), ("gaussian_nll", 2), ("student_t_nll", 3), ("pinball", 3)):
            outputs = wide[..., : 4 * numbers].to(dtype)
            typed = vectors.replace(targets=vectors.targets.to(dtype), history=vectors.history.to(dtype))
            total, count = fr.objectives.resolve(name, typed)(outputs, typed)
            record(f"objective/{name}/{dtype}", {"total": total, "count": count})
    laws = fr.distributions
    for name, head in (("gaussian", laws.Gaussian()), ("student_t", laws.StudentT()), ("quantiles", laws.Quantiles())):
        outputs = wide[..., : 4 * head.parameters]
        sample = head.sample(outputs, random(4, 16, 6, 4, head.noise_numbers, uniform=True))
        parts = {"mean": head.mean(outputs), "sample": sample, "loss": head.loss(outputs, vectors.targets)}
        for part, value in parts.items():
            record(f"distribution/{name}/{part}", value)
    for name in ("correct", "token_accuracy", "sequence_errors", "sequence_correct", "sequence_accuracy"):
        tried(record, f"metrics/{name}", getattr(fr.metrics, name), logits, batch.targets, batch.mask)
    for name in ("nrmse", "rmse_by_horizon", "valid_time"):
        tried(record, f"metrics/{name}", getattr(fr.metrics, name), wide[..., :4], vectors.targets)
    tried(record, "metrics/first_divergence", fr.metrics.first_divergence, wide, 2.0)
    for labels in (("draw", 3), ("gate", 3), ("noise", 0), ("batches",), ("model",)):
        record(f"keys/{labels}", fr.keys.fold(KEY, *labels))
    record("keys/uniform", fr.keys.uniform(KEY, torch.arange(100)))


def _free(record: Record, backend: str, suite: Any) -> None:
    """Generation, checks and diagnosis of a model."""
    model, batch = suite.BACKENDS[backend]()

    def output(**arguments: Any) -> dict[str, Any]:
        result = fr.generate(model, batch, **{name: called(value) for name, value in arguments.items()})
        return {part: getattr(result, part) for part in ("entries", "lengths", "scores")}

    for way, arguments in WAYS.items():
        usual = {"end": 0 if batch.is_discrete else None, "length": 6}
        tried(record, f"generate/{backend}/{way}", output, **(usual | arguments))
    models = {"itself": model}
    if "vectors" not in backend and "only" not in backend:
        wrong = (suite.Random(model), suite.RandomSteps(model), suite.Coupled(model, 5))
        models |= {type(each).__name__: each for each in wrong}
    for name, each in models.items():
        torch.manual_seed(0)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tried(record, f"check/{backend}/{name}", lambda *args: str(fr.check_model(*args)), each, batch)
    about = DiagnosisOptions(end_symbol=0) if batch.is_discrete else DiagnosisOptions(exponent=0.1, period=2)
    tried(record, f"diagnose/{backend}", lambda *args: as_json(diagnose(*args)), model, batch, about)


RECIPES = Path(__file__).parent.parent / "recipes"
UNSTABLE = re.compile(r"seconds|memory|versions|^time$|updates_per|updates/s")
CLOCK = re.compile(r"\b\d+(\.\d+)? (s|updates/s|minutes?|hours?)\b|\d+:\d\d(:\d\d)?\b|freerun [\d.]+.*|torch [\d.]+\S*")

MOVING = re.compile(r"it/s|runs done|^update \d+/|^[─-╿]")
"""Lines that come and go with the clock, and tables with seconds in them."""

WINDOWS = {"data.windows": [48, 12, 12], "data.trajectories": 6, "data.past": 8, "data.horizon": 6}
CHANNELS = {"lorenz96": 40, "article": 10, "thomas": 3, "mackey-glass": 1, "mackey-glass-demo": 1}
"""Recipe -> channels of its system."""
WORDS = ("g2p-cmudict", "g2p-cmudict-deep", "g2p-sigmorphon", "g2p-demo")
TUNED = {"data.dev": 0.15, "data.test": 0.15, "train.lr": 0.01}
SHORT: dict[str, dict[str, Any]] = {
    "copy": {"data.train": 200, "data.dev": 20, "data.test": 20},
    **dict.fromkeys(CHANNELS, WINDOWS),
    "char-lm": {
        "data.path": "text.txt", "data.length": 16, "data.stride": 16, "model.layers": 2, "model.heads": 2,
        "evaluate.block": 24, "train.batch_size": 8,
    },
    "etth1": {"data.path": "load.csv", "data.past": 12, "data.horizon": 6, "data.split": [200, 60, 60]},
    "translate": {"data.path": "parallel", "data.subwords": 300, "model.layers": 2, "model.heads": 2},
    **{name: {"data.path": "pairs", "data.kind": "pairs"} for name in WORDS},
    "finetune-pairs": {"data.path": "pairs.jsonl", "model.path": "t5", **TUNED},
    "finetune-completions": {"data.path": "completions.jsonl", "model.path": "gpt2", **TUNED},
    "conversations": {"data.path": "messages.jsonl", "model.path": "llama"},
}  # fmt: skip
DIAGNOSED = (
    "copy",
    "char-lm",
    "etth1",
    "mackey-glass",
    "lorenz96",
    "translate",
    "g2p-demo",
    "finetune-pairs",
    "finetune-completions",
)
COMPARED = ("char-lm", "mackey-glass", "translate", "finetune-pairs", "etth1", "g2p-demo")


@contextlib.contextmanager
def folder_of_data() -> Iterator[Path]:
    """A temporary folder with tiny data of every kind in it, and in it until the end."""
    with tempfile.TemporaryDirectory() as made, contextlib.chdir(made):
        words = ["".join("abcd"[(n // 4**each + each) % 4] for each in range(2 + n % 4)) for n in range(120)]
        words = list(dict.fromkeys(words))
        Path("pairs").mkdir()
        for split, part in (("train", words[20:]), ("dev", words[:10]), ("test", words[10:20])):
            lines = "".join(f"{word}\t{' '.join(word.upper().replace('AB', 'X'))}\n" for word in part)
            for name in (split, f"dut_{split}"):
                Path("pairs", f"{name}.tsv").write_text(lines, encoding="utf-8")
        text = "".join(f"the cat {n * n % 97} sat on the mat, and ate. " for n in range(120))
        Path("text.txt").write_text(text, "utf-8")
        write_table(Path("load.csv"), ["OT", "b"], 340)
        for name, channels in CHANNELS.items():
            numbered = [f"x{n + 1}" for n in range(channels)]
            write_table(Path(f"{name}.csv"), {1: ["x"], 3: list("xyz")}.get(channels, numbered), 12)
        write_parallel(Path("parallel"))
        for shape in ("pairs", "completions", "messages"):
            write_lines(Path(f"{shape}.jsonl"), rows(shape))
        for family, chat in (("t5", None), ("gpt2", None), ("llama", CHAT)):
            model_folder(Path(family), family, chat=chat)
        yield Path(made)


def write_table(path: Path, names: list[str], count: int) -> None:
    """Hours and numbers by a formula."""
    lines = [f"date,{','.join(names)}"]
    for n in range(count):
        values = [f"{(n * n * (column + 3) + 7 * column) % 101 / 10 + n % 24}" for column in range(len(names))]
        lines.append(f"2020-{n // 672 + 1:02}-{n // 24 % 28 + 1:02} {n % 24:02}:00," + ",".join(values))
    path.write_text("\n".join([*lines, ""]), encoding="utf-8")


def recipe(name: str) -> Path:
    """A shipped recipe made short, as a file."""
    shipped = name if (RECIPES / f"{name}.toml").exists() else "finetune-completions"
    table = tomllib.loads((RECIPES / f"{shipped}.toml").read_text(encoding="utf-8"))
    for key in ("prompt", "completion", "chat", "prefix") if shipped != name else ():
        del table["data"][key]
    if name == "g2p-demo":
        table["data"] = {}
    train = {"train.updates": 30, "train.evaluate_every": 15, "train.save_every": 30, "train.warmup": 5}
    train["train.threads"] = 1
    tuned = shipped.startswith("finetune")
    size = {} if tuned else {"model.size": 16}
    smaller = {"train.accumulate": 2, "train.batch_size": 8} if tuned else {}
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
        timed = [isinstance(part, dict) and UNSTABLE.search(str(part.get("metric"))) for part in value]
        return [stable(part) for part, out in zip(value, timed, strict=True) if not out]
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


def recipes(record: Record, only: Only) -> None:
    """Every shipped recipe for 30 updates: log, summary, weights, answers, scores, diagnosis; some compared."""
    inputs = {
        "char-lm": "the cat\nand ate\n", "copy": "abc\nha\n", "translate": "a man sleeps .\na big dog sees a woman .\n",
        "finetune-pairs": "a man runs.\nthe dog sleeps.\n",
        "finetune-completions": "a man runs. ->\nthe dog sleeps. ->\n",
        "conversations": "hello\na man runs.\n", **dict.fromkeys(WORDS, "abcd\ncab\n"),
    }  # fmt: skip
    with folder_of_data():
        for name in filter(only, SHORT):
            run = f"runs/{name}"
            printed = command(record, f"{name}/train", "train", str(recipe(name)), "--out", run)
            record(f"{name}/train/shown", CLOCK.sub("TIME", printed).splitlines())
            run_folder(record, name, Path(run))
            path = Path(f"{name}.csv" if name in CHANNELS else "load.csv" if name == "etth1" else f"{name}.in")
            if name in inputs:
                path.write_text(inputs[name], encoding="utf-8")
            printed = command(record, f"{name}/generate", "generate", run, "--input", str(path))
            record(f"{name}/generate/shown", dict(enumerate(printed.splitlines())))
            record(f"{name}/evaluate", as_table(command(record, f"{name}/evaluate", "evaluate", run)))
            if name in ("copy", "translate", "finetune-pairs"):
                beams = command(record, f"{name}/beams", "evaluate", run, "--beams", "3")
                record(f"{name}/beams", as_table(beams))
            if name in DIAGNOSED:
                record(f"{name}/diagnose/shown", command(record, f"{name}/diagnose", "diagnose", run).splitlines())
            if (path := Path(run, "diagnosis.json")).exists():
                record(f"{name}/diagnose", as_table(path.read_text(encoding="utf-8")))
        for name in filter(lambda name: only(f"compare {name}"), COMPARED):
            printed = command(record, f"compare {name}", "compare", str(recipe(name)), "--out", f"compared/{name}")
            record(f"compare {name}/shown", [line for line in printed.splitlines() if not MOVING.search(line)])
            results = Path("compared", name, "results.json")
            record(f"compare {name}", as_table(results.read_text("utf-8")) if results.exists() else None)


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
    for label, file in (("metrics", "metrics.jsonl"), ("items", "test-items.jsonl")):
        for number, line in enumerate((run / file).read_text(encoding="utf-8").splitlines()):
            record(f"{name}/{label}/{number}", as_table(line))
    for file in ("summary.json", "model/model.json", "model/config.json"):
        if (run / file).exists():
            record(f"{name}/{file}", as_table((run / file).read_text(encoding="utf-8")))
    record(f"{name}/recipe", stable(tomllib.loads((run / "recipe.toml").read_text(encoding="utf-8"))))
    for path in sorted(run.glob("model/**/*.safetensors")):
        for key, weights in sorted(load_file(path).items()):
            record(f"{name}/weights/{path.relative_to(run)}/{key}", weights)


def fields(batch: Any) -> dict[str, Any]:
    """A batch's tensors by name."""
    context = batch.context if isinstance(batch.context, Mapping) else {}
    named = {name: getattr(batch, name) for name in ("targets", "history", "mask", "weights", "eligible", "rows")}
    return {name: value for name, value in (named | dict(context)).items() if value is not None}


def every_kind(record: Record, only: Only) -> None:
    """Each kind of data: header, fingerprint, two batches, codec there and back; the systems' first values."""
    numbers = np.array([[math.sin(n / 7 + column) * (column + 1) for column in range(3)] for n in range(300)])
    gaps = numbers.copy()
    gaps[[50, 51, 120], 1] = np.nan
    windows = data.SystemOptions(past=6, horizon=5, windows=(8, 2, 4), trajectories=4)
    noisy = dataclasses.replace(windows, noise=0.1, seed=3)
    hours = data.SeriesOptions(
        past=12, horizon=6, split=(200, 60, 60), time="date", targets=("OT",), calendar=("hour", "weekday")
    )
    plain = data.SeriesOptions(past=8, horizon=4)
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
        "arrays": lambda: data.series_from_arrays(numbers, plain),
        "gaps": lambda: data.series_from_arrays(gaps, dataclasses.replace(plain, missing="linear")),
    }  # fmt: skip
    for system, layout in product(("mackey_glass", "thomas", "lorenz63", "lorenz96"), ("past", "sequence")):
        kinds[f"{system}, {layout}"] = partial(data.load_system, system, windows, layout)
    for system in ("mackey_glass", "thomas"):
        kinds[f"{system}, noise"] = partial(data.load_system, system, noisy)
    with folder_of_data():
        for name in filter(only, kinds):
            try:
                kind_of_data(record, name, kinds[name]())
            except Exception as error:
                record(f"{name}/error", f"{type(error).__name__}: {error}".replace(str(Path.cwd()), "FOLDER"))


def kind_of_data(record: Record, name: str, loaded: Any) -> None:
    record(f"{name}/header", stable(loaded.header()))
    record(f"{name}/fingerprint", loaded.fingerprint)
    record(f"{name}/lengths", list(loaded.lengths))
    for indices in ([0, 1, 2], [5, 3]):
        record(f"{name}/batch {indices}", fields(loaded.batch(indices, torch.arange(len(indices)))))
    scales = dict(zip(("mean", "std"), getattr(loaded, "scales", ()), strict=False))
    for attribute in ("frequencies", "mean", "std", "exponent"):
        if (value := getattr(loaded, attribute, scales.get(attribute))) is not None:
            record(f"{name}/{attribute}", value)
    codec = loaded.codec
    if hasattr(codec, "describe"):
        described = codec.describe()
        record(f"{name}/codec", described)
        record(f"{name}/codec read again", type(codec).from_description(described).describe() == described)
    back = f"{name}/there and back"
    if hasattr(loaded, "window_batch"):
        record(f"{name}/test windows", fields(loaded.window_batch("test", [0, 1])))
        record(f"{name}/free", loaded.free("test"))
        record(back, loaded.codec.denormalise(loaded.window_batch("test", [0]).targets[0]))
    elif name == "text":
        record(back, codec.text(codec.ids("the cat sat").tolist()))
    elif name == "parallel":
        record(back, fields(codec.pair_batch(*map(list, zip(*PAIRS[:3], strict=True)))))
    else:
        record(f"{name}/source batch", fields(codec.source_batch(["ab", "ba"], 3)))


PARTS: dict[str, Callable[[Record, Only], None]] = {"conformance": conformance, "recipes": recipes, "data": every_kind}


def recorded(parts: list[str], only: Only) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for part in parts:

        def record(name: str, value: Any, part: str = part) -> None:
            for each, simple in flat(f"{part}/{name}", value):
                if each in values:
                    raise KeyError(f"{each} is recorded twice")
                values[each] = re.sub(r" at 0x[0-9a-f]+", "", simple) if isinstance(simple, str) else simple

        began, before = time.monotonic(), len(values)
        PARTS[part](record, only)
        print(f"{part}: {len(values) - before:,} values in {time.monotonic() - began:.0f} s", flush=True)
    return values


def read(path: Path) -> dict[str, Any]:
    return json.loads((gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()).decode())


def write(path: Path, values: Mapping[str, Any]) -> None:
    text = json.dumps(values, indent=0).encode()
    path.write_bytes(gzip.compress(text, mtime=0) if path.suffix == ".gz" else text)


def renamed(values: Mapping[str, Any], names: Mapping[str, str], texts: Mapping[str, str]) -> dict[str, Any]:
    """The values of before under the names and with the texts of today."""

    def changed(text: Any, patterns: Mapping[str, str]) -> Any:
        for old, new in patterns.items() if isinstance(text, str) else ():
            text = re.sub(old, new, text)
        return text

    return {changed(name, names): changed(value, texts) for name, value in values.items()}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    first, second = commands.add_parser("record"), commands.add_parser("compare")
    first.add_argument("file", type=Path)
    first.add_argument("--part", action="append", choices=list(PARTS))
    second.add_argument("before", type=Path)
    second.add_argument("after", type=Path)
    second.add_argument("--renamed", type=Path, help="a JSON file of names, texts and removed")
    second.add_argument("--ignore", action="append", default=[], help="pattern of names that are not compared")
    second.add_argument("--most", type=int, default=40, help="lines of each kind that are displayed")
    for command in (first, second):
        command.add_argument("--only", default="", help="parts of names, with commas between")
    options = parser.parse_args()
    parts = [each for each in options.only.split(",") if each]

    def only(name: str) -> bool:
        return not parts or any(each in name for each in parts)

    if options.command == "compare":
        return report(options, only)
    values = recorded(options.part or list(PARTS), only)
    write(options.file, values)
    print(f"{len(values):,} values in {options.file}")
    return 0


def report(options: argparse.Namespace, only: Only) -> int:
    more = json.loads(options.renamed.read_text(encoding="utf-8")) if options.renamed else {}
    gone = [*REMOVED, *more.get("removed", ()), *options.ignore]
    before, after = (
        {n: value for n, value in read(path).items() if only(n) and not any(re.search(each, n) for each in gone)}
        for path in (options.before, options.after)
    )
    shared = {name.split("/")[0] for name in before} & {name.split("/")[0] for name in after}
    before, after = ({n: v for n, v in each.items() if n.split("/")[0] in shared} for each in (before, after))
    old = renamed(before, NAMES | more.get("names", {}), TEXTS | more.get("texts", {}))
    missing, new = ([name for name in one if name not in other] for one, other in ((old, after), (after, old)))
    differing = [name for name, value in old.items() if name in after and after[name] != value]
    for part, number in sorted(Counter(name.split("/")[0] for name in after).items()):
        wrong = sum(name.startswith(f"{part}/") for name in differing)
        print(f"{part}: {number:,} values compared, {wrong:,} differ")
    for title, names in (("missing", missing), ("new", new)):
        if names:
            print(f"{title}: {len(names):,}", *(f"  {name}" for name in names[: options.most]), sep="\n")
    for name in differing[: options.most]:
        print(f"differs: {name}\n  before: {old[name]}\n  after:  {after[name]}")
    print(f"{len(after) - len(new):,} compared, {len(differing):,} differ, {len(missing):,} missing, {len(new):,} new")
    return 1 if missing or new or differing else 0


if __name__ == "__main__":
    sys.exit(main())
