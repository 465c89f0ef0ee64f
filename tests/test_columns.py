"""Which columns records are made of: instructions, templates, nested cells, messages, tools; every reader's paths."""

import json

import polars as pl
import pytest

from builders import problems_of
from freerun.comparison.results import _identities
from freerun.data import TextOptions, load_text
from freerun.data.records import Limits, RecordCodec, RecordOptions, fit_lengths, load_records
from freerun.data.tables import read_table
from freerun.training.run_folder import items
from huggingface_world import CHAT, MARKED, tokenizer, write_lines

ALPACA = [
    {"instruction": "Turn it into French.", "input": "the dog {n}", "output": "le chien"},
    {"instruction": "Name a cat.", "input": "", "output": "Minka"},
    {"instruction": "Count to two.", "output": "one, two"},
]
HALF = {"dev": 0.25, "test": 0.25}


def found(path, **options):
    records = load_records(str(path), RecordOptions(**{**HALF, **options}))
    rows = sorted((row for part in records.splits.values() for row in part), key=lambda row: row.origin)
    return records, rows


def test_instructions_with_and_without_input(tmp_path):
    path = write_lines(tmp_path / "alpaca.jsonl", [*ALPACA, {**ALPACA[0], "id": 7}])
    records, rows = found(path)
    ask = "### Instruction:\n{}\n\n### Response:\n"
    given = "### Instruction:\nTurn it into French.\n\n### Input:\nthe dog {n}\n\n### Response:\n"
    assert [row.prompt for row in rows] == [
        given, ask.format("Name a cat."), ask.format("Count to two."), given
    ]  # fmt: skip
    assert [row.target for row in rows] == ["le chien", "Minka", "one, two", "le chien"]
    assert records.shape == "completions"
    assert records.notes == (
        "columns: prompt from instruction, input; completion from output; not used: id",
        f"{path}: 2 rows without 'input'",
    )
    # in a chat the headings are the template's
    assert [row.prompt for row in found(path, chat=True)[1]][:2] == [
        "Turn it into French.\n\nthe dog {n}", "Name a cat."
    ]  # fmt: skip
    # without a column of inputs at all there is no heading for it
    path = write_lines(tmp_path / "short.jsonl", [{"instruction": "Go.", "output": "I went."}] * 4)
    assert {row.prompt for row in found(path)[1]} == {ask.format("Go.")}
    # Dolly's names; an empty instruction is an empty prompt, by line
    path = write_lines(tmp_path / "dolly.jsonl", [{"instruction": "Who?", "context": "Ann.", "response": "Ann"}] * 4)
    assert {row.prompt for row in found(path)[1]} == {"### Instruction:\nWho?\n\n### Input:\nAnn.\n\n### Response:\n"}
    path = write_lines(tmp_path / "bad.jsonl", [*ALPACA, {"instruction": " ", "input": "x", "output": "y"}])
    assert problems_of(load_records, str(path)) == [
        f"{path}:4: column 'instruction' is empty; fill it in, delete the row, or set empty = \"drop\""
    ]


def test_templates_of_several_columns(tmp_path):
    row = {"question": "Who {sleeps}?", "context": "A man.", "level": 3, "answer": "a man"}
    path = write_lines(tmp_path / "qa.jsonl", [row, {**row, "context": None}] * 2)
    ask = "Question: {question}\n\nContext: {context}\n\nAnswer:"
    records, rows = found(path, prompt=ask, completion="answer {{a}}: {answer}")
    assert [row.prompt for row in rows[:2]] == [
        "Question: Who {sleeps}?\n\nContext: A man.\n\nAnswer:",
        "Question: Who {sleeps}?\n\nAnswer:",
    ]
    assert {row.target for row in rows} == {"answer {a}: a man"}
    assert records.notes[0] == "columns: prompt from question, context; completion from answer; not used: level"
    # in the library of a run too: the codec fills the same template for an answer
    codec = RecordCodec(None, "completions", records.columns)
    assert codec.prompt_of(row) == rows[0].prompt
    assert codec.prompt_of_line("Where?") == "Question: Where?\n\nAnswer:"
    # what is no text, and a column that is not there
    assert problems_of(load_records, str(path), RecordOptions(prompt="{question} {level}", completion="answer"))[0] == (
        f"{path}:1: column 'question' or 'level' holds a int, 3; expected text"
    )
    assert problems_of(load_records, str(path), RecordOptions(prompt="{question} {other}", completion="answer")) == [
        f"{path}: has no column 'other'; its columns are question, context, level, answer"
    ]
    problems = problems_of(RecordOptions, prompt="{question", completion="{answer!r}", split_seed=-1)
    assert [problem.split(":")[0] for problem in problems] == [
        "split_seed must be at least 0; got -1", "'{question'", "'{answer!r}'"
    ]  # fmt: skip
    # a column whose name has braces is that column
    path = write_lines(tmp_path / "braces.jsonl", [{"{a}": "x", "b": "y"}] * 4)
    assert {row.prompt for row in found(path, prompt="{a}", completion="b")[1]} == {"x"}


