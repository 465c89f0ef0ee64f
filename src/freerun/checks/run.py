"""Asking a model all checks."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from freerun.checks.forward import FORWARD, deterministic, shape
from freerun.checks.protocols import PROTOCOLS
from freerun.checks.report import Finding, Probe, Report, Verdict
from freerun.errors import UserError
from freerun.rollin.modes import evaluating
from freerun.types import Batch

__all__ = ["check_model", "examine"]

_ROWS = 8  # looked at most


def check_model(model: Any, batch: Batch) -> Report:
    """Refuse a model that cannot be trained or run freely as it stands, naming every check that fails.

    Entries are changed one position at a time and the outputs compared, in evaluation mode, without gradient, on
    at most 8 rows and 32 positions. What counts as moved: more than 100 roundings of the dtype times the largest
    output (1.2e-5 for float32 outputs up to 1).

    Args:
        model: from Batch to (batch, time, vocab) or (batch, time, value).
        batch: an ordinary training batch; two rows and more, and rows of unequal length, let all checks apply.

    Raises:
        UserError: one line for every failing check: its name, what moved, what to do.

    >>> class Peeks:  # the unshifted history goes straight through
    ...     def __call__(self, batch):
    ...         return torch.nn.functional.one_hot(batch.history, 3).float()
    >>> ids = torch.tensor([[2, 1, 0]])
    >>> check_model(Peeks(), Batch(ids, ids, ids >= 0))
    Traceback (most recent call last):
    freerun.errors.UserError: unshifted_history: outputs at position t move when history[t] changes ...

    Not a proof: it looks at one batch.
    """
    report = examine(model, batch)
    if report.refused:
        raise UserError([f"{finding.name}: {finding.explanation}" for finding in report.refused])
    return report


def examine(model: Any, batch: Batch) -> Report:
    """All findings about a model, refusals among them; only ``check_model`` raises for them.

    Args:
        model: as for ``check_model``; an error of the very first call is the model's own and passes through.
        batch: as for ``check_model``.
    """
    if batch.size == 0 or batch.time == 0 or not bool(batch.mask.any()):
        raise UserError("the batch has no position that counts (mask True): nothing can be checked with it")
    if batch.size > _ROWS:
        batch = batch.select(torch.arange(_ROWS, device=batch.history.device))
    with torch.no_grad(), evaluating(model):
        outputs = model(batch)
        found = [_finding("shape", lambda: shape(outputs, batch), "outputs are (batch, time, ...)")]
        if found[0].status != "ok":
            return Report(tuple(found))
        probe = Probe(model, batch, outputs)
        found.append(_finding("deterministic", lambda: deterministic(probe), "two calls give the same"))
        if found[-1].status == "ok":
            for name, (check, fine) in (FORWARD | PROTOCOLS).items():
                found.append(_finding(name, partial(check, probe), fine))
    return Report(tuple(found))


def _finding(name: str, check: Callable[[], Verdict], fine: str) -> Finding:
    try:
        verdict = check()
    except Exception as error:  # a model that fails under one question should still hear the others
        line = (str(error).splitlines() or [""])[0]
        return Finding(name, "refused", f"asked for this, the model raised {type(error).__name__}: {line}")
    if verdict is None:
        return Finding(name, "ok", fine)
    if isinstance(verdict, str):
        return Finding(name, "refused", verdict)
    return Finding(name, *verdict)
