"""What was fed in training is recorded as it was fed, and displayed with the entries in place of gold marked."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import freerun as fr
from browser import packed
from freerun import report
from freerun.batch import Batch
from freerun.gates import Token
from freerun.keys import fold
from freerun.methods import METHODS
from freerun.recipes import load_recipe
from freerun.recipes.train import build_data, build_task
from freerun.report.fed import fed_section
from simulated_runs import write_comparison
from tiny_recipes import TINY, write
from training_world import SMALL, make_method, make_model, make_task, signalled, train

KEY = fold(SMALL.seed, "train")
RATIO = 1.0 - 0.7 * 23 / 24


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("fed") / "run"
    train(folder)
    return folder


def test_a_run_records_the_histories_of_its_last_update(run):
    found = json.loads((run / "train-fed.json").read_text())
    task = make_task()
    pairs = list(task.data.splits["train"].flat())
    numbers = [n * len(pairs) // 12 for n in range(12)]
    assert (found["step"], found["sample"]) == (23, f"12 of {len(pairs)} training pairs, evenly spaced")
    assert found["teacher_forcing_ratio"] == pytest.approx(RATIO)
    assert [row["source"] for row in found["rows"]] == ["".join(pairs[n][0]) for n in numbers]
    assert [row["gold"] for row in found["rows"]] == [list(pairs[n][1]) for n in numbers]
    # by hand: the weights after the last update, the gate's mask, the loop's history
    model = make_model(task)
    model.load_state_dict(load_file(max((run / "checkpoints").glob("step-*")) / "model.safetensors"))
    batch = task.batch(numbers, torch.arange(12))
    keep = Token()(batch, RATIO, fold(KEY, "gate", 23))
    fed = make_method().transform(model.eval(), batch, 23, KEY).history
    symbols = ["(end)", *task.data.tokeniser.target.symbols]
    for n, row in enumerate(found["rows"]):
        own = [t for t in range(len(row["gold"])) if not keep[n, t]]
        assert [at for at, _ in row["fed"]] == own
        assert [entry for _, entry in row["fed"]] == [symbols[int(fed[n, t])] for t in own]
    changed_entries = [row["gold"][at] != entry for row in found["rows"] for at, entry in row["fed"]]
    assert True in changed_entries
    assert False in changed_entries  # entries in place of gold that equal it are recorded too


def test_a_stopped_run_records_the_same(run, tmp_path):
    from freerun.errors import StoppedError

    with pytest.raises(StoppedError):
        train(tmp_path / "run", task=signalled(30))
    assert not (tmp_path / "run" / "train-fed.json").exists()
    train(tmp_path / "run", resume=True)
    assert (tmp_path / "run" / "train-fed.json").read_bytes() == (run / "train-fed.json").read_bytes()


IDS = {
    "teacher_forcing": {}, "scheduled_sampling": {"teacher_forcing_ratio": 0.4}, "free_running": {},
    "two_pass": {"teacher_forcing_ratio": 0.4}, "parallel": {"teacher_forcing_ratio": 0.4},
    "token_noise": {"rate": 0.5}, "no_history": {}, "unlikelihood": {},
    "word_dropout": {"teacher_forcing_ratio": 0.5, "blank": 0}, "raml": {"tau": 0.8},
    "sentence_oracle": {"teacher_forcing_ratio": 0.4},
    "professor_forcing": {"size": 4},
    "consistency": {"teacher_forcing_ratio": 0.4},
    "dagger": {"expert": lambda batch, history: batch.targets},
}  # fmt: skip
VALUES = {
    "gaussian_noise": {"std": 0.5, "rate": 0.5}, "scheduled_sampling": {"teacher_forcing_ratio": 0.4},
    "generalised_teacher_forcing": {"alpha": 0.3}, "data_as_demonstrator_online": {}, "multi_step": {"horizon": 3},
    "replay_buffer": {"share": 0.5, "capacity": 8, "age": 2, "horizon": 3},
}  # fmt: skip


@pytest.mark.parametrize("name", [*(f"ids {each}" for each in IDS), *(f"values {each}" for each in VALUES)])
def test_a_fed_batch_knows_which_entries_were_replaced(name):
    kind, _, method = name.partition(" ")
    torch.manual_seed(0)
    ids = torch.randint(1, 5, (3, 6))
    batch = Batch(ids) if kind == "ids" else Batch(torch.randn(3, 6, 2))
    lm = fr.models.TransformerLM(5, size=8, heads=2, max_positions=8)
    model: Any = lm if kind == "ids" else (lambda each: torch.nn.functional.pad(each.history, (0, 0, 1, 0))[:, :-1] / 2)
    outcome = METHODS[method](**(IDS if kind == "ids" else VALUES)[method]).run(model, batch, 0, 7)
    differs = outcome.fed.history != batch.history[:, : outcome.fed.time]  # multi_step cuts to its horizon
    differs = differs if kind == "ids" else differs.any(-1)
    if method in ("teacher_forcing", "unlikelihood", "professor_forcing"):
        assert not bool(differs.any())
        return
    assert int(outcome.fed.replaced.sum()) == int(outcome.report["replaced"])
    assert not bool((differs & ~outcome.fed.replaced).any())
    part = outcome.fed.select(torch.tensor([2, 0]))
    assert torch.equal(part.replaced, outcome.fed.replaced[[2, 0]])


KINDS = {
    "system": 'kind = "system"\nsystem = "lorenz63"\npast = 8\nhorizon = 6\nwindows = [40, 8, 8]\ntrajectories = 4',
    "levels": 'kind = "system"\nsystem = "mackey_glass"\nlevels = 6\npast = 8\nhorizon = 6\nwindows = [40, 8, 8]\n'
    "trajectories = 4",
    "ring": 'kind = "ring"\nlength = 8\nwalks = [40, 8, 8]',
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_task_names_its_examples(kind, tmp_path):
    text = TINY.replace(TINY[TINY.index("kind") : TINY.index("\n[model]")], KINDS[kind])
    recipe = load_recipe(write(tmp_path, text), [])
    found = build_task(recipe, build_data(recipe.data, recipe.model)).examples(5)
    assert found.sample.startswith("5 of ")
    assert found.batch.size == len(found.sources) == 5
    if kind == "system":
        assert found.in_units is not None
        assert len(found.channels) == 3
    elif kind == "ring":
        assert list(found.decode([0, 2])) == ["0", "2"]
        assert len(found.sources[0].split()) == 8


def write_fed(out: Path, rows: list[dict[str, Any]], kind: str = "ids", channels: tuple[str, ...] = ()) -> None:
    for folder in (out / "runs").iterdir():
        own = [{**row, "fed": row["fed"] if folder.name.startswith("scheduled") else []} for row in rows]
        content = {"kind": kind, "step": 9, "sample": "2 of 9 rows", "teacher_forcing_ratio": 0.5, "channels": channels}
        (folder / "train-fed.json").write_text(json.dumps({**content, "rows": own}))


def test_the_page_has_what_each_arm_fed(tmp_path):
    write_comparison(tmp_path, words=20)
    rows = [
        {"source": "abc", "gold": ["A", "B", "C"], "fed": [[0, "A"], [2, "X"]]},
        {"source": "de", "gold": ["D", "E"], "fed": []},
    ]
    write_fed(tmp_path, rows)
    html = report.write(tmp_path).read_text()
    assert "2 of 9 rows: what each arm feeds them" in html
    assert "scheduled_sampling: update 10, teacher_forcing_ratio 0.5" in html
    found = packed(html, "fed")
    assert found["source"] == ["abc", "de"]
    own = next(run for run in found["runs"] if run["arm"] == "scheduled_sampling")
    assert (own["mode"], own["out"], own["own"], own["err"]) == ("fed", [["A", "B", "X"], 0], [[0, 2], []], [1, 0])
    gold = next(run for run in found["runs"] if run["arm"] == "teacher_forcing")
    assert (gold["out"], gold["own"], gold["err"]) == ([0, 0], [[], []], [0, 0])


def test_values_that_were_fed_are_drawn_beside_gold(tmp_path):
    results = write_comparison(tmp_path, words=20)
    gold = [[0.1 * t, -0.1 * t] for t in range(5)]
    write_fed(
        tmp_path,
        [{"source": "window 1", "gold": gold, "fed": [[1, [0.3, None]], [3, [0.7, 0.2]]]}],
        "values",
        ("u", "v"),
    )
    html = fed_section(results, tmp_path)
    assert "Window 1" in html
    assert "scheduled_sampling: 2 of 5 entries in place of gold" in html
    table = html[html.index("<tbody>") : html.index("</tbody>")]
    assert re.search(r">4<.*>0\.3<.*>0\.7<", table)  # position 4: gold 0.3, fed 0.7


def test_runs_without_the_file_have_no_section(tmp_path):
    results = write_comparison(tmp_path, words=20)
    assert fed_section(results, tmp_path) == ""
