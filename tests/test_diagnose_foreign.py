"""``freerun diagnose`` on what freerun did not train: folders of transformers with a file, and objects of one's own."""

import json
import math
import shutil
from functools import cache

import pytest
import torch
import transformers
from torch.nn.functional import cross_entropy

import freerun as fr
from freerun.diagnostics import DiagnosisOptions, ErrorGap
from freerun.experiments.subjects import read_pretrained
from freerun.generation import generate, prompt_lengths
from freerun.report.diagnosis import position_ranges
from huggingface_world import CHAT, model_folder, rows, sentences, write_lines
from test_misuse import refused
from test_report import check_page
from tiny_recipes import ends

KINDS = {
    "gpt2": ("completions", None),
    "llama": ("messages", CHAT),
    "t5": ("pairs", None),
    "bart": ("pairs", None),
    "gpt2-text": ("text", None),
}


def learnt(folder, examples, updates=60):
    """Fit a saved model a little by its own loss, so that some of its choices are right, and save it again."""
    model = load_model(folder).train()
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    for step in range(updates):
        optimizer.zero_grad()
        for prompt, target in examples[step % 5 :: 5]:
            if model.config.is_encoder_decoder:
                loss = model(input_ids=torch.tensor([prompt]), labels=torch.tensor([target])).loss
            else:
                ids = torch.tensor([[*prompt, *target]])
                loss = model(input_ids=ids, labels=ids).loss
            loss.backward()
        optimizer.step()
    model.eval().save_pretrained(folder)


def load_model(folder):
    config = transformers.AutoConfig.from_pretrained(folder)
    kind = transformers.AutoModelForSeq2SeqLM if config.is_encoder_decoder else transformers.AutoModelForCausalLM
    return kind.from_pretrained(folder).eval()


