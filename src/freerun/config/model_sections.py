"""The section ``[model]``: for each kind of model a frozen dataclass of the arguments of its class.

``trial`` are sizes that a model is made with to see whether its arguments go together, before there are data.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from freerun.config.forecaster_sections import (
    ArticleSettings,
    ConvGRUSettings,
    PlainForecasterSettings,
    RecurrentForecasterSettings,
    ShallowPLRNNSettings,
    TransformerForecasterSettings,
)
from freerun.config.huggingface_sections import HuggingFaceSettings
from freerun.config.ranged import number

__all__ = ["MODEL_KINDS", "ModelSettings", "RecurrentSettings", "TransformerLMSettings", "TransformerSettings"]


@dataclass(frozen=True)
class RecurrentSettings:
    """Recurrent encoder-decoder, ``freerun.models.RecurrentSeq2Seq``.

    Args:
        size: width of the states.
        embedding: width of the embeddings (None: as ``size``).
        layers: of the encoder and of the decoder.
        cell: "rnn", "gru" or "lstm".
        attention: "luong", or "none".
        bidirectional: whether the encoder reads both ways.
        dropout: share of units dropped between layers, in training.
        tied: whether the output layer shares the target embedding.
    """

    trial: ClassVar[tuple[int, ...]] = (3, 3)
    kind: Literal["recurrent"] = "recurrent"
    size: int = number(256, low=1, high=10**6)
    embedding: int | None = number(None, low=1, high=10**6)
    layers: int = number(1, low=1, high=256)
    cell: Literal["rnn", "gru", "lstm"] = "lstm"
    attention: Literal["luong"] | None = "luong"
    bidirectional: bool = True
    dropout: float = number(0.0, low=0.0, high=0.99)
    tied: bool = False

    def __str__(self) -> str:
        return f"recurrent, {self.cell}, size {self.size}"


@dataclass(frozen=True)
class TransformerSettings:
    """Transformer encoder-decoder, ``freerun.models.TransformerSeq2Seq``.

    Args:
        size: width of every layer.
        layers: of the encoder and of the decoder.
        heads: of the attention; they share ``size`` evenly.
        feed_forward: width inside the feed-forward blocks (None: the model's own choice for the activation).
        positions: "rope", turned into the attention, or "learned" vectors that are added.
        activation: "swiglu", "gelu" or "relu".
        norm: "rms" or "layer", before each block.
        bias: whether linear layers have one.
        dropout: share of units dropped, in training.
        tied: whether the output layer shares the target embedding.
        longest: positions there are.
    """

    trial: ClassVar[tuple[int, ...]] = (3, 3)
    kind: Literal["transformer"] = "transformer"
    size: int = number(128, low=1, high=10**6)
    layers: int = number(4, low=1, high=256)
    heads: int = number(4, low=1)
    feed_forward: int | None = number(None, low=1, high=10**6)
    positions: Literal["rope", "learned"] = "rope"
    activation: Literal["swiglu", "gelu", "relu"] = "swiglu"
    norm: Literal["rms", "layer"] = "rms"
    bias: bool = False
    dropout: float = number(0.0, low=0.0, high=0.99)
    tied: bool = True
    longest: int = number(1024, low=1)

    def __str__(self) -> str:
        return f"{self.kind}, {self.layers} layers, {self.heads} heads, size {self.size}"


@dataclass(frozen=True)
class TransformerLMSettings(TransformerSettings):
    """Transformer decoder alone, ``freerun.models.TransformerLM``: it goes on with a text.

    Args: those of ``TransformerSettings``; ``layers`` are the decoder's.
    """

    trial: ClassVar[tuple[int, ...]] = (3,)
    kind: Literal["transformer_lm"] = "transformer_lm"  # pyright: ignore[reportIncompatibleVariableOverride]


ModelSettings = (
    RecurrentSettings
    | TransformerSettings
    | TransformerLMSettings
    | RecurrentForecasterSettings
    | PlainForecasterSettings
    | TransformerForecasterSettings
    | ConvGRUSettings
    | ShallowPLRNNSettings
    | ArticleSettings
    | HuggingFaceSettings
)
MODEL_KINDS: dict[str, type[Any]] = {
    "recurrent": RecurrentSettings,
    "transformer": TransformerSettings,
    "transformer_lm": TransformerLMSettings,
    "recurrent_forecaster": RecurrentForecasterSettings,
    "plain_forecaster": PlainForecasterSettings,
    "transformer_forecaster": TransformerForecasterSettings,
    "conv_gru": ConvGRUSettings,
    "shallow_plrnn": ShallowPLRNNSettings,
    "article": ArticleSettings,
    "huggingface": HuggingFaceSettings,
}
