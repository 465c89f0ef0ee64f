"""Translation: scores against their library, an evaluation against the plain loop, and the commands on tiny files."""

import importlib
import io
import json
import re
import sys

import numpy as np
import pytest
import sacrebleu
import torch

from builders import refused
from freerun.cli import main
from freerun.comparison.run import compare
from freerun.data import ParallelOptions, load_pairs
from freerun.errors import UserError
from freerun.generation import generate
from freerun.metrics.text import bleu, bleu_signature, score_translations
from freerun.models import RecurrentSeq2Seq, TransformerSeq2Seq
from freerun.recipes import load_recipe
from freerun.recipes.load import load_run
from freerun.recipes.train import run_recipe
from freerun.tasks import task_of
from freerun.tasks.pairs import EvaluateSettings, TranslateTask, evaluate_pairs, free_outputs
from parallel_text import PAIRS, write_parallel
from tiny_recipes import ARMS, ends, toml

RECIPE = toml(
    name="tiny", data={"kind": "parallel", "path": "PATH", "subwords": 290},
    model={"kind": "transformer", "size": 16, "layers": 1, "heads": 2}, method={"name": "teacher_forcing"},
    train={"updates": 6, "batch_size": 8, "evaluate_every": 3, "evaluate_items": 2, "save_every": 6},
    evaluate={"length_margin": 2}, compare={"seeds": [0], "arms": ARMS},
)  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_parallel(tmp_path_factory.mktemp("parallel"))


@pytest.fixture(scope="module")
def data(folder):
    return load_pairs(folder, ParallelOptions(subwords=290))


@pytest.fixture(scope="module")
def recipe(folder):
    path = folder / "tiny.toml"
    path.write_text(RECIPE.replace("PATH", str(folder)))
    return path


@pytest.fixture(scope="module")
def run(recipe):
    assert main(["train", str(recipe), "--out", str(recipe.parent / "run")]) == 0
    return recipe.parent / "run"


def model_for(data, kind=TransformerSeq2Seq, **settings):
    torch.manual_seed(4)
    return kind(*data.codec.sizes, **{"size": 16, "layers": 1} | settings)


REFERENCES = ["ein mann geht über die straße .", "zwei hunde .", "eine frau sieht den großen hund .", "nein"]
OUTPUTS = [
    REFERENCES,
    ["ein mann geht über straße .", "zwei hunde , zwei hunde .", "die frau sieht den hund .", "ja"],
    ["mann", "", "eine frau", "nein nein"],
    ["ja", "nicht", "kein wort davon stimmt hier leider", "ja"],
    ["", "", "", ""],
]


@pytest.mark.parametrize("outputs", OUTPUTS)
def test_scores_are_those_of_sacrebleu(outputs):
    scores, items = score_translations(outputs, REFERENCES)
    plain = sacrebleu.corpus_bleu(outputs, [REFERENCES], tokenize="none", force=True)
    assert scores["bleu"] == plain.score
    assert scores["chrf"] == sacrebleu.corpus_chrf(outputs, [REFERENCES]).score
    assert scores["length_ratio"] == sum(len(o.split()) for o in outputs) / sum(len(r.split()) for r in REFERENCES)
    sums = np.array([item["bleu"] for item in items]).sum(0)
    assert sums.tolist() == [plain.sys_len, plain.ref_len, *plain.counts, *plain.totals]
    assert bleu(sums) == pytest.approx(plain.score, abs=1e-9)


def test_a_resample_is_the_score_of_the_resampled_sentences():
    _, items = score_translations(OUTPUTS[1], REFERENCES)
    chosen = [2, 0, 0, 1]
    again, _ = score_translations([OUTPUTS[1][i] for i in chosen], [REFERENCES[i] for i in chosen])
    assert bleu(np.array([items[i]["bleu"] for i in chosen]).sum(0)) == pytest.approx(again["bleu"], abs=1e-9)


def test_what_cannot_be_scored_is_refused(monkeypatch):
    for outputs, references in (([], []), (["a"], ["a", "b"]), (["a"], [" "])):
        with pytest.raises(UserError):
            score_translations(outputs, references)
    assert "|tok:none|" in bleu_signature()
    monkeypatch.setitem(sys.modules, "sacrebleu", None)
    refused(r"BLEU needs sacrebleu: pip install 'freerun\[translate\]'", score_translations, ["a"], ["a"])
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    needs = r"a subword vocabulary needs tokenizers: pip install 'freerun\[translate\]'"
    refused(needs, lambda: importlib.import_module("freerun.data.tokenisers").Subwords.trained(["a b"], 300))


