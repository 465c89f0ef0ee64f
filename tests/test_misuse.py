"""Misuse of the library, kind by kind: every mistake is one UserError that says what to do, and no number comes of it.

A case is a name, what is done, and what the message must hold. What is right, and near to a mistake, goes through.
"""

import copy
import math
import pickle
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import freerun as fr
from builders import refused
from freerun import diagnostics, distributions, draws, gates, metrics, objectives, schedules, transforms
from freerun.keys import bits, fold, uniform

Case = tuple[str, Callable[[], Any], str]  # its name, what is done, and what the message must hold


V, T, B = 7, 5, 3
torch.manual_seed(0)
IDS = torch.randint(0, V, (B, T))
VALUES = torch.randn(B, T, 2)
NAN, INF = math.nan, math.inf
MASK = torch.arange(T) < torch.tensor([[5], [4], [3]])
PAIR = torch.randint(1, V, (4, 9))  # begin, words, end: the tutorials' trg
SERIES = torch.randn(2, 9, 3)
RUN = SERIES[0]


class LM(nn.Module):
    """A recurrent language model, or a forecaster of values."""

    def __init__(self, vocabulary: int | None = V) -> None:
        super().__init__()
        width = 2 if vocabulary is None else vocabulary
        self.embed = nn.Linear(2, 8) if vocabulary is None else nn.Embedding(width, 8)
        self.cell, self.out = nn.GRU(8, 8, batch_first=True), nn.Linear(8, width)
        self.begin = nn.Parameter(torch.zeros(1, 1, 8))

    def forward(self, batch: fr.Batch) -> Tensor:
        known = self.embed(batch.history[:, :-1])
        return self.out(self.cell(torch.cat([self.begin.expand(batch.size, 1, 8), known], 1))[0])


MODEL, FORECASTER = LM(), LM(None)
TRANSFORMER = nn.Transformer(8, 2, 1, 1, 8, batch_first=True)
IDS_BATCH, VALUES_BATCH = fr.Batch(IDS, mask=MASK), fr.Batch(VALUES, mask=MASK)


def returning(change: Callable[[Tensor], Any], batch: fr.Batch = IDS_BATCH) -> Callable[[fr.Batch], Any]:
    """A model whose outputs are changed on their way out."""
    inner = MODEL if batch.is_discrete else FORECASTER
    return lambda b: change(inner(b))


ss: Any = fr.scheduled_sampling


def call(method: Any, model: Any = MODEL, batch: Any = IDS_BATCH, **named: Any) -> Any:
    return method(model, batch, **({"step": 0} | named))


PARTS_OF_IDS = {
    "targets": IDS, "history": IDS.clone(), "mask": MASK, "weights": torch.rand(B, T), "eligible": MASK,
    "rows": torch.arange(B),
}  # fmt: skip


def with_part(name: str, value: Any) -> Callable[[], fr.Batch]:
    return lambda: fr.Batch(**(PARTS_OF_IDS | {name: value}))


def part_cases() -> Iterator[Case]:
    for name, part in PARTS_OF_IDS.items():
        kinds = {
            "numpy": part.numpy(), "list": part.tolist(), "tuple": tuple(part.tolist()), "number": 3.0, "text": "abc",
            "dict": {"x": part}, "a batch": IDS_BATCH,
        }  # fmt: skip
        for kind, value in kinds.items():
            yield (f"{name} is {kind}", with_part(name, value), name)
        yield (f"{name} is complex", with_part(name, part.to(torch.complex64)), name)
        other = torch.float32 if name != "weights" else torch.int64
        yield (f"{name} of another type", with_part(name, part.to(other)), f"{name}.* must be|{name} are")
        yield (f"{name} of int32", with_part(name, part.to(torch.int32)), f"{name}.*int32|int32")
        yield (f"{name} one row less", with_part(name, part[:-1]), r"must be .*got \(|aligned")
        yield (f"{name} one dimension more", with_part(name, part[..., None]), "must be|aligned|several streams")
        if part.dim() == 2:
            yield (f"{name} one position less", with_part(name, part[:, :-1]), r"must be .*got \(|aligned")
            yield (f"{name} time first", with_part(name, part.T), r"must be .*got \(|aligned")
    yield ("targets left out", fr.Batch, "Batch needs targets")
    yield ("targets None", lambda: fr.Batch(None), "targets must be a tensor")  # type: ignore[arg-type]
    yield ("bool targets", lambda: fr.Batch(IDS > 0), "int64 ids or real numbers")
    yield ("no time", lambda: fr.Batch(IDS[:, :0]), "time must be at least 1")
    yield ("no rows", lambda: fr.Batch(IDS[:0]), "batch must be at least 1")
    yield ("no value", lambda: fr.Batch(VALUES[..., :0]), "value must be at least 1")
    yield ("one dimension", lambda: fr.Batch(IDS[0]), r"must be \(batch, time\)")
    yield ("four dimensions", lambda: fr.Batch(VALUES[None]), r"must be \(batch, time\)")
    yield ("ids as floats", lambda: fr.Batch(IDS.float()), r"targets.long\(\) where they are ids")
    for name, value in (("size", 2.5), ("layers", True), ("target_vocab", "9"), ("dropout", "0"), ("cell", ["lstm"])):
        sizes: dict[str, Any] = {"source_vocab": V, "target_vocab": V, name: value}
        yield (f"model, {name}={value!r}", lambda s=sizes: fr.models.RecurrentSeq2Seq(**s), f"{name} must")
    for name, value in (("size", 2.5), ("heads", None), ("feed_forward", "64"), ("dropout", NAN)):
        sizes = {"source_vocab": V, "target_vocab": V, name: value}
        yield (f"transformer, {name}={value!r}", lambda s=sizes: fr.models.TransformerSeq2Seq(**s), f"{name} must")
    yield ("values without channels", lambda: fr.Batch(VALUES[..., 0]), "unsqueeze")
    yield ("mask in the place of history", lambda: fr.Batch(IDS, MASK), "use mask=")
    yield ("another device", lambda: fr.Batch(IDS, mask=MASK.to("meta")), "lies on meta")
    for word, meant in (("labels", "targets"), ("trg", "targets"), ("attention_mask", "mask"), ("source", "context")):
        yield (f"{word}=", lambda w=word: fr.Batch(IDS, **{w: IDS}), f"{word}.*did you mean {meant}")
    yield ("weight=", lambda: fr.Batch(IDS, weight=IDS), "did you mean weights")  # type: ignore[call-arg]
    yield ("replace of nothing known", lambda: IDS_BATCH.replace(historie=IDS), "did you mean history")
    yield ("replace with a shifted history", lambda: pair_batch().replace(history=PAIR[:, :-1]), "do not shift")
    yield ("select a list", lambda: IDS_BATCH.select([0]), "int64")  # type: ignore[arg-type]
    yield ("select a mask", lambda: IDS_BATCH.select(torch.tensor([True, False, True])), "int64")
    yield ("select beyond", lambda: IDS_BATCH.select(torch.tensor([3])), "lie in 0 to 2")


