"""Confidence-aware sampling: the three classes, the loss, and its gate under exact engines."""

import pytest
import torch
from scipy import stats

import freerun as fr
import oracles_methods as naive
from builders import ForwardOnly, assert_same_gradients, gradients, ragged, refused
from freerun import gates
from freerun.keys import fold
from oracles import full_prefix
from test_two_pass import Watched, lively

KEY, STEP = 5, 3
GOLDEN, RAND = 0.15, 0.3


def classes(model, batch: fr.Batch, golden: float, rand: float) -> list[list[str]]:
    """gold, own or random for every entry, by the confidence in the one after it."""
    sure, table = model(batch).detach().softmax(-1), []
    for b in range(batch.size):
        row = []
        for t in range(batch.time):
            follows = t + 1 < batch.time and bool(batch.mask[b, t + 1]) and bool(batch.replaceable[b, t])
            c = float(sure[b, t + 1, batch.targets[b, t + 1]]) if follows else 0.0
            row.append("gold" if c <= golden else "own" if c <= rand else "random")
        table.append(row)
    return table


def where(table: list[list[str]], name: str) -> torch.Tensor:
    return torch.tensor([[each == name for each in row] for row in table])


def test_each_entry_is_of_the_class_of_its_confidence():
    model, batch = lively(), ragged(size=12, time=9)
    table = classes(model, batch, GOLDEN, RAND)
    gold, own, noisy = (where(table, name) for name in ("gold", "own", "random"))
    assert min(int(each.sum()) for each in (gold, own, noisy)) >= 5
    outcome = fr.confidence_aware(mix="argmax", t_golden=GOLDEN, t_rand=RAND).run(model, batch, STEP, KEY)
    history = outcome.fed.history
    assert torch.equal(history[gold], batch.history[gold])
    assert torch.equal(history[own], model(batch).argmax(-1)[own])
    for b, t in noisy.nonzero().tolist():
        others = [int(batch.history[b, j]) for j in range(batch.time) if batch.mask[b, j] and j != t]
        assert int(history[b, t]) in others
    assert outcome.report["replaced"] == int((own | noisy).sum())


@pytest.mark.parametrize("gold_weight", [0.0, 1.0])
def test_the_loss_is_that_of_two_literal_passes(gold_weight):
    """The published mix: expected embeddings whose weights carry no gradient, the loss on gold kept."""
    model, batch = lively(), ragged(size=6, time=8)
    method = fr.confidence_aware(t_golden=GOLDEN, t_rand=RAND, gold_weight=gold_weight)
    watched = Watched(model)
    outcome = method.run(watched, batch, STEP, KEY)
    assert len(watched.calls) == 2
    table = classes(model, batch, GOLDEN, RAND)
    noisy = where(table, "random")
    # what may be random is taken as it came out, everything else is written by hand
    history = torch.where(noisy, outcome.fed.history, batch.history)
    lookup, first = model.embedding.weight, naive.decoded(model, batch, model.embedding(batch.history))
    vectors = torch.stack(
        [
            torch.stack([
                first[b, t].detach().softmax(-1) @ lookup if table[b][t] == "own" else lookup[history[b, t]]
                for t in range(batch.time)
            ])
            for b in range(batch.size)
        ]
    )  # fmt: skip
    loss = naive.cross_entropy(naive.decoded(model, batch, vectors), batch)
    loss = loss + gold_weight * naive.cross_entropy(first, batch)
    assert torch.allclose(outcome.loss, loss, rtol=1e-12)
    assert_same_gradients(gradients(model, outcome.loss), gradients(model, loss))


class Certain(torch.nn.Module):
    """Sure of symbol 1 at every position."""

    def forward(self, batch):
        return torch.tensor([0.0, 20.0, 0.0, 0.0]).expand(batch.size, batch.time, 4)


def test_random_entries_are_drawn_evenly_from_the_same_sentence():
    """Chi-square, 2 degrees of freedom; false-alarm rate 1e-4."""
    targets = torch.tensor([1, 1, 1, 1, 1]).expand(10_000, 5)
    history = torch.tensor([1, 2, 3, 3, 1]).expand(10_000, 5)
    batch = fr.Batch(targets, history, torch.ones(10_000, 5, dtype=torch.bool))
    fed = fr.confidence_aware(mix="argmax").transform(Certain(), batch, 1, 2).history
    assert bool((fed[:, 4] == 1).all())  # nothing follows it
    counts = torch.bincount(fed[:, 0], minlength=4)
    assert counts[0] == 0
    assert stats.chisquare(counts[1:].numpy(), [2500, 2500, 5000]).pvalue > 1e-4
    own = fr.confidence_aware(mix="argmax", t_rand=1.0).transform(Certain(), batch, 1, 2).history
    assert bool((own[:, :4] == 1).all())


def test_the_gate_under_an_exact_engine():
    model, batch = lively(), ragged(size=8, time=9)
    keep = where(classes(model, batch, GOLDEN, 1.0), "gold")
    method = fr.scheduled_sampling(0.0, gate=gates.confidence(GOLDEN))
    for built in (model, ForwardOnly(model)):
        outcome = method.run(built, batch, STEP, KEY)
        assert torch.equal(outcome.fed.history, full_prefix(model, batch, keep, "sample", fold(KEY, "draw", STEP)))
        assert outcome.report["exact"] == 1.0
        assert outcome.report["gate_passes"] == 1
    mixed = fr.two_pass(0.0, mix="sample", gate=gates.confidence(GOLDEN)).run(model, batch, STEP, KEY)
    assert mixed.report["replaced"] == outcome.report["replaced"]
    parallel = fr.parallel(0.0, gate=gates.confidence(GOLDEN), passes=9, redraw=False).transform(
        model, batch, STEP, KEY
    )
    assert torch.equal(parallel.history, outcome.fed.history)


def test_confidence_is_measured_only_where_it_is_needed():
    batch = ragged()
    for method, calls in (
        (fr.scheduled_sampling(1.0, gate="confidence"), 1),
        (fr.two_pass(1.0, gate="confidence"), 1),
        (fr.confidence_aware(teacher_forcing_ratio=1.0, mix="sample"), 1),
        (fr.two_pass(0.0, gate=gates.confidence(0.999999)), 2),
        (fr.confidence_aware(mix="sample", t_golden=0.999999, t_rand=1.0), 1),  # pass 1 is trained, nothing replaced
    ):
        model = Watched(lively())
        outcome = method.run(model, batch, STEP, KEY)
        assert len(model.calls) == calls
        assert torch.equal(outcome.fed.history, batch.history)


WRONG = [
    ({"t_golden": 0.9, "t_rand": 0.5}, r"t_rand must lie in \[t_golden, 1\]"),
    ({"t_golden": 1.0}, "t_golden must lie in"),
    ({"mix": "straight_through"}, "is 'sample'"),
]


@pytest.mark.parametrize(("arguments", "message"), WRONG)
def test_thresholds_out_of_order_are_refused(arguments, message):
    refused(message, fr.confidence_aware, **arguments)


def test_the_published_mix_needs_a_model_that_takes_vectors():
    refused("ForwardOnly takes ids only", fr.confidence_aware(), ForwardOnly(lively()), ragged(), step=0)
    assert repr(fr.confidence_aware()) == "confidence_aware()"
