"""A decoder step as a model: ``start`` and ``step`` are written once, everything else follows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple, cast

import torch
from torch import Tensor, nn

from freerun.batch import Batch, map_leaves, shape_of
from freerun.errors import UserError


class StepModel(nn.Module):
    """The base class of a model that is a loop over its decoder step.

    ``outputs_t, state_t = step(entry_{t-1}, state_{t-1})``, where ``start(batch)`` returns the first entries and state,
    and ``entry_t = history[:, t]``. A subclass defines both, and nothing else::

        def start(self, batch):          # -> (entries, state)
        def step(self, entries, state):  # -> (outputs, state), or (outputs, state, extras)

    ``start`` encodes ``batch.context`` and returns the first entries to feed, (batch,) ids or (batch, value), and the
    first state. ``step`` returns the outputs of one position, (batch, vocab) or (batch, value), and the next state,
    which is a new one: a state is never changed in place.

    A state is a tensor, a tuple, list or mapping of them, or None. Their first dimension is the batch; where it is
    another (``nn.GRU`` and ``nn.LSTM`` keep it second), ``batch_dim`` declares it: a number for all of the state, or a
    mapping from names (or places in a tuple) to numbers.

    Training is one loop: the history is built while the outputs are computed, in the mode that the model is in
    (dropout is that of training, where every other model rolls in without it). Ids are drawn without gradient.

    Inside ``torch.compile`` or ``DistributedDataParallel`` the history is rolled in first, in evaluation mode, and
    training is a second loop through the wrapper, which a warning says once. One loop: ``model.step =
    torch.compile(model.step)``, and ``DistributedDataParallel(freerun.training.MethodRun(model, method))``.

    Raises:
        UserError: ``start`` or ``step`` is missing or returns something else; a state whose batch is not where it is
            declared; a layer under the name of a method.

    >>> class Decoder(StepModel):
    ...     batch_dim = 1  # a GRU's state is (layers, batch, size)
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.embedding, self.gru, self.out = nn.Embedding(6, 8), nn.GRU(8, 8), nn.Linear(8, 5)
    ...     def start(self, batch):  # symbol 5 begins a row
    ...         return torch.full((batch.size,), 5), torch.zeros(1, batch.size, 8)
    ...     def step(self, entries, state):
    ...         hidden, state = self.gru(self.embedding(entries)[None], state)
    ...         return self.out(hidden[0]), state
    >>> import freerun as fr
    >>> batch = fr.Batch(torch.tensor([[1, 2, 0], [3, 0, 0]]))
    >>> outcome = fr.scheduled_sampling(0.5).run(Decoder(), batch, step=0)
    >>> outcome.outputs.shape, outcome.report["passes"]
    (torch.Size([2, 3, 5]), 0)

    What it is not: for models that compute all positions in parallel, such as Transformers: a loop would slow them.
    """

    batch_dim: ClassVar[int | Mapping[Any, int]] = 0

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Refuse a class that has something else under a name of ours."""
        super().__init_subclass__(**kwargs)
        for name, value in vars(cls).items():
            if name in _OURS or (name in _YOURS and not callable(value)):
                raise UserError(_taken(cls.__name__, name))

    def __setattr__(self, name: str, value: Any) -> None:
        """Refuse a layer, weight or number under the name of a method, which would hide one of the two."""
        if name in _OURS or (name in _YOURS and (isinstance(value, nn.Module) or not callable(value))):
            raise UserError(_taken(type(self).__name__, name))
        super().__setattr__(name, cast(Any, value))

    def start(self, batch: Batch) -> tuple[Tensor, Any]:
        """Return the first entries to feed and the first state."""
        raise UserError(f"{type(self).__name__} must define start(batch) -> (entries, state)")

    def step(self, entries: Tensor, state: Any) -> Any:
        """Return the outputs of a position and the next state; further values are extras."""
        raise UserError(f"{type(self).__name__} must define step(entries, state) -> (outputs, state)")

    def forward(self, batch: Batch) -> Tensor:
        """Outputs (batch, time, vocab or value) on the batch's history."""
        entries, state = self._begun(batch)
        outputs: list[Tensor] = []
        for history in (*batch.history.unbind(1)[:-1], None):
            one, state, *_ = self._stepped(entries, state, first=not outputs)
            outputs.append(one)
            entries = cast(Tensor, history)
        return torch.stack(outputs, 1)

    def with_extras(self, batch: Batch) -> tuple[Tensor, Any]:
        """Outputs on the batch's history, and the extras of all steps, stacked: (batch, time, ...).

        Raises:
            UserError: ``step`` returns no extras, or others than tensors of one shape, batch first.
        """
        entries, state = self._begun(batch)
        outputs: list[Tensor] = []
        extras: list[Any] = []
        for t in range(batch.time):
            one, state, *more = self._stepped(entries, state, first=t == 0)
            if not more:
                raise UserError(f"{type(self).__name__}.step returns no extras: return (outputs, state, extras)")
            outputs.append(one)
            extras.append(more[0])
            entries = batch.history[:, t]
        return torch.stack(outputs, 1), _stacked(extras, batch.size)

    @property
    def stepper(self) -> Steps:
        """The model by single steps, as roll-ins and generation take it (``freerun.types.Stepper``)."""
        return Steps(self)

    def _begun(self, batch: Batch) -> tuple[Tensor, Any]:
        begun: Any = self.start(batch)
        name = f"{type(self).__name__}.start(batch)"
        if not isinstance(begun, tuple) or len(cast(tuple[Any, ...], begun)) != 2:
            raise UserError(f"{name} must return (entries, state); got {_described(begun)}")
        entries, state = cast(tuple[Any, Any], begun)
        expected = (batch.size, *batch.history.shape[2:])
        fits = isinstance(entries, Tensor) and tuple(entries.shape) == expected
        if not fits or entries.dtype.is_floating_point == batch.is_discrete:
            kind = "ids" if batch.is_discrete else "values"
            hint = _one_position(entries, expected)
            raise UserError(
                f"{name} must return first entries of shape {expected}, {kind}; got {_described(entries)}{hint}"
            )
        self._check_rows(state, batch.size, f"{name} returns a state")
        return entries, state

    def _stepped(self, entries: Tensor, state: Any, *, first: bool = False) -> Any:
        stepped: Any = self.step(entries, state)
        if not first:
            return stepped
        name = f"{type(self).__name__}.step(entries, state)"
        if not isinstance(stepped, tuple) or len(cast(tuple[Any, ...], stepped)) not in (2, 3):
            raise UserError(
                f"{name} must return (outputs, state) or (outputs, state, extras); got {_described(stepped)}"
            )
        outputs: Any = stepped[0]
        if not isinstance(outputs, Tensor) or outputs.dim() != 2 or len(outputs) != len(entries):
            raise UserError(
                f"{name} must return the outputs of one position, ({len(entries)}, vocabulary or values); got "
                f"{_described(outputs)}{_one_position(outputs, (len(entries), 1))}"
            )
        self._check_rows(stepped[1], len(entries), f"{name} returns a state")
        return cast(Any, stepped)

    def _dims(self, state: Any) -> Any:
        """(part of the state, its batch dimension) for each part that may have one of its own."""
        dim: Any = self.batch_dim
        if isinstance(dim, int) and not isinstance(dim, bool):
            return [(state, dim)]
        if not isinstance(dim, Mapping):
            raise UserError(
                f"batch_dim of {type(self).__name__} must be a number, or map names to numbers; got {dim!r}"
            )
        if isinstance(state, Mapping):
            parts = list(cast(Mapping[Any, Any], state).items())
        else:
            names = getattr(state, "_fields", range(len(cast(tuple[Any, ...], state))))
            parts = list(zip(names, cast(tuple[Any, ...], state), strict=True))
        declared = cast(Mapping[Any, int], dim)
        if strange := sorted(repr(name) for name in declared if name not in [name for name, _ in parts]):
            known = ", ".join(repr(name) for name, _ in parts)
            raise UserError(f"batch_dim of {type(self).__name__} names {', '.join(strange)}; the state has {known}")
        return [(part, declared.get(name, 0)) for name, part in parts]

    def _check_rows(self, state: Any, size: int, what: str) -> None:
        if isinstance(self.batch_dim, Mapping) and not isinstance(state, Mapping | tuple | list):
            raise UserError(f"{what} that is one {type(state).__name__}: batch_dim must be a number, not a mapping")

        def check(leaf: Any, dim: int) -> Any:
            if leaf is None:
                return leaf
            if not isinstance(leaf, Tensor):
                raise UserError(
                    f"{what} that holds a {type(leaf).__name__}: a state holds tensors in tuples, lists or mappings; "
                    "keep what is the same for all rows on the model"
                )
            if leaf.dim() <= dim or leaf.shape[dim] != size:
                at = [n for n, length in enumerate(leaf.shape) if length == size]
                hint = f": declare batch_dim = {at[0]}, or a mapping from names to numbers" if at else ""
                raise UserError(f"{what} with a tensor {tuple(leaf.shape)}, whose dimension {dim} is not {size}{hint}")
            return leaf

        for part, dim in self._dims(state):
            map_leaves(part, lambda leaf, dim=dim: check(leaf, dim))

    def _select_rows(self, state: Any, rows: Tensor) -> Any:
        """Pick, repeat or drop rows ((n,) int64) of a state."""

        def pick(part: Any, dim: int) -> Any:
            return map_leaves(part, lambda leaf: None if leaf is None else leaf.index_select(dim, rows))

        picked = [pick(part, dim) for part, dim in self._dims(state)]
        if isinstance(self.batch_dim, int):
            return picked[0]
        if isinstance(state, Mapping):
            return dict(zip(cast(Mapping[Any, Any], state), picked, strict=True))
        return type(state)(*picked) if hasattr(state, "_fields") else type(state)(picked)


