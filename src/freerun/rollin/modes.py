"""Training and evaluation mode around a roll-in, and autocast's cache."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from typing import Any
from weakref import WeakSet

import torch
from torch import Tensor, nn

from freerun.batch import Batch
from freerun.errors import UserError

__all__ = ["asking", "differs_by_mode", "evaluating", "refuse_coupled_rows", "repeatable", "uncached_autocast"]

_REPEATED: WeakSet[nn.Module] = WeakSet()
"""Models that draw random numbers to no effect."""


@contextmanager
def evaluating(model: Any) -> Generator[None]:
    """Evaluation mode inside, and every submodule's own mode back afterwards.

    Not ``model.train()`` afterwards: a part that was frozen in evaluation mode stays so. Anything that is no
    ``nn.Module`` is left alone.

    >>> model = nn.Sequential(nn.Dropout(), nn.Dropout().eval())
    >>> with evaluating(model):
    ...     model[0].training
    False
    >>> model[0].training, model[1].training
    (True, False)
    """
    if not isinstance(model, nn.Module):
        yield
        return
    training = [module for module in model.modules() if module.training]
    for module in training:
        module.training = False
    try:
        yield
    finally:
        for module in training:
            module.training = True


def differs_by_mode(model: Any) -> bool:
    """Whether the model, in the mode it is in, computes another function than in evaluation mode.

    Known causes are looked for: dropout of any kind, recurrent or attention layers with dropout, batch
    normalisation, and rates that a module keeps as numbers whose name has "drop" in it. A rate that is written into a
    function call cannot be seen.

    >>> differs_by_mode(nn.Dropout(0.1)), differs_by_mode(nn.Dropout(0.1).eval()), differs_by_mode(nn.Dropout(0.0))
    (True, False, False)
    """
    if not isinstance(model, nn.Module):
        return False
    return any(_stochastic(module) for module in model.modules() if module.training)


def _stochastic(module: nn.Module) -> bool:
    if isinstance(module, nn.modules.instancenorm._InstanceNorm):
        return module.track_running_stats
    if isinstance(module, nn.modules.batchnorm._NormBase | nn.RReLU):
        return True
    if isinstance(module, nn.modules.dropout._DropoutNd | nn.AlphaDropout):
        return module.p > 0
    if isinstance(module, nn.RNNBase | nn.MultiheadAttention):
        return module.dropout > 0
    # a rate kept as a number for nn.functional.dropout, or for layers left out at random
    return any("drop" in name and isinstance(rate, float) and rate > 0 for name, rate in vars(module).items())


def refuse_coupled_rows(model: Any) -> None:
    """Refuse a model in which, even in evaluation mode, a row's outputs hang on what else is in the batch.

    Raises:
        UserError: batch normalisation without running statistics, or routing to experts of limited capacity; by name.
    """
    if not isinstance(model, nn.Module):
        return
    for name, module in model.named_modules():
        kind = type(module).__name__
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is None:
            raise UserError(
                f"{name or 'the model'} ({kind}) normalises over the batch in evaluation mode too, so that a row's own "
                "output hangs on the other rows: give it running statistics (track_running_stats=True), or use layer "
                "norm"
            )
        capacity = next((a for a in ("expert_capacity", "capacity_factor") if getattr(module, a, None)), None)
        if capacity is not None:
            raise UserError(
                f"{name or 'the model'} ({kind}) routes to experts of limited capacity ({capacity} = "
                f"{getattr(module, capacity)}), so that a row's own output hangs on the other rows: use routing that "
                "drops no tokens"
            )


@contextmanager
def uncached_autocast(device: torch.device) -> Generator[None]:
    """Autocast as it is around us, without its weight cache.

    A weight cast under ``no_grad`` and kept in autocast's cache would reach the training forward without a
    graph, and the weight would silently get no gradient.
    """
    kind = device.type
    if not torch.is_autocast_enabled(kind):
        yield
        return
    with torch.autocast(kind, dtype=torch.get_autocast_dtype(kind), cache_enabled=False):
        try:
            yield
        finally:
            # a model may bring an autocast of its own (accelerate puts one around forward), which fills the cache again
            torch.clear_autocast_cache()


@contextmanager
def repeatable(model: Any, batch: Batch) -> Generator[None]:
    """Calls of a model for its own entries: all methods make them here.

    Raises:
        UserError: rows hang on each other; or the model is random in evaluation mode, so that its own output is no
            function of key, row and position: it has drawn random numbers, and two calls on one row differ.
    """
    refuse_coupled_rows(model)
    before = _generators(batch.history.device)
    yield
    drawn = any(not torch.equal(a, b) for a, b in zip(before, _generators(batch.history.device), strict=True))
    # dropout that is known explains it, and is off where own entries are asked for
    if drawn and not differs_by_mode(model) and not (isinstance(model, nn.Module) and model in _REPEATED):
        with evaluating(model):
            _refuse_random(model, batch)


@contextmanager
def asking(model: Any, batch: Batch) -> Generator[None]:
    """``repeatable`` calls in evaluation mode, without autocast's cache."""
    with evaluating(model), uncached_autocast(batch.history.device), repeatable(model, batch):
        yield


def _generators(device: torch.device) -> list[Tensor]:
    return [torch.get_rng_state(), *([torch.cuda.get_rng_state(device)] if device.type == "cuda" else [])]


@torch.no_grad()
def _refuse_random(model: Any, batch: Batch) -> None:
    one = batch.select((batch.mask | batch.replaceable).sum(1).argmax()[None])
    where = one.mask | one.replaceable
    first, again = model(one)[where].clone(), model(one)[where]
    finite = first[first.isfinite()].abs()
    scale = float(finite.max()) if finite.numel() else 1.0
    if not torch.allclose(first, again, rtol=1e-3, atol=1e-3 * scale, equal_nan=True):
        raise UserError(
            f"{type(model).__name__} is random in evaluation mode: two calls on one row differ by "
            f"{float((first - again).abs().max()):.2g}, and own entries would not be a function of key, step and row: "
            "draw random numbers only while self.training; freerun.check_model(model, batch) says more"
        )
    if isinstance(model, nn.Module):
        _REPEATED.add(model)
