"""The commands on Hugging Face models: train, resume, evaluate, generate, diagnose, check, compare."""

import json
import math
import re
import shutil
from functools import cache

import pytest
import torch
import transformers
from safetensors.torch import load_file

from freerun.cli import main
from freerun.comparison.run import compare
from freerun.errors import visible
from freerun.recipes.load import load_run, own_data
from freerun.tasks.records import AnswerSettings, evaluate_records, free_outputs
from freerun.training.run_folder import clear_run
from freerun.training.weights import weights_of
from huggingface_world import CHAT, MARKED, model_folder, rows, sentences, write_lines, write_recipe
from tiny_recipes import ends
from training_world import fingerprints

KINDS = {
    "t5-pairs": ("t5", "pairs", None),
    "gpt2-completions": ("gpt2", "completions", None),
    "llama-messages": ("llama", "messages", CHAT),
    "gpt2-marked": ("gpt2", "messages", MARKED),
}


def trained(root, family, shape, *flags, chat=None, run="run"):
    """A run on a model and data that are written into the folder where they are not there."""
    if not (root / "from").exists():
        data = write_lines(root / "data.jsonl", rows(shape))
        write_recipe(root, model_folder(root / "from", family, chat=chat), data)
    sets = [word for flag in flags for word in ("--set", flag)]
    assert main(["train", str(root / "tiny.toml"), *sets, "--out", str(root / run)]) == 0
    return root / run


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Each kind's folder with model, data, recipe and a run that was trained."""

    @cache
    def folder(name):
        family, shape, chat = KINDS[name]
        return trained(tmp_path_factory.mktemp(name), family, shape, chat=chat).parent

    return folder


def summary_of(run):
    return json.loads((run / "summary.json").read_text())


def plain(run):
    """Model and tokenizer as anyone would load them."""
    folder = run / "model"
    config = transformers.AutoConfig.from_pretrained(folder)
    kind = transformers.AutoModelForSeq2SeqLM if config.is_encoder_decoder else transformers.AutoModelForCausalLM
    return kind.from_pretrained(folder).eval(), transformers.AutoTokenizer.from_pretrained(folder)


def held_out(loaded):
    return own_data(loaded).evaluation("test")


@pytest.mark.parametrize("name", KINDS)
def test_the_folder_is_what_from_pretrained_reads(world, name):
    run = world(name) / "run"
    model, tokenizer = plain(run)
    loaded = load_run(run)
    own = weights_of(loaded.model.inner)
    assert own.keys() == weights_of(model).keys()
    assert all(torch.equal(tensor, own[key]) for key, tensor in weights_of(model).items())
    best = summary_of(run)["best"]["step"]
    kept = load_file(run / "checkpoints" / f"best-{best:08d}" / "model.safetensors")
    assert all(torch.equal(tensor, kept[f"model.{key}"]) for key, tensor in own.items())
    assert tokenizer.get_vocab() == loaded.codec.tokenizer.get_vocab()
    assert tokenizer.chat_template == KINDS[name][2]
    assert model.generation_config.eos_token_id == 1


