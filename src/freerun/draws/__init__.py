"""From a prediction to the entry that is fed back: symbols greedily or sampled; values as said, expected or sampled."""

from __future__ import annotations

from typing import Any

from freerun.arguments import nearest, refused
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
    if isinstance(draw, str) and draw in DRAWS:
        return DRAWS[draw]()
    if not isinstance(draw, str | type) and hasattr(draw, "choose") and hasattr(draw, "noise"):
        return draw
    if isinstance(draw, str):
        near = nearest(draw, DRAWS)
        hint = f": did you mean {near!r}?" if near else ""
        hint = f": use {_MEANT[draw]}" if draw in _MEANT else hint
    else:
        hint = refused(draw, 2)
    raise UserError(f"draw must be one of {', '.join(DRAWS)} or a draw object; got {draw!r}{hint}")


# names from elsewhere
_MEANT = {
    **dict.fromkeys(("argmax", "max", "top1", "top_1", "best"), "'greedy'"),
    **dict.fromkeys(("multinomial", "categorical", "random", "softmax", "sampling"), "'sample'"),
    **dict.fromkeys(("nucleus", "top_p", "top-p"), "fr.draws.sample(top_p=...)"),
    **dict.fromkeys(("top_k", "top-k", "topk"), "fr.draws.sample(top_k=...)"),
    **dict.fromkeys(("gumbel", "gumbel_softmax"), "fr.draws.sample(coupling='gumbel')"),
    **dict.fromkeys(("mean", "average"), "'expected', or 'point' for a value as predicted"),
    **dict.fromkeys(("normal", "gauss"), "'gaussian'"),
    "beam": "'greedy' with beams=... of freerun.generate",
}


def fitting(draw: str | Draw, batch: Batch) -> Draw:
    """The draw for a batch: ``"auto"`` samples ids and takes values as predicted; one of the other kind is refused.

    >>> import torch
    >>> ids = torch.zeros(1, 2, dtype=torch.long)
    >>> fitting("auto", Batch(ids, ids, ids == 0))
    sample()
    """
    if isinstance(draw, str) and draw == "auto":
        return Sample() if batch.is_discrete else Point()
    found = resolve(draw)
    if found.values == batch.is_discrete:
        kind, better = ("ids", "'sample' or 'greedy'") if batch.is_discrete else ("values", "'point'")
        raise UserError(f"draw={draw!r} does not fit targets that are {kind}: use draw={better}")
    return found
