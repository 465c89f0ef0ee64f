"""A causal Transformer over one sequence of values."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn

from freerun.batch import Batch
from freerun.distributions import Head
from freerun.errors import UserError
from freerun.models.forecasting.inputs import (
    Categories,
    category_problems,
    check_history,
    covariates_of,
    joined,
    level_of,
    numbers_a_value,
    size_problems,
    with_last,
)
from freerun.models.transformer.cache import Cache, Reading
from freerun.models.transformer.decoder import CausalTransformer, DecoderContext, DecoderState
from freerun.models.transformer.layers import Shape, initialise


@dataclass(frozen=True, eq=False)
class _Future(DecoderContext):
    """What is read besides the history."""

    future: Tensor | None = None  # (batch, time, covariates)
    level: Tensor | None = None  # (batch, time, 1) noise levels of what is read

    def select(self, rows: Tensor) -> _Future:
        """The requested rows."""
        future, level = (None if part is None else part.index_select(0, rows) for part in (self.future, self.level))
        return _Future(future=future, level=level)

    def at(self, rows: Any, index: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """The covariates and the levels of positions; beyond the levels' end entries are clean."""
        future = None if self.future is None else self.future[rows, index]
        if self.level is None:
            return future, None
        end = self.level.shape[1]
        return future, self.level[rows, index.clamp_max(end - 1)] * (index < end)[..., None]


