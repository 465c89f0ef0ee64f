"""Nothing of a run is lost: samples of ``python tests/faults.py``, whose full counts stand in docs/guarantees.md."""

import ast
import tempfile
from pathlib import Path

import pytest

import fault_damage
import faults
from faults import HERE, Count, Lives


@pytest.fixture(scope="module")
def lives():
    with tempfile.TemporaryDirectory(dir=faults.MEMORY) as root, Lives(Path(root)) as lives:
        yield lives


def assert_held(count: Count, tried: int) -> None:
    assert not count.failures, "\n".join(count.failures)
    assert count.tried >= tried


def test_killed_at_a_file_event_a_run_goes_on_to_the_same_bits(lives):
    count = faults.kills_at_events(lives, every=97, among_first=4)
    assert_held(count, 10)
    assert count.facts["events"] >= 400


def test_killed_at_random_moments_a_run_goes_on_to_the_same_bits(lives):
    assert_held(faults.random_kills(lives, 3, seed=0), 3)
    # later than the processes meet: one that waits for another that is gone takes a minute
    assert_held(faults.random_kills(lives, 1, seed=0, world=2, earliest=0.5), 1)


def test_stopped_after_an_update_a_run_goes_on_to_the_same_bits(lives):
    assert_held(faults.stops_at_updates(lives, every=7, first=3), 2)


def test_signalled_at_random_moments_a_run_goes_on_to_the_same_bits(lives):
    assert_held(faults.signals(lives, 4, seed=0), 4)


def test_a_second_run_in_the_folder_is_refused_and_changes_nothing(lives):
    assert_held(faults.second_runs(lives, every=250, first=1), 5)


def test_a_full_disk_is_said_and_the_run_goes_on_when_there_is_room(lives):
    assert_held(faults.full_disks(lives, [10, 40_000]), 2)


def test_damaged_files_are_refused_by_name_or_make_no_difference(lives):
    assert_held(fault_damage.damages(lives, 20, seed=0), 20)


def test_nothing_is_unpickled():
    found = {"pickle", "torch.load", "dill", "joblib", "marshal", "shelve", "cloudpickle"}
    for path in (HERE.parent / "src").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            named = {alias.name for alias in node.names} if isinstance(node, ast.Import) else set()
            named |= {node.module} if isinstance(node, ast.ImportFrom) else set()
            named |= {ast.unparse(node)} if isinstance(node, ast.Attribute) else set()
            assert not named & found, f"{path}: {named & found}"


@pytest.mark.slow(reason="all that the quick tests take samples of, as docs/guarantees.md counts it: an hour")
@pytest.mark.parametrize("campaign", [name for name in faults.CAMPAIGNS if name != "real-disks"])
def test_every_fault_in_full(lives, campaign):
    _, run, full = faults.CAMPAIGNS[campaign]
    assert_held(run(lives, full, 0), 1)
