"""The article's Seq2SeqModel: an RNN encoder's last hidden state into an RNN decoder, real values, MSE."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from freerun.types import Batch

__all__ = ["Seq2SeqModel", "UnshiftedSeq2SeqModel"]


class UnshiftedSeq2SeqModel(nn.Module):
    """``nn.RNN`` encoder, its final hidden state into an ``nn.RNN`` decoder, ``nn.Linear``: as the article writes it.

    The decoder is given the *unshifted* history, so under teacher forcing it is told the very value it must predict.
    It is here to be compared with; ``freerun.check_model`` refuses it, and ``Seq2SeqModel`` is the honest one.

    Args:
        input_size: width of a source value.
        hidden_size: width of both networks.
        output_size: width of a target value, which is also what the decoder is fed.

    Context of a batch: the source, (batch, source_time, input_size).

    >>> values = torch.randn(3, 5, 10)
    >>> batch = Batch(values, values, torch.ones(3, 5, dtype=torch.bool), context=torch.randn(3, 5, 10))
    >>> UnshiftedSeq2SeqModel(10, 20, 10)(batch).shape
    torch.Size([3, 5, 10])
    """

    def __init__(self, input_size: int, hidden_size: int, output_size: int) -> None:
        super().__init__()
        # in the article's order, so that one seed gives its very weights
        self.encoder = nn.RNN(input_size, hidden_size)
        self.decoder = nn.RNN(output_size, hidden_size)
        self.fc = nn.Linear(hidden_size, output_size)

    def told(self, history: Tensor) -> Tensor:
        """(time, batch, value): what the decoder reads at each position."""
        return history

    def forward(self, batch: Batch) -> Tensor:
        """(batch, time, output_size) values."""
        _, hidden = self.encoder(batch.context.transpose(0, 1))  # time first, as nn.RNN reads
        output, _ = self.decoder(self.told(batch.history.transpose(0, 1)), hidden)
        return self.fc(output).transpose(0, 1)


class Seq2SeqModel(UnshiftedSeq2SeqModel):
    """The article's model with the shift: position t is told ``history[:, t-1]``, position 0 zeros. A Stepper.

    Args:
        input_size: width of a source value.
        hidden_size: width of both networks.
        output_size: width of a target value, which is also what the decoder is fed.

    Context of a batch: the source, (batch, source_time, input_size).

    >>> model = Seq2SeqModel(10, 20, 10)
    >>> values = torch.randn(3, 5, 10)
    >>> model(Batch(values, values, torch.ones(3, 5, dtype=torch.bool), context=torch.randn(3, 5, 10))).shape
    torch.Size([3, 5, 10])
    """

    def told(self, history: Tensor) -> Tensor:
        """(time, batch, value): the entry before, zeros first."""
        return torch.cat([torch.zeros_like(history[:1]), history[:-1]])

    def start(self, batch: Batch) -> Any:
        """The decoder's state (1, batch, hidden) once it has read the zeros that stand before position 0."""
        _, hidden = self.encoder(batch.context.transpose(0, 1))
        return self.step(hidden, batch.history.new_zeros(batch.size, self.decoder.input_size))

    def embed(self, entries: Tensor) -> Tensor:
        """Values are read as they are."""
        return entries

    def step(self, state: Any, inputs: Tensor) -> Any:
        """The state after one more value (batch, output_size)."""
        return self.decoder(inputs[None], state)[1]

    def output(self, state: Any, rows: Tensor | None = None) -> Tensor:
        """(rows, output_size) prediction."""
        hidden = state[0]
        return self.fc(hidden if rows is None else hidden[rows])

    def select(self, state: Any, rows: Tensor) -> Any:
        """The state of the rows asked for."""
        return state[:, rows]
