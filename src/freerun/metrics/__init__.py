"""Scores of outputs and of texts, each with its direction and range."""

from typing import Any

from freerun.arguments import renamed
from freerun.metrics.accumulation import accumulated_error, divergence, excess_accumulated_error
from freerun.metrics.outputs import (
    HorizonErrors,
    at_horizon,
    correct,
    errors_by_horizon,
    first_divergence,
    gap_by_horizon,
    nrmse,
    nrmse_last_tenth,
    rmse_by_horizon,
    sequence_accuracy,
    sequence_correct,
    sequence_errors,
    token_accuracy,
    valid_time,
    window_errors,
    window_nrmse,
)
from freerun.metrics.probabilistic import coverage, crps, pinball, sample_quantiles

__all__ = [
    "HorizonErrors",
    "accumulated_error",
    "at_horizon",
    "correct",
    "coverage",
    "crps",
    "divergence",
    "errors_by_horizon",
    "excess_accumulated_error",
    "first_divergence",
    "gap_by_horizon",
    "nrmse",
    "nrmse_last_tenth",
    "pinball",
    "rmse_by_horizon",
    "sample_quantiles",
    "sequence_accuracy",
    "sequence_correct",
    "sequence_errors",
    "token_accuracy",
    "valid_time",
    "window_errors",
    "window_nrmse",
]


def __getattr__(name: str) -> Any:
    raise renamed(__name__, name, {"error_by_lead": "rmse_by_horizon"})
