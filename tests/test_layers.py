"""The rooms: a module imports only from rows above its own, and within a row only from modules left of it."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

SOURCE = Path(__file__).parent.parent / "src" / "freerun"

# import order; the modules of row 2 do not know each other
ROWS = [
    ["errors", "batch", "types", "keys", "distributions"],
    ["schedules", "gates", "draws", "objectives", "metrics"],
    ["rollin", "generate", "transforms"],
    ["methods", "diagnostics", "checks"],
    ["models", "data"],
    ["scores", "integrations", "training", "config", "compare"],
    ["report", "cli", "hf", "lightning"],
]
PLACE = {name: (row, column) for row, names in enumerate(ROWS) for column, name in enumerate(names)}
TORCH_ONLY = {name for row in ROWS[:4] for name in row}


def room(path: Path) -> str:
    return path.relative_to(SOURCE).parts[0].removesuffix(".py")


def imported(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            names = (
                [f"{node.module}.{alias.name}" for alias in node.names] if node.module == "freerun" else [node.module]
            )
            found |= set(names)
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return found


FILES = [path for path in sorted(SOURCE.rglob("*.py")) if room(path) not in ("__init__", "__main__")]


def allowed(mine: str, other: str) -> bool:
    (row, column), (their_row, their_column) = PLACE[mine], PLACE[other]
    if mine == other or other == "errors":
        return True
    if mine in ("models", "data"):
        return their_row < 2 or (row == their_row and their_column < column)
    return their_row < row or (their_row == row and row != 1 and their_column < column)


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(SOURCE)))
def test_imports_go_up(path):
    mine = room(path)
    assert mine in PLACE, f"{mine} has no place in the table of rooms"
    for name in imported(path):
        parts = name.split(".")
        if parts[0] == "freerun" and len(parts) > 1 and not parts[1].startswith("__"):
            assert allowed(mine, parts[1]), f"{path.name} imports {name}"
        elif mine in TORCH_ONLY:
            assert parts[0] == "torch" or parts[0] in sys.stdlib_module_names, f"{path.name} imports {name}"


def test_the_rules_refuse_what_they_should():
    assert not allowed("gates", "draws")
    assert not allowed("rollin", "methods")
    assert not allowed("models", "rollin")
    assert not allowed("generate", "transforms")
    assert allowed("checks", "methods")


def test_importing_freerun_and_using_a_method_loads_torch_and_nothing_else():
    code = (
        "import sys, torch; before = set(sys.modules)\n"
        "import freerun as fr; fr.scheduled_sampling(0.5); fr.generate; fr.check_model; fr.METHODS\n"
        "new = {m.split('.')[0] for m in set(sys.modules) - before} - set(sys.stdlib_module_names)\n"
        "assert new <= {'freerun', 'torch'}, new"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_files_and_functions_stay_small():
    """Files to 300 lines, functions to 50 without docstring: what is larger wants to be two."""
    long = [f"{p.name}: {n} lines" for p in FILES if (n := len(p.read_text("utf-8").splitlines())) > 300]
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.FunctionDef):
                start = node.body[1] if ast.get_docstring(node) and len(node.body) > 1 else node
                lines = node.end_lineno - start.lineno + 1
                long += [f"{path.name}: {node.name} {lines} lines"] if lines > 50 else []
    assert not long, long
