"""How fast an error grows, beside the growth that the system itself gives to any small error."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from freerun.arguments import is_number
from freerun.batch_problems import must_be
from freerun.brief import brief
from freerun.errors import UserError

__all__ = ["Growth", "growth"]


@dataclass(frozen=True, eq=False)
class Growth:
    """How an error grows, beside the system's own growth of small errors.

    Args:
        rate: fitted slope of log error, per step; None where fewer than three leads could be fitted.
        exponent: the largest Lyapunov exponent, per step; None where it is not known.
        fitted: leads 1..fitted were used.
        ratio: (H,) error(t) / (error(1) exp(exponent (t - 1))); None without an exponent.
    """

    __repr__ = brief

    rate: float | None
    exponent: float | None
    fitted: int
    ratio: Tensor | None


def growth(errors: Tensor, exponent: float | None = None, *, ceiling: float = 0.4) -> Growth:
    """How fast an error grows, and how that stands to exp(lambda t), at which a perfect model's would.

    ``rate``: least-squares slope of ``log error(t)`` over the leads 1..n before the error first passes the ceiling;
    ``ratio[t] = error(t) / (error(1) exp(lambda (t - 1)))``: 1 where the error grows as any small error does in the
    system, above 1 where the model's own errors add to it.

    Args:
        errors: (H,) by lead time; the median over windows, since it is the typical log error that grows with lambda.
        exponent: lambda, the largest Lyapunov exponent, per step; None: not known.
        ceiling: errors above it have stopped being small, in the units of the errors.

    Raises:
        UserError: no errors, or an exponent that is not finite.

    >>> import math
    >>> found = growth(0.01 * torch.tensor([1.0, 2.0, 4.0, 8.0]), exponent=math.log(2.0))
    >>> round(found.rate, 6), found.ratio.round(decimals=4)
    (0.693147, tensor([1., 1., 1., 1.], dtype=torch.float64))

    What it is not: an estimate of the system's exponent; that is asked of two true trajectories.
    """
    must_be("", "real", errors=errors)
    if errors.dim() != 1 or errors.numel() == 0:
        raise UserError(f"errors must be (H,), by lead time; got {tuple(errors.shape)}")
    if exponent is not None and not is_number(exponent):
        raise UserError(f"exponent must be a finite number, per step; got {exponent!r}")
    if not is_number(ceiling) or ceiling <= 0:
        raise UserError(f"ceiling must be a number above 0, in the units of the errors; got {ceiling!r}")
    errors = errors.double()
    small = torch.isfinite(errors) & (errors > 0) & (errors <= ceiling)
    fitted = int(small.long().cumprod(0).sum())
    rate = None
    if fitted >= 3:
        t = torch.arange(fitted, dtype=torch.float64, device=errors.device)
        logs = errors[:fitted].log()
        t = t - t.mean()
        rate = float((t * (logs - logs.mean())).sum() / t.square().sum())
    ratio = None
    if exponent is not None:
        t = torch.arange(errors.numel(), dtype=torch.float64, device=errors.device)
        ratio = errors / (errors[0] * (exponent * t).exp())
    return Growth(rate, exponent, fitted, ratio)
