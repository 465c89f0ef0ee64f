"""A few of the cases of ``fuzz.py``, and those of them that failed once; thousands are tried by command."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
SEED = 7


@pytest.mark.parametrize("kind", ["recipes", "data"])
def test_hostile_input_is_never_a_fault_of_ours(kind, tmp_path):
    found = subprocess.run(
        [sys.executable, HERE / "fuzz.py", kind, "--cases", "40", "--seed", str(SEED)],
        capture_output=True, text=True, timeout=900, check=False, env=os.environ | {"TMPDIR": str(tmp_path)},
    )  # fmt: skip
    assert found.returncode == 0, found.stdout + found.stderr[-2000:]
    assert ", 0 failed" in found.stdout
