"""The literature by name. To add a method: one file here, one line in ``METHODS``."""

from typing import Any

from freerun.methods.base import Citation, Method
from freerun.methods.confidence_aware import ConfidenceAware, confidence_aware
from freerun.methods.demonstrator import (
    DataAsDemonstratorOnline,
    data_as_demonstrator,
    data_as_demonstrator_online,
    demonstrations,
)
from freerun.methods.gaussian_noise import GaussianNoise, gaussian_noise
from freerun.methods.generalised import GeneralisedTeacherForcing, generalised_teacher_forcing, jacobians, least_forcing
from freerun.methods.parallel import Parallel, parallel
from freerun.methods.presets import PRESETS, bptt_sa, falling, reverse, rising
from freerun.methods.reverse import ReverseScheduledSampling, reverse_scheduled_sampling
from freerun.methods.scheduled_sampling import (
    FreeRunning,
    ScheduledSampling,
    free_running,
    scheduled_sampling,
)
from freerun.methods.sparse import SparseTeacherForcing, sparse_teacher_forcing
from freerun.methods.teacher_forcing import TeacherForcing, teacher_forcing
from freerun.methods.token_noise import TokenNoise, token_noise
from freerun.methods.two_pass import TwoPass, two_pass
from freerun.methods.unrolled_loss import MultiStep, Pushforward, multi_step, pushforward

__all__ = [
    "METHODS",
    "PRESETS",
    "Citation",
    "ConfidenceAware",
    "DataAsDemonstratorOnline",
    "FreeRunning",
    "GaussianNoise",
    "GeneralisedTeacherForcing",
    "Method",
    "MultiStep",
    "Parallel",
    "Pushforward",
    "ReverseScheduledSampling",
    "ScheduledSampling",
    "SparseTeacherForcing",
    "TeacherForcing",
    "TokenNoise",
    "TwoPass",
    "bptt_sa",
    "confidence_aware",
    "data_as_demonstrator",
    "data_as_demonstrator_online",
    "demonstrations",
    "falling",
    "free_running",
    "gaussian_noise",
    "generalised_teacher_forcing",
    "jacobians",
    "least_forcing",
    "multi_step",
    "parallel",
    "pushforward",
    "reverse",
    "reverse_scheduled_sampling",
    "rising",
    "scheduled_sampling",
    "sparse_teacher_forcing",
    "teacher_forcing",
    "token_noise",
    "two_pass",
]

METHODS: dict[str, type[Any]] = {
    "teacher_forcing": TeacherForcing,
    "free_running": FreeRunning,
    "scheduled_sampling": ScheduledSampling,
    "two_pass": TwoPass,
    "parallel": Parallel,
    "confidence_aware": ConfidenceAware,
    "token_noise": TokenNoise,
    "multi_step": MultiStep,
    "pushforward": Pushforward,
    "sparse_teacher_forcing": SparseTeacherForcing,
    "generalised_teacher_forcing": GeneralisedTeacherForcing,
    "reverse_scheduled_sampling": ReverseScheduledSampling,
    "data_as_demonstrator_online": DataAsDemonstratorOnline,
    "gaussian_noise": GaussianNoise,
}
