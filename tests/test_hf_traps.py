"""What goes wrong silently around Hugging Face models: caches, modes, pads that are said, languages, wrappers."""

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import freerun as fr
from builders import assert_same_gradients, gradients
from families import CAUSAL, FAMILIES, LANGUAGE, PAD, SEQ2SEQ, START, VOCAB, collated
from freerun import draws, hf
from freerun.types import Cached, Stepper
from oracles_hf import Row, coin, full_prefix, generated, loss, own_arguments, rows_of, said

KEY, STEP = 5, 3
NUMBERS = [10, 13, 11, 12]
DROPOUT = {
    "gpt2": {"resid_pdrop": 0.3, "embd_pdrop": 0.3, "attn_pdrop": 0.3},
    "llama": {"attention_dropout": 0.3},
    "opt": {"dropout": 0.3, "attention_dropout": 0.3},
    "t5": {"dropout_rate": 0.3},
    "bart": {"dropout": 0.3, "attention_dropout": 0.3},
}


def inputs_of(name: str, model: Any, padding: str = "left") -> dict[str, Tensor]:
    return collated(name, model.dtype, padding)


def engines(m: Any) -> list[str]:
    return ["jacobi", *(["step"] if isinstance(m, Stepper) else []), *(["window"] if isinstance(m, Cached) else [])]


def histories(model: Any, rows: list[Row], ratio: float, draw: str = "sample") -> list[list[int]]:
    return [full_prefix(model, row, ratio, draw, KEY, STEP) for row in rows]


def assert_histories(batch: fr.Batch, wanted: list[list[int]]) -> None:
    for r, history in enumerate(wanted):
        assert batch.history[r, : len(history)].tolist() == history, f"row {r}"


def modes(model: nn.Module) -> list[bool]:
    return [module.training for module in model.modules()]


def checkpointed(model: Any) -> None:
    """By the name that it has in this release."""
    if hasattr(model, "activation_checkpointing_enable"):
        model.activation_checkpointing_enable({"use_reentrant": False})
    else:
        model.gradient_checkpointing_enable({"use_reentrant": False})


@pytest.mark.parametrize("name", ["gpt2", "llama", "t5", "bart"])
def test_gradient_checkpointing_in_training_mode_does_not_reach_the_roll_in(name):
    """There a model drops its cache without a word, and what is decoded over it is wrong."""
    plain, model = FAMILIES[name].build(), FAMILIES[name].build()
    rows = rows_of(plain, inputs_of(name, plain), NUMBERS)
    wanted = histories(plain, rows, 0.4)
    expected = gradients(plain, loss(plain, rows, wanted))
    model.train()
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        module.dropout = (
            0.0 if isinstance(getattr(module, "dropout", None), float) else getattr(module, "dropout", None)
        )
    checkpointed(model)
    m = hf.adapt(model)
    batch = m.batch(**inputs_of(name, model), rows=torch.tensor(NUMBERS))
    for engine in engines(m):
        outcome = fr.scheduled_sampling(0.4, engine=engine).run(m, batch, STEP, KEY)
        assert_histories(outcome.fed, wanted)
        assert_same_gradients(gradients(model, outcome.loss), expected)
    assert any(getattr(module, "gradient_checkpointing", False) for module in model.modules())
    assert model.training


