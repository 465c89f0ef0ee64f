"""A forecaster that reads and predicts in units of what is known before the horizon: by window, or by regression."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Self, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from freerun.batch import Batch
from freerun.distributions import HEADS
from freerun.errors import UserError, refuse
from freerun.models.forecasting.inputs import HEAD_NAMES, check_history
from freerun.regression import linear_forecast
from freerun.types import Detachable, Encoder, Stepper

Centre = Literal["none", "mean", "last"]
CENTRES: tuple[Centre, ...] = ("none", "mean", "last")
_SMALL = 1e-5
"""Added to a variance before its root, as in RevIN: a window that stands still is not divided by 0."""


class _Reference(NamedTuple):
    """What is taken off and divided by, before position t; of a position beyond the last the last one's."""

    fed: Tensor  # (batch, positions, values) off the entry that position t reads
    shift: Tensor  # (batch, positions, values) added to the output of position t
    scale: Tensor  # (batch, positions, values)

    def at(self, position: int, rows: Tensor | None = None) -> _Reference:
        """(rows, values) each, at one position."""
        parts = (part[:, min(position, part.shape[1] - 1)] for part in self)
        return _Reference(*(part if rows is None else part[rows] for part in parts))

    def select(self, rows: Tensor) -> _Reference:
        """The requested rows."""
        return _Reference(*(part[rows] for part in self))


@dataclass(frozen=True, eq=False)
class _Known:
    """A context in the window's own units, and those units."""

    context: Any
    reference: _Reference

    def select(self, rows: Tensor) -> _Known:
        """The requested rows."""
        context = self.context
        if isinstance(context, dict):
            chosen: Any = {name: part[rows] for name, part in context.items()}
        else:
            chosen = None if context is None else context.select(rows)
        return _Known(chosen, self.reference.select(rows))


class _State(NamedTuple):
    inner: Any
    position: int
    reference: _Reference


