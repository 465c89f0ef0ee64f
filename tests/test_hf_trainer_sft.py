"""TRL's SFTTrainer through the mixin: its own losses, completion masks, packing."""

import itertools
import tempfile
from typing import Any

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import PrinterCallback
from trl import SFTConfig, SFTTrainer

import freerun as fr
from freerun import hf
from hf_trainer_world import CHECKPOINTING, END, PAIRS, SETTINGS, apart, falling, llama, logged, tokenizer, weights


class Mine(hf.MethodMixin, SFTTrainer):
    """All that a user writes."""


class Seen(SFTTrainer):
    """Keeps the inputs of its loss."""

    def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        self.fed = dict(inputs)
        return super().compute_loss(model, inputs, *args, **kwargs)


class Kept(hf.MethodMixin, Seen):
    """The same, and keeps the batch itself."""

    def training_step(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        self.collated = dict(inputs)
        return super().training_step(model, inputs, *args, **kwargs)


def words(ids: list[int]) -> str:
    return " ".join(f"w{i}" for i in ids)


def sft(cls: Any, method: Any = "stock", **changes: Any) -> Any:
    data = Dataset.from_list(
        [{"prompt": words(pair["input_ids"]), "completion": " " + words(pair["labels"][:-1])} for pair in PAIRS]
    )
    settings: dict[str, Any] = {
        **SETTINGS, "output_dir": tempfile.mkdtemp(), "max_steps": 3, "max_length": 32, "bf16": False,
        CHECKPOINTING: False, **changes,
    }  # fmt: skip
    options: dict[str, Any] = settings.pop("trainer", {})
    if not isinstance(method, str):
        options = {**options, "method": method}
    model = settings.pop("model", None) or llama()
    trainer = cls(
        model=model,
        args=SFTConfig(**settings),
        train_dataset=data,
        processing_class=tokenizer(eos_token=f"w{END}", pad_token="w0"),
        **options,
    )
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    return trainer


@pytest.mark.parametrize("loss", ["nll", "dft"])
def test_teacher_forcing_is_the_stock_trainer_for_each_of_its_losses(loss):
    stock, ours = sft(SFTTrainer, loss_type=loss), sft(Mine, fr.teacher_forcing(), loss_type=loss)
    assert apart(weights(stock), weights(ours)) == 0.0
    assert logged(stock) == logged(ours)
    assert logged(sft(Mine, None, loss_type=loss)) == logged(stock)


def test_accumulation_is_one_big_batch():
    whole = sft(Mine, falling(), model=llama().double())
    parts = sft(Mine, falling(), model=llama().double(), per_device_train_batch_size=2, gradient_accumulation_steps=4)
    # the trainer's own loss is taken in single precision
    assert apart(weights(whole), weights(parts)) < 1e-5
    assert logged(parts) == pytest.approx(logged(whole), rel=1e-5)
    assert logged(parts, "replaced_share") == logged(whole, "replaced_share")


def test_exactly_the_completion_is_replaced():
    trainer = sft(Kept, fr.free_running(), max_steps=1)
    gold, fed = trainer.collated, trainer.fed
    changed, learnt = fed["input_ids"] != gold["input_ids"], gold["labels"] != -100
    assert torch.equal(fed["labels"], gold["labels"])
    assert not bool((changed & ~learnt).any())
    assert float(changed.sum()) > 0.5 * float(learnt.sum())  # by chance with < 1e-9


@pytest.mark.parametrize("completion", [True, False])
def test_packing_keeps_documents_apart(completion):
    """What is fed in a packed row is what the documents of that row are fed alone; first tokens are never replaced."""
    trainer = sft(
        Kept, fr.free_running(draw="greedy"), max_steps=1, packing=True, completion_only_loss=completion,
        per_device_train_batch_size=2,
    )  # fmt: skip
    gold, fed = trainer.collated, trainer.fed
    assert {"position_ids", "input_ids", "labels"} <= fed.keys()
    assert all(
        torch.equal(fed[name], gold[name]) for name in gold if name != "input_ids" and torch.is_tensor(gold[name])
    )
    changed, learnt = fed["input_ids"] != gold["input_ids"], gold["labels"] != -100
    first = gold["position_ids"] == 0
    assert int(first.sum()) > len(first)
    assert not bool((changed & (~learnt | first)).any())
    assert float(changed.sum()) > 0.5 * float(learnt.sum())
    m, starts = hf.adapt(llama()), [*first[0].nonzero().flatten().tolist(), first.shape[1]]
    for begin, end in itertools.pairwise(starts):
        ids, labels = gold["input_ids"][:1, begin:end], gold["labels"][:1, begin:end]
        if not bool((labels[:, 1:] != -100).any()):
            continue
        batch = m.batch(input_ids=ids, labels=labels)
        alone = m.inputs(fr.free_running(draw="greedy").transform(m, batch, step=0))["input_ids"]
        assert torch.equal(alone, fed["input_ids"][:1, begin:end])


# peft asks the model by an attribute's old name
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
def test_lora_checkpointing_and_half_precision():
    lora = LoraConfig(r=2, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    trainer = sft(
        Mine, fr.scheduled_sampling(0.5), gradient_accumulation_steps=2, per_device_train_batch_size=4, bf16=True,
        trainer={"peft_config": lora}, **{CHECKPOINTING: True},
    )  # fmt: skip
    moved = [
        name for name, p in trainer.model.named_parameters() if p.requires_grad and float(p.detach().abs().sum()) > 0
    ]
    assert moved
    assert all("lora" in name for name in moved)
    assert min(logged(trainer, "replaced_share")) > 0


def test_the_callback_scores_a_stock_trainer():
    """The loss over all tokens beside TRL's, a mean over batches; outputs by the model's own generate, row by row."""
    trainer = sft(SFTTrainer)
    trainer.eval_dataset = trainer.train_dataset
    trainer.add_callback(hf.Callback(trainer))
    scores, rows = trainer.evaluate(), list(trainer.train_dataset)
    assert scores["eval_teacher_forced_loss"] == pytest.approx(scores["eval_loss"], rel=0.02)
    assert scores["eval_free_running_loss"] > 0
    assert scores["eval_free_running_rows"] == len(rows)
    ends, right = set(trainer.model.generation_config.eos_token_id), 0

    def cut(ids: list[int]) -> list[int]:
        return list(itertools.takewhile(lambda each: each not in ends, ids))

    for row in rows:
        first = row["labels"].count(-100)
        ids = torch.tensor([row["input_ids"][:first]])
        own = trainer.model.eval().generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=40)
        right += cut(own[0, first:].tolist()) == cut(row["labels"][first:])
    assert 0 < right < len(rows)
    assert scores["eval_free_running_exact_match"] == pytest.approx(right / len(rows))
