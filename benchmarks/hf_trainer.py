"""The price of method= with teacher forcing: a trainer's step against the stock trainer's; and of hf.Callback.

Run: python benchmarks/hf_trainer.py [--model gpt2 t5] [--repetitions 40]
     python benchmarks/hf_trainer.py --callback [--steps 120] [--every 40]
     python benchmarks/hf_trainer.py --compile [--model gpt2] [--repetitions 8]
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from typing import Any

import torch
import transformers
from transformers import GPT2Config, GPT2LMHeadModel, T5Config, T5ForConditionalGeneration

import freerun as fr
from freerun import hf
from timing import clock_of

ROWS, TIME, VOCAB = 16, 64, 1000
SAMPLING = fr.scheduled_sampling(0.75)


def gpt2() -> Any:
    torch.manual_seed(0)
    return GPT2LMHeadModel(
        GPT2Config(vocab_size=VOCAB, n_positions=TIME, n_embd=256, n_layer=4, n_head=4, bos_token_id=0, eos_token_id=0)
    )


def t5() -> Any:
    torch.manual_seed(0)
    sizes: Any = {"d_model": 256, "d_kv": 64, "d_ff": 1024, "num_layers": 4, "num_heads": 4}
    return T5ForConditionalGeneration(T5Config(vocab_size=VOCAB, decoder_start_token_id=0, pad_token_id=0, **sizes))


def trainer_of(cls: Any, model: Any, **method: Any) -> Any:
    """A trainer ready for single steps."""
    arguments = transformers.TrainingArguments(
        output_dir=tempfile.mkdtemp(), use_cpu=True, report_to=[], log_level="error", per_device_train_batch_size=ROWS
    )
    trainer = cls(model=model, args=arguments, **method)
    trainer.create_optimizer()
    trainer.state.max_steps = 1000
    trainer.current_gradient_accumulation_steps = 1
    return trainer


def step(trainer: Any, inputs: Any) -> float:
    """One optimizer step, from the collated batch on; its loss."""
    (sample,), count = trainer.get_batch_samples(iter([dict(inputs)]), 1, torch.device("cpu"))
    loss = trainer.training_step(trainer.model, sample, count)
    trainer.optimizer.step()
    trainer.model.zero_grad()
    trainer.state.global_step += 1
    return float(loss)


def added(trainer: Any, inputs: Any, clock: Any, repetitions: int) -> float:
    """Median seconds of the parts that the stock trainer does not have: opening the window, and building a batch."""
    adapter, seconds = trainer._applied.adapter(trainer.model_wrapped), []
    for _ in range(repetitions):
        started = clock()
        trainer._applied.open([inputs], torch.device("cpu"))
        adapter.batch(**inputs)
        seconds.append(clock() - started)
    return statistics.median(seconds)


def rows(number: int, causal: bool) -> list[dict[str, list[int]]]:
    """Prompts (or sources) of 16 to 32 ids, and references of 8 to 32 that repeat their beginning."""
    g = torch.Generator().manual_seed(0)
    made: list[dict[str, list[int]]] = []
    for _ in range(number):
        long, short = (int(torch.randint(low, 33, (), generator=g)) for low in (16, 8))
        source = torch.randint(2, VOCAB, (long,), generator=g).tolist()
        reference = [*source[: short - 1], 1]
        made.append({"input_ids": [*source, *reference], "labels": [-100] * long + reference} if causal else
                    {"input_ids": source, "labels": reference})  # fmt: skip
    return made


def collate(batch: list[dict[str, list[int]]]) -> dict[str, torch.Tensor]:
    """Padded on the right."""
    padded = {
        name: torch.nn.utils.rnn.pad_sequence(
            [torch.tensor(row[name]) for row in batch], batch_first=True, padding_value=-100
        )
        for name in ("input_ids", "labels")
    }
    ids = padded["input_ids"]
    return {"input_ids": ids.clamp_min(0), "attention_mask": (ids != -100).long(), "labels": padded["labels"]}


def callback(name: str, build: Any, steps: int, every: int) -> None:
    """A stock trainer with the callback at its default: what its scores take of the training time."""
    arguments = transformers.TrainingArguments(
        output_dir=tempfile.mkdtemp(), use_cpu=True, report_to=[], log_level="error", disable_tqdm=True,
        per_device_train_batch_size=ROWS, max_steps=steps, eval_strategy="steps", eval_steps=every, save_strategy="no",
    )  # fmt: skip
    model = build()
    model.generation_config.eos_token_id = 1
    causal = not model.config.is_encoder_decoder
    trainer = transformers.Trainer(
        model, arguments, train_dataset=rows(2000, causal), eval_dataset=rows(500, causal), data_collator=collate
    )
    trainer.remove_callback(transformers.PrinterCallback)
    trainer.add_callback(hf.Callback(trainer))
    trainer.train()
    print(f"{name}: d256 L4, {ROWS} rows, {steps} steps, evaluated every {every}; 500 rows to choose from")
    for line in trainer.state.log_history:
        if "eval_free_running_rows" in line:
            shown = {key: line[f"eval_free_running_{key}"] for key in ("rows", "cost", "loss", "edit_distance")}
            print("  step {:4}: {rows:4.0f} rows, {cost:.1%} of the training time, free-running loss {loss:.2f}, "
                  "edit distance {edit_distance:.2f}".format(line["step"], **shown))  # fmt: skip


def compiled(name: str, build: Any, repetitions: int) -> None:
    """CPU time of a trainer's steps with and without ``torch_compile=True`` (inductor), forcing and sampling."""
    clock, first = clock_of("cpu"), 0.0
    print(f"{name}: d256 L4, {ROWS} rows of {TIME}, vocabulary {VOCAB}, medians of {repetitions} steps")
    for way, method in (("teacher_forcing()", fr.teacher_forcing()), ("scheduled_sampling(0.75)", SAMPLING)):
        for on in (False, True):
            trainer = trainer_of(hf.Trainer, build(), method=method)
            if on:  # as the trainer prepares a model under torch_compile
                trainer.model_wrapped = torch.compile(trainer.model)
            seconds: list[float] = []
            began = time.perf_counter()
            for number in range(2 + repetitions):
                ids = torch.randint(1, VOCAB, (ROWS, TIME))
                inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids}
                started = clock()
                (sample,), count = trainer.get_batch_samples(iter([inputs]), 1, torch.device("cpu"))
                trainer.training_step(trainer.model_wrapped, sample, count)
                trainer.optimizer.step()
                trainer.model.zero_grad()
                trainer.state.global_step += 1
                seconds.append(clock() - started)
                first = time.perf_counter() - began if number == 1 else first
            rest = statistics.median(seconds[2:]) * 1000
            print(
                f"  {way:26} {'compiled' if on else 'as it is':10} {rest:8.0f} ms   the first two {first:.1f} s of time"
            )


