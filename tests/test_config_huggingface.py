"""Recipes of kind huggingface: what they may say, and what is refused before the first update, with what to do."""

import shutil

import pytest
import transformers

from builders import problems_of, raises
from freerun.errors import UserError
from freerun.recipes import load_recipe
from freerun.recipes.train import build, build_data, build_model, run_recipe
from freerun.training.weights import weights_of
from huggingface_world import CHAT, config, model_folder, rows, sentences, tokenizer, write_lines, write_recipe
from tiny_recipes import ends

SIDES = {"layers": 1, "attention_heads": 2, "ffn_dim": 16}


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    return {name: model_folder(root / name, name) for name in ("t5", "gpt2")}


@pytest.fixture
def recipe(tmp_path, models):
    """A function from kind of model and rows to a recipe's path."""

    def build_recipe(family="t5", shape="pairs", records=None, **options):
        data = write_lines(tmp_path / "data.jsonl", rows(shape) if records is None else records)
        return write_recipe(tmp_path, options.pop("model", models[family]), data, **options)

    return build_recipe


def refused(path, *overrides):
    """The problems, and that nothing was written for them."""
    folder = path.parent / "run"
    problems = problems_of(lambda: run_recipe(load_recipe(path, overrides), folder, progress=False))
    assert not folder.exists()
    return [problem.replace(f"{path.parent}/", "") for problem in problems]


def finished(path, out, *overrides):
    """The folder of the model of a run."""
    assert run_recipe(load_recipe(path, overrides), out, progress=False)["finished"]
    return out / "model"


def test_a_recipe_is_read_whole(recipe):
    found = load_recipe(recipe(), ["data.max_source=40", "data.too_long=drop", "model.dtype=auto", "evaluate.length=9"])
    assert (found.data.kind, found.model.kind, found.train.select) == ("records", "huggingface", "chrf")
    assert (found.data.dev, found.data.max_source, found.evaluate.length, found.model.dtype) == (0.15, 40, 9, "auto")
    assert load_recipe(recipe(), ["data.text=text"]).train.select == "teacher_forced_loss"
    assert load_recipe(recipe(), ["data.text=text", "train.select=cer"]).train.select == "cer"
    assert load_recipe(recipe(), ["data.dev=dev.jsonl"]).data.dev == "dev.jsonl"


NOT_ALLOWED = [
    ("data.dev=0", "dev must be a file, or a share above 0 and up to 0.5; got 0.0"),
    ("data.source=a", "source does not go with what else is named (source): name source and target, prompt and"),
    ("data.format=xml", "`format` must be one of jsonl, json, csv, tsv, parquet, arrow, txt, datasets, none; got"),
    ("data.too_long=keep", "`too_long` must be one of error, drop, cut"),
    ("data.max_source=0", "`max_source` must be at least 1; got 0"),
    ('data={kind="records"}', "`path` is missing: the file, folder or data set with the training records"),
    ('data={kind="toy"}', "a model of kind huggingface is trained on records data; got [data] kind 'toy'"),
    ('model={kind="huggingface"}', "`path` is missing: the folder of a model, or its name on the hub"),
    ('model={kind="transformer"}', "a model of kind transformer is trained on "),
    ("train.select=per", "`select` must be one of chrf, bleu, cer, sequence_accuracy (free-running), teacher_forced"),
    ("evaluate.length=0", "`length` must be at least 1; got 0"),
    ("method.objective=mse", "`objective` mse is for values; the data of a recipe are symbols"),
]


@pytest.mark.parametrize(("override", "expected"), NOT_ALLOWED)
def test_what_a_recipe_may_not_say(recipe, override, expected):
    raises(UserError, (expected,), load_recipe, recipe(), [override])


def test_columns_and_cuts_that_do_not_go_together(recipe):
    parts = (
        "messages does not go with what else is named (messages, text)",
        "chat = true is for prompt and completion; the columns named are messages, text",
        'too_long = "cut" would cut a conversation within its template: use "drop"',
    )
    changes = ["data.messages=m", "data.text=t", "data.chat=true", "data.too_long=cut"]
    raises(UserError, parts, load_recipe, recipe(), changes)


