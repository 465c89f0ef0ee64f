"""Optimizers, learning rates as pure functions of the step, and averaged weights."""

from __future__ import annotations

import math
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import Module
from torch.optim import Optimizer

from freerun.errors import CheckpointError
from freerun.training.parallelize import OF_METHOD, full_tensor, shard_like
from freerun.training.plan import TrainSettings
from freerun.training.weights import Spec, Specs, misfits, spec_bytes, specs_of, weights_of


def learning_rate(step: int, settings: TrainSettings) -> float:
    """Return the rate of an update (counted from 0): ``lr * (step + 1) / warmup`` first, then the decay.

    With ``p = (step - warmup) / (updates - warmup)``: linear ``lr (1 - p)``, cosine ``lr (1 + cos(pi p)) / 2``;
    inverse_sqrt ``lr sqrt(max(warmup, 1) / (step + 1))``.

    >>> s = TrainSettings(updates=10, lr=1.0, warmup=2, decay="linear")
    >>> [learning_rate(step, s) for step in (0, 1, 2, 6)]
    [0.5, 1.0, 1.0, 0.5]
    """
    if step < settings.warmup:
        return settings.lr * (step + 1) / settings.warmup
    if settings.decay == "inverse_sqrt":
        return settings.lr * math.sqrt(max(settings.warmup, 1) / (step + 1))
    share = (step - settings.warmup) / max(1, settings.updates - settings.warmup)
    if settings.decay == "linear":
        return settings.lr * (1 - share)
    if settings.decay == "cosine":
        return settings.lr * 0.5 * (1 + math.cos(math.pi * share))
    return settings.lr


def make_optimizer(model: Module, settings: TrainSettings) -> Optimizer:
    """Return the optimizer of a model's trainable parameters; biases and gains are not decayed."""
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in trainable if p.dim() >= 2], "weight_decay": settings.weight_decay},
        {"params": [p for p in trainable if p.dim() < 2], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    fused = all(p.device.type in ("cpu", "cuda") for p in trainable)
    if settings.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=settings.lr, momentum=0.9, fused=fused)
    kind = torch.optim.AdamW if settings.optimizer == "adamw" else torch.optim.Adam
    return kind(groups, lr=settings.lr, fused=fused)


def optimizer_tensors(model: Module, optimizer: Optimizer) -> dict[str, Tensor]:
    """Return the optimizer's memory, ``"<parameter>|<name>"`` -> tensor; a call of all ranks if it is sharded."""
    return {
        f"{name}|{key}": full_tensor(torch.as_tensor(value))
        for name, parameter in model.named_parameters()
        for key, value in optimizer.state.get(parameter, {}).items()
        if value is not None
    }


@dataclass(frozen=True)
class Needed:
    """The tensors that a checkpoint of a run holds."""

    weights: Specs
    memory: Specs
    averaged: Specs | None

    @classmethod
    def of(cls, model: Module, settings: TrainSettings) -> Needed:
        """Return what a run of a model with such settings saves, once every weight was updated."""
        trained = specs_of({name: parameter.detach() for name, parameter in _averaged(model)})
        kept = ("momentum_buffer",) if settings.optimizer == "sgd" else ("exp_avg", "exp_avg_sq")
        memory: dict[str, Spec] = {f"{name}|{key}": spec for name, spec in trained.items() for key in kept}
        if settings.optimizer != "sgd":
            memory |= {f"{name}|step": ("F32", ()) for name in trained}
        return cls(specs_of(weights_of(model)), memory, trained if settings.ema else None)

    @property
    def bytes(self) -> int:
        """Of a checkpoint."""
        return spec_bytes(self.weights) + spec_bytes(self.memory) + spec_bytes(self.averaged or {})


def memory_misfits(specs: Specs, own: Specs) -> list[str]:
    """Return where a memory is not that of an optimizer; it may lack weights that were never updated.

    What it holds of a method's parameters is looked at where it is loaded, with the method.
    """
    specs = {name: spec for name, spec in specs.items() if not name.startswith(f"{OF_METHOD}.")}
    known = {name.rpartition("|")[0] for name in specs}
    return misfits(specs, {name: spec for name, spec in own.items() if name.rpartition("|")[0] in known})


def load_optimizer(model: Module, optimizer: Optimizer, tensors: dict[str, Tensor]) -> None:
    """Give an optimizer its memory back."""
    parameters = dict(model.named_parameters())
    if strangers := sorted(name for name in tensors if name.rsplit("|", 1)[0] not in parameters):
        raise CheckpointError(f"the optimizer state is of another model: it has {', '.join(strangers[:5])}")
    for name, tensor in tensors.items():
        parameter_name, key = name.rsplit("|", 1)
        parameter = parameters[parameter_name]
        same = tensor.shape == parameter.shape  # not a count of updates
        optimizer.state[parameter][key] = shard_like(tensor, parameter) if same else tensor.to(parameter.device)


class Ema:
    """An exponential moving average of a model's trainable parameters, kept beside them.

    ``average <- d average + (1 - d) weight`` with ``d = min(decay, (1 + n) / (10 + n))`` at update n, so that
    the first updates are not held back by the initial weights. Buffers are not averaged.

    >>> layer = torch.nn.Linear(1, 1)
    >>> ema = Ema(layer, 0.999)
    >>> _ = layer.weight.data.fill_(5.0); ema.update(layer, 10**6)
    >>> with ema.applied(layer): averaged = layer.weight.item()
    >>> averaged < 5.0, layer.weight.item()
    (True, 5.0)
    """

    def __init__(self, model: Module, decay: float) -> None:
        self.decay = decay
        self.tensors = {name: parameter.detach().clone() for name, parameter in _averaged(model)}

    def full_tensors(self) -> dict[str, Tensor]:
        """Return the average by parameter; a call of all ranks if it is sharded."""
        return {name: full_tensor(tensor) for name, tensor in self.tensors.items()}

    def load(self, tensors: dict[str, Tensor]) -> None:
        """Take an average that ``full_tensors`` returned."""
        if set(tensors) != set(self.tensors):
            raise CheckpointError("the averaged weights are of another model")
        self.tensors = {name: shard_like(tensors[name], tensor) for name, tensor in self.tensors.items()}

    def update(self, model: Module, step: int) -> None:
        """Move the average towards the weights after an update (counted from 0)."""
        decay = min(self.decay, (1 + step) / (10 + step))
        for name, parameter in _averaged(model):
            self.tensors[name].lerp_(parameter.detach(), 1 - decay)

    @contextmanager
    def applied(self, model: Module) -> Generator[None]:
        """Within it the model has the averaged weights."""
        trained = _averaged(model)
        kept = [parameter.detach().clone() for _, parameter in trained]
        for name, parameter in trained:
            parameter.detach().copy_(self.tensors[name])
        try:
            yield
        finally:
            for (_, parameter), weight in zip(trained, kept, strict=True):
                parameter.detach().copy_(weight)


def _averaged(model: Module) -> list[tuple[str, Tensor]]:
    return [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
