"""The naive, obviously right loops, slow on purpose: only keys are shared with the library."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from freerun.batch import Batch
from freerun.keys import fold, uniform


def coins(kind: str, batch: Batch, ratio: float, key: int, step: int) -> Tensor:
    """keep, (batch, time), one coin at a time."""
    gate = fold(key, "gate", step)
    keep = torch.ones(batch.size, batch.time, dtype=torch.bool)
    for b in range(batch.size):
        for t in range(batch.time):
            row, position = batch.row_numbers[b], torch.tensor(t)
            u = {
                "token": lambda r=row, p=position: uniform(gate, r, p),
                "step": lambda r=row, p=position: uniform(gate, p),
                "sequence": lambda r=row, p=position: uniform(gate, r),
                "batch": lambda r=row, p=position: uniform(gate, torch.tensor(0)),
            }[kind]()
            keep[b, t] = bool(u < ratio) or not bool(batch.replaceable[b, t])
    return keep


def choose(logits: Tensor, draw: str, u: float) -> int:
    """One symbol: the argmax, or the inverse CDF of one uniform number by a plain running sum."""
    if draw == "greedy":
        return int(logits.argmax())
    probabilities = logits.softmax(-1).tolist()
    level, running = u * sum(probabilities), 0.0
    for symbol, p in enumerate(probabilities):
        running += p
        if running > level:
            return symbol
    raise AssertionError("unreachable: the level lies below the total")


def gumbel(logits: Tensor, key: int, row: Tensor, position: int) -> int:
    """One symbol by argmax(logits + Gumbel noise)."""
    symbols = range(len(logits))
    u = [float(uniform(key, row, torch.tensor(position), torch.tensor(v))) for v in symbols]
    noise = [-torch.log(-torch.log(torch.tensor(max(x, 2.0**-54), dtype=torch.float64))) for x in u]
    return max(symbols, key=lambda v: float(logits[v]) + float(noise[v]))


@torch.no_grad()
def full_prefix(model: Callable[[Batch], Tensor], batch: Batch, keep: Tensor, draw: str, key: int) -> Tensor:
    """The mixed history, position by position, with a full forward for every one of them."""
    history = batch.history.clone()
    for t in range(batch.time):
        outputs = model(batch.replace(history=history.clone()))
        for b in range(batch.size):
            if keep[b, t]:
                continue
            row, output = batch.row_numbers[b], outputs[b, t]
            u = float(uniform(key, row, torch.tensor(t)))
            if draw == "gumbel":
                history[b, t] = gumbel(output, key, row, t)
            elif draw.startswith("top "):
                best = sorted(range(len(output)), key=lambda v, x=output: -float(x[v]))[: int(draw[4:])]
                others = torch.tensor([v for v in range(len(output)) if v not in best])
                history[b, t] = choose(output.index_fill(0, others, -torch.inf), "sample", u)
            else:
                history[b, t] = choose(output, draw, u)
    return history


def bengio_loop(
    step: Callable[[Tensor | None, object], tuple[Tensor, object]], batch: Batch, keep: Tensor, draw: str, key: int
) -> tuple[Tensor, Tensor]:
    """The literal training loop with its graph: (mean loss, history); ``step(previous entry, state)``."""
    state, previous, losses, history = None, None, [], []
    for t in range(batch.time):
        logits, state = step(previous, state)
        logp = logits.log_softmax(-1)
        for b in range(batch.size):
            if batch.mask[b, t]:
                losses.append(-logp[b, batch.targets[b, t]])
        own = []
        for b in range(batch.size):
            u = float(uniform(key, batch.row_numbers[b], torch.tensor(t)))
            own.append(choose(logits[b].detach(), draw, u))
        previous = torch.where(keep[:, t], batch.history[:, t], torch.tensor(own))
        history.append(previous)
    return torch.stack(losses).sum() / len(losses), torch.stack(history, 1)


def gaussian_value(outputs: Tensor, width: int, key: int, row: Tensor, position: int) -> Tensor:
    """A sample of a Gaussian head at one position, number by number: Box and Muller's."""
    values = []
    for v in range(width):
        u1, u2 = (float(uniform(key, row, torch.tensor(position), torch.tensor(v), torch.tensor(n))) for n in (0, 1))
        scale = math.log1p(math.exp(float(outputs[width + v]))) + 1e-4
        values.append(float(outputs[v]) + scale * math.sqrt(-2 * math.log(1 - u1)) * math.cos(2 * math.pi * u2))
    return torch.tensor(values, dtype=outputs.dtype)


@torch.no_grad()
def full_prefix_values(
    model: Callable[[Batch], Tensor], batch: Batch, keep: Tensor, draw: str = "point", key: int = 0
) -> Tensor:
    """The mixed history, position by position, with a full forward for every one of them."""
    history, width = batch.history.clone(), batch.history.shape[2]
    for t in range(batch.time):
        outputs = model(batch.replace(history=history.clone()))
        for b in range(batch.size):
            if not keep[b, t]:
                output, row = outputs[b, t], batch.row_numbers[b]
                history[b, t] = gaussian_value(output, width, key, row, t) if draw == "gaussian" else output[:width]
    return history


def literal(
    model: Any, batch: Batch, share: Tensor, gradient: str | int, weights: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """(mean squared error, history) of values: one position, one row, one number at a time, with its graph.

    share: (batch, time), 1 where gold is fed, 0 where own is, anything between for a blend. gradient: "full", "none"
    (own entries are detached, states are not), or k (before each k-th position is reached both are detached). weights:
    (batch, time), 0 where a position carries no loss; default: the mask.
    """
    weights = batch.mask.double() if weights is None else weights
    state, previous = model.start(batch), None
    losses, count, history = [], 0.0, []
    for t in range(batch.time):
        if t > 0:
            if isinstance(gradient, int) and t % gradient == 0:
                state = model.detach(state) if hasattr(model, "detach") else state.detach()
                previous = previous.detach()
            state = model.step(state, model.embed(previous))
        output = model.output(state)
        for b in range(batch.size):
            if weights[b, t] > 0:
                for v in range(output.shape[1]):
                    if batch.present is not None and not batch.present[b, t, v]:
                        continue
                    losses.append(weights[b, t] * (output[b, v] - batch.targets[b, t, v]) ** 2)
                    count += float(weights[b, t])
        own, rows = output.detach() if gradient == "none" else output, []
        for b in range(batch.size):
            gold = float(share[b, t]) if bool(batch.replaceable[b, t]) else 1.0
            mixed = gold * batch.history[b, t] + (1 - gold) * own[b] if 0 < gold < 1 else None
            entry = mixed if mixed is not None else batch.history[b, t] if gold == 1.0 else own[b]
            if batch.present is not None and bool(batch.replaceable[b, t]):
                every = range(output.shape[1])
                entry = torch.stack([entry[v] if batch.present[b, t, v] else own[b, v] for v in every])
            rows.append(entry)
        previous = torch.stack(rows)
        history.append(previous)
    return torch.stack(losses).sum() / count, torch.stack(history, 1)
