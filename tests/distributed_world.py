"""The same runs by one process and by several: tasks, models and methods in float64, and starting torchrun."""

import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import freerun as fr
from freerun.training import Evaluation, TrainSettings, fit
from training_world import make_task

HERE = Path(__file__).parent
_OURS = ("MASTER_ADDR", "MASTER_PORT", "RANK", "WORLD_SIZE", "LOCAL_RANK")


@dataclass(frozen=True)
class Waves:
    """Noisy waves, the first three values known."""

    number: int = 25

    @property
    def lengths(self) -> Sequence[int]:
        return [9] * self.number

    @property
    def fingerprint(self) -> str:
        return "waves"

    def batch(self, indices: Sequence[int], rows: Tensor) -> fr.Batch:
        time = torch.arange(9.0, dtype=torch.float64)
        phase = torch.tensor([float(index) for index in indices], dtype=torch.float64)[:, None]
        values = torch.stack([torch.sin(0.5 * time + phase), torch.cos(0.8 * time + phase)], -1)
        own = (torch.arange(9) >= 3).expand(len(indices), -1)
        return fr.Batch(values, values, own, eligible=own, rows=rows)

    def evaluate(self, model: nn.Module, split: str) -> Evaluation:
        batch = self.batch(range(100, 104), torch.arange(4))
        losses = [float(method(model, batch, step=0)) for method in (fr.teacher_forcing(), fr.free_running())]
        return Evaluation({"loss": losses[0]}, {"loss": losses[1]})

    def describe(self) -> dict[str, Any]:
        return {"kind": "waves"}


def recurrent(task: Any, **changes: Any) -> nn.Module:
    sizes = {"size": 8, "dropout": 0.2, "attention": "luong", **changes}
    return fr.models.RecurrentSeq2Seq(*task.data.codec.sizes, **sizes)


def transformer(task: Any) -> nn.Module:
    sizes = {"size": 8, "layers": 1, "heads": 2, "max_positions": 16, "dropout": 0.1}
    return fr.models.TransformerSeq2Seq(*task.data.codec.sizes, **sizes)


def forecaster(_task: Any) -> nn.Module:
    return fr.models.PlainForecaster(2, size=6)


def markov(_task: Any) -> nn.Module:
    return fr.models.ShallowPLRNN(2, size=6)


def spare(task: Any) -> nn.Module:
    """With a weight that nothing uses, which weight decay must not move."""
    model = forecaster(task)
    model.spare = nn.Linear(3, 3)
    return model


# 12 examples an update; an epoch's last batch is smaller, so that some process has nothing left
SETTINGS = TrainSettings(
    updates=7, batch_size=12, lr=1e-2, warmup=2, decay="cosine", weight_decay=0.1, ema=0.9, evaluate_every=4,
    save_every=3, select="teacher_forced_loss",
)  # fmt: skip
LINE = fr.schedules.linear(start=0.9, end=0.2, steps=7)


@dataclass(frozen=True)
class Case:
    """A run: of what, how, and micro-batches of a process."""

    model: Callable[[Any], nn.Module]
    method: Any
    task: Callable[[], Any] = make_task
    accumulate: int = 1

    def train(self, folder: Path, size: int = 1, parallel: str = "ddp", **options: Any) -> dict[str, Any]:
        """The run by one process that makes the pieces of ``size``, or by those that there are."""
        task = options.pop("task", None) or self.task()
        torch.manual_seed(3)
        model = self.model(task).double()
        settings = replace(SETTINGS, accumulate=self.accumulate * size, parallel=parallel)
        return fit(model, task, self.method, settings, folder, **{"progress": False, **options})


CASES = {
    "recurrent": Case(recurrent, fr.scheduled_sampling(LINE)),
    "transformer": Case(transformer, fr.scheduled_sampling(LINE, gold_weight=0.5), accumulate=2),
    "values": Case(forecaster, fr.scheduled_sampling(LINE), Waves),
    "detached": Case(forecaster, fr.scheduled_sampling(LINE, gradient="none"), Waves, 2),
    "cut": Case(forecaster, fr.scheduled_sampling(LINE, gradient=2), Waves),
    "drawn": Case(forecaster, fr.multi_step(horizon=fr.schedules.uniform(1, 6), gradient="checkpointed"), Waves, 2),
    "running": Case(markov, fr.generalised_teacher_forcing("running", every=2, decay=0.7), Waves, 2),
    "owning": Case(recurrent, fr.professor_forcing(size=4, fool_above=0.3), accumulate=2),
    "following": Case(recurrent, fr.scheduled_sampling(fr.schedules.plateau(change=0.4, start=0.9, min_delta=0.9))),
    "spare": Case(spare, fr.scheduled_sampling(LINE), Waves),
    "two_pass": Case(transformer, fr.two_pass(LINE, mix="expected", gradient="full")),
}


def torchrun(
    arguments: Sequence[str], *, processes: int = 2, timeout: float = 600, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Start a script, or ``-m`` a module, in several processes on this machine."""
    found = {name: value for name, value in os.environ.items() if name not in _OURS}
    path = os.pathsep.join([str(HERE), found.get("PYTHONPATH", "")])
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    return subprocess.run(
        [*command, *arguments], capture_output=True, text=True, timeout=timeout, check=False,
        env={**found, "OMP_NUM_THREADS": "1", "PYTHONPATH": path, **environment},
    )  # fmt: skip
