"""The controls of a comparison by their words: what they feed, against naive loops; what runs record; recipes."""

import json
from collections import Counter, defaultdict

import pytest
import torch
from scipy import stats

import freerun as fr
from builders import ragged, raises, refused, seq2seq
from freerun.comparison.plan import plan, roles
from freerun.keys import fold, uniform
from freerun.methods import ErrorLaw, WithoutHistory
from freerun.methods.controls import BLOCK, own_errors, refuse_no_history
from freerun.recipes import load_recipe, recipe_table
from freerun.recipes.fields import measured, measured_law
from freerun.recipes.load import diagnose_run, evaluate_run, load_run
from freerun.recipes.train import run_recipe
from tiny_recipes import ends, toml, write

OWN = {"label": "own", "method": {"name": "scheduled_sampling", "teacher_forcing_ratio": 0.3}}
WORDS = ("matched", "confusion", "equal_cost", "equal_seconds", "no_history")
RING = {
    "name": "tiny",
    "data": {"kind": "ring", "walks": [24, 6, 8], "length": 6},
    "model": {"kind": "recurrent_labeller", "size": 8},
    "train": {"updates": 5, "batch_size": 4, "evaluate_every": 5, "save_every": 5},
}


def arms(*words: str, **more):
    listed = [{"method": "teacher_forcing"}, OWN, *({"control": word} | more for word in words)]
    return {"seeds": [0], "arms": listed}


def records(updates: int, seed: int = 0, symbols: int = 5) -> list[list[dict]]:
    """Records of so many updates of two micro-batches each, of random confusions."""
    g = torch.Generator().manual_seed(seed)
    made = []
    for _ in range(updates):
        pairs = [torch.randint(symbols, (6, 2), generator=g) for _ in range(2)]
        counts = [torch.randint(1, 9, (6, 1), generator=g) for _ in range(2)]
        made.append(
            [{"kind": "symbols", "width": 3, "flat": torch.cat(both, 1).flatten().tolist()}
             for both in zip(pairs, counts, strict=True)]
        )  # fmt: skip
    return made


def test_what_is_recorded_equals_counting_by_hand():
    batch, g = ragged(), torch.Generator().manual_seed(1)
    history = torch.where(torch.rand(4, 7, generator=g) < 0.5, torch.randint(5, (4, 7), generator=g), batch.history)
    counted = Counter(
        (gold, own)
        for golds, owns, there in zip(batch.history.tolist(), history.tolist(), batch.replaceable.tolist(), strict=True)
        for gold, own, counts in zip(golds, owns, there, strict=True)
        if gold != own and counts
    )
    flat = own_errors(batch, history)["flat"]
    assert {(a, b): n for a, b, n in zip(flat[::3], flat[1::3], flat[2::3], strict=True)} == counted
    values = fr.Batch(torch.arange(24.0).view(3, 4, 2))
    off = values.history.clone()
    off[0, 2] += torch.tensor([1.0, 2.0])
    off[1, 0, 1] -= 3.0
    off[2] += 1.0  # the third row is not recorded
    found = own_errors(values, off)
    assert (found["kind"], found["width"], found["flat"]) == ("values", 3, [2.0, 1.0, 2.0, 0.0, 0.0, -3.0])
    refused(["the method feeds a history (4, 3), and gold has (4, 7)"], own_errors, batch, history[:, :3])


