"""Lightning: the steps are those of a plain loop, however a batch is cut, and a resumed run is an unbroken one."""

import math
import random
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

import numpy
import pytest
import torch
from lightning.pytorch import LightningModule, seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.strategies import ModelParallelStrategy
from torch.nn import functional as F
from torch.utils.data import DataLoader

import freerun as fr
import lightning_world as world
from builders import raises, refused, tiny_llama
from distributed_world import torchrun
from freerun.integrations.lightning import restore, states
from freerun.keys import fold
from freerun.lightning import FreerunCallback, FreerunModule, training_step, validation_step
from lightning_world import Stateful, collate, loader, network, pairs, sampling, sgd, trained, trainer

pytestmark = [
    # most of these runs train and do not validate
    pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no `val_dataloader`"),
    # every test of resuming writes into a folder of its own, twice
    pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty"),
]


def weights(module: torch.nn.Module) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in module.parameters()])


def plain_loop(data: list, batch_size: int, loss_of, epochs: int = 2) -> torch.Tensor:
    model = network()
    optimizer, step = sgd(model.parameters()), 0
    for _ in range(epochs):
        for start in range(0, len(data), batch_size):
            optimizer.zero_grad()
            loss_of(model, collate(data[start : start + batch_size]), step).backward()
            optimizer.step()
            step += 1
    return weights(model)


def test_the_weights_are_those_of_a_plain_loop_bit_for_bit():
    method = sampling()
    expected = plain_loop(pairs(), 8, lambda model, batch, step: method(model, batch, step, fold(0, "train")))
    assert torch.equal(weights(trained(8).model), expected)


