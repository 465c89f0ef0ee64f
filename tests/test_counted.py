"""The training forward where it counts: loss, gradient and outputs of the plain forward, or the plain forward."""

import copy
import os
from dataclasses import dataclass

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

import freerun as fr
from builders import assert_same_gradients, gradients, language_model, ragged, refused, seq2seq, tiny_llama, transformer
from freerun import hf
from freerun.methods.base import TransformMethod
from freerun.objectives import CrossEntropy
from freerun.training import MethodRun
from freerun.types import Counted

pytest.importorskip("transformers")


COMPILED = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # of torch.compile's own


@pytest.fixture(autouse=True)
def _worth_it(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("freerun.rollin.training._WORTH", 1)  # batches of tests are tiny


def test_a_few_logits_are_not_worth_it(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.undo()
    assert_equal(language_model(), some(), counted=False)
    assert_equal(language_model(), some(size=200, time=60), counted=True)


def some(vocab: int = 5, size: int = 4, time: int = 9, seed: int = 1) -> fr.Batch:
    """A batch that counts at about two of five positions, one row of which counts nowhere."""
    g = torch.Generator().manual_seed(seed)
    ids, weights = torch.randint(vocab, (size, time), generator=g), 0.1 + torch.rand(size, time, generator=g).double()
    mask = torch.rand(size, time, generator=g) < 0.4
    mask[1] = False
    return fr.Batch(ids, mask=mask, weights=weights)


def plain(model, batch: fr.Batch, smoothing: float = 0.0) -> Tensor:
    """The mean loss of all outputs of a call of the model, by hand."""
    log_p = model(batch)[batch.mask].log_softmax(-1)
    each = -(1 - smoothing) * log_p.gather(1, batch.targets[batch.mask][:, None])[:, 0] - smoothing * log_p.mean(-1)
    weights = torch.ones_like(each) if batch.weights is None else batch.weights[batch.mask]
    return (each * weights).sum() / weights.sum()


def assert_equal(model, batch: fr.Batch, *, counted: bool, smoothing: float = 0.0, module: nn.Module | None = None):
    """Loss, gradients and outputs of teacher forcing are the plain ones; and whether only some were computed."""
    module = model if module is None else module
    outcome = fr.teacher_forcing(CrossEntropy(smoothing)).run(model, batch, step=0)
    assert isinstance(outcome.computed, Counted) is counted
    expected = plain(model, batch, smoothing)
    assert abs(float(outcome.loss.detach() - expected.detach())) <= 1e-10 * abs(float(expected.detach()))
    assert_same_gradients(gradients(module, outcome.loss), gradients(module, expected))
    assert torch.allclose(outcome.outputs, model(batch), rtol=0, atol=1e-10)
    assert outcome.outputs.requires_grad
    assert outcome.outputs is outcome.outputs


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("tied", [True, False])
def test_a_language_model(smoothing: float, tied: bool):
    model = language_model(tied=tied)
    assert_equal(model, some(), counted=True, smoothing=smoothing)
    assert_equal(model, some().replace(weights=None), counted=True, smoothing=smoothing)


@pytest.mark.parametrize("make", [seq2seq, transformer])
def test_encoder_decoders_on_ragged_rows(make):
    assert_equal(make(), ragged(), counted=True)


def test_a_batch_that_counts_everywhere_is_the_plain_forward():
    batch = some()
    assert_equal(language_model(), batch.replace(mask=torch.ones_like(batch.mask)), counted=False)


def test_nothing_counts():
    batch = some().replace(mask=torch.zeros(4, 9, dtype=torch.bool))
    model = language_model()
    outcome = fr.teacher_forcing().run(model, batch, step=0)
    outcome.total.backward()
    assert float(outcome.total.detach()) == float(outcome.count) == 0
    assert all(weight.grad is None or not weight.grad.any() for weight in model.parameters())
    assert torch.allclose(outcome.outputs, model(batch), rtol=0, atol=1e-12)


METHODS = (
    fr.scheduled_sampling(0.5),
    fr.scheduled_sampling(0.5, gold_weight=0.5),
    fr.scheduled_sampling(1.0, gold_weight=0.5),
    fr.scheduled_sampling(0.5, engine="draft"),
    fr.teacher_forcing(horizon=3),
    fr.teacher_forcing(loss_on="last"),
    fr.methods.unlikelihood(0.5),
    fr.methods.two_pass(0.5),
)


@pytest.mark.parametrize("method", METHODS, ids=repr)
def test_methods(method, monkeypatch: pytest.MonkeyPatch):
    model, batch = language_model(), some()
    outcome = method.run(model, batch, step=2, key=5)
    mine = gradients(model, outcome.loss)
    monkeypatch.setattr("freerun.rollin.training._WORTH", 10**9)
    theirs = method.run(model, batch, step=2, key=5)
    assert torch.equal(outcome.fed.history, theirs.fed.history)
    assert dict(outcome.report) == dict(theirs.report)
    assert float(outcome.count) == float(theirs.count)
    assert_same_gradients(mine, gradients(model, theirs.loss))
    assert torch.allclose(outcome.outputs, theirs.outputs, rtol=0, atol=1e-10)


def test_an_objective_of_ones_own_sees_all_outputs():
    shapes = []

    def focal(outputs: Tensor, batch: fr.Batch) -> tuple[Tensor, Tensor]:
        shapes.append(outputs.shape)
        return CrossEntropy()(outputs, batch)

    class Half(CrossEntropy):
        def __call__(self, outputs: Tensor, batch: fr.Batch) -> tuple[Tensor, Tensor]:
            shapes.append(outputs.shape)
            return super().__call__(outputs[:, :4], batch.made(**{
                name: getattr(batch, name)[:, :4] for name in ("targets", "history", "mask", "weights")
            }))  # fmt: skip

    for objective in (focal, Half()):
        assert isinstance(fr.teacher_forcing(objective).run(language_model(), some(), step=0).computed, Tensor)
    assert shapes == [(4, 9, 5)] * 2


def test_outputs_are_those_of_the_weights_that_made_them():
    model, batch = language_model(), some()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    outcome = fr.teacher_forcing().run(model, batch, step=0)
    read = fr.teacher_forcing().run(model, batch, step=0)
    before = read.outputs.detach().clone()
    outcome.loss.backward()
    assert torch.equal(fr.teacher_forcing().run(model, batch, step=0).outputs, before)  # after a backward still
    optimizer.step()
    assert torch.equal(read.outputs.detach(), before)  # computed before
    refused("the weights have changed since", lambda: outcome.outputs)
    assert "outputs=(4, 9, 5) float64" in repr(outcome)  # printing computes nothing
    assert float(outcome.loss.detach()) > 0


def test_dropout_before_the_head_is_that_of_the_loss():
    model, batch = seq2seq(dropout=0.5).train(), ragged()
    outcome = fr.teacher_forcing().run(model, batch, step=0)
    assert isinstance(outcome.computed, Counted)
    logits = outcome.outputs[batch.mask]
    expected = F.cross_entropy(logits, batch.targets[batch.mask], reduction="none")
    weights = 1.0 if batch.weights is None else batch.weights[batch.mask]
    assert torch.allclose((expected * weights).sum(), outcome.total)


def test_autocast_reaches_what_is_computed_later():
    model, batch = language_model().float(), some()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        outcome, whole = fr.teacher_forcing().run(model, batch, step=0), model(batch)
    assert outcome.computed.dtype == whole.dtype == torch.bfloat16 == outcome.outputs.dtype
    assert torch.allclose(outcome.outputs.float(), whole.float(), atol=0.05)


class Own(nn.Module):
    """A model of someone else's, in two halves."""

    def __init__(self, factor: float = 1.0) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding, self.rnn, self.out = nn.Embedding(6, 8), nn.GRU(8, 8, batch_first=True), nn.Linear(8, 5)
        self.factor = factor
        self.double()

    def hidden(self, batch: fr.Batch) -> Tensor:
        shifted = torch.cat([torch.full_like(batch.history[:, :1], 5), batch.history[:, :-1]], 1)
        return self.rnn(self.embedding(shifted))[0]

    def head(self, hidden: Tensor) -> Tensor:
        return self.out(hidden)

    def forward(self, batch: fr.Batch) -> Tensor:
        return self.factor * self.head(self.hidden(batch))


class Scaled(Own):
    """A subclass with another forward."""

    def forward(self, batch: fr.Batch) -> Tensor:
        return 3 * super().forward(batch) if self.training else super().forward(batch)


class InTime(Own):
    """A head that wants (batch, time, size)."""

    def head(self, hidden: Tensor) -> Tensor:
        return self.out(hidden - hidden.mean(1, keepdim=True) if hidden.dim() == 3 else hidden)


class Checkpointed(Own):
    """Activations are computed again in the backward."""

    def hidden(self, batch: fr.Batch) -> Tensor:
        return checkpoint(super().hidden, batch, use_reentrant=False)  # pyright: ignore[reportReturnType]


@pytest.mark.parametrize(("model", "counted"), [
    (Own(), True), (Own(2.0), False), (Scaled(), False), (InTime(), False), (Checkpointed(), True),
], ids=["halves", "no halves", "another forward", "a head over time", "checkpointed"])  # fmt: skip
def test_a_model_of_ones_own_is_tried_first(model: Own, counted: bool):
    state = torch.get_rng_state()
    assert_equal(model.train(), some(), counted=counted)
    assert torch.equal(torch.get_rng_state(), state)
    assert model.training


def test_hooks_see_every_position():
    model, batch, seen = language_model(), some(), []
    handle = model.out.register_forward_hook(lambda _, __, out: seen.append(out.shape))
    assert_equal(model, batch, counted=False)
    assert set(seen) == {(4, 9, 5)}
    handle.remove()
    model.register_forward_hook(lambda _, __, out: 2 * out)
    assert_equal(model, batch, counted=False)


@COMPILED
def test_a_compiled_model_stays_whole():
    model = Own()
    assert_equal(torch.compile(model, backend="eager"), some(), counted=False, module=model)
    model.compile(backend="eager")
    assert_equal(model, some(), counted=False)


@pytest.fixture
def alone(tmp_path):
    """A group of one process."""
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def test_wrappers_of_many_processes(alone):
    model, batch = language_model(), some()
    wrapped = DistributedDataParallel(model, forward_sync_buffers=False)
    assert_equal(wrapped, batch, counted=False, module=model)
    # what a wrapper should be around, and the training loop puts it around
    run = DistributedDataParallel(MethodRun(model, fr.teacher_forcing()))
    total, count, _ = run(batch, 0, 0)
    assert_same_gradients(gradients(model, total / count), gradients(model, plain(model, batch)))


# -- Hugging Face


def causal(name: str, **more):
    """A tiny model and its batch of completions, the first half prompts."""
    import transformers

    sizes = {"hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    torch.manual_seed(3)
    config = getattr(transformers, f"{name}Config")(vocab_size=9, pad_token_id=0, max_position_embeddings=32,
                                                    eos_token_id=1, bos_token_id=2, **{**sizes, **more})  # fmt: skip
    model = getattr(transformers, f"{name}ForCausalLM")(config).double()
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(3)
    return model


def completions(m, seed: int = 0) -> fr.Batch:
    ids = torch.randint(3, 9, (3, 8), generator=torch.Generator().manual_seed(seed))
    labels = ids.clone()
    labels[:, :4] = -100
    labels[1, 6:] = -100
    return m.batch(input_ids=ids, labels=labels)


@pytest.mark.parametrize(("name", "more"), [
    ("Llama", {}),
    ("Llama", {"tie_word_embeddings": True}),
    ("Gemma2", {"num_key_value_heads": 1, "head_dim": 4, "final_logit_softcapping": 2.0}),
    ("Cohere", {"logit_scale": 0.3}),
    ("Granite", {"logits_scaling": 4.0}),
], ids=str)  # fmt: skip
def test_causal_models_of_hugging_face(name: str, more: dict):
    m = hf.adapt(causal(name, **more))
    assert_equal(m, completions(m), counted=True)


def test_encoder_decoders_of_hugging_face():
    from transformers import BartConfig, BartForConditionalGeneration, T5Config, T5ForConditionalGeneration

    shared = {"vocab_size": 9, "d_model": 8, "pad_token_id": 0, "eos_token_id": 1, "decoder_start_token_id": 0}
    torch.manual_seed(0)
    t5 = T5ForConditionalGeneration(
        T5Config(**shared, d_kv=4, d_ff=16, num_layers=1, num_heads=2, dropout_rate=0.0)
    ).double()
    bart = BartForConditionalGeneration(
        BartConfig(
            **shared, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2, decoder_attention_heads=2,
            encoder_ffn_dim=8, decoder_ffn_dim=8, dropout=0.0, bos_token_id=2, forced_eos_token_id=None,
        )
    ).double()  # fmt: skip
    bart.final_logits_bias.copy_(torch.randn(1, 9))
    for model in (t5, bart):
        m = hf.adapt(model)
        ids = torch.randint(3, 9, (3, 7), generator=torch.Generator().manual_seed(0))
        labels = ids.clone()
        labels[1, 4:] = -100
        batch = m.batch(input_ids=ids, attention_mask=torch.ones_like(ids), labels=labels)
        assert_equal(m, batch, counted=True)


def test_packed_rows_and_activation_checkpointing():
    model = causal("Llama").train()
    model.activation_checkpointing_enable()
    m = hf.adapt(model)
    ids = torch.randint(3, 9, (2, 10), generator=torch.Generator().manual_seed(0))
    positions = torch.tensor([0, 1, 2, 3, 4, 5, 0, 1, 2, 3]).repeat(2, 1)
    labels = ids.masked_fill(positions < 3, -100)
    assert_equal(m, m.batch(input_ids=ids, labels=labels, position_ids=positions), counted=True)


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
def test_lora_on_the_head_and_around_ddp(alone):
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(r=2, target_modules=["q_proj", "lm_head"], init_lora_weights=False)
    model = peft.get_peft_model(tiny_llama(), config).double()
    m = hf.adapt(model)
    assert_equal(m, completions(m), counted=True)
    names = {name for name, weight in m.named_parameters() if weight.grad is not None}
    assert any("lm_head.lora_A" in name for name in names)
    wrapped = hf.adapt(DistributedDataParallel(model, forward_sync_buffers=False))
    assert_equal(wrapped, completions(wrapped), counted=True)


@COMPILED
def test_hugging_face_models_that_stay_whole():
    model, seen = causal("Llama"), []
    handle = model.lm_head.register_forward_hook(lambda _, __, out: seen.append(out.shape))
    m = hf.adapt(model)
    seen.clear()
    assert_equal(m, completions(m), counted=False)
    assert set(seen) == {(3, 7, 9)}
    handle.remove()
    compiled = hf.adapt(torch.compile(model, backend="eager"))
    assert_equal(compiled, completions(compiled), counted=False)


def test_the_backward_of_a_copy_reads_its_own_weights():
    m = hf.adapt(causal("Llama"))
    other = copy.deepcopy(m)
    assert_equal(other, completions(other), counted=True)


# -- one encoding for roll-in and training


def by_hand(model: nn.Module, batch: fr.Batch) -> Tensor:
    return F.cross_entropy(model(batch)[batch.mask], batch.targets[batch.mask])


@pytest.mark.parametrize(("encoder", "decoder", "expected"), [
    (0.0, 0.3, [(True, True)]),
    (0.3, 0.0, [(True, True), (False, False)]),
    (0.3, 0.3, [(True, True), (False, False)]),
    (0.0, 0.0, [(True, True)]),
    ("frozen", 0.3, [(False, True)]),
], ids=str)  # fmt: skip
@pytest.mark.parametrize("make", [transformer, seq2seq])
@pytest.mark.parametrize("method", [fr.scheduled_sampling(0.3), fr.methods.parallel(0.3)], ids=repr)
def test_the_encoder_runs_twice_only_where_it_drops(make, method, encoder, decoder: float, expected, monkeypatch):
    monkeypatch.setattr("freerun.rollin.training._WORTH", 10**9)
    model, batch = make(dropout=0.1).train(), ragged()
    for name, part in model.named_modules():
        if isinstance(part, nn.Dropout):
            part.p = decoder if not name.startswith("encoder") else 0.3 if encoder == "frozen" else encoder
    if encoder == "frozen":
        model.encoder.eval()
    seen = []  # modes, and whether with a gradient
    handle = model.encoder.register_forward_hook(
        lambda module, _, __: seen.append((module.training, torch.is_grad_enabled()))
    )
    torch.manual_seed(3)
    outcome = method.run(model, batch, step=1, key=4)
    assert seen == expected
    handle.remove()
    # the history is that of the model without dropout, the loss that of one call in training mode
    still = method.run(copy.deepcopy(model).eval(), batch, step=1, key=4)
    assert torch.equal(still.fed.history, outcome.fed.history)
    assert outcome.report["replaced"] > 0
    torch.manual_seed(3)
    by_call = by_hand(model, batch.made(history=outcome.fed.history))
    assert_same_gradients(gradients(model, outcome.loss), gradients(model, by_call))
    assert torch.equal(outcome.loss, by_call)


@dataclass(frozen=True, repr=False)
class Blind(TransformMethod):
    """Feeds another source."""

    name = "blind"

    def mix_history(self, model, batch, step, key):
        return batch.made(context={**batch.context, "source": torch.ones_like(batch.context["source"])}), {}


def test_a_context_that_a_method_changes_is_the_one_that_is_read():
    model, batch = seq2seq(dropout=0.3).train(), ragged()
    batch = batch.replace(mask=torch.ones_like(batch.mask))
    torch.manual_seed(0)
    outputs = Blind().run(model, batch, step=0).outputs
    torch.manual_seed(0)
    model.encode(batch)
    assert torch.equal(outputs, model(Blind().mix_history(model, batch, 0, 0)[0]))
