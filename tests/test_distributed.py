"""Our loop in two processes: the same run as in one, stopped and failing together."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from distributed_world import CASES, HERE, SETTINGS, torchrun
from freerun.errors import CheckpointError, UserError
from freerun.training.processes import Processes, join_processes, launched_processes
from freerun.training.update import device_of
from training_world import fingerprints, lines, without_clock

SCRIPT = str(HERE / "distributed_fit.py")
OWNING = "owning-fsdp"  # refused: modules of a method are not sharded
QUICK = [
    "owning-ddp",
    "recurrent-ddp",
    "transformer-fsdp",
    "values-ddp",
    "running-ddp",
    "following-ddp",
    "cut-fsdp",
    "stopped-fsdp",
    "broken-ddp",
    "diverged-ddp",
]


def started(root: Path, names: list[str]) -> Path:
    """Runs by two processes, and what each found."""
    root.mkdir(parents=True)
    done = torchrun([SCRIPT, str(root), *names])
    assert done.returncode == 0, done.stderr
    return root


def found(root: Path, rank: int) -> dict[str, Any]:
    return json.loads((root / f"found-{rank}.json").read_text())


@pytest.fixture(scope="module")
def quick(tmp_path_factory):
    return started(tmp_path_factory.mktemp("quick") / "runs", QUICK)


def assert_same_run(two: Path, one: Path, but: str = "") -> None:
    """To 1e-10: weights, optimizer state and average after the last update, losses and scores; counts exactly."""
    last = f"checkpoints/step-{SETTINGS.updates:08d}"
    for name in ("model", "optimizer", "ema"):
        a, b = (load_file(folder / last / f"{name}.safetensors") for folder in (two, one))
        assert a.keys() == b.keys()
        for key in a:
            torch.testing.assert_close(a[key], b[key], rtol=1e-10, atol=1e-12)
    for ours, theirs in zip(lines(two, "update"), lines(one, "update"), strict=True):
        assert ours.keys() == theirs.keys()
        for key, value in theirs.items():
            close = isinstance(value, float)
            assert key == but or ours[key] == (pytest.approx(value, rel=1e-9) if close else value), key
    summaries = [without_clock(json.loads((folder / "summary.json").read_text())) for folder in (two, one)]
    for side in ("teacher_forced", "free_running"):
        assert summaries[0]["test"][side] == pytest.approx(summaries[1]["test"][side], rel=1e-9)
    assert summaries[0]["replaced_share"] == summaries[1]["replaced_share"]
    assert summaries[0]["replaced_share"] > 0 or summaries[0]["method"] == "professor_forcing"


@pytest.mark.parametrize(
    "name", [name for name in QUICK if name.partition("-")[0] not in ("stopped", "broken", "diverged")]
)
def test_two_processes_make_the_run_of_one(quick, tmp_path, name):
    """With dropout, accumulation, clipping, weight decay, averaging, and a last batch too small for both."""
    CASES[name.partition("-")[0]].train(tmp_path / "one", size=2)
    assert_same_run(quick / name, tmp_path / "one")


def test_a_signal_to_one_process_stops_all_and_the_run_goes_on_to_the_same_bits(quick, tmp_path):
    for rank in (0, 1):
        assert found(quick, rank)["stopped-fsdp"].startswith("TerminatedError: stopped by SIGTERM after 5 updates")
    assert_same_run(quick / "stopped-fsdp", quick / "recurrent-ddp")
    assert len(lines(quick / "stopped-fsdp", "update")) == SETTINGS.updates


def test_what_one_process_raises_all_raise(quick):
    first, second = found(quick, 0), found(quick, 1)
    assert second["broken-ddp"] == "OSError: example 7 cannot be read"
    assert first["broken-ddp"] == "OtherProcessError: rank 1 failed: OSError: example 7 cannot be read"
    assert first["diverged-ddp"] == second["diverged-ddp"]
    assert "DivergedError: training diverged at update 2, which was not made: loss inf" in first["diverged-ddp"]
    steps = sorted(path.name for path in (quick / "diverged-ddp" / "checkpoints").glob("step-*"))
    assert steps == ["step-00000000"], "the weights before it are untouched"
    assert first["occupied"].startswith("OccupiedError")
    assert second["occupied"].startswith("OtherProcessError: rank 0 failed: OccupiedError")
    assert first["idle"] == second["idle"]
    assert "cannot be cut into accumulate x processes = 7 x 2 micro-batches" in first["idle"]


def test_only_the_first_process_writes(quick):
    folder = quick / "recurrent-ddp"
    assert {path.name for path in folder.iterdir()} == {
        "checkpoints", "metrics.jsonl", "model", "summary.json", "test-items.jsonl", "train-fed.json",
    }  # fmt: skip
    assert len(lines(folder, "header")) == 1
    assert lines(folder, "header")[0]["processes"] == 2
    assert [record["step"] for record in lines(folder, "update")] == list(range(SETTINGS.updates))
    assert [record["step"] for record in lines(folder, "evaluate")] == [0, 4, 7]


def test_one_process_goes_on_with_a_run_of_two_and_says_what_differs(quick, capsys):
    folder = quick / "diverged-ddp"
    CASES["values"].train(folder, resume=True, progress=True)
    assert "the run was made by 2 processes and goes on with 1: examples, coins and noise" in capsys.readouterr().err
    # no dropout: only sums are rounded otherwise, and one of two may have nothing to replace
    assert_same_run(folder, quick / "values-ddp", but="engine")


def test_a_process_without_a_gpu_of_its_own_says_so(tmp_path, monkeypatch):
    for name, value in {"WORLD_SIZE": "64", "RANK": "63", "LOCAL_RANK": "63", "MASTER_ADDR": "here"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=r"device = 'cuda': .* and this is process 63 of this machine"):
        device_of(torch.nn.Linear(1, 1), replace(SETTINGS, device="cuda"))


def test_a_model_that_is_wrapped_already_is_refused(tmp_path):
    case = replace(CASES["values"], model=lambda task: torch.nn.DataParallel(CASES["values"].model(task)))
    with pytest.raises(UserError, match=r"\(DataParallel\) is wrapped for several processes already: give it as it is"):
        case.train(tmp_path / "run")


def test_alone_there_is_nobody_to_ask(monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR"):
        monkeypatch.delenv(name, raising=False)
    with join_processes() as processes:
        assert (processes.size, processes.first, processes.max_over_ranks(3)) == (1, True, 3)
        assert processes.all_gather({"a": 1}) == [{"a": 1}]
        with pytest.raises(CheckpointError), processes.raise_on_all_ranks():
            raise CheckpointError("as it is")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert launched_processes() == 1, "not started by torchrun"
    assert Processes(1, 2).first is False


@pytest.mark.slow(reason="every case by two processes, in both wrappers, and by one")
def test_every_case_is_the_run_of_one(tmp_path):
    names = [f"{name}-{parallel}" for name in CASES for parallel in ("ddp", "fsdp") if f"{name}-{parallel}" != OWNING]
    root = started(tmp_path / "runs", [*names, "stopped-ddp", "broken-fsdp", "diverged-fsdp"])
    for name, case in CASES.items():
        case.train(tmp_path / name, size=2)
        assert_same_run(root / f"{name}-ddp", tmp_path / name)
        if f"{name}-fsdp" != OWNING:
            assert_same_run(root / f"{name}-fsdp", tmp_path / name)
    first, second = found(root, 0), found(root, 1)
    assert first["broken-fsdp"] == "OtherProcessError: rank 1 failed: OSError: example 7 cannot be read"
    assert "diverged at update 2" in first["diverged-fsdp"] == second["diverged-fsdp"]
    # resumed by as many processes it ends with the same bits
    assert fingerprints(root / "stopped-ddp") == fingerprints(root / "recurrent-ddp")


@pytest.mark.slow(reason="a start of two processes that ends by a kill")
@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_a_process_that_is_killed_ends_the_job(tmp_path, parallel):
    began = time.monotonic()
    done = torchrun([SCRIPT, str(tmp_path), f"killed-{parallel}"])
    assert done.returncode != 0
    assert "Signal 9 (SIGKILL)" in done.stderr
    assert time.monotonic() - began < 60
    assert not (tmp_path / "killed-ddp" / "summary.json").exists()


TRAIN = ["-m", "freerun", "train"]


@pytest.mark.slow(reason="five starts of the command in two processes")
def test_the_command_under_torchrun(tmp_path):
    from tiny_recipes import changed, write

    good, bad = write(tmp_path), write(tmp_path, changed("size = 16", "size = -1"), "bad.toml")
    run = str(tmp_path / "run")
    done = torchrun([*TRAIN, str(good), "--out", run, "--set", "train.parallel=fsdp"])
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines().count(run) == 1
    assert done.stderr.count("dev after 12 updates") == 1
    assert "processes: 2, fsdp" in done.stderr
    again = torchrun([*TRAIN, str(good), "--out", run])
    assert again.returncode != 0
    assert again.stderr.count("holds a finished run") == 1
    refused = torchrun([*TRAIN, str(bad), "--out", str(tmp_path / "bad")])
    assert refused.returncode != 0
    assert refused.stderr.count("error: ") == refused.stderr.count("`size` must be at least 1; got -1") == 1
    assert not (tmp_path / "bad").exists()
    compare = torchrun(["-m", "freerun", "compare", str(good), "--out", str(tmp_path / "compare")])
    assert compare.returncode != 0
    assert "freerun compare starts its own processes" in compare.stderr


@pytest.mark.slow(reason="a start of the command in two processes, which is stopped")
def test_torchrun_that_is_signalled_leaves_a_checkpoint(tmp_path):
    from tiny_recipes import changed, write

    recipe, run = write(tmp_path, changed("updates = 12", "updates = 100000")), tmp_path / "run"
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", *TRAIN]
    with subprocess.Popen(
        [*command, str(recipe), "--out", str(run)], stderr=subprocess.PIPE, text=True, env=environment
    ) as job:
        while not (run / "checkpoints" / "step-00000006").exists():
            assert job.poll() is None
            time.sleep(0.1)
        job.send_signal(signal.SIGTERM)
        _, printed = job.communicate(timeout=60)
    assert printed.count("a checkpoint is saved: go on with --resume") == 1
    newest = max((run / "checkpoints").glob("step-*"))
    assert json.loads((newest / "state.json").read_text())["tally"]["step"] == len(lines(run, "update"))
