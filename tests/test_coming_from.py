"""docs/coming-from.md: every line runs, and its ratio is the other system's formula, converted by hand."""

import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch

import freerun as fr
from builders import ragged, transformer
from freerun.schedules import value_at

PAGE = Path(__file__).parent.parent / "docs" / "coming-from.md"


def rows(part: str) -> dict[str, str]:
    """The system and the line of every row of a part's first table."""
    text = re.search(rf"^## {part}\n(.*?)(?=^##)", PAGE.read_text("utf-8"), re.DOTALL | re.MULTILINE)[1]
    text = text.partition("\n### ")[0]
    cells = [re.split(r" \| ", line.strip("| ")) for line in text.splitlines() if line.startswith("| ")]
    names = [re.match(r"\*\*(.*?)\*\*", row[0]) for row in cells]
    return {name[1].replace("`", ""): row[-1].strip("`") for name, row in zip(names, cells, strict=True) if name}


TEXT, VALUES = rows("Text, speech and captions"), rows("Values: forecasting, video, simulators")
NAMES: dict[str, Any] = {}
exec(re.search(r"^```python\n(.*?)^```$", PAGE.read_text("utf-8"), re.DOTALL | re.MULTILINE)[1], NAMES)


def method_of(line: str):
    # what stands above the tables, but for a teacher over the symbols of the batches here
    return eval(line, {**NAMES, "teacher": transformer("learned")})


def at(number: float) -> fr.Step:
    """A step that is as many epochs as steps away from the beginning."""
    return fr.Step(int(number), sample=int(number), epoch=float(number))


