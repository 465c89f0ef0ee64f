"""The memory of the longest horizon, before the first update: the same words and numbers in all trainers."""

import re

import pytest
import torch

import freerun as fr
import hf_trainer_world as hugging
from builders import raises
from freerun.errors import ResourceError
from freerun.lightning import FreerunModule
from freerun.recipes.train import run_recipe
from freerun.training import memory, update
from lightning_world import sgd, trainer
from test_config_series import tiny

STEPS = 24
NOTE = r"the longest horizon, {} steps of {} rows, needs about \d+ MiB in an update; [\d,]+ MiB are free"
RISING = fr.schedules.linear(start=1, end=STEPS, steps=3)


@pytest.fixture
def estimated(monkeypatch):
    found, real = [], memory.estimate_memory

    def recorded(*arguments, **named):
        found.append(real(*arguments, **named))
        return found[-1]

    monkeypatch.setattr(memory, "estimate_memory", recorded)
    return found


def series(number=32, time=STEPS):
    g = torch.Generator().manual_seed(0)
    return [torch.randn(time, 1, generator=g) for _ in range(number)]


pytestmark = [
    pytest.mark.filterwarnings(f"ignore:.*{text}") for text in ("val_dataloader", "many workers", "num_workers")
]


class Measured(FreerunModule):
    """Bytes of each update, beside the module."""

    def optimizer_step(self, epoch, batch_idx, optimizer, optimizer_closure=None):
        def closure():
            done = []
            self.bytes.append(memory.peak_bytes(lambda: done.append(optimizer_closure()), torch.device("cpu")))
            return done[0]

        optimizer.step(closure=closure)


def lightning_run(method, **changes):
    torch.manual_seed(0)
    module = Measured(fr.models.PlainForecaster(1, size=48), method, sgd)
    module.bytes = []
    batches = torch.utils.data.DataLoader(series(), batch_size=16, collate_fn=lambda rows: fr.Batch(torch.stack(rows)))
    trainer(**changes).fit(module, batches)
    return module


@pytest.mark.parametrize("method", [fr.multi_step(horizon=RISING), fr.pushforward(horizon=STEPS)])
def test_lightning_tries_the_longest_horizon_within_a_tenth(method, estimated, caplog):
    with caplog.at_level("INFO"):
        module = lightning_run(method, max_epochs=3)
    assert re.search(NOTE.format(STEPS, 16), caplog.text)
    assert len(estimated) == 1  # before the first step only
    assert max(module.bytes[1:]) == pytest.approx(estimated[0], rel=0.1)


def test_lightning_refuses_what_does_not_fit(monkeypatch, caplog):
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(10**9))  # a share of memory that holds nothing
    message = r"24 steps of 16 rows, .* \(it comes at update 3\), and 0 MiB are free: lower method.horizon, let the"
    raises(ResourceError, message, lightning_run, fr.multi_step(horizon=RISING), max_epochs=3)
    monkeypatch.undo()
    caplog.clear()
    lightning_run(fr.multi_step(horizon=fr.schedules.linear(start=1, end=STEPS, steps=1, unit="epoch")), max_epochs=3)
    assert re.findall(NOTE.format(STEPS, 16), caplog.text)  # two updates an epoch: the last one is in the third
    caplog.clear()
    lightning_run(fr.teacher_forcing())
    assert "longest horizon" not in caplog.text


def test_a_longest_horizon_that_nobody_knows_is_not_tried():
    notes, model = [], fr.models.PlainForecaster(1, size=8)
    by_epoch = fr.schedules.linear(start=1, end=9, steps=3, unit="epoch")
    for horizon, steps in ((RISING, None), (by_epoch, 9)):
        method = fr.multi_step(horizon=horizon)
        memory.try_longest(method, model, lambda: None, steps, at=fr.types.Step, note=notes.append, lower="")
    assert set(notes) == {
        "the memory of the longest horizon was not tried: how long the run is, and so the longest horizon, is not known"
    }


class MeasuredTrainer(fr.hf.Trainer):
    def training_step(self, *arguments, **named):
        loss = []
        self.bytes = memory.peak_bytes(
            lambda: loss.append(super(MeasuredTrainer, self).training_step(*arguments, **named)), torch.device("cpu")
        )
        return loss[0]


