"""Lives of the command, each a forked child of one process that has PyTorch loaded, and each ended as its line says.

Reads a JSON object a line from standard input and answers with one. A life:

- ``command``: the words after ``freerun``; ``folder``: whose file events count; ``log``: where its output goes.
- ``event`` n or ``after`` seconds: then ``signal`` comes, in process ``rank`` (None: in all).
- ``room``: bytes that can be written in the folder before the disk is full; ``record``: file that lists the events.
- ``world``: that many processes, joined as torchrun joins them; ``limit``: seconds until a life is called hung.

A life that stopped (SIGSTOP) is answered with its ``stopped`` process; ``{"continue": process}`` lets it go on.
"""

import builtins
import errno
import importlib
import io
import json
import os
import resource
import signal
import socket
import sys
import time
from collections.abc import Callable
from typing import Any

AUDITED = {
    "open", "os.mkdir", "os.rmdir", "os.remove", "os.rename", "os.link", "os.symlink", "os.truncate", "os.listdir",
    "os.scandir", "fcntl.flock",
}  # fmt: skip
PRELOADED = (
    "freerun.cli.app", "freerun.cli.commands", "freerun.recipes.train", "freerun.recipes.load",
    "freerun.comparison.run", "freerun.training", "freerun.report", "safetensors.torch",
    "tomli_w",
    "torch.distributed", "torch.nn.parallel", "rich.console", "rich.progress", "freerun.methods", "freerun.models",
    "freerun.data.builtin_pairs", "freerun.checks", "freerun.diagnostics",
)  # fmt: skip


