"""The measuring scripts run, on tiny shapes; no time is asserted."""

import importlib
import json
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest
import torch

import freerun as fr
from builders import raises

FOLDER = Path(__file__).parent.parent / "benchmarks"


@pytest.fixture
def script(monkeypatch):
    """Imports a script as running it would."""
    monkeypatch.syspath_prepend(str(FOLDER))
    return importlib.import_module


def test_the_price_list_of_every_kind_of_model(script, capsys):
    script("roll_in").main(["--json", "--preset", "tiny", "--ratios", "0.5", "--repetitions", "1"])
    found = json.loads(capsys.readouterr().out)
    lines = [each for each in found if "price" in each]
    assert [each["model"] for each in lines] == ["lstm-attention", "encoder-decoder", "decoder-only"]
    # the keys of the first version
    old = {"model", "hidden", "batch", "time", "vocab", "teacher_forcing_ratio", "engine", "price"}
    old |= {"hand_written_price", "training_step_price", "extra_model_calls"}
    for each in lines:
        assert old <= each.keys()
        assert each["differing_entries"] == 0
        assert each["compared_entries"] > 0
        assert not any("failed" in line for line in each["engines"].values())
        assert each["engines"]["two passes"]["certified"] == "no"
    assert {each["dropout"] for each in found if "dropout" in each} == {0.1}
    assert len([each for each in found if "full_prefix" in each]) == 2


def test_autocast_and_markdown(script, capsys):
    """The path that a GPU takes, but for the device."""
    tiny = "--preset tiny --models decoder --ratios 1,0.5 --repetitions 1 --amp --markdown --dropout 0"
    script("roll_in").main(tiny.split())
    out = capsys.readouterr().out
    assert "| ratio | auto | it took | step |" in out
    assert "Measured on: " in out
    assert " repetitions" in out
    assert "auto is dearer than a loop by hand, or by more than 8 % than another engine, in " in out


@pytest.mark.slow  # 30 seconds: a dozen models at four ratios
@pytest.mark.parametrize("preset", ["cpu", "gpu"])
def test_every_line_of_a_preset_in_tiny_sizes(script, preset, capsys):
    """What a GPU runs, with its trained weights, autocast, adapted models and encoders, but for the device."""
    tiny = f"--preset {preset} --tiny --repetitions 1 --updates 1 --json"
    script("roll_in").main(tiny.split())
    lines = [each for each in json.loads(capsys.readouterr().out) if "price" in each]
    shapes = script("cases").PRESETS[preset]
    assert {each["model"] for each in lines} == shapes.keys()
    assert {each["how"] for each in lines} == {shape.how for kind in shapes.values() for shape in kind}
    for each in lines:
        assert each["differing_entries"] == 0 or "bf16" in each["how"]
        assert not any("failed" in engine for engine in each["engines"].values())
        assert each["hand_written_price"] > 0
        assert each["load"] is None or each["load"] >= 0


def test_lines_that_are_too_dear_are_named(script):
    sizes = dict.fromkeys(("hidden", "layers", "batch", "time", "vocab"), 1) | {"model": "m", "weights": "random"}
    others = {"step": (1.7, "step"), "window 1": (1.9, "window"), "jacobi, Gumbel": (1.5, "jacobi")}

    def line(price, hand, took="window", gumbel=(1.6, "window")):
        engines = {**others, "auto": (price, took), "auto, Gumbel": gumbel, "two passes": (1.2, "none")}
        rest = {"price": price, "hand_written_price": hand, "engine": took}
        rest["engines"] = {name: {"price": each, "took": engine} for name, (each, engine) in engines.items()}
        return {**sizes, **rest, "teacher_forcing_ratio": 0.5}

    where = "m d1 L1 B1 T1 V1, random, ratio 0.5: "
    for one, expected in (
        (line(1.6, 1.7), []),
        (line(1.8, None), []),
        (line(2.2, 2.3, "step"), []),  # it took that one: noise
        (line(1.8, 1.7), [where + "by hand 1.70, auto (window) 1.80"]),
        (line(1.9, 2.0), [where + "step 1.70, auto (window) 1.90"]),
        (line(1.6, 1.7, gumbel=(1.7, "window")), [where + "jacobi, Gumbel 1.50, auto, Gumbel (window) 1.70"]),
        (line(1.6, 1.7, gumbel=(1.7, "jacobi")), []),
    ):
        assert script("lines").violations([one]) == expected


def test_a_variant_that_is_far_too_slow_runs_three_rounds(script):
    timing, clock = script("timing"), iter(range(10**6))
    ticks = {"base": 1, "near": 3, "far": 20}

    def step(cost):
        def run(n):
            for _ in range(cost - 1):
                next(clock)

        return run

    taken = timing.take({name: step(cost) for name, cost in ticks.items()}, 9, lambda: next(clock))
    assert {name: len(mine.seconds) for name, mine in taken.items()} == {"base": 9, "near": 9, "far": 3}
    assert timing.prices(taken, "base") == {"base": 1, "near": 3, "far": 20}


def test_without_a_gpu_the_device_is_refused(script):
    if torch.cuda.is_available():
        return
    raises(SystemExit, "", lambda: script("roll_in").arguments_of(["--device", "cuda"]))


def test_input_feeding_is_priced_against_the_fused_layers(script, capsys):
    script("input_feeding").main(["--rounds", "1", "--size", "8", "--batch", "2", "--time", "3"])
    header, base, *others = capsys.readouterr().out.splitlines()
    assert header.split() == ["price", "ms"]
    assert base.split()[-2] == "1.00"
    assert len(others) == 3


