"""Numbers about outputs beside targets: what is right, for ids, and how far off, for values, window by window.

They are teacher-forced or free-running according to the history that the outputs were computed on; whoever
reports them says which.
"""

from __future__ import annotations

import torch
from torch import Tensor

from freerun.arguments import is_number
from freerun.batch_problems import must_be
from freerun.errors import UserError

__all__ = [
    "correct", "error_by_lead", "first_divergence", "nrmse", "sequence_accuracy", "sequence_correct",
    "sequence_errors", "token_accuracy", "valid_time",
]  # fmt: skip


def correct(outputs: Tensor, targets: Tensor, mask: Tensor) -> Tensor:
    """Where the largest output is the target: (batch, time) bool, False outside the mask.

    Args:
        outputs: (batch, time, vocab) logits or probabilities.
        targets: (batch, time) ids.
        mask: (batch, time) bool: positions that count.

    Raises:
        UserError: the shapes do not fit.
    """
    must_be("", "real", outputs=outputs)
    must_be("", "int64", targets=targets)
    must_be("", "bool", mask=mask)
    if outputs.dim() != 3 or targets.shape != outputs.shape[:2] or mask.shape != targets.shape:
        raise UserError(
            f"outputs must be (batch, time, vocab), targets and mask (batch, time); got "
            f"{tuple(outputs.shape)}, {tuple(targets.shape)}, {tuple(mask.shape)}"
        )
    return (outputs.argmax(-1) == targets) & mask


def token_accuracy(outputs: Tensor, targets: Tensor, mask: Tensor) -> Tensor:
    """Share of the positions in the mask whose largest output is the target; scalar, NaN for an empty mask.

    >>> outputs = torch.tensor([[[2.0, 1.0], [0.0, 3.0]]])
    >>> token_accuracy(outputs, torch.tensor([[0, 0]]), torch.tensor([[True, True]]))
    tensor(0.5000)
    """
    return correct(outputs, targets, mask).sum() / mask.sum()


def sequence_errors(outputs: Tensor, targets: Tensor, mask: Tensor) -> Tensor:
    """Number of wrong positions of each row: (batch,) int64."""
    return mask.sum(-1) - correct(outputs, targets, mask).sum(-1)


def sequence_correct(outputs: Tensor, targets: Tensor, mask: Tensor) -> Tensor:
    """Rows that are right at every position of the mask: (batch,) bool.

    On gold history (teacher forcing) this says more than it seems: greedy free running gives exactly the
    target if and only if every teacher-forced choice along the target is right.

    >>> outputs = torch.tensor([[[2.0, 1.0], [0.0, 3.0]]])
    >>> sequence_correct(outputs, torch.tensor([[0, 0]]), torch.tensor([[True, False]]))
    tensor([True])
    """
    return sequence_errors(outputs, targets, mask) == 0


def sequence_accuracy(outputs: Tensor, targets: Tensor, mask: Tensor) -> Tensor:
    """Share of the rows that are right everywhere; rows with an empty mask do not count; scalar.

    >>> outputs = torch.tensor([[[2.0, 1.0]], [[2.0, 1.0]]])
    >>> sequence_accuracy(outputs, torch.tensor([[0], [1]]), torch.tensor([[True], [True]]))
    tensor(0.5000)
    """
    counted = mask.any(-1)
    return (sequence_correct(outputs, targets, mask) & counted).sum() / counted.sum().to(torch.float32)


def nrmse(outputs: Tensor, targets: Tensor) -> Tensor:
    """Root mean squared error of each window, in standard deviations: (windows,) float64, infinite where it diverged.

    ``sqrt(mean over positions and channels of (outputs - targets)^2)``; of normalised data it is the root mean squared
    error divided by the standard deviation of the training part, channel by channel.

    Args:
        outputs: (windows, time, channels) forecasts, normalised.
        targets: the same of what came.

    Raises:
        UserError: the shapes differ.

    What it is not: an error of a mean over windows. A window with one entry that is not finite has the value inf; a
    median over windows can bear that, a mean cannot.

    >>> nrmse(torch.tensor([[[1.0], [-1.0]], [[0.0], [torch.nan]]]), torch.zeros(2, 2, 1))
    tensor([1., inf], dtype=torch.float64)
    """
    return _squares(outputs, targets).mean((1, 2)).sqrt()


def error_by_lead(outputs: Tensor, targets: Tensor) -> Tensor:
    """Root mean squared error over channels at each lead time: (windows, time) float64; inf where not finite.

    >>> error_by_lead(torch.tensor([[[3.0, 0.0], [0.0, 0.0]]]), torch.zeros(1, 2, 2)).round(decimals=3)
    tensor([[2.1210, 0.0000]], dtype=torch.float64)
    """
    return _squares(outputs, targets).mean(2).sqrt()


def valid_time(outputs: Tensor, targets: Tensor, threshold: float = 0.4) -> Tensor:
    """Valid prediction time: (windows,) positions before the error first passes the threshold; all where it never does.

    ``min {t : sqrt(mean over channels of error_t^2) > threshold}``, t from 0 (Vlachas et al. 2020, arXiv:1910.05266,
    who divide by the Lyapunov time too).

    Args:
        outputs: (windows, time, channels) forecasts, normalised.
        targets: the same of what came.
        threshold: in standard deviations.

    >>> valid_time(torch.tensor([[[0.1], [0.5], [0.0]]]), torch.zeros(1, 3, 1))
    tensor([1])
    """
    _above_0("threshold", threshold)
    passed = error_by_lead(outputs, targets) > threshold
    return torch.where(passed.any(1), passed.int().argmax(1), passed.shape[1])


def first_divergence(outputs: Tensor, limit: float = 1e6) -> Tensor:
    """Lead time, from 1, at which a free run first is not finite or beyond the limit: (windows,) int64; 0: never.

    Args:
        outputs: (windows, time, channels) forecasts, normalised.
        limit: in standard deviations.

    >>> first_divergence(torch.tensor([[[1.0], [1e7]], [[0.0], [0.0]]]))
    tensor([2, 0])
    """
    must_be("windows, time, channels", "real", outputs=outputs)
    _above_0("limit", limit)
    # NaN compares False with anything
    gone = ~(outputs.abs() <= limit).all(2)
    return torch.where(gone.any(1), gone.int().argmax(1) + 1, 0)


def _above_0(name: str, value: float) -> None:
    if not is_number(value) or not value > 0:
        raise UserError(f"{name} must be a number above 0; got {value!r}")


def _squares(outputs: Tensor, targets: Tensor) -> Tensor:
    must_be("", "real", outputs=outputs, targets=targets)
    if outputs.dim() != 3 or outputs.shape != targets.shape:
        raise UserError(
            f"outputs and targets must both be (windows, time, channels); got {tuple(outputs.shape)} and "
            f"{tuple(targets.shape)}"
        )
    squares = (outputs.double() - targets.double()) ** 2
    return torch.where(squares.isfinite(), squares, torch.inf)
