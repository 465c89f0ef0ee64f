"""Hugging Face models as Models of freerun; ``freerun.hf.adapt`` makes them."""

from freerun.models.huggingface.causal import CausalModel
from freerun.models.huggingface.encoder_decoder import EncoderDecoder
from freerun.models.huggingface.model import HuggingFaceModel
from freerun.models.huggingface.ragged import Ragged
from freerun.models.huggingface.stepping import Reading, Stepping, keeps_all
from freerun.models.huggingface.tail import Halves
from freerun.models.huggingface.vectors import Vectors

__all__ = [
    "CausalModel",
    "EncoderDecoder",
    "Halves",
    "HuggingFaceModel",
    "Ragged",
    "Reading",
    "Stepping",
    "Vectors",
    "keeps_all",
]
