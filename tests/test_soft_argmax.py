"""Soft argmax in the sequential roll-in: loss and gradient of a naive loop that feeds mixtures; limits; refusals."""

import json
from dataclasses import replace

import pytest
import torch

import freerun as fr
import step_models
from builders import (
    ForwardOnly,
    assert_same_gradients,
    gradients,
    language_model,
    prompted,
    ragged,
    refused,
    seq2seq,
    transformer,
)
from freerun.draws import soft_argmax
from freerun.keys import fold
from freerun.methods.report import StepStats
from freerun.models.rnn import cell_weights
from oracles_methods import coin_table, cross_entropy, gumbels
from tiny_recipes import TINY, ends

KEY, STEP = 5, 3


def rolled(model, batch: fr.Batch, ratio: float, alpha: float, gumbel: bool, gradient: str) -> torch.Tensor:
    """(batch, time, vocab) outputs: entry by entry, a mixture of all embeddings where the coin says own."""
    coins, table = coin_table(batch, ratio, fold(KEY, "gate", STEP)), model.embedding.weight
    recurrent = isinstance(model, fr.models.RecurrentSeq2Seq)
    vectors, outputs = table[batch.history], []
    if recurrent:
        state, gates = model.start(batch), cell_weights(model.decoder, 0).gates
    for t in range(batch.time):
        logits = model.output(state) if recurrent else model.outputs_from(batch, vectors)[:, t]
        outputs.append(logits)
        fed = []
        for b in range(batch.size):
            if coins[b, t]:
                fed.append(table[batch.history[b, t]])
                continue
            scores = logits[b].detach() if gradient == "none" else logits[b]
            if gumbel:
                noise = gumbels(fold(KEY, "draw", STEP), batch.row_numbers[b], t, len(scores))
                scores = scores + torch.tensor(noise, dtype=scores.dtype)
            powers = [torch.exp(alpha * score) for score in scores]
            fed.append(sum(power / sum(powers) * row for power, row in zip(powers, table, strict=True)))
        vectors = torch.cat([vectors[:, :t], torch.stack(fed)[:, None], vectors[:, t + 1 :]], 1)
        if recurrent:
            state = model.step(state, gates(vectors[:, t]))
    return torch.stack(outputs, 1)


MODELS = {
    "lstm": (seq2seq, ragged),
    "gru": (lambda: seq2seq("gru", layers=2), ragged),
    "transformer": (transformer, ragged),
    "language model, left prompts": (language_model, lambda: prompted("left")),
}


@pytest.mark.parametrize(
    ("ratio", "alpha", "gumbel", "gradient"),
    [(0.5, 1.5, False, "auto"), (0.0, 4.0, True, "full"), (0.3, 1.0, True, "none")],
)
@pytest.mark.parametrize("name", list(MODELS))
def test_loss_and_gradient_are_those_of_a_naive_loop(name, ratio, alpha, gumbel, gradient):
    made, data = MODELS[name]
    model, batch = made(), data()
    method = fr.scheduled_sampling(ratio, draw=soft_argmax(alpha, gumbel), gradient=gradient)
    outcome = method.run(model, batch, STEP, KEY)
    outputs = rolled(model, batch, ratio, alpha, gumbel, gradient)
    expected = cross_entropy(outputs, batch)
    assert outcome.loss.item() == pytest.approx(expected.item(), rel=1e-10)
    assert torch.allclose(outcome.outputs[batch.mask], outputs[batch.mask], rtol=1e-10, atol=1e-12)
    assert_same_gradients(gradients(model, outcome.loss), gradients(model, expected))


@pytest.mark.parametrize("model", [seq2seq, transformer])
def test_a_sharp_mixture_is_the_greedy_or_the_sampled_roll_in(model):
    model, batch = model(), ragged()
    for gumbel, draw in ((False, "greedy"), (True, fr.draws.sample(coupling="gumbel"))):
        soft = fr.scheduled_sampling(0.3, draw=soft_argmax(1e6, gumbel)).run(model, batch, STEP, KEY)
        hard = fr.scheduled_sampling(0.3, draw=draw).run(model, batch, STEP, KEY)
        assert torch.equal(soft.fed.history, hard.fed.history)
        assert soft.loss.item() == pytest.approx(hard.loss.item(), rel=1e-10)
        assert soft.report["replaced"] == hard.report["replaced"]


@pytest.mark.parametrize("model", [seq2seq, transformer])
def test_ratio_one_is_teacher_forcing_bit_for_bit_and_halves_add_up(model):
    model, batch = model(), ragged()
    one = gradients(model, fr.scheduled_sampling(1.0, draw="soft_argmax")(model, batch, STEP, KEY))
    gold = gradients(model, fr.teacher_forcing()(model, batch, STEP, KEY))
    assert all(torch.equal(one[name], gold[name]) for name in gold)
    method = fr.scheduled_sampling(0.3, draw=soft_argmax(2.0, True))
    whole = method.run(model, batch, STEP, KEY)
    halves = [method.run(model, batch.select(torch.tensor(rows)), STEP, KEY) for rows in ([2, 0], [1, 3])]
    assert sum(half.total.item() for half in halves) == pytest.approx(whole.total.item(), rel=1e-12)


