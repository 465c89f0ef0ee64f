"""Exactness: every engine's history equals the naive loop's, entry for entry, and the gradient to 1e-10."""

import warnings
from weakref import WeakKeyDictionary

import pytest
import torch
from torch import nn

import freerun as fr
import step_models
from builders import ForwardOnly, assert_same_gradients, gradients, ragged, refused, seq2seq
from freerun import draws
from freerun.keys import fold
from oracles import bengio_loop, coins, full_prefix

CELLS = ["rnn", "gru", "lstm"]
KEY, STEP = 5, 3


class LiteralDecoder:
    """The decoder written again with torch's single cells, one position at a time."""

    def __init__(self, model, batch):
        self.model, self.batch = model, batch
        self.source = model.encode(batch).context
        kinds = {"rnn": nn.RNNCell, "gru": nn.GRUCell, "lstm": nn.LSTMCell}
        self.kind = model.settings()["cell"]
        self.cells = []
        for layer in range(model.decoder.num_layers):
            width = model.decoder.input_size if layer == 0 else model.size
            cell = kinds[self.kind](width, model.size).double()
            for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"):
                # the very parameters, so that gradients arrive in the model
                delattr(cell, name)
                setattr(cell, name, getattr(model.decoder, f"{name}_l{layer}"))
            self.cells.append(cell)

    def __call__(self, previous, state):
        model, source = self.model, self.source
        if state is None:
            state = [(h, source.cell[n]) if self.kind == "lstm" else h for n, h in enumerate(source.hidden)]
            x = model.start_vector.expand(self.batch.size, -1)
        else:
            x = model.embedding(previous)
        after = []
        for cell, s in zip(self.cells, state, strict=True):
            after.append(cell(x, s))
            x = after[-1][0] if self.kind == "lstm" else after[-1]
        if model.attention is not None:
            scores = torch.einsum("bd,bsd->bs", model.query(x), source.memory)
            scores = scores.masked_fill(source.padding, -torch.inf)
            found = torch.einsum("bs,bsd->bd", scores.softmax(-1), source.memory)
            x = torch.tanh(model.combine(torch.cat([x, found], -1)))
        return model.out(x), after


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("attention", ["luong", None])
@pytest.mark.parametrize("draw", ["greedy", "sample"])
@pytest.mark.parametrize("gate", ["token", "step", "sequence", "batch"])
@pytest.mark.parametrize("ratio", [0.9, 0.5, 0.0])
def test_history_and_gradient_equal_the_literal_loop(cell, attention, draw, gate, ratio):
    model, batch = seq2seq(cell, attention), ragged()
    keep = coins(gate, batch, ratio, KEY, STEP)
    noise_key = fold(KEY, "draw", STEP)
    loss, history = bengio_loop(LiteralDecoder(model, batch), batch, keep, draw, noise_key)
    expected = gradients(model, loss)

    method = fr.scheduled_sampling(ratio, draw=draw, gate=gate)
    outcome = method.run(model, batch, STEP, KEY)
    assert torch.equal(outcome.fed.history, history)
    assert outcome.loss.item() == pytest.approx(loss.item(), rel=1e-12)
    assert_same_gradients(gradients(model, outcome.loss), expected)


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("attention", ["luong", None])
@pytest.mark.parametrize("draw", ["greedy", "inverse_cdf", "gumbel"])
@pytest.mark.parametrize("engine", ["step", "jacobi"])
@pytest.mark.parametrize("ratio", [0.9, 0.5, 0.0])
@pytest.mark.parametrize("kept", [0, None])
def test_engines_equal_the_full_prefix_oracle(cell, attention, draw, engine, ratio, kept, monkeypatch):
    if kept is not None:  # noise is made again for each part, as for a large vocabulary
        monkeypatch.setattr("freerun.rollin.replacement._KEPT", kept)
    model, batch = seq2seq(cell, attention, layers=2), ragged()
    keep = coins("token", batch, ratio, KEY, STEP)
    expected = full_prefix(model, batch, keep, draw, fold(KEY, "draw", STEP))
    drawn = "greedy" if draw == "greedy" else draws.Sample(coupling=draw)
    bare = ForwardOnly(model) if engine == "jacobi" else model
    outcome = fr.scheduled_sampling(ratio, draw=drawn, engine=engine).run(bare, batch, STEP, KEY)
    assert torch.equal(outcome.fed.history, expected)
    assert outcome.report["exact"] == 1.0


