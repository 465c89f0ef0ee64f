"""Free running: greedy, sampling and beam search for anything with a forward; no gold is seen but a prompt."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Never, cast

import torch
from torch import Tensor

from freerun.arguments import at_least, between, brief, field_problems, unknown_argument
from freerun.batch import Batch
from freerun.decoding import DecodingState, Run, Stream, blank_batch, lockstep_groups, prompt_lengths, start_decoding
from freerun.distributions import HEADS
from freerun.draws import DRAWS, Draw, Greedy, Point, check_width, is_plain, refuse_mixture, resolve
from freerun.errors import DivergedError, UserError, refuse, whole
from freerun.keys import fold
from freerun.rollin.model import (
    call_problems,
    eval_mode,
    explained_errors,
    has,
    refuse_sharded,
    stepping,
    unwrap,
)
from freerun.types import GenerationDefaults, Ruled, Rules


def log_probs(outputs: Tensor, ends: Sequence[int]) -> Tensor:
    """(n, vocab) log-probabilities, at least float32; NaN is refused."""
    if wrong := [end for end in ends if end >= outputs.shape[-1]]:
        raise UserError(f"end must be one of the model's {outputs.shape[-1]} ids; got {wrong[0]}")
    if outputs.dtype in (torch.bfloat16, torch.float16):
        outputs = outputs.float()
    scores = outputs.log_softmax(-1)
    if bool(scores.isnan().any()):
        raise DivergedError("the model's outputs hold NaN (or a row of -inf): nothing can be generated from them")
    return scores


@dataclass(frozen=True, eq=False)
class Generated:
    """Outputs of a free run.

    Args:
        entries: (batch, length) ids, ``end`` (of several the first) after the end, or (batch, length, value); after
            the batch another dimension of ``n_best > 1`` hypotheses, best first, or ``num_samples > 1`` samples.
        lengths: (batch,), or with that dimension, int64: entries before the end symbol; ``length`` where none came.
        scores: as lengths: log-probability of the entries, the end symbol included, under
            the model itself (no temperature, truncation or length penalty in it; what its own generation forces or
            forbids is); 0 for values. Where the model allows fewer than n_best hypotheses, the missing ones have
            length 0 and score -inf.
        state: with ``state=True``, or where the run has gone on from one: what the next call goes on from.
    """

    __repr__ = brief

    entries: Tensor
    lengths: Tensor
    scores: Tensor
    state: Stream | None = None


@dataclass(frozen=True)
class GenerateOptions:
    """The arguments of ``generate``; beyond their bounds memory or float32 ends first."""

    __repr__ = brief

    length: int = between(1, 2**24)
    end: tuple[int, ...] = at_least(0, hint="pass the id of the end symbol")
    beams: int = between(1, 2**16)
    length_penalty: float = between(0, 32)
    n_best: int = between(1, 2**16)
    num_samples: int = between(1, 2**16, 1)
    own: GenerationDefaults | None = None
    """The search of the model's own generation; None: ours."""
    ruled: bool = True
    """Whether what the model's own generation forces, forbids and reweighs is applied."""
    limits: Tensor | None = None
    """(rows,) of 1 or more: entries that each row makes at most, ``length`` the largest; None: ``length``."""

    def select(self, rows: Tensor) -> GenerateOptions:
        """Those of some rows."""
        return self if self.limits is None else replace(self, limits=self.limits[rows])

    @property
    def fill(self) -> int:
        """What stands after an end."""
        return self.end[0] if self.end else 0

    def ending(self, entries: Tensor) -> Tensor:
        """True where an entry is an end."""
        if len(self.end) < 2:
            return entries == (self.end[0] if self.end else -1)
        return torch.isin(entries, torch.tensor(self.end, device=entries.device))

    def rank(self, scores: Tensor, length: int) -> Tensor:
        """Return what beams are compared by; in the model's own search ``scores / length ** length_penalty``."""
        if self.own is not None:
            return scores / length**self.own.length_penalty
        return scores / ((5 + length) / 6) ** self.length_penalty


