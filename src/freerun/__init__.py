"""freerun trains sequence models on the histories they will really see.

>>> import torch, freerun as fr
>>> ids = torch.tensor([[2, 1, 0]])
>>> source = {"source": torch.tensor([[3, 4]]), "source_mask": torch.ones(1, 2, dtype=torch.bool)}
>>> batch = fr.Batch(targets=ids, history=ids, mask=ids >= 0, context=source)
>>> model = fr.models.RecurrentSeq2Seq(source_vocab=5, target_vocab=4, size=8)
>>> loss = fr.scheduled_sampling(fr.schedules.linear(start=1.0, end=0.5, steps=100))(model, batch, step=0, key=0)
>>> loss.backward()
"""

from freerun import draws, gates, models, objectives, schedules
from freerun.draws import DRAWS
from freerun.errors import UserError
from freerun.gates import GATES
from freerun.methods import (
    METHODS,
    PRESETS,
    falling,
    free_running,
    rising,
    scheduled_sampling,
    teacher_forcing,
    token_noise,
)
from freerun.models import MODELS
from freerun.schedules import SCHEDULES
from freerun.types import Batch, Outcome, Step

__version__ = "0.1.0"

__all__ = [
    "DRAWS",
    "GATES",
    "METHODS",
    "MODELS",
    "PRESETS",
    "SCHEDULES",
    "Batch",
    "Outcome",
    "Step",
    "UserError",
    "draws",
    "falling",
    "free_running",
    "gates",
    "models",
    "objectives",
    "rising",
    "scheduled_sampling",
    "schedules",
    "teacher_forcing",
    "token_noise",
]
