"""Recipes: places, overrides, round trips, what is built from them, and the folder a run goes to."""

import json
import shutil
import sys
import tomllib

import pytest
import tomli_w
import torch

import freerun as fr
from builders import raises, refused
from freerun.errors import CheckpointError, OccupiedError
from freerun.recipes import load_recipe, recipe_table
from freerun.recipes.fields import measured
from freerun.recipes.load import evaluate_run, generate_lines, load_run, trial_batch
from freerun.recipes.source import key_places, shipped_recipes
from freerun.recipes.train import build, direction, header, run_recipe, selection_note
from freerun.schedules import Table
from freerun.training.run_folder import check_folder, clear_run, events, probe
from tiny_recipes import TINY, TOY, changed, write

NEEDS_PATH = (
    "char-lm",
    "etth1",
    "exchange",
    "finetune-pairs",
    "finetune-completions",
    "g2p-cmudict",
    "g2p-cmudict-deep",
    "g2p-sigmorphon",
    "many-series",
    "remedies-translate",
    "remedies-distil",
    "remedies-words",
    "translate",
)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "tiny"
    recipe = load_recipe(write(folder.parent))
    summary = run_recipe(recipe, folder, progress=False)
    return folder, recipe, summary


def test_lines_of_every_kind_of_key():
    text = (
        "# comment = 1\n"
        'a.b = "x # y"\n'
        "list = [\n  1, # one\n  { k = [2] },\n]\n"
        '"quoted key" = """\nfalse = 1\n"""\n'
        "[t]\nm = { n = { o = 1 }, p = 'q = 3' }\n"
        "[[t.arms]]\nlabel = 1\n[[t.arms]]\nlabel = 2\n[t.arms.method]\nname = 3\n"
    )
    tomllib.loads(text)
    places = key_places(text)
    expected = {
        ("a",): 2, ("a", "b"): 2, ("list",): 3, ("list", 0): 4, ("list", 1): 5, ("list", 1, "k"): 5,
        ("quoted key",): 7, ("t",): 10, ("t", "m"): 11, ("t", "m", "n", "o"): 11, ("t", "m", "p"): 11,
        ("t", "arms", 0, "label"): 13, ("t", "arms", 1, "label"): 15, ("t", "arms", 1, "method", "name"): 17,
    }  # fmt: skip
    assert {path: places.line(path) for path in expected} == expected
    assert places.line(("t", "arms", 1, "lable")) == 14
    assert places.twice == []
    for broken in ("[", "=", "a", "a = [", 'a = "x', "a = {", "[[a", "a = [1 2", "a = {b = }", "\\", "a.=1"):
        for more in ("", "\nb = 1\n"):
            key_places(broken + more)  # ends


@pytest.mark.parametrize("name", NEEDS_PATH)
def test_recipes_that_need_a_path_are_refused_without_one(name):
    assert len(refused(r"`path` is missing: .*\n.*--set data\.path=(FOLDER|FILE)", load_recipe, name)) == 1


@pytest.mark.parametrize("name", shipped_recipes())
def test_every_line_of_a_shipped_recipe_is_explained(name):
    lines = shipped_recipes()[name].read_text(encoding="utf-8").splitlines()
    for before, line in zip(["", *lines], lines, strict=False):
        explained = "#" in line or before.startswith("#") or "[[compare.arms]]" in before
        assert explained or "=" not in line or line.startswith("method ="), line


@pytest.mark.parametrize("name", shipped_recipes())
def test_a_shipped_recipe_is_valid_and_reads_back_equal(name, tmp_path):
    recipe = load_recipe(name, ["data.path=x"] if name in NEEDS_PATH else [])
    assert recipe.name == name
    assert recipe.data.path == "x" if name in NEEDS_PATH else True
    again = load_recipe(write(tmp_path, tomli_w.dumps(recipe_table(recipe))))
    assert again == recipe
    assert recipe_table(again) == recipe_table(recipe)
    # of the shipped ones a text alone is selected by a score that exposure bias cannot move
    assert bool(selection_note(recipe)) == (recipe.data.kind == "text")


