"""The naive, obviously right loops, slow on purpose: only keys are shared with the library."""

from collections.abc import Callable

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
            row = batch.row_numbers[b]
            if draw == "gumbel":
                history[b, t] = gumbel(outputs[b, t], key, row, t)
            elif draw.startswith("top "):
                best = sorted(range(outputs.shape[-1]), key=lambda v: -float(outputs[b, t, v]))[: int(draw[4:])]
                others = [v for v in range(outputs.shape[-1]) if v not in best]
                u = float(uniform(key, row, torch.tensor(t)))
                history[b, t] = choose(outputs[b, t].index_fill(0, torch.tensor(others), -torch.inf), "sample", u)
            else:
                u = float(uniform(key, row, torch.tensor(t)))
                history[b, t] = choose(outputs[b, t], draw, u)
    return history


def bengio_loop(
    step: Callable[[Tensor | None, object], tuple[Tensor, object]], batch: Batch, keep: Tensor, draw: str, key: int
) -> tuple[Tensor, Tensor]:
    """The literal training loop with its graph: (mean loss, history); ``step(previous entry, state)``."""
    state: object = None
    previous: Tensor | None = None
    losses: list[Tensor] = []
    history: list[Tensor] = []
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
