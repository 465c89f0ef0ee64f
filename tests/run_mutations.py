"""Breaks a copy of the library, one line at a time, and runs the tests that each break must turn red.

    python tests/run_mutations.py            all of them, as a table
    python tests/run_mutations.py coins pads those whose names hold one of these words

Ends with 1 where a broken library passes its tests, or the text to be broken is not there.
"""

import contextlib
import importlib
import io
import multiprocessing
import os
import shutil
import sys
import tempfile
from pathlib import Path

from mutations import MUTATIONS, Mutation

ROOT = Path(__file__).resolve().parent.parent
_HEAVY = ("torch", "pytest", "transformers", "transformers.generation", "transformers.models.gpt2.modeling_gpt2",
          "transformers.models.t5.modeling_t5", "transformers.models.bart.modeling_bart")  # fmt: skip


def broken(source: Path, mutation: Mutation) -> None:
    """Write the wrong text in the place of the right one."""
    path, start, end = mutation.find(source / "freerun")
    text = path.read_text()
    path.write_text(text[:start] + text[start:end].replace(mutation.right, mutation.wrong) + text[end:])


class _Reds:
    """Collects the tests that fail."""

    def __init__(self) -> None:
        self.red: list[str] = []
        self.run = 0

    def pytest_runtest_logreport(self, report) -> None:
        self.run += report.when == "call"
        if report.failed:
            self.red.append(report.nodeid.split("::")[-1])


def _child(root: Path, tests: list[str], answer) -> None:
    import pytest

    sys.path[:0] = [str(root / "src"), str(root / "tests")]
    os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"  # plugins that are loaded already are complained of
    freerun = importlib.import_module("freerun")
    assert Path(str(freerun.__file__)).is_relative_to(root), freerun.__file__
    reds = _Reds()
    with contextlib.redirect_stdout(io.StringIO()):
        code = pytest.main(["-q", "-p", "no:cacheprovider", "--rootdir", str(root), *tests], plugins=[reds])
    answer.put((int(code), reds.run, reds.red))


def tried(root: Path, tests: list[str]) -> tuple[int, int, list[str]]:
    """Run tests in a process of their own, which finds the heavy libraries loaded: (exit code, run, red)."""
    context = multiprocessing.get_context("fork")
    answer = context.SimpleQueue()
    child = context.Process(target=_child, args=(root, tests, answer))
    child.start()
    while child.is_alive() and answer.empty():
        child.join(0.05)
    found = (3, 0, ["the process died"]) if answer.empty() else answer.get()
    child.join()
    return found


def _copied(root: Path) -> None:
    shutil.rmtree(root / "src", ignore_errors=True)
    shutil.copytree(ROOT / "src", root / "src", ignore=shutil.ignore_patterns("__pycache__"))


def main(words: list[str]) -> int:
    """Try the chosen mutations and print a line each; how many of them nothing noticed."""
    for name in _HEAVY:
        importlib.import_module(name)
    assert "freerun" not in sys.modules
    chosen = [m for m in MUTATIONS if not words or any(word in m.name for word in words)]
    unnoticed = 0
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        shutil.copytree(ROOT / "tests", root / "tests", ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copy(ROOT / "pyproject.toml", root)
        _copied(root)
        every = dict.fromkeys(str(root / test) for mutation in chosen for test in mutation.tests)
        code, run, red = tried(root, list(every))
        if code or red or not run:
            raise SystemExit(f"the library as it is: {run} tests, exit {code}, red: {', '.join(red)}")
        for mutation in chosen:
            _copied(root)
            broken(root / "src", mutation)
            code, run, red = tried(root, [str(root / test) for test in mutation.tests])
            noticed = code == 1 and len(red) >= (len(mutation.tests) if mutation.each else 1)
            unnoticed += not noticed
            noticed_by = ", ".join(red) if noticed else f"NOTHING ({run} tests, exit {code}, red: {', '.join(red)})"
            print(f"| {mutation.name} | {noticed_by} |", flush=True)
    return unnoticed


if __name__ == "__main__":
    print("| mutation | red |\n| --- | --- |")
    raise SystemExit(min(main(sys.argv[1:]), 1))
