"""``freerun check --student A --teacher B``, and gkd before its first step: each mismatch is named, all at once."""

import json

import pytest
import torch

from freerun.cli.commands import check_teacher
from freerun.errors import UserError
from freerun.recipes.teachers import check_pair
from huggingface_world import CHAT, MARKED, config, model_folder, rows, tokenizer, write_lines, write_recipe
from tiny_recipes import TINY, ends


@pytest.fixture(scope="module")
def student(tmp_path_factory):
    return model_folder(tmp_path_factory.mktemp("student") / "gpt2", "gpt2", chat=CHAT)


def other(folder, family="gpt2", change=lambda words: None, seed=1, **settings):
    """Another model, with a tokenizer that was changed after it was made."""
    import transformers

    words = tokenizer(chat=CHAT)
    change(words)
    made = config(family, settings.pop("rows", len(words)), **settings)
    auto = transformers.AutoModelForSeq2SeqLM if made.is_encoder_decoder else transformers.AutoModelForCausalLM
    torch.manual_seed(seed)
    auto.from_config(made).save_pretrained(folder)
    words.save_pretrained(folder)
    return folder


def statuses(report, status):
    return {finding.name for finding in report.findings if finding.status == status}


def test_a_model_is_its_own_teacher_at_distance_0_and_another_is_not(student, tmp_path, capsys):
    report = check_pair(str(student), str(student))
    assert "gkd runs: 0 nats a position" in report["distance"].explanation
    assert statuses(report, "refused") == set()
    assert statuses(report, "warning") == {"distance"}
    printed = ends(capsys, 0, "check", "--student", student, "--teacher", other(tmp_path / "b")).out
    assert "gkd can run with them." in printed
    assert "gkd runs: 0 nats" not in printed
    assert "nats a position" in printed


def swap(words):
    """Two symbols change places: as many, and the same ones."""
    state = json.loads(words.backend_tokenizer.to_str())
    table = state["model"]["vocab"]
    table["a"], table["b"] = table["b"], table["a"]
    from tokenizers import Tokenizer

    words._tokenizer = Tokenizer.from_str(json.dumps(state))