class _Pool:
    """The best hypotheses so far, finished or cut at the length; ``beams`` a row, best first."""

    def __init__(self, size: int, options: GenerateOptions, like: Tensor) -> None:
        self.options = options
        self.rank = like.new_full((size, options.beams), -torch.inf)
        self.scores = self.rank.clone()
        self.lengths = torch.zeros(size, options.beams, dtype=torch.int64, device=like.device)
        self.entries = self.lengths.new_full((size, options.beams, options.length), options.fill)

    def add(self, rows: Tensor, entries: Tensor, scores: Tensor, made: int, length: int) -> None:
        """Hypotheses of rows ((n,)): entries (n, k, length), scores (n, k), -inf where there is none.

        ``made`` entries were scored (the end symbol included), ``length`` of them come before the end.
        """
        rank = torch.cat([self.rank[rows], self.options.rank(scores, made)], 1)
        # stable: among equals the earlier found stays
        best = rank.sort(dim=1, descending=True, stable=True).indices[:, : self.options.beams]
        lengths = torch.full(scores.shape, length, device=scores.device)
        self.rank[rows] = rank.gather(1, best)
        self.scores[rows] = torch.cat([self.scores[rows], scores], 1).gather(1, best)
        self.lengths[rows] = torch.cat([self.lengths[rows], lengths], 1).gather(1, best)
        both = torch.cat([self.entries[rows], entries], 1)
        self.entries[rows] = both.gather(1, best[..., None].expand(-1, -1, both.shape[2]))

    def settled(self, rows: Tensor, best: Tensor, made: int) -> Tensor:
        """(n,) bool: the best still alive (scores (n,), of ``made`` entries) cannot enter the n_best any more.

        A pool that is merely full is no reason to stop: what is alive may be far more probable.
        """
        own, worst = self.options.own, self.rank[rows, -1]
        if own is not None:  # transformers' rule, a guess where early_stopping is False
            if own.early_stopping is True:
                return worst.isfinite()
            never = own.early_stopping == "never" and own.length_penalty > 0
            return self.options.rank(best, self.options.length if never else made) <= worst
        reachable = self.options.rank(best, self.options.length)  # a score only falls, the divisor only grows
        return reachable <= self.rank[rows, self.options.n_best - 1]

    def result(self) -> Generated:
        """The n_best of each row; without the hypothesis axis for one."""
        best = self.options.n_best
        parts = (self.entries[:, :best], self.lengths[:, :best], self.scores[:, :best])
        entries, lengths, scores = (part[:, 0] if best == 1 else part for part in parts)
        return Generated(entries, lengths, scores)


