"""Runs of the trainers that are compared between one process and two.

Run: torchrun --nproc-per-node 2 tests/hf_trainer_ranks.py FOLDER [word in the names of cases ...]
"""

import os
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from peft import LoraConfig, get_peft_model

import freerun as fr
from families import VOCAB
from freerun import hf
from hf_trainer_world import (
    CHECKPOINTING,
    WORLDS,
    apart,
    completions,
    falling,
    make,
    pairs,
    run,
    tokenizer,
    train,
    weights,
)
from test_hf_callback import NAMES, Answers

GLOBAL_BATCH = 8
# of one process: batch size and accumulation; of two
SPLITS = {"whole": (8, 1), "halves": (4, 1), "quarters": (2, 2)}
METHODS: dict[str, Any] = {"teacher_forcing": fr.teacher_forcing(), "scheduled_sampling": falling()}
STEPS = 6


def equal(name: str, method: str, split: str, steps: int = STEPS) -> Any:
    """A run in double precision on a global batch of eight."""
    size, accumulate = SPLITS[split]
    sizes: Any = {"per_device_train_batch_size": size, "gradient_accumulation_steps": accumulate}
    return run(name, METHODS[method], double=True, max_steps=steps, **sizes)


def scored(name: str, size: int = 2, draw: str = "greedy") -> Any:
    """An evaluation of an odd number of examples, with free-running scores."""
    data = (pairs if name == "t5" else completions)(7, seed=5)
    trainer = run(
        name, METHODS["scheduled_sampling"], double=True, max_steps=1, save_strategy="no",
        per_device_train_batch_size=GLOBAL_BATCH // int(os.environ.get("WORLD_SIZE", "1")),
        per_device_eval_batch_size=size, trainer={"eval_dataset": data, "callbacks": [hf.Callback(draw=draw)]},
    )  # fmt: skip
    trainer.evaluate()
    return trainer


def stock(name: str, rows: Any = "all") -> Any:
    """A stock trainer with the callback: seven rows on two ranks, five of them, or as many as the clocks allow."""
    data = (pairs if name == "t5" else completions)(7, seed=5)
    build, train_data, _, cls = WORLDS[name]
    trainer = make(
        cls, build().double(), train_data, max_steps=2, eval_strategy="steps", eval_steps=1,
        learning_rate=0.0,  # transformers' own mean over ranks is not that over tokens
        per_device_train_batch_size=GLOBAL_BATCH // int(os.environ.get("WORLD_SIZE", "1")),
        per_device_eval_batch_size=2,
        trainer={"eval_dataset": data, "processing_class": tokenizer(eos_token="w1", pad_token="w0")},
    )  # fmt: skip
    trainer.add_callback(hf.Callback(trainer, rows=rows))
    trainer.train()
    return trainer


def answered(name: str) -> Any:
    """An untrained model of a family, whose six rows are scored on a stock trainer."""
    answers, words = Answers(name), tokenizer(VOCAB, pad_token="w0")
    trainer = make(
        transformers.Trainer, answers.model, list(range(6)), per_device_eval_batch_size=2,
        trainer={"data_collator": answers.collate, "eval_dataset": list(range(6)), "processing_class": words},
    )  # fmt: skip
    trainer.add_callback(hf.Callback(trainer, rows="all"))
    trainer.evaluate()
    return trainer


def predicted() -> Any:
    """Generated ids of seven rows for ``compute_metrics``, in one number."""

    def weighed(found: Any) -> dict[str, float]:
        ids = torch.from_numpy(found.predictions).clamp_min(0)
        return {"rows": len(ids), "ids": float((ids * torch.arange(1, 1 + ids.shape[1])).sum())}

    trainer = make(
        hf.Trainer, WORLDS["llama"][0](), completions(8), None, per_device_eval_batch_size=2,
        trainer={"eval_dataset": completions(7, seed=5), "compute_metrics": weighed, "predict_with_generate": True},
    )  # fmt: skip
    trainer.evaluate()
    return trainer


def everything(name: str, folder: Path, resume: bool) -> Any:
    """Scheduled sampling with accumulation 4, checkpointing, bf16 and LoRA; saved, or gone on with, at step 4 of 9.

    The epoch ends after 6 steps: the run is stopped in the middle of the first, and the second is shuffled anew.
    """
    build, data, ours, _ = WORLDS[name]
    targets = ["q", "v"] if name == "t5" else ["q_proj", "v_proj"]
    torch.manual_seed(0)
    model = get_peft_model(build(), LoraConfig(r=2, target_modules=targets, lora_dropout=0.1))
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if resume:  # what is not in the checkpoint must not be needed
        torch.manual_seed(99)
    return train(
        ours, model, data, falling(9), folder=folder, max_steps=9, per_device_train_batch_size=2 // world,
        gradient_accumulation_steps=4, bf16=True, save_strategy="steps", save_steps=4, **{CHECKPOINTING: True},
        resume=str(folder / "checkpoint-4") if resume else None,
    )  # fmt: skip


def cases(folder: Path) -> dict[str, Callable[[], Any]]:
    """Everything that is run on two processes."""
    found: dict[str, Callable[[], Any]] = {}
    for name in WORLDS:
        for method in METHODS:
            for split in ("halves", "quarters"):
                found[f"{name} {method} {split}"] = lambda n=name, m=method, s=split: equal(n, m, s)
    for name in ("t5", "llama"):
        found[f"{name} scored"] = lambda n=name: scored(n)
        found[f"{name} sampled"] = lambda n=name: scored(n, draw="sample")
        for rows in ("all", 5, None):
            found[f"{name} stock {rows}"] = lambda n=name, r=rows: stock(n, r)
        for part in ("unbroken", "resumed"):
            found[f"{name} {part}"] = lambda n=name, p=part: everything(n, folder / n, p == "resumed")
    for name in NAMES:
        found[f"{name} answers"] = lambda n=name: answered(n)
    return {**found, "predicted": predicted}


def main() -> None:
    """Run all cases; the first rank leaves weights and log, and all agree that their weights are the same."""
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    # peft asks the model by an attribute's old name
    warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
    folder = Path(sys.argv[1])
    for name, case in cases(folder).items():
        if sys.argv[2:] and not any(word in name for word in sys.argv[2:]):
            continue
        trainer = case()
        mine = weights(trainer)
        everyones: list[Any] = [None] * trainer.accelerator.num_processes
        scores = [{k: v for k, v in line.items() if "free_running_" in k and "cost" not in k}
                  for line in trainer.state.log_history]  # fmt: skip
        torch.distributed.all_gather_object(everyones, mine)
        assert len(everyones) == 2, "one process was started, not two"
        assert apart(everyones[0], everyones[1]) == 0.0, name
        torch.distributed.all_gather_object(everyones, scores)
        assert everyones[0] == everyones[1], name
        if trainer.is_world_process_zero():
            torch.save({"weights": mine, "log": trainer.state.log_history}, folder / f"{name}.pt")
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
