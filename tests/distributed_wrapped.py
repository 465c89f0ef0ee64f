"""Started by torchrun in two processes: methods on models that a user has wrapped, with all the work on one rank.

Every case is a gradient of two processes against that of one; the results go to a file.
"""

import faulthandler
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

import freerun as fr
from builders import ForwardOnly, gradients, ragged, seq2seq, tiny_llama, transformer
from freerun.training import MethodRun

KEY, STEP = 1, 3


def waves() -> fr.Batch:
    g = torch.Generator().manual_seed(0)
    x = torch.randn(4, 7, 2, generator=g, dtype=torch.float64)
    own = (torch.arange(7) >= 2).expand(4, -1)
    return fr.Batch(x, x, own, eligible=own, rows=torch.arange(4) + 10)


def forecaster() -> nn.Module:
    torch.manual_seed(1)
    return fr.models.PlainForecaster(2, size=6).double()


def llama() -> nn.Module:
    return tiny_llama(20, num_hidden_layers=2)


def adapted(model: Any) -> Any:
    """What a method runs: a model of Hugging Face's is adapted, wrapped or not."""
    from freerun import hf

    inside: Any = getattr(model, "module", model)
    return hf.adapt(model) if hasattr(inside, "config") else model


def completions() -> fr.Batch:
    ids = torch.randint(2, 20, (4, 7), generator=torch.Generator().manual_seed(1))
    labels = ids.clone()
    labels[:, :2] = -100
    return adapted(llama()).batch(input_ids=ids, labels=labels, rows=torch.arange(4) + 10)


class Buffered(nn.Module):
    """A model with a buffer, which DDP sends around in every forward."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.register_buffer("scale", torch.ones((), dtype=torch.float64))

    def forward(self, batch: fr.Batch) -> Tensor:
        return self.model(batch) * self.scale


def buffered() -> nn.Module:
    return Buffered(transformer())


def uneven(batch: fr.Batch, rank: int, idle: int = 0) -> fr.Batch:
    """A rank's half of a batch of four; one has nothing to replace, the other everything; -1: the whole batch."""
    place = torch.arange(4)
    eligible = batch.replaceable & (place % 2 != idle)[:, None]
    batch = batch.replace(eligible=eligible)
    return batch if rank < 0 else batch.select(place[place % 2 == rank])


@dataclass(frozen=True)
class Case:
    model: Callable[[], nn.Module]
    method: Any
    batch: Callable[[], fr.Batch] = ragged
    wrap: str = "ddp"


IDS = {
    "free": fr.free_running(),
    "greedy, k passes": fr.free_running(engine=2, draw="greedy"),
    "jacobi": fr.scheduled_sampling(0.3, engine="jacobi"),
    "gold kept": fr.scheduled_sampling(0.3, gold_weight=0.5),
    "confidence": fr.scheduled_sampling(0.3, gate="confidence"),
    "two pass": fr.two_pass(0.2),
    "two pass, gold kept": fr.two_pass(0.2, gold_weight=0.5),
    "frozen passes": fr.parallel(0.2, passes=3, gold_weight=0.5),
    "confidence aware": fr.methods.confidence_aware(mix="argmax", t_golden=0.1, t_rand=0.3),
}
VALUES = {
    "full": fr.scheduled_sampling(0.3),
    "full, gold kept": fr.scheduled_sampling(0.3, gold_weight=0.5),
    "full, k passes": fr.scheduled_sampling(0.3, engine=2),
    "none": fr.scheduled_sampling(0.3, gradient="none"),
    "blend": fr.methods.generalised_teacher_forcing(0.4, gradient="none"),
    "demonstrator": fr.methods.data_as_demonstrator_online(),
}
CASES: dict[str, Case] = {}
for _wrap in ("ddp", "ddp, unused", "fsdp", "fsdp, parts"):
    for _name, _method in IDS.items():
        CASES[f"{_wrap}: transformer, {_name}"] = Case(transformer, _method, wrap=_wrap)
    for _name, _method in VALUES.items():
        CASES[f"{_wrap}: values, {_name}"] = Case(forecaster, _method, waves, _wrap)
    CASES[f"{_wrap}: recurrent, free"] = Case(seq2seq, fr.free_running(), wrap=_wrap)
for _name in ("gold kept", "two pass, gold kept", "frozen passes"):
    CASES[f"ddp, buffers: {_name}"] = Case(buffered, IDS[_name])
for _engine in ("step", "window", "draft"):
    CASES[f"ddp: transformer, {_engine}"] = Case(transformer, fr.scheduled_sampling(0.3, engine=_engine))
for _wrap in ("ddp", "fsdp, parts"):
    for _name in ("free", "gold kept", "two pass", "frozen passes"):
        CASES[f"{_wrap}: llama, {_name}"] = Case(llama, IDS[_name], completions, _wrap)
