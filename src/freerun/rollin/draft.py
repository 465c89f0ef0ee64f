"""The exact ``draft`` engine: a cheap model drafts, the training forward certifies, rows that fail are redone."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, cast
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from freerun.arguments import Arguments, is_number
from freerun.batch import Batch
from freerun.errors import UserError, out_of_memory
from freerun.rollin.jacobi import jacobi_roll_in
from freerun.rollin.model import eval_mode, forward, has
from freerun.rollin.replacement import Replacement, RollIn, equal_entries
from freerun.types import Encoder

_COPIES: WeakKeyDictionary[nn.Module, dict[torch.dtype, nn.Module]] = WeakKeyDictionary()
_REDONE = 3
"""Times that failing rows are redone; only entries whose choice depends on rounding could ever fail a second time."""


@dataclass(frozen=True)
class Draft(Arguments):
    """Exact: another model drafts the history, the forward that is differentiated checks it, wrong rows are redone.

    Args:
        model: what drafts: a dtype (a copy of the model in it, refreshed at every step), or any model of the same
            contract, on the same context.
        tolerance: the draft stops when a parallel pass changes no more than this share of the own entries.

    A copy is kept as long as the model lives, with its forward hooks; a hook that holds the model keeps both alive.

    Raises:
        UserError: ``tolerance`` outside [0, 1), or a model that is neither; at the step, targets that are values.

    >>> Draft()
    Draft(model=torch.bfloat16, tolerance=0.02)
    """

    model: Any = torch.bfloat16
    tolerance: float = 0.02

    name: ClassVar[str] = "draft"
    in_parts: ClassVar[bool] = True

    def __post_init__(self) -> None:
        fine = is_number(self.tolerance) and 0 <= self.tolerance < 1
        problems = [] if fine else [f"tolerance must lie in [0, 1); got {self.tolerance!r}"]
        model = callable(self.model) and not isinstance(self.model, type)
        if not model and not (isinstance(self.model, torch.dtype) and self.model.is_floating_point):
            problems.append(
                f"model must be a floating-point dtype, e.g. torch.bfloat16, or a model; got {self.model!r}"
            )
        if problems:
            raise UserError(problems)

    def __repr__(self) -> str:
        model = self.model if isinstance(self.model, torch.dtype) else type(self.model).__name__
        return f"Draft(model={model}, tolerance={self.tolerance})"

    def check(self, model: Any) -> None:
        """Any forward will do; what drafts is looked at when it drafts."""

    def roll_in(self, model: Any, batch: Batch, encoded: Batch, replacement: Replacement) -> RollIn:
        """The mixed history: the draft, and exact passes from there."""
        drafted = draft_roll_in(model, batch, replacement, self, encoded)
        done = jacobi_roll_in(model, encoded, replacement, start=drafted.history)
        passes, work = drafted.passes + done.passes, drafted.work + done.work
        return replace(done, engine="draft", passes=passes, work=work)


def draft_roll_in(
    model: Any, batch: Batch, replacement: Replacement, engine: Draft, encoded: Batch | None = None
) -> RollIn:
    """A draft of the mixed history by parallel passes; nothing certifies it yet.

    Args:
        model: the model to be trained.
        batch: the batch before encoding: another model that drafts encodes it itself.
        replacement: the entries to replace.
        engine: what drafts, and when its draft is good enough.
        encoded: the batch with its context encoded by the model to be trained, which its copy takes over.

    Raises:
        UserError: targets that are values, or a model that cannot be copied.
    """
    if not batch.is_discrete:
        raise UserError(
            "engine='draft' keeps entries that two models predict exactly the same, and values never are: use "
            "engine='step' or 'jacobi'"
        )
    drafter: Any = engine.model
    if isinstance(drafter, torch.dtype):
        batch = batch.made(context=_cast((encoded or batch).context, drafter))
        drafter = _copy_of(model, drafter)
    with eval_mode(drafter):
        own: Batch = drafter.encode(batch) if has(drafter, Encoder) else batch
        passes, anything = replacement.longest + 1, cast(Any, drafter)
        return jacobi_roll_in(anything, own, replacement, passes=passes, tolerance=engine.tolerance)


def _copy_of(model: Any, dtype: torch.dtype) -> nn.Module:
    """The model's copy in another precision, with the weights of now."""
    if not isinstance(model, nn.Module):
        raise UserError(
            f"engine='draft' makes a copy of the model in {dtype}, which needs a torch.nn.Module; got "
            f"{type(model).__name__}: give freerun.Draft(model=...) a model of its own that drafts"
        )
    made = _COPIES.setdefault(model, {})
    theirs = _tensors(model)
    # a model that was moved or rebuilt since has another copy
    if dtype not in made or _places(_tensors(made[dtype])) != _places(theirs):
        made[dtype] = _copied(model).to(dtype).requires_grad_(False).eval()
    for old, new in zip(_tensors(made[dtype]), theirs, strict=True):
        old.copy_(new)
    return made[dtype]