Allowed = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(n, vocab) logits (or log-probabilities), (n,) rows, (n, t) entries made so far -> what generation makes of them."""


def beam_search(
    decoding: DecodingState, size: int, options: GenerateOptions, allowed: Allowed | None = None
) -> Generated:
    """Return the ``n_best`` hypotheses of each row; rows that are done leave the model at once."""
    predicted = log_probs(decoding.predict(), options.end)
    every = torch.arange(size, device=predicted.device)
    if allowed is not None:
        predicted = allowed(predicted, every, every[:, None][:, :0])
    pool = _Pool(size, options, predicted)
    rows = every
    entries = pool.entries[:, :1].clone()  # (rows, alive, length)
    alive = predicted.new_zeros(size, 1)  # their scores; -inf: none
    for t in range(options.length):
        width = alive.shape[1]
        if t > 0:
            predicted = log_probs(decoding.predict(), options.end)
            if allowed is not None:
                predicted = allowed(predicted, rows.repeat_interleave(width), entries[:, :, :t].flatten(0, 1))
        vocab = predicted.shape[1]
        continued = (alive[:, :, None] + predicted.view(-1, width, vocab)).flatten(1)
        scores, indices = _top(continued, min(max(2, 1 + len(options.end)) * options.beams, width * vocab))
        parents, symbols = indices // vocab, indices % vocab
        reached = entries.gather(1, parents[..., None].expand(-1, -1, options.length))
        reached[:, :, t] = symbols
        ends = options.ending(symbols)
        first = torch.arange(scores.shape[1], device=scores.device) < options.beams
        if bool((ended := ends & first).any()):
            pool.add(rows, reached, scores.masked_fill(~ended, -torch.inf), t + 1, t)
        # the best that go on; where fewer do, the rest is dead weight of score -inf
        onward = scores.masked_fill(ends, -torch.inf)
        alive, slots = (part[:, : options.beams] for part in onward.sort(dim=1, descending=True, stable=True))
        parents, symbols = parents.gather(1, slots), symbols.gather(1, slots)
        entries = reached.gather(1, slots[..., None].expand(-1, -1, options.length))
        if t + 1 == options.length:
            pool.add(rows, entries, alive, options.length, options.length)
            break
        going = (~pool.settled(rows, alive[:, 0], t + 1)).nonzero().squeeze(1)
        if going.numel() == 0:
            break
        states = (going[:, None] * width + parents[going]).flatten()
        decoding.advance(symbols[going].flatten(), states)
        rows, alive, entries = rows[going], alive[going], entries[going]
    return pool.result()


def _top(scores: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The ``count`` highest of each row, falling, and their indices; among equals the lowest index first."""
    # ``topk`` leaves the order of equals open, and a stable sort of everything is several times slower
    lowest = scores.topk(count).values[:, -1:]
    above, equal = scores > lowest, scores == lowest
    room = count - above.sum(1, keepdim=True)
    indices = (above | (equal & (equal.cumsum(1) <= room))).nonzero()[:, 1].view(-1, count)
    values, order = scores.gather(1, indices).sort(dim=1, descending=True, stable=True)
    return values, indices.gather(1, order)


def head_of(model: Any) -> str:
    """Name of the distribution that a model's outputs are parameters of: its attribute or setting ``head``, or "point".

    >>> head_of(torch.nn.Identity())
    'point'
    """
    head = getattr(model, "head", None)
    if isinstance(head, str):
        return head
    settings = getattr(model, "settings", None)
    values: Any = settings() if callable(settings) else {}
    return str(values.get("head", "point"))


def point_prediction(model: Any, outputs: Tensor) -> Tensor:
    """(..., values) that are scored: the outputs, or the mean of the distribution that they are parameters of."""
    head = head_of(model)
    return outputs if head == "point" else HEADS[head]().mean(outputs)


def draw_for(model: Any, draw: str = "auto") -> Draw:
    """Return what feeds a model's outputs back: "auto" is the value or the mean of its law, "sample" a draw from it.

    Raises:
        UserError: a draw from a distribution, and the model's outputs are values; or the other way round.
    """
    head = head_of(model)
    if draw == "auto":
        draw = "point" if head == "point" else "expected"
    if draw == "sample":
        if head == "point":
            raise UserError(
                "the model predicts values, no law to draw from: train one with a head, such as head='gaussian' "
                "(model.head in a recipe)"
            )
        draw = "quantile_sample" if head == "quantiles" else head
    allowed = {"point": ("point",), "quantiles": ("expected", "quantile_sample")}.get(head, ("expected", head))
    if draw not in allowed:
        raise UserError(f"a model with head {head!r} is fed {' or '.join(allowed)}; got draw {draw!r}")
    return DRAWS["expected"](head=head) if draw == "expected" else resolve(draw)


