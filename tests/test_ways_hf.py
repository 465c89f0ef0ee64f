"""Every remedy in Hugging Face's trainers and in Lightning: it works and equals, or it is refused by name."""

from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

import freerun as fr
import lightning_world
from builders import refused
from freerun import hf
from freerun.keys import fold
from freerun.lightning import FreerunModule
from hf_trainer_world import END, VOCAB, WORLDS, apart, collate, gpt2, logged, make, t5, weights
from test_ways_of_remedies import SYMBOLS

TEACHERS = {"t5": t5, "gpt2": gpt2}


def method_of(name: str, world: str) -> Any:
    if not name.startswith("gkd"):
        return SYMBOLS[name](VOCAB, END)
    teacher = TEACHERS[world]().double()
    with torch.no_grad():
        for number, each in enumerate(teacher.parameters()):
            each.add_(0.1 * torch.randn(each.shape, generator=torch.Generator().manual_seed(number)))
    return fr.METHODS["gkd"](0.5, teacher=fr.hf.adapt(teacher), beta=0.5)


def trained(name: str, world: str, folder: Any, accumulate: int = 1, resume: Any = None, cls: Any = None) -> Any:
    build, data, ours, _ = WORLDS[world]
    trainer = make(
        cls or ours, build().double(), data, method_of(name, world), folder, max_steps=3, save_steps=2,
        save_strategy="steps", per_device_train_batch_size=8 // accumulate, gradient_accumulation_steps=accumulate,
        train_sampling_strategy="sequential",
    )  # fmt: skip
    trainer.train(resume_from_checkpoint=resume)
    return trainer


@pytest.mark.slow(reason="three runs of each of eighteen methods")
@pytest.mark.parametrize("world", ["t5", "gpt2"])
@pytest.mark.parametrize("name", SYMBOLS)
def test_a_trainers_loss_is_the_methods_and_accumulates_and_resumes(name, world, tmp_path):
    if name == "professor_forcing":
        refused("modules of its own", trained, name, world, tmp_path)
        assert not list(tmp_path.iterdir())
        return
    whole = trained(name, world, tmp_path)
    adapted = hf.adapt(WORLDS[world][0]().double())
    batch = adapted.batch(**collate(WORLDS[world][1][:8]))
    outcome = method_of(name, world).run(adapted, batch, 0, fold(3, "train"))
    count = batch.mask.sum() if name == "dagger, completions" else outcome.count
    assert logged(whole)[0] == pytest.approx((outcome.total / count).item(), rel=1e-6)
    assert apart(weights(whole), weights(trained(name, world, tmp_path / "parts", 2))) < 1e-9
    again = trained(name, world, tmp_path, resume=str(tmp_path / "checkpoint-2"))
    assert apart(weights(whole), weights(again)) == 0.0


def ended(items: Any) -> fr.Batch:
    """Each row's last counted target is the end symbol, 0, which stands nowhere else."""
    batch = lightning_world.collate(items)
    last = batch.mask & ~torch.nn.functional.pad(batch.mask[:, 1:], (0, 1))
    gold = batch.targets.masked_fill(last, 0)
    return batch.replace(targets=gold, history=gold)


def fitted(name: str, folder: Any, size: int, start: Any = None) -> Any:
    module = FreerunModule(lightning_world.network(), SYMBOLS[name](lightning_world.WORDS, 0), lightning_world.sgd)
    keeping = ModelCheckpoint(dirpath=folder, filename="{step}", save_top_k=-1, every_n_train_steps=1)
    run = lightning_world.trainer(
        max_epochs=1, accumulate_grad_batches=8 // size, enable_checkpointing=True, callbacks=[keeping]
    )
    run.fit(
        module, lightning_world.Stateful(lightning_world.pairs(), batch_size=size, collate_fn=ended), ckpt_path=start
    )
    return {key: value.clone() for key, value in module.model.state_dict().items()}


@pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no `val_dataloader`")
def test_lightning_numbers_rows_by_the_batch_where_a_method_feeds_several_runs_of_each(tmp_path):
    whole, parts = (fitted("minimum_risk", tmp_path / str(size), size) for size in (8, 4))
    assert apart(whole, parts) < 1e-9


@pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no `val_dataloader`")
@pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty")
@pytest.mark.filterwarnings("ignore:The dirpath has changed")
@pytest.mark.slow(reason="three runs of each of eighteen methods")
@pytest.mark.parametrize("name", SYMBOLS)
def test_lightning_accumulates_and_resumes(name, tmp_path):
    if name == "professor_forcing":
        refused("modules of its own", fitted, name, tmp_path, 8)
        assert not list(tmp_path.iterdir())
        return
    whole = fitted(name, tmp_path, 8)
    assert apart(whole, fitted(name, tmp_path / "parts", 4)) < 1e-9
    assert apart(whole, fitted(name, tmp_path / "again", 8, str(tmp_path / "step=2.ckpt"))) == 0.0
