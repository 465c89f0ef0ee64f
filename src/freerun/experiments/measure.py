"""A model of one's own, measured: its scores both ways, and its exposure bias."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, cast

from freerun.batch import Batch
from freerun.diagnostics import DiagnosisOptions
from freerun.diagnostics import diagnose as diagnose_batches
from freerun.diagnostics.diagnose import answer_positions
from freerun.errors import UserError
from freerun.experiments.results import Diagnosis, Evaluation
from freerun.generation import draw_for, generate
from freerun.tasks.batches import end_symbol, evaluate_batches, read_batches


def evaluate(
    model: Any,
    batches: Batch | Iterable[Batch],
    *,
    end: int | str | None = "auto",
    scores: Mapping[str, Callable[[Any, Batch], float]] | None = None,
) -> Evaluation:
    """Score a model on gold history and running freely.

    Of ids: loss, token error (position by position), edit error and exact matches, greedily. Of values: NRMSE and mean
    squared error over each row, in standard deviations of these targets, and the median error by lead time.

    Args:
        model: from a Batch to (batch, time, vocab) or (batch, time, value) outputs; its mode is restored afterwards.
        batches: a batch, a list, or a DataLoader whose collate function makes them.
        end: id of the end symbol; None: there is none; "auto": the id that ends every row and stands nowhere else.
        scores: further free-running scores by name: from (``Generated``, batch) to a number; their mean over batches.

    Raises:
        UserError: no batches, something else than batches, or ids and values mixed.

    >>> import torch, freerun as fr
    >>> model = fr.models.RecurrentSeq2Seq(source_vocab=5, target_vocab=4, size=8)
    >>> source = {"source": torch.tensor([[3, 4]]), "source_mask": torch.ones(1, 2, dtype=torch.bool)}
    >>> sorted(fr.evaluate(model, fr.Batch(torch.tensor([[2, 1, 0]]), context=source)).free_running)
    ['edit_error', 'exact_match', 'token_error']

    What it is not: a comparison; one number says nothing of another seed. That is ``fr.compare``'s.
    """
    listed = read_batches(batches)
    stop = end_symbol(listed) if end == "auto" else cast(int | None, end)
    found = evaluate_batches(model, listed, end=stop)
    free = dict(found.free_running)
    for name, score in (scores or {}).items():
        if not callable(score):
            raise UserError(f"scores[{name!r}] must be a function of (generated, batch); got {type(score).__name__}")
        numbers: list[float] = []
        for batch in listed:
            draw = "greedy" if batch.is_discrete else draw_for(model)
            length = answer_positions(batch).shape[1]
            numbers.append(float(score(generate(model, batch, length=length, end=stop, draw=draw), batch)))
        free[name] = sum(numbers) / len(numbers)
    return Evaluation(found.teacher_forced, free, found.items, found.curves, values=not listed[0].is_discrete)


def diagnose(
    model: Any,
    batches: Batch | Iterable[Batch],
    options: DiagnosisOptions | None = None,
    *,
    on_progress: Callable[[str], None] | None = None,
) -> Diagnosis:
    """Measure how much error grows when a model is fed its own output in place of gold (exposure bias).

    ``freerun.diagnostics.diagnose`` has the measures and their papers.

    Args:
        model: any model; one of Hugging Face adapted by ``freerun.hf.adapt``.
        batches: a batch, a list, or a DataLoader; of values every row with the same horizon.
        options: what is known of the data; the end symbol of ids is found where it ends every row.
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
    listed = read_batches(batches)
    if options is None:
        options = DiagnosisOptions(end_symbol=end_symbol(listed) if listed[0].is_discrete else None)
    found = diagnose_batches(model, listed, options, on_progress=on_progress)
    return Diagnosis(found, type(model).__name__)
