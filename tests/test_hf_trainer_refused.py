"""Bad input to the trainers is refused before the first step, and the message says what to do."""

from dataclasses import dataclass
from typing import Any

import pytest
import torch
import transformers
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast

import freerun as fr
from freerun import hf
from hf_trainer_world import COMPLETIONS, END, PAIRS, VOCAB, collate, llama, make, t5, weights

SAMPLING = fr.scheduled_sampling(0.5)


def tokenizer(size: int, **special: str) -> Any:
    words = {f"w{i}": i for i in range(size)}
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer(WordLevel(words, unk_token="w2")), **special)


def refused(trainer: Any, *said: str) -> None:
    before = weights(trainer)
    with pytest.raises(fr.UserError) as caught:
        trainer.train()
    message = str(caught.value)
    assert all(each in message for each in said), message
    # no step was made
    assert trainer.state.global_step == 0
    assert all(torch.equal(value, before[name]) for name, value in weights(trainer).items())


def test_a_tokenizer_larger_than_the_model():
    trainer = make(
        hf.Trainer, llama(), COMPLETIONS, SAMPLING, trainer={"processing_class": tokenizer(30, pad_token="w0")}
    )
    refused(trainer, "the tokenizer has 30 symbols and the model 23", "model.resize_token_embeddings(len(tokenizer))")


def test_ids_that_the_model_has_not():
    data = [{"input_ids": [*row["input_ids"], VOCAB + 4], "labels": [*row["labels"], VOCAB + 4]} for row in COMPLETIONS]
    refused(make(hf.Trainer, llama(), data, SAMPLING), f"{VOCAB + 4}", "is this the model's own tokenizer?")


def test_a_tokenizer_without_a_pad_token():
    told = tokenizer(VOCAB, eos_token=f"w{END}")

    class Collate:
        tokenizer = told

        def __call__(self, rows: Any) -> Any:
            return collate(rows)

    trainer = make(hf.Trainer, llama(), COMPLETIONS, SAMPLING, trainer={"data_collator": Collate()})
    refused(trainer, "has no pad token", "tokenizer.pad_token = tokenizer.eos_token")


def test_a_decoder_without_a_start_symbol():
    model = t5()
    model.config.decoder_start_token_id = None
    model.generation_config.decoder_start_token_id = None
    with pytest.raises((fr.UserError, ValueError), match="decoder_start_token_id"):
        make(hf.Seq2SeqTrainer, model, PAIRS, SAMPLING).train()


def test_labels_without_any_completion():
    data = [{**row, "labels": [-100] * len(row["labels"])} for row in COMPLETIONS]
    refused(make(hf.Trainer, llama(), data, SAMPLING), "all labels are -100", "cut off with the prompt at max_length")


def test_batches_without_labels():
    def unlabelled(rows: Any) -> Any:
        return {name: value for name, value in collate(rows).items() if name != "labels"}

    trainer = make(hf.Trainer, llama(), COMPLETIONS, SAMPLING, trainer={"data_collator": unlabelled})
    refused(trainer, "a batch has no labels; it has input_ids, attention_mask", "DataCollatorForSeq2Seq")


def test_rows_longer_than_the_models_positions():
    data = [{"input_ids": [5] * 40, "labels": [5] * 40} for _ in range(8)]
    refused(make(hf.Trainer, llama(), data, SAMPLING), "32 positions", "max_length of the tokenizer")


@pytest.mark.parametrize(
    ("method", "said"),
    [
        (fr.multi_step(horizon=2), "multi_step"),
        (fr.gaussian_noise(1.0), "gaussian_noise"),
        (fr.scheduled_sampling(0.5, gate="blend"), "gate='blend' mixes values"),
        (fr.scheduled_sampling(0.5, gradient="full"), "gradient"),
    ],
    ids=lambda x: x if isinstance(x, str) else "",
)
def test_methods_that_ids_cannot_honour(method, said):
    refused(make(hf.Trainer, llama(), COMPLETIONS, method), said)


