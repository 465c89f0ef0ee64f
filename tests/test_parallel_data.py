"""Parallel text: subwords that give the words back, batches, and the messages for files that cannot be used."""

import gzip
import subprocess
import sys
from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from builders import problems_of, refused
from freerun import data as data_module
from freerun.data import PairCodec, Pairs, ParallelOptions, Subwords, load_pairs, read_pairs
from freerun.data.pair_files import split_of
from parallel_text import PAIRS, write_parallel

LINES = [side for pair in PAIRS for side in pair]
SUBWORDS = Subwords.trained(LINES, 300)


def problems(path=None, options=None, **named):
    return problems_of(load_pairs, path, options or ParallelOptions(), **named)


def most_frequent_pairs(lines, chosen):
    """Byte-pair encoding as in its paper: before each of the merges ``chosen``, the most frequent neighbours.

    Several where they are equally frequent: the paper does not say which of them is first.
    """
    words = Counter(f" {word}" for line in lines for word in line.split())
    pieces = {word: tuple(bytes([b]) for b in word.encode()) for word in words}
    for merge in chosen:
        counts = Counter()
        for word, times in words.items():
            for pair in zip(pieces[word], pieces[word][1:], strict=False):
                counts[pair] += times
        yield {pair for pair, times in counts.items() if times == max(counts.values())}
        pieces = {word: joined(piece, merge) for word, piece in pieces.items()}


def joined(piece, pair):
    out, i = [], 0
    while i < len(piece):
        if piece[i : i + 2] == pair:
            out.append(piece[i] + piece[i + 1])
            i += 2
        else:
            out.append(piece[i])
            i += 1
    return tuple(out)


