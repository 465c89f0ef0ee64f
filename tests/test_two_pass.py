"""Two passes: mixes against naive loops, the shift, what is never replaced, and what is refused."""

import pytest
import torch

import freerun as fr
import oracles_methods as naive
from builders import ForwardOnly, assert_same_gradients, gradients, ragged, refused, seq2seq
from freerun.draws import Sample
from freerun.keys import fold
from freerun.methods.two_pass import HARD, MIXES, Mix, sparsemax
from freerun.types import Embedder
from oracles import coins

KEY, STEP, RATIO = 5, 3, 0.4


def lively(cell: str = "lstm", attention: str | None = "luong", **changes):
    """A model whose argmax depends on its inputs."""
    model = seq2seq(cell, attention, **changes)
    model.out.bias.data.zero_()
    for weight in (model.embedding.weight, *([] if changes.get("tied") else [model.out.weight])):
        weight.data.mul_(3.0)
    return model


MODELS = {
    "rnn": lambda: lively("rnn", None), "gru": lambda: lively("gru", layers=2, tied=True), "lstm": lively,
    "rope": lambda: transformer("rope"), "learned": lambda: transformer("learned"),
}  # fmt: skip
RECURRENT, TRANSFORMERS = list(MODELS)[:3], list(MODELS)[3:]


def transformer(positions: str):
    torch.manual_seed(3)
    model = fr.models.TransformerSeq2Seq(
        6, 5, size=16, layers=2, heads=2, positions=positions, max_positions=32
    ).double()
    for parameter in model.parameters():
        parameter.data.mul_(2.0)
    return model


SOFT = [mix for mix in MIXES if mix not in HARD]
TRIED = {"top_k": {"top_k": 2}, "sparsemax": {"temperature": 0.5}, "sample": {"temperature": 0.7}}


def keep_of(batch: fr.Batch, ratio: float = RATIO) -> torch.Tensor:
    return coins("token", batch, ratio, KEY, STEP)


class Watched(torch.nn.Module):
    """Passes on to a model and remembers how it was called."""

    def __init__(self, model):
        super().__init__()
        self.model, self.calls = model, []

    def forward(self, batch):
        self.calls.append(("ids", batch.history, self.model.training, torch.is_grad_enabled()))
        return self.model(batch)

    def lookup(self, entries):
        return self.model.lookup(entries)

    def outputs_from(self, batch, vectors):
        self.calls.append(("vectors", vectors, self.model.training, torch.is_grad_enabled()))
        return self.model.outputs_from(batch, vectors)


@pytest.mark.parametrize("name", RECURRENT)
def test_looked_up_history_gives_the_models_own_outputs(name):
    model, batch = MODELS[name](), ragged()
    assert isinstance(model, Embedder)
    outputs = model.outputs_from(batch, model.lookup(batch.history))
    again = model.outputs_from(model.encode(batch), model.lookup(batch.history))
    torch.testing.assert_close((outputs, again), (model(batch), outputs), rtol=1e-12, atol=1e-12)
    assert_same_gradients(gradients(model, outputs.sum()), gradients(model, model(batch).sum()), 1e-14)
    vectors = model.lookup(batch.history).detach().requires_grad_()
    model.outputs_from(batch, vectors)[:, :3].sum().backward()
    assert bool((vectors.grad[:, 2:] == 0).all())
    assert bool((vectors.grad[:, :2] != 0).any())


@pytest.mark.parametrize("name", TRANSFORMERS)
@pytest.mark.parametrize("gradient", ["none", "full"])
def test_a_transformer_reads_mixtures_too(name, gradient):
    """Against a mixed table of vectors written entry by entry; the gradient through both passes."""
    model, batch = MODELS[name](), ragged()
    outcome = fr.two_pass(RATIO, mix="expected", gradient=gradient).run(model, batch, STEP, KEY)
    first, table, keep = model(batch), model.lookup(torch.arange(5)), keep_of(batch)
    first = first if gradient == "full" else first.detach()
    inputs = [
        [table[batch.history[b, t]] if keep[b, t] else first[b, t].softmax(-1) @ table for t in range(batch.time)]
        for b in range(batch.size)
    ]
    loss = naive.cross_entropy(model.outputs_from(batch, torch.stack([torch.stack(row) for row in inputs])), batch)
    assert torch.allclose(outcome.loss, loss, rtol=1e-12)
    assert_same_gradients(gradients(model, outcome.loss), gradients(model, loss))


