"""Methods on models in PyTorch's wrappers, in two processes of which one has nothing to replace."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import freerun as fr
from builders import gradients, ragged, transformer
from distributed_world import HERE, torchrun
from freerun.rollin import any_rank, max_over_ranks, needs_sync, supports, unwrap, wrapper_hint
from freerun.types import Encoder, Stepper

SCRIPT = str(HERE / "distributed_wrapped.py")
QUICK = [
    "ddp: recurrent, free", "ddp: transformer, free", "ddp: values, full", "ddp, buffers: gold kept",
    "ddp, the run: values, cut", "fsdp: recurrent, free", "fsdp, parts: transformer, jacobi",
    "fsdp, parts: transformer, greedy, k passes", "fsdp, parts: transformer, two pass, gold kept",
    "fsdp, parts: transformer, frozen passes", "fsdp, parts: values, full",
]  # fmt: skip


def started(path: Path, names: list[str]) -> list[dict[str, Any]]:
    """What each of two processes found."""
    done = torchrun([SCRIPT, str(path), *names])
    assert done.returncode == 0, done.stderr
    return [json.loads(path.with_suffix(f".{rank}.json").read_text()) for rank in (0, 1)]


@pytest.fixture(scope="module")
def quick(tmp_path_factory):
    return started(tmp_path_factory.mktemp("quick") / "found", QUICK)


def test_gradients_are_those_of_one_process_whoever_has_the_work(quick):
    for found in quick:
        assert len(found["differences"]) == 2 * len(QUICK)
        assert {name: far for name, far in found["differences"].items() if not far < 1e-10} == {}


def test_what_cannot_be_honoured_is_refused_by_name(quick):
    assert quick[0]["refused"] == quick[1]["refused"], "on all ranks: none waits"
    messages = quick[0]["refused"]
    for engine in ("step", "window", "draft"):
        assert f"engine='{engine}' calls parts of the model" in messages[f"fsdp, {engine}"]
        assert "use engine='auto' or 'jacobi' (exact), or a number of passes" in messages[f"fsdp, {engine}"]
    for what in ("vectors", "cut"):
        assert "its parameters are sharded" in messages[f"fsdp, {what}"]
        assert "would go round DistributedDataParallel" in messages[f"ddp, {what}"]
        assert "(freerun.training.MethodRun(model, method))" in messages[f"ddp, {what}"]
    assert "would go round DistributedDataParallel" in messages["ddp, step"]
    assert "generate calls a model as long as a row goes on" in messages["fsdp, generate"]


def test_what_is_inside_a_wrapper_runs_freely_on_one_rank_alone(quick):
    assert [found["others"] for found in quick] == [{"generate on one rank": True, "no protocols": "jacobi"}] * 2


@pytest.mark.slow(reason="every method in every wrapper, by two processes")
def test_every_method_in_every_wrapper(tmp_path):
    for found in started(tmp_path / "found", []):
        assert len(found["differences"]) > 120
        assert {name: far for name, far in found["differences"].items() if not far < 1e-10} == {}


class Small(nn.Module):
    """The next symbol by the last one alone."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.table = nn.Embedding(5, 5)

    def forward(self, batch: fr.Batch) -> torch.Tensor:
        return self.table(nn.functional.pad(batch.history[:, :-1], (1, 0)))


# dynamo looks at .grad of all its inputs, and PyTorch warns of that
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
def test_a_compiled_model_is_rolled_in_by_what_is_inside():
    """Both the history and the gradient are those of the model."""
    calls: list[int] = []

    def counting(module: Any, _inputs: Any) -> Any:
        calls.append(len(calls))
        return module.forward

    method, batch = fr.free_running(), ragged()
    net = Small().double()
    expected = method.run(net, batch, 3, 1)
    gradients_expected = gradients(net, expected.total)
    compiled = torch.compile(net, backend=counting)
    assert unwrap(compiled) is net
    outcome = method.run(compiled, batch, 3, 1)
    assert torch.equal(outcome.fed.history, expected.fed.history)
    found = gradients(net, outcome.total)
    assert calls, "the training forward is the compiled one"
    for name, gradient in gradients_expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-10, atol=1e-12)


def test_without_wrappers_and_processes_nothing_is_exchanged():
    net = transformer()
    inside = nn.DataParallel(nn.Sequential(net))
    assert unwrap(inside)[0] is net
    assert unwrap(len) is len
    assert not needs_sync(net)
    assert supports(net, Stepper)
    assert supports(net, Encoder)
    assert not supports(nn.DataParallel(net), Stepper)
    assert (max_over_ranks(net, 4), any_rank(net, False), wrapper_hint(net, Stepper)) == (4, False, "")
    assert "would go round DataParallel" in wrapper_hint(nn.DataParallel(net), Stepper)
