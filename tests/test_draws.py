"""Draws: the right law under both couplings, truncation, and what never happens. False-alarm rates are stated."""

import pytest
import torch
from scipy import stats

from builders import refused
from freerun import draws
from freerun.errors import UserError

N = 50_000


def drawn(draw: draws.Draw, logits: torch.Tensor, n: int = N, key: int = 4) -> torch.Tensor:
    rows, positions = torch.arange(n), torch.zeros(n, dtype=torch.long)
    noise = draw.noise(key, rows, positions, logits.numel())
    return draw.choose(logits.expand(n, -1), noise)


@pytest.mark.parametrize("coupling", ["inverse_cdf", "gumbel"])
@pytest.mark.parametrize("vocab", [5, 1500])
def test_frequencies_follow_the_softmax(coupling, vocab):
    """Chi-square against softmax, cells below 5 expected pooled; false-alarm rate 1e-4 a case."""
    n = N if vocab == 5 else 4000
    logits = torch.randn(vocab, generator=torch.Generator().manual_seed(1)) * 2
    counts = torch.bincount(drawn(draws.Sample(coupling=coupling), logits, n), minlength=vocab).double()
    expected = logits.double().softmax(0) * n
    large = expected >= 5
    observed = [*counts[large].tolist(), float(counts[~large].sum())]
    pooled = [*expected[large].tolist(), float(expected[~large].sum())]
    if pooled[-1] < 5:
        observed, pooled = observed[:-1], [w * sum(observed[:-1]) / sum(pooled[:-1]) for w in pooled[:-1]]
    assert stats.chisquare(observed, pooled).pvalue > 1e-4


@pytest.mark.parametrize("coupling", ["inverse_cdf", "gumbel"])
def test_temperature_top_k_and_top_p_have_their_laws(coupling):
    """Chi-square against the truncated, renormalised law; false-alarm rate 1e-4 each."""
    logits = torch.tensor([0.0, 1.0, 2.0, -1.0, 0.5])
    cases = {
        draws.Sample(temperature=0.5, coupling=coupling): (logits / 0.5).softmax(0),
        draws.Sample(top_k=2, coupling=coupling): logits.masked_fill(logits < 1.0, -torch.inf).softmax(0),
        # softmax: .60 .22 .13 ... - the set that reaches .7 is the first two
        draws.Sample(top_p=0.7, coupling=coupling): logits.masked_fill(logits < 1.0, -torch.inf).softmax(0),
    }
    for draw, law in cases.items():
        counts = torch.bincount(drawn(draw, logits), minlength=5)
        assert int(counts[law == 0].sum()) == 0
        kept = law > 0
        expected = (law[kept].double() / law[kept].double().sum() * N).numpy()
        assert stats.chisquare(counts[kept].numpy(), expected).pvalue > 1e-4


def test_a_symbol_of_probability_zero_is_never_drawn_even_at_the_edges():
    for vocab in (4, 2000):
        logits = torch.full((3, vocab), -torch.inf)
        logits[:, [1, vocab - 2]] = 0.0
        for dtype in (torch.float32, torch.float64):
            edges = torch.tensor([0.0, 0.5, 1 - 2.0**-53], dtype=torch.float64)
            found = draws.Sample().choose(logits.to(dtype), edges)
            assert found.tolist()[0] == 1
            assert found.tolist()[2] == vocab - 2
            assert set(found.tolist()) <= {1, vocab - 2}


def test_blocks_and_one_scan_choose_alike():
    g = torch.Generator().manual_seed(0)
    logits, u = torch.randn(500, 1500, generator=g, dtype=torch.float64) * 3, torch.rand(500, generator=g).double()
    mass = logits.softmax(-1)
    plain = torch.searchsorted(mass.cumsum(-1), u[:, None] * mass.sum(-1, keepdim=True), right=True).squeeze(1)
    assert torch.equal(draws.Sample().choose(logits, u), plain)


def test_nan_logits_give_some_symbol_and_no_crash():
    for vocab in (4, 2000):
        for coupling in ("inverse_cdf", "gumbel"):
            found = drawn(draws.Sample(coupling=coupling), torch.full((vocab,), torch.nan), 3)
            assert bool(((found >= 0) & (found < vocab)).all())


def test_noise_is_a_function_of_row_and_position():
    for coupling in ("inverse_cdf", "gumbel"):
        draw = draws.Sample(coupling=coupling)
        rows, positions = torch.tensor([0, 1, 5]), torch.tensor([2, 2, 0])
        whole = draw.noise(1, rows, positions, 7)
        part = draw.noise(1, rows[[2]], positions[[2]], 7)
        # vectorised and at a vector's end, the logarithm of Gumbel noise may differ in its last bit
        torch.testing.assert_close(whole[[2]], part, rtol=1e-15, atol=0)
        assert bool(whole.isfinite().all())


def test_half_precision_logits_are_drawn_in_float32():
    logits = torch.tensor([0.0, 3.0, 1.0])
    noise = draws.Sample().noise(0, torch.arange(100), torch.zeros(100, dtype=torch.long), 3)
    rounded = logits.bfloat16()
    a = draws.Sample().choose(rounded.expand(100, -1), noise)
    assert torch.equal(a, draws.Sample().choose(rounded.float().expand(100, -1), noise))


def test_bad_arguments_are_all_named_at_once():
    with pytest.raises(UserError) as caught:
        draws.Sample(temperature=0.0, top_k=-1, top_p=1.5, coupling="cdf")
    text = str(caught.value)
    assert all(word in text for word in ("temperature must be above 0", "top_k", "top_p", "coupling"))
    refused("draw must be one of greedy, sample, soft_argmax, point", draws.resolve, "argmax")


def test_signatures_say_what_is_not_the_default():
    assert repr(draws.Sample(top_k=5)) == "sample(top_k=5)"
    assert repr(draws.Greedy()) == "greedy()"
