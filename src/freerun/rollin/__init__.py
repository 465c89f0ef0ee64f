"""The kernel: building the history a model is told out of gold and its own output."""

from freerun.rollin.draft import certified_forward, draft_roll_in
from freerun.rollin.engines import ENGINES, Draft, Window
from freerun.rollin.model import (
    any_rank,
    call_problems,
    checked,
    differs_by_mode,
    eval_mode,
    explained_errors,
    forward,
    max_over_ranks,
    needs_sync,
    refuse_sharded,
    supports,
    unwrap,
    wrapper_hint,
)
from freerun.rollin.replacement import Mixing
from freerun.rollin.roll_in import RollIn, roll_in
from freerun.rollin.unroll import refuse_cutting, refuse_unrolling, unroll, unroll_truncated

__all__ = [
    "ENGINES",
    "Draft",
    "Mixing",
    "RollIn",
    "Window",
    "any_rank",
    "call_problems",
    "certified_forward",
    "checked",
    "differs_by_mode",
    "draft_roll_in",
    "eval_mode",
    "explained_errors",
    "forward",
    "max_over_ranks",
    "needs_sync",
    "refuse_cutting",
    "refuse_sharded",
    "refuse_unrolling",
    "roll_in",
    "supports",
    "unroll",
    "unroll_truncated",
    "unwrap",
    "wrapper_hint",
]
