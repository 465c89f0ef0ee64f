"""The recurrent encoder-decoder: its settings, and what each of them computes."""

import copy

import pytest
import torch
from torch import nn

import freerun as fr
from builders import ForwardOnly, assert_same_gradients, gradients, ragged, refused, seq2seq
from freerun import draws
from freerun.checks.run import examine
from freerun.keys import fold
from freerun.models.rnn import cell_weights, step_layers
from oracles import bengio_loop, coins, full_prefix

KEY, STEP = 5, 3
cells = pytest.mark.parametrize("cell", ["rnn", "gru", "lstm"])
deep = pytest.mark.parametrize("layers", [1, 2])


def feeding(cell: str = "lstm", layers: int = 1, **changes):
    return seq2seq(cell, encoder_layers=2, decoder_layers=layers, input_feeding=True, **changes)


class InputFeeding:
    """The paper's decoder, one position at a time: the attention vector is a part of the next input."""

    def __init__(self, model, batch):
        self.model, self.batch = model, batch
        source, self.mask = batch.context["source"], batch.context["source_mask"]
        self.memory, summary = model.encoder(source, self.mask)
        self.first = model.bridge(summary).tanh().split(model.size, 1)
        keys, values = model.source_sides.weight.chunk(2)
        self.score, self.mix = keys, torch.cat([model.combine.weight, values], 1)
        kinds = {"rnn": nn.RNNCell, "gru": nn.GRUCell, "lstm": nn.LSTMCell}
        self.kind, self.cells = model.settings()["cell"], []
        for n in range(model.decoder.num_layers):
            cell = kinds[self.kind](1, model.size).double()
            for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"):
                delattr(cell, name)  # the very parameters, so that gradients arrive in the model
                weight = getattr(model.decoder, f"{name}_l{n}")
                first = n == 0 and name == "weight_ih"
                setattr(cell, name, torch.cat([weight, model.feed.weight], 1) if first else weight)
            cell.input_size = cell.weight_ih.shape[1]
            self.cells.append(cell)

    def __call__(self, previous, walk):
        model, layers = self.model, len(self.cells)
        if walk is None:
            states = [
                (h, self.first[layers + n]) if self.kind == "lstm" else h for n, h in enumerate(self.first[:layers])
            ]
            walk = states, torch.zeros(self.batch.size, model.size, dtype=torch.float64)
            entry = model.start_vector.expand(self.batch.size, -1)
        else:
            entry = model.embedding(previous)
        x, after = torch.cat([entry, walk[1]], 1), []
        for cell, state in zip(self.cells, walk[0], strict=True):
            after.append(cell(x, state))
            x = after[-1][0] if self.kind == "lstm" else after[-1]
        scores = torch.einsum("bd,de,bse->bs", x, self.score, self.memory).masked_fill(~self.mask, -torch.inf)
        found = torch.einsum("bs,bsd->bd", scores.softmax(-1), self.memory)
        vector = torch.tanh(torch.cat([x, found], 1) @ self.mix.t() + model.combine.bias)
        return model.out(vector), (after, vector)


@cells
@deep
@pytest.mark.parametrize(("ratio", "draw"), [(1.0, "greedy"), (0.5, "sample"), (0.5, "greedy"), (0.0, "sample")])
def test_input_feeding_is_the_loop_of_its_paper(cell, layers, ratio, draw):
    model, batch = feeding(cell, layers), ragged()
    loss, history = bengio_loop(
        InputFeeding(model, batch), batch, coins("token", batch, ratio, KEY, STEP), draw, fold(KEY, "draw", STEP)
    )
    expected = gradients(model, loss)
    outcome = fr.scheduled_sampling(ratio, draw=draw).run(model, batch, STEP, KEY)
    assert torch.equal(outcome.fed.history, history)
    assert outcome.loss.item() == pytest.approx(loss.item(), rel=1e-12)
    assert_same_gradients(gradients(model, outcome.loss), expected)
    assert all(bool(gradient.any()) for gradient in expected.values())


@cells
@pytest.mark.parametrize("draw", ["greedy", "inverse_cdf", "gumbel"])
@pytest.mark.parametrize("engine", ["auto", "step", "jacobi"])
def test_every_engine_with_input_feeding_equals_the_full_prefix_oracle(cell, draw, engine):
    model, batch = feeding(cell, 2), ragged()
    expected = full_prefix(model, batch, coins("token", batch, 0.4, KEY, STEP), draw, fold(KEY, "draw", STEP))
    drawn = "greedy" if draw == "greedy" else draws.sample(coupling=draw)
    bare = ForwardOnly(model) if engine == "jacobi" else model
    assert torch.equal(
        fr.scheduled_sampling(0.4, draw=drawn, engine=engine).run(bare, batch, STEP, KEY).fed.history, expected
    )


@cells
@deep
def test_steps_with_input_feeding_are_the_forward(cell, layers):
    model, batch = feeding(cell, layers), ragged()
    expected, some = model(batch), torch.tensor([2, 0])
    for context in (torch.no_grad(), torch.enable_grad()):
        with context:
            state = model.start(batch)
            for t in range(batch.time):
                torch.testing.assert_close(model.output(state), expected[:, t], rtol=1e-12, atol=1e-12)
                torch.testing.assert_close(model.output(state, some), expected[some, t], rtol=1e-12, atol=1e-12)
                picked = model.step(model.select(state, some), model.embed(batch.history[some, t]))
                state = model.step(state, model.embed(batch.history[:, t]))
                torch.testing.assert_close(model.output(picked), model.output(state, some), rtol=1e-12, atol=1e-12)


