"""Functions of a user's own file: found, called, and their errors explained by the user's own frames."""

import sys

import pytest

from builders import refused
from freerun.data.user_code import user_function

FILE = """
import helper

def make_model(size, layers=1):
    return helper.double(size) + layers

def broken(size):
    return helper.divide(size)

value = 3
"""
HELPER = """
def double(x):
    return 2 * x

def divide(x):
    return x / 0
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    (tmp_path / "mine.py").write_text(FILE)
    (tmp_path / "helper.py").write_text(HELPER)
    return tmp_path


def test_a_function_is_called_with_its_arguments(folder):
    function = user_function("mine.py:make_model", "x")
    assert function({"size": 4, "layers": 3}) == 11
    before = function.sha256
    (folder / "mine.py").write_text(FILE + "\n# changed")
    assert user_function("mine.py:make_model", "x").sha256 != before


def test_the_hash_holds_what_the_file_imports_from_its_folder(folder):
    make = "mine.py:make_model"
    before = user_function(make, "x")
    assert before({"size": 4}) == 9
    (folder / "beside.py").write_text("x = 1")  # imported by nobody
    (folder / "data.csv").write_text("1")
    assert user_function(make, "x").sha256 == before.sha256
    (folder / "helper.py").write_text(HELPER.replace("2 * x", "5 * x"))  # as long as before, within the second
    refused(["mine.py (or helper.py, which it imports) has changed"], user_function, make, "x", before.sha256)
    after = user_function(make, "x")
    assert after({"size": 4}) == 21
    (folder / "helper.py").write_text(HELPER + "\ndef lazy():\n    from parts.deep import x\n    return x\n")
    (folder / "parts").mkdir()
    found = [user_function(make, "x").sha256]
    for name, text in {
        "parts/__init__.py": "", "parts/deep.py": "from . import near\nx = near.y", "parts/near.py": "y = 1",
        "parts/other.py": "",
    }.items():  # fmt: skip
        (folder / name).write_text(text)
        found.append(user_function(make, "x").sha256)
    assert len(set(found)) == 4
    assert found[-1] == found[-2]
    assert not list(folder.rglob("__pycache__"))


def test_helpers_of_two_folders_keep_apart(folder, monkeypatch):
    first = user_function("mine.py:make_model", "x")
    other = folder / "other"
    other.mkdir()
    (other / "mine.py").write_text(FILE)
    (other / "helper.py").write_text(HELPER.replace("2 * x", "7 * x"))
    second = user_function("other/mine.py:make_model", "x")
    assert [first({"size": 1}), second({"size": 1}), first({"size": 1})] == [3, 8, 3]
    # a module that is loaded already would be taken in place of the file
    (folder / "json.py").write_text("x = 1")
    (folder / "late.py").write_text("import json\ndef f():\n    return 1\n")
    refused(
        ["json.py: json is also the name of a module", "give the file another name"],
        user_function("late.py:f", "x"),
        {},
    )
    (folder / "colorsys.py").write_text("x = 5")
    monkeypatch.delitem(sys.modules, "colorsys", raising=False)
    (folder / "own.py").write_text("import colorsys\ndef f():\n    return colorsys.x\n")
    assert user_function("own.py:f", "x")({}) == 5
    monkeypatch.delitem(sys.modules, "colorsys")


@pytest.mark.parametrize("call", ["sys.exit(3)", "exit()", "raise SystemExit"])
def test_a_file_that_ends_the_program_is_refused(folder, call):
    (folder / "ends.py").write_text(f"import sys\n{call}\n")
    refused(["ends.py: importing it raised SystemExit", "ends.py:2", 'if __name__ == "__main__":'],
            user_function("ends.py:f", "x"), {})  # fmt: skip
    (folder / "calls.py").write_text(f"import sys\ndef f():\n    {call}\n")
    refused(["calls.py: f() raised SystemExit", "calls.py:3 in f"], user_function("calls.py:f", "x"), {})


def test_what_is_wrong_is_named(folder):
    for make, words in {
        "mine.py": ["make must be FILE.py:FUNCTION, such as x; got 'mine.py'"],
        "mine:make_model": ["make must be FILE.py:FUNCTION"],
        "none.py:make_model": ["none.py cannot be read", "there are helper.py, mine.py"],
    }.items():
        refused(words, user_function, make, "x")
    refused(
        ["mine.py has no function make_modl", "did you mean make_model?"], user_function("mine.py:make_modl", "x"), {}
    )
    refused(["mine.py has no function value"], user_function("mine.py:value", "x"), {})
    refused(["takes size, layers", "'width'"], user_function("mine.py:make_model", "x"), {"size": 1, "width": 3})
    function = user_function("mine.py:broken", "x")
    refused(
        ["mine.py: broken(size=1) raised ZeroDivisionError", "mine.py:8 in broken: return helper.divide(size)",
         "helper.py:6 in divide: return x / 0"], function, {"size": 1},
    )  # fmt: skip
    (folder / "typo.py").write_text("def make_model(:\n")
    refused(["typo.py:1: invalid syntax"], user_function("typo.py:make_model", "x"), {})
    (folder / "early.py").write_text("import json\njson.loads('{')\n")
    refused(["early.py: importing it raised JSONDecodeError", "early.py:2"], user_function("early.py:f", "x"), {})
