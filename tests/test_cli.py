"""The command: what it prints and where, its exit codes, and that nothing heavy is loaded for help."""

import io
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from safetensors.torch import load_file

from freerun import errors
from freerun.cli import entry, main
from freerun.methods import METHODS, PRESETS
from freerun.recipes.keys import key_rows
from freerun.recipes.read import SUPPLIED
from freerun.schedules import SCHEDULES
from freerun.training.files import write_folder
from freerun.training.weights import pack
from tiny_recipes import ends, write

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cli") / "run"
    assert main(["train", str(write(folder.parent)), "--out", str(folder)]) == 0
    return folder


def python(code, *arguments):
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


LIGHT = (
    "import sys; from freerun.cli import main; code = main(sys.argv[1:]);"
    "heavy = {'torch', 'numpy', 'scipy', 'altair'} & set(sys.modules);"
    "sys.exit(f'loaded {heavy}' if heavy else code)"
)


@pytest.mark.parametrize("arguments", [["--help"], ["train", "--help"], ["--version"], ["recipes"]])
def test_help_needs_no_torch(arguments):
    done = python(LIGHT, *arguments)
    assert done.returncode == 0, done.stderr
    assert done.stdout


def test_a_broken_recipe_is_refused_without_torch(tmp_path):
    (tmp_path / "broken.toml").write_text("name = tiny\n")
    done = python(LIGHT, "train", str(tmp_path / "broken.toml"), "--out", str(tmp_path / "out"))
    assert done.returncode == 2
    assert "broken.toml:1:8: broken TOML" in done.stderr
    assert not (tmp_path / "out").exists()


def test_train_prints_results_to_stdout_and_the_rest_to_stderr(tmp_path, capsys):
    out, err = ends(capsys, 0, "train", str(write(tmp_path)), "--out", tmp_path / "run", "--set", "train.updates=6")
    lines = out.splitlines()
    assert lines[0].split() == ["test", "free-running", "teacher-forced", "gap"]
    label, free, forced, gap = lines[1].rsplit(maxsplit=3)
    assert label == "PER, %"
    assert abs(float(free) - float(forced) - float(gap)) < 0.011
    # greedy: a word is right running freely exactly where it is teacher-forced
    wer = next(line.split() for line in lines if line.startswith("WER, %"))
    assert wer[2] == wer[3]
    assert wer[4] == "+0.00"
    assert "kept by dev per" in " ".join(out.split())
    assert f"next: freerun diagnose {tmp_path / 'run'} (or generate, evaluate)" in " ".join(out.split())
    assert lines[-1] == str(tmp_path / "run")
    assert "train: 200 words" in err
    assert "teacher_forcing_ratio = P(gold) falls" in err


def test_generate_from_a_file_and_from_standard_input(run, tmp_path, capsys, monkeypatch):
    words = tmp_path / "words.txt"
    words.write_text("abc\n\nfed\n")
    from_file = ends(capsys, 0, "generate", run, "--input", words).out
    assert [line.split("\t")[0] for line in from_file.splitlines()] == ["abc", "fed"]
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"abc\nfed\n")))
    assert ends(capsys, 0, "generate", run).out == from_file
    assert len(ends(capsys, 0, "generate", run, "--input", words, "--beams", "3").out.splitlines()) == 2


UNREADABLE = [
    (b"abc\nxyz\n", "words.txt:2: symbols 'x', 'y', 'z' were never seen in training"),
    (b"abc\n\xff\xfe\n", "words.txt:2: not UTF-8"),
    (b"\n\n", "words.txt: holds nothing to answer"),
]


@pytest.mark.parametrize(("content", "expected"), UNREADABLE)
def test_words_that_cannot_be_read(run, tmp_path, capsys, content, expected):
    (tmp_path / "words.txt").write_bytes(content)
    out, err = ends(capsys, 2, "generate", run, "--input", tmp_path / "words.txt")
    assert out == ""
    assert expected in err


def test_evaluate_gives_json_with_both_sides(run, tmp_path, capsys):
    found = json.loads(ends(capsys, 0, "evaluate", run).out)
    summary = json.loads((run / "summary.json").read_text())
    assert found["signature"] == summary["signature"]
    assert found["words"] == 20
    for side in ("teacher_forced", "free_running"):
        assert found[side] == pytest.approx(summary["test"][side])
    (tmp_path / "pairs.tsv").write_text("abc\ta b c\nfed\tf e d\n")
    found = json.loads(ends(capsys, 0, "evaluate", run, "--data", tmp_path / "pairs.tsv", "--beams", "2").out)
    assert (found["words"], found["beams"]) == (2, 2)


