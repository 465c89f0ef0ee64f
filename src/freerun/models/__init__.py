"""Models to train: the contract of ``freerun.types`` and nothing else is needed of yours."""

from typing import Any

from freerun.models.article import ArticleForecaster, Seq2SeqModel, UnshiftedSeq2SeqModel
from freerun.models.forecasting import (
    PlainForecaster,
    RecurrentForecaster,
    ShallowPLRNN,
    TransformerForecaster,
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
