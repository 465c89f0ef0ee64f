"""Exposure bias measured: one call for values and for ids."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from freerun.diagnostics.diagnosis import Diagnosis
from freerun.diagnostics.ids import diagnose_ids
from freerun.diagnostics.values import About, diagnose_values
from freerun.errors import UserError
from freerun.rollin.outputs import call_problems, explained_errors
from freerun.types import Batch

__all__ = ["diagnose"]


def diagnose(
    model: Any,
    batches: Batch | Iterable[Batch],
    about: About | None = None,
    *,
    watch: Callable[[str], None] | None = None,
) -> Diagnosis:
    """Measure what leaving gold costs a model: the same batches told gold (teacher-forced), and told its own output.

    Values: error by lead time in both ways, the signed gap, naive forecasts, valid time, growth against
    ``exp(lambda t)``, windows that escape with their lead time, and the climate of a long free run. Ids: share of wrong
    choices by position, counted from the end of a row's prompt, in both ways, and after a wrong and after a right
    choice, greedily.

    Args:
        model: from a Batch to (batch, time, value) or (batch, time, vocab) outputs; its mode is restored afterwards.
            Its attribute ``head``, or ``settings()["head"]``, names the distribution that its outputs are parameters
            of: the mean is scored and fed back, and samples are drawn for the fans.
        batches: gold in ``targets`` and ``history``; of values every row with the same horizon. All are held at once.
        about: what is known of the data; the defaults of ``About`` if left out.
        watch: told what is being done, in words.

    Raises:
        UserError: no batches, values and ids mixed, horizons that differ, ids of which none counts.

    >>> import torch
    >>> class Halve:
    ...     def __call__(self, batch):
    ...         return torch.nn.functional.pad(batch.history, (0, 0, 1, 0))[:, :-1] / 2
    >>> gold = torch.tensor([[[8.0], [4.0], [2.0], [2.0]]])
    >>> found = diagnose(Halve(), Batch(gold, gold, torch.tensor([[False, True, True, True]])))
    >>> found.free_running.rmse, found.teacher_forced.rmse, found.gap_by_lead
    ((0.0, 0.0, 1.0), (0.0, 0.0, 1.0), (0.0, 0.0, 0.0))

    Ranzato et al. 2016 (arXiv:1511.06732) name the bias; Teutsch & Maeder 2022 (arXiv:2210.08959) and Hess et al. 2023
    (arXiv:2306.04406) measure it on series. What it is not: a verdict between methods; that is ``freerun compare``'s.
    """
    if isinstance(model, Batch) or not isinstance(batches, Batch | Iterable):
        raise UserError(call_problems(model, batches, "diagnose(model, batches)"))
    listed = [batches] if isinstance(batches, Batch) else list(batches)
    problems = [line for batch in listed[:1] for line in call_problems(model, batch, "diagnose(model, batches)")]
    if not isinstance(about, About | None):
        problems.append(f"about must be a freerun.diagnostics.About; got {type(about).__name__}")
    if problems or not all(isinstance(batch, Batch) for batch in listed):
        raise UserError(problems or "batches must all be freerun.Batch")
    about = about or About()
    if not listed or not all(batch.size for batch in listed):
        raise UserError("there is nothing to diagnose: give at least one batch, and no batch without rows")
    kinds = {batch.is_discrete for batch in listed}
    if len(kinds) > 1:
        raise UserError("batches of ids and of values are mixed: diagnose them apart")
    with explained_errors(model):
        if kinds.pop():
            return diagnose_ids(model, listed, about.end, watch)
        return diagnose_values(model, listed, about, watch)
