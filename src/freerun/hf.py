"""Hugging Face: adapters of models, and trainers with ``method=``; nothing is imported before it is asked for.

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
    from freerun.integrations.hf_trainer import Callback, MethodMixin, Seq2SeqTrainer, Trainer

__all__ = ["Callback", "MethodMixin", "Seq2SeqTrainer", "Trainer", "adapt"]

_HOME = "freerun.integrations"
_HOMES = {
    "adapt": "hf_adapt",
    "Callback": "hf_trainer",
    "MethodMixin": "hf_trainer",
    "Seq2SeqTrainer": "hf_trainer",
    "Trainer": "hf_trainer",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'freerun.hf' has no attribute {name!r}; it has {', '.join(__all__)}")
    with needing("hf", f"freerun.hf.{name}"):
        value = getattr(importlib.import_module(f"{_HOME}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