_YOURS = frozenset({"start", "step", "forward", "with_extras"})
_OURS = frozenset(name for name in vars(StepModel) if not name.startswith("__")) - _YOURS - {"batch_dim"}


def _taken(model: str, name: str) -> str:
    rule = "which its own class must define as a function" if name in ("start", "step") else "which StepModel defines"
    return f"{model}.{name} is a method of the model, {rule}: call the layer or value {name.strip('_')}_ or otherwise"


class _Walk(NamedTuple):
    """A decoder in the middle of a row: the outputs that its last step returned, and its state."""

    outputs: Tensor
    state: Any


class Steps:
    """A ``StepModel`` as a ``Stepper``: the outputs of a position are there once its step is done."""

    def __init__(self, model: StepModel) -> None:
        self.model = model

    def __call__(self, batch: Batch) -> Tensor:
        return self.model(batch)

    def start(self, batch: Batch) -> _Walk:
        entries, state = self.model._begun(batch)  # pyright: ignore[reportPrivateUsage]
        return _Walk(*self.model._stepped(entries, state, first=True)[:2])  # pyright: ignore[reportPrivateUsage]

    def embed(self, entries: Tensor) -> Tensor:
        return entries

    def step(self, state: _Walk, inputs: Tensor) -> _Walk:
        return _Walk(*self.model.step(inputs, state.state)[:2])

    def output(self, state: _Walk, rows: Tensor | None = None) -> Tensor:
        return state.outputs if rows is None else state.outputs.index_select(0, rows)

    def select(self, state: _Walk, rows: Tensor) -> _Walk:
        return _Walk(state.outputs.index_select(0, rows), self.model._select_rows(state.state, rows))  # pyright: ignore[reportPrivateUsage]


