"""Recipes with the user's own code: every command works on it, and a comparison is the one of ``fr.compare``."""

import json
import sys

import pytest

import freerun as fr
from freerun.cli.entry import main
from freerun.recipes import load_recipe
from freerun.training import TrainSettings
from tiny_recipes import toml, write

FILE = """
import torch
from torch import nn
import freerun as fr

class Decoder(fr.StepModel):
    def __init__(self, size, values=False):
        super().__init__()
        self.values = values
        self.embedding = nn.Linear(2, size) if values else nn.Embedding(6, size)
        self.cell, self.out = nn.GRUCell(size, size), nn.Linear(size, 2 if values else 5)

    def start(self, batch):
        first = torch.zeros(batch.size, 2) if self.values else torch.full((batch.size,), 5)
        return first, batch.context

    def step(self, entries, state):
        state = self.cell(self.embedding(entries), state)
        return self.out(state), state

def make_model(size=4, values=False):
    return Decoder(size, values)

def batches(number, values):
    made = []
    for _ in range(number):
        context = torch.randn(6, 4)
        ids = torch.cat([torch.randint(1, 5, (6, 4)), torch.zeros(6, 1).long()], 1)
        targets = torch.randn(6, 5, 2) if values else ids
        made.append(fr.Batch(targets, context=context))
    return made

def make_data(values=False):
    return {"train": batches(3, values), "dev": batches(1, values), "test": batches(2, values)}
"""
ARMS = [
    {"label": "gold", "method": {"name": "teacher_forcing"}},
    {"label": "own", "method": {"name": "scheduled_sampling", "teacher_forcing_ratio": 0.5}},
]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    (tmp_path / "mine.py").write_text(FILE)
    return tmp_path


def recipe(folder, values=False, **more):
    arguments = {"values": values}
    text = toml(
        data={"kind": "python", "make": "mine.py:make_data", "arguments": arguments},
        model={"kind": "python", "make": "mine.py:make_model", "arguments": arguments},
        method={"name": "scheduled_sampling", "teacher_forcing_ratio": 0.5},
        train={"updates": 6, "evaluate_every": 3, "save_every": 2},
        **more,
    )
    return write(folder, text)