def test_passes_are_counted_and_drawn(script, tmp_path, capsys):
    passes = script("passes")
    model, _, batches = passes.windows([4, 8], 2, 1, 0)
    found = passes.counted(model.eval(), batches, [0.5, 0.0])
    assert len(found) == 3 * 2 * 2
    # at ratio 0 a row of T own entries: as many calls as a window of one reads, at most one pass more than entries
    for one in found:
        if one["teacher_forcing_ratio"] == 0:
            assert one["time"] - 1 <= one["window_1_calls"] <= one["time"]  # the start may be read in a call of its own
            assert one["jacobi_calls"] <= one["time"] + 1
    root = ElementTree.fromstring(script("passes_figure").figure(found))
    assert root.find("{http://www.w3.org/2000/svg}title") is not None
    texts = {element.text for element in root.iter("{http://www.w3.org/2000/svg}text")}
    assert {"T 4", "T 8", "greedy", "parallel passes"} <= texts


def test_parts_sum_up_and_leave_the_library_as_it_was(script, capsys):
    before = torch.nn.functional.scaled_dot_product_attention, fr.models.TransformerLM.head
    script("parts").main(["--preset", "tiny", "--repetitions", "1", "--json"])
    found = json.loads(capsys.readouterr().out)
    assert found[0]["what"] == "one forward without gradient"
    assert all(value >= 0 for one in found for value in one["parts"].values())
    assert (torch.nn.functional.scaled_dot_product_attention, fr.models.TransformerLM.head) == before


def test_the_hand_written_loops_are_the_library_at_ratio_one(script):
    """With gold everywhere a loop and teacher forcing are the same loss; float32, so to rounding."""
    loops, cases = script("loops"), script("cases")
    shape = cases.PRESETS["tiny"]
    recurrent = cases.made_case("lstm-attention", shape["lstm-attention"][0])
    both = [cases.made_case(kind, shape[kind][0]) for kind in ("encoder-decoder", "decoder-only")]
    pairs = [(recurrent, loop) for loop in loops.HAND["lstm-attention"].values()]
    pairs += [(case, loops.cached_loop) for case in both]
    pairs += [(case, lambda m, b, r: loops.full_prefix_loop(m, b, r, True)) for case in both]
    for case, loop in pairs:
        batch = case.decoder[0]
        gold = fr.teacher_forcing()(case.model, batch, step=0)
        assert loop(case.model, batch, 1.0).item() == pytest.approx(gold.item(), 1e-5)


def test_replayed_masks_settle_on_what_the_training_forward_says(script):
    loops, cases = script("loops"), script("cases")
    case = cases.made_case("decoder-only", cases.PRESETS["tiny"]["decoder-only"][0]).with_dropout(0.3)
    outcome = loops.replayed_masks(case.model, case.decoder[0], 0.25, 7)
    # the outputs that are differentiated choose the very entries that were fed, dropout and all
    noise = fr.draws.Sample(coupling="gumbel")
    rows, times = (outcome.fed.history != case.decoder[0].history).nonzero(as_tuple=True)
    key = fr.keys.fold(7, "draw", 0)
    chosen = noise.choose(outcome.outputs[rows, times], noise.noise(key, rows, times, outcome.outputs.shape[-1]))
    assert len(rows) > 3
    assert torch.equal(chosen, outcome.fed.history[rows, times])


def test_a_run_is_measured_on_its_own_batches(script, tmp_path):
    from freerun.recipes import load_recipe
    from freerun.recipes.train import run_recipe

    text = tmp_path / "text.txt"
    text.write_text("the cat sat on the mat. " * 60, encoding="utf-8")
    changes = {"data.path": text, "data.length": 12, "data.stride": 6, "model.size": 16, "model.layers": 1}
    changes |= {"model.heads": 2, "train.updates": 2, "train.warmup": 1, "train.evaluate_every": 2}
    changes |= {"train.batch_size": 4, "train.evaluate_items": 1, "evaluate.block": 16}
    recipe = load_recipe("char-lm", [f"{key}={value}" for key, value in changes.items()])
    run_recipe(recipe, tmp_path / "run", progress=False)
    case = script("cases").case_of_run(tmp_path / "run", 2)
    assert (case.kind, case.facts["time"], len(case.batches)) == ("decoder-only", 13, 2)
    assert case.weights == "char-lm, 2 updates"


def test_the_page_is_what_was_measured(script):
    page = script("page")
    assert page.main(["--check"]) == 0, "run python benchmarks/page.py"
    places = page.written(
        page.PAGE.read_text("utf-8").replace("decoder-only", "?"), json.loads(page.MEASURED.read_text())
    )
    assert "decoder-only" in places


def test_lines_measured_anew_take_the_place_of_the_old_ones(script):
    def line(model, ratio, price):
        sizes = dict.fromkeys(("hidden", "layers", "batch", "time", "vocab"), 1)
        return {"model": model, **sizes, "weights": "random", "teacher_forcing_ratio": ratio, "price": price}

    old = {"lines": [line("a", 0.9, 1.0), line("a", 0.5, 2.0), line("b", 0.9, 3.0)]}
    new = {"lines": [line("b", 0.9, 4.0), line("a", 0.75, 5.0)]}
    found = script("page").merged(old, new)["lines"]
    assert [(each["model"], each["teacher_forcing_ratio"], each["price"]) for each in found] == [
        ("a", 0.9, 1.0), ("a", 0.75, 5.0), ("a", 0.5, 2.0), ("b", 0.9, 4.0)
    ]  # fmt: skip
