"""Models that come with freerun; yours need only map a Batch to outputs."""

from typing import Any

from freerun.models.article import Seq2SeqModel, UnshiftedSeq2SeqModel
from freerun.models.recurrent import RecurrentSeq2Seq

__all__ = ["MODELS", "RecurrentSeq2Seq", "Seq2SeqModel", "UnshiftedSeq2SeqModel"]

MODELS: dict[str, type[Any]] = {"recurrent": RecurrentSeq2Seq}
