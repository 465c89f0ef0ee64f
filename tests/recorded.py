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
import dataclasses
import gzip
import hashlib
import json
import re
import sys
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import freerun as fr

# inner names: the one place to change when a module moves
from freerun.diagnostics import DiagnosisOptions, as_json, diagnose
from recorded_runs import every_kind, recipes

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
}
"""Pattern in a recorded text -> what stands there now: r"\\bcoin=" -> "gate="."""
REMOVED: tuple[str, ...] = (
    # the schemas of a diagnosis and of a comparison count their renamed fields
    r"/diagnose.*\.schema$",
    r"recipes/compare [^.]*\.schema$",
)
"""Patterns of values that are gone on purpose."""

Record = Callable[[str, Any], None]


def flat(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    """A value as (name, text or number) pairs: mappings by key, floats by all digits, tensors by hash."""
    if isinstance(value, Mapping):
        for key, part in value.items():
            yield from flat(f"{name}.{key}", part)
    elif isinstance(value, Tensor):
        whole = value.detach().cpu().contiguous()
        shown = hashlib.sha256(whole.flatten().view(torch.uint8).numpy().tobytes()).hexdigest()[:16]
        yield name, f"{shown} {tuple(whole.shape)} {whole.dtype} {whole.flatten()[:3].tolist()}"
    elif isinstance(value, float):
        yield name, repr(value)
    elif isinstance(value, list | tuple) and re.search(r"['\"]", repr(value)):  # texts and tables stay legible
        for place, part in enumerate(value):
            yield from flat(f"{name}.{place}", part)
    elif isinstance(value, list | tuple) and len(repr(value)) > 400:
        digest = hashlib.sha256(repr(value).encode()).hexdigest()[:16]
        yield name, f"{digest} {len(value)} entries {repr(value)[:80]}"
    elif isinstance(value, str | int | None):
        yield name, value
    else:
        yield name, repr(value)


def tried(record: Record, name: str, function: Callable[..., Any], *arguments: Any, **named: Any) -> None:
    """Record what a call gives, or the error it ends in."""
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
HEADS = [
    ("gaussian", "expected"),
    ("gaussian", "gaussian"),
    ("student_t", "student_t"),
    ("quantiles", "quantile_sample"),
]
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


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def called(value: Any) -> Any:
    return value() if getattr(value, "__name__", "") == "<lambda>" else value


Case = tuple[str, Callable[..., Any], dict[str, Any], str]


def cases(suite: Any) -> Iterator[Case]:
    """Steps of methods: (name, method, its arguments, backend)."""
    for name, backend in suite.CASES:
        yield f"{name}/{backend}", fr.METHODS[name], suite.ARGUMENTS[name], backend
    for name, backend in product(fr.METHODS, ("lstm", "transformer", "vectors", "vectors, warm-up")):
        for field in dataclasses.fields(fr.METHODS[name]) if suite.fits(name, backend) else ():
            other = suite.OTHER[field.name] if field.init else None
            other = other["vectors" not in backend] if isinstance(other, dict) else other
            label = {"gate": "gate"}.get(field.name, field.name)
            arguments = suite.ARGUMENTS[name] | {field.name: other}
            if field.init:
                yield f"{name}/{backend}/{label}", fr.METHODS[name], arguments, backend
    for backend, engine, draw, ratio in product(suite.BACKENDS, ENGINES, IDS, (0.5, 0.0)):
        if "vectors" not in backend:
            arguments = {"teacher_forcing_ratio": ratio, "engine": ENGINES[engine], "draw": IDS[draw]}
            yield f"engines/{backend}/{engine}/{draw}/{ratio}", fr.scheduled_sampling, arguments, backend
    for name, gate in product(("scheduled_sampling", "two_pass", "parallel"), fr.GATES):
        argument = {field.name for field in dataclasses.fields(fr.METHODS[name])} & {"gate"}
        for backend in ("lstm", "transformer", "language model, left prompts", "vectors"):
            if suite.fits(name, backend):
                arguments = suite.ARGUMENTS[name] | {argument.copy().pop(): gate}
                yield f"gates/{name}/{backend}/{gate}", fr.METHODS[name], arguments, backend
    for mix, gradient in product(MIXES, ("none", "full")):
        arguments = {"teacher_forcing_ratio": 0.5, "mix": mix, "gradient": gradient, "gold_weight": 0.5}
        yield f"mixes/{mix}/{gradient}", fr.two_pass, arguments, "lstm"
    for noise, exclude in product(NOISES, (False, True)):
        arguments = {"rate": 0.6, "noise": noise, "exclude_gold": exclude} | NOISES[noise]
        yield f"noise/{noise}/{exclude}", fr.token_noise, arguments, "gru"
    for name, schedule in schedules().items():
        yield f"scheduled/{name}", fr.scheduled_sampling, {"teacher_forcing_ratio": schedule}, "gru"
    ways = product(("vectors", "vectors, warm-up"), ("full", "none", 2), ("auto", "step", "jacobi", 2))
    for backend, gradient, engine in ways:
        for method, amount in (
            ("scheduled_sampling", "teacher_forcing_ratio"),
            ("generalised_teacher_forcing", "alpha"),
        ):
            arguments = {amount: 0.4, "gradient": gradient, "engine": engine}
            yield f"rolled/{method}/{backend}/{gradient}/{engine}", fr.METHODS[method], arguments, backend


def run(
    record: Record, name: str, method: Callable[..., Any], arguments: dict[str, Any], model: Any, batch: Any
) -> None:
    """Record one step of a method: identity, loss, history, report, outputs, gradients."""
    from builders import gradients

    try:
        built = method(**{key: called(value) for key, value in arguments.items()})
        record(f"{name}/repr", repr(built))
        outcome = built.run(model, batch, fr.Step(STEP, sample=96, epoch=0.5), KEY)
        found = {"loss": outcome.loss, "total": outcome.total, "count": outcome.count, "outputs": outcome.outputs}
        found |= {"history": outcome.fed.history, "mask": outcome.fed.mask, "report": dict(outcome.report)}
        slopes = gradients(model, outcome.loss)
        found["gradients"] = torch.cat([slopes[each].flatten() for each in sorted(slopes)])
        for part, value in found.items():
            record(f"{name}/{part}", value)
    except Exception as error:
        record(f"{name}/error", f"{type(error).__name__}: {error}")


def conformance(record: Record, only: Callable[[str], bool]) -> None:
    """Every method on every model of the conformance suite, and around them."""
    import test_conformance as suite

    for name, method, arguments, backend in cases(suite):
        if only(name):
            run(record, name, method, arguments, *suite.BACKENDS[backend]())
    for (head, draw), kind in product(HEADS, ("PlainForecaster", "RecurrentForecaster", "TransformerForecaster")):
        torch.manual_seed(3)
        model = getattr(fr.models, kind)(4, size=8, head=head).double()
        past = {"past": torch.randn(4, 5, 4, generator=generator(7), dtype=torch.float64)}
        plain = kind == "PlainForecaster"
        batch = (suite.warmed() if plain else suite.vector_batch()).replace(context=None if plain else past)
        for gradient in ("auto", "none"):
            arguments = {"teacher_forcing_ratio": 0.4, "draw": draw, "objective": LOSSES[head], "gradient": gradient}
            if only(name := f"heads/{kind}/{head}/{draw}/{gradient}"):
                run(record, name, fr.scheduled_sampling, arguments, model, batch)
    _alone(record, suite.ragged(64), suite.vector_batch(16))
    for backend in suite.BACKENDS:
        if only(f"generate/{backend}"):
            _free(record, backend, suite)
    horizon = suite.vector_batch(6)
    past = {"past": torch.randn(6, 5, 4, generator=generator(7), dtype=torch.float64)}
    horizon = horizon.replace(mask=torch.ones_like(horizon.mask), context=past)
    gold = torch.randn(200, 4, generator=generator(5), dtype=torch.float64)
    for head in ("point", "gaussian"):
        torch.manual_seed(3)
        model = fr.models.RecurrentForecaster(4, size=8, head=head).double()
        about = DiagnosisOptions(exponent=0.1, period=2, long_series=gold)
        tried(record, f"diagnose/forecaster/{head}", lambda *args: as_json(diagnose(*args)), model, horizon, about)


def _alone(record: Record, batch: Any, vectors: Any) -> None:
    """Schedules, gates, draws, objectives, distributions, metrics and keys by themselves."""
    for (name, schedule), step, epoch in product(schedules().items(), (0, 3, 7, 50), (None, 1.5)):
        at = step if epoch is None else fr.Step(step, sample=32 * step, epoch=epoch)
        tried(record, f"schedules/{name}/{step}/{epoch}", schedule, at)
    for name, (preset, _) in fr.PRESETS.items():
        more = {"length": 8} if name == "bptt_sa" else {}
        tried(record, f"presets/{name}", lambda make, more: repr(make(steps=100, **more)), preset, more)
    for gate, ratio in product(fr.GATES, (0.0, 0.3, 1.0)):
        tried(record, f"gate/{gate}/{ratio}", fr.GATES[gate](), batch, ratio, KEY)
    logits = torch.randn(64, 7, 5, generator=generator(1), dtype=torch.float64)
    wide = torch.randn(16, 6, 12, generator=generator(2), dtype=torch.float64)
    for name in (*IDS, *VALUES):
        draw = fr.draws.resolve(called(IDS.get(name, name)))
        outputs = (logits if name in IDS else wide[..., : 4 * VALUES[name]]).flatten(0, 1)
        rows, positions = torch.arange(len(outputs)), torch.arange(len(outputs)) % 7
        record(f"draw/{name}/repr", repr(draw))
        noise = draw.noise(KEY, rows, positions, outputs.shape[-1])
        tried(record, f"draw/{name}", draw.choose, outputs, noise)
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        weights = torch.rand(64, 7, generator=generator(3)).to(dtype)
        for smoothing, weighed in product((0.0, 0.1), (batch, batch.replace(weights=weights))):
            name = f"objective/cross_entropy/{smoothing}/{dtype}/{weighed.weights is not None}"
            tried(
                record,
                name,
                lambda *args: dict(enumerate(args[0](*args[1:]))),
                fr.objectives.cross_entropy(smoothing),
                logits.to(dtype),
                weighed,
            )
        for name, numbers in (("mse", 1), ("gaussian_nll", 2), ("student_t_nll", 3), ("pinball", 3)):
            outputs = wide[..., : 4 * numbers].to(dtype)
            typed = vectors.replace(targets=vectors.targets.to(dtype), history=vectors.history.to(dtype))
            total, count = fr.objectives.resolve(name, typed)(outputs, typed)
            record(f"objective/{name}/{dtype}", {"total": total, "count": count})
    laws = fr.distributions
    for name, head in (("gaussian", laws.Gaussian()), ("student_t", laws.StudentT()), ("quantiles", laws.Quantiles())):
        outputs = wide[..., : 4 * head.parameters]
        uniforms = torch.rand(16, 6, 4, head.noise_numbers, generator=generator(4), dtype=torch.float64)
        record(f"distribution/{name}/mean", head.mean(outputs))
        record(f"distribution/{name}/sample", head.sample(outputs, uniforms))
        record(f"distribution/{name}/loss", head.loss(outputs, vectors.targets))
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

    def said(**arguments: Any) -> dict[str, Any]:
        found = fr.generate(model, batch, **arguments)
        return {"entries": found.entries, "lengths": found.lengths, "scores": found.scores}

    for way, arguments in WAYS.items():
        usual = {"end": 0 if batch.is_discrete else None, "length": 6}
        given = {name: called(value) for name, value in (usual | arguments).items()}
        tried(record, f"generate/{backend}/{way}", said, **given)
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


PARTS: dict[str, Callable[[Record, Callable[[str], bool]], None]] = {
    "conformance": conformance, "recipes": recipes, "data": every_kind,
}  # fmt: skip


def recorded(parts: list[str], only: list[str]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for part in parts:

        def record(name: str, value: Any, part: str = part) -> None:
            for each, simple in flat(f"{part}/{name}", value):
                if each in values:
                    raise KeyError(f"{each} is recorded twice")
                values[each] = re.sub(r" at 0x[0-9a-f]+", "", simple) if isinstance(simple, str) else simple

        began, before = time.monotonic(), len(values)
        PARTS[part](record, lambda name: not only or any(each in name for each in only))
        print(f"{part}: {len(values) - before:,} values in {time.monotonic() - began:.0f} s", flush=True)
    return values


def read(path: Path) -> dict[str, Any]:
    return json.loads((gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()).decode())


def write(path: Path, values: Mapping[str, Any]) -> None:
    text = json.dumps(values, indent=0).encode()
    path.write_bytes(gzip.compress(text, mtime=0) if path.suffix == ".gz" else text)


def compared(
    before: Mapping[str, Any], after: Mapping[str, Any], names: Mapping[str, str], texts: Mapping[str, str]
) -> tuple[list[str], list[str], list[tuple[str, Any, Any]]]:
    """Names missing after, names new after, and (name, before, after) of what differs."""

    def changed(text: Any, patterns: Mapping[str, str]) -> Any:
        for old, new in patterns.items() if isinstance(text, str) else ():
            text = re.sub(old, new, text)
        return text

    old = {changed(name, names): changed(value, texts) for name, value in before.items()}
    differing = [(name, value, after[name]) for name, value in old.items() if name in after and after[name] != value]
    return [name for name in old if name not in after], [name for name in after if name not in old], differing


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("record")
    command.add_argument("file", type=Path)
    command.add_argument("--part", action="append", choices=list(PARTS))
    command.add_argument("--only", default="", help="parts of names of runs and data, with commas between")
    command = commands.add_parser("compare")
    command.add_argument("before", type=Path)
    command.add_argument("after", type=Path)
    command.add_argument("--renamed", type=Path, help="a JSON file of names, texts and removed")
    command.add_argument("--ignore", action="append", default=[], help="pattern of names that are not compared")
    command.add_argument("--only", default="", help="parts of names, with commas between")
    command.add_argument("--most", type=int, default=40, help="lines of each kind that are shown")
    options = parser.parse_args()
    if options.command == "record":
        values = recorded(options.part or list(PARTS), [each for each in options.only.split(",") if each])
        write(options.file, values)
        print(f"{len(values):,} values in {options.file}")
        return 0
    return report(options)


def report(options: argparse.Namespace) -> int:
    more = json.loads(options.renamed.read_text(encoding="utf-8")) if options.renamed else {}
    gone = [*REMOVED, *more.get("removed", ()), *options.ignore]
    before, after = (
        {name: value for name, value in read(path).items() if not any(re.search(each, name) for each in gone)}
        for path in (options.before, options.after)
    )
    only = [each for each in options.only.split(",") if each]
    before, after = (
        {name: value for name, value in table.items() if not only or any(each in name for each in only)}
        for table in (before, after)
    )
    shared = {name.split("/")[0] for name in before} & {name.split("/")[0] for name in after}
    before, after = ({n: v for n, v in each.items() if n.split("/")[0] in shared} for each in (before, after))
    missing, new, differing = compared(before, after, NAMES | more.get("names", {}), TEXTS | more.get("texts", {}))
    for part, number in sorted(Counter(name.split("/")[0] for name in after).items()):
        wrong = sum(name.startswith(f"{part}/") for name, *_ in differing)
        print(f"{part}: {number:,} values compared, {wrong:,} differ")
    for title, found in (("missing", missing), ("new", new)):
        if found:
            print(f"{title}: {len(found):,}", *(f"  {name}" for name in found[: options.most]), sep="\n")
    for name, old, now in differing[: options.most]:
        print(f"differs: {name}\n  before: {old}\n  after:  {now}")
    print(f"{len(after) - len(new):,} compared, {len(differing):,} differ, {len(missing):,} missing, {len(new):,} new")
    return 1 if missing or new or differing else 0


if __name__ == "__main__":
    sys.exit(main())
