"""Distillation as its paper writes it: probabilities, one position at a time."""

import torch
from torch import Tensor

from freerun.batch import Batch


def kl(p: Tensor, q: Tensor) -> Tensor:
    """sum p log p / q over the symbols that p has."""
    return sum((p[v] * (p[v].log() - q[v].log()) for v in range(len(p)) if float(p[v].detach()) > 0), p.new_zeros(()))


def generalised_jsd(student: Tensor, teacher: Tensor, beta: float, temperature: float = 1.0) -> Tensor:
    """The divergence of two vectors of logits."""
    s, t = (torch.exp(logits / temperature) / torch.exp(logits / temperature).sum() for logits in (student, teacher))
    if beta in (0, 1):
        return kl(t, s) if beta == 0 else kl(s, t)
    mixed = beta * t + (1 - beta) * s
    return beta * kl(t, mixed) + (1 - beta) * kl(s, mixed)


def distilled(student: Tensor, teacher: Tensor, batch: Batch, beta: float, temperature: float = 1.0) -> Tensor:
    """The mean over the positions that count."""
    total, count = student.new_zeros(()), 0.0
    for b in range(batch.size):
        for t in range(batch.time):
            if bool(batch.mask[b, t]):
                weight = 1.0 if batch.weights is None else float(batch.weights[b, t])
                total = total + weight * generalised_jsd(student[b, t], teacher[b, t], beta, temperature)
                count += weight
    return total / count