@pytest.mark.parametrize("name", DROPOUT)
def test_dropout_rests_in_the_roll_in_and_works_in_the_loss(name):
    model = FAMILIES[name].build(**DROPOUT[name])
    rows = rows_of(model, inputs_of(name, model), NUMBERS)
    wanted = histories(model, rows, 0.4)
    model.train()
    frozen = next(module for module in model.modules() if "norm" in type(module).__name__.lower())
    frozen.eval()  # a part that its owner keeps in evaluation mode
    before = modes(model)
    m = hf.adapt(model)
    assert modes(model) == before
    batch = m.batch(**inputs_of(name, model), rows=torch.tensor(NUMBERS))
    for engine in engines(m):
        torch.manual_seed(0)
        outcome = fr.scheduled_sampling(0.4, engine=engine).run(m, batch, STEP, KEY)
        assert_histories(outcome.fed, wanted)
        assert modes(model) == before
        assert fr.scheduled_sampling(0.4, engine=engine)(m, batch, STEP, KEY).item() != outcome.loss.item()
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
    model = FAMILIES[name].build()
    m = hf.adapt(model)
    batch = m.batch(**inputs_of(name, model))
    model.train()
    before, hooks = modes(model), [len(module._forward_hooks) for module in model.modules()]

    def stop(*_: Any) -> None:
        if not torch.is_grad_enabled():
            raise RuntimeError("stopped")

    hook = model.register_forward_pre_hook(stop)
    for engine in engines(m):
        with pytest.raises(RuntimeError, match="stopped"):
            fr.scheduled_sampling(0.4, engine=engine)(m, batch, step=0)
        assert modes(model) == before
    hook.remove()
    assert [len(module._forward_hooks) for module in model.modules()] == hooks
    assert not any(module._forward_pre_hooks or "forward" in module.__dict__ for module in model.modules())


