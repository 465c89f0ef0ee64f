"""Intervals and verdict words: against scipy, by hand, and by simulation with stated false-alarm rates."""

import numpy as np
import pytest
from scipy import stats

from builders import refused
from freerun.comparison.statistics import Pooled, Ratio, estimate, holm, resample_counts, verdict_word
from freerun.metrics.text import bleu


def test_numbers_without_words_get_students_interval():
    values = [3.1, 2.9, 3.4, 3.0]
    found = estimate(values)
    low, high = stats.t.interval(0.95, 3, np.mean(values), stats.sem(values))
    assert (found.low, found.high) == pytest.approx((low, high))
    assert estimate(values, [3.0] * 4).p_value == pytest.approx(stats.ttest_1samp(values, 3.0).pvalue)


def test_difference_is_paired_by_seed():
    first, second = np.array([30.0, 40.0, 50.0]), np.array([31.0, 41.5, 51.2])
    found = estimate(first.tolist(), second.tolist())
    assert found.value == pytest.approx((first - second).mean())
    assert found.p_value == pytest.approx(stats.ttest_rel(first, second).pvalue)


def test_word_bootstrap_agrees_with_scipy():
    random = np.random.default_rng(3)
    errors, lengths = random.poisson(0.5, 300).astype(float), random.integers(3, 9, 300).astype(float)
    ours = estimate(Ratio(errors[None], lengths[None]), None, resample_counts(300, 4000))

    def rate(e: np.ndarray, n: np.ndarray, axis: int) -> np.ndarray:
        return 100 * e.sum(axis) / n.sum(axis)

    settings = {"paired": True, "n_resamples": 4000, "method": "percentile", "random_state": np.random.default_rng(5)}
    theirs = stats.bootstrap((errors, lengths), rate, **settings)
    # both standard errors have a relative standard deviation of about 1 / sqrt(2 * 4000) = 1.1 %
    assert ours.error == pytest.approx(theirs.standard_error, rel=0.05)
    assert ours.value == pytest.approx(100 * errors.sum() / lengths.sum())


def test_two_way_variance_matches_the_mean_squares():
    # Var(mean) = (MS_seeds + MS_words - MS_interaction) / (seeds * words), Cornfield and Tukey 1956
    random = np.random.default_rng(0)
    part = (random.normal(0, 1, 400) + random.normal(0, 0.3, (4, 1)) + random.normal(0, 0.7, (4, 400)) > 0).astype(
        float
    )
    grand, rows, columns = part.mean(), part.mean(1, keepdims=True), part.mean(0, keepdims=True)
    of_seeds = 400 * ((rows - grand) ** 2).sum() / 3
    of_words = 4 * ((columns - grand) ** 2).sum() / 399
    left = ((part - rows - columns + grand) ** 2).sum() / (3 * 399)
    expected = 100 * np.sqrt((of_seeds + of_words - left) / 1600)
    found = estimate(Ratio(part, np.ones_like(part)), None, resample_counts(400, 4000))
    assert found.error == pytest.approx(expected, rel=0.03)


def test_same_input_same_interval():
    part = np.random.default_rng(1).integers(0, 2, (3, 50)).astype(float)
    one, two = (estimate(Ratio(part, np.ones_like(part)), None, resample_counts(50)) for _ in range(2))
    assert one == two


def test_one_seed_and_equal_arms_decide_nothing():
    ones = np.ones((1, 200))
    found = estimate(Ratio(np.zeros((1, 200)), ones), Ratio(ones, ones), resample_counts(200))
    assert (found.value, found.p_value, found.design) == (-100.0, 1.0, None)
    ones = np.ones((3, 20))
    found = estimate(Ratio(ones, ones), Ratio(ones, ones), resample_counts(20))
    assert (found.value, found.probability_below, found.p_value) == (0.0, 0.5, 1.0)
    one, other = (Ratio(np.ones((2, n)), np.ones((2, n))) for n in (3, 4))
    refused(r"pair by seed and word; got \(2, 3\) against \(2, 4\)", estimate, one, other, resample_counts(3))


def test_holm_by_hand():
    assert holm([0.02, 0.001, 0.04]) == pytest.approx([0.04, 0.003, 0.04])
    assert holm([]) == []
    assert holm([0.6, 0.7]) == [1.0, 1.0]


