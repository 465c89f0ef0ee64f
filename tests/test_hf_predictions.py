"""``predict_with_generate`` for decoders alone: ``compute_metrics`` gets what ``model.generate`` gives by hand."""

import itertools
import tempfile
from typing import Any

import numpy
import pytest
import torch
import transformers
from datasets import Dataset
from trl import SFTConfig, SFTTrainer

import freerun as fr
from builders import refused
from families import FAMILIES, VOCAB
from freerun import hf
from hf_scripts import bart_like
from hf_trainer_world import (
    CHECKPOINTING,
    COMPLETIONS,
    END,
    PAD,
    PAIRS,
    SETTINGS,
    collate,
    completions,
    llama,
    logged,
    make,
    t5,
    tokenizer,
)
from test_hf_callback import packed, padded_left

WORDS = tokenizer(eos_token=f"w{END}", pad_token=f"w{PAD}")
DEV = completions(7, seed=5)


class Seen:
    """A ``compute_metrics`` that keeps what it is called with."""

    def __call__(self, predicted: Any) -> dict[str, float]:
        self.predictions, self.labels = predicted.predictions, predicted.label_ids
        return {"exact": float(numpy.mean([a == b for a, b in zip(self.texts(), self.golds(), strict=True)]))}

    def texts(self) -> list[str]:
        """As the official scripts make them."""
        return self._decoded(self.predictions)

    def golds(self) -> list[str]:
        return self._decoded(self.labels)

    def _decoded(self, ids: Any) -> list[str]:
        return WORDS.batch_decode(numpy.where(ids != -100, ids, PAD), skip_special_tokens=True)


def by_hand(model: Any, rows: Any = DEV, **settings: Any) -> list[list[int]]:
    """Row by row, without padding: the ids after the prompt."""
    found: list[list[int]] = []
    for row in rows:
        prompt = torch.tensor([[t for t, label in zip(row["input_ids"], row["labels"], strict=True) if label == -100]])
        room = {} if settings else {"max_new_tokens": 2 * (len(row["labels"]) - prompt.shape[1] - 1) + 8}
        ids = model.eval().generate(prompt, attention_mask=torch.ones_like(prompt), **settings, **room)
        found.append(ids[0, prompt.shape[1] :].tolist())
    return found


def assert_same(seen: Seen, expected: list[list[int]]) -> None:
    for own, row in zip(seen.predictions.tolist(), expected, strict=True):
        assert own[: len(row)] == row
        assert set(own[len(row) :]) <= {PAD, -100}


def trainer_of(
    cls: Any, seen: Any, model: Any = None, collator: Any = collate, method: Any = None, **changes: Any
) -> Any:
    options: Any = {"eval_dataset": DEV, "compute_metrics": seen, "processing_class": WORDS, "data_collator": collator}
    if cls is hf.Trainer:
        options["predict_with_generate"] = True
    else:
        changes["predict_with_generate"] = True
    sizes: Any = {"per_device_eval_batch_size": 3, **changes}
    return make(cls, llama() if model is None else model, COMPLETIONS, method, trainer=options, **sizes)


@pytest.mark.parametrize("collator", [collate, padded_left, packed])
@pytest.mark.parametrize("cls", [hf.Trainer, hf.Seq2SeqTrainer])
def test_predictions_are_generates(cls, collator):
    """Whatever the layout of the evaluation batches is; packed rows have one prediction for all their documents."""
    seen = Seen()
    trainer = trainer_of(cls, seen, collator=collator)
    scores = trainer.evaluate()
    rows = by_hand(trainer.model)
    if collator is packed:
        rows = [list(itertools.chain(*rows[i : i + 3])) for i in range(0, 7, 3)]
    assert len({len(row) for row in rows}) > 1
    assert_same(seen, rows)
    plain = make(cls, llama(), COMPLETIONS, None, per_device_eval_batch_size=3,
                 trainer={"eval_dataset": DEV, "data_collator": collator})  # fmt: skip
    assert scores["eval_loss"] == pytest.approx(plain.evaluate()["eval_loss"], rel=1e-6)
    golds = [f"w{i}" for row in DEV[: 3 if collator is packed else 1] for i in row["labels"] if i > END]
    assert seen.golds()[0].split() == golds


GENERATION: dict[str, dict[str, Any]] = {
    "a length with the prompt": {"max_length": 14}, "a least length": {"min_length": 12, "max_new_tokens": 9},
    "new tokens": {"max_new_tokens": 4}, "a penalty": {"repetition_penalty": 2.5, "max_new_tokens": 6},
    "no repetition": {"no_repeat_ngram_size": 2, "max_new_tokens": 8}, "beams": {"num_beams": 3, "max_new_tokens": 5},
}  # fmt: skip


