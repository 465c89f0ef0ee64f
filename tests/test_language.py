"""A text as data and task: windows, teacher forcing and free running (against naive loops), and the commands."""

import io
import json
import math
from functools import partial

import pytest
import torch

from builders import refused
from fault_damage import signed
from freerun.batch import Batch
from freerun.cli.entry import main
from freerun.data import TextCodec, TextData, TextOptions, load_text, read_text
from freerun.draws import resolve
from freerun.errors import CheckpointError, UserError
from freerun.keys import fold
from freerun.models import TransformerLM
from freerun.recipes import load_recipe
from freerun.recipes.load import evaluate_run, generate_lines, load_run, trial_batch
from freerun.recipes.train import run_recipe
from freerun.tasks.text import TextSettings, TextTask, evaluate_text, free_outputs
from tiny_recipes import SAMPLING, ends, toml

TEXT = "the cat sat on the mat and the dog ran to the cat.\nso it goes, on and on.\n" * 12
RECIPE = toml(
    data={"kind": "text", "path": "PATH", "length": 8, "dev": 0.1, "test": 0.1},
    model={"size": 8, "layers": 1, "heads": 2, "max_positions": 16},
    method=SAMPLING,
    train={"updates": 8, "batch_size": 4, "evaluate_every": 4, "evaluate_items": 2, "save_every": 4},
    evaluate={"block": 16},
)


@pytest.fixture(scope="module")
def data():
    size = len(TEXT)
    parts = {"train": TEXT[: size - 200], "dev": TEXT[size - 200 : size - 100], "test": TEXT[size - 100 :]}
    return TextData(parts, TextOptions(length=8))


@pytest.fixture(scope="module")
def model(data):
    torch.manual_seed(1)
    made = TransformerLM(len(data.codec), size=16, layers=2, heads=2, max_positions=16, tied=False).double()
    # random weights say nearly the same everywhere: make them care
    for parameter in made.parameters():
        parameter.data.mul_(3)
    return made


@pytest.fixture(scope="module")
def text_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "story.txt"
    path.write_text(TEXT, encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def run(text_file):
    recipe = text_file.parent / "tiny.toml"
    recipe.write_text(RECIPE.replace("PATH", str(text_file)), encoding="utf-8")
    run_recipe(load_recipe(recipe), text_file.parent / "run", progress=False)
    return text_file.parent / "run"


def test_windows_are_stretches_of_the_training_part(data):
    train, last = data.parts["train"], len(data.lengths) - 1
    for number in (0, 1, 7, last):
        batch = data.batch([number])
        assert data.codec.text(batch.targets[0].tolist()) == train[4 * number : 4 * number + 9]
        assert torch.equal(batch.history, batch.targets)
        assert batch.mask[0].tolist() == [False] + [True] * 8
        assert batch.replaceable[0].tolist() == [False] + [True] * 7 + [False]
    assert 4 * last + 9 <= len(train) < 4 * (last + 1) + 9


def test_parts_lie_in_order_and_files_one_after_the_other(tmp_path):
    (tmp_path / "a").write_bytes(b"\xef\xbb\xbfab\r\nba\r" + b"ab" * 40)
    (tmp_path / "b").write_bytes(b"\nab" * 20)
    found = load_text([tmp_path / "a", tmp_path / "b"], TextOptions(length=4, dev=0.1, test=0.2))
    whole = "ab\nba\n" + "ab" * 40 + "\nab" * 20
    assert "".join(found.parts[part] for part in ("train", "dev", "test")) == whole
    assert [len(found.parts[part]) for part in ("dev", "test")] == [15, 29]
    assert read_text(tmp_path / "b") == "\nab" * 20
    for text in ("ab\ncd\n", "ab\n\n", "ab"):
        (tmp_path / "c").write_bytes(text.encode("utf-16"))
        assert read_text(tmp_path / "c", "utf-16") == text
    other = load_text([tmp_path / "a", tmp_path / "b"], TextOptions(length=5, dev=0.1, test=0.2))
    assert found.fingerprint != other.fingerprint
    assert found.header()[1].startswith("train: 102 characters, 49 windows of 4, one every 2")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"fine\nb\xe4d\n", r":2: not UTF-8: found 0xE4 at byte 2 of the line"),
        (b" \n", "the file is empty; expected text"),
        (b"ab" * 20, "dev part has 2 characters, and a window needs length \\+ 1 = 9"),
        (b"ab\n" * 60 + b"abXabX" * 3, r":6\d: character 'X' stands in dev or test \(6 times, first here\)"),
    ],
)
def test_texts_that_cannot_be_used_say_why_and_where(tmp_path, content, message):
    (tmp_path / "t").write_bytes(content)
    refused(message, load_text, tmp_path / "t", TextOptions(length=8))


