"""All checks of a model, as one table, and running them."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, cast

import torch

from freerun.batch import Batch
from freerun.checks import context, forward, protocols
from freerun.checks.report import Check, Probe, Report, snapshot
from freerun.errors import UserError
from freerun.rollin.model import call_problems, eval_mode, explained_errors
from freerun.types import Cached, Detachable, Embedder, Encoder, Reader, Split, Stepper

_ROWS = 8  # looked at most
_IDS = "the model must take any history of the ids (or finite values) that the batch holds"
_FIELDS = "let the forward read batch.history and batch.context alone"
_FOLLOW = "make the forward follow batch.time, and slice what it reads of the context to it"
_CONTEXT = "the forward must take contexts of any rows"
_MODES = "the forward must run in training mode as it does in evaluation mode"
_METHODS = "see freerun.types for what the methods take and return; without them parallel passes are used"

_DETERMINISTIC = Check(forward.deterministic, "the same batch again", "a model must take several calls")
_OTHERS = (
    Check(forward.finite),
    Check(forward.logits),
    Check(forward.mask_polarity),
    Check(forward.reads_targets, "other targets", _FIELDS),
    Check(forward.reads_mask, "another mask", _FIELDS),
    Check(forward.causal, "another history", _IDS),
    Check(forward.unshifted_history, "another history", _IDS),
    Check(forward.reads_last_entry, "another history", _IDS),
    Check(forward.pads_inert, "other padding", _IDS),
    Check(forward.length_inert, "fewer positions", _FOLLOW),
    Check(
        forward.rows_independent, "a row repeated", "the forward must take any rows of a batch, its context with them"
    ),
    Check(forward.uses_history, "another history", _IDS),
    Check(forward.history_order, "a history turned round", _IDS),
    Check(context.uses_context, "another context", _CONTEXT),
    Check(context.holds_targets, "another context", _CONTEXT),
    Check(context.source_padding, "less padding", _CONTEXT),
    Check(context.source_order, "a source turned round", _CONTEXT),
    Check(protocols.step_equals_parallel, "start, output and step over the history", _METHODS, Stepper),
    Check(protocols.stepper_embed, "embed of the whole history and of single entries", _METHODS, Stepper),
    Check(protocols.stepper_state, "steps over the history, twice from the same states", _METHODS, Stepper),
    Check(protocols.stepper_select, "select of reversed, repeated and fewer rows", _METHODS, Stepper),
    Check(protocols.read_equals_steps, "read of the first half of the history", _METHODS, Reader),
    Check(protocols.detach_keeps, "detach of the first state", _METHODS, Detachable),
    Check(protocols.cache_equals_forward, "advance and crop of 2, 3 and 4 entries", _METHODS, Cached),
    Check(protocols.encode_equals_forward, "an encoded batch", _METHODS, Encoder),
    Check(protocols.split_equals_forward, "head of the hidden vectors that count", _METHODS, Split),
    Check(protocols.vectors_equal_ids, "the history as vectors", _METHODS, Embedder),
    Check(forward.learning, "the batch, with gradient", _MODES),
)

CHECKS: dict[str, Check] = {check.name: check for check in (_DETERMINISTIC, *_OTHERS)}
"""Name -> check, in the order of a report."""

Collate = Callable[[list[Any]], Batch]


def check_model(
    model: Any, batch: Batch | None = None, *, examples: Sequence[Any] | None = None, collate: Collate | None = None
) -> Report:
    """Refuse a model that cannot be trained or run freely as it stands, naming every check that fails.

    Inputs are changed and outputs compared, on at most 8 rows, in evaluation mode and without gradient, and once more
    in training mode (buffers and random generators are put back). History entries are changed one position at a time,
    at most 32 of them: about 60 forwards in all, whatever the length, and for a Stepper five walks over the positions.
    What counts as moved: more than 100 roundings of the dtype times the largest output (1.2e-5 for float32 outputs up
    to 1).

    Args:
        model: from Batch to (batch, time, vocab) or (batch, time, value).
        batch: an ordinary training batch; two rows and more, of unequal length, let all checks apply. None: made of
            the examples.
        examples: a few items of the data set, of unequal length: each alone must equal itself in a batch, which shows
            whether padding reaches the outputs. At most 8 are used.
        collate: makes a Batch of a list of examples.

    Returns:
        every finding; warnings (what may be meant so, such as a model that ignores its context) are issued by
        ``warnings.warn`` as well.

    Raises:
        UserError: one line for every failing check: its name, what was tried, what moved, what to do.

    >>> class Peeks:  # the unshifted history goes straight through
    ...     def __call__(self, batch):
    ...         return 5 * torch.nn.functional.one_hot(batch.history, 3).float()
    >>> ids = torch.tensor([[2, 1, 0]])
    >>> check_model(Peeks(), Batch(ids, ids, ids >= 0))
    Traceback (most recent call last):
    freerun.errors.UserError: unshifted_history: outputs at position t move when history[t] changes ...

    Not a proof: it looks at one batch.
    """
    report = examine(model, batch, examples=examples, collate=collate)
    if report.refused:
        raise UserError([f"{finding.name}: {finding.explanation}" for finding in report.refused])
    for finding in report.warnings:
        warnings.warn(f"check_model: {finding.name}: {finding.explanation}", stacklevel=2)
    return report


def examine(
    model: Any, batch: Batch | None = None, *, examples: Sequence[Any] | None = None, collate: Collate | None = None
) -> Report:
    """All findings about a model, refusals among them; only ``check_model`` raises and warns.

    Args:
        model: as for ``check_model``; an error of the very first call is the model's own and passes through.
        batch: as for ``check_model``.
        examples: as for ``check_model``.
        collate: as for ``check_model``.
    """
    batch, examples = _inputs(model, batch, examples, collate)
    # a copy: a model that writes into its batch writes into ours
    batch = batch.select(torch.arange(min(batch.size, _ROWS), device=batch.history.device))
    before = snapshot(batch, "batch")
    with torch.no_grad(), eval_mode(model):
        with explained_errors(model):
            outputs = model(batch)
        findings = [Check(partial(forward.shape, outputs))(batch)]
        if findings[-1].status != "ok":
            return Report(tuple(findings))
        probe = Probe(model, batch, outputs.clone())
        # the others need these two
        for check in (Check(partial(context.inputs_untouched, before=before)), _DETERMINISTIC):
            findings.append(check(probe))
            if findings[-1].status != "ok":
                return Report(tuple(findings))
        alone = partial(context.alone_equals_batch, examples=examples, collate=cast(Any, collate))
        for check in _OTHERS:
            if check.name == "learning" and examples and collate is not None:
                findings.append(Check(alone, "the examples", "see what collate makes")(probe))
            findings.append(check(probe))
    known = frozenset(finding.name for finding in Report(tuple(findings)).refused)
    training = partial(forward.training_mode, known=known)
    with torch.no_grad():
        findings.append(Check(training, "training mode", _MODES)(probe))
    return Report(tuple(findings))


def _inputs(model: Any, batch: Any, examples: Any, collate: Any) -> tuple[Batch, list[Any]]:
    """The batch and the examples that are used."""
    if not callable(model) or isinstance(model, type | Batch):
        raise UserError(call_problems(model, batch, "check_model(model, batch)")[0])
    if not any((collate is None, callable(collate))):
        raise UserError(f"collate must be a function from a list of examples to a Batch; got {type(collate).__name__}")
    if examples is not None and not isinstance(examples, Sequence):
        raise UserError(f"examples must be a list of what collate takes; got {type(examples).__name__}")
    if (examples is None) != (collate is None):
        raise UserError("examples and collate go together: collate makes a Batch of a list of examples")
    chosen = [] if examples is None else [examples[n] for n in range(min(_ROWS, len(examples)))]
    if batch is None and chosen:
        batch = context.collated(chosen, collate)
    if not isinstance(batch, Batch):
        raise UserError(
            f"check_model(model, batch) needs a freerun.Batch to try the model on, or examples and collate; got "
            f"{type(batch).__name__}"
        )
    if batch.size == 0 or batch.time == 0 or not bool(batch.mask.any()):
        raise UserError("the batch has no position that counts (mask True): nothing can be checked with it")
    if batch.present is not None:  # values are as good as any where gold is missing: the model is looked at
        known = {name: getattr(batch, name).nan_to_num() for name in ("targets", "history")}
        batch = batch.made(**known, present=None)
    return batch, chosen
