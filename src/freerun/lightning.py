"""Lightning: ``from freerun import lightning``; loads the library of that name at the first use.

``FreerunModule`` is a complete LightningModule around a model and a method; ``training_step``, ``validation_step`` and
``FreerunCallback`` are for a module of one's own.
"""

import importlib
from typing import TYPE_CHECKING, Any

from freerun.errors import needing

if TYPE_CHECKING:
    from freerun.integrations.lightning import FreerunCallback, FreerunModule, training_step, validation_step

__all__ = ["FreerunCallback", "FreerunModule", "training_step", "validation_step"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'freerun.lightning' has no attribute {name!r}")
    with needing("lightning", f"freerun.lightning.{name}"):
        home = importlib.import_module("freerun.integrations.lightning")
    return getattr(home, name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
