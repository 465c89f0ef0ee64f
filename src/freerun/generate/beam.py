"""Beam search, length-synchronous, with a pool of finished hypotheses."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from freerun.brief import brief
from freerun.generate.walk import Walk, log_probs

__all__ = ["Ask", "Generated", "beam_search"]


@dataclass(frozen=True, eq=False)
class Generated:
    """What a model said on its own.

    Args:
        entries: (batch, length) ids, ``end`` from the end on; (batch, n_best, length) where ``n_best > 1``,
            best first; (batch, length, value) for values.
        lengths: (batch,) or (batch, n_best) int64: entries before the end symbol; ``length`` where none came.
        scores: (batch,) or (batch, n_best): log-probability of the entries, the end symbol included, under
            the model itself (no temperature, truncation or length penalty in it); 0 for values. Where the
            model allows fewer than n_best hypotheses, the missing ones have length 0 and score -inf.
    """

    __repr__ = brief

    entries: Tensor
    lengths: Tensor
    scores: Tensor


@dataclass(frozen=True)
class Ask:
    """What is asked for; the fields are the arguments of ``generate``."""

    __repr__ = brief

    length: int
    end: int | None
    beams: int
    length_penalty: float
    n_best: int

    def rank(self, scores: Tensor, length: int) -> Tensor:
        """What beams are compared by: scores / ((5 + length) / 6) ** length_penalty."""
        return scores / ((5 + length) / 6) ** self.length_penalty


class _Pool:
    """The best hypotheses so far, finished or cut at the length; ``beams`` a row, best first."""

    def __init__(self, size: int, ask: Ask, like: Tensor) -> None:
        self.ask = ask
        self.rank = like.new_full((size, ask.beams), -torch.inf)
        self.scores = self.rank.clone()
        self.lengths = torch.zeros(size, ask.beams, dtype=torch.int64, device=like.device)
        fill = 0 if ask.end is None else ask.end
        self.entries = self.lengths.new_full((size, ask.beams, ask.length), fill)

    def add(self, rows: Tensor, entries: Tensor, scores: Tensor, made: int, length: int) -> None:
        """Hypotheses of rows ((n,)): entries (n, k, length), scores (n, k), -inf where there is none.

        ``made`` entries were scored (the end symbol included), ``length`` of them come before the end.
        """
        rank = torch.cat([self.rank[rows], self.ask.rank(scores, made)], 1)
        # stable: among equals the earlier found stays
        best = rank.sort(dim=1, descending=True, stable=True).indices[:, : self.ask.beams]
        lengths = torch.full(scores.shape, length, device=scores.device)
        self.rank[rows] = rank.gather(1, best)
        self.scores[rows] = torch.cat([self.scores[rows], scores], 1).gather(1, best)
        self.lengths[rows] = torch.cat([self.lengths[rows], lengths], 1).gather(1, best)
        both = torch.cat([self.entries[rows], entries], 1)
        self.entries[rows] = both.gather(1, best[..., None].expand(-1, -1, both.shape[2]))

    def settled(self, rows: Tensor, best: Tensor) -> Tensor:
        """(n,) bool: the best still alive (scores (n,)) cannot enter the n_best any more.

        A pool that is merely full is no reason to stop: what is alive may be far more probable.
        """
        reachable = self.ask.rank(best, self.ask.length)  # a score only falls, the divisor only grows
        return reachable <= self.rank[rows, self.ask.n_best - 1]

    def result(self) -> Generated:
        """The n_best of each row; without the hypothesis axis for one."""
        best = self.ask.n_best
        parts = (self.entries[:, :best], self.lengths[:, :best], self.scores[:, :best])
        return Generated(*(part[:, 0] if best == 1 else part for part in parts))


def beam_search(walk: Walk, size: int, ask: Ask) -> Generated:
    """The ``n_best`` hypotheses of each row; rows that are done leave the model at once.

    Args:
        walk: the model at position 0, one state a row.
        size: rows.
        ask: what is asked for; ``beams`` at least 2 (one is greedy).
    """
    predicted = log_probs(walk.predict(), ask.end)
    pool = _Pool(size, ask, predicted)
    rows = torch.arange(size, device=predicted.device)
    entries = pool.entries[:, :1].clone()  # (rows, alive, length)
    alive = predicted.new_zeros(size, 1)  # their scores; -inf: none
    for t in range(ask.length):
        if t > 0:
            predicted = log_probs(walk.predict(), ask.end)
        width, vocab = alive.shape[1], predicted.shape[1]
        continued = (alive[:, :, None] + predicted.view(-1, width, vocab)).flatten(1)
        scores, places = _top(continued, min(2 * ask.beams, width * vocab))
        parents, symbols = places // vocab, places % vocab
        reached = entries.gather(1, parents[..., None].expand(-1, -1, ask.length))
        reached[:, :, t] = symbols
        ends = torch.zeros_like(symbols, dtype=torch.bool) if ask.end is None else symbols == ask.end
        first = torch.arange(scores.shape[1], device=scores.device) < ask.beams
        pool.add(rows, reached, scores.masked_fill(~(ends & first), -torch.inf), t + 1, t)
        # the best that go on; where fewer do, the rest is dead weight of score -inf
        onward = scores.masked_fill(ends, -torch.inf)
        alive, slots = (part[:, : ask.beams] for part in onward.sort(dim=1, descending=True, stable=True))
        parents, symbols = parents.gather(1, slots), symbols.gather(1, slots)
        entries = reached.gather(1, slots[..., None].expand(-1, -1, ask.length))
        if t + 1 == ask.length:
            pool.add(rows, entries, alive, ask.length, ask.length)
            break
        going = (~pool.settled(rows, alive[:, 0])).nonzero().squeeze(1)
        if going.numel() == 0:
            break
        states = (going[:, None] * width + parents[going]).flatten()
        walk.advance(symbols[going].flatten(), states)
        rows, alive, entries = rows[going], alive[going], entries[going]
    return pool.result()


def _top(scores: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The ``count`` highest of each row, falling, and their places; among equals the lowest place first.

    ``topk`` leaves the order of equals open, and a stable sort of everything is several times slower.
    """
    lowest = scores.topk(count).values[:, -1:]
    above, equal = scores > lowest, scores == lowest
    room = count - above.sum(1, keepdim=True)
    places = (above | (equal & (equal.cumsum(1) <= room))).nonzero()[:, 1].view(-1, count)
    values, order = scores.gather(1, places).sort(dim=1, descending=True, stable=True)
    return values, places.gather(1, order)
