"""A model that works in raw units, inside a library that works in normalised ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from freerun.batch import Batch
from freerun.errors import UserError
from freerun.models.forecasting.inputs import check_history
from freerun.types import Stepper


class Rescaled(nn.Module):
    """A model whose inputs and outputs are in raw units: normalisation is undone before anything is fed to it.

    With ``raw = mean + std * y`` it is told ``raw`` history (and the values of a context's ``past``), and what it says
    is normalised again. Losses and everything else stay in normalised units. A Stepper.

    Args:
        model: a Stepper that says one number a value.
        mean: (values,) of the training part.
        std: (values,) of the training part, above 0.

    Context of a batch: the model's; of ``"past"`` the first ``values`` channels are brought to raw units.

    Raises:
        UserError: for a model without the Stepper methods or with a distribution head, or numbers that are no scale.

    What it is not: an Encoder; the model's own context is encoded once for every call.

    >>> from freerun.models.forecasting import ShallowPLRNN
    >>> model = Rescaled(ShallowPLRNN(2), mean=[10.0, 0.0], std=[3.0, 1.0])
    >>> values = torch.randn(3, 5, 2)
    >>> model(Batch(values, values, torch.ones(3, 5, dtype=torch.bool))).shape
    torch.Size([3, 5, 2])
    """

    mean: Tensor
    std: Tensor

    def __init__(self, model: Any, mean: Tensor | Sequence[float], std: Tensor | Sequence[float]) -> None:
        super().__init__()
        mean, std = (torch.as_tensor(part, dtype=torch.get_default_dtype()).flatten() for part in (mean, std))
        if problems := _problems(model, mean, std):
            raise UserError(problems)
        self.model = model
        self.values = mean.numel()
        self.layout: str = getattr(model, "layout", "sequence")
        self.markov: bool = getattr(model, "markov", False)
        self.register_buffer("mean", mean)
        self.register_buffer("std", std)

    def forward(self, batch: Batch) -> Tensor:
        """(batch, time, values), normalised."""
        return self._normal(self.model(self._raw_batch(batch)))

    def start(self, batch: Batch) -> Any:
        """The model's state."""
        return self.model.start(self._raw_batch(batch))

    def embed(self, entries: Tensor) -> Tensor:
        """(..., values) normalised -> the model's inputs."""
        return self.model.embed(self._raw(entries))

    def step(self, state: Any, inputs: Tensor) -> Any:
        """The model's step."""
        return self.model.step(state, inputs)

    def output(self, state: Any, rows: Tensor | None = None) -> Tensor:
        """(rows, values), normalised."""
        return self._normal(self.model.output(state, rows))

    def select(self, state: Any, rows: Tensor) -> Any:
        """The model's state of the rows asked for."""
        return self.model.select(state, rows)

    def detach(self, state: Any) -> Any:
        """The model's state without the gradient into what came before, where the model can tell."""
        if not hasattr(self.model, "detach"):
            raise UserError(
                f"{type(self.model).__name__} has no detach(state): the gradient cannot be cut between steps"
            )
        return self.model.detach(state)

    def _raw(self, values: Tensor) -> Tensor:
        return torch.addcmul(self.mean, values, self.std)

    def _normal(self, values: Tensor) -> Tensor:
        return (values - self.mean) / self.std

    def _raw_batch(self, batch: Batch) -> Batch:
        check_history(batch, self.values, f"{type(self).__name__}({type(self.model).__name__})")
        context = batch.context
        if isinstance(context, Mapping) and "past" in context:
            past = context["past"]
            raw = self._raw(past[..., : self.values])
            context = {**context, "past": torch.cat([raw, past[..., self.values :]], -1)}
        return batch.made(history=self._raw(batch.history), targets=self._raw(batch.targets), context=context)


def _problems(model: Any, mean: Tensor, std: Tensor) -> list[str]:
    problems: list[str] = []
    if not isinstance(model, Stepper):
        problems.append(
            f"Rescaled needs a model with start, embed, step, output and select; {type(model).__name__} lacks some"
        )
    if (head := getattr(model, "head_name", "point")) != "point":
        problems.append(f"Rescaled needs a model that says one number a value; this one has head={head!r}: use 'point'")
    if mean.shape != std.shape:
        problems.append(f"mean and std must be of one length; got {mean.numel()} and {std.numel()}")
    values = getattr(model, "values", mean.numel())
    if mean.numel() != values:
        problems.append(
            f"mean and std must have one number for each of the model's {values} values; got {mean.numel()}"
        )
    if not bool(mean.isfinite().all() & std.isfinite().all() & (std > 0).all()):
        problems.append(f"mean and std must be finite and std above 0; got {mean.tolist()} and {std.tolist()}")
    return problems
