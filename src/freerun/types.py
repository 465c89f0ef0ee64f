"""Batch, Outcome and the protocols that the rest of the library speaks."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from freerun.arguments import brief
from freerun.batch import Batch, context_not_finite
from freerun.errors import DivergedError, UserError, whole


def evenly(total: int, most: int | None) -> list[int]:
    """Numbers of at most ``most`` of ``total`` items, spread evenly from the first on; None: all of them.

    >>> evenly(10, 4), evenly(2, None)
    ([0, 2, 5, 7], [0, 1])
    """
    kept = total if most is None else min(most, total)
    return [number * total // kept for number in range(kept)]


class Step(int):
    """An optimizer step that also knows how many samples and epochs are behind it.

    It is an ``int`` and can be passed wherever a step is expected; schedules whose unit is ``"sample"`` or
    ``"epoch"`` need it.

    >>> step = Step(100, sample=3200, epoch=1.6)
    >>> step + 1, step.epoch
    (101, 1.6)
    """

    sample: int | None
    epoch: float | None

    def __new__(cls, step: int, *, sample: int | None = None, epoch: float | None = None) -> Step:
        """A step with its sample and epoch; a number that is no step is a UserError."""
        self = super().__new__(cls, step_number(step))
        self.sample = sample
        self.epoch = epoch
        return self


def step_number(step: Any) -> int:
    """Return the optimizer step of an argument: a whole number from 0 to 2**63 - 1, of whatever integer type.

    Raises:
        UserError: none, or another value.

    >>> step_number(torch.tensor(3)), step_number(Step(4, epoch=0.5)).epoch
    (3, 0.5)
    """
    if step is None:
        raise UserError(
            "step is missing: pass the number of the optimizer step, method(model, batch, step=step). Without it a "
            "schedule would stand still, and the same random choices would come at every call"
        )
    number = step if isinstance(step, Step) else whole(step)
    if number is None or not 0 <= number < 2**63:
        raise UserError(f"step must be the number of the optimizer step, a whole number from 0 on; got {step!r}")
    return number


@dataclass(frozen=True, eq=False)
class Counted:
    """The outputs of a batch at the positions that count; the others are computed when they are read.

    Args:
        outputs: (n, vocab) or (n, value), with graph.
        index: (n,) int64, rising: their positions in the flattened batch.
        hidden: (batch * time, size): what ``head`` makes all outputs of.
        head: (k, size) -> (k, vocab).
        shape_of_batch: (batch, time).
        changed: whether the weights are others by now.
    """

    __repr__ = brief

    outputs: Tensor
    index: Tensor
    hidden: Tensor
    head: Callable[[Tensor], Tensor]
    shape_of_batch: tuple[int, int]
    changed: Callable[[], bool]

    @property
    def shape(self) -> tuple[int, ...]:
        """(batch, time, vocab): that of all outputs."""
        return (*self.shape_of_batch, self.outputs.shape[-1])

    @property
    def dtype(self) -> torch.dtype:
        """That of the outputs."""
        return self.outputs.dtype

    def alone(self, batch: Batch) -> tuple[Tensor, Batch]:
        """The outputs (1, n, vocab) and a batch of one row that holds these positions and no others."""

        def chosen(part: Tensor | None) -> Tensor | None:
            return None if part is None else part.flatten(0, 1).index_select(0, self.index)[None]

        targets, outputs = chosen(batch.targets), self.outputs[None]
        mask = chosen(batch.mask)  # a target may have left out some
        parts = {name: chosen(getattr(batch, name)) for name in ("weights", "present")}
        nothing = dict.fromkeys(("context", "eligible", "rows", "replaced"))
        return outputs, batch.made(targets=targets, history=targets, mask=mask, **parts, **nothing)

    def whole(self) -> Tensor:
        """(batch, time, vocab): all outputs, with graph.

        Raises:
            UserError: the weights have changed since.
        """
        if self.changed():
            raise UserError(
                "the outputs at positions that do not count are computed when they are read, and the weights have "
                "changed since: read outcome.outputs before optimizer.step()"
            )
        others = torch.ones(len(self.hidden), dtype=torch.bool, device=self.index.device)
        others[self.index] = False
        rest = others.nonzero().squeeze(1)
        both = torch.cat([self.outputs, self.head(self.hidden.index_select(0, rest)).to(self.dtype)])
        return both.index_select(0, torch.cat([self.index, rest]).argsort()).view(self.shape)


@dataclass(frozen=True, eq=False)
class Outcome:
    """Result of one step of a method.

    Args:
        total: scalar, differentiable: the summed loss over the positions that count.
        count: scalar: what total is divided by; sums over micro-batches and ranks make a mean exact.
        outputs: (batch, time, vocab) or (batch, time, value): the model's outputs, with graph. Where the step needed
            those of the positions that count only, the others are computed when this is read first, which must be
            before the weights change.
        fed: the batch that was fed: its ``history`` is the mixed one.
        report: numbers about the step: entries ``eligible``, ``replaced`` and ``disagreeing`` (replaced and
            different from gold), ``passes`` (extra model calls or stepped positions) and so on.
    """

    __repr__ = brief

    total: Tensor
    count: Tensor
    outputs: Tensor
    fed: Batch
    report: Mapping[str, float | str] = field(default_factory=dict)

    @property
    def computed(self) -> Tensor | Counted:
        """The outputs as far as they are computed."""
        return vars(self)["outputs"]

    def made(self, **changes: Any) -> Outcome:
        """Return the outcome with some fields changed; no output is computed for it."""
        return Outcome(**{**vars(self), **changes})

    @property
    def loss(self) -> Tensor:
        """total / count; 0 where nothing counts.

        Raises:
            DivergedError: it is NaN or infinite. ``total`` and ``count`` are as they are.
        """
        mean = self.total / torch.where(self.count == 0, 1, self.count)
        if not math.isfinite(value := mean.item()):
            raise DivergedError(self._broken(value))
        return mean

    def _broken(self, mean: float) -> str:
        outputs, batch = self.computed, self.fed
        if isinstance(outputs, Counted):
            counted = outputs.outputs.detach()
        else:
            outputs = outputs.detach()
            counted = outputs[batch.mask] if outputs.shape[:2] == batch.mask.shape else outputs.flatten(0, -2)
        number = int((counted.isnan() | (counted == torch.inf)).any(-1).sum())
        where = f"the model's outputs hold NaN or infinity at {number} of {len(counted)} positions that count"
        if number == 0:
            where = "the outputs do not: a target has probability 0 (an output of -inf), or the objective made it"
        if read := context_not_finite(batch.context):
            return f"the loss is {mean:g}, and {read}, which the model reads: fill them before"
        if number == 0 and batch.present is not None:
            where = "the outputs do not: targets are NaN where values are missing, and the objective counts them"
            return f"the loss is {mean:g}, and {where}: leave them out by batch.present"
        return f"the loss is {mean:g}, and {where}. Look at the learning rate, at the initialisation, or clip gradients"


def _outputs(outcome: Outcome) -> Tensor:
    outputs = outcome.computed
    if isinstance(outputs, Counted):
        outputs = vars(outcome)["outputs"] = outputs.whole()
    return outputs


def _set_outputs(outcome: Outcome, outputs: Tensor) -> None:
    vars(outcome)["outputs"] = outputs


# the field holds what is computed; reading it computes the rest
Outcome.outputs = property(_outputs, _set_outputs)  # pyright: ignore[reportAttributeAccessIssue]


Model = Callable[[Batch], Tensor]


@runtime_checkable
class Encoder(Protocol):
    """A model that can encode a batch's context once.

    ``encode(batch)`` returns the batch with an encoded context, and the model (and ``start``) take such a batch
    without encoding again. Roll-in and training share one encoding only where it draws no random numbers in training
    (dropout), and no submodule keeps statistics of a batch.
    """

    def encode(self, batch: Batch) -> Batch: ...


@runtime_checkable
class Stepper(Protocol):
    """A model that can go on position by position; it makes roll-ins cheaper, never different.

    ``output(start(batch))`` predicts position 0 (the start symbol is the model's business), and
    ``output(step(state, embed(history[:, t])))`` position t+1: equal to the parallel pass. ``embed`` takes
    entries of any leading shape. ``output(state, rows)`` computes only these rows (None: all).
    States are never changed in place; ``select(state, rows)`` picks, repeats or drops rows.
    """

    def start(self, batch: Batch) -> Any: ...
    def embed(self, entries: Tensor) -> Tensor: ...
    def step(self, state: Any, inputs: Tensor) -> Any: ...
    def output(self, state: Any, rows: Tensor | None = None) -> Tensor: ...
    def select(self, state: Any, rows: Tensor) -> Any: ...


@runtime_checkable
class Reader(Stepper, Protocol):
    """A Stepper of which ``read(state, inputs)`` is n steps: inputs (rows, n, ...) as ``embed`` gave them."""

    def read(self, state: Any, inputs: Tensor) -> Any: ...


@runtime_checkable
class MixtureStepper(Stepper, Protocol):
    """A Stepper that can be fed mixtures of symbols: ``embed(entries)`` is ``inputs_from(lookup(entries))``.

    Vectors are (..., width), as ``lookup`` of an ``Embedder`` returns them.
    """

    def inputs_from(self, vectors: Tensor) -> Tensor: ...


@runtime_checkable
class Detachable(Stepper, Protocol):
    """A Stepper whose past can be let go: ``detach(state)`` is the same state, through which no gradient reaches it.

    The gradient to weights that are used from there on stays.
    """

    def detach(self, state: Any) -> Any: ...


@runtime_checkable
class Scheduled(Protocol):
    """What gives a number at each step: a schedule (``freerun.schedules.Schedule``)."""

    unit: str

    def __call__(self, step: Any, /, *, key: int = 0) -> float: ...


@runtime_checkable
class Split(Protocol):
    """A model whose ``model(batch)`` is ``head(hidden(batch))``, so that few positions can reach the vocabulary."""

    def hidden(self, batch: Batch) -> Tensor: ...
    def head(self, hidden: Tensor) -> Tensor: ...


@runtime_checkable
class Cached(Stepper, Protocol):
    """A Stepper that remembers what it has read, to read several entries at once, at each row's own position.

    ``advance(state, inputs, counts)`` reads the next ``counts[r]`` entries of every row r: ``inputs`` is
    (sum of counts, width) as ``embed`` returned them, row after row; it returns the state and the hidden vectors
    (sum of counts, size), of which the one after history entry t predicts position t+1 through ``head``.
    ``crop(state, lengths)`` takes back what was read beyond ``lengths[r]`` entries; it uses up its argument and the
    states before: to go on from them as well, ``select`` all rows first, which copies.
    """

    def head(self, hidden: Tensor) -> Tensor: ...
    def advance(self, state: Any, inputs: Tensor, counts: Tensor) -> tuple[Any, Tensor]: ...
    def crop(self, state: Any, lengths: Tensor) -> Any: ...


@dataclass(frozen=True, eq=False)
class Calls:
    """What the calls of a roll-in over a cache read, all of it known beforehand.

    Inputs are what a decoder reads: 0 is the start, i is history entry i - 1.

    Args:
        counts: (calls, rows) inputs that each call reads of each row; a row that has come to 0 stays there, and rows
            come in the order in which they end, the last to end first.
        begins: (calls, rows) inputs of each row read before.
        rows: (n,) rows of all inputs, call after call and within one row after row.
        index: (n,) their numbers.
        sizes: inputs of each call.
    """

    __repr__ = brief

    counts: Tensor
    begins: Tensor
    rows: Tensor
    index: Tensor
    sizes: list[int]

    @classmethod
    def of(cls, counts: Tensor) -> Calls:
        """From the counts."""
        flat, begins = counts.flatten(), counts.cumsum(0) - counts
        cell = torch.arange(len(flat), device=flat.device).repeat_interleave(flat)
        number = torch.arange(len(cell), device=flat.device) - (flat.cumsum(0) - flat)[cell]
        return cls(counts, begins, cell % counts.shape[1], begins.flatten()[cell] + number, counts.sum(1).tolist())


@runtime_checkable
class Planned(Cached, Protocol):
    """A Cached model that reads faster where all calls are known beforehand.

    ``reader(batch, calls)``: a function of the number of a call and its entries, (n, ...) in the order of
    ``Calls.index`` (at the start any), which returns the hidden vectors (rows, size) after the last of each row that
    reads any; called for 0, 1, ... in turn. None where the model cannot.
    """

    def reader(self, batch: Batch, calls: Calls) -> Callable[[int, Tensor], Tensor] | None: ...


@runtime_checkable
class Embedder(Protocol):
    """A model that reads its history as vectors, too, so that mixtures of symbols can be fed.

    ``lookup(entries)``: ids (...) -> (..., width), what a symbol is looked up as, scaling included, positions and
    dropout excluded. ``outputs_from(batch, vectors)`` is ``model(batch)`` with ``lookup(history)`` replaced by
    (batch, time, width) vectors: ``outputs_from(b, lookup(b.history))`` equals ``model(b)``.
    """

    def lookup(self, entries: Tensor) -> Tensor: ...
    def outputs_from(self, batch: Batch, vectors: Tensor) -> Tensor: ...


class Rules(Protocol):
    """What generation forces, forbids and reweighs in the rows of a batch, before an id is drawn.

    ``apply(outputs, prefixes, rows, times)``: (n, vocab) logits -> (n, vocab), those of the n entries at ``times`` (n,)
    of the batch's rows ``rows`` (n,); what stands before entry i is ``prefixes[i, : times[i]]``. ``sampled``: whether
    an id is sampled from them without further truncation. ``select(rows)``: the rules of some rows.
    """

    def apply(
        self, outputs: Tensor, prefixes: Tensor, rows: Tensor, times: Tensor, *, sampled: bool = False
    ) -> Tensor: ...
    def select(self, rows: Tensor) -> Rules: ...


@dataclass(frozen=True)
class GenerationDefaults:
    """How a model's own generation goes on where nothing else is named.

    Args:
        length: entries at most; None: no number is set.
        ends: ids that end a row.
        beams: of the search.
        length_penalty: beams are compared by ``log P / n ** length_penalty``.
        early_stopping: of the search, as in transformers: True, False or "never".
        search: whether penalty or stopping are named, and hold for another number of beams too.
    """

    __repr__ = brief

    length: int | None = None
    ends: tuple[int, ...] = ()
    beams: int = 1
    length_penalty: float = 1.0
    early_stopping: bool | str = False
    search: bool = False


@runtime_checkable
class Ruled(Protocol):
    """A model whose generation follows rules beside its outputs (a Hugging Face model's ``generation_config``).

    ``generation_rules(batch, length, ends)``: the rules of the batch's rows, or None; what counts in its mask is
    generated. ``ends`` None: the model's own. ``generation_defaults(batch)``: for free runs. ``scored(batch)``: the
    batch without the positions where generation forces the target: nothing is predicted there.
    """

    def generation_rules(
        self, batch: Batch, *, length: int | None = None, ends: tuple[int, ...] | None = None
    ) -> Rules | None: ...
    def generation_defaults(self, batch: Batch) -> GenerationDefaults: ...
    def scored(self, batch: Batch) -> Batch: ...
