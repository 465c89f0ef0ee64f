"""Values: gradient through the model's own entries equals autograd on the literal loop, for every cut."""

import pytest
import torch
from torch import nn

import freerun as fr
from builders import ForwardOnly, assert_same_gradients, gradients, refused
from oracles import coins, literal

KEY, STEP = 5, 3


def batch() -> fr.Batch:
    g = torch.Generator().manual_seed(0)
    values = torch.randn(3, 6, 4, generator=g, dtype=torch.float64)
    mask = torch.arange(6) < torch.tensor([6, 4, 2])[:, None]
    return fr.Batch(values, mask=mask, context=torch.randn(3, 5, 2, generator=g, dtype=torch.float64))


def model() -> fr.models.Seq2SeqModel:
    torch.manual_seed(1)
    return fr.models.Seq2SeqModel(2, 7, 4).double()


@pytest.mark.parametrize("ratio", [0.5, 0.0])
@pytest.mark.parametrize("gradient", ["none", "full", 1, 2, 3, 100])
@pytest.mark.parametrize("form", ["stepper", "forward only"])
def test_gradient_policies_equal_the_literal_loop(ratio, gradient, form):
    net, b = model(), batch()
    method = fr.scheduled_sampling(ratio, gradient=gradient)
    bare = ForwardOnly(net) if form == "forward only" else net
    if form == "forward only" and isinstance(gradient, int):
        refused("has only a forward: use gradient='full' or 'none'", method.run, bare, b, STEP, KEY)
        return
    loss, history = literal(net, b, coins("token", b, ratio, KEY, STEP).double(), gradient)
    expected = gradients(net, loss)
    outcome = method.run(bare, b, STEP, KEY)
    assert outcome.loss.item() == pytest.approx(loss.item(), rel=1e-12)
    assert torch.allclose(outcome.fed.history[b.mask], history[b.mask], atol=1e-12)
    assert_same_gradients(gradients(net, outcome.loss), expected)


def test_a_cut_does_not_depend_on_how_rows_fall_into_micro_batches():
    """A micro-batch that happens to have no own entry is cut as the others are; only a method that is off is not."""
    net, b, key = model(), batch(), 11
    for gold_weight in (0.0, 0.5):
        method = fr.scheduled_sampling(0.5, gate="sequence", gradient=2, gold_weight=gold_weight)
        parts = [method.run(net, b.select(torch.tensor([row])), STEP, key) for row in range(3)]
        assert {part.report["replaced"] == 0 for part in parts} == {True, False}
        found = gradients(net, sum(part.total for part in parts))
        assert_same_gradients(found, gradients(net, method.run(net, b, STEP, key).total))


def test_what_is_frozen_needs_no_graph_behind_a_cut():
    net, b = model(), batch()
    for name, parameter in net.named_parameters():
        parameter.requires_grad_(name.startswith("encoder"))
    learned = [p for p in net.parameters() if p.requires_grad]
    loss, _ = literal(net, b, torch.zeros(3, 6).double(), 2)
    expected = torch.autograd.grad(loss, learned)
    found = torch.autograd.grad(fr.free_running(gradient=2)(net, b, step=0), learned)
    assert all(torch.allclose(a, c, rtol=1e-10) for a, c in zip(found, expected, strict=True))


def test_what_a_cut_cannot_do_is_refused_before_it_is_needed():
    for net, arguments, message in (
        (model(), {"gradient": 2, "engine": "jacobi"}, "goes step by step: use engine='auto' or 'step'"),
        (ForwardOnly(model()), {"gradient": 2}, "has only a forward"),
        (model(), {"gate": "blend", "gradient": "none", "engine": "window"}, "cannot blend gold and own"),
    ):
        refused(message, fr.scheduled_sampling(1.0, **arguments), net, batch(), step=0)


def test_an_objective_sees_of_a_piece_what_it_sees_of_the_whole():
    net, b = model(), batch()
    b = b.replace(eligible=b.mask & (torch.arange(6) > 1), rows=torch.tensor([7, 8, 9]))

    def objective(outputs, batch):
        counted = batch.mask & batch.replaceable & (batch.row_numbers > 7)[:, None]
        return (outputs - batch.targets)[counted].square().sum(), counted.sum()

    a, c = (fr.scheduled_sampling(0.5, gradient=g, objective=objective).run(net, b, STEP, KEY) for g in ("none", 3))
    assert a.count == c.count
    assert torch.allclose(a.total, c.total)


@pytest.mark.parametrize("gradient", ["none", "full", 2])
def test_an_objective_with_weights_of_its_own_learns(gradient):
    class Weighed(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.tensor(2.0, dtype=torch.float64))

        def forward(self, outputs, batch):
            each = (outputs - batch.targets)[batch.mask].square()
            return self.weight * each.sum(), torch.tensor(each.numel())

    objective = Weighed()
    outcome = fr.free_running(gradient=gradient, objective=objective).run(model(), batch(), STEP, KEY)
    outcome.total.backward()
    assert torch.allclose(objective.weight.grad, outcome.total.detach() / 2)


def test_auto_is_full_for_values_and_the_roll_in_is_the_forward():
    net, b = model(), batch()
    calls = []
    net.register_forward_hook(lambda *_: calls.append(1))
    outcome = fr.scheduled_sampling(0.5).run(net, b, STEP, KEY)
    assert calls == []
    assert outcome.fed.history.requires_grad
    assert torch.equal(outcome.loss, fr.scheduled_sampling(0.5, gradient="full")(net, b, STEP, KEY))


