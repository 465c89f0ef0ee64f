"""Data as batches: pairs from files, CMUdict or generated; parallel text; any text; series, systems."""

from freerun.data.builtin_pairs import TOYS, load_cmudict, load_toy
from freerun.data.pair_files import PairOptions, ParallelOptions, load_pairs, load_parallel, read_pairs, read_sentences
from freerun.data.pairs import PairCodec, PairData, Pairs, ParallelCodec, ParallelData, Sentences
from freerun.data.series import SeriesCodec, SeriesData, SeriesOptions, load_series, read_past, series_from_arrays
from freerun.data.simulated_series import SYSTEMS, SystemOptions, load_system
from freerun.data.text import TextCodec, TextData, TextOptions, load_text, read_text
from freerun.data.tokenisers import Subwords, Vocabulary

__all__ = [
    "SYSTEMS",
    "TOYS",
    "PairCodec",
    "PairData",
    "PairOptions",
    "Pairs",
    "ParallelCodec",
    "ParallelData",
    "ParallelOptions",
    "Sentences",
    "SeriesCodec",
    "SeriesData",
    "SeriesOptions",
    "Subwords",
    "SystemOptions",
    "TextCodec",
    "TextData",
    "TextOptions",
    "Vocabulary",
    "load_cmudict",
    "load_pairs",
    "load_parallel",
    "load_series",
    "load_system",
    "load_text",
    "load_toy",
    "read_pairs",
    "read_past",
    "read_sentences",
    "read_text",
    "series_from_arrays",
]
