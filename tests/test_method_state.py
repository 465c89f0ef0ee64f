"""The state of a method, numbers and tensors, is kept in checkpoints: a resumed run is an unbroken one."""

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

import freerun as fr
from builders import raises
from freerun.errors import CheckpointError
from freerun.methods.rehearsal import rehearsal
from freerun.recipes import load_recipe
from freerun.recipes.train import run_recipe
from freerun.training.weights import unpack
from hf_trainer_world import WORLDS, make
from test_run_folder import killed_at
from tiny_recipes import TINY
from training_world import fingerprints, make_task, train

METHOD = "method.safetensors"


@dataclass(frozen=True, repr=False)
class Counting(fr.methods.TeacherForcing):
    """Teacher forcing whose loss is weighted by what was trained before: a number, and a tensor of each mean entry."""

    name: ClassVar[str] = "counting"

    @cached_property
    def _memory(self) -> dict[str, Any]:
        return {}

    def compute(self, model: Any, batch: fr.Batch, step: int, key: int) -> Any:
        outcome, memory = super().compute(model, batch, step, key), {"calls": 0.0, "seen": torch.zeros(()).double()}
        memory |= self._memory
        weight = 1 + float(torch.frac(memory["seen"])) + 0.1 * (memory["calls"] % 3)
        if torch.is_grad_enabled():
            memory = {"calls": memory["calls"] + 1, "seen": memory["seen"] + batch.targets.double().mean().sqrt().cpu()}
            self._memory.update(memory)
        return outcome.made(total=weight * outcome.total)

    def state_dict(self) -> dict[str, float | Tensor]:
        return {"calls": 0.0, "seen": torch.zeros(()).double(), **self._memory}

    def load_state_dict(self, state: Mapping[str, float | Tensor]) -> None:
        self._memory.clear()
        self._memory.update(state)


def test_a_resumed_run_is_unbroken_and_a_new_one_begins_anew(tmp_path):
    method = Counting()
    for folder in ("one", "two"):  # one object, two runs
        train(tmp_path / folder, method=method)
    killed_at(12, lambda: train(tmp_path / "three", method=Counting()))
    state = unpack((tmp_path / "three" / "checkpoints" / "step-00000010" / METHOD).read_bytes())
    assert list(state) == ["seen"]
    assert state["seen"].dtype == torch.float64
    train(tmp_path / "three", method=Counting(), resume=True)
    one, two, three = (fingerprints(tmp_path / folder) for folder in ("one", "two", "three"))
    assert one == two == three
    assert any(name.endswith(METHOD) for name in one)


def test_what_is_damaged_or_missing_is_named(tmp_path):
    killed_at(12, lambda: train(tmp_path / "run", method=Counting()))
    whole = (tmp_path / "run" / "checkpoints" / "step-00000010" / METHOD).read_bytes()
    for number, damage in enumerate((whole[:-1] + b"\7", whole[:-1], None)):
        copy = shutil.copytree(tmp_path / "run", tmp_path / f"copy{number}")
        path = copy / "checkpoints" / "step-00000010" / METHOD
        path.unlink() if damage is None else path.write_bytes(damage)
        with pytest.warns(UserWarning, match=rf"skipped step-00000010: .*{METHOD}"):
            killed_at(1, lambda copy=copy: train(copy, method=Counting(), resume=True))


def test_another_method_begins_with_a_state_of_its_own(tmp_path):
    killed_at(12, lambda: train(tmp_path / "run", method=Counting()))
    train(tmp_path / "run", method=fr.teacher_forcing(), resume=True, allow=["method"])


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_hugging_face_trainers_keep_it(tmp_path, smoothing):
    make_model, data, cls, _ = WORLDS["gpt2"]
    options: dict[str, Any] = {"save_strategy": "steps", "save_steps": 3, "label_smoothing_factor": smoothing}

    def run(resume: Any = None) -> Any:
        trainer = make(cls, make_model(), data, Counting(), tmp_path, **options)
        trainer.train(resume_from_checkpoint=resume)
        return trainer

    whole = run()
    path = tmp_path / "checkpoint-3" / "freerun_method.safetensors"
    for resume in (str(path.parent), True):
        for last in ("checkpoint-6", "checkpoint-8"):
            shutil.rmtree(tmp_path / last)
        again = run(resume)
        assert all(torch.equal(a, b) for a, b in zip(whole.model.parameters(), again.model.parameters(), strict=True))
        assert again._applied.method.state_dict() == whole._applied.method.state_dict()
    again.train()  # anew
    assert again._applied.method.state_dict()["calls"] == 8
    path.write_bytes(b"damaged")
    raises(CheckpointError, r"freerun_method.safetensors: the state of counting cannot be read", run, str(path.parent))
    path.unlink()
    raises(CheckpointError, r"freerun_method.safetensors: the state of counting cannot be read", run, str(path.parent))


def priced(kind: str) -> Any:
    """Costs of one name and another text."""
    if kind == "length":

        def cost(ids: Any, gold: Any) -> float:
            return float(abs(len(ids) - len(gold)))
    else:

        def cost(ids: Any, gold: Any) -> float:
            return float(ids != gold)

    return cost


def test_a_cost_of_the_same_name_and_another_text_is_named_where_a_run_goes_on(tmp_path):
    task = make_task()
    end = task.end(task.data)

    def method(kind: str) -> Any:
        return fr.minimum_risk(priced(kind), num_samples=2, margin=0, end=end)

    assert repr(method("length")) == repr(method("equal"))
    killed_at(12, lambda: train(tmp_path / "run", method=method("length")))
    message = r"method\.cost\.code: the checkpoint has \w{8}, this run \w{8}\n  help: .*--allow-change method$"
    raises(CheckpointError, message, train, tmp_path / "run", method=method("equal"), resume=True)
    killed_at(3, lambda: train(tmp_path / "run", method=method("length"), resume=True))
    train(tmp_path / "run", method=method("equal"), resume=True, allow=["method"])


def test_a_refused_change_leaves_the_recipe_as_it_was(tmp_path):
    """Allowed, and found impossible where the state of the method is put back: then nothing has been written."""

    def run(size: int, **more: Any) -> Any:
        method = f'name = "professor_forcing"\nsize = {size}\n'
        text = TINY[: TINY.index('name = "scheduled')] + method + TINY[TINY.index("\n[train]") :]
        path = tmp_path / f"size-{size}.toml"
        path.write_text(text)
        return run_recipe(load_recipe(path), tmp_path / "run", progress=False, **more)

    killed_at(9, lambda: run(4))
    before = (tmp_path / "run" / "recipe.toml").read_text()
    raises(CheckpointError, "size", run, 8, resume=True, allow=["method"])
    assert (tmp_path / "run" / "recipe.toml").read_text() == before
    assert run(4, resume=True)["finished"]


def test_a_rehearsal_leaves_the_state_of_a_method():
    """A running estimate of step 10 is that of step 10 after one step that is tried at step 0."""
    torch.manual_seed(0)
    model, batch = fr.models.ShallowPLRNN(2, size=8), fr.Batch(torch.randn(4, 6, 2))
    method = fr.generalised_teacher_forcing(alpha="running")
    state = {"alpha": 0.3, "estimate": -1.0, "step": 10.0}
    method.load_state_dict(state)
    rehearsal(method, model, batch, 100, 0)
    assert method.state_dict() == state
