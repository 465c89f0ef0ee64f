"""A model's free run beside gold: errors by lead time, climate; errors after errors, recovery, accumulated error."""

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
from freerun.diagnostics.diagnose import diagnose
from freerun.diagnostics.ids import error_after_error, first_error, position_errors
from freerun.diagnostics.intervals import Interval
from freerun.diagnostics.naive import last_period, last_value, mean
from freerun.diagnostics.results import (
    Diagnosis,
    ErrorGap,
    ErrorPropagation,
    IdDiagnosis,
    SampleWindow,
    ValueDiagnosis,
    as_json,
)
from freerun.diagnostics.tokens import (
    align_row,
    calibration,
    corrupted,
    error_ratio,
    excess_error,
    exposure_bias_c,
    exposure_bias_m,
    hidden_distance,
    length_behaviour,
    overlap,
    repetition,
)
from freerun.diagnostics.values import DiagnosisOptions, Growth, growth

__all__ = [
    "Diagnosis",
    "DiagnosisOptions",
    "ErrorGap",
    "ErrorPropagation",
    "Growth",
    "IdDiagnosis",
    "Interval",
    "SampleWindow",
    "ValueDiagnosis",
    "align_row",
    "as_json",
    "calibration",
    "corrupted",
    "decorrelation",
    "delay_embedding",
    "diagnose",
    "error_after_error",
    "error_ratio",
    "excess_error",
    "exposure_bias_c",
    "exposure_bias_m",
    "first_error",
    "growth",
    "hidden_distance",
    "last_period",
    "last_value",
    "length_behaviour",
    "long_run",
    "mean",
    "overlap",
    "past_of",
    "position_errors",
    "power_spectrum",
    "principal_components",
    "repetition",
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
