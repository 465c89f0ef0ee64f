"""PyTorch's own layers as models: steps are the layer's forward, and every method and gradient goes through."""

import pytest
import torch
from torch import nn

import freerun as fr
from builders import SOURCE_VOCAB, TARGET_VOCAB, assert_same_gradients, gradients, ragged, refused
from freerun.checks.run import examine
from freerun.keys import fold
from oracles import coins, full_prefix
from step_models import numbers

KEY, STEP, SIZE = 5, 3, 8


def lively(model: nn.Module) -> nn.Module:
    model = model.double()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" not in name:
                parameter.mul_(2.5)
    return model


def recurrent(kind: type[nn.RNNBase], **settings) -> nn.Module:
    torch.manual_seed(0)
    rnn = kind(SIZE, SIZE, **settings)
    width = settings.get("proj_size") or SIZE
    return lively(
        fr.models.RecurrentDecoder(
            rnn, nn.Embedding(TARGET_VOCAB + 1, SIZE), nn.Linear(width, TARGET_VOCAB), start=TARGET_VOCAB
        )
    )


class Translator(nn.Module):
    """The owner's encoder: a table of the source."""

    def __init__(self) -> None:
        super().__init__()
        self.source = nn.Embedding(SOURCE_VOCAB, SIZE)

    def __call__(self, batch):
        return self.source(batch.context["source"]), ~batch.context["source_mask"]


def transformer(**settings) -> nn.Module:
    torch.manual_seed(0)
    layer = nn.TransformerDecoderLayer(SIZE, 2, 12, dropout=0.0, **settings)
    norm = nn.LayerNorm(SIZE) if settings.get("norm_first") else None
    return lively(
        fr.models.TransformerDecoderModel(
            nn.TransformerDecoder(layer, 2, norm), nn.Embedding(TARGET_VOCAB + 1, SIZE), nn.Linear(SIZE, TARGET_VOCAB),
            start=TARGET_VOCAB, encode=Translator(), positions=nn.Parameter(torch.randn(16, SIZE)),
        )
    )  # fmt: skip


MODELS = {
    "rnn": lambda: recurrent(nn.RNN),
    "gru, two layers": lambda: recurrent(nn.GRU, num_layers=2, batch_first=True),
    "lstm": lambda: recurrent(nn.LSTM),
    "lstm with projection": lambda: recurrent(nn.LSTM, num_layers=2, proj_size=6),
    "transformer": lambda: transformer(batch_first=True),
    "transformer, norm first": lambda: transformer(norm_first=True, activation="gelu"),
}
models = pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)


@models
@pytest.mark.parametrize("engine", ["auto", "step", "jacobi"])
@pytest.mark.parametrize("draw", ["greedy", "sample"])
def test_every_engine_equals_the_full_prefix_oracle(make, engine, draw):
    model, batch = make(), ragged()
    keep = coins("token", batch, 0.4, KEY, STEP)
    expected = full_prefix(model, batch, keep, draw, fold(KEY, "draw", STEP))
    outcome = fr.scheduled_sampling(0.4, draw=draw, engine=engine).run(model, batch, STEP, KEY)
    assert torch.equal(outcome.fed.history, expected)
    direct = fr.teacher_forcing()(model, batch.made(history=expected), STEP)
    assert_same_gradients(gradients(model, outcome.loss), gradients(model, direct))


@models
def test_the_checks_pass(make):
    findings = {each.name: each.status for each in examine(make(), ragged()).findings}
    assert "refused" not in findings.values()
    assert findings["step_equals_parallel"] == findings["stepper_select"] == findings["split_equals_forward"] == "ok"


@models
def test_it_generates_as_it_free_runs(make):
    model, batch = make(), ragged()
    everywhere = fr.Batch(batch.history, context=batch.context, rows=batch.rows)
    free = fr.free_running(draw="greedy").run(model, everywhere, 0, KEY).fed.history
    assert torch.equal(fr.generate(model, everywhere, length=7, end=None).entries, free)


def test_the_forward_is_the_layers_own():
    model, batch = transformer(batch_first=True), ragged()
    shifted = torch.cat([torch.full((4, 1), TARGET_VOCAB), batch.history[:, :-1]], 1)
    memory, padding = Translator.__call__(model.memory, batch)
    x = model.embedding(shifted) + model.positions[:7]
    causal = nn.Transformer.generate_square_subsequent_mask(7, dtype=torch.float64)
    padding = torch.zeros(padding.shape, dtype=torch.float64).masked_fill(padding, -torch.inf)
    outputs = model.decoder(x, memory, tgt_mask=causal, memory_key_padding_mask=padding)
    assert torch.allclose(model(batch), model.head(outputs), atol=1e-12)