CASES["ddp, the run: values, cut"] = Case(forecaster, fr.scheduled_sampling(0.3, gradient=2), waves, "run")
CASES["ddp, the run: vectors"] = Case(transformer, fr.two_pass(0.2, mix="expected", gradient="full"), wrap="run")


def wrapped(model: nn.Module, how: str, method: Any) -> Any:
    if how == "run":
        return DistributedDataParallel(MethodRun(model, method))
    if how.startswith("ddp"):
        return DistributedDataParallel(model, find_unused_parameters=how.endswith("unused"))
    if how.endswith("parts"):
        blocks = [part for part in model.modules() if type(part).__name__ in ("Block", "LlamaDecoderLayer")]
        for part in blocks or [part for part in model.children() if any(True for _ in part.parameters())]:
            fully_shard(part)
    return fully_shard(model)


def whole(gradient: Tensor) -> Tensor:
    sharded: Any = gradient
    return sharded.full_tensor() if hasattr(gradient, "full_tensor") else gradient


def difference(case: Case, idle: int) -> float:
    """Of the gradients of two processes from those of one, in parts of the largest."""
    model = case.model()
    expected = gradients(model, case.method.run(adapted(model), uneven(case.batch(), -1, idle), STEP, KEY).total)
    model = case.model()
    outer, batch = wrapped(model, case.wrap, case.method), uneven(case.batch(), dist.get_rank(), idle)
    callee = outer if case.wrap == "run" else adapted(outer)
    for _ in range(2):  # a wrapper may only notice in a second step that the first was incomplete
        model.zero_grad(set_to_none=True)
        ran = case.wrap == "run"
        total = callee(batch, STEP, KEY)[0] if ran else case.method.run(callee, batch, STEP, KEY).total
        total.backward()
    largest = max(float(each.abs().max()) for each in expected.values())
    found = {name: p.grad for name, p in model.named_parameters()}
    zero = {name: torch.zeros_like(each) for name, each in expected.items()}
    got = {name: zero[name] if each is None else whole(each) * dist.get_world_size() for name, each in found.items()}
    return max(float((got[name] - expected[name]).abs().max()) for name in expected) / largest


def refused(case: Case) -> str:
    model = case.model()
    try:
        case.method.run(wrapped(model, case.wrap, case.method), uneven(case.batch(), dist.get_rank()), STEP, KEY)
    except fr.UserError as error:
        return str(error)
    return "nothing was refused"


def refusals() -> dict[str, str]:
    found = {
        f"fsdp, {engine}": refused(Case(transformer, fr.scheduled_sampling(1.0, engine=engine), wrap="fsdp"))
        for engine in ("step", "window", "draft")
    }
    vectors, cut = fr.two_pass(0.5, mix="expected"), fr.scheduled_sampling(0.5, gradient=2)
    for how in ("ddp", "fsdp"):
        found[f"{how}, vectors"] = refused(Case(transformer, vectors, wrap=how))
        found[f"{how}, cut"] = refused(Case(forecaster, cut, waves, how))
    found["ddp, step"] = refused(Case(forecaster, fr.scheduled_sampling(0.5, engine="step"), waves))
    try:
        fr.generate(fully_shard(transformer()), ragged(), length=3)
    except fr.UserError as error:
        found["fsdp, generate"] = str(error)
    return found


def others() -> dict[str, Any]:
    """Generation from what is inside wrappers, on one rank alone, and a model that was compiled and wrapped."""
    inner = transformer()
    outer = DistributedDataParallel(inner)
    entries = fr.generate(outer, ragged(), length=5).entries if dist.get_rank() == 1 else None
    same = entries is None or torch.equal(entries, fr.generate(inner, ragged(), length=5).entries)
    lean = DistributedDataParallel(ForwardOnly(transformer()))
    return {
        "generate on one rank": same,
        "no protocols": fr.free_running().run(lean, ragged(), STEP, KEY).report["engine"],
    }


def main(path: Path, chosen: list[str]) -> None:
    faulthandler.dump_traceback_later(550, exit=True)  # a hang says where, and outlives nobody
    torch.set_num_threads(1)
    dist.init_process_group(timeout=timedelta(seconds=60))
    found: dict[str, Any] = {"differences": {}}
    for name, case in CASES.items():
        if not chosen or name.split(":")[0] in chosen or name in chosen:
            for idle in (0, 1):
                found["differences"][f"{name}, rank {idle} idle"] = difference(case, idle)
    found |= {"refused": refusals(), "others": others()}
    path.with_suffix(f".{dist.get_rank()}.json").write_text(json.dumps(found, indent=1))
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
