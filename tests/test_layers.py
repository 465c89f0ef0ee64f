"""The rooms: a module imports only from rows above its own, and within a row only from modules left of it."""

import ast
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

SOURCE = Path(__file__).parent.parent / "src" / "freerun"

# import order; the modules of row 2 do not know each other
ROWS = [
    ["errors", "terminal", "arguments", "signals", "batch", "types", "keys", "distributions"],
    ["schedules", "gates", "draws", "objectives", "targets", "regression", "metrics"],
    ["rollin", "transforms"],
    ["decoding", "generation", "methods", "checks", "diagnostics"],
    ["models", "data"],
    ["tasks", "training", "integrations"],
    ["recipes", "comparison"],
    ["report", "experiments", "cli", "hf", "lightning"],
]
PLACE = {name: (row, column) for row, names in enumerate(ROWS) for column, name in enumerate(names)}
TORCH_ONLY = {name for row in ROWS[:4] for name in row}


# scores of texts are those of their libraries, imported inside of functions
SCORES = ("metrics/text.py", "metrics/reduction.py")


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


PROJECT = tomllib.loads((SOURCE.parent.parent / "pyproject.toml").read_text("utf-8"))["project"]
CORE = {line.partition(">")[0].removesuffix("-python").replace("-", "_") for line in PROJECT["dependencies"]}
# module -> the extra that brings it
BROUGHT = {
    "torch.utils.tensorboard": "tensorboard", "tokenizers": "translate",
    "sacrebleu": "translate", "polars": "series", "transformers": "hf", "accelerate": "hf", "datasets": "hf",
    "lightning": "lightning",
    "freerun.models.huggingface": "hf", "freerun.integrations.hf_adapt": "hf",
    "freerun.integrations.hf_trainer": "hf", "freerun.integrations.hf_runner": "hf",
    "freerun.integrations.hf_scores": "hf", "freerun.integrations.hf_generate": "hf",
    "freerun.integrations.hf_mistakes": "hf",
    "freerun.integrations.lightning": "lightning", "ray": "ray",
}  # fmt: skip
# rooms that are entered through `needing` alone, and so may import the packages of one extra
PLUGINS = {"models/huggingface": "hf", "integrations/hf_": "hf", "integrations/lightning": "lightning"}


def imports(node: ast.AST, door: str | None = None):
    """Every import below a node, with the extra that the `with needing(...)` around it names; typing's left out."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING":
            continue
        if isinstance(child, ast.Import):
            yield from ((alias.name, door) for alias in child.names)
        elif isinstance(child, ast.ImportFrom) and child.level == 0:
            yield child.module, door
        elif isinstance(child, ast.Call) and ast.unparse(child.func).endswith("import_module"):
            # a computed name is a user's module, or one of ours: test_extras asks for all of those
            yield from ((name.value, door) for name in child.args[:1] if isinstance(name, ast.Constant))
        call = child.items[0].context_expr if isinstance(child, ast.With) else None
        named = isinstance(call, ast.Call) and ast.unparse(call.func) == "needing"
        yield from imports(child, call.args[0].value if named else door)


def misplaced(path: str, code: str) -> list[str]:
    """Imports of what an extra brings that would fail without it, and say nothing of it."""
    plugin = next((extra for room, extra in PLUGINS.items() if path.startswith(room)), None)
    found = []
    for name, door in imports(ast.parse(code)):
        extra = next((extra for module, extra in BROUGHT.items() if f"{name}.".startswith(f"{module}.")), None)
        top = name.partition(".")[0]
        if extra is not None and extra not in (plugin, door):
            found.append(f"{path}: {name} outside of `with needing({extra!r}, ...)`")
        elif extra is None and top.isidentifier() and top not in CORE | sys.stdlib_module_names | {"freerun"}:
            found.append(f"{path}: {name} is of no dependency that the tests know")
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
        elif mine in TORCH_ONLY and str(path.relative_to(SOURCE)) not in SCORES:
            assert parts[0] == "torch" or parts[0] in sys.stdlib_module_names, f"{path.name} imports {name}"


def test_the_rules_refuse_what_they_should():
    assert not allowed("gates", "draws")
    assert not allowed("rollin", "methods")
    assert not allowed("models", "rollin")
    assert not allowed("generation", "diagnostics")
    assert allowed("checks", "methods")


def test_what_an_extra_brings_is_imported_through_the_door_that_names_it():
    assert not [each for path in FILES for each in misplaced(str(path.relative_to(SOURCE)), path.read_text("utf-8"))]


@pytest.mark.parametrize(
    "code",
    [
        "import transformers",
        "def f():\n    from freerun.models.huggingface import HuggingFaceModel",
        "def f():\n    with needing('series', 'x'):\n        import transformers.utils",
        "def f():\n    try:\n        import polars\n    except ImportError:\n        pass",
        "import importlib\nimportlib.import_module('freerun.integrations.lightning')",
        "import pandas",
    ],
)
def test_an_import_outside_of_the_door_is_seen(code):
    assert misplaced("training/weights.py", code)
    assert not misplaced(
        "training/weights.py", "def f():\n    with needing('hf', 'x'):\n        import transformers.utils"
    )
    assert not misplaced("models/huggingface/model.py", "import transformers")


def test_importing_freerun_and_using_a_method_loads_torch_and_nothing_else():
    code = (
        "import sys, torch; before = set(sys.modules)\n"
        "import freerun as fr; fr.scheduled_sampling(0.5); fr.generate; fr.check_model; fr.METHODS\n"
        "new = {m.split('.')[0] for m in set(sys.modules) - before} - set(sys.stdlib_module_names)\n"
        "assert new <= {'freerun', 'torch'}, new"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_recurrent_model_without_weights_does_not_load_the_compiler():
    code = (
        "import sys, torch; from freerun.models import make_model, without_weights as without\n"
        "with without():\n"
        "    models = [make_model(kind, 8, 8) for kind in ('recurrent', 'recurrent_labeller')]\n"
        "    models += [make_model(kind, 3) for kind in ('recurrent_forecaster', 'plain_forecaster')]\n"
        "assert all(weight.is_meta for model in models for weight in model.parameters())\n"
        "assert 'torch._dynamo' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_files_and_functions_stay_small():
    """Files to 600 lines, functions to 60 without docstring: what is larger wants to be two."""
    long = [f"{p.name}: {n} lines" for p in FILES if (n := len(p.read_text("utf-8").splitlines())) > 600]
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.FunctionDef):
                start = node.body[1] if ast.get_docstring(node) and len(node.body) > 1 else node
                lines = node.end_lineno - start.lineno + 1
                long += [f"{path.name}: {node.name} {lines} lines"] if lines > 60 else []
    assert not long, long


def test_what_catches_everything_lets_out_of_memory_through():
    """Memory that ran out is no answer about a model, a file or a template: it has an exit code of its own."""
    through = {"entry.py", "processes.py"}  # which raise, or answer, whatever it is
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.ExceptHandler) and node.type is not None and path.name not in through:
                caught = {each.id for each in ast.walk(node.type) if isinstance(each, ast.Name)}
                code = ast.unparse(node)
                looked = any(word in code for word in ("out_of_memory(", "explained(", "raised("))
                assert "Exception" not in caught or looked, f"{path.name}:{node.lineno}"
