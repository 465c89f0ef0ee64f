"""An update is the exact mean over its window, however the window is cut, and never goes to NaN."""

from dataclasses import replace
from typing import Any

import pytest
import torch

import freerun as fr
from builders import raises, refused
from freerun.batch import Batch
from freerun.errors import DivergedError, ResourceError, UserError
from freerun.keys import fold
from freerun.training import BatchPlan
from freerun.training.checkpoint import TrainObjects
from freerun.training.optim import make_optimizer
from freerun.training.parallelize import ParallelRun
from freerun.training.update import check_amp, update
from freerun.types import Step
from training_world import Wrapped, changed, make_method, make_model, make_task

EXACT = changed(batch_size=13, accumulate=1, optimizer="sgd", lr=1.0, warmup=0, decay="constant", clip=0.0, ema=0.0)


def parts_of(model: Any, method: Any, settings: Any = EXACT) -> TrainObjects:
    return TrainObjects(model, make_optimizer(model, settings), None, ParallelRun(model, method))


def stepped(settings: Any, method: Any = None, task: Any = None, step: int = 2) -> tuple[Any, dict[str, Any]]:
    task = task or make_task()
    model = make_model(task, dropout=0.0).double()
    plan = BatchPlan(task.lengths, settings.batch_size, seed=0)
    return model, update(parts_of(model, method or make_method(), settings), task, settings, plan.at(step))


def weights(model: torch.nn.Module) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


@pytest.mark.parametrize("accumulate", [2, 3, 13])
def test_micro_batches_make_the_same_update(accumulate):
    whole, record = stepped(EXACT)
    cut, cut_record = stepped(replace(EXACT, accumulate=accumulate))
    torch.testing.assert_close(weights(cut), weights(whole), rtol=1e-10, atol=1e-12)
    for name in ("loss", "grad_norm"):
        assert cut_record[name] == pytest.approx(record[name], rel=1e-10)
    for name in ("eligible", "replaced", "disagreeing", "teacher_forcing_ratio"):
        assert cut_record[name] == record[name]
    assert record["replaced"] > 0, "the test must mix histories to say anything"


def test_an_update_is_the_literal_one():
    task = make_task()
    model = make_model(task, dropout=0.0).double()
    before = weights(model)
    planned = BatchPlan(task.lengths, 13, seed=0).at(2)
    batch = task.batch(planned.indices.tolist(), torch.arange(13))
    loss = make_method()(model, batch, Step(2, sample=planned.step.sample), fold(0, "train"))
    loss.backward()
    gradient = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
    updated, record = stepped(EXACT)
    assert record["loss"] == pytest.approx(float(loss.detach()), rel=1e-12)
    assert record["grad_norm"] == pytest.approx(float(gradient.norm()), rel=1e-12)
    torch.testing.assert_close(before - weights(updated), gradient, rtol=1e-9, atol=1e-12)
    clipped, record = stepped(replace(EXACT, clip=0.01))
    assert float((before - weights(clipped)).norm()) == pytest.approx(0.01)
    assert record["grad_norm"] == pytest.approx(float(gradient.norm())), "the norm before clipping is logged"


def test_the_rate_of_noise_is_logged_as_the_ratio_is():
    noise = fr.token_noise(rate=fr.schedules.linear(start=0.0, end=0.5, steps=4))
    record = stepped(EXACT, noise)[1]
    assert (record["rate"], record["teacher_forcing_ratio"]) == (0.25, None)
    assert "rate" not in stepped(EXACT)[1]


def test_dropout_is_repeated_by_seed_step_and_micro_batch():
    def loss(seed: int, step: int) -> float:
        task = make_task()
        model = make_model(task, dropout=0.5)
        torch.manual_seed(12345 + step)  # what the caller's generator holds does not enter
        settings = replace(EXACT, seed=seed, accumulate=2)
        plan = BatchPlan(task.lengths, len(task.lengths), seed=0, bucket=False)
        return update(parts_of(model, fr.teacher_forcing(), settings), task, settings, plan.at(step))["loss"]

    assert loss(0, 3) == loss(0, 3)
    assert len({loss(0, 3), loss(0, 4), loss(1, 3)}) == 3


