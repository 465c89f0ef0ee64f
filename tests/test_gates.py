"""Gates: marginals, joint laws, eligibility, determinism. Random tests state their false-alarm rate."""

from __future__ import annotations

import pytest
import torch
from scipy import stats

import freerun as fr
from freerun import gates

ROWS, TIME = 4000, 5


def batch(rows: int = ROWS, time: int = TIME) -> fr.Batch:
    ids = torch.zeros(rows, time, dtype=torch.long)
    return fr.Batch(ids, ids, torch.ones(rows, time, dtype=torch.bool))


@pytest.mark.parametrize("ratio", [0.05, 0.5, 0.9])
def test_token_coins_keep_gold_at_every_position_with_the_ratio(ratio):
    """Binomial per position; false-alarm rate 1e-4 a case."""
    keep = gates.Token()(batch(), ratio, key=11)
    for t in range(TIME):
        assert stats.binomtest(int(keep[:, t].sum()), ROWS, ratio).pvalue > 1e-4 / TIME


def test_coin_granularity_changes_the_joint_law_not_the_margins():
    """P(all gold) is ratio^5 for token coins and ratio for sequence coins; false-alarm rate 1e-4 each."""
    for gate, wanted in ((gates.Token(), 0.5**TIME), (gates.Sequence(), 0.5)):
        whole = int(gate(batch(), 0.5, key=3).all(1).sum())
        assert stats.binomtest(whole, ROWS, wanted).pvalue > 1e-4


def test_step_coins_are_shared_by_rows_and_batch_coins_by_all():
    kept = torch.stack([gates.Timestep()(batch(3), 0.5, key) for key in range(400)])
    assert bool((kept == kept[:, :1]).all())
    assert stats.binomtest(int(kept[:, 0].sum()), 400 * TIME, 0.5).pvalue > 1e-4
    kept = torch.stack([gates.Batchwise()(batch(3), 0.5, key) for key in range(2000)])
    assert bool((kept == kept[:, :1, :1]).all())
    assert stats.binomtest(int(kept[:, 0, 0].sum()), 2000, 0.5).pvalue > 1e-4


@pytest.mark.parametrize("name", ["token", "step", "sequence", "batch", "prefix"])
def test_ratio_one_keeps_all_and_ratio_zero_none(name):
    gate = gates.resolve(name)
    assert bool(gate(batch(), 1.0, 0).all())
    assert not bool(gate(batch(), 0.0, 0).any())


def test_a_falling_ratio_only_gives_gold_up():
    high, low = (gates.Token()(batch(), ratio, key=1) for ratio in (0.7, 0.4))
    assert bool((high | ~low).all())


def test_prefix_counts_eligible_entries():
    eligible = torch.tensor([[False, True, True, True, True], [True, True, False, False, False]])
    b = batch(2).replace(eligible=eligible)
    keep = gates.Prefix()(b, 0.5, 0)
    assert keep[eligible].tolist() == [True, True, False, False, True, False]
    ten = gates.Prefix()(batch(1, 10), 0.3, 0)
    assert int(ten.sum()) == 3  # 0.3 * 10 is 2.999... in floating point


def test_every_tau():
    assert gates.every(3)(batch(1, 7), 0.0, 0)[0].tolist() == [False, False, True] * 2 + [False]
    coins = gates.Token()(batch(), 0.4, 7)
    keep = gates.every(2)(batch(), 0.4, 7)
    assert bool(keep[:, 1::2].all())
    assert torch.equal(keep[:, ::2], coins[:, ::2])
    with pytest.raises(fr.UserError, match="tau must be at least 2"):
        gates.every(1)


def test_unknown_names_list_the_known_ones():
    with pytest.raises(fr.UserError, match="coin must be one of token, step, sequence, batch, prefix, every"):
        gates.resolve("tokens")