def test_nested_translations(tmp_path):
    rows = [{"id": str(n), "translation": {"en": f"a {n}", "fr": f"un {n}"}} for n in range(4)]
    path = write_lines(tmp_path / "opus.jsonl", rows)
    for names in (("en", "fr"), ("translation.en", "translation.fr")):
        records, rows = found(path, source=names[0], target=names[1])
        assert [(row.prompt, row.target) for row in rows] == [(f"a {n}", f"un {n}") for n in range(4)]
        assert records.notes == (
            "columns: source from translation.en; target from translation.fr; not used: id",
        )  # fmt: skip
    assert problems_of(load_records, str(path)) == [
        f'{path}: translation holds en, fr: name both sides, source = "en" and target = "fr" or the other way round'
    ]
    write_lines(path, [{"translation": {"en": "a", "fr": "b"}}, {"translation": {"en": "a"}}])
    assert problems_of(load_records, str(path), RecordOptions(source="en", target="fr")) == [
        f"{path}:2: column 'translation.fr' is missing; fill it in, delete the row, or set empty = \"drop\""
    ]


@pytest.mark.parametrize(
    ("row", "kinds"),
    [({"source": "a", "target": "b", "prompt": "c", "completion": "d"}, "pairs (source, target) or completions"),
     ({"messages": [], "prompt": "c", "completion": "d"}, "completions (prompt, completion) or messages (messages)"),
     ({"conversations": [], "messages": []}, "messages (messages) or messages (conversations)"),
     ({"instruction": "a", "input": "b", "output": "c", "response": "d"}, "completions (instruction, input, output)"),
     ({"source": "a", "target": "b", "translation": {"en": "a", "fr": "b"}}, "pairs (source, target) or pairs (transl")]
)  # fmt: skip
def test_columns_that_could_be_several_kinds_are_not_chosen_among(tmp_path, row, kinds):
    path = write_lines(tmp_path / "x.jsonl", [row] * 4)
    (problem,) = problems_of(load_records, str(path))
    assert problem.startswith(f"{path}: could be {kinds}")
    assert problem.endswith(": name the columns that are to be used")


TOOL = {"type": "function", "function": {"name": "look", "parameters": {"type": "object", "where": None}}}
TOOLED = "{% if tools %}<turn>tools\n{% for t in tools %}{{ t | tojson }}{% endfor %}</s>\n{% endif %}" + CHAT
HELLO = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "yes?"}]


def written(path, rows):
    """A file, or a folder of the library datasets, that holds rows."""
    import datasets

    kind = path.suffix
    if kind == ".jsonl":
        write_lines(path, rows)
    elif kind == ".json":
        path.write_text(json.dumps(rows))
    elif kind == ".parquet":
        datasets.Dataset.from_list(rows).to_parquet(str(path))
    elif kind == ".feather":
        pl.DataFrame(rows).write_ipc(path)
    elif kind == ".arrow":
        datasets.Dataset.from_list(rows).save_to_disk(str(path.with_suffix("")))
        (path.with_suffix("") / "data-00000-of-00001.arrow").rename(path)
    else:
        datasets.Dataset.from_list(rows).save_to_disk(str(path))
    return path


KINDS = ["x.jsonl", "x.json", "x.parquet", "x.feather", "x.arrow", "saved"]