def test_overrides(tmp_path):
    path = write(tmp_path)
    recipe = load_recipe(
        path,
        ["train.lr=3e-3", "seed=7", "name=other", "model.cell=gru", "train.bucket=false", "model.attention=none",
         "method.teacher_forcing_ratio.end=0.25", "train.updates=20", "train.updates=30", "train.patience=3"],
    )  # fmt: skip
    again = load_recipe(write(tmp_path, tomli_w.dumps(recipe_table(recipe)), "again.toml"))
    for each in (recipe, again):
        assert (each.train.lr, each.train.seed, each.seed, each.name) == (3e-3, 7, 7, "other")
        assert (each.model.cell, each.train.bucket, each.train.updates) == ("gru", False, 30)
        assert (each.model.attention, each.train.patience) == (None, 3)
        assert each.method.parameters["teacher_forcing_ratio"]["end"] == 0.25
    assert load_recipe(path, ["method=teacher_forcing"]).method.name == "teacher_forcing"
    other = load_recipe(path, ['method={name="token_noise", rate=0.1}'])
    assert other.method.table() == {"name": "token_noise", "rate": 0.1}
    arms = load_recipe("g2p-demo", ["compare.arms.1.label=sampled", "compare.arms.2.method.rate=0.1"]).compare.arms
    assert [arm.label for arm in arms] == ["teacher_forcing", "sampled", "matched_noise"]


def test_a_schedule_without_steps_takes_all_updates(tmp_path):
    method = build(load_recipe(write(tmp_path)))[2]
    assert repr(method) == "scheduled_sampling(teacher_forcing_ratio=linear(start=1.0, end=0.5, steps=12))"
    nested = '{schedule="linear", unit="sample", start=1.0, end=0.5}'
    method = build(load_recipe(write(tmp_path), [f"method.teacher_forcing_ratio={nested}"]))[2]
    assert method.teacher_forcing_ratio.steps == 12 * 32


def test_draws_gates_and_joins(tmp_path):
    overrides = [
        'method.draw={draw="sample", temperature=0.5, top_k=2}',
        'method.gate={gate="prefix"}',
        'method.teacher_forcing_ratio={schedule="join", boundaries=[6], schedules='
        '[{schedule="constant", value=1.0}, {schedule="linear", start=1.0, end=0.5, steps=6}]}',
    ]
    method = build(load_recipe(write(tmp_path), overrides))[2]
    assert "draw=sample(temperature=0.5, top_k=2)" in repr(method)
    assert "Prefix()" in repr(method)
    assert [method.teacher_forcing_ratio(step) for step in (0, 6, 9, 12)] == [1.0, 1.0, 0.75, 0.5]


@pytest.mark.parametrize("method", ["teacher_forcing", "scheduled_sampling"])
def test_label_smoothing_is_a_setting_of_the_objective(tmp_path, method):
    written = ["method.objective={objective='cross_entropy', label_smoothing=0.1}", f"method.name={method}"]
    without = "".join(line for line in TINY.splitlines(True) if "teacher_forcing_ratio" not in line)
    ratio = ["method.teacher_forcing_ratio=0.5"] if method == "scheduled_sampling" else []
    built = build(load_recipe(write(tmp_path, without), [*written, *ratio]))[2]
    assert built.objective == fr.objectives.cross_entropy(label_smoothing=0.1)


def test_a_seed_fixes_the_weights_that_arms_begin_with(tmp_path):
    path, changes = write(tmp_path), ([], ["method=teacher_forcing"], ["seed=4"])
    one, same, other = (build(load_recipe(path, overrides))[0].state_dict() for overrides in changes)
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not all(torch.equal(one[name], other[name]) for name in one)


def test_unigram_noise_takes_the_training_counts(tmp_path):
    recipe = load_recipe(write(tmp_path), ['method={name="token_noise", noise="unigram", rate=0.2}'])
    _, task, method, _ = build(recipe)
    flat = [symbol for _, target in task.data.examples for symbol in [*target, 0]]
    assert method.frequencies == tuple(float(flat.count(symbol)) for symbol in range(7))


def test_measured_rate_is_disagreeing_over_eligible(run, tmp_path):
    folder, _, _ = run
    rate = measured(folder / "metrics.jsonl")
    updates = [event for event in events(folder) if event["event"] == "update"]
    assert rate == Table(values=tuple(event["disagreeing"] / event["eligible"] for event in updates))
    assert len(rate.values) == 12
    assert max(rate.values) > 0
    setting = f'method={{name="token_noise", rate={{measured="{folder}/metrics.jsonl"}}}}'
    assert build(load_recipe(write(tmp_path), [setting]))[2].rate == rate
    path = tmp_path / "metrics.jsonl"
    for text in ("", "not json\n", '{"event": "update", "step": 1, "disagreeing": 1, "eligible": 2}\n'):
        path.write_text(text)
        raises(ValueError, r"metrics\.jsonl", measured, path)


