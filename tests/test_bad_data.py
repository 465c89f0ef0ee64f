"""Each kind of bad data, and what the user sees: file and line, what was found and expected, what to do."""

import pytest

from builders import problems_of, refused
from freerun.data import PairOptions, load_pairs, read_pairs
from freerun.data.pairs import PairCodec
from freerun.data.tokenisers import Vocabularies, Vocabulary

GOOD = b"CAT  K AE T\r\nTACK  T AE K\r\n"
DEV = b"ACT  AE K T\r\n"
TEST = b"AT  AE T\r\n"


@pytest.fixture
def load(tmp_path):
    def load(train=GOOD, dev=DEV, test=TEST, options=None):
        for name, raw in (("train", train), ("dev", dev), ("test", test)):
            (tmp_path / f"{name}.txt").write_bytes(raw)
        return load_pairs(tmp_path, options)

    return load


def test_not_utf8(load, tmp_path):
    assert len(load().splits["train"]) == 2
    assert problems_of(load, train=GOOD + b"CAF\xc9  K AE\r\n") == [
        f"{tmp_path}/train.txt:3: not UTF-8: found 0xC9 at byte 4 of the line; as latin-1 it reads "
        "'CAFÉ  K AE': convert the file to UTF-8 or set encoding = \"latin-1\""
    ]
    assert problems_of(load, dev=DEV.decode().encode("utf-16")) == [
        f"{tmp_path}/dev.txt:1: starts with the bytes FF FE, the mark of utf-16, expected utf-8; "
        'convert the file to UTF-8 or set encoding = "utf-16"'
    ]
    problems = problems_of(load, options=PairOptions(encoding="utf-16"), train=GOOD + b"x")
    assert any("is not utf-16: wrong at byte" in problem for problem in problems)


TAB_LINES = [
    ("aap", "found no tab in 'aap', expected 2 columns: word<TAB>symbols separated by spaces"),
    ("aap\ta p\tx", r"found 3 columns in 'aap\ta p\tx', expected 2 columns: word<TAB>symbols"),
    ("\ta p", r"the word is empty in '\ta p'; expected a word before the symbols"),
    ("aap\t", "the word 'aap' has no symbols; expected at least one after it"),
    ("\t", r"the word is empty in '\t'; expected a word"),
]
CMUDICT_LINES = [
    ("CAT\tK", r"found a tab in 'CAT\tK', expected WORD  SYMBOL SYMBOL ... (spaces) as in most of the file"),
    ("  K AE T", "the word is empty in '  K AE T'"),
    ("CAT", "the word 'CAT' has no symbols"),
    ("CAT  ", "the word 'CAT' has no symbols"),
]


@pytest.mark.parametrize(("line", "found"), TAB_LINES)
def test_wrong_line_of_a_tab_file(tmp_path, line, found):
    file = tmp_path / "x_train.tsv"
    file.write_text(f"aa\ta a\n{line}\nbb\tb b\n", encoding="utf-8")
    (problem,) = problems_of(read_pairs, file)
    assert problem.startswith(f"{file}:2: {found}")


@pytest.mark.parametrize(("line", "found"), CMUDICT_LINES)
def test_wrong_line_of_a_cmudict_file(load, tmp_path, line, found):
    (problem,) = problems_of(load, train=GOOD + line.encode() + b"\r\n")
    assert problem.startswith(f"{tmp_path}/train.txt:3: {found}")


def test_all_files_and_all_lines_at_once(load, tmp_path):
    problems = problems_of(load, train=b"CAT\r\n" + GOOD + b"\xff  A\r\nDOG\r\n", dev=b"TAC\r\n" + DEV, test=b"")
    places = [problem.split(": ")[0].removeprefix(f"{tmp_path}/") for problem in problems]
    assert places == ["train.txt:1", "train.txt:4", "train.txt:5", "dev.txt:1", "test.txt"]


def test_only_the_first_twenty_are_listed(load, tmp_path):
    problems = problems_of(load, train=GOOD + b"DOG\r\n" * 50)
    assert len(problems) == 21
    assert problems[-1] == f"{tmp_path}/train.txt: 30 more problems like these"


def test_unknown_symbols(load, tmp_path):
    assert problems_of(load, dev=DEV + b"DAD  D AE D\r\nAD  AE D\r\n") == [
        f"{tmp_path}/dev.txt:2: {kind} symbol 'D' was never seen in training (3 times in this file, first here); "
        'add training words with it or set unknown = "drop"'
        for kind in ("word", "target")
    ]
    data = load(dev=DEV + b"DAD  D AE D\r\n", options=PairOptions(unknown="drop"))
    assert len(data.splits["dev"]) == 1
    assert "1 line with a symbol never seen in training" in data.header()[2]


