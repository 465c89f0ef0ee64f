"""Files of a run that came from elsewhere: whatever is in them, they are refused by name, and cost little."""

import errno
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from functools import reduce
from operator import getitem
from pathlib import Path
from typing import Any

import pytest
import torch

from builders import raises
from fault_damage import signed
from freerun.cli import main
from freerun.comparison.plan import check_output_dir
from freerun.comparison.results import read
from freerun.errors import CheckpointError, ResourceError
from freerun.training import fit
from freerun.training.files import LARGEST, parse, write_folder
from freerun.training.log import Metrics
from freerun.training.run_folder import checkpoints, finished_summary
from freerun.training.weights import load_weights, pack, read_model, unpack
from test_run_folder import killed_at, tree
from tiny_recipes import TINY, ends, write
from training_world import SMALL, Wrapped, make_method, make_model, make_task, train


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    assert main(["train", str(write(folder, TINY)), "--out", str(folder / "run")]) == 0
    return folder


@pytest.fixture
def world(whole, tmp_path):
    return shutil.copytree(whole, tmp_path / "world")


def resumed(world: Path) -> int:
    (world / "run" / "summary.json").unlink(missing_ok=True)
    return main(["train", str(world / "tiny.toml"), "--out", str(world / "run"), "--resume"])


def test_half_a_character_is_refused_and_a_whole_one_is_not():
    assert parse(b'{"a": "\\ud83d\\ude00"}', dict[str, str], "x.json") == {"a": "\U0001f600"}
    raises(CheckpointError, r"x\.json is damaged", parse, b'{"a": "\\ud83d"}', dict[str, str], "x.json")


TEXTS = [
    b"", b"[]", b'"x"', b"null", b"{}", b"NaN", b"1e999", b"9" * 5000, b"[" * 100_000, b'{"a":' * 100_000, b"\xff",
    b'{"a": 1, "a": 2}', b"[" * 65 + b"]" * 65, b"[" + b"[]," * 300_000 + b"1]", b" " * (LARGEST + 1),
]  # fmt: skip


@pytest.mark.parametrize("text", TEXTS, ids=lambda text: repr(text[:12]))
def test_json_that_is_none_of_ours_is_exit_4_with_the_files_name(world, text, capsys):
    run = world / "run"
    step = run / "checkpoints" / "step-00000012"
    shutil.rmtree(run / "checkpoints" / "step-00000006")
    cases: list[tuple[Path, Callable[[], int]]] = [
        (run / "summary.json", lambda: main(["train", str(world / "tiny.toml"), "--out", str(run), "--resume"])),
        (run / "summary.json", lambda: main(["evaluate", str(run)])),
        (step / "state.json", lambda: resumed(world)),
        (step / "manifest.json", lambda: resumed(world)),
        (run / "model" / "model.json", lambda: main(["evaluate", str(run)])),
        (run / "model" / "manifest.json", lambda: main(["generate", str(run), "--input", str(world / "tiny.toml")])),
    ]
    for path, command in cases:
        before = {each: each.read_bytes() for each in (path, path.with_name("manifest.json")) if each.exists()}
        signed(path, text) if path.name != "manifest.json" else path.write_bytes(text)
        capsys.readouterr()
        assert command() == 4, path
        assert path.name in capsys.readouterr().err
        for each, content in before.items():
            each.write_bytes(content)
    (run / "comparison.json").write_bytes(text)
    raises(CheckpointError, r"comparison\.json", check_output_dir, run, resume=True, overwrite=False)
    (run / "results.json").write_bytes(text)
    raises(CheckpointError, r"results\.json", read, run)


WRONG_FIELDS = {
    "tally.step": ["x", -3, 12.0, True, 10**30],
    "tally.best_step": [[3]],
    "tally.best_dev": ["x"],
    "tally.seconds": [None],
    "tally.changes": [[1]],
    "identity": [[]],
    "identity.train": ["x"],
    "identity.recipe": [None],
    "identity.data": [3],
    "identity.init": [3],
    "identity.code": [["x"], {"cost": 3}],
    "metrics_bytes": [-1],
    "processes": ["two"],
    "format_version": ["1"],
}


