"""Training in plain PyTorch: one update after the other, repeatable to the bit, safe against kill -9."""

from freerun.errors import OtherProcessError, StoppedError, TerminatedError
from freerun.training.loop import fit
from freerun.training.optim import learning_rate
from freerun.training.plan import BatchPlan
from freerun.training.ready import ready_to_start
from freerun.training.settings import TrainSettings
from freerun.training.task import Evaluation, Task
from freerun.training.weights import load_weights, read_model, write_model
from freerun.training.wrapped import MethodRun

__all__ = [
    "BatchPlan",
    "Evaluation",
    "MethodRun",
    "OtherProcessError",
    "StoppedError",
    "Task",
    "TerminatedError",
    "TrainSettings",
    "fit",
    "learning_rate",
    "load_weights",
    "read_model",
    "ready_to_start",
    "write_model",
]
