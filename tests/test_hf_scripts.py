"""Official scripts with our trainers: equal to the stock trainer at ratio 1, trained and evaluated below it."""

from typing import Any

import pytest
import torch

import hf_scripts
from distributed_world import HERE, torchrun
from hf_scripts import METHODS, TWO, VARIANTS
from hf_trainer_world import apart, logged, weights

pytestmark = [
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),  # of peft
    pytest.mark.filterwarnings("ignore:.*:UserWarning:trl"),
    pytest.mark.filterwarnings("ignore:.*:FutureWarning:trl"),
]
CLOCKS = ("runtime", "per_second", "epoch")
QUICK = ("translation mbart50", "summarization bart settings", "clm gpt2", "sft packed")


def cases(names: Any = VARIANTS) -> list[Any]:
    slow = pytest.mark.slow(reason="the whole table takes a minute; one of each script is quick")
    return [pytest.param(name, marks=[] if name in QUICK else [slow]) for name in names]


def numbers(found: dict[str, float]) -> dict[str, float]:
    return {name: value for name, value in found.items() if not name.endswith(CLOCKS)}


@pytest.mark.parametrize("name", cases())
def test_at_ratio_one_a_script_is_as_with_the_stock_trainer(name):
    stock, ours = hf_scripts.run(VARIANTS[name].like or name, "stock"), hf_scripts.run(name, "forcing")
    assert logged(ours) == pytest.approx(logged(stock), rel=2e-6)
    assert numbers(ours.found) == pytest.approx(numbers(stock.found), rel=1e-5)
    assert apart(weights(stock), weights(ours)) < 1e-4


@pytest.mark.parametrize("name", cases())
def test_below_ratio_one_a_script_trains_and_evaluates(name):
    """The first step replaces nothing, and is the stock trainer's; the others replace more and more."""
    stock, ours = hf_scripts.run(VARIANTS[name].like or name, "stock"), hf_scripts.run(name, "sampling")
    shares = logged(ours, "replaced_share")
    assert shares[0] == 0 < shares[1] < shares[3] < 1
    assert logged(ours)[0] == pytest.approx(logged(stock)[0], rel=2e-6)
    assert logged(ours)[1:] != pytest.approx(logged(stock)[1:], rel=1e-6)
    assert numbers(ours.found).keys() == numbers(stock.found).keys()
    assert ours.found["eval_loss"] == pytest.approx(stock.found["eval_loss"], rel=0.1)


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scripts")
    done = torchrun([str(HERE / "hf_scripts.py"), str(folder)], timeout=900, CUDA_VISIBLE_DEVICES="")
    assert done.returncode == 0, done.stderr[-4000:]
    return {path.stem: torch.load(path, weights_only=False) for path in folder.glob("*.pt")}


@pytest.mark.slow(reason="starts two processes that import transformers and TRL")
@pytest.mark.parametrize("name", TWO)
def test_two_processes_are_one(two, name):
    """Ours on two with the stock trainer on one, whose loss of a T5 on two is twice too large."""
    for method, one in (("forcing", "stock"), ("sampling", "sampling")):
        # (two ranks fill up an epoch's last batch with rows of its first)
        found, expected = two[f"{name} {method}"], hf_scripts.run(name, one, dataloader_drop_last=True)
        assert [line["loss"] for line in found["log"] if "loss" in line] == pytest.approx(logged(expected), rel=1e-5)
        assert apart(found["weights"], weights(expected)) < 1e-3
        # the trainer's own mean over batches: seven rows by four on one, by two on each of two
        assert found["found"]["eval_loss"] == pytest.approx(expected.found["eval_loss"], rel=0.02)
        if method == "sampling":
            shares = [line["replaced_share"] for line in found["log"] if "replaced_share" in line]
            assert shares == pytest.approx(logged(expected, "replaced_share"), rel=1e-6)
    assert set(two) == {f"{each} {method}" for each in TWO for method in METHODS}
