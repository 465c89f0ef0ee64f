"""Roll-ins whose graph is cut every k positions and gone backward through piece by piece: memory grows with k."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from freerun.arguments import brief
from freerun.batch import Batch
from freerun.draws import check_width
from freerun.errors import UserError
from freerun.objectives import Objective, scored
from freerun.rollin.engines import Engine, resolve_engine
from freerun.rollin.model import (
    checked_rows,
    differs_by_mode,
    forward,
    max_over_ranks,
    supports,
    uncached_autocast,
    wrapper_hint,
)
from freerun.rollin.replacement import Mixing
from freerun.types import Detachable, Stepper


@dataclass(frozen=True, eq=False)
class Unrolled:
    """What was said and fed.

    Args:
        outputs: (batch, time, width), with graph.
        history: (batch, time, value), what was fed.
        passes: extra model calls.
        exact: whether the history is the sequential one.
    """

    __repr__ = brief

    outputs: Tensor
    history: Tensor
    passes: int
    exact: bool


def refuse_unrolling(model: Any, engine: Engine) -> Engine:
    """The engine, resolved; refused where it keeps no gradient or the model has not the methods for it.

    Raises:
        UserError: ``"window"`` or ``"draft"``, or ``"step"`` without a Stepper.
    """
    engine = resolve_engine(engine)
    if engine not in ("auto", "step", "jacobi") and not isinstance(engine, int):
        raise UserError(
            f"engine={engine!r} keeps no gradient through own outputs: use 'auto', 'step' or 'jacobi', or "
            "gradient='none'"
        )
    if engine == "step" and not supports(model, Stepper):
        raise UserError(
            f"engine='step' needs a model with start, embed, step, output and select; {type(model).__name__} has only "
            f"a forward: use engine='auto' (parallel passes) or add the Stepper methods{wrapper_hint(model, Stepper)}"
        )
    return engine


def unroll(model: Any, batch: Batch, mixing: Mixing, engine: Engine = "auto") -> Unrolled:
    """Outputs and history with gradient through everything that is fed.

    Args:
        model: a Stepper, or anything with a forward (then in as many passes as a row has own entries).
        batch: values (batch, time, value).
        mixing: what is fed.
        engine: ``"auto"``, ``"step"``, ``"jacobi"``, or k passes, an approximation.

    Raises:
        UserError: an engine that keeps no gradient, ``"step"`` without a Stepper, passes through dropout, or passes
            that do not settle.
    """
    engine = refuse_unrolling(model, engine)
    if engine == "step" or (engine == "auto" and supports(model, Stepper)):
        return _by_steps(model, batch, mixing)
    return _by_passes(model, batch, mixing, engine if isinstance(engine, int) else None)


def _by_steps(model: Stepper, batch: Batch, mixing: Mixing) -> Unrolled:
    state = model.start(batch)
    outputs: list[Tensor] = []
    history: list[Tensor] = []
    for t in range(batch.time):
        outputs.append(model.output(state))
        if t == 0:
            check_width(mixing.draw, checked_rows(outputs[0], batch.size), mixing.gold.shape[-1])
        history.append(mixing.entries(outputs[t], t))
        if t + 1 < batch.time:
            state = model.step(state, model.embed(history[t]))
    return Unrolled(torch.stack(outputs, 1), torch.stack(history, 1), 0, True)


def _by_passes(model: Any, batch: Batch, mixing: Mixing, limit: int | None) -> Unrolled:
    if differs_by_mode(model):
        raise UserError(
            "gradient through own outputs in parallel passes needs the same function in every pass, and this model "
            "has dropout or batch normalisation in training mode: set dropout to 0, give the model a Stepper "
            "(start, embed, step, output, select), or use gradient='none'"
        )
    history = batch.history
    needed = max_over_ranks(model, int(mixing.replaced.sum(1).max()))
    passes = needed if limit is None else min(limit, needed)
    for _ in range(passes):
        history = mixing.all_entries(forward(model, batch.made(history=history)))
    outputs = forward(model, batch.made(history=history))
    if passes < needed:
        return Unrolled(outputs, history, passes, False)
    with torch.no_grad():  # the certificate: said again, the entries are those that were fed
        again = mixing.all_entries(outputs)
    if not torch.allclose(again, history, rtol=1e-4, atol=1e-6, equal_nan=True):
        raise UserError(
            f"the roll-in did not settle in {needed} passes: the model's outputs depend on later entries, or change "
            "from call to call; freerun.check_model(model, batch) says which"
        )
    return Unrolled(outputs, history, passes, True)


_ALONG_TIME = ("targets", "history", "mask", "weights", "eligible")


@dataclass(frozen=True, eq=False)
class Truncated:
    """What was said and fed, and the loss.

    Args:
        total: scalar; its backward gives the weights the gradient of all pieces.
        count: scalar.
        outputs: (batch, time, width), without graph.
        history: (batch, time, value), without graph.
    """

    __repr__ = brief

    total: Tensor
    count: Tensor
    outputs: Tensor
    history: Tensor


class _WithGradients(torch.autograd.Function):
    """A number whose gradient towards some tensors is known already."""

    @staticmethod
    def forward(ctx: Any, total: Tensor, weights: int, *tensors: Tensor | None) -> Tensor:
        ctx.gradients = tensors[weights:]
        return total.clone()

    @staticmethod
    def backward(ctx: Any, *given: Any) -> Any:
        gradients = [None if each is None else each * given[0] for each in ctx.gradients]
        return (None, None, *gradients, *[None] * len(gradients))


def refuse_cutting(model: Any, every: int, engine: Engine = "auto") -> None:
    """Refuse a model that cannot go step by step, or an engine that does not.

    Raises:
        UserError: either.
    """
    if engine not in ("auto", "step"):
        raise UserError(f"gradient={every} goes step by step: use engine='auto' or 'step'; got {engine!r}")
    if not supports(model, Stepper):
        raise UserError(
            f"gradient={every} cuts the model's state every {every} positions, which needs start, embed, step, output "
            f"and select; {type(model).__name__} has only a forward: use gradient='full' or 'none', or add them"
            f"{wrapper_hint(model, Stepper)}"
        )


def unroll_truncated(model: Any, batch: Batch, mixing: Mixing, every: int, objective: Objective) -> Truncated:
    """Truncated back-propagation through own outputs: the hand-unrolled loop with a cut before every k-th position.

    Before the entry at position k-1, 2k-1, ... is read, that entry and the state are detached; so each output has at
    least one step of the model in its graph. Each piece is gone backward through at once and freed; pieces without loss
    keep no graph at all.

    Args:
        model: a Stepper whose state can be detached (``Detachable``, or a state of plain tensors).
        batch: values (batch, time, value).
        mixing: what is fed.
        every: k >= 1.
        objective: a sum over positions, as all of ``freerun.objectives`` are; one with weights of its own must be a
            module.

    Raises:
        UserError: no Stepper, or a state that holds something else than tensors.
    """
    refuse_cutting(model, every)
    weights = _weights(model, objective, batch)
    gradients: list[Tensor | None] = [None] * len(weights)
    walk = _Walk(model, batch, mixing)
    total = count = batch.history.new_zeros(())
    learning = torch.is_grad_enabled()
    for start in range(0, batch.time, every):
        end = min(start + every, batch.time)
        counts = bool(batch.mask[:, start:end].any())
        if not counts:
            with torch.no_grad(), uncached_autocast(batch.history.device):
                walk.go_on(start, end)
            continue
        part, number = scored(objective, walk.go_on(start, end), _piece(batch, start, end))
        if weights and learning and part.requires_grad:  # after a cut nothing that learns may be left in the graph
            _add(gradients, torch.autograd.grad(part, weights, allow_unused=True))
        total, count = total + (part.detach() if weights else part), count + number
    if weights and learning:
        total = cast(Tensor, _WithGradients.apply(total, len(weights), *weights, *gradients))
    return Truncated(total, count, torch.cat(walk.outputs, 1).detach(), torch.stack(walk.history, 1).detach())


class _Walk:
    """A Stepper on its way, and what it said and was fed."""

    def __init__(self, model: Stepper, batch: Batch, mixing: Mixing) -> None:
        self.model, self.batch, self.mixing = model, batch, mixing
        self.state: Any = None
        self.outputs: list[Tensor] = []
        self.history: list[Tensor] = []

    def go_on(self, start: int, end: int) -> Tensor:
        """The outputs at positions start to end - 1, (batch, positions, width), with the graph of these alone."""
        said: list[Tensor] = []
        for t in range(start, end):
            if t == 0:
                self.state = self.model.start(self.batch)
            else:
                if t == start:
                    self.state, self.history[-1] = _detached(self.model, self.state), self.history[-1].detach()
                self.state = self.model.step(self.state, self.model.embed(self.history[-1]))
            said.append(self.model.output(self.state))
            if t == 0:
                check_width(self.mixing.draw, checked_rows(said[0], self.batch.size), self.mixing.gold.shape[-1])
            self.history.append(self.mixing.entries(said[-1], t))
        self.history[start:] = [*(each.detach() for each in self.history[start:-1]), self.history[-1]]
        outputs = torch.stack(said, 1)
        self.outputs.append(outputs.detach())
        return outputs


def _weights(model: Any, objective: Any, batch: Batch) -> list[Tensor]:
    """The weights to be given gradients piece by piece; none where something else wants one, which keeps the graph."""
    if not isinstance(model, nn.Module) or _wants_gradient((batch.context, batch.history, batch.weights)):
        return []
    learning = nn.ModuleList(part for part in (model, objective) if isinstance(part, nn.Module))
    return [weight for weight in learning.parameters() if weight.requires_grad]


def _wants_gradient(tree: Any) -> bool:
    if isinstance(tree, Tensor):
        return tree.requires_grad
    if isinstance(tree, Mapping):
        return any(_wants_gradient(part) for part in cast(Mapping[str, Any], tree).values())
    if isinstance(tree, tuple | list):
        return any(_wants_gradient(part) for part in cast(list[Any], tree))
    return False


def _add(gradients: list[Tensor | None], more: tuple[Tensor | None, ...]) -> None:
    for n, each in enumerate(more):
        if each is not None:
            before = gradients[n]
            gradients[n] = each if before is None else before + each


def _piece(batch: Batch, start: int, end: int) -> Batch:
    part = slice(start, end)
    cut = {name: None if (each := getattr(batch, name)) is None else each[:, part] for name in _ALONG_TIME}
    return batch.made(**cut, context=None)


def _detached(model: Any, state: Any) -> Any:
    if isinstance(model, Detachable):
        return model.detach(state)
    return _detach_tree(model, state)


def _detach_tree(model: Any, tree: Any) -> Any:
    if isinstance(tree, Tensor):
        return tree.detach()
    if tree is None or isinstance(tree, int | float | bool | str):
        return tree
    if isinstance(tree, Mapping):
        return {name: _detach_tree(model, part) for name, part in cast(Mapping[str, Any], tree).items()}
    if isinstance(tree, tuple | list):
        parts = [_detach_tree(model, part) for part in cast(list[Any], tree)]
        return type(tree)(*parts) if hasattr(tree, "_fields") else type(tree)(parts)
    raise UserError(
        f"gradient=k cuts the state, and that of {type(model).__name__} holds a {type(tree).__name__}: give the model "
        "detach(state), the same state without gradient into its past"
    )
