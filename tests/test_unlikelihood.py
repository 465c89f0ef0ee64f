"""Unlikelihood: its loss and gradient are those of nested loops; rows do not know each other; it never overflows."""

import pytest
import torch

import freerun as fr
from builders import assert_same_gradients, gradients, ragged, refused, seq2seq, transformer
from oracles_methods import unlikelihood


def weighted(batch: fr.Batch) -> fr.Batch:
    return batch.replace(
        weights=torch.rand(batch.mask.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64) + 0.5
    )


@pytest.mark.parametrize("kind", ["gru", "transformer"])
@pytest.mark.parametrize("batch", [ragged, lambda: weighted(ragged())], ids=["ragged", "weights"])
@pytest.mark.parametrize("alpha", [0.5, 1.0])
def test_loss_and_gradient_are_those_of_nested_loops(kind, batch, alpha):
    model, data = seq2seq("gru") if kind == "gru" else transformer(), batch()
    loss = fr.unlikelihood(alpha)(model, data, step=1, key=2)
    expected = unlikelihood(model(data), data, alpha)
    assert loss.item() == pytest.approx(expected.item(), abs=1e-10)
    assert loss.item() > fr.teacher_forcing()(model, data, step=1).item() + 1e-3  # there is something to penalise
    assert_same_gradients(gradients(model, loss), gradients(model, expected))


def test_rows_are_independent():
    model, batch = seq2seq("gru"), ragged()
    full = fr.unlikelihood().run(model, batch, 1, 2)
    rows = [fr.unlikelihood().run(model, batch.select(torch.tensor([r])), 1, 2) for r in range(batch.size)]
    assert full.total.item() == pytest.approx(sum(each.total.item() for each in rows), abs=1e-10)


def test_a_certain_repetition_costs_much_and_stays_finite():
    """A symbol of probability 1 in float32 leaves 1 - p to the other logits: 30 nats, not infinity."""
    ids = torch.tensor([[1, 0]])
    logits = torch.zeros(1, 2, 2).index_put((torch.tensor(0), torch.tensor(1), torch.tensor(1)), torch.tensor(30.0))
    logits.requires_grad_(True)
    outcome = fr.unlikelihood().run(lambda batch: logits, fr.Batch(ids), 0)
    assert outcome.total.item() == pytest.approx(0.6931 + 30 + 30, abs=1e-3)
    outcome.total.backward()
    assert logits.grad is not None
    assert logits.grad.isfinite().all()
    assert logits.grad[0, 1].tolist() == pytest.approx([-2, 2], abs=1e-3)


def test_prompts_and_padding_neither_penalise_nor_are_penalised():
    model, batch = transformer(), ragged()
    assert not batch.mask.all()
    outcome = fr.unlikelihood().run(model, batch, 0)
    elsewhere = batch.made(targets=torch.where(batch.mask, batch.targets, 0))
    assert torch.equal(outcome.total, fr.unlikelihood().run(model, elsewhere, 0).total)


def test_values_have_no_symbols():
    values = torch.zeros(1, 2, 1)
    refused("penalises symbols", fr.unlikelihood(), lambda batch: batch.history, fr.Batch(values), 0)
