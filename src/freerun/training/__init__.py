"""Training in plain PyTorch: one update after the other, repeatable to the bit, safe against kill -9."""

from freerun.errors import OtherProcessError, StoppedError, TerminatedError
from freerun.tasks.base import Evaluation, Task
from freerun.training.loop import fit, preflight
from freerun.training.memory import estimate_memory
from freerun.training.optim import learning_rate
from freerun.training.parallelize import MethodRun
from freerun.training.plan import BatchPlan, TrainSettings
from freerun.training.weights import load_weights, read_model, write_model

__all__ = [
    "BatchPlan",
    "Evaluation",
    "MethodRun",
    "OtherProcessError",
    "StoppedError",
    "Task",
    "TerminatedError",
    "TrainSettings",
    "estimate_memory",
    "fit",
    "learning_rate",
    "load_weights",
    "preflight",
    "read_model",
    "write_model",
]
