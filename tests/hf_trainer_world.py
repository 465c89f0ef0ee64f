"""A small world for the trainers: reversing words, tiny random models, runs that leave their weights and their log."""

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from torch import Tensor
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
)

import freerun as fr
from freerun import hf

VOCAB, PAD, END = 23, 0, 1
# the argument's name in transformers 5.0 and later
CHECKPOINTING = next(
    name for name in ("activation_checkpointing", "gradient_checkpointing")
    if name in transformers.TrainingArguments.__dataclass_fields__
)  # fmt: skip


def t5(dropout: float = 0.0) -> Any:
    torch.manual_seed(0)
    sizes: Any = {"d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 1, "num_heads": 2}
    ids: Any = {"decoder_start_token_id": PAD, "pad_token_id": PAD, "eos_token_id": END}
    return T5ForConditionalGeneration(T5Config(vocab_size=VOCAB, dropout_rate=dropout, **sizes, **ids))


def llama() -> Any:
    torch.manual_seed(0)
    sizes: Any = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    return LlamaForCausalLM(LlamaConfig(vocab_size=VOCAB, max_position_embeddings=32, pad_token_id=PAD, **sizes))


def gpt2(dropout: float = 0.0) -> Any:
    torch.manual_seed(0)
    dropouts: Any = {f"{where}_pdrop": dropout for where in ("resid", "embd", "attn")}
    ids: Any = {"bos_token_id": END, "eos_token_id": END, "pad_token_id": PAD}
    return GPT2LMHeadModel(
        GPT2Config(vocab_size=VOCAB, n_positions=32, n_embd=16, n_layer=1, n_head=2, **dropouts, **ids)
    )


def pairs(number: int, seed: int = 1) -> list[dict[str, list[int]]]:
    """Words of 2 to 7 letters and the same backwards, both with an end symbol."""
    chosen = torch.Generator().manual_seed(seed)
    words = [torch.randint(2, VOCAB, (int(n),), generator=chosen).tolist() for n in
             torch.randint(2, 8, (number,), generator=chosen)]  # fmt: skip
    return [{"input_ids": [*word, END], "labels": [*word[::-1], END]} for word in words]


def completions(number: int, seed: int = 1) -> list[dict[str, list[int]]]:
    """The same as prompt and completion of a causal model."""
    return [
        {"input_ids": pair["input_ids"] + pair["labels"], "labels": [-100] * len(pair["input_ids"]) + pair["labels"]}
        for pair in pairs(number, seed)
    ]


def collate(rows: Sequence[Mapping[str, list[int]]]) -> dict[str, Tensor]:
    def padded(name: str, value: int) -> Tensor:
        longest = max(len(row[name]) for row in rows)
        return torch.tensor([row[name] + [value] * (longest - len(row[name])) for row in rows])

    ids = padded("input_ids", -1)
    return {"input_ids": ids.clamp_min(PAD), "attention_mask": (ids >= 0).long(), "labels": padded("labels", -100)}


PAIRS, COMPLETIONS = pairs(48), completions(48)
WORLDS: dict[str, Any] = {
    "t5": (t5, PAIRS, hf.Seq2SeqTrainer, transformers.Seq2SeqTrainer),
    "llama": (llama, COMPLETIONS, hf.Trainer, transformers.Trainer),
    "gpt2": (gpt2, COMPLETIONS, hf.Trainer, transformers.Trainer),
}


def falling(steps: int = 12) -> Any:
    return fr.scheduled_sampling(fr.schedules.linear(start=0.9, end=0.2, steps=steps))


def tokenizer(size: int = VOCAB, **special: str) -> Any:
    words = Tokenizer(WordLevel({f"w{i}": i for i in range(size)}, unk_token="w2"))
    words.pre_tokenizer = Whitespace()
    return transformers.PreTrainedTokenizerFast(tokenizer_object=words, **special)


SETTINGS: dict[str, Any] = {
    "per_device_train_batch_size": 8, "max_steps": 8, "learning_rate": 1e-2, "logging_steps": 1, "report_to": [],
    "save_strategy": "no", "use_cpu": True, "disable_tqdm": True, "dataloader_pin_memory": False,
    "log_level": "error", "seed": 3,
}  # fmt: skip


def arguments(cls: type, folder: str | Path, **changes: Any) -> Any:
    settings = {**SETTINGS, "output_dir": str(folder), **changes}
    sequences = issubclass(cls, transformers.Seq2SeqTrainer)
    return (transformers.Seq2SeqTrainingArguments if sequences else transformers.TrainingArguments)(**settings)


def make(cls: Any, model: Any, data: Any, method: Any = "stock", folder: Any = None, **changes: Any) -> Any:
    """A trainer; ``method="stock"`` is for those that know none. What is not an argument lies under ``trainer``."""
    options: dict[str, Any] = {"data_collator": collate, "train_dataset": data, **changes.pop("trainer", {})}
    if not isinstance(method, str):
        options["method"] = method
    folder = folder or tempfile.mkdtemp()
    trainer = cls(model=model, args=arguments(cls, folder, **changes), **options)
    trainer.remove_callback(transformers.PrinterCallback)
    return trainer


def train(cls: Any, model: Any, data: Any, method: Any = "stock", **changes: Any) -> Any:
    resume = changes.pop("resume", None)
    trainer = make(cls, model, data, method, **changes)
    trainer.train(resume_from_checkpoint=resume)
    return trainer


def run(name: str, method: Any = "stock", *, double: bool = False, dropout: float | None = None, **changes: Any) -> Any:
    """One of ``WORLDS`` trained by our trainer, or by the stock one."""
    build, data, ours, stock = WORLDS[name]
    model = build() if dropout is None else build(dropout)
    cls = stock if isinstance(method, str) else ours
    return train(cls, model.double() if double else model, changes.pop("data", data), method, **changes)


def weights(trainer: Any) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in trainer.model.state_dict().items()}


def apart(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> float:
    """The largest difference between two sets of weights."""
    assert one.keys() == other.keys()
    return max(float((one[name].double() - other[name].double()).abs().max()) for name in one)


def logged(trainer: Any, name: str = "loss") -> list[float]:
    return [line[name] for line in trainer.state.log_history if name in line]