def test_check_of_a_run_and_of_an_object(run, tmp_path, capsys, monkeypatch):
    assert "step_equals_parallel" in ends(capsys, 0, "check", run).out
    (tmp_path / "leaky_models.py").write_text(
        "import torch\nfrom freerun import Batch\n"
        "ids = torch.tensor([[1, 2, 0], [2, 1, 0]])\nbatch = Batch(ids, ids, ids >= 0)\n"
        "def leaks(batch):\n    return torch.nn.functional.one_hot(batch.history, 3).float()\n"
        "def pair():\n    return leaks, batch\n"
        "def fails():\n    raise RuntimeError('no weights')\n"
        "def broken(batch):\n    raise KeyError('source')\n"
        "broken_pair = broken, batch\nno_batch = leaks, ids\n"
        "def blind(batch):\n    return torch.arange(3.0).expand(batch.size, batch.time, 3)\n"
        "by_example = blind, [ids[0], ids[1]], lambda rows: Batch(torch.stack(rows))\n"
    )
    (tmp_path / "bad_syntax.py").write_text("a = 1\nb = = 2\n")
    (tmp_path / "bad_exit.py").write_text("import sys\nsys.exit(3)\n")
    (tmp_path / "bad_import.py").write_text("raise ValueError('no data here')\n")
    monkeypatch.chdir(tmp_path)
    out, err = ends(capsys, 2, "check", "leaky_models:pair")
    assert "unshifted_history: outputs at position t move when history[t] changes" in " ".join(out.split())
    assert "the model is refused: " in err
    out = ends(capsys, 0, "check", "leaky_models:by_example").out
    assert "alone_equals_batch: each example alone equals itself in a batch" in out
    assert "warning         uses_history" in out
    for target, expected in [
        ("leaky_models:batch", "must be (model, batch), "), ("leaky_models:nothing", "has no 'nothing'"),
        ("no_such_module:pair", "No module named"), ("leaky_models:fails", "raised RuntimeError: no weights"),
        ("leaky_models:broken_pair", "leaky_models.py: broken raised KeyError: 'source'"),
        ("leaky_models:no_batch", "or a function that gives them; got (function, Tensor)"),
        ("bad_syntax:pair", "bad_syntax.py:2: invalid syntax: b = = 2"),
        ("bad_import:pair", "bad_import.py: importing it raised ValueError: no data here\n    bad_import.py:1 in "),
        ("bad_exit:pair", "bad_exit.py: importing it raised SystemExit: 3"),
        (":pair", "must be a folder, FILE.py:NAME or module:NAME"), ("leaky_models:", "module:NAME"),
        ("leaky_models.py:nothing", "leaky_models.py has no 'nothing'\n  help: it has torch, Batch"),
        ("leaky_models.py:pair", "the model is refused: "), ("no_file.py:pair", "no_file.py: no such file"),
    ]:  # fmt: skip
        assert expected in ends(capsys, 2, "check", target).err


def test_a_recipe_is_checked_before_it_is_trained(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own.py").write_text(
        "import torch\nfrom torch import nn\nfrom freerun import Batch\n"
        "class Leaks(nn.Module):\n"
        "    def __init__(self):\n        super().__init__()\n        self.embed = nn.Embedding(9, 9)\n"
        "    def forward(self, batch):\n"
        "        fed = batch.history if batch.history is not None else batch.targets\n        return self.embed(fed)\n"
        "def make_data():\n    torch.manual_seed(0)\n"
        "    return {part: [Batch(torch.randint(0, 9, (4, 6)))] for part in ('train', 'dev', 'test')}\n"
    )
    (tmp_path / "own.toml").write_text(
        '[data]\nkind = "python"\nmake = "own.py:make_data"\n[model]\nkind = "python"\nmake = "own.py:Leaks"\n'
        '[method]\nname = "teacher_forcing"\n[train]\nupdates = 2\n'
    )
    assert "the model is refused: " in ends(capsys, 2, "check", "own.toml").err
    (tmp_path / "text.txt").write_text("the quick brown fox jumps over the lazy dog\n" * 200)
    out = ends(
        capsys, 0, "check", ROOT / "recipes" / "char-lm.toml", "--set", "data.path=text.txt", "--set", "model.size=16"
    )
    assert "causal: " in out.out
    assert "--set has an effect on a recipe" in ends(capsys, 2, "check", "own:pair", "--set", "seed=1").err


