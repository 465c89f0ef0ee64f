"""The passes of the approximate methods as their papers write them: nested loops, one entry at a time, keys shared."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from freerun.batch import Batch
from freerun.keys import fold, uniform
from freerun.models import RecurrentSeq2Seq
from freerun.models.rnn import cell_weights
from oracles import choose


def gumbels(key: int, row: Tensor, t: int, vocab: int) -> list[float]:
    """Gumbel noise of one entry."""
    numbers = [float(uniform(key, row, torch.tensor(t), torch.tensor(v))) for v in range(vocab)]
    return [-math.log(-math.log(max(u, 2.0**-54))) for u in numbers]


def bisected_sparsemax(logits: Tensor) -> Tensor:
    """max(z - tau, 0) with the tau at which it sums to 1, found by halving an interval (no gradient)."""
    low, high = float(logits.min()) - 1.0, float(logits.max())
    for _ in range(200):
        middle = (low + high) / 2
        if float((logits - middle).clamp_min(0).sum()) > 1:
            low = middle
        else:
            high = middle
    return (logits - low).clamp_min(0)


def support_sparsemax(logits: Tensor) -> Tensor:
    """The same with its gradient: on the support found by halving, z minus its mean plus an even share."""
    support = bisected_sparsemax(logits.detach()) > 1e-12
    tau = (logits[support].sum() - 1) / support.sum()
    return torch.where(support, logits - tau, torch.zeros_like(logits))


def weights(mix: str, logits: Tensor, noise: list[float], temperature: float, top_k: int) -> Tensor:
    """(vocab,) logits -> (vocab,) weights, with gradient."""
    vocab = len(logits)
    if mix == "sparsemax":
        return support_sparsemax(logits / temperature)
    if mix in ("gumbel_softmax", "straight_through"):
        logits = logits + torch.tensor(noise, dtype=logits.dtype)
    kept = range(vocab) if mix != "top_k" else sorted(range(vocab), key=lambda v: -float(logits[v].detach()))[:top_k]
    powers = {v: torch.exp(logits[v] / temperature) for v in kept}
    total = sum(powers.values())
    soft = torch.stack([powers[v] / total if v in powers else logits[v] * 0 for v in range(vocab)])
    if mix != "straight_through":
        return soft
    hard = torch.zeros_like(soft)
    hard[int(soft.argmax())] = 1.0
    return hard + soft - soft.detach()


def decoded(model: RecurrentSeq2Seq, batch: Batch, vectors: Tensor) -> Tensor:
    """The decoder unrolled by hand: the start vector, then (batch, time, width) vectors one by one."""
    state, gates = model.start(batch), cell_weights(model.decoder, 0).gates
    outputs = []
    for t in range(batch.time):
        outputs.append(model.output(state))
        state = model.step(state, gates(vectors[:, t]))
    return torch.stack(outputs, 1)


def cross_entropy(outputs: Tensor, batch: Batch) -> Tensor:
    """Mean over the positions that count, one by one."""
    logp = outputs.log_softmax(-1)
    losses = [
        -logp[b, t, batch.targets[b, t]] for b in range(batch.size) for t in range(batch.time) if batch.mask[b, t]
    ]
    return torch.stack(losses).mean()


def two_pass(
    model: RecurrentSeq2Seq, batch: Batch, keep: Tensor, draw_key: int, mix: str, *, temperature: float = 1.0,
    top_k: int = 5, gradient: str = "none", gold_weight: float = 0.0,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """(loss, second pass's inputs (batch, time, width)): both passes literally, with their graph."""
    table = model.embedding.weight
    gold = table[batch.history]
    first = decoded(model, batch, gold)
    inputs = []
    for b in range(batch.size):
        row = []
        for t in range(batch.time):
            if keep[b, t]:
                row.append(gold[b, t])
                continue
            logits = first[b, t] if gradient == "full" else first[b, t].detach()
            if mix in ("argmax", "sample"):
                u = float(uniform(draw_key, batch.row_numbers[b], torch.tensor(t)))
                row.append(table[choose(logits / temperature, "greedy" if mix == "argmax" else "sample", u)])
            else:
                noise = gumbels(draw_key, batch.row_numbers[b], t, len(logits))
                row.append(weights(mix, logits, noise, temperature, top_k) @ table)
        inputs.append(torch.stack(row))
    vectors = torch.stack(inputs)
    loss = cross_entropy(decoded(model, batch, vectors), batch)
    return (loss + gold_weight * cross_entropy(first, batch) if gold_weight else loss), vectors


@torch.no_grad()
def parallel(
    model: Callable[[Batch], Tensor], batch: Batch, ratio: float, passes: int, *, redraw: bool, draw: str,
    key: int, step: int,
) -> Tensor:  # fmt: skip
    """The history after k passes: pass n leaves the first n eligible entries of each row as they are."""
    history = batch.history.clone()
    for n in range(passes):
        n_of_keys = n if redraw else 0
        keep = coin_table(batch, ratio, pass_key(key, "gate", step, n_of_keys))
        draw_key = pass_key(key, "draw", step, n_of_keys)
        outputs = model(batch.replace(history=history.clone()))
        for b in range(batch.size):
            seen = 0
            for t in range(batch.time):
                if not batch.replaceable[b, t]:
                    continue
                seen += 1
                if seen <= n:
                    continue
                u = float(uniform(draw_key, batch.row_numbers[b], torch.tensor(t)))
                history[b, t] = batch.history[b, t] if keep[b, t] else choose(outputs[b, t], draw, u)
    return history


def pass_key(key: int, label: str, step: int, n: int) -> int:
    """Pass 0 has the key of scheduled sampling, later ones another."""
    return fold(key, label, step) if n == 0 else fold(fold(key, label, step), n)


def coin_table(batch: Batch, ratio: float, gate_key: int) -> Tensor:
    """keep for a gate key, one coin at a time."""
    keep = torch.ones(batch.size, batch.time, dtype=torch.bool)
    for b in range(batch.size):
        for t in range(batch.time):
            keep[b, t] = bool(uniform(gate_key, batch.row_numbers[b], torch.tensor(t)) < ratio)
    return keep | ~batch.replaceable


@torch.no_grad()
def sequential_redrawn(
    model: Callable[[Batch], Tensor], batch: Batch, ratio: float, *, draw: str, key: int, step: int
) -> Tensor:
    """Sequential scheduled sampling in which the n-th eligible entry of a row has the coin and number of pass n."""
    history = batch.history.clone()
    for t in range(batch.time):
        outputs = model(batch.replace(history=history.clone()))
        for b in range(batch.size):
            if not batch.replaceable[b, t]:
                continue
            n = int(batch.replaceable[b, :t].sum())
            row, position = batch.row_numbers[b], torch.tensor(t)
            if bool(uniform(pass_key(key, "gate", step, n), row, position) < ratio):
                continue
            history[b, t] = choose(outputs[b, t], draw, float(uniform(pass_key(key, "draw", step, n), row, position)))
    return history


def unlikelihood(outputs: Tensor, batch: Batch, alpha: float) -> Tensor:
    """Mean over the positions that count, each penalised for every symbol that counted before it and is not its own."""
    p, total, count = outputs.softmax(-1), outputs.new_zeros(()), outputs.new_zeros(())
    for b in range(batch.size):
        seen: set[int] = set()
        for t in range(batch.time):
            if not batch.mask[b, t]:
                continue
            target, weight = int(batch.targets[b, t]), 1.0 if batch.weights is None else float(batch.weights[b, t])
            loss = -p[b, t, target].log()
            for symbol in seen - {target}:
                loss = loss - alpha * (1 - p[b, t, symbol]).log()
            total, count = total + weight * loss, count + weight
            seen.add(target)
    return total / count
