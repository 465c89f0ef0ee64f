"""One call of a model: what it gives is checked, and errors that come of what it was given are named."""

from __future__ import annotations

import re
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from freerun.arguments import nearest, refused
from freerun.batch import Batch
from freerun.errors import UserError

__all__ = ["call_problems", "checked", "checked_rows", "explained_errors", "forward"]


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

    Shapes and types alone are looked at, which costs a microsecond and waits for no device.

    Raises:
        UserError: anything else, by name.
    """
    outputs = checked(model(batch), batch)
    if torch.is_grad_enabled() and not outputs.requires_grad and _learns(model):
        raise UserError(
            f"the outputs of {type(model).__name__} carry no gradient, and it has weights to learn: look for detach, "
            "numpy, argmax or no_grad in its forward; or, where nothing is to be learned, call under torch.no_grad()"
        )
    return outputs


def _learns(model: Any) -> bool:
    return isinstance(model, nn.Module) and any(weight.requires_grad for weight in model.parameters())


def checked(outputs: Any, batch: Batch) -> Tensor:
    """Outputs for a batch, or a UserError that says what a model must give."""
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
    """What a Stepper's ``output`` or a Split's ``head`` gives for so many rows, or a UserError."""
    if isinstance(outputs, Tensor) and outputs.is_floating_point() and outputs.dim() == 2 and len(outputs) == rows:
        return outputs
    kind = f"{tuple(outputs.shape)} {outputs.dtype}" if isinstance(outputs, Tensor) else type(outputs).__name__
    raise UserError(
        f"output(state, rows) and head(hidden) must return floating-point outputs ({rows}, vocabulary or numbers) for "
        f"{rows} rows; got {kind}"
    )


def _problem(outputs: Any, batch: Batch) -> str | None:
    wanted = f"({batch.size}, {batch.time}, {'vocabulary' if batch.is_discrete else 'numbers'})"
    rule = f"a model must return one floating-point tensor {wanted}"
    if not isinstance(outputs, Tensor):
        kind = type(outputs).__name__
        if hasattr(outputs, "logits") or (isinstance(outputs, dict) and "logits" in outputs):
            return (
                f"{rule}; got {kind} with logits: return its .logits, or adapt a Hugging Face model: freerun.hf.adapt"
            )
        if isinstance(outputs, tuple | list):
            return f"{rule}; got a {kind} of {len(outputs)}: return the outputs alone, without states"
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
    """Errors inside that come of how the model reads a batch, as a UserError that says so; others go through."""
    try:
        yield
    except (AttributeError, IndexError, TypeError) as error:
        if problem := _explained(error, model):
            raise UserError(problem) from error
        raise


def _explained(error: Exception, model: Any) -> str | None:
    text, name = str(error), type(model).__name__
    called = f"the model ({name}) is called as model(batch) with a freerun.Batch"
    read = "read batch.history (shifted by one inside) and batch.context, and return (batch, time, ...) outputs"
    if isinstance(error, IndexError):
        if "out of range in self" not in text:  # what an embedding says
            return None
        return (
            f"the model ({name}) was fed an id that its embedding does not have ({text}): ids of history and "
            "context must lie below its number of symbols"
        )
    if any(each.__module__ == "transformers.modeling_utils" for each in type(model).__mro__):
        return f"{called}, which a Hugging Face model does not read: adapt it, freerun.hf.adapt(model)"
    if isinstance(error, AttributeError):
        asked = re.match(r"'Batch' object has no attribute '(\w+)'", text)
        if asked is None:
            return None
        near = nearest(asked[1], Batch.__dataclass_fields__)
        return f"{called}, which has no {asked[1]!r}: " + (f"did you mean {near}? Or " if near else "") + read
    takes_no_batch = refused(model.forward if isinstance(model, nn.Module) else model, 1)
    if "not Batch" in text or "got (Batch" in text or takes_no_batch:
        return f"{called}, and could not take it ({text.splitlines()[0]}): {read}"
    return None
