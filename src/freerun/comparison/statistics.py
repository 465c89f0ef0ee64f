"""Intervals and paired comparisons over seeds and test words.

Runs are crossed with words: every seed of every arm is tested on the same words. An average then varies for
two reasons, other seeds and other words, and its variance is the sum of both, less the part that each of them
holds (two-way random effects; Owen 2007 for why resampling both at once counts that part three times):

    variance = V_seeds + V_words - interaction / (seeds * words)

``V_seeds`` is the variance over seeds with the words as they are, ``V_words`` comes from a bootstrap over
words with the seeds as they are (the same resampled words for every arm and seed). The quantile is Student's,
with Satterthwaite's degrees of freedom: a plain percentile bootstrap over five seeds is far too narrow.

The interaction of a ratio comes from how each word moves it. A median is not smooth, so its interaction comes from
the bootstrap itself: over resampled words a seed's own score varies by ``(words + interaction) / words``, the mean
over seeds by ``(words + interaction / seeds) / words``, and the difference of the two says what the interaction is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from freerun.errors import UserError

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds, or a mean of paired differences, with its 95 % interval.

    ``low`` and ``high`` are None where one seed and no words leave nothing to estimate a spread from.

    Args:
        value: the mean.
        low: lower end of the interval.
        high: upper end of the interval.
        error: standard error.
        probability_below: how much of the sampling distribution lies below zero (0.5: nothing known).
        p_value: two-sided, of "no difference"; 1 with a single seed, which shows nothing about others.
    """

    value: float
    low: float | None = None
    high: float | None = None
    error: float | None = None
    probability_below: float | None = None
    p_value: float = 1.0


def estimate(
    score: ItemScore | Sequence[float],
    baseline: ItemScore | Sequence[float] | None = None,
    counts: Sequence[NDArray[np.float32]] = (),
) -> Estimate:
    """Mean over seeds of a score, or of its difference from a baseline, paired by seed and word.

    ``score - baseline``, interval ``mean +- t(0.975, freedom) * sqrt(V_seeds + V_words - interaction)``.
    Numbers without words (a loss, seconds) vary over seeds only.

    Args:
        score: a Ratio, Pooled or Median, or one number a seed.
        baseline: the same kind for the same seeds (and words); None: the score itself.
        counts: from ``resample_counts``; needed for all but numbers without words.

    Raises:
        UserError: where seeds or words of the two do not pair.

    Not a test of one run against another: with one seed the interval speaks of words only, ``p_value`` is 1.

    >>> found = estimate([1.0, 2.0, 3.0])
    >>> found.value, round(found.low, 3), round(found.high, 3)
    (2.0, -0.484, 4.484)
    >>> estimate([1.0]).low is None
    True
    """
    values = _values(score) - (0.0 if baseline is None else _paired(score, baseline))
    seeds = len(values)
    of_seeds = float(values.var(ddof=1)) / seeds if seeds > 1 else None
    if not isinstance(score, ItemScore):
        if of_seeds is None:
            return Estimate(float(values[0]))
        return _student(float(values.mean()), of_seeds, seeds - 1, seeds)
    other = baseline if isinstance(baseline, ItemScore) else None
    replicates = _replicates(score, other, counts)
    if isinstance(score, Median) and not np.isfinite(replicates).all():
        return Estimate(float(values.mean()))  # nearly half the windows diverged: an interval to infinity is none
    # words that hold nothing to count (blocks without a whole word) may be all that is drawn
    of_words = float(np.nanvar(replicates.mean(1), ddof=1))
    if of_seeds is None:
        return _student(float(values[0]), of_words, np.inf, seeds)
    shared = _interaction(score, other, replicates)
    # what both hold, sigma^2(seed x word) / (seeds * words), is counted once; neither falls below it
    of_seeds = max(of_seeds, shared)
    total = of_seeds + max(of_words - shared, 0.0)
    freedom = (seeds - 1) * (total / of_seeds) ** 2 if of_seeds > 0 else np.inf
    return _student(float(values.mean()), total, freedom, seeds)