def test_unknown_characters_can_be_dropped(tmp_path):
    (tmp_path / "t").write_text("ab\n" * 100 + "abXabX" * 6, encoding="utf-8")
    found = load_text(tmp_path / "t", TextOptions(length=4, unknown="drop"))
    assert "X" not in found.parts["test"]
    assert "(dropped: 6 characters that training has not)" in found.header()[3]


def test_options_out_of_range_all_at_once():
    assert len(refused("", TextOptions, length=1, stride=0, dev=0.0, test=1.0)) == 4
    refused("leave something", TextOptions, dev=0.5, test=0.5)


def logits(model: TransformerLM, ids: list[int]) -> torch.Tensor:
    """What is predicted after some ids, by the full forward."""
    history = torch.tensor([[*ids, 0]])
    with torch.no_grad():
        return model.eval()(Batch(history, history, history >= 0))[0, -1]


def test_on_gold_each_character_is_predicted_once_with_enough_before_it(data, model):
    text, codec = data.parts["test"], data.codec
    found = evaluate_text(model, codec, text, data.parts["train"], TextSettings(block=16, batch_size=3))
    ids = codec.ids(text).tolist()
    total, right, by_block = 0.0, 0, []
    for block in range(4, len(ids), 16):
        by_block.append(0.0)
        for place in range(block, min(block + 16, len(ids))):
            # windows of a block predict five characters each, after four to eight
            begin = block + (place - block) // 5 * 5 - 4
            assert 4 <= place - begin <= 8
            predicted = logits(model, ids[begin:place])
            by_block[-1] -= float(predicted.log_softmax(-1)[ids[place]])
            right += int(predicted.argmax()) == ids[place]
        total += by_block[-1]
    assert [item["errors"] for item in found.items] == pytest.approx(by_block, rel=1e-6)
    assert sum(item["length"] for item in found.items) == len(ids) - 4
    assert found.teacher_forced["bits_per_character"] == pytest.approx(total / (len(ids) - 4) / math.log(2), rel=1e-6)
    assert found.teacher_forced["token_accuracy"] == pytest.approx(100 * right / (len(ids) - 4))
    assert set(found.teacher_forced) == {"loss", "bits_per_character", "token_accuracy"}
    own = {"trigram_divergence", "novel_words", "repetition"}
    assert set(found.free_running) == own | {f"text_{name}" for name in own}


@pytest.mark.parametrize("draw", ["greedy", "sample"])
def test_free_running_equals_the_naive_loop(data, model, draw):
    prompts = ["the ", "so it goes, on and", "c"]
    texts = free_outputs(model, data.codec, prompts, 23, draw=draw, key=5)
    drawn = resolve(draw)
    for number, prompt in enumerate(prompts):
        history, own, stretch = data.codec.ids(prompt).tolist()[-8:], [], 0
        for _ in range(23):
            if len(history) > 8:
                history, stretch = history[-4:], stretch + 1
            outputs = logits(model, history)[None]
            row, position = torch.tensor([number]), torch.tensor([len(history)])
            # the key of generate in each stretch
            key = fold(fold(fold(5, "go on"), stretch), "draw", 0)
            own.append(int(drawn.choose(outputs, drawn.noise(key, row, position, outputs.shape[-1]))))
            history = [*history, own[-1]]
        assert texts[number] == data.codec.text(own)
    assert free_outputs(model, data.codec, prompts, 23, draw=draw, key=5, batch_size=1) == texts


def test_scores_do_not_depend_on_the_batch_size(data, model):
    one, many = (
        evaluate_text(model, data.codec, data.parts["dev"], data.parts["train"], TextSettings(16, batch_size=size))
        for size in (1, 64)
    )
    assert [item["output"] for item in one.items] == [item["output"] for item in many.items]
    assert one.teacher_forced == pytest.approx(many.teacher_forced)


