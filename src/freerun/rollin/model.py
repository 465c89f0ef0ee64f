"""One call of a model: its output is checked, and errors that its input causes are named."""

from __future__ import annotations

import re
import sys
import warnings
from collections.abc import Generator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any, TypeGuard, TypeVar
from weakref import WeakKeyDictionary, WeakSet

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DataParallel, DistributedDataParallel

from freerun.arguments import nearest, refused
from freerun.batch import Batch
from freerun.errors import UserError

_REPEATED: WeakSet[nn.Module] = WeakSet()
"""Models that draw random numbers to no effect."""


def _parts(model: nn.Module) -> list[nn.Module]:
    """``model.modules()`` at a quarter of its time, in another order: three walks a step are made."""
    found, seen = [model], {id(model)}
    for module in found:
        for part in module._modules.values():
            if part is not None and id(part) not in seen:
                seen.add(id(part))
                found.append(part)
    return found


@contextmanager
def eval_mode(model: Any) -> Generator[None]:
    """Evaluation mode inside, and every submodule's own mode back afterwards.

    Not ``model.train()`` afterwards: a part that was frozen in evaluation mode stays so. Anything that is no
    ``nn.Module`` is left alone. Under autocast each weight is cast once inside: see ``own_casts``.

    >>> model = nn.Sequential(nn.Dropout(), nn.Dropout().eval())
    >>> with eval_mode(model):
    ...     model[0].training
    False
    >>> model[0].training, model[1].training
    (True, False)
    """
    training = [module for module in _parts(model) if module.training] if isinstance(model, nn.Module) else []
    for module in training:
        if type(module).__setattr__ is nn.Module.__setattr__:  # past its search for parameters, which takes most time
            module.__dict__["training"] = False
        else:
            module.training = False
    try:
        with own_casts():
            yield
    finally:
        for module in training:
            if type(module).__setattr__ is nn.Module.__setattr__:
                module.__dict__["training"] = True
            else:
                module.training = True


def differs_by_mode(model: Any, *, random: bool = True) -> bool:
    """Whether the model, in the mode it is in, computes another function than in evaluation mode.

    Known causes are looked for: dropout of any kind, recurrent or attention layers with dropout, batch
    normalisation, and rates that a module keeps as numbers whose name has "drop" in it. A rate that is written into a
    function call cannot be seen. ``random=False`` looks for statistics of a batch alone.

    >>> differs_by_mode(nn.Dropout(0.1)), differs_by_mode(nn.Dropout(0.1).eval()), differs_by_mode(nn.Dropout(0.0))
    (True, False, False)
    """
    if not isinstance(model, nn.Module):
        return False
    for module in _parts(model):
        if not module.training:
            continue
        if isinstance(module, nn.modules.instancenorm._InstanceNorm):
            differs = module.track_running_stats
        elif isinstance(module, nn.modules.batchnorm._NormBase):
            differs = True
        elif not random:
            differs = False
        elif isinstance(module, nn.RReLU):
            differs = True
        elif isinstance(module, nn.modules.dropout._DropoutNd | nn.AlphaDropout):
            differs = module.p > 0
        elif isinstance(module, nn.RNNBase | nn.MultiheadAttention):
            differs = module.dropout > 0
        else:  # a rate kept as a number for nn.functional.dropout, or for layers left out at random
            kept = () if _IS_TORCHS(type(module)) else module.__dict__.items()
            differs = any("drop" in name and isinstance(rate, float) and rate > 0 for name, rate in kept)
        if differs:
            return True
    return False


_CAPACITIES = ("expert_capacity", "capacity_factor")
_IS_TORCHS = lru_cache(lambda kind: kind.__module__.startswith("torch.nn.modules."))
_MAY_HAVE = lru_cache(lambda kind: any(hasattr(kind, name) for name in _CAPACITIES))
"""Whether a class of modules names a capacity."""


