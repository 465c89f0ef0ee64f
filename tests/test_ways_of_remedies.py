"""Every remedy through every way in: it works there and equals, or it is refused by name before anything is written."""

import os
import signal
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

import freerun as fr
from distributed_fit import raised
from distributed_world import SETTINGS, Waves, forecaster, recurrent, torchrun
from freerun.training import fit
from freerun.training.processes import join_processes
from training_world import fingerprints, make_task


class Bigrams(torch.nn.Module):
    """A teacher for any batch of ids: what follows the previous one."""

    def __init__(self, size: int) -> None:
        super().__init__()
        made = torch.Generator().manual_seed(6)
        self.table = torch.nn.Parameter(torch.randn(size, size, generator=made).double())

    def forward(self, batch: fr.Batch) -> torch.Tensor:
        return self.table[torch.nn.functional.pad(batch.history[:, :-1], (1, 0))]


def short(ids: Any, gold: Any) -> float:
    """A reward of one's own, as a cost: a run as long as gold, of different symbols."""
    return abs(len(ids) - len(gold)) + 0.5 * (len(ids) - len(set(ids)))


def again(batch: fr.Batch, history: torch.Tensor) -> torch.Tensor:
    """An expert that wants the previous entry once more."""
    return torch.nn.functional.pad(history[:, :-1], (1, 0))


def beyond(batch: fr.Batch, history: torch.Tensor) -> torch.Tensor:
    """An expert for values."""
    return batch.targets + 0.1


UPDATES = 4
FALLING = fr.schedules.linear(start=0.8, end=0.2, steps=UPDATES)
SYMBOLS: dict[str, Callable[[int, int], Any]] = {
    "gkd": lambda n, end: fr.METHODS["gkd"](FALLING, teacher=Bigrams(n)),
    "gkd on gold": lambda n, end: fr.METHODS["gkd"](1.0, teacher=Bigrams(n), beta=0.0),
    "optimal_completion": lambda n, end: fr.METHODS["optimal_completion"](end=end, margin=1),
    "minimum_risk": lambda n, end: fr.METHODS["minimum_risk"](short, num_samples=3, end=end, margin=1),
    "minimum_risk, prefix": lambda n, end: fr.METHODS["minimum_risk"](
        num_samples=3, end=end, margin=1, teacher_forcing_ratio=FALLING, gate="prefix", gold_weight=0.5
    ),
    "self_critical": lambda n, end: fr.METHODS["self_critical"]("bleu", end=end, margin=1),
    "self_critical, prefix": lambda n, end: fr.METHODS["self_critical"](
        short, end=end, margin=1, num_samples=2, baseline="mean", teacher_forcing_ratio=FALLING, gate="prefix"
    ),
    "consistency": lambda n, end: fr.METHODS["consistency"](FALLING, alpha=0.7),
    "raml": lambda n, end: fr.METHODS["raml"](tau=0.8, vocabulary=n),
    "sentence_oracle": lambda n, end: fr.METHODS["sentence_oracle"](FALLING, end=end),
    "unlikelihood": lambda n, end: fr.METHODS["unlikelihood"](),
    "unlikelihood, sequence": lambda n, end: fr.METHODS["unlikelihood"](level="sequence", ngram=1, end=end),
    "word_dropout": lambda n, end: fr.METHODS["word_dropout"](FALLING, blank=0),
    "teaforn": lambda n, end: fr.METHODS["teaforn"](),
    "dagger": lambda n, end: fr.METHODS["dagger"](FALLING, expert=again),
    "dagger, completions": lambda n, end: fr.METHODS["dagger"](
        FALLING, expert=fr.targets.optimal_completion(end=end)
    ),
    "soft_argmax": lambda n, end: fr.scheduled_sampling(
        FALLING, draw=fr.draws.soft_argmax(2.0), gradient="full"
    ),
    "professor_forcing": lambda n, end: fr.METHODS["professor_forcing"](size=4, fool_above=0.3),
}  # fmt: skip
VALUES: dict[str, Callable[[], Any]] = {
    "replay_buffer": lambda: fr.METHODS["replay_buffer"](0.5, capacity=8, age=2, horizon=2),
    "diffusion_noise": lambda: fr.METHODS["diffusion_noise"](levels=9, rate=0.7),
    "dagger, values": lambda: fr.METHODS["dagger"](FALLING, expert=beyond),
}
NAMES = [*SYMBOLS, *VALUES]
QUICK = ("gkd", "minimum_risk, prefix", "replay_buffer")
SLOW = pytest.mark.slow(reason="three runs of each of twenty methods")


