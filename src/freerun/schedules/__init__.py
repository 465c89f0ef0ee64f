"""Schedules: a step of the training in, a number out; pure, frozen, printable, comparable.

>>> from freerun import schedules
>>> schedules.linear(start=1.0, end=0.5, steps=100)
linear(start=1.0, end=0.5, steps=100)
"""

from freerun.schedules.base import Schedule, extremes, moves, value_at
from freerun.schedules.pieces import Join, Piecewise, Table
from freerun.schedules.shapes import Constant, Cosine, Exponential, InverseSigmoid, Linear

__all__ = [
    "SCHEDULES", "Constant", "Cosine", "Exponential", "InverseSigmoid", "Join", "Linear", "Piecewise",
    "Schedule", "Table", "constant", "cosine", "exponential", "extremes", "inverse_sigmoid", "join", "linear",
    "moves", "piecewise", "table", "value_at",
]  # fmt: skip

constant = Constant
linear = Linear
exponential = Exponential
inverse_sigmoid = InverseSigmoid
cosine = Cosine
piecewise = Piecewise
join = Join
table = Table

SCHEDULES: dict[str, type[Schedule]] = {
    "constant": Constant,
    "linear": Linear,
    "exponential": Exponential,
    "inverse_sigmoid": InverseSigmoid,
    "cosine": Cosine,
    "piecewise": Piecewise,
    "join": Join,
    "table": Table,
}