def refuse_coupled_rows(model: Any) -> None:
    """Refuse a model in which, even in evaluation mode, a row's outputs depend on what else is in the call.

    Raises:
        UserError: batch normalisation without running statistics, or routing to experts of limited capacity; by name.
    """
    # no attribute is looked up that a module may not have, which is slow
    if not isinstance(model, nn.Module) or not any(
        isinstance(module, nn.modules.batchnorm._BatchNorm) or _MAY_HAVE(type(module))
        or any(name in module.__dict__ or name in module._buffers or name in module._parameters for name in _CAPACITIES)
        for module in _parts(model)
    ):  # fmt: skip
        return
    for name, module in model.named_modules():
        kind = type(module).__name__
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is None:
            raise UserError(
                f"{name or 'the model'} ({kind}) normalises over the batch in evaluation mode too, so that a row's own "
                "output depends on the other rows: give it running statistics (track_running_stats=True), or use layer "
                "norm"
            )
        capacity = next((a for a in _CAPACITIES if getattr(module, a, None)), None)
        if capacity is not None:
            raise UserError(
                f"{name or 'the model'} ({kind}) routes to experts of limited capacity ({capacity} = "
                f"{getattr(module, capacity)}), so that an output depends on what else is in the call (other rows, or "
                "more of the sequence than a cached step reads): use routing that drops no tokens"
            )


@contextmanager
def own_casts() -> Generator[None]:
    """Autocast as it is around us, of whatever device, with a weight cache that is empty at both ends.

    Each weight is cast once inside, as it is now, and none of these casts is met outside: one that was made under
    ``no_grad`` would reach the training forward without a graph, and its weight would silently get no gradient. A model
    may bring an autocast of its own, of one type for each weight, as under any autocast around it.
    """
    torch.clear_autocast_cache()
    # the end of the outermost autocast clears the cache, and a model may bring one to every call
    torch.autocast_increment_nesting()
    try:
        yield
    finally:
        torch.autocast_decrement_nesting()
        torch.clear_autocast_cache()


@contextmanager
def repeatable(model: Any, batch: Batch) -> Generator[None]:
    """Calls of a model for its own entries: all methods make them here.

    Raises:
        UserError: rows depend on each other; or the model is random in evaluation mode, so that its own output is no
            function of key, row and position: it has drawn random numbers, and two calls on one row differ.
    """
    refuse_coupled_rows(model)
    before = generators(batch.history.device)
    yield
    drawn = any(not torch.equal(a, b) for a, b in zip(before, generators(batch.history.device), strict=True))
    # dropout that is known explains it, and is off where own entries are computed
    if drawn and not differs_by_mode(model) and not (isinstance(model, nn.Module) and model in _REPEATED):
        with eval_mode(model):
            _refuse_random(model, batch)


@contextmanager
def asking(model: Any, batch: Batch) -> Generator[None]:
    """``repeatable`` calls in evaluation mode."""
    with eval_mode(model), repeatable(model, batch):
        yield


def generators(device: torch.device) -> list[Tensor]:
    """The states of PyTorch's generators."""
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
            "draw random numbers only while self.training; see freerun.check_model(model, batch)"
        )
    if isinstance(model, nn.Module):
        _REPEATED.add(model)


P = TypeVar("P")


def unwrap(model: Any) -> Any:
    """What is inside ``DistributedDataParallel``, ``DataParallel`` and ``torch.compile``, in whatever order.

    >>> net = nn.Linear(1, 1)
    >>> unwrap(DataParallel(net)) is net, unwrap(net) is net
    (True, True)
    """
    while True:
        if isinstance(model, DistributedDataParallel | DataParallel):
            model = model.module
        elif isinstance(model, nn.Module) and "_orig_mod" in model._modules:
            model = model._orig_mod
        else:
            return model


def is_sharded(model: Any) -> bool:
    """Whether parameters of the model, or of a part of it, are sharded by ``fully_shard``."""
    fsdp = sys.modules.get("torch.distributed.fsdp")
    # who shards has loaded it, and has started processes
    if fsdp is None or not isinstance(model, nn.Module) or not (dist.is_available() and dist.is_initialized()):
        return False
    return any(isinstance(module, fsdp.FSDPModule) for module in model.modules())


