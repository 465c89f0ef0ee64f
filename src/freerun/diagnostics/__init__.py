"""A model's free run beside gold: errors by lead time, climate, error after error."""

from typing import Any

from freerun.arguments import renamed
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
from freerun.diagnostics.results import (
    Diagnosis,
    ErrorPropagation,
    IdDiagnosis,
    SampleWindow,
    ValueDiagnosis,
    as_json,
)
from freerun.diagnostics.values import DiagnosisOptions, Growth, growth

__all__ = [
    "Diagnosis",
    "DiagnosisOptions",
    "ErrorPropagation",
    "Growth",
    "IdDiagnosis",
    "SampleWindow",
    "ValueDiagnosis",
    "as_json",
    "decorrelation",
    "delay_embedding",
    "diagnose",
    "error_after_error",
    "first_error",
    "growth",
    "last_period",
    "last_value",
    "long_run",
    "mean",
    "past_of",
    "position_errors",
    "power_spectrum",
    "principal_components",
    "spectrum_distance",
    "state_histogram_divergence",
]

_RENAMED = {
    "About": "DiagnosisOptions",
    "AfterError": "ErrorPropagation",
    "Fan": "SampleWindow",
    "LeadErrors": "freerun.metrics.HorizonErrors",
    "after_error": "error_after_error",
    "at_leads": "freerun.metrics.at_horizon",
    "diverged_at": "freerun.metrics.first_divergence",
    "error_by_lead": "freerun.metrics.errors_by_horizon",
    "gap_by_lead": "freerun.metrics.gap_by_horizon",
    "last_tenth": "freerun.metrics.nrmse_last_tenth",
    "valid_time": "freerun.metrics.valid_time",
    "window_errors": "freerun.metrics.window_errors",
    "window_nrmse": "freerun.metrics.window_nrmse",
}


def __getattr__(name: str) -> Any:
    raise renamed(__name__, name, _RENAMED)
