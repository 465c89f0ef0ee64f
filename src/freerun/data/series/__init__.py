"""Time series as data: arrays, CSV and Parquet, in windows, split in time."""

from freerun.data.series.arrays import series_from_arrays
from freerun.data.series.coder import SeriesCoder
from freerun.data.series.files import load_series
from freerun.data.series.options import SeriesOptions
from freerun.data.series.recent import read_past
from freerun.data.series.windows import SeriesData

__all__ = ["SeriesCoder", "SeriesData", "SeriesOptions", "load_series", "read_past", "series_from_arrays"]
