"""Models to train: the contract of ``freerun.types`` and nothing else is needed of yours."""

from typing import Any

from freerun.models.article import Seq2SeqModel, UnshiftedSeq2SeqModel
from freerun.models.recurrent import RecurrentSeq2Seq
from freerun.models.transformer import TransformerLM, TransformerSeq2Seq

__all__ = [
    "MODELS",
    "RecurrentSeq2Seq",
    "Seq2SeqModel",
    "TransformerLM",
    "TransformerSeq2Seq",
    "UnshiftedSeq2SeqModel",
]

MODELS: dict[str, type[Any]] = {
    "recurrent": RecurrentSeq2Seq,
    "transformer": TransformerSeq2Seq,
    "transformer_lm": TransformerLM,
}
