"""From logits to the symbol that is fed back: greedy, sample (temperature, top-k, top-p)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from freerun.arguments import Arguments, is_number
from freerun.draws.base import Noiseless, show
from freerun.errors import UserError, whole
from freerun.keys import uniform

__all__ = ["Greedy", "Sample"]


@dataclass(frozen=True, repr=False)
class Greedy(Noiseless):
    """The most probable symbol, ``argmax_v outputs[v]``; ties go to the lowest id.

    >>> Greedy().choose(torch.tensor([[0.1, 2.0, 2.0]]), None)
    tensor([1])
    """

    values: ClassVar[bool] = False

    __repr__ = show

    def choose(self, outputs: Tensor, noise: Tensor | None) -> Tensor:
        """(n, vocab) logits -> (n,) ids."""
        return outputs.argmax(-1)


@dataclass(frozen=True, repr=False)
class Sample(Arguments):
    """A symbol drawn from ``softmax(outputs / temperature)``, optionally truncated to top-k and top-p.

    Args:
        temperature: > 0; below 1 sharpens.
        top_k: only the k most probable symbols (0: all).
        top_p: only the smallest set of most probable symbols whose mass reaches p, in (0, 1].
        coupling: how noise becomes a choice. ``"inverse_cdf"``: one uniform number an entry, cheap in a
            sequential loop; ``"gumbel"``: ``argmax(logits + Gumbel noise)``, a number a symbol, robust when a
            prediction moves a little between parallel passes. The law is the same.

    Raises:
        UserError: for arguments outside their range.

    >>> draw = Sample(top_k=1)
    >>> rows = positions = torch.tensor([0])
    >>> draw.choose(torch.tensor([[0.1, 2.0, 1.0]]), draw.noise(0, rows, positions, 3))
    tensor([1])
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    coupling: str = "inverse_cdf"

    values: ClassVar[bool] = False

    __repr__ = show

    def __post_init__(self) -> None:
        problems: list[str] = []
        if not is_number(self.temperature) or self.temperature <= 0:
            given = f"{self.temperature!r}"
            problems.append(f"temperature must be above 0; got {given}: for the argmax use draw='greedy'")
        if whole(self.top_k) is None or self.top_k < 0:
            problems.append(f"top_k must be 0 (all symbols) or more, a whole number; got {self.top_k!r}")
        if not is_number(self.top_p) or not 0 < self.top_p <= 1:
            problems.append(f"top_p must lie in (0, 1]; got {self.top_p!r}")
        if self.coupling not in ("inverse_cdf", "gumbel"):
            problems.append(f"coupling must be 'inverse_cdf' or 'gumbel'; got {self.coupling!r}")
        if problems:
            raise UserError(problems)

    def noise_size(self, vocab: int) -> int:
        """1 for the inverse CDF, a number a symbol for Gumbel noise."""
        return 1 if self.coupling == "inverse_cdf" else vocab

    def noise(self, key: int, rows: Tensor, positions: Tensor, vocab: int) -> Tensor | None:
        """(n,) uniforms or (n, vocab) Gumbel noise for entries at (rows, positions), float64."""
        if self.coupling == "inverse_cdf":
            return uniform(key, rows, positions)
        symbols = torch.arange(vocab, device=rows.device)
        u = uniform(key, rows[:, None], positions[:, None], symbols)
        # u = 0 has probability 2^-53 a number and would give -inf: the smallest positive step stands in
        return -(-u.clamp_min(2.0**-54).log()).log()

    def choose(self, outputs: Tensor, noise: Tensor | None) -> Tensor:
        """(n, vocab) logits and noise -> (n,) ids."""
        assert noise is not None
        logits = self._truncate(outputs.float() if outputs.dtype in (torch.bfloat16, torch.float16) else outputs)
        if self.coupling == "gumbel":
            return (logits + noise.to(logits.dtype)).argmax(-1)
        return _inverse_cdf(logits, noise)

    def _truncate(self, logits: Tensor) -> Tensor:
        if self.temperature != 1.0:
            logits = logits / self.temperature
        if 0 < self.top_k < logits.shape[-1]:
            # by index, so that ties at the edge do not let more than k in
            dropped = torch.ones_like(logits, dtype=torch.bool).scatter_(-1, logits.topk(self.top_k, -1).indices, False)
            logits = logits.masked_fill(dropped, -torch.inf)
        if self.top_p < 1.0:
            ordered, order = torch.sort(logits, dim=-1, descending=True, stable=True)
            before = ordered.softmax(-1).cumsum(-1) - ordered.softmax(-1)
            dropped = torch.zeros_like(before, dtype=torch.bool).scatter(-1, order, before >= self.top_p)
            logits = logits.masked_fill(dropped, -torch.inf)
        return logits


_BLOCK = 64


def _inverse_cdf(logits: Tensor, noise: Tensor) -> Tensor:
    """The first symbol whose cumulated probability exceeds ``noise * total``; never one of probability 0."""
    mass = logits.softmax(-1)
    vocab = mass.shape[-1]
    if vocab < 1024:
        cumulated = mass.cumsum(-1)
        level = _level(noise, cumulated[:, -1:])
        # NaN logits lie beyond every symbol: the last one stands in, and the loss reports the NaN
        return torch.searchsorted(cumulated, level, right=True).squeeze(-1).clamp_max(vocab - 1)
    # one scan over blocks and one inside a block: several times cheaper than one long cumsum
    padded = torch.nn.functional.pad(mass, (0, -vocab % _BLOCK)).view(mass.shape[0], -1, _BLOCK)
    blocks = padded.sum(-1).cumsum(-1)
    level = _level(noise, blocks[:, -1:])
    block = torch.searchsorted(blocks, level, right=True).clamp_max(blocks.shape[1] - 1)
    before = torch.where(block > 0, blocks.gather(1, (block - 1).clamp_min(0)), 0)
    chosen = padded.gather(1, block[..., None].expand(-1, -1, _BLOCK))[:, 0]
    inside = chosen.cumsum(-1)
    # the block's own sum and its scan may differ in the last bit: stay below the scan's end
    within = torch.minimum(level - before, _below(inside[:, -1:]))
    return (block * _BLOCK + torch.searchsorted(inside, within, right=True)).squeeze(-1).clamp_max(vocab - 1)


def _below(total: Tensor) -> Tensor:
    return torch.nextafter(total, torch.zeros_like(total))


def _level(noise: Tensor, total: Tensor) -> Tensor:
    # rounding noise to a narrower type may give 1.0, and the level must stay below the total: the largest number
    # below 1, times the total, does so for every total in either type
    largest = 1.0 - torch.finfo(total.dtype).eps / 2
    return noise.to(total.dtype).clamp_max(largest)[:, None] * total
