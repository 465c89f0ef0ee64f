"""Intervals and comparisons of arms over seeds and test words.

Runs are crossed with words: every seed of every arm is tested on the same words. A difference of two arms then varies
for two reasons, other seeds and other words, and its variance is the sum of both, less the part that each of them
holds (two-way random effects; Owen 2007 for why resampling both at once counts that part three times):

    variance = V_seeds + V_words - interaction / (seeds * words)

``V_words`` comes from a bootstrap over words with the seeds as they are (the same resampled words for every arm and
seed). ``V_seeds`` comes from an analysis of variance of arms and seeds (``seed_variance``): two or three seeds of two
arms alone cannot tell a spread from luck, a third arm's seeds help. The quantile is Student's, with Satterthwaite's
degrees of freedom: a plain percentile bootstrap over five seeds is far too narrow.

The interaction of a ratio comes from how each word moves it. A median is not smooth, so its interaction comes from
the bootstrap itself: over resampled words a seed's own score varies by ``(words + interaction) / words``, the mean
over seeds by ``(words + interaction / seeds) / words``, and the difference of the two says what the interaction is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from freerun.errors import UserError

CONFIDENCE = 0.95
POWER = 0.8
"""How often a difference is found that a design "could have seen"."""

_OWN = 0.3
"""Share of the pair's own spread in its variance over seeds."""