def pair_batch() -> fr.Batch:
    return fr.Batch(PAIR[:, 1:])


def value_cases() -> Iterator[Case]:
    """Values in a batch that cannot be fed or learned."""
    seen = MASK.clone()
    seen[0, 2] = False
    holed, padded = IDS.masked_fill(~seen, -100), IDS.masked_fill(~MASK, -100)
    yield ("-100 counted", lambda: fr.Batch(padded), "mask=targets != -100")
    yield ("-100 counted, with a history", lambda: fr.Batch(padded, IDS), "positions that count")
    yield ("-1 counted", lambda: fr.Batch(IDS - V), "ids begin at 0")
    yield ("-100 fed", lambda: fr.Batch(IDS, padded, MASK), "history holds -100.*leave history out")
    yield ("-100 fed twice", lambda: fr.Batch(padded, padded, MASK), "history holds -100")
    yield ("-100 before what counts", lambda: fr.Batch(holed, mask=seen), "give the history that is fed")
    for name, bad in (("NaN", NAN), ("inf", INF), ("-inf", -INF)):
        broken = VALUES.clone()
        broken[0, 1, 0] = bad
        yield (f"{name} counted", lambda x=broken: fr.Batch(x), "targets hold NaN or infinity at 1 ")
        yield (f"{name} counted alone", lambda x=broken: fr.Batch(x, VALUES), "targets hold NaN")
        yield (f"{name} fed", lambda x=broken: fr.Batch(VALUES, x), "history hold NaN or infinity")
        yield (f"{name} in half", lambda x=broken: fr.Batch(x.half()), "targets hold NaN")
        weights = torch.ones(B, T)
        weights[0, 0] = bad
        yield (f"weights of {name}", lambda w=weights: fr.Batch(IDS, weights=w), "weights must be finite")
    yield ("negative weights", lambda: fr.Batch(IDS, weights=-torch.ones(B, T)), "0 or more")
    yield ("negative rows", lambda: fr.Batch(IDS, rows=torch.tensor([0, -1, 2])), "rows are numbers of examples")
    for name, full in (("ids", PAIR), ("one row", PAIR[:1]), ("values", SERIES)):
        mask = (torch.arange(8) < 6).expand(len(full), 8)
        for label, build in (
            ("shifted", lambda x, m: fr.Batch(x[:, 1:], x[:, :-1])),
            ("shifted, the pair turned", lambda x, m: fr.Batch(x[:, :-1], x[:, 1:])),
            ("shifted, masked", lambda x, m: fr.Batch(x[:, 1:], x[:, :-1], m)),
        ):
            yield (f"{name} {label}", partial(build, full, mask), "do not shift")
    begun = torch.cat([torch.zeros_like(PAIR[:, :1]), PAIR[:, :-1]], 1)
    yield ("shifted with a start symbol", lambda: fr.Batch(PAIR, begun), "leave history out")
    yield ("all at once", lambda: fr.Batch(padded, IDS, weights=-torch.ones(B, T)), "(?s)-100.*weights must")


def context_cases() -> Iterator[Case]:
    turned = torch.zeros(6, B)
    contexts = {
        "time first": (turned, r"transpose\(0, 1\)"),
        "of other rows": (torch.zeros(B + 1, 2), "context must be batch first"),
        "without dimensions": (torch.tensor(1.0), "context must be batch first"),
        "one row for all": (torch.zeros(1, 4), "batch first"),
        "time first in a dict": ({"source": turned}, r"context\['source'\].*transpose"),
        "time first in a tuple": ((torch.zeros(B, 2), turned), r"context\[1\]"),
        "deep": ({"a": [{"b": turned}]}, r"context\['a'\]\[0\]\['b'\]"),
        "numpy": (np.zeros((B, 2)), "got ndarray"),
        "numpy in a dict": ({"x": np.zeros((B, 2))}, "got ndarray"),
        "a list of words": (["a", "b", "c"], "got str"),
        "a number": (3, "got int"),
        "text": ("en", "got str"),
        "an object": (object(), r"have .select\(rows\)"),
        "an LSTM's state": ((torch.zeros(1, B, 8), torch.zeros(1, B, 8)), "transpose"),
    }
    for name, (context, says) in contexts.items():
        yield (f"context {name}", lambda c=context: fr.Batch(IDS, context=c), says)
    yield ("replaced context", lambda: IDS_BATCH.replace(context=turned), "batch first")


METHODS_OF_IDS = {
    "teacher_forcing": fr.teacher_forcing(), "free_running": fr.free_running(), "scheduled_sampling": ss(0.5),
    "two_pass": fr.two_pass(0.5), "parallel": fr.parallel(0.5), "token_noise": fr.token_noise(0.5, vocabulary=V),
    "confidence_aware": fr.confidence_aware(mix="argmax"),
}  # fmt: skip
METHODS_OF_VALUES = {
    "teacher_forcing": fr.teacher_forcing(), "free_running": fr.free_running(), "scheduled_sampling": ss(0.5),
    "multi_step": fr.multi_step(horizon=2), "gaussian_noise": fr.gaussian_noise(0.1),
    "sparse": fr.sparse_teacher_forcing(tau=2), "generalised": fr.generalised_teacher_forcing(0.5),
    "demonstrator": fr.data_as_demonstrator_online(), "replayed": fr.replay_buffer(0.5, capacity=8, age=2),
}  # fmt: skip


