"""Roll-ins of ids whose own entries are mixtures of symbols, with gradient through all that is fed."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor

from freerun.batch import Batch
from freerun.errors import UserError
from freerun.rollin.model import checked, differs_by_mode, max_over_ranks, stepping, supports, warn_price, wrapper_hint
from freerun.rollin.replacement import Replacement, RollIn
from freerun.types import Embedder, MixtureStepper


def mixture_roll_in(model: Any, batch: Batch, replacement: Replacement, draw: Any) -> RollIn:
    """Outputs on, and the heaviest symbols of, a history whose own entries are ``sum_v w_v e(v)``.

    Args:
        model: one with ``lookup`` and ``outputs_from``; with ``inputs_from`` it is stepped, else a row's own entries
            take a forward each. Called in the mode it is in, with a gradient where one is on.
        batch: its history gold, its context encoded where the model can.
        replacement: what is fed; ``detached`` cuts the weights from the predictions that they are made of.
        draw: has ``weights(outputs, noise)``, (n, vocab).

    Raises:
        UserError: a model that takes no vectors; passes through dropout.
    """
    model = stepping(model)
    if not supports(model, Embedder):
        raise UserError(
            f"draw={draw!r} feeds mixtures of symbols, which needs a model with lookup and outputs_from; "
            f"{type(model).__name__} takes ids only: add the two methods, or use draw='greedy' or 'sample'"
            f"{wrapper_hint(model, Embedder)}"
        )
    rolling = _Mixtures(model, batch, replacement, draw)
    return rolling.by_steps() if supports(model, MixtureStepper) else rolling.by_passes()


class _Mixtures:
    """What is fed so far: gold's vectors, and mixtures in their place."""

    def __init__(self, model: Any, batch: Batch, replacement: Replacement, draw: Any) -> None:
        self.model, self.batch, self.replacement, self.draw = model, batch, replacement, draw
        self.vectors, self.history = cast(Tensor, model.lookup(batch.history)), batch.history
        self.table: Tensor | None = None

    def mixed(self, logits: Tensor, chosen: Tensor | slice) -> tuple[Tensor, Tensor]:
        """(n, width) mixtures and (n,) heaviest symbols of the replaced entries ``chosen``."""
        known = self.replacement.allowed(logits.detach() if self.replacement.detached else logits, self.history, chosen)
        if self.table is None:
            self.table = cast(Tensor, self.model.lookup(torch.arange(logits.shape[-1], device=logits.device)))
        noise = self.replacement.noise(logits.shape[-1], chosen)
        weights = self.draw.weights(known, noise)
        return weights.to(self.table.dtype) @ self.table, self.draw.choose(known.detach(), noise)

    def by_steps(self) -> RollIn:
        """One loop over the positions, which is the training forward."""
        rows, times = self.replacement.positions
        state, outputs = self.model.start(self.batch), list[Tensor]()
        for t, known in enumerate(self.vectors.unbind(1)):
            outputs.append(self.model.output(state))
            chosen = (times == t).nonzero().squeeze(1)
            fed = known
            if len(chosen):
                at = rows[chosen]
                own, heaviest = self.mixed(outputs[-1][at], chosen)
                fed = known.index_put((at,), own.to(known.dtype))
                self.history = self.history.index_put((at, times[chosen]), heaviest.to(self.history.dtype))
            if t + 1 < self.batch.time:
                state = self.model.step(state, self.model.inputs_from(fed))
        return RollIn(self.history, "unrolled", outputs=checked(torch.stack(outputs, 1), self.batch))

    def by_passes(self) -> RollIn:
        """A forward for each own entry of the row that has most: after k of them its first k are as they will be."""
        if differs_by_mode(self.model):
            raise UserError(
                f"draw={self.draw!r} needs the same function in every pass, and this model has dropout or batch "
                "normalisation in training mode: set dropout to 0, or give the model the Stepper methods and "
                "inputs_from(vectors), what embed returns for the vectors of lookup"
            )
        passes = max_over_ranks(self.model, self.replacement.longest)
        warn_price(self.model, passes + 1, "Mixtures take a forward for each own entry: use draw='sample', or two_pass")
        rows, times = self.replacement.positions
        outputs = checked(self.model.outputs_from(self.batch, self.vectors), self.batch)
        gold = self.vectors
        for _ in range(passes):
            own, heaviest = self.mixed(outputs[rows, times], slice(None))
            self.vectors = gold.index_put((rows, times), own.to(gold.dtype))
            self.history = self.history.index_put((rows, times), heaviest.to(self.history.dtype))
            outputs = checked(self.model.outputs_from(self.batch, self.vectors), self.batch)
        return RollIn(self.history, "unrolled", passes, float(passes), "construction", outputs)
