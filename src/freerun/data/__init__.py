"""Data as batches: pairs from files, CMUdict or generated; parallel text; any text; series, systems; exact worlds."""

from typing import Any

from freerun.arguments import renamed
from freerun.data.builtin_pairs import TOYS, load_cmudict, load_toy
from freerun.data.pair_files import PairOptions, ParallelOptions, load_pairs, read_pairs
from freerun.data.pairs import PairCodec, PairData, Pairs
from freerun.data.series import SeriesCodec, SeriesData, SeriesOptions, load_series, read_past, series_from_arrays
from freerun.data.systems import SYSTEMS, SystemOptions, load_system
from freerun.data.text import TextCodec, TextData, TextOptions, load_text, read_text
from freerun.data.tokenisers import Subwords, Vocabularies, Vocabulary
from freerun.data.worlds import Automaton, Observed, StickyRing, chain, exact_error, random_automaton, trap_chain

__all__ = [
    "SYSTEMS",
    "TOYS",
    "Automaton",
    "Observed",
    "PairCodec",
    "PairData",
    "PairOptions",
    "Pairs",
    "ParallelOptions",
    "SeriesCodec",
    "SeriesData",
    "SeriesOptions",
    "StickyRing",
    "Subwords",
    "SystemOptions",
    "TextCodec",
    "TextData",
    "TextOptions",
    "Vocabularies",
    "Vocabulary",
    "chain",
    "exact_error",
    "load_cmudict",
    "load_pairs",
    "load_series",
    "load_system",
    "load_text",
    "load_toy",
    "random_automaton",
    "read_pairs",
    "read_past",
    "read_text",
    "series_from_arrays",
    "trap_chain",
]
_RENAMED = {
    "ParallelCodec": "PairCodec",
    "ParallelData": "PairData",
    "Sentences": "Pairs",
    "load_parallel": "load_pairs(path, ParallelOptions(...))",
    "read_sentences": 'read_pairs(path, tokeniser="subwords")',
}


def __getattr__(name: str) -> Any:
    raise renamed(__name__, name, _RENAMED)