def test_records_for_the_other_kind_of_model(recipe):
    (problem,) = refused(recipe("gpt2", "pairs"))
    assert problem.endswith(
        "gpt2 is a causal model, and the records are pairs: name the columns for prompt and completion, messages, or "
        "text under [data]"
    )
    (problem,) = refused(recipe("t5", "completions"))
    assert "t5 is an encoder-decoder, and the records are completions: name the columns for source and t" in problem


def test_a_tokenizer_that_is_not_the_models(recipe, tmp_path):
    small = model_folder(tmp_path / "small", "gpt2", vocab_size=100)
    (problem,) = refused(recipe(shape="completions", model=small))
    symbols = f"the tokenizer has {len(tokenizer())} symbols and the model 100"
    assert problem.startswith(f"small: {symbols}: ids from 100 on mean nothing to")
    assert "help: give the model's own tokenizer" in problem


def test_a_tokenizer_without_pad_symbol(recipe, tmp_path):
    padless = model_folder(tmp_path / "padless", "gpt2", pad=False)
    path = recipe("gpt2", "completions", model=padless)
    (problem,) = refused(path)
    assert problem == (
        "padless: the tokenizer has no pad symbol, which fills rows up to one length\n"
        '  help: under [model], pad = "eos" takes the end symbol \'</s>\'; pad = "SYMBOL" takes another one that it '
        "has; padding is never learned from"
    )
    (problem,) = refused(path, "model.pad=<nothing>")
    assert problem.startswith("padless: pad = '<nothing>' is no symbol of the tokenizer, which has ")
    # padding is recognised by masks, not by its id: the end symbol as padding changes no weight
    runs = [finished(path, tmp_path / pad, f"model.pad={pad}", "train.updates=2") for pad in ("eos", "<turn>")]
    assert transformers.AutoTokenizer.from_pretrained(runs[0]).pad_token == "</s>"
    first, second = (weights_of(transformers.AutoModelForCausalLM.from_pretrained(run)) for run in runs)
    assert all((first[name] == second[name]).all() for name in first)


def test_conversations_without_a_chat_template(recipe, tmp_path):
    path = recipe("gpt2", "messages")
    (problem,) = refused(path)
    assert "gpt2: the tokenizer has no chat template, which conversations need\n  help: give one with model." in problem
    (problem,) = refused(path, "model.chat_template=/nowhere.jinja")
    assert problem.startswith("chat_template = '/nowhere.jinja' cannot be read: ")
    template = tmp_path / "chat.jinja"
    template.write_text(CHAT)
    model = finished(path, tmp_path / "out", f"model.chat_template={template}", "train.updates=1")
    assert transformers.AutoTokenizer.from_pretrained(model).chat_template == CHAT


@pytest.mark.parametrize("name", ["minimum_risk", "optimal_completion", "scheduled_sampling", "sentence_oracle"])
def test_a_row_that_a_method_cannot_honour_is_refused_before_anything_is_written(recipe, tmp_path, name):
    """One conversation of 30 has two answers that are learnt, and the shortest, on which methods are tried, has not."""
    talking = model_folder(tmp_path / "talking", "gpt2", chat=CHAT)
    single = [{"messages": one["messages"][2:]} for one in rows("messages")]
    more = "teacher_forcing_ratio = 0.5" * (name in ("scheduled_sampling", "sentence_oracle"))
    if name == "scheduled_sampling":
        more += '\ntarget = { target = "optimal_completion", end = 1 }'
    options = {"model": talking, "shape": "messages", "method": f'name = "{name}"\n{more}\n'}
    (problem,) = refused(
        recipe(records=[*single[:-1], rows("messages")[-1]], **options), "data.dev=0.1", "data.test=0.1"
    )
    assert "of the training data: row 0 has " in problem
    assert "between others" in problem
    path = recipe(records=single, **options)
    finished(path, tmp_path / "out", "train.updates=1", "data.dev=0.1", "data.test=0.1")


