"""Data as batches: pairs from files, CMUdict or generated; parallel text; any text; series, systems, films."""

from freerun.data.cmudict import load_cmudict
from freerun.data.frames import FrameOptions, load_frames
from freerun.data.loading import PairOptions, load_pairs
from freerun.data.pair_data import PairCoder, PairData
from freerun.data.pairs import Pairs, read_pairs
from freerun.data.parallel import ParallelOptions, load_parallel
from freerun.data.parallel_data import ParallelCoder, ParallelData
from freerun.data.parallel_files import Sentences, read_sentences
from freerun.data.series import SeriesCoder, SeriesData, SeriesOptions, load_series, read_past, series_from_arrays
from freerun.data.subwords import Subwords
from freerun.data.systems import SYSTEMS, SystemOptions, load_system
from freerun.data.text_coder import TextCoder
from freerun.data.text_windows import TextData, TextOptions, load_text, read_text
from freerun.data.toy import TOYS, load_toy
from freerun.data.vocabulary import Vocabulary

__all__ = [
    "SYSTEMS",
    "TOYS",
    "FrameOptions",
    "PairCoder",
    "PairData",
    "PairOptions",
    "Pairs",
    "ParallelCoder",
    "ParallelData",
    "ParallelOptions",
    "Sentences",
    "SeriesCoder",
    "SeriesData",
    "SeriesOptions",
    "Subwords",
    "SystemOptions",
    "TextCoder",
    "TextData",
    "TextOptions",
    "Vocabulary",
    "load_cmudict",
    "load_frames",
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
