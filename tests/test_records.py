"""Records: files of many formats as rows, what is wrong with them by line, splits, and their ids by a tokenizer."""

import csv
import json
import re

import polars as pl
import pytest

from builders import problems_of, refused
from freerun.data.records import (
    Encoded,
    Limits,
    Record,
    RecordCodec,
    RecordOptions,
    encoded_data,
    encoded_problems,
    fit_lengths,
    load_records,
    read_records,
    read_rows,
)
from huggingface_world import CHAT, MARKED, rows, sentences, tokenizer, write_lines

ROWS = [{"en": "a man", "de": "ein mann"}, {"en": 'say "a, b"', "de": "zwei\nzeilen"}, {"en": "ü", "de": "ö"}]


@pytest.mark.parametrize(
    "name", ["a.jsonl", "a.json", "a.csv", "a.tsv", "a.parquet", "bom.jsonl", "bom.csv", "dos.csv"]
)
def test_every_format_gives_the_same_rows(tmp_path, name):
    path = tmp_path / name
    if name.endswith("jsonl"):
        write_lines(path, ROWS)
    elif name.endswith("json"):
        path.write_text(json.dumps(ROWS))
    elif name.endswith("parquet"):
        pl.DataFrame(ROWS).write_parquet(path)
    else:
        mark = "\t" if name.endswith("tsv") else ","
        path.write_text(f'en{mark}de\na man{mark}ein mann\n"say ""a, b"""{mark}"zwei\nzeilen"\n\nü{mark}ö\n')
    if name.startswith("bom"):
        path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    if name.startswith("dos"):
        path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))
    table, problems = read_rows(path)
    assert problems == []
    assert table.columns == ("en", "de")
    assert [dict(row) for row in table.rows] == ROWS
    third = {"jsonl": f"{path}:3", "json": f"{path}, entry 3", "parquet": f"{path}, row 3"}
    assert table.locate(2) == third.get(name.split(".")[1], f"{path}:6")


GOOD = '{"source": "a", "target": "b"}\n' * 4
BAD = [
    ("x.jsonl", GOOD + '{"source": "a", \n', "x.jsonl:5: no JSON: Expecting property name enclosed in"),
    ("x.jsonl", GOOD + '["a", "b"]\n', "x.jsonl:5: '[\"a\", \"b\"]' is no object; expected {\"column\": "),
    ("x.jsonl", GOOD + '{"source": "a", "source": "c", "target": "b"}\n', "x.jsonl:5: the key 'source' is there more"),
    ("x.jsonl", GOOD + '{"source": "a"}\n', "x.jsonl:5: column 'target' is missing; fill it in, delete the row"),
    ("x.jsonl", GOOD + '{"source": "a", "target": null}\n', "x.jsonl:5: column 'target' is null; fill it in"),
    ("x.jsonl", GOOD + '{"source": "a", "target": " "}\n', "x.jsonl:5: column 'target' is empty; fill it in"),
    ("x.jsonl", GOOD + '{"source": 3, "target": "b"}\n', "x.jsonl:5: column 'source' holds a int, 3; expected text"),
    ("x.jsonl", GOOD.encode() + b'{"source": "caf\xe9", "target": "b"}\n', "x.jsonl:5: not UTF-8: found 0xE9 at byte"),
    ("x.jsonl", "\n \n", "x.jsonl: the file is empty; expected one JSON object a line"),
    ("x.jsonl", '{"a": "b"}\n', "x.jsonl: cannot tell which columns to use; it has a; name them: source and target"),
    ("x.json", GOOD, "x.json:2: no JSON: Extra data at character 1; for one object a line set format = \"jsonl\""),
    ("x.json", '{"source": "a"}', "x.json: holds dict; expected a list of objects"),
    ("x.json", '[{"source": "a", "target": "b"}, 3]', "x.json, entry 2: is no object"),
    ("x.csv", "source,target,source\na,b,c\n", "x.csv:1: the column 'source' is there 2 times; give every column its"),
    ("x.csv", "source;target\na;b\n", "x.csv:1: has one column, 'source;target'; is the separator ',' right?"),
    ("x.csv", 'source,target\n"a\nb",c\nd,e,f\n', "x.csv:4: has 3 cells, and the first line names 2 columns"),
    ("x.csv", 'source,target\na,"b\nc,d\n', "x.csv:2: unexpected end of data: a cell that holds a separator, a quote"),
    ("x.csv", "source,target\na,\n", "x.csv:2: column 'target' is empty"),
    ("x.parquet", "no parquet", "x.parquet: cannot be read as Parquet: "),
    ("x.dat", "a\n", "x.dat: cannot tell what it holds from its ending '.dat'; it may be .jsonl, .ndjson, .json, .csv"),
    ("x.txt", "a\n", "x.txt: cannot tell which columns to use; it has text; name them: source and target"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "content", "expected"), BAD)
