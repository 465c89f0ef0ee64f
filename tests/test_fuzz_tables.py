"""Changed tables of series are refused by name or read as what they hold: a share of ``fuzz_tables.py``, and all."""

import pytest

from fuzz_tables import run


@pytest.mark.filterwarnings("ignore")
def test_changed_tables_are_refused_or_read_as_what_they_hold():
    counts, failed = run(120, seed=7)
    assert not failed, "\n".join(failed[:5])
    assert min(counts.values()) > 30


@pytest.mark.slow  # 2,000 tables take about a minute
@pytest.mark.filterwarnings("ignore")
def test_two_thousand_changed_tables():
    counts, failed = run(2000, seed=0)
    assert not failed, "\n".join(failed[:20])
    assert min(counts.values()) > 500
