"""Symbols position by position: levels, labels, their naive rows and their scores, each against a naive loop."""

import json
from collections import Counter

import numpy as np
import pytest
import torch

import freerun as fr
from builders import lively, ragged, refused, write_csv
from freerun.data import SeriesOptions, SystemOptions, chorales, load_system, series_from_arrays
from freerun.data.symbols import LabelCodec, LabelData, quantised
from freerun.data.worlds import StickyRing
from freerun.diagnostics.naive import fit_ngram
from freerun.models import RecurrentLabeller
from freerun.recipes import load_recipe
from freerun.recipes.load import load_run
from freerun.tasks import task_of
from freerun.tasks.symbols import LabelTask, LevelTask, Rows, evaluate_symbols
from tiny_recipes import ends, toml, write

SYSTEM = {"kind": "system", "system": "mackey_glass", "levels": 5, "past": 6, "horizon": 4, "every": 2}
TINY = toml(
    name="tiny",
    data={**SYSTEM, "windows": [40, 10, 12], "trajectories": 4},
    model={"kind": "recurrent", "size": 8},
    method={"name": "scheduled_sampling", "teacher_forcing_ratio": 0.5},
    train={"updates": 4, "batch_size": 8, "evaluate_every": 2, "save_every": 4},
)


def walk(rows: int = 400, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(rows, 1)).cumsum(0)


def level_data(levels: int = 5, binning: str = "quantiles", raw: np.ndarray | None = None):
    options = SeriesOptions(past=6, horizon=4, split=(200, 100, 100))
    return quantised(series_from_arrays(walk() if raw is None else raw, options), levels, binning)


@pytest.mark.parametrize("binning", ["quantiles", "width"])
def test_levels_equal_a_naive_loop(binning):
    data, values = level_data(binning=binning), walk()[:, 0]
    mean, std = values[:200].mean(), values[:200].std()
    for split, first, count in (("train", 0, 191), ("test", 294, 97)):
        rows = data.rows(split, range(count))
        for n in range(count):
            window = np.float32((values[first + n : first + n + 10] - mean) / std)
            expected = [sum(value > np.float32(edge) for edge in data.codec.edges) for value in window]
            assert rows.context["source"][n].tolist() == expected[:6]
            assert rows.targets[n].tolist() == expected[6:]
    assert torch.equal(data.batch([3, 9]).targets, data.rows("train", [3, 9]).targets)
    assert data.frequencies == tuple(data.rows("train", range(191)).targets.eq(n).sum().item() for n in range(5))


def test_levels_are_chosen_on_the_training_part_alone():
    """Other values of dev and test move no bound; equally frequent and equally wide mean that on the training part."""
    far = walk()
    far[200:] *= 50
    for binning in ("quantiles", "width"):
        assert level_data(binning=binning, raw=far).codec == level_data(binning=binning).codec
    train = level_data(4).rows("train", range(191))
    shares = torch.bincount(torch.cat([train.context["source"], train.targets], 1).flatten()) / (191 * 10)
    assert shares.sub(0.25).abs().max() < 0.01
    assert np.ptp(np.diff(level_data(binning="width").codec.edges)) < 1e-6
    codec = level_data(binning="width").codec
    values = codec.values(torch.arange(5))
    assert torch.equal(codec.levels(((values - walk()[:200].mean()) / walk()[:200].std()).float()), torch.arange(5))


def test_every_takes_rows_out_of_the_same_trajectory():
    options = {"past": 3, "horizon": 2, "windows": (4, 2, 2), "trajectories": 4, "normalisation": "none"}
    data = load_system("mackey_glass", SystemOptions(every=3, **options))
    steps = data.raw.shape[0] // 4
    all_rows = fr.data.SYSTEMS["mackey_glass"]().simulate(4, 3 * steps, 0)
    assert torch.equal(data.raw.view(4, steps), torch.tensor(all_rows[:, ::3, 0].copy()))
    assert data.codec.step == "3 units"
    assert data.exponent == pytest.approx(3 * 0.006)


