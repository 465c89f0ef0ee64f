"""Where the runs of a comparison run: in processes of this machine, or in tasks of a Ray cluster.

Imports little, because every worker of Ray imports it.
"""

from __future__ import annotations

import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Final, Literal, Protocol

from freerun.errors import OccupiedError, ResourceError, UserError, listed, needing, out_of_memory, refuse
from freerun.signals import LIFELINE

if TYPE_CHECKING:
    from freerun.comparison.plan import PlannedRun

PATIENCE = 8.5
LOST: Final = "lost"
_PROBED, _SHARED, _LOCKED = 10.0, 60.0, 120.0
"""Seconds until a file is seen on another machine, where it is probed and where it must be (a network file system
shows a new file after up to a minute); and until what is left of a lost run has saved its checkpoint."""
_ANSWER = 60.0
_STORE = 80 * 2**20  # bytes of shared memory of a cluster of our own: no run sends anything


@dataclass(frozen=True)
class Options:
    """What a comparison asks of its executor.

    Args:
        out: folder of the comparison.
        workers: runs at a time; None: the executor decides.
        processes: runs at a time on this machine if ``workers`` is None.
        gpu: True if each run needs a GPU.
        address: of a Ray cluster.
    """

    out: Path
    workers: int | None = None
    processes: int = 1
    gpu: bool = False
    address: str | None = None


@dataclass(eq=False)
class Job:
    """A run that was handed to an executor, and the file that its output goes to.

    Args:
        handle: the process, or Ray's reference to the task.
        begun: False while the run waits for a free worker.
        code: exit code of its process, once it has ended.
        reason: why the run was lost.
    """

    run: PlannedRun
    log: Path
    handle: Any
    begun: bool = True
    code: int | None = None
    reason: str = ""


class Executor(Protocol):
    """What runs training processes: at most ``workers`` at a time.

    ``start`` takes the arguments of the Python interpreter, ``poll`` returns the exit code of a process that has
    ended, ``LOST`` if its worker is gone, and None before; ``stop`` asks all to save a checkpoint and end, and waits.
    """

    workers: int
    header: Sequence[str]

    def start(self, run: PlannedRun, arguments: Sequence[str], log: Path) -> Job: ...
    def poll(self, job: Job) -> int | Literal["lost"] | None: ...
    def stop(self, jobs: Sequence[Job]) -> None: ...


@cache
def _lifeline() -> tuple[int, int]:
    """Return a pipe that nothing is written to: children see its end when this process ends, however it does."""
    return os.pipe()


def launch(arguments: Sequence[str], log: Path, folder: str | None = None) -> subprocess.Popen[bytes]:
    """Start Python with one thread; it stops when this process ends, and what it prints goes to ``log``."""
    log.parent.mkdir(parents=True, exist_ok=True)
    one_thread = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
    output: IO[bytes]
    with log.open("ab") as output:
        # a session of its own: Ctrl-C in the terminal reaches us alone, and we stop the children in order
        return subprocess.Popen(
            [sys.executable, *arguments],
            stdin=_lifeline()[0],
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, **one_thread, "PYTHONUNBUFFERED": "1", LIFELINE: "1"},
            cwd=folder,
            start_new_session=True,
        )


def end(processes: Sequence[subprocess.Popen[bytes]], patience: float = PATIENCE, number: int = signal.SIGINT) -> None:
    """Ask processes to stop (they save a checkpoint first), wait, end those that do not."""
    for process in processes:
        if process.poll() is None:
            process.send_signal(number)
    deadline = time.monotonic() + patience
    for process in processes:
        try:
            process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


class Processes:
    """Runs in processes of this machine."""

    header: Sequence[str] = ()

    def __init__(self, workers: int) -> None:
        self.workers = workers

    def start(self, run: PlannedRun, arguments: Sequence[str], log: Path) -> Job:
        return Job(run, log, launch(arguments, log))

    def poll(self, job: Job) -> int | None:
        job.code = job.handle.poll()
        return job.code

    def stop(self, jobs: Sequence[Job], patience: float = PATIENCE) -> None:
        end([job.handle for job in jobs], patience)


@contextmanager
def local(options: Options) -> Generator[Processes]:
    """Run in processes of this machine."""
    if options.address is not None:
        raise UserError(f"--ray-address is for --executor ray; got {options.address!r} with --executor local")
    yield Processes(options.workers or options.processes)


@dataclass(eq=False)
class _Task:
    """Ray's reference to a task, the size of its log before it, and when it was first seen to have ended."""

    reference: Any
    log_size: int
    ended: float = 0.0


