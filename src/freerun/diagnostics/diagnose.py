"""``diagnose``: exposure bias of models of values and of ids, in one call."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Never

import torch
from torch import Tensor
from torch.nn import functional as F

from freerun.arguments import unknown_argument
from freerun.batch import Batch, must_be
from freerun.diagnostics.results import Diagnosis, ErrorPropagation, IdDiagnosis, IdSide
from freerun.diagnostics.values import DiagnosisOptions, diagnose_values
from freerun.errors import UserError
from freerun.generation import generate, prompt_lengths
from freerun.rollin.model import call_problems, eval_mode, explained_errors, forward


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
    model: Any, batches: Sequence[Batch], end: int | None, on_progress: Callable[[str], None]
) -> IdDiagnosis:
    """See ``diagnose``."""
    if not any(bool(batch.mask.any()) for batch in batches):
        raise UserError("the batches have no position that counts: nothing can be compared")
    positions = [answer_positions(batch) for batch in batches]
    longest = max(each.shape[1] for each in positions)
    flags: list[list[Tensor]] = []
    for number, (batch, where) in enumerate(zip(batches, positions, strict=True)):
        on_progress(f"rows, part {number + 1} of {len(batches)}")
        with eval_mode(model), torch.no_grad():
            choices = forward(model, batch).argmax(-1)
        targets, mask, choices = (
            part.gather(1, where.clamp_max(batch.time - 1)) for part in (batch.targets, batch.mask, choices)
        )
        mask = mask & (where < batch.time)
        own = generate(model, batch, length=where.shape[1], end=end).entries
        parts = ((choices != targets) & mask, (own != targets) & mask, mask)
        flags.append([F.pad(part.cpu(), (0, longest - part.shape[1])) for part in parts])
    forced, free, mask = (torch.cat(parts) for parts in zip(*flags, strict=True))
    sides = [_side(each, mask) for each in (forced, free)]
    gaps = [b - a for a, b in zip(sides[0].wrong_by_position, sides[1].wrong_by_position, strict=True)]
    firsts = torch.bincount(first_error(free, mask), minlength=longest + 1)[1:]
    return IdDiagnosis(
        rows=mask.shape[0],
        positions=longest,
        left=tuple(mask.sum(0).tolist()),
        teacher_forced=sides[0],
        free_running=sides[1],
        gap_by_position=tuple(gaps),
        first_error=tuple(firsts.tolist()),
    )


def answer_positions(batch: Batch) -> Tensor:
    """(rows, longest) each row's positions from the end of its prompt on, as many as the longest answer has."""
    prompts = prompt_lengths(batch)
    index = torch.arange(batch.time, device=prompts.device)
    length = int((torch.where(batch.mask, index + 1, 0).amax(1) - prompts).max())
    return prompts[:, None] + torch.arange(max(1, length), device=prompts.device)


def _side(wrong: Tensor, mask: Tensor) -> IdSide:
    shares, _ = position_errors(wrong, mask)
    return IdSide(tuple(shares.tolist()), float(wrong[mask].double().mean()), error_after_error(wrong, mask))


def diagnose(
    model: Any,
    batches: Batch | Iterable[Batch],
    about: DiagnosisOptions | None = None,
    *,
    on_progress: Callable[[str], None] | None = None,
    **unknown: Never,
) -> Diagnosis:
    """Measure how much error grows when a model is fed its own output in place of gold (exposure bias).

    The same batches are run teacher-forced and freely. Values: error by lead time in both ways, the signed gap, naive
    baselines, valid time, growth against ``exp(lambda t)``, windows that diverge with their lead time, and the climate
    of a long free run. Ids: share of wrong choices by position, counted from the end of a row's prompt, in both ways,
    and after a wrong and after a right choice, greedily.

    Args:
        model: from a Batch to (batch, time, value) or (batch, time, vocab) outputs; its mode is restored afterwards.
            Its attribute ``head``, or ``settings()["head"]``, names the distribution that its outputs are parameters
            of: the mean is scored and fed back, and samples are drawn for the sample windows.
        batches: gold in ``targets`` and ``history``; of values every row with the same horizon. All are held at once.
        about: what is known of the data; the defaults of ``DiagnosisOptions`` if left out.
        on_progress: called with a description of each step.

    Raises:
        UserError: no batches, values and ids mixed, horizons that differ, ids of which none counts.

    >>> import torch
    >>> class Halve:
    ...     def __call__(self, batch):
    ...         return torch.nn.functional.pad(batch.history, (0, 0, 1, 0))[:, :-1] / 2
    >>> gold = torch.tensor([[[8.0], [4.0], [2.0], [2.0]]])
    >>> result = diagnose(Halve(), Batch(gold, gold, torch.tensor([[False, True, True, True]])))
    >>> result.free_running.rmse, result.teacher_forced.rmse, result.gap_by_horizon
    ((0.0, 0.0, 1.0), (0.0, 0.0, 1.0), (0.0, 0.0, 0.0))

    Ranzato et al. 2016 (arXiv:1511.06732) name the bias; Teutsch & Maeder 2022 (arXiv:2210.08959) and Hess et al. 2023
    (arXiv:2306.04406) measure it on series. What it is not: a verdict between methods; that is ``freerun compare``'s.
    """
    if isinstance(model, Batch) or not isinstance(batches, Batch | Iterable):
        raise UserError(call_problems(model, batches, "diagnose(model, batches)"))
    listed = [batches] if isinstance(batches, Batch) else list(batches)
    problems = [line for batch in listed[:1] for line in call_problems(model, batch, "diagnose(model, batches)")]
    problems += [unknown_argument("diagnose", name, ("about", "on_progress")) for name in unknown]
    if not isinstance(about, DiagnosisOptions | None):
        problems.append(f"about must be a freerun.diagnostics.DiagnosisOptions; got {type(about).__name__}")
    if problems or not all(isinstance(batch, Batch) for batch in listed):
        raise UserError(problems or "batches must all be freerun.Batch")
    about, on_progress = about or DiagnosisOptions(), on_progress or (lambda _: None)
    if not listed or not all(batch.size for batch in listed):
        raise UserError("there is nothing to diagnose: pass at least one batch, and no batch without rows")
    kinds = {batch.is_discrete for batch in listed}
    if len(kinds) > 1:
        raise UserError("batches of ids and of values are mixed: diagnose them apart")
    with explained_errors(model):
        if kinds.pop():
            return diagnose_ids(model, listed, about.end_symbol, on_progress)
        return diagnose_values(model, listed, about, on_progress)
