"""What the measures of ids are computed from: one pass on gold history, free runs, and a pass on their entries."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from freerun.arguments import brief
from freerun.batch import Batch
from freerun.draws import Draw, Sample, resolve
from freerun.generation import Generated, generate, prompt_lengths
from freerun.keys import fold, uniform
from freerun.metrics.accumulation import divergence
from freerun.rollin.model import eval_mode, forward, has, unwrap
from freerun.types import Split


@dataclass(frozen=True, eq=False)
class Pass:
    """Predictions along a history, each row from the end of its prompt on: (rows, length) each.

    Args:
        entries: the ids that the history holds there.
        mask: positions that count.
        choice: the likeliest id.
        confidence: its probability.
        entropy: of the prediction, nats.
        loss: of ``entries``, nats.
        divergence: from the oracle; zeros without one, and where nothing counts.
        hidden: (rows, size) the state at one position of each row, NaN where there is none; or (rows, 0).
    """

    __repr__ = brief

    entries: Tensor
    mask: Tensor
    choice: Tensor
    confidence: Tensor
    entropy: Tensor
    loss: Tensor
    divergence: Tensor
    hidden: Tensor


@dataclass(frozen=True, eq=False)
class Rows:
    """All rows of the batches: the pass on gold, free runs and the passes on their entries.

    Args:
        gold: on gold history.
        greedy: on the greedy free run.
        sampled: on the sampled one.
        lengths: free run -> (rows,) symbols before the end symbol.
        mistakes: (rows, length) an id that the model samples at each position, gold and the end symbol left out.
        limit: (rows,) entries that free runs were generated to.
    """

    __repr__ = brief

    gold: Pass
    greedy: Pass
    sampled: Pass
    lengths: dict[str, Tensor]
    mistakes: Tensor
    limit: Tensor


@dataclass(frozen=True, eq=False)
class RunOptions:
    """What the passes need; ``margin``: entries of a free run beyond the longest gold row of its batch."""

    __repr__ = brief

    end: int | None
    margin: int
    draw: str | Draw
    oracle: Any
    key: int
    divergence: str = "forward"


def answer_positions(batch: Batch) -> Tensor:
    """(rows, longest) each row's positions from the end of its prompt on, as many as the longest answer has."""
    prompts = prompt_lengths(batch)
    index = torch.arange(batch.time, device=prompts.device)
    length = int((torch.where(batch.mask, index + 1, 0).amax(1) - prompts).max())
    return prompts[:, None] + torch.arange(max(1, length), device=prompts.device)