class Tasks:
    """Runs as tasks of a Ray cluster; each starts, on its machine, the process that would run here.

    A finished run, a checkpoint and a log are files of the comparison's folder, which all machines share: what a
    machine saved outlives it.
    """

    def __init__(self, ray: Any, options: Options) -> None:
        self._ray, self._gpus = ray, int(options.gpu)
        self.workers = options.workers or sys.maxsize
        found = ray.cluster_resources()
        gpus = f" and {found.get('GPU', 0):.0f} GPUs" if options.gpu else ""
        self.header: Sequence[str] = [
            f"Ray: {found.get('CPU', 0):.0f} CPUs{gpus}, one for each run; machines: {_hosts(ray)}"
        ]

    def start(self, run: PlannedRun, arguments: Sequence[str], log: Path) -> Job:
        task = self._ray.remote(train).options(
            name=run.name, num_cpus=1, num_gpus=self._gpus, max_retries=0, scheduling_strategy="SPREAD"
        )
        folder = log.resolve().parent.parent
        recipe = (folder / "recipes" / f"{run.name}.toml").read_bytes()
        size = _size(log)
        reference = task.remote(list(arguments), folder, run.name, os.getcwd(), (recipe, _installed()))
        return Job(run, log, _Task(reference, size), begun=False)

    def poll(self, job: Job) -> int | Literal["lost"] | None:
        task: _Task = job.handle
        job.begun = job.begun or _size(job.log) > task.log_size
        if not self._ray.wait([task.reference], timeout=0)[0]:
            return None
        failures = self._ray.exceptions
        try:
            job.code = self._ray.get(task.reference)
        except failures.RayTaskError as error:
            raise (error.cause or error) from None
        except failures.RayError as error:  # the worker, or its machine, is gone
            job.code, job.reason = -signal.SIGKILL, (str(error).splitlines() or [type(error).__name__])[0]
        if job.code == -signal.SIGKILL:
            job.reason = job.reason or f"its process was killed, see {job.log}"
            return LOST
        summary = job.log.parent.parent / "runs" / job.run.name / "summary.json"
        task.ended = task.ended or time.monotonic()
        seen = summary.exists() or time.monotonic() > task.ended + _SHARED
        return job.code if job.code or seen else None

    def stop(self, jobs: Sequence[Job]) -> None:
        if not jobs:
            return
        tasks = [job.handle.reference for job in jobs]
        for task in tasks:
            self._ray.cancel(task)
        for task in self._ray.wait(tasks, num_returns=len(tasks), timeout=PATIENCE + 1.5)[1]:
            self._ray.cancel(task, force=True)


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _seen(path: Path, content: bytes, seconds: float) -> bool:
    """Return True if a file has this content, or has it before long."""
    deadline = time.monotonic() + seconds
    while True:
        with suppress(OSError):
            if path.read_bytes() == content:
                return True
        if time.monotonic() > deadline:
            return False
        time.sleep(0.2)


def train(arguments: Sequence[str], out: Path, name: str, folder: str, expected: tuple[bytes, dict[str, str]]) -> int:
    """As a worker of Ray, run a training process and return its exit code; cancelling stops it in order."""
    recipe, installed = expected
    refuse(look(out, f"recipes/{name}.toml", recipe, installed, _SHARED))
    _until_free(out / "runs" / name)
    log = out / "logs" / f"{name}.log"
    log.parent.mkdir(exist_ok=True)
    with log.open("a", encoding="utf-8") as file:
        file.write(f"on {socket.gethostname()}, worker {os.getpid()}\n")
    process = launch(arguments, log, folder if Path(folder).is_dir() else None)
    try:
        while process.poll() is None:
            time.sleep(0.1)
    except KeyboardInterrupt:
        pass
    finally:
        end([process], number=signal.SIGTERM)  # Ray blocks SIGINT in what it starts, and children inherit that
    return process.returncode


def _until_free(folder: Path) -> None:
    """Wait while what a lost worker left behind saves its checkpoint; one that never ends is named by the run."""
    deadline = time.monotonic() + _LOCKED
    while (folder / "lock").exists() and time.monotonic() < deadline:
        from freerun.training.run_folder import FolderLock

        try:
            with FolderLock(folder):
                return
        except OccupiedError:
            time.sleep(0.5)


def _installed() -> dict[str, str]:
    """Return the versions that must be one on all machines."""
    found: dict[str, str] = {}
    for package in ("freerun", "torch"):
        with suppress(PackageNotFoundError):
            found[package] = version(package)
    return found


def look(out: Path, name: str, content: bytes, installed: dict[str, str], seconds: float) -> list[str]:
    """As a worker of Ray, return what keeps runs from this machine: other versions, a folder that is not shared."""
    host, here = socket.gethostname(), _installed()
    problems = [
        f"{host}: {package} is {here.get(package, 'missing')}, not {there}\n  help: install one version everywhere"
        for package, there in installed.items()
        if here.get(package) != there
    ]
    if not _seen(out / name, content, seconds):
        problems.append(
            f"{host}: {out} is another folder there, or none; give an --out on a file system that all machines of the "
            "cluster share, under one path"
        )
    return problems


