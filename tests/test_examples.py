"""The examples: short scripts that run as they are, in seconds, and fetch nothing."""

import re
import runpy
import shlex
import socket
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent.parent / "examples"
SCRIPTS = sorted(FOLDER.glob("*.py"))
# what a script must print where that shows that it worked
PRINTED = {"lightning_module": r"free_running_token_accuracy +(0\.[5-9]|1\.0)"}


def name(path: Path) -> str:
    return path.stem


def arguments(path: Path) -> list[str]:
    """Those of the line that its docstring says it is run with; what stands in brackets may be left out."""
    line = re.search(rf"^Run: python examples/{re.escape(path.name)}(.*)$", path.read_text("utf-8"), re.MULTILINE)
    assert line, f"{path.name} does not say how it is run: Run: python examples/{path.name} ..."
    return shlex.split(line[1].partition("[")[0])


@pytest.fixture
def offline(monkeypatch):
    """No connection leaves this machine."""
    connect = socket.socket.connect

    def refused(self, address):
        if self.family == socket.AF_UNIX or address[0] in ("127.0.0.1", "::1", "localhost"):
            return connect(self, address)
        raise AssertionError(f"an example connects to {address}")

    monkeypatch.setattr(socket.socket, "connect", refused)


# all but the article's train in a trainer of others: 5 to 10 s each
RUN = [pytest.param(path, marks=[pytest.mark.slow] * (path.stem != "article")) for path in SCRIPTS]


# a user runs them with Python's own filters, where other libraries' warnings end nothing
@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("path", RUN, ids=name)
def test_it_runs_and_says_something(path, monkeypatch, tmp_path, capsys, offline):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [str(path), *arguments(path)])
    runpy.run_path(str(path), run_name="__main__")
    assert re.search(PRINTED.get(path.stem, r"\S"), capsys.readouterr().out)


@pytest.mark.parametrize("path", [p for p in SCRIPTS if p.stem not in ("article", "one_file")], ids=name)
def test_it_can_be_read_at_a_glance(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) < 60
