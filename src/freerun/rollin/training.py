"""The training forward: its encoding shared with the roll-in, its vocabulary only at the positions that count."""

from __future__ import annotations

from functools import lru_cache, partial
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn.modules import module as of_torch

from freerun.batch import Batch
from freerun.objectives import OBJECTIVES
from freerun.rollin.model import (
    checked,
    differs_by_mode,
    eval_mode,
    forward,
    generators,
    needs_sync,
    refuse_detached,
    supports,
)
from freerun.types import Counted, Encoder, Split

_EQUAL: WeakKeyDictionary[Any, bool] = WeakKeyDictionary()
"""Models of other people, and whether ``head(hidden(batch))`` was their forward when it was tried."""


_WORTH = 2**14
"""Logits that are left out, from which on it pays to look whether the model can: they cost more than the look."""


_OBJECTIVES = frozenset(OBJECTIVES.values())
"""Sums over the positions that count; a subclass may be anything else."""


def encodings(model: Any, batch: Batch) -> tuple[Batch, Batch]:
    """The batch with its context encoded, for a roll-in and for the training forward.

    They are one where the encoder is the same function in evaluation mode: it drew no random number, and nothing keeps
    statistics of a batch. Else the roll-in, which is that of the model without dropout, encodes for itself, and the
    training forward has the encoding made here, which is drawn before anything else as in a call of the model.
    """
    if not supports(model, Encoder):
        return batch, batch
    if not differs_by_mode(model):
        encoded = model.encode(batch)
        return encoded, encoded
    before = generators(batch.history.device)
    encoded = model.encode(batch)
    drawn = any(not torch.equal(a, b) for a, b in zip(before, generators(batch.history.device), strict=True))
    return batch if drawn or differs_by_mode(model, random=False) else encoded, encoded


def counted_forward(model: Any, batch: Batch, objective: Any) -> Tensor | Counted:
    """``forward(model, batch)``, of which only the positions in ``batch.mask`` are computed where the model can.

    It can if it is its own forward in two halves (``freerun.types.Split``): in no wrapper (DDP, ``torch.compile``) and
    not sharded, as both see a forward alone, with no hook that would see fewer positions, and no forward of a
    subclass. A Hugging Face model is called once, in whatever DDP or PEFT put around it, and its head is handed the
    positions that count. Others compute all outputs, as does a batch that leaves out too few logits to be worth it,
    and for an objective that is not the library's own, by name or class, which may look at all of them.
    """
    model_at: Any = getattr(type(model), "forward_at", None)
    left_out = batch.mask.numel() - int(batch.mask.sum())
    own = isinstance(objective, str) or type(objective) in _OBJECTIVES
    if left_out * (1 + batch.largest) < _WORTH or not own or not supports(model, Split):
        return forward(model, batch)
    watched, before = _walked(model)
    if model_at is None and (watched or not _is_plain(model) or not _trusted(model, batch)):
        return forward(model, batch)
    index = batch.mask.flatten().nonzero().squeeze(1)
    if model_at is not None:
        found = model_at(model, batch, index)
        if found is None:
            return forward(model, batch)
        outputs, hidden = found
    else:
        hidden = model.hidden(batch).flatten(0, 1)
        outputs = model.head(hidden.index_select(0, index))
    shape = (batch.size, batch.time)
    head = partial(_later, model.head, _autocast(batch.history.device))
    counted = Counted(outputs, index, hidden, head, shape, lambda: _walked(model)[1] != before)
    checked(*counted.alone(batch))
    if not outputs.requires_grad:
        refuse_detached(model)
    return counted


def with_hidden(model: Any, batch: Batch) -> tuple[Tensor, Tensor | None]:
    """All outputs, and the hidden vectors (batch, time, size) they are made of; None where the model has no halves."""
    model_at: Any = getattr(type(model), "forward_at", None)
    if model_at is not None and supports(model, Split):
        found = model_at(model, batch, torch.arange(batch.mask.numel(), device=batch.mask.device))
        if found is not None:
            outputs, hidden = (each.unflatten(0, (batch.size, batch.time)) for each in found)
            return checked(outputs, batch), hidden
    elif supports(model, Split) and _is_plain(model) and not _walked(model)[0] and _trusted(model, batch):
        hidden = model.hidden(batch)
        return checked(model.head(hidden), batch), hidden
    return forward(model, batch), None


def _is_plain(model: Any) -> bool:
    """Whether nothing but the two halves happens in a call of the model."""
    if not _forward_is_older(type(model)) or needs_sync(model):
        return False
    if not isinstance(model, nn.Module):
        return True
    return not ("forward" in vars(model) or "_orig_mod" in model._modules or of_torch._has_any_global_hook())


@lru_cache
def _forward_is_older(kind: type[Any]) -> bool:
    """Whether no subclass has put another forward around the halves."""
    line = kind.__mro__
    names = ("forward" if issubclass(kind, nn.Module) else "__call__", "hidden")
    whole, half = (next((n for n, each in enumerate(line) if name in vars(each)), None) for name in names)
    return whole is not None and half is not None and half <= whole


def _trusted(model: Any, batch: Batch) -> bool:
    """Whether the halves are the forward: known of our own models, tried once on one row of any other."""
    if type(model).__module__.startswith("freerun."):
        return True
    try:
        if model not in _EQUAL:
            _EQUAL[model] = _halves_equal(model, batch)
        return _EQUAL[model]
    except TypeError:  # what cannot be hashed or referred to weakly is not remembered
        return False


@torch.no_grad()
def _halves_equal(model: Any, batch: Batch) -> bool:
    one = batch.select(batch.mask.sum(1).argmax()[None])
    devices = [batch.history.device] if batch.history.device.type == "cuda" else []
    with eval_mode(model), torch.random.fork_rng(devices):
        whole = forward(model, one)[one.mask]
        try:
            parts = model.head(model.hidden(one)[one.mask])
        except (RuntimeError, TypeError, ValueError, IndexError):  # a head that wants (batch, time, size)
            return False
    if not isinstance(parts, Tensor) or parts.shape != whole.shape:
        return False
    spread = float((whole - whole.mean(-1, keepdim=True)).abs().max())
    return bool(torch.isclose(parts, whole, rtol=0, atol=1e3 * torch.finfo(whole.dtype).eps * spread).all())


def _walked(model: Any) -> tuple[bool, int]:
    """Whether a call of a part goes through hooks or is compiled; a number that rises where weights change in place."""
    if not isinstance(model, nn.Module):
        return False, 0
    watched, version, seen, left = False, 0, {id(model)}, [model]
    while left:  # three times as fast as modules() and parameters()
        module: Any = left.pop()
        watched |= bool(module._forward_hooks or module._forward_pre_hooks) or module._compiled_call_impl is not None
        for weight in module._parameters.values():
            version += 0 if weight is None or weight.is_inference() else weight._version
        for part in module._modules.values():
            if part is not None and id(part) not in seen:
                seen.add(id(part))
                left.append(part)
    return watched, version


def _autocast(device: torch.device) -> Any:
    kind = device.type
    if not torch.is_autocast_enabled(kind):
        return None
    return kind, torch.get_autocast_dtype(kind)


def _later(head: Any, autocast: Any, hidden: Tensor) -> Tensor:
    """A head in the autocast of the forward that it belongs to."""
    kind, dtype = autocast or (hidden.device.type, None)
    with torch.autocast(kind, dtype=dtype, enabled=autocast is not None):
        return head(hidden)
