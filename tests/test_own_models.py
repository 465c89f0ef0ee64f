"""Three programs of other people's, each converted in 15 lines, each ending in a verdict and a page."""

import difflib
import runpy
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent.parent / "examples" / "own"
TINY = {
    "translation": ["--epochs", "1", "--hidden", "4"],
    "transformer": ["--epochs", "1", "--emb-size", "4"],
    "forecast": ["--epochs", "1"],
}
names = pytest.mark.parametrize("name", TINY)


def code(name: str) -> list[str]:
    """The lines of a program without its docstring, imports and blank lines."""
    text = (FOLDER / f"{name}.py").read_text(encoding="utf-8").split('"""\n', 1)[1]
    lines = [line for line in text.splitlines() if line.strip()]
    return [line for line in lines if not line.startswith(("import ", "from "))]


def changed(name: str) -> list[str]:
    diff = difflib.unified_diff(code(f"{name}_before"), code(f"{name}_after"), n=0, lineterm="")
    return [line for line in diff if line.startswith("+") and not line.startswith("+++")]


@names
def test_a_conversion_takes_fifteen_lines(name):
    assert 0 < len(changed(name)) <= 15, changed(name)


@names
@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors:UserWarning")  # of nn.TransformerEncoder
def test_a_conversion_ends_in_a_verdict_and_a_page(name, monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [name, *TINY[name]])
    monkeypatch.syspath_prepend(str(FOLDER))
    import freerun as fr

    compare = fr.compare

    def short(*positional, **named):
        return compare(*positional, **{**named, "updates": 2, "seeds": [0]})

    monkeypatch.setattr(fr, "compare", short)
    runpy.run_path(str(FOLDER / f"{name}_after.py"), run_name="__main__")
    output = capsys.readouterr().out
    assert "matched noise control noise" in " ".join(output.split())
    page = (tmp_path / f"{name}.html").read_text(encoding="utf-8")
    assert "matched noise control noise" in page


@names
def test_the_original_runs(name, monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [name, "--epochs", "1"])
    monkeypatch.syspath_prepend(str(FOLDER))
    runpy.run_path(str(FOLDER / f"{name}_before.py"), run_name="__main__")
    assert capsys.readouterr().out
