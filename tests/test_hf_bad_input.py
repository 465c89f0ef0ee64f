"""What cannot work with a Hugging Face model is refused before the first step: by name, with what to do."""

from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.generation import GenerationMixin
from transformers.modeling_outputs import CausalLMOutputWithPast

import freerun as fr
from builders import refused
from families import FAMILIES, LONGEST, PAD, VOCAB, causal_inputs, collated, seq2seq_inputs
from freerun import hf

_BERT = {"vocab_size": VOCAB, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
         "intermediate_size": 24, "max_position_embeddings": LONGEST}  # fmt: skip


def tiny(kind: str, head: str, **settings: Any) -> Any:
    import transformers

    torch.manual_seed(0)
    config = getattr(transformers, f"{kind}Config")(**settings)
    return getattr(transformers, kind + head)(config)


@cache
def adapted(name: str) -> Any:
    return hf.adapt(FAMILIES[name].build())


class PrefixConfig(PreTrainedConfig):
    model_type = "freerun_test_prefix"

    def __init__(self, leak: str = "all", **more: Any) -> None:
        self.vocab_size, self.hidden_size, self.num_hidden_layers = VOCAB, 8, 1
        self.leak = leak
        super().__init__(**more)


class Prefix(PreTrainedModel, GenerationMixin):
    """A language model whose attention reaches what it must not: later tokens, its own place, or other rows."""

    config_class = PrefixConfig

    def __init__(self, config: PrefixConfig) -> None:
        super().__init__(config)
        self.embed = nn.Embedding(VOCAB, 8)
        self.out = nn.Linear(8, VOCAB)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.embed

    def forward(self, input_ids: Any = None, attention_mask: Any = None, **_: Any) -> CausalLMOutputWithPast:
        x = self.embed(input_ids)
        before = x.cumsum(1)
        if self.config.leak == "all":  # a prefix-LM without a mask over its targets
            before = before + x.sum(1, keepdim=True)
        elif self.config.leak == "next":  # double shift the wrong way: the very token to be predicted
            before = before + torch.cat([x[:, 1:], x[:, :1] * 0], 1)
        elif self.config.leak == "rows":
            before = before + x.cumsum(1).mean(0, keepdim=True)
        elif self.config.leak == "deaf":
            before = before * 0
        return CausalLMOutputWithPast(logits=self.out(torch.tanh(before)))


MODELS: dict[str, tuple[Callable[[], Any], str]] = {
    "an encoder alone": (lambda: tiny("Bert", "ForMaskedLM", **_BERT), "BertForMaskedLM does not generate"),
    "an encoder without a head": (lambda: tiny("Bert", "Model", **_BERT), "does not generate"),
    "a classifier": (lambda: tiny("Llama", "ForSequenceClassification", **FAMILIES["llama"].settings), "not generate"),
    "a decoder that looks both ways": (lambda: tiny("Bert", "LMHeadModel", **_BERT), "causal"),
    "attention over all targets": (lambda: Prefix(PrefixConfig("all")), "Prefix: causal"),
    "the token to be predicted": (lambda: Prefix(PrefixConfig("next")), "Prefix: "),
    "other rows": (lambda: Prefix(PrefixConfig("rows")), "rows_independent"),
    "no history at all": (lambda: Prefix(PrefixConfig("deaf")), "uses_history"),
    "experts of limited capacity": (
        lambda: tiny("SwitchTransformers", "ForConditionalGeneration", vocab_size=VOCAB, d_model=16, d_kv=8, d_ff=16,
                     num_layers=2, num_heads=2, num_experts=2, decoder_start_token_id=0),
        "expert_capacity",
    ),
    "no transformers model": (lambda: nn.Linear(2, 2), "PreTrainedModel"),
    "a freerun model": (lambda: fr.models.TransformerLM(5, size=8, layers=1, heads=2), "needs no adapting"),
}  # fmt: skip


@pytest.mark.parametrize("case", MODELS)
def test_a_model_that_breaks_the_contract_is_refused_by_name(case):
    make, message = MODELS[case]
    model = make()
    for _ in range(2):  # the second time too
        refused(message, hf.adapt, model)


def test_the_same_model_without_the_leak_is_taken():
    m = hf.adapt(Prefix(PrefixConfig("none")))
    batch = m.batch(**causal_inputs())
    assert torch.isfinite(fr.scheduled_sampling(0.5)(m, batch, step=0))


def changed(**changes: Any) -> dict[str, Any]:
    inputs = causal_inputs("left") | changes
    return {k: v for k, v in inputs.items() if v is not None}


def with_id(name: str, value: int) -> dict[str, Any]:
    inputs = {k: v.clone() for k, v in causal_inputs("right").items()}
    inputs[name][0, 5] = value
    return inputs


