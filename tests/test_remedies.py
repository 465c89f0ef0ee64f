"""The recipes of the remedies: every arm trains, and what a task cannot have is refused by the arm's name."""

from dataclasses import replace

import pytest
import torch

from freerun.comparison.run import compare
from freerun.errors import UserError
from freerun.methods import METHODS
from freerun.recipes import load_recipe
from freerun.recipes.recipe import MethodSettings
from freerun.recipes.source import find_recipe
from freerun.recipes.train import build, rehearse, run_recipe
from freerun.types import Step
from parallel_text import write_parallel

SMALL = {
    "remedies-ring": {"data.walks": [64, 8, 8], "data.length": 6},
    "remedies-levels": {"data.windows": [64, 8, 8], "data.trajectories": 8, "data.past": 4, "data.horizon": 6},
    "remedies-words": {"data.drop_overlap": "false"},
    "remedies-distil": {"data.drop_overlap": "false"},
    "remedies-translate": {"data.subwords": 300, "model.layers": 1, "model.heads": 2},
}
WORDS = ["abc", "bca", "cab", "abba", "bab", "cac", "acab", "bacca", "cabba", "accab"]
OF_ENDS = ("optimal_completion", "minimum_risk", "self_critical")
POSITIONS = ("remedies-ring", "remedies-levels")


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Folders of pairs and of parallel text."""
    folder = tmp_path_factory.mktemp("files")
    for split in ("train", "dev", "test"):
        (folder / f"dut_{split}.tsv").write_text("".join(f"{word}\t{' '.join(word.upper())}\n" for word in WORDS))
    found = {"remedies-words": folder, "remedies-distil": folder, "remedies-translate": write_parallel(folder / "text")}
    teacher = {"method": '{name="teacher_forcing"}', "train.updates": 2, "train.warmup": 0}
    run_recipe(
        load_recipe("remedies-words", overrides("remedies-words", found, **teacher)), folder / "teacher", progress=False
    )
    return found


def overrides(name, files, **more):
    """What makes a recipe small, and finds its data and its teacher."""
    found = {**SMALL[name], "model.size": 8, "train.batch_size": 4, "train.threads": 1, **more}
    found |= {"data.path": str(files[name])} if name in files else {}
    texts = find_recipe(name).read_text().split("[[compare.arms]]")[1:]
    learners = [index for index, text in enumerate(texts) if "teacher =" in text]
    found |= {f"compare.arms.{index}.method.teacher": str(files[name] / "teacher") for index in learners}
    return [f"{key}={value}" for key, value in found.items()]


def arms(name):
    """Labels of a shipped recipe's arms, in order."""
    return [line.split('"')[1] for line in find_recipe(name).read_text().splitlines() if line.startswith("label =")]


@pytest.mark.parametrize(("name", "label"), [(name, label) for name in SMALL for label in arms(name)])
def test_an_arm_of_the_remedies_learns(name, label, files):
    recipe = load_recipe(name, overrides(name, files))
    arm = next(each for each in recipe.compare.arms if each.label == label)
    if arm.reference is not None and arm.control == "matched":  # its rate is measured in another run
        arm = replace(arm, method=MethodSettings("token_noise", {"rate": 0.5, "exclude_gold": True}))
    model, task, method, _ = build(replace(recipe, method=arm.method))
    rehearse(recipe, model, task, method)
    batch = task.batch([0, 1, 2, 3], torch.arange(4))
    # the last update, at which the histories are as far from gold as they come
    step = Step(recipe.train.updates - 1, sample=0, epoch=0.0)
    outcome = method.run(model.train(), batch, step, 3)
    (outcome.total / outcome.count).backward()
    gradients = [weight.grad for weight in model.parameters() if weight.grad is not None]
    assert outcome.total.isfinite()
    assert all(each.isfinite().all() for each in gradients)
    assert any(each.abs().sum() > 0 for each in gradients)
    if METHODS[arm.method.name].feeds_own and arm.method.parameters.get("teacher_forcing_ratio") != 1:
        assert outcome.report["replaced"] > 0 or outcome.report["passes"] > 0


@pytest.mark.parametrize("name", [name for name in SMALL if name != "remedies-distil"])
def test_every_remedy_has_teacher_forcing_and_more_of_it_beside(name):
    assert arms(name)[:4] == [
        "teacher_forcing", "scheduled_sampling", "more_teacher_forcing", "most_teacher_forcing"
    ]  # fmt: skip


@pytest.mark.parametrize("method", OF_ENDS)
@pytest.mark.parametrize("name", POSITIONS)
def test_what_needs_an_end_symbol_is_refused_by_name_where_there_is_none(name, method, files, tmp_path):
    more = {"compare.arms.5.method": f'{{name="{method}"}}'}
    with pytest.raises(UserError, match=f"arm soft_argmax: .*{method} lets rows end by themselves"):
        compare(name, overrides(name, files, **more), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", POSITIONS)
def test_a_word_dropout_without_a_blank_is_refused_where_there_is_no_end_symbol(name, files, tmp_path):
    index = arms(name).index("word_dropout")
    more = {f"compare.arms.{index}.method": '{name="word_dropout", teacher_forcing_ratio=0.5}'}
    with pytest.raises(UserError, match=r"arm word_dropout: .*blank=None is no id"):
        compare(name, overrides(name, files, **more), tmp_path / "out")


def test_a_mixture_through_passes_with_dropout_is_refused_before_anything_is_written(files, tmp_path):
    method = '{name="scheduled_sampling", draw="soft_argmax", teacher_forcing_ratio=0.5}'
    more = {"compare.arms.5.method": method, "compare.arms.5.label": "soft"}
    with pytest.raises(UserError, match=r"arm soft: .*needs the same function in every pass"):
        compare("remedies-translate", overrides("remedies-translate", files, **more), tmp_path / "out")
    assert not (tmp_path / "out").exists()