def _values(score: ItemScore | Sequence[float]) -> Array:
    return score.values if isinstance(score, ItemScore) else np.asarray(score, dtype=np.float64)


def _paired(score: ItemScore | Sequence[float], baseline: ItemScore | Sequence[float]) -> Array:
    first = score.shape if isinstance(score, ItemScore) else (len(score),)
    second = baseline.shape if isinstance(baseline, ItemScore) else (len(baseline),)
    if first != second:
        raise UserError(f"scores pair by seed and word; got {first} against {second} (seeds, words)")
    return _values(baseline)


def _replicates(score: ItemScore, other: ItemScore | None, counts: Sequence[NDArray[np.float32]]) -> Array:
    """(resamples, seeds) the score, or the difference, over resampled words."""
    if not counts:
        raise UserError("a score over words needs counts=resampled_words(words); got none")
    if other is None:
        return np.concatenate([score.resampled(chunk) for chunk in counts])
    with np.errstate(invalid="ignore"):  # inf - inf: both diverged
        return np.concatenate([score.resampled(chunk) - other.resampled(chunk) for chunk in counts])


def _interaction(score: ItemScore, other: ItemScore | None, replicates: Array) -> float:
    if isinstance(score, Median) or isinstance(other, Median):
        own, mean = replicates.var(0, ddof=1).mean(), replicates.mean(1).var(ddof=1)
        return max(0.0, float(own - mean)) / (replicates.shape[1] - 1)
    moved = score.influence() if other is None else score.influence() - other.influence()
    seeds, words = moved.shape
    if words < 2:
        return 0.0
    left = moved - moved.mean(0, keepdims=True) - moved.mean(1, keepdims=True) + moved.mean()
    return float((left**2).sum()) / ((seeds - 1) * (words - 1)) / (seeds * words)


def _student(value: float, variance: float, freedom: float, seeds: int) -> Estimate:
    error = float(np.sqrt(variance))
    if error == 0.0:
        below = 0.5 if value == 0 else float(value < 0)
        certain = seeds > 1 and value != 0
        return Estimate(value, value, value, 0.0, below, 0.0 if certain else 1.0)
    law = stats.t(freedom) if np.isfinite(freedom) else stats.norm()
    half = float(law.ppf(0.5 + CONFIDENCE / 2)) * error
    p_value = 2.0 * float(law.sf(abs(value) / error)) if seeds > 1 else 1.0
    return Estimate(value, value - half, value + half, error, float(law.cdf(-value / error)), p_value)


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values adjusted for their number by Holm's step-down rule (Holm 1979).

    ``adjusted_(i) = max over j <= i of min(1, (m - j + 1) * p_(j))``, in the order of the p-values.

    Args:
        p_values: the family, in any order.

    >>> holm([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]
    """
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    adjusted = [0.0] * len(p_values)
    highest = 0.0
    for rank, index in enumerate(order):
        highest = max(highest, min(1.0, (len(order) - rank) * p_values[index]))
        adjusted[index] = highest
    return adjusted


def verdict_word(difference: float, adjusted: float) -> str:
    """Return the verdict word of a difference in something where lower is better: better, worse or not decided.

    >>> verdict_word(-0.4, 0.01), verdict_word(0.4, 0.01), verdict_word(-0.4, 0.2)
    ('better', 'worse', 'not decided')
    """
    if adjusted >= 1 - CONFIDENCE or difference == 0:
        return "not decided"
    return "better" if difference < 0 else "worse"


_CHUNK = 128
Array = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Ratio:
    """A score that is a ratio of sums over words, seed by seed: ``scale * sum(part) / sum(whole)``.

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


ItemScore = Ratio | Pooled | Median


def resample_counts(words: int, resamples: int = 2000, seed: int = 0) -> list[NDArray[np.float32]]:
    """Count how often each word is drawn in each bootstrap resample: chunks of (<= 128, words).

    >>> [chunk.shape for chunk in resample_counts(3, 200)], float(resample_counts(3, 5)[0].sum())
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
