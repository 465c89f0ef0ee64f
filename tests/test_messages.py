"""What a user's data can do to a terminal, to a message's length and to a table: nothing."""

import json
import pickle
import re
from pathlib import Path

import pytest

from freerun.cli import entry, main
from freerun.errors import CheckpointError, UserError, display, listed, visible
from tiny_recipes import TINY, ends, write

SOURCE = Path(__file__).parent.parent / "src" / "freerun"
STEERING = "\x1b[31m\x00\x07\x9b2J\u202e\u2066\u2028\x85\r\n"


def is_plain(text):
    return all(character == "\n" or character.isprintable() for character in text)


def test_whatever_a_problem_shows_it_is_one_line_of_bounded_length():
    error = UserError([f"x.csv:3: {STEERING} is no number\n  help: write it with a point", "y" * 10**6])
    assert [len(problem.split("\n")) for problem in error.problems] == [2, 1]
    assert is_plain(str(error))
    assert r"\x1b[31m\x00\x07\x9b2J\u202e\u2066\u2028\x85\r\n" in error.problems[0]
    assert len(error.problems[1]) <= 620
    (cut,) = UserError(f"got {'z' * 250!r}, expected a number").problems
    assert cut == f"got '{'z' * 200}'..., expected a number"
    again = pickle.loads(pickle.dumps(CheckpointError(error.problems)))
    assert type(again) is CheckpointError
    assert again.problems == error.problems


def test_values_are_shown_whatever_they_are():
    deep = []
    for _ in range(10**5):
        deep = [deep]
    assert display(deep) == "a list too large to show"
    assert display(10**5000) == "a int too large to show"
    assert len(display(list(range(10**6)))) < 220
    assert visible("a\tb\x1b", keep="\t") == "a\tb\\x1b"
    assert listed(f"column {number}" for number in range(1000)).endswith(" more")


@pytest.mark.parametrize("raised", [ValueError(STEERING), OSError(36, "File name too long", "x" * 5000 + STEERING)])
def test_errors_of_libraries_are_plain_too(raised, capsys):
    def command():
        raise raised

    entry.guarded(command, [STEERING])
    err = capsys.readouterr().err
    assert is_plain(err)
    assert max(map(len, err.split("\n"))) < 700


def test_nothing_of_a_recipe_or_a_command_line_steers_the_terminal(tmp_path, capsys):
    text = TINY.replace("seed = 3", '"\\u001b[31m" = 3').replace('task = "copy"', "")
    for arguments in (
        ["train", str(write(tmp_path, text, "red.toml")), "--out", str(tmp_path / "o")],
        ["train", str(write(tmp_path)), "--out", str(tmp_path / "o"), "--set", f"name={STEERING}"],
        ["train", str(write(tmp_path)), "--out", str(tmp_path / "o"), "--set", f"data.task={STEERING}"],
        ["train", str(write(tmp_path)), "--out", str(tmp_path / "o"), f"--{STEERING}"],
        ["train", f"{tmp_path}/{STEERING}.toml", "--out", "x"],
        ["methods", STEERING],
        ["generate", str(tmp_path / STEERING.replace("\x00", ""))],
        ["train", str(tmp_path / ("x" * 300)), "--out", str(tmp_path / "o")],
    ):
        assert main(arguments) in (2, 4)
        assert is_plain(capsys.readouterr().err), arguments


def trained(folder, data, model):
    recipe = (
        f'[data]\n{data}\n[model]\n{model}\n[method]\nname = "teacher_forcing"\n'
        "[train]\nupdates = 1\nbatch_size = 4\nevaluate_every = 1\n"
    )
    assert main(["train", str(write(folder, recipe)), "--out", str(folder / "run")]) == 0
    return folder / "run"


def test_what_generate_prints_steers_no_terminal_and_stays_one_line(tmp_path, capsys):
    (tmp_path / "text.txt").write_bytes(("red \x1b[31m and \u202e turned\x9b2J, on and on\n" * 60).encode())
    run = trained(
        tmp_path, f'kind = "text"\npath = "{tmp_path}/text.txt"\nlength = 16', "size = 8\nlayers = 1\nheads = 1"
    )
    (tmp_path / "lines.txt").write_bytes("red \x1b[31m\n\u202e tu\x9b\n".encode())
    capsys.readouterr()
    out = ends(capsys, 0, "generate", run, "--input", tmp_path / "lines.txt").out
    assert len(out.splitlines()) == 2
    assert is_plain(out.replace("\t", ""))
    assert out.startswith("red \\x1b[31m\t")


def test_names_of_columns_are_quoted_in_the_table_that_generate_prints(tmp_path, capsys):
    import csv

    names = ["=cmd|calc", "a,b", "a b"]
    rows = "".join(f"{n % 7},{n % 5},{n % 3}\n" for n in range(120))
    (tmp_path / "load.csv").write_text(",".join(f'"{name}"' for name in names) + "\n" + rows)
    run = trained(tmp_path, f'kind = "series"\npath = "{tmp_path}/load.csv"\npast = 4\nhorizon = 2', "size = 8")
    capsys.readouterr()
    table = list(csv.reader(ends(capsys, 0, "generate", run, "--input", tmp_path / "load.csv").out.splitlines()))
    assert table[0][-3:] == names
    assert {len(row) for row in table} == {len(table[0])}


def test_a_json_answer_stays_json(capsys):
    from freerun.tasks.records import _object_line

    row = {"prompt": f"é{STEERING}", "output": "\ud800"}
    line = _object_line(row)
    assert is_plain(line)
    assert json.loads(line) == row
    assert _object_line({"prompt": "é"}) == '{"prompt": "é"}'


def test_an_escape_in_a_folders_name_does_not_reach_the_terminal(tmp_path, capfd):
    assert main(["train", str(write(tmp_path)), "--out", str(tmp_path / "red\x1b[31m")]) == 0
    out, err = capfd.readouterr()
    assert is_plain(out)
    assert "\x1b[31m" not in err
    assert out.rstrip().endswith(r"red\x1b[31m")


OLD_WORDS = re.compile(r"(?<![A-Za-z])(told|said|given|asked|shown|wanted|alike)(?![A-Za-z])", re.IGNORECASE)
ALLOWED = ('"given"', "``given``", "was not shown to differ")  # a value of train.device; a phrase of statistics


def test_the_source_speaks_the_words_of_the_field():
    """Input, output, argument, requested, displayed: design words, one for each thing."""
    found: list[str] = []
    for path in sorted(SOURCE.rglob("*.py")):
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            plain = line
            for phrase in ALLOWED:
                plain = plain.replace(phrase, "")
            found += [f"{path.name}:{number}: {word}" for word in OLD_WORDS.findall(plain)]
    assert not found
