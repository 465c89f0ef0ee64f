"""The kernel: building the history a model is told out of gold and its own output."""

from freerun.rollin.engine import RollIn, roll_in
from freerun.rollin.modes import differs_by_mode, evaluating
from freerun.rollin.unrolled import Mixing, unroll

__all__ = ["Mixing", "RollIn", "differs_by_mode", "evaluating", "roll_in", "unroll"]
