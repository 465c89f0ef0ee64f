"""The texts: code blocks run, commands exist, links resolve, generated pages are what the library says."""

import importlib.util
import itertools
import re
import shlex
import tomllib
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest
from sybil import Sybil
from sybil.parsers.markdown import PythonCodeBlockParser

from builders import raises

ROOT = Path(__file__).parent.parent
TEXTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])
# the Chinese page has the code of the English one, line for line, and only the comments differ: see the test of both
RUN = [path for path in TEXTS if path.name == "README.md" or path.parent.name == "docs"]


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def blocks(path: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", path.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)


def commands(path: Path) -> list[list[str]]:
    """The commands of a text's console blocks, as words; output is left out."""
    lines = [line[2:] for block in blocks(path, "console") for line in block.splitlines() if line.startswith("$ ")]
    return [shlex.split(part, comments=True) for line in lines for part in line.split("&&")]


@pytest.mark.parametrize("path", RUN, ids=name)
def test_python_blocks_run(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # what they save is not left in the checkout
    examples = list(Sybil(parsers=[PythonCodeBlockParser()]).parse(path).examples())
    assert len(examples) == len(blocks(path, "python"))
    for example in examples:
        example.evaluate()


def test_the_texts_that_promise_code_have_it():
    counts = {name(path): len(blocks(path, "python")) for path in RUN}
    assert counts["README.md"] >= 2
    assert counts["docs/mixture.md"] >= 4
    assert counts["docs/exactness.md"] >= 2


def test_both_readmes_show_the_same_code_and_commands():
    english, chinese = ROOT / "README.md", ROOT / "README.zh-CN.md"
    code = [[re.sub(r" *#.*", "", block) for block in blocks(path, "python")] for path in (english, chinese)]
    assert code[0] == code[1]
    assert commands(english) == commands(chinese)


def begun() -> set[str]:
    """The files that a text begins with freerun recipes NAME > FILE."""
    return {words[-1] for path in TEXTS for words in commands(path) if words[:2] == ["freerun", "recipes"]}


def check_freerun(words: list[str]) -> None:
    """The command line is one that the command takes, and its recipe is one that is there."""
    from freerun.cli.app import app
    from freerun.recipes.source import shipped_recipes

    words, target = (words[: words.index(">")], words[-1]) if ">" in words else (words, None)
    assert target is None or target.endswith(".toml")
    assert words[1] in set(app), f"there is no command freerun {words[1]}"
    # reads the line as the command would, and runs nothing
    app.parse_args(words[1:], exit_on_error=False, print_error=False)
    if words[1] == "recipes" and target is not None:
        assert words[2] in shipped_recipes(), f"there is no recipe {words[2]}"
    if words[1] in ("train", "compare") and not words[2].isupper() and words[2] not in begun():
        assert words[2] in shipped_recipes() or (ROOT / words[2]).is_file(), f"there is no recipe {words[2]}"


def check_pip(words: list[str]) -> None:
    """The extras and the constraints file are there."""
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    for word in words:
        for extra in re.findall(r"\[(.*)\]", word):
            assert set(extra.split(",")) <= extras.keys()
    for option, value in itertools.pairwise(words):
        assert option != "-c" or (ROOT / value).is_file()


def check_make(words: list[str]) -> None:
    """The Makefile has the target."""
    makefile = ROOT / "Makefile"
    assert makefile.is_file(), f"{' '.join(words)} stands in a text, and there is no Makefile"
    targets = re.findall(r"^([\w-]+)\s*:(?!=)", makefile.read_text(encoding="utf-8"), re.MULTILINE)
    assert set(words[1:]) <= set(targets)


def check_python(words: list[str]) -> None:
    """A script that is to be run is there."""
    if not words[1].startswith("-"):
        assert (ROOT / words[1]).is_file()


def check_torchrun(words: list[str]) -> None:
    """It starts a command of ours, or a script that is there or whose name stands for the reader's."""
    from torch.distributed.run import get_args_parser

    known = get_args_parser().parse_args(words[1:])
    if known.module:
        assert known.training_script == "freerun"
        check_freerun([known.training_script, *known.training_script_args])
    else:
        assert known.training_script.removesuffix(".py").isupper() or (ROOT / known.training_script).is_file()


CHECKS = {
    "freerun": check_freerun,
    "torchrun": check_torchrun,
    "pip": check_pip,
    "make": check_make,
    "python": check_python,
}
OTHERS = {".", "ruff", "pyright", "uv", "ray"}
COMMANDS = [(path, words) for path in TEXTS for words in commands(path)]


@pytest.mark.parametrize(("path", "words"), COMMANDS, ids=lambda x: name(x) if isinstance(x, Path) else " ".join(x))
def test_console_commands_exist(path, words):
    assert words[0] in CHECKS or words[0] in OTHERS, f"{name(path)}: unknown program {words[0]}"
    CHECKS.get(words[0], lambda _: None)(words)


@pytest.mark.parametrize("words", [["freerun", "trian", "copy"], ["freerun", "train", "nosuch", "--out", "x"]])
def test_a_wrong_command_would_be_noticed(words):
    raises(AssertionError, "", check_freerun, words)


def test_a_wrong_option_would_be_noticed():
    from cyclopts import CycloptsError

    raises(CycloptsError, "", check_freerun, ["freerun", "train", "copy", "--outt", "x"])


@pytest.mark.parametrize("path", [ROOT / "README.md", ROOT / "README.zh-CN.md"], ids=name)
def test_the_readme_lists_every_command_and_option(path):
    from freerun.cli.app import app

    listed = re.findall(r"^\| `freerun (\w+)", path.read_text(encoding="utf-8"), re.MULTILINE)
    assert sorted(listed) == sorted(command for command in app if not command.startswith("-"))


@pytest.mark.parametrize("path", [ROOT / "README.md", ROOT / "README.zh-CN.md"], ids=name)
def test_no_method_there_is_stands_among_what_is_missing(path):
    import freerun as fr

    (missing,) = re.findall(r"^- \*\*(?:Not yet|尚未实现)[\s\S]*?\n(?=- |\n)", path.read_text("utf-8"), re.MULTILINE)
    assert [each for each in fr.METHODS if each in missing or each.replace("_", " ") in missing] == []


@pytest.mark.parametrize("path", TEXTS, ids=name)
def test_local_links_resolve(path):
    text = re.sub(r"^```.*?^```$", "", path.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if "://" in target:
            continue
        file, _, anchor = target.partition("#")
        linked = path.parent / file if file else path
        assert linked.exists(), f"{name(path)} links to {target}"
        if anchor:
            headings = re.findall(r"^#+ (.*)$", linked.read_text(encoding="utf-8"), re.MULTILINE)
            anchors = [re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings]
            assert anchors.count(anchor) == 1, f"{name(path)} links to {target}: {anchors.count(anchor)} headings"


@pytest.mark.parametrize("name", ["make_pages", "make_architecture"])
def test_what_is_written_from_the_library_is_what_the_library_says(name):
    spec = importlib.util.spec_from_file_location(name, ROOT / "docs" / f"{name}.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    assert script.main(["--check"]) == 0, f"run python docs/{name}.py"


def test_every_test_that_the_architecture_names_exists():
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    named = re.findall(r"`tests/(\w+\.py)::(\w+)`", text)
    assert named
    for file, function in named:
        assert f"def {function}(" in (ROOT / "tests" / file).read_text(encoding="utf-8"), f"{file}::{function}"


def test_the_results_page_names_the_fields_that_are_written():
    """The public fields of results.json, as its page lists them."""
    text = (ROOT / "docs" / "run-folder.md").read_text(encoding="utf-8")
    public = ["schema", "recipe", "runs", "summary", "comparisons", "verdict", "method", "seed", "signature", "seconds"]
    public += ["free_running", "teacher_forced", "decoder_passes", "updates", "metric", "mean", "low", "high", "seeds"]
    assert [field for field in public if f"`{field}`" not in text] == []


def test_the_picture_is_a_picture():
    root = ElementTree.parse(ROOT / "docs" / "history.svg").getroot()
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    assert root.find("{http://www.w3.org/2000/svg}title") is not None


def test_versions_agree():
    import freerun

    cited = re.search(r"^version: (.*)$", (ROOT / "CITATION.cff").read_text(encoding="utf-8"), re.MULTILINE)
    assert cited is not None
    assert cited[1] == freerun.__version__


def test_every_test_that_a_guarantee_names_exists():
    text = (ROOT / "docs" / "guarantees.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (\d+) \| (.*) \|$", text, re.MULTILINE)
    assert [int(number) for number, _ in rows] == list(range(1, 27))
    for number, row in rows:
        named = re.findall(r"`(test_\w+\.py)::(\w+)`", row)
        assert named, f"row {number} names no test"
        assert "fails" not in row.split(" | ")[2]
        for file, test in named:
            assert f"def {test}(" in (ROOT / "tests" / file).read_text(encoding="utf-8"), f"{file} has no {test}"