def test_what_is_wrong_with_a_file_is_named_by_its_line(tmp_path, name, content, expected):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    problems = problems_of(load_records, str(path))
    assert len(problems) == 1
    assert problems[0].startswith(f"{tmp_path}/{expected}")


@pytest.mark.parametrize("blank", ["\n", "  \n\n", ",\n"])
def test_a_heading_after_blank_lines(tmp_path, blank):
    path = tmp_path / "x.csv"
    path.write_text(f"{blank}source,target\na,b\n")
    table, problems = read_rows(path)
    assert problems == []
    assert table.columns == ("source", "target")
    assert [dict(row) for row in table.rows] == [{"source": "a", "target": "b"}]
    assert table.locate(0) == f"{path}:{2 + blank.count(chr(10))}"
    path.write_text(f"{blank}source,source\na,b\n")
    _, (problem,) = read_rows(path)
    assert problem.startswith(f"{path}:{1 + blank.count(chr(10))}: the column 'source' is there 2 times")


def test_a_cell_may_be_long(tmp_path):
    """Longer than the module csv allows by itself; its limit, which is everyone's, stays."""
    limit = csv.field_size_limit()
    path = tmp_path / "x.csv"
    path.write_text(f"source,target\na,{'b' * (limit + 1)}\n")
    table, problems = read_rows(path)
    assert problems == []
    assert len(table.rows[0]["target"]) == limit + 1
    assert csv.field_size_limit() == limit


def test_a_file_that_is_not_there(tmp_path):
    write_lines(tmp_path / "train.jsonl", rows("pairs"))
    assert "train.jsonl" in problems_of(load_records, str(tmp_path / "trian.jsonl"))[0]


def test_the_problems_of_all_files_come_at_once_and_at_most_twenty_of_each(tmp_path):
    (tmp_path / "train.jsonl").write_text(GOOD + "{\n" * 30)
    (tmp_path / "dev.jsonl").write_text(GOOD + '{"source": "a"}\n')
    problems = problems_of(load_records, str(tmp_path))
    assert sum("train.jsonl:" in problem for problem in problems) == 21
    assert f"{tmp_path}/train.jsonl: 10 more problems like these" in problems
    assert problems[-1].startswith(f"{tmp_path}/dev.jsonl:5: column 'target' is missing")


def test_empty_rows_are_left_out_on_request(tmp_path):
    path = write_lines(tmp_path / "x.jsonl", [*rows("pairs"), {"source": "", "target": "b"}, {"source": "a"}])
    records = load_records(str(path), RecordOptions(empty="drop"))
    assert records.dropped["train"] == ["2 rows with an empty column"]
    assert sum(map(len, records.splits.values())) == len(sentences())


def test_columns_by_name_and_columns_that_do_not_go_together(tmp_path):
    path = write_lines(tmp_path / "x.jsonl", [{"question": s, "answer": t, "n": 1} for s, t in sentences()])
    named = RecordOptions(prompt="question", completion="answer")
    records = load_records(str(path), named)
    assert records.shape == "completions"
    found = {(record.prompt, record.target) for split in records.splits.values() for record in split}
    assert found == set(sentences())
    (half,) = problems_of(load_records, str(path), RecordOptions(prompt="question"))
    assert half.startswith("columns are named for prompt; one of these is needed, whole: source and target; prompt and")
    (absent,) = problems_of(load_records, str(path), RecordOptions(text="body"))
    assert absent == f"{path}: has no column 'body'; its columns are question, answer, n"


