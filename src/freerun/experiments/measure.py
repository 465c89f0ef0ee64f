"""A model of one's own, measured: its scores both ways, and its exposure bias."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Never, cast

from freerun.arguments import refuse_unknown, refused
from freerun.batch import Batch, shape_of
from freerun.checks import examine
from freerun.diagnostics import DiagnosisOptions
from freerun.diagnostics import diagnose as diagnose_batches
from freerun.errors import UserError, refuse
from freerun.experiments.results import Diagnosis, Evaluation
from freerun.generation import head_of
from freerun.metrics.table import BATCHES_OF_IDS, BATCHES_OF_VALUES
from freerun.rollin.model import call_problems, has, unwrap
from freerun.tasks.batch_data import end_symbol, moments, read_batches, symbols_of
from freerun.tasks.batches import (
    BatchSettings,
    BatchTask,
    Scored,
    ValueBatchTask,
    evaluate_batches,
    on_device,
    run_freely,
)
from freerun.types import Ruled


def evaluate(
    model: Any,
    batches: Batch | Iterable[Batch],
    *,
    end: int | str | None = "auto",
    scores: Mapping[str, Callable[[Any, Batch], float]] | None = None,
    num_samples: int = 0,
    check: bool = True,
    **unknown: Never,
) -> Evaluation:
    """Score a model on gold history and running freely.

    Of ids: loss, token error (position by position; nothing is right after an output's own end), edit error and exact
    matches, greedily. Of values: NRMSE and mean squared error over each row, in standard deviations of these targets,
    and the median error by lead time. Beside them what needs no model: of ids the most frequent one, of values the last
    known one and the mean.

    Args:
        model: from a Batch to (batch, time, vocab) or (batch, time, value) outputs; its mode is restored afterwards.
        batches: a batch, a list, or a DataLoader whose collate function makes them.
        end: id of the end symbol; None: there is none; "auto": the id that ends every row and stands nowhere else.
        scores: further free-running scores by name: from (``Generated``, batch) to a number; their mean over batches.
        num_samples: of values, sample paths of every row, by which the law that a model with a head predicts is scored
            (CRPS, pinball loss of the deciles, coverage); 0: the one forecast alone.
        check: refuse a model that ``check_model`` refuses on the first batch, such as one that sees its target.

    Raises:
        UserError: no batches, something else than batches, or ids and values mixed; a score that returns no number, or
            whose name is taken.

    >>> import torch, freerun as fr
    >>> model = fr.models.RecurrentSeq2Seq(source_vocab=5, target_vocab=4, size=8)
    >>> source = {"source": torch.tensor([[3, 4]]), "source_mask": torch.ones(1, 2, dtype=torch.bool)}
    >>> sorted(fr.evaluate(model, fr.Batch(torch.tensor([[2, 1, 0]]), context=source)).free_running)
    ['edit_error', 'exact_match', 'most_frequent_edit_error', 'most_frequent_token_error', 'token_error']

    What it is not: a comparison; one number says nothing of another seed. That is ``fr.compare``'s.
    """
    refuse_unknown(
        "fr.evaluate", unknown, ("end", "scores", "num_samples", "check"), {"metrics": "did you mean scores?"}
    )
    listed = _listed(model, batches, "fr.evaluate(model, batches)", check=check)
    values = not listed[0].is_discrete
    settings = BatchSettings(num_samples=num_samples)
    wrong = (ValueBatchTask if values else BatchTask).evaluate_problems(settings, head_of(unwrap(model)), "")
    refuse([f"{problem}\n  help: {help}" for _, problem, help in wrong])
    metrics = (BATCHES_OF_VALUES if values else BATCHES_OF_IDS).metrics
    own = _checked_scores(scores, [each.score for each in metrics if num_samples or not each.optional])
    stop = end_symbol(listed) if end == "auto" else cast(int | None, end)
    found = evaluate_batches(model, listed, Scored(stop, num_samples=num_samples))
    sums = dict.fromkeys(own, 0.0)
    for batch in (on_device(model, each) for each in listed if own):
        generated = run_freely(model, batch, stop)
        for name, score in own.items():
            sums[name] += _number(name, score(generated, batch))
    free = {**found.free_running, **{name: total / len(listed) for name, total in sums.items()}}
    return Evaluation(found.teacher_forced, free, found.items, found.curves, values=values)


def _listed(model: Any, batches: Any, call: str, *, check: bool) -> list[Batch]:
    """The batches, of a model that can be called."""
    if not callable(model) or isinstance(model, type | Batch):
        raise UserError(call_problems(model, batches, call)[0])
    listed = read_batches(batches)
    if check:
        refuse_meaningless(model, listed[0])
    inner = unwrap(model)
    return [inner.scored(each) for each in listed] if has(inner, Ruled) else listed


_MEANINGLESS = (
    "shape", "finite", "logits", "mask_polarity", "reads_targets", "causal", "unshifted_history", "reads_last_entry",
    "holds_targets",
)  # fmt: skip
"""Findings with which no score means what its name says; others, such as padding that is seen, make a worse model."""


_REMEDY = "fr.check_model(model, batch) prints all findings; check=False goes on all the same"


def refuse_meaningless(model: Any, batch: Batch, remedy: str = _REMEDY) -> None:
    """Refuse a model whose scores would mean nothing, such as one that sees its target."""
    report = examine(model, on_device(model, batch))
    problems = [f"{each.name}: {each.explanation}" for each in report.refused if each.name in _MEANINGLESS]
    if problems:
        problems[-1] += f"\n  help: {remedy}"
        raise UserError(problems)


def _checked_scores(scores: Any, taken: Sequence[str]) -> Mapping[str, Callable[[Any, Batch], Any]]:
    """Scores of one's own by name; a UserError for those that are none, or have a name that is taken."""
    if scores is None:
        return {}
    if not isinstance(scores, Mapping):
        raise UserError(f"scores must map names to functions of (generated, batch); got {type(scores).__name__}")
    problems: list[str] = []
    for name, score in cast(Mapping[Any, Any], scores).items():
        if not isinstance(name, str):
            problems.append(f"a name of scores must be a word; got {name!r}")
        elif name in taken:
            problems.append(f"scores[{name!r}]: {name} is computed already, and would be replaced: use another name")
        if not callable(score):
            problems.append(f"scores[{name!r}] must be a function of (generated, batch); got {type(score).__name__}")
        elif why := refused(score, 2):
            problems.append(f"scores[{name!r}] is called as score(generated, batch){why}")
    refuse(problems)
    return cast(Mapping[str, Callable[[Any, Batch], Any]], scores)


def _number(name: str, value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise UserError(
            f"scores[{name!r}] must return a number for a batch; got {shape_of(value)}: use .mean() or float(...)"
        ) from error


_END = "it belongs to the options: options=freerun.diagnostics.DiagnosisOptions(end_symbol=...)"


def diagnose(
    model: Any,
    batches: Batch | Iterable[Batch],
    options: DiagnosisOptions | None = None,
    *,
    decode: Any = None,
    check: bool = True,
    on_progress: Callable[[str], None] | None = None,
    **unknown: Never,
) -> Diagnosis:
    """Measure how much error grows when a model is fed its own output in place of gold (exposure bias).

    ``freerun.diagnostics.diagnose`` has the measures and their papers.

    Args:
        model: any model; one of Hugging Face adapted by ``freerun.hf.adapt``.
        batches: a batch, a list, or a DataLoader; of values every row with the same horizon.
        options: what is known of the data; the end symbol of ids is found where it ends every row. Errors of values are
            in standard deviations of these targets, as in ``evaluate``, if ``options.moments`` has no others.
        decode: of ids, for the page: a list of their names, a mapping, or a function of a list of ids; None: numbers.
        check: refuse a model that ``check_model`` refuses on the first batch, such as one that sees its target.
        on_progress: called with what is being done, in words.

    Raises:
        UserError: no batches, ids and values mixed, horizons that differ.

    >>> import torch
    >>> class Halve:
    ...     def __call__(self, batch):
    ...         return torch.nn.functional.pad(batch.history, (0, 0, 1, 0))[:, :-1] / 2
    >>> gold = torch.tensor([[[8.0], [4.0], [2.0], [2.0]]])
    >>> print(diagnose(Halve(), Batch(gold, mask=torch.tensor([[False, True, True, True]]))).to_frame().columns)
    ['measure', 'free_running', 'teacher_forced']

    What it is not: a verdict between methods; that is ``fr.compare``'s.
    """
    known = ("options", "decode", "check", "on_progress")
    refuse_unknown("fr.diagnose", unknown, known, dict.fromkeys(("end", "end_symbol"), _END))
    listed = _listed(model, batches, "fr.diagnose(model, batches)", check=check)
    if not (on_progress is None or callable(on_progress)):
        raise UserError(f"on_progress must be a function of a text; got {type(on_progress).__name__}")
    if options is None:
        options = DiagnosisOptions(end_symbol=end_symbol(listed) if listed[0].is_discrete else None)
    if isinstance(options, DiagnosisOptions) and options.moments is None and not listed[0].is_discrete:  # pyright: ignore[reportUnnecessaryIsInstance]
        options = replace(options, moments=moments(listed))
    if decode is not None and isinstance(options, DiagnosisOptions):  # pyright: ignore[reportUnnecessaryIsInstance]
        options = replace(options, decode=symbols_of(decode, listed[0]))
    here = [on_device(model, batch) for batch in listed]
    found = diagnose_batches(model, here, options, on_progress=on_progress)
    return Diagnosis(found, type(model).__name__)