ones = torch.ones(1, LONGEST + 4, dtype=torch.int64)
CAUSAL_INPUTS: dict[str, tuple[Callable[[], dict[str, Any]], str]] = {
    "no completion": (lambda: changed(labels=torch.full((4, 8), -100)), "-100"),
    "labels of another shape": (lambda: changed(labels=torch.zeros(4, 7, dtype=torch.int64)), r"labels.*\(4, 7\)"),
    "mask of another shape": (lambda: changed(attention_mask=torch.ones(3, 8)), r"attention_mask.*\(3, 8\)"),
    "a mask of four dimensions": (lambda: changed(attention_mask=torch.ones(4, 1, 8, 8)), "attention_mask"),
    "an id outside of the vocabulary": (lambda: with_id("input_ids", VOCAB), f"input_ids.*{VOCAB}"),
    "a negative id": (lambda: with_id("input_ids", -1), "input_ids.*-1"),
    "a label outside of the vocabulary": (lambda: with_id("labels", VOCAB + 3), f"labels.*{VOCAB + 3}"),
    "a negative label": (lambda: with_id("labels", -1), "labels.*-1"),
    "real numbers": (lambda: changed(input_ids=torch.rand(4, 8)), "input_ids.*whole numbers"),
    "more tokens than positions": (lambda: {"input_ids": ones, "labels": ones}, f"{LONGEST} positions"),
    "a row of padding": (lambda: changed(attention_mask=torch.zeros(4, 8, dtype=torch.int64)), "no token in row 0"),
    "positions from 1": (lambda: {"input_ids": ones[:, :8], "labels": ones[:, :8],
                                  "position_ids": torch.arange(1, 9)[None]}, "position_ids"),
    "positions that jump": (lambda: {"input_ids": ones[:, :4], "labels": ones[:, :4],
                                     "position_ids": torch.tensor([[0, 1, 3, 4]])}, "position_ids"),
    "packed rows without positions": (lambda: {"input_ids": ones[:, :8], "labels": ones[:, :8],
                                               "seq_idx": torch.tensor([[0, 0, 0, 0, 1, 1, 1, 1]])}, "position_ids"),
    "single tokens": (lambda: {"input_ids": ones[:, :1], "labels": ones[:, :1]}, "nothing to predict|-100"),
}  # fmt: skip


@pytest.mark.parametrize("case", CAUSAL_INPUTS)
def test_what_a_collator_should_not_have_made_is_refused(case):
    make, message = CAUSAL_INPUTS[case]
    refused(message, lambda: adapted("gpt2").batch(**make()))


def pairs(**changes: Any) -> dict[str, Any]:
    return {k: v for k, v in (seq2seq_inputs("t5") | changes).items() if v is not None}


PAIR_INPUTS: dict[str, tuple[Callable[[], dict[str, Any]], str]] = {
    "no labels that count": (lambda: pairs(labels=torch.full((4, 7), -100)), "-100"),
    "rows that differ": (lambda: pairs(labels=torch.zeros(3, 7, dtype=torch.int64)), "3 rows.*4"),
    "decoder ids of another shape": (lambda: pairs(decoder_input_ids=torch.zeros(4, 6, dtype=torch.int64)),
                                     r"decoder_input_ids.*\(4, 6\)"),
    "a label outside of the vocabulary": (lambda: pairs(labels=torch.full((4, 7), VOCAB)), f"labels.*{VOCAB}"),
    "a source outside of the vocabulary": (lambda: pairs(input_ids=torch.full((4, 6), VOCAB)), f"input_ids.*{VOCAB}"),
    "decoder padding on the left": (
        lambda: pairs(decoder_attention_mask=torch.tensor([[0, 0, 1, 1, 1, 1, 1]]).repeat(4, 1)), "left"),
    "no source": (lambda: pairs(input_ids=None, attention_mask=None), "input_ids.*missing"),
}  # fmt: skip


@pytest.mark.parametrize("case", PAIR_INPUTS)
def test_pairs_that_do_not_fit_are_refused(case):
    make, message = PAIR_INPUTS[case]
    refused(message, lambda: adapted("t5").batch(**make()))


def test_audio_that_is_missing_is_named():
    refused("input_features", lambda: adapted("whisper").batch(**seq2seq_inputs("t5")))


@pytest.mark.parametrize(("name", "gone"), [("m2m_100", "decoder_start_token_id"),
                                            ("bart", "decoder_start_token_id"), ("t5", "decoder_start_token_id"),
                                            ("bart", "pad_token_id"), ("t5", "pad_token_id")])  # fmt: skip
def test_a_start_or_pad_symbol_that_is_needed_and_missing_is_named(name, gone):
    model = FAMILIES[name].build()
    m, inputs = hf.adapt(model), collated(name, model.dtype)
    for config in (model.config, model.generation_config):
        for each in (gone, *(["bos_token_id"] if "start" in gone else [])):
            setattr(config, each, None)
    refused(gone, m.batch, **inputs)
    refused(gone, lambda: hf.adapt(model).batch(**inputs))


