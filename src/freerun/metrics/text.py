"""Scores of texts: edit distance, BLEU and chrF with references; words, trigrams and repetition without."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from freerun.errors import NotInstalledError, UserError, needing

Symbols = tuple[str, ...]


def nearest(output: Sequence[str], references: Sequence[Sequence[str]]) -> tuple[int, int]:
    """Return the edit distance to the nearest reference (the first of equally near ones), and its length."""
    from rapidfuzz.distance import Levenshtein

    distances = [(Levenshtein.distance(output, reference), len(reference)) for reference in references]
    return min(distances, key=lambda pair: pair[0])


def edit_distance(output: Sequence[Any], reference: Sequence[Any]) -> int:
    """Return the least number of insertions, deletions and substitutions between two sequences.

    >>> edit_distance([3, 4, 5], [3, 5, 6])
    2
    """
    from rapidfuzz.distance import Levenshtein

    return Levenshtein.distance(output, reference)


def alignment(output: Sequence[Any], reference: Sequence[Any]) -> list[tuple[int, int, bool]]:
    """Columns of an alignment by edit distance: (position in the output, in the reference, whether both are equal).

    A deletion repeats the output's next position, an insertion the reference's; of several alignments of least cost it
    is rapidfuzz's.

    >>> alignment("abxd", "abd")
    [(0, 0, True), (1, 1, True), (2, 2, False), (3, 2, True)]
    """
    from rapidfuzz.distance import Levenshtein

    columns: list[tuple[int, int, bool]] = []
    for block in Levenshtein.opcodes(output, reference):
        own, gold = block.src_end - block.src_start, block.dest_end - block.dest_start
        for n in range(max(own, gold)):
            columns.append((block.src_start + min(n, own), block.dest_start + min(n, gold), block.tag == "equal"))
    return columns


def score(
    outputs: Sequence[Symbols], references: Sequence[Sequence[Symbols]]
) -> tuple[dict[str, float], list[dict[str, Any]]]:
    """PER, WER in percent, and every item's errors.

    WER: share of words whose output equals no reference. PER: sum of the edit distances to the nearest reference, over
    the sum of these references' lengths.
    """
    _check(outputs, references)
    empty = [number for number, each in enumerate(references) if not each or not all(each)]
    if empty:
        raise UserError(f"every word needs references that are not empty; word {empty[0]} has {references[empty[0]]}")
    pairs = (nearest(output, each) for output, each in zip(outputs, references, strict=True))
    items: list[dict[str, Any]] = [{"errors": n, "length": length, "wrong": n > 0} for n, length in pairs]
    per = 100 * sum(item["errors"] for item in items) / sum(item["length"] for item in items)
    wer = 100 * sum(item["wrong"] for item in items) / len(items)
    return {"per": per, "wer": wer}, items


def _check(outputs: Sequence[object], references: Sequence[object]) -> None:
    if len(outputs) != len(references) or not outputs:
        raise UserError(f"outputs and references must be as many, at least 1; got {len(outputs)}, {len(references)}")


def _check_lines(outputs: Sequence[str], references: Sequence[str], noun: str) -> None:
    _check(outputs, references)
    empty = [number for number, reference in enumerate(references) if not reference.split()]
    if empty:
        raise UserError(f"every {noun} needs a reference that is not empty; {noun} {empty[0]} has none")


Tokenizer = Literal["13a", "zh", "ja-mecab", "ko-mecab", "char", "intl", "none"]
TOKENIZERS: tuple[Tokenizer, ...] = ("13a", "zh", "ja-mecab", "ko-mecab", "char", "intl", "none")
"""sacreBLEU's tokenizers: what BLEU counts as a word."""
_OF_LANGUAGE: Mapping[str, Tokenizer] = {
    **dict.fromkeys(("zh", "zho", "cmn", "chi", "yue", "wuu", "chinese"), "zh"),
    **dict.fromkeys(("ja", "jpn", "jp", "japanese"), "ja-mecab"),
    **dict.fromkeys(("ko", "kor", "korean"), "ko-mecab"),
}


def tokenizer_of(language: str) -> Tokenizer:
    """sacreBLEU's tokenizer for texts of a language, however a model names it.

    >>> [tokenizer_of(name) for name in ("zh_CN", "zho_Hans", "__ja__", "de_DE", "")]
    ['zh', 'zh', 'ja-mecab', '13a', '13a']
    """
    return _OF_LANGUAGE.get((re.findall("[a-z]+", language.lower()) or [""])[0], "13a")