def test_confusion_noise_equals_a_naive_loop():
    """Entry by entry: its gate, its block, a walk along the counts of its gold symbol."""
    made = records(2 * BLOCK + 3)
    law, by_block, whole = ErrorLaw.of(made), defaultdict(list), defaultdict(list)
    for step, update in enumerate(made):
        for record in update:
            for gold, own, count in zip(*(record["flat"][n::3] for n in range(3)), strict=True):
                by_block[step // BLOCK, gold].append((own, count))
                whole[gold].append((own, count))
    batch = ragged()
    assert len(law.blocks) == 3
    for step in (0, 30, 52, 400):
        fed = fr.confusion_noise(0.7, law).transform(seq2seq(), batch, step=step, key=9)
        keep = fr.gates.Token()(batch, 1 - 0.7, fold(9, "gate", step))
        for row in range(batch.size):
            for t in range(batch.time):
                gold = int(batch.history[row, t])
                expected = gold
                if batch.replaceable[row, t] and not keep[row, t]:
                    rows = by_block.get((min(step // BLOCK, 2), gold)) or whole.get(gold, [(gold, 1)])
                    u = float(uniform(fold(9, "confusion", step), batch.row_numbers[row], torch.tensor(t)))
                    level, total = u * sum(count for _, count in rows), 0
                    for own, count in rows:
                        total += count
                        expected = own
                        if level < total:
                            break
                assert int(fed.history[row, t]) == expected
        assert torch.equal(fed.targets, batch.targets)


def test_a_block_without_a_symbol_takes_the_whole_run_and_then_gold():
    updates = [[{"kind": "symbols", "width": 3, "flat": [1, 2, 1]}]] * BLOCK
    updates += [[{"kind": "symbols", "width": 3, "flat": [3, 0, 4]}]] * BLOCK
    law, u = ErrorLaw.of(updates), torch.full((3,), 0.5)
    given = torch.tensor([1, 3, 4])
    assert law.draw(0, given, u).tolist() == [2, 0, 4]
    assert law.draw(BLOCK, given, u).tolist() == [2, 0, 4]
    empty = ErrorLaw.of([[{"kind": "symbols", "width": 3, "flat": []}]])
    assert empty.draw(0, given, u).tolist() == [1, 3, 4]
    assert ErrorLaw().draw(0, given, u).tolist() == [1, 3, 4]


def test_the_law_of_the_draws_is_the_counted_one():
    """60,000 draws by chi-square for each gold symbol; each of five tests fails by chance once in 10,000."""
    made = records(BLOCK, seed=3)
    law = ErrorLaw.of(made)
    counts = defaultdict(Counter)
    for update in made:
        for record in update:
            for gold, own, count in zip(*(record["flat"][n::3] for n in range(3)), strict=True):
                counts[gold][own] += count
    ids = torch.arange(5).repeat(12_000, 5)[:, :5]
    fed = fr.confusion_noise(1.0, law).transform(seq2seq(), fr.Batch(ids), step=3, key=1).history
    for gold in range(5):
        drawn = torch.bincount(fed[:, gold], minlength=5).tolist()
        total = sum(counts[gold].values())
        kinds = [v for v in range(5) if counts[gold][v]]
        assert sum(drawn[v] for v in kinds) == 12_000
        expected = [12_000 * counts[gold][v] / total for v in kinds]
        assert stats.chisquare([drawn[v] for v in kinds], expected).pvalue > 1e-4


def test_confusion_noise_of_values_adds_residuals_of_the_same_lead_time():
    flat = [[0.0, 10.0 * n, 1.0, 2.0, -10.0 * n, -1.0] for n in range(1, 2 * BLOCK + 1)]
    law = ErrorLaw.of([[{"kind": "values", "width": 3, "flat": each}] for each in flat])
    values = fr.Batch(torch.zeros(2000, 3, 2))
    off = fr.confusion_noise(1.0, law).transform(lambda batch: batch, values, step=30, key=4).history
    assert not off[:, 1].any()  # no residual at that position
    assert set(off[:, 0, 0].tolist()) == {10.0 * n for n in range(BLOCK + 1, 2 * BLOCK + 1)}
    assert set(off[:, 0, 1].tolist()) == {1.0}
    assert set(off[:, 2, 1].tolist()) == {-1.0}
    share = off[:, 0, 0].unique(return_counts=True)[1] / 2000
    # 25 residuals, 80 rows each; a share strays by 0.02 once in 10,000
    assert (share - 1 / BLOCK).abs().max() < 0.02
    refused("a law of values, and these targets are symbols", fr.confusion_noise(1.0, law), seq2seq(), ragged(), step=0)
    refused("law must be an ErrorLaw", fr.confusion_noise, 0.5, 3)
    mixed = [[{"kind": "values", "width": 3, "flat": []}, {"kind": "symbols", "width": 3, "flat": []}]]
    refused("must all be of one kind", ErrorLaw.of, mixed)


def test_a_run_records_its_own_errors_and_nothing_else_changes(tmp_path):
    """Whole batches and micro-batches have the same counts; the record is what the run fed; a plain run has none."""
    recipe = {**RING, "method": OWN["method"]}
    found = {}
    for name, train in {
        "plain": {},
        "whole": {"record_errors": True},
        "cut": {"record_errors": True, "accumulate": 2},
    }.items():
        text = toml(**{**recipe, "train": recipe["train"] | train})
        run_recipe(load_recipe(write(tmp_path, text)), tmp_path / name, progress=False)
        lines = [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        found[name] = [line for line in lines if line["event"] == "update"]
    assert "errors" not in found["plain"][0]
    assert [line["loss"] for line in found["plain"]] == [line["loss"] for line in found["whole"]]
    for whole, cut in zip(found["whole"], found["cut"], strict=True):
        sums = []
        for line in (whole, cut):
            counter = Counter()
            for record in line["errors"]:
                for gold, own, count in zip(*(record["flat"][n::3] for n in range(3)), strict=True):
                    counter[gold, own] += count
            sums.append(counter)
            assert sum(counter.values()) == line["disagreeing"]
        if whole["disagreeing"] == cut["disagreeing"]:
            assert sums[0] == sums[1]
    law = measured_law(tmp_path / "whole" / "metrics.jsonl")
    assert law.blocks[0][:, 2].sum() == sum(line["disagreeing"] for line in found["whole"])
    assert (
        measured(tmp_path / "whole" / "metrics.jsonl").values[2]
        == found["whole"][2]["disagreeing"] / found["whole"][2]["eligible"]
    )
    raises(ValueError, "must be trained with record_errors = true", measured_law, tmp_path / "plain" / "metrics.jsonl")
    text = toml(**{**RING, "method": {"name": "confusion_noise", "rate": 0.2,
                                      "law": {"measured": str(tmp_path / "whole" / "metrics.jsonl")}}})  # fmt: skip
    assert repr(law) in run_recipe(load_recipe(write(tmp_path, text)), tmp_path / "noise", progress=False)["signature"]


def test_no_history_feeds_the_same_everywhere_and_is_used_so():
    """Loss of a naive loop over zeros; a deployed model moves with no history; prompts stay."""
    model, batch = seq2seq("gru"), ragged()
    zeros = batch.replace(history=torch.where(batch.replaceable, 0, batch.history))
    assert torch.equal(fr.no_history()(model, batch, step=0), fr.teacher_forcing()(model, zeros, step=0))
    deployed = fr.no_history().deployed(model)
    other = batch.replace(history=(batch.history + 1) % 5)
    assert torch.equal(deployed(batch)[batch.mask], deployed(other)[batch.mask])
    assert deployed.settings() == model.settings()
    assert fr.no_history().deployed(deployed) is deployed
    assert fr.teacher_forcing().deployed(model) is model
    own = fr.generate(deployed, batch, length=7).entries
    assert torch.equal(own[batch.mask], deployed(batch).argmax(-1)[batch.mask])
    values = fr.Batch(torch.ones(2, 3, 1), eligible=torch.tensor([[False, True, True]] * 2))
    assert fr.no_history().transform(lambda b: b, values, step=0).history[0, :, 0].tolist() == [1.0, 0.0, 0.0]


def test_a_run_without_history_is_loaded_without_history(tmp_path, capsys):
    recipe = load_recipe(write(tmp_path, toml(**{**RING, "method": {"name": "no_history"}})))
    summary = run_recipe(recipe, tmp_path / "run", progress=False)
    test = summary["test"]
    assert test["free_running"]["token_error"] == test["teacher_forced"]["token_error"]
    run = load_run(tmp_path / "run")
    assert isinstance(run.model, WithoutHistory)
    again = evaluate_run(run)
    assert again["free_running"] == pytest.approx(test["free_running"])
    diagnosis = diagnose_run(run)["diagnosis"]
    assert diagnosis["free_running"]["wrong_by_position"] == diagnosis["teacher_forced"]["wrong_by_position"]
    (tmp_path / "in.txt").write_text("0 1 2\n")
    assert len(ends(capsys, 0, "generate", tmp_path / "run", "--input", tmp_path / "in.txt")[0].split()) == 3


def test_arms_by_a_word_become_methods(tmp_path):
    recipe = load_recipe(write(tmp_path, toml(**RING, compare=arms(*WORDS))))
    found = {arm.label: arm for arm in recipe.compare.arms}
    assert found["matched"].method.parameters == {"rate": {"matched_to": "own"}, "exclude_gold": True}
    assert found["confusion"].method.parameters == {"rate": {"matched_to": "own"}, "law": {"matched_to": "own"}}
    assert [found[word].method.name for word in ("equal_cost", "equal_seconds", "no_history")] == [
        "teacher_forcing", "teacher_forcing", "no_history"
    ]  # fmt: skip
    assert {label: (role.name, role.of) for label, role in roles(recipe.compare.arms).items()} == {
        "teacher_forcing": ("baseline", None), "own": ("method", None),
        **{word: (f"control:{word}", "own") for word in WORDS},
    }  # fmt: skip
    assert [run.name for run in plan(recipe.compare.arms, [0]) if run.after] == [
        "matched-0", "confusion-0", "equal_cost-0", "equal_seconds-0"
    ]  # fmt: skip
    assert recipe_table(recipe)["compare"]["arms"][3]["of"] == "own"
    values = {
        "name": "v",
        "data": {"kind": "system", "windows": [8, 4, 4], "trajectories": 4, "past": 4, "horizon": 3},
        "model": {"kind": "recurrent_forecaster", "size": 4},
        "train": {"updates": 2},
        "compare": arms("matched"),
    }
    matched = load_recipe(write(tmp_path, toml(**values))).compare.arms[2].method
    assert matched.name == "gaussian_noise"
    assert set(matched.parameters) == {"std", "rate"}


WRONG = {
    "word": (
        arms("confused"),
        "`control` must be one of matched, confusion, equal_cost, equal_seconds, no_history; got 'confused'",
    ),
    "of": (
        arms("matched", of="gold"),
        "`of` must be the label of an arm that feeds the model's own outputs; got 'gold'",
    ),
    "none": ({"seeds": [0], "arms": [{"method": "teacher_forcing"}, {"control": "confusion"}]}, "; there is none"),
    "two": ({"seeds": [0], "arms": [OWN, OWN | {"label": "b"}, {"control": "matched"}]}, "own, b do"),
    "both": ({"seeds": [0], "arms": [OWN, {"control": "matched", "method": "teacher_forcing"}]}, "or a `control`"),
    "alone": ({"seeds": [0], "arms": [OWN | {"of": "own"}]}, "this arm has no `control`"),
    "lengths": (
        {"seeds": [0], "arms": [{"label": "o", "method": {"name": "optimal_completion"}}, {"control": "confusion"}]},
        "runs of 'o' are of their own lengths, so no entry of theirs stands in place of gold's",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_controls_are_named_by_line(case, tmp_path):
    compare, message = WRONG[case]
    refused([message], load_recipe, write(tmp_path, toml(**RING, compare=compare)))


@pytest.mark.slow(reason="seven runs, a process each: a minute; without processes the next test is the same")
def test_a_comparison_runs_every_control(tmp_path, capsys):
    """One seed of all: equal cost makes as many updates as the reference forwards; the reference records its errors."""
    path = write(tmp_path, toml(**RING, compare=arms(*WORDS)))
    ends(capsys, 0, "compare", path, "--out", tmp_path / "out")
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    runs = {run["label"]: run for run in results["runs"]}
    assert runs["equal_cost"]["updates"] == round(runs["own"]["decoder_passes"]) > 5
    gold = runs["own"]["gold_update"]
    assert (gold["clock"], gold["updates"]) == ("cpu_seconds", 5)
    assert runs["equal_seconds"]["updates"] == max(1, round(runs["own"]["cpu_seconds"] / gold["seconds"])) > 1
    assert "gold_update" not in runs["teacher_forcing"]
    # it reads nothing of either history; in free running nothing is right after an end of its own
    assert runs["no_history"]["free_running"]["token_error"] >= runs["no_history"]["teacher_forced"]["token_error"]
    lines = [json.loads(line) for line in (tmp_path / "out/runs/own-0/metrics.jsonl").read_text().splitlines()]
    law = ErrorLaw.of([line["errors"] for line in lines if line["event"] == "update"])
    assert repr(law) in runs["confusion"]["signature"]
    assert {run["role"] for run in results["runs"]} == {"baseline", "method", *(f"control:{word}" for word in WORDS)}
    again = ends(capsys, 0, "compare", path, "--out", tmp_path / "out", "--resume")[1]
    assert "7 of 7 runs were finished before and are kept" in again


def test_controls_of_a_model_of_ones_own():
    """``fr.compare`` with ids and with values."""
    batches = {split: [ragged(seed=n) for n in range(2)] for split in ("train", "dev", "test")}
    methods = {"gold": fr.teacher_forcing(), "own": fr.scheduled_sampling(0.3)}
    methods |= {word: fr.control(word) for word in WORDS}
    result = fr.compare(lambda: seq2seq("gru"), batches, methods, seeds=[0], updates=3, progress=False)
    runs = {run["label"]: run for run in result.results["runs"]}
    assert runs["equal_cost"]["updates"] == round(runs["own"]["decoder_passes"]) > 3
    seconds = runs["own"]["cpu_seconds"] / runs["own"]["gold_update"]["seconds"]
    assert runs["equal_seconds"]["updates"] == max(1, round(seconds)) > 1
    assert runs["confusion"]["signature"].startswith("confusion_noise(rate=table(n=3")
    # it reads nothing of either history; in free running nothing is right after an end of its own
    assert runs["no_history"]["free_running"]["token_error"] >= runs["no_history"]["teacher_forced"]["token_error"]
    refused(
        ["word must be one of matched, confusion, equal_cost, equal_seconds, no_history; got 'noise'"],
        fr.control,
        "noise",
    )
    refused(["arm c: control('confusion') means the one arm", "there is none"], fr.compare, lambda: seq2seq("gru"),
            batches, {"gold": fr.teacher_forcing(), "c": fr.control("confusion")}, seeds=[0], updates=1)  # fmt: skip
    lengths = {"gold": fr.teacher_forcing(), "own": fr.minimum_risk(end=0), "c": fr.control("confusion")}
    refused("arm c: runs of own are of their own lengths", fr.compare, lambda: seq2seq("gru"), batches, lengths,
            seeds=[0], updates=1)  # fmt: skip
    g = torch.Generator().manual_seed(0)
    context = torch.randn(4, 5, 2, generator=g)
    values = {split: [fr.Batch(torch.randn(4, 6, 2, generator=g), context=context)] for split in batches}
    methods = {"gold": fr.teacher_forcing(), "own": fr.free_running(), **{word: fr.control(word) for word in WORDS}}
    result = fr.compare(lambda: fr.models.Seq2SeqModel(2, 7, 2), values, methods, seeds=[0], updates=2, progress=False)
    assert {run["role"] for run in result.results["runs"]} >= {f"control:{word}" for word in WORDS}


def test_trainers_that_score_the_model_themselves_refuse_no_history():
    refuse_no_history(fr.teacher_forcing())
    refused("train freerun.methods.WithoutHistory", refuse_no_history, fr.no_history())
    model, batch = seq2seq("gru"), ragged()
    assert torch.equal(fr.teacher_forcing()(WithoutHistory(model), batch, 0), fr.no_history()(model, batch, 0))