def call_cases() -> Iterator[Case]:
    for name, method in (METHODS_OF_IDS | METHODS_OF_VALUES).items():
        batch = IDS_BATCH if name in METHODS_OF_IDS else VALUES_BATCH
        yield (f"{name} without step", lambda m=method, b=batch: m(MODEL, b), "schedule would stand still")
        yield (f"{name} without model", lambda m=method, b=batch: call(m, None, b), "model must be callable")
        yield (f"{name} turned round", lambda m=method, b=batch: call(m, b, MODEL), "swapped")
    half = ss(0.5)
    for way in ("__call__", "run", "transform"):
        for step in (None, 1.5, -1, "3", True, 2**63, [1], NAN, torch.tensor(1.0), torch.tensor(True), np.float64(2)):
            how = "schedule would stand" if step is None else "whole number from 0 on"
            yield (f"{way} step={step!r}", lambda w=way, s=step: getattr(half, w)(MODEL, IDS_BATCH, step=s), how)
    for key in (None, 1.5, "seven", True, [1], NAN, torch.Generator(), torch.tensor(0.5)):
        yield (f"key={key}", lambda k=key: call(half, key=k), "key must be a whole number")
        yield (f"teacher forcing, key={key}", lambda k=key: call(fr.teacher_forcing(), key=k), "key must be a whole")
    others = {
        "a dict": {"targets": IDS}, "a tuple": (IDS, IDS), "a list": [IDS], "a tensor": IDS, "None": None,
        "numpy": IDS.numpy(),
    }  # fmt: skip
    for name, batch in others.items():
        yield (f"batch {name}", lambda b=batch: call(half, MODEL, b), "batch must be a freerun.Batch")
        yield (f"generate, batch {name}", lambda b=batch: fr.generate(MODEL, b, length=2), "freerun.Batch")
        if name not in ("None", "a list", "a tuple"):
            yield (f"diagnose, batch {name}", lambda b=batch: diagnostics.diagnose(MODEL, b), "freerun.Batch")
    models = {
        "a class": (LM, "an object of it"), "text": ("gru", "must be callable"), "a tensor": (IDS, "must be callable"),
        "weights": (MODEL.state_dict(), "must be callable"), "a layer": (nn.Linear(2, 2), "called as model"),
        "an LSTM": (nn.LSTM(2, 2), "read batch.history"), "a transformer": (TRANSFORMER, "called as"),
        "a stack": (nn.Sequential(nn.Embedding(V, 4), nn.Linear(4, V)), "called as model"),
        "of two arguments": (lambda source, target: source, "called as model"),
        "reads a field that is not there": (lambda b: b.sources, "no 'sources'"),
        "of a smaller vocabulary": (LM(3), "embedding does not have"),
    }  # fmt: skip
    for name, (model, says) in models.items():
        if isinstance(model, nn.Transformer | nn.Sequential | nn.Linear | nn.LSTM) or callable(model):
            yield (f"model {name}", lambda m=model: call(fr.teacher_forcing(), m), says)
        yield (f"sampled, model {name}", lambda m=model: call(half, m), says)
        yield (f"generate, model {name}", lambda m=model: fr.generate(m, PROMPTED, length=3), says)
    yield ("ratio at the call", lambda: call(half, teacher_forcing_ratio=0.1), "belongs to the method")
    yield ("seed at the call", lambda: call(half, seed=0), "did you mean key")
    yield ("epoch at the call", lambda: half(MODEL, IDS_BATCH, epoch=0), "did you mean step")


PROMPTED = fr.Batch(IDS + 0, IDS + 0, torch.arange(T).expand(B, T) > 3, eligible=torch.arange(T).expand(B, T) > 3)


OUTPUTS: dict[str, tuple[Callable[[Tensor], Any], str]] = {
    "None": (lambda x: None, "does forward end with return"),
    "a tuple": (lambda x: (x, None), "without states"),
    "a list": (lambda x: [x], "got a list"),
    "a dict": (lambda x: {"out": x}, "got dict"),
    "logits in an object": (lambda x: SimpleNamespace(logits=x), "return its .logits"),
    "logits in a dict": (lambda x: {"logits": x}, "return its .logits"),
    "numpy": (lambda x: x.detach().numpy(), "got ndarray"),
    "a number": (lambda x: 1.0, "got float"),
    "ids": (lambda x: x.argmax(-1), "not ids"),
    "int": (lambda x: x.long(), "return logits or values"),
    "complex": (lambda x: x.to(torch.complex64), "floating-point"),
    "2-d": (lambda x: x.flatten(0, 1), "batch first"),
    "4-d": (lambda x: x[None], "batch first"),
    "a position less": (lambda x: x[:, 1:], "keep its length"),
    "a position more": (lambda x: torch.cat([x, x[:, :1]], 1), "keep its length"),
    "time first": (lambda x: x.transpose(0, 1), "time and batch are swapped"),
    "a row less": (lambda x: x[1:], "batch first"),
    "the last position": (lambda x: x[:, -1], "batch first"),
    "no output": (lambda x: x[..., :0], "no output"),
}


def output_cases() -> Iterator[Case]:
    for name, (change, says) in OUTPUTS.items():
        logits, values = returning(change), returning(change, VALUES_BATCH)
        for kind, method in (("after gold", fr.teacher_forcing()), ("sampled", ss(0.0, engine="jacobi"))):
            yield (f"{kind}, outputs {name}", partial(call, method, logits), says)
        if name != "int":
            real = "floating-point" if name == "ids" else says
            yield (f"values, outputs {name}", partial(call, fr.free_running(), values, VALUES_BATCH), real)
        yield (f"generate, outputs {name}", partial(fr.generate, logits, PROMPTED, length=2), "must return")
        if name in ("None", "a tuple", "logits in an object", "a position less"):
            for each in ("two_pass", "parallel", "token_noise", "confidence_aware"):
                yield (f"{each}, outputs {name}", partial(call, METHODS_OF_IDS[each], logits), says)
            for each in ("multi_step", "gaussian_noise", "sparse", "generalised", "demonstrator", "replayed"):
                yield (f"{each}, outputs {name}", partial(call, METHODS_OF_VALUES[each], values, VALUES_BATCH), says)
    few = int(IDS[MASK].max())
    narrow = returning(lambda x: x[..., :few])
    yield ("too few symbols", partial(call, fr.teacher_forcing(), narrow), f"hold the id {few}")
    yield ("sampled, too few symbols", partial(call, ss(0.5), narrow), f"the id {few}")
    for name, bad in (("NaN", NAN), ("inf", INF)):
        logits, values = (returning(lambda x, v=bad: x * v, batch) for batch in (IDS_BATCH, VALUES_BATCH))
        for each, method in METHODS_OF_IDS.items():
            yield (f"{each}, {name} logits", partial(call, method, logits), "hold NaN or infinity")
        for each in ("teacher_forcing", "free_running", "multi_step", "demonstrator", "replayed"):
            method = METHODS_OF_VALUES[each]
            yield (f"{each}, {name}", partial(call, method, values, VALUES_BATCH), "hold NaN or infinity")
    ruled_out = returning(lambda x: x.masked_fill(nn.functional.one_hot(IDS, V).bool(), -INF))
    yield ("a target ruled out", lambda: call(fr.teacher_forcing(), ruled_out), "a target has probability 0")

    class Detached(LM):
        def forward(self, batch: fr.Batch) -> Tensor:
            return super().forward(batch).detach()

    yield ("no gradient", lambda: call(fr.teacher_forcing(), Detached()), "carry no gradient")
    yield ("no gradient, sampled", lambda: call(ss(0.5), Detached()), "carry no gradient")
    stepped = fr.models.RecurrentSeq2Seq(source_vocab=V, target_vocab=V, size=4)
    stepped.output = lambda state, rows=None: None  # type: ignore[method-assign]
    batch = fr.Batch(IDS, context={"source": IDS, "source_mask": MASK})
    yield ("output gives None", lambda: call(ss(0.0), stepped, batch), r"output\(state, rows\)")
    yield ("generate, output gives None", lambda: fr.generate(stepped, batch, length=2), r"output\(state, rows\)")