def needs_sync(model: Any) -> bool:
    """Whether a forward waits for those of other processes: sharded parameters, or buffers that DDP sends.

    Without gradient a model that holds another in DDP goes round it, or it could not be rolled in.
    """
    if not isinstance(model, nn.Module) or not (dist.is_available() and dist.is_initialized()):
        return False
    if is_sharded(model):
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
    if hasattr(type(model), "stepper"):
        return False
    found = ((name, getattr(model, name, None)) for name in _methods(protocol))
    return all(callable(part) and (name in _MODULES or not isinstance(part, nn.Module)) for name, part in found)


@lru_cache
def _methods(protocol: type[Any]) -> frozenset[str]:
    # isinstance lists them anew at every call, which takes a tenth of a millisecond a step
    return frozenset(name for each in protocol.__mro__ for name in vars(each) if not name.startswith("_"))


def stepping(model: Any) -> Any:
    """The model by single steps: itself, or the ``stepper`` of a loop whose parts may be called one by one."""
    return model.stepper if hasattr(type(model), "stepper") and not is_sharded(model) else model


def supports(model: Any, protocol: type[P]) -> TypeGuard[P]:
    """Whether a model has the methods of a protocol, and they may be called one by one."""
    return has(model, protocol) and not is_sharded(model)


def any_rank(model: Any, here: bool) -> bool:
    """True if the flag is set on any rank; local for models that need no synchronisation.

    All ranks must call it.
    """
    return bool(max_over_ranks(model, int(here)))


def max_over_ranks(model: Any, here: int) -> int:
    """The largest number in the processes that the model waits for; for other models, the one here.

    All ranks must call it.
    """
    if not needs_sync(model) or dist.get_world_size() == 1:
        return here
    found = torch.tensor(here, device=next(model.parameters()).device)
    dist.all_reduce(found, dist.ReduceOp.MAX)
    return int(found)


def wrapper_hint(model: Any, protocol: type[Any]) -> str:
    """What to do about a wrapper that hides methods, to be added to a message; "" where none does.

    >>> wrapper_hint(nn.Linear(1, 1), nn.Module)
    ''
    """
    if is_sharded(model):
        return (
            "; its parameters are sharded, and calling its parts one by one would see pieces of them: shard the run of "
            "the method instead, fully_shard(freerun.training.MethodRun(model, method)), or train with freerun.training"
        )
    if unwrap(model) is not model and isinstance(unwrap(model), protocol):
        return (
            f"; the model inside has them, but calling them would go round {type(model).__name__} and gradients would "
            "not be exchanged: wrap the run of the method instead, "
            f"{type(model).__name__}(freerun.training.MethodRun(model, method)), or train with freerun.training"
        )
    return ""


def lacks(engine: str, model: Any, methods: str) -> str:
    """The message where a model has not the methods that an engine needs."""
    return (
        f"engine={engine!r} needs a model with {methods}; {type(model).__name__} lacks some: use engine='auto', or "
        "'jacobi' (exact parallel passes, for any forward)"
    )


def refuse_sharded(model: Any, what: str, instead: str) -> None:
    """Refuse what calls a model's parts, or calls it a number of times that depends on the data, where it is sharded.

    Raises:
        UserError: with what to do instead.
    """
    if is_sharded(model):
        raise UserError(f"{what}, and the parameters of {type(model).__name__} are sharded (fully_shard): {instead}")


_WARNED: WeakKeyDictionary[type, set[str]] = WeakKeyDictionary()
"""Classes of models, since a comparison makes many of one, with the remedies that warnings named."""


def _warn_once(model: Any, text: str, remedy: str) -> None:
    inner = unwrap(model)
    if isinstance(inner, nn.Module) and remedy not in _WARNED.setdefault(type(inner), set()):
        _WARNED[type(inner)].add(remedy)
        warnings.warn(f"{text} {remedy}", stacklevel=3)