@cells
def test_input_feeding_generates_as_it_free_runs_also_by_beams(cell):
    model, batch = feeding(cell, 2), ragged()
    for beams in (1, 3):
        stepped = fr.generate(model, batch, length=6, end=0, beams=beams)
        forward = fr.generate(ForwardOnly(model), batch, length=6, end=0, beams=beams)
        assert torch.equal(stepped.entries, forward.entries)
        torch.testing.assert_close(stepped.scores, forward.scores)


@cells
def test_input_feeding_passes_its_check_and_pads_are_inert(cell):
    model, batch = feeding(cell, 2, dropout=0.3, recurrent_dropout=0.3), ragged()
    assert examine(model, batch).refused == ()
    model.eval()
    alone = batch.select(torch.tensor([1]))
    n = int(alone.context["source_mask"].sum())
    cut = alone.replace(context={name: part[:, :n] for name, part in alone.context.items()})
    torch.testing.assert_close(model(cut), model(batch)[1:2], rtol=1e-12, atol=1e-12)


@cells
def test_recurrent_dropout_is_one_mask_for_all_steps_of_a_sequence(cell):
    model, batch = feeding(cell, 2, recurrent_dropout=0.5), ragged()
    torch.manual_seed(0)
    first = model(batch)
    assert not torch.equal(model(batch), first)
    torch.manual_seed(0)
    assert torch.equal(model(batch), first)
    torch.manual_seed(0)
    state = model.start(batch)
    assert len(state.masks) == 3
    assert all(set(mask.unique().tolist()) == {0.0, 2.0} for mask in state.masks)
    for t in range(batch.time):  # the same masks at every step, or the outputs would differ
        torch.testing.assert_close(model.output(state), first[:, t], rtol=1e-12, atol=1e-12)
        state = model.step(state, model.embed(batch.history[:, t]))
    assert not torch.equal(state.masks[0][0], state.masks[0][1])
    still = copy.deepcopy(model).eval()
    assert still.start(batch).masks == ()
    assert torch.equal(still(batch), feeding(cell, 2)(batch))


def test_settings_that_need_each_other():
    refused("input_feeding feeds the attention vector back", seq2seq, attention=None, input_feeding=True)
    refused("recurrent_dropout needs input_feeding=True", seq2seq, recurrent_dropout=0.1)
    refused(r"recurrent_dropout must lie in \[0, 1\); got 1", seq2seq, input_feeding=True, recurrent_dropout=1)


@pytest.mark.parametrize("cell", ["gru", "lstm"])
def test_encoder_and_decoder_are_as_deep_as_their_own_settings(cell):
    model, batch = seq2seq(cell, encoder_layers=3, decoder_layers=1, layers=2), ragged()
    assert (len(model.encoder.forwards), model.decoder.num_layers) == (3, 1)
    assert examine(model, batch).refused == ()
    assert fr.models.RecurrentSeq2Seq(**model.settings()).state_dict().keys() == model.state_dict().keys()


def test_layers_is_both_where_they_have_none_of_their_own():
    both, each = seq2seq(layers=2), seq2seq(encoder_layers=2, decoder_layers=2)
    assert torch.equal(both(ragged()), each(ragged()))
    only = seq2seq(layers=2, decoder_layers=1)
    assert (len(only.encoder.forwards), only.decoder.num_layers) == (2, 1)


def test_numbers_of_layers_are_checked_with_the_others():
    refused(
        ["encoder_layers must be at least 1, or None for `layers`; got 0", "decoder_layers must be", "cell must be"],
        seq2seq, "tanh", encoder_layers=0, decoder_layers=1.5,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("dtype", "far", "share"),
    [(torch.float64, 1e-14, 1e-11), (torch.float32, 5e-6, 2e-3), (torch.bfloat16, 0.05, 0.05)],
)
def test_a_step_without_gradient_is_pytorchs_cell(dtype, far, share):
    """From gates that saturate to some near 0, where a tanh by sigmoids has the fewest digits."""
    layer = nn.LSTM(3, 8).to(dtype)

    def apart(x, *state):
        cell = nn.LSTMCell(3, 8).double()
        cell.load_state_dict({name.removesuffix("_l0"): weight for name, weight in layer.state_dict().items()})
        weights = cell_weights(layer, 0)
        with torch.no_grad():
            expected = cell(x.double(), [each.double() for each in state])
            hidden, cells = step_layers([weights], weights.gates(x), state[:1], state[1:], nn.Identity())
        for found, right in zip((*hidden, *cells), expected, strict=True):
            difference = (found.double() - right).abs()
            yield float(difference.max()), float(difference.max() / right.abs().max())

    scale = torch.logspace(-6, 2, 64)[:, None]
    inputs = scale * torch.randn(64, 3), torch.randn(64, 8), torch.randn(64, 8)
    assert max(absolute for absolute, _ in apart(*(each.to(dtype) for each in inputs))) < far
    for bias in (layer.bias_ih_l0, layer.bias_hh_l0):
        nn.init.zeros_(bias)
    small = 1e-3 * torch.randn(64, 3), torch.zeros(64, 8), torch.zeros(64, 8)
    assert max(relative for _, relative in apart(*(each.to(dtype) for each in small))) < share
