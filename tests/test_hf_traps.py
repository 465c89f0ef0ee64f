"""What goes wrong silently around Hugging Face models: caches, modes, pads that are output, languages, wrappers."""

import copy
import pickle
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import freerun as fr
import oracles_hf as oracle
from builders import Casts, assert_same_gradients, gradients
from families import CAUSAL, FAMILIES, LANGUAGE, PAD, START, VOCAB, collated
from freerun import draws, hf
from oracles_hf import KEY, NUMBERS, STEP, Prepared, Row, assert_histories, engines, prepared

DROPOUT = {
    "gpt2": {"resid_pdrop": 0.3, "embd_pdrop": 0.3, "attn_pdrop": 0.3}, "llama": {"attention_dropout": 0.3},
    "opt": {"dropout": 0.3, "attention_dropout": 0.3}, "t5": {"dropout_rate": 0.3},
    "bart": {"dropout": 0.3, "attention_dropout": 0.3},
}  # fmt: skip


def modes(model: nn.Module) -> list[bool]:
    return [module.training for module in model.modules()]


def checkpointed(model: Any) -> None:
    """By the name that it has in this release."""
    if hasattr(model, "activation_checkpointing_enable"):
        model.activation_checkpointing_enable({"use_reentrant": False})
    else:
        model.gradient_checkpointing_enable({"use_reentrant": False})


def rolled_in(m: Any, batch: fr.Batch, engine: Any = "auto") -> Any:
    return fr.scheduled_sampling(0.4, engine=engine).run(m, batch, STEP, KEY)


@pytest.mark.parametrize("name", ["gpt2", "llama", "t5", "bart"])
def test_gradient_checkpointing_in_training_mode_does_not_reach_the_roll_in(name):
    """There a model drops its cache without a word, and what is decoded over it is wrong."""
    plain = prepared(name)
    expected = plain.histories(0.4)
    gradient = gradients(plain.model, plain.loss(expected))
    model = FAMILIES[name].build().train()
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        if isinstance(getattr(module, "dropout", None), float):
            module.dropout = 0.0
    checkpointed(model)
    p = prepared(name, model)
    for engine in engines(p.m):
        outcome = rolled_in(p.m, p.batch, engine)
        assert_histories(outcome.fed, expected)
        assert_same_gradients(gradients(model, outcome.loss), gradient)
    assert any(getattr(module, "gradient_checkpointing", False) for module in model.modules())
    assert model.training


@pytest.mark.parametrize("name", DROPOUT)
def test_dropout_rests_in_the_roll_in_and_works_in_the_loss(name):
    p = prepared(name, **DROPOUT[name])
    expected, model = p.histories(0.4), p.model.train()
    frozen = next(module for module in model.modules() if "norm" in type(module).__name__.lower())
    frozen.eval()  # a part that its owner keeps in evaluation mode
    before = modes(model)
    m, batch = p.m, p.batch
    assert modes(model) == before
    for engine in engines(m):
        torch.manual_seed(0)
        outcome = rolled_in(m, batch, engine)
        assert_histories(outcome.fed, expected)
        assert modes(model) == before
        assert rolled_in(m, batch, engine).loss.item() != outcome.loss.item()
    # the numbers of dropout are those of one forward of the model, and nothing before it has drawn any
    own = m.inputs(outcome.fed)
    torch.manual_seed(0)
    if name in CAUSAL:
        assert outcome.loss.isfinite()
    else:
        assert model(**own).loss.item() == pytest.approx(outcome.loss.item(), rel=1e-10)
    fr.generate(m, batch, length=3)
    assert modes(model) == before


@pytest.mark.parametrize("name", ["llama", "t5"])
def test_modes_and_forwards_come_back_after_an_error(name):
    p = prepared(name)
    batch, model = p.batch, p.model.train()
    before, hooks = modes(model), [len(module._forward_hooks) for module in model.modules()]

    def stop(*_: Any) -> None:
        if not torch.is_grad_enabled():
            raise RuntimeError("stopped")

    hook = model.register_forward_pre_hook(stop)
    for engine in engines(p.m):
        with pytest.raises(RuntimeError, match="stopped"):
            rolled_in(p.m, batch, engine)
        assert modes(model) == before
    hook.remove()
    assert [len(module._forward_hooks) for module in model.modules()] == hooks
    assert not any(module._forward_pre_hooks or "forward" in module.__dict__ for module in model.modules())


