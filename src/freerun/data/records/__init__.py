"""Records: sources with targets, prompts with completions, conversations and texts, from files, as ids."""

from freerun.data.records.coder import Encoded, RecordCoder
from freerun.data.records.columns import SHAPES, Record
from freerun.data.records.data import RecordData, encoded_data, encoded_problems, trial_encoded
from freerun.data.records.fitting import Limits, fitted
from freerun.data.records.splits import RecordOptions, Records, load_records, read_records
from freerun.data.records.table import FORMATS, read_rows

__all__ = [
    "FORMATS", "SHAPES", "Encoded", "Limits", "Record", "RecordCoder", "RecordData", "RecordOptions", "Records",
    "encoded_data", "encoded_problems", "fitted", "load_records", "read_records", "read_rows", "trial_encoded",
]  # fmt: skip