CASES = [(mix, "none") for mix in MIXES if mix != "straight_through"] + [(mix, "full") for mix in SOFT]


@pytest.mark.parametrize("name", RECURRENT)
@pytest.mark.parametrize(("mix", "gradient"), CASES)
def test_every_mix_is_the_literal_two_passes(mix, gradient, name):
    """Loss, the vectors fed and all gradients, with and without the loss on gold."""
    model, batch = MODELS[name](), ragged()
    for gold_weight in (0.0, 0.7):
        arguments = {"gradient": gradient, "gold_weight": gold_weight, **TRIED.get(mix, {})}
        watched = Watched(model)
        outcome = fr.two_pass(RATIO, mix=mix, **arguments).run(watched, batch, STEP, KEY)
        loss, vectors = naive.two_pass(model, batch, keep_of(batch), fold(KEY, "draw", STEP), mix, **arguments)
        kind, fed, *_ = watched.calls[-1]
        assert kind == ("ids" if mix in HARD else "vectors")
        assert len(watched.calls) == 2
        assert torch.allclose(model.lookup(fed) if mix in HARD else fed, vectors, rtol=1e-12, atol=1e-14)
        assert torch.allclose(outcome.loss, loss, rtol=1e-12)
        assert_same_gradients(gradients(model, outcome.loss), gradients(model, loss))


def test_an_entry_is_the_prediction_of_itself_and_the_start_is_never_replaced():
    """A missing shift would put the prediction of the entry after it there, and a prediction in the start's place."""
    model, batch = lively(), ragged(size=8, time=9)
    first = model(batch)
    replaced = ~keep_of(batch, 0.0)
    for mix in ("argmax", "expected"):
        outcome = fr.two_pass(0.0, mix=mix).run(model, batch, STEP, KEY)
        history = outcome.fed.history
        assert torch.equal(history[replaced], first.argmax(-1)[replaced])
        later = replaced & torch.roll(replaced, -1, 1) & (torch.arange(9) < 8)
        assert not torch.equal(history[later], torch.roll(first.argmax(-1), -1, 1)[later])
        torch.testing.assert_close(outcome.outputs[:, 0], first[:, 0], rtol=1e-12, atol=1e-12)
        assert not torch.allclose(outcome.outputs[:, 1:][replaced[:, :-1]], first[:, 1:][replaced[:, :-1]])


@pytest.mark.parametrize("mix", ["argmax", "expected"])
def test_only_eligible_entries_are_mixed(mix):
    """Prompt and padding reach the second pass as they are."""
    batch, model = ragged(size=6), Watched(lively())
    eligible = batch.mask & (torch.arange(batch.time) >= 2)
    fr.two_pass(0.0, mix=mix).run(model, batch.replace(eligible=eligible), STEP, KEY)
    kind, fed, *_ = model.calls[-1]
    vectors, gold = model.lookup(fed) if kind == "ids" else fed, model.lookup(batch.history)
    assert torch.equal(vectors[~eligible], gold[~eligible])
    assert not torch.allclose(vectors[eligible], gold[eligible])


def test_sampled_symbols_are_those_of_one_parallel_pass():
    model, batch = lively(), ragged(size=8)
    a = fr.two_pass(RATIO, mix="sample").run(model, batch, STEP, KEY)
    b = fr.scheduled_sampling(RATIO, engine=1).run(model, batch, STEP, KEY)
    assert torch.equal(a.fed.history, b.fed.history)
    torch.testing.assert_close(a.loss, b.loss, rtol=1e-12, atol=1e-12)
    assert a.report["exact"] == 0.0
    assert a.report["certified"] == "no"


COLD = {"expected": {"temperature": 1e-5}, "sparsemax": {"temperature": 1e-5}, "top_k": {"top_k": 1}}


