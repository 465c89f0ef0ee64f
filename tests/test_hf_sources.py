"""Audio and images for encoders, position limits under any name, and whose shift of the labels it is."""

import copy
from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch
import transformers as tf
from torch import Tensor

import freerun as fr
import oracles_hf as oracle
from families import FAMILIES, VOCAB, causal_inputs, shake
from freerun import hf
from freerun.errors import UserError
from freerun.types import Encoder, Stepper
from oracles_hf import KEY, NUMBERS, STEP, Row, assert_histories, engines, full_prefix

_NAMED = {"vocab_size": VOCAB, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": None, "decoder_start_token_id": 1}
_SIDES = {f"{side}_{name}": size for side in ("encoder", "decoder")
          for name, size in (("layers", 1), ("attention_heads", 2), ("ffn_dim", 16))}  # fmt: skip
_GPT2 = {"vocab_size": VOCAB, "n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 32, "bos_token_id": None,
         "eos_token_id": None, "is_decoder": True, "add_cross_attention": True}  # fmt: skip


def _random(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


def _mask(*lengths: int) -> Tensor:
    return (torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]).long()


def _joined(kind: str, encoder: Any) -> Any:
    config = getattr(tf, f"{kind}Config").from_encoder_decoder_configs(encoder, tf.GPT2Config(**_GPT2))
    config.pad_token_id, config.decoder_start_token_id = 0, 1
    return getattr(tf, f"{kind}Model")(config=config)


def _moonshine() -> Any:
    layers = {f"{side}_{name}": 1 for side in ("encoder", "decoder") for name in ("num_hidden_layers",)}
    heads = {f"{side}_num_attention_heads": 2 for side in ("encoder", "decoder")}
    return tf.MoonshineForConditionalGeneration(tf.MoonshineConfig(
        **_NAMED, **layers, **heads, hidden_size=16, intermediate_size=24, max_position_embeddings=64))  # fmt: skip


def _speech2text() -> Any:
    return tf.Speech2TextForConditionalGeneration(tf.Speech2TextConfig(
        **_NAMED, **_SIDES, d_model=16, input_feat_per_channel=8, conv_channels=8, max_source_positions=60,
        max_target_positions=40))  # fmt: skip


def _wav2vec2() -> Any:
    return tf.Wav2Vec2Config(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, conv_dim=(8, 8),
        conv_stride=(5, 4), conv_kernel=(10, 8), num_conv_pos_embeddings=4, num_conv_pos_embedding_groups=2,
        num_feat_extract_layers=2, mask_time_prob=0.0)  # fmt: skip


def _vit() -> Any:
    return tf.ViTConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, image_size=8,
                        patch_size=4)  # fmt: skip


def _whisper() -> Any:
    config = tf.WhisperConfig(**_NAMED, **_SIDES, d_model=16, num_mel_bins=6, max_source_positions=5,
                              max_target_positions=24, suppress_tokens=None, begin_suppress_tokens=None)  # fmt: skip
    return tf.WhisperForConditionalGeneration(config)


SOURCES: dict[str, tuple[Callable[[], Any], dict[str, Tensor]]] = {
    "moonshine": (_moonshine, {"input_values": _random(4, 4000), "attention_mask": _mask(4000, 3000, 2500, 2000)}),
    "speech2text": (_speech2text, {"input_features": _random(4, 40, 8), "attention_mask": _mask(40, 30, 25, 35)}),
    "wav2vec2 and gpt2": (lambda: _joined("SpeechEncoderDecoder", _wav2vec2()),
                          {"input_values": _random(4, 400), "attention_mask": _mask(400, 300, 250, 380)}),
    "whisper": (_whisper, {"input_features": _random(4, 6, 10), "attention_mask": _mask(10, 10, 10, 10)}),
    "vit and gpt2": (lambda: _joined("VisionEncoderDecoder", _vit()), {"pixel_values": _random(4, 3, 8, 8)}),
}  # fmt: skip


@cache
def built(name: str) -> Any:
    torch.manual_seed(0)
    model = SOURCES[name][0]().double().eval()
    shake(model, 3, 0.3, 1.8)
    return model


def labelled(name: str) -> dict[str, Tensor]:
    labels = torch.randint(4, VOCAB, (4, 6), generator=torch.Generator().manual_seed(6))
    labels[1, 4:] = -100
    return {**SOURCES[name][1], "labels": labels}


