"""Counter-based randomness: the same everywhere, uniform, independent. False-alarm rates are stated with each test."""

import pytest
import torch
from scipy import stats

from freerun.keys import bits, fold, uniform

# every statistical test here draws from fixed keys, so it passes or fails for good; the rate says how often a
# perfect generator would have failed it
FALSE_ALARM = 1e-4


def splitmix_by_hand(key: int, *counters: int) -> int:
    """The same hash on plain Python integers."""
    mask, golden = (1 << 64) - 1, 0x9E3779B97F4A7C15

    def mix(z: int) -> int:
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
        return z ^ (z >> 31)

    state = mix((key + golden) & mask)
    for counter in counters:
        state = mix((state + (counter + 1) * golden) & mask)
    return state


def test_tensor_hash_equals_the_integer_one():
    rows, positions = torch.tensor([0, 1, 77, 2**40]), torch.tensor([0, 5, 10**6])
    found = bits(123456789, rows[:, None], positions)
    for i, row in enumerate(rows.tolist()):
        for j, position in enumerate(positions.tolist()):
            assert int(found[i, j]) & ((1 << 64) - 1) == splitmix_by_hand(123456789, row, position)


def test_the_finaliser_is_the_published_splitmix64():
    # the first numbers of SplitMix64 seeded with 0, as printed by its reference implementation
    assert splitmix_by_hand(-0x9E3779B97F4A7C15 & ((1 << 64) - 1), 0) == 0xE220A8397B1DCDAF


def test_floats_of_two_widths_are_one_number_rounded_down():
    rows = torch.arange(10_000)
    wide, narrow = uniform(3, rows), uniform(3, rows, dtype=torch.float32)
    assert bool((narrow.double() <= wide).all())
    assert float((wide - narrow.double()).max()) < 2.0**-24
    assert float(narrow.max()) < 1.0


def test_a_longer_sequence_has_the_same_prefix_and_rows_stand_for_themselves():
    rows = torch.tensor([4, 9, 2])
    short, long = uniform(1, rows[:, None], torch.arange(5)), uniform(1, rows[:, None], torch.arange(50))
    assert torch.equal(short, long[:, :5])
    assert torch.equal(uniform(1, rows[[2, 0]][:, None], torch.arange(5)), short[[2, 0]])


def test_folding_separates_labels_orders_and_keys():
    seen = {
        fold(0), fold(1), fold(-1), fold(0, 0), fold(0, 1), fold(0, "gate"), fold(0, "draw"), fold(0, "gate", 1),
        fold(0, 1, "gate"), fold(0, "gate", "1"), fold(fold(0, "gate"), 1, 2),
    }  # fmt: skip
    assert len(seen) == 11
    assert all(0 <= key < 2**63 for key in seen)


@pytest.mark.parametrize("axis", ["row", "position", "step", "key"])
def test_numbers_are_uniform_along_every_counter(axis):
    """Chi-square over 256 cells and 200,000 numbers; false-alarm rate 1e-4 a test."""
    n = torch.arange(200_000)
    zero = torch.tensor(0)
    if axis in ("row", "position"):
        u = uniform(5, n, zero) if axis == "row" else uniform(5, zero, n)
    else:
        keys = [fold(5, "gate", i) if axis == "step" else fold(i, "gate", 5) for i in range(500)]
        u = torch.stack([uniform(k, torch.arange(400)) for k in keys]).flatten()
    counts = torch.bincount((u * 256).long(), minlength=256).numpy()
    assert stats.chisquare(counts).pvalue > FALSE_ALARM


@pytest.mark.parametrize("lag", ["row", "position", "step", "label"])
def test_neighbours_are_independent(lag):
    """Chi-square of pairs on a 16 x 16 grid, 200,000 pairs; false-alarm rate 1e-4 a test."""
    rows, positions = torch.arange(2_000)[:, None], torch.arange(100)
    a = uniform(fold(8, "gate", 0), rows, positions)
    b = {
        "row": lambda: uniform(fold(8, "gate", 0), rows + 1, positions),
        "position": lambda: uniform(fold(8, "gate", 0), rows, positions + 1),
        "step": lambda: uniform(fold(8, "gate", 1), rows, positions),
        "label": lambda: uniform(fold(8, "draw", 0), rows, positions),
    }[lag]()
    cells = torch.bincount(((a * 16).long() * 16 + (b * 16).long()).flatten(), minlength=256).numpy()
    assert stats.chisquare(cells).pvalue > FALSE_ALARM


def test_every_bit_is_fair():
    """64 bits of 100,000 numbers, binomial; false-alarm rate 1e-4 for all bits together."""
    raw = bits(2, torch.arange(100_000))
    for bit in range(64):
        ones = int(((raw >> bit) & 1).sum())
        assert stats.binomtest(ones, 100_000).pvalue > FALSE_ALARM / 64, bit
