"""A LightningModule around a model and a method."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor
from torch.nn import Module, Parameter
from torch.optim import Optimizer

from freerun.errors import UserError
from freerun.integrations.lightning.callback import FreerunCallback
from freerun.integrations.lightning.steps import training_step, validation_step
from freerun.methods import Method
from freerun.types import Batch

__all__ = ["FreerunModule"]


class FreerunModule(LightningModule):
    """A model trained by a method, in Lightning; it brings its own ``FreerunCallback``.

    Args:
        model: an ``nn.Module`` from Batch to outputs: one of ``freerun.models``, your own, or ``hf.adapt(model)``.
        method: how it is trained.
        optimizer: from parameters to their optimizer; for a learning-rate schedule override
            ``configure_optimizers``.
        to_batch: from what the loader gives to a ``Batch``, on the device; None: the loader gives one.
        seed: of coins and draws; weights, dropout and data order are Lightning's (``seed_everything``).
        draw: how the model is fed its own output in validation, as in ``validation_step``.

    Raises:
        UserError: a model without parameters to register, or one from Hugging Face that is not adapted.

    >>> import freerun as fr
    >>> model = fr.models.RecurrentSeq2Seq(source_vocab=5, target_vocab=4, size=8)
    >>> FreerunModule(model, fr.scheduled_sampling(0.5)).method
    scheduled_sampling(teacher_forcing_ratio=0.5)
    """

    def __init__(
        self,
        model: Module,
        method: Method,
        optimizer: Callable[[Iterable[Parameter]], Optimizer] = torch.optim.AdamW,
        *,
        to_batch: Callable[[Any], Batch] | None = None,
        seed: int = 0,
        draw: Any = "auto",
    ) -> None:
        super().__init__()
        _check(model, method)
        self.model, self.method, self.optimizer = model, method, optimizer
        self.to_batch, self.seed, self.draw = to_batch, seed, draw

    def configure_callbacks(self) -> list[FreerunCallback]:
        """The callback that the steps need."""
        return [FreerunCallback()]

    def configure_optimizers(self) -> Any:
        """The optimizer of all parameters."""
        return self.optimizer(self.parameters())

    def forward(self, batch: Any) -> Tensor:
        """The model's outputs on the history that the batch brings."""
        return self.model(self._batch(batch))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """One micro-batch of the method."""
        return training_step(self, self.model, self._batch(batch), self.method, seed=self.seed)

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Score a batch, told gold and told the model's own output."""
        given = self._batch(batch)
        validation_step(self, self.model, given, self.method, draw=self.draw, loader=dataloader_idx)

    def test_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        """The same on test data."""
        self.validation_step(batch, batch_idx, dataloader_idx)

    def _batch(self, batch: Any) -> Any:
        return batch if self.to_batch is None else self.to_batch(batch)


def _check(model: Any, method: Any) -> None:
    problems: list[str] = []
    if any(kind.__name__ == "PreTrainedModel" for kind in type(model).__mro__):
        problems.append(
            f"model is a {type(model).__name__} as it is: give freerun.hf.adapt(model), which takes a Batch"
        )
    elif not isinstance(model, Module):
        problems.append(
            f"model must be an nn.Module, so that Lightning finds its parameters; got {type(model).__name__}: give one "
            "whose forward takes a Batch"
        )
    if isinstance(method, type) or not isinstance(method, Method):
        said = method.__name__ + " itself" if isinstance(method, type) else repr(method)
        problems.append(f"method must be a method with its arguments, like scheduled_sampling(0.5); got {said}")
    if problems:
        raise UserError(problems)
