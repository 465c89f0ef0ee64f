"""Gates: marginals, joint laws, eligibility, determinism. Random tests state their false-alarm rate."""

import math

import pytest
import torch
from scipy import stats

import freerun as fr
from builders import ragged, refused, seq2seq
from freerun import gates

ROWS, TIME = 4000, 5


def batch(rows: int = ROWS, time: int = TIME) -> fr.Batch:
    return fr.Batch(torch.zeros(rows, time, dtype=torch.long))


@pytest.mark.parametrize("ratio", [0.05, 0.5, 0.9])
def test_token_coins_keep_gold_at_every_position_with_the_ratio(ratio):
    """Binomial per position; false-alarm rate 1e-4 a case."""
    keep = gates.Token()(batch(), ratio, key=11)
    for t in range(TIME):
        assert stats.binomtest(int(keep[:, t].sum()), ROWS, ratio).pvalue > 1e-4 / TIME


def test_coin_granularity_changes_the_joint_law_not_the_margins():
    """P(all gold) is ratio^5 for token coins and ratio for sequence coins; false-alarm rate 1e-4 each."""
    for gate, expected in ((gates.Token(), 0.5**TIME), (gates.Sequence(), 0.5)):
        whole = int(gate(batch(), 0.5, key=3).all(1).sum())
        assert stats.binomtest(whole, ROWS, expected).pvalue > 1e-4


def test_step_gates_are_shared_by_rows_and_batch_gates_by_all():
    kept = torch.stack([gates.Timestep()(batch(3), 0.5, key) for key in range(400)])
    assert bool((kept == kept[:, :1]).all())
    assert stats.binomtest(int(kept[:, 0].sum()), 400 * TIME, 0.5).pvalue > 1e-4
    kept = torch.stack([gates.Batchwise()(batch(3), 0.5, key) for key in range(2000)])
    assert bool((kept == kept[:, :1, :1]).all())
    assert stats.binomtest(int(kept[:, 0, 0].sum()), 2000, 0.5).pvalue > 1e-4


@pytest.mark.parametrize("name", ["token", "step", "sequence", "batch", "prefix"])
def test_ratio_one_keeps_all_and_ratio_zero_none(name):
    gate = gates.resolve(name)
    assert bool(gate(batch(), 1.0, 0).all())
    assert not bool(gate(batch(), 0.0, 0).any())


def test_a_falling_ratio_only_gives_gold_up():
    high, low = (gates.Token()(batch(), ratio, key=1) for ratio in (0.7, 0.4))
    assert bool((high | ~low).all())


def test_prefix_counts_eligible_entries():
    eligible = torch.tensor([[False, True, True, True, True], [True, True, False, False, False]])
    keep = gates.Prefix()(batch(2).replace(eligible=eligible), 0.5, 0)
    assert keep[eligible].tolist() == [True, True, False, False, True, False]
    assert int(gates.Prefix()(batch(1, 10), 0.3, 0).sum()) == 3  # 0.3 * 10 is 2.999... in floating point


def test_every_tau():
    assert gates.every(3)(batch(1, 7), 0.0, 0)[0].tolist() == [False, False, True] * 2 + [False]
    coins = gates.Token()(batch(), 0.4, 7)
    keep = gates.every(2)(batch(), 0.4, 7)
    assert bool(keep[:, 1::2].all())
    assert torch.equal(keep[:, ::2], coins[:, ::2])
    for wrong in (2.5, "2", True, float("nan")):
        refused(r"tau must be (at least 2|a whole number)", gates.every, wrong)
    refused("tau must be at least 2", gates.every, 1)


def test_unknown_names_list_the_known_ones():
    known = "gate must be one of token, step, sequence, batch, prefix, every, decoding_steps, conf"
    refused(known, gates.resolve, "tokens")


LATER = [
    (gates.DecodingSteps(), lambda n: 0.99**n),
    (gates.DecodingSteps(k=0.7), lambda n: 0.7**n),
    (gates.DecodingSteps("linear", length=4, floor=0.1), lambda n: max(0.1, 1 - n / 4)),
    (gates.DecodingSteps("linear"), lambda n: 1 - n / 128),
    (gates.DecodingSteps("inverse_sigmoid", k=2), lambda n: 2 / (2 + math.exp(n / 2))),
    (gates.DecodingSteps("inverse_sigmoid"), lambda n: 20 / (20 + math.exp(n / 20))),
]


@pytest.mark.parametrize("ratio", [0.0, 0.6])
@pytest.mark.parametrize(("gate", "formula"), LATER, ids=lambda x: repr(x) if hasattr(x, "shape") else "")
def test_gold_falls_with_the_decoding_step(gate, formula, ratio):
    """Entry t is the decoder's input t+1, and the composite's step is scaled by 1 - ratio.

    Binomial per position; false-alarm rate 1e-4 a case.
    """
    keep = gate(batch(), ratio, key=13)
    for t in range(TIME):
        share = formula((t + 1) * (1 - ratio))
        assert stats.binomtest(int(keep[:, t].sum()), ROWS, share).pvalue > 1e-4 / TIME