def _stacked(extras: list[Any], size: int) -> Any:
    first = extras[0]
    if isinstance(first, Mapping):
        return {name: _stacked([each[name] for each in extras], size) for name in cast(Mapping[Any, Any], first)}
    if isinstance(first, tuple | list):
        return tuple(_stacked(list(parts), size) for parts in zip(*extras, strict=True))
    if first is None:
        return None
    for t, each in enumerate(extras):
        if not isinstance(each, Tensor) or each.dim() == 0 or len(each) != size:
            raise UserError(f"extras must be tensors, batch first, ({size}, ...); step returned {_described(each)}")
        if each.shape != first.shape:
            raise UserError(
                f"extras must have one shape at every step; got {tuple(first.shape)} at the first and "
                f"{tuple(each.shape)} at step {t + 1}: pad them to one length"
            )
    return torch.stack(extras, 1)


def _one_position(value: Any, expected: tuple[int, ...]) -> str:
    """What to do about a dimension of time, of size 1, that is one too many."""
    timed = isinstance(value, Tensor) and value.dim() == len(expected) + 1 and value.shape[:2] == (expected[0], 1)
    return ": a position has no dimension of time, so use [:, 0]" if timed else ""


def _described(value: Any) -> str:
    if isinstance(value, tuple | list):
        return f"({', '.join(map(_described, cast(list[Any], value)))})"
    return "None" if value is None else shape_of(value)
