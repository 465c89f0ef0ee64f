"""The map: its numbers against enumeration, its recipes, and a tiny one from its runs to its data file and figure."""

import csv
import importlib
import itertools
import math
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest
import torch
from scipy import stats

import freerun as fr
from builders import refused
from freerun.comparison.plan import plan
from freerun.data import Automaton, Observed, exact_error, random_automaton
from freerun.recipes import load_recipe

LABELS = random_automaton(3, 3, entropy=0.8, length=4, seed=1)
WORLD = Observed(LABELS, 0.5)


@pytest.fixture
def script(monkeypatch):
    """Imports a script as running it would."""
    monkeypatch.syspath_prepend(str(Path(__file__).parent.parent / "benchmarks"))
    return importlib.import_module


def joint(labels: tuple[int, ...], source: tuple[int, ...]) -> float:
    state, p = 0, 1.0
    for y, x in zip(labels, source, strict=True):
        p *= float(LABELS.emission[state, y]) * (0.5 if x == y else 0.25)
        state = int(LABELS.successor[state, y])
    return p


def test_answers_of_an_observed_automaton_equal_enumeration():
    sources = list(itertools.product(range(3), repeat=4))[::5]
    filtered, information = WORLD.filtered(torch.tensor(sources)), WORLD.information(torch.tensor(sources))
    for row, source in enumerate(sources):
        for t in range(4):
            law = {ys: joint(ys, source[: t + 1]) for ys in itertools.product(range(3), repeat=t + 1)}
            total = sum(law.values())
            now = [sum(p for ys, p in law.items() if ys[-1] == y) / total for y in range(3)]
            assert filtered[row, t].tolist() == pytest.approx(now, abs=1e-12)
            before = {ys: sum(law[(*ys, y)] for y in range(3)) for ys in itertools.product(range(3), repeat=t)}
            known = -sum(p / total * math.log(p / before[ys[:-1]]) for ys, p in law.items() if p)
            marginal = -sum(p * math.log(p) for p in now if p)
            assert float(information[row, t]) == pytest.approx(marginal - known, abs=1e-12)
            ys = next(ys for ys, p in law.items() if p)
            expected = [law[(*ys[:-1], y)] / before[ys[:-1]] for y in range(3)]
            found = WORLD.conditionals(torch.tensor([ys]), torch.tensor([source[: t + 1]]))[0, t]
            assert found.tolist() == pytest.approx(expected, abs=1e-12)


def test_impossible_worlds_are_refused(script):
    refused("right must", Observed, LABELS, 1.2)
    refused("at least 2 symbols", Observed, one_symbol(), 0.5)
    path = script("map_runs").RECIPES / "map/automaton.toml"
    refused(r"entropy must be below log\(symbols\)", load_recipe, path, ["data.entropy=1.4"])
    refused("walks must be three numbers", load_recipe, path, ["data.walks=[2,3]"])


def one_symbol() -> Automaton:
    return Automaton(torch.ones(1, 1), torch.zeros(1, 1).long())


def test_the_information_of_the_map_is_that_of_all_sequences(script):
    """Its mean over 512 walks against the sum over all 3^6 pairs of labels and source; four standard errors."""
    recipe = load_recipe(
        script("map_runs").RECIPES / "map/automaton.toml",
        ["data.states=3", "data.symbols=3", "data.entropy=0.8", "data.right=0.5", "data.length=3"],
    )
    world, words = recipe.data.world, list(itertools.product(range(3), repeat=3))
    assert script("map_measure")._entropy(recipe.data) == pytest.approx(0.8, abs=1e-9)
    sources = torch.tensor(words)
    each = world.information(sources).mean(1)
    shows = torch.where(sources[None] == sources[:, None], 0.5, 0.25).double().prod(2)  # (labels, sources)
    labels = world.automaton(fr.Batch(sources)).gather(2, sources[..., None])[..., 0].sum(1).exp()
    law = labels @ shows
    assert float(law.sum()) == pytest.approx(1.0, abs=1e-9)
    mean = float(law @ each)
    error = math.sqrt(float(law @ (each - mean).square()) / 512)
    assert script("map_measure")._information(recipe.data) == pytest.approx(mean, abs=4 * error)


def test_the_divergences_of_the_map_are_exact_ones_where_the_source_tells_nothing(script):
    """4,000 samples against dynamic programming; each of the 12 means within four standard errors."""
    model = random_automaton(4, 3, entropy=0.5, length=6, seed=2)
    world, length = Observed(LABELS, 1 / 3), 6
    batch = world.sample(4000, length)
    found = script("map_measure").oracle_errors(model, world, batch, key=0)
    exact = exact_error(LABELS, model, length)
    for sampled, expected in zip(found, (exact.own, exact.gold), strict=True):
        error = sampled.std(0) / math.sqrt(4000)
        assert ((sampled.mean(0) - expected).abs() <= 4 * error + 1e-9).all()


