"""A run that is killed with -9, and resumed, ends with the same bits as one that never stopped."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from pathlib import Path

import pytest

from training_world import fingerprints, train

LIVES = Path(__file__).with_name("training_lives.py")


def lives(folder: Path, deaths: list[tuple[str, float]]) -> int:
    """Train in lives that end so; how many of them were really killed."""
    command = [sys.executable, "-W", "error::UserWarning", str(LIVES), str(folder), json.dumps(deaths)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    folder = tmp_path_factory.mktemp("whole") / "run"
    train(folder)
    return fingerprints(folder)


def test_killed_between_updates_in_a_save_and_from_outside_ends_with_the_same_bits(
    tmp_path: Path, whole: dict[str, object]
) -> None:
    # before the first checkpoint, between two, inside the files of one, right after a rename
    deaths = [("update", 1), ("update", 8), ("fsync", 2), ("fsync", 8), ("rename", 1), ("update", 9)]
    # and between the last save and the removal of what it made superfluous
    deaths.append(("rename", 6))
    assert lives(tmp_path / "run", deaths) == len(deaths)
    assert fingerprints(tmp_path / "run") == whole


@pytest.mark.slow(reason="a life for each of the run's updates, file syncs and renames, and 40 at random moments")
@pytest.mark.parametrize("kind", ["update", "fsync", "rename", "after"])
def test_killed_at_every_point_ends_with_the_same_bits(tmp_path: Path, whole: dict[str, object], kind: str) -> None:
    number = random.Random(kind)
    killed = 0
    for _ in range(4):
        points = {"update": 7, "fsync": 40, "rename": 8}
        deaths = [
            (kind, round(number.uniform(0, 1.5), 3) if kind == "after" else float(number.randint(1, points[kind])))
            for _ in range(10)
        ]
        folder = tmp_path / f"run-{killed}"
        killed += lives(folder, deaths) + 1
        assert fingerprints(folder) == whole
    assert killed > 8