def test_a_hugging_face_trainer_tries_the_longest_horizon_within_a_tenth(estimated, capsys, monkeypatch):
    method = fr.scheduled_sampling(0.5, horizon=6)
    rows = [{"input_ids": [1, 2, 3, 4, 5, 6, 7, 8], "labels": [1, 2, 3, 4, 5, 6, 7, 8]}] * 16
    changes = {"per_device_train_batch_size": 8, "max_steps": 2}
    trained = hugging.make(MeasuredTrainer, hugging.gpt2(), rows, method, **changes)
    trained.train()
    assert re.search(NOTE.format(6, 8), " ".join(capsys.readouterr().err.split()))
    assert len(estimated) == 1
    assert trained.bytes == pytest.approx(estimated[0], rel=0.1)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(10**9))
    message = r"6 steps of 8 rows, .* and 0 MiB are free: lower method.horizon, lower per_device_train_batch_size"
    raises(ResourceError, message, hugging.make(fr.hf.Trainer, hugging.gpt2(), rows, method, **changes).train)


def test_our_own_loop_tries_the_longest_horizon_within_a_tenth(estimated, tmp_path, monkeypatch):
    real, found = update._window, []

    def measured(*arguments):
        done = []
        found.append(memory.peak_bytes(lambda: done.append(real(*arguments)), torch.device("cpu")))
        return done[0]

    monkeypatch.setattr(update, "_window", measured)
    rising = 'method={name="multi_step", horizon={schedule="linear", start=1, end=9, steps=4}}'
    run_recipe(tiny(tmp_path, rising, "model.size=32"), tmp_path / "run", progress=False)
    assert len(estimated) == 1
    assert max(found) == pytest.approx(estimated[0], rel=0.1)


@pytest.mark.parametrize("method", [
    fr.pushforward(horizon=99), fr.multi_step(horizon=99), fr.teacher_forcing(horizon=99),
    fr.replay_buffer(0.5, capacity=4, age=2, horizon=99),
])  # fmt: skip
def test_a_horizon_beyond_the_rows_is_named_before_the_first_update(method):
    notes, model = [], fr.models.PlainForecaster(1, size=8)
    batch = fr.Batch(torch.stack(series(4)))
    memory.try_longest(method, model, lambda: batch, 3, at=fr.types.Step, note=notes.append, lower="")
    said = f"method.horizon is up to 99 steps, and the longest row tried has {STEPS}"
    assert notes[0] == f"{said}: what is above {STEPS} is the whole row"
    assert len(notes) == 2
    fits = fr.multi_step(horizon=STEPS)
    memory.try_longest(fits, model, lambda: batch, 3, at=fr.types.Step, note=notes.append, lower="")
    assert len(notes) == 3


@pytest.mark.parametrize(("method", "text"), [
    (fr.sparse_teacher_forcing(tau=STEPS), "method.tau is 24, and the longest row tried has 24 entries: none that"),
    (fr.scheduled_sampling(0.5, gate=fr.gates.every(99)), "method.gate.tau is 99, and the longest row tried has 24"),
    (fr.free_running(gradient=99), "method.gradient cuts every 99 steps, and the longest row tried has 24: it is"),
    (fr.sparse_teacher_forcing(tau=STEPS - 1), None), (fr.free_running(gradient=STEPS), None),
    (fr.scheduled_sampling(0.5), None),
])  # fmt: skip
def test_other_numbers_of_steps_beyond_the_rows_are_named(method, text):
    notes, model, batch = [], fr.models.PlainForecaster(1, size=8), fr.Batch(torch.stack(series(4)))
    memory.try_longest(method, model, lambda: batch, 3, at=fr.types.Step, note=notes.append, lower="")
    assert len(notes) == (text is not None)
    assert all(note.startswith(text) for note in notes)


def test_our_own_loop_names_a_horizon_beyond_its_windows(tmp_path, capsys):
    run_recipe(tiny(tmp_path, 'method={name="pushforward", horizon=99}', "train.updates=2"), tmp_path / "run")
    found = capsys.readouterr()
    assert "method.horizon is up to 99 steps, and the longest row tried has" in " ".join(
        (found.out + found.err).split()
    )


def test_what_a_replay_buffer_keeps_is_part_of_the_estimate():
    torch.manual_seed(0)
    model = fr.models.PlainForecaster(16, size=8)
    batches = [fr.Batch(torch.randn(32, STEPS, 16)) for _ in range(4)]
    method = fr.replay_buffer(0.3, capacity=300, age=20, horizon=4)
    estimate = memory.estimate_memory(method.at_longest(4), model, batches[0])
    stored = []

    def train():
        for step in range(24):
            outcome = method.run(model, batches[step % 4], step=step)
            outcome.total.backward()
            model.zero_grad()
        stored.append(outcome.report["stored"])

    assert memory.peak_bytes(train, torch.device("cpu")) == pytest.approx(estimate, rel=0.1)
    assert stored == [300]
    # a buffer that nothing is taken from is none
    none = fr.replay_buffer(0.0, capacity=10**9, age=20, horizon=4).at_longest(4)
    assert memory.estimate_memory(none, model, batches[0]) < estimate
