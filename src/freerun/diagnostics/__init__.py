"""What a model's free run is like beside gold: errors by lead time, climate, error after error."""

from freerun.diagnostics.after import AfterError, after_error, first_error, position_errors
from freerun.diagnostics.chained import long_run, past_of
from freerun.diagnostics.climate import (
    decorrelation,
    delay_embedding,
    power_spectrum,
    principal_components,
    spectrum_distance,
    state_histogram_divergence,
)
from freerun.diagnostics.diagnosis import Diagnosis, IdDiagnosis, ValueDiagnosis, as_json
from freerun.diagnostics.growing import Growth, growth
from freerun.diagnostics.leads import (
    LeadErrors,
    at_leads,
    diverged_at,
    error_by_lead,
    gap_by_lead,
    last_tenth,
    valid_time,
    window_errors,
    window_nrmse,
)
from freerun.diagnostics.naive import last_period, last_value, mean
from freerun.diagnostics.values import About
from freerun.diagnostics.whole import diagnose

__all__ = [
    "About", "AfterError", "Diagnosis", "Growth", "IdDiagnosis", "LeadErrors", "ValueDiagnosis", "after_error",
    "as_json", "at_leads", "decorrelation", "delay_embedding", "diagnose", "diverged_at", "error_by_lead",
    "first_error", "gap_by_lead", "growth", "last_period", "last_tenth", "last_value", "long_run", "mean", "past_of",
    "position_errors", "power_spectrum", "principal_components", "spectrum_distance", "state_histogram_divergence",
    "valid_time", "window_errors", "window_nrmse",
]  # fmt: skip