def test_dev_blocks_are_spread_and_the_texts_own_measures_stand_beside(data: TextData, model: TransformerLM):
    found = TextTask(data, TextSettings(block=16), items=2).evaluate(model, "dev")
    assert [item["source"] for item in found.items] == ["characters 4 to 19", "characters 52 to 67"]
    assert found.free_running["text_novel_words"] == 0
    assert found.items[0]["references"] == [data.parts["dev"][4:20]]
    refused("split must be dev or test", lambda: TextTask(data).evaluate(model, "train"))


def test_a_text_too_short_or_with_other_characters_is_refused(data, model):
    refused(r"at least length \+ 1 = 9", evaluate_text, model, data.codec, "the cat", data.parts["train"])
    with pytest.raises(UserError, match="character 'X' was never seen in training"):
        evaluate_text(model, data.codec, "the X sat on", data.parts["train"])
    with pytest.raises(UserError) as caught:
        free_outputs(model, data.codec, ["", "Y"], 3)
    assert len(caught.value.problems) == 2


def test_a_model_learns_a_text(tmp_path):
    (tmp_path / "alphabet.txt").write_text("abcdefgh" * 100, encoding="utf-8")
    recipe = tmp_path / "tiny.toml"
    recipe.write_text(RECIPE.replace("PATH", str(tmp_path / "alphabet.txt")), encoding="utf-8")
    overrides = ["train.updates=120", "train.lr=0.01", "train.evaluate_every=120", "model.size=16"]
    overrides += ['method={name="teacher_forcing"}', "evaluate.draw=greedy"]
    summary = run_recipe(load_recipe(recipe, overrides), tmp_path / "run", progress=False)
    assert summary["test"]["teacher_forced"]["bits_per_character"] < 0.1
    assert generate_lines(load_run(tmp_path / "run"), ["fgha", "defgh"], length=10) == [
        "fgha\tbcdefghabc",
        "defgh\tabcdefghab",
    ]


def test_a_run_stopped_and_resumed_is_the_run_never_stopped(run, tmp_path):
    recipe = load_recipe(run.parent / "tiny.toml")
    run_recipe(recipe, tmp_path / "run", progress=False)
    for name in ("summary.json", "test-items.jsonl"):
        (tmp_path / "run" / name).unlink()
    (tmp_path / "run" / "checkpoints" / "step-00000008").rename(tmp_path / "gone")
    run_recipe(recipe, tmp_path / "run", resume=True, progress=False)
    first, second = (load_run(folder).model.state_dict() for folder in (run, tmp_path / "run"))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert (run / "test-items.jsonl").read_bytes() == (tmp_path / "run" / "test-items.jsonl").read_bytes()


def test_what_a_run_is_chosen_by(run):
    summary = json.loads((run / "summary.json").read_text())
    assert summary["best"]["select"] == "teacher_forced_bits_per_character"
    scores = [
        event["teacher_forced"]["bits_per_character"]
        for event in map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
        if event["event"] == "evaluate"
    ]
    assert summary["best"]["value"] == min(scores)


def test_a_saved_run_is_loaded_scored_and_checked(run, text_file, capsys):
    loaded = load_run(run)
    assert isinstance(loaded.model, TransformerLM)
    assert loaded.codec == TextCodec(tuple(sorted(set(TEXT))), 8)
    found = evaluate_run(loaded)
    summary = json.loads((run / "summary.json").read_text())
    assert found["teacher_forced"] == pytest.approx(summary["test"]["teacher_forced"])
    assert found["free_running"] == summary["test"]["free_running"]
    assert evaluate_run(loaded, text_file)["characters"] == len(TEXT)
    batch = trial_batch(loaded)
    assert batch.mask.sum(1).tolist() == [5, 6, 7, 8]
    assert "ok              causal" in ends(capsys, 0, "check", run).out


