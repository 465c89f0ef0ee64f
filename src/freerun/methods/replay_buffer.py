"""A replay buffer: a share of rows goes on from where the model's own runs of earlier steps ended."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from functools import cached_property
from typing import Any, ClassVar

import torch
import torch.distributed as dist
from torch import Tensor

from freerun import draws
from freerun.arguments import COUNT
from freerun.batch import PER_POSITION, Batch, map_leaves
from freerun.errors import UserError, refuse
from freerun.keys import bits, fold, uniform
from freerun.methods.base import SHARED, Citation, TransformMethod
from freerun.methods.multi_step import refuse_ids
from freerun.methods.scheduled_sampling import FreeRunning
from freerun.objectives import Objective
from freerun.rollin import Engine
from freerun.schedules import Schedule
from freerun.types import Outcome

Rows = dict[str, Tensor]
"""Parts of a batch's rows by name, those of its context with their place in it, each (rows, ...)."""


@dataclass(frozen=True, repr=False)
class ReplayBuffer(TransformMethod):
    """Run freely for h steps, in a share of rows from where an earlier update's run of the model ended.

    ``x_t = f(x_<t) for b < t <= b + h;  loss = mean_t |f(x_<t) - y_t|^2``. In a fresh row b is the end of its known
    part. With probability ``share`` a row gives way to one of the buffer, whose entries up to b are what the model,
    with its weights of then, made of it: they are fed, carry no loss, and no gradient goes through them into earlier
    updates. After the update every row that has steps left goes (back) into the buffer, with the entries that it has
    reached. So states far from gold are trained on with h steps of gradient.

    Args:
        share: of rows that come from the buffer, a number in [0, 1] or a schedule; 0: ``free_running`` of this horizon.
        capacity: rows that the buffer holds; of more, so many drawn evenly stay.
        age: how many updates a row may have been run in before it is taken; then it leaves.
        horizon: h, a number or a schedule (rounded down), at least 1; published: 1.
        gradient: ``"full"``, ``"checkpointed"``, ``"none"`` or k, as in ``scheduled_sampling``, within the update.
        draw: ``"auto"`` feeds values as predicted.
        engine: as in ``scheduled_sampling``.
        objective: ``"auto"`` (MSE), or another.

    Raises:
        UserError: arguments outside their range; targets that are ids; a context of other things than tensors, or
            of another shape than that of the rows in the buffer; several processes.

    What it is not: a longer gradient. Nor free of cost: a model with a memory reads a row's entries again from the
    first on, so an update reads up to ``(age + 1) h`` entries a row. The buffer is a state of this object
    (``state_dict()``, ``load_state_dict(state)``), which checkpoints hold: one object, one run. A step counts once,
    however many micro-batches it has; without gradients nothing is stored; a step before the last begins anew.
    Published with buffers of one process each, filled every k-th update; here fresh rows are in every update.

    Reference: Bodnar et al. 2025, A foundation model for the Earth system, Nature 641, arXiv:2405.13063 (roll-out
    fine-tuning).

    >>> ReplayBuffer(0.5, capacity=256, age=8)
    replay_buffer(share=0.5, capacity=256, age=8)
    """

    share: float | Schedule
    capacity: int
    age: int
    gradient: str | int = "full"
    draw: str | draws.Draw = "auto"
    engine: Engine = "auto"
    objective: str | Objective = "auto"
    horizon: float | Schedule | None = field(default=1.0, kw_only=True)

    name: ClassVar[str] = "replay_buffer"
    summary: ClassVar[str] = "a share of rows goes on from where own runs of earlier updates ended"
    only_for: ClassVar[tuple[str, str] | None] = ("values", "scheduled_sampling")
    ranges: ClassVar[dict[str, tuple[float, float]]] = {"share": (0.0, 1.0), **SHARED}
    logged: ClassVar[tuple[str, ...]] = ("buffered",)
    means: ClassVar[dict[str, tuple[str, str]]] = {
        "mean_age": ("ages", "stored"),
        "replayed_share": ("replayed", "rows"),
    }
    citation: ClassVar[Citation] = Citation(
        formula="x_t = f(x_<t) for b < t <= b + h;  loss = mean over these t of |f(x_<t) - y_t|^2;  x_<=b gold, or "
        "with probability share sg[x_<=b] of an earlier update",
        reference="Bodnar, C. et al. (2025). A foundation model for the Earth system. Nature 641. arXiv:2405.13063 "
        "(roll-out fine-tuning with a replay buffer)",
        bibtex="""@article{bodnar2025foundation,
  author  = {Bodnar, Cristian and Bruinsma, Wessel P. and Lucic, Ana and Stanley, Megan and others},
  title   = {A Foundation Model for the {Earth} System},
  journal = {Nature},
  volume  = {641},
  year    = {2025}
}""",
    )

    def problems(self) -> list[str]:
        """Return which arguments cannot be."""
        problems = COUNT.problems(capacity=self.capacity, age=self.age)
        if self.horizon is None:
            problems.append("horizon must be a number or a schedule: None runs each row to its end; got None")
        return [*problems, *super().problems()]

    @property
    def own_loss(self) -> tuple[str, ...]:
        """A share of rows is of earlier batches."""
        return (*super().own_loss, "a share of rows comes from earlier batches")

    def check(self, steps: int) -> None:
        """Raise UserError where a parameter leaves its range within a run, or several processes train."""
        super().check(steps)
        _refuse_ranks()

    def at_longest(self, horizon: int) -> Any:
        """All rows are of the largest age."""
        settings: dict[str, Any] = {each.name: getattr(self, each.name) for each in fields(self) if each.init}
        settings["horizon"] = float(horizon)
        return _Oldest(**settings) if self.share else ReplayBuffer(**settings)

    def kept_rows(self, batch: Batch) -> tuple[int, int]:
        """Bytes of a row of such batches in the buffer, and how many it holds at most."""
        sizes = [part.nbytes // max(len(part), 1) for part in _parts(batch).values()]
        return sum(sizes) + 8, self.capacity if self.share else 0  # and its age

    def apply_horizon(self, batch: Batch, step: int, key: int) -> Batch:
        """The batch as it is: the horizon begins where each row's own history ends."""
        return batch

    def compute(self, model: Any, batch: Batch, step: int, key: int) -> Outcome:
        """One step: rows of the buffer for a share of rows, h steps of free running, and what they reached is kept."""
        begun = self._begin(batch, step, key)
        cut = super().apply_horizon(begun.batch, step, key)
        outcome = self._running.compute(model, cut, step, key)
        if begun.share > 0 and torch.is_grad_enabled():
            self._keep(begun, outcome.fed, int(step), key)
        return outcome.made(report={**outcome.report, **begun.report()})

    def mixed_batch(self, model: Any, batch: Batch, step: int, key: int) -> Batch:
        """The batch that is fed, as far as the horizon goes; nothing is kept."""
        begun = self._begin(batch, step, key)
        return self._running.mixed_batch(model, super().apply_horizon(begun.batch, step, key), step, key)

    @cached_property
    def _running(self) -> FreeRunning:
        return FreeRunning(
            self.draw, engine=self.engine, gradient=self.gradient, objective=self.objective, target=self.target
        )

    @cached_property
    def _memory(self) -> _Memory:
        return _Memory(self.capacity)

    def _begin(self, batch: Batch, step: int, key: int) -> _Begun:
        """The batch with a share of its rows from the buffer, as it was before this step."""
        refuse_ids(self.name, batch)
        _refuse_ranks()
        share, ages = self.value("share", step, key), torch.zeros_like(batch.row_numbers)
        if share == 0:
            return _Begun(batch, share, ages)
        parts, step = _parts(batch), int(step)
        stored = self._memory.before(step)
        begun = _Begun(batch, share, ages, stored)
        if not stored:
            return begun
        _refuse_unlike(parts, stored)
        number, device = len(stored["age"]), batch.history.device
        # a row's place among the rows that give way is a function of its number alone: micro-batches do not matter
        coins = (
            uniform(fold(key, "replay", step), torch.arange(int(batch.row_numbers.max()) + 1, device=device)) < share
        )
        place = (coins.cumsum(0) - 1)[batch.row_numbers]
        chosen = coins[batch.row_numbers] & (place < number) & (batch.mask.any(1) & batch.replaceable.any(1))
        if not bool(chosen.any()):
            return begun
        order = bits(fold(key, "replayed", step), torch.arange(number, device=device)).argsort()
        entries = order[place[chosen]]
        taken = {name: part[entries.to(part.device)] for name, part in stored.items()}
        index = torch.arange(batch.size, device=device)
        index[chosen] = batch.size + torch.arange(len(entries), device=device)
        rows = {name: part[index] for name, part in _joined([{**parts, "age": ages}, taken]).items()}
        return _Begun(_with_parts(batch, rows), share, rows["age"], stored, entries.tolist())

    def _keep(self, begun: _Begun, fed: Batch, step: int, key: int) -> None:
        """Note rows that have steps left, with the entries that they have reached."""
        batch = begun.batch
        reached = _longer(fed.replaceable, batch.time)
        own = _longer(fed.history.detach(), batch.time)
        left = batch.replaceable & ~reached
        mask = batch.mask & left.cummax(1).values
        ages = begun.ages + 1
        finite = (own.isfinite().all(-1) | ~reached).all(1)
        stays = mask.any(1) & finite & (ages <= self.age)
        history = torch.where(reached[..., None], own, batch.history)
        parts = {**_parts(batch.made(history=history, mask=mask, eligible=left)), "age": ages}
        kept = {name: part[stays].detach() for name, part in parts.items()}
        self._memory.note(step, key, batch.row_numbers[stays], kept, begun.taken)

    def state_dict(self) -> dict[str, float | Tensor]:
        """The buffer after the last step, and scores that schedules follow."""
        self._memory.settle()
        return {**super().state_dict(), "step": float(self._memory.step), **self._memory.rows}

    def load_state_dict(self, state: Mapping[str, float | Tensor]) -> None:
        """Go on from a state; {} begins anew.

        Raises:
            UserError: a state that is not a buffer's.
        """
        super().load_state_dict(state)
        scores = super().state_dict()
        rows = {name: part for name, part in state.items() if isinstance(part, Tensor) and name not in scores}
        missing = [name for name in ("targets", "history", "mask", "eligible", "age") if rows and name not in rows]
        sizes = {name: len(part) for name, part in rows.items()}
        if missing or len(set(sizes.values())) > 1 or (state and "step" not in state):
            raise UserError(
                f"the state is not that of a replay buffer: it holds {', '.join(state)}, with rows {sizes}; begin anew"
            )
        self._memory.begin(int(state.get("step", -1)), rows)


@dataclass(eq=False)
class _Memory:
    """The buffer before a step, and what the step's micro-batches have taken from it and reached."""

    capacity: int
    step: int = -1
    rows: Rows = field(default_factory=dict[str, Tensor])
    key: int = 0
    taken: set[int] = field(default_factory=set[int])
    numbers: list[Tensor] = field(default_factory=list[Tensor])
    arrived: list[Rows] = field(default_factory=list[Rows])

    def begin(self, step: int, rows: Rows) -> None:
        """Begin a step with a buffer."""
        self.step, self.rows = step, rows
        self.taken, self.numbers, self.arrived = set(), [], []

    def before(self, step: int) -> Rows:
        """The buffer as a step finds it; {} where it is empty."""
        if step > self.step:
            self.settle()
        return self.rows if step >= self.step else {}

    def note(self, step: int, key: int, numbers: Tensor, rows: Rows, taken: list[int]) -> None:
        """Note what a micro-batch of a step took and reached."""
        if step != self.step:
            # of a checkpoint they lie on the processor
            self.begin(step, {name: part.to(numbers.device) for name, part in self.before(step).items()})
        if self.arrived:
            _refuse_unlike({name: part for name, part in rows.items() if name != "age"}, self.arrived[0])
        self.key = key
        self.taken |= set(taken)
        self.numbers.append(numbers)
        self.arrived.append(rows)

    def settle(self) -> None:
        """Put what the step's micro-batches reached into the buffer, in the order of its rows; the last of equals."""
        if not self.arrived:
            return
        numbers, order = torch.cat(self.numbers).sort(stable=True)
        last = torch.cat([numbers[1:] != numbers[:-1], numbers.new_ones(min(len(numbers), 1)).bool()])
        kept = [index for index in range(len(self.rows.get("age", ()))) if index not in self.taken]
        old, new = torch.tensor(kept, device=order.device).long(), order[last]
        staying = torch.arange(len(old) + len(new), device=order.device)
        if len(staying) > self.capacity:
            drawn = bits(fold(self.key, "kept", self.step), staying).argsort()
            staying = drawn[: self.capacity].sort().values
        old, new = old[staying[staying < len(old)]], new[staying[staying >= len(old)] - len(old)]
        pairs = ((self.rows, old), (_joined(self.arrived), new))
        several = [{name: part[index] for name, part in rows.items()} for rows, index in pairs if rows]
        self.begin(self.step, _joined(several) if len(staying) else {})


@dataclass(frozen=True, eq=False)
class _Begun:
    """A batch before its roll-in: whole rows, how often each was run, the buffer, and what was taken of it."""

    batch: Batch
    share: float
    ages: Tensor
    stored: Rows = field(default_factory=dict[str, Tensor])
    taken: list[int] = field(default_factory=list[int])

    def report(self) -> dict[str, float | str]:
        """What a step reports of the buffer."""
        ages = self.stored.get("age")
        number = 0 if ages is None else len(ages)
        total = 0 if ages is None else int(ages.sum())
        rows = int(self.batch.mask.any(1).sum())
        counts = {"buffered": number, "stored": number, "ages": total, "replayed": len(self.taken), "rows": rows}
        return {"share": self.share, **counts}


@dataclass(frozen=True, repr=False)
class _Oldest(ReplayBuffer):
    """All rows begin where those of the largest age do, on gold: what takes the most memory."""

    def _begin(self, batch: Batch, step: int, key: int) -> _Begun:
        refuse_ids(self.name, batch)
        _parts(batch)
        before = batch.replaceable.cumsum(1)
        steps = self.age * math.floor(self.value("horizon", step, key) + 1e-9)
        known = (before[:, -1:] - 1).clamp(max=steps)
        left = batch.replaceable & (before > known)
        history = batch.history.nan_to_num()
        mask = batch.mask & left.cummax(1).values
        batch = batch.made(history=history, eligible=left, mask=mask)
        return _Begun(batch, self.value("share", step, key), torch.zeros_like(before[:, 0]))

    def _keep(self, begun: _Begun, fed: Batch, step: int, key: int) -> None:
        pass


def _refuse_ranks() -> None:
    if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        raise UserError(
            f"replay_buffer holds the rows of one process, and {dist.get_world_size()} train together: start one, with "
            "more accumulation, or use multi_step or pushforward"
        )


def _parts(batch: Batch) -> Rows:
    """The parts of a batch's rows."""
    parts = {name: getattr(batch, name) for name in ("targets", "history", "mask", "weights", "present")}
    return {
        **{name: part for name, part in parts.items() if part is not None},
        "eligible": batch.replaceable,
        **_context_parts(batch.context, "context"),
    }


def _context_parts(tree: Any, name: str) -> Rows:
    if isinstance(tree, Tensor) or tree is None:
        return {} if tree is None else {name: tree}
    if hasattr(tree, "select") or not isinstance(tree, Mapping | tuple | list):
        raise UserError(
            f"replay_buffer keeps rows of tensors, and {name} is a {type(tree).__name__}: let the context be a tensor, "
            "or a tuple, list or dict of them"
        )
    parts = tree.items() if isinstance(tree, Mapping) else enumerate(tree)
    return {key: part for place, each in parts for key, part in _context_parts(each, f"{name}.{place}").items()}


def _with_parts(batch: Batch, rows: Rows) -> Batch:
    """The batch with other rows."""
    names = iter(_context_parts(batch.context, "context"))
    context = map_leaves(batch.context, lambda leaf: None if leaf is None else rows[next(names)])
    return batch.made(context=context, **{name: part for name, part in rows.items() if not name.startswith("context")})


_IN_TIME = ("targets", "history", *PER_POSITION)


def _longer(part: Tensor, time: int) -> Tensor:
    """(rows, time, ...): a part with zeros behind."""
    if part.shape[1] == time:
        return part
    return torch.cat([part, part.new_zeros(len(part), time - part.shape[1], *part.shape[2:])], 1)


def _joined(several: list[Rows]) -> Rows:
    """All rows one after the other, as long as the longest, on the device of the first."""
    time, device = max(rows["targets"].shape[1] for rows in several), several[0]["targets"].device
    return {
        name: torch.cat(
            [(_longer(rows[name], time) if name in _IN_TIME else rows[name]).to(device) for rows in several]
        )
        for name in several[0]
    }


def _refuse_unlike(parts: Rows, stored: Rows) -> None:
    """Refuse rows that cannot stand in one batch with those of the buffer."""

    def kind(rows: Rows, name: str) -> str:
        if name not in rows:
            return "missing"
        part = rows[name]
        return f"{tuple(part.shape[2 if name in _IN_TIME else 1 :])} {str(part.dtype).removeprefix('torch.')}"

    names = [name for name in dict.fromkeys([*parts, *stored]) if name != "age"]
    refuse(
        [
            f"{name} of a row is {kind(parts, name)} here and {kind(stored, name)} in the replay buffer: rows of all "
            "batches must be of one shape (time aside); pad them, or leave it out of all"
            for name in names
            if kind(parts, name) != kind(stored, name)
        ]
    )


replay_buffer = ReplayBuffer