@pytest.mark.parametrize("name", ["gpt2", "gemma2", "t5", "bart"])
def test_the_model_is_left_as_it_was(name):
    model = FAMILIES[name].build()
    config, weights = model.config.to_dict(), {n: w.clone() for n, w in model.state_dict().items()}
    m = hf.adapt(model)
    assert m.model is m.inner is model
    assert [id(p) for p in m.parameters()] == [id(p) for p in model.parameters()]
    assert set(m.state_dict()) == {f"model.{n}" for n in weights}
    batch = m.batch(**inputs_of(name, model))
    fr.scheduled_sampling(0.4)(m, batch, step=0).backward()
    fr.generate(m, batch, length=2)
    assert model.config.to_dict() == config
    assert all(torch.equal(w, weights[n]) for n, w in model.state_dict().items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert not any("forward" in module.__dict__ for module in model.modules())


def relabelled(model: Any, a: int, b: int) -> None:
    """Two symbols take each other's place, in everything that knows symbols."""
    order = torch.arange(VOCAB)
    order[a], order[b] = b, a
    with torch.no_grad():
        for weight in model.parameters():
            if weight.shape[0] == VOCAB:
                weight.copy_(weight[order])
        for name, buffer in model.named_buffers():
            if "logits_bias" in name:
                buffer.copy_(buffer[:, order])


# a symbol that the model soon says greedily once it has changed places with the special one
SPOKEN = {
    ("gpt2", PAD): 6, ("llama", PAD): 6, ("opt", PAD): 11, ("bloom", PAD): 12, ("t5", PAD): 6, ("bart", PAD): 19,
    ("marian", PAD): 15, ("bert2gpt2", PAD): 23, ("bert2bert", PAD): 4, ("bart", START): 8, ("bert2bert", START): 4,
    ("whisper", START): 10,
}  # fmt: skip


@pytest.mark.parametrize(("name", "special"), SPOKEN)
def test_a_models_own_pad_and_start_are_symbols_like_others(name, special):
    """Else free running would not be ``generate``; some models hide every pad among the ids they are told."""
    model = FAMILIES[name].build()
    given = inputs_of(name, model)
    relabelled(model, SPOKEN[name, special], special)
    rows = rows_of(model, given, NUMBERS)
    spoken = generated(model, rows, 7)
    assert bool((spoken[:, :2] == special).any())
    m = hf.adapt(model)
    batch = m.batch(**given, rows=torch.tensor(NUMBERS))
    for engine in engines(m):
        outcome = fr.free_running(draw="greedy", engine=engine).run(m, batch, STEP, KEY)
        for r, row in enumerate(rows):
            said_here = len(row.gold) - row.prompt
            assert outcome.fed.history[r, row.prompt : len(row.gold)].tolist() == spoken[r, :said_here].tolist()
    wanted = [outcome.fed.history[r, : len(row.gold)].tolist() for r, row in enumerate(rows)]
    tolerance = FAMILIES[name].tolerance_of(model.dtype)
    assert outcome.loss.item() == pytest.approx(loss(model, rows, wanted).item(), rel=tolerance)


def test_an_encoder_decoder_of_two_parts_is_told_that_no_pad_is_padding():
    model = FAMILIES["bert2bert"].build()
    m, given = hf.adapt(model), inputs_of("bert2bert", model)
    assert int((given["labels"] == PAD).sum()) == 1
    back = m.inputs(m.batch(**given))
    assert bool(back["decoder_attention_mask"].all())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of a loss that is taken outside of the decoder
        hidden = model(**given).loss
        shown = model(**back).loss
    assert abs(hidden.item() - shown.item()) > 1e-3  # what would be lost


def test_two_languages_in_one_batch_keep_their_ids():
    """mBART's labels end with their language, which its shift wraps to the front."""
    model = FAMILIES["mbart"].build()
    given = inputs_of("mbart", model)
    other = 7
    given["labels"][1, 2] = other  # the last of its three
    m = hf.adapt(model)
    batch = m.batch(**given, rows=torch.tensor(NUMBERS))
    back = m.inputs(batch)
    assert back["decoder_input_ids"][:, 0].tolist() == [LANGUAGE, other, LANGUAGE, LANGUAGE]
    assert fr.teacher_forcing()(m, batch, step=0).item() == pytest.approx(model(**given).loss.item(), rel=1e-10)
    rows = rows_of(model, given, NUMBERS)
    rows[1] = Row(rows[1].source, other, rows[1].gold, rows[1].counts, rows[1].number)
    wanted = histories(model, rows, 0.2)
    outcome = fr.scheduled_sampling(0.2).run(m, batch, STEP, KEY)
    assert_histories(outcome.fed, wanted)
    assert m.inputs(outcome.fed)["decoder_input_ids"][:, 0].tolist() == [LANGUAGE, other, LANGUAGE, LANGUAGE]


@pytest.mark.parametrize("name", ["gpt2", "opt", "bloom", "mistral", "lfm2"])
def test_padding_enters_nothing(name):
    """Left, right, or more of it: the same batch, the same coins, the same history, and positions for the way back."""
    model = FAMILIES[name].build()
    m = hf.adapt(model)
    left, right = inputs_of(name, model, "left"), inputs_of(name, model, "right")
    wide = {k: nn.functional.pad(v, (5, 2), value=-100 if k == "labels" else 0) for k, v in left.items()}
    mixed = []
    for given in (right, left, wide):
        batch = m.batch(**given, rows=torch.tensor(NUMBERS))
        outcome = fr.scheduled_sampling(0.4).run(m, batch, STEP, KEY)
        mixed.append((outcome.fed.history, outcome.loss.item()))
        back = m.inputs(outcome.fed)
        assert model(**back).loss.item() == pytest.approx(outcome.loss.item(), rel=1e-6)
        changed = back["input_ids"] != given["input_ids"]
        assert not bool((changed & (given["labels"] == -100)).any())
        assert int(changed.sum()) == outcome.report["disagreeing"]
    assert torch.equal(mixed[0][0], mixed[1][0])
    assert torch.equal(mixed[0][0], mixed[2][0])
    assert mixed[0][1] == mixed[1][1] == mixed[2][1]


@pytest.mark.parametrize("name", ["mistral", "gemma3"])
def test_a_window_that_no_probe_reaches_is_kept(name):
    """Layers that look back over 8 tokens, rows of 16: what a cache without windows would give is another history."""
    model = FAMILIES[name].build(sliding_window=8)
    m = hf.adapt(model)
    ids = torch.randint(4, VOCAB, (3, 16), generator=torch.Generator().manual_seed(2))
    labels = ids.clone()
    labels[:, :3] = -100
    given = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}
    rows = rows_of(model, given, [0, 1, 2])
    wanted = histories(model, rows, 0.3)
    for engine in ["auto", *engines(m)]:
        outcome = fr.scheduled_sampling(0.3, engine=engine).run(m, m.batch(**given), STEP, KEY)
        assert_histories(outcome.fed, wanted)
    far = said(model, rows[0], rows[0].gold) - said(FAMILIES[name].build(sliding_window=20), rows[0], rows[0].gold)
    assert float(far.detach().abs().max()) > 1e-3