@pytest.mark.parametrize("example", [True, False], ids=["example", "none"])
@pytest.mark.parametrize("name", SOURCES)
def test_audio_and_images_under_their_real_names(name, example):
    """Own loss, the full-prefix oracle by all engines, and free runs, with and without an example."""
    model, inputs = built(name), labelled(name)
    m = hf.adapt(model, example=inputs if example else None)
    batch = m.batch(**inputs, rows=torch.tensor(NUMBERS))
    assert isinstance(m, Encoder)
    assert fr.teacher_forcing()(m, batch, step=0).item() == pytest.approx(model(**inputs).loss.item(), rel=1e-6)
    sources = [{key: value[r : r + 1] for key, value in SOURCES[name][1].items()} for r in range(4)]
    golds = [tuple(label for label in row.tolist() if label != -100) for row in inputs["labels"]]
    rows = [Row(s, 1, g, (True,) * len(g), n) for s, g, n in zip(sources, golds, NUMBERS, strict=True)]
    histories = [full_prefix(model, row, 0.3, "sample", KEY, STEP) for row in rows]
    for engine in ("auto", *engines(m)):
        fed = fr.scheduled_sampling(0.3, engine=engine).run(m, batch, STEP, KEY)
        assert_histories(fed.fed, histories)
    assert fed.loss.item() == pytest.approx(oracle.loss(model, rows, histories).item(), rel=1e-10)
    free = [full_prefix(model, row, 0.0, "greedy", KEY, STEP) for row in rows]
    assert_histories(fr.free_running(draw="greedy").run(m, batch, STEP, KEY).fed, free)


def test_a_source_of_another_number_of_rows_is_refused_by_name():
    m, inputs = hf.adapt(built("vit and gpt2")), labelled("vit and gpt2")
    with pytest.raises(UserError, match=r"pixel_mask.*no argument|pixel_mask \(8, 2\)"):
        m.batch(**inputs, pixel_mask=torch.ones(8, 2))


class Table(tf.GPT2LMHeadModel):
    """A GPT-2 that reads twelve tokens: a limit that no configuration names."""

    def forward(self, input_ids: Any = None, **rest: Any) -> Any:
        if input_ids is not None and input_ids.shape[1] > 12:
            raise IndexError("index out of range in self")
        return super().forward(input_ids=input_ids, **rest)


def test_a_limit_that_nothing_names_is_found():
    config = tf.GPT2Config(**{**FAMILIES["gpt2"].settings, "n_positions": 64})
    m = hf.adapt(Table(config).eval())
    assert m.limit == 12
    ids = torch.full((1, 13), 5)
    assert torch.isfinite(fr.scheduled_sampling(0.5)(m, m.batch(input_ids=ids, labels=ids), step=0))
    with pytest.raises(UserError, match="13 tokens to read, and the model has 12 positions"):
        m.batch(input_ids=torch.full((1, 14), 5), labels=torch.full((1, 14), 5))


def test_rotary_positions_go_beyond_the_trained_length_when_requested():
    model = FAMILIES["llama"].build()
    ids = torch.randint(4, VOCAB, (2, 40), generator=torch.Generator().manual_seed(4))
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids}
    with pytest.raises(UserError, match="39 tokens to read, and the model has 24 positions"):
        hf.adapt(model).batch(**inputs)
    m = copy.deepcopy(hf.adapt(model, beyond_trained_length=True))
    batch = m.batch(**inputs, rows=torch.tensor([0, 1]))
    assert fr.teacher_forcing()(m, batch, step=0).item() == pytest.approx(model(**inputs).loss.item(), rel=1e-6)
    rows = oracle.causal_rows(inputs, [0, 1])
    histories = [full_prefix(model, row, 0.8, "sample", KEY, STEP) for row in rows]
    for engine in engines(m):
        assert_histories(fr.scheduled_sampling(0.8, engine=engine).run(m, batch, STEP, KEY).fed, histories)
    with pytest.raises(UserError, match=r"GPT2LMHeadModel has no rotary positions but a table of them \(wpe"):
        hf.adapt(FAMILIES["gpt2"].build(), beyond_trained_length=True)


