"""Divergences of predictions, and how errors accumulate on the contexts that a model makes itself."""

from __future__ import annotations

import torch
from torch import Tensor

from freerun.arguments import OneOf
from freerun.batch import must_be
from freerun.errors import UserError

DIVERGENCES = ("forward", "reverse", "total_variation", "jensen_shannon")


def divergence(oracle: Tensor, model: Tensor, kind: str = "forward") -> Tensor:
    """Divergence of two predictions at each position: (...,) float64, in nats (total variation: 0 to 1).

    ``forward``: ``KL(oracle || model)``; ``reverse``: ``KL(model || oracle)``; ``total_variation``:
    ``sum |o - m| / 2``; ``jensen_shannon``: the mean KL of both to ``(o + m) / 2``.

    Args:
        oracle: (..., vocab) logits or log-probabilities of the oracle.
        model: (..., vocab) of the model.
        kind: see above. Forward is what the code of Arora et al. 2022 computes.

    Raises:
        UserError: shapes that differ, or an unknown kind.

    >>> a, b = torch.tensor([[0.5, 0.5]]).log(), torch.tensor([[0.25, 0.75]]).log()
    >>> divergence(a, b).round(decimals=4), divergence(a, b, "total_variation")
    (tensor([0.1438], dtype=torch.float64), tensor([0.2500], dtype=torch.float64))
    """
    OneOf(DIVERGENCES).check(kind=kind)
    must_be("", "real", oracle=oracle, model=model)
    if oracle.shape != model.shape or oracle.dim() < 1:
        raise UserError(
            f"oracle and model must both be (..., vocab) over the same symbols; got {tuple(oracle.shape)} and "
            f"{tuple(model.shape)}"
        )
    o, m = oracle.double().log_softmax(-1), model.double().log_softmax(-1)
    if kind == "total_variation":
        return (o.exp() - m.exp()).abs().sum(-1) / 2
    if kind == "jensen_shannon":
        middle = torch.logaddexp(o, m) - torch.log(torch.tensor(2.0, dtype=torch.float64))
        return (_kl(o, middle) + _kl(m, middle)) / 2
    return _kl(o, m) if kind == "forward" else _kl(m, o)


def _kl(p: Tensor, q: Tensor) -> Tensor:
    # what p gives no probability adds nothing, whatever q has there
    terms = p.exp() * (p - q)
    return torch.where(p == -torch.inf, 0.0, terms).sum(-1).clamp_min(0.0)


def accumulated_error(own: Tensor, gold: Tensor) -> Tensor:
    """AccErr at every length l: error on the model's own contexts up to l, over the error of one step on the oracle's.

    ``AccErr(l) = R(l) / eps(l)``, ``R(l) = sum_{t <= l} own[t]``, ``eps(l) = (1 / l) sum_{t <= l} gold[t]``: l where
    errors do not accumulate. Where neither has an error, AccErr is l.

    Args:
        own: (..., T) expected divergence at each position, on contexts that the model generated.
        gold: (..., T) on contexts of the oracle.

    >>> accumulated_error(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([1.0, 1.0, 1.0]))
    tensor([1., 3., 6.], dtype=torch.float64)

    Arora, El Asri, Bahuleyan, Cheung 2022 (arXiv:2204.01171).
    """
    length = torch.arange(1, own.shape[-1] + 1, dtype=torch.float64, device=own.device)
    return length * (1 + excess_accumulated_error(own, gold) / 100)


def excess_accumulated_error(own: Tensor, gold: Tensor) -> Tensor:
    """ExAccErr at every length l, in percent: 0 where errors do not accumulate.

    ``ExAccErr(l) = 100 (R(l) - l eps(l)) / (l eps(l))``, see ``accumulated_error``. Negative where the model does
    better on its own contexts; infinite where it has errors on them only; 0 where it has none at all.

    >>> excess_accumulated_error(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([1.0, 1.0, 1.0]))
    tensor([  0.,  50., 100.], dtype=torch.float64)

    What it is not: a measure of quality. It is relative to the model's own error on gold contexts.
    """
    must_be("", "real", own=own, gold=gold)
    if own.shape != gold.shape:
        raise UserError(f"own and gold must be of one shape (..., T); got {tuple(own.shape)} and {tuple(gold.shape)}")
    r, expected = own.double().cumsum(-1), gold.double().cumsum(-1)
    none = (r.abs() <= _ROUNDING) & (expected.abs() <= _ROUNDING)
    return torch.where(none, 0.0, 100 * (r / expected - 1))


_ROUNDING = 1e-12
"""Nats: less is no error but rounding."""
