"""CSV and TSV: quotation marks and headings are found or set; no line is joined to another in silence."""

import csv
import gzip
import io
import random

import pytest

from builders import problems_of
from freerun.data.records import RecordOptions, load_records, read_rows

SWALLOWED = '"Stop\tHalt\nmore\tplus\nend"\tfin\n'


def write(tmp_path, text, name="x.tsv"):
    path = tmp_path / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def cells_of(table):
    return [tuple(row.values()) for row in table.rows]


def test_three_lines_never_become_one_record(tmp_path):
    path = write(tmp_path, "en\tfr\n" + SWALLOWED)
    table, problems = read_rows(path)
    assert problems == []
    assert cells_of(table) == [('"Stop', "Halt"), ("more", "plus"), ('end"', "fin")]
    assert table.notes == (f'{path}: quotation marks are letters (quoting = "none")',)
    assert table.locate(1) == f"{path}:3"
    # on request they do
    table, problems = read_rows(path, quoting="minimal")
    assert (problems, cells_of(table)) == ([], [("Stop\tHalt\nmore\tplus\nend", "fin")])
    # nor where one of the lines is wrong: it is named
    path = write(tmp_path, 'en\tfr\n"Stop\tHalt\noops\nend"\tfin\n')
    _, problems = read_rows(path)
    assert problems == [f"{path}:3: has 1 cell, and the first line names 2 columns"]


def test_a_csv_file_that_can_be_read_in_two_ways_is_refused(tmp_path):
    path = write(tmp_path, "en,fr\n" + SWALLOWED.replace("\t", ","), "x.csv")
    _, (problem,) = read_rows(path)
    assert problem == (
        f"{path}:2: the quotation mark here and the one in line 4 may enclose one cell of 3 lines, or be letters of "
        'lines of their own: set quoting = "minimal" or "none"'
    )
    assert [len(read_rows(path, quoting=how)[0]) for how in ("minimal", "none")] == [1, 3]
    # a cell of several lines that are no rows is one
    path = write(tmp_path, 'en,fr\n"Dear A, B,\nhello",b\n', "x.csv")
    table, problems = read_rows(path)
    assert (problems, cells_of(table)) == ([], [("Dear A, B,\nhello", "b")])
    assert table.notes == (f"{path}: 1 row over several lines, in quotation marks",)


TATOEBA = """Go.\tVa !\tCC-BY 2.0 (France) Attribution: tatoeba.org #1 (CM) & #2 (sacredceltic)
"Stop!" he said.\t« Arrête ! », dit-il.\tCC-BY 2.0
He said "no".\tIl a dit « non ».\tCC-BY 2.0
"Quote.\t"Citation.\tCC-BY 2.0
"Whole."\t"Entier."\tCC-BY 2.0
5" long.\tLong de 5".\tCC-BY 2.0
"""


@pytest.mark.parametrize("name", ["fra.tsv", "fra.txt", "data[1].tsv", "d*a?.tsv", "fra.tsv.gz"])
@pytest.mark.parametrize("line_end", ["\n", "\r\n"])
@pytest.mark.parametrize("bom", [b"", b"\xef\xbb\xbf"])
def test_a_tatoeba_file_without_heading_is_read_line_by_line(tmp_path, name, line_end, bom):
    raw = bom + TATOEBA.replace("\n", line_end).encode()
    path = write(tmp_path, gzip.compress(raw) if name.endswith("gz") else raw, name)
    records = load_records(str(path), RecordOptions(dev=0.2, test=0.2))
    found = {(r.prompt, r.target) for rows in records.splits.values() for r in rows}
    assert found == {tuple(line.split("\t")[:2]) for line in TATOEBA.splitlines()}
    assert records.notes == (
        "columns: source from 1; target from 2; not used: 3",
        f'{path}: quotation marks are letters (quoting = "none")',
        f"{path}: its first line, {records.notes[2].split('first line, ')[1].split(', is a row')[0]}, is a row, not "
        "names of columns",
    )
    named = load_records(str(path), RecordOptions(source="2", target="1", header=False, dev=0.2, test=0.2))
    assert {(r.target, r.prompt) for rows in named.splits.values() for r in rows} == found


def test_a_heading_is_found_by_the_names_or_set(tmp_path):
    path = write(tmp_path, "source\ttarget\nGo.\tVa !\n" + "a.\tb.\n" * 9)
    assert sum(map(len, load_records(str(path)).splits.values())) == 10
    assert sum(map(len, load_records(str(path), RecordOptions(header=False)).splits.values())) == 11
    # words that may be names are not decided on
    path = write(tmp_path, "Hi\tSalut\n" * 12)
    (problem,) = problems_of(load_records, str(path))
    assert problem.startswith(f"{path}: cannot tell which columns to use; it has Hi, Salut; name them")
    assert "header = false" in problem
    assert sum(map(len, load_records(str(path), RecordOptions(header=False)).splits.values())) == 12
    path = write(tmp_path, "a.\tb.\nc.\td.\te.\nf.\n")
    assert problems_of(load_records, str(path)) == [
        f"{path}:2: has 3 cells, and the first line has 2; take out what is too much, or separators within cells are "
        "not possible",
        f"{path}:3: has 1 cell, and the first line has 2",
    ]