def ngram_loop(sequences: list[list[int]], order: int, context: list[int]) -> int:
    """The most frequent follower of the longest known context; of equal ones the smallest."""
    for length in range(order - 1, -1, -1):
        if length > len(context):
            continue
        tail = context[len(context) - length :]
        found = Counter(
            row[t] for row in sequences for t in range(1, len(row)) if t >= length and row[t - length : t] == tail
        )
        if found:
            return min(found, key=lambda symbol: (-found[symbol], symbol))
    raise AssertionError


@pytest.mark.parametrize("order", [1, 2, 4])
def test_ngram_equals_counting_by_hand(order):
    g = torch.Generator().manual_seed(1)
    rows = torch.randint(3, (12, 15), generator=g)
    ngram = fit_ngram(rows[:, :-1], rows[:, 1:], torch.ones(12, 14, dtype=torch.bool), order)
    past = torch.randint(3, (20, 5), generator=g)
    expected = []
    for row in past.tolist():
        for _ in range(6):
            row.append(ngram_loop(rows.tolist(), order, row))
        expected.append(row[5:])
    assert ngram.go_on(past, 6).tolist() == expected
    refused("are too many to count", fit_ngram, rows[:, :-1], rows[:, 1:], rows[:, 1:] >= 0, 60)


def labels(count: int = 30, time: int = 7, seed: int = 0) -> LabelData:
    """Labels that are the symbol before last, of ragged rows."""
    g = torch.Generator().manual_seed(seed)
    codec, splits = LabelCodec(tuple("abcd"), tuple("WXYZ")), {}
    for split in ("train", "dev", "test"):
        rows = [torch.randint(4, (time - n % 3,), generator=g).tolist() for n in range(count)]
        splits[split] = [(row, [0, *row[:-1]]) for row in rows]
    exact = lambda source: torch.cat([torch.zeros_like(source[:, :1]), source[:, :-1]], 1)  # noqa: E731
    return LabelData(splits, codec, "before last", exact=exact)


def test_label_batches_and_naive_rows_equal_the_lists():
    data = labels()
    batch = data.batch([0, 1, 5])
    for row, n in enumerate([0, 1, 5]):
        observed, target = data.splits["train"][n]
        assert batch.context["source"][row, : len(observed)].tolist() == list(observed)
        assert batch.targets[row][batch.mask[row]].tolist() == list(target)
        assert batch.replaceable[row].sum() == len(target) - 1
    scored = LabelTask(data).scored("test")
    assert set(scored.naive) == {"most_frequent", "ngram", "exact"}
    found = evaluate_symbols(lively(RecurrentLabeller(4, 4, size=8)), scored)
    assert found.free_running["exact_token_error"] == 0
    for item, (observed, target) in zip(found.items, data.splits["test"], strict=True):  # names, not numbers
        assert item["prompt"] == " ".join(data.codec.source[n] for n in observed)
        assert item["references"] == [" ".join(data.codec.target[n] for n in target)]
        assert len(item["output"].split()) == len(target)
    assert found.curves["ngram"][1:] == [0.0] * 6  # two symbols decide, where there are two
    assert found.free_running["most_frequent_token_error"] > 50
    problem = "sequence 1 must have one label a position"
    refused(f"split train: {problem}", LabelData, {**data.splits, "train": [([0, 1], [1])]}, data.codec)