@pytest.mark.parametrize(
    ("cell", "expected"),
    [
        ("hello", "holds text that is no JSON"),
        (["hello"], 'holds no conversation; expected a list of {"role": ..., "content": ...}'),
        ([{"role": "user"}], "has no role and content, both text, in message 1"),
        ([{"role": "user", "content": "hi"}], "ends with a message of 'user'; the last must be the assistant's"),
        ([{"role": "assistant", "content": " "}], "ends with an empty message"),
        ([], "is empty"),
        ([{"role": "assistant", "content": "a", "weight": 0.5}], "has a weight of 0.5, in message 1; 0 is not learnt"),
    ],
)
def test_conversations_that_are_none(tmp_path, cell, expected):
    path = write_lines(tmp_path / "x.jsonl", [*rows("messages"), {"messages": cell}])
    (problem,) = problems_of(load_records, str(path))
    assert problem.startswith(f"{path}:{len(sentences()) + 1}: column 'messages' {expected}")


def test_shares_are_set_aside_by_a_seed_and_nothing_is_in_two_splits(tmp_path):
    path = write_lines(tmp_path / "x.jsonl", rows("pairs"))
    first = load_records(str(path), RecordOptions(dev=0.2, test=0.1))
    assert {split: len(found) for split, found in first.splits.items()} == {"train": 21, "dev": 6, "test": 3}
    places = [record.origin for found in first.splits.values() for record in found]
    assert len(set(places)) == len(places) == 30
    assert load_records(str(path), RecordOptions(dev=0.2, test=0.1)).splits == first.splits
    assert load_records(str(path), RecordOptions(dev=0.2, test=0.1, split_seed=1)).splits != first.splits
    few = load_records(str(path), RecordOptions(dev=0.2, test=0.1, limit=5))
    assert len(few.splits["train"]) == 5
    assert few.splits["test"] == first.splits["test"]
    assert "are too few to set dev" in problems_of(load_records, str(write_lines(path, rows("pairs")[:2])))[0]


def test_splits_by_files_by_a_folder_and_by_a_saved_data_set(tmp_path):
    import datasets

    every = rows("pairs")
    parts = {"train": every[:20], "validation": every[20:25], "test": every[25:]}
    folder = tmp_path / "folder"
    folder.mkdir()
    for split, found in parts.items():
        write_lines(folder / f"{split}.jsonl", found)
    of_folder = load_records(str(folder))
    files = {"dev": str(folder / "validation.jsonl"), "test": str(folder / "test.jsonl")}
    of_files = load_records(str(folder / "train.jsonl"), RecordOptions(**files))
    assert of_folder.splits == of_files.splits
    saved = tmp_path / "saved"
    datasets.disable_progress_bars()
    lists = {split: datasets.Dataset.from_list(found) for split, found in parts.items()}
    datasets.DatasetDict(lists).save_to_disk(saved)
    of_saved = load_records(str(saved))
    for split, found in of_saved.splits.items():
        assert [(r.prompt, r.target) for r in found] == [(r.prompt, r.target) for r in of_folder.splits[split]]
    assert of_saved.splits.keys() == of_folder.splits.keys()
    assert of_saved.splits["dev"][0].origin == f"{saved}, validation, row 1"
    other = load_records(str(saved), RecordOptions(dev=files["test"], test=files["dev"]))
    assert other.splits["dev"] == of_files.splits["test"]
    (named,) = problems_of(load_records, str(folder), RecordOptions(format="datasets"))
    assert "was not written by Dataset.save_to_disk" in named
    write_lines(folder / "train.json", [])
    assert "several files could be train: train.json, train.jsonl" in problems_of(load_records, str(folder))[0]


