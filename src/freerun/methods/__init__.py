"""The literature by name. To add a method: one file here, one line in ``METHODS``."""

from typing import Any

from freerun.methods.base import Citation, Method
from freerun.methods.confidence_aware import ConfidenceAware, confidence_aware
from freerun.methods.parallel import Parallel, parallel
from freerun.methods.presets import PRESETS, falling, rising
from freerun.methods.scheduled_sampling import (
    FreeRunning,
    ScheduledSampling,
    free_running,
    scheduled_sampling,
)
from freerun.methods.teacher_forcing import TeacherForcing, teacher_forcing
from freerun.methods.token_noise import TokenNoise, token_noise
from freerun.methods.two_pass import TwoPass, two_pass

__all__ = [
    "METHODS",
    "PRESETS",
    "Citation",
    "ConfidenceAware",
    "FreeRunning",
    "Method",
    "Parallel",
    "ScheduledSampling",
    "TeacherForcing",
    "TokenNoise",
    "TwoPass",
    "confidence_aware",
    "falling",
    "free_running",
    "parallel",
    "rising",
    "scheduled_sampling",
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
}