@pytest.mark.parametrize("name", KINDS)
def test_tools_reach_the_template(tmp_path, name):
    words = tokenizer(chat=TOOLED)
    talk = [*HELLO, {"role": "user", "content": "a man"}, {"role": "assistant", "content": "ein man"}]
    rows = [{"messages": talk, "tools": [TOOL] if n % 2 else None, "n": n} for n in range(4)]
    records, sound = found(written(tmp_path / name, rows))
    assert records.notes == ("columns: messages from messages; tools from tools; not used: n",)
    codec = RecordCodec(words, "messages", records.columns)
    one, two = (codec.encoded([row])[0][0] for row in sound[:2])
    # of objects in columns an entry that is null is one that is not there
    tool = (
        TOOL if name.startswith("x.json") else {**TOOL, "function": {"name": "look", "parameters": {"type": "object"}}}
    )
    for encoded, tools in ((one, None), (two, [tool])):
        text = words.apply_chat_template(talk, tokenize=False, tools=tools)
        assert words.decode([*encoded.prompt, *encoded.target]) + "\n" == text
        assert encoded.turns == 2
        assert codec.prompts([tuple(talk[:-1])], more={"tools": tools} if tools else None) == [list(encoded.prompt)]
    # a template without them refuses such rows; "" leaves the column out
    words.chat_template = CHAT
    fitted = fit_lengths(codec, sound, Limits(), "x")
    assert len(fitted.problems) == 2
    assert (
        'has tools, and the chat template does not write them: use a template that does, or set tools = ""'
        in (fitted.problems[0])
    )
    records, sound = found(tmp_path / name, tools="")
    assert records.notes == ("columns: messages from messages; not used: tools, n",)
    assert fit_lengths(codec, sound, Limits(), "x").notes == ["8 assistant turns learnt"]


@pytest.mark.parametrize(
    ("cell", "wrong"),
    [("look", "holds text that is no JSON; expected a list of JSON schemas"), (3, "holds 3; expected a list of JSON"),
     ([3], "holds [3]; expected a list of JSON schemas"), ({"a": 1}, "holds {'a': 1}; expected a list of JSON"),
     ("{}", None), ("", None), ([], None), (json.dumps([TOOL]), None)]
)  # fmt: skip
def test_tools_that_are_none(tmp_path, cell, wrong):
    path = write_lines(tmp_path / "x.jsonl", [{"messages": HELLO, "tools": cell}] * 4)
    if wrong is None:
        assert {row.more.get("tools", [{}])[0].get("type") for row in found(path)[1]} <= {"function", None}
    else:
        assert problems_of(load_records, str(path))[0].startswith(f"{path}:1: column 'tools' {wrong}")


def test_what_a_template_has_beside_messages(tmp_path):
    words = tokenizer(chat="{% if brief %}<turn>brief</s>{% endif %}" + CHAT)
    path = write_lines(tmp_path / "x.jsonl", [{"messages": HELLO, "chat_template_kwargs": {"brief": True}}] * 4)
    codec = RecordCodec(words, "messages")
    assert words.decode(codec.encoded(found(path)[1])[0][0].prompt).startswith("<turn>brief</s><turn>user")
    # arguments of the tokenizer's own method are no variables
    write_lines(path, [{"messages": HELLO, "chat_template_kwargs": {"tokenize": True}}] * 4)
    _, problems = codec.encoded(found(path)[1])
    assert problems[0] == f"{path}:1: has tokenize for the chat template, which is no variable of a template"
    assert problems_of(load_records, str(path), RecordOptions(messages="messages", tools="other")) == [
        f"{path}: has no column 'other'; its columns are messages, chat_template_kwargs"
    ]
    write_lines(path, [{"prompt": "a", "completion": "b"}] * 4)
    assert problems_of(load_records, str(path), RecordOptions(tools="prompt")) == [
        "data.tools is for conversations, and the records are completions: leave it out"
    ]


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("chat", [CHAT, MARKED])
def test_prompts_and_completions_of_messages(tmp_path, name, chat):
    """As TRL takes them: of the prompt nothing is learnt, its earlier answers are counted."""
    prompt = [*HELLO, {"role": "user", "content": "a man"}]
    completion = [
        {"role": "assistant", "content": "ein man"}, {"role": "user", "content": "the dog"},
        {"role": "assistant", "content": "der dog"},
    ]  # fmt: skip
    path = written(tmp_path / name, [{"prompt": prompt, "completion": completion}] * 4)
    records, sound = found(path)
    assert (records.shape, records.columns) == ("messages", {"prompt": "prompt", "completion": "completion"})
    words = tokenizer(chat=chat)
    codec = RecordCodec(words, "messages", records.columns, end=words.eos_token_id)
    (one, *_), problems = codec.encoded(sound)
    assert problems == []
    learnt = [one.prompt[n] for n in sorted(one.learned)]
    assert (words.decode(learnt), words.decode(one.target)) == ("ein man</s>", "der dog</s>")
    text = words.apply_chat_template([*prompt, *completion], tokenize=False)
    assert words.decode([*one.prompt, *one.target]) + "\n" == text
    assert fit_lengths(codec, sound, Limits(), "x").notes == [
        "8 assistant turns learnt", "4 not learnt: in a prompt, or of weight 0"
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("prompt", "completion", "wrong"),
    [(HELLO, HELLO[1:], "of the prompt ends with a message of the assistant, which the completion cannot go on with"),
     ("hello", HELLO[1:], "of the prompt holds text that is no JSON; expected a list of {role, content}"),
     (HELLO[:1], "yes?", "of the completion holds text that is no JSON"),
     (HELLO[:1], HELLO[:1], "of the completion ends with a message of 'user'; the last must be the assistant's"),
     (HELLO[:1], [], "is empty")]
)  # fmt: skip
def test_prompts_and_completions_of_messages_that_do_not_fit(tmp_path, prompt, completion, wrong):
    good = {"prompt": HELLO[:1], "completion": HELLO[1:]}
    path = write_lines(tmp_path / "x.jsonl", [good, good, {"prompt": prompt, "completion": completion}])
    (problem,) = problems_of(load_records, str(path))
    assert problem.startswith(f"{path}:3: column ")
    assert wrong in problem