@pytest.mark.parametrize("name", ["gpt2", "t5"])
def test_an_end_symbol_that_the_model_says_ends_nothing(name):
    """The loss covers the labels, and a row goes on, whatever was said on the way."""
    model = FAMILIES[name].build()
    given = inputs_of(name, model)
    rows = rows_of(model, given, NUMBERS)
    wanted = histories(model, rows, 0.0, "greedy")
    end = wanted[1][2]  # said in the second row, long before its end
    model.config.eos_token_id = model.generation_config.eos_token_id = end
    m = hf.adapt(model)
    batch = m.batch(**given, rows=torch.tensor(NUMBERS))
    outcome = fr.free_running(draw="greedy").run(m, batch, STEP, KEY)
    assert_histories(outcome.fed, wanted)
    assert int(outcome.count) == sum(sum(row.counts) for row in rows)
    tolerance = FAMILIES[name].tolerance_of(model.dtype)
    assert outcome.loss.item() == pytest.approx(loss(model, rows, wanted).item(), rel=tolerance)


@pytest.mark.parametrize("name", ["llama", "falcon_h1", "t5"])
def test_micro_batches_are_the_batch(name):
    model = FAMILIES[name].build()
    m, given = hf.adapt(model), inputs_of(name, model)
    method = fr.scheduled_sampling(0.4)
    whole = method.run(m, m.batch(**given), STEP, KEY)
    parts = [
        method.run(m, m.batch(**{k: v[rows] for k, v in given.items()}, rows=rows), STEP, KEY)
        for rows in (torch.tensor([3, 0]), torch.tensor([1, 2]))
    ]
    assert sum(int(part.count) for part in parts) == int(whole.count)
    total = sum(part.total for part in parts)
    assert total.item() == pytest.approx(whole.total.item(), rel=FAMILIES[name].tolerance_of(model.dtype))


@pytest.mark.parametrize("name", ["gpt2", "llama", "t5"])
def test_autocast_leaves_no_weight_behind(name):
    """A weight cast without a graph in the roll-in would reach the training forward from autocast's cache.

    Newer releases of torch see to it themselves, so what is also looked at is that the roll-in keeps none.
    """
    model = FAMILIES[name].build(torch.float32)
    m = hf.adapt(model)
    kept: list[tuple[bool, bool]] = []
    model.register_forward_pre_hook(
        lambda *_: kept.append((torch.is_grad_enabled(), torch.is_autocast_cache_enabled()))
    )
    batch = m.batch(**inputs_of(name, model), rows=torch.tensor(NUMBERS))
    for engine in engines(m):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            outcome = fr.scheduled_sampling(0.4, engine=engine).run(m, batch, STEP, KEY)
        assert outcome.report["replaced"] > 4
        assert {cached for graph, cached in kept if not graph} == {False}
        assert (True, True) in kept
        kept.clear()
        found = gradients(model, outcome.loss)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            alone = fr.teacher_forcing().run(m, outcome.fed, step=0)
        assert_same_gradients(found, gradients(model, alone.loss), 0.0)
        assert all(bool(g.any()) for n, g in found.items() if "proj" in n or "c_attn" in n)


