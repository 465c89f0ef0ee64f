"""Hugging Face: adapters of models, and trainers with ``method=``; nothing is imported before its first use.

>>> from freerun import hf
>>> "adapt" in dir(hf)
True
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from freerun.errors import needing

if TYPE_CHECKING:
    from freerun.integrations.hf_adapt import adapt
    from freerun.integrations.hf_scores import Callback
    from freerun.integrations.hf_trainer import MethodMixin, Seq2SeqTrainer, Trainer

__all__ = ["Callback", "MethodMixin", "Seq2SeqTrainer", "Trainer", "adapt"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'freerun.hf' has no attribute {name!r}; it has {', '.join(__all__)}")
    with needing("hf", f"freerun.hf.{name}"):
        room = {"adapt": "hf_adapt", "Callback": "hf_scores"}.get(name, "hf_trainer")
        home = importlib.import_module(f"freerun.integrations.{room}")
    return getattr(home, name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
