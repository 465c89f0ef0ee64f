"""Hugging Face models as Models of freerun; ``freerun.hf.adapt`` makes them."""

from freerun.models.huggingface.cache import CachedDecoding, ChunkedDecoding, RaggedDecoding, keeps_all
from freerun.models.huggingface.causal import CausalModel
from freerun.models.huggingface.encoder_decoder import EncoderDecoder
from freerun.models.huggingface.model import EmbeddingInputs, HuggingFaceModel, SplitHead

__all__ = [
    "CachedDecoding",
    "CausalModel",
    "ChunkedDecoding",
    "EmbeddingInputs",
    "EncoderDecoder",
    "HuggingFaceModel",
    "RaggedDecoding",
    "SplitHead",
    "keeps_all",
]