@pytest.mark.parametrize("pad", [PAD, END])
@pytest.mark.parametrize("case", GENERATION)
def test_settings_that_count_a_prompt_do_not_count_its_padding(case, pad):
    """Of the model's own settings; where pad and end are one, padding would be penalised and end nothing."""
    model, seen = llama(), Seen()
    model.generation_config.update(**GENERATION[case], eos_token_id=END, pad_token_id=pad)
    trainer = trainer_of(hf.Trainer, seen, model)
    trainer.evaluate()
    expected = by_hand(model, **GENERATION[case])
    for own, row in zip(seen.predictions.tolist(), expected, strict=True):
        assert own[: len(row)] == row
    # and the callback's scores of the same outputs
    trainer.add_callback(hf.Callback(trainer, rows="all"))
    length = sum(len([t for t in row if t != END]) for row in expected)
    references = sum(len([t for t in row["labels"] if t not in (-100, END)]) for row in DEV)
    assert trainer.evaluate()["eval_free_running_length_ratio"] == pytest.approx(length / references)


@pytest.mark.parametrize("name", ["gpt2", "opt", "bloom", "mamba", "gemma2"])
def test_ragged_prompts_of_other_families(name):
    """Absolute positions, ALiBi, recurrent states, windows."""
    model, seen = FAMILIES[name].build(torch.float32), Seen()
    model.generation_config.update(eos_token_id=END, pad_token_id=PAD, max_new_tokens=6)
    rows = [{key: [min(t, VOCAB - 1) for t in part] for key, part in row.items()} for row in DEV]
    options: Any = {"eval_dataset": rows, "compute_metrics": seen, "predict_with_generate": True}
    make(hf.Trainer, model, rows, None, per_device_eval_batch_size=4, trainer=options).evaluate()
    assert_same(seen, by_hand(model, rows, max_new_tokens=6))


def test_settings_of_the_arguments_and_of_a_call():
    seen = Seen()
    trainer = trainer_of(hf.Seq2SeqTrainer, seen, generation_max_length=16, generation_num_beams=2)
    trainer.evaluate()
    assert_same(seen, by_hand(trainer.model, max_length=16, num_beams=2))
    trainer.evaluate(max_new_tokens=3)
    assert_same(seen, by_hand(trainer.model, max_new_tokens=3, num_beams=2))
    # prompts without labels
    prompts = [{"input_ids": pair["input_ids"]} for pair in PAIRS[:5]]

    def left(rows: Any) -> Any:
        return {k: v for k, v in padded_left([{**r, "labels": r["input_ids"]} for r in rows]).items() if k != "labels"}

    trainer.data_collator = left
    found = trainer.predict(prompts, max_new_tokens=3).predictions
    rows = [{**row, "labels": [-100] * len(row["input_ids"])} for row in prompts]
    expected = by_hand(trainer.model, rows, max_new_tokens=3, num_beams=2)
    assert [own[: len(row)] for own, row in zip(found.tolist(), expected, strict=True)] == expected


def test_a_best_model_by_generated_text(tmp_path):
    seen = Seen()
    trainer = trainer_of(
        hf.Trainer, seen, method=fr.scheduled_sampling(0.5), max_steps=4, eval_strategy="steps", eval_steps=2,
        save_strategy="steps", save_steps=2, load_best_model_at_end=True, metric_for_best_model="eval_exact",
        folder=tmp_path,
    )  # fmt: skip
    trainer.train()
    assert trainer.state.best_metric == max(logged(trainer, "eval_exact"))


def test_every_turn_is_generated_after_the_gold_turns_before_it():
    row = {"input_ids": [5, 6, 7, 8, 9, 10, 11, 12], "labels": [-100, -100, 7, 8, -100, -100, 11, 12]}
    model, seen = llama(), Seen()
    model.generation_config.update(eos_token_id=None, max_new_tokens=2)
    options: Any = {"eval_dataset": [row], "compute_metrics": seen, "predict_with_generate": True}
    make(hf.Trainer, model, [row], None, trainer=options).evaluate()
    turns = [{"input_ids": prompt, "labels": [-100] * len(prompt)} for prompt in ([5, 6], [5, 6, 7, 8, 9, 10])]
    assert seen.predictions.tolist() == [list(itertools.chain(*by_hand(model, turns, max_new_tokens=2)))]


class Supervised(hf.MethodMixin, SFTTrainer):
    pass


def test_trls_trainer_generates_too():
    rows = [{"prompt": " ".join(f"w{i}" for i in pair["input_ids"][:-1]),
             "completion": " " + " ".join(f"w{i}" for i in pair["labels"][:-1])} for pair in PAIRS[:9]]  # fmt: skip
    settings: Any = {**SETTINGS, "output_dir": tempfile.mkdtemp(), "bf16": False, CHECKPOINTING: False}
    seen = Seen()
    trainer = Supervised(
        model=llama(), args=SFTConfig(**settings), train_dataset=Dataset.from_list(rows), processing_class=WORDS,
        eval_dataset=Dataset.from_list(rows), compute_metrics=seen, predict_with_generate=True, method=None,
    )  # fmt: skip
    trainer.evaluate()
    assert_same(seen, by_hand(trainer.model, trainer.eval_dataset))


