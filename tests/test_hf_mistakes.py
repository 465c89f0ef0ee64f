"""Users' mistakes that a first optimizer step shows, refused before it with the line that mends each; PEFT."""

import tempfile
import warnings
from typing import Any

import peft
import pytest
import torch
import transformers
from datasets import Dataset
from torch import nn
from transformers import DataCollatorForLanguageModeling, GPT2LMHeadModel
from trl import DPOConfig, DPOTrainer, RewardTrainer

import freerun as fr
from builders import assert_same_gradients, gradients, refused
from families import FAMILIES
from freerun import hf
from hf_trainer_world import (
    CHECKPOINTING,
    COMPLETIONS,
    END,
    PAD,
    PAIRS,
    collate,
    gpt2,
    llama,
    logged,
    make,
    t5,
    tokenizer,
    train,
)
from oracles_hf import assert_histories, engines, prepared
from test_hf_traps import rolled_in

HALF = fr.scheduled_sampling(0.5)
WORDS: Any = tokenizer(eos_token=f"w{END}", pad_token="w0", bos_token="w5")


def started(rows: Any) -> Any:
    """Labels that begin with the decoder's start symbol, as a collator that shifts for itself leaves them."""
    batch = collate(rows)
    start = torch.full((len(rows), 1), PAD)
    return {**batch, "labels": torch.cat([start, batch["labels"]], 1)}


def padded(rows: Any) -> Any:
    batch = collate(rows)
    return {**batch, "labels": batch["labels"].masked_fill(batch["labels"] == -100, PAD)}


def shifted(rows: Any) -> Any:
    batch = collate(rows)
    return {**batch, "labels": batch["labels"].roll(-1, 1)}


def on_padding(rows: Any) -> Any:
    batch = collate(rows)
    return {**batch, "labels": batch["labels"].masked_fill(batch["attention_mask"] == 0, 3)}


def doubled(rows: Any) -> Any:
    return collate([{"input_ids": [5, 5, *row["input_ids"]], "labels": [-100, -100, *row["labels"]]} for row in rows])


def of_batch(change: Any) -> Any:
    """A collator that changes the batch."""
    return lambda rows: change(collate(rows))


def left(batch: Any) -> Any:
    shift = (1 - batch["attention_mask"]).sum(1)
    return {k: torch.stack([v.roll(int(n)) for v, n in zip(part, shift, strict=True)]) for k, part in batch.items()}


def unmasked(batch: Any) -> Any:
    return {name: part for name, part in batch.items() if name != "attention_mask"}


def ids_before(batch: Any, by: int) -> Any:
    """Decoder inputs that are the labels ``by`` positions before."""
    labels = batch["labels"].clamp_min(PAD)
    return {
        **batch,
        "decoder_input_ids": torch.cat([torch.zeros_like(labels[:, :by]), labels], 1)[:, : labels.shape[1]],
    }


def changed(name: str, function: Any) -> Any:
    return of_batch(lambda batch: {**batch, name: function(batch[name])})


NEGATIVE, INVERTED = changed("labels", lambda part: part.masked_fill(part == -100, -1)), changed(
    "attention_mask", lambda part: 1 - part
)  # fmt: skip
EMPTY = changed("attention_mask", lambda part: part * (torch.arange(len(part)) > 1)[:, None])
OTHERS = changed("labels", lambda part: part.where(part == -100, 2 + (part + 3) % 20))