def test_presets_are_listed_and_described(capsys):
    listed = ends(capsys, 0, "methods").out
    for name, (make, paper) in PRESETS.items():
        assert f"\n{name}(steps" in listed
        text = ends(capsys, 0, "methods", name).out
        method = make(1000, 20) if name == "bptt_sa" else make(1000)
        assert text.startswith(f"{name}: a preset. ")
        text = " ".join(text.split())
        assert all(part in text for part in (repr(method), f"freerun methods {method.name}", paper))
    assert "length     positions of a stretch." in ends(capsys, 0, "methods", "bptt_sa").out
    assert "did you mean falling?" in ends(capsys, 2, "methods", "faling").err
    assert "freerun keys gate.every" in ends(capsys, 2, "methods", "every").err
    assert "freerun keys gate.step or freerun keys engine.step" in ends(capsys, 2, "methods", "step").err
    assert "freerun keys gate, draw, engine" in " ".join(ends(capsys, 0, "methods").out.split())


@pytest.mark.parametrize("kind", ["methods", "schedules"])
def test_lists_name_everything_there_is(kind, capsys):
    listed = ends(capsys, 0, kind).out.splitlines()
    for name, known in (METHODS if kind == "methods" else SCHEDULES).items():
        assert any(line.startswith(name) for line in listed)
        text = ends(capsys, 0, kind, name).out
        for key, _, _, meaning in key_rows(known, SUPPLIED):
            assert f"\n  {key} (" in text
            assert key not in getattr(known, "without", {}), "it is refused"
            assert meaning
            assert " ".join(meaning.split()) in " ".join(text.split())
        formula = known.citation.formula if kind == "methods" else known.formula
        assert " ".join(formula.splitlines()[0].split()) in " ".join(text.split())
        assert kind == "schedules" or known.citation.bibtex in text


def test_recipes_are_listed_and_printed(capsys):
    assert "g2p-demo " in ends(capsys, 0, "recipes").out
    assert ends(capsys, 0, "recipes", "g2p-demo").out == (ROOT / "recipes" / "g2p-demo.toml").read_text("utf-8")


WRONG = [
    ("trian", "train"),
    ("train", "RECIPE"),
    ("train copy", "--out"),
    ("train copy --ot x", "--out"),
    ("train copy --out x --bogus", "--bogus"),
    ("generate x --beams many", "--beams"),
    ("methods scheduled_samplin", "did you mean scheduled_sampling?"),
    ("schedules liner", "did you mean linear?"),
    ("recipes g2p", "there is no recipe 'g2p'"),
    ("train nowhere.toml --out x", "nowhere.toml: there is no such file"),
    ("train copy --out x --set train.lrr=1", "did you mean `lr`?"),
    ("train g2p-cmudict --out x", "--set data.path=FOLDER"),
]


@pytest.mark.parametrize(("arguments", "expected"), WRONG)
def test_wrong_commands_exit_with_2_and_one_message(arguments, expected, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    out, err = ends(capsys, 2, *arguments.split())
    assert out == ""
    assert err.startswith("error: ")
    assert expected in err
    assert "Traceback" not in err
    assert list(tmp_path.iterdir()) == []


def test_occupied_and_useless_folders(run, tmp_path, capsys):
    recipe = write(tmp_path)
    assert "holds a finished run\n  help: --overwrite" in ends(capsys, 3, "train", recipe, "--out", run).err
    changed = ends(capsys, 4, "train", recipe, "--out", run, "--resume", "--set", "train.lr=0.5")
    assert "train.lr: 0.001 there, 0.5 now" in changed.err
    ends(capsys, 0, "train", recipe, "--out", run, "--resume")
    ends(capsys, 2, "train", recipe, "--out", run, "--resume", "--overwrite")
    for command in ("generate", "evaluate", "check"):
        assert "no model/model.json in" in ends(capsys, 4, command, tmp_path).err
    ends(capsys, 4, "train", recipe, "--out", tmp_path / "new", "--init", tmp_path)


MEMORY = "DefaultCPUAllocator: {}: you tried to allocate 8 bytes"
ERRORS = [
    (errors.UserError(["one", "two"]), 2, "error: one\nerror: two\n2 errors\n"),
    (errors.OccupiedError("taken"), 3, "error: taken\n"),
    (errors.CheckpointError("damaged"), 4, "error: damaged\n"),
    (errors.ResourceError("full"), 5, "error: full\n"),
    (MemoryError(), 5, "error: out of memory"),
    (OSError(28, "No space left on device"), 5, "error: No space left on device\n"),
    (PermissionError(13, "Permission denied", "/x"), 2, "error: /x: permission denied\n"),
    (errors.DivergedError("nan"), 6, "error: nan\n"),
    (KeyboardInterrupt(), 130, "interrupted\n"),
    (errors.OtherProcessError("rank 1 failed"), 7, ""),
    (errors.StoppedError("stopped"), 130, ""),
    (errors.TerminatedError("stopped"), 143, ""),
    (RuntimeError(MEMORY.format("can't allocate memory")), 5, ""),
    (RuntimeError(MEMORY.format("not enough memory")), 5, ""),
    (OSError(12, "Cannot allocate memory"), 5, ""),
    (RuntimeError("anything else"), 1, ""),
]


@pytest.mark.parametrize(("error", "code", "expected"), ERRORS)
def test_every_error_has_its_exit_code(error, code, expected, capsys, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))  # a report is a file

    def command():
        raise error

    assert entry.guarded(command) == code
    assert capsys.readouterr().err.startswith(expected)