def test_a_file_to_score_on_is_read_as_the_runs_own_data(run, tmp_path):
    story = tmp_path / "story.txt"
    story.write_bytes(TEXT.replace("cat", "k\u00e4t").encode("latin-1"))
    overrides = [f"data.path={story}", "data.encoding=latin-1", "train.updates=1"]
    run_recipe(load_recipe(run.parent / "tiny.toml", overrides), tmp_path / "run", progress=False)
    loaded = load_run(tmp_path / "run")
    assert evaluate_run(loaded, story)["characters"] == len(TEXT)
    # what the model says is compared with the training text, so that --data is no way out
    story.write_bytes(story.read_bytes()[:-1])
    for data in (None, story):
        with pytest.raises(CheckpointError, match="its data have changed") as caught:
            evaluate_run(loaded, data)
        assert "help: give the old files back: what the model outputs is compared with the words" in str(caught.value)
        assert "--data" not in str(caught.value)


def test_generate_goes_on_line_by_line(run, tmp_path, monkeypatch, capsys):
    (tmp_path / "prompts").write_text("the dog \n\ngoes,\\nso\n", encoding="utf-8")
    assert main(["generate", str(run), "--input", str(tmp_path / "prompts"), "--length", "30"]) == 0
    lines = [line.split("\t") for line in capsys.readouterr().out.splitlines()]
    assert [prompt for prompt, _ in lines] == ["the dog ", "goes,\\nso"]
    assert [len(answer.replace("\\n", "\n")) for _, answer in lines] == [30, 30]
    assert main(["generate", str(run), "--input", str(tmp_path / "prompts"), "--beams", "2"]) == 2
    assert "--beams has no effect" in capsys.readouterr().err
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO("nöne X\n".encode()), encoding="utf-8"))
    message = ends(capsys, 2, "generate", run).err
    assert "standard input:1: character 'X' was never seen in training" in message
    assert "2 errors" in message


@pytest.mark.parametrize(
    ("data_kind", "model_kind", "message"),
    [
        ("toy", "transformer_lm", "a model of kind transformer_lm is trained on text data"),
        ("text", "recurrent", "a model of kind recurrent is trained on cmudict or pairs or toy"),
        ("text", "transformer", "use kind = transformer_lm"),
    ],
)
def test_a_model_that_does_not_fit_the_data_is_refused(tmp_path, data_kind, model_kind, message):
    (tmp_path / "r.toml").write_text(
        f'[data]\nkind = "{data_kind}"\n[model]\nkind = "{model_kind}"\n[method]\nname = "teacher_forcing"\n'
    )
    refused(message, load_recipe, tmp_path / "r.toml", ["data.path=x"] if data_kind == "text" else [])


def test_keys_and_scores_of_another_task_are_refused(run):
    recipe = run.parent / "tiny.toml"
    fit = "trigram_divergence (free-running), " + ", ".join(
        f"teacher_forced_{name}" for name in ("bits_per_character", "loss", "token_accuracy")
    )
    # constants, and shares that can be too small, choose no weights
    for name in ("per", "text_trigram_divergence", "novel_words", "free_running_repetition"):
        refused((f"`select` must be one of {fit}; got {name!r}",), load_recipe, recipe, [f"train.select={name}"])
    for name in ("free_running_trigram_divergence", "teacher_forced_loss"):
        assert load_recipe(recipe, [f"train.select={name}"]).train.select == name
    refused(r"unknown key `beams` in \[evaluate\]", load_recipe, recipe, ["evaluate.beams=2"])
    refused("`path` is missing: the text file", load_recipe, recipe, ["data.path=none"])
    refused(r"--set data\.dev=0\.0: `dev` must lie in \(0, 1\); got 0\.0", load_recipe, recipe, ["data.dev=0.0"])
    with pytest.raises(UserError, match=r"--set data\.dev=0\.5: dev and test must leave something to train on"):
        load_recipe(recipe, ["data.dev=0.5", "data.test=0.5"])
    (run.parent / "no_test.toml").write_text(recipe.read_text().replace("test = 0.1", "test = 0.0"), encoding="utf-8")
    refused(r"no_test\.toml:6: `test` must lie in", load_recipe, run.parent / "no_test.toml")


