"""The section ``[model]`` for forecasters: the arguments of their classes; what the data say is not repeated here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from freerun.arguments import number_field
from freerun.tasks.sections import HuggingFaceSettings


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
    size: int = number_field(256, low=1, high=10**6)
    embedding: int | None = number_field(None, low=1, high=10**6)
    layers: int = number_field(1, low=1, high=256)
    cell: Literal["rnn", "gru", "lstm"] = "lstm"
    attention: Literal["luong"] | None = "luong"
    bidirectional: bool = True
    dropout: float = number_field(0.0, low=0.0, high=0.99)
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
    size: int = number_field(128, low=1, high=10**6)
    layers: int = number_field(4, low=1, high=256)
    heads: int = number_field(4, low=1)
    feed_forward: int | None = number_field(None, low=1, high=10**6)
    positions: Literal["rope", "learned"] = "rope"
    activation: Literal["swiglu", "gelu", "relu"] = "swiglu"
    norm: Literal["rms", "layer"] = "rms"
    bias: bool = False
    dropout: float = number_field(0.0, low=0.0, high=0.99)
    tied: bool = True
    longest: int = number_field(1024, low=1)

    def __str__(self) -> str:
        return f"{self.kind}, {self.layers} layers, {self.heads} heads, size {self.size}"


@dataclass(frozen=True)
class TransformerLMSettings(TransformerSettings):
    """Transformer decoder alone, ``freerun.models.TransformerLM``: it goes on with a text.

    Args: those of ``TransformerSettings``; ``layers`` are the decoder's.
    """

    trial: ClassVar[tuple[int, ...]] = (3,)
    kind: Literal["transformer_lm"] = "transformer_lm"  # pyright: ignore[reportIncompatibleVariableOverride]


@dataclass(frozen=True)
class RecurrentForecasterSettings:
    """Recurrent encoder-decoder for values, ``freerun.models.RecurrentForecaster``.

    Args:
        size: width of the states.
        layers: of the encoder and of the decoder.
        cell: "rnn", "gru" or "lstm".
        residual: whether the model says the change since the value it was told.
        head: "point": a value; "gaussian", "student_t" or "quantiles": a distribution, trained by its own loss and fed
            back as its mean, where the method does not say otherwise.
        dropout: share of units dropped between layers and before the head, in training.
        fed_back: channels that are read back, counted from 0; the others are said only (left out: all).
    """

    trial: ClassVar[tuple[int, ...]] = (3, 0, 0)
    kind: Literal["recurrent_forecaster"] = "recurrent_forecaster"
    size: int = number_field(64, low=1, high=10**6)
    layers: int = number_field(1, low=1, high=256)
    cell: Literal["rnn", "gru", "lstm"] = "gru"
    residual: bool = False
    head: Head = "point"
    dropout: float = number_field(0.0, low=0.0, high=0.99)
    fed_back: tuple[int, ...] | None = number_field(None, low=0)

    def __str__(self) -> str:
        head = "" if self.head == "point" else f", {self.head} head"
        return f"{self.kind}, {self.cell}, size {self.size}{head}"


@dataclass(frozen=True)
class PlainForecasterSettings(RecurrentForecasterSettings):
    """One recurrent net over past and horizon, ``freerun.models.PlainForecaster``.

    Args: those of ``RecurrentForecasterSettings``.
    """

    kind: Literal["plain_forecaster"] = "plain_forecaster"  # pyright: ignore[reportIncompatibleVariableOverride]


@dataclass(frozen=True)
class ArticleSettings:
    """The article's encoder-decoder on series, ``freerun.models.ArticleForecaster``.

    Args:
        size: width of both networks.
    """

    trial: ClassVar[tuple[int, ...]] = (3, 0, 0)
    kind: Literal["article"] = "article"
    size: int = number_field(20, low=1, high=10**6)

    def __str__(self) -> str:
        return f"the article's Seq2SeqModel, size {self.size}"


@dataclass(frozen=True)
class TransformerForecasterSettings:
    """Causal Transformer for values, ``freerun.models.TransformerForecaster``.

    Args:
        size: width of every layer.
        layers: number of them.
        heads: of the attention; they share ``size`` evenly.
        feed_forward: width inside the feed-forward blocks (None: the model's own choice for the activation).
        residual: whether the model says the change since the value it was told.
        head: "point", "gaussian", "student_t" or "quantiles".
        dropout: share of units dropped, in training.
        longest: positions there are.
    """

    trial: ClassVar[tuple[int, ...]] = (3, 0, 0)
    kind: Literal["transformer_forecaster"] = "transformer_forecaster"
    size: int = number_field(64, low=1, high=10**6)
    layers: int = number_field(2, low=1, high=256)
    heads: int = number_field(4, low=1)
    feed_forward: int | None = number_field(None, low=1, high=10**6)
    residual: bool = False
    head: Head = "point"
    dropout: float = number_field(0.0, low=0.0, high=0.99)
    longest: int = number_field(1024, low=1)

    def __str__(self) -> str:
        return f"{self.kind}, {self.layers} layers, {self.heads} heads, size {self.size}"


@dataclass(frozen=True)
class ShallowPLRNNSettings:
    """Shallow piecewise linear recurrent net, ``freerun.models.ShallowPLRNN``.

    Args:
        size: units of the hidden layer.
    """

    trial: ClassVar[tuple[int, ...]] = (3, 0, 0)
    kind: Literal["shallow_plrnn"] = "shallow_plrnn"
    size: int = number_field(50, low=1, high=10**6)

    def __str__(self) -> str:
        return f"shallow_plrnn, size {self.size}"


ModelSettings = (
    RecurrentSettings
    | TransformerSettings
    | TransformerLMSettings
    | RecurrentForecasterSettings
    | PlainForecasterSettings
    | TransformerForecasterSettings
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
    "shallow_plrnn": ShallowPLRNNSettings,
    "article": ArticleSettings,
    "huggingface": HuggingFaceSettings,
}


Head = Literal["point", "gaussian", "student_t", "quantiles"]
