"""Hugging Face models as Models of freerun; ``freerun.hf.adapt`` makes them."""

from freerun.models.huggingface.cache import (
    CachedDecoding,
    ChunkedDecoding,
    RaggedDecoding,
    is_local,
    keeps_all,
    masks_by_distance,
)
from freerun.models.huggingface.causal import CausalModel, MediaEncoding
from freerun.models.huggingface.encoder_decoder import EncoderDecoder, SourceEncoding
from freerun.models.huggingface.heads import SplitHead, WholeHead, answer
from freerun.models.huggingface.media import placeholder_ids
from freerun.models.huggingface.model import (
    EmbeddingInputs,
    HuggingFaceModel,
    ends_with_its_length,
    table_of,
)

__all__ = [
    "CachedDecoding",
    "CausalModel",
    "ChunkedDecoding",
    "EmbeddingInputs",
    "EncoderDecoder",
    "HuggingFaceModel",
    "MediaEncoding",
    "RaggedDecoding",
    "SourceEncoding",
    "SplitHead",
    "WholeHead",
    "answer",
    "ends_with_its_length",
    "is_local",
    "keeps_all",
    "masks_by_distance",
    "placeholder_ids",
    "table_of",
]