def as_bytes(symbol):
    """The bytes of a symbol, by the table of Radford et al. 2019: printable bytes are themselves, others 256 on."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [b for b in range(256) if b not in printable]
    table = {chr(b): b for b in printable} | {chr(256 + i): b for i, b in enumerate(others)}
    return bytes(table[character] for character in symbol)


JOINED = [(as_bytes(left), as_bytes(right)) for left, right in SUBWORDS.merges]


def test_merges_are_the_most_frequent_pairs():
    assert len(JOINED) == 43
    for merge, most_frequent in zip(JOINED, most_frequent_pairs(LINES, JOINED), strict=True):
        assert merge in most_frequent


def test_encoding_is_the_merges_in_their_order():
    for line in [*LINES, "größer unseen wörds"]:
        expected = []
        for word in line.split():
            piece = tuple(bytes([b]) for b in f" {word}".encode())
            for merge in JOINED:
                piece = joined(piece, merge)
            expected += piece
        assert [as_bytes(SUBWORDS.symbols[number - 1]) for number in SUBWORDS.encode([line])[0]] == expected


@given(st.text(st.characters(exclude_categories=["Cs"])))  # half of a surrogate pair is no text
@settings(max_examples=200, deadline=None)
def test_words_come_back_whatever_they_are(text):
    assert SUBWORDS.decode(SUBWORDS.encode([text])[0]) == " ".join(text.split())


def test_ids():
    assert SUBWORDS.encode(["", "  "]) == [[], []]
    assert len(SUBWORDS) <= 300
    ids = SUBWORDS.encode(["zwei männer ."])[0]
    assert min(ids) >= 1
    assert SUBWORDS.decode([*ids, 0, 5]) == "zwei männer ."
    # half of an ä is no text: a model may say it
    assert SUBWORDS.decode([SUBWORDS.symbols.index("Ã") + 1]) == "\ufffd"
    assert Subwords.from_description(SUBWORDS.describe()) == SUBWORDS
    for wrong in ([-1], [len(SUBWORDS)]):
        refused(r"ids must lie in \[0,", SUBWORDS.decode, wrong)
    refused("must be above 257", Subwords.trained, LINES, 257)
    refused("must join bytes or what was merged before", Subwords, (("ab", "c"),))
    refused("two symbols with a space between", Subwords.from_description, {"merges": ["abc"]})


def test_another_process_on_one_thread_finds_the_same_merges():
    code = (
        "from parallel_text import PAIRS; from freerun.data import Subwords;"
        "print(Subwords.trained([side for pair in PAIRS for side in pair], 300).describe())"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=__file__.rsplit("/", 1)[0],
        env={"RAYON_NUM_THREADS": "1", "PYTHONHASHSEED": "5"},
    )  # fmt: skip
    assert done.stdout.strip() == str(SUBWORDS.describe())


def test_batches(tmp_path):
    data = load_pairs(write_parallel(tmp_path), ParallelOptions(subwords=300))
    train = data.splits["train"]
    numbers = [5, 0, 11]
    batch = data.batch(numbers, torch.tensor([7, 8, 9]))
    again = data.codec.pair_batch([train.sources[i] for i in numbers], [train.targets[i] for i in numbers])
    assert batch.row_numbers.tolist() == [7, 8, 9]
    for made in (batch, again):
        for row, i in enumerate(numbers):
            length = data.lengths[i]
            assert made.mask[row].sum() == length
            assert made.targets[row, length - 1] == 0
            assert (made.targets[row, : length - 1] > 0).all()
            assert (made.targets[row, length:] == 0).all()
            # what the end symbol is fed to is never read
            assert made.replaceable[row].sum() == length - 1
            assert data.codec.decode(made.targets[row].tolist()) == train.targets[i]
            source = made.context["source"][row][made.context["source_mask"][row]]
            assert data.codec.decode(source.tolist()) == train.sources[i]
    assert torch.equal(batch.targets, again.targets)
    assert sum(data.frequencies) == sum(data.lengths)
    assert data.frequencies[0] == len(train)
    assert PairCodec.from_description(data.codec.describe()) == data.codec
    blank = data.codec.source_batch(["ein mann", "frau"], 4)
    assert blank.targets.shape == (2, 4)
    assert blank.context["source_mask"].sum() == sum(map(len, data.subwords.encode(["ein mann", "frau"])))
    refused("source 2 is empty", data.codec.source_batch, ["ein mann", " "])


def test_a_folder_with_names_of_its_own(tmp_path):
    plain = load_pairs(write_parallel(tmp_path / "a"), ParallelOptions(subwords=300))
    names = {"train": "train.lc.tok", "dev": "val.lc.tok", "test": "test_2016_flickr.lc.tok"}
    other = load_pairs(write_parallel(tmp_path / "b", names=names), ParallelOptions(subwords=300))
    assert plain.fingerprint == other.fingerprint
    turned = load_pairs(tmp_path / "a", ParallelOptions(source="de", target="en", subwords=300))
    assert turned.splits["dev"].sources == plain.splits["dev"].targets
    assert turned.fingerprint != plain.fingerprint
    files = {split: (tmp_path / "a" / f"{split}.en", tmp_path / "a" / f"{split}.de") for split in names}
    assert load_pairs(options=ParallelOptions(subwords=300), files=files).fingerprint == plain.fingerprint
    swapped = load_pairs(tmp_path / "a", ParallelOptions(subwords=300), files={"test": files["dev"]})
    assert swapped.splits["test"].sources == plain.splits["dev"].sources


def test_only_the_training_text_makes_subwords_and_overlap_is_counted(tmp_path):
    plain = load_pairs(write_parallel(tmp_path / "a"), ParallelOptions(subwords=300))
    folder = write_parallel(tmp_path / "b", dev=[PAIRS[8], ("quokka quokka quokka", "xylem xylem xylem")])
    other = load_pairs(folder, ParallelOptions(subwords=300))
    assert other.subwords == plain.subwords
    assert "dev: 2 sentences (1 source also in train, kept)" in other.header()
    assert any(line.startswith("subwords: ") for line in other.header())


def test_limit_and_subset(tmp_path):
    folder = write_parallel(tmp_path)
    some, fewer = (load_pairs(folder, ParallelOptions(subwords=300, limit=n)).splits["train"] for n in (10, 5))
    assert len(some) == 10
    assert set(fewer.sources) <= set(some.sources)
    data = load_pairs(folder, ParallelOptions(subwords=300, limit=10))
    assert any("beyond the limit of 10" in line for line in data.header())
    assert data.evaluation("dev", 2).sources == [data.splits["dev"].sources[i] for i in (0, 2)]
    assert data.evaluation("dev") is data.splits["dev"]
    for wrong in ({"split": "train2"}, {"split": "dev", "items": 0}):
        refused("must be", data.evaluation, **wrong)


def test_files_of_different_lengths(tmp_path):
    folder = write_parallel(tmp_path)
    with (folder / "dev.de").open("a") as file:
        file.write("noch eine zeile\n")
    (problem,) = problems(folder)
    count = len((folder / "dev.en").read_text().splitlines())
    assert problem.startswith(f"{folder}/dev.en:{count}: ends here, but {folder}/dev.de goes on to line {count + 1};")


def test_empty_lines_of_all_files_at_once(tmp_path):
    folder = write_parallel(tmp_path, train=[*PAIRS, ("a man .", " "), ("", "")], dev=[("", "x"), ("a man", "mann")])
    assert [problem.split(": ")[0] for problem in problems(folder)] == [
        f"{folder}/train.en:{len(PAIRS) + 2}", f"{folder}/train.de:{len(PAIRS) + 1}",
        f"{folder}/train.de:{len(PAIRS) + 2}", f"{folder}/dev.en:1",
    ]  # fmt: skip
    assert all("the line is empty; write the sentence" in problem for problem in problems(folder))
    data = load_pairs(folder, ParallelOptions(subwords=300, empty="drop"))
    assert len(data.splits["train"]) == len(PAIRS)
    assert data.splits["dev"].targets == ["mann"]
    assert any("dropped: 2 lines with an empty side" in line for line in data.header())


def test_another_encoding_reads_the_same_lines(tmp_path):
    plain = load_pairs(write_parallel(tmp_path), ParallelOptions(subwords=300))
    for file in tmp_path.iterdir():
        file.write_bytes(file.read_text().encode("utf-16"))
    other = load_pairs(tmp_path, ParallelOptions(subwords=300, encoding="utf-16"))
    assert other.fingerprint == plain.fingerprint


def test_not_utf8_and_empty_file(tmp_path):
    folder = write_parallel(tmp_path)
    (folder / "train.de").write_bytes(b"mann\nm\xe4nner\n")
    (folder / "test.en").write_bytes(b"")
    first, second = problems(folder)
    assert first.startswith(f"{folder}/train.de:2: not UTF-8: found 0xE4 at byte 2 of the line")
    assert second == f"{folder}/test.en: the file is empty; expected one sentence a line"


def test_long_lines_of_train_alone(tmp_path):
    long = " ".join(["ein mann"] * 20)
    folder = write_parallel(tmp_path, train=[*PAIRS, (long, "x"), ("y", long)], dev=[(long, long)])
    found = problems(folder, ParallelOptions(subwords=300, max_length=30))
    assert [problem.split(": ")[0] for problem in found] == [
        f"{folder}/train.en:{len(PAIRS) + 1}", f"{folder}/train.de:{len(PAIRS) + 2}"
    ]  # fmt: skip
    assert "max_length allows 30; raise max_length or set" in found[0]
    data = load_pairs(folder, ParallelOptions(subwords=300, max_length=30, too_long="drop"))
    assert len(data.splits["train"]) == len(PAIRS)
    assert data.splits["dev"].sources == [long]
    assert any("dropped: 2 lines longer than 30 subwords" in line for line in data.header())


def test_missing_and_ambiguous_files(tmp_path):
    folder = write_parallel(tmp_path / "a", names={"test": "tested"})
    (problem,) = problems(folder)
    assert "no two files test*.en and test*.de of one name" in problem
    (problem,) = problems(folder, ParallelOptions(source="fr"), files={"test": ("a", "b"), "dev": ("a", "b")})
    assert "no two files train*.fr and train*.de" in problem
    for name in ("test_2016", "test_2017"):
        write_parallel(folder, names={"test": name})
    (problem,) = problems(folder)
    assert "2 pairs of files could be test: test_2016, test_2017; give one: test = " in problem
    (problem,) = problems(tmp_path / "b")
    assert "no such file or folder" in problem
    assert len(problems(None, files={"train": ["a", "b", "c"], "best": ["a", "b"]})) == 3


def test_options_of_all_kinds_at_once():
    bad = {"subwords": 5, "limit": 0, "max_length": 0, "too_long": "cut", "empty": "x", "source": "", "encoding": "u"}
    assert len(problems_of(ParallelOptions, **bad)) == 7


def test_sentences_of_one_file(tmp_path):
    file = tmp_path / "more.tsv"
    file.write_text("a  man\tein mann\nno tab\n\tx\n")
    found = problems_of(read_pairs, file, tokeniser="subwords")
    assert [problem.split(": ")[0] for problem in found] == [f"{file}:2", f"{file}:3"]
    file.write_text("a  man\tein mann\n")
    assert read_pairs(file, tokeniser="subwords") == Pairs(["a man"], [["ein mann"]], str(file))


TUTORIAL = [(f'"Go {n}.' if n % 7 == 0 else f"I saw {n}.", f"Va {n} !", "CC-BY 2.0 (France)") for n in range(200)]
"""Lines as in eng-fra.txt: no heading, quotation marks that are letters, a third column."""


@pytest.mark.parametrize("backwards", [False, True])
@pytest.mark.parametrize("name", ["eng-fra.txt", "fra[1].tsv", "x.tsv.gz"])
def test_the_tutorials_own_file(tmp_path, name, backwards):
    text = "".join("\t".join(line) + "\n" for line in TUTORIAL)
    path = tmp_path / name
    path.write_bytes(gzip.compress(text.encode()) if name.endswith("gz") else text.encode())
    sides = {"source": "2", "target": "1"} if backwards else {}
    data = load_pairs(path, ParallelOptions(subwords=270, **sides))
    found = [pair for split in data.splits.values() for pair in split.flat()]
    assert sorted(found) == sorted((line[backwards], line[1 - backwards]) for line in TUTORIAL)
    sources = {split: set(pairs.sources) for split, pairs in data.splits.items()}
    assert not sources["train"] & sources["dev"] | sources["train"] & sources["test"] | sources["dev"] & sources["test"]
    assert data.splits["train"].sources == [pair[0] for pair in found if split_of(pair[0]) == "train"]
    assert data.header()[4:7] == [
        f"{path}: source from column {1 + backwards}, target from {2 - backwards}; not used: 3",
        f'{path}: quotation marks are letters (quoting = "none")',
        f"{path}: its first line, '\"Go 0. Va 0 ! CC-BY 2.0 (France)', is a row, not names of columns",
    ]


def test_one_file_of_each_split_and_names_of_columns(tmp_path):
    lines = [f"{b}\t{n}\t{a}" for n, (a, b) in enumerate(PAIRS)]
    files = {split: [tmp_path / f"{split}.tsv"] for split in ("train", "dev", "test")}
    for (file,) in files.values():
        file.write_text("\n".join(["de\tid\ten", *lines]) + "\n")
    data = load_pairs(files=files, options=ParallelOptions(subwords=300))
    assert all(list(pairs.flat()) == PAIRS for pairs in data.splits.values())
    assert f"{files['dev'][0]}: source from column en, target from de; not used: id" in data.header()
    # a part that has no file is set aside, the others are whole
    data = load_pairs(
        files["train"][0], ParallelOptions(subwords=300), files={"test": files["test"], "dev": files["dev"]}
    )
    assert len(data.splits["train"]) == len(PAIRS)
    read = read_pairs(files["dev"][0], tokeniser="subwords", columns=("de", "en"))
    assert list(read.flat()) == [(b, a) for a, b in PAIRS]


def test_what_is_wrong_with_one_file_is_named(tmp_path):
    path = tmp_path / "x.tsv"

    def problem(text, **options):
        path.write_text(text)
        return problems(path, ParallelOptions(**options))

    few = "Go.\tVa !\tCC\n" * 3
    assert problem(few) == [
        f"{path}: too few different sources to set 5 % aside for dev and test: nothing is left for dev and test; name "
        "files, dev = [FILE] and test = [FILE]"
    ]
    assert problem(few, target="fr") == [
        f"{path}: has no column 'en' and 'fr'; its columns are 1, 2, 3: name source and target, or put a line of names "
        "above"
    ]
    assert problem(few, header=True) == [
        f"{path}: has no column 'en' and 'de'; its columns are Go., Va !, CC: name source and target, or put a line of "
        "names above"
    ]
    assert [line.split(": ")[0] for line in problem("a\tb\n\tc\nd\n")] == [f"{path}:3", f"{path}:2"]
    assert problem("a\n") == [
        f"{path}: has no column '2'; its columns are 1: name source and target, or put a line of names above"
    ]
    assert problem('"a\tb\nc"\td\n', quoting="minimal")[0].startswith(f"{path}: too few different sources")
    found = problems(path, files={"train": [path]})
    assert found == [f"{path}: is the file of train; leave train = ... or the path out"]
    # words are no sentences
    for split in ("train", "dev", "test"):
        (tmp_path / f"{split}.tsv").write_text(few)
    assert 'or for sentences set kind = "parallel"' in problems_of(load_pairs, tmp_path)[0]


@pytest.mark.parametrize("name", ["ParallelData", "ParallelCodec", "Sentences", "load_parallel", "read_sentences"])
def test_an_old_name_is_answered_with_the_new_one(name):
    refused(rf"freerun\.data\.{name} is now ", getattr, data_module, name)
    with pytest.raises(AttributeError, match="no attribute 'something'"):
        data_module.something  # noqa: B018