class Watch:
    """Counts the file events of a folder, and does what is to happen at one of them."""

    def __init__(self, life: dict[str, Any]) -> None:
        self.folder = os.path.realpath(life["folder"])
        self.at, self.signal = life.get("event"), life.get("signal", signal.SIGKILL)
        self.room: int | None = life.get("room")
        self.record = os.open(life["record"], os.O_WRONLY | os.O_CREAT | os.O_APPEND) if life.get("record") else None
        self.count = 0
        self.write = os.write

    def install(self) -> None:
        """Every audited event, and those that Python does not audit: writes (whole and half), fsync, truncate."""
        sys.addaudithook(self.audit)
        for name in ("fsync", "pwrite", "write"):
            setattr(os, name, self.counted(name, getattr(os, name)))
        watch, plain = self, io.open

        class File(io.FileIO):
            def write(self, content: Any) -> int:
                return watch.written(self.name, memoryview(content).cast("B"), super().write)

            def truncate(self, size: int | None = None) -> int:
                watch.event("truncate", self.name)
                return super().truncate(size)

        def opened(file: Any, mode: str = "r", buffering: int = -1, *arguments: Any, **named: Any) -> Any:
            if not set(mode) & set("wax+") or not watch.inside(file):
                return plain(file, mode, buffering, *arguments, **named)
            raw = File(file, mode.replace("b", "").replace("t", ""))
            if buffering == 0:
                return raw
            buffered = io.BufferedRandom(raw) if "+" in mode else io.BufferedWriter(raw)
            return buffered if "b" in mode else io.TextIOWrapper(buffered, *arguments, **named)

        io.open = builtins.open = opened

    def inside(self, path: Any, at: int = -1) -> str | None:
        """The path from the folder on, None where it leads elsewhere."""
        if isinstance(path, int):
            path = os.readlink(f"/proc/self/fd/{path}")
        elif at >= 0:
            path = os.path.join(os.readlink(f"/proc/self/fd/{at}"), os.fsdecode(path))
        path = os.path.abspath(os.fsdecode(path))
        if path == self.folder or path.startswith(self.folder + "/"):
            return path[len(self.folder) + 1 :] or "."
        return None

    def audit(self, name: str, arguments: tuple[Any, ...]) -> None:
        if name in AUDITED and arguments[0] is not None:
            at = arguments[-1] if name in ("os.mkdir", "os.rmdir", "os.remove", "os.rename") else -1
            self.event(name, arguments[0], at if isinstance(at, int) else -1)

    def event(self, name: str, path: Any, at: int = -1) -> None:
        if (place := self.inside(path, at)) is not None:
            self.count += 1
            if self.record is not None:
                self.write(self.record, f"{name} {place}\n".encode())
            if self.count == self.at:
                os.kill(os.getpid(), self.signal)

    def counted(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(handle: int, *arguments: Any) -> Any:
            self.event(name, handle)
            return function(handle, *arguments)

        return call

    def written(self, path: Any, content: memoryview, write: Callable[[Any], int]) -> int:
        """Written in two halves, with an event before each; as much of it as there is room for."""
        if self.room is not None and len(content) > self.room:
            content, self.room = content[: self.room], 0
            if not content:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        elif self.room is not None:
            self.room -= len(content)
        self.event("write", path)
        number = write(content[: len(content) // 2])
        self.event("write half", path)
        return number + write(content[number:])


def child(life: dict[str, Any], rank: int, port: int) -> None:
    """One process of a life; does not return."""
    code = 70
    try:
        signal.set_wakeup_fd(-1)
        output = os.open(life["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
        os.dup2(output, 1)
        os.dup2(output, 2)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        if life.get("world", 1) > 1:
            size = {"WORLD_SIZE": life["world"], "LOCAL_WORLD_SIZE": life["world"], "RANK": rank, "LOCAL_RANK": rank}
            os.environ.update({name: str(value) for name, value in size.items()})
            os.environ.update({"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)})
        os.environ.update(life.get("environment", {}))
        os.chdir(life.get("cwd", "."))
        if life.get("rank") in (None, rank):
            Watch(life).install()
        from freerun.cli import main

        code = main(life["command"])
        sys.stdout.flush()
        sys.stderr.flush()
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
    except BaseException:
        import traceback

        traceback.print_exc()
        sys.stderr.flush()
    finally:
        os._exit(code)


def wait(life: dict[str, Any], processes: dict[int, int]) -> dict[str, Any]:
    """Wait for the processes (rank of each), with the signal that is due at a time."""
    began, codes, memory, sent = time.monotonic(), {}, 0, None
    due = life.get("after") if life.get("event") is None else None
    while processes:
        for process in list(processes):
            found, status, used = os.wait4(process, os.WNOHANG | os.WUNTRACED)
            if found and os.WIFSTOPPED(status):
                return {"stopped": process}
            if found:
                codes[processes.pop(process)] = os.waitstatus_to_exitcode(status)
                memory = max(memory, used.ru_maxrss)
        now = time.monotonic() - began
        if due is not None and now >= due:
            due, sent = None, now
            for process, rank in processes.items():
                if life.get("rank") in (None, rank):
                    os.kill(process, life.get("signal", signal.SIGKILL))
        if now > life.get("limit", 150):
            for process in processes:
                os.kill(process, signal.SIGKILL)
            life = {**life, "limit": float("inf"), "hung": True}
        time.sleep(0.002)
    seconds = time.monotonic() - began
    return {
        "codes": [codes[rank] for rank in sorted(codes)], "seconds": seconds, "memory": memory,
        "answered": None if sent is None else seconds - sent, "hung": life.get("hung", False),
    }  # fmt: skip


def main() -> None:
    import torch

    torch.set_num_threads(1)
    for name in PRELOADED:
        importlib.import_module(name)
    # what the first optimizer imports, once for all lives
    torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))]).zero_grad()
    baseline = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(json.dumps({"memory": baseline}), flush=True)
    stopped: dict[int, dict[str, Any]] = {}
    for line in sys.stdin:
        life = json.loads(line)
        if process := life.get("continue"):
            life = stopped.pop(process)
            os.kill(process, signal.SIGCONT)
            processes = {process: 0}
        else:
            with socket.socket() as free:
                free.bind(("127.0.0.1", 0))
                port = free.getsockname()[1]
            processes = {}
            for rank in range(life.get("world", 1)):
                process = os.fork()
                if not process:
                    child(life, rank, port)
                processes[process] = rank
        answer = wait(life, processes)
        if "stopped" in answer:
            stopped[answer["stopped"]] = life
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