@pytest.mark.parametrize("shape", ["linear", "exponential", "inverse_sigmoid"])
def test_decoding_steps_at_ratio_one_keep_everything(shape):
    gate = gates.DecodingSteps(shape)
    assert bool(gate(batch(), 1.0, 0).all())
    assert float(gate.gold_at(torch.tensor([10**9]))) == 0.0


def test_decoding_steps_begin_where_entries_are_eligible():
    eligible = torch.tensor([[False, False, True, True, True]])
    gate = gates.DecodingSteps("linear", length=1)  # g(1) = 0: nothing eligible is kept
    keep = gate(batch(1).replace(eligible=eligible), 0.0, 0)
    assert not bool(keep[eligible].any())
    # the first eligible entry is step 1, not 3; binomial, false-alarm rate 1e-4
    prompted = gates.DecodingSteps("linear", length=10)(batch().replace(eligible=eligible.expand(ROWS, 5)), 0.0, 5)
    assert stats.binomtest(int(prompted[:, 2].sum()), ROWS, 0.9).pvalue > 1e-4


REFUSED = [
    (lambda: gates.decoding_steps("inverse_sigmoid", k=0.5), "k must be 1 or more"),
    (lambda: gates.decoding_steps("linear", k=0.5), "k has no effect with shape='linear'"),
    (lambda: gates.decoding_steps(length=5), "length has no effect"),
    (lambda: gates.decoding_steps("linear", length=0), "length must be at least 1"),
    (lambda: gates.decoding_steps("linear", floor=1.0), "floor must lie in"),
    (lambda: gates.confidence()(batch(2), 0.0, 0), "needs the model's confidence"),
    (lambda: gates.confidences(torch.zeros(1, 2, 3), fr.Batch(torch.zeros(1, 2, 3))), "these targets are values"),
]


@pytest.mark.parametrize(("make", "message"), REFUSED)
def test_what_a_gate_cannot_do_is_refused(make, message):
    refused(message, make)


def test_confidence_of_the_next_entry_decides():
    mask = torch.tensor([[True, True, True, True, False]])
    b = batch(1).replace(mask=mask)
    sure = torch.tensor([[0.99, 0.5, 0.50001, 0.9, 0.99]])
    # entry 0 by 0.5 (the boundary keeps gold), 1 by 0.50001, 2 by 0.9; after 3 and 4 comes nothing that counts
    assert gates.Confidence(0.5)(b, 0.0, 0, sure).tolist() == [[True, False, False, True, True]]
    coins = gates.Token()(batch(), 0.3, 7)
    assert torch.equal(gates.Confidence(0.5)(batch(), 0.3, 7, torch.ones(ROWS, TIME))[:, :-1], coins[:, :-1])


def test_confidences_are_the_softmax_of_the_targets_inside_the_mask():
    logits = torch.tensor([[[1.0, 2.0], [0.0, 3.0], [torch.nan, 0.0]]], requires_grad=True)
    ids = torch.tensor([[1, 0, -100]])
    found = gates.confidences(logits, fr.Batch(ids, mask=torch.tensor([[True, True, False]])))
    expected = [math.exp(2) / (math.e + math.exp(2)), 1 / (1 + math.exp(3)), 0.0]
    assert found[0].tolist() == pytest.approx(expected, rel=1e-6)
    assert not found.requires_grad


def test_gates_of_a_recipe():
    from freerun.recipes.fields import read_parameter

    def no(*problem):
        raise AssertionError(problem)

    read = read_parameter({"gate": "decoding_steps", "shape": "linear", "length": 40}, ("gate",), None, no)
    assert read == gates.DecodingSteps("linear", length=40)
    assert read_parameter({"gate": "confidence", "t_golden": 0.8}, ("gate",), None, no) == gates.Confidence(0.8)
    problems = []
    read_parameter({"gate": "decoding_steps", "k": 3.0}, ("gate",), None, lambda *problem: problems.append(problem))
    assert "k must be strictly between 0 and 1" in problems[0][1]


def test_gates_by_name_in_a_method():
    model, b = seq2seq(), ragged(size=16)
    outcome = fr.scheduled_sampling(0.2, gate="decoding_steps").run(model, b, 3, 5)
    keep = gates.DecodingSteps()(b, 0.2, fr.keys.fold(5, "gate", 3)) | ~b.replaceable
    assert outcome.report["replaced"] == int((~keep).sum())
    assert outcome.report["exact"] == 1.0
    named, built = (fr.scheduled_sampling(0.0, gate=gate) for gate in ("confidence", gates.Confidence()))
    assert named.run(model, b, step=0).report == built.run(model, b, step=0).report
