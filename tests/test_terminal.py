"""What a person sees: the real command in a terminal of 60, 80 and 200 columns, and in a pipe."""

import fcntl
import os
import pty
import re
import select
import struct
import subprocess
import sys
import termios
import time
from functools import cache

import pytest

from freerun.terminal import filled, width_of, wrapped
from tiny_recipes import TINY, write

WIDER = pytest.mark.slow(reason="the same once more, in another width: a start of the command, or five")
CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
COMPARE = """
[compare]
seeds = [0, 1]
workers = 2

[[compare.arms]]
method = { name = "teacher_forcing" }

[[compare.arms]]
label = "an arm with a name longer than any column"
method = { name = "free_running" }
"""


def environment(**changed):
    left = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "NO_COLOR", "FORCE_COLOR")}
    return {**left, "TERM": "xterm-256color", "OMP_NUM_THREADS": "1", **changed}


def command(*arguments):
    return [sys.executable, "-m", "freerun", *map(str, arguments)]


@cache
def soon():
    """Two seconds, or more on a machine so busy that Python itself takes long to begin."""
    began = time.monotonic()
    subprocess.run([sys.executable, "-c", "import argparse, tomllib"], check=True)
    return max(2.0, 20 * (time.monotonic() - began))


def in_terminal(columns, *arguments, **changed):
    """(exit code, text, seconds until the first output) of the command in a terminal of its own."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    began, first, parts = time.monotonic(), None, []
    process = subprocess.Popen(
        command(*arguments), stdin=subprocess.DEVNULL, stdout=theirs, stderr=theirs, env=environment(**changed)
    )
    os.close(theirs)
    while select.select([ours], [], [], 120)[0]:
        try:
            part = os.read(ours, 65536)
        except OSError:  # the end of a terminal
            break
        first = time.monotonic() - began if first is None else first
        parts.append(part)
    os.close(ours)
    return process.wait(), b"".join(parts).decode(), first


def piped(columns, *arguments, **changed):
    """Output and error output of the command in pipes."""
    changed |= {} if columns is None else {"COLUMNS": str(columns)}
    done = subprocess.run(command(*arguments), capture_output=True, text=True, env=environment(**changed), check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout, done.stderr


def lines_of(text):
    return [line for line in re.split(r"[\r\n]+", CONTROL.sub("", text)) if line.strip()]


def fit(lines, columns):
    """True if no line is longer than the columns, but for a path: a long word stays whole."""
    return all(len(line) <= columns or " " not in line.strip() for line in lines)


def plain(text):
    return " ".join(text.split())


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A recipe, a recipe with arms, and a finished run."""
    folder = tmp_path_factory.mktemp("terminal")
    write(folder, TINY + COMPARE, "arms.toml")
    subprocess.run(command("train", write(folder), "--out", folder / "run"), env=environment(), check=True)
    return folder


@pytest.mark.parametrize("columns", [60, pytest.param(200, marks=WIDER)])
def test_a_terminal_cuts_nothing_of_a_training(folder, tmp_path, columns):
    code, text, first = in_terminal(columns, "train", folder / "tiny.toml", "--out", tmp_path / "run")
    lines = lines_of(text)
    assert code == 0, text
    assert first < soon()
    assert lines[0].startswith("loading PyTorch")
    assert "…" not in text
    assert fit(lines, columns)
    # the display of the last update: how many of how many, elapsed, left; then the facts, none of them broken
    shown = text[text.rindex("12/12") :]
    assert re.match(r"12/12 \d:\d\d:\d\d \d:\d\d:\d\d ", CONTROL.sub("", shown))
    for fact in (r"loss \d\.\d{4}", r"teacher_forcing_ratio 0\.\d{3}", r"dev per \d+\.\d{3}", r"lr \d\.\d\de-0\d"):
        assert re.search(fact, CONTROL.sub("", shown)), fact
    assert lines[-1] == str(tmp_path / "run") or columns < 200
    assert f"next: freerun diagnose {tmp_path / 'run'}" in plain(CONTROL.sub("", text))


@pytest.mark.parametrize("columns", [pytest.param(60, marks=WIDER), None])
def test_a_pipe_keeps_to_columns_and_has_no_control_codes(folder, tmp_path, columns):
    out, err = piped(columns, "train", folder / "tiny.toml", "--out", tmp_path / "run")
    assert "\x1b" not in out + err
    assert "\r" not in out + err
    most = columns or 80
    assert fit((out + err).splitlines(), most)
    assert "…" not in out + err
    assert err.startswith("loading PyTorch ...\nreading the data, building the model ...\n")
    (update,) = re.findall(r"update 12/12  \d:\d\d elapsed  \d:\d\d left  (?:.|\n  )*", err)
    assert re.search(r"loss \d\.\d{4}\s+teacher_forcing_ratio 0\.\d{3}\s+dev per \d+\.\d{3}\s+lr ", update)
    assert out.splitlines()[0].split() == ["test", "free-running", "teacher-forced", "gap"]
    assert out.splitlines()[-1] == str(tmp_path / "run")


