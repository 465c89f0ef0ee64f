"""A comparison on Ray has the results of one in local processes, whatever becomes of its workers."""

import json
import os
import re
import secrets
import signal
import socket
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

from builders import raises, refused
from freerun.comparison import executors
from freerun.comparison import run as run_module
from freerun.comparison.executors import EXECUTORS, Job, Options, look
from freerun.comparison.plan import PlannedRun
from freerun.comparison.run import compare
from freerun.errors import ResourceError
from simulated_runs import arm
from tiny_recipes import SAMPLING, ends, toml

NOISE = {"name": "token_noise", "exclude_gold": True, "rate": {"matched_to": "sampling"}}
TIMES = {"seconds", "cpu_seconds"}
# a cluster of the tests alone, whatever others of this machine use
TOKEN = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}


def recipe(folder: Path, updates: int = 40, **train: Any) -> Path:
    """A sampling arm and its matched noise, two seeds each."""
    path = folder / "tiny.toml"
    path.write_text(
        toml(
            name="tiny",
            data={"kind": "toy", "symbols": 6, "max_length": 4, "train": 40, "dev": 6, "test": 8},
            model={"size": 8},
            train={"updates": updates, "batch_size": 8, "evaluate_every": updates // 2, **train},
            compare={
                "seeds": [0, 1],
                "workers": 2,
                "arms": [{"method": NOISE}, {"label": "sampling", "method": SAMPLING}],
            },
        )
    )
    return path


def untimed(value: Any) -> Any:
    """A part of results.json without what a clock measured."""
    if isinstance(value, dict):
        if value.get("metric") in TIMES:
            return value["metric"]
        return {key: untimed(part) for key, part in value.items() if key not in TIMES}
    return [untimed(part) for part in value] if isinstance(value, list) else value


def results(out: Path) -> Any:
    return untimed(json.loads((out / "results.json").read_text()))


def command(path: Path, out: Path, *flags: str) -> list[str]:
    return [sys.executable, "-m", "freerun", "compare", str(path), "--out", str(out), *flags]


@pytest.fixture(scope="module")
def local(tmp_path_factory):
    """A recipe, and the results of its comparison in local processes."""
    folder = tmp_path_factory.mktemp("local")
    path = recipe(folder, 600, save_every=40)
    compare(path, [], folder / "out", progress=False)
    return path, results(folder / "out")


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


@pytest.fixture(scope="module")
def cluster():
    """The address of a Ray cluster of this machine with two CPUs."""
    port = free_port()
    os.environ |= TOKEN
    flags = ("--num-cpus=2", "--include-dashboard=false", "--object-store-memory=80000000", "--disable-usage-stats")
    start = [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block", f"--port={port}", *flags]
    process = subprocess.Popen(
        [*start, f"--ray-client-server-port={free_port()}"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    printed = ""
    while "runtime started" not in printed:
        line = process.stdout.readline()
        assert line, printed
        printed += line
    yield f"127.0.0.1:{port}"
    process.terminate()
    process.communicate(timeout=60)
    for name in TOKEN:
        del os.environ[name]


def on_ray(path: Path, out: Path, address: str, *flags: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        command(path, out, "--executor", "ray", "--ray-address", address, *flags),
        stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True,
    )  # fmt: skip


def worker(out: Path, name: str) -> int:
    """The process of Ray that a run's process belongs to, once the run has a checkpoint that it trained for."""
    log, deadline = out / "logs" / f"{name}.log", time.monotonic() + 300
    while time.monotonic() < deadline:
        found = re.findall(r"^on \S+, worker (\d+)$", log.read_text() if log.exists() else "", re.MULTILINE)
        if found and (out / "runs" / name / "checkpoints" / "step-00000040").exists():
            return int(found[-1])
        time.sleep(0.05)
    raise AssertionError(f"{name} saved nothing")


@pytest.mark.slow(reason="starts a Ray cluster and twice a comparison of four real runs: one to two minutes")
def test_lost_workers_on_ray_change_nothing(local, cluster, tmp_path):
    path, expected = local
    out = tmp_path / "out"
    process = on_ray(path, out, cluster)
    # Ray's process alone: the run sees its end, saves a checkpoint and lets go of the folder
    os.kill(worker(out, "sampling-0"), signal.SIGKILL)
    # both, as where a machine is lost: what was saved last is what is left
    theirs = worker(out, "token_noise-1")
    os.kill(json.loads((out / "runs" / "token_noise-1" / "lock").read_text())["pid"], signal.SIGKILL)
    os.kill(theirs, signal.SIGKILL)
    printed = process.communicate(timeout=500)[1]
    assert process.returncode == 0, printed
    for name in ("sampling-0", "token_noise-1"):
        assert f"{name}: lost its worker (" in " ".join(printed.split())
        assert len(re.findall("^on .*, worker ", (out / "logs" / f"{name}.log").read_text(), re.MULTILINE)) == 2
    assert "Ray: 2 CPUs" in printed
    assert results(out) == expected
    assert expected["runs"][0]["updates"] == 600


@pytest.mark.slow(reason="starts a Ray cluster, interrupts a comparison of four real runs and resumes it: a minute")
def test_ctrl_c_saves_the_runs_on_ray_and_local_processes_go_on_with_them(local, cluster, tmp_path):
    path, expected = local
    out = tmp_path / "out"
    process = on_ray(path, out, cluster)
    worker(out, "sampling-0")
    process.send_signal(signal.SIGINT)
    printed = process.communicate(timeout=60)[1]
    assert process.returncode == 130, printed
    again = f"--out {out} --resume --executor ray --ray-address {cluster}"
    assert again in " ".join(printed.split())
    assert not list(out.glob("runs/*/lock")), "a run takes the lock away when it ends"
    saved = sorted((out / "runs" / "sampling-0" / "checkpoints").glob("step-*"))[-1]
    assert int(saved.name[5:]) % 40, "it saved where it was"
    compare(path, [], out, resume=True, progress=False)
    assert results(out) == expected


@pytest.mark.slow(reason="starts a Ray cluster, and on it a real run that diverges: half a minute")
def test_a_run_that_fails_on_ray_ends_the_comparison_as_a_local_one(cluster, tmp_path):
    process = on_ray(recipe(tmp_path), tmp_path / "out", cluster, "--set", "train.lr=1e30", "--set", "train.clip=0")
    printed = " ".join(process.communicate(timeout=300)[1].split())
    assert process.returncode == 6, printed
    assert re.search(r"run sampling-[01] ended with exit code 6; the end of .*diverged", printed)


@pytest.mark.parametrize(
    ("address", "words"),
    [
        (
            "127.0.0.1:{port}",
            ("no Ray cluster at 127.0.0.1:", "refused", "help: on the first machine `ray start --head`"),
        ),
        ("ray://127.0.0.1:{port}", ("must be HOST:PORT, auto or local; got 'ray://", "on a machine of the cluster")),
        ("nonsense", ("must be HOST:PORT, auto or local; got 'nonsense'",)),
        ("127.0.0.1:99999", ("no Ray cluster at 127.0.0.1:99999",)),
    ],
)
@pytest.mark.parametrize("named", ["flag", "environment"])
def test_a_cluster_that_cannot_be_reached_is_named_before_anything_is_written(
    address, words, named, tmp_path, capsys, monkeypatch
):
    address, out = address.format(port=free_port()), tmp_path / "out"
    flags = ["--ray-address", address] if named == "flag" else []
    if named == "environment":
        monkeypatch.setenv("RAY_ADDRESS", address)
    printed = ends(capsys, 2, "compare", recipe(tmp_path), "--out", out, "--executor", "ray", *flags).err
    assert all(word in " ".join(printed.split()) for word in words), printed
    assert not out.exists()


def test_executors_and_their_options_are_refused_by_name(tmp_path):
    path, out = recipe(tmp_path), tmp_path / "out"
    refused("executor must be one of local, ray; got 'slurm'", compare, path, [], out, executor="slurm")
    refused("--ray-address is for --executor ray; got 'a:1'", compare, path, [], out, ray_address="a:1")
    assert not out.exists()
    with EXECUTORS["local"](Options(out, None, 3)) as machines:
        assert machines.workers == 3
    with EXECUTORS["local"](Options(out, 2, 3)) as machines:
        assert machines.workers == 2


def test_a_machine_without_the_folder_or_with_other_versions_is_named(tmp_path):
    (tmp_path / "token").write_bytes(b"here")
    installed = {"torch": version("torch")}
    assert look(tmp_path, "token", b"here", installed, 0) == []
    host = re.escape(socket.gethostname())
    (other,) = look(tmp_path, "token", b"there", installed, 0)
    assert re.match(rf"{host}: {re.escape(str(tmp_path))} is another folder there.* that all machines .* share", other)
    (older,) = look(tmp_path, "token", b"here", {"torch": "1.0"}, 0)
    assert re.match(rf"{host}: torch is {re.escape(version('torch'))}, not 1.0\n  help: install one version", older)
    assert len(look(tmp_path / "none", "token", b"here", {"torch": "1.0"}, 0)) == 2


def test_a_run_is_not_begun_for_ever_where_its_worker_is_lost_again_and_again(tmp_path):
    run = PlannedRun(arm("arm", "teacher_forcing"), 0)
    lost = Job(run, tmp_path / "logs" / "arm-0.log", None, reason="The node died.")
    work: Any = run_module._Work(None, tmp_path, {}, None, "freerun compare R --resume", None, [], str)
    for step in (0, 0, 100, 100):  # what it saves counts the losses anew
        (tmp_path / "runs" / "arm-0" / "checkpoints" / f"step-{step:08d}").mkdir(parents=True, exist_ok=True)
        work._lose(lost)
    words = "run arm-0 lost its worker 3 times in a row and saved nothing new (The node died.)"
    raises(ResourceError, re.escape(words), work._lose, lost)


class StandIn:
    """A Ray of which only what a comparison asks before its first task is there."""

    def __init__(self, nodes: list[dict[str, Any]], failure: Exception | None = None) -> None:
        self._nodes, self._failure, self.started = nodes, failure, 0

    def init(self, *_: Any, **__: Any) -> None:
        self.started += 1
        if self._failure:
            raise self._failure

    def nodes(self) -> list[dict[str, Any]]:
        return self._nodes


def node(**resources: float) -> dict[str, Any]:
    return {"Alive": True, "Resources": resources, "NodeManagerHostname": "one"}


def test_a_ray_that_does_not_start_on_this_machine_is_named(tmp_path):
    """Ray ends a start that takes too long in a bare Exception."""
    for failure in (Exception("The current node timed out during startup"), RuntimeError("no ports"), OSError("full")):
        ray = StandIn([], failure)
        words = [f"Ray did not start on this machine: {failure}", "without Ray: --executor local"]
        refused(words, executors._connect, ray, Options(tmp_path, address="local"))
        assert ray.started == 1


def test_a_gpu_is_needed_on_a_machine_of_the_cluster_and_not_here(tmp_path):
    needed = Options(tmp_path, gpu=True)
    words = ["train.device = 'cuda', and no machine of the Ray cluster has a GPU (one)"]
    refused(words, executors._refuse_without_gpu, StandIn([node(CPU=2)]), needed)
    executors._refuse_without_gpu(StandIn([node(CPU=2), node(CPU=1, GPU=1)]), needed)
    executors._refuse_without_gpu(StandIn([node(CPU=2)]), Options(tmp_path))


def test_a_plan_says_what_the_design_can_show(tmp_path, capsys):
    path = recipe(tmp_path, updates=2)
    planned = ends(capsys, 0, "compare", path, "--plan")[0]
    assert "2 seeds of 2 arms: differences in " in " ".join(planned.split())
    assert "in its own unit when two seeds have finished" in " ".join(planned.split())


@pytest.mark.slow(reason="four runs, a process each: half a minute")
def test_the_start_and_a_later_plan_say_it_too(tmp_path, capsys):
    path = recipe(tmp_path, updates=2)
    started = ends(capsys, 0, "compare", path, "--out", tmp_path / "out")[1]
    assert "2 seeds of 2 arms: differences in " in " ".join(started.split())
    finished = ends(capsys, 0, "compare", path, "--out", tmp_path / "out", "--plan")[0]
    assert "all runs are finished" in finished
    assert "from the spread of 2 seeds" in " ".join(finished.split())