CASES = {
    "symbols": ({"change": swap}, "2 ids differ, first "),
    "more symbols": ({"change": lambda words: words.add_tokens(["ananas"])}, "is none and 'ananas'"),
    "end": (
        {"change": lambda words: setattr(words, "eos_token", "<turn>"), "eos_token_id": 3},
        "end with '</s>' (1), and the teacher's with '<turn>' (3)",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_what_gkd_cannot_do_is_refused(case, student, tmp_path):
    settings, expected = CASES[case]
    report = check_pair(str(student), str(other(tmp_path / "b", **settings)))
    (finding,) = [each for each in report.refused if each.name != "width"]
    assert finding.name == case.split()[-1]
    assert expected in finding.explanation
    assert "distance" not in statuses(report, "ok")


def test_rows_beyond_the_tokenizer_are_padding_and_named_as_such(student, tmp_path):
    wide = other(tmp_path / "b", rows=384)
    (finding,) = check_pair(str(student), str(wide)).refused
    size = len(tokenizer())
    assert f"the teacher has 384 symbols and the student {size}" in finding.explanation
    assert f"the vocabulary has {size} and the rows beyond are padding" in finding.explanation
    assert f"teacher.resize_token_embeddings({size})" in finding.explanation
    (turned,) = check_pair(str(wide), str(student)).refused
    assert f"student.resize_token_embeddings({size})" in turned.explanation
    # and with that the pair runs
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(wide)
    model.resize_token_embeddings(size)
    model.save_pretrained(wide)
    assert not check_pair(str(student), str(wide)).refused


def test_a_table_smaller_than_the_vocabulary_is_refused(student, tmp_path):
    small = other(tmp_path / "b", rows=64)
    (finding,) = check_pair(str(student), str(small)).refused
    assert "one of them is no model of it" in finding.explanation
    (both,) = check_pair(str(small), str(small)).refused
    assert f"both predict 64 ids, and the tokenizer has {len(tokenizer())}" in both.explanation


def test_what_only_makes_the_teacher_worse_is_a_warning(student, tmp_path):
    def change(words):
        words.bos_token = "<turn>"
        words.chat_template = MARKED
        words.pad_token = "</s>"

    report = check_pair(str(student), str(other(tmp_path / "b", change=change)))
    assert statuses(report, "warning") == {"special", "chat"}
    assert "bos symbol '<s>' and '<turn>'" in report["special"].explanation
    assert "chat templates: they differ" in report["chat"].explanation
    assert "pads with '<pad>' (0) and the teacher with '</s>' (1)" in report["padding"].explanation
    assert report["padding"].status == "ok"
    bare = check_pair(
        str(student), str(other(tmp_path / "c", change=lambda words: setattr(words, "chat_template", None)))
    )
    assert "the teacher has none" in bare["chat"].explanation


def test_an_end_symbol_of_the_generation_settings_counts(student, tmp_path):
    folder = other(tmp_path / "b", change=lambda words: setattr(words, "eos_token", "<turn>"), eos_token_id=3)
    settings = json.loads((folder / "generation_config.json").read_text())
    (folder / "generation_config.json").write_text(json.dumps({**settings, "eos_token_id": [3, 1]}))
    assert check_pair(str(student), str(folder))["end"].status == "ok"


def test_decoders_that_begin_otherwise_and_models_of_another_kind(student, tmp_path):
    pair = [other(tmp_path / name, "t5", decoder_start_token_id=n) for name, n in (("a", 0), ("b", 2))]
    (finding,) = check_pair(*map(str, pair)).refused
    assert finding.name == "start"
    assert "begins with '<pad>' (0) and the teacher's with '<s>' (2)" in finding.explanation
    (finding,) = check_pair(str(student), str(pair[0])).refused
    assert finding.name == "kind"
    assert "a causal model over records and the teacher an encoder-decoder" in finding.explanation


def test_all_mismatches_at_once_and_exit_2(student, tmp_path, capsys):
    def change(words):
        swap(words)
        words.eos_token = "<turn>"
        words.chat_template = None

    teacher = other(tmp_path / "b", change=change, eos_token_id=3, rows=384)
    printed, problem = ends(capsys, 2, "check", "--student", student, "--teacher", teacher)
    assert [line.split(":")[0].split() for line in printed.splitlines() if line.startswith(("refused", "warning"))] == [
        ["refused", "symbols"], ["refused", "width"], ["refused", "end"], ["warning", "chat"],
    ]  # fmt: skip
    assert ": symbols, width, end" in problem


def test_a_pair_needs_both_and_no_target(student, capsys):
    for arguments in ((), ("--student", student), ("--teacher", student), (student, "--student", student)):
        assert "freerun check --student A --teacher B" in ends(capsys, 2, "check", *arguments).err
    ends(capsys, 4, "check", "--student", student, "--teacher", student.parent)


def trained(folder, text, capsys):
    folder.mkdir()
    (folder / "tiny.toml").write_text(text)
    ends(capsys, 0, "train", folder / "tiny.toml", "--out", folder / "run")
    return folder / "run"


def test_runs_of_freerun(tmp_path, capsys):
    one = trained(tmp_path / "one", TINY, capsys)
    longer = trained(
        tmp_path / "two", TINY.replace("max_length = 4", "max_length = 5").replace("seed = 3", "seed = 4"), capsys
    )
    report = check_pair(str(one), str(longer))  # more data, the same symbols
    assert report["distance"].status == "ok"
    assert not report.refused
    assert "gkd runs: 0 nats" in check_pair(str(one), str(one))["distance"].explanation
    fewer = trained(tmp_path / "three", TINY.replace("symbols = 6", "symbols = 5"), capsys)
    (finding,) = check_pair(str(one), str(fewer)).refused
    assert finding.name == "symbols"
    assert "source_symbols (" in finding.explanation
    assert "target_symbols (" in finding.explanation
    assert " and none" in finding.explanation
    method = f'name = "gkd"\nteacher_forcing_ratio = 0.5\nteacher = "{fewer}"\n'
    begin = TINY.index('name = "scheduled')
    recipe = TINY[:begin] + method + TINY[TINY.index("\n[train]") :]
    (tmp_path / "gkd.toml").write_text(recipe)
    problem = ends(capsys, 2, "train", tmp_path / "gkd.toml", "--out", tmp_path / "no").err
    assert "method.teacher" in problem
    assert "ids differ, first" in problem
    assert not (tmp_path / "no").exists()
    (tmp_path / "gkd.toml").write_text(recipe.replace(str(fewer), str(longer)))
    ends(capsys, 0, "train", tmp_path / "gkd.toml", "--out", tmp_path / "yes")


def test_gkd_by_recipe_refuses_by_the_same_comparison_and_notes_the_rest(student, tmp_path, capsys):
    data = write_lines(tmp_path / "data.jsonl", rows("completions"))

    def train(teacher, out):
        method = f'name = "gkd"\nteacher_forcing_ratio = 0.5\nteacher = "{teacher}"'
        return write_recipe(tmp_path, student, data, method=method), tmp_path / f"run-{out}"

    recipe, out = train(other(tmp_path / "wide", rows=384, change=lambda words: setattr(words, "bos_token", None)), "a")
    problem = ends(capsys, 2, "train", recipe, "--out", out).err
    assert "width: the teacher has 384 symbols" in problem
    assert not out.exists()
    recipe, out = train(other(tmp_path / "b", change=lambda words: setattr(words, "bos_token", "<turn>")), "b")
    printed = ends(capsys, 0, "train", recipe, "--out", out).err
    assert "note: special: student and teacher: bos symbol '<s>' and '<turn>'" in " ".join(printed.split())


def test_values_have_no_teacher(tmp_path, capsys):
    sections = (
        '[data]\nkind = "system"\nsystem = "lorenz63"\npast = 4\nhorizon = 3\nwindows = [16, 8, 8]\ntrajectories = 4\n'
    )
    text = f'name = "v"\n{sections}[model]\nkind = "plain_forecaster"\nsize = 8\n[method]\nname = "teacher_forcing"\n'
    run = trained(tmp_path / "v", f"{text}[train]\nupdates = 2\nbatch_size = 4\nevaluate_every = 2\n", capsys)
    with pytest.raises(UserError, match="gkd cannot run"):
        check_teacher(None, (), str(run), str(run))
    assert "their targets are values" in " ".join(capsys.readouterr().out.split())