@pytest.mark.parametrize("draw", [draws.Sample(temperature=0.5), draws.Sample(top_k=2), draws.Sample(top_p=0.6)])
def test_truncated_draws_agree_over_engines_and_stay_inside_their_set(draw):
    model, batch = seq2seq(), ragged(size=16)
    stepped = fr.scheduled_sampling(0.2, draw=draw, engine="step").run(model, batch, STEP, KEY)
    passed = fr.scheduled_sampling(0.2, draw=draw, engine="jacobi").run(model, batch, STEP, KEY)
    assert torch.equal(stepped.fed.history, passed.fed.history)
    if draw.top_k:
        best = stepped.outputs.topk(2, -1).indices
        changed = stepped.fed.history != batch.history
        assert bool((best[changed] == stepped.fed.history[changed][:, None]).any(-1).all())


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("attention", ["luong", None])
def test_stepping_equals_the_fused_pass(cell, attention, layers):
    model, batch = seq2seq(cell, attention, layers=layers), ragged()
    expected = model(batch)
    for context in (torch.no_grad(), torch.enable_grad()):
        with context:
            state = model.start(batch)
            for t in range(batch.time):
                torch.testing.assert_close(model.output(state), expected[:, t], rtol=1e-12, atol=1e-12)
                some = torch.tensor([2, 0])
                torch.testing.assert_close(model.output(state, some), expected[some, t], rtol=1e-12, atol=1e-12)
                state = model.step(state, model.embed(batch.history[:, t]))


@pytest.mark.parametrize("bidirectional", [True, False])
def test_source_padding_and_batch_mates_are_inert(bidirectional):
    model, batch = seq2seq(bidirectional=bidirectional, layers=2), ragged()
    alone = batch.select(torch.tensor([1]))
    n = int(alone.context["source_mask"].sum())
    cut = alone.replace(context={name: part[:, :n] for name, part in alone.context.items()})
    torch.testing.assert_close(model(cut), model(batch)[1:2], rtol=1e-12, atol=1e-12)
    poisoned = batch.replace(
        context={
            "source": torch.where(batch.context["source_mask"], batch.context["source"], 3),
            "source_mask": batch.context["source_mask"],
        }
    )
    assert torch.equal(model(poisoned), model(batch))


def test_modes_are_restored_and_the_roll_in_runs_without_dropout():
    model, batch, method = seq2seq(dropout=0.5), ragged(), fr.scheduled_sampling(0.0)
    model.encoder.eval()
    before = [module.training for module in model.modules()]
    noisy = method.transform(model, batch, STEP, KEY)
    assert [module.training for module in model.modules()] == before
    assert torch.equal(method.transform(model.eval(), batch, STEP, KEY).history, noisy.history)


@pytest.mark.parametrize(("dropout", "runs"), [(0.0, 1), (0.3, 2)])
def test_the_encoder_runs_once_without_dropout_and_once_per_mode_with_it(dropout, runs):
    model, calls = seq2seq(dropout=dropout), []
    model.encoder.register_forward_hook(lambda *_: calls.append(1))
    fr.scheduled_sampling(0.5)(model, ragged(), STEP, KEY)
    assert len(calls) == runs


HARD = [name for name, gate in fr.GATES.items() if not fr.gates.is_soft(gate)]