@pytest.mark.parametrize("kind", [TransformerSeq2Seq, RecurrentSeq2Seq])
@pytest.mark.parametrize("beams", [1, 3])
@torch.no_grad()
def test_evaluation_is_that_of_one_sentence_after_the_other(data, kind, beams):
    model = model_for(data, kind)
    settings = EvaluateSettings(beams=beams, length_penalty=0.6, length_margin=2, batch_size=3)
    test = data.evaluation("test")
    found = evaluate_pairs(model, data.codec, test, settings)
    assert model.training
    model.eval()
    total, positions, right, outputs = 0.0, 0, 0, []
    for source, answer in zip(test.sources, test.targets, strict=True):
        batch = data.codec.pair_batch([source], [answer])
        logits = model(batch)[0].double()
        for t, target in enumerate(batch.targets[0].tolist()):
            total -= float(logits[t].log_softmax(-1)[target])
            right += int(logits[t].argmax()) == target
            positions += 1
        output = generate(
            model, data.codec.source_batch([source]), length=data.codec.longest + 3, end=0, beams=beams,
            length_penalty=0.6,
        )  # fmt: skip
        outputs.append(data.codec.decode(output.entries[0].tolist()))
    assert found.teacher_forced["loss"] == pytest.approx(total / positions, rel=1e-5)
    assert found.teacher_forced["token_accuracy"] == pytest.approx(100 * right / positions)
    assert [item["output"] for item in found.items] == outputs
    assert found.free_running == score_translations(outputs, test.targets)[0]
    assert [item["source"] for item in found.items] == test.sources
    json.dumps(found.items)


def test_a_trained_model_translates(data):
    """At a fixed seed; a model that reads nothing of the source outputs one sentence for all and stays below 50."""
    torch.set_num_threads(1)
    model = model_for(data, size=32, heads=2)
    task = TranslateTask(data)
    optimizer = torch.optim.Adam(model.parameters(), 0.006)
    everything = list(range(len(data.lengths)))
    for _ in range(120):
        batch = task.batch(everything, torch.arange(len(everything)))
        loss = torch.nn.functional.cross_entropy(model(batch)[batch.mask], batch.targets[batch.mask])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    found = evaluate_pairs(model, data.codec, data.splits["train"])
    assert found.free_running["bleu"] > 90
    assert found.teacher_forced["token_accuracy"] > 95


def test_a_run_leaves_what_is_needed_to_use_it(run, data):
    summary = json.loads((run / "summary.json").read_text())
    assert set(summary["test"]["free_running"]) == {"bleu", "chrf", "length_ratio"}
    assert summary["best"]["select"] == "bleu"
    assert summary["data"] == data.fingerprint
    items = [json.loads(line) for line in (run / "test-items.jsonl").read_text().splitlines()]
    assert [item["source"] for item in items] == data.splits["test"].sources
    assert len(items[0]["bleu"]) == 10
    loaded = load_run(run)
    assert loaded.codec == data.codec
    batch = task_of("parallel").trial_batch(loaded.codec, 4)
    assert len(set(batch.mask.sum(1).tolist())) == 4
    assert int(batch.targets.max()) < data.codec.sizes[1]
    assert loaded.model(batch).shape == (*batch.targets.shape, data.codec.sizes[1])


def test_generate_translates_line_by_line(run, tmp_path, capsys, monkeypatch):
    lines = tmp_path / "in.txt"
    lines.write_text("a man runs .\nan unseen wörd\n")
    out = ends(capsys, 0, "generate", run, "--input", lines).out
    loaded = load_run(run)
    settings = EvaluateSettings(length_margin=2)
    assert out.splitlines() == free_outputs(loaded.model, loaded.codec, ["a man runs .", "an unseen wörd"], settings)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(lines.read_bytes())))
    assert len(ends(capsys, 0, "generate", run, "--beams", "2").out.splitlines()) == 2
    # one answer a line: what only str.splitlines takes for an end is none, and no line is left out silently
    lines.write_bytes("\ufeffa man\u2028runs .\r\na dog\x85runs .\n".encode())
    assert ends(capsys, 0, "generate", run, "--input", lines).out.count("\n") == 2
    lines.write_text("a man .\n\na dog .\n \n")
    message = ends(capsys, 2, "generate", run, "--input", lines).err
    assert all(f"{lines}:{number}: the line is empty; expected a sentence" in message for number in (2, 4))


