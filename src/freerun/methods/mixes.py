"""What stands for the model's own output in a second pass: a symbol, or a weighted mixture of looked-up symbols."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from freerun import draws
from freerun.arguments import is_number
from freerun.errors import UserError
from freerun.rollin import can, hint
from freerun.types import Embedder

__all__ = ["HARD", "MIXES", "Mix", "sparsemax"]

HARD = ("argmax", "sample")
MIXES = (*HARD, "top_k", "expected", "gumbel_softmax", "straight_through", "sparsemax")
_RANDOM = ("gumbel_softmax", "straight_through")


@dataclass(frozen=True)
class Mix:
    """From a prediction to what is fed: ``sum_v w_v e(v)`` with weights w >= 0 that sum to 1.

    With z the logits, T the temperature and g Gumbel noise the weights are: ``argmax`` and ``sample``: one symbol;
    ``expected``: softmax(z / T); ``top_k``: the same over the k largest; ``sparsemax``: sparsemax(z / T);
    ``gumbel_softmax``: softmax((z + g) / T); ``straight_through``: the argmax of z + g, with gumbel_softmax's gradient.

    Args:
        kind: one of ``MIXES``.
        temperature: T > 0 (the paper's alpha is 1 / T).
        top_k: k of ``top_k``.

    >>> Mix("top_k", top_k=2).weights(torch.tensor([[1.0, 1.0, 0.0]]), None)
    tensor([[0.5000, 0.5000, 0.0000]])
    """

    kind: str
    temperature: float = 1.0
    top_k: int = 5

    def problems(self) -> list[str]:
        """What is wrong with it, a line each."""
        found: list[str] = []
        if self.kind not in MIXES:
            found.append(f"mix must be one of {', '.join(MIXES)}; got {self.kind!r}")
        if not is_number(self.temperature) or self.temperature <= 0:
            found.append(f"temperature must be above 0; got {self.temperature!r}")
        elif self.kind == "argmax" and self.temperature != 1:
            found.append("temperature has no effect with mix='argmax'; leave it out")
        if isinstance(self.top_k, bool) or not isinstance(self.top_k, int) or self.top_k < 1:
            found.append(f"top_k must be at least 1, a whole number; got {self.top_k}")
        elif self.kind != "top_k" and self.top_k != 5:
            found.append(f"top_k has no effect with mix={self.kind!r}; leave it out")
        return found

    def refuse(self, model: Any) -> None:
        """Raise UserError where a mixture of symbols is to be fed to a model that takes ids only."""
        if self.kind not in HARD and not can(model, Embedder):
            raise UserError(
                f"mix={self.kind!r} feeds mixtures of symbols, which needs a model with lookup and outputs_from; "
                f"{type(model).__name__} takes ids only: use mix='argmax' or 'sample', or add the two methods"
                f"{hint(model, Embedder)}"
            )

    @property
    def draw(self) -> draws.Draw:
        """The draw that gives the symbol fed (hard mixes), or the one of largest weight."""
        if self.kind == "sample":
            return draws.Sample(self.temperature)
        return draws.Sample(coupling="gumbel") if self.kind in _RANDOM else draws.Greedy()

    def weights(self, logits: Tensor, noise: Tensor | None) -> Tensor:
        """(n, vocab) logits, and Gumbel noise for the random ones -> (n, vocab) weights; not for hard mixes."""
        logits = _wide(logits)
        if self.kind == "top_k":
            values, symbols = self._largest(logits)
            return torch.zeros_like(logits).scatter(-1, symbols, values)
        if self.kind == "sparsemax":
            return sparsemax(logits / self.temperature)
        if noise is not None:
            logits = logits + noise.to(logits.dtype)
        return (logits / self.temperature).softmax(-1)

    def vectors(self, model: Embedder, logits: Tensor, noise: Tensor | None) -> Tensor:
        """(n, vocab) logits -> (n, width): what is fed in the place of a symbol's lookup."""
        if self.kind == "top_k":
            values, symbols = self._largest(_wide(logits))
            return torch.einsum("nk,nkw->nw", *_alike(values, model.lookup(symbols)))
        weights = self.weights(logits, noise)
        weights, table = _alike(weights, model.lookup(torch.arange(logits.shape[-1], device=logits.device)))
        if self.kind != "straight_through":
            return weights @ table
        assert noise is not None
        # exactly the symbol in value: the second term is zero, and carries the gradient
        return model.lookup(self.draw.choose(logits, noise)) + (weights - weights.detach()) @ table

    def _largest(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        values, symbols = logits.topk(min(self.top_k, logits.shape[-1]), -1)
        return (values / self.temperature).softmax(-1), symbols


def sparsemax(logits: Tensor) -> Tensor:
    """The point of the probability simplex nearest to the logits: ``max(z - tau, 0)``, summing to 1.

    Args:
        logits: (..., vocab).

    Reference: Martins and Astudillo 2016, arXiv:1602.02068.

    >>> sparsemax(torch.tensor([1.0, 0.5, -1.0]))
    tensor([0.7500, 0.2500, 0.0000])
    """
    logits = logits - logits.detach().amax(-1, keepdim=True)
    ordered = logits.sort(-1, descending=True).values
    cumulated = ordered.cumsum(-1)
    count = torch.arange(1, logits.shape[-1] + 1, device=logits.device, dtype=logits.dtype)
    # NaN supports nothing: it goes through, and the loss reports it
    support = (1 + count * ordered > cumulated).sum(-1, keepdim=True).clamp_min(1)
    return (logits - (cumulated.gather(-1, support - 1) - 1) / support).clamp_min(0)


def _wide(logits: Tensor) -> Tensor:
    return logits.float() if logits.dtype in (torch.bfloat16, torch.float16) else logits


def _alike(weights: Tensor, vectors: Tensor) -> tuple[Tensor, Tensor]:
    return weights.to(vectors.dtype), vectors