@pytest.mark.parametrize("name", KINDS)
def test_scores_are_those_of_the_plain_model_one_record_after_the_other(world, name):
    run = world(name) / "run"
    model, tokenizer = plain(run)
    loaded = load_run(run)
    records, encoded = held_out(loaded)
    settings = AnswerSettings(length_margin=2, batch_size=3)
    found = evaluate_records(loaded.model, loaded.codec, records, encoded, settings)
    total, positions, right, outputs = 0.0, 0, 0, []
    most = settings.most(loaded.codec)
    for one in encoded:
        prompt, target = torch.tensor([one.prompt]), torch.tensor([one.target])
        with torch.no_grad():
            if loaded.codec.causal:
                logits = model(torch.cat([prompt, target], 1)).logits[0, len(one.prompt) - 1 : -1]
                mask = torch.ones_like(prompt)
                ids = model.generate(prompt, attention_mask=mask, do_sample=False, max_new_tokens=most)[0]
                ids = ids[prompt.shape[1] :]
            else:
                logits = model(input_ids=prompt, labels=target).logits[0]
                ids = model.generate(prompt, do_sample=False, max_new_tokens=most)[0, 1:]
        losses = torch.nn.functional.cross_entropy(logits, target[0], reduction="sum")
        total, positions = total + float(losses), positions + len(one.target)
        right += int((logits.argmax(-1) == target[0]).sum())
        outputs.append(tokenizer.decode(ids, skip_special_tokens=True).strip())
    assert found.teacher_forced["loss"] == pytest.approx(total / positions, rel=1e-5)
    assert found.teacher_forced["perplexity"] == pytest.approx(math.exp(total / positions), rel=1e-4)
    assert found.teacher_forced["token_accuracy"] == pytest.approx(100 * right / positions)
    assert [item["output"] for item in found.items] == outputs
    summary = summary_of(run)
    assert summary["test"]["free_running"] == pytest.approx(dict(found.free_running))
    assert summary["test"]["teacher_forced"] == pytest.approx(dict(found.teacher_forced), rel=1e-5)
    assert summary["best"]["select"] == "chrf"


@pytest.mark.parametrize("name", ["t5-pairs", "llama-messages"])
def test_a_run_that_goes_on_ends_as_one_that_was_never_stopped(world, tmp_path, name):
    root = world(name)
    again = shutil.copytree(root / "run", tmp_path / "run")
    shutil.rmtree(again / "checkpoints" / "step-00000006")
    (again / "summary.json").unlink()
    shutil.rmtree(again / "model")
    assert main(["train", str(root / "tiny.toml"), "--out", str(again), "--resume"]) == 0
    assert fingerprints(again) == fingerprints(root / "run")
    for path in (root / "run" / "model").iterdir():
        assert (again / "model" / path.name).read_bytes() == path.read_bytes()
    assert len(list((again / "model").iterdir())) == len(list((root / "run" / "model").iterdir()))


def test_dropout_too_repeats_itself(tmp_path):
    a, b = (trained(tmp_path, "gpt2", "completions", "train.updates=3", run=run) for run in "ab")
    assert fingerprints(a) == fingerprints(b)


@pytest.mark.parametrize("name", KINDS)
def test_generate_answers_lines_and_objects(world, name, tmp_path, capsys):
    run = world(name) / "run"
    shape = KINDS[name][1]
    capsys.readouterr()
    lines = tmp_path / "in.txt"
    lines.write_text("a man runs. ->\nthe dog\\nsleeps. ->\n")
    out = ends(capsys, 0, "generate", run, "--input", lines, "--length", "7").out.splitlines()
    loaded = load_run(run)
    texts = ["a man runs. ->", "the dog\nsleeps. ->"]
    expected = free_outputs(loaded.model, loaded.codec, loaded.codec.prompts(texts), AnswerSettings(length=7))
    assert out == [visible(text.replace("\n", "\\n").replace("\t", "\\t")) for text in expected]
    objects = write_lines(tmp_path / "in.jsonl", [{**row, "n": n} for n, row in enumerate(rows(shape)[:3])])
    assert main(["generate", str(run), "--input", str(objects), "--beams", "2"]) == 0
    found = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["n"] for row in found] == [0, 1, 2]
    prompts = [next(iter(row.values())) for row in rows(shape)[:3]]
    prompts = loaded.codec.prompts([tuple(each[:-1]) if isinstance(each, list) else each for each in prompts])
    expected = free_outputs(loaded.model, loaded.codec, prompts, AnswerSettings(beams=2, length_margin=2))
    assert [row["output"] for row in found] == expected


