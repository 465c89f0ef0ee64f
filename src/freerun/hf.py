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
    from freerun.integrations.transformers.adapt import adapt
    from freerun.integrations.transformers.callback import Callback
    from freerun.integrations.transformers.trainer import MethodMixin, Seq2SeqTrainer, Trainer

__all__ = ["Callback", "MethodMixin", "Seq2SeqTrainer", "Trainer", "adapt"]

_HOME = "freerun.integrations.transformers"
_HOMES = {
    "adapt": "adapt",
    "Callback": "callback",
    "MethodMixin": "trainer",
    "Seq2SeqTrainer": "trainer",
    "Trainer": "trainer",
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
