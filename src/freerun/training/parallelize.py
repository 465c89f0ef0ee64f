"""The run of a method as a module, and PyTorch's wrappers around it: gradients of many processes as of one."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DataParallel, DistributedDataParallel

from freerun.batch import Batch
from freerun.errors import UserError
from freerun.methods.controls import own_errors
from freerun.rollin.model import is_sharded
from freerun.tasks.base import Method
from freerun.training.processes import ALONE, Processes

OF_METHOD = "method"
"""Before the names of a method's parameters."""


class MethodRun(nn.Module):
    """A method on a model as one forward, for wrappers that need to see the full step.

    Inside it the model is itself, with all its methods, however many calls a roll-in takes; outside there is one
    forward and one backward. So what ``DistributedDataParallel`` and ``fully_shard`` do happens once, and no roll-in
    can leave a process waiting for another.

    Args:
        model: the model as it is, in no wrapper.
        method: how it is trained.
        record: also report the own errors that were fed, for ``freerun.methods.ErrorLaw``.
        owned: the modules of the method, for wrappers to see.

    What it is not: a model. Of the outcome only the numbers come out, as wrappers look for everything with a graph in
    what a forward returns.

    >>> import freerun as fr
    >>> model = fr.models.TransformerLM(5, size=8, heads=2, max_positions=8)
    >>> ids = torch.tensor([[3, 1, 4]])
    >>> total, count, report = MethodRun(model, fr.teacher_forcing())(fr.Batch(ids, ids, ids > 0), step=0, key=0)
    >>> total.requires_grad, int(count), report["replaced"]
    (True, 3, 0)
    """

    def __init__(self, model: nn.Module, method: Method, record: bool = False, owned: nn.Module | None = None) -> None:
        super().__init__()
        self.record = record
        self.owned = owned
        self.model = model
        self.method = method

    def forward(self, batch: Batch, step: int, key: int) -> tuple[Tensor, Tensor, dict[str, Any]]:
        """Return the outcome's total, to go backward from, its count and its report."""
        outcome = self.method.run(self.model, batch, step, key)
        total: Any = outcome.total
        if is_sharded(self):
            total = _Reaching.apply(total, *(weight for weight in self.parameters() if weight.requires_grad))
        errors = {"errors": own_errors(batch, outcome.fed.history)} if self.record else {}
        return total, outcome.count, {**outcome.report, **errors}


class _Reaching(torch.autograd.Function):
    """Connect the loss to all parameters, with a gradient of 0 where it does not use them."""

    @staticmethod
    def forward(ctx: Any, total: Tensor, *weights: Tensor) -> Tensor:
        ctx.weights = weights
        return total.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        return (gradients[0], *(torch.zeros_like(weight) for weight in ctx.weights))


class Trained(nn.Module):
    """The parameters of a model under their own names, and those of its method's modules as ``method.<name>``."""

    def __init__(self, model: nn.Module, owned: nn.Module) -> None:
        super().__init__()
        self.model, self.owned = model, owned

    def named_parameters(self, *_: Any, **__: Any) -> Iterator[tuple[str, nn.Parameter]]:
        """Return names and parameters, the model's first."""
        yield from self.model.named_parameters()
        yield from self.owned.named_parameters(prefix=OF_METHOD)


class ParallelRun:
    """A ``MethodRun`` in one of PyTorch's wrappers, or in none where there is one process."""

    def __init__(
        self,
        model: nn.Module,
        method: Method,
        processes: Processes = ALONE,
        parallel: str = "ddp",
        *,
        record: bool = False,
        owned: nn.Module | None = None,
    ) -> None:
        self.method, self.processes = method, processes
        self.trained = model if owned is None else Trained(model, owned)
        self.sharded = parallel == "fsdp" and processes.size > 1
        if self.sharded and owned is not None:
            raise UserError(
                f"{method.name} trains modules of its own, which train.parallel = 'fsdp' would shard: set it to 'ddp'"
            )
        self._run: Any = MethodRun(model, method, record, owned)
        device = next(model.parameters()).device
        if processes.size > 1 and not any(p.requires_grad for p in model.parameters()):
            raise UserError("no parameter of the model can be trained (requires_grad is False for all)")
        if self.sharded:
            from torch.distributed.device_mesh import init_device_mesh
            from torch.distributed.fsdp import fully_shard

            # where there is a GPU, a model on the processor would else be moved to it
            fully_shard(self._run, mesh=init_device_mesh(device.type, (processes.size,)))
        elif processes.size > 1:
            # looking for unused parameters lets a method leave some out, as a single process may; where there is always
            # one, it is not warned that there is none
            self._run.never_used = nn.Parameter(torch.zeros((), device=device))
            self._run = DistributedDataParallel(self._run, find_unused_parameters=True)

    def __call__(self, batch: Batch, step: int, key: int) -> tuple[Tensor, Tensor, dict[str, Any]]:
        """As ``MethodRun``'s forward."""
        return self._run(batch, step, key)

    @contextmanager
    def last(self, is_last: bool) -> Generator[None]:
        """Around forward and backward of a micro-batch: gradients are exchanged after the last one of an update."""
        if self.sharded:
            self._run.set_requires_gradient_sync(is_last)
            self._run.set_reshard_after_backward(is_last)
            yield
        elif is_last or not hasattr(self._run, "no_sync"):
            yield
        else:
            with self._run.no_sync():
                yield

    def drop_unused(self) -> None:
        """Take the gradient from weights that no process used, which are to stay as they are."""
        if not self.sharded:
            return
        weights: list[Any] = [weight for weight in self._run.parameters() if weight.grad is not None]
        used = torch.stack([weight.grad.to_local().any() for weight in weights]).int().cpu()
        with self.processes.together():
            dist.all_reduce(used, dist.ReduceOp.MAX, group=self.processes.group)
        for weight, is_used in zip(weights, used.tolist(), strict=True):
            if not is_used:
                weight.grad = None

    @contextmanager
    def gathered(self) -> Generator[None]:
        """Inside every process has the full parameters, and using the model calls no other process."""
        self.gather()
        try:
            yield
        finally:
            if self.sharded:
                self._run.reshard()

    def gather(self) -> None:
        """Gather the full parameters in every process, until they are trained again."""
        if self.sharded:
            self._run.unshard()


def refuse_wrapped(model: nn.Module) -> None:
    """Refuse a model that is wrapped for several processes already: the loop wraps the run of the method itself."""
    wrapper = any(isinstance(module, DistributedDataParallel | DataParallel) for module in model.modules())
    if wrapper or is_sharded(model):
        raise UserError(
            f"the model ({type(model).__name__}) is wrapped for several processes already: give it as it is; "
            "train.parallel = 'ddp' or 'fsdp' sets how the loop wraps it"
        )


def full_tensor(tensor: Tensor) -> Tensor:
    """Return a sharded tensor as a full one (a call of all ranks), any other as it is."""
    sharded: Any = tensor
    return sharded.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def shard_like(tensor: Tensor, own: Tensor) -> Tensor:
    """Return a full tensor that every process has, on the device of ``own``, and sharded as that one is."""
    sharded: Any = own
    if not hasattr(own, "placements"):
        return tensor.to(own.device)
    from torch.distributed.tensor import distribute_tensor

    # no process sends its values: all have the same
    return distribute_tensor(tensor.to(own.device), sharded.device_mesh, sharded.placements, src_data_rank=None)