@pytest.mark.parametrize("name", ["gpt2", "gemma2", "t5", "bart"])
def test_the_model_is_left_as_it_was(name):
    model = FAMILIES[name].build()
    config, weights = model.config.to_dict(), {n: w.clone() for n, w in model.state_dict().items()}
    p = prepared(name, model)
    assert p.m.model is p.m.inner is model
    assert [id(w) for w in p.m.parameters()] == [id(w) for w in model.parameters()]
    assert set(p.m.state_dict()) == {f"model.{n}" for n in weights}
    rolled_in(p.m, p.batch).loss.backward()
    fr.generate(p.m, p.batch, length=2)
    assert model.config.to_dict() == config
    assert all(torch.equal(w, weights[n]) for n, w in model.state_dict().items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert not any("forward" in module.__dict__ for module in model.modules())


def relabelled(model: Any, a: int, b: int) -> None:
    """Exchange two symbols in everything that knows symbols."""
    order = torch.arange(VOCAB)
    order[a], order[b] = b, a
    with torch.no_grad():
        for weight in model.parameters():
            if weight.shape[0] == VOCAB:
                weight.copy_(weight[order])
        for name, buffer in model.named_buffers():
            if "logits_bias" in name:
                buffer.copy_(buffer[:, order])


# a symbol that the model soon outputs greedily once it is exchanged with the special one
SPOKEN = {
    ("gpt2", PAD): 6, ("llama", PAD): 6, ("opt", PAD): 11, ("bloom", PAD): 12, ("t5", PAD): 6, ("bart", PAD): 19,
    ("marian", PAD): 15, ("bert2gpt2", PAD): 23, ("bert2bert", PAD): 4, ("bart", START): 8, ("bert2bert", START): 4,
    ("whisper", START): 10,
}  # fmt: skip


@pytest.mark.parametrize(("name", "special"), SPOKEN)
def test_a_models_own_pad_and_start_are_symbols_like_others(name, special):
    """Else free running would not be ``generate``; some models hide every pad among the ids that they read."""
    model = FAMILIES[name].build()
    inputs = collated(name, model.dtype, "left")
    relabelled(model, SPOKEN[name, special], special)
    rows = oracle.rows_of(model, inputs, NUMBERS)
    spoken = oracle.generated(model, rows, 7)
    assert bool((spoken[:, :2] == special).any())
    m = hf.adapt(model)
    batch = m.batch(**inputs, rows=torch.tensor(NUMBERS))
    for engine in engines(m):
        outcome = fr.free_running(draw="greedy", engine=engine).run(m, batch, STEP, KEY)
        for r, row in enumerate(rows):
            fed = outcome.fed.history[r, row.prompt : len(row.gold)].tolist()
            assert fed == spoken[r, : len(row.gold) - row.prompt].tolist()
    histories = [outcome.fed.history[r, : len(row.gold)].tolist() for r, row in enumerate(rows)]
    tolerance = FAMILIES[name].tolerance_of(model.dtype)
    assert outcome.loss.item() == pytest.approx(oracle.loss(model, rows, histories).item(), rel=tolerance)


def test_the_mask_of_an_encoder_decoder_of_two_parts_hides_no_pad():
    p = prepared("bert2bert")
    assert int((p.inputs["labels"] == PAD).sum()) == 1
    back = p.m.inputs(p.m.batch(**p.inputs))
    assert bool(back["decoder_attention_mask"].all())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of a loss that is taken outside of the decoder
        hidden, visible = p.model(**p.inputs).loss, p.model(**back).loss
    assert abs(hidden.item() - visible.item()) > 1e-3  # what would be lost


def test_two_languages_in_one_batch_keep_their_ids():
    """mBART's labels end with their language, which its shift wraps to the front."""
    p, other = prepared("mbart"), 7
    p.inputs["labels"][1, 2] = other  # the last of its three
    languages = [LANGUAGE, other, LANGUAGE, LANGUAGE]
    batch = p.batch
    assert p.m.inputs(batch)["decoder_input_ids"][:, 0].tolist() == languages
    theirs = p.model(**p.inputs).loss.item()
    assert fr.teacher_forcing()(p.m, batch, step=0).item() == pytest.approx(theirs, rel=1e-10)
    p.rows[:] = oracle.rows_of(p.model, p.inputs, NUMBERS)
    p.rows[1] = Row(p.rows[1].source, other, p.rows[1].gold, p.rows[1].counts, p.rows[1].number)
    outcome = fr.scheduled_sampling(0.2).run(p.m, batch, STEP, KEY)
    assert_histories(outcome.fed, p.histories(0.2))
    assert p.m.inputs(outcome.fed)["decoder_input_ids"][:, 0].tolist() == languages


@pytest.mark.parametrize("name", ["gpt2", "opt", "bloom", "mistral", "lfm2"])
def test_padding_enters_nothing(name):
    """Left, right, or more of it: the same batch, the same coins, the same history, and positions for the way back."""
    model = FAMILIES[name].build()
    m = hf.adapt(model)
    left, right = (collated(name, model.dtype, padding) for padding in ("left", "right"))
    wide = {k: nn.functional.pad(v, (5, 2), value=-100 if k == "labels" else 0) for k, v in left.items()}
    mixed = []
    for inputs in (right, left, wide):
        outcome = rolled_in(m, m.batch(**inputs, rows=torch.tensor(NUMBERS)))
        mixed.append((outcome.fed.history, outcome.loss.item()))
        back = m.inputs(outcome.fed)
        assert model(**back).loss.item() == pytest.approx(outcome.loss.item(), rel=1e-6)
        changed = back["input_ids"] != inputs["input_ids"]
        assert not bool((changed & (inputs["labels"] == -100)).any())
        assert int(changed.sum()) == outcome.report["disagreeing"]
    assert torch.equal(mixed[0][0], mixed[1][0])
    assert torch.equal(mixed[0][0], mixed[2][0])
    assert mixed[0][1] == mixed[1][1] == mixed[2][1]


@pytest.mark.parametrize("name", ["mistral", "gemma3"])
def test_a_window_that_no_probe_reaches_is_kept(name):
    """Layers that look back over 8 tokens, rows of 16: what a cache without windows would give is another history."""
    model = FAMILIES[name].build(sliding_window=8)
    ids = torch.randint(4, VOCAB, (3, 16), generator=torch.Generator().manual_seed(2))
    labels = ids.clone()
    labels[:, :3] = -100
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}
    p = Prepared(model, inputs, oracle.rows_of(model, inputs, [0, 1, 2]), model)
    expected, gold = p.histories(0.3), (p.rows[0], p.rows[0].gold)
    for engine in ["auto", *engines(p.m)]:
        outcome = fr.scheduled_sampling(0.3, engine=engine).run(p.m, p.m.batch(**inputs), STEP, KEY)
        assert_histories(outcome.fed, expected)
    far = oracle.predicted(model, *gold) - oracle.predicted(FAMILIES[name].build(sliding_window=20), *gold)
    assert float(far.detach().abs().max()) > 1e-3


