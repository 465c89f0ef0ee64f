"""Fine-tuning of an encoder-decoder on pairs of texts, built like transformers' own example; one line is changed.

Run: python examples/finetune_seq2seq.py --output_dir RUN [any argument of Seq2SeqTrainingArguments]
"""

from __future__ import annotations

import random
import sys

import datasets
import transformers
from transformers import DataCollatorForSeq2Seq, HfArgumentParser, Seq2SeqTrainingArguments

import freerun as fr
from freerun import hf


def text_pairs(number: int, seed: int) -> datasets.Dataset:
    """Small numbers, and the same numbers reversed: instead of load_dataset(...)."""
    chosen = random.Random(seed)
    texts = [str(chosen.randrange(10**5)) for _ in range(number)]
    return datasets.Dataset.from_list([{"source": text, "target": text[::-1]} for text in texts])


def main(argv: list[str]) -> dict[str, float]:
    """Train, evaluate, save: the structure of the official example."""
    usual = (
        "--max_steps 30 --per_device_train_batch_size 16 --learning_rate 3e-3 --predict_with_generate --report_to none"
    )
    (args,) = HfArgumentParser(Seq2SeqTrainingArguments).parse_args_into_dataclasses([*usual.split(), *argv])  # type: ignore
    transformers.set_seed(args.seed)
    tokenizer = transformers.ByT5Tokenizer()  # instead of AutoTokenizer.from_pretrained(...)
    model = transformers.T5ForConditionalGeneration(  # instead of AutoModelForSeq2SeqLM.from_pretrained(...)
        transformers.T5Config(vocab_size=len(tokenizer), d_model=32, d_kv=16, d_ff=64, num_layers=2, num_heads=2,
                 decoder_start_token_id=0, pad_token_id=0)
    )  # fmt: skip

    def preprocess(examples: dict[str, list[str]]) -> dict[str, list[list[int]]]:
        return tokenizer(examples["source"], text_target=examples["target"], max_length=16, truncation=True)

    train, dev = (
        text_pairs(number, seed).map(preprocess, batched=True, remove_columns=["source", "target"])
        for number, seed in ((512, 0), (64, 1))
    )
    trainer = hf.Seq2SeqTrainer(  # the changed line; `method=` is the new one
        method=fr.scheduled_sampling(fr.schedules.linear(start=1.0, end=0.5, steps=args.max_steps)),
        model=model, args=args, train_dataset=train, eval_dataset=dev, processing_class=tokenizer,
        data_collator=DataCollatorForSeq2Seq(tokenizer, model=model), callbacks=[hf.Callback()],
    )  # fmt: skip
    trainer.train(resume_from_checkpoint=args.resume_from_checkpoint)
    trainer.save_model()
    metrics = trainer.evaluate()
    trainer.log_metrics("eval", metrics)
    return metrics


if __name__ == "__main__":
    main(sys.argv[1:])
