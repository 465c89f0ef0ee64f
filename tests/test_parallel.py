"""Parallel scheduled sampling against its loop, and against sequential scheduled sampling where it equals it."""

import pytest
import torch

import freerun as fr
import oracles_methods as naive
from builders import ragged
from freerun.keys import fold
from oracles import coins, full_prefix
from test_two_pass import Watched, lively

KEY, STEP, RATIO = 5, 3, 0.3


def prompted(size: int = 6, time: int = 7) -> fr.Batch:
    """Targets after prompts of differing lengths, which may not be replaced."""
    batch = ragged(size, time)
    eligible = batch.mask & (torch.arange(time) >= (torch.arange(size) % 3)[:, None])
    return batch.replace(eligible=eligible)


BATCHES = {"ragged": lambda: ragged(6), "prompts": prompted}


@pytest.mark.parametrize("name", list(BATCHES))
@pytest.mark.parametrize("draw", ["greedy", "sample"])
@pytest.mark.parametrize("redraw", [True, False])
def test_the_history_is_the_literal_loops(redraw, draw, name):
    model, batch = lively(), BATCHES[name]()
    before = batch.history.clone()
    for passes in (1, 2, 4, 9):
        found = fr.parallel(RATIO, passes=passes, redraw=redraw, draw=draw).transform(model, batch, STEP, KEY)
        expected = naive.parallel(model, batch, RATIO, passes, redraw=redraw, draw=draw, key=KEY, step=STEP)
        assert torch.equal(found.history, expected)
    assert torch.equal(batch.history, before)


@pytest.mark.parametrize("name", list(BATCHES))
def test_with_shared_randomness_the_first_k_entries_are_those_of_scheduled_sampling(name):
    model, batch = lively(), BATCHES[name]()
    exact = full_prefix(model, batch, coins("token", batch, RATIO, KEY, STEP), "sample", fold(KEY, "draw", STEP))
    place = batch.replaceable.cumsum(1) - 1
    differing = 0
    for passes in range(1, batch.time + 1):
        method = fr.parallel(RATIO, passes=passes, redraw=False)
        outcome = method.run(model, batch, STEP, KEY)
        assert torch.equal(outcome.fed.history[place < passes], exact[place < passes])
        differing += int((outcome.fed.history != exact).sum())
        same = fr.scheduled_sampling(RATIO, engine=passes).transform(model, batch, STEP, KEY)
        assert torch.equal(outcome.fed.history, same.history)
    assert differing > 0  # fewer passes are an approximation
    assert torch.equal(outcome.fed.history, exact)
    assert outcome.report["exact"] == 1.0
    sequential = fr.scheduled_sampling(RATIO).run(model, batch, STEP, KEY)
    assert torch.equal(sequential.fed.history, exact)
    torch.testing.assert_close(sequential.loss, outcome.loss, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", list(BATCHES))
def test_with_redrawn_randomness_entry_n_has_the_coin_and_noise_of_pass_n(name):
    model, batch = lively(), BATCHES[name]()
    exact = naive.sequential_redrawn(model, batch, RATIO, draw="sample", key=KEY, step=STEP)
    place = batch.replaceable.cumsum(1) - 1
    for passes in range(1, batch.time + 1):
        history = fr.parallel(RATIO, passes=passes).transform(model, batch, STEP, KEY).history
        assert torch.equal(history[place < passes], exact[place < passes])
    assert torch.equal(history, exact)
    shared = fr.parallel(RATIO, passes=batch.time, redraw=False).transform(model, batch, STEP, KEY).history
    assert not torch.equal(shared, exact)


def test_passes_stop_at_the_longest_row_and_run_in_evaluation_mode():
    model, batch = Watched(lively(dropout=0.3)), prompted()
    longest = int(batch.replaceable.sum(1).max())
    outcome = fr.parallel(0.0, passes=50).run(model, batch, STEP, KEY)
    assert len(model.calls) == longest + 1
    assert outcome.report["passes"] == longest
    assert outcome.report["replaced"] == outcome.report["eligible"]
    assert [call[2:] for call in model.calls] == [(False, False)] * longest + [(True, True)]
    cut = fr.parallel(0.0, passes=longest - 1).run(model, batch, STEP, KEY)
    assert (cut.report["exact"], cut.report["certified"]) == (0.0, "no")


def test_values_are_drawn_in_parallel_too():
    torch.manual_seed(2)
    model = fr.models.Seq2SeqModel(2, 7, 4).double()
    values = torch.randn(3, 5, 4, dtype=torch.float64)
    batch = fr.Batch(values, values, torch.ones(3, 5, dtype=torch.bool), torch.randn(3, 5, 2, dtype=torch.float64))
    exact = fr.scheduled_sampling(RATIO, gradient="none").transform(model, batch, STEP, KEY)
    found = fr.parallel(RATIO, passes=5, redraw=False).transform(model, batch, STEP, KEY)
    assert torch.allclose(found.history, exact.history, rtol=1e-12)
    assert not found.history.requires_grad
