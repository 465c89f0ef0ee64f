"""Models for values: forecasters of series and simulators, each a Stepper."""

from freerun.models.forecasting.recurrent import PlainForecaster, RecurrentForecaster, ShallowPLRNN
from freerun.models.forecasting.scaling import WindowScaled
from freerun.models.forecasting.transformer import TransformerForecaster

__all__ = [
    "PlainForecaster",
    "RecurrentForecaster",
    "ShallowPLRNN",
    "TransformerForecaster",
    "WindowScaled",
]