def _copied(model: nn.Module) -> nn.Module:
    try:
        return copy.deepcopy(model)
    except RuntimeError as error:  # a module that holds a tensor of a graph, as the old torch.nn.utils.weight_norm does
        if out_of_memory(error):
            raise
        raise UserError(
            f"engine='draft' makes a copy of the model, and {type(model).__name__} cannot be copied "
            f"({str(error).splitlines()[0]}): give freerun.Draft(model=...) a model of its own that drafts"
        ) from error


def _tensors(model: nn.Module) -> list[Tensor]:
    return [*model.parameters(), *model.buffers()]


def _places(tensors: list[Tensor]) -> list[tuple[torch.Size, torch.device]]:
    return [(tensor.shape, tensor.device) for tensor in tensors]


def _cast(tree: Any, dtype: torch.dtype) -> Any:
    """A context with its real numbers in another precision; ids and masks as they are."""
    if isinstance(tree, Tensor):
        return tree.to(dtype) if tree.is_floating_point() else tree
    if isinstance(tree, Mapping):
        return {name: _cast(part, dtype) for name, part in tree.items()}
    if isinstance(tree, tuple | list):
        parts = [_cast(part, dtype) for part in tree]
        return type(tree)(*parts) if hasattr(tree, "_fields") else type(tree)(parts)
    if dataclasses.is_dataclass(tree) and not isinstance(tree, type):
        return dataclasses.replace(
            tree, **{f.name: _cast(getattr(tree, f.name), dtype) for f in dataclasses.fields(tree)}
        )
    return tree


def certified_forward(model: Any, batch: Batch, replacement: Replacement, drafted: RollIn) -> RollIn:
    """The training forward on a drafted history, every row of which it has checked itself.

    An own entry stands if it is what the outputs of this very forward choose at its position. Rows with one that does
    not are finished by exact passes, forwarded once more and checked again.

    Args:
        model: the model, in a mode in which two calls are the same function.
        batch: the batch; its context may be encoded.
        replacement: the entries to replace.
        drafted: a history, right or not.

    Returns:
        the history with its outputs (batch, time, vocab), and the cost of drafting and redoing; ``certified`` records
        whether the outputs certify all of it.
    """
    history, passes, work = drafted.history, drafted.passes, drafted.work
    outputs = forward(model, batch.made(history=history))
    failing = _failing(outputs, history, replacement)
    for _ in range(_REDONE):
        if failing.numel() == 0:
            break
        part, inner = batch.select(failing), replacement.select(failing)
        with torch.no_grad(), eval_mode(model):
            redone = jacobi_roll_in(model, part, inner, start=history[failing])
        again = forward(model, part.made(history=redone.history))
        share = len(failing) / batch.size
        passes, work = passes + redone.passes + 1, work + share * (redone.work + 1)
        # out of place: the graph holds the history that was fed
        history = history.index_copy(0, failing, redone.history)
        outputs = outputs.index_copy(0, failing, again)
        failing = failing[_failing(again, redone.history, inner)]
    by = "fixed point" if failing.numel() else "training forward"
    return RollIn(history, "draft", passes, work, by, outputs)


@torch.no_grad()
def _failing(outputs: Tensor, history: Tensor, replacement: Replacement) -> Tensor:
    """The rows ((n,), rising) with an entry that these outputs would not have chosen."""
    rows, times = replacement.positions
    every = torch.arange(replacement.number, device=history.device)
    own = replacement.choose(outputs[rows, times], lambda logits: logits, every, history).to(history.dtype)
    return rows[~equal_entries(own, history[rows, times])].unique()