def test_the_step_knows_samples_and_epochs():
    seen: list[Any] = []

    class Spy:
        name = "spy"

        def run(self, model: Any, batch: Batch, step: int = 0, key: int = 0) -> Any:
            seen.append(step)
            return fr.teacher_forcing().run(model, batch, step, key)

    stepped(replace(EXACT, batch_size=20), Spy(), step=9)
    assert (int(seen[0]), seen[0].sample, seen[0].epoch) == (9, 180, 2.25)


def test_a_loss_that_is_not_finite_stops_before_the_update():
    task = make_task()
    model = make_model(task)
    parts = parts_of(model, fr.scheduled_sampling(1.0))
    plan = BatchPlan(task.lengths, 13, seed=0)
    with torch.no_grad():
        model.get_parameter(next(iter(dict(model.named_parameters())))).fill_(float("nan"))
    before = weights(model)
    with pytest.raises(DivergedError) as error:
        update(parts, task, EXACT, plan.at(4))
    assert torch.equal(weights(model), before) or torch.equal(weights(model).isnan(), before.isnan())
    assert "update 4" in str(error.value)
    assert "teacher_forcing_ratio 1" in str(error.value)
    assert " ".join(map(str, plan.at(4).indices.tolist())) in str(error.value)
    assert error.value.exit_code == 6


def test_a_window_without_a_position_says_so():
    task = Wrapped(make_task(), lambda _calls, batch: batch.replace(mask=torch.zeros_like(batch.mask)))
    with pytest.raises(UserError, match="no position of the batch counts") as error:
        stepped(EXACT, fr.teacher_forcing(), task)
    assert error.value.exit_code == 2, "the data are wrong; nothing diverged"


NO_MEMORY = [
    MemoryError(), torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:118] err == 0. DefaultCPUAllocator: can't allocate memory: you ..."),
    RuntimeError("Storage size calculation overflowed with sizes=[99999999999, 99999999999]"),
]  # fmt: skip


@pytest.mark.parametrize("raised", NO_MEMORY)
def test_an_update_without_memory_says_its_sizes_and_what_to_set(raised):
    class Greedy:
        name = "greedy"

        def run(self, model: Any, batch: Batch, step: int, key: int) -> Any:
            raise raised

    for settings, help in ((EXACT, "--set train.accumulate="), (replace(EXACT, batch_size=1), "a smaller model")):
        message = rf"(?s)out of memory in update 3: \d+ examples of up to \d+ positions.*help: {help}"
        raises(ResourceError, message, stepped, settings, Greedy(), step=3)


def test_a_method_that_meets_nan_weights_has_diverged():
    """Whatever it raises: an argmax over NaN, an index out of range, its own message."""

    class Strict:
        name = "strict"

        def run(self, model: Any, batch: Batch, step: int, key: int) -> Any:
            raise UserError("the model's outputs are not numbers")

    task = make_task()
    model = make_model(task)
    parts = parts_of(model, Strict())
    plan = BatchPlan(task.lengths, 13, seed=0)
    with pytest.raises(UserError) as fine:
        update(parts, task, EXACT, plan.at(4))
    assert fine.value.exit_code == 2
    with torch.no_grad():
        next(iter(model.parameters())).fill_(float("inf"))
    seen = r"seen in update 4: .*outputs are not numbers \(weights are not finite: "
    raises(DivergedError, seen, update, parts, task, EXACT, plan.at(4))


def test_bf16_trains():
    task = make_task()
    model = make_model(task, cell="gru", size=32, dropout=0.0)
    settings = changed(amp="bf16", lr=2e-2)
    parts, plan = parts_of(model, fr.scheduled_sampling(0.8), settings), BatchPlan(task.lengths, 12, seed=0)
    losses = [update(parts, task, settings, plan.at(step))["loss"] for step in range(40)]
    assert sum(losses[-5:]) < 0.8 * sum(losses[:5])
    assert all(parameter.dtype == torch.float32 for parameter in model.parameters())


def test_bf16_that_the_processor_lacks_is_refused(monkeypatch):
    def missing(*_: Any) -> None:
        raise RuntimeError("could not create a primitive descriptor\nmore")

    monkeypatch.setattr(torch.nn.LSTM, "forward", missing)
    model = make_model(make_task())
    lacking = r"no bf16 LSTM for this cpu \(could not create a primitive descriptor\); set"
    refused(lacking, check_amp, model, changed(amp="bf16"))
    check_amp(model, changed(amp="no"))
    check_amp(make_model(make_task(), cell="gru"), changed(amp="bf16"))