RATIOS = (-0.1, 1.1, NAN, INF, "0.5", None, True, torch.tensor(0.5), [0.5], np.float32(0.5), 2)
DRAWS = {
    "argmax": "use 'greedy'", "max": "use 'greedy'", "multinomial": "use 'sample'", "nucleus": r"sample\(top_p",
    "top_k": r"sample\(top_k", "top_p": r"sample\(top_p", "beam": "beams=", "greedi": "did you mean 'greedy'",
    "gumbel": "coupling", 3: "must be one of", None: "must be one of", draws.Greedy: r"an object of it",
}  # fmt: skip
ENGINES = {
    0: "k >= 1", -1: "k >= 1", True: "k >= 1", 2.5: "must be one of", "sequential": "mean 'step'", None: "one of",
    "parallel": "mean 'jacobi'", "jakobi": "mean 'jacobi'", (): "one of",
}  # fmt: skip
COINS = {
    "tokn": "mean 'token'", "batchwise": "mean 'batch'", 3: "must be one of", None: "one of", gates.Token: "an object",
    torch.bernoulli: "PyTorch's own", (lambda batch: batch): "3 arguments",
}  # fmt: skip
OBJECTIVES = {
    "mze": "mean 'mse'", "ce": "mean 'cross_entropy'", "l1": "must be one of", 3: "must be one of", None: "one of",
    nn.L1Loss(): "PyTorch's own", nn.CrossEntropyLoss(): "PyTorch's own", nn.functional.cross_entropy: "PyTorch's",
    objectives.MeanSquaredError: "an object", (lambda outputs: outputs): "2 arguments",
}  # fmt: skip
RESULTS = {
    "a scalar": (lambda o, b: o.sum(), "returns .total, count."), "nothing": (lambda o, b: None, "total, count"),
    "each": (lambda o, b: (o, 3), "two scalars"), "three": (lambda o, b: (o.sum(), 1, 2), "two scalars"),
    "a number": (lambda o, b: (1.0, 2), "two scalars"),
}  # fmt: skip
NO_SCHEDULES = {
    "a function": (lambda step: 0.5, r"schedules.table\(values="), "a method": (fr.falling(190), "is a method already"),
    "a class": (schedules.Linear, "an object of it"), "text": ("linear", "number or a schedule"),
}  # fmt: skip


@dataclass(frozen=True, repr=False)
class Nothing(schedules.Schedule):
    name: ClassVar[str] = "nothing"

    def at(self, position: float) -> Any:
        return None if position else 0.5  # construction looks at step 0

    def __call__(self, step: int) -> Any:
        return None


def outputs_of(objective: Any) -> Tensor:
    widths = {"CrossEntropy": V, "GaussianNLL": 4, "Pinball": 6}
    return torch.zeros(B, T, widths.get(type(objective).__name__, 2))


RATIO_METHODS = (fr.scheduled_sampling, fr.two_pass, fr.parallel, fr.confidence_aware)
HORIZON_METHODS = (fr.multi_step, fr.pushforward, fr.free_running, fr.teacher_forcing)
HORIZONS, FALLING = (0, -1, 2.5, "3", True, None), schedules.linear(steps=10)
LEVELS = ((), (0.1, 0.9), (0.5, 0.1), (0.5, 1.0), "abc", 0.5, "0.5", None, (0.5, "0.9"), (NAN, 0.5))


def demonstrated(rounds: Any) -> Any:
    return fr.data_as_demonstrator(lambda parts: FORECASTER, VALUES_BATCH, rounds, lambda model: 0.0)


def generate(name: str) -> Callable[[Any], Any]:
    return lambda value: fr.generate(MODEL, IDS_BATCH, **({"length": 2} | {name: value}))


