"""Models to train: the contract of ``freerun.types`` and nothing else is needed of yours."""

from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from freerun.models.article import ArticleForecaster, Seq2SeqModel, UnshiftedSeq2SeqModel
from freerun.models.forecasting import (
    PlainForecaster,
    RecurrentForecaster,
    ShallowPLRNN,
    TransformerForecaster,
    WindowScaled,
)
from freerun.models.labeller import RecurrentLabeller
from freerun.models.recurrent import RecurrentSeq2Seq
from freerun.models.step_model import StepModel
from freerun.models.transformer import TransformerLM, TransformerSeq2Seq
from freerun.models.wrappers import OneStepMap, RecurrentDecoder, TransformerDecoderModel

__all__ = [
    "MODELS",
    "ArticleForecaster",
    "OneStepMap",
    "PlainForecaster",
    "RecurrentDecoder",
    "RecurrentForecaster",
    "RecurrentLabeller",
    "RecurrentSeq2Seq",
    "Seq2SeqModel",
    "ShallowPLRNN",
    "StepModel",
    "TransformerDecoderModel",
    "TransformerForecaster",
    "TransformerLM",
    "TransformerSeq2Seq",
    "UnshiftedSeq2SeqModel",
    "WindowScaled",
]

MODELS: dict[str, type[Any]] = {
    "recurrent": RecurrentSeq2Seq,
    "transformer": TransformerSeq2Seq,
    "transformer_lm": TransformerLM,
    "recurrent_labeller": RecurrentLabeller,
    "article": ArticleForecaster,
    "recurrent_forecaster": RecurrentForecaster,
    "plain_forecaster": PlainForecaster,
    "transformer_forecaster": TransformerForecaster,
    "shallow_plrnn": ShallowPLRNN,
}


SCALED = ("recurrent_forecaster", "plain_forecaster", "transformer_forecaster")
"""Kinds that take ``centre``, ``deviation`` and ``linear``, see ``WindowScaled``."""


def make_model(
    kind: str, *sizes: int, centre: Any = "none", deviation: Any = False, linear: Any = False, **settings: Any
) -> Any:
    """Return a model of a kind from the arguments that its ``settings()`` returned.

    >>> make_model("recurrent_forecaster", 2, size=4, centre="mean").settings()["centre"]
    'mean'
    """
    model = MODELS[kind](*sizes, **settings)
    if centre == "none" and not deviation and not linear:
        return model
    own: dict[str, Any] = model.settings()
    scaling: dict[str, Any] = {"centre": centre, "deviation": deviation, "linear": linear}
    return WindowScaled(model, own["values"], own["observed"], **scaling, head=own["head"])


class _Unfilled(TorchFunctionMode):
    """No initial values: on the meta device PyTorch would load its compiler for them, which takes a second.

    It does for what Transformers compute of their positions, all the same.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "__module__", None) == "torch.nn.init" or func is torch.Tensor.normal_:
            return args[0] if args else kwargs["tensor"]
        return (torch.empty if func in (torch.rand, torch.randn) else func)(*args, **kwargs or {})


@contextmanager
def without_weights() -> Generator[None]:
    """Models that are made inside have shapes, and no numbers that take memory.

    >>> with without_weights():
    ...     model = make_model("transformer_lm", 5, size=8, heads=2)
    >>> model.start_vector.is_meta
    True
    """
    with torch.device("meta"), _Unfilled():
        yield


def kind_of(model: Any) -> str | None:
    """Return the kind of a model, None of one that is not in ``MODELS``."""
    cls = type(model.inner if isinstance(model, WindowScaled) else model)
    return next((name for name, listed in MODELS.items() if listed is cls), None)
