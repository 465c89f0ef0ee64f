"""Free runs of a model in training: sequences of its own, each to its own end, as a batch that is scored."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from freerun.batch import Batch
from freerun.decoding import blank_batch, prompt_lengths
from freerun.draws import Draw
from freerun.errors import UserError
from freerun.generation import free_runs
from freerun.keys import fold
from freerun.rollin import unwrap
from freerun.rollin.model import asking
from freerun.targets import OptimalCompletion
from freerun.types import Ruled

_APART = 2**43  # between the numbers of a row's samples

OF_GOLD = {
    "horizon": "whose runs end by themselves",
    "loss_on": "whose loss is on all entries of its runs",
    "target": "which has targets of its own",
}
"""Why arguments about gold's positions have no effect with a method that learns from its own runs."""


def end_of(end: int | str | None, model: Any, batch: Batch, name: str) -> int:
    """The end symbol: the argument, or that of the model's own generation.

    Raises:
        UserError: there is none.
    """
    if isinstance(end, int):
        return end
    ends = model_ends(model, batch)
    if len(ends) == 1:
        return ends[0]
    known = f"its generation ends with any of {list(ends)}" if ends else "the model has no end symbol of its own"
    raise UserError(f"{name} lets rows end by themselves, and {known}: pass end=, the id that ends a row")


def model_ends(model: Any, batch: Batch) -> Sequence[int]:
    """The end symbols of the model's own generation."""
    inner = unwrap(model)
    return inner.generation_defaults(batch).ends if isinstance(inner, Ruled) else ()


def with_end(method: Any, end: int | None) -> Any:
    """The method; of one that needs an end symbol, or feeds it as a blank, and names none, with that of the data.

    Raises:
        UserError: optimal completions are the target, and neither they nor the data name an end symbol.
    """
    unused = getattr(method, "unused", ())
    names = [n for n in ("end", "blank") if end is not None and n not in unused and getattr(method, n, end) is None]
    found: dict[str, Any] = dict.fromkeys(names, end)
    aim = "expert" if hasattr(method, "expert") else "target"
    if getattr(method, aim, None) in ("optimal_completion", OptimalCompletion()):
        if end is None:
            raise UserError(
                f"{aim}: optimal completions are of symbols, up to an end symbol, which these data have not in each "
                f'row: take another {aim}, or name the id that ends each row, {{ target = "optimal_completion", end = '
                "... }"
            )
        found[aim] = OptimalCompletion(end)
    return replace(method, **found) if found else method


def row_limits(model: Any, batch: Batch, margin: int) -> Tensor:
    """(batch,) how long a run may become: a row's counted targets and ``margin`` more, as far as positions reach."""
    lengths = batch.mask.sum(1)
    limits, positions = lengths + margin, getattr(unwrap(model), "max_positions", None)
    if isinstance(positions, int):
        limits = torch.minimum(limits, positions - prompt_lengths(batch))
    return torch.where(lengths > 0, torch.maximum(limits, lengths), 0)


def beginnings(batch: Batch) -> Tensor:
    """(batch, time) bool: counted entries that rows begin with and ``eligible`` excludes, as ids that are forced.

    Raises:
        UserError: what own runs cannot honour, whatever share of a row they make.
    """
    if not batch.is_discrete:
        raise UserError("own runs to an end symbol are of symbols, and these targets are values: use free_running")
    if batch.weights is not None:
        raise UserError("weights are of gold's positions, and own runs have others: leave batch.weights out")
    # a row's last entry is fed nowhere, so that it is no choice of anybody's
    fixed = batch.mask & ~batch.replaceable & (batch.mask.flip(1).cumsum(1).flip(1) > 1)
    leading = fixed & ((batch.mask & batch.replaceable).cumsum(1) == 0)
    if bool((fixed & ~leading).any()):
        rows = int((fixed & ~leading).any(1).sum())
        raise UserError(
            f"{rows} rows have counted entries that eligible excludes after others that it does not, and own runs go "
            "on to the end of a row: use a method that keeps single entries, scheduled_sampling"
        )
    return leading