# what is called with each of the values, and what it then says
SWEPT: list[tuple[str, Callable[[Any], Any], Any, str]] = [
    *((m.name, m, RATIOS, "teacher_forcing_ratio must (lie in|be a number)") for m in RATIO_METHODS),
    ("rate", lambda v: fr.token_noise(v, vocabulary=V), RATIOS, "rate must"),
    ("Step", fr.Step, (1.5, -1, "3", None), "step"),
    ("gradient", lambda v: ss(0.5, gradient=v), ("yes", 0, -1, True, None, 1.5), "gradient must be"),
    ("gold_weight", lambda v: ss(0.5, gold_weight=v), (-1, NAN, INF, "1", True, None), "gold_weight must be"),
    *((m.name + " horizon", lambda v, m=m: m(horizon=v), (0, -1, NAN, INF, "4", True), "horizon must")
      for m in HORIZON_METHODS),
    ("loss_on", lambda v: fr.teacher_forcing(loss_on=v), ("first", (), (0.0,), (-1.0,), (NAN,), None, 3), "loss_on"),
    ("vocabulary", lambda v: fr.token_noise(0.5, vocabulary=v), (2.5, 1, 0, -3, "7", NAN, True),
     "vocabulary must be a number of symbols"),
    ("frequencies", lambda v: fr.token_noise(0.5, "unigram", frequencies=v),
     ((), (0, 0), (-1, 2), (NAN, 1), ("a",), 3, "abc", torch.ones(3), None), "frequencies"),
    ("tau", lambda v: fr.sparse_teacher_forcing(tau=v), (0, 1, 2.5, "3", True, NAN, None),
     "tau must be (at least 2|a whole number)"),
    ("passes", lambda v: fr.parallel(0.5, passes=v), (0, -1, 1.5, "2", True, None), "passes must be a whole number"),
    ("std", fr.gaussian_noise, (-1.0, NAN, INF, "large", None, True), "std must"),
    ("alpha", fr.generalised_teacher_forcing, (-0.1, 1.5, NAN, "auto", None, True), "alpha must"),
    ("t_golden", lambda v: fr.confidence_aware(t_golden=v), (-0.1, 1.0, NAN, "0.9", None), "t_golden must lie"),
    ("mix", lambda v: fr.two_pass(0.5, mix=v), ("softmax", 3, None), "mix must be one of"),
    *((m.__name__, m, (NAN, 0, 1, -5, "100", None, True, INF), "steps must be the number")
      for m in (fr.falling, fr.rising, fr.methods.reverse)),
    ("linear steps", lambda v: schedules.linear(steps=v), (0, -1, NAN, INF, "9", None, True), "steps must be"),
    ("exponential k", schedules.exponential, (0, 1, 1.5, NAN, "x", None), "k must"),
    ("inverse sigmoid k", schedules.inverse_sigmoid, (0, 0.5, NAN, "x", None), "k must"),
    ("start", lambda v: schedules.linear(start=v, steps=3), (NAN, INF, "1", None, True), "start must be a finite"),
    ("linear at", FALLING, (-1, 1.5, "3", None, NAN, True, [1]), "step"),
    ("check over", lambda v: ss(FALLING).check(v), (0, -1, 1.5, "3", None), "at least one step"),
    ("temperature", lambda v: draws.Sample(temperature=v), (0, -1, NAN, INF, "1", None, True), "temperature must be"),
    ("top_k", lambda v: draws.Sample(top_k=v), (-1, 1.5, "5", None, True), "top_k must be (0|a whole number)"),
    ("top_p", lambda v: draws.Sample(top_p=v), (0, 1.1, NAN, "x", None), "top_p must lie"),
    ("levels", distributions.Quantiles, LEVELS, "levels must"),
    ("pinball", objectives.Pinball, LEVELS, "levels must"),
    ("quantile sample", draws.QuantileSample, LEVELS, "levels must"),
    ("label_smoothing", objectives.CrossEntropy, (-0.1, 1.0, NAN, "x", None), "label_smoothing must"),
    ("width", fr.Window, (0, -1, 1.5, "2", True), "width must be a whole number"),
    ("tolerance", lambda v: fr.Draft(tolerance=v), (-0.1, 1, NAN, "x", None), "tolerance must lie"),
    ("draft by", fr.Draft, ("bf16", 16, torch.int8, LM), "model must be a floating-point dtype"),
    ("decoding steps", gates.DecodingSteps, ("cosine", 3, None), "shape must be one of"),
    ("decoding steps k", lambda v: gates.DecodingSteps(k=v), (0, 1, NAN, "x"), "k must be strictly"),
    ("confidence", gates.Confidence, (-1, 1, NAN, "x", None), "t_golden must lie"),
    ("length", generate("length"), (0, -1, 2.5, "3", None, True, NAN, [2]), "length must be"),
    ("beams", generate("beams"), (0, -2, 1.5, "2", True), "beams must be"),
    ("n_best", generate("n_best"), (0, -2, 1.5, "2", None, True), "n_best must be"),
    ("end", generate("end"), (-1, 2.5, "</s>", True, [-1], NAN), "end must be .*the id of the end symbol"),
    ("an end beyond the vocabulary", generate("end"), (V,), f"one of the model's {V} ids"),
    ("length_penalty", generate("length_penalty"), (-1, NAN, INF, "1"), "length_penalty must (be|lie)"),
    ("key of generate", generate("key"), (1.5, "a", None), "key must be a whole number"),
    *((f"{name} beyond", generate(name), (most + 1,), f"{name} must (be|lie) .*{most}[];]")
      for name, most in (("length", 2**24), ("beams", 2**16), ("length_penalty", 32))),
    *(("draw of generate", generate("draw"), (draw,), says) for draw, says in DRAWS.items()),
    ("rounds", demonstrated, (True, 0, 1.0), "rounds must be at least 1"),
    ("within_horizon", lambda v: transforms.within_horizon(VALUES_BATCH, v), HORIZONS, "horizon must be"),
    ("last value", lambda v: diagnostics.last_value(SERIES, v), HORIZONS, "horizon must be"),
    ("fold", lambda v: fold(0, v), (1.5, None, [1]), "whole numbers and words"),
    ("fold of key", fold, (1.5, None, [1]), "key must be"),
    ("threshold", lambda v: metrics.valid_time(VALUES, VALUES, v), (0, -1, NAN, "x", None), "threshold must be"),
    ("about", lambda v: diagnostics.DiagnosisOptions(threshold=v), (0, -1, NAN, "x", None), "threshold must be"),
    ("bins", lambda v: diagnostics.state_histogram_divergence(RUN, RUN, bins=v), (0, 1.5, "3", None), "bins must be"),
    ("delay", lambda v: diagnostics.delay_embedding(RUN[:, :1], v), (0, 1.5, "2", None), "delay must be"),
    ("components", lambda v: diagnostics.principal_components(RUN, v), (0, 4, 1.5, None), "number must be"),
    ("period", lambda v: diagnostics.last_period(SERIES, 2, v), (0, 1.5, "2", None), "period must be"),
    *((f"{argument} of a mixture", lambda v, a=argument: ss(0.5, **{a: v}), (value,), says)
      for argument, wrong in (("draw", DRAWS), ("engine", ENGINES), ("gate", COINS), ("objective", OBJECTIVES))
      for value, says in wrong.items()),
]  # fmt: skip


def swept_cases() -> Iterator[Case]:
    for name, do, values, says in SWEPT:
        yield from ((f"{name} {value!r}", partial(do, value), says) for value in values)


