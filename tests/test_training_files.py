"""Folders are whole or not there: order of writing, every damage found, a full disk explained, one process."""

import errno
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from builders import raises
from freerun.errors import CheckpointError, OccupiedError, ResourceError
from freerun.training.files import Stored, clean, replace_file, write_folder
from freerun.training.log import Metrics
from freerun.training.run_folder import FolderLock, in_checkpoints
from freerun.training.weights import load_weights, pack, unpack, weights_of


def read_folder(folder: Path) -> dict[str, bytes]:
    stored = Stored(folder)
    return {name: stored.read(name) for name in stored.files}


FILES = {"a.json": b'{"x": 1}', "b.safetensors": bytes(range(256)) * 3}


def test_everything_is_durable_before_the_name_is_there(tmp_path, monkeypatch):
    events: list[str] = []
    sync, rename = os.fsync, Path.rename

    def recorded_sync(handle: int) -> None:
        events.append(f"sync {Path(os.readlink(f'/proc/self/fd/{handle}')).name}")
        sync(handle)

    def recorded_rename(self: Path, target: Path) -> Path:
        events.append(f"rename {target.name}")
        return rename(self, target)

    monkeypatch.setattr(os, "fsync", recorded_sync)
    monkeypatch.setattr(Path, "rename", recorded_rename)
    write_folder(tmp_path / "all" / "c", FILES)
    folder = "sync .writing-c"
    assert events == [
        "sync a.json", "sync b.safetensors", "sync manifest.json", folder, "rename c", "sync all",
    ]  # fmt: skip
    assert [path.name for path in (tmp_path / "all").iterdir()] == ["c"]
    assert read_folder(tmp_path / "all" / "c") == FILES


def test_no_changed_byte_is_read(tmp_path):
    target = tmp_path / "c"
    write_folder(target, FILES)
    for name in [*FILES, "manifest.json"]:
        good = (target / name).read_bytes()
        for place in range(0, len(good), 7):
            bad = bytearray(good)
            bad[place] ^= 0x10
            (target / name).write_bytes(bytes(bad))
            try:
                read = read_folder(target)
            except CheckpointError:
                continue
            # a blank of the manifest may change and it still says the same
            assert name == "manifest.json"
            assert read == FILES
        (target / name).write_bytes(good)
    assert read_folder(target) == FILES


@pytest.mark.parametrize("name", [*FILES, "manifest.json"])
def test_missing_and_short_files_are_named(tmp_path, name):
    write_folder(tmp_path / "c", FILES)
    path = tmp_path / "c" / name
    path.write_bytes(path.read_bytes()[:-1])
    raises(CheckpointError, name, read_folder, tmp_path / "c")
    path.unlink()
    raises(CheckpointError, f"{name} is missing", read_folder, tmp_path / "c")


def test_a_manifest_cannot_reach_outside(tmp_path):
    write_folder(tmp_path / "c", FILES)
    (tmp_path / "secret").write_bytes(b"x")
    entry = {"bytes": 1, "sha256": "2d711642b726b04401627ca9fbac32f5c8530fb1903cc4db02258717921a4881"}
    for name in ("../secret", "/etc/hostname", ".hidden"):
        manifest = {"format_version": 1, "files": {name: entry}}
        (tmp_path / "c" / "manifest.json").write_text(json.dumps(manifest))
        raises(CheckpointError, "not a plain file", read_folder, tmp_path / "c")
    (tmp_path / "c" / "manifest.json").write_text(json.dumps({"format_version": 2, "files": {}}))
    raises(CheckpointError, "format version 2; this freerun reads 1", read_folder, tmp_path / "c")


def test_a_full_disk_is_explained_and_leaves_the_old_folder(tmp_path, monkeypatch):
    write_folder(tmp_path / "c", FILES)
    replace_file(tmp_path / "f", b"old")

    def full(_handle: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ResourceError, match=r"c: no space left .* 776 bytes are needed, [\d,]+ are free"):
        write_folder(tmp_path / "c", {**FILES})
    raises(ResourceError, "f: no space", replace_file, tmp_path / "f", b"new")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["c", "f"]
    assert read_folder(tmp_path / "c") == FILES
    assert (tmp_path / "f").read_bytes() == b"old"


