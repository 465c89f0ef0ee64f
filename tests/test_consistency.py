"""Consistency: its loss and gradient are those of a loop; its price is one forward; it does what it is for."""

import sys

import pytest
import torch

import freerun as fr
from builders import assert_same_gradients, gradients, language_model, prompted, ragged, refused, seq2seq, transformer


@pytest.mark.parametrize("build", [seq2seq, transformer])
@pytest.mark.parametrize("weighted", [False, True])
def test_loss_and_gradient_are_those_of_a_loop(build, weighted):
    model, batch = build(), ragged(size=6)
    if weighted:
        batch = batch.replace(weights=0.5 + torch.rand(batch.mask.shape, generator=torch.Generator().manual_seed(0)))
    outcome = fr.consistency(0.4, alpha=0.7).run(model, batch, 1, 2)
    history = outcome.fed.history
    assert torch.equal(history, fr.scheduled_sampling(0.4).run(model, batch, 1, 2).fed.history)
    log_p, log_gold = model(batch.replace(history=history)).log_softmax(-1), model(batch).log_softmax(-1).detach()
    total, penalty = log_p.new_zeros(()), log_p.new_zeros(())
    for b, t in batch.mask.nonzero().tolist():
        weight = 1.0 if batch.weights is None else batch.weights[b, t]
        total = total - weight * log_p[b, t, batch.targets[b, t]]
        penalty = penalty + weight * (log_gold[b, t].exp() * (log_gold[b, t] - log_p[b, t])).sum()
    assert float(penalty.detach()) > 1e-3
    total = total + 0.7 * penalty
    assert outcome.total.item() == pytest.approx(total.item(), rel=1e-10)
    assert_same_gradients(gradients(model, outcome.total), gradients(model, total))


def test_positions_that_count_alone_reach_the_vocabulary_and_chunks_change_nothing(monkeypatch):
    model, batch = language_model(), prompted("right")
    whole = fr.consistency(0.4).run(model, batch, 1, 2)
    monkeypatch.setattr("freerun.rollin.training._WORTH", 1)
    monkeypatch.setattr(sys.modules["freerun.methods.gkd"], "_CHUNK", 7)
    parts = fr.consistency(0.4).run(model, batch, 1, 2)
    assert parts.total.item() == pytest.approx(whole.total.item(), rel=1e-12)
    assert_same_gradients(gradients(model, parts.total), gradients(model, whole.total))


def test_it_costs_one_pass_and_nothing_when_off():
    model, batch = transformer(), ragged()
    plain, on = (m.run(model, batch, 1, 2).report for m in (fr.scheduled_sampling(0.4), fr.consistency(0.4)))
    assert [on[name] - plain[name] for name in ("passes", "work")] == [1, 1]
    calls: list[int] = []
    model.register_forward_pre_hook(lambda *_: calls.append(1))
    off = fr.consistency(1.0).run(model, batch, 1, 2)
    assert (len(calls), off.report["passes"]) == (1, 0)
    without = fr.consistency(0.4, alpha=0.0)(model, batch, 1, 2)
    assert torch.equal(without, fr.scheduled_sampling(0.4)(model, batch, 1, 2))


def test_it_brings_predictions_after_own_entries_nearer_to_those_after_gold():
    """The same updates with and without the penalty; the divergence on a new mixture is at most half as large.

    Of 20 seeds it is 2.2 to 6.6 without the penalty and 0.04 to 0.32 with it, 0.01 to 0.09 of that.
    """
    left = {}
    for alpha in (0.0, 20.0):
        model, batch = seq2seq(), ragged(size=16)
        optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
        for step in range(60):
            optimizer.zero_grad()
            fr.consistency(0.3, alpha=alpha)(model, batch, step, 1).backward()
            optimizer.step()
        with torch.no_grad():
            runs = [fr.consistency(0.3, alpha=each).run(model, batch, 99, 3).total for each in (0.0, 1.0)]
        left[alpha] = float(runs[1] - runs[0])
    assert left[20.0] < left[0.0] / 2


def test_values_have_no_distribution():
    refused("compares distributions", fr.consistency(0.5), lambda b: b.history, fr.Batch(torch.zeros(1, 2, 1)), 0)
