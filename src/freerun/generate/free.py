"""Free running: a model goes on from its own output, and from a prompt. Greedy, sampling and beam search."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from typing import Any, Never

import torch
from torch import Tensor

from freerun.arguments import is_number, unknown_argument
from freerun.draws import Draw, Greedy, Point, check_width, resolve
from freerun.errors import UserError, whole
from freerun.generate.beam import Ask, Generated, beam_search
from freerun.generate.walk import Walk, begin, log_probs, prompt_lengths, together
from freerun.keys import fold
from freerun.rollin.modes import evaluating, uncached_autocast
from freerun.rollin.outputs import call_problems, explained_errors
from freerun.rollin.together import refuse_sharded, unwrapped
from freerun.types import Batch

__all__ = ["generate"]


def generate(
    model: Any,
    batch: Batch,
    *,
    length: int | None = None,
    end: int | None = None,
    beams: int = 1,
    draw: str | Draw = "greedy",
    key: int = 0,
    length_penalty: float = 0.0,
    n_best: int = 1,
    **unknown: Never,
) -> Generated:
    """Let a model run freely: each output becomes the next input.

    ``entry[t] = draw(model(context, prompt, entry[:t]))``. A row's prompt is what its history begins with and is
    known: the leading entries that are neither eligible nor in the mask. Prompts may differ in length, each row
    speaking where its own ends, or be padded on the left where the model can tell (``TransformerLM``: ``present``
    in the context). Greedily this is the history of ``free_running``, and at the same ``key`` and step 0 it is so
    for samples.

    Beam search is length-synchronous: of all continuations the best ``beams`` stay; those among them that end go
    to a pool of the best ``beams``, and a row is done when nothing alive can enter its ``n_best``. Hypotheses are
    compared by ``log P / ((5 + n) / 6) ** length_penalty``, n counting the end symbol; ties go to the lower index.
    With ``length_penalty=0`` this is the search of Hugging Face's ``generate`` with ``length_penalty=0.0`` and
    ``early_stopping`` "never" or False; otherwise theirs divides by ``n ** length_penalty``, and with True stops as
    soon as the pool is full.

    Runs without gradient in evaluation mode and restores each submodule's mode. A model with the Stepper
    methods goes on position by position, any other is asked with a growing history; one with ``encode``
    encodes once. A ``Cached`` model reads all prompts in one call; another Stepper reads them position by
    position, the rows of each prompt length by themselves.

    Args:
        model: from Batch to (batch, time, vocab) logits or (batch, time, value) values.
        batch: only ``context``, ``rows``, the kind of ``targets`` (ids or values) and the prompts are used; targets
            and history may hold anything else, and the model is shown zeros in its place.
        length: entries to make at most for each row (2**24 at most), the end symbol included, the prompt not.
        end: id of the end symbol; None: there is none, and every row runs to ``length``.
        beams: 1 for greedy or sampling; more (2**16 at most) for beam search (ids only, with ``draw="greedy"``).
        draw: "greedy", "sample" or a draw object; values are fed back as predicted ("point", the default), or for a
            model with a distribution head as its mean ("expected") or a sample ("gaussian" and so on).
        key: randomness is a function of (key, row, position), rows being ``batch.row_numbers`` and positions those
            of the history, the prompt included.
        length_penalty: 0 to 32; 0 compares log-probabilities (Wu et al. 2016, arXiv:1609.08144: 0.6 to 1).
        n_best: how many hypotheses of the beam to give back.

    Raises:
        UserError: for arguments out of range, all at once; for sharded parameters.
        DivergedError: for logits that are NaN. Values are given back as they come, NaN and infinity too: a run that
            diverges is a result.

    >>> class Count:  # says 1, then 2, then 0, whatever the context
    ...     def __call__(self, batch):
    ...         before = torch.nn.functional.pad(batch.history, (1, 0))[:, :-1]
    ...         return torch.nn.functional.one_hot((before + 1) % 3, 3) * 100.0
    >>> blank = torch.zeros(1, 1, dtype=torch.long)
    >>> said = generate(Count(), Batch(blank, blank, blank == 0), length=5, end=0)
    >>> said.entries, said.lengths
    (tensor([[1, 2, 0, 0, 0]]), tensor([2]))

    A prompt: the 1 is known, the rest is to be said.

    >>> told = torch.tensor([[1, 0, 0]])
    >>> generate(Count(), Batch(told, told, torch.tensor([[False, True, True]])), length=2).entries
    tensor([[2, 0]])

    What it is not: a way to be told anything after the prompt. An entry in the mask is to be said, whatever
    ``eligible`` says of it.
    """
    if problems := call_problems(model, batch, "generate(model, batch, length=...)"):
        raise UserError(problems)
    made: Any = Ask  # its fields are looked at once they are in it
    ask = made(length, end, beams, length_penalty, n_best)
    problems = [unknown_argument("generate", name, _KNOWN) for name in unknown]
    problems += [*_range_problems(ask, bool(unknown)), *_kind_problems(batch, ask, draw)]
    if whole(key) is None:
        problems.append(f"key must be a whole number; got {key!r}")
    if problems:
        raise UserError(problems)
    with explained_errors(model):
        return _ran(unwrapped(model), batch, ask, draw, key)


_LONGEST, _WIDEST, _STEEPEST = 2**24, 2**16, 32  # beyond, memory or float32 ends first
_KNOWN = ("length", "end", "beams", "draw", "key", "length_penalty", "n_best")


def _ran(model: Any, batch: Batch, ask: Ask, draw: str | Draw, key: int) -> Generated:
    refuse_sharded(model, "generate calls a model as long as a row goes on", "give it a whole model")
    chosen = Point() if draw == "greedy" and not batch.is_discrete else resolve(draw)
    with torch.no_grad(), evaluating(model), uncached_autocast(batch.history.device):
        groups = together(model, prompt_lengths(batch))
        if len(groups) == 1:
            return _run(model, batch, ask, chosen, key)
        parts = [_run(model, batch.select(rows), ask, chosen, key) for rows in groups]
        order = torch.cat(groups).argsort()
        names = (each.name for each in fields(Generated))
        return Generated(*(torch.cat([getattr(part, name) for part in parts])[order] for name in names))


def _run(model: Any, batch: Batch, ask: Ask, draw: Draw, key: int) -> Generated:
    told = prompt_lengths(batch)
    walk = begin(model, batch, told, ask.length)
    if ask.beams > 1:
        return beam_search(walk, batch.size, ask)

    def choose(outputs: Tensor, rows: Tensor, t: int) -> Tensor:
        # the key of a roll-in at step 0
        noise = draw.noise(fold(key, "draw", 0), batch.row_numbers[rows], told[rows] + t, outputs.shape[-1])
        return draw.choose(outputs, noise)

    every = torch.arange(batch.size, device=told.device)
    if not batch.is_discrete:
        check_width(draw, walk.predict(), batch.history.shape[2])
        return _values(walk, every, ask, choose)
    return _one_each(walk, every, ask, choose)


def _range_problems(ask: Ask, meant: bool) -> list[str]:
    """Counts and ids out of range; a length under another name is not missing as well."""
    counts: dict[str, tuple[Any, int]] = {
        "length": (ask.length, _LONGEST),
        "beams": (ask.beams, _WIDEST),
        "n_best": (ask.n_best, _WIDEST),
    }
    if meant:
        counts.pop("length")
    problems = [
        f"{name} must be a whole number of at least 1 and at most {most}; got {value!r}"
        for name, (value, most) in counts.items()
        if whole(value) is None or not 1 <= value <= most
    ]
    if not problems and not meant and ask.n_best > ask.beams:
        problems.append(f"n_best must not exceed beams = {ask.beams}; got {ask.n_best}: raise beams")
    if not is_number(ask.length_penalty) or not 0 <= ask.length_penalty <= _STEEPEST:
        problems.append(f"length_penalty must be a finite number from 0 to {_STEEPEST}; got {ask.length_penalty!r}")
    if ask.end is not None and (whole(ask.end) is None or ask.end < 0):
        problems.append(f"end must be the id of the end symbol, or None; got {ask.end!r}")
    return problems


def _kind_problems(batch: Batch, ask: Ask, draw: str | Draw) -> list[str]:
    problems: list[str] = []
    chosen = None
    try:
        chosen = resolve(draw)
    except UserError as error:
        problems += error.problems
    many = isinstance(ask.beams, int) and ask.beams > 1
    if batch.is_discrete:
        if chosen is not None and chosen.values:
            problems.append(f"targets are ids, and draw {chosen!r} is for values: use 'greedy' or 'sample'")
        elif many and chosen is not None and not isinstance(chosen, Greedy):
            problems.append(f"beam search draws nothing: with beams={ask.beams} use draw='greedy'; got {chosen!r}")
    else:
        if chosen is not None and not chosen.values and draw != "greedy":
            problems.append(f"targets are real values, and draw {chosen!r} is for ids: use draw='point'")
        if many:
            problems.append(f"beams are for ids, and targets are real values: use beams=1; got {ask.beams}")
        if ask.end is not None:
            problems.append(f"real values have no end symbol: use end=None; got {ask.end}")
    return problems


def _values(walk: Walk, rows: Tensor, ask: Ask, choose: Callable[[Tensor, Tensor, int], Tensor]) -> Generated:
    entries: list[Tensor] = []
    for t in range(ask.length):
        entries.append(choose(walk.predict(), rows, t))
        if t + 1 < ask.length:
            walk.advance(entries[t], None)
    lengths = torch.full_like(rows, ask.length)
    return Generated(torch.stack(entries, 1), lengths, entries[0].new_zeros(len(rows)))


def _one_each(walk: Walk, rows: Tensor, ask: Ask, choose: Callable[[Tensor, Tensor, int], Tensor]) -> Generated:
    """Greedy and sampling; rows that have ended leave once a quarter of those still carried has."""
    size, device = rows.numel(), rows.device  # rows: those still carried
    fill = 0 if ask.end is None else ask.end
    entries = torch.full((size, ask.length), fill, dtype=torch.int64, device=device)
    lengths = torch.full((size,), ask.length, device=device)
    scores: Tensor | None = None
    open_ = torch.ones_like(rows, dtype=torch.bool)  # of these, not ended
    for t in range(ask.length):
        outputs = walk.predict()
        predicted = log_probs(outputs, ask.end)
        chosen = torch.where(open_, choose(outputs, rows, t), fill)
        gained = predicted.gather(1, chosen[:, None]).squeeze(1)
        scores = predicted.new_zeros(size) if scores is None else scores
        scores[rows] += torch.where(open_, gained, 0)
        entries[rows, t] = chosen
        if ask.end is not None:
            ended = open_ & (chosen == ask.end)
            lengths[rows[ended]] = t
            open_ = open_ & ~ended
        going = int(open_.sum())
        if going == 0 or t + 1 == ask.length:
            break
        picked = open_.nonzero().squeeze(1) if going <= 0.75 * rows.numel() else None
        if picked is not None:
            rows, chosen, open_ = rows[picked], chosen[picked], open_[picked]
        walk.advance(chosen, picked)
    assert scores is not None
    return Generated(entries, lengths, scores)