class Cut:
    """A task whose process gets a signal at its n-th batch."""

    def __init__(self, task: Any, at: int) -> None:
        self.task, self.at, self.calls = task, at, 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.task, name)

    def batch(self, *arguments: Any) -> fr.Batch:
        self.calls += 1
        if self.calls == self.at:
            os.kill(os.getpid(), signal.SIGTERM)
        return self.task.batch(*arguments)


def run(name: str, folder: Path, accumulate: int = 1, *, cut: int = 0, parallel: str = "ddp", **options: Any) -> Any:
    """A run of four updates of our own loop, in double precision."""
    if name in SYMBOLS:
        task = make_task()
        method, make = SYMBOLS[name](task.data.codec.sizes[1], task.end(task.data)), recurrent
    else:
        task, method = Waves(), VALUES[name]()
        make = _levelled if name == "diffusion_noise" else forecaster
    torch.manual_seed(3)
    model = make(task).double()
    settings = replace(SETTINGS, updates=UPDATES, evaluate_every=UPDATES, accumulate=accumulate, parallel=parallel)
    return fit(model, Cut(task, cut), method, settings, folder, **{"progress": False, **options})


def _levelled(_task: Any) -> torch.nn.Module:
    return fr.models.PlainForecaster(2, size=6, level=True)


def left(folder: Path) -> dict[str, Any]:
    """What a run ends with: all but the checkpoints before the last."""
    last = f"step-{UPDATES:08d}"
    return {name: part for name, part in fingerprints(folder).items() if "step-" not in name or last in name}


@pytest.mark.parametrize("name", [name if name in QUICK else pytest.param(name, marks=SLOW) for name in NAMES])
def test_a_run_that_is_stopped_goes_on_to_the_same_bits(name, tmp_path):
    run(name, tmp_path / "whole", 2)
    with pytest.raises(fr.errors.TerminatedError):
        run(name, tmp_path / "cut", 2, cut=5)
    run(name, tmp_path / "cut", 2, resume=True)
    assert left(tmp_path / "cut") == left(tmp_path / "whole")


REFUSED = {"replay_buffer ddp", "replay_buffer fsdp", "professor_forcing fsdp"}


def test_a_signature_holds_no_address():
    """A function is elsewhere in the process that goes on with the run."""
    assert repr(fr.METHODS["minimum_risk"](short, end=0)) == "minimum_risk(cost=<function short>, end=0)"


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    folder = tmp_path_factory.mktemp("two")
    done = torchrun([__file__, str(folder)], timeout=900)
    assert done.returncode == 0, done.stderr[-4000:]
    return folder


@pytest.mark.slow(reason="starts two processes for some forty runs")
@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
@pytest.mark.parametrize("name", NAMES)
def test_two_processes_make_the_run_of_one(name, parallel, two, tmp_path):
    found = torch.load(two / f"{name} {parallel}.pt")
    if f"{name} {parallel}" in REFUSED:
        assert found["problem"].startswith(f"UserError: {name} ")
        assert not list((two / f"{name} {parallel}").glob("*"))
        return
    assert found["problem"] == "nothing"
    run(name, tmp_path / "one", 2)
    ends = [weights(folder) for folder in (two / f"{name} {parallel}", tmp_path / "one")]
    assert ends[0].keys() == ends[1].keys()
    for key, value in ends[1].items():
        torch.testing.assert_close(ends[0][key], value, rtol=1e-9, atol=1e-11)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(folder / f"checkpoints/step-{UPDATES:08d}/model.safetensors")


def main(root: Path, names: list[str]) -> None:
    """One of two processes."""
    torch.set_num_threads(1)
    with join_processes() as processes:
        for name in names or NAMES:
            for parallel in ("ddp", "fsdp"):
                folder = root / f"{name} {parallel}"
                problem = raised(partial(run, name, folder, parallel=parallel))
                if processes.rank == 0:
                    torch.save({"problem": problem}, f"{folder}.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
