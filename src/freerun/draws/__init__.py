"""From a prediction to the entry that is fed back: symbols greedily or sampled; values as said, expected or sampled."""

from __future__ import annotations

from typing import Any

from freerun.draws.base import Draw
from freerun.draws.ids import Greedy, Sample
from freerun.draws.values import Expected, Gaussian, Point, QuantileSample, StudentT, check_width
from freerun.errors import UserError
from freerun.types import Batch

__all__ = [
    "DRAWS", "Draw", "Expected", "Gaussian", "Greedy", "Point", "QuantileSample", "Sample", "StudentT", "check_width",
    "expected", "fitting", "gaussian", "greedy", "point", "quantile_sample", "resolve", "sample", "student_t",
]  # fmt: skip

greedy, sample, point, expected = Greedy, Sample, Point, Expected
gaussian, student_t, quantile_sample = Gaussian, StudentT, QuantileSample

DRAWS: dict[str, type[Any]] = {
    "greedy": Greedy,
    "sample": Sample,
    "point": Point,
    "expected": Expected,
    "gaussian": Gaussian,
    "student_t": StudentT,
    "quantile_sample": QuantileSample,
}


def resolve(draw: str | Draw) -> Draw:
    """A draw from its name, or the draw itself.

    >>> resolve("greedy")
    greedy()
    """
    if not isinstance(draw, str) and hasattr(draw, "choose"):
        return draw
    if draw not in DRAWS:
        raise UserError(f"draw must be one of {', '.join(DRAWS)} or a draw object; got {draw!r}")
    return DRAWS[str(draw)]()


def fitting(draw: str | Draw, batch: Batch) -> Draw:
    """The draw for a batch: ``"auto"`` samples ids and takes values as predicted; one of the other kind is refused.

    >>> import torch
    >>> ids = torch.zeros(1, 2, dtype=torch.long)
    >>> fitting("auto", Batch(ids, ids, ids == 0))
    sample()
    """
    if draw == "auto":
        return Sample() if batch.is_discrete else Point()
    found = resolve(draw)
    if found.values == batch.is_discrete:
        kind, better = ("ids", "'sample' or 'greedy'") if batch.is_discrete else ("values", "'point'")
        raise UserError(f"draw={draw!r} does not fit targets that are {kind}: use draw={better}")
    return found