def generate(
    model: Any,
    batch: Batch,
    *,
    length: int | None = None,
    end: int | Sequence[int] | str | None = "auto",
    beams: int | None = None,
    draw: str | Draw = "greedy",
    key: int = 0,
    length_penalty: float | None = None,
    n_best: int = 1,
    num_samples: int = 1,
    state: Stream | bool = False,
    **unknown: Never,
) -> Generated:
    """Run a model freely: each output becomes the next input.

    ``entry[t] = draw(model(context, prompt, entry[:t]))``. A row's prompt is what its history begins with and is
    known: the leading entries that are neither eligible nor in the mask. Prompts may differ in length, each row
    going on where its own ends, or be padded on the left where the model sees padding (``TransformerLM``: ``present``
    in the context). Greedily this is the history of ``free_running``, and at the same ``key`` and step 0 it is so
    for samples.

    Beam search is length-synchronous: of all continuations the best ``beams`` stay; those among them that end go
    to a pool of the best ``beams``, and a row is done when nothing alive can enter its ``n_best``. Hypotheses are
    compared by ``log P / ((5 + n) / 6) ** length_penalty``, n counting the end symbol; ties go to the lower index.
    With ``length_penalty=0`` this is the search of Hugging Face's ``generate`` with ``length_penalty=0.0`` and
    ``early_stopping`` "never" or False; otherwise theirs divides by ``n ** length_penalty``, and with True stops as
    soon as the pool is full.

    A model of Hugging Face follows its own ``generation_config``: what that forces, forbids and penalises is applied
    to every prediction, and its length, end symbols, beams, length penalty and early stopping hold where they are left
    out here: ``generate(m, m.batch(**inputs))`` outputs what ``model.generate(**inputs, do_sample=False)`` outputs.

    Runs without gradient in evaluation mode and restores each submodule's mode. A model with the Stepper
    methods goes on position by position, any other reads a growing history; one with ``encode``
    encodes once. A ``Cached`` model reads all prompts in one call; another Stepper reads them position by
    position, the rows of each prompt length by themselves.

    Args:
        model: from Batch to (batch, time, vocab) logits or (batch, time, value) values.
        batch: only ``context``, ``rows``, the kind of ``targets`` (ids or values) and the prompts are used; targets
            and history may hold anything else, and the model reads zeros in its place.
        length: entries to make at most for each row (2**24 at most), the end symbol included, the prompt not; None:
            those of the model's own generation settings.
        end: id of the end symbol, or several; None: there is none, and every row runs to ``length``; "auto": those of
            the model's own generation settings, none where it has none.
        beams: 1 for greedy or sampling; more (2**16 at most) for beam search (ids only, with ``draw="greedy"``); None:
            the model's own number where the draw is greedy, else 1.
        draw: "greedy", "sample" or a draw object; values are fed back as predicted ("point", the default), or for a
            model with a distribution head as its mean ("expected") or a sample ("gaussian" and so on).
        key: randomness is a function of (key, row, position), rows being ``batch.row_numbers`` and positions those
            of the history, the prompt included.
        length_penalty: 0 to 32; 0 compares log-probabilities (Wu et al. 2016, arXiv:1609.08144: 0.6 to 1); None: the
            search that the model's own generation settings name, 0 where they name none.
        n_best: how many hypotheses of the beam to return.
        num_samples: how many runs of every row to draw, side by side (2**16 at most): the first is that of
            ``num_samples=1``, each further one has noise of its own, and more of them change none.
        state: True keeps where the run stands, in the result's ``state``, and such a state goes on from there: calls of
            lengths a and b make the entries of one of a + b, at the same draw, key and end; lengths and scores are
            those of each call's entries (0 in a row that had ended). Not for beams, nor with rules of the model's own
            generation.

    Raises:
        UserError: for arguments out of range, all at once; for sharded parameters.
        DivergedError: for logits that are NaN. Values are returned as they come, NaN and infinity too: a run that
            diverges is a result.

    >>> class Count:  # 1, then 2, then 0, whatever the context
    ...     def __call__(self, batch):
    ...         before = torch.nn.functional.pad(batch.history, (1, 0))[:, :-1]
    ...         return torch.nn.functional.one_hot((before + 1) % 3, 3) * 100.0
    >>> blank = torch.zeros(1, 1, dtype=torch.long)
    >>> found = generate(Count(), Batch(blank, blank, blank == 0), length=5, end=0)
    >>> found.entries, found.lengths
    (tensor([[1, 2, 0, 0, 0]]), tensor([2]))

    A prompt: the 1 is known, the rest is generated.

    >>> ids = torch.tensor([[1, 0, 0]])
    >>> generate(Count(), Batch(ids, ids, torch.tensor([[False, True, True]])), length=2).entries
    tensor([[2, 0]])

    A stream: three entries, then two more.

    >>> count, nothing = Count(), Batch(blank, blank, blank == 0)
    >>> first = generate(count, nothing, length=3, state=True)
    >>> first.entries, generate(count, nothing, length=2, state=first.state).entries
    (tensor([[1, 2, 0]]), tensor([[1, 2]]))

    What it is not: a way to feed anything after the prompt. An entry in the mask is generated, whatever ``eligible``
    is there.
    """
    refuse(call_problems(model, batch, "generate(model, batch, length=...)"))
    inner = unwrap(model)
    own = inner.generation_defaults(batch) if has(inner, Ruled) and batch.is_discrete else None
    # the model's own number of beams goes with its own search; others with what it names of one
    searched = own if own is not None and length_penalty is None and (own.search or beams is None) else None
    own = own or GenerationDefaults()
    length = own.length if length is None else length
    ends = own.ends if end == "auto" else _ends(end)
    # beams are no default of a draw that samples
    beams = (own.beams if draw in ("greedy", Greedy()) else 1) if beams is None else beams
    penalty = 0.0 if length_penalty is None else length_penalty
    # a length under another name is not missing as well
    options: Any = GenerateOptions(
        1 if unknown and length is None else length, ends, beams, penalty, n_best, num_samples, searched,  # type: ignore[arg-type]
    )  # fmt: skip
    problems = [unknown_argument("generate", name, _KNOWN) for name in unknown]
    problems += field_problems(options)
    if not ends and end is not None and end != "auto":
        problems.append("end holds no id: use end=None where there is no end symbol")
    if not problems and n_best > beams:
        problems.append(f"n_best must not exceed beams = {beams}; got {n_best}: raise beams")
    problems += _kind_problems(batch, options, draw)
    problems += _state_problems(state, inner, batch, options)
    if whole(key) is None:
        problems.append(f"key must be a whole number; got {key!r}")
    refuse(problems)
    with explained_errors(model):
        return _generate(inner, batch, options, draw, key=key, state=state)


