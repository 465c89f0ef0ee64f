"""Scores that come from test words (sentences, windows), seed by seed, and what they are over words drawn again."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["Array", "Median", "OverWords", "Pooled", "Ratio", "resampled_words"]

_CHUNK = 128

Array = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Ratio:
    """A score that is a ratio of sums over words, seed by seed: ``scale * sum(part) / sum(whole)``.

    Args:
        part: (seeds, words) what is counted: wrong words, or edit errors.
        whole: (seeds, words) what it is counted against: ones, or reference lengths.
        scale: 100 for percent.

    >>> Ratio(np.array([[0.0, 1.0]]), np.array([[1.0, 1.0]])).values.tolist()
    [50.0]
    """

    part: Array
    whole: Array
    scale: float = 100.0

    @property
    def shape(self) -> tuple[int, ...]:
        """(seeds, words)."""
        return self.part.shape

    @property
    def values(self) -> Array:
        """(seeds,) the score of each seed."""
        return self.scale * self.part.sum(1) / self.whole.sum(1)

    def influence(self) -> Array:
        """(seeds, words) how each word moves its seed's score, to first order, times the words."""
        share = self.values[:, None] / self.scale
        return self.scale * (self.part - share * self.whole) / self.whole.mean(1, keepdims=True)

    def resampled(self, counts: NDArray[np.float32]) -> Array:
        """(resamples, seeds) the scores when word w is counted ``counts[:, w]`` times; NaN where nothing is counted."""
        part = counts @ self.part.T.astype(np.float32)
        whole = counts @ self.whole.T.astype(np.float32)
        return self.scale * part.astype(np.float64) / np.where(whole > 0, whole, np.nan)


@dataclass(frozen=True, eq=False)
class Pooled:
    """A score of a whole corpus, seed by seed: a function of numbers summed over words (or sentences).

    Args:
        parts: (seeds, words, numbers) what each word adds.
        function: (..., numbers) sums -> (...) scores; the same for all sums multiplied by one number.

    >>> twice = Pooled(np.array([[[1.0, 2.0], [3.0, 2.0]]]), lambda sums: sums[..., 0] / sums[..., 1])
    >>> twice.values.tolist(), twice.influence().round(6).tolist()
    ([1.0], [[-0.5, 0.5]])
    """

    parts: Array
    function: Callable[[Array], Array]

    @property
    def shape(self) -> tuple[int, ...]:
        """(seeds, words)."""
        return self.parts.shape[:2]

    @property
    def values(self) -> Array:
        """(seeds,) the score of each seed."""
        return self.function(self.parts.sum(1))

    def influence(self) -> Array:
        """(seeds, words) how each word moves its seed's score, to first order, times the words."""
        sums = self.parts.sum(1)
        # derivatives by central differences: scores are smooth, and bends (a brevity penalty) lie at single points
        sizes = np.abs(self.parts).sum(1)
        steps = 1e-4 * np.where(sizes > 0, np.maximum(sizes, 1.0), 0.0)[:, None, :] * np.eye(sums.shape[1])
        around = sums[:, None, :]
        # a number that no word adds to moves nothing, and just below zero there may be no score
        widths = np.where(sizes > 0, 2 * steps.sum(2), 1.0)
        slopes = (self.function(around + steps) - self.function(around - steps)) / widths
        return self.shape[1] * np.einsum("swn,sn->sw", self.parts, slopes)

    def resampled(self, counts: NDArray[np.float32]) -> Array:
        """(resamples, seeds) the scores when word w is counted ``counts[:, w]`` times."""
        return self.function(np.einsum("rw,swn->rsn", counts.astype(np.float64), self.parts, optimize=True))


@dataclass(frozen=True, eq=False)
class Median:
    """A score that is a median over words (windows), seed by seed; of an even number the mean of the middle two.

    Args:
        parts: (seeds, words) one number each; inf is more than any other.

    >>> Median(np.array([[1.0, 4.0, np.inf, 2.0]])).values.tolist()
    [3.0]
    """

    parts: Array

    @property
    def shape(self) -> tuple[int, ...]:
        """(seeds, words)."""
        return self.parts.shape

    @property
    def values(self) -> Array:
        """(seeds,) the score of each seed."""
        return self.resampled(np.ones((1, self.shape[1]), dtype=np.float32))[0]

    def resampled(self, counts: NDArray[np.float32]) -> Array:
        """(resamples, seeds) the scores when word w is counted ``counts[:, w]`` times."""
        found: list[Array] = []
        for part in self.parts:
            order = part.argsort(kind="stable")
            reached = counts[:, order].cumsum(1)
            drawn = reached[:, -1]
            low = (reached > np.floor((drawn - 1) / 2)[:, None]).argmax(1)
            high = (reached > np.floor(drawn / 2)[:, None]).argmax(1)
            found.append((part[order][low] + part[order][high]) / 2)
        return np.stack(found, 1)


OverWords = Ratio | Pooled | Median


def resampled_words(words: int, resamples: int = 2000, seed: int = 0) -> list[NDArray[np.float32]]:
    """How often each word is drawn in each bootstrap resample: chunks of (<= 128, words).

    Args:
        words: number of test words.
        resamples: number of bootstrap resamples.
        seed: the same seed gives the same resamples; every arm and seed shares them.

    >>> [chunk.shape for chunk in resampled_words(3, 200)], float(resampled_words(3, 5)[0].sum())
    ([(128, 3), (72, 3)], 15.0)
    """
    random = np.random.default_rng(seed)
    chunks: list[NDArray[np.float32]] = []
    for start in range(0, resamples, _CHUNK):
        rows = min(_CHUNK, resamples - start)
        drawn = random.integers(0, words, size=(rows, words)) + np.arange(rows)[:, None] * words
        counts = np.bincount(drawn.ravel(), minlength=rows * words).reshape(rows, words)
        chunks.append(counts.astype(np.float32))
    return chunks