def unspaced(texts: Sequence[str]) -> bool:
    """Whether most letters of some texts are Chinese, Japanese or Thai, which are written without blanks."""
    letters = "".join(texts)
    return 2 * len(_UNSPACED.findall(letters)) > sum(map(str.isalpha, letters))


_UNSPACED = re.compile("[\u0e00-\u0e7f\u3040-\u30ff\u3400-\u9fff\U00020000-\U0003ffff]")


def score_translations(
    outputs: Sequence[str], references: Sequence[str], tokenize: Tokenizer = "none"
) -> tuple[dict[str, float], list[dict[str, Any]]]:
    """Corpus BLEU, chrF2 and length ratio by sacreBLEU, and every sentence's sums for BLEU.

    With ``tokenize="none"``, on lower-cased, tokenised text, this is the "tokenised BLEU" of papers, not sacreBLEU's
    value for raw text.
    """
    _check_lines(outputs, references, "sentence")
    return _bleu_and_chrf(outputs, references, [tokenize] * len(outputs))


def _bleu_and_chrf(
    outputs: Sequence[str], references: Sequence[str], tokenize: Sequence[str]
) -> tuple[dict[str, float], list[dict[str, Any]]]:
    # effective_order only silences the advice on sentence scores: the parts do not depend on it
    scorers = {name: _bleu_by(name, effective_order=True) for name in dict.fromkeys(tokenize)}
    items: list[dict[str, Any]] = []
    for output, reference, name in zip(outputs, references, tokenize, strict=True):
        one = scorers[name].sentence_score(output, [reference])
        items.append({"bleu": [one.sys_len, one.ref_len, *one.counts, *one.totals]})
    length, gold, *parts = (sum(column) for column in zip(*(item["bleu"] for item in items), strict=True))
    corpus = _sacrebleu().BLEU.compute_bleu(parts[:4], parts[4:], length, gold, smooth_method="exp")
    return {"bleu": corpus.score, "chrf": chrf(outputs, references), "length_ratio": length / gold}, items


def _bleu_by(tokenize: str, **options: Any) -> Any:
    try:
        return _sacrebleu().BLEU(tokenize=tokenize, force=True, **options)
    except RuntimeError as error:  # sacreBLEU's own, where a library for a language is absent
        extra = tokenize.partition("-")[0]
        raise NotInstalledError(
            f"BLEU by {tokenize!r} needs a library for its language: pip install 'sacrebleu[{extra}]', or set "
            'evaluate.bleu_tokenizer = "char"'
        ) from error


def chrf(outputs: Sequence[str], references: Sequence[str]) -> float:
    """Return corpus chrF2 by sacreBLEU, 0 to 100.

    >>> round(chrf(["the cat"], ["the cat sat"]), 1)
    55.8
    """
    return _sacrebleu().CHRF().corpus_score(outputs, [references]).score


def score_texts(
    outputs: Sequence[str], references: Sequence[str], tokenize: Sequence[str] | None = None
) -> tuple[dict[str, float], list[dict[str, Any]]]:
    """Scores of raw text against one reference each: chrF and BLEU by sacreBLEU, character errors, equal texts.

    BLEU: each text by its own of ``TOKENIZERS``; None: all by "13a", sacreBLEU's default. ``cer``: sum of the edit
    distances in characters, over the sum of the references' characters. ``sequence_accuracy``: share of outputs that
    equal their reference, stripped.
    """
    from rapidfuzz.distance import Levenshtein

    _check_lines(outputs, references, "text")
    overlap, items = _bleu_and_chrf(outputs, references, tokenize or ["13a"] * len(outputs))
    for item, output, reference in zip(items, outputs, references, strict=True):
        text, gold = output.strip(), reference.strip()
        item |= {"errors": Levenshtein.distance(text, gold), "length": len(gold), "right": text == gold}
    scores = {
        "chrf": overlap["chrf"],
        "bleu": overlap["bleu"],
        "cer": 100 * sum(item["errors"] for item in items) / sum(item["length"] for item in items),
        "sequence_accuracy": 100 * sum(item["right"] for item in items) / len(items),
        "length_ratio": overlap["length_ratio"],
    }
    return scores, items