WRONG_LINES = {
    "gpt2-completions": [
        ("a man\n\n" + "man " * 90 + "\n", {
            2: "is empty; expected a source or prompt",
            3: r"has \d+ tokens, its answer may have \d+, and the model has 96 positions"}),
        ('{"prompt": "a"}\n{"text": "a"}\nplain\n', {2: "has no 'prompt'; it has text", 3: "no JSON: "}),
        ('{"prompt": ["a", "b"]}\n{"prompt": 5}\n{"prompt": "a", "output": "mine"}\n[1]\n{"prompt": null}\n', {
            1: r"column 'prompt' holds a list, \['a', 'b'\]; expected text",
            2: "column 'prompt' holds a int, 5; expected text",
            3: "has an 'output' already, where the answer is written: rename it, or leave it out",
            4: "is no object; the first line is one", 5: "is empty; expected a source or prompt"}),
    ],
    "llama-messages": [
        ("".join(json.dumps({"messages": cell}) + "\n" for cell in (
            [1], {"role": "user", "content": "a"}, 5, [{"role": "user", "content": 3}], [])), {
            **dict.fromkeys((1, 2, 3), "column 'messages' holds no conversation; expected a list of"),
            4: "column 'messages' has no role and content, both text, in message 1",
            5: "is empty; expected a source or prompt"}),
    ],
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG_LINES)
def test_lines_that_cannot_be_answered_are_named(world, name, tmp_path, capsys):
    lines = tmp_path / "in.txt"
    for text, expected in WRONG_LINES[name]:
        lines.write_text(text)
        message = ends(capsys, 2, "generate", world(name) / "run", "--input", lines).err
        for number, part in expected.items():
            assert re.search(rf"{lines}:{number}: {part}", message), part


@pytest.mark.parametrize("name", KINDS)
def test_evaluate_diagnose_and_check(world, name, tmp_path, capsys):
    run = world(name) / "run"
    capsys.readouterr()
    own = json.loads(ends(capsys, 0, "evaluate", run).out)
    summary = summary_of(run)
    assert own["free_running"] == pytest.approx(summary["test"]["free_running"])
    assert own["records"] == 4
    shape = KINDS[name][1]
    file = write_lines(tmp_path / "more.jsonl", rows(shape)[:3])
    more = json.loads(ends(capsys, 0, "evaluate", run, "--data", file, "--beams", "2").out)
    assert (more["data"], more["records"], more["beams"]) == (str(file), 3, 2)
    assert main(["diagnose", str(run), "--out", str(tmp_path / "d"), "--windows", "3"]) == 0
    found = json.loads((tmp_path / "d" / "diagnosis.json").read_text())
    assert found["diagnosis"]["rows"] == 3
    assert found["data"]["item_noun"] == "records"
    # on gold, what is wrong is what the score counts
    assert 0 <= found["diagnosis"]["teacher_forced"]["wrong"] <= 1
    if name == "t5-pairs":
        assert main(["diagnose", str(run), "--out", str(tmp_path / "all")]) == 0
        wrong = json.loads((tmp_path / "all" / "diagnosis.json").read_text())["diagnosis"]["teacher_forced"]["wrong"]
        assert 100 - 100 * wrong == pytest.approx(summary["test"]["teacher_forced"]["token_accuracy"])
    assert "refused" not in ends(capsys, 0, "check", run).out
    found = ends(capsys, 0, "check", world(name) / "tiny.toml").out  # before any training
    assert "causal" in found
    assert "refused" not in found


def test_sources_of_a_file_without_heading_are_lines_or_a_table(world, tmp_path, capsys):
    data = tmp_path / "eng-ger.txt"
    data.write_text("".join(f"{source}\t{target}\tCC-BY\n" for source, target in sentences()))
    write_recipe(tmp_path, world("t5-pairs") / "from", data)
    assert main(["train", str(tmp_path / "tiny.toml"), "--out", str(tmp_path / "run")]) == 0
    capsys.readouterr()
    lines, table = tmp_path / "in.txt", tmp_path / "table.txt"
    lines.write_text("a man runs.\nthe dog sleeps.\n")
    table.write_text("a man runs.\tx\nthe dog sleeps.\ty\n")
    plain_lines = ends(capsys, 0, "generate", tmp_path / "run", "--input", lines, "--length", "5").out.splitlines()
    rows_of_table = ends(capsys, 0, "generate", tmp_path / "run", "--input", table, "--length", "5").out.splitlines()
    assert [visible(json.loads(row)["output"]) for row in rows_of_table] == plain_lines
    lines.write_text("a man runs.\nthe dog\tsleeps.\n")
    assert f"{lines}:2: holds a tab" in ends(capsys, 2, "generate", tmp_path / "run", "--input", lines).err


