"""Bad input to the trainers is refused before the first step, and the message says what to do."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

import freerun as fr
from builders import refused
from families import FAMILIES
from freerun import hf
from hf_trainer_world import COMPLETIONS, END, PAIRS, VOCAB, collate, llama, make, t5, tokenizer, weights

SAMPLING = fr.scheduled_sampling(0.5)


BEYOND = fr.scheduled_sampling(fr.schedules.piecewise(steps=(0, 100), values=(1.0, -1.0)))
# the ratio comes below 1 only in the second half of the run; the engine is one that T5 has not
LATE = fr.scheduled_sampling(fr.schedules.piecewise(steps=(0, 4, 8), values=(1.0, 1.0, 0.5)), engine="window")
LARGE = {"processing_class": tokenizer(30, pad_token="w0")}
UNLEARNT = [{**row, "labels": [-100] * len(row["labels"])} for row in COMPLETIONS]
FOREIGN = [{"input_ids": [*row["input_ids"], VOCAB + 4], "labels": [*row["labels"], VOCAB + 4]} for row in COMPLETIONS]


class Padless:
    """A collator whose tokenizer has no pad token."""

    tokenizer = tokenizer(VOCAB, eos_token=f"w{END}")

    def __call__(self, rows: Any) -> Any:
        return collate(rows)


def unlabelled(rows: Any) -> Any:
    return {name: value for name, value in collate(rows).items() if name != "labels"}


def halved(outputs: Any, batch: Any) -> Any:
    total, count = fr.objectives.cross_entropy()(outputs, batch)
    return total, count / 2


def causal(data: Any = COMPLETIONS, method: Any = SAMPLING, steps: int = 8, **more: Any) -> Any:
    return make(hf.Trainer, llama(), data, method, max_steps=steps, trainer=more)


def of_method(method: Any, **more: Any) -> Any:
    return lambda: causal(method=method, **more)


REFUSED: dict[str, tuple[Any, tuple[str, ...]]] = {
    "a tokenizer larger than the model": (lambda: causal(**LARGE), (
        "the tokenizer has 30 symbols and the model 23", "model.resize_token_embeddings(len(tokenizer))")),
    "ids that the model has not": (lambda: causal(FOREIGN), (f"{VOCAB + 4}", "is this the model's own tokenizer?")),
    "a tokenizer without a pad token": (lambda: causal(data_collator=Padless()), (
        "has no pad token", "tokenizer.pad_token = tokenizer.eos_token")),
    "labels without any completion": (lambda: causal(UNLEARNT), (
        "all labels are -100", "cut off with the prompt at max_length")),
    "batches without labels": (lambda: causal(data_collator=unlabelled), (
        "a batch has no labels; it has input_ids, attention_mask", "DataCollatorForSeq2Seq")),
    "rows longer than the model's positions": (lambda: causal([{"input_ids": [5] * 40, "labels": [5] * 40}] * 8), (
        "32 positions", "max_length of the tokenizer")),
    "several steps": (of_method(fr.multi_step(horizon=2)), ("multi_step",)),
    "noise on values": (of_method(fr.gaussian_noise(1.0)), ("gaussian_noise",)),
    "a gate for values": (of_method(fr.scheduled_sampling(0.5, gate="blend")), ("gate='blend' mixes values",)),
    "a gradient through ids": (of_method(fr.scheduled_sampling(0.5, gradient="full")), ("gradient",)),
    "an engine needed late": (
        lambda: make(hf.Trainer, FAMILIES["mamba"].build(torch.float32), COMPLETIONS, LATE),
        ("engine='window' needs",)),
    "a schedule that leaves its range": (of_method(BEYOND, steps=80), ("teacher_forcing_ratio must lie in [0, 1]",)),
    "a count that is not known beforehand": (of_method(fr.scheduled_sampling(0.5, objective=halved)), (
        "a count that is known before the forward",)),
    "all problems at once": (lambda: causal(UNLEARNT, BEYOND, 80, **LARGE), (
        "30 symbols", "all labels are -100", "teacher_forcing_ratio must lie in [0, 1]")),
}  # fmt: skip


def assert_refused(trainer: Any, parts: tuple[str, ...]) -> None:
    """No step is made."""
    before = weights(trainer)
    refused(parts, trainer.train)
    assert trainer.state.global_step == 0
    assert all(torch.equal(value, before[name]) for name, value in weights(trainer).items())


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_trained_is_refused_before_the_first_step(case):
    build, parts = REFUSED[case]
    assert_refused(build(), parts)


def test_nothing_to_train():
    trainer = make(hf.Trainer, llama().requires_grad_(False), COMPLETIONS, SAMPLING)
    # a single parameter keeps PyTorch's optimizer from refusing an empty list first
    trainer.optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))])
    trainer.lr_scheduler = torch.optim.lr_scheduler.ConstantLR(trainer.optimizer)
    assert_refused(trainer, ("no parameter of the model requires a gradient", "LoRA"))


def test_a_decoder_without_a_start_symbol():
    model = t5()
    model.config.decoder_start_token_id = model.generation_config.decoder_start_token_id = None
    with pytest.raises((fr.UserError, ValueError), match="decoder_start_token_id"):
        make(hf.Seq2SeqTrainer, model, PAIRS, SAMPLING).train()


class Spread:
    """A trainer of which only what says how a model is spread over devices is known: such machines are not here."""

    def __init__(self, *, deepspeed: bool = False, parallel: Any = None, n_gpu: int = 1, fsdp: Any = None) -> None:
        self.args = SimpleNamespace(n_gpu=n_gpu, fsdp=fsdp)
        self.is_deepspeed_enabled = deepspeed
        self.accelerator = SimpleNamespace(parallelism_config=parallel)


def test_places_where_a_roll_in_would_hang_or_see_half_a_model():
    from freerun.integrations.hf_runner import place_problems

    assert place_problems(Spread(), SAMPLING) == []
    fsdp = place_problems(Spread(fsdp="full_shard"), SAMPLING)
    assert "wait for each other for ever: use FSDP 2" in fsdp[0]
    second = Spread(fsdp="full_shard")
    second.accelerator.state = SimpleNamespace(fsdp_plugin=SimpleNamespace(fsdp_version=2))
    assert place_problems(second, SAMPLING) == []
    for engine in ("step", "window", fr.Draft()):
        assert "use engine='auto' or 'jacobi'" in place_problems(second, fr.scheduled_sampling(0.5, engine=engine))[0]
    assert place_problems(Spread(fsdp="full_shard"), fr.teacher_forcing()) == []
    assert "torchrun --nproc-per-node" in place_problems(Spread(n_gpu=2), SAMPLING)[0]
    assert "DeepSpeed is not supported" in place_problems(Spread(deepspeed=True), SAMPLING)[0]
    parallel = SimpleNamespace(tp_enabled=True)
    assert "use data parallelism" in place_problems(Spread(parallel=parallel), SAMPLING)[0]
