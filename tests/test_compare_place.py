"""A comparison touches no folder but its own, and removes nothing before the new one can start."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from builders import raises, refused
from freerun.comparison.plan import MARKER, check_output_dir, claim_output_dir
from freerun.comparison.run import compare
from freerun.errors import OccupiedError
from simulated_runs import write_comparison
from tiny_recipes import TINY, TOY, changed, ends, write

ARMS = '\n[compare]\n[[compare.arms]]\nmethod = { name = "teacher_forcing" }\n'


def files(folder):
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def put(folder, *names, text="{}"):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)


@pytest.mark.parametrize("flags", [[], ["--resume"], ["--overwrite"]])
def test_a_folder_of_others_is_refused_and_left_alone(flags, tmp_path, capsys):
    home, recipe = tmp_path / "home", write(tmp_path, TINY + ARMS)
    put(home, "recipes/mine.toml", "runs/mine/notes.txt", "logs/a.log", "results.json")
    before = files(home)
    err = ends(capsys, 3, "compare", recipe, "--out", home, *flags).err
    assert "no comparison made what it holds (logs, recipes, results.json, runs)" in err
    assert files(home) == before
    assert "tiny.toml is a file; --out is a folder" in ends(capsys, 3, "compare", recipe, "--out", recipe, *flags).err


@pytest.mark.parametrize("marked", [True, False])
def test_overwrite_removes_what_comparisons_write_and_nothing_else(tmp_path, marked):
    write_comparison(tmp_path, words=20, updates=20)
    names = [path.name for path in (tmp_path / "runs").iterdir()]
    if marked:
        claim_output_dir(tmp_path, names, overwrite=False)
    mine = {"notes.txt", "recipes/mine.toml", "runs/mine/a", f"runs/{names[0]}/mine.txt", "logs/mine.log"}
    put(tmp_path, *mine, f"recipes/{names[0]}.toml", f"logs/{names[1]}.log", "report.html")
    check_output_dir(tmp_path, resume=False, overwrite=True)
    claim_output_dir(tmp_path, ["new-0"], overwrite=True)
    assert files(tmp_path) == {*mine, MARKER}
    raises(OccupiedError, "a comparison that was started", check_output_dir, tmp_path, resume=False, overwrite=False)


def test_nothing_is_removed_before_the_data_are_read(tmp_path):
    out = tmp_path / "out"
    write_comparison(out, words=20, updates=20)
    before = files(out)
    recipe = write(tmp_path, changed(TOY, f'kind = "pairs"\npath = "{tmp_path}/none"\n') + ARMS)
    refused("none", compare, recipe, [], out, overwrite=True, progress=False)
    assert files(out) == before


def test_the_demo_goes_on_where_it_was_stopped(tmp_path):
    shutil.copy(Path(__file__).parent.parent / "Makefile", tmp_path)
    command, installed = ".venv-demo/bin/freerun", ".venv-demo/.installed"
    put(tmp_path, "pyproject.toml", "constraints.txt", command, installed, text='#!/bin/sh\necho "$@"\n')
    os.utime(tmp_path / installed, (2**31, 2**31))
    (tmp_path / command).chmod(0o755)
    names = symbols, chaos, words = "symbols-demo", "mackey-glass-demo", "g2p-demo"

    def flags():
        # the suite itself may run under make, whose variables would reach this one
        env = {name: value for name, value in os.environ.items() if name not in ("MAKEFLAGS", "MAKELEVEL", "MFLAGS")}
        done = subprocess.run(["make", "demo"], cwd=tmp_path, env=env, capture_output=True, text=True, check=True)
        lines = [line.split() for line in done.stdout.splitlines() if line.startswith("compare ")]
        assert [line[1] for line in lines] == [f"recipes/{name}.toml" for name in names]
        return [line[-1] for line in lines]

    new, on = "--overwrite", "--resume"
    assert flags() == [new, new, new]
    put(tmp_path / "out", *(f"{name}/{MARKER}" for name in names))
    assert flags() == [on, on, on]
    put(tmp_path / "out", f"{symbols}/results.json", f"{chaos}/results.json")
    assert flags() == [new, new, on]
    put(tmp_path / "out", f"{words}/results.json")
    assert flags() == [new, new, new]
