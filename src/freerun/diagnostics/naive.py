"""Naive baselines: forecasts without a model, which any model must beat."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from freerun.arguments import COUNT, brief
from freerun.batch import Batch, must_be
from freerun.errors import UserError, refuse


def last_value(past: Tensor, horizon: int) -> Tensor:
    """Repeat the last known value.

    ``forecast[t] = past[P]``

    Args:
        past: (windows, past, V) the values known before; observed and covariate channels left out.
        horizon: positions to forecast, at least 1.

    Returns:
        (windows, horizon, V).

    Raises:
        UserError: no past, or no horizon.

    >>> last_value(torch.tensor([[[1.0], [2.0]]]), 3).flatten()
    tensor([2., 2., 2.])
    """
    _check(past, horizon, 1)
    return past[:, -1:].repeat(1, horizon, 1)


def last_period(past: Tensor, horizon: int, period: int) -> Tensor:
    """Repeat the last known period: the seasonal naive forecast.

    ``forecast[t] = past[P - period + 1 + (t - 1) mod period]``, t from 1

    Args:
        past: (windows, past, V) the values known before.
        horizon: positions to forecast, at least 1.
        period: steps of a period; the past must hold one.

    Returns:
        (windows, horizon, V).

    Raises:
        UserError: the past is shorter than a period.

    >>> last_period(torch.tensor([[[9.0], [1.0], [2.0]]]), 5, period=2).flatten()
    tensor([1., 2., 1., 2., 1.])
    """
    COUNT.check(period=period)
    _check(past, horizon, period)
    start = past.shape[1] - period
    return past[:, start + torch.arange(horizon, device=past.device) % period]


def mean(past: Tensor, horizon: int, value: Tensor | None = None) -> Tensor:
    """Forecast the mean of the training part, whose NRMSE is about 1.

    ``forecast[t] = value``

    Args:
        past: (windows, past, V); only its shape and type are used.
        horizon: positions to forecast, at least 1.
        value: (V,) the mean; None: 0, which it is in normalised units.

    Returns:
        (windows, horizon, V).

    Raises:
        UserError: the mean has another number of channels.

    >>> mean(torch.ones(1, 4, 2), 1)
    tensor([[[0., 0.]]])

    What it is not: the mean of the past, which differs from window to window.
    """
    _check(past, horizon, 0)
    width = past.shape[-1]
    if value is None:
        return past.new_zeros(past.shape[0], horizon, width)
    if tuple(value.shape) != (width,):
        raise UserError(f"the mean must be ({width},), one number a channel; got {tuple(value.shape)}")
    return value.to(past).expand(past.shape[0], horizon, width).clone()


def _check(past: Tensor, horizon: int, needed: int) -> None:
    must_be("windows, past, V", "real", past=past)
    short = past.shape[1] < needed
    problems = [f"past must hold {needed} steps; it holds {past.shape[1]}: take a longer past"] if short else []
    refuse(problems + COUNT.problems(horizon=horizon))


def past_and_horizon(batch: Batch, horizon: int, values: int) -> tuple[Tensor, Tensor]:
    """(windows, past, values) and (windows, horizon, values) of a batch of either layout, float64."""
    if isinstance(batch.context, dict) and "past" in batch.context:
        past = batch.context["past"][..., :values]
    else:
        past = batch.history[:, : batch.history.shape[1] - horizon]  # the targets lack what is missing there
    return past.double(), batch.targets[:, -horizon:].double()


def naive_forecasts(
    past: Tensor, horizon: int, period: int | None, further: Mapping[str, Callable[[Tensor, int], Tensor]]
) -> dict[str, Tensor]:
    """Return name -> (windows, horizon, values): last value, last period where the past has one, mean, further."""
    forecasts = {"last_value": last_value(past, horizon)}
    if period is not None and period <= past.shape[1]:
        forecasts["last_period"] = last_period(past, horizon, period)
    forecasts["mean"] = mean(past, horizon)
    return forecasts | {name: forecast(past, horizon).to(past) for name, forecast in further.items()}


@dataclass(frozen=True, eq=False)
class NGram:
    """For each context of up to ``order - 1`` symbols the symbol that followed it most often; see ``fit_ngram``."""

    tables: tuple[tuple[Tensor, Tensor], ...]
    symbols: int
    __repr__ = brief

    @property
    def order(self) -> int:
        """Symbols of the longest context, and the one that follows."""
        return len(self.tables)

    def __call__(self, context: Tensor) -> Tensor:
        """(rows, length) symbols before -> (rows,) the symbol predicted by the longest context that is known."""
        found = context.new_zeros(len(context))
        for length, (known, following) in enumerate(self.tables[: context.shape[1] + 1]):
            code = _codes(context, self.symbols, length)
            at = torch.searchsorted(known, code).clamp_max(len(known) - 1)
            found = torch.where(known[at] == code, following[at], found)
        return found

    def read(self, observed: Tensor) -> Tensor:
        """(rows, time) the symbol predicted at each position from what is observed up to it."""
        return torch.stack([self(observed[:, : t + 1]) for t in range(observed.shape[1])], 1)

    def go_on(self, past: Tensor, horizon: int) -> Tensor:
        """(rows, horizon) symbols after (rows, past) ones, each read in its turn."""
        for _ in range(horizon):
            past = torch.cat([past, self(past)[:, None]], 1)
        return past[:, past.shape[1] - horizon :]


def _codes(context: Tensor, symbols: int, length: int) -> Tensor:
    """(rows,) one number for the last ``length`` symbols of each row."""
    weights = symbols ** torch.arange(length, device=context.device)
    return (context[:, context.shape[1] - length :] * weights).sum(1)


def fit_ngram(observed: Tensor, following: Tensor, mask: Tensor, order: int) -> NGram:
    """Count what follows each context of up to ``order - 1`` symbols, and keep the most frequent.

    ``p(y_t | x_<=t) ~ count(x_{t-n+2..t}, y_t)``, with the longest context that was seen (back-off without weights).

    Args:
        observed: (rows, time) symbols x.
        following: (rows, time) symbols y: of a sequence its own next symbol, of labels the label at the position.
        mask: (rows, time) bool: positions that count.
        order: n, at least 1; 1 is the most frequent symbol.

    Raises:
        UserError: shapes that do not fit, or more contexts than a 64-bit number can tell apart.

    >>> x = torch.tensor([[0, 1, 0, 1, 0, 1]])
    >>> fit_ngram(x[:, :-1], x[:, 1:], torch.ones(1, 5, dtype=torch.bool), order=2).go_on(torch.tensor([[0]]), 3)
    tensor([[1, 0, 1]])
    """
    must_be("rows, time", "int64", observed=observed, following=following)
    COUNT.check(order=order)
    symbols = int(torch.maximum(observed.max(), following.max())) + 1
    if symbols**order >= 2**62:
        raise UserError(f"{symbols} symbols in contexts of {order - 1} are too many to count: use a lower order")
    tables: list[tuple[Tensor, Tensor]] = []
    for length in range(order):
        width = observed.shape[1]
        positions = [t for t in range(width) if t + 1 >= length]
        codes = torch.stack([_codes(observed[:, : t + 1], symbols, length) for t in positions], 1)
        kept = mask[:, positions]
        pairs, counts = (codes * symbols + following[:, positions])[kept].unique(return_counts=True)
        # stable: of equal counts the smallest symbol
        ordered = counts.argsort(descending=True, stable=True)
        contexts = pairs[ordered] // symbols
        known, first = _firsts(contexts)
        tables.append((known, (pairs[ordered] % symbols)[first]))
    return NGram(tuple(tables), symbols)


def _firsts(values: Tensor) -> tuple[Tensor, Tensor]:
    """Distinct values in rising order, and where each stands first."""
    distinct, inverse = values.unique(return_inverse=True)
    first = torch.full_like(distinct, len(values)).scatter_reduce(
        0, inverse, torch.arange(len(values), device=values.device), "amin"
    )
    return distinct, first
