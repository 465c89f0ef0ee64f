"""freerun inside Lightning: a module, a callback, and the two steps for a module of one's own."""

from freerun.integrations.lightning.callback import FreerunCallback
from freerun.integrations.lightning.module import FreerunModule
from freerun.integrations.lightning.steps import training_step, validation_step

__all__ = ["FreerunCallback", "FreerunModule", "training_step", "validation_step"]