def test_options_out_of_range_are_refused_together():
    problems = problems_of(RecordOptions, dev=0.0, format="xml", separator="", limit=0, encoding="utf-9")
    assert [problem.split()[0] for problem in problems] == ["format", "limit", "dev", "separator", "encoding"]


def records_of(shape, count=4):
    parts = [list(row.values()) for row in rows(shape)[:count]]
    return [Record(f"row {n}", each[0] if len(each) == 2 else "", each[-1]) for n, each in enumerate(parts)]


def refused_chat(template, *messages, answer="c"):
    """The problem of a conversation that a template does not allow."""
    found, (problem,) = RecordCodec(tokenizer(chat=template), "messages").encoded([Record("x:3", messages, answer)])
    assert found == [None]
    return problem


def user(text):
    return {"role": "user", "content": text}


def test_a_prompt_has_the_ids_it_has_alone_and_the_whole_those_of_the_text():
    words = tokenizer()
    codec = RecordCodec(words, "completions")
    records = records_of("completions")
    found, problems = codec.encoded(records)
    assert problems == []
    for record, one in zip(records, found, strict=True):
        assert list(one.prompt) == words(record.prompt)["input_ids"]
        assert list(one.prompt + one.target) == [*words(record.prompt + record.target)["input_ids"], words.eos_token_id]
        assert not one.merged
        assert codec.text(one.target) == record.target.strip()
    (prefixed, *_), _ = RecordCodec(words, "completions", prefix="Q: ").encoded(records)
    whole = f"Q: {records[0].prompt}{records[0].target}"
    assert list(prefixed.prompt + prefixed.target) == [*words(whole)["input_ids"], words.eos_token_id]
    # "the d" + "og": alone and as one text the tokens differ
    (merged,), _ = codec.encoded([Record("x", "the d", "og runs.")])
    assert merged.merged
    assert list(merged.prompt) == words("the d")["input_ids"]
    assert codec.text(merged.target) == "og runs."


def test_pairs_are_what_the_tokenizer_makes_of_source_and_target():
    words = tokenizer()
    codec = RecordCodec(words, "pairs", causal=False, prefix="turn: ")
    (one, *_), _ = codec.encoded(records_of("pairs"))
    source, target = sentences()[0]
    assert list(one.prompt) == words(f"turn: {source}")["input_ids"]
    assert list(one.target) == [*words(target)["input_ids"], words.eos_token_id]


@pytest.mark.parametrize("chat", [CHAT, MARKED])
def test_of_a_conversation_the_assistants_words_are_learnt_and_nothing_else(chat):
    words = tokenizer(chat=chat)
    codec = RecordCodec(words, "messages")
    messages = rows("messages")[0]["messages"]
    (one,), problems = codec.encoded([Record("x", tuple(messages[:-1]), messages[-1]["content"])])
    assert problems == []
    assert words.decode(one.target) == f"{messages[-1]['content']}</s>"
    assert words.decode([one.prompt[place] for place in sorted(one.learned)]) == "yes?</s>"
    assert words.decode(one.prompt) == (
        f"<turn>user\nhello</s>\n<turn>assistant\nyes?</s>\n<turn>user\n{messages[2]['content']}</s>\n<turn>assistant\n"
    )
    assert [list(one.prompt)] == codec.prompts([tuple(messages[:-1])])


def test_what_a_template_says_of_a_conversation():
    strict = (
        "{% for m in messages %}{% if loop.index0 % 2 != (m.role == 'assistant') | int %}"
        "{{ raise_exception('roles must alternate') }}{% endif %}{{ m.role }}: {{ m.content }}</s>{% endfor %}"
    )
    thinking = (
        "{% for m in messages %}{{ m.role }}: {{ m.content }}{% if loop.last %} (thought){% endif %}</s>"
        "{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}"
    )
    problem = refused_chat(strict, user("a"), user("b"))
    assert problem == "x:3: the chat template refuses it: roles must alternate"
    # the template writes the last message otherwise than those before: nothing of an earlier one can be trusted
    problem = refused_chat(thinking, user("a"))
    whole = "x:3: the chat template does not begin the whole conversation as it begins the one before"
    assert problem.startswith(whole)
    assert "mark it in the template with {% generation %}" in problem


