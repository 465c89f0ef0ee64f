"""Models in PyTorch's wrappers, and calls that all processes must make together.

Without gradient a model in ``DistributedDataParallel`` or ``torch.compile`` is used as what is inside; with one it is
called as given. A model whose parameters are sharded (``fully_shard``) is called as a whole only, by all processes
equally often: each call gathers its parameters from all of them.
"""

from __future__ import annotations

import sys
from typing import Any, TypeGuard, TypeVar

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DataParallel, DistributedDataParallel

from freerun.errors import UserError

__all__ = ["can", "has", "hint", "most", "refuse_sharded", "sharded", "some", "unwrapped", "waits"]

P = TypeVar("P")


def unwrapped(model: Any) -> Any:
    """What is inside ``DistributedDataParallel``, ``DataParallel`` and ``torch.compile``, in whatever order.

    >>> net = nn.Linear(1, 1)
    >>> unwrapped(DataParallel(net)) is net, unwrapped(net) is net
    (True, True)
    """
    while True:
        if isinstance(model, DistributedDataParallel | DataParallel):
            model = model.module
        elif isinstance(model, nn.Module) and "_orig_mod" in model._modules:
            model = model._orig_mod
        else:
            return model


def sharded(model: Any) -> bool:
    """Whether parameters of the model, or of a part of it, are sharded by ``fully_shard``."""
    fsdp = sys.modules.get("torch.distributed.fsdp")
    # who shards has loaded it, and has started processes
    if fsdp is None or not isinstance(model, nn.Module) or not (dist.is_available() and dist.is_initialized()):
        return False
    return any(isinstance(module, fsdp.FSDPModule) for module in model.modules())


def waits(model: Any) -> bool:
    """Whether a forward waits for those of other processes: sharded parameters, or buffers that DDP sends.

    Without gradient a model that holds another in DDP goes round it, or it could not be rolled in.
    """
    if not isinstance(model, nn.Module) or not (dist.is_available() and dist.is_initialized()):
        return False
    if sharded(model):
        return True
    return (torch.is_grad_enabled() or isinstance(model, DistributedDataParallel)) and any(
        isinstance(module, DistributedDataParallel) and module.broadcast_buffers and any(True for _ in module.buffers())
        for module in model.modules()
    )


_MODULES = ("head", "embed", "lookup")  # methods that take a tensor, and may be a layer


def has(model: Any, protocol: type[P]) -> TypeGuard[P]:
    """Whether a model has the methods of a protocol; a width or a layer of that name (``hidden``, ``read``) is none.

    >>> from freerun.types import Split
    >>> net = nn.Module()
    >>> net.hidden, net.head = 64, nn.Linear(64, 3)
    >>> has(net, Split)
    False
    """
    if not isinstance(model, protocol):
        return False
    names = {name for each in protocol.__mro__ for name in vars(each) if not name.startswith("_")}
    found = {name: getattr(model, name) for name in names}
    return all(callable(part) and (name in _MODULES or not isinstance(part, nn.Module)) for name, part in found.items())


def can(model: Any, protocol: type[P]) -> TypeGuard[P]:
    """Whether a model has the methods of a protocol, and they may be called one by one."""
    return has(model, protocol) and not sharded(model)


def some(model: Any, here: bool) -> bool:
    """Whether it is so in any process that the model waits for; for other models, whether it is so here.

    All processes must ask.
    """
    return bool(most(model, int(here)))


def most(model: Any, here: int) -> int:
    """The largest number in the processes that the model waits for; for other models, the one here.

    All processes must ask.
    """
    if not waits(model) or dist.get_world_size() == 1:
        return here
    found = torch.tensor(here, device=next(model.parameters()).device)
    dist.all_reduce(found, dist.ReduceOp.MAX)
    return int(found)


def hint(model: Any, protocol: type[Any]) -> str:
    """What to do about a wrapper that hides methods, to be added to a message; "" where none does.

    >>> hint(nn.Linear(1, 1), nn.Module)
    ''
    """
    if sharded(model):
        return (
            "; its parameters are sharded, and calling its parts one by one would see pieces of them: shard the run of "
            "the method instead, fully_shard(freerun.training.MethodRun(model, method)), or train with freerun.training"
        )
    if unwrapped(model) is not model and isinstance(unwrapped(model), protocol):
        return (
            f"; the model inside has them, but calling them would go round {type(model).__name__} and gradients would "
            "not be exchanged: wrap the run of the method instead, "
            f"{type(model).__name__}(freerun.training.MethodRun(model, method)), or train with freerun.training"
        )
    return ""


def refuse_sharded(model: Any, what: str, instead: str) -> None:
    """Refuse what calls a model's parts, or calls it a number of times that hangs on the data, where it is sharded.

    Raises:
        UserError: with what to do instead.
    """
    if sharded(model):
        raise UserError(f"{what}, and the parameters of {type(model).__name__} are sharded (fully_shard): {instead}")
