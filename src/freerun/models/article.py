"""The article's Seq2SeqModel: an RNN encoder's last hidden state into an RNN decoder, real values, MSE."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from freerun.batch import Batch
from freerun.errors import UserError
from freerun.models.forecasting.inputs import covariates_of, past_of, size_problems


class UnshiftedSeq2SeqModel(nn.Module):
    """``nn.RNN`` encoder, its final hidden state into an ``nn.RNN`` decoder, ``nn.Linear``: as the article writes it.

    The decoder reads the *unshifted* history, so under teacher forcing it reads the very value it must predict.
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

    def inputs(self, history: Tensor) -> Tensor:
        """(time, batch, value): what the decoder reads at each position."""
        return history

    def forward(self, batch: Batch) -> Tensor:
        """(batch, time, output_size) values."""
        self._check(batch)
        _, hidden = self.encoder(self._source(batch).transpose(0, 1))  # time first, as nn.RNN reads
        output, _ = self.decoder(self.inputs(batch.history.transpose(0, 1)), hidden)
        return self.fc(output).transpose(0, 1)

    def _source(self, batch: Batch) -> Tensor:
        source, width = batch.context, self.encoder.input_size
        expected = f"(batch, source_time, {width})"
        if not isinstance(source, Tensor):
            raise UserError(f"{type(self).__name__} needs Batch.context = {expected}; got {type(source).__name__}")
        if source.dim() != 3 or source.shape[0] != batch.size or source.shape[2] != width or source.shape[1] == 0:
            raise UserError(f"{type(self).__name__} needs Batch.context = {expected}; got {tuple(source.shape)}")
        return source

    def _check(self, batch: Batch) -> None:
        if batch.is_discrete:
            raise UserError(f"{type(self).__name__} is for real values (batch, time, value); this batch holds ids")
        fed, width = batch.history.shape[-1], self.fc.out_features
        if fed != width:
            raise UserError(
                f"{type(self).__name__} predicts {width} values a position, and the batch's history has {fed}: make it "
                f"with output_size={fed}"
            )


class Seq2SeqModel(UnshiftedSeq2SeqModel):
    """The article's model with the shift: position t reads ``history[:, t-1]``, position 0 zeros. A Stepper.

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

    def inputs(self, history: Tensor) -> Tensor:
        """(time, batch, value): the entry before, zeros first."""
        return torch.cat([torch.zeros_like(history[:1]), history[:-1]])

    def start(self, batch: Batch) -> Any:
        """The decoder's state (1, batch, hidden) once it has read the zeros that stand before position 0."""
        self._check(batch)
        _, hidden = self.encoder(self._source(batch).transpose(0, 1))
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
        """The state of the requested rows."""
        return state[:, rows]

    def detach(self, state: Any) -> Any:
        """The same state without the gradient into what came before."""
        return state.detach()


class ArticleForecaster(Seq2SeqModel):
    """The article's model on series: the source is the past of a window, which the encoder reads; a Stepper.

    ``Seq2SeqModel(values + observed, size, values)``, weight for weight; only where the source lies in the batch is
    another.

    Args:
        values: channels that are predicted and fed back.
        covariates: must be 0: the article's decoder reads its own output and nothing else.
        observed: channels known in the past only.
        size: width of both networks.

    Context of a batch: ``{"past": (batch, past_time, values + observed)}``.

    Raises:
        UserError: covariates, or sizes out of range; for a context that does not fit.

    >>> values = torch.randn(3, 5, 10)
    >>> batch = Batch(values, values, torch.ones(3, 5, dtype=torch.bool), context={"past": torch.randn(3, 5, 10)})
    >>> ArticleForecaster(10)(batch).shape
    torch.Size([3, 5, 10])
    """

    layout: ClassVar[str] = "past"

    def __init__(self, values: int, covariates: int = 0, observed: int = 0, *, size: int = 20) -> None:
        settings = {"values": values, "covariates": covariates, "observed": observed, "size": size}
        problems = size_problems(settings, self.layout)
        if covariates:
            problems.append(
                f"the article's decoder reads its own output and nothing else; got {covariates} covariates: leave them "
                "out, or use RecurrentForecaster"
            )
        if problems:
            raise UserError(problems)
        super().__init__(values + observed, size, values)
        self.values = values
        self._settings = settings

    def settings(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return dict(self._settings)

    def forward(self, batch: Batch) -> Tensor:
        """(batch, time, values)."""
        self._check(batch)
        return super().forward(batch.made(context=self._past(batch)))

    def start(self, batch: Batch) -> Any:
        """The decoder's state once it has read the zeros that stand before position 0."""
        self._check(batch)
        return super().start(batch.made(context=self._past(batch)))

    def _past(self, batch: Batch) -> Tensor:
        name = type(self).__name__
        covariates_of(batch.context, batch, 0, name)
        return past_of(batch.context, batch, (self.values, self._settings["observed"], 0), name)