def test_codes_are_the_same_in_the_table_on_the_classes_in_the_help_and_in_the_docs(capsys):
    assert all(kind is None or kind.exit_code == code for code, (kind, _) in errors.EXIT_CODES.items())
    text = (ROOT / "docs" / "run-folder.md").read_text(encoding="utf-8")
    rows = [line.strip("| ").split(" | ", 1) for line in text.partition("## Exit codes")[2].splitlines()]
    documented = {int(row[0]): row[1] for row in rows if row[0].isdecimal()}
    assert documented == {code: meaning for code, (_, meaning) in errors.EXIT_CODES.items()}
    text = ends(capsys, 0, "--help").out
    assert all(f"{code:>4}  {meaning}" in text for code, meaning in documented.items())


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 143)])
def test_a_signal_has_its_code_in_every_command(number, code, capsys):
    """Also where what it broke off is met as another error, or is swallowed."""

    def signalled(then):
        def command():
            try:
                os.kill(os.getpid(), number)
                time.sleep(60)
            except BaseException:
                if then == "swallowed":
                    return 0
                if then == "another":
                    raise ImportError("half an import") from None
                raise
            return 0

        return command

    for then in ("as it is", "another", "swallowed"):
        assert entry.guarded(signalled(then)) == code
        assert capsys.readouterr().err.startswith(f"stopped by {signal.Signals(number).name}")


def test_a_run_whose_weights_are_nan_cannot_be_used(run, tmp_path, capsys):
    copy, words = shutil.copytree(run, tmp_path / "run"), tmp_path / "words"
    content = load_file(copy / "model" / "model.safetensors")
    name = next(iter(content))
    content[name][...] = math.nan
    info = (copy / "model" / "model.json").read_bytes()
    write_folder(copy / "model", {"model.safetensors": pack(content), "model.json": info})
    words.write_text("a\n")
    for command in (
        ["generate", copy, "--input", words], ["evaluate", copy], ["diagnose", copy], ["check", copy],
        ["train", write(tmp_path), "--out", tmp_path / "new", "--init", copy],
    ):  # fmt: skip
        assert f"weights are not finite, and cannot be used: {name}" in ends(capsys, 4, *command).err
    assert not (tmp_path / "new").exists()
    # finite, and beyond what the outputs can hold
    content[name][...] = 3e38
    huge = pack({name: tensor.fill_(3e38) for name, tensor in content.items()})
    write_folder(copy / "model", {"model.safetensors": huge, "model.json": info})
    assert "outputs hold NaN" in ends(capsys, 4, "evaluate", copy).err


def test_our_own_faults_leave_a_report(capsys):
    def command():
        raise ZeroDivisionError("oh")

    assert entry.guarded(command, ["train", "x"]) == 1
    err = capsys.readouterr().err
    assert err.startswith("error: freerun failed unexpectedly: ZeroDivisionError: oh\n")
    assert "Traceback" not in err
    report = Path(next(word for word in err.split() if "freerun-report-" in word))
    text = report.read_text(encoding="utf-8")
    report.unlink()
    assert "Traceback" in text
    assert "['train', 'x']" in text


def test_a_reader_that_goes_away_is_no_error(run):
    code = (
        "import os, sys; os.close(1); r, w = os.pipe(); os.close(r); os.dup2(w, 1);"
        "from freerun.cli import main; sys.exit(main(sys.argv[1:]))"
    )
    done = python(code, "methods")
    assert (done.returncode, done.stderr) == (0, "")