def main() -> None:
    """Interleaved steps, medians of CPU seconds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", nargs="+", default=["gpt2", "t5"], choices=["gpt2", "t5"])
    parser.add_argument("--repetitions", type=int, default=40)
    parser.add_argument("--callback", action="store_true", help="the cost of hf.Callback's scores instead")
    parser.add_argument("--compile", action="store_true", help="steps under torch.compile instead")
    parser.add_argument("--steps", type=int, default=120)
    parser.add_argument("--every", type=int, default=40)
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    for name in chosen.model:
        if chosen.callback:
            callback(name, {"gpt2": gpt2, "t5": t5}[name], chosen.steps, chosen.every)
        if chosen.compile:
            compiled(name, {"gpt2": gpt2, "t5": t5}[name], chosen.repetitions)
    if chosen.callback or chosen.compile:
        return
    clock = clock_of("cpu")
    for name in chosen.model:
        build = {"gpt2": gpt2, "t5": t5}[name]
        trainers = {
            "stock": trainer_of(transformers.Trainer, build()),
            "method=None": trainer_of(hf.Trainer, build(), method=None),
            "teacher_forcing()": trainer_of(hf.Trainer, build(), method=fr.teacher_forcing()),
            "scheduled_sampling(1.0)": trainer_of(hf.Trainer, build(), method=fr.scheduled_sampling(1.0)),
        }
        taken: dict[str, list[float]] = {way: [] for way in trainers}
        for repetition in range(-2, chosen.repetitions):
            ids = torch.randint(1, VOCAB, (ROWS, TIME))
            inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids}
            for way, trainer in trainers.items():
                started = clock()
                step(trainer, inputs)
                if repetition >= 0:
                    taken[way].append(clock() - started)
        print(f"{name}: d256 L4, {ROWS} rows of {TIME}, vocabulary {VOCAB}, {chosen.repetitions} interleaved steps")
        for way, seconds in taken.items():
            shares = [mine / stock for mine, stock in zip(seconds, taken["stock"], strict=True)]
            print(f"  {way:24} {statistics.median(seconds) * 1000:8.1f} ms   x {statistics.median(shares):.3f}")
        more = added(trainers["teacher_forcing()"], inputs, clock, chosen.repetitions)
        share = more / statistics.median(taken["stock"])
        print(
            f"  what it does besides the model's own forward and backward: {more * 1000:.1f} ms, {share:.2%} of a step"
        )


if __name__ == "__main__":
    main()
