"""``diagnose`` for ids: free runs, greedy and sampled, beside gold where there is one, and what errors cost."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from freerun.batch import Batch, must_be
from freerun.diagnostics.intervals import Interval, ratio_of_sums
from freerun.diagnostics.results import (
    ErrorGap,
    ErrorPropagation,
    Example,
    FreeRun,
    IdDiagnosis,
    IdSide,
    TokenMeasures,
)
from freerun.diagnostics.token_runs import (
    Pass,
    Rows,
    RunOptions,
    answer_positions,
    drawn,
    prefix_batch,
    run_rows,
    split_batches,
)
from freerun.diagnostics.tokens import (
    AccumulatedError,
    Corruption,
    RowAlignment,
    align_row,
    align_rows,
    calibration,
    corrupted,
    error_ratio,
    exposure_bias_m,
    hidden_distance,
    length_behaviour,
    overlap,
    repetition,
)
from freerun.diagnostics.values import DiagnosisOptions
from freerun.errors import UserError
from freerun.generation import generate
from freerun.keys import fold, uniform
from freerun.rollin.model import eval_mode, forward
from freerun.types import evenly

_CORRUPTED_ROWS, _ERRORS, _DISTANCES = 512, (0, 1, 2, 4), 10
_HIDDEN_ROWS = 1000
END = "(end)"
"""The end symbol in the examples' choices on gold history."""
_FEWEST = 8
"""Rows below which nothing is measured by corruption or distance of states."""


def error_after_error(wrong: Tensor, mask: Tensor) -> ErrorPropagation:
    """``P(wrong[t] | wrong[t-1])`` and ``P(wrong[t] | right[t-1])`` over rows and positions.

    Teacher-forced it measures whether errors cluster, as hard positions do; free-running also whether an error makes
    the next one likelier. The difference of the two is the effect of free running.

    Args:
        wrong: (rows, time) bool: entries that differ from gold.
        mask: (rows, time) bool: entries that count; a pair counts where both do.

    Raises:
        UserError: shapes that do not fit.

    >>> error_after_error(torch.tensor([[True, True, False, False]]), torch.ones(1, 4, dtype=torch.bool))
    ErrorPropagation(after_error=0.5, after_correct=0.0, wrong=2, right=1)
    """
    _check(wrong, mask)
    both = mask[:, 1:] & mask[:, :-1]
    before, now = wrong[:, :-1], wrong[:, 1:]
    after = (both & before, both & ~before)
    counts = [int(each.sum()) for each in after]
    shares = [int((each & now).sum()) / count if count else None for each, count in zip(after, counts, strict=True)]
    return ErrorPropagation(shares[0], shares[1], *counts)


