"""The section ``[model]`` for forecasters: the arguments of their classes; what the data say is not repeated here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from freerun.config.ranged import number

__all__ = [
    "ArticleSettings", "ConvGRUSettings", "PlainForecasterSettings", "RecurrentForecasterSettings",
    "ShallowPLRNNSettings", "TransformerForecasterSettings",
]  # fmt: skip

Head = Literal["point", "gaussian", "student_t", "quantiles"]


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
    size: int = number(64, low=1, high=10**6)
    layers: int = number(1, low=1, high=256)
    cell: Literal["rnn", "gru", "lstm"] = "gru"
    residual: bool = False
    head: Head = "point"
    dropout: float = number(0.0, low=0.0, high=0.99)
    fed_back: tuple[int, ...] | None = number(None, low=0)

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
    size: int = number(20, low=1, high=10**6)

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
    size: int = number(64, low=1, high=10**6)
    layers: int = number(2, low=1, high=256)
    heads: int = number(4, low=1)
    feed_forward: int | None = number(None, low=1, high=10**6)
    residual: bool = False
    head: Head = "point"
    dropout: float = number(0.0, low=0.0, high=0.99)
    longest: int = number(1024, low=1)

    def __str__(self) -> str:
        return f"{self.kind}, {self.layers} layers, {self.heads} heads, size {self.size}"


@dataclass(frozen=True)
class ConvGRUSettings:
    """Convolutional GRU for frames, ``freerun.models.ConvGRUForecaster``.

    Args:
        height: of a frame, in points (None: square frames).
        width: of a frame, in points (None: square frames).
        frame_channels: of a frame.
        channels: of the states.
        kernel: width of the convolutions, odd.
        layers: number of them.
        bounded: whether what it says lies between 0 and 1.
    """

    kind: Literal["conv_gru"] = "conv_gru"
    height: int | None = number(None, low=1, high=10**6)
    width: int | None = number(None, low=1, high=10**6)
    frame_channels: int = number(1, low=1, high=10**6)
    channels: int = number(16, low=1, high=10**6)
    kernel: int = number(5, low=1, high=999)
    layers: int = number(1, low=1, high=256)
    bounded: bool = False

    @property
    def trial(self) -> tuple[int, ...]:
        """A small frame's numbers."""
        height = self.height or self.width or 4
        return self.frame_channels * height * (self.width or height), 0, 0

    def __str__(self) -> str:
        return f"conv_gru, {self.channels} channels"


@dataclass(frozen=True)
class ShallowPLRNNSettings:
    """Shallow piecewise linear recurrent net, ``freerun.models.ShallowPLRNN``.

    Args:
        size: units of the hidden layer.
    """

    trial: ClassVar[tuple[int, ...]] = (3, 0, 0)
    kind: Literal["shallow_plrnn"] = "shallow_plrnn"
    size: int = number(50, low=1, high=10**6)

    def __str__(self) -> str:
        return f"shallow_plrnn, size {self.size}"