@pytest.mark.parametrize("name", ["gpt2", "t5"])
def test_an_end_symbol_that_the_model_says_ends_nothing(name):
    """The loss covers the labels, and a row goes on, whatever was output on the way."""
    p = prepared(name)
    expected = p.histories(0.0, "greedy")
    end = expected[1][2]  # output in the second row, long before its end
    p.model.config.eos_token_id = p.model.generation_config.eos_token_id = end
    outcome = fr.free_running(draw="greedy").run(p.m, p.batch, STEP, KEY)
    assert_histories(outcome.fed, expected)
    assert int(outcome.count) == sum(sum(row.counts) for row in p.rows)
    tolerance = FAMILIES[name].tolerance_of(p.model.dtype)
    assert outcome.loss.item() == pytest.approx(p.loss(expected).item(), rel=tolerance)


@pytest.mark.parametrize("name", ["llama", "falcon_h1", "t5"])
def test_micro_batches_are_the_batch(name):
    p = prepared(name)
    full = rolled_in(p.m, p.m.batch(**p.inputs))
    parts = [
        rolled_in(p.m, p.m.batch(**{k: v[rows] for k, v in p.inputs.items()}, rows=rows))
        for rows in (torch.tensor([3, 0]), torch.tensor([1, 2]))
    ]
    assert sum(int(part.count) for part in parts) == int(full.count)
    total = sum(part.total for part in parts)
    assert total.item() == pytest.approx(full.total.item(), rel=FAMILIES[name].tolerance_of(p.model.dtype))