def simulate(seeds: int, of_seeds: float, trials: int, shift: float = 0.0) -> tuple[float, float]:
    """Share of intervals that hold the truth, and of trials called better, for two arms of the same words.

    A word is wrong where -1 + shift + difficulty + run + noise > 0; runs vary by ``of_seeds``.
    """
    random = np.random.default_rng(seeds)
    counts, ones = resample_counts(300, 300), np.ones((seeds, 300))
    held = better = 0
    for _ in range(trials):
        difficulty = random.normal(0, 1.2, 300)
        arms = [
            difficulty + move + random.normal(0, of_seeds, (seeds, 1)) + random.normal(0, 0.7, (seeds, 300)) > 1.0
            for move in (shift, 0.0)
        ]
        found = estimate(Ratio(arms[0].astype(float), ones), Ratio(arms[1].astype(float), ones), counts)
        held += found.low <= 0 <= found.high
        better += verdict_word(found.low, found.high) == "better"
    return held / trials, better / trials


@pytest.mark.parametrize(("seeds", "of_seeds"), [(5, 0.0), (5, 0.3), (3, 0.3), (2, 0.3)])
def test_false_better_rate_and_coverage(seeds, of_seeds):
    # bars: false "better" <= 5 %, coverage >= 95 %. With 400 trials a true rate of 5 % shows more than 7.75 %
    # (31 of 400) in 1 % of the cases, a true coverage of 95 % less than 92.25 %.
    coverage, false = simulate(seeds, of_seeds, 400)
    assert false <= 0.0775
    assert coverage >= 0.9225


def test_a_real_gain_is_found():
    _, found = simulate(5, 0.05, 50, shift=-0.4)
    assert found > 0.9


def test_a_pooled_score_that_is_a_ratio_is_that_ratio():
    random = np.random.default_rng(11)
    part, whole = random.poisson(1.0, (3, 90)).astype(float), random.integers(3, 9, (3, 90)).astype(float)
    ratio, counts = Ratio(part, whole, 2.0), resample_counts(90)
    pooled = Pooled(np.stack([part, whole], -1), lambda sums: 2.0 * sums[..., 0] / sums[..., 1])
    assert pooled.values == pytest.approx(ratio.values)
    assert pooled.influence() == pytest.approx(ratio.influence(), abs=1e-5)
    one, two = estimate(pooled, None, counts), estimate(ratio, None, counts)
    assert (one.value, one.error) == pytest.approx((two.value, two.error), rel=1e-5)


def test_bleu_without_a_single_four_gram_has_an_interval():
    # outputs of a model's first updates
    random = np.random.default_rng(5)
    arms: list[Pooled] = []
    for _ in range(2):
        parts = np.zeros((2, 60, 10))
        parts[..., :2], parts[..., 6:] = 12, [12, 11, 10, 9]
        parts[..., 2], parts[..., 3] = random.integers(0, 4, (2, 60)), random.integers(0, 2, (2, 60))
        arms.append(Pooled(parts, bleu))
    found = estimate(arms[0], arms[1], resample_counts(60))
    assert found.low < found.value < found.high
    assert 0 < found.p_value <= 1
    # a sentence with nothing right but as many words moves the score down
    assert np.isfinite(arms[0].influence()).all()
    assert arms[0].influence()[arms[0].parts[..., 2:6].sum(-1) == 0].max() < 0


def test_resamples_without_anything_to_count_are_left_out():
    part, whole = np.zeros((2, 3)), np.zeros((2, 3))
    part[:, 0], whole[:, 0], whole[0, 1] = 1.0, 2.0, 1.0
    ratio = Ratio(part, whole)
    assert np.isnan(ratio.resampled(np.array([[0, 0, 3]], dtype=np.float32))).all()
    found = estimate(ratio, None, resample_counts(3))
    assert found.low < found.value == pytest.approx((100 / 3 + 50) / 2)


def test_bleu_from_sums_is_sacrebleus():
    metrics = pytest.importorskip("sacrebleu").metrics
    random = np.random.default_rng(4)
    words = ["a", "b", "c", "d", "e"]
    outputs = [" ".join(random.choice(words, random.integers(1, 9))) for _ in range(60)]
    references = [" ".join(random.choice(words, random.integers(1, 9))) for _ in range(60)]
    one = metrics.BLEU(tokenize="none", force=True, effective_order=True)
    parts = []
    for output, reference in zip(outputs, references, strict=True):
        found = one.sentence_score(output, [reference])
        parts.append([found.sys_len, found.ref_len, *found.counts, *found.totals])
    table = np.array(parts, dtype=float)
    corpus = metrics.BLEU(tokenize="none", force=True)
    # few sentences, so that matches of some n are missing and smoothing counts
    for chosen in ([0], [1, 2], [3], [4, 5, 6], range(10), range(60)):
        expected = corpus.corpus_score([outputs[i] for i in chosen], [[references[i] for i in chosen]]).score
        assert bleu(table[list(chosen)].sum(0)) == pytest.approx(expected)
    assert bleu(np.zeros(10)) == 0
