"""Scores of a model's outputs: right ids, and errors of forecasts by lead time."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from freerun.arguments import Range, brief, is_number
from freerun.batch import must_be
from freerun.errors import UserError

BOUND = 1e6
"""Largest absolute value of a free run, in standard deviations; beyond it the run has diverged."""

_POSITIVE = Range(0, ends="(]")


def correct(outputs: Tensor, targets: Tensor, mask: Tensor) -> Tensor:
    """Mark where the largest output is the target: (batch, time) bool, False outside the mask.

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

    With the gold history (teacher forcing) this holds for free running too: a greedy output equals the target if and
    only if every teacher-forced choice along the target is right.

    >>> outputs = torch.tensor([[[2.0, 1.0], [0.0, 3.0]]])
    >>> sequence_correct(outputs, torch.tensor([[0, 0]]), torch.tensor([[True, False]]))
    tensor([True])
    """
    return sequence_errors(outputs, targets, mask) == 0


def sequence_accuracy(outputs: Tensor, targets: Tensor, mask: Tensor) -> Tensor:
    """Share of the rows that are right at every position; rows with an empty mask do not count; scalar.

    >>> outputs = torch.tensor([[[2.0, 1.0]], [[2.0, 1.0]]])
    >>> sequence_accuracy(outputs, torch.tensor([[0], [1]]), torch.tensor([[True], [True]]))
    tensor(0.5000)
    """
    counted = mask.any(-1)
    return (sequence_correct(outputs, targets, mask) & counted).sum() / counted.sum().to(torch.float32)


def _squared_errors(outputs: Tensor, targets: Tensor) -> Tensor:
    """(windows, time, channels) float64, infinite where not finite, and NaN where the target is: it is missing."""
    must_be("", "real", outputs=outputs, targets=targets)
    if outputs.dim() != 3 or outputs.shape != targets.shape:
        raise UserError(
            f"outputs and targets must both be (windows, time, channels); got {tuple(outputs.shape)} and "
            f"{tuple(targets.shape)}"
        )
    squares = (outputs.double() - targets.double()) ** 2
    return torch.where(squares.isfinite() | targets.isnan(), squares, torch.inf)


def nrmse(outputs: Tensor, targets: Tensor) -> Tensor:
    """Root mean squared error of each window, in standard deviations: (windows,) float64, infinite where it diverged.

    ``sqrt(mean over positions and channels of (outputs - targets)^2)``; of normalised data it is the root mean squared
    error divided by the standard deviation of the training part, channel by channel.

    Args:
        outputs: (windows, time, channels) forecasts, normalised.
        targets: (windows, time, channels) the true values; NaN is missing and left out.

    Raises:
        UserError: the shapes differ.

    What it is not: an error over all windows. A window with one non-finite entry is inf: take the median over windows.

    >>> nrmse(torch.tensor([[[1.0], [-1.0]], [[0.0], [torch.nan]]]), torch.zeros(2, 2, 1))
    tensor([1., inf], dtype=torch.float64)
    """
    return _squared_errors(outputs, targets).nanmean((1, 2)).sqrt()


def rmse_by_horizon(outputs: Tensor, targets: Tensor) -> Tensor:
    """Root mean squared error over channels at each lead time: (windows, time) float64; inf where not finite.

    NaN targets are missing and left out; where all are, the error is NaN.

    >>> rmse_by_horizon(torch.tensor([[[3.0, 0.0], [0.0, 0.0]]]), torch.zeros(1, 2, 2)).round(decimals=3)
    tensor([[2.1210, 0.0000]], dtype=torch.float64)
    """
    return _squared_errors(outputs, targets).nanmean(2).sqrt()


def valid_time(outputs: Tensor, targets: Tensor, threshold: float = 0.4) -> Tensor:
    """Valid prediction time: (windows,) positions before the error first passes the threshold; all where it never does.

    ``min {t : sqrt(mean over channels of error_t^2) > threshold}``, t from 0 (Vlachas et al. 2020, arXiv:1910.05266,
    who divide by the Lyapunov time too).

    Args:
        outputs: (windows, time, channels) forecasts, normalised.
        targets: (windows, time, channels) the true values.
        threshold: in standard deviations.

    >>> valid_time(torch.tensor([[[0.1], [0.5], [0.0]]]), torch.zeros(1, 3, 1))
    tensor([1])
    """
    return valid_steps(rmse_by_horizon(outputs, targets), threshold)


def valid_steps(errors: Tensor, threshold: float) -> Tensor:
    """``valid_time`` of errors (windows, H)."""
    must_be("windows, H", "real", errors=errors)
    _POSITIVE.check(threshold=threshold)
    return ((errors <= threshold) | errors.isnan()).long().cumprod(1).sum(1)


def first_divergence(outputs: Tensor, bound: float = BOUND) -> Tensor:
    """Lead time, from 1, at which a free run first is not finite or beyond the bound: (windows,) int64; 0: never.

    Args:
        outputs: (windows, time, channels) forecasts.
        bound: largest absolute value that counts as finite, in the units of the outputs.

    >>> first_divergence(torch.tensor([[[1.0], [1e7]], [[0.0], [0.0]]]))
    tensor([2, 0])
    """
    must_be("windows, time, channels", "real", outputs=outputs)
    _POSITIVE.check(bound=bound)
    # NaN compares False with anything
    gone = ~(outputs.abs() <= bound).all(2)
    return torch.where(gone.any(1), gone.int().argmax(1) + 1, 0)


def at_horizon(values: Tensor, mask: Tensor | None = None) -> Tensor:
    """Return the values at the positions of the horizon, in order: (windows, H, ...).

    Args:
        values: (windows, time, ...).
        mask: (windows, time) bool: the positions of the horizon, as many in every row; None: all.

    Raises:
        UserError: rows with different numbers of positions, or none at all.

    >>> at_horizon(torch.tensor([[1, 2, 3]]), torch.tensor([[False, True, True]]))
    tensor([[2, 3]])
    """
    if not isinstance(values, Tensor):
        raise UserError(f"values must be a tensor (windows, time, ...); got {type(values).__name__}")
    if mask is None:
        return values
    must_be("windows, time", "bool", mask=mask)
    counts = mask.sum(1)
    if mask.shape != values.shape[:2] or mask.shape[0] == 0:
        raise UserError(f"mask must be (windows, time) = {tuple(values.shape[:2])}, not empty; got {tuple(mask.shape)}")
    if int(counts.min()) != int(counts.max()) or int(counts.max()) == 0:
        raise UserError(
            f"every window must have the same horizon; the mask has from {int(counts.min())} to {int(counts.max())} "
            "positions a row"
        )
    return values[mask].unflatten(0, (mask.shape[0], int(counts[0])))


def window_errors(outputs: Tensor, targets: Tensor, mask: Tensor | None = None, *, bound: float = BOUND) -> Tensor:
    """Error of each window at each lead time: (windows, H) float64, infinite from where the window diverged on.

    ``e[w, t] = sqrt(mean over channels of (output - gold)^2)``

    Args:
        outputs: (windows, time, V), teacher-forced or free-running.
        targets: (windows, time, V) gold.
        mask: (windows, time) bool: the positions of the horizon, as many in every row; None: all.
        bound: see ``first_divergence``.

    Raises:
        UserError: shapes that do not fit.

    >>> window_errors(torch.tensor([[[3.0, 0.0]]]), torch.tensor([[[0.0, 4.0]]]))
    tensor([[3.5355]], dtype=torch.float64)
    """
    must_be("", "real", outputs=outputs, targets=targets)
    outputs = at_horizon(outputs, mask)
    errors = rmse_by_horizon(outputs, at_horizon(targets, mask))
    diverged = first_divergence(outputs, bound)[:, None]
    leads = torch.arange(1, errors.shape[1] + 1, device=errors.device)
    return errors.masked_fill((diverged > 0) & (leads >= diverged), math.inf)


@dataclass(frozen=True, eq=False)
class HorizonErrors:
    """Errors over windows at every lead time, in the units of the values.

    Args:
        rmse: (H,) root mean squared error over channels and the windows that are left; NaN where none is.
        quantiles: (levels, H) of the windows' errors, infinite for those that diverged.
        left: (H,) int64: windows that have not diverged.
        windows: number of all windows.
        levels: of the quantiles.
    """

    __repr__ = brief
    rmse: Tensor
    quantiles: Tensor
    left: Tensor
    windows: int
    levels: tuple[float, ...]

    @classmethod
    def of(cls, errors: Tensor, levels: Sequence[float] = (0.25, 0.5, 0.75)) -> HorizonErrors:
        """From the errors of ``window_errors``, (windows, H)."""
        finite = torch.isfinite(errors)
        left = finite.sum(0)
        rmse = (errors.masked_fill(~finite, 0).square().sum(0) / left).sqrt()  # 0 / 0 is NaN: nothing is left
        return cls(rmse, quantiles(errors, levels), left, errors.shape[0], tuple(levels))


def errors_by_horizon(
    outputs: Tensor,
    targets: Tensor,
    mask: Tensor | None = None,
    *,
    levels: Sequence[float] = (0.25, 0.5, 0.75),
    bound: float = BOUND,
) -> HorizonErrors:
    """Errors over windows at every lead time, of teacher-forced or free-running outputs.

    ``rmse[t] = sqrt(mean over windows and channels of (output - gold)^2)``

    A window that diverges (infinite, NaN, beyond the bound) is left out of ``rmse`` from there on; ``left`` counts the
    windows that remain. The quantiles keep it as infinite.

    Args:
        outputs: (windows, time, V).
        targets: (windows, time, V) gold.
        mask: (windows, time) bool: the positions of the horizon, as many in every row; None: all.
        levels: of the quantiles over windows.
        bound: see ``first_divergence``.

    Raises:
        UserError: shapes that do not fit.

    >>> errors = errors_by_horizon(torch.tensor([[[1.0], [3.0]], [[1.0], [torch.inf]]]), torch.zeros(2, 2, 1))
    >>> errors.rmse.tolist(), errors.left.tolist(), errors.quantiles[1].tolist()
    ([1.0, 3.0], [2, 1], [1.0, inf])
    """
    return HorizonErrors.of(window_errors(outputs, targets, mask, bound=bound), levels)


def window_nrmse(errors: Tensor) -> Tensor:
    """``nrmse`` of the errors of ``window_errors``: (windows, H) -> (windows,); infinite where a window diverged.

    ``sqrt(mean over leads of e[w, t]^2)``

    >>> window_nrmse(torch.tensor([[3.0, 4.0]]))
    tensor([3.5355])
    """
    must_be("windows, H", "real", errors=errors)
    return errors.square().mean(1).sqrt()


def nrmse_last_tenth(errors: Tensor) -> Tensor:
    """``window_nrmse`` over the last tenth of the lead times (one at least): (windows, H) -> (windows,).

    >>> nrmse_last_tenth(torch.arange(20.0)[None])
    tensor([18.5068])
    """
    return window_nrmse(errors[:, -max(1, round(errors.shape[1] / 10)) :])


def quantiles(values: Tensor, levels: Sequence[float]) -> Tensor:
    """Quantiles over the first dimension, linear between neighbours; infinite where a neighbour with weight is."""
    if not all(is_number(level) and 0 <= level <= 1 for level in levels):
        raise UserError(f"levels must be numbers in [0, 1]; got {levels!r}")
    ordered = values.sort(0).values
    results: list[Tensor] = []
    for level in levels:
        rank = level * (values.shape[0] - 1)
        low, high = ordered[math.floor(rank)], ordered[math.ceil(rank)]
        between = low + (rank - math.floor(rank)) * (high - low)
        results.append(torch.where(torch.isfinite(high), between, low if rank == math.floor(rank) else high))
    return torch.stack(results)


def gap_by_horizon(free: Tensor, forced: Tensor) -> Tensor:
    """The signed gap: free-running minus teacher-forced error at every lead time.

    Above zero free running is worse. Below zero it is better, as for models trained only on their own output, which
    have not seen gold histories.

    Args:
        free: (H,) free-running errors.
        forced: (H,) teacher-forced errors.

    Raises:
        UserError: different horizons.

    >>> gap_by_horizon(torch.tensor([1.0, 3.0]), torch.tensor([1.0, 1.0]))
    tensor([0., 2.])
    """
    must_be("H", "real", free=free, forced=forced)
    if free.shape != forced.shape:
        raise UserError(f"both must have one horizon; got {tuple(free.shape)} and {tuple(forced.shape)}")
    return free - forced