def method_cases() -> Iterator[Case]:
    for name, (value, says) in NO_SCHEDULES.items():
        yield (f"{name} for a ratio", partial(ss, value), says)
        yield (f"{name} for a horizon", partial(fr.multi_step, horizon=value), says)
    for name, (objective, says) in RESULTS.items():
        yield (f"objective of {name}", lambda o=objective: call(fr.teacher_forcing(objective=o)), says)
    for name, gate in {
        "None": lambda b, r, k: None, "numbers": lambda b, r, k: b.mask.float(), "one row": lambda b, r, k: b.mask[0],
    }.items():  # fmt: skip
        for make in (fr.scheduled_sampling, fr.two_pass, fr.parallel):
            label = f"{make.name}, a gate of {name}"
            yield (label, lambda m=make, c=gate: call(m(0.5, gate=c)), "a gate returns keep")
    yield ("a schedule of nothing", lambda: call(ss(Nothing())), "gives no number at step")
    yield ("a schedule of nothing, over a run", lambda: ss(Nothing()).check(9), "gives no number at every step")
    for objective in (objectives.mse(), objectives.cross_entropy(), objectives.gaussian_nll(), objectives.pinball()):
        batch = IDS_BATCH if objective == objectives.cross_entropy() else VALUES_BATCH
        yield (f"{objective} of a list", partial(objective, [1.0], batch), "outputs must be a real tensor")
        yield (f"{objective} of targets", partial(objective, torch.zeros(B, T, 2), IDS), "and a freerun.Batch")
        yield (f"{objective} of a row less", partial(objective, outputs_of(objective)[1:], batch), "batch first")
    for law in (distributions.Gaussian(), distributions.StudentT(), distributions.Quantiles()):
        yield (f"{law} of numpy", partial(law.mean, np.zeros((2, 6))), "outputs must be a real tensor")
    for word in ("sampling_probability", "scheduled_sampling_ratio", "epsilon", "eps", "tf_ratio", "sampling_prob"):
        yield (f"{word}=", partial(ss, **{word: 0.25}), r"P\(gold\).*1 - p")
        yield (f"{word}= of two_pass", partial(fr.two_pass, **{word: 0.25}), r"P\(gold\).*1 - p")
    for word, says in {
        "temperature": "draw=fr.draws.sample", "seed": "comes with the call", "label_smoothing": "objective=fr", "coin":
        "mean gate", "loss_fn": "mean objective", "engin": "mean engine", "nonsense": "it takes teacher_forcing_ratio",
    }.items():  # fmt: skip
        yield (f"{word}=", partial(ss, 0.5, **{word: 1}), says)
    yield ("no ratio", ss, "scheduled_sampling needs teacher_forcing_ratio")
    yield ("no tau", fr.sparse_teacher_forcing, "needs tau")
    yield ("no rate", fr.token_noise, "needs rate")
    yield ("too many by position", partial(fr.teacher_forcing, "mse", 0.5), "arguments by position")
    yield ("unknown argument of a preset", partial(fr.falling, 100, temperature=2), "fr.draws.sample")


def settings_cases() -> Iterator[Case]:
    yield ("linear of three", partial(schedules.linear, 1.0, 0.0, 100), "by name")
    yield ("cosine of three", partial(schedules.cosine, 1.0, 0.0, 10), "by name")
    yield ("join of numbers", partial(schedules.join, 1, 2), "must be two or more schedules")
    yield ("linear by position", partial(schedules.linear, 1.0, 0.0, 9), r"linear\(start=1.0, end=0.0, steps=9\)")
    yield ("sigmoid by position", partial(schedules.inverse_sigmoid, 10, 1.0), r"1 arguments by position \(k\)")
    for name, make in schedules.SCHEDULES.items():
        yield (f"{name} of nothing", make, f"{name} needs")
        yield (f"{name} stpes", partial(make, strt=3), "has no argument 'strt'")
    yield ("total_steps", partial(schedules.linear, total_steps=3), "did you mean steps")
    yield ("unit", partial(schedules.linear, steps=3, unit="steps"), "unit must be one of")
    epochs = schedules.linear(steps=10, unit="epoch")
    yield ("epochs of a plain step", partial(epochs, 3), "Step")
    yield ("epochs of a number", partial(epochs, 0.5), "step must be the number")
    yield ("coupling", partial(draws.Sample, coupling="cdf"), "coupling must be")
    yield ("head", partial(draws.Expected, "normal"), "head must be one of")
    yield ("greedy of something", partial(draws.Greedy, 3), "takes its arguments by name")
    yield ("sample of a word", partial(draws.Sample, temp=2), "has no argument 'temp'")
    yield ("every, misspelt", partial(gates.Every, tua=3), "did you mean tau")


def extreme_cases() -> Iterator[Case]:
    cycle: dict[str, Any] = {}
    cycle["x"] = cycle
    nested = torch.nested.nested_tensor([torch.zeros(2, 2), torch.zeros(3, 2)], layout=torch.jagged)
    yield ("targets nested", lambda: fr.Batch(nested), "nested one: pad it")
    yield ("targets sparse", lambda: fr.Batch(VALUES.to_sparse()), "to_dense")
    yield ("targets on meta", lambda: fr.Batch(VALUES.to("meta")), "meta device")
    yield ("a context that holds itself", lambda: fr.Batch(IDS, context=cycle), "holds itself")
    small = torch.full((B, T), 1e-40)
    yield (
        "weights below float32",
        lambda: call(ss(0.5), batch=fr.Batch(IDS, weights=small)),
        "none between 0 and 1.2e-38",
    )
    yield ("a batch to 3.5", lambda: IDS_BATCH.to(3.5), "moves to a device")  # type: ignore[arg-type]
    for size in (10**400, 2**63):
        yield (f"a ratio of {size.bit_length()} bits", lambda s=size: ss(s), "must lie below")
        yield (f"steps of {size.bit_length()} bits", lambda s=size: schedules.linear(steps=s), "must lie below")
    yield ("boundaries of many bits", lambda: schedules.piecewise(steps=(0, 10**400), values=(1, 0)), "steps must")
    yield ("two steps", lambda: schedules.linear(steps=torch.tensor([3, 4])), "steps must be one value")
    yield ("k of True", lambda: draws.sample(top_k=True), "top_k must")
    yield ("a rate of text", lambda: fr.gaussian_noise(1.0, rate="x"), "rate must")
    yield ("a draw without noise", lambda: draws.resolve(SimpleNamespace(choose=max)), "draw must")  # type: ignore[arg-type]
    falling = schedules.linear(steps=4)
    yield ("a schedule as gate", lambda: ss(0.5, gate=falling), "gate must be")
    yield ("a schedule as objective", lambda: ss(0.5, objective=falling), "objective must be")
    yield ("check nothing", lambda: fr.check_model(None, IDS_BATCH), "model must be callable")
    for name, more in (("collate", {"examples": [1], "collate": 3}), ("examples", {"examples": 3, "collate": list})):
        yield (f"{name} of a number", partial(fr.check_model, MODEL, IDS_BATCH, **more), f"{name} must be")
    model = fr.models.RecurrentSeq2Seq(source_vocab=V, target_vocab=V, size=8)
    for name, source, mask in (("source", IDS.float(), MASK), ("source_mask", IDS, MASK[:, 1:])):
        context = {"source": source, "source_mask": mask}
        yield (f"a wrong {name}", lambda c=context: model(fr.Batch(IDS, context=c)), f"{name}'. must be")