def position_errors(wrong: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Share of wrong entries at each position, (time,), NaN where no row has one; and how many rows have one, (time,).

    Args:
        wrong: (rows, time) bool.
        mask: (rows, time) bool: entries that count.

    >>> position_errors(torch.tensor([[True, False], [False, True]]), torch.tensor([[True, True], [True, False]]))
    (tensor([0.5000, 0.0000], dtype=torch.float64), tensor([2, 1]))
    """
    _check(wrong, mask)
    left = mask.sum(0)
    return (wrong & mask).sum(0).double() / left, left


def first_error(wrong: Tensor, mask: Tensor) -> Tensor:
    """Position, from 1, of each row's first wrong entry; 0 where all are right: (rows,) int64.

    On gold history and running freely a greedy model makes its first error at the same position.

    >>> first_error(torch.tensor([[False, True], [False, False]]), torch.ones(2, 2, dtype=torch.bool))
    tensor([2, 0])
    """
    _check(wrong, mask)
    errors = wrong & mask
    return torch.where(errors.any(1), errors.long().argmax(1) + 1, 0)


def _check(wrong: Tensor, mask: Tensor) -> None:
    must_be("", "bool", wrong=wrong, mask=mask)
    if wrong.shape != mask.shape or wrong.dim() != 2:
        raise UserError(f"wrong and mask must both be (rows, time); got {tuple(wrong.shape)} and {tuple(mask.shape)}")


def diagnose_ids(
    model: Any, batches: Sequence[Batch], about: DiagnosisOptions, on_progress: Callable[[str], None]
) -> IdDiagnosis:
    """See ``diagnose``."""
    if not any(bool(batch.mask.any()) for batch in batches):
        raise UserError("the batches have no position that counts: nothing can be compared")
    batches = split_batches(model, batches)
    draw, margin = drawn(about.draw), about.length_margin
    options = RunOptions(about.end_symbol, margin, draw, about.oracle, about.key, about.divergence)
    rows = run_rows(model, batches, options, on_progress)
    mask, longest = rows.gold.mask, rows.gold.mask.shape[1]
    forced = (rows.gold.choice != rows.gold.entries) & mask
    free = (_fitted(rows.greedy.entries, longest) != rows.gold.entries) & mask
    on_progress("errors in the prefix")
    corruption = prefix_corruption(model, batches, rows, about.key)
    sides = [_side(each, mask) for each in (forced, free)]
    gaps = [b - a for a, b in zip(sides[0].wrong_by_position, sides[1].wrong_by_position, strict=True)]
    firsts = torch.bincount(first_error(free, mask), minlength=longest + 1)[1:]
    on_progress("free runs against gold")
    gold = _sequences(rows.gold, about.end_symbol)
    runs = {name: _Run.of(rows, name, gold, about) for name in ("greedy", "sampled")}
    reference = about.reference
    measures = TokenMeasures(
        loss=ratio_of_sums(rows.gold.loss.sum(1), mask.sum(1).double()),
        entropy=ratio_of_sums(rows.gold.entropy.masked_fill(~mask, 0).sum(1), mask.sum(1).double()),
        entropy_by_position=_by_position(rows.gold.entropy, mask),
        edit_error=ratio_of_sums(forced.sum(1).double(), torch.tensor([float(len(each)) for each in gold])).within(0),
        after=error_ratio(forced, mask),
        after_free=error_ratio(free, mask) if reference else None,
        calibration=calibration(rows.gold.confidence, ~forced, mask, key=about.key),
        repetition=repetition(gold),
        greedy=_free_run(rows, runs["greedy"], gold, about),
        sampled=_free_run(rows, runs["sampled"], gold, about),
        corruption=corruption,
        hidden=_states_apart(rows, about.key),
        oracle=None if about.oracle is None else accumulated(rows),
        eb_m=None if reference else _continued_quality(model, batches, runs["sampled"].own, gold, about),
    )
    return IdDiagnosis(
        rows=mask.shape[0],
        positions=longest,
        left=tuple(mask.sum(0).tolist()),
        teacher_forced=sides[0],
        free_running=sides[1] if reference else None,
        gap=ErrorGap.of(forced.sum(1), free.sum(1), mask.sum(1)) if reference else None,
        gap_by_position=tuple(gaps) if reference else (),
        first_error=tuple(firsts.tolist()) if reference else (),
        tokens=measures,
        examples=tuple(_examples(rows, gold, runs, about)),
    )


def _fitted(entries: Tensor, length: int) -> Tensor:
    return F.pad(entries, (0, max(0, length - entries.shape[1])))[:, :length]


def _side(wrong: Tensor, mask: Tensor) -> IdSide:
    shares, _ = position_errors(wrong, mask)
    errors = wrong[mask]
    return IdSide(
        tuple(shares.tolist()), float(errors.double().mean()), int(errors.sum()), error_after_error(wrong, mask)
    )


def _by_position(values: Tensor, mask: Tensor) -> tuple[float, ...]:
    return tuple((values.masked_fill(~mask, 0).sum(0) / mask.sum(0)).tolist())


def _sequences(one: Pass, end: int | None) -> list[list[int]]:
    return [
        [each for each in row[keep].tolist() if each != end] for row, keep in zip(one.entries, one.mask, strict=True)
    ]


@dataclass(frozen=True, eq=False)
class _Run:
    """Free runs of one kind: their name, the pass on them, positions and symbols before the end, and alignments."""

    name: str
    one: Pass
    kept: list[list[int]]
    own: list[list[int]]
    aligned: list[RowAlignment]

    @classmethod
    def of(cls, rows: Rows, name: str, gold: Sequence[list[int]], about: DiagnosisOptions) -> _Run:
        one: Pass = getattr(rows, name)
        mask = rows.gold.mask
        last = torch.where(mask, torch.arange(mask.shape[1]) + 1, 0).amax(1)
        # without an end symbol a run is as long as gold; positions within gold that do not count are in neither
        sizes = (last if about.end_symbol is None else rows.lengths[name]).tolist()
        holes = [set((~row[:until]).nonzero()[:, 0].tolist()) for row, until in zip(mask, last.tolist(), strict=True)]
        kept = [[t for t in range(size) if t not in out] for size, out in zip(sizes, holes, strict=True)]
        own = [row[at].tolist() for row, at in zip(one.entries, kept, strict=True)]
        aligned = [align_row(a, b) for a, b in zip(own, gold, strict=True)] if about.reference else []
        return cls(name, one, kept, own, aligned)


def _free_run(rows: Rows, run: _Run, gold: Sequence[list[int]], about: DiagnosisOptions) -> FreeRun:
    """The measures of greedy or sampled free runs."""
    one = run.one
    lengths = calibrated = aligned = None
    if about.end_symbol is not None:
        sizes = [torch.tensor([len(row) for row in each]) for each in (run.own, gold)]
        lengths = length_behaviour(*sizes, ended=rows.lengths[run.name] < rows.limit)
    if about.reference:
        right, counted = torch.zeros_like(one.mask), torch.zeros_like(one.mask)
        for row, (at, each) in enumerate(zip(run.kept, run.aligned, strict=True)):
            counted[row, at] = True
            right[row, at] = torch.tensor(each.right, dtype=torch.bool)
        # the confidence in what was output, which sampled is not the likeliest
        calibrated = calibration((-one.loss).exp(), right, counted, key=about.key)
        aligned = align_rows(run.aligned, [len(row) for row in gold])
    return FreeRun(
        draw="greedy" if run.name == "greedy" else str(drawn(about.draw)),
        aligned=aligned,
        lengths=lengths,
        repetition=repetition(run.own),
        entropy=ratio_of_sums(one.entropy.masked_fill(~one.mask, 0).sum(1), one.mask.sum(1).double()),
        entropy_by_position=_by_position(one.entropy, one.mask),
        calibration=calibrated,
    )


def accumulated(rows: Rows) -> AccumulatedError:
    """ExAccErr and EB-C of sampled free runs against gold contexts, where both were compared with an oracle."""
    length = rows.gold.mask.shape[1]
    return AccumulatedError.of(_fitted(rows.sampled.divergence, length), rows.gold.divergence)


def _states_apart(rows: Rows, key: int) -> Any:
    gold, own = rows.gold.hidden, rows.greedy.hidden
    kept = (gold.isfinite() & own.isfinite()).all(1).nonzero()[:, 0] if gold.shape[1] else torch.zeros(0)
    if len(kept) < _FEWEST:
        return None
    kept = kept[torch.tensor(evenly(len(kept), _HIDDEN_ROWS))]
    return hidden_distance(gold[kept], own[kept], fold(key, "hidden"))


def prefix_corruption(
    model: Any, batches: Sequence[Batch], rows: Rows, key: int, counts: Sequence[int] = _ERRORS
) -> tuple[Corruption, ...]:
    """Loss and errors after a gold prefix with errors in it: "random", "own" and "confusion" ones.

    The prefix is the first half of a row; rows whose half is shorter than the most errors are left out, as are all
    beyond the first 512.
    """
    numbers = torch.arange(len(rows.gold.mask)).split([batch.size for batch in batches])
    wide = (rows.gold.mask.sum(1) // 2 >= max(counts)).nonzero()[:, 0][:_CORRUPTED_ROWS]
    if len(wide) < _FEWEST:
        return ()
    sources = _mistakes_by_kind(rows, key)
    found: list[Corruption] = []
    for kind, entries in sources.items():
        parts: list[list[Tensor]] = []
        for batch, own in zip(batches, numbers, strict=True):
            chosen = own[torch.isin(own, wide)]
            if len(chosen):
                local = (chosen - own[0]).to(batch.history.device)
                parts.append(_after_prefix(model, batch.select(local), entries[chosen], chosen, (counts, key)))
        found.append(_corruption(kind, counts, [torch.cat(each) for each in zip(*parts, strict=True)]))
    return tuple(found)


def _mistakes_by_kind(rows: Rows, key: int) -> dict[str, Tensor]:
    """(rows, length) ids that differ from gold: uniform, the model's own, and the model's own for the same symbol."""
    gold, mask, own = rows.gold.entries, rows.gold.mask, rows.mistakes
    known = gold[mask].unique()
    index = torch.searchsorted(known, gold.clamp(int(known[0]), int(known[-1])))
    at = torch.arange(gold.shape[0])[:, None], torch.arange(gold.shape[1])
    step = 1 + (uniform(fold(key, "random error"), *at) * (len(known) - 1)).long()
    random = known[(index + step) % len(known)] if len(known) > 1 else own
    # one occurrence of the same symbol, anywhere
    order = index[mask].argsort(stable=True)
    first = F.pad(torch.bincount(index[mask], minlength=len(known)).cumsum(0), (1, 0))
    size = (first[1:] - first[:-1])[index]
    pick = first[:-1][index] + (uniform(fold(key, "confusion error"), *at) * size).long()
    confusion = own[mask][order][pick.clamp_max(len(order) - 1)]
    return {"random": random, "own": own, "confusion": confusion}


def _after_prefix(
    model: Any, batch: Batch, entries: Tensor, numbers: Tensor, how: tuple[Sequence[int], int]
) -> list[Tensor]:
    """For each number of errors (rows, 2): summed loss and wrong choices after the prefix; then positions; then, for
    a single error, (rows, distances) loss and whether it counts."""
    counts, key = how
    where = answer_positions(batch).clamp_max(batch.time - 1)
    placed = torch.zeros_like(batch.history).scatter(1, where, entries[:, : where.shape[1]].to(where.device))
    order = batch.mask.long().cumsum(1)
    half = (batch.mask.sum(1) // 2)[:, None]
    within, after = batch.mask & (order <= half), batch.mask & (order > half)
    sums: list[Tensor] = []
    losses: dict[int, Tensor] = {}
    histories: dict[int, Tensor] = {}
    for count in counts:
        history = corrupted(batch.history, within, count, placed, key=key, rows=numbers)
        with eval_mode(model), torch.no_grad():
            outputs = forward(model, batch.made(history=history))
        wrong = (outputs.argmax(-1) != batch.targets) & after
        loss = F.cross_entropy(
            outputs.float().transpose(1, 2), batch.targets.masked_fill(~batch.mask, 0), reduction="none"
        )
        losses[count], histories[count] = loss.double(), history
        sums.append(torch.stack([losses[count].masked_fill(~after, 0).sum(1), wrong.sum(1).double()], 1).cpu())
    positions = after.sum(1).double().cpu()
    return [*sums, positions, *_by_distance(batch, losses, histories)]


def _by_distance(batch: Batch, losses: dict[int, Tensor], histories: dict[int, Tensor]) -> list[Tensor]:
    """(rows, distances) loss added by a single error so many positions before, and whether a position counts there."""
    at = (histories[1] != histories[0]).long().argmax(1)
    steps = at[:, None] + torch.arange(1, _DISTANCES + 1, device=at.device)
    inside = steps < batch.time
    steps = steps.clamp_max(batch.time - 1)
    added = (losses[1] - losses[0]).gather(1, steps)
    counted = batch.mask.gather(1, steps) & inside
    return [added.masked_fill(~counted, 0).cpu(), counted.double().cpu()]


def _corruption(kind: str, counts: Sequence[int], parts: Sequence[Tensor]) -> Corruption:
    sums, (positions, added, counted) = parts[: len(counts)], parts[len(counts) :]
    return Corruption(
        kind=kind,
        errors=tuple(counts),
        loss=tuple(ratio_of_sums(each[:, 0], positions) for each in sums),
        added=tuple(ratio_of_sums(each[:, 0] - sums[0][:, 0], positions) for each in sums),
        wrong=tuple(ratio_of_sums(each[:, 1], positions).within(0, 1) for each in sums),
        by_distance=tuple(ratio_of_sums(a, c) for a, c in zip(added.unbind(1), counted.unbind(1), strict=True)),
    )


def _continued_quality(
    model: Any, batches: Sequence[Batch], own: Sequence[list[int]], gold: Sequence[list[int]], about: DiagnosisOptions
) -> Interval | None:
    """EB-M: overlap of sampled continuations with other gold rows, after gold halves over after halves of its own."""
    halves: list[list[int]] = []
    for number, batch in enumerate(batches):
        begun, taken = prefix_batch(batch)
        length = int((answer_positions(batch).shape[1] - taken).max())
        key = fold(about.key, number, "half")
        run = generate(model, begun, length=length, end=about.end_symbol, beams=1, draw=drawn(about.draw), key=key)
        halves += [row[:size].tolist() for row, size in zip(run.entries, run.lengths.tolist(), strict=True)]
    sizes = [len(row) // 2 for row in gold]
    left = [len(row) - size for row, size in zip(gold, sizes, strict=True)]
    after_gold = overlap([row[:n] for row, n in zip(halves, left, strict=True)], gold)
    after_own = overlap([row[n:] for row, n in zip(own, sizes, strict=True)], gold)
    kept = after_gold.isfinite() & after_own.isfinite()
    return exposure_bias_m(after_gold[kept], after_own[kept]) if int(kept.sum()) >= _FEWEST else None


def _examples(
    rows: Rows, gold: Sequence[list[int]], runs: dict[str, _Run], about: DiagnosisOptions
) -> Iterator[Example]:
    decode = about.decode or (lambda ids: [str(each) for each in ids])
    for row in evenly(len(gold), about.examples):
        choices = rows.gold.choice[row][rows.gold.mask[row]].tolist()
        forced = [END if choice == about.end_symbol else "".join(decode([choice])) for choice in choices]
        each = runs["greedy"].aligned[row] if about.reference else None
        yield Example(
            row=row,
            source=about.sources[row] if row < len(about.sources) else "",
            gold=tuple(decode(gold[row])),
            teacher_forced=tuple(forced),
            greedy=tuple(decode(runs["greedy"].own[row])),
            sampled=tuple(decode(runs["sampled"].own[row])),
            edits=each and each.edits,
            first_error=each and each.first_error,
            rejoins=each and each.rejoins,
        )
