"""``diagnose``: exposure bias of models of values and of ids, in one call."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Never

from freerun.arguments import unknown_argument
from freerun.batch import Batch
from freerun.diagnostics.ids import diagnose_ids
from freerun.diagnostics.results import Diagnosis
from freerun.diagnostics.values import DiagnosisOptions, diagnose_values
from freerun.errors import UserError, refuse
from freerun.rollin.model import call_problems, explained_errors


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
    of a long free run. Ids, greedily and sampled, with intervals over rows: wrong choices by position, counted from the
    end of a row's prompt; errors, recovery and errors after errors by edit distance; lengths, calibration, entropy and
    repetition; loss after a gold prefix with errors in it; distance of hidden states; with an oracle ExAccErr and EB-C.

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
    (arXiv:2306.04406) measure it on series, Arora et al. 2022 (arXiv:2204.01171) and He et al. 2021 (arXiv:1905.10617)
    on text. What it is not: a verdict between methods; that is ``freerun compare``'s.
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
    if lacking := sum(int((~batch.present).any(-1).sum()) for batch in listed if batch.present is not None):
        raise UserError(
            f"gold is missing at {lacking} positions: errors by lead time need complete windows; pass those alone"
        )
    kinds = {batch.is_discrete for batch in listed}
    if len(kinds) > 1:
        raise UserError("batches of ids and of values are mixed: diagnose them apart")
    ids = kinds.pop()
    if about.oracle is not None and not callable(about.oracle):
        raise UserError(f"oracle must be a model, called as model(batch); got {type(about.oracle).__name__}")
    if not ids:
        named = {
            "oracle": about.oracle is not None,
            "reference": not about.reference,
            "decode": about.decode is not None,
        }
        refuse(
            [f"{name} is for ids, and targets are real values: leave it out" for name, each in named.items() if each]
        )
    with explained_errors(model):
        if ids:
            return diagnose_ids(model, listed, about, on_progress)
        return diagnose_values(model, listed, about, on_progress)
