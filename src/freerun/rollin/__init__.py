"""The kernel: the history of gold and own entries that a model is trained on."""

from freerun.rollin.draft import Draft, certified_forward, draft_roll_in
from freerun.rollin.model import (
    any_rank,
    call_problems,
    checked,
    differs_by_mode,
    eval_mode,
    explained_errors,
    forward,
    is_sharded,
    max_over_ranks,
    needs_sync,
    refuse_sharded,
    stepping,
    supports,
    unwrap,
    wrapper_hint,
)
from freerun.rollin.replacement import Replacement, RollIn
from freerun.rollin.roll_in import ENGINES, Engine, check_engine, resolve_engine, roll_in
from freerun.rollin.unroll import check_unroll, unroll
from freerun.rollin.window import Window

__all__ = [
    "ENGINES",
    "Draft",
    "Engine",
    "Replacement",
    "RollIn",
    "Window",
    "any_rank",
    "call_problems",
    "certified_forward",
    "check_engine",
    "check_unroll",
    "checked",
    "differs_by_mode",
    "draft_roll_in",
    "eval_mode",
    "explained_errors",
    "forward",
    "is_sharded",
    "max_over_ranks",
    "needs_sync",
    "refuse_sharded",
    "resolve_engine",
    "roll_in",
    "stepping",
    "supports",
    "unroll",
    "unwrap",
    "wrapper_hint",
]