def test_what_a_late_step_would_refuse_is_refused_at_once():
    """The ratio comes below 1 only in the second half of the run; the engine is one that T5 has not."""
    late = fr.schedules.piecewise(steps=(0, 4, 8), values=(1.0, 1.0, 0.5))
    refused(make(hf.Seq2SeqTrainer, t5(), PAIRS, fr.scheduled_sampling(late, engine="window")), "engine='window' needs")


def test_a_schedule_that_leaves_its_range_within_the_run():
    beyond = fr.scheduled_sampling(fr.schedules.piecewise(steps=(0, 100), values=(1.0, -1.0)))
    refused(make(hf.Trainer, llama(), COMPLETIONS, beyond, max_steps=80), "teacher_forcing_ratio must lie in [0, 1]")


def test_nothing_to_train():
    model = llama().requires_grad_(False)
    trainer = make(hf.Trainer, model, COMPLETIONS, SAMPLING)
    # a single parameter keeps PyTorch's optimizer from refusing an empty list first
    trainer.optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))])
    trainer.lr_scheduler = torch.optim.lr_scheduler.ConstantLR(trainer.optimizer)
    refused(trainer, "no parameter of the model requires a gradient", "LoRA")


def test_an_objective_whose_count_is_not_known_beforehand():
    def halved(outputs: Any, batch: Any) -> Any:
        total, count = fr.objectives.cross_entropy()(outputs, batch)
        return total, count / 2

    method = fr.scheduled_sampling(0.5, objective=halved)
    refused(make(hf.Trainer, llama(), COMPLETIONS, method), "a count that is known before the forward")


def test_all_problems_at_once():
    beyond = fr.scheduled_sampling(fr.schedules.piecewise(steps=(0, 100), values=(1.0, -1.0)))
    given = {"processing_class": tokenizer(30, pad_token="w0")}
    data = [{**row, "labels": [-100] * len(row["labels"])} for row in COMPLETIONS]
    trainer = make(hf.Trainer, llama(), data, beyond, max_steps=80, trainer=given)
    refused(trainer, "30 symbols", "all labels are -100", "teacher_forcing_ratio must lie in [0, 1]")


@dataclass
class Args:
    """What of a trainer's arguments says how a model is spread over devices."""

    n_gpu: int = 1
    fsdp: Any = None


class Spread:
    """A trainer of which only that is known: such machines are not here."""

    def __init__(self, *, deepspeed: bool = False, parallel: Any = None, **args: Any) -> None:
        self.args = Args(**args)
        self.is_deepspeed_enabled = deepspeed
        self.accelerator = type("Accelerator", (), {"parallelism_config": parallel})()


def test_places_where_a_roll_in_would_hang_or_see_half_a_model():
    from freerun.integrations.hf_runner import place_problems

    assert place_problems(Spread(), SAMPLING) == []
    fsdp = place_problems(Spread(fsdp="full_shard"), SAMPLING)
    assert "wait for each other for ever: use FSDP 2" in fsdp[0]
    second = Spread(fsdp="full_shard")
    second.accelerator.state = type("State", (), {"fsdp_plugin": type("Plugin", (), {"fsdp_version": 2})})
    assert place_problems(second, SAMPLING) == []
    for engine in ("step", "window", fr.Draft()):
        assert "use engine='auto' or 'jacobi'" in place_problems(second, fr.scheduled_sampling(0.5, engine=engine))[0]
    assert place_problems(Spread(fsdp="full_shard"), fr.teacher_forcing()) == []
    assert "torchrun --nproc-per-node" in place_problems(Spread(n_gpu=2), SAMPLING)[0]
    assert "DeepSpeed is not supported" in place_problems(Spread(deepspeed=True), SAMPLING)[0]
    parallel = type("Parallel", (), {"tp_enabled": True})()
    assert "use data parallelism" in place_problems(Spread(parallel=parallel), SAMPLING)[0]


def test_the_callback_in_a_trainer_that_would_never_ask_it():
    trainer = make(transformers.Trainer, llama(), COMPLETIONS, trainer={"callbacks": [hf.Callback()]})
    with pytest.raises(fr.UserError, match=r"freerun\.hf\.MethodMixin before the trainer"):
        trainer.train()
    with pytest.raises(fr.UserError, match="batches must be at least 1"):
        hf.Callback(batches=0)