@pytest.mark.parametrize("damage", [b"xx", b"", bytes(64)])
def test_weights_that_cannot_be_read_are_refused(tmp_path, capsys, damage):
    model = model_folder(tmp_path / "from", "t5")
    (model / "model.safetensors").write_bytes(damage)
    write_recipe(tmp_path, model, write_lines(tmp_path / "data.jsonl", rows("pairs")))
    message = ends(capsys, 2, "train", tmp_path / "tiny.toml", "--out", tmp_path / "run").err
    assert f"{model}: the model cannot be loaded: " in message


def test_evaluate_refuses_a_file_of_other_columns_or_too_long(world, tmp_path, capsys):
    run = world("gpt2-completions") / "run"
    file = write_lines(tmp_path / "x.jsonl", rows("pairs"))
    columns = f"{file}: has no column 'prompt'; its columns are source, target"
    assert columns in ends(capsys, 2, "evaluate", run, "--data", file).err
    write_lines(file, [{"prompt": "man " * 100, "completion": "a"}])
    message = ends(capsys, 2, "evaluate", run, "--data", file).err
    assert re.search(rf"{file}:1: has \d+ tokens, and the model has 96 positions", message)


def test_a_run_begins_with_another_runs_weights(world, tmp_path):
    """By --init, and by naming its model folder: the same."""
    root = world("t5-pairs")
    one = ["train", str(root / "tiny.toml"), "--set", "train.updates=1"]
    assert main([*one, "--out", str(tmp_path / "a"), "--init", str(root / "run")]) == 0
    assert main([*one, "--out", str(tmp_path / "b"), "--set", f"model.path={root / 'run' / 'model'}"]) == 0
    first, second = (weights_of(load_run(tmp_path / run).model) for run in "ab")
    assert all(torch.equal(tensor, second[name]) for name, tensor in first.items())
    untrained = weights_of(transformers.AutoModelForSeq2SeqLM.from_pretrained(root / "from"))
    assert not all(torch.equal(tensor, first[f"model.{name}"]) for name, tensor in untrained.items())


def test_what_a_run_wrote_is_removed_and_nothing_else(world, tmp_path):
    root = world("t5-pairs")
    run = shutil.copytree(root / "run", tmp_path / "run")
    (run / "model" / "mine.txt").write_text("kept")
    clear_run(run)
    assert [path.name for path in (run / "model").iterdir()] == ["mine.txt"]
    assert not (run / "checkpoints").exists()
    shutil.rmtree(run)
    shutil.copytree(root / "run", run)
    command = ["train", str(root / "tiny.toml"), "--set", "train.updates=1", "--out", str(run), "--overwrite"]
    assert main(command) == 0
    assert summary_of(run)["updates"] == 1


def test_a_damaged_model_folder_is_refused(world, tmp_path, capsys):
    run = shutil.copytree(world("t5-pairs") / "run", tmp_path / "run")
    tokens = run / "model" / "tokenizer.json"
    tokens.write_text(tokens.read_text().replace("man", "men"))
    assert f"{tokens} is damaged: its checksum is not the one that was written" in ends(capsys, 4, "generate", run).err


def test_plain_text_is_learnt_whole_and_selected_by_its_loss(tmp_path, capsys):
    run = trained(tmp_path, "llama", "text", "data.text=text")
    summary = summary_of(run)
    assert summary["best"]["select"] == "teacher_forced_loss"
    loaded = load_run(run)
    records, _ = held_out(loaded)
    plain_model, tokenizer = plain(run)
    total = positions = 0
    for record in records:
        ids = torch.tensor([[*tokenizer(record.target)["input_ids"], tokenizer.eos_token_id]])
        with torch.no_grad():
            total += float(plain_model(ids, labels=ids).loss) * (ids.shape[1] - 1)
        positions += ids.shape[1] - 1
    assert summary["test"]["teacher_forced"]["loss"] == pytest.approx(total / positions, rel=1e-5)
    assert main(["diagnose", str(run)]) == 0


