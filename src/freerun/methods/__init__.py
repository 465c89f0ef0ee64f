"""The literature by name. To add a method: one file here, one line in ``METHODS``."""

from typing import Any

from freerun.methods.base import Citation, Method
from freerun.methods.presets import PRESETS, falling, rising
from freerun.methods.scheduled_sampling import (
    FreeRunning,
    ScheduledSampling,
    free_running,
    scheduled_sampling,
)
from freerun.methods.teacher_forcing import TeacherForcing, teacher_forcing
from freerun.methods.token_noise import TokenNoise, token_noise

__all__ = [
    "METHODS",
    "PRESETS",
    "Citation",
    "FreeRunning",
    "Method",
    "ScheduledSampling",
    "TeacherForcing",
    "TokenNoise",
    "falling",
    "free_running",
    "rising",
    "scheduled_sampling",
    "teacher_forcing",
    "token_noise",
]

METHODS: dict[str, type[Any]] = {
    "teacher_forcing": TeacherForcing,
    "free_running": FreeRunning,
    "scheduled_sampling": ScheduledSampling,
    "token_noise": TokenNoise,
}