def warn_price(model: Any, times: int, remedy: str) -> None:
    """Warn once that a step of a model with only a forward costs more than three times teacher forcing."""
    name = type(unwrap(model)).__name__
    if times > 3:
        _warn_once(model, f"{name} has only a forward: this step costs about {times} times teacher forcing.", remedy)


def warn_wrapped(wrapper: Any) -> None:
    """Warn once that a loop in a wrapper is gone through twice a step: rolled in, then trained through the wrapper."""
    inner = unwrap(wrapper)
    if inner is wrapper or not hasattr(type(inner), "stepper"):
        return
    kind, instead = "torch.compile", "model.step = torch.compile(model.step)"
    if "_orig_mod" not in wrapper._modules:
        kind = type(wrapper).__name__
        instead = f"{kind}(freerun.training.MethodRun(model, method))"
    _warn_once(
        wrapper,
        f"{type(inner).__name__} is in {kind}: its history is rolled in by a loop of its own, in evaluation mode, and "
        "training is a second loop.",
        f"For one loop, which is both: {instead}",
    )


def call_problems(model: Any, batch: Any, call: str = "method(model, batch, step=step)") -> list[str]:
    """What is wrong with a model and a batch as arguments, before anything is called."""
    if isinstance(batch, Batch) and callable(model) and not isinstance(model, type):
        return []
    if isinstance(model, Batch):
        return [f"model and batch are swapped: the model comes first, {call}"]
    problems: list[str] = []
    if isinstance(model, type):
        problems.append(f"model is the class {model.__name__}: give an object of it, {model.__name__}(...)")
    elif not callable(model):
        problems.append(
            f"model must be callable, from a Batch to (batch, time, ...) outputs; got {type(model).__name__}"
        )
    if not isinstance(batch, Batch):
        name = type(batch).__name__
        problems.append(
            f"batch must be a freerun.Batch; got {name}: make one, freerun.Batch(targets=..., mask=..., context=...)"
        )
    return problems


def forward(model: Any, batch: Batch) -> Tensor:
    """``model(batch)``, if it is (batch, time, n) real numbers, with an output for every id of the targets.

    Only shapes and types are read, which costs a microsecond and waits for no device.

    Raises:
        UserError: anything else, by name.
    """
    outputs = checked(model(batch), batch)
    if not outputs.requires_grad:
        refuse_detached(model)
    return outputs


def refuse_detached(model: Any) -> None:
    """Refuse outputs without a gradient of a training forward that something is to be learned from."""
    if torch.is_grad_enabled() and _learns(model):
        raise UserError(
            f"the outputs of {type(model).__name__} carry no gradient, and it has weights to learn: look for detach, "
            "numpy, argmax or no_grad in its forward; or, where nothing is to be learned, call under torch.no_grad()"
        )


def _learns(model: Any) -> bool:
    return isinstance(model, nn.Module) and any(weight.requires_grad for weight in model.parameters())


def checked(outputs: Any, batch: Batch) -> Tensor:
    """Outputs for a batch, or a UserError that names what a model must return."""
    if (
        not isinstance(outputs, Tensor)
        or not outputs.is_floating_point()
        or outputs.dim() != 3
        or outputs.shape[:2] != batch.targets.shape[:2]
        or outputs.shape[2] <= max(0, batch.largest)
    ):
        problem = _problem(outputs, batch)
        if problem:
            raise UserError(problem)
    return outputs


def checked_rows(outputs: Any, rows: int) -> Tensor:
    """What a Stepper's ``output`` or a Split's ``head`` returns for so many rows, or a UserError."""
    if isinstance(outputs, Tensor) and outputs.is_floating_point() and outputs.dim() == 2 and len(outputs) == rows:
        return outputs
    kind = f"{tuple(outputs.shape)} {outputs.dtype}" if isinstance(outputs, Tensor) else type(outputs).__name__
    raise UserError(
        f"output(state, rows) and head(hidden) must return floating-point outputs ({rows}, vocabulary or numbers) for "
        f"{rows} rows; got {kind}"
    )