def test_chat_puts_prompts_and_completions_into_the_template(tmp_path, capsys):
    loaded = load_run(trained(tmp_path, "gpt2", "completions", "data.chat=true", "train.updates=1", chat=CHAT))
    _, encoded = held_out(loaded)
    text = loaded.codec.tokenizer.decode(encoded[0].prompt)
    assert text.startswith("<turn>user\n")
    assert text.endswith(" -></s>\n<turn>assistant\n")


@pytest.mark.slow
def test_compare_pairs_records(tmp_path):
    """Slow: two processes that each load transformers."""
    model = model_folder(tmp_path / "from", "t5")
    arms = '[compare]\nseeds = [0]\n[[compare.arms]]\nmethod = { name = "teacher_forcing" }\n[[compare.arms]]\n' \
        'method = { name = "scheduled_sampling", teacher_forcing_ratio = 0.5 }\n'  # fmt: skip
    data = write_lines(tmp_path / "data.jsonl", rows("pairs"))
    recipe = write_recipe(tmp_path, model, data, arms, 'name = "teacher_forcing"')
    results = compare(str(recipe), ["train.updates=2"], tmp_path / "out", progress=False)
    assert "chrF" in results["verdict"]["sentence"]
    metrics = {found["metric"] for found in results["comparisons"]}
    assert {"free_running.chrf", "free_running.bleu", "free_running.cer", "teacher_forced.loss"} <= metrics
    assert results["test_items"] == 4


@pytest.mark.slow
def test_a_tiny_model_learns_to_answer(tmp_path):
    """300 updates, about a minute: at a fixed seed; one that reads nothing of the source stays below 60."""
    model = model_folder(tmp_path / "from", "t5", d_model=64, d_ff=128, num_layers=2, dropout_rate=0.0)
    recipe = write_recipe(tmp_path, model, write_lines(tmp_path / "data.jsonl", rows("pairs") * 4))
    run = tmp_path / "run"
    settings = ["train.updates=300", "train.evaluate_every=150", "train.save_every=300", "train.lr=0.003"]
    assert main(["train", str(recipe), *(p for s in settings for p in ("--set", s)), "--out", str(run)]) == 0
    assert summary_of(run)["test"]["free_running"]["chrf"] > 90
    assert len(sentences()) == 30


FINETUNE = {
    "finetune-pairs": ("t5", "pairs", ()),
    "finetune-completions": ("gpt2", "completions", ()),
    "finetune-pairs turned": (
        "gpt2", "completions", ("data.prompt=prompt", "data.completion=completion"),
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", FINETUNE)
def test_the_shipped_recipes_fine_tune_a_tiny_model(case, tmp_path, capsys):
    family, shape, turned = FINETUNE[case]
    settings = [
        f"data.path={write_lines(tmp_path / 'data.jsonl', rows(shape))}", *turned, "data.dev=0.15", "data.test=0.15",
        f"model.path={model_folder(tmp_path / 'from', family)}", "train.updates=2", "train.warmup=1",
        "train.batch_size=8", "train.accumulate=2", "evaluate.length_margin=2",
    ]  # fmt: skip
    sets = [word for text in settings for word in ("--set", text)]
    assert main(["train", case.split()[0], *sets, "--out", str(tmp_path / "run")]) == 0, capsys.readouterr().err
    summary = summary_of(tmp_path / "run")
    assert summary["updates"] == 2
    assert summary["test"]["free_running"]["chrf"] >= 0
    ids = load_run(tmp_path / "run").codec
    assert ids.shape == shape


def test_the_name_that_two_recipes_share_names_both(capsys):
    printed = ends(capsys, 2, "train", "finetune", "--set", "data.path=x", "--out", "run").err
    assert "did you mean finetune-completions or finetune-pairs?" in printed
    assert "did you mean finetune-completions or finetune-pairs?" in ends(capsys, 2, "recipes", "finetune").err