BARE = "{% for m in messages %}<turn>{{ m.role }}\n{{ m.content }}\n{% endfor %}"


def test_an_answer_without_end_symbol_is_learnt_whole():
    """The last special symbol is then the header's, or the answer's own."""
    prompt = (user("a man"),)
    words = tokenizer(chat=BARE.replace("<turn>{{ m.role }}\n", ""))
    for answer in ("the dog", "the <turn> dog"):
        (one,), problems = RecordCodec(words, "messages").encoded([Record("x", prompt, answer)])
        assert problems == []
        assert words.decode(one.target) == f"{answer}\n"
    words = tokenizer(chat=BARE + "{% if add_generation_prompt %}<turn>assistant\n{% endif %}")
    (one,), _ = RecordCodec(words, "messages").encoded([Record("x", prompt, "the dog")])
    assert words.decode(one.target) == "the dog\n"


@pytest.mark.parametrize(
    ("chat", "ends"),
    [
        (CHAT, "an answer ends with '</s>'"),
        # the line end after it is marked too
        (MARKED.replace("</s>{% endgeneration %}", "</s>\n{% endgeneration %}").replace("{{ '\n' }}", ""),
         "an answer ends with '</s>'"),
        (CHAT.replace("</s>", ""), "no answer ends with '</s>' or another special symbol, so that the model does not"),
        # one of the answers has none
        (CHAT.replace("</s>", "{{ '' if message.content.endswith('isst bread.') else '</s>' }}"),
         "an answer ends with '</s>', but for "),
        # not the tokenizer's own end symbol
        (MARKED.replace("</s>{% endgeneration %}", "<s>\n{% endgeneration %}").replace("{{ '\n' }}", ""),
         "an answer ends with '<s>'"),
    ],
)  # fmt: skip
def test_the_header_names_what_ends_an_answer_and_where_nothing_does(tmp_path, chat, ends):
    path = write_lines(tmp_path / "x.jsonl", rows("messages"))
    codec = RecordCodec(tokenizer(chat=chat), "messages")
    data = encoded_data(load_records(str(path)), codec, Limits())
    last = data.header()[-1].split("in any split; ")[1]
    assert last == ends or (ends not in LEARNT and last.startswith(ends))


LEARNT = ("an answer ends with '</s>'", "an answer ends with '<s>'")


def test_a_template_that_ignores_where_the_assistant_begins_is_refused():
    for chat in (BARE, BARE.replace("<turn>{{ m.role }}\n", "{{ m.role }}: ")):
        problem = refused_chat(chat, user("a man"), answer="the dog")
        header = "'<turn>assistant'" if chat == BARE else "'assistant:'"
        ignored = "x:3: the chat template takes no notice of add_generation_prompt, so"
        assert problem.startswith(f"{ignored} {header} before")
        assert "write it where add_generation_prompt is true" in problem


def test_a_marked_answer_without_its_end_is_refused():
    short = MARKED.replace("</s>{% endgeneration %}", "{% endgeneration %}</s>")
    problem = refused_chat(short, user("a man"), answer="the dog")
    assert problem.startswith("x:3: the chat template marks an answer without the '</s>' after it, so no answer would")
    assert "put the symbol that ends a turn before {% endgeneration %}" in problem
    # what follows a marked end is the next turn's
    closed = MARKED.replace("</s>{% endgeneration %}", "</s>\n{% endgeneration %}").replace("{{ '\n' }}", "")
    assert closed != MARKED
    more = (user("a man"), {"role": "assistant", "content": "yes?"}, user("a man"))
    (one,), problems = RecordCodec(tokenizer(chat=closed), "messages").encoded([Record("x:4", more, "the dog")])
    assert problems == []
    assert len(one.learned) > 2


