"""freerun trains sequence models on the histories they will really see.

>>> import torch, freerun as fr
>>> ids = torch.tensor([[2, 1, 0]])
>>> source = {"source": torch.tensor([[3, 4]]), "source_mask": torch.ones(1, 2, dtype=torch.bool)}
>>> batch = fr.Batch(targets=ids, history=ids, mask=ids >= 0, context=source)
>>> model = fr.models.RecurrentSeq2Seq(source_vocab=5, target_vocab=4, size=8)
>>> loss = fr.scheduled_sampling(fr.schedules.linear(start=1.0, end=0.5, steps=100))(model, batch, step=0, key=0)
>>> loss.backward()
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from freerun import (
        distributions,
        draws,
        gates,
        hf,
        keys,
        lightning,
        methods,
        metrics,
        models,
        objectives,
        schedules,
        transforms,
    )
    from freerun.batch import Batch
    from freerun.checks import check_model
    from freerun.draws import DRAWS
    from freerun.errors import UserError
    from freerun.gates import GATES
    from freerun.generation import Generated, generate
    from freerun.methods import (
        METHODS,
        PRESETS,
        confidence_aware,
        data_as_demonstrator,
        data_as_demonstrator_online,
        falling,
        free_running,
        gaussian_noise,
        generalised_teacher_forcing,
        multi_step,
        parallel,
        pushforward,
        reverse_scheduled_sampling,
        rising,
        scheduled_sampling,
        sparse_teacher_forcing,
        teacher_forcing,
        token_noise,
        two_pass,
    )
    from freerun.models import MODELS
    from freerun.rollin import ENGINES, Draft, Window
    from freerun.schedules import SCHEDULES
    from freerun.types import Outcome, Step

__version__ = "0.1.0"

# module -> the names that are read from it when they are first used, so that `freerun --help` needs no torch
_NAMES = {
    "checks": "check_model",
    "draws": "DRAWS",
    "errors": "UserError",
    "gates": "GATES",
    "generation": "Generated generate",
    "methods": "METHODS PRESETS confidence_aware data_as_demonstrator data_as_demonstrator_online falling free_running "
    "gaussian_noise generalised_teacher_forcing multi_step parallel pushforward reverse_scheduled_sampling "
    "rising scheduled_sampling sparse_teacher_forcing teacher_forcing token_noise two_pass",
    "models": "MODELS",
    "schedules": "SCHEDULES",
    "rollin": "Draft ENGINES Window",
    "types": "Batch Outcome Step",
}
_HOMES = {name: f"freerun.{module}" for module, names in _NAMES.items() for name in names.split()}

__all__ = [
    "DRAWS",
    "ENGINES",
    "GATES",
    "METHODS",
    "MODELS",
    "PRESETS",
    "SCHEDULES",
    "Batch",
    "Draft",
    "Generated",
    "Outcome",
    "Step",
    "UserError",
    "Window",
    "check_model",
    "confidence_aware",
    "data_as_demonstrator",
    "data_as_demonstrator_online",
    "distributions",
    "draws",
    "falling",
    "free_running",
    "gates",
    "gaussian_noise",
    "generalised_teacher_forcing",
    "generate",
    "hf",
    "keys",
    "lightning",
    "methods",
    "metrics",
    "models",
    "multi_step",
    "objectives",
    "parallel",
    "pushforward",
    "reverse_scheduled_sampling",
    "rising",
    "scheduled_sampling",
    "schedules",
    "sparse_teacher_forcing",
    "teacher_forcing",
    "token_noise",
    "transforms",
    "two_pass",
]

_MODULES = frozenset(__all__) - _HOMES.keys()


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return importlib.import_module(f"freerun.{name}")
    if name in _HOMES:
        value = getattr(importlib.import_module(_HOMES[name]), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module 'freerun' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