@pytest.mark.parametrize(
    ("place", "value"), [(name, value) for name, values in WRONG_FIELDS.items() for value in values]
)
def test_a_field_of_another_type_is_named(world, place, value, capsys):
    for path in checkpoints(world / "run"):
        state = json.loads((path / "state.json").read_text())
        *above, last = place.split(".")
        reduce(getitem, above, state)[last] = value
        signed(path / "state.json", json.dumps(state).encode())
    assert resumed(world) == 4
    assert re.search(rf"state\.json is damaged: {re.escape(place)}\S* must be", capsys.readouterr().err)


def test_what_is_no_summary_is_no_finished_run(tmp_path):
    for content in ({}, {"finished": False}, {"finished": 1}, {"finished": True}):
        (tmp_path / "summary.json").write_text(json.dumps(content))
        with pytest.raises(CheckpointError, match=r"summary\.json is damaged: (finished|method) (is missing|must be)"):
            finished_summary(tmp_path)


def test_lines_that_are_no_events_are_named(world, capsys):
    run = world / "run"
    shutil.rmtree(run / "checkpoints")
    for line in (b'{"event": 3}\n', b"[1]\n", b'{"event": "update", "step": -1}\n', b"x" * (LARGEST + 2) + b"\n"):
        (run / "metrics.jsonl").write_bytes(b'{"event": "header"}\n' + line)
        assert resumed(world) == 4
        assert "metrics.jsonl:2 is damaged" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "value"),
    [("size", 10**12), ("size", "x"), ("layers", 10**9), ("size", -4), ("cell", "abc"), ("more", 1), ("size", 32)],
)
def test_a_described_model_that_does_not_fit_is_not_built(world, name, value, capsys):
    path = world / "run" / "model" / "model.json"
    info = json.loads(path.read_text())
    info["settings"][name] = value
    signed(path, json.dumps(info).encode())
    assert "model" in ends(capsys, 4, "evaluate", world / "run").err