@pytest.mark.parametrize("name", ["gru", "lstm", "rope", "learned"])
def test_a_cold_mixture_is_the_argmax_each_entry_at_its_own_position(name):
    model, batch = MODELS[name](), ragged()
    hard = fr.two_pass(RATIO, mix="argmax").run(model, batch, STEP, KEY)
    for mix, more in COLD.items():
        soft = fr.two_pass(RATIO, mix=mix, **more).run(model, batch, STEP, KEY)
        assert torch.allclose(soft.outputs, hard.outputs, rtol=1e-10)
        assert torch.equal(soft.fed.history, hard.fed.history)


def test_straight_through_feeds_symbols_exactly():
    model, batch = Watched(lively()), ragged()
    outcome = fr.two_pass(RATIO, mix="straight_through", gradient="full").run(model, batch, STEP, KEY)
    assert torch.equal(model.calls[-1][1], model.lookup(outcome.fed.history))
    gumbel = fr.scheduled_sampling(RATIO, draw=Sample(coupling="gumbel"), engine=1)
    assert torch.equal(outcome.fed.history, gumbel.transform(model.model, batch, STEP, KEY).history)


def test_ratio_one_costs_no_model_call_and_a_gold_loss_only_scales():
    batch = ragged()
    plain = fr.teacher_forcing()(lively(), batch, step=0)
    for method, scale in (
        (fr.two_pass(1.0, mix="expected"), 1.0),
        (fr.two_pass(1.0, mix="expected", gradient="full", gold_weight=0.5), 1.5),
        (fr.scheduled_sampling(1.0, gold_weight=0.5), 1.5),
        (fr.parallel(1.0, passes=3, gold_weight=0.5), 1.5),
    ):
        model = Watched(lively())
        outcome = method.run(model, batch, STEP, KEY)
        assert len(model.calls) == 1
        assert torch.allclose(outcome.loss, scale * plain, rtol=1e-12)
        assert outcome.report["passes"] == 0


@pytest.mark.parametrize("method", [fr.scheduled_sampling, fr.parallel])
def test_gold_weight_of_scheduled_sampling_is_one_more_forward(method):
    model, batch = lively(), ragged()
    mixed, gold = method(RATIO)(model, batch, STEP, KEY), fr.teacher_forcing()(model, batch, step=0)
    outcome = method(RATIO, gold_weight=0.3).run(model, batch, STEP, KEY)
    assert torch.allclose(outcome.loss, mixed + 0.3 * gold, rtol=1e-12)
    assert_same_gradients(gradients(model, outcome.loss), gradients(model, mixed + 0.3 * gold))
    plain, kept = (Watched(lively()) for _ in range(2))
    method(RATIO).run(plain, batch, STEP, KEY)
    method(RATIO, gold_weight=0.3).run(kept, batch, STEP, KEY)
    assert len(kept.calls) == len(plain.calls) + 1


def test_pass_one_runs_in_evaluation_mode_unless_it_is_trained():
    batch = ragged()
    for arguments, training in (({}, False), ({"gold_weight": 1.0}, True), ({"gradient": "full"}, True)):
        model = Watched(lively(dropout=0.3))
        fr.two_pass(RATIO, mix="expected", **arguments).run(model, batch, STEP, KEY)
        (_, _, mode, graph), (_, _, second, _) = model.calls
        assert (mode, graph, second) == (training, training, True)


REFUSED = [
    ({"temperature": 0.5}, "temperature has no effect with mix='argmax'"),
    ({"mix": "sample", "temperature": 0.0}, "temperature must be above 0"),
    ({"top_k": 3}, "top_k has no effect"),
    ({"mix": "top_k", "top_k": 0}, "top_k must be at least 1"),
    ({"gradient": "full"}, "a symbol carries none"),
    ({"mix": "straight_through"}, "is 'sample'"),
    ({"mix": "expected", "gradient": "some"}, "gradient must be 'none' or 'full'"),
    ({"gate": "tokens"}, "gate must be one of"),
    ({"gold_weight": -1.0}, "gold_weight must be a number of 0 or more"),
]


@pytest.mark.parametrize(("arguments", "message"), REFUSED)
def test_arguments_that_do_not_go_together_are_refused(arguments, message):
    refused(message, fr.two_pass, 0.5, **arguments)


def test_mixtures_need_symbols_and_a_model_that_takes_vectors():
    method = fr.two_pass(0.5, mix="expected")
    refused("ForwardOnly takes ids only", method, ForwardOnly(lively()), ragged(), step=0)
    refused("a batch of ids cannot hold", method.transform, lively(), ragged(), step=0)
    refused("two_pass mixes symbols", fr.two_pass(0.5), torch.nn.Identity(), fr.Batch(torch.zeros(2, 3, 1)), step=0)