def split_batches(model: Any, batches: Sequence[Batch], cells: int = 2**26) -> list[Batch]:
    """The batches in parts of at most so many output numbers (rows x time x vocabulary), one row at least."""
    with eval_mode(model), torch.no_grad():
        vocab = forward(model, batches[0].select(torch.zeros(1, dtype=torch.int64))).shape[2]
    parts: list[Batch] = []
    for batch in batches:
        size = max(1, cells // (vocab * batch.time))
        whole = batch.size <= size
        parts += [batch] if whole else [batch.select(rows) for rows in torch.arange(batch.size).split(size)]
    return parts


def run_rows(model: Any, batches: Sequence[Batch], options: RunOptions, on_progress: Callable[[str], None]) -> Rows:
    """Run all batches on gold and freely, greedily and sampled."""
    parts: list[Rows] = []
    for number, batch in enumerate(batches):
        on_progress(f"rows, part {number + 1} of {len(batches)}")
        parts.append(_run_batch(model, batch, options, fold(options.key, number)))
    names = ("gold", "greedy", "sampled")
    joined: dict[str, Any] = {name: _joined([getattr(part, name) for part in parts]) for name in names}
    lengths = {name: torch.cat([part.lengths[name] for part in parts]) for name in parts[0].lengths}
    return Rows(
        **joined,
        lengths=lengths,
        mistakes=_stacked([p.mistakes for p in parts]),
        limit=torch.cat([p.limit for p in parts]),
    )


def _joined(passes: Sequence[Pass]) -> Pass:
    return Pass(**{each.name: _stacked([getattr(one, each.name) for one in passes]) for each in fields(Pass)})


def _stacked(parts: Sequence[Tensor]) -> Tensor:
    """Rows of all batches, padded to the longest."""
    longest = max(part.shape[1] for part in parts)
    return torch.cat([F.pad(part, (0, longest - part.shape[1])) for part in parts])


def _run_batch(model: Any, batch: Batch, options: RunOptions, key: int) -> Rows:
    where = answer_positions(batch)
    mask = batch.mask.gather(1, where.clamp_max(batch.time - 1)) & (where < batch.time)
    entries = batch.targets.gather(1, where.clamp_max(batch.time - 1)).masked_fill(~mask, 0)
    length = where.shape[1] + _margin(model, int(where[:, 0].max()) + where.shape[1], options)
    runs: dict[str, Generated] = {}
    for name, draw in (("greedy", "greedy"), ("sampled", options.draw)):
        runs[name] = generate(model, batch, length=length, end=options.end, beams=1, draw=draw, key=fold(key, name))
    on_gold = _Context(batch, where, entries, mask, _outputs(model, batch, where))
    contexts = {"gold": on_gold} | {name: _own_context(model, batch, run) for name, run in runs.items()}
    # the same position of each row for both states, not the first: there nothing of their own has been read
    common = torch.minimum(mask.sum(1), contexts["greedy"].mask.sum(1))
    share = uniform(fold(key, "hidden"), torch.arange(batch.size)).to(common.device)
    at = torch.where(common > 1, 1 + (share * (common - 1)).long(), -1)
    states = {"gold": at, "greedy": at, "sampled": None}
    passes = {name: _passed(model, context, options, states[name]) for name, context in contexts.items()}
    lengths = {name: run.lengths.cpu() for name, run in runs.items()}
    mistakes = _mistakes(on_gold.outputs, entries, options.end, key)
    return Rows(**passes, lengths=lengths, mistakes=mistakes, limit=torch.full((batch.size,), length))


def _margin(model: Any, longest: int, options: RunOptions) -> int:
    """Entries beyond the longest gold row: none without an end symbol, and no more than the model has positions for."""
    if options.end is None:
        return 0
    limit = getattr(unwrap(model), "max_positions", None)
    return max(0, min(options.margin, limit - longest)) if isinstance(limit, int) else options.margin


@dataclass(frozen=True, eq=False)
class _Context:
    """A batch, (rows, length) where its entries stand, the entries, which count, and log-probabilities there."""

    batch: Batch
    where: Tensor
    entries: Tensor
    mask: Tensor
    outputs: Tensor


def _outputs(model: Any, batch: Batch, where: Tensor) -> Tensor:
    """(rows, length, vocab) log-probabilities at these positions."""
    with eval_mode(model), torch.no_grad():
        outputs = forward(model, batch)
        index = where.clamp_max(batch.time - 1)[..., None].expand(-1, -1, outputs.shape[2])
        kept = outputs.gather(1, index.to(outputs.device))
    return (kept if kept.dtype == torch.float64 else kept.float()).log_softmax(-1)


def _passed(model: Any, context: _Context, options: RunOptions, at: Tensor | None) -> Pass:
    entries, mask, outputs = context.entries, context.mask, context.outputs
    best = outputs.max(-1)
    apart = torch.zeros(entries.shape, dtype=torch.float64)
    if options.oracle is not None:
        oracle = _outputs(options.oracle, context.batch, context.where).to(outputs.device)
        apart = divergence(oracle, outputs, options.divergence).masked_fill(~mask, 0.0)
    probabilities = outputs.exp()
    entropy = -torch.where(probabilities > 0, probabilities * outputs, 0.0).sum(-1)
    loss = -outputs.gather(2, entries[..., None])[..., 0]
    return Pass(
        entries.cpu(),
        mask.cpu(),
        best.indices.cpu(),
        best.values.exp().double().cpu(),
        entropy.double().cpu(),
        loss.double().masked_fill(~mask, 0.0).cpu(),
        apart.cpu(),
        _hidden(model, context, at),
    )


def _hidden(model: Any, context: _Context, at: Tensor | None) -> Tensor:
    """(rows, size) states before the entries ``at`` (rows,), NaN where it is -1; (rows, 0) without states."""
    batch, where = context.batch, context.where
    if at is None or not has(model, Split):
        return torch.zeros(batch.size, 0)
    with eval_mode(model), torch.no_grad():
        states = model.hidden(batch)
    chosen = where.gather(1, at.clamp_min(0)[:, None])[:, 0].to(states.device)
    found = states[torch.arange(batch.size, device=states.device), chosen].double().cpu()
    return found.masked_fill(at.cpu()[:, None] < 0, torch.nan)


def _own_context(model: Any, batch: Batch, run: Generated) -> _Context:
    """A free run's own entries, its end symbol included."""
    own, where = own_batch(batch, run)
    mask = own.mask.gather(1, where)
    return _Context(own, where, run.entries.masked_fill(~mask, 0), mask, _outputs(model, own, where))


def own_batch(batch: Batch, run: Generated) -> tuple[Batch, Tensor]:
    """A batch whose history is each row's prompt and free run, and (rows, length) where the free run stands."""
    prompts, length = prompt_lengths(batch), run.entries.shape[1]
    time = max(batch.time, int(prompts.max()) + length)
    where = prompts[:, None] + torch.arange(length, device=prompts.device)
    index = torch.arange(time, device=prompts.device)
    history = F.pad(batch.history, (0, time - batch.time)).masked_fill(index >= prompts[:, None], 0)
    history = history.scatter(1, where, run.entries)
    # the end symbol is an entry of the model's, too
    mask = (index >= prompts[:, None]) & (index <= (prompts + run.lengths)[:, None])
    mask = mask & (index < (prompts + length)[:, None])
    blank = batch.made(weights=None, eligible=None, rows=batch.row_numbers)
    return blank.made(targets=history, history=history, mask=mask), where


def _mistakes(outputs: Tensor, entries: Tensor, end: int | None, key: int) -> Tensor:
    """(rows, length) a sample of each prediction with gold and the end symbol left out."""
    rest = outputs.scatter(2, entries[..., None], -torch.inf)
    if end is not None and outputs.shape[2] > 2:
        rest[..., end] = -torch.inf
    # a prediction that is certain leaves nothing: any other id
    rest = torch.where(rest.isinf().all(-1, keepdim=True), torch.zeros_like(rest), rest)
    rest = rest.scatter(2, entries[..., None], -torch.inf)
    rows, times = (torch.arange(n) for n in entries.shape)
    noise = uniform(fold(key, "mistake"), rows[:, None], times).flatten().to(outputs.device)
    return Sample().choose(rest.flatten(0, 1), noise).view(entries.shape).cpu()


def prefix_batch(batch: Batch, shares: float = 0.5) -> tuple[Batch, Tensor]:
    """The batch with the first half of each row's answer made a part of its prompt, and (rows,) how many entries."""
    where = answer_positions(batch)
    prompts = where[:, 0]
    size = torch.where(batch.mask, torch.arange(batch.time, device=prompts.device) + 1, 0).amax(1) - prompts
    taken = (size * shares).long()
    known = torch.arange(batch.time, device=prompts.device) < (prompts + taken)[:, None]
    history = torch.where(batch.mask & known, batch.targets, batch.history)
    return replace(batch, history=history, mask=batch.mask & ~known, eligible=batch.replaceable & ~known), taken


def drawn(draw: Draw | None) -> str | Draw:
    """The draw of sampled runs: plain sampling, if none is named."""
    return "sample" if draw is None else resolve(draw)
