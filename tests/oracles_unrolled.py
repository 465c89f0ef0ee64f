"""The literal loops on values, with their graph: every gradient policy, blends, horizons and loss steps written out."""

from typing import Any

import torch
from torch import Tensor

from freerun.batch import Batch

Share = Tensor  # (batch, time): 1 where gold is fed, 0 where own is, anything between for a blend


def _let_go(model: Any, state: Any) -> Any:
    return model.detach(state) if hasattr(model, "detach") else state.detach()


def literal(
    model: Any, batch: Batch, share: Share, gradient: str | int, weights: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """(mean squared error, history): one position, one row, one number at a time.

    gradient: "full", "none" (own entries are detached, states are not), or k (before each k-th position is reached both
    are detached). weights: (batch, time), 0 where a position carries no loss; default: the mask.
    """
    weights = batch.mask.double() if weights is None else weights
    state, previous = None, None
    losses, count, history = [], 0.0, []
    for t in range(batch.time):
        if t == 0:
            state = model.start(batch)
        else:
            if isinstance(gradient, int) and t % gradient == 0:
                state, previous = _let_go(model, state), previous.detach()
            state = model.step(state, model.embed(previous))
        output = model.output(state)
        for b in range(batch.size):
            if weights[b, t] > 0:
                for v in range(output.shape[1]):
                    losses.append(weights[b, t] * (output[b, v] - batch.targets[b, t, v]) ** 2)
                    count += float(weights[b, t])
        own = output.detach() if gradient == "none" else output
        rows = []
        for b in range(batch.size):
            gold = float(share[b, t]) if bool(batch.replaceable[b, t]) else 1.0
            if gold == 1.0:
                rows.append(batch.history[b, t])
            elif gold == 0.0:
                rows.append(own[b])
            else:
                rows.append(gold * batch.history[b, t] + (1 - gold) * own[b])
        previous = torch.stack(rows)
        history.append(previous)
    return torch.stack(losses).sum() / count, torch.stack(history, 1)