def test_scores_equal_a_naive_loop():
    """Every count of every row, position by position, against an argmax loop of the model's own steps."""
    data = level_data()
    model = fr.models.RecurrentSeq2Seq(5, 5, size=8)
    lively(model)
    task = LevelTask(data, items=7)
    found = evaluate_symbols(model, task.scored("dev"))
    chosen = [n * 97 // 7 for n in range(7)]
    batch = data.rows("dev", chosen)
    for row in range(7):
        one, own = batch.select(torch.tensor([row])), []
        for t in range(4):
            history = torch.tensor([own + [0] * (4 - t)])
            own.append(int(model(one.replace(targets=history, history=history))[0, t].argmax()))
        forced = model(one)[0].argmax(-1)
        far = [abs(a - b) for a, b in zip(own, batch.targets[row].tolist(), strict=True)]
        assert found.items[row] == {
            "source": f"row {row}",
            "prompt": " ".join(map(str, batch.context["source"][row].tolist())),
            "output": " ".join(map(str, own)),
            "references": [" ".join(map(str, batch.targets[row].tolist()))],
            "free_errors": sum(each > 0 for each in far),
            "forced_errors": int((forced != batch.targets[row]).sum()),
            "positions": 4,
            "near": sum(each <= 1 for each in far),
            "distance": sum(far),
        }
    total = {name: sum(item[name] for item in found.items) for name in ("free_errors", "near", "distance")}
    assert found.free_running["token_error"] == pytest.approx(100 * total["free_errors"] / 28)
    assert found.free_running["within_one"] == pytest.approx(100 * total["near"] / 28)
    assert found.free_running["level_error"] == pytest.approx(total["distance"] / 28)
    assert len(found.curves["free_running"]) == 4
    assert sum(found.curves["free_running"]) / 4 == pytest.approx(found.free_running["token_error"])


def test_naive_rows_of_levels_equal_loops():
    data = level_data()
    naive, test = LevelTask(data).naive, data.rows("test", range(20))
    train = data.rows("train", range(191))
    past = test.context["source"]
    assert naive["last_value"](past, 4).tolist() == [[row[-1]] * 4 for row in past.tolist()]
    frequent = max(range(5), key=lambda n: data.frequencies[n])
    assert naive["most_frequent"](past, 4).tolist() == [[frequent] * 4] * 20

    def repeated(row: list[int], period: int) -> list[int]:
        return [row[6 - period + t % period] for t in range(4)]

    pairs = list(zip(train.context["source"].tolist(), train.targets.tolist(), strict=True))
    wrong = {
        p: sum(a != b for row, gold in pairs for a, b in zip(repeated(row, p), gold, strict=True)) for p in range(1, 7)
    }
    best = min(wrong, key=wrong.__getitem__)
    assert naive["cycle"](past, 4).tolist() == [repeated(row, best) for row in past.tolist()]


def test_labeller_equals_its_formula():
    """A GRU cell by hand over [symbol; label before], position by position; and it passes check_model."""
    torch.manual_seed(0)
    model, batch = lively(RecurrentLabeller(6, 5, size=8, embedding=3).double()), ragged(source_time=7)
    cell = torch.nn.GRUCell(6, 8).double()
    cell.load_state_dict(
        {name: getattr(model.layers, f"{name}_l0") for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")}
    )
    outputs = model(batch)
    for row in range(batch.size):
        state, label = torch.zeros(8).double(), model.start_vector
        for t in range(batch.time):
            state = cell(torch.cat([model.observed.weight[batch.context["source"][row, t]], label]), state)
            assert torch.allclose(model.out(state), outputs[row, t], rtol=0, atol=1e-12)
            label = model.embedding.weight[batch.history[row, t]]
    assert not fr.check_model(model, batch).refused
    short = batch.replace(context={name: part[:, :3] for name, part in batch.context.items()})
    refused("the source has 3 positions and the targets 7", model, short)
    state = model.start(batch)
    for t in range(batch.time):
        state = model.step(state, model.embed(batch.history[:, t]))
    refused("a label at position 8 was requested", model.output, state)
    refused(["size must be at least 1; got 0", "dropout must lie in [0, 1); got 1.0", "cell must be one of"],
            RecurrentLabeller, 4, 4, size=0, dropout=1.0, cell="elman")  # fmt: skip


def test_recipes_with_levels_are_another_kind_of_task(tmp_path):
    recipe = load_recipe(write(tmp_path, TINY))
    assert task_of(recipe.data) is LevelTask
    assert recipe.train.select == "token_error"
    assert task_of({"kind": "series", "levels": 9}) is LevelTask
    assert task_of({"kind": "system"}) is task_of("series")
    cases = {
        "data.levels=1": "`levels` must be at least 2; got 1",
        "data.warmup_loss=true": "warmup_loss has no effect with levels",
        "model.kind=recurrent_forecaster": "got [data] kind 'system' with levels = 5",
        "data.binning=log": "`binning` must be one of quantiles, width",
        "train.select=nrmse": "`select` must be one of token_error, within_one, level_error",
    }
    for override, message in cases.items():
        refused([message], load_recipe, write(tmp_path, TINY), [override])
    text = TINY.replace("levels = 5\n", 'binning = "width"\n').replace('kind = "recurrent"', 'kind = "article"')
    refused("binning has no effect without levels", load_recipe, write(tmp_path, text))


def test_what_cannot_be_levels_is_refused():
    options = SeriesOptions(past=6, horizon=4, split=(200, 100, 100))
    two = series_from_arrays(walk().repeat(2, 1) * [1, 2], options, names=("a", "b"))
    refused("levels are of one channel, and the series has 2: a, b", quantised, two, 5)
    coarse = np.round(walk() / 20)
    refused("levels = 9: the training values are too often equal", level_data, 9, raw=coarse)
    assert len(level_data(9, "width", raw=coarse).codec.edges) == 8
    model = fr.models.RecurrentSeq2Seq(5, 5, size=8)
    refused("split must be dev or test; got 'train'", LevelTask(level_data()).evaluate, model, "train")


def test_every_command_works_on_levels(tmp_path, capsys):
    run = tmp_path / "run"
    scores, header = ends(capsys, 0, "train", write(tmp_path, TINY), "--out", run)
    assert "levels: 5, equally frequent in the training part" in header
    assert all(name in scores for name in ("last value", "most frequent", "cycle", "n-gram"))
    score = json.loads(ends(capsys, 0, "evaluate", run)[0])
    assert score["levels"] == 5
    assert score["free_running"]["ngram_within_one"] > 50
    table = write_csv(tmp_path / "past.csv", [f"{0.9 + 0.1 * (n % 7):.2f}" for n in range(12)], "x")
    lines = ends(capsys, 0, "generate", run, "--input", table)[0].splitlines()
    assert lines[0] == "lead,level,x"
    codec = load_run(run).codec
    values = codec.values(torch.arange(5)).tolist()
    assert all(float(line.split(",")[2]) == pytest.approx(values[int(line.split(",")[1])]) for line in lines[1:])
    assert json.loads(ends(capsys, 0, "evaluate", run, "--data", table)[0])["windows"] == 3
    ends(capsys, 0, "check", run)
    ends(capsys, 0, "diagnose", run)
    assert json.loads((run / "diagnosis.json").read_text())["diagnosis"]["positions"] == 4


def test_labels_of_lines_and_files(tmp_path):
    """What the commands call, on a model in memory: output beside its line, and a file's own scores."""
    data, model = labels(), lively(RecurrentLabeller(4, 4, size=8)).eval()
    task, settings = LabelTask(data), LabelTask(data).settings
    lines = ["a b c d a", "d", "c c"]
    out = task.generate_lines(model, data.codec, settings, lines)
    assert [len(line.split()) for line in out] == [5, 1, 2]
    for line, own in zip(lines, out, strict=True):  # alone as beside others
        assert task.generate_lines(model, data.codec, settings, [line]) == [own]
    problems = [
        "1: source symbols never seen in training: q; seen are a b c d",
        "2: the line is empty; expected observed symbols with blanks between them",
    ]
    found = task.line_problems(model, data.codec, settings, ["a q", ""], ["1", "2"])
    assert [problem for each in found for problem in each] == problems
    from freerun.data.files import DataFile

    path = write_csv(tmp_path / "labels.txt", [f"{line}\t{own}" for line, own in zip(lines, out, strict=True)])
    facts, scores = task.score(model, data.codec, settings, None, DataFile(path))
    assert facts["sequences"] == 3
    assert scores.free_running["token_error"] == 0
    path.write_text("a b\tW\na\nb\tW\n")
    bad = ["2 observed symbols and 1 labels", "1 observed symbols and 0 labels"]
    refused(bad, task.score, model, data.codec, settings, None, DataFile(path))
    assert Rows(3, data.batch, False, {}).count == 3
    assert LabelCodec.from_description(data.codec.describe()) == data.codec
    assert task.trial_batch(data.codec, 3).mask.sum(1).tolist() == [5, 6, 7]


def test_chorales_are_what_music21_reads():
    """Soprano and bass of some chorales - ties, triplets, several voices - against music21's own parser."""
    from music21 import corpus

    folder, _ = chorales._scores()
    for name in ("bwv66.6", "bwv10.7", "bwv248.59-s", "bwv365", "bwv431"):
        if not (folder / f"{name}.mxl").exists():
            continue
        found = chorales.read_score(folder / f"{name}.mxl")
        score = corpus.parse(f"bach/{name}")
        parts = [part for part in score.parts if part.partName in ("Soprano", "Bass")]
        for own, part, choose in zip(found, parts, (max, min), strict=True):
            expected = []
            notes = list(part.flatten().notesAndRests)
            for t in range(len(own)):
                at = t / 4
                now = [n for n in notes if n.offset <= at + 1e-9 < n.offset + n.quarterLength]
                pitches = [pitch.midi for n in now for pitch in n.pitches]
                expected.append(str(choose(pitches)) if pitches else "r")
            assert own == expected, name
    data = load_recipe("chorales").data.load_symbols()
    assert "364 chorales in pieces of 64 sixteenths" in data.notes[0]
    names = {split: len(each) for split, each in data.splits.items()}
    assert (sum(names.values()), names["train"]) == (1353, 1065)


def test_scores_that_are_no_scores_are_refused(tmp_path, monkeypatch):
    bad = tmp_path / "bwv1.mxl"
    bad.write_bytes(b"no archive")
    refused("bwv1.mxl: is no compressed MusicXML", chorales.read_score, bad)

    def missing(name):
        raise chorales.PackageNotFoundError(name)

    monkeypatch.setattr(chorales, "distribution", missing)
    refused(["data of kind chorales needs music21: pip install 'freerun[music]'"], chorales.load_chorales, 65)


def test_ring_has_its_walks_and_its_exact_filter():
    data = load_recipe("ring", ["data.walks=[20,10,400]"]).data.load_symbols()
    scored = LabelTask(data).scored("test")
    walks = StickyRing().sample(400, 60, seed=fr.keys.fold(0, "test"))
    batch = scored.make(list(range(400)))
    assert torch.equal(batch.targets, walks.targets)
    assert torch.equal(batch.context["source"], walks.context["source"])
    best = scored.naive["exact"](batch.context["source"], 60)
    assert torch.equal(best, StickyRing().filtered(batch.context["source"]).argmax(2))
    assert 100 * float((best == batch.targets).double().mean()) == pytest.approx(64.9, abs=1.5)
    refused("walks must be three numbers", load_recipe, "ring", ["data.walks=[2,3]"])


def test_a_table_becomes_levels_too(tmp_path):
    """A CSV file with a season: its own period is the cycle that is repeated."""
    lines = [f"{n // 3},{[1.0, 2.0, 5.0, 3.0][n % 4]}" for n in range(120)]
    path = write_csv(tmp_path / "load.csv", lines, "hour,load")
    series = {"kind": "series", "path": str(path), "targets": ["load"], "levels": 4, "past": 6, "horizon": 5}
    recipe = load_recipe(write(tmp_path, toml(name="csv", data={**series, "period": 4}, method={"name": "no_history"})))
    data = recipe.data.load_symbols()
    assert data.rows("test", [0]).context["source"].tolist() == [[3, 2, 0, 1, 3, 2]]
    scores = evaluate_symbols(fr.models.RecurrentSeq2Seq(4, 4, size=8), LevelTask(data).scored("test")).free_running
    assert scores["cycle_token_error"] == 0
    assert scores["ngram_token_error"] == 0
    assert scores["last_value_token_error"] > 50
    refused(["path` is missing"], load_recipe, write(tmp_path, toml(data={"kind": "series", "levels": 4})))
