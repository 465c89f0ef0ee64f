"""The kernel: building the history a model is told out of gold and its own output."""

from freerun.rollin.draft import certified_forward, draft_roll_in
from freerun.rollin.engine import RollIn, roll_in
from freerun.rollin.engines import ENGINES, Draft, Window
from freerun.rollin.mixing import Mixing
from freerun.rollin.modes import differs_by_mode, evaluating
from freerun.rollin.outputs import call_problems, checked, explained_errors, forward
from freerun.rollin.together import can, hint, most, refuse_sharded, some, unwrapped, waits
from freerun.rollin.truncated import refuse_cutting, unroll_truncated
from freerun.rollin.unrolled import refuse_unrolling, unroll

__all__ = [
    "ENGINES",
    "Draft",
    "Mixing",
    "RollIn",
    "Window",
    "call_problems",
    "can",
    "certified_forward",
    "checked",
    "differs_by_mode",
    "draft_roll_in",
    "evaluating",
    "explained_errors",
    "forward",
    "hint",
    "most",
    "refuse_cutting",
    "refuse_sharded",
    "refuse_unrolling",
    "roll_in",
    "some",
    "unroll",
    "unroll_truncated",
    "unwrapped",
    "waits",
]
