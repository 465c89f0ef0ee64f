"""RAML: the exact law of the number of edits, of their places and symbols; loss and gradient of nested loops."""

import math
from collections import Counter
from itertools import product

import pytest
import torch

import freerun as fr
from builders import assert_same_gradients, gradients, language_model, prompted, ragged, refused, seq2seq, transformer
from freerun.keys import fold, uniform
from oracles_methods import cross_entropy

KEY, STEP = 5, 3


def edited(batch: fr.Batch, tau: float, symbols: list[int]) -> torch.Tensor:
    """Gold with its edits, one entry at a time; only ``symbols`` are edited, and written."""
    made, odds = batch.targets.clone(), (len(symbols) - 1) * math.exp(-1 / tau)
    for b in range(batch.size):
        for t in range(batch.time):
            row, position, gold = batch.row_numbers[b], torch.tensor(t), int(batch.targets[b, t])
            if not bool(batch.replaceable[b, t]) or gold not in symbols:
                continue
            if float(uniform(fold(KEY, "gate", STEP), row, position)) < odds / (1 + odds):
                others = [symbol for symbol in symbols if symbol != gold]
                made[b, t] = others[int(float(uniform(fold(KEY, "noise", STEP), row, position)) * len(others))]
    return made


@pytest.mark.parametrize("end", [0, None])
@pytest.mark.parametrize(
    ("model", "batch"),
    [(seq2seq, ragged), (transformer, ragged), (language_model, lambda: prompted("left"))],
    ids=["lstm", "transformer", "language model"],
)
def test_history_targets_loss_and_gradient_are_those_of_nested_loops(model, batch, end):
    model, batch = model(), batch()
    outcome = fr.raml(0.7, end=end).run(model, batch, STEP, KEY)
    made = edited(batch, 0.7, list(range(0 if end is None else 1, 5)))
    assert torch.equal(outcome.fed.history, torch.where(batch.replaceable, made, batch.history))
    assert torch.equal(outcome.fed.targets[batch.mask], made[batch.mask])
    assert not torch.equal(outcome.fed.history, batch.history)
    fed = batch.replace(history=outcome.fed.history, targets=torch.where(batch.mask, made, batch.targets))
    expected = cross_entropy(model(fed), fed)
    assert outcome.loss.item() == pytest.approx(expected.item(), rel=1e-10)
    assert_same_gradients(gradients(model, outcome.loss), gradients(model, expected))


def law(gold: tuple[int, ...], tau: float, symbols: int, weighted: bool) -> dict[tuple[int, ...], float]:
    """q(y~ | y) by enumeration of all sequences; unweighted, each number of edits and place counts once."""
    masses = {}
    for other in product(range(symbols), repeat=len(gold)):
        edits = sum(a != b for a, b in zip(other, gold, strict=True))
        masses[other] = math.exp(-edits / tau) / (1 if weighted else (symbols - 1) ** edits)
    total = sum(masses.values())
    return {other: mass / total for other, mass in masses.items()}


@pytest.mark.parametrize("weighted", [True, False])
@pytest.mark.parametrize("tau", [0.4, 0.9, 3.0])
def test_sequences_and_numbers_of_edits_have_the_exact_law(tau, weighted):
    """Chi-square over all 27 sequences of three symbols and over the numbers of edits; false alarms 1e-4 each."""
    from scipy import stats

    rows, gold = 40_000, (1, 0, 2)
    method = fr.raml(tau, weighted=weighted, vocabulary=3)
    fed = method.transform(lambda batch: batch, fr.Batch(torch.tensor([gold]).expand(rows, 3)), STEP, KEY)
    assert torch.equal(fed.history, fed.targets)
    found, exact = Counter(map(tuple, fed.targets.tolist())), law(gold, tau, 3, weighted)
    observed, expected = [found[each] for each in exact], [rows * mass for mass in exact.values()]
    assert stats.chisquare(observed, expected).pvalue > 1e-4

    numbers = torch.bincount((fed.targets != torch.tensor(gold)).sum(1), minlength=4).tolist()
    masses = [math.comb(3, e) * (2**e if weighted else 1) * math.exp(-e / tau) for e in range(4)]
    assert stats.chisquare(numbers, [rows * mass / sum(masses) for mass in masses]).pvalue > 1e-4


def test_ends_prompts_and_padding_stay():
    batch = ragged(size=50)
    fed = fr.raml(5.0, vocabulary=5, end=0).transform(lambda each: each, batch, STEP, KEY)
    stays = ~batch.replaceable | (batch.history == 0)
    assert torch.equal(fed.history[stays], batch.history[stays])
    assert bool((fed.history[~stays] != 0).all())
    assert bool((fed.history != batch.history).any())


def test_ids_of_targets_that_do_not_count_may_be_any():
    model, batch = seq2seq(), ragged()
    odd = batch.replace(targets=batch.targets.masked_fill(~batch.mask, 77), history=batch.history)
    whole, other = (fr.raml(0.7, end=0).run(model, each, STEP, KEY) for each in (batch, odd))
    assert torch.equal(whole.loss, other.loss)
    assert torch.equal(whole.fed.history, other.fed.history)


def test_it_is_refused_where_it_cannot_be():
    refused("needs the number of symbols", fr.raml(0.5), lambda batch: batch, ragged(), 0)
    refused("these targets are values", fr.raml(0.5), lambda batch: batch, fr.Batch(torch.randn(1, 2, 1)), 0)
    refused("the targets hold id 4", fr.raml(0.5, vocabulary=3), lambda batch: batch, ragged(), 0)
    refused(
        "raml has 1 symbols",
        fr.raml(0.5, vocabulary=2, end=0),
        lambda batch: batch,
        fr.Batch(torch.ones(1, 2).long()),
        0,
    )
    found = refused("and end is 99: pass the id", fr.raml(0.0, end=99, vocabulary=4), lambda batch: batch, ragged(), 0)
    assert len(found) == 2
    refused("tau must lie in", fr.raml, -1.0)
    refused("vocabulary must be", fr.raml, 0.5, vocabulary=1)
    refused("target has no effect with raml, whose targets are its sample", fr.raml, 0.5, target="optimal_completion")
    assert fr.raml(0.5).own_loss == ("tau changes the targets",)


def test_what_is_learnt_is_the_reward_augmented_law():
    """A table fitted to one string of three symbols out of four has q(y~ | y) for its own law.

    q is a product over positions, so a table without history holds it exactly. 8,000 fixed samples: the tolerance 0.03
    is five standard errors of a share.
    """

    class Table(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.logits = torch.nn.Parameter(torch.zeros(3, 4))

        def forward(self, batch):
            return self.logits.expand(batch.size, 3, 4)

    gold, tau, table = torch.tensor([1, 3, 0]), 0.8, Table()
    batch, method = fr.Batch(gold.expand(8000, 3)), fr.raml(tau, vocabulary=4)
    optimizer = torch.optim.Adam(table.parameters(), lr=0.2)
    for _ in range(80):
        optimizer.zero_grad()
        method(table, batch, 0, 0).backward()
        optimizer.step()
    odds = 3 * math.exp(-1 / tau)
    expected = torch.full((3, 4), odds / (1 + odds) / 3)
    expected[torch.arange(3), gold] = 1 / (1 + odds)
    assert torch.allclose(table.logits.detach().softmax(1), expected, atol=0.03)