class Softmax(GPT2LMHeadModel):
    """A user's head that returns probabilities."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        output = super().forward(*args, **kwargs)
        output.logits = output.logits.softmax(-1)
        return output


def seq2seq(collator: Any = collate, **config: Any) -> Any:
    model = t5()
    for name, value in config.items():
        setattr(model.generation_config, name, value)
    return make(hf.Seq2SeqTrainer, model, PAIRS, HALF, trainer={"data_collator": collator})


def causal(collator: Any, data: Any = COMPLETIONS, words: Any = WORDS) -> Any:
    return make(hf.Trainer, llama(), data, HALF, trainer={"data_collator": collator, "processing_class": words})


def end_is_pad() -> Any:
    words = tokenizer(eos_token=f"w{END}", pad_token=f"w{END}")
    data = [{"input_ids": row["input_ids"]} for row in COMPLETIONS]
    return causal(DataCollatorForLanguageModeling(words, mlm=False), data, words)


REFUSED: dict[str, tuple[Any, tuple[str, ...]]] = {
    "a start symbol twice": (lambda: seq2seq(started), (
        "begin with the decoder's start symbol 0", "labels = labels[:, 1:]")),
    "labels padded with pads": (lambda: seq2seq(padded), (
        "end with pads (id 0)", "labels.masked_fill(labels == 0, -100)", "DataCollatorForSeq2Seq")),
    "another start in generation": (lambda: seq2seq(decoder_start_token_id=4), (
        "training starts the decoder with 0", "generation with 4", "generation_config.decoder_start_token_id = 0")),
    "pad and end are one": (end_is_pad, ("end with the end symbol 1 and no label is one", "add_special_tokens")),
    "labels shifted by the collator": (lambda: causal(shifted), ("labels are the ids one position on", "shift again")),
    "labels on padding": (lambda: causal(on_padding), ("have labels on padding", "attention_mask == 0, -100")),
    "another ignored label": (lambda: causal(NEGATIVE), ("labels hold -1", "masked_fill(labels < 0, -100)")),
    "another ignored label of a T5": (lambda: seq2seq(NEGATIVE), ("labels hold -1", "masked_fill(labels < 0, -100)")),
    "an inverted mask": (lambda: causal(INVERTED), ("it is inverted", "1 - attention_mask")),
    "an inverted mask of a source": (lambda: seq2seq(INVERTED), ("it is inverted", "1 - attention_mask")),
    "a mask that hides rows": (lambda: seq2seq(EMPTY), ("hides all of 2 rows", "(input_ids != pad_token_id)")),
    "no mask over a source's padding": (lambda: seq2seq(of_batch(unmasked)), (
        "rows have padding (id 0) and the batch has no attention_mask", "(input_ids != pad_token_id).long()")),
    "no mask over padding before prompts": (lambda: causal(of_batch(lambda b: unmasked(left(b)))), (
        "rows have padding (id 0) and the batch has no attention_mask", "(input_ids != pad_token_id).long()")),
    "decoder ids that are the labels": (lambda: seq2seq(of_batch(lambda b: ids_before(b, 0))), (
        "decoder_input_ids are the labels themselves", "leave them out of the batch")),
    "decoder ids shifted twice": (lambda: seq2seq(of_batch(lambda b: ids_before(b, 2))), (
        "the labels shifted twice", "leave them out of the batch")),
    "decoder ids that are none of the labels": (
        lambda: seq2seq(of_batch(lambda b: {**b, "decoder_input_ids": 2 + (b["labels"].clamp_min(0) + 7) % 20})),
        ("other ids than the labels before them", "next to none")),
    "a decoder's mask that hides labels": (
        lambda: seq2seq(of_batch(lambda b: {**b, "decoder_attention_mask": torch.zeros_like(b["labels"])})),
        ("decoder_attention_mask is 0 at", "that have labels")),
    "a mask of what is learnt": (
        lambda: causal(of_batch(lambda b: {**b, "attention_mask": (b["labels"] != -100).long()})),
        ("attention_mask is 0 on tokens that are no padding, in every row", "labels of -100")),
    "labels that are other ids": (lambda: causal(OTHERS), ("labels are the ids at their positions", "next to none")),
    "a start symbol from the template and the tokenizer": (lambda: causal(doubled), (
        "begins with the start symbol 'w5' twice", "add_special_tokens=False")),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_mistakes_are_refused_before_the_first_step(case):
    build, parts = REFUSED[case]
    trainer = build()
    before = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    refused(parts, trainer.train)
    assert trainer.state.global_step == 0
    assert all(torch.equal(value, before[name]) for name, value in trainer.model.state_dict().items())


def test_smoothing_that_nothing_applies_is_refused_at_construction():
    options: Any = {"trainer": {"compute_loss_func": lambda *_, **__: None}, "label_smoothing_factor": 0.1}
    refused("is not applied to compute_loss_func", make, hf.Trainer, llama(), COMPLETIONS, HALF, **options)


def test_probabilities_in_place_of_logits():
    torch.manual_seed(0)
    model = Softmax(gpt2().config)
    refused("take a softmax of them again", make, hf.Trainer, model, COMPLETIONS, HALF)


def test_what_is_right_is_not_refused():
    """The same patterns where they mean something else."""

    # decoder ids of one's own: the labels may begin with what they like
    def explicit(rows: Any) -> Any:
        batch = started(rows)
        return {**batch, "decoder_input_ids": batch["labels"].roll(1, 1).clamp_min(0)}

    # decoder ids that are right, and no mask where nothing is padded or what is padded is never read
    shifted_once = of_batch(lambda batch: ids_before(batch, 1))
    longest = [row for row in PAIRS if len(row["input_ids"]) == 6]
    # one row of several that begins with the start symbol, or ends with a pad
    some = [{"input_ids": PAIRS[0]["input_ids"], "labels": [PAD, *PAIRS[0]["labels"]]}, *PAIRS[1:]]
    # the same token again and again is its own successor
    same = [{"input_ids": [5, 7, 7, 7, 7, END], "labels": [-100, 7, 7, 7, 7, END]}] * 8
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        train(hf.Seq2SeqTrainer, t5(), PAIRS, HALF, max_steps=1, trainer={"data_collator": explicit})
        train(hf.Seq2SeqTrainer, t5(), some, HALF, max_steps=1)
        train(hf.Seq2SeqTrainer, t5(), PAIRS, HALF, max_steps=1, trainer={"data_collator": shifted_once})
        train(hf.Seq2SeqTrainer, t5(), longest, HALF, max_steps=1, trainer={"data_collator": of_batch(unmasked)})
        train(hf.Trainer, llama(), COMPLETIONS, HALF, max_steps=1, trainer={"data_collator": of_batch(unmasked)})
        train(hf.Trainer, llama(), same, HALF, max_steps=1, trainer={"processing_class": WORDS})


NOTICED: dict[str, tuple[Any, str]] = {
    "rows without labels": ([*COMPLETIONS[:6], *[{**row, "labels": [-100] * len(row["labels"])}
                             for row in COMPLETIONS[6:8]]], "2 of the 8 rows .* have no label"),
    "no end": ([{name: part[:-1] for name, part in row.items()} for row in COMPLETIONS[:8]],
               "no label of the first optimizer step is the end symbol 'w1'"),
}  # fmt: skip


@pytest.mark.parametrize("case", NOTICED)
def test_what_may_be_meant_is_a_warning(case):
    data, text = NOTICED[case]
    with pytest.warns(UserWarning, match=text):
        train(hf.Trainer, llama(), data, HALF, max_steps=1, trainer={"processing_class": WORDS})


def test_prompts_among_the_labels_of_a_chat_are_a_warning():
    words = tokenizer(eos_token=f"w{END}", pad_token="w0")
    words.chat_template = "{{ messages }}"
    data = [{"input_ids": row["input_ids"], "labels": row["input_ids"]} for row in COMPLETIONS]
    with pytest.warns(UserWarning, match="prompts and the user's turns too: completion_only_loss=True"):
        train(hf.Trainer, llama(), data, HALF, max_steps=1, trainer={"processing_class": words})


class Preferences(hf.MethodMixin, DPOTrainer):
    pass


class Rewards(hf.MethodMixin, RewardTrainer):
    pass


class Named(hf.MethodMixin, transformers.Trainer):
    """A user's own, whose columns are texts."""

    def _set_signature_columns_if_needed(self) -> None:
        self._signature_columns = ["better", "worse"]