def free_runs(
    model: Any, batch: Batch, limits: Tensor, *, end: int | None, draw: str | Draw, key: int, num_samples: int = 1,
    ruled: bool = True,
) -> Generated:  # fmt: skip
    """``generate`` of ids, one run at a time, with a limit (rows,) for each row; ``ruled`` False: no ``Ruled``'s."""
    length = max(int(limits.max()), 1)
    options = GenerateOptions(length, _ends(end), 1, 0.0, 1, num_samples, None, ruled, limits)
    refuse([*field_problems(options), *_kind_problems(batch, options, draw)])
    with explained_errors(model):
        return _generate(unwrap(model), batch, options, draw, key=key, state=False)


def _state_problems(state: Any, model: Any, batch: Batch, options: GenerateOptions) -> list[str]:
    if state is False:
        return []
    if state is not True and not isinstance(state, Stream):
        return [f"state must be True, or the state of a result; got {type(state).__name__}"]
    beams = options.beams
    if isinstance(beams, int) and beams > 1:
        return [f"beam search keeps no state, as its beams are compared at their end; use beams=1, got {beams}"]
    return state.problems(model, batch, options.num_samples) if isinstance(state, Stream) else []


def _ends(end: Any) -> tuple[Any, ...]:
    if end is None:
        return ()
    return tuple(cast(Sequence[Any], end)) if isinstance(end, tuple | list) else (end,)


def _kind_problems(batch: Batch, options: GenerateOptions, draw: str | Draw) -> list[str]:
    problems: list[str] = []
    chosen = None
    try:
        chosen = resolve(draw)
        refuse_mixture(chosen)
    except UserError as error:
        problems += error.problems
    beams, samples = options.beams, options.num_samples
    if chosen is not None and isinstance(samples, int) and samples > 1 and chosen.noise_size(2) == 0:
        known = draw if isinstance(draw, str) else repr(draw)
        use = "'sample'" if batch.is_discrete else "'gaussian', 'student_t' or 'quantile_sample', by the model's head"
        problems.append(f"num_samples = {samples} runs of draw {known} would be equal: use draw={use}")
    many = isinstance(beams, int) and beams > 1
    if batch.is_discrete:
        if chosen is not None and chosen.values:
            problems.append(f"targets are ids, and draw {chosen!r} is for values: use 'greedy' or 'sample'")
        elif many and chosen is not None and not isinstance(chosen, Greedy):
            problems.append(f"beam search draws nothing: with beams={beams} use draw='greedy'; got {chosen!r}")
        return problems
    if chosen is not None and not chosen.values and draw != "greedy":
        problems.append(f"targets are real values, and draw {chosen!r} is for ids: use draw='point'")
    if many:
        problems.append(f"beams are for ids, and targets are real values: use beams=1; got {beams}")
    if options.end:
        problems.append(f"real values have no end symbol: use end=None; got {options.end[0]}")
    return problems