def test_a_run_leaves_its_recipe_and_summary_and_its_header_counts(run):
    folder, recipe, summary = run
    assert load_recipe(folder / "recipe.toml") == recipe
    assert summary == json.loads((folder / "summary.json").read_text())
    assert summary["seed"] == 3
    model, task, method, _ = build(recipe)
    text = "\n".join(header(recipe, task.header(), method, model, folder))
    assert "train: 200 words" in text
    assert "linear(start=1.0, end=0.5, steps=12)" in text
    assert f"{sum(p.numel() for p in model.parameters()):,} parameters" in text
    assert str(folder) in text


DIRECTIONS = [
    ('{name="scheduled_sampling", teacher_forcing_ratio={schedule="linear", start=0.0, end=1.0}}', "rises from 0 to"),
    ('{name="scheduled_sampling", teacher_forcing_ratio={schedule="linear", start=1.0, end=0.5}}', "falls from 1 to"),
    ('{name="scheduled_sampling", teacher_forcing_ratio=0.5}', "stays at 0.5"),
]


@pytest.mark.parametrize(("method", "words"), DIRECTIONS)
def test_directions_in_words(tmp_path, method, words):
    assert words in direction(build(load_recipe(write(tmp_path), [f"method={method}"]))[2], 12)
    assert direction(build(load_recipe(write(tmp_path), ["method=teacher_forcing"]))[2], 12) == ""


def test_every_score_can_be_selected_by(run, tmp_path):
    test = run[2]["test"]
    assert {side: set(scores) for side, scores in test.items()} == {
        "teacher_forced": {"loss", "token_accuracy", "sequence_accuracy", "per", "wer"},
        "free_running": {"per", "wer", "sequence_accuracy"},
    }
    for side, scores in test.items():
        for name in scores:
            assert load_recipe(write(tmp_path), [f"train.select={side}_{name}"])
    assert load_recipe(write(tmp_path), ["train.select=wer"])


@pytest.mark.parametrize(
    ("sets", "noted"),
    [
        ([], False),
        (["train.select=wer"], True),
        (["train.select=sequence_accuracy"], True),
        (["train.select=teacher_forced_per"], True),
        (["train.select=wer", "evaluate.beams=4"], False),  # a beam's best need not be each choice's best
        (["train.select=teacher_forced_loss", "evaluate.beams=4"], True),
    ],
)
def test_a_note_warns_where_exposure_bias_cannot_move_the_selected_score(tmp_path, sets, noted):
    notes = selection_note(load_recipe(write(tmp_path), sets))
    assert len(notes) == noted
    assert all("exposure bias cannot move this score" in note and note.endswith("it can move per") for note in notes)


def test_a_used_folder_is_refused(run, tmp_path):
    folder, recipe, summary = run
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    raises(OccupiedError, r"holds a finished run\n  help: --overwrite", run_recipe, recipe, folder, progress=False)
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before
    assert run_recipe(recipe, folder, resume=True, progress=False) == summary
    (tmp_path / "notes.txt").write_text("mine")
    unknown = r"no run wrote what it holds \(notes\.txt\)"
    for flags in ({}, {"resume": True}, {"overwrite": True}):
        raises(OccupiedError, unknown, run_recipe, recipe, tmp_path, progress=False, **flags)
    raises(OccupiedError, "is a file", check_folder, tmp_path / "notes.txt", resume=False, overwrite=False)
    refused("give one of them", check_folder, folder, resume=True, overwrite=True)
    refused("cannot be written", probe, tmp_path / "notes.txt" / "run")


def test_overwrite_removes_what_a_run_writes_and_nothing_else(tmp_path):
    own = ["recipe.toml", "metrics.jsonl", "summary.json", "test-items.jsonl", "model/model.json"]
    own += ["checkpoints/step-00000006/state.json", "checkpoints/step-00000006/manifest.json"]
    own += ["checkpoints/best-00000006/model.safetensors"]
    other = {"notes.txt", "checkpoints/mine/a", "checkpoints/best-00000007/notes.txt", "model/own.bin", "plots/a"}
    for name in (*own, *other):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("x")
    clear_run(tmp_path)
    assert {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()} == other
    shutil.rmtree(tmp_path / "checkpoints/best-00000007")
    (tmp_path / "metrics.jsonl").write_text('{"event": "header"}\n')
    unknown = r"checkpoints holds what no run wrote \(mine\)"
    raises(OccupiedError, unknown, check_folder, tmp_path, resume=False, overwrite=True)


