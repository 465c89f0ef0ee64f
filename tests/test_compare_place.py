"""A comparison touches no folder but its own, and removes nothing before the new one can start."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from builders import raises, refused
from freerun.cli import main
from freerun.compare.plan import MARKER, check_output_dir, claim_output_dir
from freerun.compare.run import compare
from freerun.errors import OccupiedError
from simulated_runs import write_comparison
from tiny_recipes import TINY, changed, ends, write

ARMS = '\n[compare]\n[[compare.arms]]\nmethod = { name = "teacher_forcing" }\n'


def files(folder):
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("flags", [[], ["--resume"], ["--overwrite"]])
def test_a_folder_of_others_is_refused_and_left_alone(flags, tmp_path, capsys):
    for name in ("recipes/mine.toml", "runs/mine/notes.txt", "logs/a.log", "results.json"):
        (tmp_path / "home" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "home" / name).write_text("{}")
    before = files(tmp_path / "home")
    recipe = str(write(tmp_path, TINY + ARMS))
    assert main(["compare", recipe, "--out", str(tmp_path / "home"), *flags]) == 3
    assert "no comparison made what it holds (logs, recipes, results.json, runs)" in capsys.readouterr().err
    assert files(tmp_path / "home") == before
    assert "tiny.toml is a file; --out is a folder" in ends(capsys, 3, "compare", recipe, "--out", recipe, *flags).err


@pytest.mark.parametrize("marked", [True, False])
def test_overwrite_removes_what_comparisons_write_and_nothing_else(tmp_path, marked):
    write_comparison(tmp_path, words=20, updates=20)
    names = [path.name for path in (tmp_path / "runs").iterdir()]
    if marked:
        claim_output_dir(tmp_path, names, overwrite=False)
    mine = {"notes.txt", "recipes/mine.toml", "runs/mine/a", f"runs/{names[0]}/mine.txt", "logs/mine.log"}
    for name in {*mine, f"recipes/{names[0]}.toml", f"logs/{names[1]}.log", "report.html"}:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("x")
    check_output_dir(tmp_path, resume=False, overwrite=True)
    claim_output_dir(tmp_path, ["new-0"], overwrite=True)
    assert files(tmp_path) == {*mine, MARKER}
    raises(OccupiedError, "a comparison that was started", check_output_dir, tmp_path, resume=False, overwrite=False)


def test_nothing_is_removed_before_the_data_are_read(tmp_path):
    out = tmp_path / "out"
    write_comparison(out, words=20, updates=20)
    before = files(out)
    toy = 'kind = "toy"\nsymbols = 6\nmax_length = 4\ntrain = 200\ndev = 20\ntest = 20'
    recipe = write(tmp_path, changed(toy, f'kind = "pairs"\npath = "{tmp_path}/none"') + ARMS)
    refused("none", compare, recipe, [], out, overwrite=True, progress=False)
    assert files(out) == before


def test_the_demo_goes_on_where_it_was_stopped(tmp_path):
    shutil.copy(Path(__file__).parent.parent / "Makefile", tmp_path)
    for name in ("pyproject.toml", "constraints.txt", ".venv-demo/bin/freerun", ".venv-demo/.installed"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text('#!/bin/sh\necho "$@"\n')
    os.utime(tmp_path / ".venv-demo/.installed", (2**31, 2**31))
    (tmp_path / ".venv-demo/bin/freerun").chmod(0o755)
    parts = {name: tmp_path / "out" / name for name in ("mackey-glass-demo", "g2p-demo")}

    def flags():
        # the suite itself may run under make, whose variables would reach this one
        env = {name: value for name, value in os.environ.items() if name not in ("MAKEFLAGS", "MAKELEVEL", "MFLAGS")}
        done = subprocess.run(["make", "demo"], cwd=tmp_path, env=env, capture_output=True, text=True, check=True)
        said = [line.split() for line in done.stdout.splitlines() if line.startswith("compare ")]
        assert [words[1] for words in said] == [f"recipes/{name}.toml" for name in parts]
        return [words[-1] for words in said]

    assert flags() == ["--overwrite", "--overwrite"]
    for out in parts.values():
        out.mkdir(parents=True)
        (out / MARKER).write_text("{}")
    assert flags() == ["--resume", "--resume"]
    (parts["mackey-glass-demo"] / "results.json").write_text("{}")
    assert flags() == ["--overwrite", "--resume"]
    (parts["g2p-demo"] / "results.json").write_text("{}")
    assert flags() == ["--overwrite", "--overwrite"]
