"""What each position should predict on the history that is fed: gold, or what completes that history best."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Protocol

import torch
from torch import Tensor

from freerun.arguments import Arguments, at_least, nearest, refused
from freerun.batch import Batch, shape_of
from freerun.errors import UserError


class Target(Protocol):
    """(batch, history) -> what each position should predict.

    ``batch`` has gold targets; ``history`` (batch, time) or (batch, time, value) is what is fed.
    For ids the result is (batch, time) ids, below 0 where a position shall carry no loss, or (batch, time, n) shares
    of the first n ids, real numbers of at least 0 or bool, which are divided by their sum; a position without any
    carries no loss, and the loss is the divergence KL(shares || model). For values it is (batch, time, value), NaN
    where a position, or with ``present`` a value, shall carry none. Positions outside the mask carry none in any case.
    """

    def __call__(self, batch: Batch, history: Tensor) -> Tensor: ...


def completion_costs(entries: Tensor, gold: Tensor, lengths: Tensor) -> Tensor:
    """Edit distances between all prefixes of the entries and all prefixes of gold.

    ``d(i, j) = min(d(i-1, j) + 1, d(i, j-1) + 1, d(i-1, j-1) + [entries_i != gold_j])``

    Args:
        entries: (rows, time) ids.
        gold: (rows, n) ids.
        lengths: (rows,) how many of gold count; distances to longer prefixes are 2**30.

    Returns:
        (rows, time + 1, n + 1) int64.

    >>> completion_costs(torch.tensor([[1, 3]]), torch.tensor([[1, 2]]), torch.tensor([2]))
    tensor([[[0, 1, 2],
             [1, 0, 1],
             [2, 1, 1]]])
    """
    width = gold.shape[1] + 1
    at = torch.arange(width, device=gold.device)
    row = at.expand(len(gold), -1)
    rows = [row]
    for entry in entries.unbind(1):
        swapped = row[:, :-1] + (gold != entry[:, None])
        best = torch.cat([row[:, :1] + 1, torch.minimum(swapped, row[:, 1:] + 1)], 1)
        # an insertion costs 1 a step to the right: the least of best[k] + (j - k) over k <= j
        row = (best - at).cummin(1).values + at
        rows.append(row)
    return torch.stack(rows, 1).masked_fill(at > lengths[:, None, None], 2**30)


def optimal_completions(entries: Tensor, gold: Tensor, lengths: Tensor) -> Tensor:
    """The entries of gold that begin a completion of least edit distance after each prefix.

    ``{gold_{j+1}: d(i, j) = min_k d(i, k)}``, j up to the last entry of gold, which is the end symbol: an end is
    optimal where no more entries are needed.

    Args:
        entries: (rows, time) ids, without the end symbol.
        gold: (rows, n) ids, each row's end symbol its last.
        lengths: (rows,) how many of gold count, the end included.

    Returns:
        (rows, time + 1, n) bool: after i entries, whether gold's entry j is one.

    >>> optimal_completions(torch.tensor([[1, 3]]), torch.tensor([[1, 2, 0]]), torch.tensor([3])).long()
    tensor([[[1, 0, 0],
             [0, 1, 0],
             [0, 1, 1]]])

    After 1, 3 both a 2 and the end (3 for the 2) leave one edit.
    """
    costs = completion_costs(entries, gold[:, :-1], lengths - 1)
    return costs == costs.min(2, keepdim=True).values


@dataclass(frozen=True, repr=False)
class OptimalCompletion(Arguments):
    """Uniform over the symbols that begin a completion of least total edit distance.

    ``target_t = uniform{y_{j+1}: d(h_<t, y_<=j) = min_k d(h_<t, y_<=k)}``, d the edit distance, y a row's counted
    targets, of which the last is the end symbol. Where the history is a prefix of y it is y_t alone.

    Args:
        end: id of the end symbol, which the last counted target of each row must be; None: whichever that is. An end
            in the history ends the row, and positions after it carry no loss.

    Raises:
        UserError: targets that are values; counted positions of a row with others between them; a row of which not the
            last counted target, and it alone, is the end symbol; ``horizon`` or ``loss_on``, which cut rows.

    Reference: Sabour, Chan and Norouzi 2019, Optimal completion distillation for sequence learning, ICLR,
    arXiv:1810.01398.

    What it is not: a method: it says nothing about the history.

    >>> y = torch.tensor([[1, 2, 0]])
    >>> optimal_completion(end=0)(Batch(y), torch.tensor([[1, 3, 2]])).long()
    tensor([[[0, 1, 0],
             [0, 0, 1],
             [1, 0, 1]]])
    """

    end: int | None = at_least(0, None)

    def __repr__(self) -> str:
        return f"optimal_completion({'' if self.end is None else f'end={self.end}'})"

    def __call__(self, batch: Batch, history: Tensor) -> Tensor:
        """(batch, time, n) bool, n one more than the largest id of the targets."""
        gold, lengths = self.gold(batch)
        start = batch.mask.long().argmax(1)
        at = (start[:, None] + torch.arange(gold.shape[1], device=gold.device)).clamp_max(batch.time - 1)
        ends = gold.gather(1, (lengths - 1).clamp_min(0)[:, None])
        found = completion_shares(history.gather(1, at), gold, lengths, ends)
        shares = found.new_zeros(batch.size, batch.time, found.shape[2])
        shares[batch.mask] = found[torch.arange(gold.shape[1], device=gold.device) < lengths[:, None]]
        return shares

    def gold(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """(batch, n) the counted targets of each row, and (batch,) their numbers; each row's last is the end symbol."""
        if not batch.is_discrete:
            raise UserError("optimal completions are of symbols, and these targets are values: take another target")
        gold, lengths = counted_rows(batch)
        last = gold.gather(1, (lengths - 1).clamp_min(0)[:, None])
        before = torch.arange(gold.shape[1], device=gold.device) < lengths[:, None] - 1
        inside = (gold == (last if self.end is None else self.end)) & before
        wrong = inside if self.end is None else (last != self.end) & (lengths > 0)[:, None]
        rows = wrong.any(1).nonzero().flatten().tolist()
        if rows:
            found = f"{int(last[rows[0]])}" + (", which stands in it before" if self.end is None else "")
            raise UserError(
                f"the last counted target of {len(rows)} rows is not the end symbol"
                f"{'' if self.end is None else f' {self.end}'}; row {rows[0]} ends with {found}: count the end in "
                "mask, or pass the id that ends rows as end"
            )
        if rows := inside.any(1).nonzero().flatten().tolist():
            raise UserError(
                f"the end symbol {self.end} stands before the last counted target of {len(rows)} rows, first of row "
                f"{rows[0]}, and no run goes on after it: count each row to its first end only"
            )
        return gold, lengths