def test_ratio_one_is_teacher_forcing_bit_for_bit():
    net, b = model(), batch()
    a = gradients(net, fr.teacher_forcing()(net, b, step=0))
    for gradient in ("full", "none", 2):
        c = gradients(net, fr.scheduled_sampling(1.0, gradient=gradient)(net, b, step=0))
        assert all(torch.equal(a[n], c[n]) for n in a)


def test_nan_where_nothing_counts_does_no_harm():
    net, b = model(), batch()
    poisoned = b.targets.masked_fill(~b.mask[..., None], torch.nan)
    clean = gradients(net, fr.teacher_forcing()(net, b, step=0))
    for changed in (b.replace(targets=poisoned), b.replace(history=poisoned)):
        found = gradients(net, fr.teacher_forcing()(net, changed, step=0))
        assert all(torch.equal(clean[n], found[n]) for n in clean)
        for gradient in ("full", "none"):
            loss = fr.scheduled_sampling(0.5, gradient=gradient)(net, changed, STEP, KEY)
            assert all(bool(g.isfinite().all()) for g in gradients(net, loss).values())
    for method in (fr.teacher_forcing(), fr.scheduled_sampling(0.5, gradient="none")):
        fed = method.transform(net, changed, STEP, KEY).history
        assert torch.equal(fed, method.run(net, changed, STEP, KEY).fed.history)


@pytest.mark.parametrize("gradient", ["none", "full", 2])
def test_infinity_where_nothing_counts_does_no_harm(gradient):
    net, b = model(), batch()
    poisoned = b.replace(history=b.history.masked_fill(~b.mask[..., None], torch.inf))
    method = fr.scheduled_sampling(0.5, gradient=gradient)
    clean = b.replace(history=b.history.masked_fill(~b.mask[..., None], 0.0))
    found = gradients(net, method(net, poisoned, STEP, KEY))
    assert_same_gradients(found, gradients(net, method(net, clean, STEP, KEY)))
    assert all(bool(g.isfinite().all()) for g in found.values())


def test_weights_and_sums_are_exact():
    net, b = model(), batch()
    weights = torch.rand(3, 6, dtype=torch.float64)
    outcome = fr.teacher_forcing().run(net, b.replace(weights=weights), step=0)
    each = ((net(b) - b.targets) ** 2).sum(-1)
    assert torch.allclose(outcome.total, (each * weights)[b.mask].sum())
    assert torch.allclose(outcome.count, weights[b.mask].sum() * 4)


MEANINGLESS = [
    (lambda: fr.scheduled_sampling(0.5, draw="greedy"), "does not fit targets that are values: use draw='point'"),
    (lambda: fr.token_noise(0.5, vocabulary=5), "these targets are values"),
    (lambda: fr.teacher_forcing(objective="cross_entropy"), "use objective='mse'"),
]


@pytest.mark.parametrize(("make", "message"), MEANINGLESS)
def test_what_has_no_meaning_for_values_is_refused(make, message):
    refused(message, make(), model(), batch(), step=0)


def test_dropout_and_passes_with_gradient_do_not_go_together():
    net = nn.Sequential(ForwardOnly(model()), nn.Dropout(0.1))
    refused("same function in every pass", fr.scheduled_sampling(0.5), net, batch(), step=0)


def test_engines_are_honoured_or_refused_where_the_graph_is_kept():
    net, b = model(), batch()
    expected = fr.scheduled_sampling(0.0)(net, b, STEP, KEY)
    passed = fr.scheduled_sampling(0.0, engine="jacobi").run(net, b, STEP, KEY)
    assert torch.allclose(passed.loss, expected, rtol=1e-12)
    once = fr.scheduled_sampling(0.0, engine=1).run(net, b, STEP, KEY)
    assert once.report["exact"] == 0.0
    assert not torch.allclose(once.loss, expected)
    refused("needs a model with start", fr.scheduled_sampling(0.0, engine="step"), ForwardOnly(net), b, step=0)
    unshifted = fr.models.UnshiftedSeq2SeqModel(2, 7, 4).double()
    refused("did not settle", fr.scheduled_sampling(0.0), unshifted, b, step=0)


def test_what_was_unrolled_reports_how_and_at_what_cost():
    for engine, ratio, expected in (
        ("auto", 0.0, ("unrolled", 0, 0.0, "construction")),
        ("jacobi", 0.0, ("unrolled", 6, 6.0, "fixed point")),
        (2, 0.0, ("unrolled", 2, 2.0, "no")),
        ("auto", 1.0, ("none", 0, 0.0, "construction")),
    ):
        report = fr.scheduled_sampling(ratio, engine=engine).run(model(), batch(), STEP, KEY).report
        assert tuple(report[name] for name in ("engine", "passes", "work", "certified")) == expected


def test_nothing_that_counts_is_a_loss_of_zero():
    net, b = model(), batch()
    loss = fr.teacher_forcing()(net, b.replace(mask=torch.zeros_like(b.mask)), step=0)
    assert loss.item() == 0.0
    assert all(not bool(g.any()) for g in gradients(net, loss).values())
