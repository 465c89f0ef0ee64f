"""The literature by name. To add a method: one file here, one line in ``METHODS``."""

from typing import Any

from freerun.methods.base import Citation, Method
from freerun.methods.consistency import Consistency, consistency
from freerun.methods.controls import ConfusionNoise, ErrorLaw, NoHistory, WithoutHistory, confusion_noise, no_history
from freerun.methods.dagger import DAgger, dagger
from freerun.methods.data_as_demonstrator import (
    DataAsDemonstratorOnline,
    data_as_demonstrator,
    data_as_demonstrator_online,
    demonstrations,
)
from freerun.methods.diffusion import DiffusionNoise, diffusion_noise
from freerun.methods.generalised_teacher_forcing import (
    GeneralisedTeacherForcing,
    generalised_teacher_forcing,
    jacobians,
    least_forcing,
)
from freerun.methods.gkd import GKD, Teacher, gkd
from freerun.methods.multi_step import MultiStep, Pushforward, multi_step, pushforward
from freerun.methods.noise import GaussianNoise, TokenNoise, gaussian_noise, token_noise
from freerun.methods.optimal_completion import OptimalCompletionDistillation, optimal_completion
from freerun.methods.own_costs import MinimumRisk, SelfCritical, minimum_risk, self_critical
from freerun.methods.parallel import Parallel, parallel
from freerun.methods.presets import PRESETS, bptt_sa, falling, reverse, rising
from freerun.methods.professor_forcing import ProfessorForcing, professor_forcing
from freerun.methods.raml import RewardAugmented, raml
from freerun.methods.replay_buffer import ReplayBuffer, replay_buffer
from freerun.methods.reverse_scheduled_sampling import ReverseScheduledSampling, reverse_scheduled_sampling
from freerun.methods.scheduled_sampling import (
    FreeRunning,
    ScheduledSampling,
    SparseTeacherForcing,
    TeacherForcing,
    free_running,
    scheduled_sampling,
    sparse_teacher_forcing,
    teacher_forcing,
)
from freerun.methods.sentence_oracle import SentenceOracle, sentence_oracle
from freerun.methods.teaforn import TeacherForcingWithNGrams, teaforn
from freerun.methods.two_pass import ConfidenceAware, TwoPass, confidence_aware, two_pass
from freerun.methods.unlikelihood import Unlikelihood, unlikelihood
from freerun.methods.word_dropout import WordDropout, word_dropout

__all__ = [
    "GKD",
    "METHODS",
    "PRESETS",
    "Citation",
    "ConfidenceAware",
    "ConfusionNoise",
    "Consistency",
    "DAgger",
    "DataAsDemonstratorOnline",
    "DiffusionNoise",
    "ErrorLaw",
    "FreeRunning",
    "GaussianNoise",
    "GeneralisedTeacherForcing",
    "Method",
    "MinimumRisk",
    "MultiStep",
    "NoHistory",
    "OptimalCompletionDistillation",
    "Parallel",
    "ProfessorForcing",
    "Pushforward",
    "ReplayBuffer",
    "ReverseScheduledSampling",
    "RewardAugmented",
    "ScheduledSampling",
    "SelfCritical",
    "SentenceOracle",
    "SparseTeacherForcing",
    "Teacher",
    "TeacherForcing",
    "TeacherForcingWithNGrams",
    "TokenNoise",
    "TwoPass",
    "Unlikelihood",
    "WithoutHistory",
    "WordDropout",
    "bptt_sa",
    "confidence_aware",
    "confusion_noise",
    "consistency",
    "dagger",
    "data_as_demonstrator",
    "data_as_demonstrator_online",
    "demonstrations",
    "diffusion_noise",
    "falling",
    "free_running",
    "gaussian_noise",
    "generalised_teacher_forcing",
    "gkd",
    "jacobians",
    "least_forcing",
    "minimum_risk",
    "multi_step",
    "no_history",
    "optimal_completion",
    "parallel",
    "professor_forcing",
    "pushforward",
    "raml",
    "replay_buffer",
    "reverse",
    "reverse_scheduled_sampling",
    "rising",
    "scheduled_sampling",
    "self_critical",
    "sentence_oracle",
    "sparse_teacher_forcing",
    "teacher_forcing",
    "teaforn",
    "token_noise",
    "two_pass",
    "unlikelihood",
    "word_dropout",
]
METHODS: dict[str, type[Any]] = {
    "teacher_forcing": TeacherForcing,
    "free_running": FreeRunning,
    "scheduled_sampling": ScheduledSampling,
    "two_pass": TwoPass,
    "parallel": Parallel,
    "confidence_aware": ConfidenceAware,
    "token_noise": TokenNoise,
    "unlikelihood": Unlikelihood,
    "optimal_completion": OptimalCompletionDistillation,
    "gkd": GKD,
    "professor_forcing": ProfessorForcing,
    "dagger": DAgger,
    "consistency": Consistency,
    "multi_step": MultiStep,
    "pushforward": Pushforward,
    "replay_buffer": ReplayBuffer,
    "sparse_teacher_forcing": SparseTeacherForcing,
    "generalised_teacher_forcing": GeneralisedTeacherForcing,
    "minimum_risk": MinimumRisk,
    "self_critical": SelfCritical,
    "reverse_scheduled_sampling": ReverseScheduledSampling,
    "data_as_demonstrator_online": DataAsDemonstratorOnline,
    "gaussian_noise": GaussianNoise,
    "diffusion_noise": DiffusionNoise,
    "confusion_noise": ConfusionNoise,
    "word_dropout": WordDropout,
    "sentence_oracle": SentenceOracle,
    "teaforn": TeacherForcingWithNGrams,
    "raml": RewardAugmented,
    "no_history": NoHistory,
}