MEASURED = """
import resource, sys
import safetensors.torch, torch
import freerun.recipes.load, freerun.recipes.train
from freerun.cli import main
torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))]).zero_grad()
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
code = main(sys.argv[1:])
print(code, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""


@pytest.mark.parametrize(
    "size",
    [3 * 2**30, pytest.param(2 * 2**40, marks=pytest.mark.slow(reason="four more starts: beyond the disk, too"))],
)
@pytest.mark.parametrize("name", ["optimizer.safetensors", "model.safetensors", "best", "model"])
def test_a_file_larger_than_the_model_needs_is_refused_before_it_is_read(world, name, size):
    run = world / "run"
    (run / "summary.json").unlink()
    best = json.loads((run / "checkpoints" / "step-00000012" / "state.json").read_text())["tally"]["best_step"]
    places = {"best": f"checkpoints/best-{best:08d}/model.safetensors", "model": "model/model.safetensors"}
    grow(run / places.get(name, f"checkpoints/step-00000012/{name}"), size)
    train = ["train", str(world / "tiny.toml"), "--out", str(run), "--resume"]
    command = ["evaluate", str(run)] if name == "model" else train
    if name == "best":  # the checkpoint before may speak of another one
        shutil.rmtree(run / "checkpoints" / "step-00000006")
    program = [sys.executable, "-c", MEASURED, *command]
    done = subprocess.run(program, capture_output=True, text=True, check=False, timeout=120)
    code, megabytes = map(int, done.stdout.split()[-2:])
    assert megabytes < 100
    if "optimizer" in name or name == "model.safetensors":
        assert code == 0, done.stderr
        assert "resuming from step-00000006; skipped step-00000012" in done.stderr
    else:
        assert code == 4, done.stderr
        assert "the weights are of another model" in done.stderr


def grow(path: Path, size: int) -> None:
    """A file with a hole of that size, as its manifest declares; its header says that there are so many numbers."""
    header = json.dumps({"a": {"dtype": "U8", "shape": [size], "data_offsets": [0, size]}}).encode()
    with path.open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        file.truncate(8 + len(header) + size)
    manifest = path.with_name("manifest.json")
    entries = json.loads(manifest.read_text())
    entries["files"][path.name] = {"bytes": path.stat().st_size, "sha256": "00"}
    manifest.write_text(json.dumps(entries))


def test_a_file_of_another_length_than_its_header_says_is_refused(world):
    path = world / "run" / "model" / "model.safetensors"
    content = path.read_bytes()
    for damaged in (content + b"\0", content[:-4], bytes(8) + content[8:], b"\xff" * 8 + content[8:], b"", b"1234"):
        signed(path, damaged)
        raises(CheckpointError, r"model\.safetensors", read_model, world / "run")


def test_numbers_of_another_type_are_not_taken(tmp_path):
    model = make_model(make_task())
    weights = unpack(pack({name: weight.detach() for name, weight in model.named_parameters()}))
    for dtype in (torch.float16, torch.bfloat16, torch.float64, torch.int32, torch.complex64):
        other = {name: weight.to(dtype) for name, weight in weights.items()}
        raises(CheckpointError, r"holds \w+ numbers; this model's are F32", load_weights, model, other, "here")
    load_weights(model, {name: weight.double() for name, weight in weights.items()}, "here", cast=True)
    assert all(torch.equal(weight, weights[name]) for name, weight in model.named_parameters())


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.safetensors", "ema.safetensors", "best"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.int32])
def test_a_checkpoint_of_other_numbers_is_skipped(tmp_path, name, dtype):
    killed_at(12, lambda: train(tmp_path / "run"))
    path = tmp_path / "run" / "checkpoints" / "step-00000010" / name
    if name == "best":
        best = json.loads((path.parent / "state.json").read_text())["tally"]["best_step"]
        path = path.parent.with_name(f"best-{best:08d}") / "model.safetensors"
        shutil.rmtree(tmp_path / "run" / "checkpoints" / "step-00000005")
    signed(path, pack({key: tensor.to(dtype) for key, tensor in unpack(path.read_bytes()).items()}))
    if name == "best":
        raises(CheckpointError, r"holds \w+ numbers; this model's are F32", train, tmp_path / "run", resume=True)
    else:
        with pytest.warns(UserWarning, match=r"skipped step-00000010: .*holds \w+ numbers"):
            train(tmp_path / "run", resume=True)


def test_an_optimizers_memory_of_another_form_is_skipped(tmp_path):
    killed_at(12, lambda: train(tmp_path / "run"))
    path = tmp_path / "run" / "checkpoints" / "step-00000010" / "optimizer.safetensors"
    tensors = unpack(path.read_bytes())
    first = next(name for name in tensors if name.endswith("|exp_avg"))
    cases = [
        {name: tensor for name, tensor in tensors.items() if name != first},
        {**tensors, "x": torch.zeros(1)},
        {**tensors, first: torch.zeros(1)},
        {**tensors, first.replace("exp_avg", "momentum_buffer"): tensors[first].clone()},
    ]
    for case in cases:
        shutil.copytree(tmp_path / "run", tmp_path / "copy")
        signed(tmp_path / "copy" / path.relative_to(tmp_path / "run"), pack(case))
        with pytest.warns(UserWarning, match=r"skipped step-00000010: .*optimizer\.safetensors"):
            train(tmp_path / "copy", resume=True)
        shutil.rmtree(tmp_path / "copy")


def test_a_checkpoints_content_is_of_its_name(tmp_path):
    killed_at(18, lambda: train(tmp_path / "run"))
    root = tmp_path / "run" / "checkpoints"
    steps, bests = [sorted(path.name for path in root.glob(kind)) for kind in ("step-*", "best-*")]
    shutil.copytree(root / steps[-1], root / "step-00000020")
    with pytest.warns(UserWarning, match="skipped step-00000020: .*holds what was written as step-00000015"):
        killed_at(1, lambda: train(tmp_path / "run", resume=True))
    # as an earlier version wrote it, without the name
    manifest = json.loads((root / "step-00000020" / "manifest.json").read_text())
    manifest.pop("name")
    (root / "step-00000020" / "manifest.json").write_text(json.dumps(manifest))
    unnamed = "skipped step-00000020: .*is of step 15, and its folder is named step-00000020"
    with pytest.warns(UserWarning, match=unnamed):
        killed_at(1, lambda: train(tmp_path / "run", resume=True))
    shutil.rmtree(root / "step-00000020")
    for path in root.glob("best-*"):
        shutil.rmtree(path)
    write_folder(root / "best-00000001", {"model.safetensors": b""})
    for name in bests:
        shutil.copytree(root / "best-00000001", root / name)
    raises(CheckpointError, "holds what was written as best-00000001", train, tmp_path / "run", resume=True)


class Disk:
    """A file on a disk that is full after so many bytes."""

    def __init__(self, file: Any, room: int) -> None:
        self.file, self.room = file, room

    def __getattr__(self, name: str) -> Any:
        return getattr(self.file, name)

    def write(self, content: bytes) -> int:
        taken = content[: self.room]
        self.room -= len(taken)
        if not taken:
            raise OSError(errno.ENOSPC, "No space left on device")
        return self.file.write(taken)


def test_a_full_disk_leaves_no_half_line_and_is_said_first(tmp_path):
    metrics = Metrics(tmp_path / "metrics.jsonl")
    metrics.write({"step": 0})
    metrics._file = Disk(metrics._file, 7)  # type: ignore[assignment]
    with pytest.raises(ResourceError, match=r"metrics\.jsonl: no space left .* 12 bytes are needed, [\d,]+ are free"):
        metrics.write({"step": 1})
    metrics.close()
    assert (tmp_path / "metrics.jsonl").read_text() == '{"step": 0}\n'


def test_a_disk_that_the_checkpoints_cannot_fit_on_is_refused_before_the_first_update(tmp_path, monkeypatch, whole):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=50_000))
    with pytest.raises(ResourceError, match=r"needs about [\d,]+ bytes \(3 checkpoints of [\d,]+, .* 50,000 are free"):
        fit(make_model(make_task(), size=64), make_task(), make_method(), SMALL, tmp_path / "run", progress=False)
    assert not list((tmp_path / "run").iterdir())
    # what a run to be removed takes counts as free, and is still there where that is not enough
    run = shutil.copytree(whole / "run", tmp_path / "old")
    before = tree(run)
    assert main(["train", str(whole / "tiny.toml"), "--out", str(run), "--overwrite", "--set", "model.size=64"]) == 5
    assert tree(run) == before


@pytest.mark.parametrize("moved", [True, False])
def test_a_folder_that_is_removed_while_the_run_goes_on_ends_it(tmp_path, moved):
    folder = tmp_path / "run"

    def gone(call: int, _batch: Any) -> None:
        if call == 26:
            folder.rename(tmp_path / "elsewhere") if moved else shutil.rmtree(folder)

    raises(
        CheckpointError, r"metrics\.jsonl is gone: it was removed or moved", train, folder, task=Wrapped(before=gone)
    )
    assert not folder.exists()
    if moved:
        assert train(tmp_path / "elsewhere", resume=True)["finished"]


def test_a_folder_that_is_removed_before_the_last_evaluation_is_not_made_anew(tmp_path):
    def gone(_call: int, _model: Any, split: str) -> None:
        if split == "test":
            shutil.rmtree(tmp_path / "run")

    raises(CheckpointError, "is gone", train, tmp_path / "run", task=Wrapped(evaluate=gone))
    assert not (tmp_path / "run").exists()