def test_nothing_left(load, tmp_path):
    assert problems_of(load, dev=b"DAD  D\r\n", options=PairOptions(unknown="drop")) == [
        f"{tmp_path}/dev.txt: nothing is left after filtering; dropped: 1 line with a symbol never seen in "
        "training; loosen the filters"
    ]
    (problem,) = problems_of(load, train=DEV)
    assert "nothing is left after filtering; dropped: 1 word also in dev or test" in problem


def test_too_long(load, tmp_path):
    assert problems_of(load, options=PairOptions(max_length=2))[:2] == [
        f"{tmp_path}/train.txt: 2 of 2 targets are too long; longest 3",
        f"{tmp_path}/train.txt:1: the target of 'CAT' has 3 symbols, max_length allows 2; raise max_length or "
        'set too_long = "drop"',
    ]
    # nor do they hide lines without symbols
    problems = problems_of(load, train=GOOD + b"CAT\r\n", options=PairOptions(max_length=2))
    assert any("train.txt:3: the word 'CAT' has no symbols" in problem for problem in problems)
    assert any("train.txt:1: the target of 'CAT' has 3 symbols" in problem for problem in problems)


def test_empty_file(load, tmp_path):
    for raw in (b"", b"\r\n \r\n"):
        assert problems_of(load, test=raw) == [
            f"{tmp_path}/test.txt: the file is empty; expected one pair of word and symbols a line"
        ]
    (problem,) = problems_of(load, test=b";;; nothing\r\n")
    assert problem.startswith(f"{tmp_path}/test.txt: holds only comments and empty lines; expected WORD  SYMBOL")


def test_files_that_are_missing_or_of_another_kind(load, tmp_path):
    load()
    (problem,) = problems_of(load_pairs, tmp_path / "train.txt")
    assert "is a file; expected a folder that holds train, dev and test, or three paths" in problem
    (problem,) = problems_of(load_pairs, tmp_path / "trian" / "deeper")
    assert f"no such file or folder; {tmp_path} holds" in problem
    (tmp_path / "valid.txt").write_bytes(DEV)
    (problem,) = problems_of(load_pairs, tmp_path)
    assert "2 files could be dev: dev.txt, valid.txt; keep one" in problem
    (tmp_path / "valid.txt").unlink()
    (tmp_path / "test.txt").rename(tmp_path / "tests.txt")
    assert "tests.txt" in problems_of(load_pairs, tmp_path)[0]
    refused("is a folder; expected a text file", read_pairs, tmp_path)
    refused("is a device; expected a text file", read_pairs, "/dev/zero")


def test_paths_of_the_three_files_are_checked(tmp_path):
    assert problems_of(load_pairs, {"train": "a", "valid": "b"}, language="dut") == [
        "paths must be those of train, dev and test; got train, valid",
        "language = 'dut' has no effect on three paths; leave it out",
    ]
    assert len(problems_of(load_pairs, {split: tmp_path / split for split in ("train", "dev", "test")})) == 3


def test_options_are_checked_at_once():
    problems = problems_of(PairOptions, encoding="utf9", max_length=0, limit=-1, too_long="ignore", unknown="keep")
    assert len(problems) == 5
    assert "too_long must be one of error, drop; got 'ignore'" in problems


def test_sources_with_unknown_symbols():
    codec = PairCodec(Vocabularies(Vocabulary(("a", "b"), "<pad>"), Vocabulary(("A",), "</s>")), 3)
    assert problems_of(codec.source_batch, ["ab", "axyx", "", "ä"]) == [
        "'axyx': symbols 'x', 'y' were never seen in training; known are a b",
        "source 3 is empty; expected at least one symbol",
        "'ä': symbol 'ä' was never seen in training; known are a b",
    ]
    assert len(problems_of(codec.pair_batch, ["a"], [("B",)])) == 1


@pytest.mark.parametrize("line", [b"A" * 200_000 + b"  A", b"A  " + b"A " * 200_000, b"A" * 10**7])
def test_a_line_that_is_a_complete_file(load, line):
    (problem,) = problems_of(load, train=GOOD + line + b"\r\n")
    assert "train.txt:3: " in problem
    assert len(problem) <= 600


@pytest.mark.parametrize("encoding", ["rot13", "utf-7", "idna", "undefined", "unicode_escape", "a\0b", "", "base64", 3])
def test_what_is_no_encoding_of_text_files(encoding):
    refused("is unknown, or none of text files", PairOptions, encoding=encoding)


@pytest.mark.parametrize("path", ["~nobody-here/x", "x" * 5000, "a\0b"])
def test_what_is_no_path(path):
    refused("", load_pairs, path)