class TransformerForecaster(CausalTransformer):
    """A decoder-only Transformer over values; outputs (batch, time, numbers of the head * values).

    ``x_t = A y_{t-1} + C c_t + b``, then layers of ``x + attend(norm(x))`` and ``x + feed_forward(norm(x))`` with
    causal attention, outputs = ``U norm(x) + u (+ y_{t-1})``, with the covariates ``c_t`` of the predicted step. The
    shift is inside: position t reads ``history[:, t-1]``, position 0 zeros. The past is what the history begins with
    (``mask`` and ``eligible`` False). Stepped over its cache and in parallel it is the same function.

    Args:
        values: channels that are predicted and fed back.
        covariates: channels known ahead (calendar, plans): never replaced, read in free run too.
        observed: must be 0: a sequence has no room for channels known in the past only.
        categories: covariates that are numbers of categories: of each its channel among them and how many names it has.
        size: width of the stream, a multiple of ``heads``.
        layers: number of layers.
        heads: number of attention heads.
        feed_forward: inner width; None: 8/3 * size.
        embedding: width of the vector that is learned for each name of a category.
        residual: predict the change since the last input.
        head: ``"point"``, ``"gaussian"``, ``"student_t"`` or ``"quantiles"`` (see ``freerun.distributions``).
        dropout: on the inputs and on what every sublayer adds, in [0, 1).
        max_positions: number of positions there are.
        level: read the noise level of every entry (``context["level"]``, see ``diffusion_noise``) as one channel more.

    Context of a batch: None, or ``{"future": (batch, time, covariates)}``, position t holding those of step t; with
    ``level`` also ``"level": (batch, time)``, that of the history's entries, absent = 0.

    Raises:
        UserError: for arguments outside their range, all at once; for a context that does not fit.

    Reference: Vaswani et al. 2017, arXiv:1706.03762; Su et al. 2021, arXiv:2104.09864.

    >>> values = torch.randn(3, 5, 2)
    >>> batch = Batch(values, values, torch.ones(3, 5, dtype=torch.bool))
    >>> TransformerForecaster(2, size=8, layers=1, heads=2)(batch).shape
    torch.Size([3, 5, 2])
    """

    layout: ClassVar[str] = "sequence"

    def __init__(
        self,
        values: int,
        covariates: int = 0,
        observed: int = 0,
        categories: tuple[tuple[int, int], ...] = (),
        *,
        size: int = 64,
        layers: int = 2,
        heads: int = 4,
        feed_forward: int | None = None,
        embedding: int = 8,
        residual: bool = False,
        head: Head = "point",
        dropout: float = 0.0,
        max_positions: int = 1024,
        level: bool = False,
    ) -> None:
        settings = {name: value for name, value in locals().items() if name not in ("self", "__class__")}
        shape = _checked(settings, self.layout)
        super().__init__(values, shape, crossed=False, tied=False)
        self._settings = settings
        self.values, self.covariates, self.residual, self.reads_level = values, covariates, residual, level
        self.head_name = head
        # instead of a table, a start symbol and a vocabulary
        known = covariates + sum(embedding - 1 for _ in categories) + level
        self.embedding = nn.Linear(values + known, size)
        del self.start_vector
        self.register_buffer("start_vector", torch.zeros(values), persistent=False)
        self.out = nn.Linear(size, values * numbers_a_value(head))
        initialise(self, layers)
        # values are few where symbols are many: fan-in, as the residual stream expects entries of its own size
        nn.init.normal_(self.embedding.weight, std=(values + known) ** -0.5)
        self.categories = Categories(categories, covariates, embedding) if categories else None

    def settings(self) -> dict[str, Any]:
        """Return the constructor's arguments; those about categories where there are any."""
        absent = () if self.categories is not None else ("categories", "embedding")
        return {name: value for name, value in self._settings.items() if name not in absent}

    def _context(self, batch: Batch) -> _Future:
        name = type(self).__name__
        check_history(batch, self.values, name)
        level = level_of(batch.context, batch, self.reads_level, name)
        return _Future(future=covariates_of(batch.context, batch, self.covariates, name), level=level)

    # -- the complete sequence at once

    def lookup(self, entries: Tensor) -> Tensor:
        """Values stand for themselves."""
        return entries

    def head(self, hidden: Tensor) -> Tensor:
        """(..., size) hidden vectors, followed where residual by the last input -> (..., numbers)."""
        if not self.residual:
            return self.out(hidden)
        hidden, last = hidden.split([self.shape.size, self.values], -1)
        return with_last(self.out(hidden), last, self.head_name)

    def _hidden(self, batch: Batch, entries: Tensor) -> Tensor:
        self.positions.check(batch.time)
        context = self._context(batch)
        inputs = torch.cat([self._first(batch)[:, None], entries], 1)
        index = torch.arange(batch.time, device=inputs.device)
        x, turn = self.positions(self._entered(inputs, *context.at(slice(None), index)), index)
        x = self.drop(x)
        for block in self.blocks:
            x = block(x, turn, None)
        return self._with_inputs(self.norm(x), inputs)

    def _first(self, batch: Batch) -> Tensor:
        return self.start_vector.to(batch.history.dtype).expand(batch.size, -1)

    def _entered(self, inputs: Tensor, now: Tensor | None, level: Tensor | None) -> Tensor:
        return self.embedding(joined(inputs, now, level, self.categories))

    def _with_inputs(self, hidden: Tensor, inputs: Tensor) -> Tensor:
        return torch.cat([hidden, inputs], -1) if self.residual else hidden

    # -- entry by entry

    def start(self, batch: Batch) -> DecoderState:
        """The state that predicts position 0: zeros have been read."""
        context, like = self._context(batch), self.embedding.weight.new_empty(batch.size, self.shape.size)
        cache = Cache.empty(like, self.shape.layers, self.shape.heads, batch.time + 1)
        cache.hidden = self._with_inputs(cache.hidden, like.new_zeros(*cache.hidden.shape[:2], self.values))
        lengths = torch.zeros(batch.size, dtype=torch.int64, device=like.device)
        return self.step(DecoderState(cache, 0, lengths, 0, (), context), self._first(batch))

    def embed(self, entries: Tensor) -> Tensor:
        """Values as they are: which covariates join them is known where they stand."""
        return entries

    def detach(self, state: DecoderState) -> DecoderState:
        """The same state without the gradient into what came before; the weights' own gradient stays."""
        return replace(state, cache=state.cache.detached(), version=0)

    def _through(self, inputs: Tensor, positions: Tensor, at: Reading, state: DecoderState) -> Tensor:
        future = getattr(state.context, "future", None)
        if future is not None and int(at.index.max()) >= future.shape[1]:
            raise UserError(
                f"covariates are missing at generation: position {int(at.index.max())} is to be predicted and "
                f"context['future'] covers {future.shape[1]}"
            )
        x = self._entered(inputs, *cast(_Future, state.context).at(at.rows, at.index))
        return self._with_inputs(super()._through(x, positions, at, state), inputs)


def _checked(settings: dict[str, Any], layout: str) -> Shape:
    fixed = {"positions": "rope", "activation": "swiglu", "norm": "rms", "bias": False}
    ours = {name: value for name, value in settings.items() if name not in ("dropout", "size", "layers")}
    problems = size_problems(ours, layout) + category_problems(settings["categories"], settings["covariates"])
    try:
        shape = Shape.of({**settings, **fixed})
    except UserError as error:
        raise UserError(problems + error.problems) from None
    if problems:
        raise UserError(problems)
    return shape