def function_cases() -> Iterator[Case]:
    yield ("generate turned round", lambda: fr.generate(IDS_BATCH, MODEL, length=2), "swapped")
    yield ("generate without length", lambda: fr.generate(MODEL, IDS_BATCH), "length must be")
    for word, meant in (
        ("max_length", "length"), ("max_new_tokens", "length"), ("num_beams", "beams"), ("eos_token_id", "end"),
        ("do_sample", "draw='sample'"), ("temperature", "draws.sample"), ("num_return_sequences", "n_best"),
    ):  # fmt: skip
        yield (f"generate {word}=", lambda w=word: fr.generate(MODEL, IDS_BATCH, **{w: 3}), meant)
    sampled = {"length": 2, "beams": 2, "draw": "sample"}
    yield ("a sampled beam", lambda: fr.generate(MODEL, IDS_BATCH, **sampled), "draw='greedy'")
    yield ("a draw of values", lambda: generate("draw")("point"), "is for values")
    yield ("NaN logits", lambda: fr.generate(returning(lambda x: x * NAN), IDS_BATCH, length=2), "NaN")
    yield ("loss_on a word", lambda: transforms.loss_on(VALUES_BATCH, "first"), "loss_on must be")
    yield ("uniform key", partial(uniform, "a", IDS), "key must be")
    yield ("uniform of values", partial(uniform, 0, VALUES), "counters must be integers")
    yield ("uniform of text", partial(bits, 0, "abc"), "counters must be integers")
    yield ("uniform in half", partial(uniform, 0, IDS, dtype=torch.float16), "dtype must be")
    outputs, wrong, run = torch.zeros(B, T, V), IDS > 2, RUN
    for score in (metrics.token_accuracy, metrics.sequence_accuracy, metrics.sequence_errors):
        name = score.__name__
        yield (f"{name} of a list", partial(score, outputs.tolist(), IDS, MASK), "outputs must be")
        yield (f"{name} of values", partial(score, outputs, VALUES, MASK), "targets must be")
        yield (f"{name}, float mask", partial(score, outputs, IDS, MASK.float()), "mask must be a bool")
        yield (f"{name} of one row less", partial(score, outputs[1:], IDS, MASK), "outputs must be")
    for measure in (metrics.nrmse, metrics.rmse_by_horizon, metrics.valid_time, metrics.window_errors):
        name = measure.__name__
        yield (f"{name} of ids", partial(measure, IDS, IDS), "must be a real tensor")
        yield (f"{name} of numpy", partial(measure, VALUES.numpy(), VALUES), "outputs must be a real tensor")
        yield (f"{name} of other shapes", partial(measure, VALUES, VALUES[1:]), "must both be")
    for count in (diagnostics.error_after_error, diagnostics.first_error, diagnostics.position_errors):
        yield (f"{count.__name__} of ids", partial(count, IDS, MASK), "wrong must be a bool tensor")
        yield (f"{count.__name__} of a list", partial(count, wrong, [1]), "mask must be a bool tensor")
        yield (f"{count.__name__} of fewer rows", partial(count, wrong, MASK[1:]), "must both be")
    for compare in (diagnostics.state_histogram_divergence, diagnostics.spectrum_distance):
        yield (f"{compare.__name__} of numpy", partial(compare, run.numpy(), run), "gold must be a real tensor")
        yield (f"{compare.__name__} of NaN", partial(compare, run, run * NAN), "not finite")
        yield (f"{compare.__name__} smoothing", partial(compare, run, run, smoothing="x"), "smoothing")
    yield ("growth of a list", partial(diagnostics.growth, [1.0]), "errors must be")
    yield ("growth, exponent", partial(diagnostics.growth, run[:, 0], NAN), "exponent must be")
    yield ("growth, ceiling", partial(diagnostics.growth, run[:, 0], ceiling="x"), "ceiling")
    yield ("diagnose nothing", partial(diagnostics.diagnose, MODEL, []), "nothing to diagnose")
    yield ("diagnose turned round", partial(diagnostics.diagnose, IDS_BATCH, MODEL), "swapped")
    yield ("diagnose without model", partial(diagnostics.diagnose, None, IDS_BATCH), "model must be callable")
    yield ("diagnose about", partial(diagnostics.diagnose, MODEL, IDS_BATCH, {"end": 0}), "DiagnosisOptions")
    for name, broken, says in (
        ("NaN", returning(lambda x: x * NAN), "NaN"),
        *((name, returning(OUTPUTS[name][0]), "must return") for name in ("None", "a tuple", "2-d")),
    ):
        yield (f"diagnose outputs {name}", partial(diagnostics.diagnose, broken, IDS_BATCH), says)


CASES = [
    *part_cases(), *value_cases(), *context_cases(), *call_cases(), *output_cases(), *swept_cases(), *method_cases(),
    *settings_cases(), *function_cases(), *extreme_cases(),
]  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=lambda case: re.sub(" at 0x[0-9a-f]+", "", case[0]))
def test_a_mistake_is_answered(case):
    _, do, message = case
    refused(message, do)


def test_the_list_is_as_long_as_it_should_be():
    assert len(CASES) >= 320
    assert len({name for name, *_ in CASES}) == len(CASES)