def test_dropout_is_drawn_once_in_a_loop_and_refused_in_passes():
    torch.manual_seed(0)
    method, batch = fr.scheduled_sampling(0.3, draw="soft_argmax"), ragged()
    assert method(seq2seq(dropout=0.2).train(), batch, STEP, KEY).isfinite()
    refused("needs the same function in every pass", method, transformer(dropout=0.2).train(), batch, STEP, KEY)
    assert method(transformer(dropout=0.2).eval(), batch, STEP, KEY).isfinite()


def test_a_mistake_gets_credit_for_later_losses():
    """The last loss's gradient towards the first output: some with a gradient through mixtures, none without."""
    for gradient, expected in (("full", True), ("none", False)):
        model, seen = seq2seq(), []
        head = model.output
        model.output = lambda *each, head=head, seen=seen: seen.append(head(*each)) or seen[-1]
        method = fr.free_running(draw="soft_argmax", gradient=gradient)
        outcome = method.run(model, ragged().select(torch.tensor([0])), STEP, KEY)
        (reached,) = torch.autograd.grad(outcome.outputs[0, -1, 0], seen[0], allow_unused=True)
        assert (reached is not None and bool(reached.abs().max() > 1e-9)) == expected


def test_it_is_refused_where_it_cannot_be():
    method, values = fr.scheduled_sampling(0.5, draw="soft_argmax"), fr.Batch(torch.randn(1, 3, 1))
    refused("does not fit targets that are values", method, lambda batch: batch.history, values, 0)
    refused("takes ids only", method, ForwardOnly(seq2seq()), ragged(), STEP, KEY)
    refused("takes ids only", method, step_models.lively(step_models.Bahdanau), ragged(), STEP, KEY)
    refused("feeds vectors", method.transform, seq2seq(), ragged(), STEP, KEY)
    refused("engine='jacobi' has no effect", fr.scheduled_sampling, 0.5, draw="soft_argmax", engine="jacobi")
    refused("has gradient 'auto'", fr.scheduled_sampling, 0.5, draw="soft_argmax", gradient=3)
    refused("alpha must be", soft_argmax, 0.0)
    refused("dagger and consistency do alone", fr.parallel(0.5, draw="soft_argmax"), seq2seq(), ragged(), 0)
    refused("dagger and consistency do alone", fr.generate, seq2seq(), ragged(), length=3, draw="soft_argmax")
    assert "feeds vectors" in str(method.own_loss)


@pytest.mark.parametrize("make", [
    lambda draw: fr.scheduled_sampling(0.3, draw=draw), lambda draw: fr.free_running(draw=draw),
    lambda draw: fr.dagger(0.3, expert=fr.targets.OptimalCompletion(0), draw=draw),
    lambda draw: fr.consistency(0.3, draw=draw),
])  # fmt: skip
def test_alpha_may_rise(make):
    """At each step the method is the one whose alpha is the schedule's value there."""
    model, batch = seq2seq(), ragged()
    rising = make(soft_argmax(fr.schedules.table(values=[1.0, 2.0, 4.0, 10.0]), True))
    for step, alpha in ((0, 1.0), (2, 4.0), (9, 10.0)):
        fixed = replace(rising, draw=soft_argmax(alpha, True)).run(model, batch, step, KEY)
        found = rising.run(model, batch, step, KEY)
        assert found.report["draw.alpha"] == alpha
        assert "draw.alpha" not in fixed.report
        assert torch.equal(found.total, fixed.total)
    stats = StepStats.of(rising)
    stats.add(found.report)
    assert stats.values()["draw.alpha"] == 10.0
    assert repr(rising.draw).startswith("soft_argmax(alpha=table(n=4, ")


def test_a_recipes_alpha_rises_over_its_run_and_never_leaves_its_range(tmp_path, capsys):
    method = '{name="scheduled_sampling", teacher_forcing_ratio=0.5, draw={draw="soft_argmax", alpha=%s}}'
    (tmp_path / "tiny.toml").write_text(TINY)

    def run(alpha: str, code: int, out: str) -> str:
        more = ("--set", f"method={method % alpha}", "--set", "train.updates=4", "--out", tmp_path / out)
        return " ".join(ends(capsys, code, "train", tmp_path / "tiny.toml", *more).err.split())

    run('{schedule="linear", start=1.0, end=5.0}', 0, "run")
    events = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [event["draw.alpha"] for event in events if event["event"] == "update"] == [1.0, 2.0, 3.0, 4.0]
    assert "draw.alpha must lie in" in run('{schedule="linear", start=1.0, end=0.0, steps=2}', 2, "no")
    assert not (tmp_path / "no").exists()
    refused("alpha must be a number above 0, or a schedule", soft_argmax, "high")
    refused("draw.alpha must lie", fr.free_running, draw=soft_argmax(fr.schedules.constant(0.0)))
