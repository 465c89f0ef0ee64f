"""Roll-ins of values with gradient through own entries: whole, or cut every k positions so that memory grows with k."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from freerun.batch import PER_POSITION, Batch, map_leaves
from freerun.errors import UserError
from freerun.objectives import Objective, scored
from freerun.rollin.jacobi import Jacobi, Passes
from freerun.rollin.model import (
    differs_by_mode,
    forward,
    max_over_ranks,
    own_casts,
    stepping,
    supports,
    warn_price,
    wrapper_hint,
)
from freerun.rollin.replacement import Replacement, RollIn
from freerun.rollin.roll_in import Auto, Engine, resolve_engine
from freerun.rollin.step import Stepwise
from freerun.types import Detachable, Stepper

_ALONG_TIME = ("targets", "history", *PER_POSITION)


def check_unroll(model: Any, engine: Engine, cut_every: int | None = None) -> None:
    """Refuse an engine that keeps no gradient, or a model without the methods for it.

    Raises:
        UserError: ``"window"`` or ``"draft"``; ``"step"``, or a cut, without a Stepper; a cut with passes.
    """
    using, name, model = resolve_engine(engine), type(model).__name__, stepping(model)
    if not isinstance(using, Auto | Stepwise | Jacobi):
        raise UserError(
            f"engine={using!r} keeps no gradient through own outputs: use 'auto', 'step' or 'jacobi', or "
            "gradient='none'"
        )
    if isinstance(using, Stepwise) and not supports(model, Stepper):
        raise UserError(
            f"engine='step' needs a model with start, embed, step, output and select; {name} has only "
            f"a forward: use engine='auto' (parallel passes) or add the Stepper methods{wrapper_hint(model, Stepper)}"
        )
    if cut_every is None:
        return
    if not isinstance(using, Auto | Stepwise):
        raise UserError(f"gradient={cut_every} goes step by step: use engine='auto' or 'step'; got {engine!r}")
    if not supports(model, Stepper):
        raise UserError(
            f"gradient={cut_every} cuts the model's state every {cut_every} positions, which needs start, embed, step, "
            f"output and select; {name} has only a forward: use gradient='full' or 'none', or add them"
            f"{wrapper_hint(model, Stepper)}"
        )


def unroll(
    model: Any,
    batch: Batch,
    replacement: Replacement,
    engine: Engine = "auto",
    *,
    cut_every: int | None = None,
    objective: Objective | None = None,
    recompute: bool = False,
) -> RollIn:
    """Outputs and history with gradient through everything that is fed.

    Args:
        model: a Stepper, or anything with a forward (then in as many passes as a row has own entries).
        batch: values (batch, time, value).
        replacement: what is fed.
        engine: ``"auto"``, ``"step"``, ``"jacobi"``, or k passes, an approximation.
        cut_every: k >= 1: before the entry at position k-1, 2k-1, ... is read, that entry and the state are detached,
            so each output has at least one step of the model in its graph. Each piece is gone backward through at once
            and freed: ``total`` and ``count`` are the loss, and ``outputs`` carry no graph. None: no cut.
        objective: of the loss, for a cut: a sum over positions, as all of ``freerun.objectives`` are; one with weights
            of its own must be a module.
        recompute: about sqrt(time) steps (or a pass) at a time keep no activations, and are computed again when the
            gradient is.

    Raises:
        UserError: an engine that keeps no gradient, ``"step"`` without a Stepper, passes through dropout, passes that
            do not settle, or a state to be cut that holds something else than tensors.
    """
    check_unroll(model, engine, cut_every)
    model = stepping(model)
    using = resolve_engine(engine)
    if cut_every is not None:
        assert objective is not None
        return _by_pieces(model, batch, replacement, cut_every, objective)
    if isinstance(using, Stepwise) or (isinstance(using, Auto) and supports(model, Stepper)):
        loop = _Loop(model, batch, replacement)
        outputs = loop.recomputed() if recompute else loop.go_on(0, batch.time)
        return RollIn(torch.stack(loop.history, 1), "unrolled", outputs=outputs)
    return _by_passes(model, batch, replacement, using.k if isinstance(using, Passes) else None, recompute)


class _Loop:
    """A Stepper on its way, and what it is fed."""

    def __init__(self, model: Stepper, batch: Batch, replacement: Replacement) -> None:
        self.model, self.batch, self.replacement = model, batch, replacement
        self.state: Any = None
        self.history: list[Tensor] = []

    def recomputed(self) -> Tensor:
        """All outputs, with a graph that keeps the state before every piece and computes the rest again."""
        every, parts = math.ceil(math.sqrt(self.batch.time)), list[Tensor]()
        for start in range(0, self.batch.time, every):
            state, history = self.state, self.history

            def piece(start: int = start, state: Any = state, history: list[Tensor] = history) -> Any:
                self.state, self.history = state, history[-1:]
                outputs = self.go_on(start, min(start + every, self.batch.time))
                return outputs, self.state, self.history[len(history[-1:]) :]

            outputs, self.state, made = checkpoint(piece, use_reentrant=False)
            self.history = [*history, *made]
            parts.append(outputs)
        return torch.cat(parts, 1)

    def go_on(self, start: int, end: int, *, cut: bool = False) -> Tensor:
        """The outputs at positions start to end - 1, (batch, positions, width); with a cut only their graph."""
        outputs: list[Tensor] = []
        for t in range(start, end):
            if t == 0:
                self.state = self.model.start(self.batch)
            else:
                if cut and t == start:
                    self.state, self.history[-1] = _detached(self.model, self.state), self.history[-1].detach()
                self.state = self.model.step(self.state, self.model.embed(self.history[-1]))
            outputs.append(self.model.output(self.state))
            if t == 0:
                self.replacement.check(outputs[0], self.batch.size)
            self.history.append(self.replacement.mix_at(outputs[-1], t))
        return torch.stack(outputs, 1)


def _by_passes(model: Any, batch: Batch, replacement: Replacement, limit: int | None, recompute: bool) -> RollIn:
    if differs_by_mode(model):
        raise UserError(
            "gradient through own outputs in parallel passes needs the same function in every pass, and this model "
            "has dropout or batch normalisation in training mode: set dropout to 0, give the model a Stepper "
            "(start, embed, step, output, select), or use gradient='none'"
        )
    history = replacement.gold
    needed = max_over_ranks(model, replacement.longest)
    passes = needed if limit is None else min(limit, needed)
    warn_price(
        model,
        passes + 1,
        "Its gradient goes through a forward for every position: write its step as fr.StepModel, wrap it "
        "(fr.models.RecurrentDecoder, OneStepMap), or use gradient='none'",
    )

    def outputs_on(history: Tensor) -> Tensor:
        return forward(model, batch.made(history=history))

    def recomputed(history: Tensor) -> Tensor:
        return cast(Tensor, checkpoint(outputs_on, history, use_reentrant=False))

    run = recomputed if recompute else outputs_on
    for _ in range(passes):
        history = replacement.mix(run(history))
    outputs = run(history)
    if passes < needed:
        return RollIn(history, "unrolled", passes, float(passes), "no", outputs)
    with torch.no_grad():  # the certificate: these outputs choose the entries that were fed
        again = replacement.mix(outputs)
    if not torch.allclose(again, history, rtol=1e-4, atol=1e-6, equal_nan=True):
        raise UserError(
            f"the roll-in did not settle in {needed} passes: the model's outputs depend on later entries, or change "
            "from call to call; freerun.check_model(model, batch) names it"
        )
    certified = "fixed point" if passes else "construction"
    return RollIn(history, "unrolled", passes, float(passes), certified, outputs)


def _by_pieces(model: Any, batch: Batch, replacement: Replacement, every: int, objective: Objective) -> RollIn:
    """Truncated back-propagation: pieces without loss keep no graph at all."""
    weights = _weights(model, objective, batch)
    gradients: list[Tensor | None] = [None] * len(weights)
    loop, parts = _Loop(model, batch, replacement), list[Tensor]()
    total = count = batch.history.new_zeros(())
    learning = torch.is_grad_enabled()
    for start in range(0, batch.time, every):
        end = min(start + every, batch.time)
        if bool(batch.mask[:, start:end].any()):
            outputs = loop.go_on(start, end, cut=True)
            part, number = scored(objective, outputs, _piece(batch, start, end))
            if weights and learning and part.requires_grad:  # after a cut nothing that learns may be left in the graph
                _add(gradients, torch.autograd.grad(part, weights, allow_unused=True))
            total, count = total + (part.detach() if weights else part), count + number
        else:
            with torch.no_grad(), own_casts():
                outputs = loop.go_on(start, end, cut=True)
        loop.history[start:-1] = [each.detach() for each in loop.history[start:-1]]
        parts.append(outputs.detach())
    if weights and learning:
        total = cast(Tensor, _WithGradients.apply(total, len(weights), *weights, *gradients))
    history = torch.stack(loop.history, 1).detach()
    return RollIn(history, "unrolled", outputs=torch.cat(parts, 1).detach(), total=total, count=count)


class _WithGradients(torch.autograd.Function):
    """A number whose gradient towards some tensors is known already."""

    @staticmethod
    def forward(ctx: Any, total: Tensor, weights: int, *tensors: Tensor | None) -> Tensor:
        ctx.gradients = tensors[weights:]
        return total.clone()

    @staticmethod
    def backward(ctx: Any, *upstream: Any) -> Any:
        gradients = [None if each is None else each * upstream[0] for each in ctx.gradients]
        return (None, None, *gradients, *[None] * len(gradients))


def _weights(model: Any, objective: Any, batch: Batch) -> list[Tensor]:
    """Weights that get their gradients piece by piece; none where something else wants one, which keeps the graph."""
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

    def cut(leaf: Any) -> Any:
        if isinstance(leaf, Tensor):
            return leaf.detach()
        if leaf is None or isinstance(leaf, int | float | bool | str):
            return leaf
        raise UserError(
            f"gradient=k cuts the state, and that of {type(model).__name__} holds a {type(leaf).__name__}: give the "
            "model detach(state), the same state without gradient into its past"
        )

    return map_leaves(state, cut)