def by_hand(tokenizer, shape, record):
    """Prompt and target of a record as ids, as anyone would write it for that tokenizer."""

    def ids(text, **options):
        return tokenizer(text, **options)["input_ids"]

    if shape == "text":
        every = [*ids(record["text"]), 1]
        return every[: len(every) // 2], every[len(every) // 2 :]
    if shape == "messages":
        *before, last = record["messages"]
        prompt = tokenizer.apply_chat_template(before, tokenize=True, add_generation_prompt=True)["input_ids"]
        return prompt, [*ids(last["content"], add_special_tokens=False), 1]
    first, second = ("source", "target") if shape == "pairs" else ("prompt", "completion")
    return ids(record[first]), [*ids(record[second], add_special_tokens=False), 1]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Each kind's folder, in which a model and its tokenizer are, and records."""

    @cache
    def folder(name):
        family, (shape, chat) = name.partition("-")[0], KINDS[name]
        root = tmp_path_factory.mktemp(name)
        model_folder(root / "model", family, chat=chat, pad=name != "gpt2")
        write_lines(root / "data.jsonl", rows(shape))
        tokenizer = transformers.AutoTokenizer.from_pretrained(root / "model")
        learnt(root / "model", [by_hand(tokenizer, shape, record) for record in rows(shape)])
        return root

    return folder


def greedy(result):
    """A diagnosis without what is drawn: draws are a row's of its batch."""
    return {key: value for key, value in result.items() if key not in ("tokens", "examples")}


def joined(text):
    """Undo the line breaks of a terminal."""
    return " ".join(text.split())


def diagnosed(capsys, root, *more, data="data.jsonl", code=0):
    out = root / "out"
    found = ends(capsys, code, "diagnose", root / "model", "--data", root / data, "--out", out, "--overwrite", *more)
    return json.loads((out / "diagnosis.json").read_bytes()), found


LATER = {"llama", "bart", "gpt2-text"}  # shapes and families that other tests here read, or the quick two stand for
EACH = [
    pytest.param(name, marks=pytest.mark.slow(reason="ten seconds each")) if name in LATER else name for name in KINDS
]


@pytest.mark.parametrize("name", EACH)
def test_counts_are_those_of_generate_one_record_after_the_other(world, name, capsys):
    root, (shape, _) = world(name), KINDS[name]
    found, printed = diagnosed(capsys, root)
    tokenizer, model = transformers.AutoTokenizer.from_pretrained(root / "model"), load_model(root / "model")
    examples = [by_hand(tokenizer, shape, record) for record in rows(shape)]
    wrong, free_wrong, firsts, losses = [], [], [], []
    for prompt, target in examples:
        source, gold = torch.tensor([prompt]), torch.tensor(target)
        options = {"do_sample": False, "num_beams": 1, "max_new_tokens": 80 - len(prompt), "pad_token_id": 0}
        own = model.generate(source, attention_mask=torch.ones_like(source), **options)[0]
        with torch.no_grad():
            if model.config.is_encoder_decoder:
                logits, own = model(input_ids=source, labels=gold[None]).logits[0], own[1:]
            else:
                logits = model(torch.cat([source, gold[None]], 1)).logits[0, len(prompt) - 1 : -1]
                own = own[len(prompt) :]
        ended = own.tolist().index(1) + 1 if 1 in own else len(own)  # a run that ended has nothing right behind it
        own = torch.nn.functional.pad(own[:ended][: len(gold)], (0, max(0, len(gold) - ended)), value=-1)
        wrong.append((logits.argmax(-1) != gold).tolist())
        free_wrong.append((own != gold).tolist())
        firsts.append((own != gold).tolist().index(True) if bool((own != gold).any()) else None)
        losses.append(float(cross_entropy(logits, gold, reduction="sum")))
    result, longest = found["diagnosis"], max(len(target) for _, target in examples)
    for side, flags in (("teacher_forced", wrong), ("free_running", free_wrong)):
        columns = [[row[t] for row in flags if len(row) > t] for t in range(longest)]
        assert result[side]["errors"] == sum(map(sum, flags)), side
        assert result[side]["wrong_by_position"] == pytest.approx([sum(each) / len(each) for each in columns])
    assert result["first_error"] == [firsts.count(t) for t in range(longest)]
    assert 0 < result["teacher_forced"]["wrong"] < 1  # else nothing was compared
    assert result["free_running"]["errors"] != result["teacher_forced"]["errors"]
    assert found["data"] | {"fingerprint": None} == {
        "name": str(root / "data.jsonl"), "item_noun": "records", "fingerprint": None,
    }  # fmt: skip
    turns = "; 60 assistant turns learnt" if shape == "messages" else ""
    assert found["run"]["facts"]["records"] == "all 30" + turns
    assert printed.err.splitlines()[0] == f"loading {root / 'model'} ..."
    assert f"wrong, of {sum(map(len, wrong)):,} entries" in printed.out
    assert printed.out.splitlines()[-1] == str(root / "out" / "diagnosis.html")
    assert check_page((root / "out" / "diagnosis.html").read_text(encoding="utf-8")) > 2
    # the same batches in Python: every row's own choices are those that generate makes
    subject = read_pretrained(str(root / "model"), str(root / "data.jsonl"))
    scores = fr.evaluate(subject.model, subject.batches, end=1)
    assert scores.teacher_forced["loss"] == pytest.approx(sum(losses) / sum(map(len, wrong)), rel=1e-5)
    # which takes what follows an early end symbol for that symbol
    assert scores.free_running["token_error"] <= 100 * result["free_running"]["wrong"] + 1e-9
    again = fr.diagnose(subject.model, subject.batches).to_json()["diagnosis"]
    assert greedy(again) == greedy(result)


def test_free_runs_are_generate_s_token_for_token(world):
    for name in ("llama", "t5", "bart"):
        root, model = world(name), load_model(world(name) / "model")
        subject = read_pretrained(str(root / "model"), str(root / "data.jsonl"))
        for batch in subject.batches:
            run = generate(subject.model, batch, length=12, end=None)
            for row in range(batch.size):
                one = batch.context
                if model.config.is_encoder_decoder:
                    read = {key: value[row : row + 1] for key, value in one.source.items()}
                    read = {key: value[:, : int(read["attention_mask"].sum())] for key, value in read.items()}
                else:
                    known = int(prompt_lengths(batch)[row])
                    read = {"input_ids": torch.cat([one.first[row], batch.history[row, :known]])[None]}
                    read["attention_mask"] = torch.ones_like(read["input_ids"])
                own = model.generate(**read, do_sample=False, max_new_tokens=12, eos_token_id=None, pad_token_id=0)[0]
                assert run.entries[row].tolist() == own[-12:].tolist()


def test_plain_text_is_read_as_records_of_text(world, capsys):
    text = world("gpt2-text")
    (text / "plain.txt").write_text("".join(f"{a} {b}\n\n" for a, b in sentences()), encoding="utf-8")
    lines = diagnosed(capsys, text)[0]
    plain, printed = diagnosed(capsys, text, data="plain.txt")
    assert greedy(plain["diagnosis"]) == greedy(lines["diagnosis"])
    assert "compared: the second half of each text, after the first" in joined(printed.err)


@pytest.mark.slow(reason="measures one model six times: half a minute")
def test_columns_sampling_and_batch_size(world, capsys):
    pairs = world("t5")
    table = "".join(f"{a}\t{b}\n" for a, b in [("en", "de"), *sentences()])
    (pairs / "named.tsv").write_text(table, encoding="utf-8")
    columns = ("--set", "data.source=en", "--set", "data.target=de")
    whole = diagnosed(capsys, pairs)[0]["diagnosis"]
    assert greedy(diagnosed(capsys, pairs, *columns, data="named.tsv")[0]["diagnosis"]) == greedy(whole)
    assert greedy(diagnosed(capsys, pairs, "--batch-size", "7")[0]["diagnosis"]) == greedy(whole)
    few, printed = diagnosed(capsys, pairs, "--max-rows", "10")
    assert few["diagnosis"]["rows"] == 10
    assert "records: 10 of 30, at even distances" in joined(printed.err)
    write_lines(pairs / "tenth.jsonl", rows("pairs")[::3])
    assert greedy(diagnosed(capsys, pairs, data="tenth.jsonl")[0]["diagnosis"]) == greedy(few["diagnosis"])
    (pairs / "splits").mkdir()
    write_lines(pairs / "splits" / "train.jsonl", rows("pairs")[:3])
    write_lines(pairs / "splits" / "test.jsonl", rows("pairs")[::3])
    assert greedy(diagnosed(capsys, pairs, data="splits")[0]["diagnosis"]) == greedy(few["diagnosis"])


def test_settings_of_generation_are_followed_and_what_is_not_is_named(world, tmp_path, capsys):
    shutil.copytree(world("bart") / "model", tmp_path / "model")
    settings = json.loads((tmp_path / "model" / "generation_config.json").read_text())
    settings |= {
        "num_beams": 4,
        "no_repeat_ngram_size": 3,
        "stop_strings": ["!"],
        "suppress_tokens": list(range(4, 300)),
    }
    (tmp_path / "model" / "generation_config.json").write_text(json.dumps(settings))
    shutil.copy(world("bart") / "data.jsonl", tmp_path)
    found, printed = diagnosed(capsys, tmp_path)
    named = "stop_strings = ['!']; num_beams = 4: free runs are greedy"
    assert f"not applied: {named}" in joined(printed.err)
    assert found["run"]["facts"]["not applied"] == named
    assert "no_repeat_ngram_size = 3" in found["run"]["facts"]["generation_config"]
    plain, _ = diagnosed(capsys, world("bart"))
    assert found["diagnosis"] != plain["diagnosis"]


def wrong_folders(world, root):
    """(arguments, words of the message) of every mistake with a folder, a file or an option."""
    gpt2, t5, data = world("gpt2") / "model", world("t5") / "model", world("gpt2") / "data.jsonl"
    for name in ("bare", "large", "run", "adapter"):
        shutil.copytree(gpt2, root / name)
    for file in (root / "bare").glob("token*"):
        file.unlink()
    shutil.move(root / "run", root / "inner")
    shutil.move(root / "inner", root / "run" / "model")
    (root / "run" / "model" / "model.json").write_text("{}")
    (root / "adapter" / "config.json").rename(root / "adapter" / "adapter_config.json")
    large = transformers.AutoTokenizer.from_pretrained(root / "large")
    large.add_tokens([f"<new{n}>" for n in range(4)])
    large.save_pretrained(root / "large")
    write_lines(root / "long.jsonl", [*rows("completions")[:3], {"prompt": "the dog " * 60, "completion": " x"}])
    write_lines(root / "odd.jsonl", [{"en": "a", "fr": "b"}])
    write_lines(root / "chat.jsonl", rows("messages"))
    (root / "empty.jsonl").write_text("")
    (root / "head.csv").write_text("prompt,completion\n")
    (root / "blank.jsonl").write_text(
        '{"prompt": "a", "completion": " "}\n{"prompt": 3, "completion": "b"}\n{"prompt"\n'
    )
    yield (root / "bare", data), ["holds none of tokenizer_config.json", "save the tokenizer there too"]
    yield (root / "large", data), ["the tokenizer has", "resize_token_embeddings"]
    yield (root / "run", data), ["is a run of freerun", "the run's own test split", f"{root / 'run' / 'model'}"]
    yield (root / "adapter", data), ["holds none of config.json", "merge_and_unload"]
    yield (gpt2 / "config.json", data), ["is a file; give the folder that save_pretrained wrote"]
    yield ("openai-community/gpt3", data), ["there is no such folder", "from_pretrained('openai-community/gpt3')"]
    yield (gpt2, root / "none.jsonl"), ["none.jsonl: no such file"]
    yield (gpt2, root / "empty.jsonl"), ["the file is empty"]
    yield (gpt2, root / "head.csv"), ["head.csv: holds no row"]
    yield (gpt2, root / "blank.jsonl"), [
        "blank.jsonl:3: no JSON", "blank.jsonl:1: column 'completion' is empty", "blank.jsonl:2: column 'prompt' holds "
        "a int", "keys are set with --set data.KEY=VALUE",
    ]  # fmt: skip
    yield (gpt2, root / "odd.jsonl"), ["cannot tell which columns to use; it has en, fr"]
    yield (gpt2, root / "odd.jsonl", "--set", "data.prompt=en", "--set", "data.completion=de"), ["has no column 'de'"]
    yield (gpt2, root / "long.jsonl"), ["long.jsonl:4: has", "the model has 96 positions", 'too_long = "drop"']
    yield (gpt2, root / "chat.jsonl"), ["the tokenizer has no chat template"]
    yield (t5, data), ["is an encoder-decoder, and the records are completions", "name the columns for source and tar"]
    yield (gpt2, world("t5") / "data.jsonl"), ["is a causal model, and the records are pairs"]
    yield (gpt2, data, "--set", "data.dev=0.1", "--set", "data.promt=x", "--set", "train.lr=1"), [
        "unknown key `dev` in [data]", "all rows of the file are used", "did you mean `prompt`?", "no [train] here",
    ]  # fmt: skip
    yield (gpt2, data, "--set", "evaluate.beams=2"), ["`beams` belongs to freerun evaluate"]
    yield (gpt2, data, "--batch-size", "0"), ["`batch_size` must be at least 1; got 0"]
    yield (gpt2, data, "--max-rows", "0"), ["must be at least 1; got 0"]
    yield (gpt2,), ["is a folder of transformers, not of a run: give the records with --data FILE"]
    yield (world("gpt2"), None, "--batch-size", "3"), ["--batch-size is for a folder of transformers"]


def test_mistakes_are_taught_and_nothing_is_written(world, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    count = 0
    for (folder, *words), expected in wrong_folders(world, tmp_path):
        data, *more = words or [None]
        arguments = [folder, *(() if data is None else ("--data", data)), *more]
        err = ends(capsys, 2, "diagnose", *arguments, "--out", tmp_path / "out").err
        assert all(word in err for word in expected), (expected, err)
        assert "Traceback" not in err
        assert not (tmp_path / "out").exists()
        count += 1
    assert count == 22


def test_an_earlier_diagnosis_and_other_files_are_kept(world, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = ("diagnose", world("t5") / "model", "--data", world("t5") / "data.jsonl", "--max-rows", "3")
    assert ends(capsys, 0, *words).out.splitlines()[-1] == "model-diagnosis/diagnosis.html"
    first = (tmp_path / "model-diagnosis" / "diagnosis.json").read_bytes()
    assert "--overwrite replaces it" in ends(capsys, 3, *words).err
    ends(capsys, 0, *words, "--overwrite")
    assert (tmp_path / "model-diagnosis" / "diagnosis.json").read_bytes() == first
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "diagnosis.json").write_text("mine")
    assert "no freerun diagnose wrote it" in ends(capsys, 3, *words, "--out", "theirs", "--overwrite").err
    assert (tmp_path / "theirs" / "diagnosis.json").read_text() == "mine"


OWN = '''
import torch
import freerun as fr

class Echo(torch.nn.Module):
    """Predicts the entry before, plus one."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(()))

    def forward(self, batch):
        before = torch.nn.functional.pad(batch.history, (1, 0))[:, :-1]
        return 9 * self.weight * torch.nn.functional.one_hot((before + 1) % 7, 7).double()

class Count(fr.StepModel):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(()))

    def start(self, batch):
        return torch.zeros(batch.size, dtype=torch.int64), torch.zeros(batch.size, 1)

    def step(self, entries, state):
        return 9 * self.weight * torch.nn.functional.one_hot((entries + 1) % 7, 7).double(), state

def halve(batch):
    return torch.nn.functional.pad(batch.history, (0, 0, 1, 0))[:, :-1] / 2

ids = torch.tensor([[1, 2, 4, 5], [1, 3, 4, 6], [1, 2, 3, 4]])
batches = [fr.Batch(ids[:2]), fr.Batch(ids[2:])]
values = torch.tensor([[[8.0], [4.0], [2.0], [2.0]]])

def echo():
    return Echo(), batches

def count():
    return Count(), iter(batches)

def series():
    known = torch.tensor([[False, True, True, True]])
    return halve, fr.Batch(values, values, known), fr.diagnostics.DiagnosisOptions(names=("height",))

pair = Echo(), batches
rubbish = 3
def nothing(): pass
def swapped(): return batches, Echo()
def no_batches(): return Echo(), []
def dicts(): return Echo(), [{"input_ids": ids}]
def odd_options(): return Echo(), batches, {"end": 0}
def needs(size): return Echo(), batches
def raises(): return Echo(), batches[0].no_such
def lazy():
    yield batches[0]
    raise KeyError("row 2")
def lazy_batches(): return Echo(), lazy()
def shape(): return (lambda batch: torch.zeros(batch.size, 2)), batches
def text(): return (lambda batch: "logits"), batches
def broken(batch): return torch.zeros(2, 3) @ torch.zeros(2, 3)
def breaks(): return broken, batches
def few(): return (lambda batch: torch.zeros(batch.size, batch.time, 3)), batches
def endless(): return (lambda batch: torch.full((batch.size, batch.time, 7), float("nan"))), batches
'''


@pytest.fixture
def own(tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("name", ["echo", "count", "pair"])
def test_an_object_of_one_s_own(own, name, capsys):
    """By hand: after 1, 2 it outputs 3 in place of 4, and then goes on 4, 5 in its own run."""
    printed = ends(capsys, 0, "diagnose", f"mine.py:{name}", "--out", "out")
    result = json.loads((own / "out" / "diagnosis.json").read_bytes())["diagnosis"]
    assert (result["teacher_forced"]["errors"], result["free_running"]["errors"]) == (3, 5)
    assert result["first_error"] == [0, 1, 1, 0]
    assert "rows: all 3" in joined(printed.err)
    assert "too few errors to say, 2 of 3 rows have an error" in joined(printed.out)
    import mine

    assert fr.diagnose(*getattr(mine, name)()).to_json()["diagnosis"] == result if name != "pair" else True
    ends(capsys, 0, "diagnose", f"mine:{name}", "--out", "module", "--max-rows", "2")
    result = json.loads((own / "module" / "diagnosis.json").read_bytes())["diagnosis"]
    assert (result["rows"], result["teacher_forced"]["errors"]) == (2, 3)


def test_an_object_of_values_with_options(own, capsys):
    out = ends(capsys, 0, "diagnose", "mine.py:series").out
    found = json.loads((own / "series-diagnosis" / "diagnosis.json").read_bytes())
    # off by 1 in the last of three, in standard deviations of these targets
    assert found["diagnosis"]["free_running"]["rmse"] == pytest.approx([0, 0, (9 / 8) ** 0.5])
    assert found["diagnosis"]["channels"] == ["height"]
    assert out.splitlines()[0].split() == ["measure", "free", "running", "teacher", "forced"]


RUBBISH = {
    "rubbish": ["must be (model, batches), (model, batches, options), or a function", "got int"],
    "nothing": ["got NoneType"],
    "swapped": ["got (list, Echo)"],
    "no_batches": ["batches hold nothing"],
    "dicts": ["batches[0] must be a freerun.Batch; got dict", "collate"],
    "odd_options": ["options must be freerun.diagnostics.DiagnosisOptions; got dict"],
    "needs": ["needs() raised TypeError", "missing 1 required"],
    "raises": ["raises() raised AttributeError", " in raises: def raises()"],
    "lazy_batches": ["mine.py: lazy raised KeyError: 'row 2'", "in lazy: raise KeyError"],
    "shape": ["shape: outputs must be (2, 4, vocab)", "got (2, 2)", "help: freerun check mine.py:shape"],
    "text": ["error: ", "got str"],
    "breaks": ["mine.py: broken raised RuntimeError", "in broken: def broken(batch)"],
    "few": ["error: "],
    "endless": ["error: "],
    "absent": ["mine.py has no 'absent'"],
}


@pytest.mark.parametrize("name", RUBBISH)
def test_rubbish_is_refused_by_name(own, name, capsys):
    from freerun.cli import main

    assert main(["diagnose", f"mine.py:{name}", "--out", "out"]) in (2, 6)
    err = capsys.readouterr().err
    assert all(word in err for word in RUBBISH[name]), err
    assert "failed unexpectedly" not in err
    assert not (own / "out" / "diagnosis.json").exists()


def test_what_is_diagnosed_is_checked_too(own, capsys):
    assert "shape: outputs must be (2, 4, vocab)" in joined(ends(capsys, 2, "check", "mine.py:shape").out)
    assert "causal: " in ends(capsys, 0, "check", "mine.py:pair").out


def test_options_without_effect_on_an_object_are_refused(own, capsys):
    err = ends(capsys, 2, "diagnose", "mine.py:echo", "--data", "x.jsonl", "--batch-size", "3").err
    assert "--data, --batch-size has no effect on an object" in err


def test_a_model_that_was_not_adapted_is_told_from_one_that_was(world):
    model = load_model(world("t5") / "model")
    batch = read_pretrained(str(world("t5") / "model"), str(world("t5") / "data.jsonl"), rows=3).batches
    for call in (fr.evaluate, fr.diagnose):
        refused(["adapt it, freerun.hf.adapt(model)"], call, model, batch)


@pytest.mark.parametrize("name", ["llama", "bart"])
def test_evaluate_and_diagnose_on_adapted_models(world, name, tmp_path):
    """From a collator's tensors, with padding: the numbers of each row alone, and the options that Python has."""
    from freerun import hf

    root = world(name)
    tokenizer = transformers.AutoTokenizer.from_pretrained(root / "model")
    shape = KINDS[name][0]
    examples = [by_hand(tokenizer, shape, record) for record in rows(shape)[:6]]
    model = hf.adapt(load_model(root / "model"))

    def collated(chosen):
        causal = not model.inner.config.is_encoder_decoder
        read = [[*prompt, *target] if causal else prompt for prompt, target in chosen]
        labels = [[*[-100] * len(prompt), *target] if causal else target for prompt, target in chosen]
        pad = torch.nn.utils.rnn.pad_sequence
        ids = pad([torch.tensor(one) for one in read], batch_first=True)
        mask = pad([torch.ones(len(one), dtype=torch.int64) for one in read], batch_first=True)
        return model.batch(
            input_ids=ids, attention_mask=mask,
            labels=pad([torch.tensor(one) for one in labels], batch_first=True, padding_value=-100),
        )  # fmt: skip

    together = [collated(examples[:4]), collated(examples[4:])]
    alone = [collated([one]) for one in examples]
    scores, single = fr.evaluate(model, together, end=1), fr.evaluate(model, alone, end=1)
    assert scores.free_running == pytest.approx(single.free_running)
    assert scores.teacher_forced == pytest.approx(single.teacher_forced, rel=1e-4)
    assert [item["edits"] for item in scores.items] == [item["edits"] for item in single.items]
    assert fr.evaluate(model, together).free_running == scores.free_running  # the end symbol is found
    found = fr.diagnose(model, together)
    single = fr.diagnose(model, alone, DiagnosisOptions(end_symbol=1))
    assert greedy(found.to_json()["diagnosis"]) == greedy(single.to_json()["diagnosis"])
    assert found.result.teacher_forced.errors == sum(item["forced_errors"] for item in scores.items)
    assert "free running" in str(found)
    assert "<html" in found.save(tmp_path / "page.html").read_text(encoding="utf-8")
    assert math.isfinite(scores.teacher_forced["loss"])
    assert not model.training


def test_the_gap_s_interval():
    """The interval holds the mean difference about as often as it says: 2,000 tries, four standard errors."""
    generator = torch.Generator().manual_seed(0)
    held = 0
    for _ in range(2000):
        entries = torch.randint(3, 9, (40,), generator=generator)
        difficulty = torch.rand(40, generator=generator)[:, None]
        flags = torch.rand(2, 40, 9, generator=generator) < difficulty * torch.tensor([0.4, 0.6])[:, None, None]
        forced, free = (flags & (torch.arange(9) < entries[:, None])).sum(-1)
        found = ErrorGap.of(forced, free, entries)
        held += found.low <= 0.1 <= found.high
    assert abs(held / 2000 - 0.95) < 4 * (0.95 * 0.05 / 2000) ** 0.5 + 0.015  # 1.96 is for many rows


def test_ranges_of_positions_hold_every_entry_once():
    left = (9, 9, 8, 5, 1, 0)
    shares = [1 / 3, 2 / 3, 0.5, 0.2, 1.0, None]
    sides = {side: {"wrong_by_position": shares} for side in ("teacher_forced", "free_running")}
    found = position_ranges({"left": left, **sides})
    assert [(name, entries) for name, entries, _ in found] == [("1", 9), ("2", 9), ("3", 8), ("4 to 5", 6)]
    assert sum(entries * wrong[0] for _, entries, wrong in found) == pytest.approx(3 + 6 + 4 + 1 + 1)
