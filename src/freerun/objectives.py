"""From outputs and a batch to (total, count): losses that sum, so that means stay exact over any split."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from freerun.arguments import Arguments, is_number, nearest, refused
from freerun.batch import Batch, must_be, shape_of
from freerun.distributions import Distribution, Gaussian, Quantiles, StudentT
from freerun.errors import UserError

__all__ = [
    "OBJECTIVES", "CrossEntropy", "GaussianNLL", "MeanSquaredError", "Objective", "Pinball", "StudentTNLL", "check",
    "cross_entropy", "gaussian_nll", "mse", "pinball", "resolve", "scored", "student_t_nll",
]  # fmt: skip


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

    label_smoothing: float = 0.0

    def __post_init__(self) -> None:
        if not is_number(self.label_smoothing) or not 0 <= self.label_smoothing < 1:
            raise UserError(f"label_smoothing must lie in [0, 1); got {self.label_smoothing!r}")

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
        _refuse_others(outputs, batch)
        if batch.is_discrete:
            raise UserError("mse needs values as targets; these are ids: use objective='cross_entropy'")
        _check_width("mse", 1, outputs, batch)
        given, wanted, weights = _chosen(outputs, batch)
        return _summed(F.mse_loss(given, wanted, reduction="none"), weights)


def _summed(each: Tensor, weights: Tensor | None) -> tuple[Tensor, Tensor]:
    """(n, value) losses and (n,) weights -> (total, count)."""
    each = _wide(each)
    if weights is None:
        return each.sum(), torch.full((), each.numel(), dtype=each.dtype, device=each.device)
    return (each * weights[:, None]).sum(), weights.sum() * each.shape[-1]


_FITTING = {
    1: "objective='mse'",
    2: "objective='gaussian_nll'",
    3: "objective='student_t_nll' or 'pinball', after the model's head",
}


def _check_width(name: str, numbers: int, outputs: Tensor, batch: Batch) -> None:
    given, width = outputs.shape[-1], batch.targets.shape[2]
    if given == numbers * width:
        return
    use = _FITTING.get(given // width) if given % width == 0 else None
    raise UserError(
        f"{name} reads {numbers} number{'s' * (numbers > 1)} a value; the model gives {given} a position, and the "
        f"targets have {width} values{f': use {use}' if use else ''}"
    )


def _of_law(name: str, law: Distribution, outputs: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
    _refuse_others(outputs, batch)
    if batch.is_discrete:
        raise UserError(f"{name} needs values as targets; these are ids: use objective='cross_entropy'")
    _check_width(name, law.parameters, outputs, batch)
    given, wanted, weights = _chosen(outputs, batch)
    return _summed(law.loss(given, wanted), weights)


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
        return _of_law("gaussian_nll", Gaussian(), outputs, batch)


@dataclass(frozen=True)
class StudentTNLL(Arguments):
    """``-sum_t w_t log p(target_t)`` in nats under a Student-t head; count as for ``MeanSquaredError``.

    >>> batch = Batch(torch.zeros(1, 2, 1), torch.zeros(1, 2, 1), torch.ones(1, 2, dtype=torch.bool))
    >>> int(StudentTNLL()(torch.zeros(1, 2, 3), batch)[1])
    2
    """

    def __call__(self, outputs: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        """Outputs (batch, time, 3 * value) of a Student-t head -> (total, count)."""
        return _of_law("student_t_nll", StudentT(), outputs, batch)


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
        return _of_law("pinball", Quantiles(self.levels), outputs, batch)


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
    """The problems of an ``objective`` argument, if any.

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
        UserError: the objective gives something else.
    """
    given: Any = resolve(objective, batch)(outputs, batch)
    if isinstance(given, tuple) and len(given) == 2 and isinstance(given[0], Tensor) and given[0].dim() == 0:
        total, count = given
        if isinstance(count, int | float):
            count = torch.full((), count, dtype=total.dtype, device=total.device)
        if isinstance(count, Tensor) and count.dim() == 0:
            return total, count
    shown = [shape_of(each) for each in given] if isinstance(given, tuple | list) else shape_of(given)
    raise UserError(
        f"an objective returns (total, count), two scalars: the sum of the losses over the positions that count, and "
        f"their number; {objective!r} returned {shown}"
    )


_MEANT = {"ce": "cross_entropy", "nll": "cross_entropy", "xent": "cross_entropy", "l2": "mse", "quantile": "pinball"}


def resolve(objective: str | Objective, batch: Batch) -> Objective:
    """An objective from its name; ``"auto"`` is cross-entropy for ids and MSE for values."""
    if not isinstance(objective, str):
        return objective
    if objective == "auto":
        return CrossEntropy() if batch.is_discrete else MeanSquaredError()
    if problems := check(objective):
        raise UserError(problems)
    return OBJECTIVES[objective]()