@pytest.mark.parametrize("values", [False, True], ids=["ids", "values"])
def test_every_command_works_on_it(folder, values, capsys):
    path = str(recipe(folder, values))
    assert main(["train", path, "--out", "run"]) == 0
    header = capsys.readouterr()
    assert f"batches of {'values' if values else 'ids'}: 3 train, 1 dev, 2 test" in header.err
    resolved = (folder / "run" / "recipe.toml").read_text(encoding="utf-8")
    assert resolved.count("sha256") == 2
    assert "batch_size = 1" in resolved
    assert main(["train", path, "--out", "run", "--resume"]) == 0
    capsys.readouterr()
    assert main(["evaluate", "run"]) == 0
    scores = json.loads(capsys.readouterr().out)
    summary = json.loads((folder / "run" / "summary.json").read_text())
    assert scores["free_running"] == summary["test"]["free_running"]
    assert main(["generate", "run"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert len(rows) == 12
    assert all(len(row["reference"]) == 5 for row in rows)
    assert main(["diagnose", "run", "--out", "diagnosis", "--windows", "7"]) == 0
    result = json.loads((folder / "diagnosis" / "diagnosis.json").read_text())["diagnosis"]
    assert result["windows" if values else "rows"] == 7
    assert main(["check", "run"]) == 0


@pytest.mark.parametrize("values", [False, True], ids=["ids", "values"])
def test_a_comparison_is_the_one_of_the_library(folder, values):
    control = {"name": "token_noise", "rate": "matched", "exclude_gold": True}
    if values:
        control = {"name": "gaussian_noise", "rate": "matched", "std": {"matched_to": "own"}}
    arms = [*ARMS, {"label": "noise", "method": control}]
    path = str(recipe(folder, values, compare={"seeds": [0, 3], "arms": arms}))
    assert main(["compare", path, "--out", "out"]) == 0
    by_command = json.loads((folder / "out" / "results.json").read_text())
    section = load_recipe(path).data
    module = load_recipe(path).model
    by_call = fr.compare(
        module.build, section.load(), {"gold": fr.teacher_forcing(), "own": fr.scheduled_sampling(0.5),
                                        "noise": fr.matched_noise()}, seeds=[0, 3],
        updates=6, settings=TrainSettings(evaluate_every=3, save_every=2), progress=False,
    ).results  # fmt: skip
    costs = ("seconds", "cpu_seconds")
    for key in ("summary", "comparisons"):
        assert [x for x in by_call[key] if x["metric"] not in costs] == [
            x for x in by_command[key] if x["metric"] not in costs
        ]
    assert by_call["verdict"] == by_command["verdict"]
    assert [run["data"] for run in by_call["runs"]] == [run["data"] for run in by_command["runs"]]
    for found in (by_command, by_call):
        assert [run["control_of"] for run in found["runs"] if run["label"] == "noise"] == ["own", "own"]


def test_a_control_is_tried_before_its_arm_is_trained(folder, capsys):
    control = {"name": "token_noise", "rate": "matched", "loss_on": [1.0, 2.0]}
    arms = [*ARMS, {"label": "noise", "method": control}]
    path = str(recipe(folder, compare={"seeds": [0], "arms": arms}))
    assert main(["compare", path, "--out", "out"]) == 2
    printed = capsys.readouterr().err
    assert "error: arm noise: [method]: loss_on" in printed
    assert "arm own" not in printed
    assert not (folder / "out").exists()
    path = str(recipe(folder, compare={"seeds": [0], "arms": [arms[0], arms[2]]}))
    assert main(["compare", path, "--out", "out"]) == 2
    assert '"matched" means the one arm that feeds the model\'s own outputs; there is none' in capsys.readouterr().err


def test_a_changed_file_is_another_run(folder, capsys):
    path = str(recipe(folder))
    assert main(["train", path, "--out", "run"]) == 0
    (folder / "mine.py").write_text(FILE + "\n# another file")
    capsys.readouterr()
    assert main(["train", path, "--out", "run", "--resume"]) == 4
    assert "model.sha256" in capsys.readouterr().err
    assert main(["evaluate", "run"]) == 4
    assert "mine.py has changed" in capsys.readouterr().err


def test_a_path_is_relative_to_its_recipe_and_that_of_an_override_to_the_current_folder(folder, monkeypatch, capsys):
    inside = folder / "inside"
    inside.mkdir()
    text = recipe(inside).read_text(encoding="utf-8")
    (inside / "mine.py").write_text("import sizes\n" + FILE.replace("size=4", "size=sizes.SIZE"))
    (inside / "sizes.py").write_text("SIZE = 4\n")
    assert main(["train", "inside/tiny.toml", "--out", "run", "--set", "train.updates=3"]) == 0
    elsewhere = folder / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    assert main(["train", "../inside/tiny.toml", "--out", "../run", "--set", "train.updates=3", "--resume"]) == 0
    assert main(["evaluate", "../run"]) == 0
    assert main(["train", "../run/recipe.toml", "--out", "again"]) == 0
    weights = [(path / "model" / "model.safetensors").read_bytes() for path in (folder / "run", elsewhere / "again")]
    assert weights[0] == weights[1]
    capsys.readouterr()
    make = ["--set", "model.make=../mine.py:make_model"]
    assert main(["train", "../inside/tiny.toml", *make, "--out", "other", "--set", "train.updates=3"]) == 0
    assert f'make = "{folder / "mine.py"}:make_model"' in (elsewhere / "other" / "recipe.toml").read_text()
    assert f'make = "{inside / "mine.py"}:make_data"' in (elsewhere / "other" / "recipe.toml").read_text()
    (inside / "sizes.py").write_text("SIZE = 5\n")
    capsys.readouterr()
    assert main(["evaluate", "../run"]) == 4
    assert "mine.py (or sizes.py, which it imports) has changed" in capsys.readouterr().err
    (elsewhere / "tiny.toml").write_text(text)
    assert main(["train", "tiny.toml", "--out", "none"]) == 2
    assert "mine.py cannot be read" in capsys.readouterr().err


def counted_at(text):
    return FILE.replace("state = self.cell(", text).split("if self.n")[0].count("\n")


@pytest.mark.parametrize("at", [0, 60])
@pytest.mark.parametrize(
    "line", ["raise ValueError('bad')", "raise SystemExit('bad')", "torch.zeros(2) @ torch.zeros(3)"]
)
def test_an_error_of_the_model_is_its_files(line, at, folder, capsys):
    counted = f"self.n = getattr(self, 'n', 0) + 1\n        if self.n > {at}: {line}\n        state = self.cell("
    (folder / "mine.py").write_text(FILE.replace("state = self.cell(", counted))
    assert main(["train", str(recipe(folder)), "--out", "run"]) == 2
    printed = capsys.readouterr().err
    raised = "ValueError" if "Value" in line else "SystemExit" if "System" in line else "RuntimeError"
    assert f"mine.py: step raised {raised}" in printed
    assert f"mine.py:{1 + counted_at(counted)} in step" in printed
    assert "fault in freerun" not in printed
    assert ('if __name__ == "__main__"' in printed) == ("SystemExit" in line)


def test_mistakes_are_named_by_line(folder, capsys):
    good = recipe(folder).read_text(encoding="utf-8")
    for old, new, words in (
        ("mine.py:make_data", "mine.py:make_date", "mine.py has no function make_date"),
        ("mine.py:make_model", "none.py:make_model", "none.py cannot be read"),
        ("mine.py:make_model", "mine.py:make_data", "must return a torch.nn.Module; got dict"),
        ('make = "mine.py:make_model"', "size = 3", "make must be FILE.py:FUNCTION"),
        ("[train]", "[train]\nbatch_size = 2", "batch_size counts batches here"),
    ):
        assert old in good
        (folder / "bad.toml").write_text(good.replace(old, new, 1))
        assert main(["train", "bad.toml", "--out", "bad"]) == 2
        assert words in capsys.readouterr().err
    assert main(["train", str(recipe(folder)), "--out", "run"]) == 0
    capsys.readouterr()
    assert main(["generate", "run", "--input", "mine.py"]) == 2
    assert "reads no lines" in capsys.readouterr().err
    assert main(["evaluate", "run", "--data", "mine.py"]) == 2
    assert "are in no file" in capsys.readouterr().err


EMULATOR = """
import freerun as fr
from torch import nn

def make_model(values, covariates, observed, size=8):
    return fr.models.OneStepMap(nn.Sequential(nn.Linear(values, size), nn.Tanh(), nn.Linear(size, values)))
"""


@pytest.mark.parametrize("method", [
    {"name": "pushforward", "horizon": {"schedule": "linear", "start": 1.0, "end": 5.0}},
    {"name": "multi_step", "horizon": {"schedule": "uniform", "low": 1, "high": 5}, "gradient": "checkpointed"},
    {"name": "generalised_teacher_forcing", "alpha": "running"},
    {"name": "replay_buffer", "share": 0.5, "capacity": 16, "age": 3},
    {"name": "gaussian_noise", "std": 0.01, "walk": "values"},
], ids=lambda method: method["name"])  # fmt: skip
def test_a_map_of_ones_own_emulates_a_system(folder, method, capsys):
    (folder / "map.py").write_text(EMULATOR)
    data = {"kind": "system", "system": "lorenz63", "past": 1, "horizon": 5, "windows": [64, 8, 8], "trajectories": 3}
    model = {"kind": "python", "make": "map.py:make_model"}
    train = {"updates": 6, "batch_size": 8, "evaluate_every": 3, "lr": 0.01}
    write(folder, toml(name="map", seed=1, data=data, model=model, method=method, train=train), "map.toml")
    assert main(["train", "map.toml", "--out", "run"]) == 0
    assert main(["check", "run"]) == 0
    assert main(["evaluate", "run"]) == 0
    capsys.readouterr()
    summary = json.loads((folder / "run" / "summary.json").read_text())
    assert summary["updates"] == 6
    assert summary["test"]["free_running"]["nrmse"] > 0