def _generate(
    model: Any, batch: Batch, options: GenerateOptions, draw: str | Draw, *, key: int, state: Stream | bool
) -> Generated:
    refuse_sharded(model, "generate calls a model as long as a row goes on", "pass an unsharded model")
    chosen = Point() if draw == "greedy" and not batch.is_discrete else resolve(draw)
    with torch.no_grad(), eval_mode(model):
        steps = stepping(model)
        if isinstance(state, Stream):
            groups, runs = state.groups, [run.resumed() for run in state.runs]
        else:
            groups = lockstep_groups(steps, prompt_lengths(batch))
            each = [batch] if len(groups) == 1 else [batch.select(rows) for rows in groups]
            runs = [_begun(steps, part, options.select(rows)) for part, rows in zip(each, groups, strict=True)]
        keep = state is not False
        parts = [
            _in_lockstep(steps, run, options.select(rows), chosen, key, keep=keep)
            for run, rows in zip(runs, groups, strict=True)
        ]
        found = parts[0]
        if len(parts) > 1:
            order, names = torch.cat(list(groups)).argsort(), ("entries", "lengths", "scores")
            entries, lengths, scores = (torch.cat([getattr(part, name) for part in parts])[order] for name in names)
            found = Generated(entries, lengths, scores)
        stream = None if state is False else Stream(model, groups, runs, batch.size, options.num_samples)
        return replace(found, state=stream)


def _begun(model: Any, batch: Batch, options: GenerateOptions) -> Run:
    """A run of rows side by side before its first entry, of several samples each row as often."""
    prompts = prompt_lengths(batch)
    decoding = start_decoding(model, batch, prompts, options.length if options.limits is None else options.limits)
    if options.num_samples > 1:
        rows = torch.arange(batch.size, device=prompts.device).repeat_interleave(options.num_samples)
        numbers = torch.arange(options.num_samples, device=prompts.device).repeat(batch.size) * _APART
        batch, prompts = batch.select(rows), prompts[rows]
        batch = batch.made(rows=batch.row_numbers + numbers)
        decoding.repeat(rows)
    return Run(decoding, batch, prompts)


def _in_lockstep(model: Any, run: Run, options: GenerateOptions, draw: Draw, key: int, *, keep: bool) -> Generated:
    batch, prompts, made = run.batch, run.prompts, run.made
    if options.limits is not None:  # of each sample
        options = replace(options, limits=options.limits.repeat_interleave(options.num_samples))
    allowed = allowed_by_rules(model, batch, prompts, options, sampled=is_plain(draw))
    if keep and allowed is not None:
        raise UserError(
            f"state: {type(model).__name__} follows rules of its own generation_config, some of which depend on the "
            "full length: use one call, or a generation_config without rules"
        )
    if options.beams > 1:
        return beam_search(run.decoding, batch.size, options, allowed)

    def choose(outputs: Tensor, rows: Tensor, t: int) -> Tensor:
        # the key of a roll-in at step 0
        noise = draw.noise(fold(key, "draw", 0), batch.row_numbers[rows], prompts[rows] + made + t, outputs.shape[-1])
        return draw.choose(outputs, noise)

    if batch.is_discrete:
        found = _ids(run, options, choose, allowed)
    else:
        check_width(draw, run.decoding.predict(), batch.history.shape[2])
        found = _values(run, options.length, choose)
    run.made += options.length
    if options.num_samples == 1:
        return found
    parts = (found.entries, found.lengths, found.scores)
    entries, lengths, scores = (part.unflatten(0, (-1, options.num_samples)) for part in parts)
    return Generated(entries, lengths, scores)