def test_what_a_model_raises_is_no_bare_traceback():
    """ProphetNet's table of 32 positions holds 30 tokens: whatever adapt finds is named."""
    config = tf.ProphetNetConfig(
        **_NAMED, hidden_size=16, num_encoder_layers=1, num_decoder_layers=1, num_encoder_attention_heads=2,
        num_decoder_attention_heads=2, encoder_ffn_dim=16, decoder_ffn_dim=16, max_position_embeddings=32)  # fmt: skip
    model = tf.ProphetNetForConditionalGeneration(config).eval()
    try:
        assert hf.adapt(model).limit == 30
    except UserError as error:
        assert "ProphetNetForConditionalGeneration: length_inert" in str(error)  # noqa: PT017


def shifted(padding: str = "right") -> dict[str, Tensor]:
    """Labels as a collator shifts them; the last of a row is none of its ids."""
    inputs = causal_inputs(padding)
    labels = torch.full_like(inputs["labels"], -100)
    labels[:, :-1] = inputs["labels"][:, 1:]
    labels[0, 7], labels[2, 5] = 7, 9
    return {**inputs, "labels": labels}


@cache
def bart() -> Any:
    settings = {**FAMILIES["bart"].settings, "is_decoder": True, "is_encoder_decoder": False, "dropout": 0.0}
    torch.manual_seed(0)
    model = tf.BartForCausalLM(tf.BartConfig(**settings)).double().eval()
    shake(model, 1, 0.3, 2.2)
    return model


def test_a_class_that_does_not_shift_learns_what_the_collator_shifted():
    model, inputs = bart(), shifted()
    m = hf.adapt(model)
    assert not m.shifts
    assert hf.adapt(FAMILIES["gpt2"].build()).shifts
    batch = m.batch(**inputs, rows=torch.tensor(NUMBERS))
    found = fr.teacher_forcing().run(m, batch, STEP, KEY)
    assert found.loss.item() == pytest.approx(model(**inputs).loss.item(), rel=1e-10)
    assert int(found.count) == int((inputs["labels"] != -100).sum()) == 20
    assert all(torch.equal(m.inputs(batch)[key], value) for key, value in inputs.items())
    histories = []
    for r, number in enumerate(NUMBERS):
        length, labels = int(inputs["attention_mask"][r].sum()), inputs["labels"][r].tolist()
        ids = [
            *inputs["input_ids"][r, :length].tolist(),
            *[label for label in labels[length - 1 : length] if label > 0],
        ]
        counts = tuple(label != -100 for label in labels[: len(ids) - 1])
        histories.append(full_prefix(model, Row({}, ids[0], tuple(ids[1:]), counts, number), 0.3, "sample", KEY, STEP))
    for engine in ("auto", *engines(m)):
        mixed = fr.scheduled_sampling(0.3, engine=engine).run(m, batch, STEP, KEY)
        assert_histories(mixed.fed, histories)
        assert mixed.loss.item() == pytest.approx(model(**m.inputs(mixed.fed)).loss.item(), rel=1e-10)
    assert isinstance(m, Stepper)


@pytest.mark.parametrize(("model", "inputs", "message"), [
    (bart, causal_inputs, "BartForCausalLM does not shift.*repeat the token.*Shift in the collator"),
    (FAMILIES["gpt2"].build, shifted, r"one position later \(row 1 has ids \[.*labels \[.*GPT2LMHeadModel shifts"),
])  # fmt: skip
def test_labels_where_the_class_does_not_look_for_them_are_refused(model, inputs, message):
    with pytest.raises(UserError, match=message):
        hf.adapt(model()).batch(**inputs())


def trainer_of(model: Any, folder: Any) -> Any:
    """A trainer of one step on labels that the collator shifted."""
    inputs = shifted()
    data = [{key: value[r] for key, value in inputs.items()} for r in range(4)]
    arguments = tf.TrainingArguments(str(folder), max_steps=1, use_cpu=True, report_to="none", save_strategy="no",
                                     per_device_train_batch_size=4, dataloader_pin_memory=False,
                                     logging_steps=1)  # fmt: skip
    return hf.Trainer(model, arguments, train_dataset=data, method=fr.teacher_forcing())


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_shifted_labels_in_a_trainer_are_learnt_or_refused_before_the_first_step(tmp_path):
    trainer = trainer_of(FAMILIES["gpt2"].build(), tmp_path)
    with pytest.raises(UserError, match=r"one position (later|on)"):
        trainer.train()
    assert trainer.state.global_step == 0
    model = copy.deepcopy(bart())
    expected = model(**shifted()).loss.item()
    trainer = trainer_of(model, tmp_path)
    trainer.train()
    assert trainer.state.log_history[0]["loss"] == pytest.approx(expected, rel=1e-4)