@pytest.mark.parametrize("name", ["gpt2", "llama", "t5"])
def test_under_autocast_weights_are_cast_once_a_roll_in_and_again_for_training(name):
    """A weight cast without a graph in the roll-in would reach the training forward from autocast's cache."""
    p = prepared(name, FAMILIES[name].build(torch.float32))
    batch = p.batch  # adapted before anything is counted
    for engine in engines(p.m):
        with torch.autocast("cpu", dtype=torch.bfloat16), Casts(p.model) as casts:
            outcome = rolled_in(p.m, batch, engine)
        assert outcome.report["replaced"] > 4
        assert casts.most == 2
        found = gradients(p.model, outcome.loss)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            alone = fr.teacher_forcing().run(p.m, outcome.fed, step=0)
        assert_same_gradients(found, gradients(p.model, alone.loss), 0.0)
        assert all(bool(g.any()) for n, g in found.items() if "proj" in n or "c_attn" in n)


@pytest.mark.parametrize("name", ["llama", "t5"])
def test_a_draft_in_another_precision_is_certified(name):
    p = prepared(name)
    for engine in ("draft", fr.Draft(torch.float32)):
        assert_histories(rolled_in(p.m, p.batch, engine).fed, p.histories(0.4))


class Wrapper(nn.Module):
    """What DDP looks like: the model is ``module``."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module, self.calls, self.graphs = module, 0, 0

    def forward(self, **arguments: Any) -> Any:
        self.calls, self.graphs = self.calls + 1, self.graphs + torch.is_grad_enabled()
        return self.module(**arguments)


@pytest.mark.parametrize("name", ["llama", "t5"])
def test_a_wrapper_sees_the_training_forward_and_nothing_else(name):
    model = FAMILIES[name].build()
    wrapper = Wrapper(model)
    p = prepared(name, model, wrapper)
    assert (p.m.model, p.m.inner) == (wrapper, model)
    batch = p.batch
    assert wrapper.calls == 0
    expected = p.histories(0.4)
    for engine in engines(p.m):
        wrapper.calls = wrapper.graphs = 0
        outcome = rolled_in(p.m, batch, engine)
        assert wrapper.calls == wrapper.graphs == 1
        assert_histories(outcome.fed, expected)
    assert_same_gradients(gradients(model, outcome.loss), gradients(model, p.loss(expected)))


# peft asks transformers by an old name
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
@pytest.mark.parametrize("name", ["llama", "t5"])
def test_lora_around_a_model(name):
    peft = pytest.importorskip("peft")
    model = FAMILIES[name].build()
    layers = ["q_proj", "v_proj"] if name == "llama" else ["q", "v"]
    wrapped = peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=layers, lora_dropout=0.0))
    with torch.no_grad():
        for n, weight in wrapped.named_parameters():
            if "lora" in n:
                weight.copy_(torch.randn(weight.shape, generator=torch.Generator().manual_seed(len(n))))
    wrapped.double().eval()
    p = prepared(name, model, wrapped)
    assert p.m.inner is model
    histories = p.histories(0.4)  # its layers are LoRA's by now
    expected = gradients(wrapped, p.loss(histories))
    for engine in engines(p.m):
        outcome = rolled_in(p.m, p.batch, engine)
        assert_histories(outcome.fed, histories)
        found = gradients(wrapped, outcome.loss)
        assert_same_gradients(found, expected)
    assert {n for n, g in found.items() if bool(g.any())} == {n for n in found if "lora" in n}


@pytest.mark.slow  # the compiler's first graphs take several seconds
@pytest.mark.parametrize("name", ["llama", "t5"])
def test_a_compiled_model(name):
    model = FAMILIES[name].build()
    p = prepared(name, model, torch.compile(model, backend="eager"))
    assert p.m.inner is model
    expected, outcome = p.histories(0.4), rolled_in(p.m, p.batch)
    assert_histories(outcome.fed, expected)
    assert_same_gradients(gradients(model, outcome.loss), gradients(model, p.loss(expected)))


def predicted_on_mixtures(model: Any, row: Row, weights: dict[int, Tensor]) -> Tensor:
    """The logits where entry t is the mixture ``weights[t]`` of looked-up symbols, all else the model's own.

    The look-up itself returns the mixture, so that whatever the model does to what it has looked up (scaling,
    positions, a norm) it does to the mixture too.
    """
    decoder = model.get_decoder() if model.config.is_encoder_decoder else model
    table = decoder.get_input_embeddings()
    ids = torch.tensor([[row.first, *row.gold[:-1]]])
    changed: list[int] = []

    def mixed(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor | None:
        if changed or args[0].shape != ids.shape or not torch.equal(args[0], ids):
            return None
        changed.append(1)
        every = module(torch.arange(VOCAB))
        lines = [output[0, t] if t - 1 not in weights else weights[t - 1] @ every for t in range(ids.shape[1])]
        return torch.stack(lines)[None]

    hook = table.register_forward_hook(mixed)
    found = oracle.predicted(model, row, row.gold[:-1])
    hook.remove()
    assert changed
    return found


@pytest.mark.parametrize("gradient", ["none", "full"])
@pytest.mark.parametrize("name", ["gpt2", "llama", "gemma2", "gemma3", "granite", "opt", "t5", "bart", "mbart"])
def test_soft_mixtures_are_looked_up_as_the_model_looks_up_symbols(name, gradient):
    """Two passes with expected embeddings: Gemma and BART scale what they look up, and Granite after that."""
    p, family = prepared(name), FAMILIES[name]
    model = p.model
    losses: list[Tensor] = []
    for row in p.rows:
        first = oracle.predicted(model, row, row.gold[:-1])
        first = first if gradient == "full" else first.detach()
        own = [t for t in range(len(row.gold)) if row.counts[t] and not oracle.coin(row, t, 0.4, KEY, STEP)]
        second = predicted_on_mixtures(model, row, {t: first[t].softmax(-1) for t in own}).log_softmax(-1)
        losses += [-second[t, symbol] for t, symbol in enumerate(row.gold) if row.counts[t]]
    naive = torch.stack(losses).mean()
    expected = gradients(model, naive)
    outcome = fr.two_pass(0.4, mix="expected", gradient=gradient).run(p.m, p.batch, STEP, KEY)
    assert outcome.loss.item() == pytest.approx(naive.item(), rel=family.tolerance_of(model.dtype))
    # through both passes T5's weights of attention, taken in float32, show
    assert_same_gradients(gradients(model, outcome.loss), expected, max(1e-7, family.gradient_tolerance(model.dtype)))


@pytest.mark.parametrize("name", ["llama", "t5"])
def test_two_passes_of_symbols_and_k_passes(name):
    """One pass on gold, symbols chosen from it: the approximation, and nothing else."""
    p = prepared(name)
    expected: list[list[int]] = []
    for row in p.rows:
        first = oracle.predicted(p.model, row, row.gold[:-1]).argmax(-1).tolist()
        kept = [not row.counts[t] or oracle.coin(row, t, 0.4, KEY, STEP) for t in range(len(row.gold))]
        expected.append([g if k else s for g, s, k in zip(row.gold, first, kept, strict=True)])
    for method in (fr.two_pass(0.4), fr.scheduled_sampling(0.4, draw=draws.Greedy(), engine=1)):
        outcome = method.run(p.m, p.batch, STEP, KEY)
        assert_histories(outcome.fed, expected)
        assert outcome.report["exact"] == 0.0


def test_a_users_own_positions_and_arguments_reach_the_model():
    """Left padding with the positions that a collator computed, and with none."""
    p = prepared("gpt2")
    with_positions = oracle.own_arguments(p.model, p.inputs)
    a, b = (rolled_in(p.m, p.m.batch(**inputs)) for inputs in (p.inputs, with_positions))
    assert torch.equal(a.fed.history, b.fed.history)
    for outcome in (a, b):
        assert torch.equal(p.m.inputs(outcome.fed)["position_ids"], with_positions["position_ids"])


def test_an_adapter_is_copied_and_pickled_whole():
    p = prepared("llama")
    for again in (copy.deepcopy(p.m), pickle.loads(pickle.dumps(p.m))):
        batch = again.batch(**p.inputs)
        assert again.inner is again.model is not p.m.inner
        assert type(again).__mro__[1:] == type(p.m).__mro__[1:]
        assert torch.equal(rolled_in(again, batch).fed.history, rolled_in(p.m, batch).fed.history)