def test_nothing_is_removed_before_the_data_are_read(run, tmp_path):
    recipe, out = load_recipe(write(tmp_path)), shutil.copytree(run[0], tmp_path / "out")
    pairs = changed(TOY, f'kind = "pairs"\npath = "{tmp_path}/none"\n')
    refused("none", run_recipe, load_recipe(write(tmp_path, pairs)), out, overwrite=True, progress=False)
    assert (out / "summary.json").exists()
    assert run_recipe(recipe, out, overwrite=True, progress=False)["updates"] == 12


CANNOT_START = [
    ("train.lr=0.1", "out/../out", "cannot begin with the weights of the folder it is written to"),
    ("model.size=8", "other", "the weights are of another model"),
    ("train.amp=bf16", None, "no bf16 LSTM"),
    ("train.tensorboard=true", None, r"pip install 'freerun\[tensorboard\]'"),
]


@pytest.mark.parametrize(("override", "begins", "message"), CANNOT_START)
def test_nothing_is_removed_before_the_new_run_can_start(run, tmp_path, monkeypatch, override, begins, message):
    def missing(*_):
        raise RuntimeError("could not create a primitive descriptor")

    out = shutil.copytree(run[0], tmp_path / "out")
    shutil.copytree(run[0], tmp_path / "other")
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard.writer", None)
    monkeypatch.setattr(torch.nn.LSTM, "forward", missing)
    recipe = load_recipe(write(tmp_path), [override])
    refused(message, run_recipe, recipe, out, overwrite=True, init=begins and tmp_path / begins, progress=False)
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == before


def test_a_loaded_run_answers_and_scores_as_it_did(run):
    folder, _, summary = run
    loaded = load_run(folder)
    assert not loaded.model.training
    assert len(generate_lines(loaded, ["ab", "fed"])) == 2
    found = evaluate_run(loaded)
    assert found["words"] == 20
    for side in ("teacher_forced", "free_running"):
        assert found[side] == pytest.approx(summary["test"][side])
    batch = trial_batch(loaded)
    assert loaded.model(batch).shape == (*batch.targets.shape, 7)
    unknown = refused("", generate_lines, loaded, ["ab", "xb", "a-"], names=["w:1", "w:3", "w:4"])
    assert [problem.split(": ")[0] for problem in unknown] == ["w:3", "w:4"]


def test_a_moved_run_goes_on(run, tmp_path):
    for copy in (tmp_path / "first", tmp_path / "second"):
        copy.mkdir()
        shutil.copy(run[0] / "metrics.jsonl", copy)
        rate = f'{{measured="{copy}/metrics.jsonl"}}'
        recipe = load_recipe(write(tmp_path), [f'method={{name="token_noise", rate={rate}}}'])
        summary = run_recipe(recipe, tmp_path / "noise", resume=True, progress=False)
        (tmp_path / "noise" / "summary.json").unlink()
    assert "rate=table(n=12" in summary["signature"]


def test_init_begins_with_another_runs_weights(run, tmp_path):
    folder, _, _ = run
    recipe = load_recipe(write(tmp_path), ["train.updates=1", "train.lr=1e-9", "method=teacher_forcing"])
    run_recipe(recipe, tmp_path / "warm", init=folder, progress=False)
    old, new = (load_run(each).model.state_dict() for each in (folder, tmp_path / "warm"))
    assert all(torch.allclose(old[name], new[name], atol=1e-6) for name in old)
    missing = r"no model/model\.json"
    raises(CheckpointError, missing, run_recipe, recipe, tmp_path / "cold", init=tmp_path, progress=False)
    assert not (tmp_path / "cold").exists()


def test_folders_that_are_no_run(run, tmp_path):
    folder, _, _ = run
    raises(CheckpointError, r"no model/model\.json in .*\n  help: runs near it: .*tiny", load_run, folder.parent)
    raises(CheckpointError, "there is no such folder", load_run, tmp_path / "none")
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "model.json").write_text("{}")
    raises(CheckpointError, "", load_run, tmp_path)
