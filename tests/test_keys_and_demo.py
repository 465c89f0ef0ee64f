"""``freerun keys`` lists every key of a recipe, and ``freerun demo`` is a comparison that its folder goes on with."""

import os
import pty
import subprocess
import sys

import pytest

from freerun.cli.entry import main
from freerun.recipes import load_recipe
from freerun.recipes.keys import key_rows, sections


@pytest.mark.parametrize("name", sections())
def test_every_key_has_a_meaning(name, capsys):
    cls, leave_out = sections()[name]
    assert main(["keys", name]) == 0
    printed = capsys.readouterr().out
    for key, value, default, meaning in key_rows(cls, leave_out):
        assert meaning, f"{name}.{key}"
        needed = "required" if default == "none: it is required" else f"default {default}"
        assert all(
            part in " ".join(printed.split()) for part in (f"{key} ({value}; {needed})", " ".join(meaning.split()))
        )


def test_sections_are_listed_and_guessed(capsys):
    assert main(["keys"]) == 0
    assert "data.python" in capsys.readouterr().out
    assert main(["keys", "model"]) == 0
    assert "model.transformer" in capsys.readouterr().out
    assert main(["keys", "gate"]) == 0
    assert "gate.every" in capsys.readouterr().out
    assert main(["keys", "compare"]) == 0
    assert "See also freerun keys compare.arms." in capsys.readouterr().out
    assert "evaluate.python" in sections()
    assert not any(" " in name for name in sections())
    assert main(["keys", "trian"]) == 2
    assert "did you mean train?" in capsys.readouterr().err


def test_the_demo_is_a_recipe_with_a_control():
    recipe = load_recipe("demo")
    assert [arm.label for arm in recipe.compare.arms] == ["teacher forcing", "scheduled sampling", "matched noise"]
    assert recipe.compare.arms[2].reference == "scheduled sampling"


@pytest.mark.slow  # half a minute of training
def test_the_demo_ends_in_a_verdict_and_a_page(tmp_path, capsys):
    assert main(["demo", "--out", str(tmp_path / "demo")]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "scheduled sampling is better than teacher forcing" in printed
    page = tmp_path / "demo" / "report.html"
    page.unlink()
    runs = {path: path.stat().st_mtime_ns for path in (tmp_path / "demo" / "runs").rglob("*") if path.is_file()}
    browser, opened = tmp_path / "browser", tmp_path / "opened"
    browser.write_text(f'#!/bin/sh\nprintf %s "$1" > {opened}\n')
    browser.chmod(0o755)
    command = [sys.executable, "-m", "freerun", "demo", "--out", str(tmp_path / "demo"), "--open"]
    subprocess.run(command, check=True, capture_output=True, timeout=120, env=os.environ | {"BROWSER": str(browser)})
    assert opened.read_text() == page.as_uri()
    assert page.exists()
    assert runs == {path: path.stat().st_mtime_ns for path in runs}, "a second call trains nothing again"


WITHOUT_TORCH = "import sys; sys.modules['torch'] = None\nfrom freerun.cli import main; sys.exit(main(sys.argv[1:]))"


def test_the_demo_tells_what_it_does_before_pytorch_is_loaded(tmp_path):
    command = [sys.executable, "-c", WITHOUT_TORCH, "demo", "--out", str(tmp_path / "demo")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode != 0
    assert done.stderr.startswith("freerun demo: forecast a chaotic series")
    assert f"runs and page: {tmp_path / 'demo'}" in " ".join(done.stderr.split())


@pytest.mark.parametrize("line", ["train copy --out OUT", "compare demo --out OUT", "evaluate OUT", "diagnose OUT",
                                  "generate OUT", "check OUT"])  # fmt: skip
def test_a_terminal_is_told_what_takes_the_first_seconds(line, tmp_path):
    ours, theirs = pty.openpty()
    command = [sys.executable, "-c", WITHOUT_TORCH, *line.replace("OUT", str(tmp_path / "out")).split()]
    subprocess.run(command, stderr=theirs, stdout=subprocess.DEVNULL, timeout=60, check=False)
    assert os.read(ours, 1000).decode().startswith("loading PyTorch")
    os.close(ours)
    os.close(theirs)
