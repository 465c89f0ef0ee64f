"""Nothing of a run is lost: samples of ``python tests/faults.py``, whose full counts stand in docs/guarantees.md."""

from __future__ import annotations

import tempfile
from collections.abc import Generator
from pathlib import Path

import pytest

import faults
from faults import Count, Lives


@pytest.fixture(scope="module")
def lives() -> Generator[Lives]:
    with tempfile.TemporaryDirectory(dir=faults.MEMORY) as root, Lives(Path(root)) as lives:
        yield lives


def assert_held(count: Count, tried: int) -> None:
    assert not count.failures, "\n".join(count.failures)
    assert count.tried >= tried


def test_killed_at_a_file_event_a_run_goes_on_to_the_same_bits(lives: Lives) -> None:
    count = faults.kills_at_events(lives, every=43, first=21)
    assert_held(count, 9)
    assert count.facts["events"] >= 400


def test_killed_at_random_moments_a_run_goes_on_to_the_same_bits(lives: Lives) -> None:
    assert_held(faults.random_kills(lives, 8, seed=0), 8)


def test_a_second_run_in_the_folder_is_refused_and_changes_nothing(lives: Lives) -> None:
    assert_held(faults.second_runs(lives, every=150, first=30), 12)


def test_a_full_disk_is_said_and_the_run_goes_on_when_there_is_room(lives: Lives) -> None:
    assert_held(faults.full_disks(lives, [10, 15_000, 40_000]), 3)


@pytest.mark.slow(reason="a life and its resume for each of more than 400 file events; 100 random kills")
def test_killed_at_every_file_event_and_at_a_hundred_random_moments(lives: Lives) -> None:
    assert_held(faults.kills_at_events(lives, first=21), 400)
    assert_held(faults.random_kills(lives, 100, seed=1), 100)