def bleu(sums: Any, *, effective_order: bool = False) -> Any:
    """Corpus BLEU in percent from sums (..., 10) in sacreBLEU's order, with its exponential smoothing.

    ``100 * min(1, exp(1 - r/c)) * (p_1 p_2 p_3 p_4)^(1/4)`` with system length c, reference length r and the matches
    and totals of n = 1..4; a p_n without a match counts ``1 / (2^k total_n)``, k the number of such n so far. With
    ``effective_order`` the mean is over the n of which there are any, as for a single sentence.
    """
    import numpy as np

    sums = np.asarray(sums, dtype=np.float64)
    length, reference, matches, totals = sums[..., 0], sums[..., 1], sums[..., 2:6], sums[..., 6:10]
    none = matches == 0
    halvings = 2.0 ** np.cumsum(none, -1)
    safe = np.maximum(totals, 1.0)
    precisions = np.where(none, 1.0 / (halvings * safe), matches / safe)
    penalty = np.exp(np.minimum(0.0, 1.0 - reference / np.maximum(length, 1.0)))
    used = (totals > 0) | (not effective_order)
    mean = np.where(used, np.log(precisions), 0.0).sum(-1) / np.maximum(used.sum(-1), 1)
    possible = (totals > 0).any(-1) if effective_order else (totals > 0).all(-1)
    return np.where(possible & (matches > 0).any(-1), 100.0 * penalty * np.exp(mean), 0.0)


def bleu_signature(*tokenize: str) -> str:
    """Return sacreBLEU's signature of how BLEU is computed, with its version; of several tokenizers all names."""
    made = [_bleu_by(name) for name in tokenize or ("none",)]
    made[0].corpus_score(["a"], [["a"]])  # the signature has the number of references only after a score
    return re.sub(r"\|tok:[^|]*", f"|tok:{'+'.join(tokenize or ('none',))}", str(made[0].get_signature()))


def _sacrebleu() -> Any:
    with needing("translate", "BLEU"):
        from sacrebleu import metrics
    return metrics


_WORD = re.compile(r"[^\W\d_]+(?:['\N{RIGHT SINGLE QUOTATION MARK}][^\W\d_]+)*")
_REPEATED = 10


def distinct_words(text: str) -> frozenset[str]:
    """Return the different words of a text: runs of letters, with apostrophes inside them.

    >>> sorted(distinct_words("Don't stop: don't!"))
    ["Don't", "don't", 'stop']
    """
    return frozenset(_WORD.findall(text))


def novel_words(text: str, known: frozenset[str]) -> dict[str, int]:
    """Count the complete words of a text (``words``), and those of them that are not known (``novel``).

    A word at the very beginning or end may be cut and does not count.

    >>> novel_words("cut the dgo is blak cut", distinct_words("the dog is black"))
    {'novel': 2, 'words': 4}
    """
    words = [hit[0] for hit in _WORD.finditer(text) if hit.start() > 0 and hit.end() < len(text)]
    return {"novel": sum(word not in known for word in words), "words": len(words)}


def trigrams(texts: Sequence[str]) -> Counter[str]:
    """Count the strings of three characters of some texts."""
    return Counter(text[i : i + 3] for text in texts for i in range(len(text) - 2))


def js_divergence(first: Mapping[str, int], second: Mapping[str, int]) -> float:
    """Jensen-Shannon divergence of two counts, in bits, in [0, 1]; NaN where one of them is empty.

    ``JS(p, q) = (KL(p || m) + KL(q || m)) / 2, m = (p + q) / 2`` (Lin 1991). A small sample lies further from a large
    one of the same law than a large sample would: compare values of samples of one size only.

    >>> js_divergence({"abc": 1}, {"abc": 5}), js_divergence({"abc": 1}, {"xyz": 1})
    (0.0, 1.0)
    """
    one, two = sum(first.values()), sum(second.values())
    if not one or not two:
        return math.nan
    total = 0.0
    for string in sorted(first.keys() | second.keys()):
        p, q = first.get(string, 0) / one, second.get(string, 0) / two
        total += sum(share * math.log2(2 * share / (p + q)) for share in (p, q) if share)
    return total / 2


def repetition(texts: Sequence[str]) -> float:
    """Percentage of the ten-character strings that occur earlier in the same text; NaN without any.

    >>> repetition(["0123456789" * 2]), repetition(["0123456789abcde"])
    (9.090909090909092, 0.0)
    """
    seen = again = 0
    for text in texts:
        strings = [text[i : i + _REPEATED] for i in range(len(text) - _REPEATED + 1)]
        seen += len(strings)
        again += len(strings) - len(set(strings))
    return 100 * again / seen if seen else math.nan