@pytest.mark.parametrize("shape", ["completions", "text"])
def test_an_end_symbol_is_added_where_texts_begin_with_the_same(shape):
    from tokenizers.processors import TemplateProcessing

    words = tokenizer()
    words.backend_tokenizer.post_processor = TemplateProcessing("</s> $A", special_tokens=[("</s>", 1)])
    records = [*records_of(shape), Record("short", "a man" if shape == "completions" else "", "a")]
    found, problems = RecordCodec(words, shape).encoded(records)
    assert problems == []
    for one in found:
        ids = [*one.prompt, *one.target]
        assert (ids[0], ids[-1], ids.count(1)) == (1, 1, 2)


def test_an_end_symbol_before_the_language_is_not_doubled():
    from tokenizers.processors import TemplateProcessing

    words = tokenizer()
    special = [("</s>", 1), ("<turn>", 3)]
    words.backend_tokenizer.post_processor = TemplateProcessing("$A </s> <turn>", special_tokens=special)
    (one, *_), _ = RecordCodec(words, "pairs", causal=False).encoded(records_of("pairs"))
    assert one.target[-2:] == (1, 3)
    assert one.target.count(1) == 1


def test_batches_of_the_right_shape_need_a_model():
    codec = RecordCodec(tokenizer(), "completions")
    refused("bind one first", codec.training_batch, [Encoded((3,), (4,))])


@pytest.mark.parametrize(
    ("causal", "limits", "problem"),
    [
        (True, Limits(max_source=5), "has 6 tokens of source, max_source allows 5; raise it, or set too_long"),
        (True, Limits(max_target=3), "has 4 tokens of target, max_target allows 3; raise it, or set too_long"),
        (True, Limits(positions=9), "has 10 tokens, and the model has 9 positions; shorten it, or set too_long"),
        (False, Limits(positions=5), "has 6 tokens of source, and the model has 5 positions"),
        (False, Limits(max_source=6, max_target=4, positions=6), ""),
        (True, Limits(max_source=6, max_target=4, positions=10), ""),
    ],
)
def test_records_that_are_too_long_are_refused_left_out_or_cut(causal, limits, problem):
    class Coded(RecordCodec):
        def encoded(self, records):
            return [Encoded(tuple(range(10, 16)), (20, 21, 22, 1)), Encoded((10, 11), (20, 1))], []

    codec = Coded(None, "completions" if causal else "pairs", causal=causal)
    records = [Record("a:1", "", ""), Record("a:2", "", "")]
    found = fit_lengths(codec, records, limits, "a")
    assert [text.startswith(f"a:1: {problem}") for text in found.problems] == [True] * bool(problem)
    dropped = fit_lengths(codec, records, Limits(limits.max_source, limits.max_target, limits.positions, "drop"), "a")
    assert len(dropped.encoded) == 2 - bool(problem)
    assert dropped.notes == (["dropped: 1 row too long"] if problem else [])
    cut = fit_lengths(codec, records, Limits(limits.max_source, limits.max_target, limits.positions, "cut"), "a")
    assert cut.notes == (["1 row cut"] if problem else [])
    one = cut.encoded[0]
    assert len(one.prompt) <= (limits.max_source or 99)
    assert len(one.target) <= (limits.max_target or 99)
    if limits.max_target == 3:
        assert one.target == (20, 21, 22)  # without the end: it does not end there
    if causal:
        assert len(one) <= (limits.positions or 99)
        assert one.prompt[-1] == 15  # of a prompt the end is kept
    else:
        assert max(len(one.prompt), len(one.target)) <= limits.positions
        assert (one.prompt[0], one.prompt[-1]) == (10, 15)  # of a source the beginning, and its own end symbol


def test_a_cut_text_is_its_beginning():
    words = tokenizer()
    codec = RecordCodec(words, "text")
    (record,) = records_of("text", 1)
    (found,) = fit_lengths(codec, [record], Limits(max_target=6, too_long="cut"), "a").encoded
    assert list(found.prompt + found.target) == words(record.target)["input_ids"][:6]
    assert found.learned == frozenset(range(len(found.prompt)))