def test_a_ratio_of_one_is_cross_entropy_training():
    def loss_of(model, batch, step):
        logits = model(batch)
        return F.cross_entropy(logits[batch.mask], batch.targets[batch.mask])

    expected = plain_loop(pairs(), 8, loss_of)
    for method in (fr.teacher_forcing(), fr.scheduled_sampling(1.0)):
        module = FreerunModule(network(), method, sgd)
        trainer().fit(module, loader(pairs(), 8))
        torch.testing.assert_close(weights(module.model), expected, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("number", [24, 21])
def test_accumulation_equals_one_big_batch_with_clipping_and_a_short_window(number):
    # 21 examples: the last window of an epoch has three micro-batches, the last of them of one example
    data = pairs(number)
    whole = trained(8, data, gradient_clip_val=0.5)
    cut = trained(2, data, gradient_clip_val=0.5, accumulate_grad_batches=4)
    torch.testing.assert_close(weights(cut.model), weights(whole.model), rtol=1e-12, atol=1e-14)
    # Lightning's own mean of means is something else
    means = FreerunModule(network(), sampling(), sgd)
    means.training_step = lambda batch, batch_idx: sampling()(means.model, batch, means.global_step, fold(0, "train"))
    trainer(gradient_clip_val=0.5, accumulate_grad_batches=4).fit(means, loader(data, 2))
    assert float((weights(means.model) - weights(whole.model)).abs().max()) > 1e-3


@pytest.mark.slow  # two processes that import torch and lightning: about 30 s
def test_two_processes_equal_one(tmp_path):
    ran = torchrun([world.__file__, str(tmp_path / "two.pt")])
    assert ran.returncode == 0, ran.stderr
    found = torch.load(tmp_path / "two.pt", weights_only=True)
    alone = FreerunModule(network(), sampling(), sgd)
    run = trainer(gradient_clip_val=0.5)
    run.fit(alone, loader(pairs(), 8), loader(pairs(8, seed=1), 4))
    for name, expected in alone.model.state_dict().items():
        torch.testing.assert_close(found["weights"][name], expected, rtol=1e-12, atol=1e-14)
    assert found["scores"] == pytest.approx({k: float(v) for k, v in run.callback_metrics.items()}, rel=1e-6)


def test_a_module_of_ones_own_needs_two_lines():
    class Mine(LightningModule):
        def __init__(self):
            super().__init__()
            self.net = network()

        def configure_optimizers(self):
            return sgd(self.parameters())

        def training_step(self, batch, batch_idx):
            return training_step(self, self.net, batch, sampling())

        def validation_step(self, batch, batch_idx):
            validation_step(self, self.net, batch, sampling())

    mine = Mine()
    run = trainer(callbacks=[FreerunCallback()], accumulate_grad_batches=4)
    run.fit(mine, loader(pairs(), 2), loader(pairs(8), 4))
    torch.testing.assert_close(weights(mine.net), weights(trained(8).model), rtol=1e-12, atol=1e-14)
    assert "free_running_loss" in run.callback_metrics


def test_the_states_are_of_types_that_a_checkpoint_loads_safely(tmp_path):
    torch.save({"freerun": [states()]}, tmp_path / "saved.ckpt")
    before = torch.rand(3), numpy.random.rand(), random.random()
    restore(torch.load(tmp_path / "saved.ckpt", weights_only=True)["freerun"][0])
    again = torch.rand(3), numpy.random.rand(), random.random()
    assert torch.equal(before[0], again[0])
    assert before[1:] == again[1:]


class Kept(ModelCheckpoint):
    """Every checkpoint of a run, by its step."""

    def __init__(self, folder, **arguments):
        super().__init__(dirpath=folder, filename="{step}", save_top_k=-1, **arguments)


def interrupted(tmp_path: Path, make, at: int, **kept) -> tuple[torch.Tensor, torch.Tensor]:
    """The weights of an unbroken run, and of one that goes on from its checkpoint after ``at`` of 6 steps."""
    found = []
    for start in (None, str(tmp_path / f"step={at}.ckpt")):
        # a resumed life begins with other states of the generators
        seed_everything(3 if start is None else 4, verbose=False)
        module = FreerunModule(network(dropout=0.3), sampling(), sgd)
        keeping = Kept(tmp_path, **kept)
        run = trainer(enable_checkpointing=True, callbacks=[keeping], accumulate_grad_batches=2)
        run.fit(module, *make(), ckpt_path=start)
        assert run.global_step == 6
        found.append(weights(module.model))
    return found[0], found[1]


@pytest.mark.parametrize("at", [1, 3, 4])
def test_resuming_inside_an_epoch_is_exact_with_dropout_where_the_loader_knows_its_place(tmp_path, at):
    def make():
        return (Stateful(pairs(12), batch_size=2, collate_fn=collate),)

    unbroken, resumed = interrupted(tmp_path, make, at, every_n_train_steps=1)
    assert torch.equal(unbroken, resumed)


@pytest.mark.parametrize("validate", [False, True])
def test_resuming_between_epochs_is_exact_with_dropout_and_shuffling(tmp_path, validate):
    def make():
        train = loader(pairs(12), 2, shuffle=True)
        return (train, loader(pairs(4), 4)) if validate else (train,)

    unbroken, resumed = interrupted(tmp_path, make, 3)
    assert torch.equal(unbroken, resumed)


class Own(LightningModule):
    """A module of one's own, which saves nothing of its method."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(1)
        self.net = fr.models.PlainForecaster(2, size=6).double()
        self.replay = fr.replay_buffer(0.6, capacity=40, age=9, horizon=2)

    def configure_optimizers(self):
        return sgd(self.parameters())

    def training_step(self, batch, batch_idx):
        return training_step(self, self.net, batch, self.replay)


class OfFreerun(FreerunModule):
    def __init__(self):
        own = Own()
        super().__init__(own.net, own.replay, sgd)


@pytest.mark.parametrize("module", [Own, OfFreerun])
def test_the_state_of_a_method_goes_on_too(tmp_path, module):
    found = []
    for start in (None, str(tmp_path / "step=3.ckpt")):
        mine = module()
        callbacks = [Kept(tmp_path), *([FreerunCallback()] if module is Own else [])]
        run = trainer(enable_checkpointing=True, callbacks=callbacks)
        run.fit(mine, windows(), ckpt_path=start)
        assert run.global_step == 6
        found.append((weights(mine), (mine.replay if module is Own else mine.method).state_dict()))
    assert torch.equal(found[0][0], found[1][0])
    (kept, again) = (state for _, state in found)
    assert kept.keys() == again.keys()
    assert all(torch.equal(torch.as_tensor(kept[name]), torch.as_tensor(again[name])) for name in kept)
    assert len(again["age"]) > 0


def windows() -> DataLoader:
    g = torch.Generator().manual_seed(0)
    return DataLoader(list(torch.randn(12, 9, 2, generator=g, dtype=torch.float64)), 4, collate_fn=stacked)


def stacked(rows) -> fr.Batch:
    return fr.Batch(torch.stack(rows))


def test_a_run_begins_with_a_methods_state_anew_and_another_object_is_refused(tmp_path):
    """The same callback and method for two runs; and a method that is made anew for each step."""
    callback, replay, found = FreerunCallback(), Own().replay, []
    for _ in range(2):
        mine = Own()
        mine.replay = replay
        trainer(callbacks=[callback]).fit(mine, windows())
        found.append((weights(mine), replay.state_dict()["targets"]))
    assert torch.equal(found[0][0], found[1][0])
    assert torch.equal(found[0][1], found[1][1])

    class Anew(Own):
        def training_step(self, batch, batch_idx):
            return training_step(self, self.net, batch, Own().replay)

    refused("this is another object than that of the last step", trainer(callbacks=[callback]).fit, Anew(), windows())

    class Gold(Own):
        def training_step(self, batch, batch_idx):
            return training_step(self, self.net, batch, fr.teacher_forcing())

    trainer(enable_checkpointing=True, callbacks=[Kept(tmp_path), callback]).fit(Gold(), windows())
    again, start = trainer(enable_checkpointing=True, callbacks=[Kept(tmp_path), callback]), tmp_path / "step=3.ckpt"
    lacking = "replay_buffer has a state, and the checkpoint has none of it"
    raises(fr.errors.CheckpointError, lacking, lambda: again.fit(Own(), windows(), ckpt_path=str(start)))

    class Later(Own):
        def training_step(self, batch, batch_idx):
            method = self.replay if self.global_step > 4 else fr.teacher_forcing()
            return training_step(self, self.net, batch, method)

    again = trainer(enable_checkpointing=True, callbacks=[Kept(tmp_path), callback])
    again.fit(Later(), windows(), ckpt_path=str(start))
    assert again.global_step == 6
    trainer(callbacks=[callback]).fit(Own(), windows())


@pytest.mark.parametrize(("rank", "expected"), [(0, "first"), (1, "second"), (3, "second")])
def test_every_process_goes_on_with_its_own_state(monkeypatch, rank, expected):
    """Two wrote the checkpoint; other numbers of processes go on with a warning."""
    run, saved, states_of = trainer(), {}, {}
    for name, level in (("first", 0.0), ("second", 1.0)):
        method = Own().replay
        method.run(Own().net, fr.Batch(torch.full((4, 9, 2), level, dtype=torch.float64)), 0, 0)
        states_of[name] = method.state_dict()
    FreerunCallback().on_save_checkpoint(run, Own(), saved)
    saved["freerun"]["methods"] = [{"replay_buffer": state} for state in states_of.values()]
    saved["freerun"]["states"] *= 2
    monkeypatch.setattr(type(run), "global_rank", property(lambda self: rank))
    monkeypatch.setattr(type(run), "world_size", property(lambda self: max(rank + 1, 2)))
    run.state.fn = "fit"
    callback, method = FreerunCallback(), Own().replay
    with pytest.warns(UserWarning, match=r"2 process\(es\) wrote .* 4 read") if rank > 1 else nullcontext():
        callback.on_load_checkpoint(run, Own(), saved)
    callback.begin(fr.Batch(torch.randn(4, 9, 2, dtype=torch.float64)), run, method)
    assert torch.equal(method.state_dict()["targets"], states_of[expected]["targets"])


def test_what_a_method_would_refuse_later_is_refused_in_the_first_step():
    """A cost that is no number, of runs that begin when the ratio has fallen."""
    falling = fr.schedules.linear(start=1.0, end=0.0, steps=100)
    method = fr.self_critical(lambda ids, gold: math.nan, end=0, teacher_forcing_ratio=falling)
    ended = [(word.index_fill(0, torch.tensor([0]), 0), len(word)) for word, _ in pairs()]  # its reversal ends with 0
    module = FreerunModule(network(), method, sgd)
    refused("must return a finite number", trainer().fit, module, loader(ended, 2))


def test_a_plain_loader_inside_an_epoch_is_not_exact_and_lightning_says_so(tmp_path):
    with pytest.warns(UserWarning, match="your dataloader is not resumable"):
        unbroken, resumed = interrupted(tmp_path, lambda: (loader(pairs(12), 2),), 4, every_n_train_steps=1)
    assert not torch.equal(unbroken, resumed)


def test_what_is_logged_is_what_was_done():
    seen = []

    class Looking(FreerunCallback):
        def on_before_optimizer_step(self, trainer, pl_module, optimizer):
            super().on_before_optimizer_step(trainer, pl_module, optimizer)
            seen.append({name: float(value) for name, value in trainer.callback_metrics.items()})

    module = FreerunModule(network(), fr.scheduled_sampling(0.25), lambda p: torch.optim.SGD(p, lr=0.0))
    module.configure_callbacks = lambda: [Looking()]
    trainer(max_epochs=1, accumulate_grad_batches=4).fit(module, loader(pairs(), 2))
    assert len(seen) == 3
    for step, numbers in enumerate(seen):
        batch = collate(pairs()[8 * step : 8 * step + 8])
        outcome = fr.scheduled_sampling(0.25).run(network(), batch, step, fold(0, "train"))
        eligible = outcome.report["eligible"]
        assert numbers["train_loss"] == pytest.approx(outcome.loss.item(), rel=1e-6)
        assert numbers["teacher_forcing_ratio"] == 0.25
        assert numbers["replaced_share"] == pytest.approx(outcome.report["replaced"] / eligible)
        assert numbers["disagreeing_share"] == pytest.approx(outcome.report["disagreeing"] / eligible)
        assert numbers["passes"] > 0


def scores(data: list, module: FreerunModule, collate_fn=collate) -> dict[str, float]:
    run = trainer()
    found = run.validate(module, DataLoader(data, batch_size=3, collate_fn=collate_fn), verbose=False)
    return found[0]


def test_validation_feeds_no_gold_and_says_which_score_is_which():
    module, data = trained(8), pairs(8, seed=1)
    module.model.train()
    found, batch = scores(data, module), collate(data)
    entries = fr.generate(module.model, batch, length=6).entries
    right = ((entries == batch.targets) & batch.mask).sum() / batch.mask.sum()
    assert found["free_running_token_accuracy"] == pytest.approx(float(right))
    module.model.eval()
    with torch.no_grad():
        forced = float(fr.teacher_forcing()(module.model, batch, step=0))
        free = float(fr.free_running(draw="greedy")(module.model, batch, step=0))
    assert found["teacher_forced_loss"] == pytest.approx(forced, rel=1e-6)
    assert found["free_running_loss"] == pytest.approx(free, rel=1e-6)
    names = {f"{side}_{score}" for side in ("teacher_forced", "free_running") for score in ("loss", "token_accuracy")}
    assert set(found) == names | {"free_running_sequence_accuracy"}

    def falsified(items):
        whole = collate(items)
        return whole.replace(history=(whole.history + 1) % world.WORDS)

    other = scores(data, module, falsified)
    assert {k: v for k, v in other.items() if "free" in k} == {k: v for k, v in found.items() if "free" in k}
    assert other["teacher_forced_loss"] != found["teacher_forced_loss"]


def test_validation_of_values_and_several_loaders():
    def values(items):
        x = torch.stack([word for word, _ in items]).double().unsqueeze(-1)
        return fr.Batch(x, x, torch.ones(x.shape[:2], dtype=torch.bool), context={"past": x})

    model = fr.models.ArticleForecaster(1).double()
    module = FreerunModule(model, fr.scheduled_sampling(0.5), sgd)
    several = [DataLoader(pairs(n), batch_size=3, collate_fn=values) for n in (4, 5)]
    found = trainer().validate(module, several, verbose=False)
    names = {f"{side}_loss/dataloader_idx_{i}" for i in (0, 1) for side in ("teacher_forced", "free_running")}
    assert {name for each in found for name in each} == names
    batch = values(pairs(5))
    with torch.no_grad():
        expected = float(fr.free_running()(model.eval(), batch, step=0))
    merged = {k: v for each in found for k, v in each.items()}
    assert merged["free_running_loss/dataloader_idx_1"] == pytest.approx(expected, rel=1e-6)


def test_rows_that_a_batch_brings_are_kept():
    def own(batch):
        return batch.replace(rows=batch.context["source"].sum(1))

    def run(batch_size, accumulate):
        module = FreerunModule(network(), sampling(), sgd)
        data = DataLoader(pairs(), batch_size=batch_size, collate_fn=lambda items: own(collate(items)))
        trainer(accumulate_grad_batches=accumulate).fit(module, data)
        return weights(module.model)

    method = sampling()
    expected = plain_loop(pairs(), 8, lambda model, batch, step: method(model, own(batch), step, fold(0, "train")))
    assert torch.equal(run(8, 1), expected)
    torch.testing.assert_close(run(2, 4), expected, rtol=1e-12, atol=1e-14)


def test_schedules_by_sample_and_epoch_know_their_position():
    seen = []

    class Noting(fr.methods.TeacherForcing):
        def run(self, model, batch, step=0, key=0):
            seen.append((int(step), step.sample, step.epoch))
            return super().run(model, batch, step, key)

    module = FreerunModule(network(), Noting(), sgd)
    trainer(accumulate_grad_batches=2).fit(module, loader(pairs(), 6))
    inside = [(0, 0, 0.0), (0, 0, 0.0), (1, 12, 0.5), (1, 12, 0.5)]
    assert seen == [*inside, *((step + 2, sample + 24, epoch + 1) for step, sample, epoch in inside)]


def fit_with(module, data=None, **changes):
    trainer(max_epochs=1, **changes).fit(module, data or loader(pairs(), 8))


def test_what_cannot_be_done_is_refused_with_what_to_do():
    class ByHand(FreerunModule):
        automatic_optimization = False

    class Bare(FreerunModule):
        def configure_callbacks(self):
            return []

    def masked(items):
        batch = collate(items)
        return batch.replace(mask=torch.zeros_like(batch.mask))

    raw = DataLoader([{"ids": torch.ones(2)}], batch_size=1)
    steep = fr.scheduled_sampling(fr.schedules.linear(start=1.0, end=-1.0, steps=2))
    blank = DataLoader(pairs(), batch_size=8, collate_fn=masked)
    for kind, method, data, message in (
        (FreerunModule, sampling(), raw, "got a dict with the keys ids.*collate_fn"),
        (Bare, sampling(), None, r"Trainer\(callbacks=\[freerun.lightning.FreerunCallback"),
        (FreerunModule, steep, None, r"teacher_forcing_ratio must lie in \[0, 1\]"),
        (FreerunModule, sampling(), blank, "optimizer step 0: no position of the batch counts"),
    ):
        module = kind(network(), method, sgd)
        before = weights(module.model)
        refused(message, fit_with, module, data)
        assert torch.equal(weights(module.model), before), message
    by_hand = ByHand(network(), sampling(), sgd)
    by_hand.automatic_optimization = False
    refused("optimises by hand", fit_with, by_hand)


def test_a_roll_in_under_a_strategy_that_shards_is_refused(monkeypatch):
    class Whole(FreerunModule):
        def configure_model(self):
            pass

    # the process group that Lightning opens for its one process is closed again
    monkeypatch.setenv("MASTER_ADDR", "localhost")
    strategy = ModelParallelStrategy(data_parallel_size=1, tensor_parallel_size=1)
    try:
        with pytest.raises(fr.UserError, match=r"hangs under ModelParallelStrategy.*strategy='ddp'"):
            fit_with(Whole(network(), sampling(), sgd), strategy=strategy)
        fit_with(Whole(network(), fr.teacher_forcing(), sgd), strategy=ModelParallelStrategy(1, 1))
    finally:
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()


def test_an_adapted_hugging_face_model_is_trained_as_in_a_plain_loop():
    def adapted():
        return fr.hf.adapt(tiny_llama())

    examples = [{"input_ids": word, "labels": word} for word, _ in pairs(12)]
    adapter, method = adapted(), fr.scheduled_sampling(0.5)
    module = FreerunModule(adapter, method, sgd, to_batch=lambda batch: adapter.batch(**batch))
    run = trainer(max_epochs=1)
    run.fit(module, DataLoader(examples, batch_size=4), DataLoader(examples, batch_size=4))
    assert "free_running_token_accuracy" in run.callback_metrics

    plain = adapted()
    optimizer = sgd(plain.parameters())
    for step, batch in enumerate(DataLoader(examples, batch_size=4)):
        optimizer.zero_grad()
        method(plain, plain.batch(**batch), step, fold(0, "train")).backward()
        optimizer.step()
    assert torch.equal(weights(module.model), weights(plain))


def test_a_model_or_method_that_is_none_is_refused_at_once():
    first, second = refused("", FreerunModule, tiny_llama(), fr.scheduled_sampling)
    assert "hf.adapt(model)" in first
    assert "ScheduledSampling itself" in second
    refused(r"must be an nn.Module.*got function", FreerunModule, lambda batch: batch.history, sampling())


def test_the_library_is_loaded_when_it_is_used():
    code = (
        "import sys; import freerun as fr; from freerun import lightning\n"
        "assert 'lightning' not in sys.modules and not hasattr(lightning, 'nosuch')\n"
        "assert 'FreerunModule' in dir(lightning)\n"
        "sys.modules['lightning'] = None\n"
        "try: lightning.FreerunModule\n"
        "except fr.UserError as error: assert 'pip install' in str(error), error\n"
        "else: raise SystemExit('found')\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
