"""docs/papers.md: every method's paper is there, and every line builds."""

import importlib.util
import re
from pathlib import Path
from typing import Any

import pytest

import freerun as fr
from freerun.methods import Method

DOCS = Path(__file__).parent.parent / "docs"
SPEC = importlib.util.spec_from_file_location("paper_lines", DOCS / "paper_lines.py")
MODULE: Any = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(MODULE)
PAGE = (DOCS / "papers.md").read_text("utf-8")
ROWS = [line for line in PAGE.splitlines() if re.match(r"\| .*(19|20)\d\d", line)]


def test_every_method_is_there():
    assert {source.split("/")[0] for source, _, _ in MODULE.LINES} >= set(fr.METHODS)


def test_a_paper_has_one_row_with_all_its_lines():
    numbers = re.findall(r"\d{4}\.\d{5}", "".join(ROWS))
    assert sorted(set(numbers)) == sorted(numbers)
    assert len(ROWS) > 35
    assert [line for _, _, line in MODULE.LINES if f"`{line}`" not in PAGE] == []
    # a citation of two papers is two rows
    assert sum("Doya" in row or "Hess" in row for row in ROWS) == 2


@pytest.fixture(scope="module")
def names() -> dict[str, Any]:
    """What the page's code defines."""
    found: dict[str, Any] = {}
    exec(re.search(r"^```python\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)[1], found)
    return found


@pytest.mark.parametrize(("source", "what", "line"), MODULE.LINES, ids=[line for _, _, line in MODULE.LINES])
def test_every_line_builds_the_method_that_it_stands_for(source, what, line, names):
    made = eval(line, names)
    if line.startswith("fr.control"):
        assert made.word == "confusion"
    elif "(" not in line:
        assert made is getattr(fr, line.removeprefix("fr."))
    else:
        assert isinstance(made, Method)
        assert source.split("/")[0] in (made.name, *fr.PRESETS, *fr.SCHEDULES) or source not in fr.METHODS or what