def test_trainers_without_labels_are_refused_at_construction():
    data = Dataset.from_list([{"prompt": "w3", "chosen": " w4 w1", "rejected": " w5 w1"}] * 4)
    config: Any = {
        "output_dir": tempfile.mkdtemp(),
        "use_cpu": True,
        "report_to": [],
        "bf16": False,
        CHECKPOINTING: False,
    }
    options: Any = {
        "model": gpt2(),
        "ref_model": gpt2(),
        "args": DPOConfig(**config),
        "train_dataset": data,
        "processing_class": WORDS,
    }
    refused(["DPOTrainer trains without labels", "Seq2SeqTrainer"], Preferences, **options, method=HALF)
    Preferences(**options, method=None)
    refused("Trainer trains without labels .it reads better, worse", make, Named, llama(), COMPLETIONS, HALF)
    assert issubclass(Rewards, RewardTrainer)


# -- PEFT

ADAPTERS: dict[str, Any] = {
    "new tokens": {"target_modules": ["q_proj", "v_proj"], "trainable_token_indices": [3, 4]},
    "modules to save": {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens", "lm_head"]},
    "embeddings": {"target_modules": ["embed_tokens", "q_proj"]},
}
MORE = pytest.mark.slow(reason="four seconds each; without a trainer all of them are quick")
# peft asks the model by an attribute's old name
PEFT = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")


def loosened(model: nn.Module) -> None:
    """An adapter's own weights, so large that they show."""
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.requires_grad:
                noise = torch.randn(weight.shape, generator=torch.Generator().manual_seed(len(name)))
                weight.add_(0.3 * noise.to(weight.dtype))


@PEFT
@pytest.mark.parametrize("case", ADAPTERS)
def test_adapters_of_embeddings_are_rolled_in_and_trained(case):
    model = FAMILIES["llama"].build()
    wrapped: Any = peft.get_peft_model(model, peft.LoraConfig(r=2, lora_dropout=0.0, **ADAPTERS[case])).double().eval()
    loosened(wrapped)
    p = prepared("llama", model, wrapped)
    histories = p.histories(0.4)
    assert histories != prepared("llama").histories(0.4)
    expected = gradients(wrapped, p.loss(histories))
    for engine in engines(p.m):
        outcome = rolled_in(p.m, p.batch, engine)
        assert_histories(outcome.fed, histories)
        assert_same_gradients(gradients(wrapped, outcome.loss), expected)


@PEFT
@pytest.mark.parametrize(
    "case", ["new tokens", *(pytest.param(each, marks=MORE) for each in ("modules to save", "embeddings"))]
)
def test_adapters_of_embeddings_in_a_trainer_with_a_tokenizer(case):
    def adapted() -> Any:
        return peft.get_peft_model(llama(), peft.LoraConfig(r=2, **ADAPTERS[case]))

    options: Any = {"max_steps": 3, "trainer": {"processing_class": WORDS}}
    stock = train(transformers.Trainer, adapted(), COMPLETIONS, **options)
    ours = train(hf.Trainer, adapted(), COMPLETIONS, fr.teacher_forcing(), **options)
    assert logged(ours) == pytest.approx(logged(stock), rel=1e-4)
    sampled = train(hf.Trainer, adapted(), COMPLETIONS, HALF, **options)
    assert min(logged(sampled, "replaced_share")) > 0
    larger = {"processing_class": tokenizer(30, pad_token="w0")}
    trainer = make(hf.Trainer, adapted(), COMPLETIONS, HALF, trainer=larger)
    refused("the tokenizer has 30 symbols and the model 23", trainer.train)


@PEFT
@pytest.mark.parametrize("config", [peft.PromptTuningConfig, peft.PrefixTuningConfig, peft.PromptEncoderConfig])
def test_learnt_prompts_are_refused_with_the_reason(config):
    model = peft.get_peft_model(gpt2(), config(task_type="CAUSAL_LM", num_virtual_tokens=3))
    reason = "puts learnt vectors before every sequence"
    refused(reason, make, hf.Trainer, model, COMPLETIONS, HALF)
    stock = make(transformers.Trainer, model, COMPLETIONS, eval_strategy="steps", eval_steps=1,
                 trainer={"eval_dataset": COMPLETIONS[:4]})  # fmt: skip
    stock.add_callback(hf.Callback(stock))
    refused(reason, stock.train)


# -- a plain loop

ALONE: dict[str, tuple[Any, Any, tuple[str, ...]]] = {
    "a start symbol twice": (t5, lambda: started(PAIRS[:4]), ("begin with the decoder's start symbol 0",)),
    "labels padded with pads": (t5, lambda: padded(PAIRS[:4]), ("end with pads (id 0)", "masked_fill")),
    "labels on padding": (llama, lambda: on_padding(COMPLETIONS[:4]), ("have labels on padding",)),
    "labels shifted by the collator": (llama, lambda: shifted(COMPLETIONS[:4]), ("one position later", "shift")),
    "labels under another name": (
        t5, lambda: {("decoder_labels" if k == "labels" else k): v for k, v in collate(PAIRS[:4]).items()},
        ("decoder_labels is no argument", "labels is missing")),
    "an argument misspelt": (
        llama, lambda: {("attention_masks" if k == "attention_mask" else k): v
                        for k, v in collate(COMPLETIONS[:4]).items()},
        ("attention_masks is no argument of LlamaForCausalLM.forward", "is attention_mask meant")),
    "a mask that nobody reads": (
        gpt2, lambda: {**collate(COMPLETIONS[:4]), "assistant_masks": collate(COMPLETIONS[:4])["attention_mask"]},
        ("assistant_masks is no argument of GPT2LMHeadModel.forward", "labels are -100")),
    "vectors in place of ids": (
        llama, lambda: {"inputs_embeds": torch.zeros(4, 9, 16), "labels": torch.ones(4, 9).long()},
        ("input_ids is missing; got labels, inputs_embeds",)),
    "labels of another form": (
        llama, lambda: {**collate(COMPLETIONS[:4]), "shift_labels": collate(COMPLETIONS[:4])["labels"]},
        ("shift_labels is freerun's",)),
}  # fmt: skip


@pytest.mark.parametrize("case", ALONE)
def test_mistakes_are_refused_in_the_first_batch_of_a_plain_loop(case):
    build, batch, parts = ALONE[case]
    m = hf.adapt(build())
    refused(parts, m.batch, **batch())
    m.batch(**collate(PAIRS[:4] if build is t5 else COMPLETIONS[:4]))


def test_an_end_that_is_hidden_as_padding_is_refused_in_a_plain_loop():
    model = llama()
    model.generation_config.eos_token_id = END
    batch = collate(COMPLETIONS[:4])
    batch["labels"] = batch["labels"].masked_fill(batch["labels"] == END, -100)
    refused(f"end with the end symbol {END} and no label is one", hf.adapt(model).batch, **batch)


def test_ids_of_fewer_bits_are_ids():
    for build, rows in ((llama, COMPLETIONS[:4]), (t5, PAIRS[:4])):
        m, batch = hf.adapt(build()), collate(rows)
        narrow = {**batch, "labels": batch["labels"].int(), "input_ids": batch["input_ids"].int()}
        loss = fr.teacher_forcing()(m, m.batch(**narrow), step=0)
        assert loss.item() == fr.teacher_forcing()(m, m.batch(**batch), step=0).item()