def _problem(outputs: Any, batch: Batch) -> str | None:
    shape = f"({batch.size}, {batch.time}, {'vocabulary' if batch.is_discrete else 'numbers'})"
    rule = f"a model must return one floating-point tensor {shape}"
    if not isinstance(outputs, Tensor):
        kind = type(outputs).__name__
        if hasattr(outputs, "logits") or (isinstance(outputs, dict) and "logits" in outputs):
            return (
                f"{rule}; got {kind} with logits: return its .logits, or adapt a Hugging Face model: freerun.hf.adapt"
            )
        if isinstance(outputs, tuple | list):
            return f"{rule}; got a {kind} of {len(outputs)}: return only the outputs, without states"
        hint = ": does forward end with return?" if outputs is None else ""
        return f"{rule}; got {kind}{hint}"
    if not outputs.is_floating_point():
        return f"{rule}; got {outputs.dtype}: return logits or values, not ids"
    got = tuple(outputs.shape)
    if len(got) != 3 or got[:2] != (batch.size, batch.time):
        turned = ": time and batch are swapped, so return it with .transpose(0, 1)"
        one_less = ": one position more or less; shift the history inside the model, and keep its length"
        if got[:2] == (batch.time, batch.size) and len(got) == 3:
            hint = turned
        else:
            hint = one_less if len(got) == 3 and abs(got[1] - batch.time) == 1 else ", batch first"
        return f"{rule}; got {got}{hint}"
    if got[2] == 0:
        return f"{rule}; got {got}: there is no output in it"
    counted = batch.targets[batch.mask]
    if batch.is_discrete and counted.numel() and int(counted.max()) >= got[2]:
        return (
            f"the model gives {got[2]} outputs a position, for the ids 0 to {got[2] - 1}, and the targets hold the id "
            f"{int(counted.max())} where they count: make the vocabulary larger, or mask it"
        )
    return None


@contextmanager
def explained_errors(model: Any) -> Generator[None]:
    """Errors inside that come of how the model reads a batch, as a UserError; others go through."""
    try:
        yield
    except UserError:
        raise
    except (AttributeError, IndexError, RuntimeError, TypeError, ValueError) as error:
        if problem := _explained(error, model):
            raise UserError(problem) from error
        raise


def _explained(error: Exception, model: Any) -> str | None:
    text, name = str(error), type(model).__name__
    called = f"the model ({name}) is called as model(batch) with a freerun.Batch"
    read = "read batch.history (shifted by one inside) and batch.context, and return (batch, time, ...) outputs"
    if isinstance(error, RuntimeError | ValueError):
        kinds = sorted({str(w.dtype) for w in model.parameters()}) if isinstance(model, nn.Module) else []
        if not kinds or not re.search(r"same dtype|scalar type|Index put requires|does not match weight dtype", text):
            return None
        return (
            f"numbers of different types meet in the model ({name}), whose weights are {', '.join(kinds)} ({text}): "
            "use one type, by model.float(), or by .to(...) of the batches' values and context"
        )
    if isinstance(error, IndexError):
        if "out of range in self" not in text:  # the message of an embedding
            return None
        return (
            f"the model ({name}) was fed an id that its embedding does not have ({text}): ids of history and "
            "context must lie below its number of symbols"
        )
    if any(each.__module__ == "transformers.modeling_utils" for each in type(model).__mro__):
        return f"{called}, which a Hugging Face model does not read: adapt it, freerun.hf.adapt(model)"
    if isinstance(error, AttributeError):
        missing = re.match(r"'Batch' object has no attribute '(\w+)'", text)
        if missing is None:
            return None
        near = nearest(missing[1], Batch.__dataclass_fields__)
        return f"{called}, which has no {missing[1]!r}: " + (f"did you mean {near}? Or " if near else "") + read
    takes_no_batch = refused(model.forward if isinstance(model, nn.Module) else model, 1)
    if "not Batch" in text or "got (Batch" in text or takes_no_batch:
        return f"{called}, and could not take it ({text.splitlines()[0]}): {read}"
    return None
