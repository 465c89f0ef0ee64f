"""Time series as data: arrays, CSV and Parquet, in windows, split in time."""

from freerun.data.series.inference import read_past
from freerun.data.series.loading import load_series, series_from_arrays
from freerun.data.series.options import SeriesOptions
from freerun.data.series.windows import SeriesCodec, SeriesData

__all__ = ["SeriesCodec", "SeriesData", "SeriesOptions", "load_series", "read_past", "series_from_arrays"]