def test_what_cannot_be_generated_is_refused_before_the_first_step():
    everything = [{**row, "labels": row["input_ids"]} for row in DEV]
    options: Any = {"compute_metrics": Seen(), "predict_with_generate": True}
    evaluated: Any = {"eval_strategy": "steps", "eval_steps": 1}
    trainer = make(hf.Trainer, llama(), everything, None, **evaluated, trainer={**options, "eval_dataset": everything})
    refused("1 of 1 rows have a label on their first token", trainer.train)
    assert trainer.state.global_step == 0
    model = llama()
    model.generation_config.max_length = 2
    short = make(hf.Trainer, model, COMPLETIONS, None, **evaluated, trainer={**options, "eval_dataset": DEV})
    refused("max_new_tokens", short.train)
    refused("set it in the arguments alone", make, hf.Seq2SeqTrainer, llama(), COMPLETIONS, None, trainer=options)


def test_an_encoder_decoder_generates_as_before():
    found: list[Any] = []
    for cls, more in ((transformers.Seq2SeqTrainer, {}), (hf.Seq2SeqTrainer, {"method": None})):
        seen = Seen()
        trainer = make(cls, t5(), PAIRS, predict_with_generate=True, generation_max_length=9,
                       trainer={"eval_dataset": PAIRS[:5], "compute_metrics": seen, **more})  # fmt: skip
        trainer.evaluate()
        found.append(seen.predictions)
    assert numpy.array_equal(*found)
    # a plain trainer, which has no such argument, generates the same
    seen = Seen()
    options: Any = {"eval_dataset": PAIRS[:5], "compute_metrics": seen, "predict_with_generate": True}
    model = t5()
    model.generation_config.max_length = 9
    make(hf.Trainer, model, PAIRS, None, trainer=options).evaluate()
    width = min(seen.predictions.shape[1], found[0].shape[1] - 1)
    assert numpy.array_equal(seen.predictions[:, :width], found[0][:, 1 : width + 1])
    # and prompts alone, whose labels it does not know
    trainer = make(hf.Trainer, model, PAIRS, None, remove_unused_columns=False, trainer=options)
    trainer.data_collator = lambda rows: {k: v for k, v in collate(rows).items() if k != "labels"}
    assert numpy.array_equal(trainer.predict(PAIRS[:5]).predictions[:, :width], found[0][:, 1 : width + 1])


@pytest.mark.parametrize("cls", [hf.Seq2SeqTrainer, hf.Trainer])
def test_languages_by_row(cls):
    """A column of the batch: its ids are neither replaced nor chosen by the model, in training and in evaluation."""
    french, german = 20, 21
    rows = [{"input_ids": row["input_ids"], "labels": [language, *row["labels"]], "forced_bos_token_id": language}
            for row, language in zip(PAIRS, itertools.cycle((french, german)), strict=False)]  # fmt: skip

    def collated(part: Any) -> Any:
        languages = torch.tensor([row["forced_bos_token_id"] for row in part])
        return {**collate(part), "forced_bos_token_id": languages}

    torch.manual_seed(0)
    model, seen = bart_like("M2M100", start=END)(WORDS), Seen()
    options: Any = {"eval_dataset": rows[:6], "compute_metrics": seen, "data_collator": collated}
    options["processing_class"] = WORDS
    options |= {"predict_with_generate": True} if cls is hf.Trainer else {}
    more: Any = {"predict_with_generate": True} if cls is hf.Seq2SeqTrainer else {}
    method = fr.free_running()
    trainer = make(cls, model, rows, method, max_steps=1, remove_unused_columns=False, trainer=options, **more)
    trainer.add_callback(hf.Callback(trainer, rows="all"))
    trainer.train()
    assert 0 < logged(trainer, "replaced_share")[0] <= 1
    batch = hf.adapt(model).batch(**collated(rows[:4]))
    assert not bool(batch.replaceable[:, 0].any())
    found = trainer.evaluate()
    assert seen.predictions[:, 0].tolist() == [french, german] * 3
    for own, row in zip(seen.predictions.tolist(), rows, strict=False):
        ids = torch.tensor([row["input_ids"]])
        room: Any = {"max_new_tokens": 2 * (len(row["labels"]) - 1) + 8}
        whole = model.eval().generate(ids, forced_bos_token_id=row["forced_bos_token_id"], **room)
        expected = whole[0, 1:].tolist()
        assert own[: len(expected)] == expected
    assert found["eval_free_running_rows"] == 6
