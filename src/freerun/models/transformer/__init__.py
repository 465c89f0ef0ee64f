"""A small Transformer in today's shape, as encoder-decoder and as decoder only, with a cache that can be cropped."""

from freerun.models.transformer.decoder import TransformerLM, TransformerSeq2Seq

__all__ = ["TransformerLM", "TransformerSeq2Seq"]
