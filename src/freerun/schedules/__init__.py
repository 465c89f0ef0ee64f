"""Schedules: a step of the training in, a number (or its law) out; pure, frozen, printable, comparable.

``plateau`` alone has a state, the dev scores that it follows.

>>> from freerun import schedules
>>> schedules.linear(start=1.0, end=0.5, steps=100)
linear(start=1.0, end=0.5, steps=100)
"""

from __future__ import annotations

from typing import Any

from freerun.errors import UserError
from freerun.schedules.base import UNITS, Schedule, Shaped, extremes, moves, value_at
from freerun.schedules.drawn import Choice, Uniform
from freerun.schedules.observed import Following, Plateau, followed
from freerun.schedules.shapes import (
    BENGIO,
    Constant,
    Cosine,
    Exponential,
    InverseSigmoid,
    Join,
    Linear,
    Piecewise,
    Table,
)  # fmt: skip

__all__ = [
    "BENGIO", "SCHEDULES", "UNITS", "Choice", "Constant", "Cosine", "Exponential", "Following", "InverseSigmoid",
    "Join", "Linear", "Piecewise", "Plateau", "Schedule", "Shaped", "Table", "Uniform", "extremes", "followed",
    "moves", "value_at",
]  # fmt: skip

constant, linear, cosine, piecewise, join, table = Constant, Linear, Cosine, Piecewise, Join, Table
exponential, inverse_sigmoid, uniform, choice, plateau = Exponential, InverseSigmoid, Uniform, Choice, Plateau

_ALL = (Constant, Linear, Exponential, InverseSigmoid, Cosine, Piecewise, Join, Table, Uniform, Choice, Plateau)
SCHEDULES: dict[str, type[Schedule]] = {each.name: each for each in _ALL}


def __getattr__(name: str) -> Any:
    if name in ("falling", "rising"):
        ends = ", start=0.0, end=1.0" if name == "rising" else ""
        raise UserError(
            f"fr.{name}(steps) is a method, with a schedule inside: use it as it is; as a schedule write "
            f"inverse_sigmoid(k=...{ends}), or linear(start=..., end=..., steps=...)"
        )
    raise AttributeError(f"module 'freerun.schedules' has no attribute {name!r}")