@pytest.mark.parametrize(
    ("quoting", "name"), [(csv.QUOTE_MINIMAL, "x.csv"), (csv.QUOTE_ALL, "x.csv"), (csv.QUOTE_NONNUMERIC, "x.csv"),
                          (csv.QUOTE_MINIMAL, "x.tsv"), (csv.QUOTE_ALL, "x.tsv"), (csv.QUOTE_NONNUMERIC, "x.tsv")]
)  # fmt: skip
def test_what_programs_write_comes_back(tmp_path, quoting, name):
    """As csv.writer, pandas and spreadsheets write: without a cell that holds both a tab and a line end."""
    rng = random.Random(0)
    mark = "," if name == "x.csv" else "\t"
    for _ in range(200):
        rows = [tuple(rng.choice(["a", 'b "c"', "d, e", "f\tg", '"h"', "i\nj", "ü", "3.5"]) for _ in range(2))
                for _ in range(rng.randrange(1, 6))]  # fmt: skip
        text = io.StringIO(newline="")
        csv.writer(text, delimiter=mark, quoting=quoting, lineterminator="\n").writerows([("en", "fr"), *rows])
        path = write(tmp_path, text.getvalue(), name)
        table, problems = read_rows(path)
        if not problems:  # a line of a cell may look like a row of its own, and is asked about
            assert cells_of(table) == rows
        else:
            assert len(problems) == 1
            assert "may enclose one cell" in problems[0]


def test_what_is_wrong_in_several_lines_is_named_in_each(tmp_path):
    path = write(tmp_path, 'source,target\n"a" b,c\nd,e,f\ng\n\n   \nh,"i" j\nk,l\n', "x.csv")
    table, problems = read_rows(path)
    assert [problem.split(": ")[0] for problem in problems] == [f"{path}:{n}" for n in (3, 4, 2, 7)]
    assert cells_of(table) == [("k", "l")]


def test_bytes_that_are_no_text_are_named_by_line(tmp_path):
    path = write(tmp_path, b"source\ttarget\na\tb\nc\0d\te\n")
    assert problems_of(load_records, str(path)) == [f"{path}:3: holds a NUL byte, which is no text; delete it"]
    path = write(tmp_path, TATOEBA.encode("utf-16-le"))
    assert "the file may be UTF-16: set encoding" in problems_of(load_records, str(path))[0]
    records = load_records(str(path), RecordOptions(encoding="utf-16-le", dev=0.2, test=0.2))
    assert sum(map(len, records.splits.values())) == 6
    for name in ("x.tsv.gz", "x.tsv.bz2", "x.tsv.xz"):
        path = write(tmp_path, b"no such thing", name)
        assert f"is no whole .{name.split('.')[-1]} file" in problems_of(load_records, str(path))[0]
    path = write(tmp_path, b"(\xb5/\xfd", "x.tsv.zst")
    (problem,) = problems_of(load_records, str(path))
    assert "unpack it first, zstd -d x.tsv.zst" in problem or "is no whole .zst file" in problem


@pytest.mark.parametrize("name", ["x.csv", "x.tsv"])
def test_no_file_is_read_in_a_way_that_is_not_named(tmp_path, name):
    """Of 3,000 random files: what comes back is each line cut at its separators, or what csv reads, or a refusal.

    Where the two differ the notes name the reading, and where both have rows of one width nothing is joined.
    """
    rng = random.Random(1)
    mark = "," if name == "x.csv" else "\t"
    plain = quoted = refused = 0
    for _ in range(3000):
        pieces = ["a", "b c", '"', '""', mark, mark, "\n", "\n", '"\n', f'{mark}"', f'"{mark}', "d."]
        text = f"en{mark}fr\n" + "".join(rng.choice(pieces) for _ in range(rng.randrange(2, 14))) + "\n"
        table, problems = read_rows(write(tmp_path, text, name))
        if problems:
            refused += 1
            continue
        lines = [line for line in text.splitlines()[1:] if line.strip(" ")]
        by_line = [tuple(line.split(mark)) for line in lines]
        try:
            by_csv = [tuple(row) for row in csv.reader(io.StringIO(text, newline=""), delimiter=mark, strict=True)][1:]
            by_csv = [row for row in by_csv if len(row) > 1 or "".join(row).strip()]
        except csv.Error:
            by_csv = None
        found = cells_of(table)
        assert found in (by_line, by_csv), text
        if by_line == by_csv:
            continue
        plain += found == by_line
        quoted += found == by_csv
        if found == by_line:
            assert any("quotation marks are letters" in note for note in table.notes), text
        elif any("\n" in cell for row in by_csv for cell in row):
            assert any("over several lines, in quotation marks" in note for note in table.notes), text
            assert any(len(row) != 2 for row in by_line), text
    assert min(plain + (name == "x.csv"), quoted, refused) > 0