def completion_shares(entries: Tensor, gold: Tensor, lengths: Tensor, ends: Tensor | int) -> Tensor:
    """(rows, time, n) bool: what each of the entries (rows, time) should have been; none after an end, (rows, 1)."""
    begins = optimal_completions(entries[:, :-1], gold, lengths)
    width = max(int(gold.max()), 0) + 1
    found = begins.new_zeros(*begins.shape[:2], width, dtype=torch.int8)
    found = found.scatter_reduce(2, gold[:, None].expand_as(begins), begins.to(torch.int8), "amax").bool()
    found[:, 1:] &= ~(entries == ends).cummax(1).values[:, :-1, None]
    return found


def counted_rows(batch: Batch) -> tuple[Tensor, Tensor]:
    """The counted targets of each row, side by side: (batch, n) ids, 0 after a row's last; (batch,) their numbers.

    Raises:
        UserError: a row has positions that do not count between others that do.
    """
    mask = batch.mask
    lengths, start = mask.sum(1), mask.long().argmax(1)
    index = torch.arange(max(int(lengths.max()), 1), device=mask.device)
    there, at = index < lengths[:, None], (start[:, None] + index).clamp_max(batch.time - 1)
    gaps = (there & ~mask.gather(1, at)).any(1).nonzero().flatten().tolist()
    if gaps:
        raise UserError(
            f"row {gaps[0]} has positions that do not count between others that do: a sequence is completed as a "
            "whole, so let each row have one reply"
        )
    return batch.targets.gather(1, at).masked_fill(~there, 0), lengths


optimal_completion = OptimalCompletion

TARGETS: dict[str, type[Any]] = {"optimal_completion": OptimalCompletion}


def check(target: Any) -> list[str]:
    """Return what is wrong with a ``target`` argument, a line each.

    >>> check("gould")
    ["target must be one of gold, optimal_completion or a function; got 'gould': did you mean 'gold'?"]
    """
    if isinstance(target, str) and target in ("gold", *TARGETS):
        return []
    hint = refused(target, 2)
    if callable(target) and not hint:
        return []
    near = nearest(target, ("gold", *TARGETS)) if isinstance(target, str) else None
    rule = f"target must be one of {', '.join(['gold', *TARGETS])} or a function"
    return [f"{rule}; got {target!r}{hint}{f': did you mean {near!r}?' if near else ''}"]


@lru_cache
def _named(target: str) -> Target:
    return TARGETS[target]()


def aimed(target: str | Target, fed: Batch, vocab: int) -> tuple[Batch, Tensor | None]:
    """The batch that is scored, and the shares of its symbols where the target returns such.

    Args:
        target: what each position should predict.
        fed: the batch that is fed, its targets gold.
        vocab: of symbols, how many the model has.

    Raises:
        UserError: the target returns something else than ids of the model's, values or shares of this batch.
    """
    if isinstance(target, str):
        if target == "gold":
            return fed, None
        target = _named(target)
    with torch.no_grad():
        found: Any = target(fed, fed.history)
    mask = fed.mask
    if not isinstance(found, Tensor) or found.shape[:2] != mask.shape or found.dim() not in (2, 3):
        raise UserError(
            f"a target returns (batch, time) ids, (batch, time, n) shares of symbols or (batch, time, value) numbers, "
            f"{tuple(mask.shape)} here; got {shape_of(found)}"
        )
    if not fed.is_discrete:
        if found.shape != fed.targets.shape or not found.is_floating_point():
            raise UserError(f"a target of values returns {tuple(fed.targets.shape)}; got {shape_of(found)}")
        if bool((found.isinf() & mask[..., None]).any()):
            raise UserError("a target of values returned infinity: NaN is where a position shall carry no loss")
        there = ~found.isnan()
        kept = there.all(-1) if fed.present is None else there.any(-1)
        return fed.made(targets=found.to(fed.targets.dtype), mask=mask & kept), None
    if found.dim() == 2:
        if found.dtype != torch.int64:
            raise UserError(f"a target of ids returns int64; got {shape_of(found)}")
        largest = int(found.masked_fill(~mask, 0).max())
        if largest >= vocab:
            raise UserError(f"the target returned the id {largest}, and the model has {vocab} symbols, from 0 on")
        return fed.made(targets=found.clamp_min(0), mask=mask & (found >= 0)), None
    if found.dtype != torch.bool and not found.is_floating_point():
        raise UserError(f"shares of symbols are real numbers or bool; got {shape_of(found)}")
    if found.is_floating_point() and bool((~((found >= 0) & found.isfinite()) & mask[..., None]).any()):
        raise UserError("shares of symbols are finite numbers of 0 or more; those of the target are not")
    return fed.made(mask=mask & (found > 0).any(-1)), found