@pytest.mark.parametrize("gate", HARD)
def test_a_longer_padding_changes_nothing(gate):
    model, batch = seq2seq(), ragged()
    padded = {name: nn.functional.pad(getattr(batch, name), (0, 3)) for name in ("targets", "history", "mask")}
    method = fr.scheduled_sampling(0.5, gate=gate)
    a, b = (method.transform(model, each, STEP, KEY).history for each in (batch, batch.replace(**padded)))
    assert torch.equal(a[batch.mask], b[:, : batch.time][batch.mask])


def test_a_model_that_never_settles_is_refused():
    class Leaky(nn.Module):
        def forward(self, batch):  # predicts the entry after the one it reads at the same position
            return nn.functional.one_hot((batch.history + 1) % 3, 3).double()

    ids = fr.Batch(torch.zeros(2, 4, dtype=torch.long))
    greedy = fr.scheduled_sampling(0.0, draw="greedy")
    refused(r"did not settle in 5 passes.*check_model", greedy.transform, Leaky(), ids, step=0)


def test_k_passes_are_an_approximation_that_becomes_exact():
    model, batch = seq2seq(), ragged(size=32, time=8)
    exact = fr.scheduled_sampling(0.0).transform(model, batch, STEP, KEY).history
    agree = []
    for k in (1, 2, 4, 8):
        outcome = fr.scheduled_sampling(0.0, engine=k).run(model, batch, STEP, KEY)
        assert torch.equal(outcome.fed.history[:, :k], exact[:, :k])
        assert outcome.report["exact"] == 0.0
        agree.append(float((outcome.fed.history == exact)[batch.mask].double().mean()))
    assert agree[0] < 1.0
    assert agree[-1] == 1.0


@pytest.mark.parametrize("gate", HARD)
def test_every_gate_at_ratio_one_is_teacher_forcing_without_a_model_call(gate):
    model, batch, calls, found = seq2seq(dropout=0.3), ragged(), [], []

    def noting(name, called):
        def noted(*given):
            made = called(*given)
            if made is not given[0]:  # what is encoded already is returned as it is
                calls.append(name)
            return made

        return noted

    for name in ("start", "step", "output", "encode"):
        setattr(model, name, noting(name, getattr(model, name)))
    for method in (fr.teacher_forcing(), fr.scheduled_sampling(1.0, gate=gate)):
        calls.clear()
        torch.manual_seed(1)
        loss = method(model, batch, STEP, KEY)
        found.append((loss, gradients(model, loss), list(calls)))
    (a, ga, ca), (b, gb, cb) = found
    assert torch.equal(a, b)
    assert all(torch.equal(ga[n], gb[n]) for n in ga)
    assert ca == cb


@pytest.mark.parametrize("gate", ["token", "step", "sequence", "batch"])
def test_a_prompt_is_never_replaced(gate):
    model, batch = seq2seq(), ragged(size=8)
    eligible = batch.mask & (torch.arange(batch.time) >= 2)
    fed = fr.scheduled_sampling(0.0, gate=gate).transform(model, batch.replace(eligible=eligible), STEP, KEY)
    assert torch.equal(fed.history[~eligible], batch.history[~eligible])
    assert not torch.equal(fed.history[eligible], batch.history[eligible])
    assert torch.equal(fed.targets, batch.targets)


def test_a_forward_that_costs_more_than_three_steps_says_so_once(monkeypatch):
    monkeypatch.setattr("freerun.rollin.model._WARNED", WeakKeyDictionary())
    values = torch.randn(2, 8, 2, dtype=torch.float64)
    for method, words in (
        (fr.free_running(), "costs about 9 times teacher forcing. Its gradient goes through"),
        (fr.free_running(gradient="none"), "times teacher forcing. Own entries take parallel passes"),
    ):
        model = ForwardOnly(step_models.lively(step_models.Values))
        batch = fr.Batch(values, context=torch.zeros(2, step_models.SIZE, dtype=torch.float64))
        with pytest.warns(UserWarning, match=words):
            method(model, batch, step=0)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            method(model, batch, step=1)
            method(step_models.lively(step_models.Values), batch, step=0)