def refuse_endless(method: Any, model: Any, batch: Batch) -> None:
    """Refuse rows of gold that do not end with the end symbol, once, or that have entries between that do not count."""
    OptimalCompletion(end_of(method.end, model, batch, method.name)).gold(batch)


def own_runs(
    model: Any,
    batch: Batch,
    *,
    draw: str | Draw,
    key: int,
    step: int,
    end: int | None,
    margin: int,
    num_samples: int = 1,
    ruled: bool = True,
) -> Batch:
    """Runs of the model from each row's prompt to its own end, without gradient.

    Args:
        model: called in evaluation mode.
        batch: its history gold, without ``eligible``; known leading entries are the prompt.
        draw: "sample", "greedy" or a draw.
        key: with ``step`` and a row's number all that the noise depends on.
        step: the optimizer step.
        end: id that ends a row; None: every run is as long as it may become.
        margin: a run is cut so many entries beyond the row's counted targets, or at the model's last position.
        num_samples: runs of each row, side by side: rows r * num_samples to (r + 1) * num_samples - 1.
        ruled: whether what a model's own generation forces, forbids and reweighs is applied; its beams never are.

    Returns:
        a batch whose targets and history are prompt and run, and whose mask holds the run, its end included.
    """
    limits = row_limits(model, batch, margin)
    noise = fold(key, "own runs", int(step))
    # a row without targets makes its last entry again, of no use: there is room for it
    last = torch.arange(batch.time, device=limits.device) == (prompt_lengths(batch) - 1).clamp_min(0)[:, None]
    begun = batch.made(mask=batch.mask | (limits == 0)[:, None] & last)
    more: Any = {"num_samples": num_samples, "ruled": ruled}
    with asking(unwrap(model), batch):
        made = free_runs(model, begun, limits.clamp_min(1), end=end, draw=draw, key=noise, **more)
    rows = torch.arange(batch.size, device=batch.mask.device).repeat_interleave(num_samples)
    numbers = torch.arange(num_samples, device=rows.device).repeat(batch.size) * _APART
    entries, lengths = made.entries, made.lengths
    if num_samples > 1:
        entries, lengths = entries.flatten(0, 1), lengths.flatten()
    lengths = torch.minimum(lengths + 1, limits[rows])  # the end symbol is one of them
    prompts = prompt_lengths(batch)
    blank = blank_batch(batch, prompts, limits)
    blank = blank.select(rows).made(rows=blank.row_numbers[rows] + numbers)
    return with_entries(blank, entries, lengths, prompts[rows])


def with_entries(blank: Batch, entries: Tensor, lengths: Tensor, prompts: Tensor) -> Batch:
    """A batch with entries (rows, n), of which the first ``lengths`` (rows,) count, after the prompts (rows,)."""
    used = torch.arange(entries.shape[1], device=entries.device) < lengths[:, None]
    at = prompts[:, None] + torch.arange(entries.shape[1], device=entries.device)
    time = max(int((prompts + lengths).max()), 1)
    row = torch.arange(len(entries), device=entries.device)[:, None].expand_as(at)
    history = blank.history.clone()
    history[row[used], at[used]] = entries[used]
    mask = torch.zeros_like(blank.mask)
    mask[row[used], at[used]] = True
    history, mask = history[:, :time], mask[:, :time]
    return blank.made(targets=history, history=history, mask=mask, eligible=None)


def run_report(batch: Batch, runs: Batch) -> dict[str, float | str]:
    """Counts of a step on own runs: entries made, and those that are not gold's at their position."""
    made = int(runs.mask.sum())
    time = min(batch.time, runs.time)
    equal = (batch.targets[:, :time] == runs.history[:, :time]) & batch.mask[:, :time] & runs.mask[:, :time]
    report: dict[str, float | str] = {"eligible": made, "replaced": made, "disagreeing": made - int(equal.sum())}
    # in forwards of gold: the runs, and the forward on them, which is the one that every method makes
    work = 2 * made / max(int(batch.mask.sum()), 1) - 1
    return {**report, "passes": 1.0, "work": work, "engine": "generate"}