class WindowScaled(nn.Module):
    """A forecaster whose every window is centred, and optionally scaled, by its own known part.

    ``outputs_t = r_t + s model((y - r) / s)_t``: r is the mean or the last of the known values, or their linear
    forecast, and s their deviation ``sqrt(var + 1e-5)``. Both are functions of what is known alone and constant through
    the horizon (the linear forecast moves, and is still known before it), so everything that is exact for the inner
    model is for this one: it reads and outputs values in the units of the batch, and what is fed back is scaled again.

    Args:
        model: a forecaster over context ``{"past": (batch, past_time, values + observed + covariates)}``, or (its
            ``layout`` is "sequence") over a history whose first ``context["known"]`` (batch,) entries are known; a
            Stepper if it is to be stepped.
        values: channels that are predicted.
        observed: channels of the past that are centred as well; those after them are covariates, read as they are.
        centre: ``"mean"``, ``"last"`` or ``"none"``.
        deviation: divide by the deviation of the known values.
        linear: r is the forecast of a linear regression, fitted by ``fit_linear`` before any training; the inner
            model's last layer begins at 0, so that it starts where the regression stands. It reads the errors of it.
        head: the distribution whose parameters the model outputs, or ``"point"``.

    Raises:
        UserError: arguments that do not go together; a context without a past; a regression that was not fitted.

    Reference: Kim et al. 2022 (RevIN), ICLR; Zeng et al. 2023 (NLinear), arXiv:2205.13504; Salinas et al. 2020
    (scaling in DeepAR), arXiv:1704.04110.

    What it is not: RevIN's learned affine map, and a scale for the loss: errors count in the units of the batch.

    >>> from freerun.models import RecurrentForecaster
    >>> model = WindowScaled(RecurrentForecaster(1, size=8), 1, centre="last")
    >>> past, values = torch.randn(2, 9, 1), torch.zeros(2, 5, 1)
    >>> low, high = (model(Batch(values + by, context={"past": past + by})) for by in (0, 1000))
    >>> bool(torch.allclose(low + 1000, high, atol=1e-2))
    True
    """

    regression: Tensor

    def __new__(cls, *arguments: Any, **named: Any) -> Self:
        """A Stepper where the model is one."""
        model = arguments[0] if arguments else named.get("model")
        if cls is WindowScaled and isinstance(model, Stepper):
            return super().__new__(cast(type[Self], _Detached if isinstance(model, Detachable) else _Stepped))
        return super().__new__(cls)

    def __init__(
        self,
        model: nn.Module,
        values: int,
        observed: int = 0,
        *,
        centre: Centre = "mean",
        deviation: bool = False,
        linear: bool | tuple[int, int, int] = False,
        head: str = "point",
    ) -> None:
        refuse(scaling_problems(model, (values, observed), centre, linear, head))
        super().__init__()
        self.inner, self.values, self.observed = model, values, observed
        self.centre, self.deviation, self.linear, self.head_name = centre, deviation, linear, head
        if isinstance(linear, tuple | list):
            self.register_buffer("regression", torch.zeros(self._regression_shape(*linear)))

    @property
    def layout(self) -> str:
        """``"past"`` or ``"sequence"``, as of the inner model."""
        return getattr(self.inner, "layout", "past")

    @property
    def reads_level(self) -> bool:
        """As of the inner model."""
        return getattr(self.inner, "reads_level", False)

    def settings(self) -> dict[str, Any]:
        """The inner model's arguments and these."""
        own = {"centre": self.centre, "deviation": self.deviation, "linear": self.linear}
        inner: Any = getattr(self.inner, "settings", dict)
        return {**inner(), **own}

    def fit_linear(self, weights: Tensor, steps: int, horizon: int) -> Self:
        """Take the weights of a linear regression, see ``freerun.regression.LinearForecast``.

        Raises:
            UserError: the model was not made with ``linear``; weights of another shape.
        """
        if not self.linear:
            raise UserError("the model was made without linear: make it with linear=True, then fit the regression")
        shapes = [self._regression_shape(steps, horizon, groups) for groups in sorted({1, self.values})]
        if tuple(weights.shape) not in shapes:
            raise UserError(
                f"weights of {steps} steps, a horizon of {horizon} and {self.values} values must be "
                f"{' or '.join(map(str, shapes))}: (groups, inputs and a one, outputs); got {tuple(weights.shape)}"
            )
        self.linear = (steps, horizon, len(weights))
        like = next(self.inner.parameters(), weights)
        self.register_buffer("regression", weights.to(like))
        out = getattr(self.inner, "out", None)
        if isinstance(out, nn.Linear):
            with torch.no_grad():
                for part in (out.weight, out.bias):
                    # of quantiles every level begins there, else the locations
                    part[: None if self.head_name == "quantiles" else self.values].zero_()
        return self

    def _regression_shape(self, steps: int, horizon: int, groups: int) -> tuple[int, int, int]:
        width = self.values // groups
        return groups, steps * width + 1, horizon * width

    # -- the complete sequence at once

    def encode(self, batch: Batch) -> Batch:
        """The batch with its reference found and its past read; one that is encoded already is returned."""
        if isinstance(batch.context, _Known):
            return batch
        check_history(batch, self.values, type(self.inner).__name__)
        inside, reference = self._past(batch) if self.layout == "past" else self._prefix(batch)
        if isinstance(self.inner, Encoder):
            inside = self.inner.encode(inside)
        return batch.made(context=_Known(inside.context, reference))

    def forward(self, batch: Batch) -> Tensor:
        """(batch, time, numbers of the head * values), in the units of the batch."""
        batch = self.encode(batch)
        reference = _first(batch.context.reference, batch.time)
        fed, scale = _of_history(reference)
        history = (batch.history - fed) / scale
        outputs = self.inner(batch.made(targets=history, history=history, context=batch.context.context))
        return self._moved(outputs, reference)

    def history_units(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Two of (batch, time, values): what is taken off the history's entries, and what they are divided by."""
        if isinstance(batch.context, _Known):
            reference = batch.context.reference
        else:
            reference = (self._past(batch) if self.layout == "past" else self._prefix(batch))[1]
        return _of_history(_first(reference, batch.time))

    # -- what is known

    def _past(self, batch: Batch) -> tuple[Batch, _Reference]:
        past = batch.context.get("past") if isinstance(batch.context, dict) else None
        if not isinstance(past, Tensor) or past.dim() != 3 or past.shape[-1] < self.values + self.observed:
            raise UserError(
                "WindowScaled needs Batch.context = {'past': (batch, past_time, channels)} with at least "
                f"{self.values + self.observed} channels; got {_described(batch.context, 'past')}"
            )
        known, rest = past.split([self.values + self.observed, past.shape[-1] - self.values - self.observed], -1)
        centre = {"mean": known.mean(1, True), "last": known[:, -1:], "none": torch.zeros_like(known[:, :1])}[
            self.centre
        ]
        variance = known.var(1, correction=0, keepdim=True)
        scale = (variance + _SMALL).sqrt() if self.deviation else torch.ones_like(centre)
        context = {**batch.context, "past": torch.cat([(known - centre) / scale, rest], -1)}
        own, scale = centre[..., : self.values], scale[..., : self.values]
        shift = own if self.linear is False else self.regress(past[..., : self.values], batch.time)
        fed = own if self.linear is False else torch.cat([own, shift[:, :-1]], 1)
        scale = scale.expand_as(shift)
        history = torch.zeros_like(batch.history)
        return batch.made(targets=history, history=history, context=context), _Reference(fed, shift, scale)

    def regress(self, past: Tensor, time: int) -> Tensor:
        """(batch, at least time, values): the regression's forecast; beyond its horizon it reads its own.

        That of the complete model before training. ``past``: (batch, past_time, values).
        """
        if not isinstance(self.linear, tuple | list) or not bool(self.regression.any()):
            raise UserError("the linear regression is not fitted: call fit_linear(weights, steps, horizon) first")
        (steps, horizon, _), found = self.linear, past[:, :0]
        if past.shape[1] < steps:
            raise UserError(f"the linear regression reads {steps} steps of the past; got {past.shape[1]}")
        while found.shape[1] < time:
            known = torch.cat([past, found], 1)
            found = torch.cat([found, linear_forecast(known, self.regression, steps, horizon)], 1)
        return found

    def _prefix(self, batch: Batch) -> tuple[Batch, _Reference]:
        """Of a history that begins with what is known: at each position of what is known before it."""
        lengths = batch.context.get("known") if isinstance(batch.context, dict) else None
        right = isinstance(lengths, Tensor) and lengths.shape == (batch.size,) and not lengths.is_floating_point()
        if not isinstance(lengths, Tensor) or not right or bool((lengths < 0).any()):
            got = lengths.tolist() if isinstance(lengths, Tensor) and right else _described(batch.context, "known")
            raise UserError(
                "WindowScaled needs Batch.context = {'known': (batch,) whole numbers}: of how many entries that the "
                f"history begins with a window's level is taken (a batch may be cut before their end); got {got}"
            )
        known = torch.arange(batch.time, device=lengths.device) < lengths[:, None]
        longest = int(known.sum(1).max())
        entries = batch.history[:, :longest] * known[:, :longest, None]
        count = F.pad(known[:, :longest].cumsum(1), (1, 0))[..., None]
        before = entries.new_zeros(batch.size, 1, self.values)
        mean = torch.cat([before, entries.cumsum(1)], 1) / count.clamp_min(1)
        if self.centre == "last":
            newest = (count[..., 0] - 1).clamp_min(0)
            centre = torch.cat([entries, before], 1).gather(1, newest[..., None].expand(-1, -1, self.values))
            centre = centre * (count > 0)
        else:
            centre = mean if self.centre == "mean" else torch.zeros_like(mean)
        scale = torch.ones_like(mean)
        if self.deviation:
            # of deviations from the first entry, whose squares lose nothing of a level far from 0
            away = (entries - entries[:, :1]) * known[:, :longest, None]
            sums = (torch.cat([before, part.cumsum(1)], 1) / count.clamp_min(1) for part in (away.square(), away))
            squares, first = sums
            scale = torch.where(count > 1, ((squares - first.square()).clamp_min(0) + _SMALL).sqrt(), 1.0)
        return batch, _Reference(centre, centre, scale)

    def _moved(self, outputs: Tensor, at: _Reference) -> Tensor:
        if self.head_name == "point":
            return outputs * at.scale + at.shift
        return HEADS[self.head_name]().moved(outputs, at.shift, at.scale)


class _Stepped(WindowScaled):
    """The same over a model that can be stepped."""

    inner: Any

    def start(self, batch: Batch) -> _State:
        """The state that predicts position 0."""
        batch = self.encode(batch)
        reference: _Reference = batch.context.reference
        return _State(self.inner.start(batch.made(context=batch.context.context)), 0, reference)

    def embed(self, entries: Tensor) -> Tensor:
        """(..., values) as they are: what is taken off depends on the row."""
        return entries

    def step(self, state: _State, inputs: Tensor) -> _State:
        """The state after one more value (batch, values)."""
        at = state.reference.at(state.position + 1)
        inner = self.inner.step(state.inner, self.inner.embed((inputs - at.fed) / at.scale))
        return _State(inner, state.position + 1, state.reference)

    def output(self, state: _State, rows: Tensor | None = None) -> Tensor:
        """(rows, numbers) outputs at the position the state stands before."""
        return self._moved(self.inner.output(state.inner, rows), state.reference.at(state.position, rows))

    def select(self, state: _State, rows: Tensor) -> _State:
        """The state of the requested rows, in that order."""
        return _State(self.inner.select(state.inner, rows), state.position, state.reference.select(rows))


class _Detached(_Stepped):
    """The same over a model whose past can be let go."""

    def detach(self, state: _State) -> _State:
        """The same state without the gradient into what came before."""
        return _State(self.inner.detach(state.inner), state.position, state.reference)


def scaling_problems(model: Any, sizes: tuple[Any, Any], centre: Any, linear: Any, head: Any) -> list[str]:
    """Return what is wrong with the arguments of a scaling; sizes: values, observed."""
    problems = [f"centre must be one of {', '.join(CENTRES)}; got {centre!r}"] if centre not in CENTRES else []
    problems += [
        f"{name} must be a whole number of at least {least}; got {size!r}"
        for name, least, size in (("values", 1, sizes[0]), ("observed", 0, sizes[1]))
        if not isinstance(size, int) or isinstance(size, bool) or size < least
    ]
    if head not in HEAD_NAMES:
        problems.append(f"head must be one of {', '.join(HEAD_NAMES)}; got {head!r}")
    saved = isinstance(linear, tuple | list) and len(linear) == 3 and all(type(n) is int and n > 0 for n in linear)
    if not isinstance(linear, bool) and not saved:
        problems.append(
            f"linear must be True, False, or the steps read, the horizon and the groups of a saved one; got {linear!r}"
        )
    if linear and getattr(model, "layout", "past") != "past":
        problems.append("linear needs a model of layout 'past' (recurrent_forecaster): leave it out")
    if linear and getattr(model, "residual", False):
        problems.append("residual adds the last value, and linear the regression's forecast: choose one of them")
    return problems


def _first(reference: _Reference, time: int) -> _Reference:
    """The reference of the first positions; the last one's goes on."""
    index = torch.arange(time, device=reference.shift.device)
    return _Reference(*(part[:, index.clamp_max(part.shape[1] - 1)] for part in reference))


def _of_history(reference: _Reference) -> tuple[Tensor, Tensor]:
    """``fed`` and ``scale`` at the entries of the history, each of which the position after it reads."""
    fed, scale = (torch.cat([part[:, 1:], part[:, -1:]], 1) for part in (reference.fed, reference.scale))
    return fed, scale


def _described(context: Any, name: str) -> str:
    if not isinstance(context, dict):
        return type(context).__name__
    part = context.get(name)
    return f"{name} {tuple(part.shape)}" if isinstance(part, Tensor) else f"keys {sorted(map(str, context))}"