def test_gold_weight_of_values_fed_with_their_gradient():
    torch.manual_seed(2)
    model = fr.models.Seq2SeqModel(2, 7, 4).double()
    values, context = torch.randn(3, 5, 4, dtype=torch.float64), torch.randn(3, 5, 2, dtype=torch.float64)
    batch = fr.Batch(values, context=context)
    mixed, gold = fr.scheduled_sampling(RATIO)(model, batch, STEP, KEY), fr.teacher_forcing()(model, batch, step=0)
    outcome = fr.scheduled_sampling(RATIO, gold_weight=2.0).run(model, batch, STEP, KEY)
    assert torch.allclose(outcome.loss, mixed + 2.0 * gold, rtol=1e-12)
    assert_same_gradients(gradients(model, outcome.loss), gradients(model, mixed + 2.0 * gold))


@pytest.mark.parametrize(("mix", "gradient"), [("sample", "none"), *[(mix, "full") for mix in SOFT]])
def test_no_gradient_is_lost_to_autocast(mix, gradient):
    """A weight cast in a pass without gradient must not reach the second pass from autocast's cache."""
    model, batch = transformer("rope").float(), ragged()
    with torch.autocast("cpu", torch.bfloat16):
        loss = fr.two_pass(RATIO, mix=mix, gradient=gradient)(model, batch, STEP, KEY)
    assert loss.isfinite()
    silent = [n for n, g in gradients(model, loss).items() if not bool(g.abs().sum() > 0)]
    assert silent == []


@pytest.mark.parametrize("mix", ["sample", "expected"])
def test_targets_move_no_output(mix):
    model, batch = lively(), ragged(size=6)
    method = fr.two_pass(RATIO, mix=mix)
    other = method.run(model, batch.replace(targets=(batch.targets + 1) % 5), STEP, KEY)
    assert torch.equal(other.outputs, method.run(model, batch, STEP, KEY).outputs)


class TestWeights:
    logits = torch.randn(300, 11, generator=torch.Generator().manual_seed(1), dtype=torch.float64) * 3 - 5

    @pytest.mark.parametrize("mix", SOFT)
    def test_are_weights(self, mix):
        draw = Mix(mix).draw
        noise = draw.noise(3, torch.arange(300), torch.arange(300), 11)
        for temperature in (0.3, 1.0, 4.0):
            found = Mix(mix, temperature, 4 if mix == "top_k" else 5).weights(self.logits, noise)
            assert bool((found >= 0).all())
            assert torch.allclose(found.sum(-1), torch.ones(300, dtype=torch.float64), rtol=1e-12)
            chosen = draw.choose(self.logits, noise)
            assert torch.equal(found.argmax(-1), chosen)
        if mix == "top_k":
            assert bool(((found > 0).sum(-1) == 4).all())

    def test_sparsemax_is_the_projection(self):
        bisected = torch.stack([naive.bisected_sparsemax(row) for row in self.logits])
        assert torch.allclose(sparsemax(self.logits), bisected, atol=1e-12)
        assert torch.allclose(sparsemax(self.logits * 1e6).sum(-1), torch.ones(300, dtype=torch.float64))
        assert sparsemax(torch.zeros(1, 4, dtype=torch.float64)).tolist() == [[0.25] * 4]
        masked = torch.tensor([[0.3, -torch.inf, 0.1]], dtype=torch.float64)
        assert torch.allclose(sparsemax(masked), torch.tensor([[0.6, 0.0, 0.4]], dtype=torch.float64))
        rows = self.logits[:20].clone().requires_grad_()
        assert torch.autograd.gradcheck(sparsemax, rows)  # the gradient of finite differences

    @pytest.mark.parametrize("bad", [torch.nan, torch.inf])
    def test_sparsemax_lets_nan_through_to_the_loss(self, bad):
        found = sparsemax(torch.tensor([[bad, 1.0, 2.0], [0.0, 5.0, 0.0]]))
        assert bool(found[0].isnan().any())
        assert found[1].tolist() == [0.0, 1.0, 0.0]