@pytest.mark.parametrize(("columns", "terminal"), [(80, True), pytest.param(60, False, marks=WIDER)])
def test_a_comparison_breaks_its_table_and_cuts_no_column(folder, tmp_path, columns, terminal):
    arguments = "compare", folder / "arms.toml", "--out", tmp_path / "out"
    if terminal:
        code, text, first = in_terminal(columns, *arguments)
        assert code == 0, text
        assert first < soon()
        assert re.search(r"\d+/48 \d:\d\d:\d\d \S+ all runs  \d of 4 runs done", CONTROL.sub("", text))
    else:
        text, err = piped(columns, *arguments)
        assert "\x1b" not in text + err
        assert re.search(r"update \d+/48  \d:\d\d elapsed  .*\d of 4 runs done", err)
        assert fit(err.splitlines(), columns or 80)
    table = text[text.rindex("free-running test scores") :]
    lines = lines_of(table)
    assert "…" not in table
    assert max(map(len, lines[:-1])) <= (columns or 80)
    words = plain(re.sub("[│┃]", " ", "\n".join(lines)))
    for heading in ("PER %", "WER %", "teacher-forced loss", "free-running gap", "seconds", "[low, high]"):
        assert heading in words or heading.split()[0] in words, heading
    assert len(re.findall(r"\[-?\d+\.\d", words)) == 8  # four scores of two arms have an interval
    assert "teacher_forcing" in words
    assert "2 seeds" in words


def test_the_commands_on_a_run_fit_too(folder):
    run, columns = folder / "run", 60
    (folder / "words").write_text("abc\nfed\n")
    for arguments in (
        ("diagnose", run), ("check", run), ("evaluate", run), ("generate", run, "--input", folder / "words"),
    ):  # fmt: skip
        code, text, first = in_terminal(columns, *arguments)
        assert code == 0, text
        assert first < soon(), arguments
        assert text.startswith("loading PyTorch ...")
        # what evaluate prints is JSON, for a program
        assert arguments[0] == "evaluate" or fit(lines_of(text), columns), arguments


@pytest.mark.parametrize("arguments", [("methods",), ("keys", "train"), ("recipes",)])
def test_lists_begin_within_two_seconds_and_leave_a_pipe_clean(arguments):
    code, text, first = in_terminal(80, *arguments)
    assert code == 0
    assert first < soon()
    out, err = piped(None, *arguments)
    assert err == ""
    assert plain(out) in plain(text.replace("loading PyTorch ...", " "))


def test_no_color_is_honoured(folder, tmp_path):
    code, text, _ = in_terminal(80, "train", folder / "tiny.toml", "--out", tmp_path / "run", NO_COLOR="1")
    assert code == 0
    assert not re.search(r"\x1b\[[0-9;]*(3[0-8]|9[0-7])[0-9;]*m", text)
    _, dumb, _ = in_terminal(80, "train", folder / "tiny.toml", "--out", tmp_path / "dumb", TERM="dumb")
    assert "\x1b" not in dumb
    assert "update 12/12  0:0" in dumb


def test_an_error_is_broken_at_blanks_in_a_terminal_and_bounded_in_a_pipe(folder, tmp_path):
    text = TINY.replace('name = "scheduled_sampling"', 'name = "nothing_of_the_kind"')
    recipe = write(folder, text, "wrong.toml")
    code, shown, _ = in_terminal(60, "train", recipe, "--out", tmp_path / "run")
    assert code == 2
    assert fit(lines_of(shown), 60)
    done = subprocess.run(
        command("train", recipe, "--out", tmp_path / "run", "--set", f"name={'a word ' * 90}"),
        capture_output=True, text=True, env=environment(), timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert "and " in done.stderr
    assert max(map(len, done.stderr.splitlines())) <= 400


def test_what_cannot_be_answered_is_skipped_by_choice_alone(folder):
    (folder / "mixed").write_text("abc\nxyz\n\nfed\nabq\n")
    run = "generate", folder / "run", "--input", folder / "mixed"
    refused = subprocess.run(command(*run), capture_output=True, text=True, env=environment(), check=False)
    assert (refused.returncode, refused.stdout) == (2, "")
    assert "mixed:2: symbols 'x', 'y', 'z' were never seen" in refused.stderr
    assert "mixed:5: symbol 'q' was never seen" in refused.stderr
    out, err = piped(None, *run, "--skip")
    assert [line.split("\t")[0] for line in out.splitlines()] == ["abc", "xyz", "fed", "abq"]
    assert [bool(line.split("\t")[1]) for line in out.splitlines()] == [True, False, True, False]
    assert [line.split(":")[-2].strip() for line in err.splitlines() if line.startswith("skipped: ")] == ["2", "5"]


def test_lines_are_broken_at_blanks_and_facts_stay_whole(monkeypatch):
    assert wrapped("a b\nabcdefghij klm", 8) == "a b\nabcdefghij\n  klm"
    assert wrapped("  help: one two", 10) == "  help:\n    one\n    two"
    assert filled("loss 1.0  ratio 0.5  lr 1e-3", 20) == "loss 1.0  ratio 0.5\nlr 1e-3"
    for columns, width in (("60", 60), ("0", 80), ("wide", 80), ("3", 20), ("", 80)):
        monkeypatch.setenv("COLUMNS", columns)
        with open(os.devnull) as stream:
            assert width_of(stream) == width