def test_settings_without_effect_on_what_the_records_turn_out_to_be(recipe, tmp_path):
    talking = model_folder(tmp_path / "talking", "gpt2", chat=CHAT)
    path = recipe(shape="messages", model=talking)
    assert refused(path, "data.prefix=x", "data.too_long=cut") == [
        "data.prefix has no effect on a chat: leave it out",
        'data.too_long = "cut" would cut a conversation within its template: use "drop"',
    ]
    assert refused(path, "data.chat=true") == [
        "data.chat is for prompts and completions; the records are messages: leave it out"
    ]
    assert refused(recipe("gpt2", "text"), "data.text=text", "data.max_source=9") == [
        "data.max_source has no effect on plain text: data.max_target limits it"
    ]


def test_records_longer_than_the_model_has_positions(recipe):
    long = {"prompt": "a man ->", "completion": "man " * 100}
    problems = refused(recipe("gpt2", records=[*rows("completions"), long, {**long, "prompt": "the dog ->"}]))
    assert sorted(problem.split(": has ")[0] for problem in problems) == ["data.jsonl:31", "data.jsonl:32"]
    for problem in problems:
        assert 'tokens, and the model has 96 positions; shorten it, or set too_long = "drop" or "cut"' in problem


def test_free_running_needs_positions_too(recipe):
    path = recipe("gpt2", "completions")
    (problem,) = refused(path, "evaluate.length=90")
    assert problem.startswith("the model has 96 positions: the longest prompt of dev and test has ")
    assert "and free running may output 90 tokens (evaluate.length), so " in problem
    assert "help: lower evaluate.length (or evaluate.length_margin), or data.max_source" in problem


def test_rows_that_are_left_out_are_counted(recipe, tmp_path, capsys):
    long = {"source": "a man runs. " * 30, "target": "ein mann"}
    path = recipe("t5", records=[*rows("pairs"), long])
    (problem,) = refused(path, "data.max_source=20")
    assert "tokens of source, max_source allows 20; raise it, or set too_long" in problem
    for how, note in (("drop", "dropped: 1 row too long"), ("cut", "1 row cut")):
        changes = ["--set", "data.max_source=20", "--set", f"data.too_long={how}", "--set", "train.updates=1"]
        assert note in ends(capsys, 0, "train", path, *changes, "--out", tmp_path / how).err


def test_a_method_the_model_cannot_honour(recipe):
    method = 'name = "scheduled_sampling"\nteacher_forcing_ratio = { schedule = "linear", start = 1.0, end = 0.5 }\n' \
        'gate = "blend"'  # fmt: skip
    problems = refused(recipe("t5", "pairs", method=method))
    assert "blend" in problems[0]


