"""``examples/one_file.py`` explains scheduled sampling by hand, and does what the library does, entry for entry."""

import runpy
from pathlib import Path
from typing import Any

import pytest
import torch

import freerun as fr
from builders import assert_same_gradients, gradients
from freerun.comparison.statistics import estimate

PATH = Path(__file__).parent.parent / "examples" / "one_file.py"
KEY, STEP = 3, 11


@pytest.fixture(scope="module")
def by_hand() -> Any:
    return runpy.run_path(str(PATH))


@pytest.fixture(scope="module")
def model(by_hand) -> Any:
    torch.manual_seed(1)
    decoder = by_hand["Decoder"](8).double()
    with torch.no_grad():
        for parameter in decoder.parameters():
            parameter.mul_(3)
    return decoder


def ours(decoder: Any) -> fr.StepModel:
    """The same weights as the library's decoder step."""

    class Step(fr.StepModel):
        def __init__(self) -> None:
            super().__init__()
            self.decoder = decoder

        def start(self, batch):
            return self.decoder.start(batch.context)

        def step(self, entries, state):
            return self.decoder.step(entries, state)

    return Step()


def test_it_is_short():
    assert len(PATH.read_text(encoding="utf-8").splitlines()) <= 300


def test_its_random_numbers_are_the_librarys(by_hand):
    rows, positions = torch.arange(5)[:, None], torch.arange(7)
    for key in (0, 5, 2**63 - 1):
        assert by_hand["fold"](key, "gate", 3) == fr.keys.fold(key, "gate", 3)
        assert torch.equal(by_hand["uniform"](key, rows, positions), fr.keys.uniform(key, rows, positions))


@pytest.mark.parametrize("ratio", [1.0, 0.7, 0.25, 0.0])
def test_its_roll_in_loss_and_gradient_are_the_librarys(by_hand, model, ratio):
    batch = by_hand["make_batch"](6, seed=2)
    batch["mask"][0, 4:] = False
    outputs, history = by_hand["roll_in"](model, batch, ratio, STEP, KEY)
    loss = by_hand["loss_of"](outputs, batch)
    step_model, given = ours(model), fr.Batch(batch["targets"], mask=batch["mask"], context=batch["source"])
    outcome = fr.scheduled_sampling(ratio, draw="sample").run(step_model, given, STEP, KEY)
    assert torch.equal(outcome.fed.history, history)
    assert outcome.loss.item() == pytest.approx(loss.item(), abs=1e-12)
    assert_same_gradients(gradients(step_model, outcome.loss), gradients(step_model, loss))


def test_its_free_run_is_the_librarys(by_hand, model):
    batch = by_hand["make_batch"](6, seed=2)
    given = fr.Batch(batch["targets"], context=batch["source"])
    free = by_hand["free_run"](model, batch["source"], 10)
    assert torch.equal(fr.generate(ours(model), given, length=10).entries, free)
    assert by_hand["errors"](model, batch) == fr.evaluate(ours(model), given, end=None).free_running["token_error"]


def test_its_interval_is_the_librarys_over_seeds(by_hand):
    first, second = [30.0, 35.5, 31.25, 29.0], [31.0, 33.0, 30.0, 28.5]
    expected = estimate(first, second)
    mean, low, high = by_hand["paired_interval"]([a - b for a, b in zip(first, second, strict=True)])
    assert (mean, low, high) == pytest.approx((expected.value, expected.low, expected.high), abs=1e-3)
