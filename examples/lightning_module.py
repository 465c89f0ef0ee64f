"""Scheduled sampling in Lightning: reverse made-up words.

Run: python examples/lightning_module.py --epochs 3
"""

from __future__ import annotations

import argparse
from functools import partial

import torch
from lightning.pytorch import Trainer, seed_everything
from torch import Tensor
from torch.utils.data import DataLoader

import freerun as fr


def collate(words: list[Tensor]) -> fr.Batch:
    """Targets, history, loss mask and context."""
    source = torch.stack(words)
    counts = torch.ones_like(source, dtype=torch.bool)
    return fr.Batch(source.flip(1), source.flip(1), counts, context={"source": source, "source_mask": counts})


def main() -> None:
    """Train, validate, and run freely."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=3)
    epochs = parser.parse_args().epochs

    torch.set_num_threads(1)  # the model is tiny: more threads would wait for each other
    seed_everything(0, verbose=False)
    train, dev = torch.randint(1, 9, (512, 4)), torch.randint(1, 9, (64, 4))
    data = DataLoader(list(train), batch_size=8, shuffle=True, collate_fn=collate)
    held_out = DataLoader(list(dev), batch_size=64, collate_fn=collate)

    model = fr.models.RecurrentSeq2Seq(source_vocab=9, target_vocab=9, size=32, attention="luong")
    updates = epochs * len(data) // 2
    method = fr.scheduled_sampling(fr.schedules.linear(start=1.0, end=0.5, steps=updates))
    module = fr.lightning.FreerunModule(model, method, partial(torch.optim.AdamW, lr=0.01))

    trainer = Trainer(
        max_epochs=epochs, accumulate_grad_batches=2, accelerator="cpu", logger=False, enable_checkpointing=False
    )
    trainer.fit(module, data, held_out)
    for name, value in sorted(trainer.callback_metrics.items()):
        print(f"{name:32} {float(value):.3f}")

    outputs = fr.generate(model, collate(list(dev[:3])), length=4).entries
    for word, output in zip(dev[:3].tolist(), outputs.tolist(), strict=True):
        print(word, "->", output)


if __name__ == "__main__":
    main()
