"""Published settings of the methods, by what they do: the two directions of scheduled sampling."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from freerun.errors import UserError
from freerun.methods.scheduled_sampling import ScheduledSampling
from freerun.schedules import InverseSigmoid

__all__ = ["PRESETS", "falling", "midpoint_k", "rising"]


def midpoint_k(steps: int) -> float:
    """The k whose inverse sigmoid passes one half in the middle of a run: ``k ln k = steps / 2``.

    >>> round(midpoint_k(13816))
    1000
    """
    if steps < 2:
        raise UserError(f"steps must be at least 2; got {steps}")
    k = max(math.e, steps / 2)
    for _ in range(60):  # Newton on k ln k - steps / 2, convex for k > 1/e
        k = max(1.0, k - (k * math.log(k) - steps / 2) / (math.log(k) + 1.0))
    return k


def falling(steps: int, **arguments: Any) -> ScheduledSampling:
    """From gold to own (Bengio et al. 2015): the ratio falls by an inverse sigmoid centred in the run.

    Args:
        steps: optimizer steps of the run.
        arguments: further arguments of ``scheduled_sampling``.

    >>> falling(1000).teacher_forcing_ratio(0) > 0.97, falling(1000).teacher_forcing_ratio(1000) < 0.1
    (True, True)
    """
    return ScheduledSampling(InverseSigmoid(k=midpoint_k(steps)), **arguments)


def rising(steps: int, **arguments: Any) -> ScheduledSampling:
    """From own to gold (Teutsch and Maeder 2022, "increasing" curricula; an epsilon that "grows").

    Args:
        steps: optimizer steps of the run.
        arguments: further arguments of ``scheduled_sampling``.

    >>> rising(1000).teacher_forcing_ratio(0) < 0.03, rising(1000).teacher_forcing_ratio(1000) > 0.9
    (True, True)
    """
    return ScheduledSampling(InverseSigmoid(k=midpoint_k(steps), start=0.0, end=1.0), **arguments)


PRESETS: dict[str, tuple[Callable[..., ScheduledSampling], str]] = {
    "falling": (falling, "Bengio, Vinyals, Jaitly and Shazeer 2015, arXiv:1506.03099"),
    "rising": (rising, "Teutsch and Maeder 2022, Flipped classroom, TMLR, arXiv:2210.08959"),
}