# P(gold) as each system's own formula has it: system -> (formula of step or epoch, gate, own entry)
TEXT_EXPECTED = {
    "TF Addons, Texar-TF": (lambda s: 1 - 0.25, "token", "auto"),
    "AllenNLP SimpleSeq2Seq, CopyNetSeq2Seq, AutoRegressiveSeqDecoder": (lambda s: 0.75, "step", "greedy"),
    "OpenNMT-tf, constant": (lambda s: 0.8, "token", "auto"),
    "OpenNMT-tf, linear": (lambda s: max(0.8 - 0.0001 * s, 0), "token", "auto"),
    "OpenNMT-tf, exponential": (lambda s: 0.9999**s, "token", "auto"),
    "OpenNMT-tf, inverse_sigmoid": (lambda s: 1000 / (1000 + math.exp(s / 1000)), "token", "auto"),
    "OpenNMT (Lua), linear": (lambda e: max(0, 0.9 - e * 0.1), "token", "greedy"),
    "OpenNMT (Lua), invsigmoid": (lambda e: 0.9 * 5 / (5 + math.exp(min(e, 29) / 5) - 1), "token", "greedy"),
    "ESPnet": (lambda s: 1 - 0.4, "step", "greedy"),
    # its epochs count from 1, ours from 0
    "Espresso (on fairseq)": (lambda e: 1 if e + 1 < 3 else [0.9, 0.8, 0.7][min(int(e) + 1 - 3, 2)], "token", "greedy"),
    "OR-NMT (on fairseq)": (lambda s: 3000 / (3000 + math.exp(s / 3000)), "token", None),
    "OR-NMT, word level with noise": (lambda s: 3000 / (3000 + math.exp(s / 3000)), "token", None),
    "OR-NMT, sentence level": (lambda s: 5800 / (5800 + math.exp(s / 5800)), "batch", None),
    "deep-spin, exp": (lambda s: max(0, 0.9999**s), "step", None),
    "deep-spin, linear": (lambda s: max(0.2, 1 - 0.0001 * s), "step", None),
    "tensor2tensor, linear": (lambda s: 1 - 0.5 * (min(s / 50_000, 1) * (1 - 0.01) + 0.01), "token", "auto"),
    "IBM/pytorch-seq2seq": (lambda s: 0.5, "batch", "greedy"),
    "PyTorch tutorial, until 2023": (lambda s: 0.5, "sequence", "greedy"),
    "bentrevett/pytorch-seq2seq": (lambda s: 0.5, "step", "greedy"),
    "Ludwig, as meant": (lambda s: max(0, 1 - 0.01 * s), "step", "greedy"),
    "self-critical.pytorch": (lambda e: 1 - min(0.05 * (e // 5), 0.25), "token", "auto"),
    "self-critical.pytorch, self-critical": (lambda s: 0.0, "prefix", "sample"),
    "self-critical.pytorch, new self-critical": (lambda s: 0.0, "prefix", "sample"),
    "Nematus": (lambda s: 0.0, "prefix", "sample"),
    "TRL GKD": (lambda s: 1 - 0.5, "batch", fr.draws.sample(temperature=0.9)),
    "TRL DistillationTrainer": (lambda s: 0.0, "token", "sample"),
    "ms-swift, --rlhf_type gkd": (lambda s: 1 - 0.5, "batch", fr.draws.sample(temperature=0.9)),
    "k2 MWERLoss": (lambda s: 0.0, "prefix", "sample"),
}
# what a line has of the other system's numbers beside P(gold), or in its place
TEXT_OTHERS = {
    "OR-NMT (on fairseq)": {"mix": "argmax", "gradient": "none", "gold_weight": 0.0},
    "OR-NMT, word level with noise": {"mix": "sample", "gradient": "none", "gold_weight": 0.0},
    "OR-NMT, sentence level": {"beams": 4, "noise": True, "temperature": 1.0, "cost": "bleu"},
    "self-critical.pytorch, self-critical": {"num_samples": 5, "baseline": "greedy"},
    "self-critical.pytorch, new self-critical": {"num_samples": 5, "baseline": "mean"},
    "Nematus": {"cost": "bleu", "num_samples": 100, "alpha": 0.005, "include_gold": False},
    "ParlAI RepetitionUnlikelihoodAgent": {"level": "sequence", "ngram": 4, "prefix": 0},
    "Texar-TF, RAML example": {"tau": 0.4, "end": 0},
}
VALUES_EXPECTED = {
    "OpenSTL, PredRNN": (lambda s: 1 - 2e-5 * s if s < 50_000 else 0, "token", "auto"),
    "DCRNN, GTS, MegaCRN: curriculum on": (lambda s: 2000 / (2000 + math.exp(s / 2000)), "step", "auto"),
    "LibCity RNN, Seq2Seq": (lambda s: 0.5, "step", "auto"),
    "Tacotron-2 (Rayhane)": (
        lambda s: 0.5 * (1 + math.cos(math.pi * min(max(s - 10_000, 0) / 40_000, 1))),
        "step",
        "auto",
    ),
    "TF Addons": (lambda s: 0.75, "token", "auto"),
    "LED (Vlachas), without gradient": (lambda e: math.exp(math.log(0.001) / 100) ** e, "step", "none"),
    "LED (Vlachas), with gradient": (lambda e: max(0, 1 - e / 100), "step", "auto"),
    "flipped_classroom, decreasing": (lambda e: max(0, 1 - e / 1000), "step", "auto"),
    "flipped_classroom, increasing": (lambda e: min(1, e / 1000), "step", "auto"),
    "flipped_classroom, increasing, deterministic": (lambda e: min(1, e / 1000), "prefix", "auto"),
    "autocast": (lambda s: 0.5, "batch", "none"),
}
# steps of the rollout, or of the loss
HORIZONS = {
    "MTGNN, D2STGNN, PDFormer": lambda s: min(1 + s // 2500, 12),
    "MP-Neural-PDE-Solvers": lambda e: 1 + min(e, 5),
    "GraphCast, physicsnemo": lambda s: 1 if s < 300_000 else min(2 + (s - 300_000) // 1000, 12),
    "anemoi": lambda e: min(1 + e, 12),
    "trainax": lambda s: 5,
    "trainax, cut": lambda s: 6,
    "tum-pbs/unrolling, NOG": lambda s: 3,
    "tum-pbs/unrolling, WIG": lambda s: 3,
}
STEPS = [0, 1, 2, 3, 5, 9, 10, 29, 100, 999, 1000, 2499, 2500, 9999, 10_000, 30_000, 50_000, 60_000, 299_999, 300_999]


def test_no_row_is_left_out():
    gold = {name for name, line in {**TEXT, **VALUES}.items() if line in ("fr.teacher_forcing()", "fr.free_running()")}
    others = {"OpenSTL, PredRNN-V2, reverse", "GTF-shPLRNN", "ChaosRNN", "learning_to_simulate", "meshgraphnets"}
    others |= {"ace", "Self Gradient Forcing"}
    assert set(TEXT) == set(TEXT_EXPECTED) | (gold & set(TEXT)) | set(TEXT_OTHERS)
    assert set(VALUES) == set(VALUES_EXPECTED) | set(HORIZONS) | others | (gold & set(VALUES))
    assert len(TEXT) > 15
    assert len(VALUES) > 20


def check_ratio(method, formula) -> None:
    for step in STEPS:
        found = value_at(method.teacher_forcing_ratio, at(step))
        assert found == pytest.approx(formula(step), rel=1e-12, abs=1e-12), step


def check_learns(method, model, batch) -> None:
    loss = method(model, batch, step=at(7), key=1)
    loss.backward()
    assert loss.isfinite()
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())


@pytest.mark.parametrize("name", TEXT_EXPECTED)
def test_text_has_the_same_probability_of_gold_gate_and_entry(name):
    formula, gate, draw = TEXT_EXPECTED[name]
    method = method_of(TEXT[name])
    check_ratio(method, formula)
    assert (method.gate, getattr(method, "draw", None)) == (gate, draw)


@pytest.mark.parametrize("name", TEXT_OTHERS)
def test_other_lines_have_the_same_numbers(name):
    method = method_of(TEXT[name])
    assert {field: getattr(method, field) for field in TEXT_OTHERS[name]} == TEXT_OTHERS[name]


def test_a_drawn_number_of_steps_has_the_same_law():
    horizon = method_of(VALUES["ace"]).horizon
    assert dict(zip(horizon.values, horizon.weights, strict=True)) == {1: 0.7, 4: 0.3}


@pytest.mark.parametrize("name", VALUES_EXPECTED)
def test_values_have_the_same_probability_of_gold_gate_and_gradient(name):
    formula, gate, gradient = VALUES_EXPECTED[name]
    method = method_of(VALUES[name])
    check_ratio(method, formula)
    assert (method.gate, method.gradient) == (gate, gradient)


@pytest.mark.parametrize("name", HORIZONS)
def test_horizons_are_as_long(name):
    method = method_of(VALUES[name])
    for step in STEPS:
        assert math.floor(value_at(method.horizon, at(step)) + 1e-9) == HORIZONS[name](step), step
    assert getattr(method, "gradient", None) == {"trainax, cut": 2, "tum-pbs/unrolling, NOG": "none"}.get(
        name, "full" if method.name == "multi_step" else None
    )


@pytest.mark.parametrize("name", TEXT)
def test_text_lines_run(name):
    check_learns(method_of(TEXT[name]), transformer(), ragged())


@pytest.mark.parametrize("name", VALUES)
def test_lines_for_values_run(name):
    eligible = (torch.arange(14) >= 3).expand(3, 14)  # three known entries, as a warm-up
    batch = fr.Batch(torch.randn(3, 14, 1), context={"past": torch.randn(3, 5, 1)}, eligible=eligible)
    method = method_of(VALUES[name])
    # an adaptive share needs a model whose state is its last entry
    kind = fr.models.ShallowPLRNN if method.name == "generalised_teacher_forcing" else fr.models.RecurrentForecaster
    check_learns(method, kind(1), batch)