def test_a_decoder_that_begins_otherwise_in_training_than_in_free_running(recipe, tmp_path):
    """mBART moves the language from the end of the labels to the beginning."""
    from tokenizers.processors import TemplateProcessing

    words = tokenizer()
    special = [("</s>", 1), ("<turn>", 3)]
    words.backend_tokenizer.post_processor = TemplateProcessing("$A </s> <turn>", special_tokens=special)
    sizes = {f"{side}_{name}": size for side in ("encoder", "decoder") for name, size in SIDES.items()}
    ends = {"vocab_size": len(words), "pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 1}
    path = recipe(model=tmp_path / "mbart")
    for start in (2, 3):
        shape = {**ends, **sizes, "d_model": 16, "max_position_embeddings": 64, "decoder_start_token_id": start}
        mbart = transformers.MBartForConditionalGeneration(transformers.MBartConfig(**shape))
        mbart.save_pretrained(tmp_path / "mbart")
        words.save_pretrained(tmp_path / "mbart")
        if start == 3:
            break
        (problem,) = refused(path)
        assert problem.startswith(
            "mbart: in training its decoder begins with '<turn>', taken from the targets, and in free running with '<s>"
            "', the configuration's decoder_start_token_id (2)"
        )
        assert "set tokenizer.tgt_lang to the language of the targets and config.decoder_start_token_id to" in problem
    found = load_recipe(path)
    assert build_model(found, build_data(found.data, found.model)).shifted(None, 1).tolist() == [[3]]


def test_folders_that_hold_no_model(recipe, tmp_path, monkeypatch):
    path = recipe()
    empty = tmp_path / "empty"
    empty.mkdir()
    assert refused(path, f"model.path={empty}")[0].startswith("empty: holds none of config.json; it holds nothing")
    is_file = "tiny.toml: is a file; give the folder that save_pretrained wrote"
    assert refused(path, f"model.path={path}")[0] == is_file
    assert refused(path, f"model.path={tmp_path}/nowhere")[0] == "nowhere: there is no such folder"
    (empty / "config.json").write_text("{")
    assert refused(path, f"model.path={empty}")[0].startswith("empty: the model cannot be loaded: ")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    (problem,) = refused(path, "model.path=nobody/nothing")
    assert problem.startswith("nobody/nothing: the model cannot be loaded: ")
    assert "'nobody/nothing' is no folder here, so it was taken for a name on the Hugging Face hub; with" in problem


def test_a_run_folder_instead_of_its_model_folder(recipe, tmp_path, models):
    (tmp_path / "old").mkdir()
    shutil.copytree(models["t5"], tmp_path / "old" / "model")
    (problem,) = refused(recipe(), f"model.path={tmp_path}/old")
    assert "of a run of freerun give old/model" in problem


def test_models_that_say_no_text_and_weights_that_are_not_there(recipe, tmp_path):
    words = tokenizer()
    seer = tmp_path / "seer"
    transformers.ViTConfig(hidden_size=16, num_hidden_layers=1).save_pretrained(seer)
    words.save_pretrained(seer)
    assert "is no language model over text" in refused(recipe(shape="completions", model=seer))[0]
    headless = tmp_path / "headless"
    transformers.GPT2Model(config("gpt2", len(words), tie_word_embeddings=False)).save_pretrained(headless)
    words.save_pretrained(headless)
    (problem,) = refused(recipe(shape="completions", model=headless))
    assert "of the model's weights are not there (lm_head.weight" in problem
    assert "set random = true for fresh weights" in problem


def test_fresh_weights_depend_on_the_seed_alone(recipe):
    path = recipe()

    def weights(*overrides):
        found = load_recipe(path, ["model.random=true", *overrides])
        return weights_of(build_model(found, build_data(found.data, found.model)))

    first, again, other = weights(), weights("train.lr=0.5"), weights("seed=1")
    assert all((first[name] == again[name]).all() for name in first)
    assert not all((first[name] == other[name]).all() for name in first)


def test_batches_hold_what_the_records_say(recipe):
    import torch

    found = load_recipe(recipe("gpt2", "completions"))
    model, task, _, _ = build(found)
    batch = task.batch([0, 3], torch.tensor([5, 6]))
    words = transformers.AutoTokenizer.from_pretrained(found.model.path)
    train = task.data.splits["train"].records
    for row, number in enumerate((0, 3)):
        targets = batch.targets[row][batch.mask[row]].tolist()
        assert words.decode(targets) == f"{train[number].target}</s>"
    assert batch.rows.tolist() == [5, 6]
    assert model(batch).shape == (*batch.targets.shape, len(words))
    assert len(task.lengths) == len(train) == len(sentences()) - 8


def test_positions_are_what_the_adapter_takes_them_to_be():
    """Refused before anything is written, or not at all: by one rule."""
    from transformers import BloomConfig, FalconConfig, LEDConfig, LlamaConfig

    from freerun.models.pretrained import model_positions

    rope = {"rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0] * 4, "long_factor": [1.0] * 4,
            "original_max_position_embeddings": 16}  # fmt: skip
    shape = {"hidden_size": 32, "num_attention_heads": 4, "max_position_embeddings": 64}
    assert model_positions(LlamaConfig(**shape)) == 64
    assert model_positions(LlamaConfig(**shape, rope_parameters=rope)) == 16
    assert model_positions(FalconConfig(**shape, alibi=True)) is None
    assert model_positions(BloomConfig()) is None
    assert model_positions(LEDConfig(max_decoder_position_embeddings=32)) == 32