@pytest.mark.parametrize("name", ["llama", "t5"])
def test_a_draft_in_another_precision_is_certified(name):
    model = FAMILIES[name].build()
    m, given = hf.adapt(model), inputs_of(name, model)
    wanted = histories(model, rows_of(model, given, NUMBERS), 0.4)
    batch = m.batch(**given, rows=torch.tensor(NUMBERS))
    for engine in ("draft", fr.Draft(torch.float32)):
        outcome = fr.scheduled_sampling(0.4, engine=engine).run(m, batch, STEP, KEY)
        assert_histories(outcome.fed, wanted)


class Wrapper(nn.Module):
    """What DDP looks like: the model is ``module``."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module, self.calls, self.graphs = module, 0, 0

    def forward(self, **given: Any) -> Any:
        self.calls, self.graphs = self.calls + 1, self.graphs + torch.is_grad_enabled()
        return self.module(**given)


@pytest.mark.parametrize("name", ["llama", "t5"])
def test_a_wrapper_sees_the_training_forward_and_nothing_else(name):
    model = FAMILIES[name].build()
    wrapper = Wrapper(model)
    m = hf.adapt(wrapper)
    assert (m.model, m.inner) == (wrapper, model)
    batch = m.batch(**inputs_of(name, model), rows=torch.tensor(NUMBERS))
    assert wrapper.calls == 0
    wanted = histories(model, rows_of(model, inputs_of(name, model), NUMBERS), 0.4)
    for engine in engines(m):
        wrapper.calls = 0
        outcome = fr.scheduled_sampling(0.4, engine=engine).run(m, batch, STEP, KEY)
        assert wrapper.calls == wrapper.graphs == 1
        assert_histories(outcome.fed, wanted)
        wrapper.graphs = 0
    assert_same_gradients(
        gradients(model, outcome.loss),
        gradients(model, loss(model, rows_of(model, inputs_of(name, model), NUMBERS), wanted)),
    )


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
    m = hf.adapt(wrapped)
    assert m.inner is model
    given = inputs_of(name, model)
    rows = rows_of(model, given, NUMBERS)
    wanted = histories(model, rows, 0.4)  # its layers are LoRA's by now
    batch = m.batch(**given, rows=torch.tensor(NUMBERS))
    expected = gradients(wrapped, loss(model, rows, wanted))
    for engine in engines(m):
        outcome = fr.scheduled_sampling(0.4, engine=engine).run(m, batch, STEP, KEY)
        assert_histories(outcome.fed, wanted)
        found = gradients(wrapped, outcome.loss)
        assert_same_gradients(found, expected)
    assert {n for n, g in found.items() if bool(g.any())} == {n for n in found if "lora" in n}


@pytest.mark.slow  # the compiler's first graphs take several seconds
@pytest.mark.parametrize("name", ["llama", "t5"])
def test_a_compiled_model(name):
    model = FAMILIES[name].build()
    m = hf.adapt(torch.compile(model, backend="eager"))
    assert m.inner is model
    given = inputs_of(name, model)
    rows = rows_of(model, given, NUMBERS)
    wanted = histories(model, rows, 0.4)
    outcome = fr.scheduled_sampling(0.4).run(m, m.batch(**given, rows=torch.tensor(NUMBERS)), STEP, KEY)
    assert_histories(outcome.fed, wanted)
    assert_same_gradients(gradients(model, outcome.loss), gradients(model, loss(model, rows, wanted)))


def told_vectors(model: Any, row: Row, weights: dict[int, Tensor]) -> Tensor:
    """The logits where entry t is the mixture ``weights[t]`` of looked-up symbols, all else the model's own.

    The mixture is put in its place by the look-up itself, so that whatever the model does to what it has looked up
    (scaling, positions, a norm) it does to the mixture too.
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
    found = said(model, row, row.gold[:-1])
    hook.remove()
    assert changed
    return found


