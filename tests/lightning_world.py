"""Data, models and trainers of the Lightning tests, for one process and for two started by torchrun."""

import os
import sys
from pathlib import Path

import torch
from lightning.pytorch import LightningModule, Trainer, seed_everything
from torch import nn
from torch.utils.data import DataLoader, DistributedSampler

import freerun as fr
from freerun.lightning import FreerunModule

WORDS, SIZE = 9, 8


def pairs(number: int = 24, time: int = 6, seed: int = 0) -> list[tuple[torch.Tensor, int]]:
    """Words to be reversed, and how many positions of each count."""
    g = torch.Generator().manual_seed(seed)
    words = torch.randint(1, WORDS, (number, time), generator=g)
    return list(zip(words, torch.randint(2, time + 1, (number,), generator=g).tolist(), strict=True))


def collate(items: list[tuple[torch.Tensor, int]]) -> fr.Batch:
    """Always of one length, so that padding is the same however a batch is cut."""
    source = torch.stack([word for word, _ in items])
    mask = torch.arange(source.shape[1]) < torch.tensor([length for _, length in items])[:, None]
    gold = source.flip(1)
    context = {"source": source, "source_mask": torch.ones_like(mask)}
    return fr.Batch(gold, gold, mask, context)


def loader(data: list, batch_size: int, **arguments) -> DataLoader:
    return DataLoader(data, batch_size=batch_size, collate_fn=collate, **arguments)


def network(dropout: float = 0.0) -> nn.Module:
    torch.manual_seed(1)
    sizes = {"size": SIZE, "layers": 2 if dropout else 1, "dropout": dropout}
    return fr.models.RecurrentSeq2Seq(source_vocab=WORDS, target_vocab=WORDS, **sizes).double()


def sgd(parameters) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.5, momentum=0.9)


def sampling() -> fr.methods.Method:
    return fr.scheduled_sampling(fr.schedules.linear(start=0.9, end=0.2, steps=6))


def trainer(**changes) -> Trainer:
    settings = {
        "accelerator": "cpu", "devices": 1, "max_epochs": 2, "logger": False, "enable_checkpointing": False,
        "enable_progress_bar": False, "enable_model_summary": False, "num_sanity_val_steps": 0,
    }  # fmt: skip
    return Trainer(**settings | changes)


def trained(batch_size: int, data: list | None = None, **changes) -> LightningModule:
    """A module trained for two epochs in the order of the data."""
    module = FreerunModule(network(), sampling(), sgd)
    trainer(**changes).fit(module, loader(pairs() if data is None else data, batch_size))
    return module


class Stateful(DataLoader):
    """A loader that knows its position and goes on from there: what Lightning needs in the middle of an epoch."""

    done = 0
    start = 0

    def __iter__(self):
        first, self.start = self.start, 0
        self.done = first
        for number, batch in enumerate(super().__iter__()):
            if number >= first:
                self.done += 1
                yield batch

    def state_dict(self):
        return {"done": self.done % len(self)}

    def load_state_dict(self, state):
        self.start = state["done"]


def main() -> None:
    """One of two processes: dropout is off, the data are dealt out in order (Lightning's own sampler would shuffle)."""
    torch.set_num_threads(1)
    seed_everything(0, verbose=False)
    module = FreerunModule(network(), sampling(), sgd)
    run = trainer(devices=2, strategy="ddp", accumulate_grad_batches=2, gradient_clip_val=0.5)
    data = pairs()
    dealt = DistributedSampler(data, num_replicas=2, rank=int(os.environ["RANK"]), shuffle=False)
    run.fit(module, loader(data, 2, sampler=dealt), loader(pairs(8, seed=1), 2))
    if run.is_global_zero:
        scores = {name: float(value) for name, value in run.callback_metrics.items()}
        torch.save({"weights": module.model.state_dict(), "scores": scores}, Path(sys.argv[1]))


if __name__ == "__main__":
    main()