@pytest.mark.parametrize("gradient", ["full", 2, "none"])
def test_a_map_from_one_value_to_the_next(gradient):
    torch.manual_seed(0)
    model = fr.models.OneStepMap(nn.Sequential(nn.Linear(2, 6), nn.Tanh(), nn.Linear(6, 2)).double())
    batch = numbers()
    batch = batch.replace(context=torch.randn(4, 2, dtype=torch.float64))
    keep = coins("token", batch, 0.5, KEY, STEP)
    previous, total = batch.context, torch.zeros((), dtype=torch.float64)
    for t in range(batch.time):
        outputs = model.map(previous)
        total = total + ((outputs - batch.targets[:, t]) ** 2)[batch.mask[:, t]].sum()
        own = outputs.detach() if gradient == "none" else outputs
        previous = torch.where(keep[:, t, None], batch.history[:, t], own)
        previous = previous.detach() if gradient == 2 and t % 2 == 1 else previous
    outcome = fr.scheduled_sampling(0.5, gradient=gradient).run(model, batch, STEP, KEY)
    assert outcome.total.item() == pytest.approx(total.item(), rel=1e-12)
    assert_same_gradients(gradients(model, outcome.total), gradients(model, total))
    whole = fr.Batch(batch.targets, context=batch.context)
    assert fr.pushforward(horizon=3)(model, whole, STEP, KEY).isfinite()
    assert fr.generalised_teacher_forcing(alpha="adaptive")(model, whole, STEP, KEY).isfinite()


@pytest.mark.parametrize("context", ["value", "past"])
@pytest.mark.parametrize("steps", [1, 2, 5])
def test_pushforward_of_a_map_is_one_step_from_a_run_without_gradient(steps, context):
    torch.manual_seed(0)
    model = fr.models.OneStepMap(nn.Sequential(nn.Linear(2, 6), nn.Tanh(), nn.Linear(6, 2)).double())
    past, targets = torch.randn(4, 3, 2, dtype=torch.float64), torch.randn(4, 6, 2, dtype=torch.float64)
    batch = fr.Batch(targets, context=past[:, -1] if context == "value" else {"past": past})
    u = past[:, -1]
    with torch.no_grad():
        for _ in range(steps - 1):
            u = model.map(u)
    expected = (model.map(u) - targets[:, steps - 1]).square().mean()
    found = fr.pushforward(horizon=steps, drawn=False)(model, batch, STEP, KEY)
    assert found.item() == pytest.approx(expected.item(), rel=1e-12)
    assert_same_gradients(gradients(model, found), gradients(model, expected))
    made = fr.generate(model, batch, length=steps).entries
    assert torch.allclose(made[:, -1], model.map(u), atol=1e-12)


def test_fields_of_any_shape():
    field = nn.Conv2d(1, 1, 3, padding=1).double()
    values = torch.randn(2, 4, 9, dtype=torch.float64)
    model = fr.models.OneStepMap(field, lambda batch: torch.zeros(batch.size, 1, 3, 3).double(), shape=(1, 3, 3))
    outputs = model(fr.Batch(values))
    assert torch.allclose(outputs[:, 1], field(values[:, 0].view(2, 1, 3, 3)).flatten(1))


def test_what_cannot_be_wrapped_is_refused():
    embedding, head = nn.Embedding(6, SIZE), nn.Linear(SIZE, 5)
    refused("bidirectional", fr.models.RecurrentDecoder, nn.GRU(SIZE, SIZE, bidirectional=True), embedding, head)
    refused("got Linear", fr.models.RecurrentDecoder, head, embedding, head)
    unstarted = fr.models.RecurrentDecoder(nn.GRU(SIZE, SIZE), embedding, head)
    refused("needs start=", unstarted, ragged())
    refused("leave start out", recurrent(nn.GRU), numbers())
    refused("nn.TransformerDecoderLayer", fr.models.TransformerDecoderModel, nn.Linear(1, 1), embedding, head,
            start=1, encode=len)  # fmt: skip
    model = transformer()
    model.positions = nn.Parameter(torch.zeros(5, SIZE, dtype=torch.float64))
    refused("position 7 is needed", model, ragged())
    refused(["must be (4, 2)"], fr.models.OneStepMap(head), numbers())
    refused("these targets are ids", fr.models.OneStepMap(head), fr.Batch(ragged().targets, context=torch.zeros(4, 1)))


def test_weights_of_an_encoder_are_trained_or_refused():
    shared, layer = nn.Embedding(TARGET_VOCAB + 1, SIZE), nn.TransformerDecoderLayer(SIZE, 2, 12, batch_first=True)

    def made(encode):
        parts = nn.TransformerDecoder(layer, 1), shared, nn.Linear(SIZE, TARGET_VOCAB)
        return fr.models.TransformerDecoderModel(*parts, start=TARGET_VOCAB, encode=encode)

    batch = fr.Batch(torch.tensor([[1, 2, 0]]), context=torch.tensor([[1, 2]]))
    assert made(lambda b: (shared(b.context), None))(batch).isfinite().all()
    elsewhere = nn.Embedding(SOURCE_VOCAB, SIZE)
    refused("weights to learn that are not the model's", made(lambda b: (elsewhere(b.context), None)), batch)

    class Owner(nn.Module):
        def __init__(self):
            super().__init__()
            self.source = nn.Embedding(SOURCE_VOCAB, SIZE)
            self.model = made(self.encode)

        def encode(self, b):
            return self.source(b.context), None

    owner = Owner().eval()
    assert owner.model(batch).isfinite().all()
    assert any(part is owner.source.weight for part in owner.model.parameters())
