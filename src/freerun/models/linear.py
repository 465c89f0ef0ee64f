"""The layer before the vocabulary: as its class defines it, and faster where few rows meet many weights."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.modules import module as hooks

_MANY = 2_000_000
"""Weights of so many numbers are what a product of few rows waits for."""
_MOST = 64
"""Rows, from 2 on, for which the product with the rows as columns is the faster one."""


def as_written(module: nn.Module) -> bool:
    """Whether a call of a module is its class's forward: no hook, no exchanged method, not compiled."""
    watched = hooks._global_forward_hooks or hooks._global_forward_pre_hooks
    own = module._forward_hooks or module._forward_pre_hooks or module._compiled_call_impl is not None
    return not (watched or own or "forward" in vars(module))


def logits(layer: nn.Module, hidden: Tensor) -> Tensor:
    """``layer(hidden)``, (..., size) -> (..., vocab); without gradient on a processor few rows go as columns.

    ``(W h^T + b)^T`` is ``h W^T + b`` in another order of work: many weights are then read in half to four fifths of
    the time (2 to 32 rows, one thread; ``benchmarks/few_rows.py``).
    """
    if (
        torch.is_grad_enabled()
        or type(layer) is not nn.Linear
        or type(layer.weight) is not nn.Parameter  # of a quantized or sharded one only its own products are known
        or hidden.dim() != 2
        or not 2 <= len(hidden) <= _MOST
        or layer.weight.numel() < _MANY
        or not hidden.is_cpu
        or not hidden.dtype == layer.weight.dtype in (torch.float32, torch.float64)
        or torch.is_autocast_enabled("cpu")
        or not as_written(layer)
    ):
        return layer(hidden)
    bias = layer._parameters["bias"]
    if bias is None:
        return torch.mm(layer.weight, hidden.t()).t().contiguous()
    return torch.addmm(bias[:, None], layer.weight, hidden.t()).t().contiguous()
