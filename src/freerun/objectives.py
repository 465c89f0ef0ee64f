"""Losses as (total, count), so that means stay exact over any split of a batch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from freerun.arguments import Arguments, between, nearest, refused
from freerun.batch import Batch, must_be, shape_of
from freerun.distributions import Distribution, Gaussian, Quantiles, StudentT
from freerun.errors import UserError, refuse


class Objective(Protocol):
    """(outputs, batch) -> (total, count), both scalars; the loss is total / count."""

    def __call__(self, outputs: Tensor, batch: Batch) -> tuple[Tensor, Tensor]: ...


def _refuse_others(outputs: Any, batch: Any) -> None:
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
        each = _wide(F.cross_entropy(logits, targets, reduction="none", label_smoothing=smoothing))
        if weights is None:
            return each.sum(), torch.full((), each.numel(), dtype=each.dtype, device=each.device)
        return (each * weights).sum(), weights.sum()


@dataclass(frozen=True)
class MeanSquaredError(Arguments):
    """``sum_t w_t |outputs_t - target_t|^2``; count is the sum of weights times the value's width.

    >>> batch = Batch(torch.zeros(1, 2, 3), torch.zeros(1, 2, 3), torch.ones(1, 2, dtype=torch.bool))
    >>> total, count = MeanSquaredError()(torch.ones(1, 2, 3), batch)
    >>> float(total), int(count)
    (6.0, 6)
    """

    def __call__(self, outputs: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        """Outputs (batch, time, value) -> (total, count)."""
        return _of_values("mse", 1, partial(F.mse_loss, reduction="none"), outputs, batch)


_FITTING = {
    1: "objective='mse'",
    2: "objective='gaussian_nll'",
    3: "objective='student_t_nll' or 'pinball', after the model's head",
}


def _of_values(
    name: str, numbers: int, loss: Callable[[Tensor, Tensor], Tensor], outputs: Tensor, batch: Batch
) -> tuple[Tensor, Tensor]:
    """(total, count) of a loss of values, with so many model outputs per value."""
    _refuse_others(outputs, batch)
    if batch.is_discrete:
        raise UserError(f"{name} needs values as targets; these are ids: use objective='cross_entropy'")
    got, width = outputs.shape[-1], batch.targets.shape[2]
    if got != numbers * width:
        use = _FITTING.get(got // width) if got % width == 0 else None
        raise UserError(
            f"{name} reads {numbers} number{'s' * (numbers > 1)} a value; the model gives {got} a position, and the "
            f"targets have {width} values{f': use {use}' if use else ''}"
        )
    values, targets, weights = _chosen(outputs, batch)
    each = _wide(loss(values, targets))
    if weights is None:
        return each.sum(), torch.full((), each.numel(), dtype=each.dtype, device=each.device)
    return (each * weights[:, None]).sum(), weights.sum() * each.shape[-1]


def _of_head(name: str, head: Distribution, outputs: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
    return _of_values(name, head.parameters, head.loss, outputs, batch)


@dataclass(frozen=True)
class GaussianNLL(Arguments):
    """``-sum_t w_t log N(target_t; m_t, s_t^2)`` in nats, over all values; count as for ``MeanSquaredError``.

    >>> batch = Batch(torch.zeros(1, 2, 1), torch.zeros(1, 2, 1), torch.ones(1, 2, dtype=torch.bool))
    >>> total, count = GaussianNLL()(torch.tensor([[[0.0, 0.5413], [0.0, 0.5413]]]), batch)
    >>> round(float(total / count), 3), int(count)
    (0.919, 2)
    """

    def __call__(self, outputs: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        """Outputs (batch, time, 2 * value) of a Gaussian head -> (total, count)."""
        return _of_head("gaussian_nll", Gaussian(), outputs, batch)


@dataclass(frozen=True)
class StudentTNLL(Arguments):
    """``-sum_t w_t log p(target_t)`` in nats under a Student-t head; count as for ``MeanSquaredError``.

    >>> batch = Batch(torch.zeros(1, 2, 1), torch.zeros(1, 2, 1), torch.ones(1, 2, dtype=torch.bool))
    >>> int(StudentTNLL()(torch.zeros(1, 2, 3), batch)[1])
    2
    """

    def __call__(self, outputs: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        """Outputs (batch, time, 3 * value) of a Student-t head -> (total, count)."""
        return _of_head("student_t_nll", StudentT(), outputs, batch)


@dataclass(frozen=True)
class Pinball(Arguments):
    """``sum_t w_t sum_q max(q e, (q - 1) e)``, ``e = target - quantile``; count as for ``MeanSquaredError``.

    Args:
        levels: those of the head.

    >>> batch = Batch(torch.ones(1, 2, 1), torch.zeros(1, 2, 1), torch.ones(1, 2, dtype=torch.bool))
    >>> total, count = Pinball()(torch.zeros(1, 2, 3), batch)
    >>> round(float(total / count), 3)
    1.5
    """

    levels: tuple[float, ...] = (0.1, 0.5, 0.9)

    def __post_init__(self) -> None:
        object.__setattr__(self, "levels", Quantiles(self.levels).levels)

    def __call__(self, outputs: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        """Outputs (batch, time, levels * value) of a quantile head -> (total, count)."""
        return _of_head("pinball", Quantiles(self.levels), outputs, batch)


cross_entropy, mse = CrossEntropy, MeanSquaredError
gaussian_nll, student_t_nll, pinball = GaussianNLL, StudentTNLL, Pinball

OBJECTIVES: dict[str, type[Any]] = {
    "cross_entropy": CrossEntropy,
    "mse": MeanSquaredError,
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
    near = _MEANT.get(objective) or nearest(objective, OBJECTIVES) if isinstance(objective, str) else None
    rule = f"objective must be one of {', '.join(['auto', *OBJECTIVES])} or a function"
    return [f"{rule}; got {objective!r}{f': did you mean {near!r}?' if near else hint}"]


def scored(objective: str | Objective, outputs: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
    """(total, count) of an objective, both scalar tensors.

    Raises:
        UserError: the objective returns something else.
    """
    result: Any = resolve(objective, batch)(outputs, batch)
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


_MEANT = {"ce": "cross_entropy", "nll": "cross_entropy", "xent": "cross_entropy", "l2": "mse", "quantile": "pinball"}


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
