"""One of two processes hangs, leaves, dies or raises: the other one says so by name, and ends."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from distributed_world import HERE
from rank_faults import LIMIT

LINGER = {"stop", "leave"}
"""What leaves a process that must be killed."""


def job(folder: Path, where: str, how: str) -> tuple[list[int], list[str], float]:
    """Exit codes and messages of both ranks, and the seconds it took since it befell."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    environment = {
        **os.environ, "WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join([str(HERE), os.environ.get("PYTHONPATH", "")]),
    }  # fmt: skip
    command = [sys.executable, str(HERE / "rank_faults.py"), str(folder), where, how]
    began = time.time()
    folder.parent.mkdir(exist_ok=True)
    logs = [folder.parent / f"rank-{rank}.log" for rank in (0, 1)]
    ranks: list[subprocess.Popen[bytes]] = []
    for rank, log in enumerate(logs):
        with log.open("wb") as file:
            ranks.append(subprocess.Popen(command, env={**environment, "RANK": str(rank)}, stderr=file, stdout=file))
    try:
        ranks[0].wait(120)
        if how in LINGER:
            ranks[1].kill()
        ranks[1].wait(60)
    finally:
        for each in ranks:
            each.kill()
            each.wait()
    when = folder.with_name("when")
    seconds = time.time() - (when.stat().st_mtime if when.exists() else began)
    return [each.returncode for each in ranks], [log.read_text() for log in logs], seconds


HANGS = [
    ("batch", "sleep", r"rank 1 has (stood still for \d+ s in update 2|been in update 2 for \d+ s), at rank_faults"),
    ("batch", "spin", r"rank 1 has been in update 2 for \d+ s, at rank_faults.py:\d+"),
    ("batch", "stop", r"rank 1 gave no sign of life for \d+ s; this process is in update 2"),
    ("backward", "sleep", r"rank 1 .* in update 2, at rank_faults.py:\d+"),
]


def assert_named(folder: Path, where: str, how: str, words: str) -> None:
    codes, messages, seconds = job(folder, where, how)
    assert codes == ([7, -signal.SIGKILL] if how == "stop" else [7, 7])
    assert re.search(words, messages[0]), messages
    assert "train.rank_timeout = 8 is to be more" in messages[0]
    assert messages[1] == ""
    assert seconds < 3 * LIMIT + 10
    assert (folder / "checkpoints" / "step-00000000" / "manifest.json").exists()


def test_a_rank_that_hangs_is_named_with_its_step(tmp_path):
    assert_named(tmp_path / "run", *HANGS[0])


@pytest.mark.slow(reason="four starts of two processes")
@pytest.mark.parametrize(
    ("where", "how", "words"),
    [*HANGS[1:], ("evaluate", "hangs", "rank 0 has stood still .*the evaluation after 0 updates")],
)
def test_a_rank_that_hangs_anyhow_is_named_with_its_step(tmp_path, where, how, words):
    if how == "hangs":
        codes, messages, _ = job(tmp_path / "run", where, how)
        assert codes == [7, 7]
        assert re.search(words, "".join(messages))
    else:
        assert_named(tmp_path / "run", where, how, words)


@pytest.mark.slow(reason="six starts of two processes")
@pytest.mark.parametrize(
    ("where", "how", "code", "words"),
    [
        ("batch", "leave", -signal.SIGKILL, r"rank 1 has left, in update 2: Gone: this process has had enough"),
        ("batch", "die", -signal.SIGKILL, r"rank 1 gives no sign of life, and is waited for in update 2"),
        ("batch", "mistake", 2, ""),
        ("batch", "memory", 5, ""),
        ("backward", "fault", 1, r"rank 1 has left, in update 2: ZeroDivisionError: a fault"),
        ("backward", "memory", 5, r"rank 1 has left, in update 2: ResourceError: out of memory in update 2"),
    ],
)
def test_a_rank_that_ends_takes_the_other_one_with_it(tmp_path, where, how, code, words):
    """It has its own code, and says why; the other one has 7."""
    codes, messages, seconds = job(tmp_path / "run", where, how)
    assert codes == [7, code]
    assert re.search(words, messages[0]), messages
    assert bool(messages[0]) is bool(words), "what another rank says is not repeated"
    assert seconds < 30


@pytest.mark.slow(reason="an evaluation that takes longer than a process may stand still")
def test_ranks_wait_for_an_evaluation_however_long(tmp_path):
    codes, messages, seconds = job(tmp_path / "run", "evaluate", "long")
    assert codes == [0, 0], messages
    assert seconds > 3 * LIMIT
    assert (tmp_path / "run" / "summary.json").exists()