def test_rank_correlation_equals_scipys(script):
    x, y = torch.randint(5, (30,), generator=torch.Generator().manual_seed(0)), torch.arange(30) % 7
    found = script("map_measure").spearman(x.double(), y.double())
    assert found == pytest.approx(stats.spearmanr(x, y).statistic, abs=1e-12)
    rising = [(f"world {n // 3}", float(n), float(n**3)) for n in range(12)]
    interval = script("map_measure").rank_correlation(rising)
    assert (interval.value, interval.low, interval.high) == pytest.approx((1.0, 1.0, 1.0))


def test_every_point_has_all_arms_and_controls(script):
    runs, measure = script("map_runs"), script("map_measure")
    found = runs.points()
    assert len({each.name for each in found}) == len(found)
    for point in found:
        recipe = load_recipe(runs.RECIPES / point.recipe, point.overrides)
        assert len(plan(recipe.compare.arms, recipe.compare.seeds)) == 5 * len(recipe.compare.arms)
        families = measure._families(recipe)
        assert all(set(arms) == {"scheduled_sampling", *measure.CONTROLS} for arms in families.values()), point.name
        published = {"Mackey-Glass in levels": {0.2}, "pronunciation": {0.6}, "chorales": {0.0}, "ring showcase": {0.0}}
        assert set(families) == published.get(point.world, {0.0, 0.5}), point.world


def test_a_tiny_map_from_runs_to_data_file_and_figure(script, tmp_path, capsys):
    # so many updates that the falling ratio replaces entries
    tiny = ["train.updates=8", "train.batch_size=16", "data.walks=[32, 6, 8]"]
    arguments = [str(tmp_path), "--only", "automaton-0.7-0.25-4", "--seeds", "1", "--workers", "4", "--set", *tiny]
    script("map").main(arguments)
    tables = capsys.readouterr().out
    runs = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*/runs/*/summary.json")}
    assert len(runs) == 8
    with (tmp_path / "map.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {(row["ratio"], row["arm"], row["seed"]) for row in rows} == set(
        itertools.product(("0", "0.5"), ("scheduled_sampling", *script("map_measure").CONTROLS), ("0", "all"))
    )
    by = {(row["ratio"], row["arm"]): row for row in rows if row["seed"] == "0"}
    for (ratio, arm), row in by.items():
        own = by[ratio, "scheduled_sampling"]
        assert float(row["cost"]) == pytest.approx((1 - float(ratio)) * float(row["information"]), rel=1e-4)
        assert float(row["ex_acc_err"]) == pytest.approx(
            100 * (float(row["own_nats"]) / float(row["gold_nats"]) - 1), rel=1e-3, abs=1e-2
        )
        if arm != "scheduled_sampling":
            assert float(row["gain"]) == pytest.approx(float(row["wrong"]) - float(own["wrong"]), abs=1e-3)
    svg = ElementTree.parse(tmp_path / "map.svg").getroot()
    assert svg.tag.endswith("svg")
    assert "| automaton 0.7/0.25 | 4 |" in tables

    script("map").main(arguments)  # finished runs stay
    assert {path: path.stat().st_mtime_ns for path in runs} == runs
    assert capsys.readouterr().out == tables
    drawn = tmp_path / "again.svg"
    script("map").main(["--draw", str(tmp_path / "map.csv"), str(drawn)])
    assert drawn.read_bytes() == (tmp_path / "map.svg").read_bytes()


def test_mistakes_at_the_map_are_answered_in_a_line(script, tmp_path, capsys):
    other = tmp_path / "other.csv"
    other.write_text("a,b\n1,2\n")
    for arguments, words in (
        (["--draw", str(tmp_path / "none.csv"), str(tmp_path / "a.svg")], "none.csv"),
        (["--draw", str(other), str(tmp_path / "a.svg")], "other.csv"),
        ([str(tmp_path / "out"), "--only", "ring-0.9-4", "--set", "model.siz=3"], "siz"),
        ([str(tmp_path / "out"), "--only", "ring-0.9-4", "--seeds", "0"], "seeds"),
    ):
        with pytest.raises(SystemExit) as ended:
            script("map").main(arguments)
        assert ended.value.code == 2
        assert words in capsys.readouterr().err
