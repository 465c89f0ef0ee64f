"""Supervised fine-tuning of a causal model with TRL's SFTTrainer: only completions carry loss and are replaced.

Run: python examples/sft.py FOLDER
"""

from __future__ import annotations

import random
import sys

import datasets
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, set_seed
from trl import SFTConfig, SFTTrainer

import freerun as fr
from freerun import hf


class Trainer(hf.MethodMixin, SFTTrainer):
    """TRL's trainer with ``method=``; it keeps its own loss."""


def letters() -> PreTrainedTokenizerFast:
    """A symbol for each character: instead of AutoTokenizer.from_pretrained(...)."""
    symbols = ["<pad>", "<end>", *"0123456789+=?"]
    tokenizer = Tokenizer(models.WordLevel({symbol: i for i, symbol in enumerate(symbols)}, unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<end>")


def sums(number: int, seed: int) -> datasets.Dataset:
    """Sums as prompts, results as completions."""
    chosen = random.Random(seed)
    both = [(chosen.randrange(100), chosen.randrange(100)) for _ in range(number)]
    return datasets.Dataset.from_list([{"prompt": f"{a}+{b}=", "completion": str(a + b)} for a, b in both])


def main(folder: str) -> dict[str, float]:
    """Train and evaluate; the folder holds the model afterwards."""
    set_seed(0)
    tokenizer = letters()
    model = LlamaForCausalLM(
        LlamaConfig(vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2,
                    num_attention_heads=2, max_position_embeddings=64, pad_token_id=0, eos_token_id=1)
    )  # fmt: skip
    args = SFTConfig(folder, max_steps=30, per_device_train_batch_size=16, learning_rate=3e-3, logging_steps=10,
                     packing=True, max_length=48, bf16=False, report_to="none")  # fmt: skip
    method = fr.scheduled_sampling(fr.schedules.linear(start=1.0, end=0.5, steps=args.max_steps))
    trainer = Trainer(model, args, train_dataset=sums(512, 0), eval_dataset=sums(64, 1), processing_class=tokenizer,
                      callbacks=[hf.Callback()], method=method)  # fmt: skip
    trainer.train()
    trainer.save_model()
    return trainer.evaluate()


if __name__ == "__main__":
    print(main(sys.argv[1]))