LETTERS = "data[1]*?.{}"
"""A name that is a pattern elsewhere, of which each decoy is a match."""
DECOYS = ("data1x?.{}", "data1.{}", "data1ab.{}")


@pytest.mark.parametrize("kind", ["jsonl", "json", "csv", "tsv", "parquet", "feather", "arrow", "txt", "folder"])
def test_glob_characters_in_paths_of_records_are_letters(tmp_path, kind):
    for name in (LETTERS, *DECOYS):
        rows = [{"source": f"{name[:5]} {n}", "target": f"b {n}"} for n in range(4)]
        path = tmp_path / name.format(kind)
        if kind in ("csv", "tsv", "txt"):
            mark = "," if kind == "csv" else "\t"
            path.write_text("".join(f"{a}{mark}{b}\n" for a, b in [("source", "target"), *(r.values() for r in rows)]))
        elif kind == "folder":
            written(tmp_path / name.removesuffix(".{}"), rows)
        else:
            written(path, rows)
    path = tmp_path / (LETTERS.removesuffix(".{}") if kind == "folder" else LETTERS.format(kind))
    assert [row.prompt for row in found(path)[1]] == [f"data[ {n}" for n in range(4)]
    path.rename(tmp_path / "other") if kind == "folder" else path.unlink()
    (problem,) = problems_of(load_records, str(path))
    assert problem.startswith(f"{path}: no such file or folder; ")


@pytest.mark.parametrize("kind", ["csv", "parquet", "arrow"])
def test_glob_characters_in_paths_of_series_and_texts_are_letters(tmp_path, kind):
    for number, name in enumerate((LETTERS, *DECOYS)):
        frame = pl.DataFrame({"a": [number, number], "b": [1.5, 2.5]})
        path = tmp_path / name.format(kind)
        {"csv": frame.write_csv, "parquet": frame.write_parquet, "arrow": frame.write_ipc}[kind](path)
        (tmp_path / name.format("txt")).write_text(f"{number}" * 400)
    path = tmp_path / LETTERS.format(kind)
    assert read_table(path).numbers("a")[0].tolist() == [0, 0]
    path.unlink()
    assert problems_of(read_table, path)[0].startswith(f"{path}: no such file or folder; ")
    assert set(load_text(tmp_path / LETTERS.format("txt"), TextOptions(length=8)).parts["train"]) == {"0"}


def test_named_columns_that_are_absent_give_way_to_the_usual_ones(tmp_path):
    talk = [{"role": "user", "content": "Hello!"}, {"role": "assistant", "content": "Hello."}]
    path = write_lines(tmp_path / "chat.jsonl", [{"messages": talk, "id": 1}] * 8)
    first, second = problems_of(load_records, str(path), RecordOptions(prompt="prompt", completion="completion"))
    advice = "; leave data.prompt and data.completion out (--set data.prompt=), and messages are read from messages"
    assert first == f"{path}: has no column 'prompt'; its columns are messages, id{advice}"
    assert second.endswith(advice)


def test_the_items_of_a_test_may_be_conversations(tmp_path):
    talk = [{"role": "user", "content": "Hello!"}]
    write_lines(tmp_path / "test-items.jsonl", [{"source": talk, "output": "Hi.", "reference": "Hello."}] * 2)
    listed = items(tmp_path)
    assert [item["source"] for item in listed] == [talk, talk]
    assert [count for _, count in _identities(listed)] == [0, 1]