@dataclass(frozen=True)
class Design:
    """What a difference of two arms varies by, so what comparisons of this size can show.

    Args:
        arms: arms whose spread is pooled, 2 or 3.
        spread: variance of the difference between two runs of one seed.
        of_items: variance of the difference over other test items, which more seeds leave.
    """

    arms: int
    spread: float
    of_items: float = 0.0

    def detectable(self, seeds: int) -> float:
        """Return the difference that ``seeds`` seeds show in four of five comparisons; infinite for one seed.

        ``(t(0.975, f) + t(0.8, f)) * sqrt(V)``, with V and its degrees of freedom f as in ``estimate``.

        >>> [round(Design(3, 2.0).detectable(seeds), 1) for seeds in (2, 3, 5, 10)]
        [5.6, 3.5, 2.3, 1.5]
        """
        if seeds < 2:
            return float("inf")
        own = (3 if self.arms == 3 else 1) * (seeds - 1)
        widening = float(_widening(seeds, own)) if self.arms == 3 else 1.0
        of_seeds = widening * self.spread / seeds
        total = of_seeds + self.of_items
        freedom = own * (total / of_seeds) ** 2 if of_seeds > 0 else 1e9
        return float((stats.t.ppf(0.5 + CONFIDENCE / 2, freedom) + stats.t.ppf(POWER, freedom)) * total**0.5)

    def seeds_needed(self, difference: float, most: int = 100) -> int | None:
        """Return the fewest seeds that show a difference, None if ``most`` do not: then the items are too few.

        >>> Design(3, 2.0).seeds_needed(2.0), Design(3, 2.0, of_items=4.0).seeds_needed(2.0)
        (7, None)
        """
        return next((seeds for seeds in range(2, most + 1) if self.detectable(seeds) <= difference), None)


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
        freedom: degrees of freedom of the interval.
        design: what the difference varies by; None for a mean, and for one seed.
    """

    value: float
    low: float | None = None
    high: float | None = None
    error: float | None = None
    probability_below: float | None = None
    p_value: float = 1.0
    freedom: float = np.inf
    design: Design | None = None

    def interval(self, level: float) -> tuple[float | None, float | None]:
        """Return the interval that leaves out zero exactly where ``p_value < level``.

        >>> [round(end, 3) for end in estimate([1.0, 2.0, 3.0]).interval(0.5)]
        [1.529, 2.471]
        """
        if self.error is None:
            return None, None
        half = float(stats.t.ppf(1 - level / 2, self.freedom)) * self.error if self.error else 0.0
        return self.value - half, self.value + half


def estimate(
    score: ItemScore | Sequence[float],
    baseline: ItemScore | Sequence[float] | None = None,
    counts: Sequence[NDArray[np.float32]] = (),
    *,
    third: ItemScore | Sequence[float] | None = None,
    log: bool = False,
) -> Estimate:
    """Mean over seeds of a score, or of its difference from a baseline, paired by seed and word.

    ``score - baseline``, interval ``mean +- t(0.975, freedom) * sqrt(V_seeds + V_words - interaction)``.
    Numbers without words (a loss, seconds) vary over seeds only.

    Args:
        score: a Ratio, Pooled or Median, or one number a seed.
        baseline: the same kind for the same seeds (and words); None: the score itself.
        counts: from ``resample_counts``; needed for all but numbers without words.
        third: another arm, whose spread over seeds is pooled with that of these two.
        log: True to average logarithms, so that a difference is the logarithm of a ratio; scores must be positive.

    Raises:
        UserError: where seeds or words of the two do not pair.

    Not a test of one run against another: with one seed the interval speaks of words only, ``p_value`` is 1.

    >>> found = estimate([1.0, 2.0, 3.0])
    >>> found.value, round(found.low, 3), round(found.high, 3)
    (2.0, -0.484, 4.484)
    >>> estimate([1.0]).low is None
    True
    >>> ratio = estimate([1.0, 2.0, 4.0], [4.0, 8.0, 16.0], log=True)
    >>> round(float(np.exp(ratio.value)), 6)
    0.25
    """
    arms = [_values(score, log)]
    arms += [_values(_paired(score, other), log) for other in (baseline, third) if other is not None]
    values = arms[0] if baseline is None else arms[0] - arms[1]
    seeds = len(values)
    spread, freedom, widening = 0.0, float(seeds - 1), 1.0
    if seeds > 1 and baseline is not None:
        found = seed_variance(np.stack(arms))
        spread, freedom, widening = (float(each) for each in found)
    elif seeds > 1:
        spread = float(values.var(ddof=1))
    count = len(arms) if baseline is not None else 0
    if not isinstance(score, ItemScore):
        if seeds == 1:
            return Estimate(float(values[0]))
        return _student(float(values.mean()), widening * spread / seeds, freedom, Design(count, spread))
    other = baseline if isinstance(baseline, ItemScore) else None
    replicates = _replicates(score, other, counts, log)
    if (isinstance(score, Median) or log) and not np.isfinite(replicates).all():
        return Estimate(float(values.mean()))  # nearly half the windows diverged: an interval to infinity is none
    # words that hold nothing to count (blocks without a whole word) may be all that is drawn
    of_words = float(np.nanvar(replicates.mean(1), ddof=1))
    if seeds == 1:
        return _student(float(values[0]), of_words, np.inf, None)
    shared = _interaction(score, other, replicates, log)
    # what both hold, sigma^2(seed x word) / (seeds * words), is counted once; neither falls below it
    of_seeds, of_items = max(widening * spread / seeds, shared), max(of_words - shared, 0.0)
    total = of_seeds + of_items
    freedom = freedom * (total / of_seeds) ** 2 if of_seeds > 0 else np.inf
    design = Design(count, max(spread, shared * seeds / widening), of_items)
    return _student(float(values.mean()), total, freedom, design)


def seed_variance(arms: Array) -> tuple[Array, Array, Array]:
    """Variance over seeds of the difference of the first two of some arms: one run of each; divide it by the seeds.

    Of two arms it is the variance of their differences, with S-1 degrees of freedom: Student's paired test. A third
    arm lends its seeds, in an analysis of variance of arms and seeds: the mean square of what arm and seed leave, with
    (A-1)(S-1) degrees of freedom. Where the seeds' own mean square is below twice that (it nearly always is: runs of
    one seed have little in common), both are pooled, with A(S-1) (pooling after a preliminary test: Bancroft 1944).
    Arms may deviate unequally, so three tenths of the variance stay the pair's own, and a factor widens it: at 5 %
    false alarms are at most 5.5 % where one arm's seeds deviate twice as much as the others' (tests/test_power.py).

    Args:
        arms: (..., arms, seeds) scores; 2 or 3 arms.

    Returns:
        (...) variance, its degrees of freedom, and the factor that widens it.

    >>> variance, freedom, widening = seed_variance(np.array([[1.0, 2.0, 3.0], [2.0, 2.0, 5.0], [0.0, 3.0, 3.0]]))
    >>> round(float(variance), 3), int(freedom), round(float(widening), 2)
    (1.467, 4, 1.74)
    """
    count, seeds = arms.shape[-2:]
    own = (arms[..., 0, :] - arms[..., 1, :]).var(-1, ddof=1)
    if count == 2:
        return own, np.full(own.shape, seeds - 1), np.ones(own.shape)
    left = arms - arms.mean(-1, keepdims=True) - arms.mean(-2, keepdims=True) + arms.mean((-2, -1), keepdims=True)
    of_left, of_seeds = (left**2).sum((-2, -1)), count * (seeds - 1) * arms.mean(-2).var(-1, ddof=1)
    both = of_seeds < 2 * of_left / (count - 1)  # of mean squares
    freedom = np.where(both, count, count - 1) * (seeds - 1)
    error = np.where(both, of_left + of_seeds, of_left) / freedom
    return (1 - _OWN) * 2 * error + _OWN * own, freedom, _widening(seeds, freedom)


def _widening(seeds: int, freedom: Any) -> Array:
    """Widen a variance so much that a test at 5 % is one at the level that simulations found."""
    level = 0.0232 if seeds == 2 else 0.0215
    return (stats.t.ppf(1 - level / 2, freedom) / stats.t.ppf(0.5 + CONFIDENCE / 2, freedom)) ** 2


def _values(score: ItemScore | Sequence[float], log: bool = False) -> Array:
    values = score.values if isinstance(score, ItemScore) else np.asarray(score, dtype=np.float64)
    return np.log(values) if log else values


def _paired(score: ItemScore | Sequence[float], other: ItemScore | Sequence[float]) -> ItemScore | Sequence[float]:
    first = score.shape if isinstance(score, ItemScore) else (len(score),)
    second = other.shape if isinstance(other, ItemScore) else (len(other),)
    if first != second:
        raise UserError(f"scores pair by seed and word; got {first} against {second} (seeds, words)")
    return other


def _replicates(score: ItemScore, other: ItemScore | None, counts: Sequence[NDArray[np.float32]], log: bool) -> Array:
    """(resamples, seeds) the score, or the difference, over resampled words."""
    if not counts:
        raise UserError("a score over words needs counts=resampled_words(words); got none")

    def resampled(each: ItemScore) -> Array:
        found = np.concatenate([each.resampled(chunk) for chunk in counts])
        return np.log(found) if log else found

    with np.errstate(invalid="ignore", divide="ignore"):  # inf - inf: both diverged
        return resampled(score) if other is None else resampled(score) - resampled(other)


def _interaction(score: ItemScore, other: ItemScore | None, replicates: Array, log: bool) -> float:
    if isinstance(score, Median) or isinstance(other, Median):
        own, mean = replicates.var(0, ddof=1).mean(), replicates.mean(1).var(ddof=1)
        return max(0.0, float(own - mean)) / (replicates.shape[1] - 1)

    def influence(each: Ratio | Pooled) -> Array:
        return each.influence() / each.values[:, None] if log else each.influence()

    moved = influence(score) if other is None else influence(score) - influence(other)
    seeds, words = moved.shape
    if words < 2:
        return 0.0
    left = moved - moved.mean(0, keepdims=True) - moved.mean(1, keepdims=True) + moved.mean()
    return float((left**2).sum()) / ((seeds - 1) * (words - 1)) / (seeds * words)


def _student(value: float, variance: float, freedom: float, design: Design | None) -> Estimate:
    """An estimate of so many degrees of freedom; without a design it is of one seed, and decides nothing."""
    error = float(np.sqrt(variance))
    kept = design if design is not None and design.arms else None
    if error == 0.0:
        below = 0.5 if value == 0 else float(value < 0)
        certain = design is not None and value != 0
        return Estimate(value, value, value, 0.0, below, 0.0 if certain else 1.0, design=kept)
    law = stats.t(freedom) if np.isfinite(freedom) else stats.norm()
    half = float(law.ppf(0.5 + CONFIDENCE / 2)) * error
    p_value = 1.0 if design is None else 2.0 * float(law.sf(abs(value) / error))
    below = float(law.cdf(-value / error))
    return Estimate(value, value - half, value + half, error, below, p_value, freedom, kept)


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


def holm_levels(p_values: Sequence[float]) -> list[float]:
    """Return the level at which Holm's rule tests each of some p-values: it rejects exactly those below their level.

    ``0.05 / (m - j + 1)`` for the j-th smallest, up to the first that is not rejected, and that one's for the rest. An
    interval at this level (``Estimate.interval``) leaves out zero exactly where the rule rejects.

    Args:
        p_values: the family, in any order.

    >>> [round(level, 4) for level in holm_levels([0.01, 0.04, 0.03])]
    [0.0167, 0.025, 0.025]
    """
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    levels = [0.0] * len(p_values)
    rejected, level = True, 1 - CONFIDENCE
    for rank, index in enumerate(order):
        if rejected:
            level = (1 - CONFIDENCE) / (len(order) - rank)
            rejected = p_values[index] < level
        levels[index] = level
    return levels


def verdict_word(low: float | None, high: float | None, *, higher: bool = False, margin: float | None = None) -> str:
    """Return what an interval of a difference decides: better, worse, as good or undecided.

    "As good" needs the whole interval within the margin; better and worse need it on one side of zero, and not within
    the margin, below which a difference does not matter.

    Args:
        low: lower end; None: there is no interval.
        high: upper end.
        higher: True if more of the score is better.
        margin: the largest difference that does not matter; None: each does.

    >>> verdict_word(-0.4, -0.1), verdict_word(-0.4, 0.1), verdict_word(-0.4, 0.1, margin=0.5)
    ('better', 'undecided', 'as good')
    """
    if low is None or high is None:
        return "undecided"
    if margin is not None and -margin <= low and high <= margin:
        return "as good"
    if low > 0 or high < 0:
        return "better" if (low > 0) == higher else "worse"
    return "undecided"


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