def test_a_run_with_the_former_name_of_max_positions_loads_and_resumes(run, tmp_path):
    recipe, old = load_recipe(run.parent / "tiny.toml"), tmp_path / "old"
    run_recipe(recipe, old, progress=False)
    prompts = ["the dog"]
    expected = generate_lines(load_run(old), prompts, length=9)
    for path in (old / "recipe.toml", *old.glob("**/model.json"), *old.glob("**/state.json")):
        content = path.read_text(encoding="utf-8")
        assert "max_positions" in content
        (path.write_bytes if path.suffix == ".toml" else partial(signed, path))(
            content.replace("max_positions", "longest").encode()
        )
    assert generate_lines(load_run(old), prompts, length=9) == expected
    run_recipe(recipe, old, resume=True, progress=False)
    refused(r"unknown key `longest` in \[model\]\n  help: `longest` is now `max_positions`",
            load_recipe, run.parent / "tiny.toml", ["model.longest=9"])  # fmt: skip


def test_too_few_positions_are_refused_before_anything_is_made(run, tmp_path, capsys):
    recipe = run.parent / "tiny.toml"
    # just enough: what is read in training, scored and gone on from
    run_recipe(load_recipe(recipe, ["model.max_positions=9"]), tmp_path / "fine", progress=False)
    assert len(generate_lines(load_run(tmp_path / "fine"), ["the dog ran to the"], length=30)[0]) == 49
    compared = tmp_path / "compared.toml"
    compared.write_text(recipe.read_text() + '[[compare.arms]]\nmethod = { name = "teacher_forcing" }\n')
    for command in (["train", str(recipe)], ["compare", str(compared)]):
        out = tmp_path / command[0]
        message = ends(capsys, 2, *command, "--set", "model.max_positions=8", "--out", out).err
        assert (
            "model.max_positions = 8 is too small: a window has data.length = 8 characters and one before them"
            in message
        )
        assert "help: --set model.max_positions=9" in message
        assert not out.exists()


def test_pairs_train_on_a_transformer_too(tmp_path):
    (tmp_path / "r.toml").write_text(
        '[data]\nkind = "toy"\ntrain = 40\ndev = 4\ntest = 4\n[model]\nkind = "transformer"\nsize = 8\nlayers = 1\n'
        'heads = 2\n[method]\nname = "scheduled_sampling"\nteacher_forcing_ratio = 0.5\n'
        "[train]\nupdates = 3\nbatch_size = 4\n"
    )
    run_recipe(load_recipe(tmp_path / "r.toml"), tmp_path / "run", progress=False)
    assert len(generate_lines(load_run(tmp_path / "run"), ["ab", "cde"])) == 2
    run_recipe(load_recipe(tmp_path / "r.toml", ["model.max_positions=14"]), tmp_path / "tight", progress=False)
    with pytest.raises(UserError) as caught:
        generate_lines(load_run(tmp_path / "tight"), ["ab" * 7, "ab" * 8, "X"], names=["w:1", "w:2", "w:3"])
    assert caught.value.problems[0].startswith(
        "w:2: the source has 16 symbols, and the model was made with max_positions = 14"
    )
    assert caught.value.problems[1].startswith("w:3: ")
    pairs = tmp_path / "pairs"
    pairs.write_bytes(f"ab\ta b\n{'ab' * 9}\ta b\nba\t{'a ' * 14}\n".encode())
    with pytest.raises(UserError) as caught:
        evaluate_run(load_run(tmp_path / "tight"), pairs)
    assert [problem.split(",")[0] for problem in caught.value.problems] == [
        f"{pairs}: '{'ab' * 9}': the source has 18 symbols", f"{pairs}: 'ba': the target has 14 symbols and an end"
    ]  # fmt: skip
    with pytest.raises(
        UserError, match="max_positions = 5 is too small: free running may output the 8 symbols"
    ) as caught:
        run_recipe(load_recipe(tmp_path / "r.toml", ["model.max_positions=5"]), tmp_path / "other")
    assert "so 14 positions are needed" in str(caught.value)


def test_windows_overlap_so_that_characters_are_predicted_twice(data):
    times = torch.zeros(len(data.parts["train"]), dtype=torch.int64)
    for number in range(len(data.lengths)):
        times[number * data.stride + 1 : number * data.stride + 9] += 1
    assert times[5:-8].tolist() == [2] * len(times[5:-8])
