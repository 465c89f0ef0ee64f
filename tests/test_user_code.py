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
    monkeypatch.delitem(sys.modules, "helper", raising=False)
    (tmp_path / "mine.py").write_text(FILE)
    (tmp_path / "helper.py").write_text(HELPER)
    return tmp_path


def test_a_function_is_called_with_its_arguments(folder):
    function = user_function("mine.py:make_model", "x")
    assert function({"size": 4, "layers": 3}) == 11
    before = function.sha256
    (folder / "mine.py").write_text(FILE + "\n# changed")
    assert user_function("mine.py:make_model", "x").sha256 != before


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
