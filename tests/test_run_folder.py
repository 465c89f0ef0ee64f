"""A run's folder: nothing is written without the lock, nothing of others removed, every first moment goes on."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from builders import raises, refused
from fault_damage import signed
from freerun.cli import main
from freerun.comparison.plan import check_output_dir
from freerun.comparison.run import compare
from freerun.errors import CheckpointError, OccupiedError, UserError
from freerun.recipes import load_recipe
from freerun.recipes.source import find_recipe, shipped_recipes
from freerun.recipes.train import run_recipe
from freerun.training import loop
from freerun.training import update as update_module
from freerun.training.run_folder import FolderLock, checkpoints, clear_run
from freerun.training.weights import read_model
from tiny_recipes import TINY, changed, ends, write
from training_world import OtherIds, make_task, train

GOLDEN = Path(__file__).parent / "golden"
ARMS = '\n[compare]\n[[compare.arms]]\nmethod = { name = "teacher_forcing" }\n'


def tree(folder: Path) -> dict[str, Any]:
    """Every entry of a folder: what a file holds, where a link leads."""
    return {
        str(path.relative_to(folder)): os.readlink(path) if path.is_symlink() else path.is_file() and path.read_bytes()
        for path in sorted(folder.rglob("*"))
    }


class Killed(BaseException):
    pass


def killed_at(call: int, train: Callable[[], Any]) -> None:
    """Train until the process dies at an update."""
    update, calls = update_module.update, 0

    def counted(*arguments: Any, **named: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == call:
            raise Killed
        return update(*arguments, **named)

    with pytest.MonkeyPatch().context() as patch:
        patch.setattr(loop, "update", counted)
        with pytest.raises(Killed):
            train()


@pytest.fixture
def recipe(tmp_path):
    return str(write(tmp_path))


@pytest.fixture
def started(tmp_path, recipe):
    """A run that died at its ninth update, with a checkpoint after the sixth."""
    killed_at(9, lambda: run_recipe(load_recipe(recipe), tmp_path / "run", progress=False))
    return tmp_path / "run"


@pytest.mark.parametrize("flags", [[], ["--resume"], ["--overwrite"]])
@pytest.mark.parametrize("more", [["--set", "train.lr=0.5"], []])
def test_a_second_run_in_a_folder_changes_no_byte(started, recipe, flags, more, capsys):
    with FolderLock(started):
        before = tree(started)
        code = main(["train", recipe, "--out", str(started), *flags, *more])
        assert tree(started) == before
        # the recipe is looked at first, and may be refused before the lock is tried
        assert code == (4 if flags == ["--resume"] and more else 3), capsys.readouterr().err
        raises(OccupiedError, f"process {os.getpid()} on ", train, started, resume=True)
        assert tree(started) == before


def test_a_second_comparison_changes_no_byte(tmp_path):
    out, recipe = tmp_path / "out", write(tmp_path, TINY + ARMS)
    out.mkdir()
    (out / "comparison.json").write_text('{"schema": 1, "kind": "comparison", "runs": []}')
    with FolderLock(out):
        before = tree(out)
        for flags in ({"resume": True}, {"overwrite": True}):
            raises(OccupiedError, "is training in this folder", compare, recipe, [], out, progress=False, **flags)
            assert tree(out) == before


def test_a_refused_resume_changes_no_byte(started, recipe, capsys):
    for path in checkpoints(started):
        state = json.loads((path / "state.json").read_text())
        signed(path / "state.json", json.dumps({**state, "identity": {**state["identity"], "data": "0000"}}).encode())
    before = tree(started)
    assert main(["train", recipe, "--out", str(started), "--resume", "--set", "train.keep=7"]) == 4
    assert "data: the checkpoint has 0000" in capsys.readouterr().err
    assert tree(started) == before


@pytest.mark.parametrize("content", [b"my lock", b'{"mine": 1}', b"[" * 9999])
def test_a_lock_that_no_run_wrote_stays(tmp_path, recipe, content):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "lock").write_bytes(content)
    assert main(["train", recipe, "--out", str(tmp_path / "run")]) == 3
    assert tree(tmp_path / "run") == {"lock": content}
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "run" / "lock").unlink()
    (tmp_path / "run" / "lock").symlink_to(tmp_path / "notes.txt")
    assert main(["train", recipe, "--out", str(tmp_path / "run")]) == 4
    with pytest.raises(OccupiedError, match="is no file that a run wrote"), FolderLock(tmp_path / "run"):
        pass
    assert (tmp_path / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize("flag", ["--resume", "--overwrite"])
def test_what_others_put_into_a_folder_stays(started, recipe, tmp_path, flag):
    root, mine = started / "checkpoints", tmp_path / "mine"
    mine.mkdir()
    (mine / "a").write_text("a")
    shutil.copytree(root / "step-00000006", root / "step-00000006-keep")
    shutil.copytree(root / "step-00000006", root / "best-of-mine")
    names = ("best-notes.txt", "step-1", ".writing-notes", ".probe-me", "step-00000007", "best-00000002")
    for name in names:
        (root / name).write_text(name)
    (root / "step-00000001").symlink_to(mine)
    (root / "step-00000002").symlink_to(tmp_path / "nowhere")
    (root / ".writing-step-00000003").symlink_to(mine)
    for name in ("checkpoints/step-00000000/notes.txt", "checkpoints/best-00000000/notes.txt", "model/notes.txt"):
        (started / name).parent.mkdir(exist_ok=True)
        (started / name).write_text(name)
    marks = ("keep", "mine", "notes", *names)
    kept = {
        name: content for name, content in tree(started).items()
        if (started / name).is_symlink() or any(mark in name for mark in marks)
    }  # fmt: skip
    code = main(["train", recipe, "--out", str(started), flag])
    assert code == (0 if flag == "--resume" else 3)
    clear_run(started) if flag == "--overwrite" else None
    after = tree(started)
    assert {name: after.get(name) for name in kept} == kept
    assert (mine / "a").read_text() == "a"
    if flag == "--resume":
        assert len(checkpoints(started)) == 3  # the two that are kept, and the folder of the notes


def test_files_that_a_hostile_manifest_names_stay(started):
    (started / "model" / "notes.txt").write_text("mine")
    manifest = json.loads((started / "model" / "manifest.json").read_text())
    manifest["files"]["notes.txt"] = {"bytes": 4, "sha256": "00"}
    (started / "model" / "manifest.json").write_text(json.dumps(manifest))
    clear_run(started)
    assert tree(started / "model") == {"notes.txt": b"mine"}
    (started / "model" / "manifest.json").write_text("[" * 99999)
    clear_run(started)
    assert tree(started / "model") == {"notes.txt": b"mine"}


@pytest.mark.parametrize(
    "name", ["checkpoints", "model", "metrics.jsonl", "recipe.toml", "summary.json", "tensorboard"]
)
def test_links_in_place_of_what_a_run_writes_are_refused(started, recipe, tmp_path, name, capsys):
    elsewhere = tmp_path / "elsewhere"
    if (started / name).exists():
        (started / name).rename(elsewhere)
    else:
        elsewhere.mkdir()
    (started / name).symlink_to(elsewhere)
    before = tree(started), elsewhere.is_dir() and tree(elsewhere)
    for flag in ("--resume", "--overwrite"):
        assert main(["train", recipe, "--out", str(started), flag]) == 4
        assert f"{name} is a link, which is not followed" in capsys.readouterr().err
    raises(CheckpointError, "is a link", train, started, resume=True)
    if name == "model":
        assert main(["evaluate", str(started)]) == 4
    assert before == (tree(started), elsewhere.is_dir() and tree(elsewhere))


def test_a_linked_manifest_or_weights_are_not_followed(started, tmp_path):
    for name in ("manifest.json", "model.safetensors"):
        path = started / "model" / name
        shutil.move(path, tmp_path / name)
        path.symlink_to(tmp_path / name)
        raises(CheckpointError, f"{name}.*(is a link|not a plain file)", read_model, started)
        shutil.move(tmp_path / name, path)


LEFT = [".probe-1", ".probed-77", ".writing-recipe.toml", "lock", ".writing-metrics.jsonl"]


@pytest.mark.parametrize("flags", [{}, {"resume": True}])
@pytest.mark.parametrize("left", [*[[name] for name in LEFT], [*LEFT, "metrics.jsonl"]])
def test_a_folder_left_by_a_start_that_was_killed_goes_on(tmp_path, recipe, left, flags):
    (tmp_path / "run").mkdir()
    for name in left:
        (tmp_path / "run" / name).write_text("")
    (tmp_path / "run" / "checkpoints").mkdir()
    assert run_recipe(load_recipe(recipe, ["train.updates=2"]), tmp_path / "run", progress=False, **flags)["finished"]
    assert not [path for path in tree(tmp_path / "run") if path in LEFT]


def test_a_recipe_without_a_run_is_gone_on_with_if_it_is_the_same(tmp_path, recipe):
    folder, loaded = tmp_path / "run", load_recipe(recipe, ["train.updates=2"])
    run_recipe(loaded, folder, progress=False)
    for name in ("checkpoints", "model"):
        shutil.rmtree(folder / name)
    for name in ("summary.json", "metrics.jsonl", "test-items.jsonl"):
        (folder / name).unlink()
    before = tree(folder)
    with pytest.raises(OccupiedError, match="another recipe, of a run that has not begun"):
        run_recipe(load_recipe(recipe), folder, progress=False)
    assert tree(folder) == before
    assert run_recipe(loaded, folder, progress=False)["finished"]


@pytest.mark.parametrize("flag", [[], ["--resume"], ["--overwrite"]])
def test_a_recipe_that_a_person_wrote_is_not_overwritten(tmp_path, flag):
    (tmp_path / "run").mkdir()
    mine = write(tmp_path / "run", f"# why it is so\n{TINY}", "recipe.toml")
    assert main(["train", str(mine), "--out", str(tmp_path / "run"), *flag]) == 3
    assert tree(tmp_path / "run") == {"recipe.toml": f"# why it is so\n{TINY}".encode()}


def test_a_comparison_left_by_a_start_that_was_killed_is_free(tmp_path):
    for name in (".probe-1", ".writing-comparison.json", ".writing-results.json", "lock"):
        (tmp_path / name).write_text("")
    for flags in ({"resume": True}, {"resume": False}):
        check_output_dir(tmp_path, overwrite=False, **flags)
    (tmp_path / ".writing-mine").write_text("")
    with pytest.raises(OccupiedError, match=r"no comparison made what it holds \(\.writing-mine\)"):
        check_output_dir(tmp_path, resume=True, overwrite=False)


@pytest.mark.parametrize("gone", [["checkpoints"], ["checkpoints", "metrics.jsonl"]])
def test_a_run_whose_checkpoints_are_gone_is_not_begun_anew(started, recipe, gone, capsys):
    for name in gone:
        shutil.rmtree(started / name) if (started / name).is_dir() else (started / name).unlink()
    before = tree(started)
    assert "holds no checkpoint, and " in ends(capsys, 4, "train", recipe, "--out", started, "--resume").err
    assert tree(started) == before


def test_a_run_that_made_no_update_begins_anew(started, recipe):
    shutil.rmtree(started / "checkpoints")
    lines = (started / "metrics.jsonl").read_text().splitlines(keepends=True)
    (started / "metrics.jsonl").write_text("".join(lines[:2]) + '{"event": "upd')
    assert main(["train", recipe, "--out", str(started), "--resume"]) == 0


def test_a_name_of_a_shipped_recipe_wins_over_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "copy").mkdir()
    assert find_recipe("copy") == shipped_recipes()["copy"]
    (tmp_path / "mine").mkdir()
    refused("mine is a folder", find_recipe, "mine")
    shutil.rmtree(tmp_path / "copy")
    (tmp_path / "copy").write_text(TINY)
    assert find_recipe("copy") == Path("copy")


def test_a_run_of_an_earlier_version_goes_on_and_loads(tmp_path, capsys):
    run = shutil.copytree(GOLDEN / "started", tmp_path / "run")
    assert main(["train", str(GOLDEN / "golden.toml"), "--out", str(run), "--resume"]) == 0
    expected = json.loads((GOLDEN / "finished" / "summary.json").read_text())
    summary = json.loads((run / "summary.json").read_text())
    # other processors round otherwise
    assert summary["test"]["teacher_forced"] == pytest.approx(expected["test"]["teacher_forced"], rel=1e-3)
    assert summary["updates"] == expected["updates"]
    finished = shutil.copytree(GOLDEN / "finished", tmp_path / "finished")
    capsys.readouterr()
    found = json.loads(ends(capsys, 0, "evaluate", finished).out)["teacher_forced"]["loss"]
    assert found == pytest.approx(expected["test"]["teacher_forced"]["loss"], rel=1e-3)
    assert main(["train", str(GOLDEN / "golden.toml"), "--out", str(finished), "--resume"]) == 0


def without(table: dict[str, Any], *names: str) -> dict[str, Any]:
    """What a version wrote that did not know some keys."""
    return {
        key: without(value, *names) if isinstance(value, dict) else value for key, value in table.items()
        if key not in names
    }  # fmt: skip


NEW = ("ema", "evaluate_items", "device", "length_margin", "dropout", "max_length", "stale", "changes", "processes")


def test_keys_that_an_earlier_version_did_not_have_are_their_defaults(started, tmp_path, capsys):
    recipe = str(write(tmp_path, changed("max_length = 4\n", ""), "b.toml"))
    killed_at(9, lambda: run_recipe(load_recipe(recipe), tmp_path / "old", progress=False))
    old = tmp_path / "old"
    lines = [line for line in (old / "recipe.toml").read_text().splitlines() if line.split(" ")[0] not in NEW]
    (old / "recipe.toml").write_text("\n".join(lines))
    for path in checkpoints(old):
        state = json.loads((path / "state.json").read_text())
        signed(path / "state.json", json.dumps(without(state, *NEW)).encode())
    assert main(["train", recipe, "--out", str(old), "--resume", "--set", "train.ema=0.5"]) == 4
    assert "train.ema: 0.0 there, 0.5 now" in capsys.readouterr().err
    assert main(["train", recipe, "--out", str(old), "--resume"]) == 0


@pytest.mark.parametrize("section", ["train", "recipe.evaluate", "recipe.model"])
def test_a_key_of_a_later_version_is_refused_by_name(started, recipe, section, capsys):
    for path in checkpoints(started):
        state = json.loads((path / "state.json").read_text())
        inside = state["identity"]
        for name in section.split("."):
            inside = inside[name]
        inside["momentum"] = 0.5
        signed(path / "state.json", json.dumps(state).encode())
    key = f"{section.removeprefix('recipe.')}.momentum"
    for flags in ([], ["--allow-change", "train.lr"]):
        assert main(["train", recipe, "--out", str(started), "--resume", *flags]) == 4
        assert f"this freerun does not know {key}" in capsys.readouterr().err


@pytest.mark.parametrize(
    "name", ["checkpoints/step-00000006/state.json", "checkpoints/step-00000006/manifest.json", "model/model.json"]
)
def test_a_later_format_is_refused_by_its_version(started, recipe, name, capsys):
    path = started / name
    content = json.loads(path.read_text())
    content["schema" if "model.json" in name else "format_version"] = 7
    path.write_text(json.dumps(content)) if "manifest" in name else signed(path, json.dumps(content).encode())
    command = ["evaluate", str(started)] if "model" in name else ["train", recipe, "--out", str(started), "--resume"]
    before = tree(started)
    assert "has format version 7; this freerun reads 1" in ends(capsys, 4, *command).err
    assert tree(started) == before


def test_a_changed_recipe_goes_on_where_that_is_allowed(started, recipe, capsys):
    command = ["train", recipe, "--out", str(started), "--resume"]
    other = [*command, "--set", "train.lr=0.5", "--set", "method.teacher_forcing_ratio=0.5"]
    message = ends(capsys, 4, *other).err
    assert "train.lr: 0.001 there, 0.5 now" in message
    assert "--allow-change method --allow-change train.lr" in message
    assert main([*other, "--allow-change", "train.lr"]) == 4
    assert "train.lr" not in capsys.readouterr().err.replace("--allow-change train.lr", "")
    assert main([*other, "--allow-change", "train.lrr"]) == 2
    assert "there is no such key\n  help: did you mean train.lr?" in capsys.readouterr().err
    assert main([*other, "--allow-change", "train.lr", "--allow-change", "method"]) == 0
    events = [json.loads(line) for line in (started / "metrics.jsonl").read_text().splitlines()]
    made = [event for event in events if event["event"] == "change"]
    assert {event["key"] for event in made} >= {"train.lr", "method"}
    summary = json.loads((started / "summary.json").read_text())
    assert {"step": 6, "key": "train.lr", "before": 0.001, "after": 0.5} in summary["changes"]
    assert [event["lr"] for event in events if event["event"] == "update"] == [0.001] * 6 + [0.5] * 6
    assert "lr = 0.5" in (started / "recipe.toml").read_text()


def test_a_change_is_allowed_once_however_the_run_ends(started, recipe):
    command = ["train", recipe, "--out", str(started), "--resume", "--set", "train.lr=0.5"]
    killed_at(2, lambda: main([*command, "--allow-change", "train.lr"]))
    assert main(command) == 0
    assert len(json.loads((started / "summary.json").read_text())["changes"]) == 1


@pytest.mark.parametrize(
    ("override", "key"),
    [
        ("data.dev=10", "data"),
        ("train.select=teacher_forced_loss", "train.select"),
        ("train.optimizer=sgd", "train.optimizer"),
        ("train.ema=0.9", "train.ema"),
        ("evaluate.beams=2", "evaluate.beams"),
        ("model.dropout=0.1", "model.dropout"),
        ("seed=4", "seed"),
    ],
)
def test_every_kind_of_change_can_be_made(started, recipe, override, key):
    command = ["train", recipe, "--out", str(started), "--resume", "--set", override]
    assert main(command) == 4
    assert main([*command, "--allow-change", key]) == 0
    summary = json.loads((started / "summary.json").read_text())
    assert summary["updates"] == 12
    assert any(change["key"].startswith(key) for change in summary["changes"])
    if key in ("data", "train.select", "seed", "evaluate.beams"):
        # the best of scores that mean something else is none
        assert summary["best"]["step"] >= 6


def test_scores_on_other_data_are_not_compared(tmp_path):
    folder = tmp_path / "run"
    killed_at(14, lambda: train(folder))
    raises(CheckpointError, "data: the checkpoint has", train, folder, task=make_task(seed=1), resume=True)
    summary = train(folder, task=make_task(seed=1), resume=True, allow=["data"])
    assert [change["key"] for change in summary["changes"]] == ["data"]
    assert summary["best"]["step"] >= 10


@pytest.mark.parametrize("override", ["model.size=32", "data.symbols=7"])
def test_what_cannot_be_changed_is_refused_with_leave_too(started, recipe, override, capsys):
    before = tree(started)
    allow = ["--allow-change", "model", "--allow-change", "data"]
    assert main(["train", recipe, "--out", str(started), "--resume", "--set", override, *allow]) == 4
    assert "the weights are of another model" in capsys.readouterr().err
    assert tree(started) == before


def test_another_vocabulary_of_the_same_size_is_refused_with_leave_too(tmp_path):
    killed_at(14, lambda: train(tmp_path / "run"))
    before = tree(tmp_path / "run")
    meaning, other = "ids would change their meaning", {"task": OtherIds(), "allow": ["data"]}
    raises(CheckpointError, meaning, train, tmp_path / "run", resume=True, **other)
    assert tree(tmp_path / "run") == before


def test_leave_that_has_no_effect_is_refused(started, recipe, capsys):
    other = ["train", recipe, "--out", str(started.with_name("other")), "--allow-change", "train.lr"]
    assert "--allow-change train.lr has no effect without --resume" in ends(capsys, 2, *other).err
    refused(r"there is no such key\n  help: did you mean train\.lr\?", train, started, resume=True, allow=["train.lrr"])
    assert main(["train", recipe, "--out", str(started), "--resume"]) == 0
    changed = ["--resume", "--set", "train.updates=20", "--allow-change", "train.updates"]
    assert main(["train", recipe, "--out", str(started), *changed]) == 4
    assert "the run is finished, and nothing can be changed in it" in capsys.readouterr().err


def test_settings_that_change_no_number_need_no_leave(started, recipe):
    free = ["train.keep=5", "train.save_every=3", "evaluate.batch_size=7", "name=other"]
    sets = [part for text in free for part in ("--set", text)]
    assert main(["train", recipe, "--out", str(started), "--resume", *sets]) == 0
    assert "changes" not in json.loads((started / "summary.json").read_text())


def test_files_that_only_have_the_names_of_a_runs_are_never_replaced(tmp_path):
    for name, text in (("metrics.jsonl", "mine\n"), ("summary.json", '{"mine": 1}'), ("test-items.jsonl", "mine\n")):
        folder = tmp_path / name
        folder.mkdir()
        (folder / name).write_text(text, encoding="utf-8")
        for flags in ([], ["--overwrite"]):
            assert main(["train", str(write(tmp_path)), "--out", str(folder), *flags]) == 3
        assert (folder / name).read_text("utf-8") == text


def test_a_note_in_a_checkpoint_does_not_stop_the_run_that_overwrites_it(tmp_path):
    command = ["train", str(write(tmp_path)), "--out", str(tmp_path / "run")]
    assert main(command) == 0
    (note,) = [path / "notes.txt" for path in (tmp_path / "run" / "checkpoints").glob("step-*")][-1:]
    note.write_text("mine", encoding="utf-8")
    assert main([*command, "--overwrite"]) == 0
    assert note.read_text("utf-8") == "mine"
    assert (tmp_path / "run" / "summary.json").exists()


def test_updates_that_are_allowed_bring_their_schedule_with_them(started, recipe, capsys):
    more = ["train", recipe, "--out", str(started), "--resume", "--set", "train.updates=20"]
    refusal = ends(capsys, 4, *more).err
    assert refusal.count("error:") == 1
    assert "train.updates: 12 there, 20 now" in refusal
    assert main([*more, "--allow-change", "train.updates"]) == 0
    assert json.loads((started / "summary.json").read_text())["updates"] == 20


def test_a_method_that_is_another_is_not_allowed_with_the_updates(started, recipe):
    other = ["--set", "train.updates=20", "--set", "method.gate=step", "--allow-change", "train.updates"]
    assert main(["train", recipe, "--out", str(started), "--resume", *other]) == 4


def test_fewer_updates_than_were_made_are_refused(started, recipe, capsys):
    fewer = ["--resume", "--set", "train.updates=3", "--set", "train.warmup=0", "--allow-change", "train.updates"]
    before = json.loads((started / "checkpoints" / "step-00000006" / "state.json").read_text())
    assert main(["train", recipe, "--out", str(started), *fewer, "--allow-change", "train.warmup"]) == 4
    assert "6 were made already" in capsys.readouterr().err
    assert json.loads((started / "checkpoints" / "step-00000006" / "state.json").read_text()) == before


@pytest.mark.parametrize("lost", ["model", "model/model.json", "model/model.safetensors", "model/manifest.json"])
def test_what_a_finished_run_has_lost_of_its_model_is_written_again(tmp_path, recipe, lost, capsys):
    folder = tmp_path / "run"
    command = ["train", recipe, "--out", str(folder)]
    assert main(command) == 0
    weights, scores = (folder / "model" / "model.safetensors").read_bytes(), (folder / "test-items.jsonl").read_bytes()
    path = folder / lost
    shutil.rmtree(path) if path.is_dir() else path.write_bytes(b"{}")
    if lost == "model":
        assert "train --resume writes it again" in ends(capsys, 4, "evaluate", folder).err
    assert main([*command, "--resume"]) == 0
    assert (folder / "model" / "model.safetensors").read_bytes() == weights
    assert (folder / "test-items.jsonl").read_bytes() == scores
    assert main(["evaluate", str(folder)]) == 0


def test_a_finished_run_without_its_recipe_is_not_gone_on_with(tmp_path, recipe):
    command = ["train", recipe, "--out", str(tmp_path / "run")]
    assert main(command) == 0
    (tmp_path / "run" / "recipe.toml").unlink()
    assert main([*command, "--resume", "--set", "train.lr=0.5"]) == 4


@pytest.mark.parametrize("how", ["page", "json", "link", "folder"])
def test_a_diagnosis_replaces_nothing_that_is_none(tmp_path, recipe, how):
    run, out, mine = tmp_path / "run", tmp_path / "out", tmp_path / "mine.html"
    assert main(["train", recipe, "--out", str(run)]) == 0
    out.mkdir()
    mine.write_text("mine", encoding="utf-8")
    if how == "folder":
        (out / "diagnosis.html").mkdir()
    elif how == "link":
        (out / "diagnosis.html").symlink_to(mine)
    else:
        (out / f"diagnosis.{'html' if how == 'page' else how}").write_text('{"mine": 1}', encoding="utf-8")
    before = sorted((path.name, path.is_symlink(), path.is_dir()) for path in out.iterdir())
    assert main(["diagnose", str(run), "--out", str(out), "--overwrite"]) == 3
    assert sorted((path.name, path.is_symlink(), path.is_dir()) for path in out.iterdir()) == before
    assert mine.read_text("utf-8") == "mine"


def test_a_key_of_an_earlier_version_is_answered_with_its_new_name(tmp_path):
    with pytest.raises(UserError, match=r"unknown key `longest` in \[data\]\n  help: `longest` is now `max_length`"):
        load_recipe(write(tmp_path, changed("max_length = 4\n", "longest = 4\n")))
    with pytest.raises(UserError, match=r"unknown key `evaluate_words` in .train.\n  help: .* is now `evaluate_items`"):
        load_recipe(write(tmp_path), ["train.evaluate_words=4"])
