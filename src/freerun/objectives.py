"""Losses as (total, count), so that means stay exact over any split of a batch."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields
from functools import lru_cache
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from freerun.arguments import Arguments, above, at_least, between, nearest, refused
from freerun.batch import Batch, must_be, shape_of
from freerun.distributions import Distribution, Gaussian, Quantiles, StudentT
from freerun.errors import UserError, refuse
from freerun.types import Counted


class Objective(Protocol):
    """(outputs, batch) -> (total, count), both scalars; the loss is total / count."""

    def __call__(self, outputs: Tensor, batch: Batch) -> tuple[Tensor, Tensor]: ...


def _refuse_others(outputs: Any, batch: Any) -> None:
    if not (isinstance(outputs, Tensor) and outputs.is_floating_point()):
        must_be("", "real", outputs=outputs)
    if not isinstance(batch, Batch):
        raise UserError(f"an objective is called with outputs and a freerun.Batch; got {shape_of(batch)}")


def _chosen(outputs: Tensor, batch: Batch) -> tuple[Tensor, Tensor, Tensor | None]:
    """Outputs, targets and weights at the positions that count, by selection: a NaN elsewhere does no harm."""
    mask = batch.mask
    if outputs.shape[:2] != mask.shape or outputs.dim() != 3:
        raise UserError(f"outputs must be {(*mask.shape, '...')}, batch first; got {tuple(outputs.shape)}")
    if bool(mask.all()):
        weights = None if batch.weights is None else batch.weights.flatten()
        return outputs.flatten(0, 1), batch.targets.flatten(0, 1), weights
    return outputs[mask], batch.targets[mask], None if batch.weights is None else batch.weights[mask]


_HALF = (torch.bfloat16, torch.float16)


def _wide(each: Tensor) -> Tensor:
    # a sum of many needs the digits, and float16 counts to 65,504
    return each.float() if each.dtype in _HALF else each


def _summed(each: Tensor, weights: Tensor | None) -> tuple[Tensor, Tensor]:
    each = _wide(each)
    if weights is None:
        return each.sum(), torch.full((), each.numel(), dtype=each.dtype, device=each.device)
    return (each * weights).sum(), weights.sum()


@dataclass(frozen=True)
class CrossEntropy(Arguments):
    """``-sum_t w_t log softmax(outputs_t)[target_t]`` in nats; count is the sum of weights (or of positions).

    Args:
        label_smoothing: share of the target's mass spread evenly over the vocabulary, in [0, 1).

    >>> batch = Batch(torch.tensor([[1, 0]]), torch.tensor([[1, 0]]), torch.tensor([[True, False]]))
    >>> total, count = CrossEntropy()(torch.zeros(1, 2, 4), batch)
    >>> round(float(total), 4), int(count)
    (1.3863, 1)
    """

    label_smoothing: float = between(0, 1, 0.0, ends="[)")

    def __call__(self, outputs: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        """Outputs (batch, time, vocab) logits -> (total, count)."""
        _refuse_others(outputs, batch)
        if not batch.is_discrete:
            raise UserError("cross_entropy needs ids as targets; these are values: use objective='mse'")
        logits, targets, weights = _chosen(outputs, batch)
        smoothing = self.label_smoothing
        if weights is None and logits.dtype not in _HALF:
            total = F.cross_entropy(logits, targets, reduction="sum", label_smoothing=smoothing)
            return total, torch.full((), targets.numel(), dtype=total.dtype, device=total.device)
        return _summed(F.cross_entropy(logits, targets, reduction="none", label_smoothing=smoothing), weights)

    def of_shares(self, outputs: Tensor, batch: Batch, shares: Tensor) -> tuple[Tensor, Tensor]:
        """``sum_t w_t KL(q_t || softmax(outputs_t))`` for shares of several symbols in place of one target.

        With label smoothing the smoothed q's cross-entropy less q's entropy: of all mass on one symbol, that symbol's.

        Args:
            outputs: (batch, time, vocab) logits.
            batch: its mask and weights are used.
            shares: (batch, time, n) of the first n symbols, 0 or more, or bool; q_t is a position's over their sum.
        """
        logits, _, weights = _chosen(outputs, batch)
        if shares.shape[-1] > logits.shape[-1]:
            raise UserError(f"the target weighs {shares.shape[-1]} symbols, and the model has {logits.shape[-1]}")
        log_p = (logits.float() if logits.dtype in _HALF else logits).log_softmax(-1)
        q = shares[batch.mask]
        if q.is_floating_point():  # in its own range first: that of log_p may hold none of it
            q = q / q.amax(-1, keepdim=True)
        q = q.to(log_p.dtype)
        q = F.pad(q / q.sum(-1, keepdim=True), (0, log_p.shape[-1] - q.shape[-1]))
        entropy = -torch.xlogy(q, q).sum(-1)
        if self.label_smoothing:
            q = (1 - self.label_smoothing) * q + self.label_smoothing / q.shape[-1]
        # by selection: what has no share may have probability 0
        each = -torch.where(q > 0, q * log_p, 0.0).sum(-1) - entropy
        return _summed(each, weights)


@dataclass(frozen=True, repr=False, kw_only=True)
class OfValues(Arguments):
    """A loss of real values, summed over channels with weights of their own.

    Args:
        channel_weights: (V,) what the loss of each channel counts, at least 0; None: all 1. ``count`` is their sum
            times the weights of the positions, so that the mean stays a mean.
    """

    channel_weights: tuple[float, ...] | None = at_least(0, None)

    name: ClassVar[str]

    def __post_init__(self) -> None:
        if isinstance(self.channel_weights, list):
            object.__setattr__(self, "channel_weights", tuple(self.channel_weights))
        super().__post_init__()

    def problems(self) -> Iterable[str]:
        """Return what is wrong with the weights together, a line each."""
        weights = self.channel_weights
        if not isinstance(weights, tuple | None):
            yield f"channel_weights must be a number for each channel, (1.0, 0.5, ...); got {weights!r}"
        elif weights is not None and not any(weights):
            yield f"channel_weights must hold one above 0; got {weights}"

    def __repr__(self) -> str:
        # part of a run's identity: what is not the default, but levels always
        named = [each for each in fields(self) if each.name == "levels" or getattr(self, each.name) != each.default]
        return f"{type(self).__name__}({', '.join(f'{each.name}={getattr(self, each.name)!r}' for each in named)})"

    @property
    def numbers(self) -> int:
        """Numbers of the model's output that it reads for a value."""
        return 1

    def each(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """(..., numbers * V) and (..., V) -> (..., V), the loss of each value."""
        raise NotImplementedError

    def __call__(self, outputs: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        """Outputs (batch, time, numbers * value) -> (total, count)."""
        _refuse_others(outputs, batch)
        if batch.is_discrete:
            raise UserError(f"{self.name} needs values as targets; these are ids: use objective='cross_entropy'")
        got, width, numbers = outputs.shape[-1], batch.targets.shape[2], self.numbers
        if got != numbers * width:
            use = _FITTING.get(got // width) if got % width == 0 else None
            raise UserError(
                f"{self.name} reads {numbers} number{'s' * (numbers > 1)} a value; the model gives {got} a position, "
                f"and the targets have {width} values{f': use {use}' if use else ''}"
            )
        if self.channel_weights is not None and len(self.channel_weights) != width:
            raise UserError(
                f"channel_weights must be {width}, one for each value of the targets; got {len(self.channel_weights)}"
            )
        values, targets, weights = _chosen(outputs, batch)
        there = None if batch.present is None else ~targets.isnan()
        each = _wide(self.each(values, targets if there is None else targets.masked_fill(~there, 0.0)))
        if there is not None:
            return self._of_present(each, there, weights)
        share = float(each.shape[-1])
        if self.channel_weights is not None:
            of_channel = each.new_tensor(self.channel_weights)
            # by selection: what weighs nothing may be NaN
            each, share = each[:, of_channel > 0] * of_channel[of_channel > 0], sum(self.channel_weights)
        if weights is None:
            return each.sum(), torch.full((), len(each) * share, dtype=each.dtype, device=each.device)
        return (each * weights[:, None]).sum(), weights.sum() * share

    def _of_present(self, each: Tensor, there: Tensor, weights: Tensor | None) -> tuple[Tensor, Tensor]:
        """(total, count) of (n, V) losses over the values that are there."""
        share = there.to(each.dtype)
        if self.channel_weights is not None:
            share = share * each.new_tensor(self.channel_weights)
        if weights is not None:
            share = share * weights[:, None]
        return (each[share > 0] * share[share > 0]).sum(), share.sum()


_FITTING = {
    1: "objective='mse', 'mae' or 'huber'",
    2: "objective='gaussian_nll'",
    3: "objective='student_t_nll' or 'pinball', after the model's head",
}


@dataclass(frozen=True, repr=False)
class MeanSquaredError(OfValues):
    """``sum_t w_t |outputs_t - target_t|^2``; count is the sum of weights times the value's width.

    >>> batch = Batch(torch.zeros(1, 2, 3), torch.zeros(1, 2, 3), torch.ones(1, 2, dtype=torch.bool))
    >>> total, count = MeanSquaredError()(torch.ones(1, 2, 3), batch)
    >>> float(total), int(count)
    (6.0, 6)
    >>> total, count = MeanSquaredError(channel_weights=(1.0, 0.5, 0.0))(torch.ones(1, 2, 3), batch)
    >>> float(total), float(count)
    (3.0, 3.0)
    """

    name: ClassVar[str] = "mse"

    def each(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The squared errors."""
        return F.mse_loss(outputs, targets, reduction="none")


@dataclass(frozen=True, repr=False)
class MeanAbsoluteError(OfValues):
    """``sum_t w_t sum_v |outputs_tv - target_tv|``; count as for ``MeanSquaredError``.

    >>> batch = Batch(torch.zeros(1, 1, 2), torch.zeros(1, 1, 2), torch.ones(1, 1, dtype=torch.bool))
    >>> total, count = MeanAbsoluteError()(torch.tensor([[[3.0, -1.0]]]), batch)
    >>> float(total), int(count)
    (4.0, 2)
    """

    name: ClassVar[str] = "mae"

    def each(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The absolute errors."""
        return F.l1_loss(outputs, targets, reduction="none")


@dataclass(frozen=True, repr=False)
class Huber(OfValues):
    """``sum_t w_t sum_v h(e)``, ``h(e) = e^2 / 2`` to ``|e| = delta``, beyond it ``delta (|e| - delta / 2)``.

    Args:
        delta: error from which the loss is linear, in the units of the targets.

    >>> batch = Batch(torch.zeros(1, 1, 2), torch.zeros(1, 1, 2), torch.ones(1, 1, dtype=torch.bool))
    >>> total, count = Huber()(torch.tensor([[[3.0, -1.0]]]), batch)
    >>> float(total), int(count)
    (3.0, 2)

    Reference: Huber, P. J. (1964). Robust estimation of a location parameter. Annals of Mathematical Statistics 35.
    """

    delta: float = above(0, 1.0)

    name: ClassVar[str] = "huber"

    def each(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The errors by Huber's function."""
        return F.huber_loss(outputs, targets, reduction="none", delta=self.delta)


class _OfHead(OfValues):
    @property
    def head(self) -> Distribution:
        raise NotImplementedError

    @property
    def numbers(self) -> int:
        return self.head.parameters

    def each(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return self.head.loss(outputs, targets)


@dataclass(frozen=True, repr=False)
class GaussianNLL(_OfHead):
    """``-sum_t w_t log N(target_t; m_t, s_t^2)`` in nats, over all values; count as for ``MeanSquaredError``.

    >>> batch = Batch(torch.zeros(1, 2, 1), torch.zeros(1, 2, 1), torch.ones(1, 2, dtype=torch.bool))
    >>> total, count = GaussianNLL()(torch.tensor([[[0.0, 0.5413], [0.0, 0.5413]]]), batch)
    >>> round(float(total / count), 3), int(count)
    (0.919, 2)
    """

    name: ClassVar[str] = "gaussian_nll"
    head: ClassVar[Distribution] = Gaussian()  # pyright: ignore[reportIncompatibleMethodOverride]


@dataclass(frozen=True, repr=False)
class StudentTNLL(_OfHead):
    """``-sum_t w_t log p(target_t)`` in nats under a Student-t head; count as for ``MeanSquaredError``.

    >>> batch = Batch(torch.zeros(1, 2, 1), torch.zeros(1, 2, 1), torch.ones(1, 2, dtype=torch.bool))
    >>> int(StudentTNLL()(torch.zeros(1, 2, 3), batch)[1])
    2
    """

    name: ClassVar[str] = "student_t_nll"
    head: ClassVar[Distribution] = StudentT()  # pyright: ignore[reportIncompatibleMethodOverride]


@dataclass(frozen=True, repr=False)
class Pinball(_OfHead):
    """``sum_t w_t sum_q max(q e, (q - 1) e)``, ``e = target - quantile``; count as for ``MeanSquaredError``.

    Args:
        levels: those of the head.

    >>> batch = Batch(torch.ones(1, 2, 1), torch.zeros(1, 2, 1), torch.ones(1, 2, dtype=torch.bool))
    >>> total, count = Pinball()(torch.zeros(1, 2, 3), batch)
    >>> round(float(total / count), 3)
    1.5
    """

    levels: tuple[float, ...] = (0.1, 0.5, 0.9)

    name: ClassVar[str] = "pinball"

    def __post_init__(self) -> None:
        object.__setattr__(self, "levels", Quantiles(self.levels).levels)
        super().__post_init__()

    @property
    def head(self) -> Distribution:
        """The quantiles."""
        return Quantiles(self.levels)


cross_entropy, mse, mae, huber = CrossEntropy, MeanSquaredError, MeanAbsoluteError, Huber
gaussian_nll, student_t_nll, pinball = GaussianNLL, StudentTNLL, Pinball

OBJECTIVES: dict[str, type[Any]] = {
    "cross_entropy": CrossEntropy,
    "mse": MeanSquaredError,
    "mae": MeanAbsoluteError,
    "huber": Huber,
    "gaussian_nll": GaussianNLL,
    "student_t_nll": StudentTNLL,
    "pinball": Pinball,
}


def check(objective: Any) -> list[str]:
    """Return what is wrong with an ``objective`` argument, a line each.

    >>> check("mze")
    ["objective must be one of auto, cross_entropy, mse, ... or a function; got 'mze': did you mean 'mse'?"]
    """
    if isinstance(objective, str) and objective in ("auto", *OBJECTIVES):
        return []
    hint = refused(objective, 2)
    if callable(objective) and not hint:
        return []
    word = objective if isinstance(objective, str) else getattr(objective, "__name__", type(objective).__name__)
    near = _MEANT.get(word) or (nearest(word, OBJECTIVES) if objective is word else None)
    rule = f"objective must be one of {', '.join(['auto', *OBJECTIVES])} or a function"
    return [f"{rule}; got {objective!r}{hint}{f': did you mean {near!r}?' if near else ''}"]


def scored(
    objective: str | Objective, outputs: Tensor | Counted, batch: Batch, shares: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """(total, count) of an objective, both scalar tensors; with ``shares`` (batch, time, n), of symbols, by them.

    Raises:
        UserError: the objective returns something else, or takes no shares.
    """
    objective = resolve(objective, batch)
    if isinstance(outputs, Counted):
        if shares is not None:
            shares = shares.flatten(0, 1).index_select(0, outputs.index)[None]
        outputs, batch = outputs.alone(batch)
    if shares is not None:
        if type(objective) is not CrossEntropy:
            raise UserError(
                f"a target that weighs several symbols goes with objective='cross_entropy'; got {objective!r}"
            )
        return objective.of_shares(outputs, batch, shares)
    result: Any = objective(outputs, batch)
    if isinstance(result, tuple) and len(result) == 2 and isinstance(result[0], Tensor) and result[0].dim() == 0:
        total, count = result
        if isinstance(count, int | float):
            count = torch.full((), count, dtype=total.dtype, device=total.device)
        if isinstance(count, Tensor) and count.dim() == 0:
            return total, count
    got = [shape_of(each) for each in result] if isinstance(result, tuple | list) else shape_of(result)
    raise UserError(
        f"an objective returns (total, count), two scalars: the sum of the losses over the positions that count, and "
        f"their number; {objective!r} returned {got}"
    )


_MEANT = {
    "ce": "cross_entropy", "nll": "cross_entropy", "xent": "cross_entropy", "l1": "mae", "l2": "mse",
    "quantile": "pinball", "smooth_l1": "huber",
    "L1Loss": "mae", "l1_loss": "mae", "MSELoss": "mse", "mse_loss": "mse", "HuberLoss": "huber",
    "huber_loss": "huber", "SmoothL1Loss": "huber", "smooth_l1_loss": "huber", "CrossEntropyLoss": "cross_entropy",
    "cross_entropy": "cross_entropy", "NLLLoss": "cross_entropy", "nll_loss": "cross_entropy",
    "GaussianNLLLoss": "gaussian_nll", "gaussian_nll_loss": "gaussian_nll",
}  # fmt: skip


def resolve(objective: str | Objective, batch: Batch) -> Objective:
    """Return an objective by its name; ``"auto"`` is cross-entropy for ids and MSE for values."""
    if not isinstance(objective, str):
        return objective
    if objective == "auto":
        return _named("cross_entropy" if batch.is_discrete else "mse")
    refuse(check(objective))
    return _named(objective)


@lru_cache
def _named(objective: str) -> Objective:
    return OBJECTIVES[objective]()