def test_leftovers_of_a_killed_writer_go_and_nothing_else(tmp_path):
    for name in (".writing-step-00000001", ".writing-best-00000001.old", "step-00000002", ".writing-step-00000002.old"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a").write_text(name)
    (tmp_path / ".writing-step-00000002.old" / "notes.txt").write_text("mine")
    mine = [".writing-step-1", ".writing-x", ".probe-x", "mine", ".writing-step-00000001-keep"]
    for name in (*mine, ".probe-12", ".probed-12"):
        (tmp_path / name).write_text("")
    (tmp_path / ".writing-step-00000003").symlink_to(tmp_path / "mine")
    clean(tmp_path, in_checkpoints)
    # what was moved aside to make room, and not replaced, comes back; so does what somebody put into it
    left = {*mine, ".writing-step-00000003", "best-00000001", "step-00000002"}
    assert {path.name for path in tmp_path.iterdir()} == left
    assert (tmp_path / "best-00000001" / "a").read_text() == ".writing-best-00000001.old"
    assert (tmp_path / "step-00000002" / "a").read_text() == "step-00000002"
    assert (tmp_path / "step-00000002" / "notes.txt").read_text() == "mine"


def test_metrics_are_cut_back_to_the_checkpoint(tmp_path):
    metrics = Metrics(tmp_path / "m.jsonl")
    metrics.write({"step": 0, "loss": float("nan")})
    size = metrics.sync()
    metrics.write({"step": 1})
    metrics.close()
    with (tmp_path / "m.jsonl").open("a") as file:
        file.write('{"step": 2, "lo')
    metrics = Metrics(tmp_path / "m.jsonl", size)
    metrics.write({"step": 1, "word": "é"})
    metrics.close()
    assert (tmp_path / "m.jsonl").read_text() == '{"step": 0, "loss": null}\n{"step": 1, "word": "é"}\n'
    raises(CheckpointError, "were written before the checkpoint", Metrics, tmp_path / "m.jsonl", 10**6)


def test_one_process_a_folder_and_the_dead_let_go(tmp_path):
    with FolderLock(tmp_path) as lock:
        assert lock.note is None
        with pytest.raises(OccupiedError, match=f"process {os.getpid()} on "), FolderLock(tmp_path):
            pass
    assert not list(tmp_path.iterdir())
    program = f"""
import os, signal
from pathlib import Path
from freerun.training.run_folder import FolderLock
with FolderLock(Path({str(tmp_path)!r})):
    os.kill(os.getpid(), signal.SIGKILL)
"""
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == -9
    with FolderLock(tmp_path) as lock:
        assert "ended without letting go" in str(lock.note)


def test_tied_weights_are_saved_once_and_read_back():
    class Tied(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = torch.nn.Embedding(4, 3)
            self.head = torch.nn.Linear(3, 4)
            self.head.weight = self.embed.weight

    model, other = Tied(), Tied()
    tensors = unpack(pack(weights_of(model)))
    assert sorted(tensors) == ["embed.weight", "head.bias"]
    load_weights(other, tensors, "here")
    assert torch.equal(other.head.weight, model.embed.weight)
    wrong: dict[str, Any] = {"embed.weight": torch.zeros(5, 3), "more": torch.zeros(1)}
    with pytest.raises(CheckpointError) as error:
        load_weights(other, wrong, "there")
    for text in ("there", "head.bias is missing", "more is not in", "has shape (5, 3); this model's is (4, 3)"):
        assert text in str(error.value)
    raises(CheckpointError, "not a safetensors file", unpack, b"no")


def test_files_honour_the_umask(tmp_path):
    before = os.umask(0o027)
    try:
        write_folder(tmp_path / "c", FILES)
    finally:
        os.umask(before)
    assert (tmp_path / "c" / "b.safetensors").stat().st_mode & 0o777 == 0o640