_KNOWN = ("length", "end", "beams", "draw", "key", "length_penalty", "n_best", "num_samples", "state")
_APART = 2**44  # between the numbers that the noise of a row's samples is made by; rows' own lie below it


def _values(run: Run, length: int, choose: Callable[[Tensor, Tensor, int], Tensor]) -> Generated:
    """Free runs of values."""
    entries: list[Tensor] = []
    rows = torch.arange(run.batch.size, device=run.prompts.device)
    for t in range(length):
        if run.last is not None:
            run.decoding.advance(run.last, None)
        run.last = choose(run.decoding.predict(), rows, t)
        entries.append(run.last)
    return Generated(torch.stack(entries, 1), torch.full_like(rows, length), entries[0].new_zeros(len(rows)))


def allowed_by_rules(
    model: Any, batch: Batch, prompts: Tensor, options: GenerateOptions, *, sampled: bool
) -> Allowed | None:
    """What the model's own generation makes of predictions; None: nothing."""
    if not options.ruled or not has(model, Ruled):
        return None
    begun = blank_batch(batch, prompts, options.length if options.limits is None else options.limits)
    rules: Rules | None = model.generation_rules(begun, length=options.length, ends=options.end)
    if rules is None:
        return None

    def allowed(outputs: Tensor, rows: Tensor, entries: Tensor) -> Tensor:
        made = entries.shape[1]
        index = prompts[rows, None] + torch.arange(made, device=prompts.device)
        prefixes = begun.history[rows].scatter(1, index, entries)
        return rules.apply(outputs, prefixes, rows, prompts[rows] + made, sampled=sampled)

    return allowed


def _ids(
    run: Run, options: GenerateOptions, choose: Callable[[Tensor, Tensor, int], Tensor], allowed: Allowed | None
) -> Generated:
    """Greedy and sampling; rows that have ended leave once a quarter of those still carried has, or room is up."""
    size, device, decoding = run.batch.size, run.prompts.device, run.decoding
    fill = options.fill
    entries = torch.full((size, options.length), fill, dtype=torch.int64, device=device)
    rows = torch.arange(size, device=device) if run.rows is None else run.rows  # those still carried
    limits = torch.full_like(run.prompts, options.length) if options.limits is None else options.limits
    open_ = torch.ones_like(rows, dtype=torch.bool) if run.still_open is None else run.still_open  # of these, not ended
    lengths = torch.zeros(size, dtype=torch.int64, device=device)
    lengths[rows[open_]] = limits[rows[open_]]
    room = int((run.prompts + limits).max() - run.prompts.max())  # steps that any row has
    scores = None if run.dtype is None else torch.zeros(size, dtype=run.dtype, device=device)
    chosen = run.last
    for t in range(options.length):
        if chosen is not None:
            going = int(open_.sum())
            if going == 0:
                break
            picked = open_.nonzero().squeeze(1) if t >= room or going <= 0.75 * rows.numel() else None
            if picked is not None:
                rows, chosen, open_ = rows[picked], chosen[picked], open_[picked]
            decoding.advance(chosen, picked)
        outputs = decoding.predict()
        if allowed is not None:
            outputs = allowed(outputs, rows, entries[rows, :t])
        predicted = log_probs(outputs, options.end)
        chosen = torch.where(open_, choose(outputs, rows, t), fill)
        gained = predicted.gather(1, chosen[:, None]).squeeze(1)
        scores = predicted.new_zeros(size) if scores is None else scores
        scores[rows] += torch.where(open_, gained, 0)
        entries[rows, t] = chosen
        if options.end:
            ended = open_ & options.ending(chosen)
            lengths[rows[ended]] = t
            open_ = open_ & ~ended
        if options.limits is not None:
            open_ = open_ & (limits[rows] > t + 1)
    assert scores is not None
    run.rows, run.still_open, run.last, run.dtype = rows, open_, chosen, scores.dtype
    return Generated(entries, lengths, scores)