def test_evaluate_on_the_own_test_split_and_on_a_file(run, tmp_path, capsys):
    summary = json.loads((run / "summary.json").read_text())
    own = json.loads(ends(capsys, 0, "evaluate", run).out)
    assert own["free_running"] == pytest.approx(summary["test"]["free_running"])
    assert own["sentences"] == 4
    assert own["bleu"] == bleu_signature()
    file = tmp_path / "more.tsv"
    file.write_text("".join(f"{source}\t{target}\n" for source, target in PAIRS[:4]))
    other = json.loads(ends(capsys, 0, "evaluate", run, "--data", file).out)
    assert other["teacher_forced"] == own["teacher_forced"]
    assert main(["check", str(run)]) == 0


FREE = "free running may output the {longest} symbols of the longest training target, evaluate.length_margin = 4"
NEEDED = [
    (4, {}, FREE),
    (0, {"test": [("a man", "ein mann " * 9)]}, "the longest target has "),
    (0, {"dev": [("a man " * 9, "ein mann")]}, "the longest source has "),
]


@pytest.mark.parametrize(("margin", "split", "words"), NEEDED)
def test_positions_are_those_that_the_data_and_free_running_need(tmp_path, margin, split, words):
    folder = write_parallel(tmp_path / "data", **split)
    (tmp_path / "tiny.toml").write_text(RECIPE.replace("PATH", str(folder)))
    overrides = [f"evaluate.length_margin={margin}", "train.updates=1"]
    with pytest.raises(UserError) as caught:
        run_recipe(load_recipe(tmp_path / "tiny.toml", [*overrides, "model.max_positions=1"]), tmp_path / "run")
    longest = load_pairs(folder, ParallelOptions(subwords=290)).codec.longest
    assert f"model.max_positions = 1 is too small: {words.format(longest=longest)}" in str(caught.value)
    needed = int(str(caught.value).rsplit("=", 1)[1])
    with pytest.raises(UserError, match=f"so {needed} positions are needed"):
        run_recipe(
            load_recipe(tmp_path / "tiny.toml", [*overrides, f"model.max_positions={needed - 1}"]), tmp_path / "run"
        )
    assert not (tmp_path / "run").exists()
    fine = load_recipe(tmp_path / "tiny.toml", [*overrides, f"model.max_positions={needed}"])
    assert run_recipe(fine, tmp_path / "run", progress=False)["finished"]


def test_lines_too_long_for_the_model_are_named(recipe, tmp_path, capsys):
    out, lines, pairs = tmp_path / "run", tmp_path / "lines", tmp_path / "pairs.tsv"
    overrides = ["--set", "model.max_positions=40", "--set", "train.updates=1"]
    assert main(["train", str(recipe), *overrides, "--out", str(out)]) == 0
    long = "man " * 41
    lines.write_text(f"a man runs .\n{long}\na dog runs .\n")
    message = ends(capsys, 2, "generate", out, "--input", lines).err
    source = r"the source has (\d+) symbols, and the model was made with max_positions = 40"
    number = re.search(rf"{lines}:2: {source}", message)[1]
    assert f"--set model.max_positions={number}" in message
    pairs.write_bytes(f"a man\tein mann\na man\tgro\u00dfer {long}\n".encode())
    assert main(["evaluate", str(out), "--data", str(pairs)]) == 2
    assert re.search(rf"{pairs}:2: the target has \d+ symbols and an end", capsys.readouterr().err)


def test_compare_pairs_sentences(recipe, tmp_path):
    out = tmp_path / "out"
    results = compare(str(recipe), [], out, progress=False)
    assert "BLEU" in results["verdict"]["sentence"]
    (comparison,) = [c for c in results["comparisons"] if c["metric"] == "free_running.bleu"]
    assert comparison["low"] <= comparison["difference"] <= comparison["high"]
    scores = [run["free_running"]["bleu"] for run in results["runs"]]
    assert abs(comparison["difference"]) == pytest.approx(abs(scores[1] - scores[0]), abs=1e-6)


def test_what_a_recipe_may_say(tmp_path):
    path = tmp_path / "tiny.toml"
    path.write_text(RECIPE)
    assert load_recipe(path).train.select == "bleu"
    for change, expected in {
        "data.subwords=9": "`subwords` must be at least 258; got 9",
        'data.train=["a", "b", "c"]': "train must be two files, [source, target], or one of both; got ['a', 'b', 'c']",
        "data.target=en": "source and target must be how different files end",
        "train.select=per": "`select` must be one of bleu, chrf (free-running), teacher_forced_loss, ",
        "train.select=length_ratio": "got 'length_ratio'",
    }.items():
        refused((expected,), load_recipe, path, [change])
    files = [f'data.{split}=["{split}.a", "{split}.b"]' for split in ("train", "dev", "test")]
    path.write_text(RECIPE.replace('path = "PATH"\n', ""))
    assert load_recipe(path, files).data.dev == ("dev.a", "dev.b")
    refused("`test` is missing: without `path`", load_recipe, path, files[:2])
