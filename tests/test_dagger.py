"""DAgger: its loss is the expert's symbols and values on the history that was fed, and it learns what they are."""

import pytest
import torch

import freerun as fr
from builders import assert_same_gradients, gradients, ragged, raises, refused, seq2seq, transformer
from test_conformance import BACKENDS, gold


def follows(batch, history):
    """The expert of a counter: what comes after the previous entry, modulo 5."""
    before = torch.nn.functional.pad(history[:, :-1], (1, 0))
    return (before + 1) % 5


def halves(batch, history):
    """The expert of values: half the previous value."""
    return torch.nn.functional.pad(history[:, :-1], (0, 0, 1, 0)) / 2


@pytest.mark.parametrize("gate", ["token", "sequence"])
@pytest.mark.parametrize("build", [seq2seq, transformer])
def test_loss_and_gradient_of_symbols_are_those_of_a_loop(build, gate):
    model, batch = build(), ragged(size=8)
    outcome = fr.dagger(0.4, expert=follows, gate=gate).run(model, batch, 1, 2)
    history = outcome.fed.history
    assert bool((history != batch.history)[batch.mask].any())
    log_p = model(batch.replace(history=history)).log_softmax(-1)
    total = log_p.new_zeros(())
    for b, t in batch.mask.nonzero().tolist():
        right = (int(history[b, t - 1]) + 1) % 5 if t else 1
        total = total - log_p[b, t, right]
    assert outcome.total.item() == pytest.approx(total.item(), abs=1e-10)
    assert int(outcome.count) == int(batch.mask.sum())
    assert_same_gradients(gradients(model, outcome.total), gradients(model, total))


@pytest.mark.parametrize("backend", ["vectors", "vectors, a decoder step", "vectors, warm-up"])
def test_loss_and_gradient_of_values_are_those_of_a_loop(backend):
    model, batch = BACKENDS[backend]()
    outcome = fr.dagger(0.4, expert=halves).run(model, batch, 1, 2)
    history = outcome.fed.history
    assert not history.requires_grad  # what was fed is data
    outputs = model(batch.replace(history=history))
    total = outputs.new_zeros(())
    for b, t in batch.mask.nonzero().tolist():
        right = history[b, t - 1] / 2 if t else torch.zeros_like(history[b, 0])
        total = total + ((outputs[b, t] - right) ** 2).sum()
    assert outcome.total.item() == pytest.approx(total.item(), rel=1e-10)
    assert_same_gradients(gradients(model, outcome.total), gradients(model, total))


def test_histories_are_those_of_scheduled_sampling_and_with_gold_as_expert_so_is_the_loss():
    model, batch = seq2seq(), ragged()
    expected = fr.scheduled_sampling(0.3).run(model, batch, 1, 2)
    outcome = fr.dagger(0.3, expert=gold).run(model, batch, 1, 2)
    assert torch.equal(outcome.fed.history, expected.fed.history)
    assert torch.equal(outcome.loss, expected.loss)
    named = fr.dagger(0.3, expert="optimal_completion")(model, batch, 1, 2)
    assert torch.equal(named, fr.scheduled_sampling(0.3, target="optimal_completion")(model, batch, 1, 2))


class Table(torch.nn.Module):
    """Logits of the next symbol after each."""

    def __init__(self) -> None:
        super().__init__()
        self.logits = torch.nn.Parameter(torch.zeros(5, 5))

    def forward(self, batch: fr.Batch) -> torch.Tensor:
        return self.logits[torch.nn.functional.pad(batch.history[:, :-1], (1, 0))]


def test_the_expert_teaches_states_that_gold_never_visits():
    """Gold is 1 1 1 ...: after a 3 only the expert knows what to do; own samples come there.

    Of 20 seeds all are right after five symbols of five, and teacher forcing after three.
    """
    ids = torch.ones(16, 8, dtype=torch.int64)
    right = {}
    for name, method in (("dagger", fr.dagger(expert=follows)), ("forced", fr.teacher_forcing(target=follows))):
        model = Table()
        optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
        for step in range(60):
            optimizer.zero_grad()
            method(model, fr.Batch(ids), step, 1).backward()
            optimizer.step()
        right[name] = int((model.logits.argmax(1) == (torch.arange(5) + 1) % 5).sum())
    assert right["dagger"] == 5
    assert right["forced"] < 5


@pytest.mark.parametrize(
    ("expert", "problem"),
    [
        ("gold", "got 'gold': that is scheduled_sampling"),
        ("optimal_completions", "did you mean 'optimal_completion'"),
        (3, "expert must be a function .* or one of optimal_completion; got 3"),
    ],
)
def test_another_expert_is_refused(expert, problem):
    raises(fr.UserError, problem, fr.dagger, expert=expert)


def test_a_refusal_names_the_expert_which_is_an_argument():
    found = refused("^expert=<.*> is of whole histories", fr.dagger, 0.5, expert=follows, gradient=3)
    assert not any("target=" in each for each in found)


def test_a_model_is_no_expert():
    refused("cannot be called with 2 arguments", fr.dagger, 0.5, expert=seq2seq())


def test_what_an_expert_returns_is_checked():
    refused("a target of ids returns int64", fr.dagger(expert=lambda batch, h: h.float()), seq2seq(), ragged(), 0)


@pytest.mark.parametrize("engine", ["auto", "step", "jacobi", "window", "draft", 2])
def test_any_engine_makes_the_histories(engine):
    model, batch = transformer(), ragged()
    outcome = fr.dagger(0.4, expert=follows, engine=engine).run(model, batch, 1, 2)
    log_p = model(batch.replace(history=outcome.fed.history)).log_softmax(-1)
    right = follows(batch, outcome.fed.history)[..., None]
    assert outcome.total.item() == pytest.approx(-log_p.gather(2, right)[batch.mask].sum().item(), abs=1e-10)
