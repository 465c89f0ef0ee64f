"""What a model's free run is like beside gold: errors by lead time, climate, error after error."""

from freerun.diagnostics.climate import (
    decorrelation,
    delay_embedding,
    long_run,
    past_of,
    power_spectrum,
    principal_components,
    spectrum_distance,
    state_histogram_divergence,
)
from freerun.diagnostics.diagnose import diagnose, error_after_error, first_error, position_errors
from freerun.diagnostics.naive import last_period, last_value, mean
from freerun.diagnostics.results import Diagnosis, ErrorPropagation, IdDiagnosis, ValueDiagnosis, as_json
from freerun.diagnostics.values import DiagnosisOptions, Growth, growth
from freerun.metrics.outputs import (
    HorizonErrors,
    at_horizon,
    errors_by_horizon,
    first_divergence_of,
    gap_by_horizon,
    nrmse_last_tenth,
    valid_time_of_errors,
    window_errors,
    window_nrmse,
)

__all__ = [
    "Diagnosis",
    "DiagnosisOptions",
    "ErrorPropagation",
    "Growth",
    "HorizonErrors",
    "IdDiagnosis",
    "ValueDiagnosis",
    "as_json",
    "at_horizon",
    "decorrelation",
    "delay_embedding",
    "diagnose",
    "error_after_error",
    "errors_by_horizon",
    "first_divergence_of",
    "first_error",
    "gap_by_horizon",
    "growth",
    "last_period",
    "last_value",
    "long_run",
    "mean",
    "nrmse_last_tenth",
    "past_of",
    "position_errors",
    "power_spectrum",
    "principal_components",
    "spectrum_distance",
    "state_histogram_divergence",
    "valid_time_of_errors",
    "window_errors",
    "window_nrmse",
]  # fmt: skip
