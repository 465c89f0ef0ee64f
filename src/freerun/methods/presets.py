"""Published settings of the methods, by what they do: the two directions of scheduled sampling."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from freerun.arguments import is_number
from freerun.errors import UserError
from freerun.methods.base import TransformMethod
from freerun.methods.reverse_scheduled_sampling import ReverseScheduledSampling
from freerun.methods.scheduled_sampling import ScheduledSampling
from freerun.schedules import Constant, Exponential, InverseSigmoid, Join, Linear


def midpoint_k(steps: int) -> float:
    """The k whose inverse sigmoid passes one half in the middle of a run: ``k ln k = steps / 2``.

    >>> round(midpoint_k(13816))
    1000
    """
    if not is_number(steps) or steps < 2:
        raise UserError(f"steps must be the number of optimizer steps of the run, at least 2; got {steps!r}")
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


def bptt_sa(steps: int, length: int, **arguments: Any) -> ScheduledSampling:
    """Scheduled autoregressive truncated BPTT (Vlachas and Koumoutsakos 2024): own share rises, gradient cut every L.

    One choice per position, shared by the batch; P(gold) falls by an inverse sigmoid centred in the run; the gradient
    goes through own entries within stretches of ``length``. The warm-up is the batch's known entries.

    Args:
        steps: optimizer steps of the run.
        length: positions of a stretch.
        arguments: further arguments of ``scheduled_sampling``.

    >>> bptt_sa(1000, 20).gradient
    20
    """
    return ScheduledSampling(InverseSigmoid(k=midpoint_k(steps)), gate="step", gradient=length, **arguments)


def reverse(steps: int, **arguments: Any) -> ReverseScheduledSampling:
    """Reverse scheduled sampling as published, its 25,000 and 50,000 of 80,000 updates scaled to a run.

    Args:
        steps: optimizer steps of the run, at least 16.
        arguments: further arguments of ``reverse_scheduled_sampling``.

    >>> method = reverse(80_000)
    >>> [round(method.context_ratio(s), 3) for s in (0, 24_999, 25_000, 30_000, 50_000)]
    [0.5, 0.5, 0.5, 0.816, 1.0]
    >>> [method.teacher_forcing_ratio(s) for s in (0, 25_000, 37_500, 50_000)]
    [0.5, 0.5, 0.25, 0.0]
    """
    if not is_number(steps) or steps < 16:
        raise UserError(f"steps must be the number of optimizer steps of the run, at least 16; got {steps!r}")
    first, second, k = steps * 5 / 16, steps * 10 / 16, math.exp(-16 / steps)
    context = Join(
        schedules=(Constant(0.5), Exponential(k=k, start=0.5, end=1.0), Constant(1.0)), boundaries=(first, second)
    )
    horizon = Join(schedules=(Constant(0.5), Linear(start=0.5, end=0.0, steps=second - first)), boundaries=(first,))
    return ReverseScheduledSampling(context, horizon, **arguments)


PRESETS: dict[str, tuple[Callable[..., TransformMethod], str]] = {
    "falling": (falling, "Bengio, Vinyals, Jaitly and Shazeer 2015, arXiv:1506.03099"),
    "rising": (rising, "Teutsch and Maeder 2022, Flipped classroom, TMLR, arXiv:2210.08959"),
    "bptt_sa": (bptt_sa, "Vlachas and Koumoutsakos 2024, Physica D 470, arXiv:2302.11101"),
    "reverse": (reverse, "Wang et al. 2022, PredRNN, TPAMI, arXiv:2103.09504"),
}
