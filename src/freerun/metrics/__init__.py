"""Scores of outputs and of texts, each with its direction and range."""

from freerun.metrics.outputs import (
    correct,
    error_by_lead,
    first_divergence,
    nrmse,
    sequence_accuracy,
    sequence_correct,
    sequence_errors,
    token_accuracy,
    valid_time,
)

__all__ = [
    "correct",
    "error_by_lead",
    "first_divergence",
    "nrmse",
    "sequence_accuracy",
    "sequence_correct",
    "sequence_errors",
    "token_accuracy",
    "valid_time",
]