def test_data_know_their_end_their_longest_answer_and_themselves(tmp_path):
    path = write_lines(tmp_path / "x.jsonl", rows("completions"))
    words = tokenizer()
    data = encoded_data(load_records(str(path)), RecordCodec(words, "completions"), Limits())
    train = data.splits["train"].encoded
    assert data.codec.end == words.eos_token_id
    assert data.codec.longest == max(len(one.target) - 1 for one in train)
    assert data.lengths == [len(one.prompt) + len(one.target) for one in train]
    assert data.frequencies[words.eos_token_id] == len(train)
    assert sum(data.frequencies) == sum(len(one.target) for one in train)
    again = encoded_data(load_records(str(path)), RecordCodec(tokenizer(), "completions"), Limits())
    assert again.fingerprint == data.fingerprint
    other = encoded_data(load_records(str(path)), RecordCodec(words, "completions", prefix="x"), Limits())
    assert other.fingerprint != data.fingerprint
    assert RecordCodec.from_description(data.codec.describe(), words).describe() == data.codec.describe()
    foreign = "the tokenizer is not the one that the model was trained with"
    refused(foreign, RecordCodec.from_description, data.codec.describe(), tokenizer(chat=CHAT))
    header, numbers = data.header(), r"tokens of a training record: [\d.]+ prompt \+ [\d.]+ target; "
    assert header[0] == f"data: {path}, fingerprint {data.fingerprint}"
    assert re.fullmatch(rf"{numbers}.*an answer ends with '</s>'", header[-1])


def test_a_file_to_score_on_has_the_same_columns(tmp_path):
    path = write_lines(tmp_path / "x.jsonl", [{"q": "a", "a": "b"}, {"q": "c"}])
    columns = {"prompt": "q", "completion": "a"}
    (problem,) = problems_of(read_records, path, "completions", columns, RecordOptions())
    assert problem.startswith(f"{path}:2: column 'a' is missing")
    write_lines(path, [{"q": "a", "a": "b"}])
    assert read_records(path, "completions", columns, RecordOptions()) == [Record(f"{path}:1", "a", "b")]


def test_a_row_that_is_too_long_does_not_hide_behind_one_that_is_none(tmp_path):
    good = '{"prompt": "a", "completion": "b"}'
    lines = [good, '{"prompt": "%s", "completion": "b"}' % ("x " * 300), "[1]",
             '{"prompt": "\\ud800", "completion": "b"}', '{"prompt": %s, "completion": "b"}' % ("9" * 5000),
             '{"prompt": NaN, "completion": "b"}', '{"a": ' + "[" * 10**5 + "}"] + [good] * 9  # fmt: skip
    (tmp_path / "rows.jsonl").write_text("\n".join(lines))
    codec = RecordCodec(tokenizer(), "completions", {"prompt": "prompt", "completion": "completion"})
    problems = refused(
        "", load_records, str(tmp_path / "rows.jsonl"), None,
        lambda sound: encoded_problems(sound, codec, Limits(positions=96)),
    )  # fmt: skip
    found = {problem.split(":")[1]: problem for problem in problems}
    assert sorted(found) == ["2", "3", "4", "5", "6", "7"]
    for line, part in {"2": "positions", "3": "no object", "4": "half of a surrogate pair", "5": "thousands of digits",
                       "6": "holds a float, nan", "7": "nested too deeply"}.items():  # fmt: skip
        assert part in found[line]


def test_a_row_that_would_train_for_hours_is_refused_for_models_of_any_length():
    codec = RecordCodec(tokenizer(), "pairs", {"source": "source", "target": "target"}, causal=False)
    records = [Record("x:1", "a man " * 20_000, "b"), Record("x:2", "a", "b")]
    (problem,) = fit_lengths(codec, records, Limits(), "x").problems
    assert problem.startswith("x:1: has ")
    assert "more than 20,000; shorten it, or set max_source" in problem
    assert not fit_lengths(codec, records, Limits(max_source=10**6), "x").problems