def right() -> Iterator[tuple[str, Callable[[], Any]]]:
    half, padding = ss(0.5), VALUES.masked_fill(~MASK[..., None], NAN)
    yield from ((f"step {s!r}", lambda s=s: call(half, step=s)) for s in (0, np.int64(3), torch.tensor(3), fr.Step(3)))
    for key in (0, -1, 2**64, np.int32(4), torch.tensor(5), 10**30):
        yield f"key {key!r}", lambda k=key: call(half, key=k)
    for pad in (-100, 0, V - 1, -1, 10**6):
        yield f"padding {pad}", lambda p=pad: call(half, MODEL, fr.Batch(IDS.masked_fill(~MASK, p), IDS, MASK))
    weights = torch.ones(B, T).masked_fill(~MASK, NAN)
    constant, waves = torch.full((4, 9), 3), torch.tensor([[1, 2] * 5])
    mixed = torch.cat([PAIR[:, :1], PAIR[:, :-1]], 1)
    mixed[0, 3] = PAIR[0, 3] + (PAIR[0, 3] == PAIR[0, 2])
    later = fr.Batch(IDS, mask=MASK & (torch.arange(B) > 0)[:, None])
    for name, build in {
        "padding -100, history left out": lambda: fr.Batch(IDS.masked_fill(~MASK, -100), mask=MASK),
        "weights NaN under the mask": lambda: fr.Batch(IDS, mask=MASK, weights=weights),
        "weights of 0": lambda: fr.Batch(IDS, mask=MASK, weights=torch.zeros(B, T)),
        "a row that does not count": lambda: later,
        "no row that counts": lambda: fr.Batch(IDS, mask=torch.zeros_like(MASK)),
        "one position": lambda: fr.Batch(IDS[:, :1]), "one row": lambda: fr.Batch(IDS[:1]),
    }.items():  # fmt: skip
        yield name, lambda b=build: call(half, MODEL, b())
    for context in (None, {}, (), [], {"x": None}, {"x": torch.zeros(B)}, {"a": (torch.zeros(B, 1), None)}):
        yield f"context {context}", lambda c=context: fr.Batch(IDS, context=c)
    another = (nn.functional.one_hot((IDS + 1) % V, V) * (IDS >= 0)[..., None]).bool()
    ruled_out = returning(lambda x: x.masked_fill(another, -INF))
    limits: dict[str, Any] = {"length": 2, "end": 0, "beams": 2, "length_penalty": 32}
    forced = fr.teacher_forcing()
    yield from {
        "NaN under the mask": lambda: call(forced, FORECASTER, fr.Batch(padding, VALUES, MASK)),
        "NaN under the mask, history left out": lambda: call(half, FORECASTER, fr.Batch(padding, mask=MASK)),
        "bf16": lambda: fr.Batch(VALUES.bfloat16(), mask=MASK),
        "large half values": lambda: fr.Batch(torch.full((8, 64, 64), 60000.0, dtype=torch.float16)),
        "constant ids": lambda: fr.Batch(constant, constant.clone()),
        "periodic ids": lambda: fr.Batch(waves, waves.clone()),
        "a history of other entries": lambda: fr.Batch(PAIR, (PAIR + 1) % V),
        "few positions that look shifted": lambda: fr.Batch(PAIR[:1, 1:4], PAIR[:1, :3]),
        "mostly shifted": lambda: fr.Batch(PAIR, mixed),
        "equal rows": lambda: fr.Batch(IDS, rows=torch.zeros(B, dtype=torch.int64)),
        "-inf for another symbol": lambda: call(forced, ruled_out),
        "more outputs than ids": lambda: call(half, LM(50)),
        "a loss under no_grad": lambda: torch.no_grad()(call)(forced, returning(lambda x: x.detach())),
        "a count that is a number": lambda: call(fr.teacher_forcing(objective=lambda o, b: (o.square().sum(), 3))),
        "numbers as whole floats": lambda: fr.falling(1e3),
        "the steepest penalty": lambda: fr.generate(MODEL, IDS_BATCH, **limits),
        "the most steps": lambda: schedules.linear(steps=2**63 - 1),
        "one round": lambda: demonstrated(np.int64(1)),
        "the smallest weights": lambda: fr.Batch(IDS, weights=torch.full((B, T), 1.3e-38)),
        "numpy length": lambda: fr.generate(MODEL, IDS_BATCH, length=np.int64(2), end=np.int64(0)),
    }.items()


@pytest.mark.parametrize(("name", "do"), list(right()), ids=lambda x: x if isinstance(x, str) else "")
def test_what_is_right_goes_through(name, do):
    result = do()
    assert not isinstance(result, Tensor) or bool(result.isfinite())


def test_steps_of_any_integer_type_are_one_step_and_large_keys_are_keys():
    fed = [ss(0.5).transform(MODEL, IDS_BATCH, s).history for s in (3, np.int64(3), torch.tensor(3), fr.Step(3))]
    assert all(torch.equal(fed[0], each) for each in fed[1:])
    keys = [0, 1, -1, 2**63, 2**64 - 1, 2**64, 2**64 + 1, -(2**64), 10**30]
    assert len({fold(key) for key in keys}) == len(keys)
    assert len({int(bits(key, 0)) for key in keys}) == len(keys)


def test_a_batch_needs_its_targets_alone():
    full, short = fr.Batch(IDS, IDS, torch.ones_like(IDS, dtype=torch.bool)), fr.Batch(IDS)
    assert short.history is IDS
    assert bool(short.mask.all())
    assert call(ss(0.5), batch=full).equal(call(ss(0.5), batch=short))
    padded = fr.Batch(IDS.masked_fill(~MASK, -100), mask=MASK)
    assert padded.history.equal(IDS.masked_fill(~MASK, 0))
    copies = (pickle.loads(pickle.dumps(padded)), copy.deepcopy(padded), padded.to("cpu"))
    for again in (*copies, padded.select(torch.arange(B))):
        assert all(getattr(again, part).equal(getattr(padded, part)) for part in ("targets", "history", "mask"))


def test_a_batch_is_displayed_in_one_line():
    batch = fr.Batch(IDS, mask=MASK, context={"source": torch.zeros(B, 9)}, weights=torch.ones(B, T))
    assert repr(batch) == (
        f"Batch(targets=({B}, {T}) ids on cpu, 12 of 15 counted, context={{source: (3, 9) float32}}, weights)"
    )
    large = fr.Batch(torch.zeros(64, 500, 8), context=[torch.zeros(64, 2)] * 50)
    assert len(repr(large)) < 120
