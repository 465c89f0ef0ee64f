"""The tests of the Hugging Face adapters fail where they should: every way of breaking the library turns one red."""

import subprocess
import sys
from pathlib import Path

import pytest

from mutations import MUTATIONS

ROOT = Path(__file__).resolve().parent.parent


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.name)
def test_what_is_to_be_broken_stands_in_the_code(mutation):
    path, start, end = mutation.find(ROOT / "src" / "freerun")
    assert mutation.wrong not in path.read_text()[start:end] or len(mutation.wrong) < len(mutation.right)
    for test in mutation.tests:
        file, name = test.split("::")
        assert f"def {name.split('[')[0]}(" in (ROOT / file).read_text()


@pytest.mark.slow  # some thirty runs of a few tests each: two minutes
def test_every_mutation_turns_a_test_red():
    done = subprocess.run(
        [sys.executable, "-B", str(ROOT / "tests" / "run_mutations.py")],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
    assert "NOTHING" not in done.stdout
    assert done.stdout.count("\n") == len(MUTATIONS) + 2
