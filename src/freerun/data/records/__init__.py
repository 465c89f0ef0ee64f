"""Records: sources with targets, prompts with completions, conversations and texts, from files, as ids."""

from freerun.data.records.codec import Encoded, RecordCodec
from freerun.data.records.columns import SHAPES
from freerun.data.records.data import (
    Limits,
    RecordData,
    encoded_data,
    encoded_problems,
    fit_lengths,
    trial_encoded,
    with_end,
)
from freerun.data.records.files import Record, RecordOptions, Records, load_records, load_rows, read_records
from freerun.data.tables import FORMATS, read_rows

__all__ = [
    "FORMATS", "SHAPES", "Encoded", "Limits", "Record", "RecordCodec", "RecordData", "RecordOptions", "Records",
    "encoded_data", "encoded_problems", "fit_lengths", "load_records", "load_rows", "read_records", "read_rows",
    "trial_encoded", "with_end",
]  # fmt: skip