@pytest.mark.parametrize("gradient", ["none", "full"])
@pytest.mark.parametrize("name", ["gpt2", "llama", "gemma2", "gemma3", "granite", "opt", "t5", "bart", "mbart"])
def test_soft_mixtures_are_looked_up_as_the_model_looks_up_symbols(name, gradient):
    """Two passes with expected embeddings: Gemma and BART scale what they look up, and Granite after that."""
    family = FAMILIES[name]
    model = family.build()
    given = inputs_of(name, model, "left")
    rows = rows_of(model, given, NUMBERS)
    losses: list[Tensor] = []
    for row in rows:
        first = said(model, row, row.gold[:-1])
        first = first if gradient == "full" else first.detach()
        own = [t for t in range(len(row.gold)) if row.counts[t] and not coin(row, t, 0.4, KEY, STEP)]
        second = told_vectors(model, row, {t: first[t].softmax(-1) for t in own}).log_softmax(-1)
        losses += [-second[t, symbol] for t, symbol in enumerate(row.gold) if row.counts[t]]
    naive = torch.stack(losses).mean()
    expected = gradients(model, naive)
    m = hf.adapt(model)
    batch = m.batch(**given, rows=torch.tensor(NUMBERS))
    outcome = fr.two_pass(0.4, mix="expected", gradient=gradient).run(m, batch, STEP, KEY)
    assert outcome.loss.item() == pytest.approx(naive.item(), rel=family.tolerance_of(model.dtype))
    # through both passes T5's weights of attention, taken in float32, show
    assert_same_gradients(gradients(model, outcome.loss), expected, max(1e-7, family.gradient_tolerance(model.dtype)))


@pytest.mark.parametrize("name", ["llama", "t5"])
def test_two_passes_of_symbols_and_k_passes(name):
    """One pass on gold, symbols chosen from it: the approximation, and nothing else."""
    model = FAMILIES[name].build()
    given = inputs_of(name, model)
    rows = rows_of(model, given, NUMBERS)
    m = hf.adapt(model)
    batch = m.batch(**given, rows=torch.tensor(NUMBERS))
    wanted: list[list[int]] = []
    for row in rows:
        said_first = said(model, row, row.gold[:-1]).argmax(-1).tolist()
        kept = [not row.counts[t] or coin(row, t, 0.4, KEY, STEP) for t in range(len(row.gold))]
        wanted.append([g if k else s for g, s, k in zip(row.gold, said_first, kept, strict=True)])
    for method in (fr.two_pass(0.4), fr.scheduled_sampling(0.4, draw=draws.Greedy(), engine=1)):
        outcome = method.run(m, batch, STEP, KEY)
        assert_histories(outcome.fed, wanted)
        assert outcome.report["exact"] == 0.0


def test_a_users_own_positions_and_arguments_reach_the_model():
    """Left padding with the positions that a collator gave, and with none."""
    model = FAMILIES["gpt2"].build()
    m, given = hf.adapt(model), inputs_of("gpt2", model, "left")
    with_positions = own_arguments(model, given)
    method = fr.scheduled_sampling(0.4)
    a, b = (method.run(m, m.batch(**g), STEP, KEY) for g in (given, with_positions))
    assert torch.equal(a.fed.history, b.fed.history)
    assert torch.equal(m.inputs(b.fed)["position_ids"], with_positions["position_ids"])
    assert torch.equal(m.inputs(a.fed)["position_ids"], with_positions["position_ids"])
    assert set(SEQ2SEQ).isdisjoint(CAUSAL)


def test_an_adapter_is_copied_and_pickled_whole():
    import copy
    import pickle

    m = hf.adapt(FAMILIES["llama"].build())
    for again in (copy.deepcopy(m), pickle.loads(pickle.dumps(m))):
        batch = again.batch(**inputs_of("llama", again.inner))
        assert again.inner is again.model is not m.inner
        assert type(again).__mro__[1:] == type(m).__mro__[1:]
        method = fr.scheduled_sampling(0.4)
        assert torch.equal(method.run(again, batch, STEP, KEY).fed.history, method.run(m, batch, STEP, KEY).fed.history)