def test_prompts_longer_than_the_model_are_refused_when_they_go_on():
    m = adapted("gpt2")
    prompt = m.batch(input_ids=ones[:, : LONGEST - 3])
    assert fr.generate(m, prompt, length=3).entries.shape == (1, 3)
    refused(f"{LONGEST} positions", fr.generate, m, prompt, length=5)


@pytest.mark.parametrize("method", [fr.teacher_forcing(), fr.scheduled_sampling(0.5)], ids=["gold", "mixed"])
@pytest.mark.parametrize("name", ["gpt2", "t5"])
def test_labels_that_were_forgotten_in_a_loop_of_ones_own_are_named(name, method):
    m = hf.adapt(FAMILIES[name].build())
    prompts = m.batch(**{key: value for key, value in collated(name, torch.float32).items() if key != "labels"})
    refused(r"no labels.* pass labels=", method, m, prompts, step=0)
    with torch.no_grad():
        assert method(m, prompts, step=0) == 0
    assert m(prompts).isfinite().all()


def test_a_batch_that_the_model_did_not_make_is_refused():
    ids = causal_inputs()["input_ids"]
    refused(r"batch\(input_ids", lambda: fr.teacher_forcing()(adapted("gpt2"), fr.Batch(ids, ids, ids >= 0), step=0))


def test_rows_that_were_selected_have_no_way_back():
    m = adapted("gpt2")
    batch = m.batch(**causal_inputs())
    refused("complete", m.inputs, batch.select(torch.tensor([0])))


@pytest.mark.parametrize(("name", "engine"), [("bert2bert", "window"), ("mamba", "window"), ("m2m_100", "step")])
def test_an_engine_that_a_model_has_not_the_methods_for_is_refused(name, engine):
    m = adapted(name)
    inputs = causal_inputs() if name == "mamba" else seq2seq_inputs(name)
    refused(engine, lambda: fr.scheduled_sampling(0.5, engine=engine)(m, m.batch(**inputs), step=0))


def test_learnt_prompts_of_peft_are_refused():
    import warnings

    peft = pytest.importorskip("peft")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # peft asks transformers by an old name
        config = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)
        wrapped = peft.get_peft_model(FAMILIES["llama"].build(), config)
    refused("PromptTuning", hf.adapt, wrapped)


def test_mixtures_for_a_model_that_takes_ids_only_are_refused():
    m = adapted("m2m_100")
    refused("ids only", lambda: fr.two_pass(0.5, mix="expected")(m, m.batch(**seq2seq_inputs("m2m_100")), step=0))
    assert PAD == 0


def test_a_model_that_sees_later_tokens_is_refused_in_half_precision_too():
    """Weights as they are initialised, so that little moves."""
    model = tiny("Bert", "LMHeadModel", **_BERT).to(torch.bfloat16)
    refused("causal: outputs before", hf.adapt, model)
    assert "Ragged" in type(hf.adapt(FAMILIES["gpt2"].build().to(torch.bfloat16))).__name__


def test_rotations_that_switch_with_the_length_keep_to_the_short_one():
    """Beyond the length they were first trained for they rotate a whole call otherwise: what a cache holds is wrong."""
    rope = {"rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0] * 4, "long_factor": [4.0] * 4,
            "original_max_position_embeddings": 16}  # fmt: skip
    shape = {**_BERT, "num_key_value_heads": 2, "max_position_embeddings": 128, "pad_token_id": 0, "bos_token_id": 1}
    model = tiny("Phi3", "ForCausalLM", **shape, eos_token_id=2, rope_parameters=rope,
                 original_max_position_embeddings=16)  # fmt: skip
    m = hf.adapt(model)
    ids = torch.full((2, 17), 5)
    assert torch.isfinite(fr.scheduled_sampling(0.5)(m, m.batch(input_ids=ids, labels=ids), step=0))
    longer = torch.full((2, 18), 5)
    refused("17 tokens to read, and the model has 16 positions", m.batch, input_ids=longer, labels=longer)


def test_a_table_of_positions_that_begins_behind_the_padding_is_counted_right():
    model = tiny("Roberta", "ForCausalLM", **{**_BERT, "max_position_embeddings": 34}, is_decoder=True, pad_token_id=1)
    m = hf.adapt(model)
    assert m.limit == 32
    ids = torch.full((1, 33), 5)
    assert torch.isfinite(fr.teacher_forcing()(m, m.batch(input_ids=ids, labels=ids), step=0))
    longer = torch.full((1, 34), 5)
    refused("32 positions", m.batch, input_ids=longer, labels=longer)


def test_several_streams_of_ids_are_refused_by_name():
    from transformers import MusicgenDecoderConfig, MusicgenForCausalLM

    shape = {"hidden_size": 16, "ffn_dim": 24, "num_hidden_layers": 1, "num_attention_heads": 2, "num_codebooks": 2}
    model = MusicgenForCausalLM(MusicgenDecoderConfig(vocab_size=VOCAB, **shape))
    refused("several streams of ids", hf.adapt, model)