def _machines(ray: Any) -> list[dict[str, Any]]:
    return [node for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU", 0) >= 1]


def _hosts(ray: Any) -> str:
    return listed(machine["NodeManagerHostname"] for machine in _machines(ray)) or "none yet"


def _refuse_without_gpu(ray: Any, options: Options) -> None:
    """Refuse runs that need a GPU where no machine of the cluster has one: they would wait for ever."""
    if options.gpu and not any(machine["Resources"].get("GPU", 0) >= 1 for machine in _machines(ray)):
        raise UserError(
            f"train.device = 'cuda', and no machine of the Ray cluster has a GPU ({_hosts(ray)}): add one, `ray start "
            "--address=FIRST:6379 --num-gpus=N`, or give --set train.device=cpu"
        )


def _probe(ray: Any, out: Path) -> None:
    """Refuse machines that do not share the folder, or have other versions, before anything of it is changed."""
    with needing("ray", "--executor ray"):
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    made = not out.exists()
    out.mkdir(parents=True, exist_ok=True)
    token = out.resolve() / f".probe-{secrets.randbits(62)}"
    content = secrets.token_bytes(16)
    tried: dict[Any, str] = {}
    try:
        token.write_bytes(content)
        for machine in _machines(ray):
            there = NodeAffinitySchedulingStrategy(machine["NodeID"], soft=False)
            task = ray.remote(look).options(num_cpus=0, max_retries=1, scheduling_strategy=there)
            answer = task.remote(token.parent, token.name, content, _installed(), _PROBED)
            tried[answer] = machine["NodeManagerHostname"]
        _, late = ray.wait(list(tried), num_returns=len(tried), timeout=_ANSWER) if tried else ([], [])
        problems = [f"{tried[task]} gave no answer within {_ANSWER:.0f} s: see `ray status`" for task in late]
        for task in tried.keys() - set(late):
            try:
                problems += ray.get(task)
            except ray.exceptions.RayError as error:
                last = (str(error).strip().splitlines() or [type(error).__name__])[-1]
                problems.append(f"{tried[task]} cannot run freerun: {last}\n  help: install the same version there")
    finally:
        token.unlink(missing_ok=True)
        if made:
            with suppress(OSError):
                out.rmdir()
    refuse(problems)


def _connect(ray: Any, options: Options) -> None:
    """Enter the cluster that is named, else the one that runs on this machine, else start one here."""
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
    named = options.address or os.environ.get("RAY_ADDRESS")
    before = signal.getsignal(signal.SIGTERM)
    if named not in (None, "auto", "local"):
        _reachable(named)
    try:
        if named != "local":
            try:
                ray.init(address=named or "auto", **quiet)
                return
            except ConnectionError:
                if named is not None:
                    raise
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        ray.init("local", num_cpus=options.workers, include_dashboard=False, object_store_memory=_STORE, **quiet)
    except Exception as error:  # a node that does not start in time is a bare one
        if out_of_memory(error):
            raise
        why = " ".join(str(error).split()) or type(error).__name__
        if named in (None, "local"):
            raise ResourceError(
                f"Ray did not start on this machine: {why}\n  help: try again when the machine has memory and time to "
                "spare, `ray stop` ends what is left of another one; without Ray: --executor local"
            ) from None
        text = f"no Ray cluster at {named}: {why}\n  {_REMEDY}; for a cluster with tokens set "
        raise UserError(f"{text}RAY_AUTH_MODE=token") from None
    finally:
        with suppress(ValueError):  # Ray has a handler of its own, which would end us without a word
            signal.signal(signal.SIGTERM, before or signal.SIG_DFL)


_REMEDY = (
    "help: on the first machine `ray start --head`, on each of the others, and where freerun compare runs, `ray start "
    "--address=FIRST:6379`; or --ray-address local for this machine alone"
)


def _reachable(address: str) -> None:
    """Raise if nothing answers at an address: Ray itself tries for minutes, and then ends the process."""
    host, _, port = address.rpartition(":")
    if "://" in address or not host or not port.isdecimal():
        raise UserError(
            f"the address of a Ray cluster must be HOST:PORT, auto or local; got {address!r} (--ray-address, "
            "RAY_ADDRESS): run freerun compare on a machine of the cluster"
        )
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()
    except (OSError, OverflowError) as error:
        raise UserError(f"no Ray cluster at {address}: {error}\n  {_REMEDY}") from None


@contextmanager
def on_ray(options: Options) -> Generator[Tasks]:
    """Run in tasks of a Ray cluster, which is left as it was."""
    with needing("ray", "--executor ray"):
        import ray
    ours = not ray.is_initialized()
    if ours:
        _connect(ray, options)
    try:
        _refuse_without_gpu(ray, options)
        _probe(ray, options.out)
        yield Tasks(ray, options)
    finally:
        if ours:
            ray.shutdown()


EXECUTORS: dict[str, Callable[[Options], AbstractContextManager[Executor]]] = {"local": local, "ray": on_ray}
"""Where runs run, by name."""
